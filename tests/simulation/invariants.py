"""What must hold in every rollout, each with a name: `INVARIANTS` is the table, the property tests check all of it.

A check gets the trial (and at a deed the action, before it is done), and returns what is wrong, or "".
- plan: a plan was made, nothing of it is done yet.
- deed: an action is about to be done; the world is as the API server has it.
- world: time has passed.
- end: all trouble is over, a person has made a last wish, and it was given time.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Any, Literal

from outrider.api.rollout import BatchNode, NodeResult, RolloutSpec
from outrider.core import batches as arithmetic
from outrider.core import plan as actions
from outrider.core.moves import is_leaving, target_of
from outrider.core.rollout import plan_rollout
from outrider.core.scheduling import why_not_scheduled
from outrider.core.snapshot import Batch
from outrider.core.states import ARRIVING, BARRED, COMPLETED, FAILED, IN_FLIGHT, ONGOING, RESULTS
from outrider.core.windows import is_open
from simulation.fleet import KEY
from simulation.trial import Trial

Check = Callable[..., str]


@dataclass(frozen=True)
class Invariant:
    """One thing that must never be otherwise."""

    name: str
    sentence: str
    when: Literal["plan", "deed", "world", "end"]
    check: Check


# --- helpers ----------------------------------------------------------------------------------------------------------


def entries(trial: Trial, run: int) -> Iterator[tuple[Batch, BatchNode, NodeResult]]:
    """Yield the stored entries of a run, each with what is stored of its result."""
    for batch in trial.world.batches.values():
        if batch.spec.run == run:
            known = {result.name: result for result in batch.status.nodes}
            for entry in batch.spec.nodes:
                yield batch, entry, known.get(entry.name, NodeResult(name=entry.name, state="Pending"))


def entries_of_node(trial: Trial, name: str, uid: str, run: int) -> list[tuple[Batch, BatchNode, NodeResult]]:
    return [(b, e, r) for b, e, r in entries(trial, run) if (e.name, e.uid) == (name, uid)]


def is_departure(action: actions.Action) -> bool:
    """Tell whether a node loses its agent by this patch."""
    return isinstance(action, actions.Assign) and is_leaving(action.after) and not is_leaving(action.before)


def sets_out(action: actions.Action) -> bool:
    """Tell whether a node begins something new by this patch, which is not the end of a move that is half made."""
    return isinstance(action, actions.Assign) and not is_leaving(action.before)


def goal_of(action: actions.Assign) -> str:
    """Return where a node is sent; "" where its label is taken away."""
    return target_of(action.after) if action.after is not None else ""


def stable_then(trial: Trial) -> str | None:
    """Return the stable revision of the moment for which the plan was made; it may complete a run itself."""
    assert trial.seen is not None
    revisions = trial.seen.status.revisions
    return revisions.stable if revisions is not None else None


def applies(trial: Trial, action: actions.Assign) -> bool:
    """Tell whether the API server would take this patch."""
    sim = trial.world.nodes.get(action.node)
    return sim is not None and sim.node.uid == action.uid and sim.node.labels.get(KEY) == action.before


def latest(entries: Iterable[tuple[BatchNode, NodeResult]]) -> list[tuple[BatchNode, NodeResult]]:
    """Return each node's newest entry of a run: one that was left out first and moved later is moved."""
    return list({(entry.name, entry.uid): (entry, result) for entry, result in entries}.values())


# --- on nodes ---------------------------------------------------------------------------------------------------------


def one_agent(trial: Trial) -> str:
    for name, sim in trial.world.nodes.items():
        revisions = {pod.revision for pod in sim.pods}
        if len(revisions) > 1:
            return f"{sorted(revisions)} live on {name}"
    return ""


def two_steps(trial: Trial, action: Any) -> str:
    if not isinstance(action, actions.Assign) or not applies(trial, action) or is_leaving(action.after):
        return ""
    if action.after is None:
        return ""  # its label is taken away: nobody wants it but, if it is of the target, the joiners' DaemonSet
    others = {pod.revision for pod in trial.world.nodes[action.node].pods} - {action.after}
    return f"{action.node} gets {action.after} while {sorted(others)} live there" if others else ""


def only_as_recorded(trial: Trial, action: Any) -> str:
    if not isinstance(action, actions.Assign) or not applies(trial, action):
        return ""
    goal, run = goal_of(action), trial.world.status.run
    if not goal or (action.before is None and goal == stable_then(trial)):
        return ""  # a joiner, or one that has left
    if is_leaving(action.before):
        return ""  # `half_moves` and `way_back` look at these
    runs = {run.id, run.of_run} if run is not None else set()
    recorded = {
        place
        for number in runs - {None}
        for _, entry, _ in entries_of_node(trial, action.node, action.uid, number or 0)
        for place in (entry.to, entry.back)
    }
    return "" if goal in recorded else f"{action.node} leaves for {goal}, which no stored batch of {runs} says"


