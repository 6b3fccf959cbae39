"""Rollouts: gather one snapshot, plan, execute, report. No decisions here."""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from outrider.adapters import clock
from outrider.adapters.events import EventRecorder
from outrider.adapters.informer import Informer, Store
from outrider.adapters.kube import (
    DAEMON_SETS,
    NODES,
    ROLLOUT_BATCHES,
    ROLLOUTS,
    Cluster,
    Conflict,
    Json,
    with_finalizer,
    without_finalizer,
)
from outrider.adapters.metrics import BETWEEN
from outrider.adapters.metrics import NODES as NODES_METRIC
from outrider.api import names
from outrider.api.componentversion import Compatibility, ComponentVersionStatus
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.api.rollout import RolloutBatchSpec, RolloutBatchStatus, RolloutSpec, RolloutStatus, Target
from outrider.core import plan as actions
from outrider.core.compatibility import VersionRules, read_rules
from outrider.core.fleet import Claim, VersionFacts, find_hindrance, select_members
from outrider.core.moves import is_leaving, leaving, target_of
from outrider.core.plan import Assign, Plan
from outrider.core.revision import (
    build_daemonset,
    build_joiners,
    daemonset_name,
    hash_target,
    joiners_id,
    joiners_name,
    revision_of,
)
from outrider.core.rollout import plan_rollout
from outrider.core.rollout_status import CONDITION_TYPES, STUCK_SECONDS
from outrider.core.snapshot import Batch, Neighbour, Node, Pod, RolloutSnapshot, VersionState
from outrider.reconcile.places import fetch_settings
from outrider.reconcile.projections import AgentDaemonSet, AgentPod, StoredBatch
from outrider.reconcile.trust import TrustStore
from outrider.settings import Settings

logger = logging.getLogger(__name__)

_RECORD_SECONDS = 3.0
_RECORDS_PER_SECOND = 2.0
"""Records that can be derived again from the cluster are written together, at most so often and at most so many: one of
100 nodes costs the API server 20 ms."""
_STATUS_SECONDS = 2.0
"""Likewise a Rollout's counts."""
_REFUSED_SECONDS = 2.0
"""After so long a node whose patch was refused is tried again."""
_TEMPLATE_SECONDS = 300.0
"""After so long a template that was refused is tried again: what refused it may be somebody's webhook."""
_ASK_AGAIN_SECONDS = 5.0
"""Whoever verifies may have been busy with the version when he was asked."""


@dataclass
class _Memory:
    """What is known of a Rollout beyond its objects; lost at a restart, and found out again then."""

    pending_records: dict[str, RolloutBatchStatus] = field(default_factory=dict)
    urgent_records: set[str] = field(default_factory=set)
    records_written: float = float("-inf")
    status_written: float = float("-inf")
    template_problems: dict[str, tuple[str, float]] = field(default_factory=dict)
    leaving_since: dict[str, datetime] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    refused: int = 0
    asked: tuple[str, datetime] | None = None
    """The wanted revision whose version is being verified anew, and since when that is asked for."""
    uid: str = ""

    def records_due(self) -> float:
        """Return when pending records are to be written."""
        return self.records_written + max(_RECORD_SECONDS, len(self.pending_records) / _RECORDS_PER_SECOND)

    def forget_record(self, name: str) -> None:
        """Take note that a record is stored, or that there is none."""
        self.pending_records.pop(name, None)
        self.urgent_records.discard(name)


@dataclass(frozen=True)
class Caches:
    """The kinds that a Rollout's snapshot is made from."""

    rollouts: Store[Json]
    versions: Store[Json]
    nodes: Informer[Node]
    pods: Informer[AgentPod]
    daemonsets: Informer[AgentDaemonSet]
    batches: Informer[StoredBatch]


