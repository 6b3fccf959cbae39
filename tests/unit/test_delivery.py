"""What each delivery adds to a pod: what it needs, and no right more."""

import copy
import json
from typing import Any

import pytest

from outrider.api.rollout import RolloutSpec
from outrider.core.delivery import (
    ADDED_CONTAINERS,
    ADDED_VOLUMES,
    FetchSettings,
    deliver,
    deliver_to_volume,
)
from simulation.fleet import make_spec

REFERENCE = "registry.test/outrider/fleet/agent@sha256:index"
AMD64, ARM64 = "a" * 64, "b" * 64
IMAGE = f"registry.test/agent@sha256:{'c' * 64}"

TEMPLATE: dict[str, Any] = {
    "spec": {
        "initContainers": [{"name": "prepare", "image": "prepare"}],
        "containers": [{"name": "agent", "image": "agent"}, {"name": "side", "image": "side"}],
        "volumes": [{"name": "state", "emptyDir": {}}],
    },
}
VOLUME = {"mountPath": "/opt/agent", "containers": ["agent"]}

CACHED = {"volume": VOLUME}
UNCACHED = {"volume": {**VOLUME, "cache": "None"}}
FILES_ONLY = {"host": {"path": "/opt/node-daemon"}}
BY_COMMAND = {"host": {"path": "/opt/node-daemon", "activate": {"command": ["/bin/reload"]}, "health": {}}}
BY_UNIT = {"host": {"path": "/opt/node-daemon", "activate": {"systemdUnit": "node-daemon.service"}}}
CHECKED = {"host": {"path": "/opt/node-daemon", "health": {"http": {"port": 8080}, "periodSeconds": 30}}}
ASKED = {"host": {"path": "/opt/node-daemon", "health": {"command": ["/bin/true"]}}}
ALL = {
    "a volume, cached": CACHED,
    "a volume": UNCACHED,
    "an image": {"image": {"container": "agent"}},
    "files on the node": FILES_ONLY,
    "a unit of the node": BY_UNIT,
    "a daemon that is checked": CHECKED,
    "a daemon that is asked": ASKED,
}

CACHING = ("CHOWN", "SETUID", "SETGID")
WRITING = ("CHOWN", "FOWNER", "DAC_OVERRIDE")
ENTERING = ("SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE")


def fetching(**changes: Any) -> FetchSettings:
    settings: dict[str, Any] = {
        "image": "outrider:1",
        "image_pull_policy": "IfNotPresent",
        "reference": REFERENCE,
        "plain_http": False,
        "allow_rsa_2048": False,
        "digests": {"linux/arm64": ARM64, "linux/amd64": AMD64},
        "images": {"linux/arm64": IMAGE, "linux/amd64": IMAGE},
    }
    return FetchSettings(**settings | changes)


def spec_with(delivery: dict[str, Any], template: dict[str, Any] = TEMPLATE) -> RolloutSpec:
    return make_spec(template=template, delivery=delivery)


def pod_with(delivery: dict[str, Any], template: dict[str, Any] = TEMPLATE, **changes: Any) -> dict[str, Any]:
    pod: dict[str, Any] = copy.deepcopy(template["spec"])
    deliver(pod, spec_with(delivery, template), fetching(**changes))
    return pod


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in [*(pod.get("initContainers") or []), *pod["containers"]]}


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def ours(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for name, each in containers(pod).items() if name.startswith("outrider-")]


def paths_of_the_node(pod: dict[str, Any]) -> dict[str, str]:
    return {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}


# -- what holds for all of them


@pytest.mark.parametrize("delivery", ALL.values(), ids=ALL)
def test_all_that_is_added_has_a_name_that_a_template_may_not_have(delivery: dict[str, Any]) -> None:
    [kind] = delivery
    pod = pod_with(delivery, registry_secret="pull")
    assert {each["name"] for each in ours(pod)} == ADDED_CONTAINERS[kind]
    assert {volume["name"] for volume in pod["volumes"]} - {"state"} <= ADDED_VOLUMES[kind]


