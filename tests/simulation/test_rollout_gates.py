"""What holds a run that is fine otherwise, as stories: windows, a start, a freeze, approvals, where canaries are."""

import random
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.api.base import Condition
from outrider.api.rollout import Approval
from outrider.core.moves import is_leaving
from outrider.core.plan import CreateBatch, Plan
from outrider.core.windows import is_open
from simulation.fleet import START, Fleet, make_spec

OLD, NEW = "r-1.0.0", "r-1.1.0"
ROLLING: dict[str, Any] = {"type": "Rolling", "rolling": {"batchSize": 3}}
NIGHT = {"start": "22:00", "end": "22:10"}
"""The world begins at midnight UTC, on a Thursday."""


def installed(count: int = 10, **changes: Any) -> Fleet:
    """A fleet that runs 1.0.0 everywhere, and has its strategy and its gates only from then on."""
    later = {key: changes.pop(key) for key in ("windows", "notBefore", "frozen", "strategy") if key in changes}
    fleet = Fleet(count, make_spec(**{"strategy": {"type": "Full"}, **changes}))
    fleet.settle()
    fleet.change(**{"strategy": ROLLING, **later})
    fleet.patches.clear()
    fleet.events.clear()
    return fleet


def live(fleet: Fleet, seconds: int) -> None:
    """Let so many seconds pass, with a look at the fleet in each."""
    for _ in range(seconds):
        fleet.execute(fleet.plan())
        fleet.tick()


def sleep_until(fleet: Fleet, moment: datetime) -> None:
    """Let the time pass as far as the plan allows: by its own wake-ups."""
    while fleet.now < moment:
        plan = fleet.plan()
        fleet.execute(plan)
        wake = plan.wake_at or moment
        fleet.tick(max(1.0, (min(wake, moment) - fleet.now).total_seconds()))


def at(clock: str, day: int = 0) -> datetime:
    hours, minutes = clock.split(":")
    return START + timedelta(days=day, hours=int(hours), minutes=int(minutes))


def condition(fleet: Fleet, kind: str) -> Condition | None:
    return next((c for c in fleet.status.conditions if c.type == kind), None)


def ready(fleet: Fleet) -> Condition:
    found = condition(fleet, "Ready")
    assert found is not None
    return found


def told(fleet: Fleet, reason: str) -> list[str]:
    return [event.message for event in fleet.events if event.reason == reason]


def approve(fleet: Fleet, step: int) -> None:
    """What a request to approve comes to."""
    run = fleet.status.run
    assert run is not None
    approvals = [*run.approvals, Approval(step=step, by="jane", at=fleet.now)]
    fleet.status = fleet.status.model_copy(update={"run": run.model_copy(update={"approvals": approvals})})


# --- windows ----------------------------------------------------------------------------------------------------------


def test_outside_the_windows_a_run_starts_and_moves_nobody() -> None:
    fleet = installed(windows=[{**NIGHT, "timeZone": "Europe/Berlin"}])
    fleet.change(version="1.1.0")
    live(fleet, 60)
    assert fleet.patches == []
    assert fleet.status.run is not None
    assert (fleet.status.run.id, fleet.status.run.state, fleet.status.run.batches) == (2, "Running", 0)
    assert fleet.status.phase == "Waiting"
    assert ready(fleet).reason == "WaitingForWindow"
    assert "next opens at 2026-01-01 21:00 UTC, 22:00 in Europe/Berlin" in ready(fleet).message
    assert fleet.status.run.message == ready(fleet).message
    progressing, reconciling = condition(fleet, "Progressing"), condition(fleet, "Reconciling")
    assert progressing is not None
    assert (progressing.status, progressing.reason) == ("False", "WaitingForWindow")
    assert reconciling is not None
    assert fleet.plan().wake_at == at("21:00"), "it looks again when the window opens"
    sleep_until(fleet, at("21:00"))
    assert fleet.patches == []
    fleet.settle()
    assert fleet.assignments() == {NEW: 10}
    assert fleet.now < at("21:10")


