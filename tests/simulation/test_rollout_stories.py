"""Whole rollouts on the simulated fleet, each a story with a known end."""

from typing import Any

from outrider.core.compatibility import VersionRules
from outrider.core.snapshot import Hindrance
from simulation.fleet import Fleet, make_spec

CANARY = {
    "type": "Canary",
    "canary": {"steps": [{"nodes": 1, "soakSeconds": 5}, {"nodes": "20%"}]},
    "rolling": {"batchSize": "25%"},
}


def installed(count: int = 10, **changes: Any) -> Fleet:
    """A fleet that runs 1.0.0 everywhere."""
    fleet = Fleet(count, make_spec(**changes))
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": count}
    assert fleet.status.phase == "Completed"
    fleet.patches.clear()
    return fleet


def test_first_run_installs_everywhere_with_one_patch_a_node() -> None:
    fleet = Fleet(10, make_spec())
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}
    assert len(fleet.patches) == 10
    assert fleet.status.revisions is not None
    assert fleet.status.revisions.stable == "r-1.0.0"


def test_the_number_of_batches_is_foretold_and_stays() -> None:
    fleet = installed(16, strategy=CANARY)
    fleet.change(version="1.1.0")
    foretold = set()
    for _ in range(200):
        fleet.execute(fleet.plan())
        if fleet.status.run is not None and fleet.status.run.version == "1.1.0":
            foretold.add(fleet.status.run.batch)
        fleet.tick()
    assert foretold == {"0/5", "1/5", "2/5", "3/5", "4/5", "5/5"}  # 1 + 4 canaries, then 4 + 4 + 3


def test_an_update_takes_two_patches_a_node() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 10}
    assert len(fleet.patches) == 20
    assert fleet.joiners == ["r-1.1.0"]


def test_a_canary_comes_first_and_is_watched_before_the_rest() -> None:
    fleet = installed(strategy=CANARY)
    fleet.change(version="1.1.0")
    fleet.settle()
    sizes = [(b.spec.step, len(b.spec.nodes)) for b in fleet.batches.values() if b.spec.run == 2]
    assert sizes == [(1, 1), (2, 2), (0, 3), (0, 3), (0, 1)]
    first, second = (b for b in fleet.batches.values() if b.spec.run == 2 and b.spec.step)
    assert first.status.finished_at is not None
    assert (second.spec.started_at - first.status.finished_at).total_seconds() >= 5


def test_a_bad_canary_goes_back_by_itself_and_the_rollout_holds() -> None:
    fleet = installed(strategy=CANARY)
    fleet.behaviour = lambda _node, revision: "never-ready" if revision == "r-1.1.0" else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}
    assert fleet.status.phase == "RolledBack"
    run = fleet.status.run
    assert run is not None
    assert (run.kind, run.state, run.of_run) == ("Rollback", "Succeeded", 2)
    assert [(record.id, record.result) for record in fleet.status.history] == [(2, "RolledBack"), (1, "Succeeded")]
    assert {state for _, state, _ in fleet.entries(2)} == {"Failed"}
    assert {state for _, state, _ in fleet.entries(3)} == {"Succeeded"}
    assert {c.type: c.status for c in fleet.status.conditions}["Stalled"] == "True"


def test_failures_within_the_tolerance_go_back_one_by_one_and_the_rest_moves() -> None:
    fleet = installed(20, strategy={"type": "Rolling", "rolling": {"batchSize": 5}, "failureTolerance": "10%"})
    bad = {"node-003", "node-011"}
    fleet.behaviour = lambda node, revision: "crash-loop" if node in bad and revision == "r-1.1.0" else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 18, "r-1.0.0": 2}
    assert {(entry.name, state, reason) for entry, state, reason in fleet.entries(2) if state != "Succeeded"} == {
        ("node-003", "RolledBack", "TooManyRestarts"),
        ("node-011", "RolledBack", "TooManyRestarts"),
    }
    assert fleet.status.phase == "Completed"
    assert fleet.status.run is not None
    assert fleet.status.run.state == "PartiallySucceeded"
    assert {c.type for c in fleet.status.conditions} >= {"Ready", "Degraded"}


