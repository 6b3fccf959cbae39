"""The DaemonSet that prepares nodes: what it has of the agent's, and what it must not have."""

from typing import Any

import pytest

from outrider.api import names
from outrider.core.delivery import FetchSettings
from outrider.core.prepare import build_prepare, prepare_name, token_of
from outrider.core.revision import build_daemonset
from outrider.core.scheduling import why_not_scheduled
from outrider.core.snapshot import Node
from outrider.reconcile.projections import project_daemonset
from simulation.fleet import make_spec

Json = dict[str, Any]
KEY = names.assignment_key("fleet", "agent")
OWNER = {"apiVersion": "outrider.dev/v1alpha1", "kind": "Rollout", "name": "agent", "uid": "u", "controller": True}


def node(name: str, hostname: str = "", **labels: str) -> Node:
    host = {names.LABEL_HOSTNAME: hostname} if hostname else {}
    return Node(name, f"uid-{name}", {**host, **labels}, True)


NODES = [node("node-b", "host-b"), node("node-a", "host-a")]


def fetch(*, cache: bool = True) -> Json:
    environment = {"OUTRIDER_REFERENCE": "registry/x@sha256:0", "OUTRIDER_TARGET_DIR": "/outrider/artifact"}
    if cache:
        environment["OUTRIDER_CACHE_DIR"] = "/outrider/cache"
    return {
        "name": names.FETCH_CONTAINER,
        "image": "outrider:1",
        "imagePullPolicy": "Never",
        "command": ["outrider-fetch"],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "volumeMounts": [
            {"name": names.VOLUME_ARTIFACT, "mountPath": "/outrider/artifact"},
            {"name": names.VOLUME_KEYS, "mountPath": "/etc/outrider/keys"},
            *([{"name": "outrider-cache", "mountPath": "/outrider/cache"}] if cache else []),
        ],
        "securityContext": {"runAsUser": 0 if cache else 65532},
    }


def daemonset(*, init: list[Json] | None = None, **pod: Any) -> Json:
    labels = {
        names.LABEL_ROLLOUT: "agent",
        names.LABEL_REVISION: "0123456789",
        names.LABEL_ROLE: names.ROLE_REVISION,
        names.LABEL_COMPONENT: "agent",
        names.LABEL_VERSION: "1.0.0",
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
    }
    own = {"key": KEY, "operator": "In", "values": ["0123456789"]}
    template = {
        "initContainers": [fetch(), {"name": "setup", "image": "setup:1"}] if init is None else init,
        "containers": [
            {"name": "agent", "image": "agent@sha256:1", "env": [{"name": "TOKEN", "value": "secret"}]},
            {"name": "log", "image": "log:2", "imagePullPolicy": "Always", "ports": [{"containerPort": 1}]},
            {"name": "log-too", "image": "log:2"},
        ],
        "volumes": [
            {"name": names.VOLUME_ARTIFACT, "emptyDir": {}},
            {"name": names.VOLUME_KEYS, "configMap": {"name": "outrider-keys.agent"}},
            {"name": "outrider-cache", "hostPath": {"path": "/var/lib/outrider/cache"}},
            {"name": "data", "hostPath": {"path": "/"}},
        ],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}, own]}
                        for zone in ("a", "b")
                    ]
                }
            },
            "podAntiAffinity": {"x": "y"},
        },
        "tolerations": [{"operator": "Exists"}],
        "hostPID": True,
        "serviceAccountName": "agent",
        "imagePullSecrets": [{"name": "pull"}],
        **pod,
    }
    return {
        "metadata": {
            "name": "agent-0123456789",
            "namespace": "fleet",
            "labels": labels,
            "annotations": {names.ANNOTATION_FETCH_IMAGE: "outrider:1"},
        },
        "spec": {"template": {"metadata": {"labels": {**labels, "app": "agent"}}, "spec": template}},
    }


def build(nodes: list[Node] | None = None, **changes: Any) -> tuple[Json, Json]:
    made = build_prepare(daemonset(**changes), nodes or NODES, KEY, OWNER)
    return made, made["spec"]["template"]["spec"]


def test_each_image_is_held_once_by_a_container_that_does_nothing_and_may_do_nothing() -> None:
    _, pod = build()
    assert [one["image"] for one in pod["containers"]] == ["setup:1", "agent@sha256:1", "log:2"]
    assert [one["imagePullPolicy"] for one in pod["containers"]] == ["IfNotPresent", "IfNotPresent", "Always"]
    for one in pod["containers"]:
        assert one["command"] == ["/outrider/idle/idle"]
        assert one["securityContext"]["runAsNonRoot"]
        assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert set(one) == {
            "name",
            "image",
            "imagePullPolicy",
            "command",
            "volumeMounts",
            "resources",
            "securityContext",
        }


