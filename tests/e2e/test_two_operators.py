"""Two operators: one acts, the other stands by and takes over."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.operator_process import OperatorProcess, complaints
from e2e.story import LEASES, SYSTEM, Given, Story, Then, When, agent_template, lease_holder, rolling


@pytest.fixture
def second(story: Story, tmp_path: Path) -> Iterator[OperatorProcess]:
    """A second operator; the first leads."""
    assert lease_holder(story.api) == "first"
    process = OperatorProcess(
        "second",
        story.local.kubeconfig_for_service_account(SYSTEM, "outrider"),
        story.local.registry,
        tmp_path / "second.log",
    )
    process.start()
    process.wait_for_log("stands by as second")
    yield process
    # The first one leads again for the tests to come.
    process.terminate()
    print(f"--- the second operator's log\n{process.log_since()}")  # noqa: T201 (shown if the test fails)
    if not story.operator.is_running():
        story.operator.start()
    assert lease_holder(story.api) == "first"
    assert complaints(process.log_since()) == []


def test_while_one_acts_the_other_stands_by(
    story: Story, given: Given, when: When, then: Then, second: OperatorProcess
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(4, running="1.0.0", strategy=rolling(1))
    old = story.revision("1.0.0")
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Completed")
    new = story.revision("1.1.0")
    assert story.history is not None
    story.history.check(nodes, [old, f"to-{new}", new])
    assert lease_holder(story.api) == "first"
    assert "Leading" not in second.log_since()
    assert "Watching" not in second.log_since()


def test_when_the_leader_is_killed_the_other_takes_over_within_15_seconds(
    story: Story, given: Given, when: When, then: Then, second: OperatorProcess
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(6, running="1.0.0", template=agent_template(realistic=True), strategy=rolling(2))
    old = story.revision("1.0.0")
    when.the_rollout_changes(version="1.1.0")
    then.the_assignment_becomes(
        lambda seen: any((value or "").startswith("to-") for value in seen.values()), "a node is between"
    )
    killed = time.monotonic()
    story.operator.kill()
    assert lease_holder(story.api, unless="first") == "second"
    seconds = time.monotonic() - killed
    assert seconds < 15, f"took {seconds:.1f} s"

    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")
    new = story.revision("1.1.0")
    assert story.history is not None
    story.history.check(nodes, [old, f"to-{new}", new])
    assert second.is_running()


def test_a_leader_that_is_asked_to_end_hands_over_at_once(
    story: Story, given: Given, when: When, then: Then, second: OperatorProcess
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(6, running="1.0.0", template=agent_template(realistic=True), strategy=rolling(2))
    old = story.revision("1.0.0")
    when.the_rollout_changes(version="1.1.0")
    then.the_assignment_becomes(
        lambda seen: any((value or "").startswith("to-") for value in seen.values()), "a node is between"
    )
    took = story.operator.terminate()
    ended = time.monotonic()
    assert story.operator.wait(0) == 0
    assert lease_holder(story.api, unless="first") == "second"
    handed = time.monotonic() - ended
    # A replica that stands by asks every 2 s.
    assert handed < 4, f"the process ended after {took:.1f} s, the Lease was taken {handed:.1f} s later"

    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")
    new = story.revision("1.1.0")
    assert story.history is not None
    story.history.check(nodes, [old, f"to-{new}", new])
    assert second.is_running()


def test_a_leader_that_hangs_and_wakes_up_ends_itself_and_touches_nothing(
    story: Story, given: Given, when: When, then: Then, second: OperatorProcess
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(4, running="1.0.0", strategy=rolling(1))
    old = story.revision("1.0.0")
    story.operator.freeze()
    when.the_rollout_changes(version="1.1.0")
    assert lease_holder(story.api, unless="first") == "second"
    then.the_rollout_is("Completed")
    story.operator.thaw()
    assert story.operator.wait(20) == 1
    new = story.revision("1.1.0")
    assert story.history is not None
    story.history.check(nodes, [old, f"to-{new}", new])
    lease = story.client.get(f"{LEASES}/outrider")
    assert lease["spec"]["holderIdentity"].startswith("second_")
    assert second.is_running()
