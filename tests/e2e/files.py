"""A web server for artifacts that can be made to do everything wrong, and keys and signatures made by openssl."""

import hashlib
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from localcluster.addresses import LOOPBACK, free_port
from localcluster.pki import KeyPair


@dataclass
class Answer:
    """What the server does when a path is asked for.

    `declared` is the Content-Length if it shall differ from the truth; a `gate` holds the second half of the body
    back until it is set; `chunked` sends without saying how much. Whoever asks without the header `authorization`
    that is demanded gets 401.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    declared: int | None = None
    gate: threading.Event | None = None
    half_sent: threading.Event = field(default_factory=threading.Event)
    chunked: bool = False
    authorization: str = ""


class FileServer:
    """Serves what it is told, on loopback, from threads."""

    def __init__(self, certificate: KeyPair | None = None, *, address: str = LOOPBACK, port: int | None = None) -> None:
        """With a certificate it speaks TLS."""
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self._address = address
        self._port = free_port(address, set()) if port is None else port
        self._server: ThreadingHTTPServer | None = None
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate.certificate, certificate.key)

    def url(self, path: str) -> str:
        """Where a path is."""
        scheme = "http" if self._context is None else "https"
        return f"{scheme}://{self._address}:{self._port}/{path}"

    def start(self) -> None:
        """Listen, at the same address each time."""
        if self._server is not None:
            return
        self._server = ThreadingHTTPServer((self._address, self._port), _handler_for(self))
        self._server.daemon_threads = True
        if self._context is not None:
            # Whoever does not believe the certificate hangs up, and must not hold up others: its thread does that.
            self._server.socket = self._context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def _handler_for(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.lstrip("/")
            server.asked.append(path)
            answer = server.answers.get(path, Answer(b"nothing here", status=404))
            if answer.authorization and self.headers.get("Authorization") != answer.authorization:
                answer = Answer(b"who are you?", status=401)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            body = answer.body
            if answer.chunked:
                self.send_header("Transfer-Encoding", "chunked")
                body = b"".join(
                    b"%x\r\n%s\r\n" % (len(piece), piece)
                    for piece in (body[start : start + 65536] for start in range(0, len(body), 65536))
                )
                body += b"0\r\n\r\n"
            else:
                self.send_header("Content-Length", str(len(body) if answer.declared is None else answer.declared))
            self.close_connection = True
            self.end_headers()
            try:
                if answer.gate is not None:
                    half = len(body) // 2
                    self.wfile.write(body[:half])
                    self.wfile.flush()
                    answer.half_sent.set()
                    answer.gate.wait(120)
                    body = body[half:]
                self.wfile.write(body)
            except OSError:
                pass  # the operator has hung up, as it may

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (as the base class calls it)
            pass

    return Handler


class Signer:
    """A key pair made by openssl, and signatures made with it, as the documentation tells people."""

    def __init__(self, folder: Path, name: str, *options: str) -> None:
        self.name = name
        self.private = folder / f"{name}.key"
        self._folder = folder
        _run("openssl", "genpkey", *options, "-out", self.private)
        self.public = _run("openssl", "pkey", "-in", self.private, "-pubout").decode()
        der = _run("openssl", "pkey", "-in", self.private, "-pubout", "-outform", "DER")
        self.fingerprint = "sha256:" + hashlib.sha256(der).hexdigest()

    def sign(self, data: bytes) -> str:
        """Return the detached signature over a file with these bytes, in base64."""
        file = self._folder / "file-to-sign"
        file.write_bytes(data)
        command = 'openssl dgst -sha256 -sign "$1" "$2" | base64 -w0'
        return _run("sh", "-c", command, "sign", self.private, file).decode()


P256 = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
P384 = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384")
RSA3072 = ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072")


def _run(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout
