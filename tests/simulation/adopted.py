"""A fleet that begins with a DaemonSet of somebody's: its controller, its owner, and what must never be otherwise."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from outrider.api import names
from outrider.api.rollout import RolloutSpec
from outrider.core import plan as actions
from outrider.core.adoption import nodes_in_the_way, read_original, serves_others
from outrider.core.scheduling import why_not_scheduled
from outrider.core.snapshot import Legacy, Node, Pod, RolloutSnapshot
from simulation.fleet import KEY, Behaviour, Fleet, SimPod, healthy

Json = dict[str, Any]
ORIGINAL_STRATEGY: Json = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}


def affinity(*terms: list[Json]) -> Json:
    """A pod's affinity with these nodeSelectorTerms, each given by its expressions."""
    return {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": expressions} for expressions in terms]
            }
        }
    }


def apply(body: Json, operations: tuple[Json, ...]) -> Json | None:
    """Apply a JSON patch as the API server does; None where a test does not hold."""
    body = copy.deepcopy(body)
    for operation in operations:
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        place = body
        for part in parents:
            place = place[part]
        match operation["op"]:
            case "test":
                if place.get(last) != operation["value"]:
                    return None
            case "add":
                place[last] = copy.deepcopy(operation["value"])
            case "remove":
                del place[last]
            case other:
                raise AssertionError(f"an operation that is not used: {other}")
    return body


