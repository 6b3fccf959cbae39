"""What the adapters that speak HTTP share: a session without surprises, words for failures, bodies in pieces.

And where they may connect to: whoever may write a URL in an object must not make the operator, which stands inside the
cluster's network, speak to itself, to the node, or to the cloud's metadata service (`AddressPolicy`).
"""

import email.utils
import ipaddress
import socket
import ssl
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final

import requests
import requests.adapters
import urllib3
import urllib3.connection
import urllib3.connectionpool
from typing_extensions import override

from outrider import __version__
from outrider.adapters.deadlines import Aborted, Connections, resolve
from outrider.api.errors import Stalling

USER_AGENT: Final = f"outrider/{__version__}"

PIECE: Final = 256 * 1024
"""Bytes of a body that are held at a time. Larger pieces were measured to be no faster."""

MAX_RETRY_AFTER: Final = 3600.0
"""Seconds; what a server asks for beyond that is not believed."""

NETWORK_ERRORS: Final = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
"""Everything that requests, urllib3 and the socket below them raise when the other side or the way to it fails."""


_Address = IPv4Address | IPv6Address

_METADATA: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.169.254/32",  # AWS, Google, Azure, OpenStack and many more
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure's wire server
        "192.0.0.192/32",  # Oracle
        "fd00:ec2::/32",  # AWS: metadata, pod identity, DNS
        "fd20:ce::/64",  # Google
    )
)
_THIS_NETWORK: Final = IPv4Network("0.0.0.0/8")
"""Linux takes 0.0.0.0 for itself (RFC 1122, 3.2.1.3)."""
_LOCAL_TRANSLATION: Final = IPv6Network("64:ff9b:1::/48")
"""NAT64 of a site's own (RFC 8215): what an address in it leads to, only the site knows."""
_TEREDO: Final = IPv6Network("2001::/32")
_EMBEDDING: Final = (
    # Each with the bits to the right of the IPv4 address that lies within.
    (IPv6Network("::/96"), 0),  # IPv4-compatible (RFC 4291, 2.5.5.1)
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped (RFC 4291, 2.5.5.2)
    (IPv6Network("::ffff:0:0:0/96"), 0),  # IPv4-translated (RFC 2765)
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64 (RFC 6052)
    (IPv6Network("2002::/16"), 80),  # 6to4 (RFC 3056)
)
_LOOPBACK: Final = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
_KNOWN_NAMES: Final[Mapping[str, tuple[_Address, ...]]] = {
    "localhost": _LOOPBACK,
    "localhost.localdomain": _LOOPBACK,
    "ip6-localhost": _LOOPBACK,
    "ip6-loopback": _LOOPBACK,
    "metadata": (IPv4Address("169.254.169.254"),),
    "metadata.google.internal": (IPv4Address("169.254.169.254"),),
    "metadata.goog": (IPv4Address("169.254.169.254"),),
    "instance-data": (IPv4Address("169.254.169.254"),),
    "instance-data.ec2.internal": (IPv4Address("169.254.169.254"),),
}
"""Names that lead to where nobody may go, wherever they are resolved: by us, or by a proxy that we cannot watch."""


@dataclass(frozen=True)
class AddressPolicy:
    """Which addresses may be connected to. Pure.

    Refused are loopback, link-local, unspecified, multicast, reserved and broadcast addresses, and those of the clouds'
    metadata services; also where an IPv6 address is only the clothing of such an IPv4 address (mapped, NAT64, 6to4).
    Private addresses are allowed: servers inside a network are what most artifacts come from.
    """

    allowed: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that are allowed all the same."""
    setting: str = "sources.allowedAddresses (OUTRIDER_ALLOWED_SOURCE_ADDRESSES)"
    """The operator's setting that allows them, for messages."""

    def refusal(self, address: _Address) -> str | None:
        """Return what speaks against an address, such as `a loopback address`; None if it may be connected to."""
        forms = (address, *_embedded(address))
        if any(form in network for form in forms for network in self.allowed):
            return None
        return next((kind for form in reversed(forms) if (kind := _kind(form, embeds=len(forms) > 1))), None)

    def check_host(self, host: str) -> None:
        """Return if a URL's host is no address, nor a name for an address, that is refused. No name is resolved.

        For what is reached through a proxy this is all that can be checked: the proxy resolves the name.
        Raises Stalling(AddressNotAllowed).
        """
        name = host.lower().strip("[]").removesuffix(".")
        literal = host_address(name)
        known = _KNOWN_NAMES.get("localhost" if name.endswith(".localhost") else name, ())
        addresses = (literal,) if literal is not None else known
        if addresses:
            self.choose(host, addresses)

    def choose(self, host: str, addresses: tuple[_Address, ...]) -> list[_Address]:
        """Return those of a host's addresses that may be connected to. Raises Stalling(AddressNotAllowed) for none."""
        refusals = [(address, self.refusal(address)) for address in addresses]
        chosen = [address for address, kind in refusals if kind is None]
        if not chosen:
            address, kind = refusals[0]
            place = host if host_address(host) == address else f"{host} is at {address}, which"
            raise Stalling(
                "AddressNotAllowed",
                f"{place} is {kind}, and nothing is fetched from there; name another host, or let the operator's "
                f"setting {self.setting} hold {address}",
            )
        return chosen


