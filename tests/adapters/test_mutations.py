"""Nothing that was signed can be changed, and nothing that was not signed helps: tried byte by byte.

What is changed was made by the real tools with a P-256 key. A mutation is any changed, missing or additional byte of
the file, of the document as it is stored, of what is signed in it, of the signature, of the OCI documents that lead to
the file, and of the evidence as our registry holds it. Each must be refused. Only a change that leaves the meaning as
it was may pass, and `_rule` lists what that is.
"""

import base64
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adapters.realservers import RealRegistry, sha256_of
from adapters.realtools import Tools, raw_signature
from adapters.reports import Mutations, Reports
from adapters.signing import Signer
from outrider.adapters.ingest import ArtifactFacts, load_evidence, store_artifact_manifest, store_evidence
from outrider.adapters.ocisource import collect_evidence, open_artifact, parse_reference
from outrider.adapters.registry import MANIFEST_TYPE, Descriptor, OciRegistry
from outrider.api.errors import Stalling
from outrider.api.names import STATEMENT_TYPE
from outrider.trust.digest import digest_of
from outrider.trust.evidence import FORMATS, Evidence, decode_evidence, encode_evidence
from outrider.trust.keys import TrustedKey, parse_public_key
from outrider.trust.signing import parse_private_key, sign_statement
from outrider.trust.statement import COSIGN_SIGN_TYPE, Binding, build_statement
from outrider.trust.verify import Verification, verify_artifact

COMPONENT = "agent"
VERSION = "1.4.0"
PLATFORM = "linux/amd64"
ARTIFACT = bytes(range(256)) + b"#!/bin/sh\nexec node-agent\n"
OTHER = b"something else"

NAMES = (
    "openssl dgst",
    "cosign sign-blob, bundle",
    "cosign sign, bundle",
    "cosign sign, bundle over an index",
    "cosign sign, classic",
    "cosign attest-blob, statement",
    "outrider sign, statement",
)
BINDING = NAMES[-2:]


@dataclass(frozen=True)
class Signed:
    """A file and the evidence that the holder of a key vouched for it."""

    evidence: Evidence
    key: TrustedKey
    stranger: TrustedKey
    """A key that signed nothing."""


@pytest.fixture(scope="module")
def signed(
    tools: Tools, signers: dict[str, Signer], shared_registry: RealRegistry, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Signed]:
    signer = signers["P-256"]
    file = tmp_path_factory.mktemp("mutations") / "node-agent"
    file.write_bytes(ARTIFACT)
    binding = Binding(COMPONENT, VERSION, PLATFORM, len(ARTIFACT))
    predicate = {"component": COMPONENT, "version": VERSION, "platform": PLATFORM, "size": len(ARTIFACT)}
    private = parse_private_key(signer.private.read_bytes(), "test")
    payload = build_statement(binding, file.name, sha256_of(ARTIFACT))
    key = parse_public_key(signer.public.read_bytes(), "signer")
    stranger = parse_public_key(signers["P-384"].public.read_bytes(), "stranger")

    repository = f"{shared_registry.host}/mutations"
    digest = tools.oras.push(f"{repository}:1", file, platform=PLATFORM)
    index = tools.oras.index(f"{repository}:all", digest)
    for reference in (f"{repository}@{digest}", f"{repository}@{index}"):
        tools.cosign.sign(reference, signer)
    tools.cosign.sign(f"{repository}@{digest}", signer, classic=True)
    manifest = tools.oras.manifest(f"{repository}@{digest}")
    signature = json.loads(tools.oras.manifest(f"{repository}:{digest.replace(':', '-')}.sig"))["layers"][0]

    made = {
        "openssl dgst": Evidence("Detached", raw_signature(signer.sign(ARTIFACT))),
        "cosign sign-blob, bundle": Evidence("SigstoreBundle", tools.cosign.sign_blob_bundle(file, signer)),
        "cosign sign, bundle": Evidence("SigstoreAttestation", _attached(tools, repository, digest), chain=(manifest,)),
        "cosign sign, bundle over an index": Evidence(
            "SigstoreAttestation",
            _attached(tools, repository, index),
            chain=(tools.oras.manifest(f"{repository}@{index}"), manifest),
        ),
        "cosign sign, classic": Evidence(
            "CosignClassic",
            tools.oras.blob(f"{repository}@{signature['digest']}"),
            signature["annotations"]["dev.cosignproject.cosign/signature"],
            (manifest,),
        ),
        "cosign attest-blob, statement": Evidence(
            "OutriderStatement", tools.cosign.attest_blob(file, signer, predicate)
        ),
        "outrider sign, statement": Evidence("OutriderStatement", sign_statement(private, key, payload)),
    }
    assert tuple(made) == NAMES
    return {name: Signed(evidence, key, stranger) for name, evidence in made.items()}


