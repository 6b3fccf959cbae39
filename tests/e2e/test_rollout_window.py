"""A sliding window on a real control plane: as soon as one node is done the next starts, and no more than it holds."""

from e2e.story import Given, Story, Then, When, agent_template, full, window
from e2e.watching import condition
from outrider.api import names


def test_a_window_slides_and_a_failed_node_goes_back_within_it(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(12, running="1.0.0", setup=full(), template=agent_template(realistic=True))
    old = story.revision("1.0.0")
    bad, good = nodes[4], [node for node in nodes if node != nodes[4]]
    given.agents_fail("crash-loop", "1.1.0", nodes=[bad])
    assert story.history is not None

    when.the_rollout_changes(version="1.1.0", strategy=window(3, tolerance=1))
    sliding = then.the_rollout_is(
        "Progressing", where=lambda obj: "at most 3 at a time" in condition(obj, "Ready")["message"]
    )
    assert sliding["status"]["run"]["batch"] == "1/1", "one record holds all of them"
    done = then.the_rollout_is("Completed", seconds=120)

    assert (done["status"]["run"]["healthy"], done["status"]["run"]["failed"]) == (11, 1)
    then.nodes_run("1.1.0", good)
    then.nodes_run("1.0.0", [bad])
    new = story.revision("1.1.0")
    then.the_records_say(2, dict.fromkeys(good, "Succeeded") | {bad: "RolledBack"}, "TooManyRestarts")
    story.history.check(good, [old, f"to-{new}", new])
    story.history.check([bad], [old, f"to-{new}", new, f"to-{old}", old])
    assert story.history.most_between <= 3

    # The next leaves when one is done, and not when all that left with it are.
    entries = [
        e
        for batch in story.client.items(story.batches)
        for e in batch["status"].get("nodes", [])
        if batch["metadata"]["labels"][names.LABEL_RUN] == "2"
    ]
    moves = [(entry["startedAt"], entry["finishedAt"]) for entry in entries]
    assert any(start < other < end for start, end in moves for other, _ in moves), "nobody waits for a whole batch"


def test_a_window_that_fails_is_taken_back_through_the_same_window(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(10, running="1.0.0", setup=full())
    given.agents_fail("crash-loop", "1.1.0")
    assert story.history is not None

    when.the_rollout_changes(version="1.1.0", strategy=window(2))
    then.the_rollout_is("RolledBack", seconds=120)
    then.nodes_run("1.0.0", nodes)
    assert story.history.most_between <= 2
    assert len(story.results(3)) <= 3, "who was not touched is not taken back"
    then.kstatus_is_clean()
