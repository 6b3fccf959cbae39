"""Rollout: which version a fleet of nodes runs, and how it is moved there. RolloutBatch: the record, node by node."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from outrider.api.base import (
    AT_LEAST_ONE,
    ATOMIC_LIST,
    IMMUTABLE,
    SET_LIST,
    ApiModel,
    Conditions,
    HttpPath,
    IntOrPercent,
    LabelSelector,
    MountPath,
    Time,
    list_map,
    one_of,
    rule,
    worded,
)
from outrider.api.checks import Analysis, AnalysisResult, HttpCheck
from outrider.api.componentversion import Component, Version

PodTemplate = Annotated[dict[str, Any], Field(json_schema_extra={"x-outrider-schema": "PodTemplateSpec"})]
"""A PodTemplateSpec as for a DaemonSet; the CRD carries its full structural schema."""

Seconds = Annotated[int, Field(ge=0, le=7 * 24 * 3600)]


def _not_empty(instead: str) -> dict[str, Any]:
    """Return the schema marks of a selector that has to say something."""
    return {
        "x-kubernetes-validations": [
            rule(
                "(has(self.matchLabels) && size(self.matchLabels) > 0) || "
                "(has(self.matchExpressions) && size(self.matchExpressions) > 0)",
                f"an empty selector selects nothing; {instead}",
            )
        ]
    }


class Target(ApiModel):
    """Which nodes belong to the fleet. Nodes labelled `outrider.dev/exclude=true` are left out."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "(has(self.nodeSelector) ? 1 : 0) + (has(self.nodeNames) ? 1 : 0) + (has(self.all) ? 1 : 0) == 1",
                    "set exactly one of nodeSelector, nodeNames and all",
                )
            ]
        }
    )

    node_selector: (
        Annotated[LabelSelector, Field(json_schema_extra=_not_empty("write `all: true` for every node"))] | None
    ) = None
    """Nodes by their labels."""
    node_names: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=253)]],
            Field(min_length=1, max_length=500, json_schema_extra=SET_LIST),
        ]
        | None
    ) = None
    """Nodes by name, at most 500."""
    all: Literal[True] | None = None
    """Every node of the cluster."""


class VolumeDelivery(ApiModel):
    """The artifact is pulled and verified by an init container into a volume, which the agent sees read-only."""

    mount_path: MountPath
    """Where the containers see the directory that holds the artifact's file."""
    containers: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=63)]],
        Field(min_length=1, max_length=20, json_schema_extra=SET_LIST),
    ]
    """The containers of the template that get the volume."""

    cache: Literal["Node", "None"] = "Node"
    """Node: verified files are kept on the node's disk, so that a pod which restarts needs no registry. None: each pod
    pulls its own."""


class ImageDelivery(ApiModel):
    """The version's artifacts are container images. The verified one becomes a container's image, by its digest."""

    container: Annotated[str, Field(min_length=1, max_length=63)]
    """The container of the template whose `image` it becomes."""


SystemdUnit = Annotated[
    str,
    Field(
        max_length=255,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9:_.@-]*[.](service|socket|target|timer|path)$",
        json_schema_extra=worded("write the unit's whole name, such as node-daemon.service"),
    ),
]
"""A unit of the node's systemd."""

HostCommand = Annotated[
    list[Annotated[str, Field(max_length=1024)]],
    Field(
        min_length=1,
        max_length=32,
        json_schema_extra={
            **ATOMIC_LIST,
            "x-kubernetes-validations": [
                rule(
                    "size(self) == 0 || self[0].startsWith('/')",
                    "the first word is the program: write its absolute path on the node, such as /usr/bin/systemctl",
                )
            ],
        },
    ),
]
"""A program of the node and its arguments; no shell reads them."""


class HostActivation(ApiModel):
    """What makes the node run the version that `current` points to: exactly one of command and systemdUnit."""

    model_config = ConfigDict(json_schema_extra=one_of("command", "systemdUnit"))

    command: HostCommand | None = None
    """Run on the node, as root; 0 is success."""
    systemd_unit: SystemdUnit | None = None
    """Restarted on the node."""


class HostHttpCheck(ApiModel):
    """A GET on the node, to 127.0.0.1. Any 2xx passes; redirects are not followed."""

    path: HttpPath = "/"
    """What is asked for."""
    port: Annotated[int, Field(ge=1, le=65535)]
    """The port that the daemon listens on."""


