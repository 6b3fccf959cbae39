"""The API calls against a real API server: what it answers, and which of our errors that becomes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from adapters.realapiserver import RealApiServer, access_by, black_hole, config_map, eventually, line_to, settle
from outrider.adapters import kube as module
from outrider.adapters.kube import (
    CONFIG_MAPS,
    DAEMON_SETS,
    NODES,
    SECRETS,
    Access,
    Cluster,
    Conflict,
    Json,
    open_access,
)
from outrider.api.errors import Stalling, Transient
from outrider.api.names import FIELD_MANAGER

LABEL = "agents.outrider.dev/fleet.agent-0123456789"
LABEL_PATH = "/metadata/labels/agents.outrider.dev~1fleet.agent-0123456789"


async def make(kube: Cluster, name: str, labels: dict[str, str] | None = None, **data: str) -> Json:
    await kube.delete(CONFIG_MAPS, "default", name)
    return await kube.create(CONFIG_MAPS, config_map(name, labels, **data), "default")


# -- one object


async def test_what_is_not_there_is_none(kube: Cluster) -> None:
    assert await kube.get(CONFIG_MAPS, "default", "nobody") is None
    assert await kube.get(NODES, None, "nobody") is None
    assert await kube.get(CONFIG_MAPS, "no-such-namespace", "nobody") is None
    operations = [{"op": "add", "path": "/metadata/labels", "value": {}}]
    assert await kube.patch_json(NODES, None, "nobody", operations) is None


async def test_deleting_what_is_gone_is_fine(kube: Cluster) -> None:
    await kube.delete(CONFIG_MAPS, "default", "nobody")


async def test_an_object_comes_back_as_it_was_made(kube: Cluster) -> None:
    made = await make(kube, "whole", a="1")
    assert await kube.get(CONFIG_MAPS, "default", "whole") == made
    assert made["data"] == {"a": "1"}
    assert made["metadata"]["managedFields"][0]["manager"] == FIELD_MANAGER


async def test_creating_twice_is_a_conflict(kube: Cluster) -> None:
    await make(kube, "twice")
    with pytest.raises(Conflict) as caught:
        await kube.create(CONFIG_MAPS, config_map("twice"), "default")
    assert caught.value.reason == "AlreadyExists"


async def test_replacing_what_changed_meanwhile_is_a_conflict(kube: Cluster) -> None:
    seen = await make(kube, "replaced", a="1")
    await kube.replace(CONFIG_MAPS, "default", "replaced", {**seen, "data": {"a": "2"}})
    with pytest.raises(Conflict):
        await kube.replace(CONFIG_MAPS, "default", "replaced", {**seen, "data": {"a": "3"}})
    assert ((await kube.get(CONFIG_MAPS, "default", "replaced")) or {})["data"] == {"a": "2"}


async def test_deleting_another_object_of_the_same_name_is_a_conflict(kube: Cluster) -> None:
    old = await make(kube, "reborn")
    new = await make(kube, "reborn")
    with pytest.raises(Conflict):
        await kube.delete(CONFIG_MAPS, "default", "reborn", uid=old["metadata"]["uid"])
    await kube.delete(CONFIG_MAPS, "default", "reborn", uid=new["metadata"]["uid"])
    assert await kube.get(CONFIG_MAPS, "default", "reborn") is None


async def test_applying_owns_exactly_what_it_names(kube: Cluster) -> None:
    await make(kube, "applied", theirs="1", ours="0")
    await kube.apply(CONFIG_MAPS, config_map("applied", ours="1", more="1"), manager="us")
    answer = await kube.apply(CONFIG_MAPS, config_map("applied", ours="2"), manager="us")
    assert answer["data"] == {"theirs": "1", "ours": "2"}, "what we no longer name goes, what others own stays"


async def test_applying_the_same_again_writes_nothing(kube: Cluster) -> None:
    await kube.delete(CONFIG_MAPS, "default", "idle")
    first = await kube.apply(CONFIG_MAPS, config_map("idle", a="1"))
    again = await kube.apply(CONFIG_MAPS, config_map("idle", a="1"))
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


# -- the patch that moves nodes


def move(uid: str, before: str | None, after: str) -> list[Json]:
    """The operations as `RolloutReconciler` sends them."""
    return [
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "test", "path": LABEL_PATH, "value": before},
        {"op": "add", "path": LABEL_PATH, "value": after},
    ]


@pytest.mark.parametrize(
    ("labels", "before", "moved"),
    [
        pytest.param({"a": "b"}, None, True, id="no label, as was seen"),
        pytest.param({LABEL: "A"}, "A", True, id="the label that was seen"),
        pytest.param({LABEL: "A"}, None, False, id="a label where none was seen"),
        pytest.param({LABEL: "B"}, "A", False, id="another label than was seen"),
        pytest.param({"a": "b"}, "A", False, id="no label where one was seen"),
        pytest.param({LABEL: ""}, None, False, id="an empty label is one"),
        pytest.param({LABEL: ""}, "", True, id="the empty label that was seen"),
    ],
)
async def test_a_move_happens_only_to_the_assignment_that_was_seen(
    kube: Cluster, labels: dict[str, str], before: str | None, moved: bool
) -> None:
    made = await make(kube, "moved", labels)
    operations = move(made["metadata"]["uid"], before, "to-B")
    if moved:
        answer = await kube.patch_json(CONFIG_MAPS, "default", "moved", operations)
        assert answer is not None
        assert answer["metadata"]["labels"] == {**labels, LABEL: "to-B"}
        return
    with pytest.raises(Conflict):
        await kube.patch_json(CONFIG_MAPS, "default", "moved", operations)
    assert await kube.get(CONFIG_MAPS, "default", "moved") == made


async def test_a_move_happens_only_to_the_node_that_was_seen(kube: Cluster) -> None:
    old = await make(kube, "renewed", {LABEL: "A"})
    new = await make(kube, "renewed", {LABEL: "A"})
    with pytest.raises(Conflict):
        await kube.patch_json(CONFIG_MAPS, "default", "renewed", move(old["metadata"]["uid"], "A", "to-B"))
    assert await kube.patch_json(CONFIG_MAPS, "default", "renewed", move(new["metadata"]["uid"], "A", "to-B"))


async def test_a_move_of_a_real_node(kube: Cluster) -> None:
    node = await kube.get(NODES, None, "fake-0001")
    assert node is not None
    answer = await kube.patch_json(NODES, None, "fake-0001", move(node["metadata"]["uid"], None, "A"))
    assert answer is not None
    assert answer["metadata"]["labels"][LABEL] == "A"
    await kube.patch_json(NODES, None, "fake-0001", [{"op": "remove", "path": LABEL_PATH}])


# -- what is refused


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(
            config_map("Not_A_Name"), ["POST /api/v1/namespaces/default/configmaps", "Not_A_Name"], id="an invalid name"
        ),
        pytest.param(config_map("labelled", {"a": "no spaces"}), ["no spaces", "label"], id="an invalid label"),
        pytest.param({"metadata": {"name": "typed"}, "data": {"a": 1}}, ["cannot unmarshal"], id="a wrong type"),
    ],
)
async def test_what_is_invalid_stalls_and_is_explained(kube: Cluster, body: Json, words: list[str]) -> None:
    with pytest.raises(Stalling) as caught:
        await kube.create(CONFIG_MAPS, body, "default")
    assert caught.value.reason == "Invalid"
    assert all(word in caught.value.message for word in words), caught.value.message


async def test_a_patch_with_an_invalid_result_stalls_and_is_no_lost_race(kube: Cluster) -> None:
    made = await make(kube, "patched", {LABEL: "A"})
    with pytest.raises(Stalling, match="no spaces"):
        await kube.patch_json(CONFIG_MAPS, "default", "patched", move(made["metadata"]["uid"], "A", "no spaces"))


async def test_a_daemonset_that_is_invalid_stalls_with_the_field(kube: Cluster) -> None:
    body = {
        "metadata": {"name": "invalid", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "agent"}]}},
        },
    }
    with pytest.raises(Stalling, match=r"containers\[0\].image: Required"):
        await kube.create(DAEMON_SETS, body, "default")


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_what_is_too_large_stalls(kube: Cluster) -> None:
    with pytest.raises(Stalling):
        await kube.create(CONFIG_MAPS, config_map("huge", a="x" * 4_000_000), "default")


async def test_a_missing_right_is_tried_again_and_names_the_role(api_server: RealApiServer) -> None:
    kubeconfig = api_server.local.kubeconfig_for_service_account("default", "default")
    async with access_by(kubeconfig) as access:
        with pytest.raises(Transient, match="ClusterRole") as caught:
            await Cluster(access).get(SECRETS, "default", "any")
    assert caught.value.reason == "Forbidden"
    assert "system:serviceaccount:default:default" in caught.value.message


# -- when it does not answer


async def test_a_refused_connection_is_tried_again(api_server: RealApiServer) -> None:
    async with access_by(api_server.kubeconfig, server="https://127.0.0.1:1") as access:
        with pytest.raises(Transient) as caught:
            await Cluster(access).get(NODES, None, "any")
    assert caught.value.reason == "ApiUnavailable"


async def test_a_server_that_never_answers_is_given_up(
    api_server: RealApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", aiohttp.ClientTimeout(total=0.5))
    async with black_hole() as url, access_by(api_server.kubeconfig, server=url) as access:
        begun = time.monotonic()
        with pytest.raises(Transient, match="does not answer"):
            await Cluster(access).get(NODES, None, "any")
        assert time.monotonic() - begun < 3


async def test_a_connection_that_breaks_in_an_answer_is_tried_again(api_server: RealApiServer) -> None:
    async with line_to(api_server) as line, access_by(api_server.kubeconfig, server=line.url) as access:
        kube = Cluster(access)
        assert await kube.get(NODES, None, "fake-0001")
        line.freeze()
        asking = asyncio.create_task(kube.get(NODES, None, "fake-0001"))
        await asyncio.sleep(0.1)
        line.cut()
        line.thaw()
        with pytest.raises(Transient):
            await asking
        line.mend()
        assert await kube.get(NODES, None, "fake-0001"), "the next attempt takes a new connection"


class Odd:
    """A server that answers what API servers, and what stands before them, answer on bad days."""

    def __init__(self, status: int, text: str, headers: dict[str, str]) -> None:
        self._answer = (status, text, headers)

    async def handle(self, _request: web.Request) -> web.Response:
        status, text, headers = self._answer
        return web.Response(status=status, text=text, headers=headers)


@asynccontextmanager
async def odd(status: int, text: str, **headers: str) -> AsyncIterator[Cluster]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", Odd(status, text, headers).handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    session = aiohttp.ClientSession()
    try:
        yield Cluster(Access(f"http://127.0.0.1:{port}", session, None))
    finally:
        await session.close()
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "text", "headers", "reason", "after"),
    [
        (429, '{"message": "slow down"}', {"Retry-After": "7"}, "ApiBusy", 7.0),
        (503, '{"message": "shutting down"}', {}, "ApiBusy", None),
        (500, "", {}, "ApiBusy", None),
        (502, "<html>bad gateway</html>", {"Retry-After": "soon"}, "ApiBusy", None),
        (401, '{"message": "Unauthorized"}', {}, "Forbidden", None),
        (302, "", {"Location": "/elsewhere"}, "ApiError", None),
        (200, "<html>log in first</html>", {}, "ApiError", None),
        (200, "", {}, "ApiError", None),
    ],
)
async def test_whatever_else_is_answered_is_tried_again(
    status: int, text: str, headers: dict[str, str], reason: str, after: float | None
) -> None:
    async with odd(status, text, **headers) as kube:
        with pytest.raises(Transient) as caught:
            await kube.get(NODES, None, "any")
        assert (caught.value.reason, caught.value.retry_after) == (reason, after)


@pytest.mark.parametrize("text", ["<html>log in first</html>\n", '{"type": "ADDED"\n', "[1]\n", '{"type": "ERROR"}\n'])
async def test_a_watch_that_says_nonsense_is_tried_again(text: str) -> None:
    async with odd(200, text) as kube:
        with pytest.raises(Transient):
            async for _ in kube.watch(NODES, "1", seconds=5):
                pass


# -- many objects


async def test_a_list_comes_in_chunks_of_one_moment(kube: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIST_CHUNK", 2)
    for number in range(5):
        await make(kube, f"chunk-{number}", {"test": "chunks"})
    chunks = []
    async for items, version in kube.list_chunks(CONFIG_MAPS, "default", labelSelector="test=chunks"):
        chunks.append(([item["metadata"]["name"] for item in items], version))
        await make(kube, f"chunk-9{len(chunks)}", {"test": "chunks"})
    assert [found for found, _ in chunks] == [["chunk-0", "chunk-1"], ["chunk-2", "chunk-3"], ["chunk-4"]]
    assert len({version for _, version in chunks}) == 1, "what is made meanwhile is for the watch to tell"


async def test_an_empty_list_has_a_version_all_the_same(kube: Cluster) -> None:
    (found,) = [chunk async for chunk in kube.list_chunks(CONFIG_MAPS, "default", labelSelector="test=nothing")]
    assert found[0] == []
    assert int(found[1]) > 0


async def note(kube: Cluster, version: str, seen: list[tuple[str, Any]]) -> None:
    async for kind, obj in kube.watch(CONFIG_MAPS, version, "default", seconds=60, labelSelector="test=watch"):
        if kind != "BOOKMARK":
            seen.append((kind, obj))


async def test_a_watch_tells_what_happens_after_its_version(kube: Cluster) -> None:
    first = await make(kube, "watched", {"test": "watch"}, a="0")
    seen: list[tuple[str, Any]] = []
    watching = asyncio.create_task(note(kube, first["metadata"]["resourceVersion"], seen))
    second = await kube.apply(CONFIG_MAPS, config_map("watched", {"test": "watch"}, a="x" * 900_000))
    await make(kube, "unwatched", {"test": "other"})
    await kube.delete(CONFIG_MAPS, "default", "watched")
    third = await make(kube, "watched", {"test": "watch"})
    await kube.apply(CONFIG_MAPS, config_map("watched", {"test": "other"}))
    await eventually(lambda: len(seen) == 4, "all four are told")
    watching.cancel()
    assert [kind for kind, _ in seen] == ["MODIFIED", "DELETED", "ADDED", "DELETED"]
    assert seen[0][1] == second, "objects of nearly a megabyte come whole"
    assert seen[2][1]["metadata"]["uid"] == third["metadata"]["uid"] != first["metadata"]["uid"]
    versions = [int(obj["metadata"]["resourceVersion"]) for _, obj in seen]
    assert versions == sorted(versions)


async def test_a_watch_ends_by_itself(kube: Cluster) -> None:
    (_, version) = [chunk async for chunk in kube.list_chunks(CONFIG_MAPS, "default")][-1]
    begun = time.monotonic()
    async for kind, _obj in kube.watch(CONFIG_MAPS, version, "default", seconds=1, labelSelector="test=nothing"):
        assert kind == "BOOKMARK"
    assert time.monotonic() - begun < 10


async def test_a_watch_whose_line_breaks_is_tried_again(api_server: RealApiServer) -> None:
    async with line_to(api_server) as line, access_by(api_server.kubeconfig, server=line.url) as access:
        kube = Cluster(access)
        (_, version) = [chunk async for chunk in kube.list_chunks(CONFIG_MAPS, "default")][-1]

        async def watch() -> None:
            async for _ in kube.watch(CONFIG_MAPS, version, "default", seconds=60):
                pass

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0.5)
        line.cut()
        with pytest.raises(Transient, match="watch of configmaps broke"):
            await watching


# -- ways in


async def test_a_bearer_token_is_used(api_server: RealApiServer) -> None:
    kubeconfig = api_server.local.kubeconfig_for_service_account("default", "default")
    async with access_by(kubeconfig) as access:
        assert await Cluster(access).create(REVIEWS, {"spec": {}}, None)


REVIEWS = module.Resource("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview")


@pytest.fixture
def service_account(tmp_path: Path, api_server: RealApiServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files and variables that a pod finds, for the namespace's default ServiceAccount."""
    host, _, port = api_server.local.server_url.removeprefix("https://").rpartition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr(module, "_SERVICE_ACCOUNT", tmp_path)
    kubeconfig = json.loads(api_server.local.kubeconfig_for_service_account("default", "default").read_text())
    (tmp_path / "token").write_text(kubeconfig["users"][0]["user"]["token"] + "\n")
    (tmp_path / "ca.crt").write_bytes(api_server.local.ca_file.read_bytes())
    (tmp_path / "namespace").write_text("default\n")
    return tmp_path


