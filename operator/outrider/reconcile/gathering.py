"""One look at a Rollout and its fleet, put together from what the caches hold. No I/O, no decisions."""

import asyncio
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from pydantic import ValidationError

from outrider.adapters import clock
from outrider.adapters.informer import Store
from outrider.adapters.kube import Json
from outrider.api import names
from outrider.api.checks import HttpCheck
from outrider.api.componentversion import Compatibility, ComponentVersionStatus
from outrider.api.errors import Stalling
from outrider.api.rollout import (
    Delivery,
    RolloutBatchStatus,
    RolloutSpec,
    RolloutStatus,
    Strategy,
    Target,
    VolumeDelivery,
)
from outrider.core import plan as actions
from outrider.core.allowance import Allowance
from outrider.core.compatibility import VersionRules, read_rules
from outrider.core.fleet import (
    Claim,
    VersionFacts,
    find_hindrance,
    may_overlap,
)
from outrider.core.plan import Plan
from outrider.core.prepare import is_counting, token_of
from outrider.core.requests import ORDER, is_answered, named_version
from outrider.core.revision import hash_target, joiners_id, revision_of
from outrider.core.snapshot import (
    AnalysisAnswer,
    Batch,
    Measurement,
    Needs,
    Neighbour,
    Node,
    Pod,
    PrepareSet,
    Request,
    RolloutSnapshot,
    VersionState,
    Wish,
)
from outrider.core.states import ONGOING, SETTLED
from outrider.reconcile.adoption import Sight
from outrider.reconcile.fleetview import AgentIndex, Claims, Fleet, FleetView, NodeLog
from outrider.reconcile.projections import AgentDaemonSet, AgentPod, StoredBatch
from outrider.settings import Settings

_RECORD_SECONDS = 3.0
_RECORDS_PER_SECOND = 0.4
"""Records that can be derived again from the cluster are written together, at most so often and at most so many: one of
100 nodes costs the API server 20 ms, and a window over thousands of nodes has dozens open at a time."""

TEMPLATE_SECONDS = 300.0
"""After so long a template that was refused is tried again: what refused it may be somebody's webhook."""


@dataclass(frozen=True)
class Probed:
    """What an agent said, and by which check it was asked."""

    check: HttpCheck
    measurement: Measurement


@dataclass(frozen=True)
class Reading:
    """A Rollout's object as it was read: most passes find the one that the pass before found."""

    body: Json
    spec: RolloutSpec
    status: RolloutStatus
    wanted: str
    target_hash: str


@dataclass
class Memory:
    """What is known of a Rollout beyond its objects; lost at a restart, and found out again then."""

    pending_records: dict[str, RolloutBatchStatus] = field(default_factory=dict)
    urgent_records: set[str] = field(default_factory=set)
    records_written: float = float("-inf")
    status_written: float = float("-inf")
    template_problems: dict[str, tuple[str, float]] = field(default_factory=dict)
    leaving_since: dict[str, datetime] = field(default_factory=dict)
    arriving_since: dict[str, datetime] = field(default_factory=dict)
    without_agent_since: dict[str, datetime] = field(default_factory=dict)
    unprepared_since: dict[str, datetime] = field(default_factory=dict)
    prepare_problem: tuple[str, float] | None = None
    """What the API server said against a DaemonSet that would prepare nodes, and when."""
    told: set[str] = field(default_factory=set)
    patches: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """The changes of nodes' assignments that have been sent and not been answered, by node."""
    arrivals: dict[str, actions.Assign] = field(default_factory=dict)
    """The changes of nodes' assignments that only wait for pods to end, by node, as the last pass has them; none while
    a pass is made: it decides anew."""
    refused: dict[str, float] = field(default_factory=dict)
    """When the API server last refused to change a node, by node, on the event loop's clock."""
    asked: tuple[str, datetime] | None = None
    """The wanted revision whose version is being verified anew, and since when that is asked for."""
    uid: str = ""
    assignment_key: str = ""
    in_window: bool = False
    pass_seconds: float = 0.0
    reading: Reading | None = None
    view: FleetView | None = None
    told_status: tuple[Json, Json] | None = None
    """A stored Rollout, and the part of its status that is ours."""
    probes: dict[str, Probed] = field(default_factory=dict)
    """What agents said when they were asked themselves, by their pods' UIDs."""
    shown: dict[str, tuple[Pod, Probed, Pod]] = field(default_factory=dict)
    """Each pod with what it said, put together once."""
    answers: dict[tuple[str, str], AnalysisAnswer] = field(default_factory=dict)
    """The newest answer of each analysis about each batch, until it is recorded."""

    async def patches_ended(self) -> None:
        """Wait until all changes of nodes' assignments are answered."""
        if self.patches:
            await asyncio.wait(list(self.patches.values()))

    def records_due(self) -> float:
        """Return when pending records are to be written."""
        return self.records_written + max(_RECORD_SECONDS, len(self.pending_records) / _RECORDS_PER_SECOND)

    def forget_record(self, name: str) -> None:
        """Take note that a record is stored, or that there is none."""
        self.pending_records.pop(name, None)
        self.urgent_records.discard(name)


