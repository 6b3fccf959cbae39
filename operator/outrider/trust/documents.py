"""Strict reading of JSON and base64 that strangers wrote.

*Assumptions.* Every byte may be hostile: written to crash a parser, to fill memory, or to mean one thing to one reader
and another to the next.

*Invariants.* What is accepted has one meaning: no name twice in an object, no number that is not a number, UTF-8
without exceptions, one spelling per base64 text. Work and memory grow with the size of the input, which is bounded.
Nothing but `Malformed` is raised, and its text never quotes more than a few characters of what was read.
"""

import base64
import binascii
import json
import math
import re
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 32
"""Objects and lists inside each other. A sigstore bundle with a log entry needs 8."""

MAX_DIGITS: Final = 20
"""Of a number: enough for every 64-bit integer, and for the digits of a float that mean anything."""

MAX_TOKENS: Final = 200_000
"""Texts, and beginnings and ends of objects and lists. Each costs many times its own size in memory, and time: 4 MiB of
`{}` were measured to take five seconds. An index of 1,000 signatures needs 20,000."""

_MAX_SHOWN: Final = 80

# A string with its escapes, closed or not, is one token: brackets inside do not count, and no character is looked at
# twice (the quantifiers are possessive).
_TOKEN: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


class Malformed(Exception):
    """A document cannot be read; the text says why, to be put behind the document's name. Never leaves `trust`."""


def parse_object(data: bytes, *, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object in `data`. Raises Malformed.

    1. Not larger than `max_bytes`.
    2. UTF-8, without a byte order mark.
    3. Not nested deeper than `MAX_DEPTH`, and of no more than `MAX_TOKENS`: checked before parsing, for parsers recurse
       and build all of it.
    4. JSON as RFC 8259 has it, and beyond that: no name twice in an object (RFC 7493), neither NaN nor Infinity, no
       number of more than `MAX_DIGITS` characters.
    5. No half of a surrogate pair in any text: it could not be encoded again.
    6. An object.
    """
    # 1.
    if len(data) > max_bytes:
        raise Malformed(f"it has {len(data)} bytes, and at most {max_bytes} are read")

    # 2.
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("it is not UTF-8") from None

    # 3.
    _check_shape(text)

    # 4.
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError):
        raise Malformed("it is not JSON") from None

    # 5. Everything that was parsed is encoded once more: the one way to look at every text in it.
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise Malformed("a text in it is not Unicode (half of a surrogate pair)") from None

    # 6.
    if not isinstance(value, dict):
        raise Malformed("it is not a JSON object")
    return value


def canonical_json(value: object) -> bytes:
    """Return the one JSON text that we write for a value: sorted names, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def decode_base64(text: str, what: str) -> bytes:
    """Return what a base64 text stands for: standard alphabet, padded, no stray bits, not empty. Raises Malformed."""
    try:
        raw = text.encode("ascii")
        value = base64.b64decode(raw, validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise Malformed(f"{what} is not base64") from None
    if not value:
        raise Malformed(f"{what} is empty")
    if base64.b64encode(value) != raw:
        raise Malformed(f"{what} is not canonical base64 (stray bits)")
    return value


def encode_base64(value: bytes) -> str:
    """Return the canonical base64 text of some bytes: one line, padded."""
    return base64.b64encode(value).decode("ascii")


def check_names(value: dict[str, Any], what: str, *, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """Return if an object has all names that are required and no other but the optional ones. Raises Malformed."""
    for name in required:
        if name not in value:
            raise Malformed(f"{what} has no {name}")
    for name in value:
        if name not in required and name not in optional:
            raise Malformed(f"{what} has {shown(name)}, which does not belong there")


def get_text(value: dict[str, Any], name: str, what: str) -> str:
    """Return a member that must be there and be a text. Raises Malformed."""
    member = value.get(name)
    if not isinstance(member, str):
        raise Malformed(f"{name} of {what} is not a text")
    return member


def get_object(value: dict[str, Any], name: str, what: str) -> dict[str, Any]:
    """Return a member that must be there and be an object. Raises Malformed."""
    member = value.get(name)
    if not isinstance(member, dict):
        raise Malformed(f"{name} of {what} is not an object")
    return member


def get_list(value: dict[str, Any], name: str, what: str) -> list[Any]:
    """Return a member that must be there and be a list. Raises Malformed."""
    member = value.get(name)
    if not isinstance(member, list):
        raise Malformed(f"{name} of {what} is not a list")
    return member


def shown(text: str) -> str:
    """Return a stranger's text as messages may hold it: quoted, ASCII, not long."""
    quoted = ascii(text[:_MAX_SHOWN])
    return quoted if len(text) <= _MAX_SHOWN else f"{quoted}…"


def _check_shape(text: str) -> None:
    depth = 0
    for number, match in enumerate(_TOKEN.finditer(text)):
        if number >= MAX_TOKENS:
            raise Malformed(f"it has more than {MAX_TOKENS} texts, objects and lists")
        if match[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Malformed(f"it is nested deeper than {MAX_DEPTH} levels")
        elif match[0] in "]}":
            depth -= 1


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Malformed("an object in it has a name twice")
    return value


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise Malformed(f"a number in it has {len(text)} digits")
    return int(text)


def _parse_float(text: str) -> float:
    if len(text) > 2 * MAX_DIGITS:
        raise Malformed(f"a number in it has {len(text)} digits")
    value = float(text)
    if math.isinf(value):
        raise Malformed("a number in it is too large")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise Malformed("it holds NaN or Infinity")
