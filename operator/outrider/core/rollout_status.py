"""What a Rollout's status says: the one place that computes `Ready`, the phase, the counts and the messages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from outrider.api.names import ASSIGNMENT_LEGACY
from outrider.api.rollout import (
    AdoptionStatus,
    CompletedRevision,
    LastFailure,
    LastHandled,
    RefusedRequest,
    Revisions,
    RolloutStatus,
    RunningVersion,
    RunRecord,
    RunStatus,
)
from outrider.core import batches as arithmetic
from outrider.core.adoption import is_reverted, tell_revert
from outrider.core.conditions import Finding, merge_conditions, shortened
from outrider.core.counts import Agents
from outrider.core.failures import Entry, find_failure, name_failures
from outrider.core.moves import target_of
from outrider.core.plan import Event
from outrider.core.snapshot import Hindrance, RolloutSnapshot
from outrider.core.states import ARRIVING, BARRED, COMPLETED, FAILED, ONGOING
from outrider.core.words import count_nodes, name_first
from outrider.core.work import is_for, is_requested

MAX_VERSIONS = 10
"""So many of the versions that run are listed."""

STUCK_SECONDS = 60
"""A node that waits longer than this for its old pod to end is worth telling."""

CONDITION_TYPES = frozenset(
    {"Ready", "Reconciling", "Stalled", "Progressing", "Paused", "Degraded", "RolledBack", "AdoptionReverted"}
)
"""The conditions that are Outrider's."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What is counted of a fleet and of the present run.

    `states` are the run's nodes by the state of their result, each once; `failed` and `stopping` those of them, and
    `failed_before` those that failed in the run that this one takes back. `left_between` are nodes that an earlier run
    has left between two revisions. `untouched` are still to be moved, and in no batch yet. `agents` is what runs.
    """

    states: Mapping[str, int]
    untouched: int
    failed: Sequence[Entry]
    failed_before: Sequence[Entry]
    stopping: Sequence[Entry]
    left_between: Sequence[str]
    agents: Agents

    @property
    def updated(self) -> int:
        """How many nodes of the fleet run what the spec wants."""
        return self.agents.updated

    def count(self, states: Iterable[str]) -> int:
        """Return how many of the run's nodes are in one of some states."""
        return sum(self.states.get(state, 0) for state in states)


def build_status(
    seen: RolloutSnapshot,
    *,
    run: RunStatus | None,
    stable: str | None,
    stable_version: str | None,
    target: str | None = None,
    history: Sequence[RunRecord],
    tally: Tally,
    last_failure: LastFailure | None,
    gate: str,
    hindrance: Hindrance | None,
    obstacle: Hindrance | None,
    adoption: AdoptionStatus | None = None,
    deadlock: Hindrance | None = None,
    completed: Sequence[CompletedRevision] = (),
    last_handled: LastHandled | None = None,
    last_refused: RefusedRequest | None = None,
) -> RolloutStatus:
    """Return the status that tells what is true now.

    `gate` says what the next batch waits for, `hindrance` why nothing new may start or what all that is left waits for,
    `obstacle` why nodes of a failed run cannot return, or the run cannot go on; `deadlock` which components wait for
    each other; if anything.
    """
    agents = tally.agents
    if run is not None:
        run = _count(seen, run, tally, gate)
        if run.kind == "Rollout":
            why = run.message if run.state == "Paused" else ""
            last_failure = find_failure(run, tally.failed, why) or last_failure
    running = [
        RunningVersion(version=version, nodes=nodes, ready=ready)
        for version, (nodes, ready) in sorted(agents.versions.items(), key=lambda item: (-item[1][0], item[0]))
    ]
    view = _View(seen, run, tally, running, gate, history, hindrance, obstacle, adoption)
    phase, findings = _judge(view)
    findings += _tell_reverts(seen, adoption)
    if deadlock is not None and obstacle is not deadlock and not any(f.type == "Degraded" for f in findings):
        findings.append(Finding("Degraded", "True", deadlock.reason, deadlock.message))
    # A node that failed and whose way back failed as well counts once.
    failed = list({(entry.name, entry.uid): (entry, r) for entry, r in [*tally.failed_before, *tally.failed]}.values())
    return RolloutStatus(
        observed_generation=seen.generation,
        phase=phase,
        nodes=len(seen.members),
        run=run,
        revisions=Revisions(
            stable=stable, stable_version=stable_version, current=seen.wanted, completed=list(completed), target=target
        ),
        running=", ".join(f"{each.version}: {each.nodes}" for each in running[:3]) + (", …" if running[3:] else ""),
        versions=running[:MAX_VERSIONS],
        failed=len(failed),
        failures=name_failures(failed),
        last_failure=last_failure,
        last_handled=last_handled,
        last_refused=last_refused,
        history=list(history),
        adoption=adoption,
        conditions=merge_conditions(seen.status.conditions, findings, seen.generation, seen.now),
    )


