"""From a real web server into a real registry and back."""

import contextlib
import hashlib
import http.server
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.realservers import LIMITS, RealHttpServer, RealRegistry, sha256_of
from adapters.signing import MakeSigner
from outrider.adapters.ingest import (
    ArtifactFacts,
    build_artifact_manifest,
    build_index,
    find_stored,
    ingest,
    parse_artifact_manifest,
    parse_index,
    read_back,
    store_artifact_manifest,
    store_index,
)
from outrider.adapters.registry import Descriptor, ManifestDocument, OciRegistry
from outrider.adapters.sources import from_bytes, open_http
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.trust.detached import decode_signature
from outrider.trust.digest import digest_of
from outrider.trust.evidence import Evidence
from outrider.trust.keys import parse_public_key
from outrider.trust.verify import verify_artifact

FILE = random.Random(7).randbytes(3_000_000)  # noqa: S311
SHA256 = sha256_of(FILE)
FACTS = ArtifactFacts("agent", "1.4.0", "linux/amd64", "node-agent", "c2lnbmF0dXJl")


def test_a_file_goes_from_a_url_into_the_registry_and_is_verified_from_there(
    client: OciRegistry, repository: str, web: RealHttpServer, make_signer: MakeSigner
) -> None:
    signer = make_signer()
    with open_http(web.serve("/agent", FILE), limits=LIMITS) as source:
        blob = ingest(client, repository, source, SHA256)
    assert blob == Descriptor("sha256:" + SHA256, len(FILE))
    facts = ArtifactFacts("agent", "1.4.0", "linux/amd64", "node-agent", signer.sign(FILE))
    manifest = store_artifact_manifest(client, repository, blob, facts)
    stored = read_back(client, repository, manifest.digest)
    assert stored is not None
    assert (stored.sha256, stored.size, stored.facts) == (SHA256, len(FILE), facts)
    proof = verify_artifact(
        component="agent",
        namespace="fleet",
        version="1.4.0",
        platform="linux/amd64",
        size=stored.size,
        expected_sha256=SHA256,
        actual_sha256=stored.sha256,
        evidence=[Evidence("Detached", decode_signature(stored.facts.signature))],
        keys=[parse_public_key(signer.public.read_bytes(), "secret/release:release.pub")],
    )
    assert proof.key_origin == "secret/release:release.pub"


def test_what_is_stored_already_is_not_fetched_again(client: OciRegistry, repository: str, web: RealHttpServer) -> None:
    with from_bytes("x", FILE) as source:
        first = ingest(client, repository, source, SHA256)
    with open_http(web.serve("/agent", FILE), limits=LIMITS) as source:
        source.chunks = iter((b"not this",))
        assert ingest(client, repository, source, SHA256) == first


def test_whether_a_file_is_stored_can_be_asked_without_its_source(client: OciRegistry, repository: str) -> None:
    assert find_stored(client, repository, SHA256) is None
    blob = client.push_bytes(repository, FILE)
    assert find_stored(client, repository, SHA256) == blob
    with pytest.raises(Stalling):
        find_stored(client, repository, "x")


def test_another_hash_than_expected_stores_nothing_and_says_what_to_correct(
    registry: RealRegistry, web: RealHttpServer
) -> None:
    url = web.serve("/agent", FILE[:-1], Content_Type="text/html")
    with registry.client() as client, open_http(url, limits=LIMITS) as source, pytest.raises(Stalling) as caught:
        ingest(client, "fleet/agent", source, SHA256, field="spec.artifacts[1].sha256")
    assert caught.value.reason == "DigestMismatch"
    assert caught.value.message == (
        f"the file from {url} ({len(FILE) - 1} bytes) hashes to {sha256_of(FILE[:-1])}, but {SHA256} was expected; "
        "the server sent a web page (text/html): a login or error page?; correct spec.artifacts[1].sha256 or "
        "the file at the source"
    )
    assert registry.blobs() == []
    assert registry.upload_bytes() == 0


def test_a_source_that_ends_early_stores_nothing(registry: RealRegistry, web: RealHttpServer) -> None:
    def truncated(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(FILE)))
        request.end_headers()
        request.wfile.write(FILE[:1_000_000])
        request.close_connection = True

    web.handlers["/agent"] = truncated
    with registry.client() as client:
        with open_http(web.url + "/agent", limits=LIMITS) as source, pytest.raises(Transient) as caught:
            ingest(client, "fleet/agent", source, SHA256)
        assert caught.value.reason == "SourceTruncated"
        assert registry.blobs() == []
        assert registry.upload_bytes() == 0
        with open_http(web.serve("/agent", FILE), limits=LIMITS) as source:
            assert ingest(client, "fleet/agent", source, SHA256).size == len(FILE)