class HostHealth(ApiModel):
    """When the daemon works. Without a check: a systemd unit is asked whether it is active, a command is believed."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule("!has(self.command) || !has(self.http)", "set at most one of command and http")
            ]
        }
    )

    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    """How long after its activation it may take to work. After that the node switches back by itself."""
    period_seconds: Annotated[int, Field(ge=1, le=3600)] = 10
    """How often it is asked afterwards."""
    command: HostCommand | None = None
    """Run on the node, as root; 0 is healthy."""
    http: HostHttpCheck | None = None
    """Asked on the node."""


class HostDelivery(ApiModel):
    """The version is installed on the node itself: what a component of type Daemon is for.

    Each version gets a folder below `path`, and the link `current` is switched to it at once. The version before is
    kept, and the node goes back to it by itself when the new one cannot be activated or is not healthy.
    """

    path: Annotated[
        str,
        Field(
            min_length=4,
            max_length=512,
            # No part may begin with a dot: neither `..` nor what is hidden.
            pattern=r"^(/[A-Za-z0-9_-][A-Za-z0-9._-]*){2,}$",
            json_schema_extra=worded(
                "write an absolute path below one of the folders that the operator's setting OUTRIDER_HOST_ROOTS "
                "names, such as /opt/node-daemon: without '..', '//', a '/' at its end or a part that begins with '.'"
            ),
        ),
    ]
    """The daemon's own folder on the node, below one of the operator's host roots. The file is
    `<path>/current/<fileName>`."""
    activate: HostActivation | None = None
    """What makes the node run it. Absent: something on the node watches `current` by itself."""
    health: HostHealth | None = None
    """When it works."""
    keep: Annotated[int, Field(ge=1, le=10)] = 2
    """How many versions stay on the node, the current one included; the one that it would go back to always does."""


class Delivery(ApiModel):
    """How the version gets onto the node: exactly one of volume, image and host."""

    model_config = ConfigDict(json_schema_extra=one_of("volume", "image", "host"))

    volume: VolumeDelivery | None = None
    """Type Agent, artifacts that are files: through a volume that an init container fills."""
    image: ImageDelivery | None = None
    """Type Agent, artifacts that are container images: as a container's image."""
    host: HostDelivery | None = None
    """Type Daemon: installed on the node."""

    @property
    def kind(self) -> Literal["volume", "image", "host"]:
        """Which of the three it is."""
        if self.host is not None:
            return "host"
        return "image" if self.image is not None else "volume"


class CanaryStep(ApiModel):
    """One canary batch. It must be healthy, and stay so while it soaks, before the next batch starts."""

    nodes: Annotated[IntOrPercent, Field(json_schema_extra={"x-kubernetes-validations": [AT_LEAST_ONE]})]
    """How many nodes this step moves; a percentage is of the run's nodes and rounds up. At least 1."""
    soak_seconds: Seconds = 0
    """How long the moved nodes are watched before the next batch."""
    failure_tolerance: IntOrPercent = 0
    """How many of the step's nodes may fail; a percentage is of the step's nodes and rounds down."""
    require_approval: bool = False
    """Whether the run waits after this step, once it is healthy and has soaked, until a person has approved it."""


class Canary(ApiModel):
    """A few nodes first."""

    steps: Annotated[list[CanaryStep], Field(min_length=1, max_length=20, json_schema_extra=ATOMIC_LIST)]
    """The canary batches in order; what remains then rolls."""
    node_selector: (
        Annotated[LabelSelector, Field(json_schema_extra=_not_empty("leave it out to allow canaries anywhere"))] | None
    ) = None
    """Where canaries may be, by the nodes' labels. Absent: anywhere in the fleet."""
    spread_by: (
        Annotated[
            str,
            Field(
                max_length=317,
                pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
                json_schema_extra=worded("write the key of a label of nodes, such as topology.kubernetes.io/zone"),
            ),
        ]
        | None
    ) = None
    """The key of a label: canaries are taken from each of its values in turn. Nodes without it are a group of their
    own."""


class Rolling(ApiModel):
    """Batch after batch, or a sliding window."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "!has(self.maxUnavailable) || (!has(self.batchSize) && "
                    "(!has(self.batchIntervalSeconds) || self.batchIntervalSeconds == 0))",
                    "with maxUnavailable there are no batches: remove batchSize and batchIntervalSeconds, or "
                    "maxUnavailable",
                )
            ]
        }
    )

    batch_size: Annotated[
        IntOrPercent | None,
        Field(json_schema_extra={"x-kubernetes-validations": [AT_LEAST_ONE]}),
    ] = None
    """How many nodes move together; a percentage is of the run's nodes and rounds up. At least 1. A batch ends before
    the next begins. Neither this nor maxUnavailable: batches of 10%."""
    batch_interval_seconds: Seconds = 0
    """How long a finished batch is watched before the next starts."""
    max_unavailable: Annotated[
        IntOrPercent | None,
        Field(json_schema_extra={"x-kubernetes-validations": [AT_LEAST_ONE]}),
    ] = None
    """A sliding window instead of batches: how many nodes at most are without a working agent at a time. As soon
    as one is done the next starts. A percentage is of the run's nodes and rounds up. At least 1."""