def test_the_next_batch_waits_for_the_next_window() -> None:
    fleet = installed(windows=[{"start": "00:00", "end": "00:01"}])
    fleet.now = at("00:01", day=1) - timedelta(seconds=10)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.now >= at("00:02", day=1))
    moved = fleet.assignments()[NEW]
    assert 0 < moved < 10
    assert (fleet.status.phase, ready(fleet).reason) == ("Waiting", "WaitingForWindow")
    sleep_until(fleet, at("00:00", day=2))
    assert fleet.assignments()[NEW] == moved
    fleet.settle()
    assert fleet.assignments() == {NEW: 10}
    assert told(fleet, "RunCompleted")


def close_in_the_middle(**changes: Any) -> Fleet:
    """A fleet in one batch, two at a time, of which some have set out when the window closes; a minute later."""
    strategy = {"type": "Full", "full": {"maxInFlight": 2}, "failureTolerance": 2}
    fleet = installed(windows=[{"start": "00:00", "end": "00:01"}], strategy=strategy, **changes)
    fleet.now = at("00:01", day=1) - timedelta(seconds=12)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.now >= at("00:01", day=1))
    return fleet


def test_when_a_window_closes_who_has_set_out_arrives_and_the_rest_of_the_batch_waits() -> None:
    fleet = close_in_the_middle(health={"timeoutSeconds": 60, "minReadySeconds": 2})
    gone = {name for name in fleet.nodes if fleet.assignment(name) != OLD}
    assert gone
    assert fleet.status.phase == "Progressing"
    assert "have not set out: it is outside spec.windows" in ready(fleet).message
    live(fleet, 30)
    assert {name for name in fleet.nodes if fleet.assignment(name) == NEW} == gone
    assert fleet.status.run is not None
    assert fleet.status.run.healthy == len(gone)
    assert (fleet.status.phase, ready(fleet).reason) == ("Waiting", "WaitingForWindow")
    states = {state for entry, state, _ in fleet.entries(2) if entry.name not in gone}
    assert states == {"Pending"}
    sleep_until(fleet, at("00:00", day=2))
    fleet.settle()
    assert fleet.assignments() == {NEW: 10}, "nobody's deadline ran while he waited for the window"


def test_who_was_moved_is_judged_outside_the_windows_as_well() -> None:
    fleet = close_in_the_middle(health={"timeoutSeconds": 20, "minReadySeconds": 2})
    sick = next(name for name in fleet.nodes if fleet.assignment(name) == NEW)
    for pod in fleet.nodes[sick].pods:
        pod.behaviour = "crash-loop"
    live(fleet, 20)
    assert fleet.assignment(sick) == OLD, "and a node that failed goes back at once"
    assert ("RolledBack", "TooManyRestarts") in {
        (state, reason) for entry, state, reason in fleet.entries(2) if entry.name == sick
    }


def test_a_failed_run_is_taken_back_outside_the_windows() -> None:
    fleet = close_in_the_middle(health={"timeoutSeconds": 20, "minReadySeconds": 2})
    for sim in fleet.nodes.values():
        for pod in sim.pods:
            pod.behaviour = "crash-loop" if pod.revision == NEW else "healthy"
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.change(strategy={**ROLLING, "failureTolerance": 0})
    fleet.settle()
    assert fleet.assignments() == {OLD: 10}
    assert fleet.status.phase == "RolledBack"
    assert fleet.now < at("01:00", day=1)


def test_a_change_of_mind_back_to_the_stable_version_waits_for_no_window() -> None:
    fleet = close_in_the_middle()
    fleet.change(version="1.0.0")
    fleet.settle()
    assert fleet.assignments() == {OLD: 10}
    assert fleet.status.phase == "Completed"
    assert fleet.now < at("01:00", day=1)


def test_another_version_waits_for_the_window_like_the_one_before() -> None:
    fleet = close_in_the_middle()
    live(fleet, 30)
    moved = fleet.assignments()
    fleet.change(version="1.2.0")
    live(fleet, 30)
    assert fleet.assignments() == moved
    assert ready(fleet).reason == "WaitingForWindow"


