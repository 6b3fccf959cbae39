"""How long is a real node without its agent during a move, beside a native DaemonSet that replaces the same pod there?

    PYTHONPATH=operator:tests python -m bench.realnode [--part volume|image] [--rounds 8] [--explain]

One real node: kubelet, containerd, runc. On it stand two agents that differ in their port alone: one is Outrider's, the
other is of a native DaemonSet with updateStrategy RollingUpdate. They are moved in turns, there and back, never at the
same time, and both are asked for their version over HTTP every 20 ms from this machine: an agent's absence is the time
from the last answer of the old version to the first answer of the new one.

- volume: delivery volume. The native pod has the same init container: it is a copy of the revision's own template.
- image: delivery image, no init container.
"""

import argparse
import copy
import hashlib
import http.client
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "operator")]

from adapters.realtools import offline_tools  # noqa: E402
from bench.operatorprocess import OperatorProcess, install_outrider  # noqa: E402
from bench.watching import Json, Watch  # noqa: E402
from localcluster import Cluster, images  # noqa: E402
from localcluster.addresses import LOOPBACK  # noqa: E402
from localcluster.apiclient import Object  # noqa: E402
from localcluster.middleman import Middleman  # noqa: E402
from outrider.api import names  # noqa: E402

MAX_RATIO = 1.1
OURS, NATIVE = "outrider", "native"
PORTS = {OURS: 18080, NATIVE: 18081}
PAUSE = 0.02
"""Seconds between two questions to an agent."""

COMPONENT = "agent"
VERSIONS = ("1.0.0", "1.1.0")
FLEET = "bench-real"
FETCH_IMAGE = "localhost/outrider/outrider:bench"
AGENT_IMAGE = "localhost/outrider/bench-agent:1"
_API = f"/apis/outrider.dev/v1alpha1/namespaces/{FLEET}"
_DAEMONSETS = f"/apis/apps/v1/namespaces/{FLEET}/daemonsets"
_PODS = f"/api/v1/namespaces/{FLEET}/pods"


def agent(version: str) -> str:
    """Return the agent: a web server that tells its version and ends at once when asked."""
    return (
        "#!/bin/sh\n"
        f"mkdir -p /tmp/www && cd /tmp/www && echo {version} >version\n"
        "trap 'kill $server; exit 0' TERM\n"
        "busybox httpd -f -p $PORT -h /tmp/www &\n"
        "server=$!\n"
        "wait $server\n"
    )


def template(port: int, image: str = AGENT_IMAGE) -> Object:
    """Return the agent's pod, but for its delivery."""
    return {
        "metadata": {"labels": {"bench.outrider.test/agent": str(port)}},
        "spec": {
            "hostNetwork": True,
            "terminationGracePeriodSeconds": 10,
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "agent",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["/opt/agent/agent"],
                    "env": [{"name": "PORT", "value": str(port)}],
                    "readinessProbe": {"httpGet": {"path": "/version", "port": port}, "periodSeconds": 1},
                }
            ],
        },
    }


@dataclass
class Asking:
    """Asks one agent for its version, all the time; remembers when it answered last, and which version came when."""

    address: str
    port: int
    last: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self._stopping.wait(PAUSE):
            said = self._ask()
            if said:
                with self._changed:
                    now = time.monotonic()
                    self.first.setdefault(said, now)
                    self.last[said] = now
                    self._changed.notify_all()

    def _ask(self) -> str:
        connection = http.client.HTTPConnection(self.address, self.port, timeout=1)
        try:
            connection.request("GET", "/version")
            answer = connection.getresponse()
            said = answer.read().decode().strip()
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()
        return said if answer.status == 200 else ""

    def forget(self, version: str) -> None:
        """Wait for a version's answer as if it had never answered."""
        with self._changed:
            self.first.pop(version, None)

    def await_version(self, version: str, seconds: float = 120) -> float:
        """Wait until a version answers; return when it first did."""
        with self._changed:
            if not self._changed.wait_for(lambda: version in self.first, seconds):
                raise RuntimeError(f"{version} did not answer at port {self.port} within {seconds:.0f} s")
            return self.first[version]

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()


