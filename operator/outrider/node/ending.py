"""How a program on a node ends: a code, and one line for the kubelet, which hands it to the operator."""

import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from outrider.api.errors import OutriderError
from outrider.node.config import DEFAULT_TERMINATION_LOG

EXIT_TERMINATED: Final = 128 + signal.SIGTERM

_MAX_TERMINATION_BYTES: Final = 4096
"""What the kubelet reads of a termination log."""


def fail(environ: Mapping[str, str], code: int, error: OutriderError, log: Callable[[str], None]) -> int:
    """Say why in the log and to the kubelet, in one line `Reason: sentence`, and return `code`."""
    line = " ".join(f"{error.reason}: {error.message}".split())
    log(line)
    path = Path(environ.get("OUTRIDER_TERMINATION_LOG") or DEFAULT_TERMINATION_LOG)
    try:
        # Only where the kubelet has made one: elsewhere a file of this name means nothing.
        with path.open("r+b") as file:
            file.write(line.encode()[:_MAX_TERMINATION_BYTES])
            file.truncate()
    except OSError:
        pass
    return code


def terminate(_signum: int, _frame: FrameType | None) -> NoReturn:
    """End, as whoever sends SIGTERM asks: a handler for it."""
    sys.exit(EXIT_TERMINATED)
