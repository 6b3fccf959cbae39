"""Speaks as much of kind's command line as pytest-kind uses, for machines without Docker.

Given to pytest as ``--kind-bin tests/localcluster/kind``. What kind takes from a config file
comes by environment here: OUTRIDER_FAKE_NODES, OUTRIDER_REAL_NODES, OUTRIDER_NO_REGISTRY.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from localcluster import cluster as clusters
from localcluster import state
from localcluster.cli import check_replaceable, export_kubeconfig
from localcluster.cluster import DEFAULT_FAKE_NODES, Cluster
from localcluster.errors import LauncherError
from localcluster.progress import answer, say

# kind's own name for a cluster that was given none.
_DEFAULT_NAME = "kind"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of kind; return the exit code."""
    options = _parser().parse_args(arguments)

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    # A shell starts background jobs with this one ignored.
    signal.signal(signal.SIGINT, interrupted)
    try:
        code: int = options.command(options)
        return code
    except LauncherError as error:
        sys.stderr.write(f"ERROR: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("ERROR: interrupted\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kind", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", "-n", default=os.environ.get("KIND_CLUSTER_NAME", _DEFAULT_NAME))
    exported = argparse.ArgumentParser(add_help=False)
    exported.add_argument("--kubeconfig", type=Path)

    def noun(verb: str, names: dict[str, argparse.ArgumentParser]) -> None:
        nouns = verbs.add_parser(verb).add_subparsers(required=True, metavar="NOUN")
        for name, template in names.items():
            parents = [template]
            made = nouns.add_parser(name, parents=parents, add_help=False)
            made.set_defaults(command=template.get_default("command"))

    def template(command: object, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made = argparse.ArgumentParser(add_help=False, parents=list(parents))
        made.set_defaults(command=command)
        return made

    create = template(_create, named, exported)
    create.add_argument("--image", help="taken and ignored: one version of Kubernetes is built")
    create.add_argument("--wait", help="taken and ignored: it always waits")
    create.add_argument("--config", help="taken and ignored: see the environment variables")
    create.add_argument("--retain", action="store_true", help="taken and ignored")
    load = template(_load, named)
    load.add_argument("images", nargs="+", help="paths of image archives")
    noun("create", {"cluster": create})
    noun("delete", {"cluster": template(_delete, named, exported)})
    noun(
        "get",
        {
            "clusters": template(_get_clusters),
            "kubeconfig": template(_get_kubeconfig, named),
            "nodes": template(_get_nodes, named),
        },
    )
    noun("export", {"kubeconfig": template(_export_kubeconfig, named, exported)})
    noun("load", {"docker-image": load, "image-archive": load})
    version = verbs.add_parser("version")
    version.set_defaults(command=_version)
    return parser


def _create(options: argparse.Namespace) -> int:
    if options.kubeconfig is not None:
        check_replaceable(options.kubeconfig)
    fake = os.environ.get("OUTRIDER_FAKE_NODES", str(DEFAULT_FAKE_NODES))
    if not fake.isdigit():
        raise LauncherError(f"OUTRIDER_FAKE_NODES={fake!r} is not a number")
    cluster = Cluster.up(
        options.name,
        int(fake),
        os.environ.get("OUTRIDER_REAL_NODES", "auto"),
        registry=not os.environ.get("OUTRIDER_NO_REGISTRY"),
    )
    if options.kubeconfig is not None:
        export_kubeconfig(cluster, options.kubeconfig)
    return 0


def _delete(options: argparse.Namespace) -> int:
    if clusters.remove(options.name):
        say(f"cluster {options.name!r} is gone")
    if options.kubeconfig is not None and options.kubeconfig.exists():
        # kind takes its cluster out of the file; the file here never held another.
        check_replaceable(options.kubeconfig)
        options.kubeconfig.write_text("")
    return 0


def _get_clusters(_options: argparse.Namespace) -> int:
    for name in state.all_names():
        known = state.load(name)
        # A broken one is not named, so that it is created anew, which cleans up first.
        if known is not None and known.healthy():
            answer(name)
    return 0


def _get_kubeconfig(options: argparse.Namespace) -> int:
    sys.stdout.write(Cluster.attach(options.name).kubeconfig.read_text())
    return 0


def _get_nodes(options: argparse.Namespace) -> int:
    cluster = Cluster.attach(options.name)
    for name in cluster.real_nodes + cluster.fake_nodes:
        answer(name)
    return 0


def _export_kubeconfig(options: argparse.Namespace) -> int:
    if options.kubeconfig is None:
        raise LauncherError("name a file with --kubeconfig: no other is ever written to")
    export_kubeconfig(Cluster.attach(options.name), options.kubeconfig)
    return 0


def _load(options: argparse.Namespace) -> int:
    cluster = Cluster.attach(options.name)
    for image in options.images:
        archive = Path(image)
        if not archive.is_file():
            raise LauncherError(
                f"{image!r} is no image archive; there is no Docker here to take an image from, "
                "so name the path of an OCI or docker archive"
            )
        if not cluster.real_nodes:
            say(f"cluster {options.name!r} has no real node; {image} is not needed anywhere")
        cluster.load_image(archive)
    return 0


def _version(_options: argparse.Namespace) -> int:
    answer("localcluster, in the place of kind")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
