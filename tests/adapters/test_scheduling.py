"""Our prediction against the real DaemonSet controller: every template on every node."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from adapters.realapiserver import RealApiServer
from localcluster import fakenodes
from outrider.adapters.kube import DAEMON_SETS, NODES, PODS, Cluster, Json
from outrider.core.scheduling import why_not_scheduled
from outrider.core.snapshot import Node
from outrider.reconcile.projections import _intended_node, project_node
from unit.scheduling_cases import NODES as CASES
from unit.scheduling_cases import TEMPLATES


def node_object(case: Node, index: int) -> Json:
    """The node of a case, kept alive by the same means as other fake nodes."""
    body: Json = fakenodes.node_object(case.name, 100 + index)
    body["metadata"]["labels"] = dict(case.labels)
    body["spec"] = {
        "unschedulable": case.unschedulable,
        "taints": [{"key": t.key, "value": t.value, "effect": t.effect} for t in case.taints],
    }
    return body


def daemonset_object(index: int, spec: Any) -> Json:
    labels = {"case": str(index)}
    pod = {"containers": [{"name": "agent", "image": "example.test/agent:1"}], **spec}
    return {
        "metadata": {"name": f"case-{index}", "namespace": "default", "labels": {"test": "scheduling"}},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }


@pytest.fixture
async def nodes(api_server: RealApiServer, kube: Cluster) -> AsyncIterator[dict[str, Node]]:
    """The nodes of the table as real Node objects; afterwards they are gone."""
    for index, case in enumerate(CASES.values()):
        await kube.create(NODES, node_object(case, index))
    try:
        async with asyncio.timeout(60):
            found = await present_nodes(kube)
            while not all(node.ready and set(node.taints) == set(CASES[node.name].taints) for node in found.values()):
                await asyncio.sleep(0.2)
                found = await present_nodes(kube)
        yield found
    finally:
        for name in CASES:
            await kube.delete(NODES, None, name)


async def present_nodes(kube: Cluster) -> dict[str, Node]:
    found = {name: await kube.get(NODES, None, name) for name in CASES}
    return {name: project_node(body) for name, body in found.items() if body is not None}


async def decided(kube: Cluster) -> dict[str, set[str]]:
    """Wait until the controller has decided about every DaemonSet: its name → the nodes that it made pods for."""
    while True:
        chunks = kube.list_chunks(DAEMON_SETS, "default", labelSelector="test=scheduling")
        sets = [item async for items, _ in chunks for item in items]
        made: dict[str, set[str]] = {item["metadata"]["name"]: set() for item in sets}
        async for pods, _ in kube.list_chunks(PODS, "default", labelSelector="case"):
            for pod in pods:
                node = pod["spec"].get("nodeName") or _intended_node(pod["spec"])
                made[f"case-{pod['metadata']['labels']['case']}"].add(node)
        if all(
            (item.get("status") or {}).get("observedGeneration") == 1
            and item["status"]["desiredNumberScheduled"] == len(made[item["metadata"]["name"]])
            for item in sets
        ):
            return made
        await asyncio.sleep(0.3)


async def test_the_prediction_is_what_the_controller_does(kube: Cluster, nodes: dict[str, Node]) -> None:
    assert nodes.keys() == CASES.keys()
    for index, template in enumerate(TEMPLATES):
        await kube.create(DAEMON_SETS, daemonset_object(index, template.spec), "default")
    try:
        async with asyncio.timeout(120):
            made = await decided(kube)
        for index, template in enumerate(TEMPLATES):
            real = made[f"case-{index}"] & nodes.keys()
            predicted = {name for name, node in nodes.items() if not why_not_scheduled(template.spec, node)}
            assert predicted == real, template.sentence
            assert template.runs_on == real, template.sentence
    finally:
        for index in range(len(TEMPLATES)):
            await kube.delete(DAEMON_SETS, "default", f"case-{index}")
