"""Analyses between batches, by a real Prometheus, a web page and Jobs: pass, fail, cannot tell."""

from collections.abc import Iterator
from typing import Any

import pytest

from e2e.files import Answer
from e2e.story import Given, Story, Then, When, rolling
from e2e.watching import Object, condition
from localcluster.prometheus import Exporter, Prometheus
from outrider.api import names

HEALTH = {"timeoutSeconds": 60, "minReadySeconds": 0}


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    """A program that tells how many errors there are: none."""
    made = Exporter()
    made.values["errors"] = 0
    yield made
    made.stop()


@pytest.fixture
def prometheus(exporter: Exporter, story: Story) -> Iterator[Prometheus]:
    """A Prometheus that scrapes it every second."""
    made = Prometheus(story.folder / "prometheus", exporter.address)
    made.start().wait_for("errors", 0)
    yield made
    made.stop()


def errors(prometheus: Prometheus, **changes: Any) -> Object:
    """Analysis: there are no errors."""
    query = {"address": prometheus.url, "query": "sum(errors)", "passWhen": "< 1"}
    return {"name": "errors", "prometheus": query, "intervalSeconds": 5, **changes}


def answers(story: Story, run: int) -> list[dict[str, Object]]:
    """Return what was answered about each batch of a run, by the analysis' name."""
    stored = story.client.items(story.batches, labelSelector=f"{names.LABEL_RUN}={run}")
    stored.sort(key=lambda batch: batch["spec"]["batch"])
    return [{found["name"]: found for found in batch["status"].get("analysis") or []} for batch in stored]


def test_a_run_goes_on_while_a_real_prometheus_says_so_and_is_taken_back_when_it_does_not(
    story: Story, given: Given, when: When, then: Then, prometheus: Prometheus, exporter: Exporter
) -> None:
    given.published_versions("1.0.0", "1.1.0", "1.2.0")
    nodes = given.a_fleet(3, running="1.0.0", health=HEALTH)
    when.the_rollout_changes(version="1.1.0", strategy=rolling(1), analysis=[errors(prometheus)])
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")
    told = answers(story, 2)
    assert [batch["errors"]["verdict"] for batch in told] == ["Pass"] * 3, "after the last one, too"
    assert [batch["errors"]["value"] for batch in told] == ["0"] * 3
    assert told[0]["errors"]["message"] == "the query's result is 0, wanted is < 1"

    exporter.values["errors"] = 7
    prometheus.wait_for("errors", 7)
    when.the_rollout_changes(version="1.2.0")
    done = then.the_rollout_is("RolledBack")
    rolled_back = condition(done, "RolledBack")
    assert rolled_back["reason"] == "AnalysisFailed"
    assert "analysis errors failed once after batch 1, forgiven are 0" in rolled_back["message"]
    assert "the query's result is 7, wanted is < 1" in rolled_back["message"]
    then.nodes_run("1.1.0")
    assert len(story.results(3)) == 1, "nobody but the first batch was moved"
    then.an_event_tells("RollingBack", "analysis errors failed once")
    story.history.check(nodes, *_ways(story))  # type: ignore[union-attr]


def _ways(story: Story) -> list[list[str | None]]:
    old, new = story.revision("1.0.0"), story.revision("1.1.0")
    bad = story.revision("1.2.0")
    there: list[str | None] = [old, f"to-{new}", new]
    return [there, [*there, f"to-{bad}", bad, f"to-{new}", new]]


def test_a_prometheus_that_cannot_tell_holds_the_run_and_ends_it_not(
    story: Story, given: Given, when: When, then: Then, prometheus: Prometheus
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(2, running="1.0.0", health=HEALTH)
    prometheus.stop()
    analysis = [errors(prometheus, timeoutSeconds=3)]
    when.the_rollout_changes(version="1.1.0", strategy=rolling(1), analysis=analysis)
    stalled = then.the_rollout_is("Stalled", "AnalysisInconclusive")
    message = condition(stalled, "Stalled")["message"]
    assert "analysis errors cannot tell for" in message
    assert "cannot be asked: the connection was refused" in message
    assert stalled["status"]["run"]["state"] == "Running"
    assert len(story.results(2)) == 1

    prometheus.start()
    then.the_rollout_is("Completed", seconds=60)
    then.nodes_run("1.1.0")


def smoke(name: str = "smoke") -> Object:
    """Analysis: a Job succeeds."""
    pod = {
        "metadata": {"labels": {"e2e": name}},
        "spec": {
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "smoke", "image": "smoke:dev"}],
        },
    }
    return {"name": name, "job": {"template": {"spec": {"template": pod}}}, "intervalSeconds": 5}


def test_a_job_and_a_web_page_are_asked_about_each_batch(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0", "1.1.0", "1.2.0")
    given.a_fleet(2, running="1.0.0", health=HEALTH)
    path = f"{story.name}/page"
    story.files.answers[path] = Answer(b"all systems go")
    page = {"name": "page", "web": {"url": story.files.url(path), "bodyContains": "systems go"}, "intervalSeconds": 5}
    when.the_rollout_changes(version="1.1.0", strategy=rolling(1), analysis=[smoke(), page])
    then.the_rollout_is("Completed")
    for batch in answers(story, 2):
        assert {name: found["verdict"] for name, found in batch.items()} == {"smoke": "Pass", "page": "Pass"}
    jobs = story.client.items(story.jobs, labelSelector=f"{names.LABEL_ANALYSIS}=smoke")
    assert len(jobs) == 2, "one for each batch"
    rollout = story.rollout()["metadata"]
    for job in jobs:
        [owner] = job["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("Rollout", rollout["uid"])
        assert job["metadata"]["labels"][names.LABEL_MANAGED_BY] == names.MANAGED_BY

    # What the Job says, counts; what is written on a page that is no longer well, is never shown.
    story.inject("fails", namespace=story.namespace, pod_labels={"e2e": "smoke"})
    when.the_rollout_changes(version="1.2.0", onFailure="Pause")
    stopped = then.the_rollout_is("Stalled", "AnalysisFailed")
    assert "analysis smoke failed once after batch 1" in condition(stopped, "Stalled")["message"]
    assert "kubectl logs job/check-node-agent-smoke-" in condition(stopped, "Stalled")["message"]
    assert len(story.results(3)) == 1
