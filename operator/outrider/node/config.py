"""What the fetch program is told, all of it by environment variables (see `USAGE`)."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from outrider.api.errors import OutriderError

USAGE: Final = """\
Usage: outrider-fetch [--version | --help]

Pulls the artifact of this node's platform by digest, verifies its hash and its signature, and puts it where the agent's
container finds it. Configured by environment:

  OUTRIDER_REFERENCE        the version's index: host/repository@sha256:<64 hex digits>
  OUTRIDER_COMPONENT        the component, as its author named it
  OUTRIDER_VERSION          the version
  OUTRIDER_TARGET_DIR       folder that the file is put into
  OUTRIDER_KEYS_DIR         folder of trusted public keys, *.pub
  OUTRIDER_DIGESTS          optional: JSON of platform to SHA-256 of its file: {"linux/amd64": "<64 hex digits>"}
  OUTRIDER_NAMESPACE        optional: the namespace of the version, for messages and the cache
  OUTRIDER_PLAIN_HTTP       optional: true to speak HTTP to the registry
  OUTRIDER_CA_FILE          optional: PEM of the authorities that vouch for the registry
  OUTRIDER_CREDENTIALS_DIR  optional: folder with the files username and password, or .dockerconfigjson, for the
                            registry, and ca.crt of the authorities that vouch for it; any of them may be missing
  OUTRIDER_ALLOW_RSA_2048   optional: true to accept RSA keys of 2048 bits
  OUTRIDER_REQUIRE_BINDING  optional: true to accept only signatures that name component, version and platform
  OUTRIDER_CACHE_DIR        optional: folder on the node's disk that keeps verified files for all its pods; needs
                            OUTRIDER_DIGESTS and OUTRIDER_NAMESPACE
  OUTRIDER_RUN_AS           optional: number of the user to become before anything is read or any connection is opened
  OUTRIDER_PREPARE          optional: true to fill the cache only; no OUTRIDER_TARGET_DIR then
  OUTRIDER_IDLE_DIR         optional: folder for a small program named idle that waits until it is told to end. With
                            OUTRIDER_PREPARE and without OUTRIDER_REFERENCE nothing else is done
  OUTRIDER_TERMINATION_LOG  optional: file for the reason of a failure, if it exists (default /dev/termination-log)

While the registry is down it waits and tries again, for ever. Exit codes:

  0  the verified file is in place
  2  the environment is wrong
  3  refused: what was found must not run here; the reason is in the log and in the termination log
  4  this node cannot take the file (no space, no permission)
"""

DEFAULT_TERMINATION_LOG: Final = "/dev/termination-log"

_REFERENCE: Final = re.compile(r"[^/@\s]+/[^@\s:]+@(sha256:[0-9a-f]{64})")
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_TRUE: Final = ("1", "true", "yes")
_FALSE: Final = ("", "0", "false", "no")
_MAX_USER: Final = 2**31 - 1


class ConfigError(OutriderError):
    """The environment is wrong; the text says which variable and how."""

    def __init__(self, message: str) -> None:
        super().__init__("ConfigInvalid", message)


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What the file has to be, and whom to trust."""

    reference: str
    digest: str
    """Of the index: `sha256:` and 64 hex digits."""
    component: str
    version: str
    keys_dir: Path
    digests: Mapping[str, str]
    """Platform (`os/arch`) to the SHA-256 of its file in hex, as the operator pinned it; may be empty."""
    namespace: str = ""
    allow_rsa_2048: bool = False
    require_binding: bool = False


@dataclass(frozen=True, kw_only=True)
class Config(Trust):
    """What to fetch, from where and to where."""

    host: str
    repository: str
    target_dir: Path | None
    """None: only the cache is filled."""
    plain_http: bool = False
    ca_file: str | None = None
    credentials_dir: Path | None = None
    cache_dir: Path | None = None
    run_as: int | None = None
    idle_dir: Path | None = None


@dataclass(frozen=True, kw_only=True)
class IdleConfig:
    """Nothing to fetch: images are kept, and their containers need something to run."""

    idle_dir: Path
    run_as: int | None = None


