"""What the operator asks of the API server, counted by the API server.

Its request metrics do not say who asked. Its flow control does: each FlowSchema here matches one kind of request of
the operator's ServiceAccount, and the API server counts what it dispatched for each. The priority level stays the one
that such requests have anyway, so that counting changes nothing.
"""

import re
import time
from dataclasses import dataclass

from localcluster import Cluster
from localcluster.apiclient import Object

_SCHEMAS = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas"
_PREFIX = "bench-outrider-"
_WRITES = ("create", "update", "patch", "delete", "deletecollection")
_READS = ("get", "list", "watch")
_COUNTED = re.compile(
    rf'^apiserver_flowcontrol_dispatched_requests_total{{flow_schema="{_PREFIX}([a-z-]+)",[^}}]*}} (\S+)$', re.MULTILINE
)

# The first that matches counts.
_KINDS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    ("nodes", _WRITES, ("",), ("nodes",)),
    ("batches", _WRITES, ("outrider.dev",), ("rolloutbatches", "rolloutbatches/status")),
    ("rollouts", _WRITES, ("outrider.dev",), ("rollouts", "rollouts/status")),
    ("leases", _WRITES, ("coordination.k8s.io",), ("leases",)),
    ("events", _WRITES, ("", "events.k8s.io"), ("events",)),
    ("others", _WRITES, ("*",), ("*",)),
    ("reads", _READS, ("*",), ("*",)),
)
WRITTEN = tuple(kind for kind, verbs, _, _ in _KINDS if verbs == _WRITES)


@dataclass(frozen=True)
class Counts:
    """Requests by kind, since the API server started or since another count."""

    by_kind: dict[str, int]

    def since(self, before: "Counts") -> "Counts":
        """Return what was counted after `before`."""
        return Counts({kind: number - before.by_kind.get(kind, 0) for kind, number in self.by_kind.items()})

    @property
    def writes(self) -> int:
        """Return the number of all writes."""
        return sum(self.by_kind.get(kind, 0) for kind in WRITTEN)


def install_counters(cluster: Cluster, namespace: str, account: str) -> None:
    """Have the API server count the requests of a ServiceAccount from now on."""
    subject = {"kind": "ServiceAccount", "serviceAccount": {"name": account, "namespace": namespace}}
    for precedence, (kind, verbs, groups, resources) in enumerate(_KINDS, start=20):
        rule: Object = {
            "verbs": list(verbs),
            "apiGroups": list(groups),
            "resources": list(resources),
            "namespaces": ["*"],
            "clusterScope": True,
        }
        schema: Object = {
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
            "kind": "FlowSchema",
            "metadata": {"name": f"{_PREFIX}{kind}"},
            "spec": {
                "matchingPrecedence": precedence,
                "priorityLevelConfiguration": {"name": "workload-low"},
                "distinguisherMethod": {"type": "ByUser"},
                "rules": [{"subjects": [subject], "resourceRules": [rule]}],
            },
        }
        cluster.client().apply(f"{_SCHEMAS}/{_PREFIX}{kind}", schema)
    time.sleep(2)  # the API server takes them in after a moment


def remove_counters(cluster: Cluster) -> None:
    """Take the counters away."""
    for kind, _, _, _ in _KINDS:
        cluster.client().delete(f"{_SCHEMAS}/{_PREFIX}{kind}")


def read_counts(cluster: Cluster) -> Counts:
    """Return what the API server has counted so far."""
    found: dict[str, int] = {kind: 0 for kind, _, _, _ in _KINDS}
    for kind, number in _COUNTED.findall(cluster.metrics_text()):
        found[kind] += int(float(number))
    return Counts(found)
