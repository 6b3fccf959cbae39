"""Never more nodes without a working agent because of Outrider than the limit says, whatever led there."""

from collections.abc import Callable
from typing import Any

import pytest

from outrider.core.moves import is_leaving
from simulation.fleet import is_at_rest, make_spec
from simulation.troubled import NEW, OLD, TroubledFleet

WINDOW = {"type": "Rolling", "rolling": {"maxUnavailable": 3}}
BATCHES = {"type": "Rolling", "rolling": {"batchSize": 3}}
FULL = {"type": "Full", "full": {"maxInFlight": 3}}
EVERY_STRATEGY = pytest.mark.parametrize("strategy", [WINDOW, BATCHES, FULL], ids=["window", "batches", "full"])


def installed(count: int = 30, strategy: Any = WINDOW, **changes: Any) -> TroubledFleet:
    world = TroubledFleet(count, make_spec(strategy=strategy, **changes))
    world.settle()
    return world


def live(world: TroubledFleet, seconds: int, *, until: Callable[[TroubledFleet], bool] = is_at_rest) -> int:
    """Let time pass, with passes in between; return how many nodes were out of service at a time at most."""
    most = 0
    for _ in range(seconds):
        for _ in range(3):
            world.execute(world.plan())
            most = max(most, world.out_of_service())
        if until(world):
            break
        world.tick()
        most = max(most, world.out_of_service())
    return most


@EVERY_STRATEGY
def test_nodes_that_joined_while_nobody_looked_lose_their_working_agents_in_turn(strategy: Any) -> None:
    world = installed(6, strategy)
    world.join_unseen(*(f"late-{number}" for number in range(12)))
    assert world.out_of_service() == 0
    assert live(world, 200, until=lambda w: w.assignments() == {OLD: 18}) == 3
    assert world.assignments() == {OLD: 18}


@EVERY_STRATEGY
def test_nodes_that_are_made_anew_under_their_names_do_so_too(strategy: Any) -> None:
    world = installed(18, strategy)
    again = sorted(world.nodes)[6:]
    for name in again:
        world.leave(name)
    world.join_unseen(*again)
    assert world.out_of_service() == 0
    assert live(world, 200, until=lambda w: w.assignments() == {OLD: 18}) == 3
    assert world.assignments() == {OLD: 18}


@pytest.mark.parametrize("change", [{"target": {"nodeSelector": {}}}, {"joiners": "Wait"}], ids=["target", "joiners"])
def test_what_serves_joined_nodes_stays_until_each_has_had_its_turn(change: Any) -> None:
    world = installed(6, {"type": "Rolling", "rolling": {"maxUnavailable": 1}})
    world.join_unseen(*(f"late-{number}" for number in range(8)))
    world.change(version="1.1.0")
    live(world, 5, until=lambda _: False)
    world.change(**change)
    assert live(world, 900, until=lambda w: w.assignments() == {NEW: 14}) == 1
    assert world.assignments() == {NEW: 14}


def test_the_end_of_a_freeze_takes_no_more_agents_at_a_time_either() -> None:
    world = installed(6)
    world.change(frozen=True)
    for number in range(12):
        world.join(f"late-{number}")
    live(world, 60, until=lambda _: False)
    assert world.out_of_service() == 0
    world.change(frozen=False)
    assert live(world, 200, until=lambda w: w.assignments() == {OLD: 18}) == 3


def test_a_joined_node_without_a_working_agent_waits_for_nobody() -> None:
    world = installed(6, {"type": "Rolling", "rolling": {"maxUnavailable": 1}})
    for number in range(6):
        world.join(f"late-{number}")
    world.execute(world.plan())
    assert sum(is_leaving(world.assignment(name)) or world.assignment(name) == OLD for name in world.nodes) == 12


def test_joined_nodes_and_those_of_a_run_share_the_limit() -> None:
    world = installed(20)
    world.join_unseen(*(f"late-{number}" for number in range(10)))
    world.change(version="1.1.0")
    assert live(world, 600, until=lambda w: w.assignments() == {NEW: 30}) == 3


