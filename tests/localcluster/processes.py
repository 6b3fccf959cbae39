"""Starts long-running processes and ends them again, by pid and never by name."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster.errors import LauncherError

MARKER = "OUTRIDER_LOCAL_CLUSTER"

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A process that some run of the launcher started; survives that run in ``state.json``."""

    name: str
    pid: int
    # Clock ticks since boot at which it started: tells it from a later process that got its pid.
    started: int
    log: str
    port: int | None = None

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        stat = _stat(self.pid)
        return stat is not None and stat == ("run", self.started)

    def cpu_seconds(self) -> float:
        """The processor time that it has used so far; 0 once it has ended."""
        return cpu_seconds(self.pid)

    def log_tail(self, lines: int = 15) -> str:
        """The end of its log, for an error message."""
        try:
            text = Path(self.log).read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has used so far; 0 once it has ended."""
    fields = _stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def _stat(pid: int) -> tuple[str, int] | None:
    fields = _stat_fields(pid)
    return ("dead" if fields[0] in "ZX" else "run", int(fields[19])) if fields else None


def _stat_fields(pid: int) -> list[str]:
    """What /proc says of a process after its name (proc_pid_stat(5), from the third field on); nothing of none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    # The command's name is in parentheses and may hold spaces and parentheses itself.
    return text[text.rindex(")") + 2 :].split()


def spawn(
    name: str,
    command: Sequence[str | Path],
    log: Path,
    *,
    port: int | None = None,
    cluster: Path,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Start ``command`` in a process group of its own with its output in ``log``.

    Its environment names the directory of its cluster, so that it can be found again even if
    this run is killed before it writes the pid down.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**(os.environ if environment is None else environment), MARKER: str(cluster)},
        )
    _children[child.pid] = child
    stat = _stat(child.pid)
    if stat is None:
        raise LauncherError(f"{name} ended at once; its log is {log}")
    return Process(name, child.pid, stat[1], str(log), port)


def find_started_for(cluster: Path) -> list[Process]:
    """Processes that carry this cluster's marker, written down anywhere or not."""
    wanted = f"{MARKER}={cluster}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        stat = _stat(int(entry.name))
        if wanted in environment.split(b"\0") and stat is not None and stat[0] == "run":
            found.append(Process(f"process {entry.name}", int(entry.name), stat[1], ""))
    return found


# Handles of the children of this very run, so that they are reaped when they end.
_children: dict[int, subprocess.Popen[bytes]] = {}


def stop(processes: Sequence[Process], grace: float = 10.0) -> None:
    """End the processes in the given order, all with SIGTERM first, stragglers with SIGKILL."""
    pending = [process for process in processes if process.alive()]
    for process in pending:
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while pending and time.monotonic() < deadline:
        pending = [process for process in pending if process.alive()]
        time.sleep(0.05)
    for process in pending:
        _signal_group(process, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while pending and time.monotonic() < deadline:
        pending = [process for process in pending if process.alive()]
        time.sleep(0.05)
    if pending:
        names = ", ".join(f"{process.name} (pid {process.pid})" for process in pending)
        raise LauncherError(f"these processes do not end even on SIGKILL: {names}")
    _reap()


def _reap() -> None:
    """Let go of children that have ended, by whosever hand."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]


def _signal_group(process: Process, number: signal.Signals) -> None:
    # Checked again right before: between two looks the pid may have become another's.
    if not process.alive():
        return
    try:
        # Each was started as the leader of its own session, so its group is its pid; only a
        # child that such a one made is not.
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise LauncherError(
            f"{process.name} (pid {process.pid}) was started by another user; run the same command as that user"
        ) from error