class Stages:
    """What the API server told about a move, and when: for --explain."""

    def __init__(self, cluster: Cluster, node: str, key: str) -> None:
        self._node, self._key = node, key
        self._pods: dict[str, set[str]] = {OURS: set(), NATIVE: set()}
        self._old: set[str] = set()
        self._whose = OURS
        self._label = ""
        self.seen: list[tuple[float, str]] = []
        self._watches = [
            Watch(cluster, _PODS, self._take_pod, "application/json"),
            Watch(cluster, "/api/v1/nodes", self._take_node, "application/json"),
        ]

    def _note(self, came: float, what: str) -> None:
        if what not in {seen for _, seen in self.seen}:
            self.seen.append((came, what))

    def _take_node(self, _kind: str, node: Json, came: float) -> None:
        label = node["metadata"]["labels"].get(self._key, "")
        if node["metadata"]["name"] == self._node and label != self._label:
            self._label = label
            leaving = label.startswith(names.ASSIGNMENT_LEAVING)
            self._note(came, "label: the old agent is to go" if leaving else "label: the new agent is to come")

    def _take_pod(self, kind: str, pod: Json, came: float) -> None:
        uid = pod["metadata"]["uid"]
        whose = NATIVE if pod["metadata"]["labels"].get("app") == NATIVE else OURS
        if kind == "DELETED":
            self._pods[whose].discard(uid)
        else:
            self._pods[whose].add(uid)
        if whose != self._whose:
            return
        status = pod.get("status") or {}
        init, main = (
            ((status.get(f"{which}Statuses") or [{}])[0].get("state") or {}) for which in ("initContainer", "container")
        )
        if uid in self._old:
            what = {
                "old pod gone": kind == "DELETED",
                "old container has ended": bool(main.get("terminated")),
                "old pod told to go": bool(pod["metadata"].get("deletionTimestamp")),
            }
        else:
            what = {
                "new pod created": True,
                "new pod scheduled": bool(pod["spec"].get("nodeName")),
                "init container has started": bool(init.get("running") or init.get("terminated")),
                "init container has ended": bool(init.get("terminated")),
                "new container runs": bool(main.get("running")),
            }
        for stage, reached in what.items():
            if reached:
                self._note(came, stage)

    def begin(self, whose: str) -> None:
        """Forget what was seen; what comes is about this one's agent, and its pods that are there now are the old."""
        self._whose, self._old, self.seen = whose, set(self._pods[whose]), []

    def stop(self) -> None:
        """End the watches."""
        for watch in self._watches:
            watch.stop()


