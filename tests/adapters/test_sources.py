"""Sources against a real web server that does everything wrong that a web server can."""

import contextlib
import http.server
import socket
import ssl
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.realservers import LIMITS, ON_LOOPBACK, ConnectProxy, RealHttpServer, free_port
from outrider.adapters.sources import HttpAccess, SourceLimits, check_url, from_bytes, open_http, shown_url
from outrider.adapters.transport import AddressPolicy, retry_after
from outrider.api.errors import OutriderError, Stalling, Transient

Request = http.server.BaseHTTPRequestHandler


def read(url: str, **limits: Any) -> bytes:
    content = bytearray()
    with open_http(url, limits=SourceLimits(**{"guard": ON_LOOPBACK, **limits})) as source:
        for chunk in source.chunks:
            content += chunk
            assert len(content) < 100_000_000, "this should have been refused long ago"
    return bytes(content)


def failure(url: str, **limits: Any) -> OutriderError:
    with pytest.raises(OutriderError) as caught:
        read(url, **limits)
    return caught.value


def handle(web: RealHttpServer, path: str, handler: Callable[[Request], None]) -> str:
    web.handlers[path] = handler
    return web.url + path


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A web server behind TLS that is called files.test, and the file of who vouches for it."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=files", "-addext", "subjectAltName=DNS:files.test", "-days", "2"]
    subprocess.run([*command, *names, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = RealHttpServer(context)
    server.serve("/file", b"content")
    yield server.url + "/file", str(certificate)
    server.stop()


def test_a_file_is_read_and_its_size_known(web: RealHttpServer) -> None:
    body = bytes(range(256)) * 5000
    with open_http(web.serve("/file", body) + "?token=abc", limits=LIMITS) as source:
        assert source.declared_size == len(body)
        assert source.name == f"{web.url}/file?…"
        assert source.remark == ""
        assert b"".join(source.chunks) == body
    assert web.requests[0][1]["Accept-Encoding"] == "identity"


def test_an_empty_file(web: RealHttpServer) -> None:
    assert read(web.serve("/file", b"")) == b""


def test_a_file_without_a_promised_size(web: RealHttpServer) -> None:
    def chunked(request: Request) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for part in (b"one", b"two" * 100_000):
            request.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        request.wfile.write(b"0\r\n\r\n")

    with open_http(handle(web, "/file", chunked), limits=LIMITS) as source:
        assert source.declared_size is None
        assert b"".join(source.chunks) == b"one" + b"two" * 100_000


def test_compressed_and_web_pages_are_stored_as_sent_with_a_remark(web: RealHttpServer) -> None:
    with open_http(web.serve("/a", b"\x1f\x8b not really", Content_Encoding="gzip"), limits=LIMITS) as source:
        assert "Content-Encoding" in source.remark
        assert b"".join(source.chunks) == b"\x1f\x8b not really"
    with open_http(web.serve("/b", b"<html>", Content_Type="text/html; charset=utf-8"), limits=LIMITS) as source:
        assert "web page" in source.remark


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(web: RealHttpServer, status: int) -> None:
    web.serve("/file", b"content")
    assert read(web.redirect("/start", "/file", status)) == b"content"


def test_five_redirects_are_followed_and_six_are_not(web: RealHttpServer) -> None:
    for hop in range(6):
        web.redirect(f"/{hop}", f"/{hop + 1}")
    web.serve("/6", b"content")
    assert read(web.url + "/1") == b"content"
    error = failure(web.url + "/0")
    assert (type(error), error.reason) == (Stalling, "RedirectLoop")
    assert "more than 5 times" in error.message


def test_a_loop_is_named(web: RealHttpServer) -> None:
    web.redirect("/a", "/b")
    error = failure(web.redirect("/b", "/a"))
    assert (type(error), error.reason) == (Stalling, "RedirectLoop")
    assert error.message == f"{web.url}/b redirects in a circle (back to {web.url}/b); name the URL of the file itself"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("ftp://example.org/x", "UrlInvalid"),
        ("file:///etc/passwd", "UrlInvalid"),
        ("http://user:hunter2@127.0.0.1/x", "UrlInvalid"),
        ("http://10.0.0.1/x", "UrlInvalid"),
        ("http://[::1", "RedirectLoop"),
        ("", "RedirectLoop"),
    ],
)
def test_every_hop_is_checked(web: RealHttpServer, target: str, reason: str) -> None:
    error = failure(web.redirect("/start", target), allowed_hosts=("127.0.0.*",))
    assert (type(error), error.reason) == (Stalling, reason)
    assert "hunter2" not in error.message


