"""Agents, Prometheus and web pages that are asked: real servers on loopback, and what each answer is worth."""

import asyncio
import http.server
import ipaddress
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.realservers import ON_LOOPBACK, RealHttpServer
from localcluster.prometheus import Exporter, Prometheus
from outrider.adapters.checks import (
    MAX_BODY,
    AgentProber,
    CheckLimits,
    Told,
    ask_prometheus,
    ask_web,
    names_version,
)
from outrider.adapters.sources import HttpAccess
from outrider.adapters.transport import AddressPolicy
from outrider.api.checks import HttpCheck, PrometheusQuery, WebCheck

LOOPBACK = "127.0.0.1"
LIMITS = CheckLimits(guard=ON_LOOPBACK, total_timeout=2, connect_timeout=0.5)
NOBODY = HttpAccess()


@pytest.fixture
async def prober() -> AsyncIterator[AgentProber]:
    made = AgentProber(ON_LOOPBACK, connect_timeout=0.5, total_timeout=1)
    yield made
    await made.close()


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[RealHttpServer, Path]]:
    """A web server that speaks TLS by a certificate that nobody vouches for; and the certificate."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, *names, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = RealHttpServer(context)
    yield server, certificate
    server.stop()


@contextmanager
def a_server_that(answers: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port where every connection is handed to a function, in a thread."""
    listener = socket.create_server((LOOPBACK, 0))
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            threading.Thread(target=answers, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in held:
            connection.close()


@contextmanager
def a_port_that_accepts_nothing() -> Iterator[int]:
    """A port whose queue is full: who connects hears nothing, as behind a firewall that drops."""
    with socket.socket() as listener, closing(socket.socket()) as first, closing(socket.socket()) as second:
        listener.bind((LOOPBACK, 0))
        listener.listen(0)
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        time.sleep(0.1)
        yield listener.getsockname()[1]


def drips(connection: socket.socket) -> None:
    """Answer, a byte of a header now and then."""
    try:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            connection.sendall(b"x")
            time.sleep(0.1)
    except OSError:
        return


def a_check(port: int, **changes: Any) -> HttpCheck:
    return HttpCheck.model_validate({"path": "/healthz", "port": port, **changes})


# --- agents -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "check", "verdict", "words"),
    [
        (b"", 200, {}, "Pass", "answered 200"),
        (b"", 204, {}, "Pass", "answered 204"),
        (b"", 301, {}, "Fail", "redirects are not followed"),
        (b"", 404, {}, "Fail", "answered 404"),
        (b"", 503, {}, "Fail", "answered 503"),
        (b"state: fine\n", 200, {"bodyContains": "fine"}, "Pass", ""),
        (b"state: ill\n", 200, {"bodyContains": "fine"}, "Fail", "without the text that bodyContains wants"),
        (b"agent 1.4.0\n", 200, {"bodyContainsVersion": True}, "Pass", ""),
        (b"agent v1.4.0+build7\n", 200, {"bodyContainsVersion": True}, "Pass", ""),
        (b"agent 1.4.0-rc.1\n", 200, {"bodyContainsVersion": True}, "Fail", "without naming version 1.4.0"),
        (b"agent 11.4.0\n", 200, {"bodyContainsVersion": True}, "Fail", "version"),
        (b"agent 1.4.01\n", 200, {"bodyContainsVersion": True}, "Fail", "version"),
        (b"agent 1.4.0.1\n", 200, {"bodyContainsVersion": True}, "Fail", "version"),
        (b"x" * MAX_BODY + b"fine", 200, {"bodyContains": "fine"}, "Fail", ""),
        (b"x" * (MAX_BODY - 4) + b"fine", 200, {"bodyContains": "fine"}, "Pass", ""),
    ],
)
async def test_what_an_agent_answers(
    prober: AgentProber,
    web: RealHttpServer,
    body: bytes,
    status: int,
    check: dict[str, Any],
    verdict: str,
    words: str,
) -> None:
    headers = {"Location": web.serve("/elsewhere", b"")} if status == 301 else {}
    web.serve("/healthz", body if status != 204 else b"", status=status, **headers)
    told = await prober.ask(LOOPBACK, a_check(web.port, **check), "1.4.0")
    assert told.verdict == verdict
    assert words in told.message
    assert f"http://{LOOPBACK}:{web.port}/healthz" in told.message
    assert [path for path, _ in web.requests] == ["/healthz"], "no redirect is followed"