class Bench:
    """One cluster with one real node and what is measured on it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.client = cluster.client()
        self.folder = folder
        [self.node] = cluster.real_nodes
        addresses = self.client.get(f"/api/v1/nodes/{self.node}")["status"]["addresses"]
        self.address = next(str(one["address"]) for one in addresses if one["type"] == "InternalIP")
        self.key = names.assignment_key(FLEET, COMPONENT)
        self.templates: dict[str, Object] = {}

    def prepare(self) -> None:
        """Install Outrider without its Deployment, a key to trust, and the images."""
        self.cluster.load_image(images.build_operator_image(ROOT, FETCH_IMAGE))
        self.cluster.load_image(images.build_busybox_image(AGENT_IMAGE))
        self.signer = install_outrider(self.cluster, self.folder)

    def publish_files(self) -> None:
        """Publish both versions as files."""
        self.client.create("/api/v1/namespaces", {"metadata": {"name": FLEET}})
        for version in VERSIONS:
            self._publish(version, agent(version).encode())
        self._await_published()

    def publish_images(self) -> None:
        """Publish both versions as container images with the agent in them, signed by cosign."""
        self.client.create("/api/v1/namespaces", {"metadata": {"name": FLEET}})
        home = self.folder / "tools"
        home.mkdir()
        # The tools talk to nobody but loopback.
        way = Middleman(self.cluster.registry, LOOPBACK)
        with offline_tools(home) as tools:
            for version in VERSIONS:
                place = f"{self.cluster.registry}/elsewhere/{COMPONENT}"
                content = {"agent": agent(version)}
                archive = images.build_busybox_image(f"{place}:{version}", files=content, entrypoint=["/agent"])
                digest = images.push_image(archive, f"{place}:{version}")
                tools.cosign.sign(f"{way.host}/elsewhere/{COMPONENT}@{digest}", self.signer)
                self._describe(
                    version,
                    sha256=digest.removeprefix("sha256:"),
                    source={"image": {"reference": f"{place}:{version}", "copy": True}},
                )
        way.stop()
        self._await_published()

    def _publish(self, version: str, content: bytes) -> None:
        name = f"{COMPONENT}-{version}"
        source = {"metadata": {"name": name}, "data": {"agent": content.decode()}}
        self.client.create(f"/api/v1/namespaces/{FLEET}/configmaps", source)
        self._describe(
            version,
            fileName="agent",
            sha256=hashlib.sha256(content).hexdigest(),
            source={"configMap": {"name": name, "key": "agent"}},
            signature={"inline": self.signer.sign(content)},
        )

    def _describe(self, version: str, **artifact: Any) -> None:
        artifact["platform"] = {"os": "linux", "arch": images.architecture()}
        body = {
            "apiVersion": names.API_VERSION,
            "kind": "ComponentVersion",
            "metadata": {"name": f"{COMPONENT}-{version}"},
            "spec": {"component": COMPONENT, "version": version, "artifacts": [artifact]},
        }
        self.client.create(f"{_API}/componentversions", body)

    def _await_published(self) -> None:
        for version in VERSIONS:
            self._wait("--for=jsonpath={.status.phase}=Published", f"componentversion/{COMPONENT}-{version}")

    def start_ours(self, delivery: Object, pod: Object) -> None:
        """Have Outrider's agent on the node, and both of its revisions in the cluster."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": "Rollout",
            "metadata": {"name": COMPONENT},
            "spec": {
                "component": COMPONENT,
                "version": VERSIONS[0],
                "target": {"nodeNames": [self.node]},
                "template": pod,
                "delivery": delivery,
                "strategy": {"type": "Full"},
                "health": {"timeoutSeconds": 120, "minReadySeconds": 0},
            },
        }
        self.client.create(f"{_API}/rollouts", body)
        self._await_completed(VERSIONS[0])

    def start_native(self) -> None:
        """Have the native DaemonSet's agent on the node, the pod being a copy of Outrider's."""
        for version in VERSIONS:
            if version != VERSIONS[0]:
                self.move_ours(version)
                self._await_completed(version)
            selector = f"{names.LABEL_VERSION}={version},{names.LABEL_ROLE}={names.ROLE_REVISION}"
            [found] = self.client.items(_DAEMONSETS, labelSelector=selector)
            self.templates[version] = _as_native(found["spec"]["template"], self.node)
        body = {
            "metadata": {"name": NATIVE},
            "spec": {
                "selector": {"matchLabels": {"app": NATIVE}},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
                "template": self.templates[VERSIONS[1]],
            },
        }
        self.client.create(_DAEMONSETS, body)

    def move_ours(self, version: str) -> None:
        """Ask Outrider for a version."""
        self.client.merge(f"{_API}/rollouts/{COMPONENT}", {"spec": {"version": version}})

    def move_native(self, version: str) -> None:
        """Ask the native DaemonSet for a version."""
        operation = [{"op": "replace", "path": "/spec/template", "value": self.templates[version]}]
        self.client.raw("PATCH", f"{_DAEMONSETS}/{NATIVE}", operation, "application/json-patch+json")  # type: ignore[arg-type]

    def settle(self, version: str) -> None:
        """Wait until both know that they run a version, so that nothing of it is left to do."""
        self._await_completed(version)
        self._wait_for_native()

    def _await_completed(self, version: str) -> None:
        generation = self.client.get(f"{_API}/rollouts/{COMPONENT}")["metadata"]["generation"]
        done = f"--for=jsonpath={{.status.observedGeneration}}={generation}"
        self._wait(done, f"rollout.outrider.dev/{COMPONENT}")
        self._wait("--for=jsonpath={.status.phase}=Completed", f"rollout.outrider.dev/{COMPONENT}")

    def _wait_for_native(self) -> None:
        self.cluster.kubectl_run("rollout", "status", "-n", FLEET, f"daemonset/{NATIVE}", "--timeout=120s")

    def _wait(self, condition: str, subject: str) -> None:
        self.cluster.kubectl_run("wait", "-n", FLEET, condition, "--timeout=120s", subject)


def _as_native(pod: Object, node: str) -> Object:
    """Return a revision's pod as a native DaemonSet runs it: at another port, chosen by the node's name."""
    made = json.loads(json.dumps(pod).replace(f'"{PORTS[OURS]}"', f'"{PORTS[NATIVE]}"'))
    made["metadata"] = {"labels": {"app": NATIVE}}
    spec = made["spec"]
    spec["affinity"] = None
    spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    for container in spec["containers"]:
        if container["name"] == "agent":
            container["readinessProbe"]["httpGet"]["port"] = PORTS[NATIVE]
    return {key: copy.deepcopy(value) for key, value in made.items() if value is not None}


@dataclass
class Measured:
    """Absences in seconds, by whose agent it was; and what happened when in them, in seconds from the last answer."""

    absences: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], NATIVE: []})
    stages: dict[str, list[list[tuple[float, str]]]] = field(default_factory=lambda: {OURS: [], NATIVE: []})


