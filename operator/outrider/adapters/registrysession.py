"""How to speak to an OCI registry: requests with timeouts and credentials, on the connections of oras.

This is the only module that knows oras. oras-py gives the URLs of the distribution API and the parsing of challenges;
what it does not do is done here and in `registry.py`: it has no timeouts, retries everything for two minutes, reads
blobs into memory, verifies nothing that it downloads, never refreshes an expired token, and sends credentials wherever
an answer points to.
"""

import re
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import oras.auth.utils
import oras.container
import oras.provider
import oras.utils
import requests

from outrider.adapters import dockerconfig
from outrider.adapters.deadlines import Watchdog
from outrider.adapters.dockerconfig import Credentials
from outrider.adapters.sources import check_url
from outrider.adapters.transport import (
    NETWORK_ERRORS,
    AddressPolicy,
    PlainSession,
    explain,
    origin,
    read_at_most,
    retry_after,
)
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.trust.documents import Malformed, canonical_json, parse_object

MAX_ERROR_BYTES: Final = 64 * 1024
"""Of an answer that is not content: an error, a token, nothing."""

_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = (301, 302, 303, 307, 308)

# Distribution specification, "Pulling manifests".
_REPOSITORY: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")


@dataclass(frozen=True)
class RegistrySettings:
    """How to reach one registry, and as whom."""

    host: str
    """Host, and port if it is not the usual one; no scheme and no path."""
    plain_http: bool = False
    """Speak HTTP instead of HTTPS: for registries on the same machine or network segment only."""
    ca_file: str | None = None
    """A PEM file of the authorities that may vouch for the registry; None: those that the system trusts."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    identity_token: str | None = field(default=None, repr=False)
    """What the registry's token service gives access tokens for, instead of a password."""
    docker_config: str | None = None
    """A docker config.json with credentials by registry and repository, read anew for each client; what is said above
    comes first."""
    connect_timeout: float = 5.0
    """Seconds."""
    read_timeout: float = 30.0
    """Seconds of silence after which the registry counts as down."""
    commit_timeout: float = 300.0
    """Seconds that the registry may take to flush and hash what was uploaded; grows with the size on a slow disk."""
    resume_delays: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Seconds to wait before each attempt to resume a broken upload or download."""
    total_timeout: float | None = None
    """Seconds for everything that one client does, from its first request on; None: no bound, as for the operator's own
    registry. The timeouts above bound silence only: a hostile registry may send a byte now and then for ever."""
    allowed_hosts: tuple[str, ...] = ()
    """Globs over the hosts that may be asked, the registry itself as where it points: to other places for blobs, to its
    token service. Empty: every host."""
    guard: AddressPolicy | None = None
    """Where connections may go, to the registry itself as to where it points; None: anywhere. For registries that are
    named by those who may write an object, and not by the operator's settings."""


