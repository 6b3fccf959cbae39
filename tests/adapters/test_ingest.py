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
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.realservers import LIMITS, RealHttpServer, RealRegistry, running_registry, sha256_of
from adapters.realtools import REGISTRY_KINDS, running_registry_of_kind
from adapters.signing import MakeSigner
from outrider.adapters.ingest import (
    ArtifactFacts,
    Deleted,
    build_artifact_manifest,
    build_evidence_manifest,
    build_index,
    delete_version,
    find_stored,
    ingest,
    load_evidence,
    look_up,
    parse_artifact_manifest,
    parse_evidence_manifest,
    parse_index,
    read_back,
    store_artifact_manifest,
    store_evidence,
    store_index,
)
from outrider.adapters.registry import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    ManifestDocument,
    OciRegistry,
    RegistrySettings,
)
from outrider.adapters.sources import from_bytes, open_http
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.trust.digest import digest_of
from outrider.trust.evidence import MAX_PIECES, Evidence, encode_evidence
from outrider.trust.keys import parse_public_key
from outrider.trust.verify import verify_artifact
from unit.authors import Author
from unit.authors import evidence as in_format

FILE = random.Random(7).randbytes(3_000_000)  # noqa: S311
SHA256 = sha256_of(FILE)
FACTS = ArtifactFacts("agent", "1.4.0", "linux/amd64", "node-agent")
SIGNED = Evidence("Detached", b"signature")


