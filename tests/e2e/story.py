"""Given, When, Then: end-to-end tests as prose. One `Story` per test: its namespace, its nodes, its key, its files."""

import contextlib
import hashlib
import json
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from e2e.agents import PATH, Agents
from e2e.files import P256, Answer, FileServer, Signer
from e2e.operator_process import OperatorProcess
from e2e.repository import Repository
from e2e.watching import (
    GROUP_PATH,
    PATIENCE,
    Api,
    Object,
    Recorder,
    assert_kstatus_clean,
    condition,
    is_observed,
)
from localcluster import Cluster
from localcluster.apiclient import ApiError, in_parallel
from localcluster.faults import Fault
from outrider.api import names

COMPONENT = "node-agent"
ROLLOUT = "node-agent"
NODES = "/api/v1/nodes"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/outrider-system/leases"
SYSTEM = "outrider-system"
SECRETS = f"/api/v1/namespaces/{SYSTEM}/secrets"
POOL = "e2e.outrider.test/pool"
TIMING = "fake.outrider.test/timing"


def full(max_in_flight: int | str = "100%", tolerance: int | str = 0) -> Object:
    """Strategy: all nodes in one batch."""
    return {"type": "Full", "full": {"maxInFlight": max_in_flight}, "failureTolerance": tolerance}


def rolling(size: int | str = 1, interval: int = 0, tolerance: int | str = 0) -> Object:
    """Strategy: batch after batch."""
    return {
        "type": "Rolling",
        "rolling": {"batchSize": size, "batchIntervalSeconds": interval},
        "failureTolerance": tolerance,
    }


def window(size: int | str = 1, tolerance: int | str = 0) -> Object:
    """Strategy: a sliding window."""
    return {"type": "Rolling", "rolling": {"maxUnavailable": size}, "failureTolerance": tolerance}


def canary(*steps: Object, size: int | str = 1, interval: int = 0, tolerance: int | str = 0) -> Object:
    """Strategy: canary steps, then rolling."""
    return {
        "type": "Canary",
        "canary": {"steps": list(steps)},
        "rolling": {"batchSize": size, "batchIntervalSeconds": interval},
        "failureTolerance": tolerance,
    }


def step(nodes: int | str = 1, soak: int = 0, tolerance: int | str = 0) -> Object:
    """One canary step."""
    return {"nodes": nodes, "soakSeconds": soak, "failureTolerance": tolerance}


def agent_template(realistic: bool = False, **container: Any) -> Object:
    """The agent's pod. With realistic timing it takes 1 to 3 s to stop and 3 to 5 s to start."""
    pod: Object = {
        "metadata": {"annotations": {TIMING: "realistic"} if realistic else {}},
        "spec": {
            "tolerations": [{"operator": "Exists"}],
            "containers": [
                {"name": "agent", "image": "agent:dev", "command": ["/opt/agent/node-agent"], **container},
            ],
        },
    }
    return pod


def http_check(agents: Agents, **check: Any) -> Object:
    """Health: agents are asked themselves."""
    return {"path": f"/{PATH}", "port": agents.port, **check}


def name_story(test: pytest.Item) -> str:
    """Return a name for what a test owns: the beginning of its own, and what no other run of it has."""
    words = re.sub(r"[^a-z0-9]+", "-", test.name.removeprefix("test_").lower())
    return f"{words[:20].strip('-')}-{zlib.crc32(f'{test.nodeid}{time.time()}'.encode()):08x}"


