"""Stories of versions that change their standing while fleets run them: deprecated, withdrawn, revoked, unfit."""

from dataclasses import replace
from typing import Any

import pytest

from outrider.api.componentversion import Compatibility
from outrider.core.compatibility import VersionRules, read_rules
from outrider.core.moves import is_leaving
from outrider.core.plan import RequestVerification
from outrider.core.snapshot import Neighbour
from simulation.fleet import START, Fleet, make_spec

OLD, NEW = "r-1.0.0", "r-1.1.0"
ROLLING = {"type": "Rolling", "rolling": {"batchSize": 3}}


def installed(count: int = 10, **changes: Any) -> Fleet:
    fleet = Fleet(count, make_spec(**{"strategy": ROLLING, **changes}))
    fleet.settle()
    fleet.patches.clear()
    fleet.events.clear()
    return fleet


def updating(moved: int = 3, **changes: Any) -> Fleet:
    """A fleet on its way to 1.1.0, when so many nodes run it."""
    fleet = installed(**changes)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= moved)
    return fleet


def leaving(**changes: Any) -> Fleet:
    """A fleet on its way to 1.1.0, when its first nodes have just left 1.0.0."""
    fleet = installed(**changes)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(is_leaving(f.assignment(name)) for name in f.nodes))
    return fleet


def go_on(fleet: Fleet, steps: int = 60) -> None:
    for _ in range(steps):
        fleet.execute(fleet.plan())
        fleet.tick()


def conditions(fleet: Fleet) -> dict[str, tuple[str, str, str]]:
    return {c.type: (c.status, c.reason, c.message) for c in fleet.plan().status.conditions}


def rules(**fields: Any) -> VersionRules:
    return read_rules([], Compatibility.model_validate(fields))


# -- Withdrawn


def test_a_version_that_is_withdrawn_in_the_middle_stops_its_run_until_it_is_published_again() -> None:
    fleet = leaving()
    fleet.phases["1.1.0"] = "Withdrawn"
    go_on(fleet)
    assert fleet.assignments() == {NEW: 3, OLD: 7}, "half-made moves are finished, and no other is made"
    status, reason, message = conditions(fleet)["Stalled"]
    assert (status, reason) == ("True", "VersionWithdrawn")
    assert "agent-1.1.0 is Withdrawn" in message
    assert "3 nodes run it" in message
    assert fleet.status.run is not None
    assert fleet.status.run.state == "Running"
    fleet.phases["1.1.0"] = "Published"
    fleet.settle()
    assert fleet.assignments() == {NEW: 10}
    assert fleet.status.phase == "Completed"


def test_nodes_that_fail_on_a_withdrawn_version_go_back_to_the_one_before() -> None:
    fleet = updating()
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    for sim in fleet.nodes.values():
        for pod in sim.pods:
            pod.behaviour = fleet.behaviour(sim.node.name, pod.revision)
    fleet.phases["1.1.0"] = "Withdrawn"
    fleet.settle()
    assert fleet.assignments() == {OLD: 10}
    assert fleet.status.phase == "RolledBack"


def test_no_run_starts_to_a_withdrawn_version() -> None:
    fleet = installed()
    fleet.phases["1.1.0"] = "Withdrawn"
    fleet.change(version="1.1.0")
    go_on(fleet)
    assert fleet.patches == []
    assert conditions(fleet)["Ready"][1] == "VersionWithdrawn"
    assert NEW not in fleet.revisions


def test_a_rollback_waits_for_a_withdrawn_version_and_names_who_stays() -> None:
    fleet = leaving(count=4)
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.phases["1.0.0"] = "Withdrawn"
    go_on(fleet, 200)
    assert fleet.assignments() == {NEW: 3, OLD: 1}
    status, reason, message = conditions(fleet)["Stalled"]
    assert (status, reason) == ("True", "ReturnBlocked")
    assert "3 nodes stay where they are" in message
    assert "agent-1.0.0 is Withdrawn" in message
    assert "node-00" in message
    assert fleet.status.phase == "Stalled"
    fleet.phases["1.0.0"] = "Published"
    fleet.settle()
    assert fleet.assignments() == {OLD: 4}
    assert fleet.status.phase == "RolledBack"


