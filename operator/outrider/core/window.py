"""How many nodes are without a working agent because of us, how many may be, and who is recorded to come next.

With `maxUnavailable` a run has no batches that wait for each other: the moment that a node is done the next leaves.
Its records are pages of nodes in the order in which they are taken, made ahead of the moves: a node never waits until
the record that names it is stored.

Invariants:
- Never more nodes without a working agent because of us than the limit: those that this run moves, those that another
  has left between two revisions, and those that another has left on something untried where they are not Ready. Who has
  no agent anyway has nothing to lose, and may leave while not too many are on their way.
- A node that failed for good takes a place of the window for as long as it stands there. One place is always left, or
  a run that tolerates more failures than the window is wide would stand still.
- While there are nodes left to move, and a place is free, a node leaves in the same pass.
"""

from dataclasses import dataclass

from outrider.core import batches as arithmetic
from outrider.core.moves import is_leaving
from outrider.core.snapshot import Node
from outrider.core.states import IN_FLIGHT
from outrider.core.work import Work, bad_revisions, count_between_elsewhere, same_node, why_skip


@dataclass
class Places:
    """The nodes that may be without a working agent at a time: `limit`, `moving` ones, and others that are `away`.

    `untried` are the revisions where a node that is not Ready counts as away.
    """

    limit: int
    moving: int
    away: int
    untried: frozenset[str]

    def take(self, work: Work, node: Node) -> bool:
        """Take a place for a node that is to leave now, if there is one."""
        if is_leaving(work.assignment(node)):
            return True  # an earlier run left it half-way: it has its place
        if is_away(work, node, self.untried):
            if self.moving >= self.limit:
                return False
            self.away -= 1
        elif self.moving and self.moving + self.away >= self.limit:
            return False  # while nothing moves at all one may leave: those who are away may wait for it
        self.moving += 1
        return True


def count_places(work: Work) -> Places:
    """Count who is without a working agent because of us."""
    untried = find_untried(work)
    moving = work.count(IN_FLIGHT) + count_between_elsewhere(work)
    away = 0
    for _, entry, _ in work.entries({"Pending"}):
        node = same_node(work, entry)
        if node is not None and is_leaving(work.assignment(node)):
            moving += 1
        elif node is not None and is_away(work, node, untried):
            away += 1
    away += sum(
        node.name not in work.touched and is_away(work, node, untried) and why_skip(work, node) is None
        for revision in untried
        for node in work.members_at(revision)
    )
    return Places(find_limit(work), moving, away, untried)


def find_untried(work: Work) -> frozenset[str]:
    """Return the revisions that earlier runs brought and none completed."""
    if work.run is not None and work.run.kind == "Rollout":
        return bad_revisions(work) - {work.run.revision}
    return bad_revisions(work)


def is_away(work: Work, node: Node, untried: frozenset[str]) -> bool:
    """Tell whether an earlier run has left a node on something untried, and it is not Ready there."""
    assignment = work.assignment(node)
    if assignment not in untried or not node.ready:
        return False
    return not any(pod.ready_since is not None and pod.revision == assignment for pod in work.pods(node.name))


def rolls_in_a_window(work: Work) -> bool:
    """Tell whether the run's nodes, those of canary steps apart, go one after the other in a sliding window."""
    return arithmetic.has_window(work.seen.spec)


def find_limit(work: Work) -> int:
    """Return how many nodes may be without a working agent at a time."""
    if work.run is None:
        return 0
    limit = arithmetic.in_flight_limit(work.seen.spec, max(arithmetic.size_basis(work.run), 1))
    # A canary step bounds itself.
    canaries = sum(len(b.spec.nodes) for b in work.run_batches() if b.spec.step and work.finished[b.name] is None)
    if work.seen.spec.strategy.type != "Full":
        limit = max(limit, canaries)
    return max(1, limit - _count_lost(work)) if rolls_in_a_window(work) else limit


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
        result.reason != "NodeGone" and result.started_at is not None and same_node(work, entry) is not None
        for _, entry, result in work.entries({"Failed"}, updates=True)
    )
