"""The main job: a fleet gets its first version, and then the next one through a canary and batches."""

from e2e.conftest import E2eCluster
from e2e.story import Given, Story, Then, When, canary, step
from e2e.watching import condition


def test_a_fleet_gets_its_first_version_and_moves_to_the_next_through_canary_and_batches(
    story: Story, given: Given, when: When, then: Then, cluster: E2eCluster
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(6)

    when.the_rollout_is_created("1.0.0", strategy=canary(step(1, soak=1), size=2))
    installed = then.the_rollout_is("Completed", "RunCompleted")
    then.nodes_run("1.0.0")
    assert installed["status"]["revisions"]["stableVersion"] == "1.0.0"
    assert installed["status"]["nodes"] == 6
    old = story.revision("1.0.0")

    when.the_rollout_changes(version="1.1.0")
    soaking = then.the_rollout_is(
        "Progressing", where=lambda obj: "is healthy and watched until" in condition(obj, "Ready")["message"]
    )
    assert soaking["status"]["run"]["batch"] == "1/4"
    assert soaking["status"]["run"]["updated"] == 1
    assert soaking["status"]["revisions"]["stableVersion"] == "1.0.0"
    done = then.the_rollout_is("Completed", "RunCompleted")
    then.nodes_run("1.1.0")
    new = story.revision("1.1.0")

    run = done["status"]["run"]
    assert {
        key: run[key] for key in ("id", "nodes", "batch", "updated", "healthy", "failed", "pending", "skipped")
    } == {
        "id": 2,
        "nodes": 6,
        "batch": "4/4",
        "updated": 6,
        "healthy": 6,
        "failed": 0,
        "pending": 0,
        "skipped": 0,
    }
    assert run["state"] == "Succeeded"
    results = then.the_records_say(2, dict.fromkeys(nodes, "Succeeded"))
    assert sorted(entry["batch"] for entry in results.values()) == [1, 2, 2, 3, 3, 4]
    assert {(entry["from"], entry["to"]) for entry in results.values()} == {(old, new)}
    assert story.history is not None
    story.history.check(nodes, [None, f"to-{old}", old, f"to-{new}", new], [None, old, f"to-{new}", new])
    then.an_event_tells("RunStarted", "6 nodes to 1.1.0")
    then.kstatus_is_clean()

    shown = cluster.kubectl("get", "outrider", "--namespace", story.namespace).stdout
    for words in ("node-agent-1.1.0", "Published", "Completed", "4/4", "rolloutbatch.outrider.dev/node-agent-2-4"):
        assert words in shown, shown