@pytest.mark.parametrize("seed", range(4))
def test_a_registry_killed_in_the_middle_shows_nothing_half_and_takes_the_file_afterwards(
    registry: RealRegistry, web: RealHttpServer, seed: int
) -> None:
    moment = random.Random(seed).uniform(0.05, 0.95)  # noqa: S311

    def killing(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(FILE)))
        request.end_headers()
        cut = int(len(FILE) * moment)
        request.wfile.write(FILE[:cut])
        time.sleep(0.1)
        registry.kill()
        request.wfile.write(FILE[cut:])

    web.handlers["/agent"] = killing
    with (
        registry.client() as client,
        open_http(web.url + "/agent", limits=LIMITS) as source,
        pytest.raises(Transient) as caught,
    ):
        ingest(client, "fleet/agent", source, SHA256)
    assert caught.value.reason == "RegistryUnavailable"
    assert registry.blobs() == []
    registry.start()
    with registry.client() as client, open_http(web.serve("/agent", FILE), limits=LIMITS) as source:
        assert client.get_manifest("fleet/agent", "1.4.0") is None
        assert ingest(client, "fleet/agent", source, SHA256).size == len(FILE)
        assert sha256_of(registry.blob_file("sha256:" + SHA256).read_bytes()) == SHA256


def test_a_cancelled_ingest_stores_nothing(registry: RealRegistry, web: RealHttpServer) -> None:
    stop = threading.Event()

    def slow(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(FILE)))
        request.end_headers()
        request.wfile.write(FILE[:1_000_000])
        stop.set()
        request.wfile.write(FILE[1_000_000:])

    web.handlers["/agent"] = slow
    with (
        registry.client() as client,
        open_http(web.url + "/agent", limits=LIMITS, cancelled=stop.is_set) as source,
        pytest.raises(Transient) as caught,
    ):
        ingest(client, "fleet/agent", source, SHA256)
    assert caught.value.reason == "Cancelled"
    assert registry.blobs() == []


# Manifests


def test_tags_are_versions_only_once_published(registry: RealRegistry) -> None:
    with registry.client() as client:
        blob = client.push_bytes("fleet/agent", FILE)
        manifest = store_artifact_manifest(client, "fleet/agent", blob, FACTS)
        draft = store_index(client, "fleet/agent", "agent", "1.4.0", {"linux/amd64": manifest}, publish=False)
        assert registry.tags("fleet/agent") == ["_1.4.0.linux.amd64", "_index.1.4.0"]
        published = store_index(client, "fleet/agent", "agent", "1.4.0", {"linux/amd64": manifest}, publish=True)
        assert published == draft
        assert registry.tags("fleet/agent") == ["1.4.0", "_1.4.0.linux.amd64", "_index.1.4.0"]
        document = client.get_manifest("fleet/agent", "1.4.0")
        assert document is not None
        assert document.digest == draft.digest
        assert parse_index(document) == {"linux/amd64": manifest}


def test_doing_it_twice_gives_the_same(client: OciRegistry, repository: str) -> None:
    blob = client.push_bytes(repository, FILE)
    assert store_artifact_manifest(client, repository, blob, FACTS) == store_artifact_manifest(
        client, repository, blob, FACTS
    )


def test_the_manifest_is_what_oci_says() -> None:
    blob = Descriptor("sha256:" + "1" * 64, 5)
    content = json.loads(build_artifact_manifest(blob, FACTS))
    assert content == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.outrider.component.v1",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "size": 2,
        },
        "layers": [
            {
                "mediaType": "application/octet-stream",
                "digest": blob.digest,
                "size": 5,
                "annotations": {"org.opencontainers.image.title": "node-agent"},
            }
        ],
        "annotations": {
            "dev.outrider.component": "agent",
            "dev.outrider.version": "1.4.0",
            "dev.outrider.platform": "linux/amd64",
            "dev.outrider.signature": "c2lnbmF0dXJl",
        },
    }


def test_the_index_does_not_depend_on_the_order() -> None:
    one, two = Descriptor("sha256:" + "1" * 64, 5), Descriptor("sha256:" + "2" * 64, 6)
    forth = build_index("agent", "1.0.0", {"linux/amd64": one, "linux/arm64": two})
    assert forth == build_index("agent", "1.0.0", {"linux/arm64": two, "linux/amd64": one})
    document = ManifestDocument(forth, "", digest_of(forth))
    assert parse_index(document) == {"linux/amd64": one, "linux/arm64": two}


def test_what_is_built_can_be_parsed() -> None:
    blob = Descriptor("sha256:" + "1" * 64, 5)
    content = build_artifact_manifest(blob, FACTS)
    manifest = parse_artifact_manifest(ManifestDocument(content, "", digest_of(content)))
    assert (manifest.digest, manifest.blob, manifest.facts) == (digest_of(content), blob, FACTS)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "a\0", "a\n", "-a", "a" * 129, "é"])
def test_only_plain_file_names(client: OciRegistry, repository: str, name: str) -> None:
    facts = ArtifactFacts("agent", "1.4.0", "linux/amd64", name, "c2ln")
    blob = Descriptor("sha256:" + "1" * 64, 5)
    with pytest.raises(Stalling) as caught:
        store_artifact_manifest(client, repository, blob, facts)
    assert caught.value.reason == "FileNameInvalid"
    content = build_artifact_manifest(blob, facts)
    with pytest.raises(Stalling) as caught:
        parse_artifact_manifest(ManifestDocument(content, "", digest_of(content)))
    assert caught.value.reason == "ManifestInvalid"


