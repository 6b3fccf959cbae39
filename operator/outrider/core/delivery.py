"""How a version gets onto a node: what each delivery adds to the agent's pod.

`volume`: an init container pulls and verifies the file into a volume that the agent sees read-only. `image`: nothing is
added, a container's image becomes the verified one. `host`: the same init container, another one that installs the file
on the node itself, and a container that watches it.
"""

import copy
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from outrider.api import names
from outrider.api.rollout import HostDelivery, RolloutSpec

Json = dict[str, Any]

_KEYS_DIR: Final = "/etc/outrider/keys"
_CREDENTIALS_DIR: Final = "/etc/outrider/registry"
_TARGET_DIR: Final = "/outrider/artifact"
_CACHE_DIR: Final = "/outrider/cache"
_HOST_DIR: Final = "/outrider/host"
_USER: Final = 65532

_CACHE_CAPABILITIES: Final = ("CHOWN", "SETUID", "SETGID")
"""To make a folder of its own in the node's cache, and then to become somebody without any rights."""
_INSTALL_CAPABILITIES: Final = ("CHOWN", "FOWNER", "DAC_OVERRIDE")
"""To write below the host's folder whoever owns it."""
_ENTER_CAPABILITIES: Final = ("SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE")
"""To enter the namespaces of the node's process 1, where what activates and checks a daemon is."""

_PROBE_SECONDS: Final = 10
"""How often a daemon is asked that says nothing else, and what a look may take beside the look itself."""

ADDED_CONTAINERS: Final[Mapping[str, frozenset[str]]] = {
    "volume": frozenset({names.FETCH_CONTAINER}),
    "image": frozenset(),
    "host": frozenset({names.FETCH_CONTAINER, names.INSTALL_CONTAINER, names.HOST_CONTAINER}),
}
"""The containers that each delivery adds."""

OUR_CONTAINERS: Final = frozenset().union(*ADDED_CONTAINERS.values())
"""What they say is believed of a node, so that no other may have these names, whatever the delivery."""

_OF_FETCHING: Final = {names.VOLUME_ARTIFACT, names.VOLUME_KEYS, names.VOLUME_CACHE, names.VOLUME_REGISTRY}
ADDED_VOLUMES: Final[Mapping[str, frozenset[str]]] = {
    "volume": frozenset(_OF_FETCHING),
    "image": frozenset(),
    "host": frozenset({*_OF_FETCHING, names.VOLUME_HOST}),
}
"""The volumes that each delivery may add, likewise."""


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How the nodes reach what they need.

    `reference` is the version's OCI index, pinned by digest, in the registry as nodes reach it; `digests` the expected
    SHA-256 (64 hex digits) of the file for each platform (`linux/amd64`). `images` are the container images, pinned by
    digest, that the platforms of a version of images have. `registry_secret` names a Secret beside the pods ("" for
    none). `node_dir` is Outrider's own folder on a node, which `may_use_node` says whether pods may see at all.
    """

    image: str
    image_pull_policy: str
    reference: str
    plain_http: bool
    allow_rsa_2048: bool
    digests: Mapping[str, str]
    require_binding: bool = False
    images: Mapping[str, str] = field(default_factory=dict)
    registry_secret: str = ""
    node_dir: str = "/var/lib/outrider"
    host_roots: tuple[str, ...] = ("/opt",)
    may_use_node: bool = True


def deliver(pod: Json, spec: RolloutSpec, fetch: FetchSettings) -> None:
    """Add to a pod of a Rollout's template what its delivery needs. Raises ValueError on what was a hindrance."""
    delivery = spec.delivery
    if delivery.host is not None:
        deliver_to_host(pod, spec.component, spec.version, delivery.host, fetch)
    elif delivery.image is not None:
        deliver_image(pod, delivery.image.container, fetch)
    elif delivery.volume is not None:
        volume = delivery.volume
        cache = volume.cache == "Node" and fetch.may_use_node
        deliver_to_volume(pod, spec.component, spec.version, volume.mount_path, volume.containers, fetch, cache=cache)


def deliver_to_volume(
    pod: Json,
    component: str,
    version: str,
    mount_path: str,
    containers: Collection[str],
    fetch: FetchSettings,
    *,
    cache: bool,
) -> None:
    """Add the init container that pulls and verifies, the volume that it fills, and its mounts in `containers`."""
    pod["volumes"] = [*(pod.get("volumes") or []), *fetch_volumes(component, fetch, cache=cache)]
    for container in pod.get("containers") or []:
        if container["name"] in containers:
            container["volumeMounts"] = [
                *(container.get("volumeMounts") or []),
                {"name": names.VOLUME_ARTIFACT, "mountPath": mount_path, "readOnly": True},
            ]
    # First: nothing of the pod runs before the artifact is there and verified.
    fetching = fetch_container(component, version, fetch, cache=cache)
    pod["initContainers"] = [fetching, *(pod.get("initContainers") or [])]


