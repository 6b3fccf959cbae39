"""Everything that a decision about a rollout may see. Values only: the same snapshot always gives the same plan."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import cached_property
from typing import Any

from outrider.api.checks import AnalysisVerdict
from outrider.api.componentversion import Phase
from outrider.api.names import ROLE_REVISION
from outrider.api.rollout import (
    NodeResult,
    RequestKind,
    RolloutBatchSpec,
    RolloutBatchStatus,
    RolloutSpec,
    RolloutStatus,
    Target,
)
from outrider.core.compatibility import VersionRules
from outrider.core.ranges import Range
from outrider.core.refusal import Refusal
from outrider.core.words import printable


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint of a node."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class Node:
    """What matters of a node.

    `ready` is its Ready condition being True. `labels` holds all labels: the target and the template's affinity look
    at any of them. `os_image`, `kernel_version` and `kubelet_version` are what its kubelet says, "" while it has not.
    """

    name: str
    uid: str
    labels: Mapping[str, str]
    ready: bool
    unschedulable: bool = False
    taints: tuple[Taint, ...] = ()
    os_image: str = ""
    kernel_version: str = ""
    kubelet_version: str = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the operator saw when it asked an agent itself, by `health.http`, the last time.

    `since` is when the answers began to have this verdict, `told_at` when the first one came that told anything at all.
    """

    verdict: AnalysisVerdict
    message: str
    at: datetime
    since: datetime
    told_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Pod:
    """What matters of an agent's pod.

    `live` is False once its phase is terminal: nothing of it runs any more. `ready_since` and `unready_since` are
    the operator's own observations, on its own clock: the kubelet's clock may be skewed, and it rewrites transition
    times when it restarts. `trouble` is the waiting reason of the first container that cannot run (empty if none),
    `refusal` why a program of ours did not do what it was to do. `fetching` and `installing` say that such a program is
    still at work.

    `restarts` are those of containers that are to run on, sidecars among them. `retries` is how often the container in
    trouble was tried again, if it is an init container that has to come to an end (None: it is another). `crash` says
    how a container ended last, `unschedulable` why the scheduler finds no place on the node. `check` is None while the
    agent was not asked.
    """

    name: str
    uid: str
    node: str
    revision: str
    role: str = ROLE_REVISION
    live: bool = True
    terminating: bool = False
    ready_since: datetime | None = None
    unready_since: datetime | None = None
    restarts: int = 0
    trouble: str = ""
    trouble_message: str = ""
    refusal: Refusal | None = None
    fetching: bool = False
    installing: bool = False
    retries: int | None = None
    crash: str = ""
    unschedulable: str = ""
    ip: str = ""
    check: Measurement | None = None
    is_well: bool = field(init=False, repr=False, compare=False)
    """Whether nothing speaks against the agent but, maybe, how often it restarted: most of a fleet, in every pass."""

    def __post_init__(self) -> None:
        """Find out once what every pass asks."""
        is_well = (
            self.ready_since is not None
            and self.role == ROLE_REVISION
            and self.live
            and not self.terminating
            and not self.trouble
            and not self.refusal
            and (self.check is None or self.check.verdict != "Fail")
        )
        object.__setattr__(self, "is_well", is_well)


@dataclass(frozen=True, slots=True)
class PrepareSet:
    """A DaemonSet that prepares nodes for a revision; `nodes` are what it tells them by."""

    name: str
    revision: str
    nodes: frozenset[str]


