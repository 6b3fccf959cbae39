"""What one component on a node needs of another, as tables: moves that would break something, and waits without end."""

from datetime import UTC, datetime
from typing import Any

import pytest

from outrider.api.rollout import RolloutStatus, Target
from outrider.core.compatibility import UNKNOWN, VersionRules
from outrider.core.ranges import parse_range
from outrider.core.requirements import (
    Standing,
    find_breach,
    find_knot,
    relied_on,
    standings_on,
)
from outrider.core.snapshot import Needs, Neighbour, Node, RolloutSnapshot, Wish
from simulation.fleet import make_spec

OURS, THEIRS = "agents.outrider.dev/agent", "agents.outrider.dev/daemon"
ALL = Target(all=True)


def needs(**ranges: str) -> Needs:
    return tuple((component, parse_range(text)) for component, text in ranges.items())


def snapshot(**daemon: Any) -> RolloutSnapshot:
    """A Rollout of `agent`, revisions a1 and a2, beside a `daemon`, revisions d1 and d2; daemon 2 needs agent >=2."""
    neighbour = Neighbour(
        THEIRS,
        {"d1": "1.0.0", "d2": "2.0.0"},
        daemon.get("requires", {"2.0.0": needs(agent=">=2")}),
        (Wish("the-daemon", "2.0.0", ALL),),
    )
    return RolloutSnapshot(
        now=datetime(2026, 1, 1, tzinfo=UTC),
        namespace="fleet",
        name="the-agent",
        uid="u",
        generation=1,
        deleting=False,
        has_finalizer=True,
        spec=make_spec("2.0.0"),
        status=RolloutStatus(),
        assignment_key=OURS,
        wanted="a2",
        revisions={"a1": "1.0.0", "a2": "2.0.0"},
        rules={"a2": VersionRules(requires=needs(daemon=">=1"))},
        neighbours={"daemon": neighbour},
    )


def node(ours: str | None, theirs: str | None) -> Node:
    labels = {key: value for key, value in ((OURS, ours), (THEIRS, theirs)) if value is not None}
    return Node("n", "u", labels, ready=True)


@pytest.mark.parametrize(
    ("ours", "theirs", "target", "breaks"),
    [
        ("a2", "d2", "a1", True),
        ("a2", "d2", "none", True),
        ("a2", "d2", "a2", False),
        ("a2", "d1", "a1", False),
        ("a2", None, "a1", False),
        ("a2", "none", "a1", False),
        ("a2", "unheard-of", "a1", False),
        # What is on its way there counts already: it was decided on what we run.
        ("a2", "to-d2", "a1", True),
        ("to-a2", "d2", "a1", True),
        # Broken already: no reason to stay.
        ("a1", "d2", "none", False),
        (None, "d2", "a1", False),
        ("none", "d2", "a1", False),
    ],
)
def test_moves_that_would_break_another_component(
    ours: str | None, theirs: str | None, target: str, breaks: bool
) -> None:
    breach = find_breach(snapshot(), node(ours, theirs), target)
    assert (breach is not None) == breaks
    if breach is not None:
        assert breach.tell("agent", "1.0.0") == (
            "daemon 2.0.0 (Rollout the-daemon) needs agent '>=2' on the node, and agent 1.0.0 would break it"
        )


def test_a_move_is_made_only_while_the_other_component_is_as_it_was_seen() -> None:
    assert relied_on(snapshot(), node("a1", "d1"), "a2") == ((THEIRS, "d1"),)
    assert relied_on(snapshot(), node("a1", None), "a2") == ((THEIRS, None),)
    nobody = snapshot(requires={})
    assert relied_on(nobody, node("a1", "d1"), "a2") == ((THEIRS, "d1"),), "ours needs it"
    assert relied_on(nobody, node("a2", "d1"), "a1") == ()


def standing(running: str | None, wanted: str | None, now: Needs = (), then: Needs = ()) -> Standing:
    return Standing("r", running, wanted, now, then)