def same_node(trial: Trial, action: Any) -> str:
    if not isinstance(action, actions.Assign) or trial.seen is None:
        return ""
    node = trial.seen.nodes.get(action.node)
    seen_as_it_says = node is not None and (node.uid, node.labels.get(KEY)) == (action.uid, action.before)
    return "" if seen_as_it_says else f"the patch of {action.node} does not carry what was seen"


def never_more_out(trial: Trial, action: Any) -> str:
    """Only in calm trials is it known whose doing it is that an agent is away."""
    if not trial.calm or not is_departure(action) or not applies(trial, action):
        return ""
    world, run = trial.world, trial.world.status.run
    if run is None or action.before is None:
        return ""
    mine = entries_of_node(trial, action.node, action.uid, run.id)
    if not mine:
        return ""
    if trial.known_result(mine[-1][0].name, action.node) == "Returning":
        return ""  # it is without a working agent already
    number = mine[-1][0].spec.batch
    stored = sum(entry.name != "" for batch, entry, _ in entries(trial, run.id) if batch.spec.batch == number)
    limit = min(stored, arithmetic.in_flight_limit(world.spec, max(run.nodes, 1)))
    if arithmetic.has_window(world.spec):
        limit = arithmetic.in_flight_limit(world.spec, max(run.nodes, 1))
    if mine[-1][0].spec.step:
        limit = stored
    own = {entry.name for _, entry, _ in entries(trial, run.id)}
    # What is not urgent is known to the operator before it is stored.
    known = [
        world.pending.get(batch.name, batch.status) for batch in world.batches.values() if batch.spec.run == run.id
    ]
    flying = {result.name for status in known for result in status.nodes if result.state in IN_FLIGHT}
    between = {name for name in world.nodes if is_leaving(world.assignment(name))}
    away = (flying | (between & own)) - {action.node}
    elsewhere = between - own
    if len(away) + 1 > limit:
        return f"{action.node} leaves as number {len(away) + 1} of batch {number}, allowed are {limit}"
    size = max(_size(trial, mine[-1][0]), len(elsewhere) + 1)
    if len(away) + len(elsewhere) + 1 > size:
        return f"{len(away) + len(elsewhere) + 1} nodes without an agent, allowed are {size}"
    return ""


def _size(trial: Trial, batch: Batch, *, own: bool = True, spec: RolloutSpec | None = None) -> int:
    spec, run = spec or trial.world.spec, trial.world.status.run
    assert run is not None
    if spec.strategy.type == "Full":
        return max(1, len(trial.world.nodes)) if own else arithmetic.in_flight_limit(spec, max(run.nodes, 1))
    sizes = [arithmetic.rolling_size(spec, arithmetic.size_basis(run))]
    sizes += [arithmetic.canary_size(spec, step, run.nodes) for step in range(1, arithmetic.canary_steps(spec) + 1)]
    # The person may have changed the size since the batch was made.
    return max(*sizes, len(batch.spec.nodes) if own else 0, 1)


def batch_size(trial: Trial, action: Any) -> str:
    if not isinstance(action, actions.CreateBatch) or trial.seen is None or action.name in trial.world.batches:
        return ""
    spec, run = trial.seen.spec, trial.plan.status.run if trial.plan else None
    if run is None or spec.strategy.type == "Full" or action.spec.page > 1:
        return ""
    if arithmetic.has_window(spec) and not action.spec.step:
        return ""  # nodes are recorded ahead of their moves
    results = {}
    if trial.plan is not None:
        results = {
            each.name: each.state
            for a in trial.plan.actions
            if isinstance(a, actions.WriteBatch)
            for each in a.status.nodes
        }
    step = action.spec.step
    allowed = (
        arithmetic.canary_size(spec, step, run.nodes)
        if step
        else arithmetic.rolling_size(spec, arithmetic.size_basis(run))
    )
    template = trial.seen.spec.template.get("spec") or {}
    nodes = [trial.seen.nodes[e.name] for e in action.spec.nodes if results.get(e.name) != "Skipped"]
    movable = [node for node in nodes if node.ready and not why_not_scheduled(template, node)]
    trial.allowed[action.spec.run, action.spec.batch] = allowed
    if len(movable) > allowed and action.spec.kind == "Rollout":
        return f"batch {action.spec.batch} has {len(movable)} nodes that can be moved, allowed are {allowed}"
    return ""