def test_a_rollback_under_way_stops_where_it_is_when_its_goal_is_withdrawn() -> None:
    fleet = installed(strategy={"type": "Full", "full": {"maxInFlight": 2}})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 9)
    fleet.phases["1.1.0"] = "Revoked"
    fleet.settle(until=lambda f: f.assignments().get(OLD, 0) >= 4)
    fleet.phases["1.0.0"] = "Withdrawn"
    go_on(fleet, 100)
    assert fleet.assignments()[NEW] >= 4
    assert not any(is_leaving(fleet.assignment(name)) for name in fleet.nodes)
    assert conditions(fleet)["Stalled"][1] == "ReturnBlocked"
    fleet.phases["1.0.0"] = "Published"
    fleet.settle()
    assert fleet.assignments() == {OLD: 10}
    assert fleet.status.run is not None
    assert fleet.status.run.state == "Succeeded"


def test_who_can_return_returns_though_others_cannot() -> None:
    fleet = installed()
    away = ("node-003", "node-007")
    for name in away:
        fleet.set_ready(name, False)
    fleet.change(version="1.1.0")
    fleet.settle()
    for name in away:
        fleet.set_ready(name, True)
    fleet.change(version="1.2.0", strategy={"type": "Full"})
    fleet.settle(until=lambda f: f.assignments() == {"r-1.2.0": 10})
    fleet.phases |= {"1.2.0": "Revoked", "1.0.0": "Withdrawn"}
    fleet.change(strategy={"type": "Rolling", "rolling": {"batchSize": 1}})
    go_on(fleet, 200)
    assert fleet.assignments() == {NEW: 8, "r-1.2.0": 2}
    assert "agent-1.0.0 is Withdrawn (node-003, node-007)" in conditions(fleet)["Stalled"][2]
    fleet.phases["1.0.0"] = "Published"
    fleet.settle()
    assert fleet.assignments() == {NEW: 8, OLD: 2}


def test_a_node_between_two_barred_versions_arrives_where_it_was_going() -> None:
    fleet = leaving()
    fleet.phases |= {"1.0.0": "Withdrawn", "1.1.0": "Revoked"}
    go_on(fleet, 100)
    assert fleet.assignments() == {NEW: 3, OLD: 7}
    assert conditions(fleet)["Stalled"][1] == "ReturnBlocked"


def test_a_node_that_failed_within_the_tolerance_stays_while_what_it_ran_may_not_be_used() -> None:
    fleet = installed(strategy={**ROLLING, "failureTolerance": 1})
    fleet.behaviour = lambda node, revision: "crash-loop" if (node, revision) == ("node-004", NEW) else "healthy"
    fleet.phases["1.0.0"] = "Withdrawn"
    fleet.change(version="1.1.0")
    go_on(fleet, 300)
    assert fleet.assignments() == {NEW: 10}
    assert ("node-004", "Failed", "TooManyRestarts") in {(e.name, s, r) for e, s, r in fleet.entries(2)}
    assert "1 of them stay, because what they ran before is Withdrawn or Revoked" in conditions(fleet)["Degraded"][2]


def test_a_node_that_joins_is_not_given_a_withdrawn_version_and_gets_it_when_that_is_over() -> None:
    fleet = installed(4)
    assert fleet.joiners == [OLD]
    fleet.phases["1.0.0"] = "Withdrawn"
    go_on(fleet, 3)
    assert fleet.joiners == []
    fleet.join("late")
    go_on(fleet)
    assert fleet.assignment("late") is None
    fleet.phases["1.0.0"] = "Published"
    go_on(fleet)
    assert fleet.assignment("late") == OLD
    assert fleet.joiners == [OLD]


def test_a_node_that_joins_meanwhile_is_moved_to_the_next_version_with_the_others() -> None:
    fleet = installed(4)
    fleet.phases["1.0.0"] = "Revoked"
    go_on(fleet, 3)
    fleet.join("late")
    go_on(fleet, 10)
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {NEW: 5}
    (late,) = [entry for entry, _, _ in fleet.entries(2) if entry.name == "late"]
    assert late.back == "none"


# -- Revoked


def test_a_revoked_version_is_taken_back_at_once_like_a_failed_run() -> None:
    fleet = updating(6)
    fleet.phases["1.1.0"] = "Revoked"
    fleet.settle()
    assert fleet.assignments() == {OLD: 10}
    assert fleet.status.phase == "RolledBack"
    assert conditions(fleet)["RolledBack"][1] == "VersionRevoked"
    assert "agent-1.1.0 is Revoked" in conditions(fleet)["Ready"][2]
    assert [event.reason for event in fleet.events if event.reason == "RollingBack"] == ["RollingBack"]


