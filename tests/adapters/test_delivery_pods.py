"""The pods of each delivery at a real API server: it takes them, and at which Pod Security levels it does."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from outrider.adapters.kube import DAEMON_SETS, NAMESPACES, PODS, Cluster, Conflict, Json
from outrider.api import names
from outrider.api.errors import OutriderError
from outrider.core.allowance import Allowance
from outrider.core.delivery import FetchSettings
from outrider.core.prepare import build_prepare
from outrider.core.revision import build_daemonset, build_joiners
from outrider.core.snapshot import Node
from simulation.fleet import KEY, make_spec

IMAGE = f"registry.test/agent@sha256:{'c' * 64}"
FETCH = FetchSettings(
    image="outrider:1",
    image_pull_policy="IfNotPresent",
    reference=f"registry.test/fleet/agent@sha256:{'0' * 64}",
    plain_http=False,
    allow_rsa_2048=False,
    digests={"linux/amd64": "0" * 64},
    images={"linux/amd64": IMAGE},
    registry_secret="pull",
)
RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
AGENT: Json = {"spec": {"containers": [{"name": "agent", "image": "agent", "securityContext": RESTRICTED}]}}
"""A template that passes everywhere: what is refused is refused for what was added."""

VOLUME = {"mountPath": "/opt/agent", "containers": ["agent"]}
LEVELS = ("privileged", "baseline", "restricted")

DELIVERIES: dict[str, tuple[Json, Json, tuple[str, ...]]] = {
    "a volume, cached": ({"volume": VOLUME}, AGENT, ("privileged",)),
    "a volume": ({"volume": {**VOLUME, "cache": "None"}}, AGENT, LEVELS),
    "an image": ({"image": {"container": "agent"}}, AGENT, LEVELS),
    "files on the node": ({"host": {"path": "/opt/node-daemon"}}, {"spec": {}}, ("privileged",)),
    "a Daemon that is activated and asked": (
        {
            "host": {
                "path": "/opt/node-daemon",
                "activate": {"systemdUnit": "node-daemon.service"},
                "health": {"command": ["/bin/true"]},
            }
        },
        AGENT,
        ("privileged",),
    ),
}
"""Each delivery with a template, and the levels that its pods pass."""


@pytest.fixture
async def namespaces(kube: Cluster) -> dict[str, str]:
    """A namespace for each level. They go with the cluster."""
    made = {level: f"pods-{level}" for level in LEVELS}
    for level, name in made.items():
        with suppress(Conflict):
            labels = {names.LABEL_POD_SECURITY: level}
            await kube.create(NAMESPACES, {"metadata": {"name": name, "labels": labels}})
    return made


def daemonset_of(delivery: Json, template: Json, namespace: str, **changes: Any) -> Json:
    fetch = FETCH if not changes else FetchSettings(**{f: getattr(FETCH, f) for f in FETCH.__slots__} | changes)
    spec = make_spec(delivery=delivery, template=template)
    return build_daemonset(namespace=namespace, rollout="agent", spec=spec, revision="0123456789", fetch=fetch)


async def refusal(kube: Cluster, namespace: str, daemonset: Json) -> str:
    """Return what the API server has against a pod of a DaemonSet."""
    template = daemonset["spec"]["template"]
    pod = {"metadata": {"generateName": "agent-", "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
    async with asyncio.timeout(60):
        while True:
            try:
                await kube.try_out(PODS, namespace, pod)
            except OutriderError as error:
                if "serviceaccount" in error.message:  # of a namespace that was made just now
                    await asyncio.sleep(0.1)
                    continue
                return error.message
            return ""


@pytest.mark.parametrize("name", DELIVERIES)
async def test_pods_pass_the_levels_that_the_documents_promise(
    kube: Cluster, namespaces: dict[str, str], name: str
) -> None:
    delivery, template, passes = DELIVERIES[name]
    for level, namespace in namespaces.items():
        found = await refusal(kube, namespace, daemonset_of(delivery, template, namespace))
        assert (not found) is (level in passes), f"{level}: {found}"
        assert not found or "violates PodSecurity" in found


async def test_a_volume_passes_everywhere_if_what_the_namespace_enforces_is_heeded(
    kube: Cluster, namespaces: dict[str, str]
) -> None:
    for level, namespace in namespaces.items():
        may = Allowance(level).node_folders
        made = daemonset_of({"volume": VOLUME}, AGENT, namespace, may_use_node=may)
        assert await refusal(kube, namespace, made) == ""


@pytest.mark.parametrize("name", DELIVERIES)
async def test_the_daemonsets_of_a_revision_and_of_its_joiners_are_taken_as_they_are(
    kube: Cluster, namespaces: dict[str, str], name: str
) -> None:
    delivery, template, _ = DELIVERIES[name]
    namespace = namespaces["privileged"]
    made = await kube.try_out(DAEMON_SETS, namespace, daemonset_of(delivery, template, namespace))
    spec = make_spec(delivery=delivery, template=template)
    joiners = await kube.try_out(DAEMON_SETS, namespace, build_joiners(made, spec.target, KEY))
    for stored in (made, joiners):
        ours = [c for c in stored["spec"]["template"]["spec"]["containers"] if c["name"] == names.HOST_CONTAINER]
        assert len(ours) == (1 if "host" in delivery else 0)


@pytest.mark.parametrize("name", DELIVERIES)
async def test_what_prepares_a_node_passes_where_the_agent_does(
    kube: Cluster, namespaces: dict[str, str], name: str
) -> None:
    delivery, template, passes = DELIVERIES[name]
    node = Node("n1", "uid", {names.LABEL_HOSTNAME: "n1"}, ready=True)
    # A Daemon's pod and what prepares for it need the node's cache; what installs is not in there.
    for level, namespace in namespaces.items():
        made = build_prepare(daemonset_of(delivery, template, namespace), [node], KEY, {})
        found = await refusal(kube, namespace, made)
        assert (not found) is (level in passes), f"{level}: {found}"