@pytest.mark.parametrize("name", NAMES)
def test_unchanged_it_is_verified(signed: dict[str, Signed], name: str) -> None:
    assert verify(signed[name]).binds == (name in BINDING)


@pytest.mark.parametrize("name", NAMES)
def test_no_byte_of_anything_that_counts_can_be_changed(signed: dict[str, Signed], name: str, reports: Reports) -> None:
    one = signed[name]
    count = reports.mutations.setdefault(name, Mutations())
    holes: list[str] = []

    def attempt(what: str, check: Callable[[], Evidence]) -> None:
        """Count a mutation; `check` verifies it and returns the evidence that passed."""
        try:
            accepted = check()
        except Stalling:
            count.refused += 1
            return
        rule = _rule(one.evidence, accepted) if what in {"document", "evidence"} else None
        if rule is None:
            count.accepted += 1
            holes.append(what)
        else:
            count.same[rule] += 1

    def with_evidence(evidence: Evidence) -> Evidence:
        verify(one, evidence=evidence)
        return evidence

    def with_stored(stored: bytes) -> Evidence:
        return with_evidence(decode_evidence(stored))

    def with_artifact(artifact: bytes, declared: str) -> Evidence:
        verify(one, artifact=artifact, declared=declared)
        return one.evidence

    for artifact in mutations(ARTIFACT):
        attempt("file", partial(with_artifact, artifact, sha256_of(ARTIFACT)))
        # Whoever changes the file can declare what it hashes to as well.
        attempt("file and declared digest", partial(with_artifact, artifact, sha256_of(artifact)))
    for what, evidence in changed_parts(one.evidence):
        attempt(what, partial(with_evidence, evidence))
    # It holds all of that once more, in base64.
    for stored in mutations(encode_evidence(one.evidence), every=16):
        attempt("evidence", partial(with_stored, stored))

    assert not holes, f"{len(holes)} mutations were accepted, of: {sorted(set(holes))}"
    assert count.refused > 10_000


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_nobody_signed_turns_a_refusal_into_trust(
    signed: dict[str, Signed], name: str, reports: Reports
) -> None:
    one = signed[name]
    refused: dict[str, dict[str, Any]] = {
        "wrong key": {"keys": [one.stranger]},
        "wrong file": {"artifact": OTHER, "declared": sha256_of(OTHER)},
    }
    if name in BINDING:
        refused |= {
            "wrong component": {"component": "proxy"},
            "wrong version": {"version": "1.4.1"},
            "wrong platform": {"platform": "linux/arm64"},
            "wrong size": {"size": len(ARTIFACT) + 1},
        }
    else:
        refused["no binding"] = {"require_binding": True}
    variants = list(metadata_variants(one))
    assert len(variants) >= 40
    for what, settings in refused.items():
        for evidence in variants:
            with pytest.raises(Stalling):
                verify(one, evidence=evidence, **settings)
            reports.metadata[what] += 1


