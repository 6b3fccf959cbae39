"""A cluster with two real nodes, and the operator beside it: for the tests in this folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.files import FileServer
from e2e.operator_process import OperatorProcess, complaints
from e2e.real.fleet import AGENT_IMAGE, REGISTRY_SECRET, RealStory, Then
from e2e.story import SYSTEM, name_story
from e2e.watching import Api
from localcluster import Cluster, images, realnode
from localcluster.middleman import Middleman

ROOT = Path(__file__).resolve().parent.parent.parent.parent
REQUIRED = "OUTRIDER_REQUIRE_REAL_NODES"
"""Set, tests on real nodes fail where the machine does not allow them; otherwise they are skipped there."""
FETCH_IMAGE = "localhost/outrider/outrider:e2e"
OPERATOR_ON_NODES = {
    "OUTRIDER_FETCH_IMAGE": FETCH_IMAGE,
    "OUTRIDER_FETCH_IMAGE_PULL_POLICY": "Never",
    "OUTRIDER_NODE_REGISTRY_SECRET": REGISTRY_SECRET,
}


@pytest.fixture(scope="session")
def local(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of two real nodes with Outrider's install.yaml and the images that tests need. It is taken down."""
    obstacle = realnode.obstacle()
    if obstacle is not None:
        text = f"tests on real nodes: real nodes are not possible here: {obstacle}"
        if os.environ.get(REQUIRED) in {None, "", "0"}:
            pytest.skip(text)
        pytest.fail(f"{text}; {REQUIRED} asks for them")
    cluster = Cluster.up(f"{request.config.getoption('cluster_name')}-real"[:40], fake_nodes=0, real_nodes=2)
    try:
        cluster.load_image(images.build_operator_image(ROOT, FETCH_IMAGE))
        cluster.load_image(images.build_busybox_image(AGENT_IMAGE))
        cluster.kubectl_run("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "install.yaml"))
        crds = [f"crd/{plural}.outrider.dev" for plural in ("componentversions", "rollouts", "rolloutbatches")]
        cluster.kubectl_run("wait", "--for=condition=Established", "--timeout=60s", *crds)
        cluster.kubectl_run("scale", "deployment/outrider", "--replicas=0", f"--namespace={SYSTEM}")
        yield cluster
    finally:
        if not os.environ.get("OUTRIDER_KEEP_REAL_NODES"):
            cluster.down()


@pytest.fixture(scope="session")
def middleman(local: Cluster) -> Iterator[Middleman]:
    """Whoever stands between the nodes and the registry. The operator has its own way there."""
    found = Middleman(local.registry, local.registry.partition(":")[0])
    for name in local.real_nodes:
        local.real_node(name).pull_plainly_from(found.host)
    yield found
    found.stop()


@pytest.fixture(scope="session")
def the_operator(
    local: Cluster, middleman: Middleman, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """The operator of the whole session."""
    process = OperatorProcess(
        "first",
        local.kubeconfig_for_service_account(SYSTEM, "outrider"),
        local.registry,
        tmp_path_factory.mktemp("operator") / "operator.log",
        OUTRIDER_NODE_REGISTRY=middleman.host,
        # Images lie in the cluster's registry, as in somebody else's.
        OUTRIDER_PLAIN_HTTP_SOURCES=f"127.0.0.1:*,{local.registry}",
        **OPERATOR_ON_NODES,
    )
    process.start()
    yield process
    process.terminate()
    assert complaints(process.log_since()) == []


@pytest.fixture
def story(
    request: pytest.FixtureRequest,
    local: Cluster,
    operator: OperatorProcess,
    files: FileServer,
    middleman: Middleman,
    tmp_path: Path,
) -> Iterator[RealStory]:
    """What this test owns: a namespace, nodes as long as it lasts, a key, files."""
    made = RealStory(
        name_story(request.node),
        Api(local, operator.log_tail),
        local,
        operator,
        files,
        tmp_path,
        middleman,
    )
    yield made
    made.end()


@pytest.fixture
def then(story: RealStory) -> Then:
    """What must come out."""
    return Then(story)
