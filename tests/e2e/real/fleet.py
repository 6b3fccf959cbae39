"""A story on real nodes: the same words, but containers run, files are there, and agents answer for themselves."""

import os
import struct
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2e.files import Answer, FileServer
from e2e.operator_process import OperatorProcess
from e2e.real.voices import PORT, Voices, ask
from e2e.story import COMPONENT, NODES, POOL, ROLLOUT, Story
from e2e.story import Then as ThenAnywhere
from e2e.watching import Api, Object, condition
from localcluster import Cluster, images
from localcluster.middleman import Middleman
from localcluster.nodehandle import RealNode, Service
from outrider.api import names

AGENT_IMAGE = "localhost/outrider/agent-base:1"
FETCH, INSTALL, HOST = "outrider-fetch", "outrider-install", "outrider-host"
REGISTRY_SECRET = "registry-of-nodes"
DAEMON_PATH, UNIT = "/opt/node-agent", "node-agent"


def agent(version: str, manner: str = "") -> bytes:
    """Return the file of a version: a web server that tells its version. `manner` is what it does before that."""
    return f"""#!/bin/sh
# node-agent {version}, well-meant
{manner}
home=/tmp/agent.$$
mkdir -p $home && cd $home || exit 1
echo "node-agent {version}" >version
# A shell as the first process of a container ends by SIGTERM only if it says so.
trap 'kill $server 2>/dev/null; exit 0' TERM INT
busybox httpd -f -p ${{PORT:-8080}} -h $home &
server=$!
echo "node-agent {version} listens"
wait $server
""".encode()


def foreign_program() -> bytes:
    """Return an executable that no processor of this machine runs: the header is all that the kernel looks at."""
    machine = {"amd64": 183, "arm64": 62}[images.architecture()]
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    return header + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0) + bytes(64)


CRASHING = 'echo "cannot read my own configuration, giving up"; exit 1'


def agent_pod(**pod: Any) -> Object:
    """Return the agent's pod: at the node's own address, from an image in which there is no agent."""
    container = {
        "name": "agent",
        "image": AGENT_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["/opt/agent/node-agent"],
        "readinessProbe": {"httpGet": {"path": "/version", "port": 8080}, "periodSeconds": 1},
    }
    return {
        "spec": {
            "hostNetwork": True,
            "terminationGracePeriodSeconds": 5,
            "automountServiceAccountToken": False,
            "containers": [container],
            **pod,
        }
    }


