"""Nodes are prepared before their agents are stopped (`spec.prePull`): nobody waits for a download without an agent."""

from dataclasses import replace
from typing import Any

import pytest

from outrider.core import plan as actions
from outrider.core.moves import is_leaving
from outrider.core.plan import DeletePrepare, DropFinalizer, PrepareNodes, WriteBatch
from outrider.core.prepare import MOST
from outrider.core.preview import preview_rollout
from outrider.core.rollout import plan_rollout
from simulation.adopted import AdoptedFleet
from simulation.fleet import START, Fleet, is_at_rest, make_spec
from simulation.trial import MINUTES

OLD, NEW = "r-1.0.0", "r-1.1.0"
TOLERANT = {"type": "Rolling", "rolling": {"batchSize": 3}, "failureTolerance": 1}


def installed(count: int = 9, **changes: Any) -> Fleet:
    fleet = Fleet(count, make_spec(**{"strategy": {"type": "Rolling", "rolling": {"batchSize": 3}}, **changes}))
    fleet.settle()
    assert fleet.assignments() == {OLD: count}
    fleet.change(prePull=True)
    fleet.patches.clear()
    return fleet


def bad_nodes(fleet: Fleet, says: str, *names: str) -> None:
    fleet.prepare_says = lambda node, revision: says if node in names and revision == NEW else "ready"


def set_out(fleet: Fleet) -> set[str]:
    return {move.node for move in fleet.patches if move.before == OLD}


def live(fleet: Fleet, seconds: int, *, unprepared: bool = False) -> None:
    """Let the operator and the world go on, and see to it that nobody sets out who is not prepared."""
    for _ in range(seconds):
        plan = fleet.plan()
        for move in plan.moves:
            if is_leaving(move.after) and move.before == OLD and not unprepared:
                goal, pods = str(move.after).removeprefix("to-"), fleet.nodes[move.node].preparing
                assert any(pod.revision == goal and pod.ready_since for pod in pods), f"{move.node} is not prepared"
        fleet.execute(plan)
        if is_at_rest(fleet):
            return
        fleet.tick()


def state(fleet: Fleet, node: str) -> tuple[str, str]:
    return next((state, reason) for entry, state, reason in fleet.entries(2) if entry.name == node)


def condition(fleet: Fleet, kind: str) -> str:
    found = {condition.type: condition for condition in fleet.status.conditions}
    return found[kind].reason if kind in found else ""


@pytest.mark.parametrize(
    "strategy",
    [
        {"type": "Rolling", "rolling": {"batchSize": 3}},
        {"type": "Rolling", "rolling": {"maxUnavailable": 2}},
        {"type": "Full"},
        {"type": "Canary", "canary": {"steps": [{"nodes": 1, "soakSeconds": 5}]}, "rolling": {"batchSize": 4}},
    ],
    ids=["batches", "a window", "all at once", "a canary first"],
)
def test_every_node_is_prepared_before_it_sets_out_and_nothing_of_that_is_left(strategy: dict[str, Any]) -> None:
    fleet = installed(strategy=strategy)
    fleet.change(version="1.1.0")
    live(fleet, 400)
    assert fleet.assignments() == {NEW: 9}
    assert fleet.status.phase == "Completed"
    assert not fleet.prepare_sets


def test_the_next_batch_is_prepared_while_the_present_one_is_under_way() -> None:
    """The gap between two batches is what it is without: one pass."""
    fleet = installed(strategy={"type": "Rolling", "rolling": {"batchSize": 3}}, health={"minReadySeconds": 8})
    fleet.prepare_seconds = (5, 5)
    fleet.change(version="1.1.0")
    live(fleet, 400)
    began: dict[int, float] = {}
    ended: dict[int, float] = {}
    for batch in fleet.batches.values():
        if batch.spec.run == 2:
            starts = [result.started_at for result in batch.status.nodes if result.started_at]
            began[batch.spec.batch] = (min(starts) - START).total_seconds()
            assert batch.status.finished_at is not None
            ended[batch.spec.batch] = (batch.status.finished_at - START).total_seconds()
    assert sorted(began) == [1, 2, 3]
    assert max(began[number] - ended[number - 1] for number in (2, 3)) <= 2