def digest_of(content: bytes) -> str:
    """Return the digest of a file."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def content_of(version: str) -> bytes:
    """Return the bytes of a version: a script that says its number."""
    return f"#!/bin/sh\necho node-agent {version}\n".encode()


class Story:
    """What one test owns, and the words that all three roles share."""

    def __init__(
        self, name: str, api: Api, local: Cluster, operator: OperatorProcess, files: FileServer, folder: Path
    ) -> None:
        self.name = name
        self.namespace = name
        self.api = api
        self.local = local
        self.client = api.client
        self.operator = operator
        self.files = files
        self.folder = folder
        self.key = names.assignment_key(self.namespace, COMPONENT)
        self.repository = Repository(local, f"outrider/{self.namespace}/{COMPONENT}")
        self.nodes: list[str] = []
        self.signers: dict[str, Signer] = {}
        self.published: list[str] = []
        self.history: NodeHistory | None = None
        self.agents_on_air: Agents | None = None
        self.addresses: dict[str, str] = {}
        self._faults: list[Fault] = []
        self._secrets: set[str] = set()
        self.client.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})

    # -- paths

    @property
    def versions(self) -> str:
        """The collection of ComponentVersions."""
        return f"{GROUP_PATH}/namespaces/{self.namespace}/componentversions"

    @property
    def rollouts(self) -> str:
        """The collection of Rollouts."""
        return f"{GROUP_PATH}/namespaces/{self.namespace}/rollouts"

    @property
    def batches(self) -> str:
        """The collection of RolloutBatches."""
        return f"{GROUP_PATH}/namespaces/{self.namespace}/rolloutbatches"

    @property
    def jobs(self) -> str:
        """The collection of Jobs."""
        return f"/apis/batch/v1/namespaces/{self.namespace}/jobs"

    @property
    def pods(self) -> str:
        """The collection of pods."""
        return f"/api/v1/namespaces/{self.namespace}/pods"

    # -- facts

    def rollout(self, name: str = ROLLOUT) -> Object:
        """Return the Rollout."""
        return self.client.get(f"{self.rollouts}/{name}")

    def version(self, version: str) -> Object:
        """Return a ComponentVersion."""
        return self.client.get(f"{self.versions}/{COMPONENT}-{version}")

    def assignments(self) -> dict[str, str | None]:
        """Return the assignment of each of the story's nodes."""
        found = self.client.items(NODES, labelSelector=f"{POOL}={self.name}")
        return {node["metadata"]["name"]: node["metadata"]["labels"].get(self.key) for node in found}

    def agents(self) -> dict[str, list[Object]]:
        """Return the agents' pods by node."""
        found: dict[str, list[Object]] = {}
        for pod in self.client.items(self.pods):
            found.setdefault(pod["spec"].get("nodeName") or "", []).append(pod)
        return found

    def revision(self, version: str) -> str:
        """Return the revision of a version; fails unless exactly one exists."""
        selector = f"{names.LABEL_VERSION}={version},{names.LABEL_ROLE}={names.ROLE_REVISION}"
        found = self.client.items(f"/apis/apps/v1/namespaces/{self.namespace}/daemonsets", labelSelector=selector)
        revisions = {daemonset["metadata"]["labels"][names.LABEL_REVISION] for daemonset in found}
        assert len(revisions) == 1, f"revisions of {version}: {revisions}"
        return str(revisions.pop())

    def results(self, run: int) -> dict[str, Object]:
        """Return what the RolloutBatches of a run say of each node: from, to, state, reason; the last batch counts."""
        found: dict[str, Object] = {}
        stored = self.client.items(self.batches, labelSelector=f"{names.LABEL_RUN}={run}")
        for batch in sorted(stored, key=lambda b: (b["spec"]["batch"], b["spec"].get("page", 1))):
            states = {entry["name"]: entry for entry in (batch.get("status") or {}).get("nodes") or []}
            for entry in batch["spec"]["nodes"]:
                found[entry["name"]] = {**entry, "batch": batch["spec"]["batch"], **states.get(entry["name"], {})}
        return found

    def events(self, reason: str) -> list[Object]:
        """Return the events of that reason in the namespace."""
        found = self.client.items(f"/api/v1/namespaces/{self.namespace}/events")
        return [event for event in found if event["reason"] == reason]

    # -- building

    def signer(self, name: str = "release", *options: str) -> Signer:
        """Return the key pair of that name, made if need be."""
        if name not in self.signers:
            self.signers[name] = Signer(self.folder, name, *(options or P256))
        return self.signers[name]

    def trust(
        self, name: str = "release", *options: str, content: str | None = None, annotations: Object | None = None
    ) -> None:
        """Put a public key (or whatever `content` is) into a trust Secret, good for this story's namespace only."""
        body = {
            "metadata": {
                "name": f"{self.name}-{name}",
                "labels": {names.LABEL_TRUST_KEY: "true"},
                "annotations": {names.ANNOTATION_KEY_NAMESPACES: self.namespace, **(annotations or {})},
            },
            "stringData": {f"{name}.pub": content or self.signer(name, *options).public},
        }
        self._secrets.add(name)
        self.client.create(SECRETS, body)

    def distrust(self, name: str = "release") -> None:
        """Delete a trust Secret."""
        self.client.delete(f"{SECRETS}/{self.name}-{name}")

    def change_trust(self, name: str = "release", **annotations: str | None) -> None:
        """Annotate a trust Secret under our prefix (`not_after="…"`), or take an annotation away."""
        changes = {f"{names.GROUP}/{key.replace('_', '-')}": value for key, value in annotations.items()}
        self.client.merge(f"{SECRETS}/{self.name}-{name}", {"metadata": {"annotations": changes}})

    def change_version(self, version: str, **spec: Any) -> None:
        """Change fields of a ComponentVersion's spec."""
        self.client.merge(f"{self.versions}/{COMPONENT}-{version}", {"spec": spec})

    def change_artifact(self, version: str, **changes: Any) -> None:
        """Replace fields of a ComponentVersion's one artifact."""
        operations = [{"op": "add", "path": f"/spec/artifacts/0/{key}", "value": new} for key, new in changes.items()]
        path = f"{self.versions}/{COMPONENT}-{version}"
        self.client.raw("PATCH", path, operations, "application/json-patch+json")  # type: ignore[arg-type]

    def annotate_version(self, version: str, annotation: str, value: str) -> None:
        """Annotate a ComponentVersion."""
        change = {"metadata": {"annotations": {annotation: value}}}
        self.client.merge(f"{self.versions}/{COMPONENT}-{version}", change)

    def serve(self, version: str, content: bytes, answer: Answer | None = None) -> str:
        """Serve the file of a version, or another answer instead; returns the file's SHA-256."""
        self.files.answers[f"{self.name}/{version}"] = answer or Answer(content)
        return hashlib.sha256(content).hexdigest()

    def source(self, version: str, **http: Any) -> Object:
        """Return where the file of a version is served, as a version's source."""
        return {"http": {"url": self.files.url(f"{self.name}/{version}"), **http}}

    def create_version(
        self,
        version: str,
        answer: Answer | None = None,
        *,
        content: bytes | None = None,
        key: str = "release",
        spec: Object | None = None,
        **changes: Any,
    ) -> bytes:
        """Serve a file and create its ComponentVersion; `changes` override its one artifact, `spec` the rest.

        Returns the bytes.
        """
        content = content_of(version) if content is None else content
        artifact = {
            "platform": {"os": "linux", "arch": "amd64"},
            "fileName": "node-agent",
            "sha256": self.serve(version, content, answer),
            "source": self.source(version),
            **changes,
        }
        artifact.setdefault("signature", {"inline": self.signer(key).sign(content)})
        artifact = {field: value for field, value in artifact.items() if value is not None}
        body = {
            "apiVersion": names.API_VERSION,
            "kind": "ComponentVersion",
            "metadata": {"name": f"{COMPONENT}-{version}"},
            "spec": {"component": COMPONENT, "version": version, "artifacts": [artifact], **(spec or {})},
        }
        self.client.create(self.versions, body)
        return content

    def apply_rollout(self, version: str, *, name: str = ROLLOUT, **spec: Any) -> None:
        """Create the Rollout, or another one; `spec` overrides its fields."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": "Rollout",
            "metadata": {"name": name},
            "spec": {
                "component": COMPONENT,
                "version": version,
                "target": {"nodeSelector": {"matchLabels": {POOL: self.name}}},
                "template": agent_template(),
                "delivery": {"volume": {"mountPath": "/opt/agent", "containers": ["agent"]}},
                "strategy": full(),
                "health": {"timeoutSeconds": 60, "minReadySeconds": 0},
                **spec,
            },
        }
        self.client.create(self.rollouts, body)

    def change_rollout(self, **spec: Any) -> None:
        """Change fields of the Rollout's spec; a strategy is replaced as a whole."""
        operations = [{"op": "add", "path": f"/spec/{field}", "value": value} for field, value in spec.items()]
        self.client.raw(
            "PATCH",
            f"{self.rollouts}/{ROLLOUT}",
            operations,  # type: ignore[arg-type]  # a JSON patch is a list
            "application/json-patch+json",
        )

    def add_nodes(self, count: int, labels: Mapping[str, str] | None = None) -> list[str]:
        """Add fake nodes of this story."""
        first = len(self.nodes) + 1
        added = [f"{self.name}-{index:04d}" for index in range(first, first + count)]
        self.nodes += added
        if self.agents_on_air is not None:
            on_air = self.agents_on_air
            self.addresses |= {name: on_air.address(index) for index, name in enumerate(added, start=first)}
        self.local.add_fake_nodes(added, labels={POOL: self.name, **(labels or {})}, addresses=self.addresses)
        return added

    def inject(self, behaviour: str, **where: Any) -> Fault:
        """Let nodes, or pods on them, fail; healed when the test ends at the latest."""
        fault = self.local.inject(behaviour, **where)
        self._faults.append(fault)
        return fault

    def record(self) -> None:
        """From now on note every assignment of every node, and every agent's pod."""
        self.history = NodeHistory(self)

    # -- the end

    def end(self) -> None:
        """Give back what the test took."""
        if self.history is not None:
            self.history.stop()
        if self.agents_on_air is not None:
            self.agents_on_air.stop()
        for fault in self._faults:
            fault.remove()
        self.files.start()
        self.local.start_registry()
        for rollout in self.client.items(self.rollouts):
            self.client.delete(f"{self.rollouts}/{rollout['metadata']['name']}")
        self.client.delete(f"/api/v1/namespaces/{self.namespace}")
        for name in self._secrets:
            self.distrust(name)
        in_parallel(self.local.remove_node, self.nodes)