class AdoptedFleet(Fleet):
    """A fleet whose nodes run a DaemonSet's pods. With `lag` its controller observes a change a step late."""

    def __init__(
        self,
        count: int,
        spec: RolloutSpec,
        *,
        seed: int = 0,
        behaviour: Behaviour = healthy,
        template: Mapping[str, Any] | None = None,
        lag: int = 1,
    ) -> None:
        super().__init__(count, spec, seed=seed, behaviour=behaviour)
        self.lag = lag
        self.body: Json | None = None
        self.history: list[Json] = []
        self.legacy_pods: dict[str, SimPod] = {}
        self.ended: list[str] = []
        self.writer = ""
        self.problem = ""
        self.reverts = 0
        self.outsiders: dict[str, Node] = {}
        self.tolerates_two = False
        self.ever_stable.add(names.ASSIGNMENT_LEGACY)
        self.install(template or {"containers": [{"name": "agent", "image": "old"}]})
        self.tick(10)

    def install(self, template: Mapping[str, Any], uid: str = "legacy-uid") -> None:
        """Its owner creates the DaemonSet."""
        self.body = {
            "metadata": {"name": "old-agent", "uid": uid, "generation": 1, "annotations": {"theirs": "stays"}},
            "spec": {
                "updateStrategy": copy.deepcopy(ORIGINAL_STRATEGY),
                "template": {"metadata": {"labels": {"app": "old"}}, "spec": copy.deepcopy(dict(template))},
            },
        }
        self.history = [self.body]

    def remove(self) -> None:
        """Its owner deletes the DaemonSet: its pods end."""
        self.body = None

    def revert(self, writer: str, **parts: Any) -> None:
        """Its owner puts back parts of the spec: the strategy, or the template's affinity."""
        assert self.body is not None
        body = copy.deepcopy(self.body)
        if "strategy" in parts:
            body["spec"]["updateStrategy"] = parts["strategy"]
        if "affinity" in parts:
            body["spec"]["template"]["spec"].pop("affinity", None)
            if parts["affinity"] is not None:
                body["spec"]["template"]["spec"]["affinity"] = parts["affinity"]
        body["metadata"]["generation"] += 1
        self.writer = writer
        self._store(body)

    def _store(self, body: Json) -> None:
        self.body = body
        self.history.append(body)

    def change_adopted(self, action: actions.ChangeAdopted) -> None:
        """The operator's patch reaches the API server."""
        assert self.body is not None
        assert action.daemonset == "old-agent"
        assert self.finalizer or self.deleting, "the Rollout is held before anything is touched"
        after = apply(self.body, action.operations)
        if after is not None:
            after["metadata"]["generation"] += 1
            self._store(after)

    def snapshot(self) -> RolloutSnapshot:
        """What the operator sees."""
        seen = super().snapshot()
        if seen.spec.adoption is None and seen.status.adoption is None:
            return seen
        pods = {
            name: (*found, *self._legacy_seen(name)) if self.body is not None else found
            for name, found in seen.pods.items()
        }
        return replace(seen, legacy=self.look(seen), pods=pods)

    def look(self, seen: RolloutSnapshot) -> Legacy:
        """What the operator sees of the DaemonSet."""
        if self.body is None:
            return Legacy("old-agent")
        metadata, spec = self.body["metadata"], self.body["spec"]
        stored = seen.status.adoption.original if seen.status.adoption is not None else ""
        legacy = Legacy(
            name="old-agent",
            uid=metadata["uid"],
            generation=metadata["generation"],
            observed=self._observed() is self.body,
            pod=spec["template"]["spec"],
            strategy=spec["updateStrategy"],
            annotations=metadata.get("annotations") or {},
            original=read_original((metadata.get("annotations") or {}).get(names.ANNOTATION_ORIGINAL) or stored),
            writer=self.writer,
            problem=self.problem,
        )
        nodes = [*(sim.node for sim in self.nodes.values()), *self.outsiders.values()]
        return replace(
            legacy,
            serves_others=serves_others(legacy, KEY, seen.spec.target, nodes, seen.members),
            in_the_way=nodes_in_the_way(legacy, KEY, nodes),
        )

    def _legacy_seen(self, name: str) -> list[Pod]:
        pod = self.legacy_pods.get(name)
        if pod is None:
            return []
        return [
            Pod(
                pod.name,
                pod.name,
                name,
                names.ASSIGNMENT_LEGACY,
                terminating=pod.gone_at is not None,
                ready_since=pod.ready_since,
            )
        ]

    def _observed(self) -> Json | None:
        return self.history[0] if self.history else None

    def tick(self, seconds: float = 1.0) -> None:
        """Let time pass for the DaemonSet's controller, too."""
        super().tick(seconds)
        if not hasattr(self, "history"):
            return
        clock = self._clock()
        # What it observes it acts on at once; so it is the step after that in which a new spec counts.
        pod_spec = self.history[0]["spec"]["template"]["spec"] if self.body is not None else None
        for name, sim in self.nodes.items():
            wanted = pod_spec is not None and not why_not_scheduled(pod_spec, sim.node)
            pod = self.legacy_pods.get(name)
            if pod is not None and not wanted and pod.gone_at is None:
                pod.gone_at = clock + self.random.uniform(0, 4)
            if pod is not None and sim.node.ready and pod.gone_at is not None and pod.gone_at <= clock:
                self.ended.append(name)
                del self.legacy_pods[name]
                pod = None
            if wanted and pod is None:
                self.serial += 1
                self.legacy_pods[name] = SimPod(
                    f"legacy-{self.serial}", "legacy", clock + self.random.uniform(0, 5), self.behaviour(name, "legacy")
                )
        for name, pod in self.legacy_pods.items():
            ready = pod.behaviour == "healthy" and clock >= pod.ready_at and pod.gone_at is None
            ready = ready and name in self.nodes and self.nodes[name].node.ready
            pod.ready_since = (pod.ready_since or self.now) if ready else None
        for _ in range(len(self.history) - 1 if not self.lag else 1):
            if len(self.history) > 1:
                self.history.pop(0)
        self._check_one_agent()

    def _check_one_agent(self) -> None:
        if self.tolerates_two:
            return
        for name, sim in self.nodes.items():
            both = [pod.revision for pod in sim.pods] + (["legacy"] if name in self.legacy_pods else [])
            assert len(set(both)) <= 1, f"two agents live on {name}: {both}, labelled {self.assignment(name)}"

    def uids(self) -> dict[str, str]:
        """The DaemonSet's pods, by node."""
        return {name: pod.name for name, pod in self.legacy_pods.items()}