@dataclass(frozen=True)
class Batch:
    """A RolloutBatch object: its frozen membership and what became of each node.

    What follows from these is worked out once for each object: a pass over a large fleet meets hundreds of records, of
    which most have not changed since the last.
    """

    name: str
    spec: RolloutBatchSpec
    status: RolloutBatchStatus

    @cached_property
    def results(self) -> Mapping[str, NodeResult]:
        """The result of each node, in the order in which they are moved; Pending while nothing is recorded of it."""
        known = {result.name: result for result in self.status.nodes}
        return {
            entry.name: known.get(entry.name) or NodeResult(name=entry.name, state="Pending")
            for entry in self.spec.nodes
        }

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How many of the nodes are in each state."""
        return Counter(result.state for result in self.results.values())

    @cached_property
    def is_recorded(self) -> bool:
        """Whether the status has something on each node."""
        return len(self.status.nodes) == len(self.spec.nodes)

    @cached_property
    def uids(self) -> frozenset[str]:
        """The UIDs of the nodes."""
        return frozenset(entry.uid for entry in self.spec.nodes)

    @cached_property
    def goal(self) -> str:
        """Where all of the nodes go; "" if not all go to the same."""
        goals = {entry.to for entry in self.spec.nodes}
        return goals.pop() if len(goals) == 1 else ""

    @cached_property
    def revisions(self) -> frozenset[str]:
        """The assignments that the membership names."""
        return frozenset(name for entry in self.spec.nodes for name in (entry.origin, entry.to, entry.back))


@dataclass(frozen=True, slots=True)
class VersionState:
    """How far a version of the component may be used, as its ComponentVersion says it now.

    `why` is what it says about its phase. `verified_at` is when the last of its artifacts was read back and verified,
    and `unverifiable` why that cannot be done at the moment ("" if it can).
    """

    phase: Phase | None
    why: str = ""
    verified_at: datetime | None = None
    unverifiable: str = ""


Needs = tuple[tuple[str, Range], ...]
"""What a version requires of other components on its node: (component, range)."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a Rollout of another component wants on the nodes of its target."""

    rollout: str
    version: str
    target: Target


@dataclass(frozen=True, slots=True)
class AnalysisAnswer:
    """What an analysis has answered about a batch (its first page's name), the `attempt`-th time that it was asked."""

    batch: str
    name: str
    attempt: int
    verdict: AnalysisVerdict
    message: str
    at: datetime
    value: str = ""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another component that may run on the same nodes: its assignment's key, and the versions of its revisions.

    `requires` says what its versions need of other components, ours among them; `wishes` what its Rollouts want, in the
    order of their seniority. `unsettled` are nodes that its Rollouts have moved and not found healthy (yet): what runs
    there may go back any moment.
    """

    key: str
    versions: Mapping[str, str]
    requires: Mapping[str, Needs] = field(default_factory=dict)
    wishes: tuple[Wish, ...] = ()
    unsettled: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Legacy:
    """A DaemonSet to take over, as it stands. Without a UID there is none of that name.

    `pod` is the spec of its template, `annotations` are all of its own. `original` is what was stored of it before it
    was changed, on itself or in the Rollout's status. `observed` says that the DaemonSet controller knows its present
    spec; `ours` that Outrider made it; `controller` which object owns it, if any does. `writer` is the field manager,
    other than ours, that wrote last; `problem` what the API server said against our last patch.

    `serves_others` says that it serves, or may come to serve, unlabelled nodes that are no members; `in_the_way` names
    the nodes that would get a second agent if it wanted all nodes again that it wanted before.
    """

    name: str
    uid: str = ""
    generation: int = 0
    observed: bool = True
    deleting: bool = False
    ours: bool = False
    controller: str = ""
    pod: Mapping[str, Any] = field(default_factory=dict)
    strategy: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    original: Mapping[str, Any] | None = None
    writer: str = ""
    problem: str = ""
    serves_others: bool = True
    in_the_way: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks for by an annotation on the Rollout: the annotation's value, and who set it."""

    kind: RequestKind
    value: str
    by: str = ""


@dataclass(frozen=True, slots=True)
class Hindrance:
    """Why nothing new may be started now.

    `stalled` says that a person must act; otherwise it passes by itself. Moves that are half-made are finished all the
    same.
    """

    reason: str
    message: str
    stalled: bool

    def __post_init__(self) -> None:
        """Keep what a terminal would obey out of what is told."""
        object.__setattr__(self, "message", printable(self.message))


