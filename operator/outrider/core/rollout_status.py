"""What a Rollout's status says: the one place that computes `Ready`, the phase, the counts and the messages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from outrider.api.rollout import (
    BatchNode,
    NodeFailure,
    NodeResult,
    Revisions,
    RolloutStatus,
    RunRecord,
    RunStatus,
)
from outrider.core import batches as arithmetic
from outrider.core.conditions import Finding, merge_conditions
from outrider.core.moves import target_of
from outrider.core.snapshot import Hindrance, RolloutSnapshot
from outrider.core.states import BARRED, FAILED

_MAX_FAILURES = 10

STUCK_SECONDS = 60
"""A node that waits longer than this for its old pod to end is worth telling."""

CONDITION_TYPES = frozenset({"Ready", "Reconciling", "Stalled", "Progressing", "Paused", "Degraded", "RolledBack"})
"""The conditions that are Outrider's."""

Entry = tuple[BatchNode, NodeResult]


@dataclass(frozen=True, slots=True)
class Tally:
    """What is counted of a fleet and of the present run.

    `states` are the run's nodes by the state of their result, `failed` and `stopping` those of them. `updated` members
    of the fleet run what the spec wants; `untouched` are still to be moved, and in no batch yet.
    """

    states: Mapping[str, int]
    updated: int
    untouched: int
    failed: Sequence[Entry]
    stopping: Sequence[Entry]

    def count(self, states: Iterable[str]) -> int:
        """Return how many of the run's nodes are in one of some states."""
        return sum(self.states.get(state, 0) for state in states)


def build_status(
    seen: RolloutSnapshot,
    *,
    run: RunStatus | None,
    stable: str | None,
    stable_version: str | None,
    history: Sequence[RunRecord],
    tally: Tally,
    gate: str,
    hindrance: Hindrance | None,
    obstacle: Hindrance | None,
) -> RolloutStatus:
    """Return the status that tells what is true now.

    `gate` says what the next batch waits for, `hindrance` why nothing new may start, `obstacle` why nodes of a failed
    run cannot return; if anything.
    """
    if run is not None:
        run = _count(seen, run, tally, gate)
    phase, findings = _judge(seen, run, gate, history, tally, hindrance=hindrance, obstacle=obstacle)
    return RolloutStatus(
        observed_generation=seen.generation,
        phase=phase,
        nodes=len(seen.members),
        run=run,
        revisions=Revisions(stable=stable, stable_version=stable_version, current=seen.wanted),
        failures=[
            NodeFailure(node=entry.name, reason=result.reason, message=result.message)
            for entry, result in tally.failed[:_MAX_FAILURES]
        ],
        history=list(history),
        conditions=merge_conditions(seen.status.conditions, findings, seen.generation, seen.now),
    )


def _count(seen: RolloutSnapshot, run: RunStatus, tally: Tally, gate: str) -> RunStatus:
    moving = tally.count({"Pending", "Stopping", "Downloading", "Starting"})
    expected = max(run.batches, 1) if run.state == "Running" else run.batches
    if run.kind == "Rollout" and run.state == "Running":
        direct = run.revision == run.from_revision
        expected = run.batches + _batches_left(seen, run, tally.untouched, direct=direct)
    return run.model_copy(
        update={
            "batch": f"{run.batches}/{expected}",
            "updated": tally.updated,
            "outdated": len(seen.members) - tally.updated,
            "healthy": tally.count({"Succeeded"}),
            "failed": tally.count(FAILED),
            "pending": moving + tally.untouched if run.state in {"Running", "Paused"} else 0,
            "skipped": tally.count({"Skipped"}),
            "message": gate if run.state == "Running" and gate else run.message,
        }
    )


