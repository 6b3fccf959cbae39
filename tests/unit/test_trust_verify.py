"""What passes in each format, and that nothing else does: not one bit of what was signed may change."""

import base64
import hashlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.api.errors import Stalling
from outrider.trust.detached import decode_signature
from outrider.trust.digest import Sha256Stream, digest_of, is_digest, parse_digest, parse_sha256
from outrider.trust.evidence import Evidence
from outrider.trust.keys import TrustedKey, parse_public_key
from outrider.trust.signatures import is_signed_by
from outrider.trust.verify import Verification, further_algorithms, verify_artifact
from unit.authors import (
    INTOTO,
    Author,
    attestation_payload,
    b64,
    classic_payload,
    evidence,
    index_of,
    manifest_of,
    sha256,
    statement,
)
from unit.authors import SHA256 as SHA256_HASH
from unit.authors import SHA384 as SHA384_HASH

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
    evidence: Evidence | Sequence[Evidence],
    keys: Sequence[TrustedKey],
    actual: str = SHA256,
    expected: str | None = None,
    **values: Any,
) -> Verification:
    return verify_artifact(
        **{
            "component": "agent",
            "namespace": "fleet",
            "version": "1.4.0",
            "platform": "linux/amd64",
            "size": len(FILE),
            "expected_sha256": SHA256 if expected is None else expected,
            "actual_sha256": actual,
            "evidence": [evidence] if isinstance(evidence, Evidence) else evidence,
            "keys": keys,
            "trust_namespace": "outrider-system",
            "further_digests": {"sha384": hashlib.sha384(FILE).hexdigest()},
            **values,
        }
    )


def refusal(evidence: Evidence | Sequence[Evidence], keys: Sequence[TrustedKey], **values: Any) -> Stalling:
    with pytest.raises(Stalling) as caught:
        verify(evidence, keys, **values)
    return caught.value


def detached(signature: bytes) -> Evidence:
    return Evidence("Detached", signature)


