"""Stories of who belongs to a fleet: nodes come, go, come back, are left out, change hands; the target is edited."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from outrider.api.names import ROLE_JOINERS
from outrider.core import plan as actions
from outrider.core.moves import is_leaving
from outrider.core.snapshot import Taint
from simulation.fleet import KEY, Fleet, make_spec

OLD, NEW, NEWEST = "r-1.0.0", "r-1.1.0", "r-1.2.0"
EDGE = {"nodeSelector": {"matchLabels": {"pool": "edge"}}}
CORE = {"nodeSelector": {"matchLabels": {"pool": "core"}}}
TEN_PERCENT = {"type": "Rolling", "rolling": {"batchSize": "10%"}}


def installed(count: int = 10, **changes: Any) -> Fleet:
    """A fleet that runs 1.0.0 on all its nodes, which are in the pool `edge`, and so is its target."""
    fleet = Fleet(0, make_spec(target=EDGE, **changes))
    for index in range(count):
        fleet.join(f"node-{index:03}", pool="edge")
    fleet.settle()
    assert fleet.assignments() == {OLD: count}
    fleet.patches.clear()
    return fleet


def go_on(fleet: Fleet, steps: int = 60, watch: Callable[[], None] = lambda: None) -> None:
    for _ in range(steps):
        fleet.execute(fleet.plan())
        watch()
        fleet.tick()


def until_rest(fleet: Fleet) -> None:
    """Let things go on until nothing has happened for a while."""
    quiet = 0
    for _ in range(3000):
        plan = fleet.plan()
        quiet = quiet + 1 if not plan.actions else 0
        if quiet > 15:
            return
        fleet.execute(plan)
        fleet.tick()
    raise AssertionError(f"no end: {fleet.status.phase} {fleet.assignments()}")


def removals(fleet: Fleet) -> list[int]:
    return [len(batch.spec.nodes) for batch in fleet.batches.values() if batch.spec.purpose == "Removal"]


def leave(fleet: Fleet, count: int) -> list[str]:
    """Nodes change their pool, and so leave the target."""
    names = sorted(fleet.nodes)[:count]
    for name in names:
        fleet.label(name, {"pool": "core"})
    return names


# --- nodes that leave -------------------------------------------------------------------------


def test_nodes_that_leave_lose_their_agents_batch_by_batch_and_then_their_label() -> None:
    fleet = installed(10, strategy={"type": "Rolling", "rolling": {"batchSize": 2}})
    gone = leave(fleet, 5)
    worst = 0

    def watch() -> None:
        nonlocal worst
        worst = max(worst, sum(is_leaving(fleet.assignment(name)) for name in gone))

    go_on(fleet, 100, watch)
    assert {fleet.assignment(name) for name in gone} == {None}
    assert not any(fleet.nodes[name].pods for name in gone)
    assert removals(fleet) == [2, 2, 1]
    assert worst == 2
    run = fleet.status.run
    assert run is not None
    assert (run.id, run.state, run.failed, run.skipped, run.healthy) == (1, "Succeeded", 0, 0, 10)
    assert fleet.status.nodes == 5
    assert fleet.status.phase == "Completed"


def test_a_node_that_left_and_whose_label_cannot_be_changed_is_recorded_once_and_holds_up_nobody() -> None:
    fleet = installed(6, strategy={"type": "Rolling", "rolling": {"batchSize": 1}}, health={"timeoutSeconds": 20})
    gone = leave(fleet, 3)
    for _ in range(200):
        plan = fleet.plan()
        kept = tuple(a for a in plan.actions if not (isinstance(a, actions.Assign) and a.node == gone[1]))
        fleet.execute(replace(plan, actions=kept))
        fleet.tick()
    assert {fleet.assignment(name) for name in gone} == {None, OLD}
    assert removals(fleet) == [1, 1, 1]
    assert fleet.status.phase == "Completed"
    assert [
        (e.name, state, reason) for e, state, reason in fleet.entries(1) if e.to == "none" and state == "Failed"
    ] == [(gone[1], "Failed", "PatchRefused")]


def test_with_keep_nodes_that_leave_keep_their_agents() -> None:
    fleet = installed(onLeave="Keep")
    gone = leave(fleet, 5)
    go_on(fleet)
    assert {fleet.assignment(name) for name in gone} == {OLD}
    assert fleet.patches == []


def test_nodes_that_left_lose_their_agents_when_remove_is_set_later() -> None:
    fleet = installed(onLeave="Keep")
    gone = leave(fleet, 5)
    go_on(fleet)
    fleet.change(onLeave="Remove")
    until_rest(fleet)
    assert {fleet.assignment(name) for name in gone} == {None}


def test_a_target_that_selects_nothing_takes_no_agent_away() -> None:
    fleet = installed()
    fleet.change(target={"nodeSelector": {"matchLabels": {"pool": "egde"}}})
    go_on(fleet)
    assert fleet.assignments() == {OLD: 10}
    assert fleet.status.phase == "Stalled"
    fleet.change(target=EDGE)
    until_rest(fleet)
    assert fleet.patches == []
    assert fleet.status.phase == "Completed"


@pytest.mark.parametrize(
    "obstacle",
    [
        pytest.param(lambda fleet, name: fleet.label(name, {"outrider.dev/exclude": "true"}), id="an excluded node"),
        pytest.param(lambda fleet, name: fleet.set_ready(name, False), id="a node that is not Ready"),
    ],
)
def test_it_keeps_its_agent_though_it_left(obstacle: Callable[[Fleet, str], None]) -> None:
    fleet = installed()
    obstacle(fleet, "node-000")
    gone = leave(fleet, 3)
    until_rest(fleet)
    assert [fleet.assignment(name) for name in gone] == [OLD, None, None]


def test_a_pause_takes_no_agent_away() -> None:
    fleet = installed(paused=False)
    fleet.change(paused=True)
    gone = leave(fleet, 5)
    go_on(fleet)
    assert {fleet.assignment(name) for name in gone} == {OLD}
    fleet.change(paused=False)
    until_rest(fleet)
    assert {fleet.assignment(name) for name in gone} == {None}


def test_outside_its_windows_a_rollout_takes_no_agent_away() -> None:
    fleet = installed()
    fleet.change(windows=[{"start": "22:00", "end": "23:00", "timeZone": "UTC"}])
    gone = leave(fleet, 5)
    go_on(fleet)
    assert {fleet.assignment(name) for name in gone} == {OLD}
    assert fleet.status.phase == "Completed"
    fleet.now = fleet.now.replace(hour=22, minute=1)
    until_rest(fleet)
    assert {fleet.assignment(name) for name in gone} == {None}


def test_no_analysis_judges_that_an_agent_was_taken_away() -> None:
    page = {"name": "page", "web": {"url": "https://status.example.com"}, "intervalSeconds": 5}
    fleet = installed(analysis=[page])
    fleet.analysis_says = lambda _batch, _name: "Fail"
    gone = leave(fleet, 5)
    until_rest(fleet)
    assert {fleet.assignment(name) for name in gone} == {None}
    assert fleet.status.phase == "Completed"


def test_a_node_that_is_back_before_its_turn_keeps_its_agent_and_one_that_is_back_later_joins() -> None:
    fleet = installed(10, strategy={"type": "Rolling", "rolling": {"batchSize": 1}})
    gone = leave(fleet, 4)
    fleet.settle(until=lambda f: removals(f) == [1, 1])
    late = [name for name in gone if fleet.assignment(name) == OLD]
    early = [name for name in gone if fleet.assignment(name) is None]
    assert early
    assert late
    for name in gone:
        fleet.label(name, {"pool": "edge"})
    until_rest(fleet)
    assert fleet.assignments() == {OLD: 10}
    assert not [patch for patch in fleet.patches if patch.node == late[-1]]


def test_an_old_agent_that_does_not_end_on_a_node_that_left_is_no_failure_of_the_run() -> None:
    fleet = installed()
    gone = leave(fleet, 1)
    fleet.random.uniform = lambda _low, high: 1e6 if high == 4 else 0.0  # type: ignore[method-assign, assignment]
    go_on(fleet, 100)
    assert fleet.assignment(gone[0]) == "to-none"
    run = fleet.status.run
    assert run is not None
    assert (run.failed, run.state) == (0, "Succeeded")
    fleet.nodes[gone[0]].pods.clear()
    until_rest(fleet)
    assert fleet.assignment(gone[0]) is None


def test_a_node_that_leaves_in_the_middle_of_a_run_is_no_more_of_it() -> None:
    fleet = installed(10, strategy={"type": "Rolling", "rolling": {"batchSize": 2}})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 2)
    moved = next(name for name in fleet.nodes if fleet.assignment(name) == NEW)
    waiting = next(name for name in fleet.nodes if fleet.assignment(name) == OLD)
    for name in (moved, waiting):
        fleet.label(name, {"pool": "core"})
    until_rest(fleet)
    assert fleet.assignments() == {NEW: 8, "None": 2}
    assert fleet.status.run is not None
    assert fleet.status.run.state == "Succeeded"
    assert fleet.status.run.updated == 8


# --- edits of the target ----------------------------------------------------------------------


def grow(fleet: Fleet, count: int, pool: str = "core") -> list[str]:
    names = [f"more-{index:03}" for index in range(count)]
    for name in names:
        fleet.join(name, pool=pool)
    return names


def watch_joiners(fleet: Fleet, entrants: list[str]) -> Callable[[], None]:
    """Fail if the joiners' DaemonSet ever serves one of these nodes."""

    def watch() -> None:
        served = [name for name in entrants for pod in fleet.nodes[name].pods if pod.role == ROLE_JOINERS]
        assert not served, f"joiners' agents on {served}"

    return watch


