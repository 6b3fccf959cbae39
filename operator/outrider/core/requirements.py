"""Components that share a node: what one requires of the other there, and where they wait for each other. Pure.

Each component has an assignment of its own on a node, and a Rollout that wants some version of it there. A version may
require others on the node. So a move can be too early (what it requires is not there yet: `compatibility`), or it can
take away what another component requires; and moves can wait for each other for ever.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from outrider.api.names import ASSIGNMENT_NONE
from outrider.core.compatibility import UNKNOWN
from outrider.core.fleet import is_targeted
from outrider.core.moves import is_leaving, target_of
from outrider.core.snapshot import Needs, Neighbour, Node, RolloutSnapshot


@dataclass(frozen=True, slots=True)
class Breach:
    """What a move would break: `component` in `version`, of that Rollout, requires `range_` of ours."""

    component: str
    rollout: str
    version: str
    range_: str

    def tell(self, component: str, version: str) -> str:
        """Return it as a sentence; `version` is what ours would be then, "" for none at all."""
        becomes = f"{component} {version}" if version else f"no {component}"
        return (
            f"{self.component} {self.version} ({_of(self.rollout)}) needs {component} '{self.range_}' on the node, and "
            f"{becomes} would break it"
        )


def find_breach(seen: RolloutSnapshot, node: Node, target: str) -> Breach | None:
    """Return what would break if our component went to revision `target` on a node; None if nothing.

    Who is broken already is not held against a move.
    """
    if not seen.neighbours:
        return None
    after = seen.revisions.get(target)
    assignment = node.labels.get(seen.assignment_key)
    now = seen.revisions.get(target_of(assignment)) if assignment is not None else None
    for name, neighbour in seen.neighbours.items():
        theirs = _version_of(neighbour, node)
        for component, range_ in neighbour.requires.get(theirs or "", ()):
            if component != seen.spec.component or now is None or not range_.contains(now):
                continue
            if after is None or not range_.contains(after):
                return Breach(name, _rollout_of(neighbour, node), theirs or "", str(range_))
    return None


def relied_on(seen: RolloutSnapshot, node: Node, target: str) -> tuple[tuple[str, str | None], ...]:
    """Return the other components' assignments on a node that a move to revision `target` was decided on."""
    if not seen.neighbours:
        return ()
    rules = seen.rules.get(target)
    needed = {component for component, _ in rules.requires} if rules is not None else set()
    return tuple(
        (neighbour.key, node.labels.get(neighbour.key))
        for name, neighbour in sorted(seen.neighbours.items())
        if name in needed or _requires(neighbour, seen.spec.component)
    )


@dataclass(frozen=True, slots=True)
class Standing:
    """One component on a node: what runs, what is wanted, and what either requires.

    `running` is None where there is nothing, and `UNKNOWN` on its way; `wanted` is None where no Rollout wants any.
    """

    rollout: str
    running: str | None
    wanted: str | None
    needs_now: Needs = ()
    needs_then: Needs = ()

    @property
    def is_at_rest(self) -> bool:
        """Whether nobody wants it to move."""
        return self.wanted is None or self.wanted == self.running


@dataclass(frozen=True, slots=True)
class Link:
    """One component waits for another; `passes` says whether that one's own wish would end the wait."""

    waiting: str
    for_: str
    why: str
    passes: bool


@dataclass(frozen=True, slots=True)
class Knot:
    """Why a component will never move on a node as things are.

    Cycle: each waits for the next, and the last for the first. DeadEnd: nobody wants what the last one waits for.
    """

    kind: Literal["Cycle", "DeadEnd"]
    links: tuple[Link, ...]

    def tell(self) -> str:
        """Return it as a sentence."""
        return "; ".join(link.why for link in self.links)


def find_knot(standings: Mapping[str, Standing], component: str) -> Knot | None:
    """Tell whether a component waits on a node for what will never come, as everybody's wishes are now."""
    return _follow(standings, component, ())


def _follow(standings: Mapping[str, Standing], component: str, path: tuple[Link, ...]) -> Knot | None:
    dead_end: Knot | None = None
    for link in _links(standings, component):
        if not link.passes:
            dead_end = dead_end or Knot("DeadEnd", (*path, link))
            continue
        way = (*path, link)
        names = [each.waiting for each in way]
        if link.for_ in names:
            return Knot("Cycle", way[names.index(link.for_) :])
        found = _follow(standings, link.for_, way)
        if found is not None and found.kind == "Cycle":
            return found
        dead_end = dead_end or found
    return dead_end