@dataclass(frozen=True)
class Caches:
    """The kinds that a Rollout's snapshot is made from."""

    rollouts: Store[Json]
    versions: Store[Json]
    nodes: Store[Node]
    pods: Store[AgentPod]
    daemonsets: Store[AgentDaemonSet]
    batches: Store[StoredBatch]
    agents: AgentIndex = field(init=False)
    node_log: NodeLog = field(init=False)

    def __post_init__(self) -> None:
        """Keep what each look needs sorted as it comes in."""
        object.__setattr__(self, "agents", AgentIndex(self.pods))
        object.__setattr__(self, "node_log", NodeLog(self.nodes))


class Gatherer:
    """Puts snapshots together. `observing_since` is when all caches were filled: None before."""

    def __init__(
        self, caches: Caches, settings: Settings, sight: Callable[[str], Sight | None] = lambda _key: None
    ) -> None:
        self._caches = caches
        self._sight = sight
        self._settings = settings
        self._rules: dict[str, tuple[str, int, Compatibility | None]] = {}
        self.observing_since: datetime | None = None

    def gather(
        self, body: Json, memory: Memory, *, namespace_terminating: bool = False, pod_security: str = ""
    ) -> RolloutSnapshot:
        """Return one look at a Rollout (as the API server has it) and its fleet.

        `pod_security` is the Pod Security level that its namespace enforces, "" if it says nothing.
        """
        metadata = body["metadata"]
        namespace, name, uid = metadata["namespace"], metadata["name"], metadata["uid"]
        deleting = bool(metadata.get("deletionTimestamp"))
        reading = memory.reading = _read(body, memory.reading)
        spec, status, wanted = reading.spec, reading.status, reading.wanted
        key = names.assignment_key(namespace, spec.component)
        requests = tuple(self._requests(body, status, memory))

        ignored = frozenset(spec.health.ignore_restarts_of)
        pods = self._caches.agents.pods(namespace, spec.component, ignored=ignored)
        preparing = self._caches.agents.pods(namespace, spec.component, preparing=True, ignored=ignored)
        if memory.probes:
            is_asking = status.run is not None and status.run.state in ONGOING
            _add_measurements(pods, spec.health.http if is_asking else None, memory)
        revisions: dict[str, str] = {}
        rules: dict[str, VersionRules] = {}
        joiners: list[str] = []
        prepare_sets = self._prepare_sets(namespace, name)
        others = self._other_rollouts(body, spec.component)
        joiners_elsewhere = False
        for daemonset in self._caches.daemonsets.values():
            if (daemonset.namespace, daemonset.rollout, daemonset.deleting) == (namespace, name, False):
                if daemonset.role == names.ROLE_JOINERS:
                    joiners.append(joiners_id(daemonset.revision, daemonset.target))
                elif daemonset.role != names.ROLE_PREPARE:
                    revisions[daemonset.revision] = daemonset.version
                    rules[daemonset.revision] = self._read_rules(
                        namespace, spec.component, daemonset.version, daemonset.platforms
                    )
            elif (daemonset.namespace, daemonset.component) == (namespace, spec.component):
                joiners_elsewhere |= _may_serve(daemonset, others, spec.target)
        version = self.version_facts(namespace, spec.component, spec.version)
        wanted_rules = rules.get(wanted)
        if wanted_rules is None and version is not None:
            platforms = frozenset(artifact.platform for artifact in version.status.artifacts)
            wanted_rules = self._read_rules(namespace, spec.component, spec.version, platforms)
        known_rules = [*rules.values(), *([wanted_rules] if wanted_rules is not None else [])]
        sight = self._sight(f"{namespace}/{name}")
        known = revisions.keys() | ({names.ASSIGNMENT_LEGACY} if sight is not None else set())
        claims = Claims(
            key,
            spec.target,
            tuple(others),
            frozenset(revisions),
            frozenset(known),
            deleting=deleting,
            all_assigned=namespace_terminating,
        )
        fleet = self._look(claims, memory)
        nodes, members, foreign, leavers = fleet.nodes, fleet.members, fleet.foreign, fleet.leavers
        batches = tuple(self._batches(namespace, uid, memory))
        legacy = None
        if sight is not None:
            all_nodes = list(self._caches.nodes.values())
            legacy = sight.describe(key, spec.target, status.adoption, all_nodes, members, leaving=_leaves(body))
            for pod in sight.controlled():
                pods[pod.node] = (*pods.get(pod.node, ()), pod)
        now = clock.now()
        without = (name for name in members - pods.keys() if nodes[name].labels.get(key) in revisions)
        memory.without_agent_since = {name: memory.without_agent_since.get(name, now) for name in without}
        zones = {window.time_zone: zone for window in spec.windows if (zone := clock.find_zone(window.time_zone))}
        _note_unprepared(
            memory, prepare_sets.values(), nodes, preparing, now, counts=is_counting(spec, status, zones, now)
        )
        return RolloutSnapshot(
            now=now,
            namespace=namespace,
            name=name,
            uid=uid,
            generation=metadata["generation"],
            deleting=deleting,
            deleting_since=_read_time(metadata.get("deletionTimestamp")),
            namespace_terminating=namespace_terminating,
            has_finalizer=names.FINALIZER in (metadata.get("finalizers") or []),
            spec=spec,
            status=status,
            assignment_key=key,
            wanted=wanted,
            hindrance=find_hindrance(
                spec,
                namespace,
                version,
                self._published(namespace, spec.component),
                len(members),
                foreign,
                self._template_problem(memory, wanted),
                len(leavers),
                Allowance(pod_security, self._settings.host_roots, self._settings.node_dir),
            ),
            started_by=_who_set(body, "f:spec", "f:version"),
            requests=requests,
            observing_since=self.observing_since,
            target_hash=reading.target_hash,
            nodes=nodes,
            members=members,
            owned_by_others=foreign,
            leavers=leavers,
            shares_joiners=any(may_overlap(claim.target, spec.target) for claim in claims.older),
            joiners_elsewhere=joiners_elsewhere,
            pods=pods,
            batches=batches,
            revisions=revisions,
            rules=rules,
            wanted_rules=wanted_rules,
            assigned=fleet.assigned,
            joiners=tuple(sorted(joiners)),
            versions=self._version_states(namespace, spec, status, revisions, requests),
            neighbours=self._neighbours(
                namespace, spec.component, {need for rule in known_rules for need, _ in rule.requires}
            ),
            verify_after=self._verify_after(wanted, memory),
            answers=tuple(memory.answers.values()),
            without_agent_since=memory.without_agent_since,
            under_way=frozenset(memory.patches),
            leaving_since=memory.leaving_since,
            arriving_since=memory.arriving_since,
            legacy=legacy,
            zones=zones,
            preparing=preparing,
            prepare_sets=prepare_sets,
            unprepared_since=memory.unprepared_since,
            prepare_problem=memory.prepare_problem[0] if memory.prepare_problem is not None else "",
        )

    def _look(self, claims: Claims, memory: Memory) -> Fleet:
        """Return the nodes that concern a Rollout; as long as the claims stand only those that changed are asked."""
        if memory.view is None or memory.view.claims != claims:
            memory.view = FleetView(claims)
        return memory.view.look(self._caches.node_log)

    def _prepare_sets(self, namespace: str, rollout: str) -> dict[str, PrepareSet]:
        """Return the DaemonSets of a Rollout that prepare nodes, by name."""
        return {
            one.name: PrepareSet(one.name, one.revision, one.prepares)
            for one in self._caches.daemonsets.values()
            if one.role == names.ROLE_PREPARE
            and (one.namespace, one.rollout, one.deleting) == (namespace, rollout, False)
        }

    def _verify_after(self, wanted: str, memory: Memory) -> datetime:
        """Return since when a verification counts as fresh: also one that took longer than it stays fresh."""
        recent = clock.now() - timedelta(seconds=self._settings.fresh_seconds)
        if memory.asked is None or memory.asked[0] != wanted:
            return recent
        return min(recent, memory.asked[1])

    def remember_asking(self, seen: RolloutSnapshot, plan: Plan, memory: Memory) -> None:
        """Keep in mind since when a verification is asked for, until its run has started."""
        waits = any(isinstance(a, actions.RequestVerification | actions.CreateRevision) for a in plan.actions)
        if not waits:
            memory.asked = None
        elif memory.asked is None or memory.asked[0] != seen.wanted:
            # Status tells the time to the second: what is verified within this one counts.
            memory.asked = seen.wanted, seen.now.replace(microsecond=0)

    def _read_rules(self, namespace: str, component: str, version: str, platforms: frozenset[str]) -> VersionRules:
        """Return a revision's rules: its platforms stand on its DaemonSet, the others in its ComponentVersion."""
        name = f"{component}-{version}"
        key = f"{namespace}/{name}"
        body = self._caches.versions.get(namespace, name)
        if body is None:
            self._rules.pop(key, None)
            return VersionRules(platforms)
        metadata = body["metadata"]
        known = self._rules.get(key)
        if known is None or known[:2] != (metadata["uid"], metadata["generation"]):
            stated = body["spec"].get("compatibility")
            compatibility = Compatibility.model_validate(stated) if stated else None
            known = self._rules[key] = metadata["uid"], metadata["generation"], compatibility
        return read_rules(platforms, known[2])

    def _requests(self, body: Json, status: RolloutStatus, memory: Memory) -> Iterable[Request]:
        """Yield what annotations ask for and was not answered yet, with who asks as far as anybody has checked it."""
        annotations = body["metadata"].get("annotations") or {}
        for kind in ORDER:
            asked, by = names.request_annotations(kind)
            value = annotations.get(asked)
            if not value or is_answered(status, kind, value):
                continue
            who = annotations.get(by) if not self._settings.requested_by_unchecked else None
            if not who and (manager := _who_set(body, "f:metadata", "f:annotations", f"f:{asked}")):
                who = f"(through {manager})"
            if kind == "reconcile":
                memory.template_problems.clear()  # what was refused is tried again
            yield Request(kind, value, who or "")

    def _version_states(
        self,
        namespace: str,
        spec: RolloutSpec,
        status: RolloutStatus,
        revisions: Mapping[str, str],
        requests: Iterable[Request],
    ) -> dict[str, VersionState]:
        named = {spec.version, *revisions.values()}
        named |= {status.run.version, status.run.to_version} if status.run else set()
        named |= {version for each in requests if each.kind == "rollback" and (version := named_version(each.value))}
        found = {version: self.version_facts(namespace, spec.component, version) for version in named}
        return {version: facts.state for version, facts in found.items() if facts is not None}

    def _neighbours(self, namespace: str, component: str, required: set[str]) -> dict[str, Neighbour]:
        """Return the components that one has to do with: what it requires, what requires it, and so on from there."""
        versions: dict[str, dict[str, str]] = {}
        for daemonset in self._caches.daemonsets.values():
            if daemonset.namespace == namespace and daemonset.component and daemonset.component != component:
                versions.setdefault(daemonset.component, {})[daemonset.revision] = daemonset.version
        wishes: dict[str, list[tuple[tuple[str, bool, str], Wish]]] = {}
        for body in self._caches.rollouts.values():
            if body["metadata"]["namespace"] == namespace and body["spec"]["component"] != component:
                wishes.setdefault(body["spec"]["component"], []).append((_seniority(body), _wish_of(body)))
        needs = {
            name: {
                version: self._needs(namespace, name, version)
                for version in {*versions.get(name, {}).values(), *(wish.version for _, wish in wishes.get(name, ()))}
            }
            for name in versions.keys() | wishes.keys() | required
        }
        return {
            name: Neighbour(
                names.assignment_key(namespace, name),
                versions.get(name, {}),
                needs[name],
                tuple(wish for _, wish in sorted(wishes.get(name, ()), key=lambda item: item[0])),
                self._unsettled(namespace, name),
            )
            for name in _connected(component, required, needs)
        }

    def _unsettled(self, namespace: str, component: str) -> frozenset[str]:
        """Return the nodes that the newest runs of a component have taken on, and not found healthy."""
        runs = {
            (body["metadata"]["uid"], ((body.get("status") or {}).get("run") or {}).get("id"))
            for body in self._caches.rollouts.values()
            if (body["metadata"]["namespace"], body["spec"]["component"]) == (namespace, component)
        }
        found: set[str] = set()
        for stored in self._caches.batches.values():
            if stored.namespace != namespace or (stored.rollout_uid, stored.batch.spec.run) not in runs:
                continue
            settled = {result.name for result in stored.batch.status.nodes if result.state in SETTLED}
            found.update(entry.name for entry in stored.batch.spec.nodes if entry.name not in settled)
        return frozenset(found)

    def _needs(self, namespace: str, component: str, version: str) -> Needs:
        return self._read_rules(namespace, component, version, frozenset()).requires

    def _template_problem(self, memory: Memory, revision: str) -> str:
        message, since = memory.template_problems.get(revision, ("", 0.0))
        if message and asyncio.get_running_loop().time() - since >= TEMPLATE_SECONDS:
            del memory.template_problems[revision]
            return ""
        return message

    def _batches(self, namespace: str, uid: str, memory: Memory) -> Iterable[Batch]:
        stored = [
            batch for batch in self._caches.batches.values() if (batch.namespace, batch.rollout_uid) == (namespace, uid)
        ]
        stored.sort(key=lambda item: (item.batch.spec.run, item.batch.spec.batch, item.batch.spec.page))
        for item in stored:
            pending = memory.pending_records.get(item.batch.name)
            yield item.with_status(pending).batch if pending is not None else item.batch

    def _other_rollouts(self, body: Json, component: str) -> list[Claim]:
        """Return the other Rollouts of the same component. What two of them want belongs to the older one."""
        metadata, found = body["metadata"], []
        for other in self._caches.rollouts.values():
            theirs = other["metadata"]
            if theirs["namespace"] != metadata["namespace"] or theirs["uid"] == metadata["uid"]:
                continue
            if other["spec"].get("component") != component:
                continue
            try:
                target = Target.model_validate(other["spec"].get("target"))
            except ValidationError:
                continue  # it claims nothing that anybody could understand, and must not hold up the others
            is_older = _seniority(other) < _seniority(body)
            found.append(Claim(theirs["name"], theirs["uid"], theirs["creationTimestamp"], target, is_older=is_older))
        return found

    def version_facts(self, namespace: str, component: str, version: str) -> VersionFacts | None:
        """Return what a Rollout needs to know of a version, or None if there is no such ComponentVersion."""
        body = self._caches.versions.get(namespace, f"{component}-{version}")
        if body is None:
            return None
        return VersionFacts(
            body["metadata"]["name"],
            body["metadata"]["generation"],
            ComponentVersionStatus.model_validate(body.get("status") or {}),
            deleting=bool(body["metadata"].get("deletionTimestamp")),
            revoked=body["spec"].get("stage") == "Revoked",
            type=body["spec"].get("type") or "Agent",
        )

    def _published(self, namespace: str, component: str) -> list[str]:
        return [
            body["spec"]["version"]
            for body in self._caches.versions.values()
            if body["metadata"]["namespace"] == namespace
            and body["spec"]["component"] == component
            and (body.get("status") or {}).get("phase") == "Published"
        ]


