"""What the agent's pod on a node says about the node's move: healthy, failed, or still on its way."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from outrider.api.names import ROLE_REVISION
from outrider.api.rollout import Health
from outrider.core.snapshot import Node, Pod

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


NEVER_THERE = frozenset({"InvalidImageName", "ErrImageNeverPull"})
"""Those of them that no registry has to do with."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement of one node at one moment.

    `wake_at` is when a pending verdict changes without any event, if nothing else happens. `unknown` says that the
    agent's own check has told nothing: that condemns nobody. `told_at` is when it first told anything.
    """

    state: Literal["Healthy", "Failed", "Downloading", "Verifying", "Installing", "Starting"]
    reason: str = ""
    message: str = ""
    wake_at: datetime | None = None
    unknown: bool = False
    told_at: datetime | None = None


HEALTHY = Verdict("Healthy")

INIT_RETRIES = 3
"""How often an init container that has to come to an end may be tried again before its crash loop counts as failure:
some wait for a neighbour by crashing."""


def find_sound(
    nodes: Iterable[Node], pods: Mapping[str, Sequence[Pod]], revision: str, health: Health
) -> AbstractSet[str]:
    """Return the UIDs of the Ready nodes with just one pod, against which `judge_pods` would have nothing.

    But that it is Ready only now. They are most of a fleet in every pass, so that each is only glanced at.
    """
    pods_on, most = pods.get, health.max_restarts
    return {
        node.uid
        for node in nodes
        if node.ready
        and len(there := pods_on(node.name, ())) == 1
        and (pod := there[0]).is_well
        and pod.revision == revision
        and pod.restarts <= most
    }


def find_agent(pods: Sequence[Pod], revision: str) -> Pod | None:
    """Return the pod on a node that is the agent of a revision."""
    for pod in pods:
        if (pod.revision, pod.role) == (revision, ROLE_REVISION) and pod.live and not pod.terminating:
            return pod
    return None


def judge_pods(
    pods: Sequence[Pod],
    revision: str,
    health: Health,
    now: datetime,
    *,
    is_checked: bool = False,
    is_prepared: bool = False,
    is_return: bool = False,
) -> Verdict:
    """Judge the agent of `revision` by the pods on its node; deadlines are the caller's.

    Healthy needs positive evidence: a pod of this revision that is Ready without a break for minReadySeconds, and
    whose own check passes as long, if it `is_checked`. Failed is what waiting would not mend. All else is pending.
    `is_prepared` says that what the pod needs was on the node before, `is_return` that the node goes back: then an
    installation has nothing better to go back to, and may be tried again.
    """
    pod = find_agent(pods, revision)
    if pod is None:
        return Verdict("Starting", "NoPod", "the agent's pod has not been created yet")
    if (failure := _judge_failure(pod, health, is_return=is_return)) is not None:
        return failure
    if pod.refusal is not None:  # it is tried again
        return Verdict("Starting", pod.refusal.reason, f"pod {pod.name}: {pod.refusal.message}")
    if pod.ready_since is not None:
        return _judge_ready(pod, pod.ready_since, health, now, is_checked=is_checked)
    if pod.unschedulable:
        return Verdict("Starting", "Unschedulable", f"pod {pod.name} finds no place: {pod.unschedulable}")
    if pod.installing:
        return Verdict("Installing", "Installing", f"pod {pod.name} is installing the artifact on the node")
    if pod.fetching and is_prepared:
        return Verdict("Verifying", "Verifying", f"pod {pod.name} is verifying the artifact, which is on the node")
    if pod.fetching:
        return Verdict("Downloading", "Fetching", f"pod {pod.name} is pulling and verifying the artifact")
    detail = f": {pod.trouble}" if pod.trouble else ""
    crash = f": {pod.crash}" if pod.crash else ""
    return Verdict("Starting", pod.trouble or "NotReady", f"pod {pod.name} is not Ready{detail}{crash}")


def find_refusal(pod: Pod, health: Health, *, is_return: bool = False) -> tuple[str, str] | None:
    """Return reason and message if one of our programs on a node has given up, or cannot run there; else None."""
    lasts = (pod.retries or 0) >= _enough(health)
    refusal = pod.refusal
    if refusal is not None and (refusal.final or lasts or (refusal.gone_back and not is_return)):
        return refusal.reason, refusal.message
    if pod.trouble in NEVER_THERE or (pod.trouble == "CrashLoopBackOff" and pod.retries is not None and lasts):
        return pod.trouble, pod.crash or pod.trouble_message or pod.trouble
    return None


def _judge_failure(pod: Pod, health: Health, *, is_return: bool) -> Verdict | None:
    """Return the verdict on a pod with which waiting would mend nothing; None if there is hope."""
    if pod.refusal is not None and (refused := find_refusal(pod, health, is_return=is_return)) is not None:
        return Verdict("Failed", *refused)
    crash = f": {pod.crash}" if pod.crash else ""
    if pod.restarts > health.max_restarts:
        detail = f" ({pod.trouble})" if pod.trouble else ""
        times = "once" if pod.restarts == 1 else f"{pod.restarts} times"
        return Verdict(
            "Failed",
            "TooManyRestarts",
            f"pod {pod.name} restarted {times}{detail}, allowed are {health.max_restarts}{crash}",
        )
    if pod.trouble in CANNOT_START and _is_hopeless(pod, health):
        why = pod.trouble_message or pod.trouble
        if pod.trouble == "CrashLoopBackOff" and pod.crash:
            why = f"{pod.trouble}{crash}"  # the kubelet says no more than that it waits
        return Verdict("Failed", pod.trouble, f"pod {pod.name} cannot start: {why}")
    return None


def _is_hopeless(pod: Pod, health: Health) -> bool:
    """Tell whether what keeps a container from running does not pass by itself."""
    if pod.trouble != "CrashLoopBackOff":
        return True
    if pod.retries is not None:
        return pod.retries >= _enough(health)
    return pod.restarts >= health.max_restarts


def _enough(health: Health) -> int:
    """Return how often an init container is tried again before that counts."""
    return max(INIT_RETRIES, health.max_restarts)


def _judge_ready(pod: Pod, ready_since: datetime, health: Health, now: datetime, *, is_checked: bool) -> Verdict:
    good_since = ready_since
    if is_checked:
        check = pod.check
        if not pod.ip:
            return Verdict(
                "Starting", "HealthUnknown", f"pod {pod.name} has no IP address to be asked at", unknown=True
            )
        if check is None:
            return Verdict("Starting", "CheckPending", f"pod {pod.name} is Ready and is being asked", unknown=True)
        if check.verdict == "Unknown":
            return Verdict("Starting", "HealthUnknown", f"pod {pod.name} is Ready, {check.message}", unknown=True)
        if check.verdict == "Fail":
            message = f"pod {pod.name} is Ready, but {check.message}"
            return Verdict("Starting", "CheckFailed", message, told_at=check.told_at)
        good_since = max(good_since, check.since)
    settled_at = good_since + timedelta(seconds=health.min_ready_seconds)
    if now >= settled_at:
        return HEALTHY
    return Verdict(
        "Starting", "MinReady", f"pod {pod.name} is Ready, but not yet for {health.min_ready_seconds} s", settled_at
    )
