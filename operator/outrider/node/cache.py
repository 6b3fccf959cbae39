"""Verified files on a node's disk, by digest: what all pods of a component share, and what outlives them.

    <cache>/<namespace>.<component>/<sha256>/file                      0555, as it was verified
                                            /.outrider-verified.json   what it is, and what vouched for it
                                   /.<sha256>.lock                     held while one of them is filled or thrown away

*Assumptions.* The folder belongs to the node's administrator. Only this program, as one user without rights, writes
below `<namespace>.<component>`, and as often at once as the node has pods. Any of them may be killed at any moment.

*Invariants.* A file is `file` only when it was verified, and complete on disk; its record comes after it, and without a
record it counts for nothing. What lies here is no more trusted than what a registry sends: every time its hash is
computed anew from the bytes that are handed over. Of twenty that want the same, one downloads. Nobody waits, holding a
lock, for something that might not come. The last `KEPT` that were used are kept; the order of their use is told by
their modification times, which never go backwards, whatever the node's clock does.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Self

from outrider.node.config import Config
from outrider.node.files import RECORD, Folder, LocalError, local
from outrider.node.record import Record, read_record

KEPT: Final = 3
"""Versions of a component: the one that runs, the one before, and the next."""

FILE: Final = "file"

_SHA256: Final = re.compile("[0-9a-f]{64}")


class CacheError(LocalError):
    """The cache cannot be used; who only wants the file can do without."""


class Entry:
    """One digest's folder in the cache, while its lock is held."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def open(self) -> tuple[Record, BinaryIO] | None:
        """Return the record and the file, to be closed, if both are there."""
        record = read_record(self.folder)
        file = self.folder.open_file(FILE) if record is not None else None
        return None if record is None or file is None else (record, file)

    def discard(self) -> None:
        """Throw away what is in it: the record first, without which the file counts for nothing."""
        with cache_errors(), local("write to", self.folder.path):
            self.folder.remove(RECORD)
            self.folder.remove(FILE)


class Cache:
    """The cache of one component of one namespace."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    @classmethod
    def open(cls, cache_dir: Path, config: Config) -> Self:
        """Open the component's folder, as root make it for the user that this program will be. Raises CacheError.

        To be called before that user is become: after that nobody may make folders here. Nothing in it is read.
        """
        name = f"{config.namespace}.{config.component}"
        path = cache_dir / name
        owner = os.geteuid() if config.run_as is None else config.run_as
        with cache_errors(), local("use the cache", path), Folder.open(cache_dir) as top:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=top.descriptor)
            # Only a handle, to which no rights are needed: of what belongs to that user, root without any capabilities
            # could not even list the names.
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = Folder(os.open(name, flags, dir_fd=top.descriptor), path)
            found = os.fstat(handle.descriptor)
            if found.st_uid != owner and found.st_uid == os.geteuid():
                os.chown(name, owner, owner, dir_fd=top.descriptor, follow_symlinks=False)
            elif found.st_uid != owner:
                handle.close()
                raise LocalError(
                    "NodeStorage",
                    f"{path} belongs to user {found.st_uid}, and not to {owner}; remove it from this node",
                )
        return cls(handle)

    def use(self) -> None:
        """Begin to read and write, now as the user that it belongs to. Raises CacheError."""
        handle = self._folder
        with cache_errors(), local("use the cache", handle.path):
            descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle.descriptor)
            self._folder = Folder(descriptor, handle.path)
            handle.close()
            if os.fstat(descriptor).st_mode & 0o077:
                os.fchmod(descriptor, 0o700)

    @contextlib.contextmanager
    def entry(self, sha256: str, waiting: Callable[[], None]) -> Iterator[Entry]:
        """Hold the lock of a digest, and yield its folder. `waiting` is called once if somebody else has it."""
        with contextlib.ExitStack() as stack:
            with cache_errors(), local("write to", self._folder.path):
                stack.enter_context(self._folder.locked(f".{sha256}.lock", waiting))
                folder = stack.enter_context(self._folder.folder(sha256, create=True, mode=0o700))
                folder.remove_partials()
            try:
                yield Entry(folder)
            finally:
                # Of what was refused, or never came, nothing stays that would count as a version.
                with contextlib.suppress(OSError):
                    os.rmdir(sha256, dir_fd=self._folder.descriptor)
                    self._folder.remove(f".{sha256}.lock")

    def touch(self, sha256: str) -> None:
        """Note that a digest was used last of all."""
        with cache_errors(), local("write to", self._folder.path):
            latest = max((when for when, _ in self._entries()), default=0)
            now = max(time.time_ns(), latest + 1)
            os.utime(sha256, ns=(now, now), dir_fd=self._folder.descriptor, follow_symlinks=False)

    def prune(self, sha256: str) -> list[str]:
        """Remove those that were not used for longest, so that with `sha256` no more than `KEPT` are there.

        Those that somebody fills at this moment stay. Returns the digests that went.
        """
        gone: list[str] = []
        with cache_errors(), local("write to", self._folder.path):
            others = sorted((when, name) for when, name in self._entries() if name != sha256)
            for _, name in others[: max(0, len(others) - KEPT + 1)]:
                lock = f".{name}.lock"
                with self._folder.locked(lock, lambda: None, patient=False) as held:
                    if held:
                        self._folder.remove(name)
                        self._folder.remove(lock)
                        gone.append(name)
        return gone

    @property
    def path(self) -> Path:
        """What it is called in messages."""
        return self._folder.path

    def _entries(self) -> list[tuple[int, str]]:
        names = [name for name in self._folder.names() if _SHA256.fullmatch(name)]
        found = [(self._folder.stat(name), name) for name in names]
        return [(stat.st_mtime_ns, name) for stat, name in found if stat is not None]


@contextlib.contextmanager
def cache_errors() -> Iterator[None]:
    """Tell errors of the cache from those of the place where the file is needed."""
    try:
        yield
    except CacheError:
        raise
    except LocalError as error:
        raise CacheError(error.reason, error.message) from None
