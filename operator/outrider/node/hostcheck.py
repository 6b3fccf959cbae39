"""Is what was installed still there, and does it work? Asked every few seconds, so that little is loaded for it."""

import contextlib
from typing import Final

from outrider.api.errors import Stalling
from outrider.node.activation import Host, Log
from outrider.node.files import LocalError, local
from outrider.node.hostconfig import HostConfig
from outrider.node.hosthome import Installed, is_intact, name_of, open_folder, read_current
from outrider.node.processor import platform_of

_SECONDS: Final = 8.0
"""For one look: less than the readiness probe gives, so that it is told what is wrong and nothing is left behind."""


def check(config: HostConfig, log: Log, *, machine: str) -> str:
    """Return what is wrong with what this pod has installed, "" if it is current and works."""
    problem = look_on_disk(config, machine=machine)
    return problem or Host(config, log).look(min(config.health.timeout, _SECONDS))


def look_on_disk(config: HostConfig, *, machine: str, thoroughly: bool = False) -> str:
    """Return what is wrong with what this pod has installed, as far as the disk tells.

    That the right version is current; `thoroughly`, that its file is what was verified.
    """
    try:
        platform = platform_of(config, machine)
        with contextlib.ExitStack() as stack:
            folder = open_folder(config, stack, create=False)
            current = read_current(folder)
            sha256 = config.digests.get(platform, "")
            if sha256 and current != name_of(config.version, sha256):
                return f"{current or 'nothing'} is current, and not {config.version}"
            if not thoroughly or not current:
                return ""
            from outrider.node.record import read_record

            with local("read", folder.path):
                versions = stack.enter_context(folder.folder("versions"))
                with versions.folder(current) as inner:
                    record = read_record(inner)
            if record is None:
                return f"{current} has lost its record"
            installed = Installed(current, record.version, sha256 or record.sha256, record.file_name)
            return "" if is_intact(versions, installed) else f"{current} is not what was verified: its file has changed"
    except (LocalError, Stalling) as error:
        return f"{error.reason}: {error.message}"
