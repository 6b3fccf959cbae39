"""May these bytes be trusted? One function, in numbered steps, for operator, node and command line alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, assert_never

from outrider.api.errors import Stalling
from outrider.api.names import (
    ANNOTATION_KEY_COMPONENTS,
    ANNOTATION_KEY_NAMESPACES,
    ANNOTATION_KEY_NOT_AFTER,
    ANNOTATION_KEY_NOT_BEFORE,
    LABEL_TRUST_KEY,
    STATEMENT_TYPE,
)
from outrider.trust.bundle import MessageSignature, bundle_malformed, parse_bundle, parse_enveloped
from outrider.trust.chain import follow_chain, is_only_file
from outrider.trust.cosign import parse_payload
from outrider.trust.digest import parse_sha256
from outrider.trust.documents import Malformed, decode_base64, shown
from outrider.trust.evidence import Evidence, Format
from outrider.trust.keys import TrustedKey, select_keys
from outrider.trust.signatures import (
    Digests,
    digests_of,
    find_raw_signer,
    find_signer,
    key_algorithm,
    parse_digests,
)
from outrider.trust.statement import (
    COSIGN_SIGN_TYPE,
    Envelope,
    Statement,
    parse_binding,
    parse_statement,
)

BINDING: Final[Format] = "OutriderStatement"
"""The format that says for what a file was made, not only that somebody signed it."""

MAX_SIGNATURE_BYTES: Final = 4096
"""Larger than any signature by an accepted key (2,048 bytes for RSA 16384)."""

_OF_PLAIN_BYTES: Final = ("Detached", "SigstoreBundle")
"""Formats whose signature covers bytes of which nothing says what they are."""

_LISTED: Final = 5
"""At most so many fingerprints, or pieces of evidence, are listed in a message."""

_TELLING: Final = (
    "BindingRequired",
    "StatementMismatch",
    "StatementMalformed",
    "KeyNotValidNow",
    "SignatureUntrusted",
)
"""Of several refusals, the one that tells most: what fails only for the setting, then what a trusted key stands behind,
then the rest."""


@dataclass(frozen=True)
class Verification:
    """The proof that an artifact passed: which key vouched for it, in which format, and what was checked."""

    key_fingerprint: str
    key_origin: str
    format: Format
    binds: bool
    """Whether what was signed says for which component, version and platform the file was made."""
    steps: tuple[str, ...]


@dataclass(frozen=True)
class _Artifact:
    """What evidence has to be about."""

    component: str
    version: str
    platform: str
    size: int | None
    sha256: str
    digests: Digests

    @property
    def name(self) -> str:
        """Return what it is called in messages."""
        return f"{self.component} for {self.platform}" if self.platform else self.component


def verify_artifact(
    *,
    component: str,
    namespace: str,
    version: str,
    platform: str,
    size: int | None,
    expected_sha256: str,
    actual_sha256: str,
    evidence: Sequence[Evidence],
    keys: Sequence[TrustedKey],
    at: datetime | None = None,
    require_binding: bool = False,
    trust_namespace: str = "",
    further_digests: Mapping[str, str] | None = None,
) -> Verification:
    """Return the proof that an artifact is what its author declared, and that a trusted key vouched for it.

    `expected_sha256` is what the author declared, `actual_sha256` what the stored bytes hash to, computed by reading
    them just now, and `size` their number (None: not known; the hash implies it). `further_digests` are others that
    were computed in the same pass, in hex by algorithm, where `further_algorithms` asks for them. `platform` is
    `os/arch`. `keys` are all trusted keys; which of them may vouch for this component is decided here. `at` is the
    moment of a first publication, at which a key must be valid; None when what was published before is verified again.
    `trust_namespace` is where trust Secrets are looked for: it appears in messages only.

    1. The digests are well-formed.                                   Else Stalling(DigestMalformed).
    2. The bytes hash to what was declared.                           Else Stalling(DigestMismatch).
    3. There is evidence.                                             Else Stalling(SignatureMissing).
    4. At least one trusted key covers the component: no key, no trust. Else Stalling(NoTrustedKey).
    5. One piece of evidence passes all of `_judge`, by one of those keys; those that bind are tried first.
       Else Stalling(SignatureUntrusted, SignatureMalformed, BundleMalformed, EvidenceMalformed, StatementMalformed,
       StatementMismatch).
    6. At a first publication, that key is valid at that moment.      Else Stalling(KeyNotValidNow).
    7. If binding is required, that evidence binds.                   Else Stalling(BindingRequired).

    There is no other way out: a result is returned only after step 7.
    """
    steps: list[str] = []

    # 1. Compare canonical texts only, so that comparing them compares the digests.
    expected = parse_sha256(expected_sha256, "the declared sha256")
    actual = parse_sha256(actual_sha256, "the sha256 of the stored bytes")
    further = parse_digests(further_digests or {})
    steps.append("digests are well-formed")

    # 2. The bytes are the declared ones. From here on only what was read counts.
    if expected != actual:
        raise Stalling(
            "DigestMismatch",
            f"the stored bytes of {component} hash to {actual}, but {expected} was declared; store the right "
            "file again or correct the declared sha256",
        )
    steps.append(f"bytes hash to {actual}")
    digests: Digests = {**further, "sha256": bytes.fromhex(actual)}
    artifact = _Artifact(component, version, platform, size, actual, digests)

    # 3. Fail closed on nothing.
    if not evidence:
        raise Stalling(
            "SignatureMissing",
            f"nothing vouches for {component} {version} {platform}: there is no signature; sign the file and give its "
            "signature with the artifact",
        )
    steps.append(f"there {'is' if len(evidence) == 1 else 'are'} {_count(len(evidence), 'piece')} of evidence")

    # 4. Fail closed on nothing, too: without a key that covers the component there is no verdict but no.
    covering = select_keys(keys, namespace, component)
    if not covering:
        raise _no_trusted_key(component, namespace, len(keys), trust_namespace)
    valid = {key.fingerprint: key for key in select_keys(keys, namespace, component, _with_zone(at))}
    steps.append(f"{_count(len(covering), 'trusted key')} may vouch for {component}")

    failures: list[tuple[Format, Stalling]] = []
    for piece in sorted(evidence, key=lambda piece: piece.format != BINDING):
        # 5. Any one of them suffices.
        try:
            signer, said = _judge(piece, artifact, covering)
        except Stalling as failure:
            failures.append((piece.format, failure))
            continue

        # 6. Keys that cover, but not at this moment, count only for what was published before.
        key = valid.get(signer.fingerprint)
        if key is None:
            failures.append((piece.format, _not_valid_now(component, signer)))
            continue

        # 7.
        binds = piece.format == BINDING
        if require_binding and not binds:
            failures.append((piece.format, _binding_required(component, piece.format, key)))
            continue
        return Verification(key.fingerprint, key.origin, piece.format, binds, (*steps, *said))
    telling = _most_telling(failures)
    stranger = _find_stranger(evidence, artifact, keys, covering) if telling.reason == "SignatureUntrusted" else None
    # Whose signature it is changes no verdict, only what is said about it.
    raise telling if stranger is None else _out_of_scope(artifact, namespace, stranger)


def further_algorithms(evidence: Sequence[Evidence], keys: Sequence[TrustedKey]) -> frozenset[str]:
    """Return which digests of the file are needed beside SHA-256: `sha384`, or none.

    A P-384 key signs SHA-384 in a bundle, and with some tools in a detached signature. Computing it costs as much as
    reading the file, so that it is asked for only where it can matter.
    """
    if any(piece.format in {"Detached", "SigstoreBundle"} and not piece.chain for piece in evidence):
        return frozenset(key_algorithm(key) for key in keys) - {"sha256"}
    return frozenset()


def _judge(piece: Evidence, artifact: _Artifact, keys: Sequence[TrustedKey]) -> tuple[TrustedKey, tuple[str, ...]]:
    """Return the key by which one piece of evidence vouches for the artifact, and what was checked.

    1. What was signed leads to the file. Only formats that say that they are about an OCI document may be about one:
       whoever signed plain bytes vouched for these, and not for what they might name when read as a manifest.
                                                                Else Stalling(EvidenceMalformed).
    2. The document is of its format.                           Else Stalling(SignatureMalformed, BundleMalformed).
    3. One of the keys signed it.                               Else Stalling(SignatureUntrusted).
    4. What was signed, if it says anything, can be read.       Else Stalling(StatementMalformed).
    5. It is about this artifact and nothing else.              Else Stalling(StatementMismatch).

    Nothing is read of what is said before step 3.
    """
    # 1.
    signed = follow_chain(piece.chain, artifact.sha256, artifact.digests)
    if piece.format in _OF_PLAIN_BYTES and signed["sha256"].hex() != artifact.sha256:
        raise Stalling(
            "EvidenceMalformed",
            f"{piece.format} vouches for the signed bytes themselves, and those are not the file; sign the file, or "
            "the image with `cosign sign --key KEY`",
        )
    lead = "1 document leads" if len(piece.chain) == 1 else f"{len(piece.chain)} documents lead"
    led = (f"{lead} from what was signed to the file",) if piece.chain else ()
    said: tuple[str, ...] = ()

    match piece.format:
        case "Detached":
            signer = _detached_signer(piece, signed, keys)
        case "SigstoreBundle":
            signer = _message_signer(piece, signed, keys)
        case "SigstoreAttestation" | "OutriderStatement":
            # 2. and 3.
            try:
                envelope = parse_enveloped(piece.document)
            except Malformed as error:
                raise bundle_malformed(error) from None
            signer = _envelope_signer(envelope, keys)
            if signer is not None:
                # 4. and 5.
                statement = _read_statement(envelope, signer)
                _check_subject(statement.sha256, signed["sha256"].hex(), signer)
                if piece.format == "OutriderStatement":
                    if not is_only_file(piece.chain, artifact.sha256):
                        raise _mismatch(signer, "it is about a document that names more than this file")
                    _check_binding(statement, artifact, signer)
                    said = (f"the statement binds {artifact.component} {artifact.version} {artifact.platform}",)
                else:
                    _check_type(statement, COSIGN_SIGN_TYPE, signer)
        case "CosignClassic":
            # 2. and 3. The payload is signed as it stands.
            signer = find_raw_signer(keys, digests_of(piece.document), _decode_signature(piece.signature))
            if signer is not None:
                # 4. and 5.
                try:
                    subject = parse_payload(piece.document)
                except Malformed as error:
                    raise _statement_malformed(error, signer) from None
                _check_subject(subject, signed["sha256"].hex(), signer)
        case _:
            assert_never(piece.format)
    if signer is None:
        raise _untrusted(artifact, keys)
    return signer, (*led, f"{piece.format}: signature verified with {signer.fingerprint}", *said)


def _find_stranger(
    evidence: Sequence[Evidence], artifact: _Artifact, keys: Sequence[TrustedKey], covering: Sequence[TrustedKey]
) -> TrustedKey | None:
    """Return a trusted key that made a signature, but may not vouch for this component."""
    known = {key.fingerprint for key in covering}
    strangers = [key for key in keys if key.fingerprint not in known]
    for piece in evidence:
        try:
            return _judge(piece, artifact, strangers)[0]
        except Stalling:
            continue
    return None


def _detached_signer(piece: Evidence, signed: Digests, keys: Sequence[TrustedKey]) -> TrustedKey | None:
    if not 0 < len(piece.document) <= MAX_SIGNATURE_BYTES:
        raise Stalling(
            "SignatureMalformed",
            f"the signature has {len(piece.document)} bytes, and a signature has 1 to {MAX_SIGNATURE_BYTES}; give the "
            "detached signature itself",
        )
    return find_raw_signer(keys, signed, piece.document)


def _message_signer(piece: Evidence, signed: Digests, keys: Sequence[TrustedKey]) -> TrustedKey | None:
    """Return the key that made the signature in a bundle; the bundle's own digest must not contradict it."""
    try:
        message = parse_bundle(piece.document)
        if not isinstance(message, MessageSignature):
            raise Malformed("it has a dsseEnvelope where a messageSignature is needed")
    except Malformed as error:
        raise bundle_malformed(error) from None
    signer = find_signer(keys, signed, message.signature)
    if signer is None or message.algorithm is None:
        return signer
    # The hash follows from the key, never from the bundle.
    algorithm = key_algorithm(signer)
    if (message.algorithm, message.digest) != (algorithm, signed[algorithm]):
        raise bundle_malformed(Malformed("its messageDigest contradicts its signature"))
    return signer


