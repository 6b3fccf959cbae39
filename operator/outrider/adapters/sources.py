"""Where an artifact's bytes come from: an http(s) URL, or a value that somebody has read already.

A source is read once, piece by piece. Every URL on the way, redirects included, passes the one pure function
`check_url`. What a server sends is believed in nothing: sizes are counted, and whoever reads compares the hash.
"""

import re
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Final, Self

import requests
import urllib3

from outrider.adapters.deadlines import Watchdog
from outrider.adapters.transport import (
    NETWORK_ERRORS,
    AddressPolicy,
    PlainSession,
    explain,
    host_address,
    is_broken_off,
    origin,
    read_beyond_length,
    read_pieces,
    retry_after,
    set_patience,
)
from outrider.api.errors import Stalling, Transient

MAX_REDIRECTS: Final = 5
_SURPLUS_SECONDS: Final = 0.2
"""How long to listen, once everything that was promised has come, for more than that."""
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")
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
    resume_delays: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    """Seconds to wait before each attempt to resume a broken transfer."""
    guard: AddressPolicy = field(default_factory=AddressPolicy)
    """Which addresses may be connected to."""


@dataclass(frozen=True)
class HttpAccess:
    """What one source needs to be let in, and to be believed to be who it is."""

    authorization: str | None = field(default=None, repr=False)
    """The value of the header Authorization, such as `Bearer …`. Sent to the origin of the URL and to no other."""
    ca_pem: str | None = field(default=None, repr=False)
    """Certificates of authorities that may vouch for the server, beside the usual ones."""
    plain_http: bool = False
    """Send `authorization` without TLS, too."""

    def __post_init__(self) -> None:
        """Raise Stalling(CredentialsMalformed) for what cannot be a header's value."""
        value = self.authorization
        if value is not None and not (value.isascii() and value.isprintable() and value == value.strip() and value):
            raise Stalling(
                "CredentialsMalformed",
                "the source's credentials hold what a header cannot, such as a line break; correct the Secret",
            )


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
    problem = find_problem(url, allowed_hosts, guard)
    if problem is not None:
        raise _invalid(problem)


def find_problem(url: str, allowed_hosts: tuple[str, ...] = (), guard: AddressPolicy | None = None) -> str | None:
    """Return why a URL may not be asked for, by the rules of `check_url`; None if it may.

    Raises Stalling(AddressNotAllowed).
    """
    if any(character.isspace() or not character.isprintable() or character == "\\" for character in url):
        return "it holds a space, a control character or a backslash"
    try:
        parts = urllib.parse.urlsplit(url)
        port, second = parts.port, urllib3.util.parse_url(url)
    except (ValueError, urllib3.exceptions.LocationParseError):
        return "it cannot be parsed"
    if parts.scheme not in {"http", "https"}:
        return "its scheme is not http or https"
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        return "it holds credentials (user:password@); take them out, and change the password as it is known now"
    host = (parts.hostname or "").lower()
    if not host.isascii():
        return "its host is not ASCII; write it in the form xn--…"
    if not host or "%" in host or host != (second.host or "").lower().strip("[]") or port != second.port:
        return "its host or port cannot be made out"
    if guard is not None:
        guard.check_host(host)
    address = host_address(host)
    if address is not None and host != str(address) and ":" not in host:
        return f"it writes an address in a way that some read differently; write {address}"
    if allowed_hosts and not any(fnmatchcase(host, glob) for glob in allowed_hosts):
        return f"the host {host} is not among the hosts that the operator's settings allow: {', '.join(allowed_hosts)}"
    return None


def shown_url(url: str) -> str:
    """Return a URL as it may be shown: without credentials, query and fragment, where secrets are put."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "(a URL that cannot be parsed)"
    query = "?…" if parts.query else ""
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in shown)[:300]


def open_http(
    url: str,
    *,
    limits: SourceLimits | None = None,
    access: HttpAccess | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Source:
    """Ask for the file behind a URL and return it ready to be read.

    Up to 5 redirects are followed. A connection that breaks is resumed where the server can prove that the file is
    still the same. Proxies that the environment names (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) are used. Raises here or
    while reading:

    - Stalling: UrlInvalid, AddressNotAllowed, SourceNotFound (404, 410), SourceDenied (401, 403, 407), SourceRefused
      (other answers that do not bring the file), RedirectLoop, SourceTooLarge (more than `limits.max_bytes`, or than
      the server announced), CredentialsMalformed, CaInvalid.
    - Transient: SourceUnreachable (name, connection, silence, 5xx, 429, too slow), SourceTruncated (fewer bytes than
      promised, or another file than at the beginning), Cancelled (`cancelled` has begun to say so; it is asked whenever
      bytes arrive, and about every half second in another thread).

    Whatever the server does, or does not do, ends within a second of `limits.total_timeout`, or of being cancelled.
    """
    download = _Download(url, limits or SourceLimits(), access or HttpAccess(), cancelled)
    try:
        download.begin()
    except BaseException:
        download.close()
        raise
    return Source(
        download.name,
        download.read(),
        declared_size=download.declared,
        remark=_remark(download.response),
        close=download.close,
    )


class _Download:
    """One file on its way here.

    *Invariants.* What is yielded is the beginning of one file, whatever breaks: it goes on only where the server names
    the same validator as in its first answer (RFC 9110, 8.8 and 13.1.5). `authorization` is sent to the origin of the
    first URL, and never again after a redirect has led away from there. At most one attempt to go on per delay in
    `limits.resume_delays`, and none after the deadline. A thread watches from the first request to the end of the file
    or `close`, whatever comes first.
    """

    response: requests.Response

    def __init__(self, url: str, limits: SourceLimits, access: HttpAccess, cancelled: Callable[[], bool]) -> None:
        self.name = shown_url(url)
        self.declared: int | None = None
        """The size of the whole file, if the server said."""
        self._url = url
        self._limits = limits
        self._authorization = access.authorization
        self._plain_http = access.plain_http
        self._cancelled = cancelled
        self._deadline = time.monotonic() + limits.total_timeout
        self._delays = iter(limits.resume_delays)
        self._session = PlainSession(limits.guard, access.ca_pem)
        self._watchdog = Watchdog(self._session.abort, limits.total_timeout, cancelled)
        self._validator = ""
        self._size = 0
        """Bytes that were yielded."""

    def close(self) -> None:
        self._watchdog.stop()
        if hasattr(self, "response"):
            self.response.close()
        self._session.close()

    def begin(self) -> None:
        """Ask for the file."""
        self._watchdog.start()
        self.response = self._follow({})
        self.declared = _declared_size(self.response)
        self._validator = _validator(self.response)
        if self.declared is not None and self.declared > self._limits.max_bytes:
            raise _too_large(self.name, f"announces {self.declared} bytes", self._limits)

    def read(self) -> Iterator[bytes]:
        """Yield the file, from one answer or several."""
        with self._watchdog:
            yield from self._read()

    def _read(self) -> Iterator[bytes]:
        known = 0
        while True:
            # The library would stop at the announced size and drop what comes after it unseen.
            read_beyond_length(self.response)
            try:
                yield from self._read_answer(known)
            except NETWORK_ERRORS as error:
                if self._size == self.declared:
                    # All is here; that the other side neither closes nor sends more is no failure.
                    return
                ended = self._ended()
                if ended is not None:
                    raise ended from None
                truncated = is_broken_off(error)
                failure = self._truncated() if truncated else self._unreachable(explain(error))
            else:
                if self.declared is None or self._size == self.declared:
                    return
                failure = self._truncated()
            known = self._resume(failure)

    def _read_answer(self, known: int) -> Iterator[bytes]:
        """Yield the body of an answer without its first `known` bytes, which were yielded already."""
        pieces = read_pieces(self.response)
        if self._size == self.declared:
            set_patience(self.response, _SURPLUS_SECONDS)
        while piece := next(pieces, b""):
            fresh = piece[known:]
            known = max(0, known - len(piece))
            self._size += len(fresh)
            if self._size > self._limits.max_bytes:
                raise _too_large(self.name, "sends more", self._limits)
            if self.declared is not None and self._size > self.declared:
                raise Stalling(
                    "SourceTooLarge",
                    f"{self.name} announced {self.declared} bytes and sends more; correct the Content-Length there, "
                    "or the file",
                )
            self._check_time()
            if fresh:
                yield fresh
            if self._size == self.declared:
                set_patience(self.response, _SURPLUS_SECONDS)

    def _resume(self, failure: Transient) -> int:
        """Ask for what is missing; return how many bytes of the answer are known already. Raises `failure` in the end.

        1. Only if the server gave the file a name that changes with it: a strong ETag, or Last-Modified.
        2. `If-Range` makes a server whose file has changed send all of it (200) instead of the rest (206).
        3. A rest begins where we stopped, belongs to a file of the same size, and does not name another file.
        4. All of it is taken, from where we stopped, only if it is the same file beyond doubt.
        """
        self.response.close()
        # 1.
        if not self._validator:
            raise failure
        for delay in self._delays:
            self._wait(delay)
            # 2.
            try:
                self.response = self._follow({"Range": f"bytes={self._size}-", "If-Range": self._validator})
            except Transient as again:
                failure = again
                continue
            validator = _validator(self.response)
            # 3.
            if self.response.status_code == 206 and validator in {"", self._validator}:
                place = _CONTENT_RANGE.fullmatch(self.response.headers.get("Content-Range", ""))
                first, whole = (int(place[1]), int(place[2])) if place is not None else (-1, -1)
                if first == self._size and whole == (self.declared if self.declared is not None else whole):
                    self.declared = whole
                    return 0
            # 4.
            same = validator == self._validator and _declared_size(self.response) == self.declared
            if self.response.status_code == 200 and same:
                return self._size
            self.response.close()
            message = f"{failure.message.partition(';')[0]}, and what is there now is another file; it will start again"
            raise Transient("SourceTruncated", message)
        raise failure

    def _follow(self, headers: dict[str, str]) -> requests.Response:
        """Send the request and follow redirects by hand, for each hop has to be checked."""
        url = self._url
        authorization = self._authorization
        seen: set[str] = set()
        while True:
            check_url(url, self._limits.allowed_hosts, self._limits.guard)
            if url in seen:
                raise _redirect(self._url, f"redirects in a circle (back to {shown_url(url)})")
            if len(seen) > MAX_REDIRECTS:
                raise _redirect(self._url, f"redirects more than {MAX_REDIRECTS} times (last to {shown_url(url)})")
            seen.add(url)
            if authorization and origin(url) != origin(self._url):
                authorization = None
            if authorization and not url.lower().startswith("https:") and not self._plain_http:
                raise _invalid("credentials would be sent to it without TLS; write https, or take the credentials away")
            extra = {"Authorization": authorization} if authorization else {}
            try:
                response = self._session.get(
                    url,
                    headers={"Connection": "close", **headers, **extra},
                    stream=True,
                    allow_redirects=False,
                    timeout=(self._limits.connect_timeout, self._limits.read_timeout),
                )
            except NETWORK_ERRORS as error:
                raise (self._ended() or _unreachable(shown_url(url), explain(error))) from None
            if response.status_code not in _REDIRECTS:
                _check_status(response, shown_url(url), (200, 206, 416) if headers else (200,))
                return response
            location = response.headers.get("Location", "")
            response.close()
            if not location:
                raise _redirect(self._url, f"answered {response.status_code} without saying where to")
            try:
                url = urllib.parse.urljoin(url, location)
            except ValueError:
                raise _redirect(self._url, "redirects to something that is no URL") from None

    def _ended(self) -> Transient | None:
        """Return why it is over, if it is."""
        verdict = self._watchdog.verdict
        if verdict == "cancelled" or (not verdict and self._cancelled()):
            message = f"reading {self.name} was stopped after {self._progress()} bytes; it will start again"
            return Transient("Cancelled", message)
        if verdict == "late" or time.monotonic() > self._deadline:
            slow = f"it sent only {self._progress()} bytes in {self._limits.total_timeout:.0f} s"
            return _unreachable(self.name, slow)
        return None

    def _check_time(self) -> None:
        ended = self._ended()
        if ended is not None:
            raise ended

    def _wait(self, delay: float) -> None:
        """Wait before going on, but not beyond the deadline, nor when nobody wants the file any more."""
        end = time.monotonic() + delay
        while (rest := end - time.monotonic()) > 0:
            self._check_time()
            time.sleep(min(rest, 0.1))
        self._check_time()

    def _progress(self) -> str:
        return f"{self._size} of {self.declared}" if self.declared is not None else str(self._size)

    def _truncated(self) -> Transient:
        message = f"{self.name} ended after {self._progress()} bytes; it will be tried again"
        return Transient("SourceTruncated", message)

    def _unreachable(self, problem: str) -> Transient:
        return _unreachable(self.name, f"{problem} after {self._progress()} bytes")


def _check_status(response: requests.Response, name: str, good: tuple[int, ...]) -> None:
    status = response.status_code
    if status in good:
        return
    response.close()
    if status in {404, 410}:
        raise Stalling(
            "SourceNotFound", f"there is no file at {name} ({status}); correct the URL, or put the file there"
        )
    if status in {401, 403, 407}:
        if "Authorization" in response.request.headers:
            problem = f"{name} refuses the credentials of the Secret ({status}); correct them, or what they may read"
        else:
            problem = f"{name} is not open to the operator ({status}); name a Secret in secretRef, or allow it there"
        raise Stalling("SourceDenied", problem)
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


def _validator(response: requests.Response) -> str:
    """Return what a server calls this very state of a file: a strong ETag, else Last-Modified, else nothing."""
    tag = response.headers.get("ETag", "").strip()
    if tag:
        return tag if tag.startswith('"') else ""
    return response.headers.get("Last-Modified", "").strip()


def _remark(response: requests.Response) -> str:
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        return "the server sent it compressed (Content-Encoding), and it was stored as sent"
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        return "the server sent a web page (text/html): a login or error page?"
    return ""


def _invalid(problem: str) -> Stalling:
    return Stalling("UrlInvalid", f"the source's URL is not acceptable: {problem}")


def _redirect(url: str, problem: str) -> Stalling:
    return Stalling("RedirectLoop", f"{shown_url(url)} {problem}; name the URL of the file itself")


def _unreachable(name: str, problem: str) -> Transient:
    return Transient("SourceUnreachable", f"{name} cannot be reached: {problem}; it will be tried again")


def _too_large(name: str, problem: str, limits: SourceLimits) -> Stalling:
    return Stalling(
        "SourceTooLarge",
        f"{name} {problem}, and the operator's settings allow {limits.max_bytes} bytes; use a smaller file, "
        "or raise the limit",
    )
