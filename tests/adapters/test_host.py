"""The installer on the node itself, as a process with real files, real daemons and real signals."""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.nodeside import PLATFORM, Node, end, publish, wait_for
from adapters.realservers import RealHttpServer, RealRegistry, free_port, sha256_of
from adapters.signing import MakeSigner
from outrider.node.config import ConfigError
from outrider.node.files import RECORD
from outrider.node.host import BACK, FORWARD
from outrider.node.hostconfig import read_host_config

GOOD, LATER, BROKEN, STUCK, ODD = "1.0.0", "1.1.0", "2.0.0", "2.0.1", "3.0.0"
"""Versions of a daemon: two that work, one that ends at once, one that runs and never works, one that cannot start."""

DAEMON = """\
#!/bin/sh
# version {version}
run=$1
{body}
"""
WORKS = 'echo {version} > "$run/serving"\nexec sleep 3600'
BODIES = {GOOD: WORKS, LATER: WORKS, BROKEN: "exit 7", STUCK: "exec sleep 3600", ODD: "exit 1"}
FILES = {
    version: DAEMON.format(version=version, body=body.format(version=version)).encode()
    for version, body in BODIES.items()
}

ACTIVATE = """\
#!/bin/sh
# Ends the daemon that runs and starts what is current, as somebody without an init system would.
run=$1 home=$2
echo "$OUTRIDER_VERSION" >> "$run/activations"
if [ -f "$run/pid" ]; then kill "$(cat "$run/pid")" 2> /dev/null; fi
rm -f "$run/serving"
if grep -q 'version 3.0.0' "$home/current/node-agent-bin"; then echo "cannot start this"; exit 5; fi
setsid "$home/current/node-agent-bin" "$run" > /dev/null 2>&1 &
echo $! > "$run/pid"
"""
HEALTH = """\
#!/bin/sh
run=$1
kill -0 "$(cat "$run/pid")" && cat "$run/serving"
"""

KILLED_AT = """
import os, signal, sys
from outrider.node.host import install
from outrider.node.hostconfig import read_host_config
from outrider.node.files import LocalError

def step(name):
    print("step", name, file=sys.stderr, flush=True)
    if name == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)

try:
    install(read_host_config(os.environ), lambda line: None, machine=os.uname().machine, step=step)
except LocalError as error:
    sys.exit(4)
"""

KILLED_AT_CALL = """
import os, signal, sys
import outrider.node.host, outrider.node.hostprogram
left = int(sys.argv[1])
CALLS = ("open", "os.rename", "os.mkdir", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "os.listdir",
         "subprocess.Popen", "fcntl.flock")

me = os.getpid()

def hook(event, arguments):
    global left
    if event in CALLS and os.getpid() == me:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
code = outrider.node.hostprogram.run(["install"], os.environ)
print("calls left", left, file=sys.stderr)
sys.exit(code)
"""


class Machine:
    """A node with a daemon's folder, and pods that install there."""

    def __init__(self, folder: Path, artifacts: dict[str, Node]) -> None:
        self.root = folder / "opt"
        self.home = self.root / "node-daemon"
        self.run_dir = folder / "run"
        self.termination = folder / "termination-log"
        self._artifacts = artifacts
        self.root.mkdir()
        self.run_dir.mkdir()
        self.termination.touch()
        for name, text in (("activate", ACTIVATE), ("health", HEALTH)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.activate: dict[str, Any] | None = {
            "command": [str(folder / "activate"), str(self.run_dir), str(self.home)]
        }
        self.health: dict[str, Any] | None = {
            "timeoutSeconds": 2,
            "command": [str(folder / "health"), str(self.run_dir)],
        }
        self.changes: dict[str, str] = {"OUTRIDER_HOST_NAMESPACES": "none"}

    def environment(self, version: str, pod: str) -> dict[str, str]:
        artifact = self._artifacts[version]
        return {
            **artifact.environment,
            "OUTRIDER_NAMESPACE": "fleet",
            "OUTRIDER_HOST_ROOT": str(self.root),
            "OUTRIDER_HOST_ROOT_ON_NODE": str(self.root),
            "OUTRIDER_HOST_PATH": "node-daemon",
            "OUTRIDER_ACTIVATE": json.dumps(self.activate) if self.activate else "",
            "OUTRIDER_HEALTH": json.dumps(self.health) if self.health else "",
            "OUTRIDER_POD_UID": pod,
            "OUTRIDER_TERMINATION_LOG": str(self.termination),
            **self.changes,
        }

    def start(self, version: str, *command: str, pod: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command or [sys.executable, "-m", "outrider.node.hostprogram", "install"],
            env=self.environment(version, pod),
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def install(self, version: str, *command: str, pod: str = "") -> tuple[int, str]:
        """Run the installer of a version's pod to its end; return the exit code and the log."""
        process = self.start(version, *command, pod=pod or f"pod-of-{version}")
        try:
            _, log = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        return process.returncode, log

    def check(self, version: str) -> tuple[int, str]:
        return self.install(version, sys.executable, "-m", "outrider.node.hostprogram", "check")

    def die_at(self, version: str, step: str) -> bool:
        """Run the installer and kill it before a step; say whether it came to that."""
        return self.install(version, sys.executable, "-c", KILLED_AT, step)[0] == -signal.SIGKILL

    @property
    def current(self) -> str:
        link = self.home / "current"
        return link.readlink().name if link.is_symlink() else ""

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in (self.home / "versions").iterdir())

    @property
    def activations(self) -> list[str]:
        file = self.run_dir / "activations"
        return file.read_text().split() if file.exists() else []

    @property
    def serves(self) -> str:
        """The version that the daemon which runs says it is, "" if none works."""
        pid, serving = self.run_dir / "pid", self.run_dir / "serving"
        if not pid.exists() or not serving.exists():
            return ""
        try:
            os.kill(int(pid.read_text()), 0)
        except ProcessLookupError:
            return ""
        return serving.read_text().strip()

    def works(self, version: str) -> None:
        """The daemon of this version runs, is what is current, and its file is what was published."""
        assert self.serves == version
        assert self.current == name_of(version)
        self.is_sound()

    def is_sound(self) -> None:
        """What is current, if anything, is complete; nothing lies about that was not finished."""
        if self.current:
            version = self.current.rpartition("-")[0]
            file = self.home / "current" / "node-agent-bin"
            assert file.read_bytes() == FILES[version]
            assert stat.S_IMODE(file.stat().st_mode) == 0o555

    def end(self) -> None:
        pid = self.run_dir / "pid"
        if pid.exists():
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(pid.read_text()), signal.SIGKILL)


