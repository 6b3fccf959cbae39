"""A thousand nodes, three in a hundred of which the new version does not work on; and failures at random."""

import hashlib
import os
import random
import time

import pytest

from e2e.conftest import Notes
from e2e.story import NODES, POOL, Given, Story, Then, When, agent_template, canary, full, rolling, step, window
from e2e.watching import condition
from outrider.api import names

SIZE = 1000
FAILING = 30
BATCH = 100
TROUBLED = int(os.environ.get("OUTRIDER_SOAK_NODES", "500"))
"""The fleet in which nodes and pods fail at random; `make soak` has 5,000."""

pytestmark = [pytest.mark.scale, pytest.mark.timeout(1200 + TROUBLED // 2)]


def in_order_of_run(story: Story, run: int) -> list[str]:
    """Return the fleet's nodes in the order in which a run takes them: by hash of node, Rollout and run."""
    rollout = story.rollout()["metadata"]["uid"]
    nodes = story.client.items(NODES, labelSelector=f"{POOL}={story.name}")
    hashed = {
        node["metadata"]["name"]: hashlib.sha256(f"{node['metadata']['uid']}/{rollout}/{run}".encode()).digest()
        for node in nodes
    }
    return sorted(hashed, key=hashed.__getitem__)


def spread(ordered: list[str]) -> list[str]:
    """Return the nodes that will fail: as many in each batch, and some in the first."""
    return ordered[:: SIZE // FAILING][:FAILING]


@pytest.fixture
def timed(notes: Notes) -> Notes:
    """The notes that are printed at the end, under a heading."""
    notes.add(f"{SIZE} nodes, {FAILING} of them fail, batches of {BATCH}")
    return notes


def test_a_thousand_nodes_go_through_canary_and_batches_and_stop_where_the_canary_tolerates_nothing(
    story: Story, given: Given, when: When, then: Then, timed: Notes
) -> None:
    begun = time.monotonic()

    def lap(what: str) -> None:
        nonlocal begun
        timed.add(f"  {what:64}{time.monotonic() - begun:6.1f} s")
        begun = time.monotonic()

    patience = {"timeoutSeconds": 120, "minReadySeconds": 0}
    given.published_versions("1.0.0", "1.1.0", "1.2.0")
    given.a_fleet(SIZE, running="1.0.0", setup=rolling(BATCH), health=patience)
    old = story.revision("1.0.0")
    lap("nodes added, 1.0.0 installed in batches")

    # A canary step with a tolerance of its own, and batches: the bad nodes go back, the rest moves.
    bad = spread(in_order_of_run(story, 2))
    good = sorted(set(story.nodes) - set(bad))
    given.agents_fail("crash-loop", "1.1.0", nodes=bad)
    when.the_rollout_changes(version="1.1.0", strategy=canary(step(BATCH, tolerance="10%"), size=BATCH, tolerance="5%"))
    begun = time.monotonic()
    end = then.the_rollout_is("Completed", seconds=600)
    lap(f"1.1.0: canary step of {BATCH} tolerating 10%, then batches, 5% tolerated")
    run = end["status"]["run"]
    timed.add(f"      moved {run['healthy']}, failed and back {run['failed']}, batches {run['batch']}")
    assert (run["state"], run["healthy"], run["failed"]) == ("PartiallySucceeded", SIZE - FAILING, FAILING)
    assert run["batch"] == f"{SIZE // BATCH}/{SIZE // BATCH}"
    assert f"{FAILING} failed within the tolerance" in condition(end, "Ready")["message"]
    assert len(end["status"]["failures"]) == 10
    then.nodes_run("1.1.0", good)
    then.nodes_run("1.0.0", bad)
    new = story.revision("1.1.0")
    states = dict.fromkeys(good, "Succeeded") | dict.fromkeys(bad, "RolledBack")
    then.the_records_say(2, states, "TooManyRestarts")
    assert story.history is not None
    story.history.check(good, [old, f"to-{new}", new])
    story.history.check(bad, [old, f"to-{new}", new, f"to-{old}", old])

    # The same with a canary step that tolerates none: it stops there and goes back.
    bad = spread(in_order_of_run(story, 3))
    before = story.assignments()
    given.agents_fail("crash-loop", "1.2.0", nodes=bad)
    begun = time.monotonic()
    when.the_rollout_changes(version="1.2.0", strategy=canary(step(BATCH), size=BATCH, tolerance="5%"))
    end = then.the_rollout_is("RolledBack", seconds=600)
    lap(f"1.2.0: canary step of {BATCH} tolerating none: stopped and taken back")
    failed = end["status"]["history"][0]
    timed.add(f"      {failed['message'][:100]}")
    assert "canary step 1 failed, tolerated are 0" in failed["message"]
    assert (failed["id"], failed["result"]) == (3, "RolledBack")
    touched = story.results(3)
    assert set(touched) == set(in_order_of_run(story, 3)[:BATCH])
    assert set(story.results(4)) <= set(touched)
    assert story.assignments() == before
    untouched = set(story.nodes) - set(touched)
    assert all(story.history.assignments[node][-1] == before[node] for node in untouched)
    assert all(len(story.history.assignments[node]) in {3, 5} for node in untouched)
    assert not story.history.overlaps


def test_nodes_and_pods_fail_at_random_and_the_window_holds(
    story: Story, given: Given, when: When, then: Then, notes: Notes
) -> None:
    dice = random.Random(TROUBLED)  # noqa: S311 - drawn, but always the same
    patience = {"timeoutSeconds": 120, "minReadySeconds": 0}
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(
        TROUBLED, running="1.0.0", setup=full("20%"), health=patience, template=agent_template(realistic=True)
    )
    drawn = dice.sample(sorted(story.nodes), TROUBLED)
    bad, dead, gone, lost = (
        [drawn.pop() for _ in range(max(1, TROUBLED * share // 1000))] for share in (30, 10, 5, 10)
    )
    old = story.revision("1.0.0")
    given.agents_fail("crash-loop", "1.1.0", nodes=bad)
    assert story.history is not None

    begun = time.monotonic()
    when.the_rollout_changes(version="1.1.0", strategy=window("10%", tolerance="10%"))
    then.the_rollout_is(
        "Progressing", where=lambda obj: obj["status"]["run"]["updated"] >= TROUBLED // 4, seconds=TROUBLED
    )
    fault = story.inject("not-ready", nodes=dead)
    for node in lost:
        for pod in story.agents().get(node, []):
            story.client.delete(f"{story.pods}/{pod['metadata']['name']}")
    for node in gone:
        story.local.remove_node(node)
        story.nodes.remove(node)
    end = then.the_rollout_is("Completed", seconds=300 + TROUBLED)
    run = end["status"]["run"]
    notes.add(
        f"{TROUBLED} nodes in a window of 10 %, {len(bad)} agents crash, {len(dead)} nodes die, {len(gone)} are "
        f"deleted, {len(lost)} pods lost: {time.monotonic() - begun:.0f} s, healthy {run['healthy']}, "
        f"failed {run['failed']}, left out {run['skipped']}"
    )
    fault.remove()

    then.nodes_run("1.1.0", [node for node in story.nodes if node not in {*bad, *dead}])
    then.nodes_run("1.0.0", bad)
    then.the_assignment_becomes(
        lambda found: not any((value or "").startswith(names.ASSIGNMENT_LEAVING) for value in found.values()),
        "no node is left between two revisions",
    )
    new = story.revision("1.1.0")
    story.history.check(bad, [old, f"to-{new}", new, f"to-{old}", old])
    assert story.history.most_between <= TROUBLED // 10
    assert not story.history.overlaps
