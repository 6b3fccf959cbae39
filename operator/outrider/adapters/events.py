"""Kubernetes events: what a person is told once, from a queue that never holds up the work."""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from datetime import datetime

from outrider.adapters import clock
from outrider.adapters.kube import EVENTS, Cluster, Json, Resource
from outrider.api.errors import OutriderError
from outrider.core.plan import Event

logger = logging.getLogger(__name__)

_QUEUE = 500
_REMEMBERED = 1000
_REPEAT_SECONDS = 300
_MESSAGE = 1024


class EventRecorder:
    """Posts events in the background; the same one about the same object at most once in five minutes."""

    def __init__(self, cluster: Cluster, instance: str) -> None:
        self._cluster = cluster
        self._instance = instance
        self._queue: asyncio.Queue[Json] = asyncio.Queue(_QUEUE)
        self._told: OrderedDict[str, datetime] = OrderedDict()

    def record(self, resource: Resource, namespace: str, name: str, uid: str, event: Event) -> None:
        """Queue an event about an object. When the queue is full it is only logged: events are no record."""
        now = clock.now()
        what = f"{uid}/{event.reason}/{event.message}"
        told = self._told.get(what)
        if told is not None and (now - told).total_seconds() < _REPEAT_SECONDS:
            return
        self._told[what] = now
        self._told.move_to_end(what)
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        level = logging.WARNING if event.type == "Warning" else logging.INFO
        logger.log(level, "%s %s/%s: %s: %s", resource.kind, namespace, name, event.reason, event.message)
        stamp = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body: Json = {
            "metadata": {
                "namespace": namespace,
                "name": f"{name[:200]}.{hashlib.sha256(f'{what}/{stamp}'.encode()).hexdigest()[:16]}",
            },
            "involvedObject": {
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "namespace": namespace,
                "name": name,
                "uid": uid,
            },
            "type": event.type,
            "reason": event.reason,
            "action": event.reason,
            "message": event.message[:_MESSAGE],
            "eventTime": stamp,
            "firstTimestamp": stamp[:19] + "Z",
            "lastTimestamp": stamp[:19] + "Z",
            "count": 1,
            "reportingComponent": "outrider",
            "reportingInstance": self._instance[:128],
            "source": {"component": "outrider"},
        }
        try:
            self._queue.put_nowait(body)
        except asyncio.QueueFull:
            logger.warning("Too many events are waiting, this one is only logged")

    async def run(self) -> None:
        """Post queued events until cancelled."""
        while True:
            body = await self._queue.get()
            try:
                await self._cluster.create(EVENTS, body, body["metadata"]["namespace"])
            except OutriderError as error:
                logger.warning("An event could not be posted: %s", error.message)