def test_a_target_that_grows_tenfold_brings_its_nodes_in_by_batches_of_the_fleet_as_it_is_then() -> None:
    fleet = installed(10, strategy=TEN_PERCENT)
    entrants = grow(fleet, 90)
    go_on(fleet, 3)
    fleet.change(target={"all": True})
    worst = 0

    def watch() -> None:
        nonlocal worst
        watch_joiners(fleet, entrants)()
        assert fleet.assignments().get("to-" + OLD, 0) == 0
        without = sum(
            fleet.assignment(name) == OLD and not any(pod.ready_since for pod in sim.pods)
            for name, sim in fleet.nodes.items()
        )
        worst = max(worst, without)

    go_on(fleet, 200, watch)
    assert fleet.assignments() == {OLD: 100}
    late = [len(batch.spec.nodes) for batch in fleet.batches.values() if batch.spec.batch > 10]
    assert late == [10] * 9
    assert worst <= 10
    run = fleet.status.run
    assert run is not None
    assert (run.id, run.nodes, run.late_nodes, run.state) == (1, 10, 100, "Succeeded")
    assert fleet.status.revisions is not None
    assert len(fleet.join_sets) == 1
    # And whoever joins from now on is a joiner of the new target.
    fleet.join("another", pool="elsewhere")
    go_on(fleet, 20)
    assert fleet.assignment("another") == OLD


