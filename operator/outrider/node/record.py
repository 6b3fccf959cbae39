"""What was verified on this node, written down beside the file: a hint where to look, and what to verify with again."""

from dataclasses import dataclass
from typing import Final

from outrider.api.errors import Stalling
from outrider.node.config import Trust
from outrider.node.files import RECORD, Folder, is_plain_name
from outrider.trust.documents import (
    Malformed,
    canonical_json,
    check_names,
    decode_base64,
    encode_base64,
    get_list,
    get_text,
    parse_object,
)
from outrider.trust.evidence import MAX_EVIDENCE_BYTES, MAX_PIECES, Evidence, decode_evidence, encode_evidence

_MAX_RECORD_BYTES: Final = 2 * MAX_PIECES * MAX_EVIDENCE_BYTES
"""All evidence that is ever loaded, in base64 once more, fits."""

_TEXTS: Final = ("reference", "component", "version", "platform", "file_name", "sha256", "key")


@dataclass(frozen=True)
class Record:
    """What was verified on this node: enough to do it again."""

    reference: str
    component: str
    version: str
    platform: str
    file_name: str
    sha256: str
    key: str
    """The fingerprint of the key that vouched for it then."""
    evidence: tuple[Evidence, ...]

    def is_about(self, trust: Trust, platform: str) -> bool:
        """Say whether it is about what is asked for: the version's index by its digest, wherever the registry is."""
        asked = (trust.digest, trust.component, trust.version, platform)
        return (self.reference.rpartition("@")[2], self.component, self.version, self.platform) == asked


def write_record(folder: Folder, record: Record) -> None:
    """Write the record into the folder of the file that it is about."""
    texts = {name: getattr(record, name) for name in _TEXTS}
    evidence = [encode_base64(encode_evidence(piece)) for piece in record.evidence]
    folder.write(RECORD, canonical_json({**texts, "evidence": evidence}))


def read_record(folder: Folder) -> Record | None:
    """Return the record in a folder; None if there is none that can be read."""
    file = folder.open_file(RECORD)
    if file is None:
        return None
    try:
        with file:
            data = file.read(_MAX_RECORD_BYTES + 1)
        value = parse_object(data, max_bytes=_MAX_RECORD_BYTES)
        check_names(value, "it", required=(*_TEXTS, "evidence"))
        texts = {name: get_text(value, name, "it") for name in _TEXTS}
        pieces = [piece for piece in get_list(value, "evidence", "it") if isinstance(piece, str)]
        evidence = tuple(decode_evidence(decode_base64(piece, "it")) for piece in pieces[:MAX_PIECES])
    except (Malformed, Stalling, OSError):
        return None
    return Record(**texts, evidence=evidence) if is_plain_name(texts["file_name"]) else None
