"""Taking over an existing DaemonSet, and giving it back: which nodes it wants, and when that may change.

Its agent is to the planner a revision named `legacy`: nodes come from it and go back to it by their label, like from
and to any other. For that it must want a node only while the node's label does not name another revision: one patch
makes it so, which at the same time keeps the DaemonSet controller from replacing its pods (`OnDelete`). Before and
after the patch it wants every node that it wanted before, so that no pod is ended.

| form | It wants, of the nodes that it wanted before | When |
|---|---|---|
| Original | all | before the take-over, and after it was given back |
| Shared | those without a label, and those labelled `legacy` | from the take-over on |
| Last | those labelled `legacy` | while the joiners' DaemonSet serves those without a label |

Assumptions:
- The DaemonSet controller ends a pod whose node its DaemonSet does not want any more, and makes none there.
- What it has not observed yet (`observedGeneration`) it may still act against.

Invariants:
- It gets its form back only when no node runs anything of ours where it would put its own agent.
- Never do the joiners' DaemonSet and it want the same node.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Literal

from outrider.api.names import (
    ANNOTATION_ADOPTED_BY,
    ANNOTATION_ORIGINAL,
    ASSIGNMENT_LEGACY,
    ASSIGNMENT_NONE,
    ROLE_JOINERS,
)
from outrider.api.rollout import AdoptionState, AdoptionStatus, RunState, Target
from outrider.core import batches as arithmetic
from outrider.core.moves import target_of
from outrider.core.plan import Assign, ChangeAdopted, DeleteJoiners
from outrider.core.runs import end_run, finish_run, start_run
from outrider.core.scheduling import why_not_scheduled
from outrider.core.selection import create_batches, next_size
from outrider.core.snapshot import Hindrance, Legacy, Node, RolloutSnapshot
from outrider.core.states import FAILED, ONGOING
from outrider.core.words import name_first
from outrider.core.work import Work, move

Json = dict[str, Any]
Form = Literal["Original", "Shared", "Last"]

REVERT_SECONDS = 600
"""So long after it was last noticed a revert is told, and counts for how soon the next is mended."""
_WAS_IN_FORCE = frozenset({"Adopted", "GivingBack", "Gone"})
_AT_ONCE = 3
"""So many reverts in that time are mended at once: until then two agents may run on a node."""


# --- The arithmetic of terms


def strip_terms(terms: Sequence[Json], key: str) -> list[Json]:
    """Return terms without what they say about a label key; those that only differed in that become one."""
    stripped: list[Json] = []
    for term in terms:
        rest = [one for one in term.get("matchExpressions") or [] if one.get("key") != key]
        plain = {name: value for name, value in term.items() if name != "matchExpressions"}
        if rest:
            plain = {"matchExpressions": rest, **plain}
        if plain not in stripped:
            stripped.append(plain)
    return stripped


def require_assignment(terms: Sequence[Json], key: str, form: Form) -> list[Json]:
    """Return terms that want, of the nodes that `terms` want, those of the form.

    Terms are alternatives, so every one of them has to say it. One that is empty matches no node, and stays so.
    """
    if form == "Original":
        return list(terms)
    return [
        {**term, "matchExpressions": [*(term.get("matchExpressions") or []), one]}
        for term in terms
        if term.get("matchExpressions") or term.get("matchFields")
        for one in _alternatives(key, form)
    ]


def terms_of(pod_spec: Mapping[str, Any]) -> list[Json] | None:
    """Return the nodeSelectorTerms that a pod requires; None without any."""
    affinity = (pod_spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return list(required.get("nodeSelectorTerms") or []) if required is not None else None


def base_terms(legacy: Legacy, key: str) -> list[Json] | None:
    """Return what the DaemonSet's owner wants of nodes; None for nothing. As it was stored, unless it changed since."""
    present = terms_of(legacy.pod)
    if present is None or not _mentions(present, key):
        return present
    stored = (legacy.original or {}).get("nodeSelectorTerms")
    stripped = strip_terms(present, key)
    if stripped == [{}]:
        return None
    if stored is not None and strip_terms(stored, key) == stripped:
        return list(stored)
    return stripped


def form_of(legacy: Legacy, key: str) -> Form | None:
    """Return which nodes a DaemonSet wants, by its terms; None if they are none of ours."""
    present = terms_of(legacy.pod)
    if present is None or not _mentions(present, key):
        return "Original"
    base = base_terms(legacy, key)
    for form in ("Shared", "Last"):
        if _as_set(present) == _as_set(_patched_terms(base, key, form)):
            return form
    return None


