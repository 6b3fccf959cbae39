"""What is accepted as JSON and base64 has one meaning; everything else is refused in bounded time."""

import base64
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.trust.documents import (
    MAX_DEPTH,
    MAX_TOKENS,
    Malformed,
    canonical_json,
    check_names,
    decode_base64,
    get_list,
    get_object,
    get_text,
    parse_object,
    shown,
)

MIB = 1024 * 1024


def refusal(data: bytes, max_bytes: int = MIB) -> str:
    with pytest.raises(Malformed) as caught:
        parse_object(data, max_bytes=max_bytes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "it is not JSON"),
        (b"nonsense", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"{} {}", "it is not JSON"),
        (b"{'a': 1}", "it is not JSON"),
        (b'{"a": 01}', "it is not JSON"),
        (b'{"a": "\n"}', "it is not JSON"),
        (b"\xef\xbb\xbf{}", "it is not JSON"),
        (b'{"a": "\xff"}', "it is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "it is not UTF-8"),
        (b"[]", "it is not a JSON object"),
        (b"null", "it is not a JSON object"),
        (b'"text"', "it is not a JSON object"),
        (b'{"a": 1, "a": 1}', "an object in it has a name twice"),
        (b'{"a": {"b": 1, "\\u0062": 2}}', "an object in it has a name twice"),
        (b'[{"a": {"b": 1, "b": 2}}]', "an object in it has a name twice"),
        (b'{"a": NaN}', "it holds NaN or Infinity"),
        (b'{"a": [-Infinity]}', "it holds NaN or Infinity"),
        (b'{"a": 1e999}', "a number in it is too large"),
        (b'{"a": ' + b"9" * 21 + b"}", "a number in it has 21 digits"),
        (b'{"a": ' + b"9" * 900_000 + b"}", "a number in it has 900000 digits"),
        (b'{"a": 0.' + b"9" * 900_000 + b"}", "a number in it has 900002 digits"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b'{"a":' * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH} levels"),
        (b"[" * 500_000, f"nested deeper than {MAX_DEPTH} levels"),
        (b'{"a":' + b"[{}," * 100_000 + b"]" * 100_000 + b"}", "nested deeper than"),
        (b"]" * 100 + b"[" * 120, "it is not JSON"),
    ],
)
def test_what_could_be_read_in_two_ways_or_never_ends_is_refused(data: bytes, text: str) -> None:
    assert text in refusal(data)


def test_nothing_is_looked_at_beyond_the_limit() -> None:
    assert refusal(b'{"a": "' + b"x" * 100 + b'"}', 50) == "it has 109 bytes, and at most 50 are read"
    assert parse_object(b"{}", max_bytes=2) == {}


@pytest.mark.parametrize("piece", [b"{}", b"[]", b'{"":0}', b'"ab"'])
def test_four_mebibytes_of_small_things_are_refused_before_they_are_built(piece: bytes) -> None:
    data = b'{"manifests":[' + b",".join([piece] * (4 * MIB // (len(piece) + 1) - 10)) + b"]}"
    started = time.process_time()
    with pytest.raises(Malformed, match=f"more than {MAX_TOKENS} texts"):
        parse_object(data, max_bytes=4 * MIB)
    assert time.process_time() - started < 2


def test_what_is_json_is_read() -> None:
    text = '{"a": [1, -2.5, 1e3, true, null, "ä\\n\\ud83d\\ude00"], "b": {"[[[": "}}}"}, "c": 18446744073709551615}'
    assert parse_object(text.encode(), max_bytes=MIB) == json.loads(text)
    deep = b'{"a":' * (MAX_DEPTH - 1) + b"{}" + b"}" * (MAX_DEPTH - 1)
    assert parse_object(deep, max_bytes=MIB)


def test_brackets_in_texts_do_not_count_as_depth() -> None:
    assert parse_object(json.dumps({"a": "[" * 1000 + '"\\' + "{" * 1000}).encode(), max_bytes=MIB)


@pytest.mark.parametrize(
    "piece", [b'\\"', b'"', b"\\", b'"\\', b"[", b'{"a":', b'"a\\u0000', b"\\\\\\", b"1,", b'"[",']
)
def test_a_mebibyte_of_anything_is_refused_quickly(piece: bytes) -> None:
    started = time.process_time()
    refusal(b'{"a": ' + piece * (MIB // len(piece) - 10))
    refusal(b'{"a": "' + piece * (MIB // len(piece) - 10))
    assert time.process_time() - started < 2


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_garbage_never_escapes_as_a_foreign_exception(data: bytes) -> None:
    try:
        value = parse_object(data, max_bytes=150)
    except Malformed:
        return
    assert isinstance(value, dict)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(st.text(max_size=8), values, max_size=5))
def test_what_is_written_is_read_back_and_has_one_text(value: dict[str, object]) -> None:
    data = canonical_json(value)
    assert parse_object(data, max_bytes=MIB) == value
    assert canonical_json(dict(reversed(value.items()))) == data


@given(st.binary(min_size=1, max_size=60))
def test_bytes_have_exactly_one_base64_text(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert decode_base64(text, "it") == data
    for other in (text.rstrip("=") + "=", text + "=", text + "\n", " " + text, text[:-1], text + "A", text + text):
        if other != text:
            try:
                assert decode_base64(other, "it") != data
            except Malformed:
                continue


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("A", "it is not base64"),
        ("AB==", "it is not canonical base64 (stray bits)"),
        ("AA", "it is not base64"),
        ("-_-_", "it is not base64"),
        ("AAAA\n", "it is not base64"),
        ("AA\0A", "it is not base64"),
        ("Ä", "it is not base64"),
        ("\ud800", "it is not base64"),
    ],
)
def test_base64_is_the_standard_alphabet_padded_and_canonical(text: str, why: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode_base64(text, "it")
    assert str(caught.value) == why


def test_members_have_to_be_of_their_type() -> None:
    value: dict[str, object] = {"text": "a", "list": [], "object": {}, "number": 1, "nothing": None}
    assert (get_text(value, "text", "it"), get_list(value, "list", "it"), get_object(value, "object", "it")) == (
        "a",
        [],
        {},
    )
    for name in ("number", "nothing", "missing"):
        for get in (get_text, get_list, get_object):
            with pytest.raises(Malformed, match=f"{name} of it is not"):
                get(value, name, "it")


def test_names_are_exactly_those_that_are_known() -> None:
    check_names({"a": 1, "b": 2}, "it", required=("a",), optional=("b",))
    with pytest.raises(Malformed, match="it has no a"):
        check_names({"b": 2}, "it", required=("a",), optional=("b",))
    with pytest.raises(Malformed, match="it has 'c', which does not belong there"):
        check_names({"a": 1, "c": 3}, "it", required=("a",), optional=("b",))


def test_what_strangers_wrote_is_shown_short_and_harmless() -> None:
    assert shown("a\nb\x1b[31m") == "'a\\nb\\x1b[31m'"
    assert len(shown("x" * 10_000)) < 100
