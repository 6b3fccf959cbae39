"""How conditions change: one status per type, and a transition time that moves only when the status does."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from outrider.api.base import Condition, ConditionStatus
from outrider.core.words import printable

MAX_MESSAGE = 4096
"""Characters of a condition's message. Whoever can make it longer than the API server takes could keep a status from
being written at all, and what was refused would stay as it was."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one condition should say now."""

    type: str
    status: ConditionStatus
    reason: str
    message: str


def merge_conditions(
    before: Sequence[Condition], findings: Iterable[Finding], generation: int, now: datetime
) -> list[Condition]:
    """Return the conditions that say what `findings` say, and no others.

    A condition whose status stays keeps its lastTransitionTime, so that an unchanged state gives an unchanged object.
    """
    known = {condition.type: condition for condition in before}
    merged = []
    for finding in findings:
        old = known.get(finding.type)
        merged.append(
            Condition(
                type=finding.type,
                status=finding.status,
                reason=finding.reason,
                message=bounded(finding.message),
                observed_generation=max(0, generation),
                last_transition_time=(
                    old.last_transition_time if old is not None and old.status == finding.status else now
                ),
            )
        )
    return merged


def bounded(message: str) -> str:
    """Return a message as one printable line that is not longer than `MAX_MESSAGE`."""
    return shortened(printable(message), MAX_MESSAGE)


def shortened(text: str, limit: int) -> str:
    """Return a text of at most so many characters; one that was longer shows that it goes on."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
