"""Which versions of a component somebody needs: they must not be deleted, and their Revocation is told by numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from outrider.api.componentversion import Usage
from outrider.api.names import ASSIGNMENT_NONE
from outrider.api.rollout import RolloutBatchSpec, RolloutSpec, RolloutStatus
from outrider.core.moves import target_of

_MAX_NAMED = 20
"""Rollouts that are named at most, as `Usage.rollouts` says."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What one Rollout needs of its component: versions by name, and revisions that nodes may return to."""

    rollout: str
    versions: frozenset[str]
    returns: frozenset[str] = frozenset()


def find_needs(name: str, spec: RolloutSpec, status: RolloutStatus, batches: Iterable[RolloutBatchSpec]) -> Needs:
    """Return what a Rollout needs: what it wants, what its run brings, what is stable, and every recorded way back.

    `batches` are the records that are kept of its runs.
    """
    run, revisions = status.run, status.revisions
    versions = {spec.version}
    # A rollback names the version that it takes away: nobody goes there.
    if run is not None and run.kind == "Rollout":
        versions.add(run.version)
    elif run is not None and run.to_revision is not None:
        versions.add(run.to_version)
    if revisions is not None and revisions.stable_version is not None:
        versions.add(revisions.stable_version)
    returns = {entry.back for batch in batches for entry in batch.nodes} - {ASSIGNMENT_NONE}
    return Needs(name, frozenset(versions), frozenset(returns))


def versions_in_use(
    needs: Iterable[Needs], revisions: Mapping[str, str], assignments: Iterable[str]
) -> dict[str, Usage]:
    """Return who needs each version of one component in one namespace; a version that nobody needs is not in it.

    `needs` are those of the component's Rollouts, `revisions` the versions of its revisions (those whose DaemonSets
    exist, whichever Rollout made them, also one that is gone), `assignments` what the component's label says on the
    nodes that have it. A node on its way counts for where it goes.
    """
    nodes: dict[str, int] = {}
    for assignment in assignments:
        version = revisions.get(target_of(assignment))
        if version is not None:
            nodes[version] = nodes.get(version, 0) + 1
    rollouts: dict[str, set[str]] = {}
    for need in needs:
        for version in need.versions | {revisions[back] for back in need.returns if back in revisions}:
            rollouts.setdefault(version, set()).add(need.rollout)
    return {
        version: Usage(nodes=nodes.get(version, 0), rollouts=sorted(rollouts.get(version, ()))[:_MAX_NAMED])
        for version in sorted(nodes.keys() | rollouts.keys())
    }
