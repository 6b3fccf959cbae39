"""From a source into the registry, and back out of it for verification.

*Layout.* A repository holds one component of one namespace. Each platform of a version is an OCI 1.1 image manifest
with artifactType `application/vnd.outrider.component.v1`, an empty config and one layer, which is the file. An image
index names the platforms of a version; it carries the version as its tag once published. Any OCI client can fetch it.
What vouches for a file lies beside its manifest, as referrers: manifests with artifactType
`application/vnd.outrider.evidence.v1+json` whose only layer is one piece of evidence. So a version can be signed again
without a change to what nodes have pinned.

*Invariants.* Nothing is stored under a digest that was not expected. The same input gives the same bytes, so that doing
it twice changes nothing. Until publication nothing carries a tag that is a semantic version. Nothing that is read back
is believed but what its digest covers; who refers to a manifest is covered by nothing, so that evidence may be added or
withheld by whoever writes to the registry, and is worth what verification makes of it.
"""

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from outrider.adapters.registry import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    Descriptor,
    ManifestDocument,
    OciRegistry,
    Referrer,
)
from outrider.adapters.sources import Source
from outrider.api.errors import Stalling, Transient
from outrider.api.names import ARTIFACT_TYPE, EVIDENCE_TYPE, LAYER_TYPE
from outrider.trust.digest import ALGORITHM, digest_of, is_digest, parse_digest, parse_sha256
from outrider.trust.documents import Malformed, canonical_json, parse_object
from outrider.trust.evidence import MAX_EVIDENCE_BYTES, MAX_PIECES, Evidence, decode_evidence, encode_evidence
from outrider.trust.keys import TrustedKey
from outrider.trust.verify import further_algorithms

logger = logging.getLogger(__name__)

TITLE: Final = "org.opencontainers.image.title"
"""Where OCI clients find the name of a layer's file."""
ANNOTATION_COMPONENT: Final = "dev.outrider.component"
ANNOTATION_VERSION: Final = "dev.outrider.version"
ANNOTATION_PLATFORM: Final = "dev.outrider.platform"

FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""A plain file name, as in ComponentVersion: no path, nothing hidden."""

_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_EMPTY: Final = b"{}"
"""The empty config of OCI 1.1 ("Guidance for an Empty Descriptor")."""

_MAX_LOOKED_AT: Final = 4 * MAX_PIECES
"""So many referrers are fetched in search of evidence that can be read."""
_MAX_EVIDENCE_MANIFEST_BYTES: Final = 64 * 1024
_OF_THE_PIECE: Final = ("ManifestInvalid", "BlobCorrupted", "EvidenceMalformed")
"""Refusals that concern one piece of evidence: the others are looked at all the same."""


@dataclass(frozen=True)
class ArtifactFacts:
    """What a stored artifact says about itself. Signatures cover none of it; statements have to say the same."""

    component: str
    version: str
    platform: str
    """`os/arch`."""
    file_name: str


@dataclass(frozen=True)
class ArtifactManifest:
    """The manifest of one platform, parsed: where the file is, and what it is said to be."""

    digest: str
    """Of the manifest itself."""
    blob: Descriptor
    facts: ArtifactFacts


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact as it was read back from the registry just now, all of it."""

    sha256: str
    """64 hex digits: what the stored bytes hash to, recomputed."""
    size: int
    """Bytes."""
    facts: ArtifactFacts
    evidence: tuple[Evidence, ...] = ()
    """What lies beside it to vouch for it; nothing of it verified."""
    further_digests: Mapping[str, str] = field(default_factory=dict)
    """Further digests of the stored bytes, in hex by algorithm, where a key and the evidence ask for them."""


def look_up(registry: OciRegistry, repository: str, manifest_digest: str) -> StoredArtifact | None:
    """Return a stored artifact without reading its file: only that it is there is asked.

    Its hash is the one that the manifest names. For when the evidence has to be judged again and the bytes were read
    before. None and raises as `read_back`.
    """
    document = registry.get_manifest(repository, manifest_digest)
    if document is None:
        return None
    manifest = parse_artifact_manifest(document)
    if registry.blob_size(repository, manifest.blob.digest) != manifest.blob.size:
        return None
    evidence = load_evidence(registry, repository, manifest_digest)
    sha256 = parse_digest(manifest.blob.digest, "the digest of the stored file")
    return StoredArtifact(sha256, manifest.blob.size, manifest.facts, evidence)


@dataclass(frozen=True)
class Deleted:
    """How much was deleted."""

    manifests: int = 0
    evidence: int = 0
    """Manifests that referred to them."""
    blobs: int = 0


