"""A slim informer: lists a kind once, watches it, and keeps a projection of each object.

Level-triggered: a lost event costs a delay, never correctness. After a gap the list is compared with what is stored,
so that deletions which nobody told are noticed. A change that the projection does not show wakes nobody: a heartbeat
of 5,000 nodes costs a comparison each.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from outrider.adapters.kube import Cluster, Gone, Json, Resource
from outrider.api.errors import OutriderError

logger = logging.getLogger(__name__)

T = TypeVar("T")

Key = tuple[str, str]
"""(namespace, name); the namespace of cluster-scoped objects is ""."""

_WATCH_SECONDS = 290
_BACKOFF_FIRST, _BACKOFF_MAX = 0.5, 30.0


def key_of(obj: Json) -> Key:
    """Return the key of an object."""
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


class Store(Generic[T]):
    """Objects of one kind as `project` sees them, each no older than it was ever seen here.

    `project` gets the object and its earlier projection (for what must be remembered over time, such as when
    something was first observed). `on_change(before, after)` is called when the projection of an object changed;
    None means absent. It must not block.
    """

    def __init__(self, project: Callable[[Json, T | None], T], on_change: Callable[[T | None, T | None], None]) -> None:
        self._project = project
        self._on_change = on_change
        self._listeners: list[Callable[[T | None, T | None], None]] = []
        self._items: dict[Key, tuple[int, T]] = {}

    def listen(self, listener: Callable[[T | None, T | None], None]) -> None:
        """Have `listener(before, after)` called for what is stored already, and before `on_change` for each change."""
        self._listeners.append(listener)
        for _, item in list(self._items.values()):
            listener(None, item)

    def __len__(self) -> int:
        return len(self._items)

    def get(self, namespace: str, name: str) -> T | None:
        """Return the projection of an object, or None."""
        found = self._items.get((namespace, name))
        return found[1] if found else None

    def values(self) -> Iterator[T]:
        """Iterate over all projections."""
        return (item for _, item in list(self._items.values()))

    def put(self, obj: Json) -> None:
        """Take over an object unless it is older than what is stored.

        Answers to our own writes come here too, so that they are seen before the watch tells them.
        """
        key, version = key_of(obj), int(obj["metadata"]["resourceVersion"])
        known = self._items.get(key)
        if known is not None and known[0] >= version:
            return
        before = known[1] if known else None
        after = self._project(obj, before)
        self._items[key] = (version, after)
        if before != after:
            self._tell(before, after)

    def update(self, obj: Json) -> None:
        """Take over the answer to our own patch, unless the object was deleted since: then it stays deleted."""
        if key_of(obj) in self._items:
            self.put(obj)

    def drop(self, key: Key, version: int | None = None) -> None:
        """Forget a deleted object, unless a newer one is stored under its name."""
        known = self._items.get(key)
        if known is None or (version is not None and known[0] > version):
            return
        del self._items[key]
        self._tell(known[1], None)

    def _tell(self, before: T | None, after: T | None) -> None:
        for listener in self._listeners:
            listener(before, after)
        self._on_change(before, after)

    def keep_only(self, keys: set[Key], version: int) -> None:
        """Forget what a complete list of that version does not hold: deletions that nobody told."""
        for key in [key for key, (stored, _) in self._items.items() if key not in keys and stored <= version]:
            self.drop(key)


class Informer(Store[T]):
    """A store of all objects of a kind (in one namespace, or in all) that match `selectors`, kept up to date."""

    def __init__(
        self,
        cluster: Cluster,
        resource: Resource,
        project: Callable[[Json, T | None], T],
        on_change: Callable[[T | None, T | None], None],
        *,
        namespace: str | None = None,
        **selectors: str,
    ) -> None:
        super().__init__(project, on_change)
        self._cluster = cluster
        self._resource = resource
        self._namespace = namespace
        self._selectors = selectors
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """List and watch until cancelled."""
        failures = 0
        while True:
            try:
                version = await self.resync()
                while True:
                    version = await self._watch(version)
                    failures = 0  # only now: lists may succeed while every watch is refused
            except Gone:
                logger.info("The watch of %s is too old, listing again", self._resource.plural)
                await asyncio.sleep(random.uniform(0, _BACKOFF_FIRST))  # noqa: S311
            except OutriderError as error:
                failures += 1
                delay = min(_BACKOFF_MAX, _BACKOFF_FIRST * 2**failures) * random.uniform(0.5, 1)  # noqa: S311
                logger.warning("Retrying in %.1f s: %s", delay, error.message)
                await asyncio.sleep(delay)

    async def resync(self) -> str:
        """List everything once, and forget what is not there any more; returns the list's resourceVersion."""
        seen: set[Key] = set()
        version = "0"
        async for items, listed in self._cluster.list_chunks(self._resource, self._namespace, **self._selectors):
            version = listed
            for obj in items:
                seen.add(key_of(obj))
                self.put(obj)
        self.keep_only(seen, int(version))
        self.synced.set()
        return version

    async def _watch(self, version: str) -> str:
        async for kind, obj in self._cluster.watch(
            self._resource, version, self._namespace, seconds=_WATCH_SECONDS, **self._selectors
        ):
            version = obj["metadata"]["resourceVersion"]
            if kind == "DELETED":
                self.drop(key_of(obj), int(version))
            elif kind != "BOOKMARK":
                self.put(obj)
        return version
