"""May these bytes be trusted? One function, in numbered steps, for the operator and for the node alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from outrider.api.errors import Stalling
from outrider.api.names import ANNOTATION_KEY_COMPONENTS, ANNOTATION_KEY_NAMESPACES, LABEL_TRUST_KEY
from outrider.trust import detached
from outrider.trust.digest import parse_sha256
from outrider.trust.keys import TrustedKey, select_keys

_LISTED: Final = 5
"""At most so many fingerprints are listed in a message."""


@dataclass(frozen=True)
class Verification:
    """The proof that an artifact passed: which key vouched for it, in which format, and what was checked."""

    key_fingerprint: str
    key_origin: str
    format: str
    steps: tuple[str, ...]


def verify_artifact(
    *,
    component: str,
    namespace: str,
    expected_sha256: str,
    actual_sha256: str,
    signature: str,
    keys: Sequence[TrustedKey],
    trust_namespace: str = "",
) -> Verification:
    """Return the proof that an artifact is what its author declared, and that a trusted key vouched for it.

    `expected_sha256` is what the author declared, `actual_sha256` what the stored bytes hash to, computed by reading
    them back just now: both 64 hex digits. `signature` is the base64 text of a detached signature. `keys` are all
    trusted keys; which of them may vouch for this component is decided here. `trust_namespace` is the namespace in
    which trust Secrets are looked for: it appears in messages only.

    1. Both digests are well-formed.                                  Else Stalling(DigestMalformed).
    2. The bytes hash to what was declared.                           Else Stalling(DigestMismatch).
    3. The signature can be read.                                     Else Stalling(SignatureMalformed).
    4. At least one trusted key covers the component: no key, no trust. Else Stalling(NoTrustedKey).
    5. One of those keys made the signature over the digest of the bytes that were read, not over the declared one.
                                                                      Else Stalling(SignatureUntrusted).

    There is no other way out: a result is returned only after step 5.
    """
    steps: list[str] = []

    # 1. Compare canonical texts only, so that comparing them compares the digests.
    expected = parse_sha256(expected_sha256, "the declared sha256")
    actual = parse_sha256(actual_sha256, "the sha256 of the stored bytes")
    steps.append("digests are well-formed")

    # 2. The bytes are the declared ones.
    if expected != actual:
        raise Stalling(
            "DigestMismatch",
            f"the stored bytes of {component} hash to {actual}, but {expected} was declared; store the right "
            "file again or correct the declared sha256",
        )
    steps.append(f"bytes hash to {actual}")

    # 3. The signature is one.
    raw_signature = detached.decode_signature(signature)
    steps.append("signature is well-formed")

    # 4. Fail closed on nothing: without a key that covers the component there is no verdict but no.
    candidates = select_keys(keys, namespace, component)
    if not candidates:
        raise _no_trusted_key(component, namespace, len(keys), trust_namespace)
    steps.append(f"{_count(len(candidates), 'trusted key')} may vouch for {component}")

    # 5. Any one of them suffices.
    digest = bytes.fromhex(actual)
    for key in candidates:
        if detached.is_signed_by(key, digest, raw_signature):
            steps.append(f"signature verified with {key.fingerprint}")
            return Verification(key.fingerprint, key.origin, detached.FORMAT, tuple(steps))
    tried = ", ".join(f"{key.fingerprint} ({key.origin})" for key in candidates[:_LISTED])
    more = f" and {len(candidates) - _LISTED} more" if len(candidates) > _LISTED else ""
    raise Stalling(
        "SignatureUntrusted",
        f"the signature of {component} was not made over these bytes by any trusted key; tried {tried}{more}; sign the "
        "file again with the private half of one of them, or have its key added to the trusted ones",
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
