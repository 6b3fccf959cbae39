"""What the operator does when the API server refuses a DaemonSet that would prepare nodes: it goes on, and tells."""

from typing import Any

from outrider.adapters.kube import Json
from outrider.api.errors import Stalling
from outrider.core.plan import Plan, PrepareNodes
from outrider.core.revision import build_daemonset
from outrider.reconcile.gathering import Caches, Memory
from outrider.reconcile.rollouts import RolloutReconciler
from outrider.settings import Settings
from simulation.fleet import Fleet, make_spec
from unit.emptycaches import empty_caches
from unit.test_fleetview import NOW
from unit.test_prepare import FETCH

NAME = "0123456789"


class Refusing:
    """An API server with a policy against DaemonSets that are new, as long as `says_no`."""

    def __init__(self) -> None:
        self.says_no = True
        self.asked: list[str] = []

    async def get(self, _resource: object, namespace: str, name: str) -> Json:
        made = build_daemonset(
            namespace=namespace, rollout="agent", spec=make_spec(), revision=name.rpartition("-")[2], fetch=FETCH
        )
        return {**made, "metadata": {**made["metadata"], "uid": "u", "resourceVersion": "1"}}

    async def create(self, _resource: object, body: Json, _namespace: str) -> Json:
        self.asked.append(body["metadata"]["name"])
        if self.says_no:
            raise Stalling("Forbidden", "a policy says no")
        return {**body, "metadata": {**body["metadata"], "uid": "v", "resourceVersion": "2"}}


def operator(cluster: Any) -> tuple[RolloutReconciler, Caches]:
    caches = empty_caches(NOW)
    nobody: Any = None
    return RolloutReconciler(cluster, caches, nobody, nobody, Settings(), nobody), caches


async def test_what_is_refused_is_told_and_asked_for_again_later_and_holds_up_nothing() -> None:
    cluster, memory = Refusing(), Memory()
    reconciler, caches = operator(cluster)
    seen = Fleet(2, make_spec()).snapshot()
    plan = Plan(actions=(PrepareNodes(NAME, ("node-000", "node-001")),), status=seen.status)
    await reconciler._clean_up(seen, plan, memory)
    assert memory.prepare_problem is not None
    assert "a policy says no" in memory.prepare_problem[0]
    await reconciler._clean_up(seen, plan, memory)
    assert len(cluster.asked) == 1, "not in every pass"
    cluster.says_no = False
    memory.prepare_problem = memory.prepare_problem[0], memory.prepare_problem[1] - 60
    await reconciler._clean_up(seen, plan, memory)
    assert memory.prepare_problem is None
    [made] = list(caches.daemonsets.values())
    assert made.prepares == {"node-000", "node-001"}
    assert (made.rollout, made.role) == ("agent", "prepare")


async def test_a_problem_is_forgotten_when_nothing_is_to_be_prepared_any_more() -> None:
    reconciler, _ = operator(Refusing())
    memory = Memory(prepare_problem=("the API server refuses it", 0.0))
    seen = Fleet(1, make_spec()).snapshot()
    await reconciler._clean_up(seen, Plan(actions=(), status=seen.status), memory)
    assert memory.prepare_problem is None