# Detached signatures, made by openssl


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_openssl_signs_is_verified_and_the_proof_names_the_key(signed: Signed, name: str) -> None:
    proof = verify(detached(signed.signatures[name]), list(signed.keys.values()))
    assert proof.key_fingerprint == signed.keys[name].fingerprint
    assert proof.key_origin == f"secret/keys:{name}.pub"
    assert (proof.format, proof.binds) == ("Detached", False)
    assert proof.steps == (
        "digests are well-formed",
        f"bytes hash to {SHA256}",
        "there is 1 piece of evidence",
        "3 trusted keys may vouch for agent",
        f"Detached: signature verified with {signed.keys[name].fingerprint}",
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_bit_of_the_digest_may_change(signed: Signed, name: str) -> None:
    digest = bytes.fromhex(SHA256)
    for position in range(len(digest) * 8):
        changed = bytearray(digest)
        changed[position // 8] ^= 1 << position % 8
        assert not is_signed_by(signed.keys[name], "sha256", bytes(changed), signed.signatures[name])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_bit_of_the_signature_may_change(signed: Signed, name: str) -> None:
    digest = bytes.fromhex(SHA256)
    signature = signed.signatures[name]
    for position in range(len(signature) * 8):
        changed = bytearray(signature)
        changed[position // 8] ^= 1 << position % 8
        assert not is_signed_by(signed.keys[name], "sha256", digest, bytes(changed))
    for changed_length in (signature[:-1], signature + b"\0", b"", signature * 2):
        assert not is_signed_by(signed.keys[name], "sha256", digest, changed_length)


def test_a_digest_of_another_length_is_nobody_s(signed: Signed) -> None:
    for digest in (b"", bytes.fromhex(SHA256)[:-1], hashlib.sha384(FILE).digest()):
        assert not is_signed_by(signed.keys["p256"], "sha256", digest, signed.signatures["p256"])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_bit_of_the_signature_s_text_may_change(signed: Signed, name: str) -> None:
    text = b64(signed.signatures[name])
    for position in range(len(text) * 8):
        changed = bytearray(text.encode())
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(Stalling) as caught:
            verify(detached(decode_signature(changed.decode("latin-1"))), [signed.keys[name]])
        assert caught.value.reason in {"SignatureMalformed", "SignatureUntrusted"}


def test_the_digest_that_counts_is_the_one_of_the_bytes_read(signed: Signed) -> None:
    other = hashlib.sha256(b"other").hexdigest()
    signature = detached(signed.signatures["p256"])
    keys = [signed.keys["p256"]]
    error = refusal(signature, keys, actual=other)
    assert error.reason == "DigestMismatch"
    assert other in error.message
    assert SHA256 in error.message
    assert refusal(signature, keys, actual=other, expected=other).reason == "SignatureUntrusted"


def test_without_any_evidence_nothing_is_trusted(signed: Signed) -> None:
    error = refusal([], list(signed.keys.values()))
    assert error.reason == "SignatureMissing"
    assert error.message.startswith("nothing vouches for agent 1.4.0 linux/amd64")


def test_without_any_key_nothing_is_trusted_and_the_message_says_what_to_make(signed: Signed) -> None:
    error = refusal(detached(signed.signatures["p256"]), [])
    assert error.reason == "NoTrustedKey"
    assert "outrider.dev/trust-key=true" in error.message
    assert "namespace outrider-system" in error.message


def test_a_key_for_another_component_does_not_count(signed: Signed) -> None:
    key = parse_public_key(signed.keys["p256"].pem.encode(), "x", components=("probe",))
    error = refusal(detached(signed.signatures["p256"]), [key])
    assert error.reason == "NoTrustedKey"
    assert "none of the 1 trusted key may vouch for component agent in namespace fleet" in error.message
    assert "outrider.dev/components" in error.message
    assert verify(detached(signed.signatures["p256"]), [key], component="probe").key_origin == "x"


def test_a_signature_by_nobody_known_names_the_keys_that_were_tried(signed: Signed) -> None:
    error = refusal(detached(signed.signatures["p256"]), [signed.keys["p384"], signed.keys["rsa3072"]])
    assert error.reason == "SignatureUntrusted"
    assert signed.keys["p384"].fingerprint in error.message
    assert signed.keys["rsa3072"].fingerprint in error.message


@pytest.mark.parametrize(
    "text",
    ["", " \n", "a", "????", "AAAA=", "AA", "{}", '{"a": 1}', "-----BEGIN X-----", "AB==", "Ä", "A\0AA", "A" * 9000],
)
def test_what_is_not_canonical_base64_is_malformed(text: str) -> None:
    with pytest.raises(Stalling) as caught:
        decode_signature(text)
    assert caught.value.reason == "SignatureMalformed"


@pytest.mark.parametrize("length", [0, 4097, 1_000_000])
def test_what_no_signature_is_long_is_malformed(signed: Signed, length: int) -> None:
    assert refusal(detached(b"x" * length), [signed.keys["p256"]]).reason == "SignatureMalformed"


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


# The other formats, for each kind of key


KINDS = ("p256", "p384", "rsa")
FORMATS = ("Detached", "SigstoreBundle", "SigstoreAttestation", "CosignClassic", "OutriderStatement")


@pytest.fixture(scope="module")
def authors() -> dict[str, Author]:
    return {kind: Author(kind) for kind in KINDS}


def make(author: Author, format_: str, file: bytes = FILE, chain: tuple[bytes, ...] = ()) -> Evidence:
    """Return what an author makes in a format, over a file or over the first document of a chain."""
    data = chain[0] if chain else file
    match format_:
        case "Detached":
            return Evidence("Detached", author.sign(data, SHA256_HASH), chain=chain)
        case "SigstoreBundle":
            return evidence("SigstoreBundle", author.bundle(data), chain)
        case "SigstoreAttestation":
            return author.attestation(sha256(data), chain)
        case "CosignClassic":
            return author.classic(sha256(data), chain)
        case _:
            return evidence("OutriderStatement", author.envelope(json.dumps(statement(file)).encode()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_passes_with_every_kind_of_key(authors: dict[str, Author], kind: str, format_: str) -> None:
    keys = [author.key for author in authors.values()]
    proof = verify(make(authors[kind], format_), keys)
    assert (proof.key_fingerprint, proof.format) == (authors[kind].key.fingerprint, format_)
    assert proof.binds is (format_ == "OutriderStatement")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format_", FORMATS)
def test_no_format_passes_for_another_file_or_by_another_key(
    authors: dict[str, Author], kind: str, format_: str
) -> None:
    author = authors[kind]
    error = refusal(make(author, format_, b"another file"), [author.key])
    expected = "SignatureUntrusted" if format_ in {"Detached", "SigstoreBundle"} else "StatementMismatch"
    assert error.reason == expected
    assert refusal(make(author, format_), [Author(kind).key]).reason == "SignatureUntrusted"


@pytest.mark.parametrize("format_", ["SigstoreAttestation", "CosignClassic"])
def test_what_is_signed_may_be_the_index_above_the_file(authors: dict[str, Author], format_: str) -> None:
    author = authors["p384"]
    manifest = manifest_of(FILE)
    chain = (index_of(manifest), manifest)
    piece = make(author, format_, chain=chain)
    # Nothing about the file itself is needed but its SHA-256.
    proof = verify(piece, [author.key], further_digests={})
    assert "2 documents lead from what was signed to the file" in proof.steps
    for broken in ((chain[0],), (chain[1],), (chain[1], chain[0]), (chain[0], manifest_of(b"x"))):
        error = refusal(replace(piece, chain=broken), [author.key])
        assert error.reason in {"EvidenceMalformed", "SignatureUntrusted", "StatementMismatch"}
    # Without the chain it was another thing that was signed.
    assert refusal(replace(piece, chain=()), [author.key]).reason in {"SignatureUntrusted", "StatementMismatch"}


@pytest.mark.parametrize("format_", ["Detached", "SigstoreBundle"])
def test_who_signs_a_file_that_reads_like_a_manifest_vouches_for_no_other_file(
    authors: dict[str, Author], format_: str
) -> None:
    author = authors["p256"]
    signed = json.dumps({"about": "a harmless file", "layers": [{"digest": f"sha256:{SHA256}"}]}).encode()
    assert refusal(make(author, format_, chain=(signed,)), [author.key]).reason == "EvidenceMalformed"
    # An image's file is its manifest: that it is named once more as the chain changes nothing.
    assert verify(make(author, format_, chain=(FILE,)), [author.key]).format == format_


def test_the_hash_follows_the_key_and_not_the_bundle(authors: dict[str, Author]) -> None:
    """A P-384 signature over SHA-256, which a detached one may be, is none in a bundle or an envelope."""
    author = authors["p384"]
    value = author.bundle(FILE)
    value["messageSignature"] = {"signature": b64(author.sign(FILE, SHA256_HASH))}
    assert refusal(evidence("SigstoreBundle", value), [author.key]).reason == "SignatureUntrusted"
    value["messageSignature"]["messageDigest"] = {"algorithm": "SHA2_256", "digest": b64(bytes.fromhex(SHA256))}
    assert refusal(evidence("SigstoreBundle", value), [author.key]).reason == "SignatureUntrusted"
    payload = json.dumps(statement(FILE)).encode()
    envelope = author.envelope(payload)
    pae = b"DSSEv1 %d %b %d %b" % (len(INTOTO), INTOTO.encode(), len(payload), payload)
    envelope["signatures"] = [{"sig": b64(author.sign(pae, SHA256_HASH))}]
    assert refusal(evidence("OutriderStatement", envelope), [author.key]).reason == "SignatureUntrusted"


def test_a_p384_signature_beside_the_file_may_be_over_either_hash(authors: dict[str, Author]) -> None:
    """`openssl dgst -sha256` and cosign 2 take SHA-256, cosign 3 takes SHA-384."""
    author = authors["p384"]
    for piece in (author.detached(FILE, SHA256_HASH), author.detached(FILE, SHA384_HASH)):
        assert verify(piece, [author.key]).format == "Detached"
    payload = classic_payload(SHA256)
    piece = Evidence("CosignClassic", payload, b64(author.sign(payload, SHA384_HASH)))
    assert verify(piece, [author.key]).format == "CosignClassic"
    other = authors["p256"]
    assert refusal(other.detached(FILE, SHA384_HASH), [other.key]).reason == "SignatureUntrusted"


def test_a_second_hash_is_asked_for_only_where_it_can_matter(authors: dict[str, Author]) -> None:
    p256, p384 = authors["p256"], authors["p384"]
    bundle, statement_ = make(p384, "SigstoreBundle"), make(p384, "OutriderStatement")
    assert further_algorithms([bundle], [p256.key, p384.key]) == {"sha384"}
    assert further_algorithms([bundle], [p256.key, authors["rsa"].key]) == frozenset()
    assert further_algorithms([statement_], [p384.key]) == frozenset()
    assert further_algorithms([replace(bundle, chain=(b"x",))], [p384.key]) == frozenset()
    assert refusal(bundle, [p384.key], further_digests={}).reason == "SignatureUntrusted"
    assert refusal(bundle, [p384.key], further_digests={"sha384": "0" * 95}).reason == "DigestMalformed"


def test_hints_are_not_used(authors: dict[str, Author]) -> None:
    author = authors["p256"]
    value = author.bundle(FILE)
    for hint in ({}, {"hint": ""}, {"hint": "AAAA"}, {"hint": 7}):
        value["verificationMaterial"]["publicKey"] = hint
        assert verify(evidence("SigstoreBundle", value), [author.key]).format == "SigstoreBundle"
    envelope = author.envelope(json.dumps(statement(FILE)).encode())
    envelope["signatures"][0]["keyid"] = "somebody"
    assert verify(evidence("OutriderStatement", envelope), [author.key]).binds


def test_a_message_digest_that_contradicts_is_refused(authors: dict[str, Author]) -> None:
    author = authors["p256"]
    value = author.bundle(FILE)
    value["messageSignature"]["messageDigest"]["digest"] = b64(b"\0" * 32)
    assert refusal(evidence("SigstoreBundle", value), [author.key]).reason == "BundleMalformed"
    value["messageSignature"]["messageDigest"] = {"algorithm": "SHA2_384", "digest": b64(hashlib.sha384(FILE).digest())}
    assert refusal(evidence("SigstoreBundle", value), [author.key]).reason == "BundleMalformed"


@pytest.mark.parametrize(
    ("claimed", "made", "reason"),
    [
        ("SigstoreBundle", "OutriderStatement", "BundleMalformed"),
        ("SigstoreBundle", "Detached", "BundleMalformed"),
        ("SigstoreAttestation", "SigstoreBundle", "BundleMalformed"),
        ("SigstoreAttestation", "OutriderStatement", "StatementMismatch"),
        ("OutriderStatement", "SigstoreAttestation", "StatementMismatch"),
        ("OutriderStatement", "SigstoreBundle", "BundleMalformed"),
        ("OutriderStatement", "CosignClassic", "BundleMalformed"),
        ("Detached", "SigstoreBundle", "SignatureUntrusted"),
        ("Detached", "CosignClassic", "SignatureUntrusted"),
        ("CosignClassic", "Detached", "SignatureMalformed"),
    ],
)
def test_what_a_document_claims_to_be_gives_it_nothing(
    authors: dict[str, Author], claimed: Any, made: str, reason: str
) -> None:
    author = authors["p256"]
    piece = replace(make(author, made), format=claimed)
    assert refusal(piece, [author.key]).reason == reason


def test_a_bundle_made_with_a_certificate_is_refused(authors: dict[str, Author]) -> None:
    author = authors["p256"]
    value = author.bundle(FILE)
    value["verificationMaterial"]["certificate"] = {"rawBytes": "AAAA"}
    error = refusal(evidence("SigstoreBundle", value), [author.key])
    assert error.reason == "BundleMalformed"
    assert "made with a certificate (keyless)" in error.message


# What a statement binds


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"component": "other"}, "it is about component 'other', and this is agent"),
        ({"version": "1.4.1"}, "it is about version '1.4.1', and this is 1.4.0"),
        ({"version": "1.4.0 "}, "it is about version '1.4.0 ', and this is 1.4.0"),
        ({"platform": "linux/arm64"}, "it is about platform 'linux/arm64', and this is linux/amd64"),
        ({"size": 1}, f"it is about a file of 1 bytes, and this one has {len(FILE)}"),
    ],
)
def test_a_good_signature_for_something_else_is_a_mismatch(
    authors: dict[str, Author], changes: dict[str, Any], text: str
) -> None:
    author = authors["p256"]
    envelope = author.envelope(json.dumps(statement(FILE, **changes)).encode())
    error = refusal(evidence("OutriderStatement", envelope), [author.key])
    assert error.reason == "StatementMismatch"
    assert text in error.message
    assert author.key.fingerprint in error.message
    # Other evidence that passes is enough, in whatever order.
    pieces = [evidence("OutriderStatement", envelope), make(author, "Detached")]
    for order in (pieces, pieces[::-1]):
        assert verify(order, [author.key]).format == "Detached"


def test_a_statement_about_another_file_is_a_mismatch(authors: dict[str, Author]) -> None:
    author = authors["p256"]
    value = statement(b"another file", size=len(FILE))
    error = refusal(evidence("OutriderStatement", author.envelope(json.dumps(value).encode())), [author.key])
    assert error.reason == "StatementMismatch"
    assert f"it is about sha256:{sha256(b'another file')}, and this is sha256:{SHA256}" in error.message


def test_a_statement_about_what_lies_above_binds_only_where_it_can_mean_one_file(authors: dict[str, Author]) -> None:
    """`cosign attest` on an artifact signs its manifest; of what names more than the file anything could be meant."""
    author = authors["p256"]

    def about(*chain: bytes, **changes: Any) -> Evidence:
        value = statement(FILE, **changes)
        value["subject"][0]["digest"]["sha256"] = sha256(chain[0])
        return evidence("OutriderStatement", author.enveloping(json.dumps(value).encode()), chain)

    manifest = manifest_of(FILE)
    assert verify(about(manifest), [author.key]).binds
    assert refusal(about(manifest, size=len(manifest)), [author.key]).reason == "StatementMismatch"
    two = manifest_of(FILE, b"another")
    for chain in ((two,), (index_of(manifest), manifest), (index_of(manifest, two), two)):
        error = refusal(about(*chain), [author.key])
        assert error.reason == "StatementMismatch"
        assert "names more than this file" in error.message
    # An image is its own manifest.
    proof = verify(about(two, size=len(two)), [author.key], actual=sha256(two), expected=sha256(two), size=len(two))
    assert proof.binds


def test_an_attestation_of_something_else_vouches_for_nothing(authors: dict[str, Author]) -> None:
    author = authors["p256"]
    value = json.loads(attestation_payload(SHA256))
    value["predicateType"] = "https://cosign.sigstore.dev/attestation/vuln/v1"
    error = refusal(evidence("SigstoreAttestation", author.enveloping(json.dumps(value).encode())), [author.key])
    assert error.reason == "StatementMismatch"
    assert "predicate type" in error.message


@pytest.mark.parametrize("payload", [b"{}", b"not json", b"[]", json.dumps(statement(FILE, extra=1)).encode()])
def test_a_signed_statement_that_cannot_be_read_is_malformed_and_an_unsigned_one_not_even_looked_at(
    authors: dict[str, Author], payload: bytes
) -> None:
    author = authors["p256"]
    piece = evidence("OutriderStatement", author.envelope(payload))
    assert refusal(piece, [author.key]).reason == "StatementMalformed"
    assert refusal(piece, [authors["rsa"].key]).reason == "SignatureUntrusted"
    classic = Evidence("CosignClassic", payload, b64(author.sign(payload)))
    assert refusal(classic, [author.key]).reason == "StatementMalformed"
    assert refusal(classic, [authors["rsa"].key]).reason == "SignatureUntrusted"


def test_where_the_size_is_not_known_the_hash_implies_it(authors: dict[str, Author]) -> None:
    author = authors["p256"]
    assert verify(make(author, "OutriderStatement"), [author.key], size=None).binds


def test_a_binding_can_be_demanded(authors: dict[str, Author]) -> None:
    author = authors["p256"]
    others = [make(author, format_) for format_ in FORMATS if format_ != "OutriderStatement"]
    error = refusal(others, [author.key], require_binding=True)
    assert error.reason == "BindingRequired"
    assert "outrider sign" in error.message
    assert "(of 4 pieces of evidence none passes: Detached BindingRequired, " in error.message
    assert verify([*others, make(author, "OutriderStatement")], [author.key], require_binding=True).binds
    # A statement that is there, but about something else, is what has to be corrected.
    wrong = evidence("OutriderStatement", author.envelope(json.dumps(statement(FILE, version="2.0.0")).encode()))
    assert refusal([*others, wrong], [author.key], require_binding=True).reason == "StatementMismatch"
    # What nobody trusted signed is not only lacking a binding.
    assert refusal(others, [Author("p256").key], require_binding=True).reason == "SignatureUntrusted"


def test_what_binds_is_preferred(authors: dict[str, Author]) -> None:
    author = authors["p256"]
    assert verify([make(author, "Detached"), make(author, "OutriderStatement")], [author.key]).binds


def test_of_several_refusals_the_most_telling_is_told(authors: dict[str, Author]) -> None:
    author = authors["p256"]
    wrong = evidence("OutriderStatement", author.envelope(json.dumps(statement(FILE, version="2.0.0")).encode()))
    pieces = [Evidence("SigstoreBundle", b"{}"), authors["rsa"].detached(FILE), wrong]
    error = refusal(pieces, [author.key])
    assert error.reason == "StatementMismatch"
    assert error.message.endswith(
        "(of 3 pieces of evidence none passes: OutriderStatement StatementMismatch, SigstoreBundle BundleMalformed, "
        "Detached SignatureUntrusted)"
    )
    assert refusal(pieces[:2], [author.key]).reason == "SignatureUntrusted"
    assert refusal(pieces[:1], [author.key]).reason == "BundleMalformed"
    assert "and 15 more" in refusal([authors["rsa"].detached(FILE)] * 20, [author.key]).message


# When a key may vouch for something new

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("begin", "end", "valid"),
    [
        (None, None, True),
        (NOW - DAY, NOW + DAY, True),
        (NOW, NOW, True),
        (NOW + DAY, None, False),
        (None, NOW - DAY, False),
        (NOW + timedelta(microseconds=1), None, False),
    ],
)
def test_a_key_outside_its_window_vouches_for_nothing_new(
    authors: dict[str, Author], begin: datetime | None, end: datetime | None, *, valid: bool
) -> None:
    author = authors["p256"]
    key = author.trusted(not_before=begin, not_after=end)
    piece = make(author, "Detached")
    if valid:
        assert verify(piece, [key], at=NOW).key_fingerprint == key.fingerprint
    else:
        error = refusal(piece, [key], at=NOW)
        assert error.reason == "KeyNotValidNow"
        assert "outrider.dev/not-after" in error.message
    # What was published before stays; a key that did not sign is not named for its window.
    assert verify(piece, [key]).key_fingerprint == key.fingerprint
    assert refusal(make(authors["rsa"], "Detached"), [key], at=NOW).reason == "SignatureUntrusted"


