"""Trusted public keys: which ones are acceptable, what they are called, and what each may vouch for.

A key arrives as PEM in a Secret (for the operator) or in a file (on a node). Everything that is not exactly one
acceptable public key is refused with a sentence that says what was found and what to do; what was found is never
echoed, for it may be a private key.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from outrider.api.errors import Stalling
from outrider.api.names import (
    ANNOTATION_KEY_COMPONENTS,
    ANNOTATION_KEY_NAMESPACES,
    ANNOTATION_KEY_NOT_AFTER,
    ANNOTATION_KEY_NOT_BEFORE,
)

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

KEY_SUFFIX: Final = ".pub"
"""Only data keys of a Secret, and files, with this ending are looked at."""

EVERYTHING: Final = ("*",)
"""The scope of a key that nothing narrows."""

MAX_PEM_BYTES: Final = 16 * 1024
MIN_RSA_BITS: Final = 3072
MIN_RSA_BITS_IF_ALLOWED: Final = 2048
MAX_RSA_BITS: Final = 16384

_ACCEPTED: Final = "use ECDSA P-256 (recommended), ECDSA P-384 or RSA with at least 3072 bits"
_CURVES: Final = {"secp256r1": "P-256", "secp384r1": "P-384"}
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_LABEL: Final = re.compile(rb"-----BEGIN ([^\r\n]*?)-----")
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)
"""RFC 3339, 5.6: the offset is not optional, as a time without one means something else everywhere."""
_PUBLIC_LABELS: Final = (b"PUBLIC KEY", b"RSA PUBLIC KEY")


@dataclass(frozen=True)
class TrustedKey:
    """A public key that may vouch for artifacts, and for which ones."""

    public_key: PublicKey = field(repr=False, compare=False)
    fingerprint: str
    """`sha256:` and the hex SHA-256 of the key's DER SubjectPublicKeyInfo (RFC 5280, 4.1.2.7)."""
    pem: str = field(repr=False)
    """The key as canonical SubjectPublicKeyInfo PEM, whatever form it arrived in."""
    algorithm: str
    """For people: `ECDSA P-256`, `ECDSA P-384` or `RSA <bits>`."""
    origin: str
    """Where it came from, such as `secret/release-keys:prod.pub`."""
    components: tuple[str, ...] = EVERYTHING
    """Globs over component names that this key may vouch for; an empty tuple matches nothing."""
    namespaces: tuple[str, ...] = EVERYTHING
    """Globs over namespaces of the versions that this key may vouch for; an empty tuple matches nothing."""
    not_before: datetime | None = None
    """From when on this key may vouch for something new; None: from ever."""
    not_after: datetime | None = None
    """Until when, inclusive, this key may vouch for something new; None: for ever."""

    def is_valid_at(self, at: datetime) -> bool:
        """Say whether this key may vouch for something that is published at a moment (with a time zone)."""
        return (self.not_before is None or self.not_before <= at) and (self.not_after is None or at <= self.not_after)

    def covers(self, namespace: str, component: str) -> bool:
        """Say whether this key may vouch for a component's versions in a namespace."""
        return matches(self.namespaces, namespace) and matches(self.components, component)


@dataclass(frozen=True)
class KeyProblem:
    """A key that could not be used, and why; the others are used all the same."""

    origin: str
    reason: str
    message: str


def parse_public_key(
    pem: bytes,
    origin: str,
    *,
    components: tuple[str, ...] = EVERYTHING,
    namespaces: tuple[str, ...] = EVERYTHING,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    allow_rsa_2048: bool = False,
) -> TrustedKey:
    """Return the one public key in `pem`, which came from `origin`.

    Accepted: ECDSA on P-256 or P-384, RSA with 3072 to 16384 bits (2048 and more with `allow_rsa_2048`). Raises
    Stalling(KeyUnusable) for everything else; the message never holds any of `pem`.
    """
    # 1. One PEM block and nothing that should not be here. A private key is looked for first and in the whole text,
    #    so that it is named loudly whatever else is wrong.
    block = _single_public_block(pem, origin)

    # 2. A key that the library can read: this also refuses points that are not on their curve. It reads points in the
    #    hybrid form as well, which RFC 5480, 2.2 forbids.
    try:
        key = load_pem_public_key(block)
        if isinstance(key, ec.EllipticCurvePublicKey) and _is_hybrid(block, key):
            raise ValueError
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The library's own text is dropped on purpose: it may quote the input.
        raise _unusable(
            origin, f"the public key in it cannot be read (damaged or of an unknown kind); {_ACCEPTED}"
        ) from None

    # 3. Of a kind and size that is trusted.
    key, algorithm = _accepted(key, origin, allow_rsa_2048=allow_rsa_2048)

    # 4. One name and one text per key, whatever form it came in.
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return TrustedKey(
        public_key=key,
        fingerprint="sha256:" + hashlib.sha256(der).hexdigest(),
        pem=key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii"),
        algorithm=algorithm,
        origin=origin,
        components=components,
        namespaces=namespaces,
        not_before=not_before,
        not_after=not_after,
    )