def test_the_body_of_a_redirect_is_not_read(web: RealHttpServer) -> None:
    def endless(request: Request) -> None:
        request.send_response(302)
        request.send_header("Location", "/file")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        while not web.closing.is_set():
            request.wfile.write(b"ffff\r\n" + bytes(0xFFFF) + b"\r\n")

    web.serve("/file", b"content")
    assert read(handle(web, "/start", endless)) == b"content"


# Bad answers


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (404, Stalling, "SourceNotFound"),
        (410, Stalling, "SourceNotFound"),
        (401, Stalling, "SourceDenied"),
        (403, Stalling, "SourceDenied"),
        (400, Stalling, "SourceRefused"),
        (204, Stalling, "SourceRefused"),
        (206, Stalling, "SourceRefused"),
        (429, Transient, "SourceUnreachable"),
        (500, Transient, "SourceUnreachable"),
        (503, Transient, "SourceUnreachable"),
    ],
)
def test_statuses_say_what_has_to_happen_next(web: RealHttpServer, status: int, kind: type, reason: str) -> None:
    error = failure(web.serve("/file", b"", status=status) + "?secret=hunter2")
    assert (type(error), error.reason) == (kind, reason)
    assert str(status) in error.message
    assert f"{web.url}/file" in error.message
    assert "hunter2" not in error.message


def test_retry_after_is_passed_on(web: RealHttpServer) -> None:
    error = failure(web.serve("/file", b"", status=503, Retry_After="42"))
    assert isinstance(error, Transient)
    assert error.retry_after == 42


def test_a_file_that_ends_early(web: RealHttpServer) -> None:
    def truncated(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        request.wfile.write(b"x" * 400_000)
        request.close_connection = True

    error = failure(handle(web, "/file", truncated))
    assert (type(error), error.reason) == (Transient, "SourceTruncated")
    assert error.message == f"{web.url}/file ended after 400000 of 1000000 bytes; it will be tried again"


def test_a_chunked_file_that_ends_early(web: RealHttpServer) -> None:
    def truncated(request: Request) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"5\r\nhello\r\nff\r\nworld")
        request.close_connection = True

    error = failure(handle(web, "/file", truncated))
    assert (type(error), error.reason) == (Transient, "SourceTruncated")


def test_a_file_that_says_it_is_too_large_is_not_read(web: RealHttpServer) -> None:
    error = failure(web.serve("/file", b"x" * 1001), max_bytes=1000)
    assert (type(error), error.reason) == (Stalling, "SourceTooLarge")
    assert "announces 1001 bytes, and the operator's settings allow 1000 bytes" in error.message


def test_a_file_that_never_ends_is_cut_off_at_the_limit(web: RealHttpServer) -> None:
    def endless(request: Request) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        while not web.closing.is_set():
            request.wfile.write(b"ffff\r\n" + bytes(0xFFFF) + b"\r\n")

    error = failure(handle(web, "/file", endless), max_bytes=10_000_000)
    assert (type(error), error.reason) == (Stalling, "SourceTooLarge")


@pytest.mark.parametrize("promised", [0, 5, 100_000, 5_000_000])
@pytest.mark.parametrize("surplus", [1, 9000, 400_000])
@pytest.mark.parametrize("how", ["closes", "closes silently", "stays", "a moment later"])
def test_a_file_that_is_larger_than_it_said(web: RealHttpServer, promised: int, surplus: int, how: str) -> None:
    def more(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(promised))
        if how == "closes":
            request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(b"x" * promised)
        if how == "a moment later":
            time.sleep(0.05)
        request.wfile.write(b"y" * surplus)
        if how == "stays":
            web.closing.wait(10)
        request.close_connection = True

    error = failure(handle(web, "/file", more))
    assert (type(error), error.reason) == (Stalling, "SourceTooLarge")
    assert f"announced {promised} bytes and sends more" in error.message