async def test_a_path_is_asked_as_it_stands_and_its_query_is_not_told(prober: AgentProber, web: RealHttpServer) -> None:
    web.serve("/healthz", b"")
    told = await prober.ask(LOOPBACK, a_check(web.port, path="/healthz?token=hunter2&a=%2F"), "1.4.0")
    assert told.verdict == "Pass"
    assert web.requests[0][0] == "/healthz?token=hunter2&a=%2F"
    assert "hunter2" not in told.message


async def test_nothing_of_a_body_is_told(prober: AgentProber, web: RealHttpServer) -> None:
    web.serve("/healthz", b"hunter2", status=500)
    told = await prober.ask(LOOPBACK, a_check(web.port, bodyContains="fine"), "1.4.0")
    assert "hunter2" not in told.message
    web.serve("/healthz", b"hunter2")
    told = await prober.ask(LOOPBACK, a_check(web.port, bodyContains="fine"), "1.4.0")
    assert told.verdict == "Fail"
    assert "hunter2" not in told.message


async def test_who_refuses_or_breaks_the_connection_or_does_not_speak_http_has_failed(prober: AgentProber) -> None:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        told = await prober.ask(LOOPBACK, a_check(probe.getsockname()[1]), "1.4.0")
    assert (told.verdict, "refuses the connection" in told.message) == ("Fail", True)
    with a_server_that(lambda connection: connection.shutdown(socket.SHUT_RDWR)) as port:
        told = await prober.ask(LOOPBACK, a_check(port), "1.4.0")
    assert (told.verdict, "breaks the connection" in told.message) == ("Fail", True)
    with a_server_that(lambda connection: connection.sendall(b"220 mail\r\n\r\n")) as port:
        told = await prober.ask(LOOPBACK, a_check(port), "1.4.0")
    assert (told.verdict, "does not answer in HTTP" in told.message) == ("Fail", True)
    assert "mail" not in told.message


@pytest.mark.parametrize("answers", [lambda _: None, drips], ids=["silent", "dripping"])
async def test_who_accepts_a_connection_and_does_not_answer_has_failed_in_time(
    prober: AgentProber, answers: Callable[[socket.socket], None]
) -> None:
    begun = time.monotonic()
    with a_server_that(answers) as port:
        told = await prober.ask(LOOPBACK, a_check(port), "1.4.0")
    assert (told.verdict, "does not answer within 1 s" in told.message) == ("Fail", True)
    assert time.monotonic() - begun < 3


async def test_of_whom_accepts_no_connection_nobody_can_tell(prober: AgentProber) -> None:
    with a_port_that_accepts_nothing() as port:
        told = await prober.ask(LOOPBACK, a_check(port), "1.4.0")
    assert told.verdict == "Unknown"
    assert "accepts no connection" in told.message


async def test_where_no_way_leads_nobody_can_tell() -> None:
    # An address of the documentation's: nobody has it.
    prober = AgentProber(AddressPolicy(), connect_timeout=0.5, total_timeout=1)
    try:
        told = await prober.ask("2001:db8::1", a_check(8080), "1.4.0")
    finally:
        await prober.close()
    assert told.verdict == "Unknown"


