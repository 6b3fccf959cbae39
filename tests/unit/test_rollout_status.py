"""What a Rollout's status says in every situation: clean to kstatus, within its limits, and telling what to do."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.api.base import Condition
from outrider.api.componentversion import Phase
from outrider.api.rollout import RolloutBatchStatus, RolloutStatus
from outrider.core.plan import CreateBatch, Plan, WriteBatch
from outrider.core.rollout_status import CONDITION_TYPES
from outrider.core.snapshot import Hindrance, Taint
from outrider.core.states import FAILED
from simulation.fleet import Fleet, make_spec

OLD, NEW = "r-1.0.0", "r-1.1.0"


def bad_when_new(_node: str, revision: str) -> str:
    return "crash-loop" if revision == NEW else "healthy"


def installed(count: int = 10, **changes: Any) -> Fleet:
    fleet = Fleet(count, make_spec(**changes))
    fleet.settle()
    return fleet


def updating(count: int = 10, **changes: Any) -> Fleet:
    """A fleet in the middle of its move to 1.1.0."""
    fleet = installed(count, **changes)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 1)
    return fleet


def ready(fleet: Fleet) -> Condition:
    return next(c for c in fleet.plan().status.conditions if c.type == "Ready")


def fresh() -> Fleet:
    return Fleet(10, make_spec())


def completed() -> Fleet:
    return installed()


def with_failures() -> Fleet:
    fleet = installed(10, strategy={"type": "Rolling", "rolling": {"batchSize": 3}, "failureTolerance": 1})
    fleet.behaviour = lambda node, revision: "crash-loop" if (node, revision) == ("node-004", NEW) else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    return fleet


def with_a_node_away() -> Fleet:
    fleet = installed()
    fleet.set_ready("node-004", False)
    fleet.change(version="1.1.0")
    fleet.settle()
    return fleet


def paused() -> Fleet:
    fleet = updating()
    fleet.change(paused=True)
    return fleet


def rolling_back() -> Fleet:
    fleet = installed()
    fleet.behaviour = bad_when_new
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.status.run is not None and f.status.run.kind == "Rollback")
    return fleet


def rolled_back() -> Fleet:
    fleet = rolling_back()
    fleet.settle()
    return fleet


def stopped() -> Fleet:
    fleet = installed(onFailure="Pause")
    fleet.behaviour = bad_when_new
    fleet.change(version="1.1.0")
    fleet.settle()
    for _ in range(10):  # the rest of the batch fails as well, each node in its time
        fleet.execute(fleet.plan())
        fleet.tick()
    return fleet


def hindered(*, stalled: bool) -> Fleet:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.hindrance = Hindrance("VersionNotPublished", "agent-1.1.0 is Draft, not Published", stalled=stalled)
    return fleet


def hindered_before_the_first_run() -> Fleet:
    fleet = fresh()
    fleet.hindrance = Hindrance("EmptyTarget", "no node matches spec.target; label nodes or change it", stalled=True)
    return fleet


def deleted() -> Fleet:
    fleet = updating()
    fleet.deleting = True
    return fleet


def deleted_before_the_first_run() -> Fleet:
    fleet = fresh()
    fleet.deleting = True
    return fleet


def nowhere_to_move() -> Fleet:
    fleet = Fleet(3, make_spec(strategy={"type": "Full", "failureTolerance": "100%"}))
    fleet.behaviour = lambda _node, _revision: "crash-loop"
    fleet.settle()
    return fleet


def stuck() -> Fleet:
    fleet = installed(health={"timeoutSeconds": 600, "minReadySeconds": 1})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any((f.assignment(name) or "").startswith("to-") for name in f.nodes))
    for sim in fleet.nodes.values():
        sim.node = replace(sim.node)
        for pod in sim.pods:
            if (fleet.assignment(sim.node.name) or "").startswith("to-"):
                pod.gone_at = 1e9
    for _ in range(70):
        fleet.execute(fleet.plan())
        fleet.tick()
    return fleet


def with_phase(phase: Phase, make: Callable[[], Fleet], version: str = "1.1.0") -> Fleet:
    """A fleet whose version comes to another phase."""
    fleet = make()
    fleet.phases[version] = phase
    for _ in range(60):
        fleet.execute(fleet.plan())
        fleet.tick()
    return fleet


def blocked() -> Fleet:
    fleet = updating()
    fleet.phases |= {"1.0.0": "Withdrawn", "1.1.0": "Revoked"}
    for _ in range(60):
        fleet.execute(fleet.plan())
        fleet.tick()
    return fleet


def unverified() -> Fleet:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.fresh_seconds, fleet.registry_is_down = 1.0, True
    return fleet


# name → (fleet, phase, other conditions that are True, words of the message of Ready)
SITUATIONS: dict[str, tuple[Callable[[], Fleet], str, set[str], list[str]]] = {
    "a first look": (fresh, "Progressing", {"Reconciling"}, ["0 of 10 nodes run 1.0.0"]),
    "under way": (updating, "Progressing", {"Reconciling", "Progressing"}, ["of 10 nodes run 1.1.0", "batch 1"]),
    "completed": (completed, "Completed", set(), ["10 of 10 nodes run 1.0.0"]),
    "completed with failures within the tolerance": (
        with_failures,
        "Completed",
        {"Degraded"},
        ["9 of 10", "1 failed within the tolerance"],
    ),
    "completed without a node that is away": (with_a_node_away, "Completed", set(), ["9 of 10", "left out: 1"]),
    "paused": (paused, "Paused", {"Paused"}, ["of 10 nodes run 1.1.0; paused"]),
    "rolling back": (rolling_back, "RollingBack", {"Reconciling", "Progressing"}, ["run 2 to 1.1.0 failed"]),
    "rolled back": (
        rolled_back,
        "RolledBack",
        {"Stalled", "RolledBack"},
        [
            "tolerated are 0",
            "TooManyRestarts",
            "Run 3 took it back: 3 nodes back",
            "Change spec.version or spec.template",
        ],
    ),
    "stopped by failures": (
        stopped,
        "Stalled",
        {"Stalled", "Paused", "Degraded"},
        ["run 2 to 1.1.0 stopped:", "of 10 nodes failed, tolerated are 0", "Change spec.version"],
    ),
    "held until somebody acts": (lambda: hindered(stalled=True), "Stalled", {"Stalled"}, ["agent-1.1.0 is Draft"]),
    "held by what passes": (lambda: hindered(stalled=False), "Waiting", {"Reconciling"}, ["agent-1.1.0 is Draft"]),
    "held before the first run": (hindered_before_the_first_run, "Stalled", {"Stalled"}, ["label nodes or change it"]),
    "completed on what is now deprecated": (
        lambda: with_phase("Deprecated", completed, "1.0.0"),
        "Completed",
        set(),
        ["10 of 10 nodes run 1.0.0; 1.0.0 is Deprecated: no new run may go to it"],
    ),
    "completed on what is now withdrawn": (
        lambda: with_phase("Withdrawn", completed, "1.0.0"),
        "Stalled",
        {"Stalled"},
        ["agent-1.0.0 is Withdrawn", "10 nodes run it", "It says: it says so"],
    ),
    "completed on what is now revoked": (
        lambda: with_phase("Revoked", completed, "1.0.0"),
        "Stalled",
        {"Stalled", "Degraded"},
        ["agent-1.0.0 is Revoked", "10 nodes run it", "Set spec.version to another"],
    ),
    "under way to what is withdrawn": (
        lambda: with_phase("Withdrawn", updating),
        "Stalled",
        {"Stalled"},
        ["agent-1.1.0 is Withdrawn", "goes on by itself"],
    ),
    "taken back from what is revoked": (
        lambda: with_phase("Revoked", updating),
        "RolledBack",
        {"Stalled", "RolledBack"},
        ["run 2 to 1.1.0 failed: agent-1.1.0 is Revoked", "Run 3 took it back: 1 node back"],
    ),
    "stopped on the way to what is revoked": (
        lambda: with_phase("Revoked", lambda: updating(onFailure="Pause")),
        "Stalled",
        {"Stalled", "Paused", "Degraded"},
        ["run 2 to 1.1.0 stopped: agent-1.1.0 is Revoked"],
    ),
    "unable to return": (
        blocked,
        "Stalled",
        {"Stalled", "Degraded"},
        ["run 2 to 1.1.0 failed and is taken back: 3 nodes stay", "agent-1.0.0 is Withdrawn", "Set spec.version to"],
    ),
    "waiting for a verification": (
        unverified,
        "Waiting",
        {"Reconciling"},
        ["1.1.0 is verified anew before the run starts", "cannot be done now: the registry is down"],
    ),
    "being deleted": (deleted, "Deleting", {"Reconciling"}, ["half-made moves are being finished"]),
    "deleted before the first run": (deleted_before_the_first_run, "Deleting", {"Reconciling"}, ["half-made moves"]),
    "stuck between two revisions": (
        stuck,
        "Progressing",
        {"Reconciling", "Progressing", "Degraded"},
        ["of 10 nodes run 1.1.0"],
    ),
}


@pytest.mark.parametrize(("make", "phase", "others", "words"), SITUATIONS.values(), ids=SITUATIONS)
def test_situation(make: Callable[[], Fleet], phase: str, others: set[str], words: list[str]) -> None:
    fleet = make()
    plan = fleet.plan()
    assert_clean(fleet, plan)
    assert plan.status.phase == phase
    found = {condition.type: condition for condition in plan.status.conditions}
    true = {kind for kind, condition in found.items() if condition.status == "True"}
    assert true - {"Ready"} == others
    assert ("Ready" in true) == (phase == "Completed")
    assert all(word in found["Ready"].message for word in words), found["Ready"].message


def test_what_is_told_while_a_run_is_taken_back_names_cause_node_and_batch() -> None:
    fleet = rolling_back()
    fleet.execute(fleet.plan())
    message = ready(fleet).message
    assert "run 2 to 1.1.0 failed: " in message
    assert "of 10 nodes failed, tolerated are 0 (node-" in message
    assert ": TooManyRestarts in batch 1" in message
    assert "Run 3 takes it back: " in message


def test_a_rollback_clears_nothing_of_what_failed() -> None:
    fleet = rolled_back()
    failed = [entry.name for entry, state, _ in fleet.entries(2) if state in FAILED]
    for _ in range(2):
        status = fleet.plan().status
        assert status.run is not None
        assert (status.run.kind, status.run.failed) == ("Rollback", 0)
        assert status.failed == len(failed) > 0
        assert {failure.node for failure in status.failures} == set(failed)
        assert status.last_failure is not None
        assert (status.last_failure.run, status.last_failure.version, status.last_failure.failed) == (
            2,
            "1.1.0",
            len(failed),
        )
        assert "tolerated are 0" in status.last_failure.message
        fleet.execute(fleet.plan())
        fleet.tick(3600)
    before = fleet.status.last_failure
    fleet.change(version="1.2.0")
    fleet.settle()
    assert (fleet.status.phase, fleet.status.failed, fleet.status.failures) == ("Completed", 0, [])
    assert fleet.status.last_failure == before


def test_what_runs_is_told_when_it_is_not_what_is_wanted() -> None:
    fleet = rolled_back()
    assert [v.to_api() for v in fleet.status.versions] == [{"version": "1.0.0", "nodes": 10, "ready": 10}]
    assert fleet.status.running == "1.0.0: 10"
    assert "What runs: 1.0.0 on 10 nodes" in ready(fleet).message
    assert "outrider retry agent --namespace fleet" in ready(fleet).message
    fleet = stopped()
    versions = {v.version: (v.nodes, v.ready) for v in fleet.plan().status.versions}
    assert versions == {"1.0.0": (7, 7), "1.1.0": (3, 0)}
    assert "1.0.0 on 7 nodes, 1.1.0 on 3 nodes (3 of them not Ready)" in ready(fleet).message


def test_a_node_without_an_agent_does_not_count_as_running_one_whatever_its_label_says() -> None:
    fleet = Fleet(4, make_spec())
    outsider = fleet.nodes["node-002"]
    outsider.node = replace(outsider.node, taints=(Taint("reserved", "", "NoExecute"),))
    fleet.settle()
    for _ in range(20):
        outsider.pods.clear()  # what the taint does
        fleet.execute(fleet.plan())
        fleet.tick()
    outsider.pods.clear()
    status = fleet.plan().status
    assert status.run is not None
    assert (status.run.updated, status.run.outdated, status.run.skipped) == (3, 1, 1)
    assert ready(fleet).message.startswith("3 of 4 nodes run 1.0.0; left out: 1")
    assert status.running == "1.0.0: 3"
    told = [event.message for event in fleet.events if event.reason == "RunCompleted"]
    assert told == ["Run 1: 3 of 4 nodes run 1.0.0, 1 left out"]


def test_a_node_that_was_left_out_first_and_moved_later_counts_once() -> None:
    fleet = with_a_node_away()
    assert fleet.status.run is not None
    assert (fleet.status.run.healthy, fleet.status.run.skipped) == (9, 1)
    fleet.set_ready("node-004", True)
    fleet.settle()
    assert (fleet.status.run.healthy, fleet.status.run.skipped) == (10, 0)
    assert ready(fleet).message == "10 of 10 nodes run 1.1.0"


def test_a_single_node_is_told_of_in_the_singular() -> None:
    fleet = installed(1)
    assert ready(fleet).message == "1 of 1 node runs 1.0.0"


def told(fleet: Fleet, *reasons: str) -> list[str]:
    return [event.reason for event in fleet.events if event.reason in reasons]


def test_a_pause_and_its_end_are_told_once() -> None:
    fleet = updating()
    for paused in (True, False):
        fleet.change(paused=paused)
        for _ in range(3):
            fleet.execute(fleet.plan())
            fleet.tick()
    assert told(fleet, "PausedBySpec", "Resumed") == ["PausedBySpec", "Resumed"]


def test_what_stalls_a_rollout_is_told_once_for_each_reason() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    for reason in ("VersionNotFound", "TemplateInvalid", "VersionNotFound"):
        for number in range(3):
            fleet.hindrance = Hindrance(reason, f"look {number}", stalled=True)
            fleet.execute(fleet.plan())
            fleet.tick()
    assert told(fleet, "VersionNotFound", "TemplateInvalid") == [
        "VersionNotFound",
        "TemplateInvalid",
        "VersionNotFound",
    ]
    assert [event.type for event in fleet.events if event.reason == "TemplateInvalid"] == ["Warning"]


def test_a_failure_that_has_an_event_of_its_own_is_told_by_that_alone() -> None:
    assert told(stopped(), "RunPaused", "FailureToleranceExceeded") == ["RunPaused"]
    assert told(rolled_back(), "RolledBack", "FailureToleranceExceeded") == ["RolledBack"]


def test_a_completed_rollout_stays_ready_while_its_version_is_looked_at_again() -> None:
    fleet = completed()
    fleet.hindrance = Hindrance("VersionNotPublished", "agent-1.0.0 was changed, and is looked at again", stalled=False)
    assert_clean(fleet, fleet.plan())
    assert ready(fleet).status == "True"
    assert ready(fleet).message == "10 of 10 nodes run 1.0.0; agent-1.0.0 was changed, and is looked at again"
    assert fleet.plan().status.phase == "Completed"


def test_agents_that_fall_ill_after_the_run_has_completed_degrade_the_rollout_and_no_more() -> None:
    fleet = completed()
    fleet.behaviour = lambda node, _revision: "crash-loop" if node == "node-003" else "healthy"
    fleet.lose_pod("node-003")
    fleet.nodes["node-007"].node = replace(fleet.nodes["node-007"].node, ready=False)  # not the agent's fault
    begun = fleet.now
    while "Degraded" not in (found := {c.type: c for c in fleet.plan().status.conditions}):
        plan = fleet.plan()
        assert plan.wake_at is not None or fleet.now == begun
        fleet.execute(plan)
        fleet.tick()
        assert (fleet.now - begun).total_seconds() < 100
    assert (fleet.now - begun).total_seconds() > 60
    assert_clean(fleet, fleet.plan())
    assert found["Ready"].status == "True"
    assert found["Degraded"].reason == "AgentsNotHealthy"
    assert found["Degraded"].message == (
        "1 node has an agent that is not Ready for more than 60 s: node-003 (CrashLoopBackOff). Look at their pods"
    )


def test_nodes_whose_agent_is_not_even_created_count_as_ill() -> None:
    fleet = completed()
    fleet.without_agent_since = {"node-001": fleet.now}
    fleet.nodes["node-001"].pods.clear()
    fleet.now += timedelta(seconds=61)
    found = {c.type: c for c in fleet.plan().status.conditions}
    assert "node-001 (NoPod)" in found["Degraded"].message


@pytest.mark.parametrize("make", ["failing", "healthy"])
def test_no_object_of_five_thousand_nodes_is_over_256_kib(make: str) -> None:
    strategy = {"type": "Rolling", "rolling": {"batchSize": "20%"}, "failureTolerance": "50%"}
    fleet = Fleet(5000, make_spec(strategy=strategy, health={"timeoutSeconds": 20, "minReadySeconds": 0}))
    long_names(fleet)
    fleet.behaviour = lambda _node, _revision: "crash-loop" if make == "failing" else "healthy"
    largest = 0
    for _ in range(18):
        plan = fleet.plan()
        objects = [plan.status, *(a.spec for a in plan.actions if isinstance(a, CreateBatch))]
        for action in plan.actions:
            if isinstance(action, WriteBatch):
                worst = [
                    each.model_copy(update={"message": "x" * 256, "reason": "CreateContainerConfigError"})
                    for each in action.status.nodes
                ]
                # spec and status are one object
                objects.append(action.status.model_copy(update={"nodes": worst}))
        sizes = [len(json.dumps(each.to_api())) for each in objects]
        largest = max(largest, *sizes)
        fleet.execute(plan)
        fleet.tick()
    spec = max(len(json.dumps(batch.spec.to_api())) for batch in fleet.batches.values())
    assert spec + largest < 256 * 1024, f"{spec} + {largest}"


def test_a_run_that_moved_nobody_failed() -> None:
    fleet = nowhere_to_move()
    assert fleet.status.run is not None
    assert fleet.status.phase in {"Stalled", "RolledBack"}
    assert_clean(fleet, fleet.plan())


def test_every_phase_has_its_situation() -> None:
    assert {phase for _, phase, _, _ in SITUATIONS.values()} == {
        "Progressing",
        "Paused",
        "RollingBack",
        "RolledBack",
        "Completed",
        "Stalled",
        "Waiting",
        "Deleting",
    }


def test_an_unchanged_fleet_gives_an_unchanged_status() -> None:
    for make in (completed, with_failures, with_a_node_away, rolled_back, stopped, hindered_before_the_first_run):
        fleet = make()
        fleet.execute(fleet.plan())
        first = fleet.status
        fleet.tick(3600)
        assert fleet.plan().status == first


def assert_clean(fleet: Fleet, plan: Plan) -> None:
    """What kstatus, metav1.Condition and the CRDs demand of every status, whatever happened."""
    found = {condition.type: condition for condition in plan.status.conditions}
    assert len(found) == len(plan.status.conditions), "one condition per type"
    assert found.keys() <= CONDITION_TYPES
    assert "Ready" in found
    assert not {"Reconciling", "Stalled"} <= found.keys(), "either it goes on by itself or a person must act"
    for kind in ("Reconciling", "Stalled", "Paused", "Degraded", "RolledBack"):
        assert kind not in found or found[kind].status == "True", f"{kind} is there only while it holds"
    if found["Ready"].status == "True":
        assert not {"Reconciling", "Stalled", "Paused", "RolledBack"} & found.keys()
    else:
        assert {"Reconciling", "Stalled", "Paused"} & found.keys(), "what is not Ready says who has to act"
    assert plan.status.observed_generation == fleet.generation
    for condition in found.values():
        assert condition.observed_generation == fleet.generation
        assert condition.message
        Condition.model_validate(condition.to_api())
    RolloutStatus.model_validate(plan.status.to_api())
    for action in plan.actions:
        if isinstance(action, WriteBatch):
            RolloutBatchStatus.model_validate(action.status.to_api())
    for event in plan.events:
        assert event.reason.isalnum()
        assert event.message
    counts = plan.status.run
    if counts is not None:
        assert counts.updated + counts.outdated == plan.status.nodes == len(fleet.nodes)
        assert min(counts.healthy, counts.failed, counts.pending, counts.skipped) >= 0


def long_names(fleet: Fleet) -> None:
    """Give nodes names as long as names may be: the worst case for every message that holds some."""
    for name in list(fleet.nodes):
        sim = fleet.nodes.pop(name)
        longer = (name + "." + "x" * 253)[:252] + "y"
        fleet.nodes[longer] = type(sim)(replace(sim.node, name=longer), sim.pods)


def chances(dice: Any, fleet: Fleet) -> Iterator[None]:
    names = sorted(fleet.nodes)
    for _ in range(2):
        match dice.randrange(14):
            case 0:
                fleet.change(paused=not fleet.spec.paused)
            case 1:
                fleet.change(version=dice.choice(["1.0.0", "1.1.0", "1.2.0"]))
            case 2:
                fleet.hindrance = Hindrance("VersionNotPublished", "not published", stalled=dice.random() < 0.5)
            case 3 | 4 | 5:
                fleet.hindrance = None
            case 6:
                fleet.set_ready(dice.choice(names), dice.random() < 0.5)
            case 7:
                fleet.join(f"joined-{fleet.serial}")
            case 8 if len(names) > 2:
                fleet.leave(dice.choice(names))
                names = sorted(fleet.nodes)
            case 10:
                fleet.phases[dice.choice(["1.0.0", "1.1.0", "1.2.0"])] = dice.choice(
                    ["Published", "Published", "Deprecated", "Withdrawn", "Revoked"]
                )
            case 9:
                fleet.deleting = dice.random() < 0.1
            case _:
                pass
        yield


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    count=st.integers(1, 12),
    bad=st.dictionaries(st.integers(0, 11), st.sampled_from(["never-ready", "crash-loop", "image-pull"]), max_size=5),
    on_failure=st.sampled_from(["Rollback", "Pause"]),
    tolerance=st.sampled_from([0, 1, "50%", "100%"]),
    dice=st.randoms(use_true_random=False),
)
def test_every_status_of_every_story_is_clean(
    count: int, bad: dict[int, str], on_failure: str, tolerance: int | str, dice: Any
) -> None:
    strategy = {"type": "Rolling", "rolling": {"batchSize": "34%"}, "failureTolerance": tolerance}
    fleet = Fleet(count, make_spec(strategy=strategy, onFailure=on_failure), seed=dice.randrange(1000))
    long_names(fleet)
    troubled = {f"node-{index:03}": behaviour for index, behaviour in bad.items()}
    fleet.behaviour = lambda node, revision: troubled.get(node[:8], "healthy") if revision != OLD else "healthy"
    for step in range(120):
        plan = fleet.plan()
        assert_clean(fleet, plan)
        fleet.execute(plan)
        fleet.tick()
        if step > 10 and step % 4 == 0:
            for _ in chances(dice, fleet):
                assert_clean(fleet, fleet.plan())
