"""Who comes into a fleet, and how: joining nodes get the stable version, an edit of the target brings nodes in batches.

Assumptions:
- The joiners' DaemonSet wants every node of its target that has no assignment, at once and whoever looks.

Invariants:
- That DaemonSet appears only when every node that the edit of the target brought in has an assignment: else a typing
  error would start thousands of agents at one stroke.
- No node is wanted by two joiners' DaemonSets, and a new one appears only when the pods of the last have ended.
"""

from outrider.api.names import ASSIGNMENT_LEGACY, ASSIGNMENT_NONE, ROLE_JOINERS
from outrider.core import adoption
from outrider.core.membership import all_known, has_joined, is_joiner, open_entries, wanted_joiners
from outrider.core.plan import Assign, CreateJoiners, DeleteJoiners
from outrider.core.snapshot import Node
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
    wanted = adoption.hand_over_joiners(work, wanted_joiners(work, stable))
    if outdated := [joiners for joiners in serving if joiners != wanted]:
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
    unassigned = list(work.members_at(None))
    moving = open_entries(work) if unassigned else {}
    for node in unassigned:
        if moving.get(node.name) != node.uid and is_joiner(work, node):
            move(work, node, stable)


def _still_run_what_served_them(work: Work) -> bool:
    """Tell whether a pod of a joiners' DaemonSet that is gone has still to end on a node without an assignment."""
    return any(pod.live and pod.role == ROLE_JOINERS for node in work.members_at(None) for pod in work.pods(node.name))


def _first_assignment(work: Work, node: Node) -> str:
    """Return what a node is marked with: none, unless a DaemonSet that was taken over serves it and shall go on."""
    served = any(pod.live and pod.revision == ASSIGNMENT_LEGACY for pod in work.pods(node.name))
    return ASSIGNMENT_LEGACY if served else ASSIGNMENT_NONE
