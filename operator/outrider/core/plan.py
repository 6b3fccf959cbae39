"""What to do, as values: a plan can be printed, compared and asserted on. Executing it twice changes nothing.

The order of execution is part of the safety argument and the same for every plan: prerequisites (finalizer,
DaemonSets), then records (RolloutBatches, status), then the patches that move nodes, then what prepares others, then
clean-up. What a crash cuts off in between is found by the next snapshot.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from outrider.api.rollout import RolloutBatchSpec, RolloutBatchStatus, RolloutStatus
from outrider.core.words import printable


@dataclass(frozen=True, slots=True)
class KeepFinalizer:
    """Hold the Rollout until its half-made moves are finished."""


@dataclass(frozen=True, slots=True)
class DropFinalizer:
    """Let the deleted Rollout go."""


@dataclass(frozen=True, slots=True)
class RequestVerification:
    """Have a ComponentVersion (by its name) verified now, because a run is to bring it or to return to it."""

    name: str


@dataclass(frozen=True, slots=True)
class CreateRevision:
    """Create the DaemonSet of a revision. No node runs it before a node's label names it."""

    revision: str


@dataclass(frozen=True, slots=True)
class CreateJoiners:
    """Create the DaemonSet that serves nodes without an assignment with this (stable) revision."""

    revision: str


@dataclass(frozen=True, slots=True)
class CreateBatch:
    """Persist who is moved from where to where, before the first of them is touched."""

    name: str
    spec: RolloutBatchSpec


@dataclass(frozen=True, slots=True)
class WriteBatch:
    """Record what became of the nodes of a batch.

    `urgent` records must be stored before any move of the same plan: a verdict that is acted on, a batch's end. The
    others can be derived again from what the cluster shows and may be written together later.
    """

    name: str
    status: RolloutBatchStatus
    urgent: bool


@dataclass(frozen=True, slots=True)
class Assign:
    """Change one node's assignment, only if node UID and present assignment are still what was seen.

    So must be the other labels that `relies_on` names: assignments of components that have to do with this one. `after`
    None takes the label away.
    """

    node: str
    uid: str
    before: str | None
    after: str | None
    relies_on: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class ChangeAdopted:
    """Let a DaemonSet that is taken over want other nodes: one JSON patch, which tests that it is as it was seen."""

    daemonset: str
    form: str
    operations: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class ProbeAgents:
    """Ask agents themselves, by `health.http`: each a pod's UID and IP. Their bodies may have to name `version`."""

    version: str
    pods: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AskAnalysis:
    """Ask an analysis about a batch (its first page's name), unless this attempt is under way or has answered."""

    batch: str
    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class PrepareNodes:
    """Let the files and images of a revision be put on nodes (by name) while their agents run on."""

    revision: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeletePrepare:
    """Delete a DaemonSet that prepares nodes, by its name, because none of them waits for it any more."""

    name: str


@dataclass(frozen=True, slots=True)
class DeleteRevision:
    """Delete the DaemonSet of a revision that nothing names any more."""

    revision: str


@dataclass(frozen=True, slots=True)
class DeleteJoiners:
    """Delete a joiners' DaemonSet that brings what is no longer stable, or serves what is no longer the target."""

    joiners: str


@dataclass(frozen=True, slots=True)
class DeleteBatch:
    """Delete the record of a run that is older than the history's limit."""

    name: str


Action = (
    KeepFinalizer
    | DropFinalizer
    | RequestVerification
    | CreateRevision
    | CreateJoiners
    | ChangeAdopted
    | CreateBatch
    | WriteBatch
    | Assign
    | ProbeAgents
    | AskAnalysis
    | PrepareNodes
    | DeletePrepare
    | DeleteRevision
    | DeleteJoiners
    | DeleteBatch
)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a person should be told once, in one printable line."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str

    def __post_init__(self) -> None:
        """Keep what a terminal would obey out of what is told."""
        object.__setattr__(self, "message", printable(self.message))


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, what to say, and when to look again at the latest.

    `urgent_status` says that the status must be stored before any move of the plan. `arrivals` are not for now: each is
    made as soon as the last pod on its node that is not of its revision has ended, unless a newer plan comes first.
    """

    actions: tuple[Action, ...]
    status: RolloutStatus
    events: tuple[Event, ...] = ()
    urgent_status: bool = False
    wake_at: datetime | None = None
    arrivals: tuple[Assign, ...] = ()

    @property
    def moves(self) -> tuple[Assign, ...]:
        """The label patches of the plan."""
        return tuple(action for action in self.actions if isinstance(action, Assign))

    @property
    def has_clean_up(self) -> bool:
        """Whether the plan deletes something."""
        ends = DropFinalizer | DeleteRevision | DeleteJoiners | DeleteBatch
        return any(isinstance(action, ends) for action in self.actions)
