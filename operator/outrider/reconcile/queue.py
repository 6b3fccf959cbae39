"""The work queue: one key, one worker at a time; bursts become one pass; failures back off."""

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from outrider.api.errors import OutriderError, Transient, Waiting
from outrider.settings import Retry

logger = logging.getLogger(__name__)

Work = Callable[[str], Awaitable[float | None]]
"""One pass for a key; returns the seconds after which to look again, or None."""


@dataclass
class _State:
    running: bool = False
    dirty: bool = False
    failures: int = 0
    due: float | None = None
    ended: float = float("-inf")
    serial: int = field(default=0)
    forgotten: bool = False
    hurried: bool = False


class WorkQueue:
    """Runs `work` for keys that were added, never twice at a time for one key.

    A key added while its pass runs gets another pass. `settle_seconds` is how long a burst of events may gather before
    a pass, for all keys or for each: shorter than a person notices, long enough that a hundred pods make a handful of
    passes. The first event after a rest of `rest_seconds` waits only for `first_seconds` (default: as long): who moves
    one node at a time does not wait for others. Neither does a person.
    """

    def __init__(
        self,
        name: str,
        work: Work,
        retry: Retry,
        *,
        settle_seconds: float | Callable[[str], float] = 0.05,
        first_seconds: float | None = None,
        rest_seconds: float | Callable[[str], float] = 0.1,
    ) -> None:
        self._name = name
        self._work = work
        self._retry = retry
        self._settle = settle_seconds if callable(settle_seconds) else lambda _key: settle_seconds
        self._first = first_seconds
        self._rest = rest_seconds if callable(rest_seconds) else lambda _key: rest_seconds
        self._states: dict[str, _State] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._serial = 0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, key: str, after: float | None = None) -> None:
        """Ask for a pass over `key` within `after` seconds (default: as soon as a burst has settled)."""
        state = self._states.setdefault(key, _State())
        state.forgotten = False
        if state.running:
            state.dirty = True
            return
        if state.failures and after is None:
            return  # it backs off: whatever the event says is still there when it is tried again
        if after is None:
            after = self._settle(key)
            if self._first is not None and asyncio.get_running_loop().time() - state.ended >= self._rest(key):
                after = self._first
        self._schedule(key, state, after)

    def retry_now(self, key: str) -> None:
        """Ask for a pass at once, even though the key backs off: a person has changed something."""
        state = self._states.setdefault(key, _State())
        state.failures = 0
        state.hurried = state.running
        self.add(key, self._first)

    def forget(self, key: str) -> None:
        """Drop what is known of a key whose object is gone, as soon as its pass has ended."""
        state = self._states.get(key)
        if state is not None and state.running:
            state.forgotten = True
        elif state is not None:
            del self._states[key]

    def failures(self, key: str) -> int:
        """Return how often in a row the key's pass has failed."""
        state = self._states.get(key)
        return state.failures if state else 0

    async def run(self) -> None:
        """Run passes until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._wake.clear()
                now = loop.time()
                while self._heap and self._heap[0][0] <= now:
                    _, serial, key = heapq.heappop(self._heap)
                    state = self._states.get(key)
                    if state is not None and state.serial == serial and not state.running:
                        state.running, state.due = True, None
                        task = asyncio.create_task(self._pass(key, state), name=f"{self._name} {key}")
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
                timeout = max(0.0, self._heap[0][0] - loop.time()) if self._heap else None
                try:
                    async with asyncio.timeout(timeout):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            for task in self._tasks:
                task.cancel()

    def _schedule(self, key: str, state: _State, after: float) -> None:
        due = asyncio.get_running_loop().time() + after
        if state.due is not None and state.due <= due:
            return  # it comes sooner already
        self._serial += 1
        state.due, state.serial = due, self._serial
        heapq.heappush(self._heap, (due, self._serial, key))
        self._wake.set()

    async def _pass(self, key: str, state: _State) -> None:
        again: float | None = None
        try:
            again = await self._work(key)
            state.failures = 0
        except Waiting as error:
            again, state.failures = error.after, 0
        except OutriderError as error:
            state.failures += 1
            again = self._retry.delay(state.failures)
            if isinstance(error, Transient) and error.retry_after is not None:
                again = max(again, error.retry_after)
            logger.warning("%s %s: retrying in %.0f s: %s", self._name, key, again, error.message)
        except Exception:
            # A bug in one object's pass must not stop the others; it is loud, and it is tried again.
            state.failures += 1
            again = self._retry.delay(state.failures)
            logger.exception("%s %s: unexpected error, retrying in %.0f s", self._name, key, again)
        finally:
            state.running = False
            state.ended = asyncio.get_running_loop().time()
        if state.dirty and not state.failures:
            soon = self._first if state.hurried and self._first is not None else self._settle(key)
            again = soon if again is None else min(again, soon)
        state.dirty = state.hurried = False
        if again is not None:
            self._schedule(key, state, again)
        elif state.forgotten:
            self._states.pop(key, None)
