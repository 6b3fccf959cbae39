"""Detached signatures over a whole file: how they are written as text.

What makes them: `openssl dgst -sha256 -sign KEY FILE` and `cosign sign-blob --key KEY FILE` (the raw signature, not the
bundle). As only the digest of the file enters, a file of any size is checked in constant memory.
"""

from typing import Final

from outrider.api.errors import Stalling
from outrider.trust.documents import Malformed, decode_base64

MAX_TEXT_BYTES: Final = 8 * 1024
"""Larger than the base64 of any signature by an accepted key (2,048 bytes for RSA 16384), line breaks included."""

_WHITESPACE: Final = " \t\r\n"
_HOW: Final = "give the detached signature in base64: openssl dgst -sha256 -sign KEY FILE | base64 -w0"


def decode_signature(text: str) -> bytes:
    """Return the raw signature in a base64 text.

    Spaces and line breaks are taken out first, because `base64` and `openssl base64` wrap their lines; nothing else
    outside the standard alphabet is tolerated, nor missing padding, nor bits that the text does not need (so that one
    signature has one text). Raises Stalling(SignatureMalformed).
    """
    if len(text) > MAX_TEXT_BYTES:
        raise _malformed(f"it has {len(text)} characters, and no signature needs more than {MAX_TEXT_BYTES}")
    compact = text.translate(dict.fromkeys(map(ord, _WHITESPACE)))
    if compact.startswith("{"):
        raise _malformed("it looks like JSON (a bundle?)")
    if compact.startswith("-----BEGIN"):
        raise _malformed("it looks like PEM")
    try:
        return decode_base64(compact, "it")
    except Malformed as error:
        raise _malformed(str(error)) from None


def _malformed(what: str) -> Stalling:
    return Stalling("SignatureMalformed", f"the signature cannot be read: {what}; {_HOW}")