class NodeHistory:
    """Every assignment that each node of a story has had, in order, and every agent's pod."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self.assignments: dict[str, list[str | None]] = {}
        self.overlaps: list[str] = []
        self.started: dict[str, list[str]] = {}
        self.most_between = 0
        """How many nodes at most were between two revisions at the same time."""
        self._between: set[str] = set()
        self._live: dict[str, dict[str, str]] = {}
        self._recorders = [
            Recorder(story.api, NODES, self._note_node, labelSelector=f"{POOL}={story.name}"),
            Recorder(story.api, story.pods, self._note_pod, labelSelector=names.LABEL_REVISION),
        ]

    def _note_node(self, kind: str, obj: Object) -> None:
        value = obj["metadata"]["labels"].get(self._story.key)
        seen = self.assignments.setdefault(obj["metadata"]["name"], [])
        if kind != "DELETED" and (not seen or seen[-1] != value):
            seen.append(value)
        if kind != "DELETED" and (value or "").startswith(names.ASSIGNMENT_LEAVING):
            self._between.add(obj["metadata"]["name"])
            self.most_between = max(self.most_between, len(self._between))
        else:
            self._between.discard(obj["metadata"]["name"])

    def _note_pod(self, kind: str, obj: Object) -> None:
        node, uid = obj["spec"].get("nodeName"), obj["metadata"]["uid"]
        if not node:
            return
        live = self._live.setdefault(node, {})
        if kind == "DELETED" or obj.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
            live.pop(uid, None)
            return
        if uid not in live:
            self.started.setdefault(node, []).append(obj["metadata"]["labels"][names.LABEL_VERSION])
        live[uid] = obj["metadata"]["labels"][names.LABEL_REVISION]
        if len(set(live.values())) > 1:
            self.overlaps.append(f"{node}: {sorted(set(live.values()))}")

    def stop(self) -> None:
        """Stop recording."""
        for recorder in self._recorders:
            recorder.stop()
        self._recorders = []

    def check(self, nodes: Iterable[str], *ways: Sequence[str | None]) -> None:
        """Check that each node's assignments went one of these ways, and that no node ever ran two revisions."""
        wrong = {
            name: seen for name in nodes if (seen := self.assignments.get(name, [])) not in [list(w) for w in ways]
        }
        assert not wrong, f"nodes that went another way than one of {ways}: {wrong}"
        assert not self.overlaps, f"two revisions at once: {self.overlaps}"


