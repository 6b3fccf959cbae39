"""Preparing nodes (`spec.prePull`): files and images are there and verified before an agent is stopped for them.

Nodes are prepared by pods of their own: an init container fills the node's cache, and one container that does nothing
holds each image of the template. Once such a pod is Ready all is there. Their DaemonSets name their nodes one by one,
are never changed, and are deleted as soon as none of their nodes waits any more.

Assumptions:
- A pod that prepares is of the revision that its label names, whichever DaemonSet made it.
- Whoever builds snapshots keeps these pods apart from agents.

Invariants:
- A node of a run that prepares sets out only after such a pod of the run's revision was seen Ready on it.
- Preparing changes no node's label, and takes no place of a batch or a window.
- What cannot be told condemns nobody: only what the node itself refused does, and then its agent runs on untouched.
- A way back never waits: its files are in the cache, or are fetched as they always are.
"""

import copy
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final

from outrider.api import names
from outrider.api.rollout import BatchNode, NodeResult, RolloutSpec, RolloutStatus, RunStatus
from outrider.core.delivery import OUR_CONTAINERS, container_security
from outrider.core.gates import why_shut
from outrider.core.health import find_refusal
from outrider.core.plan import DeletePrepare, PrepareNodes
from outrider.core.selection import choose_candidates, next_size, order_candidates, remaining_nodes
from outrider.core.snapshot import Batch, Hindrance, Node, Pod
from outrider.core.window import rolls_in_a_window
from outrider.core.windows import is_open
from outrider.core.words import count_nodes, name_first
from outrider.core.work import Work, is_direct, same_node, why_skip

MOST: Final = 500
"""So many nodes are prepared at a time: more would only wait for the registry, and their names make a large object."""

_IDLE_DIR: Final = "/outrider/idle"
_IDLE: Final = f"{_IDLE_DIR}/idle"
_VOLUME_IDLE: Final = "outrider-idle"

_KEPT: Final = (
    "nodeSelector",
    "tolerations",
    "imagePullSecrets",
    "serviceAccountName",
    "priorityClassName",
    "schedulerName",
    "runtimeClassName",
    "os",
    "hostNetwork",
    "dnsPolicy",
    "dnsConfig",
    "hostAliases",
)
"""What such a pod has of the agent's: what decides whether it may run on a node, and reaches the registries from it."""

Json = dict[str, Any]


# -- which nodes, and how one stands


def prepares(work: Work) -> bool:
    """Tell whether the run prepares nodes before they set out."""
    run = work.run
    return work.seen.spec.pre_pull and run is not None and run.kind == "Rollout" and not is_direct(run)


def is_due(work: Work, batch: Batch, entry: BatchNode) -> bool:
    """Tell whether a node of a batch is prepared before it sets out."""
    run = work.run
    return prepares(work) and run is not None and batch.spec.purpose == "Update" and entry.to == run.revision


def is_prepared(work: Work, node: Node) -> bool:
    """Tell whether everything that the run brings is on a node."""
    return any(pod.ready_since is not None for pod in _pods(work, node))


def judge_waiting(work: Work, result: NodeResult, node: Node) -> NodeResult:
    """Judge a node that waits for being prepared: Failed, if it refused what it was given, else as it was.

    It was never touched, so that its result has no `started_at`.
    """
    if is_prepared(work, node):
        return result
    for pod in _pods(work, node):
        if (why := find_refusal(pod, work.seen.spec.health)) is not None:
            failed = {"state": "Failed", "reason": why[0], "message": why[1][:256], "finished_at": work.seen.now}
            return result.model_copy(update=failed)
    return result


def was_never_touched(result: NodeResult) -> bool:
    """Tell whether a node failed while it was being prepared: its agent runs on."""
    return result.state == "Failed" and result.started_at is None


def note_waiting(work: Work, batch: Batch, entry: BatchNode, result: NodeResult, node: Node) -> None:
    """Record that a node has not set out because it is being prepared."""
    work.preparing += 1
    told = _tell(work, node)
    if (result.reason, result.message) != ("Preparing", told):
        again = {"reason": "Preparing", "message": told}
        work.results[batch.name][entry.name] = result.model_copy(update=again)


