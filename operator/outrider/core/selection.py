"""Which nodes a run moves next, and the record that is stored before the first of them is touched."""

from collections.abc import Callable, Iterable, Sequence

from outrider.api.names import batch_name
from outrider.api.rollout import BatchNode, BatchPurpose, RolloutBatchSpec, RunStatus
from outrider.core import batches as arithmetic
from outrider.core.canary import last_step, may_be_canary, spread_canaries
from outrider.core.membership import is_joiner, waits_for_a_run
from outrider.core.moves import is_leaving, target_of
from outrider.core.plan import CreateBatch
from outrider.core.snapshot import Node
from outrider.core.states import COMES_BACK
from outrider.core.window import count_to_record, is_away, rolls_in_a_window
from outrider.core.work import (
    Work,
    bad_revisions,
    count_between_elsewhere,
    is_direct,
    name_versions,
    revision_to_return_to,
    why_skip,
)


def remaining_nodes(work: Work) -> list[Node]:
    """Return the nodes of the fleet that the run has still to move."""
    run = work.run
    if run is None:
        return []
    candidates = [
        node
        for assignment in work.by_assignment
        if assignment != run.revision and not is_leaving(assignment)
        for node in work.members_at(assignment)
    ]
    recorded: dict[tuple[str, str], bool] = {}
    for batch, entry, result in work.entries() if not work.touched.isdisjoint(n.name for n in candidates) else ():
        if batch.spec.purpose == "Update":
            recorded[entry.name, entry.uid] = result.state == "Skipped" and result.reason in COMES_BACK
        elif result.state == "Succeeded":
            recorded.pop((entry.name, entry.uid), None)  # it had left: since it is here again, it has come back
    remaining = []
    for node in candidates:
        assignment = work.assignment(node)
        away = recorded.get((node.name, node.uid))
        if away is False:
            continue
        if assignment is None and (is_joiner(work, node) or waits_for_a_run(work)):
            continue  # it is welcomed first, or has to wait
        if away and why_skip(work, node) is not None:
            continue  # recorded already, and still away
        remaining.append(node)
    return remaining


def nodes_to_retry(work: Work, nodes: Iterable[Node]) -> dict[str, int]:
    """Return the names of those nodes that a person has asked to try again, each with the canary step (0: none)."""
    steps = arithmetic.canary_steps(work.seen.spec)
    again = {
        (entry.name, entry.uid): batch.spec.step if batch.spec.step <= steps else 0
        for batch, entry, result in work.entries()
        if result.state == "Skipped" and result.reason == "Retried"
    }
    if not again:
        return {}
    return {node.name: again[node.name, node.uid] for node in nodes if (node.name, node.uid) in again}


def next_size(work: Work, run: RunStatus) -> tuple[int, int]:
    """Return the canary step (0: none) and how many nodes the run records next.

    0 nodes: those of a window that are recorded and not touched yet suffice.
    """
    spec = work.seen.spec
    if spec.strategy.type == "Full":
        return 0, len(work.seen.nodes)
    elsewhere = count_between_elsewhere(work)
    if not is_direct(run) and run.revision != work.stable:  # that completed: late nodes are no canaries of it
        step = last_step(work) + 1
        if step <= arithmetic.canary_steps(spec):
            return step, max(1, arithmetic.canary_size(spec, step, arithmetic.size_basis(run)) - elsewhere)
    if rolls_in_a_window(work):
        return 0, count_to_record(work)
    return 0, max(1, arithmetic.rolling_size(spec, arithmetic.size_basis(run)) - elsewhere)


def choose_candidates(work: Work, run: RunStatus, movable: list[Node]) -> tuple[int, int, list[Node], list[Node]]:
    """Return the canary step that comes next (0: none), how many nodes, of which, and who of these may be in it."""
    step, size = next_size(work, run)
    if again := nodes_to_retry(work, movable):
        # Before others are put at risk, and as the step in which they had failed.
        movable = [node for node in movable if node.name in again]
        if first := min((failed_in for failed_in in again.values() if failed_in), default=0):
            step, size = first, arithmetic.canary_size(work.seen.spec, first, run.nodes)
        return step, size, movable, movable
    if step:
        return step, size, movable, [node for node in movable if may_be_canary(work, node)]
    return step, size, movable, movable


def order_candidates(work: Work, run: RunStatus, candidates: Iterable[Node], step: int) -> list[Node]:
    """Return nodes in the order in which the run takes them.

    Nodes that a run before this one left on something untried come first: they have the least to lose. Of them those
    that are not even Ready there.
    """
    ordered = arithmetic.order_nodes(candidates, work.seen.uid, run.id)
    if step:
        ordered = spread_canaries(work, ordered)
    if untried := bad_revisions(work):
        ordered.sort(key=lambda node: (work.assignment(node) not in untried, not is_away(work, node, untried)))
    return ordered


def create_batches(work: Work, nodes: Sequence[Node], *, step: int, to: Callable[[Node], str]) -> None:
    """Record the nodes that come next: one batch, or for a window as many as there are pages."""
    if step or not rolls_in_a_window(work):
        create_batch(work, nodes, step=step, to=to)
        return
    gate = work.gate
    for page in arithmetic.pages(nodes):
        create_batch(work, page, step=0, to=to)
    work.gate = gate or work.gate  # what is recorded ahead is nothing that the run waits for


def create_batch(
    work: Work, nodes: Iterable[Node], *, step: int, to: Callable[[Node], str], purpose: BatchPurpose = "Update"
) -> None:
    """Add the next batch of the run: `nodes` in their order, each to where `to` says, in pages."""
    run, seen = work.run, work.seen
    assert run is not None  # noqa: S101 - callers have a run
    # A batch may have been stored by a process that ended before it could write the status.
    number = max([run.batches, *(batch.spec.batch for batch in work.run_batches())]) + 1

    def back(node: Node, target: str) -> str:
        return target if run.kind == "Rollback" or purpose == "Removal" else revision_to_return_to(work, node)

    for index, page in enumerate(arithmetic.pages(list(nodes)), start=1):
        entries = []
        for node in page:
            target = to(node)
            entries.append(
                BatchNode(
                    name=node.name,
                    uid=node.uid,
                    origin=work.assignment(node) or "",
                    to=target,
                    back=back(node, target),
                )
            )
        spec = RolloutBatchSpec(
            rollout=seen.name,
            run=run.id,
            kind=run.kind,
            purpose=purpose,
            version=run.version,
            from_version=name_versions(work, {target_of(entry.origin) for entry in entries}),
            to_version=name_versions(work, {entry.to for entry in entries}),
            batch=number,
            page=index,
            step=step,
            started_at=seen.now,
            started_by=run.started_by,
            nodes=entries,
        )
        work.new_batches.append(CreateBatch(batch_name(seen.name, run.id, number, index), spec))
    work.update_run(batches=number)
    work.gate = f"batch {number} starts"