@pytest.mark.parametrize(
    ("agent", "daemon", "kind"),
    [
        # Nothing in the way.
        (standing("1.0.0", "2.0.0"), standing("1.0.0", "1.0.0"), None),
        (standing("1.0.0", "2.0.0", then=needs(daemon=">=1")), standing("1.0.0", "2.0.0"), None),
        # It waits, and what it waits for comes.
        (standing("1.0.0", "2.0.0", then=needs(daemon=">=2")), standing("1.0.0", "2.0.0"), None),
        (standing("1.0.0", "2.0.0", then=needs(daemon=">=2")), standing(None, "2.0.0"), None),
        (standing("1.0.0", "2.0.0", then=needs(daemon=">=2")), standing(UNKNOWN, "1.0.0"), None),
        (standing(UNKNOWN, "2.0.0", then=needs(daemon=">=2")), standing("1.0.0", "1.0.0"), None),
        # Nobody brings it.
        (standing("1.0.0", "2.0.0", then=needs(daemon=">=2")), standing("1.0.0", "1.0.0"), "DeadEnd"),
        (standing("1.0.0", "2.0.0", then=needs(daemon=">=2")), standing("1.0.0", "1.5.0"), "DeadEnd"),
        (standing("1.0.0", "2.0.0", then=needs(daemon=">=2")), standing(None, None), "DeadEnd"),
        # Each needs the other's next version first.
        (
            standing("1.0.0", "2.0.0", then=needs(daemon=">=2")),
            standing("1.0.0", "2.0.0", then=needs(agent=">=2")),
            "Cycle",
        ),
        # The daemon may not go before the agent's old version has, which waits for the daemon.
        (
            standing("1.0.0", "2.0.0", now=needs(daemon="<2"), then=needs(daemon=">=2")),
            standing("1.0.0", "2.0.0"),
            "Cycle",
        ),
        # The same without the wait: the agent's next version does with both.
        (
            standing("1.0.0", "2.0.0", now=needs(daemon="<2"), then=needs(daemon=">=1")),
            standing("1.0.0", "2.0.0"),
            None,
        ),
        # Back to 1 while the daemon needs 2: when the daemon goes back as well it passes, else it does not.
        (standing("2.0.0", "1.0.0"), standing("2.0.0", "2.0.0", now=needs(agent=">=2")), "DeadEnd"),
        (standing("2.0.0", "1.0.0"), standing("2.0.0", "1.0.0", now=needs(agent=">=2")), None),
        (
            standing("2.0.0", "1.0.0"),
            standing("2.0.0", "2.1.0", now=needs(agent=">=2"), then=needs(agent=">=2")),
            "DeadEnd",
        ),
        # A first installation of both, each needing the other.
        (
            standing(None, "2.0.0", then=needs(daemon=">=2")),
            standing(None, "2.0.0", then=needs(agent=">=2")),
            "Cycle",
        ),
    ],
)
def test_waits_that_never_end(agent: Standing, daemon: Standing, kind: str | None) -> None:
    knot = find_knot({"agent": agent, "daemon": daemon}, "agent")
    assert (knot.kind if knot is not None else None) == kind
    if knot is not None and kind == "Cycle":
        assert {link.waiting for link in knot.links} == {"agent", "daemon"}
        other = find_knot({"agent": agent, "daemon": daemon}, "daemon")
        assert other is not None, "both sides see it"
        assert other.kind == "Cycle"


def test_a_circle_of_three_is_found_and_what_only_hangs_on_it_is_no_part_of_it() -> None:
    found = {
        "a": standing("1.0.0", "2.0.0", then=needs(b=">=2")),
        "b": standing("1.0.0", "2.0.0", then=needs(c=">=2")),
        "c": standing("1.0.0", "2.0.0", then=needs(a=">=2")),
        "d": standing("1.0.0", "2.0.0", then=needs(c=">=2")),
    }
    knot = find_knot(found, "a")
    assert knot is not None
    assert [link.waiting for link in knot.links] == ["a", "b", "c"]
    hanging = find_knot(found, "d")
    assert hanging is not None
    assert [link.waiting for link in hanging.links] == ["c", "a", "b"]


def test_how_components_stand_on_a_node_is_read_from_labels_revisions_and_wishes() -> None:
    found = standings_on(snapshot(), node("a1", "to-d2"), "a2")
    assert found["agent"] == Standing("the-agent", "1.0.0", "2.0.0", (), needs(daemon=">=1"))
    assert found["daemon"] == Standing("the-daemon", UNKNOWN, "2.0.0", (), needs(agent=">=2"))
