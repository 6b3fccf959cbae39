"""The chart and the install.yaml rendered from it: what they install, with which permissions, under which settings."""

import base64
import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from localcluster.toolchain import tool
from outrider.api import names
from outrider.api.rollout import RequestKind
from outrider.settings import Settings, read_settings

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "charts" / "outrider"

Object = dict[str, Any]


@cache
def helm() -> str:
    """Return the helm to use: the one that HELM names, or the launcher's, built if needed."""
    return os.environ.get("HELM") or str(tool("helm"))


def run_helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm."""
    return subprocess.run([helm(), *arguments], capture_output=True, text=True, check=False)


def template(*values: str, release: str = "outrider", namespace: str = "outrider-system") -> list[Object]:
    """Render the chart with values in the form of --set-json, and return the objects."""
    flags = [flag for value in values for flag in ("--set-json", value)]
    result = run_helm("template", release, str(CHART), "--namespace", namespace, *flags)
    assert result.returncode == 0, result.stderr
    return [each for each in yaml.safe_load_all(result.stdout) if each]


def one(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """Return the only object of a kind, or the one of that name."""
    (found,) = [each for each in objects if each["kind"] == kind and name in {None, each["metadata"]["name"]}]
    return found


def settings(*values: str) -> dict[str, str]:
    """Return what the ConfigMap of settings holds."""
    data: dict[str, str] = one(template(*values), "ConfigMap")["data"]
    return data


def pod(*values: str) -> Object:
    """Return the operator's pod template."""
    found: Object = one(template(*values), "Deployment")["spec"]["template"]
    return found


INSTALL = [each for each in yaml.safe_load_all((ROOT / "install.yaml").read_text()) if each]


# --- install.yaml -----------------------------------------------------------------------------------------------------


def test_install_yaml_is_what_the_chart_renders() -> None:
    command = [sys.executable, str(ROOT / "charts" / "render.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HELM": helm()})
    assert result.returncode == 0, result.stderr


def test_install_yaml_holds_no_secret_and_nothing_of_helms() -> None:
    assert "Secret" not in {each["kind"] for each in INSTALL}
    text = (ROOT / "install.yaml").read_text()
    assert "helm.sh" not in text
    assert "managed-by: Helm" not in text


