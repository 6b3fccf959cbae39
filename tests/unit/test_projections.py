"""What is kept of an agent's pod: restarts by kind of container, how a container ended, why it finds no place."""

from datetime import UTC, datetime
from typing import Any

import pytest

from outrider.api import names
from outrider.reconcile.projections import AgentPod, project_pod

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Json = dict[str, Any]


def status(name: str, restarts: int = 0, **state: Json) -> Json:
    return {"name": name, "restartCount": restarts, "state": state or {"running": {}}}


def ended(code: int, reason: str = "Error", message: str = "") -> Json:
    return {"exitCode": code, "reason": reason, **({"message": message} if message else {})}


def crashing(name: str, restarts: int, last: Json) -> Json:
    waiting = {"reason": "CrashLoopBackOff", "message": f"back-off 10s restarting failed container={name}"}
    return {**status(name, restarts, waiting=waiting), "lastState": {"terminated": last}}


def pod(
    main: list[Json], init: list[Json] | None = None, sidecars: tuple[str, ...] = (), **more: Json | list[Json] | str
) -> AgentPod:
    containers = [
        {"name": one["name"], **({"restartPolicy": "Always"} if one["name"] in sidecars else {})} for one in init or []
    ]
    return project_pod(
        {
            "metadata": {
                "name": "agent-x",
                "namespace": "fleet",
                "uid": "pod-1",
                "labels": {names.LABEL_COMPONENT: "agent", names.LABEL_REVISION: "B"},
            },
            "spec": {"nodeName": "node-1", "initContainers": containers},
            "status": {"phase": "Running", "containerStatuses": main, "initContainerStatuses": init or [], **more},
        },
        None,
        NOW,
    )


def test_restarts_are_those_of_containers_that_run_on() -> None:
    """Pitfall: restart counts that include init containers, which may wait for a neighbour by crashing."""
    made = pod(
        [status("agent", 1), status("log", 2)],
        [status(names.FETCH_CONTAINER, 9), status("wait", 4), status("proxy", 3)],
        sidecars=("proxy",),
    )
    assert made.pod.restarts == 6
    assert made.pod.retries is None


def test_containers_that_are_to_be_ignored_restart_and_crash_unseen() -> None:
    """Pitfall: noisy sidecars."""
    made = pod([status("agent", 1), crashing("noisy", 7, ended(1))])
    assert (made.pod.restarts, made.pod.trouble) == (8, "CrashLoopBackOff")
    quiet = made.without(frozenset({"noisy"}))
    assert (quiet.restarts, quiet.trouble, quiet.trouble_message, quiet.crash) == (1, "", "", "")
    assert made.without(frozenset({"other"})) is made.pod


def test_trouble_behind_a_container_that_is_ignored_is_seen() -> None:
    made = pod([crashing("noisy", 7, ended(1)), status("agent", waiting={"reason": "ImagePullBackOff"})])
    assert made.pod.trouble == "CrashLoopBackOff"
    assert made.without(frozenset({"noisy"})).trouble == "ImagePullBackOff"


@pytest.mark.parametrize("name", ["wait", names.FETCH_CONTAINER])
def test_an_init_container_that_crashes_says_how_often_it_was_tried(name: str) -> None:
    made = pod([status("agent", waiting={"reason": "PodInitializing"})], [crashing(name, 2, ended(1))])
    assert (made.pod.trouble, made.pod.restarts, made.pod.retries) == ("CrashLoopBackOff", 0, 2)


def test_a_sidecar_that_crashes_counts_as_restarts() -> None:
    made = pod([status("agent")], [crashing("proxy", 2, ended(1))], sidecars=("proxy",))
    assert (made.pod.trouble, made.pod.restarts, made.pod.retries) == ("CrashLoopBackOff", 2, None)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (ended(137, "OOMKilled"), "container agent ended with exit code 137, OOMKilled"),
        (ended(1), "container agent ended with exit code 1"),
        (
            ended(2, message="starting\nno such device: /dev/sda\n"),
            "container agent ended with exit code 2: starting | no such device: /dev/sda",
        ),
    ],
)
def test_how_a_container_ended_is_kept(last: Json, words: str) -> None:
    assert pod([crashing("agent", 1, last)]).pod.crash == words
    assert pod([{**status("agent", 1), "lastState": {"terminated": last}}]).pod.crash == words
    assert pod([status("agent", 0, terminated=last)]).pod.crash == words


def test_a_container_that_ended_well_has_not_crashed() -> None:
    made = pod([status("agent")], [status("wait", terminated=ended(0, "Completed"))])
    assert made.pod.crash == ""
    assert made.containers == ()


def test_of_a_long_termination_message_its_end_is_kept() -> None:
    made = pod([crashing("agent", 1, ended(1, message="x" * 4000 + "\nthe reason"))])
    assert made.pod.crash.endswith("| the reason")
    assert len(made.pod.crash.encode()) < 200


