"""The arithmetic of batches: roundings, the order of nodes, pages."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.api.base import resolve
from outrider.api.rollout import RolloutSpec
from outrider.core import batches
from outrider.core.snapshot import Node
from simulation.fleet import make_spec

INT_OR_PERCENT = st.one_of(st.integers(0, 6000), st.integers(0, 100).map(lambda share: f"{share}%"))
TOTALS = st.integers(0, 6000)


def rolling(size: int | str) -> RolloutSpec:
    return make_spec(strategy={"type": "Rolling", "rolling": {"batchSize": size}})


def canary(*steps: int | str, size: int | str = "10%") -> RolloutSpec:
    strategy = {
        "type": "Canary",
        "canary": {"steps": [{"nodes": nodes} for nodes in steps]},
        "rolling": {"batchSize": size},
    }
    return make_spec(strategy=strategy)


def full(limit: int | str | None = None) -> RolloutSpec:
    strategy: dict[str, Any] = {"type": "Full"}
    return make_spec(strategy=strategy if limit is None else {**strategy, "full": {"maxInFlight": limit}})


def make_nodes(count: int) -> list[Node]:
    return [Node(name=f"node-{index}", uid=f"uid-{index}", labels={}, ready=True) for index in range(count)]


@pytest.mark.parametrize(
    ("value", "total", "up", "down"),
    [
        pytest.param(0, 100, 0, 0, id="a number is taken as it is"),
        pytest.param(7, 100, 7, 7, id="a number does not round"),
        pytest.param(700, 100, 700, 700, id="a number above the total is taken as it is"),
        pytest.param("0%", 100, 0, 0, id="0% is nothing"),
        pytest.param("100%", 7, 7, 7, id="100% is all"),
        pytest.param("10%", 100, 10, 10, id="an even share does not round"),
        pytest.param("10%", 101, 11, 10, id="a share and a bit"),
        pytest.param("10%", 109, 11, 10, id="nearly the next"),
        pytest.param("1%", 1, 1, 0, id="one node's hundredth"),
        pytest.param("99%", 1, 1, 0, id="one node less a hundredth"),
        pytest.param("50%", 0, 0, 0, id="half of nothing"),
        pytest.param("7%", 100, 7, 7, id="7% of 100 is not 7.000000000000001"),
        pytest.param("29%", 100, 29, 29, id="29% of 100 is not 28.999999999999996"),
    ],
)
def test_int_or_percent(value: int | str, total: int, up: int, down: int) -> None:
    assert resolve(value, total, up=True) == up
    assert resolve(value, total, up=False) == down


@pytest.mark.parametrize("value", ["5", "", "ten%", "1.5%"])
def test_a_string_that_is_no_percentage_is_an_error(value: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        resolve(value, 10, up=True)


@given(value=INT_OR_PERCENT, total=TOTALS)
def test_rounding_up_and_down_differ_by_less_than_one_and_grow_with_the_total(value: int | str, total: int) -> None:
    up, down = resolve(value, total, up=True), resolve(value, total, up=False)
    assert 0 <= down <= up <= down + 1
    assert resolve(value, total + 1, up=True) >= up
    assert resolve(value, total + 1, up=False) >= down


@pytest.mark.parametrize(
    ("spec", "total", "size"),
    [
        pytest.param(rolling("10%"), 5000, 500, id="a share"),
        pytest.param(rolling("10%"), 5001, 501, id="a share rounds up"),
        pytest.param(rolling("10%"), 3, 1, id="a share of few nodes is at least one"),
        pytest.param(rolling(3), 1000, 3, id="a number"),
        pytest.param(rolling(0), 1000, 1, id="never nothing, even if such a spec got in"),
        pytest.param(rolling("0%"), 1000, 1, id="never nothing per cent"),
        pytest.param(rolling("10%"), 0, 1, id="an empty fleet has no zero batch either"),
        pytest.param(make_spec(strategy={"type": "Rolling"}), 1000, 100, id="10% if nothing is said"),
        pytest.param(canary(1, size=7), 1000, 7, id="after a canary, the rolling size"),
        pytest.param(full(), 1000, 100, id="a rollback of what has no rolling goes by 10%"),
    ],
)
def test_rolling_size(spec: RolloutSpec, total: int, size: int) -> None:
    assert batches.rolling_size(spec, total) == size


@pytest.mark.parametrize(
    ("nodes", "total", "size"),
    [
        pytest.param(1, 5000, 1, id="a number"),
        pytest.param("10%", 5000, 500, id="a share is of the run's nodes, not of those that are left"),
        pytest.param("1%", 30, 1, id="a share rounds up"),
        pytest.param("0%", 30, 1, id="never nothing"),
    ],
)
def test_canary_size(nodes: int | str, total: int, size: int) -> None:
    spec = canary(17, nodes)
    assert batches.canary_size(spec, 2, total) == size
    assert batches.canary_steps(spec) == 2


def test_only_a_canary_has_steps() -> None:
    assert batches.canary_steps(rolling(1)) == 0


@pytest.mark.parametrize(
    ("spec", "total", "limit"),
    [
        pytest.param(full(), 250, 250, id="Full without a limit: all"),
        pytest.param(full("30%"), 10, 3, id="a share of the run's nodes"),
        pytest.param(full("30%"), 11, 4, id="a share rounds up"),
        pytest.param(full("1%"), 3, 1, id="at least one, or nothing would ever move"),
        pytest.param(full(40), 10, 40, id="a number"),
        pytest.param(rolling(2), 10, 2, id="no more than a batch, whatever is recorded"),
        pytest.param(rolling(0), 0, 1, id="never nothing"),
    ],
)
def test_in_flight_limit(spec: RolloutSpec, total: int, limit: int) -> None:
    assert batches.in_flight_limit(spec, total) == limit


@pytest.mark.parametrize(
    ("value", "total", "count"),
    [
        pytest.param(0, 5000, 0, id="none"),
        pytest.param("5%", 1000, 50, id="a share"),
        pytest.param("5%", 19, 0, id="a share rounds down: in a small fleet it tolerates none"),
        pytest.param("5%", 20, 1, id="from here one"),
        pytest.param("100%", 7, 7, id="all"),
        pytest.param(3, 2, 3, id="a number is taken as it is"),
    ],
)
def test_tolerated(value: int | str, total: int, count: int) -> None:
    assert batches.tolerated(value, total) == count


UIDS = st.lists(st.uuids().map(str), unique=True, max_size=40)


@given(uids=UIDS, rollout=st.uuids().map(str), run=st.integers(1, 100), shuffled=st.randoms())
def test_the_order_is_a_permutation_and_does_not_depend_on_how_nodes_come_in(
    uids: list[str], rollout: str, run: int, shuffled: Any
) -> None:
    nodes = [Node(name=f"n-{uid}", uid=uid, labels={}, ready=True) for uid in uids]
    first = batches.order_nodes(nodes, rollout, run)
    shuffled.shuffle(nodes)
    assert batches.order_nodes(nodes, rollout, run) == first
    assert sorted(node.uid for node in first) == sorted(uids)


def test_the_order_looks_at_the_uid_not_at_name_or_labels() -> None:
    nodes = make_nodes(50)
    renamed = [Node(name=f"x-{node.uid[::-1]}", uid=node.uid, labels={"a": "b"}, ready=False) for node in nodes]
    assert [n.uid for n in batches.order_nodes(nodes, "r", 1)] == [n.uid for n in batches.order_nodes(renamed, "r", 1)]


def test_each_run_and_each_rollout_has_other_first_victims() -> None:
    nodes = make_nodes(200)
    first_tens = {
        (rollout, run): frozenset(node.name for node in batches.order_nodes(nodes, rollout, run)[:10])
        for rollout in ("one", "two")
        for run in range(1, 21)
    }
    assert len(set(first_tens.values())) == 40
    victims = [name for chosen in first_tens.values() for name in chosen]
    # 400 draws from 200 nodes: a fair order hits each twice on average, and none ten times.
    assert len(set(victims)) > 150
    assert max(victims.count(name) for name in set(victims)) < 10


def test_the_order_of_a_run_is_the_same_in_every_release() -> None:
    # Pinned: an operator upgraded in the middle of a run must go on with the nodes that the old one would have taken.
    order = [node.name for node in batches.order_nodes(make_nodes(6), "rollout-uid", 7)]
    assert order == ["node-0", "node-5", "node-1", "node-3", "node-4", "node-2"]


@given(count=st.integers(0, 450))
def test_pages_keep_the_order_and_hold_at_most_a_hundred(count: int) -> None:
    nodes = make_nodes(count)
    cut = batches.pages(nodes)
    assert [node for page in cut for node in page] == nodes
    assert all(len(page) == batches.PAGE == 100 for page in cut[:-1])
    assert all(0 < len(page) <= 100 for page in cut)
