"""How commands reach a cluster: with the user's kubeconfig, and nothing but the user's rights."""

import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from outrider.adapters.kube import Cluster, Json, Resource

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

REFUSED = 1
"""Exit code: the cluster was asked, and the answer is no."""
CANNOT_TELL = 3
"""Exit code: nobody can say, because something does not answer or may not be seen."""


@dataclass(frozen=True)
class Access:
    """Where a command looks: what its options say."""

    kubeconfig: str | None
    context: str | None
    namespace: str | None


def cluster_options(command: Command) -> Command:
    """Add the options that kubectl has as well."""
    for option in (
        click.option("-n", "--namespace", help="The namespace. Default: the kubeconfig's."),
        click.option("--context", help="The kubeconfig's context."),
        click.option("--kubeconfig", type=click.Path(), help="The kubeconfig. Default: KUBECONFIG, ~/.kube/config."),
    ):
        command = option(command)
    return command


def on_cluster(access: Access, work: "Callable[[Cluster, str], Awaitable[T]]") -> T:
    """Do something with the cluster, in the chosen namespace; whatever goes wrong ends the command with a sentence."""
    import asyncio

    from outrider.adapters.kube import Cluster, open_access
    from outrider.api.errors import OutriderError

    async def connected() -> T:
        kubeconfig = access.kubeconfig or os.environ.get("KUBECONFIG") or None
        opened = open_access(in_cluster=False, kubeconfig=kubeconfig, context=access.context)
        try:
            return await work(Cluster(opened), access.namespace or opened.namespace or "default")
        finally:
            await opened.close()

    try:
        return asyncio.run(connected())
    except OutriderError as error:
        give_up(error)
    except KeyboardInterrupt:
        sys.exit(130)


def give_up(error: Any) -> NoReturn:
    """End the command with what an error says."""
    click.echo(f"outrider: {error.reason}: {error.message}", err=True)
    sys.exit(REFUSED if error.reason == "Invalid" else CANNOT_TELL)


async def list_all(cluster: "Cluster", resource: "Resource", namespace: str | None, **selectors: str) -> "list[Json]":
    """Return all objects of a kind. Raises Transient(RightMissing) that names the right that the user lacks."""
    from outrider.api.errors import OutriderError, Stalling

    found: list[Json] = []
    try:
        async for items, _ in cluster.list_chunks(resource, namespace, **selectors):
            found += items
    except OutriderError as error:
        if error.reason == "Forbidden":
            raise missing_right("list", resource, namespace) from error
        if error.reason == "NotFound":
            raise Stalling(
                "NotInstalled",
                f"the cluster does not know {resource.plural}.{resource.group}: Outrider is not installed",
            ) from error
        raise
    return found


def missing_right(verb: str, resource: "Resource", namespace: str | None) -> Any:
    """Return the error that says which right is missing."""
    from outrider.api.errors import Transient

    where = f"in namespace {namespace}" if namespace else "in the whole cluster"
    name = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
    return Transient(
        "RightMissing",
        f"you may not {verb} {name} {where}: ask for that right, or check with: kubectl auth can-i {verb} {name}"
        + (f" --namespace {namespace}" if namespace else ""),
    )
