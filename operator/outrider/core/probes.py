"""Which agents are asked themselves, by `health.http`, and how often. Pure: whoever executes the plan asks them."""

from datetime import datetime, timedelta
from typing import Final

from outrider.core.health import find_agent
from outrider.core.plan import ProbeAgents
from outrider.core.snapshot import Batch, Pod
from outrider.core.states import ARRIVING, ONGOING
from outrider.core.work import Work

PROBE_SECONDS: Final = 2.0
"""How often an agent is asked that has to become healthy."""
WATCH_SECONDS: Final = 10.0
"""How often one is asked that is healthy, while its batch is watched."""
PROBES_PER_SECOND: Final = 100
WATCHES_PER_SECOND: Final = 20
"""However many agents there are, no more are asked: then each is asked less often."""
_ASKED: Final = ARRIVING | {"Succeeded"}
"""In these states of its node an agent may be there that is to be healthy."""


def is_asked(work: Work, batch: Batch, goal: str) -> bool:
    """Tell whether the agents that a batch brings are asked themselves.

    Those that a run returns to are not: the check was written for what it brings, and they may know nothing of it.
    """
    run = work.run
    return (
        work.seen.spec.health.http is not None
        and batch.spec.kind == "Rollout"
        and run is not None
        and goal == run.revision
    )


def probe_agents(work: Work) -> None:
    """Which agents have to be asked themselves now? Those on their way, and those of the batch that is watched."""
    run, seen = work.run, work.seen
    if seen.spec.health.http is None or seen.deleting or run is None or run.state not in ONGOING:
        return
    batches = work.run_batches()
    newest = max((batch.spec.batch for batch in batches), default=0)
    moving: list[Pod] = []
    healthy: list[Pod] = []
    for batch in batches:
        is_watched = batch.spec.batch == newest and run.revision != work.stable
        results = work.results[batch.name]
        if not results.count(_ASKED if is_watched else _ASKED - {"Succeeded"}):
            continue
        for entry in batch.spec.nodes:
            state = results[entry.name].state
            if state not in _ASKED or not is_asked(work, batch, entry.to):
                continue
            pod = find_agent(work.pods(entry.name), entry.to)
            if pod is None or pod.ready_since is None or not pod.ip:
                continue
            if state != "Succeeded":
                moving.append(pod)
            elif is_watched:
                healthy.append(pod)
    due = [
        *_find_due(work, moving, max(PROBE_SECONDS, len(moving) / PROBES_PER_SECOND)),
        *_find_due(work, healthy, max(WATCH_SECONDS, len(healthy) / WATCHES_PER_SECOND)),
    ]
    if due:
        work.questions.append(ProbeAgents(run.version, tuple((pod.uid, pod.ip) for pod in due)))


def _find_due(work: Work, pods: list[Pod], seconds: float) -> list[Pod]:
    """Return whose answer is too old. If one is, those that soon will be are asked with it: one pass for all."""
    now = work.seen.now
    asked: list[tuple[datetime, Pod]] = [(pod.check.at, pod) for pod in pods if pod.check is not None]
    due = [pod for pod in pods if pod.check is None]
    oldest = min((at for at, _ in asked), default=now)
    if due or now - oldest >= timedelta(seconds=seconds):
        due += [pod for at, pod in asked if now - at >= timedelta(seconds=seconds / 2)]
    if pods:
        # What is asked now wakes us by its answer; this is for those whose turn comes later.
        work.wakes.append(max(oldest, now - timedelta(seconds=seconds / 2)) + timedelta(seconds=seconds))
    return due