def test_a_node_that_joins_outside_the_windows_is_served_at_once() -> None:
    fleet = installed(windows=[NIGHT])
    fleet.join("late")
    fleet.settle(until=lambda f: f.assignment("late") == OLD, limit=20)


def test_a_run_whose_last_nodes_arrive_after_the_window_completes() -> None:
    fleet = installed(2, windows=[{"start": "00:00", "end": "00:01"}])
    fleet.now = at("00:01", day=1) - timedelta(seconds=5)
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.now > at("00:01", day=1)
    assert (fleet.status.phase, fleet.assignments()) == ("Completed", {NEW: 2})


def test_a_node_that_comes_back_after_the_run_is_moved_in_the_next_window() -> None:
    fleet = installed(4)
    fleet.set_ready("node-002", False)
    fleet.change(version="1.1.0")
    fleet.settle()
    fleet.change(windows=[NIGHT])
    fleet.set_ready("node-002", True)
    live(fleet, 30)
    assert (fleet.assignment("node-002"), fleet.status.phase) == (OLD, "Completed")
    assert fleet.plan().wake_at == at("22:00")
    sleep_until(fleet, at("22:00"))
    fleet.settle(until=lambda f: f.assignment("node-002") == NEW, limit=30)


def test_a_patch_that_was_refused_until_the_window_closed_is_as_if_it_had_not_been_tried() -> None:
    fleet = installed(
        2, windows=[{"start": "00:00", "end": "00:01"}], health={"timeoutSeconds": 30, "minReadySeconds": 2}
    )
    fleet.now = at("00:01", day=1) - timedelta(seconds=10)
    fleet.change(version="1.1.0")
    while fleet.now < at("00:01", day=1):
        plan = fleet.plan()
        fleet.execute(plan, crash_after=len(plan.actions) + 1 - len(plan.moves))  # all but the moves
        fleet.tick()
    assert {state for _, state, _ in fleet.entries(2)} == {"Stopping"}
    live(fleet, 60)
    assert {state for _, state, _ in fleet.entries(2)} == {"Pending"}
    sleep_until(fleet, at("00:00", day=2))
    fleet.settle()
    assert fleet.assignments() == {NEW: 2}


@pytest.mark.parametrize("moment", ["at rest", "before a run"])
def test_a_time_zone_that_there_is_not_stalls_the_rollout(moment: str) -> None:
    fleet = installed(windows=[{"start": "00:00", "end": "24:00"}, {**NIGHT, "timeZone": "Europe/Berln"}])
    if moment == "before a run":
        fleet.change(version="1.1.0")
    live(fleet, 30)
    assert fleet.patches == []
    assert (fleet.status.phase, ready(fleet).reason) == ("Stalled", "WindowInvalid")
    assert "spec.windows[1].timeZone: there is no time zone Europe/Berln" in ready(fleet).message
    fleet.change(windows=[{"start": "00:00", "end": "24:00"}], version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "Completed"


def test_windows_without_a_fault_do_not_show_at_rest() -> None:
    fleet = installed(windows=[NIGHT])
    live(fleet, 5)
    assert (fleet.status.phase, ready(fleet).status) == ("Completed", "True")


# --- not before -------------------------------------------------------------------------------------------------------


def test_a_run_starts_not_before() -> None:
    fleet = installed(notBefore="2026-01-01T06:00:00Z")
    fleet.change(version="1.1.0")
    live(fleet, 10)
    assert fleet.patches == []
    assert fleet.status.run is not None
    assert fleet.status.run.id == 1
    assert (fleet.status.phase, ready(fleet).reason) == ("Waiting", "WaitingForStart")
    assert "starts at 2026-01-01 06:00 UTC" in ready(fleet).message
    assert NEW in fleet.revisions, "what the API server has against the template is told now"
    assert fleet.plan().wake_at == at("06:00")
    sleep_until(fleet, at("06:00"))
    fleet.settle()
    assert fleet.assignments() == {NEW: 10}


def test_a_run_under_way_goes_on_whatever_not_before_says() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 3)
    fleet.change(notBefore="2027-01-01T00:00:00Z")
    fleet.settle()
    assert fleet.assignments() == {NEW: 10}


