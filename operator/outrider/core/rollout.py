"""`plan_rollout`: from one look at a fleet to what to do now.

Assumptions:
- The snapshot is one moment. It may be behind the cluster; every action carries what it was decided on, and is refused
  by the API server if that is no longer so.
- Records (RolloutBatches, status) are stored before the moves of the same plan are made.
- Whoever executes plans for one Rollout does so alone.

Invariants:
- A node is moved only as a member of a stored batch (or welcomed to the stable revision when it has no assignment).
- Never more nodes without a working agent because of us than the batch, or `maxInFlight`, allows.
- A verdict that is acted on was stored before.
- A node goes back only to a revision from a completed run, or to none.
- Half-made moves are always finished, whatever else holds the run.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from outrider.api.names import ASSIGNMENT_NONE, batch_name
from outrider.api.rollout import (
    BatchNode,
    NodeResult,
    RolloutBatchSpec,
    RolloutBatchStatus,
    RunKind,
    RunRecord,
    RunState,
    RunStatus,
)
from outrider.core import batches as arithmetic
from outrider.core.health import Verdict, judge_pods
from outrider.core.moves import is_leaving, leaving, next_assignment, target_of
from outrider.core.plan import (
    Action,
    Assign,
    CreateBatch,
    CreateJoiners,
    CreateRevision,
    DeleteBatch,
    DeleteJoiners,
    DeleteRevision,
    DropFinalizer,
    Event,
    KeepFinalizer,
    Plan,
    WriteBatch,
)
from outrider.core.rollout_status import build_status
from outrider.core.scheduling import why_not_scheduled
from outrider.core.snapshot import Batch, Node, Pod, RolloutSnapshot

IN_FLIGHT = frozenset({"Stopping", "Downloading", "Starting", "Returning"})
RESULTS = frozenset({"Succeeded", "Failed", "RolledBack", "Skipped"})
FAILED = frozenset({"Failed", "Returning", "RolledBack"})
ONGOING = frozenset({"Running", "Paused"})
COMPLETED = frozenset({"Succeeded", "PartiallySucceeded"})
COMES_BACK = frozenset({"NodeNotReady", "WouldNotSchedule"})
"""Reasons of Skipped that may pass: such a node is taken by a later batch of the same run."""


@dataclass
class Work:
    """One pass in the making: what the policies have found and decided so far. Lives only inside `plan_rollout`."""

    seen: RolloutSnapshot
    run: RunStatus | None
    stable: str | None
    stable_version: str | None
    history: list[RunRecord]
    results: dict[str, dict[str, NodeResult]] = field(default_factory=dict)
    finished: dict[str, datetime | None] = field(default_factory=dict)
    urgent_batches: set[str] = field(default_factory=set)
    urgent_status: bool = False
    prerequisites: list[Action] = field(default_factory=list)
    new_batches: list[CreateBatch] = field(default_factory=list)
    moves: list[Assign] = field(default_factory=list)
    clean_up: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    wakes: list[datetime] = field(default_factory=list)
    gate: str = ""
    ended: bool = False

    @property
    def spec_paused(self) -> bool:
        """Whether a person has paused the Rollout."""
        return self.seen.spec.paused

    @property
    def is_active(self) -> bool:
        """Whether there is a run that makes batches."""
        return self.run is not None and self.run.state == "Running"

    def assignment(self, node: Node) -> str | None:
        """Return the node's assignment."""
        return node.labels.get(self.seen.assignment_key)

    def pods(self, node: str) -> tuple[Pod, ...]:
        """Return the agents' pods on a node."""
        return self.seen.pods.get(node, ())

    def members(self) -> Iterator[Node]:
        """Iterate over the nodes of the target."""
        return (self.seen.nodes[name] for name in self.seen.members)

    def run_batches(self, run: int | None = None) -> list[Batch]:
        """Return the stored batches of a run (default: the present one), oldest first."""
        wanted = run if run is not None else (self.run.id if self.run else 0)
        return [batch for batch in self.seen.batches if batch.spec.run == wanted]

    def entries(self) -> Iterator[tuple[Batch, BatchNode, NodeResult]]:
        """Iterate over all node entries of the present run with their results so far."""
        for batch in self.run_batches():
            results = self.results[batch.name]
            for entry in batch.spec.nodes:
                yield batch, entry, results[entry.name]

    def paused_seconds(self) -> int:
        """Return how long the run has stood in pauses, the present one included."""
        if self.run is None:
            return 0
        present = (self.seen.now - self.run.paused_since).total_seconds() if self.run.paused_since else 0
        return self.run.paused_seconds + int(present)

    def update_run(self, **changes: object) -> None:
        """Change fields of the run's status."""
        assert self.run is not None  # noqa: S101 - callers have a run
        self.run = self.run.model_copy(update=changes)

    def say(self, kind: str, reason: str, message: str) -> None:
        """Add an event."""
        self.events.append(Event("Warning" if kind == "Warning" else "Normal", reason, message))


