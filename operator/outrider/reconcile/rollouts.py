"""Rollouts: gather one snapshot, plan, execute, report. No decisions here."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from pydantic import ValidationError

from outrider.adapters import clock
from outrider.adapters.events import EventRecorder
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
from outrider.adapters.metrics import BETWEEN, CONDITIONS
from outrider.adapters.metrics import NODES as NODES_METRIC
from outrider.api import names
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.api.rollout import RolloutBatchSpec, RolloutStatus
from outrider.core import plan as actions
from outrider.core.allowance import Allowance
from outrider.core.batches import has_window
from outrider.core.moves import alive_on, find_arriving, is_leaving, next_assignment
from outrider.core.plan import Assign, Plan
from outrider.core.prepare import build_prepare
from outrider.core.revision import (
    build_daemonset,
    build_joiners,
    daemonset_name,
    joiners_name,
)
from outrider.core.rollout import plan_rollout
from outrider.core.rollout_status import CONDITION_TYPES, STUCK_SECONDS
from outrider.core.snapshot import RolloutSnapshot
from outrider.core.states import ONGOING
from outrider.reconcile.adoption import Adoptions
from outrider.reconcile.checks import Checks
from outrider.reconcile.gathering import TEMPLATE_SECONDS, Caches, Gatherer, Memory
from outrider.reconcile.namespaces import NAMESPACE_SECONDS, NamespaceFacts, Namespaces
from outrider.reconcile.places import fetch_settings
from outrider.reconcile.trust import TrustStore
from outrider.settings import Settings

logger = logging.getLogger(__name__)

_STATUS_SECONDS = 2.0
_STATUS_SECONDS_LARGE = 5.0
_LARGE = 500
"""Likewise a Rollout's counts; those of large fleets, whose runs take minutes, less often."""
_REFUSED_SECONDS = 2.0
"""After so long a node whose patch was refused is tried again."""
_PREPARE_SECONDS = 30.0
"""After so long a DaemonSet that prepares nodes is tried again, if it was refused."""
_MEASURED_CONDITIONS = ("Ready", "Stalled", "Degraded", "Paused")
_ASK_AGAIN_SECONDS = 5.0
"""Whoever verifies may have been busy with the version when he was asked."""


