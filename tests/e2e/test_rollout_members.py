"""Who belongs to a fleet, live: targets edited, nodes that leave, fleets that change hands, minds, operators."""

from collections.abc import Callable

import pytest

from e2e.operator_process import OperatorProcess
from e2e.story import POOL, Given, Story, Then, When, agent_template, canary, rolling, step
from e2e.watching import Object, condition
from outrider.api import names

ZONE = "e2e.outrider.test/zone"


def pods_of(story: Story) -> dict[str, list[str]]:
    return {node: [pod["metadata"]["uid"] for pod in pods] for node, pods in story.agents().items()}


def zone(story: Story, *zones: str) -> Object:
    """Target: the story's nodes in some zones."""
    return {
        "nodeSelector": {
            "matchLabels": {POOL: story.name},
            "matchExpressions": [{"key": ZONE, "operator": "In", "values": list(zones)}],
        }
    }


def test_an_edited_target_brings_nodes_in_by_batches_and_takes_the_agent_from_those_that_left(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    west = story.add_nodes(2, {ZONE: "west"})
    east = story.add_nodes(4, {ZONE: "east"})
    when.the_rollout_is_created("1.0.0", target=zone(story, "west"), strategy=rolling("50%"))
    then.the_rollout_is("Completed")
    story.record()
    revision = story.revision("1.0.0")

    when.the_rollout_changes(target=zone(story, "west", "east"))
    then.nodes_run("1.0.0", [*west, *east])
    done = then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"].get("lateNodes") == 6)
    assert done["status"]["run"]["id"] == 1
    assert story.history is not None
    # Nobody of them was served as a joiner: one patch to `none`, then a batch of half the fleet as it is now.
    story.history.check(east, [None, "none", revision])
    assert sorted(entry["batch"] for entry in story.results(1).values())[-4:] == [3, 3, 3, 4]

    when.the_rollout_changes(target=zone(story, "east"))
    then.nodes_have_no_agent(west)
    then.the_rollout_is("Completed", where=lambda obj: obj["status"]["nodes"] == 4)
    story.history.check(west, [revision, "to-none", "none", None])
    story.history.check(east, [None, "none", revision])
    removed = story.results(1)
    assert {removed[node]["to"] for node in west} == {"none"}
    then.kstatus_is_clean()

    when.the_rollout_changes(target=zone(story, "nowhere"))
    stalled = then.the_rollout_is("Stalled", "EmptyTarget")
    assert "4 nodes that belonged to it keep their agents" in condition(stalled, "Ready")["message"]
    assert {story.assignments()[node] for node in east} == {revision}


def test_with_wait_a_node_that_joins_gets_nothing_until_the_next_run(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(2, running="1.0.0", joiners="Wait")
    joined = when.nodes_join(1)
    then.the_rollout_is("Completed", where=lambda obj: obj["status"]["nodes"] == 3)
    assert story.assignments()[joined[0]] is None
    assert joined[0] not in story.agents()
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")
    assert story.history is not None
    assert story.history.started[joined[0]] == ["1.1.0"]


def test_a_younger_rollout_takes_over_in_batches_what_the_older_one_gives_up(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    west, east = story.add_nodes(2, {ZONE: "west"}), story.add_nodes(2, {ZONE: "east"})
    template = agent_template(realistic=True)
    when.the_rollout_is_created("1.0.0", target=zone(story, "west", "east"), template=template, strategy=rolling(4))
    then.the_rollout_is("Completed")
    story.record()
    when.the_rollout_is_created("1.1.0", name="younger", template=template, strategy=rolling(1))
    then.the_rollout_is("Stalled", "OwnedByOthers", name="younger")
    old = story.revision("1.0.0")

    when.the_rollout_changes(target=zone(story, "west"))
    then.the_rollout_is("Completed", name="younger")
    then.nodes_run("1.1.0", east)
    then.nodes_run("1.0.0", west)
    new = story.revision("1.1.0")

    when.the_rollout_is_deleted()
    then.nodes_run("1.1.0", [*west, *east])
    then.the_rollout_is("Completed", name="younger", where=lambda obj: obj["status"]["nodes"] == 4)
    assert story.history is not None
    story.history.check([*west, *east], [old, f"to-{new}", new])
    assert all(story.history.started[node] == ["1.0.0", "1.1.0"] for node in [*west, *east])


def test_another_template_in_the_middle_and_two_changes_in_a_second_are_both_followed(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0", "1.2.0")
    given.a_fleet(4, running="1.0.0", strategy=canary(step(2, soak=600), size=4))
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Progressing", where=lambda obj: "watched until" in condition(obj, "Ready")["message"])
    first = story.revision("1.1.0")
    when.the_rollout_changes(template=agent_template(env=[{"name": "LEVEL", "value": "debug"}]), strategy=rolling(2))
    done = then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["id"] == 3)
    assert done["status"]["history"][0]["result"] == "Superseded"
    assert done["status"]["revisions"]["stable"] != first
    then.an_event_tells("RunSuperseded", "Run 2", "another template")
    assert story.history is not None
    assert not story.history.overlaps

    when.the_rollout_changes(version="1.2.0")
    when.the_rollout_changes(version="1.0.0")
    done = then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["version"] == "1.0.0")
    values = set(story.assignments().values())
    assert len(values) == 1
    assert values == {done["status"]["revisions"]["stable"]}
    assert not story.history.overlaps


def test_another_operator_with_other_settings_starts_no_run_and_restarts_no_pod(
    story: Story, given: Given, when: When, then: Then, operator_with: Callable[..., OperatorProcess]
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(4, running="1.0.0", strategy=canary(step(2, soak=600), size=2))
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Progressing", where=lambda obj: "watched until" in condition(obj, "Ready")["message"])
    before, assigned = pods_of(story), story.assignments()
    operator_with(
        OUTRIDER_FETCH_IMAGE="registry.example.com/outrider:another",
        OUTRIDER_FETCH_IMAGE_PULL_POLICY="Always",
        OUTRIDER_ALLOW_RSA_2048="true",
    )
    joined = when.nodes_join(1)
    then.nodes_run("1.0.0", [node for node, value in assigned.items() if value == story.revision("1.0.0")] + joined)
    seen = then.the_rollout_is("Progressing", where=lambda obj: obj["status"]["nodes"] == 5)
    assert (seen["status"]["run"]["id"], seen["status"]["run"]["batches"]) == (2, 1)
    assert {node: value for node, value in story.assignments().items() if node in nodes} == assigned
    assert {node: pods for node, pods in pods_of(story).items() if node in nodes} == before

    when.the_rollout_changes(strategy=rolling(5))
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")
    after = pods_of(story)
    moved = [node for node in nodes if assigned[node] == story.revision("1.1.0")]
    assert len(moved) == 2
    assert {node: after[node] for node in moved} == {node: before[node] for node in moved}


@pytest.mark.parametrize("left_out", ["excluded", "tainted"])
def test_a_node_that_is_left_out_keeps_what_it_has(
    story: Story, given: Given, when: When, then: Then, left_out: str
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    template = agent_template()
    template["spec"]["tolerations"] = [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]
    nodes = given.a_fleet(3, running="1.0.0", template=template, strategy=rolling(3))
    path = f"/api/v1/nodes/{nodes[0]}"
    if left_out == "excluded":
        story.client.merge(path, {"metadata": {"labels": {names.LABEL_EXCLUDE: "true"}}})
    else:
        taints = [*story.client.get(path)["spec"]["taints"], {"key": "dedicated", "effect": "NoSchedule"}]
        story.client.merge(path, {"spec": {"taints": taints}})
    expected = 2 if left_out == "excluded" else 3
    before = pods_of(story)[nodes[0]]
    when.the_rollout_changes(version="1.1.0")
    done = then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["version"] == "1.1.0")
    then.nodes_run("1.1.0", nodes[1:])
    assert done["status"]["nodes"] == expected
    assert done["status"]["run"]["updated"] == 2
    assert pods_of(story)[nodes[0]] == before
