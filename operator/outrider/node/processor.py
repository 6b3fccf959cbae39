"""Which platform is this node, and has the version something for it?"""

from collections.abc import Iterable
from typing import Final

from outrider.api.errors import Stalling
from outrider.node.config import Trust

ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv6l": "arm",
    "armv7l": "arm",
    "armv8l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
"""What the kernel calls a processor, and what Go, OCI and the node label `kubernetes.io/arch` call it."""


def platform_of(trust: Trust, machine: str) -> str:
    """Return this node's platform. Raises Stalling(PlatformUnknown, PlatformMissing)."""
    architecture = ARCHITECTURES.get(machine)
    if architecture is None:
        raise Stalling("PlatformUnknown", f"this node's processor ({machine}) is none that a version can be made for")
    platform = f"linux/{architecture}"
    if trust.digests and platform not in trust.digests:
        raise platform_missing(trust, platform, trust.digests)
    return platform


def platform_missing(trust: Trust, platform: str, others: Iterable[str]) -> Stalling:
    """Return what to raise where a version has nothing for a platform, only for `others`."""
    return Stalling(
        "PlatformMissing",
        f"{trust.component} {trust.version} has no artifact for {platform}, only for {', '.join(sorted(others))}; "
        "publish a version that has one, or take this node out of the rollout's target",
    )
