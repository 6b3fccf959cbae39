"""What `outrider plan` does: it lists what the operator watches, and asks its planner. Nothing is written."""

import asyncio
import json
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from outrider.adapters import clock
from outrider.adapters.informer import Store
from outrider.adapters.kube import (
    COMPONENT_VERSIONS,
    CONFIG_MAPS,
    DAEMON_SETS,
    NAMESPACES,
    NODES,
    PODS,
    ROLLOUT_BATCHES,
    ROLLOUTS,
    Cluster,
    Json,
    Resource,
)
from outrider.api import names
from outrider.api.componentversion import Version
from outrider.api.errors import OutriderError, Stalling
from outrider.cli.access import list_all, missing_right
from outrider.core.preview import Preview, preview_rollout
from outrider.core.snapshot import Node, RolloutSnapshot
from outrider.reconcile.adoption import Sight, adopted_name, project_legacy, project_legacy_pod, selector_text
from outrider.reconcile.gathering import Caches, Gatherer, Memory
from outrider.reconcile.namespaces import read_facts
from outrider.reconcile.projections import (
    AgentDaemonSet,
    AgentPod,
    StoredBatch,
    project_batch,
    project_daemonset,
    project_node,
    project_pod,
)
from outrider.settings import Settings, read_settings

_OF_NODES = ("OUTRIDER_HOST_ROOTS", "OUTRIDER_NODE_DIR")
_EXAMPLE = "which nodes come first is decided when the Rollout is created: this order is an example"


@dataclass(frozen=True)
class Question:
    """Of which Rollout the command was asked."""

    name: str
    file: Path | None
    version: str | None
    node_seconds: float


async def ask(cluster: Cluster, namespace: str, question: Question) -> Preview:
    """Return what the Rollout would do. Raises OutriderError."""
    stated = read_rollout(question.file) if question.file is not None else None
    if stated is not None:
        namespace = _place(stated, namespace)
    caches = await fill_caches(cluster, namespace)
    if stated is None:
        body = _find(caches, namespace, question.name)
        if question.version is not None:
            _check_version(question.version)
            body = {**body, "spec": {**body["spec"], "version": question.version}}
    else:
        body = await _admit(cluster, caches, namespace, stated)
    ground, assumptions = await find_ground(cluster, namespace, body)
    seen = await look(caches, body, await find_adopted(cluster, namespace, body), ground)
    _check_pace(seen, question.node_seconds)
    preview = preview_rollout(seen, node_seconds=question.node_seconds)
    preview = replace(preview, assumptions=(*preview.assumptions, *assumptions))
    if stated is not None and caches.rollouts.get(namespace, seen.name) is None:
        preview = replace(preview, assumptions=(*preview.assumptions, _EXAMPLE))
    return preview


@dataclass(frozen=True)
class Ground:
    """What deliveries may use, as far as the user may see it."""

    settings: Settings
    pod_security: str = ""


NO_GROUND = Ground(Settings())
"""Nothing is known, and so nothing is forbidden but what is everywhere."""


async def look(caches: Caches, body: Json, sight: Sight | None = None, ground: Ground = NO_GROUND) -> RolloutSnapshot:
    """Return the snapshot that the operator would plan on."""
    await asyncio.sleep(0)
    gatherer = Gatherer(caches, ground.settings, lambda _key: sight)
    return gatherer.gather(body, Memory(), pod_security=ground.pod_security)


async def find_ground(cluster: Cluster, namespace: str, body: Json) -> tuple[Ground, tuple[str, ...]]:
    """Return what the Rollout's delivery may use, and what of that had to be assumed.

    The settings are looked for where the operator is installed by default; few users may see them there.
    """
    is_host = (body["spec"].get("delivery") or {}).get("host") is not None
    settings, level, assumptions = Settings(), "", []
    if is_host:
        found = await _try_to_get(cluster, CONFIG_MAPS, settings.namespace, "outrider-settings")
        if found is not None:
            own = {key: value for key, value in (found.get("data") or {}).items() if key in _OF_NODES}
            settings = read_settings({"OUTRIDER_REGISTRY": "unknown", **own})
        else:
            roots = ", ".join(settings.host_roots)
            assumptions.append(f"the operator installs Daemons below {roots}: its settings cannot be seen from here")
    if is_host or body["spec"].get("prePull"):
        found = await _try_to_get(cluster, NAMESPACES, None, namespace)
        if found is not None:
            level = read_facts(found).pod_security
        else:
            assumptions.append(f"namespace {namespace} enforces no Pod Security level: it cannot be seen from here")
    return Ground(settings, level), tuple(assumptions)


async def _try_to_get(cluster: Cluster, resource: Resource, namespace: str | None, name: str) -> Json | None:
    try:
        return await cluster.get(resource, namespace, name)
    except OutriderError as error:
        if error.reason == "Forbidden":
            return None
        raise


async def find_adopted(cluster: Cluster, namespace: str, body: Json) -> Sight | None:
    """Return the DaemonSet that a Rollout takes over, if it takes over one, and its pods."""
    name = adopted_name(body)
    if name is None:
        return None
    found = await cluster.get(DAEMON_SETS, namespace, name)
    if found is None:
        return Sight(name, None, [])
    now = clock.now()
    selector = selector_text(found["spec"]["selector"])
    pods = [
        replace(seen, agent=_with_its_own_time(seen.agent, obj))
        for obj in await list_all(cluster, PODS, namespace, labelSelector=selector)
        for seen in [project_legacy_pod(obj, None, now)]
    ]
    return Sight(name, project_legacy(found), pods)