def test_nothing_that_lies_around_in_a_registry_makes_an_unsigned_file_a_signed_one(
    tools: Tools, signed: dict[str, Signed], client: OciRegistry, tmp_path: Path, reports: Reports
) -> None:
    file = tmp_path / "node-agent"
    file.write_bytes(OTHER)
    repository = "unsigned"
    reference = f"{client.host}/{repository}@{tools.oras.push(f'{client.host}/{repository}:1', file)}"
    artifact = open_artifact(parse_reference(reference), sha256_of(OTHER), client)
    subject = Descriptor(digest_of(artifact.chain[0]), len(artifact.chain[0]))
    ours = store_artifact_manifest(
        client, repository, artifact.blob, ArtifactFacts(COMPONENT, VERSION, PLATFORM, "node-agent")
    )

    for stolen in signed.values():
        # Beside our own manifest, as if the operator had stored it.
        store_evidence(client, repository, ours, stolen.evidence)
        # Beside the author's, as cosign would have put it, now and before.
        layer = client.push_bytes(repository, stolen.evidence.document)
        for predicate in (COSIGN_SIGN_TYPE, STATEMENT_TYPE):
            content = _bundle_manifest(subject, layer, {_PREDICATE: predicate, _TITLE: "node-agent"})
            client.push_referrer(repository, content, MANIFEST_TYPE, subject.digest)
    classic = signed["cosign sign, classic"].evidence
    about_this = classic.document.replace(digest_of(classic.chain[0]).encode(), subject.digest.encode())
    assert about_this != classic.document
    payloads = [client.push_bytes(repository, payload) for payload in (classic.document, about_this)]
    client.push_manifest(
        repository,
        _classic_manifest(payloads, classic.signature),
        MANIFEST_TYPE,
        f"{subject.digest.replace(':', '-')}.sig",
    )

    key = signed["openssl dgst"].key
    found = [
        *collect_evidence(client, repository, artifact.chain),
        *load_evidence(client, repository, ours.digest),
    ]
    assert {evidence.format for evidence in found} == set(FORMATS)
    for evidence in [*([each] for each in found), found]:
        with pytest.raises(Stalling):
            verify_artifact(
                component=COMPONENT,
                namespace="default",
                version=VERSION,
                platform=PLATFORM,
                size=len(OTHER),
                expected_sha256=sha256_of(OTHER),
                actual_sha256=sha256_of(OTHER),
                evidence=evidence,
                keys=[key],
                further_digests={"sha384": hashlib.sha384(OTHER).hexdigest()},
            )
    reports.metadata["signatures of another file, planted in a registry"] += len(found)


_BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PREDICATE = "dev.sigstore.bundle.predicateType"
_TITLE = "org.opencontainers.image.title"
_EMPTY = {
    "mediaType": "application/vnd.oci.empty.v1+json",
    "digest": f"sha256:{sha256_of(b'{}')}",
    "size": 2,
}


def _bundle_manifest(subject: Descriptor, layer: Descriptor, annotations: dict[str, str]) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": _BUNDLE_TYPE,
            "config": _EMPTY,
            "layers": [{"mediaType": _BUNDLE_TYPE, "digest": layer.digest, "size": layer.size}],
            "subject": {"mediaType": MANIFEST_TYPE, "digest": subject.digest, "size": subject.size},
            "annotations": annotations,
        }
    ).encode()


