"""What is kept of the objects that are watched: a few hundred bytes each, whatever their size."""

import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from outrider.adapters.kube import Json
from outrider.api import names
from outrider.api.rollout import BatchNode, NodeResult, RolloutBatchSpec, RolloutBatchStatus
from outrider.core.refusal import Refusal, read_refusal
from outrider.core.snapshot import Batch, Node, Pod, Taint
from outrider.core.words import last_words, printable

_NO_TROUBLE = frozenset({"", "PodInitializing", "ContainerCreating"})

_LAST_WORDS = 128
"""Bytes of a container's termination message that are kept: its end, where programs say why they end."""


def project_node(obj: Json, _before: Node | None = None) -> Node:
    """Return what matters of a Node object."""
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or [])
    info = status.get("nodeInfo") or {}
    # A fleet has few different ones of these: each is kept once.
    os_image, kernel, kubelet = (
        sys.intern(str(info.get(name) or "")) for name in ("osImage", "kernelVersion", "kubeletVersion")
    )
    return Node(
        name=sys.intern(metadata["name"]),
        uid=sys.intern(metadata["uid"]),
        labels={sys.intern(key): sys.intern(value) for key, value in (metadata.get("labels") or {}).items()},
        ready=ready and not metadata.get("deletionTimestamp"),
        unschedulable=bool(spec.get("unschedulable")),
        taints=tuple(Taint(t["key"], t.get("value") or "", t["effect"]) for t in spec.get("taints") or []),
        os_image=os_image,
        kernel_version=kernel,
        kubelet_version=kubelet,
    )


@dataclass(frozen=True, slots=True)
class AgentPod:
    """An agent's pod with the component that it runs: whichever Rollout made it, two of them never share a node.

    `containers` are those of which there is something to tell.
    """

    namespace: str
    component: str
    pod: Pod
    containers: tuple["ContainerFacts", ...] = ()

    def without(self, ignored: Collection[str]) -> Pod:
        """Return the pod as if the containers with these names never restarted."""
        if not any(container.name in ignored for container in self.containers):
            return self.pod
        return replace(self.pod, **_sum_up(one for one in self.containers if one.name not in ignored))


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """What matters of a container of an agent's pod.

    `kind`: our own init container, one that has to come to an end before the next starts, or one that runs on.
    """

    name: str
    kind: Literal["fetch", "init", "running"]
    restarts: int
    trouble: str
    message: str
    crash: str


def project_pod(obj: Json, before: AgentPod | None, now: datetime) -> AgentPod:
    """Return what matters of an agent's pod; how long it is Ready or not is our own observation."""
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    labels = metadata.get("labels") or {}
    terminating = bool(metadata.get("deletionTimestamp"))
    live = status.get("phase") not in {"Succeeded", "Failed"}
    ready = (
        live
        and not terminating
        and any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or [])
    )
    init = status.get("initContainerStatuses") or []
    main = status.get("containerStatuses") or []
    containers = _project_containers(spec, init, main)
    same = before.pod if before is not None and before.pod.uid == metadata["uid"] else None
    return AgentPod(
        namespace=sys.intern(metadata["namespace"]),
        component=sys.intern(labels.get(names.LABEL_COMPONENT, "")),
        pod=Pod(
            name=metadata["name"],
            uid=metadata["uid"],
            node=sys.intern(spec.get("nodeName") or _intended_node(spec)),
            revision=sys.intern(labels.get(names.LABEL_REVISION, "")),
            role=sys.intern(labels.get(names.LABEL_ROLE, names.ROLE_REVISION)),
            live=live,
            terminating=terminating,
            ready_since=((same.ready_since if same else None) or now) if ready else None,
            unready_since=((same.unready_since if same else None) or now) if not ready else None,
            refusal=_refusal(init),
            fetching=_is_at_work(init, names.FETCH_CONTAINER),
            installing=_is_at_work(init, names.INSTALL_CONTAINER),
            unschedulable=_unschedulable(status),
            ip=status.get("podIP") or "",
            **_sum_up(containers),
        ),
        containers=containers,
    )