def test_a_revoked_version_is_left_at_once_though_its_nodes_are_healthy_and_its_batch_soaks() -> None:
    fleet = installed()
    slow = {"type": "Rolling", "rolling": {"batchSize": 3, "batchIntervalSeconds": 3600}}
    fleet.change(version="1.1.0", strategy=slow)
    go_on(fleet, 30)
    assert fleet.assignments() == {NEW: 3, OLD: 7}
    fleet.phases["1.1.0"] = "Revoked"
    begun = fleet.now
    fleet.settle()
    assert fleet.assignments() == {OLD: 10}
    assert (fleet.now - begun).total_seconds() < 120


def test_with_on_failure_pause_a_revoked_version_stops_the_run_and_nobody_arrives_any_more() -> None:
    fleet = leaving(onFailure="Pause")
    fleet.phases["1.1.0"] = "Revoked"
    fleet.settle()
    assert fleet.assignments() == {OLD: 10}, "who was on the way goes back"
    assert fleet.status.phase == "Stalled"
    assert conditions(fleet)["Paused"][1] == "VersionRevoked"
    assert {(state, reason) for _, state, reason in fleet.entries(2)} == {("RolledBack", "VersionRevoked")}


def test_with_on_failure_pause_nodes_that_run_a_revoked_version_stay_and_are_counted() -> None:
    fleet = updating(6, onFailure="Pause")
    go_on(fleet, 0)
    fleet.phases["1.1.0"] = "Revoked"
    fleet.settle()
    left = fleet.assignments()[NEW]
    assert left >= 6
    assert conditions(fleet)["Degraded"][1] == "RevokedVersionRuns"
    assert f"{left} nodes still on 1.1.0" in conditions(fleet)["Degraded"][2]
    fleet.change(onFailure="Rollback")
    fleet.settle()
    assert fleet.assignments() == {OLD: 10}


def test_a_pause_by_spec_holds_up_the_way_back_from_a_revoked_version_too() -> None:
    fleet = leaving()
    fleet.change(paused=True)
    fleet.phases["1.1.0"] = "Revoked"
    go_on(fleet)
    assert fleet.assignments() == {OLD: 10}, "who was on the way is not sent on"
    assert fleet.status.run is not None
    assert fleet.status.run.kind == "Rollout"
    fleet.change(paused=False)
    fleet.settle()
    assert fleet.status.phase == "RolledBack"


def test_nobody_returns_to_a_revoked_version() -> None:
    fleet = updating(3)
    fleet.phases |= {"1.0.0": "Revoked", "1.1.0": "Revoked"}
    go_on(fleet, 200)
    assert fleet.assignments() == {NEW: 3, OLD: 7}
    assert conditions(fleet)["Stalled"][1] == "ReturnBlocked"
    fleet.change(version="1.2.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.2.0": 10}
    assert "Degraded" not in conditions(fleet)


def test_a_first_run_of_a_revoked_version_leaves_no_agent() -> None:
    fleet = Fleet(6, make_spec(strategy=ROLLING))
    fleet.settle(until=lambda f: f.assignments().get(OLD, 0) >= 3)
    fleet.phases["1.0.0"] = "Revoked"
    fleet.settle()
    assert set(fleet.assignments()) == {"none", "None"}


def test_a_completed_rollout_whose_version_is_revoked_says_so_and_moves_nobody() -> None:
    fleet = installed(5)
    fleet.phases["1.0.0"] = "Revoked"
    fleet.join("late")
    go_on(fleet)
    assert fleet.assignments() == {OLD: 5, "None": 1}
    assert fleet.patches == []
    found = conditions(fleet)
    assert found["Ready"][:2] == ("False", "VersionRevoked")
    assert found["Stalled"][0] == "True"
    assert "5 nodes run it. Set spec.version to another" in found["Ready"][2]
    assert found["Degraded"][1] == "RevokedVersionRuns"


def test_a_run_away_from_a_revoked_version_that_fails_leaves_its_nodes_where_they_are() -> None:
    fleet = installed(6)
    fleet.phases["1.0.0"] = "Revoked"
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    go_on(fleet, 200)
    assert fleet.assignments() == {NEW: 3, OLD: 3}
    assert conditions(fleet)["Stalled"][1] == "ReturnBlocked"
    fleet.change(version="1.2.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.2.0": 6}


def test_a_node_left_behind_on_a_revoked_version_has_the_stable_one_as_its_way_back() -> None:
    fleet = installed(6)
    fleet.set_ready("node-003", False)
    fleet.change(version="1.1.0")
    fleet.settle()
    fleet.phases["1.0.0"] = "Revoked"
    fleet.behaviour = lambda node, revision: "crash-loop" if revision == "r-1.2.0" else "healthy"
    fleet.set_ready("node-003", True)
    fleet.change(version="1.2.0", strategy={"type": "Full"})
    fleet.settle()
    assert fleet.assignments() == {NEW: 6}


