"""The informer on a real API server: nothing that happens is missed for long, whatever breaks in between."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from typing_extensions import override

from adapters.realapiserver import Line, RealApiServer, access_by, config_map, eventually, line_to, remains
from outrider.adapters import kube as kube_module
from outrider.adapters.informer import Informer
from outrider.adapters.kube import CONFIG_MAPS, NODES, Cluster, Gone, Json, Resource
from outrider.reconcile.projections import project_node


@dataclass(frozen=True)
class Seen:
    """What is kept of a ConfigMap."""

    uid: str
    data: str


def project(obj: Json, _before: Seen | None) -> Seen:
    return Seen(obj["metadata"]["uid"], (obj.get("data") or {}).get("a", ""))


class Follower:
    """An informer over the ConfigMaps of one test, with what it was told."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self.changes: list[tuple[str | None, str | None]] = []
        self.informer: Informer[Seen] = Informer(
            cluster, CONFIG_MAPS, project, self._note, namespace="default", labelSelector=f"test={name}"
        )

    def _note(self, before: Seen | None, after: Seen | None) -> None:
        self.changes.append((before.data if before else None, after.data if after else None))

    def key(self, suffix: str) -> str:
        return f"{self.name}-{suffix}"

    def data(self) -> dict[str, str]:
        """What the informer has now: name (without the test's) → data."""
        return {key[1].removeprefix(f"{self.name}-"): seen.data for key, (_, seen) in self.informer._items.items()}

    def get(self, suffix: str) -> Seen | None:
        return self.informer.get("default", self.key(suffix))


@asynccontextmanager
async def following(cluster: Cluster, name: str) -> AsyncIterator[Follower]:
    follower = Follower(cluster, name)
    running = asyncio.create_task(follower.informer.run())
    try:
        await asyncio.wait_for(follower.informer.synced.wait(), 20)
        # Until the watch is there: what happens before it is the list's to tell.
        await asyncio.sleep(0.2)
        yield follower
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@asynccontextmanager
async def following_by_line(api_server: RealApiServer, name: str) -> AsyncIterator[tuple[Line, Follower]]:
    """A follower behind a line of its own; the tests' own writes take another way."""
    async with (
        line_to(api_server) as line,
        access_by(api_server.kubeconfig, server=line.url) as access,
        following(Cluster(access), name) as follower,
    ):
        yield line, follower


async def write(kube: Cluster, name: str, suffix: str, data: str) -> Json:
    return await kube.apply(CONFIG_MAPS, config_map(f"{name}-{suffix}", {"test": name}, a=data))


async def erase(kube: Cluster, name: str, suffix: str) -> None:
    await kube.delete(CONFIG_MAPS, "default", f"{name}-{suffix}")


async def test_what_was_there_and_what_happens_is_seen(kube: Cluster) -> None:
    await write(kube, "plain", "old", "1")
    async with following(kube, "plain") as follower:
        assert follower.data() == {"old": "1"}
        await write(kube, "plain", "new", "1")
        await write(kube, "plain", "new", "2")
        await erase(kube, "plain", "old")
        await eventually(lambda: follower.data() == {"new": "2"}, "create, update and delete are seen")
        assert follower.changes == [(None, "1"), (None, "1"), ("1", "2"), ("1", None)]


async def test_a_change_that_is_not_kept_wakes_nobody(kube: Cluster) -> None:
    await write(kube, "quiet", "x", "1")
    async with following(kube, "quiet") as follower:
        annotate = [{"op": "add", "path": "/metadata/annotations", "value": {"heart": "beat"}}]
        await kube.patch_json(CONFIG_MAPS, "default", "quiet-x", annotate)
        await write(kube, "quiet", "y", "1")
        await eventually(lambda: "y" in follower.data(), "the later event is there")
        assert follower.changes == [(None, "1"), (None, "1")]


async def test_an_object_that_does_not_match_any_more_is_gone(kube: Cluster) -> None:
    await write(kube, "moved", "x", "1")
    async with following(kube, "moved") as follower:
        await kube.apply(CONFIG_MAPS, config_map("moved-x", {"test": "elsewhere"}, a="1"))
        await eventually(lambda: follower.data() == {}, "it left the selection")
        assert follower.changes[-1] == ("1", None)


