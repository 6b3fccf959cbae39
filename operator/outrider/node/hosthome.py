"""The daemon's own folder on the node: its layout, its journal, and the way there that nobody can bend.

    <path>/versions/<version>-<first 8 digits of its SHA-256>/<file>   0555, as it was verified, with its record
    <path>/current -> versions/…                                       what the node runs
    <path>/.outrider/state.json                                        the journal
                    /lock                                              held while something is changed here
                    /running                                           the command that runs (`hostgroup.py`)
                    /incoming/                                         what is not complete

*Assumptions.* The root belongs to the node's administrator, who may do anything. Others may have planted links and
folders below it before we came.

*Invariants.* Every folder on the way is opened from the one before it, never by a path; one that is a link, is another
user's, or may be written to by others is refused. Nothing outside of what is listed above is ever changed or removed.
"""

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from outrider.node.config import ConfigError
from outrider.node.files import RECORD, Folder, LocalError, is_plain_name, local, read_content
from outrider.node.hostconfig import Activation, Health, HostConfig, parse_activation, parse_health
from outrider.trust.documents import Malformed, canonical_json, parse_object

CURRENT: Final = "current"
_VERSIONS: Final = "versions"
_PRIVATE: Final = ".outrider"
_INCOMING: Final = "incoming"
_STATE: Final = "state.json"
_LOCK: Final = "lock"
_LINK: Final = ".outrider-current"
"""What `current` is called until it is."""

_MAX_STATE_BYTES: Final = 1024 * 1024
_MAX_FAILED: Final = 10
"""So many pods in which something failed are remembered."""
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_DOUBLINGS: Final = 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,200}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Installed:
    """A version on the node."""

    name: str
    """Of its folder in `versions`."""
    version: str
    sha256: str
    file_name: str

    @property
    def target(self) -> str:
        """Return what `current` says when it is this one."""
        return f"{_VERSIONS}/{self.name}"


@dataclass(frozen=True)
class Attempt:
    """What was begun and has not ended."""

    pod: str
    sha256: str
    reason: str = ""
    """Why it failed, and the node is on its way back; "" while it is on its way forward."""
    message: str = ""


@dataclass(frozen=True)
class Care:
    """How a version is activated, and how it is told whether it works."""

    activation: Activation | None
    health: Health


@dataclass(frozen=True)
class State:
    """The journal."""

    owner: str = ""
    good: Installed | None = None
    """What worked last: what the node goes back to."""
    care: Care | None = None
    """With what it worked: another revision may have other commands, which know nothing of it. None: not known."""
    activated: str = ""
    """How and in which boot of the node that was activated."""
    activations: int = 0
    """How often it was since it was healthy, and was not healthy in time."""
    waits: int = 0
    """How many starts have only waited for it since it was activated."""
    kept: tuple[str, ...] = ()
    """Names of versions that worked, the last one first."""
    attempt: Attempt | None = None
    failed: tuple[Attempt, ...] = ()
    """What is not tried again in the same pod, the last one first."""

    @property
    def is_slow(self) -> bool:
        """Say whether what was activated should be waited for once more, and not be activated again.

        Twice as often after each activation: what needs any time at all gets it in the end, and what has died is
        started again.
        """
        return self.waits < (1 << min(self.activations, _MAX_DOUBLINGS)) // 2

    def failure(self, pod: str, sha256: str) -> Attempt | None:
        """Return how something failed in a pod, if it did."""
        return next((each for each in self.failed if (each.pod, each.sha256) == (pod, sha256)), None)

    def with_failure(self, failure: Attempt) -> "State":
        """Return the journal with one more failure in it, and no attempt."""
        others = tuple(each for each in self.failed if each.pod != failure.pod)
        return replace(self, attempt=None, failed=(failure, *others)[:_MAX_FAILED])