def name_of(version: str) -> str:
    return f"{version}-{sha256_of(FILES[version])[:8]}"


@pytest.fixture(scope="module")
def artifacts(
    tmp_path_factory: pytest.TempPathFactory, shared_registry: RealRegistry, make_signer: MakeSigner
) -> dict[str, Node]:
    """What outrider-fetch has put into the pods of each version."""
    signer = make_signer()
    found = {}
    for version, data in FILES.items():
        index = publish(shared_registry, signer, version=version, data=data)
        node = Node(tmp_path_factory.mktemp(version), shared_registry, index, signer)
        node.environment["OUTRIDER_VERSION"] = version
        node.environment["OUTRIDER_DIGESTS"] = json.dumps({PLATFORM: sha256_of(data)})
        code, log = node.run()
        assert code == 0, log
        found[version] = node
    return found


@pytest.fixture
def machine(tmp_path: Path, artifacts: dict[str, Node]) -> Iterator[Machine]:
    machine = Machine(tmp_path, artifacts)
    yield machine
    machine.end()


@pytest.fixture
def running(machine: Machine) -> Machine:
    """A node on which the first version works."""
    code, log = machine.install(GOOD)
    assert code == 0, log
    machine.works(GOOD)
    return machine


def test_a_first_version_is_installed_activated_and_current(running: Machine) -> None:
    assert running.names == [name_of(GOOD)]
    assert sorted(path.name for path in (running.home / "versions" / name_of(GOOD)).iterdir()) == [
        RECORD,
        "node-agent-bin",
    ]
    assert (running.home / "current").readlink() == Path("versions", name_of(GOOD))
    assert running.termination.read_text() == ""
    assert running.activations == [GOOD]
    assert running.check(GOOD)[0] == 0


def test_the_next_version_replaces_it_and_the_one_before_stays(running: Machine) -> None:
    code, log = running.install(LATER)
    assert code == 0, log
    running.works(LATER)
    assert running.names == [name_of(GOOD), name_of(LATER)]
    assert running.check(LATER)[0] == 0
    code, log = running.check(GOOD)
    assert code == 4
    assert f"{name_of(LATER)} is current, and not {GOOD}" in log


def test_no_more_versions_are_kept_than_asked_for(running: Machine) -> None:
    running.changes["OUTRIDER_KEEP"] = "1"
    foreign = running.home / "versions" / "mine-12345678"
    foreign.mkdir()
    assert running.install(LATER)[0] == 0
    assert running.names == sorted([name_of(LATER), foreign.name])  # what is not ours stays


def test_a_pod_that_starts_again_leaves_a_daemon_that_works_alone(running: Machine) -> None:
    for pod in ("pod-of-1.0.0", "another"):
        code, log = running.install(GOOD, pod=pod)
        assert code == 0
        assert "is current and works; nothing is changed" in log
    assert running.activations == [GOOD]


def test_a_daemon_that_has_died_is_activated_again(running: Machine) -> None:
    running.end()
    wait_for(lambda: running.serves == "")
    assert running.check(GOOD)[0] == 4
    assert running.install(GOOD)[0] == 0
    running.works(GOOD)
    assert running.activations == [GOOD, GOOD]


def test_another_activation_is_done(running: Machine) -> None:
    assert running.activate is not None
    running.activate["command"].append("more")
    assert running.install(GOOD, pod="another")[0] == 0
    assert running.activations == [GOOD, GOOD]


def test_a_node_that_was_started_anew_activates_again_though_nothing_tells_what_runs(machine: Machine) -> None:
    machine.health = None
    for expected in (1, 1):
        assert machine.install(GOOD)[0] == 0
        assert len(machine.activations) == expected
    state = machine.home / ".outrider/state.json"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    state.write_text(state.read_text().replace(boot, "another boot"))
    assert machine.install(GOOD)[0] == 0
    assert len(machine.activations) == 2


# What does not work goes back by itself


@pytest.mark.parametrize(
    ("version", "reason", "text"),
    [
        (BROKEN, "HealthFailed", "not healthy within 2 s: "),
        (STUCK, "HealthFailed", "not healthy within 2 s: "),
        (ODD, "ActivationFailed", "ended with exit code 5: cannot start this"),
    ],
)
def test_what_does_not_work_is_taken_back_and_not_tried_again_in_the_same_pod(
    running: Machine, version: str, reason: str, text: str
) -> None:
    code, log = running.install(version)
    assert code == 4, log
    told = running.termination.read_text()
    assert told.startswith(f"{reason}: ")
    assert text in told
    assert told.endswith(f"the node is back on {GOOD}, which works")
    running.works(GOOD)
    assert running.names == [name_of(GOOD)]
    assert running.activations == [GOOD, version, GOOD]

    # Its container is started again, and again.
    running.termination.write_text("")
    for _ in range(2):
        assert running.install(version)[0] == 4
        assert running.termination.read_text() == told
    assert running.activations == [GOOD, version, GOOD]
    running.works(GOOD)

    # The operator sends what was before: it runs already.
    assert running.install(GOOD, pod="the way back")[0] == 0
    running.works(GOOD)
    assert running.install(version, pod="somebody wants it again")[0] == 4
    running.works(GOOD)


