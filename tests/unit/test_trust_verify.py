"""Signatures made by openssl are accepted, and nothing else is: not one bit of it may change."""

import base64
import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.api.errors import Stalling
from outrider.trust.detached import decode_signature, encode_signature, is_signed_by
from outrider.trust.digest import Sha256Stream, digest_of, is_digest, parse_digest, parse_sha256
from outrider.trust.keys import TrustedKey, parse_public_key
from outrider.trust.verify import Verification, verify_artifact

FILE = b"#!/bin/sh\necho an agent\n" * 100
SHA256 = hashlib.sha256(FILE).hexdigest()
ALGORITHMS = {
    "p256": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "p384": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
    "rsa3072": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"],
}


class Signed:
    """Keys and their signatures over FILE, by algorithm."""

    def __init__(self, folder: Path) -> None:
        self.keys: dict[str, TrustedKey] = {}
        self.signatures: dict[str, bytes] = {}
        (folder / "file").write_bytes(FILE)
        for name, options in ALGORITHMS.items():
            private = folder / f"{name}.key"
            run("openssl", "genpkey", *options, "-out", str(private))
            public = run("openssl", "pkey", "-in", str(private), "-pubout")
            self.keys[name] = parse_public_key(public, f"secret/keys:{name}.pub")
            self.signatures[name] = run("openssl", "dgst", "-sha256", "-sign", str(private), str(folder / "file"))


def run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    return Signed(tmp_path_factory.mktemp("signed"))


def verify(
    signature: str, keys: list[TrustedKey], actual: str = SHA256, expected: str = SHA256, component: str = "agent"
) -> Verification:
    return verify_artifact(
        component=component,
        namespace="fleet",
        expected_sha256=expected,
        actual_sha256=actual,
        signature=signature,
        keys=keys,
        trust_namespace="outrider-system",
    )


