"""Real servers for the adapters' tests: a CNCF distribution registry, a token service, a web server that misbehaves."""

import base64
import hashlib
import http.client
import http.server
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from localcluster import toolchain
from outrider.adapters.registry import OciRegistry, RegistrySettings
from outrider.adapters.sources import SourceLimits
from outrider.adapters.transport import AddressPolicy

USERNAME = "outrider"
PASSWORD = "open sesame"
BCRYPT = "$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW"
"""Of PASSWORD, as htpasswd -B makes it."""


ON_LOOPBACK = AddressPolicy((ipaddress.ip_network("127.0.0.0/8"),))
"""All that is real here runs on loopback, which is refused otherwise."""
LIMITS = SourceLimits(guard=ON_LOOPBACK)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealRegistry:
    """A registry on loopback with its data in a folder. It can be killed, and started again on the same port."""

    def __init__(
        self,
        folder: Path,
        auth: dict[str, Any] | None = None,
        *,
        deletable: bool = True,
        tls: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        configuration: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.data)}, "delete": {"enabled": deletable}},
            "http": {"addr": self.host},
        }
        if auth is not None:
            configuration["auth"] = auth
        if tls is not None:
            configuration["http"]["tls"] = tls
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yml").write_text(json.dumps(configuration))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=log,
                env={"OTEL_TRACES_EXPORTER": "none", "OTEL_SDK_DISABLED": "true", "HOME": "/"},
            )
        deadline = time.monotonic() + 30
        while not self._serves():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.stop()
                raise RuntimeError("the registry did not start:\n" + (self.folder / "log").read_text()[-2000:])
            time.sleep(0.02)
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it keep its connections and accept new ones, but never answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self, **settings: Any) -> OciRegistry:
        settings.setdefault("resume_delays", (0.05, 0.1, 0.2))
        return OciRegistry(RegistrySettings(self.host, plain_http=True, **settings))

    def blob_file(self, digest: str) -> Path:
        """Return where the registry keeps a blob's bytes."""
        sha256 = digest.removeprefix("sha256:")
        return self.data / "docker/registry/v2/blobs/sha256" / sha256[:2] / sha256 / "data"

    def tags(self, repository: str) -> list[str]:
        folder = self.data / "docker/registry/v2/repositories" / repository / "_manifests/tags"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def blobs(self) -> list[str]:
        return sorted(path.parent.name for path in self.data.glob("docker/registry/v2/blobs/sha256/*/*/data"))

    def upload_bytes(self) -> int:
        """Return how many bytes of unfinished uploads lie about."""
        return sum(path.stat().st_size for path in self.data.glob("**/_uploads/*/data"))

    def _command(self) -> list[str | Path]:
        return [toolchain.tool("registry"), "serve", self.folder / "config.yml"]

    def _serves(self) -> bool:
        connection = http.client.HTTPConnection(self.host, timeout=2)
        try:
            connection.request("GET", "/v2/")
            # 400 is what a server that expects TLS says to plain HTTP.
            return connection.getresponse().status in {200, 400, 401}
        except OSError:
            return False
        finally:
            connection.close()