class Given:
    """What is so before the test begins."""

    def __init__(self, story: Story) -> None:
        self._story = story

    def a_trusted_key(self, name: str = "release", *options: str) -> None:
        """A public key lies in a trust Secret."""
        self._story.trust(name, *options)

    def published_versions(self, *versions: str) -> None:
        """Versions that were published before."""
        if "release" not in self._story.signers:
            self._story.trust()
        for version in versions:
            self._story.create_version(version)
        for version in versions:
            Then(self._story).the_version_is(version, "Published")

    def a_fleet(self, size: int, running: str | None = None, setup: Object | None = None, **spec: Any) -> list[str]:
        """Nodes, and on each the agent in this version, if one is named; from here on everything is recorded.

        `spec` is the Rollout's; its strategy is for what comes next. The set-up is all at once, or as `setup` says.
        """
        story = self._story
        nodes = story.add_nodes(size)
        if running is not None:
            if f"{COMPONENT}-{running}" not in {v["metadata"]["name"] for v in story.client.items(story.versions)}:
                self.published_versions(running)
            story.apply_rollout(running, **{**spec, "strategy": setup or full()})
            Then(story).the_rollout_is("Completed", seconds=max(PATIENCE, size))
            if "strategy" in spec:
                story.change_rollout(strategy=spec["strategy"])
                Then(story).the_rollout_is("Completed")
        story.record()
        return nodes

    def agents_that_answer(self) -> Agents:
        """At each node that comes an agent answers HTTP, at the node's address: its pod has to be in its network."""
        self._story.agents_on_air = Agents()
        return self._story.agents_on_air

    def agents_fail(self, behaviour: str, version: str, nodes: Sequence[str] | None = None) -> Fault:
        """The agents of that version behave badly, on all nodes or on some."""
        story = self._story
        return story.inject(
            behaviour, namespace=story.namespace, pod_labels={names.LABEL_VERSION: version}, nodes=nodes
        )