def _note_unprepared(
    memory: Memory,
    sets: Collection[PrepareSet],
    nodes: Mapping[str, Node],
    preparing: Mapping[str, tuple[Pod, ...]],
    now: datetime,
    *,
    counts: bool,
) -> None:
    """Remember since when nodes that are being prepared are not; from now on, while that time does not count."""
    if not sets:
        memory.unprepared_since = {}
        return
    tokens = frozenset().union(*(each.nodes for each in sets))
    known = memory.unprepared_since if counts else {}
    memory.unprepared_since = {
        name: known.get(name, now)
        for name, node in nodes.items()
        if token_of(node) in tokens and not any(pod.ready_since is not None for pod in preparing.get(name, ()))
    }


def _add_measurements(pods: dict[str, tuple[Pod, ...]], http: HttpCheck | None, memory: Memory) -> None:
    """Show each pod with what it said when the present check asked it; forget pods that are gone."""
    known: dict[str, Probed] = {}
    shown: dict[str, tuple[Pod, Probed, Pod]] = {}
    for node, found in pods.items():
        for pod in found:
            probed = memory.probes.get(pod.uid)
            if probed is None or not (probed.check is http or probed.check == http):
                continue
            before = memory.shown.get(pod.uid)
            if before is None or before[0] is not pod or before[1] is not probed:
                before = pod, probed, replace(pod, check=probed.measurement)
            known[pod.uid], shown[pod.uid] = probed, before
            pods[node] = tuple(before[2] if one is pod else one for one in pods[node])
    memory.probes, memory.shown = known, shown