def test_over_the_tolerance_everything_that_the_run_moved_goes_back() -> None:
    fleet = installed(20, strategy={"type": "Rolling", "rolling": {"batchSize": 5}, "failureTolerance": 1})
    bad = {f"node-{n:03}" for n in range(0, 20, 4)}
    fleet.behaviour = lambda node, revision: "crash-loop" if node in bad and revision == "r-1.1.0" else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 20}
    assert fleet.status.phase == "RolledBack"


def test_on_failure_pause_leaves_everything_as_it_is() -> None:
    fleet = installed(onFailure="Pause")
    fleet.behaviour = lambda _node, revision: "image-pull" if revision == "r-1.1.0" else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 3, "r-1.0.0": 7}
    assert fleet.status.phase == "Stalled"
    fleet.change(version="1.0.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}
    assert fleet.status.phase == "Completed"


def test_a_first_run_that_fails_leaves_no_agent() -> None:
    fleet = Fleet(10, make_spec(), behaviour=lambda _node, _revision: "crash-loop")
    fleet.settle()
    assert set(fleet.assignments()) == {"none", "None"}
    assert fleet.status.phase == "RolledBack"
    fleet.behaviour = lambda _node, _revision: "healthy"
    fleet.change(version="1.0.1")
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.1": 10}


def test_a_lost_pod_on_a_node_not_yet_moved_returns_at_the_old_version() -> None:
    fleet = installed(strategy=CANARY)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) == 1)
    name = next(name for name in fleet.nodes if fleet.assignment(name) == "r-1.0.0")
    fleet.lose_pod(name)
    fleet.tick()
    assert [pod.revision for pod in fleet.nodes[name].pods] == ["r-1.0.0"]


def test_a_node_that_joins_in_the_middle_gets_the_stable_version_first() -> None:
    fleet = installed(strategy=CANARY)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) == 1)
    fleet.join("late")
    fleet.settle(until=lambda f: f.assignment("late") == "r-1.0.0", limit=10)
    fleet.settle()
    assert fleet.assignment("late") == "r-1.1.0"


def test_a_dead_node_neither_blocks_nor_counts_and_is_moved_when_it_returns() -> None:
    fleet = installed()
    fleet.set_ready("node-004", False)
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignment("node-004") == "r-1.0.0"
    assert fleet.status.phase == "Completed"
    assert fleet.status.run is not None
    assert (fleet.status.run.skipped, fleet.status.run.outdated) == (1, 1)
    fleet.set_ready("node-004", True)
    fleet.settle(until=lambda f: f.status.run is not None and f.status.run.state == "Running")
    fleet.settle()
    assert fleet.assignment("node-004") == "r-1.1.0"


def test_a_node_that_dies_after_its_move_counts_as_failed() -> None:
    fleet = installed(strategy={"type": "Rolling", "rolling": {"batchSize": 5}, "failureTolerance": 1})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) >= 2)
    victim = next(name for name in fleet.nodes if fleet.assignment(name) == "r-1.1.0")
    fleet.set_ready(victim, False)
    fleet.execute(fleet.plan())
    assert ("NodeNotReady", victim) in {(reason, entry.name) for entry, _, reason in fleet.entries(2)}


def test_a_pause_stops_new_moves_finishes_half_made_ones_and_stops_the_clock() -> None:
    fleet = installed(health={"timeoutSeconds": 20, "minReadySeconds": 2})
    fleet.behaviour = lambda _node, revision: "never-ready" if revision == "r-1.1.0" else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any((f.assignment(n) or "").startswith("to-") for n in f.nodes))
    fleet.change(paused=True)
    for _ in range(100):
        fleet.execute(fleet.plan())
        fleet.tick()
    assert fleet.assignments() == {"r-1.0.0": 7, "r-1.1.0": 3}
    assert fleet.status.phase == "Paused"
    assert {state for _, state, _ in fleet.entries(2)} == {"Starting"}
    fleet.change(paused=False)
    fleet.settle()
    assert fleet.status.phase == "RolledBack"


