"""How far a version may go: each situation as a row, and the law that nothing unverified is ever Published."""

import itertools
import random
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.api.componentversion import (
    SEMVER_PATTERN,
    Artifact,
    ComponentVersionSpec,
    ComponentVersionStatus,
    Signature,
    Stage,
    StoredArtifact,
    StoredSignature,
    Usage,
)
from outrider.core.testjob import job_name
from outrider.core.version import VersionPlan, hash_artifact, newest, plan_version, step_name, version_order
from outrider.core.version_snapshot import (
    CONDEMNING,
    MISSING,
    AnyStep,
    Deletion,
    Done,
    Failure,
    JobFacts,
    Problem,
    Publish,
    Running,
    RunTest,
    Step,
    Store,
    Verify,
    VersionSnapshot,
    WriteIndex,
)
from outrider.core.versiontest import content_of_test

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
KEY = "sha256:the-release-key"
INDEX = "registry.test/outrider/fleet/agent@sha256:index"


def make_artifact(arch: str = "amd64", content: str = "a") -> Artifact:
    return Artifact.model_validate(
        {
            "platform": {"os": "linux", "arch": arch},
            "fileName": "agent",
            "sha256": (content * 64)[:64],
            "source": {"http": {"url": "https://files.test/agent"}},
            "signature": {"inline": "c2lnbmF0dXJl"},
        }
    )


def make_spec(stage: Stage = "Published", *artifacts: Artifact) -> ComponentVersionSpec:
    return ComponentVersionSpec(
        component="agent",
        version="1.4.0",
        stage=stage,
        artifacts=list(artifacts) or [make_artifact("amd64"), make_artifact("arm64")],
    )


def stored(artifact: Artifact, *, key: str | None = None) -> StoredArtifact:
    return StoredArtifact(
        platform=str(artifact.platform),
        digest=f"sha256:{artifact.sha256}",
        size=4711,
        reference=f"registry.test/outrider/fleet/agent@sha256:{artifact.sha256}",
        download_url="https://registry.test/blob",
        spec_hash=hash_artifact(artifact),
        signature=StoredSignature(key_fingerprint=key, format="Detached", verified_at=NOW) if key else None,
    )


def verified(artifact: Artifact) -> StoredArtifact:
    return stored(artifact, key=KEY)


def make_failure(step: Step, platform: str = "linux/amd64", *, stalled: bool = False, **changes: Any) -> Failure:
    failure = Failure(step, platform, "Broken", "it broke; mend it", stalled, 3, NOW + timedelta(seconds=4))
    return replace(failure, **changes)


def look(stage: Stage, *found: StoredArtifact, reference: str | None = None, **changes: Any) -> VersionSnapshot:
    snapshot = VersionSnapshot(
        now=NOW,
        generation=3,
        spec=make_spec(stage),
        status=ComponentVersionStatus(),
        done=Done({entry.platform: entry for entry in found}, reference),
        trusted=frozenset({KEY}),
        trusted_now=frozenset({KEY}),
    )
    return replace(snapshot, **changes)


AMD, ARM = make_artifact("amd64"), make_artifact("arm64")
BOTH = (verified(AMD), verified(ARM))
RETRYING = make_failure("Verify")
REFUSED = make_failure("Verify", stalled=True)


def said(plan: VersionPlan) -> dict[str, str]:
    """What the conditions say: type → status and reason."""
    return {found.type: f"{found.status} {found.reason}" for found in plan.status.conditions}


