"""`plan_version`: how far a ComponentVersion may go, and what has to be done for it. Pure, as the rollout's planner.

The way is Stored → Verified → Tested → Published, and a version is never Published past a step that was not passed
for its present content. Three outcomes everywhere: passed, refused (the author must act), cannot tell (a dependency is
down: tried again). Only passed advances.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from outrider.api.base import Condition
from outrider.api.componentversion import (
    Artifact,
    ComponentVersionSpec,
    ComponentVersionStatus,
    Phase,
    StoredArtifact,
)
from outrider.core.conditions import Finding, merge_conditions
from outrider.core.plan import Event

Step = Literal["Store", "Verify", "Publish"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that was tried and did not succeed.

    `stalled` says that the author (or whoever keeps the keys) must act; otherwise it is tried again at `retry_at`.
    """

    step: Step
    platform: str
    reason: str
    message: str
    stalled: bool
    attempts: int
    retry_at: datetime


@dataclass(frozen=True, slots=True)
class Running:
    """A step that is under way."""

    step: Step
    platform: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Done:
    """What steps have achieved since the status was written last."""

    artifacts: Mapping[str, StoredArtifact] = field(default_factory=dict)
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class VersionSnapshot:
    """One look at a ComponentVersion and at the work that is done for it.

    `trusted` are the fingerprints of the keys that may vouch for it now.
    """

    now: datetime
    generation: int
    spec: ComponentVersionSpec
    status: ComponentVersionStatus
    done: Done = Done()
    failure: Failure | None = None
    running: Running | None = None
    newer_published: str | None = None
    trusted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Store:
    """Stream an artifact into the registry and compare its hash."""

    artifact: Artifact


@dataclass(frozen=True, slots=True)
class Verify:
    """Read the stored bytes back and verify hash and signature."""

    artifact: Artifact
    stored: StoredArtifact


@dataclass(frozen=True, slots=True)
class Publish:
    """Write the index over all platforms and tag it with the version."""

    artifacts: tuple[StoredArtifact, ...]


@dataclass(frozen=True, slots=True)
class VersionPlan:
    """What to do next for a version (at most one step at a time), and what to say."""

    step: Store | Verify | Publish | None
    status: ComponentVersionStatus
    events: tuple[Event, ...] = ()
    wake_at: datetime | None = None


