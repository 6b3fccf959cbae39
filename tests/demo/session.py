"""Record a terminal session: a canary fails on a fleet of which three nodes in a hundred are bad.

    PYTHONPATH=operator:tests python -m demo.session [--nodes 1000] [--into docs/sessions]

The fleet is fake nodes on a real control plane, the operator a process with the rights of its ServiceAccount. The fleet
is set up off stage; from then on every command is typed into a shell, and its output recorded as it comes. What is
written: `failed-canary.cast` (asciicast 2: `asciinema play` shows it) and `failed-canary.md`, the same to read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pty
import random
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Any

from bench.operatorprocess import OperatorProcess
from bench.rollout import Bench
from localcluster import Cluster
from localcluster.faults import inject
from outrider.api import names

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE, NAME = "fleet", "node-agent"
OLD, NEW = "1.3.0", "1.4.0"
COLUMNS, ROWS = 118, 34
BAD_SHARE = 0.03
_TYPING_SECONDS = 0.03
_SEED = 7


class Recording:
    """What a terminal showed, and when."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment = environment | {"COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm-256color"}
        self._folder = folder
        self._events: list[tuple[float, str]] = []
        self._clock = 0.0
        self.transcript: list[str] = []

    def say(self, text: str) -> None:
        """Type a comment at the prompt."""
        self.transcript.append(f"# {text}")
        self._type(f"# {text}")
        self._clock += 0.6

    def run(self, command: str, *, seconds: float | None = None) -> str:
        """Type a command, run it in a terminal of its own, return what it printed; interrupt it after `seconds`."""
        self._type(command)
        output = self._execute(command, seconds)
        self.transcript += [f"$ {command}", *output.replace("\r", "").rstrip("\n").split("\n"), ""]
        self._clock += 1.2
        return output

    def _type(self, text: str) -> None:
        self._show("\x1b[1;32m$\x1b[0m ")
        for character in text:
            self._clock += _TYPING_SECONDS
            self._show(character)
        self._clock += 0.4
        self._show("\r\n")

    def _show(self, text: str) -> None:
        self._events.append((self._clock, text))

    def _execute(self, command: str, seconds: float | None) -> str:
        process, terminal = pty.fork()
        if process == 0:
            os.chdir(self._folder)
            os.execvpe("bash", ["bash", "-c", command], self._environment)  # noqa: S606
        ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        begun, printed = time.monotonic(), ""
        start = self._clock
        while True:
            if seconds is not None and time.monotonic() - begun > seconds:
                os.kill(process, signal.SIGINT)
                seconds = None
            if not select.select([terminal], [], [], 0.1)[0]:
                continue
            try:
                chunk = os.read(terminal, 65_536).decode(errors="replace")
            except OSError:  # the other side of a terminal is closed so
                break
            if not chunk:
                break
            printed += chunk
            self._clock = start + time.monotonic() - begun
            self._show(chunk)
        os.waitpid(process, 0)
        os.close(terminal)
        return printed

    def write(self, path: Path, title: str) -> None:
        """Write the session as a cast and as a page."""
        head = {"version": 2, "width": COLUMNS, "height": ROWS, "title": title}
        lines = [json.dumps(head)] + [json.dumps([round(at, 3), "o", text]) for at, text in self._events]
        path.with_suffix(".cast").write_text("\n".join(lines) + "\n")
        page = [
            f"# {title}",
            "",
            f"What a shell showed, command by command; `asciinema play {path.name}.cast` plays it.",
            "",
            "```console",
            *self.transcript,
            "```",
            "",
            "Made by:",
            "",
            "```sh",
            "PYTHONPATH=operator:tests .venv/bin/python -m demo.session",
            "```",
        ]
        path.with_suffix(".md").write_text("\n".join(page) + "\n")