class Home:
    """The daemon's folder, with its lock held. Its methods raise LocalError."""

    def __init__(self, folder: Folder, versions: Folder, private: Folder, incoming: Folder) -> None:
        self.folder = folder
        self.versions = versions
        self.private = private
        self.incoming = incoming

    @classmethod
    @contextlib.contextmanager
    def open(cls, config: HostConfig, log: Callable[[str], None]) -> Iterator[Self]:
        """Open the folder, make what is missing of it, and hold its lock.

        Raises LocalError(PathUnsafe, PathOccupied, NodeStorage, NoSpace).
        """
        with contextlib.ExitStack() as stack:
            folder = open_folder(config, stack, create=True)
            # Before anything is made in a folder that may be somebody else's.
            read_current(folder)
            versions = _enter(folder, _VERSIONS, stack, create=True)
            private = _enter(folder, _PRIVATE, stack, create=True)
            with local("write to", private.path):
                stack.enter_context(
                    private.locked(_LOCK, lambda: log("another pod is installing here; waiting for it"))
                )
            incoming = _enter(private, _INCOMING, stack, create=True)
            with local("write to", private.path):
                for name in incoming.names():
                    incoming.remove(name)
                private.remove_partials()
                folder.remove(_LINK)
            yield cls(folder, versions, private, incoming)

    def current(self) -> str:
        """Return the name of the version that is current, "" if none is. Raises LocalError(PathOccupied)."""
        return read_current(self.folder)

    def switch(self, name: str) -> None:
        """Make a version the current one, in one step: whoever looks finds the one or the other."""
        with local("write to", self.folder.path):
            self.folder.remove(_LINK)
            self.folder.link(_LINK, f"{_VERSIONS}/{name}")
            self.folder.replace(_LINK, CURRENT)

    def take_away(self) -> None:
        """Let no version be current."""
        with local("write to", self.folder.path):
            if self.current():
                self.folder.remove(CURRENT)
                self.folder.sync()

    def has(self, name: str) -> bool:
        """Say whether a version has a folder, whatever is in it. Raises LocalError(PathUnsafe, PathOccupied)."""
        found = self.versions.stat(name)
        if found is not None:
            _check_kind(self.versions.path / name, found)
        return found is not None

    @contextlib.contextmanager
    def version(self, name: str) -> Iterator[Folder]:
        """Open the folder of a version. Raises LocalError(PathUnsafe, PathOccupied, NodeStorage)."""
        with contextlib.ExitStack() as stack:
            yield _enter(self.versions, name, stack, create=False)

    def is_intact(self, installed: Installed) -> bool:
        """Say whether a version is there, executable, and hashes to what it should."""
        return is_intact(self.versions, installed)

    def prune(self, kept: tuple[str, ...]) -> list[str]:
        """Remove what was put into `versions` by us and is neither kept nor current; return what went."""
        gone = []
        with local("write to", self.versions.path):
            current = self.current()
            for name in self.versions.names():
                if name in kept or name == current or not self._is_ours(name):
                    continue
                # Out of the way first: half of a version must not look like one.
                self.versions.replace(name, name, self.incoming)
                self.incoming.remove(name)
                gone.append(name)
        return gone

    def read_state(self) -> State | None:
        """Return the journal, None if there is none or what is there is none."""
        return read_state(self.private)

    @property
    def has_journal(self) -> bool:
        """Say whether there is one, whatever is in it."""
        return self.private.stat(_STATE) is not None

    def find_current(self) -> tuple[Installed | None, str] | None:
        """Return what is current by its own record, None if its bytes disagree with that, and its component.

        None if nothing is current, or that has no record. Raises LocalError(NodeStorage, PathUnsafe, PathOccupied).
        """
        from outrider.node.record import read_record  # which most starts need not load

        name = self.current()
        with local("read", self.versions.path):
            if not name or not self.has(name):
                return None
        with self.version(name) as folder:
            record = read_record(folder)
        if record is None:
            return None
        installed = Installed(name, record.version, record.sha256, record.file_name)
        is_good = name == f"{record.version}-{record.sha256[:8]}" and self.is_intact(installed)
        return (installed if is_good else None), record.component

    def write_state(self, state: State) -> None:
        """Write the journal, all of it at once."""
        with local("write to", self.private.path):
            self.private.write(_STATE, canonical_json(_journal(state)), 0o600)

    def _is_ours(self, name: str) -> bool:
        if _NAME.fullmatch(name) is None:
            return False
        found = self.versions.stat(name)
        if found is None or not stat.S_ISDIR(found.st_mode):
            return False
        with self.versions.folder(name) as inner:
            return inner.stat(RECORD) is not None


def open_folder(config: HostConfig, stack: contextlib.ExitStack, *, create: bool) -> Folder:
    """Walk to the daemon's folder. Raises LocalError(PathUnsafe, PathOccupied, NodeStorage)."""
    with local("open", config.root_on_node):
        folder = stack.enter_context(Folder.open(config.root))
    folder.path = config.root_on_node
    _check(folder, os.fstat(folder.descriptor))
    for part in config.parts:
        folder = _enter(folder, part, stack, create=create)
    return folder


def read_current(folder: Folder) -> str:
    """Return the name of the version that is current, "" if none is. Raises LocalError(PathOccupied)."""
    found = folder.stat(CURRENT)
    if found is None:
        return ""
    with local("read", folder.path):
        target = folder.read_link(CURRENT) or "" if stat.S_ISLNK(found.st_mode) else ""
    name = target.removeprefix(f"{_VERSIONS}/")
    if not target.startswith(f"{_VERSIONS}/") or _NAME.fullmatch(name) is None:
        raise LocalError(
            "PathOccupied",
            f"{folder.path / CURRENT} was not made by Outrider; move away what is there, or choose another path",
        )
    return name


