"""A fleet in memory: nodes, DaemonSet controllers and kubelets as far as a plan can notice them.

It executes plans as the operator does (records before moves, moves only if node and assignment are as seen), can lose
the end of a plan as a crash would, and checks after every step what must never be otherwise.
"""

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from outrider.adapters.clock import find_zone
from outrider.api.checks import AnalysisVerdict
from outrider.api.componentversion import Phase
from outrider.api.names import ROLE_JOINERS, ROLE_PREPARE, ROLE_REVISION, assignment_key
from outrider.api.rollout import BatchNode, RequestKind, RolloutBatchStatus, RolloutSpec, RolloutStatus, Target
from outrider.core import plan as actions
from outrider.core.compatibility import VersionRules
from outrider.core.fleet import Claim, carries_assignment, is_targeted, may_overlap, select_leavers, select_members
from outrider.core.moves import find_arriving, is_leaving
from outrider.core.plan import Event, Plan
from outrider.core.prepare import is_counting, prepare_name, token_of
from outrider.core.refusal import Refusal
from outrider.core.requests import nonce_of
from outrider.core.revision import hash_target, joiners_id
from outrider.core.rollout import plan_rollout
from outrider.core.snapshot import (
    AnalysisAnswer,
    Batch,
    Hindrance,
    Measurement,
    Neighbour,
    Node,
    Pod,
    PrepareSet,
    Request,
    RolloutSnapshot,
    VersionState,
)
from outrider.core.states import BARRED
from outrider.core.work import is_for

KEY = assignment_key("fleet", "agent")
START = datetime(2026, 1, 1, tzinfo=UTC)
EMPTY = Hindrance("EmptyTarget", "no node matches spec.target", stalled=True)

Behaviour = Callable[[str, str], str]
"""(node, revision) → healthy | never-ready | crash-loop | image-pull."""


def healthy(_node: str, _revision: str) -> str:
    return "healthy"


Check = Callable[[str, str], AnalysisVerdict]
"""(node, revision) → what the agent's own check says; or (batch, analysis) → what the analysis says."""


Preparation = Callable[[str, str], str]
"""(node, revision) → ready, never (it cannot be told why), or a reason for which the node refuses."""


def is_there(_node: str, _revision: str) -> str:
    return "ready"


def passes(_about: str, _what: str) -> AnalysisVerdict:
    return "Pass"


@dataclass
class SimPod:
    name: str
    revision: str
    ready_at: float
    behaviour: str
    role: str = ROLE_REVISION
    gone_at: float | None = None
    ready_since: datetime | None = None
    check: Measurement | None = None
    unready_since: datetime | None = None


@dataclass
class SimNode:
    node: Node
    pods: list[SimPod] = field(default_factory=list)
    preparing: list[SimPod] = field(default_factory=list)
    """Pods that prepare the node; `behaviour` is what `Fleet.prepare_says`."""


LATE = actions.Assign | actions.PrepareNodes | actions.DeletePrepare | actions.DeleteRevision
"""What is done after the status is written."""


def make_spec(version: str = "1.0.0", **changes: Any) -> RolloutSpec:
    spec: dict[str, Any] = {
        "component": "agent",
        "version": version,
        "target": {"all": True},
        "template": {"spec": {"containers": [{"name": "agent", "image": "agent"}]}},
        "delivery": {"volume": {"mountPath": "/opt/agent", "containers": ["agent"]}},
        "strategy": {"type": "Rolling", "rolling": {"batchSize": "25%"}},
        "health": {"timeoutSeconds": 60, "minReadySeconds": 2},
    }
    return RolloutSpec.model_validate(spec | changes)


