"""A DaemonSet of somebody's is taken over, its nodes move, and it is given back: with the real DaemonSet controller."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.story import NODES, POOL, Given, Story, Then, When, canary, full, rolling, step
from e2e.watching import PATIENCE, Object, Recorder, condition
from outrider.api import names
from outrider.core.adoption import change_form
from outrider.core.snapshot import Legacy
from outrider.reconcile.adoption import project_legacy

OLD = "old-agent"
ADOPTION: Object = {"daemonSet": OLD}
GIVE_BACK: Object = {"daemonSet": OLD, "giveBack": True}


class OldAgent:
    """The DaemonSet that ran the agent before, seen by whoever owns it."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self.path = f"/apis/apps/v1/namespaces/{story.namespace}/daemonsets"
        self.overlaps: list[str] = []
        self.started: dict[str, list[str]] = {}
        self._live: dict[str, dict[str, str]] = {}
        self._recorder: Recorder | None = None

    def install(self, **pod: Any) -> None:
        """Create it, wait until its pods are Ready, and from then on note every pod."""
        story = self._story
        template: Object = {
            "metadata": {"labels": {"app": OLD}},
            "spec": {
                "nodeSelector": {POOL: story.name},
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "agent", "image": "old:dev"}],
                **pod,
            },
        }
        body: Object = {
            "metadata": {"name": OLD},
            "spec": {"selector": {"matchLabels": {"app": OLD}}, "template": template},
        }
        story.client.create(self.path, body)
        self.runs_on(story.nodes)
        self._recorder = Recorder(story.api, story.pods, self._note)

    def _note(self, kind: str, pod: Object) -> None:
        node, uid = pod["spec"].get("nodeName"), pod["metadata"]["uid"]
        if not node:
            return
        who = pod["metadata"]["labels"].get(names.LABEL_REVISION, OLD)
        live = self._live.setdefault(node, {})
        if kind == "DELETED" or pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
            live.pop(uid, None)
            return
        if uid not in live:
            self.started.setdefault(node, []).append(who)
        live[uid] = who
        if len(live) > 1:
            self.overlaps.append(f"{node}: {sorted(live.values())}")

    def stop(self) -> None:
        """Stop taking notes."""
        if self._recorder is not None:
            self._recorder.stop()
            self._recorder = None

    def body(self) -> Object:
        """The DaemonSet as it is."""
        return self._story.client.get(f"{self.path}/{OLD}")

    def uids(self) -> dict[str, str]:
        """Its pods by node."""
        found = self._story.client.items(self._story.pods, labelSelector=f"app={OLD}")
        return {pod["spec"]["nodeName"]: pod["metadata"]["uid"] for pod in found}

    def runs_on(self, nodes: list[str], *, seconds: float = PATIENCE) -> None:
        """On these nodes, and on no other, is a Ready pod of it."""

        def ready(found: dict[str, Object]) -> bool:
            there = sorted(pod["spec"].get("nodeName") or "" for pod in found.values())
            return there == sorted(nodes) and all(
                condition(pod, "Ready").get("status") == "True" for pod in found.values()
            )

        what = f"{len(nodes)} nodes have a Ready pod of {OLD}"
        self._story.api.wait(
            self._story.pods, ready, what, seconds=seconds, each=lambda _: None, labelSelector=f"app={OLD}"
        )

    def write(self, spec: Object, manager: str) -> None:
        """Write its spec as somebody with this field manager."""
        path = f"{self.path}/{OLD}?fieldManager={manager}"
        self._story.client.raw("PATCH", path, {"spec": spec}, "application/merge-patch+json")


@pytest.fixture
def old_agent(story: Story) -> Iterator[OldAgent]:
    """The DaemonSet that ran the agent before."""
    old = OldAgent(story)
    yield old
    old.stop()


def state(obj: Object) -> str:
    return str(((obj.get("status") or {}).get("adoption") or {}).get("state"))


