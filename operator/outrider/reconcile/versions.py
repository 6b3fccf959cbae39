"""ComponentVersions: gather, plan, do the one step that is next, report.

Steps move gigabytes and take minutes, so that they run beside the passes: a pass only starts one, or takes note of how
it ended. At most `ingest_concurrency` of them run at a time that fetch something from elsewhere, and as many that work
on what is stored already. A step whose version was changed or deleted meanwhile is
cancelled, and whatever it still achieves is forgotten.
"""

import asyncio
import contextlib
import hashlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from outrider.adapters import clock
from outrider.adapters.events import EventRecorder
from outrider.adapters.informer import Store as Cache
from outrider.adapters.kube import (
    COMPONENT_VERSIONS,
    NAMESPACES,
    Cluster,
    Conflict,
    Json,
    with_finalizer,
    without_finalizer,
)
from outrider.adapters.metrics import STEPS, VERSIONS
from outrider.api import names
from outrider.api.componentversion import ComponentVersionSpec, ComponentVersionStatus, Usage
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.core.compatibility import check_rules
from outrider.core.conditions import bounded
from outrider.core.plan import Event
from outrider.core.version import VersionPlan, newest, plan_version, step_name
from outrider.core.version_snapshot import (
    AnyStep,
    Deletion,
    Done,
    Failure,
    JobFacts,
    Problem,
    Running,
    Step,
    Store,
    Verify,
    VersionSnapshot,
)
from outrider.core.version_status import conclude_unreadable
from outrider.reconcile.catalogue import Catalogue
from outrider.reconcile.inputs import RETRY
from outrider.reconcile.steps import Subject, VersionSteps
from outrider.reconcile.testjobs import TestJobs
from outrider.reconcile.trust import TrustStore
from outrider.settings import Settings

logger = logging.getLogger(__name__)

_MENDED_ELSEWHERE = frozenset({"SourceDenied", "SourceNotFound", "SourceRefused", "RegistryDenied", "SecretUnusable"})
"""Refusals that are mended in a place that tells us nothing."""
_LOOK_AGAIN_SECONDS = 0.2
"""After so long the watch has told what another has written."""
_LOOK_AGAIN_AT_SOURCE_SECONDS = 600.0
"""A source that was refused may be mended without anybody telling us; ask it again now and then."""

UsageOf = Callable[[str, str, str], Usage | None]
"""Who needs a version: namespace, component, version."""