@pytest.mark.parametrize("size", [0, 5, 400_000])
def test_a_server_that_does_not_close_is_not_waited_for(web: RealHttpServer, size: int) -> None:
    def staying(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(size))
        request.end_headers()
        request.wfile.write(b"x" * size)
        web.closing.wait(10)

    started = time.monotonic()
    assert read(handle(web, "/file", staying)) == b"x" * size
    assert time.monotonic() - started < 3


def test_silence_is_given_up(web: RealHttpServer) -> None:
    def silent(request: Request) -> None:
        web.closing.wait(10)

    error = failure(handle(web, "/file", silent), read_timeout=0.2)
    assert (type(error), error.reason) == (Transient, "SourceUnreachable")
    assert "it stopped answering" in error.message


def trickle(web: RealHttpServer) -> str:
    def handler(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        while not web.closing.wait(0.05):
            request.wfile.write(b"x")

    return handle(web, "/trickle", handler)


def test_a_trickle_is_given_up_at_the_deadline(web: RealHttpServer) -> None:
    started = time.monotonic()
    error = failure(trickle(web), total_timeout=0.5)
    assert time.monotonic() - started < 3
    assert (type(error), error.reason) == (Transient, "SourceUnreachable")
    assert "of 1000 bytes in" in error.message


def test_reading_stops_soon_after_it_is_cancelled_even_in_a_trickle(web: RealHttpServer) -> None:
    started = time.monotonic()
    source = open_http(trickle(web), limits=LIMITS, cancelled=lambda: time.monotonic() - started > 0.3)
    with source, pytest.raises(Transient) as caught:
        list(source.chunks)
    assert caught.value.reason == "Cancelled"
    assert time.monotonic() - started < 2


def test_nobody_there() -> None:
    error = failure(f"http://127.0.0.1:{free_port()}/file")
    assert (type(error), error.reason) == (Transient, "SourceUnreachable")
    assert "the connection was refused" in error.message


def test_a_name_that_does_not_resolve() -> None:
    error = failure("http://no-such-host.invalid/file")
    assert (type(error), error.reason) == (Transient, "SourceUnreachable")
    assert "its name cannot be resolved" in error.message


def test_reading_holds_little(web: RealHttpServer) -> None:
    url = web.serve("/file", bytes(50_000_000))
    tracemalloc.start()
    try:
        with open_http(url, limits=LIMITS) as source:
            assert sum(map(len, source.chunks)) == 50_000_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


# Resuming


class RangedFile:
    """A file on a server that can resume, and that cuts connections."""

    def __init__(self, web: RealHttpServer, data: bytes, *, cuts: list[int], **headers: str) -> None:
        self.data = data
        self.cuts = cuts
        """For each of the next answers, the bytes of the body after which the connection breaks; others live on."""
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.ranges: list[str] = []
        self.understands_ranges = True
        self.announces = True
        self.content_range = "bytes {first}-{last}/{size}"
        self.url = handle(web, "/ranged", self._answer)

    def _answer(self, request: Request) -> None:
        wanted = request.headers.get("Range")
        self.ranges.append(wanted or "")
        first = 0
        if wanted and self.understands_ranges and request.headers["If-Range"] in self.headers.values():
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            request.send_response(206)
            size = len(self.data)
            request.send_header("Content-Range", self.content_range.format(first=first, last=size - 1, size=size))
        else:
            request.send_response(200)
        for name, value in self.headers.items():
            request.send_header(name, value)
        body = self.data[first:]
        if self.announces:
            request.send_header("Content-Length", str(len(body)))
        else:
            request.send_header("Transfer-Encoding", "chunked")
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:1000], body[1000:]) if part)
            body += b"0\r\n\r\n"
        request.end_headers()
        cut = self.cuts.pop(0) if self.cuts else None
        request.wfile.write(body[:cut])
        if cut is not None:
            request.close_connection = True