def test_a_key_that_is_given_twice_counts_where_it_is_valid(authors: dict[str, Author]) -> None:
    author = authors["p256"]
    old = author.trusted(not_after=NOW - DAY)
    for keys in ([old, author.key], [author.key, old]):
        assert verify(make(author, "Detached"), keys, at=NOW).key_fingerprint == author.key.fingerprint


def test_an_old_and_a_new_key_side_by_side(authors: dict[str, Author]) -> None:
    old, new = authors["p256"].trusted(not_after=NOW - DAY), authors["p384"].trusted(not_before=NOW - DAY)
    both = [make(authors["p256"], "Detached"), make(authors["p384"], "SigstoreBundle")]
    assert verify(both, [old, new], at=NOW).key_fingerprint == new.fingerprint
    assert verify(both[0], [old, new]).key_fingerprint == old.fingerprint
    assert refusal(both[0], [old, new], at=NOW).reason == "KeyNotValidNow"
    # The old key is taken away: what was signed again still passes, what was not does not.
    assert verify(both, [new]).key_fingerprint == new.fingerprint
    assert refusal(both[0], [new]).reason == "SignatureUntrusted"


def test_a_moment_without_a_zone_is_taken_as_utc(authors: dict[str, Author]) -> None:
    key = authors["p256"].trusted(not_after=NOW)
    piece = make(authors["p256"], "Detached")
    assert verify(piece, [key], at=NOW.replace(tzinfo=None)).format == "Detached"
    assert refusal(piece, [key], at=(NOW + DAY).replace(tzinfo=None)).reason == "KeyNotValidNow"