def _read(body: Json, known: Reading | None) -> Reading:
    """Read a Rollout; what is as it was is not read again."""
    if known is not None and known.body is body:
        return known
    is_deleted = bool(body["metadata"].get("deletionTimestamp"))
    if known is not None and not is_deleted and known.body["spec"] == body["spec"]:
        return replace(known, body=body, status=_read_status(body))
    spec, status = _read_deleted(body) if is_deleted else (_read_spec(body), _read_status(body))
    return Reading(body, spec, status, revision_of(body["metadata"]["name"], spec), hash_target(spec.target))


def _seniority(body: Json) -> tuple[str, bool, str]:
    """Return what decides whose nodes are whose: the older one's. Of two from the same second, his who began first."""
    begun = bool((body.get("status") or {}).get("run"))
    return body["metadata"]["creationTimestamp"], not begun, body["metadata"]["uid"]


def _wish_of(body: Json) -> Wish:
    """Return what a Rollout wants: its spec's version, or while it holds after a rollback what it went back to."""
    spec, status = body["spec"], body.get("status") or {}
    version = spec["version"]
    if status.get("phase") == "RolledBack":
        version = (status.get("revisions") or {}).get("stableVersion") or version
    return Wish(body["metadata"]["name"], version, Target.model_validate(spec["target"]))