class Full(ApiModel):
    """All nodes in one batch."""

    max_in_flight: Annotated[
        IntOrPercent,
        Field(json_schema_extra={"x-kubernetes-validations": [AT_LEAST_ONE]}),
    ] = "100%"
    """How many nodes at most are without a working agent at a time; a percentage is of the run's nodes and rounds
    up. At least 1."""


class Strategy(ApiModel):
    """How a fleet is moved."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "self.type == 'Canary' ? has(self.canary) : !has(self.canary)",
                    "type Canary needs strategy.canary.steps, and no other type may have strategy.canary",
                ),
                rule("self.type == 'Full' || !has(self.full)", "strategy.full needs type Full"),
                rule(
                    "self.type != 'Full' || !has(self.rolling)",
                    "strategy.rolling contradicts type Full: remove it, or use type Rolling or Canary",
                ),
            ]
        }
    )

    type: Literal["Full", "Rolling", "Canary"]
    """Full: all at once. Rolling: batch after batch. Canary: a few first, then rolling."""
    canary: Canary | None = None
    """The steps before rolling; only with type Canary."""
    rolling: Rolling | None = None
    """Batches or a window; with type Rolling or Canary. Absent: batches of 10%."""
    full: Full | None = None
    """Limits for type Full."""
    failure_tolerance: IntOrPercent = 0
    """How many nodes may fail; a percentage is of the run's nodes and rounds down. The run fails when more do, or when
    every node of a whole batch of two or more did. A failed node within the tolerance goes back at once."""


class Health(ApiModel):
    """When a moved node counts as healthy, and when as failed."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    # Guarded, because the API server tries rules on the default, `{}`, before it fills that in.
                    "!has(self.minReadySeconds) || !has(self.timeoutSeconds) || "
                    "self.minReadySeconds < self.timeoutSeconds",
                    "minReadySeconds must be less than timeoutSeconds: no node could become healthy in time",
                )
            ]
        }
    )

    timeout_seconds: Annotated[int, Field(ge=1, le=24 * 3600)] = 300
    """How long after it was first touched a node may take to become healthy. Time in pause does not count."""
    min_ready_seconds: Annotated[int, Field(ge=0, le=24 * 3600)] = 10
    """How long the agent's pod must be Ready without a break, on the operator's clock."""
    max_restarts: Annotated[int, Field(ge=0, le=100)] = 0
    """How many container restarts of the new pod are forgiven. Init containers that run to an end do not count."""
    http: HttpCheck | None = None
    """A check of the agent itself, by the operator, beside readiness."""
    ignore_restarts_of: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=63)]], Field(max_length=20, json_schema_extra=SET_LIST)
    ] = []
    """Containers whose restarts and crash loops do not count. The pod has to become Ready all the same."""


class Adoption(ApiModel):
    """An existing DaemonSet whose agent the component replaces."""

    daemon_set: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
            json_schema_extra=worded(
                "write the name of a DaemonSet of this namespace",
                rule(
                    "self == oldSelf",
                    "spec.adoption.daemonSet cannot be changed: give the first DaemonSet back (giveBack: true), or "
                    "delete it once no node runs it, and remove spec.adoption in between",
                ),
            ),
        ),
    ]
    """The DaemonSet to take over, in the Rollout's namespace. Its nodes move from it by label; no pod restarts at the
    take-over."""
    give_back: bool = False
    """Takes all nodes back to the DaemonSet, in batches, and then leaves it as it was before."""


TimeOfDay = Annotated[
    str,
    Field(
        max_length=5,
        pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$",
        json_schema_extra=worded("write a time of day as HH:MM, from 00:00 to 24:00, such as 22:30"),
    ),
]
"""What a clock on the wall reads."""

Day = Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]


