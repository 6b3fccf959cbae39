"""`plan_version`: how far a ComponentVersion may go, and what has to be done for it. Pure, as the rollout's planner.

The way is Stored → Verified → Tested → Published, and from there Deprecated, Withdrawn or Revoked. Three outcomes
everywhere: passed, refused (a person must act), cannot tell (a dependency is down: tried again). Only passed advances,
and only refused takes away.

Invariants:
- Nothing leaves Draft past a step that was not passed for its present content by a key that is trusted now.
- What was published stays published until its verification is refused. That nobody can tell changes nothing.
- What is Withdrawn comes back by passing its verification, and by nothing else. What is Revoked never comes back.
- A test runs once for a content.
- Nothing that somebody needs is deleted.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from outrider.api.componentversion import Artifact, ComponentVersionStatus, Phase, StoredArtifact, StoredSignature
from outrider.core.plan import Event
from outrider.core.version_snapshot import (
    MISSING,
    AnyStep,
    Delete,
    Deletion,
    Failure,
    Publish,
    RunTest,
    Standing,
    Step,
    Store,
    Trial,
    Verify,
    VersionSnapshot,
    WriteIndex,
)
from outrider.core.version_status import conclude_deletion, conclude_version
from outrider.core.versiontest import content_of_test, judge_test

GIVE_UP_SECONDS = 600
"""So long a deleted version waits for a registry that does not delete; then it goes, and what is left is told."""


@dataclass(frozen=True, slots=True)
class VersionPlan:
    """What to do next for a version (at most one step at a time), and what to say.

    `finalizer` says whether the object must have ours: keep it before anything is stored, drop it when nothing is.
    `test` is the content whose Job may exist; Jobs for any other are stopped.
    """

    step: AnyStep | None
    status: ComponentVersionStatus
    events: tuple[Event, ...] = ()
    wake_at: datetime | None = None
    finalizer: Literal["Keep", "Drop", ""] = ""
    test: str = ""


def hash_artifact(artifact: Artifact) -> str:
    """Return the hash of everything in an artifact's entry that decides what is stored."""
    canonical = json.dumps(artifact.to_api(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def version_order(version: str) -> tuple[object, ...]:
    """Return a sort key by SemVer precedence (semver.org, section 11); the pattern of the API is assumed."""
    core, _, pre = version.partition("-")
    numbers = tuple(int(part) for part in core.split("."))
    if not pre:
        return (*numbers, 1)
    identifiers = tuple(
        (0, int(part), "") if re.fullmatch(r"[0-9]+", part) else (1, 0, part) for part in pre.split(".")
    )
    return (*numbers, 0, identifiers)


def newest(versions: Iterable[str]) -> str | None:
    """Return the highest of some versions; pre-releases only when there is nothing else."""
    known = list(versions)
    releases = [version for version in known if "-" not in version]
    return max(releases or known, key=version_order, default=None)


def plan_version(seen: VersionSnapshot) -> VersionPlan:
    """Return the next step for a version, and the status that tells how far it is.

    1. One that is being deleted is only cleaned up.
    2. What was stored for an entry that has changed since is forgotten, and so is a signature that does not count.
    3. The first artifact that is not stored is stored, the first that is not verified is verified.
    4. Only when all are verified, and its rules can be satisfied, may a version leave Draft, as far as its stage wants.
    5. Only when its test has passed is it tagged, and only when it is tagged is it Published.
    6. What was published is verified again when it is time, and Withdrawn when that is refused.
    """
    # 1.
    if seen.deletion is not None:
        return plan_deletion(seen, seen.deletion)
    status = seen.status
    published = status.published_at is not None
    # 2.
    artifacts = _what_counts(seen)
    # 3. and 6.
    pending = _pending(seen, artifacts)
    step = _choose(seen, pending)
    # 4.
    expired = seen.spec.expires_at is not None and seen.spec.expires_at <= seen.now
    content = content_of_test(seen.spec, [hash_artifact(artifact) for artifact in seen.spec.artifacts], seen.retest)
    trial = judge_test(seen, content)
    reference = seen.done.reference or (status.reference if published else None)
    phase: Phase = "Draft"
    if seen.spec.stage == "Revoked":
        phase, step = "Revoked", None
    elif published:
        phase = _phase_of_published(seen, artifacts, expired=expired)
    elif step is None and not seen.problems and not expired and seen.spec.stage in {"Testing", "Published"}:
        phase, step = _advance(seen, artifacts, trial, reference)

    if step is not None and step not in pending:
        pending = [step]
    failure = seen.failure if any(_same_step(seen.failure, each) for each in pending) else None
    if step is None:
        failure = None
    standing = Standing(artifacts, step, phase, trial, failure, expired, reference)
    after = ComponentVersionStatus(
        observed_generation=seen.generation,
        phase=phase,
        published_at=status.published_at or (seen.now if phase == "Published" else None),
        latest=phase == "Published" and seen.newer_published is None,
        reference=reference if published or phase == "Published" else None,
        artifacts=list(artifacts.values()),
        test=trial.record,
        usage=seen.usage,
    )
    after, events = conclude_version(seen, standing, after)
    return VersionPlan(
        step=_due(seen, step, failure),
        status=after,
        events=events,
        wake_at=_when_again(seen, artifacts, failure),
        finalizer="" if seen.has_finalizer else "Keep",
        test=content if trial.may_run else "",
    )


def plan_deletion(seen: VersionSnapshot, deletion: Deletion) -> VersionPlan:
    """Return how a deleted version goes: not while somebody needs it, and not before the registry is clean.

    It never waits for ever: a registry that does not delete is told about, and the version goes. When its whole
    namespace goes, nobody is asked.
    """
    status = seen.status
    used = seen.usage is not None and not deletion.with_namespace
    patience = timedelta(seconds=0 if deletion.with_namespace else GIVE_UP_SECONDS)
    failure = seen.failure if seen.failure is not None and seen.failure.step == "Delete" else None
    gives_up = failure is not None and (failure.stalled or seen.now >= deletion.since + patience)
    gone = seen.done.deleted or not status.artifacts or gives_up
    step = None if used or gone else Delete(tuple(status.artifacts), status.reference)
    after, events = conclude_deletion(seen, status.model_copy(update={"usage": seen.usage}), failure, gives_up=gives_up)
    return VersionPlan(
        step=_due(seen, step, failure),
        status=after,
        events=events,
        wake_at=failure.retry_at if failure is not None and step is not None else None,
        finalizer="Drop" if gone and not used and seen.has_finalizer else "",
    )


def step_name(step: AnyStep) -> tuple[Step, str]:
    """Return a step's name and platform ("" for all)."""
    match step:
        case Store(artifact, _):
            return "Store", str(artifact.platform)
        case Verify(artifact, _):
            return "Verify", str(artifact.platform)
        case WriteIndex():
            return "Index", ""
        case RunTest():
            return "Test", ""
        case Publish():
            return "Publish", ""
        case Delete():
            return "Delete", ""


def _what_counts(seen: VersionSnapshot) -> dict[str, StoredArtifact]:
    """Return what is stored for the present entries, each with its signature only as far as that counts."""
    published = seen.status.published_at is not None
    known = {stored.platform: stored for stored in seen.status.artifacts} | dict(seen.done.artifacts)
    counting: dict[str, StoredArtifact] = {}
    for artifact in seen.spec.artifacts:
        stored = known.get(str(artifact.platform))
        if stored is None:
            continue
        # Whatever the hash of its entry says, what is stored is the file that the entry names.
        if stored.digest != f"sha256:{artifact.sha256}":
            continue
        if published:
            # Its content cannot change; a new signature for it changes the entry, and takes nothing away.
            failure = seen.failure
            if failure is not None and failure.condemns and failure.platform == stored.platform:
                stored = stored.model_copy(update={"signature": None})
        else:
            if stored.spec_hash != hash_artifact(artifact):
                continue
            if stored.signature is not None and not _counts_now(stored.signature, seen):
                stored = stored.model_copy(update={"signature": None})
        counting[stored.platform] = stored
    return counting


def _counts_now(signature: StoredSignature, seen: VersionSnapshot) -> bool:
    """Say whether a signature that was verified before would still do for a first publication."""
    return signature.key_fingerprint in seen.trusted_now and (signature.binds or not seen.require_binding)


def _pending(seen: VersionSnapshot, artifacts: Mapping[str, StoredArtifact]) -> list[AnyStep]:
    """Return what has to be stored or verified, what comes first first.

    Before publication: one step at a time, artifact by artifact. After it:

    1. Those whose key is trusted no more come first: to judge them takes no more than what is stored here.
    2. Then those that were not verified for so long, or have to be because somebody asks.
    3. Last what an author can keep from ever succeeding: what has to be stored, and what is refused already.
    """
    if seen.status.published_at is None:
        for artifact in seen.spec.artifacts:
            stored = artifacts.get(str(artifact.platform))
            if stored is None or stored.spec_hash != hash_artifact(artifact):
                return [Store(artifact)]
            if stored.signature is None:
                return [Verify(artifact, stored)]
        return []
    untrusted: list[AnyStep] = []
    aged: list[AnyStep] = []
    others: list[AnyStep] = []
    for artifact in seen.spec.artifacts:
        stored = artifacts.get(str(artifact.platform))
        signature = stored.signature if stored is not None and stored.spec_hash != MISSING else None
        if stored is None or stored.spec_hash != hash_artifact(artifact):
            others.append(Store(artifact, stored))
        elif signature is None:
            others.append(Verify(artifact, stored, first=False))
        if stored is None or signature is None:
            continue
        if signature.key_fingerprint not in seen.trusted:
            untrusted.append(Verify(artifact, stored, thorough=False, first=False))
        elif signature.verified_at + seen.verification_lasts <= seen.now or (
            seen.verify_after is not None and signature.verified_at < seen.verify_after
        ):
            aged.append(Verify(artifact, stored, first=False))
    return [*untrusted, *aged, *others]


def _choose(seen: VersionSnapshot, pending: Sequence[AnyStep]) -> AnyStep | None:
    """Return the first step; what failed a moment ago waits for its time, and the others do not wait for it."""
    ready = [step for step in pending if not (_same_step(seen.failure, step) and _waits(seen))]
    return next(iter([*ready, *pending]), None)


def _waits(seen: VersionSnapshot) -> bool:
    return seen.failure is not None and seen.now < seen.failure.retry_at


def _phase_of_published(seen: VersionSnapshot, artifacts: Mapping[str, StoredArtifact], *, expired: bool) -> Phase:
    complete = len(artifacts) == len(seen.spec.artifacts)
    if not complete or any(stored.signature is None for stored in artifacts.values()):
        return "Withdrawn"
    if expired or seen.spec.stage == "Deprecated":
        return "Deprecated"
    return "Published"


def _advance(
    seen: VersionSnapshot, artifacts: Mapping[str, StoredArtifact], trial: Trial, reference: str | None
) -> tuple[Phase, AnyStep | None]:
    """Return how far a verified version has come by its test, and what is to do next."""
    entries = tuple(artifacts.values())
    match trial.state:
        case "Failed":
            return "Draft", None
        case "Waiting" | "Running":
            return "Testing", None
        case "Due":
            if seen.done.index is None:
                return "Testing", WriteIndex(entries)
            return "Testing", RunTest(trial.content, entries, seen.done.index)
        case "NotAsked" | "Passed":
            if seen.spec.stage == "Testing":
                return "Testing", None
            return ("Published", None) if reference is not None else ("Testing", Publish(entries))


def _due(seen: VersionSnapshot, step: AnyStep | None, failure: Failure | None) -> AnyStep | None:
    """Return the step if it may be taken now: not while another is under way, not before a failed one's time."""
    if step is None or seen.running is not None or (_same_step(failure, step) and _waits(seen)):
        return None
    return step


def _when_again(
    seen: VersionSnapshot, artifacts: Mapping[str, StoredArtifact], failure: Failure | None
) -> datetime | None:
    moments: list[datetime] = []
    if failure is not None and seen.running is None:
        moments.append(failure.retry_at)
    if seen.spec.expires_at is not None and seen.spec.expires_at > seen.now:
        moments.append(seen.spec.expires_at)
    if seen.status.published_at is not None and seen.spec.stage != "Revoked" and failure is None:
        moments += [
            stored.signature.verified_at + seen.verification_lasts
            for stored in artifacts.values()
            if stored.signature is not None
        ]
    return min(moments, default=None)


def _same_step(failure: Failure | None, step: AnyStep) -> bool:
    return failure is not None and (failure.step, failure.platform) == step_name(step)
