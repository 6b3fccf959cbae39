"""The life of a run: how it starts, gets its result, and goes into the history."""

from outrider.api.rollout import (
    CompletedRevision,
    RolloutStatus,
    RunCause,
    RunKind,
    RunRecord,
    RunState,
    RunStatus,
)
from outrider.core.failures import find_failure
from outrider.core.judgement import with_state
from outrider.core.states import COMPLETED, FAILED, RESULTS
from outrider.core.work import Work

_MAX_HISTORY = 50
"""Ended runs that a status holds at most, as its schema says."""


def start_run(
    work: Work,
    *,
    kind: RunKind,
    version: str,
    revision: str,
    cause: RunCause = "SpecChanged",
    by: str | None = None,
    to_version: str = "",
    of_run: int | None = None,
) -> None:
    """Begin a run with the next number; its first batch is made once it is stored. `by` is who asked for it, if so."""
    seen = work.seen
    # Numbers are never reused, even if a status was lost: batches of that number may be stored.
    last = max([*(record.id for record in work.history), *(batch.spec.run for batch in seen.batches)], default=0)
    work.run = RunStatus(
        id=last + 1,
        kind=kind,
        cause=cause,
        state="Running",
        version=version,
        from_version=version if kind == "Rollback" else work.stable_version or "none",
        to_version=to_version if kind == "Rollback" else version,
        revision=revision,
        from_revision=work.stable,
        of_run=of_run,
        started_at=seen.now,
        started_by=by or (seen.started_by if kind == "Rollout" else "outrider"),
        requested_by=by,
        nodes=len(seen.members),
    )
    work.urgent_status = True
    if kind == "Rollout":
        asked = f", asked for by {by}" if by else ""
        work.say("Normal", "RunStarted", f"Run {work.run.id}: {len(seen.members)} nodes to {version}{asked}")


def known_revisions(status: RolloutStatus) -> list[CompletedRevision]:
    """Return the revisions that completed runs brought, newest first; from the history if there is no list yet."""
    if status.revisions is not None and status.revisions.completed:
        return list(status.revisions.completed)
    known: dict[str, CompletedRevision] = {}
    runs: list[RunStatus | RunRecord] = [record for record in status.history if record.result in COMPLETED]
    if status.run is not None and status.run.state in COMPLETED:
        runs.insert(0, status.run)
    for run in runs:
        if run.kind == "Rollout":
            found = CompletedRevision(revision=run.revision, version=run.version, run=run.id)
            known.setdefault(run.revision, found)
    return list(known.values())


def finish_run(work: Work, state: RunState) -> None:
    """Give the present run its result; it stays the newest until another starts."""
    work.update_run(state=state, finished_at=work.seen.now, reason="", message="")
    work.urgent_status = True


def end_run(work: Work, result: RunState, message: str) -> None:
    """Put the present run into the history, and close what is open of its records."""
    run = work.run
    assert run is not None  # noqa: S101 - callers have a run
    for batch in work.run_batches():
        results = work.results[batch.name]
        for name, before in () if results.are_complete else list(results.items()):
            if before.state == "Returning":
                results[name] = before.model_copy(update={"state": "Failed"})
            elif before.state not in RESULTS:
                note = "the run ended before the node was touched"
                if before.state != "Pending":
                    note = f"the run ended while the node was on its way ({before.state})"
                results[name] = with_state(work, before, "Skipped", "RunEnded", note)
        if work.finished[batch.name] is None:
            work.finished[batch.name] = work.seen.now
            work.urgent_batches.add(batch.name)
    states = work.states()
    if run.kind == "Rollout":
        failed = [(e, r) for _, e, r in work.entries(FAILED, updates=True) if not work.is_superseded(e, r)]
        work.last_failure = find_failure(run, failed, message) or work.last_failure
    work.history.insert(
        0,
        RunRecord(
            id=run.id,
            kind=run.kind,
            cause=run.cause,
            version=run.version,
            from_version=run.from_version,
            to_version=run.to_version,
            revision=run.revision,
            from_revision=run.from_revision,
            of_run=run.of_run,
            of_batches=run.of_batches,
            started_by=run.started_by[:253],
            requested_by=run.requested_by[:253] if run.requested_by else None,
            approvals=run.approvals,
            result=result,
            started_at=run.started_at,
            finished_at=run.finished_at or work.seen.now,
            nodes=run.nodes,
            healthy=states["Succeeded"],
            failed=sum(states[state] for state in FAILED),
            skipped=states["Skipped"],
            reason=run.reason,
            message=message[:512],
        ),
    )
    trim_history(work)


def trim_history(work: Work) -> None:
    """Forget the oldest runs; but none that never completed while nodes are on what it brought.

    That it is untried is known from there alone: forgotten, it would be a way back like any other.
    """
    limit = work.seen.spec.run_history_limit
    untried = {
        record.id
        for record in work.history[limit:]
        if record.kind == "Rollout" and record.result not in COMPLETED and record.revision in work.seen.assigned
    }
    work.history[limit:] = [record for record in work.history[limit:] if record.id in untried]
    del work.history[_MAX_HISTORY:]
