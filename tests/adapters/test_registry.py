"""The registry adapter against a real registry."""

import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from adapters.realservers import (
    BCRYPT,
    PASSWORD,
    USERNAME,
    ConnectProxy,
    FlakyProxy,
    RealHttpServer,
    RealRegistry,
    TokenService,
    free_port,
    running_registry,
    sha256_of,
)
from adapters.realtools import REGISTRY_KINDS, CraneRegistry, RealRegistry28, running_registry_of_kind
from outrider.adapters import blobs
from outrider.adapters.registry import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    OciRegistry,
    RegistrySettings,
)
from outrider.adapters.transport import AddressPolicy
from outrider.api.errors import OutriderError, Stalling, Transient

EMPTY_INDEX = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}).encode()


@pytest.fixture(scope="module", params=REGISTRY_KINDS)
def shared_registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """One registry of each kind that runs here."""
    with running_registry_of_kind(request.param, tmp_path_factory.mktemp("registry")) as registry:
        yield registry


def pieces(size: int, seed: int = 1) -> Iterator[bytes]:
    """Yield `size` bytes that do not compress, in pieces of odd sizes."""
    source = random.Random(seed)  # noqa: S311
    while size:
        piece = source.randbytes(min(size, source.randint(1, 300_000)))
        size -= len(piece)
        yield piece


def read(client: OciRegistry, repository: str, digest: str, size: int | None = None) -> bytes:
    blob = client.open_blob(repository, digest, size=size)
    assert blob is not None
    with blob:
        return b"".join(blob)


# Blobs


@pytest.mark.parametrize("size", [0, 1, 65_536, 5_000_001])
def test_a_stream_goes_in_and_comes_out(client: OciRegistry, repository: str, size: int) -> None:
    data = b"".join(pieces(size))
    descriptor = client.push_stream(repository, pieces(size))
    assert descriptor == Descriptor("sha256:" + sha256_of(data), size)
    assert client.blob_size(repository, descriptor.digest) == size
    assert read(client, repository, descriptor.digest, size) == data


def test_empty_pieces_do_not_end_a_stream(client: OciRegistry, repository: str) -> None:
    descriptor = client.push_stream(repository, iter((b"", b"a", b"", b"b", b"")))
    assert read(client, repository, descriptor.digest) == b"ab"


def test_what_is_not_there_is_none(client: OciRegistry, repository: str) -> None:
    digest = "sha256:" + "0" * 64
    assert client.blob_size(repository, digest) is None
    assert client.open_blob(repository, digest) is None
    assert client.get_manifest(repository, digest) is None
    assert client.get_manifest(repository, "1.0.0") is None
    assert client.tag(repository, digest, "1.0.0") is False
    assert client.delete_manifest(repository, digest) is False
    assert client.delete_blob(repository, digest) is False


def test_an_objection_before_the_commit_leaves_nothing(registry: RealRegistry) -> None:
    def object_to(descriptor: Descriptor) -> None:
        assert descriptor.size == 3_000_000
        raise Stalling("DigestMismatch", "no")

    with registry.client() as client, pytest.raises(Stalling, match="no"):
        client.push_stream("a/b", pieces(3_000_000), before_commit=object_to)
    assert registry.blobs() == []
    assert registry.upload_bytes() == 0


def test_a_source_that_fails_leaves_nothing_and_its_error_comes_through(registry: RealRegistry) -> None:
    def failing() -> Iterator[bytes]:
        yield from pieces(3_000_000)
        raise Transient("SourceTruncated", "ended")

    with registry.client() as client:
        with pytest.raises(Transient, match="ended") as caught:
            client.push_stream("a/b", failing())
        assert caught.value.reason == "SourceTruncated"
        assert registry.blobs() == []
        assert registry.upload_bytes() == 0
        client.push_stream("a/b", pieces(1000))  # the client can go on being used


def test_deleting(client: OciRegistry, repository: str, shared_registry: RealRegistry) -> None:
    blob = client.push_bytes(repository, b"x")
    assert client.delete_blob(repository, blob.digest) is True
    assert client.blob_size(repository, blob.digest) is None
    digest = client.push_manifest(repository, EMPTY_INDEX, INDEX_TYPE, "1.0.0")
    assert client.delete_manifest(repository, digest) is True
    assert client.get_manifest(repository, digest) is None
    if not isinstance(shared_registry, CraneRegistry):  # which keeps a copy per tag; see delete_tag
        assert client.get_manifest(repository, "1.0.0") is None


def damaged(how: str, data: bytes) -> bytes:
    match how:
        case "bit flipped":
            return data[:500_000] + bytes([data[500_000] ^ 1]) + data[500_001:]
        case "cut short":
            return data[:-1]
        case "longer":
            return data + b"!"
        case _:
            return b""


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("how", ["bit flipped", "cut short", "longer", "empty"])
def test_a_blob_tampered_with_on_the_registry_s_disk_is_noticed(
    registry: RealRegistry, how: str, *, sized: bool
) -> None:
    with registry.client() as client:
        blob = client.push_stream("a/b", pieces(1_000_000))
        file = registry.blob_file(blob.digest)
        file.write_bytes(damaged(how, file.read_bytes()))
        with pytest.raises(Stalling) as caught:
            read(client, "a/b", blob.digest, blob.size if sized else None)
    assert caught.value.reason == "BlobCorrupted"
    assert blob.digest in caught.value.message


