"""`plan_rollout`: from one look at a fleet to what to do now.

Assumptions:
- The snapshot is one moment. It may be behind the cluster; every action carries what it was decided on, and is refused
  by the API server if that is no longer so.
- Records (RolloutBatches, status) are stored before the moves of the same plan are made.
- Whoever executes plans for one Rollout does so alone.

Invariants:
- A node is moved only as a member of a stored batch (or welcomed to the stable revision when it has no assignment).
- Never more nodes without a working agent because of us than the batch, the window or `maxInFlight` allows.
- A verdict that is acted on was stored before.
- A node goes back only to a revision from a completed run, or to none.
- No node sets out for a version that is Withdrawn or Revoked (`move` sees to it, whoever asks).
- Half-made moves are always finished, whatever else holds the run.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta

from outrider.api.names import ASSIGNMENT_LEGACY, ASSIGNMENT_NONE
from outrider.api.rollout import BatchNode, CompletedRevision, NodeResult, RolloutBatchStatus, RunState, RunStatus
from outrider.core import adoption, window
from outrider.core import batches as arithmetic
from outrider.core.adoption import give_back, start_next_give_back_batch, take_over
from outrider.core.analysis import ask_analyses, hear_answers, wait_for_analyses, why_analysis_failed
from outrider.core.canary import why_no_canary
from outrider.core.counts import count_agents
from outrider.core.deletion import let_go
from outrider.core.fleet import is_excluded
from outrider.core.gates import find_early_start, keep_to_windows, wait_for_approval, wait_for_window, why_shut
from outrider.core.judgement import judge_nodes, since_observed, tell_end_of_batch, why_over_tolerance, with_state
from outrider.core.leavers import remove_leavers, reopen
from outrider.core.moves import is_leaving, is_ready, leaving, target_of
from outrider.core.plan import (
    Action,
    CreateRevision,
    DeleteBatch,
    DeleteRevision,
    Plan,
    WriteBatch,
)
from outrider.core.prepare import (
    clear_preparations,
    is_due,
    is_prepared,
    note_waiting,
    prepare_nodes,
    was_never_touched,
)
from outrider.core.probes import probe_agents
from outrider.core.requests import answer_requests
from outrider.core.rollout_status import Tally, build_status, tell_changes
from outrider.core.runs import end_run, finish_run, known_revisions, start_run, trim_history
from outrider.core.selection import (
    choose_candidates,
    create_batch,
    create_batches,
    next_size,
    order_candidates,
    remaining_nodes,
)
from outrider.core.snapshot import Batch, Hindrance, Node, RolloutSnapshot
from outrider.core.standing import (
    find_deadlock,
    find_verification_hindrance,
    find_version_hindrance,
    request_verification,
    tell_blocked_returns,
    tell_required_returns,
)
from outrider.core.states import COMPLETED, FAILED, NOT_BROUGHT, ONGOING, UNDECIDED
from outrider.core.takeback import result_of, start_next_batch_back
from outrider.core.welcome import mark_entrants, welcome_joiners
from outrider.core.words import count_nodes
from outrider.core.work import (
    Work,
    bad_revisions,
    check_breach,
    find_phase,
    is_barred,
    is_direct,
    is_for,
    is_requested,
    move,
    name_versions,
    same_node,
    why_skip,
)

Policy = Callable[[Work], None]
"""One question about a fleet, and what follows from the answer."""


def plan_rollout(seen: RolloutSnapshot) -> Plan:
    """Return what to do now. The order of `POLICIES` is the safety argument."""
    revisions = seen.status.revisions
    work = Work(
        seen=seen,
        run=seen.status.run,
        stable=revisions.stable if revisions else None,
        stable_version=revisions.stable_version if revisions else None,
        history=list(seen.status.history),
        last_failure=seen.status.last_failure,
        target=revisions.target if revisions else None,
        completed=known_revisions(seen.status),
        last_handled=seen.status.last_handled,
        last_refused=seen.status.last_refused,
    )
    # A record may be stored before the status that counts it.
    stored = max((batch.spec.batch for batch in work.run_batches()), default=0)
    if work.run is not None and stored > work.run.batches:
        work.update_run(batches=stored)
    work.hindrance = seen.hindrance or find_version_hindrance(work)
    adoption.begin(work)
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


def decide_failure(work: Work) -> None:
    """Have more nodes failed than tolerated, has an analysis, or is the version Revoked? Then the run is over."""
    run = work.run
    if run is None or run.state not in ONGOING or run.kind == "Rollback" or (is_direct(run) and not run.aborted_by):
        return
    revoked = find_phase(work, run.revision) == "Revoked"
    verdict = f"{work.seen.spec.component}-{run.version} is Revoked" if revoked else why_over_tolerance(work, run)
    reason = "VersionRevoked" if revoked else "FailureToleranceExceeded"
    if not verdict and (analysis := why_analysis_failed(work, run)) is not None:
        reason, verdict = analysis
    if run.aborted_by is not None:
        reason, verdict = "RunAborted", f"aborted by {run.aborted_by}"
    if revoked and (work.seen.spec.on_failure == "Pause" or work.spec_paused):
        _turn_back(work)
    if not verdict or (run.state == "Paused" and work.seen.spec.on_failure == "Pause"):
        return
    work.urgent_status = True
    # A run that completed once is not taken back for the nodes that came late; but they stop as well.
    if work.seen.spec.on_failure == "Pause" or run.revision == work.stable:
        if run.state == "Paused":
            return
        paused_since = run.paused_since or work.seen.now
        work.update_run(state="Paused", paused_since=paused_since, reason=reason, message=verdict)
        work.say("Warning", "RunPaused", f"Run {run.id} to {run.version} stopped: {verdict}")
        return
    ended = f"was {verdict}" if run.aborted_by else f"failed: {verdict}"
    if work.spec_paused:  # the rollback is a move too
        work.gate = f"run {run.id} to {run.version} {ended}. What it moved is taken back when the pause ends"
        return
    work.say("Warning", "RollingBack", f"Run {run.id} to {run.version} {ended}. Taking back what it moved")
    work.update_run(reason=reason)
    end_run(work, "RolledBack", verdict)
    backs = {entry.back for _, entry, _ in work.entries()}
    start_run(
        work,
        kind="Rollback",
        cause="Aborted" if run.aborted_by else "RunFailed",
        by=run.aborted_by,
        version=run.version,
        revision=run.revision,
        to_version=name_versions(work, backs),
        of_run=run.id,
    )
    # Asked for, not waited for: what was verified before may come back, unless this shows that it is Withdrawn.
    request_verification(work, [work.seen.revisions[back] for back in backs if back in work.seen.revisions])
    work.ended = True


def _turn_back(work: Work) -> None:
    """Let nodes that are half-way to what is Revoked go back to where they came from."""
    for batch, entry, result in list(work.entries({"Stopping"}, updates=True)):
        node = same_node(work, entry)
        if node is None or work.assignment(node) != leaving(entry.to):
            continue
        if not is_barred(work, entry.back):
            why = f"{work.seen.spec.component}-{batch.spec.version} was Revoked while the node was on its way to it"
            work.results[batch.name][entry.name] = with_state(work, result, "Failed", "VersionRevoked", why)
            work.urgent_batches.add(batch.name)


def supersede(work: Work) -> None:
    """Does the spec want another revision than the run brings? Then a new run starts, once nothing hinders it."""
    seen, run = work.seen, work.run
    if run is not None and is_for(run, seen.wanted) and not _has_nothing_to_hold(work, run):
        return
    if work.hindrance is not None or work.spec_paused:
        return
    if not seen.members:
        return
    work.hindrance = find_early_start(work)
    if work.hindrance is not None:
        if seen.wanted not in seen.revisions:
            # Nobody runs it yet; but a template that the API server refuses is told now, and not when it starts.
            work.prerequisites.append(CreateRevision(seen.wanted))
        return
    work.hindrance = find_verification_hindrance(work)
    if work.hindrance is not None:
        return
    if seen.wanted not in seen.revisions:
        work.prerequisites.append(CreateRevision(seen.wanted))
        work.ended = True
        return
    if run is not None:
        ended: RunState = run.state if run.state not in ONGOING else "Superseded"
        if ended == "Superseded" and run.late_nodes is not None:
            ended = "PartiallySucceeded"  # it had completed, and was only open for nodes that came late
        wish = seen.spec.version
        if wish == run.version and run.kind == "Rollout":
            wish = f"another template or delivery of {wish}"
        if run.state in ONGOING:
            work.say(
                "Normal",
                "RunSuperseded",
                f"Run {run.id} to {run.version} ends unfinished: the Rollout now wants {wish}",
            )
        superseded = f"given up, because the Rollout now wants {wish}" if run.state in ONGOING else ""
        end_run(work, ended, superseded)
    retry_by = run.retry_by if run is not None else None
    start_run(
        work,
        kind="Rollout",
        cause="Retried" if retry_by else "SpecChanged",
        by=retry_by,
        version=seen.spec.version,
        revision=seen.wanted,
    )
    work.ended = True


def _has_nothing_to_hold(work: Work, run: RunStatus) -> bool:
    """Tell whether a rollback that somebody asked for has ended where the spec wants the fleet to be.

    Who has set spec.version back as well is not asked to change it: a run that moves nobody says that all is well.
    """
    wanted = work.seen.wanted
    if run.state != "Succeeded" or not is_requested(run) or wanted != work.stable:
        return False
    return work.count_members_at(wanted) == len(work.seen.members)


def hold(work: Work) -> None:
    """Does a person, or something that is missing, hold the run? Then no new move is made."""
    run = work.run
    if work.spec_paused:
        pause = "frozen by spec.frozen" if work.seen.spec.frozen else "paused by spec.paused"
        if run is not None and run.kind == "Rollback" and run.state == "Running":
            pause += ", ways back included"
        work.gate = f"{pause}; {work.gate}" if work.gate else pause
    elif run is not None and run.state == "Paused":
        work.gate = run.message
    elif work.hindrance is not None and (run is None or run.kind == "Rollout"):
        # A rollback needs nothing of the version that it takes away.
        work.gate = work.hindrance.message
    else:
        return
    _unplan_departures(work)
    _unplan_returns(work)
    work.ended = True


def _unplan_departures(work: Work) -> None:
    """Take back the plans of nodes that were to leave and have not, for they may not now: their clocks do not run."""
    for batch, entry, result in list(work.entries({"Stopping"})):
        node = same_node(work, entry)
        if node is not None and node.name not in work.seen.under_way and _has_not_left(work, entry, node):
            work.results[batch.name][entry.name] = _unplanned(result)


def _unplan_returns(work: Work) -> None:
    """Take back the plans of failed nodes that were to go back and have not left, for they may not now."""
    for batch, entry, result in list(work.entries({"Returning", "Retrying"})):
        node = same_node(work, entry)
        if node is None or node.name in work.seen.under_way or work.assignment(node) != entry.to:
            continue
        if result.state == "Returning":
            work.results[batch.name][entry.name] = _returns_later(result)
        elif result.returning_since is not None:
            work.results[batch.name][entry.name] = result.model_copy(update={"returning_since": None})


def _has_not_left(work: Work, entry: BatchNode, node: Node) -> bool:
    return work.assignment(node) == (entry.origin or None)


def _unplanned(result: NodeResult) -> NodeResult:
    """Return the result of a node as if its move had never been planned."""
    return result.model_copy(update={"state": "Pending", "started_at": None, "reason": "", "message": ""})


def _returns_later(result: NodeResult) -> NodeResult:
    """Return the result of a failed node as if it had not been sent back yet."""
    return result.model_copy(update={"state": "Failed", "returning_since": None})


def send_failed_nodes_back(work: Work) -> None:
    """Which nodes failed within the tolerance? Each goes back at once to where it was good."""
    if not work.is_active:
        return
    broken: list[tuple[Node, str]] = []
    turns = _Turns(work)
    for batch, entry, result in list(work.entries({"Failed", "Returning", "Retrying"})):
        given_up = result.state == "Failed" and result.reason in {"NodeGone", "ReturnFailed"}
        # What runs on a node that could not even be prepared runs on, unless it was no good itself.
        stays = was_never_touched(result) and entry.origin in {"", entry.back}
        if given_up or stays or entry.back == entry.to:
            continue
        node = same_node(work, entry)
        if node is None or work.assignment(node) == entry.back or is_excluded(node):
            continue
        if result.state != "Failed":  # a process may have ended between the record of this and the patch
            if is_barred(work, entry.back) and work.assignment(node) == entry.to and result.state == "Returning":
                work.results[batch.name][entry.name] = _returns_later(result)
            elif is_leaving(work.assignment(node)) or check_breach(work, node, entry.back) is None:
                if result.state == "Retrying" and not turns.take(batch, entry, node):
                    continue
                move(work, node, entry.back)
                if result.returning_since is None:
                    since = {"returning_since": work.seen.now, "paused_seconds": work.paused_seconds()}
                    work.results[batch.name][entry.name] = result.model_copy(update=since)
                    work.urgent_batches.add(batch.name)
            else:
                broken.append((node, entry.back))
            continue
        if is_barred(work, entry.back) and work.assignment(node) != leaving(entry.back):
            continue  # it stays failed where it is, until what it came from may be used again
        if not is_leaving(work.assignment(node)) and check_breach(work, node, entry.back) is not None:
            broken.append((node, entry.back))
            continue
        if not turns.take(batch, entry, node):
            work.returns_waiting = True
            continue
        work.results[batch.name][entry.name] = result.model_copy(
            update={
                "state": "Returning",
                "returning_since": work.seen.now,
                "paused_seconds": work.paused_seconds(),
            }
        )
        work.urgent_batches.add(batch.name)
        move(work, node, entry.back)
    if broken:
        tell_required_returns(work, broken)
        _unplan_departures(work)
        work.ended = True  # nobody else is moved before a person has looked


class _Turns:
    """Whose turn it is to go back: who has no working agent goes at once, who has one needs a place like anybody."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._places: window.Places | None = None

    def take(self, batch: Batch, entry: BatchNode, node: Node) -> bool:
        """Tell whether a node may go back now."""
        if not self._works(entry, node):
            return True
        if self._places is None:
            self._places = window.count_places(self._work)
            # Those that are to be tried again count as on their way, and most have not left.
            self._places.moving -= sum(
                self._works(other, waiting)
                for _, other, _ in self._work.entries({"Retrying"})
                if (waiting := same_node(self._work, other)) is not None
            )
        return self._places.take(self._work, batch, node)

    def _works(self, entry: BatchNode, node: Node) -> bool:
        return self._work.assignment(node) == entry.to and is_ready(self._work.pods(node.name), entry.to)


