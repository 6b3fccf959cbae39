"""Taking over a DaemonSet and giving it back, as stories. Never two agents on a node; no restart at the take-over."""

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.api.rollout import RolloutStatus
from outrider.core import plan as actions
from outrider.core.preview import preview_rollout
from outrider.core.snapshot import Hindrance, Node
from simulation.adopted import ORIGINAL_STRATEGY, AdoptedFleet, affinity
from simulation.fleet import KEY, make_spec

ADOPTION: dict[str, Any] = {"daemonSet": "old-agent"}
GIVE_BACK: dict[str, Any] = {"daemonSet": "old-agent", "giveBack": True}
ROLLING: dict[str, Any] = {"type": "Rolling", "rolling": {"batchSize": 3}}
CANARY: dict[str, Any] = {
    "type": "Canary",
    "canary": {"steps": [{"nodes": 1, "soakSeconds": 30}]},
    "rolling": {"batchSize": 3},
}
TEMPLATES: dict[str, dict[str, Any]] = {
    "without affinity": {"containers": []},
    "with an empty affinity": {"containers": [], "affinity": {}},
    "with two terms": {
        "containers": [],
        "affinity": affinity(
            [{"key": "zone", "operator": "DoesNotExist"}], [{"key": "zone", "operator": "In", "values": ["a"]}]
        ),
    },
}


def fleet_with(count: int = 10, template: dict[str, Any] | None = None, **spec: Any) -> AdoptedFleet:
    return AdoptedFleet(count, make_spec(**{"strategy": ROLLING, "adoption": ADOPTION, **spec}), template=template)


def state(fleet: AdoptedFleet) -> str:
    return fleet.status.adoption.state if fleet.status.adoption is not None else ""


def is_adopted(fleet: AdoptedFleet) -> bool:
    return state(fleet) == "Adopted"


def conditions(fleet: AdoptedFleet) -> dict[str, str]:
    return {c.type: c.reason for c in fleet.status.conditions if c.status == "True"}


def go_on(fleet: AdoptedFleet, steps: int) -> None:
    for _ in range(steps):
        fleet.execute(fleet.plan())
        fleet.tick()


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_take_over_restarts_nothing_and_then_nodes_move_by_label(template: dict[str, Any]) -> None:
    fleet = fleet_with(template=template, strategy=CANARY)
    before = fleet.uids()
    fleet.settle(until=lambda f: is_adopted(f) and f.assignments() == {"legacy": 10})  # type: ignore[arg-type]
    assert fleet.uids() == before
    assert fleet.ended == []
    assert "Adopted" in {event.reason for event in fleet.events}
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}
    assert fleet.legacy_pods == {}
    assert sorted(fleet.ended) == sorted(before), "each ended once"
    assert fleet.status.revisions is not None
    assert fleet.status.revisions.stable == "r-1.0.0"
    assert {entry.origin for entry, _, _ in fleet.entries(1)} == {"legacy"}
    assert fleet.status.adoption is not None
    assert "delete it, then remove spec.adoption" in fleet.status.adoption.message


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_given_back_the_daemonset_is_as_it_was_and_pods_that_never_left_stay(template: dict[str, Any]) -> None:
    fleet = fleet_with(template=template, strategy=CANARY)
    original = copy.deepcopy(fleet.body)
    before = fleet.uids()
    fleet.settle(until=lambda f: f.assignments().get("r-1.0.0", 0) == 4)
    stayed = {name: uid for name, uid in before.items() if fleet.assignment(name) == "legacy"}
    fleet.change(adoption=GIVE_BACK)
    fleet.settle(until=lambda f: f.assignments() == {"None": 10})
    go_on(fleet, 5)
    assert state(fleet) == "GivenBack"
    assert conditions(fleet)["Ready"] == "GivenBack"
    assert fleet.body is not None
    assert original is not None
    assert fleet.body["spec"] == original["spec"], "byte by byte: its hash is the old one"
    assert fleet.body["metadata"]["annotations"] == original["metadata"]["annotations"]
    assert {name: fleet.uids()[name] for name in stayed} == stayed
    assert len(fleet.legacy_pods) == 10
    assert fleet.plan().actions == ()
    records = [(entry.origin, entry.to) for entry, _, _ in fleet.entries(2)]
    assert records == [("r-1.0.0", "legacy")] * 4