Policy = Callable[[Work], None]


def plan_rollout(seen: RolloutSnapshot) -> Plan:
    """Return what to do now. The order of `POLICIES` is the safety argument."""
    revisions = seen.status.revisions
    work = Work(
        seen=seen,
        run=seen.status.run,
        stable=revisions.stable if revisions else None,
        stable_version=revisions.stable_version if revisions else None,
        history=list(seen.status.history),
    )
    for batch in seen.batches:
        known = {result.name: result for result in batch.status.nodes}
        work.results[batch.name] = {
            entry.name: known.get(entry.name, NodeResult(name=entry.name, state="Pending"))
            for entry in batch.spec.nodes
        }
        work.finished[batch.name] = batch.status.finished_at
    for policy in POLICIES:
        policy(work)
        if work.ended:
            break
    finish_half_made_moves(work)
    return _assemble(work)


def keep_time(work: Work) -> None:
    """Is the run standing in a pause? Then its clock stands too."""
    if work.run is None or work.run.state not in ONGOING:
        return
    in_pause = work.spec_paused or work.run.state == "Paused"
    if in_pause and work.run.paused_since is None:
        work.update_run(paused_since=work.seen.now)
        work.urgent_status = True
    elif not in_pause and work.run.paused_since is not None:
        work.update_run(paused_seconds=work.paused_seconds(), paused_since=None)
        work.urgent_status = True


def judge_nodes(work: Work) -> None:
    """What has become of every node that the present run touched?"""
    if work.run is None or work.run.state not in ONGOING:
        return
    for batch in work.run_batches():
        results = work.results[batch.name]
        for entry in batch.spec.nodes:
            before = results[entry.name]
            after = _judge_node(work, batch, entry, before)
            if after.state != before.state and after.state in {"Failed", "Skipped"}:
                work.urgent_batches.add(batch.name)
            results[entry.name] = after


def let_go(work: Work) -> None:
    """Is the Rollout being deleted? Then nothing new starts; agents keep running."""
    seen = work.seen
    if not seen.deleting:
        if not seen.has_finalizer:
            work.prerequisites.append(KeepFinalizer())
        return
    work.ended = True
    work.gate = "deleted: half-made moves are being finished"
    if seen.has_finalizer and not any(is_leaving(work.assignment(node)) for node in seen.nodes.values()):
        work.clean_up.append(DropFinalizer())


def decide_failure(work: Work) -> None:
    """Have more nodes failed than tolerated? Then the run is over, before anything else is started."""
    run = work.run
    if run is None or run.state != "Running" or _is_lenient(work, run):
        return
    verdict = _over_tolerance(work, run)
    if not verdict:
        return
    work.urgent_status = True
    if work.seen.spec.on_failure == "Pause":
        work.update_run(state="Paused", paused_since=run.paused_since or work.seen.now, message=verdict)
        work.say("Warning", "RunPaused", f"Run {run.id} to {run.version} stopped: {verdict}")
        return
    if work.spec_paused:
        return  # the rollback is a move too: it waits for the pause to end
    work.say("Warning", "RollingBack", f"Run {run.id} to {run.version} failed: {verdict}. Taking back what it moved")
    _end_run(work, "RolledBack", verdict)
    _start_run(work, kind="Rollback", version=run.version, revision=run.revision, of_run=run.id)
    work.ended = True


def supersede(work: Work) -> None:
    """Does the spec want another revision than the run brings? Then a new run starts, once nothing hinders it."""
    seen, run = work.seen, work.run
    if run is not None and run.revision == seen.wanted:
        return
    if seen.hindrance is not None or work.spec_paused:
        return
    if not seen.members:
        return
    if seen.wanted not in seen.revisions:
        work.prerequisites.append(CreateRevision(seen.wanted))
        work.ended = True
        return
    if run is not None:
        ended: RunState = run.state if run.state not in ONGOING else "Superseded"
        if run.state in ONGOING:
            work.say(
                "Normal",
                "RunSuperseded",
                f"Run {run.id} to {run.version} ends unfinished: the Rollout now wants {seen.spec.version}",
            )
        superseded = f"the Rollout wants {seen.spec.version} since" if ended == "Superseded" else ""
        _end_run(work, ended, superseded)
    _start_run(work, kind="Rollout", version=seen.spec.version, revision=seen.wanted)
    work.ended = True


