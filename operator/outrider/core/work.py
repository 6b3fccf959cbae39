"""One pass in the making: what the policies share, and the few questions that several of them ask."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from outrider.api.checks import AnalysisResult
from outrider.api.componentversion import Phase
from outrider.api.names import ASSIGNMENT_LEGACY, ASSIGNMENT_NONE, LABEL_ARCH, LABEL_OS
from outrider.api.rollout import (
    AdoptionStatus,
    BatchNode,
    CompletedRevision,
    LastFailure,
    LastHandled,
    NodeResult,
    RefusedRequest,
    RunRecord,
    RunStatus,
)
from outrider.core.compatibility import UNKNOWN, Answer, NodeFacts, VersionRules, is_compatible
from outrider.core.moves import alive_on, is_leaving, leaving, next_assignment, target_of
from outrider.core.plan import Action, Assign, CreateBatch, Event
from outrider.core.requirements import Breach, find_breach, relied_on
from outrider.core.scheduling import why_not_scheduled
from outrider.core.snapshot import Batch, Hindrance, Node, Pod, RolloutSnapshot
from outrider.core.states import BARRED, COMPLETED, NOT_BROUGHT, RESULTS, UNDECIDED


class Results(dict[str, NodeResult]):
    """What has become of the nodes of one batch so far: by name, and counted by state."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch.results)
        self.counts = Counter(batch.counts)
        self.changed = False

    def __setitem__(self, name: str, result: NodeResult) -> None:
        before = self[name]
        if result is not before:
            super().__setitem__(name, result)
            self.changed = True
            self.counts[before.state] -= 1
            self.counts[result.state] += 1

    def count(self, states: Collection[str]) -> int:
        """Return how many nodes are in one of some states."""
        return sum(count for state, count in self.counts.items() if state in states)

    @property
    def are_complete(self) -> bool:
        """Whether every node has its result."""
        return self.count(RESULTS) == len(self)