def test_a_download_survives_broken_connections(registry: RealRegistry) -> None:
    with registry.client() as client:
        blob = client.push_stream("a/b", pieces(8_000_000))
    proxy = FlakyProxy(registry.port)
    try:
        proxy.cut_after = [2_000_000, 100, 3_000_000]
        settings = RegistrySettings(proxy.host, plain_http=True, resume_delays=(0.01, 0.01, 0.01))
        with OciRegistry(settings) as client:
            assert sha256_of(read(client, "a/b", blob.digest, blob.size)) == blob.digest.removeprefix("sha256:")
        assert proxy.connections == 4
    finally:
        proxy.stop()


def test_a_download_gives_up_after_a_bounded_number_of_resumptions(registry: RealRegistry) -> None:
    with registry.client() as client:
        blob = client.push_stream("a/b", pieces(8_000_000))
    proxy = FlakyProxy(registry.port)
    try:
        proxy.cut_after = [1_000_000] * 10
        settings = RegistrySettings(proxy.host, plain_http=True, resume_delays=(0.01, 0.01))
        with OciRegistry(settings) as client, pytest.raises(Transient) as caught:
            read(client, "a/b", blob.digest)
        assert caught.value.reason == "RegistryUnavailable"
        assert proxy.connections == 3
    finally:
        proxy.stop()


# Resuming an upload


@pytest.fixture
def flaky(registry: RealRegistry) -> Iterator[FlakyProxy]:
    proxy = FlakyProxy(registry.port)
    yield proxy
    proxy.stop()


def behind(proxy: FlakyProxy, attempts: int = 3, **settings: Any) -> OciRegistry:
    return OciRegistry(RegistrySettings(proxy.host, plain_http=True, resume_delays=(0.1,) * attempts, **settings))


def counted(data: Iterator[bytes], count: list[int]) -> Iterator[bytes]:
    for piece in data:
        count.append(len(piece))
        yield piece


