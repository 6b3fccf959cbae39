"""Two components on the same nodes, each with a Rollout of its own, and ranges between their versions."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from e2e.files import Answer
from e2e.story import NODES, POOL, Given, Story, Then, When, full, rolling
from e2e.watching import Object, Recorder, condition
from outrider.api import names

DRIVER = "node-driver"


def needs(component: str, text: str) -> Object:
    """A version's spec: what it requires of another component."""
    return {"compatibility": {"requires": [{"component": component, "versionRange": text}]}}


class Driver:
    """The other component of a story: its versions, its Rollout, its assignments."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.key = names.assignment_key(story.namespace, DRIVER)

    def publish(self, version: str, spec: Object | None = None) -> None:
        story = self.story
        content = f"#!/bin/sh\necho {DRIVER} {version}\n".encode()
        story.files.answers[f"{story.name}/{DRIVER}-{version}"] = Answer(content)
        artifact = {
            "platform": {"os": "linux", "arch": "amd64"},
            "fileName": DRIVER,
            "sha256": hashlib.sha256(content).hexdigest(),
            "source": story.source(f"{DRIVER}-{version}"),
            "signature": {"inline": story.signer().sign(content)},
        }
        body = {
            "apiVersion": names.API_VERSION,
            "kind": "ComponentVersion",
            "metadata": {"name": f"{DRIVER}-{version}"},
            "spec": {"component": DRIVER, "version": version, "artifacts": [artifact], **(spec or {})},
        }
        story.client.create(story.versions, body)

    def wait_until_published(self, version: str) -> None:
        self.story.api.wait_for(
            self.story.versions,
            f"{DRIVER}-{version}",
            lambda obj: (obj.get("status") or {}).get("phase") == "Published",
            f"{DRIVER} {version} is published",
        )

    def roll_out(self, version: str, **spec: Any) -> None:
        agent = self.story.rollout()
        body = {
            "apiVersion": names.API_VERSION,
            "kind": "Rollout",
            "metadata": {"name": DRIVER},
            "spec": {**agent["spec"], "component": DRIVER, "version": version, "strategy": full(), **spec},
        }
        self.story.client.create(self.story.rollouts, body)

    def change(self, **spec: Any) -> None:
        self.story.client.merge(f"{self.story.rollouts}/{DRIVER}", {"spec": spec})

    def becomes(
        self, phase: str, reason: str | None = None, where: Callable[[Object], bool] = lambda _: True
    ) -> Object:
        def reached(obj: Object) -> bool:
            status = obj.get("status") or {}
            right = reason is None or condition(obj, "Ready").get("reason") == reason
            observed = status.get("observedGeneration") == obj["metadata"]["generation"]
            return observed and status.get("phase") == phase and right and where(obj)

        what = f"the Rollout {DRIVER} is {phase}" + (f" because of {reason}" if reason else "")
        return self.story.api.wait_for(self.story.rollouts, DRIVER, reached, what)

    def version_of(self, assignment: str | None) -> str | None:
        """Return the version that an assignment of the driver names; None on the way."""
        if assignment is None or assignment.startswith("to-") or assignment == "none":
            return None
        path = f"/apis/apps/v1/namespaces/{self.story.namespace}/daemonsets/{DRIVER}-{assignment}"
        return str(self.story.client.get(path)["metadata"]["labels"][names.LABEL_VERSION])


def both_installed(story: Story, given: Given, then: Then, size: int = 4) -> Driver:
    """Both components run in 1.0.0 on all nodes."""
    given.a_fleet(size, running="1.0.0", strategy=rolling(2))
    driver = Driver(story)
    driver.publish("1.0.0")
    driver.wait_until_published("1.0.0")
    driver.roll_out("1.0.0")
    driver.becomes("Completed")
    driver.change(strategy={**rolling(1), "full": None})
    driver.becomes("Completed")
    return driver


class Moves:
    """What both labels of each node said, in the order in which they changed."""

    def __init__(self, story: Story, keys: Iterable[str]) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self._keys = list(keys)
        self._last: dict[tuple[str, str], str] = {}
        self._recorder = Recorder(story.api, NODES, self._note, labelSelector=f"{POOL}={story.name}")

    def _note(self, _kind: str, obj: Object) -> None:
        for key in self._keys:
            name, value = obj["metadata"]["name"], obj["metadata"]["labels"].get(key)
            if value is not None and self._last.get((name, key)) != value:
                self._last[name, key] = value
                self.seen.append((name, key, value))

    def stop(self) -> None:
        self._recorder.stop()


def test_what_requires_the_other_component_follows_it_node_by_node(
    story: Story, given: Given, when: When, then: Then
) -> None:
    driver = both_installed(story, given, then)
    driver.publish("2.0.0")
    driver.wait_until_published("2.0.0")
    story.create_version("2.0.0", spec=needs(DRIVER, ">=2"))
    then.the_version_is("2.0.0", "Published")

    when.the_rollout_changes(version="2.0.0")
    waits = then.the_rollout_is(
        "Progressing", where=lambda obj: "4 RequirementUnmet" in condition(obj, "Ready")["message"]
    )
    assert f"Rollout {DRIVER} wants 1.0.0" in condition(waits, "Ready")["message"]

    moves = Moves(story, [story.key, driver.key])
    driver.change(version="2.0.0")
    driver.becomes("Completed")
    then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["updated"] == 4)
    moves.stop()
    new = next(value for _, key, value in reversed(moves.seen) if key == driver.key)
    for node in story.nodes:
        ours = [i for i, (name, key, _) in enumerate(moves.seen) if (name, key) == (node, story.key)]
        arrived = moves.seen.index((node, driver.key, new))
        left = next(i for i in ours if moves.seen[i][2].startswith("to-"))
        assert arrived < left, f"on {node} the agent left before the driver was there: {moves.seen}"
    batches = {entry["batch"] for entry in story.results(2).values()}
    assert len(batches) > 1, "late batches, as nodes became ready for it"


def test_versions_that_need_each_other_first_are_told_as_a_deadlock_and_a_version_between_unties_it(
    story: Story, given: Given, when: When, then: Then
) -> None:
    driver = both_installed(story, given, then, size=2)
    story.create_version("2.0.0", spec={**needs(DRIVER, ">=2"), "stage": "Draft"})
    story.create_version("1.9.0")
    driver.publish("2.0.0")
    driver.wait_until_published("2.0.0")
    when.the_version_changes("2.0.0", stage="Published")
    then.the_version_is("2.0.0", "Published")
    then.the_version_is("1.9.0", "Published")
    # The driver's next version needs the agent's next one, which is there by now.
    driver.publish("2.1.0", needs("node-agent", ">=1.9"))
    driver.wait_until_published("2.1.0")

    when.the_rollout_changes(version="2.0.0")
    driver.change(version="2.1.0")
    told = then.the_rollout_is("Stalled", "DependencyDeadlock")
    message = condition(told, "Stalled")["message"]
    assert f"node-agent 2.0.0 (Rollout node-agent) needs {DRIVER} '>=2', and there is 1.0.0" in message
    assert f"{DRIVER} 2.1.0 (Rollout {DRIVER}) needs node-agent '>=1.9', and there is 1.0.0" in message
    assert "on 2 of 2 nodes" in message
    other = driver.becomes("Stalled", "DependencyDeadlock")
    assert "Rollout node-agent" in condition(other, "Stalled")["message"]

    when.the_rollout_changes(version="1.9.0")
    then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["updated"] == 2)
    driver.becomes("Completed", where=lambda obj: obj["status"]["run"]["updated"] == 2)
    when.the_rollout_changes(version="2.0.0")
    then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["updated"] == 2)


def test_a_way_back_that_would_break_the_other_component_is_not_taken_before_that_has_gone_back(
    story: Story, given: Given, when: When, then: Then
) -> None:
    driver = both_installed(story, given, then, size=2)
    given.published_versions("2.0.0")
    when.the_rollout_changes(version="2.0.0")
    then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["updated"] == 2)
    driver.publish("2.0.0", needs("node-agent", ">=2"))
    driver.wait_until_published("2.0.0")
    driver.change(version="2.0.0")
    driver.becomes("Completed", where=lambda obj: obj["status"]["run"]["updated"] == 2)

    when.the_rollout_changes(version="1.0.0")
    told = then.the_rollout_is(
        "Progressing", where=lambda obj: "2 RequiredByOther" in condition(obj, "Ready")["message"]
    )
    assert f"{DRIVER} 2.0.0 (Rollout {DRIVER})" in condition(told, "Ready")["message"]
    run = told["status"]["run"]["id"]
    assert {entry["reason"] for entry in story.results(run).values()} == {"RequiredByOther"}

    driver.change(version="1.0.0")
    driver.becomes("Completed", where=lambda obj: obj["status"]["run"]["updated"] == 2)
    then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["updated"] == 2)