async def test_deleted_and_made_again_under_its_name(kube: Cluster) -> None:
    await write(kube, "again", "x", "1")
    async with following(kube, "again") as follower:
        first = follower.get("x")
        await erase(kube, "again", "x")
        await write(kube, "again", "x", "1")
        await eventually(lambda: follower.get("x") not in {None, first}, "the new one is there")
        assert follower.changes == [(None, "1"), ("1", None), (None, "1")]


async def test_deleted_and_made_again_while_nobody_could_tell(api_server: RealApiServer, kube: Cluster) -> None:
    first = await write(kube, "unseen", "x", "1")
    async with following_by_line(api_server, "unseen") as (line, follower):
        line.freeze()
        await erase(kube, "unseen", "x")
        # Our own write, seen before the watch tells the deletion that came before it.
        second = await write(kube, "unseen", "x", "2")
        follower.informer.put(second)
        assert follower.get("x") == Seen(second["metadata"]["uid"], "2")
        line.thaw()
        await write(kube, "unseen", "marker", "1")
        await eventually(lambda: "marker" in follower.data(), "the watch has caught up")
        assert follower.get("x") == Seen(second["metadata"]["uid"], "2"), "an old deletion takes no new object"
        assert second["metadata"]["uid"] != first["metadata"]["uid"]


async def test_our_own_write_is_seen_at_once_and_never_undone_by_an_older_event(
    api_server: RealApiServer, kube: Cluster
) -> None:
    await write(kube, "own", "x", "0")
    async with following_by_line(api_server, "own") as (line, follower):
        line.freeze()
        older = await write(kube, "own", "x", "1")
        follower.informer.put(await write(kube, "own", "x", "2"))
        assert follower.data() == {"x": "2"}
        follower.informer.put(older)
        assert follower.data() == {"x": "2"}
        line.thaw()
        await write(kube, "own", "marker", "1")
        await eventually(lambda: "marker" in follower.data(), "the watch has caught up")
        assert follower.changes == [(None, "0"), ("0", "2"), (None, "1")]


async def test_our_own_patch_of_what_is_gone_does_not_bring_it_back(kube: Cluster) -> None:
    async with following(kube, "ghost") as follower:
        answer = await write(kube, "ghost", "x", "1")
        await erase(kube, "ghost", "x")
        await write(kube, "ghost", "marker", "1")
        await eventually(lambda: follower.data() == {"marker": "1"}, "it came and went")
        follower.informer.update(answer)
        assert follower.data() == {"marker": "1"}


async def test_a_gap_is_closed_by_comparing_with_a_list(api_server: RealApiServer, kube: Cluster) -> None:
    for suffix in ("deleted", "changed", "reborn", "same"):
        await write(kube, "gap", suffix, "1")
    async with following_by_line(api_server, "gap") as (line, follower):
        old = follower.get("reborn")
        follower.changes.clear()
        line.cut()
        await erase(kube, "gap", "deleted")
        await erase(kube, "gap", "reborn")
        await write(kube, "gap", "reborn", "1")
        await write(kube, "gap", "changed", "2")
        await write(kube, "gap", "new", "1")
        await asyncio.sleep(1)
        assert follower.changes == [], "nobody tells anything"
        line.mend()
        wanted = {"changed": "2", "reborn": "1", "same": "1", "new": "1"}
        await eventually(lambda: follower.data() == wanted, "everything is as it is")
        assert follower.get("reborn") != old
        assert sorted(follower.changes, key=str) == [("1", "1"), ("1", "2"), ("1", None), (None, "1")]
        await write(kube, "gap", "same", "2")
        await eventually(lambda: follower.data()["same"] == "2", "it watches again")


async def test_a_line_that_dies_without_a_word_is_noticed(
    api_server: RealApiServer, kube: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_module, "_SILENT_SECONDS", 1.5)
    async with following_by_line(api_server, "silent") as (line, follower):
        line.lose()
        await write(kube, "silent", "x", "1")
        await eventually(lambda: follower.data() == {"x": "1"}, "it looked again by itself", seconds=15)