QUICK = (0.01, 0.01, 0.01)
DATA = bytes(range(251)) * 10_000


@pytest.mark.parametrize("announces", [True, False])
@pytest.mark.parametrize("validator", [{"ETag": '"one"'}, {"Last_Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}])
def test_broken_connections_are_resumed(web: RealHttpServer, validator: dict[str, str], *, announces: bool) -> None:
    file = RangedFile(web, DATA, cuts=[1_000_000, 0, 500_000], **validator)
    file.announces = announces
    assert read(file.url, resume_delays=QUICK) == DATA
    assert len(file.ranges) == 4
    assert web.requests[1][1]["If-Range"] == next(iter(validator.values()))
    if announces:
        assert file.ranges == ["", "bytes=1000000-", "bytes=1000000-", "bytes=1500000-"]


def test_a_server_that_cannot_resume_but_names_the_same_file_is_read_from_the_beginning(web: RealHttpServer) -> None:
    file = RangedFile(web, DATA, cuts=[1_000_000, 400_000], ETag='"one"')
    file.understands_ranges = False
    assert read(file.url, resume_delays=QUICK) == DATA
    assert file.ranges == ["", "bytes=1000000-", "bytes=1000000-"]


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}, {"ETag": 'W/"weak"', "Last_Modified": "x"}])
def test_without_a_name_for_the_file_s_state_nothing_is_resumed(web: RealHttpServer, headers: dict[str, str]) -> None:
    file = RangedFile(web, DATA, cuts=[1_000_000], **headers)
    error = failure(file.url, resume_delays=QUICK)
    assert (type(error), error.reason) == (Transient, "SourceTruncated")
    assert len(file.ranges) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"headers": {"ETag": '"two"'}},
        {"data": DATA + b"!"},
        {"content_range": "bytes 0-{last}/{size}"},
        {"content_range": "bytes {first}-{last}/7"},
        {"content_range": "bytes {first}-{last}/*"},
        {"content_range": "nonsense"},
        {"understands_ranges": False, "headers": {}},
        {"understands_ranges": False, "headers": {"ETag": '"two"'}},
    ],
)
def test_two_files_are_never_mixed(web: RealHttpServer, change: dict[str, Any]) -> None:
    file = RangedFile(web, DATA, cuts=[1_000_000], ETag='"one"')
    parts: list[bytes] = []
    with open_http(file.url, limits=SourceLimits(guard=ON_LOOPBACK, resume_delays=QUICK)) as source:
        vars(file).update(change)
        with pytest.raises(Transient) as caught:
            parts.extend(source.chunks)
    assert caught.value.reason == "SourceTruncated"
    assert "what is there now is another file" in caught.value.message
    assert b"".join(parts) == DATA[:1_000_000]
    assert len(file.ranges) == 2


def test_a_file_that_has_become_shorter(web: RealHttpServer) -> None:
    file = RangedFile(web, DATA, cuts=[1_000_000], ETag='"one"')
    with open_http(file.url, limits=SourceLimits(guard=ON_LOOPBACK, resume_delays=QUICK)) as source:
        web.serve("/ranged", b"", status=416)
        with pytest.raises(Transient, match="another file"):
            list(source.chunks)


def test_attempts_to_resume_are_bounded(web: RealHttpServer) -> None:
    file = RangedFile(web, DATA, cuts=[100] * 50, ETag='"one"')
    error = failure(file.url, resume_delays=QUICK)
    assert (type(error), error.reason) == (Transient, "SourceTruncated")
    assert error.message == f"{file.url} ended after 400 of {len(DATA)} bytes; it will be tried again"
    assert len(file.ranges) == 4


