"""`outrider plan`: what a Rollout would do. The options, and nothing else."""

import sys
from pathlib import Path

import click

from outrider.cli.access import Access, cluster_options, on_cluster


@click.command()
@click.argument("name", required=False)
@click.option(
    "-f",
    "--filename",
    type=click.Path(exists=True, dir_okay=False, path_type=Path, allow_dash=True),
    help="A file with the Rollout as it would be applied; - is standard input.",
)
@click.option("--version", "version", help="What if spec.version were this one?")
@click.option(
    "--node-seconds",
    type=click.FloatRange(min=0.1, max=86400),
    default=10.0,
    show_default=True,
    help="How long a node is taken to need from its first touch until its new agent is Ready.",
)
@click.option("--nodes", "show_nodes", is_flag=True, help="Name all nodes, batch by batch.")
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
@cluster_options
def plan(
    name: str | None,
    *,
    filename: Path | None,
    version: str | None,
    node_seconds: float,
    show_nodes: bool,
    output: str,
    kubeconfig: str | None,
    context: str | None,
    namespace: str | None,
) -> None:
    """Tell what a Rollout would do, without doing it.

    Either NAME, a Rollout of the cluster, with --version as it would be with another version; or a file. The order of
    the nodes, the batches, who is left out and why, what is waited for, and how long it takes if all goes well. It is
    the operator's own planner that says so. Nothing in the cluster is changed; your rights are enough to see it with.

    Exit codes: 0 it would run to its end (or there is nothing to do), 1 it would not, 2 wrong usage, 3 cannot tell.
    """
    from outrider.cli.planning import Question, ask
    from outrider.cli.previewing import render

    if (name is None) == (filename is None):
        raise click.UsageError("give either the NAME of a Rollout or a file with -f")
    if filename is not None and version is not None:
        raise click.UsageError("--version is for stored Rollouts; set spec.version in the file")
    question = Question(name or "", filename, version, node_seconds)
    preview = on_cluster(Access(kubeconfig, context, namespace), lambda cluster, there: ask(cluster, there, question))
    click.echo(render(preview, output, show_nodes=show_nodes))
    sys.exit(1 if preview.outcome == "Blocked" else 0)
