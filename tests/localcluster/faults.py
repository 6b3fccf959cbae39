"""Makes fake nodes and their pods fail while a cluster runs, and heals them again."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from localcluster import fakenodes, stages
from localcluster.apiclient import ApiClient, ApiError, Object, in_parallel
from localcluster.errors import LauncherError

_FAULT_LABEL = "localcluster.outrider.test/fault"
_BEHAVIOUR_LABEL = "localcluster.outrider.test/behaviour"
# kwok learns of a Stage by a watch of its own; what happens right after must already see it.
_SETTLE_SECONDS = 0.5
# Far above the behaviours that annotations ask for: the last word is the test's.
_WEIGHT = 1_000_000


@dataclass
class Fault:
    """One injected behaviour; ``remove`` ends it and heals what it broke."""

    client: ApiClient
    identifier: str
    behaviour: str
    nodes: tuple[str, ...] | None
    pod_labels: dict[str, str]
    namespace: str | None
    gone: list[Object] = field(default_factory=list)

    def remove(self) -> None:
        """Delete the fault; pods that it held become Ready, nodes that it took come back."""
        _delete_stages(self.client, self.identifier)
        time.sleep(_SETTLE_SECONDS)
        if self.gone:
            fakenodes.create(self.client, self.gone)
            return
        if self.behaviour in stages.NODE_BEHAVIOURS:
            for name in self.nodes or ():
                _touch_node(self.client, name)
            _await_ready(self.client, self.nodes or ())
        self._touch_pods(stages.HEALED)

    def _pods(self) -> list[Object]:
        query: dict[str, str] = {}
        if self.pod_labels:
            query["labelSelector"] = ",".join(f"{k}={v}" for k, v in self.pod_labels.items())
        path = f"/api/v1/namespaces/{self.namespace}/pods" if self.namespace else "/api/v1/pods"
        wanted = set(fakenodes.names(self.client) if self.nodes is None else self.nodes)
        return [pod for pod in self.client.items(path, **query) if pod["spec"].get("nodeName") in wanted]

    def _touch_pods(self, annotation: str) -> None:
        # kwok looks at a pod again only when it changes.
        patch = {"metadata": {"annotations": {annotation: str(time.time_ns())}}}

        def touch(pod: Object) -> None:
            meta = pod["metadata"]
            path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
            try:
                self.client.merge(path, patch)
            except ApiError as error:
                if error.status != 404:
                    raise

        in_parallel(touch, self._pods())


def inject(
    client: ApiClient,
    behaviour: str,
    *,
    nodes: Sequence[str] | None = None,
    pod_labels: Mapping[str, str] | None = None,
    namespace: str | None = None,
    existing: bool = False,
) -> Fault:
    """Make fake nodes, or pods on them, behave so from now on."""
    fault = Fault(
        client,
        secrets.token_hex(4),
        behaviour,
        tuple(nodes) if nodes is not None else None,
        dict(pod_labels or {}),
        namespace,
    )
    if nodes is not None:
        _check_fake(client, nodes)
    if behaviour == "gone" or behaviour in stages.NODE_BEHAVIOURS:
        if not nodes:
            raise LauncherError(f"{behaviour!r} needs the names of the nodes")
        if pod_labels or namespace:
            raise LauncherError(f"{behaviour!r} concerns nodes, not some of their pods")
    if behaviour == "gone":
        for name in fault.nodes or ():
            node = client.get(f"{fakenodes.NODES}/{name}")
            meta = node["metadata"]
            kept = {key: meta[key] for key in ("name", "labels", "annotations") if key in meta}
            fault.gone.append({**node, "metadata": kept})
            client.delete(f"{fakenodes.NODES}/{name}")
        return fault
    for stage in _stages_of(fault):
        stage["metadata"]["labels"] = {
            _FAULT_LABEL: fault.identifier,
            _BEHAVIOUR_LABEL: behaviour.replace(":", "-"),
        }
        client.create(fakenodes.STAGES, stage)
    time.sleep(_SETTLE_SECONDS)
    if behaviour in stages.NODE_BEHAVIOURS:
        for name in fault.nodes or ():
            _touch_node(client, name)
    if existing or behaviour in stages.NODE_BEHAVIOURS:
        fault._touch_pods(f"{stages.PREFIX}/touched")
    return fault


def heal_all(client: ApiClient) -> int:
    """Remove every fault injected so far, also by other processes; return how many there were."""
    found = client.items(fakenodes.STAGES, labelSelector=_FAULT_LABEL)
    identifiers = {stage["metadata"]["labels"][_FAULT_LABEL] for stage in found}
    for identifier in identifiers:
        _delete_stages(client, identifier)
    if not identifiers:
        return 0
    time.sleep(_SETTLE_SECONDS)
    everything = fakenodes.names(client)
    in_parallel(lambda name: _touch_node(client, name), everything)
    _await_ready(client, everything)
    Fault(client, "", "", tuple(everything), {}, None)._touch_pods(stages.HEALED)
    return len(identifiers)


def _stages_of(fault: Fault) -> list[Object]:
    name, number = stages.parse_behaviour(fault.behaviour)
    prefix = f"fault-{fault.identifier}"
    if name in stages.NODE_BEHAVIOURS:
        on_nodes = [stages.expression(".metadata.name", "In", *(fault.nodes or ()))]
        pods = [stages.expression(".spec.nodeName", "In", *(fault.nodes or ()))]
        made = stages.node_fault_stages(prefix, name, on_nodes, _WEIGHT)
        # Nobody starts or stops pods on a node whose kubelet is down.
        made += stages.stranded_pod_stages(f"{prefix}-pods", name, pods, _WEIGHT)
        return made
    selector = []
    if fault.nodes is not None:
        selector.append(stages.expression(".spec.nodeName", "In", *fault.nodes))
    if fault.namespace is not None:
        selector.append(stages.expression(".metadata.namespace", "In", fault.namespace))
    for key, value in fault.pod_labels.items():
        selector.append(stages.expression(f'.metadata.labels["{key}"]', "In", value))
    if not selector:
        raise LauncherError("say which pods: by nodes, pod_labels or namespace")
    return stages.pod_fault_stages(prefix, name, str(number), selector, _WEIGHT)


def _check_fake(client: ApiClient, names: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(fakenodes.names(client)))
    if unknown:
        raise LauncherError(f"not a fake node of this cluster: {', '.join(unknown[:5])}")


def _delete_stages(client: ApiClient, identifier: str) -> None:
    client.delete(fakenodes.STAGES, labelSelector=f"{_FAULT_LABEL}={identifier}")


def _touch_node(client: ApiClient, name: str) -> None:
    patch = {"metadata": {"annotations": {f"{stages.PREFIX}/touched": str(time.time_ns())}}}
    try:
        client.merge(f"{fakenodes.NODES}/{name}", patch)
    except ApiError as error:
        if error.status != 404:
            raise


def _await_ready(client: ApiClient, names: Sequence[str], seconds: float = 30) -> None:
    """Pods healed while their node still counts as dead would be marked not ready again."""
    deadline = time.monotonic() + seconds
    wanted = set(names)
    while wanted & set(fakenodes.unready(client)):
        if time.monotonic() > deadline:
            return
        time.sleep(0.2)