# Nothing that was signed may change, and nothing else escapes


@pytest.mark.parametrize("format_", FORMATS)
def test_no_byte_of_a_document_may_turn_it_into_something_else(authors: dict[str, Author], format_: str) -> None:
    """Each byte of the document and of the signature beside it is changed: refused, or it did not matter.

    It does not matter only inside the hint on the key, which is not used at all.
    """
    author = authors["p256"]
    piece = make(author, format_)
    hint = piece.document.find(b'"hint": "') + len(b'"hint": "')
    unused = range(hint, piece.document.find(b'"', hint)) if format_.startswith("Sigstore") else range(0)
    for position in range(len(piece.document)):
        for bit in (1, 32):
            document = bytearray(piece.document)
            document[position] ^= bit
            changed = replace(piece, document=bytes(document))
            try:
                proof = verify(changed, [author.key])
            except Stalling:
                continue
            assert position in unused
            assert proof.key_fingerprint == author.key.fingerprint
    for position in range(len(piece.signature)):
        signature = bytearray(piece.signature.encode())
        signature[position] ^= 1
        refusal(replace(piece, signature=signature.decode("latin-1")), [author.key])


@settings(max_examples=200)
@given(
    st.lists(
        st.builds(
            Evidence,
            st.sampled_from(FORMATS),
            st.binary(max_size=100),
            st.text(max_size=20),
            st.lists(st.binary(max_size=50), max_size=5).map(tuple),
        ),
        max_size=4,
    )
)
def test_garbage_as_evidence_never_escapes_as_a_foreign_exception(
    authors: dict[str, Author], pieces: list[Evidence]
) -> None:
    refusal(pieces, [author.key for author in authors.values()])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(data=st.data(), value=json_values)