@pytest.mark.parametrize("delivery", ALL.values(), ids=ALL)
def test_the_template_keeps_what_it_has(delivery: dict[str, Any]) -> None:
    pod = pod_with(delivery)
    assert pod["volumes"][0] == {"name": "state", "emptyDir": {}}
    assert containers(pod)["side"] == {"name": "side", "image": "side"}
    assert containers(pod)["prepare"] == {"name": "prepare", "image": "prepare"}


@pytest.mark.parametrize("delivery", ALL.values(), ids=ALL)
def test_every_mount_has_its_volume_and_nothing_else_is_mounted(delivery: dict[str, Any]) -> None:
    pod = pod_with(delivery, registry_secret="pull")
    mounted = {mount["name"] for each in containers(pod).values() for mount in each.get("volumeMounts") or []}
    assert mounted == {volume["name"] for volume in pod["volumes"]} - {"state"}


@pytest.mark.parametrize("delivery", ALL.values(), ids=ALL)
def test_nothing_of_ours_is_privileged_or_gains_rights(delivery: dict[str, Any]) -> None:
    for each in ours(pod_with(delivery)):
        security = each["securityContext"]
        assert "privileged" not in security
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"]["drop"] == ["ALL"]
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.parametrize("delivery", ALL.values(), ids=ALL)
def test_the_keys_are_mounted_so_that_their_rotation_makes_no_revision(delivery: dict[str, Any]) -> None:
    for name, each in containers(pod_with(delivery)).items():
        if name in {"outrider-fetch", "outrider-install"}:
            told = environment(each)
            [mount] = [mount for mount in each["volumeMounts"] if mount["name"] == "outrider-keys"]
            assert mount == {"name": "outrider-keys", "mountPath": told["OUTRIDER_KEYS_DIR"], "readOnly": True}


@pytest.mark.parametrize(
    ("delivery", "first"),
    [
        (CACHED, ["outrider-fetch", "prepare"]),
        (UNCACHED, ["outrider-fetch", "prepare"]),
        (FILES_ONLY, ["outrider-fetch", "outrider-install", "prepare"]),
    ],
    ids=["a volume, cached", "a volume", "files on the node"],
)
def test_nothing_of_the_pod_runs_before_the_file_is_verified(delivery: dict[str, Any], first: list[str]) -> None:
    assert [each["name"] for each in pod_with(delivery)["initContainers"]] == first


# -- who may what


@pytest.mark.parametrize(
    ("delivery", "rights"),
    [
        pytest.param(UNCACHED, {"outrider-fetch": (65532, ())}, id="without a cache: none at all"),
        pytest.param(CACHED, {"outrider-fetch": (0, CACHING)}, id="with a cache: to become somebody else"),
        pytest.param(
            FILES_ONLY,
            {"outrider-fetch": (0, CACHING), "outrider-install": (0, WRITING), "outrider-host": (0, ())},
            id="files on the node: to write them, and to look at them",
        ),
        *(
            pytest.param(
                delivery,
                {
                    "outrider-fetch": (0, CACHING),
                    "outrider-install": (0, WRITING + ENTERING),
                    "outrider-host": (0, ENTERING),
                },
                id=f"{what}: to enter the node",
            )
            for what, delivery in (("a unit of the node", BY_UNIT), ("a daemon that is checked", CHECKED))
        ),
        pytest.param(
            BY_COMMAND,
            {
                "outrider-fetch": (0, CACHING),
                "outrider-install": (0, WRITING + ENTERING),
                "outrider-host": (0, ()),
            },
            id="a command and nothing to check: what watches does not enter the node",
        ),
        pytest.param(
            ASKED,
            {
                "outrider-fetch": (0, CACHING),
                "outrider-install": (0, WRITING + ENTERING),
                "outrider-host": (0, WRITING + ENTERING),
            },
            id="a daemon that is asked by a command: the same for it, whoever runs it",
        ),
    ],
)
def test_each_container_has_the_rights_that_it_needs(delivery: dict[str, Any], rights: dict[str, Any]) -> None:
    found = {}
    for each in ours(pod_with(delivery)):
        security = each["securityContext"]
        assert security["runAsGroup"] == security["runAsUser"]
        assert security["runAsNonRoot"] is (security["runAsUser"] != 0)
        found[each["name"]] = security["runAsUser"], tuple(security["capabilities"].get("add", ()))
    assert found == rights


