"""The Job that tests a version, and what its state means. Pure.

The test sees what nodes will see: the same init container pulls the artifact by digest, verifies hash and signature
once more, and hands it over read-only.
"""

import copy
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from outrider.api import names
from outrider.api.componentversion import JobTest, StoredArtifact
from outrider.core.delivery import FetchSettings, deliver_to_volume
from outrider.core.revision import require_nodes
from outrider.core.version_snapshot import JobFacts
from outrider.core.words import last_words

Json = dict[str, Any]

_KEEP_SECONDS = 24 * 3600
"""So long a finished Job and its logs stay for whoever wants to look."""

MAX_MESSAGE_BYTES = 2048
"""What status keeps of a failed test's last words."""


def job_name(component: str, version: str, content: str) -> str:
    """Return the name of the Job that tests a content: one content, one Job, at most 63 characters."""
    readable = f"test-{component}-{version}".replace(".", "-")[:30].rstrip("-")
    return f"{readable}-{content}"


def build_test_job(
    *,
    namespace: str,
    name: str,
    uid: str,
    component: str,
    version: str,
    test: JobTest,
    content: str,
    artifacts: Sequence[StoredArtifact],
    fetch: FetchSettings,
) -> Json:
    """Return the Job that tests one content of the ComponentVersion called `name`.

    It runs on a node that there is an artifact for, and goes with its ComponentVersion. Of an image, containers that
    name none get the verified one.
    """
    template = copy.deepcopy(dict(test.template.spec.template))
    labels = {
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_COMPONENT_VERSION: uid,
        names.LABEL_COMPONENT: component,
        names.LABEL_VERSION: version,
    }
    metadata = template["metadata"] = dict(template.get("metadata") or {})
    metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
    pod = template["spec"] = dict(template.get("spec") or {})
    pod.setdefault("restartPolicy", "Never")
    architectures = sorted({stored.platform.partition("/")[2] for stored in artifacts})
    require_nodes(pod, [[{"key": names.LABEL_ARCH, "operator": "In", "values": architectures}]])
    if artifacts[0].kind == "Image":
        image = fetch.images[artifacts[0].platform]
        for container in [*(pod.get("initContainers") or []), *(pod.get("containers") or [])]:
            container.setdefault("image", image)
    else:
        containers = [container["name"] for container in pod.get("containers") or []]
        # Without the node's cache: what is tested may never be published, and a test needs no right on nodes.
        deliver_to_volume(pod, component, version, test.mount_path, containers, fetch, cache=False)
    own = test.template
    return {
        "metadata": {
            "name": job_name(component, version, content),
            "namespace": namespace,
            "labels": {**own.metadata.labels, **labels},
            "annotations": {**own.metadata.annotations, names.ANNOTATION_TEST: content},
            "ownerReferences": [
                {"apiVersion": names.API_VERSION, "kind": "ComponentVersion", "name": name, "uid": uid}
            ],
        },
        "spec": {
            "backoffLimit": own.spec.backoff_limit,
            "activeDeadlineSeconds": own.spec.active_deadline_seconds,
            "ttlSecondsAfterFinished": _KEEP_SECONDS,
            "template": template,
        },
    }


def job_facts(job: Mapping[str, Any], log: str = "") -> JobFacts:
    """Return what a Job says about its test; `log` are the last lines of a failed one's pod."""
    metadata, status = job["metadata"], job.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or [] if c.get("status") == "True"}
    content = (metadata.get("annotations") or {}).get(names.ANNOTATION_TEST, "")
    started = status.get("startTime")
    started_at = datetime.fromisoformat(started) if started else None
    if "Complete" in conditions:
        return JobFacts(metadata["name"], content, "Passed", started_at, f"Job {metadata['name']} succeeded")
    if "Failed" in conditions:
        said = conditions["Failed"]
        why = said.get("message") or said.get("reason") or "it failed"
        message = f"Job {metadata['name']}: {why}"
        if log:
            room = MAX_MESSAGE_BYTES - len(message.encode()) - 20
            message += f"; last lines: {last_words(log, room)}"
        return JobFacts(metadata["name"], content, "Failed", started_at, message)
    return JobFacts(metadata["name"], content, "Running", started_at)


def is_finished(job: Mapping[str, Any]) -> bool:
    """Say whether a Job has ended."""
    return job_facts(job).state != "Running"