def _pods(work: Work, node: Node) -> Iterable[Pod]:
    revision = work.run.revision if work.run is not None else ""
    return (
        pod
        for pod in work.seen.preparing.get(node.name, ())
        if pod.revision == revision and pod.live and not pod.terminating
    )


def _tell(work: Work, node: Node) -> str:
    """Say how far the preparation of a node got."""
    pod = next(iter(_pods(work, node)), None)
    if pod is None:
        return "it is prepared before its agent is stopped: the pod for that has not been created yet"
    if pod.unschedulable:
        why = f"finds no place: {pod.unschedulable}"
    elif pod.refusal is not None:
        why = f"tries again: {pod.refusal.message}"
    elif pod.trouble:
        why = pod.trouble_message or pod.trouble
    else:
        why = "is pulling and verifying the artifact" if pod.fetching else "is getting the images"
    return f"it is prepared before its agent is stopped: pod {pod.name} {why}"[:256]


# -- policies


def clear_preparations(work: Work) -> None:
    """Which preparations does no run need any more? They go, in pauses too: nobody waits for them.

    Neither does a run that has stopped: when somebody asks to try its nodes again, they are given everything anew.
    """
    run = work.run
    wanted = run.revision if run is not None and run.state == "Running" and prepares(work) else None
    work.clean_up.extend(
        DeletePrepare(each.name) for each in work.seen.prepare_sets.values() if each.revision != wanted
    )


def prepare_nodes(work: Work) -> None:
    """Which nodes set out next? They get everything that they will need while their agents run on.

    Those of started batches that have not set out, and the candidates of the next batch, so that none waits for a
    download that could have been made while the one before was under way.
    """
    run = work.run
    if run is None or not work.is_active or not prepares(work):
        return
    sets = [each for each in work.seen.prepare_sets.values() if each.revision == run.revision]
    named = frozenset().union(*(each.nodes for each in sets))
    waiting = _find_waiting(work)
    wanted = waiting + _find_next(work, run, named, MOST - len(waiting))
    tokens = {token_of(node) for node in wanted}
    work.clean_up.extend(DeletePrepare(each.name) for each in sets if each.nodes.isdisjoint(tokens))
    missing = [node for node in wanted if token_of(node) not in named]
    room = MOST - len(tokens & named)
    is_worth_it = len(missing) <= room or room >= MOST // 4  # not a DaemonSet for each few
    if missing and is_worth_it and why_shut(work) is None:
        work.preparations.append(PrepareNodes(run.revision, tuple(sorted(node.name for node in missing[:room]))))
    _tell_delay(work, waiting)


def _find_waiting(work: Work) -> list[Node]:
    """Return the nodes of started batches that have not set out, in their order."""
    found = []
    for batch, entry, _ in work.entries({"Pending"}, updates=True):
        node = same_node(work, entry)
        if node is not None and is_due(work, batch, entry) and work.assignment(node) == (entry.origin or None):
            found.append(node)
    return found


def _find_next(work: Work, run: RunStatus, named: Collection[str], room: int) -> list[Node]:
    """Return the candidates of the batch that comes next, as far as can be told now.

    A window has its next nodes on record. Who is being prepared already stays chosen: to put a large fleet in order
    takes time, and is done once for a batch.
    """
    if room <= 0 or work.seen.wanted != run.revision or not work.run_batches():
        return []
    step, size = next_size(work, run)
    if rolls_in_a_window(work) and not step:
        return []
    size = min(size, room)
    chosen = [
        node
        for node in (work.members() if named else ())
        if token_of(node) in named
        and node.name not in work.touched
        and work.assignment(node) != run.revision
        and why_skip(work, node) is None
    ]
    if len(chosen) >= size:
        return chosen
    movable = [node for node in remaining_nodes(work) if why_skip(work, node) is None]
    step, size, movable, candidates = choose_candidates(work, run, movable)
    return order_candidates(work, run, candidates, step)[: min(size, room)]


