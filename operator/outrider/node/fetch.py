"""A verified file for the agent's container. Nothing that was not verified ever has the file's name.

*Assumptions.* The environment comes from the operator: the index is pinned by digest there, and so may be the files.
The registry, the network, and what lies in the target folder and in the cache are not trusted. One program at a time
writes into the target folder; any number into the cache (`cache.py` says how they get along).

*Invariants.* A file gets its final name by one rename, after its hash and its signature were verified and its bytes are
on disk. Whatever fails before leaves at most a hidden partial file, which the next attempt removes. What is handed over
was hashed on its way into the target folder: where it came from does not matter. What was verified on this node starts
without the registry, and without the key that vouched for it then; what was not, never does:

    key      registry  a verified copy here    none here
    trusted  up        starts from the copy    downloads
    trusted  down      starts from the copy    waits, and says so
    removed  up        starts, with a WARNING  refused
    removed  down      starts, with a WARNING  waits, and says so; then refused
"""

import contextlib
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.node.cache import FILE, Cache, CacheError, cache_errors
from outrider.node.config import Config, ConfigError
from outrider.node.files import Content, Folder, finish, local, partial_name, read_content
from outrider.node.processor import platform_of
from outrider.node.record import Record, read_record, write_record
from outrider.node.verification import Log, read_keys, verify_again
from outrider.trust.verify import further_algorithms

DELAYS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between attempts while the registry is down; the last one is repeated for ever."""

_DEPENDENCY_REASONS: Final = ("RegistryDenied", "RegistryRefused", "CredentialsMalformed")
"""Refusals that say nothing about the artifact: somebody will set the registry right, so they are waited for."""

_EXECUTABLE: Final = 0o555


@dataclass(frozen=True)
class _Job:
    """What is to be done, and where."""

    config: Config
    platform: str
    cache: Cache | None
    target: Folder | None
    """None: only the cache is filled."""
    log: Log


def fetch(
    config: Config,
    log: Log,
    *,
    machine: str,
    cache: Cache | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Put the verified file of this node's platform where it is wanted, and return its path.

    `machine` is what the kernel calls the processor, `cache` the node's, opened. Waits for ever while the registry is
    down. Raises Stalling when what was found must not run here, LocalError when this node cannot take it.

    1. Which platform is this node?                                   Else Stalling(PlatformUnknown, PlatformMissing).
    2. If the file is in the target folder already, verify it again, and that is all.
    3. If it is in the cache, copy it and verify the copy; what does not pass there is thrown away.
    4. Download it (`download.py`): into the cache if there is one, and from there as in 3., else to where it is wanted.
    """
    # 1.
    platform = platform_of(config, machine)
    log(f"fetching {config.component} {config.version} for {platform} from {config.reference}")
    with contextlib.ExitStack() as stack:
        target = None
        if config.target_dir is not None:
            with local("write to", config.target_dir):
                target = stack.enter_context(Folder.open(config.target_dir))
                target.remove_partials()
        job = _Job(config, platform, cache, target, log)

        # 2.
        ready = _ready(job)
        if ready is not None:
            log(f"{ready} is here already and was verified again; nothing is downloaded")
            return ready

        # 3. and 4.
        return _patiently(lambda: _fetch_once(job), log, sleep)


def _patiently(attempt: Callable[[], Path], log: Log, sleep: Callable[[float], None]) -> Path:
    """Try until the registry can be used, or something else ends it."""
    attempts = 0
    while True:
        try:
            return attempt()
        except Stalling as error:
            if error.reason not in _DEPENDENCY_REASONS:
                raise
            failure: OutriderError = error
            asked = 0.0
        except Transient as error:
            failure = error
            asked = error.retry_after or 0.0
        delay = max(DELAYS[min(attempts, len(DELAYS) - 1)], asked)
        attempts += 1
        log(f"waiting: {failure.reason}: {failure.message}; attempt {attempts} failed, next one in {delay:.0f} s")
        sleep(delay)


def _fetch_once(job: _Job) -> Path:
    target = job.target
    if job.cache is not None:
        try:
            return _through_cache(job, job.cache)
        except CacheError as error:
            if target is None:
                raise
            job.log(f"going on without the cache: {error.reason}: {error.message}")
    if target is None:
        raise ConfigError("there is neither a cache nor a folder to fill")
    from outrider.node.download import download

    return target.path / download(job.config, job.platform, target, job.log)


def _ready(job: _Job) -> Path | None:
    """Return the file that an earlier run of this program put into the target folder, if it passes once more."""
    folder = job.target
    if folder is None or (record := read_record(folder)) is None or not record.is_about(job.config, job.platform):
        return None
    file = folder.open_file(record.file_name)
    if file is None:
        return None
    with file, local("read", folder.path):
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != _EXECUTABLE:
            return None
        content = read_content(file, _further(job, record))
    path = folder.path / record.file_name
    try:
        current = _pass_again(job, record, content)
    except Stalling as error:
        job.log(f"{path} is here, but does not pass ({error.reason}); fetching it again")
        return None
    if current is not record:
        with local("write to", folder.path):
            write_record(folder, current)
    return path