@pytest.mark.parametrize(
    ("snapshot", "step", "phase", "conditions"),
    [
        pytest.param(
            look("Published"),
            ("Store", "linux/amd64"),
            "Draft",
            {"Ready": "False Storing", "Reconciling": "True Storing", "Stored": "Unknown Pending"},
            id="a new version stores its first artifact",
        ),
        pytest.param(
            look("Published", verified(AMD)),
            ("Store", "linux/arm64"),
            "Draft",
            {"Ready": "False Storing", "Stored": "Unknown Pending", "Verified": "Unknown Pending"},
            id="then the next one",
        ),
        pytest.param(
            look("Published", stored(AMD), verified(ARM)),
            ("Verify", "linux/amd64"),
            "Draft",
            {"Ready": "False Verifying", "Stored": "True ArtifactsStored", "Verified": "Unknown Pending"},
            id="what is stored is read back and verified",
        ),
        pytest.param(
            look("Published", stored(AMD)),
            ("Verify", "linux/amd64"),
            "Draft",
            {"Ready": "False Verifying"},
            id="an artifact is verified before the next one is stored",
        ),
        pytest.param(
            look("Published", *BOTH),
            ("Publish", ""),
            "Testing",
            {"Ready": "False Publishing", "Verified": "True SignaturesVerified", "Tested": "True NoTestAsked"},
            id="only when all are verified is the version tagged",
        ),
        pytest.param(
            look("Published", *BOTH, reference=INDEX),
            None,
            "Published",
            {
                "Ready": "True Published",
                "Stored": "True ArtifactsStored",
                "Verified": "True SignaturesVerified",
                "Tested": "True NoTestAsked",
            },
            id="only when it is tagged is it Published",
        ),
        pytest.param(
            look("Published", stored(AMD), verified(ARM), reference=INDEX),
            ("Verify", "linux/amd64"),
            "Draft",
            {"Ready": "False Verifying"},
            id="a tag alone publishes nothing",
        ),
        pytest.param(
            look("Published", stored(AMD, key="sha256:removed"), verified(ARM), reference=INDEX),
            ("Verify", "linux/amd64"),
            "Draft",
            {"Ready": "False Verifying", "Verified": "Unknown Pending"},
            id="a signature by a key that is trusted no more does not count",
        ),
        pytest.param(
            look("Published", verified(make_artifact("amd64", "b")), verified(ARM), reference=INDEX),
            ("Store", "linux/amd64"),
            "Draft",
            {"Ready": "False Storing"},
            id="what was verified for another content does not count",
        ),
        # as far as the author wants
        pytest.param(
            look("Testing", *BOTH),
            None,
            "Testing",
            {"Ready": "True ReadyForTesting", "Tested": "True NoTestAsked"},
            id="stage Testing stops at Testing",
        ),
        pytest.param(
            look("Testing", *BOTH, reference=INDEX),
            None,
            "Testing",
            {"Ready": "True ReadyForTesting"},
            id="stage Testing stops there even if the tag is in place",
        ),
        pytest.param(
            look("Draft", *BOTH), None, "Draft", {"Ready": "True DraftVerified"}, id="stage Draft stays Draft"
        ),
        pytest.param(
            look("Draft"), ("Store", "linux/amd64"), "Draft", {"Ready": "False Storing"}, id="a Draft is stored as well"
        ),
        # under way
        pytest.param(
            look("Published", stored(AMD), running=Running("Verify", "linux/amd64", NOW)),
            None,
            "Draft",
            {"Ready": "False Verifying", "Reconciling": "True Verifying"},
            id="while a step runs there is no other",
        ),
        # failures
        pytest.param(
            look("Published", stored(AMD), failure=RETRYING),
            None,
            "Draft",
            {"Ready": "False Broken", "Reconciling": "True Broken", "Verified": "Unknown Broken"},
            id="cannot tell: unknown, and it waits for its time",
        ),
        pytest.param(
            look("Published", stored(AMD), failure=RETRYING, now=RETRYING.retry_at),
            ("Verify", "linux/amd64"),
            "Draft",
            {"Ready": "False Broken"},
            id="cannot tell: tried again when its time has come",
        ),
        pytest.param(
            look("Published", stored(AMD), verified(ARM), failure=REFUSED),
            None,
            "Draft",
            {
                "Ready": "False Broken",
                "Stalled": "True Broken",
                "Verified": "False Broken",
                "Stored": "True ArtifactsStored",
            },
            id="refused: the author must act",
        ),
        pytest.param(
            look("Published", failure=make_failure("Store", stalled=True)),
            None,
            "Draft",
            {
                "Ready": "False Broken",
                "Stalled": "True Broken",
                "Stored": "False Broken",
                "Verified": "Unknown Pending",
            },
            id="a refused source says so under Stored",
        ),
        pytest.param(
            look("Published", stored(AMD), failure=make_failure("Store")),
            ("Verify", "linux/amd64"),
            "Draft",
            {"Ready": "False Verifying", "Reconciling": "True Verifying"},
            id="a failure of another step holds nothing",
        ),
        pytest.param(
            look("Published", stored(AMD), failure=make_failure("Verify", "linux/arm64")),
            ("Verify", "linux/amd64"),
            "Draft",
            {"Ready": "False Verifying"},
            id="a failure of another platform holds nothing",
        ),
        pytest.param(
            look("Published", *BOTH, failure=make_failure("Publish", "")),
            None,
            "Testing",
            {"Ready": "False Broken", "Reconciling": "True Broken", "Verified": "True SignaturesVerified"},
            id="a registry that does not take the tag leaves it at Testing",
        ),
        pytest.param(
            look("Published", *BOTH, reference=INDEX, failure=make_failure("Publish", "")),
            None,
            "Published",
            {"Ready": "True Published"},
            id="what failed before it succeeded is forgotten",
        ),
    ],
)
def test_plan(snapshot: VersionSnapshot, step: tuple[str, str] | None, phase: str, conditions: dict[str, str]) -> None:
    plan = plan_version(snapshot)
    assert (step_name(plan.step) if plan.step else None) == step
    assert plan.status.phase == phase
    assert said(plan) | conditions == said(plan)
    assert plan_version(snapshot) == plan
    assert_clean(plan, snapshot)


def assert_clean(plan: VersionPlan, snapshot: VersionSnapshot) -> None:
    """Conditions as kstatus reads them, and as metav1.Condition wants them."""
    found = {condition.type: condition for condition in plan.status.conditions}
    assert len(found) == len(plan.status.conditions)
    assert {"Ready", "Stored", "Verified"} <= found.keys()
    assert not {"Reconciling", "Stalled"} <= found.keys()
    assert all(found[kind].status == "True" for kind in ("Reconciling", "Stalled") if kind in found)
    assert (found["Ready"].status == "True") == (not {"Reconciling", "Stalled"} & found.keys())
    assert plan.status.observed_generation == snapshot.generation
    for condition in found.values():
        assert condition.observed_generation == snapshot.generation
        assert type(condition).model_validate(condition.to_api()) is not None
        assert condition.message


def test_a_failure_says_how_often_it_was_tried_and_when_it_is_tried_again() -> None:
    plan = plan_version(look("Published", failure=make_failure("Store")))
    assert plan.wake_at == NOW + timedelta(seconds=4)
    (ready,) = (condition for condition in plan.status.conditions if condition.type == "Ready")
    assert ready.message == "it broke; mend it; attempt 3 failed, next at 12:00:04 UTC"


def test_a_refusal_says_what_to_do_and_no_time() -> None:
    plan = plan_version(look("Published", failure=make_failure("Store", stalled=True)))
    (ready,) = (condition for condition in plan.status.conditions if condition.type == "Ready")
    assert ready.message == "it broke; mend it"