def never_more_at_once(trial: Trial, action: Any) -> str:
    """However long ago the batch was made, and whatever became of its nodes meanwhile."""
    run = trial.world.status.run
    if not is_departure(action) or not applies(trial, action) or run is None or run.kind != "Rollout":
        return ""
    mine = entries_of_node(trial, action.node, action.uid, run.id)
    if not mine or goal_of(action) != mine[-1][1].to:
        return ""
    if trial.known_result(mine[-1][0].name, action.node) == "Skipped":
        return ""  # its batch has left it out, and it is welcomed like one that joins
    batch = mine[-1][0].spec
    # The person may have changed the size after the plan was made.
    specs = [trial.world.spec, *([trial.seen.spec] if trial.seen is not None else [])]
    sizes = (_size(trial, mine[-1][0], own=False, spec=spec) for spec in specs)
    allowed = max(trial.allowed.get((batch.run, batch.batch), 0), *sizes)
    flying = {
        entry.name
        for page, entry, _ in entries(trial, run.id)
        if page.spec.batch == batch.batch and trial.known_result(page.name, entry.name) in IN_FLIGHT
        if (entry.name, entry.uid) not in trial.found_on  # a stranger has put it there
    }
    if len(flying | {action.node}) > allowed:
        return f"{len(flying | {action.node})} nodes of batch {batch.batch} are on their way, allowed are {allowed}"
    return ""


def dead_left_alone(trial: Trial, action: Any) -> str:
    if not is_departure(action) or trial.seen is None or action.before is None:
        return ""
    node = trial.seen.nodes[action.node]
    run = trial.plan.status.run if trial.plan else None
    going_back = (
        run is None
        or run.kind == "Rollback"
        # Who failed and is tried again goes back first, wherever he failed.
        or any(
            result.state in {*FAILED, "Retrying"}
            for _, _, result in entries_of_node(trial, action.node, action.uid, run.id)
        )
    )
    if going_back:
        return ""
    if not node.ready:
        return f"{action.node} is not Ready, and its agent is taken away"
    why = why_not_scheduled(trial.seen.spec.template.get("spec") or {}, node)
    return f"{action.node} loses an agent that could not come back: {why}" if why else ""


def not_towards_barred(trial: Trial, action: Any) -> str:
    if not sets_out(action) or trial.seen is None:
        return ""
    goal = goal_of(action)
    phase = trial.seen.phase_of(goal)
    return f"{action.node} sets out for {goal}, which is {phase}" if phase in BARRED else ""


def way_back(trial: Trial, action: Any) -> str:
    """Nodes that a stranger has put somewhere may be found there, and go back there."""
    if not isinstance(action, actions.Assign) or not applies(trial, action):
        return ""
    run, goal = trial.world.status.run, goal_of(action)
    if run is None or goal in trial.ever_stable or goal in trial.found_on.values():
        return ""
    mine = entries_of_node(trial, action.node, action.uid, run.id)
    is_way_back = run.kind == "Rollback" or (mine and mine[-1][2].state in FAILED)
    if is_way_back and not (is_leaving(action.before) and target_of(action.before or "") == goal):
        return f"{action.node} goes back to {goal}, which no run has completed"
    return ""


def all_go_back(trial: Trial) -> str:
    """Who failed to return has its record in the rollback; whom a stranger has put there is the stranger's."""
    assert trial.seen is not None
    run = trial.seen.status.run
    if run is None or run.kind != "Rollback" or run.cause == "Requested" or run.state not in COMPLETED:
        return ""
    recorded = {(entry.name, entry.uid) for _, entry, _ in entries(trial, run.id)}
    left = [
        entry.name
        for batch, entry, result in entries(trial, run.of_run or 0)
        if batch.spec.purpose == "Update" and result.started_at is not None
        if (entry.name, entry.uid) not in recorded and (entry.name, entry.uid) not in trial.found_on
        if (node := trial.seen.nodes.get(entry.name)) is not None and node.uid == entry.uid
        if target_of(node.labels.get(KEY) or "") == entry.to == run.revision
    ]
    return f"run {run.of_run} was taken back, and {left} are where it brought them" if left else ""


def prepared_first(trial: Trial, action: Any) -> str:
    if not isinstance(action, actions.Assign) or not sets_out(action) or trial.seen is None or trial.plan is None:
        return ""
    run = trial.plan.status.run
    if run is None or run.kind != "Rollout" or not trial.seen.spec.pre_pull or run.revision == run.from_revision:
        return ""
    mine = [result for _, _, result in entries_of_node(trial, action.node, action.uid, run.id)]
    if goal_of(action) != run.revision or not mine or mine[-1].state in {*FAILED, "Retrying"}:
        return ""  # it joins, or goes back
    if action.before is None and run.revision == stable_then(trial):
        return ""  # it had been left out, and joins the fleet now that the run has its end
    known = [
        batch.results[action.node].state
        for batch in trial.seen.batches
        if batch.spec.run == run.id and action.node in batch.results
    ]
    if known and known[-1] == "Stopping":
        return ""  # it was to set out already, and the patch was lost
    if (action.uid, run.revision) in trial.prepared:
        return ""
    return f"{action.node} sets out for {run.revision}, and was not prepared for it"


