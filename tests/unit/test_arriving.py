"""A node whose old agent has ended arrives at once: no pass comes first, and nothing else may still live there."""

import asyncio
from typing import Any

import pytest

from outrider.adapters.kube import ROLLOUTS, Json, Resource
from outrider.api import names
from outrider.core.moves import leaving
from outrider.core.plan import Assign
from outrider.core.revision import revision_of
from outrider.reconcile.controller import Controller
from outrider.reconcile.fleetview import AgentIndex
from outrider.reconcile.gathering import Memory
from outrider.reconcile.rollouts import RolloutReconciler
from outrider.settings import Settings
from simulation.fleet import make_spec
from unit.emptycaches import empty_caches
from unit.test_fleetview import NOW

KEY = names.assignment_key("fleet", "agent")
MOVE = Assign("n0", "u0", "to-B", "B")


class Answering:
    """An API server that takes every change of a node."""

    def __init__(self) -> None:
        self.patched: list[tuple[str, list[Json]]] = []

    async def patch_json(self, _resource: object, _namespace: object, name: str, operations: list[Json]) -> Json:
        self.patched.append((name, operations))
        return {"metadata": {"name": name, "uid": "u0", "resourceVersion": "9", "labels": {KEY: "B"}}}


def agent(name: str, revision: str, *, node: str = "n0", role: str = names.ROLE_REVISION, **status: Any) -> Json:
    labels = {names.LABEL_COMPONENT: "agent", names.LABEL_ROLE: role, names.LABEL_REVISION: revision}
    return {
        "metadata": {"name": name, "namespace": "fleet", "uid": name, "resourceVersion": "1", "labels": labels},
        "spec": {"nodeName": node},
        "status": status,
    }


class Operator:
    """A reconciler with one Rollout whose last pass expects one node to arrive."""

    def __init__(self) -> None:
        self.server = Answering()
        self.woken: list[str] = []
        self.caches = empty_caches(NOW)
        nobody: Any = None
        server: Any = self.server
        self.reconciler = RolloutReconciler(
            server, self.caches, nobody, nobody, Settings(), nobody, wake=self.woken.append
        )
        self.caches.nodes.put(
            {"metadata": {"name": "n0", "uid": "u0", "resourceVersion": "1", "labels": {KEY: "to-B"}}}
        )
        self.memory = Memory(arrivals={"n0": MOVE}, assignment_key=KEY)
        self.reconciler._memories["fleet/agent"] = self.memory

    async def ends(self, name: str) -> list[tuple[str, list[Json]]]:
        """Have a pod end; return what the API server was asked for."""
        pod = self.caches.pods.get("fleet", name)
        assert pod is not None
        self.caches.pods.drop(("fleet", name))
        self.reconciler.pod_ended(pod.namespace, pod.component, pod.pod.node)
        await self.memory.patches_ended()
        return self.server.patched


async def test_it_arrives_when_its_old_pod_is_gone() -> None:
    operator = Operator()
    operator.caches.pods.put(agent("old", "A"))
    [(node, operations)] = await operator.ends("old")
    assert node == "n0"
    assert [(each["op"], each["value"]) for each in operations] == [("test", "u0"), ("test", "to-B"), ("add", "B")]
    node_seen = operator.caches.nodes.get("", "n0")
    assert node_seen is not None
    assert node_seen.labels[KEY] == "B"
    assert not operator.memory.arrivals
    assert operator.woken == ["fleet/agent"]


@pytest.mark.parametrize(
    "other",
    [
        agent("other", "A"),
        agent("other", "C"),
        agent("other", "B", role=names.ROLE_JOINERS),
    ],
    ids=["another of the old revision", "one of a third revision", "a joiners' pod of the same revision"],
)
async def test_it_waits_for_whatever_else_lives_there(other: Json) -> None:
    operator = Operator()
    operator.caches.pods.put(agent("old", "A"))
    operator.caches.pods.put(other)
    assert not await operator.ends("old")
    assert [node for node, _ in await operator.ends("other")] == ["n0"]


async def test_a_pod_whose_containers_have_ended_runs_nothing() -> None:
    operator = Operator()
    operator.caches.pods.put(agent("old", "A"))
    operator.caches.pods.put(agent("done", "A", phase="Succeeded"))
    assert len(await operator.ends("old")) == 1


@pytest.mark.parametrize("what", ["another node", "another component", "nothing expected", "a change under way"])
async def test_nothing_else_sets_it_off(what: str) -> None:
    operator = Operator()
    pod = agent("old", "A", node="n1" if what == "another node" else "n0")
    if what == "another component":
        pod["metadata"]["labels"][names.LABEL_COMPONENT] = "daemon"
    if what == "nothing expected":
        operator.memory.arrivals = {}
    if what == "a change under way":
        never = asyncio.get_running_loop().create_future()
        operator.memory.patches["n0"] = asyncio.create_task(asyncio.wait_for(never, 0.05))
    operator.caches.pods.put(pod)
    try:
        assert not await operator.ends("old")
    finally:
        await asyncio.gather(*operator.memory.patches.values(), return_exceptions=True)


