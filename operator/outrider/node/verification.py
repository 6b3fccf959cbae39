"""May this file be used on this node? Hash, signature and processor, for what was downloaded and for what was kept.

*Assumptions.* The hash that the operator pinned is right: it verified the file when it was published. Records lie where
only this program and the node's administrator write.

*Invariants.* Bytes that do not hash to what is pinned pass under no circumstances. What was never verified on this node
passes only with a trusted key. No clock is looked at: whether a key was valid when a version was published was decided
then, and a node whose clock is wrong decides like any other.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from outrider.api.errors import Stalling
from outrider.node.config import Trust
from outrider.node.elf import check_architecture
from outrider.node.files import Content, local
from outrider.node.record import Record
from outrider.trust.evidence import Evidence
from outrider.trust.keys import KEY_SUFFIX, TrustedKey, parse_public_key
from outrider.trust.verify import Verification, verify_artifact

Log = Callable[[str], None]

_OF_THE_KEY: Final = ("NoTrustedKey", "SignatureUntrusted")
"""Refusals that say nothing about the file, but that whoever signed it is not trusted (any more)."""


def read_keys(trust: Trust, log: Log) -> list[TrustedKey]:
    """Return the mounted keys; the operator has chosen those that may vouch for this component."""
    keys: list[TrustedKey] = []
    with local("read", trust.keys_dir):
        files = {path.name: path.read_bytes() for path in sorted(trust.keys_dir.glob(f"*{KEY_SUFFIX}"))}
    for name, pem in files.items():
        with _ignoring(log):
            keys.append(parse_public_key(pem, name, allow_rsa_2048=trust.allow_rsa_2048))
    return keys


def verify(
    trust: Trust,
    platform: str,
    expected: str,
    content: Content,
    evidence: Sequence[Evidence],
    keys: Sequence[TrustedKey],
) -> Verification:
    """Return the proof that a trusted key vouched for what was just read, and that it may run here.

    `expected` is what it must hash to. Raises Stalling, with the reasons of `verify_artifact` and ArchitectureMismatch.
    """
    proof = verify_artifact(
        component=trust.component,
        namespace=trust.namespace,
        version=trust.version,
        platform=platform,
        size=content.size,
        expected_sha256=expected,
        actual_sha256=content.sha256,
        further_digests=content.further,
        evidence=evidence,
        keys=keys,
        require_binding=trust.require_binding,
    )
    check_architecture(content.head, platform, f"{trust.component} {trust.version}")
    return proof


def verify_again(trust: Trust, platform: str, record: Record, content: Content, keys: Sequence[TrustedKey]) -> str:
    """Return nothing if a trusted key vouches for a file that was verified on this node before; else a doubt.

    1. It passes as a new file would: no doubt.
    2. Whoever signed it is not trusted any more, and it hashes to what the operator has pinned: it may start, and the
       doubt is to be told. An outage, or a key that was taken out of use, must not end the agents that run.
    3. Everything else raises Stalling, with the reasons of `verify`.
    """
    pinned = trust.digests.get(platform)
    try:
        # 1.
        verify(trust, platform, pinned or record.sha256, content, record.evidence, keys)
    except Stalling as refusal:
        # 2. The hash was compared before any signature was looked at; compared again, nothing depends on that order.
        if refusal.reason in _OF_THE_KEY and pinned is not None and content.sha256 == pinned:
            return (
                f"{refusal.message}. It was verified on this node before, with the key {record.key}, and is the file "
                "that the operator has pinned, so it starts; sign the version again with a trusted key"
            )
        # 3.
        raise
    return ""


@contextlib.contextmanager
def _ignoring(log: Log) -> Iterator[None]:
    try:
        yield
    except Stalling as error:
        log(f"ignoring a key: {error.message}")
