"""What the API server itself accepts and refuses: CRD schemas, their rules, admission policies, permissions.

Nothing here needs a running operator: these rules hold while it is down. And none may run, for the tests write what it
would write: by name this file comes before those that start one.
"""

import copy
import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from e2e.conftest import E2eCluster
from outrider.api import names
from outrider.api.rollout import RequestKind

ROOT = Path(__file__).resolve().parent.parent.parent

OPERATOR = "--as=system:serviceaccount:outrider-system:outrider"
CONTROL_PLANE = ("--as=system:kube-controller-manager", "--as-group=system:masters")

COLLECTOR = ("--as=system:serviceaccount:kube-system:generic-garbage-collector", "--as-group=system:masters")

Object = dict[str, Any]

SHA = "a" * 64
BY_DIGEST = f"registry.example.com:5000/team/agent@sha256:{SHA}"
POD: Object = {"spec": {"restartPolicy": "Never", "containers": [{"name": "test", "image": "test"}]}}


def artifact(**changes: Any) -> Object:
    """One artifact as a user writes it."""
    return {
        "platform": {"arch": "amd64"},
        "fileName": "agent",
        "sha256": SHA,
        "source": {"http": {"url": "https://example.com/agent"}},
        "signature": {"inline": "c2lnbmF0dXJl"},
        **changes,
    }


def component_version(name: str = "node-agent-1.4.0", **spec: Any) -> Object:
    """A ComponentVersion as small as it can be."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ComponentVersion",
        "metadata": {"name": name},
        "spec": {"component": "node-agent", "version": "1.4.0", "artifacts": [artifact()], **spec},
    }


def without(*fields: str, **changes: Any) -> Object:
    """A ComponentVersion whose artifact lacks these fields, and has others so."""
    return component_version(
        artifacts=[{key: value for key, value in artifact(**changes).items() if key not in fields}]
    )


def sourced(**source: Any) -> Object:
    """A ComponentVersion whose artifact comes from there."""
    return component_version(artifacts=[artifact(source=source)])


def signed(**signature: Any) -> Object:
    """A ComponentVersion whose artifact is signed so."""
    return component_version(artifacts=[artifact(signature=signature)])


def by_a_job(**job: Any) -> Object:
    """What is tested by a Job, whose fields are these."""
    return {"job": {"template": {"spec": {"template": POD}}, **job}}


def rollout(name: str = "node-agent", **spec: Any) -> Object:
    """A Rollout as small as it can be."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "Rollout",
        "metadata": {"name": name},
        "spec": {
            "component": "node-agent",
            "version": "1.4.0",
            "target": {"all": True},
            "template": {"spec": {"containers": [{"name": "agent", "image": "agent"}]}},
            "delivery": {"volume": {"mountPath": "/opt/agent", "containers": ["agent"]}},
            "strategy": {"type": "Rolling"},
            **spec,
        },
    }


def batch(name: str = "node-agent-1-1", **spec: Any) -> Object:
    """A RolloutBatch with two nodes."""
    node = {"uid": "1-2-3", "from": "none", "to": "rev-b", "back": "none"}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "RolloutBatch",
        "metadata": {"name": name},
        "spec": {
            "rollout": "node-agent",
            "run": 1,
            "kind": "Rollout",
            "version": "1.4.0",
            "batch": 1,
            "startedAt": "2026-01-01T00:00:00Z",
            "nodes": [{"name": "a", **node}, {"name": "b", **node}],
            **spec,
        },
    }


def rolling(**fields: Any) -> Object:
    """A Rollout whose strategy is Rolling with these fields."""
    return rollout(strategy={"type": "Rolling", "rolling": fields})


def canary(*steps: Object, **fields: Any) -> Object:
    """A Rollout whose strategy is Canary with these steps."""
    return rollout(strategy={"type": "Canary", "canary": {"steps": list(steps)}, **fields})


def placed(**fields: Any) -> Object:
    """A Rollout whose canaries are where these fields say."""
    return rollout(strategy={"type": "Canary", "canary": {"steps": [{"nodes": 1}], **fields}})


def windowed(**fields: Any) -> Object:
    """A Rollout with one window, whose fields are these."""
    return rollout(windows=[{"start": "22:00", "end": "04:00", **fields}])


QUERY: Object = {"address": "http://prometheus:9090", "query": "errors", "passWhen": "< 0.01"}


def analysed(**analysis: Any) -> Object:
    """A Rollout with one analysis, whose fields are these."""
    return rollout(analysis=[{"name": "errors", **analysis}])


def volume(**fields: Any) -> Object:
    """A Rollout whose delivery has these fields."""
    return rollout(delivery={"volume": {"mountPath": "/opt/agent", "containers": ["agent"], **fields}})


def host(**fields: Any) -> Object:
    """A Rollout of a Daemon, whose delivery has these fields. The pod has no container of its own."""
    return rollout(delivery={"host": {"path": "/opt/node-daemon", **fields}}, template={"spec": {}})


def template(**spec: Any) -> Object:
    """A Rollout whose template's spec has these fields."""
    return rollout(template={"spec": {"containers": [{"name": "agent", "image": "agent"}], **spec}})


def container(**fields: Any) -> Object:
    """A Rollout whose agent's container has these fields."""
    return template(containers=[{"name": "agent", "image": "agent", **fields}])


def managed(kind: str, **fields: Any) -> Object:
    """An object labelled as the operator labels its own."""
    api = {"DaemonSet": "apps/v1", "Job": "batch/v1"}.get(kind, "v1")
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": "managed", "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY}},
        **fields,
    }


DAEMON_SET = managed(
    "DaemonSet",
    spec={
        "selector": {"matchLabels": {"a": "b"}},
        "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"nodeSelector": {"no": "node"}, "containers": [{"name": "agent", "image": "agent"}]},
        },
    },
)
CONFIG_MAP = managed("ConfigMap", data={"a.pub": "key"})
JOB = managed("Job", spec={"suspend": True, "template": POD})


@pytest.fixture(scope="module")
def namespace(cluster: E2eCluster) -> Iterator[str]:
    """A namespace of this module's own."""
    name = "api-rules"
    cluster.kubectl("delete", "namespace", name, "--ignore-not-found")
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def create(cluster: E2eCluster, namespace: str, manifest: Object, *flags: str) -> Object:
    """Create an object and return what was stored."""
    result = cluster.kubectl("create", "-n", namespace, *flags, "-o", "json", "-f", "-", input=json.dumps(manifest))
    assert "Warning" not in result.stderr
    stored: Object = json.loads(result.stdout)
    return stored


def refusal(cluster: E2eCluster, namespace: str, manifest: Object, *flags: str) -> str:
    """Try to create an object, and return what the API server said against it."""
    result = cluster.kubectl(
        "create", "-n", namespace, "--dry-run=server", *flags, "-f", "-", input=json.dumps(manifest), check=False
    )
    assert result.returncode != 0, "the API server accepted it"
    return result.stderr


def patch(cluster: E2eCluster, namespace: str, target: str, change: Object, *flags: str) -> str:
    """Merge a change into an object, and return what was said against it; empty when it was accepted."""
    if "--subresource=status" in flags and any(flag.startswith("--as=") for flag in flags):
        # kubectl reads the subresource before it patches it, which neither the operator nor a kubelet does or may.
        flags = (*flags, "--as-group=system:masters")
    result = cluster.kubectl(
        "patch", "-n", namespace, target, "--type=merge", "--patch", json.dumps(change), *flags, check=False
    )
    assert (result.returncode == 0) == (result.stderr == ""), result.stderr
    return result.stderr


