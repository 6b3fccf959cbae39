"""What became of the nodes of a run, each counted once; and what stays known of the last run in which any failed."""

from collections.abc import Sequence

from outrider.api.rollout import BatchNode, LastFailure, NodeFailure, NodeResult, RunStatus
from outrider.core.conditions import shortened

MAX_FAILURES = 10
"""So many nodes are named. The RolloutBatches have them all."""

Entry = tuple[BatchNode, NodeResult]


def name_failures(failed: Sequence[Entry]) -> list[NodeFailure]:
    """Return the first of the nodes that failed, each with its reason."""
    return [
        NodeFailure(node=entry.name, reason=result.reason, message=result.message)
        for entry, result in failed[:MAX_FAILURES]
    ]


def find_failure(run: RunStatus, failed: Sequence[Entry], message: str) -> LastFailure | None:
    """Return what is to be remembered of a run in which nodes failed; None if none did."""
    if not failed:
        return None
    ends = [result.finished_at for _, result in failed if result.finished_at is not None]
    return LastFailure(
        run=run.id,
        version=run.version,
        at=max(ends, default=run.started_at),
        nodes=run.nodes,
        failed=len(failed),
        message=shortened(message or f"{len(failed)} of {run.nodes} nodes failed", 512),
        failures=name_failures(failed),
    )