class RealStory(Story):
    """What one test on real nodes owns. It gives back the nodes as they were."""

    def __init__(
        self,
        name: str,
        api: Api,
        local: Cluster,
        operator: OperatorProcess,
        files: FileServer,
        folder: Any,
        middleman: Middleman,
    ) -> None:
        super().__init__(name, api, local, operator, files, folder)
        self.middleman = middleman
        self.voices: Voices | None = None
        self.services: dict[str, Service] = {}
        self._kind: Object = {}
        self._delivery: Object = {}

    def node(self, name: str) -> RealNode:
        """Return a handle to work on a node itself."""
        return self.local.real_node(name)

    def address(self, name: str) -> str:
        """Return a node's address, which its agent has, too."""
        found = self.client.get(f"{NODES}/{name}")["status"]["addresses"]
        return str(next(one["address"] for one in found if one["type"] == "InternalIP"))

    def ask(self, name: str) -> str:
        """Ask the agent of a node for its version."""
        return ask(self.address(name))

    def pod_of(self, name: str, **labels: str) -> Object:
        """Return the newest pod of this story on a node."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        found = self.client.items(self.pods, labelSelector=selector) if selector else self.client.items(self.pods)
        here = [pod for pod in found if pod["spec"].get("nodeName") == name]
        return max(here, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def logs(self, pod: Object, container: str = FETCH) -> str:
        """Return what a container has said, as `kubectl logs` shows it."""
        return self.local.kubectl_run("logs", "-n", self.namespace, pod["metadata"]["name"], "-c", container)

    def volume(self, pod: Object, name: str, kind: str = "empty-dir") -> Path:
        """Return where a pod's volume lies on its node."""
        path = f"/var/lib/kubelet/pods/{pod['metadata']['uid']}/volumes/kubernetes.io~{kind}/{name}"
        return self.node(pod["spec"]["nodeName"]).path(path)

    # -- daemons

    def is_a_daemon(self, **host: Any) -> None:
        """From here on the component is installed on nodes, where a service manager keeps it; `host` as in delivery."""
        self._kind = {"type": "Daemon"}
        delivery = {
            "path": DAEMON_PATH,
            "activate": {"systemdUnit": f"{UNIT}.service"},
            "health": {"timeoutSeconds": 10, "periodSeconds": 1, "http": {"path": "/version", "port": PORT}},
            **host,
        }
        self._delivery = {
            "delivery": {"host": {field: value for field, value in delivery.items() if value is not None}},
            "template": {"spec": {"terminationGracePeriodSeconds": 5}},
        }

    def give_a_service(self, node: str) -> Service:
        """Have the node's service manager know the daemon."""
        self.services[node] = self.node(node).add_service(UNIT, f"{DAEMON_PATH}/current/node-agent")
        return self.services[node]

    def current(self, node: str) -> str:
        """Return what a daemon's link `current` says on a node."""
        return str(self.node(node).path(f"{DAEMON_PATH}/current").readlink())

    def installed(self, node: str) -> list[str]:
        """Return the folders of versions that a node keeps, by name."""
        return sorted(path.name for path in self.node(node).path(f"{DAEMON_PATH}/versions").iterdir())

    # -- what is otherwise on real nodes

    def create_version(
        self,
        version: str,
        answer: Answer | None = None,
        *,
        content: bytes | None = None,
        key: str = "release",
        spec: Object | None = None,
        **changes: Any,
    ) -> bytes:
        """Serve an agent that runs and create its ComponentVersion, for this machine's architecture."""
        changes = {"platform": {"os": "linux", "arch": images.architecture()}, **changes}
        content = agent(version) if content is None else content
        spec = {**self._kind, **(spec or {})}
        return super().create_version(version, answer, content=content, key=key, spec=spec, **changes)

    def apply_rollout(self, version: str, *, name: str = ROLLOUT, **spec: Any) -> None:
        """Create the Rollout; `spec` overrides its fields."""
        super().apply_rollout(version, name=name, **{"template": agent_pod(), **self._delivery, **spec})

    def add_nodes(self, count: int, labels: Mapping[str, str] | None = None) -> list[str]:
        """Take real nodes for this story."""
        free = [name for name in self.local.real_nodes if name not in self.nodes]
        assert len(free) >= count, f"{count} more real nodes are wanted, and {free} are left"
        for name in free[:count]:
            self.client.merge(f"{NODES}/{name}", {"metadata": {"labels": {POOL: self.name, **(labels or {})}}})
            if self._kind:
                self.give_a_service(name)
        self.nodes += free[:count]
        return free[:count]

    def record(self) -> None:
        """From now on note every assignment, every pod, and what agents say."""
        super().record()
        self.voices = Voices({name: self.address(name) for name in self.nodes})

    def end(self) -> None:
        """Give back what the test took, and wait until its pods are gone: the next story has the same nodes."""
        self.middleman.behave()
        if self.voices is not None:
            self.voices.stop()
        nodes, self.nodes = self.nodes, []
        super().end()
        gone = "the pods of the test that has ended are gone"
        self.api.wait(self.pods, lambda found: not found, gone, each=lambda _: None)
        for name in nodes:
            if name in self.services:
                self.services[name].end()
                self.node(name).run("rm", "-rf", DAEMON_PATH)
            labels = self.client.get(f"{NODES}/{name}")["metadata"]["labels"]
            mine = [key for key in labels if key == POOL or key.startswith(names.ASSIGNMENT_PREFIX)]
            self.client.merge(f"{NODES}/{name}", {"metadata": {"labels": dict.fromkeys(mine)}})