def is_soaking(obj: Object) -> bool:
    return "is healthy and watched until" in condition(obj, "Ready")["message"]


def a_canary_on_one_of_four(
    story: Story, given: Given, when: When, then: Then, old: OldAgent
) -> tuple[str, dict[str, str]]:
    """Four nodes of the old agent are taken over, and one runs 1.0.0; returns it, and the old pods as they were."""
    given.published_versions("1.0.0")
    story.add_nodes(4)
    old.install()
    before = old.uids()
    when.the_rollout_is_created("1.0.0", strategy=canary(step(1, soak=600), size=2), adoption=ADOPTION)
    then.the_rollout_is("Progressing", where=is_soaking)
    values = then.the_assignment_becomes(
        lambda seen: sorted(map(str, seen.values()))[1:] == ["legacy"] * 3, "three nodes are still on the old agent"
    )
    [moved] = [node for node, value in values.items() if value != "legacy"]
    then.nodes_run("1.0.0", [moved])
    assert state(story.rollout()) == "Adopted"
    assert {n: uid for n, uid in old.uids().items() if n != moved} == {n: u for n, u in before.items() if n != moved}
    assert old.overlaps == []
    return moved, before


def test_a_daemonset_is_taken_over_without_a_restart_and_given_back_half_way(
    story: Story, given: Given, when: When, then: Then, old_agent: OldAgent
) -> None:
    moved, before = a_canary_on_one_of_four(story, given, when, then, old_agent)
    spec = old_agent.body()["spec"]
    assert spec["updateStrategy"] == {"type": "OnDelete"}
    [record] = story.results(1).values()
    assert (record["from"], record["back"]) == ("legacy", "legacy")

    when.the_rollout_changes(adoption=GIVE_BACK)
    then.the_rollout_is("Completed", "GivenBack")
    then.the_assignment_becomes(lambda seen: set(seen.values()) == {None}, "no node has a label")
    old_agent.runs_on(story.nodes)
    assert {n: u for n, u in old_agent.uids().items() if n != moved} == {n: u for n, u in before.items() if n != moved}
    assert old_agent.overlaps == []
    body = old_agent.body()
    assert body["spec"]["updateStrategy"]["type"] == "RollingUpdate"
    assert "affinity" not in body["spec"]["template"]["spec"]
    assert not [name for name in body["metadata"]["annotations"] if name.startswith("outrider.dev/")]
    assert {entry["to"] for entry in story.results(2).values()} == {"legacy"}
    then.kstatus_is_clean()


def test_all_nodes_move_joining_ones_get_the_stable_version_and_all_go_back(
    story: Story, given: Given, when: When, then: Then, old_agent: OldAgent
) -> None:
    given.published_versions("1.0.0")
    nodes = story.add_nodes(4)
    terms = [
        {"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]},
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]},
    ]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    old_agent.install(affinity={"nodeAffinity": required})
    original = copy.deepcopy(old_agent.body()["spec"])
    when.the_rollout_is_created("1.0.0", strategy=rolling(2), adoption=ADOPTION)
    done = then.the_rollout_is("Completed")
    then.nodes_run("1.0.0")
    assert "delete it, then remove spec.adoption" in done["status"]["adoption"]["message"]
    then.an_event_tells("Adopted", OLD)
    joiners = then_joiners_serve(story, old_agent)
    assert joiners
    joined = when.nodes_join(1)
    then.nodes_run("1.0.0", joined)
    assert OLD not in old_agent.started[joined[0]], "a node that joins gets the stable version, not the old agent"

    when.the_rollout_changes(adoption=GIVE_BACK)
    then.the_rollout_is("Completed", "GivenBack")
    old_agent.runs_on([*nodes, *joined])
    assert old_agent.overlaps == []
    assert old_agent.body()["spec"] == original
    assert set(story.assignments().values()) == {None}
    assert story.client.items(old_agent.path, labelSelector=f"{names.LABEL_ROLE}={names.ROLE_JOINERS}") == []