def test_everything_in_install_yaml_is_in_one_namespace_or_in_none() -> None:
    first = INSTALL[0]
    assert (first["kind"], first["metadata"]["name"]) == ("Namespace", "outrider-system")
    assert first["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    namespaced = {"ServiceAccount", "ConfigMap", "Deployment", "PodDisruptionBudget", "Role", "RoleBinding"}
    for each in INSTALL:
        expected = "outrider-system" if each["kind"] in namespaced else None
        assert each["metadata"].get("namespace") == expected, each["metadata"]["name"]


def test_nothing_that_we_install_claims_to_be_made_by_the_operator() -> None:
    # The admission policy on managed objects would refuse every later change of it.
    for each in INSTALL + template():
        assert each["metadata"].get("labels", {}).get(names.LABEL_MANAGED_BY) != names.MANAGED_BY


# --- The chart itself -------------------------------------------------------------------------------------------------


def test_the_chart_passes_helms_own_checks() -> None:
    result = run_helm("lint", "--strict", str(CHART))
    assert result.returncode == 0, result.stdout


def schema_paths(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every property of a values schema with its path."""
    for name, child in node.get("properties", {}).items():
        yield f"{path}{name}", child
        yield from schema_paths(child, f"{path}{name}.")


def value_paths(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield the path of every value."""
    for name, child in values.items():
        yield f"{path}{name}"
        if isinstance(child, dict):
            yield from value_paths(child, f"{path}{name}.")


def test_every_value_is_in_the_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    known = {path for path, _ in schema_paths(json.loads((CHART / "values.schema.json").read_text()))}
    free = ("resources.requests.", "nodeSelector.")
    paths = [path for path in value_paths(values) if not path.startswith(free)]
    assert [path for path in paths if path not in known] == []


@pytest.mark.parametrize(
    "value",
    [
        'registryHost="a"',
        'registry.hots="a"',
        "image.sha=1",
        "crds.install=true",
        "rbac.enabled=true",
        "serviceAccount.labels={}",
        "admissionPolicies.mode=1",
        "retry.seconds=1",
        "log.colour=true",
        'replicas="2"',
        'registry.host="https://registry.example.com"',
        'registry.host="registry.example.com/path"',
        'image.digest="sha256:abc"',
        'image.pullPolicy="Sometimes"',
        'log.level="loud"',
        'sources.allowedHosts="a,b"',
        'sources.allowedHosts=["a,b"]',
        "sources.maxArtifactBytes=0",
        "retry.factor=0.5",
        'extraEnv=[{"value":"a"}]',
        'node.dir="var/lib/outrider"',
        'node.dir="/var/lib/../outrider"',
        'node.hostRoots=["/"]',
        'node.hostRoots=["/opt/"]',
        'node.hostRoots="/opt"',
        'node.registrySecret="Pull"',
        'metrics.podMonitor.interval="often"',
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(value: str) -> None:
    result = run_helm("template", "outrider", str(CHART), "--set-json", value)
    assert result.returncode != 0
    assert "values don't meet the specifications of the schema" in result.stderr


def test_another_release_name_and_namespace_hang_together() -> None:
    objects = template(release="blue", namespace="agents")
    assert one(objects, "Deployment")["metadata"] | {"labels": None} == {
        "name": "blue-outrider",
        "namespace": "agents",
        "labels": None,
    }
    account = one(objects, "ServiceAccount")["metadata"]["name"]
    for binding in ("ClusterRoleBinding", "RoleBinding"):
        (subject,) = one(objects, binding)["subjects"]
        assert (subject["name"], subject["namespace"]) == (account, "agents")
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == account
    conditions = json.dumps([each["spec"] for each in objects if each["kind"] == "ValidatingAdmissionPolicy"])
    assert conditions.count(f"system:serviceaccount:agents:{account}'") == 7


def test_a_service_account_of_ones_own() -> None:
    objects = template('serviceAccount={"create":false,"name":"mine"}')
    assert "ServiceAccount" not in {each["kind"] for each in objects}
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "mine"
    result = run_helm("template", "outrider", str(CHART), "--set", "serviceAccount.create=false")
    assert "serviceAccount.name is needed" in result.stderr


# --- The definitions --------------------------------------------------------------------------------------------------


def test_crds_come_with_the_chart_and_stay_when_it_goes() -> None:
    objects = {each["metadata"]["name"]: each for each in template() if each["kind"] == "CustomResourceDefinition"}
    committed = [yaml.safe_load(path.read_text()) for path in (ROOT / "crds").glob("*.yaml")]
    assert len(objects) == len(committed) == 3
    for crd in committed:
        rendered = objects[crd["metadata"]["name"]]
        assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert rendered == crd


def test_crds_can_go_with_the_release_or_be_left_out() -> None:
    crds = [each for each in template("crds.keep=false") if each["kind"] == "CustomResourceDefinition"]
    assert [each["metadata"].get("annotations") for each in crds] == [None] * 3
    assert "CustomResourceDefinition" not in {each["kind"] for each in template("crds.enabled=false")}


def test_a_release_fits_into_the_secret_that_helm_keeps_it_in() -> None:
    # Helm stores the chart's files and what they rendered to: as JSON, compressed, in base64, and in base64 once more
    # on its way to the API server. A Secret holds 1 MiB.
    files = {str(path): path.read_text() for path in CHART.rglob("*") if path.is_file()}
    rendered = run_helm("template", "outrider", str(CHART)).stdout
    stored = base64.b64encode(gzip.compress(json.dumps([files, rendered]).encode()))
    assert len(base64.b64encode(stored)) < 512 * 1024


# --- The operator's settings ------------------------------------------------------------------------------------------

IMAGE = "registry.outrider.dev/outrider:0.1.0"

SETTINGS = {
    'registry.host="r.example.com:5000"': ("OUTRIDER_REGISTRY", "r.example.com:5000"),
    'registry.prefix="fleet/agents"': ("OUTRIDER_REGISTRY_PREFIX", "fleet/agents"),
    "registry.plainHTTP=true": ("OUTRIDER_REGISTRY_PLAIN_HTTP", "true"),
    'registry.caConfigMap="ca"': ("OUTRIDER_REGISTRY_CA_FILE", "/etc/outrider/registry-ca/ca.crt"),
    'registry.nodeHost="mirror:5000"': ("OUTRIDER_NODE_REGISTRY", "mirror:5000"),
    'fetchImage="mirror/outrider:1"': ("OUTRIDER_FETCH_IMAGE", "mirror/outrider:1"),
    'image.pullPolicy="Always"': ("OUTRIDER_FETCH_IMAGE_PULL_POLICY", "Always"),
    'node.dir="/srv/outrider"': ("OUTRIDER_NODE_DIR", "/srv/outrider"),
    'node.registrySecret="pull"': ("OUTRIDER_NODE_REGISTRY_SECRET", "pull"),
    'node.hostRoots=["/opt","/srv/daemons"]': ("OUTRIDER_HOST_ROOTS", "/opt,/srv/daemons"),
    'sources.allowedHosts=["*.example.com","files"]': ("OUTRIDER_ALLOWED_SOURCE_HOSTS", "*.example.com,files"),
    'sources.allowedAddresses=["127.0.0.0/8","fd00::/8"]': (
        "OUTRIDER_ALLOWED_SOURCE_ADDRESSES",
        "127.0.0.0/8,fd00::/8",
    ),
    'checks.allowedHosts=["*.example.com"]': ("OUTRIDER_ALLOWED_CHECK_HOSTS", "*.example.com"),
    'checks.allowedAddresses=["127.0.0.0/8"]': ("OUTRIDER_ALLOWED_CHECK_ADDRESSES", "127.0.0.0/8"),
    'sources.plainHTTPRegistries=["*.lan:5000"]': ("OUTRIDER_PLAIN_HTTP_SOURCES", "*.lan:5000"),
    'registry.dockerConfigSecret="pull"': (
        "OUTRIDER_REGISTRY_DOCKER_CONFIG",
        "/etc/outrider/registry-login/.dockerconfigjson",
    ),
    "trust.requireBinding=true": ("OUTRIDER_REQUIRE_BINDING", "true"),
    "trust.reverifySeconds=3600": ("OUTRIDER_REVERIFY_SECONDS", "3600"),
    "trust.freshSeconds=60": ("OUTRIDER_FRESH_SECONDS", "60"),
    "admissionPolicies.enabled=false": ("OUTRIDER_REQUESTED_BY_UNCHECKED", "true"),
    # More digits than Helm keeps from becoming 1.7e+10 by itself.
    "sources.maxArtifactBytes=17179869185": ("OUTRIDER_MAX_ARTIFACT_BYTES", "17179869185"),
    "retry.firstSeconds=0.5": ("OUTRIDER_RETRY_FIRST_SECONDS", "0.5"),
    "retry.factor=1.5": ("OUTRIDER_RETRY_FACTOR", "1.5"),
    "retry.maxSeconds=600": ("OUTRIDER_RETRY_MAX_SECONDS", "600"),
    "ingestConcurrency=8": ("OUTRIDER_INGEST_CONCURRENCY", "8"),
    "allowRSA2048=true": ("OUTRIDER_ALLOW_RSA_2048", "true"),
    'log.level="debug"': ("OUTRIDER_LOG_LEVEL", "debug"),
    'log.format="json"': ("OUTRIDER_LOG_FORMAT", "json"),
}


@pytest.mark.parametrize(("value", "expected"), SETTINGS.items(), ids=[name for name, _ in SETTINGS.values()])
def test_a_value_becomes_an_environment_variable(value: str, expected: tuple[str, str]) -> None:
    assert settings(value)[expected[0]] == expected[1]


def test_without_host_roots_there_are_no_daemons() -> None:
    assert settings("node.hostRoots=[]")["OUTRIDER_HOST_ROOTS"] == "none"


def test_what_is_not_set_is_left_to_the_operator() -> None:
    # Written out, a default would overwrite what somebody added to the ConfigMap by hand at each apply.
    assert settings() == {"OUTRIDER_FETCH_IMAGE": IMAGE, "OUTRIDER_FETCH_IMAGE_PULL_POLICY": "IfNotPresent"}
    assert settings("retry.factor=null", 'log.level=""', "registry.plainHTTP=false").keys() == settings().keys()


def test_the_operator_understands_all_that_the_chart_can_say() -> None:
    everything = settings(*SETTINGS)
    assert everything.keys() == {name for name, _ in SETTINGS.values()}
    read = read_settings(everything)
    changed = {name for name in Settings.__dataclass_fields__ if getattr(read, name) != getattr(Settings(), name)}
    # By the pod itself, by the Secret, and what nobody has to change: the port that the probes know, the Lease.
    elsewhere = {"namespace", "pod_name", "service_account", "registry_username", "registry_password"}
    fixed = {"listen_host", "listen_port", "lease_seconds"}
    assert Settings.__dataclass_fields__.keys() - changed == elsewhere | fixed


def test_the_init_containers_image_is_the_operators_own() -> None:
    digest = "sha256:" + "a" * 64
    objects = template('image.repository="mirror/outrider"', f'image.digest="{digest}"', 'image.tag="ignored"')
    image = f"mirror/outrider@{digest}"
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == image
    assert one(objects, "ConfigMap")["data"]["OUTRIDER_FETCH_IMAGE"] == image
    assert pod('image.tag="1.2.3"')["spec"]["containers"][0]["image"] == "registry.outrider.dev/outrider:1.2.3"


def test_other_settings_make_other_pods_and_the_same_do_not() -> None:
    annotation = "outrider.dev/settings-checksum"
    before = pod()["metadata"]["annotations"][annotation]
    assert pod('registry.host="a"')["metadata"]["annotations"][annotation] != before
    assert pod("replicas=3")["metadata"]["annotations"][annotation] == before


# --- The operator's pods ----------------------------------------------------------------------------------------------


def test_the_environment_of_the_operator() -> None:
    (container,) = pod()["spec"]["containers"]
    assert container["args"] == ["run"]
    assert container["envFrom"] == [{"configMapRef": {"name": "outrider-settings", "optional": True}}]
    secret = "outrider-registry"
    assert {each["name"]: each["valueFrom"] for each in container["env"]} == {
        "OUTRIDER_NAMESPACE": {"fieldRef": {"fieldPath": "metadata.namespace"}},
        "OUTRIDER_POD_NAME": {"fieldRef": {"fieldPath": "metadata.name"}},
        "OUTRIDER_SERVICE_ACCOUNT": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}},
        "OUTRIDER_REGISTRY_USERNAME": {"secretKeyRef": {"name": secret, "key": "username", "optional": True}},
        "OUTRIDER_REGISTRY_PASSWORD": {"secretKeyRef": {"name": secret, "key": "password", "optional": True}},
    }


def test_the_pod_passes_the_restricted_standard() -> None:
    spec = pod()["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert [volume["name"] for volume in spec["volumes"]] == ["tmp"]
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


def test_probes_and_port() -> None:
    (container,) = pod()["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": Settings().listen_port, "protocol": "TCP"}]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_prometheus_finds_the_pods_where_its_operator_is_there() -> None:
    assert "PodMonitor" not in {each["kind"] for each in template()}
    objects = template("metrics.podMonitor.enabled=true", 'metrics.podMonitor.labels.release="prometheus"')
    monitor, deployment = one(objects, "PodMonitor"), one(objects, "Deployment")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"] == deployment["spec"]["selector"]["matchLabels"]
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    ports = [port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]]
    assert endpoint["port"] in ports
    assert endpoint["path"] == "/metrics"


def test_two_copies_that_avoid_each_other_and_survive_a_drain() -> None:
    objects = template()
    deployment = one(objects, "Deployment")["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    labels = deployment["selector"]["matchLabels"]
    assert labels.items() <= deployment["template"]["metadata"]["labels"].items()
    anti_affinity = deployment["template"]["spec"]["affinity"]["podAntiAffinity"]
    assert list(anti_affinity) == ["preferredDuringSchedulingIgnoredDuringExecution"]
    assert one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels


@pytest.mark.parametrize("value", ["replicas=1", "podDisruptionBudget.enabled=false"])
def test_no_disruption_budget_where_it_would_only_block(value: str) -> None:
    assert "PodDisruptionBudget" not in {each["kind"] for each in template(value)}


def test_what_people_add_to_the_pod() -> None:
    found = pod(
        'extraEnv=[{"name":"HTTPS_PROXY","value":"http://proxy:3128"}]',
        'podLabels={"team":"a"}',
        'podAnnotations={"note":"b"}',
        'imagePullSecrets=[{"name":"pull"}]',
        'tolerations=[{"operator":"Exists"}]',
        'affinity={"nodeAffinity":{}}',
        'topologySpreadConstraints=[{"maxSkew":1}]',
        'priorityClassName="high"',
        'resources={"limits":{"memory":"1Gi"}}',
        'registry.caConfigMap="ca"',
        'registry.credentialsSecret="login"',
        'registry.dockerConfigSecret="pull"',
    )
    spec = found["spec"]
    (container,) = spec["containers"]
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in container["env"]
    logins = [each["valueFrom"]["secretKeyRef"]["name"] for each in container["env"] if "secretKeyRef" in str(each)]
    assert logins == ["login", "login"]
    assert found["metadata"]["labels"]["team"] == "a"
    assert found["metadata"]["annotations"]["note"] == "b"
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["affinity"] == {"nodeAffinity": {}}
    assert spec["topologySpreadConstraints"] == [{"maxSkew": 1}]
    assert spec["priorityClassName"] == "high"
    assert container["resources"]["limits"] == {"memory": "1Gi"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {"tmp", "registry-ca", "registry-login"}
    assert spec["volumes"][1]["configMap"] == {"name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    # As a folder, so that a Secret that is corrected reaches the operator by itself.
    assert spec["volumes"][2] == {"name": "registry-login", "secret": {"secretName": "pull"}}


# --- Permissions ------------------------------------------------------------------------------------------------------

CLUSTER_ROLE = {
    "outrider.dev/componentversions": {"get", "list", "watch", "patch"},
    "outrider.dev/rollouts": {"get", "list", "watch", "patch"},
    "outrider.dev/componentversions/status": {"patch"},
    "outrider.dev/rollouts/status": {"patch"},
    "outrider.dev/rolloutbatches/status": {"patch"},
    "outrider.dev/rolloutbatches": {"get", "list", "watch", "create", "delete"},
    "apps/daemonsets": {"get", "list", "watch", "create", "delete", "patch"},
    "batch/jobs": {"get", "list", "watch", "create", "delete"},
    "/pods/log": {"get"},
    "/namespaces": {"get"},
    "/nodes": {"get", "list", "watch", "patch"},
    "/pods": {"get", "list", "watch"},
    "/configmaps": {"get", "create", "patch"},
    "/events": {"create"},
}
ROLE = {
    "coordination.k8s.io/leases": {"get", "create", "update"},
    "/secrets": {"get", "list", "watch"},
}


def permissions(role: Object) -> dict[str, set[str]]:
    """Return a role's verbs by group/resource."""
    granted: dict[str, set[str]] = {}
    for rule in role["rules"]:
        assert rule.keys() == {"apiGroups", "resources", "verbs"}
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                granted.setdefault(f"{group}/{resource}", set()).update(rule["verbs"])
    return granted


def test_the_operator_may_do_exactly_this() -> None:
    assert permissions(one(INSTALL, "ClusterRole", "outrider")) == CLUSTER_ROLE
    assert permissions(one(INSTALL, "Role")) == ROLE
    assert one(INSTALL, "ClusterRoleBinding")["roleRef"]["name"] == "outrider"
    assert one(INSTALL, "RoleBinding")["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "Role",
        "name": "outrider",
    }


def test_secrets_of_sources_are_read_only_where_the_values_say_so() -> None:
    objects = template('sources.secretNamespaces=["fleet","edge"]')
    roles = [
        each for each in objects if each["kind"] == "Role" and each["metadata"]["name"].endswith("-source-secrets")
    ]
    assert [role["metadata"]["namespace"] for role in roles] == ["fleet", "edge"]
    assert all(permissions(role) == {"/secrets": {"get"}} for role in roles)
    bindings = [each for each in objects if each["kind"] == "RoleBinding"]
    assert {each["metadata"]["namespace"] for each in bindings} == {"outrider-system", "fleet", "edge"}


def test_no_rule_has_a_wildcard() -> None:
    roles = [each for each in INSTALL if each["kind"] in {"Role", "ClusterRole"}]
    assert roles
    assert "*" not in json.dumps([role["rules"] for role in roles])


def test_people_never_write_records_or_status() -> None:
    reading = {"get", "list", "watch"}
    for name in ("view", "edit", "admin"):
        role = one(INSTALL, "ClusterRole", f"outrider-{name}")
        assert role["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{name}"] == "true"
        granted = permissions(role)
        assert granted.get("outrider.dev/rolloutbatches", set()) <= reading
        assert not [resource for resource in granted if resource.endswith("/status")]
        assert (granted["outrider.dev/rollouts"] <= reading) == (name == "view")


def test_who_may_edit_may_not_approve_and_who_approves_may_not_create() -> None:
    virtual = "outrider.dev/rollouts/approve"
    granted = {
        name: permissions(one(INSTALL, "ClusterRole", f"outrider-{name}"))
        for name in ("view", "edit", "admin", "approver")
    }
    assert {name for name, rights in granted.items() if virtual in rights} == {"admin", "approver"}
    assert granted["approver"][virtual] == {"update"}
    assert granted["approver"]["outrider.dev/rollouts"] == {"get", "list", "watch", "patch"}
    assert not one(INSTALL, "ClusterRole", "outrider-approver")["metadata"]["labels"].keys() & {
        f"rbac.authorization.k8s.io/aggregate-to-{name}" for name in ("view", "edit", "admin")
    }


def test_permissions_can_be_left_to_others() -> None:
    kinds = {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
    assert not kinds & {each["kind"] for each in template("rbac.create=false")}
    roles = [each["metadata"]["name"] for each in template("rbac.aggregate=false") if each["kind"] == "ClusterRole"]
    assert sorted(roles) == ["outrider", "outrider-approver"], "which the policy on requests names"


# --- Admission policies -----------------------------------------------------------------------------------------------

POLICIES = {each["metadata"]["name"]: each["spec"] for each in INSTALL if each["kind"] == "ValidatingAdmissionPolicy"}
BINDINGS = [each["spec"] for each in INSTALL if each["kind"] == "ValidatingAdmissionPolicyBinding"]


def test_every_policy_is_in_force_and_fails_closed() -> None:
    assert POLICIES.keys() == {
        "outrider-operator-on-nodes",
        "outrider-kubelets",
        "outrider-records",
        "outrider-managed-objects",
        "outrider-versions",
        "outrider-version-finalizers",
        "outrider-operator-on-specs",
        "outrider-operator-on-daemonsets",
        "outrider-requests",
    }
    assert {policy["failurePolicy"] for policy in POLICIES.values()} == {"Fail"}
    assert [{"policyName": name, "validationActions": ["Deny"]} for name in POLICIES] == BINDINGS


def test_every_refusal_says_what_to_do() -> None:
    for policy in POLICIES.values():
        for validation in policy["validations"]:
            assert validation["reason"] == "Forbidden"
            message = validation.get("message") or validation["messageExpression"]
            assert re.search(r"[:;] ", message), "what happened, and then what to do"
            assert "\n" not in message


def test_policies_and_code_agree_on_names() -> None:
    for name in ("outrider-operator-on-nodes", "outrider-kubelets"):
        text = json.dumps(POLICIES[name])
        prefixes = set(re.findall(r"startsWith\('([^']*/)'\)", text))
        assert prefixes == {names.ASSIGNMENT_PREFIX}
    assert f"key == '{names.LABEL_EXCLUDE}'" in json.dumps(POLICIES["outrider-kubelets"])
    selector = POLICIES["outrider-managed-objects"]["matchConstraints"]["objectSelector"]["matchLabels"]
    assert selector == {names.LABEL_MANAGED_BY: names.MANAGED_BY}
    requests = [names.request_annotations(kind) for kind in get_args(RequestKind)]
    listed = POLICIES["outrider-requests"]["variables"][0]["expression"]
    assert set(re.findall(r"'([^']*)'", listed)) == {asked for asked, _ in requests}
    assert all(asked.replace("requested-at", "requested") + "-by" == by for asked, by in requests)
    (rule,) = POLICIES["outrider-records"]["matchConstraints"]["resourceRules"]
    assert (rule["apiGroups"], rule["apiVersions"]) == ([names.GROUP], [names.VERSION])
    assert rule["resources"] == [names.ROLLOUT_BATCHES, f"{names.ROLLOUT_BATCHES}/status"]


def test_policies_guard_whatever_the_operator_may_write() -> None:
    # A resource that the operator learns to create needs a line in a policy, or a reason to have none.
    created = {resource for resource, verbs in CLUSTER_ROLE.items() if "create" in verbs}
    guarded = {
        f"{group}/{resource}"
        for name in ("outrider-records", "outrider-managed-objects")
        for rule in POLICIES[name]["matchConstraints"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert created - guarded == {"/events"}


def test_policies_can_be_left_out_but_not_silently() -> None:
    assert "ValidatingAdmissionPolicy" not in {each["kind"] for each in template("admissionPolicies.enabled=false")}
    assert "WARNING: admissionPolicies.enabled is false" in notes("admissionPolicies.enabled=false")


# --- What people read after an install --------------------------------------------------------------------------------


def notes(*values: str) -> str:
    """Return what helm prints after an install."""
    flags = [flag for value in values for flag in ("--set-json", value)]
    command = ("install", "outrider", str(CHART), "--namespace", "outrider-system", "--dry-run=client", *flags)
    result = run_helm(*command)
    assert result.returncode == 0, result.stderr
    return result.stdout.partition("\nNOTES:\n")[2]


def test_notes_say_what_is_missing_and_what_comes_next() -> None:
    without = notes()
    assert "does not\nstart until it has a registry" in without
    assert "--set registry.host=HOST[:PORT]" in without
    with_registry = notes('registry.host="r.example.com"')
    assert "until it has a registry" not in with_registry
    assert "Does r.example.com need credentials?" in with_registry
    for text in (without, with_registry):
        assert "outrider.dev/trust-key=true" in text
        assert "kubectl get outrider --all-namespaces" in text
    assert "deletes every ComponentVersion" in notes("crds.keep=false")
    assert "install the CustomResourceDefinitions" in notes("crds.enabled=false")