def test_a_pod_without_a_place_says_why() -> None:
    conditions = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: no free ports"}
    ]
    assert pod([], conditions=conditions).pod.unschedulable == "0/1 nodes: no free ports"
    assert pod([], conditions=[{"type": "PodScheduled", "status": "True"}]).pod.unschedulable == ""


def test_a_pod_s_address_is_kept() -> None:
    assert pod([status("agent")], podIP="10.0.0.7").pod.ip == "10.0.0.7"
    assert pod([status("agent")]).pod.ip == ""


def ends_with(name: str, code: int, message: str = "", **last: Json) -> Json:
    return {**status(name, terminated=ended(code, message=message)), **last}


@pytest.mark.parametrize(
    ("container", "code", "message", "reason", "words", "final"),
    [
        pytest.param(
            "outrider-fetch", 3, "BlobCorrupted: it hashes to x", "BlobCorrupted", "it hashes to x", True, id="refused"
        ),
        pytest.param(
            "outrider-fetch", 4, "NoSpace: room for 1 byte", "NoSpace", "room for 1 byte", False, id="room may be made"
        ),
        pytest.param(
            "outrider-install",
            4,
            "HealthFailed: 503; 1.0.0 is back",
            "HealthFailed",
            "503; 1.0.0 is back",
            True,
            id="an installation that was taken back is not tried again",
        ),
        pytest.param(
            "outrider-fetch",
            3,
            "outrider-fetch: fetching\noutrider-fetch: NoTrustedKey: there is none\n",
            "NoTrustedKey",
            "there is none",
            True,
            id="the end of the log, where no message could be written",
        ),
        pytest.param(
            "outrider-fetch", 2, "ConfigInvalid: no reference", "ConfigInvalid", "no reference", False, id="environment"
        ),
        pytest.param(
            "outrider-fetch", 3, "it is bad: very", "ArtifactRefused", "it is bad: very", True, id="no reason's shape"
        ),
        pytest.param(
            "outrider-fetch",
            3,
            f"{'Very' * 20}Long: x",
            "ArtifactRefused",
            f"{'Very' * 20}Long: x",
            True,
            id="too long for a reason",
        ),
        pytest.param(
            "outrider-fetch", 3, "\x1b[31mBad\x00: x", "ArtifactRefused", "[31mBad: x", True, id="what no line may hold"
        ),
        pytest.param(
            "outrider-fetch",
            3,
            "",
            "ArtifactRefused",
            "outrider-fetch ended with exit code 3 and said nothing",
            True,
            id="nothing said",
        ),
    ],
)
def test_what_a_program_of_ours_says_on_a_node_is_its_reason(
    container: str, code: int, message: str, reason: str, words: str, final: bool
) -> None:
    refusal = pod([], [ends_with(container, code, message)]).pod.refusal
    assert refusal is not None
    assert (refusal.reason, refusal.message, refusal.final or refusal.gone_back) == (reason, words, final)


@pytest.mark.parametrize("message", ["A" + "a" * 1000, "Aa" * 500, "outrider-" * 100, "A" + "a1" * 500 + ":"])
def test_no_message_decides_how_long_it_takes_to_look_at_it(message: str) -> None:
    refusal = pod([], [ends_with(names.FETCH_CONTAINER, 3, message)]).pod.refusal
    assert refusal is not None
    assert refusal.reason == "ArtifactRefused"


def test_a_message_without_end_is_cut() -> None:
    refusal = pod([], [ends_with(names.FETCH_CONTAINER, 3, "BlobCorrupted: " + "x" * 9000)]).pod.refusal
    assert refusal is not None
    assert refusal.reason == "BlobCorrupted"
    assert len(refusal.message) < 1100


def test_other_containers_and_other_exit_codes_refuse_nothing() -> None:
    assert pod([], [ends_with("wait", 3, "BlobCorrupted: x")]).pod.refusal is None
    assert pod([], [ends_with(names.FETCH_CONTAINER, 1, "BlobCorrupted: x")]).pod.refusal is None


def test_what_was_refused_once_and_done_since_is_no_refusal() -> None:
    last = {"lastState": {"terminated": ended(3, message="NoTrustedKey: x")}}
    assert pod([], [{**status(names.FETCH_CONTAINER, 1), **last}]).pod.refusal is not None
    done = {**status(names.FETCH_CONTAINER, 1, terminated=ended(0, "Completed")), **last}
    assert pod([], [done]).pod.refusal is None


def test_which_of_our_programs_is_at_work_is_seen() -> None:
    assert pod([], [status(names.FETCH_CONTAINER)]).pod.fetching
    made = pod([], [status(names.FETCH_CONTAINER, terminated=ended(0, "Completed")), status(names.INSTALL_CONTAINER)])
    assert (made.pod.fetching, made.pod.installing) == (False, True)