def welcome_joiners(work: Work) -> None:
    """Which nodes have no assignment though there is a stable revision? They get that one, never a half-tested one."""
    if work.stable is None or work.stable not in work.seen.revisions:
        return
    stable, serving = work.stable, work.seen.joiners
    if not work.seen.spec.target.node_names:
        if outdated := [revision for revision in serving if revision != stable]:
            work.clean_up.extend(DeleteJoiners(revision) for revision in outdated)
        elif stable not in serving:
            # Only when no other serves the joiners any more, and nobody is welcomed in the same breath: its pod may
            # appear between the two writes.
            work.prerequisites.append(CreateJoiners(stable))
            return
    in_batches = {entry.name: entry.uid for _, entry, result in work.entries() if result.state != "Skipped"}
    for node in work.members():
        if work.assignment(node) is None and in_batches.get(node.name) != node.uid:
            _move(work, node, stable)


def hold(work: Work) -> None:
    """Does a person, or something that is missing, hold the run? Then no new move is made."""
    seen, run = work.seen, work.run
    if work.spec_paused:
        work.gate = "paused by spec.paused"
    elif run is not None and run.state == "Paused":
        work.gate = run.message
    elif seen.hindrance is not None and (run is None or run.kind == "Rollout"):
        # A rollback needs nothing of the version that it takes away.
        work.gate = seen.hindrance.message
    else:
        return
    work.ended = True


def send_failed_nodes_back(work: Work) -> None:
    """Which nodes failed within the tolerance? Each goes back at once to where it was good."""
    if not work.is_active:
        return
    for batch, entry, result in list(work.entries()):
        if result.state != "Failed" or result.reason in {"NodeGone", "ReturnFailed"} or entry.back == entry.to:
            continue
        node = _same_node(work, entry)
        if node is None or work.assignment(node) == entry.back:
            continue
        work.results[batch.name][entry.name] = result.model_copy(update={"state": "Returning"})
        work.urgent_batches.add(batch.name)
        _move(work, node, entry.back)


def close_batches(work: Work) -> None:
    """Has every node of a batch its result? Then the batch is finished; a node that fell ill opens it again."""
    if not work.is_active:
        return
    for batch in work.run_batches():
        done = all(result.state in RESULTS for result in work.results[batch.name].values())
        if done and work.finished[batch.name] is None:
            work.finished[batch.name] = work.seen.now
            work.urgent_batches.add(batch.name)
            _tell_end_of_batch(work, batch)
        elif not done:
            work.finished[batch.name] = None


def move_open_batches(work: Work) -> None:
    """Which nodes of the started batches have not been touched yet? They leave, as many as may be in flight."""
    if not work.is_active or work.run is None:
        return
    limit = arithmetic.in_flight_limit(work.seen.spec, max(work.run.nodes, 1))
    in_flight = sum(result.state in IN_FLIGHT for _, _, result in work.entries())
    for batch, entry, result in list(work.entries()):
        node = _same_node(work, entry)
        if node is None:
            continue
        if result.state == "Stopping" and work.assignment(node) == (entry.origin or None):
            _move(work, node, entry.to)  # planned before, but the patch was not made
        if result.state != "Pending":
            continue
        if in_flight >= limit:
            return
        _move(work, node, entry.to)
        in_flight += 1
        work.results[batch.name][entry.name] = result.model_copy(
            update={"state": "Stopping", "started_at": work.seen.now}
        )


def wait_for_the_batch(work: Work) -> None:
    """Is a batch still under way, or has the last one not been watched long enough? Then the next has to wait."""
    if not work.is_active or work.run is None:
        return
    stored = work.run_batches()
    if any(work.finished[batch.name] is None for batch in stored):
        work.gate = f"batch {work.run.batches}: waiting for its nodes to become healthy"
        work.ended = True
        return
    if not stored or _is_direct(work.run):
        return
    number = stored[-1].spec.batch
    last = [batch for batch in stored if batch.spec.batch == number]
    if not any(work.results[batch.name][e.name].state != "Skipped" for batch in last for e in batch.spec.nodes):
        return
    step = last[0].spec.step
    spec = work.seen.spec.strategy
    if step and spec.canary and step <= len(spec.canary.steps):
        soak = spec.canary.steps[step - 1].soak_seconds
    elif _remaining(work):
        soak = spec.rolling.batch_interval_seconds if spec.rolling else 0
    else:
        soak = 0
    ends = max(finished for batch in last if (finished := work.finished[batch.name])) + timedelta(seconds=soak)
    if work.seen.now < ends:
        what = f"canary step {step}" if step else f"batch {number}"
        work.gate = f"{what} is healthy and watched until {ends:%H:%M:%S} UTC before the next batch"
        work.wakes.append(ends)
        work.ended = True