async def fill_caches(cluster: Cluster, namespace: str) -> Caches:
    """List what the operator would watch, as far as it matters for a Rollout in a namespace."""
    ours = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
    now = clock.now()
    caches = Caches(
        rollouts=Store[Json](_as_it_is, _ignore),
        versions=Store[Json](_as_it_is, _ignore),
        nodes=Store[Node](project_node, _ignore),
        pods=Store[AgentPod](lambda obj, before: _with_its_own_time(project_pod(obj, before, now), obj), _ignore),
        daemonsets=Store[AgentDaemonSet](project_daemonset, _ignore),
        batches=Store[StoredBatch](project_batch, _ignore),
    )
    # Custom resources first: if Outrider is not installed, that is what has to be said.
    for store, resource, place, selector in (
        (caches.rollouts, ROLLOUTS, namespace, ""),
        (caches.versions, COMPONENT_VERSIONS, namespace, ""),
        (caches.batches, ROLLOUT_BATCHES, namespace, ours),
        (caches.daemonsets, DAEMON_SETS, namespace, ours),
        (caches.pods, PODS, namespace, f"{names.LABEL_ROLLOUT},{ours}"),
        (caches.nodes, NODES, None, ""),
    ):
        assert isinstance(store, Store)  # noqa: S101 - what the loop's types do not say
        for obj in await list_all(cluster, resource, place, **({"labelSelector": selector} if selector else {})):
            store.put(obj)
    return caches


def _with_its_own_time(agent: AgentPod, obj: Json) -> AgentPod:
    """Return an agent that is Ready since when its own condition says so: nobody has watched it here."""
    if agent.pod.ready_since is None:
        return agent
    conditions = (obj.get("status") or {}).get("conditions") or []
    said = next((c.get("lastTransitionTime") for c in conditions if c["type"] == "Ready"), None)
    if not said:
        return agent
    since = datetime.fromisoformat(said)
    return replace(agent, pod=replace(agent.pod, ready_since=min(since, agent.pod.ready_since)))


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it: a time is a string."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_rollout(file: Path) -> Json:
    """Return the one Rollout in a file. Raises Stalling(FileInvalid)."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        documents = [document for document in yaml.load_all(text, _Loader) if document]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Stalling("FileInvalid", f"{file} cannot be read: {error}") from error
    rollouts = [d for d in documents if isinstance(d, dict) and d.get("kind") == ROLLOUTS.kind]
    if len(rollouts) != 1:
        raise Stalling("FileInvalid", f"{file} holds {len(rollouts)} Rollouts; give a file with one")
    [rollout] = rollouts
    if not isinstance(rollout.get("metadata"), dict) or not rollout["metadata"].get("name"):
        raise Stalling("FileInvalid", f"the Rollout in {file} has no metadata.name")
    if rollout.get("apiVersion") != ROLLOUTS.api_version:
        raise Stalling("FileInvalid", f"the Rollout in {file} is not of {ROLLOUTS.api_version}")
    return json_like(rollout)


def json_like(value: Json) -> Json:
    """Return a document as JSON has it."""
    result: Json = json.loads(json.dumps(value))
    return result


def _place(stated: Json, namespace: str) -> str:
    named = stated["metadata"].get("namespace")
    return str(named) if named else namespace


def _find(caches: Caches, namespace: str, name: str) -> Json:
    body = caches.rollouts.get(namespace, name)
    if body is None:
        known = sorted(each["metadata"]["name"] for each in caches.rollouts.values())
        there = f"there are {', '.join(known[:10])}" if known else "there is none"
        raise Stalling("NotFound", f"there is no Rollout {name} in namespace {namespace}; {there}")
    return body


def _check_version(version: str) -> None:
    try:
        TypeAdapter(Version).validate_python(version)
    except ValidationError as error:
        raise Stalling("Invalid", f"{version!r} is no version; write it as in 1.4.0 or 1.4.0-rc.1") from error


def _check_pace(seen: RolloutSnapshot, node_seconds: float) -> None:
    allowed = seen.spec.health.timeout_seconds
    if node_seconds >= allowed:
        raise Stalling(
            "Invalid",
            f"with {node_seconds:g} s for each node none would be healthy in time: spec.health.timeoutSeconds is "
            f"{allowed}",
        )


async def _admit(cluster: Cluster, caches: Caches, namespace: str, stated: Json) -> Json:
    """Return the Rollout as the API server would store it: its rules are tried, its defaults filled in.

    The whole spec is replaced by the file's, for that is what every way of applying comes to.
    """
    metadata = stated["metadata"]
    known = caches.rollouts.get(namespace, metadata["name"])
    body: dict[str, Any] = {
        "apiVersion": ROLLOUTS.api_version,
        "kind": ROLLOUTS.kind,
        "metadata": {**metadata, "namespace": namespace},
        "spec": stated.get("spec") or {},
    }
    if known is not None:
        merged = dict(known["metadata"])
        for part in ("labels", "annotations"):
            merged[part] = {**(merged.get(part) or {}), **(metadata.get(part) or {})}
        body["metadata"] = merged
    try:
        return await cluster.try_out(ROLLOUTS, namespace, body)
    except OutriderError as error:
        if error.reason == "Forbidden":
            raise missing_right("create" if known is None else "update", ROLLOUTS, namespace) from error
        raise


def _as_it_is(obj: Json, _before: Json | None) -> Json:
    return obj


def _ignore(_before: object, _after: object) -> None:
    return
