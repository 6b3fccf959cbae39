"""What goes back when a run fails: all that it moved, nothing else, and whatever happened in between."""

from dataclasses import replace
from typing import Any

import pytest

from outrider.api.names import LABEL_EXCLUDE
from outrider.core import plan as actions
from outrider.core.compatibility import VersionRules
from outrider.core.moves import is_leaving
from outrider.core.plan import Plan
from outrider.core.snapshot import Hindrance
from simulation.fleet import Fleet, is_at_rest, make_spec
from simulation.troubled import NEW, OLD, TroubledFleet

BATCHES = {"type": "Rolling", "rolling": {"batchSize": 3}}
WINDOW = {"type": "Rolling", "rolling": {"maxUnavailable": 3}}
POOL = {"nodeSelector": {"matchLabels": {"pool": "a"}}}
PART = {"nodeSelector": {"matchLabels": {"pool": "a", "site": "x"}}}


def installed(count: int = 12, strategy: Any = BATCHES, **changes: Any) -> TroubledFleet:
    fleet = TroubledFleet(count, make_spec(strategy=strategy, **changes))
    for number, name in enumerate(fleet.nodes):
        fleet.label(name, {"pool": "a", "site": "x" if number < count // 2 else "y"})
    fleet.settle()
    return fleet


def live(fleet: Fleet, seconds: int = 200) -> None:
    for _ in range(seconds):
        fleet.execute(fleet.plan())
        fleet.tick()


def moved_to(fleet: Fleet, count: int, revision: str = NEW) -> None:
    fleet.settle(until=lambda f: f.assignments().get(revision, 0) >= count)


def agents_crash(fleet: Fleet, revision: str = NEW) -> None:
    """Let the agents of a revision crash from now on, those that run included."""
    fleet.behaviour = lambda _node, of: "crash-loop" if of == revision else "healthy"
    for sim in fleet.nodes.values():
        for pod in sim.pods:
            if pod.revision == revision:
                pod.behaviour = "crash-loop"


def without(plan: Plan, unwanted: type) -> Plan:
    """Return what of a plan is done by a process that ends before it comes to some actions."""
    return replace(plan, actions=tuple(action for action in plan.actions if not isinstance(action, unwanted)))


def plan_with_departure(fleet: Fleet, before: str, after: str) -> Plan:
    """Go on until a plan lets nodes leave one revision for another; return that plan."""
    for _ in range(500):
        plan = fleet.plan()
        if any((move.before, move.after) == (before, f"to-{after}") for move in plan.moves):
            return plan
        fleet.execute(plan)
        fleet.tick()
    raise AssertionError(f"nobody leaves {before} for {after}")


# --- a version that completed once, and fails now


@pytest.mark.parametrize("how", ["failure", "abort", "revoke"])
@pytest.mark.parametrize("strategy", [BATCHES, WINDOW], ids=["batches", "window"])
def test_a_version_that_completed_before_is_taken_back_like_any_other(strategy: Any, how: str) -> None:
    fleet = installed(strategy=strategy)
    for version in ("1.1.0", "1.2.0"):
        fleet.change(version=version)
        fleet.settle()
    fleet.change(version="1.1.0")
    moved_to(fleet, 5)
    if how == "failure":
        agents_crash(fleet)
    elif how == "abort":
        fleet.ask("abort")
    else:
        fleet.phases["1.1.0"] = "Revoked"
    live(fleet)
    assert fleet.assignments() == {"r-1.2.0": 12}
    assert fleet.status.phase == "RolledBack"
    assert fleet.status.run is not None
    assert fleet.status.run.state == "Succeeded"


def test_what_ran_a_completed_version_before_the_run_to_it_stays() -> None:
    """Nodes that an edit of the target leaves out keep 1.1.0, and the run that brings the others back to it fails."""
    fleet = installed(onLeave="Keep", target=POOL)
    fleet.change(version="1.1.0")
    fleet.settle()
    fleet.change(version="1.2.0", target=PART)
    fleet.settle()
    assert fleet.assignments() == {NEW: 6, "r-1.2.0": 6}
    fleet.change(version="1.1.0", target=POOL)
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 9)
    fleet.ask("abort")
    fleet.settle(until=lambda f: f.status.phase == "RolledBack")
    assert fleet.assignments() == {NEW: 6, "r-1.2.0": 6}


# --- records that say something else than where a node came from


def test_a_slip_in_the_target_that_was_corrected_takes_nobodys_agent() -> None:
    fleet = installed(target=POOL)
    fleet.change(version="1.1.0")
    moved_to(fleet, 9)
    fleet.change(target=PART)
    fleet.settle(until=lambda f: any(batch.spec.purpose == "Removal" for batch in f.batches.values()))
    fleet.change(target=POOL)
    live(fleet, 2)
    assert any(reason == "AgentKept" for entry, _, reason in fleet.entries(2) if entry.to == "none")
    agents_crash(fleet)
    live(fleet)
    assert fleet.status.phase == "RolledBack"
    assert fleet.assignments() == {OLD: 12}


def test_a_rollback_whose_records_were_closed_before_the_status_said_so_takes_everybody_back() -> None:
    fleet = installed(20)
    fleet.change(version="1.1.0")
    moved_to(fleet, 12)
    agents_crash(fleet)
    fleet.settle(
        until=lambda f: (
            f.status.run is not None
            and f.status.run.kind == "Rollback"
            and any(state == "Pending" for _, state, _ in f.entries(f.status.run.id))
        )
    )
    fleet.change(version="1.2.0")
    fleet.execute(fleet.plan())  # its DaemonSet
    plan = fleet.plan()
    assert plan.status.run is not None
    assert plan.status.run.kind == "Rollout"
    for action in plan.actions:
        if isinstance(action, actions.WriteBatch):
            fleet._do(action)
    fleet.change(version="1.1.0")  # the process ends here, and the person thinks better of it
    live(fleet)
    assert fleet.assignments() == {OLD: 20}


def test_a_rollback_of_one_batch_leaves_whom_that_left_out_and_another_moved() -> None:
    fleet = installed(8, {"type": "Rolling", "rolling": {"batchSize": 2}})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(batch.spec.run == 2 for batch in f.batches.values()))
    first = next(batch for batch in fleet.batches.values() if batch.spec.run == 2)
    late, moved = (entry.name for entry in first.spec.nodes)
    fleet.set_ready(late, False)
    live(fleet, 2)
    fleet.set_ready(late, True)
    fleet.settle()
    assert [state for entry, state, _ in fleet.entries(2) if entry.name == late] == ["Skipped", "Succeeded"]
    fleet.ask("rollback", run=2, batches=[1])
    fleet.settle(until=lambda f: f.is_answered() and is_at_rest(f))
    assert {name for name in fleet.nodes if fleet.assignment(name) == OLD} == {moved}