def _patched_terms(base: Sequence[Json] | None, key: str, form: Form) -> list[Json]:
    if base is not None:
        return require_assignment(base, key, form)
    return [{"matchExpressions": [one]} for one in _alternatives(key, form)]


def _alternatives(key: str, form: Form) -> list[Json]:
    named: Json = {"key": key, "operator": "In", "values": [ASSIGNMENT_LEGACY]}
    absent: Json = {"key": key, "operator": "DoesNotExist"}
    return [named] if form == "Last" else [absent, named]


def _mentions(terms: Sequence[Json], key: str) -> bool:
    return any(one.get("key") == key for term in terms for one in term.get("matchExpressions") or [])


def _as_set(terms: Sequence[Json]) -> frozenset[str]:
    return frozenset(json.dumps(term, sort_keys=True) for term in terms)


def change_form(legacy: Legacy, rollout: str, key: str, form: Form) -> tuple[Json, ...]:
    """Return the one JSON patch that gives the DaemonSet a form, if its spec is still as it was seen."""
    base = base_terms(legacy, key)
    original = _original(legacy, base, key)
    guard: list[Json] = [
        {"op": "test", "path": "/metadata/uid", "value": legacy.uid},
        {"op": "test", "path": "/metadata/generation", "value": legacy.generation},
    ]
    affinity = dict(legacy.pod.get("affinity") or {})
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    kept = original["kept"]
    name = "requiredDuringSchedulingIgnoredDuringExecution"
    if form != "Original":
        node_affinity[name] = {"nodeSelectorTerms": _patched_terms(base, key, form)}
    elif base is not None:
        node_affinity[name] = {"nodeSelectorTerms": base}
    else:
        node_affinity.pop(name, None)
    # Empty objects are part of what the DaemonSet controller hashes: what was not there before, is not left behind.
    if node_affinity or "nodeAffinity" in kept:
        affinity["nodeAffinity"] = node_affinity
    else:
        affinity.pop("nodeAffinity", None)
    path = "/spec/template/spec/affinity"
    if affinity or "affinity" in kept:
        change: list[Json] = [{"op": "add", "path": path, "value": affinity}]
    else:
        change = [{"op": "remove", "path": path}] if "affinity" in legacy.pod else []
    if form == "Original":
        strategy = original["updateStrategy"]
        marks: list[Json] = [
            {"op": "remove", "path": f"/metadata/annotations/{_escape(name)}"}
            for name in (ANNOTATION_ADOPTED_BY, ANNOTATION_ORIGINAL)
            if name in legacy.annotations
        ]
    else:
        strategy = {"type": "OnDelete"}
        added = {ANNOTATION_ADOPTED_BY: rollout, ANNOTATION_ORIGINAL: _dump(original)}
        marks = [
            {"op": "add", "path": f"/metadata/annotations/{_escape(name)}", "value": value}
            for name, value in added.items()
        ]
        if not legacy.annotations:
            marks = [{"op": "add", "path": "/metadata/annotations", "value": added}]
    return (*guard, {"op": "add", "path": "/spec/updateStrategy", "value": strategy}, *change, *marks)


def patched(legacy: Legacy, operations: Sequence[Json]) -> Legacy:
    """Return the DaemonSet as a patch leaves it, once its controller has seen that: for a look ahead."""
    pod, strategy, annotations = dict(legacy.pod), legacy.strategy, dict(legacy.annotations)
    for operation in operations:
        path: str = operation["path"]
        value: Any = operation.get("value")
        if path == "/spec/updateStrategy":
            strategy = value
        elif path == "/spec/template/spec/affinity":
            pod.pop("affinity", None)
            pod |= {"affinity": value} if operation["op"] == "add" else {}
        elif path == "/metadata/annotations":
            annotations = dict(value)
        elif path.startswith("/metadata/annotations/"):
            name = path.removeprefix("/metadata/annotations/").replace("~1", "/").replace("~0", "~")
            annotations.pop(name, None)
            annotations |= {name: value} if operation["op"] == "add" else {}
    original = read_original(annotations.get(ANNOTATION_ORIGINAL, ""))
    return replace(
        legacy,
        pod=pod,
        strategy=strategy,
        annotations=annotations,
        original=original,
        generation=legacy.generation + 1,
        observed=True,
    )