class When:
    """What somebody does, or what happens."""

    def __init__(self, story: Story) -> None:
        self._story = story

    def a_version_is_created(self, version: str, answer: Answer | None = None, **changes: Any) -> bytes:
        """Somebody serves a file and creates its ComponentVersion."""
        return self._story.create_version(version, answer, **changes)

    def the_version_changes(self, version: str, **spec: Any) -> None:
        """Somebody changes a version's spec, such as its stage."""
        self._story.change_version(version, **spec)

    def the_version_is_signed_again(self, version: str, key: str, content: bytes | None = None) -> None:
        """Its author signs a version again, with another key."""
        content = content_of(version) if content is None else content
        self._story.change_artifact(version, signature={"inline": self._story.signer(key).sign(content)})

    def somebody_asks_to_look_again(self, version: str) -> None:
        """Somebody annotates a version with the request to verify it, or to try again.

        What was verified within this very second counts as verified: status tells the time to the second.
        """
        for artifact in (self._story.version(version).get("status") or {}).get("artifacts") or []:
            proven = _signature(artifact).get("verifiedAt")
            while proven is not None and time.time() < datetime.fromisoformat(proven).timestamp() + 1:
                time.sleep(0.05)
        self._story.annotate_version(version, names.ANNOTATION_RECONCILE, str(time.time_ns()))

    @contextlib.contextmanager
    def the_bytes_rot(self, version: str) -> Iterator[str]:
        """Bytes of a version's file change on the registry's disk, for a while; gives the file's digest.

        The registry keeps a file once, whoever has it: no other story may have the same.
        """
        digest: str = self._story.version(version)["status"]["artifacts"][0]["digest"]
        file = self._story.repository.blob_file(digest)
        whole = file.read_bytes()
        file.write_bytes(whole[:-2] + b"!\n")
        try:
            yield digest
        finally:
            file.write_bytes(whole)

    def a_key_comes(self, name: str, **options: Any) -> None:
        """Whoever keeps the keys adds one."""
        self._story.trust(name, **options)

    def a_key_goes(self, name: str) -> None:
        """Whoever keeps the keys takes one away."""
        self._story.distrust(name)

    def a_version_is_deleted(self, version: str) -> str:
        """Somebody deletes a version; returns what the API server said against it."""
        try:
            self._story.client.raw("DELETE", f"{self._story.versions}/{COMPONENT}-{version}")
        except ApiError as error:
            return str(error)
        return ""

    def the_rollout_is_created(self, version: str, **spec: Any) -> None:
        """Somebody creates the Rollout."""
        self._story.apply_rollout(version, **spec)

    def the_rollout_changes(self, **spec: Any) -> None:
        """Somebody changes the Rollout's spec."""
        self._story.change_rollout(**spec)

    def somebody_asks(self, kind: str, by: str | None = None, **rollback: Any) -> str:
        """Somebody asks for something by an annotation, as the user `by` and in his name; returns the nonce."""
        nonce = str(time.time_ns())
        asked, who = names.request_annotations(kind)
        annotations = {asked: json.dumps({"id": nonce, **rollback}) if kind == "rollback" else nonce}
        if by is not None:
            annotations[who] = by
        path = f"{self._story.rollouts}/{ROLLOUT}"
        change: Object = {"metadata": {"annotations": annotations}}
        self._story.client.raw("PATCH", path, change, "application/merge-patch+json", by)
        return nonce

    def the_rollout_is_deleted(self, propagation: str = "Background") -> None:
        """Somebody deletes the Rollout, and it goes."""
        story = self._story
        story.client.delete(f"{story.rollouts}/{ROLLOUT}", propagationPolicy=propagation)
        story.api.wait(story.rollouts, lambda found: ROLLOUT not in found, "the deleted Rollout is gone")

    def an_agents_pod_is_deleted(self, node: str) -> str:
        """Somebody deletes the agent's pod on a node; returns its UID."""
        story = self._story
        pod = next(iter(story.agents()[node]))
        story.client.delete(f"{story.pods}/{pod['metadata']['name']}")
        return str(pod["metadata"]["uid"])

    def nodes_join(self, count: int = 1) -> list[str]:
        """New nodes join the fleet."""
        return self._story.add_nodes(count)


