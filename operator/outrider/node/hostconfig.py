"""What the host program is told, all of it by environment variables (see `USAGE`)."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from outrider.node.config import ConfigError, Trust, read_trust, required

USAGE: Final = """\
Usage: outrider-host install | watch | check | --version | --help

  install   puts a verified file on the node itself, switches to it, and back if it does not work
  watch     waits until it is told to end, and says when what was installed is not what is there any more
  check     says whether what was installed is there and works; exit code 0 if it does

Configured by environment, beside what `outrider-fetch --help` says of OUTRIDER_REFERENCE, OUTRIDER_COMPONENT,
OUTRIDER_VERSION, OUTRIDER_DIGESTS, OUTRIDER_KEYS_DIR, OUTRIDER_NAMESPACE, OUTRIDER_ALLOW_RSA_2048,
OUTRIDER_REQUIRE_BINDING and OUTRIDER_TERMINATION_LOG:

  OUTRIDER_TARGET_DIR         the folder where outrider-fetch has put the file
  OUTRIDER_HOST_ROOT          a folder of the node as it is seen here
  OUTRIDER_HOST_ROOT_ON_NODE  the same folder as the node itself calls it
  OUTRIDER_HOST_PATH          where to install, relative to that folder
  OUTRIDER_ACTIVATE           optional: JSON: {"command": ["/program", "argument"]} or {"systemdUnit": "name.service"}
  OUTRIDER_HEALTH             optional: JSON: {"timeoutSeconds": 30, "periodSeconds": 10} and at most one of
                              "command": ["/program", "argument"] and "http": {"port": 8080, "path": "/"}
  OUTRIDER_KEEP               optional: how many versions stay on the node, the current one included (default 2)
  OUTRIDER_HOST_NAMESPACES    optional: folder of the namespaces in which commands run and ports are asked (default
                              /proc/1/ns: those of the node, with hostPID), or none for those of this program
  OUTRIDER_POD_UID            the pod in which this runs: what failed is not tried again in the same one

Exit codes:

  0  it is installed, current and works
  2  the environment is wrong
  3  refused: the file must not run here
  4  this node could not take it, activate it, or it was not healthy; what was done about it is said
"""

_UNIT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9:_.@-]{0,254}")
_PART: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}")
_MAX_SECONDS: Final = 24 * 3600


@dataclass(frozen=True)
class Activation:
    """What makes the node run what `current` points to: exactly one of both."""

    command: tuple[str, ...] = ()
    unit: str = ""

    def to_api(self) -> dict[str, Any]:
        """Return it as OUTRIDER_ACTIVATE has it."""
        return {"systemdUnit": self.unit} if self.unit else {"command": list(self.command)}


@dataclass(frozen=True)
class Health:
    """When the daemon works. Without a command and a port: a unit is asked whether it is active."""

    timeout: float = 30.0
    """Seconds that its activation may take, and then its becoming healthy."""
    period: float = 10.0
    """Seconds between two looks afterwards."""
    command: tuple[str, ...] = ()
    port: int = 0
    path: str = "/"

    def to_api(self) -> dict[str, Any]:
        """Return it as OUTRIDER_HEALTH has it."""
        value: dict[str, Any] = {"timeoutSeconds": int(self.timeout), "periodSeconds": int(self.period)}
        if self.command:
            value["command"] = list(self.command)
        if self.port:
            value["http"] = {"port": self.port, "path": self.path}
        return value


@dataclass(frozen=True, kw_only=True)
class HostConfig(Trust):
    """What to install where, and how to make it run."""

    target_dir: Path
    root: Path
    root_on_node: Path
    parts: tuple[str, ...]
    """The way from the root to the daemon's own folder."""
    activation: Activation | None
    health: Health
    keep: int
    pod: str
    namespaces: Path | None
    """Of the node; None: commands run in ours."""

    @property
    def path_on_node(self) -> Path:
        """Return what the node calls the daemon's folder."""
        return self.root_on_node.joinpath(*self.parts)

    @property
    def owner(self) -> str:
        """Return whose folder it is: another component may not use it."""
        return f"{self.namespace}/{self.component}"


