"""What people ask of a Rollout by annotations, on a real control plane, and who asks."""

import time
from typing import Any

import pytest

from e2e.story import Given, Story, Then, When, canary, rolling, step
from localcluster.apiclient import ApiError


def allow(story: Story, user: str, role: str) -> None:
    """Bind a ClusterRole to a user in the story's namespace."""
    story.client.create(
        f"/apis/rbac.authorization.k8s.io/v1/namespaces/{story.namespace}/rolebindings",
        {
            "metadata": {"name": f"{user}-{role}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        },
    )


def ask(when: When, kind: str, by: str, **rollback: Any) -> str:
    """Ask, as soon as the API server has heard of the user's rights."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return when.somebody_asks(kind, by, **rollback)
        except ApiError as error:
            if error.status != 403 or time.monotonic() > deadline:
                raise


def test_one_batch_goes_back_to_a_named_version_and_each_node_is_told_of(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0", "1.2.0")
    nodes = given.a_fleet(4, running="1.0.0", strategy=rolling(2))
    for version in ("1.1.0", "1.2.0"):
        when.the_rollout_changes(version=version)
        then.the_rollout_is("Completed")
        then.nodes_run(version)
    allow(story, "alice", "outrider-approver")
    second = sorted(name for name, result in story.results(3).items() if result["batch"] == 2)
    sick = second[0]
    given.agents_fail("never-ready", "1.0.0", [sick])
    when.the_rollout_changes(health={"timeoutSeconds": 8, "minReadySeconds": 0})
    then.the_rollout_is("Completed")

    nonce = ask(when, "rollback", "alice", run=3, batches=[2], version="1.0.0")
    then.the_request_is_answered("rollback", nonce)
    done = then.the_rollout_is("RolledBack", where=lambda obj: obj["status"]["run"]["state"] != "Running")
    run = done["status"]["run"]
    assert (run["id"], run["kind"], run["state"]) == (4, "Rollback", "PartiallySucceeded")
    assert (run["requestedBy"], run["fromVersion"], run["toVersion"]) == ("alice", "1.2.0", "1.0.0")
    results = then.the_records_say(4, {name: "Failed" if name == sick else "Succeeded" for name in second})
    assert results[sick]["reason"] == "HealthTimeout"
    then.nodes_run("1.0.0", second[1:])
    then.nodes_run("1.2.0", [name for name in nodes if name not in second])
    then.an_event_tells("RequestAccepted", "alice", "batch 2 of run 3", "to 1.0.0")
    shown = story.local.kubectl_run("get", "orb", "--namespace", story.namespace, "--no-headers")
    assert any(line.split()[:5] == ["node-agent-4-1", "Rollback", "1", "1.2.0", "1.0.0"] for line in shown.splitlines())

    nonce = ask(when, "rollback", "alice", run=3, batches=[9])
    then.the_request_is_answered("rollback", nonce, refused="run 3 has no batch 9")
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Completed", seconds=120)
    then.nodes_run("1.1.0")
    then.kstatus_is_clean()


def test_a_run_is_aborted_and_a_retry_brings_it_after_all(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(4, running="1.0.0", strategy=canary(step(1, soak=600), size=2))
    when.the_rollout_changes(version="1.1.0")
    then.the_counts_are(healthy=1)
    when.somebody_asks("abort")
    held = then.the_rollout_is("RolledBack")
    then.nodes_run("1.0.0")
    assert held["status"]["run"]["cause"] == "Aborted"
    # Without a name it says through which program.
    assert held["status"]["run"]["requestedBy"].startswith("(through ")

    when.the_rollout_changes(strategy=canary(step(1), size=2))
    allow(story, "alice", "outrider-approver")
    ask(when, "retry", "alice")
    done = then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["id"] == 4)
    then.nodes_run("1.1.0")
    assert (done["status"]["run"]["cause"], done["status"]["run"]["startedBy"]) == ("Retried", "alice")
    assert [batch["spec"]["step"] for batch in story.client.items(story.batches) if batch["spec"]["run"] == 4].count(1)


def test_an_approval_carries_the_name_of_who_gave_it_into_the_history(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0", "1.2.0")
    asking = {**step(1), "requireApproval": True}
    given.a_fleet(3, running="1.0.0", strategy=canary(asking, size=2))
    allow(story, "alice", "outrider-approver")
    allow(story, "bob", "edit")
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Waiting", "WaitingForApproval")
    with pytest.raises(ApiError, match="rollouts/approve"):
        when.somebody_asks("approve", "bob")
    ask(when, "approve", "alice")
    done = then.the_rollout_is("Completed")
    assert [(each["step"], each["by"]) for each in done["status"]["run"]["approvals"]] == [(1, "alice")]

    when.the_rollout_changes(version="1.2.0", strategy=rolling(3))
    done = then.the_rollout_is("Completed")
    assert [each["by"] for each in done["status"]["history"][0]["approvals"]] == ["alice"]
    nonce = ask(when, "approve", "alice")
    then.the_request_is_answered("approve", nonce, refused="there is nothing to approve")
