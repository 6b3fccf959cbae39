"""What has become of the nodes that a run touched, and when that is too much."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta

from outrider.api.names import ASSIGNMENT_LEGACY, ASSIGNMENT_NONE
from outrider.api.rollout import BatchNode, NodeResult, RunStatus
from outrider.core import batches as arithmetic
from outrider.core.fleet import is_excluded
from outrider.core.health import Verdict, find_sound, judge_pods
from outrider.core.moves import is_leaving, leaving
from outrider.core.prepare import is_due, judge_waiting, was_never_touched
from outrider.core.probes import is_asked
from outrider.core.snapshot import Batch, Hindrance, Node
from outrider.core.states import FAILED, ONGOING, RESULTS
from outrider.core.takeback import revisions_left, why_left
from outrider.core.words import count_nodes, name_first, printable
from outrider.core.work import Work, is_requested, same_node, why_skip


def judge_nodes(work: Work) -> None:
    """What has become of every node that the present run touched?"""
    if work.run is None or work.run.state not in ONGOING:
        return
    # A run that completed once is not judged by what happens to its nodes later.
    closed = {"Skipped", "RolledBack", "Succeeded"} if work.run.revision == work.stable else {"Skipped", "RolledBack"}
    well = _find_well(work) if work.count({"Succeeded"} - closed) else {}
    for batch in work.run_batches():
        results = work.results[batch.name]
        open_ones = len(results) - results.count(closed)
        if not open_ones:
            continue
        if open_ones == len(results) == results.count({"Succeeded"}) and batch.uids <= well.get(
            batch.goal, frozenset()
        ):
            continue
        for entry in batch.spec.nodes:
            before = results[entry.name]
            if before.state == "Succeeded" and entry.uid in well.get(entry.to, ()):
                continue
            after = _judge_node(work, batch, entry, before)
            if after.state != before.state and after.state in {"Failed", "Skipped"}:
                work.urgent_batches.add(batch.name)
            results[entry.name] = after
    if work.unknown:
        work.doubt = _tell_unknown(work)


def _find_well(work: Work) -> Mapping[str, AbstractSet[str]]:
    """Return which nodes have nothing against them where they are assigned to: their UIDs, by assignment."""
    pods, health = work.seen.pods, work.seen.spec.health
    found: dict[str, AbstractSet[str]] = {}
    for assignment, nodes in work.by_assignment.items():
        if assignment == ASSIGNMENT_NONE:
            found[assignment] = {node.uid for node in nodes if node.ready}
        elif assignment is not None and not is_leaving(assignment):
            found[assignment] = find_sound(nodes, pods, assignment, health)
    return found


def tell_end_of_batch(work: Work, pages: Sequence[Batch]) -> None:
    """Add the event that says how a batch ended, all its pages together."""
    spec = pages[0].spec
    results = [work.results[page.name] for page in pages]
    failed = sum(page.count(FAILED) for page in results)
    healthy, skipped = (sum(page.count({state}) for page in results) for state in ("Succeeded", "Skipped"))
    if spec.purpose == "Removal":
        work.say(
            "Warning" if failed else "Normal",
            "BatchFinished",
            f"Run {spec.run}, batch {spec.batch}: the agent was taken from {healthy} of "
            f"{sum(map(len, results))} nodes that left spec.target; on {failed} it does not end",
        )
        return
    name = f"canary step {spec.step}" if spec.step else f"batch {spec.batch}"
    work.say(
        "Warning" if failed else "Normal",
        "BatchFinished",
        f"Run {spec.run}, {name}: {healthy} of {sum(map(len, results))} nodes healthy, {failed} failed, "
        f"{skipped} left out",
    )


def _judge_removal(work: Work, batch: Batch, entry: BatchNode, result: NodeResult) -> NodeResult:
    """Judge a node that left the fleet: has its agent been taken away?"""
    if result.state in RESULTS:
        return result
    node = same_node(work, entry)
    if node is None:
        return with_state(work, result, "Skipped", "NodeGone", "the node was deleted")
    assignment = work.assignment(node)
    if assignment is None or assignment == entry.to:
        return with_state(work, result, "Succeeded", "", "")
    untouched = assignment == entry.origin
    if untouched and work.seen.spec.on_leave == "Keep":
        return with_state(work, result, "Skipped", "AgentKept", "the node keeps its agent: spec.onLeave is Keep")
    if untouched and node.name not in work.seen.leavers:
        why = "it is excluded" if is_excluded(node) else "it belongs to a target again"
        return with_state(work, result, "Skipped", "AgentKept", f"the node keeps its agent: {why}")
    if not untouched and assignment != leaving(entry.to):
        return with_state(
            work, result, "Skipped", "AssignmentChanged", f"somebody set the node's assignment to {assignment}"
        )
    if not node.ready:
        why = "the node is not Ready; the agent is taken from it when it is again"
        return with_state(work, result, "Skipped", "NodeNotReady", why)
    if result.state == "Pending":
        return result
    verdict = Verdict("Starting", "PatchRefused", "the node's assignment could not be changed")
    if not untouched:
        verdict = Verdict("Starting", "StuckTerminating", "the agent's pod does not end")
    return _settle(work, batch, result, verdict, "Stopping")


def _judge_node(work: Work, batch: Batch, entry: BatchNode, result: NodeResult) -> NodeResult:
    if batch.spec.purpose == "Removal":
        return _judge_removal(work, batch, entry, result)
    if result.state in {"Skipped", "RolledBack"}:
        return result
    if result.state == "Succeeded" and work.run is not None and work.run.revision == work.stable:
        return result  # the run completed once: what happens to its nodes later is no verdict on it
    node = same_node(work, entry)
    if node is None:
        return _judge_absent(work, result)
    assignment = work.assignment(node)
    if result.state in FAILED:
        return _judge_return(work, entry, result, node)
    if result.state == "Retrying":
        return _judge_retry(work, entry, result, node)
    # A node that is taken back by request and is there already has moved on: it is judged by that, not by its pods.
    goes = entry.origin != entry.to or (result.state == "Pending" and work.run is not None and is_requested(work.run))
    untouched = result.state in {"Pending", "Stopping"} and goes
    if untouched and assignment == (entry.origin or None):
        return _judge_untouched(work, batch, entry, result, node)
    if assignment not in {entry.to, leaving(entry.to)}:
        return with_state(
            work, result, "Skipped", "AssignmentChanged", f"somebody set the node's assignment to {assignment}"
        )
    if not node.ready:
        return with_state(work, result, "Failed", "NodeNotReady", "the node was Ready, and is not since it was moved")
    if assignment != entry.to:
        verdict = Verdict("Starting", "StuckTerminating", "the old agent's pod does not end")
        state = "Stopping"
    else:
        is_checked = is_asked(work, batch, entry.to)
        pods = work.pods(node.name)
        health, now = work.seen.spec.health, work.seen.now
        verdict = judge_pods(
            pods,
            entry.to,
            health,
            now,
            is_checked=is_checked,
            is_prepared=is_due(work, batch, entry),
            is_return=batch.spec.kind == "Rollback",
        )
        if entry.to == ASSIGNMENT_NONE:
            verdict = Verdict("Healthy")
        state = verdict.state
    return _settle(work, batch, result, verdict, state)


def _judge_absent(work: Work, result: NodeResult) -> NodeResult:
    """Judge an entry whose node is gone."""
    if result.state in {"Succeeded", "Failed"}:
        return result
    if (owner := work.seen.owned_by_others.get(result.name)) is not None:
        return with_state(work, result, "Skipped", "LeftTarget", f"the node belongs to Rollout {owner} now")
    if result.state == "Pending":
        return with_state(work, result, "Skipped", "NodeGone", "the node was deleted before it was moved")
    return with_state(work, result, "Failed", "NodeGone", "the node was deleted before its agent was healthy")


def _judge_untouched(work: Work, batch: Batch, entry: BatchNode, result: NodeResult, node: Node) -> NodeResult:
    """Judge a node that still has the assignment that it had when its batch was made."""
    if node.name in work.seen.under_way:
        return result  # it may have left already
    run = work.run
    if batch.spec.kind == "Rollout":
        skip = why_skip(work, node)
        if node.name not in work.seen.members:
            skip = "LeftTarget", "the node does not belong to spec.target any more"
        if skip is not None:
            return with_state(work, result, "Skipped", *skip)
    elif run is not None and is_requested(run):
        leaves = revisions_left(work, of_run=run.of_run or 0, batches=run.of_batches, revision=run.revision)
        if (stays := why_left(work, node, entry.to, leaves)) is not None:
            return with_state(work, result, "Skipped", *stays)
    elif is_excluded(node) and (run is None or run.revision != ASSIGNMENT_LEGACY):
        return with_state(work, result, "Skipped", "AgentKept", "the node keeps its agent: it is excluded")
    # Else a rollback skips nobody: a dead node must not come back with what failed.
    if result.state == "Pending":
        return judge_waiting(work, result, node) if is_due(work, batch, entry) else result
    # Its move was planned and the patch was not made: tried again, but not for ever.
    verdict = Verdict("Starting", "PatchRefused", "the node's assignment could not be changed")
    return _settle(work, batch, result, verdict, "Stopping")


def since_observed(work: Work, moment: datetime) -> datetime:
    """Return a moment, but not one from before this process could see the cluster.

    An operator that was away for longer than a deadline must not find everybody guilty when it comes back.
    """
    observing = work.seen.observing_since
    return max(moment, observing) if observing is not None else moment


def _settle(work: Work, batch: Batch, result: NodeResult, verdict: Verdict, state: str) -> NodeResult:
    """Turn a verdict on a node that is where it should be into its result."""
    now = work.seen.now
    if result.state == "Succeeded" and (verdict.reason == "MinReady" or verdict.unknown):
        return result  # it is Ready; since when exactly is forgotten when the operator restarts
    if verdict.state == "Healthy":
        return result if result.state == "Succeeded" else with_state(work, result, "Succeeded", "", "")
    if verdict.state == "Failed":
        return with_state(work, result, "Failed", verdict.reason, verdict.message)
    if result.state == "Succeeded":
        # It was healthy and is not: its clock starts again, and the batch is open again.
        again = result.model_copy(update={"started_at": now, "paused_seconds": work.paused_seconds()})
        return with_state(work, again, state, verdict.reason, verdict.message)
    if verdict.reason == "MinReady":
        # Ready, and only not for long enough yet: no deadline turns that into a failure.
        if verdict.wake_at is not None:
            work.wakes.append(verdict.wake_at)
        return with_state(work, result, state, verdict.reason, verdict.message)
    timeout = work.seen.spec.health.timeout_seconds
    begun = since_observed(work, result.started_at or batch.spec.started_at)
    deadline = begun + timedelta(seconds=timeout + work.paused_seconds() - result.paused_seconds)
    if verdict.told_at is not None and verdict.told_at >= deadline:
        # Nobody could tell until then: only now its time begins.
        deadline = verdict.told_at + timedelta(seconds=timeout)
    if verdict.unknown and now >= deadline:
        work.unknown.append((result.name, verdict.message))
        return with_state(work, result, state, verdict.reason, verdict.message)
    if now >= deadline and (work.run is None or work.run.paused_since is None):
        own = verdict.reason in {"StuckTerminating", "PatchRefused", "Unschedulable"}
        reason = verdict.reason if own else "HealthTimeout"
        return with_state(work, result, "Failed", reason, f"not healthy within {timeout} s: {verdict.message}")
    work.wakes.append(min(deadline, verdict.wake_at) if verdict.wake_at else deadline)
    return with_state(work, result, state, verdict.reason, verdict.message)


def _tell_unknown(work: Work) -> Hindrance:
    """Say of which nodes nobody can tell whether they are healthy, though their time is over."""
    names, count = name_first([name for name, _ in work.unknown]), count_nodes(len(work.unknown))
    return Hindrance(
        "HealthUnknown",
        f"of {count} nobody can tell whether the agent is healthy, for more than "
        f"{work.seen.spec.health.timeout_seconds} s: {names} ({work.unknown[0][1]}). They are asked again and "
        "again; let the operator reach the agents' pods (network policies, routes), or change spec.health.http",
        stalled=True,
    )


def _judge_return(work: Work, entry: BatchNode, result: NodeResult, node: Node) -> NodeResult:
    """Judge a failed node: has it come back to what it ran before?"""
    assignment = work.assignment(node)
    if entry.back == entry.to or (was_never_touched(result) and assignment == (entry.origin or None)):
        return result
    if assignment == entry.back:
        health = work.seen.spec.health
        verdict = judge_pods(work.pods(node.name), entry.back, health, work.seen.now)
        if entry.back == ASSIGNMENT_NONE or verdict.state == "Healthy":
            return with_state(work, result, "RolledBack", result.reason, result.message)
        if verdict.wake_at is not None:
            work.wakes.append(verdict.wake_at)
    if result.state == "Returning" and result.returning_since is not None:
        begun = since_observed(work, result.returning_since)
        timeout = work.seen.spec.health.timeout_seconds
        deadline = begun + timedelta(seconds=timeout + work.paused_seconds() - result.paused_seconds)
        if work.seen.now >= deadline and (work.run is None or work.run.paused_since is None):
            return result.model_copy(
                update={
                    "state": "Failed",
                    "reason": "ReturnFailed",
                    "message": f"not healthy again after going back; it had failed with {result.reason}"[:256],
                }
            )
        work.wakes.append(deadline)
    return result


def _judge_retry(work: Work, entry: BatchNode, result: NodeResult, node: Node) -> NodeResult:
    """Judge a failed node that goes back first, because a person has asked to try it again: is it there?"""
    if work.assignment(node) == entry.back:
        verdict = judge_pods(work.pods(node.name), entry.back, work.seen.spec.health, work.seen.now)
        if entry.back == ASSIGNMENT_NONE or verdict.state == "Healthy":
            return with_state(work, result, "Skipped", "Retried", result.message)
        if verdict.wake_at is not None:
            work.wakes.append(verdict.wake_at)
    timeout = work.seen.spec.health.timeout_seconds
    if result.returning_since is None and work.assignment(node) == entry.to:
        if is_excluded(node):
            return with_state(work, result, "Skipped", "LeftTarget", "the node was excluded before it was tried again")
        return result  # its turn has not come
    deadline = since_observed(work, result.returning_since or result.started_at or work.seen.now)
    deadline += timedelta(seconds=timeout + work.paused_seconds() - result.paused_seconds)
    if work.seen.now >= deadline and (work.run is None or work.run.paused_since is None):
        if work.assignment(node) == entry.back:
            # That it does not become healthy there either is no reason not to try it again: it was asked for.
            return with_state(work, result, "Skipped", "Retried", result.message)
        reason = result.reason if work.assignment(node) == entry.to else "ReturnFailed"
        why = f"it was to be tried again, and did not come back to what it ran before within {timeout} s"
        return with_state(work, result, "Failed", reason, why)
    work.wakes.append(max(deadline, work.seen.now + timedelta(seconds=1)))
    return result


def with_state(work: Work, before: NodeResult, state: str, reason: str, message: str) -> NodeResult:
    """Return a node's new result; the same one if nothing changed."""
    message = printable(message if len(message) <= 256 else message[:253] + "...")
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


