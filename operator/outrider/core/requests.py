"""What people ask for by annotations on a Rollout: to approve, abort, retry, take back, look again.

Assumptions:
- An annotation's value (of a rollback its `id`) is a nonce: another value is another request, the same one is none.
- The status is written at once: what a request changes, and the note that it was answered, are stored together.

Invariants:
- A request is answered once. A pass that meets one changes nothing but the status and the records of runs that end;
  batches and moves follow from what was stored, in later passes. A process that ends before the status is written finds
  the request unanswered, and as it was.
- What cannot be done is refused with the reason and what to do, and counts as answered.
- Nothing here chooses a revision that neither a completed run brought, nor a person named.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from outrider.api.names import ASSIGNMENT_NONE
from outrider.api.rollout import (
    Approval,
    LastHandled,
    RefusedRequest,
    RequestKind,
    RolloutStatus,
    RunRecord,
    RunStatus,
)
from outrider.core.analysis import forgive_analyses
from outrider.core.canary import last_step
from outrider.core.fleet import is_excluded
from outrider.core.gates import find_unapproved_step
from outrider.core.judgement import with_state
from outrider.core.leavers import reopen
from outrider.core.prepare import was_never_touched
from outrider.core.ranges import parse_version
from outrider.core.runs import end_run, start_run
from outrider.core.snapshot import Node, Request
from outrider.core.states import COMPLETED, FAILED, ONGOING, UNDECIDED
from outrider.core.takeback import is_left, nodes_to_take_back, read_takeback, why_left
from outrider.core.words import count_nodes
from outrider.core.work import Work, check_breach, find_phase, is_barred, name_versions, same_node

ORDER: tuple[RequestKind, ...] = ("reconcile", "abort", "rollback", "retry", "approve")
"""Of several requests at once what stops comes before what goes on."""

MAX_NONCE = 128
_MAX_BATCHES = 100
_MAX_NUMBER = 2**31 - 1
_LISTED = 5


@dataclass(frozen=True, slots=True)
class Wish:
    """What a rollback's annotation says. No batches: the whole run. No version: what each node came from."""

    id: str
    run: int
    batches: tuple[int, ...] = ()
    version: str | None = None


def answer_requests(work: Work) -> None:
    """What do people ask for? It is done or refused, once, and stored before anything follows from it."""
    for request in sorted(work.seen.requests, key=lambda request: ORDER.index(request.kind)):
        nonce = nonce_of(request.kind, request.value)
        handled = work.last_handled or LastHandled()
        if not nonce or getattr(handled, request.kind) == nonce:
            continue
        work.urgent_status = True
        work.last_handled = handled.model_copy(update={request.kind: nonce})
        refusal = _ANSWERS[request.kind](work, request)
        if refusal:
            _refuse(work, request, nonce, refusal)
        elif request.kind != "reconcile":
            if work.last_refused is not None and work.last_refused.request == request.kind:
                work.last_refused = None
            work.wakes.append(work.seen.now)
            work.ended = True
            return


def is_answered(status: RolloutStatus, kind: RequestKind, value: str) -> bool:
    """Tell whether a request was answered, met or refused."""
    handled = status.last_handled
    return handled is not None and getattr(handled, kind) == nonce_of(kind, value)


def named_version(value: str) -> str | None:
    """Return the version that a rollback's annotation names, if it does."""
    try:
        return parse_rollback(value).version
    except ValueError:
        return None


def nonce_of(kind: RequestKind, value: str) -> str:
    """Return what tells one request from another of its kind; "" if there is none."""
    if kind == "rollback" and value:
        try:
            return parse_rollback(value).id
        except ValueError:
            pass
    elif len(value) <= MAX_NONCE:
        return value
    # Neither can it be echoed as it is, nor must it be looked at again and again.
    return f"sha256:{hashlib.sha256(value.encode()).hexdigest()[:32]}" if value else ""


