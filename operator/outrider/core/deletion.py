"""What happens when a Rollout is deleted. It always comes to an end, whatever is missing by then.

Invariants:
- Nothing is created: a namespace that is going away refuses it.
- With `Orphan` no agent that runs is stopped: half-made moves are finished, and nodes that only the joiners' DaemonSet
  serves get their own assignment before that goes.
- With `Delete`, and when the whole namespace goes, no label of the Rollout is left on any node.
"""

from datetime import timedelta

from outrider.api.names import ASSIGNMENT_LEGACY, ASSIGNMENT_NONE, ROLE_JOINERS
from outrider.core import adoption
from outrider.core.fleet import carries_assignment
from outrider.core.plan import Assign, DeleteJoiners, DeletePrepare, DeleteRevision, DropFinalizer, KeepFinalizer
from outrider.core.snapshot import Node
from outrider.core.welcome import take_turns
from outrider.core.words import name_first
from outrider.core.work import Work, is_barred, move

LABELS_SECONDS = 600
"""Labels that cannot be taken off for so long are left behind: they harm nobody, and a deletion must come to an end."""


def let_go(work: Work) -> None:
    """Is the Rollout being deleted? Then nothing new starts; agents keep running, unless they are to go with it."""
    seen = work.seen
    if not seen.deleting:
        if not seen.has_finalizer:
            work.prerequisites.append(KeepFinalizer())
        return
    work.ended = True
    work.clean_up.extend(DeletePrepare(name) for name in seen.prepare_sets)
    takes_away = seen.namespace_terminating or seen.spec.deletion_policy == "Delete"
    done = _take_everything_away(work) if takes_away else _leave_agents(work)
    if done and (seen.namespace_terminating or adoption.let_legacy_go(work)) and seen.has_finalizer:
        work.clean_up.append(DropFinalizer())


def _leave_agents(work: Work) -> bool:
    """Finish what is half-made; tell whether nothing of it is left."""
    seen = work.seen
    # A dead node cannot finish its move, and must not hold up the deletion.
    between = [node.name for node in work.nodes_between if node.ready]
    work.gate = "deleted: half-made moves are being finished"
    if between:
        work.gate += f"; {len(between)} nodes wait for their old agents to end: {name_first(sorted(between))}"
    joined: list[Node] = []
    stable = work.stable
    if seen.joiners and stable is not None and stable in seen.revisions and not is_barred(work, stable):
        joined = [node for node in work.members_at(None) if node.ready and _is_served_as_joiner(work, node)]
        for node in joined if _is_late(work) else take_turns(work, joined, stable):
            move(work, node, stable)
    if not joined:
        # Without the Rollout nobody would ever give its nodes an assignment, nor see that another wants them.
        work.clean_up.extend(DeleteJoiners(joiners) for joiners in seen.joiners)
    return not between and not seen.joiners


def _take_everything_away(work: Work) -> bool:
    """Take the agents away, all at once, and then the labels' meaning; tell whether nothing is left."""
    seen = work.seen
    work.gate = "deleted: the agents are taken away"
    work.clean_up.extend(DeleteJoiners(joiners) for joiners in seen.joiners)
    if seen.joiners and not seen.namespace_terminating:
        return False  # it would serve the nodes that lose their label
    ours = [node for node in seen.nodes.values() if _is_ours(work, node)]
    given_up = _is_late(work)
    # A DaemonSet that was taken over would serve nodes without a label at once.
    after = ASSIGNMENT_NONE if work.form is not None and not seen.namespace_terminating else None
    work.moves.extend(Assign(node.name, node.uid, work.assignment(node), after) for node in ours)
    if ours and not given_up:
        work.gate += f"; {len(ours)} nodes still have their label: {name_first(sorted(node.name for node in ours))}"
        return False
    if ours:
        work.say(
            "Warning",
            "LabelsLeft",
            f"{len(ours)} nodes keep the label {seen.assignment_key}, which could not be taken off in "
            f"{LABELS_SECONDS // 60} minutes; it means nothing any more: kubectl label node --all "
            f"{seen.assignment_key}-",
        )
    work.clean_up.extend(
        DeleteRevision(revision) for revision in sorted(seen.revisions) if revision != ASSIGNMENT_LEGACY
    )
    return True


def _is_late(work: Work) -> bool:
    """Tell whether the deletion has lasted for so long that nodes are waited for no more."""
    if work.seen.deleting_since is None:
        return False
    until = work.seen.deleting_since + timedelta(seconds=LABELS_SECONDS)
    if work.seen.now < until:
        work.wakes.append(until)
    return work.seen.now >= until


def _is_ours(work: Work, node: Node) -> bool:
    assignment = work.assignment(node)
    if assignment is None:
        return False
    if work.seen.namespace_terminating:
        return True
    if work.form is not None and assignment in {ASSIGNMENT_NONE, ASSIGNMENT_LEGACY}:
        return False
    return carries_assignment(assignment, work.seen.revisions)


def _is_served_as_joiner(work: Work, node: Node) -> bool:
    return any(pod.role == ROLE_JOINERS and pod.live and pod.revision == work.stable for pod in work.pods(node.name))
