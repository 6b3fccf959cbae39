"""Servers that send a byte now and then, for ever: whatever is asked of them ends when it is time, or not wanted."""

import contextlib
import hashlib
import http.client
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.realservers import ON_LOOPBACK, RealRegistry
from outrider.adapters import deadlines
from outrider.adapters.deadlines import Watchdog
from outrider.adapters.ocisource import copy_image
from outrider.adapters.registry import MANIFEST_TYPE, OciRegistry, RegistrySettings
from outrider.adapters.sources import HttpAccess, SourceLimits, open_http
from outrider.adapters.transport import NETWORK_ERRORS, PlainSession, read_at_most
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.trust.documents import canonical_json

EVENT = 0.4
"""Seconds from the beginning to the deadline, or until it is cancelled."""
SOON = 1.3
"""Seconds in which it has to end after that: it is looked for every half second, and this machine may be busy."""

OK = b"HTTP/1.1 200 OK\r\n"
STAGES = {
    "nothing": b"",
    "status line": b"HTTP/1.1 200 O",
    "headers": OK + b"Content-Length: 5\r\nX-Slow: ",
    "body": OK + b"Content-Length: 100000\r\n\r\n",
    "body without a length": OK + b"\r\n",
    "chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n",
    "size of a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n0",
}
"""What is sent at once; after that, a zero now and then."""
NAME = "team/agent"
DIGEST = "sha256:" + "0" * 64


class DrippingServer:
    """Answers at once whatever is in `answers` (by method and path), and drips after `prefix` otherwise.

    When it stops it has closed everything and ended all its threads.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.prefix = b""
        self.answers: dict[str, bytes] = {}
        self.before_tls = b""
        """What is dripped after instead of a handshake."""
        self.slow_reader = False
        """Read the bodies of requests a byte at a time."""
        self.dripping = threading.Event()
        self._tls = tls
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'http' if tls is None else 'https'}://{self.host}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stop(self) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(near,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, near: socket.socket) -> None:
        near.settimeout(5)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            stack.enter_context(near)
            if self.before_tls:
                self._drip(near, self.before_tls)
            if self._tls is not None:
                near = stack.enter_context(self._tls.wrap_socket(near, server_side=True))
            stream = stack.enter_context(near.makefile("rb"))
            while line := stream.readline():
                method, path, _ = line.decode().split(" ")
                headers = http.client.parse_headers(stream)
                if headers.get("Transfer-Encoding") and self.slow_reader:
                    self.dripping.set()
                    while not self._closing.wait(0.02):
                        near.recv(1)
                    return
                stream.read(int(headers.get("Content-Length", "0")))
                answer = self.answers.get(f"{method} {path.partition('?')[0]}")
                if answer is None:
                    self._drip(near, self.prefix)
                near.sendall(answer or b"")

    def _drip(self, near: socket.socket, prefix: bytes) -> None:
        near.sendall(prefix)
        self.dripping.set()
        while not self._closing.wait(0.02):
            near.sendall(b"0")


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=slow", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, *names, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name in {"watchdog", "resolve"})


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Everything that a test opened is closed after it, and no thread of ours is left."""
    ssl.create_default_context().load_default_certs()
    before = open_files(), threads()
    yield
    assert (open_files(), threads()) == before


@pytest.fixture(params=["plain", "tls"])
def server(
    request: pytest.FixtureRequest, identity: tuple[ssl.SSLContext, Path], nothing_leaks: None
) -> Iterator[DrippingServer]:
    server = DrippingServer(identity[0] if request.param == "tls" else None)
    yield server
    server.stop()


@pytest.fixture(params=["deadline", "cancelled"])
def end(request: pytest.FixtureRequest) -> "End":
    return End(cancels=request.param == "cancelled")


class End:
    """What ends the work, and the check that it did."""

    def __init__(self, *, cancels: bool) -> None:
        self.cancels = cancels
        self.seconds = 60.0 if cancels else EVENT
        self._begun = time.monotonic()
        self._dripping: threading.Event | None = None

    def cancelled(self) -> bool:
        """Tell whether it is to end: some time after the server has begun to drip, however busy this machine is."""
        if self._dripping is not None and not self._dripping.is_set():
            self._begun = time.monotonic()
        return self.cancels and time.monotonic() - self._begun > EVENT

    def of(self, work: Callable[[], Any], reason: str, server: DrippingServer | None = None) -> OutriderError:
        """Do the work, and return the error that it ended with, for the right reason and in time."""
        self._dripping = server.dripping if server is not None and self.cancels else None
        self._begun = time.monotonic()
        with pytest.raises(OutriderError) as caught:
            work()
        took = time.monotonic() - self._begun
        assert EVENT - 0.1 < took < EVENT + SOON
        error = caught.value
        assert (type(error), error.reason) == (Transient, "Cancelled" if self.cancels else reason), error.message
        assert error.__suppress_context__ or error.__context__ is None  # the library's own texts hold URLs
        return error


