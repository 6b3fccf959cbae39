"""What a Rollout would do: the planner itself, driven in memory through a world in which everything goes well.

Assumptions:
- Every node that is moved runs its new agent, Ready, `node_seconds` after it was touched, and stays healthy.
- Nothing else changes: no node joins, leaves, or changes its labels; nobody changes the spec.
- Whoever has to say yes says it at once: approvals, checks and analyses take no time, and a pause is over.

Nothing of the outcome is decided here: order, batches, sizes, gates and who is left out are what `plan_rollout` says
when it is asked again and again about that world.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Final, Literal

from outrider.api.names import ASSIGNMENT_NONE
from outrider.api.rollout import RolloutBatchStatus, RolloutSpec, RolloutStatus
from outrider.core import batches as arithmetic
from outrider.core import plan as actions
from outrider.core.adoption import gives_back, nodes_in_the_way, patched
from outrider.core.compatibility import VersionRules
from outrider.core.moves import is_leaving, target_of
from outrider.core.plan import Plan
from outrider.core.revision import joiners_id
from outrider.core.rollout import plan_rollout
from outrider.core.selection import remaining_nodes
from outrider.core.snapshot import Batch, Legacy, Node, Pod, RolloutSnapshot
from outrider.core.states import COMPLETED, ONGOING
from outrider.core.words import count_nodes
from outrider.core.work import Work, bad_revisions, why_skip

NODE_SECONDS: Final = 10.0
"""What a node is taken to need from its first touch until its new agent is Ready."""

_PATIENCE: Final = timedelta(days=60)
"""A world in which nothing has happened for so long waits for what never comes: a window that never opens, say."""

Outcome = Literal["Completes", "NothingToDo", "Blocked"]
_MUCH: Final = 400_000
"""So many looks at a node may be ahead before the planner is shown only those that matter next: some seconds."""
_SHOWN: Final = 100
"""It is shown at least so many of those that come next."""

Planner = Callable[[RolloutSnapshot], Plan]


@dataclass(frozen=True, slots=True)
class Move:
    """One node of a previewed batch; versions are "" where nothing runs."""

    node: str
    from_version: str
    to_version: str


@dataclass(frozen=True, slots=True)
class Step:
    """One batch as it would be: when it starts and ends, in seconds from now, and who is in it.

    `gates` are what comes after it, before the next one starts; `waits` how long that takes, as far as it is known.
    """

    run: int
    batch: int
    canary_step: int
    starts: float
    ends: float | None
    moves: tuple[Move, ...]
    waits: float = 0.0
    gates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A node that the run would leave out, and why."""

    node: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Preview:
    """What a Rollout would do from now on until its run ends.

    `outcome` is Completes, NothingToDo, or Blocked: then `reason` and `message` say by what. `steps` are the batches
    from the one that is under way; `finished` counts those of the run before it. `before` is what has to happen before
    the first of them starts.
    """

    namespace: str
    name: str
    version: str
    outcome: Outcome
    reason: str
    message: str
    run: int | None
    kind: str
    nodes: int
    updated: int
    finished: int
    steps: tuple[Step, ...]
    left_out: tuple[LeftOut, ...]
    owned_by_others: Mapping[str, tuple[str, ...]]
    tolerance: str
    before: tuple[str, ...]
    approvals: int
    seconds: float
    assumptions: tuple[str, ...]

    @property
    def groups(self) -> Mapping[tuple[str, str], int]:
        """How many nodes go from which version to which."""
        counts: dict[tuple[str, str], int] = {}
        for step in self.steps:
            for move in step.moves:
                pair = move.from_version, move.to_version
                counts[pair] = counts.get(pair, 0) + 1
        return counts


def preview_rollout(
    seen: RolloutSnapshot,
    *,
    node_seconds: float = NODE_SECONDS,
    planner: Planner = plan_rollout,
    much: int = _MUCH,
) -> Preview:
    """Return what a Rollout would do from now on. From `much` looks at a node on, the planner is shown only a part."""
    world = _World(seen, node_seconds, planner, much)
    world.run_dry()
    return _report(seen, world, node_seconds)