def find_stored(registry: OciRegistry, repository: str, expected_sha256: str) -> Descriptor | None:
    """Return the file that hashes to `expected_sha256` (64 hex digits) if the repository holds it already, else None.

    Asked before a source is opened, it spares the source: a manifest can be stored anew when the source has gone.
    """
    digest = ALGORITHM + parse_sha256(expected_sha256, "the expected sha256")
    size = registry.blob_size(repository, digest)
    return None if size is None else Descriptor(digest, size)


def ingest(
    registry: OciRegistry,
    repository: str,
    source: Source,
    expected_sha256: str,
    *,
    field: str = "spec.artifacts[].sha256",
) -> Descriptor:
    """Store a source's bytes in the registry in one pass, if they hash to what is expected, and return what they are.

    `expected_sha256` are 64 hex digits; `field` is what messages call the place that they were written in. Bytes that
    the repository holds already are not stored again, nor read from the source (reading back is what verifies them).
    Raises Stalling(DigestMismatch) with nothing stored, and whatever reading the source and writing to the registry
    raise.
    """
    expected = ALGORITHM + parse_sha256(expected_sha256, field)
    stored = find_stored(registry, repository, expected_sha256)
    if stored is not None:
        return stored

    def compare(actual: Descriptor) -> None:
        if actual.digest != expected:
            remark = f"; {source.remark}" if source.remark else ""
            raise Stalling(
                "DigestMismatch",
                f"the file from {source.name} ({actual.size} bytes) hashes to {actual.digest.removeprefix(ALGORITHM)}, "
                f"but {expected_sha256} was expected{remark}; correct {field} or the file at the source",
            )

    return registry.push_stream(repository, source.chunks, before_commit=compare)


def store_artifact_manifest(
    registry: OciRegistry, repository: str, blob: Descriptor, facts: ArtifactFacts
) -> Descriptor:
    """Store the manifest of one platform, whose file is stored already, and return what it is.

    It gets a tag that is no semantic version, so that registries which sweep up what is untagged keep it while the
    version is a draft. Raises Stalling(FileNameInvalid, VersionInvalid).
    """
    if FILE_NAME.fullmatch(facts.file_name) is None:
        raise Stalling("FileNameInvalid", f"{facts.file_name!r} is not a plain file name; correct fileName")
    content = build_artifact_manifest(blob, facts)
    registry.push_bytes(repository, _EMPTY)
    digest = registry.push_manifest(
        repository, content, MANIFEST_TYPE, _tag(f"_{facts.version}.{facts.platform.replace('/', '.')}")
    )
    return Descriptor(digest, len(content))


def store_index(
    registry: OciRegistry,
    repository: str,
    component: str,
    version: str,
    entries: Mapping[str, Descriptor],
    *,
    publish: bool,
) -> Descriptor:
    """Store the index over the platforms of a version (`os/arch` to manifest), and return what it is.

    With `publish` it is tagged with the version; before that, only with a tag that keeps it from being swept up.
    Raises Stalling(VersionInvalid).
    """
    content = build_index(component, version, entries)
    # `_index.` cannot begin the tag of a platform, which has a digit behind the underscore.
    digest = registry.push_manifest(repository, content, INDEX_TYPE, _tag(f"_index.{version}"))
    if publish:
        registry.push_manifest(repository, content, INDEX_TYPE, _tag(version))
    return Descriptor(digest, len(content))


def store_evidence(registry: OciRegistry, repository: str, manifest: Descriptor, evidence: Evidence) -> Descriptor:
    """Store a piece of evidence beside the manifest that it is about, and return the manifest that it lies in.

    Doing it twice changes nothing. It gets a tag, so that registries which sweep up what is untagged keep it. Raises
    Stalling(EvidenceMalformed) if it is too large.
    """
    data = encode_evidence(evidence)
    registry.push_bytes(repository, _EMPTY)
    content = build_evidence_manifest(manifest, registry.push_bytes(repository, data))
    stored = Descriptor(digest_of(content), len(content))
    registry.push_manifest(repository, content, MANIFEST_TYPE, _evidence_tag(stored.digest))
    # Last, for only now can it be found.
    registry.push_referrer(repository, content, MANIFEST_TYPE, manifest.digest)
    return stored


