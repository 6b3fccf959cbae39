"""Jobs of analyses against a real API server: found again, refused, given up."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from adapters.realapiserver import RealApiServer
from outrider.adapters.kube import JOBS, Cluster, Json
from outrider.api.rollout import RolloutBatchSpec, RolloutBatchStatus, RolloutSpec, RolloutStatus, RunStatus
from outrider.core.checkjob import build_check_job
from outrider.core.plan import AskAnalysis, Plan
from outrider.core.snapshot import AnalysisAnswer, Batch, RolloutSnapshot
from outrider.reconcile.checks import Checks
from outrider.reconcile.gathering import Memory
from outrider.settings import Settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = "default/node-agent"


def a_spec(seconds: int = 600, **template: Any) -> RolloutSpec:
    pod = {"spec": {"restartPolicy": "Never", "containers": [{"name": "smoke", "image": "smoke"}]}, **template}
    job = {"template": pod, "activeDeadlineSeconds": seconds}
    return RolloutSpec.model_validate(
        {
            "component": "node-agent",
            "version": "1.1.0",
            "target": {"all": True},
            "template": {"spec": {"containers": [{"name": "agent", "image": "agent"}]}},
            "delivery": {"volume": {"mountPath": "/opt/agent", "containers": ["agent"]}},
            "strategy": {"type": "Full"},
            "analysis": [{"name": "smoke", "job": {"template": {"spec": job}}}],
        }
    )


def seen(uid: str, **changes: Any) -> RolloutSnapshot:
    """A Rollout whose second run has ended its first batch."""
    spec = RolloutBatchSpec(
        rollout="node-agent", run=2, kind="Rollout", version="1.1.0", batch=1, started_at=NOW, nodes=[]
    )
    made = RolloutSnapshot(
        now=NOW,
        namespace="default",
        name="node-agent",
        uid=uid,
        generation=1,
        deleting=False,
        has_finalizer=True,
        spec=a_spec(),
        status=RolloutStatus(),
        assignment_key="key",
        wanted="r",
        batches=(Batch("node-agent-2-1", spec, RolloutBatchStatus()),),
    )
    return replace(made, **changes)


def a_plan(state: str = "Running", attempt: int = 1) -> Plan:
    run = RunStatus.model_validate(
        {"id": 2, "kind": "Rollout", "state": state, "version": "1.1.0", "revision": "r", "startedAt": NOW}
    )
    asks = (AskAnalysis("node-agent-2-1", "smoke", attempt),) if state == "Running" else ()
    return Plan(asks, RolloutStatus(run=run))


def job_of(now: RolloutSnapshot, attempt: int = 1) -> Json:
    check = now.spec.analysis[0].job
    assert check is not None
    return build_check_job(
        namespace="default",
        rollout="node-agent",
        uid=now.uid,
        run=2,
        batch="node-agent-2-1",
        analysis="smoke",
        attempt=attempt,
        check=check,
    )


@dataclass
class Process:
    """What asks, as a process of the operator does."""

    checks: Checks
    memory: Memory
    task: asyncio.Task[None]

    def begin(self, now: RolloutSnapshot, plan: Plan) -> None:
        self.checks.begin(KEY, now, plan, self.memory)

    async def answer(self) -> AnalysisAnswer:
        for _ in range(400):
            for answer in self.memory.answers.values():
                return answer
            await asyncio.sleep(0.05)
        raise AssertionError("no answer came")


Start = Callable[[], Process]


@pytest.fixture
async def start(kube: Cluster) -> AsyncIterator[Start]:
    """Start another process."""
    started: list[Process] = []

    def begin() -> Process:
        checks = Checks(kube, Settings(registry="registry"), lambda _key: None)
        started.append(Process(checks, Memory(), asyncio.create_task(checks.run())))
        return started[-1]

    yield begin
    for process in started:
        process.task.cancel()
    await asyncio.gather(*(process.task for process in started), return_exceptions=True)


async def find(kube: Cluster, now: RolloutSnapshot) -> Json | None:
    return await kube.get(JOBS, "default", job_of(now)["metadata"]["name"])


async def appears(kube: Cluster, now: RolloutSnapshot) -> Json:
    for _ in range(400):
        if (job := await find(kube, now)) is not None:
            return job
        await asyncio.sleep(0.05)
    raise AssertionError("no Job came")


@pytest.mark.parametrize(
    ("behaviour", "seconds", "verdict"), [("", 600, "Pass"), ("fails", 600, "Fail"), ("never-ready", 3, "Unknown")]
)
async def test_a_job_s_end_is_the_answer_also_for_a_process_that_did_not_create_it(
    api_server: RealApiServer, kube: Cluster, start: Start, behaviour: str, seconds: int, verdict: str
) -> None:
    labels = {"e2e": f"smoke-{verdict}".lower()}
    pod = {
        "restartPolicy": "Never",
        "tolerations": [{"operator": "Exists"}],
        "containers": [{"name": "smoke", "image": "smoke"}],
    }
    fault = api_server.local.inject(behaviour, namespace="default", pod_labels=labels) if behaviour else None
    spec = a_spec(seconds, metadata={"labels": labels}, spec=pod)
    now = seen(f"uid-{verdict}".lower(), spec=spec)
    first = start()
    first.begin(now, a_plan())
    first.begin(now, a_plan())
    await appears(kube, now)
    second = start()
    second.begin(now, a_plan())
    for process in (first, second):
        answer = await process.answer()
        assert (answer.batch, answer.name, answer.attempt) == ("node-agent-2-1", "smoke", 1)
        assert answer.verdict == verdict, answer.message
    if fault is not None:
        fault.remove()
    jobs = [job async for items, _ in kube.list_chunks(JOBS, "default") for job in items]
    owners = [owner["uid"] for job in jobs for owner in job["metadata"].get("ownerReferences") or []]
    assert owners.count(now.uid) == 1


async def test_a_job_that_no_run_waits_for_any_more_is_deleted(kube: Cluster, start: Start) -> None:
    now = seen("uid-superseded")
    process = start()
    process.begin(now, a_plan())
    await appears(kube, now)
    await asyncio.sleep(0.5)  # until it knows as well
    process.begin(now, a_plan("Superseded"))
    for _ in range(400):
        job = await find(kube, now)
        if job is None or job["metadata"].get("deletionTimestamp"):
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("the Job stays")
    assert process.memory.answers == {}


async def test_the_end_of_a_process_leaves_the_job_to_the_next(kube: Cluster, start: Start) -> None:
    now = seen("uid-restarted")
    process = start()
    process.begin(now, a_plan())
    await appears(kube, now)
    process.task.cancel()
    await asyncio.sleep(0.5)
    job = await find(kube, now)
    assert job is not None
    assert "deletionTimestamp" not in job["metadata"]


async def test_a_job_that_somebody_deletes_has_told_nothing(kube: Cluster, start: Start) -> None:
    now = seen("uid-deleted")
    process = start()
    process.begin(now, a_plan())
    job = await appears(kube, now)
    await asyncio.sleep(0.5)  # until it knows as well
    await kube.delete(JOBS, "default", job["metadata"]["name"])
    answer = await process.answer()
    assert answer.verdict == "Unknown"
    assert "was deleted before it had ended" in answer.message


async def test_a_template_that_the_api_server_refuses_tells_nothing_and_says_why(start: Start) -> None:
    process = start()
    process.begin(seen("uid-refused", spec=a_spec(spec={"containers": [{"name": "smoke"}]})), a_plan())
    answer = await process.answer()
    assert answer.verdict == "Unknown"
    assert "the API server refuses the Job made from its template" in answer.message


async def test_a_job_of_somebody_else_under_its_name_is_not_believed(kube: Cluster, start: Start) -> None:
    now = seen("uid-taken")
    theirs = job_of(now)
    theirs["metadata"] = {"name": theirs["metadata"]["name"]}
    await kube.create(JOBS, theirs, "default")
    process = start()
    process.begin(now, a_plan())
    answer = await process.answer()
    assert answer.verdict == "Unknown"
    assert "none of the operator's" in answer.message
