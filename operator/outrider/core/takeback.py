"""Taking nodes back because a person asked for it: which ones, where to, and why one stays where it is.

Assumptions:
- The RolloutBatches of the run that is taken back are stored as long as this goes on (`forget` keeps them).

Invariants:
- A node goes to what its record says that it came from (a revision of a completed run, or none), or to the revision
  with which the named version completed last. Nothing else is chosen for it.
- What has moved on since is left alone.
- Each node is judged by itself: one that cannot go back keeps none of the others.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta

from outrider.api.names import ASSIGNMENT_NONE
from outrider.api.rollout import BatchNode, NodeResult, RunState, RunStatus
from outrider.core import batches as arithmetic
from outrider.core.compatibility import UNKNOWN
from outrider.core.fleet import is_excluded
from outrider.core.moves import target_of
from outrider.core.selection import create_batches
from outrider.core.snapshot import Hindrance, Node
from outrider.core.standing import request_verification
from outrider.core.states import FAILED
from outrider.core.window import count_to_record, rolls_in_a_window
from outrider.core.work import (
    Work,
    bad_revisions,
    check_breach,
    check_fit,
    count_between_elsewhere,
    find_phase,
    same_node,
)

VERIFICATION_SECONDS = 600
"""A run to a named version waits for its verification; after so long it says that somebody must act, and goes on."""

Identity = tuple[str, str]
"""A node's name and UID."""

HARMLESS = frozenset({"MovedSince", "NodeGone"})
"""Reasons of Skipped that leave nothing behind of what is taken away."""


@dataclass(frozen=True)
class Takeback:
    """What is to be taken back: nodes that `records` name and that run one of the revisions `leaves`.

    `to_revision` is where all go, if a version was named. Otherwise each goes to what its record says; one without a
    record, which is taken only when `everything` is, goes to `otherwise`.
    """

    records: Mapping[Identity, tuple[BatchNode, NodeResult]]
    leaves: frozenset[str]
    to_revision: str | None
    otherwise: str
    everything: bool

    def goal_of(self, node: Node) -> str:
        """Return the assignment that a node goes back to."""
        known = self.records.get((node.name, node.uid))
        return self.to_revision or (known[0].back if known is not None else self.otherwise)


def read_takeback(
    work: Work, *, of_run: int, batches: frozenset[int], revision: str, to_revision: str | None, otherwise: str | None
) -> Takeback:
    """Return what taking back a run, or some of its batches, means now."""
    records = {
        (entry.name, entry.uid): (entry, work.results[batch.name][entry.name])
        for batch in work.run_batches(of_run)
        if not batches or batch.spec.batch in batches
        for entry in batch.spec.nodes
        # Whom a batch has left out, and a later one has moved, is the later one's.
        if entry.to == revision and not work.is_superseded(entry, work.results[batch.name][entry.name], of_run)
    }
    everything = _is_everything(work, of_run, batches)
    leaves = revisions_left(work, of_run=of_run, batches=batches, revision=revision)
    return Takeback(records, leaves, to_revision, otherwise or ASSIGNMENT_NONE, everything)


def revisions_left(work: Work, *, of_run: int, batches: Collection[int], revision: str) -> frozenset[str]:
    """Return the revisions that nodes are taken away from."""
    return frozenset({revision}) | (bad_revisions(work) if _is_everything(work, of_run, batches) else frozenset())


def _is_everything(work: Work, of_run: int, batches: Collection[int]) -> bool:
    """Tell whether a whole run goes back that no other followed: then what ran before and never completed goes, too."""
    return not batches and all(record.id <= of_run for record in work.history if record.kind == "Rollout")


def present_takeback(work: Work, run: RunStatus) -> Takeback:
    """Return what the present run, one by request, takes back."""
    return read_takeback(
        work,
        of_run=run.of_run or 0,
        batches=frozenset(run.of_batches),
        revision=run.revision,
        to_revision=run.to_revision,
        otherwise=work.stable,
    )


def nodes_to_take_back(work: Work, aim: Takeback) -> tuple[list[Node], list[Node]]:
    """Return the nodes that the run to be taken back has touched: those that failed in it, and the others.

    Nodes that have moved on since are among them: the record of the way back shall name each of them.
    """
    failed: list[Node] = []
    others: list[Node] = []
    for entry, result in aim.records.values():
        node = same_node(work, entry)
        if node is None:
            continue
        if is_left(work, aim, node) or result.started_at is not None:
            (failed if result.state in FAILED else others).append(node)
    if aim.everything:
        others += [
            node
            for node in work.seen.nodes.values()
            if (node.name, node.uid) not in aim.records and is_left(work, aim, node)
        ]
    return failed, others


def is_left(work: Work, aim: Takeback, node: Node) -> bool:
    """Tell whether a node runs what is taken away, or is on its way to it."""
    assignment = work.assignment(node)
    return assignment is not None and target_of(assignment) in aim.leaves