PUBLISHED = plan_version(look("Published", *BOTH, reference=INDEX)).status
HOUR = timedelta(hours=1)


def later(stage: Stage = "Published", **changes: Any) -> VersionSnapshot:
    """An hour after publication."""
    return look(stage, **{"status": PUBLISHED, "now": NOW + HOUR, **changes})


def test_what_is_published_keeps_its_first_date_and_its_reference_after_a_restart() -> None:
    assert (PUBLISHED.published_at, PUBLISHED.reference) == (NOW, INDEX)
    plan = plan_version(later())
    assert plan.step is None
    assert plan.status == PUBLISHED, "nothing is written again"


# -- after publication

RESIGNED = make_artifact("amd64").model_copy(
    update={"signature": Artifact.model_validate(AMD.to_api() | {"signature": {"inline": "b3RoZXJfa2V5"}}).signature}
)
NOT_FOUND_OUT = make_failure("Verify", reason="RegistryUnavailable", retry_at=NOW + 2 * HOUR)
REFUSED_LATER = make_failure("Verify", stalled=True, reason="SignatureUntrusted", retry_at=NOW + 2 * HOUR)
WITHDRAWN = plan_version(later(trusted=frozenset(), failure=REFUSED_LATER)).status
DAY = timedelta(days=1)
ARM_BY_ANOTHER_KEY = Verify(ARM, verified(ARM), thorough=False, first=False)
"""What is tried while the other platform waits: one that gets no answer holds up no other."""


@pytest.mark.parametrize(
    ("snapshot", "step", "phase", "conditions"),
    [
        pytest.param(
            later(now=NOW + DAY),
            Verify(AMD, verified(AMD), thorough=True, first=False),
            "Published",
            {"Ready": "True Published", "Verified": "True SignaturesVerified"},
            id="once a day the bytes are read back again, and it stays Published meanwhile",
        ),
        pytest.param(
            later(verify_after=NOW + timedelta(seconds=1)),
            Verify(AMD, verified(AMD), thorough=True, first=False),
            "Published",
            {"Ready": "True Published"},
            id="somebody who is about to rely on it has it read back at once",
        ),
        pytest.param(
            later(trusted=frozenset({"sha256:another"})),
            Verify(AMD, verified(AMD), thorough=False, first=False),
            "Published",
            {"Ready": "True Published"},
            id="when its key is removed another is looked for, without reading the bytes",
        ),
        pytest.param(
            later(trusted_now=frozenset()),
            None,
            "Published",
            {"Ready": "True Published"},
            id="a key's validity bounds the first publication only",
        ),
        pytest.param(
            later(trusted=frozenset(), failure=NOT_FOUND_OUT),
            ARM_BY_ANOTHER_KEY,
            "Published",
            {"Ready": "True Published", "Verified": "Unknown RegistryUnavailable"},
            id="that nobody can tell changes nothing, and is shown",
        ),
        pytest.param(
            later(trusted=frozenset(), failure=replace(REFUSED_LATER, reason="RegistryDenied")),
            ARM_BY_ANOTHER_KEY,
            "Published",
            {"Ready": "True Published", "Verified": "False RegistryDenied"},
            id="a registry that does not let us in condemns nothing",
        ),
        pytest.param(
            later(trusted=frozenset(), failure=REFUSED_LATER),
            ARM_BY_ANOTHER_KEY,
            "Withdrawn",
            {"Ready": "False SignatureUntrusted", "Stalled": "True SignatureUntrusted"},
            id="when it is refused it is Withdrawn",
        ),
        pytest.param(
            later(status=WITHDRAWN),
            Verify(AMD, stored(AMD), first=False),
            "Withdrawn",
            {"Ready": "False SignatureUntrusted", "Stalled": "True SignatureUntrusted"},
            id="after a restart it is still Withdrawn, says why, and is tried again",
        ),
        pytest.param(
            later(status=WITHDRAWN, done=Done({"linux/amd64": verified(AMD)})),
            None,
            "Published",
            {"Ready": "True Published"},
            id="it comes back when its verification passes",
        ),
        pytest.param(
            later(done=Done({"linux/amd64": stored(AMD).model_copy(update={"spec_hash": MISSING})})),
            Store(AMD, stored(AMD).model_copy(update={"spec_hash": MISSING})),
            "Withdrawn",
            {"Ready": "False ArtifactMissing", "Stored": "Unknown Pending"},
            id="what somebody deleted from the registry is stored again",
        ),
        pytest.param(
            later(spec=make_spec("Published", RESIGNED, ARM)),
            Store(RESIGNED, verified(AMD)),
            "Published",
            {"Ready": "True Published"},
            id="a new signature is laid beside the file, and takes nothing away meanwhile",
        ),
        pytest.param(
            later("Deprecated"),
            None,
            "Deprecated",
            {"Ready": "True Deprecated", "Deprecated": "True DeprecatedByAuthor"},
            id="its author deprecates it",
        ),
        pytest.param(
            later(spec=make_spec("Published").model_copy(update={"expires_at": NOW + HOUR})),
            None,
            "Deprecated",
            {"Ready": "True Deprecated", "Deprecated": "True Expired"},
            id="it expires",
        ),
        pytest.param(
            later("Deprecated", trusted=frozenset(), failure=REFUSED_LATER),
            ARM_BY_ANOTHER_KEY,
            "Withdrawn",
            {"Ready": "False SignatureUntrusted"},
            id="what is deprecated is withdrawn as well when it is refused",
        ),
        pytest.param(
            later("Revoked", now=NOW + DAY),
            None,
            "Revoked",
            {"Ready": "True Revoked"},
            id="it is revoked: nothing more",
        ),
        pytest.param(
            later("Revoked", status=WITHDRAWN), None, "Revoked", {"Ready": "True Revoked"}, id="also when withdrawn"
        ),
    ],
)
def test_after_publication(
    snapshot: VersionSnapshot, step: AnyStep | None, phase: str, conditions: dict[str, str]
) -> None:
    plan = plan_version(snapshot)
    assert plan.step == step
    assert plan.status.phase == phase
    assert said(plan) | conditions == said(plan)
    assert plan.status.published_at == NOW
    assert plan.status.reference == INDEX
    assert_clean(plan, snapshot)