# -- Deprecated


def test_no_new_run_goes_to_a_deprecated_version() -> None:
    fleet = installed()
    fleet.phases["1.1.0"] = "Deprecated"
    fleet.change(version="1.1.0")
    go_on(fleet)
    assert fleet.patches == []
    assert conditions(fleet)["Stalled"][1] == "VersionDeprecated"


def test_a_run_that_is_under_way_when_its_version_becomes_deprecated_is_completed() -> None:
    fleet = updating()
    fleet.phases["1.1.0"] = "Deprecated"
    fleet.settle()
    assert fleet.assignments() == {NEW: 10}
    status, _, message = conditions(fleet)["Ready"]
    assert status == "True"
    assert "1.1.0 is Deprecated: no new run may go to it" in message


def test_nodes_that_join_get_a_stable_version_that_is_deprecated() -> None:
    fleet = installed(3)
    fleet.phases["1.0.0"] = "Deprecated"
    fleet.join("late")
    go_on(fleet)
    assert fleet.assignments() == {OLD: 4}


def test_a_failed_run_returns_to_a_deprecated_version() -> None:
    fleet = installed()
    fleet.phases["1.0.0"] = "Deprecated"
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {OLD: 10}
    assert fleet.status.phase == "RolledBack"


@pytest.mark.parametrize("moved", [3, 10], ids=["in the middle", "after it has completed"])
def test_a_person_may_go_back_to_a_deprecated_version_that_the_fleet_ran(moved: int) -> None:
    fleet = updating(moved)
    if moved == 10:
        fleet.settle()
    fleet.phases["1.0.0"] = "Deprecated"
    fleet.change(version="1.0.0")
    fleet.settle()
    assert fleet.assignments() == {OLD: 10}


# -- compatibility


def kernels(fleet: Fleet, *versions: str) -> None:
    for name, kernel in zip(sorted(fleet.nodes), versions, strict=True):
        fleet.nodes[name].node = replace(fleet.nodes[name].node, kernel_version=kernel)


def test_incompatible_nodes_are_left_out_with_the_reason_and_taken_when_they_fit() -> None:
    fleet = installed(4)
    kernels(fleet, "6.1.0-28-amd64", "5.4.0-1-amd64", "6.1.0-28-amd64", "")
    fleet.rules[NEW] = rules(kernelVersion=">=5.10")
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {NEW: 2, OLD: 2}
    assert {(e.name, s, r) for e, s, r in fleet.entries(2) if s != "Succeeded"} == {
        ("node-001", "Skipped", "KernelUnsupported"),
        ("node-003", "Skipped", "NodeUnknown"),
    }
    assert "left out: 2" in conditions(fleet)["Ready"][2]
    kernels(fleet, "6.1.0-28-amd64", "6.1.0-30-amd64", "6.1.0-28-amd64", "")
    go_on(fleet)
    assert fleet.assignments() == {NEW: 3, OLD: 1}, "who has not told its kernel waits"
    kernels(fleet, "6.1.0-28-amd64", "6.1.0-30-amd64", "6.1.0-28-amd64", "6.1.0-30-amd64")
    go_on(fleet)
    assert fleet.assignments() == {NEW: 4}
    assert fleet.status.phase == "Completed"


def test_where_the_version_has_rules_no_daemonset_serves_joiners_and_only_fitting_ones_get_it() -> None:
    fleet = installed(2)
    kernels(fleet, "6.1.0", "6.1.0")
    fleet.rules[NEW] = rules(kernelVersion=">=5.10")
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.joiners == []
    for name, kernel in (("fits", "6.8.0"), ("old", "4.18.0"), ("mute", "")):
        fleet.join(name)
        fleet.nodes[name].node = replace(fleet.nodes[name].node, kernel_version=kernel)
    go_on(fleet)
    assert {name: fleet.assignment(name) for name in ("fits", "old", "mute")} == {
        "fits": NEW,
        "old": None,
        "mute": None,
    }


def test_a_node_that_joins_and_does_not_fit_the_stable_version_is_moved_to_the_next_one_that_it_fits() -> None:
    fleet = installed(2)
    kernels(fleet, "6.1.0", "6.1.0")
    fleet.rules[OLD] = rules(kernelVersion=">=5.10")
    for name, kernel in (("old", "4.18.0"), ("mute", "")):
        fleet.join(name)
        fleet.nodes[name].node = replace(fleet.nodes[name].node, kernel_version=kernel)
    go_on(fleet, 10)
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {NEW: 4}