def read_config(environ: Mapping[str, str]) -> Config:
    """Return the configuration. Raises ConfigError."""
    trust = read_trust(environ)
    host, _, repository = trust["reference"].partition("@")[0].partition("/")
    prepare = _flag(environ, "OUTRIDER_PREPARE")
    cache_dir = optional_path(environ, "OUTRIDER_CACHE_DIR")
    if prepare and cache_dir is None:
        raise ConfigError("OUTRIDER_PREPARE is true, and OUTRIDER_CACHE_DIR is not set")
    if cache_dir is not None:
        if not trust["digests"]:
            raise ConfigError("OUTRIDER_CACHE_DIR is set, and OUTRIDER_DIGESTS, by which it is filled, is not")
        for name, value in (("NAMESPACE", trust["namespace"]), ("COMPONENT", trust["component"])):
            if _NAME.fullmatch(value) is None:
                raise ConfigError(f"OUTRIDER_{name} is no name that a folder of the cache can have")
    return Config(
        **trust,
        host=host,
        repository=repository,
        target_dir=None if prepare else Path(required(environ, "OUTRIDER_TARGET_DIR")),
        plain_http=_flag(environ, "OUTRIDER_PLAIN_HTTP"),
        ca_file=environ.get("OUTRIDER_CA_FILE") or None,
        credentials_dir=optional_path(environ, "OUTRIDER_CREDENTIALS_DIR"),
        cache_dir=cache_dir,
        run_as=_user(environ, "OUTRIDER_RUN_AS"),
        idle_dir=optional_path(environ, "OUTRIDER_IDLE_DIR"),
    )


def read_idle_config(environ: Mapping[str, str]) -> IdleConfig | None:
    """Return what to do if there is nothing to fetch, else None. Raises ConfigError."""
    idle_dir = optional_path(environ, "OUTRIDER_IDLE_DIR")
    if environ.get("OUTRIDER_REFERENCE") or idle_dir is None or not _flag(environ, "OUTRIDER_PREPARE"):
        return None
    return IdleConfig(idle_dir=idle_dir, run_as=_user(environ, "OUTRIDER_RUN_AS"))


def read_trust(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of `Trust`. Raises ConfigError."""
    reference = required(environ, "OUTRIDER_REFERENCE")
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError("OUTRIDER_REFERENCE is not host/repository@sha256:<64 hex digits>")
    return {
        "reference": reference,
        "digest": match[1],
        "component": required(environ, "OUTRIDER_COMPONENT"),
        "version": required(environ, "OUTRIDER_VERSION"),
        "keys_dir": Path(required(environ, "OUTRIDER_KEYS_DIR")),
        "digests": _digests(environ.get("OUTRIDER_DIGESTS", "")),
        "namespace": environ.get("OUTRIDER_NAMESPACE", ""),
        "allow_rsa_2048": _flag(environ, "OUTRIDER_ALLOW_RSA_2048"),
        "require_binding": _flag(environ, "OUTRIDER_REQUIRE_BINDING"),
    }


def required(environ: Mapping[str, str], name: str) -> str:
    """Return a variable that must be set. Raises ConfigError."""
    value = environ.get(name, "")
    if not value:
        raise ConfigError(f"{name} is not set")
    return value


def optional_path(environ: Mapping[str, str], name: str) -> Path | None:
    """Return a variable that is a path, None if it is not set."""
    value = environ.get(name)
    return Path(value) if value else None


def _flag(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "").lower()
    if value not in _TRUE + _FALSE:
        raise ConfigError(f"{name} is neither true nor false")
    return value in _TRUE


def _user(environ: Mapping[str, str], name: str) -> int | None:
    value = environ.get(name, "")
    if not value:
        return None
    if not re.fullmatch("[1-9][0-9]{0,9}", value) or int(value) > _MAX_USER:
        raise ConfigError(f"{name} is not the number of a user other than root")
    return int(value)


def _digests(text: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not all(
        isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in value.values()
    ):
        raise ConfigError("OUTRIDER_DIGESTS is not a JSON object of platform to SHA-256 (64 lower-case hex digits)")
    return value