async def test_a_restart_of_the_api_server_is_survived(api_server: RealApiServer, kube: Cluster) -> None:
    await write(kube, "restart", "kept", "1")
    await write(kube, "restart", "deleted", "1")
    async with following(kube, "restart") as follower:
        await asyncio.to_thread(api_server.restart)
        await erase(kube, "restart", "deleted")
        await write(kube, "restart", "new", "1")
        await eventually(lambda: follower.data() == {"kept": "1", "new": "1"}, "it goes on", seconds=60)

    # And what a new API server has forgotten, it calls too old.
    with pytest.raises(Gone):
        async for _ in kube.watch(NODES, "1", seconds=5):
            pass


class TooLate(Cluster):
    """Asks its first watch for what happened too long ago."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster._access)
        self.watches: list[str] = []
        self.lists = 0

    @override
    async def list_chunks(
        self, resource: Resource, namespace: str | None = None, **selectors: str
    ) -> AsyncIterator[tuple[list[Json], str]]:
        self.lists += 1
        async for chunk in super().list_chunks(resource, namespace, **selectors):
            yield chunk

    @override
    async def watch(
        self, resource: Resource, resource_version: str, namespace: str | None = None, *, seconds: int, **selectors: str
    ) -> AsyncIterator[tuple[str, Json]]:
        self.watches.append(resource_version)
        if len(self.watches) == 1:
            resource_version = "1"
        async for event in super().watch(resource, resource_version, namespace, seconds=seconds, **selectors):
            yield event


async def test_a_watch_that_is_too_old_lists_again_at_once(api_server: RealApiServer, kube: Cluster) -> None:
    if not await is_forgotten(kube):
        await asyncio.to_thread(api_server.restart)
    late = TooLate(kube)
    nodes: Informer[Any] = Informer(late, NODES, project_node, lambda _before, _after: None)
    running = asyncio.create_task(nodes.run())
    begun = time.monotonic()
    await eventually(lambda: len(late.watches) == 2, "it watches from a new list")
    assert time.monotonic() - begun < 2
    assert late.lists == 2
    assert {node.name for node in nodes.values()} == set(api_server.local.fake_nodes)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def is_forgotten(kube: Cluster) -> bool:
    try:
        async for _ in kube.watch(NODES, "1", seconds=1):
            return False
    except Gone:
        return True
    return False


class Slow(Cluster):
    """Hands over a list only after something else has been done."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster._access)
        self.meanwhile: Any = None

    @override
    async def list_chunks(
        self, resource: Resource, namespace: str | None = None, **selectors: str
    ) -> AsyncIterator[tuple[list[Json], str]]:
        async for chunk in super().list_chunks(resource, namespace, **selectors):
            if self.meanwhile is not None:
                await self.meanwhile()
            yield chunk


async def test_what_we_make_while_a_list_is_on_its_way_is_not_taken_for_deleted(kube: Cluster) -> None:
    slow = Slow(kube)
    follower = Follower(slow, "late")
    await write(kube, "late", "x", "1")

    async def make_another() -> None:
        follower.informer.put(await write(kube, "late", "y", "1"))

    slow.meanwhile = make_another
    await follower.informer.resync()
    assert follower.data() == {"x": "1", "y": "1"}
    slow.meanwhile = None
    await erase(kube, "late", "y")
    await follower.informer.resync()
    assert follower.data() == {"x": "1"}


async def test_nothing_is_synced_before_the_first_list_is_complete(api_server: RealApiServer, kube: Cluster) -> None:
    await write(kube, "first", "x", "1")
    async with line_to(api_server) as line, access_by(api_server.kubeconfig, server=line.url) as access:
        line.freeze()
        follower = Follower(Cluster(access), "first")
        running = asyncio.create_task(follower.informer.run())
        await remains(lambda: not follower.informer.synced.is_set(), "nothing is known yet", seconds=0.5)
        line.thaw()
        await eventually(follower.informer.synced.is_set, "now it is")
        assert follower.data() == {"x": "1"}
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_a_server_that_is_down_is_not_stormed(api_server: RealApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def note(delay: float) -> None:
        slept.append(delay)
        if len(slept) == 10:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", note)
    async with access_by(api_server.kubeconfig, server="https://127.0.0.1:1") as access:
        with pytest.raises(asyncio.CancelledError):
            await Follower(Cluster(access), "down").informer.run()
        monkeypatch.undo()
    bounds = [min(30.0, 0.5 * 2**failures) for failures in range(1, 11)]
    assert all(bound / 2 <= delay <= bound for delay, bound in zip(slept, bounds, strict=True)), slept
