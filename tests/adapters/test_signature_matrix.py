"""Every way to sign, with every kind of key, on every kind of registry: made by the real tools, verified by ours.

Each cell signs a file, stores the file and the signature as a version is stored, reads both back and verifies what was
read. Then the tool that can verify it, too, has to agree: on that, and that it was not signed by another key.
"""

import json
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
from adapters.signing import Signer
from outrider.__main__ import main
from outrider.adapters.ingest import ArtifactFacts, ingest, read_back, store_artifact_manifest, store_evidence
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
    by: str
    """The name of the tool that verifies."""


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
        "cosign",
    )


def by_sign_blob(place: Workplace, _: RealRegistry, file: Path, signer: Signer) -> Made:
    bundle = place.tools.cosign.sign_blob_bundle(file, signer)
    return Made(
        Evidence("SigstoreBundle", bundle),
        lambda public: place.tools.cosign.verify_blob_bundle(file, bundle, public),
        "cosign",
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
        "cosign",
    )


def by_outrider(place: Workplace, _: RealRegistry, file: Path, signer: Signer) -> Made:
    envelope = _sign(file, signer, "dsse")
    return Made(
        Evidence("OutriderStatement", envelope),
        lambda public: place.tools.cosign.verify_blob_envelope(file, envelope, public),
        "cosign",
    )


def by_outrider_in_a_bundle(place: Workplace, _: RealRegistry, file: Path, signer: Signer) -> Made:
    bundle = _sign(file, signer, "bundle")
    return Made(
        Evidence("OutriderStatement", bundle),
        lambda public: place.tools.cosign.verify_blob_attestation(file, bundle, public),
        "cosign",
    )


def by_sign(place: Workplace, registry: RealRegistry, file: Path, signer: Signer) -> Made:
    return _published(place, registry, file, signer, classic=False)


def by_sign_classic(place: Workplace, registry: RealRegistry, file: Path, signer: Signer) -> Made:
    return _published(place, registry, file, signer, classic=True)


ROWS = {
    "openssl dgst": (by_openssl, ("distribution-3",)),
    "cosign sign-blob, raw": (by_sign_blob_raw, ("distribution-3",)),
    "cosign sign-blob, bundle": (by_sign_blob, ("distribution-3",)),
    "cosign attest-blob, statement": (by_attest_blob, ("distribution-3",)),
    "outrider sign, statement": (by_outrider, ("distribution-3",)),
    "outrider sign, statement in a bundle": (by_outrider_in_a_bundle, ("distribution-3",)),
    "cosign sign, bundle": (by_sign, tuple(REGISTRY_KINDS)),
    "cosign sign, classic": (by_sign_classic, tuple(REGISTRY_KINDS)),
}
CELLS = [
    pytest.param(way, kind, key, id=f"{way}-{kind}-{key}")
    for way, (_, kinds) in ROWS.items()
    for kind in kinds
    for key in KEY_OPTIONS
]


@pytest.mark.parametrize(("way", "kind", "key"), CELLS)
def test_what_the_real_tools_sign_is_verified_from_the_registry(
    workplace: Workplace, signers: dict[str, Signer], reports: Reports, way: str, kind: str, key: str
) -> None:
    registry = workplace.registries[kind]
    file = workplace.file(f"{way} {kind} {key} ")
    signer, stranger = signers[key], signers["P-256" if key != "P-256" else "P-384"]
    cell = reports.matrix.setdefault(f"{way}, {kind}", {})
    cell[key] = "FAILED"

    made = ROWS[way][0](workplace, registry, file, signer)
    with registry.client() as client:
        proof = _publish(client, file.read_bytes(), made.evidence, signer)
        assert (proof.format, proof.binds) == (made.evidence.format, made.evidence.format == "OutriderStatement")
        with pytest.raises(Stalling) as refusal:
            _publish(client, file.read_bytes(), made.evidence, stranger)
        assert refusal.value.reason == "SignatureUntrusted"
        with pytest.raises(Stalling) as refusal:
            _publish(client, file.read_bytes() + b"!", made.evidence, signer)
        assert refusal.value.reason in {"SignatureUntrusted", "StatementMismatch", "EvidenceMalformed"}

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


def _published(place: Workplace, registry: RealRegistry, file: Path, signer: Signer, *, classic: bool) -> Made:
    """Publish the file with oras, sign it with cosign and collect the signature from where cosign put it."""
    repository = f"{THEIRS}/{sha256_of(file.read_bytes())[:16]}"
    digest = place.tools.oras.push(f"{registry.host}/{repository}:1.4.0", file, platform=FACTS.platform)
    reference = f"{registry.host}/{repository}@{digest}"
    place.tools.cosign.sign(reference, signer, classic=classic)
    with registry.client() as client:
        evidence = _collect_classic(client, repository, digest) if classic else _collect(client, repository, digest)
    return Made(
        evidence, lambda public: _ignore(place.tools.cosign.verify(reference, public, classic=classic)), "cosign"
    )


def _collect(client: OciRegistry, repository: str, digest: str) -> Evidence:
    (referrer,) = client.referrers(repository, digest, "application/vnd.dev.sigstore.bundle.v0.3+json")
    layer = json.loads(_manifest(client, repository, referrer.descriptor.digest))["layers"][0]
    return Evidence(
        "SigstoreAttestation",
        _blob(client, repository, layer["digest"]),
        chain=(_manifest(client, repository, digest),),
    )


def _collect_classic(client: OciRegistry, repository: str, digest: str) -> Evidence:
    (layer,) = json.loads(_manifest(client, repository, f"{digest.replace(':', '-')}.sig"))["layers"]
    return Evidence(
        "CosignClassic",
        _blob(client, repository, layer["digest"]),
        layer["annotations"]["dev.cosignproject.cosign/signature"],
        (_manifest(client, repository, digest),),
    )


def _manifest(client: OciRegistry, repository: str, reference: str) -> bytes:
    document = client.get_manifest(repository, reference)
    assert document is not None
    return document.content


def _blob(client: OciRegistry, repository: str, digest: str) -> bytes:
    stream = client.open_blob(repository, digest)
    assert stream is not None
    with stream:
        return b"".join(stream)


def _openssl(file: Path, signature: bytes) -> Check:
    def check(public: Path) -> None:
        written = file.with_suffix(".sig")
        written.write_bytes(signature)
        command: list[str | Path] = ["openssl", "dgst", "-sha256", "-verify", public, "-signature", written, file]
        subprocess.run(command, check=True, capture_output=True)

    return check


def _ignore(_: object) -> None:
    """Make a check of something that returns more than a check does."""