def test_a_server_that_is_away_for_a_moment_is_asked_again(web: RealHttpServer) -> None:
    file = RangedFile(web, DATA, cuts=[100], ETag='"one"')
    answer = web.handlers["/ranged"]
    with open_http(file.url, limits=SourceLimits(guard=ON_LOOPBACK, resume_delays=QUICK)) as source:

        def busy(request: Request) -> None:
            web.handlers["/ranged"] = answer
            request.send_error(503)

        web.handlers["/ranged"] = busy
        assert b"".join(source.chunks) == DATA


def test_a_file_that_is_gone_when_it_is_resumed(web: RealHttpServer) -> None:
    file = RangedFile(web, DATA, cuts=[100], ETag='"one"')
    with open_http(file.url, limits=SourceLimits(guard=ON_LOOPBACK, resume_delays=QUICK)) as source:
        del web.handlers["/ranged"]
        with pytest.raises(Stalling) as caught:
            list(source.chunks)
    assert caught.value.reason == "SourceNotFound"


def test_no_attempt_to_resume_after_the_deadline(web: RealHttpServer) -> None:
    file = RangedFile(web, DATA, cuts=[100] * 50, ETag='"one"')
    started = time.monotonic()
    error = failure(file.url, resume_delays=(60.0,), total_timeout=0.3)
    assert time.monotonic() - started < 3
    assert (type(error), error.reason) == (Transient, "SourceUnreachable")
    assert "only 100 of" in error.message


def test_waiting_to_resume_ends_when_it_is_cancelled(web: RealHttpServer) -> None:
    file = RangedFile(web, DATA, cuts=[100], ETag='"one"')
    started = time.monotonic()
    limits = SourceLimits(guard=ON_LOOPBACK, resume_delays=(60.0,))
    source = open_http(file.url, limits=limits, cancelled=lambda: time.monotonic() - started > 0.3)
    with source, pytest.raises(Transient) as caught:
        list(source.chunks)
    assert caught.value.reason == "Cancelled"
    assert time.monotonic() - started < 3


def test_a_rest_that_never_ends_is_cut_off(web: RealHttpServer) -> None:
    file = RangedFile(web, DATA, cuts=[100], ETag='"one"')

    def endless(request: Request) -> None:
        request.send_response(206)
        request.send_header("Content-Range", f"bytes 100-{len(DATA) - 1}/{len(DATA)}")
        request.end_headers()
        while not web.closing.is_set():
            request.wfile.write(bytes(0xFFFF))

    with open_http(file.url, limits=SourceLimits(guard=ON_LOOPBACK, resume_delays=QUICK)) as source:
        web.handlers["/ranged"] = endless
        with pytest.raises(Stalling) as caught:
            list(source.chunks)
    assert caught.value.reason == "SourceTooLarge"


# Credentials and authorities


BEARER = HttpAccess("Bearer hunter2", plain_http=True)


def test_credentials_are_sent_to_the_origin_of_the_url(web: RealHttpServer) -> None:
    web.serve("/file", b"content")
    with open_http(web.redirect("/start", "/file"), limits=LIMITS, access=BEARER) as source:
        assert b"".join(source.chunks) == b"content"
    assert [headers["Authorization"] for _, headers in web.requests] == ["Bearer hunter2"] * 2
    assert "hunter2" not in repr(BEARER)


def test_credentials_never_cross_to_another_origin_and_do_not_come_back(web: RealHttpServer) -> None:
    other = RealHttpServer()
    try:
        web.serve("/file", b"content")
        other.redirect("/away", web.url + "/file")
        with open_http(web.redirect("/start", other.url + "/away"), limits=LIMITS, access=BEARER) as source:
            assert b"".join(source.chunks) == b"content"
        assert [("Authorization" in headers) for _, headers in web.requests] == [True, False]
        assert [("Authorization" in headers) for _, headers in other.requests] == [False]
    finally:
        other.stop()


def test_credentials_are_sent_again_when_a_transfer_is_resumed(web: RealHttpServer) -> None:
    file = RangedFile(web, DATA, cuts=[100], ETag='"one"')
    limits = SourceLimits(guard=ON_LOOPBACK, resume_delays=QUICK)
    with open_http(file.url, limits=limits, access=BEARER) as source:
        assert b"".join(source.chunks) == DATA
    assert [headers["Authorization"] for _, headers in web.requests] == ["Bearer hunter2"] * 2


