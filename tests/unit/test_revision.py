"""Revisions: what makes one, and the DaemonSets that it becomes."""

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.api import names
from outrider.api.rollout import RolloutSpec, Target
from outrider.core.delivery import FetchSettings
from outrider.core.fleet import is_targeted
from outrider.core.revision import (
    build_daemonset,
    build_joiners,
    hash_target,
    revision_of,
)
from outrider.core.scheduling import why_not_scheduled
from outrider.core.snapshot import Node
from simulation.fleet import make_spec

NAMESPACE, ROLLOUT = "fleet", "agents"
KEY = names.assignment_key(NAMESPACE, "agent")
REVISION = "0123456789"
REFERENCE = "registry.test/outrider/fleet/agent@sha256:index"
AMD64, ARM64 = "a" * 64, "b" * 64

TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"app": "agent"}, "annotations": {"note": "mine"}},
    "spec": {
        "serviceAccountName": "agent",
        "initContainers": [{"name": "prepare", "image": "prepare"}],
        "containers": [
            {"name": "agent", "image": "agent", "volumeMounts": [{"name": "state", "mountPath": "/state"}]},
            {"name": "side", "image": "side"},
        ],
        "volumes": [{"name": "state", "emptyDir": {}}],
    },
}


def fetch_settings(**changes: Any) -> FetchSettings:
    settings: dict[str, Any] = {
        "image": "outrider:1",
        "image_pull_policy": "IfNotPresent",
        "reference": REFERENCE,
        "plain_http": False,
        "allow_rsa_2048": False,
        "digests": {"linux/arm64": ARM64, "linux/amd64": AMD64},
    }
    return FetchSettings(**settings | changes)


def build(template: dict[str, Any] = TEMPLATE, *, fetch: FetchSettings | None = None, **changes: Any) -> dict[str, Any]:
    return build_daemonset(
        namespace=NAMESPACE,
        rollout=ROLLOUT,
        spec=make_spec(template=template, **changes),
        revision=REVISION,
        fetch=fetch or fetch_settings(),
    )


def pod_of(daemonset: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = daemonset["spec"]["template"]["spec"]
    return spec


def terms_of(daemonset: dict[str, Any]) -> list[dict[str, Any]]:
    required = pod_of(daemonset)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms: list[dict[str, Any]] = required["nodeSelectorTerms"]
    return terms


def affinity(*terms: dict[str, Any], **more: Any) -> dict[str, Any]:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    return {"spec": {"containers": [{"name": "agent"}], "affinity": {"nodeAffinity": {**required, **more}}}}


# -- what makes a revision


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"version": "1.0.1"}, id="another version"),
        pytest.param({"component": "other"}, id="another component"),
        pytest.param({"template": {"spec": {"containers": [{"name": "agent", "image": "b"}]}}}, id="another image"),
        pytest.param({"template": {**TEMPLATE, "metadata": {"labels": {"app": "b"}}}}, id="another label of the pods"),
        pytest.param(
            {"delivery": {"volume": {"mountPath": "/opt/b", "containers": ["agent"]}}}, id="another path of delivery"
        ),
        pytest.param(
            {"delivery": {"volume": {"mountPath": "/opt/agent", "containers": ["agent", "side"]}}},
            id="another container of delivery",
        ),
    ],
)
def test_what_starts_a_run(change: dict[str, Any]) -> None:
    assert revision_of(ROLLOUT, make_spec(**change)) != revision_of(ROLLOUT, make_spec())


def test_another_rollout_has_other_revisions() -> None:
    assert revision_of("other", make_spec()) != revision_of(ROLLOUT, make_spec())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"target": {"nodeNames": ["a"]}}, id="another target"),
        pytest.param({"strategy": {"type": "Full"}}, id="another strategy"),
        pytest.param({"health": {"timeoutSeconds": 5, "minReadySeconds": 1}}, id="other limits of health"),
        pytest.param({"onFailure": "Pause"}, id="another reaction to failures"),
        pytest.param({"paused": True}, id="a pause"),
        pytest.param({"runHistoryLimit": 3}, id="another limit of the history"),
        pytest.param({"fieldOfALaterVersion": 1}, id="a field that this operator does not know"),
    ],
)
def test_what_starts_no_run(change: dict[str, Any]) -> None:
    assert revision_of(ROLLOUT, make_spec(**change)) == revision_of(ROLLOUT, make_spec())


