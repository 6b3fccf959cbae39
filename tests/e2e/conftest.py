"""A cluster with Outrider's install.yaml applied, for the end-to-end tests."""

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

KUBECONFIG_VARIABLE = "OUTRIDER_TEST_KUBECONFIG"
"""Set, the tests run on the cluster that it names, with the kubectl on PATH, and leave that cluster running."""

OPERATOR = "system:serviceaccount:outrider-system:outrider"


@dataclass(frozen=True)
class E2eCluster:
    """A running cluster and the kubectl that fits it."""

    kubeconfig: Path
    kubectl_path: Path

    def kubectl(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 (as subprocess.run calls it)
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl; unless `check` is false a failure fails the test with what kubectl said."""
        result = subprocess.run(
            [str(self.kubectl_path), *arguments],
            input=input,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig.absolute())},
        )
        if check and result.returncode != 0:
            pytest.fail(f"kubectl {' '.join(arguments)} failed: {result.stderr.strip()}")
        return result


@pytest.fixture(scope="session")
def bare_cluster(request: pytest.FixtureRequest) -> E2eCluster:
    """A cluster without Outrider: the one that is named, or pytest-kind's."""
    if given := os.environ.get(KUBECONFIG_VARIABLE):
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            pytest.fail(f"{KUBECONFIG_VARIABLE} is set, but there is no kubectl on PATH")
        return E2eCluster(Path(given), Path(kubectl))
    kind = request.getfixturevalue("kind_cluster")
    kind.ensure_kubectl()
    return E2eCluster(kind.kubeconfig_path, kind.kubectl_path)


@pytest.fixture(scope="session")
def cluster(bare_cluster: E2eCluster) -> E2eCluster:
    """A cluster with install.yaml applied and its admission policies in force."""
    bare_cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "install.yaml"))
    crds = [f"crd/{plural}.outrider.dev" for plural in ("componentversions", "rollouts", "rolloutbatches")]
    bare_cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", *crds)
    _wait_for_policies(bare_cluster)
    return bare_cluster


def _wait_for_policies(cluster: E2eCluster) -> None:
    # The API server takes new policies in after a moment and says so nowhere: each is tried until it refuses.
    labelled = {"name": "probe", "labels": {"app.kubernetes.io/managed-by": "outrider"}}
    assigned = {"name": "probe", "labels": {"agents.outrider.dev/probe": "probe"}}
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": labelled}
    new_node = {"apiVersion": "v1", "kind": "Node", "metadata": assigned}
    batch = {
        "apiVersion": "outrider.dev/v1alpha1",
        "kind": "RolloutBatch",
        "metadata": {"name": "probe"},
        "spec": {
            "rollout": "probe",
            "run": 1,
            "kind": "Rollout",
            "version": "1.0.0",
            "batch": 1,
            "startedAt": "2026-01-01T00:00:00Z",
            "nodes": [],
        },
    }
    node = cluster.kubectl("get", "nodes", "--output=name").stdout.split()[0]
    probes: list[tuple[str, tuple[str, ...], dict[str, Any] | None]] = [
        ("managed-objects", ("create",), config_map),
        ("records", ("create",), batch),
        ("kubelets", ("create", "--as=system:node:probe", "--as-group=system:nodes"), new_node),
        ("operator-on-nodes", ("annotate", node, "probe=1", "--overwrite", f"--as={OPERATOR}"), None),
    ]
    deadline = time.monotonic() + 30
    for policy, arguments, manifest in probes:
        given = ("-f", "-") if manifest else ()
        while True:
            attempt = cluster.kubectl(
                *arguments, "--dry-run=server", *given, input=json.dumps(manifest) if manifest else None, check=False
            )
            if f"ValidatingAdmissionPolicy 'outrider-{policy}'" in attempt.stderr:
                break
            if time.monotonic() > deadline:
                pytest.fail(f"the policy outrider-{policy} does not refuse; kubectl said: {attempt.stderr}")
            time.sleep(0.2)