def parse_rollback(text: str) -> Wish:
    """Read a rollback's annotation; raises ValueError with a sentence on what is wrong with it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    # A typing error in `batches` must not take back the whole run.
    if unknown := sorted(found.keys() - {"id", "run", "batches", "version"}):
        raise ValueError(f"it has {unknown[0][:40]!r}, which means nothing here")
    return Wish(_id_in(found), _run_in(found), _batches_in(found), _version_in(found))


def _id_in(found: Mapping[str, Any]) -> str:
    value = found.get("id")
    # Printable: half a character, which JSON can escape, is echoed as another one, and would never count as answered.
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NONCE or not value.isprintable():
        raise ValueError(f"its id is not a text of 1 to {MAX_NONCE} printable characters")
    return value


def _run_in(found: Mapping[str, Any]) -> int:
    value = found.get("run")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_NUMBER:
        raise ValueError("its run is not the number of a run")
    return value


def _batches_in(found: Mapping[str, Any]) -> tuple[int, ...]:
    if "batches" not in found:
        return ()
    value = found["batches"]
    good = isinstance(value, list) and 1 <= len(value) <= _MAX_BATCHES
    if not good or any(
        not isinstance(one, int) or isinstance(one, bool) or not 1 <= one <= _MAX_NUMBER for one in value
    ):
        raise ValueError(
            f"its batches are not a list of 1 to {_MAX_BATCHES} numbers; without batches the whole run goes back"
        )
    return tuple(sorted(set(value)))


def _version_in(found: Mapping[str, Any]) -> str | None:
    if "version" not in found:
        return None
    value = found["version"]
    if not isinstance(value, str):
        raise ValueError("its version is not a text")
    try:
        parse_version(value)
    except Exception as error:
        raise ValueError(f"its version {value[:40]!r} is no version") from error
    return value


def _refuse(work: Work, request: Request, nonce: str, why: str) -> None:
    message = f"{request.kind}{_by(request)} was refused: {why}"
    work.say("Warning", "RequestRefused", message)
    work.last_refused = RefusedRequest(
        request=request.kind, nonce=nonce, by=request.by[:253], at=work.seen.now, message=message[:512]
    )


def _accept(work: Work, request: Request, what: str) -> str:
    work.say("Normal", "RequestAccepted", f"{request.kind}{_by(request)}: {what}")
    return ""


def _by(request: Request) -> str:
    return f" asked for by {request.by}" if request.by else ""


def _who(request: Request) -> str:
    return request.by or "somebody"


# -- the answers: each does what is asked, or returns why not


def _look_again(_work: Work, _request: Request) -> str:
    """Look again: that is what this pass does."""
    return ""


def _approve(work: Work, request: Request) -> str:
    run = work.run
    step = find_unapproved_step(work) if run is not None and run.state in ONGOING else None
    if run is None or step is None:
        last = last_step(work) if run is not None else 0
        if run is not None and (given := next((each for each in run.approvals if each.step == last), None)):
            return f"canary step {last} of run {run.id} was approved already, by {given.by or 'somebody'}"
        return (
            "there is nothing to approve: no step with requireApproval waits or is under way. See status.run for what "
            "the run waits for"
        )
    approval = Approval(step=step, by=_who(request)[:253], at=work.seen.now)
    work.update_run(approvals=[*run.approvals, approval])
    return _accept(work, request, f"canary step {step} of run {run.id} to {run.version} is approved")


def _abort(work: Work, request: Request) -> str:
    run = work.run
    if run is None or run.state not in ONGOING:
        return "no run is under way; to keep one from starting set spec.paused to true"
    if run.state == "Paused" or run.aborted_by is not None:
        return (
            f"run {run.id} to {run.version} has stopped already: {run.message}. Ask for a retry to go on, or for a "
            "rollback, or change spec.version"
        )
    if run.kind == "Rollback":
        message = f"aborted by {_who(request)}"
        since = run.paused_since or work.seen.now
        work.update_run(
            state="Paused", aborted_by=_who(request), reason="RunAborted", message=message, paused_since=since
        )
        return _accept(work, request, f"run {run.id} stops; nodes that are half-way arrive, the others stay")
    work.update_run(aborted_by=_who(request))
    taken_back = work.seen.spec.on_failure == "Rollback" and run.revision != work.stable
    then = "what it moved is taken back" if taken_back else "what it moved stays"
    if taken_back and work.spec_paused:
        then += " when the pause ends"
    return _accept(work, request, f"run {run.id} to {run.version} stops, and {then}")


def _retry(work: Work, request: Request) -> str:
    run = work.run
    if run is None:
        return "there was no run yet"
    if (run.holds or run.revision) != work.seen.wanted:
        return f"the Rollout wants {work.seen.spec.version} since run {run.id}: a run to it starts by itself"
    if run.retry_by is not None:
        return f"{run.retry_by} asked for it already; the new run starts as soon as nothing hinders it"
    if run.state == "Paused":
        return _go_on(work, request, run)
    if run.state == "Running":
        return f"run {run.id} is under way; wait until it has ended, or abort it"
    if run.kind == "Rollback" or run.state == "Failed":
        work.update_run(retry_by=_who(request))
        return _accept(work, request, f"a complete new run to {work.seen.spec.version} starts")
    count = _forgive(work, request, left_out=True)
    if not count:
        return f"no node failed or was left out in run {run.id}; there is nothing to retry"
    if work.count(UNDECIDED):
        reopen(work)  # some are still where they failed, and only a run that is under way looks at them
    return _accept(work, request, f"{count_nodes(count)} of run {run.id} to {run.version} once more")


def _go_on(work: Work, request: Request, run: RunStatus) -> str:
    """Let a run that stopped go on."""
    if run.kind == "Rollback":
        work.update_run(state="Running", aborted_by=None, reason="", message="")
        return _accept(work, request, f"run {run.id} goes on taking nodes back")
    if find_phase(work, run.revision) == "Revoked":
        return f"{work.seen.spec.component}-{run.version} is Revoked; set spec.version to another version"
    count = _forgive(work, request, left_out=False)
    forgive_analyses(work)
    work.update_run(state="Running", aborted_by=None, reason="", message="")
    return _accept(
        work, request, f"run {run.id} to {run.version} goes on, {count_nodes(count)} that failed before once more"
    )


def _forgive(work: Work, request: Request, *, left_out: bool) -> int:
    """Let the failures of the run count no more, and see to it that failed nodes are tried again; return how many.

    `left_out` says that skipped nodes are tried again, too. A node that is still on what failed goes back first.
    """
    count = 0
    for batch, entry, result in list(work.entries()):
        node = same_node(work, entry)
        again = result.state in FAILED or (left_out and result.state == "Skipped" and result.reason != "NodeGone")
        if not again:
            continue
        results = work.results[batch.name]
        work.urgent_batches.add(batch.name)
        if node is None:
            results[entry.name] = with_state(work, result, "Skipped", "NodeGone", "the node was deleted since")
            continue
        assignment = work.assignment(node)
        if result.state == "Skipped" and assignment == entry.to:
            continue  # a later batch has brought it there
        count += 1
        message = f"it had ended as {result.state} ({result.reason}); {_who(request)} asked to try it again"
        if result.state in FAILED and assignment != entry.back and not was_never_touched(result):
            began = {
                "started_at": work.seen.now,
                "finished_at": None,
                "returning_since": None,
                "paused_seconds": work.paused_seconds(),
            }
            begun = result.model_copy(update=began)
            if entry.back == entry.to or (assignment == entry.to and _must_stay(work, node, entry.back)):
                # There is nothing else to run on it: it is looked at once more.
                results[entry.name] = with_state(work, begun, "Starting", "", "")
                continue
            results[entry.name] = with_state(work, begun, "Retrying", result.reason, message)
            continue
        results[entry.name] = with_state(work, result, "Skipped", "Retried", message)
    return count


def _must_stay(work: Work, node: Node, back: str) -> bool:
    """Tell whether a failed node cannot go back to what it came from."""
    return is_excluded(node) or is_barred(work, back) or check_breach(work, node, back) is not None


def _rollback(work: Work, request: Request) -> str:
    try:
        wish = parse_rollback(request.value)
    except ValueError as error:
        return (
            f"{error}. Write for example "
            '{"id": "<a new text>", "run": 7, "batches": [2], "version": "1.3.0"}; batches and version may be left out'
        )
    record = _record_of(work, wish.run)
    if isinstance(record, str):
        return record
    to_revision = _find_target(work, wish.version, record) if wish.version is not None else None
    if to_revision is not None and to_revision[1]:
        return to_revision[1]
    stored = {batch.spec.batch for batch in work.run_batches(wish.run)}
    if missing := sorted(set(wish.batches) - stored):
        return f"run {wish.run} has no batch {missing[0]}; it has 1 to {max(stored, default=0)}"
    return _take_back(work, request, wish, record, to_revision[0] if to_revision is not None else None)


def _record_of(work: Work, number: int) -> RunRecord | RunStatus | str:
    """Return the run of that number if its nodes may be taken back, else why not."""
    run = work.run
    known: dict[int, RunRecord | RunStatus] = {record.id: record for record in work.history}
    if run is not None:
        known[run.id] = run
        if run.kind == "Rollback" and run.state == "Running":
            return f"run {run.id} is taking nodes back; wait until it has ended, or abort it"
        if run.kind == "Rollout" and run.state in ONGOING and run.id != number:
            return f"run {run.id} to {run.version} is under way; roll that back, or abort it first"
    found = known.get(number)
    if found is None or not work.run_batches(number):
        runs = [str(key) for key, record in known.items() if record.kind == "Rollout" and work.run_batches(key)]
        listed = ", ".join(sorted(runs, key=int, reverse=True)[:_LISTED]) or "none"
        return f"nothing is recorded of a run {number}. Runs that can be taken back: {listed} (spec.runHistoryLimit)"
    if found.kind == "Rollback":
        return f"run {number} took nodes back itself. Ask for a retry, or change spec.version"
    return found


def _find_target(work: Work, version: str, record: RunRecord | RunStatus) -> tuple[str, str]:
    """Return the revision that brings a named version back, and why it cannot be, "" if it can."""
    seen = work.seen
    name = f"{seen.spec.component}-{version}"
    state = seen.versions.get(version)
    if state is None:
        return "", f"there is no ComponentVersion {name} in namespace {seen.namespace}; name another version"
    if state.phase not in {"Published", "Deprecated"}:
        return "", f"{name} is {state.phase or 'new'}, and neither Published nor Deprecated; name another version"
    kept = [one for one in work.completed if one.revision in seen.revisions]
    for one in kept:
        if one.version == version and one.revision != record.revision:
            return one.revision, ""
    if version == record.version:
        return "", f"{version} is what would be taken away; name another version"
    others = sorted({one.version for one in kept} - {record.version}, key=parse_version)
    choice = f"name one of {', '.join(others[-_LISTED:])}" if others else "leave the version out"
    return "", (
        f"no completed run of this Rollout that is still known brought {version}, so nobody knows the template that "
        f"belongs to it; {choice}, or set spec.version (spec.revisionHistoryLimit says how many are kept)"
    )


def _take_back(work: Work, request: Request, wish: Wish, record: RunRecord | RunStatus, to_revision: str | None) -> str:
    """End what is under way, and start the run that takes nodes back; or return why no node could be."""
    seen, run = work.seen, work.run
    assert run is not None  # noqa: S101 - there is a run of that number, so there is a newest
    is_stable = work.stable == record.revision != record.from_revision
    stable = record.from_revision if is_stable else work.stable
    aim = read_takeback(
        work,
        of_run=record.id,
        batches=frozenset(wish.batches),
        revision=record.revision,
        to_revision=to_revision,
        otherwise=stable,
    )
    nodes = [node for found in nodes_to_take_back(work, aim) for node in found]
    goals = {aim.goal_of(node) for node in nodes if is_left(work, aim, node)}
    reasons = [why_left(work, node, aim.goal_of(node), aim.leaves) for node in nodes]
    what = _tell_batches(wish.batches) + f"run {record.id}"
    possible = sum(reason is None for reason in reasons)
    if not possible:
        others = [reason for reason in reasons if reason is not None and reason[0] != "MovedSince"]
        if not others:
            return f"none of the nodes of {what} runs {record.version} any more"
        reason, message = others[0]
        count = count_nodes(len(others))
        return f"of {what} {count} still run {record.version}, and none can go back: {message} ({reason})"
    note = f"{_tell_batches(wish.batches)}it taken back, as {_who(request)} asked".removeprefix("it ")
    _end_present(work, record.id, whole=not wish.batches, note=note)
    if is_stable:
        work.stable = stable
        work.stable_version = seen.revisions.get(stable, record.from_version) if stable is not None else None
    if not wish.batches:
        work.completed = [one for one in work.completed if one.revision != record.revision]
    start_run(
        work,
        kind="Rollback",
        cause="Requested",
        by=_who(request),
        version=record.version,
        revision=record.revision,
        to_version=wish.version or name_versions(work, goals),
        of_run=record.id,
    )
    holds = run.holds if run.holds is not None else seen.wanted
    work.update_run(of_batches=list(wish.batches), to_revision=to_revision, holds=holds)
    assert work.run is not None  # noqa: S101 - it was started above
    goal = _tell_goal(work.run.to_version)
    return _accept(
        work, request, f"run {work.run.id} takes {count_nodes(possible)} of {what} from {record.version} to {goal}"
    )


def _tell_batches(batches: tuple[int, ...]) -> str:
    if not batches:
        return ""
    return f"batch{'es' if len(batches) > 1 else ''} {', '.join(map(str, batches))} of "


def _end_present(work: Work, taken_back: int, *, whole: bool, note: str) -> None:
    """Put the present run into the history, and note in that of the run that is taken back what becomes of it."""
    run = work.run
    assert run is not None  # noqa: S101 - as above
    if run.state == "Running":
        end_run(work, "RolledBack", note)
    elif run.state == "Paused":
        ours = run.id == taken_back
        end_run(work, "RolledBack" if ours else "Superseded", note if ours else run.message)
    else:
        end_run(work, run.state, run.message)
    for index, record in enumerate(work.history):
        if record.id == taken_back:
            changes: dict[str, Any] = {"message": note[:512]}
            if whole and record.result in COMPLETED:
                changes["result"] = "RolledBack"
            work.history[index] = record.model_copy(update=changes)


def _tell_goal(version: str) -> str:
    return {"several": "what each came from", ASSIGNMENT_NONE: "no agent, as before"}.get(version, version)


_ANSWERS: dict[RequestKind, Callable[[Work, Request], str]] = {
    "reconcile": _look_again,
    "abort": _abort,
    "rollback": _rollback,
    "retry": _retry,
    "approve": _approve,
}