def _batches_left(seen: RolloutSnapshot, run: RunStatus, untouched: int, *, direct: bool) -> int:
    if untouched <= 0:
        return 0
    if seen.spec.strategy.type == "Full":
        return 1
    left, count = untouched, 0
    if not direct:
        for step in range(run.batches + 1, arithmetic.canary_steps(seen.spec) + 1):
            if left > 0:
                left, count = left - arithmetic.canary_size(seen.spec, step, run.nodes), count + 1
    size = arithmetic.rolling_size(seen.spec, run.nodes)
    return count + max(0, -(-left // size))


def _count_nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _judge(
    seen: RolloutSnapshot,
    run: RunStatus | None,
    gate: str,
    history: Sequence[RunRecord],
    tally: Tally,
    *,
    hindrance: Hindrance | None,
    obstacle: Hindrance | None,
) -> tuple[str, list[Finding]]:
    """Return the phase and the conditions: Ready always, the others while they have something to say."""
    total = len(seen.members)
    progress = f"{tally.updated} of {total} nodes run {seen.spec.version}"
    if seen.owned_by_others:
        owners = ", ".join(sorted(set(seen.owned_by_others.values())))
        progress += (
            f" (without {len(seen.owned_by_others)} nodes of the target that belong to older Rollouts: {owners})"
        )
    findings: list[Finding] = []

    def conclude(phase: str, ready: bool, reason: str, message: str, *, stalled: bool, busy: bool) -> str:
        if busy and seen.spec.paused and not seen.deleting:
            findings.append(Finding("Paused", "True", "PausedBySpec", "spec.paused is true: no new node is moved"))
            phase, reason, busy = "Paused", "PausedBySpec", False
        findings.append(Finding("Ready", "True" if ready else "False", reason, message))
        if busy:
            findings.append(Finding("Reconciling", "True", reason, message))
        if stalled:
            findings.append(Finding("Stalled", "True", reason, message))
        if run is not None:
            advancing = busy and run.state == "Running" and not seen.spec.paused and not seen.deleting
            findings.append(Finding("Progressing", "True" if advancing else "False", reason, message))
        return phase

    holds_after_rollback = (
        run is not None and run.kind == "Rollback" and run.state != "Running" and run.revision == seen.wanted
    )
    ended = _why_ended(seen, run, history) or "FailureToleranceExceeded"
    if seen.deleting:
        phase = conclude("Deleting", False, "Deleting", gate, stalled=False, busy=True)
    elif run is not None and run.kind == "Rollback" and run.state == "Running":
        what = obstacle.message if obstacle is not None else run.message
        message = f"run {run.of_run} to {run.version} failed and is taken back: {what}"
        phase = conclude(
            "Stalled" if obstacle is not None else "RollingBack",
            False,
            obstacle.reason if obstacle is not None else "RollingBack",
            message,
            stalled=obstacle is not None,
            busy=obstacle is None,
        )
    elif holds_after_rollback:
        assert run is not None  # noqa: S101 - said by the condition above
        message = _tell_rolled_back(run, history)
        findings.append(Finding("RolledBack", "True", ended, message))
        phase = conclude("RolledBack", False, "RolledBack", message, stalled=True, busy=False)
    elif run is not None and run.state == "Paused":
        message = f"run {run.id} to {run.version} stopped: {run.message}. Change spec.version or spec.template to go on"
        findings.append(Finding("Paused", "True", ended, message))
        phase = conclude("Stalled", False, ended, message, stalled=True, busy=False)
    elif hindrance is not None:
        phase = conclude(
            "Stalled" if hindrance.stalled else "Waiting",
            False,
            hindrance.reason,
            hindrance.message,
            stalled=hindrance.stalled,
            busy=not hindrance.stalled,
        )
    elif run is None or run.revision != seen.wanted or run.state == "Running":
        message = progress + (f"; {gate}" if gate else "")
        phase = conclude("Progressing", False, "Progressing", message, stalled=False, busy=True)
    elif run.state == "Failed":
        message = (
            f"run {run.id}: no node could be moved to {run.version}. Change spec.version or spec.template to go on"
        )
        phase = conclude("Stalled", False, "RunFailed", message, stalled=True, busy=False)
    else:
        message = progress + _tell_exceptions(seen, run)
        phase = conclude("Completed", True, "RunCompleted", message, stalled=False, busy=False)
    findings += _degradations(seen, run, tally)
    return phase, findings


def _why_ended(seen: RolloutSnapshot, run: RunStatus | None, history: Sequence[RunRecord]) -> str:
    """Return the reason for which the newest run, or the one that it takes back, was ended; "" if none was noted."""
    if run is None:
        return ""
    if seen.phase_of(run.revision) == "Revoked":
        return "VersionRevoked"
    return next((record.reason for record in history if record.id == run.of_run), run.reason)


def _tell_rolled_back(run: RunStatus, history: Sequence[RunRecord]) -> str:
    why = next((record.message for record in history if record.id == run.of_run), "")
    return (
        f"run {run.of_run} to {run.version} failed: {why or 'too many nodes failed'}. Run {run.id} took it back: "
        f"{_count_nodes(run.healthy)} back, {run.failed} failed. Change spec.version or spec.template to go on"
    )


def _tell_exceptions(seen: RolloutSnapshot, run: RunStatus) -> str:
    note = f"; {run.failed} failed within the tolerance" if run.failed else ""
    note += f"; left out: {run.skipped}" if run.skipped else ""
    if seen.phase_of(run.revision) == "Deprecated":
        note += f"; {run.version} is Deprecated: no new run may go to it"
    return note


def _degradations(seen: RolloutSnapshot, run: RunStatus | None, tally: Tally) -> list[Finding]:
    reasons: list[tuple[str, str]] = []
    if revoked := _count_revoked(seen):
        told = ", ".join(f"{_count_nodes(count)} still on {version}" for version, count in sorted(revoked.items()))
        reasons.append(("RevokedVersionRuns", f"Revoked: {told}. Set spec.version to a published one to move them"))
    if run is not None and run.failed:
        message = f"{run.failed} of {run.nodes} nodes failed in run {run.id}"
        stay = sum(result.state == "Failed" and seen.phase_of(entry.back) in BARRED for entry, result in tally.failed)
        if stay:
            message += f"; {stay} of them stay, because what they ran before is Withdrawn or Revoked"
        reasons.append(("NodesFailed", message))
    waiting = [
        entry.name
        for entry, result in tally.stopping
        if result.started_at is not None and (seen.now - result.started_at).total_seconds() >= STUCK_SECONDS
    ]
    if waiting:
        names = ", ".join(waiting[:3]) + (f" and {len(waiting) - 3} more" if len(waiting) > 3 else "")
        reasons.append(
            (
                "OldAgentsDoNotEnd",
                f"more than {STUCK_SECONDS} s after their move began the old pods have not ended: {names}",
            )
        )
    if not reasons:
        return []
    return [Finding("Degraded", "True", reasons[0][0], "; ".join(message for _, message in reasons))]


def _count_revoked(seen: RolloutSnapshot) -> dict[str, int]:
    """Return how many nodes run each Revoked version, or are on their way to it."""
    revoked = {
        revision: version
        for revision, version in seen.revisions.items()
        if version in seen.versions and seen.versions[version].phase == "Revoked"
    }
    counts: dict[str, int] = {}
    for node in seen.nodes.values() if revoked else ():
        assignment = node.labels.get(seen.assignment_key)
        version = revoked.get(target_of(assignment)) if assignment is not None else None
        if version is not None:
            counts[version] = counts.get(version, 0) + 1
    return counts
