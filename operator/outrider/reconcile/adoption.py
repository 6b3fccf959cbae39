"""The DaemonSets of others that Rollouts take over: watched one by one, with the pods that each of them controls."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from outrider.adapters import clock
from outrider.adapters.informer import Informer
from outrider.adapters.kube import DAEMON_SETS, PODS, Cluster, Json
from outrider.api import names
from outrider.api.errors import Transient
from outrider.api.rollout import AdoptionStatus, Target
from outrider.core.adoption import nodes_in_the_way, read_original, serves_others
from outrider.core.snapshot import Legacy, Node, Pod
from outrider.reconcile.projections import AgentPod, project_pod

_SYNC_SECONDS = 10.0
"""So long a pass waits for the first look at a DaemonSet and its pods."""
_PROBLEM_SECONDS = 30.0
"""After so long a patch that was refused is tried again."""


def adopted_name(body: Json) -> str | None:
    """Return the DaemonSet that a Rollout takes over, or has taken over: removing spec.adoption changes nothing."""
    wanted, known = body["spec"].get("adoption"), (body.get("status") or {}).get("adoption")
    if wanted is not None:
        return str(wanted["daemonSet"])
    return str(known["daemonSet"]) if known is not None and known["state"] not in {"Refused", "Gone"} else None


@dataclass(frozen=True, slots=True)
class LegacyPod:
    """A pod that a DaemonSet's selector matches, and the UID of what controls it."""

    controller: str
    agent: AgentPod


def project_legacy_pod(obj: Json, before: LegacyPod | None, now: datetime) -> LegacyPod:
    """Return what matters of a pod of a DaemonSet that is taken over: to the planner its revision is `legacy`."""
    agent = project_pod(obj, before.agent if before is not None else None, now)
    pod = replace(agent.pod, revision=names.ASSIGNMENT_LEGACY, role=names.ROLE_REVISION)
    return LegacyPod(controller_of(obj)[0], replace(agent, pod=pod))


