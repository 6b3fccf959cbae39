"""What may hold a run that is fine otherwise: when it may start, when nodes may set out, and who has to say yes.

None of these stops a verdict or a half-made move, and waiting for one of them is no deadline for anybody.
"""

from dataclasses import replace
from datetime import datetime, timedelta, tzinfo

from outrider.api.rollout import Window
from outrider.core.canary import last_step
from outrider.core.snapshot import Hindrance
from outrider.core.states import IN_FLIGHT
from outrider.core.windows import find_next_change, find_open, is_open
from outrider.core.work import Work, is_direct


def find_early_start(work: Work) -> Hindrance | None:
    """Return what holds a run that may not start yet, by `spec.notBefore`."""
    start = work.seen.spec.not_before
    if start is None or work.seen.now >= start:
        return None
    work.wakes.append(start)
    return Hindrance(
        "WaitingForStart",
        f"the run to {work.seen.spec.version} starts at {_tell(start)}, by spec.notBefore; remove that to start it now",
        stalled=False,
    )


def keep_to_windows(work: Work) -> None:
    """Is it outside the windows? Then no node sets out for another version; who goes back does so at any time."""
    seen, run = work.seen, work.run
    if not seen.spec.windows:
        return
    goes_back = run is not None and work.is_active and is_direct(run)
    for index, window in enumerate(seen.spec.windows):
        if window.time_zone not in seen.zones:
            # Nobody can tell whether it is open, so it is not. That is told at once, not when a run comes to it.
            work.shut = Hindrance(
                "WindowInvalid",
                f"spec.windows[{index}].timeZone: there is no time zone {window.time_zone}, so no node sets out. Write "
                "an IANA name, such as Europe/Berlin or UTC",
                stalled=True,
            )
            if not goes_back:
                work.hindrance = work.hindrance or work.shut
            return
    windows = [(window, seen.zones[window.time_zone]) for window in seen.spec.windows]
    change = find_next_change(windows, seen.now)
    if is_open(windows, seen.now):
        if change is not None and work.is_active:
            work.wakes.append(change)  # for the status to say so
        return
    work.wakes.append(change or seen.now + timedelta(days=1))
    work.shut = Hindrance("WaitingForWindow", _tell_opening(windows, change), stalled=False)


def why_shut(work: Work) -> Hindrance | None:
    """Return why no node of the run may set out now, or None: ways back are always open."""
    return work.shut if work.run is None or not is_direct(work.run) else None


def wait_for_window(work: Work, what: str) -> bool:
    """Tell whether the windows keep nodes from setting out; if so let the run wait, and say `what` waits."""
    shut = why_shut(work)
    if shut is None:
        return False
    if not work.is_active:
        return True  # a run that has completed is not held by what its late nodes wait for
    message = f"{what}: {shut.message}"
    if work.count(IN_FLIGHT):
        work.gate = f"{work.gate}; {message}" if work.gate else message
    else:
        work.gate = message
        work.waiting = replace(shut, message=message)
    work.ended = True
    return True


def _tell_opening(windows: list[tuple[Window, tzinfo]], opens: datetime | None) -> str:
    if opens is None:
        return "it is outside spec.windows, and none of them opens within two weeks"
    opening = find_open(windows, opens)
    zone = f", {opens.astimezone(opening[1]):%H:%M} in {opening[0].time_zone}" if opening is not None else ""
    return f"it is outside spec.windows, of which the next opens at {_tell(opens)}{zone}"


def wait_for_approval(work: Work) -> None:
    """Has a canary step been taken that somebody has to approve? Then nothing follows until that is done."""
    run = work.run
    if run is None or not work.is_active:
        return
    step = find_unapproved_step(work)
    if run.awaits_approval != step:
        work.update_run(awaits_approval=step)
        work.urgent_status = True
    if step is None:
        return
    name, namespace = work.seen.name, work.seen.namespace
    message = (
        f"canary step {step} of run {run.id} to {run.version} waits for an approval. To give it: "
        f"outrider approve {name} --namespace {namespace}, or kubectl --namespace {namespace} annotate --overwrite "
        f'rollouts.outrider.dev/{name} outrider.dev/approve-requested-at="$(date -u +%FT%TZ)"'
    )
    if run.awaits_approval != step:
        work.say("Normal", "ApprovalNeeded", message[0].upper() + message[1:])
    work.waiting = Hindrance("WaitingForApproval", message, stalled=False)
    work.gate = message
    work.ended = True


def find_unapproved_step(work: Work) -> int | None:
    """Return the first canary step that the run has taken and that a person has still to approve.

    None of one that has completed: who comes late is no canary, and what the spec asks for since is for the next run.
    """
    run, canary = work.run, work.seen.spec.strategy.canary
    if run is None or canary is None or is_direct(run) or run.revision == work.stable:
        return None
    approved = {approval.step for approval in run.approvals}
    needed = [
        number for number, step in enumerate(canary.steps, start=1) if step.require_approval and number not in approved
    ]
    if not needed:
        return None
    last = last_step(work)
    return next((step for step in needed if step <= last), None)


def _tell(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
