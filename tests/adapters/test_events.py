"""Events on a real API server: posted as Kubernetes wants them, once, and never in the way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import pytest

from adapters.realapiserver import RealApiServer, access_by, eventually
from outrider.adapters import clock
from outrider.adapters.events import EventRecorder
from outrider.adapters.kube import EVENTS, ROLLOUTS, Cluster, Json
from outrider.core.plan import Event


@asynccontextmanager
async def recording(cluster: Cluster) -> AsyncIterator[EventRecorder]:
    recorder = EventRecorder(cluster, "outrider-0")
    running = asyncio.create_task(recorder.run())
    try:
        yield recorder
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def events_of(kube: Cluster, name: str) -> list[Json]:
    chunks = kube.list_chunks(EVENTS, "default", fieldSelector=f"involvedObject.name={name}")
    return [item async for items, _ in chunks for item in items]


async def posted(kube: Cluster, name: str, count: int) -> list[Json]:
    found: list[Json] = []

    async def look() -> None:
        while len(found) < count:
            found[:] = await events_of(kube, name)
            await asyncio.sleep(0.02)

    async with asyncio.timeout(20):
        await look()
    return found


async def test_an_event_says_what_happened_to_what(kube: Cluster) -> None:
    async with recording(kube) as recorder:
        recorder.record(ROLLOUTS, "default", "told", "uid-1", Event("Warning", "RunPaused", "2 of 10 nodes failed"))
        (event,) = await posted(kube, "told", 1)
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "RunPaused", "2 of 10 nodes failed")
    assert event["involvedObject"] == {
        "apiVersion": "outrider.dev/v1alpha1",
        "kind": "Rollout",
        "namespace": "default",
        "name": "told",
        "uid": "uid-1",
    }
    assert event["reportingComponent"] == "outrider"
    assert event["reportingInstance"] == "outrider-0"
    assert event["firstTimestamp"] == event["lastTimestamp"]


async def test_the_same_is_told_once_in_five_minutes(kube: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    start = clock.now()
    async with recording(kube) as recorder:
        for seconds in (0, 1, 299, 301):
            monkeypatch.setattr(clock, "now", lambda after=seconds: start + timedelta(seconds=after))
            recorder.record(ROLLOUTS, "default", "repeated", "uid-1", Event("Normal", "Same", "the same"))
        recorder.record(ROLLOUTS, "default", "repeated", "uid-1", Event("Normal", "Same", "another"))
        recorder.record(ROLLOUTS, "default", "repeated", "uid-2", Event("Normal", "Same", "the same"))
        recorder.record(ROLLOUTS, "default", "last", "uid-1", Event("Normal", "Last", "the last"))
        await posted(kube, "last", 1)
    assert sorted(event["message"] for event in await events_of(kube, "repeated")) == [
        "another",
        "the same",
        "the same",
        "the same",
    ]


async def test_long_names_and_messages_are_cut_to_what_the_api_server_takes(kube: Cluster) -> None:
    name = "n" * 253
    async with recording(kube) as recorder:
        recorder.record(ROLLOUTS, "default", name, "uid-1", Event("Normal", "Long", "m" * 5000))
        (event,) = await posted(kube, name, 1)
    assert len(event["message"]) == 1024


async def test_what_cannot_be_posted_holds_up_nobody(api_server: RealApiServer, kube: Cluster) -> None:
    async with (
        access_by(api_server.kubeconfig, server="https://127.0.0.1:1") as access,
        recording(Cluster(access)) as recorder,
    ):
        for number in range(2000):
            recorder.record(ROLLOUTS, "default", "down", "uid-1", Event("Normal", "Down", f"event {number}"))
        await eventually(recorder._queue.empty, "the queue is worked off, whatever becomes of them")
    assert await events_of(kube, "down") == []


async def test_an_event_that_is_refused_does_not_end_the_recorder(kube: Cluster) -> None:
    async with recording(kube) as recorder:
        recorder.record(ROLLOUTS, "no-such-namespace", "lost", "uid-1", Event("Normal", "Lost", "nobody sees this"))
        recorder.record(ROLLOUTS, "default", "kept", "uid-1", Event("Normal", "Kept", "this comes after it"))
        assert len(await posted(kube, "kept", 1)) == 1
