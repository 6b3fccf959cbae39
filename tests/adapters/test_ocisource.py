"""Artifacts and images of others: pushed and signed by the real tools, and served by registries that lie."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapters.realservers import ON_LOOPBACK, RealHttpServer, RealRegistry, running_registry, sha256_of
from adapters.realtools import (
    KEY_OPTIONS,
    REGISTRY_KINDS,
    STATEMENT_TYPE,
    Cosign,
    Crane,
    Home,
    Oras,
    ToolError,
    Tripwire,
    running_registry_of_kind,
)
from adapters.signing import MakeSigner, Signer
from outrider.adapters.ocisource import (
    MAX_ENTRIES,
    OciReference,
    collect_evidence,
    copied_content,
    copy_image,
    delete_copy,
    keeping_tag,
    open_artifact,
    parse_reference,
    resolve_image,
)
from outrider.adapters.registry import INDEX_TYPE, MANIFEST_TYPE, OciRegistry, RegistrySettings, referrers_tag
from outrider.adapters.sources import SourceLimits
from outrider.api import names
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.trust.digest import digest_of
from outrider.trust.evidence import MAX_EVIDENCE_BYTES, MAX_PIECES, Evidence
from outrider.trust.keys import parse_public_key
from outrider.trust.verify import Verification, verify_artifact

FILE = bytes(range(256)) * 4000
SHA256 = sha256_of(FILE)
IMAGE = {"agent": b"#!/bin/sh\n", "etc/agent.conf": b"x=1\n"}
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


@dataclass
class Tools:
    cosign: Cosign
    oras: Oras
    crane: Crane
    folder: Path
    tripwire: Tripwire

    def file(self, name: str = "node-agent", data: bytes = FILE) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    tripwire = Tripwire()
    folder = tmp_path_factory.mktemp("tools")
    home = Home(folder, tripwire)
    yield Tools(Cosign(home), Oras(home), Crane(home), folder, tripwire)
    tripwire.stop()
    assert tripwire.contacts == []


@pytest.fixture(scope="module", params=REGISTRY_KINDS)
def shared_registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """One registry of each kind that runs here."""
    with running_registry_of_kind(request.param, tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def other_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """Where images are copied to."""
    with running_registry(tmp_path_factory.mktemp("other")) as registry:
        yield registry


@pytest.fixture
def signer(make_signer: MakeSigner) -> Signer:
    return make_signer("oci", *KEY_OPTIONS["P-256"])


def verify(evidence: tuple[Evidence, ...], signer: Signer, sha256: str, size: int) -> Verification:
    return verify_artifact(
        component="agent",
        namespace="fleet",
        version="1.4.0",
        platform="linux/amd64",
        size=size,
        expected_sha256=sha256,
        actual_sha256=sha256,
        evidence=evidence,
        keys=[parse_public_key(signer.public.read_bytes(), "secret/release:release.pub")],
    )


def reference(client: OciRegistry, repository: str, name: str) -> OciReference:
    if name.startswith("sha256:"):
        return OciReference(client.host, repository, digest=name)
    return OciReference(client.host, repository, tag=name)


# References


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r.example.com/a:1", OciReference("r.example.com", "a", None, "1")),
        ("r.example.com:5000/a/b-c__d.e:v1.2_x", OciReference("r.example.com:5000", "a/b-c__d.e", None, "v1.2_x")),
        (f"localhost/a@sha256:{SHA256}", OciReference("localhost", "a", f"sha256:{SHA256}")),
        (f"127.0.0.1:5/a:1@sha256:{SHA256}", OciReference("127.0.0.1:5", "a", f"sha256:{SHA256}", "1")),
        ("[::1]:5000/a:1", OciReference("[::1]:5000", "a", None, "1")),
        ("docker.io/library/busybox:1.37", OciReference("docker.io", "library/busybox", None, "1.37")),
    ],
)
def test_references(text: str, expected: OciReference) -> None:
    assert parse_reference(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "busybox",
        "busybox:1",
        "library/busybox:1",
        "r.example.com/a",
        "r.example.com/",
        "r.example.com/A:1",
        "r.example.com/a:",
        "r.example.com/a@sha256:abc",
        f"r.example.com/a@sha256:{SHA256.upper()}",
        f"r.example.com/a@sha512:{SHA256}",
        f"r.example.com/a@sha256:{SHA256}:1",
        "https://r.example.com/a:1",
        "user@r.example.com/a:1",
        "r.example.com/a/../b:1",
        "r.example.com//a:1",
        "r.example.com/a:1 ",
        "r.example.com/a:1\n",
        "r.example.com/a:.1",
        "r.example.com/a?x:1",
        "r.example.com:999999/a:1",
        "r.example.com/" + "a" * 256 + ":1",
        "r.example.com/a:" + "1" * 2000,
    ],
)
def test_bad_references(text: str) -> None:
    with pytest.raises(Stalling) as caught:
        parse_reference(text)
    assert caught.value.reason == "ReferenceInvalid"


# Artifacts


def test_a_file_that_oras_pushed(client: OciRegistry, repository: str, tools: Tools) -> None:
    other = tools.file("readme", b"read me")
    digest = tools.oras.push(f"{client.host}/{repository}:1", tools.file(), other)
    for name in (digest, "1"):
        artifact = open_artifact(reference(client, repository, name), SHA256, client)
        assert artifact.blob.digest == f"sha256:{SHA256}"
        assert artifact.blob.size == len(FILE)
        assert [digest_of(document) for document in artifact.chain] == [digest]
        with artifact.source as source:
            assert source.declared_size == len(FILE)
            assert source.name == f"{client.host}/{repository}@sha256:{SHA256}"
            assert b"".join(source.chunks) == FILE


def test_a_file_of_one_platform_of_an_index(client: OciRegistry, repository: str, tools: Tools) -> None:
    amd64, arm64 = tools.file("amd64", b"for amd64" + FILE), tools.file("arm64", b"for arm64" + FILE)
    manifests = [
        tools.oras.push(f"{client.host}/{repository}:{path.name}", path, platform=f"linux/{path.name}")
        for path in (amd64, arm64)
    ]
    index = tools.oras.index(f"{client.host}/{repository}:all", *manifests)
    sha256 = sha256_of(arm64.read_bytes())
    for platform in ("linux/arm64", None, "linux/riscv64"):
        artifact = open_artifact(reference(client, repository, index), sha256, client, platform=platform)
        assert [digest_of(document) for document in artifact.chain] == [index, manifests[1]]
        with artifact.source as source:
            assert b"".join(source.chunks) == arm64.read_bytes()
    with pytest.raises(Stalling) as caught:
        open_artifact(reference(client, repository, index), sha256, client, platform="linux/amd64")
    assert caught.value.reason == "LayerNotFound"


def test_a_file_that_is_not_in_the_artifact(client: OciRegistry, repository: str, tools: Tools) -> None:
    tools.oras.push(f"{client.host}/{repository}:1", tools.file())
    with pytest.raises(Stalling) as caught:
        open_artifact(reference(client, repository, "1"), "0" * 64, client)
    assert caught.value.reason == "LayerNotFound"
    assert SHA256 in caught.value.message


def test_an_artifact_that_is_not_there(client: OciRegistry, repository: str) -> None:
    for name in ("1", "sha256:" + "0" * 64):
        with pytest.raises(Stalling) as caught:
            open_artifact(reference(client, repository, name), SHA256, client)
        assert caught.value.reason == "SourceNotFound"


def test_an_index_in_an_index(client: OciRegistry, repository: str, tools: Tools) -> None:
    manifest = tools.oras.push(f"{client.host}/{repository}:1", tools.file())
    inner = tools.oras.index(f"{client.host}/{repository}:inner", manifest)
    outer = tools.oras.index(f"{client.host}/{repository}:outer", inner)
    with pytest.raises(Stalling) as caught:
        open_artifact(reference(client, repository, outer), SHA256, client)
    assert caught.value.reason == "ManifestNested"


def test_limits_of_a_file(client: OciRegistry, repository: str, tools: Tools) -> None:
    tools.oras.push(f"{client.host}/{repository}:1", tools.file())
    name = reference(client, repository, "1")
    with pytest.raises(Stalling) as caught:
        open_artifact(name, SHA256, client, limits=SourceLimits(max_bytes=len(FILE) - 1))
    assert caught.value.reason == "SourceTooLarge"
    for artifact, reason in (
        (open_artifact(name, SHA256, client, cancelled=lambda: True), "Cancelled"),
        (open_artifact(name, SHA256, client, limits=SourceLimits(total_timeout=-1.0)), "SourceUnreachable"),
    ):
        with artifact.source as source, pytest.raises(Transient) as gone:
            list(source.chunks)
        assert gone.value.reason == reason


# Images


def test_an_image_of_one_platform(client: OciRegistry, repository: str, tools: Tools) -> None:
    digest = tools.crane.push_image(f"{client.host}/{repository}:1", IMAGE)
    sha256 = digest.removeprefix("sha256:")
    for name in (digest, "1"):
        image = resolve_image(reference(client, repository, name), sha256, "linux/amd64", client)
        assert image.document.digest == digest
        assert image.manifest == image.document
        assert image.size == len(image.document.content)
    with pytest.raises(Stalling) as caught:
        resolve_image(reference(client, repository, "1"), sha256, "linux/arm64", client)
    assert caught.value.reason == "PlatformNotFound"
    assert "it has linux/amd64" in caught.value.message


def test_an_image_of_many_platforms(client: OciRegistry, repository: str, tools: Tools) -> None:
    index, [_, arm64] = push_index(client, repository, tools)
    sha256 = index.removeprefix("sha256:")
    image = resolve_image(reference(client, repository, "all"), sha256, "linux/arm64", client)
    assert image.document.digest == index
    assert image.manifest.digest == arm64
    with pytest.raises(Stalling) as caught:
        resolve_image(reference(client, repository, "all"), sha256, "linux/riscv64", client)
    assert caught.value.reason == "PlatformNotFound"
    assert "it has linux/amd64, linux/arm64" in caught.value.message


def test_a_tag_that_has_moved(client: OciRegistry, repository: str, tools: Tools) -> None:
    old = tools.crane.push_image(f"{client.host}/{repository}:1", IMAGE)
    new = tools.crane.push_image(f"{client.host}/{repository}:1", {**IMAGE, "more": b""})
    sha256 = old.removeprefix("sha256:")
    with pytest.raises(Stalling) as caught:
        resolve_image(reference(client, repository, "1"), sha256, "linux/amd64", client)
    assert caught.value.reason == "DigestMismatch"
    assert f"names {new} now" in caught.value.message
    assert "the tag has moved" in caught.value.message
    assert resolve_image(reference(client, repository, old), sha256, "linux/amd64", client).document.digest == old
    with pytest.raises(Stalling, match="let both be the same"):
        resolve_image(reference(client, repository, new), sha256, "linux/amd64", client)


def test_an_artifact_is_no_image(client: OciRegistry, repository: str, tools: Tools) -> None:
    digest = tools.oras.push(f"{client.host}/{repository}:1", tools.file())
    with pytest.raises(Stalling) as caught:
        resolve_image(reference(client, repository, digest), digest.removeprefix("sha256:"), "linux/amd64", client)
    assert caught.value.reason == "PlatformNotFound"


def push_index(client: OciRegistry, repository: str, tools: Tools) -> tuple[str, list[str]]:
    """Push an image for two platforms under the tag `all`."""
    name = f"{client.host}/{repository}"
    manifests = [
        tools.crane.push_image(f"{name}:{arch}", {**IMAGE, "arch": arch.encode()}, arch) for arch in ("amd64", "arm64")
    ]
    return tools.crane.push_index(f"{name}:all", f"{name}:amd64", f"{name}:arm64"), manifests


# Evidence


PREDICATE = {"component": "agent", "version": "1.4.0", "platform": "linux/amd64", "size": len(FILE)}


def test_what_cosign_signed_is_found_and_verifies(
    client: OciRegistry, repository: str, tools: Tools, signer: Signer
) -> None:
    digest = tools.oras.push(f"{client.host}/{repository}:1", tools.file())
    name = f"{client.host}/{repository}@{digest}"
    chain = open_artifact(reference(client, repository, digest), SHA256, client).chain
    assert collect_evidence(client, repository, chain) == ()

    tools.cosign.sign(name, signer)
    [bundle] = collect_evidence(client, repository, chain)
    assert (bundle.format, bundle.chain) == ("SigstoreAttestation", chain)
    assert verify((bundle,), signer, SHA256, len(FILE)).format == "SigstoreAttestation"

    tools.cosign.sign(name, signer, classic=True)
    found = collect_evidence(client, repository, chain)
    assert sorted(piece.format for piece in found) == ["CosignClassic", "SigstoreAttestation"]
    [classic] = [piece for piece in found if piece.format == "CosignClassic"]
    assert verify((classic,), signer, SHA256, len(FILE)).format == "CosignClassic"


def test_a_statement_that_binds_comes_first(client: OciRegistry, repository: str, tools: Tools, signer: Signer) -> None:
    digest = tools.oras.push(f"{client.host}/{repository}:1", tools.file())
    name = f"{client.host}/{repository}@{digest}"
    tools.cosign.sign(name, signer)
    tools.cosign.attest(name, signer, PREDICATE)
    chain = open_artifact(reference(client, repository, digest), SHA256, client).chain
    found = collect_evidence(client, repository, chain)
    assert [piece.format for piece in found] == ["OutriderStatement", "SigstoreAttestation"]


def test_a_signature_over_an_index_or_a_manifest_in_it(
    client: OciRegistry, repository: str, tools: Tools, signer: Signer
) -> None:
    manifests = [
        tools.oras.push(f"{client.host}/{repository}:{arch}", tools.file(arch, arch.encode()), platform=f"linux/{arch}")
        for arch in ("amd64", "arm64")
    ]
    index = tools.oras.index(f"{client.host}/{repository}:all", *manifests)
    sha256 = sha256_of(b"arm64")
    chain = open_artifact(reference(client, repository, index), sha256, client).chain
    tools.cosign.sign(f"{client.host}/{repository}@{index}", signer)
    tools.cosign.sign(f"{client.host}/{repository}@{manifests[1]}", signer, classic=True)
    found = collect_evidence(client, repository, chain)
    assert [(piece.format, piece.chain) for piece in found] == [
        ("SigstoreAttestation", chain),
        ("CosignClassic", chain[1:]),
    ]
    for piece in found:
        assert verify((piece,), signer, sha256, 5).format == piece.format


def test_what_others_attach_is_no_evidence(client: OciRegistry, repository: str, tools: Tools) -> None:
    digest = tools.oras.push(f"{client.host}/{repository}:1", tools.file())
    name = f"{client.host}/{repository}@{digest}"
    tools.oras.attach(name, tools.file("sbom", b"{}"), artifact_type="application/spdx+json")
    tools.oras.attach(name, tools.file("junk", b"not json"), media_type=BUNDLE_TYPE, artifact_type=BUNDLE_TYPE)
    tools.oras.attach(name, tools.file("large", bytes(2 << 20)), media_type=BUNDLE_TYPE, artifact_type=BUNDLE_TYPE)
    chain = open_artifact(reference(client, repository, digest), SHA256, client).chain
    assert collect_evidence(client, repository, chain) == ()


def test_evidence_is_bounded(client: OciRegistry, repository: str, tools: Tools) -> None:
    digest = tools.oras.push(f"{client.host}/{repository}:1", tools.file())
    chain = open_artifact(reference(client, repository, digest), SHA256, client).chain
    subject = {"mediaType": MANIFEST_TYPE, "digest": digest, "size": len(chain[0])}
    config = client.push_bytes(repository, b"{}")
    for number in range(MAX_PIECES + 4):
        bundle = json.dumps({"verificationMaterial": {"certificate": number}}).encode()
        content = bundle_manifest(client, repository, bundle, subject, config.digest)
        client.push_referrer(repository, content, MANIFEST_TYPE, digest)
    assert len(collect_evidence(client, repository, chain)) == MAX_PIECES


def bundle_manifest(client: OciRegistry, repository: str, bundle: bytes, subject: dict[str, Any], config: str) -> bytes:
    layer = client.push_bytes(repository, bundle)
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": BUNDLE_TYPE,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
            "layers": [{"mediaType": BUNDLE_TYPE, "digest": layer.digest, "size": layer.size}],
            "subject": subject,
        }
    ).encode()


# Copying


def test_an_image_is_copied_with_its_signatures(
    client: OciRegistry,
    repository: str,
    other_registry: RealRegistry,
    shared_registry: RealRegistry,
    tools: Tools,
    signer: Signer,
) -> None:
    index, manifests = push_index(client, repository, tools)
    name = f"{client.host}/{repository}@"
    tools.cosign.sign(name + index, signer)
    tools.cosign.sign(name + index, signer, classic=True)
    tools.cosign.sign(name + manifests[0], signer)
    home = f"copies/{repository}"
    with other_registry.client() as target:
        copied = copy_image(client, target, repository, home, index)
        assert copied.digest == index
        assert set(copied.manifests) >= {index, *manifests}
        for digest in (index, *manifests):
            assert target.get_manifest(home, digest) == client.get_manifest(repository, digest)
        for blob in copied.blobs:
            assert target.blob_size(home, blob.digest) == blob.size
        place = f"{other_registry.host}/{home}"
        assert tools.crane.digest(f"{place}:{keeping_tag(index)}") == index
        assert tools.cosign.verify(f"{place}@{index}", signer.public)
        assert tools.cosign.verify(f"{place}@{index}", signer.public, classic=True)
        assert tools.cosign.verify(f"{place}@{manifests[0]}", signer.public)
        with pytest.raises(ToolError):
            tools.cosign.verify(f"{place}@{manifests[1]}", signer.public)
        document = client.get_manifest(repository, index)
        assert document is not None
        formats = [piece.format for piece in collect_evidence(target, home, [document.content])]
        assert formats == ["CosignClassic", "SigstoreAttestation"]
        tags = target.list_tags(home)
        assert copy_image(client, target, repository, home, index) == copied  # and nothing is sent again
        assert target.list_tags(home) == tags
        assert set(tags) >= {keeping_tag(index)}
        assert not any(tag[0].isdigit() for tag in tags)


def test_an_image_is_copied_to_every_registry(
    client: OciRegistry, repository: str, other_registry: RealRegistry, tools: Tools, signer: Signer
) -> None:
    with other_registry.client() as source:
        index, _ = push_index(source, repository, tools)
        tools.cosign.sign(f"{source.host}/{repository}@{index}", signer)
        copy_image(source, client, repository, repository, index)
    assert tools.cosign.verify(f"{client.host}/{repository}@{index}", signer.public)


def test_a_copy_sends_nothing_twice(
    client: OciRegistry, repository: str, other_registry: RealRegistry, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = tools.crane.push_image(f"{client.host}/{repository}:1", IMAGE)
    with other_registry.client() as target:
        copy_image(client, target, repository, repository, digest)
        monkeypatch.setattr(OciRegistry, "push_stream", None)
        copy_image(client, target, repository, repository, digest)


def test_limits_of_a_copy(client: OciRegistry, repository: str, other_registry: RealRegistry, tools: Tools) -> None:
    digest = tools.crane.push_image(f"{client.host}/{repository}:1", {"agent": FILE})
    with other_registry.client() as target:
        with pytest.raises(Stalling) as caught:
            copy_image(client, target, repository, repository, digest, max_bytes=1000)
        assert caught.value.reason == "SourceTooLarge"
        with pytest.raises(Transient) as stopped:
            copy_image(client, target, repository, repository, digest, cancelled=lambda: True)
        assert stopped.value.reason == "Cancelled"
        assert target.list_tags(repository) == []
        with pytest.raises(Stalling) as gone:
            copy_image(client, target, repository, repository, "sha256:" + "0" * 64)
        assert gone.value.reason == "SourceNotFound"


def test_a_copy_is_deleted_with_all_that_came_along(
    client: OciRegistry, repository: str, tools: Tools, signer: Signer, registry: RealRegistry
) -> None:
    """Into the registry of each kind, and from there into nothing."""
    with registry.client() as source:
        index, manifests = push_index(source, repository, tools)
        sibling = tools.crane.push_image(f"{source.host}/{repository}:sibling", {**IMAGE, "arch": b"amd64"}, "amd64")
        for digest in (index, manifests[0]):
            tools.cosign.sign(f"{source.host}/{repository}@{digest}", signer)
            tools.cosign.sign(f"{source.host}/{repository}@{digest}", signer, classic=True)
        copied = copy_image(source, client, repository, repository, index)
        copy_image(source, client, repository, repository, sibling)
    assert sibling == manifests[0]  # what both need stays
    keep = copied_content(client, repository, sibling)
    content = copied_content(client, repository, index)
    assert content >= {*copied.manifests, index, *manifests}
    assert content >= keep
    assert delete_copy(client, repository, index, keep=keep) > 0
    assert client.get_manifest(repository, index) is None
    assert client.get_manifest(repository, manifests[1]) is None
    assert collect_evidence(client, repository, [b"x"]) == ()
    assert copied_content(client, repository, index) == frozenset()
    assert copied_content(client, repository, sibling) == keep
    assert delete_copy(client, repository, index, keep=keep) == 0
    delete_copy(client, repository, sibling)
    assert client.list_tags(repository) == []
    for digest in content - {digest_of(b"{}")}:
        assert client.blob_size(repository, digest) is None or digest in copied.manifests
        assert client.get_manifest(repository, digest) is None


# Registries that lie


class HostileRegistry:
    """Documents and blobs in memory, to be served under whatever name."""

    repository = "a/b"

    def __init__(self, web: RealHttpServer) -> None:
        self.web = web

    def client(self, **settings: Any) -> OciRegistry:
        return OciRegistry(
            RegistrySettings(f"127.0.0.1:{self.web.port}", plain_http=True, resume_delays=(), **settings)
        )

    def named(self, document: dict[str, Any]) -> tuple[OciReference, str]:
        """Return the reference to a document, and its SHA-256."""
        digest = document["digest"]
        return OciReference(f"127.0.0.1:{self.web.port}", "a/b", digest), digest.removeprefix("sha256:")

    def blob(self, data: bytes, *, size: int | None = None, digest: str | None = None, **more: Any) -> dict[str, Any]:
        """Serve a blob and return how to name it."""
        digest = digest or digest_of(data)
        self.web.serve(f"/v2/a/b/blobs/{digest}", data)
        return {"mediaType": "x/y", "digest": digest, "size": len(data) if size is None else size, **more}

    def document(self, value: Any, *, name: str = "", **more: Any) -> dict[str, Any]:
        """Serve a document and return how to name it."""
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        media_type = value.get("mediaType", MANIFEST_TYPE) if isinstance(value, dict) else MANIFEST_TYPE
        for each in (digest_of(content), name):
            self.web.serve(f"/v2/a/b/manifests/{each}", content, Content_Type=str(media_type))
        return {"mediaType": media_type, "digest": digest_of(content), "size": len(content), **more}

    def manifest(self, *layers: Any, **more: Any) -> dict[str, Any]:
        config = self.blob(json.dumps({"os": "linux", "architecture": "amd64"}).encode())
        return {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": list(layers), **more}

    def index(self, *manifests: Any, **more: Any) -> dict[str, Any]:
        return {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": list(manifests), **more}


@pytest.fixture
def hostile(web: RealHttpServer) -> HostileRegistry:
    return HostileRegistry(web)


AMD64: dict[str, Any] = {"platform": {"os": "linux", "architecture": "amd64"}}


def refused(hostile: HostileRegistry, named: dict[str, Any], sha256: str = SHA256) -> OutriderError:
    """Return why all that can be done with a document was refused, in the same way."""
    with hostile.client() as client:
        where = OciReference(client.host, "a/b", digest=named["digest"])
        with pytest.raises(OutriderError) as caught:
            open_artifact(where, sha256, client)
    return caught.value


def test_a_sound_document(hostile: HostileRegistry) -> None:
    named = hostile.document(hostile.index(hostile.document(hostile.manifest(hostile.blob(FILE)))))
    with hostile.client() as client:
        artifact = open_artifact(OciReference(client.host, "a/b", named["digest"]), SHA256, client)
        with artifact.source as source:
            assert b"".join(source.chunks) == FILE


def test_documents_that_point_in_circles(hostile: HostileRegistry, web: RealHttpServer) -> None:
    """No document can hold its own digest; a registry can only serve other bytes under it."""
    fake = "sha256:" + "7" * 64
    index = hostile.index({"mediaType": MANIFEST_TYPE, "digest": fake, "size": 3})
    named = hostile.document(index)
    web.serve(f"/v2/a/b/manifests/{fake}", json.dumps(index).encode(), Content_Type=INDEX_TYPE)
    error = refused(hostile, named)
    assert (type(error), error.reason) == (Stalling, "ManifestInvalid")
    assert len(web.requests) == 2


def test_an_index_that_is_called_a_manifest(hostile: HostileRegistry) -> None:
    inner = {**hostile.document(hostile.index()), "mediaType": MANIFEST_TYPE}
    assert refused(hostile, hostile.document(hostile.index(inner))).reason == "ManifestNested"


@pytest.mark.parametrize("size", [0, 1, 10**12])
def test_an_entry_with_a_wrong_size(hostile: HostileRegistry, size: int) -> None:
    inner = {**hostile.document(hostile.manifest()), "size": size}
    assert refused(hostile, hostile.document(hostile.index(inner))).reason == "ManifestInvalid"


def test_more_entries_than_are_looked_at(hostile: HostileRegistry, web: RealHttpServer) -> None:
    entries = [{"mediaType": MANIFEST_TYPE, "digest": f"sha256:{n:064x}", "size": 3} for n in range(MAX_ENTRIES + 1)]
    assert refused(hostile, hostile.document(hostile.index(*entries))).reason == "ManifestInvalid"
    assert len(web.requests) == 1


BAD: list[Any] = [
    b"",
    b"[]",
    b"{}",
    b'{"layers": [], "layers": []}',
    b"[" * 100_000,
    {"mediaType": MANIFEST_TYPE, "layers": [], "manifests": []},
    {"mediaType": INDEX_TYPE, "manifests": [], "config": {}},
    {"mediaType": INDEX_TYPE, "layers": []},
    {"mediaType": MANIFEST_TYPE, "manifests": []},
    {"mediaType": 7, "layers": []},
    {"mediaType": [], "layers": []},
    {"mediaType": MANIFEST_TYPE, "layers": {}},
    {"mediaType": MANIFEST_TYPE, "layers": [7]},
    {"mediaType": MANIFEST_TYPE, "layers": [{"digest": "sha256:x", "size": 1}]},
    {"mediaType": MANIFEST_TYPE, "layers": [{"digest": "sha512:" + "0" * 128, "size": 1}]},
    {"mediaType": MANIFEST_TYPE, "layers": [{"digest": f"sha256:{SHA256}", "size": True}]},
    {"mediaType": MANIFEST_TYPE, "layers": [{"digest": f"sha256:{SHA256}", "size": -1}]},
    {"mediaType": MANIFEST_TYPE, "layers": [{"digest": f"sha256:{SHA256}", "size": 1.5}]},
    {"mediaType": MANIFEST_TYPE, "config": None, "layers": []},
]


@pytest.mark.parametrize("document", BAD, ids=range(len(BAD)))
def test_documents_that_cannot_be_read(hostile: HostileRegistry, document: Any) -> None:
    error = refused(hostile, hostile.document(document))
    assert (type(error), error.reason) == (Stalling, "ManifestInvalid")
    assert len(error.message) < 500


@pytest.mark.parametrize("served", [b"other", FILE[:-1], FILE[:-1] + b"!", FILE + b"!", b""])
def test_a_registry_that_serves_other_bytes(hostile: HostileRegistry, served: bytes) -> None:
    layer = hostile.blob(served, digest=f"sha256:{SHA256}", size=len(FILE))
    named = hostile.document(hostile.manifest(layer))
    with hostile.client() as client:
        artifact = open_artifact(OciReference(client.host, "a/b", named["digest"]), SHA256, client)
        with artifact.source as source, pytest.raises(Stalling) as caught:
            list(source.chunks)
    assert caught.value.reason == "DigestMismatch"


def endless(web: RealHttpServer, path: str) -> None:
    def handler(request: Any) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        while not web.closing.is_set():
            request.wfile.write(b"ffff\r\n" + bytes(0xFFFF) + b"\r\n")

    web.handlers[path] = handler


def test_bodies_without_end(hostile: HostileRegistry, web: RealHttpServer) -> None:
    layer = hostile.blob(FILE)
    named = hostile.document(hostile.manifest(layer))
    endless(web, f"/v2/a/b/blobs/{layer['digest']}")
    with hostile.client() as client:
        artifact = open_artifact(OciReference(client.host, "a/b", named["digest"]), SHA256, client)
        with artifact.source as source, pytest.raises(Stalling) as caught:
            list(source.chunks)
    assert caught.value.reason == "DigestMismatch"
    endless(web, f"/v2/a/b/manifests/{named['digest']}")
    assert refused(hostile, named).reason == "ManifestInvalid"


def test_a_blob_that_the_registry_does_not_have(hostile: HostileRegistry, web: RealHttpServer) -> None:
    layer = hostile.blob(FILE)
    named = hostile.document(hostile.manifest(layer))
    del web.handlers[f"/v2/a/b/blobs/{layer['digest']}"]
    with hostile.client() as client:
        artifact = open_artifact(OciReference(client.host, "a/b", named["digest"]), SHA256, client)
        with artifact.source as source, pytest.raises(Stalling) as caught:
            list(source.chunks)
    assert caught.value.reason == "SourceNotFound"


def test_a_tag_that_moves_between_two_looks_is_looked_at_once(hostile: HostileRegistry, web: RealHttpServer) -> None:
    first = hostile.document(hostile.manifest(hostile.blob(FILE)), name="1")
    answer = web.handlers["/v2/a/b/manifests/1"]

    def once(request: Any) -> None:
        answer(request)
        hostile.document(hostile.manifest(hostile.blob(b"evil")), name="1")

    web.handlers["/v2/a/b/manifests/1"] = once
    with hostile.client() as client:
        image = resolve_image(
            OciReference(client.host, "a/b", tag="1"), first["digest"].removeprefix("sha256:"), "linux/amd64", client
        )
        assert image.document.digest == first["digest"]
    assert [path for path, _ in web.requests].count("/v2/a/b/manifests/1") == 1


def test_an_index_with_two_manifests_for_a_platform(hostile: HostileRegistry) -> None:
    one = hostile.document(hostile.manifest(hostile.blob(b"1")), **AMD64)
    two = hostile.document(hostile.manifest(hostile.blob(b"2")), **AMD64)
    named = hostile.document(hostile.index(one, two))
    with hostile.client() as client, pytest.raises(Stalling) as caught:
        resolve_image(*hostile.named(named), "linux/amd64", client)
    assert caught.value.reason == "ManifestInvalid"
    assert "more than one manifest for linux/amd64" in caught.value.message


@pytest.mark.parametrize("config", [b"", b"[]", b"not json at all", b'{"os": "linux", "architecture": 7}', b"{}"])
def test_a_config_that_says_nothing(hostile: HostileRegistry, config: bytes) -> None:
    named = hostile.document({**hostile.manifest(), "config": hostile.blob(config)})
    with hostile.client() as client, pytest.raises(Stalling) as caught:
        resolve_image(*hostile.named(named), "linux/amd64", client)
    assert caught.value.reason in {"PlatformNotFound", "ManifestInvalid"}


def evidence_of(hostile: HostileRegistry, document: dict[str, Any]) -> tuple[Evidence, ...]:
    with hostile.client() as client:
        return collect_evidence(client, "a/b", [json.dumps(document).encode()])


def bundle_for(hostile: HostileRegistry, subject: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    bundle = {**hostile.manifest(layer), "artifactType": BUNDLE_TYPE, "subject": subject}
    return {**hostile.document(bundle), "artifactType": BUNDLE_TYPE}


KEYLESS = json.dumps({"verificationMaterial": {"certificate": {}}}).encode()


def test_a_bundle_made_without_a_key_is_handed_on_to_be_refused(hostile: HostileRegistry) -> None:
    document = hostile.manifest(hostile.blob(FILE))
    layer = hostile.blob(KEYLESS) | {"mediaType": BUNDLE_TYPE}
    entry = bundle_for(hostile, hostile.document(document), layer)
    hostile.document(hostile.index(entry), name=referrers_tag(hostile.document(document)["digest"]))
    [piece] = evidence_of(hostile, document)
    assert (piece.format, piece.document) == ("SigstoreAttestation", KEYLESS)


def test_a_bundle_of_100_mb_is_not_read(hostile: HostileRegistry, web: RealHttpServer) -> None:
    document = hostile.manifest(hostile.blob(FILE))
    subject = hostile.document(document)
    honest = hostile.blob(KEYLESS, digest="sha256:" + "1" * 64, size=100_000_000) | {"mediaType": BUNDLE_TYPE}
    lying = hostile.blob(b"", digest="sha256:" + "2" * 64, size=1000) | {"mediaType": BUNDLE_TYPE}
    endless(web, "/v2/a/b/blobs/" + lying["digest"])
    entries = [bundle_for(hostile, subject, layer) for layer in (honest, lying)]
    hostile.document(hostile.index(*entries), name=referrers_tag(subject["digest"]))
    assert evidence_of(hostile, document) == ()
    assert not any(honest["digest"] in path for path, _ in web.requests)


def test_a_list_of_10_000_referrers(hostile: HostileRegistry, web: RealHttpServer) -> None:
    document = hostile.manifest(hostile.blob(FILE))
    subject = hostile.document(document)
    entries = [
        {"mediaType": MANIFEST_TYPE, "digest": f"sha256:{n:064x}", "size": 100, "artifactType": BUNDLE_TYPE}
        for n in range(10_000)
    ]
    hostile.document(hostile.index(*entries), name=referrers_tag(subject["digest"]))
    assert evidence_of(hostile, document) == ()
    assert len(web.requests) < 100


@pytest.mark.parametrize("listed", BAD, ids=range(len(BAD)))
def test_lists_and_signatures_that_cannot_be_read_prove_nothing(hostile: HostileRegistry, listed: Any) -> None:
    document = hostile.manifest(hostile.blob(FILE))
    subject = hostile.document(document)
    hostile.document(listed, name=referrers_tag(subject["digest"]))
    hostile.document(listed, name=referrers_tag(subject["digest"]) + ".sig")
    assert evidence_of(hostile, document) == ()


def test_a_classic_signature_whose_payload_is_other_bytes(hostile: HostileRegistry) -> None:
    document = hostile.manifest(hostile.blob(FILE))
    subject = hostile.document(document)
    signed = {"annotations": {"dev.cosignproject.cosign/signature": "AAAA"}}
    kind = {"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json"}
    good = hostile.blob(b"payload") | kind | signed
    bad = hostile.blob(b"payload", digest="sha256:" + "1" * 64) | kind | signed
    bare = hostile.blob(b"unsigned") | kind
    huge = hostile.blob(b"", digest="sha256:" + "2" * 64, size=MAX_EVIDENCE_BYTES + 1) | kind | signed
    signatures = hostile.manifest(bad, bare, huge, good)
    hostile.document(signatures, name=referrers_tag(subject["digest"]) + ".sig")
    assert [piece.document for piece in evidence_of(hostile, document)] == [b"payload"]


def test_a_registry_that_does_not_answer_about_signatures_is_no_proof_of_none(
    hostile: HostileRegistry, web: RealHttpServer
) -> None:
    document = hostile.manifest(hostile.blob(FILE))
    digest = hostile.document(document)["digest"]
    for path in (f"referrers/{digest}", f"manifests/{referrers_tag(digest)}.sig"):
        web.serve(f"/v2/a/b/{path}", b"", status=503, Retry_After="7")
        with pytest.raises(Transient) as caught:
            evidence_of(hostile, document)
        assert caught.value.retry_after == 7
        del web.handlers[f"/v2/a/b/{path}"]


def test_a_copy_of_other_bytes_leaves_nothing(hostile: HostileRegistry, registry: RealRegistry) -> None:
    layer = hostile.blob(b"other", digest=f"sha256:{SHA256}", size=len(FILE))
    named = hostile.document(hostile.manifest(layer))
    with hostile.client() as client, registry.client() as target:
        with pytest.raises(Stalling) as caught:
            copy_image(client, target, "a/b", "copy", named["digest"])
        assert caught.value.reason == "DigestMismatch"
        assert target.list_tags("copy") == []
    assert SHA256 not in registry.blobs()


def test_an_image_that_may_not_be_passed_on_is_not_copied(hostile: HostileRegistry, registry: RealRegistry) -> None:
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": "sha256:" + "1" * 64,
        "size": 10,
        "urls": ["http://169.254.169.254/"],
    }
    named = hostile.document(hostile.manifest(foreign))
    with hostile.client() as client, registry.client() as target, pytest.raises(Stalling) as caught:
        copy_image(client, target, "a/b", "copy", named["digest"])
    assert caught.value.reason == "ManifestInvalid"
    assert "may not be copied" in caught.value.message


def test_a_registry_whose_token_service_is_the_metadata_service(hostile: HostileRegistry, web: RealHttpServer) -> None:
    named = hostile.document(hostile.manifest(hostile.blob(FILE)))
    web.serve(
        f"/v2/a/b/manifests/{named['digest']}",
        b"",
        status=401,
        WWW_Authenticate='Bearer realm="https://169.254.169.254/latest/api/token",service="x",scope="y"',
    )
    with hostile.client(guard=ON_LOOPBACK) as client, pytest.raises(Stalling) as caught:
        open_artifact(OciReference(client.host, "a/b", named["digest"]), SHA256, client)
    assert caught.value.reason == "AddressNotAllowed"


def test_the_statement_s_type_is_the_one_that_authors_use() -> None:
    assert names.STATEMENT_TYPE == STATEMENT_TYPE