def _original(legacy: Legacy, base: list[Json] | None, key: str) -> Json:
    """Return what the owner wants of what we change: as stored, but for what he changed since."""
    patched = _mentions(terms_of(legacy.pod) or [], key)
    stored = legacy.original
    affinity = legacy.pod.get("affinity")
    kept = [
        name
        for name, there in (("affinity", affinity), ("nodeAffinity", (affinity or {}).get("nodeAffinity")))
        if there is not None
    ]
    if patched:
        # What of it is there because of us is known from before, if at all.
        kept = stored["kept"] if stored is not None else (kept if base is not None else [])
    strategy = dict(legacy.strategy)
    if stored is not None and strategy.get("type") == "OnDelete":
        strategy = stored["updateStrategy"]
    return {"updateStrategy": strategy, "nodeSelectorTerms": base, "kept": kept}


def _dump(original: Json) -> str:
    return json.dumps(original, sort_keys=True, separators=(",", ":"))


def read_original(text: str) -> Json | None:
    """Read what was stored of a DaemonSet as it was before; None if nothing (readable) is."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("updateStrategy"), dict):
        return None
    terms, kept = found.get("nodeSelectorTerms"), found.get("kept")
    if not (terms is None or _holds_only(dict, terms)) or not _holds_only(str, kept):
        return None
    return {"updateStrategy": found["updateStrategy"], "nodeSelectorTerms": terms, "kept": kept}


def _holds_only(kind: type, value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, kind) for one in value)


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


# --- What stands


def original_pod(legacy: Legacy, key: str) -> Json:
    """Return the pod that the DaemonSet's owner wants, as far as it says on which nodes."""
    pod = dict(legacy.pod)
    base = base_terms(legacy, key)
    pod["affinity"] = (
        {}
        if base is None
        else {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": base}}}
    )
    return pod


def is_in_force(legacy: Legacy, rollout: str, key: str) -> bool:
    """Tell whether the DaemonSet is as a take-over makes it: it wants no node that is labelled otherwise."""
    return (
        _exists(legacy)
        and legacy.annotations.get(ANNOTATION_ADOPTED_BY) == rollout
        and legacy.strategy.get("type") == "OnDelete"
        and form_of(legacy, key) in {"Shared", "Last"}
    )


def _exists(legacy: Legacy) -> bool:
    return legacy.uid != "" and not legacy.deleting


def covers_only(pod_spec: Mapping[str, Any], target: Target) -> bool:
    """Tell whether every node that a pod may run on is in the target, whatever nodes there will be."""
    if target.all:
        return True
    if target.node_selector is None:
        return False
    demanded: list[Json] = [
        {"key": name, "operator": "In", "values": [value]}
        for name, value in (pod_spec.get("nodeSelector") or {}).items()
    ]
    wanted: list[Json] = [
        {"key": name, "operator": "In", "values": [value]} for name, value in target.node_selector.match_labels.items()
    ]
    wanted += [
        requirement.to_api() if requirement.values else {"key": requirement.key, "operator": requirement.operator}
        for requirement in target.node_selector.match_expressions
    ]
    terms = terms_of(pod_spec)
    alternatives = [[*demanded, *(term.get("matchExpressions") or [])] for term in terms or [{}]]
    return all(one in alternative for alternative in alternatives for one in wanted)


def serves_others(legacy: Legacy, key: str, target: Target, nodes: Iterable[Node], members: frozenset[str]) -> bool:
    """Tell whether the DaemonSet serves, or may come to serve, nodes without a label that are no members."""
    pod = original_pod(legacy, key)
    if not covers_only(pod, target):
        return True
    return any(
        key not in node.labels and node.name not in members and not why_not_scheduled(pod, node) for node in nodes
    )


def nodes_in_the_way(legacy: Legacy, key: str, nodes: Iterable[Node]) -> tuple[str, ...]:
    """Return the nodes on which the DaemonSet would put a second agent if it wanted all that it wanted before."""
    pod = original_pod(legacy, key)
    return tuple(
        sorted(
            node.name
            for node in nodes
            if node.labels.get(key) not in {None, ASSIGNMENT_LEGACY} and not why_not_scheduled(pod, node)
        )
    )


# --- What follows


def gives_back(seen: RolloutSnapshot) -> bool:
    """Tell whether the DaemonSet is to be given back. Removing spec.adoption changes nothing."""
    if seen.spec.adoption is not None:
        return seen.spec.adoption.give_back
    return seen.status.adoption is not None and seen.status.adoption.state in {"GivingBack", "GivenBack"}


def begin(work: Work) -> None:
    """Let the planner see the agent that was taken over as a revision, which is stable until a run has completed."""
    seen, legacy = work.seen, work.seen.legacy
    work.adoption = _known(seen)
    state = work.adoption.state if work.adoption is not None else None
    if legacy is not None and _exists(legacy):
        in_force = is_in_force(legacy, seen.name, seen.assignment_key)
        if in_force or state in _WAS_IN_FORCE:
            # Also while somebody has taken back the patch: then it wants every node, whatever its label.
            work.form = (form_of(legacy, seen.assignment_key) or "Original") if in_force else "Original"
            if not legacy.observed and work.form == "Last":
                work.form = "Shared"  # the DaemonSet controller may still act as if it was
    if work.form is not None:
        work.seen = replace(seen, revisions={**seen.revisions, ASSIGNMENT_LEGACY: ASSIGNMENT_LEGACY})
        if work.stable is None or gives_back(seen):
            work.stable, work.stable_version = ASSIGNMENT_LEGACY, None
    elif work.stable == ASSIGNMENT_LEGACY:
        work.stable = None


def _known(seen: RolloutSnapshot) -> AdoptionStatus | None:
    before = seen.status.adoption
    if seen.legacy is None or before is None or before.daemon_set != seen.legacy.name:
        return None
    return before


def take_over(work: Work) -> None:
    """Does the DaemonSet that is to be taken over, or was, stand as it must? If not it is patched, before any move."""
    seen, legacy, key = work.seen, work.seen.legacy, work.seen.assignment_key
    if legacy is None:
        work.adoption = None
        _miss_adoption(work)
        return
    state = work.adoption.state if work.adoption is not None else None
    if not _exists(legacy):
        _take_leave(work, legacy, was_ours=state in {*_WAS_IN_FORCE, "Adopting"})
    elif is_in_force(legacy, seen.name, key):
        _hold_on(work, legacy)
    elif gives_back(seen) and not legacy.in_the_way and state not in {"Adopted", "Gone"}:
        _end(work, legacy)
    elif state in _WAS_IN_FORCE:
        _mend(work, legacy)
    elif work.hindrance is None and not gives_back(seen) and not seen.spec.frozen:
        _begin_take_over(work, legacy)
    elif gives_back(seen):
        why = (
            f"DaemonSet {legacy.name} is not taken over, and cannot be given back: set spec.adoption.giveBack to false"
        )
        _refuse(work, legacy, why)


def _miss_adoption(work: Work) -> None:
    """Note that nodes are labelled for a DaemonSet that nobody names: its agents would be overlooked."""
    lost = len(work.by_assignment.get(ASSIGNMENT_LEGACY, ()))
    if lost:
        work.hindrance = Hindrance(
            "AdoptionMissing",
            f"{_count(lost)} labelled {ASSIGNMENT_LEGACY}, for a DaemonSet that an earlier Rollout took over: set "
            "spec.adoption.daemonSet to its name; if it is gone, to its name as well, and the label goes by itself",
            stalled=True,
        )


def _take_leave(work: Work, legacy: Legacy, *, was_ours: bool) -> None:
    """The DaemonSet is not there: was it ever taken over?"""
    labelled = [node for node in work.seen.nodes.values() if work.assignment(node) == ASSIGNMENT_LEGACY]
    if not was_ours and not labelled:
        what = "is being deleted" if legacy.deleting else f"does not exist in namespace {work.seen.namespace}"
        _refuse(work, legacy, f"DaemonSet {legacy.name} {what}; correct or remove spec.adoption")
        return
    note = "remove spec.adoption"
    if gives_back(work.seen):
        note = "there is nothing to go back to: create it again, or remove spec.adoption"
    message = f"DaemonSet {legacy.name} was deleted after it had been taken over; {note}"
    work.adoption = _tell(work, legacy, "Gone", message)
    open_entries = {entry.name for _, entry, result in work.entries() if result.state not in _CLOSED}
    for node in labelled:
        if node.name not in open_entries:
            move(work, node, ASSIGNMENT_NONE)


def _hold_on(work: Work, legacy: Legacy) -> None:
    """It is as it must be: are all its nodes labelled, and is it to be given back?"""
    seen, before = work.seen, work.adoption
    giving = gives_back(seen)
    waiting = [node for node in work.members() if work.assignment(node) is None and _has_pod(work, node)]
    state: AdoptionState = "GivingBack" if giving else "Adopted"
    if not giving and (before is None or before.state != "Adopted") and (waiting or not legacy.observed):
        state = "Adopting"
        message = f"DaemonSet {legacy.name} is being taken over: {_count(len(waiting))} still to be labelled"
        work.hindrance = work.hindrance or Hindrance("Adopting", message, stalled=False)
        work.adoption = _tell(work, legacy, state, message)
        return
    if state == "Adopted" and (before is None or before.state != "Adopted"):
        work.say(
            "Normal",
            "Adopted",
            f"DaemonSet {legacy.name} is taken over: no pod was restarted, and nodes move from it as the strategy says",
        )
        work.urgent_status = True
    work.adoption = _tell(work, legacy, state, _tell_nodes(work, legacy, giving=giving))
    _warn_of_reverts(work, legacy)
    arrived = not _nodes_to_return(work) and not _is_under_way(work) and not legacy.in_the_way
    # Nodes without a label are the joiners' DaemonSet's as long as there is one.
    if giving and arrived and not seen.joiners and not _joiners_pods(work) and not seen.spec.frozen:
        _change(work, legacy, "Original")


def _tell_nodes(work: Work, legacy: Legacy, *, giving: bool) -> str:
    seen = work.seen
    on_it = sum(work.assignment(node) == ASSIGNMENT_LEGACY for node in seen.nodes.values())
    if giving:
        if legacy.in_the_way and not _nodes_to_return(work):
            names = ", ".join(legacy.in_the_way[:3])
            return f"DaemonSet {legacy.name} waits for {_count(len(legacy.in_the_way))} with another agent: {names}"
        return f"DaemonSet {legacy.name} is given back: {on_it} of {len(seen.nodes)} nodes run it"
    if on_it:
        return f"{_count(on_it)} with the agent of DaemonSet {legacy.name}"
    return f"no node is labelled for DaemonSet {legacy.name} any more: delete it, then remove spec.adoption"


def _begin_take_over(work: Work, legacy: Legacy) -> None:
    """It was not taken over yet: may it be? Nothing is touched before that is sure."""
    if why := _why_refused(work, legacy):
        _refuse(work, legacy, why)
        return
    message = f"DaemonSet {legacy.name} is being taken over"
    work.adoption = _tell(work, legacy, "Adopting", message)
    work.hindrance = Hindrance("Adopting", message, stalled=False)
    work.ended = True
    # What an earlier Rollout left without an agent has this one's by now: its label must not end it.
    emptied = [n for n in work.seen.nodes.values() if work.assignment(n) == ASSIGNMENT_NONE and _has_pod(work, n)]
    for node in emptied:
        work.moves.append(Assign(node.name, node.uid, ASSIGNMENT_NONE, ASSIGNMENT_LEGACY))
    if emptied or work.seen.joiners:
        work.clean_up.extend(DeleteJoiners(joiners) for joiners in work.seen.joiners)
        return
    _change(work, legacy, "Shared")


def _why_refused(work: Work, legacy: Legacy) -> str:
    """Return why a DaemonSet cannot be taken over, as a sentence; "" if it can."""
    seen, name = work.seen, f"DaemonSet {legacy.name}"
    owner = legacy.annotations.get(ANNOTATION_ADOPTED_BY)
    if legacy.problem:
        return f"{name} could not be changed: {legacy.problem}"
    if legacy.ours:
        return f"{name} is one of Outrider's own; name the DaemonSet that ran the agent before"
    if legacy.controller:
        return f"{name} belongs to {legacy.controller}, which would undo every change; take that out of service first"
    if owner is not None and owner != seen.name:
        return (
            f"{name} was taken over by Rollout {owner}; give it back there first, or remove its annotation "
            f"{ANNOTATION_ADOPTED_BY} if that Rollout is gone"
        )
    if form_of(legacy, seen.assignment_key) is None:
        return f"{name} has node affinity terms about {seen.assignment_key} that are not Outrider's; remove them"
    if legacy.pod.get("nodeName"):
        return f"{name} is pinned to one node by nodeName; nodes cannot move from it"
    running = [n for n in seen.nodes.values() if _has_pod(work, n) and _runs_ours(work.assignment(n))]
    if running:
        return (
            f"{name} has pods on {_count(len(running))} that {seen.spec.component} runs on already "
            f"({_names(running)}); remove one of the two agents there"
        )
    pod = original_pod(legacy, seen.assignment_key)
    left = [(node, why) for node in work.members() if (why := why_not_scheduled(pod, node))]
    if left:
        return (
            f"{name} does not serve {len(left)} of the {len(seen.members)} nodes of spec.target "
            f"({_names([node for node, _ in left])}): {left[0][1]}; narrow spec.target to the nodes that it serves"
        )
    return ""


def _runs_ours(assignment: str | None) -> bool:
    return assignment is not None and target_of(assignment) not in {ASSIGNMENT_NONE, ASSIGNMENT_LEGACY}


def _refuse(work: Work, legacy: Legacy, why: str) -> None:
    work.adoption = _tell(work, legacy, "Refused", why)
    work.hindrance = Hindrance("AdoptionRefused", f"spec.adoption: {why}", stalled=True)


def _mend(work: Work, legacy: Legacy) -> None:
    """Somebody took back what keeps the DaemonSet from nodes that moved: it is done again, at once, then less often."""
    before, now = work.adoption, work.seen.now
    assert before is not None  # noqa: S101 - it was taken over before
    recent = before.reverted_at is not None and now - before.reverted_at < timedelta(seconds=REVERT_SECONDS)
    reverts = before.reverts if recent else 0
    delay = 0 if reverts < _AT_ONCE else min(60, 5 * 2 ** (reverts - _AT_ONCE))
    due = before.reverted_at + timedelta(seconds=delay) if recent and before.reverted_at is not None else now
    work.adoption = before
    if now >= due:
        work.adoption = before.model_copy(
            update={"reverts": reverts + 1, "reverted_at": now, "reverted_by": legacy.writer, "uid": legacy.uid}
        )
        work.say("Warning", "AdoptionReverted", tell_revert(work.adoption))
        work.urgent_status = True
        _change(work, legacy, "Shared")
    else:
        work.wakes.append(due)
    work.hindrance = Hindrance("AdoptionReverted", tell_revert(work.adoption), stalled=True)


def _warn_of_reverts(work: Work, legacy: Legacy) -> None:
    """Keep telling a revert for a while; one who does it again and again holds all further moves."""
    told = work.adoption
    if told is None or not is_reverted(told, work.seen.now):
        return
    assert told.reverted_at is not None  # noqa: S101 - said by the condition above
    work.wakes.append(told.reverted_at + timedelta(seconds=REVERT_SECONDS))
    if told.reverts > 1:
        work.hindrance = Hindrance("AdoptionReverted", tell_revert(told), stalled=True)


def is_reverted(adoption: AdoptionStatus, now: datetime) -> bool:
    """Tell whether somebody took back the patch lately."""
    return adoption.reverted_at is not None and now - adoption.reverted_at < timedelta(seconds=REVERT_SECONDS)


def tell_revert(adoption: AdoptionStatus) -> str:
    """Return what is to be said about a revert."""
    who = adoption.reverted_by or "somebody"
    times = "once" if adoption.reverts == 1 else f"{adoption.reverts} times"
    return (
        f"{who} took back what keeps DaemonSet {adoption.daemon_set} from nodes that moved ({times}); it was put back. "
        f"Until then such nodes may run two agents. Have {who} ignore spec.updateStrategy, the node affinity of "
        "spec.template and the annotations outrider.dev/*, or give the DaemonSet back"
    )


def _end(work: Work, legacy: Legacy) -> None:
    """It is as it was before: its nodes lose their labels, and nothing is started while it stands beside us."""
    message = (
        f"DaemonSet {legacy.name} is given back, as it was before. To take it over again set spec.adoption.giveBack to "
        "false; else delete this Rollout, or the DaemonSet if the fleet is to run what spec.version says"
    )
    if work.adoption is None or work.adoption.state != "GivenBack":
        work.say("Normal", "GivenBack", f"DaemonSet {legacy.name} is given back, as it was before")
        work.urgent_status = True
    if not work.seen.spec.frozen:
        remove_labels(work)
    work.adoption = _tell(work, legacy, "GivenBack", message)
    work.hindrance = Hindrance("GivenBack", message, stalled=False)


def remove_labels(work: Work, values: AbstractSet[str | None] = frozenset({ASSIGNMENT_LEGACY})) -> bool:
    """Take the label from the nodes of a DaemonSet that is as it was before; tell whether there were any."""
    found = [(node, assignment) for node in work.seen.nodes.values() if (assignment := work.assignment(node)) in values]
    labelled = [Assign(node.name, node.uid, assignment, None) for node, assignment in found if assignment is not None]
    work.moves.extend(labelled)
    return bool(labelled)


def _change(work: Work, legacy: Legacy, form: Form) -> None:
    if legacy.problem:
        message = f"DaemonSet {legacy.name} could not be changed: {legacy.problem}"
        work.hindrance = Hindrance("AdoptionStuck", message, stalled=True)
        return
    operations = change_form(legacy, work.seen.name, work.seen.assignment_key, form)
    work.prerequisites.append(ChangeAdopted(legacy.name, form, operations))
    work.urgent_status = True


def _tell(work: Work, legacy: Legacy, state: AdoptionState, message: str) -> AdoptionStatus:
    before = work.adoption
    kept = state in {"Adopting", "Adopted", "GivingBack"}
    original = legacy.annotations.get(ANNOTATION_ORIGINAL, "") or (before.original if before is not None else "")
    return AdoptionStatus(
        daemon_set=legacy.name,
        uid=legacy.uid,
        state=state,
        message=message[:1024],
        nodes=sum(work.assignment(node) == ASSIGNMENT_LEGACY for node in work.seen.nodes.values()),
        original=original if kept else "",
        reverts=before.reverts if before is not None and kept else 0,
        reverted_at=before.reverted_at if before is not None and kept else None,
        reverted_by=before.reverted_by if before is not None and kept else "",
    )


def _has_pod(work: Work, node: Node) -> bool:
    return any(pod.revision == ASSIGNMENT_LEGACY and pod.live for pod in work.pods(node.name))


def _joiners_pods(work: Work) -> bool:
    return any(
        pod.role == ROLE_JOINERS and pod.live and work.assignment(node) is None
        for node in work.seen.nodes.values()
        for pod in work.pods(node.name)
    )


def hand_over_joiners(work: Work, wanted: str | None) -> str | None:
    """Which DaemonSet serves the nodes without a label: the joiners' (returned), or the one that was taken over?

    Only one of them at a time: the one gives them up, and has ended its pods there, before the other gets them.
    """
    seen, legacy = work.seen, work.seen.legacy
    if legacy is None or not _exists(legacy):
        return wanted
    if work.form not in {"Shared", "Last"} or not is_in_force(legacy, seen.name, seen.assignment_key):
        return None
    form = form_of(legacy, seen.assignment_key)
    give_up = wanted is not None and work.stable != ASSIGNMENT_LEGACY and not legacy.serves_others
    if give_up and form == "Shared":
        if not any(work.assignment(node) is None and _has_pod(work, node) for node in seen.nodes.values()):
            _change(work, legacy, "Last")
        return None
    if give_up:
        both = any(work.assignment(node) is None and _has_pod(work, node) for node in seen.nodes.values())
        return None if not legacy.observed or (both and wanted not in seen.joiners) else wanted
    if form == "Last" and not seen.joiners and not _joiners_pods(work):
        _change(work, legacy, "Shared")
    return None


def may_welcome(work: Work) -> bool:
    """Tell whether nodes without a label may get one: not while a DaemonSet that is not taken over serves them."""
    legacy = work.seen.legacy
    return legacy is None or not _exists(legacy) or work.form in {"Shared", "Last"}


def give_back(work: Work) -> None:
    """Is the DaemonSet to be given back? Then a run takes all nodes back to it, and none goes anywhere else."""
    seen, run, legacy = work.seen, work.run, work.seen.legacy
    if legacy is None or work.form is None or not gives_back(seen):
        return
    if work.hindrance is None or work.hindrance.reason != "AdoptionReverted":
        message = work.adoption.message if work.adoption is not None else ""
        work.hindrance = Hindrance("GivingBack", message, stalled=False)
    if not _nodes_to_return(work) or work.spec_paused:
        return
    if run is not None and is_giving_back(run.revision):
        if run.state not in ONGOING:
            work.update_run(state="Running", finished_at=None)
            work.urgent_status = True
        return
    if run is not None:
        ended: RunState = run.state if run.state not in ONGOING else "Superseded"
        end_run(work, ended, f"DaemonSet {legacy.name} is given back" if ended == "Superseded" else "")
    start_run(work, kind="Rollback", version=ASSIGNMENT_LEGACY, revision=ASSIGNMENT_LEGACY)
    work.say("Normal", "GivingBack", f"All nodes go back to DaemonSet {legacy.name}")
    work.ended = True


def is_giving_back(revision: str) -> bool:
    """Tell whether a run with this revision takes nodes back to the DaemonSet that was taken over."""
    return revision == ASSIGNMENT_LEGACY


def _is_under_way(work: Work) -> bool:
    return work.run is not None and is_giving_back(work.run.revision) and work.run.state in ONGOING


def _nodes_to_return(work: Work) -> list[Node]:
    """Return the nodes that are still to be taken back; those that failed to are not asked again."""
    run = work.run
    done: set[tuple[str, str]] = set()
    if run is not None and is_giving_back(run.revision):
        # What was skipped had another label by then: it is asked again.
        done = {(entry.name, entry.uid) for _, entry, result in work.entries() if result.state != "Skipped"}
    return [
        node
        for node in work.seen.nodes.values()
        if work.assignment(node) not in {None, ASSIGNMENT_LEGACY} and (node.name, node.uid) not in done
    ]


def start_next_give_back_batch(work: Work) -> None:
    """Which nodes come next, on the way back to the DaemonSet that was taken over? As many as in a rollback."""
    run, seen = work.run, work.seen
    if run is None or not is_giving_back(run.revision) or run.state != "Running" or not gives_back(seen):
        return
    _, size = next_size(work, run)
    left = arithmetic.order_nodes(_nodes_to_return(work), seen.uid, run.id)[:size]
    if left:
        create_batches(work, left, step=0, to=lambda _: ASSIGNMENT_LEGACY)


def finish_giving_back(work: Work) -> None:
    """Give the run that took all nodes back its result."""
    run = work.run
    assert run is not None  # noqa: S101 - callers have a run
    states = work.states()
    total, failed = states.total(), sum(states[state] for state in FAILED)
    result: RunState = "Succeeded"
    if failed:
        result = "PartiallySucceeded" if failed < total else "Failed"
    finish_run(work, result)
    work.say(
        "Warning" if failed else "Normal",
        "NodesGivenBack",
        f"Run {run.id}: {total - failed} of {total} nodes are back on the DaemonSet, {failed} failed",
    )


def let_legacy_go(work: Work) -> bool:
    """The Rollout is being deleted: tell whether the DaemonSet that was taken over does not hold it any more.

    While nodes run anything else all stays as it is: a new Rollout of the same name takes it over again. If all nodes
    are still on it, or were emptied by `deletionPolicy: Delete`, it becomes what it was before.
    """
    seen, legacy = work.seen, work.seen.legacy
    if legacy is None:
        return True
    emptied = seen.spec.deletion_policy == "Delete"
    free = {None, ASSIGNMENT_LEGACY, ASSIGNMENT_NONE} if emptied else {None, ASSIGNMENT_LEGACY}
    others = {node.name for node in seen.nodes.values() if work.assignment(node) not in free}
    others |= {name for name in legacy.in_the_way if name not in seen.nodes}
    in_force = is_in_force(legacy, seen.name, seen.assignment_key) and not legacy.problem
    if others or seen.joiners:
        if in_force and form_of(legacy, seen.assignment_key) == "Last" and not seen.joiners and not _joiners_pods(work):
            _change(work, legacy, "Shared")  # nodes that join would get no agent at all
            return False
        if seen.has_finalizer and work.form is not None:
            work.say(
                "Warning",
                "StaysAdopted",
                f"DaemonSet {legacy.name} stays taken over, because {_count(len(others))} with another agent: create "
                "the Rollout again with the same name and spec.adoption, and set giveBack to have it back",
            )
        return True
    if emptied and any(
        pod.live and pod.revision != ASSIGNMENT_LEGACY
        for node in seen.nodes.values()
        if node.ready
        for pod in work.pods(node.name)
    ):
        work.gate = f"deleted: the agents end, before DaemonSet {legacy.name} is given back"
        return False
    if legacy.problem:
        work.say("Warning", "StaysAdopted", f"DaemonSet {legacy.name} could not be given back: {legacy.problem}")
        return True
    if in_force:
        _change(work, legacy, "Original")
        return False
    return not remove_labels(work, free)


_CLOSED = frozenset({"Skipped", "Succeeded", "RolledBack"})


def _count(nodes: int) -> str:
    return "1 node is" if nodes == 1 else f"{nodes} nodes are"


def _names(nodes: Sequence[Node]) -> str:
    return name_first(sorted(node.name for node in nodes))