def deliver_image(pod: Json, container: str, fetch: FetchSettings) -> None:
    """Make the verified image that of a container. The container runtime compares the digest by itself."""
    image = one_image(fetch.images)
    if image is None:
        raise ValueError("the platforms of the version have several images, and a pod can name one")
    for each in pod.get("containers") or []:
        if each["name"] == container:
            each["image"] = image


def deliver_to_host(pod: Json, component: str, version: str, host: HostDelivery, fetch: FetchSettings) -> None:
    """Add what pulls and verifies, what installs on the node, and what watches there."""
    root = find_host_root(host.path, fetch.host_roots)
    if root is None:
        raise ValueError(f"{host.path} is below none of the host roots")
    enters = host.activate is not None or host.health is not None
    pod["volumes"] = [
        *(pod.get("volumes") or []),
        *fetch_volumes(component, fetch, cache=fetch.may_use_node),
        {"name": names.VOLUME_HOST, "hostPath": {"path": root, "type": "Directory"}},
    ]
    if enters:
        pod["hostPID"] = True
    environment = _host_environment(component, version, host, root, fetch)
    installing = {
        "name": names.INSTALL_CONTAINER,
        **_program(fetch, "outrider-host", "install"),
        "env": environment,
        "volumeMounts": [
            {"name": names.VOLUME_ARTIFACT, "mountPath": _TARGET_DIR, "readOnly": True},
            {"name": names.VOLUME_KEYS, "mountPath": _KEYS_DIR, "readOnly": True},
            {"name": names.VOLUME_HOST, "mountPath": _HOST_DIR},
        ],
        "securityContext": _on_node(_INSTALL_CAPABILITIES, enters=enters),
    }
    # It lives as long as the pod, and so it may only look. A command that asks the daemon has the same rights here as
    # right after the installation: else its answer could be another one.
    health = host.health
    asks_by_command = health is not None and health.command is not None
    asks_by_port = health is not None and health.http is not None
    asks_unit = host.activate is not None and host.activate.systemd_unit is not None
    # What a command has started and nothing checks is never looked at.
    looks = asks_by_command or asks_by_port or asks_unit
    watching = {
        "name": names.HOST_CONTAINER,
        **_program(fetch, "outrider-host", "watch"),
        "env": copy.deepcopy(environment),
        "readinessProbe": {
            "exec": {"command": ["outrider-host", "check"]},
            "periodSeconds": health.period_seconds if health is not None else _PROBE_SECONDS,
            # Longer than the look itself, so that it can say what it saw.
            "timeoutSeconds": (health.timeout_seconds if health is not None else 0) + _PROBE_SECONDS,
        },
        "volumeMounts": [{"name": names.VOLUME_HOST, "mountPath": _HOST_DIR, "readOnly": True}],
        "securityContext": _on_node(_INSTALL_CAPABILITIES if asks_by_command else (), enters=looks),
    }
    pod["containers"] = [watching, *(pod.get("containers") or [])]
    pod["initContainers"] = [
        fetch_container(component, version, fetch, cache=fetch.may_use_node),
        installing,
        *(pod.get("initContainers") or []),
    ]


def one_image(images: Mapping[str, str]) -> str | None:
    """Return the image that all platforms share, None if they do not: they name it by the same digest."""
    if len({image.rpartition("@")[2] for image in images.values()}) != 1:
        return None
    return images[min(images)]


def find_host_root(path: str, roots: Collection[str]) -> str | None:
    """Return the host root that a path is strictly below, the longest if there are several, or None.

    A path with empty parts, `.` or `..` is below nothing, whatever it looks like.
    """
    if not {"", ".", ".."}.isdisjoint(path.split("/")[1:]):
        return None
    return max((root for root in roots if path.startswith(f"{root}/")), key=len, default=None)


def find_collision(spec: RolloutSpec) -> str:
    """Return what is wrong when a template has a name that its delivery adds, "" if nothing is."""
    pod, kind = spec.template.get("spec") or {}, spec.delivery.kind
    containers = [entry for each in ("initContainers", "containers") for entry in pod.get(each) or []]
    if taken := sorted({str(entry.get("name")) for entry in containers} & OUR_CONTAINERS):
        return (
            f"spec.template has a container called {taken[0]}, and Outrider's own have that name; call yours something "
            "else"
        )
    volumes = {str(entry.get("name")) for entry in pod.get("volumes") or []}
    if taken := sorted(volumes & ADDED_VOLUMES[kind]):
        return (
            f"spec.template has a volume called {taken[0]}, and delivery.{kind} adds one of that name; call yours "
            "something else"
        )
    # What is added is no volume of the template's: the cache is every namespace's, and the host's folder is the host's.
    mounted = {str(mount.get("name")) for entry in containers for mount in entry.get("volumeMounts") or []}
    if taken := sorted(mounted & ADDED_VOLUMES[kind]):
        return (
            f"a container of spec.template mounts {taken[0]}, which is Outrider's own; who shall see the artifact is "
            "named in delivery.volume.containers"
        )
    return ""


