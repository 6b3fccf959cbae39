"""A cluster with Outrider's install.yaml applied and the operator beside it, for the end-to-end tests."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.files import FileServer
from e2e.operator_process import OperatorProcess, complaints
from e2e.story import SYSTEM, Given, Story, Then, When, name_story
from e2e.watching import Api
from localcluster import Cluster, toolchain

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
    # The stories bring their own nodes. A launcher's environment decides otherwise.
    os.environ.setdefault("OUTRIDER_FAKE_NODES", "2")
    os.environ.setdefault("OUTRIDER_REAL_NODES", "0")
    kind = request.getfixturevalue("kind_cluster")
    kind.ensure_kubectl()
    program = Path(kind.kubectl_path)
    if program.resolve() == ROOT / "tests" / "localcluster" / "kubectl":
        # The launcher's script looks for the binary at each of a thousand calls: longer than most of them take.
        program = toolchain.tool("kubectl")
    return E2eCluster(kind.kubeconfig_path, program)


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
    pods = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "probe", "image": "probe"}]}}
    daemonset = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "probe"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": pods},
    }
    node = cluster.kubectl("get", "nodes", "--output=name").stdout.split()[0]
    number = f"1.0.{time.time_ns()}"
    version = {
        "apiVersion": "outrider.dev/v1alpha1",
        "kind": "ComponentVersion",
        "metadata": {
            "name": f"probe-{number}",
            "namespace": "default",
            "finalizers": ["outrider.dev/stored-artifacts"],
        },
        "spec": {
            "component": "probe",
            "version": number,
            "artifacts": [
                {
                    "platform": {"arch": "amd64"},
                    "fileName": "probe",
                    "sha256": "0" * 64,
                    "source": {"configMap": {"name": "probe", "key": "probe"}},
                    "signature": {"inline": "cHJvYmU="},
                }
            ],
        },
    }
    # A deletion is only judged of something that is there: a version that says that it was published.
    cluster.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(version))
    stored = (f"componentversion/probe-{number}", "--namespace=default")
    no_finalizer = ("--type=merge", "--patch", json.dumps({"metadata": {"finalizers": None}}))
    was_published = json.dumps({"status": {"publishedAt": "2026-01-01T00:00:00Z"}})
    cluster.kubectl("patch", *stored, "--subresource=status", "--type=merge", "--patch", was_published)
    as_operator = (f"--as={OPERATOR}", "--as-group=system:masters")
    rollout = {
        "apiVersion": "outrider.dev/v1alpha1",
        "kind": "Rollout",
        "metadata": {"name": "probe", "namespace": "default"},
        "spec": {
            "component": "probe",
            "version": "1.0.0",
            "paused": True,
            "target": {"nodeNames": ["probe"]},
            "template": {"spec": {"containers": [{"name": "probe", "image": "probe"}]}},
            "delivery": {"volume": {"mountPath": "/probe", "containers": ["probe"]}},
            "strategy": {"type": "Full"},
        },
    }
    cluster.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(rollout))
    of_rollout = ("rollouts.outrider.dev/probe", "--namespace=default")
    request = ("outrider.dev/abort-requested-at=1", "outrider.dev/abort-requested-by=probe", "--overwrite")
    probes: list[tuple[str, tuple[str, ...], dict[str, Any] | None]] = [
        ("managed-objects", ("create",), config_map),
        ("records", ("create",), batch),
        ("kubelets", ("create", "--as=system:node:probe", "--as-group=system:nodes"), new_node),
        ("operator-on-nodes", ("annotate", node, "probe=1", "--overwrite", f"--as={OPERATOR}"), None),
        ("operator-on-daemonsets", ("create", *as_operator), daemonset),
        ("operator-on-specs", ("create", *as_operator), {**version, "metadata": {"name": f"probe-{number}"}}),
        ("version-finalizers", ("patch", *stored, *no_finalizer), None),
        ("versions", ("delete", *stored), None),
        ("requests", ("annotate", *of_rollout, *request), None),
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
    called_off = json.dumps({"spec": {"stage": "Revoked"}})
    cluster.kubectl("patch", *stored, "--type=merge", "--patch", called_off)
    cluster.kubectl("patch", *stored, *no_finalizer, f"--as={OPERATOR}")
    cluster.kubectl("delete", *stored, "--wait=false")
    cluster.kubectl("delete", *of_rollout, "--wait=false")
    cluster.kubectl("patch", *of_rollout, *no_finalizer, check=False)


# --- the operator, and stories ----------------------------------------------------------------

_FAILED = pytest.StashKey[bool]()


class Notes:
    """Lines for people that are printed when all tests are done."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)