class RolloutReconciler:
    """Moves fleets: one pass at a time per Rollout."""

    def __init__(
        self,
        cluster: Cluster,
        caches: Caches,
        trust: TrustStore,
        recorder: EventRecorder,
        settings: Settings,
        request_verification: Callable[[str, str], None] = lambda _namespace, _name: None,
    ) -> None:
        self._cluster = cluster
        self._caches = caches
        self._trust = trust
        self._recorder = recorder
        self._settings = settings
        self._request_verification = request_verification
        self._memories: dict[str, _Memory] = {}
        self._rules: dict[str, tuple[str, int, Compatibility | None]] = {}
        self._observing_since: datetime | None = None

    def begin(self) -> None:
        """Note that all caches are filled: from now on the cluster is seen."""
        self._observing_since = clock.now()

    async def reconcile(self, key: str) -> float | None:
        """Make one pass over `namespace/name`; returns the seconds after which to look again."""
        namespace, _, name = key.partition("/")
        body = self._caches.rollouts.get(namespace, name)
        if body is None:
            self._memories.pop(key, None)
            _forget_metrics(namespace, name)
            return None
        memory = self._memories.get(key)
        if memory is None or memory.uid != body["metadata"]["uid"]:
            memory = self._memories[key] = _Memory(uid=body["metadata"]["uid"])
        seen = self._gather(body, memory)
        plan = plan_rollout(seen)
        self._remember_asking(seen, plan, memory)
        await self._execute(body, seen, plan, memory)
        self._watch_half_moves(seen, memory)
        return self._when_again(seen, plan, memory)

    # -- gather

    def _gather(self, body: Json, memory: _Memory) -> RolloutSnapshot:
        metadata = body["metadata"]
        namespace, name, uid = metadata["namespace"], metadata["name"], metadata["uid"]
        spec = RolloutSpec.model_validate(body["spec"])
        status = RolloutStatus.model_validate(body.get("status") or {})
        key = names.assignment_key(namespace, spec.component)
        wanted = revision_of(name, spec)

        pods: dict[str, list[Pod]] = {}
        for agent in self._caches.pods.values():
            if agent.component == spec.component and agent.namespace == namespace:
                pods.setdefault(agent.pod.node, []).append(agent.pod)
        revisions: dict[str, str] = {}
        rules: dict[str, VersionRules] = {}
        joiners: list[str] = []
        for daemonset in self._caches.daemonsets.values():
            if (daemonset.namespace, daemonset.rollout, daemonset.deleting) == (namespace, name, False):
                if daemonset.role == names.ROLE_JOINERS:
                    joiners.append(joiners_id(daemonset.revision, daemonset.target))
                else:
                    revisions[daemonset.revision] = daemonset.version
                    rules[daemonset.revision] = self._read_rules(spec.component, daemonset)
        older = self._older_rollouts(body, spec.component)
        all_nodes = list(self._caches.nodes.values())
        members, foreign = select_members(all_nodes, spec.target, older)
        batches = tuple(self._batches(namespace, uid, memory))
        nodes = {
            node.name: node
            for node in all_nodes
            if node.name in members or (node.name not in foreign and _is_ours(node, key, revisions))
        }
        return RolloutSnapshot(
            now=clock.now(),
            namespace=namespace,
            name=name,
            uid=uid,
            generation=metadata["generation"],
            deleting=bool(metadata.get("deletionTimestamp")),
            has_finalizer=names.FINALIZER in (metadata.get("finalizers") or []),
            spec=spec,
            status=status,
            assignment_key=key,
            wanted=wanted,
            hindrance=find_hindrance(
                spec,
                namespace,
                self._version_facts(namespace, spec.component, spec.version),
                self._published(namespace, spec.component),
                len(members),
                foreign,
                self._template_problem(memory, wanted),
            ),
            started_by=_who_set_the_version(body),
            observing_since=self._observing_since,
            target_hash=hash_target(spec.target),
            nodes=nodes,
            members=members,
            owned_by_others=foreign,
            pods={node: tuple(found) for node, found in pods.items()},
            batches=batches,
            revisions=revisions,
            rules=rules,
            assigned=frozenset(target_of(node.labels[key]) for node in all_nodes if key in node.labels),
            joiners=tuple(sorted(joiners)),
            versions=self._version_states(namespace, spec, status, revisions),
            neighbours=self._neighbours(namespace, {need for rule in rules.values() for need, _ in rule.requires}),
            verify_after=self._verify_after(wanted, memory),
        )

    def _verify_after(self, wanted: str, memory: _Memory) -> datetime:
        """Return since when a verification counts as fresh: also one that took longer than it stays fresh."""
        recent = clock.now() - timedelta(seconds=self._settings.fresh_seconds)
        if memory.asked is None or memory.asked[0] != wanted:
            return recent
        return min(recent, memory.asked[1])

    def _remember_asking(self, seen: RolloutSnapshot, plan: Plan, memory: _Memory) -> None:
        """Keep in mind since when a verification is asked for, until its run has started."""
        waits = any(isinstance(a, actions.RequestVerification | actions.CreateRevision) for a in plan.actions)
        if not waits:
            memory.asked = None
        elif memory.asked is None or memory.asked[0] != seen.wanted:
            # Status tells the time to the second: what is verified within this one counts.
            memory.asked = seen.wanted, seen.now.replace(microsecond=0)

    def _read_rules(self, component: str, daemonset: AgentDaemonSet) -> VersionRules:
        """Return a revision's rules: its platforms stand on its DaemonSet, the others in its ComponentVersion."""
        name = f"{component}-{daemonset.version}"
        key = f"{daemonset.namespace}/{name}"
        body = self._caches.versions.get(daemonset.namespace, name)
        if body is None:
            self._rules.pop(key, None)
            return VersionRules(daemonset.platforms)
        metadata = body["metadata"]
        known = self._rules.get(key)
        if known is None or known[:2] != (metadata["uid"], metadata["generation"]):
            stated = body["spec"].get("compatibility")
            compatibility = Compatibility.model_validate(stated) if stated else None
            known = self._rules[key] = metadata["uid"], metadata["generation"], compatibility
        return read_rules(daemonset.platforms, known[2])

    def _version_states(
        self, namespace: str, spec: RolloutSpec, status: RolloutStatus, revisions: Mapping[str, str]
    ) -> dict[str, VersionState]:
        named = {spec.version, *revisions.values()} | ({status.run.version} if status.run else set())
        found = {version: self._version_facts(namespace, spec.component, version) for version in named}
        return {version: facts.state for version, facts in found.items() if facts is not None}

    def _neighbours(self, namespace: str, components: Iterable[str]) -> dict[str, Neighbour]:
        """Return what the required components' assignments on nodes mean."""
        versions: dict[str, dict[str, str]] = {component: {} for component in components}
        for daemonset in self._caches.daemonsets.values() if versions else ():
            if daemonset.namespace == namespace and daemonset.component in versions:
                versions[daemonset.component][daemonset.revision] = daemonset.version
        return {name: Neighbour(names.assignment_key(namespace, name), found) for name, found in versions.items()}

    def _template_problem(self, memory: _Memory, revision: str) -> str:
        message, since = memory.template_problems.get(revision, ("", 0.0))
        if message and asyncio.get_running_loop().time() - since >= _TEMPLATE_SECONDS:
            del memory.template_problems[revision]
            return ""
        return message

    def _batches(self, namespace: str, uid: str, memory: _Memory) -> Iterable[Batch]:
        stored = [
            batch for batch in self._caches.batches.values() if (batch.namespace, batch.rollout_uid) == (namespace, uid)
        ]
        stored.sort(key=lambda item: (item.batch.spec.run, item.batch.spec.batch, item.batch.spec.page))
        for item in stored:
            pending = memory.pending_records.get(item.batch.name)
            yield item.with_status(pending).batch if pending is not None else item.batch

    def _older_rollouts(self, body: Json, component: str) -> list[Claim]:
        """Return the Rollouts of the same component that come before this one: theirs is what both want."""
        metadata = body["metadata"]
        return [
            Claim(
                other["metadata"]["name"],
                other["metadata"]["uid"],
                other["metadata"]["creationTimestamp"],
                Target.model_validate(other["spec"]["target"]),
            )
            for other in self._caches.rollouts.values()
            if other["metadata"]["namespace"] == metadata["namespace"]
            and other["spec"]["component"] == component
            and _seniority(other) < _seniority(body)
        ]

    def _version_facts(self, namespace: str, component: str, version: str) -> VersionFacts | None:
        body = self._caches.versions.get(namespace, f"{component}-{version}")
        if body is None:
            return None
        return VersionFacts(
            body["metadata"]["name"],
            body["metadata"]["generation"],
            ComponentVersionStatus.model_validate(body.get("status") or {}),
            deleting=bool(body["metadata"].get("deletionTimestamp")),
            revoked=body["spec"].get("stage") == "Revoked",
        )

    def _published(self, namespace: str, component: str) -> list[str]:
        return [
            body["spec"]["version"]
            for body in self._caches.versions.values()
            if body["metadata"]["namespace"] == namespace
            and body["spec"]["component"] == component
            and (body.get("status") or {}).get("phase") == "Published"
        ]

    # -- execute, in the order that `outrider.core.plan` promises

    async def _execute(self, body: Json, seen: RolloutSnapshot, plan: Plan, memory: _Memory) -> None:
        await self._prepare(seen, plan, memory)
        await self._store(seen, plan, memory)
        if plan.urgent_status or plan.events:
            await self._write_status(body, seen, plan, memory)
        for event in plan.events:
            self._recorder.record(ROLLOUTS, seen.namespace, seen.name, seen.uid, event)
        memory.refused = 0
        # What is only to be told waits for no move, and no move waits for it.
        moves = [self._assign(seen.assignment_key, move, memory) for move in plan.moves]
        await _all([*moves, self._tell(body, seen, plan, memory)])
        await self._clean_up(seen, plan)
        self._report_metrics(seen, plan)
        if not seen.deleting and seen.revisions:
            # Last: keys that cannot be handed out hold up no move back. New revisions ask for them by themselves.
            await self._trust.hand_out(seen.namespace, seen.spec.component)

    async def _prepare(self, seen: RolloutSnapshot, plan: Plan, memory: _Memory) -> None:
        for action in plan.actions:
            match action:
                case actions.KeepFinalizer():
                    await self._keep_finalizer(seen)
                case actions.RequestVerification(name):
                    self._request_verification(seen.namespace, name)
                case actions.CreateRevision(revision):
                    await self._create_revision(seen, revision, memory)
                case actions.CreateJoiners(revision):
                    await self._create_joiners(seen, revision)
                case _:
                    pass

    async def _store(self, seen: RolloutSnapshot, plan: Plan, memory: _Memory) -> None:
        """Store what the moves of this plan, and of later ones, build on."""
        for action in plan.actions:
            if isinstance(action, actions.WriteBatch):
                memory.pending_records[action.name] = action.status
                if action.urgent:
                    memory.urgent_records.add(action.name)
        # One stays urgent until it is stored.
        await _all(self._write_record(seen, name, memory) for name in sorted(memory.urgent_records))
        await _all(
            self._create_batch(seen, action.name, action.spec)
            for action in plan.actions
            if isinstance(action, actions.CreateBatch)
        )

    async def _tell(self, body: Json, seen: RolloutSnapshot, plan: Plan, memory: _Memory) -> None:
        """Write what can be found out again, now and then."""
        moment = asyncio.get_running_loop().time()
        if memory.pending_records and moment >= memory.records_due():
            memory.records_written = moment
            await _all(self._write_record(seen, name, memory) for name in sorted(memory.pending_records))
        if moment - memory.status_written >= _STATUS_SECONDS:
            await self._write_status(body, seen, plan, memory)

    async def _write_status(self, body: Json, seen: RolloutSnapshot, plan: Plan, memory: _Memory) -> None:
        status = plan.status.to_api()
        if status != self._written_status(body):
            memory.status_written = asyncio.get_running_loop().time()
            answer = await self._cluster.apply(
                ROLLOUTS,
                {"metadata": {"namespace": seen.namespace, "name": seen.name}, "status": status},
                manager=names.FIELD_MANAGER_STATUS,
                subresource="status",
            )
            self._caches.rollouts.put(answer)

    def _written_status(self, body: Json) -> Json:
        """Return the part of the stored status that is ours: others may add conditions of their own."""
        status = RolloutStatus.model_validate(body.get("status") or {})
        ours = [condition for condition in status.conditions if condition.type in CONDITION_TYPES]
        return status.model_copy(update={"conditions": ours}).to_api()

    async def _clean_up(self, seen: RolloutSnapshot, plan: Plan) -> None:
        for action in plan.actions:
            match action:
                case actions.DropFinalizer():
                    await self._drop_finalizer(seen)
                case actions.DeleteRevision(revision):
                    await self._delete_daemonset(seen, daemonset_name(seen.name, revision))
                case actions.DeleteJoiners(joiners):
                    await self._delete_daemonset(seen, joiners_name(seen.name, joiners))
                case actions.DeleteBatch(name):
                    await self._cluster.delete(ROLLOUT_BATCHES, seen.namespace, name)
                    self._caches.batches.drop((seen.namespace, name))
                case _:
                    pass

    async def _create_revision(self, seen: RolloutSnapshot, revision: str, memory: _Memory) -> None:
        version = self._version_facts(seen.namespace, seen.spec.component, seen.spec.version)
        if version is None or version.status.reference is None:
            raise Transient("VersionNotPublished", f"{seen.spec.component} {seen.spec.version} is no longer published")
        await self._trust.hand_out(seen.namespace, seen.spec.component)
        fetch = fetch_settings(self._settings, version.status.reference, version.status.artifacts)
        daemonset = build_daemonset(
            namespace=seen.namespace, rollout=seen.name, spec=seen.spec, revision=revision, fetch=fetch
        )
        try:
            await self._create_daemonset(daemonset)
        except Stalling as error:
            message = (
                f"the API server refuses the DaemonSet made from spec.template: {error.message}; correct spec.template"
            )
            memory.template_problems[revision] = message, asyncio.get_running_loop().time()
            logger.warning("Rollout %s/%s: %s", seen.namespace, seen.name, message)

    async def _create_joiners(self, seen: RolloutSnapshot, revision: str) -> None:
        name = daemonset_name(seen.name, revision)
        daemonset = await self._cluster.get(DAEMON_SETS, seen.namespace, name)
        if daemonset is None:
            return
        try:
            await self._create_daemonset(build_joiners(daemonset, seen.spec.target, seen.assignment_key))
        except Stalling as error:
            logger.warning("Rollout %s/%s: joining nodes wait: %s", seen.namespace, seen.name, error.message)

    async def _create_daemonset(self, daemonset: Json) -> None:
        namespace, name = daemonset["metadata"]["namespace"], daemonset["metadata"]["name"]
        try:
            answer: Json | None = await self._cluster.create(DAEMON_SETS, daemonset, namespace)
        except Conflict:
            # It is there already: its name holds the hash of its content, so it is the same.
            answer = await self._cluster.get(DAEMON_SETS, namespace, name)
        if answer is not None:
            self._caches.daemonsets.put(answer)

    async def _delete_daemonset(self, seen: RolloutSnapshot, name: str) -> None:
        await self._cluster.delete(DAEMON_SETS, seen.namespace, name)
        self._caches.daemonsets.drop((seen.namespace, name))

    async def _create_batch(self, seen: RolloutSnapshot, name: str, spec: RolloutBatchSpec) -> None:
        body: Json = {
            "apiVersion": ROLLOUT_BATCHES.api_version,
            "kind": ROLLOUT_BATCHES.kind,
            "metadata": {
                "name": name,
                "namespace": seen.namespace,
                "labels": {
                    names.LABEL_ROLLOUT: seen.name,
                    names.LABEL_RUN: str(spec.run),
                    names.LABEL_BATCH: str(spec.batch),
                    names.LABEL_MANAGED_BY: names.MANAGED_BY,
                },
                "ownerReferences": [
                    {
                        "apiVersion": ROLLOUTS.api_version,
                        "kind": ROLLOUTS.kind,
                        "name": seen.name,
                        "uid": seen.uid,
                        "controller": True,
                    }
                ],
            },
            "spec": spec.to_api(),
        }
        try:
            answer: Json | None = await self._cluster.create(ROLLOUT_BATCHES, body, seen.namespace)
        except Conflict:
            answer = await self._cluster.get(ROLLOUT_BATCHES, seen.namespace, name)
        if answer is not None:
            self._caches.batches.put(answer)

    async def _write_record(self, seen: RolloutSnapshot, name: str, memory: _Memory) -> None:
        status = memory.pending_records.get(name)
        if status is None or self._caches.batches.get(seen.namespace, name) is None:
            memory.forget_record(name)
            return
        answer = await self._cluster.apply(
            ROLLOUT_BATCHES,
            {"metadata": {"namespace": seen.namespace, "name": name}, "status": status.to_api()},
            manager=names.FIELD_MANAGER_STATUS,
            subresource="status",
        )
        self._caches.batches.put(answer)
        if memory.pending_records.get(name) is status:
            memory.forget_record(name)

    async def _assign(self, key: str, move: Assign, memory: _Memory) -> None:
        path = "/metadata/labels/" + key.replace("~", "~0").replace("/", "~1")
        operations: list[Json] = [
            {"op": "test", "path": "/metadata/uid", "value": move.uid},
            {"op": "test", "path": path, "value": move.before},
            {"op": "add", "path": path, "value": move.after},
        ]
        try:
            answer = await self._cluster.patch_json(NODES, None, move.node, operations)
        except Conflict as error:
            logger.info("Node %s is not as it was seen, looking again: %s", move.node, error.message)
            return
        except OutriderError as error:
            # One node's trouble must not hold up the others; its own deadline goes on.
            logger.warning("Node %s could not be given %s: %s", move.node, move.after, error.message)
            memory.refused += 1
            return
        if answer is None:
            self._caches.nodes.drop(("", move.node))
        else:
            self._caches.nodes.update(answer)

    async def _keep_finalizer(self, seen: RolloutSnapshot) -> None:
        body = self._present(seen)
        await self._patch_rollout(body, with_finalizer(body, names.FINALIZER))

    async def _drop_finalizer(self, seen: RolloutSnapshot) -> None:
        body = self._present(seen)
        await self._patch_rollout(body, without_finalizer(body, names.FINALIZER))

    def _present(self, seen: RolloutSnapshot) -> Json:
        """Return the Rollout as it is after the writes of this pass."""
        body = self._caches.rollouts.get(seen.namespace, seen.name)
        if body is None:
            raise Conflict("NotAsSeen", f"Rollout {seen.name} is gone")
        return body

    async def _patch_rollout(self, body: Json, operations: list[Json]) -> None:
        metadata = body["metadata"]
        answer = await self._cluster.patch_json(ROLLOUTS, metadata["namespace"], metadata["name"], operations)
        if answer is not None and answer["metadata"].get("finalizers"):
            self._caches.rollouts.put(answer)

    # -- report

    def _report_metrics(self, seen: RolloutSnapshot, plan: Plan) -> None:
        run = plan.status.run
        values = {
            "all": plan.status.nodes,
            "updated": run.updated if run else 0,
            "outdated": run.outdated if run else 0,
            "pending": run.pending if run else 0,
            "failed": run.failed if run else 0,
            "skipped": run.skipped if run else 0,
        }
        for state, value in values.items():
            NODES_METRIC.labels(seen.namespace, seen.name, state).set(value)

    def _watch_half_moves(self, seen: RolloutSnapshot, memory: _Memory) -> None:
        between = {name for name, node in seen.nodes.items() if is_leaving(node.labels.get(seen.assignment_key))}
        known = memory.leaving_since
        memory.leaving_since = {name: known.get(name, seen.now) for name in between}
        memory.told &= between
        ages = {name: (seen.now - since).total_seconds() for name, since in memory.leaving_since.items()}
        BETWEEN.labels(seen.namespace, seen.name).set(max(ages.values(), default=0))
        for name, age in ages.items():
            if age >= STUCK_SECONDS and name not in memory.told:
                memory.told.add(name)
                logger.warning(
                    "Rollout %s/%s: node %s waits since %.0f s for its old agent's pod to end",
                    seen.namespace,
                    seen.name,
                    name,
                    age,
                )

    def _when_again(self, seen: RolloutSnapshot, plan: Plan, memory: _Memory) -> float | None:
        moment = asyncio.get_running_loop().time()
        waits: list[float] = []
        if plan.wake_at is not None:
            waits.append(max(0.0, (plan.wake_at - seen.now).total_seconds()))
        if any(isinstance(action, actions.CreateBatch) for action in plan.actions):
            waits.append(0.0)  # its nodes may leave now
        if any(isinstance(action, actions.RequestVerification) for action in plan.actions):
            waits.append(_ASK_AGAIN_SECONDS)
        if memory.pending_records:
            waits.append(max(0.0, memory.records_due() - moment))
        stored = self._caches.rollouts.get(seen.namespace, seen.name)
        if stored is not None and self._written_status(stored) != plan.status.to_api():
            waits.append(max(0.05, memory.status_written + _STATUS_SECONDS - moment))
        if memory.leaving_since:
            waits.append(float(STUCK_SECONDS))
        if memory.template_problems:
            waits.append(_TEMPLATE_SECONDS)
        if memory.refused:
            waits.append(_REFUSED_SECONDS)
        return min(waits, default=None)