def test_a_node_that_gets_other_bytes_fails_with_its_reason_and_its_agent_runs_on() -> None:
    fleet = installed(strategy=TOLERANT)
    bad_nodes(fleet, "BlobCorrupted", "node-004")
    fleet.change(version="1.1.0")
    live(fleet, 400)
    assert state(fleet, "node-004") == ("Failed", "BlobCorrupted")
    assert "node-004" not in {move.node for move in fleet.patches}, "it was never touched"
    assert fleet.assignments() == {NEW: 8, OLD: 1}
    assert fleet.status.run is not None
    assert fleet.status.run.state == "PartiallySucceeded"
    assert [(failure.node, failure.reason) for failure in fleet.status.failures] == [("node-004", "BlobCorrupted")]


def test_more_nodes_that_refuse_than_tolerated_take_the_run_back() -> None:
    fleet = installed(strategy=TOLERANT)
    bad_nodes(fleet, "BlobCorrupted", "node-002", "node-004", "node-006")
    fleet.change(version="1.1.0")
    live(fleet, 400)
    assert fleet.status.phase == "RolledBack"
    assert fleet.assignments() == {OLD: 9}
    assert set_out(fleet).isdisjoint({"node-002", "node-004", "node-006"})
    assert not fleet.prepare_sets


def test_a_version_that_every_node_refuses_stops_no_agent() -> None:
    fleet = installed()
    fleet.prepare_says = lambda _node, revision: "NoTrustedKey" if revision == NEW else "ready"
    fleet.change(version="1.1.0")
    live(fleet, 400)
    assert not fleet.patches
    assert fleet.status.phase == "RolledBack"
    assert "NoTrustedKey" in str(fleet.status.last_failure)


def test_while_the_registry_is_down_the_agents_run_on_and_it_is_told() -> None:
    fleet = installed()
    fleet.prepare_says = lambda _node, _revision: "never"
    fleet.change(version="1.1.0")
    live(fleet, 55)
    assert condition(fleet, "Stalled") == ""
    live(fleet, 60)
    assert not fleet.patches, "nobody set out"
    assert condition(fleet, "Stalled") == condition(fleet, "Ready") == "NodesNotPrepared"
    assert {reason for _, state, reason in fleet.entries(2) if state == "Pending"} == {"Preparing"}
    assert fleet.status.run is not None
    assert fleet.status.run.failed == 0, "what cannot be told condemns nobody"
    for sim in fleet.nodes.values():
        for pod in sim.preparing:
            pod.behaviour = "ready"
    fleet.prepare_says = lambda _node, _revision: "ready"
    live(fleet, 400)
    assert fleet.assignments() == {NEW: 9}
    assert condition(fleet, "Stalled") == ""


def test_time_in_a_pause_does_not_count() -> None:
    fleet = installed()
    fleet.prepare_says = lambda _node, _revision: "never"
    fleet.change(version="1.1.0")
    live(fleet, 30)
    fleet.change(paused=True)
    live(fleet, 120)
    fleet.change(paused=False)
    live(fleet, 50)
    assert condition(fleet, "Stalled") == ""
    live(fleet, 20)
    assert condition(fleet, "Stalled") == "NodesNotPrepared"


def test_nothing_is_prepared_outside_the_windows_and_that_time_does_not_count() -> None:
    fleet = installed()
    seconds = (60 - fleet.now.second) % 120 + 62
    fleet.change(windows=MINUTES)
    while not (60 <= (fleet.now - START).total_seconds() % 120 < 70):
        fleet.tick()
    fleet.prepare_says = lambda _node, _revision: "never"
    fleet.change(version="1.1.0")
    live(fleet, 40)
    assert not fleet.prepare_sets
    assert condition(fleet, "Ready") == "WaitingForWindow"
    live(fleet, 70)
    assert fleet.prepare_sets
    live(fleet, seconds)
    assert not fleet.patches
    assert condition(fleet, "Stalled") == "", "no window is open for as long as timeoutSeconds"


def test_what_is_refused_for_the_daemonset_is_told_at_once_and_moves_nobody() -> None:
    fleet = installed()
    fleet.prepare_problem = "the API server refuses the DaemonSet for that: a policy says no"
    fleet.change(version="1.1.0")
    live(fleet, 10)
    assert condition(fleet, "Stalled") == "NodesNotPrepared"
    assert not fleet.patches
    fleet.prepare_problem = ""
    live(fleet, 400)
    assert fleet.assignments() == {NEW: 9}


