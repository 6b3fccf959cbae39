"""How fast is a fleet rolled, with how many writes to the API server, and in how much memory?

    PYTHONPATH=operator:tests python -m bench.rollout [--part batches|window|instant|rollback|curve] [--nodes 1000]
        [--rounds 2] [--explain]

Everything runs on one cluster of fake nodes, alternating with its yardstick and never at the same time, each from a
fleet that is Ready at the old version; fake pods take 1 to 3 s to stop and 3 to 5 s to start. The operator runs as a
process on this machine with the rights of its ServiceAccount and nothing else; the API server counts its requests.

- batches: batches of a tenth, beside a native DaemonSet with updateStrategy OnDelete whose pods are deleted in the same
  batches: the next when all pods of the last are Ready again. Beside it stands a native RollingUpdate, without batches.
- window: a sliding window of a tenth, beside a native RollingUpdate with the same maxUnavailable, and beside the
  limit: what all pods take to stop and to start, divided by the window.
- instant: the same with pods that stop and start at once. Then the control plane sets the pace.
- rollback: a run through the same window that fails when four fifths have moved, and the way back beside the way there.
- curve: the window with fleets of 100 to 5,000 nodes, and what a node costs in each. The last fleet then stands idle.
"""

import argparse
import hashlib
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "operator")]

from bench.counting import WRITTEN, Counts, install_counters, read_counts, remove_counters  # noqa: E402
from bench.operatorprocess import ACCOUNT, NAMESPACE, OperatorProcess, install_outrider  # noqa: E402
from bench.watching import BrokenWatch, FleetWatch  # noqa: E402
from localcluster import Cluster  # noqa: E402
from localcluster.apiclient import ApiError, Object  # noqa: E402
from outrider.api import names  # noqa: E402

MAX_RATIO = 1.15
MAX_WINDOW_RATIO = 1.0
MAX_LIMIT_RATIO = 1.2
MAX_INSTANT_RATIO = 1.3
MAX_ROLLBACK_RATIO = 1.0
MAX_WRITES = 2.1
MAX_GAP_MS = 300
MAX_MIB = 180
MAX_IDLE = 0.1
MAX_OBJECT_BYTES = 256 * 1024

SECONDS_A_POD = 2 + 4
"""What a fake pod takes on average to stop and to start."""

MAX_GROWTH = 1.5

PARTS = ("batches", "window", "instant", "rollback", "curve")
FLEETS = (100, 300, 1000, 2000, 5000)

COMPONENT = "agent"
OLD, NEW, NEWER = "1.0.0", "1.1.0", "1.2.0"
NATIVE_VERSION = "bench.outrider.test/version"
IDLE_SECONDS = 15
DELETING = 16
"""Requests at a time with which the yardstick deletes a batch."""

TIMING = "fake.outrider.test/timing"
TEMPLATE: Object = {
    "metadata": {"annotations": {TIMING: "realistic"}, "labels": {"app": "agent"}},
    "spec": {
        "tolerations": [{"operator": "Exists"}],
        "containers": [{"name": "agent", "image": "agent:dev", "command": ["/opt/agent/agent"]}],
    },
}


@dataclass(frozen=True)
class Native:
    """What the native DaemonSet took, in seconds: in batches, between batches, and by RollingUpdate.

    `cluster` is the processor time of the control plane and the fake nodes for the last of these.
    """

    batches: float
    gap: float
    rolling: float
    cluster: float


@dataclass(frozen=True)
class Ours:
    """What Outrider took: seconds, seconds between batches, requests, and the operator's own use of the machine."""

    seconds: float
    completed: float
    gap: float
    counts: Counts
    cpu: float
    cluster: float
    idle: float
    peak_mib: float
    passes: int
    largest: int
    explanation: list[str]