def start_next_batch(work: Work) -> None:
    """Which nodes come next? Their names, and where each goes and comes from, are stored before the first is moved."""
    run, seen = work.run, work.seen
    if run is None or run.kind != "Rollout" or run.state not in {"Running", *COMPLETED}:
        return
    if seen.wanted not in seen.revisions:
        work.prerequisites.append(CreateRevision(seen.wanted))
        return
    candidates = _remaining(work)
    movable = [node for node in candidates if _why_skip(work, node) is None]
    if not movable:
        recorded = {entry.name for _, entry, result in work.entries() if result.state == "Skipped"}
        blocked = [node for node in candidates if node.name not in recorded]
        if blocked and run.state == "Running":
            _create_batch(work, blocked, step=0, to=lambda _: run.revision)
        return
    if run.state != "Running":
        # Nodes that were away when the run completed form a late batch of it.
        work.update_run(state="Running", finished_at=None)
        work.urgent_status = True
    step, size = _next_size(work, run)
    chosen = arithmetic.order_nodes(movable, seen.uid, run.id)[:size]
    _create_batch(work, chosen, step=step, to=lambda _: run.revision)


def start_next_rollback_batch(work: Work) -> None:
    """Which nodes of the failed run have not been taken back yet? Failed ones first, in batches, without canary."""
    run, seen = work.run, work.seen
    if run is None or run.kind != "Rollback" or run.state != "Running":
        return
    taken = {(entry.name, entry.uid) for _, entry, _ in work.entries()}
    origin = {
        (entry.name, entry.uid): (entry, work.results[batch.name][entry.name])
        for batch in work.run_batches(run.of_run)
        for entry in batch.spec.nodes
    }
    good = _good_revisions(work)
    failed: list[Node] = []
    others: list[Node] = []
    for node in seen.nodes.values():
        identity = (node.name, node.uid)
        assignment = work.assignment(node)
        if identity in taken or assignment is None or assignment in good:
            continue
        if is_leaving(assignment) and target_of(assignment) in good:
            continue  # on its way back already
        known = origin.get(identity)
        (failed if known is not None and known[1].state in FAILED else others).append(node)
    left = arithmetic.order_nodes(failed, seen.uid, run.id) + arithmetic.order_nodes(others, seen.uid, run.id)
    if not left:
        return

    def back(node: Node) -> str:
        known = origin.get((node.name, node.uid))
        return known[0].back if known is not None else (work.stable or ASSIGNMENT_NONE)

    size = len(left) if seen.spec.strategy.type == "Full" else arithmetic.rolling_size(seen.spec, run.nodes)
    _create_batch(work, left[:size], step=0, to=back)


def complete(work: Work) -> None:
    """Is nothing left to do? Then the run has its result."""
    run = work.run
    if run is None or run.state != "Running" or work.new_batches or work.prerequisites:
        return
    states = [result.state for _, _, result in work.entries()]
    failed = sum(state in FAILED for state in states)
    if run.kind == "Rollback":
        result: RunState = "Succeeded"
        if failed:
            result = "PartiallySucceeded" if failed < len(states) else "Failed"
        _finish(work, result)
        work.say(
            "Warning",
            "RolledBack",
            f"Run {run.id} took back {len(states) - failed} of {len(states)} nodes from {run.version}; the Rollout "
            "holds until spec.version or spec.template changes",
        )
        return
    updated = sum(work.assignment(node) == run.revision for node in work.members())
    if not updated and failed:
        _finish(work, "Failed")
        work.say("Warning", "RunFailed", f"Run {run.id}: none of {run.nodes} nodes runs {run.version}, {failed} failed")
        return
    if not updated:
        work.gate = "no node can be moved now: each is NotReady, or would not schedule the agent's pod"
        return
    _finish(work, "PartiallySucceeded" if failed else "Succeeded")
    work.stable, work.stable_version = run.revision, run.version
    note = f", {failed} failed within the tolerance" if failed else ""
    work.say(
        "Normal", "RunCompleted", f"Run {run.id}: {updated} of {len(work.seen.members)} nodes run {run.version}{note}"
    )