def measure(bench: Bench, rounds: int) -> Measured:
    """Move both agents there and back, in turns."""
    asking = {who: Asking(bench.address, port) for who, port in PORTS.items()}
    stages = Stages(bench.cluster, bench.node, bench.key)
    moves: dict[str, Callable[[str], None]] = {OURS: bench.move_ours, NATIVE: bench.move_native}
    measured = Measured()
    try:
        for who, one in asking.items():
            one.await_version(VERSIONS[1])
            moves[who](VERSIONS[0])
            one.await_version(VERSIONS[0])
        bench.settle(VERSIONS[0])
        # The watches have seen the pods of both by now.
        at = VERSIONS[0]
        for index in range(2 * rounds):
            to = VERSIONS[0] if at == VERSIONS[1] else VERSIONS[1]
            order = (OURS, NATIVE) if index // 2 % 2 == 0 else (NATIVE, OURS)
            for who in order:
                asking[who].forget(to)
                stages.begin(who)
                moves[who](to)
                came = asking[who].await_version(to)
                left = asking[who].last[at]
                measured.absences[who].append(came - left)
                measured.stages[who].append([(when - left, what) for when, what in stages.seen])
                # Nothing of this move is left when the next one begins.
                if who == OURS:
                    bench._await_completed(to)
                else:
                    bench._wait_for_native()
            at = to
    finally:
        stages.stop()
        for one in asking.values():
            one.stop()
    return measured


def explain(measured: Measured) -> None:
    """Print where the time goes: medians of when something was seen, counted from the old agent's last answer."""
    for who, moves in measured.stages.items():
        say(f"  {who}, in ms after the old agent's last answer (medians):")
        found: dict[str, list[float]] = {}
        for move in moves:
            for when, what in move:
                found.setdefault(what, []).append(when * 1000)
        for what, times in sorted(found.items(), key=lambda item: statistics.median(item[1])):
            say(f"    {statistics.median(times):7.0f}  {what}")
        say(f"    {statistics.median(measured.absences[who]) * 1000:7.0f}  the new agent answers")


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run_volume(bench: Bench, rounds: int) -> Measured:
    """Measure delivery volume."""
    bench.publish_files()
    bench.start_ours({"volume": {"mountPath": "/opt/agent", "containers": ["agent"]}}, template(PORTS[OURS]))
    bench.start_native()
    return measure(bench, rounds)


def run_image(bench: Bench, rounds: int) -> Measured:
    """Measure delivery image."""
    bench.publish_images()
    pod = template(PORTS[OURS])
    del pod["spec"]["containers"][0]["command"]
    bench.start_ours({"image": {"container": "agent"}}, pod)
    bench.start_native()
    return measure(bench, rounds)


MEASURES: dict[str, Callable[[Bench, int], Measured]] = {"volume": run_volume, "image": run_image}


def main() -> int:
    """Measure, print, and return 0 if the target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(MEASURES), action="append", help="measure this (default: both)")
    parser.add_argument("--rounds", type=int, default=8, help="moves there and back (default 8)")
    parser.add_argument("--cluster", default="bench-real", help="name of the local cluster (default bench-real)")
    parser.add_argument("--explain", action="store_true", help="say where the time went")
    arguments = parser.parse_args()
    # Ended by a supervisor is cleaned up like ended by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    met = True
    for part in arguments.part or MEASURES:
        cluster = Cluster.up(arguments.cluster, fake_nodes=0, real_nodes=1)
        try:
            with tempfile.TemporaryDirectory(prefix="outrider-bench-") as scratch:
                bench = Bench(cluster, Path(scratch))
                bench.prepare()
                operator = OperatorProcess(
                    cluster,
                    Path(scratch) / "operator",
                    OUTRIDER_FETCH_IMAGE=FETCH_IMAGE,
                    OUTRIDER_FETCH_IMAGE_PULL_POLICY="Never",
                    OUTRIDER_PLAIN_HTTP_SOURCES=cluster.registry,
                )
                try:
                    measured = MEASURES[part](bench, arguments.rounds)
                finally:
                    operator.stop()
        finally:
            cluster.down()
        medians = {who: statistics.median(seconds) for who, seconds in measured.absences.items()}
        ratio = medians[OURS] / medians[NATIVE]
        for who, seconds in measured.absences.items():
            shown = ", ".join(f"{one * 1000:.0f}" for one in seconds)
            say(f"  {part}, {who}: without an agent for {medians[who] * 1000:.0f} ms (median of {shown})")
        if arguments.explain:
            explain(measured)
        good = ratio <= MAX_RATIO
        met = met and good
        say(f"delivery {part}: {ratio:.2f} x native; at most {MAX_RATIO} x. {'met' if good else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