def _tell_delay(work: Work, waiting: Sequence[Node]) -> None:
    """Say for which nodes it takes too long. They are waited for all the same."""
    timeout = timedelta(seconds=work.seen.spec.health.timeout_seconds)
    late: list[Node] = []
    for node in waiting:
        since = work.seen.unprepared_since.get(node.name)
        if since is None or is_prepared(work, node):
            continue
        if work.seen.now >= since + timeout:
            late.append(node)
        else:
            work.wakes.append(since + timeout)
    if work.doubt is not None or not (late or work.seen.prepare_problem):
        return
    if late:
        what = f"for more than {timeout.total_seconds():.0f} s {count_nodes(len(late))} could not be prepared"
        told = f"{name_first([node.name for node in late])} ({_tell(work, late[0])})"
    else:
        what, told = "no node can be prepared", work.seen.prepare_problem
    assert work.run is not None  # noqa: S101 - the caller has looked
    work.doubt = Hindrance(
        "NodesNotPrepared",
        f"{what} for {work.run.version}: {told}. Their agents run on, and it is tried again and again; look at the "
        f"pods with the label {names.LABEL_ROLE}={names.ROLE_PREPARE}, or set spec.prePull to false",
        stalled=True,
    )


def is_counting(spec: RolloutSpec, status: RolloutStatus, zones: Mapping[str, tzinfo], now: datetime) -> bool:
    """Tell whether the time that a preparation takes counts: not in a pause, and not outside the windows."""
    run = status.run
    if spec.paused or spec.frozen or run is None or run.state != "Running" or run.paused_since is not None:
        return False
    windows = [(window, zones[window.time_zone]) for window in spec.windows if window.time_zone in zones]
    return not spec.windows or is_open(windows, now)


# -- the DaemonSet


def token_of(node: Node) -> str:
    """Return what a DaemonSet tells a node by: its hostname, or where it has no such label its name."""
    return node.labels.get(names.LABEL_HOSTNAME) or node.name


def prepare_name(rollout: str, revision: str, tokens: Iterable[str]) -> str:
    """Return the name of the DaemonSet that prepares some nodes for a revision."""
    return f"{rollout}-prepare-{_hash(revision, tokens)}"


def _hash(revision: str, tokens: Iterable[str]) -> str:
    return hashlib.sha256("\n".join([revision, *sorted(tokens)]).encode()).hexdigest()[:10]


def build_prepare(revision_daemonset: Json, nodes: Sequence[Node], assignment_key: str, owner: Json) -> Json:
    """Return the DaemonSet that prepares nodes for a revision, made from that one's DaemonSet as it stands.

    It carries none of the template's own labels: no Service may send anything there. `owner` is the owner reference to
    the Rollout, with which it goes in any case.
    """
    metadata = revision_daemonset["metadata"]
    agent = revision_daemonset["spec"]["template"]["spec"]
    revision, rollout = metadata["labels"][names.LABEL_REVISION], metadata["labels"][names.LABEL_ROLLOUT]
    tokens = sorted(token_of(node) for node in nodes)
    group = _hash(revision, tokens)
    ours = {key: value for key, value in metadata["labels"].items() if key.startswith(f"{names.GROUP}/")}
    labels = {
        **ours,
        names.LABEL_ROLE: names.ROLE_PREPARE,
        names.LABEL_GROUP: group,
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
    }
    selector = {
        label: labels[label]
        for label in (names.LABEL_ROLLOUT, names.LABEL_REVISION, names.LABEL_ROLE, names.LABEL_GROUP)
    }
    return {
        "metadata": {
            "name": prepare_name(rollout, revision, tokens),
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": {names.ANNOTATION_PREPARES: ",".join(tokens)},
            "ownerReferences": [owner],
        },
        "spec": {
            "selector": {"matchLabels": selector},
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 1,
            "template": {
                "metadata": {"labels": labels},
                "spec": _build_pod(agent, metadata.get("annotations") or {}, nodes, assignment_key),
            },
        },
    }