class Stage:
    """What stands before the session begins: a fleet at the old version, a new one published, and bad nodes."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._client = cluster.client()
        self._bench = Bench(cluster, folder)

    def set(self) -> None:
        """Install Outrider, trust a key, publish two versions, make the nodes that the new one does not work on."""
        self._bench.prepare()
        self._apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        for version in (OLD, NEW):
            self._apply(*self._version(version))
        nodes = self._cluster.fake_nodes
        bad = random.Random(_SEED).sample(nodes, round(len(nodes) * BAD_SHARE))  # noqa: S311 - to be the same each time
        inject(self._client, "crash-loop", nodes=bad, namespace=NAMESPACE, pod_labels={"outrider.dev/version": NEW})

    def fill(self) -> None:
        """Bring the old version to the fleet."""
        self._apply(_rollout())
        self._wait("--for=jsonpath={.status.phase}=Published", *(f"cver/{NAME}-{version}" for version in (OLD, NEW)))
        self._wait("--for=jsonpath={.status.phase}=Completed", f"orl/{NAME}")

    def _version(self, version: str) -> list[dict[str, Any]]:
        content = f"#!/bin/sh\necho {NAME} {version}\n"
        file = f"{NAME}-{version}"
        artifact = {
            "platform": {"os": "linux", "arch": "amd64"},
            "fileName": NAME,
            "sha256": hashlib.sha256(content.encode()).hexdigest(),
            "source": {"configMap": {"name": file, "key": NAME}},
            "signature": {"inline": self._bench.signer.sign(content.encode())},
        }
        source = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": file, "namespace": NAMESPACE},
            "data": {NAME: content},
        }
        described = {
            "apiVersion": names.API_VERSION,
            "kind": "ComponentVersion",
            "metadata": {"name": file, "namespace": NAMESPACE},
            "spec": {"component": NAME, "version": version, "artifacts": [artifact]},
        }
        return [source, described]

    def _apply(self, *objects: dict[str, Any]) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self._cluster.kubectl_run("apply", "-f", "-", input=json.dumps(listed))

    def _wait(self, condition: str, *objects: str) -> None:
        self._cluster.kubectl_run("wait", "-n", NAMESPACE, condition, "--timeout=300s", *objects)


def _rollout() -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": "Rollout",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "component": NAME,
            "version": OLD,
            "target": {"all": True},
            "template": {
                "metadata": {"annotations": {"fake.outrider.test/timing": "realistic"}},
                "spec": {
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "agent", "image": "busybox:1.37", "command": [f"/opt/agent/{NAME}"]}],
                },
            },
            "delivery": {"volume": {"mountPath": "/opt/agent", "containers": ["agent"]}},
            "strategy": {
                "type": "Canary",
                "canary": {"steps": [{"nodes": 5, "soakSeconds": 5}, {"nodes": "10%", "soakSeconds": 10}]},
                "rolling": {"batchSize": "20%"},
                "failureTolerance": "1%",
            },
            "health": {"minReadySeconds": 2, "timeoutSeconds": 60},
        },
    }


def perform(shell: Recording) -> None:
    """Type the session's commands."""
    shell.say("A thousand nodes run version 1.3.0. 1.4.0 is published: its bytes and its signature were verified.")
    shell.run("kubectl get cver")
    shell.run("kubectl get orl")
    shell.say("What would happen?")
    shell.run(f"kubectl outrider plan {NAME} --version {NEW}")
    shell.say("Five nodes first, then a tenth of the fleet, then the rest.")
    shell.run(f'kubectl patch orl {NAME} --type merge --patch \'{{"spec": {{"version": "{NEW}"}}}}\'')
    shell.run(f"kubectl get orl {NAME} --watch", seconds=25)
    shell.run(f"kubectl wait --for=condition=RolledBack --timeout=5m orl/{NAME}")
    shell.say("It came back by itself. What happened?")
    shell.run(f"kubectl outrider status {NAME}")
    shell.run(f"kubectl get events --field-selector involvedObject.name={NAME} --sort-by .lastTimestamp")
    shell.run("kubectl get orb")
    shell.say("Which nodes failed, and of what?")
    shell.run(
        f"kubectl get orb -l outrider.dev/rollout={NAME},outrider.dev/run=2 -o json"
        " | jq -r '.items[].status.nodes[] | select(.state == \"Failed\") | [.name, .reason, .message] | @tsv'"
    )
    shell.say("And what runs now?")
    shell.run("kubectl get pods -L outrider.dev/version --no-headers | awk '{print $6, $3}' | sort | uniq -c")


def record(cluster: Cluster, folder: Path, into: Path) -> None:
    """Set the stage, perform, and write what was seen."""
    stage = Stage(cluster, folder)
    stage.set()
    operator = OperatorProcess(cluster, folder / "operator")
    try:
        stage.fill()
        shell = Recording(_environment(cluster, folder), folder)
        perform(shell)
    finally:
        operator.stop()
    into.mkdir(parents=True, exist_ok=True)
    shell.write(into / "failed-canary", f"A canary fails on {len(cluster.fake_nodes)} nodes")


def _environment(cluster: Cluster, folder: Path) -> dict[str, str]:
    """Return a shell's environment in which kubectl, and Outrider as its plugin, are on PATH."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "kubectl").symlink_to(cluster.kubectl)
    plugin = programs / "kubectl-outrider"
    plugin.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT / "operator"} exec {sys.executable} -m outrider "$@"\n')
    plugin.chmod(0o755)
    known = folder / "kubeconfig"
    known.write_bytes(cluster.kubeconfig.read_bytes())
    known.chmod(0o600)
    environment = os.environ | {"KUBECONFIG": str(known), "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(
        ["kubectl", "config", "set-context", "--current", f"--namespace={NAMESPACE}"],
        env=environment,
        check=True,
        capture_output=True,
    )
    return environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Record the session; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "sessions")
    options = parser.parse_args(arguments)
    cluster = Cluster.up("session", fake_nodes=options.nodes, real_nodes=0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            record(cluster, Path(folder), options.into)
    finally:
        cluster.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