class Bench:
    """One cluster and what is measured on it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.client = cluster.client()
        self.folder = folder
        self.nodes: list[str] = []
        self.batch_size = 0
        self._serial = 0

    def resize(self, count: int) -> None:
        """Have so many fake nodes."""
        self.cluster.scale_fake_nodes(count)
        self.nodes = list(self.cluster.fake_nodes)
        self.batch_size = -(-len(self.nodes) // 10)

    def prepare(self) -> None:
        """Install Outrider without its Deployment, which would run on fake nodes, and a key to trust."""
        self.signer = install_outrider(self.cluster, self.folder)
        install_counters(self.cluster, NAMESPACE, ACCOUNT)

    # -- the yardstick

    def measure_native(self, *, batches: bool = True, timing: str = "realistic") -> Native:
        """Roll the fleet by deleting a DaemonSet's pods in batches (if asked for), then by RollingUpdate."""
        self.cluster.wait_for_fake_nodes()
        with self._namespace() as namespace, FleetWatch(self.cluster, namespace, NATIVE_VERSION) as fleet:
            daemonsets = f"/apis/apps/v1/namespaces/{namespace}/daemonsets"
            self.client.create(daemonsets, _daemonset({"type": "OnDelete"}, timing))
            fleet.await_ready(self.nodes, OLD)
            time.sleep(5)
            self._update_native(f"{daemonsets}/agent", NEW, {})
            order = random.sample(self.nodes, len(self.nodes)) if batches else []
            gaps = [0.0]
            with ThreadPoolExecutor(DELETING) as pool:
                begun = finished = time.monotonic()
                for start in range(0, len(order), self.batch_size):
                    batch = order[start : start + self.batch_size]
                    pods = fleet.pods_on(batch)
                    if start:
                        gaps.append(time.monotonic() - finished)
                    list(pool.map(lambda pod: self._delete_pod(namespace, pod), pods))
                    finished = fleet.await_ready(batch, NEW)
            time.sleep(5)
            cluster = self._cluster_cpu()
            rolling = {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}}}
            again = self._update_native(f"{daemonsets}/agent", NEWER, rolling)
            rolled = fleet.await_ready(self.nodes, NEWER)
            cluster = self._cluster_cpu() - cluster
            self.client.delete(f"{daemonsets}/agent")
            fleet.await_empty()
        return Native(finished - begun, statistics.median(gaps), rolled - again, cluster)

    def _cluster_cpu(self) -> float:
        return sum(self.cluster.cpu_seconds().values())

    def _update_native(self, path: str, version: str, changes: Object) -> float:
        """Change the DaemonSet and wait until its controller has seen it; return when that was."""
        template = {"metadata": {"labels": {NATIVE_VERSION: version}}}
        self.client.strategic(path, {"spec": {"template": template, **changes}})
        while True:
            seen = self.client.get(path)
            if seen["status"].get("observedGeneration") == seen["metadata"]["generation"]:
                return time.monotonic()
            time.sleep(0.02)

    def _delete_pod(self, namespace: str, name: str) -> None:
        self.client.delete(f"/api/v1/namespaces/{namespace}/pods/{name}")

    # -- Outrider

    def measure_ours(self, rolling: Object, timing: str = "realistic") -> Ours:
        """Roll the fleet by Outrider."""
        self.cluster.wait_for_fake_nodes()
        with self._operator() as operator, self._namespace() as namespace:
            self._publish(namespace, OLD, NEW)
            key = names.assignment_key(namespace, COMPONENT)
            with FleetWatch(self.cluster, namespace, names.LABEL_VERSION, key) as fleet:
                rollout = f"/apis/outrider.dev/v1alpha1/namespaces/{namespace}/rollouts/agent"
                self.client.create(rollout.removesuffix("/agent"), _rollout(timing))
                fleet.await_ready(self.nodes, OLD)
                self._await_completed(rollout, OLD)
                time.sleep(5)
                cpu = operator.cpu_seconds
                time.sleep(IDLE_SECONDS)
                idle = (operator.cpu_seconds - cpu) / IDLE_SECONDS

                fleet.events.clear()
                cpu, passes, counts = operator.cpu_seconds, operator.passes, read_counts(self.cluster)
                cluster = self._cluster_cpu()
                strategy: Object = {"type": "Rolling", "full": None, "rolling": rolling}
                begun = time.monotonic()
                self.client.merge(rollout, {"spec": {"version": NEW, "strategy": strategy}})
                finished = fleet.await_ready(self.nodes, NEW)
                self._await_completed(rollout, NEW)
                completed = time.monotonic()
                cluster = self._cluster_cpu() - cluster
                time.sleep(5)  # what is still to be written belongs to the run
                result = Ours(
                    seconds=finished - begun,
                    completed=completed - begun,
                    gap=statistics.median(_gaps(fleet, self.batch_size)),
                    counts=read_counts(self.cluster).since(counts),
                    cpu=operator.cpu_seconds - cpu,
                    cluster=cluster,
                    idle=idle,
                    peak_mib=operator.peak_mib,
                    passes=operator.passes - passes,
                    largest=self._largest_object(namespace),
                    explanation=_explain(fleet, begun, self.batch_size),
                )
                self.client.delete(rollout)
                self._namespace_away(namespace)
                fleet.await_empty()
            self._unlabel(key)
        return result

    def measure_way_back(self) -> tuple[float, float]:
        """Let a run fail when four fifths have moved; return the seconds per 100 nodes of the way there, and back."""
        self.cluster.wait_for_fake_nodes()
        with self._operator(), self._namespace() as namespace:
            self._publish(namespace, OLD, NEW)
            key = names.assignment_key(namespace, COMPONENT)
            with FleetWatch(self.cluster, namespace, names.LABEL_VERSION, key) as fleet:
                rollout = f"/apis/outrider.dev/v1alpha1/namespaces/{namespace}/rollouts/agent"
                self.client.create(rollout.removesuffix("/agent"), _rollout("realistic"))
                fleet.await_ready(self.nodes, OLD)
                self._await_completed(rollout, OLD)
                late = self._in_order(rollout, 2)[len(self.nodes) * 4 // 5 :]
                fault = self.cluster.inject(
                    "crash-loop", namespace=namespace, pod_labels={names.LABEL_VERSION: NEW}, nodes=late
                )
                fleet.events.clear()
                strategy: Object = {"type": "Rolling", "full": None, "rolling": {"maxUnavailable": "10%"}}
                self.client.merge(rollout, {"spec": {"version": NEW, "strategy": strategy}})
                self._await_phase(rollout, "RollingBack", 600)
                self._await_phase(rollout, "RolledBack", 600)
                fleet.await_ready(self.nodes, OLD)
                there, back = _ways(fleet)
                fault.remove()
                self.client.delete(rollout)
                self._namespace_away(namespace)
                fleet.await_empty()
            self._unlabel(key)
        return there, back

    def _in_order(self, rollout: str, run: int) -> list[str]:
        """Return the nodes in the order in which a run takes them."""
        uid = self.client.get(rollout)["metadata"]["uid"]
        nodes = [(node["metadata"]["name"], node["metadata"]["uid"]) for node in self.client.items("/api/v1/nodes")]
        hashed = {name: hashlib.sha256(f"{node}/{uid}/{run}".encode()).digest() for name, node in nodes}
        return sorted(hashed, key=hashed.__getitem__)

    def _largest_object(self, namespace: str) -> int:
        """Return the size in bytes of the largest object of ours, as the API server sends it."""
        group = f"/apis/outrider.dev/v1alpha1/namespaces/{namespace}"
        found = [*self.client.items(f"{group}/rolloutbatches"), *self.client.items(f"{group}/rollouts")]
        found += self.client.items(f"/apis/apps/v1/namespaces/{namespace}/daemonsets")
        return max(len(json.dumps(one, separators=(",", ":"))) for one in found)

    def _unlabel(self, key: str) -> None:
        label = {"metadata": {"labels": {key: None}}}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda node: self.client.merge(f"/api/v1/nodes/{node}", label), self.nodes))

    def _publish(self, namespace: str, *versions: str) -> None:
        """Publish versions of the agent, from a ConfigMap."""
        path = f"/apis/outrider.dev/v1alpha1/namespaces/{namespace}/componentversions"
        for version in versions:
            content = f"#!/bin/sh\necho agent {version}\n"
            source = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": f"agent-{version}"},
                "data": {"agent": content},
            }
            self.client.create(f"/api/v1/namespaces/{namespace}/configmaps", source)
            artifact = {
                "platform": {"os": "linux", "arch": "amd64"},
                "fileName": "agent",
                "sha256": hashlib.sha256(content.encode()).hexdigest(),
                "source": {"configMap": {"name": f"agent-{version}", "key": "agent"}},
                "signature": {"inline": self.signer.sign(content.encode())},
            }
            self.client.create(
                path,
                {
                    "apiVersion": names.API_VERSION,
                    "kind": "ComponentVersion",
                    "metadata": {"name": f"{COMPONENT}-{version}"},
                    "spec": {"component": COMPONENT, "version": version, "artifacts": [artifact]},
                },
            )
        for version in versions:
            self._await_phase(f"{path}/{COMPONENT}-{version}", "Published", 60)

    def _await_completed(self, path: str, version: str) -> None:
        deadline = time.monotonic() + 120
        while True:
            status = self.client.get(path).get("status", {})
            if status.get("phase") == "Completed" and status["run"]["version"] == version:
                return
            if time.monotonic() > deadline:
                raise BrokenWatch(f"the run did not complete: {json.dumps(status)[:2000]}")
            time.sleep(0.1)

    def _await_phase(self, path: str, phase: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (status := self.client.get(path).get("status", {})).get("phase") != phase:
            if time.monotonic() > deadline:
                raise BrokenWatch(f"{path} is not {phase}: {json.dumps(status)[:2000]}")
            time.sleep(0.2)

    # -- what both need

    @contextmanager
    def _operator(self) -> Iterator[OperatorProcess]:
        operator = OperatorProcess(self.cluster, self.folder / f"operator-{self._serial}")
        try:
            yield operator
            operator.check()
        except BaseException:
            say(f"the end of the operator's log:\n{operator.log.read_text()[-3000:]}")
            raise
        finally:
            operator.stop()

    @contextmanager
    def _namespace(self) -> Iterator[str]:
        self._serial += 1
        name = f"bench-{self._serial}-{int(time.time()) % 100_000}"
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        self.client.create("/api/v1/namespaces", namespace)
        try:
            yield name
        finally:
            self._namespace_away(name)
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                try:
                    self.client.get(f"/api/v1/namespaces/{name}")
                except ApiError:
                    break
                time.sleep(0.5)

    def _namespace_away(self, name: str) -> None:
        self.client.delete(f"/api/v1/namespaces/{name}")


def _template(timing: str) -> Object:
    template: Object = json.loads(json.dumps(TEMPLATE))
    template["metadata"]["annotations"][TIMING] = timing
    return template


def _daemonset(strategy: Object, timing: str) -> Object:
    template = _template(timing)
    template["metadata"]["labels"][NATIVE_VERSION] = OLD
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "agent"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "updateStrategy": strategy, "template": template},
    }


