"""Every way to sign, with every kind of key, on every kind of registry: made by the real tools, verified by ours.

Each cell signs a file, stores the file and the signature as a version is stored, reads both back and verifies what was
read. Then the tool that can verify it, too, has to agree: on that, and that it was not signed by another key.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from adapters.realservers import RealRegistry, sha256_of
from adapters.realtools import KEY_OPTIONS, REGISTRY_KINDS, ToolError, Tools, raw_signature, running_registry_of_kind
from adapters.reports import Reports
from adapters.signing import MakeSigner, Signer
from outrider.__main__ import main
from outrider.adapters.ingest import ArtifactFacts, ingest, read_back, store_artifact_manifest, store_evidence
from outrider.adapters.ocisource import collect_evidence, copy_image, open_artifact, parse_reference, resolve_image
from outrider.adapters.registry import OciRegistry
from outrider.adapters.sources import from_bytes
from outrider.api.errors import Stalling
from outrider.trust.evidence import Evidence
from outrider.trust.keys import TrustedKey, parse_public_key
from outrider.trust.verify import Verification, verify_artifact

FACTS = ArtifactFacts("agent", "1.4.0", "linux/amd64", "node-agent")
OURS = "ours/agent"
"""Where Outrider stores the component."""
THEIRS = "theirs/agent"
"""Where the author publishes it."""

Check = Callable[[Path], None]
"""Let the real tool verify with a public key; it raises if the tool refuses."""


@dataclass(frozen=True)
class Made:
    """What an author made, and how others would verify it."""

    evidence: Evidence
    check: Check
    by: str = "cosign"
    """The name of the tool that verifies."""
    image: tuple[str, str] | None = None
    """Repository and digest, if it is an image and not a file."""


class Workplace:
    """An author's file, tools and registries."""

    def __init__(self, tools: Tools, folder: Path, registries: dict[str, RealRegistry]) -> None:
        self.tools = tools
        self.registries = registries
        self._folder = folder

    def file(self, name: str) -> Path:
        """Return a file of 100 kB that nobody else has."""
        path = self._folder / sha256_of(name.encode())[:16] / FACTS.file_name
        path.parent.mkdir()
        path.write_bytes(name.encode() * (100_000 // len(name)))
        return path


@pytest.fixture(scope="module")
def workplace(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    folder = tmp_path_factory.mktemp("matrix")
    with ExitStack() as stack:
        registries = {
            kind: stack.enter_context(running_registry_of_kind(kind, folder / kind)) for kind in REGISTRY_KINDS
        }
        yield Workplace(tools, folder, registries)


def by_openssl(place: Workplace, _: RealRegistry, file: Path, signer: Signer) -> Made:
    signature = raw_signature(signer.sign(file.read_bytes()))
    return Made(Evidence("Detached", signature), _openssl(file, signature), "openssl")


def by_sign_blob_raw(place: Workplace, _: RealRegistry, file: Path, signer: Signer) -> Made:
    signature = place.tools.cosign.sign_blob(file, signer)
    return Made(
        Evidence("Detached", raw_signature(signature)),
        lambda public: place.tools.cosign.verify_blob(file, signature, public),
    )


def by_sign_blob(place: Workplace, _: RealRegistry, file: Path, signer: Signer) -> Made:
    bundle = place.tools.cosign.sign_blob_bundle(file, signer)
    return Made(
        Evidence("SigstoreBundle", bundle),
        lambda public: place.tools.cosign.verify_blob_bundle(file, bundle, public),
    )


def by_attest_blob(place: Workplace, _: RealRegistry, file: Path, signer: Signer) -> Made:
    predicate = {
        "component": FACTS.component,
        "version": FACTS.version,
        "platform": FACTS.platform,
        "size": file.stat().st_size,
    }
    bundle = place.tools.cosign.attest_blob(file, signer, predicate)
    return Made(
        Evidence("OutriderStatement", bundle),
        lambda public: place.tools.cosign.verify_blob_attestation(file, bundle, public),
    )


def by_outrider(place: Workplace, _: RealRegistry, file: Path, signer: Signer) -> Made:
    envelope = _sign(file, signer, "dsse")
    return Made(
        Evidence("OutriderStatement", envelope),
        lambda public: place.tools.cosign.verify_blob_envelope(file, envelope, public),
    )


def by_outrider_in_a_bundle(place: Workplace, _: RealRegistry, file: Path, signer: Signer) -> Made:
    bundle = _sign(file, signer, "bundle")
    return Made(
        Evidence("OutriderStatement", bundle),
        lambda public: place.tools.cosign.verify_blob_attestation(file, bundle, public),
    )


def by_sign(place: Workplace, registry: RealRegistry, file: Path, signer: Signer) -> Made:
    return _published(place, registry, file, signer, classic=False)


def by_sign_classic(place: Workplace, registry: RealRegistry, file: Path, signer: Signer) -> Made:
    return _published(place, registry, file, signer, classic=True)


def by_sign_of_an_index(place: Workplace, registry: RealRegistry, file: Path, signer: Signer) -> Made:
    return _published(place, registry, file, signer, classic=False, whole=True)


def by_sign_of_an_image(place: Workplace, registry: RealRegistry, file: Path, signer: Signer) -> Made:
    return _image(place, registry, file, signer, classic=False)


def by_sign_of_an_image_classic(place: Workplace, registry: RealRegistry, file: Path, signer: Signer) -> Made:
    return _image(place, registry, file, signer, classic=True)


ROWS = {
    "openssl dgst": (by_openssl, ("distribution-3",)),
    "cosign sign-blob, raw": (by_sign_blob_raw, ("distribution-3",)),
    "cosign sign-blob, bundle": (by_sign_blob, ("distribution-3",)),
    "cosign attest-blob, statement": (by_attest_blob, ("distribution-3",)),
    "outrider sign, statement": (by_outrider, ("distribution-3",)),
    "outrider sign, statement in a bundle": (by_outrider_in_a_bundle, ("distribution-3",)),
    "cosign sign, bundle": (by_sign, tuple(REGISTRY_KINDS)),
    "cosign sign, classic": (by_sign_classic, tuple(REGISTRY_KINDS)),
    "cosign sign of an index, bundle": (by_sign_of_an_index, ("distribution-3", "olareg")),
    "cosign sign of an image, bundle": (by_sign_of_an_image, ("distribution-3", "olareg")),
    "cosign sign of an image, classic": (by_sign_of_an_image_classic, ("distribution-3", "olareg")),
}
CELLS = [
    pytest.param(way, kind, key, id=f"{way}-{kind}-{key}")
    for way, (_, kinds) in ROWS.items()
    for kind in kinds
    for key in KEY_OPTIONS
]


@pytest.mark.parametrize(("way", "kind", "key"), CELLS)
def test_what_the_real_tools_sign_is_verified_from_the_registry(
    workplace: Workplace, make_signer: MakeSigner, reports: Reports, way: str, kind: str, key: str
) -> None:
    registry = workplace.registries[kind]
    file = workplace.file(f"{way} {kind} {key} ")
    signer, stranger = (make_signer(f"{name}-{key}", *KEY_OPTIONS[key]) for name in ("author", "stranger"))
    cell = reports.matrix.setdefault(f"{way}, {kind}", {})
    cell[key] = "FAILED"

    made = ROWS[way][0](workplace, registry, file, signer)
    with registry.client() as client:
        if (image := made.image) is not None:
            proof = _use_image(client, image, signer)
            _refused(lambda: _use_image(client, image, stranger))
        else:
            proof = _publish(client, file.read_bytes(), made.evidence, signer)
            _refused(lambda: _publish(client, file.read_bytes(), made.evidence, stranger))
            _refused(lambda: _publish(client, file.read_bytes() + b"!", made.evidence, signer))
        assert (proof.format, proof.binds) == (made.evidence.format, made.evidence.format == "OutriderStatement")

    made.check(signer.public)
    with pytest.raises((ToolError, subprocess.CalledProcessError)):
        made.check(stranger.public)
    cell[key] = f"{made.evidence.format}, {made.by} agrees"


def _publish(client: OciRegistry, content: bytes, evidence: Evidence, signer: Signer) -> Verification:
    """Store a file and its evidence, read both back and verify what was read by one key. Raises Stalling."""
    repository = f"{OURS}/{sha256_of(content)[:16]}"
    with from_bytes("test", content) as source:
        blob = ingest(client, repository, source, sha256_of(content))
    manifest = store_artifact_manifest(client, repository, blob, FACTS)
    store_evidence(client, repository, manifest, evidence)
    key: TrustedKey = parse_public_key(signer.public.read_bytes(), "test")
    stored = read_back(client, repository, manifest.digest, keys=[key])
    assert stored is not None
    assert stored.evidence == (evidence,)
    return verify_artifact(
        component=stored.facts.component,
        namespace="default",
        version=stored.facts.version,
        platform=stored.facts.platform,
        size=stored.size,
        expected_sha256=sha256_of(content),
        actual_sha256=stored.sha256,
        evidence=stored.evidence,
        keys=[key],
        further_digests=stored.further_digests,
    )


def _sign(file: Path, signer: Signer, format_: str) -> bytes:
    """Return the statement that `outrider sign` makes about the file."""
    output = file.with_suffix(".statement")
    named = ("--component", FACTS.component, "--version", FACTS.version, "--platform", FACTS.platform)
    options = ("--key", str(signer.private), "--format", format_, "--output", str(output))
    result = CliRunner().invoke(main, ("sign", str(file), *named, *options))
    assert result.exit_code == 0, result.output
    return output.read_bytes()


def _published(
    place: Workplace, registry: RealRegistry, file: Path, signer: Signer, *, classic: bool, whole: bool = False
) -> Made:
    """Publish the file with oras, sign it (or the index above it) with cosign, and find both as the operator does."""
    content = file.read_bytes()
    repository = f"{registry.host}/{THEIRS}/{sha256_of(content)[:16]}"
    digest = place.tools.oras.push(f"{repository}:1.4.0", file, platform=FACTS.platform)
    if whole:
        digest = place.tools.oras.index(f"{repository}:all", digest)
    reference = f"{repository}@{digest}"
    place.tools.cosign.sign(reference, signer, classic=classic)
    with registry.client() as client:
        artifact = open_artifact(parse_reference(reference), sha256_of(content), client, platform=FACTS.platform)
        with artifact.source as source:
            assert b"".join(source.chunks) == content
        (evidence,) = collect_evidence(client, parse_reference(reference).repository, artifact.chain)
    assert len(evidence.chain) == (2 if whole else 1)
    return Made(evidence, lambda public: _verify(place, reference, public, classic=classic))


def _image(place: Workplace, registry: RealRegistry, file: Path, signer: Signer, *, classic: bool) -> Made:
    """Publish an image for two platforms, sign its index, and copy it as the operator does."""
    name = sha256_of(file.read_bytes())[:16]
    theirs = f"{THEIRS}/{name}"
    images = [
        place.tools.crane.push_image(f"{registry.host}/{theirs}:{arch}", {"agent": file.read_bytes()}, arch)
        for arch in ("amd64", "arm64")
    ]
    digest = place.tools.crane.push_index(
        f"{registry.host}/{theirs}:1.4.0", *(f"{registry.host}/{theirs}@{image}" for image in images)
    )
    place.tools.cosign.sign(f"{registry.host}/{theirs}@{digest}", signer, classic=classic)
    ours = f"{OURS}/{name}"
    with registry.client() as client:
        assert copy_image(client, client, theirs, ours, digest).digest == digest
        evidence = _image_evidence(client, ours, digest)
    copied = f"{registry.host}/{ours}@{digest}"
    return Made(evidence, lambda public: _verify(place, copied, public, classic=classic), image=(ours, digest))


def _image_evidence(client: OciRegistry, repository: str, digest: str) -> Evidence:
    """Return the one piece of evidence about an image, which its registry has."""
    reference = parse_reference(f"{client.host}/{repository}@{digest}")
    image = resolve_image(reference, digest.removeprefix("sha256:"), FACTS.platform, client)
    (evidence,) = collect_evidence(client, repository, [image.document.content])
    return evidence


def _use_image(client: OciRegistry, image: tuple[str, str], signer: Signer) -> Verification:
    """Verify an image where it is by one key. Raises Stalling."""
    repository, digest = image
    sha256 = digest.removeprefix("sha256:")
    return verify_artifact(
        component=FACTS.component,
        namespace="default",
        version=FACTS.version,
        platform=FACTS.platform,
        size=None,
        expected_sha256=sha256,
        actual_sha256=sha256,
        evidence=[_image_evidence(client, repository, digest)],
        keys=[parse_public_key(signer.public.read_bytes(), "test")],
    )


def _refused(attempt: Callable[[], Verification]) -> None:
    with pytest.raises(Stalling) as refusal:
        attempt()
    assert refusal.value.reason in {"SignatureUntrusted", "StatementMismatch", "EvidenceMalformed"}


def _verify(place: Workplace, reference: str, public: Path, *, classic: bool) -> None:
    place.tools.cosign.verify(reference, public, classic=classic)


def _openssl(file: Path, signature: bytes) -> Check:
    def check(public: Path) -> None:
        written = file.with_suffix(".sig")
        written.write_bytes(signature)
        command: list[str | Path] = ["openssl", "dgst", "-sha256", "-verify", public, "-signature", written, file]
        subprocess.run(command, check=True, capture_output=True)

    return check
