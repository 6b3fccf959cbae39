"""Which of the replicas acts: a Lease, taken and renewed by compare-and-swap.

kopf's peering has no lock and the kubernetes client's election keeps leading through a hanging API, hence this one.
The safety argument: others take a Lease only after it was not renewed for `lease_seconds` on *their* clock; the holder
gives up, by ending the process, when it could not renew for two thirds of that on *its own*. Neither compares clocks
with the other.
"""

import asyncio
import logging
import math
import time
from datetime import UTC, datetime

from outrider.adapters.kube import LEASES, Cluster, Conflict, Json
from outrider.api.errors import OutriderError

logger = logging.getLogger(__name__)


class _LostError(Exception):
    """Somebody else holds the Lease."""


class LeaseElector:
    """One candidate for the Lease `name` in `namespace`, under the unique name `identity`."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, identity: str, lease_seconds: float) -> None:
        self._cluster = cluster
        self._namespace, self._name, self._identity = namespace, name, identity
        self._lease_seconds = lease_seconds
        self._retry_seconds = lease_seconds / 5
        # While it is held, one attempt may take longer, and the next follows soon: a slow API server is no lost Lease.
        self._patience = lease_seconds / 3
        self._soon = lease_seconds / 40
        self._held: Json | None = None
        self._renew_deadline = lease_seconds * 2 / 3
        self._seen: tuple[str, float] = ("", 0.0)  # (record, monotonic time when it was seen first)
        self._renewed = 0.0
        self.is_leader = False

    async def acquire(self) -> None:
        """Wait until this candidate holds the Lease."""
        while not await self._attempt():  # noqa: ASYNC110 - another process decides: nothing can signal it
            await asyncio.sleep(self._retry_seconds)
        self.is_leader = True
        logger.info("Leading as %s", self._identity)

    async def hold(self) -> None:
        """Renew the Lease; returns when it is lost. Whoever called must then end the process at once."""
        try:
            while True:
                # The deadline holds whatever an attempt is waiting for.
                left = self._renewed + self._renew_deadline - time.monotonic()
                async with asyncio.timeout(left):
                    await asyncio.sleep(self._retry_seconds)
                    while not await self._attempt():  # noqa: ASYNC110 - nothing can signal it
                        await asyncio.sleep(self._soon)
        except TimeoutError:
            logger.error("The Lease %s/%s could not be renewed in time", self._namespace, self._name)
        except _LostError as error:
            logger.error("The Lease %s/%s is held by %s now", self._namespace, self._name, error)
        self.is_leader = False

    async def release(self) -> None:
        """Give the Lease back at an orderly end, so that another replica takes over at once."""
        if not self.is_leader:
            return
        self.is_leader = False
        try:
            async with asyncio.timeout(self._retry_seconds):
                lease = await self._cluster.get(LEASES, self._namespace, self._name)
                if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                    lease["spec"]["holderIdentity"] = ""
                    await self._cluster.replace(LEASES, self._namespace, self._name, lease)
        except (TimeoutError, OutriderError) as error:
            logger.warning("The Lease was not given back: %s", error)

    async def _attempt(self) -> bool:
        """Try once to take or renew the Lease; a request that hangs counts as failed."""
        try:
            async with asyncio.timeout(self._patience if self.is_leader else self._retry_seconds):
                return await self._renew_as_held() or await self._take_or_renew()
        except (TimeoutError, Conflict):
            return False
        except OutriderError as error:
            logger.warning("The Lease could not be renewed: %s", error.message)
            return False

    async def _renew_as_held(self) -> bool:
        """Renew by one request, with the Lease as it was written last; False if it is not as it was."""
        if not self.is_leader or self._held is None:
            return False
        asked, held, self._held = time.monotonic(), self._held, None
        held["spec"] = self._spec(int(held["spec"].get("leaseTransitions") or 0), held["spec"])
        try:
            self._held = await self._cluster.replace(LEASES, self._namespace, self._name, held)
        except OutriderError as error:
            if isinstance(error, Conflict) or error.reason == "NotFound":
                return False
            raise
        self._renewed = asked
        return True

    async def _take_or_renew(self) -> bool:
        asked = time.monotonic()
        lease = await self._cluster.get(LEASES, self._namespace, self._name)
        if lease is None:
            body = {"metadata": {"name": self._name}, "spec": self._spec(0)}
            await self._cluster.create(LEASES, body, self._namespace)
            self._renewed = asked
            return True
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder != self._identity:
            if self.is_leader:
                raise _LostError(holder or "nobody")
            record = f"{holder}/{spec.get('renewTime')}/{lease['metadata']['resourceVersion']}"
            if record != self._seen[0]:
                # Timed after the answer: it may have been renewed while we waited for that.
                self._seen = (record, time.monotonic())
            duration = float(spec.get("leaseDurationSeconds") or self._lease_seconds)
            if holder and asked - self._seen[1] < duration:
                return False
        transitions = int(spec.get("leaseTransitions") or 0) + (holder != self._identity)
        lease["spec"] = self._spec(transitions, spec if holder == self._identity else None)
        self._held = await self._cluster.replace(LEASES, self._namespace, self._name, lease)
        self._renewed = asked
        return True

    def _spec(self, transitions: int, before: Json | None = None) -> Json:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": self._identity,
            # Rounded up: others wait for so long, and we give up before.
            "leaseDurationSeconds": math.ceil(self._lease_seconds),
            "acquireTime": (before or {}).get("acquireTime") or now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }
