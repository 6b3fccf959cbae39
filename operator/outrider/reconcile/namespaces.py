"""What matters of the namespaces that fleets are in. They are not watched: looked up when needed, kept for a while."""

import asyncio
import logging
from dataclasses import dataclass

from outrider.adapters.kube import NAMESPACES, Cluster, Json
from outrider.api.errors import OutriderError, Transient
from outrider.api.names import LABEL_POD_SECURITY

logger = logging.getLogger(__name__)

NAMESPACE_SECONDS = 30.0
"""So old what is known of a namespace may be."""


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    """Whether a namespace is going away, and the Pod Security level that it enforces ("" if it says nothing)."""

    terminating: bool = False
    pod_security: str = ""


class Namespaces:
    """Looks namespaces up."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: dict[str, tuple[float, NamespaceFacts]] = {}

    async def look(self, namespace: str, *, seconds: float = NAMESPACE_SECONDS) -> NamespaceFacts:
        """Return what a namespace is like, no older than so many seconds.

        If that cannot be found out it is what was known last, and else it stays and says nothing.
        """
        at, known = self._known.get(namespace, (float("-inf"), NamespaceFacts()))
        if asyncio.get_running_loop().time() - at < seconds:
            return known
        try:
            return await self.look_closely(namespace)
        except Transient as error:
            logger.info("%s", error.message)
            return known

    async def look_closely(self, namespace: str) -> NamespaceFacts:
        """Return what a namespace is like now, for what cannot be changed later. Raises Transient(NamespaceUnknown)."""
        moment = asyncio.get_running_loop().time()
        try:
            found = await self._cluster.get(NAMESPACES, None, namespace)
        except OutriderError as error:
            raise Transient(
                "NamespaceUnknown", f"what namespace {namespace} enforces cannot be read at the moment: {error.message}"
            ) from None
        if found is None:
            self._known.pop(namespace, None)
            return NamespaceFacts(terminating=True)
        facts = read_facts(found)
        self._known[namespace] = moment, facts
        return facts


def read_facts(namespace: Json) -> NamespaceFacts:
    """Return what matters of a Namespace object."""
    metadata = namespace["metadata"]
    return NamespaceFacts(
        terminating=bool(metadata.get("deletionTimestamp")),
        pod_security=(metadata.get("labels") or {}).get(LABEL_POD_SECURITY, ""),
    )
