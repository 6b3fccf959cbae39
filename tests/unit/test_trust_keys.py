"""Which keys are accepted, with keys made by openssl, the tool that people make them with."""

import base64
import hashlib
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.api.errors import Stalling
from outrider.trust.keys import (
    build_key_files,
    keys_from_secret,
    parse_globs,
    parse_public_key,
    parse_window,
    select_keys,
)

ALGORITHMS = {
    "p256": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "p384": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
    "p521": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"],
    "k1": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"],
    "rsa3072": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"],
    "rsa2048": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    "rsa1024": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"],
    "ed25519": ["-algorithm", "ED25519"],
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with <algorithm>.key and <algorithm>.pub for each algorithm, and a certificate."""
    folder = tmp_path_factory.mktemp("keys")
    for name, options in ALGORITHMS.items():
        private = folder / f"{name}.key"
        run("openssl", "genpkey", *options, "-out", private)
        run("openssl", "pkey", "-in", private, "-pubout", "-out", folder / f"{name}.pub")
    run("openssl", "req", "-x509", "-new", "-key", folder / "p256.key", "-subj", "/CN=x", "-out", folder / "cert.pem")
    run("openssl", "rsa", "-in", folder / "rsa3072.key", "-RSAPublicKey_out", "-out", folder / "pkcs1.pub")
    return folder


def run(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def refusal(pem: bytes, *, allow_rsa_2048: bool = False) -> str:
    with pytest.raises(Stalling) as caught:
        parse_public_key(pem, "secret/keys:a.pub", allow_rsa_2048=allow_rsa_2048)
    assert caught.value.reason == "KeyUnusable"
    assert "secret/keys:a.pub" in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "algorithm"), [("p256", "ECDSA P-256"), ("p384", "ECDSA P-384"), ("rsa3072", "RSA 3072")]
)
def test_accepted_keys_have_the_fingerprint_that_openssl_computes(keys: Path, name: str, algorithm: str) -> None:
    pem = (keys / f"{name}.pub").read_bytes()
    key = parse_public_key(pem, "secret/keys:a.pub")
    der = run("openssl", "pkey", "-pubin", "-in", keys / f"{name}.pub", "-outform", "DER")
    assert key.fingerprint == "sha256:" + hashlib.sha256(der).hexdigest()
    assert key.algorithm == algorithm
    assert key.pem == pem.decode()
    assert parse_public_key(key.pem.encode(), "again").fingerprint == key.fingerprint


def test_one_key_in_two_forms_is_one_key(keys: Path) -> None:
    spki = parse_public_key((keys / "rsa3072.pub").read_bytes(), "a")
    pkcs1 = parse_public_key((keys / "pkcs1.pub").read_bytes(), "b")
    windows = parse_public_key((keys / "rsa3072.pub").read_bytes().replace(b"\n", b"\r\n"), "c")
    assert spki.fingerprint == pkcs1.fingerprint == windows.fingerprint
    assert spki.pem == pkcs1.pem == windows.pem


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p521", "curve secp521r1 is not supported"),
        ("k1", "curve secp256k1 is not supported"),
        ("rsa2048", "RSA with 2048 bits is too short, the least is 3072"),
        ("rsa1024", "RSA with 1024 bits is too short"),
        ("ed25519", "Ed25519 keys are not supported"),
    ],
)
def test_other_kinds_and_sizes_are_refused(keys: Path, name: str, text: str) -> None:
    message = refusal((keys / f"{name}.pub").read_bytes())
    assert text in message
    assert "P-256 (recommended)" in message


def test_rsa_2048_only_where_allowed(keys: Path) -> None:
    key = parse_public_key((keys / "rsa2048.pub").read_bytes(), "a", allow_rsa_2048=True)
    assert key.algorithm == "RSA 2048"
    assert "the least is 2048" in refusal((keys / "rsa1024.pub").read_bytes(), allow_rsa_2048=True)


@pytest.mark.parametrize("name", ["p256", "rsa3072", "ed25519"])
def test_a_private_key_is_named_loudly_and_never_echoed(keys: Path, name: str) -> None:
    pem = (keys / f"{name}.key").read_bytes()
    for text in (pem, b"comment\n" + pem + (keys / "p256.pub").read_bytes(), pem * 200):
        message = refusal(text)
        assert "PRIVATE KEY" in message
        for line in pem.decode().splitlines()[1:-1]:
            assert line not in message


@pytest.mark.parametrize(
    "header", ["EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY"]
)
def test_every_kind_of_private_key_is_recognised(header: str) -> None:
    assert "PRIVATE KEY" in refusal(f"-----BEGIN {header}-----\nAAAA\n-----END {header}-----\n".encode())


def test_certificates_several_blocks_and_other_files_are_refused(keys: Path) -> None:
    public = (keys / "p256.pub").read_bytes()
    assert "certificate" in refusal((keys / "cert.pem").read_bytes())
    assert "2 PEM blocks" in refusal(public + (keys / "p384.pub").read_bytes())
    assert "not PEM" in refusal(b"")
    assert "not PEM" in refusal(b"\x00\xff" * 50)
    assert "not PEM" in refusal(base64.b64encode(public))
    assert "does not end" in refusal(public[:100])
    assert "another kind" in refusal(public.replace(b"PUBLIC KEY", b"DH PARAMETERS"))
    assert "cannot be read" in refusal(public.replace(b"M", b"N", 1))
    assert "no public key needs more" in refusal(b"x" * 20_000)


@given(st.binary(max_size=300))
def test_garbage_between_the_lines_never_escapes_as_a_foreign_exception(garbage: bytes) -> None:
    body = base64.encodebytes(garbage)
    for pem in (garbage, b"-----BEGIN PUBLIC KEY-----\n" + body + b"-----END PUBLIC KEY-----\n"):
        with pytest.raises(Stalling):
            parse_public_key(pem, "x")


@settings(max_examples=150)
@given(position=st.integers(0, 90), bit=st.integers(0, 7))
def test_a_damaged_key_is_refused_or_is_another_key(keys: Path, position: int, bit: int) -> None:
    key = parse_public_key((keys / "p256.pub").read_bytes(), "a")
    der = bytearray(base64.b64decode("".join(key.pem.splitlines()[1:-1])))
    der[position] ^= 1 << bit
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(bytes(der)) + b"-----END PUBLIC KEY-----\n"
    try:
        other = parse_public_key(pem, "b")
    except Stalling:
        return
    assert other.fingerprint != key.fingerprint


@pytest.mark.parametrize(("name", "header"), [("p256", 26), ("p384", 23)])
def test_a_point_in_hybrid_form_is_refused(keys: Path, name: str, header: int) -> None:
    key = parse_public_key((keys / f"{name}.pub").read_bytes(), "a")
    der = bytearray(base64.b64decode("".join(key.pem.splitlines()[1:-1])))
    assert der[header] == 4, "where the point begins"
    for form in (6, 7):
        der[header] = form
        pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(bytes(der)) + b"-----END PUBLIC KEY-----\n"
        with pytest.raises(Stalling, match="cannot be read"):
            parse_public_key(pem, "b")


def test_a_point_in_compressed_form_is_the_same_key(keys: Path) -> None:
    key = parse_public_key((keys / "p256.pub").read_bytes(), "a")
    command = ["openssl", "ec", "-pubin", "-in", str(keys / "p256.pub"), "-conv_form", "compressed"]
    compressed = subprocess.run(command, check=True, capture_output=True).stdout
    assert compressed.decode() != key.pem
    assert parse_public_key(compressed, "b").fingerprint == key.fingerprint


def test_a_secret_gives_its_good_keys_and_says_what_is_wrong_with_the_others(keys: Path) -> None:
    data = {
        "b.pub": (keys / "p256.pub").read_bytes(),
        "a.pub": (keys / "rsa3072.pub").read_bytes(),
        "bad.pub": (keys / "ed25519.pub").read_bytes(),
        "cosign.key": (keys / "p256.key").read_bytes(),
    }
    found, problems = keys_from_secret("release", data, {"outrider.dev/components": "node-*, probe"})
    assert [key.origin for key in found] == ["secret/release:a.pub", "secret/release:b.pub"]
    assert {key.components for key in found} == {("node-*", "probe")}
    assert [(problem.origin, problem.reason) for problem in problems] == [("secret/release:bad.pub", "KeyUnusable")]


def test_a_secret_without_any_key_is_a_problem(keys: Path) -> None:
    found, problems = keys_from_secret("release", {"key.pem": (keys / "p256.pub").read_bytes()}, {})
    assert found == []
    assert "no entry that ends in .pub" in problems[0].message


@pytest.mark.parametrize(
    ("annotations", "namespace", "component", "covered"),
    [
        ({}, "any", "thing", True),
        ({"outrider.dev/components": "node-*"}, "any", "node-agent", True),
        ({"outrider.dev/components": "node-*"}, "any", "a-node-agent", False),
        ({"outrider.dev/components": "node-agent"}, "any", "node-agent-2", False),
        ({"outrider.dev/components": ""}, "any", "node-agent", False),
        ({"outrider.dev/components": " , "}, "any", "node-agent", False),
        ({"outrider.dev/namespaces": "team-a,team-b"}, "team-b", "x", True),
        ({"outrider.dev/namespaces": "team-a,team-b"}, "team-c", "x", False),
        ({"outrider.dev/namespaces": "TEAM-a"}, "team-a", "x", False),
        ({"outrider.dev/components": "x", "outrider.dev/namespaces": "a"}, "b", "x", False),
    ],
)
def test_annotations_narrow_what_a_key_may_vouch_for(
    keys: Path, annotations: dict[str, str], namespace: str, component: str, *, covered: bool
) -> None:
    found, _ = keys_from_secret("s", {"a.pub": (keys / "p256.pub").read_bytes()}, annotations)
    assert bool(select_keys(found, namespace, component)) is covered


def test_selection_names_each_key_once_in_a_stable_order(keys: Path) -> None:
    a = parse_public_key((keys / "p256.pub").read_bytes(), "a")
    again = parse_public_key((keys / "p256.pub").read_bytes(), "again")
    b = parse_public_key((keys / "p384.pub").read_bytes(), "b")
    assert select_keys([a, b, again], "n", "c") == select_keys([b, a], "n", "c")


def test_key_files_can_be_read_back(keys: Path) -> None:
    found = [parse_public_key((keys / f"{name}.pub").read_bytes(), name) for name in ("p256", "p384", "rsa3072")]
    files = build_key_files(found)
    assert list(files.items()) == list(build_key_files(reversed(found)).items())
    read = {parse_public_key(pem.encode(), name).fingerprint for name, pem in files.items()}
    assert read == {key.fingerprint for key in found}


def test_globs_absent_is_everything_and_empty_is_nothing() -> None:
    assert parse_globs(None) == ("*",)
    assert parse_globs("") == ()
    assert parse_globs("a, b*,,") == ("a", "b*")


# When a key may vouch for something new


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T00:00:00Z", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31t00:00:00.5z", datetime(2026, 1, 31, microsecond=500_000, tzinfo=UTC)),
        ("2026-01-31T02:30:00+02:30", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-30T18:00:00-06:00", datetime(2026, 1, 31, tzinfo=UTC)),
    ],
)
def test_a_window_is_read_as_rfc_3339(keys: Path, text: str, moment: datetime) -> None:
    data = {"a.pub": (keys / "p256.pub").read_bytes()}
    [key], problems = keys_from_secret("s", data, {"outrider.dev/not-before": text})
    assert (key.not_before, key.not_after, problems) == (moment, None, [])
    [key], _ = keys_from_secret("s", data, {"outrider.dev/not-after": text})
    assert key.not_after == moment
    assert key.is_valid_at(moment)
    assert not key.is_valid_at(moment + timedelta(seconds=1))


@pytest.mark.parametrize("annotation", ["outrider.dev/not-before", "outrider.dev/not-after"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "never",
        "2026-01-31",
        "2026-01-31T00:00:00",
        "2026-01-31 00:00:00Z",
        "2026-1-31T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-01-31T24:00:00Z",
        "2026-01-31T00:00:60Z",
        "2026-01-31T00:00:00+25:00",
        "0001-01-01T00:00:00+23:00",
        "9999-12-31T23:59:59-23:00",
        "0000-01-01T00:00:00Z",
        "٢٠٢٦-01-31T00:00:00Z",
        "2026-01-31T00:00:00Z\n",
        "1767225600",
    ],
)
def test_a_window_that_cannot_be_read_makes_all_keys_of_its_secret_unusable(
    keys: Path, annotation: str, text: str
) -> None:
    found, [problem] = keys_from_secret("release", {"a.pub": (keys / "p256.pub").read_bytes()}, {annotation: text})
    assert found == []
    assert (problem.origin, problem.reason) == ("secret/release", "KeyUnusable")
    assert annotation in problem.message


def test_a_window_that_ends_before_it_begins_is_a_problem(keys: Path) -> None:
    annotations = {"outrider.dev/not-before": "2026-02-01T00:00:00Z", "outrider.dev/not-after": "2026-01-01T00:00:00Z"}
    found, [problem] = keys_from_secret("release", {"a.pub": (keys / "p256.pub").read_bytes()}, annotations)
    assert found == []
    assert "is later than" in problem.message


@given(st.text(max_size=30) | st.datetimes(timezones=st.timezones()).map(lambda moment: moment.isoformat()))
def test_garbage_as_a_window_never_escapes_as_a_foreign_exception(text: str) -> None:
    try:
        begin, _ = parse_window(text, None, "secret/s")
    except Stalling:
        return
    assert begin is not None
    assert begin.tzinfo is UTC


def test_keys_are_selected_for_a_moment(keys: Path) -> None:
    pem = (keys / "p256.pub").read_bytes()
    january, june = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)
    old = parse_public_key(pem, "old", not_after=january)
    new = parse_public_key(pem, "new", not_before=june)
    assert [key.origin for key in select_keys([old, new], "n", "c")] == ["old"]
    assert [key.origin for key in select_keys([old, new], "n", "c", june)] == ["new"]
    assert select_keys([old, new], "n", "c", june - timedelta(days=1)) == []
