"""Sigstore bundles v0.3 that were made with a key: reading them, nothing of it verified.

The format is protobuf's JSON (https://github.com/sigstore/protobuf-specs, sigstore_bundle.proto). Bundles with a
certificate need Fulcio and a transparency log to mean anything: they are refused. Log entries and timestamps in a
bundle with a key are not looked at: whether the key is trusted now does not depend on them.
"""

from dataclasses import dataclass
from typing import Any, Final

from outrider.api.errors import Stalling
from outrider.api.names import STATEMENT_TYPE
from outrider.trust.documents import (
    Malformed,
    canonical_json,
    check_names,
    decode_base64,
    encode_base64,
    get_object,
    get_text,
    parse_object,
)
from outrider.trust.evidence import MAX_EVIDENCE_BYTES, Format
from outrider.trust.signatures import Algorithm
from outrider.trust.statement import Envelope, parse_envelope, parse_statement

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_MEDIA_TYPES: Final = (MEDIA_TYPE, "application/vnd.dev.sigstore.bundle+json;version=0.3")
_CERTIFICATES: Final = ("certificate", "x509CertificateChain")
_ALGORITHMS: Final[dict[str, Algorithm]] = {"SHA2_256": "sha256", "SHA2_384": "sha384"}
_DIGEST_BYTES: Final[dict[Algorithm, int]] = {"sha256": 32, "sha384": 48}


@dataclass(frozen=True)
class MessageSignature:
    """A signature over the bytes themselves: what `cosign sign-blob` makes."""

    signature: bytes
    """Raw."""
    algorithm: Algorithm | None
    """The hash that the bundle says was used; None if it does not say. A hint: it is compared, not used."""
    digest: bytes | None
    """What the bundle says that the bytes hash to; None if it does not say. A hint: it is compared, not used."""


def parse_bundle(document: bytes) -> MessageSignature | Envelope:
    """Return what is signed in a bundle, and the signature. Raises Malformed.

    1. Of version 0.3, with the fields of a bundle and no others.
    2. Made with a key. Which key it was is a hint that nobody signed: it is not used at all.
    3. With exactly one kind of content.
    """
    value = parse_object(document, max_bytes=MAX_EVIDENCE_BYTES)

    # 1.
    check_names(
        value,
        "it",
        required=("mediaType", "verificationMaterial"),
        optional=("messageSignature", "dsseEnvelope"),
    )
    if get_text(value, "mediaType", "it") not in _MEDIA_TYPES:
        raise Malformed("it is not a sigstore bundle of version 0.3")

    # 2.
    material = get_object(value, "verificationMaterial", "it")
    if any(name in material for name in _CERTIFICATES):
        raise Malformed("it was made with a certificate (keyless), and only bundles made with a key are accepted")
    check_names(
        material,
        "its verificationMaterial",
        required=("publicKey",),
        optional=("tlogEntries", "timestampVerificationData"),
    )
    check_names(
        get_object(material, "publicKey", "its verificationMaterial"), "its publicKey", required=(), optional=("hint",)
    )

    # 3.
    if ("messageSignature" in value) == ("dsseEnvelope" in value):
        raise Malformed("it has not exactly one of messageSignature and dsseEnvelope")
    if "dsseEnvelope" in value:
        return parse_envelope(get_object(value, "dsseEnvelope", "it"))
    return _parse_message(get_object(value, "messageSignature", "it"))


def parse_enveloped(document: bytes) -> Envelope:
    """Return the DSSE envelope in a document: a bare one, or one in a bundle. Raises Malformed."""
    value = parse_object(document, max_bytes=MAX_EVIDENCE_BYTES)
    content = parse_envelope(value) if "payloadType" in value else parse_bundle(document)
    if not isinstance(content, Envelope):
        raise Malformed("it has a messageSignature where a DSSE envelope is needed")
    return content


def build_bundle(envelope: bytes, fingerprint: str) -> bytes:
    """Return a bundle around our DSSE envelope, as `cosign verify-blob-attestation` reads it.

    `fingerprint` is that of the key (`sha256:` and hex): the hint on the key is the same hash in base64.
    """
    return canonical_json(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {
                "publicKey": {"hint": encode_base64(bytes.fromhex(fingerprint.removeprefix("sha256:")))},
                "tlogEntries": [],
            },
            "dsseEnvelope": parse_object(envelope, max_bytes=MAX_EVIDENCE_BYTES),
        }
    )


def recognise(document: bytes) -> Format:
    """Return as which format a bundle or a DSSE envelope has to be verified. Raises Stalling(BundleMalformed).

    This looks at what nobody has verified, and decides nothing but which checks the document has to pass.
    """
    try:
        if "messageSignature" in parse_object(document, max_bytes=MAX_EVIDENCE_BYTES):
            return "SigstoreBundle"
        statement = parse_statement(parse_enveloped(document).payload)
    except Malformed as error:
        raise bundle_malformed(error) from None
    return "OutriderStatement" if statement.predicate_type == STATEMENT_TYPE else "SigstoreAttestation"


def bundle_malformed(error: Malformed) -> Stalling:
    """Return the refusal of a bundle, or an envelope, that cannot be read."""
    return Stalling(
        "BundleMalformed",
        f"the bundle cannot be read: {error}; make it again with a key, as in `cosign sign-blob --key KEY --bundle "
        "BUNDLE FILE`",
    )


def _parse_message(value: dict[str, Any]) -> MessageSignature:
    what = "its messageSignature"
    check_names(value, what, required=("signature",), optional=("messageDigest",))
    signature = decode_base64(get_text(value, "signature", what), "its signature")
    if "messageDigest" not in value:
        return MessageSignature(signature, None, None)
    said = get_object(value, "messageDigest", what)
    check_names(said, "its messageDigest", required=("algorithm", "digest"))
    algorithm = _ALGORITHMS.get(get_text(said, "algorithm", "its messageDigest"))
    if algorithm is None:
        raise Malformed("it was made with a hash that is neither SHA-256 nor SHA-384")
    digest = decode_base64(get_text(said, "digest", "its messageDigest"), "its messageDigest")
    if len(digest) != _DIGEST_BYTES[algorithm]:
        raise Malformed("its messageDigest has not the length of its algorithm")
    return MessageSignature(signature, algorithm, digest)
