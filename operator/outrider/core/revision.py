"""Revisions: what a node runs, as an immutable DaemonSet each.

A revision is the user's input (template, version, delivery) and nothing else: an operator upgrade, new defaults or
another image of the init container change no hash and start no run.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from outrider.api import names
from outrider.api.rollout import RolloutSpec, Target
from outrider.core.delivery import FetchSettings, deliver

_HASH_FORMAT = 1
"""Goes into the hash: a later canonical form gets another number, and never collides with this one."""

Json = dict[str, Any]


def revision_of(rollout: str, spec: RolloutSpec) -> str:
    """Return the revision that a spec asks for: 10 hex digits over the user's input in a canonical form."""
    content = {
        "format": _HASH_FORMAT,
        "rollout": rollout,
        "component": spec.component,
        "version": spec.version,
        "template": spec.template,
        # Without what is as by default: a field that a later version adds, with a default, must start no run.
        "delivery": spec.delivery.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True),
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def daemonset_name(rollout: str, revision: str) -> str:
    """Return the name of a revision's DaemonSet."""
    return f"{rollout}-{revision}"


def joiners_name(rollout: str, joiners: str) -> str:
    """Return the name of the DaemonSet that serves joining nodes; `joiners` is what `joiners_id` returned."""
    return f"{rollout}-join-{joiners}"


def hash_target(target: Target) -> str:
    """Return 5 hex digits over a target: another target needs another joiners' DaemonSet."""
    canonical = json.dumps(target.to_api(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:5]


def joiners_id(revision: str, target_hash: str) -> str:
    """Return what tells joiners' DaemonSets of one Rollout apart: what they bring, and to whom."""
    return f"{revision}-{target_hash}" if target_hash else revision


def build_daemonset(
    *,
    namespace: str,
    rollout: str,
    spec: RolloutSpec,
    revision: str,
    fetch: FetchSettings,
) -> Json:
    """Return the DaemonSet of a revision: the user's template, its delivery, and the nodes assigned to it.

    It has no ownerReferences: deleting the Rollout, in the foreground too, must not take the agents away.
    """
    key = names.assignment_key(namespace, spec.component)
    wanted = {"key": key, "operator": "In", "values": [revision]}
    return _daemonset(namespace, rollout, spec, revision, fetch, names.ROLE_REVISION, [[wanted]])


def build_joiners(revision_daemonset: Json, target: Target, assignment_key: str) -> Json:
    """Return the DaemonSet that serves nodes of the target without an assignment with a (stable) revision.

    It is made from that revision's DaemonSet as it stands in the cluster: the spec may ask for another one by now. A
    node that joins while the operator is down gets a verified agent by it all the same.
    """
    metadata = revision_daemonset["metadata"]
    labels = dict(metadata["labels"])
    revision, rollout = labels[names.LABEL_REVISION], labels[names.LABEL_ROLLOUT]
    labels[names.LABEL_ROLE] = names.ROLE_JOINERS
    spec = copy.deepcopy(revision_daemonset["spec"])
    spec["selector"]["matchLabels"][names.LABEL_ROLE] = names.ROLE_JOINERS
    template = spec["template"]
    template["metadata"]["labels"][names.LABEL_ROLE] = names.ROLE_JOINERS
    unassigned: list[Json] = [
        {"key": assignment_key, "operator": "DoesNotExist"},
        {"key": names.LABEL_EXCLUDE, "operator": "NotIn", "values": ["true"]},
    ]
    if target.node_selector is not None:
        unassigned += [
            {"key": label, "operator": "In", "values": [value]}
            for label, value in sorted(target.node_selector.match_labels.items())
        ]
        unassigned += [
            requirement.to_api() if requirement.values else {"key": requirement.key, "operator": requirement.operator}
            for requirement in target.node_selector.match_expressions
        ]
    if platforms := (metadata.get("annotations") or {}).get(names.ANNOTATION_PLATFORMS):
        architectures = sorted({platform.partition("/")[2] for platform in platforms.split(",")})
        unassigned.append({"key": names.LABEL_ARCH, "operator": "In", "values": architectures})
    required = template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    for term in required["nodeSelectorTerms"]:
        kept = [e for e in term.get("matchExpressions") or [] if e["key"] != assignment_key]
        term["matchExpressions"] = kept + unassigned
    return {
        "metadata": {
            "name": joiners_name(rollout, joiners_id(revision, hash_target(target))),
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": {
                **_own_annotations(metadata.get("annotations") or {}),
                names.ANNOTATION_TARGET: hash_target(target),
            },
        },
        "spec": {
            "selector": spec["selector"],
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 1,
            "template": template,
        },
    }


def _own_annotations(annotations: Mapping[str, str]) -> Json:
    return {key: value for key, value in annotations.items() if key.startswith(f"{names.GROUP}/")}


def _daemonset(
    namespace: str,
    rollout: str,
    spec: RolloutSpec,
    revision: str,
    fetch: FetchSettings,
    role: str,
    alternatives: list[list[Json]],
) -> Json:
    selector = {names.LABEL_ROLLOUT: rollout, names.LABEL_REVISION: revision, names.LABEL_ROLE: role}
    labels = {
        **selector,
        names.LABEL_COMPONENT: spec.component,
        names.LABEL_VERSION: spec.version,
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
    }
    template = copy.deepcopy(dict(spec.template))
    metadata = template.setdefault("metadata", {})
    metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
    pod = template.setdefault("spec", {})
    require_nodes(pod, alternatives)
    deliver(pod, spec, fetch)
    return {
        "metadata": {
            "name": daemonset_name(rollout, revision),
            "namespace": namespace,
            "labels": labels,
            "annotations": {
                names.ANNOTATION_FETCH_IMAGE: fetch.image,
                names.ANNOTATION_PLATFORMS: ",".join(sorted(fetch.digests)),
            },
        },
        "spec": {
            "selector": {"matchLabels": selector},
            # Never changed after its creation, and nothing else decides when a pod is replaced.
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 1,
            "template": template,
        },
    }


def require_nodes(pod: Json, alternatives: list[list[Json]]) -> None:
    """Add requirements to every nodeSelectorTerm: terms are alternatives, so each of them must carry them."""
    affinity = pod["affinity"] = dict(pod.get("affinity") or {})
    node_affinity = affinity["nodeAffinity"] = dict(affinity.get("nodeAffinity") or {})
    required = dict(node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {})
    terms = required.get("nodeSelectorTerms") or [{}]
    required["nodeSelectorTerms"] = [
        {**term, "matchExpressions": [*(term.get("matchExpressions") or []), *requirements]}
        for term in terms
        for requirements in alternatives
    ]
    node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = required
