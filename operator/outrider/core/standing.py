"""What the phase of a version means for the Rollout that wants it, and for nodes that would return to it."""

from collections import Counter
from collections.abc import Iterable, Sequence

from outrider.api.names import ASSIGNMENT_NONE
from outrider.core.moves import target_of
from outrider.core.plan import RequestVerification
from outrider.core.requirements import Knot, find_knot, standings_on
from outrider.core.snapshot import Hindrance, Node
from outrider.core.states import BARRED, COMPLETED
from outrider.core.words import name_first
from outrider.core.work import Work, check_breach, find_phase


def find_version_hindrance(work: Work) -> Hindrance | None:
    """Return what the phase of the wanted version has against a run to it, or None.

    Revoked and Withdrawn: nothing is moved to it. Deprecated: no new run goes to it; one that is under way, and a
    return to what the fleet ran before, do.
    """
    seen, run = work.seen, work.run
    version = seen.versions.get(seen.spec.version)
    if version is None:
        return None
    name = f"ComponentVersion {seen.spec.component}-{seen.spec.version}"
    if version.phase == "Revoked":
        runs_it = _tell_nodes(count_nodes(work, seen.spec.version))
        return Hindrance(
            "VersionRevoked",
            f"{name} is Revoked: no node is moved to it any more, and {runs_it} it. Set spec.version to another",
            stalled=True,
        )
    if version.phase == "Withdrawn":
        runs_it = _tell_nodes(count_nodes(work, seen.spec.version))
        return Hindrance(
            "VersionWithdrawn",
            f"{name} is Withdrawn: no node is moved to it, and {runs_it} it. It goes on by itself once it verifies "
            f"again; or set spec.version to another. {_sentence(version.why)}".rstrip(),
            stalled=True,
        )
    under_way = run is not None and run.revision == seen.wanted and run.retry_by is None
    if version.phase == "Deprecated" and not under_way and not is_return(work):
        return Hindrance(
            "VersionDeprecated",
            f"{name} is Deprecated: no new run goes to it. Set spec.version to another, or its stage to "
            "Published (or move its spec.expiresAt, if it has expired)",
            stalled=True,
        )
    return None


def is_return(work: Work) -> bool:
    """Tell whether the spec wants a revision that this fleet once ran: its run completed, as far back as known."""
    return work.seen.wanted == work.stable or any(
        record.kind == "Rollout" and record.revision == work.seen.wanted and record.result in COMPLETED
        for record in work.history
    )


def find_verification_hindrance(work: Work) -> Hindrance | None:
    """Ask for a fresh verification of the wanted version if there is none; return what waits for it, if anything does.

    A change of mind back to the stable revision waits for none: that was verified when it came.
    """
    seen = work.seen
    version = seen.versions.get(seen.spec.version)
    if version is None or not request_verification(work, [seen.spec.version]) or seen.wanted == work.stable:
        return None
    message = f"{seen.spec.component} {seen.spec.version} is verified anew before the run starts"
    if version.unverifiable:
        message += f", which cannot be done now: {version.unverifiable}"
    return Hindrance("VersionBeingVerified", message, stalled=False)


def request_verification(work: Work, versions: Iterable[str]) -> bool:
    """Ask for the verification of those of some versions whose last is not fresh; tell whether there were any."""
    seen = work.seen
    stale = []
    for version in sorted(set(versions)):
        state = seen.versions.get(version)
        if state is None or state.phase in BARRED or seen.verify_after is None:
            continue
        if state.verified_at is None or state.verified_at < seen.verify_after:
            stale.append(RequestVerification(f"{seen.spec.component}-{version}"))
    work.prerequisites.extend(stale)
    return bool(stale)


def count_nodes(work: Work, version: str) -> int:
    """Return how many nodes of the fleet run a version, or are on their way to it."""
    revisions = work.seen.revisions
    assignments = (work.assignment(node) for node in work.seen.nodes.values())
    return sum(a is not None and revisions.get(target_of(a)) == version for a in assignments)