def _links(standings: Mapping[str, Standing], component: str) -> Iterator[Link]:
    """Yield what keeps a component from what is wanted of it."""
    ours = standings[component]
    if ours.is_at_rest or ours.running == UNKNOWN or ours.wanted is None:
        return
    who = f"{component} {ours.wanted} ({_of(ours.rollout)})"
    for other, range_ in ours.needs_then:
        theirs = standings.get(other, _NOTHING)
        if theirs.running == UNKNOWN or (theirs.running is not None and range_.contains(theirs.running)):
            continue
        there = f"there is {theirs.running}" if theirs.running is not None else "there is none"
        passes = not theirs.is_at_rest and theirs.wanted is not None and range_.contains(theirs.wanted)
        if not passes:
            there += f", and {_wish_of(theirs, other)}"
        yield Link(component, other, f"{who} needs {other} '{range_}', and {there}", passes)
    for other, theirs in standings.items():
        if theirs.running in {None, UNKNOWN}:
            continue
        for name, range_ in theirs.needs_now:
            if name != component or ours.running is None:
                continue
            if not range_.contains(ours.running) or range_.contains(ours.wanted):
                continue
            passes = not theirs.is_at_rest and _admits(theirs.needs_then, component, ours.wanted)
            why = f"{other} {theirs.running} ({_of(theirs.rollout)}), which runs there, needs {component} '{range_}'"
            why += f", so that {component} cannot go to {ours.wanted} as {_of(ours.rollout)} wants"
            if not passes:
                why += f", and {_wish_of(theirs, other)}"
            yield Link(component, other, why, passes)


_NOTHING: Final = Standing(rollout="", running=None, wanted=None)


def _wish_of(standing: Standing, component: str) -> str:
    if standing.wanted is None:
        return f"no Rollout brings another {component} there"
    return f"{_of(standing.rollout)} wants {standing.wanted}"


def _admits(needs: Needs, component: str, version: str) -> bool:
    return all(range_.contains(version) for name, range_ in needs if name == component)


def standings_on(seen: RolloutSnapshot, node: Node, revision: str) -> dict[str, Standing]:
    """Return how all components that have to do with each other stand on a node; ours is wanted in `revision`."""
    assignment = node.labels.get(seen.assignment_key)
    running: str | None = None
    if assignment is not None and assignment != ASSIGNMENT_NONE:
        running = UNKNOWN if is_leaving(assignment) else seen.revisions.get(assignment, UNKNOWN)
    found = {
        seen.spec.component: Standing(
            rollout=seen.name,
            running=running,
            wanted=seen.revisions.get(revision),
            needs_now=_needs(seen, assignment),
            needs_then=_needs(seen, revision),
        )
    }
    for name, neighbour in seen.neighbours.items():
        theirs = node.labels.get(neighbour.key)
        there: str | None = None
        if theirs is not None and theirs != ASSIGNMENT_NONE:
            there = neighbour.versions.get(theirs, UNKNOWN) if node.name not in neighbour.unsettled else UNKNOWN
        wish = next((wish for wish in neighbour.wishes if is_targeted(wish.target, node)), None)
        wanted = wish.version if wish is not None else None
        found[name] = Standing(
            rollout=wish.rollout if wish is not None else "",
            running=there,
            wanted=wanted,
            needs_now=neighbour.requires.get(there or "", ()),
            needs_then=neighbour.requires.get(wanted or "", ()),
        )
    return found


def _needs(seen: RolloutSnapshot, revision: str | None) -> Needs:
    rules = seen.rules.get(revision or "")
    return rules.requires if rules is not None else ()


def _version_of(neighbour: Neighbour, node: Node) -> str | None:
    """Return the version of another component on a node, or the one that is on its way there."""
    assignment = node.labels.get(neighbour.key)
    return neighbour.versions.get(target_of(assignment)) if assignment is not None else None


def _requires(neighbour: Neighbour, component: str) -> bool:
    return any(name == component for needs in neighbour.requires.values() for name, _ in needs)


def _rollout_of(neighbour: Neighbour, node: Node) -> str:
    return next((wish.rollout for wish in neighbour.wishes if is_targeted(wish.target, node)), "")


def _of(rollout: str) -> str:
    return f"Rollout {rollout}" if rollout else "of no Rollout"
