"""Which nodes belong to a fleet, and what is told when its version may not be brought to them."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.api.base import Condition
from outrider.api.componentversion import ComponentVersionStatus, StoredArtifact, StoredSignature
from outrider.api.rollout import Target
from outrider.core.fleet import Claim, VersionFacts, find_hindrance, is_targeted, may_overlap, select_members
from outrider.core.snapshot import Hindrance, Node
from simulation.fleet import make_spec

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def node(name: str = "n1", **labels: str) -> Node:
    return Node(name=name, uid=f"uid-{name}", labels=labels, ready=True)


def excluded(value: str, **labels: str) -> Node:
    return node("n1", **{"outrider.dev/exclude": value}, **labels)


def target(**selector: Any) -> Target:
    return Target.model_validate({"nodeSelector": selector})


ALL = Target(all=True)
EDGE = target(matchLabels={"pool": "edge"})
BY_NAME = Target(node_names=["n1", "n2"])


@pytest.mark.parametrize(
    ("wanted", "found", "belongs"),
    [
        pytest.param(ALL, node(), True, id="all means every node"),
        pytest.param(ALL, excluded("true"), False, id="an excluded node never belongs"),
        pytest.param(BY_NAME, excluded("true"), False, id="an excluded node never belongs, not even by name"),
        pytest.param(EDGE, excluded("true", pool="edge"), False, id="an excluded node never belongs, whatever fits"),
        pytest.param(ALL, excluded("false"), True, id="exclude=false excludes nobody"),
        pytest.param(ALL, excluded(""), True, id="an empty exclude excludes nobody"),
        pytest.param(BY_NAME, node("n2"), True, id="a node that is named"),
        pytest.param(BY_NAME, node("n22"), False, id="a node that is not named"),
        pytest.param(EDGE, node(pool="edge", other="x"), True, id="a node with the label"),
        pytest.param(EDGE, node(pool="core"), False, id="a node with another value"),
        pytest.param(EDGE, node(), False, id="a node without the label"),
        pytest.param(target(matchLabels={"a": "1", "b": "2"}), node(a="1"), False, id="all labels must fit"),
        pytest.param(
            target(matchExpressions=[{"key": "pool", "operator": "In", "values": ["edge", "core"]}]),
            node(pool="core"),
            True,
            id="In",
        ),
        pytest.param(
            target(matchExpressions=[{"key": "pool", "operator": "NotIn", "values": ["edge"]}]),
            node(),
            True,
            id="NotIn holds without the label, as in Kubernetes",
        ),
        pytest.param(
            target(matchExpressions=[{"key": "pool", "operator": "Exists"}]), node(pool=""), True, id="Exists"
        ),
        pytest.param(
            target(matchExpressions=[{"key": "pool", "operator": "DoesNotExist"}]),
            node(pool=""),
            False,
            id="DoesNotExist: an empty value is one",
        ),
        pytest.param(
            target(matchLabels={"a": "1"}, matchExpressions=[{"key": "b", "operator": "Exists"}]),
            node(a="1"),
            False,
            id="labels and expressions must both hold",
        ),
        pytest.param(Target(), node(), False, id="a target that says nothing selects nobody"),
    ],
)
def test_is_targeted(wanted: Target, found: Node, belongs: bool) -> None:
    assert is_targeted(wanted, found) == belongs


NODES = [node("n1", pool="edge"), node("n2", pool="edge"), node("n3", pool="core"), excluded("true", pool="edge")]


def claim(name: str, wanted: Target) -> Claim:
    return Claim(name=name, uid=f"uid-{name}", created="2025-01-01T00:00:00Z", target=wanted)


@pytest.mark.parametrize(
    ("older", "members", "foreign"),
    [
        pytest.param([], {"n1", "n2", "n3"}, {}, id="alone, all are ours"),
        pytest.param(
            [claim("old", EDGE)], {"n3"}, {"n1": "old", "n2": "old"}, id="the older Rollout owns what both want"
        ),
        pytest.param(
            [claim("oldest", BY_NAME), claim("old", EDGE)],
            {"n3"},
            {"n1": "oldest", "n2": "oldest"},
            id="of several the first is named",
        ),
        pytest.param(
            [claim("old", Target(node_names=["n9"]))], {"n1", "n2", "n3"}, {}, id="a claim on others costs nothing"
        ),
        pytest.param([claim("old", ALL)], set(), {"n1": "old", "n2": "old", "n3": "old"}, id="nothing may be left"),
    ],
)
def test_members(older: list[Claim], members: set[str], foreign: dict[str, str]) -> None:
    found = [*NODES[:3], Node("out", "uid-out", {"outrider.dev/exclude": "true"}, ready=True)]
    assert select_members(found, ALL, older) == (frozenset(members), foreign)


def test_older_rollouts_may_come_as_an_iterator() -> None:
    assert select_members(NODES[:2], ALL, iter([claim("old", EDGE)])) == (frozenset(), {"n1": "old", "n2": "old"})


TARGETS = st.sampled_from([ALL, EDGE, BY_NAME, Target(), Target(node_names=["n3"])])


@given(wanted=st.lists(TARGETS, min_size=1, max_size=4))
def test_every_node_that_somebody_wants_has_exactly_one_owner(wanted: list[Target]) -> None:
    claims = [claim(f"rollout-{index}", found) for index, found in enumerate(wanted)]
    owned: list[str] = []
    for index, found in enumerate(wanted):
        members, foreign = select_members(NODES, found, claims[:index])
        assert members.isdisjoint(foreign)
        owned += members
    assert sorted(owned) == sorted({n.name for n in NODES if any(is_targeted(found, n) for found in wanted)})


# -- hindrances


def condition(kind: str, status: Any, message: str) -> Condition:
    return Condition(type=kind, status=status, reason="Because", message=message, last_transition_time=NOW)


def version(phase: Any = "Published", *, stalled: bool = False, **changes: Any) -> VersionFacts:
    conditions = [condition("Ready", "True" if phase == "Published" else "False", "no trusted key vouches for it")]
    if stalled:
        conditions.append(condition("Stalled", "True", "no trusted key vouches for it"))
    status = ComponentVersionStatus(
        observed_generation=changes.pop("observed", 2),
        phase=phase,
        reference=changes.pop("reference", "registry/agent@sha256:index" if phase == "Published" else None),
        conditions=changes.pop("conditions", conditions),
        artifacts=changes.pop("artifacts", []),
    )
    return VersionFacts("agent-1.0.0", 2, status, **changes)


def hindrance(
    found: VersionFacts | None,
    *,
    published: tuple[str, ...] = (),
    members: int = 3,
    foreign: dict[str, str] | None = None,
    template_problem: str = "",
    delivery: dict[str, Any] | None = None,
) -> Hindrance | None:
    changes: dict[str, Any] = {"delivery": delivery} if delivery else {}
    spec = make_spec(**changes)
    return find_hindrance(spec, "fleet", found, published, members, foreign or {}, template_problem)


def test_nothing_hinders_a_published_version() -> None:
    assert hindrance(version()) is None
    assert hindrance(version(), foreign={"n9": "old"}) is None


def test_what_a_phase_after_publication_means_is_not_for_this_to_say() -> None:
    reference = "registry/agent@sha256:index"
    assert hindrance(version("Deprecated", reference=reference)) is None
    assert hindrance(version("Withdrawn")) is None
    assert hindrance(version("Revoked", observed=1)) is None
    assert hindrance(version("Published", observed=1, revoked=True)) is None


def artifact(minute: int | None, kind: Any = "File", platform: str = "linux/amd64") -> StoredArtifact:
    signature = None
    if minute is not None:
        signature = StoredSignature(key_fingerprint="k", format="Detached", verified_at=NOW.replace(minute=minute))
    return StoredArtifact(
        platform=platform,
        digest="sha256:d",
        size=1,
        reference="r",
        download_url="u",
        spec_hash="h",
        kind=kind,
        signature=signature,
    )


@pytest.mark.parametrize(
    ("minutes", "oldest"),
    [
        pytest.param([5, 3], 3, id="the oldest counts"),
        pytest.param([5, None], None, id="one that is not verified is as none"),
        pytest.param([], None, id="none"),
    ],
)
def test_when_a_version_was_verified(minutes: list[int | None], oldest: int | None) -> None:
    status = ComponentVersionStatus(artifacts=[artifact(minute) for minute in minutes])
    expected = None if oldest is None else NOW.replace(minute=oldest)
    assert VersionFacts("agent-1.0.0", 1, status).verified_at == expected


def test_what_the_planner_gets_to_know_of_a_version() -> None:
    down = condition("Verified", "Unknown", "the registry is down")
    ready = condition("Ready", "True", "agent 1.0.0 is published")
    state = version(conditions=[ready, down]).state
    assert (state.phase, state.why, state.unverifiable) == (
        "Published",
        "agent 1.0.0 is published",
        "the registry is down",
    )
    pending = down.model_copy(update={"reason": "Pending"})
    assert version(conditions=[ready, pending]).state.unverifiable == ""
    assert version("Draft", conditions=[], revoked=True).state.phase == "Revoked", "at once, as its author wants it"


@pytest.mark.parametrize(
    ("found", "reason", "stalled", "words"),
    [
        pytest.param(
            hindrance(None),
            "VersionNotFound",
            True,
            ["no ComponentVersion agent-1.0.0 in namespace fleet", "create it, or publish it first"],
            id="a version that does not exist, and no other",
        ),
        pytest.param(
            hindrance(None, published=("0.9.0", "0.8.0")),
            "VersionNotFound",
            True,
            ["set spec.version to a published one (0.8.0, 0.9.0)"],
            id="a version that does not exist, and which do",
        ),
        pytest.param(
            hindrance(version(deleting=True)),
            "VersionDeleted",
            True,
            ["agent-1.0.0", "being deleted"],
            id="a version that is being deleted",
        ),
        pytest.param(
            hindrance(version("Draft", stalled=True)),
            "VersionNotPublished",
            True,
            ["agent-1.0.0 is Draft, not Published", "no trusted key vouches for it"],
            id="a version that will not be published before somebody acts",
        ),
        pytest.param(
            hindrance(version("Testing")),
            "VersionNotPublished",
            False,
            ["is Testing, not Published", "no trusted key vouches for it"],
            id="a version that is on its way",
        ),
        pytest.param(
            hindrance(version(None, conditions=[])),
            "VersionNotPublished",
            False,
            ["is new, not Published", "has not been looked at yet"],
            id="a version that nobody has looked at",
        ),
        pytest.param(
            hindrance(version(observed=1)),
            "VersionNotPublished",
            False,
            ["agent-1.0.0 was changed, and is looked at again"],
            id="a version that has changed since it was looked at",
        ),
        pytest.param(
            hindrance(version(reference=None)),
            "VersionNotPublished",
            False,
            ["agent-1.0.0"],
            id="a version without a reference",
        ),
        pytest.param(
            hindrance(version(), template_problem="spec.containers[0].image: Required; correct spec.template"),
            "TemplateInvalid",
            True,
            ["image: Required", "correct spec.template"],
            id="a template that the API server refuses",
        ),
        pytest.param(
            hindrance(version("Deprecated", reference=None)),
            "VersionNotPublished",
            False,
            ["agent-1.0.0"],
            id="a deprecated version without a reference",
        ),
        pytest.param(
            hindrance(version(artifacts=[artifact(1), artifact(1, "Image", "linux/arm64")])),
            "DeliveryMismatch",
            True,
            ["is a container image, and spec.delivery.volume delivers files"],
            id="an image that would have to be delivered as a file",
        ),
        pytest.param(
            hindrance(version(), members=0),
            "EmptyTarget",
            True,
            ["no node matches spec.target", "kubectl get nodes --show-labels"],
            id="an empty target",
        ),
        pytest.param(
            hindrance(version(), members=0, foreign={"n1": "old", "n2": "older", "n3": "old"}),
            "OwnedByOthers",
            True,
            ["all 3 nodes", "older Rollouts of agent: old, older"],
            id="a target that belongs to older Rollouts",
        ),
        # which of several is told
        pytest.param(
            hindrance(None, members=0, template_problem="x"),
            "VersionNotFound",
            True,
            [],
            id="a missing version is told before all else",
        ),
        pytest.param(
            hindrance(version("Draft"), members=0, template_problem="x"),
            "VersionNotPublished",
            False,
            [],
            id="then an unpublished one",
        ),
        pytest.param(
            hindrance(version(), members=0, template_problem="x", delivery={"host": {"path": "/opt/agent"}}),
            "DeliveryMismatch",
            True,
            ["is of type Agent"],
            id="then a delivery that does not fit",
        ),
        pytest.param(
            hindrance(version(), members=0, template_problem="x"), "TemplateInvalid", True, [], id="then the template"
        ),
    ],
)
def test_hindrance(found: Hindrance | None, reason: str, stalled: bool, words: list[str]) -> None:
    assert found is not None
    assert (found.reason, found.stalled) == (reason, stalled)
    assert all(word in found.message for word in words), found.message


def test_of_many_published_versions_the_newest_few_are_named() -> None:
    found = hindrance(None, published=tuple(f"1.{minor}.0" for minor in range(13)))
    assert found is not None
    assert "(1.8.0, 1.9.0, 1.10.0, 1.11.0, 1.12.0)" in found.message


@pytest.mark.parametrize(
    ("one", "other", "may"),
    [
        pytest.param(ALL, EDGE, True, id="every node, and some"),
        pytest.param(EDGE, target(matchLabels={"pool": "core"}), False, id="two values of one label"),
        pytest.param(EDGE, target(matchLabels={"zone": "a"}), True, id="two labels: a node may have both"),
        pytest.param(
            EDGE,
            target(matchExpressions=[{"key": "pool", "operator": "NotIn", "values": ["edge"]}]),
            True,
            id="expressions are not thought about: in doubt they may",
        ),
        pytest.param(BY_NAME, Target(node_names=["n2", "n3"]), True, id="a name in common"),
        pytest.param(BY_NAME, Target(node_names=["n3"]), False, id="no name in common"),
        pytest.param(BY_NAME, EDGE, True, id="names and labels: in doubt they may"),
    ],
)
def test_may_overlap(one: Target, other: Target, may: bool) -> None:
    assert may_overlap(one, other) is may
    assert may_overlap(other, one) is may


@given(st.dictionaries(st.sampled_from("abc"), st.sampled_from("12")), st.sampled_from([EDGE, ALL, BY_NAME]))
def test_a_node_that_belongs_to_two_targets_proves_that_they_overlap(labels: dict[str, str], other: Target) -> None:
    wanted = target(matchLabels=labels) if labels else ALL
    found = node("n1", pool="edge", **labels)
    assert is_targeted(wanted, found)
    assert is_targeted(other, found)
    assert may_overlap(wanted, other)


def test_an_empty_target_says_that_nodes_that_left_keep_their_agents() -> None:
    found = find_hindrance(make_spec("1.0.0"), "fleet", version(), [], 0, {}, "", leavers=7)
    assert found is not None
    assert found.reason == "EmptyTarget"
    assert "7 nodes that belonged to it keep their agents" in found.message
    assert "deletionPolicy Delete" in found.message