def assume_consent(spec: RolloutSpec) -> RolloutSpec:
    """Return a spec as it would be if everybody who may say no said yes at once."""
    stated = spec.to_api()
    for field in ("paused", "frozen", "analysis", "prePull"):
        stated.pop(field, None)
    stated.get("health", {}).pop("http", None)
    for step in stated["strategy"].get("canary", {}).get("steps", []):
        step.pop("requireApproval", None)
    return RolloutSpec.model_validate(stated)


class _World:
    """A fleet that does at once what it is told, and is well."""

    def __init__(self, seen: RolloutSnapshot, node_seconds: float, planner: Planner, much: int) -> None:
        self.start = self.now = seen.now
        self.status: RolloutStatus = seen.status
        self.nodes: dict[str, Node] = dict(seen.nodes)
        self.batches: dict[str, Batch] = {batch.name: batch for batch in seen.batches}
        self.revisions: dict[str, str] = dict(seen.revisions)
        self.rules: dict[str, VersionRules] = dict(seen.rules)
        self.joiners: tuple[str, ...] = seen.joiners
        self.legacy = seen.legacy
        self.waits: list[tuple[datetime, str]] = []
        self._seen = seen
        self._planner = planner
        self._much = much
        self._coming: deque[str] | None = None
        self._node_seconds = timedelta(seconds=node_seconds)
        self._spec = assume_consent(seen.spec)
        self._key = seen.assignment_key
        self._finalizer = True
        self.pods: dict[str, tuple[Pod, ...]] = {}
        for name, node in self.nodes.items():
            if node.ready:
                self._start_agent(name, node.labels.get(self._key))
            else:
                self.pods[name] = seen.pods.get(name, ())

    def run_dry(self) -> None:
        """Plan and do as planned until nothing happens any more."""
        last = self.now
        while self.now - last < _PATIENCE:
            if self._coming is None and self._is_long():
                self._begin_to_show_parts()
            plan = self._planner(self._look())
            if self._carry_out(plan):
                last = self.now
                continue
            if self._has_ended() or plan.wake_at is None or plan.wake_at <= self.now:
                return
            self.waits.append((self.now, _tell_waiting(plan.status)))
            self.now = plan.wake_at

    def _has_ended(self) -> bool:
        run = self.status.run
        return run is not None and run.revision == self._seen.wanted and run.state not in ONGOING

    def _is_long(self) -> bool:
        """Tell whether batches of the same kind follow now, and so many that looking at all nodes takes too long.

        Canary steps choose among all nodes, and a window counts all of them.
        """
        run, strategy = self.status.run, self._spec.strategy
        if run is None or run.kind != "Rollout" or run.state != "Running" or strategy.type == "Full":
            return False
        if strategy.rolling is not None and strategy.rolling.max_unavailable is not None:
            return False
        done = max((batch.spec.step for batch in self.batches.values() if batch.spec.run == run.id), default=0)
        if run.revision != run.from_revision and done < arithmetic.canary_steps(self._spec):
            return False
        batches = len(self._seen.members) // arithmetic.rolling_size(self._spec, run.nodes)
        return batches * len(self.nodes) >= self._much

    def _begin_to_show_parts(self) -> None:
        """Put the nodes that the run has still to take in the planner's own order.

        In this world nodes that cannot be moved now never can: they are shown again once the others had their turn.
        """
        run, revisions = self.status.run, self.status.revisions
        assert run is not None  # noqa: S101 - `_is_long` has looked
        work = Work(
            seen=self._look(),
            run=run,
            stable=revisions.stable if revisions else None,
            stable_version=revisions.stable_version if revisions else None,
            history=list(self.status.history),
        )
        coming = [node for node in remaining_nodes(work) if why_skip(work, node) is None]
        untried = bad_revisions(work)
        if any(work.assignment(node) in untried for node in coming):
            coming = []  # these come first, and it takes more to tell which of them
        ordered = arithmetic.order_nodes(coming, self._seen.uid, run.id)
        self._coming = deque(node.name for node in ordered)

    def _show(self) -> tuple[frozenset[str], list[Batch]] | None:
        """Return the members and batches that matter next; None if all do."""
        run = self.status.run
        if not self._coming or run is None:
            return None
        size = arithmetic.rolling_size(self._spec, run.nodes)
        ours = [batch for batch in self.batches.values() if batch.spec.run == run.id]
        last = max((batch.spec.batch for batch in ours), default=0)
        # The last one finished counts for what follows it, and the steps for what has been done.
        told = [batch for batch in ours if batch.spec.step or batch.spec.batch >= last - 1]
        open_nodes = {entry.name for batch in told if batch.status.finished_at is None for entry in batch.spec.nodes}
        while self._coming and self._coming[0] in open_nodes:
            self._coming.popleft()
        if len(self._coming) <= size:
            return None
        shown = open_nodes.union(islice(self._coming, max(_SHOWN, 3 * size)))
        return frozenset(shown), told

    def _look(self) -> RolloutSnapshot:
        part = self._show()
        if part is not None:
            members, told = part
            return replace(
                self._look_at_all(),
                nodes={name: self.nodes[name] for name in members},
                pods={name: self.pods[name] for name in members},
                members=members,
                owned_by_others={},
                batches=tuple(told),
            )
        return self._look_at_all()

    def _look_at_all(self) -> RolloutSnapshot:
        return replace(
            self._seen,
            now=self.now,
            has_finalizer=self._finalizer,
            spec=self._spec,
            status=self.status,
            nodes=self.nodes,
            pods=self.pods,
            batches=tuple(self.batches.values()),
            revisions=self.revisions,
            rules=self.rules,
            joiners=self.joiners,
            legacy=self._look_at_legacy(),
            assigned=self._seen.assigned | self.revisions.keys(),
            verify_after=None,
            observing_since=None,
            preparing={},
            prepare_sets={},
        )

    def _look_at_legacy(self) -> Legacy | None:
        """Return the DaemonSet that was taken over; nodes that have come back do not stand in its way any more."""
        if self.legacy is None or not self.legacy.in_the_way:
            return self.legacy
        others = {name for name in self.legacy.in_the_way if name not in self.nodes}
        still = nodes_in_the_way(self.legacy, self._key, self.nodes.values())
        return replace(self.legacy, in_the_way=tuple(sorted({*others, *still})))

    def _carry_out(self, plan: Plan) -> bool:
        """Do what a plan says; tell whether that makes another plan possible at the same moment."""
        before, after = self.status.run, plan.status.run
        is_news = (before is None) != (after is None) or (
            before is not None and after is not None and (before.id, before.state) != (after.id, after.state)
        )
        self.status = plan.status
        for action in plan.actions:
            match action:
                case actions.CreateRevision(revision):
                    self.revisions = {**self.revisions, revision: self._spec.version}
                    if self._seen.wanted_rules is not None:
                        self.rules = {**self.rules, revision: self._seen.wanted_rules}
                case actions.CreateJoiners(revision):
                    self.joiners = (*self.joiners, joiners_id(revision, self._seen.target_hash))
                case actions.DeleteJoiners(joiners):
                    self.joiners = tuple(other for other in self.joiners if other != joiners)
                case actions.ChangeAdopted(_, _, operations) if self.legacy is not None:
                    self.legacy = patched(self.legacy, operations)
                case actions.CreateBatch(name, spec):
                    self.batches[name] = Batch(name, spec, RolloutBatchStatus())
                case actions.WriteBatch(name, status):
                    self.batches[name] = replace(self.batches[name], status=status)
                    continue
                case actions.DeleteBatch(name):
                    self.batches.pop(name, None)
                    continue
                case actions.Assign(name, _, _, goal):
                    node = self.nodes[name]
                    labels = {key: value for key, value in node.labels.items() if key != self._key}
                    self.nodes[name] = replace(node, labels=labels if goal is None else {**labels, self._key: goal})
                    self._start_agent(name, goal)
                case _:
                    continue
            is_news = True
        return is_news

    def _start_agent(self, node: str, assignment: str | None) -> None:
        if assignment is None or assignment == ASSIGNMENT_NONE or is_leaving(assignment):
            self.pods[node] = ()
            return
        known = next((pod for pod in self._seen.pods.get(node, ()) if pod.revision == assignment), None)
        is_well = known is not None and known.live and not known.terminating and known.ready_since is not None
        if known is not None and is_well and self.now == self.start:
            self.pods[node] = (known,)
            return
        # Ready in the future: the planner says itself when to look again.
        name = f"{node}-agent"
        self.pods[node] = (Pod(name, name, node, assignment, ready_since=self.now + self._node_seconds),)


def _tell_waiting(status: RolloutStatus) -> str:
    if status.run is not None and status.run.message:
        return status.run.message
    return next((condition.message for condition in status.conditions if condition.type == "Ready"), "")


def _report(seen: RolloutSnapshot, world: _World, node_seconds: float) -> Preview:
    run = world.status.run
    number = run.id if run is not None else 0
    steps = _find_steps(seen, world)
    is_done = run is not None and run.revision == seen.wanted and run.state in COMPLETED
    if gives_back(seen):
        is_done = world.status.adoption is not None and world.status.adoption.state == "GivenBack"
    outcome: Outcome = "Blocked" if not is_done else "Completes" if steps else "NothingToDo"
    ready = next((condition for condition in world.status.conditions if condition.type == "Ready"), None)
    is_told = ready is not None and outcome == "Blocked"
    owners: dict[str, list[str]] = {}
    for node, owner in seen.owned_by_others.items():
        owners.setdefault(owner, []).append(node)
    ended = {batch.spec.batch for batch in seen.batches if batch.spec.run == number and batch.status.finished_at}
    return Preview(
        namespace=seen.namespace,
        name=seen.name,
        version=seen.spec.version,
        outcome=outcome,
        reason=ready.reason if ready is not None and is_told else "",
        message=ready.message if ready is not None and is_told else "",
        run=run.id if run is not None else None,
        kind=run.kind if run is not None else "Rollout",
        nodes=len(seen.members),
        updated=sum(seen.nodes[name].labels.get(seen.assignment_key) == seen.wanted for name in seen.members),
        finished=len(ended - {step.batch for step in steps if step.run == number}),
        steps=tuple(steps),
        left_out=_find_left_out(world, number),
        owned_by_others={owner: tuple(sorted(found)) for owner, found in sorted(owners.items())},
        tolerance=_tell_tolerance(seen.spec, run.nodes if run is not None else len(seen.members)),
        before=_tell_before(seen, world, steps),
        approvals=sum(gate.startswith("approval") for step in steps for gate in step.gates),
        seconds=max((step.ends for step in steps if step.ends is not None), default=0.0),
        assumptions=_tell_assumptions(seen, node_seconds),
    )


