"""Stories of nodes whose old agent is ending: which of them arrive as soon as it has, without another look."""

from outrider.core.moves import is_leaving, leaving
from outrider.core.plan import Assign
from simulation.fleet import Fleet, make_spec

WINDOW = {"type": "Rolling", "rolling": {"maxUnavailable": 2}, "failureTolerance": 0}


def half_way() -> Fleet:
    """A fleet of which two nodes have been told to leave, and whose old agents have not ended."""
    fleet = Fleet(6, make_spec(strategy=WINDOW))
    fleet.settle()
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: len(between(f)) == 2)
    assert all(fleet.nodes[name].pods for name in between(fleet))
    return fleet


def between(fleet: Fleet) -> list[str]:
    return sorted(name for name in fleet.nodes if is_leaving(fleet.assignment(name)))


def test_whoever_only_waits_for_his_old_agent_to_end_is_expected() -> None:
    fleet = half_way()
    plan = fleet.plan()
    new = "r-1.1.0"
    expected = {Assign(name, fleet.nodes[name].node.uid, leaving(new), new) for name in between(fleet)}
    assert set(plan.arrivals) == expected
    assert not {move.node for move in plan.moves} & {move.node for move in plan.arrivals}


def test_they_are_expected_in_a_pause_too_for_half_made_moves_are_always_finished() -> None:
    fleet = half_way()
    fleet.change(paused=True)
    assert {move.node for move in fleet.plan().arrivals} == set(between(fleet))


def test_who_is_taken_back_half_way_is_not_expected_where_he_was_going() -> None:
    fleet = half_way()
    going = between(fleet)
    fleet.phases["1.1.0"] = "Revoked"
    fleet.execute(fleet.plan())  # the verdict is stored first
    while between(fleet):
        plan = fleet.plan()
        assert not [move for move in plan.arrivals if move.node in going and move.after == "r-1.1.0"]
        fleet.execute(plan)
        fleet.tick()
    fleet.settle()
    assert set(fleet.assignments()) == {"r-1.0.0"}


def test_a_change_that_is_not_answered_yet_comes_first() -> None:
    fleet = half_way()
    name = between(fleet)[0]
    fleet.under_way = frozenset({name})
    assert name not in {move.node for move in fleet.plan().arrivals}