def controller_of(obj: Json) -> tuple[str, str]:
    """Return UID and a name for people of the object that controls this one; empty if none does."""
    for owner in obj["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            return owner["uid"], f"{owner['kind']} {owner['name']}"
    return "", ""


def last_writer(obj: Json) -> str:
    """Return the field manager, other than ours, that wrote the object last; status does not count."""
    best: tuple[str, str] = ("", "")
    for entry in obj["metadata"].get("managedFields") or []:
        manager = entry.get("manager") or ""
        if not entry.get("subresource") and manager != names.FIELD_MANAGER:
            best = max(best, (entry.get("time") or "", manager))
    return best[1]


def project_legacy(obj: Json, _before: Json | None = None) -> Json:
    """Return what matters of a DaemonSet that is taken over: whatever its status counts wakes nobody."""
    metadata, spec, status = obj["metadata"], obj["spec"], obj.get("status") or {}
    generation = metadata["generation"]
    return {
        "name": metadata["name"],
        "uid": metadata["uid"],
        "generation": generation,
        "observed": (status.get("observedGeneration") or 0) >= generation,
        "deleting": bool(metadata.get("deletionTimestamp")),
        "ours": (metadata.get("labels") or {}).get(names.LABEL_MANAGED_BY) == names.MANAGED_BY,
        "controller": controller_of(obj)[1],
        "pod": spec["template"].get("spec") or {},
        "strategy": spec.get("updateStrategy") or {},
        "annotations": metadata.get("annotations") or {},
        "writer": last_writer(obj),
        "selector": spec["selector"],
    }


def selector_text(selector: Json) -> str:
    """Return a label selector as the API takes it in a query."""
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for one in selector.get("matchExpressions") or []:
        values = ",".join(one.get("values") or [])
        match one["operator"]:
            case "In":
                parts.append(f"{one['key']} in ({values})")
            case "NotIn":
                parts.append(f"{one['key']} notin ({values})")
            case "Exists":
                parts.append(one["key"])
            case _:
                parts.append(f"!{one['key']}")
    return ",".join(parts)


class _Watched:
    """One DaemonSet by name, and the pods of its selector."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, wake: Callable[[], None]) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._wake = wake
        self.daemonsets: Informer[Json] = Informer(
            cluster,
            DAEMON_SETS,
            project_legacy,
            self._changed,
            namespace=namespace,
            fieldSelector=f"metadata.name={name}",
        )
        self.pods: Informer[LegacyPod] | None = None
        self._selector = ""
        self._tasks = [self._start(self.daemonsets)]
        self.name = name
        self.problem: tuple[str, float] | None = None

    def _changed(self, before: Json | None, after: Json | None) -> None:
        if after is not None:
            self._watch_pods(selector_text(after["selector"]))
        spec_changed = before is None or after is None or before["generation"] != after["generation"]
        if spec_changed:
            self.problem = None  # what was refused may pass now
        self._wake()

    def _watch_pods(self, selector: str) -> None:
        if selector == self._selector:
            return
        self._selector = selector
        for task in self._tasks[1:]:
            task.cancel()
        self.pods = Informer(
            self._cluster,
            PODS,
            lambda obj, before: project_legacy_pod(obj, before, clock.now()),
            lambda _before, _after: self._wake(),
            namespace=self._namespace,
            labelSelector=selector,
        )
        self._tasks[1:] = [self._start(self.pods)]

    def _start(self, informer: Informer[Any]) -> asyncio.Task[None]:
        task = asyncio.create_task(informer.run())
        # It never ends by itself: if it does, the next pass starts it anew.
        task.add_done_callback(lambda ended: None if ended.cancelled() else self._wake())
        return task

    def is_broken(self) -> bool:
        """Tell whether a watch has ended, which only an error of ours can bring about."""
        return any(task.done() for task in self._tasks)

    async def synced(self) -> None:
        """Return once the DaemonSet and its pods were seen."""
        await self.daemonsets.synced.wait()
        if self.pods is not None:
            await self.pods.synced.wait()

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen at a moment of a DaemonSet to take over (None: there is none), and of the pods of its selector."""

    name: str
    daemonset: Json | None
    pods: Sequence[LegacyPod]
    problem: str = ""

    def controlled(self) -> Iterable[Pod]:
        """Return the pods that the DaemonSet controls."""
        uid = self.daemonset["uid"] if self.daemonset is not None else None
        return [item.agent.pod for item in self.pods if item.controller == uid]

    def describe(
        self,
        assignment_key: str,
        target: Target,
        status: AdoptionStatus | None,
        nodes: Iterable[Node],
        members: frozenset[str],
        *,
        leaving: bool,
    ) -> Legacy:
        """Return the DaemonSet as the planner sees it. `leaving` asks for what stands in the way of giving it back."""
        if self.daemonset is None:
            return Legacy(self.name)
        annotations = self.daemonset["annotations"]
        stored = annotations.get(names.ANNOTATION_ORIGINAL) or (status.original if status is not None else "")
        legacy = Legacy(
            **{field: value for field, value in self.daemonset.items() if field != "selector"},
            original=read_original(stored),
            problem=self.problem,
        )
        nodes = list(nodes)
        return replace(
            legacy,
            serves_others=serves_others(legacy, assignment_key, target, nodes, members),
            in_the_way=nodes_in_the_way(legacy, assignment_key, nodes) if leaving else (),
        )


class Adoptions:
    """What is seen of the DaemonSets that Rollouts take over, by Rollout (`namespace/name`)."""

    def __init__(self, cluster: Cluster, wake: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._wake = wake
        self._watched: dict[str, _Watched] = {}

    async def watch(self, key: str, body: Json) -> None:
        """Watch what the Rollout takes over, if anything; wait until it was seen. Raises Transient(AdoptionUnknown)."""
        name = adopted_name(body)
        watched = self._watched.get(key)
        if watched is not None and (watched.name != name or watched.is_broken()):
            self.forget(key)
            watched = None
        if name is None:
            return
        if watched is None:
            namespace = body["metadata"]["namespace"]
            watched = self._watched[key] = _Watched(self._cluster, namespace, name, lambda: self._wake(key))
        try:
            await asyncio.wait_for(watched.synced(), _SYNC_SECONDS)
        except TimeoutError:
            raise Transient(
                "AdoptionUnknown", f"DaemonSet {name} and its pods were not seen within {_SYNC_SECONDS:.0f} s"
            ) from None

    def forget(self, key: str) -> None:
        """Stop watching for a Rollout."""
        if watched := self._watched.pop(key, None):
            watched.stop()

    def stop(self) -> None:
        """Stop all watches."""
        for key in list(self._watched):
            self.forget(key)

    def note(self, key: str, answer: Json | None, problem: str = "") -> None:
        """Take note of what the API server answered to a patch of a DaemonSet."""
        watched = self._watched.get(key)
        if watched is None:
            return
        watched.problem = (problem, asyncio.get_running_loop().time()) if problem else None
        if answer is not None:
            watched.daemonsets.put(answer)

    def look(self, key: str) -> Sight | None:
        """Return what is seen of the DaemonSet that a Rollout takes over; None if it takes over none."""
        watched = self._watched.get(key)
        if watched is None:
            return None
        found = next(iter(watched.daemonsets.values()), None)
        pods = list(watched.pods.values()) if watched.pods is not None else []
        return Sight(watched.name, found, pods, self._problem(watched))

    def _problem(self, watched: _Watched) -> str:
        if watched.problem is None:
            return ""
        message, since = watched.problem
        if asyncio.get_running_loop().time() - since >= _PROBLEM_SECONDS:
            watched.problem = None
            return ""
        return message

    def has_problem(self, key: str) -> bool:
        """Tell whether a patch was refused a moment ago."""
        watched = self._watched.get(key)
        return watched is not None and watched.problem is not None