def _find_steps(seen: RolloutSnapshot, world: _World) -> list[Step]:
    """Return the batches that were under way or have been made since, without those that move nobody."""
    over = {batch.name for batch in seen.batches if batch.status.finished_at is not None}
    pages: dict[tuple[int, int], list[Batch]] = {}
    for batch in world.batches.values():
        if batch.name not in over:
            pages.setdefault((batch.spec.run, batch.spec.batch), []).append(batch)
    steps = []
    for run, number in sorted(pages):
        found = pages[run, number]
        skipped = {result.name for page in found for result in page.status.nodes if result.state == "Skipped"}
        moves = [
            Move(entry.name, _version_of(world, entry.origin), _version_of(world, entry.to))
            for page in found
            for entry in page.spec.nodes
            if entry.name not in skipped
        ]
        finished = [page.status.finished_at for page in found]
        steps.append(
            Step(
                run=run,
                batch=number,
                canary_step=found[0].spec.step,
                starts=max(0.0, _seconds(world, found[0].spec.started_at) or 0.0),
                ends=max((_seconds(world, moment) or 0.0 for moment in finished), default=0.0)
                if all(finished)
                else None,
                moves=tuple(moves),
            )
        )
    steps = [step for step in steps if step.moves]
    following: list[Step | None] = [*steps[1:], None][: len(steps)]
    return [_with_gates(seen.spec, world, step, after) for step, after in zip(steps, following, strict=True)]


def _seconds(world: _World, moment: datetime | None) -> float | None:
    return (moment - world.start).total_seconds() if moment is not None else None


def _version_of(world: _World, assignment: str) -> str:
    target = target_of(assignment)
    return "" if target in {"", ASSIGNMENT_NONE} else world.revisions.get(target, target)


