"""Blobs on their way: out of a registry, and the part of a stream into it that may have to be sent again."""

from collections.abc import Callable, Collection, Iterable, Iterator
from types import TracebackType
from typing import Final, Self

import requests

from outrider.adapters.registrysession import RegistrySession
from outrider.adapters.transport import NETWORK_ERRORS, PIECE, read_pieces
from outrider.api.errors import Stalling, Transient
from outrider.trust.digest import Sha256Stream

WINDOW: Final = 8 * 1024 * 1024
"""Bytes of an upload that are kept to be sent again: more than the buffers between us and a registry's disk hold."""


class BlobStream:
    """A blob being read, once. Only when the iteration has ended without an error are the bytes the right ones."""

    def __init__(
        self,
        session: RegistrySession,
        repository: str,
        digest: str,
        size: int | None,
        reopen: Callable[[int], requests.Response | None],
        response: requests.Response,
        further: Collection[str] = (),
    ) -> None:
        self._session = session
        self._repository = repository
        self._digest = digest
        self._size = size
        self._reopen = reopen
        """Asks for the blob from an offset on."""
        self._response = response
        self.content = Sha256Stream(further)
        """What was yielded so far. At the end of the iteration it has the digest that was asked for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading."""
        self._response.close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes, resuming a bounded number of times where the connection broke.

        Raises Stalling(BlobCorrupted) at the end when they do not hash to the digest (or as soon as there are more than
        the size), Transient(RegistryUnavailable) when resuming did not help.
        """
        stream = self.content
        delays = iter(self._session.settings.resume_delays)
        known = 0
        while True:
            try:
                for piece in read_pieces(self._response):
                    fresh = piece[known:]
                    known = max(0, known - len(piece))
                    if not fresh:
                        continue
                    stream.update(fresh)
                    if self._size is not None and stream.size > self._size:
                        raise self._corrupted(f"has more than the {self._size} bytes that it should have")
                    yield fresh
                break
            except NETWORK_ERRORS as error:
                known = self._resume(stream.size, delays, error)
        self._response.close()
        if stream.digest != self._digest:
            raise self._corrupted(f"({stream.size} bytes) hashes to {stream.digest}")

    def _resume(self, offset: int, delays: Iterator[float], error: BaseException) -> int:
        """Ask for the rest from `offset` on; return how many bytes of the answer are known already."""
        self._response.close()
        failure = self._session.unavailable(f"reading {self._digest} from {self._repository}", error)
        for delay in delays:
            self._session.pause(delay)
            try:
                response = self._reopen(offset)
            except Transient as again:
                failure = again
                continue
            if response is None:
                break
            self._response = response
            if response.status_code == 200:
                return offset
            if response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                return 0
            response.close()
        raise failure

    def _corrupted(self, how: str) -> Stalling:
        return Stalling(
            "BlobCorrupted",
            f"what registry {self._session.settings.host} stores as {self._digest} in {self._repository} {how}: its "
            "storage was tampered with or is damaged; restore it, or delete the blob there and store the version again",
        )


class UploadWindow:
    """A stream that is being sent, hashed as it goes, with its last `WINDOW` bytes kept to be sent once more.

    They are copied into one ring. To keep the pieces themselves was measured to cost three times as much: then each
    new piece gets memory that was not touched before.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.stream = Sha256Stream()
        self.source_failed = False
        """The stream itself has raised an error: this is nothing that the registry could mend."""
        self._chunks = iter(chunks)
        self._ring = bytearray()
        """Grows to `WINDOW` bytes, if there are so many."""

    @property
    def start(self) -> int:
        """The first byte that is still here."""
        return max(0, self.stream.size - WINDOW)

    def pieces(self, offset: int) -> Iterator[bytes]:
        """Yield the stream from a byte on that is still here."""
        end = self.stream.size
        while offset < end:
            place = offset % WINDOW
            piece = bytes(self._ring[place : place + min(PIECE, end - offset)])
            offset += len(piece)
            yield piece
        while True:
            try:
                piece = next(self._chunks)
            except StopIteration:
                return
            except BaseException:
                self.source_failed = True
                raise
            self._keep(piece)
            self.stream.update(piece)
            yield piece

    def _keep(self, piece: bytes) -> None:
        tail = memoryview(piece)[-WINDOW:]
        place = (self.stream.size + len(piece) - len(tail)) % WINDOW
        room = WINDOW - place
        self._ring += bytes(max(0, place - len(self._ring)))  # for a piece that is larger than all of it
        self._ring[place : place + min(room, len(tail))] = tail[:room]
        self._ring[: max(0, len(tail) - room)] = tail[room:]
