"""In the middle of a rollout: pods are lost, nodes join, the operator is killed, people pause and change their mind."""

import pytest

from e2e.story import POOL, Given, Story, Then, When, agent_template, canary, rolling, step
from e2e.watching import condition
from outrider.api import names


def held_half_way(story: Story, given: Given, when: When, then: Then, size: int = 4) -> tuple[list[str], list[str]]:
    """Bring a fleet half-way from 1.0.0 to 1.1.0 and let it soak there; returns the nodes moved, and the others."""
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(size, running="1.0.0", strategy=canary(step(size // 2, soak=600), size=size))
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is(
        "Progressing", where=lambda obj: "is healthy and watched until" in condition(obj, "Ready")["message"]
    )
    new = story.revision("1.1.0")
    values = story.assignments()
    moved = [name for name, value in values.items() if value == new]
    assert len(moved) == size // 2
    return moved, [name for name in values if name not in moved]


def test_a_pod_that_is_lost_comes_back_at_its_own_nodes_version(
    story: Story, given: Given, when: When, then: Then
) -> None:
    moved, waiting = held_half_way(story, given, when, then)
    lost = {node: when.an_agents_pod_is_deleted(node) for node in (moved[0], waiting[0])}
    story.api.wait(
        story.pods,
        lambda found: not {pod["metadata"]["uid"] for pod in found.values()} & set(lost.values()),
        "the deleted pods are gone",
        each=lambda _: None,
    )
    then.nodes_run("1.1.0", moved)
    then.nodes_run("1.0.0", waiting)
    assert story.history is not None
    assert story.history.assignments[waiting[0]] == [story.revision("1.0.0")]


def test_a_node_that_joins_gets_the_stable_version_first(story: Story, given: Given, when: When, then: Then) -> None:
    _, waiting = held_half_way(story, given, when, then)
    joined = when.nodes_join(2)
    then.nodes_run("1.0.0", [*waiting, *joined])
    assert story.history is not None
    assert all(set(story.history.started[node]) == {"1.0.0"} for node in joined)

    when.the_rollout_changes(strategy=rolling(10))
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")
    old, new = story.revision("1.0.0"), story.revision("1.1.0")
    for node in joined:
        # By way of the joiners' DaemonSet, or faster than that.
        assert [value for value in story.history.assignments[node] if value is not None][-3:] == [old, f"to-{new}", new]


def test_a_node_that_joins_while_the_operator_is_down_gets_the_stable_version(
    story: Story, given: Given, when: When, then: Then
) -> None:
    held_half_way(story, given, when, then)
    story.operator.kill()
    joined = when.nodes_join(1)

    def served(found: dict[str, dict[str, object]]) -> bool:
        return any(_node_and_version(pod) == (joined[0], "1.0.0") for pod in found.values())

    story.api.wait(story.pods, served, "the joined node has an agent of 1.0.0", each=lambda _: None)
    assert story.assignments()[joined[0]] is None
    story.operator.start()
    then.nodes_run("1.0.0", joined)


def _node_and_version(pod: dict[str, object]) -> tuple[object, object]:
    spec, metadata = pod["spec"], pod["metadata"]
    assert isinstance(spec, dict)
    assert isinstance(metadata, dict)
    return spec.get("nodeName"), metadata["labels"].get(names.LABEL_VERSION)


@pytest.mark.parametrize("moment", ["between two revisions", "while batches follow each other"])
def test_killed_in_the_middle_the_operator_goes_on_and_no_node_is_moved_twice_or_skipped(
    story: Story, given: Given, when: When, then: Then, moment: str
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    template = agent_template(realistic=True)
    nodes = given.a_fleet(6, running="1.0.0", template=template, strategy=rolling(2))
    old = story.revision("1.0.0")
    when.the_rollout_changes(version="1.1.0")
    if moment == "between two revisions":
        then.the_assignment_becomes(
            lambda seen: any((value or "").startswith("to-") for value in seen.values()), "a node is between"
        )
    else:
        then.the_counts_are(healthy=2)
    story.operator.kill()
    story.operator.start()
    done = then.the_rollout_is("Completed", seconds=150)
    then.nodes_run("1.1.0")
    new = story.revision("1.1.0")
    assert story.history is not None
    story.history.check(nodes, [old, f"to-{new}", new])
    assert all(story.history.started[node] == ["1.0.0", "1.1.0"] for node in nodes), story.history.started
    assert (done["status"]["run"]["id"], done["status"]["run"]["healthy"]) == (2, 6)
    then.the_records_say(2, dict.fromkeys(nodes, "Succeeded"))


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
def test_a_deleted_rollout_leaves_its_agents_running_and_a_new_one_takes_them_over(
    story: Story, given: Given, when: When, then: Then, propagation: str
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(3, running="1.0.0")
    before = {node: [pod["metadata"]["uid"] for pod in pods] for node, pods in story.agents().items()}
    when.the_rollout_is_deleted(propagation)
    assert {node: [pod["metadata"]["uid"] for pod in pods] for node, pods in story.agents().items()} == before

    when.the_rollout_is_created("1.0.0")
    then.the_rollout_is("Completed")
    assert {node: [pod["metadata"]["uid"] for pod in pods] for node, pods in story.agents().items()} == before
    then.no_node_was_moved()

    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0", nodes)


def test_a_rollout_that_is_deleted_while_it_moves_finishes_the_moves_that_it_began(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(6, running="1.0.0", template=agent_template(realistic=True), strategy=rolling(2))
    old = story.revision("1.0.0")
    when.the_rollout_changes(version="1.1.0")
    between = then.the_assignment_becomes(
        lambda seen: any((value or "").startswith("to-") for value in seen.values()), "a node is between"
    )
    when.the_rollout_is_deleted()
    new = story.revision("1.1.0")
    values = story.assignments()
    assert set(values.values()) <= {old, new}
    for node, value in between.items():
        if (value or "").startswith("to-"):
            assert values[node] == new, node
    assert list(values.values()).count(new) == 2


def test_a_paused_rollout_moves_nobody_and_goes_on_afterwards(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(6, running="1.0.0", template=agent_template(realistic=True), strategy=rolling(2))
    old = story.revision("1.0.0")
    when.the_rollout_changes(version="1.1.0")
    then.the_counts_are(healthy=2)
    when.the_rollout_changes(paused=True)
    then.the_rollout_is("Paused", "PausedBySpec")
    # Half-made moves are finished; a batch that was only written down is not begun.
    then.the_assignment_becomes(
        lambda seen: not any((value or "").startswith("to-") for value in seen.values()), "no node is between"
    )
    seen = then.the_rollout_is(
        "Paused", where=lambda obj: obj["status"]["run"]["healthy"] == obj["status"]["run"]["updated"]
    )
    assert condition(seen, "Paused")["status"] == "True"
    assert seen["status"]["run"]["pausedSince"]
    stopped = story.assignments()
    assert set(stopped.values()) == {old, story.revision("1.1.0")}

    # Something happens to look at again; still nobody moves.
    when.an_agents_pod_is_deleted(next(node for node, value in stopped.items() if value == old))
    then.nodes_run("1.0.0", [node for node, value in stopped.items() if value == old])
    assert story.assignments() == stopped

    when.the_rollout_changes(paused=False)
    done = then.the_rollout_is("Completed")
    then.nodes_run("1.1.0", nodes)
    assert done["status"]["run"].get("pausedSince") is None
    new = story.revision("1.1.0")
    assert story.history is not None
    story.history.check(nodes, [old, f"to-{new}", new])


def test_changing_ones_mind_in_the_middle_brings_the_fleet_to_what_is_wanted_last(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.2.0")
    moved, waiting = held_half_way(story, given, when, then)
    when.the_rollout_changes(version="1.2.0", strategy=rolling(2))
    done = then.the_rollout_is("Completed")
    then.nodes_run("1.2.0")
    assert done["status"]["history"][0]["result"] == "Superseded"
    assert story.history is not None
    last = story.revision("1.2.0")
    assert all(story.history.assignments[node][-2:] == [f"to-{last}", last] for node in [*moved, *waiting])
    assert all(story.history.started[node] == ["1.0.0", "1.2.0"] for node in waiting)


def test_back_to_the_old_version_in_the_middle_needs_no_canary(
    story: Story, given: Given, when: When, then: Then
) -> None:
    moved, waiting = held_half_way(story, given, when, then)
    when.the_rollout_changes(version="1.0.0")
    then.the_rollout_is("Completed")
    then.nodes_run("1.0.0")
    old, new = story.revision("1.0.0"), story.history.assignments[moved[0]][2] if story.history else ""
    assert story.history is not None
    story.history.check(moved, [old, f"to-{new}", new, f"to-{old}", old])
    story.history.check(waiting, [old])


# --- nodes that are not well ------------------------------------------------------------------


def test_a_node_that_is_not_ready_before_its_move_is_left_out_and_moved_when_it_is_back(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(4, running="1.0.0", strategy=rolling(2))
    old = story.revision("1.0.0")
    fault = story.inject("not-ready", nodes=nodes[:1])
    when.the_rollout_changes(version="1.1.0")
    seen = then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["skipped"] == 1)
    assert seen["status"]["run"]["outdated"] == 1
    assert "3 of 4 nodes run 1.1.0" in condition(seen, "Ready")["message"]
    assert "left out" in condition(seen, "Ready")["message"]
    then.nodes_run("1.1.0", nodes[1:])
    assert story.assignments()[nodes[0]] == old
    record = story.results(2)[nodes[0]]
    assert (record["state"], record["reason"]) == ("Skipped", "NodeNotReady")

    fault.remove()
    then.nodes_run("1.1.0")
    then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["outdated"] == 0)
    new = story.revision("1.1.0")
    assert story.history is not None
    story.history.check(nodes, [old, f"to-{new}", new])


def test_a_node_that_is_lost_after_its_move_counts_as_failed(
    story: Story, given: Given, when: When, then: Then
) -> None:
    moved, waiting = held_half_way(story, given, when, then)
    story.inject("unreachable", nodes=moved[:1])
    end = then.the_rollout_is("RollingBack")
    record = story.results(2)[moved[0]]
    assert (record["state"], record["reason"]) == ("Failed", "NodeNotReady")
    assert "NodeNotReady" in end["status"]["history"][0]["message"]
    then.nodes_run("1.0.0", [*moved[1:], *waiting])


def test_a_node_that_is_deleted_before_its_move_does_not_hold_the_rollout(
    story: Story, given: Given, when: When, then: Then
) -> None:
    moved, waiting = held_half_way(story, given, when, then)
    story.local.remove_node(waiting[0])
    when.the_rollout_changes(strategy=rolling(10))
    done = then.the_rollout_is("Completed", where=lambda obj: obj["status"]["nodes"] == 3)
    then.nodes_run("1.1.0", [*moved, *waiting[1:]])
    assert done["status"]["run"]["failed"] == 0
    assert POOL in story.client.get(f"/api/v1/nodes/{moved[0]}")["metadata"]["labels"]