def joiners_get_the_stable(trial: Trial, action: Any) -> str:
    if not isinstance(action, actions.Assign) or action.before is not None or not applies(trial, action):
        return ""
    goal, run = goal_of(action), trial.world.status.run
    stable = stable_then(trial)
    if goal == stable or stable is None:
        return ""
    if run is not None and entries_of_node(trial, action.node, action.uid, run.id):
        return ""
    return f"{action.node} joins and gets {goal}, stable is {stable}"


# --- on records -------------------------------------------------------------------------------------------------------


def verdict_is_stored(trial: Trial, action: Any) -> str:
    if not is_departure(action) or not applies(trial, action) or trial.plan is None:
        return ""
    run = trial.plan.status.run
    if run is None or run.kind != "Rollout":
        return ""
    mine = entries_of_node(trial, action.node, action.uid, run.id)
    if not mine:
        return ""
    _, entry, result = mine[-1]
    if goal_of(action) != entry.back or entry.back == entry.to or action.before != entry.to:
        return ""
    # Who failed and is tried again goes back first.
    is_known = result.state in {*FAILED, "Retrying"}
    return "" if is_known else f"{action.node} is sent back, and its record says {result.state}"


def rollback_has_a_cause(trial: Trial, action: Any) -> str:
    if not isinstance(action, actions.CreateBatch) or action.spec.kind != "Rollback" or trial.seen is None:
        return ""
    run = trial.world.status.run
    if run is None or run.of_run is None or run.started_by != "outrider" or run.requested_by is not None:
        return ""
    if any(result.state in FAILED for _, _, result in entries(trial, run.of_run)):
        return ""
    record = next((each for each in trial.world.status.history if each.id == run.of_run), None)
    if record is not None and "Revoked" in record.message:
        return ""
    return f"run {run.of_run} is taken back, and no stored record says that a node failed"


def healthy_by_evidence(trial: Trial) -> str:
    assert trial.plan is not None
    assert trial.seen is not None
    before = {(b.name, r.name): r.state for b in trial.seen.batches for r in b.status.nodes}
    for action in trial.plan.actions:
        if not isinstance(action, actions.WriteBatch):
            continue
        goals = {entry.name: entry.to for b in trial.seen.batches if b.name == action.name for entry in b.spec.nodes}
        for result in action.status.nodes:
            if result.state != "Succeeded" or before.get((action.name, result.name)) == "Succeeded":
                continue
            goal = goals[result.name]
            good = [
                pod
                for pod in trial.seen.pods.get(result.name, ())
                if pod.revision == goal and pod.ready_since is not None and not pod.terminating
            ]
            since = timedelta(seconds=trial.seen.spec.health.min_ready_seconds)
            if goal != "none" and not any(pod.ready_since + since <= trial.seen.now for pod in good if pod.ready_since):
                return f"{result.name} counts as healthy without a pod that is Ready for long enough"
    return ""


def ids_never_reused(trial: Trial) -> str:
    run = trial.world.status.run
    if run is not None and run.id in trial.runs and trial.runs[run.id] != (run.kind, run.revision, run.started_at):
        return f"run {run.id} was {trial.runs[run.id]}, and is {run.kind} {run.revision}"
    for name, batch in trial.world.batches.items():
        if trial.known_batches.setdefault(name, batch.spec) != batch.spec:
            return f"batch {name} has changed"
    return ""


def one_verdict_each(trial: Trial) -> str:
    for batch in trial.world.batches.values():
        status = batch.status
        total = status.succeeded + status.failed + status.skipped + status.pending
        if status.nodes and total != len(batch.spec.nodes):
            return f"batch {batch.name} counts {total} of {len(batch.spec.nodes)} nodes"
        if status.nodes and [r.name for r in status.nodes] != [e.name for e in batch.spec.nodes]:
            return f"batch {batch.name} does not speak of its nodes"
    return ""


