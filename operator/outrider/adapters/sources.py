"""Where an artifact's bytes come from: an http(s) URL, or a value that somebody has read already.

A source is read once, piece by piece. Every URL on the way, redirects included, passes the one pure function
`check_url`. What a server sends is believed in nothing: sizes are counted, and whoever reads compares the hash.
"""

import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Final, Self

import requests
import urllib3

from outrider.adapters.transport import (
    NETWORK_ERRORS,
    AddressPolicy,
    PlainSession,
    explain,
    host_address,
    is_broken_off,
    read_beyond_length,
    read_pieces,
    retry_after,
    set_patience,
)
from outrider.api.errors import Stalling, Transient

MAX_REDIRECTS: Final = 5
_SURPLUS_SECONDS: Final = 0.2
"""How long to listen, once everything that was promised has come, for more than that."""
_REDIRECTS: Final = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class SourceLimits:
    """What the operator's settings allow a source."""

    max_bytes: int = 4 * 1024**3
    """The largest artifact, in bytes."""
    connect_timeout: float = 5.0
    """Seconds."""
    read_timeout: float = 30.0
    """Seconds of silence after which the source counts as down."""
    total_timeout: float = 3600.0
    """Seconds that the whole transfer may take."""
    allowed_hosts: tuple[str, ...] = ()
    """Globs over host names, in lower case and without port; empty: every host."""
    guard: AddressPolicy = field(default_factory=AddressPolicy)
    """Which addresses may be connected to."""


