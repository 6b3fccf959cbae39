"""The arithmetic of batches: in which order nodes go, how many at a time, how many may fail."""

import hashlib
from collections.abc import Iterable, Sequence

from outrider.api.base import resolve
from outrider.api.rollout import RolloutSpec
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


def rolling_size(spec: RolloutSpec, total: int) -> int:
    """Return how many nodes a rolling batch holds in a run over `total` nodes; at least 1."""
    size = spec.strategy.rolling.batch_size if spec.strategy.rolling else "10%"
    return max(1, resolve(size, total, up=True))


def canary_size(spec: RolloutSpec, step: int, total: int) -> int:
    """Return how many nodes canary step `step` (from 1) moves in a run over `total` nodes; at least 1."""
    assert spec.strategy.canary is not None  # noqa: S101 - the caller asked for one of its steps
    return max(1, resolve(spec.strategy.canary.steps[step - 1].nodes, total, up=True))


def canary_steps(spec: RolloutSpec) -> int:
    """Return how many canary steps a run of this spec has."""
    return len(spec.strategy.canary.steps) if spec.strategy.canary else 0


def in_flight_limit(spec: RolloutSpec, total: int) -> int:
    """Return how many nodes of a batch may be without a working agent at a time; at least 1."""
    if spec.strategy.type != "Full":
        return max(1, total)  # a batch bounds itself
    limit = spec.strategy.full.max_in_flight if spec.strategy.full else "100%"
    return max(1, resolve(limit, total, up=True))


def tolerated(value: int | str, total: int) -> int:
    """Return how many of `total` nodes may fail."""
    return resolve(value, total, up=False)


def pages(nodes: Sequence[Node]) -> list[Sequence[Node]]:
    """Cut a batch's nodes into pages of at most `PAGE`."""
    return [nodes[start : start + PAGE] for start in range(0, len(nodes), PAGE)]