def test_a_refused_patch_keeps_the_joiners_daemonset_away() -> None:
    fleet = installed(10, strategy=TEN_PERCENT)
    entrants = grow(fleet, 20)
    fleet.change(target={"all": True})
    refuse = entrants[7]
    for _ in range(30):
        plan = fleet.plan()
        kept = tuple(a for a in plan.actions if not (isinstance(a, actions.Assign) and a.node == refuse))
        fleet.execute(replace(plan, actions=kept))
        watch_joiners(fleet, entrants)()
        fleet.tick()
    assert fleet.assignment(refuse) is None
    assert fleet.join_sets == {}
    until_rest(fleet)
    assert fleet.assignments() == {OLD: 30}


def test_percentages_of_a_run_under_way_stay_of_the_fleet_that_it_began_with() -> None:
    fleet = installed(10, strategy=TEN_PERCENT)
    entrants = grow(fleet, 30)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) == 2)
    fleet.change(target={"all": True})
    go_on(fleet, 600, watch_joiners(fleet, entrants))
    assert fleet.assignments() == {NEW: 40}
    assert {len(batch.spec.nodes) for batch in fleet.batches.values() if batch.spec.run == 2} == {1}


def test_a_disjoint_target_brings_the_new_nodes_in_and_then_takes_the_agents_from_the_old() -> None:
    fleet = installed(4)
    entrants = grow(fleet, 4)
    fleet.change(target=CORE)
    go_on(fleet, 150, watch_joiners(fleet, entrants))
    assert {fleet.assignment(name) for name in entrants} == {OLD}
    assert fleet.assignments() == {OLD: 4, "None": 4}
    kinds = [batch.spec.purpose for batch in fleet.batches.values()]
    assert kinds.index("Removal") > len(kinds) - 1 - kinds[::-1].index("Update")