def _build_pod(agent: Json, annotations: Mapping[str, str], nodes: Sequence[Node], assignment_key: str) -> Json:
    containers = [*(agent.get("initContainers") or []), *(agent.get("containers") or [])]
    fetch = next((one for one in containers if one["name"] == names.FETCH_CONTAINER), None)
    fetch_image = fetch["image"] if fetch is not None else annotations[names.ANNOTATION_FETCH_IMAGE]
    init = _prepare_container(fetch, fetch_image)
    mounted = {mount["name"] for mount in init["volumeMounts"]}
    images: dict[str, str] = {}
    for one in containers:
        if one["name"] not in OUR_CONTAINERS and one["image"] != fetch_image:
            images.setdefault(one["image"], one.get("imagePullPolicy") or "IfNotPresent")
    selinux = (agent.get("securityContext") or {}).get("seLinuxOptions")
    return {
        **{field: copy.deepcopy(agent[field]) for field in _KEPT if field in agent},
        "affinity": {"nodeAffinity": {_REQUIRED: {"nodeSelectorTerms": _terms(agent, nodes, assignment_key)}}},
        **({"securityContext": {"seLinuxOptions": selinux}} if selinux else {}),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "initContainers": [init],
        "containers": [
            _idle_container(f"image-{number}", image, policy)
            for number, (image, policy) in enumerate((images or {fetch_image: "IfNotPresent"}).items(), start=1)
        ],
        "volumes": [
            *(copy.deepcopy(volume) for volume in agent.get("volumes") or [] if volume["name"] in mounted),
            {"name": _VOLUME_IDLE, "emptyDir": {}},
        ],
    }


_REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"


def _terms(agent: Json, nodes: Sequence[Node], assignment_key: str) -> list[Json]:
    """Return the agent's own terms, each for the nodes instead of for an assignment."""
    required = ((agent.get("affinity") or {}).get("nodeAffinity") or {}).get(_REQUIRED) or {}
    hosts = sorted({node.labels[names.LABEL_HOSTNAME] for node in nodes if node.labels.get(names.LABEL_HOSTNAME)})
    others = sorted(node.name for node in nodes if not node.labels.get(names.LABEL_HOSTNAME))
    terms: list[Json] = []
    for term in required.get("nodeSelectorTerms") or [{}]:
        expressions = [one for one in term.get("matchExpressions") or [] if one["key"] != assignment_key]
        if hosts:
            wanted = {"key": names.LABEL_HOSTNAME, "operator": "In", "values": hosts}
            terms.append({**term, "matchExpressions": [*expressions, wanted]})
        for name in others:  # one each: a field may have one value only
            field = {"key": "metadata.name", "operator": "In", "values": [name]}
            fields = [*(term.get("matchFields") or []), field]
            terms.append({**({"matchExpressions": expressions} if expressions else {}), "matchFields": fields})
    return terms


def _prepare_container(fetch: Json | None, image: str) -> Json:
    """Return the container that fills the cache, if the agent's one has a cache, and hands out the idle program."""
    mode = [
        {"name": "OUTRIDER_PREPARE", "value": "true"},
        {"name": "OUTRIDER_IDLE_DIR", "value": _IDLE_DIR},
    ]
    idle = {"name": _VOLUME_IDLE, "mountPath": _IDLE_DIR}
    if fetch is not None and any(variable["name"] == "OUTRIDER_CACHE_DIR" for variable in fetch.get("env") or []):
        made: Json = copy.deepcopy(fetch)
        made["env"] = [*(one for one in made["env"] if one["name"] != "OUTRIDER_TARGET_DIR"), *mode]
        mounts = [one for one in made.get("volumeMounts") or [] if one["name"] != names.VOLUME_ARTIFACT]
        made["volumeMounts"] = [*mounts, idle]
        return made
    return {
        "name": names.FETCH_CONTAINER,
        "image": image,
        "imagePullPolicy": fetch.get("imagePullPolicy", "IfNotPresent") if fetch is not None else "IfNotPresent",
        "command": ["outrider-fetch"],
        "env": mode,
        "volumeMounts": [idle],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "192Mi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": container_security(root=False),
    }


def _idle_container(name: str, image: str, policy: str) -> Json:
    """Return a container that has an image on the node, and does nothing."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": policy,
        "command": [_IDLE],
        "volumeMounts": [{"name": _VOLUME_IDLE, "mountPath": _IDLE_DIR, "readOnly": True}],
        "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}, "limits": {"memory": "16Mi"}},
        "securityContext": container_security(root=False),
    }