def test_a_failed_run_is_taken_back_whatever_not_before_says() -> None:
    fleet = installed()
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 3)
    fleet.change(notBefore="2027-01-01T00:00:00Z")
    fleet.settle()
    assert fleet.status.phase == "RolledBack"


# --- a freeze ---------------------------------------------------------------------------------------------------------


def test_a_freeze_at_rest_is_told_and_nodes_that_join_get_nothing() -> None:
    fleet = installed(frozen=True)
    fleet.join("late")
    live(fleet, 30)
    assert fleet.patches == []
    assert (fleet.status.phase, ready(fleet).status) == ("Completed", "True")
    paused = condition(fleet, "Paused")
    assert paused is not None
    assert paused.reason == "FrozenBySpec"
    fleet.change(frozen=False)
    fleet.settle(until=lambda f: f.assignment("late") == OLD, limit=20)
    assert condition(fleet, "Paused") is None


def test_a_freeze_leaves_what_serves_joining_nodes_as_it_is() -> None:
    fleet = installed(frozen=True)
    fleet.phases["1.0.0"] = "Withdrawn"
    live(fleet, 5)
    assert fleet.joiners == [OLD]


def test_a_freeze_finishes_half_made_moves_sends_nobody_back_and_stops_the_clock() -> None:
    fleet = installed(health={"timeoutSeconds": 20, "minReadySeconds": 2}, strategy={**ROLLING, "failureTolerance": 5})
    fleet.behaviour = lambda _node, revision: "never-ready" if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(is_leaving(f.assignment(name)) for name in f.nodes))
    fleet.change(frozen=True)
    live(fleet, 100)
    assert fleet.assignments() == {OLD: 7, NEW: 3}
    assert (fleet.status.phase, ready(fleet).reason) == ("Paused", "FrozenBySpec")
    assert {state for _, state, _ in fleet.entries(2)} == {"Starting"}
    fleet.change(frozen=False)
    fleet.settle()
    assert fleet.assignments() == {OLD: 10}


def test_a_node_that_failed_in_a_pause_has_its_whole_time_to_return_afterwards() -> None:
    fleet = installed(health={"timeoutSeconds": 30, "minReadySeconds": 2}, strategy={**ROLLING, "failureTolerance": 2})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) == 3)
    sick = next(name for name in fleet.nodes if fleet.assignment(name) == NEW)
    fleet.change(paused=True)
    live(fleet, 3)
    for pod in fleet.nodes[sick].pods:
        pod.behaviour = "crash-loop"
    live(fleet, 300)
    assert ("Failed", sick) in {(state, entry.name) for entry, state, _ in fleet.entries(2)}
    fleet.change(paused=False)
    live(fleet, 2)
    fleet.change(paused=True)  # and a pause on its way back does not count either
    live(fleet, 300)
    fleet.change(paused=False)
    fleet.settle()
    assert ("RolledBack", sick) in {(state, entry.name) for entry, state, _ in fleet.entries(2)}
    assert fleet.assignments() == {NEW: 9, OLD: 1}


# --- approvals --------------------------------------------------------------------------------------------------------


def canary(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "Canary", "canary": {"steps": list(steps), **more}, "rolling": {"batchSize": 4}}


APPROVED = canary({"nodes": 1, "soakSeconds": 5, "requireApproval": True}, {"nodes": 2, "requireApproval": True})


