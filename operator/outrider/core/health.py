"""What the agent's pod on a node says about the node's move: healthy, failed, or still on its way."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from outrider.api.names import ROLE_REVISION
from outrider.api.rollout import Health
from outrider.core.snapshot import Pod

CANNOT_START = frozenset(
    {
        # Each of these is said by the kubelet only after it tried, and none of them passes without somebody's act.
        # ErrImagePull is not among them: it precedes ImagePullBackOff, and a first pull may fail by chance.
        "CrashLoopBackOff",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
"""Waiting reasons that condemn a node at once, without waiting for the timeout."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement of one node at one moment.

    `wake_at` is when a pending verdict changes without any event, if nothing else happens.
    """

    state: Literal["Healthy", "Failed", "Downloading", "Starting"]
    reason: str = ""
    message: str = ""
    wake_at: datetime | None = None


HEALTHY = Verdict("Healthy")


def is_sound(pod: Pod, revision: str, health: Health) -> bool:
    """Tell whether `judge_pods` would have nothing against a node with this one pod, but that it is Ready only now."""
    return (
        pod.ready_since is not None
        and pod.revision == revision
        and pod.role == ROLE_REVISION
        and pod.live
        and not pod.terminating
        and not pod.trouble
        and not pod.refusal
        and pod.restarts <= health.max_restarts
    )


def judge_pods(pods: Sequence[Pod], revision: str, health: Health, now: datetime) -> Verdict:
    """Judge the agent of `revision` by the pods on its node; deadlines are the caller's.

    Healthy needs positive evidence: a pod of this revision that is Ready without a break for minReadySeconds. Failed
    is what waiting would not mend. Everything else is pending.
    """
    pod = next(
        (
            pod
            for pod in pods
            if (pod.revision, pod.role) == (revision, ROLE_REVISION) and pod.live and not pod.terminating
        ),
        None,
    )
    if pod is None:
        return Verdict("Starting", "NoPod", "the agent's pod has not been created yet")
    if pod.refusal:
        return Verdict("Failed", "ArtifactRefused", pod.refusal)
    if pod.restarts > health.max_restarts:
        detail = f" ({pod.trouble})" if pod.trouble else ""
        times = "once" if pod.restarts == 1 else f"{pod.restarts} times"
        return Verdict(
            "Failed",
            "TooManyRestarts",
            f"pod {pod.name} restarted {times}{detail}, allowed are {health.max_restarts}",
        )
    hopeless = pod.trouble != "CrashLoopBackOff" or pod.restarts >= health.max_restarts
    if pod.trouble in CANNOT_START and hopeless:
        return Verdict("Failed", pod.trouble, f"pod {pod.name} cannot start: {pod.trouble_message or pod.trouble}")
    if pod.ready_since is not None:
        settled_at = pod.ready_since + timedelta(seconds=health.min_ready_seconds)
        if now >= settled_at:
            return HEALTHY
        return Verdict(
            "Starting", "MinReady", f"pod {pod.name} is Ready, but not yet for {health.min_ready_seconds} s", settled_at
        )
    if pod.fetching:
        return Verdict("Downloading", "Fetching", f"pod {pod.name} is pulling and verifying the artifact")
    detail = f": {pod.trouble}" if pod.trouble else ""
    return Verdict("Starting", pod.trouble or "NotReady", f"pod {pod.name} is not Ready{detail}")