def _classic_manifest(payloads: list[Descriptor], signature: str) -> bytes:
    layers = [
        {
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "digest": payload.digest,
            "size": payload.size,
            "annotations": {"dev.cosignproject.cosign/signature": signature},
        }
        for payload in payloads
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": _EMPTY, "layers": layers}).encode()


def verify(
    one: Signed,
    *,
    artifact: bytes = ARTIFACT,
    evidence: Evidence | None = None,
    declared: str | None = None,
    keys: list[TrustedKey] | None = None,
    component: str = COMPONENT,
    version: str = VERSION,
    platform: str = PLATFORM,
    size: int | None = None,
    require_binding: bool = False,
) -> Verification:
    """Verify as it was published, but for what is given. Raises Stalling."""
    return verify_artifact(
        component=component,
        namespace="default",
        version=version,
        platform=platform,
        size=len(artifact) if size is None else size,
        expected_sha256=declared or sha256_of(ARTIFACT),
        actual_sha256=sha256_of(artifact),
        evidence=[evidence or one.evidence],
        keys=[one.key] if keys is None else keys,
        require_binding=require_binding,
        further_digests={"sha384": hashlib.sha384(artifact).hexdigest()},
    )


def mutations(data: bytes, *, every_value: bool = False, every: int = 1) -> Iterator[bytes]:
    """Return `data` with one byte changed, at each position.

    With `every_value` to each other value. At each `every`-th position also with one left out, doubled or put in, and
    cut off there.
    """
    for at in range(len(data)):
        head, byte, tail = data[:at], data[at], data[at + 1 :]
        masks = (0x01, 0x20, 0x80, 0xFF) if at % every == 0 else (0x01,)
        for value in (set(range(256)) if every_value else {byte ^ mask for mask in masks}) - {byte}:
            yield head + bytes([value]) + tail
        if at % every == 0:
            yield head + tail
            for value in (byte, 0x00, 0x20):
                yield head + bytes([value, byte]) + tail
            if tail:
                yield data[: at + 1]
    yield data + b"\0"
    yield data + b"\n"


def changed_parts(evidence: Evidence) -> Iterator[tuple[str, Evidence]]:
    """Return the evidence with one byte of one part changed, and which part it was."""
    for document in mutations(evidence.document, every_value=evidence.format == "Detached"):
        yield ("signature" if evidence.format == "Detached" else "document"), replace(evidence, document=document)
    if evidence.signature:
        for signature in mutations(base64.b64decode(evidence.signature), every_value=True):
            yield "signature", replace(evidence, signature=base64.b64encode(signature).decode())
        for text in mutations(evidence.signature.encode()):
            yield "signature", replace(evidence, signature=text.decode("latin-1"))
    for number, document in enumerate(evidence.chain):
        for changed in mutations(document, every=8):
            chain = (*evidence.chain[:number], changed, *evidence.chain[number + 1 :])
            yield "chain", replace(evidence, chain=chain)
    if evidence.format in {"SigstoreBundle", "SigstoreAttestation", "OutriderStatement"}:
        yield from _changed_inside(evidence)


def metadata_variants(one: Signed) -> Iterator[Evidence]:
    """Return the evidence with what no signature covers changed: inside the document, and around it."""
    for document in _document_variants(one):
        yield replace(one.evidence, document=document)
    signatures = {"", base64.b64encode(b"x").decode(), one.evidence.signature}
    for format_, signature, chain in itertools.product(FORMATS, signatures, _chain_variants(one.evidence.chain)):
        yield Evidence(format_, one.evidence.document, signature, chain)


_ABSENT: Any = object()


def _document_variants(one: Signed) -> Iterator[bytes]:
    document = one.evidence.document
    yield document
    if one.evidence.format == "Detached":
        return
    value = json.loads(document)
    if one.evidence.format == "CosignClassic":
        for reference in ("", "registry.example.com/agent", f"{COMPONENT}@sha256:{sha256_of(OTHER)}"):
            for optional in (_ABSENT, None, {}, {"digest": f"sha256:{sha256_of(OTHER)}"}):
                critical = {**value["critical"], "identity": {"docker-reference": reference}}
                yield _json({"critical": critical, "optional": optional})
        return
    envelope = value if "payloadType" in value else value.get("dsseEnvelope")
    hints = [_hint(one.key), _hint(one.stranger), "", _ABSENT]
    for keyid in hints if envelope is not None else [_ABSENT]:
        signatures = [{"sig": entry["sig"], "keyid": keyid} for entry in envelope["signatures"]] if envelope else None
        if envelope is value:
            yield _json({**value, "signatures": signatures})
            continue
        contents: list[dict[str, Any]] = (
            [{"dsseEnvelope": {**envelope, "signatures": signatures}}]
            if envelope
            else [
                {"messageSignature": {**value["messageSignature"], "messageDigest": digest}}
                for digest in _message_digests()
            ]
        )
        for hint, log, stamp, kind, content in itertools.product(hints, _LOGS, _STAMPS, _MEDIA_TYPES, contents):
            material = {"publicKey": {"hint": hint}, "tlogEntries": log, "timestampVerificationData": stamp}
            yield _json({"mediaType": kind, "verificationMaterial": material, **content})
    yield _json({**value, "verificationMaterial": {"certificate": {"rawBytes": "AAAA"}}})
    yield _json({**value, "verificationMaterial": {"x509CertificateChain": {"certificates": []}}})


_LOGS: tuple[Any, ...] = (_ABSENT, [], [{"logIndex": "1", "integratedTime": "1700000000"}], None)
_STAMPS: tuple[Any, ...] = (_ABSENT, {}, {"rfc3161Timestamps": [{"signedTimestamp": "AAAA"}]})
_MEDIA_TYPES = (
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
    "application/vnd.dev.sigstore.bundle+json;version=0.2",
    "",
)


def _message_digests() -> Iterator[Any]:
    yield _ABSENT
    for content in (ARTIFACT, OTHER):
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        yield {"algorithm": "SHA2_256", "digest": digest}
        yield {"algorithm": "SHA2_384", "digest": base64.b64encode(hashlib.sha384(content).digest()).decode()}


def _chain_variants(chain: tuple[bytes, ...]) -> Iterator[tuple[bytes, ...]]:
    """Return the chain as it is, without, and such as would lead to the other file."""
    layer = {"mediaType": "application/octet-stream", "digest": f"sha256:{sha256_of(OTHER)}", "size": len(OTHER)}
    made_up = json.dumps({"schemaVersion": 2, "layers": [layer]}).encode()
    yield chain
    yield (made_up,)
    yield *chain, made_up
    yield *chain, OTHER
    if chain:
        yield ()
        value = json.loads(chain[-1])
        annotated = {**value, "annotations": {"org.opencontainers.image.title": "other"}}
        yield *chain[:-1], json.dumps(annotated).encode()
        if "layers" in value:
            yield *chain[:-1], json.dumps({**value, "layers": [*value["layers"], layer]}).encode()


def _hint(key: TrustedKey) -> str:
    return base64.b64encode(bytes.fromhex(key.fingerprint.removeprefix("sha256:"))).decode()


def _json(value: Any) -> bytes:
    return json.dumps(_present(value)).encode()


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _present(member) for name, member in value.items() if member is not _ABSENT}
    return [_present(member) for member in value] if isinstance(value, list) else value


