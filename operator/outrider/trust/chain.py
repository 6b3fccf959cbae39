"""From a signed OCI document down to the file: each document names the next one by its digest."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from outrider.api.errors import Stalling
from outrider.trust.digest import ALGORITHM, digest_of, is_digest
from outrider.trust.documents import Malformed, get_list, get_text, parse_object
from outrider.trust.evidence import MAX_CHAIN, MAX_EVIDENCE_BYTES
from outrider.trust.signatures import Digests, digests_of

_INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


def follow_chain(chain: Sequence[bytes], sha256: str, file: Digests) -> Digests:
    """Return the digests of what has to be signed so that the file is vouched for.

    `sha256` (64 hex digits) is what the file hashes to, and `file` all of its digests. Without a chain it is the file
    itself that has to be signed; else the first document of the chain, if it leads to the file. Raises
    Stalling(EvidenceMalformed) if it does not.

    1. The chain is not longer than any real one.
    2. Each document names the one after it by SHA-256.
    3. The last document is the file itself, or names it.
    """
    if not chain:
        return file

    # 1. There are no circles to look for: a document cannot hold its own hash.
    if len(chain) > MAX_CHAIN:
        raise _broken(f"it has {len(chain)} documents, and at most {MAX_CHAIN} are followed")

    # 2.
    for number, (document, following) in enumerate(pairwise(chain), start=1):
        if digest_of(following) not in _named(document, number):
            raise _broken(f"its document {number} does not name the one after it")

    # 3.
    if hashlib.sha256(chain[-1]).hexdigest() != sha256 and ALGORITHM + sha256 not in _named(chain[-1], len(chain)):
        raise _broken(f"its last document does not name the file ({ALGORITHM}{sha256})")
    return digests_of(chain[0])


def is_only_file(chain: Sequence[bytes], sha256: str) -> bool:
    """Say whether what is said of the signed document can be about the file alone.

    It can if the file itself was signed, or a document that names the file and nothing else. Through an index over
    platforms, or a manifest of several files, whoever stores the version could choose which one was meant.
    """
    if not chain or (len(chain) == 1 and hashlib.sha256(chain[0]).hexdigest() == sha256):
        return True
    return len(chain) == 1 and _named(chain[0], 1) == {ALGORITHM + sha256}


def _named(document: bytes, number: int) -> frozenset[str]:
    """Return the digests that an index names as its manifests, or a manifest as its layers.

    A document that could be taken for both is neither (CVE-2021-41190).
    """
    what = "it"
    try:
        value = parse_object(document, max_bytes=MAX_EVIDENCE_BYTES)
        if ("manifests" in value) == ("layers" in value):
            raise Malformed("it is neither an index nor a manifest")
        name, types = ("manifests", _INDEX_TYPES) if "manifests" in value else ("layers", _MANIFEST_TYPES)
        # The media type inside is optional in OCI; if it is there it must agree.
        if "mediaType" in value and get_text(value, "mediaType", what) not in types:
            raise Malformed(f"it has {name}, but its mediaType is of another kind")
        digests = []
        for entry in get_list(value, name, what):
            if not isinstance(entry, dict):
                raise Malformed(f"an entry of its {name} is not an object")
            digest = get_text(entry, "digest", f"an entry of its {name}")
            if is_digest(digest):  # others, of sha512, name nothing that we could check
                digests.append(digest)
    except Malformed as error:
        raise _broken(f"its document {number} cannot be read: {error}") from None
    return frozenset(digests)


def _broken(what: str) -> Stalling:
    return Stalling(
        "EvidenceMalformed",
        f"what was signed does not lead to the file: the chain of the evidence is broken: {what}; "
        "sign the artifact again",
    )