class Fleet:
    """The world that plans act on. `revision` of a spec is `r-` and its version."""

    def __init__(
        self, count: int, spec: RolloutSpec, *, seed: int = 0, behaviour: Behaviour = healthy, name: str = "agent"
    ) -> None:
        self.name = name
        self.prefix = "r-" if name == "agent" else f"{name}-"
        self.variant = ""
        self.created = 0
        self.rivals: list[Fleet] = []
        self.deleting_since: datetime | None = None
        self.namespace_terminating = False
        self.random = random.Random(seed)  # noqa: S311 - a repeatable world, not a secret
        self.now = START
        self.spec = spec
        self.behaviour = behaviour
        self.generation = 1
        self.status = RolloutStatus()
        self.nodes: dict[str, SimNode] = {}
        self.batches: dict[str, Batch] = {}
        self.revisions: dict[str, str] = {}
        self.rules: dict[str, VersionRules] = {}
        self.phases: dict[str, Phase | None] = {}
        self.deleted_versions: set[str] = set()
        self.neighbours: dict[str, Neighbour] = {}
        self.requests: dict[str, Request] = {}
        self.fresh_seconds: float | None = None
        self.registry_is_down = False
        self.verified: dict[str, datetime] = {}
        self.asked: dict[str, float] = {}
        self.agent_says: Check = passes
        self.analysis_says: Check = passes
        self.answers: dict[tuple[str, str], AnalysisAnswer] = {}
        self.probes = 0
        self.join_sets: dict[str, tuple[str, Target]] = {}
        self.prepare_sets: dict[str, PrepareSet] = {}
        self.prepare_says: Preparation = is_there
        self.prepare_seconds: tuple[float, float] = (0, 4)
        self.unprepared_since: dict[str, datetime] = {}
        self.leaving_since: dict[str, datetime] = {}
        self.arriving_since: dict[str, datetime] = {}
        self.prepare_problem = ""
        self.observing_since: datetime | None = None
        self.without_agent_since: dict[str, datetime] = {}
        self.under_way: frozenset[str] = frozenset()
        self.ever_stable: set[str | None] = set()
        self.finalizer = False
        self.deleting = False
        self.let_go = False
        self.hindrance: Hindrance | None = None
        self.events: list[Event] = []
        self.patches: list[actions.Assign] = []
        self.writes = 0
        self.serial = 0
        for index in range(count):
            self.join(f"node-{index:03}")

    @property
    def joiners(self) -> list[str]:
        """The revisions that joiners' DaemonSets bring."""
        return [revision for revision, _ in self.join_sets.values()]

    def join(self, name: str, **labels: str) -> None:
        self.serial += 1
        self.nodes[name] = SimNode(Node(name=name, uid=f"uid-{self.serial}", labels=labels, ready=True))

    def leave(self, name: str) -> None:
        del self.nodes[name]

    def set_ready(self, name: str, ready: bool) -> None:
        self.nodes[name].node = replace(self.nodes[name].node, ready=ready)

    def label(self, name: str, labels: dict[str, str]) -> None:
        node = self.nodes[name].node
        self.nodes[name].node = replace(node, labels={**node.labels, **labels})

    def change(self, **changes: Any) -> None:
        self.spec = RolloutSpec.model_validate(self.spec.to_api() | changes)
        self.generation += 1

    def ask(self, kind: RequestKind, by: str = "alice", **rollback: Any) -> str:
        """Annotate the Rollout with a request that it has not seen yet; returns the nonce."""
        self.serial += 1
        nonce = f"nonce-{self.serial}"
        value = json.dumps({"id": nonce, **rollback}) if kind == "rollback" else nonce
        self.requests[kind] = Request(kind, value, by)
        return nonce

    def is_answered(self) -> bool:
        """Tell whether every request has been answered."""
        handled = self.status.last_handled
        return all(
            handled is not None and getattr(handled, request.kind) == nonce_of(request.kind, request.value)
            for request in self.requests.values()
        )

    def assignment(self, name: str) -> str | None:
        return self.nodes[name].node.labels.get(KEY)

    def assignments(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for name in self.nodes:
            counts[str(self.assignment(name))] = counts.get(str(self.assignment(name)), 0) + 1
        return counts

    def _is_ours(self, node: Node) -> bool:
        assignment = node.labels.get(KEY)
        return assignment not in {None, "none"} and carries_assignment(str(assignment), self.revisions)

    def claim(self, *, is_older: bool) -> Claim:
        return Claim(self.name, f"{self.name}-uid", str(self.created), self.spec.target, is_older=is_older)

    def claims(self) -> list[Claim]:
        """Return what the other Rollouts of the component claim."""
        return [rival.claim(is_older=rival.created < self.created) for rival in self.rivals if not rival.let_go]

    def snapshot(self) -> RolloutSnapshot:
        nodes = {name: sim.node for name, sim in self.nodes.items()}
        claims = self.claims()
        older = [claim for claim in claims if claim.is_older]
        members, foreign = select_members(nodes.values(), self.spec.target, older)
        leavers = select_leavers(nodes.values(), KEY, self.revisions, members, claims)
        if not members and self.hindrance is None:
            return replace(self._look(nodes, members, foreign, leavers, older), hindrance=EMPTY)
        return self._look(nodes, members, foreign, leavers, older)

    def _look(
        self,
        nodes: Mapping[str, Node],
        members: frozenset[str],
        foreign: Mapping[str, str],
        leavers: frozenset[str],
        older: list[Claim],
    ) -> RolloutSnapshot:
        return RolloutSnapshot(
            now=self.now,
            namespace="fleet",
            name=self.name,
            uid=f"{self.name}-uid" if self.rivals else "rollout-uid",
            generation=self.generation,
            deleting=self.deleting,
            has_finalizer=self.finalizer,
            spec=self.spec,
            status=self.status,
            assignment_key=KEY,
            wanted=f"{self.prefix}{self.spec.version}{self.variant}",
            hindrance=self.hindrance,
            started_by="kubectl",
            nodes={
                name: node for name, node in nodes.items() if name in members or name in leavers or self._is_ours(node)
            },
            members=members,
            owned_by_others=foreign,
            leavers=leavers,
            shares_joiners=any(may_overlap(claim.target, self.spec.target) for claim in older),
            joiners_elsewhere=any(rival.joiners for rival in self.rivals),
            target_hash=hash_target(self.spec.target),
            deleting_since=self.deleting_since,
            namespace_terminating=self.namespace_terminating,
            pods={name: tuple(self._seen(name, pod) for pod in sim.pods) for name, sim in self.nodes.items()},
            batches=tuple(sorted(self.batches.values(), key=lambda b: (b.spec.run, b.spec.batch, b.spec.page))),
            revisions=dict(self.revisions),
            rules=dict(self.rules),
            assigned=frozenset(
                (sim.node.labels[KEY]).removeprefix("to-") for sim in self.nodes.values() if KEY in sim.node.labels
            ),
            joiners=tuple(self.join_sets),
            observing_since=self.observing_since,
            versions={
                version: self.version_state(version)
                for version in {self.spec.version, *self.revisions.values()} - self.deleted_versions
            },
            neighbours=self.neighbours,
            answers=tuple(self.answers.values()),
            requests=tuple(self.requests.values()),
            verify_after=self.now - timedelta(seconds=self.fresh_seconds) if self.fresh_seconds is not None else None,
            without_agent_since=dict(self.without_agent_since),
            under_way=self.under_way,
            leaving_since=dict(self.leaving_since),
            arriving_since=dict(self.arriving_since),
            zones=self._zones(),
            preparing={
                name: tuple(self._seen_preparing(name, pod) for pod in sim.preparing)
                for name, sim in self.nodes.items()
                if sim.preparing
            },
            prepare_sets=dict(self.prepare_sets),
            unprepared_since=dict(self.unprepared_since),
            prepare_problem=self.prepare_problem,
        )

    def version_state(self, version: str) -> VersionState:
        """Return what the ComponentVersion of a version says: Published, unless `phases` has something else."""
        return VersionState(
            phase=self.phases.get(version, "Published"),
            why="it says so",
            verified_at=self.verified.get(version, START),
            unverifiable="the registry is down" if self.registry_is_down else "",
        )

    def _is_barred(self, revision: str) -> bool:
        return self.phases.get(self.revisions.get(revision, "")) in BARRED

    def _seen(self, node: str, pod: SimPod) -> Pod:
        crashing = pod.behaviour == "crash-loop" and self._clock() >= pod.ready_at
        pulling = pod.behaviour == "image-pull" and self._clock() >= pod.ready_at
        return Pod(
            name=pod.name,
            uid=pod.name,
            node=node,
            revision=pod.revision,
            role=pod.role,
            terminating=pod.gone_at is not None,
            ready_since=pod.ready_since,
            unready_since=pod.unready_since,
            restarts=2 if crashing else 0,
            trouble="CrashLoopBackOff" if crashing else "ImagePullBackOff" if pulling else "",
            ip="10.0.0.1",
            check=pod.check,
        )

    def _zones(self) -> dict[str, tzinfo]:
        return {window.time_zone: zone for window in self.spec.windows if (zone := find_zone(window.time_zone))}

    def _seen_preparing(self, node: str, pod: SimPod) -> Pod:
        refuses = pod.behaviour not in {"ready", "never"} and self._clock() >= pod.ready_at
        return Pod(
            name=pod.name,
            uid=pod.name,
            node=node,
            revision=pod.revision,
            role=ROLE_PREPARE,
            terminating=pod.gone_at is not None,
            ready_since=pod.ready_since,
            unready_since=pod.unready_since,
            refusal=Refusal(pod.behaviour, "the node says so") if refuses else None,
            fetching=not refuses,
        )

    def _clock(self) -> float:
        return (self.now - START).total_seconds()

    # -- the operator's part

    def plan(self) -> Plan:
        seen = self.snapshot()
        first = plan_rollout(seen)
        assert plan_rollout(self.snapshot()) == first, "the same snapshot gives the same plan"
        self.note(seen)
        return first

    def note(self, seen: RolloutSnapshot) -> None:
        """Keep in mind what the operator keeps from one look at its fleet to the next."""
        self.arriving_since = find_arriving(seen)
        between = (name for name, node in seen.nodes.items() if is_leaving(node.labels.get(KEY)))
        self.leaving_since = {name: self.leaving_since.get(name, seen.now) for name in between}

    def execute(self, plan: Plan, *, crash_after: int | None = None) -> None:
        """Execute a plan in the operator's order, or only its first `crash_after` steps."""
        records = [a for a in plan.actions if not isinstance(a, LATE)]
        self._note_stable()
        late = [a for a in plan.actions if isinstance(a, LATE)]
        steps: list[Callable[[], None]] = [lambda a=action: self._do(a) for action in records]  # type: ignore[misc]
        steps.append(lambda: setattr(self, "status", plan.status))
        steps.extend(lambda a=action: self._do(a) for action in late)  # type: ignore[misc]
        for step in steps[:crash_after]:
            step()
        if crash_after is None:
            self.events.extend(plan.events)
            before = self._facts()
            for step in steps:
                step()
            assert self._facts() == before, "executing a plan twice changes nothing"

    def _facts(self) -> object:
        return (
            {name: (sim.node.uid, dict(sim.node.labels)) for name, sim in self.nodes.items()},
            dict(self.batches),
            dict(self.revisions),
            dict(self.join_sets),
            dict(self.prepare_sets),
            self.status,
        )

    def _do(self, action: actions.Action) -> None:  # noqa: C901 - one case for each kind
        match action:
            case actions.ProbeAgents() | actions.AskAnalysis():
                self._ask(action)
            case actions.KeepFinalizer():
                self.finalizer = True
            case actions.DropFinalizer():
                self.finalizer, self.let_go = False, True
            case actions.RequestVerification(name):
                self.asked.setdefault(name.removeprefix("agent-"), self._clock() + 3)
            case actions.CreateRevision(revision):
                self.revisions[revision] = self.spec.version
            case actions.CreateJoiners(revision):
                self.serve_joiners(revision)
            case actions.PrepareNodes(revision, nodes):
                tokens = frozenset(token_of(self.nodes[name].node) for name in nodes if name in self.nodes)
                name = prepare_name(self.name, revision, tokens)
                if revision in self.revisions and not self.prepare_problem:
                    self.prepare_sets.setdefault(name, PrepareSet(name, revision, tokens))
            case actions.DeletePrepare(name):
                self.prepare_sets.pop(name, None)
            case actions.DeleteRevision(revision):
                self.revisions.pop(revision, None)
            case actions.DeleteJoiners(joiners):
                self.join_sets.pop(joiners, None)
            case actions.CreateBatch(name, spec):
                assert name not in self.batches or self.batches[name].spec == spec, "batch names are never reused"
                self.batches.setdefault(name, Batch(name, spec, RolloutBatchStatus()))
            case actions.WriteBatch(name, status, _):
                self.batches[name] = replace(self.batches[name], status=status)
            case actions.DeleteBatch(name):
                self.batches.pop(name, None)
            case actions.Assign(name, uid, before, after):
                sim = self.nodes.get(name)
                if sim is None or sim.node.uid != uid or sim.node.labels.get(KEY) != before:
                    return
                self._check_record(name, uid, after)
                self._check_phase(before, after)
                labels = {key: value for key, value in sim.node.labels.items() if key != KEY}
                sim.node = replace(sim.node, labels=labels if after is None else {**labels, KEY: after})
                self.patches.append(action)
            case actions.ChangeAdopted():
                self.change_adopted(action)

    def _ask(self, action: actions.ProbeAgents | actions.AskAnalysis) -> None:
        """Ask agents or an analysis, and remember it as the operator does: a verdict lasts since its first answer."""
        if isinstance(action, actions.AskAnalysis):
            about = action.batch, action.name
            if about in self.answers and self.answers[about].attempt == action.attempt:
                return
            verdict = self.analysis_says(*about)
            self.answers[about] = AnalysisAnswer(*about, action.attempt, verdict, "it is as it is", self.now)
            return
        uids = {uid for uid, _ in action.pods}
        for name, sim in self.nodes.items():
            for pod in sim.pods:
                if pod.name not in uids:
                    continue
                verdict, before = self.agent_says(name, pod.revision), pod.check
                since = before.since if before is not None and before.verdict == verdict else self.now
                told = before.told_at if before is not None else None
                if told is None and verdict != "Unknown":
                    told = self.now
                pod.check = Measurement(verdict, "its check says so", self.now, since, told)
                self.probes += 1

    def change_adopted(self, action: actions.ChangeAdopted) -> None:
        """A DaemonSet that is taken over gets another form: `simulation.adopted` has one."""
        raise AssertionError(f"there is no DaemonSet to take over: {action}")

    def serve_joiners(self, revision: str) -> None:
        """A joiners' DaemonSet appears."""
        target = self.spec.target
        self.join_sets.setdefault(joiners_id(revision, hash_target(target)), (revision, target))

    def _note_stable(self) -> None:
        if self.status.revisions is not None:
            self.ever_stable.add(self.status.revisions.stable)
            # A patch that was sent before a run completed may be made after it.
            self.ever_stable |= {one.revision for one in self.status.revisions.completed}

    def _check_record(self, name: str, uid: str, after: str | None) -> None:
        """No node moves to a revision that no stored batch brings, but to one that was stable."""
        if after is None:
            return
        goal = after.removeprefix("to-")
        self._note_stable()
        recorded = {
            goal
            for batch in self.batches.values()
            for entry in batch.spec.nodes
            if (entry.name, entry.uid) == (name, uid)
            for goal in (entry.to, entry.back)
        }
        known = goal in self.ever_stable or goal == "none" or goal in recorded
        assert known, f"{name} moves to {goal} without a record"

    def _check_phase(self, before: str | None, after: str | None) -> None:
        """No node sets out for a version that is Withdrawn or Revoked; who is on the way may arrive."""
        if after is None:
            return
        goal = after.removeprefix("to-")
        if self._is_barred(goal):
            assert before == f"to-{goal}", f"a node goes from {before} to {after}, which is barred"

    # -- the cluster's part

    def tick(self, seconds: float = 1.0) -> None:
        """Let time pass: DaemonSet controllers delete and create pods, kubelets end and start them."""
        self.now += timedelta(seconds=seconds)
        clock = self._clock()
        for version, done in list(self.asked.items()):
            if clock >= done and not self.registry_is_down:
                self.verified[version] = self.now
                del self.asked[version]
        for name, sim in self.nodes.items():
            assignment = sim.node.labels.get(KEY)
            wanted = self._wanted(sim.node, assignment)
            for pod in sim.pods:
                if (pod.role, pod.revision) not in wanted and pod.gone_at is None:
                    pod.gone_at = clock + self.random.uniform(0, 4)
            if sim.node.ready:
                sim.pods = [pod for pod in sim.pods if pod.gone_at is None or pod.gone_at > clock]
            for role, revision in sorted(wanted):
                if not any((pod.role, pod.revision) == (role, revision) for pod in sim.pods):
                    self.serial += 1
                    sim.pods.append(
                        SimPod(
                            f"pod-{self.serial}",
                            revision,
                            clock + self.random.uniform(0, 5),
                            self.behaviour(name, revision),
                            role=role,
                        )
                    )
            for pod in sim.pods:
                is_ready = (
                    pod.behaviour == "healthy" and clock >= pod.ready_at and pod.gone_at is None and sim.node.ready
                )
                pod.ready_since = (pod.ready_since or self.now) if is_ready else None
                pod.unready_since = None if is_ready else (pod.unready_since or self.now)
            self._tick_preparing(name, sim, clock)
        self._note_unprepared()
        self.check()

    def _tick_preparing(self, name: str, sim: SimNode, clock: float) -> None:
        """Let pods that prepare a node come, become Ready and go."""
        wanted = {each.revision for each in self.prepare_sets.values() if token_of(sim.node) in each.nodes}
        for pod in sim.preparing:
            if pod.revision not in wanted and pod.gone_at is None:
                pod.gone_at = clock + self.random.uniform(0, 2)
        if sim.node.ready:
            sim.preparing = [pod for pod in sim.preparing if pod.gone_at is None or pod.gone_at > clock]
        for revision in sorted(wanted - {pod.revision for pod in sim.preparing}):
            self.serial += 1
            ready_at = clock + self.random.uniform(*self.prepare_seconds)
            says = self.prepare_says(name, revision)
            sim.preparing.append(SimPod(f"pod-{self.serial}", revision, ready_at, says, role=ROLE_PREPARE))
        for pod in sim.preparing:
            is_ready = pod.behaviour == "ready" and clock >= pod.ready_at and pod.gone_at is None and sim.node.ready
            pod.ready_since = (pod.ready_since or self.now) if is_ready else None
            pod.unready_since = None if is_ready else (pod.unready_since or self.now)

    def _note_unprepared(self) -> None:
        tokens = frozenset().union(*(each.nodes for each in self.prepare_sets.values()))
        counts = is_counting(self.spec, self.status, self._zones(), self.now)
        known = self.unprepared_since if counts else {}
        self.unprepared_since = {
            name: known.get(name, self.now)
            for name, sim in self.nodes.items()
            if token_of(sim.node) in tokens and not any(pod.ready_since for pod in sim.preparing)
        }

    def _wanted(self, node: Node, assignment: str | None) -> set[tuple[str, str]]:
        """Return which DaemonSets want a node, those of rivals included: role and revision of each."""
        fleets = [self, *self.rivals]
        if assignment is not None:
            return {(ROLE_REVISION, assignment)} if any(assignment in fleet.revisions for fleet in fleets) else set()
        return {
            (ROLE_JOINERS, revision)
            for fleet in fleets
            for revision, target in fleet.join_sets.values()
            if is_targeted(target, node)
        }

    def lose_pod(self, name: str) -> None:
        self.nodes[name].pods.clear()

    def check(self) -> None:
        """Assert what must never be otherwise."""
        for name, sim in self.nodes.items():
            agents = {(pod.role, pod.revision) for pod in sim.pods}
            assert len(agents) <= 1, f"two agents live on {name}: {agents}"

    def out_of_service(self) -> int:
        """Count the nodes whose agent is away because of us."""
        return sum(self.is_out(name) for name, sim in self.nodes.items() if sim.node.ready)

    def is_out(self, name: str) -> bool:
        return is_leaving(self.assignment(name)) or not any(pod.ready_since for pod in self.nodes[name].pods)

    # -- driving it

    def settle(self, *, limit: int = 3000, until: Callable[["Fleet"], bool] | None = None) -> None:
        """Plan, execute and let time pass until the run has a result (or `until` holds)."""
        done = until or is_at_rest
        for _ in range(limit):
            self.execute(self.plan())
            if done(self):
                return
            self.tick()
        raise AssertionError(f"no end after {limit} steps: {self.status.phase}, {self.status.run}")

    def entries(self, run: int | None = None) -> Iterable[tuple[BatchNode, str, str]]:
        """Iterate over (entry, state, reason) of a run's batches."""
        for batch in self.batches.values():
            if run is None or batch.spec.run == run:
                states = {result.name: result for result in batch.status.nodes}
                for entry in batch.spec.nodes:
                    result = states.get(entry.name)
                    yield entry, result.state if result else "Pending", result.reason if result else ""


def is_at_rest(fleet: Fleet) -> bool:
    run = fleet.status.run
    wanted = f"{fleet.prefix}{fleet.spec.version}{fleet.variant}"
    return (
        run is not None
        and is_for(run, wanted)
        and run.state != "Running"
        and not any(is_leaving(fleet.assignment(name)) for name in fleet.nodes)
        and fleet.plan().actions == ()
    )