@pytest.mark.parametrize("killed", [False, True])
def test_the_way_back_is_gone_with_what_worked_before(running: Machine, killed: bool) -> None:
    """The new revision's command and check know nothing of the old version: they belong to what has failed."""
    activate, health = running.activate, running.health
    running.activate = {"command": ["/bin/sh", "-c", f"echo new-$OUTRIDER_VERSION >> {running.run_dir}/activations"]}
    running.health = {"timeoutSeconds": 1, "command": ["/bin/false"]}
    if killed:
        assert running.die_at(LATER, "switch back")
    assert running.install(LATER)[0] == 4
    told = running.termination.read_text()
    assert told.startswith("HealthFailed: not healthy within 1 s: /bin/false ended with exit code 1")
    assert told.endswith(f"the node is back on {GOOD}, which works")
    assert running.activations == [GOOD, f"new-{LATER}", GOOD]
    running.works(GOOD)
    # And so its own revision finds it as it has left it.
    running.activate, running.health = activate, health
    assert "nothing is changed" in running.install(GOOD, pod="the way back")[1]


def test_a_check_that_was_changed_alone_is_that_of_the_way_back(running: Machine, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    health = running.health
    running.health = {"timeoutSeconds": 2, "command": ["/usr/bin/touch", str(asked)]}
    assert "nothing is changed" in running.install(GOOD, pod="another")[1]
    asked.unlink()
    running.health = health
    assert running.install(BROKEN)[0] == 4
    assert asked.exists()


def test_a_journal_from_before_goes_back_with_what_there_is(running: Machine) -> None:
    state = running.home / ".outrider/state.json"
    value = json.loads(state.read_text())
    for name in ("care", "activations", "waits"):
        del value[name]
    state.write_text(json.dumps(value))
    assert running.install(BROKEN)[0] == 4
    assert running.activations == [GOOD, BROKEN, GOOD]
    running.works(GOOD)


def test_a_first_version_that_does_not_work_leaves_none(machine: Machine) -> None:
    assert machine.install(BROKEN)[0] == 4
    assert machine.termination.read_text().endswith("no version worked on this node before, so none is current now")
    assert machine.current == ""
    assert machine.names == []
    assert machine.install(GOOD)[0] == 0
    machine.works(GOOD)


def test_what_worked_before_and_does_not_any_more_is_said(running: Machine) -> None:
    """Both fail: the node is on the old one, and nobody is told that all is well."""
    (running.root.parent / "health").write_text("#!/bin/sh\necho ill\nexit 1\n")
    assert running.install(LATER)[0] == 4
    told = running.termination.read_text()
    assert f"the node is back on {GOOD}, which does not work either (not healthy within 2 s: /" in told
    assert told.endswith("ended with exit code 1: ill)")
    assert running.current == name_of(GOOD)


def test_a_version_that_worked_and_fails_later_stays_and_is_tried_again(running: Machine) -> None:
    assert running.health is not None
    command = running.health["command"]
    running.health["command"] = ["/bin/false"]
    running.end()
    for _ in range(2):
        assert running.install(GOOD)[0] == 4
        assert "worked on this node before and stays current" in running.termination.read_text()
        assert running.current == name_of(GOOD)
    running.health["command"] = command
    assert running.install(GOOD)[0] == 0
    running.works(GOOD)


def test_a_slow_daemon_that_worked_is_waited_for_and_not_restarted(running: Machine, tmp_path: Path) -> None:
    assert running.health is not None
    healthy = tmp_path / "healthy"
    running.health = {"timeoutSeconds": 1, "command": ["/usr/bin/test", "-e", str(healthy)]}
    activations = [GOOD]
    # Activated, and waited for; then activated again, and waited for twice.
    for kind in ("activated", "waited", "activated", "waited", "waited", "activated"):
        if kind == "activated":
            activations.append(GOOD)
        assert running.install(GOOD)[0] == 4
        assert "worked on this node before and stays current" in running.termination.read_text()
        assert running.activations == activations
    healthy.touch()
    for pod in ("", "another"):
        assert running.install(GOOD, pod=pod)[0] == 0
        assert running.activations == activations
    # That is over: one that has died then is activated at once.
    healthy.unlink()
    assert running.install(GOOD)[0] == 4
    assert running.activations == [*activations, GOOD]


def test_a_slow_daemon_is_not_restarted_after_the_way_back(running: Machine, tmp_path: Path) -> None:
    healthy = tmp_path / "healthy"
    (tmp_path / "health").write_text(f"#!/bin/sh\ntest -e {healthy}\n")
    assert running.install(LATER)[0] == 4
    assert "which does not work either" in running.termination.read_text()
    activations = running.activations
    healthy.touch()
    assert running.install(GOOD, pod="the way back")[0] == 0
    assert running.activations == activations
    running.works(GOOD)


def test_it_never_goes_back_to_what_is_damaged(running: Machine) -> None:
    file = running.home / "versions" / name_of(GOOD) / "node-agent-bin"
    file.chmod(0o755)
    file.write_bytes(b"#!/bin/sh\n# somebody was here\n")
    file.chmod(0o555)
    assert running.check(GOOD)[0] == 0  # that is asked of the daemon; see the next test
    assert running.install(BROKEN)[0] == 4
    assert f"{GOOD}, which worked before, is damaged on this node's disk" in running.termination.read_text()
    assert running.current == name_of(BROKEN)
    # And what is damaged is mended by the next pod that brings it.
    assert running.install(GOOD, pod="mends it")[0] == 0
    running.works(GOOD)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("how", ["bytes", "gone"])
def test_what_runs_from_foreign_bytes_is_replaced_when_they_are(running: Machine, killed: bool, how: str) -> None:
    folder = running.home / "versions" / name_of(GOOD)
    file = folder / "node-agent-bin"
    if how == "bytes":
        file.chmod(0o755)
        file.write_bytes(FILES[GOOD] + b"# somebody was here\n")
        file.chmod(0o555)
    else:
        shutil.rmtree(folder)
    if killed:  # mended, and not activated yet
        assert running.die_at(GOOD, "note the attempt")
    code, log = running.install(GOOD)
    assert code == 0, log
    assert running.activations == [GOOD, GOOD]
    running.works(GOOD)
    assert "nothing is changed" in running.install(GOOD)[1]


def test_the_watcher_tells_when_a_file_is_not_what_was_verified(running: Machine) -> None:
    assert running.health is not None
    running.health["periodSeconds"] = 1
    process = running.start(GOOD, sys.executable, "-m", "outrider.node.hostprogram", "watch", pod="pod-of-1.0.0")
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == f"outrider-host: node-agent {GOOD} is current on this node\n"
        file = running.home / "versions" / name_of(GOOD) / "node-agent-bin"
        file.chmod(0o755)
        file.write_bytes(b"#!/bin/sh\n")
        file.chmod(0o555)
        assert "is not what was verified: its file has changed" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 143
    finally:
        end(process)


def test_a_command_that_never_ends_is_killed_and_counts_as_failed(running: Machine) -> None:
    running.activate = {"command": ["/bin/sh", "-c", "echo begun; sleep 3600"]}
    started = time.monotonic()
    assert running.install(LATER)[0] == 4
    assert time.monotonic() - started < 20
    told = running.termination.read_text()
    assert told.startswith("ActivationFailed: /bin/sh has not ended within 2 s and was killed: begun")


def test_a_command_that_leaves_something_running_does_not_hold_it_up(machine: Machine, tmp_path: Path) -> None:
    """Which keeps the output open."""
    pid = tmp_path / "left"
    machine.activate = {"command": ["/bin/sh", "-c", f"setsid sleep 60 & echo $! > {pid}"]}
    machine.health = None
    started = time.monotonic()
    try:
        assert machine.install(GOOD)[0] == 0
        assert time.monotonic() - started < 10
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_program_that_is_not_there(machine: Machine) -> None:
    machine.activate = {"command": ["/no/such/program"]}
    assert machine.install(GOOD)[0] == 4
    assert "/no/such/program cannot be run on the node: no such file or directory" in machine.termination.read_text()


def test_without_activation_and_check_only_the_link_is_switched(machine: Machine) -> None:
    machine.activate = machine.health = None
    for version in (GOOD, LATER, BROKEN):
        assert machine.install(version)[0] == 0
        assert machine.current == name_of(version)
    assert machine.activations == []


def test_an_http_check(running: Machine, web: RealHttpServer) -> None:
    web.serve("/healthz", b"ok")
    web.serve("/broken", b"no", status=503)
    running.health = {"timeoutSeconds": 1, "http": {"port": web.port, "path": "/healthz"}}
    code, log = running.install(LATER)
    assert code == 0, log
    for path, port, text in (
        ("/broken", web.port, "was answered 503"),
        ("/", free_port(), "connection refused"),
    ):
        running.health = {"timeoutSeconds": 1, "http": {"port": port, "path": path}}
        assert running.install(GOOD, pod=path)[0] == 4
        assert text in running.termination.read_text()
        assert running.current == name_of(LATER)


# Killed


@pytest.mark.parametrize("step", FORWARD)
@pytest.mark.parametrize("then", ["again", "another"])
def test_killed_at_any_step_forward_the_next_start_ends_in_a_working_daemon(
    running: Machine, step: str, then: str
) -> None:
    assert running.die_at(LATER, step)
    running.is_sound()
    if then == "again":  # the kubelet starts the container again
        code, log = running.install(LATER)
        assert code == 0, log
        running.works(LATER)
    else:  # the operator has changed its mind meanwhile
        code, log = running.install(GOOD, pod="the way back")
        assert code == 0, log
        running.works(GOOD)


@pytest.mark.parametrize("step", [*FORWARD[: FORWARD.index("watch")], *BACK])
@pytest.mark.parametrize("then", ["again", "another"])
def test_killed_at_any_step_of_what_fails_the_next_start_ends_in_a_working_daemon(
    running: Machine, step: str, then: str
) -> None:
    assert running.die_at(ODD, step)
    running.is_sound()
    if then == "again":
        code, log = running.install(ODD)
        assert code == 4, log
        assert running.termination.read_text().startswith("ActivationFailed: ")
    else:
        code, log = running.install(GOOD, pod="the way back")
        assert code == 0, log
    running.works(GOOD)
    assert running.names == [name_of(GOOD)]


def test_killed_at_every_call_it_ends_in_a_working_daemon(running: Machine) -> None:
    """Every file that is opened, made, renamed or removed, every lock and every process: killed before each."""
    number = 0
    while True:
        number += 1
        code, log = running.install(LATER, sys.executable, "-c", KILLED_AT_CALL, str(number), pod=f"pod-{number}")
        running.is_sound()
        if code != -signal.SIGKILL:
            assert code == 0, log
            break
        if number % 3 == 0:  # and each time once more, as it is restarted
            running.install(LATER, sys.executable, "-c", KILLED_AT_CALL, str(number), pod=f"pod-{number}")
            running.is_sound()
        code, log = running.install(LATER, pod=f"pod-{number}")
        assert code == 0, log
        running.works(LATER)
        code, log = running.install(GOOD, pod=f"back-{number}")
        assert code == 0, log
        running.works(GOOD)
    assert number > 20
    assert set(running.names) == {name_of(GOOD), name_of(LATER)}
    assert list((running.home / ".outrider/incoming").iterdir()) == []


SLOW_ACTIVATE = """\
#!/bin/sh
# Ends the daemon, but only after a while, and in a process of its own: as a script does that calls others.
echo "$OUTRIDER_VERSION" >> {run}/activations
/bin/sh -c 'touch {run}/begun; sleep 2; kill "$(cat {run}/pid)"; touch {run}/late; echo'
exec {folder}/activate {run} {home}
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("what", ["activation", "health"])
def test_a_command_does_not_outlive_its_installer(
    running: Machine, tmp_path: Path, how: signal.Signals, what: str
) -> None:
    """The next pod's daemon would be ended by what the one before has not finished."""
    slow = tmp_path / "slow"
    slow.write_text(SLOW_ACTIVATE.format(run=running.run_dir, home=running.home, folder=tmp_path))
    slow.chmod(0o755)
    activate, health = running.activate, running.health
    command = {"command": [str(slow)]}
    if what == "activation":
        running.activate, running.health = command, {"timeoutSeconds": 30}
    else:
        running.health = {"timeoutSeconds": 30, **command}
    process = running.start(LATER, pod="that is ended")
    try:
        wait_for((running.run_dir / "begun").exists)
        process.send_signal(how)
        process.wait(10)
    finally:
        end(process)
    running.activate, running.health = activate, health
    code, log = running.install(GOOD, pod="the way back")
    assert code == 0, log
    assert ("what is left of that" in log) == (how == signal.SIGKILL)
    running.works(GOOD)
    time.sleep(2.5)  # nothing tells that something does not happen
    assert not (running.run_dir / "late").exists()
    running.works(GOOD)


def test_a_daemon_that_a_finished_command_has_started_outlives_its_installer(machine: Machine, tmp_path: Path) -> None:
    """Even one that has stayed in the command's process group: it was seen to end."""
    assert machine.activate is not None
    daemon = tmp_path / "daemon"
    machine.activate = {"command": ["/bin/sh", "-c", f"sleep 600 > /dev/null 2>&1 & echo $! > {daemon}"]}
    machine.health = {"timeoutSeconds": 60, "command": ["/bin/sh", "-c", f"sleep 60 & touch {tmp_path}/asked; wait"]}
    process = machine.start(GOOD, pod="that is killed")
    try:
        wait_for((tmp_path / "asked").exists)
        process.kill()
        process.wait()
        machine.activate, machine.health = {"command": ["/bin/true"]}, None
        code, log = machine.install(GOOD)
        assert code == 0, log
        assert "is killed" in log  # the sleep of the check
        os.kill(int(daemon.read_text()), 0)
    finally:
        end(process)
        if daemon.exists():
            os.kill(int(daemon.read_text()), signal.SIGKILL)


def test_a_group_whose_number_was_given_to_somebody_else_is_left_alone(running: Machine) -> None:
    innocent = subprocess.Popen(["/bin/sleep", "60"], start_new_session=True, env={"OUTRIDER_PATH": str(running.home)})
    stranger = subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = running.home / ".outrider/running"
    try:
        for process, started in ((innocent, "1"), (stranger, stat_field(stranger.pid)), (innocent, "no json")):
            text = json.dumps({"group": process.pid, "started": started, "boot": boot})
            note.write_text(text if started != "no json" else "{")
            assert running.install(GOOD)[0] == 0
            assert process.poll() is None
            assert not note.exists()
        note.write_text(json.dumps({"group": innocent.pid, "started": stat_field(innocent.pid), "boot": boot}))
        assert running.install(GOOD)[0] == 0
        assert innocent.wait(5) == -signal.SIGKILL
    finally:
        for process in (innocent, stranger):
            process.kill()
            process.wait()


def test_two_pods_install_one_after_the_other(machine: Machine) -> None:
    versions = (GOOD, LATER) * 3
    processes = [machine.start(version, pod=f"{version}-{number}") for number, version in enumerate(versions)]
    try:
        for process in processes:
            _, log = process.communicate(timeout=60)
            assert process.returncode == 0, log
    finally:
        for process in processes:
            end(process)
    assert machine.serves in {GOOD, LATER}
    machine.works(machine.serves)


@pytest.mark.parametrize("how", ["lost", "garbage", "names that lead elsewhere", "a folder"])
def test_without_a_journal_what_is_current_and_intact_counts_as_what_worked(running: Machine, how: str) -> None:
    state = running.home / ".outrider/state.json"
    text = json.loads(state.read_text())
    match how:
        case "lost":
            state.unlink()
        case "garbage":
            state.write_bytes(b"\x00\x01")
        case "names that lead elsewhere":
            text["good"]["name"] = "../../../elsewhere"
            state.write_text(json.dumps(text))
        case _:
            shutil.copy(state, running.home / "aside")
            state.unlink()
            state.mkdir()
    code, log = running.install(BROKEN)
    assert code == 4
    assert f"WARNING: the journal is lost or cannot be read; {GOOD} is current and intact" in log
    if how == "a folder":  # no journal can be written, and so nothing is done
        assert running.termination.read_text().startswith("NodeStorage: ")
        assert running.activations == [GOOD]
    else:
        assert running.termination.read_text().endswith(f"the node is back on {GOOD}, which works")
    running.works(GOOD)


def test_without_a_journal_what_is_current_and_damaged_counts_for_nothing(running: Machine) -> None:
    (running.home / ".outrider/state.json").unlink()
    file = running.home / "versions" / name_of(GOOD) / "node-agent-bin"
    file.chmod(0o755)
    file.write_bytes(b"#!/bin/sh\n")
    file.chmod(0o555)
    code, log = running.install(BROKEN)
    assert code == 4
    assert "WARNING: the journal is lost or cannot be read; nothing worked before" in log
    assert running.termination.read_text().endswith("none is current now")


def test_without_a_journal_another_component_s_folder_is_still_refused(running: Machine) -> None:
    state = running.home / ".outrider/state.json"
    state.unlink()
    running.changes["OUTRIDER_COMPONENT"] = "another"
    record = running.home.parent / "target"
    shutil.copytree(Path(running.environment(LATER, "pod")["OUTRIDER_TARGET_DIR"]), record)
    text = json.loads((record / RECORD).read_text())
    (record / RECORD).write_text(json.dumps({**text, "component": "another"}))
    running.changes["OUTRIDER_TARGET_DIR"] = str(record)
    assert running.install(LATER)[0] == 4
    told = running.termination.read_text()
    assert told.startswith("PathOccupied: ")
    assert "belongs to the component fleet/node-agent" in told
    running.works(GOOD)


def test_a_journal_that_the_disk_does_not_give_out_ends_it(running: Machine) -> None:
    state = running.home / ".outrider/state.json"
    # Its first page is never there: reading it is an input/output error.
    command = ["mount", "--bind", f"/proc/{os.getpid()}/mem", str(state)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting needs root")
    try:
        assert running.install(BROKEN)[0] == 4
        assert running.termination.read_text().startswith(f"NodeStorage: this node cannot read {state}: input/output")
        assert running.activations == [GOOD]
    finally:
        subprocess.run(["umount", str(state)], check=True)
    running.works(GOOD)


# What stands in the way


@pytest.mark.parametrize("kind", ["folder", "file", "/usr/bin", "versions/../../../etc"])
def test_a_current_that_is_not_ours_is_left_as_it_is(machine: Machine, kind: str) -> None:
    machine.home.mkdir()
    path = machine.home / "current"
    match kind:
        case "folder":
            path.mkdir()
        case "file":
            path.write_text("mine")
        case _:
            path.symlink_to(kind)
    before = path.lstat().st_ino
    assert machine.install(GOOD)[0] == 4
    assert machine.termination.read_text().startswith(f"PathOccupied: {path} was not made by Outrider; move away")
    assert path.lstat().st_ino == before
    assert list(machine.home.iterdir()) == [path]
    assert machine.activations == []


@pytest.mark.parametrize("name", ["", "versions", ".outrider", f"versions/{name_of(GOOD)}"])
@pytest.mark.parametrize("kind", ["link", "file", "pipe"])
def test_links_and_files_in_the_way_are_refused(machine: Machine, tmp_path: Path, name: str, kind: str) -> None:
    trap = machine.home / name
    trap.parent.mkdir(parents=True, exist_ok=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    match kind:
        case "link":
            trap.symlink_to(elsewhere)
        case "file":
            trap.write_text("mine")
        case _:
            os.mkfifo(trap)
    assert machine.install(GOOD)[0] == 4
    reason = "PathUnsafe" if kind == "link" else "PathOccupied"
    assert machine.termination.read_text().startswith(f"{reason}: {trap} is ")
    assert list(elsewhere.iterdir()) == []
    assert machine.activations == []


@pytest.mark.parametrize("name", ["lock", "state.json", "incoming"])
def test_links_among_its_own_files_are_not_followed(machine: Machine, tmp_path: Path, name: str) -> None:
    private = machine.home / ".outrider"
    private.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (private / name).symlink_to(victim)
    machine.install(GOOD)
    assert victim.read_text() == "precious"
    assert not (private / "state.json").is_symlink() or name != "state.json"


@pytest.mark.parametrize("how", ["0777", "0775", "other owner"])
def test_a_folder_that_others_may_write_to_is_refused(machine: Machine, how: str) -> None:
    machine.home.mkdir()
    if how == "other owner":
        if os.geteuid() != 0:
            pytest.skip("giving a folder away needs root")
        os.chown(machine.home, 1234, 1234)
    else:
        machine.home.chmod(int(how, 8))
    assert machine.install(GOOD)[0] == 4
    assert machine.termination.read_text().startswith(f"PathUnsafe: {machine.home} belongs to user ")
    assert "chown it to root and chmod it to 0755" in machine.termination.read_text()


@pytest.mark.parametrize("how", ["owner of the folder", "mode of the folder", "owner of the file", "another name"])
def test_it_does_not_go_back_to_what_others_could_change(running: Machine, tmp_path: Path, how: str) -> None:
    folder = running.home / "versions" / name_of(GOOD)
    file = folder / "node-agent-bin"
    if how.startswith("owner") and os.geteuid() != 0:
        pytest.skip("giving something away needs root")
    match how:
        case "owner of the folder":
            os.chown(folder, 1234, 1234)
        case "mode of the folder":
            folder.chmod(0o777)
        case "owner of the file":
            os.chown(file, 1234, 1234)
        case _:
            (tmp_path / "another").hardlink_to(file)
    assert running.install(BROKEN)[0] == 4
    assert f"{GOOD}, which worked before, is damaged on this node's disk" in running.termination.read_text()
    code, log = running.install(GOOD, pod="the way back")
    if how.endswith("folder"):
        assert code == 4
        assert running.termination.read_text().startswith(f"PathUnsafe: {folder} belongs to user ")
    else:
        assert code == 0, log
        assert (file.stat().st_uid, file.stat().st_nlink) == (os.geteuid(), 1)
        running.works(GOOD)


def test_the_folder_of_another_component_is_refused(running: Machine) -> None:
    running.changes["OUTRIDER_NAMESPACE"] = "other"
    assert running.install(GOOD, pod="of another")[0] == 4
    assert "belongs to the component fleet/node-agent; choose another path" in running.termination.read_text()
    running.works(GOOD)


# What is not verified


@pytest.mark.parametrize("how", ["bytes", "other record", "other hash", "no record", "no file"])
def test_what_is_not_what_was_verified_is_refused(
    running: Machine, artifacts: dict[str, Node], tmp_path: Path, how: str
) -> None:
    target = tmp_path / "target"
    shutil.copytree(artifacts[LATER].target, target)
    running.changes["OUTRIDER_TARGET_DIR"] = str(target)
    file = target / "node-agent-bin"
    match how:
        case "bytes":
            file.chmod(0o755)
            file.write_bytes(FILES[LATER] + b"# more\n")
        case "other record":
            shutil.copy(artifacts[GOOD].target / RECORD, target / RECORD)
        case "other hash":
            record = json.loads((target / RECORD).read_text())
            (target / RECORD).write_text(json.dumps({**record, "sha256": "0" * 64}))
        case "no record":
            (target / RECORD).unlink()
        case _:
            file.unlink()
    code, _ = running.install(LATER)
    assert code == (3 if how == "bytes" else 4)
    reason = "DigestMismatch: " if how == "bytes" else "ArtifactMissing: "
    assert running.termination.read_text().startswith(reason)
    running.works(GOOD)
    assert running.names == [name_of(GOOD)]


def test_a_key_that_was_removed_is_told_and_holds_nothing_up(running: Machine, tmp_path: Path) -> None:
    keys = tmp_path / "no-keys"
    keys.mkdir()
    running.changes["OUTRIDER_KEYS_DIR"] = str(keys)
    code, log = running.install(LATER)
    assert code == 0
    assert "WARNING: there is no trusted key for component node-agent" in log
    running.works(LATER)


# Disks


@pytest.mark.parametrize(("options", "reason"), [("size=64k,nr_inodes=9", "NoSpace"), ("size=16k", "NoSpace")])
def test_a_disk_that_is_full_changes_nothing(running: Machine, options: str, reason: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(running.root)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting needs root")
    try:
        fill = running.root / "fill"
        fill.write_bytes(bytes(8 * 1024))
        running.root.chmod(0o755)
        assert running.install(LATER)[0] == 4
        assert running.termination.read_text().startswith(f"{reason}: ")
        assert running.current == ""
        assert running.activations == [GOOD]
    finally:
        subprocess.run(["umount", str(running.root)], check=True)
    running.works(GOOD)


def test_a_host_path_that_is_read_only_changes_nothing(running: Machine) -> None:
    path = str(running.root)
    if subprocess.run(["mount", "--bind", path, path], check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting needs root")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
        assert running.install(LATER)[0] == 4
        told = running.termination.read_text()
        assert told.startswith("NodeStorage: ")
        assert "read-only file system" in told
        running.works(GOOD)
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_root_that_is_not_there(machine: Machine) -> None:
    machine.root.rmdir()
    assert machine.install(GOOD)[0] == 4
    assert machine.termination.read_text().startswith(
        f"NodeStorage: this node cannot open {machine.root}: no such file"
    )


# The node's own namespaces


RIGHTS = "--bounding-set=-all,+chown,+fowner,+dac_override,+sys_admin,+sys_chroot,+sys_ptrace"
"""What the container gets."""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[int]:
    """A process in namespaces of its own, in which a folder has something that is to be seen only there."""
    ready = tmp_path / "ready"
    script = f"mount -t tmpfs tmpfs /mnt && touch /mnt/on-the-node && ip link set lo up; touch {ready}; exec sleep 600"
    command = ["unshare", "--mount", "--net", "--uts", "--ipc", "--propagation", "private", "sh", "-c", script]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not ready.exists():
            if process.poll() is not None:
                pytest.skip("namespaces need root")
            time.sleep(0.02)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_it_activates_and_looks_in_the_node_s_namespaces_with_the_rights_it_is_given(
    machine: Machine, elsewhere: int, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    machine.changes["OUTRIDER_HOST_NAMESPACES"] = f"/proc/{elsewhere}/ns"
    script = f"for kind in mnt net uts ipc; do readlink /proc/self/ns/$kind; done > {seen}; test -e /mnt/on-the-node"
    machine.activate = {"command": ["/bin/sh", "-c", script]}
    machine.health = {"timeoutSeconds": 5, "command": ["/usr/bin/test", "-e", "/mnt/on-the-node"]}
    code, log = machine.install(
        GOOD, "setpriv", RIGHTS, "--no-new-privs", sys.executable, "-m", "outrider.node.hostprogram", "install"
    )
    assert code == 0, log
    expected = [os.readlink(f"/proc/{elsewhere}/ns/{kind}") for kind in ("mnt", "net", "uts", "ipc")]  # noqa: PTH115
    assert seen.read_text().split() == expected
    assert not Path("/mnt/on-the-node").exists()
    # Checked likewise, and here it would not be there.
    assert machine.check(GOOD)[0] == 0
    machine.changes["OUTRIDER_HOST_NAMESPACES"] = "none"
    assert machine.check(GOOD)[0] == 4


def test_a_port_is_asked_in_the_node_s_network(machine: Machine, elsewhere: int) -> None:
    server = textwrap.dedent("""
        import http.server, os, sys
        descriptor = os.open(f"/proc/{sys.argv[1]}/ns/net", os.O_RDONLY)
        import ctypes
        assert ctypes.CDLL(None).setns(descriptor, 0) == 0
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(204)
                self.end_headers()
        server = http.server.HTTPServer(("127.0.0.1", 8099), Handler)
        print("listening", flush=True)
        server.serve_forever()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", server, str(elsewhere)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "listening\n":
            pytest.skip("no network could be set up there")
        machine.activate = None
        machine.health = {"timeoutSeconds": 2, "http": {"port": 8099, "path": "/"}}
        assert machine.install(GOOD, pod="outside")[0] == 4
        machine.changes["OUTRIDER_HOST_NAMESPACES"] = f"/proc/{elsewhere}/ns"
        code, log = machine.install(GOOD)
        assert code == 0, log
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_without_the_rights_it_says_so(machine: Machine, elsewhere: int) -> None:
    machine.changes["OUTRIDER_HOST_NAMESPACES"] = f"/proc/{elsewhere}/ns"
    rights = "--bounding-set=-all,+chown,+fowner,+dac_override"
    code, _ = machine.install(
        GOOD, "setpriv", rights, "--no-new-privs", sys.executable, "-m", "outrider.node.hostprogram", "install"
    )
    assert code == 4
    assert "cannot be run on the node: " in machine.termination.read_text()
    assert machine.current == ""


# systemd, as far as it goes without one: the calls, in a namespace where `systemctl` is this script


SYSTEMCTL = """\
#!/bin/sh
echo "$@" >> {run}/calls
case $1 in
  restart) {activate} {run} {home} ;;
  is-active) if [ -f {run}/serving ]; then echo active; else echo failed; exit 3; fi ;;
  stop) kill "$(cat {run}/pid)"; rm -f {run}/serving ;;
esac
"""


def test_a_unit_is_restarted_asked_and_stopped(machine: Machine, tmp_path: Path) -> None:
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        pytest.skip("there is no systemctl that could be covered")
    script = tmp_path / "systemctl"
    script.write_text(SYSTEMCTL.format(run=machine.run_dir, home=machine.home, activate=tmp_path / "activate"))
    script.chmod(0o755)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    inside = f"mount --bind {script} {Path(systemctl).resolve()} && exec {sys.executable} -m outrider.node.hostprogram"
    if subprocess.run([*command, f"mount --bind {script} {script}"], check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting needs root")
    machine.activate, machine.health = {"systemdUnit": "node-daemon.service"}, {"timeoutSeconds": 1}
    code, log = machine.install(BROKEN, *command, f"{inside} install")
    assert code == 4, log
    told = machine.termination.read_text()
    assert told.startswith(
        "HealthFailed: not healthy within 1 s: systemctl is-active node-daemon.service ended with exit"
    )
    calls = machine.run_dir / "calls"
    assert calls.read_text().splitlines()[:2] == ["reset-failed node-daemon.service", "restart node-daemon.service"]
    assert calls.read_text().splitlines()[-1] == "stop node-daemon.service"
    assert machine.install(GOOD, *command, f"{inside} install")[0] == 0
    machine.works(GOOD)
    # Active at once proves little: it was asked again.
    assert calls.read_text().splitlines()[-3:] == ["is-active node-daemon.service"] * 3
    assert machine.install(BROKEN, *command, f"{inside} install", pod="again")[0] == 4
    machine.works(GOOD)


# What it is told


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"OUTRIDER_HOST_PATH": "../etc"}, "OUTRIDER_HOST_PATH is no relative path of plain names"),
        ({"OUTRIDER_HOST_PATH": "/etc"}, "OUTRIDER_HOST_PATH is no relative path of plain names"),
        ({"OUTRIDER_HOST_PATH": "a//b"}, "OUTRIDER_HOST_PATH is no relative path of plain names"),
        ({"OUTRIDER_HOST_PATH": ".hidden"}, "OUTRIDER_HOST_PATH is no relative path of plain names"),
        ({"OUTRIDER_HOST_ROOT": ""}, "OUTRIDER_HOST_ROOT is not set"),
        ({"OUTRIDER_POD_UID": ""}, "OUTRIDER_POD_UID is not set"),
        ({"OUTRIDER_ACTIVATE": "{"}, "OUTRIDER_ACTIVATE is not a JSON object"),
        ({"OUTRIDER_ACTIVATE": "{}"}, "OUTRIDER_ACTIVATE has not exactly one of command and systemdUnit"),
        ({"OUTRIDER_ACTIVATE": '{"command": ["a"]}'}, "OUTRIDER_ACTIVATE: command is not a list of texts"),
        ({"OUTRIDER_ACTIVATE": '{"systemdUnit": "--force"}'}, "systemdUnit is not the name of a unit"),
        ({"OUTRIDER_HEALTH": '{"http": {"port": 0}}'}, "OUTRIDER_HEALTH: http.port is no port"),
        ({"OUTRIDER_HEALTH": '{"http": {"port": 1, "path": "x"}}'}, "OUTRIDER_HEALTH: http.path is no path"),
        ({"OUTRIDER_HEALTH": '{"http": {"port": 1}, "command": ["/a"]}'}, "OUTRIDER_HEALTH has both command and http"),
        ({"OUTRIDER_HEALTH": '{"timeoutSeconds": "1"}'}, "OUTRIDER_HEALTH: timeoutSeconds is no number of seconds"),
        ({"OUTRIDER_KEEP": "0"}, "OUTRIDER_KEEP is not a number of versions from 1"),
    ],
)
def test_a_wrong_environment_is_named(machine: Machine, changes: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_host_config({**machine.environment(GOOD, "pod"), **changes})
    assert text in caught.value.message


def test_version_help_and_a_wrong_environment_of_the_program(machine: Machine) -> None:
    for argument, code, text in (("--version", 0, "outrider-host "), ("--help", 0, "Usage: "), ("what", 2, "Usage: ")):
        command = [sys.executable, "-m", "outrider.node.hostprogram", argument]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == code
        assert result.stdout.startswith(text)
    machine.changes["OUTRIDER_KEEP"] = "many"
    assert machine.install(GOOD)[0] == 2
    assert machine.termination.read_text().startswith("ConfigInvalid: OUTRIDER_KEEP")


def test_it_loads_nothing_that_speaks_to_registries() -> None:
    program = "import sys, outrider.node.hostprogram, outrider.node.host; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert not set(result.stdout.split()) & {"kopf", "kubernetes", "aiohttp", "pydantic", "requests", "oras", "urllib3"}


def stat_field(process: int) -> str:
    """When it was started."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