# --- on record, and not patched: what holds the run condemns nobody


@pytest.mark.parametrize("how", ["withdrawn", "not published"])
def test_who_has_not_left_when_a_run_is_held_is_not_condemned(how: str) -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    moved_to(fleet, 6)
    fleet.execute(without(plan_with_departure(fleet, OLD, NEW), actions.Assign))
    assert any(state == "Stopping" for _, state, _ in fleet.entries(2))
    if how == "withdrawn":
        fleet.phases["1.1.0"] = "Withdrawn"
    else:
        fleet.hindrance = Hindrance("VersionNotPublished", "it is looked at again", stalled=False)
    live(fleet, 400)
    assert fleet.assignments() == {OLD: 6, NEW: 6}
    assert fleet.status.run is not None
    assert (fleet.status.run.kind, fleet.status.run.failed) == ("Rollout", 0)
    fleet.phases.clear()
    fleet.hindrance = None
    fleet.settle()
    assert fleet.assignments() == {NEW: 12}


def test_who_has_not_gone_back_while_that_may_not_be_goes_back_when_it_may() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    moved_to(fleet, 9)
    agents_crash(fleet)
    fleet.execute(without(plan_with_departure(fleet, NEW, OLD), actions.Assign))
    fleet.phases["1.0.0"] = "Withdrawn"
    live(fleet, 400)
    assert fleet.status.run is not None
    assert fleet.status.run.failed == 0, "that they may not go back is no failure of theirs"
    fleet.phases.clear()
    live(fleet)
    assert fleet.assignments() == {OLD: 12}
    assert fleet.status.phase == "RolledBack"


