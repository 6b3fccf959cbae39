"""How long does one look at a fleet of 50,000 nodes take to plan, in the middle of a run?

    PYTHONPATH=operator:tests python -m bench.planning [--nodes 50000] [--profile]

Pure: no cluster, no clock but the one that measures. The fleet stands at nine tenths of a run with a tenth of it on its
way, its RolloutBatches stored, a hundred nodes each; since the last look a hundredth has become Ready. Before it lies a
run that completed, with as many records. What is measured is `plan_rollout` from a snapshot as the operator makes it:
objects that did not change are the same as in the pass before. The yardstick is a plain loop that looks once at the
label of each node and at the pods on it. Both in processor time.
"""

import argparse
import cProfile
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "operator")]

from outrider.api.names import assignment_key, batch_name  # noqa: E402
from outrider.api.rollout import (  # noqa: E402
    BatchNode,
    NodeResult,
    Revisions,
    RolloutBatchSpec,
    RolloutBatchStatus,
    RolloutSpec,
    RolloutStatus,
    RunRecord,
    RunStatus,
)
from outrider.core.batches import PAGE, order_nodes  # noqa: E402
from outrider.core.plan import WriteBatch  # noqa: E402
from outrider.core.rollout import plan_rollout  # noqa: E402
from outrider.core.snapshot import Batch, Node, Pod, RolloutSnapshot, VersionState  # noqa: E402

MAX_MS = 200
KEY = assignment_key("fleet", "agent")
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
OLD, NEW = "agent-old", "agent-new"
UID = "0b1c7b1e-8a4f-4a58-9b7e-3d1a6c9f0000"