def test_a_revision_is_the_same_in_every_release() -> None:
    # Pinned: if this changes, an upgrade of the operator moves every fleet. A new canonical form needs a new format.
    assert revision_of("agents", make_spec(template=TEMPLATE)) == "ae9942ca93"
    assert re.fullmatch(r"[0-9a-f]{10}", revision_of(ROLLOUT, make_spec()))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=12,
)


def turned(value: Any) -> Any:
    """The same content with every object's keys in another order."""
    match value:
        case dict():
            return {key: turned(inner) for key, inner in reversed(value.items())}
        case list():
            return [turned(inner) for inner in value]
        case _:
            return value


@given(extra=st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_the_order_of_keys_starts_no_run(extra: dict[str, Any]) -> None:
    template = {**TEMPLATE, "extra": extra}
    assert revision_of(ROLLOUT, make_spec(template=turned(template))) == revision_of(
        ROLLOUT, make_spec(template=template)
    )


@given(one=JSON, other=JSON)
def test_different_templates_are_different_revisions(one: Any, other: Any) -> None:
    first, second = make_spec(template={"x": one}), make_spec(template={"x": other})
    assert (revision_of(ROLLOUT, first) == revision_of(ROLLOUT, second)) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )


# -- the DaemonSet of a revision


def test_names_and_labels() -> None:
    daemonset = build()
    assert daemonset["metadata"]["name"] == "agents-0123456789"
    assert daemonset["metadata"]["namespace"] == NAMESPACE
    selector = daemonset["spec"]["selector"]["matchLabels"]
    assert selector == {
        "outrider.dev/rollout": "agents",
        "outrider.dev/revision": REVISION,
        "outrider.dev/role": "revision",
    }
    labels = daemonset["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()
    assert labels["app"] == "agent", "the user's own labels stay"
    assert labels["app.kubernetes.io/managed-by"] == "outrider"
    assert daemonset["spec"]["template"]["metadata"]["annotations"] == {"note": "mine"}


def test_a_users_label_cannot_take_a_pod_out_of_the_selector() -> None:
    template = copy.deepcopy(TEMPLATE)
    template["metadata"]["labels"] = {
        names.LABEL_REVISION: "mine",
        names.LABEL_ROLE: "mine",
        names.LABEL_MANAGED_BY: "me",
    }
    daemonset = build(template)
    labels = daemonset["spec"]["template"]["metadata"]["labels"]
    assert daemonset["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels[names.LABEL_MANAGED_BY] == "outrider"


@pytest.mark.parametrize(
    "daemonset", [build(), build_joiners(build(), Target(all=True), KEY)], ids=["revision", "joiners"]
)
def test_deleting_the_rollout_leaves_the_agents(daemonset: dict[str, Any]) -> None:
    assert "ownerReferences" not in daemonset["metadata"]
    assert "finalizers" not in daemonset["metadata"]


@pytest.mark.parametrize(
    "daemonset", [build(), build_joiners(build(), Target(all=True), KEY)], ids=["revision", "joiners"]
)
def test_nothing_but_the_nodes_label_replaces_a_pod(daemonset: dict[str, Any]) -> None:
    assert daemonset["spec"]["updateStrategy"] == {"type": "OnDelete"}


def test_the_template_of_the_user_is_not_touched() -> None:
    template = copy.deepcopy(TEMPLATE)
    spec = make_spec(template=template)
    build_daemonset(namespace=NAMESPACE, rollout=ROLLOUT, spec=spec, revision=REVISION, fetch=fetch_settings())
    assert spec.template == TEMPLATE == template


def test_the_user_keeps_the_rest_of_the_pod() -> None:
    pod = pod_of(build())
    assert pod["serviceAccountName"] == "agent"
    assert [container["name"] for container in pod["containers"]] == ["agent", "side"]
    assert pod["volumes"][0] == {"name": "state", "emptyDir": {}}
    assert pod["containers"][0]["volumeMounts"][0] == {"name": "state", "mountPath": "/state"}


def test_the_same_input_in_another_order_is_the_same_daemonset() -> None:
    other = fetch_settings(digests={"linux/amd64": AMD64, "linux/arm64": ARM64})
    assert json.dumps(build(fetch=other)) == json.dumps(build())


# -- which nodes it wants

REQUIREMENT = {"key": KEY, "operator": "In", "values": [REVISION]}
ZONE = {"key": "zone", "operator": "In", "values": ["a"]}
GPU = {"key": "gpu", "operator": "Exists"}
BY_NAME = {"key": "metadata.name", "operator": "In", "values": ["n"]}


@pytest.mark.parametrize(
    ("template", "terms"),
    [
        pytest.param(TEMPLATE, [[REQUIREMENT]], id="a template without affinity"),
        pytest.param(affinity({"matchExpressions": [ZONE]}), [[ZONE, REQUIREMENT]], id="one term of the user's"),
        pytest.param(
            affinity({"matchExpressions": [ZONE]}, {"matchExpressions": [GPU]}),
            [[ZONE, REQUIREMENT], [GPU, REQUIREMENT]],
            id="terms are alternatives: each of them",
        ),
        pytest.param(affinity({"matchFields": [BY_NAME]}), [[REQUIREMENT]], id="a term of fields only"),
        pytest.param({"spec": {"containers": [], "affinity": None}}, [[REQUIREMENT]], id="a null affinity"),
        pytest.param(
            {"spec": {"containers": [], "affinity": {"nodeAffinity": {}}}}, [[REQUIREMENT]], id="an empty one"
        ),
    ],
)
def test_each_term_requires_the_nodes_label(template: dict[str, Any], terms: list[list[dict[str, Any]]]) -> None:
    assert [term["matchExpressions"] for term in terms_of(build(template))] == terms


def test_what_else_the_affinity_says_stays() -> None:
    preferred = [{"weight": 1, "preference": {"matchExpressions": [GPU]}}]
    template = affinity({"matchFields": [BY_NAME]}, preferredDuringSchedulingIgnoredDuringExecution=preferred)
    template["spec"]["affinity"]["podAntiAffinity"] = {"x": "y"}
    daemonset = build(template)
    assert terms_of(daemonset)[0]["matchFields"] == [BY_NAME]
    made = pod_of(daemonset)["affinity"]
    assert made["podAntiAffinity"] == {"x": "y"}
    assert made["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] == preferred


# -- joiners


def joiners(target: dict[str, Any], template: dict[str, Any] = TEMPLATE) -> dict[str, Any]:
    return build_joiners(build(template), Target.model_validate(target), KEY)


def test_joiners_have_a_daemonset_of_their_own() -> None:
    of_revision = build()
    made = build_joiners(of_revision, Target(all=True), KEY)
    assert made["metadata"]["name"] != of_revision["metadata"]["name"]
    assert made["spec"]["selector"] != of_revision["spec"]["selector"]
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert made["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels[names.LABEL_ROLE] == made["metadata"]["labels"][names.LABEL_ROLE] == "joiners"
    assert labels[names.LABEL_REVISION] == REVISION
    assert labels["app"] == "agent"


def test_joiners_get_the_same_agent() -> None:
    of_revision, made = build(), joiners({"all": True})
    for part in ("containers", "initContainers", "volumes", "serviceAccountName"):
        assert pod_of(made)[part] == pod_of(of_revision)[part]


def test_making_the_joiners_daemonset_leaves_the_revisions_as_it_is() -> None:
    of_revision = build()
    before = copy.deepcopy(of_revision)
    build_joiners(of_revision, Target(all=True), KEY)
    assert of_revision == before


def test_what_the_api_server_wrote_into_the_revision_is_not_copied() -> None:
    live = build()
    live["metadata"] |= {"uid": "u", "resourceVersion": "7", "generation": 1, "managedFields": [{}]}
    live["metadata"]["annotations"]["deprecated.daemonset.template.generation"] = "1"
    live["status"] = {"desiredNumberScheduled": 3}
    made = build_joiners(live, Target(all=True), KEY)
    assert made.keys() == {"metadata", "spec"}
    assert made["metadata"].keys() == {"name", "namespace", "labels", "annotations"}
    assert all(key.startswith("outrider.dev/") for key in made["metadata"]["annotations"])


def test_another_target_is_another_daemonset_of_joiners() -> None:
    one, other = {"all": True}, {"nodeSelector": {"matchLabels": {"pool": "edge"}}}
    assert joiners(one)["metadata"]["name"] != joiners(other)["metadata"]["name"]
    assert joiners(one)["metadata"]["annotations"][names.ANNOTATION_TARGET] == hash_target(Target(all=True))


UNSEEN = {"key": KEY, "operator": "DoesNotExist"}
LET_IN = {"key": "outrider.dev/exclude", "operator": "NotIn", "values": ["true"]}
ARCHITECTURES = {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64", "arm64"]}


@pytest.mark.parametrize(
    ("target", "template", "terms"),
    [
        pytest.param({"all": True}, TEMPLATE, [[UNSEEN, LET_IN, ARCHITECTURES]], id="every node that has no label yet"),
        pytest.param(
            {"nodeSelector": {"matchLabels": {"pool": "edge", "a": "b"}, "matchExpressions": [GPU, ZONE]}},
            TEMPLATE,
            [
                [
                    UNSEEN,
                    LET_IN,
                    {"key": "a", "operator": "In", "values": ["b"]},
                    {"key": "pool", "operator": "In", "values": ["edge"]},
                    GPU,
                    ZONE,
                    ARCHITECTURES,
                ]
            ],
            id="of the target, as far as a selector says",
        ),
        pytest.param(
            {"all": True},
            affinity({"matchExpressions": [ZONE]}, {"matchExpressions": [GPU]}),
            [[ZONE, UNSEEN, LET_IN, ARCHITECTURES], [GPU, UNSEEN, LET_IN, ARCHITECTURES]],
            id="in each of the user's terms",
        ),
    ],
)
def test_which_nodes_joiners_want(
    target: dict[str, Any], template: dict[str, Any], terms: list[list[dict[str, Any]]]
) -> None:
    assert [term["matchExpressions"] for term in terms_of(joiners(target, template))] == terms


LABELS = st.dictionaries(st.sampled_from(["pool", "gpu", "zone"]), st.sampled_from(["a", "b", "true"]), max_size=3)
NODES = st.builds(
    lambda labels, assignment, exclude, arch: Node(
        name="n",
        uid="u",
        ready=True,
        labels={
            **labels,
            **({KEY: assignment} if assignment else {}),
            **({names.LABEL_EXCLUDE: exclude} if exclude else {}),
            "kubernetes.io/arch": arch,
        },
    ),
    LABELS,
    st.sampled_from([None, None, REVISION, f"to-{REVISION}", "none", "9876543210"]),
    st.sampled_from([None, "true", "false"]),
    st.sampled_from(["amd64", "riscv64"]),
)
REQUIREMENTS = st.one_of(
    st.builds(
        lambda key, operator, values: {"key": key, "operator": operator, "values": values},
        st.sampled_from(["pool", "gpu", "zone"]),
        st.sampled_from(["In", "NotIn"]),
        st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=2, unique=True),
    ),
    st.builds(
        lambda key, operator: {"key": key, "operator": operator},
        st.sampled_from(["pool", "gpu", "zone"]),
        st.sampled_from(["Exists", "DoesNotExist"]),
    ),
)
TARGETS = st.one_of(
    st.just({"all": True}),
    st.builds(
        lambda labels, requirements: {"nodeSelector": {"matchLabels": labels, "matchExpressions": requirements}},
        LABELS,
        st.lists(REQUIREMENTS, min_size=1, max_size=2),
    ),
)
USERS_TERMS = st.lists(
    st.builds(lambda requirements: {"matchExpressions": requirements}, st.lists(REQUIREMENTS, min_size=1, max_size=2)),
    max_size=3,
)


def wants(daemonset: dict[str, Any], node: Node) -> bool:
    return why_not_scheduled(pod_of(daemonset), node) == ""


def templated(terms: list[dict[str, Any]]) -> dict[str, Any]:
    return affinity(*terms) if terms else TEMPLATE


@given(node=NODES, target=TARGETS, terms=USERS_TERMS)
def test_every_node_is_wanted_by_the_right_daemonset_and_by_one_at_most(
    node: Node, target: dict[str, Any], terms: list[dict[str, Any]]
) -> None:
    template = templated(terms)
    of_revision = build(template)
    of_joiners = build_joiners(of_revision, Target.model_validate(target), KEY)
    users = not terms or why_not_scheduled(template["spec"], node) == ""
    assignment = node.labels.get(KEY)
    assert wants(of_revision, node) == (users and assignment == REVISION)
    assert wants(of_joiners, node) == (
        users
        and assignment is None
        and is_targeted(Target.model_validate(target), node)
        and node.labels["kubernetes.io/arch"] == "amd64"
    )
    assert not (wants(of_revision, node) and wants(of_joiners, node))


def test_the_spec_survives_its_journey_through_the_api() -> None:
    spec = make_spec(template=TEMPLATE)
    again = RolloutSpec.model_validate(json.loads(json.dumps(spec.to_api())))
    assert revision_of(ROLLOUT, again) == revision_of(ROLLOUT, spec)
