"""From a source into the registry, and back out of it for verification.

*Layout.* A repository holds one component of one namespace. Each platform of a version is an OCI 1.1 image manifest
with artifactType `application/vnd.outrider.component.v1`, an empty config and one layer, which is the file. An image
index names the platforms of a version; it carries the version as its tag once published. Any OCI client can fetch it.

*Invariants.* Nothing is stored under a digest that was not expected. The same input gives the same bytes, so that doing
it twice changes nothing. Until publication nothing carries a tag that is a semantic version.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from outrider.adapters.registry import INDEX_TYPE, MANIFEST_TYPE, Descriptor, ManifestDocument, OciRegistry
from outrider.adapters.sources import Source
from outrider.api.errors import Stalling, Transient
from outrider.api.names import ARTIFACT_TYPE, LAYER_TYPE
from outrider.trust.digest import ALGORITHM, Sha256Stream, digest_of, is_digest, parse_sha256

TITLE: Final = "org.opencontainers.image.title"
"""Where OCI clients find the name of a layer's file."""
ANNOTATION_COMPONENT: Final = "dev.outrider.component"
ANNOTATION_VERSION: Final = "dev.outrider.version"
ANNOTATION_PLATFORM: Final = "dev.outrider.platform"
ANNOTATION_SIGNATURE: Final = "dev.outrider.signature"
"""On the manifest of a platform: the detached signature over the file, in base64."""

FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""A plain file name, as in ComponentVersion: no path, nothing hidden."""

_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_EMPTY: Final = b"{}"
"""The empty config of OCI 1.1 ("Guidance for an Empty Descriptor")."""


@dataclass(frozen=True)
class ArtifactFacts:
    """What a stored artifact says about itself. The signature covers none of it but the bytes of the file."""

    component: str
    version: str
    platform: str
    """`os/arch`."""
    file_name: str
    signature: str
    """The detached signature over the file, in base64."""


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


def read_back(
    registry: OciRegistry,
    repository: str,
    manifest_digest: str,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> StoredArtifact | None:
    """Read a stored artifact completely and return what it really is; None if the manifest or the file is missing.

    Raises Stalling(ManifestInvalid, BlobCorrupted) when what is stored is not what its name says, Transient(Cancelled)
    when `cancelled` begins to say so.
    """
    document = registry.get_manifest(repository, manifest_digest)
    if document is None:
        return None
    manifest = parse_artifact_manifest(document)
    blob = registry.open_blob(repository, manifest.blob.digest, size=manifest.blob.size)
    if blob is None:
        return None
    stream = Sha256Stream()
    with blob:
        for chunk in blob:
            stream.update(chunk)
            if cancelled():
                raise Transient("Cancelled", f"reading {manifest.blob.digest} back was stopped; it will start again")
    return StoredArtifact(stream.sha256, stream.size, manifest.facts)


def build_artifact_manifest(blob: Descriptor, facts: ArtifactFacts) -> bytes:
    """Return the manifest of one platform: the same bytes for the same input, without any time in it."""
    return _canonical_json(
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
                ANNOTATION_SIGNATURE: facts.signature,
            },
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
    return _canonical_json(
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
    content = _parse(document, MANIFEST_TYPE)
    try:
        [layer] = content["layers"]
        facts = ArtifactFacts(
            component=_text(content["annotations"][ANNOTATION_COMPONENT]),
            version=_text(content["annotations"][ANNOTATION_VERSION]),
            platform=_text(content["annotations"][ANNOTATION_PLATFORM]),
            file_name=_text(layer["annotations"][TITLE]),
            signature=_text(content["annotations"][ANNOTATION_SIGNATURE]),
        )
        blob = _descriptor(layer)
    except (KeyError, TypeError, ValueError):
        raise _invalid(document, "lacks something that a component's manifest has") from None
    if FILE_NAME.fullmatch(facts.file_name) is None:
        raise _invalid(document, "does not name a plain file")
    return ArtifactManifest(document.digest, blob, facts)


def parse_index(document: ManifestDocument) -> dict[str, Descriptor]:
    """Return the platforms of an index, `os/arch` to manifest. Raises Stalling(ManifestInvalid)."""
    content = _parse(document, INDEX_TYPE)
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


def _parse(document: ManifestDocument, media_type: str) -> dict[str, Any]:
    """Return the JSON object. The media type inside counts, for it is covered by the digest; the header is not."""
    try:
        content = json.loads(document.content)
    except (ValueError, RecursionError):
        raise _invalid(document, "is not JSON") from None
    if not isinstance(content, dict) or content.get("mediaType") != media_type:
        raise _invalid(document, f"is not of the type {media_type}")
    if content.get("artifactType") != ARTIFACT_TYPE:
        raise _invalid(document, f"is not one of Outrider's ({ARTIFACT_TYPE})")
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


def _tag(tag: str) -> str:
    if len(tag) > 128 or re.fullmatch(r"[a-zA-Z0-9_][a-zA-Z0-9._-]*", tag) is None:
        raise Stalling(
            "VersionInvalid", f"the version cannot be a registry's tag ({tag!r}); shorten it, without +build"
        )
    return tag


def _canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
