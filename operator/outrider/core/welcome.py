"""Who comes into a fleet, and how: joining nodes get the stable version, an edit of the target brings nodes in batches.

Assumptions:
- The joiners' DaemonSet wants every node of its target that has no assignment, at once and whoever looks.

Invariants:
- That DaemonSet appears only when every node that the edit of the target brought in has an assignment: else a typing
  error would start thousands of agents at one stroke.
- No node is wanted by two joiners' DaemonSets, and a new one appears only when the pods of the last have ended.
"""

from collections.abc import Iterator, Sequence

from outrider.api.names import ASSIGNMENT_LEGACY, ASSIGNMENT_NONE, ROLE_JOINERS
from outrider.core import adoption, window
from outrider.core import batches as arithmetic
from outrider.core.membership import all_known, has_joined, is_joiner, open_entries, wanted_joiners, works_already
from outrider.core.plan import Assign, CreateJoiners, DeleteJoiners
from outrider.core.snapshot import Node
from outrider.core.states import IN_FLIGHT
from outrider.core.work import Work, move


def mark_entrants(work: Work) -> None:
    """Was spec.target edited? Then nodes that are new to the fleet are no joiners: they are moved in batches."""
    seen = work.seen
    if work.target == seen.target_hash or seen.spec.frozen or not adoption.may_welcome(work):
        return
    if work.target is None or work.stable is None:
        work.target = seen.target_hash  # there are no joiners yet: the first run takes everybody
        return
    unassigned = list(work.members_at(None))
    moving = open_entries(work) if unassigned else {}
    entrants = [node for node in unassigned if moving.get(node.name) != node.uid and not has_joined(work, node)]
    # Known are all only when a later look finds no more of them: a patch may be refused.
    work.moves.extend(Assign(node.name, node.uid, None, _first_assignment(work, node)) for node in entrants)
    if not entrants:
        work.target = seen.target_hash
        work.urgent_status = True


def welcome_joiners(work: Work) -> None:
    """Which nodes have no assignment though there is a stable revision? They get that one, never a half-tested one."""
    if work.seen.spec.frozen:
        return  # no node is changed, and neither is what serves those without an assignment
    if work.stable is None:
        # What completed was taken back, and nothing had completed before: nobody shall get it by joining.
        work.clean_up.extend(DeleteJoiners(joiners) for joiners in work.seen.joiners)
        return
    if work.stable not in work.seen.revisions or not adoption.may_welcome(work):
        return
    stable, serving = work.stable, work.seen.joiners
    unassigned = list(work.members_at(None))
    moving = open_entries(work) if unassigned else {}
    recorded = [node for node in unassigned if moving.get(node.name) == node.uid]
    joined = [node for node in unassigned if moving.get(node.name) != node.uid and is_joiner(work, node)]
    now = list(take_turns(work, joined, stable))
    wanted = adoption.hand_over_joiners(work, wanted_joiners(work, stable))
    if outdated := [joiners for joiners in serving if joiners != wanted]:
        names = {node.name for node in now}
        if not any(works_already(work, node) for node in (*joined, *recorded) if node.name not in names):
            # Else it would take the agents of those whose turn has not come.
            work.clean_up.extend(DeleteJoiners(joiners) for joiners in outdated)
    elif (
        wanted is not None
        and wanted not in serving
        and not work.seen.joiners_elsewhere
        and all_known(work)
        and not _still_run_what_served_them(work)
    ):
        # Only when no other serves the joiners any more, and nobody is welcomed in the same breath: its pod may appear
        # between the two writes.
        work.prerequisites.append(CreateJoiners(stable))
        return
    for node in now:
        move(work, node, stable)


def take_turns(work: Work, joined: Sequence[Node], stable: str) -> Iterator[Node]:
    """Yield the joined nodes that may get the stable revision as their own now, which replaces their agents' pods.

    Mostly that is before the agents are Ready. Of those that joined while nobody looked, and work, only as many are let
    go as may be without an agent at a time, those of the run and those that start after their turn included.
    """
    if stable == ASSIGNMENT_LEGACY:
        yield from joined  # the same DaemonSet wants them afterwards: no pod is replaced
        return
    working = [node for node in joined if works_already(work, node)]
    yield from (node for node in joined if not works_already(work, node))
    if not working:
        return
    limit = arithmetic.in_flight_limit(work.seen.spec, max(len(work.seen.members), 1))
    moving = window.count_places(work).moving
    if work.seen.deleting:
        moving -= work.count(IN_FLIGHT)  # nobody judges them any more, so that some might be on their way for ever
    for node in arithmetic.order_nodes(working, work.seen.uid, 0):
        if moving >= limit:
            return
        moving += 1
        work.welcomed += 1
        yield node


def _still_run_what_served_them(work: Work) -> bool:
    """Tell whether a pod of a joiners' DaemonSet that is gone has still to end on a node without an assignment."""
    return any(pod.live and pod.role == ROLE_JOINERS for node in work.members_at(None) for pod in work.pods(node.name))


def _first_assignment(work: Work, node: Node) -> str:
    """Return what a node is marked with: none, unless a DaemonSet that was taken over serves it and shall go on."""
    served = any(pod.live and pod.revision == ASSIGNMENT_LEGACY for pod in work.pods(node.name))
    return ASSIGNMENT_LEGACY if served else ASSIGNMENT_NONE