class Window(ApiModel):
    """When nodes may be moved: while a clock on the wall of the time zone reads a time from `start` to `end`."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    # Guarded, because the API server tries rules before it has refused what is missing.
                    "!has(self.start) || !has(self.end) || self.start != self.end",
                    "start and end are the same; for whole days write start 00:00 and end 24:00",
                ),
                rule(
                    "!has(self.start) || self.start != '24:00'",
                    "start must be before 24:00; the next day begins at 00:00",
                ),
            ]
        }
    )

    days: Annotated[list[Day], Field(max_length=7, json_schema_extra=SET_LIST)] = []
    """The days on which it opens. Empty: every day."""
    start: TimeOfDay
    """When it opens, as HH:MM."""
    end: TimeOfDay
    """When it closes, as HH:MM; on the next day if that is not after `start`. 24:00 is the end of the day."""
    time_zone: Annotated[
        str,
        Field(
            min_length=1,
            max_length=64,
            pattern=r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$",
            json_schema_extra=worded("write the IANA name of a time zone, such as Europe/Berlin"),
        ),
    ] = "UTC"
    """Whose clocks are meant: the IANA name of a time zone."""


class RolloutSpec(ApiModel):
    """What a fleet shall run, and how it gets there. Outrider never writes here."""

    component: Annotated[Component, Field(json_schema_extra={"x-kubernetes-validations": [IMMUTABLE]})]
    """The component whose versions the fleet runs. It cannot be changed."""
    version: Version
    """The version that the fleet shall run: a Published ComponentVersion of this namespace."""
    target: Target
    """The nodes of the fleet."""
    template: PodTemplate
    """The agent's pod, written as for a DaemonSet. With spec.delivery.host it may have no container of its own."""
    delivery: Delivery
    """How the version gets onto the node."""
    pre_pull: bool = False
    """Whether the nodes of the next batch get files and images before their agents are stopped. Changing it starts no
    run."""
    strategy: Strategy
    """How the fleet is moved."""
    health: Annotated[Health, Field(json_schema_extra={"default": {}})] = Health()
    """What healthy means."""
    analysis: Annotated[list[Analysis], Field(max_length=10, json_schema_extra=list_map("name"))] = []
    """What must hold of the world around between batches, and after the last one before the run completes."""
    on_failure: Literal["Rollback", "Pause"] = "Rollback"
    """What happens when more nodes fail than tolerated: all that the run moved goes back, or the run stops."""
    paused: bool = False
    """No new move, automatic rollback included. Half-made moves are finished, health is watched, time stands still."""
    frozen: bool = False
    """As `paused`, and Outrider changes no node at all, joining ones neither. Only half-made moves are finished."""
    not_before: Time | None = None
    """No run starts before. One that is under way goes on."""
    windows: Annotated[list[Window], Field(max_length=20, json_schema_extra=ATOMIC_LIST)] = []
    """When nodes may set out for another version: while any of the windows is open. Empty: at any time. Ways back are
    not bound by them: rollbacks, and a change of mind back to the stable version."""
    on_leave: Literal["Remove", "Keep"] = "Remove"
    """What becomes of the agent on a node that no longer belongs to the target. Remove: it is taken away, in batches
    like any move. Keep: it stays as it is."""
    joiners: Literal["Stable", "Wait"] = "Stable"
    """What a node gets that joins the fleet. Stable: the stable version, at once. Wait: nothing, until a run takes
    it."""
    deletion_policy: Literal["Orphan", "Delete"] = "Orphan"
    """What becomes of the agents when the Rollout is deleted. Orphan: they keep running, and a Rollout that is created
    again takes them over. Delete: all of them are taken away, at once."""
    run_history_limit: Annotated[int, Field(ge=1, le=50)] = 10
    """How many ended runs, with their RolloutBatches, are kept."""
    adoption: Adoption | None = None
    """An existing DaemonSet to take over. Removing this changes nothing: what was taken over stays so."""
    revision_history_limit: Annotated[int, Field(ge=0, le=20)] = 5
    """How many revisions of completed runs are kept, so that a person may have nodes taken back to their versions."""


RunKind = Literal["Rollout", "Rollback"]
RunCause = Literal["SpecChanged", "Retried", "RunFailed", "Aborted", "Requested"]
"""SpecChanged, Retried: of a Rollout. RunFailed, Aborted, Requested: of a Rollback."""
RunState = Literal["Running", "Paused", "Succeeded", "PartiallySucceeded", "Failed", "RolledBack", "Superseded"]
"""Running: batches are made. Paused: over the tolerance with onFailure Pause. The others are results."""


class Approval(ApiModel):
    """A person's yes to a canary step."""

    step: int
    """The step, from 1."""
    by: Annotated[str, Field(max_length=253)] = ""
    """Who approved it."""
    at: Time
    """When."""