def counts_add_up(trial: Trial) -> str:
    assert trial.plan is not None
    assert trial.seen is not None
    status, seen = trial.plan.status, trial.seen
    run = status.run
    if status.nodes != len(seen.members):
        return f"{status.nodes} nodes in status, {len(seen.members)} in the fleet"
    if sum(each.nodes for each in status.versions) > status.nodes and len(status.versions) < 10:
        return f"versions on {sum(each.nodes for each in status.versions)} of {status.nodes} nodes"
    if run is None:
        return ""
    if run.updated + run.outdated != status.nodes:
        return f"updated {run.updated} and outdated {run.outdated} of {status.nodes}"
    results: dict[str, dict[str, NodeResult]] = {b.name: {r.name: r for r in b.status.nodes} for b in seen.batches}
    stored: list[tuple[str, BatchNode]] = [
        (b.name, entry) for b in seen.batches if b.spec.run == run.id for entry in b.spec.nodes
    ]
    for action in trial.plan.actions:
        if isinstance(action, actions.WriteBatch):
            results[action.name] = {r.name: r for r in action.status.nodes}
        elif isinstance(action, actions.CreateBatch):
            stored += [(action.name, entry) for entry in action.spec.nodes]
    pairs = [(e, results.get(b, {}).get(e.name, NodeResult(name=e.name, state="Pending"))) for b, e in stored]
    mine = latest(pairs)
    touched = {entry.name for entry, _ in mine}
    untouched = sum(name not in touched and seen.nodes[name].labels.get(KEY) != run.revision for name in seen.members)
    if run.kind == "Rollback" or run.state not in ONGOING:
        untouched = 0
    told = run.healthy + run.failed + run.skipped + run.pending
    returning = sum(result.state == "Returning" for _, result in mine)
    unfinished = sum(result.state not in RESULTS and result.state != "Returning" for _, result in mine)
    expected = len(mine) + untouched - (unfinished if run.state not in ONGOING else 0)
    if told != expected:
        return (
            f"healthy {run.healthy} + failed {run.failed} + skipped {run.skipped} + pending {run.pending} = {told}, "
            f"of {len(mine)} nodes in batches ({returning} returning) and {untouched} to come"
        )
    return ""


def stable_by_completion(trial: Trial) -> str:
    assert trial.plan is not None
    assert trial.seen is not None
    before, after = trial.seen.status.revisions, trial.plan.status.revisions
    if before is None or after is None or before.stable == after.stable:
        return ""
    run = trial.plan.status.run
    if run is not None and run.revision == after.stable and run.state in COMPLETED and run.kind == "Rollout":
        return ""
    # A person may have a completed run taken back: then what it started from is stable again.
    if run is not None and run.kind == "Rollback" and (after.stable or "none") in trial.ever_stable:
        return ""
    return f"stable becomes {after.stable} without a completed run of it"


# --- on what holds ----------------------------------------------------------------------------------------------------


def nothing_leaves_in_a_pause(trial: Trial) -> str:
    assert trial.plan is not None
    assert trial.seen is not None
    if not trial.seen.spec.paused:
        return ""
    gone = [move.node for move in trial.plan.moves if is_departure(move) and move.before is not None]
    return f"spec.paused, and {gone} leave" if gone else ""


def nothing_changes_in_a_freeze(trial: Trial) -> str:
    assert trial.plan is not None
    assert trial.seen is not None
    if not trial.seen.spec.frozen:
        return ""
    changed = [move.node for move in trial.plan.moves if sets_out(move)]
    if changed:
        return f"spec.frozen, and {changed} are changed"
    started = any(isinstance(action, actions.CreateBatch) for action in trial.plan.actions)
    return "spec.frozen, and a batch starts" if started else ""


def windows_hold(trial: Trial) -> str:
    assert trial.plan is not None
    assert trial.seen is not None
    seen, run = trial.seen, trial.plan.status.run
    windows = [(window, UTC) for window in seen.spec.windows]
    if not windows or is_open(windows, seen.now) or run is None or run.kind == "Rollback":
        return ""
    if run.revision == run.from_revision:
        return ""  # a return to what is stable is not held
    gone = [
        move.node
        for move in trial.plan.moves
        if is_departure(move) and move.before is not None and goal_of(move) == run.revision
    ]
    return f"no window is open, and {gone} leave for {run.revision}" if gone else ""


def not_before(trial: Trial) -> str:
    assert trial.plan is not None
    assert trial.seen is not None
    start, before, after = trial.seen.spec.not_before, trial.seen.status.run, trial.plan.status.run
    if start is None or trial.seen.now >= start or after is None or after.kind == "Rollback":
        return ""
    is_new = before is None or before.id != after.id
    if is_new and after.revision != after.from_revision:
        return f"run {after.id} starts before {start}"
    return ""