@pytest.mark.parametrize(
    ("delivery", "enters"),
    [(UNCACHED, False), (CACHED, False), (FILES_ONLY, False), (BY_UNIT, True), (CHECKED, True)],
    ids=["a volume", "a volume, cached", "files on the node", "a unit of the node", "a daemon that is checked"],
)
def test_only_what_acts_on_the_node_sees_its_processes(delivery: dict[str, Any], enters: bool) -> None:
    pod = pod_with(delivery)
    assert pod.get("hostPID", False) is enters
    unconfined = [each["name"] for each in ours(pod) if "appArmorProfile" in each["securityContext"]]
    assert unconfined == (["outrider-install", "outrider-host"] if enters else [])
    assert "hostNetwork" not in pod


@pytest.mark.parametrize(
    ("delivery", "paths"),
    [
        (UNCACHED, {}),
        (CACHED, {"outrider-cache": "/var/lib/outrider/cache"}),
        (FILES_ONLY, {"outrider-cache": "/var/lib/outrider/cache", "outrider-host": "/opt"}),
    ],
    ids=["a volume", "a volume, cached", "files on the node"],
)
def test_which_folders_of_the_node_a_pod_has(delivery: dict[str, Any], paths: dict[str, str]) -> None:
    pod = pod_with(delivery)
    assert paths_of_the_node(pod) == paths
    mounted = {
        (each["name"], mount["name"])
        for each in containers(pod).values()
        for mount in each.get("volumeMounts") or []
        if mount["name"] in paths
    }
    by_fetch = {("outrider-fetch", "outrider-cache")} if "outrider-cache" in paths else set()
    by_host = {(name, "outrider-host") for name in ("outrider-install", "outrider-host") if "outrider-host" in paths}
    assert mounted == by_fetch | by_host, "the agent's own containers have none of them"


# -- the fetch container


@pytest.mark.parametrize("delivery", [CACHED, UNCACHED, FILES_ONLY], ids=["cached", "uncached", "host"])
def test_it_is_told_what_to_expect(delivery: dict[str, Any]) -> None:
    fetch = containers(pod_with(delivery))["outrider-fetch"]
    told = environment(fetch)
    assert (fetch["image"], fetch["command"]) == ("outrider:1", ["outrider-fetch"])
    assert told["OUTRIDER_REFERENCE"] == REFERENCE
    assert (told["OUTRIDER_COMPONENT"], told["OUTRIDER_VERSION"]) == ("agent", "1.0.0")
    assert told["OUTRIDER_NAMESPACE"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}
    assert (told["OUTRIDER_PLAIN_HTTP"], told["OUTRIDER_ALLOW_RSA_2048"]) == ("false", "false")
    assert json.loads(told["OUTRIDER_DIGESTS"]) == {"linux/amd64": AMD64, "linux/arm64": ARM64}
    mounts = {mount["mountPath"] for mount in fetch["volumeMounts"]}
    folders = {told[name] for name in ("OUTRIDER_KEYS_DIR", "OUTRIDER_TARGET_DIR")}
    cache = {told["OUTRIDER_CACHE_DIR"]} if "OUTRIDER_CACHE_DIR" in told else set()
    assert mounts == folders | cache


def test_with_a_cache_it_is_told_whom_to_become() -> None:
    told = environment(containers(pod_with(CACHED, node_dir="/srv/outrider"))["outrider-fetch"])
    assert (told["OUTRIDER_CACHE_DIR"], told["OUTRIDER_RUN_AS"]) == ("/outrider/cache", "65532")
    told = environment(containers(pod_with(UNCACHED))["outrider-fetch"])
    assert not {"OUTRIDER_CACHE_DIR", "OUTRIDER_RUN_AS"} & told.keys()


