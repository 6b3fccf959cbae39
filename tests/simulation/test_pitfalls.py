"""What went wrong in comparable systems, each by the name that docs/guarantees.md gives it, and that it does not here.

Many pitfalls are the subject of tests elsewhere; the table there names those, too.
"""

import ast
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from outrider.api.rollout import RolloutBatchStatus, RolloutStatus
from outrider.core import plan as actions
from outrider.core import rollout
from outrider.core.moves import is_leaving
from outrider.core.plan import Plan
from outrider.core.snapshot import Hindrance
from outrider.reconcile.projections import project_pod
from simulation.fleet import KEY, START, Fleet, make_spec
from simulation.trial import World

ROOT = Path(__file__).resolve().parent.parent.parent
OLD, NEW = "r-1.0.0", "r-1.1.0"
ROLLING: dict[str, Any] = {"type": "Rolling", "rolling": {"batchSize": 3}}
TOLERANT: dict[str, Any] = {**ROLLING, "failureTolerance": "50%"}


def installed(count: int = 9, **changes: Any) -> Fleet:
    fleet = Fleet(count, make_spec(**{"strategy": ROLLING, **changes}))
    fleet.settle()
    fleet.patches.clear()
    return fleet


def moving(count: int = 9, **changes: Any) -> Fleet:
    """A fleet of which the first batch runs 1.1.0, and the second has just begun to move."""
    fleet = installed(count, **changes)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 3 and any(map(is_leaving, f.assignments())))
    return fleet


def go_on(fleet: Fleet, steps: int) -> list[Plan]:
    plans = []
    for _ in range(steps):
        plans.append(fleet.plan())
        fleet.execute(plans[-1])
        fleet.tick()
    return plans


def results(fleet: Fleet, run: int) -> dict[str, tuple[str, str]]:
    return {entry.name: (state, reason) for entry, state, reason in fleet.entries(run)}


# --- races with the DaemonSet controller ------------------------------------------------------------------------------


def test_template_flip() -> None:
    """Pods that are lost outside the batch come back as what their own node runs, on every node, at any moment."""
    fleet = moving()
    fleet.change(paused=True)
    go_on(fleet, 15)
    before = {name: fleet.assignment(name) for name in fleet.nodes}
    for _ in range(3):
        for name in fleet.nodes:
            fleet.lose_pod(name)
        go_on(fleet, 8)
        assert {name: [pod.revision for pod in sim.pods] for name, sim in fleet.nodes.items()} == {
            name: [assignment] for name, assignment in before.items()
        }


def test_acting_twice_on_a_stale_cache() -> None:
    """A plan that is executed when the world has gone on changes no node."""
    fleet = moving()
    stale = [plan for plan in go_on(fleet, 40) if plan.moves]
    assert len(stale) > 4
    fleet.settle()
    before = {name: fleet.assignment(name) for name in fleet.nodes}
    for plan in stale:
        for move in plan.moves:
            fleet._do(move)
    assert {name: fleet.assignment(name) for name in fleet.nodes} == before


def test_somebody_else_edits_the_same_object() -> None:
    """A label that changed between look and patch is not overwritten, and the node is looked at again."""
    fleet = moving()
    fleet.settle(until=lambda f: bool(f.plan().moves))
    plan = fleet.plan()
    victim = plan.moves[0].node
    fleet.lose_pod(victim)
    fleet.label(victim, {KEY: "none"})
    fleet.execute(plan)
    assert fleet.assignment(victim) == "none"
    fleet.settle()
    assert results(fleet, 2)[victim] in {("Skipped", "AssignmentChanged"), ("Succeeded", "")}


def test_a_stale_label_starts_or_skips_work() -> None:
    """A node on its way to something that nobody knows any more is brought to the stable revision, and no further."""
    fleet = installed()
    fleet.lose_pod("node-004")
    fleet.label("node-004", {KEY: "to-r-of-a-life-before"})
    go_on(fleet, 20)
    assert fleet.assignments() == {OLD: 9}
    assert {patch.node for patch in fleet.patches} == {"node-004"}


# --- budget and batch arithmetic --------------------------------------------------------------------------------------


def test_unavailable_old_pods_are_all_replaced_at_once() -> None:
    """Agents that are broken before we come are moved in batches like all others: the cap is on moves."""
    fleet = installed()
    for sim in fleet.nodes.values():
        for pod in sim.pods:
            pod.behaviour = "never-ready"
    go_on(fleet, 3)
    fleet.change(version="1.1.0")
    for _ in range(60):
        go_on(fleet, 1)
        touched = [name for name in fleet.nodes if fleet.assignment(name) != OLD]
        done = [name for name in touched if results(fleet, 2).get(name, ("", ""))[0] == "Succeeded"]
        assert len(touched) - len(done) <= 3
    assert fleet.status.phase == "Completed"