def test_that_nobody_can_tell_says_since_when() -> None:
    plan = plan_version(later(trusted=frozenset(), failure=NOT_FOUND_OUT))
    (ready,) = (condition for condition in plan.status.conditions if condition.type == "Ready")
    assert "not verified again since 2026-01-01 12:00 UTC: it broke; mend it; attempt 3 failed" in ready.message


def test_being_withdrawn_and_coming_back_is_told() -> None:
    gone = plan_version(later(trusted=frozenset(), failure=REFUSED_LATER))
    assert [(event.type, event.reason) for event in gone.events] == [
        ("Warning", "Withdrawn"),
        ("Warning", "SignatureUntrusted"),
    ]
    back = plan_version(later(status=gone.status, done=Done({"linux/amd64": verified(AMD)})))
    assert ("Normal", "Published") in [(event.type, event.reason) for event in back.events]


def test_it_is_looked_at_again_when_it_expires_and_when_it_is_to_be_verified() -> None:
    assert plan_version(later()).wake_at == NOW + DAY
    expires = make_spec("Published").model_copy(update={"expires_at": NOW + 2 * HOUR})
    assert plan_version(later(spec=expires)).wake_at == NOW + 2 * HOUR


SIGNED_AGAIN = AMD.model_copy(update={"signature": Signature(inline="c2lnbmVkIGFnYWlu")})
NOT_STORED = make_failure("Store", stalled=True, retry_at=NOW + 2 * HOUR)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, None),
        ({"trusted": frozenset[str]()}, ("Verify", "linux/amd64")),
        ({"now": NOW + DAY}, ("Verify", "linux/amd64")),
        ({"verify_after": NOW + HOUR}, ("Verify", "linux/amd64")),
        # Nobody can tell of one platform at the moment, or it was refused: then it is the other's turn.
        (
            {"trusted": frozenset[str](), "failure": make_failure("Verify", retry_at=NOW + 2 * HOUR)},
            ("Verify", "linux/arm64"),
        ),
        ({"trusted": frozenset[str](), "failure": REFUSED_LATER}, ("Verify", "linux/arm64")),
    ],
)
def test_a_new_signature_that_cannot_be_had_keeps_nothing_from_being_verified_again(
    changes: dict[str, Any], step: tuple[str, str] | None
) -> None:
    snapshot = later(**{"spec": make_spec("Published", SIGNED_AGAIN, ARM), "failure": NOT_STORED, **changes})
    plan = plan_version(snapshot)
    assert (step_name(plan.step) if plan.step is not None else None) == step


def test_what_is_withdrawn_and_cannot_be_signed_again_is_not_tried_without_end() -> None:
    spec = make_spec("Published", SIGNED_AGAIN)
    withdrawn = plan_version(later(spec=spec, trusted=frozenset(), failure=REFUSED_LATER)).status
    assert withdrawn.phase == "Withdrawn"
    plan = plan_version(later(spec=spec, status=withdrawn, done=Done(), trusted=frozenset(), failure=NOT_STORED))
    assert (plan.status.phase, plan.step) == ("Withdrawn", None)


def test_what_was_verified_before_binding_was_required_is_verified_again_before_it_is_published() -> None:
    def seen(*, binds: bool) -> VersionSnapshot:
        signed = [
            entry.model_copy(update={"signature": entry.signature.model_copy(update={"binds": binds})})
            for entry in BOTH
            if entry.signature is not None
        ]
        return look("Published", *signed, reference=INDEX, require_binding=True)

    plan = plan_version(seen(binds=False))
    assert isinstance(plan.step, Verify)
    assert plan.status.phase == "Draft"
    assert plan_version(seen(binds=True)).status.phase == "Published"


def test_an_entry_with_the_same_hash_and_another_file_is_another_entry() -> None:
    other = verified(AMD).model_copy(update={"digest": f"sha256:{'b' * 64}"})
    plan = plan_version(look("Published", other, verified(ARM), reference=INDEX))
    assert isinstance(plan.step, Store)
    assert plan.status.phase == "Draft"


# -- what holds it at Draft although it is verified


def held(stage: Stage = "Published", *, testing: dict[str, Any] | None = None, **changes: Any) -> VersionSnapshot:
    """Both artifacts are verified; with a test, if one is given."""
    fields = make_spec(stage).to_api() | ({"testing": testing} if testing else {})
    return look(stage, *BOTH, **{"spec": ComponentVersionSpec.model_validate(fields), **changes})


JOB = {"job": {"template": {"spec": {"template": {"spec": {"containers": [{"name": "t", "image": "t"}]}}}}}}
MANUAL = {"manual": {"instructions": "look at the dashboard"}}


def content_under_test(snapshot: VersionSnapshot) -> str:
    """The hash that a verdict or a Job has to name."""
    return content_of_test(
        snapshot.spec, [hash_artifact(artifact) for artifact in snapshot.spec.artifacts], snapshot.retest
    )


CONTENT = content_under_test(held(testing=JOB))
TO_JUDGE = content_under_test(held(testing=MANUAL))


