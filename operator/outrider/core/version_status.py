"""What a ComponentVersion's status says: the one place that computes Ready, and the events of a change."""

from collections.abc import Iterable
from datetime import datetime

from outrider.api.base import Condition
from outrider.api.componentversion import ComponentVersionStatus, Phase, Usage
from outrider.core.conditions import Finding, merge_conditions
from outrider.core.plan import Event
from outrider.core.version_snapshot import (
    MISSING,
    AnyStep,
    Delete,
    Failure,
    Publish,
    RunTest,
    Standing,
    Store,
    Verify,
    VersionSnapshot,
    WriteIndex,
)


def conclude_version(
    seen: VersionSnapshot, standing: Standing, status: ComponentVersionStatus
) -> tuple[ComponentVersionStatus, tuple[Event, ...]]:
    """Return the status with its conditions, and what a person should be told of the change."""
    findings = [*_ready(seen, standing), *_steps(seen, standing)]
    if standing.phase == "Deprecated":
        reason = "Expired" if standing.expired else "DeprecatedByAuthor"
        findings.append(Finding("Deprecated", "True", reason, _why_deprecated(seen, standing)))
    after = status.model_copy(
        update={"conditions": merge_conditions(seen.status.conditions, findings, seen.generation, seen.now)}
    )
    return after, tuple(_events(seen.status, after, seen, standing))


def conclude_deletion(
    seen: VersionSnapshot, status: ComponentVersionStatus, failure: Failure | None, *, gives_up: bool
) -> tuple[ComponentVersionStatus, tuple[Event, ...]]:
    """Return the status of a version that is being deleted, and what a person should be told."""
    name = f"{seen.spec.component} {seen.spec.version}"
    events: list[Event] = []
    if gives_up and failure is not None:
        left = ", ".join(stored.reference for stored in status.artifacts)
        message = f"{name} goes, but the registry keeps what it stored: {failure.message}. Delete by hand: {left}"
        findings = [Finding("Ready", "False", "ArtifactsLeft", message)]
        events.append(Event("Warning", "ArtifactsLeft", message))
    elif seen.usage is not None and seen.deletion is not None and not seen.deletion.with_namespace:
        message = f"{name} is to be deleted, but is still needed: {describe_usage(seen.usage)}; it goes when it is not"
        findings = [Finding("Ready", "False", "InUse", message), Finding("Stalled", "True", "InUse", message)]
        events.append(Event("Warning", "InUse", message))
    elif failure is not None:
        message = _explain(failure)
        findings = [
            Finding("Ready", "False", failure.reason, message),
            Finding("Reconciling", "True", failure.reason, message),
        ]
    else:
        message = f"{name} is being deleted: what it stored is taken out of the registry"
        findings = [Finding("Ready", "False", "Deleting", message), Finding("Reconciling", "True", "Deleting", message)]
    conditions = merge_conditions(seen.status.conditions, findings, seen.generation, seen.now)
    told = {condition.reason for condition in seen.status.conditions}
    after = status.model_copy(
        update={"observed_generation": seen.generation, "conditions": conditions, "latest": False}
    )
    return after, tuple(event for event in events if event.reason not in told)


def conclude_unreadable(
    status: ComponentVersionStatus, problem: str, generation: int, now: datetime, *, revoked: bool
) -> tuple[ComponentVersionStatus, tuple[Event, ...]]:
    """Return the status of a version whose spec cannot be read, and what a person should be told.

    The API server takes some values that we do not, such as a time in the year 0. What was published is withdrawn, and
    has to be verified once more when the spec is corrected: else an author could keep it from ever being withdrawn.
    """
    phase: Phase = "Revoked" if revoked else "Withdrawn" if status.published_at is not None else "Draft"
    message = f"the spec cannot be read: {problem}; correct it"
    findings = [Finding("Ready", "False", "SpecInvalid", message), Finding("Stalled", "True", "SpecInvalid", message)]
    after = status.model_copy(
        update={
            "observed_generation": generation,
            "phase": phase,
            "latest": False,
            "artifacts": [stored.model_copy(update={"signature": None}) for stored in status.artifacts],
            "conditions": merge_conditions(status.conditions, findings, generation, now),
        }
    )
    told = any(condition.reason == "SpecInvalid" for condition in status.conditions)
    return after, () if told else (Event("Warning", "SpecInvalid", message),)