def read_host_config(environ: Mapping[str, str]) -> HostConfig:
    """Return the configuration. Raises ConfigError."""
    parts = tuple(required(environ, "OUTRIDER_HOST_PATH").split("/"))
    if not all(_PART.fullmatch(part) for part in parts):
        raise ConfigError("OUTRIDER_HOST_PATH is no relative path of plain names: without '..', '//', or a leading '.'")
    activation = _object(environ, "OUTRIDER_ACTIVATE")
    health = _object(environ, "OUTRIDER_HEALTH")
    keep = environ.get("OUTRIDER_KEEP") or "2"
    namespaces = environ.get("OUTRIDER_HOST_NAMESPACES") or "/proc/1/ns"
    if re.fullmatch("[1-9][0-9]{0,2}", keep) is None:
        raise ConfigError("OUTRIDER_KEEP is not a number of versions from 1")
    return HostConfig(
        **read_trust(environ),
        target_dir=Path(required(environ, "OUTRIDER_TARGET_DIR")),
        root=Path(required(environ, "OUTRIDER_HOST_ROOT")),
        root_on_node=Path(required(environ, "OUTRIDER_HOST_ROOT_ON_NODE")),
        parts=parts,
        activation=parse_activation(activation) if activation is not None else None,
        health=parse_health(health or {}),
        keep=int(keep),
        pod=required(environ, "OUTRIDER_POD_UID"),
        namespaces=None if namespaces == "none" else Path(namespaces),
    )


def parse_activation(value: dict[str, Any]) -> Activation:
    """Return what OUTRIDER_ACTIVATE says. Raises ConfigError."""
    command, unit = _command(value, "OUTRIDER_ACTIVATE"), value.get("systemdUnit") or ""
    if not isinstance(unit, str) or bool(command) == bool(unit):
        raise ConfigError("OUTRIDER_ACTIVATE has not exactly one of command and systemdUnit")
    if unit and _UNIT.fullmatch(unit) is None:
        raise ConfigError("OUTRIDER_ACTIVATE: systemdUnit is not the name of a unit")
    return Activation(command, unit)


def parse_health(value: dict[str, Any]) -> Health:
    """Return what OUTRIDER_HEALTH says. Raises ConfigError."""
    command, http = _command(value, "OUTRIDER_HEALTH"), value.get("http")
    if http is not None and command:
        raise ConfigError("OUTRIDER_HEALTH has both command and http")
    port, path = _http(http) if http is not None else (0, "/")
    timeout, period = (_seconds(value, *each) for each in (("timeoutSeconds", 30), ("periodSeconds", 10)))
    return Health(timeout, period, command, port, path)


def _http(value: Any) -> tuple[int, str]:
    port, path = (value.get("port"), value.get("path", "/")) if isinstance(value, dict) else (None, None)
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise ConfigError("OUTRIDER_HEALTH: http.port is no port")
    if not isinstance(path, str) or re.fullmatch("/[!-~]*", path) is None:
        raise ConfigError("OUTRIDER_HEALTH: http.path is no path that begins with '/'")
    return port, path


def _seconds(value: dict[str, Any], name: str, default: int) -> float:
    seconds = value.get(name, default)
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 < seconds <= _MAX_SECONDS:
        raise ConfigError(f"OUTRIDER_HEALTH: {name} is no number of seconds")
    return float(seconds)


def _command(value: dict[str, Any], name: str) -> tuple[str, ...]:
    command = value.get("command")
    if command is None:
        return ()
    if (
        not isinstance(command, list)
        or not command
        or not all(isinstance(word, str) and "\0" not in word for word in command)
        or not command[0].startswith("/")
    ):
        raise ConfigError(f"{name}: command is not a list of texts whose first is an absolute path")
    return tuple(command)


def _object(environ: Mapping[str, str], name: str) -> dict[str, Any] | None:
    text = environ.get(name, "")
    if not text:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is not a JSON object")
    return value