def build_snapshot(count: int, rolling: dict[str, object]) -> RolloutSnapshot:
    """Return a fleet at nine tenths of a run, a tenth of it on its way: half ending, half starting."""
    nodes = [
        Node(f"node-{index:05}", f"{index:08x}-8a4f-4a58-9b7e-3d1a6c9f0000", {KEY: NEW, "zone": str(index % 3)}, True)
        for index in range(count)
    ]
    done = count * 9 // 10
    order = order_nodes(nodes, UID, 2)
    moved, moving = order[:done], order[done:]
    stopping = moving[len(moving) // 2 :]
    leaving = {node.name for node in stopping}
    fleet = {
        node.name: replace(node, labels={**node.labels, KEY: f"to-{NEW}"}) if node.name in leaving else node
        for node in nodes
    }
    ready = {node.name for node in moved}
    pods = {
        name: (
            Pod(
                f"agent-{name}",
                f"pod-{name}",
                name,
                OLD if name in leaving else NEW,
                terminating=name in leaving,
                ready_since=NOW - timedelta(seconds=60) if name in ready else None,
            ),
        )
        for name in fleet
    }
    states = dict.fromkeys(ready, "Succeeded") | dict.fromkeys(fleet.keys() - ready - leaving, "Starting")
    states |= dict.fromkeys(leaving, "Stopping")
    batches = [
        *_batches(1, order_nodes(nodes, UID, 1), "none", OLD, lambda _: "Succeeded"),
        *_batches(2, order, OLD, NEW, lambda name: states[name]),
    ]
    spec = RolloutSpec.model_validate(
        {
            "component": "agent",
            "version": "1.1.0",
            "target": {"all": True},
            "template": {"spec": {"containers": [{"name": "agent", "image": "agent"}]}},
            "delivery": {"volume": {"mountPath": "/opt/agent", "containers": ["agent"]}},
            "strategy": {"type": "Rolling", "rolling": rolling, "failureTolerance": "1%"},
            "health": {"timeoutSeconds": 600, "minReadySeconds": 2},
        }
    )
    begun = NOW - timedelta(minutes=10)
    status = RolloutStatus(
        observed_generation=2,
        phase="Progressing",
        nodes=count,
        run=RunStatus(
            id=2,
            kind="Rollout",
            state="Running",
            version="1.1.0",
            revision=NEW,
            from_revision=OLD,
            started_at=begun,
            nodes=count,
            batches=max(batch.spec.batch for batch in batches),
        ),
        revisions=Revisions(stable=OLD, stable_version="1.0.0", current=NEW),
        history=[
            RunRecord(
                id=1,
                kind="Rollout",
                version="1.0.0",
                revision=OLD,
                result="Succeeded",
                started_at=begun,
                finished_at=begun,
                nodes=count,
                healthy=count,
            )
        ],
    )
    return RolloutSnapshot(
        now=NOW,
        namespace="fleet",
        name="agent",
        uid=UID,
        generation=2,
        deleting=False,
        has_finalizer=True,
        spec=spec,
        status=status,
        assignment_key=KEY,
        wanted=NEW,
        nodes=fleet,
        members=frozenset(fleet),
        pods=pods,
        batches=tuple(batches),
        revisions={OLD: "1.0.0", NEW: "1.1.0"},
        assigned=frozenset({NEW}),
        versions={version: VersionState("Published", verified_at=NOW) for version in ("1.0.0", "1.1.0")},
    )


def _batches(run: int, nodes: list[Node], origin: str, to: str, state: Callable[[str], str]) -> list[Batch]:
    batches = []
    for number, start in enumerate(range(0, len(nodes), PAGE), start=1):
        page = nodes[start : start + PAGE]
        begun = NOW - timedelta(seconds=300)
        spec = RolloutBatchSpec(
            rollout="agent",
            run=run,
            kind="Rollout",
            version="1.1.0",
            batch=number,
            started_at=begun,
            nodes=[BatchNode(name=node.name, uid=node.uid, origin=origin, to=to, back=origin) for node in page],
        )
        results = [
            NodeResult.model_validate({"name": node.name, "state": state(node.name), "started_at": begun})
            for node in page
        ]
        succeeded = sum(result.state == "Succeeded" for result in results)
        status = RolloutBatchStatus(
            state="Finished" if succeeded == len(results) else "Running",
            finished_at=NOW if succeeded == len(results) else None,
            succeeded=succeeded,
            pending=len(results) - succeeded,
            nodes=results,
        )
        batches.append(Batch(batch_name("agent", run, number, 1), spec, status))
    return batches


def settle(seen: RolloutSnapshot) -> RolloutSnapshot:
    """Return the fleet a second later: what was found is recorded, and a hundredth of the nodes have become Ready."""
    records = {action.name: action.status for action in plan_rollout(seen).actions if isinstance(action, WriteBatch)}
    batches = tuple(
        replace(batch, status=records[batch.name]) if batch.name in records else batch for batch in seen.batches
    )
    starting = [name for name, (pod,) in seen.pods.items() if pod.ready_since is None][: len(seen.nodes) // 100]
    became = {name: (replace(seen.pods[name][0], ready_since=NOW - timedelta(seconds=2)),) for name in starting}
    return replace(seen, batches=batches, pods={**seen.pods, **became})


def look_once(seen: RolloutSnapshot) -> int:
    """Do the least that any planner has to: look at the label of each node and the pods on it."""
    found = 0
    for name, node in seen.nodes.items():
        pods = seen.pods.get(name, ())
        found += node.labels.get(KEY) == NEW and any(pod.ready_since is not None for pod in pods)
    return found


def measure(act: Callable[[RolloutSnapshot], object], seen: RolloutSnapshot, rounds: int) -> float:
    """Return the median of some rounds in ms of processor time, after one that warms up; each is a moment later."""
    times = []
    for index in range(rounds + 1):
        moment = replace(seen, now=seen.now + timedelta(milliseconds=index))
        begun = time.process_time()
        act(moment)
        times.append(time.process_time() - begun)
    return statistics.median(times[1:]) * 1000


def main() -> int:
    """Measure, print, and return 0 if the target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=50_000, help="size of the fleet (default 50000)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the median counts (default 7)")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    arguments = parser.parse_args()

    slowest = 0.0
    for name, rolling in ROLLINGS.items():
        seen = settle(build_snapshot(arguments.nodes, rolling))
        took = measure(plan_rollout, seen, arguments.rounds)
        yardstick = measure(look_once, seen, arguments.rounds)
        slowest = max(slowest, took)
        say(
            f"{name}: {arguments.nodes} nodes, {len(seen.batches)} RolloutBatches: {took:.0f} ms a plan = "
            f"{took / yardstick:.1f} x a look at each node ({yardstick:.0f} ms)"
        )
        if arguments.profile:
            profile = cProfile.Profile()
            profile.runcall(plan_rollout, seen)
            pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(18)
    met = slowest <= MAX_MS
    say(f"at most {MAX_MS} ms. {'met' if met else 'MISSED'}")
    return 0 if met else 1


ROLLINGS: dict[str, dict[str, object]] = {
    "batches of 10 %": {"batchSize": "10%"},
    "window of 10 %": {"maxUnavailable": "10%"},
}
"""How the fleet rolls."""


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
