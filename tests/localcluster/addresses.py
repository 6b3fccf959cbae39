"""Free ports and free networks on this machine."""

from __future__ import annotations

import ipaddress
import random
import shutil
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from localcluster.errors import LauncherError

LOOPBACK = "127.0.0.1"
# For clusters without real nodes, where nothing is ever sent to it: the API server insists that
# the address it advertises is not loopback. TEST-NET-2, reserved for documentation.
UNUSED_ADVERTISED = "198.51.100.1"


def free_port(host: str, taken: Iterable[int] = ()) -> int:
    """Return a port nobody listens on, below the range that outgoing connections use."""
    unusable = set(taken)
    for _ in range(200):
        port = random.randrange(20_000, 32_000)  # noqa: S311 - not a secret
        if port in unusable:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        return port
    raise LauncherError(f"no free port on {host} between 20000 and 32000")


@dataclass(frozen=True)
class Network:
    """A /16 of one cluster: bridge, pods of each real node, and Services."""

    second: int

    @property
    def whole(self) -> ipaddress.IPv4Network:
        """All of it."""
        return ipaddress.IPv4Network(f"10.{self.second}.0.0/16")

    @property
    def gateway(self) -> str:
        """The host's address on the bridge."""
        return f"10.{self.second}.0.1"

    def node_address(self, index: int) -> str:
        """Address of the index-th real node (from 1) on the bridge, a /24."""
        return f"10.{self.second}.0.{10 + index}"

    def pods(self, index: int) -> str:
        """Subnet of the pods on the index-th real node (from 1)."""
        return f"10.{self.second}.{index}.0/24"

    @property
    def services(self) -> str:
        """Range of ClusterIPs."""
        return f"10.{self.second}.240.0/20"

    @property
    def kubernetes_service(self) -> str:
        """ClusterIP of the API server's own Service: always the first of the range."""
        return f"10.{self.second}.240.1"


def free_network(taken: Iterable[int]) -> Network:
    """Choose a /16 that no route or address of this machine and no other cluster uses."""
    used = _networks_in_use()
    unusable = set(taken)
    for second in range(210, 250):
        network = Network(second)
        if second not in unusable and not any(network.whole.overlaps(one) for one in used):
            return network
    raise LauncherError("no free network among 10.210.0.0/16 … 10.249.0.0/16")


def _networks_in_use() -> list[ipaddress.IPv4Network]:
    ip = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")
    if ip is None:
        return []
    found: list[ipaddress.IPv4Network] = []
    for command, column in (("-4 -o address show", 3), ("-4 route show table all", None)):
        output = subprocess.run([ip, *command.split()], capture_output=True, text=True, check=False).stdout
        for line in output.splitlines():
            words = line.split()
            if column is not None:
                words = words[column : column + 1]
            for word in words[:2]:
                try:
                    network = ipaddress.IPv4Network(word, strict=False)
                except ValueError:
                    continue
                if network.prefixlen > 0:
                    found.append(network)
    return found