def test_a_percentage_of_a_changing_total() -> None:
    """What percentages are of is fixed when the run starts, whatever joins and goes meanwhile."""
    fleet = installed(10, strategy={"type": "Rolling", "rolling": {"batchSize": "20%"}, "failureTolerance": "10%"})
    fleet.change(version="1.1.0")
    go_on(fleet, 4)
    for index in range(30):
        fleet.join(f"joined-{index}")
    fleet.settle()
    sizes = [len(batch.spec.nodes) for batch in fleet.batches.values() if batch.spec.run == 2]
    assert set(sizes) == {2}
    assert fleet.status.run is not None
    assert fleet.status.run.nodes == 10


def test_zero_from_rounding_down() -> None:
    """A percentage of few nodes moves at least one, and tolerates none."""
    strategy = {"type": "Canary", "canary": {"steps": [{"nodes": "1%"}]}, "rolling": {"batchSize": "1%"}}
    fleet = installed(3, strategy={**strategy, "failureTolerance": "30%"})
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {NEW: 3}
    fleet.behaviour = lambda node, revision: "crash-loop" if revision == "r-1.2.0" else "healthy"
    fleet.change(version="1.2.0")
    fleet.settle()
    assert fleet.status.phase == "RolledBack"


def test_node_churn_inside_a_batch() -> None:
    """Gone before its move: left out. Gone in it: failed. Back under its name: another node. Joined: a late batch."""
    fleet = installed(9, strategy={**ROLLING, "failureTolerance": 1})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(state == "Stopping" for _, state, _ in f.entries(2)))
    fleet.settle(until=lambda f: any(f.assignment(n) == NEW for n in f.nodes))
    in_it = next(name for name in fleet.nodes if fleet.assignment(name) == NEW)
    before_it = next(name for name in fleet.nodes if fleet.assignment(name) == OLD)
    fleet.leave(in_it)
    fleet.leave(before_it)
    fleet.join(in_it)
    fleet.join("late")
    fleet.settle()
    assert fleet.assignments() == {NEW: 9}
    states = [
        (e.name, e.uid == fleet.nodes[e.name].node.uid, s, r) for e, s, r in fleet.entries(2) if e.name in fleet.nodes
    ]
    assert (in_it, False, "Failed", "NodeGone") in states
    assert (in_it, True, "Succeeded", "") in states
    assert fleet.status.run is not None
    assert fleet.status.run.failed == 1


def test_an_empty_group_finishes_at_once() -> None:
    """A fleet without nodes does not complete; a canary step whose nodes could not be moved is taken with others."""
    fleet = Fleet(0, make_spec(strategy=ROLLING))
    fleet.hindrance = Hindrance("EmptyTarget", "no node matches", stalled=True)
    go_on(fleet, 3)
    assert fleet.status.run is None
    assert fleet.status.phase == "Stalled"
    fleet = installed(6, strategy={"type": "Canary", "canary": {"steps": [{"nodes": 1}]}, "rolling": {"batchSize": 5}})
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(b.spec.run == 2 for b in f.batches.values()))
    [first] = [batch.spec.nodes[0].name for batch in fleet.batches.values() if batch.spec.run == 2]
    fleet.set_ready(first, False)  # it dies before its move
    go_on(fleet, 2)
    assert results(fleet, 2)[first][0] == "Skipped"
    fleet.settle()
    assert fleet.status.phase == "RolledBack"
    assert len({patch.node for patch in fleet.patches if patch.after == NEW}) == 1, "no more than the canary"


# --- failure detection ------------------------------------------------------------------------------------------------


def test_a_canary_that_is_never_ready_is_promoted_by_time() -> None:
    fleet = installed(9, strategy={"type": "Canary", "canary": {"steps": [{"nodes": 1, "soakSeconds": 5}]}})
    fleet.behaviour = lambda _node, revision: "never-ready" if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "RolledBack"
    assert len({patch.node for patch in fleet.patches if patch.after == NEW}) == 1


def test_flapping_resets_the_deadline() -> None:
    """An agent that is Ready now and then, never for long enough, fails when its time since its move is over."""
    fleet = installed(3, health={"timeoutSeconds": 60, "minReadySeconds": 10})
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: any(f.assignment(n) == NEW for n in f.nodes))
    begun = fleet.now
    for step in range(200):
        go_on(fleet, 1)
        for sim in fleet.nodes.values():
            for pod in sim.pods:
                if pod.revision == NEW:
                    pod.behaviour = "healthy" if step % 8 < 4 else "never-ready"
        if fleet.status.run is not None and fleet.status.run.kind == "Rollback":
            break
    assert 55 <= (fleet.now - begun).total_seconds() <= 75