def host_address(host: str) -> _Address | None:
    """Return the address that a host is, in any spelling that some resolver takes for one; None if it is a name.

    Beside the usual ones: `[::1]`, a trailing dot, one to four numbers that are decimal, octal (`0177.1`) or
    hexadecimal (`0x7f.1`), as inet_aton takes them.
    """
    host = host.strip("[]").removesuffix(".")
    if ":" in host:
        try:
            return IPv6Address(host.partition("%")[0])
        except ValueError:
            return None
    parts = [_number(part) for part in host.split(".")]
    numbers = [part for part in parts if part is not None]
    if len(numbers) != len(parts) or len(numbers) > 4:
        return None
    *first, last = numbers
    if any(number > 255 for number in first) or last >= 256 ** (4 - len(first)):
        return None
    high = sum(number << (24 - 8 * place) for place, number in enumerate(first))
    return IPv4Address(high | last)


def _number(text: str) -> int | None:
    """Return a number as C writes it."""
    if not text.isascii() or not text.isalnum() or len(text) > 40:
        return None
    base = 10
    if text[:2] in {"0x", "0X"}:
        text, base = text[2:] or "0", 16
    elif text.startswith("0"):
        base = 8
    try:
        return int(text, base)
    except ValueError:
        return None


def _embedded(address: _Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that an IPv6 address leads to."""
    if isinstance(address, IPv4Address):
        return ()
    if address in _TEREDO:
        return address.teredo or ()
    for network, shift in _EMBEDDING:
        if address in network and int(address) > 1:  # :: and ::1 are what they are
            return (IPv4Address(int(address) >> shift & 0xFFFFFFFF),)
    return ()


def _kind(address: _Address, *, embeds: bool) -> str | None:
    version = "IPv4" if isinstance(address, IPv4Address) else "IPv6"
    if any(address in network for network in _METADATA):
        return "the address of a cloud's metadata service"
    if address.is_unspecified or address in _THIS_NETWORK:
        return "an unspecified address"
    if address.is_loopback:
        return "a loopback address"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if address in _LOCAL_TRANSLATION:
        return "an address that a translator of the site's own may lead anywhere"
    # What embeds another address lies in blocks that are reserved otherwise.
    if address.is_reserved and not (embeds and version == "IPv6"):
        return "a reserved or broadcast address"
    return None


class PlainSession(requests.Session):
    """A session that does nothing unasked: no cookies, no credentials from ~/.netrc, no compression, no redirects.

    With a `guard` it connects to no address that this refuses: every host is checked, every address that its name
    resolves to, and the connection goes to an address that was checked, without asking for the name a second time.
    Proxies that the environment names are the operator's choice; of what is asked of them only the host is checked.
    Then requests raise Stalling(AddressNotAllowed), too.

    `ca_pem` are certificates of authorities that count beside the usual ones. Raises Stalling(CaInvalid) for others.

    Whatever it does can be ended at any moment, from another thread (`abort`).
    """

    def __init__(self, guard: AddressPolicy | None = None, ca_pem: str | None = None) -> None:
        super().__init__()
        context = None if ca_pem is None else _trusting(ca_pem)
        self._connections = Connections()
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(guard, context, self._connections))
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # With any `auth` of its own, requests does not look into ~/.netrc, which would also replace our Authorization.
        self.auth = _unchanged
        self.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})

    def abort(self) -> None:
        """End all that goes on, in whatever thread that is: it raises one of NETWORK_ERRORS, as does all that follows.

        Requests, and bodies read with `read_pieces` or `read_at_most`: nothing that was cut off is taken for complete.
        """
        self._connections.abort()

    @override
    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        response = super().send(request, **kwargs)
        if self._connections.aborted:
            # The library takes the end of the connection for the end of the headers.
            response.close()
            raise Aborted("ended by us")
        return response

    @override
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None, as if no answer were a redirect.

        Even with allow_redirects=False requests looks ahead: it reads a redirect's body into memory, however long that
        is, and parses its Location, however broken that is.
        """


def _trusting(ca_pem: str) -> ssl.SSLContext:
    """Return what verifies certificates by the authorities in `ca_pem`; requests adds the usual ones to it."""
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError, TypeError):
        raise Stalling(
            "CaInvalid",
            "the certificates of the source's own authorities cannot be read; write them as PEM "
            "(-----BEGIN CERTIFICATE-----), one after the other",
        ) from None
    return context


