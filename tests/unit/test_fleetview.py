"""What is kept of a fleet between two looks is what a look at every node and pod would find."""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.adapters.informer import Store
from outrider.adapters.kube import Json
from outrider.api import names
from outrider.api.rollout import Target
from outrider.core.fleet import Claim, carries_assignment, select_leavers, select_members
from outrider.core.moves import target_of
from outrider.core.snapshot import Node, Pod
from outrider.reconcile import fleetview
from outrider.reconcile.fleetview import AgentIndex, Claims, Fleet, FleetView, NodeLog
from outrider.reconcile.projections import AgentPod, project_node, project_pod

KEY = names.assignment_key("fleet", "agent")
NOW = datetime(2026, 1, 1, tzinfo=UTC)

ZONE_A = Target.model_validate({"nodeSelector": {"matchLabels": {"zone": "a"}}})
TARGETS = [Target.model_validate({"all": True}), ZONE_A, Target.model_validate({"nodeNames": ["n0", "n3"]})]
OLDER, YOUNGER = (
    Claim(name, name, "2026-01-01T00:00:00Z", ZONE_A, is_older=is_older)
    for name, is_older in [("older", True), ("younger", False)]
)
CLAIMS = st.builds(
    lambda target, others, revisions, legacy, deleting, going: Claims(
        KEY,
        target,
        tuple(others),
        frozenset(revisions),
        frozenset(revisions) | ({names.ASSIGNMENT_LEGACY} if legacy else frozenset()),
        deleting=deleting,
        all_assigned=going,
    ),
    st.sampled_from(TARGETS),
    st.sampled_from([[], [OLDER], [YOUNGER], [YOUNGER, OLDER]]),
    st.sampled_from([[], ["A"], ["A", "B"]]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
ASSIGNMENTS = st.sampled_from([None, "A", "B", "to-A", "to-B", "none", "legacy", "to-none", "other"])
NODES = st.builds(
    lambda index, zone, assignment, excluded, ready: {
        "metadata": {
            "name": f"n{index}",
            "uid": f"u{index}",
            "labels": {"zone": zone}
            | ({KEY: assignment} if assignment else {})
            | ({names.LABEL_EXCLUDE: "true"} if excluded else {}),
        },
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    },
    st.integers(0, 5),
    st.sampled_from("ab"),
    ASSIGNMENTS,
    st.booleans(),
    st.booleans(),
)
PODS = st.builds(
    lambda index, node, component, role, restarts: {
        "metadata": {
            "name": f"p{index}",
            "namespace": "fleet",
            "uid": f"uid-{index}",
            "labels": {names.LABEL_COMPONENT: component, names.LABEL_ROLE: role, names.LABEL_REVISION: "A"},
        },
        "spec": {"nodeName": node},
        "status": {"containerStatuses": [{"name": "noisy", "restartCount": restarts}]},
    },
    st.integers(0, 7),
    st.sampled_from(["", "n0", "n1"]),
    st.sampled_from(["agent", "daemon"]),
    st.sampled_from([names.ROLE_REVISION, names.ROLE_JOINERS, names.ROLE_PREPARE]),
    st.integers(0, 2),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), NODES | PODS),
        st.tuples(st.just("drop"), st.sampled_from([f"n{index}" for index in range(6)])),
        st.tuples(st.just("drop"), st.sampled_from([f"p{index}" for index in range(8)])),
        st.tuples(st.just("claims"), CLAIMS),
        st.tuples(st.just("look"), st.none()),
    ),
    max_size=40,
)


def ignore(_before: object, _after: object) -> None:
    return


def look_at_all(nodes: list[Node], claims: Claims) -> Fleet:
    """Ask of every node what it is, as the words of `RolloutSnapshot` have it."""
    members, foreign = select_members(nodes, claims.target, [each for each in claims.others if each.is_older])
    leavers = select_leavers(nodes, KEY, claims.revisions, members, claims.others)

    def is_kept(node: Node) -> bool:
        assignment = node.labels.get(KEY)
        if assignment is None:
            return False
        is_ours = assignment != "none" and carries_assignment(assignment, claims.known)
        return claims.all_assigned or ((claims.deleting or node.name not in foreign) and is_ours)

    concerned = {node.name: node for node in nodes if node.name in members | leavers or is_kept(node)}
    assigned = frozenset(target_of(node.labels[KEY]) for node in nodes if KEY in node.labels)
    return Fleet(concerned, members, foreign, leavers, assigned)


def look_at_all_pods(pods: list[AgentPod], component: str, *, preparing: bool, ignored: frozenset[str]) -> Any:
    found: defaultdict[str, set[Pod]] = defaultdict(set)
    for agent in pods:
        if agent.component == component and (agent.pod.role == names.ROLE_PREPARE) == preparing:
            found[agent.pod.node].add(agent.without(ignored))
    return dict(found)


@settings(max_examples=400, deadline=None)
@given(first=CLAIMS, steps=STEPS, kept=st.sampled_from([0, 1000]))
def test_a_fleet_is_seen_as_if_every_node_were_asked_each_time(
    first: Claims, steps: list[tuple[str, Any]], kept: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleetview, "_GONE_KEPT", kept)
        live_through(first, steps)


def live_through(first: Claims, steps: list[tuple[str, Any]]) -> None:
    nodes: Store[Node] = Store(project_node, ignore)
    pods: Store[AgentPod] = Store(lambda obj, before: project_pod(obj, before, NOW), ignore)
    log, index, view = NodeLog(nodes), AgentIndex(pods), FleetView(first)
    for version, (what, given_) in enumerate([*steps, ("look", None)], start=1):
        if what == "put":
            obj: Json = {**given_, "metadata": {**given_["metadata"], "resourceVersion": str(version)}}
            (pods if "namespace" in obj["metadata"] else nodes).put(obj)
        elif what == "drop":
            nodes.drop(("", given_))
            pods.drop(("fleet", given_))
        elif what == "claims":
            view = FleetView(given_)
        else:
            assert view.look(log) == look_at_all(list(nodes.values()), view.claims)
            for preparing in (False, True):
                for ignored in (frozenset[str](), frozenset({"noisy"})):
                    seen = index.pods("fleet", "agent", preparing=preparing, ignored=ignored)
                    wanted = look_at_all_pods(list(pods.values()), "agent", preparing=preparing, ignored=ignored)
                    assert {node: set(found) for node, found in seen.items()} == wanted
                    assert sum(map(len, seen.values())) == sum(map(len, wanted.values()))
            assert index.on("fleet", "agent", "n0") == index.pods("fleet", "agent").get("n0", ())


def test_what_was_there_before_somebody_looked_is_seen_and_what_nobody_changed_is_the_same_object() -> None:
    nodes: Store[Node] = Store(project_node, ignore)
    nodes.put({"metadata": {"name": "n0", "uid": "u0", "resourceVersion": "1"}})
    log = NodeLog(nodes)
    view = FleetView(Claims(KEY, TARGETS[0], (), frozenset(), frozenset(), deleting=False, all_assigned=False))
    seen = view.look(log)
    assert seen.members == {"n0"}
    assert view.look(log) is seen


def test_nodes_that_come_and_go_leave_nothing_behind() -> None:
    nodes: Store[Node] = Store(project_node, ignore)
    log = NodeLog(nodes)
    for index in range(5000):
        nodes.put({"metadata": {"name": f"n{index}", "uid": f"u{index}", "resourceVersion": str(2 * index + 1)}})
        nodes.drop(("", f"n{index}"))
    assert len(log) < 2000
    assert {node for node in log.changed_since(-1) if log.get(node) is not None} == set()