def _rollout(timing: str) -> Object:
    return {
        "apiVersion": names.API_VERSION,
        "kind": "Rollout",
        "metadata": {"name": "agent"},
        "spec": {
            "component": COMPONENT,
            "version": OLD,
            "target": {"all": True},
            "template": _template(timing),
            "delivery": {"volume": {"mountPath": "/opt/agent", "containers": ["agent"]}},
            # Gently: a burst of 1,000 pods at once can make fake nodes NotReady on a small machine.
            "strategy": {"type": "Full", "full": {"maxInFlight": "20%"}},
            "health": {"minReadySeconds": 0},
        },
    }


@dataclass(frozen=True)
class _Move:
    """When one node took each step of its move."""

    leaves: float
    gone: float
    assigned: float
    created: float
    ready: float


def _moves(fleet: FleetWatch) -> list[_Move]:
    """Return the nodes' moves in the order in which they left."""
    found = []
    for events in fleet.events.values():
        labels = [(came, label) for came, what, label in events if what == "label"]
        leaves = next((came for came, label in labels if label.startswith(names.ASSIGNMENT_LEAVING)), None)
        if leaves is None:
            continue
        assigned = next(
            came for came, label in labels if came > leaves and not label.startswith(names.ASSIGNMENT_LEAVING)
        )
        steps = {what: came for came, what, version in events if version in {OLD, NEW}}
        found.append(_Move(leaves, steps["gone"], assigned, steps["created"], steps["ready"]))
    return sorted(found, key=lambda move: move.leaves)


