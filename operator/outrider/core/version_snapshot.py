"""What a decision about a ComponentVersion may see, and the steps that may come out of it. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from outrider.api.componentversion import (
    Artifact,
    ComponentVersionSpec,
    ComponentVersionStatus,
    Phase,
    RecordedTest,
    StoredArtifact,
    Usage,
)

Step = Literal["Store", "Verify", "Index", "Test", "Publish", "Delete"]

MISSING = "missing"
"""As a `specHash`: what was stored is not in the registry any more, and has to be stored again."""

CONDEMNING = frozenset(
    {
        "BindingRequired",
        "BlobCorrupted",
        "BundleMalformed",
        "DigestMalformed",
        "DigestMismatch",
        "EvidenceMalformed",
        "ManifestInvalid",
        "NoTrustedKey",
        "SignatureMalformed",
        "SignatureMissing",
        "SignatureUntrusted",
        "StatementMalformed",
        "StatementMismatch",
    }
)
"""Refusals of a verification that say something about what is stored. All others say that somebody (whoever keeps the
registry, a Secret, a name) must act before anybody can tell: nothing is withdrawn for them."""


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

    @property
    def condemns(self) -> bool:
        """Whether it says that what is stored must not be used."""
        return self.step == "Verify" and self.stalled and self.reason in CONDEMNING


@dataclass(frozen=True, slots=True)
class Running:
    """A step that is under way."""

    step: Step
    platform: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Done:
    """What steps have achieved since the status was written last.

    `index` is the version's index before publication, `reference` after it, `deleted` that the registry holds nothing
    of it any more.
    """

    artifacts: Mapping[str, StoredArtifact] = field(default_factory=dict)
    reference: str | None = None
    index: str | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """A compatibility rule that cannot be satisfied."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Deletion:
    """That the object is being deleted: since when, and whether its whole namespace is."""

    since: datetime
    with_namespace: bool = False


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What matters of a test's Job: which content it tests, and how it stands."""

    name: str
    content: str
    state: Literal["Running", "Passed", "Failed"]
    started_at: datetime | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """How the test of the present content stands.

    NotAsked: there is none. Due: its Job has to be created. Running: by a Job. Waiting: for a person.
    """

    content: str
    state: Literal["NotAsked", "Due", "Running", "Waiting", "Passed", "Failed"]
    message: str
    record: RecordedTest | None = None

    @property
    def may_run(self) -> bool:
        """Whether a Job for this content has a reason to exist."""
        return self.state in {"Due", "Running"} or (self.record is not None and self.record.job is not None)


@dataclass(frozen=True, slots=True)
class VersionSnapshot:
    """One look at a ComponentVersion and at the work that is done for it.

    `trusted` are the fingerprints of the keys that may vouch for it, `trusted_now` of those that may vouch for a first
    publication now, and only with a statement that binds if `require_binding`. What was verified longer ago than
    `verification_lasts`, or before `verify_after`, is verified again. `verdict` and `retest` are the annotations of
    that name.
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
    trusted_now: frozenset[str] = frozenset()
    require_binding: bool = False
    problems: tuple[Problem, ...] = ()
    job: JobFacts | None = None
    verdict: str = ""
    retest: str = ""
    verify_after: datetime | None = None
    verification_lasts: timedelta = timedelta(days=1)
    usage: Usage | None = None
    deletion: Deletion | None = None
    has_finalizer: bool = True
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Store:
    """Stream an artifact into the registry and compare its hash; lay its signature beside it.

    `previous` is what is stored of a version that was published: it keeps its signature until it is verified again.
    """

    artifact: Artifact
    previous: StoredArtifact | None = None


@dataclass(frozen=True, slots=True)
class Verify:
    """Read what is stored back and verify hash and signature.

    Not `thorough`: only the signature, against the hash that was read back before: enough when it is the keys that have
    changed. `first` says that it was not published yet: keys count only while they are valid.
    """

    artifact: Artifact
    stored: StoredArtifact
    thorough: bool = True
    first: bool = True


@dataclass(frozen=True, slots=True)
class WriteIndex:
    """Write the index over all platforms, without the version as its tag: a test pulls by it."""

    artifacts: tuple[StoredArtifact, ...]


@dataclass(frozen=True, slots=True)
class RunTest:
    """Create the test's Job."""

    content: str
    artifacts: tuple[StoredArtifact, ...]
    index: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Write the index over all platforms and tag it with the version."""

    artifacts: tuple[StoredArtifact, ...]


@dataclass(frozen=True, slots=True)
class Delete:
    """Take what the version has stored out of the registry."""

    artifacts: tuple[StoredArtifact, ...]
    reference: str | None


AnyStep = Store | Verify | WriteIndex | RunTest | Publish | Delete


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a version stands: what `plan_version` has found, for whoever puts it into words."""

    artifacts: Mapping[str, StoredArtifact]
    wanted: AnyStep | None
    phase: Phase
    trial: Trial
    failure: Failure | None
    expired: bool
    reference: str | None

    @property
    def verified(self) -> int:
        """How many artifacts are verified."""
        return sum(stored.signature is not None for stored in self.artifacts.values())
