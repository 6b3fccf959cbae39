"""Whether an agent that is taken away could be scheduled again, by the DaemonSet controller's rules."""

from typing import Any

import pytest

from outrider.core.scheduling import why_not_scheduled
from outrider.core.snapshot import Node, Taint
from unit.scheduling_cases import NODES, TEMPLATES, Template, requiring, term, tolerating


@pytest.mark.parametrize("case", TEMPLATES, ids=[case.sentence for case in TEMPLATES])
def test_prediction(case: Template) -> None:
    assert {name for name, node in NODES.items() if not why_not_scheduled(case.spec, node)} == case.runs_on
    for name, words in case.words.items():
        assert words in why_not_scheduled(case.spec, NODES[name])


def tainted(key: str, effect: str) -> Node:
    return Node("n", "uid", {}, ready=True, taints=(Taint(key, "", effect),))


@pytest.mark.parametrize(
    ("key", "effect", "spec", "runs"),
    [
        # Kubernetes adds these tolerations to every pod of a DaemonSet (AddOrUpdateDaemonPodTolerations).
        ("node.kubernetes.io/not-ready", "NoExecute", {}, True),
        ("node.kubernetes.io/unreachable", "NoExecute", {}, True),
        ("node.kubernetes.io/disk-pressure", "NoSchedule", {}, True),
        ("node.kubernetes.io/memory-pressure", "NoSchedule", {}, True),
        ("node.kubernetes.io/pid-pressure", "NoSchedule", {}, True),
        ("node.kubernetes.io/unschedulable", "NoSchedule", {}, True),
        ("node.kubernetes.io/network-unavailable", "NoSchedule", {"hostNetwork": True}, True),
        # and not these
        ("node.kubernetes.io/network-unavailable", "NoSchedule", {}, False),
        ("node.kubernetes.io/network-unavailable", "NoSchedule", {"hostNetwork": False}, False),
        ("node.kubernetes.io/not-ready", "NoSchedule", {}, False),
        ("node.kubernetes.io/unreachable", "NoSchedule", {}, False),
        ("node.kubernetes.io/disk-pressure", "NoExecute", {}, False),
        ("node.kubernetes.io/out-of-service", "NoExecute", {}, False),
        ("node.cloudprovider.kubernetes.io/uninitialized", "NoSchedule", {}, False),
        ("node.kubernetes.io/not-ready", "PreferNoSchedule", {}, True),
    ],
)
def test_taints_that_kubernetes_sets_itself(key: str, effect: str, spec: dict[str, Any], runs: bool) -> None:
    assert (why_not_scheduled(spec, tainted(key, effect)) == "") == runs


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"tolerations": None, "nodeSelector": None, "affinity": None}, id="nulls say nothing"),
        pytest.param({"affinity": {"nodeAffinity": None}}, id="no node affinity in an affinity"),
        pytest.param({"affinity": {"podAntiAffinity": {}}}, id="pods' affinity is the scheduler's"),
    ],
)
def test_what_says_nothing_keeps_nobody_out(spec: dict[str, Any]) -> None:
    assert why_not_scheduled(spec, NODES["plain"]) == ""


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(requiring(), id="no term matches nothing"),
        pytest.param(requiring(term()), id="an empty term matches nothing"),
        pytest.param(requiring(term({"key": "pool", "operator": "Near", "values": ["edge"]})), id="a later operator"),
        pytest.param(requiring(term({"key": "cores", "operator": "Gt"})), id="Gt without a value"),
        pytest.param(requiring(term({"key": "cores", "operator": "Gt", "values": ["few"]})), id="Gt of no number"),
    ],
)
def test_what_cannot_be_understood_takes_no_agent_away(spec: dict[str, Any]) -> None:
    assert "required node affinity" in why_not_scheduled(spec, NODES["plain"])


def test_a_toleration_with_a_later_operator_tolerates_nothing() -> None:
    assert why_not_scheduled(tolerating({"key": "gpu", "operator": "Gt", "value": "yes"}), NODES["gpu"]) != ""