def close_batches(work: Work) -> None:
    """Has every node of a batch its result? Then the batch is finished; a node that fell ill opens it again."""
    if not work.is_active:
        return
    ended: set[int] = set()
    for batch in work.run_batches():
        done = work.results[batch.name].are_complete
        if done and work.finished[batch.name] is None:
            work.finished[batch.name] = work.seen.now
            if batch.spec.step or not window.rolls_in_a_window(work):
                work.urgent_batches.add(batch.name)  # what the next batch builds on
            ended.add(batch.spec.batch)
        elif not done:
            work.finished[batch.name] = None
    for number in sorted(ended):
        pages = [batch for batch in work.run_batches() if batch.spec.batch == number]
        if all(work.finished[page.name] is not None for page in pages):
            tell_end_of_batch(work, pages)


def move_open_batches(work: Work) -> None:
    """Which nodes of the started batches have not been touched yet? They leave, as many as may be in flight."""
    if not work.is_active or work.run is None:
        return
    _keep_agents_outside_windows(work)
    places = window.count_places(work)
    shut = why_shut(work) is not None
    blocked: list[tuple[str, str]] = []
    broken: list[tuple[Node, str]] = []
    for batch, entry, result in list(work.entries({"Pending", "Stopping"})):
        node = same_node(work, entry)
        if node is None:
            continue
        goes = work.assignment(node) in {entry.to, leaving(entry.to)}
        if result.state == "Stopping" and (goes or node.name in work.seen.under_way):
            continue  # the most of them: its old agent ends
        sets_out = work.run.kind == "Rollback" and result.state == "Pending" and not is_leaving(work.assignment(node))
        if sets_out and check_breach(work, node, entry.to) is not None:
            broken.append((node, entry.to))
            continue
        is_planned = result.state == "Stopping" and _has_not_left(work, entry, node)  # but the patch was not made
        is_blocked = is_barred(work, entry.to)
        if is_blocked and not goes:
            blocked.append((entry.name, entry.to))
        if is_planned and (is_blocked or shut or places.moving > places.limit_of(batch)):
            work.results[batch.name][entry.name] = _unplanned(result)
            places.moving -= 1
            continue
        if is_blocked:
            continue
        if is_planned:
            move(work, node, entry.to)
        if result.state != "Pending":
            continue
        if shut and not is_leaving(work.assignment(node)):
            continue
        is_at_home = not goes and not is_leaving(work.assignment(node))
        if is_at_home and is_due(work, batch, entry) and not is_prepared(work, node):
            note_waiting(work, batch, entry, result, node)  # before it takes a place: others may leave meanwhile
            continue
        if not places.take(work, batch, node):
            continue
        move(work, node, entry.to)
        work.results[batch.name][entry.name] = result.model_copy(
            update={
                "state": "Stopping",
                "reason": "",
                "message": "",
                "started_at": work.seen.now,
                "paused_seconds": work.paused_seconds(),
            }
        )
    work.moving = places.moving
    tell_blocked_returns(work, blocked)
    tell_required_returns(work, broken)


