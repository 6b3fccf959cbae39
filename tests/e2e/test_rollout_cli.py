"""`outrider plan`, `status` and the verbs, as people run them: processes with a kubeconfig."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2e.conftest import E2eCluster
from e2e.operator_process import SOURCES
from e2e.story import NODES, POOL, Given, Story, Then, When, canary, rolling, step
from outrider.api import names


@dataclass
class Ran:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def outrider(kubeconfig: Path, *arguments: str, given: str | None = None) -> Ran:
    """Run a command as a process."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCES), "KUBECONFIG": str(kubeconfig.absolute())}
    process = subprocess.run(
        [sys.executable, "-m", "outrider", *arguments],
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in process.stderr, process.stderr
    return Ran(process.returncode, process.stdout, process.stderr)


def versions_of_everything(story: Story) -> dict[str, str]:
    """Return the resourceVersions of whatever a Rollout has to do with (nodes by their labels: heartbeats go on)."""
    found = {
        f"{path}/{item['metadata']['name']}": str(item["metadata"]["resourceVersion"])
        for path in (
            story.rollouts,
            story.versions,
            story.batches,
            f"/apis/apps/v1/namespaces/{story.namespace}/daemonsets",
            f"/api/v1/namespaces/{story.namespace}/configmaps",
        )
        for item in story.client.items(path)
    }
    for node in story.client.items(NODES, labelSelector=f"{POOL}={story.name}"):
        found[node["metadata"]["name"]] = str(sorted(node["metadata"]["labels"].items()))
    return found


def test_what_the_preview_says_is_what_then_happens_and_it_changes_nothing(
    story: Story, given: Given, when: When, then: Then, cluster: E2eCluster
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(6, running="1.0.0", strategy=canary(step(1, soak=1), size=2))
    story.inject("not-ready", nodes=nodes[:1])
    story.api.wait(
        NODES,
        lambda found: any(
            c["type"] == "Ready" and c["status"] != "True" for c in found[nodes[0]]["status"]["conditions"]
        ),
        "a node is not Ready",
        each=lambda _: None,
        labelSelector=f"{POOL}={story.name}",
    )
    # The operator has told all that there is to tell.
    then.the_version_is("1.0.0", "Published", where=lambda obj: obj["status"].get("usage", {}).get("nodes") == 6)
    before = versions_of_everything(story)
    admin = cluster.kubeconfig
    where = ("-n", story.namespace)

    ran = outrider(admin, "plan", "node-agent", *where, "--version", "1.1.0", "-o", "json")
    assert ran.code == 0, ran.err
    said = ran.json
    assert (said["outcome"], said["run"]) == ("Completes", 2)
    assert [len(batch["nodes"]) for batch in said["batches"]] == [1, 2, 2]
    assert said["batches"][0]["gates"] == ["soak 1 s"]
    assert [(out["node"], out["reason"]) for out in said["leftOut"]] == [(nodes[0], "NodeNotReady")]
    assert said["moves"] == [{"from": "1.0.0", "to": "1.1.0", "nodes": 5}]

    # The same by a file, as it would be applied.
    body = story.rollout()
    body = {key: body[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": "node-agent"}}
    body["spec"]["version"] = "1.1.0"
    by_file = outrider(admin, "plan", "-f", "-", *where, "-o", "yaml", given=yaml.safe_dump(body))
    assert by_file.code == 0, by_file.err
    assert yaml.safe_load(by_file.out)["batches"] == said["batches"]
    text = outrider(admin, "plan", "node-agent", *where, "--version", "1.1.0").out
    assert "run 2 would complete" in text
    assert "NodeNotReady" in text
    assert versions_of_everything(story) == before, "nothing was changed"

    # What cannot be.
    unknown = outrider(admin, "plan", "node-agent", *where, "--version", "9.9.9")
    assert (unknown.code, "BLOCKED, VersionNotFound" in unknown.out) == (1, True)
    refused = outrider(
        admin, "plan", "-f", "-", *where, given=yaml.safe_dump({**body, "spec": {**body["spec"], "component": "other"}})
    )
    assert refused.code == 1
    assert "this field cannot be changed" in refused.err
    missing = outrider(admin, "plan", "nobody", *where)
    assert (missing.code, "there are node-agent" in missing.err) == (3, True)
    assert versions_of_everything(story) == before, "nothing was changed"

    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["skipped"] == 1)
    happened: dict[int, list[str]] = {}
    stored = story.client.items(story.batches, labelSelector=f"{names.LABEL_RUN}=2")
    for batch in sorted(stored, key=lambda b: b["spec"]["batch"]):
        states = {result["name"]: result["state"] for result in batch["status"]["nodes"]}
        moved = [entry["name"] for entry in batch["spec"]["nodes"] if states[entry["name"]] != "Skipped"]
        if moved:
            happened[batch["spec"]["batch"]] = moved
    assert happened == {batch["batch"]: [move["node"] for move in batch["nodes"]] for batch in said["batches"]}


def test_a_user_who_may_not_see_enough_is_told_which_right_is_missing(story: Story, given: Given) -> None:
    given.published_versions("1.0.0")
    given.a_fleet(2, running="1.0.0")
    where = ("-n", story.namespace)
    story.client.create(f"/api/v1/namespaces/{story.namespace}/serviceaccounts", {"metadata": {"name": "viewer"}})
    subject = {"kind": "ServiceAccount", "name": "viewer", "namespace": story.namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    viewer = story.local.kubeconfig_for_service_account(story.namespace, "viewer")

    nothing = outrider(viewer, "plan", "node-agent", *where)
    assert nothing.code == 3
    assert f"you may not list rollouts.outrider.dev in namespace {story.namespace}" in nothing.err
    story.client.create(
        f"/apis/rbac.authorization.k8s.io/v1/namespaces/{story.namespace}/rolebindings",
        {"metadata": {"name": "viewer"}, "roleRef": role, "subjects": [subject]},
    )
    no_nodes = outrider(viewer, "plan", "node-agent", *where)
    assert no_nodes.code == 3
    assert "you may not list nodes in the whole cluster" in no_nodes.err
    seen = outrider(viewer, "status", "node-agent", *where)
    assert seen.code == 0, seen.err
    refused = outrider(viewer, "pause", "node-agent", *where)
    assert refused.code == 3
    assert "you may not patch rollouts.outrider.dev" in refused.err


def test_a_person_pauses_and_resumes_and_sees_how_it_stands(
    story: Story, given: Given, when: When, then: Then, cluster: E2eCluster
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(4, running="1.0.0", strategy=rolling(2))
    admin, where = cluster.kubeconfig, ("-n", story.namespace)
    ran = outrider(admin, "pause", "node-agent", *where)
    assert (ran.code, ran.err) == (0, "")
    assert "pause node-agent: done" in ran.out
    assert story.rollout()["spec"]["paused"] is True
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Paused", "PausedBySpec")
    shown = outrider(admin, "status", "node-agent", *where).out
    assert "Rollout " in shown
    assert ": Paused" in shown
    assert "wants      node-agent 1.1.0" in shown
    assert "run        1, to 1.0.0: Succeeded" in shown
    assert "4/4" in shown
    ran = outrider(admin, "resume", "node-agent", *where)
    assert ran.code == 0
    then.the_rollout_is("Completed")
    shown = outrider(admin, "status", "node-agent", *where, "--nodes").out
    assert "4 of 4 nodes updated" in shown
    assert all(name in shown for name in story.nodes)
    listed = outrider(admin, "status", *where).out
    assert "node-agent" in listed
    assert "Completed" in listed


def test_a_person_approves_takes_back_and_tries_again_and_is_told_what_cannot_be(
    story: Story, given: Given, when: When, then: Then, cluster: E2eCluster
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(3, running="1.0.0", strategy=canary({**step(1), "requireApproval": True}, size=2))
    admin, where = cluster.kubeconfig, ("-n", story.namespace)
    ran = outrider(admin, "approve", "node-agent", *where)
    assert (ran.code, "approve node-agent: REFUSED" in ran.err) == (1, True), ran
    planned = outrider(admin, "plan", "node-agent", *where, "--version", "1.1.0").out
    assert "approval: waits for a person" in planned
    when.the_rollout_changes(version="1.1.0")
    story.api.wait_for(
        story.rollouts,
        "node-agent",
        lambda obj: (obj["status"].get("run") or {}).get("awaitsApproval") == 1,
        "an approval is waited for",
    )
    ran = outrider(admin, "approve", "node-agent", *where)
    assert (ran.code, ran.err) == (0, ""), ran
    done = then.the_rollout_is("Completed")
    [approval] = done["status"]["run"]["approvals"]
    assert approval["by"], "the API server's name of who approved"
    shown = outrider(admin, "status", "node-agent", *where).out
    assert f"approved   step 1 by {approval['by']}" in shown

    ran = outrider(admin, "rollback", "node-agent", *where)
    assert ran.code == 0, ran
    then.the_rollout_is("RolledBack")
    then.nodes_run("1.0.0")
    shown = outrider(admin, "status", "node-agent", *where).out
    assert ": RolledBack" in shown
    ran = outrider(admin, "rollback", "node-agent", *where, "--run", "77")
    assert (ran.code, "REFUSED" in ran.err) == (1, True), ran

    ran = outrider(admin, "retry", "node-agent", *where)
    assert ran.code == 0, ran
    story.api.wait_for(
        story.rollouts,
        "node-agent",
        lambda obj: (obj["status"].get("run") or {}).get("awaitsApproval") == 1,
        "an approval is waited for again",
    )
    ran = outrider(admin, "abort", "node-agent", *where)
    assert ran.code == 0, ran
    then.the_rollout_is("RolledBack")
    then.nodes_run("1.0.0")