def test_the_fetch_container_fills_the_cache_only_and_hands_out_the_idle_program() -> None:
    _, pod = build()
    [init] = pod["initContainers"]
    environment = {one["name"]: one["value"] for one in init["env"]}
    assert environment == {
        "OUTRIDER_REFERENCE": "registry/x@sha256:0",
        "OUTRIDER_CACHE_DIR": "/outrider/cache",
        "OUTRIDER_PREPARE": "true",
        "OUTRIDER_IDLE_DIR": "/outrider/idle",
    }
    assert init["securityContext"] == {"runAsUser": 0}
    assert {volume["name"] for volume in pod["volumes"]} == {names.VOLUME_KEYS, "outrider-cache", "outrider-idle"}
    assert {mount["name"] for mount in init["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_without_a_cache_only_the_images_are_prepared() -> None:
    for init in ([fetch(cache=False)], []):
        _, pod = build(init=init)
        [made] = pod["initContainers"]
        assert (made["name"], made["image"]) == (names.FETCH_CONTAINER, "outrider:1")
        assert {one["name"] for one in made["env"]} == {"OUTRIDER_PREPARE", "OUTRIDER_IDLE_DIR"}
        assert made["securityContext"]["runAsNonRoot"]
        assert [volume["name"] for volume in pod["volumes"]] == ["outrider-idle"]


def test_a_daemon_without_containers_of_its_own_has_one_that_waits() -> None:
    host = {"name": names.HOST_CONTAINER, "image": "outrider:1"}
    _, pod = build(init=[fetch(), {"name": names.INSTALL_CONTAINER, "image": "outrider:1"}], containers=[host])
    assert [one["image"] for one in pod["containers"]] == ["outrider:1"]


def test_it_has_nothing_of_the_agent_but_what_decides_where_it_may_run() -> None:
    made, pod = build()
    assert "hostPID" not in pod
    assert "podAntiAffinity" not in pod["affinity"]
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["serviceAccountName"] == "agent"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["automountServiceAccountToken"] is False
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert "app" not in labels, "no Service may send anything there"
    assert labels[names.LABEL_ROLE] == names.ROLE_PREPARE
    assert made["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert made["metadata"]["ownerReferences"] == [OWNER]
    assert made["spec"]["updateStrategy"] == {"type": "OnDelete"}


def test_it_wants_its_nodes_where_the_template_may_run_and_no_others() -> None:
    nameless = node("nameless", zone="b")
    _, pod = build([node("node-a", "host-a"), nameless])
    assert not why_not_scheduled(pod, node("node-a", "host-a", zone="a"))
    assert not why_not_scheduled(pod, nameless)
    assert why_not_scheduled(pod, node("node-a", "host-a", zone="c"))
    assert why_not_scheduled(pod, node("node-b", "host-b", zone="a"))
    assert why_not_scheduled(pod, node("other", zone="b"))


def test_its_name_says_for_which_nodes_and_what_it_was_made_for_can_be_read_back() -> None:
    made, _ = build()
    assert made["metadata"]["name"] == prepare_name("agent", "0123456789", ["host-b", "host-a"])
    assert made["metadata"]["name"] != build([NODES[0]])[0]["metadata"]["name"]
    known = project_daemonset({"metadata": {**made["metadata"], "uid": "u"}})
    assert known.prepares == {token_of(one) for one in NODES} == {"host-a", "host-b"}
    assert known.role == names.ROLE_PREPARE


def test_the_longest_names_fit() -> None:
    assert len(prepare_name("r" * 40, "0123456789", [])) <= names.MAX_LABEL


FETCH = FetchSettings(
    image="outrider:1",
    image_pull_policy="IfNotPresent",
    reference=f"registry.example.com/fleet/agent@sha256:{'0' * 64}",
    plain_http=False,
    allow_rsa_2048=False,
    digests={"linux/amd64": "0" * 64},
    images={"linux/amd64": f"registry.example.com/fleet/agent@sha256:{'1' * 64}"},
    registry_secret="registry-login",
)


@pytest.mark.parametrize(
    ("delivery", "images", "fills"),
    [
        ({"volume": {"mountPath": "/opt/agent", "containers": ["agent"]}}, ["agent"], True),
        ({"volume": {"mountPath": "/opt/agent", "containers": ["agent"], "cache": "None"}}, ["agent"], False),
        ({"image": {"container": "agent"}}, [f"registry.example.com/fleet/agent@sha256:{'1' * 64}"], False),
        ({"host": {"path": "/opt/agent", "activate": {"systemdUnit": "agent.service"}}}, ["agent"], True),
    ],
    ids=["a file, with a cache", "a file, without", "an image", "on the host"],
)
def test_it_is_made_of_what_each_delivery_makes(delivery: Json, images: list[str], fills: bool) -> None:
    revision = build_daemonset(
        namespace="fleet", rollout="agent", spec=make_spec(delivery=delivery), revision="0123456789", fetch=FETCH
    )
    pod = build_prepare(revision, NODES, KEY, OWNER)["spec"]["template"]["spec"]
    assert [one["image"] for one in pod["containers"]] == images
    [init] = pod["initContainers"]
    environment = {one["name"]: one.get("value", "") for one in init["env"]}
    assert environment["OUTRIDER_PREPARE"] == "true"
    assert "OUTRIDER_TARGET_DIR" not in environment
    assert ("OUTRIDER_REFERENCE" in environment) == fills
    assert "hostPID" not in pod
    allowed = {names.VOLUME_KEYS, names.VOLUME_CACHE, names.VOLUME_REGISTRY, "outrider-idle"}
    assert {volume["name"] for volume in pod["volumes"]} <= allowed
    everything = [init, *pod["containers"]]
    added = {right for one in everything for right in one["securityContext"]["capabilities"].get("add", ())}
    assert added <= {"CHOWN", "SETUID", "SETGID"}
    for one in everything:
        assert {mount["name"] for mount in one["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
