"""The arithmetic of terms, what is stored and restored of a DaemonSet, and what is seen of it."""

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from outrider.api.names import ANNOTATION_ADOPTED_BY, ANNOTATION_ORIGINAL
from outrider.api.rollout import Target
from outrider.core.adoption import (
    Form,
    change_form,
    covers_only,
    form_of,
    is_in_force,
    nodes_in_the_way,
    patched,
    read_original,
    require_assignment,
    serves_others,
    strip_terms,
)
from outrider.core.scheduling import why_not_scheduled
from outrider.core.snapshot import Legacy, Node
from outrider.reconcile.adoption import (
    adopted_name,
    controller_of,
    last_writer,
    project_legacy,
    project_legacy_pod,
    selector_text,
)
from simulation.adopted import apply

Json = dict[str, Any]

KEY = "agents.outrider.dev/fleet.agent-0123456789"
ABSENT = {"key": KEY, "operator": "DoesNotExist"}
NAMED = {"key": KEY, "operator": "In", "values": ["legacy"]}
ZONE = {"key": "zone", "operator": "In", "values": ["a"]}
GPU = {"key": "gpu", "operator": "Exists"}
BY_NAME = {"key": "metadata.name", "operator": "In", "values": ["n1"]}


def term(*expressions: Json, fields: tuple[Json, ...] = ()) -> Json:
    made: Json = {"matchExpressions": list(expressions)} if expressions else {}
    return {**made, "matchFields": list(fields)} if fields else made


@pytest.mark.parametrize(
    ("form", "terms", "expected"),
    [
        ("Shared", [term(ZONE)], [term(ZONE, ABSENT), term(ZONE, NAMED)]),
        ("Last", [term(ZONE)], [term(ZONE, NAMED)]),
        (
            "Shared",
            [term(ZONE), term(GPU)],
            [term(ZONE, ABSENT), term(ZONE, NAMED), term(GPU, ABSENT), term(GPU, NAMED)],
        ),
        ("Last", [term(ZONE), term(GPU)], [term(ZONE, NAMED), term(GPU, NAMED)]),
        ("Last", [term(fields=(BY_NAME,))], [term(NAMED, fields=(BY_NAME,))]),
        ("Shared", [term(), term(ZONE)], [term(ZONE, ABSENT), term(ZONE, NAMED)]),  # an empty one matches nothing
        ("Shared", [term()], []),
        ("Original", [term(ZONE)], [term(ZONE)]),
    ],
)
def test_every_term_says_it(form: Form, terms: list[Json], expected: list[Json]) -> None:
    before = copy.deepcopy(terms)
    assert require_assignment(terms, KEY, form) == expected
    assert terms == before


@pytest.mark.parametrize("terms", [[term(ZONE)], [term(ZONE), term(GPU)], [term(ZONE, fields=(BY_NAME,))]])
@pytest.mark.parametrize("form", ["Shared", "Last"])
def test_what_was_required_can_be_taken_away_again(terms: list[Json], form: Form) -> None:
    assert strip_terms(require_assignment(terms, KEY, form), KEY) == terms


NODES = [
    Node(f"n{number}", "u", {**zone, **gpu, **label}, ready=True)
    for number, (zone, gpu, label) in enumerate(
        (zone, gpu, label)
        for zone in ({}, {"zone": "a"}, {"zone": "b"})
        for gpu in ({}, {"gpu": "yes"})
        for label in ({}, {KEY: "legacy"}, {KEY: "none"}, {KEY: "r1"}, {KEY: "to-r1"}, {KEY: "to-legacy"})
    )
]
"""Every combination of labels."""

AFFINITIES: dict[str, Any] = {
    "none": None,
    "empty": {},
    "pods only": {"podAntiAffinity": {"x": []}},
    "an empty node affinity": {"nodeAffinity": {}},
    "preferred only": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}]}},
    "one term": {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term(ZONE)]}}
    },
    "two, and more": {
        "podAntiAffinity": {"x": []},
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term(ZONE), term(GPU)]},
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}],
        },
    },
    "the same twice": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term(ZONE), term(ZONE)]}
        }
    },
}
STRATEGIES: dict[str, Json] = {
    "rolling": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%", "maxSurge": 0}},
    "on delete": {"type": "OnDelete"},
}