@pytest.mark.parametrize("ip", ["127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "0.0.0.0", "not-an-ip", ""])  # noqa: S104
async def test_a_pod_s_address_is_bounded_like_any_other(web: RealHttpServer, ip: str) -> None:
    """A kubelet that was taken over names its pods' IPs."""
    web.serve("/healthz", b"")
    prober = AgentProber(AddressPolicy(), connect_timeout=0.5, total_timeout=1)
    told = await prober.ask(ip, a_check(web.port), "1.4.0")
    await prober.close()
    assert told.verdict == "Unknown"
    assert web.requests == []


async def test_https_of_an_agent_is_asked_as_the_kubelet_does(
    prober: AgentProber, secure: tuple[RealHttpServer, Path], web: RealHttpServer
) -> None:
    server, _ = secure
    server.serve("/healthz", b"")
    assert (await prober.ask(LOOPBACK, a_check(server.port, scheme="HTTPS"), "1.4.0")).verdict == "Pass"
    web.serve("/healthz", b"")
    told = await prober.ask(LOOPBACK, a_check(web.port, scheme="HTTPS"), "1.4.0")
    assert (told.verdict, "does not speak TLS" in told.message) == ("Fail", True)


async def test_no_more_agents_are_asked_at_a_time_than_may_be(web: RealHttpServer) -> None:
    under_way, most = 0, 0
    lock = threading.Lock()

    def slowly(request: http.server.BaseHTTPRequestHandler) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.1)
        with lock:
            under_way -= 1
        request.send_response(200)
        request.send_header("Content-Length", "0")
        request.end_headers()

    web.handlers["/healthz"] = slowly
    prober = AgentProber(ON_LOOPBACK, concurrency=3)
    answers = await asyncio.gather(*(prober.ask(LOOPBACK, a_check(web.port), "1.4.0") for _ in range(12)))
    await prober.close()
    assert [told.verdict for told in answers] == ["Pass"] * 12
    assert most <= 3


def test_a_version_is_a_whole_word() -> None:
    assert names_version(b'{"version":"1.4.0"}', "1.4.0")
    assert names_version(b"1.4.0.", "1.4.0")
    assert not names_version(b"1x4x0", "1.4.0")
    assert names_version(b"is 2.0.0-rc.1 now", "2.0.0-rc.1")
    assert not names_version(b"is 2.0.0-rc.10 now", "2.0.0-rc.1")


# --- Prometheus -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A real one, with a gauge `errors` of 0.5 and two series of `load`."""
    exporter = Exporter()
    exporter.values |= {"errors": 0.5, 'load{of="a"}': 1, 'load{of="b"}': 2}
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), exporter.address)
    try:
        server.start().wait_for("errors", 0.5)
        yield server
    finally:
        server.stop()
        exporter.stop()


def a_query(address: str, query: str = "errors", good: str = "< 1") -> PrometheusQuery:
    return PrometheusQuery.model_validate({"address": address, "query": query, "passWhen": good})


@pytest.mark.parametrize(
    ("query", "pass_when", "verdict", "words"),
    [
        ("errors", "< 0.51", "Pass", "the query's result is 0.5, wanted is < 0.51"),
        ("errors", "< 0.5", "Fail", "0.5, wanted is < 0.5"),
        ("errors", ">= 0.5", "Pass", ""),
        ("errors", "== 0.5", "Pass", ""),
        ("errors", "!= 0.5", "Fail", ""),
        ("-errors", "<= -0.5", "Pass", ""),
        ("sum(load)", "> 2", "Pass", "is 3"),
        ("scalar(errors)", "< 1", "Pass", "is 0.5"),
        ("1", "== 1", "Pass", ""),
        ("1/0", "> 1", "Pass", "+Inf"),
        ("1/0", "< 1", "Fail", "+Inf"),
        ("nothing", "< 1", "Unknown", "is empty"),
        ("load", "< 1", "Unknown", "has 2 series"),
        ("0/0", "< 1", "Unknown", "NaN"),
        ("0/0", "!= 1", "Unknown", "NaN"),
        ("scalar(nothing)", "!= 1", "Unknown", "NaN"),
        ("errors[1m]", "< 1", "Unknown", "neither a scalar nor an instant vector"),
        ('"text"', "< 1", "Unknown", "neither a scalar nor an instant vector"),
        ("errors(", "< 1", "Unknown", "answered 400 (bad_data)"),
        ("label_replace(load, 'of', 'x', '', '') < 9", "< 1", "Unknown", "answered 422 (execution)"),
    ],
)
def test_what_prometheus_answers(prometheus: Prometheus, query: str, pass_when: str, verdict: str, words: str) -> None:
    told = ask_prometheus(a_query(prometheus.url, query, pass_when), NOBODY, LIMITS)
    assert (told.verdict, words in told.message) == (verdict, True), told