def _batches(fleet: FleetWatch, size: int) -> list[list[_Move]]:
    moves = _moves(fleet)
    return [moves[start : start + size] for start in range(0, len(moves), size)]


def _gaps(fleet: FleetWatch, size: int) -> list[float]:
    """Return the seconds from each batch's last Ready to the next one's first move."""
    batches = _batches(fleet, size)
    return [after[0].leaves - max(move.ready for move in before) for before, after in pairwise(batches)]


def _explain(fleet: FleetWatch, begun: float, size: int) -> list[str]:
    """Say where the time of a run went: medians and maxima of each step, as the bench saw them."""
    batches = _batches(fleet, size)
    moves = [move for batch in batches for move in batch]
    steps = {
        "leaves -> old pod gone": [m.gone - m.leaves for m in moves],
        "old pod gone -> assigned": [m.assigned - m.gone for m in moves],
        "assigned -> new pod created": [m.created - m.assigned for m in moves],
        "new pod created -> Ready": [m.ready - m.created for m in moves],
        "batch: first leaves -> last leaves": [batch[-1].leaves - batch[0].leaves for batch in batches],
        "batch: first leaves -> last Ready": [max(m.ready for m in batch) - batch[0].leaves for batch in batches],
        "batch: last Ready -> next leaves": _gaps(fleet, size),
        "window: a node Ready -> another leaves": _waits(moves, size),
        "start -> first leaves": [moves[0].leaves - begun],
    }
    return [
        f"{name:<36} median {statistics.median(values):6.3f} s, longest {max(values):6.3f} s"
        for name, values in steps.items()
    ]