class RunStatus(ApiModel):
    """One attempt to bring the fleet to a version."""

    id: int
    """Its number within the Rollout; numbers are never reused."""
    kind: RunKind
    """Rollout: to what the spec wants. Rollback: the nodes of a run back to what each came from, or was named."""
    cause: RunCause = "SpecChanged"
    """Why it started."""
    state: RunState
    """Running and Paused go on; the others are results."""
    version: str
    """The version that it is about: brought by a Rollout, taken away by a Rollback."""
    from_version: str = ""
    """The version that nodes leave: what was stable, or for a Rollback the one that is taken away."""
    to_version: str = ""
    """The version that nodes get. For a Rollback: what they came from, or what was named; `several` or `none` too."""
    revision: str
    """The revision that it brings (for a Rollback: the one that it takes away)."""
    from_revision: str | None = None
    """The stable revision when it started."""
    to_revision: str | None = None
    """For a Rollback to a named version: the revision that nodes get."""
    of_run: int | None = None
    """For a Rollback: the run that it takes back."""
    of_batches: Annotated[list[int], Field(max_length=100, json_schema_extra=ATOMIC_LIST)] = []
    """For a Rollback by request: the batches of that run that it takes back; empty for all."""
    holds: str | None = None
    """For a Rollback by request: the revision that the spec wanted. Nothing starts as long as it wants that."""
    started_at: Time
    """When it started."""
    started_by: str = ""
    """Who caused it: who asked for it, or the field manager that owns spec.version, or `outrider`."""
    requested_by: str | None = None
    """Who asked for it by an annotation, if somebody did."""
    aborted_by: str | None = None
    """Who asked to abort it, if somebody did."""
    retry_by: str | None = None
    """Who asked to retry after it: a complete new run starts as soon as nothing hinders it."""
    finished_at: Time | None = None
    """When it ended."""
    nodes: int = 0
    """The fleet's size when it started: what percentages are of."""
    late_nodes: int | None = None
    """The fleet's size when the completed run was opened again: what late batches are percentages of."""
    batches: int = 0
    """How many batches were started; in a window, how many RolloutBatches of up to 100 nodes were made."""
    batch: str = ""
    """For people: batches started / batches expected; in a window, RolloutBatches likewise."""
    updated: int = 0
    """Nodes of the fleet that run what the spec wants."""
    healthy: int = 0
    """Nodes that it moved and that are healthy."""
    failed: int = 0
    """Nodes that failed, those that went back included."""
    pending: int = 0
    """Nodes that are being moved or still to be moved."""
    skipped: int = 0
    """Nodes that it left out, each with a reason."""
    outdated: int = 0
    """Nodes of the fleet that do not run what the spec wants."""
    paused_since: Time | None = None
    """Since when it stands in a pause."""
    paused_seconds: int = 0
    """How long it stood in earlier pauses: does not count against deadlines."""
    reason: str = ""
    """Why it was ended or stopped, as a CamelCase word; empty while it goes on, and if it completed."""
    message: str = ""
    """What it is doing or waiting for."""
    approvals: Annotated[list[Approval], Field(max_length=20, json_schema_extra=ATOMIC_LIST)] = []
    """The canary steps that were approved, by whom and when."""
    awaits_approval: int | None = None
    """The canary step that it waits for somebody to approve."""


class RunRecord(ApiModel):
    """An ended run."""

    id: int
    """Its number."""
    kind: RunKind
    """Rollout or Rollback."""
    cause: RunCause = "SpecChanged"
    """Why it started."""
    version: str
    """The version that it was about: brought by a Rollout, taken away by a Rollback."""
    from_version: str = ""
    """The version that nodes left."""
    to_version: str = ""
    """The version that nodes got."""
    revision: str
    """The revision of `version`."""
    from_revision: str | None = None
    """The stable revision when it started."""
    of_run: int | None = None
    """For a Rollback: the run that it took back."""
    of_batches: Annotated[list[int], Field(max_length=100, json_schema_extra=ATOMIC_LIST)] = []
    """For a Rollback by request: the batches of that run; empty for all."""
    started_by: Annotated[str, Field(max_length=253)] = ""
    """Who caused it."""
    requested_by: Annotated[str, Field(max_length=253)] | None = None
    """Who asked for it by an annotation, if somebody did."""
    approvals: Annotated[list[Approval], Field(max_length=20, json_schema_extra=ATOMIC_LIST)] = []
    """The canary steps that were approved, by whom and when."""
    result: RunState
    """How it ended. RolledBack: nodes were taken back afterwards, all or as many as could be."""
    started_at: Time
    """When it started."""
    finished_at: Time
    """When it ended."""
    nodes: int = 0
    """The fleet's size when it started."""
    healthy: int = 0
    """Nodes that it moved and that were healthy at its end."""
    failed: int = 0
    """Nodes that failed."""
    skipped: int = 0
    """Nodes that it left out."""
    reason: Annotated[str, Field(max_length=64)] = ""
    """Why it ended so, as a CamelCase word; empty if it completed."""
    message: Annotated[str, Field(max_length=512)] = ""
    """Why it ended so, if it did not complete."""


