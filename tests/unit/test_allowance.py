"""Which deliveries may be: whatever does not fit or is not allowed is told with what to do, and starts nothing."""

from typing import Any

import pytest

from outrider.api.componentversion import StoredArtifact
from outrider.api.rollout import RolloutSpec
from outrider.core.allowance import Allowance, find_delivery_hindrance
from outrider.core.delivery import find_host_root
from outrider.core.snapshot import Hindrance
from simulation.fleet import make_spec

VOLUME = {"volume": {"mountPath": "/opt/agent", "containers": ["agent"]}}
IMAGE = {"image": {"container": "agent"}}
HOST = {"host": {"path": "/opt/agent"}}

ONE, OTHER = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


def stored(platform: str = "linux/amd64", image: str | None = None) -> StoredArtifact:
    return StoredArtifact(
        platform=platform,
        digest="sha256:d",
        size=1,
        reference="r",
        download_url="u",
        spec_hash="h",
        kind="File" if image is None else "Image",
        image=image,
    )


FILES = [stored(), stored("linux/arm64")]
IMAGES = [stored(image=f"r.test/agent@{ONE}"), stored("linux/arm64", f"r.test/agent@{ONE}")]
SEVERAL = [stored(image=f"r.test/agent@{ONE}"), stored("linux/arm64", f"r.test/agent@{OTHER}")]


def spec_with(delivery: dict[str, Any], **pod: Any) -> RolloutSpec:
    pre_pull = pod.pop("prePull", False)
    containers = pod.pop("containers", [{"name": "agent", "image": "agent"}])
    return make_spec(delivery=delivery, prePull=pre_pull, template={"spec": {"containers": containers, **pod}})


def find(
    delivery: dict[str, Any],
    version_type: str = "Agent",
    artifacts: list[StoredArtifact] = FILES,
    *,
    level: str = "",
    roots: tuple[str, ...] = ("/opt",),
    **pod: Any,
) -> Hindrance | None:
    allowance = Allowance(level, roots, "/var/lib/outrider")
    return find_delivery_hindrance(spec_with(delivery, **pod), "fleet", version_type, artifacts, allowance)


def host(path: str, **fields: Any) -> dict[str, Any]:
    return {"host": {"path": path, **fields}}


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(find(VOLUME), id="files into a volume"),
        pytest.param(find(IMAGE, artifacts=IMAGES), id="an image that all platforms share"),
        pytest.param(
            find(IMAGE, artifacts=[stored(image=f"r.test/agent@{ONE}"), stored("linux/arm64", f"copy.test/a@{ONE}")]),
            id="one image, from two places",
        ),
        pytest.param(find(HOST, "Daemon"), id="a Daemon onto the node"),
        pytest.param(find(HOST, "Daemon", containers=[]), id="a Daemon without a container of its own"),
        pytest.param(
            find(host("/srv/daemons/a"), "Daemon", roots=("/opt", "/srv/daemons")), id="below the second of two roots"
        ),
        pytest.param(find(VOLUME, level="restricted"), id="a volume in a restricted namespace, without a cache"),
        pytest.param(find(IMAGE, artifacts=IMAGES, level="restricted"), id="an image in a restricted namespace"),
        pytest.param(find(HOST, "Daemon", level="privileged"), id="a Daemon in a privileged namespace"),
        pytest.param(find(VOLUME, prePull=True), id="pre-pull where nothing is enforced"),
        pytest.param(
            find(IMAGE, artifacts=IMAGES, prePull=True, level="restricted"),
            id="pre-pull of images, which needs no folder",
        ),
        pytest.param(
            find({"volume": {**VOLUME["volume"], "cache": "None"}}, prePull=True, level="restricted"),
            id="pre-pull without a cache, which is of images alone",
        ),
        pytest.param(find(VOLUME, roots=()), id="no Daemons allowed, and none wanted"),
        pytest.param(
            find(IMAGE, artifacts=IMAGES, volumes=[{"name": "outrider-keys", "emptyDir": {}}]),
            id="a name that this delivery does not add",
        ),
    ],
)
def test_is_allowed(found: Hindrance | None) -> None:
    assert found is None