def job(state: Literal["Running", "Passed", "Failed"], content: str = CONTENT) -> JobFacts:
    return JobFacts("test-agent-1-4-0", content, state, NOW, f"the Job says {state}")


@pytest.mark.parametrize(
    ("snapshot", "step", "phase", "conditions"),
    [
        pytest.param(
            held(problems=(Problem("RangeInvalid", "spec.compatibility.kernelVersion: no range"),)),
            None,
            "Draft",
            {"Ready": "False RangeInvalid", "Stalled": "True RangeInvalid", "Verified": "True SignaturesVerified"},
            id="rules that nothing can satisfy hold it at Draft",
        ),
        pytest.param(
            held(spec=make_spec("Published").model_copy(update={"expires_at": NOW})),
            None,
            "Draft",
            {"Ready": "False Expired", "Stalled": "True Expired"},
            id="what has expired is not published any more",
        ),
        pytest.param(
            held("Deprecated"), None, "Draft", {"Ready": "True DraftVerified"}, id="a draft cannot be deprecated"
        ),
        pytest.param(held("Revoked"), None, "Revoked", {"Ready": "True Revoked"}, id="but revoked it can be"),
        # by a Job
        pytest.param(
            held(testing=JOB),
            WriteIndex(BOTH),
            "Testing",
            {"Ready": "False StartingTest", "Tested": "Unknown Testing"},
            id="a test pulls by an index",
        ),
        pytest.param(
            held(testing=JOB, done=Done({e.platform: e for e in BOTH}, index=INDEX)),
            RunTest(CONTENT, BOTH, INDEX),
            "Testing",
            {"Ready": "False StartingTest", "Reconciling": "True StartingTest"},
            id="then its Job is created",
        ),
        pytest.param(
            held(testing=JOB, job=job("Running")),
            None,
            "Testing",
            {"Ready": "False Testing", "Reconciling": "True Testing", "Tested": "Unknown Testing"},
            id="while the Job runs nothing else happens",
        ),
        pytest.param(
            held(testing=JOB, job=job("Passed")),
            Publish(BOTH),
            "Testing",
            {"Ready": "False Publishing", "Tested": "True TestPassed"},
            id="when it has passed the version is tagged",
        ),
        pytest.param(
            held("Testing", testing=JOB, job=job("Passed")),
            None,
            "Testing",
            {"Ready": "True ReadyForTesting", "Tested": "True TestPassed"},
            id="stage Testing stops there",
        ),
        pytest.param(
            held(testing=JOB, job=job("Failed")),
            None,
            "Draft",
            {"Ready": "False TestFailed", "Stalled": "True TestFailed", "Tested": "False TestFailed"},
            id="when it has failed the version is a Draft again",
        ),
        pytest.param(
            held(testing=JOB, job=job("Passed", "of another content")),
            WriteIndex(BOTH),
            "Testing",
            {"Ready": "False StartingTest"},
            id="a Job that tested something else counts for nothing",
        ),
        pytest.param(
            held("Draft", testing=JOB), None, "Draft", {"Ready": "True DraftVerified"}, id="a draft is not tested"
        ),
        # by a person
        pytest.param(
            held(testing=MANUAL),
            None,
            "Testing",
            {"Ready": "False WaitingForVerdict", "Tested": "Unknown WaitingForVerdict"},
            id="it waits for a person",
        ),
        pytest.param(
            held(testing=MANUAL, verdict=f"pass:{TO_JUDGE}"),
            Publish(BOTH),
            "Testing",
            {"Tested": "True TestPassed"},
            id="a person says pass",
        ),
        pytest.param(
            held(testing=MANUAL, verdict=f"fail:{TO_JUDGE}"),
            None,
            "Draft",
            {"Ready": "False TestFailed", "Tested": "False TestFailed"},
            id="a person says fail",
        ),
        pytest.param(
            held(testing=MANUAL, verdict="pass:000000000000"),
            None,
            "Testing",
            {"Tested": "Unknown WaitingForVerdict"},
            id="a verdict on another content is none",
        ),
        pytest.param(
            held(testing=MANUAL, verdict="pass"),
            None,
            "Testing",
            {"Tested": "Unknown WaitingForVerdict"},
            id="a verdict on nothing in particular is none",
        ),
    ],
)
def test_on_the_way_to_publication(
    snapshot: VersionSnapshot, step: AnyStep | None, phase: str, conditions: dict[str, str]
) -> None:
    plan = plan_version(snapshot)
    assert plan.step == step
    assert plan.status.phase == phase
    assert said(plan) | conditions == said(plan)
    assert plan.status.published_at is None
    assert_clean(plan, snapshot)


def test_a_test_runs_once_for_a_content_and_again_when_somebody_asks() -> None:
    failed = plan_version(held(testing=JOB, job=job("Failed")))
    assert failed.status.test is not None
    assert failed.status.test.message == "the Job says Failed"
    # The Job is gone, the operator was restarted: its result stands.
    assert plan_version(held(testing=JOB, status=failed.status)).step is None
    again = plan_version(held(testing=JOB, status=failed.status, retest="now"))
    assert again.step == WriteIndex(BOTH)
    assert again.test != failed.test
    noted = held(testing=JOB, status=failed.status)
    edited = noted.spec.model_copy(update={"release_notes": "now with notes"})
    assert plan_version(replace(noted, spec=edited)).step is None, "notes are not what was tested"


def test_nobody_finds_two_contents_with_one_hash() -> None:
    """An author chooses both of them, so that a hash of n bits resists n/2 of them: a verdict must not move along."""
    assert len(content_under_test(held())) >= 32
    assert len(hash_artifact(AMD)) >= 32


