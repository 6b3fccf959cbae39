"""How one node gets from one assignment to another: every situation as a row, and the law that it always arrives."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.moves import is_leaving, leaving, next_assignment, target_of

LIVE_NONE: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("assignment", "target", "live", "joiners", "expected"),
    [
        # where it should be already
        pytest.param("B", "B", ("B",), False, None, id="a node that has arrived stays"),
        pytest.param("B", "B", LIVE_NONE, False, None, id="a node that has arrived waits for its pod by itself"),
        pytest.param("B", "B", ("A",), False, None, id="a node that has arrived stays, whatever lingers"),
        pytest.param("none", "none", LIVE_NONE, True, None, id="a node that shall run nothing stays so"),
        # phase one: out of a revision
        pytest.param("A", "B", ("A",), False, "to-B", id="a node of another revision leaves first"),
        pytest.param("A", "B", LIVE_NONE, False, "to-B", id="a node leaves first even if its pod is away just now"),
        pytest.param("A", "B", ("A",), True, "to-B", id="a node with an assignment is no joiners' node"),
        pytest.param("A", "B", ("B",), False, "to-B", id="a node leaves A even if a pod of B is there already"),
        pytest.param("A", "none", ("A",), False, "to-none", id="the way to nothing leaves too"),
        # phase two: into the target
        pytest.param("to-B", "B", ("A",), False, None, id="on its way it waits while the old pod lives"),
        pytest.param("to-B", "B", ("A", "C"), True, None, id="on its way it waits for all pods of others"),
        pytest.param("to-B", "B", ("A", "B"), False, None, id="one pod of the target does not excuse another"),
        pytest.param("to-B", "B", LIVE_NONE, False, "B", id="it arrives when the old pod has ended"),
        pytest.param("to-B", "B", LIVE_NONE, True, "B", id="it arrives, joiners served or not"),
        pytest.param("to-B", "B", ("B",), False, "B", id="a pod of the target itself is no reason to wait"),
        pytest.param("to-none", "none", ("A",), False, None, id="on its way to nothing it waits as well"),
        pytest.param("to-none", "none", LIVE_NONE, False, "none", id="it arrives at nothing"),
        # another wish on the way
        pytest.param("to-B", "C", ("A",), False, "to-C", id="another target on the way is written down at once"),
        pytest.param("to-B", "C", LIVE_NONE, False, "C", id="another target on the way needs no second stop"),
        pytest.param("to-B", "A", ("A",), False, "A", id="back on the way: the old pod may stay"),
        pytest.param("to-B", "A", ("B",), False, "to-A", id="back on the way: a pod of B has to end first"),
        pytest.param("to-B", "none", ("A",), False, "to-none", id="to nothing instead, the old pod has to end"),
        # from nothing
        pytest.param("none", "B", LIVE_NONE, False, "B", id="from nothing it is one step"),
        pytest.param("none", "B", LIVE_NONE, True, "B", id="none is an assignment: joiners' DaemonSets leave it alone"),
        pytest.param("none", "B", ("A",), False, "to-B", id="from nothing, but something lives: it has to end first"),
        # never seen
        pytest.param(None, "B", LIVE_NONE, False, "B", id="a new node that nothing serves is one step away"),
        pytest.param(None, "B", ("A",), False, "to-B", id="a new node with a stray pod has to end that first"),
        pytest.param(None, "B", LIVE_NONE, True, "to-B", id="a joiner leaves first: its pod may appear at any moment"),
        pytest.param(None, "B", ("A",), True, "to-B", id="a joiner with its pod leaves first"),
        pytest.param(None, "A", ("A",), True, "to-A", id="a joiner leaves the joiners' DaemonSet of the same revision"),
        pytest.param(None, "none", LIVE_NONE, True, "to-none", id="a joiner that shall run nothing leaves first"),
    ],
)
def test_next_assignment(
    assignment: str | None, target: str, live: Iterable[str], joiners: bool, expected: str | None
) -> None:
    assert next_assignment(assignment, target, live, served_by_joiners=joiners) == expected


def test_a_half_made_move_says_where_it_goes() -> None:
    assert leaving("r-1") == "to-r-1"
    assert is_leaving("to-r-1")
    assert target_of("to-r-1") == "r-1"
    assert not any(map(is_leaving, [None, "r-1", "none"]))
    assert target_of("r-1") == "r-1"


REVISIONS = ("A", "B", "C")
ASSIGNMENTS = st.sampled_from([None, "none", *REVISIONS, "to-none", *(leaving(revision) for revision in REVISIONS)])
TARGETS = st.sampled_from(["none", *REVISIONS])


class WantedBy:
    """One node with the DaemonSet controllers and the kubelet, as far as a move can notice them."""

    def __init__(self, assignment: str | None, pods: Iterable[str], joiners: str | None) -> None:
        self.assignment = assignment
        self.pods = set(pods)
        self.joiners = joiners

    def wanted(self) -> str | None:
        """The revision whose DaemonSet wants the node now."""
        if self.assignment is None:
            return self.joiners
        return self.assignment if self.assignment in REVISIONS else None

    def step(self, target: str) -> bool:
        """Make the next patch, if there is one."""
        following = next_assignment(self.assignment, target, set(self.pods), served_by_joiners=self.joiners is not None)
        if following is None:
            return False
        if following in REVISIONS:
            assert self.pods <= {following}, f"{following} is assigned while {self.pods} live"
            assert self.wanted() in {None, following}, "another DaemonSet still wants the node"
        self.assignment = following
        return True

    def let_pods_end(self, how_many: int) -> None:
        """End so many pods that no DaemonSet wants, and start the one that is wanted."""
        for pod in sorted(self.pods - {self.wanted()})[:how_many]:
            self.pods.remove(pod)
        wanted = self.wanted()
        if wanted is not None:
            self.pods.add(wanted)


@given(
    assignment=ASSIGNMENTS,
    target=TARGETS,
    pods=st.sets(st.sampled_from(REVISIONS)),
    joiners=st.sampled_from([None, *REVISIONS]),
    ends=st.lists(st.integers(0, 1), max_size=10),
)
def test_from_any_start_a_node_arrives_and_no_two_revisions_are_ever_asked_for(
    assignment: str | None, target: str, pods: set[str], joiners: str | None, ends: list[int]
) -> None:
    node = WantedBy(assignment, pods, joiners)
    patches = 0
    for count in [*ends, *(1 for _ in REVISIONS), 1]:
        patches += node.step(target)
        node.let_pods_end(count)
    patches += node.step(target)
    assert node.assignment == target
    assert patches <= 2, "a move takes at most two patches"


@given(
    assignment=ASSIGNMENTS,
    wishes=st.lists(st.tuples(TARGETS, st.integers(0, 1)), min_size=1, max_size=12),
    joiners=st.sampled_from([None, *REVISIONS]),
)
def test_whatever_the_wish_changes_to_on_the_way_no_two_revisions_are_ever_asked_for(
    assignment: str | None, wishes: list[tuple[str, int]], joiners: str | None
) -> None:
    node = WantedBy(assignment, [], joiners)
    node.let_pods_end(0)
    for target, count in wishes:
        node.step(target)
        node.let_pods_end(count)
    for _ in range(6):
        node.step(wishes[-1][0])
        node.let_pods_end(1)
    assert node.assignment == wishes[-1][0]
