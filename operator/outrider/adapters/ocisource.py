"""Artifacts and images in the registries of others: found, with what was signed about them, and copied.

*Assumptions.* Everything in such a registry may be hostile: documents that name what they should not, tags that move
between two looks, bodies without end, lists of thousands.

*Invariants.* A tag is asked once; from then on everything is named by a digest that was computed here, and every byte
is compared with its digest. The number of documents, entries, pieces and bytes that are looked at is bounded. What is
returned as evidence is verified by nobody here (`trust/verify.py` does).
"""

import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from outrider.adapters.registry import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    BlobStream,
    Descriptor,
    ManifestDocument,
    OciRegistry,
    Referrer,
)
from outrider.adapters.sources import Source, SourceLimits
from outrider.api.errors import Stalling, Transient
from outrider.api.names import STATEMENT_TYPE
from outrider.trust.bundle import recognise
from outrider.trust.digest import ALGORITHM, digest_of, is_digest, parse_sha256
from outrider.trust.documents import Malformed, parse_object
from outrider.trust.evidence import MAX_EVIDENCE_BYTES, MAX_PIECES, Evidence, Format, encode_evidence

MAX_ENTRIES: Final = 64
"""Manifests that an index may name, and layers that a manifest of signatures may have."""
MAX_LAYERS: Final = 512
"""Layers that an image may have; builders stop at 127."""
MAX_CANDIDATES: Final = 64
"""So many documents are fetched in the search for evidence, good or not."""