def test_after_a_step_the_run_waits_for_its_approval() -> None:
    fleet = installed(strategy=APPROVED)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: ready(f).reason == "WaitingForApproval")
    first = next(b for b in fleet.batches.values() if b.spec.run == 2)
    assert first.status.finished_at is not None
    assert fleet.now >= first.status.finished_at + timedelta(seconds=5), "it has soaked"
    run = fleet.status.run
    assert run is not None
    assert (fleet.status.phase, run.awaits_approval) == ("Waiting", 1)
    assert "canary step 1 of run 2 to 1.1.0 waits for an approval" in ready(fleet).message
    assert "outrider approve agent --namespace fleet" in ready(fleet).message
    assert "kubectl --namespace fleet annotate --overwrite rollouts.outrider.dev/agent" in ready(fleet).message
    assert condition(fleet, "Stalled") is None
    live(fleet, 600)
    assert fleet.assignments() == {NEW: 1, OLD: 9}
    assert len(told(fleet, "ApprovalNeeded")) == 1, "once"
    assert fleet.plan().wake_at is None, "nothing but an approval changes it"
    approve(fleet, 1)
    fleet.settle(until=lambda f: f.status.run is not None and f.status.run.awaits_approval == 2)
    assert fleet.assignments() == {NEW: 3, OLD: 7}
    approve(fleet, 2)
    fleet.settle()
    assert fleet.assignments() == {NEW: 10}
    assert len(told(fleet, "ApprovalNeeded")) == 2
    run = fleet.status.run
    assert run is not None
    assert (run.awaits_approval, [approval.step for approval in run.approvals]) == (None, [1, 2])


def waiting_for_the_first_approval(**changes: Any) -> Fleet:
    fleet = installed(**{"strategy": APPROVED, **changes})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: ready(f).reason == "WaitingForApproval")
    return fleet


def test_the_approval_of_a_step_is_not_that_of_another() -> None:
    fleet = waiting_for_the_first_approval()
    approve(fleet, 2)
    live(fleet, 30)
    assert fleet.assignments() == {NEW: 1, OLD: 9}


def test_a_canary_that_falls_ill_while_the_approval_is_waited_for_is_taken_back() -> None:
    fleet = waiting_for_the_first_approval()
    sick = next(name for name in fleet.nodes if fleet.assignment(name) == NEW)
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    for pod in fleet.nodes[sick].pods:
        pod.behaviour = "crash-loop"
    fleet.settle()
    assert (fleet.status.phase, fleet.assignments()) == ("RolledBack", {OLD: 10})


def test_the_next_run_needs_an_approval_of_its_own() -> None:
    fleet = waiting_for_the_first_approval()
    approve(fleet, 1)
    fleet.change(version="1.2.0")
    live(fleet, 2)
    fleet.settle(until=lambda f: f.status.run is not None and f.status.run.awaits_approval == 1)
    assert fleet.status.run is not None
    assert (fleet.status.run.version, fleet.status.run.approvals) == ("1.2.0", [])
    assert len(told(fleet, "ApprovalNeeded")) == 2


def test_going_back_to_the_stable_version_needs_no_approval() -> None:
    fleet = waiting_for_the_first_approval()
    fleet.change(version="1.0.0")
    fleet.settle()
    assert fleet.assignments() == {OLD: 10}


def test_a_run_does_not_end_before_its_last_step_is_approved() -> None:
    fleet = waiting_for_the_first_approval(strategy=canary({"nodes": "100%", "requireApproval": True}))
    assert fleet.assignments() == {NEW: 10}
    assert fleet.status.revisions is not None
    assert fleet.status.revisions.stable == OLD
    approve(fleet, 1)
    fleet.settle()
    assert fleet.status.revisions.stable == NEW


def test_an_approval_that_is_asked_for_later_holds_as_well() -> None:
    strategy = canary({"nodes": 1}, {"nodes": 2})
    fleet = installed(strategy=strategy)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) == 3)
    fleet.change(strategy=canary({"nodes": 1, "requireApproval": True}, {"nodes": 2}))
    fleet.settle(until=lambda f: ready(f).reason == "WaitingForApproval")
    assert fleet.assignments()[NEW] == 3
    fleet.change(strategy=strategy)
    fleet.settle()
    assert fleet.status.run is not None
    assert fleet.status.run.awaits_approval is None