def test_nodes_that_come_in_by_an_edit_fail_within_the_tolerance_of_the_fleet_then() -> None:
    fleet = installed(10, strategy={**TEN_PERCENT, "failureTolerance": "10%"})
    entrants = grow(fleet, 40)
    fleet.behaviour = lambda node, _revision: "crash-loop" if node in entrants[:4] else "healthy"
    fleet.change(target={"all": True})
    until_rest(fleet)
    run = fleet.status.run
    assert run is not None
    assert (run.state, run.failed) == ("PartiallySucceeded", 4)


def test_an_edit_while_the_rollout_holds_after_a_rollback_moves_nobody_until_the_next_run() -> None:
    fleet = installed()
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    entrants = grow(fleet, 5)
    fleet.change(target={"all": True})
    go_on(fleet, 40)
    assert fleet.assignments() == {OLD: 10, "none": 5}
    assert fleet.status.phase == "RolledBack"
    fleet.change(version="1.2.0")
    until_rest(fleet)
    assert {fleet.assignment(name) for name in entrants} == {NEWEST}


def test_an_edit_and_back_within_a_moment_changes_nothing() -> None:
    fleet = installed()
    entrants = grow(fleet, 5)
    fleet.change(target={"all": True})
    fleet.change(target=EDGE)
    go_on(fleet, 20)
    assert {fleet.assignment(name) for name in entrants} == {None}
    assert fleet.patches == []


# --- nodes that join --------------------------------------------------------------------------


def test_with_wait_a_joining_node_gets_nothing_until_the_next_run() -> None:
    fleet = installed(joiners="Wait")
    assert fleet.join_sets == {}
    fleet.join("new-1", pool="edge")
    go_on(fleet, 30)
    assert fleet.assignment("new-1") is None
    assert not fleet.nodes["new-1"].pods
    assert fleet.status.phase == "Completed"
    fleet.change(version="1.1.0")
    until_rest(fleet)
    assert fleet.assignments() == {NEW: 11}


def test_with_wait_a_node_that_fails_goes_back_to_nothing() -> None:
    strategy = {"type": "Rolling", "rolling": {"batchSize": 4}, "failureTolerance": 1}
    fleet = installed(joiners="Wait", strategy=strategy)
    fleet.join("new-1", pool="edge")
    fleet.behaviour = lambda node, _revision: "crash-loop" if node == "new-1" else "healthy"
    fleet.change(version="1.1.0")
    until_rest(fleet)
    assert fleet.assignments() == {NEW: 10, "none": 1}