def test_where_pods_may_have_no_folder_of_the_node_there_is_no_cache() -> None:
    assert pod_with(CACHED, may_use_node=False) == pod_with(UNCACHED)


def test_the_cache_is_where_the_settings_say() -> None:
    [volume] = [v for v in pod_with(CACHED, node_dir="/srv/outrider")["volumes"] if v["name"] == "outrider-cache"]
    assert volume["hostPath"] == {"path": "/srv/outrider/cache", "type": "DirectoryOrCreate"}


@pytest.mark.parametrize("delivery", [CACHED, UNCACHED, FILES_ONLY], ids=["cached", "uncached", "host"])
def test_the_login_is_mounted_into_it_alone_and_may_be_missing(delivery: dict[str, Any]) -> None:
    pod = pod_with(delivery, registry_secret="pull")
    secret = {"secretName": "pull", "optional": True}
    assert {"name": "outrider-registry", "secret": secret} in pod["volumes"]
    mounted = {
        each["name"]: mount
        for each in containers(pod).values()
        for mount in each.get("volumeMounts") or []
        if mount["name"] == "outrider-registry"
    }
    told = environment(containers(pod)["outrider-fetch"])
    path = told["OUTRIDER_CREDENTIALS_DIR"]
    assert mounted == {"outrider-fetch": {"name": "outrider-registry", "mountPath": path, "readOnly": True}}


def test_without_a_login_nothing_is_mounted() -> None:
    pod = pod_with(CACHED)
    assert "outrider-registry" not in {volume["name"] for volume in pod["volumes"]}
    assert "OUTRIDER_CREDENTIALS_DIR" not in environment(containers(pod)["outrider-fetch"])


# -- volume


def test_the_agent_sees_the_file_read_only_and_others_do_not_see_it() -> None:
    pod = pod_with(CACHED)
    assert containers(pod)["agent"]["volumeMounts"] == [
        {"name": "outrider-artifact", "mountPath": "/opt/agent", "readOnly": True}
    ]
    assert "volumeMounts" not in containers(pod)["side"]


@pytest.mark.parametrize("delivery", [CACHED, UNCACHED, FILES_ONLY], ids=["cached", "uncached", "host"])
def test_only_the_fetch_container_writes_the_file_and_nobody_the_keys(delivery: dict[str, Any]) -> None:
    pod = pod_with(delivery)
    writers = [
        (name, mount["name"])
        for name, each in containers(pod).items()
        for mount in each.get("volumeMounts") or []
        if mount["name"] in {"outrider-artifact", "outrider-keys"} and not mount.get("readOnly")
    ]
    assert writers == [("outrider-fetch", "outrider-artifact")]
    assert {"name": "outrider-artifact", "emptyDir": {}} in pod["volumes"]
    assert {"name": "outrider-keys", "configMap": {"name": "outrider-keys.agent"}} in pod["volumes"]


def test_a_test_of_a_version_uses_no_cache() -> None:
    pod: dict[str, Any] = {"containers": [{"name": "test", "image": "test"}]}
    deliver_to_volume(pod, "agent", "1.0.0", "/opt/agent", ["test"], fetching(), cache=False)
    assert paths_of_the_node(pod) == {}


# -- image


def test_the_verified_image_takes_the_place_of_the_containers() -> None:
    pod = pod_with({"image": {"container": "agent"}})
    assert containers(pod)["agent"]["image"] == IMAGE
    assert containers(pod)["side"]["image"] == "side"
    assert ours(pod) == []
    assert pod["volumes"] == TEMPLATE["spec"]["volumes"]


def test_a_container_needs_no_image_of_its_own_for_it() -> None:
    pod = pod_with({"image": {"container": "agent"}}, {"spec": {"containers": [{"name": "agent"}]}})
    assert pod == {"containers": [{"name": "agent", "image": IMAGE}]}


