"""The command line: ``python -m localcluster up`` and the rest."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from localcluster import cluster as clusters
from localcluster import state, toolchain
from localcluster.cluster import DEFAULT_FAKE_NODES, DEFAULT_NAME, Cluster
from localcluster.errors import LauncherError
from localcluster.progress import answer, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Ended by a supervisor is cleaned up like ended by Ctrl-C.
    signal.signal(signal.SIGTERM, interrupted)
    # A shell starts background jobs with this one ignored.
    signal.signal(signal.SIGINT, interrupted)
    try:
        code: int = options.command(options)
        return code
    except LauncherError as error:
        sys.stderr.write(f"localcluster: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("localcluster: interrupted\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="localcluster",
        description="A real Kubernetes control plane with fake and real nodes on this machine, without Docker.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default=DEFAULT_NAME, help="which cluster (default: %(default)s)")

    up = commands.add_parser("up", parents=[named], help="start a cluster, or find it running")
    up.add_argument("--fake-nodes", type=int, default=DEFAULT_FAKE_NODES, metavar="N")
    up.add_argument("--real-nodes", default="auto", metavar="auto|0…9")
    up.add_argument("--kubeconfig", type=Path, help="also write the kubeconfig here")
    up.add_argument("--no-registry", action="store_true")
    up.set_defaults(command=_up)

    down = commands.add_parser("down", parents=[named], help="end a cluster and delete its data")
    down.add_argument("--all", action="store_true", help="every cluster there is")
    down.set_defaults(command=_down)

    status = commands.add_parser("status", parents=[named], help="processes, ports and logs")
    status.set_defaults(command=_status)

    env = commands.add_parser("env", parents=[named], help="shell exports for this cluster")
    env.set_defaults(command=_env)

    scale = commands.add_parser("scale", parents=[named], help="change the number of fake nodes")
    scale.add_argument("--fake-nodes", type=int, required=True, metavar="N")
    scale.set_defaults(command=_scale)

    inject = commands.add_parser("inject", parents=[named], help="make fake nodes or pods fail")
    inject.add_argument("behaviour", help="for example never-ready, late:20, not-ready")
    inject.add_argument("--nodes", help="names, separated by commas")
    inject.add_argument("--pod-labels", help="key=value, separated by commas")
    inject.add_argument("--namespace")
    inject.add_argument("--existing", action="store_true", help="also pods that run already")
    inject.set_defaults(command=_inject)

    heal = commands.add_parser("heal", parents=[named], help="remove all injected failures")
    heal.set_defaults(command=_heal)

    load = commands.add_parser("load-image", parents=[named], help="import into all real nodes")
    load.add_argument("archives", nargs="+", type=Path, metavar="TAR")
    load.set_defaults(command=_load_image)

    build = commands.add_parser("build", help="build all that `up` and the tests need, without starting anything")
    build.add_argument("--real-nodes", default="auto", metavar="auto|0…9")
    build.set_defaults(command=_build)

    tool = commands.add_parser("tool", help="print a binary's path, built if needed")
    tool.add_argument("tool", choices=toolchain.tool_names())
    tool.set_defaults(command=_tool)

    kubectl = commands.add_parser("kubectl", parents=[named], help="run kubectl on the cluster")
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER)
    kubectl.set_defaults(command=_kubectl)
    return parser


def _up(options: argparse.Namespace) -> int:
    if options.kubeconfig is not None:
        check_replaceable(options.kubeconfig)
    cluster = Cluster.up(options.name, options.fake_nodes, options.real_nodes, registry=not options.no_registry)
    path = cluster.kubeconfig
    if options.kubeconfig is not None:
        export_kubeconfig(cluster, options.kubeconfig)
        path = options.kubeconfig.absolute()
    answer(f"export KUBECONFIG={shlex.quote(str(path))}")
    return 0


def check_replaceable(path: Path) -> None:
    """Raise when writing a kubeconfig to ``path`` would destroy somebody's own."""
    if not path.exists() or path.stat().st_size == 0:
        return
    text = path.read_text(errors="replace")
    if '"current-context": "outrider-' not in text:
        raise LauncherError(f"{path} holds another kubeconfig and is not overwritten; name a file that does not exist")


def export_kubeconfig(cluster: Cluster, path: Path) -> None:
    """Write the administrator's kubeconfig to ``path``."""
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(cluster.kubeconfig.read_text())


def _down(options: argparse.Namespace) -> int:
    for name in state.all_names() if options.all else [options.name]:
        if clusters.remove(name):
            say(f"cluster {name!r} is gone")
        else:
            say(f"there is no cluster {name!r}")
    return 0


def _status(options: argparse.Namespace) -> int:
    known = state.load(options.name)
    if known is None:
        raise LauncherError(f"there is no cluster {options.name!r}")
    rows = [("PROCESS", "PID", "PORT", "STATE", "LOG")]
    rows += [
        (one.name, str(one.pid), str(one.port or "-"), "running" if one.alive() else "ended", one.log)
        for one in known.processes.values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        answer("  ".join([*cells, row[4]]))
    return 0 if known.healthy() else 1


def _env(options: argparse.Namespace) -> int:
    cluster = Cluster.attach(options.name)
    values = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "OUTRIDER_CLUSTER": cluster.name,
        "OUTRIDER_SERVER": cluster.server_url,
        "OUTRIDER_REAL_NODES": " ".join(cluster.real_nodes),
        "OUTRIDER_KUBECTL": str(cluster.kubectl),
    }
    if cluster.has_registry:
        values["REGISTRY"] = cluster.registry
    for key, value in values.items():
        answer(f"export {key}={shlex.quote(value)}")
    return 0


def _scale(options: argparse.Namespace) -> int:
    if options.fake_nodes < 0:
        raise LauncherError("the number of fake nodes cannot be negative")
    Cluster.attach(options.name).scale_fake_nodes(options.fake_nodes)
    return 0


def _inject(options: argparse.Namespace) -> int:
    labels = {}
    for pair in (options.pod_labels or "").split(","):
        key, equals, value = pair.partition("=")
        if equals:
            labels[key] = value
        elif pair:
            raise LauncherError(f"--pod-labels: {pair!r} is not key=value")
    fault = Cluster.attach(options.name).inject(
        options.behaviour,
        nodes=options.nodes.split(",") if options.nodes else None,
        pod_labels=labels,
        namespace=options.namespace,
        existing=options.existing,
    )
    say(f"{fault.behaviour} from now on; undo with: heal")
    return 0


def _heal(options: argparse.Namespace) -> int:
    count = Cluster.attach(options.name).heal()
    say(f"{count} failures removed")
    return 0


def _load_image(options: argparse.Namespace) -> int:
    cluster = Cluster.attach(options.name)
    if not cluster.real_nodes:
        raise LauncherError(f"cluster {options.name!r} has no real node to load images into")
    for archive in options.archives:
        cluster.load_image(archive)
    return 0


def _build(options: argparse.Namespace) -> int:
    clusters.build(options.real_nodes)
    return 0


def _tool(options: argparse.Namespace) -> int:
    answer(str(toolchain.tool(options.tool)))
    return 0


def _kubectl(options: argparse.Namespace) -> int:
    cluster = Cluster.attach(options.name)
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    os.execv(cluster.kubectl, [str(cluster.kubectl), *options.arguments])  # noqa: S606 - no shell is the point