def test_with_wait_a_run_that_is_opened_again_leaves_joined_nodes_alone() -> None:
    fleet = installed(joiners="Wait")
    fleet.join("new-1", pool="edge")
    go_on(fleet, 5)
    entrants = grow(fleet, 2)
    fleet.change(target={"nodeSelector": {"matchExpressions": [{"key": "pool", "operator": "Exists"}]}})
    until_rest(fleet)
    assert {fleet.assignment(name) for name in entrants} == {OLD}


def test_a_switch_to_wait_takes_no_agent_from_a_node_that_has_just_joined() -> None:
    fleet = installed()
    fleet.join("new-1", pool="edge")
    fleet.tick()  # nobody is there to label it, and the DaemonSet serves it
    assert [pod.role for pod in fleet.nodes["new-1"].pods] == [ROLE_JOINERS]
    fleet.change(joiners="Wait")
    until_rest(fleet)
    assert fleet.assignment("new-1") == OLD
    assert fleet.join_sets == {}


def test_a_node_that_joins_and_would_not_be_scheduled_is_not_said_to_run_anything() -> None:
    fleet = installed()
    fleet.join("new-1", pool="edge")
    sim = fleet.nodes["new-1"]
    fleet.nodes["new-1"].node = replace(sim.node, taints=(Taint("dedicated", "gpu", "NoSchedule"),))
    fleet.execute(fleet.plan())
    assert fleet.assignment("new-1") is None
    fleet.nodes["new-1"].node = replace(fleet.nodes["new-1"].node, taints=())
    until_rest(fleet)
    assert fleet.assignment("new-1") == OLD


def test_a_node_named_by_name_that_joins_later_gets_the_stable_version() -> None:
    fleet = Fleet(2, make_spec(target={"nodeNames": ["node-000", "node-001", "later"]}))
    fleet.settle()
    fleet.join("later")
    fleet.join("nobody-asked")
    until_rest(fleet)
    assert fleet.assignments() == {OLD: 3, "None": 1}


def test_a_node_that_is_replaced_under_its_name_in_the_middle_of_a_run_is_another_one() -> None:
    fleet = installed(4, strategy={"type": "Rolling", "rolling": {"batchSize": 2}})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(is_leaving(f.assignment(name)) for name in f.nodes))
    victim = next(name for name in fleet.nodes if is_leaving(fleet.assignment(name)))
    fleet.leave(victim)
    fleet.join(victim, pool="edge")
    until_rest(fleet)
    first = [(state, reason) for entry, state, reason in fleet.entries(2) if entry.name == victim]
    assert first[0] == ("Failed", "NodeGone") or first[0][1] == "NodeGone"


def test_cordoned_nodes_are_moved_like_others() -> None:
    fleet = installed(4)
    for sim in fleet.nodes.values():
        sim.node = replace(sim.node, unschedulable=True)
    fleet.change(version="1.1.0")
    until_rest(fleet)
    assert fleet.assignments() == {NEW: 4}


# --- nodes that are left out ------------------------------------------------------------------


def test_an_excluded_node_keeps_its_agent_is_not_moved_and_not_counted() -> None:
    fleet = installed()
    fleet.label("node-003", {"outrider.dev/exclude": "true"})
    fleet.change(version="1.1.0")
    until_rest(fleet)
    assert fleet.assignments() == {NEW: 9, OLD: 1}
    assert fleet.status.nodes == 9
    assert "node-003" not in {entry.name for entry, _, _ in fleet.entries(2)}
    fleet.label("node-003", {"outrider.dev/exclude": "false"})
    until_rest(fleet)
    assert fleet.assignments() == {NEW: 10}


def test_an_excluded_node_is_not_taken_back_either() -> None:
    fleet = installed(10, strategy={"type": "Rolling", "rolling": {"batchSize": 2}})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: sum(state == "Succeeded" for _, state, _ in f.entries(2)) == 2)
    kept = next(name for name in fleet.nodes if fleet.assignment(name) == NEW)
    fleet.label(kept, {"outrider.dev/exclude": "true"})
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    until_rest(fleet)
    assert fleet.status.phase == "RolledBack"
    assert fleet.assignments() == {OLD: 9, NEW: 1}


