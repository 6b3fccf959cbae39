"""How one node goes from one assignment to another without ever running two revisions at once.

A node's assignment is the value of one label. It names a revision (that revision's DaemonSet, and no other, wants the
node), `none`, or `to-<target>`: no DaemonSet wants the node, and it is on its way to the target.

Assumptions:
- Each revision's DaemonSet selects exactly the nodes whose assignment is its revision; the joiners' DaemonSet exactly
  those without an assignment.
- A pod that is not seen any more, or whose phase is terminal, runs nothing.

Invariants:
- A node gets the assignment of a revision only while no pod of another revision lives on it.
- Leaving a revision always passes through `to-<target>`, so that whoever finds the node later knows where it goes.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from datetime import datetime

from outrider.api.names import ASSIGNMENT_LEAVING, ASSIGNMENT_NONE, ROLE_REVISION
from outrider.core.snapshot import Pod, RolloutSnapshot


def leaving(target: str) -> str:
    """Return the assignment of a node that is on its way to `target`."""
    return f"{ASSIGNMENT_LEAVING}{target}"


def is_leaving(assignment: str | None) -> bool:
    """Tell whether a node with this assignment is between two revisions."""
    return assignment is not None and assignment.startswith(ASSIGNMENT_LEAVING)


def target_of(assignment: str) -> str:
    """Return where a node with a `to-` assignment is going."""
    return assignment.removeprefix(ASSIGNMENT_LEAVING)


def alive_on(pods: Iterable[Pod]) -> AbstractSet[str]:
    """Return what lives on a node, as `next_assignment` asks for it: the revisions of its pods.

    A joiners' pod is another agent, even where it is of the same revision.
    """
    return {pod.revision if pod.role == ROLE_REVISION else f"{pod.role}/{pod.revision}" for pod in pods if pod.live}


def is_ready(pods: Iterable[Pod], revision: str | None) -> bool:
    """Tell whether a pod of a revision is Ready."""
    return any(pod.ready_since is not None and pod.revision == revision for pod in pods)


def find_arriving(seen: RolloutSnapshot) -> dict[str, datetime]:
    """Return the nodes that have a revision again, and no Ready agent of it yet, with since when that is known."""
    found: dict[str, datetime] = {}
    for name in {*seen.arriving_since, *seen.leaving_since}:
        node = seen.nodes.get(name)
        assignment = node.labels.get(seen.assignment_key) if node is not None else None
        if assignment not in seen.revisions:
            continue
        if not is_ready(seen.pods.get(name, ()), assignment):
            found[name] = seen.arriving_since.get(name, seen.now)
    return found


def next_assignment(
    assignment: str | None, target: str, live_revisions: Iterable[str], *, served_by_joiners: bool
) -> str | None:
    """Return the next assignment on the way to `target`, or None when there is nothing to do but wait (or at all).

    `live_revisions` are the revisions of the pods that still live on the node; `served_by_joiners` says whether a
    joiners' DaemonSet wants nodes without an assignment.
    """
    if assignment == target:
        return None
    others_live = any(revision != target for revision in live_revisions)
    unwanted = assignment == ASSIGNMENT_NONE or is_leaving(assignment) or (assignment is None and not served_by_joiners)
    if unwanted and not others_live:
        # No DaemonSet wants the node, so no pod can appear between this look and the patch.
        return target
    if assignment == leaving(target):
        return None
    return leaving(target)