def _keep_agents_outside_windows(work: Work) -> None:
    """Close the records of agents that were to be taken away, and may not now: they are made anew in the next window.

    Open, they would hold up ways back, which may be taken at any time.
    """
    if work.shut is None:
        return
    for batch, entry, result in list(work.entries({"Pending", "Stopping"})):
        node = same_node(work, entry)
        if batch.spec.purpose != "Removal" or node is None or node.name in work.seen.under_way:
            continue
        if _has_not_left(work, entry, node):
            why = "the node keeps its agent: it is outside spec.windows"
            work.results[batch.name][entry.name] = with_state(work, result, "Skipped", "AgentKept", why)


def wait_for_the_batch(work: Work) -> None:
    """Is a batch still under way, or has the last one not been watched long enough? Then the next has to wait."""
    if not work.is_active or work.run is None:
        return
    stored = work.run_batches()
    if open_batches := [batch for batch in stored if work.finished[batch.name] is None]:
        if window.rolls_in_a_window(work) and not any(batch.spec.step for batch in open_batches):
            work.gate = f"{work.moving} nodes are being moved, at most {window.find_limit(work)} at a time"
        else:
            work.gate = f"batch {work.run.batches}: waiting for its nodes to become healthy"
            work.ended = True
        if work.preparing:
            work.gate += f"; {count_nodes(work.preparing)} of it are prepared first, while their agents run on"
        if pending := work.count({"Pending"}):
            wait_for_window(work, f"{pending} nodes of batch {work.run.batches} have not set out")
        return
    if not stored or is_direct(work.run):
        return
    number = stored[-1].spec.batch
    last = [batch for batch in stored if batch.spec.batch == number]
    if all(work.results[batch.name].count({"Skipped"}) == len(batch.spec.nodes) for batch in last):
        return
    step = last[0].spec.step
    spec = work.seen.spec.strategy
    if step and spec.canary and step <= len(spec.canary.steps):
        soak = spec.canary.steps[step - 1].soak_seconds
    else:
        soak = spec.rolling.batch_interval_seconds if spec.rolling else 0
        if soak and not remaining_nodes(work):
            soak = 0
    ends = max(finished for batch in last if (finished := work.finished[batch.name])) + timedelta(seconds=soak)
    if work.seen.now < ends:
        what = f"canary step {step}" if step else f"batch {number}"
        work.gate = f"{what} is healthy and watched until {ends:%H:%M:%S} UTC before the next batch"
        work.wakes.append(ends)
        work.ended = True


