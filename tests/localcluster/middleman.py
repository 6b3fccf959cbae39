"""Somebody between nodes and the registry: passes bytes on, and changes, holds back or refuses them when told to.

In threads of a test, or as a process: `python -m localcluster.middleman REGISTRY ADDRESS PORT FILE`. That one changes
bytes as long as there is such a file, whose two lines are the bytes that are changed and those that come instead, in
hexadecimal digits.
"""

from __future__ import annotations

import base64
import contextlib
import signal
import socket
import sys
import threading
from pathlib import Path

_PIECE = 16 * 1024
_WHO_ARE_YOU = (
    b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="registry"\r\nContent-Length: 0\r\n'
    b"Connection: close\r\n\r\n"
)


class Middleman:
    """A TCP proxy in threads of this process, at an address that nodes reach."""

    def __init__(self, registry: str, address: str, port: int = 0, orders: Path | None = None) -> None:
        """`orders` is the file that says what to change, if one is to be looked at."""
        host, _, registry_port = registry.partition(":")
        self._registry = host, int(registry_port)
        self._orders = orders
        self._lock = threading.Lock()
        self._change: tuple[bytes, bytes] | None = None
        self._open: set[socket.socket] = set()
        self._demanded = b""
        self._gate = threading.Event()
        self._hold_after: int | None = None
        self._passed = 0
        self.changed = threading.Event()
        """Set once something was changed on its way."""
        self.holding = threading.Event()
        """Set while something is held back."""
        self._listener: socket.socket | None = socket.create_server((address, port))
        self._address = address, int(self._listener.getsockname()[1])
        self.host = f"{address}:{self._address[1]}"
        self._accept_in_thread(self._listener)

    # --- what it does -----------------------------------------------------------------------

    def behave(self) -> None:
        """Pass everything on, unchanged, again."""
        with self._lock:
            self._change = self._hold_after = None
            self._demanded = b""
            self._gate.set()
        self.changed.clear()
        self.holding.clear()
        self.admit()

    def change(self, old: bytes, new: bytes) -> None:
        """From now on the registry's answers have `new` in place of `old`, which has to be as long.

        What may be the beginning of `old` waits for what follows: no answer should end like that.
        """
        assert len(old) == len(new), "an answer keeps its length"
        self.changed.clear()
        self._change = old, new

    def hold_after(self, count: int) -> None:
        """Once so many bytes of answers have passed, from now on, pass nothing more until it is to behave again."""
        self.holding.clear()
        self._gate.clear()
        with self._lock:
            self._passed, self._hold_after = 0, count

    def demand(self, username: str, password: str) -> None:
        """From now on answer 401 to whoever does not say who he is."""
        token = base64.b64encode(f"{username}:{password}".encode())
        self._demanded = b"authorization: basic " + token.lower()

    def refuse(self) -> None:
        """Take no more connections, and cut those there are: the registry is down, for whoever comes this way."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # Shut down first: closing alone does not wake a thread that is in accept().
            _end(listener)
        with self._lock:
            ends = list(self._open)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def admit(self) -> None:
        """Take connections again, at the same address."""
        if self._listener is None:
            self._listener = socket.create_server(self._address)
            self._accept_in_thread(self._listener)

    @property
    def passed(self) -> int:
        """Bytes of answers that have passed since `count`, or since it was told to hold something back."""
        return self._passed

    def count(self) -> None:
        """Count bytes from nothing."""
        with self._lock:
            self._passed = 0

    # --- how --------------------------------------------------------------------------------

    def _accept_in_thread(self, listener: socket.socket) -> None:
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._registry, timeout=10)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := client.recv(_PIECE):
                # Who only pulls sends no bodies: what comes at once is a request, or the most of it.
                if self._demanded and self._demanded not in piece.lower():
                    client.sendall(_WHO_ARE_YOU)
                    break
                server.sendall(piece)
        self._close(client, server)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        kept = b""
        with contextlib.suppress(OSError):
            while piece := server.recv(_PIECE):
                whole, kept = self._changed(kept + piece)
                self._send(client, whole)
            self._send(client, kept)
        self._close(server, client)

    def _changed(self, piece: bytes) -> tuple[bytes, bytes]:
        """Return what can be sent, and the beginning of what is to be changed that may go on in the next piece."""
        change = self._change or self._ordered()
        if change is None:
            return piece, b""
        old, new = change
        if old in piece:
            self.changed.set()
            piece = piece.replace(old, new)
        for length in range(min(len(old) - 1, len(piece)), 0, -1):
            if piece.endswith(old[:length]):
                return piece[:-length], piece[-length:]
        return piece, b""

    def _ordered(self) -> tuple[bytes, bytes] | None:
        if self._orders is None:
            return None
        try:
            old, new = map(bytes.fromhex, self._orders.read_text().split())
        except FileNotFoundError:
            return None
        return old, new

    def _send(self, client: socket.socket, piece: bytes) -> None:
        with self._lock:
            left = None if self._hold_after is None else max(0, self._hold_after - self._passed)
            self._passed += len(piece)
        if left is not None and left < len(piece):
            client.sendall(piece[:left])
            self.holding.set()
            self._gate.wait(120)
            piece = piece[left:]
        client.sendall(piece)

    def _close(self, source: socket.socket, target: socket.socket) -> None:
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()
        with self._lock:
            self._open.discard(source)

    def stop(self) -> None:
        """Take no more connections, for good."""
        self.behave()
        self.refuse()


def _end(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


if __name__ == "__main__":
    Middleman(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    signal.pause()
