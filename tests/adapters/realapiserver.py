"""A real API server to be tested against: with a way to restart it, and a way to cut it off."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from localcluster import Cluster as LocalCluster
from localcluster import processes, state
from localcluster.apiclient import ApiError
from outrider.adapters.kube import Access, open_access

NAME = "adapters"


class RealApiServer:
    """A local control plane with a few fake nodes."""

    def __init__(self, local: LocalCluster) -> None:
        self.local = local
        self.kubeconfig = local.kubeconfig

    def restart(self) -> None:
        """Kill the API server and start it again on the same data."""
        known = state.load(NAME)
        assert known is not None
        old = known.processes["apiserver"]
        command = Path(f"/proc/{old.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        processes.stop([old], grace=0)
        known.record(processes.spawn("apiserver", command, Path(old.log), cluster=known.directory, port=old.port))
        deadline = time.monotonic() + 120
        while True:
            try:
                self.local.client().raw("GET", "/readyz")
                return
            except (ApiError, OSError):
                assert time.monotonic() < deadline, "the API server did not come back"
                time.sleep(0.1)


@contextmanager
def running_api_server() -> Iterator[RealApiServer]:
    """Start a cluster of our own and take it down again."""
    local = LocalCluster.up(NAME, fake_nodes=3, real_nodes=0, registry=False)
    try:
        yield RealApiServer(local)
    finally:
        local.down()


@asynccontextmanager
async def access_by(kubeconfig: Path, *, server: str | None = None) -> AsyncIterator[Access]:
    """Access by a kubeconfig, to the server that it names or to another address of it."""
    access = open_access(in_cluster=False, kubeconfig=str(kubeconfig))
    if server is not None:
        access.server = server
    try:
        yield access
    finally:
        await access.close()
        await settle()


async def settle() -> None:
    """Let transports that were closed close: they take a few rounds of the loop."""
    await asyncio.sleep(0.02)


class Line:
    """A TCP line to the API server that can be frozen (nothing passes, nothing breaks), cut and mended."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._up = True
        self._lost: list[asyncio.Event] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.url = f"https://{host}:{port}"

    def freeze(self) -> None:
        """Hold back everything from now on, new connections too; no side notices."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def lose(self) -> None:
        """Let the present connections go silent for good, as a router does that forgets them; new ones work."""
        self._flowing.clear()
        self._lost.append(self._flowing)
        self._flowing = asyncio.Event()
        self._flowing.set()

    def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        self._up = False
        for writer in list(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        self._up = True

    async def stop(self) -> None:
        for flowing in [*self._lost, self._flowing]:
            flowing.set()
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        await asyncio.gather(*self._connections)
        await settle()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._up:
            writer.transport.abort()
            return
        # A task of our own: the server's is nobody's to wait for.
        connection = asyncio.create_task(self._connect(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await asyncio.open_connection(*self._target)
        self._writers |= {writer, upstream}
        flowing = self._flowing
        await asyncio.gather(self._pump(reader, upstream, flowing), self._pump(upstream_reader, writer, flowing))
        self._writers -= {writer, upstream}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                await flowing.wait()
                writer.write(piece)
                await writer.drain()
        with suppress(OSError):
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def line_to(api_server: RealApiServer) -> AsyncIterator[Line]:
    """A line to the API server that a test may freeze and cut."""
    parts = urlsplit(api_server.local.server_url)
    line = Line(parts.hostname or "", parts.port or 0)
    await line.start()
    try:
        yield line
    finally:
        await line.stop()


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """A server that accepts connections and never says a word; yields its URL."""
    ended = asyncio.Event()

    async def swallow(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.transport.abort()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield f"https://{host}:{port}"
    finally:
        ended.set()
        server.close()
        await server.wait_closed()
        await settle()


async def eventually(check: Callable[[], Any], what: str, seconds: float = 20) -> None:
    """Wait until a check holds."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def remains(check: Callable[[], Any], what: str, seconds: float) -> None:
    """Make sure that a check goes on holding."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert check(), what
        await asyncio.sleep(0.02)


def config_map(name: str, labels: dict[str, str] | None = None, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default", **({"labels": labels} if labels else {})}, "data": data}
