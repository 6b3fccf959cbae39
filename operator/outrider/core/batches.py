"""The arithmetic of batches: in which order nodes go, how many at a time, how many may fail."""

import hashlib
from collections.abc import Iterable, Sequence

from outrider.api.base import resolve
from outrider.api.rollout import RolloutSpec, RunStatus
from outrider.core.snapshot import Node

PAGE = 100
"""Nodes in one RolloutBatch object: keeps each well under etcd's limits whatever the fleet's size."""


def order_nodes(nodes: Iterable[Node], rollout_uid: str, run: int) -> list[Node]:
    """Return nodes in the order in which a run takes them.

    By hash of node, Rollout and run: repeatable and explainable, but not always the same first victims.
    """
    return sorted(
        nodes, key=lambda node: hashlib.sha256(f"{node.uid}/{rollout_uid}/{run}".encode()).digest() + node.uid.encode()
    )


def has_window(spec: RolloutSpec) -> bool:
    """Tell whether nodes roll in a sliding window, and not in batches."""
    return spec.strategy.rolling is not None and spec.strategy.rolling.max_unavailable is not None


def size_basis(run: RunStatus) -> int:
    """Return the number of nodes that the sizes of a run's batches are percentages of.

    The fleet as it was when the run started; for late batches as it was when the run was opened again.
    """
    return run.nodes if run.late_nodes is None else run.late_nodes


def rolling_size(spec: RolloutSpec, total: int) -> int:
    """Return how many nodes a rolling batch, or the window, holds in a run over `total` nodes; at least 1."""
    rolling = spec.strategy.rolling
    size = (rolling.max_unavailable if has_window(spec) else rolling.batch_size) if rolling else None
    return max(1, resolve("10%" if size is None else size, total, up=True))


def canary_size(spec: RolloutSpec, step: int, total: int) -> int:
    """Return how many nodes canary step `step` (from 1) moves in a run over `total` nodes; at least 1."""
    assert spec.strategy.canary is not None  # noqa: S101 - the caller asked for one of its steps
    return max(1, resolve(spec.strategy.canary.steps[step - 1].nodes, total, up=True))


def canary_steps(spec: RolloutSpec) -> int:
    """Return how many canary steps a run of this spec has."""
    return len(spec.strategy.canary.steps) if spec.strategy.canary else 0


def in_flight_limit(spec: RolloutSpec, total: int) -> int:
    """Return how many nodes may be without a working agent at a time, but for a canary step; at least 1."""
    if spec.strategy.type != "Full":
        return rolling_size(spec, total)
    limit = spec.strategy.full.max_in_flight if spec.strategy.full else "100%"
    return max(1, resolve(limit, total, up=True))


def ahead(untouched: int, window: int) -> int:
    """Return how many nodes more a window should have on record, so that it never waits for a record.

    While a window's worth is on record and untouched, every node that is done has its successor at hand. Two are
    recorded at a time, in full pages: each needs the order of all nodes that are left.
    """
    if untouched >= window:
        return 0
    missing = 2 * window - untouched
    return -(-missing // PAGE) * PAGE


def tolerated(value: int | str, total: int) -> int:
    """Return how many of `total` nodes may fail."""
    return resolve(value, total, up=False)


def pages(nodes: Sequence[Node]) -> list[Sequence[Node]]:
    """Cut a batch's nodes into pages of at most `PAGE`."""
    return [nodes[start : start + PAGE] for start in range(0, len(nodes), PAGE)]
