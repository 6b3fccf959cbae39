"""What the phase of a version means for the Rollout that wants it, and for nodes that would return to it."""

from collections.abc import Iterable

from outrider.core.moves import target_of
from outrider.core.plan import RequestVerification
from outrider.core.snapshot import Hindrance
from outrider.core.states import BARRED, COMPLETED
from outrider.core.work import Work, find_phase


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
    under_way = run is not None and run.revision == seen.wanted
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
    names = ", ".join(name for name, _ in blocked[:3]) + (f" and {len(blocked) - 3} more" if len(blocked) > 3 else "")
    versions = {work.seen.revisions.get(revision, revision): find_phase(work, revision) for _, revision in blocked}
    causes = ", ".join(f"{work.seen.spec.component}-{name} is {phase}" for name, phase in sorted(versions.items()))
    count = "1 node stays" if len(blocked) == 1 else f"{len(blocked)} nodes stay"
    work.obstacle = Hindrance(
        "ReturnBlocked",
        f"{count} where they are, because what they would return to may not be used: {causes} ({names}). Set "
        "spec.version to a published version that they can go to",
        stalled=True,
    )


def _tell_nodes(count: int) -> str:
    return "1 node runs" if count == 1 else f"{count or 'no'} nodes run"


def _sentence(text: str) -> str:
    return f"It says: {text}" if text else ""
