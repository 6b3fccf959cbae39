"""One simulated life of a Rollout: a fleet, a person who changes their mind, and everything that can go wrong.

A trial is made from a number. The same number gives the same trial, so that a failure can be looked at again:
`PYTHONPATH=operator:tests python -m simulation.trial 4711` prints its story.

Plans are executed as the operator does it (`reconcile/rollouts.py`): what is urgent is stored before the moves, in
whatever order these succeed; the rest is stored now and then, and lost when the process ends. They are made from a look
at the world that may be old when they are executed.
"""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from outrider.api.componentversion import Phase
from outrider.api.names import ROLE_REVISION
from outrider.api.rollout import RequestKind, RolloutBatchSpec, RolloutBatchStatus, RolloutStatus
from outrider.core import plan as actions
from outrider.core.moves import is_leaving
from outrider.core.plan import Plan
from outrider.core.revision import hash_target, joiners_id
from outrider.core.rollout import plan_rollout
from outrider.core.snapshot import Batch, Hindrance, RolloutSnapshot, Taint
from outrider.core.states import BARRED, ONGOING
from simulation.fleet import KEY, START, Fleet, SimPod, make_spec

Deed = tuple[actions.Action | None, Callable[[], None]]
"""One write: the action of the plan that it is for, if it is for one, and how it is done."""

MINUTES = [{"start": f"00:{minute:02}", "end": f"00:{minute + 1:02}"} for minute in range(0, 40, 2)]
"""Windows that are open for a minute, and shut for the next. Trials begin at midnight."""

BAD = ("never-ready", "crash-loop", "image-pull")
HEALTH = {"timeoutSeconds": 40, "minReadySeconds": 2}


