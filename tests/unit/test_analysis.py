"""Comparisons of analyses, how their Jobs are made and read, and what their policies do with an answer."""

import re
from typing import Any

import pytest

from outrider.api import names
from outrider.api.checks import COMPARISON_PATTERN, Analysis, JobCheck
from outrider.core.analysis import is_good
from outrider.core.checkjob import build_check_job, check_job_name, is_check_job, judge_check_job
from outrider.core.words import first_words, last_words


@pytest.mark.parametrize(
    ("comparison", "value", "good"),
    [
        ("< 0.01", 0.009, True),
        ("< 0.01", 0.01, False),
        ("<0.01", 0.0, True),
        ("<= 0.01", 0.01, True),
        ("<= 0.01", 0.011, False),
        ("> 1", 1.0, False),
        (">= 1", 1.0, True),
        (">=1", 0.5, False),
        ("== 0", 0.0, True),
        ("== 0", -0.0, True),
        ("== 0", 0.1, False),
        ("!= 0", 1.0, True),
        ("!= 0", 0.0, False),
        ("> -1", 0.0, True),
        ("< -1.5", -2.0, True),
        ("< 1e-3", 0.0001, True),
        ("> 1e6", 999_999.0, False),
        ("< 1", float("inf"), False),
        ("> 1", float("inf"), True),
        ("< 1", float("-inf"), True),
        ("< 1", float("nan"), None),
        ("!= 1", float("nan"), None),
        ("== 1", float("nan"), None),
    ],
)
def test_a_number_is_compared_as_it_says(comparison: str, value: float, good: bool | None) -> None:
    assert is_good(comparison, value) is good


@pytest.mark.parametrize(
    "comparison",
    ["", "0.01", "<", "< ", "=< 1", "= 1", "<> 1", "< x", "< 1 or > 2", "< 1;", "<  1", "< 1.", "< .5", "< 1e", "< 0x1",
     "< 1_0", "< 1,5", "< inf", "< NaN", "below 1", " < 1", "< 1 ", "< 1\n", "<= 1 && 1", "< --1", "< 1e-999"],
)  # fmt: skip
def test_what_is_no_comparison_is_refused_and_means_nothing(comparison: str) -> None:
    assert re.fullmatch(COMPARISON_PATTERN, comparison) is None
    assert is_good(comparison, 0.5) is None


# --- the Job ----------------------------------------------------------------------------------


def a_job(**changes: Any) -> JobCheck:
    pod = {"metadata": {"labels": {"app": "smoke"}}, "spec": {"containers": [{"name": "smoke", "image": "smoke"}]}}
    template = {"metadata": {"labels": {"team": "a"}}, "spec": {"template": pod, **changes}}
    return JobCheck.model_validate({"template": template})


def built(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "namespace": "fleet",
        "rollout": "node-agent",
        "uid": "uid-1",
        "run": 7,
        "batch": "node-agent-7-2",
        "analysis": "smoke",
        "attempt": 1,
        "check": a_job(),
    }
    return build_check_job(**(given | changes))


def test_the_job_of_an_analysis_is_the_template_s_and_belongs_to_its_rollout() -> None:
    job = built()
    metadata, spec = job["metadata"], job["spec"]
    assert metadata["ownerReferences"] == [
        {"apiVersion": "outrider.dev/v1alpha1", "kind": "Rollout", "name": "node-agent", "uid": "uid-1"}
    ]
    assert metadata["labels"] == {
        "team": "a",
        names.LABEL_MANAGED_BY: "outrider",
        names.LABEL_ROLLOUT: "node-agent",
        names.LABEL_RUN: "7",
        names.LABEL_ANALYSIS: "smoke",
    }
    assert metadata["annotations"] == {names.ANNOTATION_BATCH: "node-agent-7-2"}
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (0, 600, 3600)
    pod = spec["template"]
    assert pod["metadata"]["labels"] == {"app": "smoke"}, "its pods are no agents"
    assert pod["spec"]["restartPolicy"] == "Never"
    assert is_check_job(job, "uid-1")
    assert not is_check_job(job, "uid-2")
    assert not is_check_job({"metadata": {"name": "x"}}, "uid-1")