def keys_from_secret(
    name: str, data: Mapping[str, bytes], annotations: Mapping[str, str], *, allow_rsa_2048: bool = False
) -> tuple[list[TrustedKey], list[KeyProblem]]:
    """Return the usable keys of a trust Secret, in the order of their data keys, and what is wrong with the others.

    `data` holds the decoded values; only data keys that end in `.pub` are looked at. The annotations
    `outrider.dev/components` and `outrider.dev/namespaces` narrow all keys of the Secret to comma-separated globs:
    without the annotation a key is good for everything, with an empty value for nothing.
    """
    components = parse_globs(annotations.get(ANNOTATION_KEY_COMPONENTS))
    namespaces = parse_globs(annotations.get(ANNOTATION_KEY_NAMESPACES))
    keys: list[TrustedKey] = []
    problems: list[KeyProblem] = []

    # A window that cannot be read might have been meant to end yesterday: no key of this Secret is used then.
    try:
        not_before, not_after = parse_window(
            annotations.get(ANNOTATION_KEY_NOT_BEFORE), annotations.get(ANNOTATION_KEY_NOT_AFTER), f"secret/{name}"
        )
    except Stalling as error:
        return keys, [KeyProblem(f"secret/{name}", error.reason, error.message)]

    names = sorted(key for key in data if key.endswith(KEY_SUFFIX))
    if not names:
        message = (
            f"secret/{name} holds no key: its data has no entry that ends in {KEY_SUFFIX}; add one or remove the label"
        )
        problems.append(KeyProblem(f"secret/{name}", "KeyUnusable", message))
    for data_key in names:
        origin = f"secret/{name}:{data_key}"
        try:
            key = parse_public_key(
                data[data_key],
                origin,
                components=components,
                namespaces=namespaces,
                not_before=not_before,
                not_after=not_after,
                allow_rsa_2048=allow_rsa_2048,
            )
        except Stalling as error:
            problems.append(KeyProblem(origin, error.reason, error.message))
        else:
            keys.append(key)
    return keys, problems


def select_keys(
    keys: Iterable[TrustedKey], namespace: str, component: str, at: datetime | None = None
) -> list[TrustedKey]:
    """Return the keys that may vouch for a component in a namespace, each key once, ordered by fingerprint.

    With `at`, only those that may vouch for something new at that moment. A key that is given more than once counts if
    it does so in any of its places.
    """
    selected: dict[str, TrustedKey] = {}
    for key in keys:
        if key.covers(namespace, component) and (at is None or key.is_valid_at(at)):
            selected.setdefault(key.fingerprint, key)
    return [selected[fingerprint] for fingerprint in sorted(selected)]


def build_key_files(keys: Iterable[TrustedKey]) -> dict[str, str]:
    """Return the data of the ConfigMap that nodes mount: file name to PEM, the same for the same set of keys."""
    return {
        f"{key.fingerprint.removeprefix('sha256:')}{KEY_SUFFIX}": key.pem
        for key in sorted(keys, key=lambda key: key.fingerprint)
    }


def parse_window(not_before: str | None, not_after: str | None, origin: str) -> tuple[datetime | None, datetime | None]:
    """Return the window in which keys may vouch for something new, from two annotations (None: absent).

    `origin` is what messages call the Secret. Raises Stalling(KeyUnusable).
    """
    begin = _parse_time(not_before, ANNOTATION_KEY_NOT_BEFORE, origin)
    end = _parse_time(not_after, ANNOTATION_KEY_NOT_AFTER, origin)
    if begin is not None and end is not None and begin > end:
        raise Stalling(
            "KeyUnusable",
            f"no key in {origin} is used: {ANNOTATION_KEY_NOT_BEFORE} is later than {ANNOTATION_KEY_NOT_AFTER}; "
            "correct the annotations",
        )
    return begin, end