def wait_for_answers(work: Work) -> None:
    """Is a node being changed that the run may take next? Then it is seen first where that leads."""
    if not work.seen.under_way:
        return
    if work.seen.under_way - {entry.name for _, entry, _ in work.entries(UNDECIDED)}:
        work.ended = True


def start_next_batch(work: Work) -> None:
    """Which nodes come next? Their names, and where each goes and comes from, are stored before the first is moved."""
    run, seen = work.run, work.seen
    if run is None or run.kind != "Rollout" or run.state not in {"Running", *COMPLETED}:
        return
    if seen.wanted not in seen.revisions:
        work.prerequisites.append(CreateRevision(seen.wanted))
        return
    under_way = any(work.finished[batch.name] is None for batch in work.run_batches())
    if run.state != "Running" and under_way:
        reopen(work)  # its late batch was stored, and the process ended before the status could say so
        return
    if run.state == "Running":
        step, size = next_size(work, run)
        if not size or (step and under_way):
            return  # canary steps that a person asks for on the way come when nobody else is moved
    revision, remaining = run.revision, remaining_nodes(work)
    movable = [node for node in remaining if why_skip(work, node) is None]
    if not movable:
        recorded = {entry.name for _, entry, _ in work.entries({"Skipped"})}
        blocked = [node for node in remaining if node.name not in recorded]
        work.gate = find_deadlock(work)
        if blocked and run.state == "Running":
            create_batch(work, blocked, step=0, to=lambda _: revision)
        return
    if wait_for_window(work, f"{len(movable)} nodes have still to set out"):
        return
    if run.state != "Running":
        run = reopen(work)  # nodes that were away when the run completed, or came since, form a late batch of it
    step, size, movable, candidates = choose_candidates(work, run, movable)
    if not candidates:
        work.waiting = why_no_canary(work, step)
        work.gate = work.waiting.message
        work.ended = True
        return
    if step and len(candidates) < min(size, len(movable)):
        work.say(
            "Normal",
            "FewerCanaries",
            f"Run {run.id}, canary step {step}: {len(candidates)} instead of {size} nodes, because no more that "
            "match strategy.canary.nodeSelector can be moved now",
        )
    ordered = order_candidates(work, run, candidates, step)
    create_batches(work, ordered[:size], step=step, to=lambda _: revision)


