"""SHA-256 digests: how they are written, and how they are computed while bytes flow by."""

import hashlib
import re
from collections.abc import Collection
from typing import Final

from outrider.api.errors import Stalling

ALGORITHM: Final = "sha256:"
_HEX: Final = re.compile(r"[0-9a-f]{64}")


def parse_sha256(text: str, what: str) -> str:
    """Return `text` if it is a SHA-256 in hex: exactly 64 lower-case digits, nothing around them.

    `what` names the value in the message, such as "spec.artifacts[0].sha256". Raises Stalling(DigestMalformed).
    """
    if _HEX.fullmatch(text) is None:
        raise Stalling(
            "DigestMalformed",
            f"{what} is not a SHA-256 in hex (64 lower-case digits, as `sha256sum FILE` prints it); correct it",
        )
    return text


def parse_digest(text: str, what: str) -> str:
    """Return the hex part of an OCI digest such as `sha256:9f86…`; no other algorithm is accepted.

    Raises Stalling(DigestMalformed).
    """
    if not text.startswith(ALGORITHM):
        raise Stalling("DigestMalformed", f"{what} is not a digest of the form sha256:<64 hex digits>; correct it")
    return parse_sha256(text.removeprefix(ALGORITHM), what)


def is_digest(text: str) -> bool:
    """Say whether `text` is an OCI digest of the form `sha256:<64 lower-case hex digits>`."""
    return text.startswith(ALGORITHM) and _HEX.fullmatch(text.removeprefix(ALGORITHM)) is not None


def digest_of(data: bytes) -> str:
    """Return the OCI digest of `data`: `sha256:` and 64 hex digits."""
    return ALGORITHM + hashlib.sha256(data).hexdigest()


class Sha256Stream:
    """The running SHA-256 and size, in bytes, of what has flowed by; further digests where they are asked for."""

    def __init__(self, further: Collection[str] = ()) -> None:
        self._hash = hashlib.sha256()
        self._further = {algorithm: hashlib.new(algorithm) for algorithm in further}
        self.size = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take in the next bytes."""
        view = memoryview(data)
        self._hash.update(view)
        for further in self._further.values():
            further.update(view)
        self.size += view.nbytes

    @property
    def sha256(self) -> str:
        """The SHA-256 of everything taken in so far: 64 lower-case hex digits."""
        return self._hash.hexdigest()

    @property
    def digest(self) -> str:
        """The same as an OCI digest: `sha256:` and 64 hex digits."""
        return ALGORITHM + self.sha256

    @property
    def further(self) -> dict[str, str]:
        """The further digests of everything taken in so far, in hex by algorithm."""
        return {algorithm: stream.hexdigest() for algorithm, stream in self._further.items()}