def forget(work: Work) -> None:
    """Which records and DaemonSets does nothing name any more? They are deleted."""
    seen = work.seen
    limit = seen.spec.run_history_limit
    del work.history[limit:]
    kept = {record.id for record in work.history} | ({work.run.id} if work.run else set())
    needed = {seen.wanted, work.stable, work.run.revision if work.run else None}
    for batch in seen.batches:
        if batch.spec.run not in kept:
            work.clean_up.append(DeleteBatch(batch.name))
            continue
        for entry in batch.spec.nodes:
            needed |= {entry.origin, entry.to, entry.back}
    for node in seen.nodes.values():
        assignment = work.assignment(node)
        if assignment is not None:
            needed.add(target_of(assignment))
    needed |= {target_of(entry) for entry in needed if entry is not None}
    work.clean_up.extend(DeleteRevision(revision) for revision in sorted(seen.revisions) if revision not in needed)


POLICIES: tuple[Policy, ...] = (
    keep_time,  # first, so that every deadline below is measured on a clock that stands still in a pause
    judge_nodes,  # deadlines fire on every pass, before anything that may end the pass early
    let_go,  # a deleted Rollout starts nothing, not even a rollback
    decide_failure,  # over the tolerance nothing new starts, whatever the spec now says
    supersede,  # another wish ends the run before it starts one more batch
    welcome_joiners,  # a node that joined gets the stable revision, in pauses too
    hold,  # pause, missing or withdrawn version: no new move from here on
    send_failed_nodes_back,  # what failed returns before the next node leaves
    close_batches,  # only now: a failed node that goes back keeps its batch open
    move_open_batches,  # a started batch is completed before the next is made
    wait_for_the_batch,  # batch under way, soak, interval
    start_next_rollback_batch,  # of a rollback
    start_next_batch,  # of a rollout
    complete,  # only when no batch could be made
    forget,  # last: nothing above may still need what is deleted
)
"""The order is the safety argument. A policy that ends the pass keeps all later ones from acting."""


def finish_half_made_moves(work: Work) -> None:
    """Which nodes are between two revisions? Each is brought to where its record says, as soon as its pods ended."""
    moved = {move.node for move in work.moves}
    goals: dict[tuple[str, str], str] = {}
    run = work.run
    if run is not None:
        if run.kind == "Rollback":
            for batch in work.run_batches(run.of_run):
                goals |= {(entry.name, entry.uid): entry.back for entry in batch.spec.nodes}
        for _, entry, result in work.entries():
            if result.state not in {"Skipped", "RolledBack"}:
                goals[entry.name, entry.uid] = entry.back if result.state in FAILED else entry.to
    for node in work.seen.nodes.values():
        assignment = work.assignment(node)
        if assignment is None or not is_leaving(assignment) or node.name in moved:
            continue
        goal = goals.get((node.name, node.uid), target_of(assignment))
        if goal != ASSIGNMENT_NONE and goal not in work.seen.revisions:
            goal = work.stable or ASSIGNMENT_NONE
        _move(work, node, goal)


def _tell_end_of_batch(work: Work, batch: Batch) -> None:
    states = [result.state for result in work.results[batch.name].values()]
    failed = sum(state in FAILED for state in states)
    name = f"canary step {batch.spec.step}" if batch.spec.step else f"batch {batch.spec.batch}"
    work.say(
        "Warning" if failed else "Normal",
        "BatchFinished",
        f"Run {batch.spec.run}, {name}: {states.count('Succeeded')} of {len(states)} nodes healthy, {failed} failed, "
        f"{states.count('Skipped')} left out",
    )


def _judge_node(work: Work, batch: Batch, entry: BatchNode, result: NodeResult) -> NodeResult:
    if result.state in {"Skipped", "RolledBack"}:
        return result
    node = _same_node(work, entry)
    if node is None:
        if result.state in {"Succeeded", "Failed"}:
            return result
        if result.state == "Pending":
            return _result(work, result, "Skipped", "NodeGone", "the node was deleted before it was moved")
        return _result(work, result, "Failed", "NodeGone", "the node was deleted before its agent was healthy")
    assignment = work.assignment(node)
    if result.state in FAILED:
        return _judge_return(work, entry, result, node)
    if assignment == (entry.origin or None) and entry.origin != entry.to:
        # Not touched yet. A rollback skips nobody: a dead node must not come back with what failed.
        skip = _why_skip(work, node) if batch.spec.kind == "Rollout" else None
        return _result(work, result, "Skipped", *skip) if skip is not None else result
    if assignment not in {entry.to, leaving(entry.to), entry.origin or None}:
        return _result(
            work, result, "Skipped", "AssignmentChanged", f"somebody set the node's assignment to {assignment}"
        )
    if not node.ready:
        return _result(work, result, "Failed", "NodeNotReady", "the node was Ready, and is not since it was moved")
    if assignment != entry.to:
        verdict = Verdict("Starting", "StuckTerminating", "the old agent's pod does not end")
        state = "Stopping"
    else:
        verdict = judge_pods(work.pods(node.name), entry.to, work.seen.spec.health, work.seen.now)
        if entry.to == ASSIGNMENT_NONE:
            verdict = Verdict("Healthy")
        state = verdict.state
    return _settle(work, batch, result, verdict, state)