def why_left(work: Work, node: Node, goal: str, leaves: frozenset[str]) -> tuple[str, str] | None:
    """Return reason and message why a node does not go back to `goal`, or None if it does."""
    assignment = work.assignment(node)
    component = work.seen.spec.component
    if assignment is None or target_of(assignment) not in leaves:
        return "MovedSince", f"it was moved on since: it runs {_tell_version(work, assignment)}"
    if is_excluded(node):
        return "AgentKept", "the node keeps its agent: it is excluded"
    if goal == target_of(assignment):
        return "NothingToReturnTo", "it ran nothing else before that a completed run had brought"
    if goal == ASSIGNMENT_NONE:
        return why_required(work, node, goal)
    version = work.seen.revisions.get(goal)
    if version is None:
        return "NothingToReturnTo", f"its revision {goal} is not kept any more; name a version"
    phase = find_phase(work, goal)
    if phase == "Revoked":
        return "VersionRevoked", f"{component}-{version} is Revoked"
    if phase == "Withdrawn":
        return "VersionWithdrawn", f"{component}-{version} is Withdrawn, and may come back when it verifies again"
    if phase is None:
        return "VersionNotFound", f"there is no ComponentVersion {component}-{version} any more"
    fit = check_fit(work, node, goal)
    if fit.verdict != "Yes":
        return fit.reason, fit.message
    return why_required(work, node, goal)


def why_required(work: Work, node: Node, goal: str) -> tuple[str, str] | None:
    """Return why another component on the node forbids that this one goes to `goal` there."""
    breach = check_breach(work, node, goal)
    if breach is None:
        return None
    return "RequiredByOther", breach.tell(work.seen.spec.component, work.seen.revisions.get(goal, ""))


def _tell_version(work: Work, assignment: str | None) -> str:
    if assignment is None or target_of(assignment) == ASSIGNMENT_NONE:
        return "no agent"
    return work.seen.revisions.get(target_of(assignment), UNKNOWN) or "another revision"


def find_target_hindrance(work: Work, run: RunStatus) -> Hindrance | None:
    """Ask for a fresh verification of the named version; return what waits for it, if anything does.

    What each node came from is asked for too and not waited for: it was verified before.
    """
    if run.to_revision is None or run.batches:
        return None
    version = work.seen.versions.get(run.to_version)
    if version is None or not request_verification(work, [run.to_version]):
        return None
    message = f"{work.seen.spec.component} {run.to_version} is verified anew before nodes go back to it"
    if version.unverifiable:
        message += f", which cannot be done now: {version.unverifiable}"
    late = work.seen.now >= run.started_at + timedelta(seconds=VERIFICATION_SECONDS + work.paused_seconds())
    if late:
        message += f". That takes more than {VERIFICATION_SECONDS} s: see to the registry, or abort and name another"
    return Hindrance("VersionBeingVerified", message, stalled=late)


def start_next_batch_back(work: Work, run: RunStatus) -> None:
    """Which nodes go back next? Failed ones first, by batch size; those that cannot stand in the first record."""
    work.obstacle = find_target_hindrance(work, run)
    if work.obstacle is not None:
        return
    aim = present_takeback(work, run)
    if not run.batches and run.to_revision is None:
        request_verification(work, {work.seen.revisions.get(entry.back, "") for entry, _ in aim.records.values()})
    taken = {(entry.name, entry.uid) for _, entry, result in work.entries() if result.reason != "RunEnded"}
    failed, others = nodes_to_take_back(work, aim)
    ordered = [
        node
        for nodes in (failed, others)
        for node in arithmetic.order_nodes(nodes, work.seen.uid, run.id)
        if (node.name, node.uid) not in taken
    ]
    if not ordered:
        return
    movable = [node for node in ordered if why_left(work, node, aim.goal_of(node), aim.leaves) is None]
    left = {node.name for node in ordered} - {node.name for node in movable}
    size = len(movable)
    if rolls_in_a_window(work):
        size = count_to_record(work)
        if not size:
            return
    elif work.seen.spec.strategy.type != "Full":
        size = max(1, arithmetic.rolling_size(work.seen.spec, run.nodes) - count_between_elsewhere(work))
    chosen = movable[:size]
    if not run.batches or not chosen:
        chosen += [node for node in ordered if node.name in left]
    create_batches(work, chosen, step=0, to=aim.goal_of)


def result_of(work: Work) -> tuple[RunState, str]:
    """Return the result of a run by request that has ended, and its counts as a sentence."""
    results = [result for _, _, result in work.entries()]
    done = sum(result.state == "Succeeded" for result in results)
    harmless = sum(result.state == "Skipped" and result.reason in HARMLESS for result in results)
    failed = sum(result.state in FAILED for result in results)
    skipped = len(results) - done - harmless - failed
    state: RunState = "Succeeded" if not failed + skipped else "PartiallySucceeded" if done else "Failed"
    parts = [f"{done} back"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{skipped} left where they were"] if skipped else []
    parts += [f"{harmless} had moved on"] if harmless else []
    return state, ", ".join(parts)
