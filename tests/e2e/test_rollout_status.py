"""What a person reads of a Rollout that is stopped, fails or is taken back: on a real control plane."""

import time

import requests
from prometheus_client.parser import text_string_to_metric_families

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


def test_what_alerts_are_made_of_is_measured(story: Story, given: Given, when: When, then: Then) -> None:
    def wait_until_measured(**values: float) -> None:
        deadline = time.monotonic() + 30
        while not values.items() <= (found := measure(story)).items():
            assert time.monotonic() < deadline, f"wanted {values}, found {found}"
            time.sleep(0.1)

    given.published_versions("1.0.0")
    given.a_fleet(3, running="1.0.0")
    wait_until_measured(Ready=1, Stalled=0, Degraded=0, Paused=0, all=3, updated=3, Published=1)
    when.the_rollout_changes(version="9.9.9")
    then.the_rollout_is("Stalled", "VersionNotFound")
    wait_until_measured(Ready=0, Stalled=1)
    when.the_version_changes("1.0.0", stage="Revoked")
    wait_until_measured(Published=0, Revoked=1, Degraded=1)
    when.the_rollout_is_deleted()
    deadline = time.monotonic() + 30
    while {"Ready", "all"} & measure(story).keys():
        assert time.monotonic() < deadline, "what is gone is measured still"
        time.sleep(0.1)


def measure(story: Story) -> dict[str, float]:
    """Return what Prometheus would read of a story's namespace: by condition, state of nodes, or phase of versions."""
    answer = requests.get(f"{story.operator.url}/metrics", timeout=10)
    families = text_string_to_metric_families(answer.text)
    told = {"outrider_rollout_condition": "condition", "outrider_rollout_nodes": "state", "outrider_versions": "phase"}
    return {
        sample.labels[told[family.name]]: sample.value
        for family in families
        if family.name in told
        for sample in family.samples
        if sample.labels["namespace"] == story.namespace
    }