def _settle(work: Work, batch: Batch, result: NodeResult, verdict: Verdict, state: str) -> NodeResult:
    """Turn a verdict on a node that is where it should be into its result."""
    now = work.seen.now
    if verdict.state == "Healthy":
        return result if result.state == "Succeeded" else _result(work, result, "Succeeded", "", "")
    if verdict.state == "Failed":
        return _result(work, result, "Failed", verdict.reason, verdict.message)
    if result.state == "Succeeded":
        # It was healthy and is not: its clock starts again, and the batch is open again.
        return _result(work, result.model_copy(update={"started_at": now}), state, verdict.reason, verdict.message)
    timeout = work.seen.spec.health.timeout_seconds
    begun = result.started_at or batch.spec.started_at
    paused = work.paused_seconds() - batch.spec.paused_seconds
    deadline = begun + timedelta(seconds=timeout + paused)
    if now >= deadline and (work.run is None or work.run.paused_since is None):
        reason = verdict.reason if verdict.reason == "StuckTerminating" else "HealthTimeout"
        return _result(work, result, "Failed", reason, f"not healthy within {timeout} s: {verdict.message}")
    work.wakes.append(min(deadline, verdict.wake_at) if verdict.wake_at else deadline)
    return _result(work, result, state, verdict.reason, verdict.message)


def _judge_return(work: Work, entry: BatchNode, result: NodeResult, node: Node) -> NodeResult:
    """Judge a failed node: has it come back to what it ran before?"""
    assignment = work.assignment(node)
    if entry.back == entry.to:
        return result
    if assignment == entry.back:
        health = work.seen.spec.health
        verdict = judge_pods(work.pods(node.name), entry.back, health, work.seen.now)
        if entry.back == ASSIGNMENT_NONE or verdict.state == "Healthy":
            return _result(work, result, "RolledBack", result.reason, result.message)
        if verdict.wake_at is not None:
            work.wakes.append(verdict.wake_at)
    if result.state == "Returning" and result.finished_at is not None:
        deadline = result.finished_at + timedelta(seconds=work.seen.spec.health.timeout_seconds)
        if work.seen.now >= deadline:
            return result.model_copy(
                update={
                    "state": "Failed",
                    "reason": "ReturnFailed",
                    "message": f"not healthy again after going back; it had failed with {result.reason}"[:256],
                }
            )
        work.wakes.append(deadline)
    return result


def _result(work: Work, before: NodeResult, state: str, reason: str, message: str) -> NodeResult:
    """Return a node's new result; the same one if nothing changed."""
    message = message if len(message) <= 256 else message[:253] + "..."
    if (before.state, before.reason, before.message) == (state, reason, message):
        return before
    ends = state in RESULTS
    return before.model_copy(
        update={
            "state": state,
            "reason": reason,
            "message": message,
            "started_at": before.started_at or (work.seen.now if state not in {"Pending", "Skipped"} else None),
            # A failed node keeps the time of its failure while it goes back: its return is measured from there.
            "finished_at": (before.finished_at or work.seen.now if before.state in FAILED else work.seen.now)
            if ends
            else None,
        }
    )


def _why_skip(work: Work, node: Node) -> tuple[str, str] | None:
    """Return reason and message why a node must not lose its agent now, or None."""
    if not node.ready:
        return "NodeNotReady", "the node is not Ready; it is moved when it is again"
    if why := why_not_scheduled(work.seen.spec.template.get("spec") or {}, node):
        return "WouldNotSchedule", why
    return None


