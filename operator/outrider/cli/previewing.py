"""How a preview is printed: a table for people, which 5,000 nodes do not make longer; JSON and YAML for programs."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from outrider.core.preview import LeftOut, Move, Preview, Step, tell_seconds
from outrider.core.words import count_nodes

_EXAMPLES = 3


def render(preview: Preview, output: str, *, show_nodes: bool) -> str:
    """Return a preview as text, JSON or YAML."""
    if output == "text":
        return "\n".join(_lines(preview, show_nodes=show_nodes))
    value = to_value(preview)
    if output == "json":
        return json.dumps(value, indent=2)
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, width=120)).rstrip()


def to_value(preview: Preview) -> dict[str, Any]:
    """Return a preview for programs."""
    value: dict[str, Any] = {
        "namespace": preview.namespace,
        "rollout": preview.name,
        "version": preview.version,
        "outcome": preview.outcome,
        "reason": preview.reason,
        "message": preview.message,
        "run": preview.run,
        "kind": preview.kind,
        "nodes": preview.nodes,
        "updated": preview.updated,
        "moves": [
            {"from": before or None, "to": after or None, "nodes": count}
            for (before, after), count in sorted(preview.groups.items())
        ],
        "tolerance": preview.tolerance,
        "before": list(preview.before),
        "finishedBatches": preview.finished,
        "batches": [
            {
                "run": step.run,
                "batch": step.batch,
                "canaryStep": step.canary_step or None,
                "startsAfterSeconds": round(step.starts, 1),
                "endsAfterSeconds": round(step.ends, 1) if step.ends is not None else None,
                "gates": list(step.gates),
                "nodes": [
                    {"node": move.node, "from": move.from_version or None, "to": move.to_version or None}
                    for move in step.moves
                ],
            }
            for step in preview.steps
        ],
        "leftOut": [{"node": out.node, "reason": out.reason, "message": out.message} for out in preview.left_out],
        "ownedByOthers": {owner: list(nodes) for owner, nodes in preview.owned_by_others.items()},
        "approvals": preview.approvals,
        "estimatedSeconds": round(preview.seconds, 1),
        "assumptions": list(preview.assumptions),
    }
    return value


def _lines(preview: Preview, *, show_nodes: bool) -> Iterator[str]:
    title = f"Rollout {preview.namespace}/{preview.name} to {preview.version}: "
    yield title + _tell_outcome(preview)
    yield "nothing was changed: this is what would happen"
    yield ""
    moved = sum(preview.groups.values())
    yield f"  nodes      {preview.nodes}, of which {preview.updated} run it already and {moved} would be moved"
    for (before, after), count in sorted(preview.groups.items()):
        yield f"             {count:>6}  {_tell_move(before, after)}"
    yield f"  tolerance  {preview.tolerance}"
    for told in preview.before:
        yield f"  first      {told}"
    if preview.finished:
        yield f"  done       {preview.finished} batches of run {preview.run} are finished"
    if preview.steps:
        yield ""
        yield from _table(preview.steps)
    yield from _tell_left_out(preview.left_out)
    for owner, nodes in preview.owned_by_others.items():
        yield ""
        yield f"  {count_nodes(len(nodes))} of the target belong to Rollout {owner}, which is older: {_some(nodes)}"
    if show_nodes:
        yield from _name_nodes(preview)
    if preview.steps:
        yield ""
        approvals = "1 approval" if preview.approvals == 1 else f"{preview.approvals} approvals"
        more = f", and what {approvals} take{'s' if preview.approvals == 1 else ''}" if preview.approvals else ""
        yield f"  takes about {tell_seconds(preview.seconds)}{more}"
        yield "  if " + "; if ".join(preview.assumptions)


def _tell_outcome(preview: Preview) -> str:
    if preview.outcome == "Blocked":
        return f"BLOCKED, {preview.reason}: {preview.message}"
    if preview.outcome == "NothingToDo":
        return "nothing to do"
    return f"run {preview.run} would complete"


def _tell_move(before: str, after: str) -> str:
    return f"{before or 'nothing'} → {after or 'nothing'}"


def _table(steps: Sequence[Step]) -> Iterator[str]:
    rows = [("BATCH", "NODES", "MOVE", "STARTS", "ENDS", "THEN")]
    rows += [_row(group) for group in _group(steps)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].ljust(widths[2])]
        cells += [row[3].rjust(widths[3]), row[4].rjust(widths[4]), row[5]]
        yield ("  " + "  ".join(cells)).rstrip()


def _group(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """Put together batches that follow each other and differ in nothing but their nodes."""
    first = 0
    for index in range(1, len(steps) + 1):
        if index == len(steps) or _looks(steps[index]) != _looks(steps[first]):
            yield steps[first:index]
            first = index


def _looks(step: Step) -> tuple[object, ...]:
    return step.run, step.canary_step, len(step.moves), _ways(step.moves), step.gates


def _ways(moves: Sequence[Move]) -> frozenset[tuple[str, str]]:
    return frozenset((move.from_version, move.to_version) for move in moves)


def _row(group: Sequence[Step]) -> tuple[str, str, str, str, str, str]:
    first, last = group[0], group[-1]
    name = str(first.batch) if first is last else f"{first.batch} to {last.batch}"
    if first.canary_step:
        name += f" (canary {first.canary_step})"
    count = str(len(first.moves)) if first is last else f"{len(group)} x {len(first.moves)}"
    ways = ", ".join(sorted(_tell_move(*way) for way in _ways(first.moves)))
    ends = f"+{tell_seconds(last.ends)}" if last.ends is not None else "never"
    return name, count, ways, f"+{tell_seconds(first.starts)}", ends, "; ".join(first.gates)


def _tell_left_out(left_out: Sequence[LeftOut]) -> Iterator[str]:
    if not left_out:
        return
    reasons: dict[tuple[str, str], list[str]] = {}
    for out in left_out:
        reasons.setdefault((out.reason, out.message), []).append(out.node)
    yield ""
    yield f"  {count_nodes(len(left_out))} would be left out:"
    for (reason, message), nodes in sorted(reasons.items(), key=lambda item: -len(item[1])):
        yield f"  {len(nodes):>6}  {reason}: {message}"
        yield f"          {_some(nodes)}"


def _some(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - _EXAMPLES} more" if len(nodes) > _EXAMPLES else ""
    return ", ".join(nodes[:_EXAMPLES]) + more


def _name_nodes(preview: Preview) -> Iterator[str]:
    for step in preview.steps:
        canary = f" (canary {step.canary_step})" if step.canary_step else ""
        yield ""
        yield f"  batch {step.batch}{canary}:"
        for move in step.moves:
            yield f"    {move.node}  {_tell_move(move.from_version, move.to_version)}"
    if preview.left_out:
        yield ""
        yield "  left out:"
        for out in preview.left_out:
            yield f"    {out.node}  {out.reason}: {out.message}"