@dataclass(frozen=True)
class _Cached:
    """A file of the cache, open: whoever prunes takes only its name."""

    path: Path
    record: Record
    file: BinaryIO
    is_fresh: bool
    """It was downloaded and verified just now."""


def _through_cache(job: _Job, cache: Cache) -> Path:
    """Hand over what the cache has; fill it before, if it has not. What does not pass is fetched again, once.

    The lock is held while it is filled, so that others wait for what is on its way already, and not while the file is
    copied.
    """
    sha256 = job.config.digests[job.platform]
    cached = _open_or_fill(job, cache, sha256)
    with cached.file:
        try:
            return _hand_over(job, cache, cached)
        except Stalling as error:
            if cached.is_fresh:
                raise
            job.log(f"what is in the cache does not pass ({error.reason}: {error.message}); fetching it again")
        # Told apart from what others may have put there meanwhile by being open still.
        again = _open_or_fill(job, cache, sha256, instead_of=cached.file)
    with again.file:
        return _hand_over(job, cache, again)


def _open_or_fill(job: _Job, cache: Cache, sha256: str, *, instead_of: BinaryIO | None = None) -> _Cached:
    """Open what the cache has, if it is about this version and not `instead_of`; else download it."""

    def waiting() -> None:
        job.log("another pod on this node is fetching the same; waiting for it")

    with cache.entry(sha256, waiting) as entry:
        opened = entry.open()
        is_fresh = False
        if opened is not None:
            record, file = opened
            is_known = record.is_about(job.config, job.platform)
            if not is_known or (instead_of is not None and os.path.sameopenfile(file.fileno(), instead_of.fileno())):
                file.close()
                opened = None
        if opened is None:
            for name in cache.prune(sha256):
                job.log(f"{name} was not used for longest and is removed from the cache")
            entry.discard()
            from outrider.node.download import download

            with cache_errors():
                download(job.config, job.platform, entry.folder, job.log, name=FILE)
            is_fresh, opened = True, entry.open()
            if opened is None:
                raise CacheError("NodeStorage", f"{entry.folder.path} loses what is written to it; look at its disk")
        cache.touch(sha256)
        record, file = opened
        return _Cached(entry.folder.path, record, file, is_fresh)


def _hand_over(job: _Job, cache: Cache, cached: _Cached) -> Path:
    """Copy a file of the cache into the target folder and verify what was copied; without one, verify the file."""
    if job.target is None:
        if not cached.is_fresh:
            with cache_errors(), local("read", cached.path):
                content = read_content(cached.file, _further(job, cached.record))
            _note(job, cache, cached, _pass_again(job, cached.record, content))
        job.log(f"{'filled' if cached.is_fresh else 'verified again in'} the cache {cached.path}")
        return cached.path / FILE

    target, partial = job.target, partial_name()
    try:
        with local("write to", target.path):
            target.check_space(os.fstat(cached.file.fileno()).st_size)
            with target.create(partial) as copy:
                content = read_content(cached.file, _further(job, cached.record), copy)
                finish(copy)
        record = _pass_again(job, cached.record, content)
        with local("write to", target.path):
            target.replace(partial, record.file_name)
            write_record(target, record)
    finally:
        with local("write to", target.path):
            target.remove(partial)
    _note(job, cache, cached, record)
    if not cached.is_fresh:
        job.log(f"taken from the cache {cached.path} and verified again; nothing is downloaded")
    return target.path / record.file_name


def _pass_again(job: _Job, record: Record, content: Content) -> Record:
    """Return a record of what was verified before and is used again: the same, or one with newer signatures.

    Raises Stalling if it must not be used.
    """
    doubt = verify_again(job.config, job.platform, record, content, read_keys(job.config, job.log))
    if not doubt:
        return record
    # Signed again by a key that is trusted now? That is asked for once, and never waited for.
    from outrider.node.download import signed_anew

    renewed = signed_anew(job.config, job.platform, record, content, job.log)
    if renewed is not None:
        job.log(f"signed again: {renewed.key}")
        return renewed
    job.log(f"WARNING: {doubt}")
    return record


def _note(job: _Job, cache: Cache, cached: _Cached, record: Record) -> None:
    """Keep newer signatures in the cache, if what they are about is there still."""
    if record is cached.record:
        return
    with cache.entry(record.sha256, lambda: None) as entry:
        if (opened := entry.open()) is not None:
            opened[1].close()
            with cache_errors(), local("write to", cached.path):
                write_record(entry.folder, record)


def _further(job: _Job, record: Record) -> frozenset[str]:
    return further_algorithms(record.evidence, read_keys(job.config, lambda _: None))