def is_intact(versions: Folder, installed: Installed) -> bool:
    """Say whether a version is there, executable, nobody else's to change, and hashes to what it should."""
    try:
        with versions.folder(installed.name) as folder:
            file = folder.open_file(installed.file_name)
            if file is None:
                return False
            with file:
                found = os.fstat(file.fileno())
                return (
                    _is_safe(os.fstat(folder.descriptor))
                    # Whose owner is another can be changed by them; so can what somebody has under another name.
                    and (found.st_uid, found.st_nlink, stat.S_IMODE(found.st_mode)) == (os.geteuid(), 1, 0o555)
                    and read_content(file, frozenset()).sha256 == installed.sha256
                )
    except OSError:
        return False


def name_of(version: str, sha256: str) -> str:
    """Return the name of a version's folder. Raises LocalError(PathUnsafe)."""
    name = f"{version}-{sha256[:8]}"
    if _NAME.fullmatch(name) is None:
        raise LocalError("PathUnsafe", f"the version {version!r} is no name that a folder can have; publish another")
    return name


def read_state(private: Folder) -> State | None:
    """Return the journal, None if there is none or what is there is none.

    Raises LocalError(NodeStorage) if the disk does not give it out: to go on as if there were none could cost the
    version that works.
    """
    path = private.path / _STATE
    with local("read", path):
        found = private.stat(_STATE)
        if found is None or not stat.S_ISREG(found.st_mode):
            return None
        with open(os.open(_STATE, _READ, dir_fd=private.descriptor), "rb", buffering=0) as file:  # noqa: PTH123
            data = file.read(_MAX_STATE_BYTES + 1)
    try:
        value = parse_object(data, max_bytes=_MAX_STATE_BYTES)
        good, care, attempt = value["good"], value.get("care"), value["attempt"]
        state = State(
            owner=_text(value["owner"]),
            good=_installed(good) if good is not None else None,
            care=_care(care) if care is not None else None,
            activated=_text(value["activated"]),
            activations=_count(value.get("activations", 0)),
            waits=_count(value.get("waits", 0)),
            kept=tuple(_text(name) for name in value["kept"]),
            attempt=_attempt(attempt) if attempt is not None else None,
            failed=tuple(_attempt(each) for each in value["failed"]),
        )
    except (Malformed, KeyError, TypeError, ValueError, ConfigError):
        return None
    return state


def _journal(state: State) -> dict[str, Any]:
    value = asdict(state)
    if state.care is not None:
        activation, health = state.care.activation, state.care.health
        value["care"] = {
            "activation": activation.to_api() if activation is not None else None,
            "health": health.to_api(),
        }
    return value


def _care(value: dict[str, Any]) -> Care:
    activation = value["activation"]
    return Care(parse_activation(activation) if activation is not None else None, parse_health(value["health"]))


def _installed(value: dict[str, Any]) -> Installed:
    installed = Installed(**{name: _text(value[name]) for name in ("name", "version", "sha256", "file_name")})
    if _NAME.fullmatch(installed.name) is None or not is_plain_name(installed.file_name):
        raise ValueError
    return installed


def _attempt(value: dict[str, Any]) -> Attempt:
    return Attempt(**{name: _text(value[name]) for name in ("pod", "sha256", "reason", "message")})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _count(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError
    return value


def _enter(folder: Folder, name: str, stack: contextlib.ExitStack, *, create: bool) -> Folder:
    path = folder.path / name
    found = folder.stat(name)
    if found is not None:
        _check_kind(path, found)
    with local("write to" if create else "read", path):
        inner = stack.enter_context(folder.folder(name, create=create))
    _check(inner, os.fstat(inner.descriptor))
    return inner


def _check_kind(path: Path, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise LocalError(
            "PathUnsafe", f"{path} is a link, and links are not followed; name the folder itself, or remove the link"
        )
    if not stat.S_ISDIR(found.st_mode):
        raise LocalError("PathOccupied", f"{path} is no folder; move it away, or choose another path")


def _check(folder: Folder, found: os.stat_result) -> None:
    """Refuse a folder in which others could put something else under a name that we use."""
    if not _is_safe(found):
        raise LocalError(
            "PathUnsafe",
            f"{folder.path} belongs to user {found.st_uid} and has mode {stat.S_IMODE(found.st_mode):04o}: others than "
            "root could replace what is installed there; chown it to root and chmod it to 0755, or choose another path",
        )


def _is_safe(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022
