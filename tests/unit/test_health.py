"""Each verdict on an agent's pod, and that Healthy needs positive evidence."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.api.checks import HttpCheck
from outrider.api.rollout import Health
from outrider.core.health import CANNOT_START, HEALTHY, Verdict, find_sound, judge_pods
from outrider.core.refusal import Refusal
from outrider.core.snapshot import Measurement, Node, Pod

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
HEALTH = Health(timeout_seconds=300, min_ready_seconds=10, max_restarts=2)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def pod(**changes: Any) -> Pod:
    return replace(Pod(name="agent-x", uid="pod-1", node="node-1", revision="B"), **changes)


READY = pod(ready_since=ago(60))


@pytest.mark.parametrize(
    ("pods", "state", "reason"),
    [
        # healthy
        pytest.param([READY], "Healthy", "", id="Ready for long enough is healthy"),
        pytest.param([pod(ready_since=ago(10))], "Healthy", "", id="Ready for exactly minReadySeconds is healthy"),
        pytest.param([pod(ready_since=ago(60), restarts=2)], "Healthy", "", id="forgiven restarts are forgiven"),
        pytest.param(
            [pod(revision="A"), READY], "Healthy", "", id="a pod of another revision beside it does not count"
        ),
        pytest.param([pod(live=False), READY], "Healthy", "", id="a pod of its own that ended earlier does not count"),
        pytest.param([pod(terminating=True), READY], "Healthy", "", id="a pod that goes does not count"),
        # on its way
        pytest.param([], "Starting", "NoPod", id="no pod yet"),
        pytest.param(
            [pod(revision="A", ready_since=ago(60))], "Starting", "NoPod", id="the old agent's health proves nothing"
        ),
        pytest.param([replace(READY, live=False)], "Starting", "NoPod", id="a pod that ended proves nothing"),
        pytest.param(
            [replace(READY, terminating=True)], "Starting", "NoPod", id="a pod that is being deleted proves nothing"
        ),
        pytest.param([pod(ready_since=ago(9.9))], "Starting", "MinReady", id="Ready, but not for long enough"),
        pytest.param([pod()], "Starting", "NotReady", id="a pod that is not Ready"),
        pytest.param([pod(fetching=True)], "Downloading", "Fetching", id="the fetch container is at work"),
        pytest.param([pod(trouble="ErrImagePull")], "Starting", "ErrImagePull", id="a first failed pull may be chance"),
        pytest.param(
            [pod(trouble="CrashLoopBackOff", restarts=1)],
            "Starting",
            "CrashLoopBackOff",
            id="it crashes, but the restart that comes next is forgiven",
        ),
        pytest.param([pod(restarts=2)], "Starting", "NotReady", id="forgiven restarts, not Ready yet"),
        # failed
        pytest.param([pod(restarts=3)], "Failed", "TooManyRestarts", id="one restart too many"),
        pytest.param(
            [pod(ready_since=ago(60), restarts=3)],
            "Failed",
            "TooManyRestarts",
            id="too many restarts, though it is Ready now",
        ),
        pytest.param(
            [pod(refusal=Refusal("BlobCorrupted", "not what was signed"))],
            "Failed",
            "BlobCorrupted",
            id="the node refused the artifact",
        ),
        pytest.param(
            [pod(refusal=Refusal("NoTrustedKey", "x"), restarts=9, trouble="CrashLoopBackOff")],
            "Failed",
            "NoTrustedKey",
            id="a refusal says most, so it comes first",
        ),
        pytest.param(
            [pod(refusal=Refusal("NoSpace", "x", final=False), retries=2, trouble="CrashLoopBackOff")],
            "Starting",
            "NoSpace",
            id="room may be made on a node",
        ),
        pytest.param(
            [pod(refusal=Refusal("NoSpace", "x", final=False), retries=3, trouble="CrashLoopBackOff")],
            "Failed",
            "NoSpace",
            id="nobody makes room on a node",
        ),
        pytest.param(
            [pod(refusal=Refusal("HealthFailed", "x", final=False, gone_back=True))],
            "Failed",
            "HealthFailed",
            id="an installation that went back is not tried again",
        ),
        pytest.param([pod(installing=True)], "Installing", "Installing", id="the installation is at work"),
        # init containers that have to come to an end
        pytest.param(
            [pod(trouble="CrashLoopBackOff", retries=2)],
            "Starting",
            "CrashLoopBackOff",
            id="an init container may be tried again",
        ),
        pytest.param(
            [pod(trouble="CrashLoopBackOff", retries=3)],
            "Failed",
            "CrashLoopBackOff",
            id="a crash loop of an init container that lasts",
        ),
        pytest.param(
            [pod(trouble="ImagePullBackOff", retries=0)],
            "Failed",
            "ImagePullBackOff",
            id="what no init container can mend by waiting",
        ),
        # no place
        pytest.param(
            [pod(unschedulable="no free ports")], "Starting", "Unschedulable", id="the scheduler finds no place (yet)"
        ),
        *(
            pytest.param([pod(trouble=reason, restarts=2)], "Failed", reason, id=f"{reason} does not mend itself")
            for reason in sorted(CANNOT_START)
        ),
    ],
)
def test_verdict(pods: list[Pod], state: str, reason: str) -> None:
    verdict = judge_pods(pods, "B", HEALTH, NOW)
    assert (verdict.state, verdict.reason) == (state, reason)


@pytest.mark.parametrize(
    ("pods", "words"),
    [
        pytest.param(
            [pod(refusal=Refusal("DigestMismatch", "is aa, not bb"))], ["is aa, not bb"], id="the refusal itself"
        ),
        pytest.param([pod(restarts=5)], ["agent-x", "5 times", "allowed are 2"], id="restarts, counted"),
        pytest.param(
            [pod(restarts=5, crash="container agent ended with exit code 137, OOMKilled")],
            ["5 times", "exit code 137, OOMKilled"],
            id="restarts, and how the last one ended",
        ),
        pytest.param(
            [pod(restarts=2, trouble="CrashLoopBackOff", trouble_message="container a: back-off", crash="exit code 2")],
            ["CrashLoopBackOff: exit code 2"],
            id="a crash loop: how it ends says more than that it waits",
        ),
        pytest.param(
            [pod(crash="container agent ended with exit code 2: no device")],
            ["is not Ready", "no device"],
            id="a crash that is forgiven is told all the same",
        ),
        pytest.param([pod(unschedulable="no free ports")], ["agent-x", "no free ports"], id="the scheduler's words"),
        pytest.param(
            [pod(restarts=5, trouble="CrashLoopBackOff")], ["CrashLoopBackOff"], id="restarts, with what holds it now"
        ),
        pytest.param(
            [pod(trouble="ImagePullBackOff", trouble_message="container agent: no such tag")],
            ["agent-x", "no such tag"],
            id="the kubelet's words",
        ),
        pytest.param(
            [pod(trouble="ImagePullBackOff")], ["ImagePullBackOff"], id="the reason where the kubelet says no more"
        ),
        pytest.param([pod(ready_since=ago(1))], ["agent-x", "10 s"], id="how long it has to be Ready"),
        pytest.param([pod(trouble="ErrImagePull")], ["agent-x", "ErrImagePull"], id="what holds it up"),
    ],
)
def test_messages_say_which_pod_and_why(pods: list[Pod], words: list[str]) -> None:
    message = judge_pods(pods, "B", HEALTH, NOW).message
    assert all(word in message for word in words), message


# --- the agent's own check ----------------------------------------------------------------------

CHECKED = HEALTH.model_copy(update={"http": HttpCheck(port=8080)})


def told(verdict: Any, since: float = 60, told_at: datetime | None = None) -> Measurement:
    return Measurement(verdict, "it answered so", NOW, ago(since), told_at)


@pytest.mark.parametrize(
    ("check", "state", "reason", "unknown"),
    [
        pytest.param(None, "Starting", "CheckPending", True, id="not asked yet"),
        pytest.param(told("Unknown"), "Starting", "HealthUnknown", True, id="nobody can tell"),
        pytest.param(told("Fail"), "Starting", "CheckFailed", False, id="it answers badly"),
        pytest.param(told("Pass"), "Healthy", "", False, id="it passes for long enough"),
        pytest.param(told("Pass", since=9.9), "Starting", "MinReady", False, id="it passes, but not for long enough"),
    ],
)
def test_a_ready_agent_by_what_it_says_itself(
    check: Measurement | None, state: str, reason: str, unknown: bool
) -> None:
    seen = replace(READY, ip="10.0.0.1", check=check)
    verdict = judge_pods([seen], "B", CHECKED, NOW, is_checked=True)
    assert (verdict.state, verdict.reason, verdict.unknown) == (state, reason, unknown)
    if check is not None and check.verdict != "Pass":
        assert "it answered so" in verdict.message
    assert judge_pods([seen], "B", CHECKED, NOW).state == "Healthy", "who is not asked is judged without"


def test_a_pod_without_an_address_cannot_be_asked() -> None:
    verdict = judge_pods([READY], "B", CHECKED, NOW, is_checked=True)
    assert (verdict.reason, verdict.unknown) == ("HealthUnknown", True)


def test_readiness_and_check_must_both_have_lasted() -> None:
    check = told("Pass", since=3)
    verdict = judge_pods([replace(READY, ip="10.0.0.1", check=check)], "B", CHECKED, NOW, is_checked=True)
    assert verdict.wake_at == NOW + timedelta(seconds=7)
    young = pod(ready_since=ago(2), ip="10.0.0.1", check=told("Pass"))
    assert judge_pods([young], "B", CHECKED, NOW, is_checked=True).wake_at == NOW + timedelta(seconds=8)


def test_minimum_of_zero_seconds_is_healthy_at_once() -> None:
    assert judge_pods([pod(ready_since=NOW)], "B", Health(min_ready_seconds=0), NOW) == HEALTHY


def test_a_pod_that_only_has_to_stay_ready_says_when_to_look_again() -> None:
    verdict = judge_pods([pod(ready_since=ago(4))], "B", HEALTH, NOW)
    assert verdict.wake_at == NOW + timedelta(seconds=6)
    later = judge_pods([pod(ready_since=ago(4))], "B", HEALTH, NOW + timedelta(seconds=6))
    assert later == HEALTHY


PODS = st.lists(
    st.builds(
        Pod,
        name=st.just("agent-x"),
        uid=st.just("u"),
        node=st.just("n"),
        revision=st.sampled_from(["A", "B"]),
        live=st.booleans(),
        terminating=st.booleans(),
        ready_since=st.one_of(st.none(), st.integers(0, 30).map(ago)),
        restarts=st.integers(0, 4),
        trouble=st.sampled_from(["", "ErrImagePull", *sorted(CANNOT_START)]),
        refusal=st.sampled_from([None, Refusal("NoSpace", "x", final=False), Refusal("NoTrustedKey", "x")]),
        fetching=st.booleans(),
    ),
    max_size=3,
)


def is_evidence(pod: Pod) -> bool:
    return (
        pod.revision == "B"
        and pod.live
        and not pod.terminating
        and not pod.refusal
        and pod.restarts <= HEALTH.max_restarts
        and pod.ready_since is not None
        and pod.ready_since <= ago(HEALTH.min_ready_seconds)
    )


@given(pods=PODS)
def test_healthy_needs_a_pod_that_proves_it(pods: list[Pod]) -> None:
    verdict = judge_pods(pods, "B", HEALTH, NOW)
    if verdict.state == "Healthy":
        assert any(is_evidence(pod) for pod in pods)


@given(pods=PODS)
def test_pods_of_others_and_pods_that_ended_change_no_verdict(pods: list[Pod]) -> None:
    own = [pod for pod in pods if pod.revision == "B" and pod.live and not pod.terminating]
    assert judge_pods(pods, "B", HEALTH, NOW) == judge_pods(own, "B", HEALTH, NOW)


@given(pods=PODS)
def test_every_verdict_that_is_not_healthy_has_a_reason_and_a_message(pods: list[Pod]) -> None:
    verdict = judge_pods(pods, "B", HEALTH, NOW)
    if verdict == Verdict("Healthy"):
        return
    assert verdict.reason
    assert verdict.message


@given(pods=PODS)
def test_what_is_sound_at_one_glance_has_nothing_against_it(pods: list[Pod]) -> None:
    for one in pods:
        verdict = judge_pods([one], "B", HEALTH, NOW)
        sound = find_sound([Node("n", "u", {}, ready=True)], {"n": [one]}, "B", HEALTH)
        assert not find_sound([Node("n", "u", {}, ready=False)], {"n": [one]}, "B", HEALTH)
        assert not find_sound([Node("n", "u", {}, ready=True)], {"n": [one, one]}, "B", HEALTH)
        if sound:
            assert sound == {"u"}
            assert verdict.state == "Healthy" or verdict.reason == "MinReady"


def test_what_lies_on_a_node_that_was_prepared_is_only_verified_there() -> None:
    verdict = judge_pods([pod(fetching=True)], "B", HEALTH, NOW, is_prepared=True)
    assert (verdict.state, verdict.reason) == ("Verifying", "Verifying")


def test_a_way_back_that_cannot_be_installed_at_once_is_tried_again() -> None:
    """The node has nothing better to go back to: what ran there before stays, and may only be slow."""
    refused = pod(refusal=Refusal("HealthFailed", "x", final=False, gone_back=True), trouble="CrashLoopBackOff")
    verdict = judge_pods([replace(refused, retries=2)], "B", HEALTH, NOW, is_return=True)
    assert (verdict.state, verdict.reason) == ("Starting", "HealthFailed")
    assert judge_pods([replace(refused, retries=3)], "B", HEALTH, NOW, is_return=True).state == "Failed"