def load_evidence(
    registry: OciRegistry,
    repository: str,
    manifest_digest: str,
    *,
    skipped: Callable[[str], None] = logger.warning,
) -> tuple[Evidence, ...]:
    """Return the evidence beside a manifest, the newest first: at most `MAX_PIECES`, nothing of it verified.

    What cannot be read is left out, with a word to `skipped`. Raises Stalling(ManifestInvalid) when the list itself
    cannot be read.

    1. At most `_MAX_LOOKED_AT` referrers are looked at, however many there are.
    2. A manifest of the right type, about this manifest, with one layer of the right type: else it is skipped.
    3. The layer's bytes, bounded, by their digest: else it is skipped.
    4. Evidence that can be read: else it is skipped.
    """
    found: list[Evidence] = []
    referrers = registry.referrers(repository, manifest_digest, EVIDENCE_TYPE)
    # 1. The index that stands in for the referrers API grows at its end.
    for referrer in referrers[: -_MAX_LOOKED_AT - 1 : -1]:
        if len(found) >= MAX_PIECES:
            break
        try:
            # 2. to 4.
            evidence = _load_piece(registry, repository, manifest_digest, referrer)
        except Stalling as error:
            if error.reason not in _OF_THE_PIECE:
                raise
            skipped(f"a piece of evidence is left out: {error.message}")
            continue
        if evidence is not None and evidence not in found:
            found.append(evidence)
    return tuple(found)


def _load_piece(registry: OciRegistry, repository: str, manifest_digest: str, referrer: Referrer) -> Evidence | None:
    """Return the evidence in a referrer; None if it has gone meanwhile."""
    # 2. The list is covered by no digest, and the manifest is: what it says counts.
    if referrer.descriptor.size > _MAX_EVIDENCE_MANIFEST_BYTES:
        raise Stalling(
            "ManifestInvalid",
            f"the manifest {referrer.descriptor.digest} has {referrer.descriptor.size} bytes, and none with evidence "
            f"needs more than {_MAX_EVIDENCE_MANIFEST_BYTES}",
        )
    document = registry.get_manifest(repository, referrer.descriptor.digest)
    if document is None:
        return None
    blob = parse_evidence_manifest(document, manifest_digest)

    # 3.
    stream = registry.open_blob(repository, blob.digest, size=blob.size)
    if stream is None:
        return None
    with stream:
        data = b"".join(stream)

    # 4.
    return decode_evidence(data)


def draft_index(registry: OciRegistry, repository: str, version: str) -> ManifestDocument | None:
    """Return a version's index as it was written before publication, if it was."""
    return registry.get_manifest(repository, _tag(f"_index.{version}"))


def read_back(
    registry: OciRegistry,
    repository: str,
    manifest_digest: str,
    *,
    keys: Sequence[TrustedKey] = (),
    cancelled: Callable[[], bool] = lambda: False,
) -> StoredArtifact | None:
    """Read a stored artifact completely and return what it really is, with the evidence beside it.

    None if the manifest or the file is missing. `keys` are those that it will be verified with: some ask for a further
    digest, which is computed in the same pass. Raises Stalling(ManifestInvalid, BlobCorrupted) when what is stored is
    not what its name says, Transient(Cancelled) when `cancelled` begins to say so.
    """
    document = registry.get_manifest(repository, manifest_digest)
    if document is None:
        return None
    manifest = parse_artifact_manifest(document)
    evidence = load_evidence(registry, repository, manifest_digest)
    blob = registry.open_blob(
        repository, manifest.blob.digest, size=manifest.blob.size, further=further_algorithms(evidence, keys)
    )
    if blob is None:
        return None
    with blob:
        for _ in blob:
            if cancelled():
                raise Transient("Cancelled", f"reading {manifest.blob.digest} back was stopped; it will start again")
    content = blob.content
    return StoredArtifact(content.sha256, content.size, manifest.facts, evidence, content.further)


def delete_version(
    registry: OciRegistry,
    repository: str,
    *,
    manifests: Sequence[str],
    index: str | None,
    keep_blobs: Collection[str],
) -> Deleted:
    """Delete what a version has stored: its index and manifests by digest, what refers to them, their blobs and tags.

    `keep_blobs` are the digests of files that other versions still have. What has gone already is fine, so that it can
    be done again after it broke off: a manifest goes only after all that is known from nowhere else. Raises
    Stalling(DeleteUnsupported).

    1. The index first, so that nobody finds what is about to be incomplete.
    2. Of each manifest: the files, then the evidence, then the manifest itself.
    """
    deleted = Deleted()

    # 1.
    if index is not None:
        deleted = _delete_manifest(registry, repository, index, keep_blobs, deleted)

    # 2.
    for digest in manifests:
        deleted = _delete_manifest(registry, repository, digest, keep_blobs, deleted)
    return deleted


