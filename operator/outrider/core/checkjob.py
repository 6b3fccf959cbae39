"""The Job of an analysis, and what its state means. Pure."""

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from outrider.api import names
from outrider.api.checks import AnalysisVerdict, JobCheck

Json = dict[str, Any]

_KEEP_SECONDS = 3600
"""So long a finished Job and its logs stay for whoever wants to look."""


def check_job_name(rollout: str, uid: str, batch: str, analysis: str, attempt: int, check: JobCheck) -> str:
    """Return the name of the Job of one attempt: another template is another Job. At most 63 characters."""
    content = json.dumps([uid, batch, analysis, attempt, check.to_api()], sort_keys=True)
    readable = f"check-{rollout[:24]}-{analysis[:20]}".replace(".", "-").rstrip("-")
    return f"{readable}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def build_check_job(
    *, namespace: str, rollout: str, uid: str, run: int, batch: str, analysis: str, attempt: int, check: JobCheck
) -> Json:
    """Return the Job that answers an analysis about a batch. It goes with its Rollout."""
    own = check.template
    template = copy.deepcopy(dict(own.spec.template))
    pod = template["spec"] = dict(template.get("spec") or {})
    pod.setdefault("restartPolicy", "Never")
    labels = {
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_ROLLOUT: rollout,
        names.LABEL_RUN: str(run),
        names.LABEL_ANALYSIS: analysis,
    }
    return {
        "metadata": {
            "name": check_job_name(rollout, uid, batch, analysis, attempt, check),
            "namespace": namespace,
            # Not on its pods: these two labels of ours are how agents are known.
            "labels": {**own.metadata.labels, **labels},
            "annotations": {**own.metadata.annotations, names.ANNOTATION_BATCH: batch},
            "ownerReferences": [{"apiVersion": names.API_VERSION, "kind": "Rollout", "name": rollout, "uid": uid}],
        },
        "spec": {
            "backoffLimit": own.spec.backoff_limit,
            "activeDeadlineSeconds": own.spec.active_deadline_seconds,
            "ttlSecondsAfterFinished": _KEEP_SECONDS,
            "template": template,
        },
    }


def is_check_job(job: Mapping[str, Any], uid: str) -> bool:
    """Tell whether a Job was made by us for the Rollout with this UID: nobody else may give it these labels."""
    labels = job["metadata"].get("labels") or {}
    owners = {owner["uid"] for owner in job["metadata"].get("ownerReferences") or []}
    return labels.get(names.LABEL_MANAGED_BY) == names.MANAGED_BY and names.LABEL_ANALYSIS in labels and uid in owners


def judge_check_job(job: Mapping[str, Any]) -> tuple[AnalysisVerdict, str] | None:
    """Return what a Job has answered; None while it runs. One that came to no end in its time has told nothing."""
    name = job["metadata"]["name"]
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition.get("status") != "True":
            continue
        if condition["type"] == "Complete":
            return "Pass", f"Job {name} succeeded"
        if condition["type"] == "Failed":
            reason = str(condition.get("reason") or "")
            look = f"kubectl logs job/{name}"
            if reason == "DeadlineExceeded":
                return "Unknown", f"Job {name} came to no end within its activeDeadlineSeconds ({look})"
            return "Fail", f"Job {name} failed{f' ({reason})' if reason else ''}: {look}"
    return None