class _ResultsByBatch(dict[str, Results]):
    """The results of each batch by its name; those that nobody asks for are not looked at."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        super().__init__()
        self._batches = {batch.name: batch for batch in batches}

    def __missing__(self, name: str) -> Results:
        results = self[name] = Results(self._batches[name])
        return results


@dataclass
class Work:
    """One pass in the making: what the policies have found and decided so far. Lives only inside `plan_rollout`.

    `hindrance` is why no new run may start, and why one to this version stands still; `obstacle` why nodes of a failed
    run cannot return, or the run not go on; `doubt` what nobody can tell for too long; `deadlock` which components wait
    for each other. `shut` is why no node may set out for another version now (ways back are open), and `waiting` what
    the run waits for while nothing of it is under way. `unknown` are nodes, with why, whose check has told nothing
    until their deadline. `questions` are checks to be asked. `preparing` counts nodes of started batches that wait
    until they are prepared, which `preparations` see to. `moving` are without a working agent because of the run.
    `arrivals` are moves that only wait for a node's pods to end. `welcomed` counts joined nodes that lose a working
    agent in this pass, `returns_waiting` says that failed nodes whose agents work wait for their turn to go back.
    `target` is the hash of the target whose nodes are all known. `fits` remembers which kinds of nodes fit which
    revisions, `breaches` what would be broken on which. `form` says which nodes the DaemonSet that was taken over wants
    (None: there is none), and `adoption` is what the status will say of it.

    A fleet may be large, and a pass short: what most policies look at is counted, or sorted by what it is, once.
    """

    seen: RolloutSnapshot
    run: RunStatus | None
    stable: str | None
    stable_version: str | None
    history: list[RunRecord]
    results: dict[str, Results] = field(init=False)
    finished: dict[str, datetime | None] = field(init=False)
    urgent_batches: set[str] = field(default_factory=set)
    urgent_status: bool = False
    prerequisites: list[Action] = field(default_factory=list)
    new_batches: list[CreateBatch] = field(default_factory=list)
    moves: list[Assign] = field(default_factory=list)
    arrivals: dict[str, Assign] = field(default_factory=dict)
    clean_up: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    wakes: list[datetime] = field(default_factory=list)
    gate: str = ""
    ended: bool = False
    hindrance: Hindrance | None = None
    obstacle: Hindrance | None = None
    doubt: Hindrance | None = None
    unknown: list[tuple[str, str]] = field(default_factory=list)
    analyses: dict[str, list[AnalysisResult]] = field(default_factory=dict)
    questions: list[Action] = field(default_factory=list)
    preparations: list[Action] = field(default_factory=list)
    preparing: int = 0
    moving: int = 0
    deadlock: Hindrance | None = None
    target: str | None = None
    shut: Hindrance | None = None
    welcomed: int = 0
    returns_waiting: bool = False
    waiting: Hindrance | None = None
    fits: dict[tuple[object, ...], Answer] = field(default_factory=dict)
    last_failure: LastFailure | None = None
    adoption: AdoptionStatus | None = None
    form: str | None = None
    breaches: dict[tuple[object, ...], Breach | None] = field(default_factory=dict)
    _touched: dict[int, frozenset[str]] = field(default_factory=dict)
    _newest: dict[int, dict[tuple[str, str], BatchNode]] = field(default_factory=dict)
    completed: list[CompletedRevision] = field(default_factory=list)
    last_handled: LastHandled | None = None
    last_refused: RefusedRequest | None = None

    def __post_init__(self) -> None:
        """Begin with what is recorded."""
        self.results = _ResultsByBatch(self.seen.batches)
        self.finished = {batch.name: batch.status.finished_at for batch in self.seen.batches}

    @property
    def spec_paused(self) -> bool:
        """Whether a person has paused the Rollout, or frozen it."""
        return self.seen.spec.paused or self.seen.spec.frozen

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

    @cached_property
    def by_assignment(self) -> Mapping[str | None, list[Node]]:
        """All nodes by their assignment, those that are no members included."""
        found: dict[str | None, list[Node]] = {}
        key = self.seen.assignment_key
        for node in self.seen.nodes.values():
            assignment = node.labels.get(key)
            if assignment in found:
                found[assignment].append(node)
            else:
                found[assignment] = [node]
        return found

    @property
    def nodes_between(self) -> Iterator[Node]:
        """All nodes that are between two revisions."""
        return (node for assignment, nodes in self.by_assignment.items() if is_leaving(assignment) for node in nodes)

    def members_at(self, assignment: str | None) -> Iterator[Node]:
        """Iterate over the nodes of the target that have an assignment."""
        members = self.seen.members
        return (node for node in self.by_assignment.get(assignment, ()) if node.name in members)

    def count_members_at(self, assignment: str | None) -> int:
        """Return how many nodes of the target have an assignment."""
        if len(self.seen.members) == len(self.seen.nodes):
            return len(self.by_assignment.get(assignment, ()))
        return sum(1 for _ in self.members_at(assignment))

    @cached_property
    def _batches_by_run(self) -> Mapping[int, list[Batch]]:
        found: dict[int, list[Batch]] = {}
        for batch in self.seen.batches:
            found.setdefault(batch.spec.run, []).append(batch)
        return found

    def run_batches(self, run: int | None = None) -> list[Batch]:
        """Return the stored batches of a run (default: the present one), oldest first."""
        wanted = run if run is not None else (self.run.id if self.run else 0)
        return self._batches_by_run.get(wanted, [])

    def update_batches(self, run: int | None = None) -> list[Batch]:
        """Return the stored batches that a run is judged by: not those that take the agent from nodes that left."""
        return [batch for batch in self.run_batches(run) if batch.spec.purpose == "Update"]

    def entries(
        self, states: Collection[str] = (), run: int | None = None, *, updates: bool = False
    ) -> Iterator[tuple[Batch, BatchNode, NodeResult]]:
        """Iterate over the node entries of a run (default: the present one) with their results so far.

        All, or those in some states: batches without any in those states cost nothing. With `updates` without nodes
        that left the fleet.
        """
        for batch in self.update_batches(run) if updates else self.run_batches(run):
            results = self.results[batch.name]
            if states and not results.count(states):
                continue
            for entry in batch.spec.nodes:
                result = results[entry.name]
                if not states or result.state in states:
                    yield batch, entry, result

    def count(self, states: Collection[str] = (), *, updates: bool = False) -> int:
        """Return how many node entries the present run has: all, or those in some states."""
        batches = self.update_batches() if updates else self.run_batches()
        pages = (self.results[batch.name] for batch in batches)
        return sum(results.count(states) if states else len(results) for results in pages)

    def states(self, new: Collection[tuple[str, str]] = ()) -> Counter[str]:
        """Count the nodes of the present run by state, each once: who was left out first and moved later is moved.

        `new` are the nodes (name and UID) of batches that are made in this pass. Who left the fleet does not count.
        """
        found = Counter[str]({"Pending": len(new)})
        updates = self.update_batches()
        for batch in updates:
            found.update(self.results[batch.name].counts)
        if new or len(updates) < len(self.run_batches()) or self.count() != len(self.touched):
            found.subtract(
                result.state
                for _, entry, result in self.entries(NOT_BROUGHT, updates=True)
                if (entry.name, entry.uid) in new or self.is_superseded(entry, result)
            )
        return found

    def is_superseded(self, entry: BatchNode, result: NodeResult, run: int | None = None) -> bool:
        """Tell whether a later batch of the same run has the node again: then that one tells how it is."""
        if result.state not in NOT_BROUGHT:
            return False
        number = run if run is not None else (self.run.id if self.run else 0)
        if number not in self._newest:
            self._newest[number] = {
                (each.name, each.uid): each for batch in self.update_batches(number) for each in batch.spec.nodes
            }
        return self._newest[number][entry.name, entry.uid] is not entry

    @property
    def touched(self) -> frozenset[str]:
        """The names of the nodes that the stored batches of the present run name."""
        run = self.run.id if self.run else 0
        if run not in self._touched:
            self._touched[run] = frozenset().union(*(batch.results for batch in self.run_batches()))
        return self._touched[run]

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


def find_phase(work: Work, revision: str | None) -> Phase | None:
    """Return the phase of a revision's version, of the run's also without its DaemonSet; None if nobody knows it."""
    run, seen = work.run, work.seen
    if run is not None and revision == run.revision and revision not in seen.revisions:
        state = seen.versions.get(run.version)
        return state.phase if state is not None else None
    return seen.phase_of(revision or "")


def is_barred(work: Work, revision: str | None) -> bool:
    """Tell whether no node may be sent to a revision, because its version is Withdrawn or Revoked."""
    return find_phase(work, revision) in BARRED


def check_fit(work: Work, node: Node, revision: str) -> Answer:
    """Tell whether a revision's version can run on a node, by the version's rules."""
    rules = work.seen.rules.get(revision)
    if rules is None:
        return Answer("Yes")
    os, arch = node.labels.get(LABEL_OS, ""), node.labels.get(LABEL_ARCH, "")
    key: tuple[object, ...] = (revision, os, arch)
    components: tuple[tuple[str, str], ...] = ()
    if not rules.only_platforms:
        components = _components_on(work, node, rules)
        key = (*key, node.os_image, node.kernel_version, node.kubelet_version, components)
    answer = work.fits.get(key)
    if answer is None:
        facts = NodeFacts(os, arch, node.os_image, node.kernel_version, node.kubelet_version, dict(components))
        answer = work.fits[key] = is_compatible(facts, rules)
    return answer


def _components_on(work: Work, node: Node, rules: VersionRules) -> tuple[tuple[str, str], ...]:
    """Return the required components that are assigned to a node, each with its version.

    One on its way to another version, not found healthy in it yet, or of a revision that nobody knows, is there with an
    unknown version.
    """
    found = []
    for component, _ in rules.requires:
        neighbour = work.seen.neighbours[component]
        assignment = node.labels.get(neighbour.key)
        if assignment is not None and assignment != ASSIGNMENT_NONE:
            is_settled = node.name not in neighbour.unsettled
            found.append((component, neighbour.versions.get(assignment, UNKNOWN) if is_settled else UNKNOWN))
    return tuple(found)


def check_breach(work: Work, node: Node, target: str) -> Breach | None:
    """Return what another component on a node requires that a move to revision `target` would take away, if any."""
    seen = work.seen
    if not seen.neighbours:
        return None
    labels = tuple(node.labels.get(neighbour.key) for neighbour in seen.neighbours.values())
    key = (target, node.labels.get(seen.assignment_key), labels)
    if key not in work.breaches:
        work.breaches[key] = find_breach(seen, node, target)
    return work.breaches[key]


def why_skip(work: Work, node: Node) -> tuple[str, str] | None:
    """Return reason and message why a node must not lose its agent now, or None."""
    if work.run is not None and (fit := check_fit(work, node, work.run.revision)).verdict != "Yes":
        return fit.reason, fit.message
    if work.run is not None and (breach := check_breach(work, node, work.run.revision)) is not None:
        return "RequiredByOther", breach.tell(work.seen.spec.component, work.run.version)
    if not node.ready:
        return "NodeNotReady", "the node is not Ready; it is moved when it is again"
    if why := why_not_scheduled(work.seen.spec.template.get("spec") or {}, node):
        return "WouldNotSchedule", why
    return None


def is_direct(run: RunStatus) -> bool:
    """Tell whether a run goes without canary and intervals: rollbacks, and returns to what was stable."""
    return run.kind == "Rollback" or run.revision == run.from_revision


def is_requested(run: RunStatus) -> bool:
    """Tell whether a run takes nodes back because a person asked for it, and not because another run failed."""
    return run.kind == "Rollback" and run.cause == "Requested"


def is_for(run: RunStatus, wanted: str) -> bool:
    """Tell whether a run is the answer to what the spec wants, so that no other starts.

    A Rollback is, too: it holds until something else is wanted, or somebody asks to retry.
    """
    return (run.holds or run.revision) == wanted and run.retry_by is None


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
    bad -= {kept.revision for kept in work.completed}
    return frozenset(bad - {work.stable, ASSIGNMENT_LEGACY})


def revision_to_return_to(work: Work, node: Node) -> str:
    """Return where a node goes if what comes next fails on it: what it runs, unless that is bad, else the stable.

    What is Revoked is no way back while there is another. What is Withdrawn may come back in time.
    """
    assignment = work.assignment(node)
    stable = work.stable or ASSIGNMENT_NONE
    if assignment is None and (work.seen.spec.joiners == "Wait" or find_phase(work, stable) == "Revoked"):
        return ASSIGNMENT_NONE
    if assignment is None or assignment not in work.seen.revisions or assignment in bad_revisions(work):
        return stable
    if find_phase(work, assignment) == "Revoked" and work.stable and find_phase(work, stable) != "Revoked":
        return stable
    return assignment


def name_versions(work: Work, revisions: Iterable[str]) -> str:
    """Return the version of some revisions: `several` if they have more than one, `none` for no agent."""
    found = {
        "none" if revision in {"", ASSIGNMENT_NONE} else work.seen.revisions.get(revision, "unknown")
        for revision in revisions
    }
    return "several" if len(found) > 1 else found.pop() if found else "none"


def count_between_elsewhere(work: Work) -> int:
    """Return how many nodes are on their way, but not as part of the present run: they are without an agent as well.

    Dead ones do not count: nobody knows when they arrive, and they run nothing anyway. Nor do those whose old agents
    have not ended for as long as a node may take to become healthy: they would hold up everybody for ever.
    """
    between = {(node.name, node.uid) for node in work.nodes_between if node.ready}
    if between:
        between -= {(entry.name, entry.uid) for _, entry, _ in work.entries(UNDECIDED)}
    return sum(not is_stuck(work, name) for name, _ in between)


def is_stuck(work: Work, node: str) -> bool:
    """Tell whether a node has been between two revisions for longer than one may take to become healthy."""
    since = work.seen.leaving_since.get(node)
    if since is None:
        return False
    until = since + timedelta(seconds=work.seen.spec.health.timeout_seconds)
    if work.seen.now < until:
        work.wakes.append(until)
    return work.seen.now >= until


def same_node(work: Work, entry: BatchNode) -> Node | None:
    """Return the node of an entry unless it is gone; under another UID it is another node."""
    node = work.seen.nodes.get(entry.name)
    return node if node is not None and node.uid == entry.uid else None


def move(work: Work, node: Node, target: str) -> None:
    """Bring a node one step nearer to `target`, if it can take one.

    None sets out for what is Withdrawn or Revoked: whoever asks for that gets nothing. Who is on the way arrives. While
    the answer to an earlier step is due nobody takes another.
    """
    if node.name in work.seen.under_way:
        return
    assignment = work.assignment(node)
    if is_barred(work, target) and (assignment is None or target_of(assignment) != target):
        return
    live = alive_on(work.pods(node.name))
    by_legacy = work.form is not None and work.form != "Last"
    if by_legacy and not work.seen.joiners and assignment is None and target == ASSIGNMENT_LEGACY:
        # Labelled or not, the same DaemonSet wants it: its pod stays.
        step = target if live <= {ASSIGNMENT_LEGACY} else None
    else:
        served = by_legacy or bool(work.seen.joiners) or work.seen.joiners_elsewhere
        step = next_assignment(assignment, target, live, served_by_joiners=served)
    if step is None and assignment == leaving(target):
        work.arrivals[node.name] = Assign(node.name, node.uid, assignment, target)
    if step is not None:
        # Who is on the way arrives; setting out depends on what else is on the node.
        others = () if assignment is not None and is_leaving(assignment) else relied_on(work.seen, node, target)
        work.moves.append(Assign(node.name, node.uid, assignment, step, others))