def refusal(signature: str, keys: list[TrustedKey], **values: str) -> Stalling:
    with pytest.raises(Stalling) as caught:
        verify(signature, keys, **values)
    return caught.value


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_openssl_signs_is_verified_and_the_proof_names_the_key(signed: Signed, name: str) -> None:
    proof = verify(encode_signature(signed.signatures[name]), list(signed.keys.values()))
    assert proof.key_fingerprint == signed.keys[name].fingerprint
    assert proof.key_origin == f"secret/keys:{name}.pub"
    assert proof.format == "Detached"
    assert proof.steps[-1] == f"signature verified with {signed.keys[name].fingerprint}"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_bit_of_the_digest_may_change(signed: Signed, name: str) -> None:
    digest = bytes.fromhex(SHA256)
    for position in range(len(digest) * 8):
        changed = bytearray(digest)
        changed[position // 8] ^= 1 << position % 8
        assert not is_signed_by(signed.keys[name], bytes(changed), signed.signatures[name])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_bit_of_the_signature_may_change(signed: Signed, name: str) -> None:
    digest = bytes.fromhex(SHA256)
    signature = signed.signatures[name]
    for position in range(len(signature) * 8):
        changed = bytearray(signature)
        changed[position // 8] ^= 1 << position % 8
        assert not is_signed_by(signed.keys[name], digest, bytes(changed))
    for changed_length in (signature[:-1], signature + b"\0", b"", signature * 2):
        assert not is_signed_by(signed.keys[name], digest, changed_length)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_bit_of_the_signature_s_text_may_change(signed: Signed, name: str) -> None:
    text = encode_signature(signed.signatures[name])
    for position in range(len(text) * 8):
        changed = bytearray(text.encode())
        changed[position // 8] ^= 1 << position % 8
        error = refusal(changed.decode("latin-1"), [signed.keys[name]])
        assert error.reason in {"SignatureMalformed", "SignatureUntrusted"}


def test_the_digest_that_counts_is_the_one_of_the_bytes_read(signed: Signed) -> None:
    other = hashlib.sha256(b"other").hexdigest()
    text = encode_signature(signed.signatures["p256"])
    keys = [signed.keys["p256"]]
    error = refusal(text, keys, actual=other)
    assert error.reason == "DigestMismatch"
    assert other in error.message
    assert SHA256 in error.message
    assert refusal(text, keys, actual=other, expected=other).reason == "SignatureUntrusted"


def test_without_any_key_nothing_is_trusted_and_the_message_says_what_to_make(signed: Signed) -> None:
    error = refusal(encode_signature(signed.signatures["p256"]), [])
    assert error.reason == "NoTrustedKey"
    assert "outrider.dev/trust-key=true" in error.message
    assert "namespace outrider-system" in error.message


def test_a_key_for_another_component_does_not_count(signed: Signed) -> None:
    key = parse_public_key(signed.keys["p256"].pem.encode(), "x", components=("probe",))
    error = refusal(encode_signature(signed.signatures["p256"]), [key])
    assert error.reason == "NoTrustedKey"
    assert "none of the 1 trusted key may vouch for component agent in namespace fleet" in error.message
    assert "outrider.dev/components" in error.message
    assert verify(encode_signature(signed.signatures["p256"]), [key], component="probe").key_origin == "x"


def test_a_signature_by_nobody_known_names_the_keys_that_were_tried(signed: Signed) -> None:
    error = refusal(encode_signature(signed.signatures["p256"]), [signed.keys["p384"], signed.keys["rsa3072"]])
    assert error.reason == "SignatureUntrusted"
    assert signed.keys["p384"].fingerprint in error.message
    assert signed.keys["rsa3072"].fingerprint in error.message


@pytest.mark.parametrize(
    "text",
    ["", " \n", "a", "????", "AAAA=", "AA", "{}", '{"a": 1}', "-----BEGIN X-----", "AB==", "Ä", "A\0AA", "A" * 9000],
)
def test_what_is_not_canonical_base64_is_malformed(signed: Signed, text: str) -> None:
    assert refusal(text, [signed.keys["p256"]]).reason == "SignatureMalformed"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_wrapped_base64_is_read_as_the_tools_print_it(signed: Signed, name: str) -> None:
    signature = signed.signatures[name]
    wrapped = base64.encodebytes(signature).decode()
    for text in (
        wrapped,
        wrapped.replace("\n", "\r\n"),
        "\n  " + wrapped.replace("\n", "\n  "),
        wrapped.replace("\n", " "),
    ):
        assert decode_signature(text) == signature
        assert verify(text, [signed.keys[name]]).format == "Detached"


@settings(max_examples=300)
@given(st.text(max_size=200))
def test_garbage_as_signature_or_digest_never_escapes_as_a_foreign_exception(signed: Signed, garbage: str) -> None:
    keys = list(signed.keys.values())
    good = encode_signature(signed.signatures["p256"])
    refusal(garbage, keys)
    refusal(good, keys, actual=garbage)
    refusal(good, keys, expected=garbage)


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=600))
def test_random_bytes_are_no_signature(signed: Signed, garbage: bytes) -> None:
    assert refusal(encode_signature(garbage), list(signed.keys.values())).reason == "SignatureUntrusted"


@pytest.mark.parametrize("text", ["", "sha256:" + SHA256, SHA256.upper(), SHA256 + "\n", " " + SHA256, SHA256[:-1]])
def test_a_sha256_has_one_spelling(text: str) -> None:
    with pytest.raises(Stalling) as caught:
        parse_sha256(text, "spec.artifacts[0].sha256")
    assert caught.value.reason == "DigestMalformed"
    assert "spec.artifacts[0].sha256" in caught.value.message


@pytest.mark.parametrize("text", ["", SHA256, "sha512:" + SHA256 * 2, "sha256:" + SHA256 + "\n", "SHA256:" + SHA256])
def test_a_digest_has_one_spelling(text: str) -> None:
    assert not is_digest(text)
    with pytest.raises(Stalling, match=r"digest|SHA-256"):
        parse_digest(text, "x")


@given(st.lists(st.binary(max_size=50)))
def test_a_stream_hashes_to_the_same_as_the_whole(parts: list[bytes]) -> None:
    stream = Sha256Stream()
    for part in parts:
        stream.update(memoryview(part))
    whole = b"".join(parts)
    assert stream.size == len(whole)
    assert stream.digest == digest_of(whole)
    assert parse_digest(stream.digest, "x") == stream.sha256
