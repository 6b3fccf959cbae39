"""A TCP proxy before a registry that counts what passes, and does something at a moment of its choosing."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable

from localcluster.addresses import LOOPBACK

_REQUEST = re.compile(rb"^(GET|HEAD|PUT|POST|PATCH|DELETE) /\S* HTTP/1\.1\r\n", re.MULTILINE)


class RegistryProxy:
    """Passes bytes on in both directions; `at` says what shall happen when so many have passed."""

    def __init__(self, registry: str) -> None:
        host, _, port = registry.partition(":")
        self._registry = host, int(port)
        self._lock = threading.Lock()
        self._moment: tuple[str, int, Callable[[], None], threading.Event] | None = None
        self.requests = self.bytes = 0
        self._listener = socket.create_server((LOOPBACK, 0))
        self.host = f"{LOOPBACK}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def count(self) -> None:
        """Count from nothing."""
        with self._lock:
            self.requests = self.bytes = 0

    def at(self, unit: str, count: int, action: Callable[[], None]) -> threading.Event:
        """Do something once that many requests have begun, or bytes have passed, from now; tells when it is done."""
        self.count()
        done = threading.Event()
        self._moment = unit, count, action, done
        return done

    def stop(self) -> None:
        """Take no more connections."""
        # Shut down first: closing alone does not wake a thread that is in accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._registry, timeout=10)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(one, other, one is client), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_client: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(16 * 1024):
                self._note(piece, is_client=is_client)
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def _note(self, piece: bytes, *, is_client: bool) -> None:
        # Under the lock, so that nothing passes while the moment's action is done.
        with self._lock:
            self.bytes += len(piece)
            if is_client and _REQUEST.match(piece):
                self.requests += 1
            if self._moment is None:
                return
            unit, count, action, done = self._moment
            if (self.requests if unit == "requests" else self.bytes) >= count:
                self._moment = None
                action()
                done.set()
