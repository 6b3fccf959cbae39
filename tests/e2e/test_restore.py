"""A backup that is restored, as docs/installation.md says: the fleet goes on where it was, and nobody is restarted."""

import json
from collections.abc import Iterable

from e2e.conftest import OPERATOR, E2eCluster
from e2e.story import ROLLOUT, Given, Story, Then, When, canary, step, window
from outrider.api import names

AS_OPERATOR = (f"--as={OPERATOR}", "--as-group=system:masters")
LOST = ("uid", "resourceVersion", "managedFields", "ownerReferences")
"""What an object that is created anew must not bring along."""


class Backup:
    """What `kubectl get --output json` gave, and the commands that bring it back."""

    def __init__(self, cluster: E2eCluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = ("--namespace", namespace)
        self.objects = self._save("componentversions.outrider.dev,rollouts.outrider.dev")
        self.daemonsets = self._save("daemonsets", "--selector=app.kubernetes.io/managed-by=outrider")

    def _save(self, *what: str) -> str:
        saved = json.loads(self._cluster.kubectl("get", *self._namespace, *what, "--output=json").stdout)
        for item in saved["items"]:
            for name in LOST:
                item["metadata"].pop(name, None)
        return json.dumps(saved)

    def restore(self, *, daemonsets: bool = False) -> None:
        apply = ("apply", "--server-side", "--force-conflicts", "--filename=-")
        if daemonsets:
            self._cluster.kubectl("create", "--filename=-", *AS_OPERATOR, input=self.daemonsets)
        self._cluster.kubectl(*apply, input=self.objects)
        self._cluster.kubectl(
            *apply, "--subresource=status", f"--field-manager={names.FIELD_MANAGER_STATUS}", input=self.objects
        )


def lose(story: Story, cluster: E2eCluster, *kinds: str) -> None:
    """Let all objects of some kinds vanish, with nobody there who would do anything about it."""
    for kind in kinds:
        for name in names_of(story, cluster, kind):
            which = (kind, name, f"--namespace={story.namespace}")
            if kind != "daemonsets":
                finalizers = json.dumps({"metadata": {"finalizers": None}})
                cluster.kubectl("patch", *which, "--type=merge", f"--patch={finalizers}", *AS_OPERATOR)
            # Agents live on where their DaemonSets are lost, and records go with their Rollout.
            cascade = "orphan" if kind == "daemonsets" else "background"
            cluster.kubectl("delete", *which, f"--cascade={cascade}", *AS_OPERATOR)


def names_of(story: Story, cluster: E2eCluster, kind: str) -> Iterable[str]:
    listed = cluster.kubectl("get", kind, f"--namespace={story.namespace}", "--output=name").stdout.split()
    return [name.partition("/")[2] for name in listed]


def pods_of(story: Story) -> set[str]:
    return {pod["metadata"]["uid"] for pod in story.client.items(story.pods)}


def test_what_the_cluster_lost_comes_back_and_nobody_is_restarted(
    story: Story, cluster: E2eCluster, given: Given, when: When, then: Then
) -> None:
    """Nodes, agents and DaemonSets are there, and nothing that says what they are.

    Versions stay: nothing but the deletion of their CRD gets past the policy that guards them.
    """
    given.published_versions("1.0.0", "1.1.0", "1.2.0")
    nodes = given.a_fleet(4, running="1.0.0", strategy=window(2))
    when.the_rollout_changes(version="1.1.0")
    before = then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["id"] == 2)["status"]
    then.nodes_run("1.1.0", nodes)
    story.operator.terminate()
    backup, agents = Backup(cluster, story.namespace), pods_of(story)
    lose(story, cluster, "rollouts.outrider.dev")
    story.api.wait(story.batches, lambda found: not found, "the records went with the Rollout", each=lambda _: None)

    backup.restore()
    story.record()
    story.operator.start()
    after = then.the_rollout_is("Completed", where=lambda obj: obj["status"]["observedGeneration"] == 1)["status"]
    assert {name: after["run"][name] for name in ("id", "kind", "version", "state")} == {
        name: before["run"][name] for name in ("id", "kind", "version", "state")
    }
    assert after["revisions"] == before["revisions"]
    assert [record["id"] for record in after["history"]] == [record["id"] for record in before["history"]]
    then.no_node_was_moved()
    assert pods_of(story) == agents, "nobody was restarted"

    when.the_rollout_changes(version="1.2.0")
    then.the_rollout_is("Completed", where=lambda obj: obj["status"]["run"]["id"] == before["run"]["id"] + 1)
    then.nodes_run("1.2.0", nodes)


def test_a_run_that_a_backup_was_made_in_the_middle_of_goes_on_and_can_go_back(
    story: Story, cluster: E2eCluster, given: Given, when: When, then: Then
) -> None:
    """The DaemonSets are lost as well: those of the backup are what nodes can go back to."""
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(4, running="1.0.0", strategy=canary(step(1, soak=600), size=3))
    when.the_rollout_changes(version="1.1.0")
    then.the_counts_are(healthy=1)
    story.operator.terminate()
    backup = Backup(cluster, story.namespace)
    lose(story, cluster, "rollouts.outrider.dev", "daemonsets")

    backup.restore(daemonsets=True)
    story.operator.start()
    then.the_rollout_is("Progressing", where=lambda obj: obj["status"]["run"]["id"] == 2)
    moved = [node for node, value in story.assignments().items() if value == story.revision("1.1.0")]
    assert len(moved) == 1
    then.nodes_run("1.1.0", moved)
    when.somebody_asks("abort")
    then.the_rollout_is("RolledBack")
    then.nodes_run("1.0.0", nodes)
    assert story.rollout()["metadata"]["name"] == ROLLOUT
