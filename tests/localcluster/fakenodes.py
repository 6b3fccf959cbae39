"""Fake nodes: Node objects kept alive by kwok."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from localcluster import stages
from localcluster.apiclient import ApiClient, ApiError, Object, in_parallel
from localcluster.processes import Process, spawn
from localcluster.toolchain import KUBERNETES_VERSION

NODES = "/api/v1/nodes"
STAGES = "/apis/kwok.x-k8s.io/v1alpha1/stages"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
KIND_LABEL = "node.outrider.test/kind"
FAKE_SELECTOR = f"{KIND_LABEL}=fake"
_ZONES = ("zone-a", "zone-b", "zone-c")


def start_kwok(directory: Path, binary: Path, kubeconfig: Path, on_start: Callable[[Process], None]) -> Process:
    """Start kwok for the nodes with its annotation; it takes its stages from the API server."""
    configuration = directory / "kwok.yaml"
    document = {
        "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
        "kind": "KwokConfiguration",
        "options": {
            "enableCRDs": ["Stage"],
            "manageAllNodes": False,
            "manageNodesWithAnnotationSelector": "kwok.x-k8s.io/node=fake",
            # Addresses reserved for benchmarks: nothing real ever lies there.
            "cidr": "198.19.0.1/16",
            "podPlayStageParallelism": 8,
            "nodePlayStageParallelism": 4,
            # kwok ignores pods of a node until it sees its own lease on it, and does not look
            # at them again: of pods that come with the node, as a DaemonSet's do, most would
            # stay Pending for ever. So the leases are renewed by a stage of ours instead.
            "nodeLeaseDurationSeconds": 0,
        },
    }
    configuration.write_text(json.dumps(document))
    process = spawn(
        "kwok",
        [binary, f"--config={configuration}", f"--kubeconfig={kubeconfig}"],
        directory / "logs" / "kwok.log",
        cluster=directory,
    )
    on_start(process)
    return process


def install_stages(client: ApiClient) -> None:
    """Create the Stage resource and the stages that always apply."""
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    client.apply(f"{crds}/{stages.STAGE_CRD['metadata']['name']}", stages.STAGE_CRD)
    deadline = time.monotonic() + 30
    while True:
        try:
            client.items(STAGES)
            break
        except ApiError as error:
            if error.status != 404 or time.monotonic() > deadline:
                raise
            time.sleep(0.1)

    def install(stage: Object) -> None:
        client.apply(f"{STAGES}/{stage['metadata']['name']}", stage)

    in_parallel(install, stages.healthy_stages() + stages.annotated_stages())


def fake_name(index: int) -> str:
    """Name of the index-th fake node (from 1)."""
    return f"fake-{index:04d}"


def node_object(
    name: str,
    index: int,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    address: str | None = None,
) -> Object:
    """A Node as a kubelet would have registered it; its address leads nowhere unless another is given."""
    resources = {
        "cpu": "8",
        "memory": "32Gi",
        "ephemeral-storage": "100Gi",
        "pods": "110",
    }
    address = address or f"198.18.{index // 250}.{index % 250 + 1}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "beta.kubernetes.io/os": "linux",
                "beta.kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/region": "local",
                "topology.kubernetes.io/zone": _ZONES[(index - 1) % len(_ZONES)],
                KIND_LABEL: "fake",
                **(labels or {}),
            },
            "annotations": {"kwok.x-k8s.io/node": "fake", **(annotations or {})},
        },
        # Ordinary pods must not land here: they would seem to run and never do.
        "spec": {"taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": address},
                {"type": "Hostname", "address": name},
            ],
            "allocatable": resources,
            "capacity": resources,
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": "",
                "containerRuntimeVersion": "containerd://2.4.2",
                "kernelVersion": "6.1.0-37-amd64",
                "kubeProxyVersion": "",
                "kubeletVersion": KUBERNETES_VERSION,
                "machineID": "",
                "operatingSystem": "linux",
                "osImage": "Debian GNU/Linux 12 (bookworm)",
                "systemUUID": "",
            },
        },
    }


def create(client: ApiClient, nodes: Sequence[Object]) -> None:
    """Create the Node objects and their leases, several at a time."""

    def create_one(node: Object) -> None:
        try:
            made = client.create(NODES, node)
        except ApiError as error:
            if error.status != 409:
                raise
            return
        name = made["metadata"]["name"]
        # Applied, not created: the lease of a node that was there before may linger.
        client.apply(f"{_LEASES}/{name}", stages.node_lease(name, made["metadata"]["uid"]))

    in_parallel(create_one, nodes)


def names(client: ApiClient) -> list[str]:
    """Names of the fake nodes there are."""
    return sorted(node["metadata"]["name"] for node in client.items(NODES, labelSelector=FAKE_SELECTOR))


def unready(client: ApiClient) -> list[str]:
    """Names of fake nodes that are not Ready or still carry the taint of a dead one."""
    found = []
    for node in client.items(NODES, labelSelector=FAKE_SELECTOR):
        conditions = node["status"].get("conditions", [])
        ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
        tainted = any(
            taint["key"] in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
            for taint in node["spec"].get("taints", [])
        )
        if not ready or tainted:
            found.append(node["metadata"]["name"])
    return found
