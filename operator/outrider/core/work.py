"""One pass in the making: what the policies share, and the few questions that several of them ask."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from outrider.api.names import ASSIGNMENT_NONE, LABEL_ARCH, LABEL_OS, ROLE_REVISION
from outrider.api.rollout import BatchNode, NodeResult, RunRecord, RunStatus
from outrider.core.moves import is_leaving, next_assignment
from outrider.core.plan import Action, Assign, CreateBatch, Event
from outrider.core.scheduling import why_not_scheduled
from outrider.core.snapshot import Batch, Node, Pod, RolloutSnapshot
from outrider.core.states import COMPLETED


@dataclass
class Work:
    """One pass in the making: what the policies have found and decided so far. Lives only inside `plan_rollout`."""

    seen: RolloutSnapshot
    run: RunStatus | None
    stable: str | None
    stable_version: str | None
    history: list[RunRecord]
    results: dict[str, dict[str, NodeResult]] = field(default_factory=dict)
    finished: dict[str, datetime | None] = field(default_factory=dict)
    urgent_batches: set[str] = field(default_factory=set)
    urgent_status: bool = False
    prerequisites: list[Action] = field(default_factory=list)
    new_batches: list[CreateBatch] = field(default_factory=list)
    moves: list[Assign] = field(default_factory=list)
    clean_up: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    wakes: list[datetime] = field(default_factory=list)
    gate: str = ""
    ended: bool = False

    @property
    def spec_paused(self) -> bool:
        """Whether a person has paused the Rollout."""
        return self.seen.spec.paused

    @property
    def is_active(self) -> bool:
        """Whether there is a run that makes batches."""
        return self.run is not None and self.run.state == "Running"

    def assignment(self, node: Node) -> str | None:
        """Return the node's assignment."""
        return node.labels.get(self.seen.assignment_key)

    def pods(self, node: str) -> tuple[Pod, ...]:
        """Return the agents' pods on a node."""
        return self.seen.pods.get(node, ())

    def members(self) -> Iterator[Node]:
        """Iterate over the nodes of the target."""
        return (self.seen.nodes[name] for name in self.seen.members)

    def run_batches(self, run: int | None = None) -> list[Batch]:
        """Return the stored batches of a run (default: the present one), oldest first."""
        wanted = run if run is not None else (self.run.id if self.run else 0)
        return [batch for batch in self.seen.batches if batch.spec.run == wanted]

    def entries(self) -> Iterator[tuple[Batch, BatchNode, NodeResult]]:
        """Iterate over all node entries of the present run with their results so far."""
        for batch in self.run_batches():
            results = self.results[batch.name]
            for entry in batch.spec.nodes:
                yield batch, entry, results[entry.name]

    def paused_seconds(self) -> int:
        """Return how long the run has stood in pauses, the present one included."""
        if self.run is None:
            return 0
        present = (self.seen.now - self.run.paused_since).total_seconds() if self.run.paused_since else 0
        return self.run.paused_seconds + int(present)

    def update_run(self, **changes: object) -> None:
        """Change fields of the run's status."""
        assert self.run is not None  # noqa: S101 - callers have a run
        self.run = self.run.model_copy(update=changes)

    def say(self, kind: str, reason: str, message: str) -> None:
        """Add an event."""
        self.events.append(Event("Warning" if kind == "Warning" else "Normal", reason, message))


def why_no_artifact(work: Work, node: Node, revision: str) -> str:
    """Return why a revision has nothing for a node, as half a sentence; "" if it has."""
    platforms = work.seen.platforms.get(revision)
    os, arch = node.labels.get(LABEL_OS), node.labels.get(LABEL_ARCH)
    if not platforms or os is None or arch is None or f"{os}/{arch}" in platforms:
        return ""
    return f"the version has no artifact for {os}/{arch}, only for {', '.join(sorted(platforms))}"


def why_skip(work: Work, node: Node) -> tuple[str, str] | None:
    """Return reason and message why a node must not lose its agent now, or None."""
    if work.run is not None and (why := why_no_artifact(work, node, work.run.revision)):
        return "NoArtifact", why
    if not node.ready:
        return "NodeNotReady", "the node is not Ready; it is moved when it is again"
    if why := why_not_scheduled(work.seen.spec.template.get("spec") or {}, node):
        return "WouldNotSchedule", why
    return None


def is_direct(run: RunStatus) -> bool:
    """Tell whether a run goes without canary and intervals: rollbacks, and returns to what was stable."""
    return run.kind == "Rollback" or run.revision == run.from_revision


def bad_revisions(work: Work) -> frozenset[str]:
    """Return the revisions that no run ever completed: nobody stays on them when a run is taken back.

    What is not known to be bad is left alone: a Rollout that was created anew finds nodes on revisions that it has no
    record of, and they were somebody's choice.
    """
    records = [record for record in work.history if record.kind == "Rollout"]
    bad = {record.revision for record in records if record.result not in COMPLETED}
    if work.run is not None:
        bad.add(work.run.revision)
    bad -= {record.revision for record in records if record.result in COMPLETED}
    return frozenset(bad - {work.stable})


def revision_to_return_to(work: Work, node: Node) -> str:
    """Return where a node goes if what comes next fails on it: what it runs, unless that is bad, else the stable."""
    assignment = work.assignment(node)
    if assignment is not None and assignment in work.seen.revisions and assignment not in bad_revisions(work):
        return assignment
    return work.stable or ASSIGNMENT_NONE


def count_between_elsewhere(work: Work) -> int:
    """Return how many nodes are on their way, but not as part of the present run: they are without an agent as well.

    Dead ones do not count: nobody knows when they arrive, and they run nothing anyway.
    """
    ours = {entry.name for _, entry, _ in work.entries()}
    return sum(
        node.ready and name not in ours and is_leaving(work.assignment(node)) for name, node in work.seen.nodes.items()
    )


def same_node(work: Work, entry: BatchNode) -> Node | None:
    """Return the node of an entry unless it is gone; under another UID it is another node."""
    node = work.seen.nodes.get(entry.name)
    return node if node is not None and node.uid == entry.uid else None


def move(work: Work, node: Node, target: str) -> None:
    """Bring a node one step nearer to `target`, if it can take one."""
    assignment = work.assignment(node)
    # A joiners' pod is another agent, even where it is of the same revision.
    live = {
        pod.revision if pod.role == ROLE_REVISION else f"{pod.role}/{pod.revision}"
        for pod in work.pods(node.name)
        if pod.live
    }
    step = next_assignment(assignment, target, live, served_by_joiners=bool(work.seen.joiners))
    if step is not None:
        work.moves.append(Assign(node.name, node.uid, assignment, step))
