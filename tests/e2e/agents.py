"""Agents that answer HTTP: a small server for each fake node, at the address that the node and its agent have."""

import random
import socket
import time
from contextlib import suppress

from e2e.files import Answer, FileServer
from localcluster.addresses import free_port

PATH = "healthz"


class Agents:
    """What runs at the nodes' addresses, all of them on loopback. Any version of an agent is the same server."""

    def __init__(self) -> None:
        self._network = f"127.{random.randrange(64, 192)}.{random.randrange(256)}"  # noqa: S311 - not a secret
        self._servers: dict[str, FileServer] = {}
        self._stoppers: dict[str, list[socket.socket]] = {}
        self.port = free_port("0.0.0.0")  # noqa: S104 - one that is free at all addresses

    def address(self, index: int) -> str:
        """Start the agent of the index-th node (from 1); returns its address."""
        address = f"{self._network}.{index}"
        server = self._servers[address] = FileServer(address=address, port=self.port)
        server.start()
        return address

    def say(self, body: str, status: int = 200) -> None:
        """From now on all agents answer so."""
        for server in self._servers.values():
            server.answers[PATH] = Answer(body.encode(), status=status)

    def one_says(self, address: str, body: str, status: int = 200) -> None:
        """From now on one agent answers so."""
        self._servers[address].answers[PATH] = Answer(body.encode(), status=status)

    def asked(self, address: str) -> int:
        """Return how often an agent was asked."""
        return len(self._servers[address].asked)

    def cut_off(self, address: str) -> None:
        """Let no connection to an agent come about, as a firewall does that drops."""
        self._servers[address].stop()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, self.port))
        listener.listen(0)
        self._stoppers[address] = [listener]
        for _ in range(3):  # its queue is full now
            one = socket.socket()
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect((address, self.port))
            self._stoppers[address].append(one)
        time.sleep(0.1)

    def let_through(self, address: str) -> None:
        """Let connections come about again."""
        for each in self._stoppers.pop(address, ()):
            each.close()
        self._servers[address].start()

    def stop(self) -> None:
        """End them all."""
        for address in list(self._stoppers):
            self.let_through(address)
        for server in self._servers.values():
            server.stop()
