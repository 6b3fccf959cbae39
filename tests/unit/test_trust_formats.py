"""Each format, piece by piece: what is read, and that nothing else is."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.api.errors import OutriderError, Stalling
from outrider.trust.bundle import MessageSignature, parse_bundle, parse_enveloped, recognise
from outrider.trust.chain import follow_chain
from outrider.trust.cosign import parse_payload
from outrider.trust.documents import Malformed
from outrider.trust.evidence import MAX_CHAIN, MAX_EVIDENCE_BYTES, Evidence, decode_evidence, encode_evidence
from outrider.trust.keys import parse_public_key
from outrider.trust.signatures import digests_of, find_signer
from outrider.trust.signing import PassphraseNeeded, parse_private_key, public_half, sign_statement
from outrider.trust.statement import (
    Binding,
    Envelope,
    build_statement,
    parse_binding,
    parse_envelope,
    parse_statement,
    pre_authentication_encoding,
)
from unit.authors import (
    INTOTO,
    Author,
    attestation_payload,
    classic_payload,
    index_of,
    manifest_of,
    sha256,
    statement,
)

VECTORS = Path(__file__).parent / "vectors"
FILE = b"an agent\n"


@pytest.fixture(scope="module")
def author() -> Author:
    return Author("p256")


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def changed(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    """Return a copy with one member set, or removed if `new` is ...; `path` is separated by dots."""
    value = copy.deepcopy(value)
    *parents, last = path.split(".")
    place: Any = value
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    if new is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = new
    return value


# Evidence


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence("Detached", b"\x30\x45"),
        Evidence("CosignClassic", b"{}", "c2ln", (b"index", b"manifest")),
        Evidence("OutriderStatement", "ä".encode(), chain=(b"x",) * MAX_CHAIN),
    ],
)
def test_evidence_is_stored_and_read_back(evidence: Evidence) -> None:
    data = encode_evidence(evidence)
    assert decode_evidence(data) == evidence
    assert encode_evidence(decode_evidence(data)) == data


def test_evidence_has_one_text() -> None:
    assert encode_evidence(Evidence("CosignClassic", b"{}", "c2ln", (b"a",))) == (
        b'{"chain":["YQ=="],"document":"e30=","format":"CosignClassic","signature":"c2ln"}'
    )


STORED = {"format": "CosignClassic", "document": "e30=", "signature": "c2ln", "chain": []}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "it has no format"),
        (changed(STORED, "chain", ...), "it has no chain"),
        ({**STORED, "verified": True}, "it has 'verified', which does not belong there"),
        ({**STORED, "format": "None"}, "its format 'None' is unknown"),
        ({**STORED, "format": "detached"}, "its format 'detached' is unknown"),
        ({**STORED, "format": 1}, "format of it is not a text"),
        ({**STORED, "document": ""}, "its document is empty"),
        ({**STORED, "document": "e31"}, "its document is not base64"),
        ({**STORED, "document": "e31="}, "its document is not canonical base64"),
        ({**STORED, "document": None}, "document of it is not a text"),
        ({**STORED, "signature": ""}, "its signature is empty"),
        ({**STORED, "signature": "sig"}, "its signature is not base64"),
        ({**STORED, "format": "Detached"}, "it has a signature beside its document, which Detached has not"),
        ({**STORED, "chain": {}}, "chain of it is not a list"),
        ({**STORED, "chain": [1]}, "a document of its chain is not a text"),
        ({**STORED, "chain": [""]}, "a document of its chain is empty"),
        ({**STORED, "chain": ["YQ=="] * (MAX_CHAIN + 1)}, f"its chain has {MAX_CHAIN + 1} documents"),
    ],
)
def test_stored_evidence_is_exactly_that(value: dict[str, Any], text: str) -> None:
    with pytest.raises(Stalling) as caught:
        decode_evidence(encode(value))
    assert caught.value.reason == "EvidenceMalformed"
    assert text in caught.value.message


def test_evidence_has_a_limit_in_both_directions() -> None:
    for attempt in (
        lambda: encode_evidence(Evidence("Detached", b"x" * MAX_EVIDENCE_BYTES)),
        lambda: decode_evidence(b" " * (MAX_EVIDENCE_BYTES + 1)),
    ):
        with pytest.raises(Stalling, match="at most 1048576") as caught:
            attempt()
        assert caught.value.reason == "EvidenceMalformed"


@given(st.binary(max_size=200))
def test_garbage_as_evidence_never_escapes_as_a_foreign_exception(data: bytes) -> None:
    with pytest.raises(Stalling):
        decode_evidence(data)


# Bundles


def test_a_bundle_of_sigstore_s_own_conformance_suite_is_read_and_its_signature_holds() -> None:
    message = parse_bundle((VECTORS / "conformance.bundle.json").read_bytes())
    assert isinstance(message, MessageSignature)
    digests = digests_of((VECTORS / "conformance.txt").read_bytes())
    assert (message.algorithm, message.digest) == ("sha256", digests["sha256"])
    key = parse_public_key((VECTORS / "conformance.pub").read_bytes(), "a")
    other = Author("p256").key
    assert find_signer([other, key], digests, message.signature) == key
    assert find_signer([other], digests, message.signature) is None


def test_a_message_digest_is_optional(author: Author) -> None:
    value = changed(author.bundle(FILE), "messageSignature.messageDigest", ...)
    message = parse_bundle(encode(value))
    assert isinstance(message, MessageSignature)
    assert (message.algorithm, message.digest) == (None, None)


def test_the_older_spelling_of_version_0_3_is_accepted(author: Author) -> None:
    value = changed(author.bundle(FILE), "mediaType", "application/vnd.dev.sigstore.bundle+json;version=0.3")
    assert isinstance(parse_bundle(encode(value)), MessageSignature)


@pytest.mark.parametrize(
    ("path", "new", "text"),
    [
        ("mediaType", ..., "it has no mediaType"),
        ("mediaType", "application/vnd.dev.sigstore.bundle.v0.4+json", "not a sigstore bundle of version 0.3"),
        ("mediaType", "application/vnd.dev.sigstore.bundle+json;version=0.1", "not a sigstore bundle of version 0.3"),
        ("mediaType", 3, "mediaType of it is not a text"),
        ("verificationMaterial", ..., "it has no verificationMaterial"),
        ("verificationMaterial", [], "verificationMaterial of it is not an object"),
        ("verificationMaterial.publicKey", ..., "has no publicKey"),
        ("verificationMaterial.publicKey", "hint", "publicKey of its verificationMaterial is not an object"),
        ("verificationMaterial.certificate", {"rawBytes": "AAAA"}, "made with a certificate"),
        ("verificationMaterial.x509CertificateChain", {"certificates": []}, "made with a certificate"),
        ("verificationMaterial.other", 1, "has 'other', which does not belong there"),
        ("media_type", "x", "has 'media_type', which does not belong there"),
        ("messageSignature", ..., "not exactly one of messageSignature and dsseEnvelope"),
        ("dsseEnvelope", {}, "not exactly one of messageSignature and dsseEnvelope"),
        ("messageSignature", [], "messageSignature of it is not an object"),
        ("messageSignature.signature", ..., "has no signature"),
        ("messageSignature.signature", "", "its signature is empty"),
        ("messageSignature.signature", "AB==", "its signature is not canonical base64"),
        ("messageSignature.signature", None, "is not a text"),
        ("messageSignature.more", 1, "has 'more', which does not belong there"),
        ("messageSignature.messageDigest", "x", "messageDigest of its messageSignature is not an object"),
        ("messageSignature.messageDigest.algorithm", "SHA2_512", "neither SHA-256 nor SHA-384"),
        ("messageSignature.messageDigest.algorithm", 1, "is not a text"),
        ("messageSignature.messageDigest.digest", "AAAA", "has not the length of its algorithm"),
        ("messageSignature.messageDigest.digest", ..., "has no digest"),
    ],
)
def test_a_bundle_is_of_version_0_3_and_made_with_a_key(author: Author, path: str, new: Any, text: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_bundle(encode(changed(author.bundle(FILE), path, new)))
    assert text in str(caught.value)


def test_a_bundle_with_only_a_certificate_says_so(author: Author) -> None:
    value = changed(author.bundle(FILE), "verificationMaterial", {"certificate": {"rawBytes": "AAAA"}})
    with pytest.raises(Malformed, match=r"made with a certificate \(keyless\)"):
        parse_bundle(encode(value))


def test_which_format_a_document_has_is_seen_from_what_it_holds(author: Author) -> None:
    payload = encode(statement(FILE))
    for value, expected in (
        (author.bundle(FILE), "SigstoreBundle"),
        (author.enveloping(payload), "OutriderStatement"),
        (author.envelope(payload), "OutriderStatement"),
        (author.enveloping(attestation_payload(sha256(FILE))), "SigstoreAttestation"),
    ):
        assert recognise(encode(value)) == expected
    for garbage in (b"", b"{}", b"[]", encode(author.envelope(b"{}")), encode({"payloadType": INTOTO})):
        with pytest.raises(Stalling) as caught:
            recognise(garbage)
        assert caught.value.reason == "BundleMalformed"


# DSSE and statements


def test_the_encoding_that_is_signed_is_dsse_s_own_example() -> None:
    assert (
        pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pre_authentication_encoding("ä", b"") == b"DSSEv1 2 \xc3\xa4 0 "


def test_an_envelope_is_read_bare_and_in_a_bundle(author: Author) -> None:
    payload = encode(statement(FILE))
    bare = author.envelope(payload)
    assert parse_envelope(bare).payload == payload
    assert parse_enveloped(encode(bare)) == parse_envelope(bare)
    bundled = parse_bundle(encode(author.enveloping(payload)))
    assert isinstance(bundled, Envelope)
    assert bundled.payload == payload
    assert parse_envelope(changed(bare, "signatures.0.keyid", "whatever")) == parse_envelope(bare)


SIGNATURE = {"sig": "c2ln"}
ENVELOPE: dict[str, Any] = {"payload": "e30=", "payloadType": INTOTO, "signatures": [SIGNATURE]}


@pytest.mark.parametrize(
    ("path", "new", "text"),
    [
        ("payload", ..., "has no payload"),
        ("payload", "", "its payload is empty"),
        ("payload", "e31=", "its payload is not canonical base64"),
        ("payload", {}, "payload of the envelope is not a text"),
        ("payloadType", "application/json", "its payloadType is not application/vnd.in-toto+json"),
        ("payloadType", INTOTO + " ", "its payloadType is not application/vnd.in-toto+json"),
        ("signatures", [], "it has 0 signatures, and exactly one is accepted"),
        ("signatures", [SIGNATURE, SIGNATURE], "it has 2 signatures, and exactly one is accepted"),
        ("signatures", {}, "signatures of the envelope is not a list"),
        ("signatures", ["c2ln"], "its signature is not an object"),
        ("signatures.0.sig", "", "its signature is empty"),
        ("signatures.0.sig", 1, "sig of its signature is not a text"),
        ("signatures.0.cert", "x", "has 'cert', which does not belong there"),
        ("other", "x", "has 'other', which does not belong there"),
    ],
)
def test_an_envelope_holds_one_in_toto_statement_and_one_signature(path: str, new: Any, text: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_envelope(changed(ENVELOPE, path, new))
    assert text in str(caught.value)


def test_both_versions_of_a_statement_are_read() -> None:
    for type_ in ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"):
        read = parse_statement(encode(changed(statement(FILE), "_type", type_)))
        assert read.sha256 == sha256(FILE)
        assert parse_binding(read) == Binding("agent", "1.4.0", "linux/amd64", len(FILE))
    assert parse_statement(encode(changed(statement(FILE), "predicate", ...))).predicate == {}


@pytest.mark.parametrize(
    ("path", "new", "text"),
    [
        ("_type", "https://in-toto.io/Statement/v2", "its _type is not that of an in-toto statement"),
        ("_type", ..., "it has no _type"),
        ("subject", [], "it is about 0 subjects"),
        ("subject", [{"digest": {"sha256": "0" * 64}}] * 2, "it is about 2 subjects"),
        ("subject", "file", "subject of it is not a list"),
        ("subject.0", "file", "exactly one is accepted"),
        ("subject.0.digest", ..., "digest of its subject is not an object"),
        ("subject.0.digest.sha256", ..., "sha256 of the digest of its subject is not a text"),
        ("subject.0.digest.sha256", "0" * 63, "is not 64 lower-case hex digits"),
        ("subject.0.digest.sha256", "A" * 64, "is not 64 lower-case hex digits"),
        ("predicateType", ..., "it has no predicateType"),
        ("predicateType", None, "predicateType of it is not a text"),
        ("predicate", [], "predicate of it is not an object"),
        ("expires", "2020", "has 'expires', which does not belong there"),
    ],
)
def test_a_statement_is_about_one_subject(path: str, new: Any, text: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_statement(encode(changed(statement(FILE), path, new)))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("path", "new", "text"),
    [
        ("predicate.component", ..., "has no component"),
        ("predicate.version", 1, "version of its predicate is not a text"),
        ("predicate.platform", {"os": "linux"}, "platform of its predicate is not a text"),
        ("predicate.size", "9", "is not a number of bytes"),
        ("predicate.size", 9.0, "is not a number of bytes"),
        ("predicate.size", True, "is not a number of bytes"),
        ("predicate.size", -1, "is not a number of bytes"),
        ("predicate.notAfter", "2020-01-01", "has 'notAfter', which does not belong there"),
    ],
)
def test_our_predicate_has_four_fields(path: str, new: Any, text: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_binding(parse_statement(encode(changed(statement(FILE), path, new))))
    assert text in str(caught.value)


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa"])
def test_what_is_signed_here_is_what_others_expect(kind: str) -> None:
    author = Author(kind)
    key = parse_private_key(author.private_pem, "release.key")
    public = public_half(key, "release.key")
    assert public.fingerprint == author.key.fingerprint
    payload = build_statement(Binding("agent", "1.4.0", "linux/amd64", len(FILE)), "node-agent", sha256(FILE))
    assert json.loads(payload) == statement(FILE)
    envelope = parse_enveloped(sign_statement(key, public, payload))
    assert envelope.payload == payload
    assert find_signer([author.key], digests_of(envelope.signed), envelope.signature) == author.key


def test_private_keys_that_cannot_be_used_are_refused_without_being_echoed() -> None:
    author = Author("p256")
    body = author.private_pem.decode().splitlines()[1]
    for pem, passphrase, text in (
        (b"garbage", None, "it is not a private key in PEM"),
        (author.pem, None, "it is not a private key in PEM"),
        (author.private_pem[:60], None, "it is not a private key in PEM"),
        (author.private_pem, b"hunter2", "not protected by a passphrase"),
        (b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA", None, "cosign's own form"),
        (b"x" * 20_000, None, "it has 20000 bytes"),
    ):
        with pytest.raises(Stalling) as caught:
            parse_private_key(pem, "release.key", passphrase)
        assert caught.value.reason == "KeyUnusable"
        assert text in caught.value.message
        assert body not in caught.value.message
        assert "hunter2" not in caught.value.message


def test_a_protected_key_asks_for_its_passphrase() -> None:
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

    author = Author("p256")
    pem = author.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2"))
    assert public_half(parse_private_key(pem, "k", b"hunter2"), "k").fingerprint == author.key.fingerprint
    for none in (None, b""):
        with pytest.raises(PassphraseNeeded):
            parse_private_key(pem, "k", none)
    with pytest.raises(Stalling, match="the passphrase is wrong"):
        parse_private_key(pem, "k", b"hunter3")


# cosign's classic payload


def test_a_classic_payload_names_a_digest_and_where_it_was_does_not_matter() -> None:
    payload = json.loads(classic_payload(sha256(FILE)))
    assert parse_payload(encode(payload)) == sha256(FILE)
    assert parse_payload(encode(changed(payload, "critical.identity", {"docker-reference": ""}))) == sha256(FILE)
    assert parse_payload(encode(changed(payload, "optional", {"a": "b"}))) == sha256(FILE)
    assert parse_payload(encode(changed(payload, "optional", ...))) == sha256(FILE)


@pytest.mark.parametrize(
    ("path", "new", "text"),
    [
        ("critical", ..., "it has no critical"),
        ("critical.type", "atomic container signature", "its type is not cosign container image signature"),
        ("critical.image", {}, "its image has no docker-manifest-digest"),
        ("critical.image.docker-manifest-digest", "0" * 64, "is not a SHA-256 digest"),
        ("critical.image.docker-manifest-digest", "sha512:" + "0" * 128, "is not a SHA-256 digest"),
        ("critical.image.docker-manifest-digest", ["sha256:" + "0" * 64], "is not a text"),
        ("critical.image.other", "x", "which does not belong there"),
        ("critical.only-for", "x", "which does not belong there"),
        ("more", "x", "which does not belong there"),
    ],
)
def test_a_classic_payload_is_exactly_that(path: str, new: Any, text: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_payload(encode(changed(json.loads(classic_payload(sha256(FILE))), path, new)))
    assert text in str(caught.value)


# Chains


def follow(chain: tuple[bytes, ...], file: bytes = FILE) -> str:
    return follow_chain(chain, sha256(file), digests_of(file))["sha256"].hex()


def test_a_chain_leads_from_what_was_signed_to_the_file() -> None:
    manifest = manifest_of(b"other", FILE)
    index = index_of(b"other", manifest)
    outer = index_of(index)
    assert follow(()) == sha256(FILE)
    assert follow((manifest,)) == sha256(manifest)
    assert follow((index, manifest)) == sha256(index)
    assert follow((outer, index, manifest)) == sha256(outer)
    # An image is its own manifest: signed itself, or through an index.
    assert follow((manifest,), manifest) == sha256(manifest)
    assert follow((index, manifest), manifest) == sha256(index)
    assert follow((index,), manifest) == sha256(index)


MANIFEST = json.loads(manifest_of(FILE))


@pytest.mark.parametrize(
    ("chain", "text"),
    [
        ((manifest_of(b"other"),), "its last document does not name the file"),
        ((manifest_of(),), "its last document does not name the file"),
        ((index_of(manifest_of(FILE)),), "its last document does not name the file"),
        ((index_of(b"x"), manifest_of(FILE)), "its document 1 does not name the one after it"),
        ((manifest_of(FILE), index_of(manifest_of(FILE))), "its document 1 does not name the one after it"),
        ((manifest_of(FILE), manifest_of(FILE)), "its document 1 does not name the one after it"),
        ((index_of(FILE),) * (MAX_CHAIN + 1), f"it has {MAX_CHAIN + 1} documents"),
        ((b"",), "its document 1 cannot be read: it is not JSON"),
        ((b"{}",), "neither an index nor a manifest"),
        ((encode({**MANIFEST, "manifests": []}),), "neither an index nor a manifest"),
        ((encode({**MANIFEST, "layers": {}}),), "layers of it is not a list"),
        ((encode({**MANIFEST, "layers": [1]}),), "an entry of its layers is not an object"),
        ((encode({**MANIFEST, "layers": [{}]}),), "digest of an entry of its layers is not a text"),
        ((encode({**MANIFEST, "mediaType": "application/vnd.oci.image.index.v1+json"}),), "of another kind"),
        ((encode({**MANIFEST, "mediaType": None}),), "mediaType of it is not a text"),
        ((b'{"layers": [], ' + encode(MANIFEST)[1:],), "an object in it has a name twice"),
        ((b" " * (MAX_EVIDENCE_BYTES + 1),), "at most 1048576 are read"),
        (
            (encode({**MANIFEST, "config": {"digest": f"sha256:{sha256(FILE)}"}, "layers": []}),),
            "does not name the file",
        ),
        ((encode({**MANIFEST, "layers": [{"digest": "sha512:" + "0" * 128}]}),), "does not name the file"),
        ((encode({**MANIFEST, "layers": [{"digest": sha256(FILE)}]}),), "does not name the file"),
    ],
)
def test_a_chain_that_is_broken_anywhere_is_refused(chain: tuple[bytes, ...], text: str) -> None:
    with pytest.raises(Stalling) as caught:
        follow(chain)
    assert caught.value.reason == "EvidenceMalformed"
    assert text in caught.value.message


def test_a_document_without_a_media_type_is_what_it_holds() -> None:
    manifest = encode(changed(MANIFEST, "mediaType", ...))
    assert follow((manifest,)) == sha256(manifest)


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=MAX_CHAIN))
def test_garbage_as_chain_never_escapes_as_a_foreign_exception(chain: list[bytes]) -> None:
    with pytest.raises(OutriderError):
        follow(tuple(chain))


def test_the_file_as_its_own_chain_vouches_for_nothing_more() -> None:
    assert follow((FILE,)) == sha256(FILE)
