"""Asking others whether all is well: agents by HTTP, Prometheus, web pages. Every answer is Pass, Fail or Unknown.

Unknown is said where the way to whoever is asked failed, rather than he: then nobody can tell. What was answered is
believed in nothing but this: no body is ever quoted, for whoever may name a URL must not read through us what is behind
it. Where a URL leads is bounded as for sources (`AddressPolicy`, a list of hosts); redirects are not followed.
"""

import asyncio
import errno
import ipaddress
import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import yarl

from outrider.adapters.deadlines import Watchdog
from outrider.adapters.sources import HttpAccess, find_problem, shown_url
from outrider.adapters.transport import (
    NETWORK_ERRORS,
    USER_AGENT,
    AddressPolicy,
    PlainSession,
    explain,
    read_at_most,
)
from outrider.api.checks import AnalysisVerdict, HttpCheck, PrometheusQuery, WebCheck
from outrider.api.errors import OutriderError
from outrider.core.analysis import is_good

MAX_BODY: Final = 64 * 1024
"""Bytes of a body that are looked at."""
_MAX_RESULT: Final = 1024 * 1024
"""Bytes of Prometheus' answer: one number with its labels is a small part of that."""
_NUMBER: Final = re.compile(r"[+-]?([0-9]+([.][0-9]*)?(e[+-]?[0-9]{1,3})?|Inf|NaN)")
_ERROR_TYPES: Final = frozenset(
    {"timeout", "canceled", "execution", "bad_data", "internal", "unavailable", "not_found", "not_acceptable"}
)
"""What Prometheus may call an error: the only words of it that are told."""
_UNREACHABLE: Final = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EADDRNOTAVAIL}
)
_NOT_LET_IN: Final = frozenset({401, 407})
_BUSY: Final = 429


@dataclass(frozen=True)
class Told:
    """One answer: the verdict, what was seen as part of a sentence, and of a query the number."""

    verdict: AnalysisVerdict
    message: str
    value: str = ""


class CannotTell(Exception):
    """Why nobody can tell, as part of a sentence. Becomes a Told with the verdict Unknown."""


@dataclass(frozen=True)
class CheckLimits:
    """What the operator's settings allow an analysis, and how long it may take."""

    allowed_hosts: tuple[str, ...] = ()
    """Globs over host names; empty: every host."""
    guard: AddressPolicy = field(default_factory=AddressPolicy)
    """Which addresses may be connected to."""
    connect_timeout: float = 3.0
    """Seconds."""
    total_timeout: float = 10.0
    """Seconds for everything, however slowly an answer drips."""


# --- agents -----------------------------------------------------------------------------------


class AgentProber:
    """Asks agents by their pods' IPs. To be used and closed in one event loop."""

    def __init__(
        self,
        guard: AddressPolicy,
        *,
        concurrency: int = 64,
        connect_timeout: float = 2.0,
        total_timeout: float = 4.0,
    ) -> None:
        self._guard = guard
        self._slots = asyncio.Semaphore(concurrency)
        self._timeout = aiohttp.ClientTimeout(total=total_timeout, sock_connect=connect_timeout)
        self._seconds = total_timeout
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, ip: str, check: HttpCheck, version: str) -> Told:
        """Return what the agent at an IP says. Never raises but for being cancelled."""
        shown = f"{check.scheme.lower()}://{_host(ip)}:{check.port}{check.path.partition('?')[0]}"
        try:
            refusal = self._guard.refusal(ipaddress.ip_address(ip))
        except ValueError:
            refusal = "no address"
        if refusal is not None:
            return Told("Unknown", f"but its address {ip[:64]} is {refusal}, and nothing is asked there")
        async with self._slots:
            return await self._get(shown, ip, check, version)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _get(self, shown: str, ip: str, check: HttpCheck, version: str) -> Told:
        if self._session is None:
            # Its own session: no proxy, no cookies, no connection kept, no certificate believed in.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True, ssl=False),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
                auto_decompress=False,
                trust_env=False,
            )
        url = yarl.URL(f"{check.scheme.lower()}://{_host(ip)}:{check.port}{check.path}", encoded=True)
        try:
            async with self._session.get(url, timeout=self._timeout, allow_redirects=False) as response:
                if not _is_success(response.status):
                    return Told("Fail", f"{shown} answered {response.status}{_remark(response.status)}")
                body = await _read(response) if check.body_contains or check.body_contains_version else b""
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            return self._explain(shown, error)
        return _judge_body(
            shown, response.status, body, check.body_contains, version if check.body_contains_version else ""
        )

    def _explain(self, shown: str, error: Exception) -> Told:
        match error:
            case aiohttp.ConnectionTimeoutError():
                return Told("Unknown", f"but {shown} accepts no connection: is it let through to there?")
            case aiohttp.ClientConnectorSSLError():
                return Told("Fail", f"{shown} does not speak TLS")
            case aiohttp.ClientConnectorError() | OSError() if getattr(error, "errno", None) in _UNREACHABLE:
                return Told("Unknown", f"but {shown} cannot be reached: is there a way to there?")
            case aiohttp.ClientConnectorError() if isinstance(error.os_error, ConnectionRefusedError):
                return Told("Fail", f"{shown} refuses the connection")
            case TimeoutError():
                return Told("Fail", f"{shown} does not answer within {self._seconds:.0f} s")
            case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | ConnectionResetError():
                return Told("Fail", f"{shown} breaks the connection")
            case aiohttp.ClientResponseError() | ValueError():
                return Told("Fail", f"{shown} does not answer in HTTP")
            case _:
                return Told("Unknown", f"but {shown} cannot be reached")


def _host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def _remark(status: int) -> str:
    return "; redirects are not followed" if 300 <= status < 400 else ""