def test_changing_ones_mind_in_the_middle_goes_straight_back() -> None:
    fleet = installed(strategy=CANARY)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) >= 3)
    fleet.change(version="1.0.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}
    assert [b.spec.step for b in fleet.batches.values() if b.spec.run == 3] == [0]


def test_a_node_moved_to_a_half_tested_version_goes_back_to_the_completed_one() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) >= 3)
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == "r-1.2.0" else "healthy"
    fleet.change(version="1.2.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}


def test_full_moves_all_at_once_within_its_limit() -> None:
    fleet = installed(12, strategy={"type": "Full", "full": {"maxInFlight": 4}})
    fleet.change(version="1.1.0")
    worst = 0

    def watch(fleet: Fleet) -> bool:
        nonlocal worst
        worst = max(worst, fleet.out_of_service())
        return fleet.assignments() == {"r-1.1.0": 12}

    fleet.settle(until=watch)
    assert worst == 4
    assert len([b for b in fleet.batches.values() if b.spec.run == 2]) == 1


def test_big_batches_are_recorded_in_pages_of_a_hundred() -> None:
    fleet = Fleet(250, make_spec(strategy={"type": "Full"}))
    fleet.settle()
    assert sorted(len(b.spec.nodes) for b in fleet.batches.values()) == [50, 100, 100]


def test_a_missing_version_holds_and_moves_nothing() -> None:
    fleet = installed()
    fleet.hindrance = Hindrance("VersionNotFound", "there is no ComponentVersion agent-9.9.9", stalled=True)
    fleet.change(version="9.9.9")
    for _ in range(5):
        fleet.execute(fleet.plan())
        fleet.tick()
    assert fleet.patches == []
    assert fleet.status.phase == "Stalled"


def test_a_deleted_rollout_finishes_its_half_made_moves_and_leaves_the_agents() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any((f.assignment(n) or "").startswith("to-") for n in f.nodes))
    fleet.deleting = True
    fleet.settle(until=lambda f: f.let_go)
    assert fleet.assignments() == {"r-1.0.0": 7, "r-1.1.0": 3}


def test_old_revisions_and_records_are_forgotten() -> None:
    fleet = installed(3, runHistoryLimit=1, revisionHistoryLimit=1)
    for minor in range(1, 5):
        fleet.change(version=f"1.{minor}.0")
        fleet.settle()
    assert {b.spec.run for b in fleet.batches.values()} == {4, 5}
    assert set(fleet.revisions) == {"r-1.4.0", "r-1.3.0", "r-1.2.0"}


def test_after_a_restart_of_the_operator_healthy_nodes_stay_healthy() -> None:
    fleet = installed(strategy=CANARY, health={"timeoutSeconds": 60, "minReadySeconds": 20})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(b.spec.run == 2 and b.status.finished_at for b in f.batches.values()))
    before = dict(fleet.batches)
    for sim in fleet.nodes.values():
        for pod in sim.pods:
            pod.ready_since = fleet.now  # what a new process believes
    fleet.execute(fleet.plan())
    assert all(fleet.batches[name] == batch for name, batch in before.items())


def test_nodes_that_the_version_has_nothing_for_are_left_out_and_keep_their_agent() -> None:
    fleet = installed(4)
    fleet.rules = {"r-1.1.0": VersionRules(frozenset({"linux/amd64"}))}
    for name, arch in zip(sorted(fleet.nodes), ["amd64", "arm64", "amd64", "amd64"], strict=True):
        fleet.label(name, {"kubernetes.io/os": "linux", "kubernetes.io/arch": arch})
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 3, "r-1.0.0": 1}
    assert [(e.name, s, r) for e, s, r in fleet.entries(2) if s != "Succeeded"] == [
        ("node-001", "Skipped", "NoArtifact")
    ]


def test_the_record_of_a_node_that_is_half_way_outlives_the_limit() -> None:
    fleet = Fleet(3, make_spec(strategy={"type": "Rolling", "rolling": {"batchSize": 1}}, runHistoryLimit=1))
    fleet.settle()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("to-r-1.1.0", 0) == 1)
    for version in ("1.0.0", "1.1.0", "1.0.0", "1.1.0", "1.0.0"):
        fleet.change(version=version)
        fleet.execute(fleet.plan())
        fleet.execute(fleet.plan())
    assert fleet.assignments().get("to-r-1.1.0") == 1
    assert 2 in {batch.spec.run for batch in fleet.batches.values()}
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 3}
    assert 2 not in {batch.spec.run for batch in fleet.batches.values()}
