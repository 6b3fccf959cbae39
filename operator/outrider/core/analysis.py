"""Analyses: questions about the world around that are asked between batches. Pure.

Assumptions:
- Whoever executes plans asks what `AskAnalysis` names, once per attempt, and shows the newest answer in the next
  snapshot; it may be forgotten when the process ends, and is asked for again.

Invariants:
- No batch starts, and no run completes, without a Pass of every analysis that is not older than its interval (of a Job:
  any Pass for the batch).
- A Fail ends a run only once it is recorded, and only beyond `failureLimit`.
- Unknown neither lets a run go on nor ends it; after `timeoutSeconds` of it the Rollout is Stalled and goes on asking.
"""

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from operator import eq, ge, gt, le, lt, ne
from typing import Final

from outrider.api.checks import COMPARISON_PATTERN, Analysis, AnalysisResult
from outrider.api.rollout import RunStatus
from outrider.core.judgement import since_observed
from outrider.core.plan import AskAnalysis
from outrider.core.snapshot import AnalysisAnswer, Batch, Hindrance
from outrider.core.words import first_words
from outrider.core.work import Work, is_direct

_COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": lt,
    "<=": le,
    ">": gt,
    ">=": ge,
    "==": eq,
    "!=": ne,
}


def is_good(pass_when: str, value: float) -> bool | None:
    """Tell whether a number satisfies a comparison such as `< 0.01`; None if it is no number, or the comparison none.

    NaN satisfies nothing, and its contrary neither: a query without data would pass `!= 0` otherwise.
    """
    if re.fullmatch(COMPARISON_PATTERN, pass_when) is None or math.isnan(value):
        return None
    sign = pass_when.rstrip("-.e0123456789 ")
    return _COMPARISONS[sign](value, float(pass_when[len(sign) :]))


def hear_answers(work: Work) -> None:
    """What have the analyses answered? Each answer is recorded with its batch, once."""
    run = work.run
    if run is None or not work.seen.answers:
        return
    ours = {batch.name: batch for batch in work.run_batches()}
    for answer in work.seen.answers:
        batch = ours.get(answer.batch)
        known = _find(work, batch, answer.name) if batch is not None else None
        if batch is not None and known is not None and answer.attempt == known.answers + 1:
            _record(work, batch, _hear(work, known, answer))
            work.urgent_batches.add(batch.name)


def _hear(work: Work, known: AnalysisResult, answer: AnalysisAnswer) -> AnalysisResult:
    is_unknown = answer.verdict == "Unknown"
    since, paused = known.unknown_since, known.paused_seconds
    if is_unknown and since is None:
        since, paused = answer.at, work.paused_seconds()
    return AnalysisResult(
        name=known.name,
        verdict=answer.verdict,
        message=first_words(answer.message, 256),
        value=answer.value,
        answers=answer.attempt,
        failures=known.failures + (answer.verdict == "Fail"),
        at=answer.at,
        unknown_since=since if is_unknown else None,
        paused_seconds=paused if is_unknown else 0,
    )


def why_analysis_failed(work: Work, run: RunStatus) -> tuple[str, str] | None:
    """Return reason and message why the run has failed by what an analysis answered, or None."""
    for analysis in work.seen.spec.analysis:
        for batch in work.run_batches(run.id):
            known = _find(work, batch, analysis.name)
            if known is not None and known.failures > analysis.failure_limit:
                times = "once" if known.failures == 1 else f"{known.failures} times"
                forgiven = f"forgiven are {analysis.failure_limit}"
                message = f"analysis {analysis.name} failed {times} after {_name(batch)}, {forgiven}: {known.message}"
                return "AnalysisFailed", message
    return None


def forgive_analyses(work: Work) -> None:
    """Let what analyses have found against the run count no more, because a person wants it to go on: ask anew."""
    for batch in work.run_batches():
        for known in _known(work, batch):
            if known.failures:
                changes = {
                    "verdict": "Unknown",
                    "message": "it is asked anew",
                    "failures": 0,
                    "at": None,
                    "unknown_since": work.seen.now,
                    "paused_seconds": work.paused_seconds(),
                }
                _record(work, batch, known.model_copy(update=changes))
                work.urgent_batches.add(batch.name)