def steps_are_approved(trial: Trial) -> str:
    assert trial.plan is not None
    assert trial.seen is not None
    run, canary = trial.seen.status.run, trial.seen.spec.strategy.canary
    new = [a for a in trial.plan.actions if isinstance(a, actions.CreateBatch) and a.spec.kind == "Rollout"]
    if run is None or canary is None or not new or run.revision == run.from_revision or new[0].spec.run != run.id:
        return ""
    if run.revision == stable_then(trial):
        return ""  # it has completed: its steps are over
    after = {a.name: a.status for a in trial.plan.actions if isinstance(a, actions.WriteBatch)}
    taken = {
        batch.spec.step
        for batch in trial.seen.batches
        if batch.spec.run == run.id
        and batch.spec.step
        and any(result.state != "Skipped" for result in after.get(batch.name, batch.status).nodes)
    }
    approved = {approval.step for approval in run.approvals}
    missing = [
        step
        for step in sorted(taken)
        if step <= len(canary.steps) and canary.steps[step - 1].require_approval and step not in approved
    ]
    return f"batch {new[0].spec.batch} starts, and step {missing[0]} is not approved" if missing else ""


def nothing_starts_in_a_pause(trial: Trial) -> str:
    assert trial.plan is not None
    assert trial.seen is not None
    if trial.seen.spec.paused and any(isinstance(a, actions.CreateBatch) for a in trial.plan.actions):
        return "spec.paused, and a batch starts"
    if trial.seen.spec.paused and any(isinstance(a, actions.PrepareNodes) for a in trial.plan.actions):
        return "spec.paused, and nodes are prepared"
    return ""


def nothing_new_over_tolerance(trial: Trial) -> str:
    assert trial.plan is not None
    assert trial.seen is not None
    run = trial.seen.status.run
    if run is None or run.kind != "Rollout" or run.state not in ONGOING or run.revision == run.from_revision:
        return ""
    failed = len(
        {
            (entry.name, entry.uid)
            for batch in trial.seen.batches
            if batch.spec.run == run.id
            for entry, result in zip(batch.spec.nodes, batch.status.nodes, strict=False)
            if result.state in FAILED
        }
    )
    allowed = arithmetic.tolerated(trial.seen.spec.strategy.failure_tolerance, run.nodes)
    new = [a for a in trial.plan.actions if isinstance(a, actions.CreateBatch) and a.spec.run == run.id]
    if failed > allowed and new:
        return f"{failed} of {run.nodes} nodes failed, tolerated are {allowed}, and batch {new[0].spec.batch} starts"
    return ""


def batch_after_batch(trial: Trial) -> str:
    assert trial.plan is not None
    assert trial.seen is not None
    new = [a for a in trial.plan.actions if isinstance(a, actions.CreateBatch)]
    if not new:
        return ""
    windowed = arithmetic.has_window(trial.seen.spec) and not new[0].spec.step
    results: dict[str, list[NodeResult]] = {b.name: list(b.status.nodes) for b in trial.seen.batches}
    for action in trial.plan.actions:
        if isinstance(action, actions.WriteBatch):
            results[action.name] = list(action.status.nodes)
    for batch in trial.seen.batches:
        if batch.spec.run != new[0].spec.run or (windowed and not batch.spec.step):
            continue  # in a window the next leaves as soon as one is done: `never_more_out` bounds it
        if len(results[batch.name]) < len(batch.spec.nodes):
            return f"batch {new[0].spec.batch} starts before batch {batch.spec.batch} has been looked at"
        under_way = [r.name for r in results[batch.name] if r.state not in RESULTS]
        if under_way:
            return f"batch {new[0].spec.batch} starts while {under_way} of batch {batch.spec.batch} are under way"
    return ""


def soaked(trial: Trial) -> str:
    assert trial.plan is not None
    assert trial.seen is not None
    new = [a for a in trial.plan.actions if isinstance(a, actions.CreateBatch) and a.spec.kind == "Rollout"]
    run, strategy = trial.plan.status.run, trial.seen.spec.strategy
    if not new or run is None or strategy.canary is None or run.revision == run.from_revision:
        return ""
    last = [b for b in trial.seen.batches if b.spec.run == run.id]
    if not last:
        return ""
    step = last[-1].spec.step
    after = {a.name: a.status for a in trial.plan.actions if isinstance(a, actions.WriteBatch)}
    statuses = [after.get(b.name, b.status) for b in last if b.spec.batch == last[-1].spec.batch]
    ended = [status.finished_at for status in statuses]
    moved = any(result.state != "Skipped" for status in statuses for result in status.nodes)
    if not step or step > len(strategy.canary.steps) or not moved:
        return ""
    soak = timedelta(seconds=strategy.canary.steps[step - 1].soak_seconds)
    if any(end + soak > trial.seen.now if end is not None else soak for end in ended):
        return f"batch {new[0].spec.batch} starts before canary step {step} was watched for {soak}"
    return ""


