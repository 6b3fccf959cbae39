"""Evidence: one document that says that the holder of a key vouched for bytes, and how it is stored.

Nothing in here is verified. What a document claims to be, and which documents lead from what was signed to the file, is
only where verification starts (`verify.py`).
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from outrider.api.errors import Stalling
from outrider.trust.documents import (
    Malformed,
    canonical_json,
    check_names,
    decode_base64,
    encode_base64,
    get_list,
    get_text,
    parse_object,
    shown,
)

Format = Literal["Detached", "SigstoreBundle", "SigstoreAttestation", "CosignClassic", "OutriderStatement"]

FORMATS: Final[tuple[Format, ...]] = get_args(Format)

MAX_EVIDENCE_BYTES: Final = 1024 * 1024
"""Of one piece of evidence as it is stored."""

MAX_PIECES: Final = 16
"""So many pieces of evidence are looked at for one artifact: enough for every rotation of keys, and no more."""

MAX_CHAIN: Final = 4
"""Documents from the signed one to the file: an index, an index in it, a manifest, and one to spare."""

_KNOWN: Final[dict[str, Format]] = {known: known for known in FORMATS}
_NAMES: Final = ("format", "document", "signature", "chain")


@dataclass(frozen=True)
class Evidence:
    """What can prove that a key holder vouched for bytes."""

    format: Format
    """What the document claims to be; verification checks it."""
    document: bytes
    """Detached: the raw signature. SigstoreBundle, SigstoreAttestation: the bundle's JSON. CosignClassic: the payload
    that was signed. OutriderStatement: a DSSE envelope's JSON, bare or in a bundle."""
    signature: str = ""
    """The signature in base64, of CosignClassic only: the other formats carry their own."""
    chain: tuple[bytes, ...] = ()
    """OCI documents (index, manifest) exactly as stored, from the signed one down towards the file; empty if the file
    itself was signed."""


def encode_evidence(evidence: Evidence) -> bytes:
    """Return the JSON in which evidence is stored: the same bytes for the same evidence.

    Raises Stalling(EvidenceMalformed) if it is larger than `MAX_EVIDENCE_BYTES`.
    """
    data = canonical_json(
        {
            "format": evidence.format,
            "document": encode_base64(evidence.document),
            "signature": evidence.signature,
            "chain": [encode_base64(document) for document in evidence.chain],
        }
    )
    if len(data) > MAX_EVIDENCE_BYTES:
        raise _malformed(f"it has {len(data)} bytes, and at most {MAX_EVIDENCE_BYTES} are stored")
    return data


def decode_evidence(data: bytes) -> Evidence:
    """Return the evidence in its JSON. Raises Stalling(EvidenceMalformed) on anything that is not exactly that."""
    try:
        value = parse_object(data, max_bytes=MAX_EVIDENCE_BYTES)
        check_names(value, "it", required=_NAMES)
        claimed = get_text(value, "format", "it")
        format_ = _KNOWN.get(claimed)
        if format_ is None:
            raise Malformed(f"its format {shown(claimed)} is unknown")
        chain = get_list(value, "chain", "it")
        if len(chain) > MAX_CHAIN:
            raise Malformed(f"its chain has {len(chain)} documents, and at most {MAX_CHAIN} are followed")
        evidence = Evidence(
            format=format_,
            document=decode_base64(get_text(value, "document", "it"), "its document"),
            signature=get_text(value, "signature", "it"),
            chain=tuple(decode_base64(_text(document), "a document of its chain") for document in chain),
        )
        if evidence.format == "CosignClassic":
            decode_base64(evidence.signature, "its signature")
        elif evidence.signature:
            raise Malformed(f"it has a signature beside its document, which {evidence.format} has not")
    except Malformed as error:
        raise _malformed(str(error)) from None
    return evidence


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Malformed("a document of its chain is not a text")
    return value


def _malformed(what: str) -> Stalling:
    return Stalling("EvidenceMalformed", f"the evidence cannot be read: {what}; sign the artifact again")
