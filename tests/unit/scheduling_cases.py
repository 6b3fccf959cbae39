"""Templates and nodes, and which of them the DaemonSet controller brings together.

The unit tests hold our prediction against the words here; the tests of the adapters hold it against a real controller,
for every template on every node.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outrider.core.snapshot import Node, Taint

GPU = Taint("gpu", "yes", "NoSchedule")
EVICTED = Taint("maintenance", "", "NoExecute")
SHUNNED = Taint("busy", "yes", "PreferNoSchedule")
CORDON = Taint("node.kubernetes.io/unschedulable", "", "NoSchedule")

NODES: Mapping[str, Node] = {
    node.name: node
    for node in (
        Node("plain", "uid-plain", {"kubernetes.io/hostname": "plain", "pool": "edge", "cores": "8"}, ready=True),
        Node("big", "uid-big", {"kubernetes.io/hostname": "big", "pool": "core", "cores": "64"}, ready=True),
        Node("odd", "uid-odd", {"pool": "", "cores": "many"}, ready=True),
        Node("underscored", "uid-underscored", {"cores": "1_000"}, ready=True),
        Node("gpu", "uid-gpu", {"pool": "edge"}, ready=True, taints=(GPU,)),
        Node("evicted", "uid-evicted", {"pool": "edge"}, ready=True, taints=(EVICTED,)),
        Node("both", "uid-both", {"pool": "edge"}, ready=True, taints=(GPU, EVICTED)),
        Node("shunned", "uid-shunned", {"pool": "edge"}, ready=True, taints=(SHUNNED,)),
        Node("cordoned", "uid-cordoned", {"pool": "edge"}, ready=True, unschedulable=True, taints=(CORDON,)),
    )
}


def tolerating(*tolerations: Mapping[str, Any]) -> dict[str, Any]:
    return {"tolerations": list(tolerations)}


def requiring(*terms: Mapping[str, Any]) -> dict[str, Any]:
    required = {"nodeSelectorTerms": list(terms)}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def term(*expressions: Mapping[str, Any], fields: tuple[Mapping[str, Any], ...] = ()) -> dict[str, Any]:
    return {
        **({"matchExpressions": list(expressions)} if expressions else {}),
        **({"matchFields": list(fields)} if fields else {}),
    }


@dataclass(frozen=True)
class Template:
    """A pod's spec (without containers), and the nodes of `NODES` on which such a pod runs."""

    sentence: str
    spec: Mapping[str, Any]
    runs_on: frozenset[str]
    words: Mapping[str, str] = field(default_factory=dict)
    """What has to be in our explanation for a node on which it does not run."""


def template(sentence: str, spec: Mapping[str, Any], *runs_on: str, **words: str) -> Template:
    return Template(sentence, spec, frozenset(runs_on), words)


UNTAINTED = ("plain", "big", "odd", "underscored", "shunned", "cordoned")
EDGE = ("plain", "shunned", "cordoned")

TEMPLATES = (
    template(
        "a template that asks for nothing runs wherever no taint keeps it out",
        {},
        *UNTAINTED,
        gpu="the template does not tolerate the node's taint gpu=yes:NoSchedule",
        evicted="maintenance=:NoExecute",
    ),
    # tolerations
    template("a toleration of everything", tolerating({"operator": "Exists"}), *NODES),
    template(
        "a toleration of everything with one effect",
        tolerating({"operator": "Exists", "effect": "NoSchedule"}),
        *UNTAINTED,
        "gpu",
        both="maintenance",
    ),
    template(
        "a toleration by key, value and effect",
        tolerating({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}),
        *UNTAINTED,
        "gpu",
    ),
    template(
        "a toleration without operator means Equal", tolerating({"key": "gpu", "value": "yes"}), *UNTAINTED, "gpu"
    ),
    template("a toleration of another value", tolerating({"key": "gpu", "value": "no"}), *UNTAINTED),
    template("a toleration without value is one of the empty value", tolerating({"key": "gpu"}), *UNTAINTED),
    template("so it fits a taint without value", tolerating({"key": "maintenance"}), *UNTAINTED, "evicted"),
    template("a toleration by key alone", tolerating({"key": "gpu", "operator": "Exists"}), *UNTAINTED, "gpu"),
    template(
        "a toleration with another effect",
        tolerating({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}),
        *UNTAINTED,
    ),
    template("a toleration of another key", tolerating({"key": "gpus", "operator": "Exists"}), *UNTAINTED),
    template(
        "a toleration for a while is one",
        tolerating({"key": "maintenance", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}),
        *UNTAINTED,
        "evicted",
    ),
    template(
        "two taints need two tolerations",
        tolerating({"key": "gpu", "operator": "Exists"}, {"key": "maintenance", "operator": "Exists"}),
        *NODES,
    ),
    # nodeSelector and nodeName
    template("a node selector", {"nodeSelector": {"pool": "edge"}}, *EDGE, big="nodeSelector wants pool=edge"),
    template("a node selector with an empty value", {"nodeSelector": {"pool": ""}}, "odd"),
    template("a node selector of two labels needs both", {"nodeSelector": {"pool": "edge", "cores": "8"}}, "plain"),
    template("a node's name", {"nodeName": "big"}, "big", plain="nodeName"),
    # operators of an affinity
    template(
        "In", requiring(term(expression("pool", "In", "edge", "core"))), *EDGE, "big", odd="required node affinity"
    ),
    template("NotIn", requiring(term(expression("pool", "NotIn", "edge"))), "big", "odd", "underscored"),
    template("Exists", requiring(term(expression("pool", "Exists"))), *EDGE, "big", "odd"),
    template("DoesNotExist", requiring(term(expression("pool", "DoesNotExist"))), "underscored"),
    template("Gt", requiring(term(expression("cores", "Gt", "8"))), "big"),
    template("Lt", requiring(term(expression("cores", "Lt", "64"))), "plain"),
    # terms of an affinity
    template(
        "expressions of one term must all hold",
        requiring(term(expression("pool", "In", "edge"), expression("cores", "Exists"))),
        "plain",
    ),
    template(
        "of several terms one is enough",
        requiring(term(expression("pool", "In", "core")), term(expression("cores", "In", "many"))),
        "big",
        "odd",
    ),
    template(
        "a name by field",
        requiring(term(fields=(expression("metadata.name", "In", "odd"),))),
        "odd",
    ),
    template(
        "not a name by field",
        requiring(term(fields=(expression("metadata.name", "NotIn", "odd"),))),
        *(set(UNTAINTED) - {"odd"}),
    ),
    template(
        "fields and expressions of one term must all hold",
        requiring(term(expression("pool", "In", "edge"), fields=(expression("metadata.name", "In", "odd"),))),
    ),
    template(
        "selector and affinity must both hold",
        {"nodeSelector": {"pool": "edge"}, **requiring(term(expression("cores", "Exists")))},
        "plain",
    ),
    template(
        "a preference keeps nobody out",
        {
            "affinity": {
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 1, "preference": term(expression("pool", "In", "nowhere"))}
                    ]
                }
            }
        },
        *UNTAINTED,
    ),
)
