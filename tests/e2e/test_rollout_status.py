"""What a person reads of a Rollout that is stopped, fails or is taken back: on a real control plane."""

from e2e.story import Given, Story, Then, When, canary, step
from e2e.watching import condition


def test_after_a_rollback_status_still_says_what_failed_and_what_runs(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0", "1.2.0")
    given.a_fleet(3, running="1.0.0", strategy=canary(step(1), size=2))
    given.agents_fail("crash-loop", "1.1.0")
    when.the_rollout_changes(version="1.1.0")
    back = then.the_rollout_is("RolledBack", where=lambda obj: obj["status"].get("running") == "1.0.0: 3")
    status = back["status"]
    assert (status["run"]["kind"], status["run"]["failed"]) == ("Rollback", 0)
    assert status["failed"] == 1
    [failure] = status["failures"]
    assert failure["reason"] == "TooManyRestarts"
    last = status["lastFailure"]
    assert (last["run"], last["version"], last["failed"], last["nodes"]) == (2, "1.1.0", 1, 3)
    assert "What runs: 1.0.0 on 3 nodes" in condition(back, "Ready")["message"]
    assert f"{failure['node']}: TooManyRestarts in batch 1" in condition(back, "Ready")["message"]

    when.the_rollout_changes(version="1.2.0")
    done = then.the_rollout_is("Completed", where=lambda obj: obj["status"].get("running") == "1.2.0: 3")
    assert "failures" not in done["status"] or not done["status"]["failures"]
    assert done["status"]["lastFailure"] == last


def test_what_stalls_and_what_pauses_a_rollout_is_told_by_events(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(3, running="1.0.0", strategy=canary(step(1, soak=600), size=2))
    when.the_rollout_changes(version="9.9.9")
    then.the_rollout_is("Stalled", "VersionNotFound")
    then.an_event_tells("VersionNotFound", "there is no ComponentVersion")

    when.the_rollout_changes(version="1.1.0")
    then.the_counts_are(healthy=1)
    when.the_rollout_changes(paused=True)
    then.the_rollout_is("Paused")
    then.an_event_tells("PausedBySpec", "no new node is moved")
    when.the_rollout_changes(paused=False)
    then.the_rollout_is("Progressing")
    then.an_event_tells("Resumed", "spec.paused is false again")