class RolloutReconciler:
    """Moves fleets: one pass at a time per Rollout."""

    def __init__(
        self,
        cluster: Cluster,
        caches: Caches,
        trust: TrustStore,
        recorder: EventRecorder,
        settings: Settings,
        checks: Checks,
        request_verification: Callable[[str, str], None] = lambda _namespace, _name: None,
        wake: Callable[[str], None] = lambda _key: None,
    ) -> None:
        self._cluster = cluster
        self._caches = caches
        self._trust = trust
        self._recorder = recorder
        self._settings = settings
        self._checks = checks
        self._request_verification = request_verification
        self._wake = wake
        self._memories: dict[str, Memory] = {}
        self._adoptions = Adoptions(cluster, wake)
        self._namespaces = Namespaces(cluster)
        self._gatherer = Gatherer(caches, settings, self._adoptions.look)

    def stop(self) -> None:
        """Stop watching what is taken over, and changing nodes."""
        self._adoptions.stop()
        for memory in self._memories.values():
            for task in memory.patches.values():
                task.cancel()

    def begin(self) -> None:
        """Note that all caches are filled: from now on the cluster is seen."""
        self._gatherer.observing_since = clock.now()

    async def reconcile(self, key: str) -> float | None:
        """Make one pass over `namespace/name`; returns the seconds after which to look again."""
        namespace, _, name = key.partition("/")
        body = self._caches.rollouts.get(namespace, name)
        if body is None:
            self._memories.pop(key, None)
            self._checks.forget(key)
            self._adoptions.forget(key)
            _forget_metrics(namespace, name)
            return None
        memory = self._memories.get(key)
        if memory is None or memory.uid != body["metadata"]["uid"]:
            memory = self._memories[key] = Memory(uid=body["metadata"]["uid"])
        memory.arrivals = {}
        await self._adoptions.watch(key, body)
        deleting = bool(body["metadata"].get("deletionTimestamp"))
        if deleting:
            await memory.patches_ended()  # whoever lets it go knows where each node is
        around = await self._look_around(body)
        terminating = deleting and around.terminating
        begun = time.perf_counter()
        try:
            seen = self._gatherer.gather(
                body, memory, namespace_terminating=terminating, pod_security=around.pod_security
            )
        except Stalling as error:
            event = actions.Event("Warning", error.reason, error.message)
            self._recorder.record(ROLLOUTS, namespace, name, memory.uid, event)
            raise
        plan = plan_rollout(seen)
        memory.pass_seconds = time.perf_counter() - begun
        memory.assignment_key = seen.assignment_key
        memory.in_window = has_window(seen.spec) and bool(plan.arrivals)
        self._gatherer.remember_asking(seen, plan, memory)
        self._checks.begin(key, seen, plan, memory)
        await self._execute(body, seen, plan, memory)
        self._watch_half_moves(seen, memory)
        if not seen.deleting and seen.legacy is None:  # what was taken over has pods that are seen in passes only
            memory.arrivals = {move.node: move for move in plan.arrivals if move.node not in memory.patches}
            for node in list(memory.arrivals):  # a pod may have ended while the pass was made
                self.pod_ended(seen.namespace, seen.spec.component, node)
        return self._when_again(seen, plan, memory)

    def rolls_in_a_window(self, key: str) -> bool:
        """Tell whether a Rollout moved nodes in a sliding window when it was last looked at."""
        memory = self._memories.get(key)
        return memory is not None and memory.in_window

    def wait_for_a_pass(self, key: str) -> None:
        """Let nobody arrive before the next pass: somebody wants something else of the Rollout."""
        memory = self._memories.get(key)
        if memory is not None:
            memory.arrivals = {}

    def pass_seconds(self, key: str) -> float:
        """Return how long the last look at a Rollout's fleet took to be made and planned."""
        memory = self._memories.get(key)
        return memory.pass_seconds if memory is not None else 0.0

    def pod_ended(self, namespace: str, component: str, node: str) -> None:
        """Let a node arrive whose last old pod has ended: it has no agent meanwhile, and waits for no pass."""
        label = names.assignment_key(namespace, component)
        for key, memory in self._memories.items():
            move = memory.arrivals.get(node)
            if move is None or not key.startswith(f"{namespace}/") or memory.assignment_key != label:
                continue
            alive = alive_on(self._caches.agents.on(namespace, component, node))
            if next_assignment(move.before, move.after or "", alive, served_by_joiners=True) == move.after:
                del memory.arrivals[node]
                self._begin_assigning(key, move, memory)

    async def _look_around(self, body: Json) -> NamespaceFacts:
        """Return what matters of a Rollout's namespace: most Rollouts do not have to know."""
        namespace, spec = body["metadata"]["namespace"], body["spec"]
        if body["metadata"].get("deletionTimestamp"):
            return await self._namespaces.look(namespace, seconds=0)
        if (spec.get("delivery") or {}).get("host") is not None or spec.get("prePull"):
            return await self._namespaces.look(namespace)
        return NamespaceFacts()

    # -- execute, in the order that `outrider.core.plan` promises

    async def _execute(self, body: Json, seen: RolloutSnapshot, plan: Plan, memory: Memory) -> None:
        if seen.deleting:
            await self._let_go(body, seen, plan, memory)
            return
        await self._prepare(seen, plan, memory)
        await self._store(seen, plan, memory)
        if plan.urgent_status:
            await self._write_status(body, seen, plan, memory)
        for event in plan.events:
            self._recorder.record(ROLLOUTS, seen.namespace, seen.name, seen.uid, event)
        # Nobody waits for these: the next pass sees who is under way, and looks at the others meanwhile.
        for move in plan.moves:
            self._begin_assigning(f"{seen.namespace}/{seen.name}", move, memory)
        await self._tell(body, seen, plan, memory)
        if plan.has_clean_up:
            await memory.patches_ended()
        await self._clean_up(seen, plan, memory)
        self._report_metrics(seen, plan)
        if seen.revisions:
            # Last: keys that cannot be handed out hold up no move back. New revisions ask for them by themselves.
            await self._trust.hand_out(seen.namespace, seen.spec.component)

    async def _let_go(self, body: Json, seen: RolloutSnapshot, plan: Plan, memory: Memory) -> None:
        """Execute the plan of a Rollout that is deleted; what is only to be told must not keep it from going."""
        for name in list(memory.pending_records):
            memory.forget_record(name)  # the records go with the Rollout
        await self._prepare(seen, plan, memory)
        for event in plan.events:
            self._recorder.record(ROLLOUTS, seen.namespace, seen.name, seen.uid, event)
        for move in plan.moves:
            self._begin_assigning(f"{seen.namespace}/{seen.name}", move, memory)
        await memory.patches_ended()
        try:
            await self._tell(body, seen, plan, memory)
        except OutriderError as error:
            logger.info("Rollout %s/%s goes without a word: %s", seen.namespace, seen.name, error.message)
        await self._clean_up(seen, plan, memory)
        self._report_metrics(seen, plan)

    async def _prepare(self, seen: RolloutSnapshot, plan: Plan, memory: Memory) -> None:
        for action in plan.actions:
            match action:
                case actions.KeepFinalizer():
                    await self._keep_finalizer(seen)
                case actions.RequestVerification(name):
                    self._request_verification(seen.namespace, name)
                case actions.CreateRevision(revision):
                    await self._create_revision(seen, revision, memory)
                case actions.CreateJoiners(revision):
                    await memory.patches_ended()  # who gets a label no longer belongs to it
                    await self._create_joiners(seen, revision)
                case actions.ChangeAdopted():
                    await memory.patches_ended()
                    await self._change_adopted(seen, action)
                case _:
                    pass

    async def _store(self, seen: RolloutSnapshot, plan: Plan, memory: Memory) -> None:
        """Store what the moves of this plan, and of later ones, build on."""
        for action in plan.actions:
            if isinstance(action, actions.WriteBatch):
                memory.pending_records[action.name] = action.status
                if action.urgent:
                    memory.urgent_records.add(action.name)
        if _ends_the_run(seen, plan):
            memory.urgent_records |= memory.pending_records.keys()  # nobody looks at them again
        # One stays urgent until it is stored.
        await _all(self._write_record(seen, name, memory) for name in sorted(memory.urgent_records))
        await _all(
            self._create_batch(seen, action.name, action.spec)
            for action in plan.actions
            if isinstance(action, actions.CreateBatch)
        )

    async def _tell(self, body: Json, seen: RolloutSnapshot, plan: Plan, memory: Memory) -> None:
        """Write what can be found out again, now and then."""
        moment = asyncio.get_running_loop().time()
        if memory.pending_records and moment >= memory.records_due():
            memory.records_written = moment
            await _all(self._write_record(seen, name, memory) for name in sorted(memory.pending_records))
        # What an event said must be known in the next pass, or it would be said again.
        if plan.events or moment - memory.status_written >= _status_seconds(plan):
            await self._write_status(body, seen, plan, memory)

    async def _write_status(self, body: Json, seen: RolloutSnapshot, plan: Plan, memory: Memory) -> None:
        status = plan.status.to_api()
        if status != self._written_status(body, memory):
            memory.status_written = asyncio.get_running_loop().time()
            answer = await self._cluster.apply(
                ROLLOUTS,
                {"metadata": {"namespace": seen.namespace, "name": seen.name}, "status": status},
                manager=names.FIELD_MANAGER_STATUS,
                subresource="status",
            )
            self._caches.rollouts.put(answer)

    def _written_status(self, body: Json, memory: Memory) -> Json:
        """Return the part of the stored status that is ours: others may add conditions of their own."""
        if memory.told_status is None or memory.told_status[0] is not body:
            try:
                status = RolloutStatus.model_validate(body.get("status") or {})
            except ValidationError:
                return {}
            ours = [condition for condition in status.conditions if condition.type in CONDITION_TYPES]
            memory.told_status = body, status.model_copy(update={"conditions": ours}).to_api()
        return memory.told_status[1]

    async def _clean_up(self, seen: RolloutSnapshot, plan: Plan, memory: Memory) -> None:
        if not any(isinstance(action, actions.PrepareNodes) for action in plan.actions):
            memory.prepare_problem = None
        for action in plan.actions:
            match action:
                case actions.PrepareNodes():
                    await self._prepare_nodes(seen, action, memory)
                case actions.DeletePrepare(name):
                    await self._delete_daemonset(seen, name)
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

    async def _create_revision(self, seen: RolloutSnapshot, revision: str, memory: Memory) -> None:
        version = self._gatherer.version_facts(seen.namespace, seen.spec.component, seen.spec.version)
        if version is None or version.status.reference is None:
            raise Transient("VersionNotPublished", f"{seen.spec.component} {seen.spec.version} is no longer published")
        await self._trust.hand_out(seen.namespace, seen.spec.component)
        around = await self._namespaces.look_closely(seen.namespace)
        fetch = fetch_settings(
            self._settings,
            version.status.reference,
            version.status.artifacts,
            may_use_node=Allowance(around.pod_security).node_folders,
        )
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

    async def _prepare_nodes(self, seen: RolloutSnapshot, action: actions.PrepareNodes, memory: Memory) -> None:
        """Create the DaemonSet that prepares nodes. Whatever comes of it: no verdict and no way back waits for it."""
        moment = asyncio.get_running_loop().time()
        if memory.prepare_problem is not None and moment - memory.prepare_problem[1] < _PREPARE_SECONDS:
            return
        try:
            body = await self._cluster.get(DAEMON_SETS, seen.namespace, daemonset_name(seen.name, action.revision))
            if body is not None:
                nodes = [seen.nodes[name] for name in action.nodes]
                await self._create_daemonset(build_prepare(body, nodes, seen.assignment_key, _owned_by(seen)))
            memory.prepare_problem = None
        except OutriderError as error:
            memory.prepare_problem = f"the API server refuses the DaemonSet for that: {error.message}", moment
            logger.warning("Rollout %s/%s: nodes are not prepared: %s", seen.namespace, seen.name, error.message)

    async def _change_adopted(self, seen: RolloutSnapshot, change: actions.ChangeAdopted) -> None:
        key = f"{seen.namespace}/{seen.name}"
        try:
            answer = await self._cluster.patch_json(
                DAEMON_SETS, seen.namespace, change.daemonset, list(change.operations)
            )
        except Conflict as error:
            logger.info("DaemonSet %s is not as it was seen, looking again: %s", change.daemonset, error.message)
        except OutriderError as error:
            # A policy or webhook may refuse it, for as long as its owner likes: that is told, and holds nothing else.
            logger.warning("Rollout %s: DaemonSet %s cannot be changed: %s", key, change.daemonset, error.message)
            self._adoptions.note(key, None, error.message)
        else:
            logger.info("Rollout %s: DaemonSet %s changed (%s)", key, change.daemonset, change.form)
            self._adoptions.note(key, answer)

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
                "ownerReferences": [_owned_by(seen)],
            },
            "spec": spec.to_api(),
        }
        try:
            answer: Json | None = await self._cluster.create(ROLLOUT_BATCHES, body, seen.namespace)
        except Conflict:
            answer = await self._cluster.get(ROLLOUT_BATCHES, seen.namespace, name)
        if answer is not None:
            self._caches.batches.put(answer)

    async def _write_record(self, seen: RolloutSnapshot, name: str, memory: Memory) -> None:
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

    def _begin_assigning(self, key: str, move: Assign, memory: Memory) -> None:
        """Have a node's assignment changed; until that is answered the node is under way."""
        moment = asyncio.get_running_loop().time()
        if move.node in memory.patches or moment - memory.refused.get(move.node, float("-inf")) < _REFUSED_SECONDS:
            return
        memory.refused.pop(move.node, None)

        async def assign() -> None:
            try:
                await self._assign(move, memory)
            except Exception:
                logger.exception("Node %s: unexpected error", move.node)
                memory.refused[move.node] = asyncio.get_running_loop().time()
            finally:
                del memory.patches[move.node]
                # Whatever came of it: what the node's change wakes may have passed before this.
                self._wake(key)

        memory.patches[move.node] = asyncio.create_task(assign(), name=f"assign {move.node}")

    async def _assign(self, move: Assign, memory: Memory) -> None:
        path = _label_path(memory.assignment_key)
        operations: list[Json] = [
            {"op": "test", "path": "/metadata/uid", "value": move.uid},
            {"op": "test", "path": path, "value": move.before},
            *({"op": "test", "path": _label_path(other), "value": value} for other, value in move.relies_on),
            {"op": "remove", "path": path} if move.after is None else {"op": "add", "path": path, "value": move.after},
        ]
        try:
            answer = await self._cluster.patch_json(NODES, None, move.node, operations)
        except Conflict as error:
            logger.info("Node %s is not as it was seen, looking again: %s", move.node, error.message)
            return
        except OutriderError as error:
            # One node's trouble must not hold up the others; its own deadline goes on.
            what = f"given {move.after}" if move.after is not None else "rid of its assignment"
            logger.warning("Node %s could not be %s: %s", move.node, what, error.message)
            memory.refused[move.node] = asyncio.get_running_loop().time()
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
            "failed": plan.status.failed,
            "skipped": run.skipped if run else 0,
        }
        for state, value in values.items():
            NODES_METRIC.labels(seen.namespace, seen.name, state).set(value)
        hold = {condition.type for condition in plan.status.conditions if condition.status == "True"}
        for kind in _MEASURED_CONDITIONS:
            CONDITIONS.labels(seen.namespace, seen.name, kind).set(kind in hold)

    def _watch_half_moves(self, seen: RolloutSnapshot, memory: Memory) -> None:
        between = {name for name, node in seen.nodes.items() if is_leaving(node.labels.get(seen.assignment_key))}
        known = memory.leaving_since
        memory.arriving_since = find_arriving(seen)
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

    def _when_again(self, seen: RolloutSnapshot, plan: Plan, memory: Memory) -> float | None:
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
        if stored is not None and self._written_status(stored, memory) != plan.status.to_api():
            waits.append(max(0.05, memory.status_written + _status_seconds(plan) - moment))
        if memory.leaving_since:
            waits.append(float(STUCK_SECONDS))
        if memory.template_problems:
            waits.append(TEMPLATE_SECONDS)
        if (
            any(isinstance(action, actions.PrepareNodes) for action in plan.actions)
            and memory.prepare_problem is not None
        ):
            waits.append(_PREPARE_SECONDS)
        if seen.hindrance is not None and seen.hindrance.reason == "PodSecurityForbids":
            waits.append(NAMESPACE_SECONDS)
        memory.refused = {node: at for node, at in memory.refused.items() if moment - at < _REFUSED_SECONDS}
        if memory.refused or self._adoptions.has_problem(f"{seen.namespace}/{seen.name}"):
            waits.append(_REFUSED_SECONDS)
        return min(waits, default=None)


def _owned_by(seen: RolloutSnapshot) -> Json:
    return {
        "apiVersion": ROLLOUTS.api_version,
        "kind": ROLLOUTS.kind,
        "name": seen.name,
        "uid": seen.uid,
        "controller": True,
    }


def _status_seconds(plan: Plan) -> float:
    return _STATUS_SECONDS if plan.status.nodes < _LARGE else _STATUS_SECONDS_LARGE


def _ends_the_run(seen: RolloutSnapshot, plan: Plan) -> bool:
    before, after = seen.status.run, plan.status.run
    if before is None or before.state not in ONGOING:
        return False
    return after is None or after.id != before.id or after.state not in ONGOING


def _label_path(key: str) -> str:
    return "/metadata/labels/" + key.replace("~", "~0").replace("/", "~1")


async def _all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all, let each finish, then raise the first error: one node's trouble does not hold up the others."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in errors[1:]:
        if isinstance(error, OutriderError):
            logger.info("Also: %s", error.message)
    if errors:
        raise errors[0]


def _forget_metrics(namespace: str, name: str) -> None:
    for metric in (NODES_METRIC, CONDITIONS, BETWEEN):
        metric.remove_by_labels({"namespace": namespace, "name": name})