class CompletedRevision(ApiModel):
    """A revision that a completed run brought, and that is kept."""

    revision: Annotated[str, Field(max_length=63)]
    """The revision."""
    version: Annotated[str, Field(max_length=63)]
    """Its version."""
    run: int
    """The last completed run that brought it."""


class Revisions(ApiModel):
    """The revisions that matter now."""

    stable: str | None = None
    """The revision of the last run that completed and was not taken back: what joining nodes get, and what failed ones
    return to."""
    stable_version: str | None = None
    """Its version."""
    current: str | None = None
    """The revision that the spec asks for."""
    target: str | None = None
    """The hash of the target whose nodes are all known. While spec.target has another, nodes without an
    assignment are no joiners, but moved in batches."""
    completed: Annotated[list[CompletedRevision], Field(max_length=20, json_schema_extra=ATOMIC_LIST)] = []
    """The last revisions that completed runs brought, newest first: what a person may have nodes taken back to."""


RequestKind = Literal["approve", "abort", "retry", "rollback", "reconcile"]
"""What a person may ask for by an annotation."""


class LastHandled(ApiModel):
    """For each kind of request the nonce of the last one that was answered."""

    approve: Annotated[str, Field(max_length=128)] | None = None
    """Of outrider.dev/approve-requested-at."""
    abort: Annotated[str, Field(max_length=128)] | None = None
    """Of outrider.dev/abort-requested-at."""
    retry: Annotated[str, Field(max_length=128)] | None = None
    """Of outrider.dev/retry-requested-at."""
    rollback: Annotated[str, Field(max_length=128)] | None = None
    """The `id` in outrider.dev/rollback-requested."""
    reconcile: Annotated[str, Field(max_length=128)] | None = None
    """Of outrider.dev/reconcile-requested-at."""


class RefusedRequest(ApiModel):
    """A request that could not be met."""

    request: RequestKind
    """What was asked for."""
    nonce: Annotated[str, Field(max_length=128)]
    """Which one, as in lastHandled."""
    by: Annotated[str, Field(max_length=253)] = ""
    """Who asked."""
    at: Time
    """When it was refused."""
    message: Annotated[str, Field(max_length=512)]
    """Why, and what to do."""


AdoptionState = Literal["Adopting", "Adopted", "GivingBack", "GivenBack", "Refused", "Gone"]
"""Adopting: its nodes are being labelled. Adopted: nodes move from it. GivingBack: they return to it. GivenBack: it is
as it was before. Refused: it was left as it is. Gone: it was deleted after it had been taken over."""


class AdoptionStatus(ApiModel):
    """How far the take-over of a DaemonSet got."""

    daemon_set: Annotated[str, Field(max_length=253)]
    """The DaemonSet."""
    uid: Annotated[str, Field(max_length=128)] = ""
    """Its UID."""
    state: AdoptionState
    """Adopting, Adopted, GivingBack, GivenBack, Refused or Gone."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """Why, or what to do next, as a sentence."""
    nodes: int = 0
    """Nodes that still run its pods, by their label."""
    original: Annotated[str, Field(max_length=65536)] = ""
    """What was changed of it, as it was before, in JSON; the same stands on it as an annotation."""
    reverts: int = 0
    """How often somebody took back what it needs, in a short time."""
    reverted_at: Time | None = None
    """When that was noticed last."""
    reverted_by: Annotated[str, Field(max_length=253)] = ""
    """The field manager that wrote last before."""


class NodeFailure(ApiModel):
    """A node that failed, for a first look; RolloutBatches have them all."""

    node: str
    """The node."""
    reason: str
    """Why, as a CamelCase word."""
    message: Annotated[str, Field(max_length=256)] = ""
    """Why, as a sentence."""


class RunningVersion(ApiModel):
    """On how many nodes of the fleet a version runs."""

    version: Annotated[str, Field(max_length=63)]
    """The version."""
    nodes: int
    """Nodes where an agent of it lives."""
    ready: int
    """Those of them where it is Ready."""


class LastFailure(ApiModel):
    """The last run in which nodes failed. It stays when the run is taken back, and when others follow."""

    run: int
    """The run's number."""
    version: str
    """The version that it brought."""
    at: Time
    """When the last of its nodes failed."""
    nodes: int
    """The fleet's size when it started."""
    failed: int
    """How many nodes failed."""
    message: Annotated[str, Field(max_length=512)] = ""
    """What came of it."""
    failures: Annotated[list[NodeFailure], Field(max_length=10, json_schema_extra=ATOMIC_LIST)] = []
    """At most 10 of the nodes."""