def _envelope_signer(envelope: Envelope, keys: Sequence[TrustedKey]) -> TrustedKey | None:
    return find_signer(keys, digests_of(envelope.signed), envelope.signature)


def _read_statement(envelope: Envelope, signer: TrustedKey) -> Statement:
    try:
        return parse_statement(envelope.payload)
    except Malformed as error:
        raise _statement_malformed(error, signer) from None


def _check_subject(found: str, wanted: str, signer: TrustedKey) -> None:
    if found != wanted:
        raise _mismatch(signer, f"it is about sha256:{found}, and this is sha256:{wanted}")


def _check_type(statement: Statement, wanted: str, signer: TrustedKey) -> None:
    """An attestation that says something else, such as what was found in a scan, vouches for nothing."""
    if statement.predicate_type != wanted:
        raise _mismatch(signer, f"its predicate type is {shown(statement.predicate_type)}, and only {wanted} counts")


def _check_binding(statement: Statement, artifact: _Artifact, signer: TrustedKey) -> None:
    _check_type(statement, STATEMENT_TYPE, signer)
    try:
        binding = parse_binding(statement)
    except Malformed as error:
        raise _statement_malformed(error, signer) from None
    for what, said, wanted in (
        ("component", binding.component, artifact.component),
        ("version", binding.version, artifact.version),
        ("platform", binding.platform, artifact.platform),
    ):
        if said != wanted:
            raise _mismatch(signer, f"it is about {what} {shown(said)}, and this is {wanted}")
    if artifact.size is not None and binding.size != artifact.size:
        raise _mismatch(signer, f"it is about a file of {binding.size} bytes, and this one has {artifact.size}")