def test_the_index_of_agents_is_the_one_that_caches_keep() -> None:
    caches = Operator().caches
    assert isinstance(caches.agents, AgentIndex)
    caches.pods.put(agent("old", "A"))
    assert [pod.name for pod in caches.agents.on("fleet", "agent", "n0")] == ["old"]


class Server(Answering):
    """An API server that also takes a Rollout's status."""

    rollout: Json

    async def apply(self, resource: Resource, body: Json, **_: Any) -> Json:
        if resource is not ROLLOUTS:
            return body
        metadata = self.rollout["metadata"]
        metadata = {**metadata, "resourceVersion": str(int(metadata["resourceVersion"]) + 1)}
        self.rollout = {**self.rollout, "metadata": metadata, "status": body["status"]}
        return self.rollout


async def look_at_half_way() -> tuple[Controller, Server]:
    """An operator that has looked at a fleet of one node, whose old agent is ending."""
    server: Any = Server()
    controller = Controller(server, Settings())
    controller._rollout_reconciler.begin()
    spec = make_spec("1.1.0")
    revision = revision_of("agent", spec)
    labels = {
        names.LABEL_ROLLOUT: "agent",
        names.LABEL_COMPONENT: "agent",
        names.LABEL_ROLE: names.ROLE_REVISION,
        names.LABEL_REVISION: revision,
        names.LABEL_VERSION: "1.1.0",
    }
    nodes, pods, daemonsets, _ = controller._informers
    daemonsets.put(
        {"metadata": {"name": "d", "namespace": "fleet", "uid": "d", "resourceVersion": "1", "labels": labels}}
    )
    nodes.put({"metadata": {"name": "n0", "uid": "u0", "resourceVersion": "1", "labels": {KEY: leaving(revision)}}})
    pods.put(agent("old", "A"))
    rollout = {
        "metadata": {
            "name": "agent",
            "namespace": "fleet",
            "uid": "uid-agent",
            "resourceVersion": "1",
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "finalizers": [names.FINALIZER],
        },
        "spec": spec.to_api(),
    }
    server.rollout = rollout
    controller.rollouts.put(rollout)
    await controller._rollout_reconciler.reconcile("fleet/agent")
    return controller, server


async def answered(controller: Controller) -> None:
    await controller._rollout_reconciler._memories["fleet/agent"].patches_ended()


@pytest.mark.parametrize("how", ["its object goes", "its containers end"])
async def test_what_a_watch_tells_of_a_pod_lets_its_node_arrive_without_another_look(how: str) -> None:
    controller, server = await look_at_half_way()
    assert not server.patched
    pods: Any = controller._informers[1]
    if how == "its object goes":
        pods.drop(("fleet", "old"))
    else:
        ended = agent("old", "A", phase="Failed")
        pods.put({**ended, "metadata": {**ended["metadata"], "resourceVersion": "2"}})
    await answered(controller)
    assert [node for node, _ in server.patched] == ["n0"]


async def test_a_pod_that_ended_while_the_fleet_was_looked_at_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, server = await look_at_half_way()
    reconciler = controller._rollout_reconciler
    pods: Any = controller._informers[1]
    execute = reconciler._execute

    async def late(*arguments: Any) -> None:
        pods.drop(("fleet", "old"))
        await execute(*arguments)

    monkeypatch.setattr(reconciler, "_execute", late)
    await reconciler.reconcile("fleet/agent")
    await answered(controller)
    assert [node for node, _ in server.patched] == ["n0"]


async def test_nobody_arrives_before_the_next_look_once_somebody_wants_something_else() -> None:
    controller, server = await look_at_half_way()
    body = controller.rollouts.get("fleet", "agent")
    assert body is not None
    changed = {**body["metadata"], "generation": 2, "resourceVersion": "9"}
    server.rollout = {**body, "metadata": changed, "spec": {**body["spec"], "paused": True}}
    controller.rollouts.put(server.rollout)
    pods: Any = controller._informers[1]
    pods.drop(("fleet", "old"))
    await answered(controller)
    assert not server.patched
    await controller._rollout_reconciler.reconcile("fleet/agent")
    await answered(controller)
    assert [node for node, _ in server.patched] == ["n0"], "what is half-made is finished, in a pause too"


async def test_what_gathers_before_a_look_is_bounded_and_people_wait_for_none_of_it() -> None:
    controller, _ = await look_at_half_way()
    memory = controller._rollout_reconciler._memories["fleet/agent"]
    memory.pass_seconds = 0.0
    assert controller._settle_seconds("fleet/agent") == 0.1
    memory.in_window = True
    assert controller._settle_seconds("fleet/agent") == 0.2
    memory.pass_seconds = 0.05
    assert controller._settle_seconds("fleet/agent") == 0.5
    memory.pass_seconds = 60.0
    assert controller._settle_seconds("fleet/agent") == 1.0
    assert controller._settle_seconds("fleet/unknown") == 0.1
