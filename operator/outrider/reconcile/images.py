"""Container images as artifacts: found where they lie, pinned to a digest, copied when asked for. In threads.

The artifact's file is the image's own document, its manifest or index: its digest stands for all the rest, and every
container runtime compares it. It is stored with what vouches for it as any other file, so that a key that goes is
noticed whatever becomes of the registry that the image came from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from outrider.adapters.ocisource import (
    collect_evidence,
    copied_content,
    copy_image,
    delete_copy,
    parse_reference,
    resolve_image,
)
from outrider.api.componentversion import Artifact, StoredArtifact
from outrider.reconcile.inputs import Login
from outrider.reconcile.places import Places
from outrider.trust.evidence import Evidence

FILE_NAME: Final = "image.json"
"""What an image's document is called as a file."""


@dataclass(frozen=True)
class FoundImage:
    """An image: its document, where nodes pull it from, and what was signed about it where it lies."""

    document: bytes
    pinned: str
    evidence: tuple[Evidence, ...]


def find_image(
    places: Places, repository: str, artifact: Artifact, login: Login | None, cancelled: Callable[[], bool]
) -> FoundImage:
    """Find an image and pin it to its digest; copy it into `repository` if its entry says so."""
    source = artifact.source.image
    assert source is not None  # noqa: S101 - the caller has looked
    reference = parse_reference(source.reference)
    with places.registry_of(reference, login, cancelled) as theirs:
        # A tag is asked once, here: from now on there is only the digest.
        document = resolve_image(reference, artifact.sha256, str(artifact.platform), theirs).document
        pinned = theirs.reference(reference.repository, document.digest)
        if source.copy_to_registry:
            with places.registry() as ours:
                copy_image(
                    theirs,
                    ours,
                    reference.repository,
                    repository,
                    document.digest,
                    max_bytes=places.limits.max_bytes,
                    cancelled=cancelled,
                )
                pinned = ours.reference(repository, document.digest)
        evidence = collect_evidence(theirs, reference.repository, (document.content,))
    return FoundImage(document.content, pinned, evidence)


def delete_copies(
    places: Places, repository: str, artifacts: Sequence[StoredArtifact], others: Sequence[StoredArtifact]
) -> None:
    """Take copied images out of the registry, but for the layers that copies of `others` need."""
    with places.registry() as ours:

        def is_copy(stored: StoredArtifact) -> bool:
            return stored.image == ours.reference(repository, stored.digest)

        copies = {stored.digest for stored in artifacts if is_copy(stored)}
        needed = {stored.digest for stored in others if is_copy(stored)}
        if not copies - needed:
            return
        kept = frozenset[str]().union(*(copied_content(ours, repository, digest) for digest in needed))
        for digest in copies - needed:
            delete_copy(ours, repository, digest, keep=kept)
