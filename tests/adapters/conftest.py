"""Fixtures: real servers on loopback, a real API server, real keys made by openssl, the tools that people sign with."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from adapters.realapiserver import RealApiServer, access_by, running_api_server
from adapters.realservers import RealHttpServer, RealRegistry, running_registry
from adapters.realtools import KEY_OPTIONS, Tools, offline_tools
from adapters.reports import REPORTS, Reports
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
def signers(make_signer: MakeSigner) -> dict[str, Signer]:
    """Return a key pair of each kind that is accepted, by its name in KEY_OPTIONS."""
    return {kind: make_signer(f"matrix-{kind}", *options) for kind, options in KEY_OPTIONS.items()}


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    """cosign, oras and crane, which must not talk to anything outside."""
    with offline_tools(tmp_path_factory.mktemp("tools")) as tools:
        yield tools


@pytest.fixture(scope="session")
def reports(pytestconfig: pytest.Config) -> Reports:
    """What is printed at the end of the run."""
    return pytestconfig.stash[REPORTS]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORTS] = Reports()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for title, lines in config.stash[REPORTS].sections():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)


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