class Source:
    """Bytes to be read once, and what is known about them beforehand. Use it as a context manager."""

    def __init__(
        self,
        name: str,
        chunks: Iterable[bytes],
        *,
        declared_size: int | None,
        remark: str = "",
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        """For messages, without anything secret: a URL without query, or `configmap/name:key`."""
        self.chunks = chunks
        """The bytes. Iterating raises what `open_http` says."""
        self.declared_size = declared_size
        """The size in bytes that the other side promised, or None if it did not."""
        self.remark = remark
        """What may explain a wrong hash, such as that a web page was sent; or nothing."""
        self._close = close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()


def from_bytes(name: str, data: bytes, *, limits: SourceLimits | None = None) -> Source:
    """Return bytes that were read already, such as a ConfigMap's value, as a source called `name`.

    Raises Stalling(SourceTooLarge).
    """
    limits = limits or SourceLimits()
    if len(data) > limits.max_bytes:
        raise _too_large(name, f"has {len(data)} bytes", limits)
    return Source(name, (data,), declared_size=len(data))


def check_url(url: str, allowed_hosts: tuple[str, ...] = (), guard: AddressPolicy | None = None) -> None:
    """Return if a URL may be fetched. Pure: no name is resolved. Raises Stalling(UrlInvalid, AddressNotAllowed).

    It must be http or https, name a host that matches one of `allowed_hosts` (if there are any), and hold no
    credentials: these would end in logs and status. URLs that two parsers could read differently are refused, and so
    are addresses in a spelling that not everybody takes for one, and those that `guard` refuses.
    """
    if any(character.isspace() or not character.isprintable() or character == "\\" for character in url):
        raise _invalid("it holds a space, a control character or a backslash")
    try:
        parts = urllib.parse.urlsplit(url)
        port, second = parts.port, urllib3.util.parse_url(url)
    except (ValueError, urllib3.exceptions.LocationParseError):
        raise _invalid("it cannot be parsed") from None
    if parts.scheme not in {"http", "https"}:
        raise _invalid("its scheme is not http or https")
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise _invalid(
            "it holds credentials (user:password@); take them out, and change the password as it is known now"
        )
    host = (parts.hostname or "").lower()
    if not host.isascii():
        raise _invalid("its host is not ASCII; write it in the form xn--…")
    if not host or "%" in host or host != (second.host or "").lower().strip("[]") or port != second.port:
        raise _invalid("its host or port cannot be made out")
    if guard is not None:
        guard.check_host(host)
    address = host_address(host)
    if address is not None and host != str(address) and ":" not in host:
        raise _invalid(f"it writes an address in a way that some read differently; write {address}")
    if allowed_hosts and not any(fnmatchcase(host, glob) for glob in allowed_hosts):
        raise _invalid(
            f"the host {host} is not among the hosts that the operator's settings allow: {', '.join(allowed_hosts)}"
        )


def shown_url(url: str) -> str:
    """Return a URL as it may be shown: without credentials, query and fragment, where secrets are put."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "(a URL that cannot be parsed)"
    query = "?…" if parts.query else ""
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in shown)[:300]


def open_http(url: str, *, limits: SourceLimits | None = None, cancelled: Callable[[], bool] = lambda: False) -> Source:
    """Ask for the file behind a URL and return it ready to be read.

    Up to 5 redirects are followed. Raises here or while reading:

    - Stalling: UrlInvalid, AddressNotAllowed, SourceNotFound (404, 410), SourceDenied (401, 403, 407), SourceRefused
      (other answers that do not bring the file), RedirectLoop, SourceTooLarge (more than `limits.max_bytes`, or than
      the server announced).
    - Transient: SourceUnreachable (name, connection, silence, 5xx, 429, too slow), SourceTruncated (fewer bytes than
      promised), Cancelled (`cancelled` has begun to say so; it is asked whenever bytes arrive).
    """
    limits = limits or SourceLimits()
    name = shown_url(url)
    deadline = time.monotonic() + limits.total_timeout
    session = PlainSession(limits.guard)
    try:
        response = _follow(session, url, limits)
    except BaseException:
        session.close()
        raise

    def close() -> None:
        response.close()
        session.close()

    # The library would stop at the announced size and drop what comes after it unseen.
    read_beyond_length(response)
    declared = _declared_size(response)
    if declared is not None and declared > limits.max_bytes:
        close()
        raise _too_large(name, f"announces {declared} bytes", limits)
    chunks = _read(response, name, limits, declared, deadline, cancelled)
    return Source(name, chunks, declared_size=declared, remark=_remark(response), close=close)


def _follow(session: requests.Session, url: str, limits: SourceLimits) -> requests.Response:
    """Follow redirects by hand, for each hop has to be checked."""
    first = url
    seen: set[str] = set()
    while True:
        check_url(url, limits.allowed_hosts, limits.guard)
        if url in seen:
            raise _redirect(first, f"redirects in a circle (back to {shown_url(url)})")
        if len(seen) > MAX_REDIRECTS:
            raise _redirect(first, f"redirects more than {MAX_REDIRECTS} times (last to {shown_url(url)})")
        seen.add(url)
        try:
            response = session.get(
                url,
                headers={"Connection": "close"},
                stream=True,
                allow_redirects=False,
                timeout=(limits.connect_timeout, limits.read_timeout),
            )
        except NETWORK_ERRORS as error:
            raise _unreachable(shown_url(url), explain(error)) from None
        if response.status_code not in _REDIRECTS:
            _check_status(response, shown_url(url))
            return response
        location = response.headers.get("Location", "")
        response.close()
        if not location:
            raise _redirect(first, f"answered {response.status_code} without saying where to")
        try:
            url = urllib.parse.urljoin(url, location)
        except ValueError:
            raise _redirect(first, "redirects to something that is no URL") from None


def _check_status(response: requests.Response, name: str) -> None:
    status = response.status_code
    if status == 200:
        return
    response.close()
    if status in {404, 410}:
        raise Stalling(
            "SourceNotFound", f"there is no file at {name} ({status}); correct the URL, or put the file there"
        )
    if status in {401, 403, 407}:
        raise Stalling(
            "SourceDenied", f"{name} is not open to the operator ({status}); allow it there, or name another URL"
        )
    if status >= 500 or status in {408, 425, 429}:
        message = f"{name} answered {status}; it will be tried again"
        raise Transient("SourceUnreachable", message, retry_after=retry_after(response.headers))
    raise Stalling("SourceRefused", f"{name} answered {status} instead of a file (200); correct the URL")


def _declared_size(response: requests.Response) -> int | None:
    # With a transfer coding, Content-Length means nothing (RFC 9112, 6.3).
    value = response.headers.get("Content-Length", "")
    if "Transfer-Encoding" in response.headers or not (value.isascii() and value.isdigit()):
        return None
    return int(value[:20])


def _remark(response: requests.Response) -> str:
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        return "the server sent it compressed (Content-Encoding), and it was stored as sent"
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        return "the server sent a web page (text/html): a login or error page?"
    return ""


def _read(
    response: requests.Response,
    name: str,
    limits: SourceLimits,
    declared: int | None,
    deadline: float,
    cancelled: Callable[[], bool],
) -> Iterator[bytes]:
    size = 0
    promised = f" of {declared}" if declared is not None else ""
    pieces = read_pieces(response)
    if declared == 0:
        set_patience(response, _SURPLUS_SECONDS)
    try:
        while piece := next(pieces, b""):
            size += len(piece)
            if size > limits.max_bytes:
                raise _too_large(name, "sends more", limits)
            if declared is not None and size > declared:
                raise Stalling(
                    "SourceTooLarge",
                    f"{name} announced {declared} bytes and sends more; correct the Content-Length there, or the file",
                )
            if cancelled():
                raise Transient(
                    "Cancelled", f"reading {name} was stopped after {size}{promised} bytes; it will start again"
                )
            if time.monotonic() > deadline:
                slow = f"it sent only {size}{promised} bytes in {limits.total_timeout:.0f} s"
                raise _unreachable(name, slow)
            yield piece
            if size == declared:
                set_patience(response, _SURPLUS_SECONDS)
    except NETWORK_ERRORS as error:
        if size == declared:
            # All is here; that the other side neither closes nor sends more is no failure.
            return
        if is_broken_off(error):
            raise _truncated(name, size, promised) from None
        raise _unreachable(name, f"{explain(error)} after {size}{promised} bytes") from None
    if declared is not None and size < declared:
        raise _truncated(name, size, promised)


def _invalid(problem: str) -> Stalling:
    return Stalling("UrlInvalid", f"the source's URL is not acceptable: {problem}")


def _redirect(url: str, problem: str) -> Stalling:
    return Stalling("RedirectLoop", f"{shown_url(url)} {problem}; name the URL of the file itself")


def _unreachable(name: str, problem: str) -> Transient:
    return Transient("SourceUnreachable", f"{name} cannot be reached: {problem}; it will be tried again")


def _truncated(name: str, size: int, promised: str) -> Transient:
    return Transient("SourceTruncated", f"{name} ended after {size}{promised} bytes; it will be tried again")


def _too_large(name: str, problem: str, limits: SourceLimits) -> Stalling:
    return Stalling(
        "SourceTooLarge",
        f"{name} {problem}, and the operator's settings allow {limits.max_bytes} bytes; use a smaller file, "
        "or raise the limit",
    )