def test_a_way_back_waits_for_nothing() -> None:
    fleet = installed()
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.status.run is not None and f.status.run.kind == "Rollback")
    fleet.prepare_says = lambda _node, _revision: "never"
    live(fleet, 200, unprepared=True)
    assert fleet.assignments() == {OLD: 9}
    assert not fleet.prepare_sets


def test_a_change_of_mind_back_to_the_stable_version_waits_for_nothing() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 3)
    fleet.prepare_says = lambda _node, _revision: "never"
    fleet.change(version="1.0.0")
    live(fleet, 200, unprepared=True)
    assert fleet.assignments() == {OLD: 9}
    assert not fleet.prepare_sets


def test_another_wish_ends_what_was_being_prepared() -> None:
    fleet = installed()
    fleet.prepare_says = lambda _node, revision: "never" if revision == NEW else "ready"
    fleet.change(version="1.1.0")
    live(fleet, 20)
    assert {each.revision for each in fleet.prepare_sets.values()} == {NEW}
    fleet.change(version="1.2.0")
    live(fleet, 400)
    assert fleet.assignments() == {"r-1.2.0": 9}
    assert not fleet.prepare_sets


def test_a_node_that_joins_gets_the_stable_version_without_being_prepared() -> None:
    fleet = installed()
    fleet.prepare_says = lambda _node, _revision: "never"
    fleet.join("late")
    live(fleet, 20)
    assert fleet.assignment("late") == OLD


def test_nodes_that_come_late_are_prepared_too() -> None:
    fleet = installed()
    fleet.set_ready("node-003", False)
    fleet.change(version="1.1.0")
    live(fleet, 400)
    assert fleet.assignments() == {NEW: 8, OLD: 1}
    fleet.set_ready("node-003", True)
    live(fleet, 100)
    assert fleet.assignments() == {NEW: 9}


def test_who_is_tried_again_is_prepared_anew() -> None:
    fleet = installed(strategy={**TOLERANT, "failureTolerance": 0}, onFailure="Pause")
    bad_nodes(fleet, "NoSpace", "node-004")
    fleet.change(version="1.1.0")
    live(fleet, 200)
    assert condition(fleet, "Paused") == "FailureToleranceExceeded"
    live(fleet, 10)
    assert not fleet.prepare_sets, "a run that has stopped holds nothing"
    fleet.prepare_says = lambda _node, _revision: "ready"
    fleet.ask("retry")
    live(fleet, 400)
    assert fleet.assignments() == {NEW: 9}


def test_prepull_that_is_switched_off_lets_nodes_go_as_they_are() -> None:
    fleet = installed()
    fleet.prepare_says = lambda _node, _revision: "never"
    fleet.change(version="1.1.0")
    live(fleet, 20)
    fleet.change(prePull=False)
    live(fleet, 400, unprepared=True)
    assert fleet.assignments() == {NEW: 9}
    assert not fleet.prepare_sets


@pytest.mark.parametrize("policy", ["Orphan", "Delete"])
def test_a_deleted_rollout_leaves_nothing_that_prepares(policy: str) -> None:
    fleet = installed(deletionPolicy=policy)
    fleet.prepare_says = lambda _node, _revision: "never"
    fleet.change(version="1.1.0")
    live(fleet, 20)
    assert fleet.prepare_sets
    fleet.deleting = True
    for _ in range(60):
        plan = fleet.plan()
        kinds = [type(action) for action in plan.actions]
        if DropFinalizer in kinds and DeletePrepare in kinds:
            assert kinds.index(DeletePrepare) < kinds.index(DropFinalizer), "it goes before nobody looks any more"
        fleet.execute(plan)
        if fleet.let_go:
            break
        fleet.tick()
    assert fleet.let_go
    assert not fleet.prepare_sets


def test_what_a_process_left_behind_when_it_ended_is_cleared_away() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    for _ in range(400):
        plan = fleet.plan()  # each time it ends before the clean-up
        fleet.execute(replace(plan, actions=tuple(a for a in plan.actions if not isinstance(a, DeletePrepare))))
        if fleet.status.phase == "Completed" and fleet.status.run is not None and fleet.status.run.id == 2:
            break
        fleet.tick()
    assert fleet.prepare_sets
    live(fleet, 10)
    assert not fleet.prepare_sets


