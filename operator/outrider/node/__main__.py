"""The init container's program. `outrider-fetch --help` says what it does and how it is told."""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from outrider import __version__
from outrider.node.config import DEFAULT_TERMINATION_LOG, USAGE, ConfigError, read_config

EXIT_CONFIG: Final = 2
EXIT_REFUSED: Final = 3
EXIT_LOCAL: Final = 4
EXIT_TERMINATED: Final = 128 + signal.SIGTERM

_MAX_TERMINATION_BYTES: Final = 4096
"""What the kubelet reads of a termination log."""


def main() -> NoReturn:
    """Run, and exit with one of the codes of `USAGE`."""
    sys.exit(run(sys.argv[1:], os.environ))


def run(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Do what the arguments and the environment say and return the exit code."""
    if arguments == ["--version"]:
        print(f"outrider-fetch {__version__}")
        return 0
    if arguments:
        print(USAGE, end="")
        return 0 if arguments == ["--help"] else EXIT_CONFIG
    # As process 1 of a container, nothing but a handler makes SIGTERM end it: a pod could not be deleted in time.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        config = read_config(environ)
    except ConfigError as error:
        return _fail(environ, EXIT_CONFIG, f"ConfigInvalid: {error}")

    # Not before here: what it imports takes most of the start-up time.
    from outrider.api.errors import Stalling
    from outrider.node.fetch import LocalError, fetch

    try:
        path = fetch(config, _log, machine=os.uname().machine)
    except Stalling as error:
        return _fail(environ, EXIT_REFUSED, f"{error.reason}: {error.message}")
    except LocalError as error:
        return _fail(environ, EXIT_LOCAL, f"{error.reason}: {error.message}")
    _log(f"ready: {path}")
    return 0


def _log(line: str) -> None:
    print(f"outrider-fetch: {line}", file=sys.stderr, flush=True)


def _fail(environ: Mapping[str, str], code: int, reason: str) -> int:
    """Say why in the log and to the kubelet, in one line, and return `code`."""
    line = " ".join(reason.split())
    _log(line)
    path = Path(environ.get("OUTRIDER_TERMINATION_LOG") or DEFAULT_TERMINATION_LOG)
    try:
        # Only where the kubelet has made one: elsewhere a file of this name means nothing.
        with path.open("r+b") as file:
            file.write(line.encode()[:_MAX_TERMINATION_BYTES])
            file.truncate()
    except OSError:
        pass
    return code


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(EXIT_TERMINATED)


if __name__ == "__main__":
    main()