# --- two Rollouts -----------------------------------------------------------------------------


def pair(count: int = 6, **changes: Any) -> tuple[Fleet, Fleet]:
    """An older Rollout with all nodes, and a younger one that wants them all too."""
    older = installed(count, **changes)
    younger = Fleet(0, make_spec("2.0.0", target={"all": True}, **changes), name="second")
    younger.nodes, younger.now, younger.created = older.nodes, older.now, 1
    older.rivals, younger.rivals = [younger], [older]
    return older, younger


def both(older: Fleet, younger: Fleet, steps: int = 120) -> None:
    for _ in range(steps):
        for fleet in (older, younger):
            if not fleet.let_go:
                fleet.execute(fleet.plan())
        older.tick()
        younger.now = older.now
        assert not (older.joiners and younger.joiners), "two joiners' DaemonSets that might want the same node"


def test_what_two_rollouts_want_belongs_to_the_older_one() -> None:
    older, younger = pair()
    both(older, younger)
    assert older.assignments() == {OLD: 6}
    assert older.patches == []
    assert younger.patches == []


def test_the_younger_rollout_takes_over_in_batches_what_the_older_ones_target_loses() -> None:
    older, younger = pair(6, strategy={"type": "Rolling", "rolling": {"batchSize": 1}})
    leave(older, 3)
    both(older, younger, 200)
    assert older.assignments() == {OLD: 3, "second-2.0.0": 3}
    assert removals(older) == []
    assert [len(batch.spec.nodes) for batch in younger.batches.values()] == [1, 1, 1]


@pytest.mark.parametrize("policy", ["Orphan", "Delete"])
def test_the_younger_rollout_takes_over_when_the_older_one_goes(policy: str) -> None:
    older, younger = pair(6, strategy={"type": "Rolling", "rolling": {"batchSize": 2}})
    older.change(deletionPolicy=policy)
    older.deleting = True
    both(older, younger, 200)
    assert older.let_go
    assert older.join_sets == {}
    assert older.assignments() == {"second-2.0.0": 6}


def test_two_rollouts_with_targets_apart_both_serve_their_joiners() -> None:
    older = installed(3)
    younger = Fleet(0, make_spec("2.0.0", target=CORE), name="second")
    younger.nodes, younger.now, younger.created = older.nodes, older.now, 1
    for name in grow(older, 3):
        assert older.assignment(name) is None
    older.rivals, younger.rivals = [younger], [older]
    for _ in range(100):
        for fleet in (older, younger):
            fleet.execute(fleet.plan())
        older.tick()
        younger.now = older.now
    assert older.assignments() == {OLD: 3, "second-2.0.0": 3}
    assert older.joiners == [OLD]


# --- deletion ---------------------------------------------------------------------------------


def delete(fleet: Fleet, **changes: Any) -> None:
    fleet.change(**changes)
    fleet.deleting, fleet.deleting_since = True, fleet.now


def test_a_deleted_rollout_gives_nodes_that_just_joined_their_own_agent_and_leaves_no_joiners_daemonset() -> None:
    fleet = installed()
    fleet.join("new-1", pool="edge")
    fleet.tick()
    delete(fleet)
    fleet.settle(until=lambda f: f.let_go)
    assert fleet.join_sets == {}
    assert fleet.assignments() == {OLD: 11}
    assert fleet.revisions == {OLD: "1.0.0"}


def test_delete_takes_all_agents_and_labels_away_at_once() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(is_leaving(f.assignment(name)) for name in f.nodes))
    fleet.set_ready("node-009", False)
    delete(fleet, deletionPolicy="Delete")
    fleet.settle(until=lambda f: f.let_go, limit=10)
    assert fleet.assignments() == {"None": 10}
    assert fleet.revisions == {}
    assert fleet.join_sets == {}
    go_on_without_operator(fleet)
    assert not any(sim.pods for sim in fleet.nodes.values() if sim.node.ready)