def deadlines_fire(trial: Trial) -> str:
    """Whatever else hangs: who is on the way for too long gets a verdict. In a pause the clock stands."""
    assert trial.seen is not None
    assert trial.plan is not None
    seen, run = trial.seen, trial.seen.status.run
    if run is None or run.state not in ONGOING or run.paused_since is not None or seen.spec.paused or seen.spec.frozen:
        return ""
    after = {a.name: a.status for a in trial.plan.actions if isinstance(a, actions.WriteBatch)}
    if trial.plan.status.run is None or trial.plan.status.run.id != run.id:
        return ""
    limit = timedelta(seconds=seen.spec.health.timeout_seconds)
    for batch in seen.batches:
        if batch.spec.run != run.id:
            continue
        for result in after.get(batch.name, batch.status).nodes:
            if result.state not in ARRIVING | {"Stopping"} or result.reason == "MinReady":
                continue
            if result.name in seen.under_way:
                continue  # a patch was sent, and its answer is due: only then is known where the node is
            begun = result.started_at or batch.spec.started_at
            if seen.observing_since is not None:
                begun = max(begun, seen.observing_since)
            paused = timedelta(seconds=max(0, run.paused_seconds - result.paused_seconds))
            if seen.now > begun + limit + paused + timedelta(seconds=1):
                return f"{result.name} is {result.state} ({result.reason}) since {begun}, at {seen.now} still"
    return ""


def half_moves(trial: Trial) -> str:
    """A node between two revisions whose pods have ended goes on within a few passes, whatever holds the run."""
    world = trial.world
    if trial.crashing or trial.stale or world.refuse:
        trial.idle.clear()
        return ""
    waiting = {
        name
        for name, sim in world.nodes.items()
        if is_leaving(world.assignment(name)) and not sim.pods and sim.node.ready and name not in world.sent
    }
    trial.idle = {name: trial.idle.get(name, 0) + 1 for name in waiting}
    late = [name for name, passes in trial.idle.items() if passes > 3]
    return f"{late} wait between two revisions for nothing" if late else ""


def same_plan(trial: Trial) -> str:
    assert trial.seen is not None
    if trial.tally.plans % 8:
        return ""
    return "" if plan_rollout(trial.seen) == trial.plan else "the same snapshot gave another plan"


def once_is_enough(trial: Trial, action: Any) -> str:
    """What is done a second time is refused, or changes nothing: tried for moves, which are what matters."""
    if not isinstance(action, actions.Assign) or not applies(trial, action):
        return ""
    return "" if action.before != action.after else f"{action.node} is given what it has"


# --- at the end -------------------------------------------------------------------------------------------------------


def reached(trial: Trial) -> str:
    world = trial.world
    wanted = f"r-{world.spec.version}"
    elsewhere = {name: world.assignment(name) for name in world.nodes if world.assignment(name) != wanted}
    run = world.status.run
    if elsewhere:
        return f"wanted is {wanted}, and there are {elsewhere}; run {run}; {world.status.phase}: {_ready(trial)}"
    if world.status.phase != "Completed":
        return f"all nodes run {wanted}, and the phase is {world.status.phase}: {_ready(trial)}"
    return ""


def _ready(trial: Trial) -> str:
    return next((c.message for c in trial.world.status.conditions if c.type == "Ready"), "")


def nothing_left_over(trial: Trial) -> str:
    world = trial.world
    left = [name for name in world.nodes if is_leaving(world.assignment(name))]
    if left:
        return f"{left} are between two revisions"
    kept = {each.id for each in world.status.history} | ({world.status.run.id} if world.status.run else set())
    if world.prepare_sets:
        return f"{sorted(world.prepare_sets)} prepare nodes, and no run is under way"
    strays = [name for name, batch in world.batches.items() if batch.spec.run not in kept]
    return f"{strays} belong to runs that history has forgotten" if strays else ""


def status_tells_the_truth(trial: Trial) -> str:
    world = trial.world
    truth: dict[str, int] = {}
    for sim in world.nodes.values():
        for revision in {pod.revision for pod in sim.pods if pod.gone_at is None}:
            truth[world.revisions[revision]] = truth.get(world.revisions[revision], 0) + 1
    told = {each.version: each.nodes for each in world.status.versions}
    return "" if told == truth else f"status says {told}, and there are {truth}"