class Then(ThenAnywhere):
    """What must come out, on nodes where containers run."""

    _story: RealStory

    def a_node_is_fetching(self, version: str) -> str:
        """A node runs the init container of a version; returns its name."""

        def found(pods: dict[str, Object]) -> str | None:
            here = [pod["spec"]["nodeName"] for pod in pods.values() if started(pod)]
            return str(here[0]) if here else None

        selector = f"{names.LABEL_VERSION}={version}"
        what = f"a node fetches {version}"
        return self._story.api.wait(self._story.pods, found, what, each=lambda _: None, labelSelector=selector)

    def a_node_is(self, state: str, reason: str, *, run: int) -> None:
        """The records of a run say of some node that it is in that state, for that reason."""

        def told(records: dict[str, Object]) -> bool:
            entries = [entry for one in records.values() for entry in (one.get("status") or {}).get("nodes") or []]
            return any((entry["state"], entry.get("reason")) == (state, reason) for entry in entries)

        selector = f"{names.LABEL_RUN}={run}"
        what = f"a node of run {run} is {state} because of {reason}"
        self._story.api.wait(self._story.batches, told, what, each=lambda _: None, labelSelector=selector)

    def nothing_is_prepared_any_more(self) -> None:
        """What prepared nodes is gone."""
        path = f"/apis/apps/v1/namespaces/{self._story.namespace}/daemonsets"
        self._story.api.wait(
            path,
            lambda found: (
                not any(one["metadata"]["labels"].get(names.LABEL_ROLE) == "prepare" for one in found.values())
            ),
            "no node is being prepared any more",
            each=lambda _: None,
        )

    def a_new_agent_runs(self, node: str, instead_of: str) -> Object:
        """A node has one agent, which is Ready, and whose UID is another than the old one's; returns its pod."""

        def found(pods: dict[str, Object]) -> Object | None:
            here = [pod for pod in pods.values() if pod["spec"].get("nodeName") == node]
            new = len(here) == 1 and here[0]["metadata"]["uid"] != instead_of
            return here[0] if new and condition(here[0], "Ready").get("status") == "True" else None

        what = f"a new agent runs on {node}"
        return self._story.api.wait(self._story.pods, found, what, each=lambda _: None)

    def a_node_has_failed(self, run: int) -> Object:
        """A node of a run has failed, whatever is done about it; returns what the record says."""

        def found(records: dict[str, Object]) -> Object | None:
            entries = [entry for one in records.values() for entry in (one.get("status") or {}).get("nodes") or []]
            return next((entry for entry in entries if entry["state"] in {"Failed", "RolledBack"}), None)

        selector = f"{names.LABEL_RUN}={run}"
        what = f"a node of run {run} has failed"
        return self._story.api.wait(self._story.batches, found, what, each=lambda _: None, labelSelector=selector)

    def the_init_container_has_ended(self, pod: str, code: int, container: str = FETCH) -> None:
        """An init container has ended with that exit code."""

        def has_ended(obj: Object) -> bool:
            return bool(ended(obj, container).get("exitCode") == code)

        what = f"{container} of {pod} has ended with {code}"
        self._story.api.wait(
            self._story.pods, lambda found: pod in found and has_ended(found[pod]), what, each=lambda _: None
        )

    def the_mounted_keys_are(self, node: str, *keys: str) -> None:
        """The keys that are mounted in the node's newest pod are these: the kubelet takes a moment to bring them."""
        story = self._story
        files = sorted(f"{story.signer(key).fingerprint.removeprefix('sha256:')}.pub" for key in keys)
        handed_out = names.trusted_keys_name(COMPONENT)
        story.api.wait(
            f"/api/v1/namespaces/{story.namespace}/configmaps",
            lambda found: sorted(found[handed_out]["data"]) == files,
            f"the operator hands out the keys {keys}",
            each=lambda _: None,
        )
        folder = story.volume(story.pod_of(node), names.VOLUME_KEYS, "configmap")
        deadline = time.monotonic() + 60
        while sorted(file.name for file in folder.glob("*.pub")) != files:
            assert time.monotonic() < deadline, f"{node} has mounted {sorted(file.name for file in folder.iterdir())}"
            # A kubelet changes files without telling anybody.
            time.sleep(0.05)


def init_status(pod: Object, container: str = FETCH) -> Object:
    """Return the status of an init container; {} if there is none yet."""
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or []
    found: Object = next((one for one in statuses if one["name"] == container), {})
    return found


def ended(pod: Object, container: str = FETCH) -> Object:
    """Return how an init container has ended last; {} if it never has."""
    status = init_status(pod, container)
    found: Object = (status.get("state") or {}).get("terminated") or (status.get("lastState") or {}).get(
        "terminated", {}
    )
    return found


def started(pod: Object, container: str = FETCH) -> bool:
    """Tell whether an init container runs or has run."""
    state = init_status(pod, container).get("state") or {}
    return "running" in state or "terminated" in state


def wait_for_log(
    story: RealStory, node: str, *words: str, container: str = FETCH, version: str = "", seconds: float = 60
) -> str:
    """Follow the log of an init container on a node until these words stand in it, one after the other; returns it.

    The pod may still have to come; only one of the version counts, if it is given.
    """

    def found(pods: dict[str, Object]) -> str | None:
        here = [pod for pod in pods.values() if pod["spec"].get("nodeName") == node and started(pod, container)]
        return str(here[-1]["metadata"]["name"]) if here else None

    selector = {"labelSelector": f"{names.LABEL_VERSION}={version}"} if version else {}
    what = f"{container} runs on {node}"
    pod = story.api.wait(story.pods, found, what, seconds=seconds, each=lambda _: None, **selector)
    with subprocess.Popen(
        [str(story.local.kubectl), "logs", "-f", "-n", story.namespace, pod, "-c", container],
        env={**os.environ, "KUBECONFIG": str(story.local.kubeconfig)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        # Whoever waits in vain is told so by the end of the log.
        timer = threading.Timer(seconds, process.terminate)
        timer.start()
        seen, missing = "", list(words)
        try:
            for line in process.stdout or ():
                seen += line
                while missing and missing[0] in line:
                    missing.pop(0)
                if not missing:
                    return seen
        finally:
            timer.cancel()
            process.terminate()
    raise AssertionError(f"{container} on {node} does not say {missing[0]!r}:\n{seen}")
