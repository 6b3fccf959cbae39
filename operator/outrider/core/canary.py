"""Where canaries may be, in which order they are taken, and which steps of a canary are behind a run."""

from collections import Counter
from collections.abc import Iterable, Sequence

from outrider.core.moves import is_leaving
from outrider.core.snapshot import Hindrance, Node
from outrider.core.states import FAILED
from outrider.core.words import name_first
from outrider.core.work import Work, is_direct, why_skip


def may_be_canary(work: Work, node: Node) -> bool:
    """Tell whether a node may be moved by a canary step."""
    canary = work.seen.spec.strategy.canary
    return canary is None or canary.node_selector is None or canary.node_selector.matches(node.labels)


def last_step(work: Work) -> int:
    """Return the last canary step that the run has taken, from 1; 0 if none.

    A step whose nodes were all skipped proved nothing: it is taken again with others. Steps that find no node left,
    because all nodes where canaries may be run the version already, are taken with those.
    """
    run, canary = work.run, work.seen.spec.strategy.canary
    if run is None or canary is None or is_direct(run):
        return 0
    taken = {
        batch.spec.step
        for batch in work.run_batches()
        if batch.spec.step and work.results[batch.name].count({"Skipped"}) < len(batch.spec.nodes)
    }
    last = max(taken, default=0)
    return max(last, len(canary.steps)) if last < len(canary.steps) and _are_used_up(work) else last


def _are_used_up(work: Work) -> bool:
    """Tell whether every node where a canary may be, and that can be moved, runs the version of the run."""
    run, canary = work.run, work.seen.spec.strategy.canary
    if run is None or canary is None or canary.node_selector is None:
        return False
    touched = {(entry.name, entry.uid) for _, entry, result in work.entries() if result.state != "Skipped"}
    some = False
    for node in work.members():
        if not may_be_canary(work, node):
            continue
        if work.assignment(node) == run.revision:
            some = True
        elif (node.name, node.uid) not in touched and why_skip(work, node) is None:
            return False
    return some


def spread_canaries(work: Work, nodes: Sequence[Node]) -> list[Node]:
    """Return nodes in the order in which canary steps take them: from each value of `spreadBy` in turn.

    What earlier steps of the run have taken counts. Within a value the given order stays.
    """
    canary = work.seen.spec.strategy.canary
    if canary is None or canary.spread_by is None:
        return list(nodes)
    taken = Counter(
        node.labels.get(canary.spread_by)
        for batch, entry, result in work.entries()
        if batch.spec.step and result.state != "Skipped" and (node := work.seen.nodes.get(entry.name)) is not None
    )
    turns = []
    for node in nodes:
        value = node.labels.get(canary.spread_by)
        turns.append((taken[value], node))
        taken[value] += 1
    return [node for _, node in sorted(turns, key=lambda turn: turn[0])]


def why_no_canary(work: Work, step: int) -> Hindrance:
    """Return why a canary step has no node that it could move, and what to do."""
    what = f"canary step {step} has no node: "
    matching = [node for node in work.members() if may_be_canary(work, node)]
    if not matching:
        return Hindrance(
            "NoCanaryNode",
            f"{what}none of the {len(work.seen.members)} nodes matches strategy.canary.nodeSelector. Label nodes, or "
            "change the selector",
            stalled=True,
        )
    away = [(node.name, why[0]) for node in matching if (why := why_skip(work, node)) is not None]
    failed = {entry.name for _, entry, _ in work.entries(FAILED)}
    told = [*away, *((node.name, "failed") for node in matching if node.name in failed)]
    return Hindrance(
        "NoCanaryNode",
        f"{what}of the {len(matching)} that match strategy.canary.nodeSelector none can be moved now{_examples(told)}. "
        "Mend them, label others, or change the selector",
        stalled=not away and not any(_changes_soon(work.assignment(node)) for node in matching),
    )


def _changes_soon(assignment: str | None) -> bool:
    """Tell whether a node will soon have another assignment, by itself: it has joined, or is on its way."""
    return assignment is None or is_leaving(assignment)


def _examples(told: Iterable[tuple[str, str]]) -> str:
    named = sorted(f"{name}: {why}" for name, why in told)
    return f" ({name_first(named)})" if named else ""