def test_a_pause_hides_the_approval_and_does_not_ask_twice() -> None:
    fleet = waiting_for_the_first_approval()
    fleet.change(paused=True)
    live(fleet, 5)
    assert fleet.status.phase == "Paused"
    fleet.change(paused=False)
    live(fleet, 5)
    assert ready(fleet).reason == "WaitingForApproval"
    assert len(told(fleet, "ApprovalNeeded")) == 1


# --- where canaries are -----------------------------------------------------------------------------------------------

LAB = {"matchLabels": {"lab": "yes"}}


def canaries(fleet: Fleet, run: int = 2) -> list[list[str]]:
    """The nodes of each canary step."""
    return [[e.name for e in b.spec.nodes] for b in fleet.batches.values() if b.spec.run == run and b.spec.step]


def test_canaries_are_only_where_they_may_be() -> None:
    fleet = installed(strategy=canary({"nodes": 2}, {"nodes": 1}, nodeSelector=LAB))
    for name in ("node-002", "node-005", "node-007"):
        fleet.label(name, {"lab": "yes"})
    fleet.change(version="1.1.0")
    fleet.settle()
    assert [len(nodes) for nodes in canaries(fleet)] == [2, 1]
    assert {name for nodes in canaries(fleet) for name in nodes} == {"node-002", "node-005", "node-007"}
    assert fleet.assignments() == {NEW: 10}
    assert not told(fleet, "FewerCanaries")


def test_a_step_with_fewer_nodes_than_asked_takes_those_and_says_so() -> None:
    fleet = installed(strategy=canary({"nodes": 4}, nodeSelector=LAB))
    fleet.label("node-002", {"lab": "yes"})
    fleet.label("node-005", {"lab": "yes"})
    fleet.change(version="1.1.0")
    fleet.settle()
    assert [sorted(nodes) for nodes in canaries(fleet)] == [["node-002", "node-005"]]
    [message] = told(fleet, "FewerCanaries")
    assert message.startswith("Run 2, canary step 1: 2 instead of 4 nodes, because no more that match strategy.canary.")
    assert fleet.assignments() == {NEW: 10}


def test_without_any_node_that_matches_the_canary_is_not_passed_over() -> None:
    fleet = installed(strategy=canary({"nodes": 1}, nodeSelector=LAB))
    fleet.change(version="1.1.0")
    live(fleet, 30)
    assert fleet.patches == []
    assert (fleet.status.phase, ready(fleet).reason) == ("Stalled", "NoCanaryNode")
    assert "none of the 10 nodes matches strategy.canary.nodeSelector" in ready(fleet).message
    fleet.label("node-003", {"lab": "yes"})
    fleet.settle()
    assert canaries(fleet) == [["node-003"]]


def test_a_canary_that_is_away_is_waited_for() -> None:
    fleet = installed(strategy=canary({"nodes": 1}, nodeSelector=LAB))
    fleet.label("node-003", {"lab": "yes"})
    fleet.set_ready("node-003", False)
    fleet.change(version="1.1.0")
    live(fleet, 30)
    assert fleet.patches == []
    assert (fleet.status.phase, ready(fleet).reason) == ("Waiting", "NoCanaryNode")
    assert "of the 1 that match" in ready(fleet).message
    assert "(node-003: NodeNotReady)" in ready(fleet).message
    fleet.set_ready("node-003", True)
    fleet.settle()
    assert canaries(fleet) == [["node-003"]]
    assert fleet.assignments() == {NEW: 10}


def test_steps_that_find_nobody_left_are_taken_with_those_that_were_moved() -> None:
    steps = [{"nodes": 1}, {"nodes": 3}, {"nodes": 5, "requireApproval": True}]
    fleet = installed(strategy=canary(*steps, nodeSelector=LAB))
    fleet.label("node-003", {"lab": "yes"})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: ready(f).reason == "WaitingForApproval")
    assert canaries(fleet) == [["node-003"]]
    assert fleet.status.run is not None
    assert fleet.status.run.awaits_approval == 3, "what was to be approved is still to be approved"
    approve(fleet, 3)
    fleet.settle()
    assert fleet.assignments() == {NEW: 10}


