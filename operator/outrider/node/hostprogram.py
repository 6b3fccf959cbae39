"""The program for the node itself. `outrider-host --help` says what it does and how it is told."""

import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Final, NoReturn

from outrider import __version__
from outrider.api.errors import Stalling
from outrider.core.refusal import EXIT_CONFIG, EXIT_LOCAL, EXIT_REFUSED
from outrider.node.config import ConfigError
from outrider.node.ending import fail, terminate
from outrider.node.files import LocalError
from outrider.node.hostconfig import USAGE, HostConfig, read_host_config

_LONGEST_LOOK: Final = 300.0
"""Seconds between two looks at the disk at least, however seldom the daemon is asked."""


def main() -> NoReturn:
    """Run, and exit with one of the codes of `USAGE`."""
    sys.exit(run(sys.argv[1:], os.environ))


def run(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Do what the arguments and the environment say and return the exit code."""
    match arguments:
        case ["--version"]:
            print(f"outrider-host {__version__}")
            return 0
        case ["install" | "watch" | "check" as command]:
            pass
        case _:
            print(USAGE, end="")
            return 0 if arguments == ["--help"] else EXIT_CONFIG
    # As process 1 of a container, nothing but a handler makes SIGTERM end it: a pod could not be deleted in time.
    signal.signal(signal.SIGTERM, terminate)
    # What is made for everybody to run is readable for everybody, however this was started.
    os.umask(0o022)
    try:
        config = read_host_config(environ)
        return {"install": _install, "watch": _watch, "check": _check}[command](config)
    except ConfigError as error:
        return fail(environ, EXIT_CONFIG, error, _log)
    except Stalling as error:
        return fail(environ, EXIT_REFUSED, error, _log)
    except LocalError as error:
        return fail(environ, EXIT_LOCAL, error, _log)


def _install(config: HostConfig) -> int:
    from outrider.node.host import install

    install(config, _log, machine=os.uname().machine)
    return 0


def _watch(config: HostConfig) -> int:
    """Wait until the pod ends; say what has changed on the disk. Whether the daemon works is asked by `check`."""
    from outrider.node.hostcheck import look_on_disk

    machine = os.uname().machine
    said: str | None = None
    seen: object = None
    damage = ""
    while True:
        # Its bytes are read once, and then only when the file looks different.
        looks = _fingerprint(config)
        if looks != seen:
            damage, seen = look_on_disk(config, machine=machine, thoroughly=True), looks
        problem = look_on_disk(config, machine=machine) or damage
        if problem != said:
            _log(problem or f"{config.component} {config.version} is current on this node")
            said = problem
        time.sleep(min(config.health.period, _LONGEST_LOOK))


def _fingerprint(config: HostConfig) -> tuple[tuple[str, int, int, int, int], ...]:
    """Return what changes when a file of the current version is another one."""
    folder = config.root.joinpath(*config.parts, "current")
    try:
        found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(folder)]
    except OSError:
        return ()
    return tuple(sorted((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_mode) for name, s in found))


def _check(config: HostConfig) -> int:
    from outrider.node.hostcheck import check

    problem = check(config, _log, machine=os.uname().machine)
    if problem:
        _log(problem)
    return EXIT_LOCAL if problem else 0


def _log(line: str) -> None:
    print(f"outrider-host: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