@pytest.mark.parametrize("barred", ["1.0.0", "1.1.0"])
def test_a_failed_node_that_was_not_sent_back_yet_has_not_failed_to_return(barred: str) -> None:
    fleet = installed(strategy={**BATCHES, "failureTolerance": 3})
    fleet.behaviour = lambda node, revision: "crash-loop" if (node, revision) == ("node-005", NEW) else "healthy"
    fleet.change(version="1.1.0")
    fleet.execute(without(plan_with_departure(fleet, NEW, OLD), actions.Assign))
    assert [(entry.name, state) for entry, state, _ in fleet.entries(2) if state == "Returning"] == [
        ("node-005", "Returning")
    ]
    fleet.phases[barred] = "Withdrawn"
    live(fleet, 400)
    assert fleet.assignment("node-005") == NEW
    assert [(s, r) for e, s, r in fleet.entries(2) if e.name == "node-005"] == [("Failed", "TooManyRestarts")]
    fleet.phases.clear()
    live(fleet)
    assert fleet.status.run is not None
    assert fleet.status.run.state == "PartiallySucceeded"
    if barred == "1.1.0":
        assert fleet.assignments() == {NEW: 11, OLD: 1}


# --- a person asks to try again


def stopped(fleet: TroubledFleet, moved: int = 9) -> list[str]:
    """Stop a run because all its agents have failed, and ask to try again; return who waits for his turn."""
    fleet.change(version="1.1.0")
    moved_to(fleet, moved)
    fleet.restart_agents()
    fleet.settle(until=lambda f: f.status.run is not None and f.status.run.state == "Paused")
    fleet.ask("retry")
    fleet.execute(fleet.plan())
    fleet.execute(fleet.plan())
    waiting = [e.name for e, state, _ in fleet.entries(2) if state == "Retrying" and fleet.assignment(e.name) == NEW]
    assert waiting
    return waiting


def test_who_is_excluded_while_he_waits_to_be_tried_again_holds_nobody_up() -> None:
    fleet = installed(onFailure="Pause")
    kept = stopped(fleet)[-1]
    fleet.label(kept, {LABEL_EXCLUDE: "true"})
    live(fleet, 300)
    assert fleet.status.phase == "Completed"
    assert [reason for entry, _, reason in fleet.entries(2) if entry.name == kept] == ["LeftTarget"]
    assert fleet.assignments() == {NEW: 12}


def test_a_process_that_ends_when_it_sends_somebody_back_leaves_him_a_deadline() -> None:
    fleet = installed(onFailure="Pause")
    stopped(fleet)
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == OLD else "healthy"
    while OLD not in {fleet.assignment(entry.name) for entry, state, _ in fleet.entries(2) if state == "Retrying"}:
        plan = fleet.plan()
        later = [action for action in plan.actions if isinstance(action, actions.WriteBatch) and not action.urgent]
        fleet.execute(replace(plan, actions=tuple(action for action in plan.actions if action not in later)))
        fleet.tick()
    live(fleet, 900)
    assert not [state for _, state, _ in fleet.entries(2) if state == "Retrying"]
    assert fleet.status.phase == "Completed"


# --- nodes that joined while nobody looked


def joined_unseen(**labels: str) -> TroubledFleet:
    fleet = installed(6)
    fleet.join_unseen("late-0", "late-1", "late-2", **labels)
    return fleet