def test_a_rollout_that_is_deleted_leaves_joined_nodes_their_agents_in_turn() -> None:
    world = installed(6)
    world.join_unseen(*(f"late-{number}" for number in range(12)))
    world.deleting = True
    assert live(world, 200, until=lambda w: not w.finalizer) == 3
    assert world.assignments() == {OLD: 18}


@pytest.mark.parametrize("how", ["paused", "frozen", "retried"])
def test_a_deletion_waits_for_nobody_who_is_not_judged_any_more(how: str) -> None:
    """Deadlines stand still in a pause, and who waits to be tried again has none."""
    world = installed(12, BATCHES, onFailure="Pause")
    world.change(version="1.1.0")
    live(world, 600, until=lambda w: w.assignments().get(NEW, 0) >= 6)
    if how == "retried":
        world.restart_agents()
        live(world, 30, until=lambda w: w.status.run is not None and w.status.run.state == "Paused")
    else:
        world.behaviour = lambda _node, revision: "never-ready" if revision == NEW else "healthy"
        live(world, 60, until=lambda w: any(state == "Starting" for _, state, _ in w.entries(2)))
        world.change(**{how: True})
    world.join_unseen(*(f"late-{number}" for number in range(3)))
    if how == "retried":
        world.ask("retry")
        world.execute(world.plan())
        assert any(state == "Retrying" for _, state, _ in world.entries(2))
    world.deleting, world.deleting_since = True, world.now
    live(world, 700, until=lambda w: not w.finalizer)
    assert not world.finalizer


@EVERY_STRATEGY
def test_a_retry_takes_working_agents_away_in_turn(strategy: Any) -> None:
    world = installed(30, strategy, onFailure="Pause")
    world.change(version="1.1.0")
    live(world, 600, until=lambda w: w.assignments().get(NEW, 0) >= 20)
    world.restart_agents()
    live(world, 30, until=lambda w: w.status.run is not None and w.status.run.state == "Paused")
    world.ask("retry")
    assert live(world, 900) == 3
    assert world.assignments() == {NEW: 30}


@EVERY_STRATEGY
def test_failures_that_are_tolerated_take_working_agents_away_in_turn(strategy: Any) -> None:
    world = installed(30, {**strategy, "failureTolerance": "100%"})
    world.change(version="1.1.0")
    live(world, 600, until=lambda w: w.assignments().get(NEW, 0) >= 20)
    # Not all of any batch: that would be too much whatever is tolerated.
    records = [batch.spec.nodes for batch in world.batches.values() if batch.spec.run == 2]
    world.restart_agents({entry.name for nodes in records for entry in nodes[:-1]})
    moved, began = len(world.restarted), world.now
    assert live(world, 900) == 3
    assert (world.now - began).total_seconds() < 16 * 30 / 3, "as many at a time as may be"
    assert world.assignments() == {NEW: 30 - moved, OLD: moved}
    assert world.status.run is not None
    assert world.status.run.state == "PartiallySucceeded"


@pytest.mark.parametrize(
    "after",
    [
        {"type": "Canary", "canary": {"steps": [{"nodes": 1}]}, "rolling": {"batchSize": 2}},
        {"type": "Rolling", "rolling": {"maxUnavailable": 2}},
        {"type": "Rolling", "rolling": {"batchSize": 2}},
        {"type": "Full", "full": {"maxInFlight": 2}},
    ],
    ids=["a smaller step", "window", "batches", "full"],
)
@pytest.mark.parametrize("prepared", [False, True])
def test_a_canary_step_on_record_moves_no_more_than_the_spec_says_by_now(after: Any, *, prepared: bool) -> None:
    world = installed(
        24, {"type": "Canary", "canary": {"steps": [{"nodes": "50%"}]}, "rolling": {"batchSize": 2}}, prePull=prepared
    )
    world.change(version="1.1.0")
    world.settle(until=lambda w: any(batch.spec.run == 2 for batch in w.batches.values()))
    world.change(strategy=after)
    assert live(world, 600) == 2
    assert world.assignments() == {NEW: 24}