def fetch_volumes(component: str, fetch: FetchSettings, *, cache: bool) -> list[Json]:
    """Return the volumes that `fetch_container` with the same arguments mounts."""
    volumes: list[Json] = [
        {"name": names.VOLUME_ARTIFACT, "emptyDir": {}},
        {"name": names.VOLUME_KEYS, "configMap": {"name": names.trusted_keys_name(component)}},
    ]
    if cache:
        path = f"{fetch.node_dir}/cache"
        volumes.append({"name": names.VOLUME_CACHE, "hostPath": {"path": path, "type": "DirectoryOrCreate"}})
    if fetch.registry_secret:
        # Never copied: the kubelet hands it out. A namespace without it has a registry that needs none.
        secret = {"secretName": fetch.registry_secret, "optional": True}
        volumes.append({"name": names.VOLUME_REGISTRY, "secret": secret})
    return volumes


def fetch_container(component: str, version: str, fetch: FetchSettings, *, cache: bool) -> Json:
    """Return the init container that pulls a version's file, verifies it, and puts it into the volume for it."""
    environment = {
        "OUTRIDER_PLAIN_HTTP": _flag(fetch.plain_http),
        **_trust(component, version, fetch),
        "OUTRIDER_TARGET_DIR": _TARGET_DIR,
    }
    mounts: list[Json] = [
        {"name": names.VOLUME_ARTIFACT, "mountPath": _TARGET_DIR},
        {"name": names.VOLUME_KEYS, "mountPath": _KEYS_DIR, "readOnly": True},
    ]
    if cache:
        environment |= {"OUTRIDER_CACHE_DIR": _CACHE_DIR, "OUTRIDER_RUN_AS": str(_USER)}
        mounts.append({"name": names.VOLUME_CACHE, "mountPath": _CACHE_DIR})
    if fetch.registry_secret:
        environment["OUTRIDER_CREDENTIALS_DIR"] = _CREDENTIALS_DIR
        mounts.append({"name": names.VOLUME_REGISTRY, "mountPath": _CREDENTIALS_DIR, "readOnly": True})
    return {
        "name": names.FETCH_CONTAINER,
        **_program(fetch, "outrider-fetch"),
        "env": [*_entries(environment), _field("OUTRIDER_NAMESPACE", "metadata.namespace")],
        "volumeMounts": mounts,
        "securityContext": container_security(root=cache, capabilities=_CACHE_CAPABILITIES if cache else ()),
    }


def _host_environment(component: str, version: str, host: HostDelivery, root: str, fetch: FetchSettings) -> list[Json]:
    environment = {
        **_trust(component, version, fetch),
        "OUTRIDER_TARGET_DIR": _TARGET_DIR,
        "OUTRIDER_HOST_ROOT": _HOST_DIR,
        "OUTRIDER_HOST_ROOT_ON_NODE": root,
        "OUTRIDER_HOST_PATH": host.path.removeprefix(f"{root}/"),
        "OUTRIDER_ACTIVATE": _json(host.activate.to_api()) if host.activate is not None else "",
        "OUTRIDER_HEALTH": _json(host.health.to_api()) if host.health is not None else "",
        "OUTRIDER_KEEP": str(host.keep),
    }
    return [
        *_entries(environment),
        _field("OUTRIDER_NAMESPACE", "metadata.namespace"),
        _field("OUTRIDER_POD_UID", "metadata.uid"),
    ]


def _on_node(capabilities: tuple[str, ...], *, enters: bool) -> Json:
    """Return what a container may that works on the node's own files, and `enters` its namespaces."""
    security = container_security(root=True, capabilities=capabilities + (_ENTER_CAPABILITIES if enters else ()))
    if enters:
        # The default profile forbids what the capabilities are for.
        security["appArmorProfile"] = {"type": "Unconfined"}
    return security


def _program(fetch: FetchSettings, *command: str) -> Json:
    return {
        "image": fetch.image,
        "imagePullPolicy": fetch.image_pull_policy,
        "command": list(command),
        "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}, "limits": {"memory": "192Mi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def container_security(*, root: bool, capabilities: Collection[str] = ()) -> Json:
    """Return what a container of ours may: nothing, or as root no more than the capabilities named."""
    user = 0 if root else _USER
    return {
        "runAsUser": user,
        "runAsGroup": user,
        "runAsNonRoot": not root,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], **({"add": list(capabilities)} if capabilities else {})},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _trust(component: str, version: str, fetch: FetchSettings) -> dict[str, str]:
    """Return the variables that say what the file has to be, and whom to trust."""
    return {
        "OUTRIDER_REFERENCE": fetch.reference,
        "OUTRIDER_ALLOW_RSA_2048": _flag(fetch.allow_rsa_2048),
        "OUTRIDER_REQUIRE_BINDING": _flag(fetch.require_binding),
        "OUTRIDER_KEYS_DIR": _KEYS_DIR,
        "OUTRIDER_COMPONENT": component,
        "OUTRIDER_VERSION": version,
        "OUTRIDER_DIGESTS": _json(dict(sorted(fetch.digests.items()))),
    }


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _entries(environment: Mapping[str, str]) -> list[Json]:
    return [{"name": name, "value": value} for name, value in environment.items()]


def _field(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