def why_over_tolerance(work: Work, run: RunStatus) -> str:
    """Return why the run has failed, as a sentence; "" while it has not."""
    strategy = work.seen.spec.strategy
    failed = work.count(FAILED, updates=True)
    if not failed:
        return ""
    examples = _examples(work)
    total = max(run.nodes, run.late_nodes or 0)
    allowed = arithmetic.tolerated(strategy.failure_tolerance, total)
    if failed > allowed:
        return f"{failed} of {total} nodes failed, tolerated are {allowed} ({examples})"
    size = arithmetic.rolling_size(work.seen.spec, arithmetic.size_basis(run))
    numbered: dict[int, list[Batch]] = {}
    for batch in work.update_batches():
        numbered.setdefault(batch.spec.batch, []).append(batch)
    for number, pages in sorted(numbered.items()):
        results = [work.results[page.name] for page in pages]
        moved = sum(len(result) - result.count({"Skipped"}) for result in results)
        bad = sum(result.count(FAILED) for result in results)
        step = pages[0].spec.step
        if bad and step and strategy.canary and step <= len(strategy.canary.steps):
            allowed = arithmetic.tolerated(strategy.canary.steps[step - 1].failure_tolerance, moved)
            if bad > allowed:
                return f"{bad} of {moved} nodes of canary step {step} failed, tolerated are {allowed} ({examples})"
        # What is left over at the end, or came late, is no sample of the fleet: two of two say less than the tolerance.
        is_whole = step or sum(map(len, results)) >= min(size, total)
        if bad == moved >= 2 and is_whole:
            return f"all {bad} nodes of batch {number} failed ({examples})"
    return ""


def _examples(work: Work) -> str:
    """Name some of the nodes that failed, each with its reason and the batch that it was moved in."""
    found = [
        f"{entry.name}: {result.reason} in batch {batch.spec.batch}"
        for batch, entry, result in work.entries(FAILED, updates=True)
    ]
    return name_first(found)
