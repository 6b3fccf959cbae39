"""Which nodes belong to a fleet, and whether its version may be brought to them."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from outrider.api.componentversion import ComponentVersionStatus, Phase
from outrider.api.names import ASSIGNMENT_NONE, LABEL_EXCLUDE
from outrider.api.rollout import RolloutSpec, Target
from outrider.core.allowance import Allowance, find_delivery_hindrance
from outrider.core.conditions import shortened
from outrider.core.moves import target_of
from outrider.core.ranges import parse_version
from outrider.core.snapshot import Hindrance, Node, VersionState
from outrider.core.states import BARRED


def is_excluded(node: Node) -> bool:
    """Tell whether a person has left a node out: it keeps what it has, and Outrider does not touch it."""
    return node.labels.get(LABEL_EXCLUDE) == "true"


def is_targeted(target: Target, node: Node) -> bool:
    """Tell whether a node belongs to a target; nodes labelled as excluded never do."""
    if is_excluded(node):
        return False
    if target.node_names is not None:
        return node.name in target.node_names
    if target.node_selector is not None:
        return target.node_selector.matches(node.labels)
    return bool(target.all)


@dataclass(frozen=True, slots=True)
class Claim:
    """Another Rollout of the same component and namespace, for deciding whose nodes are whose."""

    name: str
    uid: str
    created: str
    target: Target
    is_older: bool = True


def select_members(
    nodes: Iterable[Node], target: Target, older: Iterable[Claim]
) -> tuple[frozenset[str], Mapping[str, str]]:
    """Return the names of the target's nodes, and apart from them those that an older Rollout owns (with its name)."""
    claims = list(older)
    members: set[str] = set()
    foreign: dict[str, str] = {}
    for node in nodes:
        if not is_targeted(target, node):
            continue
        owner = next((claim.name for claim in claims if is_targeted(claim.target, node)), None) if claims else None
        if owner is None:
            members.add(node.name)
        else:
            foreign[node.name] = owner
    return frozenset(members), foreign


def carries_assignment(assignment: str, revisions: Container[str]) -> bool:
    """Tell whether an assignment is one that a Rollout with these revisions gives, or none at all."""
    goal = target_of(assignment)
    return goal == ASSIGNMENT_NONE or goal in revisions


def select_leavers(
    nodes: Iterable[Node], key: str, revisions: Container[str], members: Container[str], others: Iterable[Claim]
) -> frozenset[str]:
    """Return the names of the nodes that have left a fleet: they carry its assignment (label `key`) and are nobody's.

    Not those that are excluded, nor those that another Rollout of the component claims, older or younger: that one
    brings its own agent to them.
    """
    claims = list(others)
    return frozenset(
        node.name
        for node in nodes
        if (assignment := node.labels.get(key)) is not None
        and node.name not in members
        and carries_assignment(assignment, revisions)
        and not is_excluded(node)
        and not any(is_targeted(claim.target, node) for claim in claims)
    )


def may_overlap(one: Target, other: Target) -> bool:
    """Tell whether a node could belong to both targets; in doubt it could."""
    if one.node_names is not None and other.node_names is not None:
        return not set(one.node_names).isdisjoint(other.node_names)
    if one.node_selector is None or other.node_selector is None:
        return True
    ours, theirs = one.node_selector.match_labels, other.node_selector.match_labels
    return all(ours[key] == theirs[key] for key in ours.keys() & theirs.keys())


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What a Rollout needs to know of the ComponentVersion that it names."""

    name: str
    generation: int
    status: ComponentVersionStatus
    deleting: bool = False
    revoked: bool = False
    type: str = "Agent"

    @property
    def phase(self) -> Phase | None:
        """The phase. What its author has revoked is Revoked at once: that is final."""
        return "Revoked" if self.revoked else self.status.phase

    @property
    def verified_at(self) -> datetime | None:
        """When the last of its artifacts was read back and verified: the oldest of their times, None without one."""
        signatures = [artifact.signature for artifact in self.status.artifacts]
        times = [signature.verified_at for signature in signatures if signature is not None]
        return min(times) if times and len(times) == len(signatures) else None

    @property
    def state(self) -> VersionState:
        """What the rollout planner needs to know of it."""
        conditions = {condition.type: condition for condition in self.status.conditions}
        verified = conditions.get("Verified")
        unverifiable = verified is not None and verified.status == "Unknown" and verified.reason != "Pending"
        # What is refused is told there without what it means for the version, which the Rollout says in its own words.
        telling = verified if verified is not None and verified.status == "False" else conditions.get("Ready")
        return VersionState(
            phase=self.phase,
            why=shortened(telling.message, 300) if telling is not None else "",
            verified_at=self.verified_at,
            unverifiable=verified.message if verified is not None and unverifiable else "",
        )


_ALLOWANCE = Allowance()


def find_hindrance(
    spec: RolloutSpec,
    namespace: str,
    version: VersionFacts | None,
    published: Iterable[str],
    members: int,
    foreign: Mapping[str, str],
    template_problem: str,
    leavers: int = 0,
    allowance: Allowance = _ALLOWANCE,
) -> Hindrance | None:
    """Return why nothing new may be started for this spec, or None. The first reason that applies is told.

    What the phases after publication mean depends on the run, too: see `outrider.core.standing`.

    `published` are the published versions of the component in the namespace, `template_problem` what the API server
    said against the DaemonSet. `leavers` nodes have an agent and do not belong to the target any more. `allowance` is
    what deliveries may use.
    """
    wanted = f"{spec.component}-{spec.version}"
    if version is None:
        known = sorted(published, key=parse_version)
        choice = f"set spec.version to a published one ({', '.join(known[-5:])})" if known else "publish it first"
        return Hindrance(
            "VersionNotFound",
            f"there is no ComponentVersion {wanted} in namespace {namespace}; create it, or {choice}",
            stalled=True,
        )
    status = version.status
    if version.deleting:
        return Hindrance("VersionDeleted", f"ComponentVersion {wanted} is being deleted", stalled=True)
    is_current = status.observed_generation == version.generation and status.reference is not None
    if version.phase not in BARRED and not (is_current and version.phase in {"Published", "Deprecated"}):
        conditions = {condition.type: condition for condition in status.conditions}
        why = conditions["Ready"].message if "Ready" in conditions else "it has not been looked at yet"
        stalled = "Stalled" in conditions and conditions["Stalled"].status == "True"
        stands = f"is {status.phase or 'new'}, not Published: {why}"
        if status.phase == "Published":
            stands = "was changed, and is looked at again"
        return Hindrance(
            "VersionNotPublished",
            f"ComponentVersion {wanted} {stands}",
            stalled=stalled,
        )
    if (found := find_delivery_hindrance(spec, namespace, version.type, status.artifacts, allowance)) is not None:
        return found
    if template_problem:
        return Hindrance("TemplateInvalid", template_problem, stalled=True)
    if not members:
        if foreign:
            owners = ", ".join(sorted(set(foreign.values())))
            return Hindrance(
                "OwnedByOthers",
                f"all {len(foreign)} nodes of spec.target belong to older Rollouts of {spec.component}: {owners}",
                stalled=True,
            )
        kept = ""
        if leavers:
            # A slip of the pen must not take every agent away.
            kept = (
                f". {leavers} nodes that belonged to it keep their agents meanwhile; to take all away delete the "
                "Rollout with spec.deletionPolicy Delete"
            )
        return Hindrance(
            "EmptyTarget",
            "no node matches spec.target; label nodes or change it (compare with: kubectl get nodes --show-labels)"
            + kept,
            stalled=True,
        )
    return None
