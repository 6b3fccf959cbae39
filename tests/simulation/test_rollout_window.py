"""A sliding window: as soon as one node is done the next starts, and never more are away than the window is wide."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.core import batches as arithmetic
from outrider.core.moves import is_leaving
from outrider.core.plan import CreateBatch, WriteBatch
from outrider.core.states import ARRIVING
from simulation.fleet import Fleet, is_at_rest, make_spec

OLD, NEW = "r-1.0.0", "r-1.1.0"


def window(size: int | str, **strategy: Any) -> dict[str, Any]:
    return {"type": "Rolling", "rolling": {"maxUnavailable": size}, **strategy}


def installed(count: int, size: int | str = 3, *, seed: int = 0, tolerance: int | str = 0, **changes: Any) -> Fleet:
    strategy = changes.pop("strategy", window(size, failureTolerance=tolerance))
    spec = make_spec(strategy=strategy, health={"timeoutSeconds": 60, "minReadySeconds": 0}, **changes)
    fleet = Fleet(count, spec, seed=seed)
    fleet.settle()
    assert fleet.assignments() == {OLD: count}
    return fleet


def make_bad(fleet: Fleet, *numbers: int, behaviour: str = "crash-loop") -> None:
    bad = {f"node-{number:03}" for number in numbers}
    fleet.behaviour = lambda node, revision: behaviour if node in bad and revision == NEW else "healthy"


def act(fleet: Fleet) -> None:
    """Make passes until there is nothing to do in this moment: what is recorded leaves in the pass after."""
    for _ in range(4):
        fleet.execute(fleet.plan())


def waiting(fleet: Fleet) -> int:
    """Count the nodes that have not been touched yet."""
    return sum(fleet.assignment(name) == OLD for name in fleet.nodes)


def moving(fleet: Fleet, run: int) -> int:
    return sum(state in ARRIVING | {"Stopping", "Returning"} for _, state, _ in fleet.entries(run))


@pytest.mark.parametrize("size", [1, 4, "15%", "100%"])
def test_the_window_is_never_overrun_and_always_full(size: int | str) -> None:
    fleet = installed(40, size)
    width = arithmetic.rolling_size(fleet.spec, 40)
    fleet.change(version="1.1.0")
    widths = set()
    for _ in range(1000):
        act(fleet)
        if is_at_rest(fleet):
            break
        away = fleet.out_of_service()
        assert away <= width
        # A node that is Ready is done, and its successor has left in the same breath.
        assert away == width or waiting(fleet) == 0, "a place of the window is empty, and nodes wait"
        widths.add(away)
        fleet.tick(0.5)
    assert max(widths) == width
    assert fleet.assignments() == {NEW: 40}
    assert fleet.status.phase == "Completed"


def test_a_record_comes_before_the_move_and_is_there_before_it_is_needed() -> None:
    fleet = installed(400, 50)
    fleet.change(version="1.1.0")
    created = 0
    while not is_at_rest(fleet):
        plan = fleet.plan()
        run = fleet.status.run
        new = [action for action in plan.actions if isinstance(action, CreateBatch)]
        if run is not None and run.version == "1.1.0" and created and waiting(fleet):
            untouched = sum(state == "Pending" for _, state, _ in fleet.entries(run.id))
            assert untouched >= 50 or new or untouched == waiting(fleet)
        assert all(len(action.spec.nodes) <= arithmetic.PAGE for action in new)
        created += len(new)
        fleet.execute(plan)
        fleet.tick(0.5)
    assert created == 4, "full pages: a record for each hundred nodes, and no more"
    assert fleet.status.run is not None
    assert fleet.status.run.batch == "4/4"


def test_what_only_tells_how_far_a_window_is_holds_up_no_move() -> None:
    fleet = installed(300, 20)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 1)
    while fleet.assignments().get(NEW, 0) < 280:
        plan = fleet.plan()
        assert not plan.urgent_status
        assert not any(action.urgent for action in plan.actions if isinstance(action, WriteBatch))
        fleet.execute(plan)
        fleet.tick(0.5)


def test_records_that_no_status_counted_yet_are_counted_all_the_same() -> None:
    fleet = installed(30)
    fleet.change(version="1.1.0")
    fleet.execute(fleet.plan())
    fleet.execute(fleet.plan())
    before = fleet.status
    plan = fleet.plan()
    assert any(isinstance(action, CreateBatch) for action in plan.actions)
    fleet.execute(plan)
    fleet.status = before  # counts of a window are told now and then
    assert before.run is not None
    assert before.run.batches == 0
    status = fleet.plan().status
    assert status.run is not None
    assert status.run.batch == "1/1"


def test_canary_steps_come_before_the_window() -> None:
    strategy = {
        "type": "Canary",
        "canary": {"steps": [{"nodes": 2, "soakSeconds": 10}]},
        "rolling": {"maxUnavailable": 4},
    }
    fleet = installed(20)
    fleet.change(version="1.1.0", strategy=strategy)
    began = fleet.now
    fleet.settle(until=lambda f: waiting(f) < 18)
    canaries = [b for b in fleet.batches.values() if b.spec.run == 2 and b.spec.step == 1]
    assert [len(batch.spec.nodes) for batch in canaries] == [2]
    assert canaries[0].status.finished_at is not None
    assert (fleet.now - began).total_seconds() >= 10
    fleet.settle()
    assert fleet.assignments() == {NEW: 20}


def test_a_bad_canary_keeps_the_window_shut() -> None:
    strategy = {"type": "Canary", "canary": {"steps": [{"nodes": 1}]}, "rolling": {"maxUnavailable": 4}}
    fleet = installed(20)
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.change(version="1.1.0", strategy=strategy)
    fleet.settle()
    assert len({move.node for move in fleet.patches if move.after == NEW}) == 1
    assert fleet.status.phase == "RolledBack"


def test_a_failed_node_goes_back_at_once_and_keeps_its_place_until_it_is_back() -> None:
    fleet = installed(30, 1, tolerance=1)
    make_bad(fleet, 3)
    fleet.change(version="1.1.0")
    returned = False
    while not is_at_rest(fleet):
        act(fleet)
        assert fleet.out_of_service() <= 1
        returned = returned or fleet.assignment("node-003") == f"to-{OLD}"
        fleet.tick(0.5)
    assert returned
    assert fleet.assignments() == {NEW: 29, OLD: 1}
    assert fleet.status.run is not None
    assert fleet.status.run.state == "PartiallySucceeded"


def test_nodes_that_failed_for_good_take_places_but_never_the_last_one() -> None:
    """Neither Outrider nor anybody else can tell when they will be well again."""
    fleet = installed(30, 2, tolerance=5)
    bad = {"node-003", "node-004", "node-005"}
    fleet.behaviour = lambda node, _revision: "crash-loop" if node in bad else "healthy"
    fleet.change(version="1.1.0")
    most = 0
    while not is_at_rest(fleet):
        act(fleet)
        lost = sum(state == "Failed" for _, state, _ in fleet.entries(2))
        assert moving(fleet, 2) <= max(1, 2 - lost)
        most = max(most, lost)
        fleet.tick(0.5)
    assert most == 3
    assert fleet.assignments() == {NEW: 27, OLD: 3}


def test_more_failures_than_tolerated_take_everything_back_through_the_same_window() -> None:
    fleet = installed(40, 4, tolerance=1)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 20)
    make_bad(fleet, *range(40))
    away = 0
    while not is_at_rest(fleet):
        act(fleet)
        run = fleet.status.run
        assert run is not None
        assert moving(fleet, run.id) + sum(is_leaving(fleet.assignment(n)) for n in fleet.nodes) <= 2 * 4
        if run.kind == "Rollback":
            assert moving(fleet, run.id) <= 4
            away = max(away, moving(fleet, run.id))
        fleet.tick(0.5)
    assert away == 4
    assert fleet.assignments() == {OLD: 40}
    assert fleet.status.phase == "RolledBack"


def test_a_page_of_which_every_moved_node_failed_fails_the_run() -> None:
    fleet = installed(150, 60, tolerance="100%")
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "RolledBack"
    message = fleet.status.history[0].message
    assert message.startswith("all ")
    assert fleet.assignments() == {OLD: 150}


def test_a_pause_lets_the_window_run_empty_and_its_end_fills_it_again() -> None:
    fleet = installed(40, 5)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 10)
    fleet.change(paused=True)
    for _ in range(20):
        act(fleet)
        fleet.tick()
    assert moving(fleet, 2) == 0
    assert waiting(fleet) > 0
    fleet.change(paused=False)
    act(fleet)
    assert moving(fleet, 2) == 5
    fleet.settle()
    assert fleet.assignments() == {NEW: 40}


def test_another_version_in_the_middle_takes_the_window_over() -> None:
    fleet = installed(40, 5)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 10)
    fleet.change(version="1.2.0")
    while not is_at_rest(fleet):
        act(fleet)
        assert fleet.out_of_service() <= 5, "those that the run before left half-way count as well"
        fleet.tick(0.5)
    assert fleet.assignments() == {"r-1.2.0": 40}


def test_batches_in_place_of_a_window_in_the_middle_of_a_run_bound_what_is_recorded_already() -> None:
    fleet = installed(60, 20)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 5)
    fleet.change(strategy={"type": "Rolling", "rolling": {"batchSize": 2}})
    fleet.settle(until=lambda f: moving(f, 2) <= 2)
    while not is_at_rest(fleet):
        act(fleet)
        assert moving(fleet, 2) <= 2
        fleet.tick(0.5)
    assert fleet.assignments() == {NEW: 60}


@pytest.mark.parametrize("before", [{"maxUnavailable": 20}, {"batchSize": 20}])
@pytest.mark.parametrize("after", [{"maxUnavailable": 2}, {"batchSize": 2}])
def test_who_is_on_record_and_has_not_left_yet_keeps_to_a_limit_that_was_lowered_meanwhile(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    """The operator ends between the record and the patches, and is told to be careful before it is back."""
    fleet = installed(24, strategy={"type": "Rolling", "rolling": before})
    fleet.change(version="1.1.0")
    while not (plan := fleet.plan()).moves:
        fleet.execute(plan)
    assert len(plan.moves) == 20
    fleet.execute(replace(plan, actions=tuple(action for action in plan.actions if action not in plan.moves)))
    assert moving(fleet, 2) == 20
    fleet.change(strategy={"type": "Rolling", "rolling": after})
    while not is_at_rest(fleet):
        act(fleet)
        assert fleet.out_of_service() <= 2
        fleet.tick()
    assert fleet.assignments() == {NEW: 24}
    assert fleet.status.run is not None
    assert fleet.status.run.state == "Succeeded"


def test_nodes_that_are_away_are_left_out_and_taken_when_they_are_back() -> None:
    fleet = installed(30, 4)
    for number in (3, 7, 11):
        fleet.set_ready(f"node-{number:03}", False)
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {NEW: 27, OLD: 3}
    for number in (3, 7, 11):
        fleet.set_ready(f"node-{number:03}", True)
    fleet.settle(until=lambda f: f.assignments() == {NEW: 30} and is_at_rest(f))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    count=st.integers(1, 24),
    size=st.sampled_from([1, 2, 7, "10%", "34%", "100%"]),
    bad=st.sets(st.integers(0, 23), max_size=4),
    seed=st.integers(0, 10_000),
    crashes=st.booleans(),
)
def test_whatever_fails_and_whenever_the_operator_dies_the_window_holds_and_every_node_is_reached(
    count: int, size: int | str, bad: set[int], seed: int, crashes: bool
) -> None:
    fleet = installed(count, size, seed=seed, tolerance=4)
    fleet.change(version="1.1.0")
    make_bad(fleet, *bad)
    width = arithmetic.rolling_size(fleet.spec, count)
    for _ in range(4000):
        plan = fleet.plan()
        if crashes and fleet.random.random() < 0.2:
            fleet.execute(plan, crash_after=fleet.random.randrange(len(plan.actions) + 1))
        else:
            fleet.execute(plan)
        assert fleet.out_of_service() <= width
        if is_at_rest(fleet):
            break
        fleet.tick()
    else:
        raise AssertionError(f"no end: {fleet.status}")
    run = fleet.status.run
    assert run is not None
    counts = fleet.assignments()
    if run.kind == "Rollout":
        failed = sum(number < count for number in bad)
        assert counts == {key: n for key, n in {NEW: count - failed, OLD: failed}.items() if n}
    else:  # all moved nodes of a page were bad ones
        assert counts == {OLD: count}


def test_two_nodes_that_came_late_and_fail_do_not_take_a_fleet_back_that_tolerates_them() -> None:
    """They are a record of their own: that all of it failed says nothing about the fleet."""
    fleet = installed(20, 5, tolerance="40%")
    bad = {"late-1", "late-2"}
    fleet.behaviour = lambda node, revision: "crash-loop" if node in bad and revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 12)
    for name in sorted(bad):
        fleet.join(name)
    fleet.settle()
    assert fleet.status.run is not None
    assert fleet.status.run.state == "PartiallySucceeded"
    assert fleet.assignments() == {NEW: 20, OLD: 2}
    alone = [batch for batch in fleet.batches.values() if {entry.name for entry in batch.spec.nodes} == bad]
    assert alone, "else this shows nothing"


@pytest.mark.parametrize(("failing", "state"), [(2, "PartiallySucceeded"), (4, "RolledBack")])
def test_the_rest_of_a_batch_is_no_sample_and_a_whole_batch_is(failing: int, state: str) -> None:
    """Of ten nodes in batches of four, tolerating five: the last two, or the first four, fail."""
    strategy = {"type": "Rolling", "rolling": {"batchSize": 4}, "failureTolerance": 5}
    fleet = Fleet(10, make_spec(strategy=strategy))
    fleet.settle()
    order = [node.name for node in arithmetic.order_nodes([s.node for s in fleet.nodes.values()], "rollout-uid", 2)]
    bad = set(order[-2:] if failing == 2 else order[:4])
    fleet.behaviour = lambda node, revision: "crash-loop" if node in bad and revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    ended = fleet.status.run if state == "PartiallySucceeded" else fleet.status.history[0]
    assert ended is not None
    assert (ended.state if state == "PartiallySucceeded" else ended.result) == state  # type: ignore[union-attr]
    assert fleet.assignments() == ({NEW: 8, OLD: 2} if failing == 2 else {OLD: 10})
