"""Who belongs to a fleet in which way: predicates over nodes without an assignment."""

from outrider.api.names import ASSIGNMENT_LEGACY
from outrider.core.revision import joiners_id
from outrider.core.scheduling import why_not_scheduled
from outrider.core.snapshot import Node
from outrider.core.states import COMPLETED, UNDECIDED
from outrider.core.work import Work, check_fit, is_barred


def is_joiner(work: Work, node: Node) -> bool:
    """Tell whether a node of the target without an assignment gets the stable revision now."""
    stable = work.stable
    if stable is None or stable not in work.seen.revisions or is_barred(work, stable):
        return False
    if has_joined(work, node):
        return True  # its agent runs already: what is missing is the label
    if work.seen.spec.joiners == "Wait" or work.target != work.seen.target_hash:
        return False
    if check_fit(work, node, stable).verdict != "Yes":
        return False
    if stable == ASSIGNMENT_LEGACY:
        return True  # whoever made that agent says where it runs
    return not why_not_scheduled(work.seen.spec.template.get("spec") or {}, node)


def waits_for_a_run(work: Work) -> bool:
    """Tell whether nodes without an assignment wait: for the next run, or until it is known how they came."""
    if work.stable is None:
        return False
    if work.target != work.seen.target_hash:
        return True
    run = work.run
    completed_once = run is not None and (run.state in COMPLETED or run.late_nodes is not None)
    return work.seen.spec.joiners == "Wait" and completed_once


def has_joined(work: Work, node: Node) -> bool:
    """Tell whether a node runs the stable revision already, by the joiners' DaemonSet or one that was taken over."""
    return any(pod.live and pod.revision == work.stable for pod in work.pods(node.name))


def works_already(work: Work, node: Node) -> bool:
    """Tell whether an agent of a node without an assignment is Ready, which it would lose when it gets one."""
    return any(pod.ready_since is not None for pod in work.pods(node.name))


def all_known(work: Work) -> bool:
    """Tell whether it is stored that every node which the present target brought in has an assignment."""
    revisions = work.seen.status.revisions
    return revisions is not None and revisions.target == work.seen.target_hash


def open_entries(work: Work) -> dict[str, str]:
    """Return the nodes, with their UIDs, that the run's batches have still to move."""
    return {entry.name: entry.uid for _, entry, _ in work.entries(UNDECIDED)}


def wanted_joiners(work: Work, stable: str) -> str | None:
    """Return the joiners' DaemonSet that should exist: for this revision and this target, if there may be one."""
    seen = work.seen
    if seen.spec.joiners == "Wait" or is_barred(work, stable):
        return None
    if seen.spec.target.node_names or seen.owned_by_others or seen.shares_joiners:
        return None  # no selector can tell which of the nodes would be ours
    rules = seen.rules.get(stable)
    if rules is not None and not rules.only_platforms:
        return None  # no selector can tell which nodes the version can run on
    return joiners_id(stable, seen.target_hash)
