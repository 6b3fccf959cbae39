"""An end for whatever is done on the network: at a deadline, or as soon as nobody wants it any more.

The timeouts of a socket bound silence, not slowness: who sends a byte now and then keeps a reader for ever, and in the
middle of a header no code of ours runs. So another thread looks at the clock (`Watchdog`), and shuts down the sockets
(`Connections`): then whoever reads, writes or connects returns at once.
"""

import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self

POLL_SECONDS: Final = 0.5
"""How often a watchdog asks whether the work is still wanted."""
_RESOLVE_SECONDS: Final = 30.0
"""The longest that a name may take. Resolvers try a second server after 5 s."""


class Aborted(ConnectionAbortedError):
    """A session was ended from another thread. What was read last may be cut off anywhere."""


class _HasSocket(Protocol):
    def fileno(self) -> int: ...


class Connections:
    """The sockets of one session, to be shut down from any thread.

    *Invariants.* They are known by weak references, so that they close when their owner closes them: a second
    descriptor would keep the connection open. Only while TLS begins, when the socket is in nobody's reach, one is held.
    A socket that its owner closes meanwhile is never confused with another that gets its number.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[_HasSocket] = weakref.WeakSet()
        self._opening: set[socket.socket] = set()
        self._aborted = False

    @property
    def aborted(self) -> bool:
        """Say whether `abort` was called: then nothing that was read is complete for sure."""
        return self._aborted

    def check(self) -> None:
        """Raise Aborted if everything was ended."""
        if self._aborted:
            raise Aborted("ended by us")

    def add(self, made: _HasSocket) -> None:
        """Watch a socket, or what wraps one. Raises Aborted if it comes too late."""
        with self._lock:
            self.check()
            self._open.add(made)

    @contextmanager
    def opening(self) -> Iterator[Callable[[socket.socket], None]]:
        """Yield what watches a socket during the block even when another object takes it over, as TLS does."""
        held: list[socket.socket] = []

        def hold(made: socket.socket) -> None:
            self.add(made)
            double = made.dup()
            held.append(double)
            with self._lock:
                self._opening.add(double)
            if self._aborted:
                _shut_down(double)

        try:
            yield hold
        finally:
            with self._lock:
                self._opening.difference_update(held)
            for double in held:
                double.close()

    def abort(self) -> None:
        """Shut all sockets down, and let no more be opened. May be called from any thread, and more than once."""
        with self._lock:
            self._aborted = True
            for double in self._opening:
                _shut_down(double)
            for each in list(self._open):
                _shut_down_of_another(each)


def _shut_down(one: socket.socket) -> None:
    with suppress(OSError):  # it may not be connected (any more)
        one.shutdown(socket.SHUT_RDWR)


def _shut_down_of_another(one: _HasSocket) -> None:
    """Shut down a socket that another thread may be closing at this very moment.

    Its number may be somebody else's by now. If it has the number still after we have doubled it, then the double is
    of the right one: a socket forgets its number before it closes it.
    """
    with suppress(OSError):
        number = one.fileno()
        if number < 0:
            return
        double = os.dup(number)
        if one.fileno() != number:
            os.close(double)
            return
        try:
            shut = socket.socket(fileno=double)
        except OSError:
            os.close(double)
            raise
        with shut:
            _shut_down(shut)


def resolve(host: str, port: int | None, connections: Connections) -> list[tuple[int, tuple[Any, ...]]]:
    """Return the families and addresses of a name. Raises socket.gaierror, UnicodeError, Aborted.

    Nothing ends a getaddrinfo that hangs. It is left alone in a thread of its own: we go on without it. That thread
    stays for as long as the system's resolver lets it (resolv.conf: `timeout` x `attempts` x servers x search domains);
    nothing here bounds that, or how many there are but the number of attempts that are made.
    """
    answer: list[list[tuple[int, tuple[Any, ...]]]] = []
    failure: list[Exception] = []
    done = threading.Event()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
            answer.append([(int(family), tuple(place)) for family, _, _, _, place in found])
        except Exception as error:  # noqa: BLE001 - raised again where it was asked
            failure.append(error)
        done.set()

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    end = time.monotonic() + _RESOLVE_SECONDS
    while not done.wait(0.1):
        connections.check()
        if time.monotonic() > end:
            raise socket.gaierror(socket.EAI_AGAIN, "the name takes too long")
    if failure:
        raise failure[0]
    return answer[0]


class Watchdog:
    """Calls `abort` once `seconds` have passed since it was started, or `cancelled` says so; a context manager.

    Nothing runs before `start`, after `stop`, or if there is nothing to look at. `verdict` tells what has happened.
    """

    def __init__(
        self, abort: Callable[[], None], seconds: float | None, cancelled: Callable[[], bool] | None = None
    ) -> None:
        self.seconds = seconds
        self.verdict: Literal["", "late", "cancelled"] = ""
        """Why everything was ended; nothing while it was not."""
        self._abort = abort
        self._cancelled = cancelled
        self._deadline = 0.0
        self._ended = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to watch; without effect if that has begun already."""
        if self._thread is not None or (self.seconds is None and self._cancelled is None):
            return
        self._deadline = time.monotonic() + (self.seconds or 0.0)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer. Afterwards there is no thread, and `abort` is not called any more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end."""
        self._ended.wait(seconds)

    def _watch(self) -> None:
        while True:
            rest = self._deadline - time.monotonic() if self.seconds is not None else POLL_SECONDS
            if self._stopped.wait(max(0.0, min(rest, POLL_SECONDS))):
                return
            if self._cancelled is not None and self._cancelled():
                self.verdict = "cancelled"
            elif self.seconds is not None and time.monotonic() >= self._deadline:
                self.verdict = "late"
            else:
                continue
            self._ended.set()
            self._abort()
            return