def _changed_inside(evidence: Evidence) -> Iterator[tuple[str, Evidence]]:
    """Return the evidence with one byte changed of what is signed in a document, or of the signature in it."""
    value = json.loads(evidence.document)

    def put(holder: dict[str, Any], name: str, content: bytes) -> Evidence:
        before, holder[name] = holder[name], base64.b64encode(content).decode()
        document = json.dumps(value).encode()
        holder[name] = before
        return replace(evidence, document=document)

    if "messageSignature" in value:
        places = [("signature", value["messageSignature"], "signature")]
    else:
        envelope = value if "payloadType" in value else value["dsseEnvelope"]
        places = [("signature", envelope["signatures"][0], "sig"), ("payload", envelope, "payload")]
    for what, holder, name in places:
        for content in mutations(base64.b64decode(holder[name]), every_value=what == "signature"):
            yield what, put(holder, name, content)


def _rule(original: Evidence, accepted: Evidence) -> str | None:
    """Return why accepted evidence means the same as the original; None if it does not, which makes it a hole.

    1. The same JSON, spelled in another way: whitespace between tokens.
    2. Another hint at which key it was. Nobody signs it, and nothing reads it.
    """
    if replace(accepted, document=original.document) != original:
        return None
    if original.document == accepted.document:
        return "by whitespace in JSON"
    if original.format in {"Detached", "CosignClassic"}:
        return None
    before, after = (json.loads(evidence.document, object_pairs_hook=_Pairs) for evidence in (original, accepted))
    if before == after:
        return "by whitespace in JSON"
    if _without_hint(before) == _without_hint(after):
        return "in the key's hint"
    return None


class _Pairs(list[Any]):
    """An object as its members stand in the text, so that none hides another."""


def _without_hint(pairs: Any) -> Any:
    return _Pairs(
        (name, _Pairs([("publicKey", _Pairs((key, "") for key, _ in member[0][1])), *member[1:]]))
        if name == "verificationMaterial"
        else (name, member)
        for name, member in pairs
    )


def _attached(tools: Tools, repository: str, digest: str) -> bytes:
    (referrer,) = tools.oras.discover(f"{repository}@{digest}")
    manifest = json.loads(tools.oras.manifest(f"{repository}@{referrer['digest']}"))
    return tools.oras.blob(f"{repository}@{manifest['layers'][0]['digest']}")