def start_next_rollback_batch(work: Work) -> None:
    """Which nodes of the failed run have not been taken back yet? Failed ones first, in batches, without canary."""
    run, seen = work.run, work.seen
    if run is None or run.kind != "Rollback" or run.state != "Running" or adoption.is_giving_back(run.revision):
        return
    if is_requested(run):
        start_next_batch_back(work, run)
        return
    _, size = next_size(work, run)
    if not size:
        return
    # A process may have ended between closing these records and storing that the run ended: they are open still.
    # Who is not excluded any more is taken after all.
    taken = {
        (entry.name, entry.uid)
        for _, entry, result in work.entries()
        if result.state != "Skipped" or result.reason not in {"RunEnded", "AgentKept"}
    }
    origin = {
        (entry.name, entry.uid): (entry, work.results[batch.name][entry.name])
        for batch in work.update_batches(run.of_run)
        for entry in batch.spec.nodes
    }
    bad = bad_revisions(work)
    failed: list[Node] = []
    others: list[Node] = []
    for node in seen.nodes.values():
        identity = (node.name, node.uid)
        assignment = work.assignment(node)
        if identity in taken or assignment is None or is_excluded(node):
            continue
        known = origin.get(identity)
        # What the run brought goes, even if a run before it had completed with the same.
        was_moved = known is not None and known[0].to == target_of(assignment) and known[1].started_at is not None
        if target_of(assignment) not in bad and not was_moved:
            continue
        (failed if known is not None and known[1].state in FAILED else others).append(node)
    left = arithmetic.order_nodes(failed, seen.uid, run.id) + sorted(
        arithmetic.order_nodes(others, seen.uid, run.id), key=lambda node: not window.is_away(work, node, bad)
    )

    def back(node: Node) -> str:
        known = origin.get((node.name, node.uid))
        return known[0].back if known is not None else (work.stable or ASSIGNMENT_NONE)

    tell_blocked_returns(work, [(node.name, back(node)) for node in left if is_barred(work, back(node))])
    left = [node for node in left if not is_barred(work, back(node))]
    broken = [(node, back(node)) for node in left if check_breach(work, node, back(node)) is not None]
    tell_required_returns(work, broken)
    stuck = {node.name for node, _ in broken}
    left = [node for node in left if node.name not in stuck]
    if not left:
        return
    create_batches(work, left[:size], step=0, to=back)


