"""ComponentVersions: gather, plan, do the one step that is next, report.

Steps move gigabytes and take minutes, so that they run in threads beside the passes: a pass only starts one, or takes
note of how it ended. At most `ingest_concurrency` of them run at a time. A step whose version was changed or deleted
meanwhile is cancelled, and whatever it still achieves is forgotten.
"""

import asyncio
import base64
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from outrider.adapters import clock, ingest, sources
from outrider.adapters.events import EventRecorder
from outrider.adapters.informer import Store
from outrider.adapters.kube import COMPONENT_VERSIONS, CONFIG_MAPS, Cluster, Json
from outrider.adapters.metrics import STEPS
from outrider.adapters.registry import Descriptor, OciRegistry, RegistrySettings
from outrider.api.componentversion import (
    Artifact,
    ComponentVersionSpec,
    ComponentVersionStatus,
    StoredArtifact,
    StoredSignature,
)
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.api.names import ANNOTATION_RECONCILE, FIELD_MANAGER_STATUS
from outrider.core import version as planning
from outrider.core.version import Done, Failure, Running, VersionSnapshot
from outrider.reconcile.trust import TrustStore
from outrider.settings import Settings
from outrider.trust.detached import decode_signature
from outrider.trust.evidence import Evidence
from outrider.trust.verify import verify_artifact

logger = logging.getLogger(__name__)

_LOOK_AGAIN_AT_SOURCE_SECONDS = 600.0
"""A source that was refused may be mended without anybody telling us; ask it again now and then."""


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
    cancelled: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[None] | None = None