def parse_globs(value: str | None) -> tuple[str, ...]:
    """Return the globs of a comma-separated annotation: everything if it is absent, nothing if it is empty."""
    if value is None:
        return EVERYTHING
    return tuple(glob for part in value.split(",") if (glob := part.strip()))


def _parse_time(text: str | None, annotation: str, origin: str) -> datetime | None:
    if text is None:
        return None
    try:
        if _TIME.fullmatch(text) is None:
            raise ValueError
        # In UTC from the start: only then can every two moments be compared.
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Stalling(
            "KeyUnusable",
            f"no key in {origin} is used: the annotation {annotation} is not a time such as 2026-01-31T00:00:00Z "
            "(RFC 3339); correct it or remove it",
        ) from None


def matches(globs: tuple[str, ...], value: str) -> bool:
    """Say whether any of some globs matches a name; case matters."""
    return any(fnmatchcase(value, glob) for glob in globs)


def _unusable(origin: str, what: str) -> Stalling:
    return Stalling("KeyUnusable", f"{origin} is not a usable public key: {what}")


def _single_public_block(pem: bytes, origin: str) -> bytes:
    labels = _LABEL.findall(pem)
    if any(b"PRIVATE KEY" in label for label in labels):
        raise _unusable(
            origin,
            "IT HOLDS A PRIVATE KEY. Delete it from the cluster now, treat the key as compromised, make a new pair and "
            "put only the public half here (openssl pkey -in KEY -pubout)",
        )
    if len(pem) > MAX_PEM_BYTES:
        raise _unusable(origin, f"it has {len(pem)} bytes, and no public key needs more than {MAX_PEM_BYTES}")
    if not labels:
        raise _unusable(origin, "it is not PEM: there is no -----BEGIN PUBLIC KEY----- line in it")
    if len(labels) > 1:
        raise _unusable(
            origin, f"it holds {len(labels)} PEM blocks; put each key under a name of its own ending in .pub"
        )
    if labels[0].endswith(b"CERTIFICATE"):
        raise _unusable(
            origin, "it is a certificate; put the public key itself here (openssl x509 -in CERT -pubkey -noout)"
        )
    if labels[0] not in _PUBLIC_LABELS:
        raise _unusable(origin, "its PEM block is of another kind; expected -----BEGIN PUBLIC KEY-----")
    match = _BLOCK.search(pem)
    if match is None:
        raise _unusable(origin, "its PEM block does not end: the -----END PUBLIC KEY----- line is missing")
    return match.group(0) + b"\n"


def _is_hybrid(block: bytes, key: ec.EllipticCurvePublicKey) -> bool:
    """Tell whether a key's PEM block has both coordinates of its point, but not as the uncompressed form has them."""
    lines = block.splitlines()[1:-1]
    der = base64.b64decode(b"".join(line for line in lines if b":" not in line))  # RFC 1421: headers have a colon
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return der.endswith(point[1:]) and not der.endswith(point)


def _accepted(key: PublicKeyTypes, origin: str, *, allow_rsa_2048: bool) -> tuple[PublicKey, str]:
    if isinstance(key, ec.EllipticCurvePublicKey):
        curve = _CURVES.get(key.curve.name)
        if curve is None:
            raise _unusable(origin, f"ECDSA on the curve {key.curve.name} is not supported; {_ACCEPTED}")
        return key, f"ECDSA {curve}"
    if isinstance(key, rsa.RSAPublicKey):
        minimum = MIN_RSA_BITS_IF_ALLOWED if allow_rsa_2048 else MIN_RSA_BITS
        if key.key_size < minimum:
            raise _unusable(origin, f"RSA with {key.key_size} bits is too short, the least is {minimum}; {_ACCEPTED}")
        if key.key_size > MAX_RSA_BITS:
            raise _unusable(origin, f"RSA with {key.key_size} bits is longer than {MAX_RSA_BITS}; {_ACCEPTED}")
        return key, f"RSA {key.key_size}"
    kind = type(key).__name__.strip("_").removesuffix("PublicKey")
    raise _unusable(origin, f"{kind} keys are not supported; {_ACCEPTED}")
