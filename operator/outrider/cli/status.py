"""`outrider status`: how Rollouts stand. The options, and nothing else."""

import click

from outrider.cli.access import Access, cluster_options, on_cluster


@click.command()
@click.argument("name", required=False)
@click.option("-w", "--watch", is_flag=True, help="Go on, and print it anew whenever it changes.")
@click.option("--nodes", "show_nodes", is_flag=True, help="Name every node of the newest run.")
@cluster_options
def status(
    name: str | None,
    *,
    watch: bool,
    show_nodes: bool,
    kubeconfig: str | None,
    context: str | None,
    namespace: str | None,
) -> None:
    """Tell how a Rollout stands; without NAME a line for each of the namespace.

    The run and its batches, what it waits for, which nodes failed and why, who asked for what, and earlier runs: as the
    operator has written it down.
    """
    from outrider.cli.showing import show

    access = Access(kubeconfig, context, namespace)
    on_cluster(
        access,
        lambda cluster, there: show(cluster, there, name, watch=watch, show_nodes=show_nodes, write=click.echo),
    )