def describe_usage(usage: Usage) -> str:
    """Return in a few words who needs a version."""
    parts = []
    if usage.nodes:
        parts.append("1 node runs it" if usage.nodes == 1 else f"{usage.nodes} nodes run it")
    if usage.rollouts:
        parts.append(f"Rollouts that want it or may return to it: {', '.join(usage.rollouts)}")
    return "; ".join(parts) or "nobody"


# -- Ready, with Reconciling or Stalled beside it


def _ready(seen: VersionSnapshot, standing: Standing) -> list[Finding]:
    """Return Ready, and what stands beside it while it is False.

    True: it is as far as its author wants it. Else either somebody must act (Stalled) or it goes on by itself
    (Reconciling): what kstatus and Argo CD read.
    """
    failure = standing.failure
    if standing.phase == "Revoked":
        return [Finding("Ready", "True", "Revoked", _why_revoked(seen))]
    if standing.phase == "Withdrawn":
        return _withdrawn(seen, standing)
    if standing.phase in {"Published", "Deprecated"} and seen.status.published_at is not None:
        return [_still_good(seen, standing)]
    if failure is not None:
        return _not_ready(failure.reason, _explain(failure), stalled=failure.stalled)
    if standing.wanted is not None:
        reason, message = _under_way(standing.wanted, seen)
        return _not_ready(reason, message, stalled=False)
    if standing.phase == "Published":
        return [Finding("Ready", "True", "Published", _published(seen, standing))]
    return _held(seen, standing)


def _held(seen: VersionSnapshot, standing: Standing) -> list[Finding]:
    """Return Ready for a version that is verified and has nothing to do: it is where it should be, or is held."""
    wants_more = seen.spec.stage in {"Testing", "Published"}
    if wants_more and seen.problems:
        problem = seen.problems[0]
        more = f" (and {len(seen.problems) - 1} more)" if len(seen.problems) > 1 else ""
        return _not_ready(problem.reason, problem.message + more, stalled=True)
    if wants_more and standing.expired:
        message = (
            f"expired at {_moment(seen.spec.expires_at)} before it was published; move spec.expiresAt, or delete it"
        )
        return _not_ready("Expired", message, stalled=True)
    trial = standing.trial
    if wants_more and trial.state == "Failed":
        message = (
            f"its test failed: {trial.message}. Correct the version, or annotate it with "
            "outrider.dev/retest-requested-at to test the same again"
        )
        return _not_ready("TestFailed", message, stalled=True)
    if wants_more and trial.state in {"Waiting", "Running"}:
        reason = "WaitingForVerdict" if trial.state == "Waiting" else "Testing"
        return _not_ready(reason, trial.message, stalled=False)
    if standing.phase == "Testing":
        tested = "tested" if trial.state == "Passed" else "verified"
        return [Finding("Ready", "True", "ReadyForTesting", f"{tested}; set spec.stage to Published to publish it")]
    message = "stored and verified; set spec.stage to Testing or Published to go on"
    if seen.spec.stage == "Deprecated":
        message = "stored and verified, but never published: there is nothing to deprecate; set spec.stage to Published"
    return [Finding("Ready", "True", "DraftVerified", message)]


def _withdrawn(seen: VersionSnapshot, standing: Standing) -> list[Finding]:
    failure = standing.failure
    before = {condition.type: condition for condition in seen.status.conditions}.get("Ready")
    if failure is not None:
        reason, why = failure.reason, _explain(failure)
    elif before is not None and seen.status.phase == "Withdrawn":
        # Said before; it stands until the verification has passed.
        return _not_ready(before.reason, before.message, stalled=True)
    else:
        reason, why = "ArtifactMissing", "the registry no longer has all that was stored; it is being stored again"
    message = f"{seen.spec.component} {seen.spec.version} is withdrawn: {why}. Nothing new may use it"
    if seen.usage is not None:
        message += f" ({describe_usage(seen.usage)})"
    return _not_ready(reason, message, stalled=True)


