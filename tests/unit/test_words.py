"""What others say is told as one line, and a terminal that shows it obeys none of it."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.adapters.kube import _error
from outrider.core.conditions import Finding, merge_conditions
from outrider.core.plan import Event
from outrider.core.snapshot import Hindrance
from outrider.core.words import printable
from outrider.reconcile.projections import project_pod

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CLEARS_THE_SCREEN = "no\x1b[2J\x1b[1;1H such image\r\nAll is well\x07"
TOLD = "no�[2J�[1;1H such image  All is well�"


@given(st.text())
def test_every_text_is_one_printable_line_and_what_is_printable_stays(text: str) -> None:
    told = printable(text)
    assert told.isprintable()
    assert len(told) == len(text)
    assert all(one == shown for one, shown in zip(text, told, strict=True) if one.isprintable())


def pod(**status: Any) -> Any:
    return project_pod({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "status": status}, None, NOW).pod


PLACES = ["condition", "event", "hindrance", "API server", "waiting container", "ended container", "scheduler"]


@pytest.mark.parametrize("where", PLACES)
def test_what_others_say_is_told_without_what_a_terminal_would_obey(where: str) -> None:
    match where:
        case "condition":
            [condition] = merge_conditions([], [Finding("Ready", "False", "R", CLEARS_THE_SCREEN)], 1, NOW)
            told = condition.message
        case "event":
            told = Event("Warning", "R", CLEARS_THE_SCREEN).message
        case "hindrance":
            told = Hindrance("R", CLEARS_THE_SCREEN, stalled=True).message
        case "API server":
            answer = json.dumps({"message": CLEARS_THE_SCREEN, "reason": "Invalid"})
            told = _error("POST", "/x", 422, answer, {}).message
        case "waiting container":
            waiting = {"reason": "ErrImagePull", "message": CLEARS_THE_SCREEN}
            told = pod(containerStatuses=[{"name": "a", "state": {"waiting": waiting}}]).trouble_message
        case "ended container":
            ended = {"exitCode": 1, "message": CLEARS_THE_SCREEN}
            told = pod(containerStatuses=[{"name": "a", "state": {"terminated": ended}}]).crash
        case _:
            scheduled = {"type": "PodScheduled", "status": "False", "message": CLEARS_THE_SCREEN}
            told = pod(conditions=[scheduled]).unschedulable
    assert told.isprintable()
    assert "such image" in told
    if where != "ended container":
        assert TOLD in told