def test_credentials_are_not_sent_without_tls(web: RealHttpServer) -> None:
    with pytest.raises(Stalling) as caught:
        open_http(web.serve("/file", b""), limits=LIMITS, access=HttpAccess("Bearer hunter2"))
    assert caught.value.reason == "UrlInvalid"
    assert "without TLS" in caught.value.message
    assert web.requests == []


@pytest.mark.parametrize("value", ["", "Bearer a\r\nX: y", "Bearer a\n", " Bearer a", "Bearer \u00e4", "Bearer \x00"])
def test_credentials_that_cannot_be_a_header(value: str) -> None:
    with pytest.raises(Stalling) as caught:
        HttpAccess(value)
    assert caught.value.reason == "CredentialsMalformed"
    assert not value or value not in caught.value.message


def test_an_authority_of_the_source_s_own(tls: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    url, ca = tls
    resolving(monkeypatch, files=[["127.0.0.1"], ["127.0.0.1"]])
    url = url.replace("127.0.0.1", "files.test")
    access = HttpAccess(ca_pem=Path(ca).read_text())
    with open_http(url, limits=LIMITS, access=access) as source:
        assert b"".join(source.chunks) == b"content"
    assert "its TLS certificate is not trusted: self-signed certificate" in failure(url).message


@pytest.mark.parametrize("pem", ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "\u00e4"])
def test_authorities_that_cannot_be_read(pem: str) -> None:
    with pytest.raises(Stalling) as caught:
        open_http("https://files.test/", access=HttpAccess(ca_pem=pem))
    assert caught.value.reason == "CaInvalid"


# Proxies


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ConnectProxy]:
    proxy = ConnectProxy("user:secret")
    proxy.names["files.test"] = "127.0.0.1"
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv(name, proxy.url)
    for name in ("http_proxy", "https_proxy", "no_proxy", "NO_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    # Of which requests reads the small one only.
    monkeypatch.setenv("http_proxy", proxy.url)
    yield proxy
    proxy.stop()


def test_http_goes_through_the_proxy_that_the_environment_names(web: RealHttpServer, proxy: ConnectProxy) -> None:
    url = web.serve("/file", b"content").replace("127.0.0.1", "files.test")
    with open_http(url) as source:  # the proxy is on loopback: it is the operator's choice
        assert b"".join(source.chunks) == b"content"
    assert proxy.asked == [f"GET {url}"]


def test_https_goes_through_the_proxy_and_tls_is_verified_behind_it(tls: tuple[str, str], proxy: ConnectProxy) -> None:
    url = tls[0].replace("127.0.0.1", "files.test")
    access = HttpAccess("Bearer hunter2", Path(tls[1]).read_text())
    with open_http(url, access=access) as source:
        assert b"".join(source.chunks) == b"content"
    assert proxy.asked == ["CONNECT " + url.removeprefix("https://").removesuffix("/file")]
    with pytest.raises(Transient, match="certificate is not trusted"):
        open_http(url)


def test_hosts_that_need_no_proxy(web: RealHttpServer, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "files.test,127.0.0.1")
    resolving(monkeypatch, files=[["127.0.0.1"], ["127.0.0.1"]])
    url = web.serve("/file", b"content").replace("127.0.0.1", "files.test")
    assert read(url) == b"content"
    assert proxy.asked == []
    with pytest.raises(Stalling) as caught:
        open_http(url)
    assert caught.value.reason == "AddressNotAllowed"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "https://localhost/",
        "http://169.254.169.254/latest",
        "https://[fd00:ec2::254]/",
        "http://metadata.google.internal/",
        "http://2130706433/",
    ],
)
def test_a_proxy_is_not_asked_for_refused_addresses(proxy: ConnectProxy, url: str) -> None:
    with pytest.raises(Stalling) as caught:
        open_http(url)
    assert caught.value.reason == "AddressNotAllowed"
    assert proxy.asked == []


