"""DSSE envelopes and the in-toto statements in them: reading both, and building our own.

The order is DSSE's: a payload is not looked at before a trusted key was found to have signed it, together with its type
(https://github.com/secure-systems-lab/dsse/blob/master/protocol.md). Statements are in-toto v1
(https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md), or v0.1, which `cosign attest-blob` still
writes and which has the same fields.
"""

from dataclasses import dataclass
from typing import Any, Final

from outrider.api.names import STATEMENT_TYPE
from outrider.trust.digest import is_digest
from outrider.trust.documents import (
    Malformed,
    canonical_json,
    check_names,
    decode_base64,
    encode_base64,
    get_list,
    get_object,
    get_text,
    parse_object,
)
from outrider.trust.evidence import MAX_EVIDENCE_BYTES

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
COSIGN_SIGN_TYPE: Final = "https://sigstore.dev/cosign/sign/v1"
"""The predicate type of what `cosign sign` makes: the signer vouches for the subject, and says nothing else."""

_STATEMENT_V1: Final = "https://in-toto.io/Statement/v1"
_STATEMENT_TYPES: Final = (_STATEMENT_V1, "https://in-toto.io/Statement/v0.1")


@dataclass(frozen=True)
class Envelope:
    """A DSSE envelope with its one signature, nothing of it verified."""

    payload: bytes
    signature: bytes
    """Raw."""

    @property
    def signed(self) -> bytes:
        """The bytes that the signature has to be over."""
        return pre_authentication_encoding(PAYLOAD_TYPE, self.payload)


@dataclass(frozen=True)
class Statement:
    """An in-toto statement about one subject."""

    sha256: str
    """Of the subject: 64 hex digits."""
    predicate_type: str
    predicate: dict[str, Any]


@dataclass(frozen=True)
class Binding:
    """What our own statement says about the file: what it is, and for what it was made."""

    component: str
    version: str
    platform: str
    """`os/arch`."""
    size: int
    """Bytes."""


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return what a DSSE signature is over: the type and the payload, each behind its length."""
    type_ = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(type_), type_, len(payload), payload)


def parse_envelope(value: dict[str, Any]) -> Envelope:
    """Return the envelope in a parsed JSON object. Raises Malformed.

    1. No other fields than DSSE's.
    2. The payload is an in-toto statement by its type. The type is covered by the signature.
    3. Exactly one signature, as in sigstore's bundles: with several it could be argued which of them count.
    """
    # 1.
    check_names(value, "the envelope", required=("payload", "payloadType", "signatures"))

    # 2.
    if get_text(value, "payloadType", "the envelope") != PAYLOAD_TYPE:
        raise Malformed(f"its payloadType is not {PAYLOAD_TYPE}")

    # 3. The keyid is a hint that nobody signed: it is not used at all.
    signatures = get_list(value, "signatures", "the envelope")
    if len(signatures) != 1:
        raise Malformed(f"it has {len(signatures)} signatures, and exactly one is accepted")
    signature = signatures[0]
    if not isinstance(signature, dict):
        raise Malformed("its signature is not an object")
    check_names(signature, "its signature", required=("sig",), optional=("keyid",))
    return Envelope(
        payload=decode_base64(get_text(value, "payload", "the envelope"), "its payload"),
        signature=decode_base64(get_text(signature, "sig", "its signature"), "its signature"),
    )


def parse_statement(payload: bytes) -> Statement:
    """Return the statement in the payload of an envelope. Raises Malformed.

    1. The four fields of a statement, and the type of one.
    2. About exactly one subject, which is named by SHA-256.
    """
    value = parse_object(payload, max_bytes=MAX_EVIDENCE_BYTES)

    # 1.
    check_names(value, "it", required=("_type", "subject", "predicateType"), optional=("predicate",))
    if get_text(value, "_type", "it") not in _STATEMENT_TYPES:
        raise Malformed("its _type is not that of an in-toto statement")

    # 2.
    subjects = get_list(value, "subject", "it")
    if len(subjects) != 1 or not isinstance(subjects[0], dict):
        raise Malformed(f"it is about {len(subjects)} subjects, and exactly one is accepted")
    sha256 = get_text(get_object(subjects[0], "digest", "its subject"), "sha256", "the digest of its subject")
    if not is_digest(f"sha256:{sha256}"):
        raise Malformed("the sha256 of its subject is not 64 lower-case hex digits")
    return Statement(
        sha256=sha256,
        predicate_type=get_text(value, "predicateType", "it"),
        predicate=get_object(value, "predicate", "it") if "predicate" in value else {},
    )


def parse_binding(statement: Statement) -> Binding:
    """Return what our own statement says. Raises Malformed.

    A field that we do not know could narrow what was said, so there may be none.
    """
    predicate = statement.predicate
    check_names(predicate, "its predicate", required=("component", "version", "platform", "size"))
    size = predicate["size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise Malformed("the size in its predicate is not a number of bytes")
    return Binding(
        component=get_text(predicate, "component", "its predicate"),
        version=get_text(predicate, "version", "its predicate"),
        platform=get_text(predicate, "platform", "its predicate"),
        size=size,
    )


def build_statement(binding: Binding, file_name: str, sha256: str) -> bytes:
    """Return our statement about a file, to be signed: the same bytes for the same input.

    The name of the file is for people: it is not compared, for nothing is unpacked or run by it.
    """
    return canonical_json(
        {
            "_type": _STATEMENT_V1,
            "subject": [{"name": file_name, "digest": {"sha256": sha256}}],
            "predicateType": STATEMENT_TYPE,
            "predicate": {
                "component": binding.component,
                "version": binding.version,
                "platform": binding.platform,
                "size": binding.size,
            },
        }
    )


def build_envelope(payload: bytes, signature: bytes) -> bytes:
    """Return the DSSE envelope of a signed statement."""
    return canonical_json(
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": encode_base64(payload),
            "signatures": [{"sig": encode_base64(signature)}],
        }
    )