@dataclass
class _Memory:
    """What is known of a version beyond its object; lost at a restart, and found out again then."""

    uid: str
    generation: int
    request: str
    done: Done = field(default_factory=Done)
    failure: Failure | None = None
    failed_with_trust: str = ""
    running: Running | None = None
    attempts: int = 0
    verify_after: datetime | None = None
    looked: dict[str, datetime] = field(default_factory=dict)
    """When new signatures were looked for that were refused, by platform."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[None] | None = None


class VersionReconciler:
    """Brings ComponentVersions as far as their stage wants and their content allows."""

    def __init__(
        self,
        cluster: Cluster,
        versions: Cache[Json],
        catalogue: Catalogue,
        trust: TrustStore,
        jobs: TestJobs,
        usage_of: UsageOf,
        recorder: EventRecorder,
        settings: Settings,
        enqueue: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._versions = versions
        self._catalogue = catalogue
        self._trust = trust
        self._jobs = jobs
        self._usage_of = usage_of
        self._recorder = recorder
        self._settings = settings
        self._enqueue = enqueue
        self._steps = VersionSteps(cluster, versions, trust, jobs, settings)
        self._memories: dict[str, _Memory] = {}
        self._phases: dict[str, str] = {}
        """In which phase each version is counted."""
        # What goes to places that authors name may be held up there for as long as a timeout allows. It must not hold
        # up what needs nobody but the operator's own registry: above all to find out what is to be withdrawn.
        self._outside = asyncio.Semaphore(settings.ingest_concurrency)
        self._outside_of: dict[str, asyncio.Semaphore] = {}
        """By namespace, half as many: one tenant's slow servers leave room for the others."""
        self._inside = asyncio.Semaphore(settings.ingest_concurrency)

    async def reconcile(self, key: str) -> float | None:
        """Make one pass over `namespace/name`; returns the seconds after which to look again."""
        namespace, _, name = key.partition("/")
        body = self._versions.get(namespace, name)
        if body is None:
            self._forget(key)
            self._count(key, None)
            return None
        memory = self._memory(key, body)
        try:
            return await self._pass(key, body, memory)
        except Conflict:
            logger.debug("ComponentVersion %s is not as it was seen, looking again", key)
            return _LOOK_AGAIN_SECONDS

    async def _pass(self, key: str, body: Json, memory: _Memory) -> float | None:
        try:
            spec = ComponentVersionSpec.model_validate(body["spec"])
        except ValidationError as error:
            await self._refuse(body, error)
            return None
        seen = await self._gather(body, spec, memory)
        plan = plan_version(seen)
        await self._execute(key, body, spec, plan, memory)
        self._report(body, plan)
        self._count(key, plan.status.phase)
        return max(0.0, (plan.wake_at - seen.now).total_seconds()) if plan.wake_at else None

    def request_verification(self, namespace: str, name: str) -> None:
        """Have a version verified once more, soon: somebody is about to rely on it."""
        key = f"{namespace}/{name}"
        memory = self._memories.get(key)
        body = self._versions.get(namespace, name)
        if memory is None or body is None or memory.running is not None:
            return
        status = ComponentVersionStatus.model_validate(body.get("status") or {})
        proofs = [stored.signature.verified_at for stored in status.artifacts if stored.signature is not None]
        if memory.verify_after is not None and any(proof < memory.verify_after for proof in proofs):
            return  # asked before, and not answered yet
        # Status tells the time to the second: what is verified within this one counts.
        memory.verify_after = clock.now().replace(microsecond=0)
        self._enqueue(key)

    def trust_changed(self) -> None:
        """Look again at every version: for some a key was missing, for some one is missing now."""
        for key in self._memories:
            self._enqueue(key)

    def stop(self) -> None:
        """Cancel all steps."""
        for key in list(self._memories):
            self._forget(key)

    # -- gather

    async def _gather(self, body: Json, spec: ComponentVersionSpec, memory: _Memory) -> VersionSnapshot:
        metadata = body["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        status = ComponentVersionStatus.model_validate(body.get("status") or {})
        annotations = metadata.get("annotations") or {}
        now = clock.now()
        return VersionSnapshot(
            now=now,
            namespace=namespace,
            generation=metadata["generation"],
            spec=spec,
            status=status,
            done=memory.done,
            failure=memory.failure,
            running=memory.running,
            newer_published=self._newer_published(namespace, spec),
            trusted=self._trust.fingerprints(namespace, spec.component),
            trusted_now=self._trust.fingerprints(namespace, spec.component, at=now),
            require_binding=self._settings.require_binding,
            problems=self._problems(namespace, spec),
            job=await self._job(namespace, name, metadata["uid"], status),
            verdict=annotations.get(names.ANNOTATION_VERDICT, ""),
            retest=annotations.get(names.ANNOTATION_RETEST, ""),
            verify_after=memory.verify_after,
            verification_lasts=timedelta(seconds=self._settings.reverify_seconds * _spread(metadata["uid"])),
            usage=self._usage_of(namespace, spec.component, spec.version) if status.published_at else None,
            deletion=await self._deletion(metadata),
            has_finalizer=names.FINALIZER_VERSION in (metadata.get("finalizers") or []),
        )

    def _newer_published(self, namespace: str, spec: ComponentVersionSpec) -> str | None:
        known = self._catalogue.newest(namespace, spec.component)
        return None if known is None or newest([known, spec.version]) == spec.version else known

    def _problems(self, namespace: str, spec: ComponentVersionSpec) -> tuple[Problem, ...]:
        if spec.compatibility is None:
            return ()
        published = self._catalogue.published(namespace)
        return tuple(Problem(found.reason, found.message) for found in check_rules(spec.compatibility, published))

    async def _job(self, namespace: str, name: str, uid: str, status: ComponentVersionStatus) -> JobFacts | None:
        """Return the newest test Job of a version; the log of a failed one is asked for once."""
        if status.published_at is not None:
            return None
        known = status.test.content if status.test is not None and status.test.state != "Running" else ""
        return await self._jobs.facts(namespace, name, uid, known)

    async def _deletion(self, metadata: Json) -> Deletion | None:
        since = metadata.get("deletionTimestamp")
        if not since:
            return None
        namespace = await self._cluster.get(NAMESPACES, None, metadata["namespace"])
        going = namespace is None or bool(namespace["metadata"].get("deletionTimestamp"))
        return Deletion(datetime.fromisoformat(since).astimezone(UTC), with_namespace=going)

    def _memory(self, key: str, body: Json) -> _Memory:
        generation = body["metadata"]["generation"]
        annotations = body["metadata"].get("annotations") or {}
        request = annotations.get(names.ANNOTATION_RECONCILE, "")
        memory = self._memories.get(key)
        uid = body["metadata"]["uid"]
        if memory is None or (memory.uid, memory.generation, memory.request) != (uid, generation, request):
            self._forget(key)
            asked = memory.verify_after if memory is not None and memory.uid == uid else None
            if memory is not None and memory.uid == uid and memory.request != request:
                asked = clock.now().replace(microsecond=0)
            memory = self._memories[key] = _Memory(uid, generation, request, verify_after=asked)
        failure = memory.failure
        if failure is not None and failure.step == "Verify" and memory.failed_with_trust != self._trust.generation:
            memory.failure, memory.attempts = None, 0
            memory.looked.clear()
        return memory

    def _forget(self, key: str) -> None:
        memory = self._memories.pop(key, None)
        if memory is not None:
            memory.cancelled.set()

    # -- execute

    async def _execute(
        self, key: str, body: Json, spec: ComponentVersionSpec, plan: VersionPlan, memory: _Memory
    ) -> None:
        metadata = body["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        if plan.finalizer == "Keep":
            body = await self._keep_finalizer(body)
        await self._jobs.stop_others(namespace, metadata["uid"], plan.test)
        body = await self._write_status(body, plan.status)
        if plan.finalizer == "Drop":
            await self._drop_finalizer(body)
            return
        if plan.step is not None:
            step, platform = step_name(plan.step)
            memory.running = Running(step, platform, clock.now())
            subject = Subject(namespace, name, metadata["uid"], spec, plan.status)
            memory.task = asyncio.create_task(self._run(key, memory, plan.step, subject))

    async def _refuse(self, body: Json, error: ValidationError) -> None:
        """Say of a spec that the API server has taken and that we cannot read that it is wrong.

        One that is being deleted goes: nobody could tell what it stored, and it must not hold up its namespace.
        """
        if body["metadata"].get("deletionTimestamp"):
            if names.FINALIZER_VERSION in (body["metadata"].get("finalizers") or []):
                await self._drop_finalizer(body)
            return
        status = ComponentVersionStatus.model_validate(body.get("status") or {})
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        problem = f"spec.{'.'.join(str(part) for part in found['loc'])}: {found['msg']}"
        revoked = body["spec"].get("stage") == "Revoked"
        generation = body["metadata"]["generation"]
        after, events = conclude_unreadable(status, problem, generation, clock.now(), revoked=revoked)
        await self._write_status(body, after)
        self._count(f"{body['metadata']['namespace']}/{body['metadata']['name']}", after.phase)
        for event in events:
            self._tell(body["metadata"], event)

    async def _write_status(self, body: Json, status: ComponentVersionStatus) -> Json:
        """Write a status if it is not there already; return the object as it is then."""
        if status.to_api() == (body.get("status") or {}):
            return body
        metadata = body["metadata"]
        answer = await self._cluster.apply(
            COMPONENT_VERSIONS,
            {
                # Decided on this state of the object, and refused if it is another by now.
                "metadata": {
                    "namespace": metadata["namespace"],
                    "name": metadata["name"],
                    "resourceVersion": metadata["resourceVersion"],
                },
                "status": status.to_api(),
            },
            manager=names.FIELD_MANAGER_STATUS,
            subresource="status",
        )
        self._versions.put(answer)
        return answer

    def _report(self, body: Json, plan: VersionPlan) -> None:
        metadata = body["metadata"]
        for event in plan.events:
            self._tell(metadata, event)
        if all(stored.signature is not None for stored in plan.status.artifacts):
            return
        # Whoever waits for a key should hear of one that was meant for him and is none.
        for problem in self._trust.problems(metadata["namespace"], body["spec"]["component"]):
            self._tell(metadata, Event("Warning", problem.reason, problem.message))

    def _count(self, key: str, phase: str | None) -> None:
        namespace, before = key.partition("/")[0], self._phases.pop(key, None)
        if before is not None:
            VERSIONS.labels(namespace, before).dec()
        if phase is not None:
            VERSIONS.labels(namespace, phase).inc()
            self._phases[key] = phase

    def _tell(self, metadata: Json, event: Event) -> None:
        self._recorder.record(COMPONENT_VERSIONS, metadata["namespace"], metadata["name"], metadata["uid"], event)

    async def _keep_finalizer(self, body: Json) -> Json:
        return await self._patch(body, with_finalizer(body, names.FINALIZER_VERSION))

    async def _drop_finalizer(self, body: Json) -> None:
        await self._patch(body, without_finalizer(body, names.FINALIZER_VERSION))

    async def _patch(self, body: Json, operations: list[Json]) -> Json:
        metadata = body["metadata"]
        answer = await self._cluster.patch_json(COMPONENT_VERSIONS, metadata["namespace"], metadata["name"], operations)
        if answer is None:
            return body
        if answer["metadata"].get("finalizers") or not answer["metadata"].get("deletionTimestamp"):
            self._versions.put(answer)
        return answer

    @contextlib.asynccontextmanager
    async def _slot(self, step: AnyStep, namespace: str) -> AsyncIterator[None]:
        """Wait for a place to take a step in."""
        if not _goes_outside(step):
            async with self._inside:
                yield
            return
        async with self._slot_outside(namespace):
            yield

    @contextlib.asynccontextmanager
    async def _slot_outside(self, namespace: str) -> AsyncIterator[None]:
        """Wait for a place to ask a server that an author has named."""
        half = max(1, self._settings.ingest_concurrency // 2)
        async with self._outside_of.setdefault(namespace, asyncio.Semaphore(half)), self._outside:
            yield

    async def _run(self, key: str, memory: _Memory, step: AnyStep, subject: Subject) -> None:
        name, platform = step_name(step)
        trust = self._trust.generation
        result = "passed"
        try:
            async with self._slot(step, subject.namespace):
                if memory.cancelled.is_set():
                    return
                memory.done = await self._steps.perform(step, subject, memory.done, memory.cancelled.is_set)
            if name == "Store" and subject.status.published_at is not None:
                # Signed again, or stored again: what is there now has to prove itself. Status tells the time to the
                # second: what is verified within this one counts.
                memory.verify_after = clock.now().replace(microsecond=0)
            if memory.failure is not None and (memory.failure.step, memory.failure.platform) == (name, platform):
                memory.failure, memory.attempts = None, 0
        except OutriderError as error:
            result = "refused" if isinstance(error, Stalling) else "unknown"
            self._fail(memory, error, name, platform, trust)
            if isinstance(error, Stalling) and isinstance(step, Verify):
                await self._look_for_signatures(key, memory, step, subject, error)
        except Exception:
            logger.exception("%s of %s failed unexpectedly", name, key)
            result = "unknown"
            unexpected = Transient("InternalError", f"{name} failed unexpectedly; the operator's log has the details")
            self._fail(memory, unexpected, name, platform, trust)
        finally:
            STEPS.labels(name, result).inc()
            memory.running = memory.task = None
            if not memory.cancelled.is_set():
                self._enqueue(key)

    async def _look_for_signatures(
        self, key: str, memory: _Memory, step: Verify, subject: Subject, refusal: Stalling
    ) -> None:
        """Have what was refused verified again if it was signed again since; asked for now and then, not each time."""
        now, platform = clock.now(), str(step.artifact.platform)
        before = memory.looked.get(platform)
        if before is not None and now < before + timedelta(seconds=_LOOK_AGAIN_AT_SOURCE_SECONDS):
            return
        memory.looked[platform] = now
        # The refusal counts and is told at once: whom the spec names may take his time to answer.
        self._enqueue(key)
        try:
            async with self._slot_outside(subject.namespace):
                cancelled = memory.cancelled.is_set
                if cancelled() or not await self._steps.look_for_signatures(subject, step, refusal, cancelled):
                    return
            if memory.failure is not None and memory.failure.platform == platform:
                memory.failure = None
        except Exception:
            logger.exception("Looking for new signatures of %s failed unexpectedly", key)

    def _fail(self, memory: _Memory, error: OutriderError, name: Step, platform: str, trust: str) -> None:
        memory.attempts += 1
        stalled = isinstance(error, Stalling)
        delay = self._settings.retry.delay(memory.attempts)
        if isinstance(error, Transient) and error.retry_after is not None:
            delay = max(delay, error.retry_after)
        if stalled:
            delay = _LOOK_AGAIN_AT_SOURCE_SECONDS
        message = error.message
        if stalled and error.reason in _MENDED_ELSEWHERE and RETRY not in message:
            message += f"; {RETRY}"
        memory.failed_with_trust = trust
        memory.failure = Failure(
            name,
            platform,
            error.reason,
            bounded(message),
            stalled,
            memory.attempts,
            clock.now() + timedelta(seconds=delay),
        )
        if memory.failure.condemns and (proven := memory.done.artifacts.get(platform)) is not None:
            # What it had proven before is refuted, and does not come back when the failure is forgotten.
            refuted = proven.model_copy(update={"signature": None})
            memory.done = replace(memory.done, artifacts={**memory.done.artifacts, platform: refuted})


def _goes_outside(step: AnyStep) -> bool:
    """Say whether a step asks a server that the version's author has named."""
    return isinstance(step, Store)


def _spread(uid: str) -> float:
    """Return a number from 0.8 to 1 that is always the same for an object: not all are verified again at once."""
    return 0.8 + 0.2 * int(hashlib.sha256(uid.encode()).hexdigest()[:4], 16) / 0xFFFF
