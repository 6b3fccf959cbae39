"""What `outrider verify` does: the operator's own functions, on a file or on what lies in a registry."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from outrider.adapters.ingest import parse_artifact_manifest, parse_index, read_back
from outrider.adapters.registry import INDEX_TYPE, MAX_MANIFEST_BYTES, ManifestDocument, OciRegistry, RegistrySettings
from outrider.api.errors import OutriderError, Stalling
from outrider.api.names import ARTIFACT_TYPE
from outrider.trust.detached import MAX_TEXT_BYTES, decode_signature
from outrider.trust.digest import Sha256Stream
from outrider.trust.documents import Malformed, parse_object
from outrider.trust.evidence import Evidence
from outrider.trust.keys import TrustedKey
from outrider.trust.verify import BINDING, Verification, further_algorithms, verify_artifact

Result = Literal["Passed", "Refused", "CannotTell"]

_SAY_NOTHING: Final = (
    "ArtifactMissing",
    "CredentialsMalformed",
    "RegistryDenied",
    "RegistryInvalid",
    "RegistryRefused",
    "RepositoryInvalid",
)
"""Refusals that say nothing about the artifact: it could not be looked at."""

_REFERENCE: Final = re.compile(
    r"(?P<host>[A-Za-z0-9\[][^/@\s]*[A-Za-z0-9\]])/(?P<repository>[a-z0-9][^@\s:]*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
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


@dataclass(frozen=True)
class Reference:
    """A manifest or an index in a registry."""

    host: str
    repository: str
    name: str
    """A digest, or a tag."""


def parse_reference(text: str) -> Reference | None:
    """Return the reference in a text such as `host/repository:tag` or `host/repository@sha256:…`; None if it is none.

    A tag beside a digest is not looked at, as everywhere. Without either it is the tag `latest`.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or not re.search(r"[.:]|^localhost$", match["host"]):
        return None
    return Reference(match["host"], match["repository"], match["digest"] or match["tag"] or "latest")


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


def verify_reference(reference: Reference, settings: RegistrySettings, expected: Expectation) -> list[Outcome]:
    """Verify what lies in a registry: each platform of a version, or the one that is expected."""
    subject = f"{reference.host}/{reference.repository}"
    try:
        with OciRegistry(settings) as registry:
            document = registry.get_manifest(reference.repository, reference.name)
            if document is None:
                raise _missing(subject, reference.name)
            return _verify_document(registry, reference, document, expected)
    except OutriderError as error:
        return [Outcome(f"{subject}@{reference.name}" if ":" in reference.name else subject, error=error)]


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


def _missing(repository: str, name: str) -> Stalling:
    return Stalling("ArtifactMissing", f"there is no {name} in {repository}; was it deleted, or is it a typing error?")


def _verify_document(
    registry: OciRegistry, reference: Reference, document: ManifestDocument, expected: Expectation
) -> list[Outcome]:
    kind = _read_kind(document)
    if kind.artifact_type != ARTIFACT_TYPE:
        raise Stalling(
            "ManifestInvalid",
            f"{document.digest} is none of Outrider's manifests ({ARTIFACT_TYPE}); give a stored version's reference",
        )
    if kind.media_type != INDEX_TYPE:
        return [_verify_stored(registry, reference, document.digest, expected)]
    entries = parse_index(document)
    wanted = [expected.platform] if expected.platform else sorted(entries)
    if expected.platform and expected.platform not in entries:
        raise Stalling(
            "PlatformMissing",
            f"this version has no artifact for {expected.platform}, only for {', '.join(sorted(entries))}",
        )
    return [_verify_stored(registry, reference, entries[platform].digest, expected) for platform in wanted]


def _verify_stored(registry: OciRegistry, reference: Reference, digest: str, expected: Expectation) -> Outcome:
    """Verify one platform of a stored version as the operator does: read back whole, hashed, with all evidence."""
    outcome = Outcome(f"{reference.host}/{reference.repository}@{digest}")
    try:
        document = registry.get_manifest(reference.repository, digest)
        if document is None:
            raise _missing(reference.repository, digest)
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
        stored = read_back(registry, reference.repository, digest, keys=expected.keys)
        if stored is None:
            raise _missing(reference.repository, manifest.blob.digest)
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
