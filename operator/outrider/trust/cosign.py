"""The classic format of cosign: a payload that names an image by digest, signed as it stands.

https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md, after containers-signature(5).
"""

from typing import Final

from outrider.trust.digest import ALGORITHM, is_digest
from outrider.trust.documents import Malformed, check_names, get_object, get_text, parse_object
from outrider.trust.evidence import MAX_EVIDENCE_BYTES

_TYPE: Final = "cosign container image signature"


def parse_payload(payload: bytes) -> str:
    """Return the SHA-256 (64 hex digits) of the OCI document that a signed payload vouches for. Raises Malformed.

    `critical` has exactly the fields that the format knows. Where the image was when it was signed
    (`docker-reference`) does not matter: content is named by its digest. `optional` is the signer's own.
    """
    value = parse_object(payload, max_bytes=MAX_EVIDENCE_BYTES)
    check_names(value, "it", required=("critical",), optional=("optional",))
    critical = get_object(value, "critical", "it")
    check_names(critical, "its critical", required=("identity", "image", "type"))
    if get_text(critical, "type", "its critical") != _TYPE:
        raise Malformed(f"its type is not {_TYPE}")
    image = get_object(critical, "image", "its critical")
    check_names(image, "its image", required=("docker-manifest-digest",))
    digest = get_text(image, "docker-manifest-digest", "its image")
    if not is_digest(digest):
        raise Malformed("its docker-manifest-digest is not a SHA-256 digest")
    return digest.removeprefix(ALGORITHM)