class VersionReconciler:
    """Brings ComponentVersions as far as their stage wants and their content allows."""

    def __init__(
        self,
        cluster: Cluster,
        versions: Store[Json],
        trust: TrustStore,
        recorder: EventRecorder,
        settings: Settings,
        enqueue: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._versions = versions
        self._trust = trust
        self._recorder = recorder
        self._settings = settings
        self._enqueue = enqueue
        self._memories: dict[str, _Memory] = {}
        self._slots = asyncio.Semaphore(settings.ingest_concurrency)

    async def reconcile(self, key: str) -> float | None:
        """Make one pass over `namespace/name`; returns the seconds after which to look again."""
        namespace, _, name = key.partition("/")
        body = self._versions.get(namespace, name)
        if body is None or body["metadata"].get("deletionTimestamp"):
            self._forget(key)
            return None
        spec = ComponentVersionSpec.model_validate(body["spec"])
        status = ComponentVersionStatus.model_validate(body.get("status") or {})
        memory = self._memory(key, body)
        now = clock.now()
        plan = planning.plan_version(
            VersionSnapshot(
                now=now,
                generation=body["metadata"]["generation"],
                spec=spec,
                status=status,
                done=memory.done,
                failure=memory.failure,
                running=memory.running,
                newer_published=self._newer_published(namespace, spec),
                trusted=self._trust.fingerprints(namespace, spec.component),
            )
        )
        if plan.status.to_api() != (body.get("status") or {}):
            answer = await self._cluster.apply(
                COMPONENT_VERSIONS,
                {"metadata": {"namespace": namespace, "name": name}, "status": plan.status.to_api()},
                manager=FIELD_MANAGER_STATUS,
                subresource="status",
            )
            self._versions.put(answer)
        for event in plan.events:
            self._recorder.record(COMPONENT_VERSIONS, namespace, name, body["metadata"]["uid"], event)
        if plan.step is not None:
            step, platform = planning.step_name(plan.step)
            memory.running = Running(step, platform, now)
            memory.task = asyncio.create_task(self._run(key, memory, plan.step, namespace, spec))
        return max(0.0, (plan.wake_at - now).total_seconds()) if plan.wake_at else None

    def trust_changed(self) -> None:
        """Look again at every version: for some a key was missing, for some one is missing now."""
        for key in self._memories:
            self._enqueue(key)

    def stop(self) -> None:
        """Cancel all steps."""
        for key in list(self._memories):
            self._forget(key)

    def _memory(self, key: str, body: Json) -> _Memory:
        generation = body["metadata"]["generation"]
        request = (body["metadata"].get("annotations") or {}).get(ANNOTATION_RECONCILE, "")
        memory = self._memories.get(key)
        uid = body["metadata"]["uid"]
        if memory is None or (memory.uid, memory.generation, memory.request) != (uid, generation, request):
            self._forget(key)
            memory = self._memories[key] = _Memory(uid, generation, request)
        failure = memory.failure
        if (
            failure is not None
            and failure.step == "Verify"
            and failure.stalled
            and memory.failed_with_trust != self._trust.generation
        ):
            memory.failure, memory.attempts = None, 0
        return memory

    def _forget(self, key: str) -> None:
        memory = self._memories.pop(key, None)
        if memory is not None:
            memory.cancelled.set()

    def _newer_published(self, namespace: str, spec: ComponentVersionSpec) -> str | None:
        """Return the newest other published version of the component, if it is newer than this one."""
        others = [
            str(body["spec"]["version"])
            for body in self._versions.values()
            if body["metadata"]["namespace"] == namespace
            and body["spec"]["component"] == spec.component
            and (body.get("status") or {}).get("publishedAt")
            and not body["metadata"].get("deletionTimestamp")
        ]
        top = planning.newest([*others, spec.version])
        return None if top == spec.version else top

    async def _run(
        self,
        key: str,
        memory: _Memory,
        step: planning.Store | planning.Verify | planning.Publish,
        namespace: str,
        spec: ComponentVersionSpec,
    ) -> None:
        name, platform = planning.step_name(step)
        trust = self._trust.generation
        result = "passed"
        try:
            async with self._slots:
                if memory.cancelled.is_set():
                    return
                memory.done = await self._perform(memory, step, namespace, spec)
            memory.failure, memory.attempts = None, 0
        except OutriderError as error:
            result = "refused" if isinstance(error, Stalling) else "unknown"
            self._fail(memory, error, name, platform, trust)
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

    def _fail(self, memory: _Memory, error: OutriderError, name: planning.Step, platform: str, trust: str) -> None:
        memory.attempts += 1
        stalled = isinstance(error, Stalling)
        delay = self._settings.retry.delay(memory.attempts)
        if isinstance(error, Transient) and error.retry_after is not None:
            delay = max(delay, error.retry_after)
        if stalled:
            delay = _LOOK_AGAIN_AT_SOURCE_SECONDS
        memory.failed_with_trust = trust
        memory.failure = Failure(
            name,
            platform,
            error.reason,
            error.message,
            stalled,
            memory.attempts,
            clock.now() + timedelta(seconds=delay),
        )

    async def _perform(
        self,
        memory: _Memory,
        step: planning.Store | planning.Verify | planning.Publish,
        namespace: str,
        spec: ComponentVersionSpec,
    ) -> Done:
        repository = self._repository(namespace, spec.component)
        cancelled = memory.cancelled.is_set
        done = memory.done
        match step:
            case planning.Store(artifact):
                content = await self._config_map_value(namespace, artifact)
                stored = await asyncio.to_thread(self._store, repository, spec, artifact, content, cancelled)
                return Done({**done.artifacts, stored.platform: stored}, done.reference)
            case planning.Verify(artifact, stored):
                checked = await asyncio.to_thread(
                    self._verify, repository, namespace, spec, artifact, stored, cancelled
                )
                return Done({**done.artifacts, checked.platform: checked}, done.reference)
            case planning.Publish(artifacts):
                reference = await asyncio.to_thread(self._publish, repository, spec, artifacts)
                return Done(done.artifacts, reference)

    async def _config_map_value(self, namespace: str, artifact: Artifact) -> bytes | None:
        source = artifact.source.config_map
        if source is None:
            return None
        found = await self._cluster.get(CONFIG_MAPS, namespace, source.name)
        if found is None:
            raise Stalling(
                "SourceNotFound", f"there is no ConfigMap {source.name} in namespace {namespace}; create it, {_RETRY}"
            )
        text, binary = (found.get("data") or {}), (found.get("binaryData") or {})
        if source.key in text:
            return str(text[source.key]).encode()
        if source.key in binary:
            return base64.b64decode(binary[source.key])
        keys = ", ".join(sorted([*text, *binary])) or "none"
        raise Stalling(
            "SourceNotFound", f"ConfigMap {source.name} has no key {source.key} (it has: {keys}); add it, {_RETRY}"
        )

    # -- in threads

    def _store(
        self,
        repository: str,
        spec: ComponentVersionSpec,
        artifact: Artifact,
        content: bytes | None,
        cancelled: Callable[[], bool],
    ) -> StoredArtifact:
        limits = sources.SourceLimits(
            max_bytes=self._settings.max_artifact_bytes, allowed_hosts=self._settings.allowed_source_hosts
        )
        platform = str(artifact.platform)
        with self._registry() as registry:
            # What is there already is not fetched again: a corrected signature needs no source any more.
            blob = ingest.find_stored(registry, repository, artifact.sha256)
            if blob is None:
                with self._open_source(artifact, content, limits, cancelled) as source:
                    blob = ingest.ingest(
                        registry, repository, source, artifact.sha256, field=f"spec.artifacts[{platform}].sha256"
                    )
            facts = ingest.ArtifactFacts(
                spec.component,
                spec.version,
                platform,
                artifact.file_name or "",
            )
            manifest = ingest.store_artifact_manifest(registry, repository, blob, facts)
            if artifact.signature is not None and artifact.signature.inline is not None:
                evidence = Evidence("Detached", decode_signature(artifact.signature.inline))
                ingest.store_evidence(registry, repository, manifest, evidence)
            return StoredArtifact(
                platform=platform,
                digest=blob.digest,
                size=blob.size,
                reference=registry.reference(repository, manifest.digest),
                download_url=registry.blob_url(repository, blob.digest),
                spec_hash=planning.hash_artifact(artifact),
            )

    def _open_source(
        self,
        artifact: Artifact,
        content: bytes | None,
        limits: sources.SourceLimits,
        cancelled: Callable[[], bool],
    ) -> sources.Source:
        source = artifact.source
        if source.config_map is not None and content is not None:
            return sources.from_bytes(f"ConfigMap {source.config_map.name}", content, limits=limits)
        assert source.http is not None  # noqa: S101 - the CRD demands exactly one source
        return sources.open_http(source.http.url, limits=limits, cancelled=cancelled)

    def _verify(
        self,
        repository: str,
        namespace: str,
        spec: ComponentVersionSpec,
        artifact: Artifact,
        stored: StoredArtifact,
        cancelled: Callable[[], bool],
    ) -> StoredArtifact:
        with self._registry() as registry:
            found = ingest.read_back(
                registry, repository, _digest_of(stored.reference), keys=self._trust.keys, cancelled=cancelled
            )
        if found is None:
            # Somebody swept it up: an entry that is no entry's makes the planner store it again.
            return stored.model_copy(update={"spec_hash": "missing"})
        said = (found.facts.component, found.facts.version, found.facts.platform, found.facts.file_name)
        meant = (spec.component, spec.version, str(artifact.platform), artifact.file_name or "")
        if said != meant:
            raise Stalling(
                "ManifestInvalid",
                f"the stored manifest {stored.reference} speaks of {' '.join(said)}, not of {' '.join(meant)}; "
                "somebody else writes to this repository of the registry",
            )
        proof = verify_artifact(
            component=spec.component,
            namespace=namespace,
            version=spec.version,
            platform=str(artifact.platform),
            size=found.size,
            expected_sha256=artifact.sha256,
            actual_sha256=found.sha256,
            evidence=found.evidence,
            further_digests=found.further_digests,
            keys=self._trust.keys,
            trust_namespace=self._settings.namespace,
        )
        return stored.model_copy(
            update={
                "signature": StoredSignature(
                    key_fingerprint=proof.key_fingerprint, format=proof.format, verified_at=clock.now()
                )
            }
        )

    def _publish(self, repository: str, spec: ComponentVersionSpec, artifacts: tuple[StoredArtifact, ...]) -> str:
        with self._registry() as registry:
            entries: dict[str, Descriptor] = {}
            for stored in artifacts:
                digest = _digest_of(stored.reference)
                document = registry.get_manifest(repository, digest)
                if document is None:
                    raise Transient(
                        "ArtifactMissing",
                        f"the registry no longer has the manifest {digest} of {stored.platform}; it was there when it "
                        "was verified. Is something deleting from the registry?",
                    )
                entries[stored.platform] = Descriptor(digest, len(document.content))
            index = ingest.store_index(registry, repository, spec.component, spec.version, entries, publish=True)
            return registry.reference(repository, index.digest)

    def _registry(self) -> OciRegistry:
        settings = self._settings
        return OciRegistry(
            RegistrySettings(
                host=settings.registry,
                plain_http=settings.registry_plain_http,
                ca_file=settings.registry_ca_file or None,
                username=settings.registry_username or None,
                password=settings.registry_password or None,
            )
        )

    def _repository(self, namespace: str, component: str) -> str:
        prefix = self._settings.registry_prefix
        return f"{prefix}/{namespace}/{component}" if prefix else f"{namespace}/{component}"


_RETRY = f"then annotate the ComponentVersion with {ANNOTATION_RECONCILE} to try again at once"


def _digest_of(reference: str) -> str:
    return reference.rpartition("@")[2]