def test_a_file_goes_from_a_url_into_the_registry_and_is_verified_from_there(
    client: OciRegistry, repository: str, web: RealHttpServer, make_signer: MakeSigner
) -> None:
    signer = make_signer()
    with open_http(web.serve("/agent", FILE), limits=LIMITS) as source:
        blob = ingest(client, repository, source, SHA256)
    assert blob == Descriptor("sha256:" + SHA256, len(FILE))
    manifest = store_artifact_manifest(client, repository, blob, FACTS)
    evidence = Evidence("Detached", signer.detached(FILE))
    store_evidence(client, repository, manifest, evidence)
    stored = read_back(client, repository, manifest.digest)
    assert stored is not None
    assert (stored.sha256, stored.size, stored.facts) == (SHA256, len(FILE), FACTS)
    assert (stored.evidence, stored.further_digests) == ((evidence,), {})
    proof = verify_artifact(
        component="agent",
        namespace="fleet",
        version="1.4.0",
        platform="linux/amd64",
        size=stored.size,
        expected_sha256=SHA256,
        actual_sha256=stored.sha256,
        evidence=stored.evidence,
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
    facts = ArtifactFacts("agent", "1.4.0", "linux/amd64", name)
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
        store_artifact_manifest(client, repository, blob, ArtifactFacts("a", "1.0.0+b", "linux/amd64", "a"))
    assert caught.value.reason == "VersionInvalid"


# Evidence


def stored_manifest(client: OciRegistry, repository: str, version: str = "1.4.0", file: bytes = FILE) -> Descriptor:
    blob = client.push_bytes(repository, file)
    return store_artifact_manifest(client, repository, blob, replace(FACTS, version=version))


SUBJECT = Descriptor("sha256:" + "1" * 64, 5)


class LyingRegistry:
    """Lists whatever it is given as referrers of SUBJECT, as the referrers API does."""

    def __init__(self, web: RealHttpServer) -> None:
        self._web = web
        self._entries: list[dict[str, Any]] = []
        self.settings = RegistrySettings(f"127.0.0.1:{web.port}", plain_http=True, resume_delays=())

    def offer(self, data: bytes, content: bytes | None = None, **entry: Any) -> None:
        """List a manifest with some bytes as evidence in it; `content` stands in for the manifest's own."""
        blob = Descriptor(digest_of(data), len(data))
        content = build_evidence_manifest(SUBJECT, blob) if content is None else content
        self._web.serve(f"/v2/a/b/blobs/{blob.digest}", data)
        self._web.serve(f"/v2/a/b/manifests/{digest_of(content)}", content, Content_Type=MANIFEST_TYPE)
        self._entries.append(
            {
                "mediaType": MANIFEST_TYPE,
                "artifactType": "application/vnd.outrider.evidence.v1+json",
                "digest": digest_of(content),
                "size": len(content),
                **entry,
            }
        )

    def load(self) -> tuple[tuple[Evidence, ...], list[str]]:
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": self._entries}
        path = f"/v2/a/b/referrers/{SUBJECT.digest}"
        self._web.serve(path, json.dumps(index).encode(), Content_Type=INDEX_TYPE)
        self._web.requests.clear()
        skipped: list[str] = []
        with OciRegistry(self.settings) as client:
            return load_evidence(client, "a/b", SUBJECT.digest, skipped=skipped.append), skipped


def test_evidence_lies_beside_the_manifest_and_leaves_it_as_it_is(client: OciRegistry, repository: str) -> None:
    manifest = stored_manifest(client, repository)
    assert load_evidence(client, repository, manifest.digest) == ()
    first = store_evidence(client, repository, manifest, SIGNED)
    again = Evidence("CosignClassic", b"{}", "c2ln", (b"index",))
    store_evidence(client, repository, manifest, again)
    assert store_evidence(client, repository, manifest, SIGNED) == first
    # The newest first.
    assert load_evidence(client, repository, manifest.digest) == (again, SIGNED)
    assert store_artifact_manifest(client, repository, Descriptor("sha256:" + SHA256, len(FILE)), FACTS) == manifest


def test_a_manifest_with_evidence_is_what_oci_says_of_referrers() -> None:
    one, two = Descriptor("sha256:" + "1" * 64, 5), Descriptor("sha256:" + "2" * 64, 6)
    content = json.loads(build_evidence_manifest(one, two))
    assert content["artifactType"] == "application/vnd.outrider.evidence.v1+json"
    assert content["subject"] == {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": one.digest,
        "size": 5,
    }
    [layer] = content["layers"]
    assert layer == {"mediaType": content["artifactType"], "digest": two.digest, "size": 6}


GOOD = encode_evidence(SIGNED)
MANIFEST = json.loads(build_evidence_manifest(SUBJECT, Descriptor(digest_of(GOOD), len(GOOD))))
[LAYER] = MANIFEST["layers"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "it is not JSON"),
        (b"{}", "it has no format"),
        (b"[" * 1000, "nested deeper"),
        (GOOD[:-1], "it is not JSON"),
        (GOOD.replace(b"Detached", b"Detacheb"), "is unknown"),
        (b" " * (1024 * 1024 + 1), "at most 1048576 bytes"),
    ],
)
def test_evidence_that_cannot_be_read_is_left_out(web: RealHttpServer, data: bytes, text: str) -> None:
    registry = LyingRegistry(web)
    registry.offer(data)
    registry.offer(GOOD)
    found, [line] = registry.load()
    assert found == (SIGNED,)
    assert line.startswith("a piece of evidence is left out: ")
    assert text in line


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        ({**MANIFEST, "layers": []}, "lacks something"),
        ({**MANIFEST, "layers": [{}]}, "lacks something"),
        ({**MANIFEST, "layers": "x"}, "lacks something"),
        ({**MANIFEST, "layers": [LAYER, LAYER]}, "lacks something"),
        ({**MANIFEST, "layers": [{**LAYER, "mediaType": "text/plain"}]}, "holds no application/vnd.outrider.evidence"),
        ({**MANIFEST, "layers": [{**LAYER, "size": 2**40}]}, "holds no application/vnd.outrider.evidence"),
        ({**MANIFEST, "layers": [{**LAYER, "size": len(GOOD) - 1}]}, "has more than the"),
        ({**MANIFEST, "layers": [{**LAYER, "size": -1}]}, "lacks something"),
        ({**MANIFEST, "subject": {"digest": "sha256:" + "2" * 64}}, "is not about it"),
        ({**MANIFEST, "subject": {}}, "lacks something"),
        ({**MANIFEST, "subject": SUBJECT.digest}, "lacks something"),
        ({**MANIFEST, "artifactType": "text/plain"}, "is not one of Outrider's"),
        ({**MANIFEST, "mediaType": INDEX_TYPE}, "is not of the type"),
        ({**MANIFEST, "annotations": {"x": "y" * 100_000}}, "none with evidence needs more than 65536"),
        ({}, "is not of the type"),
    ],
)
def test_a_manifest_with_evidence_that_makes_no_sense_is_left_out(
    web: RealHttpServer, manifest: dict[str, Any], text: str
) -> None:
    registry = LyingRegistry(web)
    registry.offer(GOOD, json.dumps(manifest).encode())
    registry.offer(GOOD)
    found, [line] = registry.load()
    assert found == (SIGNED,)
    assert text in line
    assert len(line) < 400


