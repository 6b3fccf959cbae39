"""Files and folders of a node: held open, never by a path that somebody could bend meanwhile.

*Invariants.* Everything happens relative to a folder that is held open. No symbolic link is followed, below the folder
that was opened first. What gets a name by `replace` is on disk before. Errors of the file system are LocalError, with a
reason that says whether the disk is full or something else.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from outrider.api.errors import OutriderError
from outrider.node.elf import HEAD_BYTES
from outrider.trust.digest import Sha256Stream

RECORD: Final = ".outrider-verified.json"
"""Beside a verified file: what it is, and what vouched for it (`record.py`)."""

PARTIAL_PREFIX: Final = ".outrider-"
PARTIAL_SUFFIX: Final = ".part"

_BLOCK: Final = 256 * 1024
"""Read and written at a time: no larger piece is faster, and all of it counts against the memory."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LocalError(OutriderError):
    """This node cannot take the file: no space, no permission, something in the way."""


@dataclass(frozen=True)
class Content:
    """What some bytes on this node are."""

    size: int
    sha256: str
    further: dict[str, str] = field(default_factory=dict)
    """Further digests, in hex by algorithm."""
    head: bytes = b""
    """How they begin."""


@contextlib.contextmanager
def local(what: str, folder: Path) -> Iterator[None]:
    """Turn an error of the file system into LocalError. `what` completes "this node cannot …"."""
    try:
        yield
    except OSError as error:
        text = (error.strerror or "unknown error").lower()
        if error.errno in _FULL:
            raise LocalError(
                "NoSpace", f"this node cannot {what} {folder}: {text}; make room on this node, or give it a larger disk"
            ) from None
        raise LocalError("NodeStorage", f"this node cannot {what} {folder}: {text}; correct it on this node") from None


def is_plain_name(name: str) -> bool:
    """Say whether a name is that of a file right here: no path, nothing hidden, nothing that could be taken for one."""
    return 0 < len(name) <= 255 and name[0] != "." and name.isprintable() and "/" not in name


class Folder:
    """A folder that is held open. Use it as a context manager, or close it.

    Its methods raise OSError; wrap what belongs together in `local`.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor = descriptor
        self.path = path
        """What it is called in messages."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder by its path, whose last part may not be a link."""
        return cls(os.open(path, _FOLDER), path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)

    def folder(self, name: str, *, create: bool = False, mode: int = 0o755) -> "Folder":
        """Open a folder in this one; make it before, if there is none and `create` says so."""
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=self.descriptor)
                self.sync()
        return Folder(os.open(name, _FOLDER, dir_fd=self.descriptor), self.path / name)

    def names(self) -> list[str]:
        """Return the names of all that is in it, sorted."""
        return sorted(os.listdir(self.descriptor))  # noqa: PTH208

    def stat(self, name: str) -> os.stat_result | None:
        """Return what is known about what has a name, a link itself; None if nothing has it."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def read_link(self, name: str) -> str | None:
        """Return what a link says; None if nothing has this name. Raises OSError on what is no link."""
        try:
            return os.readlink(name, dir_fd=self.descriptor)
        except FileNotFoundError:
            return None

    def open_file(self, name: str) -> BinaryIO | None:
        """Open a regular file to read; None if there is none: links and pipes are not files."""
        try:
            descriptor = os.open(
                name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.descriptor
            )
        except OSError:
            return None
        file = os.fdopen(descriptor, "rb", buffering=0)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            file.close()
            return None
        return file

    def create(self, name: str, mode: int = 0o600) -> BinaryIO:
        """Make a file that is not there yet, and open it to write."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(name, flags, mode, dir_fd=self.descriptor), "wb", buffering=0)

    def write(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Let a file have these bytes, all at once: on disk under another name first."""
        partial = partial_name()
        self.remove(partial)
        with self.create(partial) as file:
            write_all(file, data)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        self.replace(partial, name)

    def replace(self, old: str, new: str, into: "Folder | None" = None) -> None:
        """Give something another name, here or in another folder, and see to it that this outlives a power cut."""
        target = into or self
        os.rename(old, new, src_dir_fd=self.descriptor, dst_dir_fd=target.descriptor)
        target.sync()
        if target is not self:
            self.sync()

    def link(self, name: str, target: str) -> None:
        """Make a symbolic link."""
        os.symlink(target, name, dir_fd=self.descriptor)

    def remove(self, name: str) -> None:
        """Remove whatever has a name, a folder with all that is in it, if it is there; no link is followed."""
        try:
            os.unlink(name, dir_fd=self.descriptor)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            found = self.stat(name)
            if found is None or not stat.S_ISDIR(found.st_mode):
                raise
            with self.folder(name) as inner:
                for each in inner.names():
                    inner.remove(each)
            os.rmdir(name, dir_fd=self.descriptor)

    def remove_partials(self) -> None:
        """Remove what was not finished when a program was killed here."""
        for name in self.names():
            if name.startswith(PARTIAL_PREFIX) and name.endswith(PARTIAL_SUFFIX):
                self.remove(name)

    def sync(self) -> None:
        """Put the names in this folder on disk."""
        os.fsync(self.descriptor)

    def free(self) -> int:
        """Return how many bytes there is room for."""
        usage = os.fstatvfs(self.descriptor)
        return usage.f_bavail * usage.f_frsize

    def check_space(self, size: int) -> None:
        """Raise LocalError(NoSpace) if there is no room for so many bytes."""
        if size > (free := self.free()):
            raise LocalError(
                "NoSpace", f"{self.path} has room for {free} bytes, and the file has {size}; make room on this node"
            )

    @contextlib.contextmanager
    def locked(self, name: str, waiting: Callable[[], None], *, patient: bool = True) -> Iterator[bool]:
        """Hold a lock that a file stands for, and that ends with the process that holds it.

        `waiting` is called once if somebody else has it. Yields whether it is held: always, if `patient`. Whoever holds
        it may remove the file: those who waited for that one notice, and take the next.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            descriptor = os.open(name, flags, 0o600, dir_fd=self.descriptor)
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not patient:
                        yield False
                        return
                    waiting()
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                found = self.stat(name)
                if found is None or found.st_ino != os.fstat(descriptor).st_ino:
                    continue
                yield True
                return
            finally:
                os.close(descriptor)


def partial_name() -> str:
    """Return the name of what this process has not finished yet."""
    return f"{PARTIAL_PREFIX}{os.getpid()}{PARTIAL_SUFFIX}"


def finish(file: BinaryIO) -> None:
    """Make a file that was written executable for everybody and writable for nobody, and put it on disk."""
    os.fchmod(file.fileno(), 0o555)
    os.fsync(file.fileno())


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write bytes to an unbuffered file, all of them."""
    view = memoryview(data)
    while view:
        view = view[os.write(file.fileno(), view) :]


def read_content(file: BinaryIO, further: frozenset[str], copy: BinaryIO | None = None) -> Content:
    """Read a file to its end, copy it if `copy` says where, and return what was read. `further` are further digests."""
    stream = Sha256Stream(further)
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    head = b""
    while count := file.readinto(buffer):  # type: ignore[attr-defined]  # files without a buffer of their own have it
        piece = view[:count]
        if len(head) < HEAD_BYTES:
            head += bytes(piece[: HEAD_BYTES - len(head)])
        stream.update(piece)
        if copy is not None:
            write_all(copy, piece)
    return Content(stream.size, stream.sha256, stream.further, head)