@pytest.mark.parametrize(
    ("found", "reason", "words"),
    [
        pytest.param(
            find(VOLUME, "Daemon"),
            "DeliveryMismatch",
            ["agent-1.0.0 is of type Daemon", "spec.delivery.volume is for Agents", "write spec.delivery.host"],
            id="a Daemon into a volume",
        ),
        pytest.param(
            find(IMAGE, "Daemon"),
            "DeliveryMismatch",
            ["is of type Daemon", "spec.delivery.image is for Agents"],
            id="a Daemon as an image",
        ),
        pytest.param(
            find(HOST),
            "DeliveryMismatch",
            ["is of type Agent, which runs in its pod", "write spec.delivery.volume", "of type Daemon"],
            id="an Agent onto the node",
        ),
        pytest.param(
            find(HOST, artifacts=IMAGES),
            "DeliveryMismatch",
            ["is of type Agent", "write spec.delivery.image"],
            id="an Agent that is an image onto the node",
        ),
        pytest.param(
            find(VOLUME, artifacts=IMAGES),
            "DeliveryMismatch",
            ["is a container image, and spec.delivery.volume delivers files; write spec.delivery.image"],
            id="an image into a volume",
        ),
        pytest.param(
            find(IMAGE),
            "DeliveryMismatch",
            ["are files, and spec.delivery.image delivers container images; write spec.delivery.volume"],
            id="files as an image",
        ),
        pytest.param(
            find(HOST, "Daemon", IMAGES),
            "DeliveryMismatch",
            ["is a container image, and spec.delivery.host delivers files; name a version whose artifacts are files"],
            id="a Daemon that was stored as an image",
        ),
        pytest.param(
            find(IMAGE, artifacts=SEVERAL),
            "DeliveryMismatch",
            [
                "the platforms of ComponentVersion agent-1.0.0 name different images",
                "linux/amd64 sha256:111111111111, linux/arm64 sha256:222222222222",
                "publish a version whose platforms all name the same one, by the digest of its index",
            ],
            id="platforms with images of their own",
        ),
        pytest.param(
            find(VOLUME, initContainers=[{"name": "outrider-fetch", "image": "x"}]),
            "TemplateInvalid",
            ["spec.template has a container called outrider-fetch, and Outrider's own have that name"],
            id="an init container called as ours",
        ),
        pytest.param(
            find(IMAGE, artifacts=IMAGES, initContainers=[{"name": "outrider-install", "image": "x"}]),
            "TemplateInvalid",
            ["spec.template has a container called outrider-install"],
            id="an init container called as one that another delivery has",
        ),
        pytest.param(
            find(
                VOLUME,
                containers=[
                    {
                        "name": "agent",
                        "image": "x",
                        "volumeMounts": [{"name": "outrider-cache", "mountPath": "/everybodys"}],
                    }
                ],
            ),
            "TemplateInvalid",
            ["a container of spec.template mounts outrider-cache, which is Outrider's own"],
            id="a container that mounts what is ours",
        ),
        pytest.param(
            find(HOST, "Daemon", containers=[{"name": "outrider-host", "image": "x"}]),
            "TemplateInvalid",
            ["container called outrider-host", "call yours something else"],
            id="a container called as ours",
        ),
        pytest.param(
            find(VOLUME, volumes=[{"name": "outrider-cache", "emptyDir": {}}]),
            "TemplateInvalid",
            ["spec.template has a volume called outrider-cache"],
            id="a volume called as ours",
        ),
        pytest.param(
            find(host("/etc/agent"), "Daemon", roots=("/opt", "/srv/daemons")),
            "HostPathForbidden",
            [
                "spec.delivery.host.path /etc/agent is not allowed",
                "OUTRIDER_HOST_ROOTS names (/opt, /srv/daemons), and it is below none of them",
                "write a path below one, or have the setting name another folder",
            ],
            id="a path outside",
        ),
        pytest.param(
            find(host("/opt-not/agent"), "Daemon"),
            "HostPathForbidden",
            ["/opt-not/agent is not allowed", "below none of them"],
            id="a path that only begins like a root",
        ),
        pytest.param(
            find(host("/srv/daemons"), "Daemon", roots=("/srv/daemons",)),
            "HostPathForbidden",
            ["/srv/daemons is not allowed", "it is one of them itself"],
            id="the root itself",
        ),
        pytest.param(
            find(HOST, "Daemon", roots=()),
            "HostPathForbidden",
            ["OUTRIDER_HOST_ROOTS is none", "the folder of the nodes that /opt/agent is to be below"],
            id="no roots at all",
        ),
        *(
            pytest.param(
                find(host(path), "Daemon", roots=("/var/lib", "/var")),
                "HostPathForbidden",
                [f"{path} is not allowed: /var/lib/outrider is Outrider's own folder"],
                id=f"{what} Outrider's own folder",
            )
            for what, path in (("itself", "/var/lib/outrider"), ("in", "/var/lib/outrider/x"), ("around", "/var/lib"))
        ),
        *(
            pytest.param(
                find(HOST, "Daemon", level=level),
                "PodSecurityForbids",
                [
                    "spec.delivery.host needs folders of the nodes",
                    f"namespace fleet enforces the Pod Security level {level}",
                    "label it pod-security.kubernetes.io/enforce=privileged",
                    "or move the Rollout and its versions to a namespace that is",
                ],
                id=f"a Daemon in a namespace that is {level}",
            )
            for level in ("baseline", "restricted")
        ),
        pytest.param(
            find(VOLUME, prePull=True, level="baseline"),
            "PodSecurityForbids",
            ["spec.prePull needs folders of the nodes", "or set spec.prePull to false"],
            id="pre-pull in a baseline namespace",
        ),
        # which of several is told
        pytest.param(find(host("/etc/agent"), level="restricted"), "DeliveryMismatch", [], id="type before path"),
        pytest.param(
            find(host("/etc/agent"), "Daemon", level="restricted"),
            "HostPathForbidden",
            [],
            id="path before level",
        ),
    ],
)
def test_is_not_allowed(found: Hindrance | None, reason: str, words: list[str]) -> None:
    assert found is not None
    assert (found.reason, found.stalled) == (reason, True)
    for word in words:
        assert word in found.message


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/opt/a", "/opt"),
        ("/opt/deep/a/b", "/opt/deep"),
        ("/opt/deeper", "/opt"),
        ("/opt", None),
        ("/optional/a", None),
        ("/opt/../etc", None),
        ("/opt/./a", None),
        ("/opt//a", None),
        ("/opt/", None),
        ("opt/a", None),
    ],
)
def test_a_path_belongs_to_the_longest_root_above_it(path: str, root: str | None) -> None:
    assert find_host_root(path, ["/opt", "/opt/deep"]) == root