def _waits(moves: Sequence[_Move], size: int) -> list[float]:
    """Return how long each place of a window was free, in seconds: one node that is Ready makes room for another."""
    ready, leaves = sorted(move.ready for move in moves), sorted(move.leaves for move in moves)
    return [later - earlier for later, earlier in zip(leaves[size:], ready, strict=False)] or [0.0]


def _ways(fleet: FleetWatch) -> tuple[float, float]:
    """Return the seconds per 100 nodes of the way to the new version, and of the way back from it."""
    ways = []
    for version in (NEW, OLD):
        moments = []
        for events in fleet.events.values():
            ready = [came for came, what, label in events if what == "ready" and label == version]
            left = [came for came, what, _ in events if what == "label"]
            # Back counts from where it turned; who never became Ready at the new version takes his place, not his time.
            turned = [came for came, what, label in events if what == "gone" and label == NEW]
            if ready and (version == NEW or turned):
                moments.append((left[0] if version == NEW else turned[-1], ready[-1]))
        begun, ended = min(begin for begin, _ in moments), max(end for _, end in moments)
        ways.append((ended - begun) * 100 / len(moments))
    return ways[0], ways[1]


def main() -> int:
    """Measure, print, and return 0 if the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--part", choices=PARTS, action="append", help="measure this, may be given again (default: all)"
    )
    parser.add_argument("--nodes", type=int, default=1000, help="size of the fleet (default 1000); not of the curve's")
    parser.add_argument("--fleets", type=int, nargs="+", default=FLEETS, help=f"sizes of the curve (default {FLEETS})")
    parser.add_argument("--rounds", type=int, default=2, help="rounds, of which the median counts (default 2)")
    parser.add_argument("--cluster", default="bench", help="name of the local cluster (default bench)")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    parser.add_argument("--explain", action="store_true", help="say where the time went")
    parser.add_argument("--only", choices=["native", "outrider"], help="measure one of the two, to look into it")
    arguments = parser.parse_args()

    # Ended by a supervisor is cleaned up like ended by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parts = arguments.part or list(PARTS)
    cluster = Cluster.up(arguments.cluster, fake_nodes=min(arguments.nodes, *arguments.fleets), real_nodes=0)
    results: list[Result] = []
    try:
        with tempfile.TemporaryDirectory(prefix="outrider-bench-") as scratch:
            bench = Bench(cluster, Path(scratch))
            bench.prepare()
            for part in parts:
                if part != "curve":
                    bench.resize(arguments.nodes)
                results += MEASURES[part](bench, arguments)
        remove_counters(cluster)
    finally:
        if not arguments.keep:
            cluster.down()
    say("")
    for met, line in results:
        say(f"{line}. {'met' if met else 'MISSED'}")
    return 0 if all(met for met, _ in results) else 1


Result = tuple[bool, str]


def measure_batches(bench: Bench, arguments: argparse.Namespace) -> list[Result]:
    """Roll in batches of a tenth, beside OnDelete in the same batches."""
    say(f"batches: {len(bench.nodes)} fake nodes in batches of {bench.batch_size}, {arguments.rounds} rounds")
    natives, ours = run_rounds(bench, arguments, {"batchSize": bench.batch_size}, batches=True)
    if not natives or not ours:
        return []
    yardstick = statistics.median(native.batches for native in natives)
    rolling = statistics.median(native.rolling for native in natives)
    ratio = statistics.median(our.seconds / native.batches for our, native in zip(ours, natives, strict=True))
    gap = statistics.median(our.gap for our in ours) * 1000
    say(f"  native RollingUpdate with maxUnavailable 10 % = {rolling / yardstick:.2f} x native OnDelete in batches")
    return [
        (
            ratio <= MAX_RATIO,
            f"batches: {ratio:.2f} x native OnDelete in the same batches ({yardstick:.1f} s); at most {MAX_RATIO} x",
        ),
        (
            gap <= MAX_GAP_MS,
            (
                f"batches: last Ready of a batch to first move of the next {gap:.0f} ms "
                f"(native {_median_ms(n.gap for n in natives)} ms); at most {MAX_GAP_MS} ms"
            ),
        ),
        *_costs("batches", ours, len(bench.nodes)),
    ]


def measure_window(bench: Bench, arguments: argparse.Namespace) -> list[Result]:
    """Roll in a window of a tenth, beside RollingUpdate with the same."""
    limit = SECONDS_A_POD * len(bench.nodes) / bench.batch_size
    say(f"window: {len(bench.nodes)} fake nodes, {bench.batch_size} at a time, {arguments.rounds} rounds")
    natives, ours = run_rounds(bench, arguments, {"maxUnavailable": "10%"}, batches=False)
    if not natives or not ours:
        return []
    ratio = statistics.median(our.seconds / native.rolling for our, native in zip(ours, natives, strict=True))
    took = statistics.median(our.seconds for our in ours)
    native = statistics.median(native.rolling for native in natives)
    _say_cluster(natives, ours, len(bench.nodes))
    return [
        (
            ratio <= MAX_WINDOW_RATIO,
            (
                f"window: {ratio:.2f} x native RollingUpdate with the same maxUnavailable ({native:.1f} s); at most "
                f"{MAX_WINDOW_RATIO} x"
            ),
        ),
        (
            took <= MAX_LIMIT_RATIO * limit,
            (
                f"window: {took / limit:.2f} x the limit ({limit:.0f} s; native {native / limit:.2f} x); at most "
                f"{MAX_LIMIT_RATIO} x"
            ),
        ),
        *_costs("window", ours, len(bench.nodes)),
    ]


def measure_instant(bench: Bench, arguments: argparse.Namespace) -> list[Result]:
    """Roll pods that stop and start at once, beside RollingUpdate with the same."""
    say(f"instant: {len(bench.nodes)} fake nodes, {bench.batch_size} at a time, {arguments.rounds} rounds")
    natives, ours = run_rounds(bench, arguments, {"maxUnavailable": "10%"}, batches=False, timing="instant")
    if not natives or not ours:
        return []
    ratio = statistics.median(our.seconds / native.rolling for our, native in zip(ours, natives, strict=True))
    native = statistics.median(native.rolling for native in natives)
    return [
        (
            ratio <= MAX_INSTANT_RATIO,
            f"instant: {ratio:.2f} x native RollingUpdate ({native:.1f} s); at most {MAX_INSTANT_RATIO} x",
        )
    ]


def measure_rollback(bench: Bench, arguments: argparse.Namespace) -> list[Result]:
    """Take back a run that failed late."""
    say(f"rollback: {len(bench.nodes)} fake nodes, {bench.batch_size} at a time, {arguments.rounds} rounds")
    ratios = []
    for number in range(1, arguments.rounds + 1):
        there, back = bench.measure_way_back()
        ratios.append(back / there)
        say(f"  round {number}: {there:.2f} s for 100 nodes on the way there, {back:.2f} s on the way back")
    ratio = statistics.median(ratios)
    return [
        (
            ratio <= MAX_ROLLBACK_RATIO,
            f"rollback: {ratio:.2f} x the way there, per node; at most {MAX_ROLLBACK_RATIO} x",
        )
    ]


def measure_curve(bench: Bench, arguments: argparse.Namespace) -> list[Result]:
    """Roll fleets of different sizes through a window of a tenth, and print what a node costs."""
    say("curve: through a window of a tenth; fleets of " + ", ".join(map(str, arguments.fleets)))
    say("   nodes  seconds  x limit  writes/node  CPU ms/node  peak MiB  idle   largest object")
    ours = []
    for size in arguments.fleets:
        bench.resize(size)
        our = bench.measure_ours({"maxUnavailable": "10%"})
        ours.append(our)
        limit = SECONDS_A_POD * size / bench.batch_size
        say(
            f"  {size:6} {our.seconds:8.1f} {our.seconds / limit:8.2f} {our.counts.writes / size:12.3f} "
            f"{our.cpu * 1000 / size:12.2f} {our.peak_mib:9.0f}  {our.idle:5.1%}  {our.largest / 1024:.0f} KiB"
        )
        if arguments.explain:
            say(*(f"    {line}" for line in our.explanation))
            say(f"    requests: {our.counts.by_kind}")
    first, last = ours[0], ours[-1]
    small, large = arguments.fleets[0], arguments.fleets[-1]
    growth = (last.cpu / large) / (first.cpu / small)
    return [
        (
            growth <= MAX_GROWTH,
            (
                f"curve: a node costs {growth:.2f} x as much processor time of the operator in a fleet of {large} as "
                f"in one of {small}; at most {MAX_GROWTH} x"
            ),
        ),
        *_costs(f"{large} nodes", [last], large),
    ]


MEASURES = {
    "batches": measure_batches,
    "window": measure_window,
    "instant": measure_instant,
    "rollback": measure_rollback,
    "curve": measure_curve,
}


def run_rounds(
    bench: Bench, arguments: argparse.Namespace, rolling: Object, *, batches: bool, timing: str = "realistic"
) -> tuple[list[Native], list[Ours]]:
    """Measure both in turn, and turn the turn around in each round."""
    natives: list[Native] = []
    ours: list[Ours] = []
    for number in range(1, arguments.rounds + 1):
        for what in ("native", "outrider") if number % 2 else ("outrider", "native"):
            if arguments.only not in {None, what}:
                continue
            if what == "native":
                native = bench.measure_native(batches=batches, timing=timing)
                natives.append(native)
                note = (
                    f"OnDelete {native.batches:.1f} s, {native.gap * 1000:.0f} ms between batches; " if batches else ""
                )
                say(f"  round {number}: native {note}RollingUpdate 10 % {native.rolling:.1f} s")
            else:
                our = bench.measure_ours(rolling, timing)
                ours.append(our)
                note = f", {our.gap * 1000:.0f} ms between batches" if batches else ""
                say(
                    f"  round {number}: Outrider {our.seconds:.1f} s (told Completed after {our.completed:.1f} s)"
                    f"{note}; {our.passes} passes, CPU {our.cpu:.1f} s, {our.peak_mib:.0f} MiB"
                )
                if arguments.explain:
                    say(*(f"    {line}" for line in our.explanation))
                    say(f"    requests: {our.counts.by_kind}")
    return natives, ours


def _say_cluster(natives: Sequence[Native], ours: Sequence[Ours], nodes: int) -> None:
    """Say what a move costs the cluster itself: where one machine is all of it, this is what takes the time."""
    native, our = (statistics.median(each.cluster for each in found) * 1000 / nodes for found in (natives, ours))
    say(
        f"  control plane and fake nodes: {our:.0f} ms of processor time a node, native {native:.0f} ms: "
        f"{our / native:.2f} x"
    )


def _costs(name: str, ours: Sequence[Ours], nodes: int) -> list[Result]:
    """Return what a run costs beside time."""
    writes = statistics.median(our.counts.writes for our in ours) / nodes
    by_kind = {kind: statistics.median(our.counts.by_kind[kind] for our in ours) / nodes for kind in WRITTEN}
    shares = ", ".join(f"{kind} {share:.3f}" for kind, share in by_kind.items() if share)
    peak, idle = max(our.peak_mib for our in ours), statistics.median(our.idle for our in ours)
    largest = max(our.largest for our in ours)
    say(
        f"  operator's CPU {statistics.median(o.cpu for o in ours) * 1000 / nodes:.1f} ms a node, "
        f"{statistics.median(o.passes for o in ours):.0f} passes, "
        f"{statistics.median(o.counts.by_kind['reads'] for o in ours):.0f} reads"
    )
    return [
        (
            writes <= MAX_WRITES,
            f"{name}: {writes:.3f} writes to the API server per moved node ({shares}); at most {MAX_WRITES}",
        ),
        (peak <= MAX_MIB, f"{name}: operator's memory {peak:.0f} MiB at its peak; at most {MAX_MIB} MiB"),
        (idle <= MAX_IDLE, f"{name}: operator's idle CPU {idle:.1%} of a core; at most {MAX_IDLE:.0%}"),
        (largest <= MAX_OBJECT_BYTES, f"{name}: largest object {largest / 1024:.0f} KiB; at most 256 KiB"),
    ]


def _median_ms(seconds: Iterator[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.0f}"


def say(*lines: str) -> None:
    """Print lines at once."""
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
