"""Versions that are deprecated, withdrawn, restored and revoked at random while fleets are moved between them.

The fleet itself asserts with every patch that no node sets out for what is Withdrawn or Revoked (`_check_phase`), and
that nothing moves without a record.
"""

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.api.componentversion import Compatibility
from outrider.core.compatibility import read_rules
from outrider.core.moves import is_leaving
from outrider.core.states import BARRED
from simulation.fleet import Fleet, make_spec
from simulation.test_rollout_properties import BEHAVIOURS, STRATEGIES

VERSIONS = ["1.0.0", "1.1.0", "1.2.0"]
PHASES = ["Published", "Deprecated", "Withdrawn", "Withdrawn", "Revoked"]
EVENTS = st.one_of(
    st.tuples(st.just("phase"), st.sampled_from(VERSIONS), st.sampled_from(PHASES)),
    st.tuples(st.just("wish"), st.sampled_from(VERSIONS), st.none()),
    st.tuples(st.sampled_from(["pause", "registry", "join", "lose"]), st.none(), st.none()),
)


def happen(fleet: Fleet, what: str, version: Any, phase: Any) -> None:
    match what:
        case "phase" if fleet.phases.get(version) != "Revoked":  # which is final
            fleet.phases[version] = phase
        case "wish":
            fleet.change(version=version)
        case "pause":
            fleet.change(paused=not fleet.spec.paused)
        case "registry":
            fleet.registry_is_down = not fleet.registry_is_down
        case "join":
            fleet.join(f"joined-{fleet.serial}")
        case "lose":
            fleet.lose_pod(fleet.random.choice(sorted(fleet.nodes)))
        case _:
            pass


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    count=st.integers(1, 10),
    strategy=STRATEGIES,
    on_failure=st.sampled_from(["Rollback", "Pause"]),
    bad=st.dictionaries(st.integers(0, 9), st.sampled_from(BEHAVIOURS), max_size=5),
    events=st.lists(st.tuples(st.integers(1, 20), EVENTS), min_size=1, max_size=12),
    fresh=st.sampled_from([None, 20.0]),
    seed=st.integers(0, 10_000),
    crashes=st.booleans(),
)
def test_whatever_becomes_of_versions_no_node_is_sent_to_a_barred_one_and_none_is_forgotten(
    count: int,
    strategy: dict[str, Any],
    on_failure: str,
    bad: dict[int, str],
    events: list[tuple[int, tuple[str, Any, Any]]],
    fresh: float | None,
    seed: int,
    crashes: bool,
) -> None:
    fleet = Fleet(count, make_spec(strategy=strategy, onFailure=on_failure), seed=seed)
    troubled = {f"node-{index:03}": behaviour for index, behaviour in bad.items()}
    fleet.behaviour = lambda node, revision: troubled.get(node, "healthy") if revision == "r-1.1.0" else "healthy"
    fleet.settle()
    fleet.fresh_seconds = fresh
    for steps, (what, version, phase) in events:
        happen(fleet, what, version, phase)
        for _ in range(steps):
            plan = fleet.plan()
            if crashes and fleet.random.random() < 0.2:
                fleet.execute(plan, crash_after=fleet.random.randrange(len(plan.actions) + 1))
            else:
                fleet.execute(plan)
            fleet.tick()
    assert_nobody_is_left_between(fleet)
    # A version that nothing is wrong with takes the whole fleet, wherever its nodes were left.
    fleet.registry_is_down = False
    fleet.change(version="1.3.0", paused=False)
    fleet.settle()
    assert fleet.assignments() == {"r-1.3.0": len(fleet.nodes)}
    assert fleet.status.phase == "Completed"


def assert_nobody_is_left_between(fleet: Fleet) -> None:
    """While everything stands still, half-made moves end all the same."""
    fleet.change(paused=True)
    for _ in range(30):
        fleet.execute(fleet.plan())
        fleet.tick()
    assert not any(is_leaving(fleet.assignment(name)) for name in fleet.nodes)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    count=st.integers(2, 10),
    moved=st.integers(1, 10),
    strategy=STRATEGIES,
    phase=st.sampled_from(["Withdrawn", "Revoked"]),
    seed=st.integers(0, 10_000),
)
def test_a_revoked_version_is_left_completely_and_a_withdrawn_one_only_waits(
    count: int, moved: int, strategy: dict[str, Any], phase: Any, seed: int
) -> None:
    fleet = Fleet(count, make_spec(strategy=strategy), seed=seed)
    fleet.settle()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) >= min(moved, count))
    completed = fleet.status.revisions is not None and fleet.status.revisions.stable == "r-1.1.0"
    fleet.phases["1.1.0"] = phase
    for _ in range(400):
        fleet.execute(fleet.plan())
        fleet.tick()
    if phase == "Revoked" and not completed:
        assert fleet.assignments() == {"r-1.0.0": count}
        return
    assert fleet.assignments().get("r-1.1.0", 0) >= min(moved, count)
    if phase == "Withdrawn":
        fleet.phases["1.1.0"] = "Published"
        fleet.settle()
        assert fleet.assignments() == {"r-1.1.0": count}


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(kernels=st.lists(st.sampled_from(["6.1.0", "5.4.0", ""]), min_size=1, max_size=10), strategy=STRATEGIES)
def test_exactly_the_nodes_that_fit_are_moved(kernels: list[str], strategy: dict[str, Any]) -> None:
    fleet = Fleet(len(kernels), make_spec(strategy=strategy))
    fleet.settle()
    for name, kernel in zip(sorted(fleet.nodes), kernels, strict=True):
        fleet.nodes[name].node = replace(fleet.nodes[name].node, kernel_version=kernel)
    fleet.rules["r-1.1.0"] = read_rules([], Compatibility(kernel_version=">=5.10"))
    fleet.change(version="1.1.0")
    for _ in range(300):
        fleet.execute(fleet.plan())
        fleet.tick()
    found = [fleet.assignment(name) for name in sorted(fleet.nodes)]
    assert found == ["r-1.1.0" if kernel == "6.1.0" else "r-1.0.0" for kernel in kernels]


def test_the_barred_phases_are_those_that_the_fleet_watches() -> None:
    assert {"Withdrawn", "Revoked"} == BARRED