def test_a_version_that_requires_another_component_follows_it_from_node_to_node() -> None:
    other = "agents.outrider.dev/daemon"
    fleet = installed(4, strategy={"type": "Rolling", "rolling": {"batchSize": 4}})
    fleet.neighbours = {"daemon": Neighbour(other, {"d1": "1.9.0", "d2": "2.0.0"})}
    fleet.rules[NEW] = rules(requires=[{"component": "daemon", "versionRange": ">=2"}])
    names = sorted(fleet.nodes)
    for name, assignment in zip(names, ["d1", "to-d2", "none", "unheard-of"], strict=True):
        fleet.label(name, {other: assignment})
    fleet.change(version="1.1.0")
    go_on(fleet)
    assert fleet.assignments() == {OLD: 4}
    assert {r for _, _, r in fleet.entries(2)} == {
        "RequirementUnmet",
        "RequirementUnknown",
        "RequirementMissing",
    }
    assert "no node can be moved now" in conditions(fleet)["Ready"][2]
    for moved, name in enumerate(names, start=1):
        fleet.label(name, {other: "d2"})
        go_on(fleet, 30)
        assert fleet.assignments().get(NEW) == moved, "as soon as the other component is there, and not before"
    fleet.settle()
    assert fleet.status.phase == "Completed"


# -- verification before a run


def wants_fresh(count: int = 4, **changes: Any) -> Fleet:
    fleet = installed(count, **changes)
    fleet.fresh_seconds = 30
    fleet.now = START.replace(hour=12)
    for sim in fleet.nodes.values():
        for pod in sim.pods:
            pod.ready_since = fleet.now
    return fleet


def test_a_run_starts_only_when_its_version_was_verified_just_before() -> None:
    fleet = wants_fresh()
    fleet.change(version="1.1.0")
    fleet.execute(fleet.plan())
    assert conditions(fleet)["Ready"][1] == "VersionBeingVerified"
    assert fleet.status.phase == "Waiting"
    assert fleet.asked.keys() == {"1.1.0"}
    begun = fleet.now
    fleet.settle()
    assert fleet.verified["1.1.0"] >= begun
    assert fleet.assignments() == {NEW: 4}


def test_a_verification_that_is_fresh_is_not_asked_for_again() -> None:
    fleet = wants_fresh()
    fleet.verified["1.1.0"] = fleet.now
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {NEW: 4}
    assert fleet.verified["1.1.0"] == START.replace(hour=12)


def test_a_verification_that_cannot_be_done_keeps_the_new_run_waiting_and_says_why() -> None:
    fleet = wants_fresh()
    fleet.registry_is_down = True
    fleet.change(version="1.1.0")
    go_on(fleet, 100)
    assert fleet.patches == []
    status, reason, message = conditions(fleet)["Reconciling"]
    assert (status, reason) == ("True", "VersionBeingVerified")
    assert "which cannot be done now: the registry is down" in message
    fleet.registry_is_down = False
    fleet.settle()
    assert fleet.assignments() == {NEW: 4}


def test_a_verification_that_is_refused_lets_no_run_start() -> None:
    fleet = wants_fresh()
    fleet.change(version="1.1.0")
    fleet.execute(fleet.plan())
    fleet.phases["1.1.0"] = "Withdrawn"
    go_on(fleet)
    assert fleet.patches == []
    assert conditions(fleet)["Ready"][1] == "VersionWithdrawn"


def test_a_rollback_asks_for_a_verification_of_its_goals_and_does_not_wait_for_it() -> None:
    fleet = wants_fresh()
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    asked: list[str] = []
    for _ in range(200):
        plan = fleet.plan()
        if plan.status.run is not None and plan.status.run.kind == "Rollback":
            fleet.registry_is_down = True
            asked += [action.name for action in plan.actions if isinstance(action, RequestVerification)]
        fleet.execute(plan)
        fleet.tick()
    assert asked == ["agent-1.0.0"]
    assert fleet.assignments() == {OLD: 4}
    assert fleet.status.phase == "RolledBack"


def test_a_change_of_mind_back_to_what_is_stable_does_not_wait_for_the_registry() -> None:
    fleet = wants_fresh()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 1)
    fleet.registry_is_down = True
    fleet.now = START.replace(hour=13)
    fleet.change(version="1.0.0")
    fleet.settle()
    assert fleet.assignments() == {OLD: 4}
    assert fleet.asked.keys() == {"1.0.0"}