def test_a_template_s_own_words_win_where_they_may() -> None:
    pod = {"spec": {"restartPolicy": "OnFailure", "containers": []}}
    job = built(check=a_job(template=pod, activeDeadlineSeconds=5, backoffLimit=2))
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (2, 5)
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"
    labelled = JobCheck.model_validate(
        {"template": {"metadata": {"labels": {names.LABEL_MANAGED_BY: "me"}}, "spec": {"template": {}}}}
    )
    assert built(check=labelled)["metadata"]["labels"][names.LABEL_MANAGED_BY] == "outrider"


def test_each_attempt_has_a_name_of_its_own_that_any_process_finds_again() -> None:
    same: dict[str, Any] = {
        "rollout": "node-agent",
        "uid": "u",
        "batch": "node-agent-7-2",
        "analysis": "smoke",
        "check": a_job(),
    }
    first = check_job_name(**same, attempt=1)
    assert first == check_job_name(**same, attempt=1)
    others = [
        check_job_name(**same, attempt=2),
        check_job_name(**{**same, "batch": "node-agent-7-3"}, attempt=1),
        check_job_name(**{**same, "uid": "v"}, attempt=1),
        check_job_name(**{**same, "check": a_job(backoffLimit=1)}, attempt=1),
    ]
    assert len({first, *others}) == 5
    long = check_job_name("r" * 40, "u", "b", "a" * 40, 1, a_job())
    assert len(long) <= 63
    for rollout in ("a-", "node.agent", f"{'r' * 23}.eu"):
        name = check_job_name(rollout, "u", "b", "c", 1, a_job())
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name), name


@pytest.mark.parametrize(
    ("conditions", "answer", "words"),
    [
        ([], None, ""),
        ([{"type": "Complete", "status": "True"}], "Pass", "Job smoke succeeded"),
        ([{"type": "Complete", "status": "False"}], None, ""),
        ([{"type": "FailureTarget", "status": "True", "reason": "BackoffLimitExceeded"}], None, ""),
        (
            [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}],
            "Fail",
            "Job smoke failed (BackoffLimitExceeded): kubectl logs job/smoke",
        ),
        ([{"type": "Failed", "status": "True"}], "Fail", "Job smoke failed: kubectl"),
        ([{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}], "Unknown", "came to no end"),
    ],
)
def test_what_a_job_has_answered(conditions: list[dict[str, str]], answer: str | None, words: str) -> None:
    found = judge_check_job({"metadata": {"name": "smoke"}, "status": {"conditions": conditions}})
    assert (found[0] if found else None) == answer
    assert found is None or words in found[1]


def test_a_job_that_nobody_has_seen_to_yet_has_answered_nothing() -> None:
    assert judge_check_job({"metadata": {"name": "smoke"}}) is None


# --- words ------------------------------------------------------------------------------------


def test_words_of_others_are_cut_by_bytes_and_made_printable() -> None:
    assert (
        last_words("first\n\n  second   line \x1b[31mred", 100)
        == "first | second line \N{REPLACEMENT CHARACTER}[31mred"
    )
    assert last_words("abcdef", 3) == "def"
    assert last_words("aß", 2) == "ß"
    assert last_words("aßß", 3) == "ß", "no half character"
    assert last_words("abc", 0) == ""
    assert first_words("one\n two", 100) == "one two"
    assert first_words("abcdefgh", 6) == "abc..."
    assert len(first_words("ß" * 300, 256).encode()) <= 256


def test_defaults_of_an_analysis() -> None:
    made = Analysis.model_validate({"name": "page", "web": {"url": "https://example.com"}})
    assert (made.interval_seconds, made.timeout_seconds, made.failure_limit) == (30, 600, 0)
