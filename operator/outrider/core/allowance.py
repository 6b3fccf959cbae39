"""Whether a delivery may be: it has to fit the version, and the operator's settings and the namespace have to allow it.

Nothing here depends on what runs where: what is not allowed starts no run and touches no node.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from outrider.api.componentversion import StoredArtifact
from outrider.api.names import LABEL_POD_SECURITY
from outrider.api.rollout import RolloutSpec
from outrider.core.delivery import find_collision, find_host_root, one_image
from outrider.core.snapshot import Hindrance

_NO_NODE_FOLDERS: Final = frozenset({"baseline", "restricted"})
"""Pod Security levels at which a pod may have no folder of the node."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What deliveries may use.

    `pod_security` is the Pod Security level that the namespace enforces, "" if it says nothing. `host_roots` are the
    folders of the nodes below which Daemons may be installed, `node_dir` is Outrider's own.
    """

    pod_security: str = ""
    host_roots: tuple[str, ...] = ("/opt",)
    node_dir: str = "/var/lib/outrider"

    @property
    def node_folders(self) -> bool:
        """Whether pods of the namespace may have folders of the node."""
        return self.pod_security not in _NO_NODE_FOLDERS


def asks_for_node_folders(spec: RolloutSpec) -> bool:
    """Tell whether a Rollout cannot do without folders of the node.

    A volume can: it does without its cache then. But files that are to be on a node beforehand can only be in there.
    """
    volume = spec.delivery.volume
    return spec.delivery.host is not None or (spec.pre_pull and volume is not None and volume.cache == "Node")


def find_delivery_hindrance(
    spec: RolloutSpec,
    namespace: str,
    version_type: str,
    artifacts: Sequence[StoredArtifact],
    allowance: Allowance,
) -> Hindrance | None:
    """Return why a version of a type, with these artifacts, may not be delivered as the spec says, or None."""
    if message := _find_mismatch(spec, version_type, artifacts):
        return Hindrance("DeliveryMismatch", message, stalled=True)
    if message := find_collision(spec):
        return Hindrance("TemplateInvalid", message, stalled=True)
    if message := _find_forbidden_path(spec, allowance):
        return Hindrance("HostPathForbidden", message, stalled=True)
    if message := _find_forbidden_level(spec, namespace, allowance):
        return Hindrance("PodSecurityForbids", message, stalled=True)
    return None


def _find_mismatch(spec: RolloutSpec, version_type: str, artifacts: Sequence[StoredArtifact]) -> str:
    version, kind = f"ComponentVersion {spec.component}-{spec.version}", spec.delivery.kind
    are_images = any(artifact.kind == "Image" for artifact in artifacts)
    fitting = "image" if are_images else "volume"
    if version_type == "Daemon" and kind != "host":
        return (
            f"{version} is of type Daemon, which is installed on the node itself, and spec.delivery.{kind} is for "
            "Agents; write spec.delivery.host, or name a version of type Agent"
        )
    if version_type != "Daemon" and kind == "host":
        return (
            f"{version} is of type Agent, which runs in its pod, and spec.delivery.host installs Daemons; write "
            f"spec.delivery.{fitting}, or name a version of type Daemon"
        )
    if are_images and kind != "image":
        other = "write spec.delivery.image, or " if kind == "volume" else ""
        return (
            f"{version} is a container image, and spec.delivery.{kind} delivers files; {other}name a version whose "
            "artifacts are files"
        )
    if not are_images and kind == "image":
        return (
            f"the artifacts of {version} are files, and spec.delivery.image delivers container images; write "
            "spec.delivery.volume, or name a version whose artifacts are images"
        )
    images = {artifact.platform: artifact.image for artifact in artifacts if artifact.image is not None}
    if kind == "image" and one_image(images) is None:
        named = ", ".join(f"{platform} {image.rpartition('@')[2][:19]}" for platform, image in sorted(images.items()))
        return (
            f"the platforms of {version} name different images ({named}), and a container of a DaemonSet can name one; "
            "publish a version whose platforms all name the same one, by the digest of its index over all platforms"
        )
    return ""


def _find_forbidden_path(spec: RolloutSpec, allowance: Allowance) -> str:
    host = spec.delivery.host
    if host is None:
        return ""
    if not allowance.host_roots:
        return (
            "spec.delivery.host is not allowed: this operator's setting OUTRIDER_HOST_ROOTS is none; have it name the "
            f"folder of the nodes that {host.path} is to be below"
        )
    own = allowance.node_dir
    if f"{own}/".startswith(f"{host.path}/") or host.path.startswith(f"{own}/"):
        return f"spec.delivery.host.path {host.path} is not allowed: {own} is Outrider's own folder; write another path"
    if find_host_root(host.path, allowance.host_roots) is not None:
        return ""
    roots = ", ".join(allowance.host_roots)
    wrong = "is one of them itself" if host.path in allowance.host_roots else "is below none of them"
    return (
        f"spec.delivery.host.path {host.path} is not allowed: Daemons are installed below the folders that this "
        f"operator's setting OUTRIDER_HOST_ROOTS names ({roots}), and it {wrong}; write a path below one, or have the "
        "setting name another folder"
    )


def _find_forbidden_level(spec: RolloutSpec, namespace: str, allowance: Allowance) -> str:
    if allowance.node_folders or not asks_for_node_folders(spec):
        return ""
    if spec.delivery.host is not None:
        wish, instead = "spec.delivery.host", "move the Rollout and its versions to a namespace that is"
    else:
        wish = "spec.prePull"
        instead = "set spec.prePull to false, or spec.delivery.volume.cache to None: then images alone are prepared"
    return (
        f"{wish} needs folders of the nodes, and namespace {namespace} enforces the Pod Security level "
        f"{allowance.pod_security}, which forbids them to its pods; label it {LABEL_POD_SECURITY}=privileged, or "
        f"{instead}"
    )
