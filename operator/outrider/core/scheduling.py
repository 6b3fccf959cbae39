"""Whether the DaemonSet controller and the scheduler would run an agent's pod on a node.

An agent that could not be scheduled again is not taken away. The rules are those of the DaemonSet controller's
predicates (Kubernetes `pkg/controller/daemon`: node affinity, taints of effect NoSchedule and NoExecute with the
tolerations that it adds to every pod); resources and ports are the scheduler's and are not predicted.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from outrider.core.snapshot import Node, Taint

# What the DaemonSet controller adds to every pod (Kubernetes `util.AddOrUpdateDaemonPodTolerations`).
_AUTOMATIC: tuple[tuple[str, str], ...] = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
)
_AUTOMATIC_HOST_NETWORK = (("node.kubernetes.io/network-unavailable", "NoSchedule"),)

_INTEGER = re.compile(r"[+-]?[0-9]+")


def why_not_scheduled(pod_spec: Mapping[str, Any], node: Node) -> str:
    """Return why a pod with this spec would not run on the node, as half a sentence; "" if it would."""
    if (pinned := pod_spec.get("nodeName")) and pinned != node.name:
        return f"the template's nodeName wants {pinned}"
    for taint in node.taints:
        if taint.effect in {"NoSchedule", "NoExecute"} and not _tolerates(pod_spec, taint):
            return f"the template does not tolerate the node's taint {taint.key}={taint.value}:{taint.effect}"
    for key, value in (pod_spec.get("nodeSelector") or {}).items():
        if node.labels.get(key) != value:
            return f"the template's nodeSelector wants {key}={value}"
    required = ((pod_spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if required and not any(_matches_term(term, node) for term in required.get("nodeSelectorTerms") or []):
        return "the template's required node affinity does not match the node"
    return ""


def _tolerates(pod_spec: Mapping[str, Any], taint: Taint) -> bool:
    automatic = _AUTOMATIC + (_AUTOMATIC_HOST_NETWORK if pod_spec.get("hostNetwork") else ())
    if (taint.key, taint.effect) in automatic:
        return True
    return any(_is_tolerated(toleration, taint) for toleration in pod_spec.get("tolerations") or [])


def _is_tolerated(toleration: Mapping[str, Any], taint: Taint) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.effect:
        return False
    key, operator = toleration.get("key") or "", toleration.get("operator") or "Equal"
    if key and key != taint.key:
        return False
    if operator == "Exists":
        return True
    # Comparing operators are off by default: what the controller does not do tolerates nothing.
    return operator == "Equal" and bool(key) and (toleration.get("value") or "") == taint.value


def _matches_term(term: Mapping[str, Any], node: Node) -> bool:
    expressions: Sequence[Mapping[str, Any]] = term.get("matchExpressions") or []
    fields: Sequence[Mapping[str, Any]] = term.get("matchFields") or []
    if not expressions and not fields:
        return False  # an empty term matches nothing
    return all(_matches(expression, node.labels.get(expression["key"])) for expression in expressions) and all(
        _matches(expression, node.name if expression["key"] == "metadata.name" else None) for expression in fields
    )


def _matches(expression: Mapping[str, Any], value: str | None) -> bool:
    values = expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            # Decimal digits only: Python would also take 1_000, which is a valid label value.
            if not values or not all(_INTEGER.fullmatch(text) for text in (value or "", values[0])):
                return False
            left, right = int(value or ""), int(values[0])
            return left > right if operator == "Gt" else left < right
        case _:
            return False