def read(end: End, url: str, ca: Path | None = None) -> None:
    limits = SourceLimits(total_timeout=end.seconds, guard=ON_LOOPBACK)
    access = HttpAccess(ca_pem=ca.read_text() if ca is not None else None)
    with open_http(url, limits=limits, access=access, cancelled=end.cancelled) as source:
        for _ in source.chunks:
            pass


def client(end: End, server: DrippingServer, ca: Path | None = None, **settings: Any) -> OciRegistry:
    made = RegistrySettings(
        server.host,
        plain_http=server.url.startswith("http:"),
        ca_file=str(ca) if ca is not None else None,
        guard=ON_LOOPBACK,
        total_timeout=end.seconds,
        **settings,
    )
    return OciRegistry(made, cancelled=end.cancelled)


# Sources


@pytest.mark.parametrize("stage", STAGES)
def test_a_source_that_drips(
    server: DrippingServer, end: End, stage: str, identity: tuple[ssl.SSLContext, Path]
) -> None:
    server.prefix = STAGES[stage]
    error = end.of(lambda: read(end, server.url + "/file", identity[1]), "SourceUnreachable", server)
    assert server.dripping.is_set()
    assert server.url + "/file" in error.message
    if not end.cancels:
        assert " bytes in 0 s" in error.message


def test_a_source_that_drips_its_part_of_the_handshake(end: End, identity: tuple[ssl.SSLContext, Path]) -> None:
    server = DrippingServer(identity[0])
    try:
        server.before_tls = b"\x16\x03\x03\x3f\xff"  # a record of 16 KiB begins
        end.of(lambda: read(end, server.url + "/file", identity[1]), "SourceUnreachable", server)
        assert server.dripping.is_set()
    finally:
        server.stop()


def test_a_source_that_drips_after_a_redirect(server: DrippingServer, end: End, identity: Any) -> None:
    server.answers["GET /file"] = b"HTTP/1.1 302 Found\r\nLocation: /slow\r\nContent-Length: 0\r\n\r\n"
    server.prefix = STAGES["headers"]
    end.of(lambda: read(end, server.url + "/file", identity[1]), "SourceUnreachable", server)


def test_a_source_that_drips_when_it_is_asked_again(server: DrippingServer, end: End, identity: Any) -> None:
    short = b'ETag: "one"\r\nContent-Length: 100\r\nConnection: close\r\n\r\n'
    begun: list[int] = []

    class Once(dict[str, bytes]):
        def get(self, *_: Any) -> Any:
            begun.append(1)
            if len(begun) > 1:
                return None
            server.answers = {}
            return OK + short + b"x" * 50

    server.answers = Once()
    server.prefix = STAGES["headers"]
    # The connection that was cut is the server's own: it goes on dripping into the body, which then ends too late.
    error = end.of(lambda: read(end, server.url + "/file", identity[1]), "SourceUnreachable", server)
    assert "of 100" in error.message


def test_a_source_behind_a_proxy_that_drips(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = DrippingServer()
    try:
        server.prefix = STAGES["headers"]
        monkeypatch.setenv("http_proxy", server.url)
        end.of(lambda: read(end, "http://files.test/file"), "SourceUnreachable", server)
        assert server.dripping.is_set()
    finally:
        server.stop()


def test_a_proxy_that_drips_before_the_tunnel_stands(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = DrippingServer()
    try:
        server.prefix = STAGES["status line"]
        monkeypatch.setenv("https_proxy", server.url)
        end.of(lambda: read(end, "https://files.test/file"), "SourceUnreachable", server)
        assert server.dripping.is_set()
    finally:
        server.stop()


def test_a_source_that_does_not_accept(end: End) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # the queue is full
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/file"
        end.of(lambda: read(end, url), "SourceUnreachable")


def test_a_name_that_takes_for_ever(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    def hang(*_: Any) -> Any:
        never.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    end.of(lambda: read(end, "http://files.test/file"), "SourceUnreachable")
    never.set()
    for thread in threading.enumerate():
        if thread.name == "resolve":
            thread.join()


def test_a_name_that_takes_too_long_even_if_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "_RESOLVE_SECONDS", 0.3)
    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: never.wait(60) or [])
    registry = OciRegistry(RegistrySettings("registry.test", guard=ON_LOOPBACK))
    with registry, pytest.raises(Transient, match="its name cannot be resolved"):
        registry.check()
    never.set()
    for thread in threading.enumerate():
        if thread.name == "resolve":
            thread.join()


# Registries


@pytest.mark.parametrize(
    ("asked", "stage"),
    [("size", "status line"), ("tags", "body"), *(("manifest", stage) for stage in STAGES), ("blob", "body")],
)
def test_a_registry_that_drips(server: DrippingServer, end: End, stage: str, asked: str, identity: Any) -> None:
    server.prefix = STAGES[stage]
    with client(end, server, identity[1]) as registry:

        def work() -> None:
            match asked:
                case "manifest":
                    registry.get_manifest(NAME, "1.0.0")
                case "blob":
                    blob = registry.open_blob(NAME, DIGEST)
                    assert blob is not None
                    with blob:
                        assert not b"".join(blob).strip(b"0")
                case "tags":
                    registry.list_tags(NAME)
                case _:
                    registry.blob_size(NAME, DIGEST)

        error = end.of(work, "RegistryUnavailable", server)
        assert server.host in error.message
        assert server.dripping.is_set()
        # It is over: nothing is asked any more.
        begun = time.monotonic()
        with pytest.raises(Transient) as again:
            registry.check()
        assert (again.value.reason, time.monotonic() - begun < 0.2) == (error.reason, True)


@pytest.mark.parametrize("stage", STAGES)
def test_a_token_that_drips(end: End, stage: str) -> None:
    server = DrippingServer()
    try:
        challenge = f'WWW-Authenticate: Bearer realm="{server.url}/token",service="x"'.encode()
        refused = b"HTTP/1.1 401 Unauthorized\r\n" + challenge + b"\r\nContent-Length: 0\r\n\r\n"
        server.answers[f"GET /v2/{NAME}/manifests/1.0.0"] = refused
        server.prefix = STAGES[stage]
        with client(end, server) as registry:
            error = end.of(lambda: registry.get_manifest(NAME, "1.0.0"), "RegistryUnavailable", server)
        assert "getting a token from" in error.message
    finally:
        server.stop()


def test_a_refusal_whose_text_drips_is_a_refusal(end: End) -> None:
    server = DrippingServer()
    try:
        server.prefix = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000\r\n\r\n"
        begun = end._begun = time.monotonic()
        with client(end, server) as registry, pytest.raises(Stalling) as caught:
            registry.get_manifest(NAME, "1.0.0")
        assert caught.value.reason == "RegistryDenied"
        assert time.monotonic() - begun < EVENT + SOON
    finally:
        server.stop()


def test_an_upload_that_is_read_byte_by_byte(server: DrippingServer, end: End, identity: Any) -> None:
    location = f"Location: {server.url}/v2/{NAME}/blobs/uploads/1".encode()
    server.answers[f"POST /v2/{NAME}/blobs/uploads/"] = (
        b"HTTP/1.1 202 Accepted\r\n" + location + b"\r\nContent-Length: 0\r\n\r\n"
    )
    server.slow_reader = True

    def pieces() -> Iterator[bytes]:
        while True:
            yield bytes(256 * 1024)

    with client(end, server, identity[1]) as registry:
        end.of(lambda: registry.push_stream(NAME, pieces()), "RegistryUnavailable", server)
    assert server.dripping.is_set()


def test_a_copy_whose_source_drips_in_the_middle(end: End, shared_registry: RealRegistry) -> None:
    server = DrippingServer()
    try:
        blob = {"mediaType": "application/octet-stream", "digest": DIGEST, "size": 100_000}
        document = canonical_json(
            {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": blob, "layers": [blob], "annotations": {}}
        )
        digest = f"sha256:{hashlib.sha256(document).hexdigest()}"
        head = f"Content-Type: {MANIFEST_TYPE}\r\nContent-Length: {len(document)}\r\n\r\n".encode()
        server.answers[f"GET /v2/{NAME}/manifests/{digest}"] = OK + head + document
        server.prefix = STAGES["body"]
        with shared_registry.client() as ours, client(end, server) as theirs:
            end.of(lambda: copy_image(theirs, ours, NAME, "copy", digest), "RegistryUnavailable", server)
        assert server.dripping.is_set()
    finally:
        server.stop()


# What they are made of


def test_a_session_is_ended_while_its_thread_waits(server: DrippingServer, identity: Any) -> None:
    server.prefix = STAGES["body"]
    session = PlainSession(ON_LOOPBACK)
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            read_at_most(session.get(server.url, stream=True, verify=str(identity[1]), timeout=30), 10**6)
        except NETWORK_ERRORS as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert server.dripping.wait(5)
    session.abort()
    session.abort()
    thread.join(1)
    assert not thread.is_alive()
    assert len(failures) == 1
    with pytest.raises(NETWORK_ERRORS):
        session.get(server.url, timeout=30)
    session.close()


def test_a_session_that_connects_again_and_again_holds_nothing(server: DrippingServer, identity: Any) -> None:
    closing = OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nok"
    server.answers["GET /"] = closing
    counts = []
    with PlainSession(ON_LOOPBACK) as session:
        for _ in range(20):
            response = session.get(server.url, stream=True, verify=str(identity[1]), timeout=30)
            assert read_at_most(response, 10) == b"ok"
            counts.append(len([s for s in list(session._connections._open) if s.fileno() >= 0]))
            assert not session._connections._opening
    assert set(counts) == {0}


def test_a_watchdog_with_nothing_to_watch_is_no_thread() -> None:
    with Watchdog(lambda: None, None) as watchdog:
        assert threads() == []
    assert watchdog.verdict == ""


def test_a_watchdog_that_is_stopped_in_time_does_nothing() -> None:
    aborted: list[int] = []
    with Watchdog(lambda: aborted.append(1), 60.0, lambda: False) as watchdog:
        assert threads() == ["watchdog"]
    assert (threads(), aborted, watchdog.verdict) == ([], [], "")