def ask_analyses(work: Work) -> None:
    """Which analyses have to be asked now about the batch that ended last? While it soaks and waits, too."""
    batch = _batch_in_question(work)
    if batch is None:
        return
    for analysis in work.seen.spec.analysis:
        known = _find(work, batch, analysis.name)
        if known is None:
            known = AnalysisResult(
                name=analysis.name,
                verdict="Unknown",
                message="it is being asked",
                unknown_since=work.seen.now,
                paused_seconds=work.paused_seconds(),
            )
            _record(work, batch, known)
        asked_at = _when_due(work, analysis, known)
        if asked_at is None:
            continue
        if asked_at <= work.seen.now:
            work.questions.append(AskAnalysis(batch.name, analysis.name, known.answers + 1))
        else:
            work.wakes.append(asked_at)
    _tell_doubt(work, batch)


def wait_for_analyses(work: Work) -> None:
    """Has every analysis passed since the last batch, and lately? Then, and only then, the run goes on."""
    batch = _batch_in_question(work)
    if batch is None:
        return
    for analysis in work.seen.spec.analysis:
        known = _find(work, batch, analysis.name)
        if known is None:
            continue
        due = _when_due(work, analysis, known)
        if known.verdict == "Pass" and (due is None or due > work.seen.now):
            continue
        said = {"Pass": "is asked once more", "Fail": "has failed", "Unknown": "cannot tell yet"}[known.verdict]
        detail = f": {known.message}" if known.message and known.verdict != "Pass" else ""
        work.gate = f"{_name(batch)} is healthy; analysis {analysis.name} {said}{detail}"
        work.ended = True
        return


def _batch_in_question(work: Work) -> Batch | None:
    """Return the first page of the run's last batch, if that has ended and is to be analysed."""
    run = work.run
    if not work.seen.spec.analysis or run is None or not work.is_active or is_direct(run):
        return None
    stored = work.run_batches()
    if not stored or any(work.finished[batch.name] is None for batch in stored):
        return None
    if stored[-1].spec.purpose == "Removal":
        return None  # whom it was taken from has nothing more to do with the version
    number = stored[-1].spec.batch
    pages = [batch for batch in stored if batch.spec.batch == number]
    if pages[0].spec.purpose == "Removal":
        return None  # it brings nothing to anybody
    if all(work.results[page.name].count({"Skipped"}) == len(page.spec.nodes) for page in pages):
        return None  # it has changed nothing: what was answered before counts
    return pages[0]


def _when_due(work: Work, analysis: Analysis, known: AnalysisResult) -> datetime | None:
    """Return when an analysis has to be asked (again); None: not any more about this batch."""
    if known.at is None:
        return work.seen.now
    if analysis.job is not None and known.verdict == "Pass":
        return None
    return known.at + timedelta(seconds=analysis.interval_seconds)


def _tell_doubt(work: Work, batch: Batch) -> None:
    """Note which analyses have been unable to tell for too long, or when they will have been."""
    for analysis in work.seen.spec.analysis:
        known = _find(work, batch, analysis.name)
        if known is None or known.unknown_since is None:
            continue
        paused = work.paused_seconds() - known.paused_seconds
        since = since_observed(work, known.unknown_since)
        ends = since + timedelta(seconds=analysis.timeout_seconds + paused)
        if work.seen.now < ends:
            work.wakes.append(ends)
        elif work.doubt is None:
            lasts = f"for {(work.seen.now - since).total_seconds() - paused:.0f} s"
            work.doubt = Hindrance(
                "AnalysisInconclusive",
                f"analysis {analysis.name} cannot tell {lasts} whether {_name(batch)} did well: {known.message}. "
                "It is asked again and again; mend what it asks, or change it in spec.analysis",
                stalled=True,
            )


def _known(work: Work, batch: Batch) -> list[AnalysisResult]:
    return work.analyses.get(batch.name, batch.status.analysis)


def _find(work: Work, batch: Batch, name: str) -> AnalysisResult | None:
    return next((known for known in _known(work, batch) if known.name == name), None)


def _record(work: Work, batch: Batch, result: AnalysisResult) -> None:
    """Put a result into a batch's record, in the place of an earlier one; what the spec has no more is dropped."""
    wanted = {analysis.name for analysis in work.seen.spec.analysis}
    others = [known for known in _known(work, batch) if known.name != result.name and known.name in wanted]
    work.analyses[batch.name] = sorted([*others, result], key=lambda known: known.name)


def _name(batch: Batch) -> str:
    return f"canary step {batch.spec.step}" if batch.spec.step else f"batch {batch.spec.batch}"