@dataclass
class Tally:
    """What the trials of a test run did."""

    trials: int = 0
    runs: int = 0
    rollbacks: int = 0
    plans: int = 0
    moves: int = 0
    crashes: int = 0
    checks: int = 0
    happened: dict[str, int] = field(default_factory=dict)
    """How often each kind of event came to pass."""

    def add(self, other: "Tally") -> None:
        """Add what others did."""
        for name in ("trials", "runs", "rollbacks", "plans", "moves", "crashes", "checks"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for kind, count in other.happened.items():
            self.happened[kind] = self.happened.get(kind, 0) + count

    def lines(self, invariants: int) -> Iterator[str]:
        """Say it in a few lines."""
        yield (
            f"{self.runs:,} runs ({self.rollbacks:,} of them rollbacks) in {self.trials:,} lives of a fleet: "
            f"{self.plans:,} plans, {self.moves:,} moves, {self.crashes:,} crashes in the middle of a plan"
        )
        yield f"{invariants} invariants, {self.checks:,} checks, all held"
        width = max(map(len, self.happened), default=0)
        for kind, count in sorted(self.happened.items()):
            yield f"{kind.ljust(width)}  {count:,}"


class World(Fleet):
    """A fleet whose operator keeps in memory what need not be stored at once, and may end at any line."""

    def __init__(self, count: int, spec: Any, seed: int) -> None:
        super().__init__(count, spec, seed=seed)
        self.pending: dict[str, RolloutBatchStatus] = {}
        self.urgent: set[str] = set()
        self.records_written = self.status_written = START
        self.refuse: float = 0.0
        self.slow: float = 0.0
        """How likely a change of a node is not answered before the next look."""
        self.sent: dict[str, actions.Assign] = {}
        self.expected: dict[str, actions.Assign] = {}
        """Who arrives without another look as soon as its old pod has ended."""
        self.plan_is_empty = False

    def snapshot(self) -> RolloutSnapshot:
        seen = replace(super().snapshot(), under_way=frozenset(self.sent))
        if not self.pending:
            return seen
        batches = tuple(
            replace(batch, status=self.pending[batch.name]) if batch.name in self.pending else batch
            for batch in seen.batches
        )
        return replace(seen, batches=batches)

    def deeds(self, plan: Plan) -> Iterator[Deed]:
        """Yield what the operator does for a plan, one write after the other."""
        self.expected = {}
        for action in plan.actions:
            if not isinstance(action, LATER):
                if isinstance(action, actions.CreateJoiners):
                    yield None, self.arrive
                yield action, partial(self._do, action)
        yield from self._records(plan)
        told = plan.urgent_status or bool(plan.events)
        if told:
            yield None, partial(self._tell, plan.status)
        self.events.extend(plan.events)
        moves = list(plan.moves)
        self.random.shuffle(moves)
        for move in moves:
            if self.random.random() < self.refuse:
                continue
            yield move, partial(self._send if self.random.random() < self.slow else self._do, move)
        if self.pending and (self.now - self.records_written).total_seconds() >= 3:
            self.records_written = self.now
            for name in sorted(self.pending):
                yield None, partial(self._store, name)
        if not told and (self.now - self.status_written).total_seconds() >= 2:
            yield None, partial(self._tell, plan.status)
        if plan.has_clean_up:
            yield None, self.arrive
        for action in plan.actions:
            if isinstance(action, CLEANING):
                yield action, partial(self._do, action)
        self.expected = {move.node: move for move in plan.arrivals}

    def deeds_between(self) -> Iterator[Deed]:
        """Yield what the operator does when it sees pods end, before it looks at the fleet again."""
        for move in list(self.expected.values()):
            sim = self.nodes.get(move.node)
            pods = sim.pods if sim is not None else []
            if move.node in self.sent or any((pod.revision, pod.role) != (move.after, ROLE_REVISION) for pod in pods):
                continue
            del self.expected[move.node]
            yield move, partial(self._send if self.random.random() < self.slow else self._do, move)

    def _send(self, move: actions.Assign) -> None:
        self.sent[move.node] = move

    def arrive(self, share: float = 1.0) -> None:
        """Let changes of nodes that were sent be made, whatever the world looks like by now."""
        for move in list(self.sent.values()):
            if self.random.random() < share:
                del self.sent[move.node]
                self._do(move)

    def tick(self, seconds: float = 1.0) -> None:
        """Let time pass, in which the API server answers."""
        self.arrive(0.6)
        super().tick(seconds)

    def _records(self, plan: Plan) -> Iterator[Deed]:
        """Keep in mind what became of nodes; store at once what is urgent, and who is moved next."""
        for action in plan.actions:
            if isinstance(action, actions.WriteBatch):
                self.pending[action.name] = action.status
                if action.urgent:
                    self.urgent.add(action.name)
        for name in sorted(self.urgent):
            yield None, partial(self._store, name)
        for action in plan.actions:
            if isinstance(action, actions.CreateBatch):
                yield action, partial(self._create, action.name, action.spec)

    def _check_phase(self, before: str | None, after: str | None) -> None:
        """Leave it to the invariants: they know what was seen when the plan was made."""

    def _store(self, name: str) -> None:
        status = self.pending.pop(name, None)
        self.urgent.discard(name)
        if status is not None and name in self.batches:
            self.batches[name] = replace(self.batches[name], status=status)

    def _create(self, name: str, spec: RolloutBatchSpec) -> None:
        # One that is there already stays as it is: the API server says so, and the operator takes that one.
        self.batches.setdefault(name, Batch(name, spec, RolloutBatchStatus()))

    def _tell(self, status: RolloutStatus) -> None:
        self.status, self.status_written = status, self.now

    def restart(self) -> None:
        """The process ends, and another begins: what was not stored is forgotten, everything is seen anew."""
        self.arrive(0.5)
        self.sent.clear()
        self.expected.clear()
        self.pending.clear()
        self.urgent.clear()
        self.observing_since = self.now
        self.unprepared_since.clear()
        self.leaving_since.clear()
        self.arriving_since.clear()
        for sim in self.nodes.values():
            for pod in (*sim.pods, *sim.preparing):
                pod.ready_since = self.now if pod.ready_since else None
                pod.unready_since = self.now if pod.unready_since else None


LATER = (
    actions.WriteBatch,
    actions.CreateBatch,
    actions.Assign,
    actions.PrepareNodes,
    actions.DeletePrepare,
    actions.DropFinalizer,
    actions.DeleteRevision,
    actions.DeleteJoiners,
    actions.DeleteBatch,
)
CLEANING = (
    actions.PrepareNodes,
    actions.DeletePrepare,
    actions.DropFinalizer,
    actions.DeleteRevision,
    actions.DeleteJoiners,
    actions.DeleteBatch,
)


class Violation(AssertionError):
    """An invariant does not hold."""


class Trial:
    """One trial; `run` lives it through."""

    def __init__(self, number: int, tally: Tally | None = None) -> None:
        from simulation.invariants import INVARIANTS

        self.number = number
        self.tally = tally or Tally()
        self.dice = random.Random(number)  # noqa: S311 - a repeatable world, not a secret
        self.story: list[str] = []
        self.on_plan = [each for each in INVARIANTS if each.when == "plan"]
        self.on_deed = [each for each in INVARIANTS if each.when == "deed"]
        self.on_world = [each for each in INVARIANTS if each.when == "world"]
        self.on_end = [each for each in INVARIANTS if each.when == "end"]
        dice = self.dice
        self.calm = dice.random() < 0.3
        """Nothing happens to nodes and processes: then the bounds are exact."""
        self.stale = 0.0 if self.calm else dice.choice([0.0, 0.0, 0.3])
        self.crashing = 0.0 if self.calm else dice.choice([0.0, 0.0, 0.1, 0.3])
        self.slow = dice.choice([0.0, 0.0, 0.3, 0.8])
        self.serial = 0
        self.patience = dice.choice([0.0, 0.2, 1.0])
        """How likely a person is to approve what waits for that, at each look."""
        self.bad: dict[str, float] = {}
        self.troubled: dict[tuple[str, str], str] = {}
        self.prepared: set[tuple[str, str]] = set()
        """Which nodes (by UID) were seen to be prepared for which revision."""
        self.registry_is_down = False
        self.ever_stable: set[str] = {"none"}
        self.found_on: dict[tuple[str, str], str | None] = {}
        self.runs: dict[int, tuple[str, str, datetime]] = {}
        self.known_batches: dict[str, RolloutBatchSpec] = {}
        self.idle: dict[str, int] = {}
        self.allowed: dict[tuple[int, int], int] = {}
        self.seen: RolloutSnapshot | None = None
        self.plan: Plan | None = None
        self.world: World = self._begin()

    # -- the beginning

    def _begin(self) -> World:
        dice = self.dice
        count = dice.choice([1, 2, 3, 3, 4, 4, 5, 6, 8])
        world = World(count, make_spec(health=HEALTH, **self.wish()), seed=self.number)
        world.behaviour = self.behave
        world.prepare_says = self.prepare
        world.slow = self.slow
        if dice.random() < 0.7:
            self._install(world)
        self.tell(f"{count} nodes, {world.spec.strategy.to_api()}, onFailure {world.spec.on_failure}")
        if self.calm:
            self.tell("calm")
        return world

    def _install(self, world: World) -> None:
        """Begin with a fleet that runs 1.0.0 since long, by a run whose records are forgotten."""
        revision = "r-1.0.0"
        world.revisions[revision] = "1.0.0"
        for name, sim in world.nodes.items():
            sim.node = replace(sim.node, labels={KEY: revision})
            sim.pods.append(SimPod(f"pod-of-{name}", revision, 0, "healthy", ready_since=START))
        world.finalizer = True
        target = hash_target(world.spec.target)
        world.join_sets[joiners_id(revision, target)] = revision, world.spec.target
        world.status = RolloutStatus.model_validate(
            {
                "observedGeneration": 1,
                "run": {
                    "id": 1,
                    "kind": "Rollout",
                    "state": "Succeeded",
                    "version": "1.0.0",
                    "revision": revision,
                    "startedAt": "2026-01-01T00:00:00Z",
                    "nodes": len(world.nodes),
                },
                "revisions": {
                    "stable": revision,
                    "stableVersion": "1.0.0",
                    "current": revision,
                    "target": target,
                },
            }
        )
        self.ever_stable.add(revision)

    def wish(self) -> dict[str, Any]:
        """Return how a person wants the fleet to be moved."""
        dice = self.dice
        tolerance = dice.choice([0, 0, 1, "30%", "50%", "100%"])
        kind = dice.choice(["Rolling", "Rolling", "Canary", "Canary", "Full"])
        strategy: dict[str, Any] = {"type": kind, "failureTolerance": tolerance}
        if kind == "Full":
            strategy["full"] = {"maxInFlight": dice.choice([1, 2, "30%", "100%"])}
        else:
            rolling: dict[str, Any] = {"batchSize": dice.choice([1, 2, "25%", "34%", "100%"])}
            rolling["batchIntervalSeconds"] = dice.choice([0, 0, 0, 5])
            if dice.random() < 0.4:
                rolling = {"maxUnavailable": dice.choice([1, 2, "30%", "100%"])}
            strategy["rolling"] = rolling
        if kind == "Canary":
            strategy["canary"] = {
                "steps": [
                    {
                        "nodes": dice.choice([1, 1, 2, "20%"]),
                        "soakSeconds": dice.choice([0, 0, 4]),
                        "failureTolerance": dice.choice([0, 0, 1]),
                        "requireApproval": dice.random() < 0.25,
                    }
                    for _ in range(dice.choice([1, 1, 2]))
                ]
            }
        windows = dice.choice([[], [], [], [], MINUTES])
        return {
            "strategy": strategy,
            "onFailure": dice.choice(["Rollback", "Rollback", "Pause"]),
            "windows": windows,
            "prePull": dice.random() < 0.35,
            "runHistoryLimit": dice.choice([10, 10, 2, 1]),
        }

    def behave(self, node: str, revision: str) -> str:
        """Return how an agent does: each version has its share of nodes on which it fails."""
        key = node, revision
        if key not in self.troubled:
            share = self.bad.get(revision, 0.0)
            self.troubled[key] = self.dice.choice(BAD) if self.dice.random() < share else "healthy"
        return self.troubled[key]

    def prepare(self, _node: str, revision: str) -> str:
        """Return what comes of preparing a node: of a bad version some nodes get other bytes."""
        if self.registry_is_down:
            return "never"
        return "BlobCorrupted" if self.bad.get(revision) and self.dice.random() < 0.15 else "ready"

    def new_version(self, share: float | None = None) -> str:
        """Invent a version; `share` of the nodes fail with it."""
        self.serial += 1
        version = f"1.{self.serial}.0"
        self.bad[f"r-{version}"] = self.dice.choice([0, 0, 0.2, 0.4, 1.0]) if share is None else share
        return version

    # -- its life

    def run(self) -> None:
        """Live the trial through, and check the invariants at every moment of it."""
        dice = self.dice
        for _ in range(dice.choice([1, 2, 2, 3])):
            self.change(version=self.new_version())
            for _ in range(dice.choice([4, 12, 30, 60])):
                self.step()
                if not self.calm and dice.random() < 0.25:
                    self.happen()
                elif self.calm and dice.random() < 0.04:
                    self.decide()
                if self.at_rest() and dice.random() < 0.5:
                    break
        self.appease()
        for _ in range(400):
            self.step()
            if self.at_rest():
                break
        self.check("end", None)
        self.tally.trials += 1

    def step(self) -> None:
        """Look, plan, execute as far as it goes; then time passes."""
        dice, world = self.dice, self.world
        seen = world.snapshot()
        plan = plan_rollout(seen)
        world.note(seen)
        self.seen, self.plan = seen, plan
        self.prepared |= {
            (seen.nodes[name].uid, pod.revision)
            for name, pods in seen.preparing.items()
            if name in seen.nodes
            for pod in pods
            if pod.ready_since is not None
        }
        self.tally.plans += 1
        world.plan_is_empty = not plan.actions
        self.check("plan", None)
        if self.stale and dice.random() < self.stale:
            world.tick(dice.choice([1, 5]))
            self.happen()
        crash_after = dice.randrange(8) if self.crashing and dice.random() < self.crashing else None
        for index, (action, do) in enumerate(world.deeds(plan)):
            if crash_after is not None and index >= crash_after:
                break
            if action is not None:
                self.check("deed", action)
            do()
            if isinstance(action, actions.Assign):
                self.tally.moves += 1
        self.approve()
        if crash_after is not None:
            self.tell("the operator restarts")
            self.tally.crashes += 1
            world.restart()
        self.note()
        world.tick(dice.choice([1, 2, 2, 4]))
        if dice.random() < 0.5:
            for action, do in world.deeds_between():
                self.check("deed", action)
                do()
                self.tally.moves += 1
        self.check("world", None)

    def approve(self) -> None:
        """Let a person approve what waits for that, now and then."""
        run = self.world.status.run
        if run is None or run.awaits_approval is None or self.dice.random() >= self.patience:
            return
        self.tell(f"a person approves step {run.awaits_approval} of run {run.id}")
        self.world.ask("approve")

    def ask(self) -> None:
        """Let a person ask for something, sensible or not."""
        dice, run = self.dice, self.world.status.run
        kinds: list[RequestKind] = ["abort", "retry", "retry", "rollback"]
        kind = dice.choice(kinds)
        self.tell(f"a person asks: {kind}")
        if kind != "rollback":
            self.world.ask(kind)
            return
        wanted: dict[str, Any] = {"run": dice.choice([1, 2, run.id if run else 3])}
        if dice.random() < 0.3:
            wanted["batches"] = [1]
        if dice.random() < 0.3:
            wanted["version"] = dice.choice(sorted({"1.0.0", *self.world.revisions.values()}))
        self.world.ask("rollback", **wanted)

    def note(self) -> None:
        """Keep in mind what the invariants compare later moments with."""
        status = self.world.status
        run = status.run
        if status.revisions is not None and status.revisions.stable is not None:
            self.ever_stable.add(status.revisions.stable)
        if run is not None and run.id not in self.runs:
            self.runs[run.id] = run.kind, run.revision, run.started_at
            self.tally.runs += 1
            self.tally.rollbacks += run.kind == "Rollback"
            self.tell(f"run {run.id}: {run.kind} {run.version}")

    def known_result(self, batch: str, node: str) -> str:
        """Return the state of a node in a batch as the operator knows it, stored or not."""
        status = self.world.pending.get(batch) or self.world.batches[batch].status
        return next((result.state for result in status.nodes if result.name == node), "Pending")

    def at_rest(self) -> bool:
        """Tell whether nothing is left to do."""
        run = self.world.status.run
        return (
            run is not None
            and run.revision == f"r-{self.world.spec.version}"
            and run.state not in ONGOING
            and self.world.plan_is_empty
            and not self.world.pending
            and not self.world.sent
            and not any(is_leaving(self.world.assignment(name)) for name in self.world.nodes)
        )

    def check(self, when: str, action: actions.Action | None) -> None:
        """Check every invariant of one kind of moment."""
        kinds = {"plan": self.on_plan, "deed": self.on_deed, "world": self.on_world, "end": self.on_end}[when]
        self.tally.checks += len(kinds)
        for invariant in kinds:
            problem = invariant.check(self, action) if when == "deed" else invariant.check(self)
            if problem:
                story = "\n  ".join(self.story[-60:])
                raise Violation(f"trial {self.number}: {invariant.name}: {problem}\n  {story}")

    def tell(self, what: str) -> None:
        """Add a line to the story."""
        at = (self.world.now - START).total_seconds() if hasattr(self, "world") else 0
        self.story.append(f"{at:5.0f} s  {what}")

    def change(self, **changes: Any) -> None:
        """Let the person change the spec."""
        self.tell(f"the person sets {changes}")
        self.world.change(**changes)

    # -- what may come to pass

    def happen(self) -> None:
        """Let something happen to nodes, versions or the cluster."""
        names = sorted(self.world.nodes)
        if not names:
            return
        victim = self.dice.choice(names)
        kind = self.dice.choices(list(HAPPENINGS), [weight for weight, _ in HAPPENINGS.values()])[0]
        self.tally.happened[kind] = self.tally.happened.get(kind, 0) + 1
        self.tell(f"{kind} {victim}")
        HAPPENINGS[kind][1](self, victim)

    def join(self, name: str) -> None:
        """Let a node join."""
        self.serial += 1
        self.world.join(name or f"joined-{self.serial}")

    def leave(self, victim: str) -> None:
        """Let a node go, unless it is the last."""
        if len(self.world.nodes) > 1:
            self.world.leave(victim)

    def exchange(self, victim: str) -> None:
        """Let a node be deleted and made anew under its name."""
        self.world.leave(victim)
        self.world.join(victim)

    def all_are_well(self) -> None:
        """Let all nodes be Ready."""
        for name in self.world.nodes:
            self.world.set_ready(name, True)

    def all_die(self) -> None:
        """Let an outage make all nodes NotReady: their kubelets are not heard of."""
        for name in self.world.nodes:
            self.world.set_ready(name, False)

    def infect(self, victim: str, behaviours: Sequence[str]) -> None:
        """Let the agent on a node behave in another way."""
        for pod in self.world.nodes[victim].pods:
            pod.behaviour = self.dice.choice(behaviours)

    def reserve(self, victim: str) -> None:
        """Let a node get a taint that the agent does not tolerate."""
        sim = self.world.nodes[victim]
        sim.node = replace(sim.node, taints=(Taint("reserved", "", "NoSchedule"),))

    def change_phase(self) -> None:
        """Let a version become something else."""
        version = self.dice.choice(sorted({self.world.spec.version, *self.world.revisions.values()}))
        phase = self.dice.choice(PHASES)
        self.world.phases[version] = phase
        self.tell(f"{version} is {phase}")

    def lose_registry(self) -> None:
        """Let nodes that are being prepared wait for what does not come."""
        self.registry_is_down = True

    def find_registry(self) -> None:
        """Let them get it."""
        self.registry_is_down = False
        for sim in self.world.nodes.values():
            for pod in sim.preparing:
                pod.behaviour = "ready" if pod.behaviour == "never" else pod.behaviour

    def hinder(self) -> None:
        """Let something hold up every new run."""
        self.world.hindrance = Hindrance("VersionNotPublished", "not published", stalled=self.dice.random() < 0.5)

    def meddle(self, victim: str) -> None:
        """Let a stranger set a node's label to another revision, and see to the old pod himself."""
        world = self.world
        goal = self.dice.choice(sorted({*world.revisions, "none"}))
        world.label(victim, {KEY: goal})
        world.lose_pod(victim)
        self.found_on[victim, world.nodes[victim].node.uid] = goal

    def free(self) -> None:
        """Take all taints away."""
        for sim in self.world.nodes.values():
            sim.node = replace(sim.node, taints=())

    def decide(self) -> None:
        """Let the person change their mind about something."""
        dice, world = self.dice, self.world
        old = dice.choice(sorted({world.spec.version, "1.0.0", *world.revisions.values()}))
        wishes: list[dict[str, Any]] = [
            {"paused": not world.spec.paused},
            {"paused": False},
            {"frozen": not world.spec.frozen},
            {"frozen": False},
            {"notBefore": f"{world.now + timedelta(seconds=dice.choice([5, 60])):%Y-%m-%dT%H:%M:%SZ}"},
            {"version": old},
            {"onFailure": dice.choice(["Rollback", "Pause"])},
            self.wish(),
            {"version": self.new_version()},
        ]
        self.change(**dice.choice(wishes))

    def appease(self) -> None:
        """End all trouble, and wish for a version that is good everywhere."""
        world = self.world
        self.stale = self.crashing = world.refuse = world.slow = 0.0
        world.hindrance = None
        world.phases = {version: phase for version, phase in world.phases.items() if phase not in BARRED}
        for name in world.nodes:
            world.set_ready(name, True)
        self.free()
        for key in self.troubled:
            self.troubled[key] = "healthy"
        self.bad.clear()
        self.find_registry()
        for sim in world.nodes.values():
            for pod in sim.pods:
                pod.behaviour = "healthy"
        self.patience = 1.0
        # What was asked for is answered first: a way back that is asked for in the same moment as a wish holds that.
        self.step()
        self.change(version=self.new_version(0.0), paused=False, frozen=False, windows=[], notBefore=None)


PHASES: tuple[Phase, ...] = ("Published", "Published", "Deprecated", "Withdrawn", "Revoked")

HAPPENINGS: dict[str, tuple[int, Callable[[Trial, str], None]]] = {
    "a node joins": (1, lambda trial, _: trial.join("")),
    "a node goes": (1, Trial.leave),
    "a node is made anew under its name": (2, Trial.exchange),
    "a node dies": (2, lambda trial, victim: trial.world.set_ready(victim, False)),
    "all nodes die": (1, lambda trial, _: trial.all_die()),
    "all nodes are well": (3, lambda trial, _: trial.all_are_well()),
    "a pod is lost": (1, lambda trial, victim: trial.world.lose_pod(victim)),
    "an agent falls ill": (1, lambda trial, victim: trial.infect(victim, BAD)),
    "an agent is well again": (1, lambda trial, victim: trial.infect(victim, ["healthy"])),
    "a node is reserved": (1, Trial.reserve),
    "nothing is reserved any more": (1, lambda trial, _: trial.free()),
    "a version changes its phase": (1, lambda trial, _: trial.change_phase()),
    "the registry is down": (1, lambda trial, _: trial.lose_registry()),
    "the registry is up": (2, lambda trial, _: trial.find_registry()),
    "something hinders": (1, lambda trial, _: trial.hinder()),
    "nothing hinders": (2, lambda trial, _: setattr(trial.world, "hindrance", None)),
    "a stranger refuses patches": (1, lambda trial, _: setattr(trial.world, "refuse", trial.dice.choice([0.3, 1.0]))),
    "nobody refuses patches": (2, lambda trial, _: setattr(trial.world, "refuse", 0.0)),
    "somebody sets an assignment": (1, Trial.meddle),
    "a person decides": (3, lambda trial, _: trial.decide()),
    "a person asks": (2, lambda trial, _: trial.ask()),
}
"""What may come to pass, how often in comparison, and how."""


def main() -> None:
    """Live one trial through, and print its story."""
    trial = Trial(int(sys.argv[1]))
    try:
        trial.run()
    finally:
        print("\n".join(trial.story))  # noqa: T201 - what it is for


if __name__ == "__main__":
    main()
