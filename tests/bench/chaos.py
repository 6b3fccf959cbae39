"""Does a rollout keep its promises while nodes, pods and the operator fail at random?

    PYTHONPATH=operator:tests python -m bench.chaos [--nodes 1000] [--seed 1] [--seconds 300] [--failing 3]

A fleet of fake nodes goes from one version to the next by a canary step and a sliding window. Meanwhile nodes die and
come back, are deleted and made anew, agents crash on some nodes, pods are deleted, and the operator is killed and
started again. Then all is healed and the rollout has to come to its end. Two things are checked by watching, never by
asking the operator:

- no two agents of different revisions are Ready on a node at once (but for nodes that were deleted: their old pods can
  outlive them for a moment);
- where every node ends is what its newest record says, or the stable version for who joined.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "operator")]

from bench.operatorprocess import OperatorProcess  # noqa: E402
from bench.rollout import NEW, OLD, Bench, _rollout, say  # noqa: E402
from bench.watching import Watch, _is_ready, _node_of  # noqa: E402
from localcluster import Cluster  # noqa: E402
from localcluster.apiclient import ApiError, Object  # noqa: E402
from outrider.api import names  # noqa: E402

KEY = names.assignment_key
HAPPENINGS = (
    "node dies",
    "node dies",
    "node is back",
    "node is back",
    "node is made anew",
    "pod is lost",
    "pod is lost",
)
AT_REST = {"Completed", "RolledBack", "Stalled"}


class Agents:
    """Which agents are Ready on which node, as the API server tells it, and where two were so at once."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._lock = threading.Lock()
        self._ready: dict[str, dict[str, str]] = {}
        self.overlaps: list[str] = []
        self.excused: set[str] = set()
        self._watch = Watch(cluster, f"/api/v1/namespaces/{namespace}/pods", self._take, "application/json")

    def stop(self) -> None:
        """End the watch; raise if it broke."""
        broken = self._watch.broken
        self._watch.stop()
        if broken:
            raise RuntimeError(f"the watch broke: {broken}")

    def _take(self, kind: str, pod: Object, _came: float) -> None:
        labels = pod["metadata"].get("labels") or {}
        revision, node, uid = labels.get(names.LABEL_REVISION, ""), _node_of(pod), pod["metadata"]["uid"]
        with self._lock:
            here = self._ready.setdefault(node, {})
            if kind == "DELETED" or not _is_ready(pod):
                here.pop(uid, None)
                return
            here[uid] = revision
            if len(set(here.values())) > 1 and node not in self.excused:
                self.overlaps.append(f"{node}: {sorted(set(here.values()))}")


