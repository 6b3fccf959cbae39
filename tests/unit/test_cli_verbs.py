"""`outrider status` and the verbs: what they write, what they wait for, what they print."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import outrider
from outrider.__main__ import main
from outrider.adapters.kube import Json, Resource
from outrider.api.errors import Stalling, Transient
from outrider.cli import asking
from outrider.cli.asking import Answer, pause, request
from outrider.cli.showing import tell_all, tell_one

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


class FakeCluster:
    """One Rollout, and an operator that answers to what is asked of it."""

    def __init__(self, *, refuses: str = "", silent: bool = False, forbidden: bool = False) -> None:
        self.refuses = refuses
        self.silent = silent
        self.forbidden = forbidden
        self.body: Json = {
            "metadata": {"name": "agent", "namespace": "fleet", "generation": 3, "annotations": {}},
            "spec": {"component": "agent", "version": "1.1.0"},
            "status": {
                "observedGeneration": 3,
                "phase": "Progressing",
                "run": {"id": 7, "kind": "Rollout"},
                "conditions": [{"type": "Ready", "status": "False", "reason": "Progressing", "message": "on its way"}],
            },
        }

    async def get(self, _resource: Resource, _namespace: str | None, name: str) -> Json | None:
        return self.body if name == "agent" else None

    async def list_chunks(
        self, _resource: Resource, _namespace: str | None = None, **_selectors: str
    ) -> AsyncIterator[tuple[list[Json], str]]:
        yield [self.body], "1"

    async def create(self, resource: Resource, _body: Json, _namespace: str | None = None) -> Json:
        assert resource.plural == "selfsubjectreviews"
        return {"status": {"userInfo": {"username": "jane"}}}

    async def merge(self, _resource: Resource, _namespace: str, _name: str, patch: Json, *, manager: str) -> Json:
        assert manager == "kubectl-outrider"
        if self.forbidden:
            raise Transient("Forbidden", 'rollouts.outrider.dev "agent" is forbidden')
        self.body["metadata"]["annotations"] |= patch.get("metadata", {}).get("annotations", {})
        if "spec" in patch:
            self.body["spec"] |= patch["spec"]
            self.body["metadata"]["generation"] += 1
        if not self.silent:
            self._answer(patch)
        return self.body

    def _answer(self, patch: Json) -> None:
        status = self.body["status"]
        status["observedGeneration"] = self.body["metadata"]["generation"]
        for key, value in patch.get("metadata", {}).get("annotations", {}).items():
            kind = key.removeprefix("outrider.dev/").partition("-requested")[0]
            if key.endswith("-requested-by"):
                continue
            nonce = json.loads(value)["id"] if kind == "rollback" else value
            status.setdefault("lastHandled", {})[kind] = nonce
            if self.refuses:
                status["lastRefused"] = {"request": kind, "nonce": nonce, "message": self.refuses}


async def ask(cluster: FakeCluster, verb: Any, seconds: float = 5, **details: Any) -> Answer:
    return await request(cluster, "fleet", "agent", verb, details, wait_seconds=seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", ["approve", "abort", "retry"])
async def test_a_request_is_an_annotation_with_a_nonce_and_who_asks(verb: str) -> None:
    cluster = FakeCluster()
    answer = await ask(cluster, verb)
    annotations = cluster.body["metadata"]["annotations"]
    first = annotations[f"outrider.dev/{verb}-requested-at"]
    assert annotations[f"outrider.dev/{verb}-requested-by"] == "jane"
    assert (answer.result, answer.message) == ("Handled", "Progressing: on its way")
    await ask(cluster, verb)
    assert annotations[f"outrider.dev/{verb}-requested-at"] != first, "each request has its own nonce"


async def test_a_rollback_names_the_run_the_batches_and_the_version() -> None:
    cluster = FakeCluster()
    await ask(cluster, "rollback", run=5, batches=[2, 3], version="1.0.0")
    wish = json.loads(cluster.body["metadata"]["annotations"]["outrider.dev/rollback-requested"])
    assert {**wish, "id": "x"} == {"id": "x", "run": 5, "batches": [2, 3], "version": "1.0.0"}
    await ask(cluster, "rollback")
    wish = json.loads(cluster.body["metadata"]["annotations"]["outrider.dev/rollback-requested"])
    assert {**wish, "id": "x"} == {"id": "x", "run": 7}, "the newest run that brought something"
    cluster.body["status"]["run"] = {"id": 8, "kind": "Rollback"}
    cluster.body["status"]["history"] = [{"id": 7, "kind": "Rollback"}, {"id": 6, "kind": "Rollout"}]
    await ask(cluster, "rollback")
    assert json.loads(cluster.body["metadata"]["annotations"]["outrider.dev/rollback-requested"])["run"] == 6
    cluster.body["status"] = {}
    with pytest.raises(Stalling, match="has had no run yet"):
        await ask(cluster, "rollback")


async def test_a_refusal_is_told_with_its_reason() -> None:
    answer = await ask(FakeCluster(refuses="nothing waits for an approval"), "approve")
    assert (answer.result, answer.message) == ("Refused", "nothing waits for an approval")


async def test_an_operator_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_LOOK_SECONDS", 0.01)
    answer = await ask(FakeCluster(silent=True), "abort", seconds=0.05)
    assert answer.result == "NotAnswered"
    assert "the request stays" in answer.message
    assert (await ask(FakeCluster(silent=True), "abort", seconds=0)).result == "NotAwaited"


async def test_a_missing_right_and_a_missing_rollout_are_told() -> None:
    with pytest.raises(Transient, match=r"you may not patch rollouts\.outrider\.dev in namespace fleet"):
        await ask(FakeCluster(forbidden=True), "abort")
    with pytest.raises(Stalling, match="there is no Rollout nobody in namespace fleet; there are agent"):
        await asking.fetch(FakeCluster(), "fleet", "nobody")  # type: ignore[arg-type]


async def test_pause_and_resume_set_the_spec_and_wait_until_the_operator_has_seen_it() -> None:
    cluster = FakeCluster()
    answer = await pause(cluster, "fleet", "agent", paused=True, wait_seconds=5)  # type: ignore[arg-type]
    assert (cluster.body["spec"]["paused"], answer.result) == (True, "Handled")
    again = await pause(cluster, "fleet", "agent", paused=True, wait_seconds=5)  # type: ignore[arg-type]
    assert "paused already" in again.message
    await pause(cluster, "fleet", "agent", paused=False, wait_seconds=5)  # type: ignore[arg-type]
    assert cluster.body["spec"]["paused"] is False


STATUS: Json = {
    "observedGeneration": 3,
    "phase": "Progressing",
    "nodes": 250,
    "run": {
        "id": 7,
        "kind": "Rollout",
        "state": "Running",
        "version": "1.1.0",
        "startedAt": "2026-01-01T11:50:00Z",
        "startedBy": "kubectl",
        "batch": "2/4",
        "updated": 125,
        "healthy": 120,
        "failed": 1,
        "pending": 129,
        "message": "batch 2: waiting for its nodes to become healthy",
        "approvals": [{"step": 1, "by": "jane", "at": "2026-01-01T11:55:00Z"}],
    },
    "versions": [{"version": "1.1.0", "nodes": 125, "ready": 120}, {"version": "1.0.0", "nodes": 125, "ready": 125}],
    "failures": [{"node": "edge-7", "reason": "HealthTimeout", "message": "not healthy within 300 s"}],
    "lastRefused": {"message": "retry was refused: nothing failed", "at": "2026-01-01T11:00:00Z"},
    "history": [
        {
            "id": 6,
            "kind": "Rollback",
            "version": "1.1.0",
            "result": "Succeeded",
            "finishedAt": "2026-01-01T10:00:00Z",
            "healthy": 5,
            "nodes": 250,
            "requestedBy": "joe",
        }
    ],
    "conditions": [
        {"type": "Ready", "status": "False", "reason": "Progressing", "message": "125 of 250 nodes run 1.1.0"},
        {"type": "Degraded", "status": "True", "reason": "NodesFailed", "message": "1 of 250 nodes failed in run 7"},
    ],
}


def batch(number: int, page: int, step: int, states: dict[str, str], finished: bool) -> Json:
    results = [{"name": name, "state": state} for name, state in states.items()]
    return {
        "metadata": {"name": f"b{number}.{page}"},
        "spec": {
            "run": 7,
            "batch": number,
            "page": page,
            "step": step,
            "startedAt": "2026-01-01T11:50:00Z",
            "nodes": [{"name": name} for name in states],
        },
        "status": {
            "succeeded": sum(state == "Succeeded" for state in states.values()),
            "failed": sum(state == "Failed" for state in states.values()),
            "skipped": 0,
            "nodes": results,
            **({"finishedAt": "2026-01-01T11:51:30Z"} if finished else {}),
        },
    }


def test_one_rollout_is_told_densely_and_truly() -> None:
    body = {
        "metadata": {"name": "agent", "namespace": "fleet", "generation": 4},
        "spec": {"component": "agent", "version": "1.1.0"},
        "status": STATUS,
    }
    batches = [
        batch(1, 1, 1, {"edge-1": "Succeeded"}, finished=True),
        batch(2, 1, 0, {"edge-2": "Succeeded", "edge-7": "Failed"}, finished=True),
        batch(2, 2, 0, {"edge-3": "Starting", "edge-4": "Pending"}, finished=False),
    ]
    text = "\n".join(tell_one(body, batches, NOW, show_nodes=True))
    for words in (
        "Rollout fleet/agent: Progressing",
        "has not looked at the newest change yet",
        "125 of 250 nodes run 1.1.0",
        "wants      agent 1.1.0",
        "125 x 1.1.0 (120 Ready), 125 x 1.0.0 (125 Ready)",
        "7, to 1.1.0: Running, for 10 min, by kubectl",
        "[############............] 125 of 250 nodes updated",
        "120 healthy, 1 failed, 129 pending, 0 skipped, 0 outdated; batch 2/4",
        "waits for  batch 2: waiting for its nodes to become healthy",
        "approved   step 1 by jane",
        "1 (canary 1)",
        "1 min 30 s",
        "10 min, under way",
        "now        edge-3 Starting",
        "edge-7  HealthTimeout: not healthy within 300 s",
        "degraded   NodesFailed: 1 of 250 nodes failed in run 7",
        "refused    retry was refused: nothing failed",
        "joe",
        "Failed !",
    ):
        assert words in text, text


def test_a_rollout_that_nobody_has_looked_at_is_told_as_such() -> None:
    body = {"metadata": {"name": "agent", "namespace": "fleet"}, "spec": {"component": "agent", "version": "1"}}
    text = "\n".join(tell_one(body, [], NOW, show_nodes=True))
    assert "Rollout fleet/agent: new" in text
    assert "nothing is known yet" in text
    assert "agent" in "\n".join(tell_all([body], "fleet"))
    assert list(tell_all([], "fleet")) == ["there is no Rollout in namespace fleet"]


async def test_what_a_policy_says_is_told_as_it_says_it() -> None:
    class Guarded(FakeCluster):
        async def merge(self, *_args: Any, **_options: Any) -> Json:
            raise Transient(
                "Forbidden",
                "the API server refuses PATCH /x: ValidatingAdmissionPolicy 'outrider-requests' with binding 'b' "
                "denied request: you may not approve. Is the operator's ClusterRole the one of this release?",
            )

    with pytest.raises(Stalling) as raised:
        await ask(Guarded(), "approve")
    assert raised.value.message == "policy 'outrider-requests' with binding 'b' denied request: you may not approve."


def test_starting_loads_nothing_of_what_only_some_commands_need() -> None:
    heavy = ["kopf", "kubernetes", "aiohttp", "pydantic", "yaml", "cryptography", "asyncio"]
    code = f"import sys, outrider.__main__; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(outrider.__file__).parents[1])},
    )
    assert ran.stdout.strip() == "[]"


def test_it_is_a_kubectl_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["kubectl-outrider"] == project["scripts"]["outrider"] == "outrider.__main__:main"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("plan",), "give either the NAME of a Rollout or a file with -f"),
        (("plan", "a", "-f", __file__), "give either the NAME of a Rollout or a file with -f"),
        (("plan", "-f", __file__, "--version", "1.0.0"), "--version is for stored Rollouts"),
        (("plan", "-f", "/nowhere.yaml"), "does not exist"),
        (("approve",), "Missing argument 'NAME'"),
        (("rollback", "a", "--batch", "x"), "is not a valid integer"),
    ],
)
def test_wrong_usage_says_what_is_wrong(arguments: tuple[str, ...], text: str) -> None:
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 2
    assert text in ran.stderr


def test_a_kubeconfig_that_cannot_be_used_is_told() -> None:
    ran = CliRunner().invoke(main, ["status", "--kubeconfig", "/nowhere"])
    assert ran.exit_code == 3
    assert "outrider: ClusterAccess: the kubeconfig cannot be used" in ran.stderr


def test_nodes_that_are_prepared_first_are_named() -> None:
    preparing = batch(2, 1, 0, {f"edge-{number}": "Pending" for number in range(12)}, finished=False)
    for result in preparing["status"]["nodes"]:
        result |= {"reason": "Preparing", "message": "it is prepared before its agent is stopped"}
    body = {
        "metadata": {"name": "agent", "namespace": "fleet", "generation": 4},
        "spec": {"component": "agent", "version": "1.1.0"},
        "status": STATUS,
    }
    text = "\n".join(tell_one(body, [preparing], NOW, show_nodes=False))
    assert "prepares   edge-0, edge-1" in text
    assert "and 2 more: their agents run on" in text