def test_a_canary_step_that_is_retried_opens_the_window_for_nobody_else() -> None:
    world = installed(
        40,
        {"type": "Canary", "canary": {"steps": [{"nodes": 10}]}, "rolling": {"maxUnavailable": 2}},
        onFailure="Pause",
    )
    world.change(version="1.1.0")
    live(world, 600, until=lambda w: w.assignments().get(NEW, 0) >= 14)
    steps = [batch.spec for batch in world.batches.values() if batch.spec.run == 2 and batch.spec.step]
    canaries = {entry.name for spec in steps for entry in spec.nodes}
    assert len(canaries) == 10
    world.restart_agents(canaries)
    live(world, 30, until=lambda w: w.status.run is not None and w.status.run.state == "Paused")
    world.ask("retry")
    while not is_at_rest(world):
        for _ in range(3):
            world.execute(world.plan())
            others = [name for name in world.nodes if name not in canaries and world.is_out(name)]
            assert len(others) <= 2
        world.tick()
    assert world.assignments() == {NEW: 40}


@EVERY_STRATEGY
@pytest.mark.parametrize(
    "wishes", [["1.1.0", "1.2.0"], ["1.1.0", "1.0.0", "1.2.0"], ["1.1.0", "1.0.0", "1.1.0", "1.0.0"]], ids="-".join
)
def test_whoever_changes_his_mind_while_agents_start_waits_for_them(strategy: Any, wishes: list[str]) -> None:
    world = installed(20, strategy, health={"timeoutSeconds": 300, "minReadySeconds": 0})
    world.slow = 30
    for wish in wishes:
        world.change(version=wish)
        assert live(world, 12, until=lambda _: False) <= 3
    world.slow = 0
    assert live(world, 900) <= 3
    assert world.assignments() == {f"r-{wishes[-1]}": 20}


@EVERY_STRATEGY
@pytest.mark.parametrize("how", ["abort", "revoke", "rollback"])
def test_a_rollback_waits_for_those_that_its_run_had_on_their_way(strategy: Any, how: str) -> None:
    world = installed(20, strategy, health={"timeoutSeconds": 300, "minReadySeconds": 0})
    world.slow = 20
    world.change(version="1.1.0")
    live(world, 600, until=lambda w: w.assignments().get(NEW, 0) >= 6 and sum(w.is_out(n) for n in w.nodes) >= 2)
    if how == "revoke":
        world.phases["1.1.0"] = "Revoked"
    elif how == "abort":
        world.ask("abort")
    else:
        world.ask("rollback", run=2)
    assert live(world, 900) <= 3
    assert world.assignments() == {OLD: 20}


@EVERY_STRATEGY
def test_an_old_agent_that_never_ends_holds_up_no_later_run(strategy: Any) -> None:
    lonely = {kind: dict.fromkeys(value, 1) if isinstance(value, dict) else value for kind, value in strategy.items()}
    world = installed(8, lonely, health={"timeoutSeconds": 90, "minReadySeconds": 0})
    world.change(version="1.1.0")
    live(world, 600, until=lambda w: w.assignments().get(NEW, 0) >= 3)
    while world.stuck is None:
        plan = world.plan()
        world.execute(plan)
        world.stuck = next((move.node for move in plan.moves if move.after == f"to-{NEW}"), None)
        world.tick()
    world.change(version="1.2.0")
    live(world, 80, until=lambda _: False)
    degraded = next(condition for condition in world.status.conditions if condition.type == "Degraded")
    assert degraded.reason == "OldAgentsDoNotEnd"
    assert world.stuck in degraded.message
    live(world, 500, until=lambda w: w.assignments().get("r-1.2.0", 0) == 7)
    assert world.assignments().get("r-1.2.0") == 7
