"""What is done on the node itself: a command, a systemd unit, a look at a port; in the node's own namespaces.

*Assumptions.* With `hostPID` process 1 is the node's own. To join its namespaces takes SYS_ADMIN and SYS_CHROOT, and
SYS_PTRACE to be shown them. Those that are ours already, as all are outside of a container, need not be joined.

*Invariants.* Only what was declared is run: a list of words, read by no shell, with an environment that holds nothing
but what a command needs. Each command has an end: after its time it is killed with all that it started in its session,
and it does not outlive who waits for it (`hostgroup.py`). No output is kept but its last line.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from outrider.node.config import Trust
from outrider.node.files import Folder, LocalError
from outrider.node.hostconfig import HostConfig
from outrider.node.hostgroup import forget, prepare_child

_NAMESPACES: Final = ("cgroup", "ipc", "uts", "net", "mnt")
"""Which of the node's are joined; its PIDs are seen with `hostPID` already. The root folder follows from the last."""

_CGROUPS: Final = "/sys/fs/cgroup"
_SLICE: Final = "outrider.slice"
"""The control group for commands, where there is one tree of groups for everything (cgroups(7), version 2)."""

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_POLL: Final = 0.5
"""Seconds between two looks while a daemon starts."""
_STEADY: Final = 3
"""A unit counts as active at once when its process was started: so many looks in a row must find it so."""
_TAIL_BYTES: Final = 2048
_SHOWN: Final = 300

Log = Callable[[str], None]


class Host:
    """The node, to run something on.

    `private` is where the command that runs is noted for who comes next; None: nothing is changed, but only looked at.
    """

    def __init__(self, config: HostConfig, log: Log, private: Folder | None = None) -> None:
        self._config = config
        self._log = log
        self._private = private
        self._environment = _environment(config, config.path_on_node)

    def activate(self) -> None:
        """Make the node run what is current. Raises LocalError(ActivationFailed)."""
        activation = self._config.activation
        if activation is None:
            return
        if activation.unit:
            # A version that has crashed too often bars its unit from being started, with the one before, too
            # (systemd.unit(5), StartLimitBurst). A unit that is not barred, or not known, minds nothing.
            self._run(("systemctl", "reset-failed", activation.unit), self._config.health.timeout)
        command = activation.command or ("systemctl", "restart", activation.unit)
        problem = self._run(command, self._config.health.timeout)
        if problem:
            raise LocalError("ActivationFailed", f"{command[0]} {problem}")

    def deactivate(self) -> None:
        """Stop a unit for which there is nothing to run any more. Whether that works is told, and changes nothing."""
        activation = self._config.activation
        if activation is not None and activation.unit:
            problem = self._run(("systemctl", "stop", activation.unit), self._config.health.timeout)
            if problem:
                self._log(f"systemctl stop {activation.unit} {problem}")

    def wait_until_healthy(self) -> None:
        """Return when the daemon works. Raises LocalError(HealthFailed) when it does not in time."""
        timeout = self._config.health.timeout
        deadline = time.monotonic() + timeout
        wanted = _STEADY if self._asks_unit else 1
        in_a_row = 0
        while True:
            problem = self.look(max(1.0, deadline - time.monotonic()))
            in_a_row = 0 if problem else in_a_row + 1
            if in_a_row >= wanted:
                return
            # Who works when time is over is looked at once or twice more, and not condemned for the clock.
            if problem and time.monotonic() + _POLL > deadline:
                raise LocalError("HealthFailed", f"not healthy within {timeout:.0f} s: {problem}")
            time.sleep(_POLL)

    def look(self, seconds: float) -> str:
        """Return what is wrong with the daemon, "" if it works as far as can be told."""
        health, activation = self._config.health, self._config.activation
        if health.command:
            problem = self._run(health.command, seconds)
            return f"{health.command[0]} {problem}" if problem else ""
        if health.port:
            return self._ask(health.port, health.path, seconds)
        if activation is not None and activation.unit:
            problem = self._run(("systemctl", "is-active", activation.unit), seconds)
            return f"systemctl is-active {activation.unit} {problem}" if problem else ""
        return ""

    @property
    def _asks_unit(self) -> bool:
        health, activation = self._config.health, self._config.activation
        return not health.command and not health.port and activation is not None and bool(activation.unit)

    def _ask(self, port: int, path: str, seconds: float) -> str:
        """Send a GET to the daemon's port. The node's network is joined for good: nothing else is ever asked."""
        with contextlib.ExitStack() as stack:
            try:
                for descriptor in _foreign_namespaces(self._config.namespaces, ("net",), stack):
                    _join(descriptor)
            except OSError as error:
                return f"the node's network cannot be entered: {error.strerror}"
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=min(seconds, 5.0))
        try:
            connection.request("GET", path, headers={"User-Agent": "outrider-host"})
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return f"GET http://127.0.0.1:{port}{path}: {text.lower()}"
        finally:
            connection.close()
        return "" if 200 <= status < 300 else f"GET http://127.0.0.1:{port}{path} was answered {status}"

    def _run(self, command: Sequence[str], seconds: float) -> str:
        """Run a command on the node; return what went wrong, to be put behind its name, "" if it ended with 0."""
        with contextlib.ExitStack() as stack:
            try:
                descriptors = _foreign_namespaces(self._config.namespaces, _NAMESPACES, stack)
                begin = prepare_child(self._private)
                join = _prepare_join(descriptors)

                def enter() -> None:
                    begin()
                    if join is not None:
                        join()

                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    cwd="/",
                    start_new_session=True,
                    preexec_fn=enter,  # noqa: PLW1509 - this program has one thread
                )
            except OSError as error:
                return f"cannot be run on the node: {(error.strerror or 'unknown error').lower()}"
            except subprocess.SubprocessError:
                return "cannot be run on the node: its namespaces cannot be entered"
        ended, tail = _follow(process, seconds, self._log)
        if self._private is not None:
            forget(self._private)
        said = f": {tail}" if tail else ""
        if not ended:
            return f"has not ended within {seconds:.0f} s and was killed{said}"
        if process.returncode == 0:
            return ""
        if process.returncode < 0:
            return f"was killed by signal {-process.returncode}{said}"
        return f"ended with exit code {process.returncode}{said}"