class RolloutStatus(ApiModel):
    """What is true of the fleet. Conditions are the contract, `phase` is for people."""

    observed_generation: int = -1
    """The metadata.generation that this status speaks of; -1 before the first reconciliation."""
    phase: str | None = None
    """Progressing, Paused, RollingBack, RolledBack, Completed, Stalled, Waiting or Deleting."""
    nodes: int = 0
    """The fleet's size now."""
    run: RunStatus | None = None
    """The newest run."""
    revisions: Revisions | None = None
    """The revisions that matter now."""
    running: str = ""
    """For people: what runs now, as versions with their numbers of nodes."""
    versions: Annotated[list[RunningVersion], Field(max_length=10, json_schema_extra=ATOMIC_LIST)] = []
    """What runs now, counted from the agents' pods: at most 10 versions, that of the most nodes first."""
    failed: int = 0
    """Nodes that failed in the newest run; of a Rollback, those of the run that it takes back as well."""
    failures: Annotated[list[NodeFailure], Field(max_length=10, json_schema_extra=ATOMIC_LIST)] = []
    """At most 10 of the nodes that `failed` counts."""
    last_failure: LastFailure | None = None
    """The last run in which nodes failed, whatever came after it."""
    history: Annotated[list[RunRecord], Field(max_length=50, json_schema_extra=ATOMIC_LIST)] = []
    """Ended runs, newest first."""
    adoption: AdoptionStatus | None = None
    """The DaemonSet that is taken over; absent without one."""
    last_handled: LastHandled | None = None
    """Which requests were answered."""
    last_refused: RefusedRequest | None = None
    """The last request that was refused, until one of its kind is met."""
    conditions: Conditions = []
    """Ready, Reconciling, Stalled, Progressing, Paused, Degraded, RolledBack, AdoptionReverted."""


_HAS_CONTAINERS = "has(self.spec.template.spec) && has(self.spec.template.spec.containers)"

ROLLOUT_RULES: list[dict[str, Any]] = [
    rule(
        "size(self.metadata.name) <= 40",
        "metadata.name may have at most 40 characters: the names of DaemonSets and pods are made from it",
    ),
    rule(
        f"has(self.spec.delivery.host) || ({_HAS_CONTAINERS} && size(self.spec.template.spec.containers) > 0)",
        "spec.template.spec.containers needs the agent's container; only with spec.delivery.host may there be none",
    ),
    rule(
        f"!has(self.spec.delivery.volume) || !({_HAS_CONTAINERS}) || self.spec.delivery.volume.containers.all(c, "
        "self.spec.template.spec.containers.exists(d, d.name == c))",
        "every container in spec.delivery.volume.containers must be one of spec.template.spec.containers",
    ),
    rule(
        f"!has(self.spec.delivery.image) || !({_HAS_CONTAINERS}) || self.spec.template.spec.containers.exists(d, "
        "d.name == self.spec.delivery.image.container)",
        "spec.delivery.image.container must be one of spec.template.spec.containers",
    ),
    rule(
        "!has(self.spec.health) || !has(self.spec.health.ignoreRestartsOf) || "
        f"self.spec.health.ignoreRestartsOf.all(c, ({_HAS_CONTAINERS} && "
        "self.spec.template.spec.containers.exists(d, d.name == c)) || "
        "(has(self.spec.template.spec) && has(self.spec.template.spec.initContainers) && "
        "self.spec.template.spec.initContainers.exists(d, d.name == c)))",
        "every container in spec.health.ignoreRestartsOf must be one of the template's containers or initContainers",
    ),
]


