"""The acting operator: caches, queues and reconcilers wired together."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from outrider.adapters import clock
from outrider.adapters.events import EventRecorder
from outrider.adapters.informer import Informer
from outrider.adapters.kube import (
    COMPONENT_VERSIONS,
    DAEMON_SETS,
    NODES,
    PODS,
    ROLLOUT_BATCHES,
    ROLLOUTS,
    Cluster,
    Json,
)
from outrider.adapters.metrics import PASS_SECONDS, PASSES
from outrider.api import names
from outrider.api.componentversion import Usage
from outrider.api.errors import OutriderError
from outrider.api.rollout import RolloutBatchSpec, RolloutSpec, RolloutStatus
from outrider.core.snapshot import Node
from outrider.core.usage import find_needs, versions_in_use
from outrider.reconcile.catalogue import Catalogue
from outrider.reconcile.checks import Checks
from outrider.reconcile.gathering import Caches
from outrider.reconcile.projections import (
    AgentDaemonSet,
    AgentPod,
    StoredBatch,
    project_batch,
    project_daemonset,
    project_node,
    project_pod,
)
from outrider.reconcile.queue import WorkQueue
from outrider.reconcile.rollouts import RolloutReconciler
from outrider.reconcile.testjobs import TestJobs
from outrider.reconcile.trust import TrustStore
from outrider.reconcile.versions import VersionReconciler
from outrider.settings import Settings

logger = logging.getLogger(__name__)

_RESYNC_SECONDS = 300.0
"""kopf does not tell deletions that happened while a watch was broken; a list now and then finds them."""


_ROLLOUT_RETRY_SECONDS = 15.0
_ROLLOUT_SETTLE_SECONDS = 0.1
"""A batch waits for a pass when its last node is Ready: this is what it takes longer than the moves of its pods."""
_WINDOW_SETTLE_SECONDS = 0.2
"""In a window nodes leave in larger groups: the DaemonSet controller looks over all nodes for each of them, and each
place of the window is free for a tenth of a second more, of the seconds that a pod takes to stop and to start. Who
arrives waits for no pass."""
_SETTLE_AT_MOST_SECONDS = 1.0
_ROLLOUT_FIRST_SECONDS = 0.005
"""Where one node moves at a time nothing else comes to be gathered, and every moment is one without an agent."""
_USAGE_SECONDS = 10.0


def _as_it_is(obj: Json, _before: Json | None) -> Json:
    return obj


def _asked_by_people(rollout: Json) -> tuple[object, object]:
    """Return what changes when somebody wants something else of a Rollout: its generation, and its annotations."""
    return rollout["metadata"]["generation"], rollout["metadata"].get("annotations")


def _key(body: Json) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"


class Controller:
    """Everything that acts.

    The few custom resources come in through kopf (`rollouts.put` and so on), the many nodes and pods through informers.
    """

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self.settings = settings
        self.recorder = EventRecorder(cluster, settings.pod_name)
        self.versions: Informer[Json] = Informer(cluster, COMPONENT_VERSIONS, _as_it_is, self._version_changed)
        self.rollouts: Informer[Json] = Informer(cluster, ROLLOUTS, _as_it_is, self._rollout_changed)
        ours = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
        nodes: Informer[Node] = Informer(cluster, NODES, project_node, self._node_changed)
        pods: Informer[AgentPod] = Informer(
            cluster,
            PODS,
            lambda obj, before: project_pod(obj, before, clock.now()),
            self._pod_changed,
            labelSelector=f"{names.LABEL_ROLLOUT},{ours}",
        )
        daemonsets = Informer(cluster, DAEMON_SETS, project_daemonset, self._daemonset_changed, labelSelector=ours)
        batches = Informer(cluster, ROLLOUT_BATCHES, project_batch, self._batch_changed, labelSelector=ours)
        self._informers = (nodes, pods, daemonsets, batches)
        self._caches = caches = Caches(self.rollouts, self.versions, nodes, pods, daemonsets, batches)
        self.catalogue = Catalogue()
        self._usages: dict[tuple[str, str], tuple[float, dict[str, Usage]]] = {}
        self.jobs = TestJobs(cluster, self._job_changed)
        self.trust = TrustStore(cluster, settings, self.recorder, self._trust_changed)
        self._version_queue = WorkQueue(
            "ComponentVersion", self._timed("ComponentVersion", self._one_version), settings.retry
        )
        # A fleet in the middle of a move is never left alone for minutes, whatever failed.
        hasty = replace(settings.retry, maximum=min(settings.retry.maximum, _ROLLOUT_RETRY_SECONDS))
        self._rollout_queue = WorkQueue(
            "Rollout",
            self._timed("Rollout", self._one_rollout),
            hasty,
            settle_seconds=self._settle_seconds,
            rest_seconds=self._rest_seconds,
            first_seconds=_ROLLOUT_FIRST_SECONDS,
        )
        self._version_reconciler = VersionReconciler(
            cluster,
            self.versions,
            self.catalogue,
            self.trust,
            self.jobs,
            self._usage_of,
            self.recorder,
            settings,
            self._version_queue.add,
        )
        self.checks = Checks(cluster, settings, self._rollout_queue.add)
        self._rollout_reconciler = RolloutReconciler(
            cluster,
            caches,
            self.trust,
            self.recorder,
            settings,
            self.checks,
            self._version_reconciler.request_verification,
            self._rollout_queue.add,
        )
        self._synced = [informer.synced for informer in self._informers]
        self._synced += [self.trust.informer.synced, self.jobs.informer.synced]
        self._synced += [self.versions.synced, self.rollouts.synced]
        self.alive_at = time.monotonic()
        self.begun = asyncio.Event()

    async def run(self) -> None:
        """Act until cancelled. Nothing is decided before every cache has been filled once."""
        async with asyncio.TaskGroup() as group:
            for informer in self._informers:
                group.create_task(informer.run())
            group.create_task(self.trust.informer.run())
            group.create_task(self.jobs.informer.run())
            group.create_task(self.recorder.run())
            group.create_task(self.checks.run())
            group.create_task(self._resync())
            group.create_task(self._beat())
            for synced in self._synced:
                await synced.wait()
            logger.info(
                "Watching %d ComponentVersions and %d Rollouts, %d nodes and %d agents",
                len(self.versions),
                len(self.rollouts),
                *(len(informer) for informer in self._informers[:2]),
            )
            self._rollout_reconciler.begin()
            self.begun.set()
            group.create_task(self._version_queue.run())
            group.create_task(self._watch_usage())
            group.create_task(self._rollout_queue.run())

    def stop(self) -> None:
        """Cancel what runs in threads, and what is watched besides."""
        self._version_reconciler.stop()
        self._rollout_reconciler.stop()

    async def _resync(self) -> None:
        """List the custom resources at the start, and again now and then."""
        while True:
            delay = _RESYNC_SECONDS
            for informer in (self.versions, self.rollouts):
                try:
                    await informer.resync()
                except OutriderError as error:
                    logger.warning("Listing again in 5 s: %s", error.message)
                    delay = 5.0
            await asyncio.sleep(delay)

    async def _beat(self) -> None:
        while True:
            self.alive_at = time.monotonic()
            await asyncio.sleep(1)

    async def _watch_usage(self) -> None:
        """Have versions looked at whose need has changed; only now and then, for counts change with every move."""
        while True:
            await asyncio.sleep(_USAGE_SECONDS)
            self._usages.clear()
            for body in self.versions.values():
                metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
                if not status.get("publishedAt"):
                    continue
                usage = self._usage_of(metadata["namespace"], spec["component"], spec["version"])
                if (usage.to_api() if usage is not None else None) != status.get("usage"):
                    self._version_queue.add(_key(body))

    def _usage_of(self, namespace: str, component: str, version: str) -> Usage | None:
        """Return who needs a version; what was found for its component a moment ago counts for all of them."""
        now = time.monotonic()
        known = self._usages.get((namespace, component))
        if known is None or now - known[0] > 1:
            known = self._usages[namespace, component] = now, self._find_usage(namespace, component)
        return known[1].get(version)

    def _find_usage(self, namespace: str, component: str) -> dict[str, Usage]:
        caches = self._caches
        batches: dict[str, list[RolloutBatchSpec]] = {}
        for stored in caches.batches.values():
            if stored.namespace == namespace:
                batches.setdefault(stored.rollout, []).append(stored.batch.spec)
        needs = [
            find_needs(
                body["metadata"]["name"],
                RolloutSpec.model_validate(body["spec"]),
                RolloutStatus.model_validate(body.get("status") or {}),
                batches.get(body["metadata"]["name"], ()),
            )
            for body in self.rollouts.values()
            if (body["metadata"]["namespace"], body["spec"]["component"]) == (namespace, component)
        ]
        revisions = {
            daemonset.revision: daemonset.version
            for daemonset in caches.daemonsets.values()
            if (daemonset.namespace, daemonset.component) == (namespace, component)
        }
        label = names.assignment_key(namespace, component)
        assignments = (node.labels[label] for node in caches.nodes.values() if label in node.labels)
        return versions_in_use(needs, revisions, assignments)

    def _timed(
        self, kind: str, work: Callable[[str], Awaitable[float | None]]
    ) -> Callable[[str], Awaitable[float | None]]:
        async def timed(key: str) -> float | None:
            begun = time.perf_counter()
            try:
                again = await work(key)
            except BaseException:
                PASSES.labels(kind, "error").inc()
                raise
            PASSES.labels(kind, "ok").inc()
            PASS_SECONDS.labels(kind).observe(time.perf_counter() - begun)
            return again

        return timed

    def _settle_seconds(self, key: str) -> float:
        """Return how long changes of a fleet gather before a pass: long enough that passes take a tenth of the time.

        One over thousands of nodes takes tens of milliseconds, and more where the machine is busy.
        """
        return max(
            self._rest_seconds(key), min(_SETTLE_AT_MOST_SECONDS, 10 * self._rollout_reconciler.pass_seconds(key))
        )

    def _rest_seconds(self, key: str) -> float:
        """Return after how long without a pass nothing else is to be expected: the next change is looked at at once."""
        return _WINDOW_SETTLE_SECONDS if self._rollout_reconciler.rolls_in_a_window(key) else _ROLLOUT_SETTLE_SECONDS

    async def _one_version(self, key: str) -> float | None:
        again = await self._version_reconciler.reconcile(key)
        if self.versions.get(*key.split("/", 1)) is None:
            self._version_queue.forget(key)
        return again

    async def _one_rollout(self, key: str) -> float | None:
        again = await self._rollout_reconciler.reconcile(key)
        if self.rollouts.get(*key.split("/", 1)) is None:
            self._rollout_queue.forget(key)
        return again

    # -- who has to look again when something changed

    def _version_changed(self, before: Json | None, after: Json | None) -> None:
        body = after or before
        if body is None:
            return
        self._version_queue.add(_key(body))
        namespace, component = body["metadata"]["namespace"], body["spec"]["component"]
        if self.catalogue.note(before, after):
            # Another is the latest now, and what others require may have come or gone.
            lost = _is_latest(before) and not _is_latest(after)
            for other in self.versions.values():
                if _is_concerned(other, namespace, component, lost_latest=lost):
                    self._version_queue.add(_key(other))
        self._wake_rollouts(namespace, component)

    def _job_changed(self, namespace: str, version: str) -> None:
        self._version_queue.add(f"{namespace}/{version}")

    def _wake_rollouts(self, namespace: str, component: str) -> None:
        for rollout in self.rollouts.values():
            if (rollout["metadata"]["namespace"], rollout["spec"]["component"]) == (namespace, component):
                self._rollout_queue.add(_key(rollout))

    def _rollout_changed(self, before: Json | None, after: Json | None) -> None:
        body = after or before
        if body is None:
            return
        if before is None or after is None or _asked_by_people(before) != _asked_by_people(after):
            self._rollout_reconciler.wait_for_a_pass(_key(body))
            self._rollout_queue.retry_now(_key(body))
        else:
            self._rollout_queue.add(_key(body))
        if before is None or after is None or before["spec"] != after["spec"]:
            for other in self.rollouts.values():  # nodes may have changed hands
                self._rollout_queue.add(_key(other))

    def _node_changed(self, _before: Node | None, _after: Node | None) -> None:
        for rollout in self.rollouts.values():
            self._rollout_queue.add(_key(rollout))

    def _pod_changed(self, before: AgentPod | None, after: AgentPod | None) -> None:
        agent = after or before
        if agent is None:
            return
        if after is None or not after.pod.live:
            self._rollout_reconciler.pod_ended(agent.namespace, agent.component, agent.pod.node)
        self._wake_rollouts(agent.namespace, agent.component)

    def _daemonset_changed(self, before: AgentDaemonSet | None, after: AgentDaemonSet | None) -> None:
        daemonset = after or before
        if daemonset is not None and daemonset.rollout:
            self._rollout_queue.add(f"{daemonset.namespace}/{daemonset.rollout}")

    def _batch_changed(self, before: StoredBatch | None, after: StoredBatch | None) -> None:
        batch = after or before
        if batch is None:
            return
        # Those of other components, too: what requires this one waits until a record says that it is healthy there.
        for rollout in self.rollouts.values():
            if rollout["metadata"]["namespace"] == batch.namespace:
                self._rollout_queue.add(_key(rollout))

    def _trust_changed(self) -> None:
        self._version_reconciler.trust_changed()
        for rollout in self.rollouts.values():
            self._rollout_queue.add(_key(rollout))


def _is_latest(body: Json | None) -> bool:
    return bool(body and (body.get("status") or {}).get("latest"))


def _is_concerned(other: Json, namespace: str, component: str, *, lost_latest: bool) -> bool:
    """Say whether a version has to look again because what is published of a component has changed."""
    if other["metadata"]["namespace"] != namespace:
        return False
    published = bool((other.get("status") or {}).get("publishedAt"))
    if other["spec"]["component"] == component:
        return published and (lost_latest or _is_latest(other))
    required = (other["spec"].get("compatibility") or {}).get("requires") or []
    return not published and any(rule["component"] == component for rule in required)