class _Adapter(requests.adapters.HTTPAdapter):
    """Connects directly to nothing but checked addresses, over urllib3's own connections otherwise. Knows them all."""

    def __init__(self, guard: AddressPolicy | None, context: ssl.SSLContext | None, connections: Connections) -> None:
        self._guard = guard
        self._tls: dict[str, Any] = {} if context is None else {"ssl_context": context}
        self._connections = connections
        super().__init__()

    @property
    def aborted(self) -> bool:
        """Say whether the session was ended from another thread."""
        return self._connections.aborted

    @override
    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **proxy_kwargs, **self._tls)
        if not known:
            # Not guarded: where the proxies are, the operator says.
            manager.pool_classes_by_scheme = _watched(manager.pool_classes_by_scheme, None, self._connections)
        return manager

    @override
    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs, **self._tls)
        classes = _watched(self.poolmanager.pool_classes_by_scheme, self._guard, self._connections)
        self.poolmanager.pool_classes_by_scheme = classes

    @override
    def close(self) -> None:
        """Close idle connections now; the library leaves that to the garbage collector."""
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118 - it cannot be iterated over otherwise
                pool = manager.pools.get(key)
                if pool is not None:
                    pool.close()
        super().close()

    @override
    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        if self._guard is not None:
            self._guard.check_host(urllib.parse.urlsplit(request.url or "").hostname or "")
        return super().send(request, *args, **kwargs)


def _watched(
    pools: Mapping[str, type[Any]], guard: AddressPolicy | None, connections: Connections
) -> dict[str, type[Any]]:
    """Return urllib3's pools with connections that `connections` knows, and that go only where `guard` lets them."""

    def watched(pool: type[Any]) -> type[Any]:
        base: type[Any] = pool.ConnectionCls

        def connect(self: Any) -> None:
            with connections.opening() as hold:
                self._hold = hold
                try:
                    base.connect(self)
                except BaseException:
                    self.close()  # where a proxy's tunnel fails, the library forgets that
                    connections.check()  # TLS over what is shut down fails in ways of its own
                    raise
            # The socket as it is used from now on: TLS has put another object around it.
            connections.add(self.sock)

        def new_conn(self: Any) -> socket.socket:
            connections.check()
            host = self._dns_host
            made: socket.socket = (
                base._new_conn(self)  # noqa: SLF001 - meant to be overridden
                if guard is None
                else _connect(self, host, guard, connections)
            )
            self._hold(made)
            return made

        def tunnel(self: Any) -> None:
            base._tunnel(self)  # noqa: SLF001 - meant to be overridden
            connections.check()  # half a status line may have been taken for a whole one

        methods = {"connect": connect, "_new_conn": new_conn, "_tunnel": tunnel}
        connection = type(base.__name__, (base,), methods)
        return type(pool.__name__, (pool,), {"ConnectionCls": connection})

    return {scheme: watched(pool) for scheme, pool in pools.items()}


def _connect(
    connection: urllib3.connection.HTTPConnection, host: str, guard: AddressPolicy, connections: Connections
) -> socket.socket:
    """Do what urllib3 does to open a connection, but to an address that was checked.

    1. The name is resolved, once.
    2. Every address is checked, and those that are refused are left out.
    3. The sockets are connected to the rest, as they are, one after the other.
    """
    # 1.
    try:
        found = resolve(host.strip("[]"), connection.port, connections)
    except (socket.gaierror, UnicodeError) as error:
        reason = error if isinstance(error, socket.gaierror) else socket.gaierror(str(error))
        raise urllib3.exceptions.NameResolutionError(connection.host, connection, reason) from error

    # 2.
    places = {ipaddress.ip_address(str(place[0]).partition("%")[0]): (family, place) for family, place in found}
    chosen = guard.choose(connection.host, tuple(places))

    # 3.
    failure = OSError("no address to connect to")
    for address in chosen:
        family, place = places[address]
        attempt = socket.socket(family, socket.SOCK_STREAM)
        try:
            connections.add(attempt)
            for option in connection.socket_options or ():
                attempt.setsockopt(*option)
            attempt.settimeout(connection.timeout if isinstance(connection.timeout, (int, float)) else None)
            attempt.connect(place)
        except OSError as error:
            attempt.close()
            failure = error
        else:
            return attempt
    if isinstance(failure, TimeoutError):
        raise urllib3.exceptions.ConnectTimeoutError(connection, "connecting took too long") from failure
    raise urllib3.exceptions.NewConnectionError(connection, "no connection could be made") from failure


def explain(error: BaseException) -> str:
    """Return in a few words what went wrong on the network. Never the library's own text: that may hold URLs."""
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                why = str(cause.verify_message or "verification failed")
                return f"its TLS certificate is not trusted: {why} (name its authority where the place is named)"
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


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL: what credentials are for."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


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
    also when the body is shorter than its Content-Length, or ended because the session was aborted.
    """
    while piece := response.raw.read1(PIECE, decode_content=False):
        yield piece
    adapter = response.connection
    if isinstance(adapter, _Adapter) and adapter.aborted:
        raise Aborted("ended by us")


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