def test_a_process_that_ends_between_preparing_and_moving_prepares_nothing_twice() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    made: list[str] = []
    for step in range(300):
        plan = fleet.plan()
        made += [f"{action.revision} {action.nodes}" for action in plan.actions if isinstance(action, PrepareNodes)]
        fleet.execute(plan)
        if step % 3 == 0:
            fleet.unprepared_since = {}
            fleet.observing_since = fleet.now
        if is_at_rest(fleet):
            break
        fleet.tick()
    assert fleet.assignments() == {NEW: 9}
    assert len(made) == len(set(made)) <= 3, "one DaemonSet for a batch, and no write per node"


def test_a_large_fleet_is_prepared_part_by_part() -> None:
    fleet = installed(1200, strategy={"type": "Full"})
    fleet.change(version="1.1.0")
    sizes: list[int] = []
    for _ in range(200):
        plan = fleet.plan()
        sizes += [len(action.nodes) for action in plan.actions if isinstance(action, PrepareNodes)]
        fleet.execute(plan)
        named = frozenset().union(*(each.nodes for each in fleet.prepare_sets.values()))
        assert sum(fleet.assignment(name) == OLD for name in named) <= MOST
        if is_at_rest(fleet):
            break
        fleet.tick()
    assert fleet.assignments() == {NEW: 1200}
    assert sum(sizes) == 1200
    assert len(sizes) <= 8, "few DaemonSets, whatever the size of the fleet"


def test_a_preparation_counts_as_nobodys_agent_and_takes_no_place() -> None:
    fleet = installed(strategy={"type": "Rolling", "rolling": {"maxUnavailable": 1}})
    bad_nodes(fleet, "never", "node-000", "node-001")
    fleet.change(version="1.1.0")
    live(fleet, 300)
    assert fleet.assignments() == {NEW: 7, OLD: 2}, "who waits holds up nobody of a window"
    assert sum(each.nodes for each in fleet.status.versions) == 9
    assert fleet.out_of_service() == 0


def test_nodes_are_verifying_and_not_downloading_when_they_were_prepared() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) > 0)
    fleet.tick()
    seen = fleet.snapshot()
    fetching = {
        name: tuple(replace(pod, ready_since=None, fetching=True) for pod in pods) for name, pods in seen.pods.items()
    }
    plan = plan_rollout(replace(seen, pods=fetching))
    records = [action.status for action in plan.actions if isinstance(action, WriteBatch)]
    states = {result.state for record in records for result in record.nodes if fleet.assignment(result.name) == NEW}
    assert states == {"Verifying"}


def test_without_prepull_nothing_is_written_for_it() -> None:
    fleet = installed()
    fleet.change(version="1.1.0", prePull=False)
    for _ in range(300):
        plan = fleet.plan()
        assert not any(isinstance(action, actions.PrepareNodes | actions.DeletePrepare) for action in plan.actions)
        fleet.execute(plan)
        if is_at_rest(fleet):
            break
        fleet.tick()
    assert fleet.assignments() == {NEW: 9}


def test_a_preview_says_that_nodes_are_prepared_first() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    preview = preview_rollout(fleet.snapshot())
    assert preview.outcome == "Completes"
    assert any("prePull" in each for each in preview.before)
    assert any("prePull" in each for each in preview.assumptions)
    fleet.change(prePull=False)
    assert not any("prePull" in each for each in preview_rollout(fleet.snapshot()).before)


def test_nodes_leave_a_daemonset_that_was_taken_over_only_when_they_are_prepared() -> None:
    spec = make_spec(
        strategy={"type": "Rolling", "rolling": {"batchSize": 3}}, adoption={"daemonSet": "old-agent"}, prePull=True
    )
    fleet = AdoptedFleet(10, spec)
    left = 0
    for _ in range(400):
        plan = fleet.plan()
        for move in plan.moves:
            if is_leaving(move.after) and move.before == "legacy":
                left += 1
                assert any(pod.ready_since for pod in fleet.nodes[move.node].preparing), f"{move.node} is not prepared"
        fleet.execute(plan)
        if is_at_rest(fleet):
            break
        fleet.tick()
    assert left == 10
    assert fleet.assignments() == {OLD: 10}
    assert not fleet.prepare_sets
