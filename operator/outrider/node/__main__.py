"""The init container's program. `outrider-fetch --help` says what it does and how it is told."""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from outrider import __version__
from outrider.api.errors import Stalling
from outrider.core.refusal import EXIT_CONFIG, EXIT_LOCAL, EXIT_REFUSED
from outrider.node.cache import Cache, CacheError
from outrider.node.config import USAGE, Config, ConfigError, IdleConfig, read_config, read_idle_config
from outrider.node.ending import fail, terminate
from outrider.node.files import Folder, LocalError, local
from outrider.node.idle import build_idle
from outrider.node.privileges import become
from outrider.node.processor import ARCHITECTURES


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
    signal.signal(signal.SIGTERM, terminate)
    try:
        idle = read_idle_config(environ)
        if idle is not None:
            return _keep_images(idle)
        config = read_config(environ)
        cache = _own_folder(config)
        if config.run_as is not None:
            become(config.run_as)
        return _fetch(config, cache)
    except ConfigError as error:
        return fail(environ, EXIT_CONFIG, error, _log)
    except Stalling as error:
        return fail(environ, EXIT_REFUSED, error, _log)
    except LocalError as error:
        return fail(environ, EXIT_LOCAL, error, _log)


def _own_folder(config: Config) -> Cache | None:
    """Make the component's folder in the cache, still as the user that this program was started as."""
    if config.cache_dir is None:
        return None
    try:
        return Cache.open(config.cache_dir, config)
    except CacheError as error:
        if config.target_dir is None:
            raise
        _log(f"going on without the cache: {error.reason}: {error.message}")
        return None


def _fetch(config: Config, cache: Cache | None) -> int:
    # Not before here: it takes most of the start-up time.
    from outrider.node.fetch import fetch

    if config.idle_dir is not None:
        _put_idle(config.idle_dir)
    try:
        if cache is not None:
            cache.use()
    except CacheError as error:
        if config.target_dir is None:
            raise
        _log(f"going on without the cache: {error.reason}: {error.message}")
        cache = None
    path = fetch(config, _log, machine=os.uname().machine, cache=cache)
    _log(f"ready: {path}")
    return 0


def _keep_images(config: IdleConfig) -> int:
    if config.run_as is not None:
        become(config.run_as)
    _put_idle(config.idle_dir)
    _log("nothing is to be fetched")
    return 0


def _put_idle(path: Path) -> None:
    """Put the program that the containers of a prepared pod run into a folder."""
    machine = os.uname().machine
    program = build_idle(f"linux/{ARCHITECTURES.get(machine, machine)}")
    if program is None:
        raise LocalError(
            "PlatformUnsupported", f"nodes are prepared on linux/amd64 and linux/arm64 only, and this one is {machine}"
        )
    with local("write to", path), Folder.open(path) as folder:
        folder.write("idle", program, 0o555)


def _log(line: str) -> None:
    print(f"outrider-fetch: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
