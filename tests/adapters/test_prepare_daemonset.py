"""The DaemonSet that prepares nodes, at a real API server and its controller: accepted, and on its nodes only."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from adapters.realapiserver import RealApiServer
from localcluster import fakenodes
from outrider.adapters.kube import CONFIG_MAPS, DAEMON_SETS, NODES, PODS, Cluster, Json
from outrider.api import names
from outrider.core.delivery import FetchSettings
from outrider.core.prepare import build_prepare
from outrider.core.revision import build_daemonset
from outrider.core.snapshot import Node
from outrider.reconcile.projections import project_daemonset, project_node, project_pod
from simulation.fleet import START, make_spec

FETCH = FetchSettings(
    image="outrider:1",
    image_pull_policy="IfNotPresent",
    reference=f"registry.example.com/fleet/agent@sha256:{'0' * 64}",
    plain_http=False,
    allow_rsa_2048=False,
    digests={"linux/amd64": "0" * 64},
)
HOSTS = {"prepared-0": "host-of-0", "prepared-1": "", "prepared-2": "host-of-2"}
"""Nodes of the test with their hostnames; one has none."""


@pytest.fixture
async def nodes(api_server: RealApiServer, kube: Cluster) -> AsyncIterator[dict[str, Node]]:
    for index, (name, host) in enumerate(HOSTS.items()):
        body: Json = fakenodes.node_object(name, 150 + index)
        body["metadata"]["labels"] = {names.LABEL_HOSTNAME: host} if host else {}
        body["spec"] = {}  # without the taint that keeps others away: nothing here tolerates it
        await kube.create(NODES, body)
    try:
        found = [await kube.get(NODES, None, name) for name in HOSTS]
        yield {body["metadata"]["name"]: project_node(body) for body in found if body is not None}
    finally:
        for name in HOSTS:
            await kube.delete(NODES, None, name)


async def test_it_is_made_of_the_revision_s_and_gets_a_pod_on_each_of_its_nodes_and_nowhere_else(
    kube: Cluster, nodes: dict[str, Node]
) -> None:
    owner = await kube.create(CONFIG_MAPS, {"metadata": {"name": "owner"}}, "default")
    revision = build_daemonset(
        namespace="default", rollout="agent", spec=make_spec(), revision="0123456789", fetch=FETCH
    )
    stored = await kube.create(DAEMON_SETS, revision, "default")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    wanted, key = {"prepared-0", "prepared-1"}, names.assignment_key("default", "agent")
    made = build_prepare(stored, [nodes[name] for name in sorted(wanted)], key, reference)
    try:
        answer = await kube.create(DAEMON_SETS, made, "default")
        assert project_daemonset(answer).prepares == {"host-of-0", "prepared-1"}
        selector = f"{names.LABEL_ROLE}={names.ROLE_PREPARE}"
        async with asyncio.timeout(60):
            while True:
                body = await kube.get(DAEMON_SETS, "default", made["metadata"]["name"])
                status = (body or {}).get("status") or {}
                pods = [
                    pod async for chunk, _ in kube.list_chunks(PODS, "default", labelSelector=selector) for pod in chunk
                ]
                if status.get("desiredNumberScheduled") == len(wanted) == len(pods):
                    break
                await asyncio.sleep(0.2)
        assert {project_pod(pod, None, START).pod.node for pod in pods} == wanted
        assert {project_pod(pod, None, START).pod.role for pod in pods} == {names.ROLE_PREPARE}
    finally:
        for name in (made["metadata"]["name"], stored["metadata"]["name"]):
            await kube.delete(DAEMON_SETS, "default", name)
        await kube.delete(CONFIG_MAPS, "default", "owner")