def test_a_list_that_goes_in_circles_or_to_nothing_ends(web: RealHttpServer) -> None:
    registry = LyingRegistry(web)
    registry.offer(GOOD, digest=SUBJECT.digest)  # the manifest as its own evidence: there is none under that name
    registry.offer(GOOD, digest="sha256:" + "3" * 64)
    registry.offer(encode_evidence(replace(SIGNED, document=b"other")), size=2**40)
    registry.offer(GOOD, size=1)  # what a list says of a size is covered by nothing
    assert registry.load()[0] == (SIGNED,)


def test_a_blob_with_evidence_that_was_tampered_with_is_left_out(registry: RealRegistry) -> None:
    with registry.client() as client:
        manifest = stored_manifest(client, "fleet/agent")
        store_evidence(client, "fleet/agent", manifest, SIGNED)
        store_evidence(client, "fleet/agent", manifest, replace(SIGNED, document=b"other"))
        blob = registry.blob_file(digest_of(encode_evidence(SIGNED)))
        blob.write_bytes(blob.read_bytes().replace(b"Detached", b"detached"))
        skipped: list[str] = []
        found = load_evidence(client, "fleet/agent", manifest.digest, skipped=skipped.append)
        assert found == (replace(SIGNED, document=b"other"),)
        [line] = skipped
        assert "hashes to" in line
        registry.blob_file(digest_of(encode_evidence(SIGNED))).unlink()
        assert load_evidence(client, "fleet/agent", manifest.digest) == found


def test_of_a_thousand_pieces_of_evidence_a_few_are_looked_at(web: RealHttpServer) -> None:
    registry = LyingRegistry(web)
    pieces = [Evidence("Detached", b"%d" % number) for number in range(1000)]
    for piece in pieces:
        registry.offer(encode_evidence(piece))
    found, skipped = registry.load()
    assert list(found) == pieces[: -MAX_PIECES - 1 : -1]
    assert skipped == []
    assert len(web.requests) == 1 + 2 * MAX_PIECES


def test_of_a_thousand_pieces_of_garbage_a_few_are_looked_at(web: RealHttpServer) -> None:
    registry = LyingRegistry(web)
    for number in range(1000):
        registry.offer(b"garbage %d" % number)
    found, skipped = registry.load()
    assert found == ()
    assert len(skipped) == 4 * MAX_PIECES


def test_a_registry_that_is_down_is_no_lack_of_evidence(registry: RealRegistry) -> None:
    with registry.client() as client:
        manifest = stored_manifest(client, "fleet/agent")
        store_evidence(client, "fleet/agent", manifest, SIGNED)
        registry.kill()
        with pytest.raises(Transient):
            load_evidence(client, "fleet/agent", manifest.digest)


def test_a_p384_key_has_a_second_digest_computed_in_the_same_pass(client: OciRegistry, repository: str) -> None:
    author, other = Author("p384"), Author("p256")
    manifest = stored_manifest(client, repository)
    store_evidence(client, repository, manifest, in_format("SigstoreBundle", author.bundle(FILE)))
    assert (stored := read_back(client, repository, manifest.digest, keys=[other.key])) is not None
    assert stored.further_digests == {}
    assert (stored := read_back(client, repository, manifest.digest, keys=[other.key, author.key])) is not None
    assert stored.further_digests == {"sha384": hashlib.sha384(FILE).hexdigest()}


def test_who_vouches_for_a_file_can_be_asked_again_without_reading_it(registry: RealRegistry) -> None:
    with registry.client() as client:
        assert look_up(client, "fleet/agent", "sha256:" + "0" * 64) is None
        manifest = stored_manifest(client, "fleet/agent")
        store_evidence(client, "fleet/agent", manifest, SIGNED)
        assert look_up(client, "fleet/agent", manifest.digest) == read_back(client, "fleet/agent", manifest.digest)
        registry.blob_file("sha256:" + SHA256).write_bytes(b"!" * len(FILE))
        assert (said := look_up(client, "fleet/agent", manifest.digest)) is not None
        assert said.sha256 == SHA256
        client.delete_blob("fleet/agent", "sha256:" + SHA256)
        assert look_up(client, "fleet/agent", manifest.digest) is None


# Deletion


def tags_of(client: OciRegistry, repository: str) -> set[str]:
    return set(client.list_tags(repository))