def _connected(component: str, required: set[str], needs: Mapping[str, Mapping[str, Needs]]) -> list[str]:
    """Return the components that one is connected with by requirements, over others too, in either direction."""
    edges = {(component, other) for other in required}
    edges |= {(name, other) for name, found in needs.items() for need in found.values() for other, _ in need}
    reached, added = {component}, True
    while added:
        more = {end for edge in edges for end in edge if reached & set(edge)} - reached
        reached |= more
        added = bool(more)
    return sorted((reached - {component}) & needs.keys())


def _may_serve(daemonset: AgentDaemonSet, others: Iterable[Claim], target: Target) -> bool:
    """Tell whether another Rollout's joiners' DaemonSet might want nodes of a target."""
    if daemonset.role != names.ROLE_JOINERS:
        return False
    owner = next((claim for claim in others if claim.name == daemonset.rollout), None)
    known = owner is not None and daemonset.target == hash_target(owner.target)
    return owner is None or not known or may_overlap(owner.target, target)


def _read_time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _read_spec(body: Json) -> RolloutSpec:
    try:
        return RolloutSpec.model_validate(body["spec"])
    except ValidationError as error:
        name = f"Rollout {body['metadata']['namespace']}/{body['metadata']['name']}"
        fields = ", ".join(sorted({".".join(str(part) for part in problem["loc"]) for problem in error.errors()}))
        raise Stalling(
            "SpecInvalid",
            f"{name} was stored with a spec that this version of Outrider does not understand, at: {fields}. Correct "
            "these fields; nothing of its fleet is moved meanwhile",
        ) from None


