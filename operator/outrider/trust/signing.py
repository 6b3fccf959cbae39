"""Making our own statement: the author's half of what `verify.py` checks. No operator or node ever signs."""

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from outrider.api.errors import Stalling
from outrider.trust.keys import MAX_PEM_BYTES, TrustedKey, parse_public_key
from outrider.trust.signatures import Algorithm, key_algorithm
from outrider.trust.statement import PAYLOAD_TYPE, build_envelope, pre_authentication_encoding

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_HASHES: Final[dict[Algorithm, hashes.HashAlgorithm]] = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}
_COSIGN_LABELS: Final = (b"ENCRYPTED SIGSTORE PRIVATE KEY", b"ENCRYPTED COSIGN PRIVATE KEY")


class PassphraseNeeded(Exception):
    """The private key is protected by a passphrase, and none was given."""


def parse_private_key(pem: bytes, origin: str, passphrase: bytes | None = None) -> PrivateKey:
    """Return the private key in `pem`, which came from `origin`.

    Accepted are the kinds that verification accepts. Raises Stalling(KeyUnusable), whose message never holds any of
    `pem` or of the passphrase, and PassphraseNeeded.
    """
    if len(pem) > MAX_PEM_BYTES:
        raise _unusable(origin, f"it has {len(pem)} bytes, and no private key needs more than {MAX_PEM_BYTES}")
    if any(label in pem for label in _COSIGN_LABELS):
        raise _unusable(
            origin,
            "it is a private key in cosign's own form, which only cosign can open; sign with `cosign attest-blob "
            "--type https://outrider.dev/statement/v1`, or use a key in PEM (openssl genpkey)",
        )
    try:
        key = load_pem_private_key(pem, passphrase or None)
    except TypeError:
        # The library's way to say that a passphrase is missing, or that there is one where none is needed.
        if passphrase:
            raise _unusable(origin, "it is not protected by a passphrase, but one was given; leave it out") from None
        raise PassphraseNeeded from None
    except (ValueError, UnsupportedAlgorithm):
        # The library's own text is dropped on purpose: it may quote the input.
        what = "the passphrase is wrong, or it is damaged" if passphrase else "it is not a private key in PEM"
        raise _unusable(origin, what) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise _unusable(origin, "it is of another kind; use ECDSA P-256 (recommended), ECDSA P-384 or RSA")
    return key


def public_half(key: PrivateKey, origin: str) -> TrustedKey:
    """Return the public half, as trust Secrets hold it. Raises Stalling(KeyUnusable) if verification refuses it."""
    return parse_public_key(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), origin)


def sign_statement(key: PrivateKey, public: TrustedKey, payload: bytes) -> bytes:
    """Return the DSSE envelope of a statement, signed."""
    data = pre_authentication_encoding(PAYLOAD_TYPE, payload)
    algorithm = _HASHES[key_algorithm(public)]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(data, ec.ECDSA(algorithm))
    else:
        signature = key.sign(data, padding.PKCS1v15(), algorithm)
    return build_envelope(payload, signature)


def _unusable(origin: str, what: str) -> Stalling:
    return Stalling("KeyUnusable", f"{origin} cannot be signed with: {what}")
