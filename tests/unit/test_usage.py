"""Who needs a version, as one table of cases."""

from datetime import UTC, datetime
from typing import Any

import pytest

from outrider.api.rollout import BatchNode, Revisions, RolloutBatchSpec, RolloutStatus, RunStatus
from outrider.core.usage import Needs, find_needs, versions_in_use
from simulation.fleet import Fleet, make_spec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REVISIONS = {"r1": "1.0.0", "r2": "1.1.0", "r2-other-template": "1.1.0", "r3": "1.2.0"}


def needs(rollout: str = "edge", versions: str = "", returns: str = "") -> Needs:
    return Needs(rollout, frozenset(versions.split()), frozenset(returns.split()))


@pytest.mark.parametrize(
    ("found", "assignments", "expected"),
    [
        pytest.param([], "", {}, id="nobody needs anything"),
        pytest.param([needs(versions="1.0.0")], "", {"1.0.0": (0, ["edge"])}, id="a Rollout wants it"),
        pytest.param([], "r1 r1 r3", {"1.0.0": (2, []), "1.2.0": (1, [])}, id="nodes run it, their Rollout is gone"),
        pytest.param([], "r2 r2-other-template", {"1.1.0": (2, [])}, id="two revisions of one version"),
        pytest.param([], "to-r2", {"1.1.0": (1, [])}, id="a node is on its way to it"),
        pytest.param([], "none to-none", {}, id="no agent is no version"),
        pytest.param([], "r9 legacy", {}, id="a revision that nobody knows"),
        pytest.param([needs(returns="r1")], "r2", {"1.0.0": (0, ["edge"]), "1.1.0": (1, [])}, id="a way back"),
        pytest.param([needs(returns="r9")], "", {}, id="a way back whose DaemonSet is gone leads nowhere"),
        pytest.param(
            [needs("edge", "1.1.0", "r1"), needs("core", "1.0.0")],
            "r2 r1",
            {"1.0.0": (1, ["core", "edge"]), "1.1.0": (1, ["edge"])},
            id="several Rollouts, each named once",
        ),
    ],
)
def test_versions_in_use(found: list[Needs], assignments: str, expected: dict[str, tuple[int, list[str]]]) -> None:
    usage = versions_in_use(found, REVISIONS, assignments.split())
    assert {version: (used.nodes, used.rollouts) for version, used in usage.items()} == expected


def test_of_many_rollouts_twenty_are_named() -> None:
    usage = versions_in_use([needs(f"edge-{n:02}", "1.0.0") for n in range(30)], REVISIONS, [])
    assert usage["1.0.0"].rollouts == [f"edge-{n:02}" for n in range(20)]


def run(kind: Any, version: str) -> RunStatus:
    return RunStatus(id=2, kind=kind, state="Running", version=version, revision="r2", started_at=NOW)


def batch(*backs: str) -> RolloutBatchSpec:
    nodes = [BatchNode(name=f"n{n}", uid=f"u{n}", origin="r1", to="r2", back=back) for n, back in enumerate(backs)]
    return RolloutBatchSpec(
        rollout="edge", run=2, kind="Rollout", version="1.1.0", batch=1, started_at=NOW, nodes=nodes
    )


STABLE = Revisions(stable="r1", stable_version="1.0.0", current="r2")


@pytest.mark.parametrize(
    ("status", "batches", "versions", "returns"),
    [
        pytest.param(RolloutStatus(), [], "1.2.0", "", id="a new Rollout"),
        pytest.param(RolloutStatus(revisions=STABLE), [], "1.2.0 1.0.0", "", id="what is stable"),
        pytest.param(RolloutStatus(run=run("Rollout", "1.1.0")), [], "1.2.0 1.1.0", "", id="what the run brings"),
        pytest.param(RolloutStatus(run=run("Rollback", "1.1.0")), [], "1.2.0", "", id="what a rollback takes away"),
        pytest.param(RolloutStatus(), [batch("r1", "none"), batch("r0")], "1.2.0", "r0 r1", id="the ways back"),
    ],
)
def test_what_a_rollout_needs(
    status: RolloutStatus, batches: list[RolloutBatchSpec], versions: str, returns: str
) -> None:
    found = find_needs("edge", make_spec("1.2.0"), status, batches)
    assert found == needs("edge", versions, returns)


def test_a_fleet_in_the_middle_needs_both_versions_and_later_one_way_back() -> None:
    fleet = Fleet(4, make_spec(strategy={"type": "Rolling", "rolling": {"batchSize": 1}}, runHistoryLimit=1))

    def used() -> dict[str, int]:
        kept = [stored.spec for stored in fleet.batches.values()]
        assignments = [found for name in fleet.nodes if (found := fleet.assignment(name))]
        mine = find_needs("agent", fleet.spec, fleet.status, kept)
        return {version: use.nodes for version, use in versions_in_use([mine], fleet.revisions, assignments).items()}

    fleet.settle()
    assert used() == {"1.0.0": 4}
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get("r-1.1.0", 0) == 2)
    assert used() == {"1.0.0": 2, "1.1.0": 2}
    fleet.settle()
    assert used() == {"1.0.0": 0, "1.1.0": 4}
    for version in ("1.2.0", "1.3.0"):
        fleet.change(version=version)
        fleet.settle()
    assert "1.0.0" not in used(), "nobody can return to it any more"
