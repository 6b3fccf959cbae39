"""The entry point: `outrider run` in the pod, `python -m outrider run` on a desk; the commands for people."""

import os
import sys

import click

from outrider import __version__
from outrider.api.errors import OutriderError
from outrider.cli.plan import plan
from outrider.cli.sign import sign
from outrider.cli.status import status
from outrider.cli.verbs import abort, approve, pause, resume, retry, rollback
from outrider.cli.verify import verify


@click.group()
@click.version_option(__version__, prog_name="outrider")
def main() -> None:
    """Outrider owns the versions of node agents and moves fleets of nodes between them."""


for command in (plan, status, approve, abort, retry, rollback, pause, resume):
    main.add_command(command)
main.add_command(verify)
main.add_command(sign)


@main.command()
@click.option("--kubeconfig", type=click.Path(), help="Use this kubeconfig instead of the pod's ServiceAccount.")
@click.option("--context", help="The kubeconfig's context.")
def run(kubeconfig: str | None, context: str | None) -> None:
    """Run the operator. Settings come from OUTRIDER_… environment variables."""
    # Not before here: the other commands need nothing of what it imports, which takes most of a second.
    from outrider.process import operate
    from outrider.settings import read_settings

    try:
        operate(read_settings(os.environ), kubeconfig or os.environ.get("KUBECONFIG"), context)
    except OutriderError as error:
        click.echo(f"outrider: {error.reason}: {error.message}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