def test_a_canary_that_failed_within_its_tolerance_does_not_stand_for_the_steps_after_it() -> None:
    strategy = canary({"nodes": 1, "failureTolerance": 1}, {"nodes": 1}, nodeSelector=LAB)
    fleet = installed(strategy={**strategy, "failureTolerance": 3})
    fleet.label("node-003", {"lab": "yes"})
    fleet.behaviour = lambda node, revision: "crash-loop" if (node, revision) == ("node-003", NEW) else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: ready(f).reason == "NoCanaryNode")
    assert fleet.status.phase == "Stalled"
    assert "(node-003: failed)" in ready(fleet).message
    assert fleet.assignments() == {OLD: 10}


def test_canaries_are_taken_from_each_zone_in_turn() -> None:
    fleet = installed(12, strategy=canary({"nodes": 3}, {"nodes": 2}, {"nodes": 3}, spreadBy="zone"))
    for index, name in enumerate(sorted(fleet.nodes)):
        if index < 9:  # six in a, two in b, one in c; three that say nothing
            fleet.label(name, {"zone": "a" if index < 6 else "b" if index < 8 else "c"})
    fleet.change(version="1.1.0")
    fleet.settle()
    zones = [[fleet.nodes[name].node.labels.get("zone") for name in nodes] for nodes in canaries(fleet)]
    assert len({*zones[0], zones[1][0]}) == 4, "the first four are all different"
    assert len(set(zones[0])) == 3
    counts = {zone: sum(step.count(zone) for step in zones) for zone in ("a", "b", "c", None)}
    assert counts["b"] == 2
    assert counts["c"] == 1
    assert {counts["a"], counts[None]} <= {2, 3}


def test_the_order_of_canaries_is_the_same_every_time() -> None:
    def run() -> list[list[str]]:
        fleet = installed(9, strategy=canary({"nodes": 3}, {"nodes": 3}, spreadBy="zone", nodeSelector=LAB))
        for index, name in enumerate(sorted(fleet.nodes)):
            fleet.label(name, {"zone": "abc"[index % 3], "lab": "yes"})
        fleet.change(version="1.1.0")
        fleet.settle()
        return canaries(fleet)

    assert run() == run()


# --- what must hold in every rollout ----------------------------------------------------------------------------------