def test_a_test_job_has_a_name_that_the_api_server_takes() -> None:
    assert len(job_name("c" * 40, "1.4.0-rc.1", "f" * 32)) <= 63


def test_the_person_is_told_how_to_give_the_verdict() -> None:
    plan = plan_version(held(testing=MANUAL, namespace="fleet"))
    (tested,) = (c for c in plan.status.conditions if c.type == "Tested")
    assert "look at the dashboard" in tested.message
    command = "kubectl --namespace fleet annotate --overwrite componentversion agent-1.4.0 outrider.dev/test-verdict="
    assert f"{command}pass:{TO_JUDGE} (or fail:{TO_JUDGE})" in tested.message


def test_every_refusal_of_the_trust_code_condemns_what_was_published() -> None:
    # But for the two that are about a key's validity, which bounds the first publication, and about keys themselves.
    folder = Path(__file__).resolve().parents[2] / "operator" / "outrider" / "trust"
    judging = ("verify", "chain", "bundle", "cosign", "statement", "evidence", "detached", "digest")
    text = "".join((folder / f"{name}.py").read_text() for name in judging)
    reasons = set(re.findall(r'Stalling\(\s*"(\w+)"', text))
    assert reasons - {"KeyNotValidNow"} <= CONDEMNING
    assert {"SignatureUntrusted", "NoTrustedKey", "StatementMismatch"} <= reasons


# -- deletion

USED = Usage(nodes=3, rollouts=["agents"])


@pytest.mark.parametrize(
    ("changes", "step", "finalizer", "reason"),
    [
        pytest.param({}, "Delete", "", "Deleting", id="what it stored is taken out of the registry first"),
        pytest.param({"done": Done(deleted=True)}, None, "Drop", "Deleting", id="then it goes"),
        pytest.param({"usage": USED}, None, "", "InUse", id="not while somebody needs it"),
        pytest.param(
            {"usage": USED, "deletion": Deletion(NOW, with_namespace=True)},
            "Delete",
            "",
            "Deleting",
            id="a namespace that goes takes it along",
        ),
        pytest.param(
            {"failure": make_failure("Delete", "", reason="RegistryUnavailable", retry_at=NOW + 2 * HOUR)},
            None,
            "",
            "RegistryUnavailable",
            id="it waits for a registry that is down",
        ),
        pytest.param(
            {
                "failure": make_failure("Delete", "", reason="RegistryUnavailable", retry_at=NOW + 2 * HOUR),
                "deletion": Deletion(NOW),
            },
            None,
            "Drop",
            "ArtifactsLeft",
            id="but not for ever",
        ),
        pytest.param(
            {"failure": make_failure("Delete", "", stalled=True, reason="DeleteUnsupported")},
            None,
            "Drop",
            "ArtifactsLeft",
            id="nor for one that does not delete",
        ),
        pytest.param(
            {"status": ComponentVersionStatus()}, None, "Drop", "Deleting", id="what stored nothing just goes"
        ),
    ],
)
def test_deletion(changes: dict[str, Any], step: str | None, finalizer: str, reason: str) -> None:
    plan = plan_version(later("Deprecated", **{"deletion": Deletion(NOW + HOUR), **changes}))
    assert (step_name(plan.step)[0] if plan.step else None) == step
    assert plan.finalizer == finalizer
    assert said(plan)["Ready"] == f"False {reason}"


def test_what_is_left_in_the_registry_is_told() -> None:
    plan = plan_version(
        later(deletion=Deletion(NOW), failure=make_failure("Delete", "", stalled=True, reason="DeleteUnsupported"))
    )
    (event,) = plan.events
    assert event.type == "Warning"
    assert all(entry.reference in event.message for entry in BOTH)


def test_nothing_is_stored_before_the_finalizer_is_there() -> None:
    assert plan_version(look("Published", has_finalizer=False)).finalizer == "Keep"
    assert plan_version(look("Published")).finalizer == ""


@pytest.mark.parametrize(
    ("newer", "stage", "latest"),
    [
        pytest.param(None, "Published", True, id="the newest published version is the latest"),
        pytest.param("1.5.0", "Published", False, id="an older one is not"),
        pytest.param(None, "Testing", False, id="one that is not published is not"),
    ],
)
def test_latest(newer: str | None, stage: Stage, latest: bool) -> None:
    assert plan_version(look(stage, *BOTH, reference=INDEX, newer_published=newer)).status.latest == latest