async def test_a_pod_uses_its_service_account_and_follows_the_rotation_of_its_token(service_account: Path) -> None:
    access = open_access(in_cluster=True)
    try:
        kube = Cluster(access)
        answer = await kube.create(REVIEWS, {"spec": {}})
        assert answer["status"]["userInfo"]["username"] == "system:serviceaccount:default:default"
        assert access.namespace == "default"
        good = (service_account / "token").read_text()
        (service_account / "token").write_text("expired")
        with pytest.raises(Transient) as caught:
            await kube.create(REVIEWS, {"spec": {}})
        assert caught.value.reason == "Forbidden"
        (service_account / "token").write_text(good)
        assert await kube.create(REVIEWS, {"spec": {}})
    finally:
        await access.close()
        await settle()


async def test_outside_a_pod_a_kubeconfig_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SERVICE_ACCOUNT", tmp_path)
    with pytest.raises(Stalling, match="give a kubeconfig"):
        open_access(in_cluster=True)


@pytest.mark.parametrize("content", [None, "", "not: [yaml", "apiVersion: v1\nkind: Config\n"])
async def test_a_kubeconfig_that_cannot_be_used_says_so(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Stalling, match="kubeconfig cannot be used") as caught:
        open_access(in_cluster=False, kubeconfig=str(path))
    assert caught.value.reason == "ClusterAccess"