_INDEX_TYPES: Final = (INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFEST_TYPES: Final = (MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json")
_BUNDLE_TYPES: Final = ("application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.dev.sigstore.bundle+json")
_PAYLOAD_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE: Final = "dev.cosignproject.cosign/signature"
"""On a layer: the signature over it, in base64."""
_PREDICATE: Final = "dev.sigstore.bundle.predicateType"
"""On a bundle's manifest: what its statement says."""
_EMPTY_DIGEST: Final = digest_of(b"{}")
_NOT_COPIED: Final = ("nondistributable", ".foreign.")
"""In the media types of layers that lie elsewhere, and may not be passed on."""

_HOST: Final = r"(?P<host>(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)"
_SEGMENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE: Final = re.compile(
    _HOST
    + rf"/(?P<repository>{_SEGMENT}(?:/{_SEGMENT})*)"
    + r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    + r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class OciReference:
    """The name of something in a registry: `host/repository:tag`, `host/repository@sha256:…`, or with both."""

    host: str
    repository: str
    digest: str | None = None
    """`sha256:` and 64 hex digits. If there is one, the tag means nothing."""
    tag: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}{tag}{digest}"


def parse_reference(text: str) -> OciReference:
    """Return what a reference names. No host is filled in, and no tag. Raises Stalling(ReferenceInvalid)."""
    match = _REFERENCE.fullmatch(text) if len(text) <= 1024 else None
    if match is None:
        raise _reference_invalid("it is not host/repository:tag or host/repository@sha256:<64 hex digits>")
    host, repository = match["host"], match["repository"]
    # As everywhere: a first segment without a dot or a port would be a repository of Docker Hub to others.
    if host != "localhost" and not any(mark in host for mark in ".:["):
        raise _reference_invalid(f"it does not begin with a registry's host ({host} has neither a dot nor a port)")
    if len(repository) > 255:
        raise _reference_invalid("its repository is longer than 255 characters")
    if match["tag"] is None and match["digest"] is None:
        raise _reference_invalid("it has neither a tag nor a digest; write host/repository@sha256:…")
    return OciReference(host, repository, match["digest"], match["tag"])


@dataclass(frozen=True)
class OciArtifact:
    """A file that is a layer of an artifact in a registry."""

    chain: tuple[bytes, ...]
    """The documents that lead to it, exactly as stored: (index,) manifest."""
    blob: Descriptor
    """The file."""
    source: Source
    """Its bytes, asked for when they are read. Iterating raises what `OciRegistry` and `BlobStream` raise, but
    Stalling(DigestMismatch) for other bytes, and Transient(Cancelled, SourceUnreachable)."""


@dataclass(frozen=True)
class OciImage:
    """An image in a registry."""

    document: ManifestDocument
    """Its index or manifest: what its digest is the digest of, and what is signed."""
    manifest: ManifestDocument
    """The manifest of the platform: the same, or one that the index names."""

    @property
    def size(self) -> int:
        """The size of the document in bytes."""
        return len(self.document.content)


@dataclass(frozen=True)
class CopiedImage:
    """An image that is in a registry now, with all that its digest stands for."""

    digest: str
    """Of its index or manifest: the same as where it came from."""
    tag: str
    """What keeps it from being swept up."""
    manifests: tuple[str, ...]
    """Digests of all documents: the index if there is one, the manifests, and those that carry signatures."""
    blobs: tuple[Descriptor, ...]
    size: int
    """Bytes of all blobs, whether they were there already or not."""


@dataclass(frozen=True)
class _Entry:
    """What a document names: a manifest, a config, or a layer."""

    descriptor: Descriptor
    media_type: str
    platform: str
    """`os/arch`, or nothing."""
    annotations: dict[str, str]


@dataclass(frozen=True)
class _Parsed:
    """An index, or a manifest."""

    media_type: str
    manifests: tuple[_Entry, ...] | None
    """None in a manifest."""
    config: _Entry | None
    layers: tuple[_Entry, ...]


def open_artifact(
    reference: OciReference,
    expected_sha256: str,
    registry: OciRegistry,
    *,
    platform: str | None = None,
    limits: SourceLimits | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> OciArtifact:
    """Find a file in an artifact (not: in an image's file system) by its SHA-256 (64 hex digits).

    If the reference leads to an index, the manifests of `platform` (`os/arch`) are looked into, or all if none is said.
    Raises Stalling: SourceNotFound, LayerNotFound (no layer is the file), ManifestNested (an index in an index),
    ManifestInvalid, SourceTooLarge; and what `OciRegistry.get_manifest` raises.
    """
    limits = limits or SourceLimits()
    wanted = ALGORITHM + parse_sha256(expected_sha256, "the expected sha256")
    top = _get(registry, reference.repository, reference.digest or reference.tag or "", str(reference))
    parsed = _parse(top, str(reference))
    chains: Iterator[tuple[ManifestDocument, ...]] = iter(((top,),))
    if parsed.manifests is not None:
        entries = parsed.manifests
        if platform is not None and any(entry.platform == platform for entry in entries):
            entries = tuple(entry for entry in entries if entry.platform == platform)
        chains = ((top, _get_child(registry, reference, entry)) for entry in entries)
    seen: list[str] = []
    for chain in chains:
        for layer in _parse_manifest(chain[-1], str(reference)).layers:
            if layer.descriptor.digest == wanted:
                documents = tuple(document.content for document in chain)
                source = _blob_source(registry, reference, layer.descriptor, limits, cancelled)
                return OciArtifact(documents, layer.descriptor, source)
            seen.append(layer.descriptor.digest)
    files = ", ".join(seen[:5]) + (f" and {len(seen) - 5} more" if len(seen) > 5 else "")
    raise Stalling(
        "LayerNotFound",
        f"no file of {reference} hashes to {expected_sha256}; it has {files or 'none'}; correct sha256, or the "
        "reference",
    )


def resolve_image(reference: OciReference, expected_sha256: str, platform: str, registry: OciRegistry) -> OciImage:
    """Return an image's index or manifest, if it is the one that is expected and has the platform (`os/arch`).

    1. The tag, if that is all there is, is asked once. What it names now must have the digest that is expected.
    2. An index must name exactly one manifest for the platform, and the registry must have it.
    3. A manifest is of the platform that its config names.

    Raises Stalling: SourceNotFound, DigestMismatch, PlatformNotFound, ManifestNested, ManifestInvalid; and what
    `OciRegistry.get_manifest` raises.
    """
    # 1.
    expected = ALGORITHM + parse_sha256(expected_sha256, "the expected sha256")
    if reference.digest is not None and reference.digest != expected:
        raise Stalling(
            "DigestMismatch",
            f"the reference names {reference.digest}, but {expected_sha256} was expected; let both be the same",
        )
    document = _get(registry, reference.repository, reference.digest or reference.tag or "", str(reference))
    if document.digest != expected:
        raise Stalling(
            "DigestMismatch",
            f"{reference} names {document.digest} now, but {expected_sha256} was expected: the tag has moved, or "
            "sha256 is wrong; name the image by its digest",
        )
    parsed = _parse(document, str(reference))

    # 2.
    if parsed.manifests is not None:
        entries = [entry for entry in parsed.manifests if entry.platform == platform]
        if not entries:
            others = sorted({entry.platform for entry in parsed.manifests if entry.platform})
            raise _no_platform(reference, platform, ", ".join(others) or "none")
        if len({entry.descriptor.digest for entry in entries}) > 1:
            raise _invalid(str(reference), f"names more than one manifest for {platform}")
        return OciImage(document, _get_child(registry, reference, entries[0]))

    # 3.
    found = "none"
    if parsed.config is not None and 2 < parsed.config.descriptor.size <= MAX_MANIFEST_BYTES:
        config = _read_json(registry, reference.repository, parsed.config.descriptor, str(reference))
        found = f"{_text(config.get('os'))}/{_text(config.get('architecture'))}"
    if found != platform:
        raise _no_platform(reference, platform, found)
    return OciImage(document, document)


def collect_evidence(registry: OciRegistry, repository: str, chain: Sequence[bytes]) -> tuple[Evidence, ...]:
    """Return what was signed with cosign about the documents of a chain: at most `MAX_PIECES`.

    `chain` are the documents from the signed one down, as `OciArtifact.chain`, or an image's one document. Looked for
    is what lies beside each: the tag `sha256-….sig` of cosign until version 2, and the bundles of version 3 that refer
    to it. What cannot be read, or is larger than `MAX_EVIDENCE_BYTES`, is left out, for it proves nothing; a registry
    that does not answer is Transient, for then nobody can tell.
    """
    pieces: list[Evidence] = []
    budget = _Budget(MAX_CANDIDATES)
    for place in range(len(chain)):
        for evidence in _evidence_about(registry, repository, tuple(chain[place:]), budget):
            if evidence not in pieces and _is_storable(evidence):
                pieces.append(evidence)
    # What binds comes first: it must not be crowded out.
    return tuple(sorted(pieces, key=lambda piece: piece.format != "OutriderStatement")[:MAX_PIECES])


def copy_image(
    source: OciRegistry,
    target: OciRegistry,
    source_repository: str,
    target_repository: str,
    digest: str,
    *,
    max_bytes: int = 4 * 1024**3,
    cancelled: Callable[[], bool] = lambda: False,
) -> CopiedImage:
    """Copy an image, all its platforms, and what cosign signed about it, from one registry into another.

    Nothing touches a disk here, and what the target has already is not sent again, so that doing it twice changes
    nothing. Signatures come along, so that `cosign verify` works on the copy.

    1. All documents are read and parsed before anything is written.
    2. Blobs, each compared with its digest before it gets a name.
    3. The manifests of the platforms.
    4. Signatures.
    5. The document itself, last: if it is there, everything is. It gets a tag that is no semantic version.

    Raises Stalling: SourceNotFound, ManifestNested, ManifestInvalid, SourceTooLarge (the blobs are more than
    `max_bytes` altogether), DigestMismatch; Transient(Cancelled); and what both registries raise.
    """
    # 1.
    reference = OciReference(source.host, source_repository, digest)
    top = _get(source, source_repository, digest, str(reference))
    entries = _parse(top, str(reference)).manifests
    children = [_get_child(source, reference, entry) for entry in entries or ()]
    images = [_parse_manifest(document, str(reference)) for document in (children if entries is not None else [top])]
    named = [entry for image in images for entry in _blobs(image)]
    if any(mark in entry.media_type for entry in named for mark in _NOT_COPIED):
        raise _invalid(str(reference), "has layers that may not be copied (nondistributable); use it where it is, or")
    blobs = {entry.descriptor.digest: entry.descriptor for entry in named}
    size = sum(blob.size for blob in blobs.values())
    if size > max_bytes:
        raise Stalling(
            "SourceTooLarge",
            f"the image {reference} has {size} bytes, and the operator's settings allow {max_bytes} bytes; use a "
            "smaller image, or raise the limit",
        )
    copy = _Copy(source, target, source_repository, target_repository, cancelled)

    # 2.
    for blob in blobs.values():
        copy.blob(blob, str(reference))

    # 3.
    for child in children:
        target.push_manifest(target_repository, child.content, _media_type(child))

    # 4.
    documents = [top, *children]
    for document in documents:
        copy.signatures(document)

    # 5.
    tag = keeping_tag(digest)
    target.push_manifest(target_repository, top.content, _media_type(top), tag)
    manifests = tuple(document.digest for document in documents) + tuple(copy.manifests)
    return CopiedImage(digest, tag, manifests, (*blobs.values(), *copy.blobs), size)


def copied_content(registry: OciRegistry, repository: str, digest: str) -> frozenset[str]:
    """Return the digests of all that belongs to a copied image: documents, blobs, signatures. Empty if it is gone."""
    content: set[str] = set()
    for document in _copied_documents(registry, repository, digest):
        for each in (document, *_signatures_of(registry, repository, document)):
            content |= {each.digest, *_digests_of(each)}
    return frozenset(content)


def delete_copy(registry: OciRegistry, repository: str, digest: str, *, keep: Collection[str] = ()) -> int:
    """Delete a copied image, its signatures and tags, and return how many manifests and blobs went.

    `keep` are the digests that others still have: `copied_content` of each other image in the repository. What has gone
    already is fine, so that it can be done again after it broke off: the image's own document goes last, for it leads
    to the rest. Raises Stalling(DeleteUnsupported).
    """
    count = 0
    for document in _copied_documents(registry, repository, digest):
        if document.digest in keep:
            continue
        for signed in _signatures_of(registry, repository, document):
            count += _delete_blobs(registry, repository, signed, keep)
            count += registry.delete_referrer(repository, document.digest, signed.digest)
        registry.delete_tag(repository, _signature_tag(document.digest))
        count += _delete_blobs(registry, repository, document, keep)
        if document.digest == digest:
            # Most registries drop the tag with it, and the others it would keep alive.
            registry.delete_tag(repository, keeping_tag(digest))
        count += registry.delete_manifest(repository, document.digest)
    return count


def _copied_documents(registry: OciRegistry, repository: str, digest: str) -> list[ManifestDocument]:
    """Return the manifests of a copied image that are there, and then its own document."""
    top = registry.get_manifest(repository, digest)
    if top is None:
        return []
    entries = _parse(top, digest).manifests or ()
    children = [registry.get_manifest(repository, entry.descriptor.digest) for entry in entries]
    return [*(child for child in children if child is not None), top]


def _signatures_of(registry: OciRegistry, repository: str, document: ManifestDocument) -> list[ManifestDocument]:
    """Return the manifests that carry signatures over a document."""
    names = [_signature_tag(document.digest)]
    names += [referrer.descriptor.digest for referrer in registry.referrers(repository, document.digest)]
    found = [_get_if_sound(registry, repository, name) for name in names]
    return [each for each in found if each is not None]


def _digests_of(document: ManifestDocument) -> list[str]:
    """Return the digests of the blobs that a manifest names; but for the empty config, which is everybody's."""
    try:
        entries = _blobs(_parse(document, document.digest))
    except Stalling:
        return []
    return [entry.descriptor.digest for entry in entries if entry.descriptor.digest != _EMPTY_DIGEST]


def _delete_blobs(registry: OciRegistry, repository: str, document: ManifestDocument, keep: Collection[str]) -> int:
    blobs = dict.fromkeys(_digests_of(document))
    return sum(registry.delete_blob(repository, blob) for blob in blobs if blob not in keep)


def keeping_tag(digest: str) -> str:
    """Return the tag of a copied image. No semantic version, and nothing that a version's own tags could be."""
    return f"_image.{digest.removeprefix(ALGORITHM)}"


# Signatures


class _Budget:
    """How many more documents may be fetched."""

    def __init__(self, number: int) -> None:
        self._left = number

    def spend(self) -> bool:
        self._left -= 1
        return self._left >= 0


def _evidence_about(
    registry: OciRegistry, repository: str, chain: tuple[bytes, ...], budget: _Budget
) -> Iterator[Evidence]:
    """Yield what was signed about the first document of a chain."""
    digest = digest_of(chain[0])
    for entry in _classic_layers(registry, repository, digest):
        payload = _read_small(registry, repository, entry.descriptor) if budget.spend() else None
        if payload is not None:
            yield Evidence("CosignClassic", payload, entry.annotations[_SIGNATURE], chain)
    for referrer in _bundle_referrers(registry, repository, digest):
        layer = _bundle_layer(registry, repository, referrer) if budget.spend() else None
        bundle = _read_small(registry, repository, layer.descriptor) if layer is not None else None
        format_ = _recognise(bundle) if bundle is not None else None
        if bundle is not None and format_ is not None:
            yield Evidence(format_, bundle, "", chain)


def _recognise(bundle: bytes) -> Format | None:
    """Return as what to verify a bundle; None for what is none.

    One that was made without a key is handed on: whoever verifies says what is wrong with it.
    """
    try:
        return recognise(bundle)
    except Stalling:
        with suppress(Malformed):
            if "verificationMaterial" in parse_object(bundle, max_bytes=MAX_EVIDENCE_BYTES):
                return "SigstoreAttestation"
        return None


def _is_storable(evidence: Evidence) -> bool:
    with suppress(Stalling):
        return len(encode_evidence(evidence)) <= MAX_EVIDENCE_BYTES
    return False


def _classic_layers(registry: OciRegistry, repository: str, digest: str) -> Iterator[_Entry]:
    """Yield the payloads of the classic format, from `sha256-….sig`."""
    document = _get_if_sound(registry, repository, _signature_tag(digest))
    try:
        layers = _parse_manifest(document, "").layers if document is not None else ()
    except Stalling:
        return
    for layer in layers[:MAX_ENTRIES]:
        if layer.media_type == _PAYLOAD_TYPE and layer.annotations.get(_SIGNATURE):
            yield layer


def _bundle_referrers(registry: OciRegistry, repository: str, digest: str) -> list[Referrer]:
    """Return the manifests of the bundles that refer to a document, those that bind it to a version first."""
    try:
        found = registry.referrers(repository, digest)
    except Stalling as refusal:
        if refusal.reason != "ManifestInvalid":
            raise
        return []
    bundles = [referrer for referrer in found if referrer.artifact_type in _BUNDLE_TYPES]
    return sorted(bundles, key=lambda bundle: bundle.annotations.get(_PREDICATE) != STATEMENT_TYPE)


def _bundle_layer(registry: OciRegistry, repository: str, referrer: Referrer) -> _Entry | None:
    """Return where a bundle is; None if its manifest is not what cosign makes."""
    document = _get_if_sound(registry, repository, referrer.descriptor.digest)
    try:
        layers = _parse_manifest(document, "").layers if document is not None else ()
    except Stalling:
        return None
    return layers[0] if len(layers) == 1 and layers[0].media_type in _BUNDLE_TYPES else None


def _get_if_sound(registry: OciRegistry, repository: str, name: str) -> ManifestDocument | None:
    """Return a document; None if there is none, or if what is served is not what its digest says."""
    try:
        return registry.get_manifest(repository, name)
    except Stalling as refusal:
        if refusal.reason != "ManifestInvalid":
            raise
        return None


def _read_small(registry: OciRegistry, repository: str, descriptor: Descriptor) -> bytes | None:
    """Return a blob of at most `MAX_EVIDENCE_BYTES`; None for a larger one, a missing one, or other bytes."""
    if descriptor.size > MAX_EVIDENCE_BYTES:
        return None
    blob = registry.open_blob(repository, descriptor.digest, size=descriptor.size)
    if blob is None:
        return None
    try:
        with blob:
            return b"".join(blob)
    except Stalling as refusal:
        if refusal.reason != "BlobCorrupted":
            raise
        return None


def _signature_tag(digest: str) -> str:
    return f"sha256-{digest.removeprefix(ALGORITHM)}.sig"


# Copying


class _Copy:
    """What is copied from one repository to another."""

    def __init__(
        self,
        source: OciRegistry,
        target: OciRegistry,
        source_repository: str,
        target_repository: str,
        cancelled: Callable[[], bool],
    ) -> None:
        self._source = source
        self._target = target
        self._from = source_repository
        self._to = target_repository
        self._cancelled = cancelled
        self._budget = _Budget(MAX_CANDIDATES)
        self.manifests: list[str] = []
        """Digests of the manifests that carry signatures."""
        self.blobs: list[Descriptor] = []
        """The signatures themselves."""

    def blob(self, descriptor: Descriptor, name: str) -> None:
        """Copy a blob, unless it is there."""
        if self._target.blob_size(self._to, descriptor.digest) == descriptor.size:
            return
        stream = self._source.open_blob(self._from, descriptor.digest, size=descriptor.size)
        if stream is None:
            raise _not_found(f"{descriptor.digest}, which {name} names,")

        def compare(actual: Descriptor) -> None:
            if actual != descriptor:
                raise _mismatch(f"{descriptor.digest} of {name}")

        with stream:
            chunks = _checked(stream, f"{descriptor.digest} of {name}", self._cancelled, None)
            self._target.push_stream(self._to, chunks, before_commit=compare)

    def signatures(self, document: ManifestDocument) -> None:
        """Copy what cosign signed about a document."""
        tag = _signature_tag(document.digest)
        classic = _get_if_sound(self._source, self._from, tag)
        if classic is not None and self._signature_blobs(classic):
            self._target.push_manifest(self._to, classic.content, _media_type(classic), tag)
            self.manifests.append(classic.digest)
        for referrer in _bundle_referrers(self._source, self._from, document.digest)[:MAX_PIECES]:
            bundle = _get_if_sound(self._source, self._from, referrer.descriptor.digest)
            if bundle is not None and self._signature_blobs(bundle):
                self._target.push_referrer(self._to, bundle.content, _media_type(bundle), document.digest)
                self.manifests.append(bundle.digest)

    def _signature_blobs(self, document: ManifestDocument) -> bool:
        """Copy what a manifest of signatures names; False if it is not what cosign makes, or something is missing."""
        try:
            parsed = _parse_manifest(document, "")
        except Stalling:
            return False
        entries = _blobs(parsed)
        if len(entries) > MAX_ENTRIES or not self._budget.spend():
            return False
        contents = [_read_small(self._source, self._from, entry.descriptor) for entry in entries]
        for content in contents:
            if content is None:
                return False
            self.blobs.append(self._target.push_bytes(self._to, content))
        return True


def _blobs(image: _Parsed) -> tuple[_Entry, ...]:
    """Return config and layers of an image."""
    return (*(() if image.config is None else (image.config,)), *image.layers)


def _checked(
    stream: BlobStream, name: str, cancelled: Callable[[], bool], deadline: tuple[float, float] | None
) -> Iterator[bytes]:
    """Yield a blob's pieces, until nobody wants them any more or `deadline` (a moment, and the seconds up to it)."""
    size = 0
    try:
        for piece in stream:
            if cancelled():
                raise Transient("Cancelled", f"reading {name} was stopped after {size} bytes; it will start again")
            if deadline is not None and time.monotonic() > deadline[0]:
                slow = f"it sent only {size} bytes in {deadline[1]:.0f} s; it will be tried again"
                raise Transient("SourceUnreachable", f"{name} cannot be reached: {slow}")
            size += len(piece)
            yield piece
    except Stalling as refusal:
        if refusal.reason != "BlobCorrupted":
            raise
        raise _mismatch(name) from None


def _blob_source(
    registry: OciRegistry,
    reference: OciReference,
    blob: Descriptor,
    limits: SourceLimits,
    cancelled: Callable[[], bool],
) -> Source:
    name = f"{reference.host}/{reference.repository}@{blob.digest}"
    if blob.size > limits.max_bytes:
        raise Stalling(
            "SourceTooLarge",
            f"{name} has {blob.size} bytes, and the operator's settings allow {limits.max_bytes} bytes; use a smaller "
            "file, or raise the limit",
        )
    opened: list[BlobStream] = []

    def chunks() -> Iterator[bytes]:
        stream = registry.open_blob(reference.repository, blob.digest, size=blob.size)
        if stream is None:
            raise _not_found(f"{blob.digest}, which {reference} names,")
        opened.append(stream)
        deadline = (time.monotonic() + limits.total_timeout, limits.total_timeout)
        yield from _checked(stream, name, cancelled, deadline)

    def close() -> None:
        for stream in opened:
            stream.close()

    return Source(name, chunks(), declared_size=blob.size, close=close)


# Documents


def _get(registry: OciRegistry, repository: str, name: str, shown: str) -> ManifestDocument:
    document = registry.get_manifest(repository, name)
    if document is None:
        raise _not_found(shown)
    return document


def _get_child(registry: OciRegistry, reference: OciReference, entry: _Entry) -> ManifestDocument:
    """Return a manifest that an index names."""
    shown = f"{entry.descriptor.digest}, which {reference} names,"
    if entry.media_type in _INDEX_TYPES:
        raise _nested(reference)
    document = _get(registry, reference.repository, entry.descriptor.digest, shown)
    if len(document.content) != entry.descriptor.size:
        raise _invalid(str(reference), f"names another size for {document.digest} than that has")
    if _parse(document, shown).manifests is not None:
        raise _nested(reference)
    return document


def _parse_manifest(document: ManifestDocument, shown: str) -> _Parsed:
    parsed = _parse(document, shown)
    if parsed.manifests is not None:
        raise _invalid(shown, "is an index where a manifest is needed")
    return parsed


def _parse(document: ManifestDocument, shown: str) -> _Parsed:
    """Return what a document names. Raises Stalling(ManifestInvalid).

    What could be read as both, an index and a manifest, is neither (CVE-2021-41190).
    """
    try:
        value = parse_object(document.content, max_bytes=MAX_MANIFEST_BYTES)
        media_type = value.get("mediaType", document.media_type)
        is_index = "manifests" in value
        if is_index == ("layers" in value) or (is_index and "config" in value):
            raise Malformed("it is neither an index nor a manifest")
        if media_type not in (_INDEX_TYPES if is_index else _MANIFEST_TYPES):
            raise Malformed("its mediaType does not belong to what it holds")
        if is_index:
            return _Parsed(media_type, _list(value["manifests"], MAX_ENTRIES, "manifests"), None, ())
        config = _entry(value["config"]) if "config" in value else None
        return _Parsed(media_type, None, config, _list(value["layers"], MAX_LAYERS, "layers"))
    except Malformed as error:
        raise _invalid(shown, f"cannot be read: {error}") from None


def _media_type(document: ManifestDocument) -> str:
    return _parse(document, document.digest).media_type


def _list(value: Any, most: int, what: str) -> tuple[_Entry, ...]:
    if not isinstance(value, list):
        raise Malformed(f"its {what} is not a list")
    if len(value) > most:
        raise Malformed(f"it has {len(value)} {what}, and at most {most} are looked at")
    return tuple(_entry(each) for each in value)


def _entry(value: Any) -> _Entry:
    if not isinstance(value, dict):
        raise Malformed("an entry is not an object")
    digest, size, platform = value.get("digest"), value.get("size"), value.get("platform")
    if not isinstance(digest, str) or not is_digest(digest):
        raise Malformed("an entry has no SHA-256 digest")
    if type(size) is not int or size < 0:
        raise Malformed("an entry has no size")
    where = ""
    if isinstance(platform, dict):
        where = f"{_text(platform.get('os'))}/{_text(platform.get('architecture'))}"
    annotations = value.get("annotations")
    texts = annotations.items() if isinstance(annotations, dict) else ()
    return _Entry(
        Descriptor(digest, size),
        _text(value.get("mediaType")),
        where,
        {name: text for name, text in texts if isinstance(text, str)},
    )


def _read_json(registry: OciRegistry, repository: str, descriptor: Descriptor, shown: str) -> dict[str, Any]:
    """Return a config, compared with its digest."""
    blob = registry.open_blob(repository, descriptor.digest, size=descriptor.size)
    if blob is None:
        raise _not_found(f"{descriptor.digest}, which {shown} names,")
    with blob:
        content = b"".join(_checked(blob, f"{descriptor.digest} of {shown}", lambda: False, None))
    try:
        return parse_object(content, max_bytes=MAX_MANIFEST_BYTES)
    except Malformed as error:
        raise _invalid(shown, f"has a config that cannot be read: {error}") from None


def _text(value: object) -> str:
    """Return a text as messages may hold it; nothing for what is none."""
    if not isinstance(value, str) or not value.isprintable() or len(value) > 255:
        return ""
    return value


def _not_found(what: str) -> Stalling:
    return Stalling("SourceNotFound", f"{what} is not in its registry; correct the reference, or put it there")


def _nested(reference: OciReference) -> Stalling:
    return Stalling(
        "ManifestNested",
        f"{reference} is an index that names another index; name the inner one, or the manifest, by its digest",
    )


def _invalid(shown: str, problem: str) -> Stalling:
    return Stalling("ManifestInvalid", f"what {shown} names {problem}; publish it anew")


def _no_platform(reference: OciReference, platform: str, found: str) -> Stalling:
    return Stalling(
        "PlatformNotFound",
        f"{reference} has nothing for {platform} (it has {found}); correct platform or the reference",
    )


def _mismatch(name: str) -> Stalling:
    return Stalling(
        "DigestMismatch",
        f"what its registry serves as {name} are other bytes: its storage or the way to it was tampered with or is "
        "damaged; publish it anew",
    )


def _reference_invalid(problem: str) -> Stalling:
    return Stalling("ReferenceInvalid", f"the reference cannot be used: {problem}; correct it")
