"""Conditions: the transition time tells when the status changed, and nothing else."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.api.base import Condition, ConditionStatus
from outrider.core.conditions import Finding, merge_conditions

THEN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = THEN + timedelta(hours=1)


def condition(status: ConditionStatus = "False", reason: str = "Because", message: str = "so") -> Condition:
    return Condition(
        type="Ready",
        status=status,
        reason=reason,
        message=message,
        observed_generation=3,
        last_transition_time=THEN,
    )


@pytest.mark.parametrize(
    ("before", "finding", "since"),
    [
        pytest.param([], Finding("Ready", "True", "Done", "done"), NOW, id="a new condition begins now"),
        pytest.param(
            [condition("False")], Finding("Ready", "True", "Done", "done"), NOW, id="another status begins now"
        ),
        pytest.param(
            [condition("Unknown")], Finding("Ready", "False", "No", "no"), NOW, id="Unknown to False is a change"
        ),
        pytest.param(
            [condition("False")], Finding("Ready", "False", "Because", "so"), THEN, id="the same keeps its time"
        ),
        pytest.param(
            [condition("False")], Finding("Ready", "False", "Other", "so"), THEN, id="another reason keeps its time"
        ),
        pytest.param(
            [condition("False")],
            Finding("Ready", "False", "Because", "2 of 3"),
            THEN,
            id="another message keeps its time",
        ),
    ],
)
def test_transition_time(before: list[Condition], finding: Finding, since: datetime) -> None:
    (after,) = merge_conditions(before, [finding], 4, NOW)
    assert after.last_transition_time == since
    assert (after.status, after.reason, after.message) == (finding.status, finding.reason, finding.message)
    assert after.observed_generation == 4


def test_what_is_not_found_any_more_is_gone() -> None:
    assert merge_conditions([condition()], [], 4, NOW) == []


def test_a_condition_that_went_away_and_comes_back_begins_anew() -> None:
    found = Finding("Ready", "False", "Because", "so")
    without = merge_conditions([condition()], [], 4, NOW)
    (again,) = merge_conditions(without, [found], 4, NOW)
    assert again.last_transition_time == NOW


FINDINGS = st.lists(
    st.builds(
        Finding,
        type=st.sampled_from(["Ready", "Reconciling", "Stalled"]),
        status=st.sampled_from(["True", "False", "Unknown"]),
        reason=st.sampled_from(["One", "Two"]),
        message=st.sampled_from(["one", "two"]),
    ),
    unique_by=lambda finding: finding.type,
)


@given(findings=FINDINGS, generation=st.integers(0, 9))
def test_the_same_findings_again_give_the_same_object(findings: list[Finding], generation: int) -> None:
    first = merge_conditions([], findings, generation, THEN)
    assert merge_conditions(first, findings, generation, NOW) == first


@given(history=st.lists(FINDINGS, min_size=1, max_size=8))
def test_the_transition_time_is_that_of_the_last_change_of_the_status(history: list[list[Finding]]) -> None:
    conditions: list[Condition] = []
    began: dict[str, tuple[str, datetime]] = {}
    for step, findings in enumerate(history):
        now = THEN + timedelta(minutes=step)
        conditions = merge_conditions(conditions, findings, 1, now)
        began = {
            found.type: began[found.type]
            if found.type in began and began[found.type][0] == found.status
            else (found.status, now)
            for found in findings
        }
        assert {c.type: (c.status, c.last_transition_time) for c in conditions} == began