def hash_artifact(artifact: Artifact) -> str:
    """Return the hash of everything in an artifact's entry that decides what is stored."""
    canonical = json.dumps(artifact.to_api(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


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

    1. What was stored for an entry that has changed since is forgotten.
    2. The first artifact that is not stored is stored; then the first that is not verified is verified.
    3. Only when all are verified may the phase leave Draft, as far as `spec.stage` wants it.
    4. Only with stage Published is the index tagged with the version, and only then is the phase Published.
    """
    spec, status = seen.spec, seen.status
    # 1.
    known = {stored.platform: stored for stored in status.artifacts} | dict(seen.done.artifacts)
    artifacts: dict[str, StoredArtifact] = {}
    for artifact in spec.artifacts:
        stored = known.get(str(artifact.platform))
        if stored is not None and stored.spec_hash == hash_artifact(artifact):
            # Before it is published, a signature counts only while its key is trusted.
            signed = stored.signature
            if signed is not None and not status.published_at and signed.key_fingerprint not in seen.trusted:
                stored = stored.model_copy(update={"signature": None})
            artifacts[stored.platform] = stored
    reference = seen.done.reference or (status.reference if status.published_at else None)
    # 2.
    step: Store | Verify | Publish | None = None
    for artifact in spec.artifacts:
        stored = artifacts.get(str(artifact.platform))
        if stored is None:
            step = Store(artifact)
            break
        if stored.signature is None:
            step = Verify(artifact, stored)
            break
    # 3. and 4.
    verified = step is None
    published = verified and spec.stage == "Published" and reference is not None
    if verified and spec.stage == "Published" and reference is None:
        step = Publish(tuple(artifacts.values()))
    phase: Phase = "Draft"
    if verified and spec.stage == "Testing":
        phase = "Testing"
    elif published:
        phase = "Published"
    elif verified and spec.stage == "Published":
        phase = "Testing"

    wanted = step
    wake_at: datetime | None = None
    if seen.running is not None:
        step = None
    elif seen.failure is not None and step is not None and _same_step(seen.failure, step):
        wake_at = seen.failure.retry_at
        step = None if seen.now < wake_at else step
    findings = _findings(seen, artifacts, verified=verified, phase=phase, wanted=wanted)
    after = ComponentVersionStatus(
        observed_generation=seen.generation,
        phase=phase,
        published_at=status.published_at or (seen.now if phase == "Published" else None),
        latest=phase == "Published" and seen.newer_published is None,
        reference=reference if phase == "Published" else None,
        artifacts=list(artifacts.values()),
        conditions=merge_conditions(status.conditions, findings, seen.generation, seen.now),
    )
    return VersionPlan(step=step, status=after, events=tuple(_events(status, after, seen)), wake_at=wake_at)


def step_name(step: Store | Verify | Publish) -> tuple[Step, str]:
    """Return a step's name and platform ("" for all)."""
    match step:
        case Store(artifact):
            return "Store", str(artifact.platform)
        case Verify(artifact, _):
            return "Verify", str(artifact.platform)
        case Publish():
            return "Publish", ""


def _same_step(failure: Failure, step: Store | Verify | Publish) -> bool:
    return (failure.step, failure.platform) == step_name(step)


def _findings(
    seen: VersionSnapshot,
    artifacts: Mapping[str, StoredArtifact],
    *,
    verified: bool,
    phase: Phase,
    wanted: Store | Verify | Publish | None,
) -> list[Finding]:
    spec, total = seen.spec, len(seen.spec.artifacts)
    failure = seen.failure
    if failure is not None and (wanted is None or not _same_step(failure, wanted)):
        failure = None
    findings: list[Finding] = []

    def say_step(condition: str, step: Step, done: int, reason: str, what: str) -> None:
        if done == total:
            findings.append(Finding(condition, "True", reason, f"{what}: {total} of {total} artifacts"))
        elif failure is not None and failure.step == step:
            unknown = not failure.stalled
            findings.append(
                Finding(condition, "Unknown" if unknown else "False", failure.reason, _explain(failure, seen.now))
            )
        else:
            findings.append(Finding(condition, "Unknown", "Pending", f"{what}: {done} of {total} artifacts"))

    say_step("Stored", "Store", len(artifacts), "ArtifactsStored", "in the registry with the expected hash")
    say_step(
        "Verified",
        "Verify",
        sum(stored.signature is not None for stored in artifacts.values()),
        "SignaturesVerified",
        "stored bytes read back, hash and signature verified",
    )
    if verified and spec.stage != "Draft":
        findings.append(
            Finding("Tested", "True", "NoTestAsked", "the version has no test: the phase is passed through")
        )

    if wanted is None:
        reached = {"Published": "Published", "Testing": "ReadyForTesting", "Draft": "DraftVerified"}[phase]
        message = {
            "Published": f"{spec.component} {spec.version} is published for {', '.join(sorted(artifacts))}",
            "Testing": "verified; set spec.stage to Published to publish it",
            "Draft": "stored and verified; set spec.stage to Testing or Published to go on",
        }[phase]
        findings.insert(0, Finding("Ready", "True", reached, message))
    elif failure is not None:
        message = _explain(failure, seen.now)
        findings.insert(0, Finding("Ready", "False", failure.reason, message))
        findings.append(Finding("Stalled" if failure.stalled else "Reconciling", "True", failure.reason, message))
    else:
        step, platform = step_name(wanted)
        message = {
            "Store": f"streaming the artifact for {platform} into the registry",
            "Verify": f"reading the artifact for {platform} back and verifying its signature",
            "Publish": "tagging the version in the registry",
        }[step]
        reason = {"Store": "Storing", "Verify": "Verifying", "Publish": "Publishing"}[step]
        findings.insert(0, Finding("Ready", "False", reason, message))
        findings.append(Finding("Reconciling", "True", reason, message))
    return findings


def _explain(failure: Failure, now: datetime) -> str:
    if failure.stalled:
        return failure.message
    return f"{failure.message}; attempt {failure.attempts} failed, next at {failure.retry_at:%H:%M:%S} UTC"


def _events(before: ComponentVersionStatus, after: ComponentVersionStatus, seen: VersionSnapshot) -> Iterable[Event]:
    """Yield what a person should be told about the step from one status to the next."""
    old = {condition.type: condition for condition in before.conditions}
    new = {condition.type: condition for condition in after.conditions}
    if before.phase != after.phase:
        ready = new["Ready"].message
        yield Event(
            "Normal", after.phase or "Draft", f"Phase is now {after.phase} (was {before.phase or 'new'}): {ready}"
        )
    for name in ("Stored", "Verified"):
        if new[name].status == "True" and not _is_true(old.get(name)):
            yield Event("Normal", new[name].reason, new[name].message)
    now, then = new["Ready"], old.get("Ready")
    if seen.failure is not None and now.reason == seen.failure.reason and (then is None or then.reason != now.reason):
        yield Event("Warning", now.reason, seen.failure.message)


def _is_true(condition: Condition | None) -> bool:
    return condition is not None and condition.status == "True"