def _is_success(status: int) -> bool:
    return 200 <= status < 300


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    while len(body) < MAX_BODY and (piece := await response.content.read(MAX_BODY - len(body))):
        body += piece
    return body


def _judge_body(shown: str, status: int, body: bytes, wanted: str | None, version: str) -> Told:
    """Judge a body that came with a success, by what it has to contain."""
    if wanted is not None and wanted.encode() not in body:
        return Told("Fail", f"{shown} answered {status} without the text that bodyContains wants")
    if version and not names_version(body, version):
        return Told("Fail", f"{shown} answered {status} without naming version {version}")
    return Told("Pass", f"{shown} answered {status}")


def names_version(body: bytes, version: str) -> bool:
    """Tell whether a body holds a version as a whole word: 1.4.0 is neither in 11.4.0 nor in 1.4.0-rc.1."""
    word = rb"(?<![0-9A-Za-z.-])[vV]?" + re.escape(version.encode()) + rb"(?![0-9A-Za-z-]|[.][0-9A-Za-z])"
    return re.search(word, body) is not None


# --- analyses ---------------------------------------------------------------------------------


def ask_prometheus(query: PrometheusQuery, access: HttpAccess, limits: CheckLimits) -> Told:
    """Return what an instant query says. Blocks, for `limits.total_timeout` at most. Never raises."""
    if "?" in query.address or "#" in query.address:
        return Told("Unknown", "its address has a query or a fragment (? or #); name the server alone")
    url = query.address.rstrip("/") + "/api/v1/query"
    try:
        status, body = _get(url, {"query": query.query}, access, limits, _MAX_RESULT)
    except (CannotTell, OutriderError) as error:
        return Told("Unknown", str(error))
    shown = shown_url(url)
    if len(body) > _MAX_RESULT:
        return Told("Unknown", f"{shown} answered with more than {_MAX_RESULT} bytes; a query must give one number")
    answer = _parse(body)
    if status != 200 or answer is None or answer.get("status") != "success":
        kind = answer.get("errorType") if answer is not None else None
        detail = f" ({kind})" if isinstance(kind, str) and kind in _ERROR_TYPES else ""
        hint = "; name a Secret in secretRef, or correct it" if status in _NOT_LET_IN or status == 403 else ""
        return Told("Unknown", f"{shown} answered {status}{detail} instead of a result{hint}")
    if answer.get("warnings"):
        return Told("Unknown", f"{shown} answered with warnings: the result may be a part of the truth")
    value = _one_number(answer)
    if not _NUMBER.fullmatch(value):
        return Told("Unknown", f"the query's result {value}")
    good = is_good(query.pass_when, float(value))
    if good is None:
        return Told("Unknown", f"the query's result is {value}, which no comparison holds for", value[:40])
    return Told("Pass" if good else "Fail", f"the query's result is {value}, wanted is {query.pass_when}", value[:40])


def ask_web(check: WebCheck, access: HttpAccess, limits: CheckLimits) -> Told:
    """Return what a web server says. Blocks, for `limits.total_timeout` at most. Never raises."""
    try:
        status, body = _get(check.url, {}, access, limits, MAX_BODY)
    except (CannotTell, OutriderError) as error:
        return Told("Unknown", str(error))
    shown = shown_url(check.url)
    if status in _NOT_LET_IN or status == _BUSY:
        hint = "it is asked too often" if status == _BUSY else "name a Secret in secretRef, or correct it"
        return Told("Unknown", f"{shown} answered {status}; {hint}")
    if not _is_success(status):
        return Told("Fail", f"{shown} answered {status}{_remark(status)}")
    return _judge_body(shown, status, body, check.body_contains, "")


def _get(url: str, parameters: dict[str, str], access: HttpAccess, limits: CheckLimits, most: int) -> tuple[int, bytes]:
    """Return status and body, of which at most `most` + 1 bytes. Raises CannotTell, and Stalling as `find_problem`."""
    problem = find_problem(url, limits.allowed_hosts, limits.guard)
    if problem is not None:
        raise CannotTell(f"the check's URL is not acceptable: {problem}")
    if access.authorization and not url.lower().startswith("https:") and not access.plain_http:
        hint = "write https, or take the credentials away"
        raise CannotTell(f"credentials would be sent to {shown_url(url)} without TLS; {hint}")
    headers = {"Connection": "close"}
    if access.authorization:
        headers["Authorization"] = access.authorization
    with (
        PlainSession(limits.guard, access.ca_pem) as session,
        Watchdog(session.abort, limits.total_timeout) as watchdog,
    ):
        try:
            response = session.get(
                url,
                params=parameters,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=(limits.connect_timeout, limits.total_timeout),
            )
            return response.status_code, read_at_most(response, most)
        except NETWORK_ERRORS as error:
            why = f"it did not end within {limits.total_timeout:.0f} s" if watchdog.verdict else explain(error)
            raise CannotTell(f"{shown_url(url)} cannot be asked: {why}") from None


def _parse(body: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _one_number(answer: dict[str, Any]) -> str:
    """Return the one number of a result, or what is wrong with it as the end of a sentence."""
    data = answer.get("data")
    kind, result = (data.get("resultType"), data.get("result")) if isinstance(data, dict) else (None, None)
    if kind == "vector" and isinstance(result, list):
        if not result:
            return "is empty: no series is there (yet)"
        if len(result) > 1:
            return f"has {len(result)} series; it must be one number: aggregate them, as with sum(…)"
        result = result[0].get("value") if isinstance(result[0], dict) else None
    elif kind != "scalar":
        return "is neither a scalar nor an instant vector; it must be one number"
    match result:
        case [_, str(value)] if len(value) <= 40 and _NUMBER.fullmatch(value):
            return value
        case _:
            return "is no number"