def _environment(trust: Trust, path: Path) -> Mapping[str, str]:
    return {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "OUTRIDER_COMPONENT": trust.component,
        "OUTRIDER_VERSION": trust.version,
        "OUTRIDER_PATH": str(path),
    }


def _foreign_namespaces(folder: Path | None, kinds: Sequence[str], stack: contextlib.ExitStack) -> list[int]:
    """Open those of the node's namespaces that are not ours already."""
    descriptors: list[int] = []
    if folder is None:
        return descriptors
    for kind in kinds:
        path = folder / kind
        if path.readlink() != Path(f"/proc/self/ns/{kind}").readlink():
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            descriptors.append(descriptor)
    return descriptors


def _prepare_join(descriptors: Sequence[int]) -> Callable[[], None] | None:
    """Return what a child does before it becomes the command. All that it needs is loaded before there is a child."""
    if not descriptors:
        return None
    join = _load_setns()

    def enter() -> None:
        for descriptor in descriptors:
            join(descriptor)
        os.chdir("/")
        _leave_group()

    return enter


def _leave_group() -> None:
    """Leave the container's control groups: what a command leaves behind would end with the container in them.

    With version 1 there is a tree for each kind of resource, and their roots take every process.
    """
    roots = [_CGROUPS]
    with contextlib.suppress(OSError):
        if os.path.exists(f"{_CGROUPS}/cgroup.controllers"):  # noqa: PTH110
            roots = [f"{_CGROUPS}/{_SLICE}"]
            os.makedirs(roots[0], exist_ok=True)  # noqa: PTH103
        else:
            roots = [entry.path for entry in os.scandir(_CGROUPS) if entry.is_dir()]
    for root in roots:
        with contextlib.suppress(OSError), open(f"{root}/cgroup.procs", "w", encoding="ascii") as file:  # noqa: PTH123
            file.write("0")


def _join(descriptor: int) -> None:
    _load_setns()(descriptor)


def _load_setns() -> Callable[[int], None]:
    """Return setns(2): Python has it from 3.12 on."""
    native: Callable[[int], None] | None = getattr(os, "setns", None)
    if native is not None:
        return native
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)

    def join(descriptor: int) -> None:
        if library.setns(descriptor, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return join


def _follow(process: subprocess.Popen[bytes], seconds: float, log: Log) -> tuple[bool, str]:
    """Wait for a command, pass on what it says, and return whether it ended by itself and its last line.

    What it leaves behind may hold its output open: its own end counts. Whatever ends the waiting ends the command: half
    of it, finished at some later time, could end the daemon that somebody else has started meanwhile.
    """
    try:
        return _wait(process, seconds, log)
    except BaseException:
        if process.poll() is None:
            _kill(process)
        raise


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(process: subprocess.Popen[bytes], seconds: float, log: Log) -> tuple[bool, str]:
    deadline = time.monotonic() + seconds
    output = process.stdout
    tail = b""
    ended = False
    with selectors.DefaultSelector() as selector:
        if output is not None:
            os.set_blocking(output.fileno(), False)
            selector.register(output, selectors.EVENT_READ)
        while True:
            ended = process.poll() is not None
            if selector.get_map():
                for _ in selector.select(0 if ended else 0.05):
                    data = os.read(output.fileno(), 65536) if output is not None else b""
                    if data:
                        tail = (tail + data)[-_TAIL_BYTES:]
                        _pass_on(data, log)
                    elif output is not None:
                        selector.unregister(output)
            elif not ended:
                time.sleep(0.02)
            if ended:
                break
            if time.monotonic() > deadline:
                _kill(process)
                break
    if output is not None:
        output.close()
    lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return ended, "".join(character if character.isprintable() else " " for character in last)[-_SHOWN:]


def _pass_on(data: bytes, log: Log) -> None:
    for line in data.decode(errors="replace").splitlines():
        if line.strip():
            log("| " + "".join(character if character.isprintable() else " " for character in line))
