"""Does this signature fit this key and this digest? The one place where signatures are computed with.

Which hash a signature is over is never read from what is being verified: it follows from the key and the format.

| Key        | Bundles and DSSE envelopes | Detached, cosign classic |
|------------|----------------------------|--------------------------|
| P-256      | SHA-256                    | SHA-256                  |
| P-384      | SHA-384                    | SHA-256 or SHA-384       |
| RSA        | SHA-256                    | SHA-256                  |

The first column is the default of sigstore's algorithm registry. In the second, P-384 has two: `openssl dgst -sha256`
and cosign 2 take SHA-256, cosign 3 takes the hash that follows the key. Both digests are of the same bytes, so that
accepting either widens nothing. ECDSA signatures are ASN.1 DER (X9.62), RSA ones PKCS#1 v1.5 (RFC 8017, 8.2).
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from outrider.api.errors import Stalling
from outrider.trust.keys import TrustedKey

Algorithm = Literal["sha256", "sha384"]

Digests = Mapping[Algorithm, bytes]
"""The digests of the same bytes, raw, by algorithm."""

_HASHES: Final[Mapping[Algorithm, hashes.HashAlgorithm]] = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}
_HEX: Final[Mapping[Algorithm, re.Pattern[str]]] = {
    "sha256": re.compile("[0-9a-f]{64}"),
    "sha384": re.compile("[0-9a-f]{96}"),
}
_CURVE_WITH_SHA384: Final = "secp384r1"


def key_algorithm(key: TrustedKey) -> Algorithm:
    """Return the hash that follows from a key: that of every signature in a bundle or a DSSE envelope."""
    if isinstance(key.public_key, ec.EllipticCurvePublicKey) and key.public_key.curve.name == _CURVE_WITH_SHA384:
        return "sha384"
    return "sha256"


def raw_algorithms(key: TrustedKey) -> tuple[Algorithm, ...]:
    """Return the hashes that a detached signature or one of cosign's classic format may be over."""
    return ("sha256", "sha384") if key_algorithm(key) == "sha384" else ("sha256",)


def digests_of(data: bytes) -> Digests:
    """Return all digests of some bytes."""
    return {"sha256": hashlib.sha256(data).digest(), "sha384": hashlib.sha384(data).digest()}


def parse_digests(texts: Mapping[str, str]) -> Digests:
    """Return digests that were computed elsewhere, in hex, as raw ones. Raises Stalling(DigestMalformed)."""
    digests: dict[Algorithm, bytes] = {}
    for algorithm, pattern in _HEX.items():
        if algorithm in texts:
            if pattern.fullmatch(texts[algorithm]) is None:
                raise Stalling("DigestMalformed", f"the {algorithm} of the stored bytes is not one in lower-case hex")
            digests[algorithm] = bytes.fromhex(texts[algorithm])
    return digests


def is_signed_by(key: TrustedKey, algorithm: Algorithm, digest: bytes, signature: bytes) -> bool:
    """Say whether `signature` was made by `key` over what `digest`, of this algorithm, is the digest of.

    Whatever goes wrong inside the library counts as no.
    """
    hash_algorithm = _HASHES[algorithm]
    if len(digest) != hash_algorithm.digest_size:
        return False
    prehashed = Prehashed(hash_algorithm)
    try:
        if isinstance(key.public_key, ec.EllipticCurvePublicKey):
            key.public_key.verify(signature, digest, ec.ECDSA(prehashed))
        else:
            key.public_key.verify(signature, digest, padding.PKCS1v15(), prehashed)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def find_signer(keys: Iterable[TrustedKey], digests: Digests, signature: bytes) -> TrustedKey | None:
    """Return the key that made a signature over the hash that follows from the key; None if none of them did."""
    for key in keys:
        algorithm = key_algorithm(key)
        if algorithm in digests and is_signed_by(key, algorithm, digests[algorithm], signature):
            return key
    return None


def find_raw_signer(keys: Iterable[TrustedKey], digests: Digests, signature: bytes) -> TrustedKey | None:
    """Return the key that made a detached or classic signature; None if none of them did."""
    for key in keys:
        for algorithm in raw_algorithms(key):
            if algorithm in digests and is_signed_by(key, algorithm, digests[algorithm], signature):
                return key
    return None
