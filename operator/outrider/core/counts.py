"""What runs on the nodes of a fleet now, counted from pods: they are what runs. Labels are wishes."""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from outrider.core.snapshot import Node, Pod, RolloutSnapshot


@dataclass
class Agents:
    """The agents of a fleet's nodes, counted once per pass: every number that a person reads comes from here.

    `updated` counts nodes whose agent is of the wanted revision and Ready, `versions` for each version the nodes where
    an agent of it lives, and those of them where it is Ready. `sick` are nodes whose agent has not been Ready for
    longer than `health.timeoutSeconds`, each with the reason; `wake_at` is when another will be one of them.
    """

    updated: int = 0
    versions: dict[str, tuple[int, int]] = field(default_factory=dict)
    sick: list[tuple[str, str]] = field(default_factory=list)
    wake_at: datetime | None = None

    @property
    def nodes(self) -> int:
        """How many nodes have an agent."""
        return sum(nodes for nodes, _ in self.versions.values())


def count_agents(seen: RolloutSnapshot, judged: Callable[[], AbstractSet[str]] | None = None) -> Agents:
    """Count the agents on the nodes of the target; which of them are ill only if `judged` is given.

    `judged` returns the nodes that the present run has not made healthy: about their agents its records speak.
    """
    agents = Agents()
    by_revision: dict[str, list[int]] = {}
    members = seen.members
    unwell: dict[str, Pod | None] = {}
    for name, pods in seen.pods.items():
        if name not in members:
            continue
        living = None
        for pod in pods:
            if pod.live and not pod.terminating and (living is None or pod.ready_since is not None):
                living = pod
        if living is None:
            continue
        counts = by_revision.get(living.revision)
        if counts is None:
            counts = by_revision[living.revision] = [0, 0]
        counts[0] += 1
        if living.ready_since is not None:
            counts[1] += 1
        else:
            unwell[name] = living
    for revision, (nodes, good) in by_revision.items():
        version = seen.revisions.get(revision, revision)
        before = agents.versions.get(version, (0, 0))
        agents.versions[version] = before[0] + nodes, before[1] + good
    agents.updated = by_revision.get(seen.wanted, [0, 0])[1]
    unwell |= dict.fromkeys(name for name in seen.without_agent_since if name in members)
    if unwell and judged is not None:
        spoken_of = judged()
        timeout = timedelta(seconds=seen.spec.health.timeout_seconds)
        for name in sorted(unwell.keys() - spoken_of):
            _note_sickness(agents, seen, seen.nodes[name], unwell[name], timeout)
    return agents


def _note_sickness(agents: Agents, seen: RolloutSnapshot, node: Node, living: Pod | None, timeout: timedelta) -> None:
    """Note a node whose agent should be Ready and is not, if that has lasted; a dead node's is not to blame."""
    if not node.ready or node.labels.get(seen.assignment_key) not in seen.revisions:
        return
    since = living.unready_since if living is not None else seen.without_agent_since.get(node.name)
    if since is None:
        return
    if seen.now < since + timeout:
        agents.wake_at = min(agents.wake_at or since + timeout, since + timeout)
        return
    reason = "NoPod" if living is None else living.refusal.reason if living.refusal else living.trouble or "NotReady"
    agents.sick.append((node.name, reason))