@pytest.mark.parametrize(
    "what",
    [
        "the version is withdrawn",
        "another node hangs",
        "the registry is down",
        "patches are refused",
        "another hindrance",
    ],
)
def test_a_deadline_that_is_checked_too_late(what: str) -> None:
    """A node that does not get healthy fails in its time, whatever else hangs meanwhile."""
    fleet = installed(6, strategy=TOLERANT)
    fleet.behaviour = lambda _node, revision: "never-ready" if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) >= 1)
    victim = next(name for name in fleet.nodes if fleet.assignment(name) == NEW)
    match what:
        case "the version is withdrawn":
            fleet.phases["1.1.0"] = "Withdrawn"
        case "another node hangs":
            for name, sim in fleet.nodes.items():
                if is_leaving(fleet.assignment(name)):
                    for pod in sim.pods:
                        pod.gone_at = 1e9
        case "the registry is down":
            fleet.fresh_seconds, fleet.registry_is_down = 1.0, True
        case "another hindrance":
            fleet.hindrance = Hindrance("TemplateInvalid", "refused", stalled=True)
        case _:
            fleet._do = lambda action: None if isinstance(action, actions.Assign) else Fleet._do(fleet, action)  # type: ignore[method-assign]
    begun = fleet.now
    while results(fleet, 2)[victim][0] not in {"Failed", "Returning"}:
        go_on(fleet, 1)
        assert (fleet.now - begun).total_seconds() < 70
    assert results(fleet, 2)[victim][1] == "HealthTimeout"


def test_the_order_of_policies_lets_deadlines_fire_first() -> None:
    names = [policy.__name__ for policy in rollout.POLICIES]
    assert names.index("judge_nodes") < min(names.index(name) for name in ("let_go", "supersede", "hold"))


def test_restarts_of_the_pod_before_are_counted() -> None:
    before = project_pod(pod("a", restarts=7), None, START)
    after = project_pod(pod("b", restarts=0), before, START + timedelta(seconds=60))
    assert (before.pod.restarts, after.pod.restarts) == (7, 0)


# --- stuck pods -------------------------------------------------------------------------------------------------------


def test_a_pod_that_does_not_end_holds_its_node_for_ever() -> None:
    """Its node fails in its time and frees its place; no pod is deleted by force, there is no action for it."""
    fleet = installed(6, strategy=TOLERANT)
    for pod_ in fleet.nodes["node-002"].pods:
        pod_.gone_at = 1e9
    fleet.change(version="1.1.0")
    fleet.settle(
        until=lambda f: (
            results(f, 2).get("node-002", ("", ""))[1] == "StuckTerminating"
            and results(f, 2)["node-002"][0] != "Stopping"
        )
    )
    fleet.settle(until=lambda f: f.assignments().get(NEW, 0) == 5)
    assert not [action for action in get_args(actions.Action) if "Pod" in action.__name__]


def test_a_pending_pod_names_no_node() -> None:
    """A DaemonSet's pod has no nodeName until it is scheduled; which node it is for stands in its affinity."""
    body = pod("a")
    del body["spec"]["nodeName"]
    body["spec"]["affinity"] = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n7"]}]}]
            }
        }
    }
    assert project_pod(body, None, START).pod.node == "n7"


def test_a_hot_loop_of_lost_pods() -> None:
    """We make no pods, so nothing of ours can loop: pods that are lost again and again cause no write."""
    fleet = installed()
    for index in range(50):
        fleet.lose_pod(f"node-{index % 9:03}")
        [plan] = go_on(fleet, 1)
        assert plan.actions == ()


# --- status and storage -----------------------------------------------------------------------------------------------


def test_every_event_of_a_node_is_a_write() -> None:
    """Records are written together, now and then: far fewer writes than events of nodes and pods."""
    strategy = {"type": "Rolling", "rolling": {"batchSize": "100%"}}
    world = World(100, make_spec(strategy=strategy), seed=1)
    writes = {"records": 0, "status": 0}
    store, tell = world._store, world._tell

    def count_record(name: str) -> None:
        writes["records"] += 1
        store(name)

    def count_status(status: RolloutStatus) -> None:
        writes["status"] += world.status != status
        tell(status)

    world._store, world._tell = count_record, count_status  # type: ignore[method-assign]
    moves = 0
    for _ in range(60):
        for action, do in world.deeds(world.plan()):
            moves += isinstance(action, actions.Assign)
            do()
        world.tick()
    assert world.status.phase == "Completed"
    assert moves == 100
    assert writes["records"] + writes["status"] < 30