def _remaining(work: Work) -> list[Node]:
    """Return the nodes of the fleet that the run has still to move."""
    run = work.run
    if run is None:
        return []
    done = {
        (entry.name, entry.uid)
        for _, entry, result in work.entries()
        if not (result.state == "Skipped" and result.reason in COMES_BACK)
    }
    away = {(entry.name, entry.uid) for _, entry, result in work.entries()} - done
    remaining = []
    for node in work.members():
        assignment = work.assignment(node)
        if (node.name, node.uid) in done or is_leaving(assignment) or assignment == run.revision:
            continue
        if assignment is None and work.stable is not None and work.stable in work.seen.revisions:
            continue  # a joiner: it is welcomed first
        if (node.name, node.uid) in away and _why_skip(work, node) is not None:
            continue  # recorded already, and still away
        remaining.append(node)
    return remaining


def _next_size(work: Work, run: RunStatus) -> tuple[int, int]:
    """Return the canary step (0: none) and the size of the run's next batch."""
    spec = work.seen.spec
    if spec.strategy.type == "Full":
        return 0, len(work.seen.nodes)
    if not _is_direct(run):
        # A step whose nodes were all skipped proved nothing: it is taken again with others.
        steps = {
            batch.spec.step for batch, _, result in work.entries() if batch.spec.step and result.state != "Skipped"
        }
        step = max(steps, default=0) + 1
        if step <= arithmetic.canary_steps(spec):
            return step, arithmetic.canary_size(spec, step, run.nodes)
    return 0, arithmetic.rolling_size(spec, run.nodes)


def _is_direct(run: RunStatus) -> bool:
    """Tell whether a run goes without canary and intervals: rollbacks, and returns to what was stable."""
    return run.kind == "Rollback" or run.revision == run.from_revision


def _is_lenient(work: Work, run: RunStatus) -> bool:
    """Tell whether a run goes on whatever fails.

    A rollback, or a return to what is stable, has nothing better to go back to; and a run that completed once is not
    taken back for a late node that fails: that node goes back alone.
    """
    return run.kind == "Rollback" or run.revision == work.stable


def _over_tolerance(work: Work, run: RunStatus) -> str:
    """Return why the run has failed, as a sentence; "" while it has not."""
    strategy = work.seen.spec.strategy
    states: list[tuple[int, int, str]] = [
        (batch.spec.batch, batch.spec.step, result.state) for batch, _, result in work.entries()
    ]
    failed = sum(state in FAILED for _, _, state in states)
    if not failed:
        return ""
    examples = _examples(work)
    allowed = arithmetic.tolerated(strategy.failure_tolerance, run.nodes)
    if failed > allowed:
        return f"{failed} of {run.nodes} nodes failed, tolerated are {allowed} ({examples})"
    for number in sorted({number for number, _, _ in states}):
        moved = [(step, state) for n, step, state in states if n == number and state != "Skipped"]
        step = moved[0][0] if moved else 0
        bad = sum(state in FAILED for _, state in moved)
        if step and strategy.canary and step <= len(strategy.canary.steps):
            allowed = arithmetic.tolerated(strategy.canary.steps[step - 1].failure_tolerance, len(moved))
            if bad > allowed:
                return f"{bad} of {len(moved)} nodes of canary step {step} failed, tolerated are {allowed} ({examples})"
        if bad == len(moved) >= 2:
            return f"all {bad} nodes of batch {number} failed ({examples})"
    return ""


def _examples(work: Work) -> str:
    found = [f"{entry.name}: {result.reason}" for _, entry, result in work.entries() if result.state in FAILED]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _good_revisions(work: Work) -> frozenset[str]:
    """Return the assignments that a node may keep when a run is taken back."""
    good = {ASSIGNMENT_NONE}
    if work.stable:
        good.add(work.stable)
    good |= {record.revision for record in work.history if record.kind == "Rollout" and record.result in COMPLETED}
    if work.run is not None:
        good.discard(work.run.revision)
    return frozenset(good)


def _same_node(work: Work, entry: BatchNode) -> Node | None:
    """Return the node of an entry unless it is gone; under another UID it is another node."""
    node = work.seen.nodes.get(entry.name)
    return node if node is not None and node.uid == entry.uid else None


def _move(work: Work, node: Node, target: str) -> None:
    """Bring a node one step nearer to `target`, if it can take one."""
    assignment = work.assignment(node)
    live = {pod.revision for pod in work.pods(node.name) if pod.live}
    step = next_assignment(assignment, target, live, served_by_joiners=bool(work.seen.joiners))
    if step is not None:
        work.moves.append(Assign(node.name, node.uid, assignment, step))