_NOTES = pytest.StashKey[Notes]()


def pytest_configure(config: pytest.Config) -> None:
    """Know the mark of the test that takes minutes."""
    config.addinivalue_line("markers", "scale: a thousand nodes; takes minutes")
    config.stash[_NOTES] = Notes()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the notes."""
    for line in config.stash[_NOTES].lines:
        terminalreporter.write_line(line)


@pytest.fixture
def notes(request: pytest.FixtureRequest) -> Notes:
    """Lines that are printed when all tests are done."""
    return request.config.stash[_NOTES]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember which tests failed, for their fixtures' teardown."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(scope="session")
def local(request: pytest.FixtureRequest, cluster: E2eCluster) -> Cluster:
    """The local cluster behind `cluster`: faults, fake nodes and a registry need it. No Deployment acts on it."""
    if os.environ.get(KUBECONFIG_VARIABLE):
        pytest.skip(f"stories need a local cluster of their own: unset {KUBECONFIG_VARIABLE}")
    cluster.kubectl("scale", "deployment/outrider", "--replicas=0", f"--namespace={SYSTEM}")
    return Cluster.attach(request.config.getoption("cluster_name"))


@pytest.fixture(scope="session")
def the_operator(local: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """The operator of the whole session."""
    process = OperatorProcess(
        "first",
        local.kubeconfig_for_service_account(SYSTEM, "outrider"),
        local.registry,
        tmp_path_factory.mktemp("operator") / "operator.log",
    )
    process.start()
    yield process
    process.terminate()
    assert complaints(process.log_since()) == []


@pytest.fixture
def operator(the_operator: OperatorProcess, request: pytest.FixtureRequest) -> Iterator[OperatorProcess]:
    """The operator, running; what it logs while the test lasts is shown if the test fails, and must be clean."""
    if not the_operator.is_running():
        the_operator.start()
    begun = the_operator.log_size()
    yield the_operator
    log = the_operator.log_since(begun)
    if request.node.stash.get(_FAILED, False):
        print(f"--- the operator's log\n{log}")  # noqa: T201
    assert complaints(log) == []


@pytest.fixture(scope="session")
def files() -> Iterator[FileServer]:
    """A web server for artifacts."""
    server = FileServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def story(
    request: pytest.FixtureRequest, local: Cluster, operator: OperatorProcess, files: FileServer, tmp_path: Path
) -> Iterator[Story]:
    """What this test owns: a namespace, nodes, a key, files."""
    made = Story(
        name_story(request.node),
        Api(local, operator.log_tail),
        local,
        operator,
        files,
        tmp_path,
    )
    yield made
    made.end()


@pytest.fixture
def operator_with(request: pytest.FixtureRequest, story: Story) -> Iterator[Callable[..., OperatorProcess]]:
    """Start an operator with settings of its own, in place of the session's as long as the test lasts."""
    usual, others = story.operator, []

    def start(**settings: str) -> OperatorProcess:
        process = OperatorProcess(
            "another",
            story.local.kubeconfig_for_service_account(SYSTEM, "outrider"),
            story.local.registry,
            story.folder / "another.log",
            **settings,
        )
        others.append(process)
        usual.terminate()
        process.start()
        story.operator = process
        process.wait_for_log("Leading")
        return process

    yield start
    for process in others:
        process.terminate()
        if request.node.stash.get(_FAILED, False):
            print(f"--- the other operator's log\n{process.log_since()}")  # noqa: T201
        assert complaints(process.log_since()) == []
    story.operator = usual
    if not usual.is_running():
        usual.start()


@pytest.fixture
def another_operator(request: pytest.FixtureRequest, operator_with: Callable[..., OperatorProcess]) -> OperatorProcess:
    """An operator with the settings that the test's parameters name."""
    return operator_with(**request.param)


@pytest.fixture
def given(story: Story) -> Given:
    """What is so before the test begins."""
    return Given(story)


@pytest.fixture
def when(story: Story) -> When:
    """What somebody does, or what happens."""
    return When(story)


@pytest.fixture
def then(story: Story) -> Then:
    """What must come out."""
    return Then(story)
