"""`python -m demo`: the story, its summary, and an orderly end whatever happens. `python -m demo down` ends a kept one.

Environment: KEEP=1 leaves everything running, NODES says how many fake nodes (default 15), REAL_NODES=0 does without
real nodes, NAME names the cluster (default demo), NO_COLOR does without colours.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from demo.fleet import AGENT, NAMESPACE
from demo.outcome import NotAsTold
from demo.story import OPERATOR_NAMESPACE, Story
from demo.terminal import Relay, Terminal, open_terminal
from demo.workshop import Workshop
from localcluster import LauncherError
from localcluster.apiclient import ApiError
from localcluster.cluster import remove
from localcluster.locations import clusters_directory, exclusive
from localcluster.progress import duration

_LEAST_NODES = 9


def main() -> int:
    """Tell the story; return the exit code."""
    terminal = open_terminal()
    name = os.environ.get("NAME") or "demo"
    if sys.argv[1:] == ["down"]:
        return _take_down(terminal, name, _files_of(name))
    keep = os.environ.get("KEEP", "") not in {"", "0"}
    try:
        nodes = int(os.environ.get("NODES") or 15)
    except ValueError:
        nodes = 0
    if nodes < _LEAST_NODES:
        terminal.bad(f"NODES must be a number of at least {_LEAST_NODES}: fewer make no canary and batches")
        return 2
    if shutil.which("openssl") is None:
        terminal.bad("the demo signs with openssl, which is not on PATH")
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    with exclusive(clusters_directory() / f".{name}.demo.lock", "another demo runs"):
        return _run(terminal, name, nodes, keep=keep)


def _run(terminal: Terminal, name: str, nodes: int, *, keep: bool) -> int:
    started = time.monotonic()
    directory = _files_of(name)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, mode=0o700)
    workshop = Workshop(directory, terminal)
    story = Story(name, nodes, os.environ.get("REAL_NODES") or "auto", terminal, workshop)
    terminal.line(terminal.paint("Outrider: versions of node agents, and fleets moved between them", "bold"))
    terminal.line("Everything below is real output, and checked as it is told.")
    code = 1
    try:
        with _quietly(terminal):
            remove(name)
        story.tell()
        code = 0
    except (NotAsTold, LauncherError, ApiError, OSError) as error:
        terminal.rest()
        terminal.line()
        terminal.bad(f"Not as told: {error}")
        _keep_evidence(terminal, story, directory.parent / f"{name}-evidence")
    except KeyboardInterrupt:
        terminal.rest()
        terminal.line()
        terminal.bad("interrupted")
        code = 130
    finally:
        _summarise(terminal, story, time.monotonic() - started, told=code == 0)
        workshop.stop_building()
        if keep and code != 130:
            _explain(terminal, story, name)
        else:
            terminal.say("Taking everything down (KEEP=1 make demo leaves it running).")
            _take_down(terminal, name, directory)
    return code


def _files_of(name: str) -> Path:
    return clusters_directory().parent / f"{name}-files"


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # Once is enough: the end is not interrupted again.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def _quietly(terminal: Terminal) -> Iterator[None]:
    with contextlib.redirect_stderr(Relay(terminal)):
        yield


def _summarise(terminal: Terminal, story: Story, seconds: float, *, told: bool) -> None:
    rows = [("✔", claim, seen) for claim, seen in story.outcome.proven]
    rows += [("-", claim, f"not shown: {why}") for claim, why in story.outcome.not_shown]
    if not rows:
        return
    terminal.line()
    title = "All came out as told" if told else "What came out as told before that"
    terminal.line(terminal.paint(f"── {title}, in {duration(seconds)} ", "bold", "cyan"))
    terminal.line()
    terminal.table(rows)


def _explain(terminal: Terminal, story: Story, name: str) -> None:
    try:
        cluster = story.cluster
    except NotAsTold:
        return
    terminal.say("All of it still runs (KEEP=1). To look around, in this or another terminal:")
    terminal.line()
    kubectl = cluster.kubectl
    lines = [f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}"]
    if shutil.which("kubectl") is None:
        lines.append(f"export PATH={shlex.quote(str(kubectl.parent))}:$PATH")
    lines += [
        f"kubectl -n {NAMESPACE} get outrider",
        f"kubectl -n {NAMESPACE} describe orl {AGENT}",
        f"kubectl -n {NAMESPACE} get events --sort-by=.lastTimestamp",
        f"kubectl -n {NAMESPACE} get pods -o wide -L outrider.dev/version",
        f"kubectl -n {OPERATOR_NAMESPACE} logs deployment/outrider",
        f"cd {shlex.quote(str(story.workshop.directory))}    # key, files and manifests: publish a version of your own",
    ]
    for line in lines:
        terminal.line(f"  {line}")
    terminal.say("To take it down:")
    terminal.line()
    suffix = "" if name == "demo" else f" NAME={name}"
    terminal.line(f"  make demo-down{suffix}")


def _take_down(terminal: Terminal, name: str, directory: Path) -> int:
    """End the cluster and all that was started for it, and delete the files; return the exit code."""
    with _quietly(terminal):
        try:
            found = remove(name)
        except LauncherError as error:
            terminal.bad(str(error))
            return 1
    shutil.rmtree(directory, ignore_errors=True)
    terminal.step(f"cluster {name!r} is gone" if found else f"there is no cluster {name!r}")
    return 0


def _keep_evidence(terminal: Terminal, story: Story, directory: Path) -> None:
    """Save what somebody needs who wants to know why, before the cluster is gone."""
    try:
        cluster = story.cluster
    except NotAsTold:
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    shutil.copytree(cluster.directory / "logs", directory / "logs")
    questions = {
        "outrider.yaml": ["get", "outrider", "-A", "-o", "yaml"],
        "nodes-pods-events.txt": ["get", "nodes,pods,daemonsets,events", "-A", "-o", "wide"],
        "operator.log": [
            "-n",
            OPERATOR_NAMESPACE,
            "logs",
            "-l",
            "app.kubernetes.io/name=outrider",
            "--tail=-1",
            "--prefix",
        ],
    }
    for file, arguments in questions.items():
        with contextlib.suppress(subprocess.TimeoutExpired):
            answer = subprocess.run(
                [str(cluster.kubectl), *arguments],
                env=os.environ | {"KUBECONFIG": str(cluster.kubeconfig)},
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
            )
            (directory / file).write_text(answer.stdout + answer.stderr)
    terminal.step(f"logs and objects are kept in {directory}")


if __name__ == "__main__":
    sys.exit(main())