def test_several_images_are_never_delivered() -> None:
    other = f"registry.test/agent@sha256:{'d' * 64}"
    with pytest.raises(ValueError, match="several images"):
        pod_with({"image": {"container": "agent"}}, images={"linux/amd64": IMAGE, "linux/arm64": other})


# -- host


def test_the_watcher_is_the_first_container_and_says_whether_the_daemon_works() -> None:
    pod = pod_with(CHECKED)
    assert [each["name"] for each in pod["containers"]] == ["outrider-host", "agent", "side"]
    watcher = pod["containers"][0]
    assert watcher["command"] == ["outrider-host", "watch"]
    assert watcher["readinessProbe"]["exec"] == {"command": ["outrider-host", "check"]}
    assert (watcher["readinessProbe"]["periodSeconds"], watcher["readinessProbe"]["timeoutSeconds"]) == (30, 40)
    assert pod_with(FILES_ONLY)["containers"][0]["readinessProbe"]["periodSeconds"] == 10


def test_a_daemons_pod_needs_no_container_of_its_own() -> None:
    templates: list[dict[str, Any]] = [{"spec": {}}, {"spec": {"containers": []}}]
    for template in templates:
        assert [each["name"] for each in pod_with(FILES_ONLY, template)["containers"]] == ["outrider-host"]


def test_what_watches_may_write_nothing_on_the_node() -> None:
    for delivery in (FILES_ONLY, BY_UNIT, CHECKED, ASKED):
        watcher = pod_with(delivery)["containers"][0]
        assert watcher["volumeMounts"] == [{"name": "outrider-host", "mountPath": "/outrider/host", "readOnly": True}]


def test_it_is_told_where_and_how_to_install() -> None:
    delivery = {
        "host": {
            "path": "/opt/daemons/node-daemon",
            "activate": {"command": ["/usr/bin/reload", "it"]},
            "health": {"http": {"port": 8080, "path": "/healthz"}, "timeoutSeconds": 5},
            "keep": 3,
        }
    }
    pod = pod_with(delivery, host_roots=("/opt", "/opt/daemons"))
    for name in ("outrider-install", "outrider-host"):
        told = environment(containers(pod)[name])
        assert told["OUTRIDER_HOST_ROOT_ON_NODE"] == "/opt/daemons"
        assert told["OUTRIDER_HOST_PATH"] == "node-daemon"
        assert json.loads(told["OUTRIDER_ACTIVATE"]) == {"command": ["/usr/bin/reload", "it"]}
        assert json.loads(told["OUTRIDER_HEALTH"]) == {
            "timeoutSeconds": 5,
            "periodSeconds": 10,
            "http": {"port": 8080, "path": "/healthz"},
        }
        assert told["OUTRIDER_KEEP"] == "3"
        assert told["OUTRIDER_POD_UID"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
        # Whom to trust, as the fetch container.
        fetch = environment(containers(pod)["outrider-fetch"])
        for variable in ("REFERENCE", "COMPONENT", "VERSION", "DIGESTS", "KEYS_DIR", "NAMESPACE", "TARGET_DIR"):
            assert told[f"OUTRIDER_{variable}"] == fetch[f"OUTRIDER_{variable}"]
        mounts = {mount["name"]: mount["mountPath"] for mount in containers(pod)[name]["volumeMounts"]}
        assert mounts["outrider-host"] == told["OUTRIDER_HOST_ROOT"]
    assert {"name": "outrider-host", "hostPath": {"path": "/opt/daemons", "type": "Directory"}} in pod["volumes"]


def test_what_is_not_declared_is_said_to_be_absent() -> None:
    told = environment(containers(pod_with(FILES_ONLY))["outrider-install"])
    assert (told["OUTRIDER_ACTIVATE"], told["OUTRIDER_HEALTH"]) == ("", "")


def test_a_path_outside_is_never_delivered() -> None:
    with pytest.raises(ValueError, match="below none of the host roots"):
        pod_with(FILES_ONLY, host_roots=("/srv",))