def test_a_proxy_that_refuses_us(tls: tuple[str, str], proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("secret", "wrong"))
    with pytest.raises(Transient) as caught:
        open_http("https://files.test/")
    assert "the proxy on the way to it failed" in caught.value.message
    assert "wrong" not in caught.value.message


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/",
        "http://[::ffff:10.0.0.1]/",
        "http://xn--exmple-cua.org/",
        "http://example.org./",
        "http://123.example.org/",
        "http://example.org/file",
        "https://example.org:8443/a/b?c=d#e",
        "http://[2001:db8::1]:8080/file",
        "HTTP://EXAMPLE.org/file",
        "http://127.0.0.1/",
    ],
)
def test_good_urls(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "scheme"),
        ("example.org/file", "scheme"),
        ("ftp://example.org/file", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("http:///file", "host"),
        ("http://user:hunter2@example.org/file", "credentials"),
        ("http://hunter2@example.org/file", "credentials"),
        ("http://@example.org/", "credentials"),
        ("http://example.org:hunter2/", "parsed"),
        ("http://example.org:99999/", "parsed"),
        ("http://example.org\\@evil.org/", "backslash"),
        ("http://example.org/a b", "space"),
        ("http://example.org/\r\nX: y", "space"),
        ("http://exam\u200bple.org/", "control"),
        ("http://[::1/", "parsed"),
        ("http://ex\u00e4mple.org/", "xn--"),
        ("http://127.0.0.1\u3002example.org/", "parsed"),
        ("http://\u2460\u2461.0.0.1/", "parsed"),
        ("http://[fe80::1%25eth0]/", "made out"),
        ("http://example%2eorg/", "made out"),
        ("http://2130706433/", "write 127.0.0.1"),
        ("http://0x7f.1/", "write 127.0.0.1"),
        ("http://0177.0.0.1/", "write 127.0.0.1"),
        ("http://127.1/", "write 127.0.0.1"),
        ("http://10.0.0.1./", "write 10.0.0.1"),
        ("http://010.0.0.1/", "write 8.0.0.1"),
        ("http://3232235777/", "write 192.168.1.1"),
    ],
)
def test_bad_urls(url: str, text: str) -> None:
    with pytest.raises(Stalling) as caught:
        check_url(url)
    assert caught.value.reason == "UrlInvalid"
    assert text in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://files.example.org/x", True),
        ("http://FILES.example.org:81/x", True),
        ("http://example.org.evil.org/x", False),
        ("http://example.org/x", False),
        ("http://127.0.0.1/x", False),
        ("http://files.example.org.:80/x", False),
    ],
)
def test_only_allowed_hosts(url: str, *, allowed: bool) -> None:
    if allowed:
        check_url(url, ("*.example.org",))
        return
    with pytest.raises(Stalling, match="not among the hosts"):
        check_url(url, ("*.example.org",))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "https://127.0.0.1:8443/x",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://x.localhost/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0177.1/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://169.254.169.254/latest/meta-data/",
        "http://0xa9fea9fe/",
        "http://metadata.google.internal/",
        "http://[fd00:ec2::254]/",
        "http://0/",
        "http://0.0.0.0/",
        "http://255.255.255.255/",
    ],
)
def test_urls_of_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(Stalling) as caught:
        check_url(url, guard=AddressPolicy())
    assert caught.value.reason == "AddressNotAllowed"
    assert "OUTRIDER_ALLOWED_SOURCE_ADDRESSES" in caught.value.message


# Where the connection goes


def test_what_is_at_home_is_not_fetched(web: RealHttpServer) -> None:
    url = web.serve("/file", b"secret")
    for each in (url, url.replace("127.0.0.1", "localhost"), url.replace("127.0.0.1", "[::ffff:127.0.0.1]")):
        with pytest.raises(Stalling) as caught:
            open_http(each)
        assert caught.value.reason == "AddressNotAllowed"
    assert web.requests == []


