"""Caches that no watch fills: tests put objects there."""

from datetime import datetime
from typing import Any

from outrider.adapters.informer import Store
from outrider.reconcile.gathering import Caches
from outrider.reconcile.projections import project_batch, project_daemonset, project_node, project_pod


def empty_caches(now: datetime) -> Caches:
    """Return caches that hold nothing; pods that are put there are seen at `now`."""

    def kept(project: Any = lambda obj, _before: obj) -> Any:
        return Store(project, lambda _before, _after: None)

    return Caches(
        rollouts=kept(),
        versions=kept(),
        nodes=kept(project_node),
        pods=kept(lambda obj, before: project_pod(obj, before, now)),
        daemonsets=kept(project_daemonset),
        batches=kept(project_batch),
    )