NodeState = Literal[
    "Pending",
    "Stopping",
    "Downloading",
    "Verifying",
    "Installing",
    "Starting",
    "Succeeded",
    "Failed",
    "Returning",
    "RolledBack",
    "Retrying",
    "Skipped",
]
"""Pending: not touched yet. Stopping: the old agent ends. Downloading: the artifact is pulled and verified. Verifying:
the same on a node that was prepared, where it lies already. Installing: it is installed on the node. Starting: the
agent starts and has to become healthy. Succeeded, Failed, RolledBack (failed, and healthy again on what it came
from) and Skipped are results; Returning is a failed node on its way back, Retrying one that goes back in order to be
tried again."""


class BatchNode(ApiModel):
    """One node of a batch: what it came from and where it goes. Frozen before the node is touched."""

    name: Annotated[str, Field(max_length=253)]
    """The node's name."""
    uid: Annotated[str, Field(max_length=128)]
    """The node's UID: a node that comes back under the same name is another one."""
    origin: Annotated[str, Field(alias="from", max_length=63)]
    """The assignment before: a revision, or `none`; empty for a node that had none yet."""
    to: Annotated[str, Field(max_length=63)]
    """The assignment after."""
    back: Annotated[str, Field(max_length=63)]
    """Where the node goes if it fails: its last revision from a completed run, or `none`."""


BatchPurpose = Literal["Update", "Removal"]
"""Update: the nodes are brought to another revision. Removal: they left the fleet, and the agent is taken from them."""


class RolloutBatchSpec(ApiModel):
    """The frozen membership of one batch (or one page of at most 100 nodes of it)."""

    rollout: Annotated[str, Field(max_length=253)]
    """The Rollout that it belongs to."""
    run: int
    """The run."""
    kind: RunKind
    """The run's kind."""
    purpose: BatchPurpose = "Update"
    """What is done with the nodes: brought to a revision, or rid of the agent because they left the fleet."""
    version: Annotated[str, Field(max_length=48)]
    """The run's version."""
    from_version: Annotated[str, Field(max_length=48)] = ""
    """The version that its nodes leave; `several` if there are more, `none` without."""
    to_version: Annotated[str, Field(max_length=48)] = ""
    """The version that its nodes get, likewise."""
    batch: int
    """The batch's number in the run, from 1; in a window every RolloutBatch has its own."""
    page: int = 1
    """The page's number in the batch, from 1."""
    step: int = 0
    """The canary step, from 1; 0 for a batch that is none."""
    started_at: Time
    """When the batch started."""
    started_by: Annotated[str, Field(max_length=253)] = ""
    """As in the run."""
    # Atomic here and in the status: one writer owns all entries, and owning each one doubles the object and the API
    # server's work (measured: 50 ms instead of 20 ms for each write of a status).
    nodes: Annotated[list[BatchNode], Field(max_length=100, json_schema_extra=ATOMIC_LIST)]
    """The nodes, in the order in which they are moved."""


class NodeResult(ApiModel):
    """What became of one node."""

    name: Annotated[str, Field(max_length=253)]
    """The node."""
    state: NodeState
    """How far it got."""
    reason: Annotated[str, Field(max_length=64)] = ""
    """Why, as a CamelCase word; empty when nothing is to be said."""
    message: Annotated[str, Field(max_length=256)] = ""
    """Why, as a sentence."""
    started_at: Time | None = None
    """When the node was first touched."""
    finished_at: Time | None = None
    """When the state became a result."""
    returning_since: Time | None = None
    """When a failed node set out for where it came from."""
    paused_seconds: int = 0
    """How long the run had stood in pauses when the node set out: does not count against its deadline."""


class RolloutBatchStatus(ApiModel):
    """What became of each node of a batch."""

    state: Literal["Running", "Finished"] = "Running"
    """Finished when every node has a result."""
    finished_at: Time | None = None
    """When every node of the batch had a result."""
    succeeded: int = 0
    """Nodes that are healthy on the new revision."""
    failed: int = 0
    """Nodes that failed, those that went back included."""
    skipped: int = 0
    """Nodes that were left out."""
    pending: int = 0
    """Nodes without a result yet."""
    nodes: Annotated[list[NodeResult], Field(max_length=100, json_schema_extra=ATOMIC_LIST)] = []
    """One entry per node of the spec."""
    analysis: Annotated[list[AnalysisResult], Field(max_length=10, json_schema_extra=ATOMIC_LIST)] = []
    """What spec.analysis has answered about the batch; on its first page."""


ROLLOUT_BATCH_RULES: list[dict[str, Any]] = [
    rule("self.spec == oldSelf.spec", "a batch's membership is frozen when it starts"),
]