def resolving(monkeypatch: pytest.MonkeyPatch, **names: list[list[str]]) -> list[str]:
    """Let `NAME.test` resolve to one list of addresses after the other; return the names that were asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **more: Any) -> Any:
        name = str(host).removesuffix(".test")
        if name not in names:
            return real(host, port, *args, **more)
        asked.append(name)
        addresses = names[name].pop(0)
        return [found for address in addresses for found in real(address, port, *args, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_that_leads_home_is_refused(web: RealHttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolving(monkeypatch, evil=[["127.0.0.1", "::1"]])
    with pytest.raises(Stalling) as caught:
        open_http(f"http://evil.test:{web.port}/file")
    assert caught.value.reason == "AddressNotAllowed"
    assert "evil.test is at 127.0.0.1, which is a loopback address" in caught.value.message
    assert (web.requests, asked) == ([], ["evil"])


def test_a_name_is_resolved_once_and_the_connection_goes_where_that_said(
    web: RealHttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = web.serve("/file", b"content").replace("127.0.0.1", "files.test")
    asked = resolving(monkeypatch, files=[["127.0.0.1"], ["169.254.169.254"]])
    assert read(url) == b"content"
    assert asked == ["files"]
    assert web.requests[0][1]["Host"] == f"files.test:{web.port}"


def test_refused_addresses_of_a_name_are_left_out(web: RealHttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = web.serve("/file", b"content").replace("127.0.0.1", "files.test")
    resolving(monkeypatch, files=[["::1", "169.254.169.254", "127.0.0.1"]])
    assert read(url) == b"content"


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/", "http://[::1]:1/", "http://evil.test/", "http://0x7f.1/"]
)
def test_a_redirect_to_a_refused_address(web: RealHttpServer, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, evil=[["169.254.169.254"]])
    error = failure(web.redirect("/start", target), guard=AddressPolicy((ip_network("127.0.0.1/32"),)))
    assert (type(error), error.reason) == (Stalling, "AddressNotAllowed" if "0x" not in target else "UrlInvalid")


def test_tls_verifies_the_name_and_not_the_address(tls: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    url, ca = tls
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", ca)
    resolving(monkeypatch, files=[["127.0.0.1"]], other=[["127.0.0.1"]])
    assert read(url.replace("127.0.0.1", "files.test")) == b"content"
    error = failure(url.replace("127.0.0.1", "other.test"))
    assert "its TLS certificate is not trusted: Hostname mismatch" in error.message
    assert "its TLS certificate is not trusted: IP address mismatch" in failure(url).message


def test_nothing_listens_at_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, files=[["127.0.0.1", "127.0.0.2"]])
    error = failure(f"http://files.test:{free_port()}/file")
    assert "the connection was refused" in error.message


@given(st.text() | st.from_regex(r"https?://[^/]*(/.*)?", fullmatch=True))
def test_garbage_as_url_never_escapes_as_a_foreign_exception(url: str) -> None:
    shown_url(url)
    with contextlib.suppress(Stalling):
        check_url(url, ("example.org",), AddressPolicy())


def test_what_is_shown_of_a_url_holds_no_secret() -> None:
    assert shown_url("https://user:hunter2@example.org:1/a?token=hunter2#hunter2") == "https://example.org:1/a?…"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5),
        (" 5 ", 5),
        ("0", 0),
        ("99999999999999999999", 3600),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2215 07:28:00 GMT", 3600),
        ("Wed, 99 Oct 2215 07:28:00 GMT", None),
        ("²", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": value}) == seconds


# Bytes that were read already


def test_bytes() -> None:
    with from_bytes("configmap/scripts:hook.sh", b"#!/bin/sh") as source:
        assert (source.name, source.declared_size) == ("configmap/scripts:hook.sh", 9)
        assert b"".join(source.chunks) == b"#!/bin/sh"
    with pytest.raises(Stalling) as caught:
        from_bytes("configmap/scripts:hook.sh", b"123", limits=SourceLimits(max_bytes=2))
    assert caught.value.reason == "SourceTooLarge"