class RealHttpServer:
    """A web server on loopback with a handler function per path, or per method and path such as `PUT /x`.

    `requests` holds what was asked of it.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.handlers: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def do_GET(self) -> None:
                owner.requests.append((self.path, dict(self.headers)))
                path = urllib.parse.urlsplit(self.path).path
                handler = owner.handlers.get(f"{self.command} {path}", owner.handlers.get(path))
                try:
                    if handler is None:
                        self.send_error(404)
                    else:
                        handler(self)
                except OSError:  # the client has gone
                    self.close_connection = True

            do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                """Say nothing: clients that go away are part of the tests."""

            def get_request(self) -> tuple[socket.socket, Any]:
                connection, address = super().get_request()
                if tls is not None:
                    # The handshake happens with the first read, in the connection's own thread.
                    connection = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                return connection, address

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self, path: str, body: bytes, *, status: int = 200, **headers: str) -> str:
        """Answer `path` with a body and headers (`_` stands for `-`), and return its URL."""

        def handler(request: http.server.BaseHTTPRequestHandler) -> None:
            # What is not read now would be taken for the next request.
            request.rfile.read(int(request.headers.get("Content-Length", 0)))
            request.send_response(status)
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            for name, value in {"Content-Length": str(len(body)), **named}.items():
                request.send_header(name, value)
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(body)

        self.handlers[path] = handler
        return self.url + path

    def serve_file(self, path: str, file: Path) -> str:
        """Serve a file by sendfile: as fast as loopback is."""

        def handler(request: http.server.BaseHTTPRequestHandler) -> None:
            with file.open("rb") as source:
                request.send_response(200)
                request.send_header("Content-Length", str(os.fstat(source.fileno()).st_size))
                request.end_headers()
                request.wfile.flush()
                request.connection.sendfile(source)

        self.handlers[path] = handler
        return self.url + path

    def redirect(self, path: str, target: str, status: int = 302) -> str:
        return self.serve(path, b"", status=status, Location=target)


class TokenService:
    """What issues the registry's tokens (distribution's token authentication), signed with a key that it trusts."""

    def __init__(self, folder: Path) -> None:
        self.server = RealHttpServer()
        self.server.handlers["/token"] = self._answer
        self.lifetime = 600.0
        """Seconds. The registry adds a grace of 60, so that -59 makes a token that lives for one more second."""
        self.issued: list[str] = []
        """The scopes asked for."""
        self.identity_token = "identity"
        """Good for the next token only."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        numbers = self._key.public_key().public_numbers()
        jwk = {
            "kty": "EC",
            "crv": "P-256",
            "kid": "test",
            "alg": "ES256",
            "use": "sig",
            "x": _base64url(numbers.x.to_bytes(32, "big")),
            "y": _base64url(numbers.y.to_bytes(32, "big")),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "jwks.json").write_text(json.dumps({"keys": [jwk]}))
        self.registry_auth = {
            "token": {
                "realm": self.server.url + "/token",
                "service": "test-registry",
                "issuer": "test-issuer",
                "jwks": str(folder / "jwks.json"),
                "signingalgorithms": ["ES256"],
            }
        }

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        basic = "Basic " + base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        query = urllib.parse.urlsplit(request.path).query
        if request.command == "POST":  # OAuth2, with an identity token
            query = request.rfile.read(int(request.headers["Content-Length"])).decode()
        form = urllib.parse.parse_qs(query)
        if request.command == "POST":
            known = form.get("refresh_token") == [self.identity_token] and form["grant_type"] == ["refresh_token"]
        else:
            known = request.headers.get("Authorization") == basic
        if not known:
            request.send_error(401)
            return
        scopes = form.get("scope", [])
        self.issued += scopes
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = time.time()
        claims = {
            "iss": "test-issuer",
            "sub": USERNAME,
            "aud": "test-registry",
            "exp": int(now + self.lifetime),
            "nbf": int(now - 300),
            "iat": int(now - 300),
            "jti": str(len(self.issued)),
            "access": access,
        }
        head = {"alg": "ES256", "typ": "JWT", "kid": "test"}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        token = f"{signed}.{_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
        answer = {"token": token}
        if request.command == "POST":
            self.identity_token += "+"
            answer = {"access_token": token, "refresh_token": self.identity_token}
        body = json.dumps(answer).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


class FlakyProxy:
    """A TCP proxy in front of a registry that can cut connections after a number of bytes from the registry."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.cut_after: list[int] = []
        """For each of the next connections, the bytes after which it breaks; others live on."""
        self.cut_uploads_after: list[int] = []
        """The same, in bytes towards the registry."""
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        # Shut down first: closing alone does not wake a thread that is in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [near, far]
            limit = self.cut_after.pop(0) if self.cut_after else None
            upward = self.cut_uploads_after.pop(0) if self.cut_uploads_after else None
            threading.Thread(target=self._pump, args=(near, far, upward), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, limit), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        count = 0
        try:
            while data := source.recv(65536):
                count += len(data)
                if limit is not None and count > limit:
                    sink.sendall(data[: limit - count])
                    # What else the source sends is refused instead of piling up unread.
                    source.shutdown(socket.SHUT_RD)
                    source.close()
                    break
                sink.sendall(data)
        except OSError:
            pass
        for each in (source, sink):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class ConnectProxy:
    """A proxy as companies have one: CONNECT for https, absolute URLs for http, and names that only it can resolve."""

    def __init__(self, credentials: str = "") -> None:
        self.asked: list[str] = []
        """The first line of every request."""
        self.names: dict[str, str] = {}
        """Where hosts are."""
        self._credentials = credentials
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://{credentials}{'@' if credentials else ''}127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near:
            head = b""
            while b"\r\n\r\n" not in head and (data := near.recv(65536)):
                head += data
            line, _, fields = head.partition(b"\r\n")
            method, target, _ = line.decode().split(" ")
            self.asked.append(f"{method} {target}")
            wanted = "Proxy-Authorization: Basic " + base64.b64encode(self._credentials.encode()).decode()
            if self._credentials and wanted.encode() not in fields:
                near.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            parts = urllib.parse.urlsplit(target if "//" in target else f"//{target}")
            host = self.names.get(parts.hostname or "", "")
            if not host:
                near.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection((host, parts.port or 80)) as far:
                if method == "CONNECT":
                    near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    # What follows on this connection is passed on as it is: servers take absolute URLs, too.
                    path = parts._replace(scheme="", netloc="").geturl()
                    far.sendall(f"{method} {path} HTTP/1.1\r\n".encode() + fields)
                back = threading.Thread(target=FlakyProxy._pump, args=(far, near, None), daemon=True)
                back.start()
                FlakyProxy._pump(near, far, None)
                back.join()


@contextmanager
def running_registry(
    folder: Path, auth: dict[str, Any] | None = None, *, deletable: bool = True, tls: dict[str, str] | None = None
) -> Iterator[RealRegistry]:
    registry = RealRegistry(folder, auth, deletable=deletable, tls=tls).start()
    try:
        yield registry
    finally:
        registry.kill()


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
