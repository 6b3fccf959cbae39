"""What a Rollout's pass sees of versions, nodes and other components: from objects as the API server has them."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from outrider.adapters.kube import Json
from outrider.api import names
from outrider.api.checks import HttpCheck
from outrider.api.errors import Stalling
from outrider.api.rollout import Target
from outrider.core import plan as actions
from outrider.core.plan import CreateRevision, Plan, RequestVerification
from outrider.core.preview import preview_rollout
from outrider.core.revision import hash_target
from outrider.core.rollout import plan_rollout
from outrider.core.snapshot import Measurement, Pod, RolloutSnapshot
from outrider.reconcile.gathering import Caches, Gatherer, Memory, Probed
from outrider.settings import Settings
from simulation.fleet import make_spec
from unit.emptycaches import empty_caches

NOW = datetime.now(UTC)
OTHER = names.assignment_key("fleet", "daemon")


@pytest.fixture
def caches() -> Caches:
    return empty_caches(NOW)


def gatherer(caches: Caches) -> Gatherer:
    return Gatherer(caches, Settings(fresh_seconds=300.0))


def metadata(name: str, **fields: Any) -> Json:
    return {"name": name, "namespace": "fleet", "uid": f"uid-{name}", "resourceVersion": "1", "generation": 1, **fields}


ROLLOUT: Json = {
    "metadata": metadata("agent", creationTimestamp="2026-01-01T00:00:00Z"),
    "spec": make_spec("1.1.0").to_api(),
}


def version(name: str, phase: str = "Published", **spec: Any) -> Json:
    component, _, number = name.rpartition("-")
    return {
        "metadata": metadata(name),
        "spec": {"component": component, "version": number, **spec},
        "status": {"observedGeneration": 1, "phase": phase, "reference": "r"},
    }


def daemonset(name: str, component: str, number: str, platforms: str = "") -> Json:
    labels = {
        names.LABEL_ROLLOUT: component,
        names.LABEL_COMPONENT: component,
        names.LABEL_ROLE: names.ROLE_REVISION,
        names.LABEL_REVISION: name,
        names.LABEL_VERSION: number,
    }
    return {"metadata": metadata(name, labels=labels, annotations={names.ANNOTATION_PLATFORMS: platforms}), "spec": {}}


async def test_rules_come_from_the_daemonset_and_the_version_and_neighbours_from_what_is_required(
    caches: Caches,
) -> None:
    requires = [{"component": "daemon", "versionRange": ">=2"}]
    caches.versions.put(version("agent-1.0.0", "Withdrawn"))
    caches.versions.put(version("agent-1.1.0", compatibility={"kernelVersion": ">=5.10", "requires": requires}))
    caches.versions.put(version("agent-9.0.0"))
    caches.daemonsets.put(daemonset("r0", "agent", "0.9.0", "linux/amd64"))
    caches.daemonsets.put(daemonset("r1", "agent", "1.0.0", "linux/amd64,linux/arm64"))
    caches.daemonsets.put(daemonset("r2", "agent", "1.1.0", "linux/amd64"))
    caches.daemonsets.put(daemonset("d1", "daemon", "2.0.0"))
    caches.daemonsets.put(daemonset("e1", "else", "1.0.0"))
    info = {"osImage": "Debian", "kernelVersion": "6.1.0-28-amd64", "kubeletVersion": "v1.31.2"}
    caches.nodes.put({"metadata": {"name": "n1", "uid": "u1", "resourceVersion": "1"}, "status": {"nodeInfo": info}})
    caches.nodes.put({"metadata": {"name": "n2", "uid": "u2", "resourceVersion": "1"}})
    seen = gatherer(caches).gather(ROLLOUT, Memory())
    assert {name: sorted(rules.platforms) for name, rules in seen.rules.items()} == {
        "r0": ["linux/amd64"],
        "r1": ["linux/amd64", "linux/arm64"],
        "r2": ["linux/amd64"],
    }
    assert seen.rules["r1"].only_platforms
    assert str(seen.rules["r2"].kernel) == ">=5.10"
    assert {name: state.phase for name, state in seen.versions.items()} == {"1.0.0": "Withdrawn", "1.1.0": "Published"}
    assert {name: (n.key, dict(n.versions)) for name, n in seen.neighbours.items()} == {
        "daemon": (OTHER, {"d1": "2.0.0"})
    }
    node = seen.nodes["n1"]
    assert (node.os_image, node.kernel_version, node.kubelet_version) == ("Debian", "6.1.0-28-amd64", "v1.31.2")
    assert seen.nodes["n2"].kernel_version == ""


async def test_changed_rules_are_read_again_and_a_revoked_stage_counts_at_once(caches: Caches) -> None:
    ours = gatherer(caches)
    caches.daemonsets.put(daemonset("r2", "agent", "1.1.0"))
    found = version("agent-1.1.0")
    caches.versions.put(found)
    assert ours.gather(ROLLOUT, Memory()).rules["r2"].only_platforms
    newer = found["metadata"] | {"generation": 2, "resourceVersion": "2"}
    spec = found["spec"] | {"stage": "Revoked", "compatibility": {"osImage": ["Debian*"]}}
    caches.versions.put(found | {"metadata": newer, "spec": spec})
    seen = ours.gather(ROLLOUT, Memory())
    assert seen.rules["r2"].os_images == ("Debian*",)
    assert seen.versions["1.1.0"].phase == "Revoked"


def plan(seen: RolloutSnapshot, *actions: Any) -> Plan:
    return Plan(actions=actions, status=seen.status)


async def test_a_verification_that_takes_longer_than_it_stays_fresh_counts_for_the_run_that_asked(
    caches: Caches,
) -> None:
    ours, memory = gatherer(caches), Memory()
    seen = ours.gather(ROLLOUT, memory)
    assert seen.verify_after is not None
    assert timedelta(seconds=299) < seen.now - seen.verify_after < timedelta(seconds=301)
    ours.remember_asking(seen, plan(seen, RequestVerification("agent-1.1.0")), memory)
    long_ago = NOW - timedelta(hours=1)
    memory.asked = seen.wanted, long_ago
    ours.remember_asking(seen, plan(seen, RequestVerification("agent-1.1.0")), memory)
    assert ours.gather(ROLLOUT, memory).verify_after == long_ago
    ours.remember_asking(seen, plan(seen, CreateRevision(seen.wanted)), memory)
    assert ours.gather(ROLLOUT, memory).verify_after == long_ago, "the run has not started yet"
    ours.remember_asking(seen, plan(seen), memory)
    assert ours.gather(ROLLOUT, memory).verify_after != long_ago, "it has: the next asks anew"


async def test_another_wish_asks_anew(caches: Caches) -> None:
    ours, memory = gatherer(caches), Memory()
    memory.asked = "another-revision", NOW - timedelta(hours=1)
    seen = ours.gather(ROLLOUT, memory)
    assert seen.verify_after is not None
    assert seen.now - seen.verify_after < timedelta(seconds=301)
    ours.remember_asking(seen, plan(seen, RequestVerification("agent-1.1.0")), memory)
    assert memory.asked == (seen.wanted, seen.now.replace(microsecond=0))


# --- who belongs to the fleet -----------------------------------------------------------------

KEY = names.assignment_key("fleet", "agent")
VERSIONS = itertools.count(10)


def put_node(caches: Caches, name: str, assignment: str | None = None, **labels: str) -> None:
    if assignment is not None:
        labels[KEY] = assignment
    newer = str(next(VERSIONS))
    caches.nodes.put({"metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": newer, "labels": labels}})


def rollout(name: str, born: int, pool: str | None = None, **fields: Any) -> Json:
    target = {"nodeSelector": {"matchLabels": {"pool": pool}}} if pool else {"all": True}
    spec = make_spec("1.1.0", target=target).to_api()
    return {"metadata": metadata(name, creationTimestamp=f"2026-01-0{born}T00:00:00Z", **fields), "spec": spec}


def joiners(rollout_name: str, target: str) -> Json:
    made = daemonset(f"{rollout_name}-join", "agent", "1.0.0")
    made["metadata"]["labels"] |= {names.LABEL_ROLLOUT: rollout_name, names.LABEL_ROLE: names.ROLE_JOINERS}
    made["metadata"]["resourceVersion"] = str(next(VERSIONS))
    made["metadata"]["annotations"][names.ANNOTATION_TARGET] = target
    return made


async def test_nodes_that_left_are_those_with_our_assignment_that_nobody_claims(caches: Caches) -> None:
    ours = rollout("agent", 2, "edge")
    caches.rollouts.put(ours)
    caches.rollouts.put(rollout("older", 1, "core"))
    caches.rollouts.put(rollout("younger", 3, "lab"))
    caches.daemonsets.put(daemonset("r1", "agent", "1.0.0"))
    put_node(caches, "member", "r1", pool="edge")
    put_node(caches, "left", "r1", pool="gone")
    put_node(caches, "left-between", "to-r1", pool="gone")
    put_node(caches, "left-rid", "none", pool="gone")
    put_node(caches, "older's", "r1", pool="core")
    put_node(caches, "younger's", "r1", pool="lab")
    put_node(caches, "excluded", "r1", pool="gone", **{"outrider.dev/exclude": "true"})
    put_node(caches, "a stranger's", "r9", pool="gone")
    put_node(caches, "nobody's", pool="gone")
    seen = gatherer(caches).gather(ours, Memory())
    assert seen.leavers == {"left", "left-between", "left-rid"}
    assert seen.members == {"member"}
    assert set(seen.nodes) == {"member", "left", "left-between", "left-rid", "older's", "younger's", "excluded"}


async def test_joiners_of_two_rollouts_are_told_apart_only_where_their_targets_cannot_overlap(caches: Caches) -> None:
    ours, other = rollout("agent", 2, "edge"), rollout("older", 1, "core")
    caches.rollouts.put(ours)
    caches.rollouts.put(other)
    target = hash_target(Target.model_validate(other["spec"]["target"]))
    caches.daemonsets.put(joiners("older", target))
    seen = gatherer(caches).gather(ours, Memory())
    assert (seen.shares_joiners, seen.joiners_elsewhere) == (False, False)
    caches.daemonsets.put(joiners("older", "of-an-earlier-target"))
    assert gatherer(caches).gather(ours, Memory()).joiners_elsewhere
    caches.daemonsets.put(joiners("nobody", target))
    assert gatherer(caches).gather(ours, Memory()).joiners_elsewhere
    everything = rollout("agent", 2)
    seen = gatherer(caches).gather(everything, Memory())
    assert (seen.shares_joiners, seen.joiners_elsewhere) == (True, True)


async def test_another_rollout_that_cannot_be_read_claims_nothing(caches: Caches) -> None:
    broken = rollout("older", 1)
    broken["spec"]["target"] = {"nodeNames": 7}
    caches.rollouts.put(broken)
    put_node(caches, "n1")
    assert gatherer(caches).gather(rollout("agent", 2), Memory()).members == {"n1"}


HOST = {"host": {"path": "/opt/agent"}}


@pytest.mark.parametrize(
    ("reason", "delivery", "of_type", "level"),
    [
        pytest.param("DeliveryMismatch", HOST, "Agent", "", id="an Agent as a Daemon"),
        pytest.param("HostPathForbidden", {"host": {"path": "/etc/agent"}}, "Daemon", "", id="a path outside"),
        pytest.param("PodSecurityForbids", HOST, "Daemon", "restricted", id="a namespace that forbids it"),
    ],
)
async def test_a_delivery_that_may_not_be_starts_nothing_and_is_told(
    caches: Caches, reason: str, delivery: Json, of_type: str, level: str
) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = version("agent-1.1.0", type=of_type)
    found["status"]["artifacts"] = [
        {
            "platform": "linux/amd64",
            "digest": "sha256:d",
            "size": 1,
            "reference": "r",
            "downloadURL": "u",
            "specHash": "h",
            "signature": {"keyFingerprint": "k", "format": "Detached", "verifiedAt": now},
        }
    ]
    caches.versions.put(found)
    ours = rollout("agent", 1)
    ours["spec"]["delivery"] = delivery
    put_node(caches, "n1", None)
    looking = gatherer(caches)
    looking.observing_since = NOW
    seen = looking.gather(ours, Memory(), pod_security=level)
    made = plan_rollout(seen)
    assert not [a for a in made.actions if isinstance(a, CreateRevision | actions.Assign | actions.CreateBatch)]
    assert made.status.run is None
    stalled = {condition.type: condition for condition in made.status.conditions}["Stalled"]
    assert (stalled.status, stalled.reason) == ("True", reason)
    assert [event.reason for event in made.events] == [reason]
    told = preview_rollout(seen)
    assert (told.outcome, told.reason, told.message) == ("Blocked", reason, stalled.message)


async def test_a_delivery_that_may_be_starts_a_revision(caches: Caches) -> None:
    found = version("agent-1.1.0", type="Daemon")
    caches.versions.put(found)
    ours = rollout("agent", 1)
    ours["spec"]["delivery"] = HOST
    put_node(caches, "n1", None)
    assert gatherer(caches).gather(ours, Memory(), pod_security="privileged").hindrance is None


async def test_a_spec_that_cannot_be_read_is_said_with_its_fields(caches: Caches) -> None:
    ours = rollout("agent", 1)
    ours["spec"]["strategy"] = {"type": "OfALaterVersion"}
    with pytest.raises(Stalling, match=r"strategy\.type"):
        gatherer(caches).gather(ours, Memory())


@pytest.mark.parametrize("policy", ["Orphan", "Delete"])
async def test_a_rollout_that_cannot_be_read_is_deleted_all_the_same(caches: Caches, policy: str) -> None:
    deleted = "2026-01-05T00:00:00Z"
    ours = rollout("agent", 1, deletionTimestamp=deleted, finalizers=[names.FINALIZER])
    ours["spec"] |= {"strategy": {"type": "OfALaterVersion"}, "deletionPolicy": policy}
    ours["status"] = {"run": {"id": "seven"}}
    caches.daemonsets.put(daemonset("r1", "agent", "1.0.0"))
    put_node(caches, "n1", "r1")
    put_node(caches, "n2", "to-r1")
    found = Memory()
    for _ in range(6):
        made = plan_rollout(gatherer(caches).gather(ours, found))
        for action in made.actions:
            match action:
                case actions.Assign(name, _, _, after):
                    put_node(caches, name, after)
                case actions.DropFinalizer():
                    labels = [node.labels.get(KEY) for node in caches.nodes.values()]
                    assert labels == (["r1", "r1"] if policy == "Orphan" else [None, None])
                    return
                case _:
                    pass
    pytest.fail("the finalizer stays")


async def test_in_a_namespace_that_goes_every_label_of_the_component_is_ours(caches: Caches) -> None:
    ours = rollout("agent", 1, "edge", deletionTimestamp="2026-01-05T00:00:00Z")
    caches.rollouts.put(ours)
    put_node(caches, "n1", "whose-daemonset-is-gone", pool="gone")
    put_node(caches, "n2", pool="gone")
    assert set(gatherer(caches).gather(ours, Memory(), namespace_terminating=True).nodes) == {"n1"}


async def test_what_an_agent_said_is_shown_while_its_check_and_its_run_are_the_same(caches: Caches) -> None:
    check = HttpCheck(port=8080)
    told = Measurement("Pass", "it answered 200", NOW, NOW, NOW)
    labels = {names.LABEL_COMPONENT: "agent", names.LABEL_REVISION: "r2"}
    caches.pods.put({"metadata": metadata("agent-x", labels=labels), "spec": {"nodeName": "n1"}, "status": {}})
    memory, ours = Memory(), gatherer(caches)

    def look(http: HttpCheck = check, state: str = "Running") -> Pod:
        run = {"id": 2, "kind": "Rollout", "state": state, "version": "1.0.0", "revision": "r2"}
        spec = make_spec("1.1.0", health={"http": http.to_api()}).to_api()
        status = {"run": {**run, "startedAt": "2026-01-01T00:00:00Z"}}
        [pod] = ours.gather({**ROLLOUT, "spec": spec, "status": status}, memory).pods["n1"]
        return pod

    assert look().check is None
    memory.probes["uid-agent-x"] = Probed(check, told)
    shown = look()
    assert shown.check == told
    assert look() is shown, "put together once"
    assert look(HttpCheck(port=8081)).check is None
    memory.probes["uid-agent-x"] = Probed(check, told)
    assert look(state="Succeeded").check is None
    assert memory.probes == {}, "nobody is asked any more"


def preparing(name: str, node: str, *, ready: bool) -> Json:
    labels = {
        names.LABEL_ROLLOUT: "agent",
        names.LABEL_COMPONENT: "agent",
        names.LABEL_ROLE: names.ROLE_PREPARE,
        names.LABEL_REVISION: "r2",
    }
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "metadata": metadata(name, labels=labels),
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "conditions": conditions},
    }


async def test_what_prepares_nodes_is_kept_apart_from_agents_and_revisions(caches: Caches) -> None:
    body = daemonset("agent-prepare-x", "agent", "1.1.0")
    body["metadata"]["labels"] |= {names.LABEL_ROLE: names.ROLE_PREPARE, names.LABEL_REVISION: "r2"}
    body["metadata"]["annotations"] = {names.ANNOTATION_PREPARES: "n1,n2,n3"}
    caches.daemonsets.put(body)
    for name in ("n1", "n2", "n3", "n4"):
        caches.nodes.put({"metadata": {"name": name, "uid": name, "resourceVersion": "1"}})
    caches.pods.put(preparing("p1", "n1", ready=True))
    caches.pods.put(preparing("p2", "n2", ready=False))
    running = {"id": 1, "kind": "Rollout", "state": "Running", "version": "1.1.0", "revision": "r2"}
    rollout = ROLLOUT | {"status": {"run": {**running, "startedAt": "2026-01-01T00:00:00Z", "nodes": 4}}}
    memory = Memory()
    seen = gatherer(caches).gather(rollout, memory)
    assert seen.pods == {}
    assert seen.revisions == {}
    assert {name: [pod.name for pod in pods] for name, pods in seen.preparing.items()} == {"n1": ["p1"], "n2": ["p2"]}
    assert {each.name: each.nodes for each in seen.prepare_sets.values()} == {"agent-prepare-x": {"n1", "n2", "n3"}}
    assert seen.unprepared_since.keys() == {"n2", "n3"}
    again = gatherer(caches).gather(rollout, memory)
    assert again.unprepared_since == seen.unprepared_since, "since then"
    paused = {**rollout, "spec": {**rollout["spec"], "paused": True}}
    later = gatherer(caches).gather(paused, memory)
    assert min(later.unprepared_since.values()) > max(seen.unprepared_since.values()), "a pause does not count"