async def _all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all, let each finish, then raise the first error: one node's trouble does not hold up the others."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in errors[1:]:
        if isinstance(error, OutriderError):
            logger.info("Also: %s", error.message)
    if errors:
        raise errors[0]


def _seniority(body: Json) -> tuple[str, bool, str]:
    """Return what decides whose nodes are whose: the older one's. Of two from the same second, his who began first."""
    begun = bool((body.get("status") or {}).get("run"))
    return body["metadata"]["creationTimestamp"], not begun, body["metadata"]["uid"]


def _is_ours(node: Node, key: str, revisions: Mapping[str, str]) -> bool:
    """Tell whether a node outside the target carries an assignment of this Rollout."""
    assignment = node.labels.get(key)
    if assignment is None:
        return False
    return target_of(assignment) in revisions or assignment == leaving(names.ASSIGNMENT_NONE)


def _who_set_the_version(body: Json) -> str:
    """Return the field manager that set spec.version last: kubectl, argocd-controller and so on."""
    best: tuple[str, str] = ("", "")
    for entry in body["metadata"].get("managedFields") or []:
        if entry.get("subresource"):
            continue
        fields = entry.get("fieldsV1") or {}
        if isinstance(fields, str):
            fields = json.loads(fields)
        if "f:version" in (fields.get("f:spec") or {}):
            best = max(best, (entry.get("time") or "", entry.get("manager") or ""))
    return best[1]


def _forget_metrics(namespace: str, name: str) -> None:
    for state in ("all", "updated", "outdated", "pending", "failed", "skipped"):
        try:
            NODES_METRIC.remove(namespace, name, state)
        except KeyError:
            return
    BETWEEN.remove(namespace, name)
