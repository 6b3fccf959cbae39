"""What a Rollout's status says in every situation: clean to kstatus, within its limits, and telling what to do."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.api.base import Condition
from outrider.api.componentversion import Phase
from outrider.api.rollout import RolloutBatchStatus, RolloutStatus
from outrider.core.plan import Plan, WriteBatch
from outrider.core.rollout_status import CONDITION_TYPES
from outrider.core.snapshot import Hindrance
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