def test_fields_that_are_never_written() -> None:
    """Every field that a status promises is given a value somewhere in the code that decides."""
    written: set[str] = set()
    for path in sorted((ROOT / "operator" / "outrider" / "core").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(keywords=keywords):
                    written |= {keyword.arg for keyword in keywords if keyword.arg}
                case ast.Dict(keys=keys):
                    written |= {str(key.value) for key in keys if isinstance(key, ast.Constant)}
                case _:
                    pass
    promised = {
        f"{model.__name__}.{name}"
        for model in models_in(RolloutStatus, RolloutBatchStatus)
        for name in model.model_fields
    }
    assert {field for field in promised if field.split(".")[1] not in written} == set()


def models_in(*models: type[BaseModel]) -> set[type[BaseModel]]:
    """Return some models and all that are fields of theirs."""
    found: set[type[BaseModel]] = set()
    pending: list[Any] = list(models)
    while pending:
        kind = pending.pop()
        pending += get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in found:
            found.add(kind)
            pending += [field.annotation for field in kind.model_fields.values()]
    return found


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_the_kubelet_rewrites_its_times() -> None:
    """Since when a pod is Ready is our own observation: neither a skewed clock nor a restarted kubelet changes it."""
    first = project_pod(pod("a", ready="2031-01-01T00:00:00Z"), None, START)
    assert first.pod.ready_since == START
    again = project_pod(pod("a", ready="2020-01-01T00:00:00Z"), first, START + timedelta(seconds=30))
    assert again.pod.ready_since == START


def test_a_clock_that_is_set_back() -> None:
    """Times that lie in the future condemn nobody and end nothing early."""
    fleet = moving()
    for _ in range(20):
        seen = fleet.snapshot()
        plan = rollout.plan_rollout(replace(seen, now=seen.now - timedelta(hours=1)))
        assert not [
            action for action in plan.actions if isinstance(action, actions.WriteBatch) and action.status.failed
        ]
        assert not [action for action in plan.actions if isinstance(action, actions.CreateBatch)]
        go_on(fleet, 1)


# --- webhooks ---------------------------------------------------------------------------------------------------------


def test_a_webhook_in_the_way_of_pods() -> None:
    """Nothing that we install is asked before somebody's pod is made: there is no webhook at all."""
    kinds = {doc["kind"] for doc in yaml.safe_load_all((ROOT / "install.yaml").read_text(encoding="utf-8")) if doc}
    assert not {kind for kind in kinds if "Webhook" in kind}
    assert "ValidatingAdmissionPolicy" in kinds


# --- lifecycle --------------------------------------------------------------------------------------------------------


def test_automatic_promotion_undoes_a_rollback() -> None:
    """After a rollback nothing starts by itself, whatever joins, returns or is verified again."""
    fleet = installed()
    fleet.behaviour = lambda _node, revision: "crash-loop" if revision == NEW else "healthy"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "RolledBack"
    fleet.patches.clear()
    fleet.join("late")
    fleet.set_ready("node-001", False)
    fleet.phases["1.1.0"] = "Withdrawn"
    go_on(fleet, 10)
    fleet.set_ready("node-001", True)
    fleet.phases.clear()
    go_on(fleet, 40)
    assert {patch.after for patch in fleet.patches} <= {OLD, f"to-{OLD}"}
    assert fleet.status.phase == "RolledBack"


def test_a_rollback_to_a_version_that_had_failed() -> None:
    """A node that was on its way to one failed version goes back from the next one to what last completed."""
    fleet = installed()
    fleet.behaviour = lambda _node, revision: "healthy" if revision == OLD else "never-ready"
    for version in ("1.1.0", "1.2.0", "1.3.0"):
        fleet.change(version=version)
        go_on(fleet, 15)
    fleet.settle()
    assert fleet.assignments() == {OLD: 9}
    backs = {entry.back for entry, _, _ in fleet.entries()} | {
        e.to for b in fleet.batches.values() for e in b.spec.nodes if b.spec.kind == "Rollback"
    }
    assert backs <= {OLD, "none"}


def test_an_undone_cordon() -> None:
    """What people have set on nodes is not among what a plan can change: a move is one label."""
    fleet = installed()
    cordoned = fleet.nodes["node-003"]
    cordoned.node = replace(cordoned.node, unschedulable=True)
    fleet.change(version="1.1.0")
    fleet.settle()
    assert cordoned.node.unschedulable
    assert fleet.assignments() == {NEW: 9}, "cordoned nodes are moved like others: a DaemonSet's pods tolerate it"


def pod(uid: str, *, restarts: int = 0, ready: str = "") -> dict[str, Any]:
    """A pod as the API server has it."""
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": ready}] if ready else []
    return {
        "metadata": {"name": f"pod-{uid}", "namespace": "fleet", "uid": uid, "labels": {}},
        "spec": {"nodeName": "n1"},
        "status": {
            "phase": "Running",
            "conditions": conditions,
            "containerStatuses": [{"name": "agent", "restartCount": restarts, "state": {"running": {}}}],
        },
    }