def test_given_back_and_taken_over_again() -> None:
    fleet = fleet_with()
    fleet.settle()
    fleet.change(adoption=GIVE_BACK)
    fleet.settle(until=lambda f: state(f) == "GivenBack" and f.assignments() == {"None": 10})  # type: ignore[arg-type]
    uids = fleet.uids()
    fleet.change(adoption=ADOPTION)
    fleet.settle(until=is_adopted)  # type: ignore[arg-type]
    assert fleet.uids() == uids
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}


def test_a_first_version_that_fails_brings_nodes_back_to_the_daemonset() -> None:
    fleet = fleet_with(strategy=CANARY)
    fleet.behaviour = lambda _node, revision: "healthy" if revision == "legacy" else "crash-loop"
    fleet.settle()
    assert fleet.assignments() == {"legacy": 10}
    assert fleet.status.phase == "RolledBack"
    assert len(fleet.ended) == 1, "the canary's only"
    assert [(e.to, s) for e, s, _ in fleet.entries(2)] == [("legacy", "Succeeded")]
    fleet.behaviour = lambda _node, _revision: "healthy"
    fleet.change(version="1.0.1")
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.1": 10}


def test_a_node_that_fails_within_the_tolerance_returns_to_the_daemonset() -> None:
    fleet = fleet_with(strategy={**ROLLING, "failureTolerance": 1})
    fleet.behaviour = lambda node, revision: "crash-loop" if (node, revision) == ("node-003", "r-1.0.0") else "healthy"
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 9, "legacy": 1}
    assert fleet.assignment("node-003") == "legacy"
    assert set(fleet.legacy_pods) == {"node-003"}
    assert [(s, r) for e, s, r in fleet.entries(1) if e.name == "node-003"] == [("RolledBack", "TooManyRestarts")]


def test_who_joins_gets_the_old_agent_until_a_run_has_completed_and_the_stable_version_after_that() -> None:
    fleet = fleet_with(strategy=CANARY)
    fleet.settle(until=lambda f: f.assignments().get("r-1.0.0", 0) == 1)
    fleet.join("early")
    fleet.settle(until=lambda f: f.assignment("early") == "legacy", limit=10)
    fleet.settle()
    go_on(fleet, 5)
    assert fleet.assignments() == {"r-1.0.0": 11}
    assert fleet.joiners != []
    assert fleet.body is not None
    fleet.join("late")
    go_on(fleet, 10)
    assert fleet.assignment("late") == "r-1.0.0"
    assert "late" not in fleet.ended, "the old agent never came there"


def test_nodes_beyond_the_target_keep_the_old_agent_and_so_do_new_ones() -> None:
    fleet = fleet_with()
    fleet.outsiders["beyond"] = Node("beyond", "uid-beyond", {}, ready=True)
    fleet.settle()
    go_on(fleet, 5)
    assert fleet.joiners == []
    fleet.join("late")
    fleet.tick()
    go_on(fleet, 15)
    assert fleet.assignment("late") == "r-1.0.0"
    assert fleet.ended[-1] == "late", "by way of the old agent"
    fleet.outsiders.clear()
    go_on(fleet, 5)
    assert fleet.joiners != []
    fleet.outsiders["beyond"] = Node("beyond", "uid-beyond", {}, ready=True)
    go_on(fleet, 8)
    assert fleet.joiners == []
    assert fleet.look(fleet.snapshot()).serves_others