def test_a_joined_node_that_the_next_version_does_not_fit_keeps_its_agent() -> None:
    fleet = joined_unseen(**{"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"})
    for name in list(fleet.nodes)[:6]:
        fleet.label(name, {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"})
    fleet.rules[NEW] = VersionRules(frozenset({"linux/amd64"}))
    fleet.change(version="1.1.0")
    live(fleet, 300)
    assert fleet.assignments() == {NEW: 6, OLD: 3}
    assert fleet.status.phase == "Completed"


def test_a_joined_node_keeps_its_agent_when_the_next_run_fails_and_later_ones_are_to_wait() -> None:
    fleet = joined_unseen()
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.change(version="1.1.0", joiners="Wait")
    live(fleet, 300)
    assert fleet.status.phase == "RolledBack"
    assert fleet.assignments() == {OLD: 9}


# --- what a person says after the record


def test_a_node_that_was_excluded_for_a_moment_goes_back_after_all() -> None:
    fleet = installed(strategy={"type": "Rolling", "rolling": {"maxUnavailable": 1}})
    fleet.change(version="1.1.0")
    moved_to(fleet, 8)
    fleet.ask("abort")
    fleet.settle(until=lambda f: any(state == "Pending" for _, state, _ in f.entries(3)))
    entries = list(fleet.entries(3))
    kept = [entry.name for entry, state, _ in entries if state == "Pending" and fleet.assignment(entry.name) == NEW][-1]
    fleet.label(kept, {LABEL_EXCLUDE: "true"})
    live(fleet, 3)
    fleet.label(kept, {LABEL_EXCLUDE: "false"})
    fleet.settle()
    assert fleet.assignments() == {OLD: 12}


def test_agents_that_are_to_be_taken_away_hold_up_no_way_back() -> None:
    fleet = installed(target=POOL)
    fleet.change(version="1.1.0")
    moved_to(fleet, 6)
    away = next(name for name in sorted(fleet.nodes)[:6] if fleet.assignment(name) == NEW)
    fleet.set_ready(away, False)
    fleet.change(version="1.0.0")
    fleet.settle()
    fleet.change(target=PART)
    fleet.settle(until=lambda f: any(batch.spec.purpose == "Removal" for batch in f.batches.values()))
    fleet.change(windows=[{"start": "12:00", "end": "13:00"}])
    live(fleet, 60)
    fleet.set_ready(away, True)
    live(fleet, 60)
    assert fleet.assignment(away) == OLD


@pytest.mark.parametrize("strategy", [WINDOW, {"type": "Full", "full": {"maxInFlight": 1}}], ids=["window", "full"])
def test_no_rollback_touches_a_node_that_was_excluded_meanwhile(strategy: Any) -> None:
    fleet = installed(strategy=strategy)
    fleet.change(version="1.1.0")
    moved_to(fleet, 8)
    agents_crash(fleet)

    def waiting(fleet: Fleet) -> list[str]:
        run = fleet.status.run
        if run is None or run.kind != "Rollback":
            return []
        entries = fleet.entries(run.id)
        return [e.name for e, state, _ in entries if state == "Pending" and fleet.assignment(e.name) == NEW]

    fleet.settle(until=lambda f: bool(waiting(f)))
    kept = waiting(fleet)[-1]
    fleet.label(kept, {LABEL_EXCLUDE: "true"})
    fleet.settle()
    assert fleet.assignment(kept) == NEW
    assert fleet.assignments() == {OLD: 11, NEW: 1}
    assert [reason for entry, _, reason in fleet.entries(3) if entry.name == kept] == ["AgentKept"]


def test_agents_are_kept_from_the_moment_that_somebody_says_so() -> None:
    fleet = installed(strategy={"type": "Full", "full": {"maxInFlight": 1}}, target=POOL)
    fleet.change(target=PART)
    fleet.settle(until=lambda f: "none" in f.assignments())
    fleet.change(onLeave="Keep")
    between = sum(is_leaving(fleet.assignment(name)) for name in fleet.nodes)
    gone = fleet.assignments()["none"]
    live(fleet)
    assert fleet.assignments() == {OLD: 12 - gone - between, "none": gone + between}


def test_agents_are_taken_from_nodes_that_left_in_the_windows_only() -> None:
    fleet = installed(strategy={"type": "Full", "full": {"maxInFlight": 1}}, target=POOL)
    fleet.change(version="1.1.0")
    moved_to(fleet, 3)
    fleet.change(version="1.0.0")
    fleet.settle()
    fleet.change(target=PART)
    fleet.settle(until=lambda f: "none" in f.assignments())
    fleet.change(windows=[{"start": "12:00", "end": "13:00"}])
    between = sum(is_leaving(fleet.assignment(name)) for name in fleet.nodes)
    gone = fleet.assignments()["none"]
    live(fleet)
    assert fleet.assignments()[OLD] == 12 - gone - between
    fleet.change(windows=[])
    fleet.settle(until=lambda f: f.assignments() == {OLD: 6, "None": 6})


def test_a_node_that_becomes_an_older_rollouts_in_the_middle_of_its_move_has_not_failed() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(is_leaving(f.assignment(name)) for name in f.nodes))
    taken = next(name for name in fleet.nodes if is_leaving(fleet.assignment(name)))
    look = fleet.snapshot

    def without_what_others_own() -> Any:
        seen = look()  # as the operator sees it: other Rollouts' nodes are none of this one's
        nodes = {name: node for name, node in seen.nodes.items() if name != taken}
        return replace(seen, nodes=nodes, members=seen.members - {taken}, owned_by_others={taken: "older"})

    fleet.snapshot = without_what_others_own  # type: ignore[method-assign]
    live(fleet)
    assert fleet.status.run is not None
    assert fleet.status.run.kind == "Rollout"
    assert [(state, reason) for entry, state, reason in fleet.entries(2) if entry.name == taken] == [
        ("Skipped", "LeftTarget")
    ]