@dataclass(frozen=True, slots=True)
class RolloutSnapshot:
    """One consistent look at a Rollout and its fleet.

    `nodes` are all nodes of the target and all that carry an assignment of this Rollout; `members` names those of the
    target, `owned_by_others` those that belong to an older Rollout, `leavers` those that have left the fleet and are
    nobody's. `pods` are the agents' pods by node. `revisions`
    names the revisions whose DaemonSets exist, each with its version; `rules` which nodes each can run on (nothing
    said: any), and `wanted_rules` those of the wanted one, also before it has a DaemonSet; `joiners` the revisions that
    joiners' DaemonSets bring. `wanted` is the revision that the spec asks for, `assigned` are the revisions that any
    node of the cluster names in this component's label, or is on its way to. `observing_since` is when this process
    began to see the cluster: what happened before cannot be held against a node.

    `answers` are the newest answers of analyses, recorded or not.

    `deleting_since` is when the deletion was asked for; `namespace_terminating` says that the whole namespace goes. An
    older Rollout's target may overlap with this one's (`shares_joiners`): a joining node could be either's. Another
    Rollout's joiners' DaemonSet that might serve the same nodes is there (`joiners_elsewhere`).

    `versions` are the component's versions that matter here, those that exist. `neighbours` are the components that
    ours has to do with: what `rules` require, what requires ours, and so on. `requests` are the annotations that ask
    for something and that `status.last_handled` does not name. A version that was verified before
    `verify_after` is verified again before a run to it starts (None: never). `without_agent_since` says of nodes that
    have a revision and no pod since when that has been seen. `under_way` are the nodes of which a change of the
    assignment was sent and is not answered: what they are seen with may be over. `leaving_since` says of the nodes that
    were between two revisions at the last look since when they had been seen there, `arriving_since` of those that were
    before since when they had a revision again and no Ready agent. `legacy` is the DaemonSet that `spec.adoption`
    names, or that was taken over before. `zones` are those time zones of `spec.windows` that there are.

    `preparing` are the pods that prepare nodes for a revision, by node: no agents, and never counted as such.
    `prepare_sets` are the DaemonSets that make them, by name; `unprepared_since` says of the nodes that these name and
    that are not prepared how long that has counted, `prepare_problem` what the API server said against another one.
    """

    now: datetime
    namespace: str
    name: str
    uid: str
    generation: int
    deleting: bool
    has_finalizer: bool
    spec: RolloutSpec
    status: RolloutStatus
    assignment_key: str
    wanted: str
    hindrance: Hindrance | None = None
    started_by: str = ""
    nodes: Mapping[str, Node] = field(default_factory=dict)
    members: frozenset[str] = frozenset()
    owned_by_others: Mapping[str, str] = field(default_factory=dict)
    pods: Mapping[str, tuple[Pod, ...]] = field(default_factory=dict)
    batches: tuple[Batch, ...] = ()
    revisions: Mapping[str, str] = field(default_factory=dict)
    observing_since: datetime | None = None
    deleting_since: datetime | None = None
    namespace_terminating: bool = False
    leavers: frozenset[str] = frozenset()
    shares_joiners: bool = False
    joiners_elsewhere: bool = False
    target_hash: str = ""
    rules: Mapping[str, VersionRules] = field(default_factory=dict)
    wanted_rules: VersionRules | None = None
    assigned: frozenset[str] = frozenset()
    joiners: tuple[str, ...] = ()
    versions: Mapping[str, VersionState] = field(default_factory=dict)
    neighbours: Mapping[str, Neighbour] = field(default_factory=dict)
    requests: tuple[Request, ...] = ()
    verify_after: datetime | None = None
    answers: tuple[AnalysisAnswer, ...] = ()
    without_agent_since: Mapping[str, datetime] = field(default_factory=dict)
    under_way: frozenset[str] = frozenset()
    leaving_since: Mapping[str, datetime] = field(default_factory=dict)
    arriving_since: Mapping[str, datetime] = field(default_factory=dict)
    legacy: Legacy | None = None
    zones: Mapping[str, tzinfo] = field(default_factory=dict)
    preparing: Mapping[str, tuple[Pod, ...]] = field(default_factory=dict)
    prepare_sets: Mapping[str, PrepareSet] = field(default_factory=dict)
    unprepared_since: Mapping[str, datetime] = field(default_factory=dict)
    prepare_problem: str = ""

    def phase_of(self, revision: str) -> Phase | None:
        """Return the phase of a revision's version; None if nobody knows it (any more)."""
        state = self.versions.get(self.revisions.get(revision, ""))
        return state.phase if state is not None else None

    @property
    def run_is_active(self) -> bool:
        """Whether a run is under way."""
        return self.status.run is not None and self.status.run.state == "Running"