class Chaos:
    """What goes wrong, one thing after the other, decided by a number."""

    def __init__(self, bench: Bench, namespace: str, agents: Agents, seed: int) -> None:
        self.bench, self.client, self.namespace, self.agents = bench, bench.client, namespace, agents
        self.dice = random.Random(seed)  # noqa: S311 - repeatable, not a secret
        self.happened: Counter[str] = Counter()
        self.dead: list[tuple[str, object]] = []

    def happen(self) -> None:
        """Let one thing go wrong, or be mended."""
        kind = self.dice.choice(HAPPENINGS)
        victim = self.dice.choice(self.bench.nodes)
        try:
            match kind:
                case "node dies" if victim not in {name for name, _ in self.dead} and len(self.dead) < 10:
                    self.dead.append((victim, self.bench.cluster.inject("not-ready", nodes=[victim])))
                case "node is back" if self.dead:
                    self.mend(self.dice.randrange(len(self.dead)))
                case "node is made anew" if victim not in {name for name, _ in self.dead}:
                    self.agents.excused.add(victim)
                    fault = self.bench.cluster.inject("gone", nodes=[victim])
                    time.sleep(self.dice.uniform(0, 2))
                    fault.remove()
                case "pod is lost":
                    self.lose_pod(victim)
                case _:
                    return
        except ApiError as error:
            say(f"  {kind}: {error}")
            return
        self.happened[kind] += 1

    def mend(self, index: int) -> None:
        """Let a dead node come back."""
        _, fault = self.dead.pop(index)
        fault.remove()  # type: ignore[attr-defined]

    def lose_pod(self, node: str) -> None:
        """Delete the agents of a node."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        for pod in self.client.items(path, fieldSelector=f"spec.nodeName={node}"):
            self.client.delete(f"{path}/{pod['metadata']['name']}")


def unexplained(bench: Bench, namespace: str) -> list[str]:
    """Return the nodes that are not where their newest record says, each with both."""
    path = f"/apis/outrider.dev/v1alpha1/namespaces/{namespace}"
    rollout = bench.client.get(f"{path}/rollouts/agent")
    stable = rollout["status"]["revisions"].get("stable")
    batches = bench.client.items(f"{path}/rolloutbatches")
    batches.sort(key=lambda body: tuple(body["spec"].get(key, 1) for key in ("run", "batch", "page")))
    allowed: dict[tuple[str, str], set[str]] = {}
    for body in batches:
        results = {each["name"]: each for each in (body.get("status") or {}).get("nodes") or []}
        for entry in body["spec"]["nodes"]:
            state = results.get(entry["name"], {}).get("state", "Pending")
            goals = {"Succeeded": {entry["to"]}, "RolledBack": {entry["back"]}, "Skipped": {entry["from"]}}
            before = allowed.get((entry["name"], entry["uid"]), set())
            # Who was left out, or failed where nothing leads back, stays where the record finds it.
            found = goals.get(state, {entry["to"], entry["back"], entry["from"]})
            allowed[entry["name"], entry["uid"]] = found | (before if state == "Skipped" else set())
    problems = []
    key = KEY(namespace, "agent")
    for node in bench.client.items("/api/v1/nodes"):
        meta = node["metadata"]
        assignment = (meta.get("labels") or {}).get(key, "")
        expected = allowed.get((meta["name"], meta["uid"]), set()) | {stable}
        if assignment not in expected:
            problems.append(
                f"{meta['name']} has {assignment or 'no assignment'}, and its records say {sorted(expected)}"
            )
    return problems


def rollout_of(bench: Bench, namespace: str) -> Object:
    """Return the Rollout as it is."""
    found: Object = bench.client.get(f"/apis/outrider.dev/v1alpha1/namespaces/{namespace}/rollouts/agent")
    return found


def wait_until_at_rest(bench: Bench, namespace: str, version: str, seconds: float) -> Object:
    """Wait until the run to a version has its end, and return the Rollout."""
    deadline = time.monotonic() + seconds
    while True:
        body = rollout_of(bench, namespace)
        status = body.get("status") or {}
        is_it = (status.get("run") or {}).get("version") == version
        if is_it and status.get("phase") in AT_REST:
            return body
        if time.monotonic() > deadline:
            raise RuntimeError(f"no end: {json.dumps(status)[:3000]}")
        time.sleep(0.5)


def live_through(bench: Bench, arguments: argparse.Namespace) -> int:
    """Run one rollout through chaos; return how many promises were broken."""
    dice = random.Random(arguments.seed)  # noqa: S311 - repeatable, not a secret
    with bench._namespace() as namespace:
        operator = OperatorProcess(bench.cluster, bench.folder / "operator-0")
        agents = Agents(bench.cluster, namespace)
        chaos = Chaos(bench, namespace, agents, arguments.seed)
        kills = 0
        try:
            bench._publish(namespace, OLD, NEW)
            path = f"/apis/outrider.dev/v1alpha1/namespaces/{namespace}/rollouts"
            bench.client.create(path, _rollout("realistic"))
            wait_until_at_rest(bench, namespace, OLD, 1200)
            failing = dice.sample(bench.nodes, max(1, len(bench.nodes) * arguments.failing // 100))
            bench.cluster.inject(
                "crash-loop", nodes=failing, namespace=namespace, pod_labels={names.LABEL_VERSION: NEW}
            )
            strategy = {
                "type": "Canary",
                "canary": {"steps": [{"nodes": "5%", "soakSeconds": 5, "failureTolerance": "50%"}]},
                "rolling": {"maxUnavailable": "10%"},
                "full": None,
                "failureTolerance": "40%",
            }
            health = {"timeoutSeconds": 60, "minReadySeconds": 0}
            bench.client.merge(f"{path}/agent", {"spec": {"version": NEW, "strategy": strategy, "health": health}})
            begun = time.monotonic()
            next_kill = dice.uniform(5, 40)
            while time.monotonic() - begun < arguments.seconds:
                chaos.happen()
                if time.monotonic() - begun >= next_kill:
                    next_kill += dice.uniform(15, 60)
                    operator.kill()
                    kills += 1
                    time.sleep(dice.uniform(0, 5))
                    operator = OperatorProcess(bench.cluster, bench.folder / f"operator-{kills}")
                time.sleep(dice.uniform(0, 1))
                status = rollout_of(bench, namespace)["status"]
                if status["run"]["version"] == NEW and status["phase"] in AT_REST:
                    break
            while chaos.dead:
                chaos.mend(0)
            body = wait_until_at_rest(bench, namespace, NEW, 900)
            time.sleep(15)  # late batches of nodes that were away may follow
            body = wait_until_at_rest(bench, namespace, NEW, 900)
            seconds = time.monotonic() - begun
            problems = [*agents.overlaps, *unexplained(bench, namespace)]
            return report(body, chaos, kills, seconds, problems, arguments)
        finally:
            agents.stop()
            operator.stop()


def why(status: Object) -> str:
    """Return what the Rollout says about how its last run ended."""
    failed = [record.get("message", "") for record in status.get("history", [])[:1]]
    ready = [each["message"] for each in status.get("conditions", []) if each["type"] == "Ready"]
    return "; ".join(filter(None, [*ready, *failed]))


def report(
    body: Object, chaos: Chaos, kills: int, seconds: float, problems: list[str], arguments: argparse.Namespace
) -> int:
    """Print what happened and what came of it; return how many promises were broken."""
    run = body["status"]["run"]
    say("", f"{arguments.nodes} nodes, seed {arguments.seed}, {seconds:.0f} s: {body['status']['phase']}")
    say(f"  run {run['id']}: healthy {run['healthy']}, failed {run['failed']}, skipped {run['skipped']}")
    say(f"  what runs: {body['status'].get('running')}")
    say(f"  it says: {why(body['status'])}")
    for kind, count in sorted(chaos.happened.items()):
        say(f"  {kind:<24}{count:>6}")
    say(f"  {'operator killed':<24}{kills:>6}")
    for problem in problems[:20]:
        say(f"  BROKEN: {problem}")
    say(f"  {len(problems)} promises broken")
    return len(problems)


def main() -> int:
    """Live through chaos; return 0 if every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000, help="size of the fleet (default 1000)")
    parser.add_argument("--seed", type=int, default=1, help="what the failures are decided by (default 1)")
    parser.add_argument("--seconds", type=float, default=300, help="for how long things go wrong (default 300)")
    parser.add_argument("--failing", type=int, default=3, help="percent of the nodes where the version crashes")
    parser.add_argument("--cluster", default="chaos", help="name of the local cluster (default chaos)")
    arguments = parser.parse_args()
    # Ended by a supervisor is cleaned up like ended by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cluster = Cluster.up(arguments.cluster, fake_nodes=arguments.nodes, real_nodes=0)
    try:
        with tempfile.TemporaryDirectory(prefix="outrider-chaos-") as scratch:
            bench = Bench(cluster, Path(scratch))
            bench.prepare()
            bench.resize(arguments.nodes)
            return 1 if live_through(bench, arguments) else 0
    finally:
        cluster.down()


if __name__ == "__main__":
    sys.exit(main())