def _with_gates(spec: RolloutSpec, world: _World, step: Step, after: Step | None) -> Step:
    """Return a step with what comes between it and the next one."""
    gates = []
    explained = 0
    canary = spec.strategy.canary
    if canary is not None and 0 < step.canary_step <= len(canary.steps):
        stated = canary.steps[step.canary_step - 1]
        explained = stated.soak_seconds
        if stated.soak_seconds:
            gates.append(f"soak {tell_seconds(stated.soak_seconds)}")
        if stated.require_approval:
            gates.append("approval: waits for a person")
    elif after is not None and spec.strategy.rolling is not None and spec.strategy.rolling.batch_interval_seconds:
        explained = spec.strategy.rolling.batch_interval_seconds
        gates.append(f"interval {tell_seconds(explained)}")
    if spec.analysis:
        gates.append("analysis: " + ", ".join(check.name for check in spec.analysis))
    waits = 0.0
    if after is not None and step.ends is not None and (waits := after.starts - step.ends) > explained:
        gates += _tell_wait(world, step.ends, after.starts)
    return replace(step, gates=tuple(gates), waits=max(0.0, waits))


def _tell_wait(world: _World, begin: float, end: float) -> list[str]:
    """Return what the planner said that it waits for, last before some moment."""
    said = [message for moment, message in world.waits if begin <= (moment - world.start).total_seconds() < end]
    return [said[-1]] if said and said[-1] else []


def _find_left_out(world: _World, run: int) -> tuple[LeftOut, ...]:
    """Return who is left out in the end: a node that a later batch took is not."""
    last: dict[str, LeftOut | None] = {}
    for batch in world.batches.values():
        if batch.spec.run == run:
            for result in batch.status.nodes:
                is_out = result.state == "Skipped"
                last[result.name] = LeftOut(result.name, result.reason, result.message) if is_out else None
    return tuple(found for _, found in sorted(last.items()) if found is not None)


def _tell_before(seen: RolloutSnapshot, world: _World, steps: Sequence[Step]) -> tuple[str, ...]:
    told = [
        f"spec.{field} is true: nothing is moved before it is false again"
        for field, is_set in (("paused", seen.spec.paused), ("frozen", seen.spec.frozen))
        if is_set
    ]
    run = world.status.run
    if seen.spec.pre_pull and steps and run is not None and run.kind == "Rollout" and run.revision != run.from_revision:
        told.append("prePull: files and images are fetched and verified on the nodes while their agents run on")
    if steps and steps[0].starts > 0:
        told += _tell_wait(world, 0.0, steps[0].starts)
    return tuple(told)


def _tell_tolerance(spec: RolloutSpec, total: int) -> str:
    """Return in numbers how many nodes may fail, and what happens then."""
    stated = spec.strategy.failure_tolerance
    allowed = arithmetic.tolerated(stated, total)
    share = f" ({stated} of {total}, rounded down)" if isinstance(stated, str) else f" of {total}"
    then = "all that the run moved goes back" if spec.on_failure == "Rollback" else "the run stops (onFailure: Pause)"
    told = f"{count_nodes(allowed)}{share} may fail; at one more {then}"
    steps = spec.strategy.canary.steps if spec.strategy.canary else []
    sizes = [arithmetic.canary_size(spec, number, total) for number in range(1, len(steps) + 1)]
    canaries = [
        f"step {number}: {arithmetic.tolerated(step.failure_tolerance, size)} of {size}"
        for number, (step, size) in enumerate(zip(steps, sizes, strict=True), start=1)
    ]
    return told + (f"; canary {', '.join(canaries)}" if canaries else "")


def _tell_assumptions(seen: RolloutSnapshot, node_seconds: float) -> tuple[str, ...]:
    health = seen.spec.health
    told = [
        f"every node's new agent is Ready {tell_seconds(node_seconds)} after its move began",
        f"it counts as healthy {tell_seconds(health.min_ready_seconds)} later (minReadySeconds)",
        "no node fails, joins, leaves or changes, and other components stay as they are",
    ]
    if seen.spec.pre_pull:
        told.append("files and images are on the nodes in time (prePull)")
    stated = seen.spec.to_api()
    waiting = [
        name
        for name, is_there in (
            ("approvals", any(s.get("requireApproval") for s in stated["strategy"].get("canary", {}).get("steps", []))),
            ("analyses", stated.get("analysis")),
            ("HTTP checks", stated.get("health", {}).get("http")),
        )
        if is_there
    ]
    if waiting:
        told.append(f"{' and '.join(waiting)} pass at once: the time that they take is not counted")
    return tuple(told)


def tell_seconds(seconds: float) -> str:
    """Return a duration as people write it, in its two largest units."""
    left = round(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
