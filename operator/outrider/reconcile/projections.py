"""What is kept of the objects that are watched: a few hundred bytes each, whatever their size."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from outrider.adapters.kube import Json
from outrider.api import names
from outrider.api.rollout import RolloutBatchSpec, RolloutBatchStatus
from outrider.core.snapshot import Batch, Node, Pod, Taint

REFUSED_EXIT_CODE = 3
"""With this code the fetch container says that it will not hand over the artifact, whatever is tried again."""

_NO_TROUBLE = frozenset({"", "PodInitializing", "ContainerCreating"})


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
        name=metadata["name"],
        uid=metadata["uid"],
        labels=metadata.get("labels") or {},
        ready=ready and not metadata.get("deletionTimestamp"),
        unschedulable=bool(spec.get("unschedulable")),
        taints=tuple(Taint(t["key"], t.get("value") or "", t["effect"]) for t in spec.get("taints") or []),
        os_image=os_image,
        kernel_version=kernel,
        kubelet_version=kubelet,
    )


@dataclass(frozen=True, slots=True)
class AgentPod:
    """An agent's pod with the component that it runs: whichever Rollout made it, two of them never share a node."""

    namespace: str
    component: str
    pod: Pod


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
    fetch = next((s for s in init if s["name"] == names.FETCH_CONTAINER), None)
    others = [s for s in init if s["name"] != names.FETCH_CONTAINER] + main
    trouble, message = _trouble([*init, *main])
    same = before.pod if before is not None and before.pod.uid == metadata["uid"] else None
    return AgentPod(
        namespace=metadata["namespace"],
        component=labels.get(names.LABEL_COMPONENT, ""),
        pod=Pod(
            name=metadata["name"],
            uid=metadata["uid"],
            node=spec.get("nodeName") or _intended_node(spec),
            revision=labels.get(names.LABEL_REVISION, ""),
            role=labels.get(names.LABEL_ROLE, names.ROLE_REVISION),
            live=live,
            terminating=terminating,
            ready_since=((same.ready_since if same else None) or now) if ready else None,
            unready_since=((same.unready_since if same else None) or now) if not ready else None,
            restarts=sum(s.get("restartCount") or 0 for s in others),
            trouble=trouble,
            trouble_message=message,
            refusal=_refusal(fetch),
            fetching=bool(fetch and "running" in (fetch.get("state") or {})),
        ),
    )


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


def _trouble(statuses: Iterable[Json]) -> tuple[str, str]:
    for status in statuses:
        waiting = (status.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason") or ""
        if reason not in _NO_TROUBLE:
            message = waiting.get("message") or ""
            return reason, f"container {status['name']}: {reason}" + (f": {message}" if message else "")
    return "", ""


def _refusal(fetch: Json | None) -> str:
    if fetch is None:
        return ""
    for state in (fetch.get("state"), fetch.get("lastState")):
        ended = (state or {}).get("terminated") or {}
        if ended.get("exitCode") == REFUSED_EXIT_CODE:
            return str(ended.get("message") or "the node refused the artifact").strip()
    return ""


@dataclass(frozen=True, slots=True)
class AgentDaemonSet:
    """A revision's DaemonSet, or the joiners'."""

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
    spec = before.batch.spec if before is not None and same else RolloutBatchSpec.model_validate(obj["spec"])
    status = RolloutBatchStatus.model_validate(obj.get("status") or {})
    return StoredBatch(
        metadata["namespace"], metadata["uid"], spec.rollout, owner, Batch(metadata["name"], spec, status)
    )
