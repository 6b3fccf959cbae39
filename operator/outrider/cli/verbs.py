"""`outrider approve`, `abort`, `retry`, `rollback`, `pause`, `resume`: the options, and nothing else."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from outrider.cli.access import CANNOT_TELL, REFUSED, Access, cluster_options, on_cluster

if TYPE_CHECKING:
    from outrider.cli.asking import Verb

Command = TypeVar("Command", bound=Callable[..., Any])

_EPILOGUE = "Exit codes: 0 done, 1 refused, 2 wrong usage, 3 not answered in time, or the cluster cannot be asked."


def _verb_options(command: Command) -> Command:
    options = (
        click.argument("name"),
        click.option("--wait/--no-wait", default=True, help="Wait for the operator's answer. Default: wait."),
        click.option(
            "--timeout", type=click.FloatRange(min=0.5), default=60.0, show_default=True, help="How long, in seconds."
        ),
    )
    for option in options:
        command = option(command)
    return cluster_options(command)


@click.command(epilog=_EPILOGUE)
@_verb_options
def approve(name: str, **options: Any) -> None:
    """Say yes to the canary step that waits for it.

    It is noted who said so; you need the permission `update` on `rollouts/approve`.
    """
    _ask("approve", name, {}, options)


@click.command(epilog=_EPILOGUE)
@_verb_options
def abort(name: str, **options: Any) -> None:
    """Stop the run: half-made moves are finished, then happens what spec.onFailure says."""
    _ask("abort", name, {}, options)


@click.command(epilog=_EPILOGUE)
@_verb_options
def retry(name: str, **options: Any) -> None:
    """Try again: the nodes that failed or were left out; after a rollback a whole new run, canary included."""
    _ask("retry", name, {}, options)


@click.command(epilog=_EPILOGUE)
@click.option("--run", "run", type=click.IntRange(min=1), help="The run to take back. Default: the newest.")
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, help="Only this batch. Repeatable.")
@click.option("--to", "version", help="To this version. Default: to what each node came from.")
@_verb_options
def rollback(name: str, *, run: int | None, batches: tuple[int, ...], version: str | None, **options: Any) -> None:
    """Take nodes back: a run of its own. Afterwards the Rollout holds until version, template or `retry` changes it."""
    details = {"run": run, "batches": list(batches), "version": version}
    _ask("rollback", name, {key: value for key, value in details.items() if value}, options)


@click.command(epilog=_EPILOGUE)
@_verb_options
def pause(name: str, **options: Any) -> None:
    """Set spec.paused: no new node is moved, half-made moves are finished, time stands still.

    If the Rollout is kept in Git, pause it there: what applies it would undo this.
    """
    _set_paused(name, options, paused=True)


@click.command(epilog=_EPILOGUE)
@_verb_options
def resume(name: str, **options: Any) -> None:
    """Take spec.paused back."""
    _set_paused(name, options, paused=False)


def _ask(verb: "Verb", name: str, details: dict[str, Any], options: dict[str, Any]) -> None:
    from outrider.cli.asking import request

    seconds = options["timeout"] if options["wait"] else 0.0
    answer = on_cluster(
        _access(options), lambda cluster, there: request(cluster, there, name, verb, details, wait_seconds=seconds)
    )
    _tell(verb, name, answer)


def _set_paused(name: str, options: dict[str, Any], *, paused: bool) -> None:
    from outrider.cli import asking

    seconds = options["timeout"] if options["wait"] else 0.0
    answer = on_cluster(
        _access(options),
        lambda cluster, there: asking.pause(cluster, there, name, paused=paused, wait_seconds=seconds),
    )
    _tell("pause" if paused else "resume", name, answer)


def _access(options: dict[str, Any]) -> Access:
    return Access(options["kubeconfig"], options["context"], options["namespace"])


def _tell(verb: str, name: str, answer: Any) -> None:
    words = {"Handled": "done", "Refused": "REFUSED", "NotAnswered": "NOT ANSWERED", "NotAwaited": "asked"}
    codes = {"Refused": REFUSED, "NotAnswered": CANNOT_TELL}
    took = f" after {answer.seconds:.1f} s" if answer.seconds >= 0.05 and answer.result != "NotAnswered" else ""
    click.echo(f"{verb} {name}: {words[answer.result]}{took}. {answer.message}", err=answer.result in codes)
    sys.exit(codes.get(answer.result, 0))
