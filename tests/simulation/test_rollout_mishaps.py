"""Stories of what once went wrong, or nearly did: outages, restarts, strangers' hands. Each names what must not be."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from outrider.core.moves import is_leaving
from outrider.core.plan import CreateBatch
from outrider.core.ranges import parse_range
from outrider.core.snapshot import Neighbour, RolloutSnapshot
from simulation.fleet import KEY, Fleet, make_spec

CANARY = {"type": "Canary", "canary": {"steps": [{"nodes": 1}]}, "rolling": {"batchSize": "25%"}}


def installed(count: int = 10, **changes: Any) -> Fleet:
    fleet = Fleet(count, make_spec(**changes))
    fleet.settle()
    fleet.patches.clear()
    return fleet


def restart(fleet: Fleet) -> None:
    """A new process: it sees everything for the first time."""
    fleet.observing_since = fleet.now
    for sim in fleet.nodes.values():
        for pod in sim.pods:
            pod.ready_since = fleet.now if pod.ready_since else None


def go_on(fleet: Fleet, steps: int) -> None:
    for _ in range(steps):
        fleet.execute(fleet.plan())
        fleet.tick()


def test_an_operator_that_was_away_for_longer_than_the_timeout_condemns_nobody_who_is_healthy() -> None:
    fleet = installed(health={"timeoutSeconds": 60, "minReadySeconds": 10})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) == 3)
    for _ in range(100):
        fleet.tick()
    restart(fleet)
    fleet.settle()
    assert fleet.status.phase == "Completed"
    assert fleet.status.run is not None
    assert fleet.status.run.failed == 0


def test_an_operator_that_was_away_finishes_half_made_moves_instead_of_condemning_them() -> None:
    fleet = installed(health={"timeoutSeconds": 60, "minReadySeconds": 0})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(is_leaving(f.assignment(name)) for name in f.nodes))
    for _ in range(100):
        fleet.tick()
    restart(fleet)
    fleet.settle()
    assert fleet.status.phase == "Completed"


def test_a_restart_does_not_eat_the_time_that_a_node_has_to_be_ready() -> None:
    fleet = installed(health={"timeoutSeconds": 60, "minReadySeconds": 40})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) == 3)
    go_on(fleet, 28)
    restart(fleet)
    fleet.settle()
    assert fleet.status.phase == "Completed"


def test_a_rollout_without_a_past_that_fails_takes_no_agent_from_nodes_that_it_never_touched() -> None:
    fleet = Fleet(10, make_spec("1.1.0", strategy=CANARY))
    fleet.revisions["r-1.0.0"] = "1.0.0"
    for name in fleet.nodes:
        fleet.label(name, {KEY: "r-1.0.0"})
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == "r-1.1.0" else "healthy"
    for _ in range(10):
        fleet.tick()
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}


def test_a_node_stays_on_what_it_runs_though_history_has_forgotten_it() -> None:
    strategy = {"type": "Rolling", "rolling": {"batchSize": 5}, "failureTolerance": 1}
    fleet = installed(10, runHistoryLimit=1, strategy=strategy)
    stubborn = "node-003"
    fleet.behaviour = lambda node, revision: "crash-loop" if node == stubborn and revision != "r-1.0.0" else "healthy"
    for version in ("1.1.0", "1.2.0", "1.3.0"):
        fleet.change(version=version)
        fleet.settle()
    assert fleet.assignment(stubborn) == "r-1.0.0"


def test_a_late_batch_judges_nobody_of_the_completed_run_again() -> None:
    fleet = installed()
    fleet.set_ready("node-004", False)
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 9, "r-1.0.0": 1}
    fleet.set_ready("node-007", False)
    fleet.set_ready("node-004", True)
    go_on(fleet, 30)
    fleet.set_ready("node-007", True)
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 10}


def test_an_outage_in_mid_run_does_not_switch_the_tolerance_off_for_those_who_return() -> None:
    fleet = installed(20, strategy=CANARY)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) == 1)
    lucky = next(name for name in fleet.nodes if fleet.assignment(name) == "r-1.1.0")
    for name in fleet.nodes:
        if name != lucky:
            fleet.set_ready(name, False)
    fleet.settle()
    fleet.behaviour = lambda node, revision: "crash-loop" if revision == "r-1.1.0" and node != lucky else "healthy"
    for name in fleet.nodes:
        fleet.set_ready(name, True)
    fleet.patches.clear()
    go_on(fleet, 300)
    tried = {patch.node for patch in fleet.patches if (patch.after or "").endswith("r-1.1.0")}
    assert len(tried) <= 5, "no more than a batch"
    assert fleet.status.phase == "Stalled"


def test_changing_ones_mind_again_and_again_breaks_no_more_than_a_batch() -> None:
    strategy = {"type": "Rolling", "rolling": {"batchSize": "10%"}}
    fleet = installed(20, strategy=strategy, health={"timeoutSeconds": 60, "minReadySeconds": 2})
    fleet.behaviour = lambda _node, revision: "healthy" if revision == "r-1.0.0" else "never-ready"
    worst = 0
    for minor in range(1, 7):
        fleet.change(version=f"1.{minor}.0")
        for _ in range(15):
            fleet.execute(fleet.plan())
            fleet.tick()
            worst = max(worst, fleet.out_of_service())
    assert worst <= 4, "a batch, and what is just on its way"


def test_a_history_at_its_limit_forgets_its_oldest() -> None:
    health = {"timeoutSeconds": 60, "minReadySeconds": 0}
    fleet = installed(2, runHistoryLimit=50, strategy={"type": "Full"}, health=health)
    for minor in range(1, 53):
        fleet.change(version=f"1.{minor}.0")
        fleet.settle()
    assert len(fleet.status.history) == 50


def test_a_node_that_lost_its_label_gets_the_stable_version_again() -> None:
    fleet = installed(3, target={"nodeNames": ["node-000", "node-001", "node-002"]})
    node = fleet.nodes["node-001"].node
    fleet.nodes["node-001"].node = replace(node, labels={k: v for k, v in node.labels.items() if k != KEY})
    go_on(fleet, 20)
    assert fleet.assignment("node-001") == "r-1.0.0"
    assert [pod.revision for pod in fleet.nodes["node-001"].pods] == ["r-1.0.0"]


class Shrinking(Fleet):
    """A fleet whose target loses nodes."""

    left: frozenset[str] = frozenset()

    def snapshot(self) -> RolloutSnapshot:
        seen = super().snapshot()
        ours: Mapping[str, Any] = {
            name: node
            for name, node in seen.nodes.items()
            if name not in self.left or (node.labels.get(KEY) or "").removeprefix("to-") in seen.revisions
        }
        return replace(seen, members=frozenset(self.nodes) - self.left, nodes=ours)


def test_a_node_that_leaves_the_target_before_its_turn_is_left_alone() -> None:
    fleet = Shrinking(10, make_spec(strategy={"type": "Full", "full": {"maxInFlight": 1}}))
    fleet.settle()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) == 2)
    victim = [name for name in fleet.nodes if fleet.assignment(name) == "r-1.0.0"][-1]
    fleet.left = frozenset({victim})
    go_on(fleet, 200)
    assert fleet.assignment(victim) == "r-1.0.0"
    assert (victim, "Skipped", "LeftTarget") in {(e.name, s, r) for e, s, r in fleet.entries(2)}


def test_a_node_that_another_rollout_has_taken_is_not_fought_for() -> None:
    fleet = Shrinking(4, make_spec())
    fleet.settle()
    fleet.left = frozenset({"node-001"})
    fleet.label("node-001", {KEY: "to-other"})
    assert [move for move in fleet.plan().moves if move.node == "node-001"] == []


def test_an_assignment_that_somebody_sets_back_does_not_hang_the_run() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(state == "Starting" for _, state, _ in f.entries(2)))
    victim = next(entry.name for entry, state, _ in fleet.entries(2) if state == "Starting")
    fleet.lose_pod(victim)  # whoever skips the way between two revisions has to see to the old pod himself
    fleet.label(victim, {KEY: "r-1.0.0"})
    fleet.settle(limit=1000)


def test_a_pause_before_a_nodes_turn_gives_it_no_more_time() -> None:
    strategy = {"type": "Full", "full": {"maxInFlight": 1}}
    fleet = installed(4, strategy=strategy, health={"timeoutSeconds": 60, "minReadySeconds": 2})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(state == "Succeeded" for _, state, _ in f.entries(2)))
    fleet.change(paused=True)
    fleet.execute(fleet.plan())
    fleet.tick(3600)
    fleet.execute(fleet.plan())
    fleet.behaviour = lambda _node, revision: "never-ready" if revision == "r-1.1.0" else "healthy"
    fleet.change(paused=False)
    begun = fleet.now
    fleet.settle(until=lambda f: f.status.phase == "RollingBack", limit=5000)
    assert (fleet.now - begun).total_seconds() < 200


def test_a_run_that_stopped_is_taken_back_when_a_person_asks_for_it() -> None:
    fleet = installed(onFailure="Pause")
    fleet.behaviour = lambda _node, revision: "image-pull" if revision == "r-1.1.0" else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "Stalled"
    fleet.change(onFailure="Rollback")
    fleet.settle()
    assert fleet.status.phase == "RolledBack"
    assert fleet.assignments() == {"r-1.0.0": 10}


def test_a_late_batch_that_was_stored_and_never_told_of_is_moved_all_the_same() -> None:
    fleet = installed()
    fleet.set_ready("node-004", False)
    fleet.change(version="1.1.0")
    fleet.settle()
    fleet.set_ready("node-004", True)
    plan = fleet.plan()
    [place] = [index for index, action in enumerate(plan.actions) if isinstance(action, CreateBatch)]
    fleet.execute(plan, crash_after=place + 1)  # the batch is stored, that the run goes on is not
    assert fleet.status.run is not None
    assert fleet.status.run.state == "Succeeded"
    restart(fleet)
    fleet.settle(until=lambda f: f.assignments() == {"r-1.1.0": 10}, limit=100)


def test_whoever_is_back_just_when_it_was_recorded_as_away_is_not_moved_with_all_others_at_once() -> None:
    fleet = installed(20, strategy={"type": "Rolling", "rolling": {"batchSize": 2}})
    for name in fleet.nodes:
        fleet.set_ready(name, False)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(len(batch.spec.nodes) == 20 for batch in f.batches.values()))
    for name in fleet.nodes:
        fleet.set_ready(name, True)
    worst = 0
    for _ in range(200):
        go_on(fleet, 1)
        worst = max(worst, fleet.out_of_service())
    assert fleet.assignments() == {"r-1.1.0": 20}
    assert worst <= 2


def test_who_slows_a_run_down_in_the_middle_does_not_have_the_rest_moved_at_once() -> None:
    fleet = installed(20, strategy={"type": "Full", "full": {"maxInFlight": 2}})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) == 4)
    fleet.change(strategy={"type": "Rolling", "rolling": {"batchSize": 1}})
    worst = 0
    for _ in range(20):
        fleet.execute(fleet.plan())
        fleet.tick()
    for _ in range(400):
        fleet.execute(fleet.plan())
        fleet.tick()
        worst = max(worst, fleet.out_of_service())
    assert fleet.assignments() == {"r-1.1.0": 20}
    assert worst == 1


def test_canary_steps_that_are_asked_for_on_the_way_wait_for_who_is_moved_already() -> None:
    fleet = installed(10, strategy={"type": "Rolling", "rolling": {"batchSize": 3}})
    fleet.behaviour = lambda _node, revision: "never-ready" if revision == "r-1.1.0" else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) == 3)
    steps = {"canary": {"steps": [{"nodes": 2}]}, "rolling": {"maxUnavailable": 3}}
    fleet.change(strategy={"type": "Canary", **steps})
    go_on(fleet, 10)
    assert len([batch for batch in fleet.batches.values() if batch.spec.run == 2]) == 1


def test_a_joiner_whose_label_cannot_be_set_never_runs_the_old_and_the_new_stable_version_at_once() -> None:
    fleet = installed()
    fleet.join("stubborn")
    go_on(fleet, 1)
    refused = fleet._do
    fleet._do = lambda action: None if getattr(action, "node", "") == "stubborn" else refused(action)  # type: ignore[method-assign]
    fleet.label("stubborn", {})
    node = fleet.nodes["stubborn"].node
    fleet.nodes["stubborn"].node = replace(node, labels={k: v for k, v in node.labels.items() if k != KEY})
    go_on(fleet, 10)
    fleet.change(version="1.1.0")
    go_on(fleet, 120)  # at each tick the world sees to it that no two agents live on a node
    assert fleet.assignments() == {"r-1.1.0": 10, "None": 1}
    assert {pod.revision for pod in fleet.nodes["stubborn"].pods} == {"r-1.1.0"}


def refuses_node_3(node: str, revision: str) -> str:
    return "image-pull" if (node, revision) == ("node-003", "r-1.1.0") else "healthy"


def stopped(**changes: Any) -> Fleet:
    """A fleet whose run to 1.1.0 has stopped, because one node failed and stands there."""
    fleet = installed(onFailure="Pause", **changes)
    fleet.behaviour = refuses_node_3
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "Stalled"
    return fleet


def entry(fleet: Fleet, name: str) -> list[tuple[str, str]]:
    assert fleet.status.run is not None
    return [(state, reason) for each, state, reason in fleet.entries(fleet.status.run.id) if each.name == name]


def test_a_retry_of_a_node_that_cannot_go_back_first_looks_at_it_once_more() -> None:
    hinders: list[Callable[[Fleet], None]] = [
        lambda fleet: fleet.phases.update({"1.0.0": "Withdrawn"}),
        lambda fleet: fleet.label("node-003", {"outrider.dev/exclude": "true"}),
    ]
    for hinder in hinders:
        fleet = stopped()
        hinder(fleet)
        fleet.ask("retry")
        go_on(fleet, 100)
        assert entry(fleet, "node-003") == [("Failed", "ImagePullBackOff")]
        assert fleet.status.phase == "Stalled", "it does not wait for ever without a word"


def test_a_retry_takes_no_agent_away_that_another_component_needs() -> None:
    fleet = stopped()
    needs = {"3.0.0": (("agent", parse_range(">=1.1.0")),)}
    fleet.neighbours["shipper"] = Neighbour("shipper-key", {"s-1": "3.0.0"}, needs)
    fleet.label("node-003", {"shipper-key": "s-1"})
    fleet.ask("retry")
    go_on(fleet, 100)
    assert fleet.assignment("node-003") == "r-1.1.0"
    assert fleet.status.phase == "Stalled"


def test_a_node_that_dies_on_its_way_to_be_tried_again_does_not_hold_the_run_for_ever() -> None:
    fleet = stopped()
    fleet.set_ready("node-003", False)
    fleet.ask("retry")
    go_on(fleet, 100)
    assert entry(fleet, "node-003") == [("Failed", "ReturnFailed")]
    assert fleet.status.phase == "Stalled"


def test_a_node_that_stayed_where_it_failed_is_tried_again_after_the_run_has_completed() -> None:
    strategy = {"type": "Rolling", "rolling": {"batchSize": "25%"}, "failureTolerance": 1}
    fleet = installed(strategy=strategy)
    fleet.behaviour = refuses_node_3
    fleet.change(version="1.1.0")
    fleet.phases["1.0.0"] = "Withdrawn"
    fleet.settle()
    assert (fleet.status.phase, fleet.assignment("node-003")) == ("Completed", "r-1.1.0")
    fleet.phases["1.0.0"] = "Published"
    fleet.behaviour = lambda _node, _revision: "healthy"
    fleet.ask("retry")
    go_on(fleet, 100)
    assert entry(fleet, "node-003") == [("Skipped", "Retried"), ("Succeeded", "")]
    assert fleet.status.phase == "Completed"


def test_a_rollback_by_request_in_a_window_records_no_more_than_the_window_needs() -> None:
    fleet = installed(30, strategy={"type": "Rolling", "rolling": {"maxUnavailable": 1}})
    fleet.change(version="1.1.0")
    fleet.settle()
    fleet.ask("rollback", run=2)
    go_on(fleet, 10)
    assert len([batch for batch in fleet.batches.values() if batch.spec.run == 3]) == 1


def test_a_rollback_by_request_leaves_an_excluded_node_alone() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle()
    fleet.label("node-003", {"outrider.dev/exclude": "true"})
    fleet.ask("rollback", run=2)
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 9, "r-1.1.0": 1}
    assert entry(fleet, "node-003") == [("Skipped", "AgentKept")]


def test_a_run_that_completed_and_was_open_for_late_nodes_has_completed() -> None:
    fleet = installed()
    fleet.set_ready("node-004", False)
    fleet.change(version="1.1.0")
    fleet.settle()
    fleet.set_ready("node-004", True)
    fleet.settle(until=lambda f: f.status.run is not None and f.status.run.state == "Running")
    fleet.change(version="1.2.0")
    fleet.settle()
    assert (fleet.status.history[0].version, fleet.status.history[0].result) == ("1.1.0", "PartiallySucceeded")
    fleet.phases["1.1.0"] = "Deprecated"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 10}, "a fleet may return to what it once ran"


def test_a_node_does_not_go_back_to_what_was_withdrawn_after_its_retry_was_granted() -> None:
    fleet = stopped()
    fleet.ask("retry")
    fleet.execute(fleet.plan())
    assert entry(fleet, "node-003") == [("Retrying", "ImagePullBackOff")]
    fleet.phases["1.0.0"] = "Withdrawn"
    go_on(fleet, 100)
    assert fleet.assignment("node-003") == "r-1.1.0"
    assert entry(fleet, "node-003") == [("Failed", "ImagePullBackOff")]


def test_runs_that_moved_nobody_have_numbers_of_their_own_when_the_history_is_short() -> None:
    fleet = installed(runHistoryLimit=1)
    numbers = []
    for minor in range(1, 5):
        fleet.change(version=f"1.{minor}.0")
        fleet.settle(until=lambda f: f.status.run is not None and f.status.run.version == f.spec.version)
        assert fleet.status.run is not None
        numbers.append(fleet.status.run.id)
    assert {batch.spec.run for batch in fleet.batches.values()} <= {1}
    assert numbers == [2, 3, 4, 5]


def test_a_node_of_the_same_name_is_another_node() -> None:
    fleet = installed(4, strategy={"type": "Full", "full": {"maxInFlight": 1}}, onFailure="Pause")
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(state == "Starting" for _, state, _ in f.entries(2)))
    [moving] = [each.name for each, state, _ in fleet.entries(2) if state == "Starting"]
    waiting = next(each.name for each, state, _ in fleet.entries(2) if state == "Pending")
    for name in (moving, waiting):
        fleet.leave(name)
        fleet.join(name)
    fleet.execute(fleet.plan())
    assert entry(fleet, moving) == [("Failed", "NodeGone")]
    assert entry(fleet, waiting) == [("Skipped", "NodeGone")]


def test_what_was_never_completed_is_no_way_back_however_short_the_history_is() -> None:
    fleet = installed(6, runHistoryLimit=1, strategy={"type": "Rolling", "rolling": {"batchSize": 2}})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) == 2)
    fleet.behaviour = lambda _node, revision: "healthy" if revision in {"r-1.0.0", "r-1.1.0"} else "image-pull"
    for number, version in ((3, "1.2.0"), (4, "1.3.0")):
        fleet.change(version=version)
        while fleet.status.run is None or fleet.status.run.id < number:
            go_on(fleet, 1)
    fleet.settle()
    assert {entry.back for entry, _, _ in fleet.entries()} == {"r-1.0.0"}
    assert fleet.assignments() == {"r-1.0.0": 6}


def test_a_run_that_can_move_nobody_is_told_to_have_stalled_and_goes_on_by_itself() -> None:
    fleet = installed(3, health={"timeoutSeconds": 60, "minReadySeconds": 0})
    fleet.change(version="1.1.0")
    for name in fleet.nodes:
        fleet.set_ready(name, False)

    def stalled() -> tuple[str, str]:
        found = next((c for c in fleet.status.conditions if c.type == "Stalled"), None)
        return (found.status, found.reason) if found is not None else ("False", "")

    go_on(fleet, 50)
    assert stalled()[0] == "False", "nodes may come back any moment"
    go_on(fleet, 30)
    assert stalled() == ("True", "NoNodeMovable")
    assert "3 NodeNotReady" in next(c.message for c in fleet.status.conditions if c.type == "Stalled")
    for name in fleet.nodes:
        fleet.set_ready(name, True)
    fleet.settle()
    assert fleet.status.phase == "Completed"
    assert stalled()[0] == "False"