def go_on_without_operator(fleet: Fleet) -> None:
    for _ in range(10):
        fleet.tick()


def test_delete_leaves_nodes_of_another_rollout_alone() -> None:
    older, younger = pair(6, strategy={"type": "Rolling", "rolling": {"batchSize": 3}})
    leave(older, 3)
    both(older, younger, 100)
    younger.change(deletionPolicy="Delete")
    younger.deleting = True
    both(older, younger, 30)
    assert younger.let_go
    assert older.assignments() == {OLD: 3, "None": 3}


def test_labels_that_cannot_be_taken_off_hold_the_deletion_up_for_ten_minutes_at_most() -> None:
    fleet = installed()
    delete(fleet, deletionPolicy="Delete")
    for _ in range(700):
        plan = fleet.plan()
        kept = tuple(a for a in plan.actions if not (isinstance(a, actions.Assign) and a.node == "node-001"))
        fleet.execute(replace(plan, actions=kept))
        if fleet.let_go:
            break
        fleet.tick()
    assert fleet.let_go
    assert (fleet.now - fleet.deleting_since).total_seconds() == 600  # type: ignore[operator]
    assert [event.reason for event in fleet.events][-1] == "LabelsLeft"


def test_when_its_namespace_goes_a_rollout_takes_its_labels_along_and_waits_for_nothing() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(is_leaving(f.assignment(name)) for name in f.nodes))
    delete(fleet)
    fleet.namespace_terminating = True
    fleet.revisions.clear()  # whoever deletes the namespace was faster with the DaemonSets
    fleet.join_sets.clear()
    fleet.execute(fleet.plan())
    fleet.execute(fleet.plan())
    assert fleet.let_go
    assert fleet.assignments() == {"None": 10}
    created = (actions.CreateRevision, actions.CreateJoiners, actions.CreateBatch)
    assert not any(isinstance(action, created) for action in fleet.plan().actions)


def test_a_dead_node_between_two_revisions_does_not_hold_up_the_deletion() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(is_leaving(f.assignment(name)) for name in f.nodes))
    dead = next(name for name in fleet.nodes if is_leaving(fleet.assignment(name)))
    fleet.set_ready(dead, False)
    delete(fleet)
    fleet.settle(until=lambda f: f.let_go, limit=30)
    assert fleet.assignment(dead) == OLD, "what lives there is what it is given back"


def test_a_rollout_that_was_created_again_takes_over_a_half_moved_fleet_by_content() -> None:
    fleet = installed(10, strategy={"type": "Rolling", "rolling": {"batchSize": 2}})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) == 4)
    delete(fleet)
    fleet.settle(until=lambda f: f.let_go)
    counts = fleet.assignments()
    assert set(counts) == {OLD, NEW}
    before = {pod.name for sim in fleet.nodes.values() for pod in sim.pods if pod.revision == NEW}
    fresh = Fleet(0, fleet.spec)
    fresh.nodes, fresh.revisions, fresh.now, fresh.random = fleet.nodes, fleet.revisions, fleet.now, fleet.random
    fresh.serial = fleet.serial
    until_rest(fresh)
    assert fresh.assignments() == {NEW: 10}
    assert fresh.status.phase == "Completed"
    assert before <= {pod.name for sim in fresh.nodes.values() for pod in sim.pods}, "nobody was restarted"
    assert {entry.origin for entry, _, _ in fresh.entries(1)} == {OLD}


# --- changing one's mind ----------------------------------------------------------------------


def on_the_way(fleet: Fleet) -> bool:
    return sum(state == "Succeeded" for _, state, _ in fleet.entries(2)) >= 3


def taking_back(fleet: Fleet) -> bool:
    run = fleet.status.run
    return run is not None and run.kind == "Rollback" and any(state == "Succeeded" for _, state, _ in fleet.entries(3))