def body(affinity: Any = None, strategy: Json | None = None, **annotations: str) -> Json:
    pod: Json = {"containers": [{"name": "agent"}]}
    if affinity is not None:
        pod["affinity"] = copy.deepcopy(affinity)
    metadata: Json = {"name": "old", "uid": "u", "generation": 1, "resourceVersion": "1"}
    if annotations:
        metadata["annotations"] = annotations
    return {
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": {"app": "old"}},
            "updateStrategy": strategy or STRATEGIES["rolling"],
            "template": {"metadata": {"labels": {"app": "old"}}, "spec": pod},
        },
        "status": {"observedGeneration": 1},
    }


def look(found: Json, stored: str = "") -> Legacy:
    seen = project_legacy(found)
    original = read_original(seen["annotations"].get(ANNOTATION_ORIGINAL) or stored)
    return Legacy(**{field: value for field, value in seen.items() if field != "selector"}, original=original)


def change(found: Json, form: Form, stored: str = "") -> Json:
    after = apply(found, change_form(look(found, stored), "agent", KEY, form))
    assert after is not None
    after["metadata"]["generation"] += 1
    return after


def wanted(found: Json) -> set[str]:
    pod = found["spec"]["template"]["spec"]
    return {node.name for node in NODES if not why_not_scheduled(pod, node)}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("affinity", AFFINITIES.values(), ids=AFFINITIES)
def test_there_and_back_it_is_as_it_was_byte_by_byte(affinity: Any, strategy: Json) -> None:
    original = body(affinity, strategy, theirs="stays")
    all_of_them = wanted(original)
    shared = change(original, "Shared")
    ahead = patched(look(original), change_form(look(original), "agent", KEY, "Shared"))
    assert ahead == replace(look(shared), observed=True), "a look ahead sees the same"
    assert shared["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert shared["metadata"]["annotations"][ANNOTATION_ADOPTED_BY] == "agent"
    assert is_in_force(look(shared), "agent", KEY)
    assert form_of(look(shared), KEY) == "Shared"
    assert wanted(shared) == {n.name for n in NODES if n.name in all_of_them and n.labels.get(KEY) in {None, "legacy"}}
    last = change(shared, "Last")
    assert form_of(look(last), KEY) == "Last"
    assert wanted(last) == {n.name for n in NODES if n.name in all_of_them and n.labels.get(KEY) == "legacy"}
    assert change(last, "Shared")["spec"] == shared["spec"]
    for adopted in (shared, last):
        back = change(adopted, "Original")
        assert json.dumps(back["spec"], sort_keys=True) == json.dumps(original["spec"], sort_keys=True)
        assert back["metadata"]["annotations"] == {"theirs": "stays"}


@pytest.mark.parametrize("affinity", AFFINITIES.values(), ids=AFFINITIES)
def test_without_its_annotation_the_copy_in_the_status_restores_it(affinity: Any) -> None:
    original = body(affinity, theirs="stays")
    shared = change(original, "Shared")
    stored = shared["metadata"]["annotations"].pop(ANNOTATION_ORIGINAL)
    assert change(shared, "Original", stored)["spec"] == original["spec"]


def test_a_patch_is_only_for_what_was_seen() -> None:
    found = body()
    operations = change_form(look(found), "agent", KEY, "Shared")
    found["metadata"]["generation"] += 1
    assert apply(found, operations) is None


@pytest.mark.parametrize(
    "change_of",
    [
        {"annotations": {}},
        {"annotations": {ANNOTATION_ADOPTED_BY: "other"}},
        {"strategy": STRATEGIES["rolling"]},
        {"pod": {}},
        {"uid": ""},
        {"deleting": True},
    ],
)
def test_what_is_not_as_the_patch_made_it_is_not_in_force(change_of: Json) -> None:
    shared = look(change(body(), "Shared"))
    assert is_in_force(shared, "agent", KEY)
    assert not is_in_force(replace(shared, **change_of), "agent", KEY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        pytest.param("[" * 100_000, id="deeply nested"),
        '{"updateStrategy": 1}',
        '{"updateStrategy": {}, "kept": 1}',
        '{"updateStrategy": {}, "kept": [1]}',
        '{"updateStrategy": {}, "kept": [], "nodeSelectorTerms": ["n1"]}',
    ],
)
def test_what_cannot_be_read_was_not_stored(text: str) -> None:
    assert read_original(text) is None


ALL = Target.model_validate({"all": True})
POOL = Target.model_validate({"nodeSelector": {"matchLabels": {"zone": "a"}}})
EITHER = Target.model_validate({"nodeSelector": {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}})
BY_NAMES = Target.model_validate({"nodeNames": ["n1"]})