def test_a_dead_node_holds_the_giving_back_until_it_returns() -> None:
    fleet = fleet_with()
    fleet.settle()
    fleet.set_ready("node-004", False)
    fleet.change(adoption=GIVE_BACK)
    go_on(fleet, 150)
    assert state(fleet) == "GivingBack"
    assert fleet.status.adoption is not None
    assert "node-004" in fleet.status.adoption.message
    assert fleet.body is not None
    assert fleet.body["spec"]["updateStrategy"] == {"type": "OnDelete"}
    fleet.set_ready("node-004", True)
    fleet.settle(until=lambda f: f.assignments() == {"None": 10})
    go_on(fleet, 3)
    assert state(fleet) == "GivenBack"


def test_a_pause_holds_the_giving_back() -> None:
    fleet = fleet_with()
    fleet.settle()
    fleet.change(adoption=GIVE_BACK, paused=True)
    go_on(fleet, 10)
    assert fleet.assignments() == {"r-1.0.0": 10}
    fleet.change(paused=False)
    fleet.settle(until=lambda f: f.assignments() == {"None": 10})


def test_frozen_nothing_is_taken_over_and_what_is_reverted_is_put_back_all_the_same() -> None:
    fleet = fleet_with(frozen=True)
    go_on(fleet, 5)
    assert (state(fleet), fleet.patches) == ("", [])
    fleet.change(frozen=False, paused=True)
    fleet.settle(until=is_adopted)  # type: ignore[arg-type]
    fleet.change(frozen=True)
    fleet.revert("helm", affinity=None)
    go_on(fleet, 3)
    assert fleet.body is not None
    assert "affinity" in fleet.body["spec"]["template"]["spec"]


def test_who_changes_his_mind_while_it_is_given_back_gets_a_run_again() -> None:
    fleet = fleet_with()
    fleet.settle()
    fleet.change(adoption=GIVE_BACK)
    fleet.settle(until=lambda f: f.assignments().get("legacy", 0) == 3)
    fleet.change(adoption=ADOPTION)
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}
    assert fleet.status.phase == "Completed"


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "none of that name": ({"body": None}, "does not exist"),
    "one of ours": ({"ours": True}, "one of Outrider's own"),
    "another controller's": ({"controller": "Agent old"}, "belongs to Agent old"),
    "another adoption's": ({"annotations": {"outrider.dev/adopted-by": "other"}}, "taken over by Rollout other"),
    "pinned": ({"pod": {"nodeName": "node-001"}}, "nodeName"),
    "not everywhere": ({"pod": {"nodeSelector": {"pool": "x"}}}, "does not serve 10 of the 10 nodes"),
    "our key used otherwise": (
        {"pod": {"affinity": affinity([{"key": KEY, "operator": "Exists"}])}},
        "node affinity terms about",
    ),
    "refused by the API server": ({"problem": "no, says a webhook"}, "no, says a webhook"),
    "being deleted": ({"deleting": True}, "is being deleted"),
}