def then_joiners_serve(story: Story, old: OldAgent) -> Object:
    """The joiners' DaemonSet appears, and only then."""
    found = story.api.wait(
        old.path,
        lambda found: [obj for obj in found.values() if obj["metadata"]["labels"].get(names.LABEL_ROLE) == "joiners"],
        "the joiners' DaemonSet",
        each=lambda _: None,
        labelSelector=f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}",
    )
    affinity = old.body()["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    wanted = {"key": story.key, "operator": "In", "values": ["legacy"]}
    assert all(wanted in term["matchExpressions"] for term in terms), "the old agent has given them up before"
    first: Object = found[0]
    return first


def test_a_first_version_that_fails_brings_its_nodes_back_to_the_old_agent(
    story: Story, given: Given, when: When, then: Then, old_agent: OldAgent
) -> None:
    given.published_versions("1.0.0")
    nodes = story.add_nodes(3)
    old_agent.install()
    before = old_agent.uids()
    given.agents_fail("crash-loop", "1.0.0")
    when.the_rollout_is_created("1.0.0", strategy=canary(step(1)), adoption=ADOPTION)
    then.the_rollout_is("RolledBack")
    old_agent.runs_on(nodes)
    assert set(story.assignments().values()) == {"legacy"}
    after = old_agent.uids()
    assert sum(after[node] != before[node] for node in nodes) == 1, "the canary's only"
    assert old_agent.overlaps == []


@pytest.mark.parametrize("what", ["strategy and affinity", "annotations and all"])
def test_an_owner_who_takes_the_patch_back_is_named_and_it_is_made_again(
    story: Story, given: Given, when: When, then: Then, old_agent: OldAgent, what: str
) -> None:
    moved, _ = a_canary_on_one_of_four(story, given, when, then, old_agent)
    if what == "annotations and all":
        body = old_agent.body()
        body["metadata"] = {"name": OLD, "resourceVersion": body["metadata"]["resourceVersion"]}
        body["spec"]["updateStrategy"] = {"type": "RollingUpdate"}
        del body["spec"]["template"]["spec"]["affinity"]
        story.client.raw("PUT", f"{old_agent.path}/{OLD}?fieldManager=argocd-controller", body)
    else:
        affinity = {"template": {"spec": {"affinity": None}}, "updateStrategy": {"type": "RollingUpdate"}}
        old_agent.write(affinity, "argocd-controller")
    reverted = then.the_rollout_is_reverted()
    assert "argocd-controller took back" in reverted["message"]
    then.an_event_tells("AdoptionReverted", "argocd-controller")
    # What came to the moved node meanwhile has gone again, and the old agent stays on the others.
    old_agent.runs_on([node for node in story.nodes if node != moved])
    then.nodes_run("1.0.0", [moved])
    assert old_agent.body()["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert story.assignments()[moved] == story.revision("1.0.0")
    when.the_rollout_changes(strategy=full())
    then.the_rollout_is("Completed")
    then.nodes_run("1.0.0")


def test_deleted_half_way_all_stays_and_a_new_rollout_takes_it_over(
    story: Story, given: Given, when: When, then: Then, old_agent: OldAgent
) -> None:
    moved, _ = a_canary_on_one_of_four(story, given, when, then, old_agent)
    before = old_agent.uids()
    when.the_rollout_is_deleted("Foreground")
    then.an_event_tells("StaysAdopted", OLD)
    assert old_agent.uids() == before
    then.nodes_run("1.0.0", [moved])

    when.the_rollout_is_created("1.0.0", strategy=full(), adoption=ADOPTION)
    then.the_rollout_is("Completed")
    then.nodes_run("1.0.0")
    assert old_agent.overlaps == []
    assert old_agent.uids() == {}


def test_deleted_before_anything_moved_the_daemonset_is_as_it_was(
    story: Story, given: Given, when: When, then: Then, old_agent: OldAgent
) -> None:
    given.published_versions("1.0.0")
    story.add_nodes(3)
    old_agent.install()
    before, original = old_agent.uids(), copy.deepcopy(old_agent.body()["spec"])
    when.the_rollout_is_created("1.0.0", adoption=ADOPTION, paused=True)
    then.the_rollout_is("Paused", where=lambda obj: state(obj) == "Adopted")
    then.the_assignment_becomes(lambda seen: set(seen.values()) == {"legacy"}, "all nodes are labelled")
    when.the_rollout_is_deleted()
    assert set(story.assignments().values()) == {None}
    assert old_agent.body()["spec"] == original
    assert old_agent.uids() == before


def test_killed_between_the_patch_and_the_labels_the_operator_goes_on(
    story: Story, given: Given, when: When, then: Then, old_agent: OldAgent
) -> None:
    given.published_versions("1.0.0")
    nodes = story.add_nodes(3)
    old_agent.install()
    before = old_agent.uids()
    story.operator.kill()
    # As it stands when the process ends right after the patch: no label, and nothing of it in the status.
    when.the_rollout_is_created("1.0.0", strategy=canary(step(1, soak=600)), adoption=ADOPTION)
    seen = project_legacy(old_agent.body())
    legacy = Legacy(**{field: value for field, value in seen.items() if field != "selector"})
    operations: Any = list(change_form(legacy, "node-agent", story.key, "Shared"))
    story.client.raw("PATCH", f"{old_agent.path}/{OLD}", operations, "application/json-patch+json")
    story.operator.start()
    then.the_rollout_is("Progressing", where=is_soaking)
    after = old_agent.uids()
    assert len(after) == 2
    assert after.items() <= before.items()
    story.operator.kill()
    when.the_rollout_changes(adoption=GIVE_BACK)
    story.operator.start()
    then.the_rollout_is("Completed", "GivenBack")
    old_agent.runs_on(nodes)
    assert old_agent.overlaps == []


def test_what_cannot_be_taken_over_is_refused_and_nothing_is_touched(
    story: Story, given: Given, when: When, then: Then, old_agent: OldAgent
) -> None:
    given.published_versions("1.0.0")
    nodes = story.add_nodes(2)
    when.the_rollout_is_created("1.0.0", adoption=ADOPTION)
    refused = then.the_rollout_is("Stalled", "AdoptionRefused")
    assert "does not exist" in condition(refused, "Ready")["message"]
    story.client.merge(f"{NODES}/{nodes[0]}", {"metadata": {"labels": {"old": "yes"}}})
    story.client.create(
        old_agent.path,
        {
            "metadata": {"name": OLD},
            "spec": {
                "selector": {"matchLabels": {"app": OLD}},
                "template": {
                    "metadata": {"labels": {"app": OLD}},
                    "spec": {
                        "nodeSelector": {"old": "yes"},
                        "tolerations": [{"operator": "Exists"}],
                        "containers": [{"name": "agent", "image": "old:dev"}],
                    },
                },
            },
        },
    )
    then.the_rollout_is(
        "Stalled",
        "AdoptionRefused",
        where=lambda obj: "does not serve 1 of the 2 nodes" in condition(obj, "Ready")["message"],
    )
    assert old_agent.body()["metadata"]["generation"] == 1
    assert set(story.assignments().values()) == {None}
    # As soon as it may be taken over, it is.
    story.client.merge(f"{old_agent.path}/{OLD}", {"spec": {"template": {"spec": {"nodeSelector": None}}}})
    story.client.merge(
        f"{old_agent.path}/{OLD}", {"spec": {"template": {"spec": {"nodeSelector": {POOL: story.name}}}}}
    )
    then.the_rollout_is("Completed")
    then.nodes_run("1.0.0")