def _still_good(seen: VersionSnapshot, standing: Standing) -> Finding:
    """Return Ready for what was published before: that nobody can tell at the moment changes nothing, but is shown."""
    deprecated = standing.phase == "Deprecated"
    message = _why_deprecated(seen, standing) if deprecated else _published(seen, standing)
    if standing.failure is not None:
        message += f"; not verified again since {_moment(_oldest_proof(standing))}: {_explain(standing.failure)}"
    return Finding("Ready", "True", standing.phase, message)


def _not_ready(reason: str, message: str, *, stalled: bool) -> list[Finding]:
    return [
        Finding("Ready", "False", reason, message),
        Finding("Stalled" if stalled else "Reconciling", "True", reason, message),
    ]


def _published(seen: VersionSnapshot, standing: Standing) -> str:
    return f"{seen.spec.component} {seen.spec.version} is published for {', '.join(sorted(standing.artifacts))}"


def _why_deprecated(seen: VersionSnapshot, standing: Standing) -> str:
    since = f"expired at {_moment(seen.spec.expires_at)}" if standing.expired else "deprecated by its author"
    used = f" ({describe_usage(seen.usage)})" if seen.usage else ""
    return f"{since}: no new run may go to it; nodes that run it stay, and may return to it{used}"


def _why_revoked(seen: VersionSnapshot) -> str:
    used = describe_usage(seen.usage) if seen.usage else "nobody uses it"
    return f"revoked for good: no node may go to it any more; {used}"


def _under_way(step: AnyStep, seen: VersionSnapshot) -> tuple[str, str]:
    match step:
        case Store(artifact, _):
            return "Storing", f"streaming the artifact for {artifact.platform} into the registry"
        case Verify(artifact, _):
            return "Verifying", f"reading the artifact for {artifact.platform} back and verifying its signature"
        case WriteIndex() | RunTest():
            return "StartingTest", "starting the Job that tests it"
        case Publish():
            return "Publishing", "tagging the version in the registry"
        case Delete():
            return "Deleting", f"taking {seen.spec.component} {seen.spec.version} out of the registry"


# -- the conditions of the single steps


def _steps(seen: VersionSnapshot, standing: Standing) -> list[Finding]:
    total = len(seen.spec.artifacts)
    stored = sum(stored.spec_hash != MISSING for stored in standing.artifacts.values())
    return [
        *_compatible(seen),
        _of_step(
            standing, "Stored", "Store", stored, total, "ArtifactsStored", "in the registry with the expected hash"
        ),
        _of_step(
            standing,
            "Verified",
            "Verify",
            standing.verified,
            total,
            "SignaturesVerified",
            f"stored bytes read back, hash and signature verified{_by_whom(standing)}",
        ),
        *_tested(seen, standing),
    ]


_NOT_STORED = frozenset({"BlobCorrupted", "DigestMismatch", "ManifestInvalid"})
"""Refusals of a verification that say that what is stored is not what it should be."""


def _of_step(standing: Standing, condition: str, step: str, done: int, total: int, reason: str, what: str) -> Finding:
    failure = standing.failure
    spoilt = failure is not None and step == "Store" and failure.condemns and failure.reason in _NOT_STORED
    if failure is not None and (failure.step == step or spoilt):
        return Finding(condition, "False" if failure.stalled else "Unknown", failure.reason, _explain(failure))
    if done == total:
        return Finding(condition, "True", reason, f"{what}: {total} of {total} artifacts")
    return Finding(condition, "Unknown", "Pending", f"{what}: {done} of {total} artifacts")