def _decode_signature(text: str) -> bytes:
    try:
        signature = decode_base64(text, "it")
        if len(signature) > MAX_SIGNATURE_BYTES:
            raise Malformed(f"it has {len(signature)} bytes, and at most {MAX_SIGNATURE_BYTES} are read")
    except Malformed as error:
        raise Stalling(
            "SignatureMalformed", f"the signature beside the payload cannot be read: {error}; sign the artifact again"
        ) from None
    return signature


def _with_zone(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def _most_telling(failures: Sequence[tuple[Format, Stalling]]) -> Stalling:
    """Return the refusal to tell of several, with a word on the others."""

    def rank(failure: tuple[Format, Stalling]) -> tuple[bool, int]:
        format_, refusal = failure
        place = _TELLING.index(refusal.reason) if refusal.reason in _TELLING else len(_TELLING)
        # What a trusted key has said about this artifact, but wrongly, is what its author has to correct.
        return not (format_ == BINDING and refusal.reason.startswith("Statement")), place

    _, chosen = min(failures, key=rank)
    if len(failures) == 1:
        return chosen
    all_of_them = ", ".join(f"{format_} {failure.reason}" for format_, failure in failures[:_LISTED])
    more = f" and {len(failures) - _LISTED} more" if len(failures) > _LISTED else ""
    return Stalling(
        chosen.reason, f"{chosen.message} (of {len(failures)} pieces of evidence none passes: {all_of_them}{more})"
    )


def _statement_malformed(error: Malformed, signer: TrustedKey) -> Stalling:
    return Stalling(
        "StatementMalformed",
        f"what {signer.fingerprint} ({signer.origin}) signed cannot be read: {error}; sign the artifact again",
    )


def _mismatch(signer: TrustedKey, how: str) -> Stalling:
    return Stalling(
        "StatementMismatch",
        f"what {signer.fingerprint} ({signer.origin}) signed does not say that this artifact is good: {how}; give the "
        "signature that was made for this artifact",
    )


def _out_of_scope(artifact: _Artifact, namespace: str, signer: TrustedKey) -> Stalling:
    return Stalling(
        "SignatureUntrusted",
        f"{artifact.name} was signed with {signer.fingerprint} ({signer.origin}), which may not vouch for it in "
        f"namespace {namespace}; widen the annotations {ANNOTATION_KEY_COMPONENTS} and {ANNOTATION_KEY_NAMESPACES} of "
        "its Secret, or sign the file again with a key that may",
    )


def _untrusted(artifact: _Artifact, keys: Sequence[TrustedKey]) -> Stalling:
    tried = ", ".join(f"{key.fingerprint} ({key.origin})" for key in keys[:_LISTED])
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return Stalling(
        "SignatureUntrusted",
        f"the signature of {artifact.name} was not made over these bytes by any trusted key; tried {tried}{more}; if "
        "the file should not have changed since it was signed, find out why it did; else sign it again with the "
        "private half of one of them, or have its key added to the trusted ones",
    )


def _not_valid_now(component: str, key: TrustedKey) -> Stalling:
    begin = f" from {key.not_before.isoformat()}" if key.not_before else ""
    end = f" until {key.not_after.isoformat()}" if key.not_after else ""
    return Stalling(
        "KeyNotValidNow",
        f"{component} was signed with {key.fingerprint} ({key.origin}), which may vouch for what is new only{begin}"
        f"{end}; sign the file again with a key that is valid now, or correct the annotations "
        f"{ANNOTATION_KEY_NOT_BEFORE} and {ANNOTATION_KEY_NOT_AFTER} of its Secret",
    )


def _binding_required(component: str, format_: Format, key: TrustedKey) -> Stalling:
    return Stalling(
        "BindingRequired",
        f"{component} was signed with {key.fingerprint} ({key.origin}), but {format_} does not say for which "
        "component, version and platform, and that is required here; make a statement with `outrider sign`",
    )


def _no_trusted_key(component: str, namespace: str, total: int, trust_namespace: str) -> Stalling:
    where = f"namespace {trust_namespace}" if trust_namespace else "the operator's namespace"
    subject = f"component {component}" + (f" in namespace {namespace}" if namespace else "")
    if total:
        return Stalling(
            "NoTrustedKey",
            f"none of the {_count(total, 'trusted key')} may vouch for {subject}; "
            f"widen the annotations {ANNOTATION_KEY_COMPONENTS} and {ANNOTATION_KEY_NAMESPACES} of a trust Secret in "
            f"{where}, or add one for it",
        )
    return Stalling(
        "NoTrustedKey",
        f"there is no trusted key for {subject}; create a Secret in {where} with "
        f"the label {LABEL_TRUST_KEY}=true and the public key as PEM under a name that ends in .pub",
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
