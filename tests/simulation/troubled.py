"""A simulated fleet whose agents may take long to start, restart, or never end."""

from dataclasses import replace

from outrider.core.snapshot import Pod
from simulation.fleet import Fleet, SimPod

OLD, NEW = "r-1.0.0", "r-1.1.0"


class TroubledFleet(Fleet):
    """A fleet whose agents may take long to start, restart, or never end."""

    slow = 0.0
    """Seconds that agents take to start from now on, instead of up to five."""
    restarted: frozenset[str] = frozenset()
    """Pods whose containers have restarted once, and run again."""
    stuck: str | None = None
    """A node on which no pod ends."""

    def _seen(self, node: str, pod: SimPod) -> Pod:
        seen = super()._seen(node, pod)
        return replace(seen, restarts=1) if pod.name in self.restarted else seen

    def tick(self, seconds: float = 1.0) -> None:
        known = {pod.name for sim in self.nodes.values() for pod in sim.pods}
        self._hold()
        super().tick(seconds)
        self._hold()
        for sim in self.nodes.values():
            for pod in sim.pods:
                if self.slow and pod.name not in known:
                    pod.ready_at = self._clock() + self.slow

    def _hold(self) -> None:
        for pod in self.nodes[self.stuck].pods if self.stuck is not None else ():
            if pod.gone_at is not None:
                pod.gone_at = float("inf")

    def join_unseen(self, *names: str, **labels: str) -> None:
        """Let nodes join while the operator is away, and their agents become Ready by the joiners' DaemonSet."""
        for name in names:
            self.join(name, **labels)
        for _ in range(60):
            self.tick()

    def restart_agents(self, nodes: set[str] | None = None) -> None:
        """Let all agents of the new version restart once, or those on some nodes."""
        self.restarted = frozenset(
            pod.name
            for name, sim in self.nodes.items()
            if nodes is None or name in nodes
            for pod in sim.pods
            if pod.revision == NEW and pod.ready_since
        )