def stopped(fleet: Fleet) -> bool:
    return fleet.status.run is not None and fleet.status.run.state == "Paused"


MINDS: list[Any] = [
    pytest.param(
        "healthy",
        {},
        on_the_way,
        {"version": "1.2.0"},
        NEWEST,
        ["Superseded", "Succeeded"],
        id="to a third version in the middle",
    ),
    pytest.param(
        "healthy",
        {},
        on_the_way,
        {"version": "1.0.0"},
        OLD,
        ["Superseded", "Succeeded"],
        id="back to the stable version in the middle",
    ),
    pytest.param(
        "healthy",
        {},
        on_the_way,
        {"variant": "-b"},
        NEW + "-b",
        ["Superseded", "Succeeded"],
        id="only template or delivery, in the middle",
    ),
    pytest.param(
        "bad",
        {},
        taking_back,
        {"version": "1.2.0"},
        NEWEST,
        ["Superseded", "RolledBack", "Succeeded"],
        id="to a third version while it is taken back",
    ),
    pytest.param(
        "bad",
        {},
        taking_back,
        {"version": "1.0.0"},
        OLD,
        ["Superseded", "RolledBack", "Succeeded"],
        id="back to the stable version while it is taken back",
    ),
    pytest.param(
        "bad",
        {"onFailure": "Pause"},
        stopped,
        {"version": "1.2.0"},
        NEWEST,
        ["Superseded", "Succeeded"],
        id="to a third version when the run has stopped",
    ),
]


@pytest.mark.parametrize(("conduct", "spec", "moment", "change", "ends", "results"), MINDS)
def test_a_change_of_mind(
    conduct: str,
    spec: dict[str, Any],
    moment: Callable[[Fleet], bool],
    change: dict[str, str],
    ends: str,
    results: list[str],
) -> None:
    fleet = installed(12, strategy={"type": "Rolling", "rolling": {"batchSize": 3}}, **spec)
    if conduct == "bad":
        fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle(until=moment)
    said = len(fleet.events)
    if "variant" in change:
        fleet.variant = change["variant"]
        fleet.change()
    else:
        fleet.change(**change)
    fleet.settle()
    assert fleet.assignments() == {ends: 12}
    assert [record.result for record in fleet.status.history] == results
    told = [event.reason for event in fleet.events[said:]]
    assert told.index("RunSuperseded") < told.index("RunStarted") < told.index("RunCompleted")


def test_of_two_changes_within_a_moment_only_the_last_is_tried() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.change(version="1.2.0")
    fleet.settle()
    assert fleet.assignments() == {NEWEST: 10}
    assert fleet.status.run is not None
    assert fleet.status.run.id == 2
    assert NEW not in fleet.revisions


def test_a_change_and_back_within_a_moment_disturbs_no_run() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle(until=on_the_way)
    fleet.change(version="1.2.0")
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.run is not None
    assert (fleet.status.run.id, fleet.status.run.state) == (2, "Succeeded")


def test_a_change_in_a_pause_waits_for_its_end() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle(until=on_the_way)
    fleet.change(paused=True)
    fleet.change(version="1.2.0")
    go_on(fleet, 30)
    assert fleet.status.phase == "Paused"
    assert fleet.status.run is not None
    assert fleet.status.run.version == "1.1.0"
    fleet.change(paused=False)
    fleet.settle()
    assert fleet.assignments() == {NEWEST: 10}


def test_a_node_between_two_revisions_when_the_mind_changes_never_has_two_agents() -> None:
    fleet = installed()
    for minor in (1, 2, 0, 1):
        fleet.change(version=f"1.{minor}.0")
        fleet.settle(until=lambda f: any(is_leaving(f.assignment(name)) for name in f.nodes) or not f.plan().actions)
    fleet.settle()
    assert fleet.assignments() == {NEW: 10}
    assert all(KEY in sim.node.labels for sim in fleet.nodes.values())