def tell_blocked_returns(work: Work, nodes: Iterable[tuple[str, str]]) -> None:
    """Note which nodes cannot return: (node, revision) where the revision's version is Withdrawn or Revoked."""
    blocked = sorted(nodes)
    if not blocked:
        return
    names = name_first([name for name, _ in blocked])
    versions = {work.seen.revisions.get(revision, revision): find_phase(work, revision) for _, revision in blocked}
    causes = ", ".join(f"{work.seen.spec.component}-{name} is {phase}" for name, phase in sorted(versions.items()))
    count = "1 node stays" if len(blocked) == 1 else f"{len(blocked)} nodes stay"
    work.obstacle = Hindrance(
        "ReturnBlocked",
        f"{count} where they are, because what they would return to may not be used: {causes} ({names}). Set "
        "spec.version to a published version that they can go to",
        stalled=True,
    )


def tell_required_returns(work: Work, nodes: Iterable[tuple[Node, str]]) -> None:
    """Note which nodes cannot return because another component there needs what they have: (node, revision)."""
    blocked = sorted(nodes, key=lambda item: item[0].name)
    if not blocked or work.obstacle is not None:
        return
    count = "1 node stays" if len(blocked) == 1 else f"{len(blocked)} nodes stay"
    work.obstacle = Hindrance(
        "RequiredByOther",
        f"{count} where they are, though they should return: {_tell_breaches(work, blocked)} "
        f"({name_some([node.name for node, _ in blocked])}). Take back the other component first, or set spec.version "
        "to one that it can run with",
        stalled=True,
    )


def tell_needed_leavers(work: Work, nodes: Sequence[Node]) -> None:
    """Note which nodes have left the fleet, and keep their agents because another component there needs them."""
    if not nodes or work.deadlock is not None:
        return
    count = "1 node that has" if len(nodes) == 1 else f"{len(nodes)} nodes that have"
    why = _tell_breaches(work, [(node, ASSIGNMENT_NONE) for node in nodes])
    work.deadlock = Hindrance(
        "RequiredByOther",
        f"{count} left spec.target keep their agents: {why} ({name_some(node.name for node in nodes)}). "
        "Take that component away first, or set spec.onLeave to Keep",
        stalled=True,
    )


def _tell_breaches(work: Work, nodes: Iterable[tuple[Node, str]]) -> str:
    told = {
        breach.tell(work.seen.spec.component, work.seen.revisions.get(revision, ""))
        for node, revision in nodes
        if (breach := check_breach(work, node, revision)) is not None
    }
    return "; ".join(sorted(told))


def find_deadlock(work: Work) -> str:
    """Note which nodes wait for ever because components wait for each other there.

    Returns a sentence about what nodes wait for and nobody brings, "" if there is no such thing.
    """
    seen, run = work.seen, work.run
    if run is None or not seen.neighbours:
        return ""
    known: dict[tuple[object, ...], Knot | None] = {}
    cycles: dict[str, list[str]] = {}
    dead_ends: Counter[str] = Counter()
    for node in work.members():
        if not node.ready or work.assignment(node) == run.revision:
            continue
        # What a knot looks like depends on these, and a fleet has few kinds of them.
        standings = standings_on(seen, node, run.revision)
        key = tuple(standings.items())
        if key not in known:
            known[key] = find_knot(standings, seen.spec.component)
        knot = known[key]
        if knot is not None and knot.kind == "Cycle":
            cycles.setdefault(knot.tell(), []).append(node.name)
        elif knot is not None:
            dead_ends[knot.tell()] += 1
    if cycles:
        told = ". ".join(
            f"{why}: on {len(found)} of {len(seen.members)} nodes ({name_some(found)}) each waits for the other"
            for why, found in sorted(cycles.items())
        )
        work.deadlock = Hindrance(
            "DependencyDeadlock",
            f"{told}. Roll out a version of one of them first that runs with what is there of the other and is in the "
            "range that the other's next version needs; or set spec.version of one back",
            stalled=True,
        )
    return "; ".join(why for why, _ in dead_ends.most_common(2))


def name_some(names: Iterable[str]) -> str:
    """Return the first of some names, and how many more there are."""
    return name_first(sorted(names))


def _tell_nodes(count: int) -> str:
    return "1 node runs" if count == 1 else f"{count or 'no'} nodes run"


def _sentence(text: str) -> str:
    return f"It says: {text}" if text else ""