WINDOWS = st.lists(
    st.builds(
        lambda start, length: {"start": f"00:{start:02}", "end": f"00:{start + length:02}"},
        st.integers(0, 7),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=3,
)
STEPS = st.lists(
    st.builds(
        lambda nodes, soak, asked: {"nodes": nodes, "soakSeconds": soak, "requireApproval": asked},
        st.sampled_from([1, 2, "30%"]),
        st.integers(0, 5),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


def sets_out(fleet: Fleet, plan: Plan) -> list[str]:
    """The nodes that a plan moves away from what they run, to what the run brings."""
    run = plan.status.run
    if run is None or run.kind == "Rollback" or run.revision == run.from_revision:
        return []
    return [
        move.node
        for move in plan.moves
        if not is_leaving(move.before) and (move.after or "").removeprefix("to-") == run.revision
    ]


def unapproved(fleet: Fleet, run: int) -> set[int]:
    status, canary = fleet.status.run, fleet.spec.strategy.canary
    assert status is not None
    assert canary is not None
    approved = {approval.step for approval in status.approvals}
    taken = {
        batch.spec.step
        for batch in fleet.batches.values()
        if batch.spec.run == run and any(result.state != "Skipped" for result in batch.status.nodes)
    }
    return {step for step in taken - {0} if canary.steps[step - 1].require_approval} - approved


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    count=st.integers(1, 9),
    windows=WINDOWS,
    steps=STEPS,
    sick=st.sets(st.integers(0, 8), max_size=2),
    tolerance=st.sampled_from([0, 1, "50%"]),
    crashes=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_no_node_sets_out_outside_a_window_and_nothing_follows_an_unapproved_step(
    count: int,
    windows: list[dict[str, str]],
    steps: list[dict[str, Any]],
    sick: set[int],
    tolerance: int | str,
    crashes: bool,
    seed: int,
) -> None:
    dice = random.Random(seed)  # noqa: S311 - a repeatable world, not a secret
    strategy = {**canary(*steps), "failureTolerance": tolerance}
    fleet = installed(count, strategy=strategy, health={"timeoutSeconds": 30, "minReadySeconds": 2})
    fleet.now = at("00:00", day=1)
    troubled = {f"node-{index:03}" for index in sick}
    fleet.behaviour = lambda node, revision: "crash-loop" if node in troubled and revision == NEW else "healthy"
    fleet.change(windows=windows)
    fleet.change(version="1.1.0")
    zones = [(window, fleet.snapshot().zones[window.time_zone]) for window in fleet.spec.windows]
    for _ in range(250):
        plan = fleet.plan()
        if not is_open(zones, fleet.now):
            assert not sets_out(fleet, plan), "a node sets out outside the windows"
        run = fleet.status.run
        new = [action for action in plan.actions if isinstance(action, CreateBatch) and action.spec.kind == "Rollout"]
        if run is not None and run.id > 1 and run.kind == "Rollout":
            assert not (new and unapproved(fleet, run.id)), "a batch follows a step that nobody approved"
            done = plan.status.run is not None and plan.status.run.state in {"Succeeded", "PartiallySucceeded"}
            assert not (done and unapproved(fleet, run.id)), "a run ends after a step that nobody approved"
        fleet.execute(
            plan, crash_after=dice.randrange(len(plan.actions) + 1) if crashes and dice.random() < 0.2 else None
        )
        run = fleet.status.run
        if run is not None and run.awaits_approval is not None and dice.random() < 0.05:
            approve(fleet, run.awaits_approval)
        if dice.random() < 0.02:
            fleet.change(version=dice.choice(["1.0.0", "1.1.0", "1.2.0"]))
        fleet.tick(dice.choice([1, 1, 2, 5]))


def test_a_sliding_window_of_nodes_stops_when_the_window_of_time_closes() -> None:
    fleet = installed(12, strategy={"type": "Rolling", "rolling": {"maxUnavailable": 2}}, windows=[NIGHT])
    fleet.now = at("22:10") - timedelta(seconds=15)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.now >= at("22:10"))
    gone = {name for name in fleet.nodes if fleet.assignment(name) != OLD}
    assert 0 < len(gone) < 12
    live(fleet, 30)
    assert {name for name in fleet.nodes if fleet.assignment(name) == NEW} == gone, "who has set out has arrived"
    assert fleet.assignments() == {NEW: len(gone), OLD: 12 - len(gone)}
    assert (fleet.status.phase, ready(fleet).reason) == ("Waiting", "WaitingForWindow")
    sleep_until(fleet, at("22:00", day=1))
    fleet.settle()
    assert fleet.assignments() == {NEW: 12}


def test_a_node_that_left_the_fleet_keeps_its_agent_until_a_window_opens() -> None:
    fleet = installed(4, windows=[NIGHT])
    fleet.change(target={"nodeNames": ["node-000", "node-001", "node-003"]})
    live(fleet, 20)
    assert fleet.assignment("node-002") == OLD
    assert fleet.plan().wake_at == at("22:00")
    sleep_until(fleet, at("22:00"))
    fleet.settle(until=lambda f: f.assignment("node-002") is None, limit=60)


def test_canaries_of_a_run_by_window_are_approved_first() -> None:
    strategy = {**canary({"nodes": 1, "requireApproval": True}), "rolling": {"maxUnavailable": 3}}
    fleet = waiting_for_the_first_approval(strategy=strategy)
    live(fleet, 30)
    assert fleet.assignments() == {NEW: 1, OLD: 9}
    approve(fleet, 1)
    fleet.settle()
    assert fleet.assignments() == {NEW: 10}
