"""The operator as a local process: started, watched, killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localcluster.addresses import LOOPBACK, free_port

SOURCES = Path(__file__).resolve().parent.parent.parent / "operator"


class OperatorProcess:
    """`python -m outrider run` with the rights of its ServiceAccount and no other."""

    def __init__(self, name: str, kubeconfig: Path, registry: str, log: Path, **settings: str) -> None:
        self.name = name
        self.log = log
        self._port = free_port(LOOPBACK, set())
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(log.parent),
            "PYTHONPATH": str(SOURCES),
            "PYTHONUNBUFFERED": "1",
            "KUBECONFIG": str(kubeconfig),
            "OUTRIDER_POD_NAME": name,
            "OUTRIDER_REGISTRY": registry,
            "OUTRIDER_REGISTRY_PLAIN_HTTP": "true",
            "OUTRIDER_LISTEN_HOST": LOOPBACK,
            "OUTRIDER_LISTEN_PORT": str(self._port),
            "OUTRIDER_RETRY_MAX_SECONDS": "4",
            # The stories' web server is on loopback, which no source may be on otherwise.
            "OUTRIDER_ALLOWED_SOURCE_ADDRESSES": "127.0.0.0/8",
            "OUTRIDER_PLAIN_HTTP_SOURCES": "127.0.0.1:*",
            "OUTRIDER_ALLOWED_CHECK_ADDRESSES": "127.0.0.0/8",
            "OUTRIDER_FRESH_SECONDS": "2",
            "OUTRIDER_MAX_ARTIFACT_BYTES": str(8 * 1024 * 1024),
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where its probes and metrics are."""
        return f"http://{LOOPBACK}:{self._port}"

    def is_running(self) -> bool:
        """Tell whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; its log goes on in the same file."""
        assert not self.is_running(), f"operator {self.name} runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "outrider", "run"],
                cwd=self.log.parent,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """End it at once, as the kernel does when memory runs out."""
        self._end(signal.SIGKILL, 10)

    def terminate(self, seconds: float = 20) -> float:
        """Ask it to end, as the kubelet does; returns the seconds that it took."""
        asked = time.monotonic()
        self._end(signal.SIGTERM, seconds)
        return time.monotonic() - asked

    def freeze(self) -> None:
        """Stop the process without ending it, as a machine does that hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wait(self, seconds: float) -> int:
        """Wait for its end; returns the exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    def _end(self, number: signal.Signals, seconds: float) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            pytest.fail(f"operator {self.name} did not end within {seconds:.0f} s of {number.name}\n{self.log_tail()}")

    def log_size(self) -> int:
        """Return how long the log is, to read on from there later."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_since(self, offset: int = 0) -> str:
        """Return the log from an offset on."""
        if not self.log.exists():
            return ""
        return self.log.read_bytes()[offset:].decode(errors="replace")

    def wait_for_log(self, words: str, seconds: float = 30) -> None:
        """Wait until these words stand in the log: a process that stands by shows itself nowhere else."""
        deadline = time.monotonic() + seconds
        while words not in self.log_since():
            if time.monotonic() > deadline or not self.is_running():
                pytest.fail(f"operator {self.name} does not say {words!r}\n{self.log_tail()}")
            time.sleep(0.1)

    def log_tail(self, lines: int = 40) -> str:
        """Return the log's last lines."""
        return "\n".join(self.log_since().splitlines()[-lines:])


def complaints(log: str) -> list[str]:
    """Return the lines of an operator's log that no test may cause: rights that it lacks, surprises.

    What is refused because a namespace is going away is the end of a test, not a missing right; and a Secret that the
    operator may not read is told to whoever named it.
    """
    found = []
    for line in log.splitlines():
        text = line.lower().replace("secretforbidden", "")
        refused = "forbidden" in text and "because it is being terminated" not in text
        if refused or "traceback" in text or "unexpectedly" in text:
            found.append(line)
    return found