def complete(work: Work) -> None:
    """Is nothing left to do? Then the run has its result."""
    run = work.run
    if run is None or run.state != "Running" or work.new_batches or work.prerequisites or work.obstacle:
        return
    if work.returns_waiting:
        return
    if any(work.finished[batch.name] is None for batch in work.run_batches()):
        return
    if adoption.is_giving_back(run.revision):
        adoption.finish_giving_back(work)
        return
    states = work.states()
    total, failed = states.total(), sum(states[state] for state in FAILED)
    if is_requested(run):
        outcome, counts = result_of(work)
        finish_run(work, outcome)
        then = "The Rollout holds until spec.version, spec.template or spec.delivery changes, or somebody asks to retry"
        if work.run is not None and _has_nothing_to_hold(work, work.run):
            then = "That is what spec.version wants"
        work.say(
            "Warning",
            "RolledBack",
            f"Run {run.id}, asked for by {run.requested_by}, took nodes of run {run.of_run} from {run.version} to "
            f"{run.to_version}: {counts}. {then}",
        )
        return
    if run.kind == "Rollback":
        result: RunState = "Succeeded"
        if failed:
            result = "PartiallySucceeded" if failed < total else "Failed"
        finish_run(work, result)
        work.say(
            "Warning",
            "RolledBack",
            f"Run {run.id} took back {total - failed} of {total} nodes from {run.version}; the Rollout "
            "holds until spec.version or spec.template changes",
        )
        return
    updated = work.count_members_at(run.revision)
    if not updated and failed:
        finish_run(work, "Failed")
        work.say("Warning", "RunFailed", f"Run {run.id}: none of {run.nodes} nodes runs {run.version}, {failed} failed")
        return
    if not updated:
        reasons = Counter(result.reason for _, _, result in work.entries({"Skipped"}, updates=True))
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none is left"
        nobody = f" {work.gate}." if work.gate else ""
        work.gate = (
            f"no node can be moved now: {counts};{nobody} its RolloutBatches say of each node why (kubectl get orb)"
        )
        work.obstacle = work.deadlock or _tell_nobody_movable(work)
        return
    finish_run(work, "PartiallySucceeded" if failed else "Succeeded")
    work.stable, work.stable_version = run.revision, run.version
    others = [one for one in work.completed if one.revision != run.revision]
    work.completed = [CompletedRevision(revision=run.revision, version=run.version, run=run.id), *others]
    note = f", {failed} failed within the tolerance" if failed else ""
    note += f", {states['Skipped']} left out" if states["Skipped"] else ""
    running = count_agents(work.seen).updated
    work.say(
        "Normal", "RunCompleted", f"Run {run.id}: {running} of {len(work.seen.members)} nodes run {run.version}{note}"
    )


def _tell_nobody_movable(work: Work) -> Hindrance | None:
    """Say that a run waits in vain, once it has for as long as a node may take to become healthy."""
    run = work.run
    assert run is not None  # noqa: S101 - the caller has looked
    since = max((at for batch in work.run_batches() if (at := work.finished[batch.name])), default=run.started_at)
    late = since_observed(work, since) + timedelta(seconds=work.seen.spec.health.timeout_seconds)
    if work.seen.now >= late:
        return Hindrance("NoNodeMovable", work.gate, stalled=True)
    work.wakes.append(late)
    return None


