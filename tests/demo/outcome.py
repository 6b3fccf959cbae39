"""What the demo claims, and whether it came out so."""

from __future__ import annotations

from dataclasses import dataclass, field


class NotAsTold(Exception):
    """Something did not come out as the story says; the text says what was seen instead."""


@dataclass
class Outcome:
    """The claims that were proven, each with what was seen, in the order of the story."""

    proven: list[tuple[str, str]] = field(default_factory=list)
    not_shown: list[tuple[str, str]] = field(default_factory=list)

    def proves(self, claim: str, seen: str) -> None:
        """Record that a claim came out as told."""
        self.proven.append((claim, seen))

    def cannot_show(self, claim: str, why: str) -> None:
        """Record a claim that this machine gives no way to try."""
        self.not_shown.append((claim, why))


def expect(condition: bool, otherwise: str) -> None:
    """Raise unless something is as told."""
    if not condition:
        raise NotAsTold(otherwise)