@pytest.mark.parametrize("size", [3_000_000, 60_000_000])
def test_an_upload_survives_broken_connections(registry: RealRegistry, flaky: FlakyProxy, size: int) -> None:
    flaky.cut_uploads_after = [size // 3, size // 3]
    count: list[int] = []
    with behind(flaky) as client:
        blob = client.push_stream("a/b", counted(pieces(size), count))
    assert blob.size == sum(count) == size
    assert registry.blob_file(blob.digest).read_bytes() == b"".join(pieces(size))
    assert flaky.connections == 3
    assert registry.upload_bytes() == 0


def test_transfers_survive_broken_connections_with_every_registry(
    shared_registry: RealRegistry, repository: str
) -> None:
    size = 7_000_000  # so that those which cannot resume can be sent all of it again
    proxy = FlakyProxy(shared_registry.port)
    try:
        proxy.cut_uploads_after = [3_000_000]
        with behind(proxy) as client:
            blob = client.push_stream(repository, pieces(size))
        proxy.cut_after = [3_000_000]
        with behind(proxy) as client:
            assert read(client, repository, blob.digest, size) == b"".join(pieces(size))
    finally:
        proxy.stop()


def test_a_long_upload_survives_where_the_registry_can_resume(shared_registry: RealRegistry, repository: str) -> None:
    proxy = FlakyProxy(shared_registry.port)
    try:
        proxy.cut_uploads_after = [30_000_000]
        with behind(proxy) as client:
            if isinstance(shared_registry, (CraneRegistry, RealRegistry28)):
                # The one has no status of uploads; the other refuses it for an upload that broke off.
                with pytest.raises(Transient) as caught:
                    client.push_stream(repository, pieces(60_000_000))
                assert caught.value.reason == "RegistryUnavailable"
            else:
                assert client.push_stream(repository, pieces(60_000_000)).size == 60_000_000
    finally:
        proxy.stop()


def test_attempts_to_resume_an_upload_are_bounded(registry: RealRegistry, flaky: FlakyProxy) -> None:
    flaky.cut_uploads_after = [1_000_000] * 20
    with behind(flaky) as client, pytest.raises(Transient) as caught:
        client.push_stream("a/b", pieces(60_000_000))
    assert caught.value.reason == "RegistryUnavailable"
    assert flaky.connections < 10
    assert registry.blobs() == []


def test_what_is_no_longer_here_cannot_be_sent_again(registry: RealRegistry, flaky: FlakyProxy) -> None:
    """The registry has lost the upload, in the middle of a stream that is too long to be kept."""
    flaky.cut_uploads_after = [30_000_000]
    lost = threading.Event()

    def losing() -> Iterator[bytes]:
        for piece in pieces(60_000_000):
            yield piece
            if registry.upload_bytes() > 20_000_000 and not lost.is_set():
                lost.set()
                shutil.rmtree(registry.data / "docker/registry/v2/repositories/a/b/_uploads")

    with behind(flaky) as client, pytest.raises(Transient) as caught:
        client.push_stream("a/b", losing())
    assert caught.value.reason == "RegistryUnavailable"
    assert lost.is_set()
    assert registry.blobs() == []


@pytest.mark.parametrize("sizes", [[], [1], [3, 0, 5], [64] * 3, [63, 2], [100], [200, 1], [7] * 50])
def test_the_window_keeps_the_end_of_a_stream(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "WINDOW", 64)
    monkeypatch.setattr(blobs, "PIECE", 10)
    source = random.Random(1)  # noqa: S311
    parts = [source.randbytes(size) for size in sizes]
    whole = b"".join(parts)
    window = blobs.UploadWindow(parts)
    assert b"".join(window.pieces(0)) == whole
    assert window.start == max(0, len(whole) - 64)
    for offset in range(window.start, len(whole) + 1):
        assert b"".join(window.pieces(offset)) == whole[offset:]


def test_a_source_that_fails_is_not_taken_for_a_broken_connection(registry: RealRegistry) -> None:
    def failing() -> Iterator[bytes]:
        yield b"x"
        raise Transient("RegistryUnavailable", "another one")

    with registry.client(resume_delays=(60.0,)) as client, pytest.raises(Transient, match="another one"):
        client.push_stream("a/b", failing())


class UploadServer:
    """A registry's uploads, to break at will; kept in memory and appended to, as the real ones do."""

    def __init__(self, web: RealHttpServer) -> None:
        self.web = web
        self.data = bytearray()
        self.answers: list[tuple[int, dict[str, str]]] = []
        """To the next PATCHes, after all was read; then 202."""
        self.status = 204
        self.range: str | None = None
        web.handlers["POST /v2/a/b/blobs/uploads/"] = self._open
        web.handlers["PATCH /upload"] = self._patch
        web.handlers["GET /upload"] = self._tell
        web.handlers["PUT /upload"] = lambda request: drain(request, 201)
        web.handlers["DELETE /upload"] = lambda request: drain(request, 204)

    def _open(self, request: Any) -> None:
        self.data.clear()
        drain(request, 202, Location="/upload")

    def _patch(self, request: Any) -> None:
        while size := int(request.rfile.readline(), 16):
            self.data += request.rfile.read(size)
            request.rfile.readline()
        request.rfile.readline()
        status, headers = self.answers.pop(0) if self.answers else (202, {})
        request.send_response(status)
        for name, value in {"Content-Length": "0", "Location": "/upload", **headers}.items():
            request.send_header(name, value)
        request.end_headers()

    def _tell(self, request: Any) -> None:
        told = self.range or f"0-{max(0, len(self.data) - 1)}"
        drain(request, self.status, Location="/upload", Range=told)

    def asked(self) -> list[str]:
        return [line for line, _ in self.web.requests]


def quick(web: RealHttpServer) -> OciRegistry:
    return OciRegistry(RegistrySettings(f"127.0.0.1:{web.port}", plain_http=True, resume_delays=(0.01, 0.01)))


@pytest.mark.parametrize("status", [500, 502, 503, 416, 401, 404])
def test_a_bad_answer_to_an_upload_is_asked_about(web: RealHttpServer, status: int) -> None:
    server = UploadServer(web)
    server.answers = [(status, {})]
    with quick(web) as client:
        blob = client.push_stream("a/b", pieces(1_000_000))
    assert bytes(server.data) == b"".join(pieces(1_000_000))
    assert blob.size == 1_000_000


@pytest.mark.parametrize("told", ["0-0", "0-99999999999", "nonsense", "5-7", "bytes 0-1"])
def test_a_registry_that_cannot_say_how_far_it_got_gets_all_of_it_again(web: RealHttpServer, told: str) -> None:
    server = UploadServer(web)
    server.answers = [(503, {})]
    server.range = told
    with quick(web) as client:
        client.push_stream("a/b", pieces(1_000_000))
    assert bytes(server.data) == b"".join(pieces(1_000_000))
    assert server.asked().count("/v2/a/b/blobs/uploads/") == 2


def test_a_registry_without_upload_status_gets_all_of_it_again(web: RealHttpServer) -> None:
    server = UploadServer(web)
    server.answers = [(503, {})]
    server.status = 400
    with quick(web) as client:
        client.push_stream("a/b", pieces(1_000_000))
    assert bytes(server.data) == b"".join(pieces(1_000_000))


@pytest.mark.parametrize(("status", "reason"), [(503, "RegistryUnavailable"), (429, "RegistryThrottled")])
def test_who_asks_to_wait_long_is_not_waited_for_here(web: RealHttpServer, status: int, reason: str) -> None:
    server = UploadServer(web)
    server.answers = [(status, {"Retry-After": "120"})]
    with quick(web) as client, pytest.raises(Transient) as caught:
        client.push_stream("a/b", pieces(1_000_000))
    assert (caught.value.reason, caught.value.retry_after) == (reason, 120)


def test_a_commit_whose_answer_is_lost_is_looked_for(web: RealHttpServer) -> None:
    UploadServer(web)
    data = b"".join(pieces(1000))

    def commit(request: Any) -> None:
        web.serve(f"HEAD /v2/a/b/blobs/sha256:{sha256_of(data)}", data)
        request.close_connection = True

    web.handlers["PUT /upload"] = commit
    with quick(web) as client:
        assert client.push_stream("a/b", pieces(1000)) == Descriptor("sha256:" + sha256_of(data), 1000)


def test_a_commit_that_failed_is_tried_again(web: RealHttpServer) -> None:
    UploadServer(web)

    def commit(request: Any) -> None:
        web.handlers["PUT /upload"] = lambda again: drain(again, 201)
        drain(request, 503)

    web.handlers["PUT /upload"] = commit
    with quick(web) as client:
        assert client.push_stream("a/b", pieces(1000)).size == 1000


# Manifests


def test_a_manifest_is_kept_byte_for_byte(client: OciRegistry, repository: str) -> None:
    content = json.dumps(json.loads(EMPTY_INDEX), indent=7).encode()
    digest = client.push_manifest(repository, content, INDEX_TYPE)
    assert digest == "sha256:" + sha256_of(content)
    assert client.push_manifest(repository, content, INDEX_TYPE, "_tag") == digest
    for reference in (digest, "_tag"):
        document = client.get_manifest(repository, reference)
        assert document is not None
        assert (document.content, document.media_type, document.digest) == (content, INDEX_TYPE, digest)
    assert client.tag(repository, digest, "1.0.0") is True
    assert client.get_manifest(repository, "1.0.0") == client.get_manifest(repository, digest)


def test_a_manifest_that_the_registry_finds_wrong_is_a_stop(
    client: OciRegistry, repository: str, shared_registry: RealRegistry
) -> None:
    if isinstance(shared_registry, CraneRegistry):
        pytest.skip("takes anything for a manifest")
    with pytest.raises(Stalling) as caught:
        client.push_manifest(repository, b"not json", MANIFEST_TYPE, "1.0.0")
    assert caught.value.reason == "ManifestInvalid"
    assert "MANIFEST_INVALID" in caught.value.message


def test_a_manifest_that_names_a_missing_blob_can_be_stored_later(
    client: OciRegistry, repository: str, shared_registry: RealRegistry
) -> None:
    if isinstance(shared_registry, CraneRegistry):
        pytest.skip("does not look whether it has what a manifest names")
    missing = {"mediaType": "application/octet-stream", "digest": "sha256:" + "1" * 64, "size": 1}
    content = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": missing, "layers": [missing]}
    with pytest.raises(Transient) as caught:
        client.push_manifest(repository, json.dumps(content).encode(), MANIFEST_TYPE, "1.0.0")
    assert "has lost something" in caught.value.message


def test_a_manifest_tampered_with_on_the_registry_s_disk_is_noticed(registry: RealRegistry) -> None:
    with registry.client() as client:
        digest = client.push_manifest("a/b", EMPTY_INDEX, INDEX_TYPE, "1.0.0")
        registry.blob_file(digest).write_bytes(EMPTY_INDEX.replace(b"2", b"2 "))
        with pytest.raises(OutriderError) as caught:
            client.get_manifest("a/b", digest)
        # distribution looks at the digest as well, so that either it or we refuse.
        assert caught.value.reason in {"ManifestInvalid", "RegistryUnavailable"}


@pytest.mark.parametrize("asked_by_digest", [True, False])
def test_a_registry_that_serves_another_manifest_is_not_believed(web: RealHttpServer, *, asked_by_digest: bool) -> None:
    digest = "sha256:" + sha256_of(EMPTY_INDEX)
    reference = digest if asked_by_digest else "1.0.0"
    web.serve(f"/v2/a/b/manifests/{reference}", b"{}", Docker_Content_Digest=digest, Content_Type=INDEX_TYPE)
    with fake(web) as client, pytest.raises(Stalling) as caught:
        client.get_manifest("a/b", reference)
    assert caught.value.reason == "ManifestInvalid"
    assert digest in caught.value.message


def test_a_manifest_of_more_than_4_mib_is_not_read_to_its_end(web: RealHttpServer) -> None:
    web.serve("/v2/a/b/manifests/1.0.0", b" " * (4 * 1024 * 1024 + 1))
    with fake(web) as client, pytest.raises(Stalling, match="exceeds 4 MiB"):
        client.get_manifest("a/b", "1.0.0")


# Names


@pytest.mark.parametrize("name", ["", "A/b", "a//b", "/a", "a/", "a/../b", "a b", "a:b", "a@b", "a" * 256, "a?b", "é"])
def test_names_that_could_become_another_url_are_refused(client: OciRegistry, name: str) -> None:
    with pytest.raises(Stalling, match="repository name"):
        client.blob_size(name, "sha256:" + "0" * 64)


@pytest.mark.parametrize("reference", ["", "-a", "a/b", "a b", "sha256:abc", "a" * 129, "../x", "a?b"])
def test_references_are_tags_or_digests(client: OciRegistry, repository: str, reference: str) -> None:
    with pytest.raises(Stalling, match="neither a tag nor a sha256 digest"):
        client.get_manifest(repository, reference)


@pytest.mark.parametrize("host", ["", "https://x", "a/b", "user@host", "a b", "a:b:c", "a:123456", "-a"])
def test_hosts_have_no_scheme_path_or_credentials(host: str) -> None:
    with pytest.raises(Stalling) as caught:
        OciRegistry(RegistrySettings(host))
    assert caught.value.reason == "RegistryInvalid"


def test_a_dotted_first_segment_is_no_host(client: OciRegistry) -> None:
    digest = "sha256:" + "0" * 64
    assert client.blob_url("my.team/agent", digest) == f"http://{client.host}/v2/my.team/agent/blobs/{digest}"
    assert client.reference("my.team/agent", digest) == f"{client.host}/my.team/agent@{digest}"
    blob = client.push_bytes("my.team/agent", b"x")
    assert client.blob_size("my.team/agent", blob.digest) == 1


# Failures


def fake(web: RealHttpServer, **settings: Any) -> OciRegistry:
    return OciRegistry(RegistrySettings(f"127.0.0.1:{web.port}", plain_http=True, resume_delays=(), **settings))


def test_a_registry_that_is_down_is_named_with_what_was_tried() -> None:
    port = free_port()
    with (
        OciRegistry(RegistrySettings(f"127.0.0.1:{port}", plain_http=True)) as client,
        pytest.raises(Transient) as caught,
    ):
        client.push_stream("team/agent", pieces(10))
    assert caught.value.reason == "RegistryUnavailable"
    assert caught.value.message == (
        f"registry 127.0.0.1:{port} is not available while uploading to team/agent: the connection was refused"
    )


def test_a_name_that_does_not_resolve() -> None:
    with OciRegistry(RegistrySettings("registry.invalid")) as client, pytest.raises(Transient) as caught:
        client.check()
    assert "its name cannot be resolved" in caught.value.message


def test_plain_http_where_tls_was_expected(shared_registry: RealRegistry) -> None:
    with OciRegistry(RegistrySettings(shared_registry.host)) as client, pytest.raises(Transient) as caught:
        client.check()
    assert "TLS could not be established" in caught.value.message


def test_a_registry_that_hangs_is_given_up_after_the_read_timeout(registry: RealRegistry) -> None:
    with registry.client(read_timeout=0.3) as client:
        registry.freeze()
        started = time.monotonic()
        with pytest.raises(Transient, match="it stopped answering"):
            client.check()
        assert time.monotonic() - started < 3
        registry.thaw()
        client.check()


def test_a_registry_that_hangs_in_the_middle_of_an_upload_is_given_up(registry: RealRegistry) -> None:
    def freezing() -> Iterator[bytes]:
        yield from pieces(1_000_000)
        registry.freeze()
        for _ in range(200):  # more than the sockets' buffers take
            yield bytes(1_000_000)

    with registry.client(read_timeout=0.5, connect_timeout=0.5) as client:
        with pytest.raises(Transient) as caught:
            client.push_stream("a/b", freezing())
        assert caught.value.reason == "RegistryUnavailable"
        registry.thaw()
        client.push_stream("a/b", pieces(100))


@pytest.mark.parametrize("seed", range(6))
def test_killed_in_the_middle_of_a_push_leaves_nothing_visible_and_can_be_repeated(
    registry: RealRegistry, seed: int
) -> None:
    moment = random.Random(seed).randint(0, 20_000_000)  # noqa: S311

    def killing() -> Iterator[bytes]:
        sent = 0
        for piece in pieces(20_000_000):
            if sent <= moment < sent + len(piece):
                threading.Thread(target=registry.kill).start()
            sent += len(piece)
            yield piece
        time.sleep(0.2)

    with registry.client() as client:
        with pytest.raises(Transient) as caught:
            client.push_stream("a/b", killing())
        assert caught.value.reason == "RegistryUnavailable"
    while registry._process is not None:
        time.sleep(0.01)
    assert registry.blobs() == []
    assert registry.tags("a/b") == []
    registry.start()
    with registry.client() as client:
        blob = client.push_stream("a/b", pieces(20_000_000))
        assert sha256_of(read(client, "a/b", blob.digest)) == sha256_of(b"".join(pieces(20_000_000)))


def test_throttling_says_how_long(web: RealHttpServer) -> None:
    web.serve("/v2/", b"", status=429, Retry_After="17")
    with fake(web) as client, pytest.raises(Transient) as caught:
        client.check()
    assert caught.value.reason == "RegistryThrottled"
    assert caught.value.retry_after == 17


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (500, Transient, "RegistryUnavailable"),
        (503, Transient, "RegistryUnavailable"),
        (401, Stalling, "RegistryDenied"),
        (403, Stalling, "RegistryDenied"),
        (400, Stalling, "RegistryRefused"),
    ],
)
def test_statuses_say_what_has_to_happen_next(
    web: RealHttpServer, status: int, kind: type[OutriderError], reason: str
) -> None:
    body = json.dumps({"errors": [{"code": "DENIED", "message": "not\nyou"}]}).encode()
    web.serve("/v2/", body, status=status)
    with fake(web) as client, pytest.raises(kind) as caught:
        client.check()
    assert caught.value.reason == reason
    assert "(DENIED: not you)" in caught.value.message


