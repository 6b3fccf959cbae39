"""The order of the policies is the safety argument: each row breaks when its two policies change places."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.api.componentversion import Phase
from outrider.api.rollout import RolloutStatus, RunRecord
from outrider.core import plan as actions
from outrider.core import rollout
from outrider.core.deletion import let_go
from outrider.core.gates import keep_to_windows, wait_for_approval
from outrider.core.judgement import judge_nodes
from outrider.core.leavers import remove_leavers
from outrider.core.moves import is_leaving
from outrider.core.plan import Plan
from outrider.core.prepare import clear_preparations, prepare_nodes
from outrider.core.rollout import POLICIES, Policy
from outrider.core.snapshot import Hindrance
from outrider.core.welcome import welcome_joiners
from simulation.fleet import Fleet, make_spec

OLD, NEW, NEWEST = "r-1.0.0", "r-1.1.0", "r-1.2.0"
ROLLING: dict[str, Any] = {"type": "Rolling", "rolling": {"batchSize": 3}}
TOLERANT: dict[str, Any] = {**ROLLING, "failureTolerance": 1}


def updating(until: Callable[[Fleet, Plan], bool], new: str = "healthy", **changes: Any) -> Fleet:
    """A fleet on its way to 1.1.0, in the moment before the first plan that fits is executed."""
    fleet = Fleet(10, make_spec(**{"strategy": ROLLING, **changes}))
    fleet.settle()
    fleet.behaviour = lambda _node, revision: new if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    for _ in range(500):
        plan = fleet.plan()
        if until(fleet, plan):
            return fleet
        fleet.execute(plan)
        fleet.tick()
    raise AssertionError("this moment never came")


def states(plan: Plan) -> list[str]:
    return [result.state for a in plan.actions if isinstance(a, actions.WriteBatch) for result in a.status.nodes]


def new_batches(plan: Plan) -> list[actions.CreateBatch]:
    return [action for action in plan.actions if isinstance(action, actions.CreateBatch)]


def kind(plan: Plan) -> str:
    assert plan.status.run is not None
    return plan.status.run.kind


def a_verdict_falls(_: Fleet, plan: Plan) -> bool:
    return "Failed" in states(plan) or "Returning" in states(plan)


def the_run_is_about_to_complete(_: Fleet, plan: Plan) -> bool:
    return any(event.reason == "RunCompleted" for event in plan.events)


def a_rollback_starts(_: Fleet, plan: Plan) -> bool:
    return plan.status.run is not None and kind(plan) == "Rollback"


def a_rollback_batch_starts(_: Fleet, plan: Plan) -> bool:
    return bool(new_batches(plan)) and new_batches(plan)[0].spec.kind == "Rollback"


def the_second_batch_starts(_: Fleet, plan: Plan) -> bool:
    return bool(new_batches(plan)) and new_batches(plan)[0].spec.batch == 2


def nodes_are_about_to_leave(fleet: Fleet, plan: Plan) -> bool:
    return any(is_leaving(move.after) for move in plan.moves) and fleet.status.run is not None


def nodes_are_starting(_: Fleet, plan: Plan) -> bool:
    return "Starting" in states(plan)


# -- what each order is for. Every function brings a fleet to its moment, and returns a check of what is planned then.

Check = Callable[[], bool]


def a_pause_at_the_deadline_stops_the_clock() -> Check:
    fleet = updating(nodes_are_starting, "never-ready")
    fleet.execute(fleet.plan())
    fleet.now += timedelta(seconds=300)
    fleet.change(paused=True)
    return lambda: "Failed" not in states(fleet.plan())


def verdicts_go_on_in_a_pause() -> Check:
    fleet = updating(a_verdict_falls, "crash-loop")
    fleet.change(paused=True)
    return lambda: "Failed" in states(fleet.plan())


def verdicts_go_on_while_a_deleted_rollout_finishes() -> Check:
    fleet = updating(a_verdict_falls, "crash-loop")
    fleet.deleting = True
    return lambda: "Failed" in states(fleet.plan())


def nobody_is_recorded_while_it_is_open_where_a_change_leads() -> Check:
    fleet = updating(the_second_batch_starts)
    fleet.under_way = frozenset({new_batches(fleet.plan())[0].spec.nodes[0].name})
    return lambda: new_batches(fleet.plan()) == []


def a_run_does_not_end_while_it_is_open_where_a_change_leads() -> Check:
    fleet = updating(the_run_is_about_to_complete)
    fleet.under_way = frozenset({next(iter(fleet.nodes))})
    return lambda: not the_run_is_about_to_complete(fleet, fleet.plan())


def a_deleted_rollout_starts_no_rollback() -> Check:
    fleet = updating(a_rollback_starts, "crash-loop")
    fleet.deleting = True
    return lambda: kind(fleet.plan()) == "Rollout"


def a_deleted_rollout_starts_no_other_run() -> Check:
    fleet = updating(the_second_batch_starts)
    fleet.revisions[NEWEST] = "1.2.0"
    fleet.change(version="1.2.0")
    fleet.deleting = True
    return lambda: fleet.plan().status.history == fleet.status.history


def a_deleted_rollout_moves_no_other_node() -> Check:
    fleet = updating(nodes_are_about_to_leave)
    fleet.deleting = True
    return lambda: fleet.plan().moves == ()


def a_failed_run_is_taken_back_whatever_the_spec_now_says() -> Check:
    fleet = updating(a_rollback_starts, "crash-loop")
    fleet.revisions[NEWEST] = "1.2.0"
    fleet.change(version="1.2.0")
    return lambda: kind(fleet.plan()) == "Rollback"


def another_wish_starts_no_more_batches_of_the_old_one() -> Check:
    fleet = updating(the_second_batch_starts)
    fleet.revisions[NEWEST] = "1.2.0"
    fleet.change(version="1.2.0")
    return lambda: new_batches(fleet.plan()) == []


def a_failed_run_starts_no_more_batches() -> Check:
    # All of the second batch fail, and one of the first has failed within its tolerance.
    fleet = updating(a_rollback_starts, "crash-loop")
    for name, batch in fleet.batches.items():
        finished = batch.status.model_copy(update={"finished_at": fleet.now})
        fleet.batches[name] = type(batch)(name, batch.spec, finished)
    return lambda: new_batches(fleet.plan()) == []


def a_node_that_joins_in_a_pause_gets_its_agent() -> Check:
    fleet = updating(the_second_batch_starts)
    fleet.change(paused=True)
    fleet.join("late")
    return lambda: [move.node for move in fleet.plan().moves] == ["late"]


def failing_one(until: Callable[[Fleet, Plan], bool], behaviour: str) -> Fleet:
    """A fleet in which one node of the first batch fails within the tolerance."""
    fleet = Fleet(10, make_spec(strategy=TOLERANT))
    fleet.settle()
    chosen: list[str] = []

    def behave(node: str, revision: str) -> str:
        if revision == NEW and not chosen:
            chosen.append(node)
        return behaviour if revision == NEW and node in chosen else "healthy"

    fleet.behaviour = behave
    fleet.change(version="1.1.0")
    for _ in range(500):
        plan = fleet.plan()
        if until(fleet, plan):
            return fleet
        fleet.execute(plan)
        fleet.tick()
    raise AssertionError("this moment never came")


def a_pause_sends_no_failed_node_back() -> Check:
    fleet = failing_one(a_verdict_falls, "crash-loop")
    fleet.change(paused=True)
    return lambda: fleet.plan().moves == ()


def a_pause_keeps_nodes_from_leaving() -> Check:
    fleet = updating(nodes_are_about_to_leave)
    fleet.change(paused=True)
    return lambda: fleet.plan().moves == ()


def a_pause_starts_no_batch() -> Check:
    fleet = updating(the_second_batch_starts)
    fleet.change(paused=True)
    return lambda: new_batches(fleet.plan()) == []


def a_pause_starts_no_batch_of_a_rollback() -> Check:
    fleet = updating(a_rollback_batch_starts, "crash-loop")
    fleet.change(paused=True)
    return lambda: new_batches(fleet.plan()) == []


def a_pause_starts_no_rollback() -> Check:
    fleet = updating(a_rollback_starts, "crash-loop")
    fleet.change(paused=True)
    return lambda: kind(fleet.plan()) == "Rollout"


def a_version_that_is_withdrawn_starts_no_batch() -> Check:
    fleet = updating(the_second_batch_starts)
    fleet.phases["1.1.0"] = "Withdrawn"
    return lambda: new_batches(fleet.plan()) == []


def a_missing_version_starts_no_batch() -> Check:
    fleet = updating(the_second_batch_starts)
    fleet.hindrance = Hindrance("VersionNotFound", "it is gone", stalled=True)
    return lambda: new_batches(fleet.plan()) == []


def a_deleted_rollout_is_not_taken_back_from_what_is_revoked() -> Check:
    fleet = updating(the_second_batch_starts)
    fleet.phases["1.1.0"] = "Revoked"
    fleet.deleting = True
    return lambda: kind(fleet.plan()) == "Rollout"


def what_is_revoked_is_taken_back_whatever_the_spec_now_says() -> Check:
    fleet = updating(the_second_batch_starts)
    fleet.revisions[NEWEST] = "1.2.0"
    fleet.change(version="1.2.0")
    fleet.phases["1.1.0"] = "Revoked"
    return lambda: kind(fleet.plan()) == "Rollback"


def what_is_revoked_is_taken_back_though_nothing_new_may_start() -> Check:
    # `hold` knows the version only as a hindrance; it must not keep the way back from being decided.
    fleet = updating(the_second_batch_starts)
    fleet.phases["1.1.0"] = "Revoked"
    return lambda: kind(fleet.plan()) == "Rollback"


def a_failed_node_that_goes_back_keeps_its_batch_open() -> Check:
    fleet = failing_one(a_verdict_falls, "never-ready")

    def open_batches() -> bool:
        plan = fleet.plan()
        written = [action for action in plan.actions if isinstance(action, actions.WriteBatch)]
        return written != [] and all(action.status.finished_at is None for action in written)

    return open_batches


def a_batch_ends_when_all_its_nodes_have_results() -> Check:
    fleet = updating(lambda _, plan: states(plan).count("Succeeded") == 3)

    def ends() -> bool:
        for _ in range(10):
            plan = fleet.plan()
            if any(isinstance(a, actions.WriteBatch) and a.status.state == "Finished" for a in plan.actions):
                return True
            fleet.execute(plan)
            fleet.tick()
        return False

    return ends


def a_batch_that_was_stored_is_moved() -> Check:
    fleet = updating(nodes_are_about_to_leave)
    return lambda: len(fleet.plan().moves) == 3


def a_batch_under_way_is_the_only_one() -> Check:
    fleet = updating(nodes_are_starting)
    return lambda: new_batches(fleet.plan()) == []


def a_batch_of_a_rollback_under_way_is_the_only_one() -> Check:
    fleet = updating(a_rollback_batch_starts, "crash-loop", strategy={**ROLLING, "rolling": {"batchSize": 4}})
    fleet.change(strategy={"type": "Rolling", "rolling": {"batchSize": 1}})
    fleet.execute(fleet.plan())
    return lambda: new_batches(fleet.plan()) == []


def a_run_completes_only_when_nobody_is_left() -> Check:
    fleet = updating(the_second_batch_starts)

    def goes_on() -> bool:
        revisions = fleet.plan().status.revisions
        return revisions is not None and revisions.stable == OLD

    return goes_on


def a_rollback_completes_only_when_nobody_is_left() -> Check:
    fleet = updating(a_rollback_batch_starts, "crash-loop")

    def goes_on() -> bool:
        run = fleet.plan().status.run
        return run is not None and run.state == "Running"

    return goes_on


def half_of_the_fleet_leaves(until: Callable[[Fleet, Plan], bool]) -> Fleet:
    """A fleet on its way to 1.1.0 whose target has lost every other node, in the moment before that plan."""
    fleet = updating(until)
    for index, name in enumerate(sorted(fleet.nodes)):
        fleet.label(name, {"pool": "core" if index % 2 else "edge"})
    fleet.change(target={"nodeSelector": {"matchLabels": {"pool": "edge"}}})
    return fleet


def a_pause_takes_no_agent_away() -> Check:
    fleet = half_of_the_fleet_leaves(the_second_batch_starts)
    fleet.change(paused=True)
    fleet.batches.clear()
    return lambda: not new_batches(fleet.plan())


def nodes_that_left_lose_their_agents_after_the_others_were_moved() -> Check:
    fleet = half_of_the_fleet_leaves(the_second_batch_starts)
    return lambda: [batch.spec.purpose for batch in new_batches(fleet.plan())] == ["Update"]


def a_run_completes_only_when_those_who_left_have_lost_their_agents() -> Check:
    fleet = half_of_the_fleet_leaves(the_run_is_about_to_complete)
    return lambda: not the_run_is_about_to_complete(fleet, fleet.plan())


CLOSED = [{"start": "12:00", "end": "13:00"}]
"""The world begins at midnight."""


def outside_the_windows_nobody_sets_out() -> Check:
    fleet = updating(nodes_are_about_to_leave)
    fleet.change(windows=CLOSED)
    return lambda: fleet.plan().moves == ()


def outside_the_windows_no_batch_starts() -> Check:
    fleet = updating(the_second_batch_starts)
    fleet.change(windows=CLOSED)
    return lambda: new_batches(fleet.plan()) == []


def a_node_that_failed_goes_back_outside_the_windows() -> Check:
    fleet = failing_one(lambda _, plan: "Returning" in states(plan), "crash-loop")
    fleet.change(windows=CLOSED)
    return lambda: fleet.plan().moves != ()


def asking(until: Callable[[Fleet, Plan], bool], nodes: int | str) -> Fleet:
    """A fleet whose canary step has to be approved, in the moment before the first plan that fits is executed."""
    fleet = Fleet(10, make_spec(strategy=ROLLING))
    fleet.settle()
    steps = [{"nodes": nodes, "requireApproval": True}]
    fleet.change(version="1.1.0", strategy={"type": "Canary", "canary": {"steps": steps}})
    for _ in range(500):
        plan = fleet.plan()
        if until(fleet, plan):
            return fleet
        fleet.execute(plan)
        fleet.tick()
    raise AssertionError("this moment never came")


def is_asked(_: Fleet, plan: Plan) -> bool:
    return plan.status.run is not None and plan.status.run.awaits_approval == 1


def nothing_follows_a_step_that_nobody_approved() -> Check:
    fleet = asking(is_asked, 1)
    return lambda: new_batches(fleet.plan()) == []


def a_run_does_not_end_with_a_step_that_nobody_approved() -> Check:
    fleet = asking(is_asked, "100%")

    def goes_on() -> bool:
        run = fleet.plan().status.run
        return run is not None and run.state == "Running"

    return goes_on


def an_approval_is_asked_for_only_when_the_step_is_healthy() -> Check:
    fleet = asking(nodes_are_starting, 1)
    return lambda: not is_asked(fleet, fleet.plan())


def prepares(_: Fleet, plan: Plan) -> bool:
    return any(isinstance(action, actions.PrepareNodes) for action in plan.actions)


def what_no_run_needs_to_be_prepared_goes_in_a_pause_too() -> Check:
    fleet = updating(prepares, prePull=True)
    fleet.execute(fleet.plan())
    fleet.change(prePull=False, paused=True)
    return lambda: any(isinstance(action, actions.DeletePrepare) for action in fleet.plan().actions)


def nodes_are_prepared_while_a_batch_is_under_way() -> Check:
    fleet = updating(prepares, prePull=True)
    return lambda: prepares(fleet, fleet.plan())


def a_pause_prepares_nobody() -> Check:
    fleet = updating(prepares, prePull=True)
    fleet.change(paused=True)
    return lambda: not prepares(fleet, fleet.plan())


ORDER: list[tuple[Policy, Policy, Callable[[], Check]]] = [
    (rollout.keep_time, judge_nodes, a_pause_at_the_deadline_stops_the_clock),
    (judge_nodes, let_go, verdicts_go_on_while_a_deleted_rollout_finishes),
    (judge_nodes, rollout.hold, verdicts_go_on_in_a_pause),
    (let_go, rollout.decide_failure, a_deleted_rollout_starts_no_rollback),
    (let_go, rollout.supersede, a_deleted_rollout_starts_no_other_run),
    (let_go, rollout.move_open_batches, a_deleted_rollout_moves_no_other_node),
    (rollout.decide_failure, rollout.supersede, a_failed_run_is_taken_back_whatever_the_spec_now_says),
    (let_go, rollout.decide_failure, a_deleted_rollout_is_not_taken_back_from_what_is_revoked),
    (rollout.decide_failure, rollout.supersede, what_is_revoked_is_taken_back_whatever_the_spec_now_says),
    (rollout.decide_failure, rollout.hold, what_is_revoked_is_taken_back_though_nothing_new_may_start),
    (rollout.decide_failure, rollout.start_next_batch, a_failed_run_starts_no_more_batches),
    (rollout.supersede, rollout.start_next_batch, another_wish_starts_no_more_batches_of_the_old_one),
    (welcome_joiners, rollout.hold, a_node_that_joins_in_a_pause_gets_its_agent),
    (clear_preparations, rollout.hold, what_no_run_needs_to_be_prepared_goes_in_a_pause_too),
    (rollout.hold, prepare_nodes, a_pause_prepares_nobody),
    (prepare_nodes, rollout.wait_for_the_batch, nodes_are_prepared_while_a_batch_is_under_way),
    (rollout.hold, rollout.send_failed_nodes_back, a_pause_sends_no_failed_node_back),
    (rollout.hold, rollout.move_open_batches, a_pause_keeps_nodes_from_leaving),
    (rollout.hold, rollout.start_next_batch, a_pause_starts_no_batch),
    (rollout.hold, rollout.start_next_batch, a_version_that_is_withdrawn_starts_no_batch),
    (rollout.hold, rollout.start_next_batch, a_missing_version_starts_no_batch),
    (rollout.hold, rollout.start_next_rollback_batch, a_pause_starts_no_batch_of_a_rollback),
    (keep_to_windows, rollout.move_open_batches, outside_the_windows_nobody_sets_out),
    (keep_to_windows, rollout.start_next_batch, outside_the_windows_no_batch_starts),
    (rollout.wait_for_the_batch, wait_for_approval, an_approval_is_asked_for_only_when_the_step_is_healthy),
    (wait_for_approval, rollout.start_next_batch, nothing_follows_a_step_that_nobody_approved),
    (wait_for_approval, rollout.complete, a_run_does_not_end_with_a_step_that_nobody_approved),
    (rollout.send_failed_nodes_back, rollout.close_batches, a_failed_node_that_goes_back_keeps_its_batch_open),
    (rollout.close_batches, rollout.wait_for_the_batch, a_batch_ends_when_all_its_nodes_have_results),
    (rollout.move_open_batches, rollout.wait_for_the_batch, a_batch_that_was_stored_is_moved),
    (rollout.wait_for_the_batch, rollout.start_next_batch, a_batch_under_way_is_the_only_one),
    (rollout.wait_for_the_batch, rollout.start_next_rollback_batch, a_batch_of_a_rollback_under_way_is_the_only_one),
    (rollout.wait_for_answers, rollout.start_next_batch, nobody_is_recorded_while_it_is_open_where_a_change_leads),
    (rollout.wait_for_answers, rollout.complete, a_run_does_not_end_while_it_is_open_where_a_change_leads),
    (rollout.start_next_batch, rollout.complete, a_run_completes_only_when_nobody_is_left),
    (rollout.start_next_rollback_batch, rollout.complete, a_rollback_completes_only_when_nobody_is_left),
    (rollout.hold, remove_leavers, a_pause_takes_no_agent_away),
    (rollout.start_next_batch, remove_leavers, nodes_that_left_lose_their_agents_after_the_others_were_moved),
    (remove_leavers, rollout.complete, a_run_completes_only_when_those_who_left_have_lost_their_agents),
]
SENTENCES = [story.__name__.replace("_", " ") for _, _, story in ORDER]


@pytest.mark.parametrize(("earlier", "later", "story"), ORDER, ids=SENTENCES)
def test_the_order_of_two_policies(
    earlier: Policy, later: Policy, story: Callable[[], Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    holds = story()
    assert holds()
    others = [policy for policy in POLICIES if policy is not later]
    place = others.index(earlier)
    monkeypatch.setattr(rollout, "POLICIES", (*others[:place], later, *others[place:]))
    assert not holds(), f"{later.__name__} before {earlier.__name__} would do no harm: this story proves nothing"


def test_a_node_that_failed_waits_for_no_window() -> None:
    assert a_node_that_failed_goes_back_outside_the_windows()()


def test_a_pause_beats_a_rollback() -> None:
    assert a_pause_starts_no_rollback()()


@pytest.mark.parametrize(
    "hold",
    [
        pytest.param(lambda fleet: fleet.change(paused=True), id="in a pause"),
        pytest.param(lambda fleet: setattr(fleet, "deleting", True), id="when the Rollout is deleted"),
        pytest.param(
            lambda fleet: setattr(fleet, "hindrance", Hindrance("VersionDeleted", "it is gone", stalled=True)),
            id="when the version is gone",
        ),
        pytest.param(lambda fleet: fleet.change(version="1.2.0"), id="when another version is wanted"),
        pytest.param(lambda fleet: fleet.phases.update({"1.1.0": "Withdrawn"}), id="when the version is withdrawn"),
    ],
)
def test_half_made_moves_are_finished(hold: Callable[[Fleet], None]) -> None:
    fleet = updating(lambda fleet, _: any(is_leaving(fleet.assignment(name)) for name in fleet.nodes))
    half_made = {name for name in fleet.nodes if is_leaving(fleet.assignment(name))}
    assert len(half_made) == 3
    hold(fleet)
    arrived: set[str] = set()
    for _ in range(10):
        fleet.execute(fleet.plan())
        fleet.tick()
        # To where its record says. From there it may leave again in time, where another version is wanted.
        arrived |= {name for name in half_made if fleet.assignment(name) == NEW}
    assert arrived == half_made


@pytest.mark.parametrize("reason", ["spec.version", "failures"])
def test_the_history_never_grows_beyond_what_the_api_server_takes(reason: str) -> None:
    fleet = updating(
        a_rollback_starts if reason == "failures" else the_second_batch_starts,
        "crash-loop" if reason == "failures" else "healthy",
        runHistoryLimit=50,
    )
    record = RunRecord(
        id=0,
        kind="Rollout",
        version="0.9.0",
        revision="r-0.9.0",
        result="Succeeded",
        started_at=fleet.now,
        finished_at=fleet.now,
    )
    fleet.status = fleet.status.model_copy(
        update={"history": [record.model_copy(update={"id": -n}) for n in range(50)]}
    )
    if reason == "spec.version":
        fleet.revisions[NEWEST] = "1.2.0"
        fleet.change(version="1.2.0")
    status = fleet.plan().status
    assert status.history[0].id == 2
    assert len(status.history) == 50
    RolloutStatus.model_validate(status.to_api())


PHASES: list[Phase] = ["Published", "Published", "Deprecated", "Withdrawn", "Revoked"]

RANK = {
    actions.KeepFinalizer: 0,
    actions.RequestVerification: 0,
    actions.CreateRevision: 0,
    actions.CreateJoiners: 0,
    actions.WriteBatch: 1,
    actions.CreateBatch: 2,
    actions.Assign: 3,
    actions.PrepareNodes: 4,
    actions.DeletePrepare: 5,
    actions.DropFinalizer: 5,
    actions.DeleteRevision: 5,
    actions.DeleteJoiners: 5,
    actions.DeleteBatch: 5,
}


def assert_safe(fleet: Fleet, plan: Plan) -> None:
    """What every plan promises to whoever executes it."""
    ranks = [RANK[type(action)] for action in plan.actions]
    assert ranks == sorted(ranks), "prerequisites, records, new batches, moves, preparations, clean-up"
    moved = [move.node for move in plan.moves]
    assert len(moved) == len(set(moved)), "a node is moved at most once"
    created = {entry.name for action in new_batches(plan) for entry in action.spec.nodes}
    assert created.isdisjoint(moved), "no node is touched before its record is stored"
    assert not new_batches(plan) or plan.urgent_status
    for move in plan.moves:
        sim = fleet.nodes[move.node]
        assert (move.uid, move.before) == (sim.node.uid, fleet.assignment(move.node)), "decided on what was seen"
        assert move.before != move.after
        assert is_leaving(move.before) or is_leaving(move.after) or move.before in {None, "none"}
        if move.after in fleet.revisions:
            assert {pod.revision for pod in sim.pods} <= {move.after}, "no revision while another lives"
    for action in plan.actions:
        if isinstance(action, actions.DeleteRevision):
            named = {value.removeprefix("to-") for name in fleet.nodes if (value := fleet.assignment(name))}
            going = {str(move.after).removeprefix("to-") for move in plan.moves}
            assert action.revision not in named | going | {f"r-{fleet.spec.version}"}, "a revision in use is kept"


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    count=st.integers(1, 9),
    tolerance=st.sampled_from([0, 1, "50%"]),
    on_failure=st.sampled_from(["Rollback", "Pause"]),
    behaviours=st.dictionaries(st.sampled_from([NEW, NEWEST]), st.sampled_from(["never-ready", "crash-loop"])),
    dice=st.randoms(use_true_random=False),
)
def test_every_plan_of_every_story_is_safe_to_execute(
    count: int, tolerance: int | str, on_failure: str, behaviours: dict[str, str], dice: Any
) -> None:
    strategy = {"type": "Rolling", "rolling": {"batchSize": "34%"}, "failureTolerance": tolerance}
    fleet = Fleet(count, make_spec(strategy=strategy, onFailure=on_failure, runHistoryLimit=2))
    sick = {f"node-{dice.randrange(count):03}" for _ in range(3)}
    fleet.behaviour = lambda node, revision: behaviours.get(revision, "healthy") if node in sick else "healthy"
    for _ in range(150):
        plan = fleet.plan()
        assert_safe(fleet, plan)
        fleet.execute(plan)
        fleet.tick()
        match dice.randrange(40):
            case 0 | 1 | 2:
                fleet.change(version=dice.choice(["1.0.0", "1.1.0", "1.2.0"]))
            case 3:
                fleet.change(paused=not fleet.spec.paused)
            case 4:
                fleet.join(f"joined-{fleet.serial}")
            case 5:
                fleet.set_ready(dice.choice(sorted(fleet.nodes)), dice.random() < 0.5)
            case 6 | 7:
                fleet.phases[dice.choice(["1.0.0", "1.1.0", "1.2.0"])] = dice.choice(PHASES)
            case _:
                pass