def _create_batch(work: Work, nodes: Iterable[Node], *, step: int, to: Callable[[Node], str]) -> None:
    run, seen = work.run, work.seen
    assert run is not None  # noqa: S101 - callers have a run
    # A batch may have been stored by a process that ended before it could write the status.
    number = max([run.batches, *(batch.spec.batch for batch in work.run_batches())]) + 1
    good = _good_revisions(work)

    def back(node: Node, target: str) -> str:
        if run.kind == "Rollback":
            return target
        assignment = work.assignment(node)
        if assignment is not None and assignment in good:
            return assignment
        return work.stable or ASSIGNMENT_NONE

    for index, page in enumerate(arithmetic.pages(list(nodes)), start=1):
        entries = []
        for node in page:
            target = to(node)
            entries.append(
                BatchNode(
                    name=node.name,
                    uid=node.uid,
                    origin=work.assignment(node) or "",
                    to=target,
                    back=back(node, target),
                )
            )
        spec = RolloutBatchSpec(
            rollout=seen.name,
            run=run.id,
            kind=run.kind,
            version=run.version,
            batch=number,
            page=index,
            step=step,
            started_at=seen.now,
            started_by=run.started_by,
            paused_seconds=work.paused_seconds(),
            nodes=entries,
        )
        work.new_batches.append(CreateBatch(batch_name(seen.name, run.id, number, index), spec))
    work.update_run(batches=number)
    work.gate = f"batch {number} starts"


def _start_run(work: Work, *, kind: RunKind, version: str, revision: str, of_run: int | None = None) -> None:
    seen = work.seen
    last = max([record.id for record in work.history], default=0)
    work.run = RunStatus(
        id=last + 1,
        kind=kind,
        state="Running",
        version=version,
        revision=revision,
        from_revision=work.stable,
        of_run=of_run,
        started_at=seen.now,
        started_by=seen.started_by if kind == "Rollout" else "outrider",
        nodes=len(seen.members),
    )
    work.urgent_status = True
    if kind == "Rollout":
        work.say("Normal", "RunStarted", f"Run {work.run.id}: {len(seen.members)} nodes to {version}")


def _finish(work: Work, state: RunState) -> None:
    work.update_run(state=state, finished_at=work.seen.now, message="")
    work.urgent_status = True


def _end_run(work: Work, result: RunState, message: str) -> None:
    """Put the present run into the history, and close what is open of its records."""
    run = work.run
    assert run is not None  # noqa: S101 - callers have a run
    for batch in work.run_batches():
        results = work.results[batch.name]
        for name, before in results.items():
            if before.state == "Returning":
                results[name] = before.model_copy(update={"state": "Failed"})
            elif before.state not in RESULTS:
                note = "the run ended before the node was touched"
                if before.state != "Pending":
                    note = f"the run ended while the node was on its way ({before.state})"
                results[name] = _result(work, before, "Skipped", "RunEnded", note)
        if work.finished[batch.name] is None:
            work.finished[batch.name] = work.seen.now
            work.urgent_batches.add(batch.name)
    states = [result.state for _, _, result in work.entries()]
    work.history.insert(
        0,
        RunRecord(
            id=run.id,
            kind=run.kind,
            version=run.version,
            revision=run.revision,
            result=result,
            started_at=run.started_at,
            finished_at=run.finished_at or work.seen.now,
            nodes=run.nodes,
            healthy=sum(state == "Succeeded" for state in states),
            failed=sum(state in FAILED for state in states),
            skipped=sum(state == "Skipped" for state in states),
            message=message[:512],
        ),
    )


def _assemble(work: Work) -> Plan:
    seen = work.seen
    records: list[Action] = []
    for batch in seen.batches:
        results = [work.results[batch.name][entry.name] for entry in batch.spec.nodes]
        states = [result.state for result in results]
        finished = work.finished[batch.name]
        record = RolloutBatchStatus(
            state="Finished" if finished else "Running",
            finished_at=finished,
            succeeded=sum(state == "Succeeded" for state in states),
            failed=sum(state in FAILED for state in states),
            skipped=sum(state == "Skipped" for state in states),
            pending=sum(state not in RESULTS and state not in FAILED for state in states),
            nodes=results,
        )
        if record != batch.status:
            records.append(WriteBatch(batch.name, record, urgent=batch.name in work.urgent_batches))
    results_now = [(entry, result) for _, entry, result in work.entries()]
    status = build_status(
        seen,
        run=work.run,
        stable=work.stable,
        stable_version=work.stable_version,
        history=work.history,
        results=results_now,
        gate=work.gate,
    )
    if work.new_batches:
        work.urgent_status = True
    return Plan(
        actions=(*work.prerequisites, *records, *work.new_batches, *work.moves, *work.clean_up),
        status=status,
        events=tuple(work.events),
        urgent_status=work.urgent_status,
        wake_at=min(work.wakes, default=None),
    )