def tell_changes(seen: RolloutSnapshot, status: RolloutStatus, said: Iterable[Event]) -> list[Event]:
    """Return the events for what came to hold the Rollout, or does so no more: one for each change, not for each look.

    What an event of this pass (`said`) tells already is not told again.
    """
    before, after = ({c.type: c for c in each.conditions} for each in (seen.status, status))
    told = {event.reason for event in said}
    events: list[Event] = []
    was, now = (each["Paused"].reason if "Paused" in each else "" for each in (before, after))
    pause = _find_pause(seen)
    if pause is not None and pause.reason == now != was:
        events.append(Event("Normal", pause.reason, f"{pause.message}. {after['Ready'].message}"))
    if was in _BY_SPEC and pause is None and not seen.deleting:
        field = "spec.frozen" if was == "FrozenBySpec" else "spec.paused"
        events.append(Event("Normal", "Resumed", f"{field} is false again. {after['Ready'].message}"))
    stalled, old = after.get("Stalled"), before.get("Stalled")
    is_new = stalled is not None and (old is None or old.reason != stalled.reason)
    if stalled is not None and is_new and not told & _TELL_OF_STALLING:
        events.append(Event("Warning", stalled.reason, stalled.message))
    return events


_BY_SPEC = frozenset({"PausedBySpec", "FrozenBySpec"})
"""What a person's pause or freeze is told with."""

_TELL_OF_STALLING = frozenset({"RunPaused", "RolledBack", "RunFailed"})
"""Events that say themselves that the Rollout holds."""


