"""Container images as artifacts: pinned to a digest, verified where they lie, copied when asked for. In threads.

The artifact's file is the image's own document, its index or manifest: its digest stands for all the rest, and every
container runtime compares it. Evidence lies beside it, where `cosign sign` has put it, or in the spec.
"""

import hashlib
from collections.abc import Callable, Sequence

from outrider.adapters.ingest import ArtifactFacts
from outrider.adapters.ingest import StoredArtifact as Found
from outrider.adapters.ocisource import (
    OciReference,
    collect_evidence,
    copied_content,
    copy_image,
    delete_copy,
    parse_reference,
    resolve_image,
)
from outrider.adapters.registry import OciRegistry
from outrider.api.componentversion import Artifact, ComponentVersionSpec, StoredArtifact
from outrider.api.errors import Stalling
from outrider.core.version import hash_artifact
from outrider.reconcile.inputs import Login
from outrider.reconcile.places import IMAGE_DOCUMENTS_SECONDS, Places
from outrider.trust.evidence import Evidence


def store_image(
    places: Places,
    repository: str,
    artifact: Artifact,
    previous: StoredArtifact | None,
    login: Login | None,
    cancelled: Callable[[], bool],
) -> StoredArtifact:
    """Find an image, pin it to its digest, and copy it into `repository` if its entry says so."""
    source = artifact.source.image
    assert source is not None  # noqa: S101 - the caller has looked
    reference = parse_reference(source.reference)
    with places.registry_of(reference, login, cancelled) as theirs:
        # A tag is asked once, here: from now on there is only the digest.
        image = resolve_image(reference, artifact.sha256, str(artifact.platform), theirs)
        pinned = theirs.reference(reference.repository, image.document.digest)
        download_url = theirs.manifest_url(reference.repository, image.document.digest)
        if source.copy_to_registry:
            with places.registry() as ours:
                copy_image(
                    theirs,
                    ours,
                    reference.repository,
                    repository,
                    image.document.digest,
                    max_bytes=places.limits.max_bytes,
                    cancelled=cancelled,
                )
                pinned = ours.reference(repository, image.document.digest)
                download_url = ours.manifest_url(repository, image.document.digest)
    return StoredArtifact(
        platform=str(artifact.platform),
        digest=image.document.digest,
        size=image.size,
        reference=pinned,
        download_url=download_url,
        spec_hash=hash_artifact(artifact),
        kind="Image",
        signature=previous.signature if previous is not None else None,
    )


def read_image(
    places: Places,
    repository: str,
    spec: ComponentVersionSpec,
    artifact: Artifact,
    stored: StoredArtifact,
    login: Login | None,
    given: Sequence[Evidence],
    cancelled: Callable[[], bool],
) -> Found | None:
    """Read an image's document where it is pinned, with the evidence beside it and in the spec; None if it is gone."""
    reference = parse_reference(stored.reference)
    with _registry(places, artifact, reference, login, cancelled) as registry:
        document = registry.get_manifest(reference.repository, stored.digest)
        if document is None:
            return None
        beside = collect_evidence(registry, reference.repository, (document.content,))
    content = document.content
    facts = ArtifactFacts(spec.component, spec.version, stored.platform, "")
    further = {"sha384": hashlib.sha384(content).hexdigest()}
    return Found(hashlib.sha256(content).hexdigest(), len(content), facts, (*given, *beside), further)


def publish_images(places: Places, repository: str, version: str, artifacts: Sequence[StoredArtifact]) -> str:
    """Tag a copied image with the version, if all platforms share it, and return the version's reference."""
    first = artifacts[0]
    with places.registry() as ours:
        copied = first.reference == ours.reference(repository, first.digest)
        if copied and all(stored.digest == first.digest for stored in artifacts):
            ours.tag(repository, first.digest, version)
    return first.reference


def delete_images(
    places: Places, repository: str, version: str, artifacts: Sequence[StoredArtifact], keep: frozenset[str]
) -> None:
    """Take copied images out of the registry, but for what the images and files in `keep` (digests) need."""
    with places.registry() as ours:
        kept = set(keep)
        for digest in keep:
            # Layers are shared between images; what is no image has no such content.
            kept |= copied_content(ours, repository, digest)
        for stored in artifacts:
            if stored.reference != ours.reference(repository, stored.digest):
                continue
            document = ours.get_manifest(repository, version)
            if document is not None and document.digest == stored.digest:
                ours.delete_tag(repository, version)
            delete_copy(ours, repository, stored.digest, keep=kept)


def _registry(
    places: Places, artifact: Artifact, reference: OciReference, login: Login | None, cancelled: Callable[[], bool]
) -> OciRegistry:
    source = artifact.source.image
    if source is None:
        raise Stalling("SourceInvalid", "the artifact is no image any more; create a new version instead")
    if source.copy_to_registry:
        return places.registry()
    return places.registry_of(reference, login, cancelled, seconds=IMAGE_DOCUMENTS_SECONDS)