def _project_containers(spec: Json, init: Iterable[Json], main: Iterable[Json]) -> tuple[ContainerFacts, ...]:
    sidecars = {c["name"] for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"}
    found = []
    for is_init, status in [*((True, s) for s in init), *((False, s) for s in main)]:
        name = status["name"]
        kind: Literal["fetch", "init", "running"] = "running"
        if is_init and name not in sidecars:
            kind = "fetch" if name == names.FETCH_CONTAINER else "init"
        waiting = (status.get("state") or {}).get("waiting") or {}
        trouble = waiting.get("reason") or ""
        restarts = status.get("restartCount") or 0
        crash = _crash(status)
        if restarts or crash or trouble not in _NO_TROUBLE:
            found.append(ContainerFacts(name, kind, restarts, trouble, printable(waiting.get("message") or ""), crash))
    return tuple(found)


def _sum_up(containers: Iterable[ContainerFacts]) -> Mapping[str, Any]:
    """Return what a Pod says of all its containers together."""
    known = list(containers)
    troubled = next((one for one in known if one.trouble not in _NO_TROUBLE), None)
    crashed = troubled if troubled is not None and troubled.crash else next((one for one in known if one.crash), None)
    message = ""
    if troubled is not None:
        message = f"container {troubled.name}: {troubled.trouble}"
        message += f": {troubled.message}" if troubled.message else ""
    return {
        "restarts": sum(one.restarts for one in known if one.kind == "running"),
        "trouble": troubled.trouble if troubled is not None else "",
        "trouble_message": message,
        "retries": troubled.restarts if troubled is not None and troubled.kind != "running" else None,
        "crash": crashed.crash if crashed is not None else "",
    }


def _crash(status: Json) -> str:
    """Say how a container ended, if that was no success: its exit code, the kubelet's reason, its last words."""
    for state in (status.get("state"), status.get("lastState")):
        ended = (state or {}).get("terminated")
        if ended and (ended.get("exitCode") or ended.get("signal")):
            how = f"exit code {ended.get('exitCode') or 0}"
            reason = ended.get("reason") or ""
            how += f", {reason}" if reason not in {"", "Error"} else ""
            words = last_words(str(ended.get("message") or ""), _LAST_WORDS)
            return f"container {status['name']} ended with {how}" + (f": {words}" if words else "")
    return ""


def _unschedulable(status: Json) -> str:
    """Return what the scheduler says while it finds no place for a pod."""
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return printable(str(condition.get("message") or condition.get("reason") or "the scheduler says no more"))
    return ""


def _intended_node(spec: Json) -> str:
    """Return the node that a DaemonSet made a pod for, before the scheduler has put it there."""
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    for term in required.get("nodeSelectorTerms") or []:
        for match in term.get("matchFields") or []:
            if match["key"] == "metadata.name" and match.get("values"):
                return str(match["values"][0])
    return ""


def _is_at_work(init: Iterable[Json], name: str) -> bool:
    return any(one["name"] == name and "running" in (one.get("state") or {}) for one in init)


def _refusal(init: Iterable[Json]) -> Refusal | None:
    """Return what one of our own programs said, if it has not done its work since."""
    for status in init:
        if status["name"] not in {names.FETCH_CONTAINER, names.INSTALL_CONTAINER}:
            continue
        for state in (status.get("state"), status.get("lastState")):
            ended = (state or {}).get("terminated") or {}
            if ended.get("exitCode") == 0:
                break
            refusal = read_refusal(status["name"], ended.get("exitCode"), ended.get("message"))
            if refusal is not None:
                return refusal
    return None


@dataclass(frozen=True, slots=True)
class AgentDaemonSet:
    """A revision's DaemonSet, the joiners', or one that prepares nodes (`prepares`)."""

    namespace: str
    name: str
    uid: str
    rollout: str
    role: str
    component: str
    revision: str
    version: str
    platforms: frozenset[str]
    target: str
    deleting: bool
    prepares: frozenset[str] = frozenset()


def project_daemonset(obj: Json, _before: AgentDaemonSet | None = None) -> AgentDaemonSet:
    """Return what matters of a DaemonSet of ours."""
    metadata = obj["metadata"]
    labels = metadata.get("labels") or {}
    return AgentDaemonSet(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        rollout=labels.get(names.LABEL_ROLLOUT, ""),
        role=labels.get(names.LABEL_ROLE, ""),
        component=labels.get(names.LABEL_COMPONENT, ""),
        revision=labels.get(names.LABEL_REVISION, ""),
        version=labels.get(names.LABEL_VERSION, ""),
        platforms=frozenset(
            filter(None, (metadata.get("annotations") or {}).get(names.ANNOTATION_PLATFORMS, "").split(","))
        ),
        target=(metadata.get("annotations") or {}).get(names.ANNOTATION_TARGET, ""),
        prepares=frozenset(
            sys.intern(token)
            for token in (metadata.get("annotations") or {}).get(names.ANNOTATION_PREPARES, "").split(",")
            if token
        ),
        deleting=bool(metadata.get("deletionTimestamp")),
    )


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A RolloutBatch as it is stored."""

    namespace: str
    uid: str
    rollout: str
    rollout_uid: str
    batch: Batch

    def with_status(self, status: RolloutBatchStatus) -> "StoredBatch":
        """Return the same batch with another status."""
        return replace(self, batch=replace(self.batch, status=status))


def project_batch(obj: Json, before: StoredBatch | None = None) -> StoredBatch:
    """Return a RolloutBatch; its spec is frozen, so that it is parsed once."""
    metadata = obj["metadata"]
    owner = next((o["uid"] for o in metadata.get("ownerReferences") or [] if o["kind"] == "Rollout"), "")
    same = before is not None and before.uid == metadata["uid"]
    spec = before.batch.spec if before is not None and same else _read_membership(obj["spec"])
    status = _read_results(obj.get("status") or {})
    return StoredBatch(
        metadata["namespace"], metadata["uid"], spec.rollout, owner, Batch(metadata["name"], spec, status)
    )


def _read_membership(spec: Json) -> RolloutBatchSpec:
    """Return a batch's spec, small: a fleet's last runs are kept, so that each node has a dozen entries."""
    read = RolloutBatchSpec.model_validate(spec)
    entries = [
        BatchNode.model_construct(
            _ENTRY_FIELDS,
            name=sys.intern(entry.name),
            uid=sys.intern(entry.uid),
            origin=sys.intern(entry.origin),
            to=sys.intern(entry.to),
            back=sys.intern(entry.back),
        )
        for entry in read.nodes
    ]
    return read.model_copy(update={"nodes": entries})


def _read_results(status: Json) -> RolloutBatchStatus:
    """Return a batch's status, small likewise."""
    read = RolloutBatchStatus.model_validate(status)
    results = [
        NodeResult.model_construct(
            _RESULT_FIELDS,
            **(result.__dict__ | {text: sys.intern(getattr(result, text)) for text in ("name", "state", "reason")}),
        )
        for result in read.nodes
    ]
    return read.model_copy(update={"nodes": results})


_ENTRY_FIELDS = set(BatchNode.model_fields)
_RESULT_FIELDS = set(NodeResult.model_fields)
"""One set for all of a kind: a set of its own is the largest part of a small model."""