@pytest.mark.parametrize("kind", REGISTRY_KINDS)
def test_a_version_is_deleted_with_all_that_belongs_to_it(tmp_path: Path, kind: str, repository: str) -> None:
    with running_registry_of_kind(kind, tmp_path) as registry, registry.client() as client:
        delete_one_of_two_versions(client, repository)


def delete_one_of_two_versions(client: OciRegistry, repository: str) -> None:
    mine = stored_manifest(client, repository)
    index = store_index(client, repository, "agent", "1.4.0", {"linux/amd64": mine}, publish=True)
    store_evidence(client, repository, mine, SIGNED)
    store_evidence(client, repository, mine, replace(SIGNED, document=b"other"))
    theirs = stored_manifest(client, repository, "1.5.0", b"another file")
    store_evidence(client, repository, theirs, replace(SIGNED, document=b"theirs"))
    before = tags_of(client, repository)

    deleted = delete_version(client, repository, manifests=[mine.digest], index=index.digest, keep_blobs=[])
    assert deleted == Deleted(manifests=2, evidence=2, blobs=3)
    for digest in (mine.digest, index.digest):
        assert client.get_manifest(repository, digest) is None
    assert client.blob_size(repository, "sha256:" + SHA256) is None
    assert client.blob_size(repository, digest_of(encode_evidence(SIGNED))) is None
    left = tags_of(client, repository)
    assert left < before
    assert not any("1.4.0" in tag or mine.digest.removeprefix("sha256:") in tag for tag in left)
    # The other version is whole.
    assert (stored := read_back(client, repository, theirs.digest)) is not None
    assert stored.evidence == (replace(SIGNED, document=b"theirs"),)
    # What has gone is fine.
    again = delete_version(client, repository, manifests=[mine.digest], index=index.digest, keep_blobs=[])
    assert again == Deleted()


def test_a_file_that_another_version_has_stays_and_so_does_what_vouches_for_it(
    client: OciRegistry, repository: str
) -> None:
    one, two = stored_manifest(client, repository, "1.4.0"), stored_manifest(client, repository, "1.4.1")
    for manifest in (one, two):
        store_evidence(client, repository, manifest, SIGNED)
    deleted = delete_version(client, repository, manifests=[one.digest], index=None, keep_blobs=["sha256:" + SHA256])
    assert deleted == Deleted(manifests=1, evidence=1, blobs=0)
    assert (stored := read_back(client, repository, two.digest)) is not None
    assert (stored.sha256, stored.evidence) == (SHA256, (SIGNED,))


def test_a_tag_that_names_something_else_meanwhile_stays(client: OciRegistry, repository: str) -> None:
    mine = stored_manifest(client, repository)
    old = store_index(client, repository, "agent", "1.4.0", {"linux/amd64": mine}, publish=True)
    new = store_index(client, repository, "agent", "1.4.0", {"linux/arm64": mine}, publish=True)
    delete_version(client, repository, manifests=[], index=old.digest, keep_blobs=[])
    document = client.get_manifest(repository, "1.4.0")
    assert document is not None
    assert document.digest == new.digest


def test_a_deletion_that_broke_off_is_finished(registry: RealRegistry) -> None:
    with registry.client() as client:
        manifest = stored_manifest(client, "fleet/agent")
        index = store_index(client, "fleet/agent", "agent", "1.4.0", {"linux/amd64": manifest}, publish=True)
        store_evidence(client, "fleet/agent", manifest, SIGNED)
        client.delete_manifest("fleet/agent", index.digest)
        client.delete_blob("fleet/agent", "sha256:" + SHA256)
        delete_version(client, "fleet/agent", manifests=[manifest.digest], index=index.digest, keep_blobs=[])
        assert registry.tags("fleet/agent") == []
        assert client.blob_size("fleet/agent", digest_of(encode_evidence(SIGNED))) is None


def test_a_registry_that_does_not_delete_says_so(tmp_path: Path) -> None:
    with running_registry(tmp_path / "registry", deletable=False) as registry, registry.client() as client:
        manifest = stored_manifest(client, "fleet/agent")
        with pytest.raises(Stalling) as caught:
            delete_version(client, "fleet/agent", manifests=[manifest.digest], index=None, keep_blobs=[])
    assert caught.value.reason == "DeleteUnsupported"


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
        (build_evidence_manifest(blob, blob), lambda document: parse_evidence_manifest(document, blob.digest)),
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
    with pytest.raises(Stalling, match="nested deeper than 32 levels"):
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
