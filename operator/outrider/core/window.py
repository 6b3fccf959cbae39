"""How many nodes are without a working agent because of us, how many may be, and who is recorded to come next.

With `maxUnavailable` a run has no batches that wait for each other: the moment that a node is done the next leaves.
Its records are pages of nodes in the order in which they are taken, made ahead of the moves: a node never waits until
the record that names it is stored.

Invariants:
- Never more nodes without a working agent because of us than the limit: those that this run moves, those that another
  has left between two revisions or starting, and those that another has left on something untried where they are not
  Ready. Who has no agent anyway has nothing to lose, and may leave while not too many are on their way.
- A node that failed for good takes a place of the window for as long as it stands there. One place is always left, or
  a run that tolerates more failures than the window is wide would stand still.
- While there are nodes left to move, and a place is free, a node leaves in the same pass.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta

from outrider.api.rollout import BatchNode, NodeResult
from outrider.core import batches as arithmetic
from outrider.core.moves import find_arriving, is_leaving, is_ready
from outrider.core.snapshot import Batch, Node
from outrider.core.states import IN_FLIGHT
from outrider.core.work import Work, bad_revisions, count_between_elsewhere, same_node, why_skip


@dataclass
class Places:
    """The nodes that may be without a working agent at a time: `limit`, `moving` ones, and others that are `away`.

    `canaries` is the limit for nodes of a canary step. Of those that move, `starting` are left to arrive by a run that
    ended. `untried` are the revisions where a node that is not Ready counts as away.
    """

    limit: int
    canaries: int
    moving: int
    starting: set[str]
    away: int
    untried: frozenset[str]

    def limit_of(self, batch: Batch) -> int:
        """Return how many may be without an agent while a node of a batch leaves: a canary step bounds itself."""
        return max(self.limit, self.canaries) if batch.spec.step else self.limit

    def take(self, work: Work, batch: Batch, node: Node) -> bool:
        """Take a place for a node of a batch that is to leave now, if there is one."""
        limit = self.limit_of(batch)
        if is_leaving(work.assignment(node)):
            return True  # an earlier run left it half-way: it has its place
        if node.name in self.starting:
            if self.moving > limit:
                return False
            self.starting.discard(node.name)  # likewise
            return True
        if is_away(work, node, self.untried):
            if self.moving >= limit:
                return False
            self.away -= 1
        elif self.moving and self.moving + self.away >= limit:
            return False  # while nothing moves at all one may leave: those who are away may wait for it
        self.moving += 1
        return True


def count_places(work: Work) -> Places:
    """Count who is without a working agent because of us."""
    untried = find_untried(work)
    moving = work.count(IN_FLIGHT) + count_between_elsewhere(work) + work.welcomed
    starting, away = _find_starting(work), 0
    for _, entry, _ in work.entries({"Pending"}):
        node = same_node(work, entry)
        if node is not None and is_leaving(work.assignment(node)):
            moving += 1
        elif node is not None and node.name not in starting and is_away(work, node, untried):
            away += 1
    away += sum(
        node.name not in work.touched
        and node.name not in starting
        and is_away(work, node, untried)
        and why_skip(work, node) is None
        for revision in untried
        for node in work.members_at(revision)
    )
    return Places(find_limit(work), _count_canaries(work), moving + len(starting), starting, away, untried)


def find_untried(work: Work) -> frozenset[str]:
    """Return the revisions that earlier runs brought and none completed, and what the present one takes away."""
    if work.run is None:
        return bad_revisions(work)
    if work.run.kind == "Rollout":
        return bad_revisions(work) - {work.run.revision}
    return bad_revisions(work) | {work.run.revision}


def _find_starting(work: Work) -> set[str]:
    """Return the nodes that arrive without being on their way in the present run, and for not too long.

    Those that runs had on their way when they ended, that joined, and whoever else was seen between two revisions.
    """
    timeout = timedelta(seconds=work.seen.spec.health.timeout_seconds)
    found: dict[str, datetime] = {}
    for name, since in find_arriving(work.seen).items():
        if work.seen.nodes[name].ready and work.seen.now < since + timeout:
            found[name] = since + timeout
    for record in work.history:
        until = record.finished_at + timeout
        if until <= work.seen.now:
            break  # the newest is first
        for _, entry, result in work.entries({"Skipped"}, record.id, updates=True):
            node = same_node(work, entry)
            if node is None or result.reason != "RunEnded" or result.started_at is None or node.name in found:
                continue
            assignment = work.assignment(node)
            if assignment in work.seen.revisions and is_away(work, node, {assignment}):
                found[node.name] = until
    if found:
        for _, entry, _ in work.entries(IN_FLIGHT):
            found.pop(entry.name, None)
    work.wakes += found.values()
    return set(found)


def is_away(work: Work, node: Node, untried: AbstractSet[str | None]) -> bool:
    """Tell whether an earlier run has left a node on something untried, and it is not Ready there."""
    assignment = work.assignment(node)
    if assignment not in untried or not node.ready:
        return False
    return not is_ready(work.pods(node.name), assignment)


def rolls_in_a_window(work: Work) -> bool:
    """Tell whether the run's nodes, those of canary steps apart, go one after the other in a sliding window."""
    return arithmetic.has_window(work.seen.spec)


def find_limit(work: Work) -> int:
    """Return how many nodes may be without a working agent at a time, those of a canary step apart."""
    if work.run is None:
        return 0
    limit = arithmetic.in_flight_limit(work.seen.spec, max(arithmetic.size_basis(work.run), 1))
    return max(1, limit - _count_lost(work)) if rolls_in_a_window(work) else limit


def _count_canaries(work: Work) -> int:
    """Return how many nodes the canary steps that are under way may move at a time, as the spec has them now."""
    open_steps = {batch.spec.step for batch in work.run_batches() if work.finished[batch.name] is None}
    known = arithmetic.canary_steps(work.seen.spec)
    return max(
        (
            arithmetic.canary_size(work.seen.spec, step, work.run.nodes)
            for step in open_steps
            if 0 < step <= known and work.run is not None
        ),
        default=0,
    )


def count_to_record(work: Work) -> int:
    """Return how many nodes more are to be recorded for a window, so that none of its places waits for a record."""
    run = work.run
    if run is None:
        return 0
    return arithmetic.ahead(
        work.count({"Pending"}), arithmetic.rolling_size(work.seen.spec, max(arithmetic.size_basis(run), 1))
    )


def _count_lost(work: Work) -> int:
    """Return how many nodes failed for good, and are still there: not those whose agents were never touched."""
    return sum(
        result.reason != "NodeGone" and result.started_at is not None and _is_lost(work, entry, result)
        for _, entry, result in work.entries({"Failed"}, updates=True)
    )


def _is_lost(work: Work, entry: BatchNode, result: NodeResult) -> bool:
    """Tell whether a failed node is there, and does not only wait, with a working agent, for its turn to go back."""
    node = same_node(work, entry)
    if node is None:
        return False
    waits = result.reason != "ReturnFailed" and entry.back != entry.to and work.assignment(node) == entry.to
    return not waits or is_away(work, node, {entry.to})
