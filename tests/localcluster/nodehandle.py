"""What a test does on a real node itself: look at its files, run programs, fill its disks, keep a service running."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from localcluster import realnode
from localcluster.errors import LauncherError
from localcluster.processes import Process, spawn, stop
from localcluster.state import State

_UNITS = "/run/outrider-test-units"

_MANAGER = r"""#!/bin/sh
# One service of this node: $2 is its program, $1 its name. Whoever asks writes "verb answer-pipe" into the requests.
unit=$1 program=$2 child=
cd "$3" && mkdir -p "$unit" && cd "$unit" || exit 1
rm -f requests && mkfifo requests || exit 1
lives() {
  [ -n "$child" ] && [ -r "/proc/$child/stat" ] && ! grep -q ') Z ' "/proc/$child/stat"
}
halt() {
  if lives; then kill "$child"; fi
  if [ -n "$child" ]; then wait "$child"; fi
  child=
}
begin() {
  [ -x "$program" ] || { told="1 $program is no program"; return; }
  "$program" >>log 2>&1 </dev/null &
  child=$!
  told=0
}
trap 'halt 2>/dev/null; exit 0' TERM
exec 3<>requests
: >listening
while :; do
  read -r verb answer <&3 || continue
  case $verb in
    start) if lives; then told=0; else begin; fi ;;
    stop) halt 2>/dev/null; told=0 ;;
    reset-failed) told=0 ;;
    restart) halt 2>/dev/null; begin ;;
    show-pid) if lives; then told="0 $child"; else told="3 none"; fi ;;
    is-active) if lives; then told="0 active"; else told="3 inactive"; fi ;;
    *) told="1 Unknown command verb $verb." ;;
  esac
  echo "$told" >"$answer"
done
"""
"""Outlives whoever asks it, as a real service manager does: what it starts is in no pod's control group."""

_CLIENT = rf"""#!/bin/sh
# Stands in for systemd's: start, stop, restart, reset-failed, is-active of one unit.
verb= unit=
for word; do
  case $word in
    -*) ;;
    *) if [ -z "$verb" ]; then verb=$word; else unit=${{word%.service}}; fi ;;
  esac
done
folder={_UNITS}/$unit
if [ -z "$unit" ] || ! [ -p "$folder/requests" ]; then
  echo "Unit $unit.service not found." >&2
  exit 5
fi
answer=$folder/answer.$$
mkfifo "$answer"
echo "$verb $answer" >"$folder/requests"
read -r code text <"$answer"
rm -f "$answer"
[ -z "$text" ] || echo "$text"
exit "$code"
"""


class RealNode:
    """One real node of a running cluster."""

    def __init__(self, known: State, name: str) -> None:
        self._known = known
        self.name = name
        self._root = realnode.root_directory(known, name)
        self._enter = realnode.enter_command(known, name)

    def path(self, path: str) -> Path:
        """Where a file of the node is seen from here; links in it that are absolute are this machine's, though."""
        return self._root / path.lstrip("/")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program on the node, outside of all pods."""
        result = subprocess.run([*self._enter, *command], capture_output=True, text=True, check=False)
        if check and result.returncode != 0:
            raise LauncherError(f"{' '.join(command)} failed on {self.name}: {result.stderr.strip()}")
        return result

    def pids(self, *words: str) -> list[int]:
        """Return the processes, as the node numbers them, whose command line has all these words in it."""
        found = []
        for entry in self.path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if all(word in line for word in words):
                        found.append(int(entry.name))
        return sorted(found)

    def kill(self, pid: int) -> None:
        """Kill a process at once, by the number that it has on the node."""
        self.run("/bin/sh", "-c", f"kill -9 {pid}")

    def pull_plainly_from(self, registry: str) -> None:
        """Let the node's containerd speak plain HTTP to a registry."""
        realnode.allow_plain_registry(self._known, self.name, registry)

    # --- disks ------------------------------------------------------------------------------

    @contextmanager
    def small_disk(self, path: str, size: int) -> Iterator[None]:
        """Let a folder of the node be a disk of its own with so many bytes, for a while; it begins empty."""
        self.run("mkdir", "-p", path)
        self.run("mount", "-t", "tmpfs", "-o", f"mode=755,size={size}", "tmpfs", path)
        try:
            yield
        finally:
            self._unmount(path)

    @contextmanager
    def read_only(self, path: str) -> Iterator[None]:
        """Let nobody write below a folder of the node, for a while."""
        self.run("mkdir", "-p", path)
        self.run("mount", "--bind", path, path)
        try:
            self.run("mount", "-o", "remount,bind,ro", path)
            yield
        finally:
            self._unmount(path)

    def _unmount(self, path: str) -> None:
        # Lazily: a pod that is on its way out may still have it open.
        self.run("umount", "-l", path)

    # --- services ---------------------------------------------------------------------------

    def add_service(self, unit: str, program: str) -> Service:
        """Have a service on the node, which `systemctl` there starts, stops, restarts, and asks whether it runs."""
        for file, text in (("/usr/local/sbin/outrider-test-unit", _MANAGER), ("/usr/bin/systemctl", _CLIENT)):
            # Anew, and not through a link that may be there: what is changed is this node's layer, never this machine.
            self.run("rm", "-f", file)
            self.path(file).write_text(text)
            self.path(file).chmod(0o755)
        folder = self.path(f"{_UNITS}/{unit}")
        (folder / "listening").unlink(missing_ok=True)
        self.run("mkdir", "-p", _UNITS)
        process = spawn(
            f"{self.name}-unit-{unit}",
            [*self._enter, "/bin/sh", "/usr/local/sbin/outrider-test-unit", unit, program, _UNITS],
            self._known.directory / "logs" / f"{self.name}-unit-{unit}.log",
            cluster=self._known.directory,
            environment={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        deadline = time.monotonic() + 10
        while not (folder / "listening").exists():
            if not process.alive() or time.monotonic() > deadline:
                raise LauncherError(f"the service {unit} of {self.name} did not start:\n{process.log_tail()}")
            time.sleep(0.02)
        return Service(self, unit, process)


class Service:
    """A service of a node and whoever keeps it."""

    def __init__(self, node: RealNode, unit: str, manager: Process) -> None:
        self.unit = unit
        self._node = node
        self._manager = manager

    @property
    def log(self) -> str:
        """What its program has said so far."""
        file = self._node.path(f"{_UNITS}/{self.unit}/log")
        return file.read_text() if file.exists() else ""

    def ask(self, verb: str) -> tuple[int, str]:
        """Ask for something as `systemctl` does; returns the exit code and what it said."""
        result = self._node.run("systemctl", verb, self.unit, check=False)
        return result.returncode, result.stdout.strip()

    @property
    def pid(self) -> int:
        """Its program's process, as the node numbers it; 0 if it does not run."""
        code, said = self.ask("show-pid")
        return int(said) if code == 0 else 0

    def end(self) -> None:
        """End the service and its manager."""
        self.ask("stop")
        stop([self._manager], grace=2)