def test_the_number_is_told_as_it_came(prometheus: Prometheus) -> None:
    told = ask_prometheus(a_query(prometheus.url + "/", "errors / 3"), NOBODY, LIMITS)
    assert told.value == "0.16666666666666666"


def a_result(result: object, kind: str = "vector", **more: Any) -> bytes:
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": result}, **more}).encode()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"<html>hunter2</html>", 200, "answered 200 instead of a result"),
        (b"[" * 100_000, 200, "instead of a result"),
        (b'{"status":"error","errorType":"hunter2","error":"hunter2"}', 200, "instead of a result"),
        (b'{"status":"error","errorType":["bad_data"]}', 200, "instead of a result"),
        (b"{}", 401, "name a Secret in secretRef"),
        (b"{}", 429, "answered 429"),
        (b"{}", 503, "answered 503"),
        (b'{"status":"error","errorType":"timeout"}', 503, "answered 503 (timeout)"),
        (b"", 302, "answered 302"),
        (a_result([{"value": [0, "1"]}], warnings=["hunter2: a store is down"]), 200, "warnings"),
        (a_result([{"histogram": [0, {}]}]), 200, "is no number"),
        (a_result([{"value": [0, 1]}]), 200, "is no number"),
        (a_result([{"value": [0, "hunter2"]}]), 200, "is no number"),
        (a_result([{"value": [0, "1_0"]}]), 200, "is no number"),
        (a_result([["hunter2"]]), 200, "is no number"),
        (a_result("hunter2"), 200, "neither"),
        (b'{"status":"success","data":["hunter2"]}', 200, "neither"),
        (a_result([{"value": [0, "1"], "metric": {"x": "y" * 2_000_000}}]), 200, "more than"),
    ],
)
def test_what_is_no_answer_of_prometheus_tells_nothing_and_is_not_told(
    web: RealHttpServer, body: bytes, status: int, words: str
) -> None:
    web.serve("/api/v1/query", body, status=status)
    told = ask_prometheus(a_query(web.url), NOBODY, LIMITS)
    assert told.verdict == "Unknown"
    assert words in told.message, told.message
    assert "hunter2" not in told.message


def test_a_prometheus_that_is_down_or_slow_tells_nothing(web: RealHttpServer) -> None:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        told = ask_prometheus(a_query(f"http://{LOOPBACK}:{probe.getsockname()[1]}"), NOBODY, LIMITS)
    assert (told.verdict, "the connection was refused" in told.message) == ("Unknown", True)
    begun = time.monotonic()
    with a_server_that(drips) as port:
        told = ask_prometheus(a_query(f"http://{LOOPBACK}:{port}"), NOBODY, LIMITS)
    assert (told.verdict, "did not end within 2 s" in told.message) == ("Unknown", True), told
    assert time.monotonic() - begun < 5


def test_an_address_with_a_query_of_its_own_is_not_asked(web: RealHttpServer) -> None:
    assert ask_prometheus(a_query(web.url + "/?x="), NOBODY, LIMITS).verdict == "Unknown"
    assert web.requests == []


# --- web pages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "contains", "verdict", "words"),
    [
        (b"", 200, None, "Pass", "answered 200"),
        (b"all well", 200, "well", "Pass", ""),
        (b"hunter2", 200, "well", "Fail", "without the text"),
        (b"x" * MAX_BODY + b"well", 200, "well", "Pass", ""),
        (b"x" * (MAX_BODY + 1) + b"well", 200, "well", "Fail", ""),
        (b"hunter2", 404, None, "Fail", "answered 404"),
        (b"hunter2", 500, None, "Fail", "answered 500"),
        (b"hunter2", 302, None, "Fail", "redirects are not followed"),
        (b"hunter2", 401, None, "Unknown", "secretRef"),
        (b"hunter2", 429, None, "Unknown", "asked too often"),
    ],
)
def test_what_a_web_page_answers(
    web: RealHttpServer, body: bytes, status: int, contains: str | None, verdict: str, words: str
) -> None:
    if contains is not None and len(body) == MAX_BODY + 4:
        body = body[4:]  # the last bytes that are looked at
    url = web.serve("/page", body, status=status, Location="/other")
    told = ask_web(WebCheck(url=url, body_contains=contains), NOBODY, LIMITS)
    assert (told.verdict, words in told.message) == (verdict, True), told
    assert "hunter2" not in told.message
    assert len(web.requests) == 1


