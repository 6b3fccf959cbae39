"""The preview says what then happens: the same fleets, previewed and simulated."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.cli.previewing import render, to_value
from outrider.core.preview import Preview, preview_rollout, tell_seconds
from outrider.core.snapshot import Hindrance
from outrider.core.states import ONGOING
from simulation.fleet import KEY, Fleet, make_spec

CANARY = {
    "type": "Canary",
    "canary": {"steps": [{"nodes": 1, "soakSeconds": 600}, {"nodes": "10%", "failureTolerance": "50%"}]},
    "rolling": {"batchSize": "25%", "batchIntervalSeconds": 30},
}

strategies = st.one_of(
    st.builds(
        lambda size, interval: {"type": "Rolling", "rolling": {"batchSize": size, "batchIntervalSeconds": interval}},
        st.sampled_from([1, 2, 7, "10%", "34%", "100%"]),
        st.sampled_from([0, 20]),
    ),
    st.builds(lambda limit: {"type": "Full", "full": {"maxInFlight": limit}}, st.sampled_from([1, 3, "50%", "100%"])),
    st.builds(
        lambda steps, size: {"type": "Canary", "canary": {"steps": steps}, "rolling": {"batchSize": size}},
        st.lists(
            st.builds(
                lambda nodes, soak: {"nodes": nodes, "soakSeconds": soak},
                st.sampled_from([1, 2, "10%", "60%"]),
                st.sampled_from([0, 15]),
            ),
            min_size=1,
            max_size=3,
        ),
        st.sampled_from([1, 3, "20%"]),
    ),
)


def batches_of(preview: Preview) -> dict[int, list[str]]:
    return {step.batch: [move.node for move in step.moves] for step in preview.steps}


def batches_in(fleet: Fleet) -> dict[int, list[str]]:
    """Return who was moved in each batch of the newest run, in order."""
    found: dict[int, list[str]] = {}
    assert fleet.status.run is not None
    for batch in sorted(fleet.batches.values(), key=lambda b: (b.spec.batch, b.spec.page)):
        if batch.spec.run == fleet.status.run.id:
            states = {result.name: result.state for result in batch.status.nodes}
            moved = [entry.name for entry in batch.spec.nodes if states[entry.name] != "Skipped"]
            found.setdefault(batch.spec.batch, []).extend(moved)
    return {number: moved for number, moved in found.items() if moved}


def skipped_in(fleet: Fleet) -> dict[str, str]:
    assert fleet.status.run is not None
    last = {entry.name: (state, reason) for entry, state, reason in fleet.entries(fleet.status.run.id)}
    return {name: reason for name, (state, reason) in last.items() if state == "Skipped"}


@given(
    count=st.integers(1, 40),
    strategy=strategies,
    first=st.booleans(),
    away=st.sets(st.integers(0, 39), max_size=6),
    foreign=st.sets(st.integers(0, 39), max_size=6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12, deadline=None)
def test_a_healthy_fleet_does_what_its_preview_says(
    count: int, strategy: Mapping[str, Any], first: bool, away: set[int], foreign: set[int], seed: int
) -> None:
    fleet = Fleet(count, make_spec("1.0.0", strategy=strategy), seed=seed)
    if not first:
        fleet.settle()
        fleet.change(version="1.1.0")
    for index in away:
        if index < count:
            fleet.set_ready(f"node-{index:03}", False)
    for index in foreign:
        if index < count:
            fleet.label(f"node-{index:03}", {"kubernetes.io/os": "windows", "kubernetes.io/arch": "amd64"})
    only_linux = make_rules("linux/amd64") if foreign else None
    if only_linux is not None:
        for name in fleet.nodes:
            if "kubernetes.io/os" not in fleet.nodes[name].node.labels:
                fleet.label(name, {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"})
        fleet.rules[f"r-{fleet.spec.version}"] = only_linux
    preview = preview_rollout(fleet.snapshot(), node_seconds=3)
    assert preview_rollout(fleet.snapshot(), node_seconds=3, much=0) == preview, "of a large fleet it is the same"
    if preview.outcome == "Blocked":
        assert "no node can be moved now" in preview.message
        assert len(preview.left_out) == count
        return
    fleet.settle(until=has_ended)
    assert batches_of(preview) == batches_in(fleet)
    assert {out.node: out.reason for out in preview.left_out} == skipped_in(fleet)
    assert fleet.status.run is not None
    assert preview.run == fleet.status.run.id


def has_ended(fleet: Fleet) -> bool:
    """What comes after the run, such as nodes that are back, is no part of its preview."""
    run = fleet.status.run
    return run is not None and run.version == fleet.spec.version and run.state not in ONGOING


def make_rules(*platforms: str) -> Any:
    from outrider.core.compatibility import VersionRules

    return VersionRules(frozenset(platforms))


@pytest.mark.parametrize("passes", [1, 5, 12, 25])
def test_a_run_under_way_is_previewed_from_where_it_stands(passes: int) -> None:
    fleet = Fleet(20, make_spec("1.0.0"), seed=passes)
    fleet.settle()
    fleet.change(version="1.1.0", strategy=CANARY)
    for _ in range(passes):
        fleet.execute(fleet.plan())
        fleet.tick()
    finished = {b.spec.batch for b in fleet.batches.values() if b.spec.run == 2 and b.status.finished_at}
    preview = preview_rollout(fleet.snapshot(), node_seconds=3)
    fleet.settle()
    then = {number: nodes for number, nodes in batches_in(fleet).items() if number not in finished}
    assert batches_of(preview) == then
    assert preview.finished == len(finished)
    assert preview.outcome == "Completes"


def test_times_and_gates_are_told() -> None:
    fleet = Fleet(20, make_spec("1.0.0", strategy=CANARY, health={"timeoutSeconds": 60, "minReadySeconds": 2}))
    preview = preview_rollout(fleet.snapshot(), node_seconds=10)
    assert [(s.canary_step, s.starts, s.ends, len(s.moves), s.gates) for s in preview.steps] == [
        (1, 0, 12, 1, ("soak 10 min",)),
        (2, 612, 624, 2, ()),
        (0, 624, 636, 5, ("interval 30 s",)),
        (0, 666, 678, 5, ("interval 30 s",)),
        (0, 708, 720, 5, ("interval 30 s",)),
        (0, 750, 762, 2, ()),
    ]
    assert preview.seconds == 762
    assert preview.groups == {("", "1.0.0"): 20}
    assert preview.tolerance == (
        "0 nodes of 20 may fail; at one more all that the run moved goes back; canary step 1: 0 of 1, step 2: 1 of 2"
    )
    text = render(preview, "text", show_nodes=False)
    assert "run 1 would complete" in text
    assert "20  nothing → 1.0.0" in text
    assert "takes about 12 min 42 s" in text
    assert "3 to 5" in text, "batches that are alike are one line"
    assert "node-0" not in text
    assert all(name in render(preview, "text", show_nodes=True) for name in fleet.nodes)


def test_approvals_a_late_start_and_windows_are_told() -> None:
    gated = {
        "type": "Canary",
        "canary": {"steps": [{"nodes": 1, "requireApproval": True}, {"nodes": 2}]},
        "rolling": {"batchSize": 5},
    }
    fleet = Fleet(8, make_spec("1.0.0", strategy=gated, notBefore="2026-01-01T01:00:00Z"))
    preview = preview_rollout(fleet.snapshot())
    assert [step.gates for step in preview.steps] == [("approval: waits for a person",), (), ()]
    assert (preview.approvals, preview.outcome) == (1, "Completes")
    assert preview.steps[0].starts == 3600
    assert "starts at 2026-01-01 01:00 UTC, by spec.notBefore" in preview.before[0]
    assert "and what 1 approval takes" in render(preview, "text", show_nodes=False)
    assert any("approvals pass at once" in told for told in preview.assumptions)

    nights = [{"days": ["Thu", "Fri", "Sat"], "start": "22:00", "end": "22:01", "timeZone": "UTC"}]
    rolling = {"type": "Rolling", "rolling": {"batchSize": 3, "batchIntervalSeconds": 40}}
    fleet = Fleet(8, make_spec("1.0.0", strategy=rolling, windows=nights))  # it is Thursday, 0:00
    preview = preview_rollout(fleet.snapshot())
    assert preview.outcome == "Completes"
    assert [round(step.starts / 3600, 1) for step in preview.steps] == [22.0, 22.0, 46.0]
    assert any("spec.windows" in told for told in preview.before)
    assert any("spec.windows" in gate for gate in preview.steps[1].gates)
    never = [{"days": ["Mon"], "start": "22:00", "end": "23:00", "timeZone": "Mars/Olympus"}]
    fleet = Fleet(8, make_spec("1.0.0", strategy=rolling, windows=never))
    assert preview_rollout(fleet.snapshot()).reason == "WindowInvalid"


@pytest.mark.parametrize("limit", [1, 3, "30%"])
def test_a_sliding_window_takes_the_nodes_in_the_previewed_order(limit: int | str) -> None:
    fleet = Fleet(12, make_spec("1.0.0", strategy={"type": "Rolling", "rolling": {"maxUnavailable": limit}}))
    preview = preview_rollout(fleet.snapshot(), node_seconds=3)
    fleet.settle()
    said = [node for _, nodes in sorted(batches_of(preview).items()) for node in nodes]
    did = [node for _, nodes in sorted(batches_in(fleet).items()) for node in nodes]
    assert said == did
    assert preview.outcome == "Completes"


def test_nothing_to_do_and_hindrances_are_told() -> None:
    fleet = Fleet(3, make_spec("1.0.0"))
    fleet.settle()
    preview = preview_rollout(fleet.snapshot())
    assert (preview.outcome, preview.steps, preview.updated) == ("NothingToDo", (), 3)
    fleet.change(version="1.1.0")
    fleet.hindrance = Hindrance("VersionNotFound", "there is no ComponentVersion agent-1.1.0", stalled=True)
    preview = preview_rollout(fleet.snapshot())
    assert (preview.outcome, preview.reason) == ("Blocked", "VersionNotFound")
    assert "BLOCKED, VersionNotFound: there is no" in render(preview, "text", show_nodes=False)
    fleet.hindrance = None
    fleet.phases["1.1.0"] = "Deprecated"
    assert preview_rollout(fleet.snapshot()).reason == "VersionDeprecated"


def test_a_pause_is_told_and_what_would_come_after_it() -> None:
    fleet = Fleet(4, make_spec("1.0.0", paused=True))
    preview = preview_rollout(fleet.snapshot())
    assert preview.outcome == "Completes"
    assert preview.before == ("spec.paused is true: nothing is moved before it is false again",)


def test_a_preview_changes_nothing() -> None:
    fleet = Fleet(10, make_spec("1.0.0"))
    fleet.settle()
    fleet.change(version="1.1.0")
    before = fleet.snapshot()
    preview_rollout(before)
    assert fleet.snapshot() == before
    assert all(sim.node.labels[KEY] == "r-1.0.0" for sim in fleet.nodes.values())


def test_programs_get_all_of_it() -> None:
    fleet = Fleet(10, make_spec("1.0.0"))
    fleet.set_ready("node-003", False)
    value = to_value(preview_rollout(fleet.snapshot()))
    assert value["outcome"] == "Completes"
    assert value["moves"] == [{"from": None, "to": "1.0.0", "nodes": 9}]
    assert sum(len(batch["nodes"]) for batch in value["batches"]) == 9
    assert [out["node"] for out in value["leftOut"]] == ["node-003"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min"), (3600, "1 h"), (3725, "1 h 2 min"), (90061, "1 d 1 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert tell_seconds(seconds) == text
