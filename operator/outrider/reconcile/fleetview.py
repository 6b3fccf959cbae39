"""Which nodes and pods concern a Rollout, kept from one look at its fleet to the next.

A pass over thousands of nodes comes several times a second, and meets a handful that have changed since the one before.
So who belongs to whom is asked again only of those; what nobody changed is the same object as in the last look.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from outrider.adapters.informer import Store
from outrider.api import names
from outrider.api.rollout import Target
from outrider.core.fleet import Claim, carries_assignment, select_leavers, select_members
from outrider.core.moves import target_of
from outrider.core.snapshot import Node, Pod
from outrider.reconcile.projections import AgentPod

_GONE_KEPT = 1000
"""So many names of nodes that are gone are kept at least."""


@dataclass
class _OfComponent:
    """The pods of a component by node, with and without what only their containers tell."""

    agents: dict[str, tuple[AgentPod, ...]] = field(default_factory=dict)
    pods: dict[str, tuple[Pod, ...]] = field(default_factory=dict)

    def put(self, node: str, agents: tuple[AgentPod, ...]) -> None:
        if agents:
            self.agents[node], self.pods[node] = agents, tuple(one.pod for one in agents)
        else:
            self.agents.pop(node, None)
            self.pods.pop(node, None)


class AgentIndex:
    """The agents' pods of each component by the node that they are on, and apart from them those that prepare nodes."""

    def __init__(self, pods: Store[AgentPod]) -> None:
        self._found: dict[tuple[str, str, bool], _OfComponent] = {}
        pods.listen(self._note)

    def pods(
        self, namespace: str, component: str, *, preparing: bool = False, ignored: frozenset[str] = frozenset()
    ) -> dict[str, tuple[Pod, ...]]:
        """Return a component's pods by node, as if containers with the `ignored` names never restarted."""
        found = self._found.get((namespace, component, preparing))
        if found is None:
            return {}
        if ignored:
            return {node: tuple(one.without(ignored) for one in agents) for node, agents in found.agents.items()}
        return dict(found.pods)

    def on(self, namespace: str, component: str, node: str) -> tuple[Pod, ...]:
        """Return a component's agents on one node."""
        found = self._found.get((namespace, component, False))
        return found.pods.get(node, ()) if found is not None else ()

    def _note(self, before: AgentPod | None, after: AgentPod | None) -> None:
        if before is not None and after is not None and _identity(before) == _identity(after):
            found = self._found[_place_of(after)]
            same = after.pod.uid
            on_node = tuple(after if one.pod.uid == same else one for one in found.agents[after.pod.node])
            found.put(after.pod.node, on_node)
            return
        if before is not None:
            key, node = _place_of(before), before.pod.node
            found = self._found[key]
            found.put(node, tuple(one for one in found.agents[node] if one.pod.uid != before.pod.uid))
            if not found.agents:
                del self._found[key]
        if after is not None:
            found = self._found.setdefault(_place_of(after), _OfComponent())
            found.put(after.pod.node, (*found.agents.get(after.pod.node, ()), after))


def _identity(agent: AgentPod) -> tuple[object, ...]:
    return *_place_of(agent), agent.pod.node, agent.pod.uid


def _place_of(agent: AgentPod) -> tuple[str, str, bool]:
    return agent.namespace, agent.component, agent.pod.role == names.ROLE_PREPARE


@dataclass(frozen=True)
class Claims:
    """What decides which nodes concern a Rollout: its target, who else claims nodes, and what it assigns to them.

    `known` are the assignments that are this Rollout's own, those of `revisions` and what it has taken over. `deleting`
    is a Rollout that lets go of its nodes, `all_assigned` one whose namespace goes: then every assignment concerns it.
    """

    key: str
    target: Target
    others: tuple[Claim, ...]
    revisions: frozenset[str]
    known: frozenset[str]
    deleting: bool
    all_assigned: bool

    @cached_property
    def older(self) -> tuple[Claim, ...]:
        """Those others whose nodes are not this Rollout's."""
        return tuple(claim for claim in self.others if claim.is_older)