def test_people_are_told_of_each_step_once() -> None:
    told: list[tuple[str, str]] = []
    status = ComponentVersionStatus()
    for snapshot in (
        look("Published"),
        look("Published"),
        look("Published", failure=make_failure("Store")),
        look("Published", failure=make_failure("Store", attempts=4)),
        look("Published", *map(stored, (AMD, ARM))),
        look("Published", *BOTH),
        look("Published", *BOTH, reference=INDEX),
        look("Published", *BOTH, reference=INDEX),
    ):
        plan = plan_version(replace(snapshot, status=status))
        told += [(event.type, event.reason) for event in plan.events]
        status = plan.status
    assert told == [
        ("Normal", "Draft"),
        ("Warning", "Broken"),
        ("Normal", "ArtifactsStored"),
        ("Normal", "Testing"),
        ("Normal", "SignaturesVerified"),
        ("Normal", "Published"),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "f" * 64},
        {"fileName": "other"},
        {"platform": {"os": "linux", "arch": "arm64"}},
        {"source": {"http": {"url": "https://files.test/other"}}},
        {"source": {"configMap": {"name": "files", "key": "agent"}}},
        {"signature": {"inline": "b3RoZXI="}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_an_entry_decides_what_is_stored(change: dict[str, Any]) -> None:
    assert hash_artifact(Artifact.model_validate(AMD.to_api() | change)) != hash_artifact(AMD)


def test_how_an_entry_is_written_does_not_matter() -> None:
    shuffled = Artifact.model_validate(dict(reversed(AMD.to_api().items())))
    assert hash_artifact(shuffled) == hash_artifact(AMD)


# -- laws

ARTIFACTS = st.builds(make_artifact, st.sampled_from(["amd64", "arm64", "arm"]), st.sampled_from("ab"))
ENTRIES = st.lists(
    st.builds(
        lambda artifact, key: stored(artifact, key=key),
        ARTIFACTS,
        st.sampled_from([None, KEY, "sha256:of-nobody"]),
    ),
    max_size=4,
    unique_by=lambda entry: entry.platform,
)
FAILURES = st.one_of(
    st.none(),
    st.builds(
        lambda step, platform, stalled, due: make_failure(step, platform, stalled=stalled, retry_at=NOW + due),
        st.sampled_from(get_args(Step)),
        st.sampled_from(["linux/amd64", "linux/arm64", ""]),
        st.booleans(),
        st.timedeltas(timedelta(seconds=-5), timedelta(seconds=5)),
    ),
)
RUNNING = st.one_of(
    st.none(), st.builds(Running, st.sampled_from(get_args(Step)), st.just("linux/amd64"), st.just(NOW))
)
SPECS = st.builds(
    lambda stage, artifacts: make_spec(stage, *artifacts),
    st.sampled_from(get_args(Stage)),
    st.lists(ARTIFACTS, min_size=1, max_size=3, unique_by=lambda artifact: artifact.platform),
)


@given(
    spec=SPECS,
    known=ENTRIES,
    done=ENTRIES,
    reference=st.sampled_from([None, INDEX]),
    old_reference=st.sampled_from([None, INDEX]),
    failure=FAILURES,
    running=RUNNING,
    trusted=st.sampled_from([frozenset(), frozenset({KEY})]),
)
def test_whatever_was_stored_and_said_before_only_what_is_verified_now_gets_out_of_draft(
    spec: ComponentVersionSpec,
    known: list[StoredArtifact],
    done: list[StoredArtifact],
    reference: str | None,
    old_reference: str | None,
    failure: Failure | None,
    running: Running | None,
    trusted: frozenset[str],
) -> None:
    snapshot = VersionSnapshot(
        now=NOW,
        generation=1,
        spec=spec,
        status=ComponentVersionStatus(artifacts=known, reference=old_reference, phase="Published"),
        done=Done({entry.platform: entry for entry in done}, reference),
        failure=failure,
        running=running,
        trusted=trusted,
        trusted_now=trusted,
    )
    plan = plan_version(snapshot)
    proofs = {
        (entry.platform, entry.spec_hash)
        for entry in [*known, *done]
        if entry.signature is not None and entry.signature.key_fingerprint in trusted
    }
    present = {(str(artifact.platform), hash_artifact(artifact)) for artifact in spec.artifacts}
    if spec.stage == "Revoked":
        assert (plan.status.phase, plan.step) == ("Revoked", None)
    elif plan.status.phase != "Draft" or isinstance(plan.step, Publish):
        assert present <= proofs
        assert spec.stage in {"Testing", "Published"}
    if plan.status.phase == "Published":
        assert spec.stage == "Published"
        assert reference is not None
    assert (
        (plan.status.published_at is not None)
        == (plan.status.phase == "Published")
        == (plan.status.reference is not None)
    )
    assert {(entry.platform, entry.spec_hash) for entry in plan.status.artifacts} <= present
    assert running is None or plan.step is None
    assert_clean(plan, snapshot)


Happening = Literal[
    "pass", "write lost", "step passes", "step fails", "step is refused", "restart", "edit", "stage", "key", "a day"
]


@dataclass
class Author:
    """A version with its author, its reconciler's memory, and a ledger of what was really verified."""

    dice: random.Random
    spec: ComponentVersionSpec = field(default_factory=lambda: make_spec("Draft"))
    status: ComponentVersionStatus = field(default_factory=ComponentVersionStatus)
    done: Done = field(default_factory=Done)
    failure: Failure | None = None
    running: AnyStep | None = None
    trusted: frozenset[str] = frozenset({KEY})
    generation: int = 1
    now: datetime = NOW
    proven: set[str] = field(default_factory=set)
    tagged: dict[str, frozenset[str]] = field(default_factory=dict)
    was_published: bool = False
    refused: set[str] = field(default_factory=set)
    """The platforms whose verification was refused after publication, and has not passed since."""

    def forget(self) -> None:
        self.done, self.failure, self.running = Done(), None, None

    def happen(self, what: Happening) -> None:
        self.now += timedelta(seconds=1)
        match what:
            case "pass" | "write lost":
                self.reconcile(stored=what == "pass")
            case "step passes":
                self.succeed()
            case "step fails" | "step is refused" if self.running is not None:
                name, platform = step_name(self.running)
                if name == "Verify" and what == "step is refused" and self.status.published_at is not None:
                    self.refused.add(platform)
                self.failure = make_failure(
                    name, platform, stalled=what == "step is refused", retry_at=self.now + timedelta(seconds=2)
                )
                self.running = None
            case "restart":
                self.forget()
            case "edit" | "stage" if self.status.published_at is None:  # the API server refuses it afterwards
                self.edit(what)
            case "key":
                self.trusted = frozenset() if self.trusted else frozenset({KEY})
            case "a day":
                self.now += timedelta(days=1)
            case _:
                pass

    def edit(self, what: Happening) -> None:
        stage: Stage = self.dice.choice(["Draft", "Testing", "Published"]) if what == "stage" else self.spec.stage
        artifacts = self.spec.artifacts
        if what == "edit":
            arches = self.dice.sample(["amd64", "arm64", "arm"], self.dice.randint(1, 3))
            artifacts = [make_artifact(arch, self.dice.choice("abc")) for arch in arches]
        self.spec = make_spec(stage, *artifacts)
        self.generation += 1
        self.forget()

    def succeed(self) -> None:
        match self.running:
            case Store(artifact, _):
                entry = stored(artifact)
                self.done = Done({**self.done.artifacts, entry.platform: entry}, self.done.reference)
            case Verify(artifact, found):
                if not self.trusted:
                    return
                self.proven.add(hash_artifact(artifact))
                self.refused.discard(found.platform)
                signature = StoredSignature(key_fingerprint=KEY, format="Detached", verified_at=self.now)
                entry = found.model_copy(update={"signature": signature})
                self.done = Done({**self.done.artifacts, entry.platform: entry}, self.done.reference)
            case Publish(artifacts):
                reference = f"index-{len(self.tagged)}"
                self.tagged[reference] = frozenset(entry.spec_hash for entry in artifacts)
                self.done = Done(self.done.artifacts, reference)
            case _:
                return
        self.running = self.failure = None

    def reconcile(self, *, stored: bool) -> None:
        running = None if self.running is None else Running(*step_name(self.running), self.now)
        plan = plan_version(
            VersionSnapshot(
                now=self.now,
                generation=self.generation,
                spec=self.spec,
                status=self.status,
                done=self.done,
                failure=self.failure,
                running=running,
                trusted=self.trusted,
                trusted_now=self.trusted,
            )
        )
        self.check(plan)
        if stored:
            self.status = plan.status
            self.was_published = self.was_published or plan.status.phase == "Published"
            if plan.step is not None:
                self.running = plan.step

    def check(self, plan: VersionPlan) -> None:
        present = {hash_artifact(artifact) for artifact in self.spec.artifacts}
        if plan.status.phase == "Published":
            assert present <= self.proven, "Published without a verification of the present content"
            assert plan.status.reference is not None
            assert self.tagged[plan.status.reference] == present, "the tag holds something else"
            assert self.spec.stage == "Published"
        if self.was_published:
            expected = "Withdrawn" if self.refused else "Published"
            assert plan.status.phase == expected, "what was published stays so until it is refused"
        assert plan.status.published_at is None or plan.status.published_at >= (self.status.published_at or NOW)


@given(
    happenings=st.lists(st.sampled_from(get_args(Happening)), max_size=60),
    dice=st.randoms(use_true_random=False),
)
def test_no_sequence_of_events_publishes_what_was_not_verified(
    happenings: list[Happening], dice: random.Random
) -> None:
    author = Author(dice)
    for what in happenings:
        author.happen(what)
        author.reconcile(stored=False)
    # And when the trouble is over and the author wants it, it is published, or comes back.
    author.trusted = frozenset({KEY})
    if author.status.published_at is None:
        author.spec = make_spec("Published", *author.spec.artifacts)
        author.generation += 1
        author.forget()
    for _ in range(20):
        author.happen("pass")
        author.happen("step passes")
    assert author.status.phase == "Published"


# -- order of versions

PRECEDENCE = [
    # semver.org, section 11, items 2 to 4
    ["1.0.0", "2.0.0", "2.1.0", "2.1.1"],
    ["1.0.0-alpha", "1.0.0"],
    [
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
    ],
    # and what follows from them
    ["1.9.0", "1.10.0", "1.11.0"],
    ["1.0.0-1", "1.0.0-2", "1.0.0-10", "1.0.0-1a", "1.0.0-a"],
    ["1.0.0--", "1.0.0-a", "1.0.0-a-b", "1.0.0-aa"],
    ["1.0.0-rc.1", "1.0.0-rc.1.0", "1.0.0-rc.1.a", "1.0.0-rc.2", "1.0.0", "1.0.1-0"],
]


@pytest.mark.parametrize("ascending", PRECEDENCE, ids=[" < ".join(line) for line in PRECEDENCE])
def test_precedence(ascending: list[str]) -> None:
    for lower, higher in itertools.combinations(ascending, 2):
        assert version_order(lower) < version_order(higher), f"{lower} comes before {higher}"
    assert sorted(set(ascending), key=version_order) == ascending


VERSIONS = st.from_regex(SEMVER_PATTERN.removesuffix("$") + r"\Z").filter(lambda version: len(version) <= 48)


@given(one=VERSIONS, other=VERSIONS)
def test_any_two_versions_have_an_order_and_only_equal_ones_are_equal(one: str, other: str) -> None:
    left, right = version_order(one), version_order(other)
    assert (left < right) + (left > right) + (left == right) == 1
    assert (left == right) == (one == other)


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        pytest.param([], None, id="of none there is no newest"),
        pytest.param(["1.9.0", "1.10.0", "1.2.0"], "1.10.0", id="by number, not by letter"),
        pytest.param(["1.0.0", "2.0.0-rc.1"], "1.0.0", id="a pre-release is not newer for those who want releases"),
        pytest.param(["2.0.0-rc.2", "2.0.0-rc.10"], "2.0.0-rc.10", id="unless there is nothing else"),
    ],
)
def test_newest(versions: list[str], expected: str | None) -> None:
    assert newest(versions) == expected
