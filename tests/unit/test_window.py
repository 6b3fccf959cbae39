"""The arithmetic of a sliding window: how wide it is, and how many nodes are on record ahead of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.api.rollout import RolloutSpec
from outrider.core import batches
from simulation.fleet import make_spec


def spec(**rolling: Any) -> RolloutSpec:
    return make_spec(strategy={"type": "Rolling", "rolling": rolling})


@pytest.mark.parametrize(
    ("rolling", "total", "has_window", "size"),
    [
        pytest.param({"maxUnavailable": "10%"}, 5000, True, 500, id="a share"),
        pytest.param({"maxUnavailable": "10%"}, 5001, True, 501, id="a share rounds up"),
        pytest.param({"maxUnavailable": "10%"}, 3, True, 1, id="a share of few nodes is at least one"),
        pytest.param({"maxUnavailable": 3}, 1000, True, 3, id="a number"),
        pytest.param({"maxUnavailable": 3000}, 1000, True, 3000, id="a number above the total is taken as it is"),
        pytest.param({"maxUnavailable": 0}, 1000, True, 1, id="never nothing, even if such a spec got in"),
        pytest.param({"batchSize": 7}, 1000, False, 7, id="batches"),
        pytest.param({}, 1000, False, 100, id="neither: batches of a tenth"),
        pytest.param({"batchIntervalSeconds": 5}, 1000, False, 100, id="an interval alone: batches of a tenth"),
    ],
)
def test_what_rolls(rolling: dict[str, Any], total: int, has_window: bool, size: int) -> None:
    assert batches.has_window(spec(**rolling)) is has_window
    assert batches.rolling_size(spec(**rolling), total) == size
    assert batches.in_flight_limit(spec(**rolling), total) == size


@pytest.mark.parametrize(
    ("untouched", "window", "more"),
    [
        pytest.param(0, 1, 100, id="a narrow window: one page"),
        pytest.param(1, 1, 0, id="its next node is on record"),
        pytest.param(0, 100, 200, id="two windows at the beginning"),
        pytest.param(100, 100, 0, id="a window's worth is enough"),
        pytest.param(99, 100, 200, id="one less is not: full pages, so that two windows are on record again"),
        pytest.param(499, 500, 600, id="full pages only"),
        pytest.param(900, 500, 0, id="more than enough"),
    ],
)
def test_how_many_nodes_are_recorded_ahead(untouched: int, window: int, more: int) -> None:
    assert batches.ahead(untouched, window) == more


@given(untouched=st.integers(0, 20_000), window=st.integers(1, 10_000))
def test_every_node_that_is_done_has_its_successor_on_record(untouched: int, window: int) -> None:
    more = batches.ahead(untouched, window)
    assert untouched + more >= window
    assert more % batches.PAGE == 0
    assert untouched + more < max(untouched, 2 * window) + batches.PAGE
