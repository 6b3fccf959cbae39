"""The command that an installer runs on the node, and that must not outlive it: noted while it runs.

*Assumptions.* The installer may be killed at any moment, and its command is in none of its control groups. A command is
the leader of a session of its own, and of the process group of the same number.

*Invariants.* The command itself dies with its installer (prctl(2), PR_SET_PDEATHSIG). What it has started in its group
is noted before it can start anything, and ended by whoever holds the lock next, before that does anything else. What
has left the group, as a daemon does that was started with setsid, is left alone; so is a group whose command was seen
to end: then what is in there was left running on purpose.
"""

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from outrider.node.files import Folder

_NOTE: Final = "running"
"""Beside the journal; it need not outlive a power cut, as no process does."""
_MAX_NOTE_BYTES: Final = 4096
_PR_SET_PDEATHSIG: Final = 1
_SECONDS: Final = 5.0
"""For killed processes to go. One that stays longer is held by its disk, and runs nothing of its own again."""

_PROC: Final = Path("/proc")


def boot_id() -> str:
    """Return what is another after each start of the node: what was activated before has ended since."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def prepare_child(private: Folder | None) -> Callable[[], None]:
    """Return what a child does first: tie itself to its parent, and note its group in `private` if there is one."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent, boot = os.getpid(), boot_id()
    if private is not None:
        forget(private)

    def begin() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # Who was orphaned before the call is told nothing.
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)
        if private is None:
            return
        note = {"group": os.getpid(), "started": _started(os.getpid()), "boot": boot}
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        # A disk that is full hinders no way back: the command is tied to its parent without the note, too.
        with suppress(OSError):
            descriptor = os.open(_NOTE, flags, 0o600, dir_fd=private.descriptor)
            os.write(descriptor, json.dumps(note).encode())

    return begin


def forget(private: Folder) -> None:
    """Take the note away: the command was seen to end."""
    with suppress(OSError):
        private.remove(_NOTE)


def end_remnants(private: Folder, path: Path, log: Callable[[str], None]) -> None:
    """End what runs still of the command of an installer that was killed. The lock has to be held.

    `path` is what the node calls the daemon's folder: each command is told it, which tells it from a stranger.
    """
    file = private.open_file(_NOTE)
    if file is not None:
        try:
            with file:
                note = json.loads(file.read(_MAX_NOTE_BYTES))
            group, started, boot = int(note["group"]), str(note["started"]), str(note["boot"])
        except (ValueError, KeyError, TypeError, OSError, RecursionError):
            group, started, boot = 0, "", ""
        if group > 1 and boot == boot_id():
            _end_group(group, started, path, log)
    forget(private)


def _end_group(group: int, started: str, path: Path, log: Callable[[str], None]) -> None:
    now = _started(group)
    # Its number was given to somebody else meanwhile.
    if now and now != started:
        return
    if not any(_is_of(member, path) for member in _members(group)):
        return
    log(f"an installer was ended while its command ran; what is left of that (process group {group}) is killed")
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError:
        log(f"WARNING: process group {group} belongs to another user and cannot be killed")
        return
    deadline = time.monotonic() + _SECONDS
    while _members(group) and time.monotonic() < deadline:
        time.sleep(0.02)  # they are no children of ours, so that nobody tells


def _members(group: int) -> list[int]:
    """Return the processes of a group that is a session as well, without those that are dead already."""
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            fields = _fields(int(entry.name))
            if fields and fields[0] not in {"Z", "X"} and fields[2:4] == [str(group), str(group)]:
                found.append(int(entry.name))
    return found


def _is_of(process: int, path: Path) -> bool:
    """Say whether a process was started for this folder; numbers of groups are used again."""
    try:
        environment = (_PROC / str(process) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"OUTRIDER_PATH={path}".encode() in environment


def _started(process: int) -> str:
    """Return when a process was started, in ticks since the node was; "" if there is none."""
    fields = _fields(process)
    return fields[19] if len(fields) > 19 else ""


def _fields(process: int) -> list[str]:
    """Return what proc(5) says of a process, from its state on: state, parent, group, session, ..."""
    try:
        text = (_PROC / str(process) / "stat").read_text(errors="replace")
    except OSError:
        return []
    # The name before may hold anything, parentheses included.
    return text.rpartition(")")[2].split()
