"""Rollouts that are deleted: in the middle of a move, in the foreground, with their agents, with their namespace."""

from typing import Any

import pytest

from e2e.story import COMPONENT, NODES, POOL, ROLLOUT, Given, Story, Then, When, agent_template, rolling
from outrider.api import names


def pods_of(story: Story) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in story.client.items(story.pods)}


def in_the_middle(story: Story, given: Given, when: When, then: Then, **spec: Any) -> list[str]:
    """A fleet of six whose second batch is on its way from 1.0.0 to 1.1.0."""
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(6, running="1.0.0", template=agent_template(realistic=True), strategy=rolling(2), **spec)
    when.the_rollout_changes(version="1.1.0")
    then.the_counts_are(healthy=2)
    then.the_assignment_becomes(
        lambda seen: any((value or "").startswith("to-") for value in seen.values()), "a node is between"
    )
    return nodes


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
def test_a_rollout_that_is_created_again_takes_over_by_content_what_was_deleted_in_the_middle(
    story: Story, given: Given, when: When, then: Then, propagation: str
) -> None:
    nodes = in_the_middle(story, given, when, then)
    old, new = story.revision("1.0.0"), story.revision("1.1.0")
    when.the_rollout_is_deleted(propagation)
    values = story.assignments()
    assert sorted(values.values(), key=str) == sorted([old, old, new, new, new, new], key=str)
    story.api.wait(story.batches, lambda found: not found, "the records are gone", each=lambda _: None)
    moved = [node for node, value in values.items() if value == new]
    then.nodes_run("1.1.0", moved)
    before = pods_of(story)
    roles = story.client.items(f"/apis/apps/v1/namespaces/{story.namespace}/daemonsets")
    assert {daemonset["metadata"]["labels"][names.LABEL_ROLE] for daemonset in roles} == {names.ROLE_REVISION}

    when.the_rollout_is_created("1.1.0", template=agent_template(realistic=True), strategy=rolling(2))
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0", nodes)
    assert story.history is not None
    assert all(story.history.started[node] == ["1.0.0", "1.1.0"] for node in nodes), story.history.started
    story.history.check(nodes, [old, f"to-{new}", new])
    kept = {name: uid for name, uid in before.items() if name in pods_of(story)}
    assert len(kept) == 4, "what ran the wanted version already was not restarted"
    assert set(story.results(1)) == set(nodes) - set(moved)


def test_delete_takes_agents_daemonsets_and_labels_away(story: Story, given: Given, when: When, then: Then) -> None:
    nodes = in_the_middle(story, given, when, then, deletionPolicy="Delete")
    when.the_rollout_is_deleted()
    then.nodes_have_no_agent(nodes)
    assert story.client.items(f"/apis/apps/v1/namespaces/{story.namespace}/daemonsets") == []


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
def test_a_deletion_asks_for_no_version_no_registry_and_no_dead_node(
    story: Story, given: Given, when: When, then: Then, propagation: str
) -> None:
    in_the_middle(story, given, when, then)
    between = [node for node, value in story.assignments().items() if (value or "").startswith("to-")]
    dead = (between or story.nodes)[0]
    story.inject("unreachable", nodes=[dead])
    when.the_rollout_changes(version="9.9.9")
    story.local.stop_registry()
    when.the_rollout_is_deleted(propagation)
    values = story.assignments()
    assert not [node for node, value in values.items() if node != dead and (value or "").startswith("to-")]


def test_a_namespace_that_is_deleted_in_the_middle_goes_and_leaves_no_labels(
    story: Story, given: Given, when: When, then: Then
) -> None:
    nodes = in_the_middle(story, given, when, then)
    story.client.delete(f"/api/v1/namespaces/{story.namespace}")
    story.api.wait(
        "/api/v1/namespaces",
        lambda found: story.namespace not in found,
        "the namespace is gone",
        each=lambda _: None,
        seconds=90,
    )
    found = story.client.items(NODES, labelSelector=f"{POOL}={story.name}")
    assert [node["metadata"]["name"] for node in found if story.key in node["metadata"]["labels"]] == []
    assert len(found) == len(nodes)


def test_labels_that_are_left_after_an_orphaned_fleet_go_by_the_documented_command(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    nodes = given.a_fleet(2, running="1.0.0")
    when.the_rollout_is_deleted()
    assert None not in story.assignments().values()
    story.local.kubectl_run("label", "node", "--all", f"{story.key}-")
    assert set(story.assignments().values()) == {None}
    assert ROLLOUT == COMPONENT
    assert len(nodes) == 2