def _count(seen: RolloutSnapshot, run: RunStatus, tally: Tally, gate: str) -> RunStatus:
    moving = tally.count({*ARRIVING, "Pending", "Stopping", "Retrying"})
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
    left, count, total = untouched, 0, arithmetic.size_basis(run)
    if not direct:
        for step in range(run.batches + 1, arithmetic.canary_steps(seen.spec) + 1):
            if left > 0:
                left, count = left - arithmetic.canary_size(seen.spec, step, total), count + 1
    size = arithmetic.PAGE if arithmetic.has_window(seen.spec) else arithmetic.rolling_size(seen.spec, total)
    return count + max(0, -(-left // size))


@dataclass(frozen=True)
class _View:
    """What the conditions are made from: see `build_status`."""

    seen: RolloutSnapshot
    run: RunStatus | None
    tally: Tally
    running: Sequence[RunningVersion]
    gate: str
    history: Sequence[RunRecord]
    hindrance: Hindrance | None
    obstacle: Hindrance | None
    adoption: AdoptionStatus | None


def _judge(view: _View) -> tuple[str, list[Finding]]:
    """Return the phase and the conditions: Ready always, the others while they have something to say."""
    seen, run, gate, hindrance, obstacle = view.seen, view.run, view.gate, view.hindrance, view.obstacle
    progress = _tell_progress(view)
    findings: list[Finding] = []
    pause = _find_pause(seen)

    def conclude(phase: str, ready: bool, reason: str, message: str, *, stalled: bool, busy: bool) -> str:
        if busy and pause is not None:
            findings.append(pause)
            phase, reason, busy = "Paused", pause.reason, False
        findings.append(Finding("Ready", "True" if ready else "False", reason, message))
        if busy:
            findings.append(Finding("Reconciling", "True", reason, message))
        if stalled:
            findings.append(Finding("Stalled", "True", reason, message))
        if run is not None:
            advancing = busy and hindrance is None and run.state == "Running" and not seen.deleting
            findings.append(Finding("Progressing", "True" if advancing else "False", reason, message))
        return phase

    holds_after_rollback = (
        run is not None and run.kind == "Rollback" and run.state not in ONGOING and is_for(run, seen.wanted)
    )
    ended = _why_ended(seen, run, view.history) or "FailureToleranceExceeded"
    if run is not None and is_requested(run) and not run.reason:
        ended = "RollbackRequested"
    if seen.deleting:
        phase = conclude("Deleting", False, "Deleting", gate, stalled=False, busy=True)
    elif run is not None and run.kind == "Rollback" and run.state == "Running":
        reason, message = _tell_rollback(view, run)
        stalled = obstacle is not None and obstacle.stalled
        phase = conclude(
            "Stalled" if stalled else "RollingBack",
            False,
            reason,
            message,
            stalled=stalled,
            busy=not stalled,
        )
    elif holds_after_rollback:
        assert run is not None  # noqa: S101 - said by the condition above
        message = _tell_rolled_back(view, run)
        findings.append(Finding("RolledBack", "True", ended, message))
        phase = conclude("RolledBack", False, "RolledBack", message, stalled=True, busy=False)
    elif run is not None and run.state == "Paused":
        what = f"run {run.id} to {run.to_version or run.version} stopped: {run.message}"
        message = f"{what}. {_how_to_go_on(seen)}. {_tell_versions(view)}"
        findings.append(Finding("Paused", "True", ended, message))
        phase = conclude("Stalled", False, ended, message, stalled=True, busy=False)
    elif (stop := hindrance or obstacle) is not None and (stop.stalled or not _has_completed(view)):
        arrived = stop.reason == "GivenBack"
        phase = conclude(
            "Completed" if arrived else "Stalled" if stop.stalled else "Waiting",
            arrived,
            stop.reason,
            stop.message,
            stalled=stop.stalled,
            busy=not stop.stalled and not arrived,
        )
    elif run is None or not is_for(run, seen.wanted) or run.state == "Running":
        message = progress + (f"; {gate}" if gate else "")
        phase = conclude("Progressing", False, "Progressing", message, stalled=False, busy=True)
    elif run.state == "Failed":
        message = f"run {run.id}: no node could be moved to {run.version}. {_how_to_go_on(seen)}"
        phase = conclude("Stalled", False, "RunFailed", message, stalled=True, busy=False)
    else:
        # What hinders only for a moment hinders the next run, and says nothing against the one that has completed.
        message = progress + _tell_exceptions(seen, run) + (f"; {hindrance.message}" if hindrance is not None else "")
        phase = conclude("Completed", True, "RunCompleted", message, stalled=False, busy=False)
    findings += _tell_freeze(seen, findings) + _degradations(view)
    return phase, findings


def _find_pause(seen: RolloutSnapshot) -> Finding | None:
    """Return what a person's pause or freeze is told with, unless the Rollout is being deleted."""
    if seen.deleting:
        return None
    if seen.spec.frozen:
        return Finding("Paused", "True", "FrozenBySpec", "spec.frozen is true: no node is given anything new")
    if seen.spec.paused:
        return Finding("Paused", "True", "PausedBySpec", "spec.paused is true: no new node is moved")
    return None


def _tell_freeze(seen: RolloutSnapshot, findings: Sequence[Finding]) -> list[Finding]:
    """Return the condition of a freeze that is not told yet: it matters at rest, too, for joining nodes get nothing."""
    pause = _find_pause(seen)
    told = any(finding.type == "Paused" for finding in findings)
    return [pause] if pause is not None and seen.spec.frozen and not told else []


def _why_ended(seen: RolloutSnapshot, run: RunStatus | None, history: Sequence[RunRecord]) -> str:
    """Return the reason for which the newest run, or the one that it takes back, was ended; "" if none was noted."""
    if run is None or run.reason == "RunAborted":
        return run.reason if run is not None else ""
    if seen.phase_of(run.revision) == "Revoked":
        return "VersionRevoked"
    return run.reason or next((record.reason for record in history if record.id == run.of_run), "")


def _has_completed(view: _View) -> bool:
    run = view.run
    return run is not None and is_for(run, view.seen.wanted) and run.state in COMPLETED and run.kind == "Rollout"


def _tell_rollback(view: _View, run: RunStatus) -> tuple[str, str]:
    """Return reason and message while nodes go back."""
    if run.revision == ASSIGNMENT_LEGACY and view.adoption is not None:
        return "GivingBack", view.adoption.message + (f"; {run.message}" if run.message else "")
    reason = view.obstacle.reason if view.obstacle is not None else "RollingBack"
    return reason, _tell_rolling_back(view, run)


def _tell_reverts(seen: RolloutSnapshot, adoption: AdoptionStatus | None) -> list[Finding]:
    if adoption is None or not is_reverted(adoption, seen.now):
        return []
    return [Finding("AdoptionReverted", "True", "AdoptionReverted", tell_revert(adoption))]


def _how_to_go_on(seen: RolloutSnapshot) -> str:
    return (
        "Change spec.version or spec.template to go on, or have the same tried again: "
        f"outrider retry {seen.name} --namespace {seen.namespace}"
    )


def _tell_progress(view: _View) -> str:
    seen, total = view.seen, len(view.seen.members)
    verb = "node runs" if total == 1 else "nodes run"
    progress = f"{view.tally.agents.updated} of {total} {verb} {seen.spec.version}"
    if seen.owned_by_others:
        owners = ", ".join(sorted(set(seen.owned_by_others.values())))
        progress += (
            f" (without {count_nodes(len(seen.owned_by_others))} of the target that belong to older Rollouts: "
            f"{shortened(owners, 500)})"
        )
    return progress


def _tell_versions(view: _View) -> str:
    """Say what runs on the nodes of the fleet now."""
    parts = []
    for each in view.running[:5]:
        not_ready = each.nodes - each.ready
        parts.append(
            f"{each.version} on {count_nodes(each.nodes)}" + (f" ({not_ready} of them not Ready)" if not_ready else "")
        )
    if view.running[5:]:
        parts.append(f"{len(view.running) - 5} more versions")
    if without := len(view.seen.members) - view.tally.agents.nodes:
        parts.append(f"no agent on {count_nodes(without)}")
    return f"What runs: {', '.join(parts) or 'nothing'}"


def _why_taken_back(view: _View, run: RunStatus) -> str:
    why = next((record.message for record in view.history if record.id == run.of_run), "")
    return why or "too many nodes failed"


def _tell_rolling_back(view: _View, run: RunStatus) -> str:
    if view.obstacle is not None:
        return f"{_tell_taken_back(view, run)}: {view.obstacle.message}"
    back = f"{count_nodes(run.healthy)} back, {run.pending} on the way"
    if run.failed:
        back += f", {run.failed} failed"
    if is_requested(run):
        told = f"{_tell_taken_back(view, run)}: {back}"
    else:
        why = _why_taken_back(view, run)
        told = f"run {run.of_run} to {run.version} failed: {why}. Run {run.id} takes it back: {back}"
    return told + (f"; {view.gate}" if view.gate else "")


def _tell_taken_back(view: _View, run: RunStatus) -> str:
    if not is_requested(run):
        return f"run {run.of_run} to {run.version} failed and is taken back"
    what = f"{_tell_batches(run)}run {run.of_run}"
    return f"run {run.id} takes {what} back from {run.version} to {run.to_version}, as {run.requested_by} asked"


def _tell_batches(run: RunStatus) -> str:
    return f"batch {', '.join(map(str, run.of_batches))} of " if run.of_batches else ""


def _tell_rolled_back(view: _View, run: RunStatus) -> str:
    if is_requested(run):
        left = f", {run.skipped} left out" if run.skipped else ""
        return (
            f"run {run.id}, asked for by {run.requested_by}, took {_tell_batches(run)}run {run.of_run} back from "
            f"{run.version} to {run.to_version}: {count_nodes(run.healthy)} back, {run.failed} failed{left}. "
            f"{_how_to_go_on(view.seen)}. {_tell_versions(view)}"
        )
    return (
        f"run {run.of_run} to {run.version} failed: {_why_taken_back(view, run)}. Run {run.id} took it back: "
        f"{count_nodes(run.healthy)} back, {run.failed} failed. {_how_to_go_on(view.seen)}. {_tell_versions(view)}"
    )


def _tell_exceptions(seen: RolloutSnapshot, run: RunStatus) -> str:
    note = f"; {run.failed} failed within the tolerance" if run.failed else ""
    note += f"; left out: {run.skipped}" if run.skipped else ""
    if seen.phase_of(run.revision) == "Deprecated":
        note += f"; {run.version} is Deprecated: no new run may go to it"
    return note


def _degradations(view: _View) -> list[Finding]:
    seen, run, tally = view.seen, view.run, view.tally
    reasons: list[tuple[str, str]] = []
    if revoked := _count_revoked(seen):
        told = ", ".join(f"{count_nodes(count)} still on {version}" for version, count in sorted(revoked.items()))
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
    waiting += [
        node for node in tally.left_between if (seen.now - seen.leaving_since[node]).total_seconds() >= STUCK_SECONDS
    ]
    if waiting:
        message = f"more than {STUCK_SECONDS} s after their move began the old pods have not ended"
        reasons.append(("OldAgentsDoNotEnd", f"{message}: {name_first(waiting)}"))
    if sick := view.tally.agents.sick:
        what = "1 node has an agent that is" if len(sick) == 1 else f"{len(sick)} nodes have agents that are"
        names = name_first([f"{node} ({reason})" for node, reason in sick])
        message = f"{what} not Ready for more than {seen.spec.health.timeout_seconds} s: {names}. Look at their pods"
        reasons.append(("AgentsNotHealthy", message))
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