def test_a_web_page_that_cannot_be_asked_tells_nothing() -> None:
    with a_port_that_accepts_nothing() as port:
        told = ask_web(WebCheck(url=f"http://{LOOPBACK}:{port}/"), NOBODY, LIMITS)
    assert told.verdict == "Unknown"
    assert ask_web(WebCheck(url="http://nobody.invalid/"), NOBODY, LIMITS) == Told(
        "Unknown", "http://nobody.invalid/ cannot be asked: its name cannot be resolved"
    )


# --- where they may go ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/page",
        "http://localhost:{port}/page",
        "http://[::1]:{port}/page",
        "http://0x7f.1:{port}/page",
        "http://169.254.169.254/latest/meta-data",
        "http://metadata.google.internal/",
        "http://user:hunter2@example.com/",
    ],
)
def test_what_tenants_name_is_bounded_as_for_sources(web: RealHttpServer, url: str) -> None:
    web.serve("/page", b"")
    web.serve("/api/v1/query", b"")
    url = url.format(port=web.port)
    limits = replace(LIMITS, guard=AddressPolicy(setting="checks.allowedAddresses"))
    check = WebCheck.model_construct(url=url)  # the API server refuses some of them already
    query = PrometheusQuery.model_construct(address=url, query="1", pass_when="== 1")
    for told in (ask_web(check, NOBODY, limits), ask_prometheus(query, NOBODY, limits)):
        assert told.verdict == "Unknown"
        assert "hunter2" not in told.message
        assert "checks.allowedAddresses" in told.message or "not acceptable" in told.message
    assert web.requests == []


def test_a_name_that_leads_to_a_refused_address_is_not_asked(
    web: RealHttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is resolved once, and the address that was checked is the one that is connected to."""
    answers = [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", (LOOPBACK, web.port))]]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: answers[0])
    url = web.serve("/page", b"").replace(LOOPBACK, "innocent.example.com")
    told = ask_web(WebCheck(url=url), NOBODY, replace(LIMITS, guard=AddressPolicy()))
    assert told.verdict == "Unknown"
    assert "innocent.example.com is at 127.0.0.1, which is a loopback address" in told.message
    assert web.requests == []


def test_hosts_that_the_settings_do_not_allow_are_not_asked(web: RealHttpServer) -> None:
    url = web.serve("/page", b"")
    limits = replace(LIMITS, allowed_hosts=("*.example.com",))
    told = ask_web(WebCheck(url=url), NOBODY, limits)
    assert (told.verdict, "*.example.com" in told.message) == ("Unknown", True)
    assert ask_web(WebCheck(url=url), NOBODY, replace(LIMITS, allowed_hosts=("127.*",))).verdict == "Pass"


def test_credentials_go_where_they_are_meant_for_and_never_without_tls(
    web: RealHttpServer, secure: tuple[RealHttpServer, Path]
) -> None:
    server, certificate = secure
    plain, url = web.serve("/page", b""), server.serve("/page", b"")
    told = ask_web(WebCheck(url=plain), HttpAccess("Bearer hunter2"), LIMITS)
    assert (told.verdict, web.requests) == ("Unknown", [])
    assert "hunter2" not in told.message
    assert ask_web(WebCheck(url=plain), HttpAccess("Bearer hunter2", plain_http=True), LIMITS).verdict == "Pass"
    told = ask_web(WebCheck(url=url), HttpAccess("Bearer hunter2"), LIMITS)
    assert (told.verdict, "TLS certificate is not trusted" in told.message) == ("Unknown", True)
    access = HttpAccess("Bearer hunter2", certificate.read_text())
    assert ask_web(WebCheck(url=url), access, LIMITS).verdict == "Pass"
    assert server.requests[-1][1]["Authorization"] == "Bearer hunter2"


def test_loopback_of_the_tests_is_allowed_only_because_they_say_so() -> None:
    assert AddressPolicy().refusal(ipaddress.ip_address(LOOPBACK)) == "a loopback address"