def uploads(web: RealHttpServer, location: str = "/upload", status: int = 202) -> None:
    """Let a fake registry open uploads."""
    web.serve("POST /v2/a/b/blobs/uploads/", b"", status=status, Location=location)


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (503, Transient, "RegistryUnavailable"),
        (404, Transient, "RegistryUnavailable"),
        (401, Transient, "RegistryUnavailable"),
        (416, Transient, "RegistryUnavailable"),
        (429, Transient, "RegistryThrottled"),
        (413, Stalling, "RegistryRefused"),
        (403, Stalling, "RegistryDenied"),
    ],
)
def test_an_answer_in_the_middle_of_an_upload(
    web: RealHttpServer, status: int, kind: type[OutriderError], reason: str
) -> None:
    def refuse(request: Any) -> None:
        request.rfile.read(100_000)
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.end_headers()
        request.close_connection = True

    uploads(web)
    web.handlers["PATCH /upload"] = refuse
    with fake(web) as client, pytest.raises(OutriderError) as caught:
        client.push_stream("a/b", pieces(5_000_000))
    # A server that closes while it is being sent to is heard, or is not: then the connection was broken.
    assert (type(caught.value), caught.value.reason) in {(kind, reason), (Transient, "RegistryUnavailable")}


def drain(request: Any, status: int, **headers: str) -> None:
    """Read a request's body to its end and answer."""
    if request.headers.get("Transfer-Encoding") == "chunked":
        while size := int(request.rfile.readline(), 16):
            request.rfile.read(size + 2)
        request.rfile.readline()
    request.send_response(status)
    for name, value in {"Content-Length": "0", **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()


def test_a_registry_that_stored_other_bytes_than_were_sent_is_not_believed(web: RealHttpServer) -> None:
    uploads(web)
    web.handlers["PATCH /upload"] = lambda request: drain(request, 202, Location="/upload")
    digest = "sha256:" + "0" * 64
    web.handlers["PUT /upload"] = lambda request: drain(request, 201, Docker_Content_Digest=digest)
    with fake(web) as client, pytest.raises(Transient, match="under another digest"):
        client.push_stream("a/b", pieces(1000))


def test_a_registry_that_received_other_bytes_makes_the_upload_start_again(web: RealHttpServer) -> None:
    uploads(web)
    web.handlers["PATCH /upload"] = lambda request: drain(request, 202, Location="/upload")
    body = json.dumps({"errors": [{"code": "DIGEST_INVALID", "message": "provided digest did not match"}]}).encode()
    web.serve("PUT /upload", body, status=400)
    with fake(web) as client, pytest.raises(Transient) as caught:
        client.push_stream("a/b", pieces(1000))
    assert "DIGEST_INVALID" in caught.value.message


@pytest.mark.parametrize("location", ["http://storage.invalid/upload", "ftp://x/y"])
def test_an_upload_is_not_sent_to_another_host_without_tls(web: RealHttpServer, location: str) -> None:
    uploads(web, location)
    with fake(web) as client, pytest.raises(Transient, match="another host without TLS"):
        client.push_stream("a/b", pieces(1000))


def test_an_upload_without_a_location(web: RealHttpServer) -> None:
    web.serve("POST /v2/a/b/blobs/uploads/", b"", status=202)
    with fake(web) as client, pytest.raises(Transient, match="has no Location"):
        client.push_stream("a/b", pieces(1000))


def test_a_location_with_the_wrong_scheme_of_the_same_registry_is_mended(web: RealHttpServer) -> None:
    uploads(web, f"https://127.0.0.1:{web.port}/upload")
    web.handlers["PATCH /upload"] = lambda request: drain(request, 202, Location="/upload")
    web.handlers["PUT /upload"] = lambda request: drain(request, 201)
    with fake(web) as client:
        assert client.push_stream("a/b", pieces(1000)).size == 1000


def test_a_registry_that_cannot_resume_is_read_from_the_beginning(web: RealHttpServer) -> None:
    data = b"".join(pieces(3_000_000))
    digest = "sha256:" + sha256_of(data)
    path = f"/v2/a/b/blobs/{digest}"

    def cut(request: Any) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[:1_234_567])
        request.close_connection = True
        web.serve(path, data)

    web.handlers[path] = cut
    settings = RegistrySettings(f"127.0.0.1:{web.port}", plain_http=True, resume_delays=(0.01,))
    with OciRegistry(settings) as client:
        assert read(client, "a/b", digest, len(data)) == data
    assert web.requests[1][1]["Range"] == "bytes=1234567-"