class Then:
    """What must come out."""

    def __init__(self, story: Story) -> None:
        self._story = story

    def the_version_is(
        self,
        version: str,
        phase: str,
        reason: str | None = None,
        *,
        seconds: float = PATIENCE,
        never: str | None = None,
        where: Callable[[Object], bool] = lambda _: True,
    ) -> Object:
        """A version reaches a phase, with that reason of Ready; and it never is in the phase `never` before.

        `where` may ask for more.
        """
        story = self._story

        def reached(obj: Object) -> bool:
            seen = (obj.get("status") or {}).get("phase")
            assert never is None or seen != never, f"{version} became {never}"
            ready = condition(obj, "Ready")
            right = is_observed(obj) and seen == phase and (reason is None or ready.get("reason") == reason)
            return right and where(obj)

        what = f"version {version} is {phase}" + (f" because of {reason}" if reason else "")
        obj = story.api.wait_for(story.versions, f"{COMPONENT}-{version}", reached, what, seconds=seconds)
        if phase == "Published":
            assert condition(obj, "Ready")["status"] == "True"
        return obj

    def the_version_is_gone(self, version: str, *, seconds: float = PATIENCE) -> None:
        """There is no such version any more."""
        name = f"{COMPONENT}-{version}"
        self._story.api.wait(
            self._story.versions, lambda found: name not in found, f"version {version} is gone", seconds=seconds
        )

    def the_key_in_status_is(self, version: str, key: str, phase: str = "Published") -> Object:
        """Status names the fingerprint of that key."""
        fingerprint = self._story.signer(key).fingerprint

        def named(obj: Object) -> bool:
            return [_signature(one).get("keyFingerprint") for one in obj["status"]["artifacts"]] == [fingerprint]

        return self.the_version_is(version, phase, where=named)

    def the_rollout_is(
        self,
        phase: str,
        reason: str | None = None,
        *,
        name: str = ROLLOUT,
        seconds: float = PATIENCE,
        where: Callable[[Object], bool] = lambda _: True,
    ) -> Object:
        """The Rollout reaches a phase for its present spec, with that reason of Ready; `where` may ask for more."""
        story = self._story

        def reached(obj: Object) -> bool:
            if not is_observed(obj) or obj["status"].get("phase") != phase:
                return False
            return (reason is None or condition(obj, "Ready").get("reason") == reason) and where(obj)

        what = f"the Rollout is {phase}" + (f" because of {reason}" if reason else "")
        obj = story.api.wait_for(story.rollouts, name, reached, what, seconds=seconds)
        ready = condition(obj, "Ready")["status"]
        stalled = bool(condition(obj, "Stalled"))
        assert (ready == "True") == (phase == "Completed"), obj["status"]
        assert stalled == (phase in {"Stalled", "RolledBack"}), obj["status"]
        assert bool(condition(obj, "Reconciling")) == (phase in {"Progressing", "RollingBack", "Waiting", "Deleting"})
        return obj

    def the_rollout_is_reverted(self, *, seconds: float = PATIENCE) -> Object:
        """The Rollout says that somebody took back what a DaemonSet that it took over needs; returns the condition."""
        story = self._story
        obj = story.api.wait_for(
            story.rollouts,
            ROLLOUT,
            lambda obj: bool(condition(obj, "AdoptionReverted")),
            "a revert is told",
            seconds=seconds,
        )
        return condition(obj, "AdoptionReverted")

    def the_request_is_answered(self, kind: str, nonce: str, *, refused: str | None = None) -> Object:
        """The status echoes a request; it was met, or refused with these words."""
        story = self._story

        def answered(obj: Object) -> bool:
            return bool(((obj.get("status") or {}).get("lastHandled") or {}).get(kind) == nonce)

        obj = story.api.wait_for(story.rollouts, ROLLOUT, answered, f"the request to {kind} is answered")
        answer = obj["status"].get("lastRefused") or {}
        if refused is None:
            assert answer.get("nonce") != nonce, answer
        else:
            assert answer.get("nonce") == nonce, obj["status"]
            assert refused in answer["message"], answer
            self.an_event_tells("RequestRefused", refused)
        return obj

    def the_counts_are(self, seconds: float = PATIENCE, **counts: int) -> Object:
        """The newest run's counts become these."""
        story = self._story

        def holds(obj: Object) -> bool:
            run = (obj.get("status") or {}).get("run") or {}
            return all(run.get(name) == value for name, value in counts.items())

        return story.api.wait_for(story.rollouts, ROLLOUT, holds, f"the run's counts are {counts}", seconds=seconds)

    def nodes_run(self, version: str, nodes: Iterable[str] | None = None, *, seconds: float = PATIENCE) -> None:
        """Nodes (default: all) are assigned to the version, and a Ready agent of it, and no other, is there."""
        story = self._story
        wanted = set(story.nodes if nodes is None else nodes)
        revision = story.revision(version)

        def assigned(found: dict[str, Object]) -> bool:
            return all(
                name in found and found[name]["metadata"]["labels"].get(story.key) == revision for name in wanted
            )

        def served(found: dict[str, Object]) -> bool:
            agents: dict[str, list[Object]] = {}
            for pod in found.values():
                agents.setdefault(pod["spec"].get("nodeName") or "", []).append(pod)
            return all(
                len(agents.get(name, [])) == 1
                and agents[name][0]["metadata"]["labels"].get(names.LABEL_REVISION) == revision
                and condition(agents[name][0], "Ready").get("status") == "True"
                for name in wanted
            )

        selector = f"{POOL}={story.name}"
        story.api.wait(
            NODES,
            assigned,
            f"{len(wanted)} nodes are assigned to {version}",
            seconds=seconds,
            each=_ignore,
            labelSelector=selector,
        )
        story.api.wait(
            story.pods, served, f"{len(wanted)} nodes have a Ready agent of {version}", seconds=seconds, each=_ignore
        )

    def the_assignment_becomes(
        self, matches: Callable[[dict[str, str | None]], bool], what: str, seconds: float = PATIENCE
    ) -> dict[str, str | None]:
        """The assignments of the story's nodes, by name, satisfy a condition; returns them."""
        story = self._story

        def holds(found: dict[str, Object]) -> dict[str, str | None] | None:
            values = {name: node["metadata"]["labels"].get(story.key) for name, node in found.items()}
            return values if matches(values) else None

        return story.api.wait(NODES, holds, what, seconds=seconds, each=_ignore, labelSelector=f"{POOL}={story.name}")

    def an_event_tells(
        self, reason: str, *words: str, seconds: float = 20, about: str = "", namespace: str = ""
    ) -> None:
        """An event of that reason, with these words in its message, is posted; about that object, if one is named."""
        story = self._story

        def told(found: dict[str, Object]) -> bool:
            return any(
                e["reason"] == reason
                and all(word in e["message"] for word in words)
                and about in {"", e["involvedObject"]["name"]}
                for e in found.values()
            )

        path = f"/api/v1/namespaces/{namespace or story.namespace}/events"
        story.api.wait(path, told, f"an event {reason} with {words}", seconds=seconds, each=_ignore)

    def nodes_have_no_agent(self, nodes: Iterable[str], *, seconds: float = PATIENCE) -> None:
        """Nodes have neither an agent nor an assignment any more."""
        story, wanted = self._story, set(nodes)

        def rid(found: dict[str, Object]) -> bool:
            return all(story.key not in node["metadata"]["labels"] for name, node in found.items() if name in wanted)

        def served(found: dict[str, Object]) -> bool:
            return not any(pod["spec"].get("nodeName") in wanted for pod in found.values())

        selector = f"{POOL}={story.name}"
        what = f"{len(wanted)} nodes have no assignment"
        story.api.wait(NODES, rid, what, seconds=seconds, each=_ignore, labelSelector=selector)
        story.api.wait(story.pods, served, f"{len(wanted)} nodes have no agent", seconds=seconds, each=_ignore)

    def no_node_was_moved(self) -> None:
        """No assignment of any node has changed since recording began."""
        history = self._story.history
        assert history is not None
        moved = {name: seen for name, seen in history.assignments.items() if len(seen) != 1}
        assert not moved, f"nodes were moved: {moved}"

    def the_records_say(self, run: int, states: Mapping[str, str], reason: str | None = None) -> dict[str, Object]:
        """The RolloutBatches of a run name exactly these nodes, each with its state; failed ones with the reason."""
        story = self._story

        def settled(found: dict[str, Object]) -> bool:
            return bool(found) and all((b.get("status") or {}).get("state") == "Finished" for b in found.values())

        story.api.wait(
            story.batches,
            settled,
            f"the records of run {run} are finished",
            each=_ignore,
            labelSelector=f"{names.LABEL_RUN}={run}",
        )
        results = story.results(run)
        assert {name: entry["state"] for name, entry in results.items()} == dict(states), results
        for entry in results.values():
            assert entry["uid"], entry
            assert entry["to"], entry
            if reason is not None and entry["state"] in {"Failed", "RolledBack"}:
                assert entry["reason"] == reason, entry
                assert entry["message"], entry
        return results

    def kstatus_is_clean(self) -> None:
        """The Rollout's and the versions' statuses follow the kstatus rules."""
        story = self._story
        for obj in [*story.client.items(story.rollouts), *story.client.items(story.versions)]:
            assert_kstatus_clean(obj)


def _signature(artifact: Object) -> Object:
    signature: Object = artifact.get("signature") or {}
    return signature


def _ignore(_obj: Object) -> None:
    return None


def lease_holder(api: Api, unless: str = "", *, seconds: float = 30) -> str:
    """Wait until somebody (other than `unless`) holds the operator's Lease; returns the holder's pod name."""

    def held(obj: Object) -> bool:
        holder = str(obj["spec"].get("holderIdentity") or "")
        return bool(holder) and holder.rpartition("_")[0] != unless

    lease = api.wait_for(LEASES, "outrider", held, f"the Lease is held by another than {unless!r}", seconds=seconds)
    return str(lease["spec"]["holderIdentity"]).rpartition("_")[0]