def test_garbage_anywhere_in_a_document_never_escapes_and_never_passes_where_it_was_signed(
    authors: dict[str, Author], data: st.DataObject, value: Any
) -> None:
    author = authors["p256"]
    format_ = data.draw(st.sampled_from(["SigstoreBundle", "SigstoreAttestation", "OutriderStatement"]))
    document = json.loads(make(author, format_).document)
    place: Any = document
    while True:
        name = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place[name], dict | list) and place[name] and data.draw(st.booleans()):
            place = place[name]
            continue
        break
    before = place[name]
    place[name] = value
    unsigned = name in {"hint", "tlogEntries", "publicKey", "keyid"} or value == before
    try:
        verify(evidence(format_, document), [author.key])
    except Stalling:
        return
    assert unsigned


@settings(max_examples=300)
@given(st.text(max_size=200))
def test_garbage_as_signature_or_digest_never_escapes_as_a_foreign_exception(signed: Signed, garbage: str) -> None:
    keys = list(signed.keys.values())
    good = detached(signed.signatures["p256"])
    with pytest.raises(Stalling):
        verify(detached(decode_signature(garbage)), keys)
    refusal(good, keys, actual=garbage)
    refusal(good, keys, expected=garbage)
    if garbage != "agent":
        refusal(good, [replace(key, components=("agent",)) for key in keys], component=garbage)


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=600))
def test_random_bytes_are_no_signature(signed: Signed, garbage: bytes) -> None:
    assert refusal(detached(garbage), list(signed.keys.values())).reason == "SignatureUntrusted"


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