def test_a_version_that_is_no_tag(client: OciRegistry, repository: str) -> None:
    blob = client.push_bytes(repository, b"x")
    with pytest.raises(Stalling) as caught:
        store_artifact_manifest(client, repository, blob, ArtifactFacts("a", "1.0.0+b", "linux/amd64", "a", "c2ln"))
    assert caught.value.reason == "VersionInvalid"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.data())
def test_a_manifest_with_anything_wrong_in_it_never_escapes_as_a_foreign_exception(data: st.DataObject) -> None:
    blob = Descriptor("sha256:" + "1" * 64, 5)
    for build, parse in (
        (build_artifact_manifest(blob, FACTS), parse_artifact_manifest),
        (build_index("agent", "1.0.0", {"linux/amd64": blob}), parse_index),
    ):
        content = json.loads(build)
        node = content
        while True:  # walk to a random place and put something else there
            key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
                node = node[key]
                continue
            node[key] = data.draw(JSON)
            break
        for raw in (json.dumps(content).encode(), data.draw(st.binary(max_size=50))):
            with contextlib.suppress(Stalling):
                parse(ManifestDocument(raw, "", digest_of(raw)))


def test_deeply_nested_json_is_invalid_and_no_crash() -> None:
    content = b"[" * 1_000_000
    with pytest.raises(Stalling, match="is not JSON"):
        parse_index(ManifestDocument(content, "", digest_of(content)))


# Reading back


def test_reading_back_what_is_gone_is_none(registry: RealRegistry) -> None:
    with registry.client() as client:
        blob = client.push_bytes("fleet/agent", FILE)
        manifest = store_artifact_manifest(client, "fleet/agent", blob, FACTS)
        client.delete_blob("fleet/agent", blob.digest)
        assert read_back(client, "fleet/agent", manifest.digest) is None
        client.delete_manifest("fleet/agent", manifest.digest)
        assert read_back(client, "fleet/agent", manifest.digest) is None


def test_reading_back_notices_a_blob_corrupted_on_the_registry_s_disk(registry: RealRegistry) -> None:
    with registry.client() as client:
        blob = client.push_bytes("fleet/agent", FILE)
        manifest = store_artifact_manifest(client, "fleet/agent", blob, FACTS)
        changed = bytearray(FILE)
        changed[1_234_567] ^= 0x10
        registry.blob_file(blob.digest).write_bytes(changed)
        with pytest.raises(Stalling) as caught:
            read_back(client, "fleet/agent", manifest.digest)
    assert caught.value.reason == "BlobCorrupted"
    assert sha256_of(bytes(changed)) in caught.value.message


def test_reading_back_can_be_cancelled(client: OciRegistry, repository: str) -> None:
    manifest = store_artifact_manifest(client, repository, client.push_bytes(repository, FILE), FACTS)
    with pytest.raises(Transient) as caught:
        read_back(client, repository, manifest.digest, cancelled=lambda: True)
    assert caught.value.reason == "Cancelled"


def test_reading_back_something_else_is_invalid(client: OciRegistry, repository: str) -> None:
    manifest = store_artifact_manifest(client, repository, client.push_bytes(repository, FILE), FACTS)
    index = store_index(client, repository, "agent", "1.4.0", {"linux/amd64": manifest}, publish=False)
    with pytest.raises(OutriderError) as caught:
        read_back(client, repository, index.digest)
    assert caught.value.reason == "ManifestInvalid"


# Memory

MEASURE = """
import re, sys
from ipaddress import ip_network
from pathlib import Path
from outrider.adapters.ingest import ingest
from outrider.adapters.registry import OciRegistry, RegistrySettings
from outrider.adapters.sources import SourceLimits, open_http
from outrider.adapters.transport import AddressPolicy
host, url, sha256 = sys.argv[1:]
limits = SourceLimits(guard=AddressPolicy((ip_network("127.0.0.0/8"),)))
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
with OciRegistry(RegistrySettings(host, plain_http=True)) as registry:
    registry.check()
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    with open_http(url, limits=limits) as source:
        ingest(registry, "fleet/agent", source, sha256)
    print(peak() - before)
"""


def test_memory_does_not_grow_with_the_artifact(registry: RealRegistry, web: RealHttpServer, tmp_path: Path) -> None:
    size = 256 * 1024 * 1024
    if shutil.disk_usage(tmp_path).free < 4 * size:
        pytest.skip("needs 1 GiB of disk")
    file = tmp_path / "file"
    with file.open("wb") as output:
        output.truncate(size)
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    command = [sys.executable, "-c", MEASURE, registry.host, web.serve_file("/file", file), sha256]
    grown = int(subprocess.run(command, check=True, capture_output=True).stdout)
    assert grown < 16 * 1024 * 1024
