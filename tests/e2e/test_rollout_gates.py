"""What holds a run that is fine otherwise: it says so, moves nobody, and goes on by itself or when a person lets it."""

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from e2e.story import Given, Story, Then, When, canary, rolling, step
from e2e.watching import Object, condition

ZONE = "topology.kubernetes.io/zone"


def window(opens: datetime, hours: int = 1, zone: str = "Asia/Kathmandu") -> Object:
    """A window on the clocks of a zone that is a quarter of an hour off."""
    local = opens.astimezone(ZoneInfo(zone))
    return {"start": f"{local:%H:%M}", "end": f"{local + timedelta(hours=hours):%H:%M}", "timeZone": zone}


def next_minute(at_least: float) -> datetime:
    """The next full minute that is not nearer than so many seconds."""
    earliest = datetime.now(UTC) + timedelta(seconds=at_least)
    return (earliest + timedelta(minutes=1)).replace(second=0, microsecond=0)


def test_nodes_set_out_when_the_window_opens(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(3, running="1.0.0", strategy=rolling(2))
    opens = next_minute(10)
    when.the_rollout_changes(version="1.1.0", windows=[window(opens)])
    seen = then.the_rollout_is("Waiting", "WaitingForWindow")
    assert (seen["status"]["run"]["id"], seen["status"]["run"]["batches"]) == (2, 0)
    assert condition(seen, "Progressing")["status"] == "False"
    message = condition(seen, "Ready")["message"]
    assert f"opens at {opens:%Y-%m-%d %H:%M} UTC" in message
    assert "in Asia/Kathmandu" in message
    then.no_node_was_moved()
    # Nothing happens in the cluster that would make the operator look again: it wakes up by itself.
    done = then.the_rollout_is("Completed", seconds=120)
    then.nodes_run("1.1.0")
    assert all(datetime.fromisoformat(entry["startedAt"]) >= opens for entry in story.results(2).values())
    assert done["status"]["run"]["failed"] == 0


def test_outside_the_windows_a_failed_run_is_taken_back_all_the_same(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(3, running="1.0.0", strategy=canary(step(1, soak=600)))
    known = {story.revision("1.0.0"), None}
    given.agents_fail("never-ready", "1.1.0")
    when.the_rollout_changes(version="1.1.0", health={"timeoutSeconds": 10, "minReadySeconds": 0})
    then.the_assignment_becomes(lambda seen: not known >= set(seen.values()), "the canary has set out")
    when.the_rollout_changes(windows=[window(datetime.now(UTC) + timedelta(hours=10))])
    then.the_rollout_is("RolledBack")
    then.nodes_run("1.0.0")


def test_a_time_zone_that_there_is_not_is_told_at_once(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(2, running="1.0.0", strategy=rolling(2))
    when.the_rollout_changes(windows=[{"start": "00:00", "end": "24:00", "timeZone": "Europe/Berln"}])
    seen = then.the_rollout_is("Stalled", "WindowInvalid")
    assert "there is no time zone Europe/Berln" in condition(seen, "Stalled")["message"]
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Stalled", "WindowInvalid", where=lambda obj: obj["status"]["run"]["id"] == 2)
    then.no_node_was_moved()
    when.the_rollout_changes(windows=[{"start": "00:00", "end": "24:00", "timeZone": "Europe/Berlin"}])
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")


def test_a_run_starts_not_before_its_time(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(2, running="1.0.0", strategy=rolling(2))
    start = (datetime.now(UTC) + timedelta(seconds=12)).replace(microsecond=0)
    when.the_rollout_changes(version="1.1.0", notBefore=f"{start:%Y-%m-%dT%H:%M:%SZ}")
    seen = then.the_rollout_is("Waiting", "WaitingForStart")
    assert seen["status"]["run"]["id"] == 1
    then.no_node_was_moved()
    done = then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["id"] == 2)
    assert datetime.fromisoformat(done["status"]["run"]["startedAt"]) >= start
    then.nodes_run("1.1.0")


def test_after_a_canary_in_each_zone_the_run_waits_until_somebody_approves_it(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = story.add_nodes(2, {ZONE: "north", "lab": "yes"}) + story.add_nodes(2, {ZONE: "south", "lab": "yes"})
    given.a_fleet(2, running="1.0.0")
    strategy = canary({**step(2), "requireApproval": True}, size=10)
    strategy["canary"] |= {"nodeSelector": {"matchLabels": {"lab": "yes"}}, "spreadBy": ZONE}
    when.the_rollout_changes(version="1.1.0", strategy=strategy)
    seen = then.the_rollout_is("Waiting", "WaitingForApproval")
    assert seen["status"]["run"]["awaitsApproval"] == 1
    assert f"outrider approve node-agent --namespace {story.namespace}" in condition(seen, "Ready")["message"]
    then.an_event_tells("ApprovalNeeded", "Canary step 1", "outrider approve")
    moved = [node for node, value in story.assignments().items() if value == story.revision("1.1.0")]
    assert len(moved) == 2
    assert len(set(moved) & set(nodes[:2])) == 1, "one canary in the north"
    assert len(set(moved) & set(nodes[2:4])) == 1, "and one in the south"

    when.somebody_asks("approve")
    done = then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")
    [approval] = done["status"]["run"]["approvals"]
    assert approval["step"] == 1
    assert len(story.events("ApprovalNeeded")) == 1


def test_a_canary_without_a_place_is_not_passed_over(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(3, running="1.0.0")
    strategy = canary(step(1), size=10)
    strategy["canary"]["nodeSelector"] = {"matchLabels": {"lab": "yes"}}
    when.the_rollout_changes(version="1.1.0", strategy=strategy)
    seen = then.the_rollout_is("Stalled", "NoCanaryNode")
    assert "none of the 3 nodes matches strategy.canary.nodeSelector" in condition(seen, "Stalled")["message"]
    then.no_node_was_moved()
    story.client.merge(f"/api/v1/nodes/{nodes[1]}", {"metadata": {"labels": {"lab": "yes"}}})
    then.the_rollout_is("Completed")
    records = story.results(2)
    assert {name for name, entry in records.items() if entry["batch"] == 1} == {nodes[1]}


def test_a_frozen_rollout_changes_no_node(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(2, running="1.0.0", strategy=rolling(1))
    when.the_rollout_changes(frozen=True)
    seen = then.the_rollout_is("Completed", where=lambda obj: bool(condition(obj, "Paused")))
    assert condition(seen, "Paused")["reason"] == "FrozenBySpec"
    [joined] = when.nodes_join(1)
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Paused", "FrozenBySpec")
    time.sleep(3)  # a label that must not come has no event to wait for
    assert story.assignments()[joined] is None
    then.an_event_tells("FrozenBySpec")
    when.the_rollout_changes(frozen=False)
    then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["version"] == "1.1.0")
    then.nodes_run("1.1.0")
