"""What the adapters that speak HTTP share: a session without surprises, words for failures, bodies in pieces."""

import email.utils
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Final

import requests
import urllib3
from typing_extensions import override

from outrider import __version__

USER_AGENT: Final = f"outrider/{__version__}"

PIECE: Final = 256 * 1024
"""Bytes of a body that are held at a time. Larger pieces were measured to be no faster."""

MAX_RETRY_AFTER: Final = 3600.0
"""Seconds; what a server asks for beyond that is not believed."""

NETWORK_ERRORS: Final = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
"""Everything that requests, urllib3 and the socket below them raise when the other side or the way to it fails."""


class PlainSession(requests.Session):
    """A session that does nothing unasked: no cookies, no credentials from ~/.netrc, no compression, no redirects."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # With any `auth` of its own, requests does not look into ~/.netrc, which would also replace our Authorization.
        self.auth = _unchanged
        self.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})

    @override
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None, as if no answer were a redirect.

        Even with allow_redirects=False requests looks ahead: it reads a redirect's body into memory, however long that
        is, and parses its Location, however broken that is.
        """


def explain(error: BaseException) -> str:
    """Return in a few words what went wrong on the network. Never the library's own text: that may hold URLs."""
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return "its TLS certificate is not trusted: " + str(cause.verify_message or "verification failed")
            case ssl.SSLError():
                return "TLS could not be established (is it plain HTTP?)"
            case socket.gaierror() | urllib3.exceptions.NameResolutionError():
                return "its name cannot be resolved"
            case ConnectionRefusedError():
                return "the connection was refused"
            case urllib3.exceptions.ConnectTimeoutError() | requests.ConnectTimeout():
                return "it did not accept a connection in time"
            case urllib3.exceptions.ReadTimeoutError() | requests.ReadTimeout() | TimeoutError():
                return "it stopped answering"
            case urllib3.exceptions.ProxyError() | requests.exceptions.ProxyError():
                return "the proxy on the way to it failed"
            case urllib3.exceptions.IncompleteRead():
                return "it closed the connection early"
            case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError():
                return "it broke the connection"
            case OSError(errno=int(), strerror=str(text)) if not isinstance(cause, requests.RequestException):
                return text.lower()
            case _:
                continue
    return "the connection failed"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait (RFC 9110, 10.2.3), between 0 and an hour; None if it does not."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), MAX_RETRY_AFTER)
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(moment - time.time(), 0.0), MAX_RETRY_AFTER)


def read_pieces(response: requests.Response) -> Iterator[bytes]:
    """Yield the body as it was sent, piece by piece, each as soon as the network hands it over.

    A slow body gives small pieces, so that whoever reads can look at a deadline between them. Raises NETWORK_ERRORS,
    also when the body is shorter than its Content-Length.
    """
    while piece := response.raw.read1(PIECE, decode_content=False):
        yield piece


def read_beyond_length(response: requests.Response) -> None:
    """Let the body be read until the other side closes, whatever its Content-Length says; counting is up to the reader.

    For requests that were sent with `Connection: close`.
    """
    response.raw.length_remaining = None
    original = response.raw._original_response  # noqa: SLF001 - as requests does: there is no other way
    if original is not None:
        original.length = None


def set_patience(response: requests.Response, seconds: float) -> None:
    """Wait for the next bytes of a body no longer than this; without effect where the other side will close anyway."""
    connection = getattr(response.raw, "connection", None)
    if connection is not None and connection.sock is not None:
        connection.sock.settimeout(seconds)


def is_broken_off(error: BaseException) -> bool:
    """Say whether an error means that a body ended too early, rather than that nothing came for too long."""
    broken = (urllib3.exceptions.ProtocolError, ConnectionError, ssl.SSLEOFError)
    return isinstance(error, broken) or any(isinstance(cause, broken) for cause in _causes(error))


def read_at_most(response: requests.Response, limit: int) -> bytes:
    """Return the body if it has at most `limit` bytes, else the first `limit` + 1 of them; then close the response.

    Raises NETWORK_ERRORS.
    """
    parts = bytearray()
    try:
        for piece in read_pieces(response):
            parts += piece
            if len(parts) > limit:
                break
    finally:
        response.close()
    return bytes(parts[: limit + 1])


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the innermost error first: it says most. Libraries hide it in `reason`, in `args` or in the context."""
    chain: list[BaseException] = []
    pending: list[object] = [error]
    while pending:
        item = pending.pop(0)
        if isinstance(item, BaseException) and item not in chain:
            chain.append(item)
            pending += [getattr(item, "reason", None), *item.args, item.__cause__, item.__context__]
    return reversed(chain)
