"""What a pass has asked, in the background: whom it wakes, what is remembered, and what Secrets are for."""

import asyncio
import base64
import http.server
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from adapters.realservers import RealHttpServer
from outrider.adapters.kube import Cluster, Json, Resource
from outrider.api.errors import Transient
from outrider.api.rollout import RolloutBatchSpec, RolloutBatchStatus, RolloutSpec, RolloutStatus, RunStatus
from outrider.core.plan import AskAnalysis, Plan, ProbeAgents
from outrider.core.snapshot import AnalysisAnswer, Batch, RolloutSnapshot
from outrider.reconcile.checks import Checks
from outrider.reconcile.gathering import Memory, Probed
from outrider.settings import Settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = "fleet/node-agent"
BATCH = "node-agent-2-1"


class Secrets:
    """As much of the cluster as whoever asks a server needs: Secrets."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str] | None] = {}

    async def get(self, _resource: Resource, _namespace: str, name: str) -> Json | None:
        if name not in self.found:
            return None
        data = self.found[name]
        if data is None:
            raise Transient("Forbidden", "the API server refuses it")
        return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}}


class Desk:
    """One who asks, and what came of it."""

    def __init__(self, web: RealHttpServer) -> None:
        self.web = web
        self.secrets = Secrets()
        self.woken: list[str] = []
        self.memory = Memory()
        settings = Settings(
            registry="registry",
            allowed_check_addresses=("127.0.0.0/8",),
            plain_http_sources=("127.0.0.1:*",),
        )
        self.checks = Checks(cast("Cluster", self.secrets), settings, self.woken.append)

    def seen(self, **spec: Any) -> RolloutSnapshot:
        """A Rollout whose second run has ended its first batch."""
        made = RolloutSpec.model_validate(
            {
                "component": "node-agent",
                "version": "1.1.0",
                "target": {"all": True},
                "template": {"spec": {"containers": [{"name": "agent", "image": "agent"}]}},
                "delivery": {"volume": {"mountPath": "/opt/agent", "containers": ["agent"]}},
                "strategy": {"type": "Full"},
                "health": {"http": {"port": self.web.port, "path": "/healthz"}},
                **spec,
            }
        )
        batch = RolloutBatchSpec(
            rollout="node-agent", run=2, kind="Rollout", version="1.1.0", batch=1, started_at=NOW, nodes=[]
        )
        return RolloutSnapshot(
            now=NOW,
            namespace="fleet",
            name="node-agent",
            uid="uid",
            generation=1,
            deleting=False,
            has_finalizer=True,
            spec=made,
            status=RolloutStatus(),
            assignment_key="key",
            wanted="r",
            batches=(Batch(BATCH, batch, RolloutBatchStatus()),),
        )

    def begin(self, seen: RolloutSnapshot, *actions: Any, state: str = "Running") -> None:
        run = RunStatus.model_validate(
            {"id": 2, "kind": "Rollout", "state": state, "version": "1.1.0", "revision": "r", "startedAt": NOW}
        )
        self.checks.begin(KEY, seen, Plan(actions, RolloutStatus(run=run)), self.memory)

    def probe(self, seen: RolloutSnapshot, *uids: str) -> None:
        self.begin(seen, ProbeAgents("1.1.0", tuple((uid, "127.0.0.1") for uid in uids)))

    async def answer(self, seen: RolloutSnapshot, attempt: int = 1) -> AnalysisAnswer:
        """Ask the analysis `page`, and wait for its answer."""
        self.begin(seen, AskAnalysis(BATCH, "page", attempt))
        for _ in range(200):
            answer = self.memory.answers.get((BATCH, "page"))
            if answer is not None and answer.attempt == attempt:
                return answer
            await asyncio.sleep(0.05)
        raise AssertionError("no answer came")


@pytest.fixture
async def desk(web: RealHttpServer) -> AsyncIterator[Desk]:
    made = Desk(web)
    task = asyncio.create_task(made.checks.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come about")


def page(desk: Desk, **web: Any) -> RolloutSnapshot:
    return desk.seen(analysis=[{"name": "page", "web": {"url": f"{desk.web.url}/page", **web}}])


# --- agents -----------------------------------------------------------------------------------


async def test_a_verdict_wakes_a_pass_when_it_is_another_and_lasts_since_its_first(desk: Desk) -> None:
    seen = desk.seen()
    desk.web.serve("/healthz", b"", status=503)
    desk.probe(seen, "pod-1")
    await until(lambda: "pod-1" in desk.memory.probes)
    first = desk.memory.probes["pod-1"].measurement
    assert (first.verdict, first.since == first.at, first.told_at == first.at) == ("Fail", True, True)
    assert desk.woken == [KEY]

    desk.probe(seen, "pod-1")
    await until(lambda: desk.memory.probes["pod-1"].measurement.at > first.at)
    second = desk.memory.probes["pod-1"].measurement
    assert (second.verdict, second.since, second.told_at) == ("Fail", first.since, first.told_at)
    assert desk.woken == [KEY], "nothing is new"

    desk.web.serve("/healthz", b"")
    desk.probe(seen, "pod-1")
    await until(lambda: len(desk.woken) == 2)
    third = desk.memory.probes["pod-1"].measurement
    assert (third.verdict, third.since == third.at, third.told_at) == ("Pass", True, first.told_at)


async def test_what_another_check_was_told_counts_for_nothing(desk: Desk) -> None:
    desk.web.serve("/healthz", b"")
    desk.probe(desk.seen(), "pod-1")
    await until(lambda: "pod-1" in desk.memory.probes)
    before: Probed = desk.memory.probes["pod-1"]
    desk.web.serve("/other", b"")
    desk.probe(desk.seen(health={"http": {"port": desk.web.port, "path": "/other"}}), "pod-1")
    await until(lambda: desk.memory.probes["pod-1"].check.path == "/other")
    after = desk.memory.probes["pod-1"].measurement
    assert after.since > before.measurement.since
    assert desk.woken == [KEY, KEY]


async def test_an_agent_that_is_being_asked_is_not_asked_once_more(desk: Desk) -> None:
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slowly(request: http.server.BaseHTTPRequestHandler) -> None:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(10)
        request.send_response(200)
        request.send_header("Content-Length", "0")
        request.end_headers()

    desk.web.handlers["/healthz"] = slowly
    for _ in range(3):
        desk.probe(desk.seen(), "pod-1")
        await asyncio.sleep(0.05)
    gate.set()
    await until(lambda: "pod-1" in desk.memory.probes)
    assert len(desk.web.requests) == 1


# --- analyses ---------------------------------------------------------------------------------


async def test_servers_of_one_namespace_that_do_not_answer_keep_no_other_namespace_waiting(desk: Desk) -> None:
    released = threading.Event()

    def wait(_handler: http.server.BaseHTTPRequestHandler) -> None:
        released.wait(5)

    desk.web.handlers["/page"] = wait
    desk.web.handlers["/quick"] = lambda handler: handler.send_error(500)
    names = [f"slow-{number}" for number in range(10)]
    slow = desk.seen(analysis=[{"name": name, "web": {"url": f"{desk.web.url}/page"}} for name in names])
    desk.begin(slow, *(AskAnalysis(BATCH, name, 1) for name in names))
    await until(lambda: len(desk.web.requests) >= 4)
    memory, seen = Memory(), desk.seen(analysis=[{"name": "page", "web": {"url": f"{desk.web.url}/quick"}}])
    run = RunStatus.model_validate(
        {"id": 2, "kind": "Rollout", "state": "Running", "version": "1.1.0", "revision": "r", "startedAt": NOW}
    )
    plan = Plan((AskAnalysis(BATCH, "page", 1),), RolloutStatus(run=run))
    desk.checks.begin("other/node-agent", replace(seen, namespace="other"), plan, memory)
    await until(lambda: memory.answers)
    assert memory.answers[BATCH, "page"].verdict == "Fail"
    assert [path for path, _ in desk.web.requests] == ["/page"] * 4 + ["/quick"]
    released.set()


async def test_an_attempt_is_asked_once_and_the_next_anew(desk: Desk) -> None:
    desk.web.serve("/page", b"")
    seen = page(desk)
    assert (await desk.answer(seen)).verdict == "Pass"
    desk.begin(seen, AskAnalysis(BATCH, "page", 1))
    await asyncio.sleep(0.1)
    assert len(desk.web.requests) == 1
    desk.web.serve("/page", b"", status=500)
    assert (await desk.answer(seen, 2)).verdict == "Fail"
    assert len(desk.woken) == 2


async def test_answers_that_nobody_waits_for_any_more_are_dropped(desk: Desk) -> None:
    desk.web.serve("/page", b"")
    seen = page(desk)
    await desk.answer(seen)
    desk.begin(seen, state="Superseded")
    assert desk.memory.answers == {}
    await desk.answer(seen)
    desk.begin(replace(seen, deleting=True))
    assert desk.memory.answers == {}


async def test_a_login_comes_from_a_secret_of_the_rollout_s_namespace(desk: Desk) -> None:
    desk.web.serve("/page", b"")
    desk.secrets.found["page"] = {"token": "hunter2"}
    assert (await desk.answer(page(desk, secretRef={"name": "page"}))).verdict == "Pass"
    assert desk.web.requests[0][1]["Authorization"] == "Bearer hunter2"


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ({}, "there is no Secret page in namespace fleet; create it"),
        ({"page": None}, "create role outrider-page --verb=get --resource=secrets --resource-name=page"),
        ({"page": {"password": "hunter2"}}, "it has the keys password"),
        ({"page": {"token": "hunter2\nX-Evil: 1"}}, "holds more than one line"),
        ({"page": {".dockerconfigjson": "hunter2"}}, "only a docker config"),
    ],
)
async def test_without_its_secret_nobody_is_asked_and_what_to_do_is_said(
    desk: Desk, secret: dict[str, dict[str, str] | None], words: str
) -> None:
    desk.web.serve("/page", b"")
    desk.secrets.found |= secret
    answer = await desk.answer(page(desk, secretRef={"name": "page"}))
    assert answer.verdict == "Unknown"
    assert words in answer.message
    assert "hunter2" not in answer.message
    assert "ComponentVersion" not in answer.message
    assert desk.web.requests == []


async def test_an_error_of_our_own_tells_nothing_and_does_not_end_the_asking(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.web.serve("/page", b"")

    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("outrider.reconcile.checks.ask_web", fails)
    answer = await desk.answer(page(desk))
    assert (answer.verdict, "bug" in answer.message) == ("Unknown", False)
    monkeypatch.undo()
    assert (await desk.answer(page(desk), 2)).verdict == "Pass"