def forget(work: Work) -> None:
    """Which records and DaemonSets does nothing name any more? They are deleted."""
    seen = work.seen
    trim_history(work)
    del work.completed[seen.spec.revision_history_limit :]
    kept = {record.id for record in work.history}
    # The DaemonSet that was taken over is its owner's.
    needed = {ASSIGNMENT_LEGACY, seen.wanted, work.stable, *(one.revision for one in work.completed)}
    if (run := work.run) is not None:
        kept |= {run.id, run.of_run or run.id}
        needed |= {run.revision, run.from_revision, run.to_revision}
    # A node that is half-way to where a record brings it arrives first.
    is_old = any(batch.spec.run not in kept for batch in seen.batches)
    under_way = list(work.nodes_between) if is_old else []
    between = {(node.name, node.uid): target_of(work.assignment(node) or "") for node in under_way}
    for batch in seen.batches:
        if batch.spec.run not in kept and not _brings(batch, between):
            work.clean_up.append(DeleteBatch(batch.name))
            continue
        needed |= batch.revisions
    needed |= seen.assigned
    needed |= {target_of(entry) for entry in needed if entry is not None}
    work.clean_up.extend(DeleteRevision(revision) for revision in sorted(seen.revisions) if revision not in needed)


def _brings(batch: Batch, between: Mapping[tuple[str, str], str]) -> bool:
    """Tell whether a batch names a node that is between two revisions for where that goes."""
    goals = ((entry, between.get((entry.name, entry.uid))) for entry in batch.spec.nodes) if between else ()
    return any(goal is not None and goal in {entry.to, entry.back} for entry, goal in goals)


POLICIES: tuple[Policy, ...] = (
    keep_time,  # first, so that every deadline below is measured on a clock that stands still in a pause
    judge_nodes,  # deadlines fire on every pass, before anything that may end the pass early
    probe_agents,  # agents are asked in pauses too, as health is watched there
    hear_answers,  # an answer is recorded before anybody acts on it
    let_go,  # a deleted Rollout starts nothing, not even a rollback
    take_over,  # before any move: what a DaemonSet that was taken over has lost is put back
    clear_preparations,  # before whatever may end the pass: what no run needs any more goes in pauses, too
    answer_requests,  # what people ask for comes before what follows by itself: an abort ends the run that they saw
    decide_failure,  # over the tolerance, or Revoked, nothing new starts, whatever the spec now says
    give_back,  # who gives the DaemonSet back wants no run to anything else
    supersede,  # another wish ends the run before it starts one more batch
    mark_entrants,  # before joiners are welcomed: who came by an edit of the target is none
    welcome_joiners,  # a node that joined gets the stable revision, in pauses too
    hold,  # pause, missing or withdrawn version: no new move from here on
    send_failed_nodes_back,  # what failed returns before the next node leaves
    keep_to_windows,  # after the ways back, before anybody sets out
    close_batches,  # only now: a failed node that goes back keeps its batch open
    move_open_batches,  # a started batch is completed before the next is made; a window is filled first
    prepare_nodes,  # now it is known who waits; before what the next batch waits for, as it is prepared meanwhile
    ask_analyses,  # only about a batch that has ended; before whatever waits, for they are asked meanwhile
    wait_for_the_batch,  # batch under way, soak, interval; a window waits for none of its own
    wait_for_approval,  # only of what is healthy and was watched; nothing follows before
    wait_for_analyses,  # after all other gates: their answers are fresh when the next batch starts
    wait_for_answers,  # an earlier run may have left changes under way: nobody is recorded with what is over
    start_next_give_back_batch,  # of nodes that return to the DaemonSet that was taken over
    start_next_rollback_batch,  # of a rollback
    start_next_batch,  # of a rollout
    remove_leavers,  # only when nobody else is left to be moved
    complete,  # only when no batch could be made
    forget,  # last: nothing above may still need what is deleted
)
"""The order is the safety argument. A policy that ends the pass keeps all later ones from acting."""


def finish_half_made_moves(work: Work) -> None:
    """Which nodes are between two revisions? Each is brought to where its record says, as soon as its pods ended."""
    moved = {move.node for move in work.moves}
    # Whoever is recorded in this very pass is moved when that is stored.
    moved |= {entry.name for action in work.new_batches for entry in action.spec.nodes}
    between = {node.name: node for node in work.nodes_between if node.name not in moved}
    goals = _find_goals(work, between) if between else {}
    for node in between.values():
        begun = target_of(work.assignment(node) or "")
        goal = goals.get((node.name, node.uid), begun)
        if goal != ASSIGNMENT_NONE and goal not in work.seen.revisions:
            goal = work.stable or ASSIGNMENT_NONE
        move(work, node, _instead(work, goal, begun))


def _find_goals(work: Work, between: Mapping[str, Node]) -> dict[tuple[str, str], str]:
    """Return where the records of the present run, and of the one that it takes back, want some nodes to be."""
    goals: dict[tuple[str, str], str] = {}
    run = work.run
    if run is None:
        return goals
    # By request only named nodes go back, and to where they were named: the others arrive.
    if run.kind == "Rollback" and not is_requested(run):
        for batch in work.update_batches(run.of_run):
            for entry in batch.spec.nodes:
                if entry.name in between:
                    goals[entry.name, entry.uid] = entry.back
    for batch in work.run_batches():
        if between.keys().isdisjoint(batch.results):
            continue
        results = work.results[batch.name]
        for entry in batch.spec.nodes:
            if entry.name in between and (state := results[entry.name].state) not in {"Skipped", "RolledBack"}:
                returns = state in FAILED or state == "Retrying"
                goals[entry.name, entry.uid] = entry.back if returns else entry.to
    return goals