def _read_status(body: Json) -> RolloutStatus:
    return RolloutStatus.model_validate(body.get("status") or {})


def _read_deleted(body: Json) -> tuple[RolloutSpec, RolloutStatus]:
    """Return spec and status of a Rollout that is being deleted: if they cannot be read, the little that this takes.

    They were stored under another schema then. That must not keep the Rollout from going.
    """
    stored: Json = body.get("spec") or {}
    try:
        spec = RolloutSpec.model_validate(stored)
    except ValidationError:
        spec = RolloutSpec.model_construct(
            component=str(stored.get("component")),
            version=str(stored.get("version")),
            target=Target(),
            template={},
            delivery=Delivery(volume=VolumeDelivery(mount_path="/unknown", containers=["unknown"])),
            strategy=Strategy(type="Full"),
            deletion_policy="Delete" if stored.get("deletionPolicy") == "Delete" else "Orphan",
        )
    try:
        status = _read_status(body)
    except ValidationError:
        status = RolloutStatus()
    return spec, status


def _leaves(body: Json) -> bool:
    """Tell whether a Rollout is to leave the DaemonSet that it took over."""
    wanted, known = body["spec"].get("adoption") or {}, (body.get("status") or {}).get("adoption") or {}
    gives_back = bool(wanted.get("giveBack")) or known.get("state") in {"GivingBack", "GivenBack"}
    return gives_back or bool(body["metadata"].get("deletionTimestamp"))


def _who_set(body: Json, *path: str) -> str:
    """Return the field manager that set a field last: kubectl, argocd-controller and so on."""
    best: tuple[str, str] = ("", "")
    for entry in body["metadata"].get("managedFields") or []:
        if entry.get("subresource"):
            continue
        fields = entry.get("fieldsV1") or {}
        if isinstance(fields, str):
            fields = json.loads(fields)
        for key in path[:-1]:
            fields = fields.get(key) or {}
        if path[-1] in fields:
            best = max(best, (entry.get("time") or "", entry.get("manager") or ""))
    return best[1]