def _delete_manifest(
    registry: OciRegistry, repository: str, digest: str, keep_blobs: Collection[str], deleted: Deleted
) -> Deleted:
    document = registry.get_manifest(repository, digest)
    blobs = _blobs_of(document)
    gone = sum(registry.delete_blob(repository, blob) for blob in blobs if blob not in keep_blobs)

    # The same signature over the same file is the same blob: it stays with the file.
    is_kept = any(blob in keep_blobs for blob in blobs)
    evidence = 0
    for referrer in registry.referrers(repository, digest):
        found = registry.get_manifest(repository, referrer.descriptor.digest)
        if referrer.artifact_type == EVIDENCE_TYPE and not is_kept:
            gone += sum(registry.delete_blob(repository, blob) for blob in _blobs_of(found) if blob not in keep_blobs)
        evidence += registry.delete_referrer(repository, digest, referrer.descriptor.digest)
        _delete_tags(registry, repository, referrer.descriptor.digest, (_evidence_tag(referrer.descriptor.digest),))

    manifest = registry.delete_manifest(repository, digest)
    _delete_tags(registry, repository, digest, _tags_of(document))
    return Deleted(deleted.manifests + manifest, deleted.evidence + evidence, deleted.blobs + gone)


def _delete_tags(registry: OciRegistry, repository: str, digest: str, tags: Collection[str]) -> None:
    """Delete tags that still name a manifest which was deleted by its digest: some registries keep them."""
    for tag in tags:
        document = registry.get_manifest(repository, tag)
        if document is not None and document.digest == digest:
            registry.delete_tag(repository, tag)


def _blobs_of(document: ManifestDocument | None) -> tuple[str, ...]:
    """Return the digests of the blobs that a manifest has to itself. The empty config is everybody's."""
    try:
        content = parse_object(document.content, max_bytes=MAX_MANIFEST_BYTES) if document is not None else {}
        layers = content.get("layers") or []
        entries = [content.get("config"), *layers] if isinstance(layers, list) else []
    except Malformed:
        return ()
    digests = [entry.get("digest") for entry in entries if isinstance(entry, dict)]
    return tuple(
        dict.fromkeys(
            digest
            for digest in digests
            if isinstance(digest, str) and is_digest(digest) and digest != digest_of(_EMPTY)
        )
    )


def _tags_of(document: ManifestDocument | None) -> tuple[str, ...]:
    """Return the tags that were given to a manifest or an index when it was stored."""
    try:
        content = parse_object(document.content, max_bytes=MAX_MANIFEST_BYTES) if document is not None else {}
    except Malformed:
        return ()
    annotations = content.get("annotations")
    if not isinstance(annotations, dict):
        return ()
    version, platform = annotations.get(ANNOTATION_VERSION), annotations.get(ANNOTATION_PLATFORM)
    if not isinstance(version, str):
        return ()
    tags = (
        (f"_{version}.{platform.replace('/', '.')}",) if isinstance(platform, str) else (f"_index.{version}", version)
    )
    return tuple(tag for tag in tags if _TAG.fullmatch(tag))


def build_artifact_manifest(blob: Descriptor, facts: ArtifactFacts) -> bytes:
    """Return the manifest of one platform: the same bytes for the same input, without any time in it."""
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": _EMPTY_TYPE, "digest": digest_of(_EMPTY), "size": len(_EMPTY)},
            "layers": [
                {
                    "mediaType": LAYER_TYPE,
                    "digest": blob.digest,
                    "size": blob.size,
                    "annotations": {TITLE: facts.file_name},
                }
            ],
            "annotations": {
                ANNOTATION_COMPONENT: facts.component,
                ANNOTATION_VERSION: facts.version,
                ANNOTATION_PLATFORM: facts.platform,
            },
        }
    )


def build_evidence_manifest(manifest: Descriptor, blob: Descriptor) -> bytes:
    """Return the manifest of a piece of evidence about a manifest: the same bytes for the same input."""
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": EVIDENCE_TYPE,
            "config": {"mediaType": _EMPTY_TYPE, "digest": digest_of(_EMPTY), "size": len(_EMPTY)},
            "layers": [{"mediaType": EVIDENCE_TYPE, "digest": blob.digest, "size": blob.size}],
            "subject": {"mediaType": MANIFEST_TYPE, "digest": manifest.digest, "size": manifest.size},
        }
    )