# --- The definitions themselves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--server-side",)], ids=["client-side", "server-side"])
@pytest.mark.parametrize("path", sorted((ROOT / "crds").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_crd_is_accepted_as_new_and_without_a_warning(
    cluster: E2eCluster, path: Path, flags: tuple[str, ...]
) -> None:
    # Under another group, because rules that are stored already are not estimated again.
    manifest = path.read_text().replace(names.GROUP, "fresh.example.com")
    result = cluster.kubectl("apply", *flags, "--dry-run=server", "-f", "-", input=manifest)
    assert result.stderr == ""


@pytest.mark.parametrize("flags", [(), ("--server-side", "--force-conflicts")], ids=["client-side", "server-side"])
def test_install_yaml_applies_again_without_a_warning(cluster: E2eCluster, flags: tuple[str, ...]) -> None:
    # Once for real each way: applying after the other way warns about the annotation that it brings up to date.
    cluster.kubectl("apply", *flags, "-f", str(ROOT / "install.yaml"))
    result = cluster.kubectl("apply", *flags, "-f", str(ROOT / "install.yaml"))
    assert result.stderr == ""


def test_kubectl_explain_tells_what_a_field_is_for(cluster: E2eCluster) -> None:
    text = cluster.kubectl("explain", "rollouts.outrider.dev.spec.strategy.rolling.batchSize").stdout
    assert "How many nodes move together" in " ".join(text.split())
    text = cluster.kubectl("explain", "orl.spec.template.spec.containers.ports", "--recursive").stdout
    assert "containerPort" in text


def test_one_command_shows_everything_at_a_glance(cluster: E2eCluster, namespace: str) -> None:
    create(cluster, namespace, component_version("node-agent-0.0.1", version="0.0.1"))
    create(cluster, namespace, rollout("glance"))
    create(cluster, namespace, batch("glance-1-1"), OPERATOR)
    lines = cluster.kubectl("get", "outrider", "-n", namespace).stdout.splitlines()
    headers = [" ".join(line.split()) for line in lines if line.startswith("NAME")]
    assert headers == [
        "NAME VERSION PHASE LATEST READY REASON AGE",
        "NAME KIND BATCH FROM TO STATE SUCCEEDED FAILED SKIPPED PENDING AGE",
        "NAME VERSION PHASE BATCH NODES UPDATED FAILED RUNNING READY AGE",
    ]
    assert max(len(line) for line in lines) <= 132


@pytest.mark.parametrize("short", ["cver", "orl", "orb"])
def test_short_names_work(cluster: E2eCluster, namespace: str, short: str) -> None:
    cluster.kubectl("get", short, "-n", namespace)


# --- What is accepted, and what the API server makes of it ------------------------------------------------------------


def test_defaults_of_a_version(cluster: E2eCluster, namespace: str) -> None:
    stored = create(cluster, namespace, component_version())
    assert stored["status"] == {"observedGeneration": -1}
    expected = copy.deepcopy(component_version()["spec"])
    expected |= {"type": "Agent", "releaseType": "Minor", "stage": "Published"}
    expected["artifacts"][0]["platform"] = {"os": "linux", "arch": "amd64"}
    assert stored["spec"] == expected


def test_defaults_of_a_rollout(cluster: E2eCluster, namespace: str) -> None:
    stored = create(cluster, namespace, rollout())
    assert stored["status"] == {"observedGeneration": -1}
    assert stored["spec"] == rollout()["spec"] | {
        "delivery": {"volume": {"mountPath": "/opt/agent", "containers": ["agent"], "cache": "Node"}},
        "prePull": False,
        "strategy": {"type": "Rolling", "failureTolerance": 0},
        "health": {"timeoutSeconds": 300, "minReadySeconds": 10, "maxRestarts": 0},
        "onFailure": "Rollback",
        "onLeave": "Remove",
        "joiners": "Stable",
        "deletionPolicy": "Orphan",
        "paused": False,
        "frozen": False,
        "revisionHistoryLimit": 5,
        "runHistoryLimit": 10,
    }


ACCEPTED = {
    "a pre-release": component_version("node-agent-2.0.0-rc.1", version="2.0.0-rc.1"),
    "a version for two platforms": component_version(artifacts=[artifact(), artifact(platform={"arch": "arm64"})]),
    "a source in a ConfigMap": component_version(artifacts=[artifact(source={"configMap": {"name": "a", "key": "b"}})]),
    "a wrapped signature": component_version(artifacts=[artifact(signature={"inline": "c2ln\nbmF0dXJl\n"})]),
    "a source that asks for a login and has authorities of its own": sourced(
        http={"url": "https://a.b/c", "secretRef": {"name": "a"}, "caConfigMap": {"name": "a", "key": "b"}}
    ),
    "a source that is stored already": sourced(stored={"digest": f"sha256:{SHA}"}),
    "a source in another registry that brings its own signature": without(
        "signature", source={"oci": {"reference": BY_DIGEST}}
    ),
    "an image by tag": without("signature", "fileName", source={"image": {"reference": "a.b/c:1.4.0", "copy": True}}),
    "an image by tag and digest": without(
        "signature", "fileName", source={"image": {"reference": f"a.b:5000/c/d:1.4.0@sha256:{SHA}"}}
    ),
    "a bundle": signed(bundle={"inline": "{}"}),
    "a bundle in a ConfigMap": signed(bundle={"configMap": {"name": "a", "key": "b"}}),
    "a statement behind a URL": signed(statement={"http": {"url": "https://a.b/c"}}),
    "stage Deprecated": component_version(stage="Deprecated"),
    "stage Revoked": component_version(stage="Revoked"),
    "an end": component_version(expiresAt="2027-01-01T00:00:00Z"),
    "all rules of compatibility": component_version(
        compatibility={
            "osImage": ["Debian*12*"],
            "kernelVersion": ">=5.10",
            "kubeletVersion": ">=1.30 <2",
            "requires": [{"component": "a", "versionRange": "^1.4"}, {"component": "b", "versionRange": "~2 || 3.x"}],
        }
    ),
    "a test by a Job": component_version(
        testing={
            "job": {
                "template": {
                    "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}},
                    "spec": {"template": POD, "activeDeadlineSeconds": 60, "backoffLimit": 1},
                },
                "mountPath": "/artifact",
            }
        }
    ),
    "a test by a person": component_version(testing={"manual": {"instructions": "Look at the lamps."}}),
    "a node selector": rollout(target={"nodeSelector": {"matchLabels": {"pool": "edge"}}}),
    "a node selector by expressions": rollout(
        target={
            "nodeSelector": {
                "matchExpressions": [
                    {"key": "a", "operator": "In", "values": ["b"]},
                    {"key": "c", "operator": "DoesNotExist"},
                ]
            }
        }
    ),
    "node names": rollout(target={"nodeNames": ["a", "b"]}),
    "batches of 1": rolling(batchSize=1),
    "batches of 100%": rolling(batchSize="100%"),
    "a window of 1": rolling(maxUnavailable=1),
    "a window of 100%": rolling(maxUnavailable="100%"),
    "a window, and no interval": rolling(maxUnavailable="10%", batchIntervalSeconds=0),
    "canary, then a window": canary({"nodes": 1}, rolling={"maxUnavailable": "10%"}),
    "canary, then rolling": canary({"nodes": 1, "soakSeconds": 60}, {"nodes": "10%"}, rolling={"batchSize": "20%"}),
    "all at once": rollout(strategy={"type": "Full", "full": {"maxInFlight": "50%"}, "failureTolerance": "5%"}),
    "canaries by labels, spread over zones": placed(
        nodeSelector={"matchLabels": {"lab": "yes"}}, spreadBy="topology.kubernetes.io/zone"
    ),
    "a step that needs an approval": canary({"nodes": 3, "requireApproval": True}),
    "a window over midnight": windowed(days=["Mon", "Tue"], start="22:00", end="04:00", timeZone="Europe/Berlin"),
    "a window of whole days": windowed(start="00:00", end="24:00"),
    "a zone of three parts": windowed(timeZone="America/Argentina/Buenos_Aires"),
    "no windows": rollout(windows=[]),
    "a start": rollout(notBefore="2027-01-01T00:00:00Z", frozen=True),
    "some of health": rollout(health={"timeoutSeconds": 60}),
    "a check of the agent": rollout(health={"http": {"port": 8080}}),
    "all of a check of the agent": rollout(
        health={
            "http": {
                "path": "/healthz?full=1",
                "port": 8443,
                "scheme": "HTTPS",
                "bodyContains": "fine",
                "bodyContainsVersion": True,
            }
        }
    ),
    "containers whose restarts do not count": rollout(
        template={
            "spec": {
                "containers": [{"name": "agent", "image": "agent"}],
                "initContainers": [{"name": "proxy", "image": "proxy", "restartPolicy": "Always"}],
            }
        },
        health={"ignoreRestartsOf": ["agent", "proxy"]},
    ),
    "analyses of all kinds": rollout(
        analysis=[
            {"name": "errors", "prometheus": QUERY | {"secretRef": {"name": "a"}}, "failureLimit": 2},
            {"name": "page", "web": {"url": "https://a.b/c", "bodyContains": "fine"}, "intervalSeconds": 5},
            {"name": "smoke", "job": {"template": {"spec": {"template": POD}}}, "timeoutSeconds": 60},
        ]
    ),
    "labels and annotations of the pod": rollout(
        template={**template()["spec"]["template"], "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}}
    ),
    "a Daemon": component_version(type="Daemon"),
    "a volume without a cache": volume(cache="None"),
    "an image": rollout(delivery={"image": {"container": "agent"}}, prePull=True),
    "an image for a container without one": rollout(
        delivery={"image": {"container": "agent"}}, template={"spec": {"containers": [{"name": "agent"}]}}
    ),
    "files on the node": host(),
    "a Daemon with a unit of systemd": host(
        activate={"systemdUnit": "node-daemon@1.service"}, health={"timeoutSeconds": 60, "periodSeconds": 5}, keep=3
    ),
    "a Daemon with commands": host(
        path="/opt/a/b_c/D.d",
        activate={"command": ["/usr/bin/systemctl", "reload", "node-daemon"]},
        health={"command": ["/opt/node-daemon/current/node-daemon", "--check"]},
    ),
    "a Daemon with an HTTP check": host(health={"http": {"port": 8080, "path": "/healthz?full=1"}}),
    "a Daemon with a container beside it": rollout(delivery={"host": {"path": "/opt/node-daemon"}}),
    "quantities and ports as numbers and strings": container(
        resources={"requests": {"cpu": 1, "memory": "64Mi"}, "limits": {"cpu": "1500m", "memory": 134217728}},
        ports=[{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP", "name": "dns"}],
        livenessProbe={"httpGet": {"port": "http", "path": "/"}},
        readinessProbe={"tcpSocket": {"port": 80}},
    ),
    "a privileged pod with host paths": template(
        hostNetwork=True,
        hostPID=True,
        tolerations=[{"operator": "Exists"}],
        volumes=[{"name": "root", "hostPath": {"path": "/"}}, {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
        initContainers=[{"name": "init", "image": "init", "restartPolicy": "Always"}],
        affinity={
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]
                }
            }
        },
    ),
}


@pytest.mark.parametrize("manifest", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_is_accepted_and_stored_as_written(cluster: E2eCluster, namespace: str, manifest: Object) -> None:
    flags = ("--dry-run=server", "--validate=strict")
    stored = create(cluster, namespace, _renamed(manifest), *flags)
    assert _is_within(manifest["spec"], stored["spec"])


def _renamed(manifest: Object) -> Object:
    # Another test stores objects of these names; a dry-run of a create minds.
    if manifest["kind"] != "Rollout":
        changed = copy.deepcopy(manifest)
        changed["spec"]["component"] = "dry"
        changed["metadata"]["name"] = f"dry-{manifest['spec']['version']}"
        manifest["spec"]["component"] = "dry"
        return changed
    return {**manifest, "metadata": {"name": "dry"}}


def _is_within(part: Any, whole: Any) -> bool:
    if isinstance(part, dict):
        return all(key in whole and _is_within(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(_is_within(*pair) for pair in zip(part, whole, strict=True))
    return bool(part == whole)


def test_server_side_apply_merges_the_pod_template_as_in_a_daemon_set(cluster: E2eCluster, namespace: str) -> None:
    create(cluster, namespace, {**container(ports=[{"containerPort": 80}]), "metadata": {"name": "merged"}})
    addition = {
        "apiVersion": names.API_VERSION,
        "kind": "Rollout",
        "metadata": {"name": "merged"},
        "spec": {
            "template": {
                "spec": {
                    "containers": [
                        {
                            "name": "agent",
                            "env": [{"name": "A", "value": "b"}],
                            "ports": [{"containerPort": 80, "protocol": "UDP"}],
                        },
                        {"name": "sidecar", "image": "sidecar"},
                    ]
                }
            }
        },
    }
    result = cluster.kubectl(
        "apply",
        "--server-side",
        "--field-manager=second",
        "-n",
        namespace,
        "-o",
        "json",
        "-f",
        "-",
        input=json.dumps(addition),
    )
    agent, sidecar = json.loads(result.stdout)["spec"]["template"]["spec"]["containers"]
    assert agent == {
        "name": "agent",
        "image": "agent",
        "env": [{"name": "A", "value": "b"}],
        "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}],
    }
    assert sidecar["name"] == "sidecar"


# --- What is refused, and what people are told ------------------------------------------------------------------------

LONG = "r" * 41
ONE_SOURCE = "set exactly one of http, oci, stored, configMap and image"
SEMVER = "write a semantic version of three numbers"
PERCENT = "write a whole number, or a percentage from '0%' to '100%'"
AT_LEAST_ONE = "write a number from 1, or a percentage from '1%'"

REFUSED: dict[str, tuple[Object, str]] = {
    "a name that is not component and version": (
        component_version("agent-1.4.0"),
        "metadata.name must be node-agent-1.4.0 (<spec.component>-<spec.version>: that is what makes the pair",
    ),
    "a version of two numbers": (component_version("node-agent-1.4.", version="1.4.0.0"), SEMVER),
    "a version with a v": (component_version("node-agent-v1.4.0", version="v1.4.0"), SEMVER),
    "a version with build metadata": (component_version(version="1.4.0+linux"), SEMVER),
    "a version in upper case": (component_version(version="1.4.0-RC1"), SEMVER),
    "a version with a leading zero": (component_version("node-agent-1.04.0", version="1.04.0"), SEMVER),
    "a component with an underscore": (
        component_version(component="node_agent"),
        "write lower case letters, digits and '-'",
    ),
    "no artifact": (component_version(artifacts=[]), "spec.artifacts in body should have at least 1 items"),
    "one platform twice": (
        component_version(artifacts=[artifact(), artifact()]),
        "each platform may have only one artifact",
    ),
    "one platform twice, once by default": (
        component_version(artifacts=[artifact(), artifact(platform={"os": "linux", "arch": "amd64"})]),
        "each platform may have only one artifact",
    ),
    "another operating system": (
        component_version(artifacts=[artifact(platform={"os": "windows", "arch": "amd64"})]),
        'spec.artifacts[0].platform.os: Unsupported value: "windows": supported values: "linux"',
    ),
    "two sources": (
        component_version(
            artifacts=[artifact(source={"http": {"url": "https://a.b/c"}, "configMap": {"name": "a", "key": "b"}})]
        ),
        f"spec.artifacts[0].source: Invalid value: {ONE_SOURCE}",
    ),
    "no source": (sourced(), ONE_SOURCE),
    "a URL with credentials": (
        component_version(artifacts=[artifact(source={"http": {"url": "https://me:secret@a.b/c"}})]),
        "write an http:// or https:// URL without spaces, '@' or credentials",
    ),
    "a URL of another kind": (
        component_version(artifacts=[artifact(source={"http": {"url": "ftp://a.b/c"}})]),
        "write an http:// or https:// URL",
    ),
    "a hash in upper case": (
        component_version(artifacts=[artifact(sha256="A" * 64)]),
        "write 64 hex digits in lower case",
    ),
    "a hash that is too short": (component_version(artifacts=[artifact(sha256="a" * 63)]), "write 64 hex digits"),
    "a file name with a directory": (
        component_version(artifacts=[artifact(fileName="../agent")]),
        "write a file name without a directory",
    ),
    "no signature": (
        without("signature"),
        "signature is required: only artifacts from oci and image may bring their own (cosign sign)",
    ),
    "no signature on what is stored already": (
        without("signature", source={"stored": {"digest": f"sha256:{SHA}"}}),
        "signature is required: only artifacts from oci and image may bring their own (cosign sign)",
    ),
    "two signatures": (
        signed(inline="c2lnbmF0dXJl", bundle={"inline": "{}"}),
        "set exactly one of inline, bundle and statement",
    ),
    "a signature without anything": (signed(), "set exactly one of inline, bundle and statement"),
    "a bundle in two places": (
        signed(bundle={"inline": "{}", "http": {"url": "https://a.b/c"}}),
        "set exactly one of inline, configMap and http",
    ),
    "a statement in no place": (signed(statement={}), "set exactly one of inline, configMap and http"),
    "a bundle behind a URL with credentials": (
        signed(bundle={"http": {"url": "https://me:secret@a.b/c"}}),
        "write an http:// or https:// URL without spaces, '@' or credentials",
    ),
    "a bundle that is too long to be inline": (
        signed(bundle={"inline": " " * 65537}),
        "spec.artifacts[0].signature.bundle.inline: Too long: may not be more than 65536 bytes",
    ),
    "a ConfigMap whose name is a path": (
        sourced(configMap={"name": "../secrets/a", "key": "b"}),
        "write an object's name: lower case letters, digits, '-' and '.'",
    ),
    "a ConfigMap whose key is a path": (
        sourced(configMap={"name": "a", "key": "b/c"}),
        "write a key of a ConfigMap: letters, digits, '-', '_' and '.'",
    ),
    "a Secret whose name is a path": (
        sourced(http={"url": "https://a.b/c", "secretRef": {"name": "a/b"}}),
        "write an object's name: lower case letters, digits, '-' and '.'",
    ),
    "no file name": (without("fileName"), "fileName is required, and only an image has none"),
    "an image with a file name": (
        without("signature", source={"image": {"reference": "a.b/c:1.4.0"}}),
        "fileName is required, and only an image has none",
    ),
    "a stored file of another hash": (
        sourced(stored={"digest": "sha256:" + "b" * 64}),
        "source.stored.digest and sha256 must be the same hash",
    ),
    "a stored file whose hash is none": (
        sourced(stored={"digest": SHA}),
        "write sha256: and 64 hex digits in lower case",
    ),
    "a reference without a digest": (
        sourced(oci={"reference": "registry.example.com/team/agent:1.4.0"}),
        "write host[:port]/repository@sha256:<64 hex digits>; the digest is what `oras push` and `oras resolve` print",
    ),
    "a reference with a scheme": (
        sourced(oci={"reference": f"https://{BY_DIGEST}"}),
        "write host[:port]/repository@sha256:<64 hex digits>",
    ),
    "an image without a registry": (
        without("signature", "fileName", source={"image": {"reference": "agent:1.4.0"}}),
        "write host[:port]/repository:tag or host[:port]/repository@sha256:<64 hex digits>",
    ),
    "a signature that is not base64": (
        component_version(artifacts=[artifact(signature={"inline": "-----BEGIN-----"})]),
        "write the signature in base64: openssl dgst -sha256 -sign KEY FILE | base64 -w0",
    ),
    "a type that there is not": (component_version(type="Plugin"), 'supported values: "Agent", "Daemon"'),
    "a Daemon that is an image": (
        component_version(
            type="Daemon",
            artifacts=[
                {"platform": {"arch": "amd64"}, "sha256": SHA, "source": {"image": {"reference": "a.b/c:1.4.0"}}}
            ],
        ),
        "a Daemon is installed on the node from files: give artifacts that are no images, or make spec.type Agent",
    ),
    "a stage that there is not": (
        component_version(stage="Retired"),
        'supported values: "Draft", "Testing", "Published", "Deprecated", "Revoked"',
    ),
    "a field that there is not": (component_version(audience="all"), 'unknown field "spec.audience"'),
    "an end that is no time": (component_version(expiresAt="tomorrow"), "spec.expiresAt in body must be of type date-"),
    "one required component twice": (
        component_version(compatibility={"requires": [{"component": "a", "versionRange": "1"}] * 2}),
        "spec.compatibility.requires[1]: Duplicate value",
    ),
    "a required component without a range": (
        component_version(compatibility={"requires": [{"component": "a"}]}),
        "spec.compatibility.requires[0].versionRange: Required value",
    ),
    "two tests": (
        component_version(testing={**by_a_job(), "manual": {}}),
        "spec.testing: Invalid value: set exactly one of job and manual",
    ),
    "no test where one is announced": (component_version(testing={}), "set exactly one of job and manual"),
    "a test without a pod": (
        component_version(testing=by_a_job(template={"spec": {}})),
        "spec.testing.job.template.spec.template: Required value",
    ),
    "a test that sees the artifact at the root": (
        component_version(testing=by_a_job(mountPath="/")),
        "should be at least 2 chars long",
    ),
    "a test that sees the artifact at a relative path": (
        component_version(testing=by_a_job(mountPath="opt/artifact")),
        "write an absolute path other than '/', without ':', such as /opt/agent",
    ),
    "a test without an end": (
        component_version(testing=by_a_job(template={"spec": {"template": POD, "activeDeadlineSeconds": 0}})),
        "should be greater than or equal to 1",
    ),
    "an invalid version in a Rollout": (rollout(version="latest"), SEMVER),
    "a long name": (rollout(LONG), "metadata.name may have at most 40 characters"),
    "an empty node selector": (
        rollout(target={"nodeSelector": {}}),
        "an empty selector selects nothing; write `all: true` for every node",
    ),
    "a node selector of empty lists": (
        rollout(target={"nodeSelector": {"matchLabels": {}, "matchExpressions": []}}),
        "an empty selector selects nothing",
    ),
    "no target": (rollout(target={}), "set exactly one of nodeSelector, nodeNames and all"),
    "two targets": (
        rollout(target={"all": True, "nodeNames": ["a"]}),
        "set exactly one of nodeSelector, nodeNames and all",
    ),
    "all: false": (rollout(target={"all": False}), "spec.target.all: Unsupported value: false"),
    "one node twice": (rollout(target={"nodeNames": ["a", "a"]}), 'spec.target.nodeNames[1]: Duplicate value: "a"'),
    "no node names": (rollout(target={"nodeNames": []}), "should have at least 1 items"),
    "too many node names": (
        rollout(target={"nodeNames": [f"node-{number}" for number in range(501)]}),
        "must have at most 500 items",
    ),
    "In without values": (
        rollout(target={"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
        "operators In and NotIn need values",
    ),
    "Exists with values": (
        rollout(target={"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}),
        "Exists and DoesNotExist must have none",
    ),
    "batches of 0": (rolling(batchSize=0), AT_LEAST_ONE),
    "batches of 0%": (rolling(batchSize="0%"), AT_LEAST_ONE),
    "batches of 101%": (rolling(batchSize="101%"), PERCENT),
    "batches of a word": (rolling(batchSize="ten"), PERCENT),
    "batches of a number in quotes": (rolling(batchSize="10"), PERCENT),
    "batches of less than none": (rolling(batchSize=-1), "should be greater than or equal to 0"),
    "batches of half a node": (rolling(batchSize=0.5), "spec.strategy.rolling.batchSize"),
    "a canary step of 0 nodes": (canary({"nodes": 0}), AT_LEAST_ONE),
    "a canary step of 0%": (canary({"nodes": "0%"}), AT_LEAST_ONE),
    "a canary without steps": (canary(), "spec.strategy.canary.steps in body should have at least 1 items"),
    "canaries where nothing is": (
        placed(nodeSelector={}),
        "an empty selector selects nothing; leave it out to allow canaries anywhere",
    ),
    "canaries spread over what is no label": (
        placed(spreadBy="the zone"),
        "write the key of a label of nodes, such as topology.kubernetes.io/zone",
    ),
    "a window without a length": (
        windowed(start="22:00", end="22:00"),
        "for whole days write start 00:00 and end 24:00",
    ),
    "a window that begins at the end of a day": (windowed(start="24:00"), "the next day begins at 00:00"),
    "a window from a time that there is not": (windowed(start="22:60"), "write a time of day as HH:MM"),
    "a window until an hour in words": (windowed(end="4am"), "write a time of day as HH:MM"),
    "a window without a start": (rollout(windows=[{"end": "04:00"}]), "spec.windows[0].start: Required value"),
    "a window on a day that there is not": (windowed(days=["Monday"]), 'supported values: "Mon", "Tue"'),
    "a window on one day twice": (windowed(days=["Mon", "Mon"]), 'spec.windows[0].days[1]: Duplicate value: "Mon"'),
    "a window in a zone by its offset": (
        windowed(timeZone="UTC+01:00"),
        "write the IANA name of a time zone, such as Europe/Berlin",
    ),
    "too many windows": (rollout(windows=[{"start": "22:00", "end": "04:00"}] * 21), "must have at most 20 items"),
    "a start that is no time": (rollout(notBefore="tomorrow"), "spec.notBefore in body must be of type date-time"),
    "a negative soak": (canary({"nodes": 1, "soakSeconds": -1}), "should be greater than or equal to 0"),
    "nothing in flight": (rollout(strategy={"type": "Full", "full": {"maxInFlight": 0}}), AT_LEAST_ONE),
    "a tolerance over 100%": (rollout(strategy={"type": "Full", "failureTolerance": "200%"}), PERCENT),
    "type Canary without canary": (rollout(strategy={"type": "Canary"}), "type Canary needs strategy.canary.steps"),
    "type Rolling with canary": (
        rollout(strategy={"type": "Rolling", "canary": {"steps": [{"nodes": 1}]}}),
        "no other type may have strategy.canary",
    ),
    "type Rolling with full": (
        rollout(strategy={"type": "Rolling", "full": {"maxInFlight": 1}}),
        "strategy.full needs type Full",
    ),
    "a window of 0": (rolling(maxUnavailable=0), AT_LEAST_ONE),
    "a window of 0%": (rolling(maxUnavailable="0%"), AT_LEAST_ONE),
    "a window of 101%": (rolling(maxUnavailable="101%"), PERCENT),
    "a window of batches": (rolling(maxUnavailable=1, batchSize=1), "with maxUnavailable there are no batches"),
    "a window with an interval": (
        rolling(maxUnavailable=1, batchIntervalSeconds=5),
        "with maxUnavailable there are no batches",
    ),
    "type Full with rolling": (
        rollout(strategy={"type": "Full", "rolling": {"batchSize": 1}}),
        "strategy.rolling contradicts type Full: remove it, or use type Rolling or Canary",
    ),
    "no strategy type": (rollout(strategy={}), "spec.strategy.type: Required value"),
    "ready for longer than there is time": (
        rollout(health={"timeoutSeconds": 60, "minReadySeconds": 60}),
        "minReadySeconds must be less than timeoutSeconds",
    ),
    "ready for longer than there is time by default": (
        rollout(health={"timeoutSeconds": 10}),
        "minReadySeconds must be less than timeoutSeconds",
    ),
    "a check at no port": (rollout(health={"http": {}}), "spec.health.http.port: Required value"),
    "a check at a port that is none": (rollout(health={"http": {"port": 0}}), "greater than or equal to 1"),
    "a check of no path": (
        rollout(health={"http": {"port": 80, "path": "healthz"}}),
        "write a path that begins with '/', without spaces, such as /healthz",
    ),
    "a check of a path with a space": (
        rollout(health={"http": {"port": 80, "path": "/health z"}}),
        "write a path that begins with '/'",
    ),
    "a check by another scheme": (rollout(health={"http": {"port": 80, "scheme": "TCP"}}), "Unsupported value"),
    "restarts of a container that is not there": (
        rollout(health={"ignoreRestartsOf": ["sidecar"]}),
        "every container in spec.health.ignoreRestartsOf must be one of the template's containers or initContainers",
    ),
    "an analysis of nothing": (analysed(), "set exactly one of prometheus, web and job"),
    "an analysis of two things": (
        analysed(prometheus=QUERY, web={"url": "https://a.b/c"}),
        "set exactly one of prometheus, web and job",
    ),
    "an analysis without a name": (rollout(analysis=[{"prometheus": QUERY}]), "spec.analysis[0].name: Required value"),
    "an analysis with a name that is none": (
        rollout(analysis=[{"name": "Error rate", "prometheus": QUERY}]),
        "write lower case letters, digits and '-'",
    ),
    "one analysis twice": (
        rollout(analysis=[{"name": "errors", "prometheus": QUERY}] * 2),
        "spec.analysis[1]: Duplicate value",
    ),
    "a query without a comparison": (
        analysed(prometheus={"address": "http://a", "query": "errors"}),
        "spec.analysis[0].prometheus.passWhen: Required value",
    ),
    **{
        f"a comparison that is none: {comparison}": (
            analysed(prometheus=QUERY | {"passWhen": comparison}),
            "write a comparison (<, <=, >, >=, ==, !=) and a number, such as '< 0.01' or '>= 1'",
        )
        for comparison in ("0.01", "=< 1", "< one", "< 1 || > 2", "below 1", "< NaN")
    },
    "a query to no URL": (
        analysed(prometheus=QUERY | {"address": "prometheus:9090"}),
        "write an http:// or https:// URL without spaces, '@' or credentials",
    ),
    "a web check with credentials": (
        analysed(web={"url": "https://user:password@a.b/c"}),
        "write an http:// or https:// URL without spaces, '@' or credentials",
    ),
    "a Job without a pod": (
        analysed(job={"template": {"spec": {}}}),
        "spec.analysis[0].job.template.spec.template: Required value",
    ),
    "an analysis at every moment": (
        analysed(web={"url": "https://a.b"}, intervalSeconds=1),
        "greater than or equal to 5",
    ),
    "no run remembered": (rollout(runHistoryLimit=0), "should be greater than or equal to 1"),
    "delivery into a container that is not there": (
        volume(containers=["agnet"]),
        "every container in spec.delivery.volume.containers must be one of spec.template.spec.containers",
    ),
    "delivery in two ways": (
        rollout(delivery={"volume": {"mountPath": "/a", "containers": ["agent"]}, "image": {"container": "agent"}}),
        "set exactly one of volume, image and host",
    ),
    "delivery in no way": (rollout(delivery={}), "set exactly one of volume, image and host"),
    "a cache that there is not": (volume(cache="Memory"), 'supported values: "Node", "None"'),
    "an image for a container that is not there": (
        rollout(delivery={"image": {"container": "agnet"}}),
        "spec.delivery.image.container must be one of spec.template.spec.containers",
    ),
    **{
        f"a Daemon whose path {why}": (host(path=path), "write an absolute path below one of the folders that the")
        for why, path in {
            "is relative": "opt/node-daemon",
            "goes up": "/opt/../etc",
            "goes nowhere": "/opt/./node-daemon",
            "is a folder of the root": "/opt",
            "ends in a slash": "/opt/node-daemon/",
            "has an empty part": "/opt//node-daemon",
            "is hidden": "/opt/.node-daemon",
            "has a space": "/opt/node daemon",
        }.items()
    },
    "a Daemon that is activated in two ways": (
        host(activate={"command": ["/bin/true"], "systemdUnit": "a.service"}),
        "set exactly one of command and systemdUnit",
    ),
    "a Daemon that is activated in no way": (host(activate={}), "set exactly one of command and systemdUnit"),
    "a Daemon whose command is looked for": (
        host(activate={"command": ["systemctl", "restart", "a"]}),
        "the first word is the program: write its absolute path on the node, such as /usr/bin/systemctl",
    ),
    "a Daemon whose command is empty": (host(activate={"command": []}), "should have at least 1 items"),
    "a Daemon whose unit is an option": (
        host(activate={"systemdUnit": "--force.service"}),
        "write the unit's whole name, such as node-daemon.service",
    ),
    "a Daemon whose unit has no kind": (
        host(activate={"systemdUnit": "node-daemon"}),
        "write the unit's whole name, such as node-daemon.service",
    ),
    "a Daemon that is asked in two ways": (
        host(health={"command": ["/bin/true"], "http": {"port": 80}}),
        "set at most one of command and http",
    ),
    "a Daemon that is asked at no port": (host(health={"http": {}}), "spec.delivery.host.health.http.port: Required"),
    "a Daemon that is kept nowhere": (host(keep=0), "should be greater than or equal to 1"),
    "delivery into one container twice": (volume(containers=["agent", "agent"]), 'Duplicate value: "agent"'),
    "delivery into no container": (volume(containers=[]), "should have at least 1 items"),
    "delivery over the root": (volume(mountPath="/"), "should be at least 2 chars long"),
    "delivery to a relative path": (volume(mountPath="opt/agent"), "write an absolute path other than '/'"),
    "a template without containers": (
        rollout(template={"spec": {}}),
        "spec.template.spec.containers needs the agent's container; only with spec.delivery.host may there be none",
    ),
    "a template with an empty list of containers": (
        rollout(template={"spec": {"containers": []}}),
        "spec.template.spec.containers needs the agent's container",
    ),
    "a template without anything": (rollout(template={}), "spec.template.spec.containers needs the agent's container"),
    "a template with one container twice": (
        template(containers=[{"name": "agent"}, {"name": "agent"}]),
        "spec.template.spec.containers[1]: Duplicate value",
    ),
    "a template with one port twice": (
        container(ports=[{"containerPort": 80}, {"containerPort": 80, "protocol": "TCP"}]),
        "spec.template.spec.containers[0].ports[1]: Duplicate value",
    ),
    "a template with a misspelt field": (
        container(imagePullPolcy="Always"),
        'unknown field "spec.template.spec.containers[0].imagePullPolcy"',
    ),
    "a template with a quantity that is none": (
        container(resources={"limits": {"cpu": "lots"}}),
        "spec.template.spec.containers[0].resources.limits.cpu",
    ),
    "a template with a number for a string": (
        container(env=[{"name": "A", "value": 1}]),
        "spec.template.spec.containers[0].env[0].value: Invalid value",
    ),
}


@pytest.mark.parametrize(("manifest", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_is_refused_with_a_message_that_says_what_to_do(
    cluster: E2eCluster, namespace: str, manifest: Object, message: str
) -> None:
    assert message in refusal(cluster, namespace, manifest, "--validate=strict")


# --- What cannot be changed -------------------------------------------------------------------------------------------

IMMUTABLE = "this field cannot be changed; create a new object instead"
FROZEN = "a version that has left Draft cannot be changed, but for the signatures of its artifacts"
TEST_FROZEN = "the test of a version that was published cannot be changed; create a new version instead"
NO_DRAFT_AGAIN = "a version that was published cannot become a draft again; set spec.stage to Deprecated or Revoked"
FINAL = "spec.stage Revoked is final; create a new version instead"


@pytest.mark.parametrize(
    ("target", "change"),
    [
        ("cver/fixed-1.4.0", {"component": "other"}),
        ("cver/fixed-1.4.0", {"version": "1.4.1"}),
        ("orl/fixed", {"component": "other"}),
    ],
    ids=["a version's component", "a version's version", "a Rollout's component"],
)
def test_identity_cannot_be_changed(cluster: E2eCluster, namespace: str, target: str, change: Object) -> None:
    _ensure(cluster, namespace, component_version("fixed-1.4.0", component="fixed"))
    _ensure(cluster, namespace, rollout("fixed"))
    assert IMMUTABLE in patch(cluster, namespace, target, {"spec": change})


class Changed:
    """A version of this module, and what people and the operator try to change of it."""

    def __init__(self, cluster: E2eCluster, namespace: str, name: str, **spec: Any) -> None:
        self._cluster, self._namespace, self.target = cluster, namespace, f"cver/{name}-1.4.0"
        create(cluster, namespace, component_version(f"{name}-1.4.0", component=name, **spec))

    def spec(self, *flags: str, **fields: Any) -> str:
        """Somebody changes the spec; returns what was said against it."""
        return patch(self._cluster, self._namespace, self.target, {"spec": fields}, *flags)

    def status(self, **fields: Any) -> str:
        """The operator changes the status; returns what was said against it."""
        change = {"status": fields}
        return patch(self._cluster, self._namespace, self.target, change, "--subresource=status", OPERATOR)


@pytest.fixture
def changed(cluster: E2eCluster, namespace: str, request: pytest.FixtureRequest) -> Changed:
    """A version with two artifacts, a test and a rule."""
    return Changed(
        cluster,
        namespace,
        "changed-" + format(zlib.crc32(request.node.name.encode()), "x"),
        artifacts=TWO_ARTIFACTS,
        testing={"manual": {"instructions": "Look."}},
        compatibility={"kernelVersion": ">=5"},
    )


TWO_ARTIFACTS = [artifact(), artifact(platform={"arch": "arm64"})]

CHANGES_OF_CONTENT: dict[str, Object] = {
    "another hash": {"artifacts": [artifact(sha256="b" * 64), TWO_ARTIFACTS[1]]},
    "another source": {"artifacts": [artifact(source={"http": {"url": "https://b.c/d"}}), TWO_ARTIFACTS[1]]},
    "another file name": {"artifacts": [artifact(fileName="other"), TWO_ARTIFACTS[1]]},
    "another platform": {"artifacts": [artifact(platform={"arch": "arm"}), TWO_ARTIFACTS[1]]},
    "one artifact more": {"artifacts": [*TWO_ARTIFACTS, artifact(platform={"arch": "arm"})]},
    "one artifact less": {"artifacts": [TWO_ARTIFACTS[0]]},
    "another rule": {"compatibility": {"kernelVersion": ">=6"}},
    "no rule": {"compatibility": None},
}
SIGNED_AGAIN: Object = {"artifacts": [artifact(signature={"bundle": {"inline": "{}"}}), TWO_ARTIFACTS[1]]}


def test_a_draft_can_be_changed_in_everything_but_its_identity(changed: Changed) -> None:
    for phase in (None, "Draft"):
        assert phase is None or changed.status(phase=phase) == ""
        for change in CHANGES_OF_CONTENT.values():
            assert changed.spec("--dry-run=server", **change) == ""
        assert changed.spec("--dry-run=server", testing=None) == ""
        assert changed.spec("--dry-run=server", **SIGNED_AGAIN) == ""
        for stage in ("Draft", "Testing", "Published", "Deprecated", "Revoked"):
            assert changed.spec("--dry-run=server", stage=stage) == ""


def test_a_version_that_is_tested_is_frozen_but_for_its_test_and_its_signatures(changed: Changed) -> None:
    assert changed.status(phase="Testing") == ""
    for what, change in CHANGES_OF_CONTENT.items():
        assert FROZEN in changed.spec("--dry-run=server", **change), what
    assert changed.spec("--dry-run=server", artifacts=TWO_ARTIFACTS[::-1]) == "", "the order says nothing"
    assert changed.spec("--dry-run=server", **SIGNED_AGAIN) == ""
    assert changed.spec("--dry-run=server", testing={"manual": {"instructions": "Look closely."}}) == ""
    # The way back to a draft, for what was never published.
    assert changed.spec(stage="Draft") == ""
    assert changed.status(phase="Draft") == ""
    assert changed.spec(**CHANGES_OF_CONTENT["another hash"]) == ""


@pytest.mark.parametrize("phase", ["Published", "Deprecated", "Withdrawn"])
def test_a_version_that_was_published_is_frozen_but_for_its_signatures_and_its_end(
    changed: Changed, phase: str
) -> None:
    assert changed.status(phase=phase, publishedAt="2026-01-01T00:00:00Z") == ""
    for what, change in CHANGES_OF_CONTENT.items():
        assert FROZEN in changed.spec("--dry-run=server", **change), what
    assert TEST_FROZEN in changed.spec("--dry-run=server", testing=None)
    assert TEST_FROZEN in changed.spec("--dry-run=server", testing={"manual": {"instructions": "Look away."}})
    for stage in ("Draft", "Testing"):
        assert NO_DRAFT_AGAIN in changed.spec("--dry-run=server", stage=stage)
    assert changed.spec("--dry-run=server", releaseNotes="Typing errors corrected.") == ""
    assert changed.spec("--dry-run=server", expiresAt="2027-01-01T00:00:00Z") == ""
    assert changed.spec(**SIGNED_AGAIN) == ""
    for stage in ("Deprecated", "Published", "Revoked"):
        assert changed.spec(stage=stage) == ""
    for stage in ("Published", "Deprecated"):
        assert FINAL in changed.spec(stage=stage)


def test_a_version_that_became_a_draft_while_it_was_being_published_can_be_written(changed: Changed) -> None:
    assert changed.spec(stage="Draft") == ""
    assert changed.status(phase="Published", publishedAt="2026-01-01T00:00:00Z") == ""
    assert changed.status(latest=True) == ""
    assert NO_DRAFT_AGAIN in changed.spec(stage="Testing")
    assert changed.spec(releaseNotes="Typing errors corrected.") == ""
    assert changed.spec(stage="Published") == ""
    assert NO_DRAFT_AGAIN in changed.spec(stage="Draft")


def test_when_it_was_published_is_said_once(changed: Changed) -> None:
    assert changed.status(phase="Published", publishedAt="2026-01-01T00:00:00Z") == ""
    for moment in (None, "2026-01-02T00:00:00Z"):
        assert "status.publishedAt is set once and never changed" in changed.status(publishedAt=moment)
    assert changed.status(latest=True) == ""


def test_a_batch_is_frozen_and_its_results_are_not(cluster: E2eCluster, namespace: str) -> None:
    create(cluster, namespace, batch("frozen-1-1"), OPERATOR)
    # Not even the operator may patch one; this is whoever could.
    frozen = patch(cluster, namespace, "orb/frozen-1-1", {"spec": {"nodes": []}}, *CONTROL_PLANE)
    assert "a batch's membership is frozen when it starts" in frozen
    results = {"status": {"state": "Running", "nodes": [{"name": "a", "state": "Starting"}]}}
    assert patch(cluster, namespace, "orb/frozen-1-1", results, "--subresource=status", OPERATOR) == ""


def test_a_batch_of_a_hundred_nodes_with_long_messages_fits(cluster: E2eCluster, namespace: str) -> None:
    nodes = [
        {"name": f"{number:03}" + "n" * 250, "uid": "u" * 36, "from": "f" * 63, "to": "t" * 63, "back": "b" * 63}
        for number in range(100)
    ]
    create(cluster, namespace, batch("large-1-1", nodes=nodes), OPERATOR)
    results = [{"name": node["name"], "state": "Failed", "reason": "r" * 64, "message": "m" * 256} for node in nodes]
    change = {"status": {"state": "Finished", "nodes": results}}
    assert patch(cluster, namespace, "orb/large-1-1", change, "--subresource=status", OPERATOR) == ""
    stored = cluster.kubectl("get", "orb", "large-1-1", "-n", namespace, "-o", "json", "--show-managed-fields").stdout
    assert len(stored) < 256 * 1024


def _ensure(cluster: E2eCluster, namespace: str, manifest: Object) -> None:
    cluster.kubectl("apply", "--server-side", "-n", namespace, "-f", "-", input=json.dumps(manifest))


# --- Who may write what -----------------------------------------------------------------------------------------------

KUBELET = "kubelet"
NODE_PREFIX = f"{names.ASSIGNMENT_PREFIX}fleet.agent"


@pytest.fixture(scope="module")
def node(cluster: E2eCluster) -> Iterator[str]:
    """The name of a node with an assignment and without a taint."""
    name = cluster.kubectl("get", "nodes", "-o", "name").stdout.split()[0].removeprefix("node/")
    labels = (f"{NODE_PREFIX}=rev-a", f"{names.LABEL_EXCLUDE}=false")
    cluster.kubectl("label", "node", name, "--overwrite", *labels)
    yield name
    cluster.kubectl("label", "node", name, f"{NODE_PREFIX}-", f"{names.LABEL_EXCLUDE}-")


def _as_kubelet(node: str) -> tuple[str, str]:
    return f"--as=system:node:{node}", "--as-group=system:nodes"


NODE_CHANGES_OF_THE_OPERATOR: dict[str, tuple[Object, str]] = {
    "assign": ({"metadata": {"labels": {NODE_PREFIX: "to-b"}}}, ""),
    "assign a second component": ({"metadata": {"labels": {f"{NODE_PREFIX}2": "rev-a"}}}, ""),
    "take an assignment away": ({"metadata": {"labels": {NODE_PREFIX: None}}}, ""),
    "annotate under its prefix": ({"metadata": {"annotations": {NODE_PREFIX: "note"}}}, ""),
    "add a label": ({"metadata": {"labels": {"a": "b"}}}, "may change no label of a node but those"),
    "change a label": ({"metadata": {"labels": {"kubernetes.io/hostname": "b"}}}, "may change no label of a node but"),
    "remove a label": ({"metadata": {"labels": {"kubernetes.io/hostname": None}}}, "may change no label of a node but"),
    "remove all labels": ({"metadata": {"labels": None}}, "may change no label of a node but"),
    "exclude the node": ({"metadata": {"labels": {names.LABEL_EXCLUDE: "true"}}}, "may change no label of a node but"),
    "both at a time": ({"metadata": {"labels": {NODE_PREFIX: "b", "a": "b"}}}, "may change no label of a node but"),
    "add an annotation": ({"metadata": {"annotations": {"a": "b"}}}, "may change no annotation of a node but those"),
    "cordon": ({"spec": {"unschedulable": True}}, "may change nothing of a node but labels and annotations under"),
    "taint": ({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}}, "may change nothing of a node but"),
    "add a finalizer": ({"metadata": {"finalizers": ["a.b/c"]}}, "may change nothing of a node but"),
    "add an owner": (
        {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "b"}]}},
        "may change nothing of a node but",
    ),
}


@pytest.mark.parametrize(
    ("change", "message"), NODE_CHANGES_OF_THE_OPERATOR.values(), ids=NODE_CHANGES_OF_THE_OPERATOR.keys()
)
def test_the_operator_on_a_node(cluster: E2eCluster, namespace: str, node: str, change: Object, message: str) -> None:
    said = patch(cluster, namespace, f"node/{node}", change, "--dry-run=server", OPERATOR)
    assert message in said
    assert bool(message) == bool(said)


def test_the_operators_role_allows_no_other_write_of_a_node(cluster: E2eCluster, node: str) -> None:
    for arguments in (
        ("delete", "node", node),
        ("patch", "node", node, "--subresource=status", "--type=merge", "--patch", "{}"),
    ):
        result = cluster.kubectl(*arguments, "--dry-run=server", OPERATOR, check=False)
        assert "Forbidden" in result.stderr


def test_the_policy_refuses_even_if_the_role_were_wider(cluster: E2eCluster, node: str) -> None:
    # Somebody may bind the operator to a wider role one day: system:masters is the widest.
    wider = (OPERATOR, "--as-group=system:masters")
    for arguments in (
        ("delete", "node", node),
        ("patch", "node", node, "--subresource=status", "--type=merge", "--patch", '{"metadata":{"labels":{"a":"b"}}}'),
    ):
        result = cluster.kubectl(*arguments, "--dry-run=server", *wider, check=False)
        assert "may neither create nor delete nodes nor write their subresources" in result.stderr


NODE_CHANGES_OF_A_KUBELET: dict[str, tuple[Object, bool]] = {
    "label itself otherwise": ({"a": "b"}, True),
    "repeat its assignment": ({NODE_PREFIX: "rev-a", "a": "b"}, True),
    "assign itself": ({NODE_PREFIX: "rev-b"}, False),
    "assign itself another component": ({f"{NODE_PREFIX}2": "rev-b"}, False),
    "take its assignment away": ({NODE_PREFIX: None}, False),
    "exclude itself": ({names.LABEL_EXCLUDE: "true"}, False),
    "include itself": ({names.LABEL_EXCLUDE: None}, False),
}


@pytest.mark.parametrize("flags", [(), ("--subresource=status",)], ids=["nodes", "nodes/status"])
@pytest.mark.parametrize(
    ("labels", "allowed"), NODE_CHANGES_OF_A_KUBELET.values(), ids=NODE_CHANGES_OF_A_KUBELET.keys()
)
def test_a_kubelet_on_its_node(
    cluster: E2eCluster, namespace: str, node: str, labels: Object, allowed: bool, flags: tuple[str, ...]
) -> None:
    change = {"metadata": {"labels": labels}}
    said = patch(cluster, namespace, f"node/{node}", change, "--dry-run=server", *flags, *_as_kubelet(node))
    if allowed:
        assert said == ""
    else:
        assert "a kubelet may not write labels under agents.outrider.dev/ nor outrider.dev/exclude" in said


@pytest.mark.parametrize(
    ("labels", "allowed"),
    [({"a": "b"}, True), ({}, True), ({NODE_PREFIX: "rev-b"}, False), ({names.LABEL_EXCLUDE: "true"}, False)],
    ids=["with a label", "without labels", "with an assignment", "excluded"],
)
def test_a_kubelet_that_joins(cluster: E2eCluster, labels: Object, allowed: bool) -> None:
    manifest = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "joins", "labels": labels}}
    result = cluster.kubectl(
        "create", "--dry-run=server", "-f", "-", *_as_kubelet("joins"), input=json.dumps(manifest), check=False
    )
    assert (result.returncode == 0) == allowed, result.stderr
    assert allowed or "remove them from --node-labels" in result.stderr


def test_an_administrator_assigns_and_excludes_as_ever(cluster: E2eCluster, node: str) -> None:
    cluster.kubectl("label", "node", node, "--dry-run=server", "--overwrite", f"{NODE_PREFIX}=x")
    cluster.kubectl("label", "node", node, "--dry-run=server", "--overwrite", f"{names.LABEL_EXCLUDE}=true")


GUARDED = {"RolloutBatch": batch("guarded"), "DaemonSet": DAEMON_SET, "ConfigMap": CONFIG_MAP, "Job": JOB}


@pytest.mark.parametrize("manifest", GUARDED.values(), ids=GUARDED.keys())
def test_only_the_operator_writes_what_is_its_own(cluster: E2eCluster, namespace: str, manifest: Object) -> None:
    only = "only the Outrider operator writes"
    assert only in refusal(cluster, namespace, manifest)

    create(cluster, namespace, manifest, OPERATOR)
    target = f"{manifest['kind'].lower()}/{manifest['metadata']['name']}"
    note = {"metadata": {"annotations": {"a": "b"}}}
    assert only in patch(cluster, namespace, target, note)
    assert only in patch(cluster, namespace, target, {"metadata": {"labels": None}}), "the label cannot be taken off"
    assert only in cluster.kubectl("delete", "-n", namespace, target, check=False).stderr
    assert patch(cluster, namespace, target, note, *CONTROL_PLANE) == ""
    if manifest is CONFIG_MAP:
        assert patch(cluster, namespace, target, note, OPERATOR) == ""
    else:  # these are made and deleted, and never changed
        cluster.kubectl("delete", "-n", namespace, target, OPERATOR)


def test_only_the_operator_writes_results(cluster: E2eCluster, namespace: str) -> None:
    create(cluster, namespace, batch("results"), OPERATOR)
    change = {"status": {"state": "Finished"}}
    said = patch(cluster, namespace, "orb/results", change, "--subresource=status")
    assert "only the Outrider operator writes RolloutBatches" in said


def test_only_the_job_controller_says_how_a_test_ended(cluster: E2eCluster, namespace: str) -> None:
    create(cluster, namespace, {**JOB, "metadata": {**JOB["metadata"], "name": "verdict"}}, OPERATOR)
    change = {"status": {"active": 1}}
    said = patch(cluster, namespace, "job/verdict", change, "--subresource=status")
    assert "only the Outrider operator writes DaemonSets, ConfigMaps and Jobs" in said


def test_a_version_that_was_published_is_deleted_only_when_called_off_and_unused(
    cluster: E2eCluster, namespace: str, changed: Changed
) -> None:
    def deleting() -> str:
        return cluster.kubectl("delete", "-n", namespace, changed.target, "--dry-run=server", check=False).stderr

    called_off = "a published version cannot be deleted; set spec.stage to Deprecated or Revoked first"
    assert deleting() == "", "a draft"
    assert changed.status(phase="Published", publishedAt="2026-01-01T00:00:00Z") == ""
    assert called_off in deleting()
    assert changed.status(phase="Withdrawn") == ""
    assert called_off in deleting()
    assert changed.status(phase="Deprecated", usage={"nodes": 3, "rollouts": ["one", "two"]}) == ""
    said = deleting()
    assert "this version is still needed: 3 nodes run it" in said
    assert "Rollouts want it or may return to it: [one, two]; move them to another version first" in said
    assert changed.status(usage=None) == ""
    assert deleting() == "", "it has expired"
    assert changed.status(phase="Published") == ""
    assert called_off in deleting()
    assert changed.spec(stage="Deprecated") == ""
    assert deleting() == "", "its author has called it off"
    cluster.kubectl("delete", "-n", namespace, changed.target)


def test_only_the_operator_takes_away_what_holds_a_deleted_version(
    cluster: E2eCluster, namespace: str, changed: Changed
) -> None:
    def finalizers(*wanted: str, by: tuple[str, ...] = ()) -> str:
        return patch(cluster, namespace, changed.target, {"metadata": {"finalizers": list(wanted) or None}}, *by)

    only = "only the Outrider operator removes the finalizer outrider.dev/stored-artifacts"
    assert finalizers(names.FINALIZER_VERSION, by=(OPERATOR,)) == ""
    for who in ((), CONTROL_PLANE):
        assert only in finalizers(by=who)
        assert only in finalizers("example.com/other", by=who)
    assert finalizers(names.FINALIZER_VERSION, "example.com/other") == ""
    assert finalizers(names.FINALIZER_VERSION) == ""
    assert finalizers(by=(OPERATOR,)) == ""


def test_a_version_that_somebody_claims_to_own_is_deleted_as_any_other(
    cluster: E2eCluster, namespace: str, changed: Changed
) -> None:
    assert changed.status(phase="Published", publishedAt="2026-01-01T00:00:00Z") == ""
    result = cluster.kubectl("delete", "-n", namespace, changed.target, "--dry-run=server", *COLLECTOR, check=False)
    assert "a published version cannot be deleted" in result.stderr


@pytest.mark.parametrize("kind", ["version", "rollout"])
def test_the_operator_never_writes_what_people_want(cluster: E2eCluster, namespace: str, kind: str) -> None:
    # Its role has no create; somebody may bind it to a wider one some day: system:masters is the widest.
    wider = (OPERATOR, "--as-group=system:masters")
    never = "the Outrider operator may not write the spec of ComponentVersions and Rollouts"
    if kind == "version":
        manifest, target = component_version("wanted-1.4.0", component="wanted"), "cver/wanted-1.4.0"
    else:
        manifest, target = rollout("wanted"), "orl/wanted"
    assert never in refusal(cluster, namespace, manifest, *wider)
    create(cluster, namespace, manifest)
    change = {"spec": {"stage": "Revoked"} if kind == "version" else {"version": "1.4.1"}}
    assert never in patch(cluster, namespace, target, change, "--dry-run=server", OPERATOR)
    assert never in patch(cluster, namespace, target, change, "--dry-run=server", *wider)
    # Its finalizers it may write, and status.
    assert patch(cluster, namespace, target, {"metadata": {"finalizers": ["outrider.dev/a"]}}, OPERATOR) == ""
    assert patch(cluster, namespace, target, {"metadata": {"finalizers": None}}, OPERATOR) == ""
    assert patch(cluster, namespace, target, {"status": {"phase": None}}, "--subresource=status", OPERATOR) == ""
    assert patch(cluster, namespace, target, change, "--dry-run=server") == ""


@pytest.mark.parametrize("kind", ["DaemonSet", "ConfigMap", "Job"])
def test_objects_of_others_are_left_alone(cluster: E2eCluster, namespace: str, kind: str) -> None:
    theirs = copy.deepcopy(GUARDED[kind])
    theirs["metadata"] = {"name": "theirs", "labels": {names.LABEL_MANAGED_BY: "helm"}}
    create(cluster, namespace, theirs)
    target = f"{kind.lower()}/theirs"
    assert patch(cluster, namespace, target, {"metadata": {"annotations": {"a": "b"}}}) == ""
    adoption = {"metadata": {"labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY}}}
    assert "needs another value of that label" in patch(cluster, namespace, target, adoption)
    cluster.kubectl("delete", "-n", namespace, target)


def test_batches_go_with_their_rollout(cluster: E2eCluster, namespace: str) -> None:
    owner = create(cluster, namespace, rollout("owner"))
    owned = batch("owned-1-1")
    owned["metadata"]["ownerReferences"] = [
        {"apiVersion": names.API_VERSION, "kind": "Rollout", "name": "owner", "uid": owner["metadata"]["uid"]}
    ]
    create(cluster, namespace, owned, OPERATOR)
    cluster.kubectl("delete", "-n", namespace, "orl/owner")
    cluster.kubectl("wait", "-n", namespace, "--for=delete", "orb/owned-1-1", "--timeout=60s")


def test_a_namespace_can_be_deleted_with_all_that_is_guarded(cluster: E2eCluster) -> None:
    name = "api-rules-going"
    cluster.kubectl("create", "namespace", name)
    for manifest in GUARDED.values():
        create(cluster, name, manifest, OPERATOR)
    stuck = copy.deepcopy(batch("stuck"))
    stuck["metadata"]["finalizers"] = ["example.com/stuck"]
    create(cluster, name, stuck, OPERATOR)
    cluster.kubectl("delete", "namespace", name, "--wait=false")
    # Whoever cleans up by hand may, once the namespace is going.
    deadline = time.monotonic() + 60
    while said := patch(cluster, name, "orb/stuck", {"metadata": {"finalizers": None}}):
        assert time.monotonic() < deadline, said
        time.sleep(0.5)
    cluster.kubectl("wait", "--for=delete", f"namespace/{name}", "--timeout=120s")


def test_the_policies_have_no_type_errors(cluster: E2eCluster) -> None:
    deadline = time.monotonic() + 60
    while True:
        listed = json.loads(cluster.kubectl("get", "validatingadmissionpolicies", "-o", "json").stdout)["items"]
        policies = [policy for policy in listed if policy["metadata"]["name"].startswith("outrider-")]
        observed = [
            policy["metadata"]["generation"] == policy.get("status", {}).get("observedGeneration")
            for policy in policies
        ]
        if policies and all(observed):
            break
        assert time.monotonic() < deadline, "the controller-manager did not check the policies"
        time.sleep(0.5)
    warnings = {p["metadata"]["name"]: p["status"].get("typeChecking", {}).get("expressionWarnings") for p in policies}
    assert warnings == dict.fromkeys(warnings)


# --- DaemonSets of others ---------------------------------------------------------------------------------------------

KEY = names.assignment_key("api-rules", "agent")
ABSENT: Object = {"key": KEY, "operator": "DoesNotExist"}
LEGACY: Object = {"key": KEY, "operator": "In", "values": ["legacy"]}
ZONE: Object = {"key": "zone", "operator": "In", "values": ["a"]}


def requiring(*terms: list[Object], **more: Any) -> Object:
    """A change of a DaemonSet: the terms of its required node affinity, and what else of its pod."""
    required = {"nodeSelectorTerms": [{"matchExpressions": expressions} for expressions in terms]} if terms else None
    node = {"requiredDuringSchedulingIgnoredDuringExecution": required}
    return {"spec": {"template": {"spec": {"affinity": {"nodeAffinity": node}, **more}}}}


NEITHER = "may require of a node, in a DaemonSet that is not its own, no more than"
TERMS = "may change no node affinity term of a DaemonSet that is not its own"
NOTHING = "may change nothing of a DaemonSet that is not its own but the update strategy"
METADATA = "may change no metadata of a DaemonSet that is not its own"

CHANGES: dict[str, tuple[Object, str]] = {
    "a take-over": (requiring([ZONE, ABSENT], [ZONE, LEGACY]), ""),
    "the joiners given up": (requiring([ZONE, LEGACY]), ""),
    "nothing": (requiring([ZONE]), ""),
    "the strategy": ({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": None}}}, ""),
    "its annotations": ({"metadata": {"annotations": {names.ANNOTATION_ADOPTED_BY: "x"}}}, ""),
    "another value": (requiring([ZONE, {**LEGACY, "values": ["other"]}]), NEITHER),
    "another operator": (requiring([ZONE, {"key": KEY, "operator": "Exists"}]), NEITHER),
    "a term more": (requiring([ZONE], [LEGACY]), TERMS),
    "a term less": (requiring(), TERMS),
    "another label": (requiring([ZONE, {"key": "other", "operator": "Exists"}]), TERMS),
    "another zone": (requiring([{**ZONE, "values": ["b"]}, LEGACY]), TERMS),
    "the image": ({"spec": {"template": {"spec": {"containers": [{"name": "agent", "image": "bad"}]}}}}, NOTHING),
    "the host's network": ({"spec": {"template": {"spec": {"hostNetwork": True}}}}, NOTHING),
    "a field taken away": ({"spec": {"template": {"spec": {"nodeSelector": None}}}}, NOTHING),
    "the affinity to pods": (
        requiring(
            [ZONE, LEGACY],
            affinity={
                "podAntiAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "x", "labelSelector": {}}]
                }
            },
        ),
        NOTHING,
    ),
    "preferences": (
        {
            "spec": {
                "template": {
                    "spec": {
                        "affinity": {
                            "nodeAffinity": {
                                "preferredDuringSchedulingIgnoredDuringExecution": [
                                    {"weight": 1, "preference": {"matchExpressions": [ZONE]}}
                                ]
                            }
                        }
                    }
                }
            }
        },
        NOTHING,
    ),
    "the template's labels": ({"spec": {"template": {"metadata": {"labels": {"c": "d"}}}}}, NOTHING),
    "when a pod is available": ({"spec": {"minReadySeconds": 5}}, NOTHING),
    "its labels": ({"metadata": {"labels": {"c": "d"}}}, METADATA),
    "others' annotations": ({"metadata": {"annotations": {"theirs": "gone"}}}, METADATA),
    "its finalizers": ({"metadata": {"finalizers": ["example.com/a"]}}, METADATA),
    "its own label": ({"metadata": {"labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY}}}, METADATA),
}


@pytest.fixture(scope="module")
def of_others(cluster: E2eCluster, namespace: str) -> str:
    """A DaemonSet that somebody else has made."""
    theirs = copy.deepcopy(DAEMON_SET)
    theirs["metadata"] = {"name": "of-others", "annotations": {"theirs": "stays"}}
    theirs["spec"]["template"]["spec"] |= requiring([ZONE])["spec"]["template"]["spec"]
    create(cluster, namespace, theirs)
    return "daemonset/of-others"


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
def test_what_the_operator_may_change_of_a_daemonset_of_others(
    cluster: E2eCluster, namespace: str, of_others: str, change: Object, words: str
) -> None:
    wider = ("--as-group=system:masters",)
    said = patch(cluster, namespace, of_others, change, "--dry-run=server", OPERATOR, *wider)
    assert (words in said) if words else (said == "")
    if words != METADATA:  # whoever claims to be the operator's is told by another policy
        assert patch(cluster, namespace, of_others, change, "--dry-run=server") == "", "anybody else may"


def test_without_any_term_there_and_back(cluster: E2eCluster, namespace: str) -> None:
    theirs = copy.deepcopy(DAEMON_SET)
    theirs["metadata"] = {"name": "without-terms"}
    create(cluster, namespace, theirs)
    target = "daemonset/without-terms"
    adopted = requiring([ABSENT], [LEGACY])
    adopted["spec"]["updateStrategy"] = {"type": "OnDelete", "rollingUpdate": None}
    assert patch(cluster, namespace, target, adopted, OPERATOR) == ""
    assert NEITHER in patch(cluster, namespace, target, requiring([{**LEGACY, "values": ["x"]}]), OPERATOR)
    assert TERMS in patch(cluster, namespace, target, requiring([ZONE, LEGACY]), OPERATOR)
    restored = {"spec": {"template": {"spec": {"affinity": None}}, "updateStrategy": {"type": "RollingUpdate"}}}
    assert patch(cluster, namespace, target, restored, OPERATOR) == ""
    never = "may create and delete no DaemonSets but its own"
    assert never in cluster.kubectl("delete", "-n", namespace, target, OPERATOR, check=False).stderr
    wider = (OPERATOR, "--as-group=system:masters")
    status = {"status": {"observedGeneration": 9}}
    assert never in patch(cluster, namespace, target, status, "--subresource=status", *wider)
    theirs["apiVersion"], theirs["kind"] = "apps/v1", "DaemonSet"
    theirs["metadata"] = {"name": "not-its-own"}
    assert never in refusal(cluster, namespace, theirs, OPERATOR)


def test_its_own_daemonsets_the_operator_never_changes(cluster: E2eCluster, namespace: str) -> None:
    ours = copy.deepcopy(DAEMON_SET)
    ours["metadata"]["name"] = "never-changed"
    create(cluster, namespace, ours, OPERATOR)
    change = {"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": None}}}
    assert "which it never changes" in patch(cluster, namespace, "daemonset/never-changed", change, OPERATOR)
    cluster.kubectl("delete", "-n", namespace, "daemonset/never-changed", OPERATOR)


def test_the_daemonset_that_is_taken_over_stays_the_same(cluster: E2eCluster, namespace: str) -> None:
    create(cluster, namespace, rollout("adopts", adoption={"daemonSet": "old-agent"}))
    said = patch(cluster, namespace, "orl/adopts", {"spec": {"adoption": {"daemonSet": "another"}}})
    assert "spec.adoption.daemonSet cannot be changed: give the first DaemonSet back" in said
    assert patch(cluster, namespace, "orl/adopts", {"spec": {"adoption": {"giveBack": True}}}) == ""
    assert patch(cluster, namespace, "orl/adopts", {"spec": {"adoption": None}}) == ""
    assert "write the name of a DaemonSet" in refusal(
        cluster, namespace, rollout("no-name", adoption={"daemonSet": "No Name"})
    )


# --- Permissions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "resource", "where", "allowed"),
    [
        ("patch", "rollouts.outrider.dev", "fleet", True),
        ("patch", "rollouts.outrider.dev/status", "fleet", True),
        ("update", "rollouts.outrider.dev", "fleet", False),
        ("delete", "rollouts.outrider.dev", "fleet", False),
        ("patch", "componentversions.outrider.dev", "fleet", True),
        ("create", "componentversions.outrider.dev", "fleet", False),
        ("delete", "componentversions.outrider.dev", "fleet", False),
        ("create", "rolloutbatches.outrider.dev", "fleet", True),
        ("create", "daemonsets.apps", "fleet", True),
        ("patch", "daemonsets.apps", "fleet", True),
        ("update", "daemonsets.apps", "fleet", False),
        ("create", "jobs.batch", "fleet", True),
        ("delete", "jobs.batch", "fleet", True),
        ("patch", "jobs.batch", "fleet", False),
        ("get", "pods/log", "fleet", True),
        ("patch", "nodes", "", True),
        ("delete", "nodes", "", False),
        ("delete", "pods", "fleet", False),
        ("create", "pods/exec", "fleet", False),
        ("get", "configmaps", "fleet", True),
        ("list", "configmaps", "fleet", False),
        ("delete", "configmaps", "fleet", False),
        ("list", "secrets", "outrider-system", True),
        ("get", "secrets", "fleet", False),
        ("create", "secrets", "outrider-system", False),
        ("update", "leases.coordination.k8s.io", "outrider-system", True),
        ("update", "leases.coordination.k8s.io", "kube-system", False),
        ("create", "clusterroles.rbac.authorization.k8s.io", "", False),
        ("impersonate", "users", "", False),
    ],
)
def test_what_the_operator_may_do(cluster: E2eCluster, verb: str, resource: str, where: str, allowed: bool) -> None:
    resource, _, subresource = resource.partition("/")
    flags = [f"--subresource={subresource}"] if subresource else []
    place = ["-n", where] if where else []
    result = cluster.kubectl("auth", "can-i", verb, resource, *flags, *place, OPERATOR, check=False)
    assert result.stdout.strip() == ("yes" if allowed else "no")


@pytest.mark.parametrize(
    ("role", "verb", "resource", "allowed"),
    [
        ("view", "get", "rollouts", True),
        ("view", "list", "rolloutbatches", True),
        ("view", "patch", "rollouts", False),
        ("edit", "create", "rollouts", True),
        ("edit", "patch", "componentversions", True),
        ("edit", "get", "rolloutbatches", True),
        ("edit", "patch", "rollouts/status", False),
        ("edit", "patch", "componentversions/status", False),
        ("edit", "create", "rolloutbatches", False),
        ("edit", "update", "rollouts/approve", False),
        ("admin", "update", "rollouts/approve", True),
        ("admin", "deletecollection", "rollouts", True),
        ("admin", "patch", "rolloutbatches/status", False),
    ],
)
def test_what_people_may_do(
    cluster: E2eCluster, namespace: str, role: str, verb: str, resource: str, allowed: bool
) -> None:
    user = f"{role}er@example.com"
    binding = f"api-rules-{role}"
    manifest = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": binding},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    _ensure(cluster, namespace, manifest)
    resource, _, subresource = resource.partition("/")
    flags = [f"--subresource={subresource}"] if subresource else []
    command = ("auth", "can-i", verb, f"{resource}.outrider.dev", *flags, "-n", namespace, f"--as={user}")
    expected = "yes" if allowed else "no"
    # The authorizer hears of the binding, and view of what aggregates to it, a moment later.
    deadline = time.monotonic() + 10
    while cluster.kubectl(*command, check=False).stdout.strip() != expected:
        assert time.monotonic() < deadline
        time.sleep(0.2)


REQUESTS = [names.request_annotations(kind) for kind in get_args(RequestKind)]


@pytest.fixture
def asked(cluster: E2eCluster, namespace: str) -> str:
    """A Rollout that people may ask something of: alice approves, bob edits."""
    name = f"asked-{time.time_ns()}"
    create(cluster, namespace, rollout(name, paused=True))
    for user, role in (("alice", "outrider-approver"), ("bob", "edit")):
        manifest = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": f"requests-{user}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }
        _ensure(cluster, namespace, manifest)
    can = ("auth", "can-i", "patch", "rollouts.outrider.dev", "-n", namespace)
    deadline = time.monotonic() + 20
    while any(cluster.kubectl(*can, f"--as={user}", check=False).returncode for user in ("alice", "bob")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return name


@pytest.mark.parametrize("request_annotation", REQUESTS, ids=[asked for asked, _ in REQUESTS])
def test_who_asks_something_of_a_rollout_needs_the_right_and_gives_his_own_name(
    cluster: E2eCluster, namespace: str, asked: str, request_annotation: tuple[str, str]
) -> None:
    value, who = request_annotation
    target = f"rollouts.outrider.dev/{asked}"

    def annotate(user: str, **annotations: str | None) -> str:
        keys = {"value": value, "who": who}
        change = {"metadata": {"annotations": {keys[key]: text for key, text in annotations.items()}}}
        return patch(cluster, namespace, target, change, f"--as={user}")

    said = annotate("bob", value="1")
    assert f"you may not set {value}" in said
    assert f"namespace {namespace}; have somebody bind the ClusterRole outrider-approver to bob" in said
    assert f"{who} must be your own name: set it to alice" in annotate("alice", value="1", who="carol")
    assert annotate("alice", value="1", who="alice") == ""
    assert "you may not set" in annotate("bob", who="bob"), "he cannot take her place afterwards"
    assert annotate("alice", value="2") == "", "her name stands there already"
    assert annotate("alice", value="3", who=None) == "", "nobody has to give a name"
    edit = {"spec": {"version": "1.5.0"}}
    assert patch(cluster, namespace, target, edit, "--as=bob") == "", "who edits is not bound otherwise"
    assert annotate("bob", value=None) == "", "who replaces the object is not refused for what he leaves out"


def test_a_rollout_that_is_restored_with_what_was_asked_of_it_is_taken(cluster: E2eCluster, namespace: str) -> None:
    old = rollout("restored", paused=True)
    old["metadata"]["annotations"] = {value: "1" for value, _ in REQUESTS} | dict.fromkeys(
        (w for _, w in REQUESTS), "x"
    )
    create(cluster, namespace, old)


def test_the_operator_is_not_asked_who_it_is(cluster: E2eCluster, namespace: str, asked: str) -> None:
    change = {"metadata": {"annotations": {REQUESTS[0][0]: "9", REQUESTS[0][1]: "somebody"}}}
    assert patch(cluster, namespace, f"rollouts.outrider.dev/{asked}", change, OPERATOR) == ""


def test_settings_added_by_hand_survive_the_next_install(cluster: E2eCluster) -> None:
    settings = ("-n", "outrider-system", "configmap/outrider-settings")
    before = json.loads(cluster.kubectl("get", *settings, "-o", "json").stdout)["data"]
    change = {"data": {"OUTRIDER_REGISTRY": before.get("OUTRIDER_REGISTRY", "registry.example.com:5000")}}
    cluster.kubectl("patch", *settings, "--type=merge", "--patch", json.dumps(change))
    try:
        for flags in ((), ("--server-side", "--force-conflicts")):
            cluster.kubectl("apply", *flags, "-f", "-", input=_document("ConfigMap"))
            after = json.loads(cluster.kubectl("get", *settings, "-o", "json").stdout)["data"]
            assert after.get("OUTRIDER_REGISTRY") == change["data"]["OUTRIDER_REGISTRY"]
    finally:
        restored = {"data": {key: before.get(key) for key in {*before, "OUTRIDER_REGISTRY"}}}
        cluster.kubectl("patch", *settings, "--type=merge", "--patch", json.dumps(restored))


def _document(kind: str) -> str:
    documents = yaml.safe_load_all((ROOT / "install.yaml").read_text())
    return yaml.safe_dump(next(document for document in documents if document["kind"] == kind))
