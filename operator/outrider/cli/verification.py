"""What `outrider verify` does: the operator's own functions, on a file or on what lies in a registry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from outrider.adapters.ingest import parse_artifact_manifest, parse_index, read_back
from outrider.adapters.ocisource import OciReference, collect_evidence, open_artifact, resolve_image
from outrider.adapters.registry import INDEX_TYPE, MAX_MANIFEST_BYTES, ManifestDocument, OciRegistry, RegistrySettings
from outrider.api.errors import OutriderError, Stalling
from outrider.api.names import ARTIFACT_TYPE
from outrider.trust.detached import MAX_TEXT_BYTES, decode_signature
from outrider.trust.digest import ALGORITHM, Sha256Stream
from outrider.trust.documents import Malformed, parse_object
from outrider.trust.evidence import Evidence
from outrider.trust.keys import TrustedKey
from outrider.trust.verify import BINDING, Verification, further_algorithms, verify_artifact

Result = Literal["Passed", "Refused", "CannotTell"]

_SAY_NOTHING: Final = (
    "AddressNotAllowed",
    "ArtifactMissing",
    "CredentialsMalformed",
    "RegistryDenied",
    "RegistryInvalid",
    "RegistryRefused",
    "RepositoryInvalid",
    "SourceNotFound",
)
"""Refusals that say nothing about the artifact: it could not be looked at."""

_BLOCK: Final = 1024 * 1024


class UsageError(Exception):
    """The command was not told what it needs; the text says what."""


@dataclass(frozen=True)
class Expectation:
    """What is expected of an artifact, and by whose word."""

    keys: Sequence[TrustedKey]
    component: str = ""
    version: str = ""
    platform: str = ""
    namespace: str = ""
    sha256: str = ""
    require_binding: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one artifact: a proof, or why there is none."""

    subject: str
    platform: str = ""
    size: int | None = None
    sha256: str = ""
    proof: Verification | None = None
    error: OutriderError | None = None

    @property
    def result(self) -> Result:
        """Passed, refused, or cannot tell."""
        if self.proof is not None:
            return "Passed"
        is_verdict = isinstance(self.error, Stalling) and self.error.reason not in _SAY_NOTHING
        return "Refused" if is_verdict else "CannotTell"


def read_signature(data: bytes) -> Evidence:
    """Return the detached signature in a file, in base64 (as cosign writes it) or raw (as openssl does).

    Raises Stalling(SignatureMalformed).
    """
    if data.isascii() and len(data) <= MAX_TEXT_BYTES:
        return Evidence("Detached", decode_signature(data.decode("ascii")))
    return Evidence("Detached", data)


def verify_file(path: Path, evidence: Evidence, expected: Expectation) -> Outcome:
    """Verify a file with the evidence that was given for it. Raises UsageError."""
    if evidence.format == BINDING:
        for option, value in (
            ("--component", expected.component),
            ("--version", expected.version),
            ("--platform", expected.platform),
        ):
            if not value:
                raise UsageError(f"a statement says what the file was made for: give {option}, which it has to name")
    stream = Sha256Stream(further_algorithms([evidence], expected.keys))
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                stream.update(block)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {(error.strerror or 'unknown error').lower()}") from None
    return _judge(
        Outcome(str(path), expected.platform, stream.size, stream.sha256),
        [evidence],
        stream.further,
        expected,
        component=expected.component or path.name,
        version=expected.version,
    )


def verify_reference(reference: OciReference, settings: RegistrySettings, expected: Expectation) -> list[Outcome]:
    """Verify what lies in a registry.

    Of a version that Outrider stored each platform is verified, or the one that is expected, as it is on a node. Of
    anything else either the document itself, as an image is, or the file with the SHA-256 that is expected.
    """
    subject = str(reference)
    try:
        with OciRegistry(settings) as registry:
            document = registry.get_manifest(reference.repository, reference.digest or reference.tag or "")
            if document is None:
                raise _missing(subject)
            pinned = OciReference(reference.host, reference.repository, document.digest)
            kind = _read_kind(document)
            if kind.artifact_type != ARTIFACT_TYPE:
                return [_verify_foreign(registry, reference, document, expected)]
            if kind.media_type != INDEX_TYPE:
                return [_verify_stored(registry, pinned, expected)]
            return _verify_index(registry, pinned, document, expected)
    except OutriderError as error:
        return [Outcome(subject, error=error)]