@pytest.mark.parametrize(("seen", "words"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_taken_over_is_refused_before_anything_is_touched(
    seen: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_with()
    if "body" in seen:
        fleet.remove()
    else:
        look = fleet.look
        monkeypatch.setattr(fleet, "look", lambda s: type(look(s))(**{**_fields(look(s)), **seen}))
    go_on(fleet, 5)
    assert state(fleet) == "Refused"
    assert fleet.status.adoption is not None
    assert words in fleet.status.adoption.message
    assert conditions(fleet)["Stalled"] == "AdoptionRefused"
    assert (fleet.patches, fleet.batches, fleet.joiners) == ([], {}, [])
    assert len(fleet.history) <= 1


def _fields(legacy: Any) -> dict[str, Any]:
    return {name: getattr(legacy, name) for name in legacy.__slots__}


def test_nodes_that_run_both_agents_already_are_refused() -> None:
    fleet = fleet_with()
    fleet.revisions["r-0.9.0"] = "0.9.0"
    fleet.tolerates_two = True
    fleet.label("node-001", {KEY: "r-0.9.0"})
    fleet.tick()
    go_on(fleet, 3)
    assert fleet.status.adoption is not None
    assert "remove one of the two agents" in fleet.status.adoption.message


def test_what_an_earlier_rollout_left_without_an_agent_is_labelled_before_the_patch() -> None:
    fleet = fleet_with()
    fleet.label("node-001", {KEY: "none"})
    before = fleet.uids()
    fleet.settle(until=is_adopted)  # type: ignore[arg-type]
    assert fleet.uids() == before
    assert fleet.ended == []


def test_nothing_is_taken_over_for_a_version_that_is_not_there() -> None:
    fleet = fleet_with()
    fleet.hindrance = Hindrance("VersionNotFound", "there is none", stalled=True)
    go_on(fleet, 5)
    assert fleet.history[0]["metadata"]["generation"] == 1
    assert fleet.patches == []
    fleet.hindrance = None
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}


@pytest.mark.parametrize("part", ["strategy", "affinity"])
def test_an_owner_who_reverts_is_named_and_the_patch_is_made_again(part: str) -> None:
    fleet = fleet_with(strategy=CANARY)
    fleet.settle(until=lambda f: f.assignments().get("r-1.0.0", 0) == 1)
    go_on(fleet, 3)
    fleet.tolerates_two = part == "affinity"
    fleet.revert("argocd-controller", **({"strategy": ORIGINAL_STRATEGY} if part == "strategy" else {"affinity": None}))
    plan = fleet.plan()
    assert [type(action) for action in plan.actions][:1] == [actions.ChangeAdopted], "at once, in the same pass"
    assert plan.moves == ()
    go_on(fleet, 12)
    fleet.tolerates_two = False
    fleet._check_one_agent()
    assert conditions(fleet)["AdoptionReverted"] == "AdoptionReverted"
    message = next(c.message for c in fleet.status.conditions if c.type == "AdoptionReverted")
    assert "argocd-controller took back" in message
    assert "AdoptionReverted" in {event.reason for event in fleet.events}
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}
    go_on(fleet, 650)
    assert "AdoptionReverted" not in conditions(fleet)


def test_an_owner_who_reverts_again_and_again_is_answered_less_often_and_nothing_moves() -> None:
    fleet = fleet_with(strategy=CANARY)
    fleet.settle(until=lambda f: f.assignments().get("r-1.0.0", 0) == 1)
    fleet.tolerates_two = True
    patches = 0
    for _ in range(120):
        if fleet.body is not None and fleet.body["spec"]["updateStrategy"] == {"type": "OnDelete"}:
            patches += 1
            fleet.revert("helm", strategy=ORIGINAL_STRATEGY, affinity=None)
        go_on(fleet, 1)
    assert 3 < patches < 12
    assert fleet.assignments() == {"r-1.0.0": 1, "legacy": 9}
    assert conditions(fleet)["Stalled"] == "AdoptionReverted"


def test_a_daemonset_that_its_owner_creates_anew_is_patched_at_once() -> None:
    fleet = fleet_with(strategy=CANARY)
    fleet.settle(until=lambda f: f.assignments().get("r-1.0.0", 0) == 1)
    fleet.tolerates_two = True
    fleet.install({"containers": []}, uid="another")
    go_on(fleet, 12)
    fleet.tolerates_two = False
    fleet._check_one_agent()
    assert fleet.status.adoption is not None
    assert fleet.status.adoption.uid == "another"


def test_the_owners_later_wishes_are_what_is_restored() -> None:
    fleet = fleet_with()
    fleet.settle(until=is_adopted)  # type: ignore[arg-type]
    wish = affinity([{"key": "gpu", "operator": "DoesNotExist"}])
    fleet.revert("helm", affinity=wish, strategy={"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}})
    go_on(fleet, 3)
    fleet.change(adoption=GIVE_BACK)
    fleet.settle(until=lambda f: state(f) == "GivenBack")  # type: ignore[arg-type]
    assert fleet.body is not None
    assert fleet.body["spec"]["template"]["spec"]["affinity"] == wish
    assert fleet.body["spec"]["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 2}


def test_a_daemonset_that_is_deleted_half_way_does_not_hold_the_run() -> None:
    fleet = fleet_with(strategy=CANARY)
    fleet.settle(until=lambda f: f.assignments().get("r-1.0.0", 0) == 1)
    fleet.remove()
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}
    assert state(fleet) == "Gone"


def test_removing_spec_adoption_changes_nothing() -> None:
    fleet = fleet_with(strategy=CANARY)
    fleet.settle(until=lambda f: f.assignments().get("r-1.0.0", 0) == 1)
    fleet.spec = make_spec(strategy=CANARY)
    fleet.generation += 1
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}
    assert is_adopted(fleet)


def test_deleted_while_all_nodes_are_still_on_it_the_daemonset_is_given_back() -> None:
    fleet = fleet_with(paused=True)
    original = copy.deepcopy(fleet.body)
    fleet.settle(until=is_adopted)  # type: ignore[arg-type]
    before = fleet.uids()
    fleet.deleting = True
    for _ in range(10):
        if not fleet.let_go:
            fleet.execute(fleet.plan())
            fleet.tick()
    assert fleet.let_go
    assert fleet.assignments() == {"None": 10}
    assert fleet.uids() == before
    assert fleet.body is not None
    assert original is not None
    assert fleet.body["spec"] == original["spec"]


def test_deleted_half_way_all_stays_and_a_new_rollout_of_that_name_takes_it_over() -> None:
    fleet = fleet_with(strategy=CANARY)
    fleet.settle(until=lambda f: f.assignments().get("r-1.0.0", 0) == 1)
    go_on(fleet, 3)
    before = fleet.uids()
    fleet.deleting = True
    go_on(fleet, 5)
    assert fleet.let_go
    assert "StaysAdopted" in {event.reason for event in fleet.events}
    assert fleet.uids() == before
    assert fleet.assignments() == {"r-1.0.0": 1, "legacy": 9}

    # Without spec.adoption nothing is moved: nobody could see the old agents.
    fleet.deleting, fleet.let_go, fleet.status, fleet.batches = False, False, RolloutStatus(), {}
    fleet.spec = make_spec(strategy=CANARY)
    go_on(fleet, 5)
    assert conditions(fleet)["Stalled"] == "AdoptionMissing"
    assert fleet.uids() == before

    fleet.spec = make_spec(strategy=CANARY, adoption=ADOPTION)
    fleet.settle()
    assert fleet.assignments() == {"r-1.0.0": 10}


def delete(fleet: AdoptedFleet) -> None:
    fleet.deleting = True
    for _ in range(40):
        if fleet.let_go:
            return
        fleet.execute(fleet.plan())
        fleet.tick()
    raise AssertionError("the Rollout does not go")


def test_deleted_with_all_its_agents_the_old_ones_come_back() -> None:
    fleet = fleet_with(strategy=CANARY, deletionPolicy="Delete")
    original = copy.deepcopy(fleet.body)
    fleet.settle(until=lambda f: f.assignments().get("r-1.0.0", 0) == 4)
    go_on(fleet, 3)
    stayed = {name: uid for name, uid in fleet.uids().items() if fleet.assignment(name) == "legacy"}
    delete(fleet)
    for _ in range(10):
        fleet.tick()
    assert fleet.assignments() == {"None": 10}
    assert fleet.body is not None
    assert original is not None
    assert fleet.body["spec"] == original["spec"]
    assert fleet.uids().items() >= stayed.items()
    assert len(fleet.uids()) == 10


def test_deleted_after_its_run_nodes_that_join_get_the_old_agent_and_not_none() -> None:
    fleet = fleet_with()
    fleet.settle()
    go_on(fleet, 5)
    assert fleet.joiners != []
    delete(fleet)
    assert fleet.joiners == []
    fleet.join("late")
    for _ in range(10):
        fleet.tick()
    assert set(fleet.uids()) == {"late"}


def test_a_problem_with_the_patch_does_not_hold_a_deletion() -> None:
    fleet = fleet_with(paused=True)
    fleet.settle(until=is_adopted)  # type: ignore[arg-type]
    fleet.problem = "no, says a webhook"
    fleet.deleting = True
    go_on(fleet, 3)
    assert fleet.let_go


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_happens_a_node_never_runs_two_agents(data: st.DataObject) -> None:
    """Crashes at any line, bad versions, dead nodes, joiners, changes of mind: the invariants are checked at each step.

    In the fleet: one agent on a node at most, records before moves, the same plan for the same snapshot.
    """
    draw = data.draw
    fleet = AdoptedFleet(
        draw(st.integers(3, 8)),
        make_spec(strategy={**ROLLING, "failureTolerance": draw(st.integers(0, 2))}, adoption=ADOPTION),
        seed=draw(st.integers(0, 1000)),
        lag=draw(st.sampled_from([0, 1])),
        template=draw(st.sampled_from(list(TEMPLATES.values()))),
    )
    bad = draw(st.sets(st.sampled_from(sorted(fleet.nodes)), max_size=2))
    fleet.behaviour = lambda n, r: "crash-loop" if n in bad and r == "r-1.1.0" else "healthy"
    version = 0
    for index in range(draw(st.integers(10, 60))):
        plan = fleet.plan()
        steps = len(plan.actions) + 1
        crash = draw(st.one_of(st.none(), st.integers(0, steps))) if plan.actions else None
        fleet.execute(plan, crash_after=crash)
        fleet.tick(draw(st.sampled_from([0.2, 1.0, 4.0])))
        match draw(st.integers(0, 30)):
            case 0:
                fleet.join(f"late-{index}")
            case 1:
                name = draw(st.sampled_from(sorted(fleet.nodes)))
                fleet.set_ready(name, not fleet.nodes[name].node.ready)
            case 2:
                version = 1 - version
                fleet.change(version=f"1.{version}.0")
            case 3:
                fleet.change(adoption=draw(st.sampled_from([ADOPTION, GIVE_BACK])))
            case 4:
                fleet.outsiders = {} if fleet.outsiders else {"beyond": Node("beyond", "u", {}, ready=True)}
            case _:
                pass
    for name in fleet.nodes:
        fleet.set_ready(name, True)
    fleet.change(adoption=GIVE_BACK)
    fleet.settle(until=lambda f: state(f) == "GivenBack" and set(f.assignments()) == {"None"})  # type: ignore[arg-type]
    go_on(fleet, 10)
    assert set(fleet.legacy_pods) == set(fleet.nodes)


def test_a_preview_gives_back_too() -> None:
    fleet = fleet_with(7)
    fleet.settle(until=is_adopted)  # type: ignore[arg-type]
    fleet.settle()
    fleet.change(adoption=GIVE_BACK)
    preview = preview_rollout(fleet.snapshot())
    assert (preview.outcome, preview.reason) == ("Completes", "")
    assert [len(step.moves) for step in preview.steps] == [3, 3, 1]
    assert {(move.from_version, move.to_version) for step in preview.steps for move in step.moves} == {
        ("1.0.0", "legacy")
    }
    fleet.settle(until=lambda f: state(f) == "GivenBack")  # type: ignore[arg-type]
    assert preview_rollout(fleet.snapshot()).outcome == "NothingToDo"
    fleet.change(adoption=ADOPTION)
    assert preview_rollout(fleet.snapshot()).outcome == "Completes"


def test_a_preview_takes_over_too() -> None:
    fleet = fleet_with(strategy=CANARY)
    preview = preview_rollout(fleet.snapshot())
    assert preview.outcome == "Completes"
    assert [len(step.moves) for step in preview.steps] == [1, 3, 3, 3]
    assert {move.from_version for step in preview.steps for move in step.moves} == {"legacy"}
    fleet.problem = "no, says a webhook"
    refused = preview_rollout(fleet.snapshot())
    assert (refused.outcome, refused.reason) == ("Blocked", "AdoptionRefused")