def build_index(component: str, version: str, entries: Mapping[str, Descriptor]) -> bytes:
    """Return the index over the platforms of a version: the same bytes for the same input, in whatever order."""
    manifests = []
    for platform, manifest in sorted(entries.items()):
        os, _, architecture = platform.partition("/")
        manifests.append(
            {
                "mediaType": MANIFEST_TYPE,
                "artifactType": ARTIFACT_TYPE,
                "digest": manifest.digest,
                "size": manifest.size,
                "platform": {"os": os, "architecture": architecture},
            }
        )
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "manifests": manifests,
            "annotations": {ANNOTATION_COMPONENT: component, ANNOTATION_VERSION: version},
        }
    )


def parse_artifact_manifest(document: ManifestDocument) -> ArtifactManifest:
    """Return what the manifest of one platform says. Raises Stalling(ManifestInvalid)."""
    content = _parse(document, MANIFEST_TYPE, ARTIFACT_TYPE)
    try:
        [layer] = content["layers"]
        facts = ArtifactFacts(
            component=_text(content["annotations"][ANNOTATION_COMPONENT]),
            version=_text(content["annotations"][ANNOTATION_VERSION]),
            platform=_text(content["annotations"][ANNOTATION_PLATFORM]),
            file_name=_text(layer["annotations"][TITLE]),
        )
        blob = _descriptor(layer)
    except (KeyError, TypeError, ValueError):
        raise _invalid(document, "lacks something that a component's manifest has") from None
    if FILE_NAME.fullmatch(facts.file_name) is None:
        raise _invalid(document, "does not name a plain file")
    return ArtifactManifest(document.digest, blob, facts)


def parse_index(document: ManifestDocument) -> dict[str, Descriptor]:
    """Return the platforms of an index, `os/arch` to manifest. Raises Stalling(ManifestInvalid)."""
    content = _parse(document, INDEX_TYPE, ARTIFACT_TYPE)
    entries: dict[str, Descriptor] = {}
    try:
        for entry in content["manifests"]:
            platform = f"{_text(entry['platform']['os'])}/{_text(entry['platform']['architecture'])}"
            if platform in entries:
                raise _invalid(document, f"names {platform} twice")
            entries[platform] = _descriptor(entry)
    except (KeyError, TypeError, ValueError):
        raise _invalid(document, "lacks something that a version's index has") from None
    return entries


def parse_evidence_manifest(document: ManifestDocument, manifest_digest: str) -> Descriptor:
    """Return where the evidence in a manifest is, if it is about another one. Raises Stalling(ManifestInvalid)."""
    content = _parse(document, MANIFEST_TYPE, EVIDENCE_TYPE)
    try:
        [layer] = content["layers"]
        subject, media_type, blob = _text(content["subject"]["digest"]), layer["mediaType"], _descriptor(layer)
    except (KeyError, TypeError, ValueError):
        raise _invalid(document, "lacks something that a manifest with evidence has") from None
    if subject != manifest_digest:
        raise _invalid(document, f"is listed beside {manifest_digest}, but is not about it")
    if media_type != EVIDENCE_TYPE or blob.size > MAX_EVIDENCE_BYTES:
        raise _invalid(document, f"holds no {EVIDENCE_TYPE} of at most {MAX_EVIDENCE_BYTES} bytes")
    return blob


def _parse(document: ManifestDocument, media_type: str, artifact_type: str) -> dict[str, Any]:
    """Return the JSON object. The media type inside counts, for it is covered by the digest; the header is not."""
    try:
        content = parse_object(document.content, max_bytes=MAX_MANIFEST_BYTES)
    except Malformed as error:
        raise _invalid(document, f"cannot be read: {error}") from None
    if content.get("mediaType") != media_type:
        raise _invalid(document, f"is not of the type {media_type}")
    if content.get("artifactType") != artifact_type:
        raise _invalid(document, f"is not one of Outrider's ({artifact_type})")
    return content


def _descriptor(value: Any) -> Descriptor:
    digest, size = _text(value["digest"]), value["size"]
    if not is_digest(digest) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError
    return Descriptor(digest, size)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _invalid(document: ManifestDocument, problem: str) -> Stalling:
    return Stalling("ManifestInvalid", f"the manifest {document.digest} {problem}; store the version again")


def _evidence_tag(digest: str) -> str:
    """Return the tag that keeps a manifest with evidence from being swept up."""
    return f"_evidence.{digest.removeprefix(ALGORITHM)}"


def _tag(tag: str) -> str:
    if _TAG.fullmatch(tag) is None:
        raise Stalling(
            "VersionInvalid", f"the version cannot be a registry's tag ({tag!r}); shorten it, without +build"
        )
    return tag