@pytest.fixture
def tls_registry(tmp_path: Path) -> Iterator[RealRegistry]:
    """A registry behind TLS, with a certificate that its own key vouches for in <folder>/cert.pem."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    tls = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    with running_registry(tmp_path / "registry", tls=tls) as registry:
        yield registry


def test_tls_with_an_authority_of_one_s_own(tls_registry: RealRegistry, tmp_path: Path) -> None:
    with OciRegistry(RegistrySettings(tls_registry.host, ca_file=str(tmp_path / "cert.pem"))) as client:
        blob = client.push_stream("a/b", pieces(3_000_000))
        assert len(read(client, "a/b", blob.digest)) == 3_000_000


def test_a_certificate_that_nobody_vouches_for(tls_registry: RealRegistry) -> None:
    with OciRegistry(RegistrySettings(tls_registry.host)) as client, pytest.raises(Transient) as caught:
        client.push_stream("a/b", pieces(1000))
    assert "its TLS certificate is not trusted: self-signed certificate" in caught.value.message


def test_a_file_of_authorities_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Stalling) as caught:
        OciRegistry(RegistrySettings("registry", ca_file=str(tmp_path / "nothing")))
    assert caught.value.reason == "RegistryInvalid"


def test_a_registry_that_redirects_in_circles(web: RealHttpServer) -> None:
    web.redirect("/v2/", "/v2/")
    with fake(web) as client, pytest.raises(Transient, match="redirects in circles"):
        client.check()


def test_a_registry_without_deletion_says_how_to_switch_it_on(tmp_path: Path) -> None:
    with running_registry(tmp_path / "registry", deletable=False) as registry, registry.client() as client:
        blob = client.push_bytes("a/b", b"x")
        with pytest.raises(Stalling, match=r"storage\.delete\.enabled") as caught:
            client.delete_blob("a/b", blob.digest)
    assert caught.value.reason == "DeleteUnsupported"


# Credentials


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenService]:
    service = TokenService(tmp_path / "tokens")
    yield service
    service.server.stop()


@pytest.fixture
def token_registry(tmp_path: Path, tokens: TokenService) -> Iterator[RealRegistry]:
    with running_registry(tmp_path / "registry", tokens.registry_auth) as registry:
        yield registry


def test_tokens_are_fetched_per_repository_and_used_again(token_registry: RealRegistry, tokens: TokenService) -> None:
    with token_registry.client(username=USERNAME, password=PASSWORD) as client:
        for repository in ("team/a", "team/b"):
            blob = client.push_stream(repository, pieces(2_000_000))
            assert client.blob_size(repository, blob.digest) == 2_000_000
            assert len(read(client, repository, blob.digest)) == 2_000_000
    assert {scope.split(":")[1] for scope in tokens.issued} == {"team/a", "team/b"}
    assert len(tokens.issued) <= 4


def test_an_expired_token_is_replaced(token_registry: RealRegistry, tokens: TokenService) -> None:
    tokens.lifetime = -58
    with token_registry.client(username=USERNAME, password=PASSWORD) as client:
        blob = client.push_stream("team/a", pieces(1000))
        before = len(tokens.issued)
        time.sleep(3)
        assert client.blob_size("team/a", blob.digest) == 1000
        assert len(tokens.issued) > before


def test_a_token_that_expires_during_an_upload_is_replaced_for_the_commit(
    token_registry: RealRegistry, tokens: TokenService
) -> None:
    tokens.lifetime = -58

    def slow() -> Iterator[bytes]:
        yield b"a" * 100_000
        time.sleep(3)
        yield b"b"

    with token_registry.client(username=USERNAME, password=PASSWORD) as client:
        blob = client.push_stream("team/a", slow())
        assert client.blob_size("team/a", blob.digest) == 100_001


def test_wrong_credentials_are_a_stop_and_are_not_echoed(token_registry: RealRegistry) -> None:
    with token_registry.client(username=USERNAME, password="wrong-secret") as client:
        with pytest.raises(Stalling) as caught:
            client.push_stream("team/a", pieces(10))
        assert caught.value.reason == "RegistryDenied"
        assert "wrong-secret" not in caught.value.message + repr(client.settings)


def test_without_credentials_access_is_denied(token_registry: RealRegistry) -> None:
    with token_registry.client() as client, pytest.raises(Stalling) as caught:
        client.blob_size("team/a", "sha256:" + "0" * 64)
    assert caught.value.reason == "RegistryDenied"


def test_a_token_service_that_is_down_makes_the_registry_unavailable(
    token_registry: RealRegistry, tokens: TokenService
) -> None:
    tokens.server.serve("/token", b"", status=503, Retry_After="9")
    with token_registry.client(username=USERNAME, password=PASSWORD) as client, pytest.raises(Transient) as caught:
        client.check()
    assert (caught.value.reason, caught.value.retry_after) == ("RegistryUnavailable", 9)


def test_basic_authentication(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(f"{USERNAME}:{BCRYPT}\n")
    auth = {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}
    with running_registry(tmp_path / "registry", auth) as registry:
        with registry.client(username=USERNAME, password=PASSWORD) as client:
            client.check()
            assert client.push_stream("a/b", pieces(100)).size == 100
        with registry.client(username=USERNAME, password="wrong") as client, pytest.raises(Stalling) as caught:
            client.check()
        assert caught.value.reason == "RegistryDenied"


def test_an_identity_token_is_turned_into_tokens(token_registry: RealRegistry, tokens: TokenService) -> None:
    tokens.lifetime = -58
    with token_registry.client(identity_token="identity") as client:
        blob = client.push_stream("team/a", pieces(1000))
        time.sleep(3)
        assert client.blob_size("team/a", blob.digest) == 1000
    assert tokens.identity_token.startswith("identity++")  # each answer brought the next one
    with token_registry.client(identity_token="hunter2") as client, pytest.raises(Stalling) as caught:
        client.check()
    assert caught.value.reason == "RegistryDenied"
    assert "hunter2" not in caught.value.message + repr(client.settings)


def docker_config(folder: Path, **auths: Any) -> str:
    file = folder / "config.json"
    file.write_text(json.dumps({"auths": auths}))
    return str(file)


def test_credentials_of_a_docker_config(token_registry: RealRegistry, tmp_path: Path) -> None:
    good = {"username": USERNAME, "password": PASSWORD}
    bad = {"username": USERNAME, "password": "wrong"}
    host = token_registry.host
    config = docker_config(tmp_path, **{f"{host}/team": good, host: bad, "other.example.com": bad})
    with token_registry.client(docker_config=config) as client:
        assert client.push_stream("team/a", pieces(1000)).size == 1000
        with pytest.raises(Stalling, match="refused the credentials"):
            client.push_stream("others/a", pieces(1000))


def test_a_docker_config_is_read_anew_for_each_client(token_registry: RealRegistry, tmp_path: Path) -> None:
    config = docker_config(tmp_path)
    with token_registry.client(docker_config=config) as client, pytest.raises(Stalling):
        client.push_stream("team/a", pieces(1000))
    docker_config(tmp_path, **{token_registry.host: {"identitytoken": "identity"}})
    with token_registry.client(docker_config=config) as client:
        assert client.push_stream("team/a", pieces(1000)).size == 1000


def test_a_docker_config_that_cannot_be_read(token_registry: RealRegistry, tmp_path: Path) -> None:
    with pytest.raises(Stalling) as caught:
        token_registry.client(docker_config=str(tmp_path / "nothing"))
    assert caught.value.reason == "RegistryInvalid"
    (tmp_path / "config.json").write_text("hunter2")
    with token_registry.client(docker_config=str(tmp_path / "config.json")) as client:
        with pytest.raises(Stalling) as caught:
            client.check()
        assert caught.value.reason == "CredentialsMalformed"
        assert "hunter2" not in caught.value.message


def test_a_token_that_expires_during_a_download_is_replaced(token_registry: RealRegistry, tokens: TokenService) -> None:
    proxy = FlakyProxy(token_registry.port)
    try:
        with token_registry.client(username=USERNAME, password=PASSWORD) as client:
            blob = client.push_stream("team/a", pieces(3_000_000))
        tokens.lifetime = -58
        proxy.cut_after = [1_000_000]
        settings = RegistrySettings(
            proxy.host, plain_http=True, username=USERNAME, password=PASSWORD, resume_delays=(3.0,)
        )
        with OciRegistry(settings) as client:
            assert sha256_of(read(client, "team/a", blob.digest)) == blob.digest.removeprefix("sha256:")
    finally:
        proxy.stop()


def test_a_token_that_expires_before_a_broken_upload_goes_on_is_replaced(
    token_registry: RealRegistry, tokens: TokenService
) -> None:
    tokens.lifetime = -58
    proxy = FlakyProxy(token_registry.port)
    try:
        proxy.cut_uploads_after = [1_000_000]
        settings = RegistrySettings(
            proxy.host, plain_http=True, username=USERNAME, password=PASSWORD, resume_delays=(3.0,)
        )
        with OciRegistry(settings) as client:
            assert client.push_stream("team/a", pieces(3_000_000)).size == 3_000_000
    finally:
        proxy.stop()


@pytest.mark.parametrize("realm", ["http://[::1", "https://x:99999/", "", "ftp://x/", "//127.0.0.1/x"])
def test_a_realm_that_is_no_url(web: RealHttpServer, realm: str) -> None:
    web.serve("/v2/", b"", status=401, WWW_Authenticate=f'Bearer realm="{realm}",service="s"')
    with fake(web, username=USERNAME, password=PASSWORD) as client, pytest.raises(Stalling) as caught:
        client.check()
    assert caught.value.reason == "RegistryDenied"


@pytest.mark.parametrize("location", ["http://[::1", "https://x:99999/", "ftp://x/"])
def test_a_redirect_to_what_is_no_url(web: RealHttpServer, location: str) -> None:
    web.redirect("/v2/", location)
    with fake(web) as client, pytest.raises(Transient):
        client.check()


def test_a_registry_behind_a_proxy(shared_registry: RealRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = ConnectProxy("user:secret")
    proxy.names["registry.test"] = "127.0.0.1"
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    settings = RegistrySettings(f"registry.test:{shared_registry.port}", plain_http=True, guard=AddressPolicy())
    try:
        with OciRegistry(settings) as client:
            blob = client.push_stream("proxied/a", pieces(3_000_000))
            assert len(read(client, "proxied/a", blob.digest)) == 3_000_000
        assert proxy.asked
        assert all("registry.test" in line for line in proxy.asked)
    finally:
        proxy.stop()


GUARDED = AddressPolicy((ip_network("127.0.0.1/32"),))


@pytest.mark.parametrize("place", ["https://169.254.169.254/token", "https://[fd00:ec2::254]/", "https://[::1]/"])
def test_a_guarded_client_asks_no_token_service_at_home(web: RealHttpServer, place: str) -> None:
    web.serve("/v2/", b"", status=401, WWW_Authenticate=f'Bearer realm="{place}",service="s"')
    with fake(web, username=USERNAME, password=PASSWORD, guard=GUARDED) as client, pytest.raises(Stalling) as caught:
        client.check()
    assert caught.value.reason == "AddressNotAllowed"
    assert PASSWORD not in caught.value.message


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest", "http://[::1]:1/", "http://2852039166/"])
def test_a_guarded_client_follows_no_redirect_home(web: RealHttpServer, target: str) -> None:
    web.redirect("/v2/", target)
    with fake(web, guard=GUARDED) as client, pytest.raises(Stalling) as caught:
        client.check()
    assert caught.value.reason == "AddressNotAllowed"


@pytest.mark.parametrize("where", ["redirect", "realm"])
def test_a_client_for_some_hosts_goes_nowhere_else(web: RealHttpServer, where: str) -> None:
    elsewhere = f"http://localhost:{web.port}/elsewhere"
    if where == "redirect":
        web.redirect("/v2/", elsewhere)
    else:
        web.serve("/v2/", b"", status=401, WWW_Authenticate='Bearer realm="https://localhost:1/t",service="s"')
    with (
        fake(web, username=USERNAME, password=PASSWORD, allowed_hosts=("127.0.0.*",)) as client,
        pytest.raises(Stalling, match="localhost is not among the hosts") as caught,
    ):
        client.check()
    assert caught.value.reason == "UrlInvalid"
    assert [path for path, _ in web.requests] == ["/v2/"]


def test_a_guarded_client_sends_no_upload_home(web: RealHttpServer) -> None:
    uploads(web, "https://169.254.169.254/upload")
    with fake(web, guard=GUARDED) as client, pytest.raises(Stalling) as caught:
        client.push_stream("a/b", pieces(1000))
    assert caught.value.reason == "AddressNotAllowed"


def test_a_guarded_client_does_not_reach_a_registry_at_home(web: RealHttpServer) -> None:
    with fake(web, guard=AddressPolicy()) as client, pytest.raises(Stalling) as caught:
        client.check()
    assert caught.value.reason == "AddressNotAllowed"
    assert web.requests == []


def test_credentials_are_not_sent_to_a_foreign_realm_without_tls(web: RealHttpServer) -> None:
    web.serve("/v2/", b"", status=401, WWW_Authenticate='Bearer realm="http://127.0.0.2:1/token",service="s"')
    with fake(web, username=USERNAME, password=PASSWORD) as client, pytest.raises(Stalling) as caught:
        client.check()
    assert caught.value.reason == "RegistryDenied"
    assert "token service" in caught.value.message


def test_no_authorization_follows_a_redirect_to_another_host(web: RealHttpServer, tmp_path: Path) -> None:
    storage = RealHttpServer()
    try:
        data = b"the blob"
        digest = "sha256:" + sha256_of(data)
        path = f"/v2/a/b/blobs/{digest}"
        storage.serve("/elsewhere", data)
        web.serve(path, b"", status=401, WWW_Authenticate='Basic realm="x"')
        redirecting = RealHttpServer.redirect

        def once(request: Any) -> None:
            redirecting(web, path, storage.url + "/elsewhere", 307)
            challenge(request)

        web.redirect("/unused", "/")
        challenge = web.handlers[path]
        web.handlers[path] = once
        with fake(web, username=USERNAME, password=PASSWORD) as client:
            assert read(client, "a/b", digest) == data
        assert [("Authorization" in headers) for _, headers in web.requests] == [False, True]
        assert [("Authorization" in headers) for _, headers in storage.requests] == [False]
    finally:
        storage.stop()


def test_no_netrc_no_cookies(web: RealHttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", os.fspath(netrc))
    web.serve("/v2/", b"{}", Set_Cookie="a=b")
    with fake(web) as client:
        client.check()
        client.check()
    assert all("Authorization" not in headers and "Cookie" not in headers for _, headers in web.requests)
