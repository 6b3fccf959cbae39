"""What people ask for by annotations, on the simulated fleet, and processes that end at any line of it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from outrider.api.rollout import Approval, RunStatus
from outrider.core import plan as actions
from outrider.core.compatibility import VersionRules
from outrider.core.moves import is_leaving
from outrider.core.ranges import parse_range
from outrider.core.snapshot import Hindrance, Neighbour, Request
from simulation.fleet import Fleet, make_spec

ROLLING = {"type": "Rolling", "rolling": {"batchSize": 2}}
SHIPPER = Neighbour("shipper-key", {"s-1": "3.0.0"}, {"3.0.0": (("agent", parse_range(">=1.1.0")),)})
CANARY = {"type": "Canary", "canary": {"steps": [{"nodes": 1, "soakSeconds": 5}]}, "rolling": {"batchSize": 3}}


def installed(count: int = 10, **changes: Any) -> Fleet:
    """A fleet that runs 1.0.0 everywhere."""
    fleet = Fleet(count, make_spec(**{"strategy": ROLLING, **changes}))
    fleet.settle()
    fleet.patches.clear()
    return fleet


def updated(*versions: str, count: int = 10, **changes: Any) -> Fleet:
    """A fleet that runs the last of these versions everywhere, and has run the others before."""
    fleet = installed(count, **changes)
    for version in versions or ("1.1.0",):
        fleet.change(version=version)
        fleet.settle()
        assert fleet.assignments() == {f"r-{version}": count}
    fleet.patches.clear()
    return fleet


def half_way(moved: int = 4, **changes: Any) -> Fleet:
    """A fleet on its way from 1.0.0 to 1.1.0, some nodes there."""
    fleet = installed(**changes)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) >= moved)
    return fleet


def run_of(fleet: Fleet) -> RunStatus:
    assert fleet.status.run is not None
    return fleet.status.run


def conditions(fleet: Fleet) -> dict[str, str]:
    return {condition.type: condition.status for condition in fleet.status.conditions}


def reason(fleet: Fleet, kind: str = "Ready") -> str:
    return next(condition.reason for condition in fleet.status.conditions if condition.type == kind)


def message(fleet: Fleet) -> str:
    return next(condition.message for condition in fleet.status.conditions if condition.type == "Ready")


def told(fleet: Fleet, reason: str) -> list[str]:
    return [event.message for event in fleet.events if event.reason == reason]


def refusal(fleet: Fleet) -> str:
    """Execute one plan, and return why it refuses what was asked; nothing else may come of it."""
    before = fleet.status.run, fleet.status.history, len(fleet.patches)
    fleet.execute(fleet.plan())
    assert fleet.is_answered()
    messages = told(fleet, "RequestRefused")
    assert len(messages) == 1, fleet.events
    assert fleet.status.last_refused is not None
    assert fleet.status.last_refused.message == messages[0][:512]
    after_run = fleet.status.run
    assert (after_run.id if after_run else None) == (before[0].id if before[0] else None)
    assert fleet.status.history == before[1]
    fleet.events.clear()
    fleet.execute(fleet.plan())
    assert told(fleet, "RequestRefused") == [], "it is refused once"
    return messages[0]


def batch_of(fleet: Fleet, run: int, number: int) -> set[str]:
    found = [b for b in fleet.batches.values() if (b.spec.run, b.spec.batch) == (run, number)]
    return {entry.name for batch in found for entry in batch.spec.nodes}


def go_on(fleet: Fleet, steps: int = 60) -> None:
    for _ in range(steps):
        fleet.execute(fleet.plan())
        fleet.tick()


# -- abort


def test_an_aborted_run_is_taken_back_and_the_rollout_holds() -> None:
    fleet = half_way()
    fleet.ask("abort")
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}
    assert fleet.status.phase == "RolledBack"
    assert reason(fleet, "RolledBack") == "RunAborted"
    run = run_of(fleet)
    assert (run.kind, run.cause, run.state, run.of_run) == ("Rollback", "Aborted", "Succeeded", 2)
    assert (run.requested_by, run.from_version, run.to_version) == ("alice", "1.1.0", "1.0.0")
    assert fleet.status.history[0].result == "RolledBack"
    assert fleet.status.history[0].message == "aborted by alice"
    patches = len(fleet.patches)
    go_on(fleet)
    assert len(fleet.patches) == patches, "nothing starts by itself"


def test_an_aborted_run_stops_where_it_is_if_failures_pause_it() -> None:
    fleet = half_way(onFailure="Pause")
    fleet.ask("abort")
    fleet.settle()
    go_on(fleet)
    assert fleet.assignments() == {"r-1.1.0": 4, "r-1.0.0": 6}
    assert fleet.status.phase == "Stalled"
    assert (reason(fleet), reason(fleet, "Paused")) == ("RunAborted", "RunAborted")
    fleet.ask("retry")
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 10}
    assert fleet.status.phase == "Completed"
    assert run_of(fleet).id == 2, "the same run went on"


def test_half_made_moves_are_finished_when_a_run_is_aborted() -> None:
    fleet = installed(onFailure="Pause")
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(is_leaving(f.assignment(name)) for name in f.nodes))
    fleet.ask("abort")
    go_on(fleet)
    assert fleet.assignments() == {"r-1.1.0": 2, "r-1.0.0": 8}


def test_an_aborted_rollback_stops_and_a_retry_lets_it_go_on() -> None:
    fleet = half_way(6)
    fleet.ask("abort")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) <= 4)
    fleet.ask("abort", by="bob")
    go_on(fleet)
    assert 0 < fleet.assignments()["r-1.1.0"] <= 4
    assert fleet.status.phase == "Stalled"
    assert run_of(fleet).aborted_by == "bob"
    fleet.ask("retry")
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}
    assert fleet.status.phase == "RolledBack"


def test_an_abort_in_a_pause_moves_nothing_before_the_pause_ends() -> None:
    fleet = half_way()
    fleet.change(paused=True)
    go_on(fleet, 10)
    fleet.ask("abort")
    fleet.patches.clear()
    go_on(fleet, 30)
    assert fleet.patches == []
    assert any(event.message.endswith("what it moved is taken back when the pause ends") for event in fleet.events)
    waits = (
        "paused by spec.paused; run 2 to 1.1.0 was aborted by alice. What it moved is taken back when the pause ends"
    )
    assert message(fleet).endswith(waits)
    fleet.change(paused=False)
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}


def test_what_failed_in_a_pause_is_told_and_goes_back_afterwards() -> None:
    fleet = half_way()
    well = {name for name in fleet.nodes if fleet.assignment(name) == "r-1.1.0"}
    fleet.behaviour = lambda node, revision: "image-pull" if revision == "r-1.1.0" and node not in well else "healthy"
    fleet.settle(until=lambda f: sum(is_leaving(f.assignment(name)) for name in f.nodes) == 2)
    fleet.change(paused=True)
    go_on(fleet, 30)
    assert "r-1.1.0" in fleet.assignments()
    assert reason(fleet) == "PausedBySpec"
    assert "run 2 to 1.1.0 failed: 2 of 10 nodes failed, tolerated are 0" in message(fleet)
    assert message(fleet).endswith("What it moved is taken back when the pause ends")
    fleet.change(paused=False)
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}


def test_a_rollback_that_a_person_asks_for_in_a_pause_says_that_it_waits() -> None:
    fleet = updated()
    fleet.change(paused=True)
    fleet.ask("rollback", run=2)
    go_on(fleet, 30)
    assert fleet.patches == []
    assert reason(fleet) == "PausedBySpec"
    assert "paused by spec.paused, ways back included" in message(fleet)
    fleet.change(paused=False)
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}


def test_a_return_to_the_stable_version_is_not_taken_back_when_it_is_aborted() -> None:
    fleet = half_way()
    fleet.change(version="1.0.0")
    fleet.settle(until=lambda f: run_of(f).id == 3 and f.assignments().get("r-1.1.0", 0) <= 2)
    fleet.ask("abort")
    go_on(fleet)
    assert run_of(fleet).state == "Paused"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(installed, "no run is under way", id="a completed run"),
        pytest.param(lambda: Fleet(3, make_spec(paused=True)), "no run is under way", id="no run yet"),
    ],
)
def test_there_may_be_nothing_to_abort(make: Callable[[], Fleet], words: str) -> None:
    fleet = make()
    fleet.execute(fleet.plan())
    fleet.ask("abort")
    assert words in refusal(fleet)


def test_what_has_stopped_cannot_be_aborted() -> None:
    fleet = half_way(onFailure="Pause")
    fleet.ask("abort")
    go_on(fleet, 20)
    fleet.events.clear()
    fleet.ask("abort")
    assert "has stopped already: aborted by alice" in refusal(fleet)


# -- retry


def crash_loops(*nodes: str, version: str = "1.1.0") -> Callable[[str, str], str]:
    def behave(node: str, revision: str) -> str:
        return "crash-loop" if revision == f"r-{version}" and node in nodes else "healthy"

    return behave


def test_a_retry_of_a_completed_run_moves_only_what_failed_or_was_left_out() -> None:
    fleet = installed(strategy={**ROLLING, "failureTolerance": 2})
    fleet.rules["r-1.1.0"] = VersionRules(frozenset({"linux/amd64"}))
    for name in fleet.nodes:
        fleet.label(name, {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"})
    fleet.label("node-005", {"kubernetes.io/arch": "arm64"})
    fleet.behaviour = crash_loops("node-001", "node-002")
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "Completed"
    assert run_of(fleet).state == "PartiallySucceeded"
    go_on(fleet)
    assert fleet.assignments() == {"r-1.1.0": 7, "r-1.0.0": 3}, "nothing is tried again by itself"
    fleet.behaviour = crash_loops("node-002")
    fleet.patches.clear()
    fleet.ask("retry")
    fleet.settle(until=lambda f: run_of(f).state == "Running")
    fleet.settle()
    assert {patch.node for patch in fleet.patches} == {"node-001", "node-002"}
    assert fleet.assignments() == {"r-1.1.0": 8, "r-1.0.0": 2}
    run = run_of(fleet)
    assert (run.id, run.state, run.failed, run.healthy) == (2, "PartiallySucceeded", 1, 8)


def test_a_run_that_stopped_over_its_tolerance_goes_on_and_its_earlier_failures_do_not_count() -> None:
    fleet = installed(onFailure="Pause")
    fleet.behaviour = crash_loops("node-001", "node-002", "node-003", "node-004", "node-005")
    fleet.change(version="1.1.0")
    fleet.settle()
    assert reason(fleet) == "FailureToleranceExceeded"
    go_on(fleet, 400)
    broken = {entry.name for entry, state, _ in fleet.entries(2) if state == "Failed"}
    assert 1 <= len(broken) <= 2
    fleet.behaviour = lambda _node, _revision: "healthy"
    fleet.patches.clear()
    fleet.ask("retry")
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 10}
    assert (fleet.status.phase, run_of(fleet).id, run_of(fleet).failed) == ("Completed", 2, 0)
    for name in broken:
        way = [patch.after for patch in fleet.patches if patch.node == name]
        assert way == ["to-r-1.0.0", "r-1.0.0", "to-r-1.1.0", "r-1.1.0"], "it goes back, and then sets out anew"


def test_a_run_that_goes_on_and_fails_again_stops_again() -> None:
    fleet = installed(onFailure="Pause")
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == "r-1.1.0" else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    for _ in range(3):
        fleet.patches.clear()
        fleet.ask("retry")
        fleet.settle(until=lambda f: run_of(f).state == "Running")
        fleet.settle()
        assert fleet.status.phase == "Stalled"
        assert len({patch.node for patch in fleet.patches if patch.after == "r-1.1.0"}) <= 2, "no more than a batch"
        go_on(fleet)


def test_an_analysis_that_had_failed_is_asked_anew_when_the_run_goes_on() -> None:
    page = {"name": "page", "web": {"url": "https://example.com"}, "intervalSeconds": 5, "timeoutSeconds": 60}
    fleet = installed(onFailure="Pause", analysis=[page])
    fleet.analysis_says = lambda _batch, _name: "Fail"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert reason(fleet) == "AnalysisFailed"
    fleet.analysis_says = lambda _batch, _name: "Pass"
    fleet.ask("retry")
    fleet.settle(until=lambda f: run_of(f).state == "Running")
    fleet.settle()
    assert (fleet.status.phase, run_of(fleet).id) == ("Completed", 2)


def test_an_approval_opens_the_gate_once_and_for_its_step_only() -> None:
    steps = [{"nodes": 1, "requireApproval": True}, {"nodes": 2, "requireApproval": True}]
    fleet = installed()
    fleet.change(version="1.1.0", strategy={**CANARY, "canary": {"steps": steps}})
    for number, moved in ((1, 1), (2, 3)):
        fleet.settle(until=lambda f, number=number: run_of(f).awaits_approval == number)  # type: ignore[misc]
        go_on(fleet, 20)
        assert fleet.assignments()["r-1.1.0"] == moved
        fleet.ask("approve")
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 10}
    assert [(given.step, given.by) for given in run_of(fleet).approvals] == [(1, "alice"), (2, "alice")]
    fleet.change(version="1.2.0", strategy=ROLLING)
    fleet.settle()
    assert [given.by for given in fleet.status.history[0].approvals] == ["alice", "alice"]


def test_failed_nodes_are_tried_again_before_any_other_node_sets_out() -> None:
    fleet = installed(20, onFailure="Pause", strategy={**CANARY, "canary": {"steps": [{"nodes": 3}]}})
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == "r-1.1.0" else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    go_on(fleet, 30)
    canaries = batch_of(fleet, 2, 1)
    fleet.patches.clear()
    fleet.ask("retry")
    fleet.settle(until=lambda f: run_of(f).state == "Running")
    fleet.settle()
    assert {patch.node for patch in fleet.patches} <= canaries
    steps = {b.spec.batch: b.spec.step for b in fleet.batches.values() if b.spec.run == 2}
    assert steps == {1: 1, 2: 1}, "the canary step is taken again"


@pytest.mark.parametrize("revoked", [False, True])
def test_after_a_rollback_a_retry_is_a_complete_new_run_with_its_canary(revoked: bool) -> None:
    fleet = installed(strategy=CANARY)
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == "r-1.1.0" else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "RolledBack"
    fleet.behaviour = lambda _node, _revision: "healthy"
    if revoked:
        fleet.hindrance = Hindrance("VersionRevoked", "agent-1.1.0 is Revoked", stalled=True)
        fleet.ask("retry")
        go_on(fleet)
        assert (fleet.status.phase, reason(fleet), run_of(fleet).id) == ("Stalled", "VersionRevoked", 3)
        fleet.hindrance = None
    else:
        fleet.ask("retry")
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 10}
    run = run_of(fleet)
    assert (run.id, run.kind, run.cause, run.started_by, run.requested_by) == (
        4,
        "Rollout",
        "Retried",
        "alice",
        "alice",
    )
    sizes = [(b.spec.step, len(b.spec.nodes)) for b in fleet.batches.values() if b.spec.run == 4]
    assert sizes == [(1, 1), (0, 3), (0, 3), (0, 3)]
    assert fleet.status.history[0].kind == "Rollback"


def test_a_new_run_by_retry_starts_only_with_a_fresh_verification() -> None:
    fleet = half_way()
    fleet.ask("abort")
    fleet.settle()
    fleet.fresh_seconds, fleet.registry_is_down = 60, True
    fleet.tick(600)
    fleet.ask("retry")
    go_on(fleet, 20)
    assert reason(fleet) == "VersionBeingVerified"
    assert run_of(fleet).id == 3
    fleet.registry_is_down = False
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 10}


def test_after_a_run_that_moved_no_node_a_retry_is_a_new_run() -> None:
    fleet = Fleet(1, make_spec(strategy={"type": "Full", "failureTolerance": "100%"}))
    fleet.behaviour = lambda _node, _revision: "crash-loop"
    fleet.settle()
    assert reason(fleet) == "RunFailed"
    fleet.behaviour = lambda _node, _revision: "healthy"
    fleet.ask("retry")
    fleet.settle()
    assert (fleet.status.phase, run_of(fleet).id) == ("Completed", 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda: Fleet(3, make_spec(paused=True)), "there was no run yet", id="no run yet"),
        pytest.param(half_way, "run 2 is under way", id="under way"),
        pytest.param(installed, "no node failed or was left out in run 1", id="all is well"),
    ],
)
def test_there_may_be_nothing_to_retry(make: Callable[[], Fleet], words: str) -> None:
    fleet = make()
    fleet.execute(fleet.plan())
    fleet.ask("retry")
    assert words in refusal(fleet)


def test_what_is_not_wanted_any_more_is_not_retried() -> None:
    fleet = half_way()
    fleet.ask("abort")
    fleet.settle()
    fleet.events.clear()
    fleet.change(version="1.2.0")
    fleet.hindrance = Hindrance("VersionNotFound", "there is no agent-1.2.0", stalled=True)
    fleet.ask("retry")
    assert "the Rollout wants 1.2.0 since run 3" in refusal(fleet)


def test_a_run_to_what_is_revoked_does_not_go_on() -> None:
    fleet = half_way(onFailure="Pause")
    fleet.phases["1.1.0"] = "Revoked"
    go_on(fleet)
    fleet.events.clear()
    fleet.ask("retry")
    assert "agent-1.1.0 is Revoked" in refusal(fleet)


# -- rollback


def test_a_whole_run_is_taken_back_to_what_each_node_came_from() -> None:
    fleet = updated("1.1.0")
    fleet.ask("rollback", run=2)
    worst = 0

    def watch(fleet: Fleet) -> bool:
        nonlocal worst
        worst = max(worst, fleet.out_of_service())
        return run_of(fleet).kind == "Rollback" and run_of(fleet).state != "Running"

    fleet.settle(until=watch)
    assert worst <= 2, "never more at a time than a batch holds"
    assert fleet.assignments() == {"r-1.0.0": 10}
    run = run_of(fleet)
    assert (run.id, run.kind, run.cause, run.state, run.of_run) == (3, "Rollback", "Requested", "Succeeded", 2)
    assert (run.from_version, run.to_version, run.requested_by, run.started_by) == ("1.1.0", "1.0.0", "alice", "alice")
    assert run.holds == "r-1.1.0"
    assert {(b.spec.from_version, b.spec.to_version) for b in fleet.batches.values() if b.spec.run == 3} == {
        ("1.1.0", "1.0.0")
    }
    fleet.execute(fleet.plan())
    found = conditions(fleet)
    assert (found["RolledBack"], found["Stalled"], found["Ready"]) == ("True", "True", "False")
    assert reason(fleet, "RolledBack") == "RollbackRequested"
    assert fleet.status.revisions is not None
    assert (fleet.status.revisions.stable, fleet.status.revisions.stable_version) == ("r-1.0.0", "1.0.0")
    assert [record.result for record in fleet.status.history] == ["RolledBack", "Succeeded"]


def test_nothing_undoes_a_rollback_by_itself() -> None:
    fleet = updated("1.1.0")
    fleet.ask("rollback", run=2)
    fleet.settle()
    fleet.patches.clear()
    fleet.change(paused=True)
    go_on(fleet, 5)
    fleet.change(paused=False, runHistoryLimit=1)
    fleet.set_ready("node-003", False)
    go_on(fleet, 30)
    fleet.set_ready("node-003", True)
    fleet.join("late")
    go_on(fleet, 60)
    assert fleet.assignments() == {"r-1.0.0": 11}
    assert {patch.node for patch in fleet.patches} == {"late"}
    fleet.change(version="1.2.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.2.0": 11}


def test_a_hold_ends_with_a_retry() -> None:
    fleet = updated("1.1.0", strategy=CANARY)
    fleet.ask("rollback", run=2)
    fleet.settle()
    fleet.ask("retry", by="bob")
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 10}
    run = run_of(fleet)
    assert (run.id, run.cause, run.requested_by) == (4, "Retried", "bob")
    assert next(b.spec.step for b in fleet.batches.values() if b.spec.run == 4) == 1, "with its canary"


def test_who_asks_for_a_rollback_and_sets_the_version_back_as_well_finds_nothing_held() -> None:
    """At three in the morning one does both. All runs what the spec wants then: nobody is asked to change it."""
    fleet = half_way()
    fleet.change(version="1.0.0")
    fleet.ask("rollback", run=2)
    fleet.settle(until=lambda f: f.is_answered() and f.status.phase == "Completed")
    assert fleet.assignments() == {"r-1.0.0": 10}
    assert fleet.status.phase == "Completed"
    record = next(record for record in fleet.status.history if record.id == 3)
    assert (record.kind, record.result) == ("Rollback", "Succeeded")
    [told] = [event.message for event in fleet.events if event.reason == "RolledBack"]
    assert told.endswith("That is what spec.version wants")


def test_a_rollback_that_failed_holds_though_every_node_is_labelled_as_the_spec_wants_it() -> None:
    fleet = half_way()
    moved = [name for name in fleet.nodes if fleet.assignment(name) == "r-1.1.0"]
    fleet.behaviour = crash_loops(*moved, version="1.0.0")
    fleet.change(version="1.0.0")
    fleet.ask("rollback", run=2)
    fleet.settle(until=lambda f: f.is_answered() and f.status.phase == "RolledBack")
    for _ in range(5):
        fleet.execute(fleet.plan())
        fleet.tick()
    assert fleet.assignments() == {"r-1.0.0": 10}
    assert fleet.status.phase == "RolledBack"
    assert fleet.status.run is not None
    assert (fleet.status.run.state, fleet.status.run.failed) == ("Failed", len(moved))


def test_a_rollback_that_leaves_others_elsewhere_holds_though_its_nodes_are_where_the_spec_wants_them() -> None:
    fleet = updated("1.1.0", strategy=CANARY)
    fleet.ask("rollback", run=2, batches=[2])
    fleet.change(version="1.0.0")
    fleet.settle()
    assert set(fleet.assignments()) == {"r-1.0.0", "r-1.1.0"}
    assert fleet.status.phase == "RolledBack"


def test_named_batches_go_to_a_named_version_and_each_node_is_reported() -> None:
    fleet = updated("1.1.0", "1.2.0")
    fleet.rules["r-1.0.0"] = VersionRules(frozenset({"linux/amd64"}))
    for name in fleet.nodes:
        fleet.label(name, {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"})
    second, third = batch_of(fleet, 3, 2), batch_of(fleet, 3, 3)
    misfit, sick, *_ = sorted(second | third)
    fleet.label(misfit, {"kubernetes.io/arch": "arm64"})
    fleet.behaviour = crash_loops(sick, version="1.0.0")
    fleet.ask("rollback", run=3, batches=[2, 3], version="1.0.0")
    fleet.settle()
    run = run_of(fleet)
    assert (run.state, run.of_batches, run.to_version, run.to_revision) == (
        "PartiallySucceeded",
        [2, 3],
        "1.0.0",
        "r-1.0.0",
    )
    report = {entry.name: (state, why) for entry, state, why in fleet.entries(4)}
    assert report.keys() == second | third
    assert report[misfit] == ("Skipped", "NoArtifact")
    assert report[sick][0] == "Failed"
    assert {state for name, (state, _) in report.items() if name not in {misfit, sick}} == {"Succeeded"}
    assert (run.healthy, run.failed, run.skipped) == (2, 1, 1)
    assert fleet.assignments() == {"r-1.2.0": 7, "r-1.0.0": 3}
    assert fleet.status.history[0].result == "Succeeded", "the others stay with the run that completed"
    assert "batches 2, 3" in fleet.status.history[0].message


def test_a_run_that_is_under_way_ends_and_its_nodes_go_back() -> None:
    fleet = half_way(4)
    fleet.ask("rollback", run=2)
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}
    assert (fleet.status.history[0].id, fleet.status.history[0].result) == (2, "RolledBack")
    assert fleet.status.phase == "RolledBack"
    touched = {entry.name for entry, _, _ in fleet.entries(3)}
    assert 4 <= len(touched) <= 6, "who was never touched is not told of"


def test_who_has_moved_on_since_is_left_alone_and_said_so() -> None:
    fleet = updated("1.1.0")
    fleet.behaviour = crash_loops("node-001", "node-002", version="1.2.0")
    wide = {"type": "Rolling", "rolling": {"batchSize": 5}, "failureTolerance": 2}
    fleet.change(version="1.2.0", strategy=wide)
    fleet.settle()
    assert fleet.assignments() == {"r-1.2.0": 8, "r-1.1.0": 2}
    fleet.ask("rollback", run=2)
    fleet.settle()
    assert fleet.assignments() == {"r-1.2.0": 8, "r-1.0.0": 2}
    assert run_of(fleet).state == "Succeeded"
    states = [(state, why) for _, state, why in fleet.entries(4)]
    assert states.count(("Succeeded", "")) == 2
    assert states.count(("Skipped", "MovedSince")) == 8
    assert fleet.status.revisions is not None
    assert fleet.status.revisions.stable == "r-1.2.0", "most of the fleet has what completed since"


def test_one_batch_after_the_other_can_be_taken_back() -> None:
    fleet = updated("1.1.0", runHistoryLimit=1)
    for number in (1, 2):
        fleet.ask("rollback", run=2, batches=[number])
        fleet.settle()
        fleet.execute(fleet.plan())
        assert run_of(fleet).state == "Succeeded"
    assert fleet.assignments() == {"r-1.1.0": 6, "r-1.0.0": 4}
    assert run_of(fleet).holds == "r-1.1.0"
    go_on(fleet)
    assert fleet.assignments() == {"r-1.1.0": 6, "r-1.0.0": 4}


def test_the_first_run_can_be_taken_back_to_nothing() -> None:
    fleet = installed(4)
    fleet.ask("rollback", run=1)
    fleet.settle()
    assert fleet.assignments() == {"none": 4}
    assert fleet.status.revisions is not None
    assert fleet.status.revisions.stable is None
    assert fleet.joiners == [], "nobody gets it by joining"
    fleet.join("late")
    go_on(fleet)
    assert fleet.assignment("late") is None
    assert not fleet.nodes["late"].pods


def test_who_got_the_version_by_joining_goes_back_with_the_whole_run() -> None:
    fleet = updated("1.1.0")
    fleet.join("late")
    go_on(fleet, 20)
    assert fleet.assignment("late") == "r-1.1.0"
    fleet.ask("rollback", run=2)
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 11}


def test_a_named_version_is_verified_anew_and_waited_for() -> None:
    fleet = updated("1.1.0", "1.2.0")
    fleet.fresh_seconds, fleet.registry_is_down = 60, True
    fleet.tick(600)
    fleet.ask("rollback", run=3, version="1.0.0")
    go_on(fleet, 30)
    assert (fleet.status.phase, reason(fleet), fleet.assignments()) == (
        "RollingBack",
        "VersionBeingVerified",
        {"r-1.2.0": 10},
    )
    assert "the registry is down" in fleet.status.conditions[0].message
    for _ in range(700):
        fleet.tick()
    go_on(fleet, 5)
    assert (fleet.status.phase, reason(fleet, "Stalled")) == ("Stalled", "VersionBeingVerified")
    fleet.registry_is_down = False
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}


def test_a_named_version_that_turns_out_withdrawn_leaves_every_node_where_it_is() -> None:
    fleet = updated("1.1.0", "1.2.0")
    fleet.fresh_seconds = 60
    fleet.tick(600)
    fleet.ask("rollback", run=3, batches=[1], version="1.0.0")
    fleet.execute(fleet.plan())
    fleet.phases["1.0.0"] = "Withdrawn"
    fleet.settle()
    assert fleet.assignments() == {"r-1.2.0": 10}
    assert run_of(fleet).state == "Failed"
    assert {(state, why) for _, state, why in fleet.entries(4)} == {("Skipped", "VersionWithdrawn")}


def test_what_another_component_requires_keeps_a_node_and_both_are_named() -> None:
    fleet = updated("1.1.0")
    fleet.neighbours["shipper"] = SHIPPER
    needy = sorted(fleet.nodes)[:3]
    for name in needy:
        fleet.label(name, {"shipper-key": "s-1"})
    fleet.ask("rollback", run=2)
    fleet.settle()
    assert {name for name in fleet.nodes if fleet.assignment(name) == "r-1.1.0"} == set(needy)
    assert run_of(fleet).state == "PartiallySucceeded"
    messages = {
        result.message
        for b in fleet.batches.values()
        for result in b.status.nodes
        if result.reason == "RequiredByOther"
    }
    assert messages == {
        "shipper 3.0.0 (of no Rollout) needs agent '>=1.1.0' on the node, and agent 1.0.0 would break it"
    }


def test_if_another_component_keeps_every_node_it_is_refused() -> None:
    fleet = updated("1.1.0")
    fleet.neighbours["shipper"] = SHIPPER
    for name in fleet.nodes:
        fleet.label(name, {"shipper-key": "to-s-1"})
    fleet.ask("rollback", run=2)
    message = refusal(fleet)
    assert "shipper 3.0.0 (of no Rollout) needs agent '>=1.1.0' on the node" in message
    assert "(RequiredByOther)" in message


def test_what_a_node_came_from_may_be_revoked() -> None:
    fleet = updated("1.1.0")
    fleet.phases["1.0.0"] = "Revoked"
    fleet.ask("rollback", run=2)
    assert "agent-1.0.0 is Revoked (VersionRevoked)" in refusal(fleet)


def test_a_rollback_waits_for_a_pause_to_end() -> None:
    fleet = updated("1.1.0")
    fleet.change(paused=True)
    fleet.ask("rollback", run=2)
    go_on(fleet, 20)
    assert fleet.patches == []
    fleet.change(paused=False)
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}


def test_a_later_run_is_never_taken_towards_what_was_taken_back() -> None:
    fleet = updated("1.1.0")
    fleet.rules["r-1.0.0"] = VersionRules(frozenset({"linux/amd64"}))
    for name in fleet.nodes:
        fleet.label(name, {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"})
    fleet.label("node-004", {"kubernetes.io/arch": "arm64"})
    fleet.ask("rollback", run=2)
    fleet.settle()
    assert fleet.assignment("node-004") == "r-1.1.0"
    fleet.behaviour = crash_loops(*fleet.nodes, version="1.2.0")
    fleet.patches.clear()
    fleet.change(version="1.2.0")
    fleet.settle()
    assert not any((patch.after or "").endswith("r-1.1.0") for patch in fleet.patches)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"run": 9}, "nothing is recorded of a run 9. Runs that can be taken back: 3, 2, 1"),
        ({"run": 3, "batches": [7]}, "run 3 has no batch 7; it has 1 to 5"),
        ({"run": 3, "version": "9.9.9"}, "there is no ComponentVersion agent-9.9.9"),
        ({"run": 3, "version": "1.2.0"}, "1.2.0 is what would be taken away"),
        ({"run": 3, "version": "1.1.0"}, "agent-1.1.0 is Withdrawn, and neither Published nor Deprecated"),
        ({"run": 3, "version": "1.5.0"}, "no completed run of this Rollout that is still known brought 1.5.0"),
        ({"run": 2}, "none of the nodes of run 2 runs 1.1.0 any more"),
        ({"run": "3"}, "its run is not the number of a run"),
        ({"run": 3, "batch": [2]}, "it has 'batch', which means nothing here"),
        ({"run": 3, "batches": []}, "its batches are not a list of 1 to 100 numbers"),
        ({"run": 3, "batches": [True]}, "its batches are not a list"),
        ({"run": 3, "version": "latest"}, "its version 'latest' is no version"),
        ({"run": 3, "version": 1}, "its version is not a text"),
        ({}, "its run is not the number of a run"),
    ],
)
def test_a_rollback_that_cannot_be_is_refused(wish: dict[str, Any], words: str) -> None:
    fleet = updated("1.1.0", "1.2.0")
    fleet.phases["1.1.0"] = "Withdrawn"
    fleet.revisions["r-1.5.0"] = "1.5.0"  # a run to it never completed
    fleet.ask("rollback", **wish)
    assert words in refusal(fleet)
    go_on(fleet, 10)
    assert fleet.patches == []


@pytest.mark.parametrize(
    "value",
    [
        "{",
        "[]",
        "7",
        pytest.param("x" * 5000, id="long"),
        pytest.param("[" * 100_000, id="deeply nested"),
        '{"id": ""}',
        pytest.param('{"id": "\\ud800", "run": 2}', id="half a character"),
        pytest.param('{"id": "a", "run": 1' + "0" * 4000 + "}", id="a number without end"),
        pytest.param('{"id": "a", "run": 2, "' + "k" * 5000 + '": 1}', id="a long key"),
    ],
)
def test_a_malformed_rollback_is_refused_once_and_forgotten(value: str) -> None:
    fleet = updated("1.1.0")
    fleet.requests["rollback"] = Request("rollback", value, "alice")
    assert 'Write for example {"id"' in refusal(fleet)
    assert fleet.status.last_handled is not None
    assert (fleet.status.last_handled.rollback or "").startswith("sha256:")


def test_another_run_under_way_is_not_ended_by_the_rollback_of_an_earlier_one() -> None:
    fleet = updated("1.1.0")
    fleet.change(version="1.2.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.2.0", 0) >= 2)
    fleet.ask("rollback", run=2)
    assert "run 3 to 1.2.0 is under way" in refusal(fleet)


def test_one_rollback_at_a_time() -> None:
    fleet = updated("1.1.0")
    fleet.ask("rollback", run=2, batches=[1])
    fleet.execute(fleet.plan())
    fleet.ask("rollback", run=2, batches=[2])
    assert "run 3 is taking nodes back" in refusal(fleet)


def test_a_rollback_cannot_be_rolled_back() -> None:
    fleet = updated("1.1.0")
    fleet.ask("rollback", run=2)
    fleet.settle()
    fleet.events.clear()
    fleet.ask("rollback", run=3)
    assert "run 3 took nodes back itself" in refusal(fleet)


def test_revisions_of_completed_runs_are_kept_for_whom_asks() -> None:
    fleet = updated("1.1.0", "1.2.0", "1.3.0", "1.4.0", runHistoryLimit=1, revisionHistoryLimit=3)
    assert fleet.status.revisions is not None
    assert [one.version for one in fleet.status.revisions.completed] == ["1.4.0", "1.3.0", "1.2.0"]
    assert "r-1.2.0" in fleet.revisions
    fleet.ask("rollback", run=5, version="1.2.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.2.0": 10}


def test_a_restored_rollout_does_nothing_of_what_was_asked_in_an_earlier_life() -> None:
    fleet = Fleet(4, make_spec())
    for kind in ("abort", "retry", "approve"):
        fleet.ask(kind)
    fleet.ask("rollback", run=1)
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 4}
    assert len(told(fleet, "RequestRefused")) == 4
    assert run_of(fleet).id == 1


# -- exactly once


def test_the_same_nonce_is_no_new_request_and_another_one_is() -> None:
    fleet = updated("1.1.0")
    fleet.ask("rollback", run=2, batches=[1])
    fleet.settle()
    value = json.loads(fleet.requests["rollback"].value)
    fleet.requests["rollback"] = Request("rollback", json.dumps({**value, "batches": [2]}), "alice")
    go_on(fleet, 30)
    assert run_of(fleet).id == 3
    assert fleet.assignments() == {"r-1.1.0": 8, "r-1.0.0": 2}
    fleet.ask("rollback", run=2, batches=[2])
    fleet.settle(until=lambda f: run_of(f).id == 4)
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 6, "r-1.0.0": 4}


def test_a_request_is_stored_before_anything_follows_from_it() -> None:
    for prepare, kind, wish in STORIES:
        fleet = prepare()
        fleet.ask(kind, **wish)
        plan = fleet.plan()
        assert plan.urgent_status
        assert not [action for action in plan.actions if isinstance(action, actions.CreateBatch)]
        between = [move for move in plan.moves if not is_leaving(move.before)]
        assert between == [], "only half-made moves are finished"
        assert plan.wake_at is not None
        assert plan.wake_at <= fleet.now


def stopped() -> Fleet:
    fleet = installed(onFailure="Pause")
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == "r-1.1.0" else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    fleet.behaviour = lambda _node, _revision: "healthy"
    return fleet


def taken_back() -> Fleet:
    fleet = stopped()
    fleet.change(onFailure="Rollback")
    fleet.settle()
    return fleet


def tolerated() -> Fleet:
    wide = {"type": "Rolling", "rolling": {"batchSize": 5}, "failureTolerance": 2}
    fleet = installed(strategy=wide)
    fleet.behaviour = crash_loops("node-001", "node-002")
    fleet.change(version="1.1.0")
    fleet.settle()
    fleet.behaviour = lambda _node, _revision: "healthy"
    return fleet


STORIES: list[tuple[Callable[[], Fleet], Any, dict[str, Any]]] = [
    (lambda: half_way(4), "abort", {}),
    (lambda: half_way(4, onFailure="Pause"), "abort", {}),
    (lambda: half_way(4), "rollback", {"run": 2}),
    (lambda: half_way(4), "rollback", {"run": 2, "batches": [1]}),
    (lambda: updated("1.1.0"), "rollback", {"run": 2}),
    (lambda: updated("1.1.0", "1.2.0"), "rollback", {"run": 3, "batches": [2, 4], "version": "1.0.0"}),
    (stopped, "retry", {}),
    (taken_back, "retry", {}),
    (tolerated, "retry", {}),
]


def end_of(fleet: Fleet) -> object:
    """What must not depend on where a process ended."""
    fleet.settle(until=lambda f: f.is_answered())
    fleet.settle()
    run = run_of(fleet)
    runs = [(record.id, record.kind, record.result) for record in fleet.status.history]
    return fleet.assignments(), run.id, run.kind, run.state, run.healthy, run.failed, runs


@pytest.mark.parametrize("story", range(len(STORIES)))
def test_a_request_is_met_once_wherever_a_process_ends(story: int) -> None:
    prepare, kind, wish = STORIES[story]
    whole = prepare()
    whole.ask(kind, **wish)
    expected = end_of(whole)
    for passes in range(3):
        cut = 0
        while True:
            fleet = prepare()
            fleet.ask(kind, **wish)
            for _ in range(passes):
                fleet.execute(fleet.plan())
                fleet.tick()
            plan = fleet.plan()
            if cut > len(plan.actions) + 1:
                break
            fleet.execute(plan, crash_after=cut)
            assert end_of(fleet) == expected, f"{kind}: the process ended in pass {passes}, after {cut} steps"
            cut += 1


def test_an_approval_that_was_given_stays_given() -> None:
    fleet = half_way()
    given = [Approval(step=1, by="alice", at=fleet.now)]
    fleet.status = fleet.status.model_copy(update={"run": run_of(fleet).model_copy(update={"approvals": given})})
    fleet.ask("abort")
    fleet.settle()
    assert fleet.status.history[0].approvals == given


def test_there_may_be_nothing_to_approve() -> None:
    fleet = half_way()
    fleet.ask("approve")
    assert "there is nothing to approve" in refusal(fleet)


def test_a_request_to_look_again_is_echoed() -> None:
    fleet = installed()
    nonce = fleet.ask("reconcile")
    fleet.execute(fleet.plan())
    assert fleet.status.last_handled is not None
    assert fleet.status.last_handled.reconcile == nonce
    assert fleet.events == [] or told(fleet, "RequestRefused") == []
