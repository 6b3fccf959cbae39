"""The Jobs that test versions: created, watched, and stopped when what they test is no longer wanted."""

import asyncio
import logging
from collections.abc import Callable

from outrider.adapters.informer import Informer
from outrider.adapters.kube import JOBS, PODS, Cluster, Conflict, Json
from outrider.api import names
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.core.testjob import is_finished, job_facts
from outrider.core.version_snapshot import JobFacts

logger = logging.getLogger(__name__)

_OURS = (names.LABEL_MANAGED_BY, names.LABEL_COMPONENT_VERSION)
"""Labels by which the Job of a version is known: nobody but the operator may write Jobs that have the first."""
_LOG_LINES = 20
_LOG_BYTES = 16 * 1024


class TestJobs:
    """All Jobs of ours in the cluster."""

    def __init__(self, cluster: Cluster, on_change: Callable[[str, str], None]) -> None:
        """`on_change` is told the namespace and the name of the ComponentVersion whose Job has changed."""
        self._cluster = cluster
        self._on_change = on_change
        self.informer: Informer[Json] = Informer(
            cluster,
            JOBS,
            lambda obj, _before: obj,
            self._changed,
            labelSelector=f"{names.LABEL_COMPONENT_VERSION},{names.LABEL_MANAGED_BY}={names.MANAGED_BY}",
        )

    async def facts(self, namespace: str, name: str, uid: str, known: str) -> JobFacts | None:
        """Return the newest Job of a version. The log of a failed one is read unless its content is `known`."""
        jobs = sorted(self._of(namespace, uid), key=lambda job: str(job["metadata"]["creationTimestamp"]))
        if not jobs:
            return None
        job = jobs[-1]
        facts = job_facts(job)
        if facts.state != "Failed" or facts.content == known:
            return facts
        return job_facts(job, await self._last_words(namespace, job))

    async def create(self, namespace: str, job: Json) -> None:
        """Create a test's Job; that it exists already is fine, if it is ours. Raises Stalling(TestInvalid)."""
        try:
            self.informer.put(await self._cluster.create(JOBS, job, namespace))
        except Conflict as error:
            if error.reason != "AlreadyExists":
                raise
            name, labels = job["metadata"]["name"], job["metadata"]["labels"]
            found = await self._cluster.get(JOBS, namespace, name)
            if found is None:
                raise Transient("TestGone", f"Job {name} was deleted just now; it will be created again") from None
            if any((found["metadata"].get("labels") or {}).get(key) != labels[key] for key in _OURS):
                raise Stalling(
                    "TestInvalid",
                    f"there is a Job {name} in namespace {namespace} already that is none of the operator's; delete it",
                ) from None
            self.informer.put(found)
        except Stalling as error:
            raise Stalling(
                "TestInvalid",
                f"the API server refuses the Job made from spec.testing.job.template: {error.message}; correct it",
            ) from None

    async def stop_others(self, namespace: str, uid: str, content: str) -> None:
        """Delete the unfinished Jobs of a version that test anything but `content`."""
        others = [job for job in self._of(namespace, uid) if not is_finished(job) and job_facts(job).content != content]
        await asyncio.gather(
            *(
                self._cluster.delete(JOBS, namespace, job["metadata"]["name"], uid=job["metadata"]["uid"])
                for job in others
                if not job["metadata"].get("deletionTimestamp")
            )
        )

    def _of(self, namespace: str, uid: str) -> list[Json]:
        return [
            job
            for job in self.informer.values()
            if job["metadata"]["namespace"] == namespace
            and job["metadata"]["labels"].get(names.LABEL_COMPONENT_VERSION) == uid
        ]

    async def _last_words(self, namespace: str, job: Json) -> str:
        """Return the end of the log of the container that failed; nothing if it cannot be had."""
        try:
            selector = f"batch.kubernetes.io/job-name={job['metadata']['name']}"
            pods: list[Json] = []
            async for items, _ in self._cluster.list_chunks(PODS, namespace, labelSelector=selector):
                pods += items
        except OutriderError as error:
            logger.info("No pods of Job %s/%s: %s", namespace, job["metadata"]["name"], error.message)
            return ""
        for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), reverse=True):
            status = pod.get("status") or {}
            containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
            for container in containers:
                ended = (container.get("state") or {}).get("terminated") or {}
                if ended.get("exitCode"):
                    log = await self._cluster.read_log(
                        namespace, pod["metadata"]["name"], container["name"], lines=_LOG_LINES, limit=_LOG_BYTES
                    )
                    return log or str(ended.get("message") or "")
        return ""

    def _changed(self, before: Json | None, after: Json | None) -> None:
        job = after or before
        if job is None:
            return
        for owner in job["metadata"].get("ownerReferences") or []:
            if owner["kind"] == "ComponentVersion":
                self._on_change(job["metadata"]["namespace"], owner["name"])