@dataclass(frozen=True)
class Fleet:
    """The nodes that concern a Rollout, and what each of them is to it (see `RolloutSnapshot`)."""

    nodes: Mapping[str, Node]
    members: frozenset[str]
    foreign: Mapping[str, str]
    leavers: frozenset[str]
    assigned: frozenset[str]


@dataclass
class FleetView:
    """The fleet of one Rollout under some claims, brought up to date at each look."""

    claims: Claims
    _serial: int = -1
    _nodes: dict[str, Node] = field(default_factory=dict)
    _members: set[str] = field(default_factory=set)
    _foreign: dict[str, str] = field(default_factory=dict)
    _leavers: set[str] = field(default_factory=set)
    _goals: dict[str, str] = field(default_factory=dict)
    _assigned: Counter[str] = field(default_factory=Counter)
    _fleet: Fleet | None = None

    def look(self, nodes: "NodeLog") -> Fleet:
        """Return the fleet as the nodes are now; the same as before if none has changed."""
        changed = nodes.changed_since(self._serial)
        if self._serial < nodes.forgotten:
            changed += [name for name in {*self._nodes, *self._goals, *self._foreign} if nodes.get(name) is None]
        self._serial = nodes.serial
        for name in changed:
            self._place(name, nodes.get(name))
        if changed or self._fleet is None:
            self._fleet = Fleet(
                dict(self._nodes),
                frozenset(self._members),
                dict(self._foreign),
                frozenset(self._leavers),
                frozenset(self._assigned),
            )
        return self._fleet

    def _place(self, name: str, node: Node | None) -> None:
        """Find out what one node is to the Rollout now."""
        self._forget(name)
        if node is None:
            self._nodes.pop(name, None)
            return
        claims = self.claims
        assignment = node.labels.get(claims.key)
        if assignment is not None:
            goal = self._goals[name] = target_of(assignment)
            self._assigned[goal] += 1
        members, foreign = select_members((node,), claims.target, claims.older)
        leavers = select_leavers((node,), claims.key, claims.revisions, members, claims.others)
        self._members |= members
        self._foreign.update(foreign)
        self._leavers |= leavers
        is_kept = assignment is not None and (
            claims.all_assigned or ((claims.deleting or not foreign) and _is_ours(assignment, claims.known))
        )
        if members or leavers or is_kept:
            self._nodes[name] = node
        else:
            self._nodes.pop(name, None)

    def _forget(self, name: str) -> None:
        self._members.discard(name)
        self._foreign.pop(name, None)
        self._leavers.discard(name)
        if (goal := self._goals.pop(name, None)) is not None:
            self._assigned[goal] -= 1
            if not self._assigned[goal]:
                del self._assigned[goal]


def _is_ours(assignment: str, known: frozenset[str]) -> bool:
    """Tell whether a node outside the target carries an assignment of this Rollout."""
    return assignment != names.ASSIGNMENT_NONE and carries_assignment(assignment, known)


class NodeLog:
    """All nodes, and in which order they changed.

    Nodes that are gone are forgotten in the end; `forgotten` is the moment until which that may have been.
    """

    def __init__(self, nodes: Store[Node]) -> None:
        self._store = nodes
        self._changes: dict[str, int] = {}
        self.serial = 0
        self.forgotten = -1
        nodes.listen(self._note)

    def __len__(self) -> int:
        """Return how many names are kept."""
        return len(self._changes)

    def get(self, name: str) -> Node | None:
        """Return a node, or None."""
        return self._store.get("", name)

    def changed_since(self, serial: int) -> list[str]:
        """Return the names of the nodes that changed, came or went after a moment: `serial`, as it was then.

        The newest come last. Every node that is there has come once: -1 gives all.
        """
        found = []
        for name in reversed(self._changes):
            if self._changes[name] <= serial:
                break
            found.append(name)
        found.reverse()
        return found

    def _note(self, before: Node | None, after: Node | None) -> None:
        node = after or before
        if node is None:
            return
        self.serial += 1
        # Named anew at the end: the last in the order of a dict is the newest.
        self._changes.pop(node.name, None)
        self._changes[node.name] = self.serial
        if len(self._changes) > _GONE_KEPT + 2 * len(self._store):
            self._changes = {name: at for name, at in self._changes.items() if self.get(name) is not None}
            self.forgotten = self.serial