def _instead(work: Work, goal: str, begun: str) -> str:
    """Return where a node between two revisions goes: to its goal, or if that is barred to where it was going."""
    if goal == begun or not is_barred(work, goal):
        return goal
    return begun if begun in work.seen.revisions else ASSIGNMENT_NONE


def _is_told(work: Work, batch: Batch) -> bool:
    """Tell whether the stored record of a batch says all that there is to say."""
    if batch.spec.run == (work.run.id if work.run else 0) and not batch.is_recorded:
        return False
    changed = batch.name in work.analyses or (batch.name in work.results and work.results[batch.name].changed)
    return not changed and work.finished[batch.name] == batch.status.finished_at


def _is_left_between(work: Work, name: str) -> bool:
    node = work.seen.nodes.get(name)
    return node is not None and node.ready and name not in work.touched and is_leaving(work.assignment(node))


def _count(work: Work) -> Tally:
    """Count what the status tells."""
    run = work.run
    # The batches of this very pass count already: `run.batches` does too.
    updates = [action.spec for action in work.new_batches if action.spec.purpose == "Update"]
    new = {(entry.name, entry.uid) for spec in updates for entry in spec.nodes}
    states = work.states(new)
    untouched = 0
    if run is not None and run.kind == "Rollout":
        named = {name for name, _ in new}
        untouched = sum(
            node.name not in work.touched and node.name not in named
            for assignment in work.by_assignment
            if assignment != run.revision
            for node in work.members_at(assignment)
        )
    failed = [
        (entry, result)
        for _, entry, result in work.entries(FAILED, updates=True)
        if not work.is_superseded(entry, result)
    ]
    of_run = run.of_run if run is not None and run.kind == "Rollback" else None
    before = (
        [(entry, result) for _, entry, result in work.entries(FAILED, of_run, updates=True)]
        if of_run is not None
        else []
    )
    return Tally(
        states=states,
        untouched=untouched,
        failed=failed,
        failed_before=[each for each in before if not work.is_superseded(*each, of_run)],
        stopping=[(entry, result) for _, entry, result in work.entries({"Stopping"}, updates=True)],
        left_between=sorted(name for name in work.seen.leaving_since if _is_left_between(work, name)),
        agents=count_agents(work.seen, lambda: {entry.name for _, entry, _ in work.entries(UNDECIDED | NOT_BROUGHT)}),
    )


def _assemble(work: Work) -> Plan:
    seen = work.seen
    records: list[Action] = []
    for batch in seen.batches:
        if _is_told(work, batch):
            continue
        results = work.results[batch.name]
        finished = work.finished[batch.name]
        record = RolloutBatchStatus(
            state="Finished" if finished else "Running",
            finished_at=finished,
            succeeded=results.count({"Succeeded"}),
            failed=results.count(FAILED),
            skipped=results.count({"Skipped"}),
            pending=results.count(UNDECIDED - FAILED),
            nodes=list(results.values()),
            analysis=work.analyses.get(batch.name, batch.status.analysis),
        )
        if record != batch.status:
            records.append(WriteBatch(batch.name, record, urgent=batch.name in work.urgent_batches))
    tally = _count(work)
    status = build_status(
        seen,
        run=work.run,
        stable=work.stable,
        stable_version=work.stable_version,
        target=work.target,
        history=work.history,
        tally=tally,
        last_failure=work.last_failure,
        gate=work.gate,
        hindrance=work.hindrance or work.doubt or work.waiting,
        obstacle=work.obstacle,
        adoption=work.adoption,
        deadlock=work.deadlock,
        completed=work.completed,
        last_handled=work.last_handled,
        last_refused=work.last_refused,
    )
    if tally.agents.wake_at is not None:
        work.wakes.append(tally.agents.wake_at)
    work.events.extend(tell_changes(seen, status, work.events))
    if work.new_batches and not window.rolls_in_a_window(work):
        work.urgent_status = True
    moved = {move.node for move in work.moves}
    # Who arrives comes before who leaves: he has been without an agent for longer.
    moves = sorted(work.moves, key=lambda move: is_leaving(move.after))
    return Plan(
        actions=(
            *work.prerequisites,
            *records,
            *work.new_batches,
            *moves,
            *work.questions,
            *work.preparations,
            *work.clean_up,
        ),
        status=status,
        events=tuple(work.events),
        urgent_status=work.urgent_status,
        wake_at=min(work.wakes, default=None),
        # Who changes his way in this pass does not arrive where he was going.
        arrivals=tuple(arrival for node, arrival in work.arrivals.items() if node not in moved),
    )
