"""Where the launcher keeps things: binaries and images in the cache, clusters in the state."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localcluster.errors import LauncherError
from localcluster.progress import say

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


def cache_directory() -> Path:
    """Everything here can be deleted at any time and is made again."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "outrider"


def clusters_directory() -> Path:
    """One sub-directory per cluster."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "outrider" / "clusters"


def check_cluster_name(name: str) -> str:
    """Return ``name`` or raise: it becomes a folder and part of object names."""
    if not _NAME.fullmatch(name):
        raise LauncherError(
            f"cluster name {name!r} is not usable: lower-case letters, digits and '-', "
            "at most 40, starting and ending with a letter or digit"
        )
    return name


@contextmanager
def exclusive(lock_file: Path, waiting_for: str) -> Iterator[None]:
    """Hold a file lock; the kernel drops it when the holder dies, however it dies."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    # O_CLOEXEC (Python's default) matters: a spawned etcd must not inherit the lock.
    with lock_file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process: {waiting_for}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