class RegistrySession(oras.provider.Registry):  # type: ignore[misc]  # oras has no types
    """oras' registry with its transport replaced.

    *Invariants.* Every request has timeouts, and all of them together end, wherever they are, within a second of
    `settings.total_timeout`, or of `cancelled` saying so. Nothing is retried but a request that was answered 401 or
    403, once, with a fresh token. Credentials go to the registry's own origin, or to the token service that it names if
    that is the same host or behind TLS; tokens go to the registry's own origin. No exception of requests leaves this
    class.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        docker_config: bytes | None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(
            hostname=settings.host,
            insecure=settings.plain_http,
            tls_verify=settings.ca_file or True,
            auth_backend="token",
        )
        self.session = PlainSession(settings.guard)
        self._watchdog = Watchdog(self.session.abort, settings.total_timeout, cancelled)
        self.settings = settings
        self._host = settings.host
        self._patience = (settings.connect_timeout, settings.read_timeout)
        self._authorization: dict[str, str] = {}
        """The Authorization header by repository: a token is good for the one that it was issued for."""
        self._docker_config = docker_config
        self._identity_tokens: dict[str, str] = {}
        """By the one that was configured, what a token service has given in its place."""

    def container(self, repository: str) -> Any:
        """Return what oras makes URLs from. Its own parser would take `a.b/c` for a repository `c` on a host `a.b`."""
        if _REPOSITORY.fullmatch(repository) is None or len(repository) > 255:
            raise Stalling("RepositoryInvalid", f"{repository!r} is not a repository name that a registry accepts")
        namespace, _, name = repository.rpartition("/")
        container = oras.container.Container("name", registry=self._host)
        container.registry, container.namespace, container.repository = self._host, namespace, name
        return container

    @staticmethod
    def with_parameters(url: str, parameters: dict[str, str]) -> str:
        """Return a URL with parameters added to its query."""
        return str(oras.utils.append_url_params(url, parameters))

    @property
    def has_credentials(self) -> bool:
        """Say whether anything was configured to authenticate with."""
        settings = self.settings
        return bool(settings.username or settings.identity_token or self._docker_config)

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: dict[str, str] | None = None,
        json: Any = None,
        stream: bool = False,  # all answers are streamed
    ) -> requests.Response:
        """As `request`, for what oras does on its own."""
        body = canonical_json(json) if json is not None else data
        return self.request(method, url, f"sending {method}", data=body, headers=headers)

    def request(
        self,
        method: str,
        url: str,
        what: str,
        *,
        repository: str = "",
        data: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        timeout: tuple[float, float] | None = None,
    ) -> requests.Response:
        """Send a request and return the answer, whatever its status, with its body still to be read.

        `what` completes the sentence "the registry failed while …". GET and HEAD follow redirects. Raises
        Transient(RegistryUnavailable), and what authenticating raises.
        """
        response = self._follow(method, url, what, repository, data, headers or {}, timeout)
        replayable = data is None or isinstance(data, bytes)
        if response.status_code not in {401, 403} or not replayable:
            return response
        try:
            again = self._authenticate(response, repository)
        except OutriderError:
            response.close()
            raise
        if not again:
            return response
        response.close()
        return self._follow(method, url, what, repository, data, headers or {}, timeout)

    def close(self) -> None:
        """Let go of all connections."""
        self._watchdog.stop()
        self.session.close()

    def pause(self, seconds: float) -> None:
        """Wait before something is tried again, but not when all is over: then trying fails at once."""
        self._watchdog.pause(seconds)

    def unavailable(self, what: str, error: BaseException) -> Transient:
        """Return what a failure of the network means: what has ended everything, if something has."""
        if self._watchdog.verdict == "cancelled":
            return Transient("Cancelled", f"{what} at registry {self._host} was stopped; it will start again")
        if self._watchdog.verdict == "late":
            return Transient(
                "RegistryUnavailable",
                f"registry {self._host} is too slow: {self._watchdog.seconds:.0f} s were not enough, and ended while "
                f"{what}; it will be tried again",
            )
        return Transient(
            "RegistryUnavailable", f"registry {self._host} is not available while {what}: {explain(error)}"
        )

    def error_text(self, response: requests.Response) -> str:
        """Return ` (CODE: message)` from an answer's error body, or nothing; then close the answer."""
        try:
            answer = parse_object(read_at_most(response, MAX_ERROR_BYTES), max_bytes=MAX_ERROR_BYTES)
            error = answer["errors"][0]
            code, message = str(error["code"]), str(error.get("message", ""))
        except (*NETWORK_ERRORS, Malformed, KeyError, IndexError, TypeError, AttributeError):
            # Also when everything was ended meanwhile: the answer's status is known, and says more.
            return ""
        text = f"{code}: {message}" if message else code
        return f" ({''.join(c if c.isprintable() else ' ' for c in text)[:200]})"

    def _follow(
        self,
        method: str,
        url: str,
        what: str,
        repository: str,
        data: bytes | Iterator[bytes] | None,
        headers: dict[str, str],
        timeout: tuple[float, float] | None,
    ) -> requests.Response:
        for _ in range(_MAX_REDIRECTS + 1):
            authorization = self._authorization.get(repository)
            extra = {"Authorization": authorization} if authorization and self.is_own(url) else {}
            response = self._send(method, url, what, data, {**headers, **extra}, timeout)
            if response.status_code not in _REDIRECTS or method not in {"GET", "HEAD"}:
                return response
            target = join_url(url, response.headers.get("Location", ""))
            response.close()
            secure = url.startswith("https:")
            if not target.startswith("https:") and (secure or not target.startswith("http:")):
                raise Transient(
                    "RegistryUnavailable", f"registry {self._host} redirects to a place without TLS while {what}"
                )
            url = target
        raise Transient("RegistryUnavailable", f"registry {self._host} redirects in circles while {what}")

    def _send(
        self,
        method: str,
        url: str,
        what: str,
        data: bytes | Iterator[bytes] | None,
        headers: dict[str, str],
        timeout: tuple[float, float] | None,
    ) -> requests.Response:
        self._watchdog.start()
        if self.settings.allowed_hosts:
            check_url(url, self.settings.allowed_hosts)
        try:
            response: requests.Response = self.session.request(
                method,
                url,
                data=data,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=timeout or self._patience,
                verify=self._tls_verify,
            )
            return response
        except NETWORK_ERRORS as error:
            raise self.unavailable(what, error) from None

    def is_own(self, url: str) -> bool:
        """Say whether a URL lies at the registry's own origin."""
        return origin(url) == origin(f"{self.prefix}://{self._host}")

    def _authenticate(self, response: requests.Response, repository: str) -> bool:
        """Get what a challenge asks for; False if there is nothing (more) to try.

        1. Without a challenge from the registry itself there is nothing to answer.
        2. Basic: our credentials, to the registry itself, once.
        3. Bearer: a fresh token from the service that the challenge names, for the scope that it names.
        """
        # 1.
        challenge = response.headers.get("WWW-Authenticate", "")
        if not challenge or not self.is_own(str(response.url)):
            return False
        scheme = challenge.split(" ", 1)[0].lower()

        # 2.
        if scheme == "basic":
            basic = _basic(self._credentials(repository))
            if not basic or self._authorization.get(repository) == basic:
                return False
            self._authorization[repository] = basic
            return True

        # 3.
        if scheme != "bearer":
            return False
        wanted = oras.auth.utils.parse_auth_header(challenge)
        realm = wanted.realm or ""
        parts = urllib.parse.urlsplit(join_url("", realm))
        same_host = parts.hostname == urllib.parse.urlsplit(f"//{self._host}").hostname
        if parts.scheme != "https" and not (parts.scheme == "http" and same_host and self.settings.plain_http):
            raise Stalling(
                "RegistryDenied",
                f"registry {self._host} wants credentials sent to a token service that is neither behind TLS nor on "
                "the same host; that is not done; correct the registry's token realm",
            )
        token = self._fetch_token(parts.geturl(), wanted.service, wanted.scope, self._credentials(repository))
        self._authorization[repository] = f"Bearer {token}"
        return True

    def _fetch_token(self, realm: str, service: str | None, scope: str | None, credentials: Credentials) -> str:
        """Return an access token.

        Distribution's "Token Authentication Specification", and for identity tokens its "OAuth 2.0 Token
        Specification".
        """
        parts = urllib.parse.urlsplit(realm)
        what = f"getting a token from {parts.netloc.rpartition('@')[2]}"
        asked = [("service", service)] if service else []
        asked += [("scope", scope)] if scope else []
        identity = self._identity_tokens.get(credentials.identity_token, credentials.identity_token)
        if identity:
            form = [("grant_type", "refresh_token"), ("client_id", "outrider"), ("refresh_token", identity), *asked]
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response = self._send("POST", realm, what, urllib.parse.urlencode(form).encode(), headers, None)
        else:
            query = urllib.parse.urlencode(urllib.parse.parse_qsl(parts.query) + asked)
            url = urllib.parse.urlunsplit(parts._replace(query=query))
            basic = _basic(credentials)
            response = self._send("GET", url, what, None, {"Authorization": basic} if basic else {}, None)
        status = response.status_code
        if status == 429 or status >= 500:
            response.close()
            reason = "RegistryThrottled" if status == 429 else "RegistryUnavailable"
            message = f"registry {self._host} cannot be used: its token service answered {status} while {what}"
            raise Transient(reason, message, retry_after=retry_after(response.headers))
        if status != 200:
            response.close()
            raise Stalling(
                "RegistryDenied",
                f"registry {self._host}: its token service refused the credentials ({status}) while {what}; check the "
                "registry's username, password and permissions",
            )
        try:
            answer = parse_object(read_at_most(response, MAX_ERROR_BYTES), max_bytes=MAX_ERROR_BYTES)
        except NETWORK_ERRORS as error:
            raise self.unavailable(what, error) from None
        except Malformed:
            answer = {}
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise Transient("RegistryUnavailable", f"registry {self._host} sent no usable token while {what}")
        fresh = answer.get("refresh_token")
        if identity and isinstance(fresh, str) and fresh:
            self._identity_tokens[credentials.identity_token] = fresh
        return token

    def _credentials(self, repository: str) -> Credentials:
        """Return as whom to ask for a repository; empty for nobody. Raises Stalling(CredentialsMalformed)."""
        settings = self.settings
        if settings.username or settings.identity_token:
            return Credentials(settings.username or "", settings.password or "", settings.identity_token or "")
        if self._docker_config is None:
            return Credentials()
        found = dockerconfig.credentials_for(self._docker_config, self._host, repository)
        return found or Credentials()


def join_url(base: str, target: str) -> str:
    """Return where a registry points to; nothing, which no scheme fits, if that is no URL."""
    try:
        url = urllib.parse.urljoin(base, target)
        urllib.parse.urlsplit(url).port  # noqa: B018 - raises for ports that are none
    except ValueError:
        return ""
    return url


def _basic(credentials: Credentials) -> str:
    """Return the header for a password, nothing if there is none."""
    if not credentials.username or not credentials.password:
        return ""
    return "Basic " + str(oras.auth.utils.get_basic_auth(credentials.username, credentials.password))