INVARIANTS = (
    Invariant("OneAgent", "Never do two revisions live on a node.", "world", one_agent),
    Invariant("TwoSteps", "A node gets a revision only when no pod of another lives on it.", "deed", two_steps),
    Invariant(
        "OnlyAsRecorded",
        "A node is moved only as the member of a stored batch of this run, or welcomed to the stable revision.",
        "deed",
        only_as_recorded,
    ),
    Invariant(
        "AsItWasSeen",
        "Every patch carries the node's UID and the assignment that it was decided on.",
        "deed",
        same_node,
    ),
    Invariant(
        "NeverMoreOut",
        "Never are more nodes without an agent because of us than the batch, or maxInFlight, allows.",
        "deed",
        never_more_out,
    ),
    Invariant(
        "NeverMoreAtOnce",
        "Never are more nodes of a batch on their way than its step, or batchSize, allowed when it was made.",
        "deed",
        never_more_at_once,
    ),
    Invariant("BatchSize", "No batch has more nodes than its step, or batchSize, says.", "deed", batch_size),
    Invariant(
        "DeadLeftAlone",
        "No agent is taken from a node that is not Ready, or where it could not be scheduled again.",
        "deed",
        dead_left_alone,
    ),
    Invariant(
        "NotTowardsBarred", "No node sets out for a version that is Withdrawn or Revoked.", "deed", not_towards_barred
    ),
    Invariant(
        "WayBack",
        "A node goes back only to what a completed run brought, to what it was found on, or to none.",
        "deed",
        way_back,
    ),
    Invariant(
        "AllGoBack",
        "When a run was taken back, no node is where it brought it, unless its record says why.",
        "plan",
        all_go_back,
    ),
    Invariant(
        "JoinersGetStable",
        "A node that joins gets the stable revision, or waits to be a member of a batch.",
        "deed",
        joiners_get_the_stable,
    ),
    Invariant(
        "PreparedFirst",
        "No node of a run with prePull sets out before the pod that prepares it was seen Ready.",
        "deed",
        prepared_first,
    ),
    Invariant(
        "VerdictStored",
        "A node is sent back only when its stored record says that it failed.",
        "deed",
        verdict_is_stored,
    ),
    Invariant(
        "RollbackHasACause",
        "A run is taken back only when stored records say that nodes failed, or its version "
        "is Revoked, or a person asked.",
        "deed",
        rollback_has_a_cause,
    ),
    Invariant(
        "HealthyByEvidence",
        "A node counts as healthy only with a pod of the right revision that is Ready for minReadySeconds.",
        "plan",
        healthy_by_evidence,
    ),
    Invariant(
        "IdsNeverReused",
        "Numbers of runs and names of batches are never used again for something else.",
        "world",
        ids_never_reused,
    ),
    Invariant("OneVerdictEach", "A batch's counts are of its nodes, each once.", "world", one_verdict_each),
    Invariant(
        "CountsAddUp",
        "Healthy, failed, skipped and pending are all nodes of the run, each once; updated and "
        "outdated all of the fleet.",
        "plan",
        counts_add_up,
    ),
    Invariant(
        "StableByCompletion",
        "Only a run that completed makes its revision the stable one; a rollback by request, what that started from.",
        "plan",
        stable_by_completion,
    ),
    Invariant("PauseHolds", "In a pause no node leaves its revision.", "plan", nothing_leaves_in_a_pause),
    Invariant("PauseStartsNothing", "In a pause no batch starts.", "plan", nothing_starts_in_a_pause),
    Invariant(
        "FreezeHolds",
        "While spec.frozen is true no node sets out for anything, and no batch starts.",
        "plan",
        nothing_changes_in_a_freeze,
    ),
    Invariant(
        "WindowsHold",
        "Outside the windows no node leaves for the version of a run; ways back are open at any time.",
        "plan",
        windows_hold,
    ),
    Invariant("NotBefore", "No run to something new starts before notBefore.", "plan", not_before),
    Invariant(
        "StepsApproved",
        "No batch follows a canary step that a person has to approve and has not.",
        "plan",
        steps_are_approved,
    ),
    Invariant(
        "ToleranceHolds",
        "Once more nodes failed than tolerated, the run starts no further batch.",
        "plan",
        nothing_new_over_tolerance,
    ),
    Invariant(
        "BatchAfterBatch",
        "A batch starts only when every node of those before it has its result.",
        "plan",
        batch_after_batch,
    ),
    Invariant("Soaked", "A batch starts only when the canary step before it was watched for its time.", "plan", soaked),
    Invariant(
        "DeadlinesFire",
        "A node that is on its way for longer than its timeout gets its verdict, whatever else hangs.",
        "plan",
        deadlines_fire,
    ),
    Invariant("HalfMovesEnd", "A move that is half made is finished, whatever holds the run.", "world", half_moves),
    Invariant("SamePlan", "The same snapshot gives the same plan.", "plan", same_plan),
    Invariant(
        "OnceIsEnough",
        "Executing a plan twice changes nothing: every patch changes what it is conditional on.",
        "deed",
        once_is_enough,
    ),
    Invariant("LastWish", "When all trouble is over, every node runs what a person wanted last.", "end", reached),
    Invariant(
        "NothingLeftOver",
        "In the end no node is between two revisions, and no record is without its run.",
        "end",
        nothing_left_over,
    ),
    Invariant(
        "StatusTellsTheTruth", "What status says runs on the nodes is what runs there.", "end", status_tells_the_truth
    ),
)
"""Every one is checked in every trial, at every moment of its kind."""
