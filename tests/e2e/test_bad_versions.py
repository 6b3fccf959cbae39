"""A version whose agents do not work goes back by itself, and the records say why."""

import pytest

from e2e.story import Given, Story, Then, When, canary, full, rolling, step
from e2e.watching import condition

FAILURES = {
    "never ready": ("never-ready", "HealthTimeout", "not healthy within 4 s"),
    "a crash loop": ("crash-loop", "TooManyRestarts", "restarted"),
    "no image": ("image-pull-error", "ImagePullBackOff", "cannot start"),
    "no settings": ("config-error", "CreateContainerConfigError", "cannot start"),
}


@pytest.mark.parametrize(("behaviour", "reason", "words"), FAILURES.values(), ids=FAILURES)
def test_a_canary_is_rolled_back_by_itself_with(
    story: Story, given: Given, when: When, then: Then, behaviour: str, reason: str, words: str
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(4, running="1.0.0", strategy=canary(step(1), size=2))
    given.agents_fail(behaviour, "1.1.0")
    old = story.revision("1.0.0")

    when.the_rollout_changes(version="1.1.0", health={"timeoutSeconds": 4, "minReadySeconds": 0})
    end = then.the_rollout_is("RolledBack", "RolledBack")
    then.nodes_run("1.0.0")

    [bad] = [node for node, seen in story.history.assignments.items() if len(seen) > 1] if story.history else []
    stalled = condition(end, "Stalled")
    assert stalled["status"] == "True"
    assert f"{bad}: {reason}" in stalled["message"]
    assert "Change spec.version or spec.template" in stalled["message"]
    assert condition(end, "RolledBack")["status"] == "True"
    assert end["status"]["revisions"]["stableVersion"] == "1.0.0"
    run, failed = end["status"]["run"], end["status"]["history"][0]
    assert (run["kind"], run["state"], run["ofRun"]) == ("Rollback", "Succeeded", 2)
    assert (failed["id"], failed["kind"], failed["result"], failed["failed"]) == (2, "Rollout", "RolledBack", 1)

    [record] = then.the_records_say(2, {bad: "Failed"}, reason).values()
    assert words in record["message"]
    assert (record["from"], record["back"]) == (old, old)
    then.the_records_say(3, {bad: "Succeeded"})
    assert story.history is not None
    new = record["to"]
    story.history.check([bad], [old, f"to-{new}", new, f"to-{old}", old])
    story.history.check(set(nodes) - {bad}, [old])
    then.an_event_tells("RollingBack", bad, reason)
    then.an_event_tells("RolledBack", "1 of 1 nodes")


def test_after_a_rollback_the_next_version_is_taken(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0", "1.1.0", "1.2.0")
    nodes = given.a_fleet(3, running="1.0.0", strategy=canary(step(1), size=2))
    given.agents_fail("crash-loop", "1.1.0")
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("RolledBack")

    when.the_rollout_changes(version="1.2.0")
    done = then.the_rollout_is("Completed")
    then.nodes_run("1.2.0")
    assert done["status"]["run"]["id"] == 4
    then.the_records_say(4, dict.fromkeys(nodes, "Succeeded"))


def test_going_back_to_the_old_version_in_git_ends_the_hold_at_once(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(3, running="1.0.0", strategy=canary(step(1), size=2))
    given.agents_fail("crash-loop", "1.1.0")
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("RolledBack")
    before = {name: list(seen) for name, seen in story.history.assignments.items()} if story.history else {}

    when.the_rollout_changes(version="1.0.0")
    then.the_rollout_is("Completed")
    then.nodes_run("1.0.0")
    assert story.history is not None
    assert story.history.assignments == before


def test_more_failures_than_tolerated_take_back_every_node_that_was_moved(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(8, running="1.0.0", strategy=canary(step(2), size=4, tolerance=1))
    old = story.revision("1.0.0")
    # Whoever is moved first works; the others do not.
    when.the_rollout_changes(version="1.1.0", paused=True)
    then.the_rollout_is("Paused")
    when.the_rollout_changes(paused=False)
    first = then.the_assignment_becomes(
        lambda seen: sum(value != old for value in seen.values()) >= 2, "the canary's nodes are moved"
    )
    given.agents_fail("crash-loop", "1.1.0", nodes=[node for node, value in first.items() if value == old])

    end = then.the_rollout_is("RolledBack")
    then.nodes_run("1.0.0")
    failed = end["status"]["history"][0]
    assert "tolerated are 1" in failed["message"]
    assert failed["failed"] >= 2
    moved = story.results(2)
    # A node that had failed while that was still tolerated was on its way back already.
    assert set(story.results(3)) <= set(moved)
    assert story.history is not None
    new = next(iter(moved.values()))["to"]
    there, back = [old, f"to-{new}"], [f"to-{old}", old]
    # Between two revisions nothing wants a node, so that it may turn round there.
    story.history.check(moved, [*there, new, *back], [*there, *back], [*there, old])
    story.history.check(set(nodes) - set(moved), [old])


def test_on_failure_pause_stops_the_run_where_it_is(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0", "1.1.0", "1.2.0")
    nodes = given.a_fleet(4, running="1.0.0", strategy=canary(step(1), size=2))
    given.agents_fail("crash-loop", "1.1.0")
    when.the_rollout_changes(version="1.1.0", onFailure="Pause")
    end = then.the_rollout_is("Stalled", "FailureToleranceExceeded")

    assert end["status"]["run"]["state"] == "Paused"
    assert condition(end, "Paused")["status"] == "True"
    assert "TooManyRestarts" in condition(end, "Ready")["message"]
    old, new = story.revision("1.0.0"), story.revision("1.1.0")
    values = list(story.assignments().values())
    assert sorted([values.count(old), values.count(new)]) == [1, 3]
    then.an_event_tells("RunPaused", "1 of")

    when.the_rollout_changes(version="1.2.0")
    then.the_rollout_is("Completed")
    then.nodes_run("1.2.0", nodes)


@pytest.mark.parametrize(
    "strategy", [rolling(3, tolerance=2), full(tolerance="34%")], ids=["in batches", "all at once"]
)
def test_within_the_tolerance_failed_nodes_go_back_and_the_rest_moves(
    story: Story, given: Given, when: When, then: Then, strategy: dict[str, object]
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(6, running="1.0.0", strategy=strategy)
    bad, good = nodes[:2], nodes[2:]
    given.agents_fail("image-pull-error", "1.1.0", nodes=bad)
    old = story.revision("1.0.0")

    when.the_rollout_changes(version="1.1.0")
    end = then.the_rollout_is("Completed")
    then.nodes_run("1.1.0", good)
    then.nodes_run("1.0.0", bad)

    run = end["status"]["run"]
    assert (run["state"], run["healthy"], run["failed"], run["outdated"]) == ("PartiallySucceeded", 4, 2, 2)
    assert "2 failed within the tolerance" in condition(end, "Ready")["message"]
    assert condition(end, "Degraded")["status"] == "True"
    assert {failure["node"] for failure in end["status"]["failures"]} == set(bad)
    states = dict.fromkeys(bad, "RolledBack") | dict.fromkeys(good, "Succeeded")
    then.the_records_say(2, states, "ImagePullBackOff")
    new = story.revision("1.1.0")
    assert story.history is not None
    story.history.check(good, [old, f"to-{new}", new])
    story.history.check(bad, [old, f"to-{new}", new, f"to-{old}", old])


def test_a_first_version_that_fails_leaves_no_agent_behind(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0")
    given.a_fleet(3)
    given.agents_fail("crash-loop", "1.0.0")
    when.the_rollout_is_created("1.0.0", strategy=rolling(1))
    then.the_rollout_is("RolledBack")
    assert set(story.assignments().values()) <= {"none", None}
    story.api.wait(story.pods, lambda found: not found, "no agent is left", each=lambda _: None)
