"""What a pass costs grows with the nodes of a fleet and no faster, however many records are stored.

Counted in calls of functions: the same on every machine. `python -m bench.planning` measures the time.
"""

import cProfile
import pstats

import pytest

from bench.planning import ROLLINGS, build_snapshot, settle
from outrider.core.rollout import plan_rollout

MAX_CALLS_PER_NODE = 25


def count_calls(nodes: int, rolling: dict[str, object]) -> int:
    seen = settle(build_snapshot(nodes, rolling))
    plan_rollout(seen)  # what follows from unchanged objects is worked out once
    profile = cProfile.Profile()
    profile.runcall(plan_rollout, seen)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


@pytest.mark.parametrize("rolling", ROLLINGS.values(), ids=ROLLINGS)
def test_a_pass_costs_the_same_for_each_node_of_a_larger_fleet(rolling: dict[str, object]) -> None:
    small, large = count_calls(500, rolling), count_calls(4000, rolling)
    assert large / 4000 < MAX_CALLS_PER_NODE
    assert large / 4000 < 1.1 * small / 500