def _verify_index(
    registry: OciRegistry, reference: OciReference, document: ManifestDocument, expected: Expectation
) -> list[Outcome]:
    entries = parse_index(document)
    if expected.platform and expected.platform not in entries:
        raise Stalling(
            "PlatformMissing",
            f"this version has no artifact for {expected.platform}, only for {', '.join(sorted(entries))}",
        )
    wanted = [expected.platform] if expected.platform else sorted(entries)
    return [
        _verify_stored(registry, OciReference(reference.host, reference.repository, entries[platform].digest), expected)
        for platform in wanted
    ]


def _verify_stored(registry: OciRegistry, reference: OciReference, expected: Expectation) -> Outcome:
    """Verify one platform of a stored version as the operator does: read back whole, hashed, with all evidence."""
    repository, digest = reference.repository, reference.digest or ""
    outcome = Outcome(str(reference))
    try:
        document = registry.get_manifest(repository, digest)
        if document is None:
            raise _missing(str(reference))
        manifest = parse_artifact_manifest(document)
        facts = manifest.facts
        outcome = Outcome(outcome.subject, facts.platform)
        for what, said, meant in (
            ("component", facts.component, expected.component),
            ("version", facts.version, expected.version),
            ("platform", facts.platform, expected.platform),
        ):
            if meant and said != meant:
                raise Stalling("ManifestInvalid", f"it is about {what} {said}, and {meant} was expected")
        stored = read_back(registry, repository, digest, keys=expected.keys)
        if stored is None:
            raise _missing(f"{manifest.blob.digest} of {reference}")
    except OutriderError as error:
        return Outcome(outcome.subject, outcome.platform, error=error)
    return _judge(
        Outcome(outcome.subject, facts.platform, stored.size, stored.sha256),
        stored.evidence,
        stored.further_digests,
        expected,
        component=facts.component,
        version=facts.version,
    )


def _verify_foreign(
    registry: OciRegistry, reference: OciReference, document: ManifestDocument, expected: Expectation
) -> Outcome:
    """Verify an image by its own document, or a file in an artifact, with what cosign signed about either."""
    pinned = OciReference(reference.host, reference.repository, document.digest)
    sha256 = document.digest.removeprefix(ALGORITHM)
    chain: tuple[bytes, ...] = (document.content,)
    artifact = None
    if expected.sha256 not in {"", sha256}:
        artifact = open_artifact(pinned, expected.sha256, registry, platform=expected.platform or None)
        chain = artifact.chain
    elif expected.platform:
        resolve_image(pinned, sha256, expected.platform, registry)
    evidence = collect_evidence(registry, pinned.repository, chain)
    stream = Sha256Stream(further_algorithms(evidence, expected.keys))
    if artifact is None:
        stream.update(document.content)
    else:
        with artifact.source as source:
            for chunk in source.chunks:
                stream.update(chunk)
    return _judge(
        Outcome(str(pinned), expected.platform, stream.size, stream.sha256),
        evidence,
        stream.further,
        expected,
        component=expected.component or pinned.repository.rpartition("/")[2],
        version=expected.version or reference.tag or "",
    )


@dataclass(frozen=True)
class _Kind:
    media_type: str
    artifact_type: str


def _read_kind(document: ManifestDocument) -> _Kind:
    """Return what a manifest says that it is, inside, where its digest covers it."""
    try:
        content = parse_object(document.content, max_bytes=MAX_MANIFEST_BYTES)
    except Malformed as error:
        raise Stalling("ManifestInvalid", f"the manifest {document.digest} cannot be read: {error}") from None
    media_type, artifact_type = content.get("mediaType"), content.get("artifactType")
    return _Kind(
        media_type if isinstance(media_type, str) else document.media_type,
        artifact_type if isinstance(artifact_type, str) else "",
    )


def _missing(what: str) -> Stalling:
    return Stalling("ArtifactMissing", f"there is no {what}; was it deleted, or is it a typing error?")


def _judge(
    outcome: Outcome,
    evidence: Sequence[Evidence],
    further_digests: Mapping[str, str],
    expected: Expectation,
    *,
    component: str,
    version: str,
) -> Outcome:
    try:
        proof = verify_artifact(
            component=component,
            namespace=expected.namespace,
            version=version,
            platform=outcome.platform,
            size=outcome.size,
            expected_sha256=expected.sha256 or outcome.sha256,
            actual_sha256=outcome.sha256,
            further_digests=further_digests,
            evidence=evidence,
            keys=expected.keys,
            require_binding=expected.require_binding,
        )
    except OutriderError as error:
        return Outcome(outcome.subject, outcome.platform, outcome.size, outcome.sha256, error=error)
    return Outcome(outcome.subject, outcome.platform, outcome.size, outcome.sha256, proof=proof)
