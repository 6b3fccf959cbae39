"""Nodes that left a fleet: their agents are taken away, in batches like any move, and then the label goes."""

from outrider.api.names import ASSIGNMENT_NONE
from outrider.api.rollout import RunStatus
from outrider.core import batches as arithmetic
from outrider.core.moves import is_leaving
from outrider.core.plan import Assign
from outrider.core.selection import create_batch
from outrider.core.snapshot import Node
from outrider.core.standing import tell_needed_leavers
from outrider.core.states import COMPLETED
from outrider.core.work import Work, check_breach, count_between_elsewhere


def remove_leavers(work: Work) -> None:
    """Which nodes have left the fleet? Their agents are taken away in batches, once nobody else is to be moved."""
    seen, run = work.seen, work.run
    if seen.spec.on_leave == "Keep" or not seen.leavers or work.new_batches:
        return
    if work.target != seen.target_hash:
        return  # who came in by an edit is not known yet, and comes first
    if run is None or run.kind != "Rollout" or run.state not in {"Running", *COMPLETED}:
        return
    if any(work.finished[batch.name] is None for batch in work.run_batches()):
        return  # of a window several are
    # Whose label somebody refuses to change is tried once in a run, and not recorded again and again.
    given_up = {
        (entry.name, entry.uid) for batch, entry, _ in work.entries({"Failed"}) if batch.spec.purpose == "Removal"
    }
    served: list[Node] = []
    needed: list[Node] = []
    for name in sorted(seen.leavers):
        node = seen.nodes[name]
        assignment = work.assignment(node)
        if assignment == ASSIGNMENT_NONE:
            work.moves.append(Assign(node.name, node.uid, assignment, None))
        elif (node.name, node.uid) in given_up:
            continue
        elif node.ready and assignment is not None and not is_leaving(assignment):
            (served if check_breach(work, node, ASSIGNMENT_NONE) is None else needed).append(node)
    tell_needed_leavers(work, needed)
    if not served or work.shut is not None:
        return
    if run.state != "Running":
        run = reopen(work)
    size = len(served)
    if seen.spec.strategy.type != "Full":
        size = arithmetic.rolling_size(seen.spec, arithmetic.size_basis(run))
    size = max(1, size - count_between_elsewhere(work))
    leaving = arithmetic.order_nodes(served, seen.uid, run.id)[:size]
    create_batch(work, leaving, step=0, to=lambda _: ASSIGNMENT_NONE, purpose="Removal")
    work.gate = f"{work.gate}: the agent is taken from {len(leaving)} of {len(served)} nodes that left spec.target"


def reopen(work: Work) -> RunStatus:
    """Open a completed run again, for nodes that came late or left; its batches are sized by the fleet as it is now."""
    late = len(work.seen.members)
    if work.seen.spec.on_leave == "Remove":
        late += len(work.seen.leavers)
    work.update_run(state="Running", finished_at=None, late_nodes=late)
    work.urgent_status = True
    assert work.run is not None  # noqa: S101 - it was changed just now
    return work.run
