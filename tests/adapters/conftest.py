"""Fixtures: real servers on loopback, a real API server, real keys made by openssl."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from adapters.realapiserver import RealApiServer, access_by, running_api_server
from adapters.realservers import RealHttpServer, RealRegistry, running_registry
from adapters.signing import MakeSigner, Signer
from outrider.adapters.kube import Cluster
from outrider.adapters.registry import OciRegistry


@pytest.fixture(scope="module")
def shared_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """A registry for the tests of one module that do not harm it; each uses a repository of its own."""
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RealRegistry]:
    """A registry of one's own: to kill, freeze or tamper with."""
    with running_registry(tmp_path / "registry") as registry:
        yield registry


@pytest.fixture
def client(shared_registry: RealRegistry) -> Iterator[OciRegistry]:
    with shared_registry.client() as client:
        yield client


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """A repository name of this test's own."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-")
    return "test/" + "-".join(part for part in name.split("-") if part)[:80]


@pytest.fixture
def web() -> Iterator[RealHttpServer]:
    server = RealHttpServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def make_signer(tmp_path_factory: pytest.TempPathFactory) -> MakeSigner:
    made: dict[str, Signer] = {}

    def make(name: str = "release", *options: str) -> Signer:
        if name not in made:
            options = options or ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
            made[name] = Signer(tmp_path_factory.mktemp(name), name, *options)
        return made[name]

    return make


@pytest.fixture(scope="session")
def api_server() -> Iterator[RealApiServer]:
    """A control plane with three fake nodes, started once for all tests that ask for it."""
    with running_api_server() as api_server:
        yield api_server


@pytest.fixture
async def kube(api_server: RealApiServer) -> AsyncIterator[Cluster]:
    """The API calls that Outrider makes, with the administrator's rights."""
    async with access_by(api_server.kubeconfig) as access:
        yield Cluster(access)