def _compatible(seen: VersionSnapshot) -> list[Finding]:
    if seen.spec.compatibility is None or seen.status.published_at is not None:
        # Asked once: what is published stays so, whatever becomes of the versions that it requires.
        return [
            Finding("Compatible", "True", "RulesSatisfiable", "its rules could be satisfied when it was published")
        ] * (seen.spec.compatibility is not None)
    if seen.problems:
        text = "; ".join(problem.message for problem in seen.problems)
        return [Finding("Compatible", "False", seen.problems[0].reason, text)]
    return [Finding("Compatible", "True", "RulesSatisfiable", "its rules parse, and versions that satisfy them exist")]


def _tested(seen: VersionSnapshot, standing: Standing) -> list[Finding]:
    trial = standing.trial
    published = seen.status.published_at is not None
    if not published and (seen.spec.stage not in {"Testing", "Published"} or not _is_verified(seen, standing)):
        return []
    match trial.state:
        case "NotAsked":
            return [Finding("Tested", "True", "NoTestAsked", trial.message)]
        case "Passed":
            return [Finding("Tested", "True", "TestPassed", trial.message or "its test passed")]
        case "Failed":
            return [Finding("Tested", "False", "TestFailed", trial.message)]
        case "Waiting":
            return [Finding("Tested", "Unknown", "WaitingForVerdict", trial.message)]
        case "Running" | "Due":
            if standing.failure is not None and standing.failure.step == "Test":
                failure = standing.failure
                return [Finding("Tested", "False" if failure.stalled else "Unknown", failure.reason, _explain(failure))]
            return [Finding("Tested", "Unknown", "Testing", trial.message)]


def _by_whom(standing: Standing) -> str:
    """Return by which keys all artifacts are vouched for, shortened; nothing if there is no such key."""
    keys = [
        set(stored.signature.vouching) if stored.signature is not None else set()
        for stored in standing.artifacts.values()
    ]
    common = sorted(set.intersection(*keys)) if keys else []
    return f" (by {', '.join(key[:19] + '…' for key in common)})" if common else ""


def _is_verified(seen: VersionSnapshot, standing: Standing) -> bool:
    return standing.verified == len(seen.spec.artifacts)


def _explain(failure: Failure) -> str:
    if failure.stalled:
        return failure.message
    return f"{failure.message}; attempt {failure.attempts} failed, next at {failure.retry_at:%H:%M:%S} UTC"


def _oldest_proof(standing: Standing) -> datetime | None:
    return min((s.signature.verified_at for s in standing.artifacts.values() if s.signature is not None), default=None)


def _moment(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment is not None else "a moment unknown"


# -- events


def _events(
    before: ComponentVersionStatus, after: ComponentVersionStatus, seen: VersionSnapshot, standing: Standing
) -> Iterable[Event]:
    """Yield what a person should be told about the step from one status to the next."""
    old = {condition.type: condition for condition in before.conditions}
    new = {condition.type: condition for condition in after.conditions}
    if before.phase != after.phase:
        bad = after.phase in {"Withdrawn", "Revoked"} or (
            after.phase == "Draft" and new["Ready"].reason == "TestFailed"
        )
        yield Event(
            "Warning" if bad else "Normal",
            after.phase or "Draft",
            f"Phase is now {after.phase} (was {before.phase or 'new'}): {new['Ready'].message}",
        )
    for name in ("Stored", "Verified"):
        if new[name].status == "True" and not _is_true(old.get(name)):
            yield Event("Normal", new[name].reason, new[name].message)
    tested, was_tested = new.get("Tested"), old.get("Tested")
    told = was_tested is not None and tested is not None and was_tested.reason == tested.reason
    if tested is not None and tested.reason in {"TestPassed", "WaitingForVerdict"} and not told:
        yield Event("Normal", tested.reason, tested.message)
    failure = standing.failure
    if failure is not None and _is_news(failure, old):
        yield Event("Warning", failure.reason, failure.message)


def _is_news(failure: Failure, old: dict[str, Condition]) -> bool:
    """Say whether no condition has told this failure before."""
    return all(condition.reason != failure.reason for condition in old.values())


def _is_true(condition: Condition | None) -> bool:
    return condition is not None and condition.status == "True"