@pytest.mark.parametrize(
    ("pod", "target", "expected"),
    [
        ({}, ALL, True),
        ({}, POOL, False),
        ({}, BY_NAMES, False),
        ({"nodeSelector": {"zone": "a"}}, POOL, True),
        ({"nodeSelector": {"zone": "b"}}, POOL, False),
        ({"affinity": AFFINITIES["one term"]}, POOL, True),
        ({"affinity": AFFINITIES["two, and more"]}, POOL, False),
        ({"nodeSelector": {"zone": "a"}}, EITHER, False),
    ],
)
def test_whether_it_can_ever_serve_nodes_beyond_the_target(pod: Json, target: Target, expected: bool) -> None:
    assert covers_only(pod, target) is expected


def test_excluded_nodes_without_a_label_are_others() -> None:
    found = look(body())
    excluded = Node("x", "u", {"outrider.dev/exclude": "true"}, ready=True)
    assert not serves_others(found, KEY, ALL, NODES, frozenset(node.name for node in NODES))
    assert serves_others(found, KEY, ALL, [*NODES, excluded], frozenset(node.name for node in NODES))
    labelled = replace(excluded, labels={**excluded.labels, KEY: "legacy"})
    assert not serves_others(found, KEY, ALL, [*NODES, labelled], frozenset(node.name for node in NODES))


def test_in_the_way_is_who_would_get_a_second_agent() -> None:
    found = look(change(body(AFFINITIES["one term"]), "Shared"))
    assert set(nodes_in_the_way(found, KEY, NODES)) == {
        node.name for node in NODES if node.labels.get("zone") == "a" and node.labels.get(KEY) not in {None, "legacy"}
    }


# --- What is seen


def test_selectors_are_written_as_queries() -> None:
    selector = {
        "matchLabels": {"b": "2", "a": "1"},
        "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["x", "y"]},
            {"key": "d", "operator": "NotIn", "values": ["z"]},
            {"key": "e", "operator": "Exists"},
            {"key": "f", "operator": "DoesNotExist"},
        ],
    }
    assert selector_text(selector) == "a=1,b=2,c in (x,y),d notin (z),e,!f"


def test_who_wrote_last_is_found_without_us_and_without_status() -> None:
    entries = [
        {"manager": "kubectl", "time": "2026-01-01T00:00:00Z"},
        {"manager": "argocd-controller", "time": "2026-01-02T00:00:00Z"},
        {"manager": "kube-controller-manager", "time": "2026-01-04T00:00:00Z", "subresource": "status"},
        {"manager": "outrider", "time": "2026-01-03T00:00:00Z"},
    ]
    assert last_writer({"metadata": {"managedFields": entries}}) == "argocd-controller"
    assert last_writer({"metadata": {}}) == ""


def test_only_a_controller_owns() -> None:
    owners = [{"uid": "1", "kind": "A", "name": "a"}, {"uid": "2", "kind": "Agent", "name": "b", "controller": True}]
    assert controller_of({"metadata": {"ownerReferences": owners}}) == ("2", "Agent b")
    assert controller_of({"metadata": {"ownerReferences": owners[:1]}}) == ("", "")


def test_a_pod_of_it_is_seen_as_one_of_the_revision_legacy() -> None:
    owner = [{"uid": "u", "kind": "DaemonSet", "name": "old", "controller": True}]
    pod: Json = {
        "metadata": {"name": "p", "namespace": "fleet", "uid": "p1", "ownerReferences": owner},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    first = project_legacy_pod(pod, None, moment)
    assert (first.controller, first.agent.pod.revision, first.agent.pod.role) == ("u", "legacy", "revision")
    again = project_legacy_pod(pod, first, datetime(2026, 1, 2, tzinfo=UTC))
    assert again.agent.pod.ready_since == moment


@pytest.mark.parametrize(
    ("wanted_one", "known", "expected"),
    [
        ({"daemonSet": "a"}, None, "a"),
        ({"daemonSet": "a"}, {"daemonSet": "b", "state": "Adopted"}, "a"),
        (None, {"daemonSet": "b", "state": "Adopted"}, "b"),
        (None, {"daemonSet": "b", "state": "GivenBack"}, "b"),
        (None, {"daemonSet": "b", "state": "Refused"}, None),
        (None, {"daemonSet": "b", "state": "Gone"}, None),
        (None, None, None),
    ],
)
def test_removing_the_field_does_not_forget_what_was_taken_over(
    wanted_one: Json | None, known: Json | None, expected: str | None
) -> None:
    spec = {"adoption": wanted_one} if wanted_one else {}
    assert adopted_name({"spec": spec, "status": {"adoption": known} if known else {}}) == expected
