"""What the fetch program is told, all of it by environment variables (see `USAGE`)."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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
  OUTRIDER_NAMESPACE        optional: the namespace of the version, for messages
  OUTRIDER_PLAIN_HTTP       optional: true to speak HTTP to the registry
  OUTRIDER_CA_FILE          optional: PEM of the authorities that vouch for the registry
  OUTRIDER_CREDENTIALS_DIR  optional: folder with the files username and password for the registry
  OUTRIDER_ALLOW_RSA_2048   optional: true to accept RSA keys of 2048 bits
  OUTRIDER_REQUIRE_BINDING  optional: true to accept only signatures that name component, version and platform
  OUTRIDER_TERMINATION_LOG  optional: file for the reason of a failure, if it exists (default /dev/termination-log)

While the registry is down it waits and tries again, for ever. Exit codes:

  0  the verified file is in place
  2  the environment is wrong
  3  refused: what was found must not run here; the reason is in the log and in the termination log
  4  this node cannot take the file (no space, no permission)
"""

DEFAULT_TERMINATION_LOG: Final = "/dev/termination-log"

_REFERENCE: Final = re.compile(r"(?P<host>[^/@\s]+)/(?P<repository>[^@\s:]+)@(?P<digest>sha256:[0-9a-f]{64})")
_TRUE: Final = ("1", "true", "yes")
_FALSE: Final = ("", "0", "false", "no")


class ConfigError(Exception):
    """The environment is wrong; the text says which variable and how."""


@dataclass(frozen=True)
class Config:
    """What to fetch, from where, to where, and whom to trust."""

    reference: str
    host: str
    repository: str
    digest: str
    """Of the index: `sha256:` and 64 hex digits."""
    component: str
    version: str
    target_dir: Path
    keys_dir: Path
    digests: Mapping[str, str]
    """Platform (`os/arch`) to the SHA-256 of its file in hex, as the operator pinned it; may be empty."""
    namespace: str = ""
    plain_http: bool = False
    ca_file: str | None = None
    credentials_dir: Path | None = None
    allow_rsa_2048: bool = False
    require_binding: bool = False


def read_config(environ: Mapping[str, str]) -> Config:
    """Return the configuration. Raises ConfigError."""
    reference = _required(environ, "OUTRIDER_REFERENCE")
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError("OUTRIDER_REFERENCE is not host/repository@sha256:<64 hex digits>")
    credentials = environ.get("OUTRIDER_CREDENTIALS_DIR")
    return Config(
        reference=reference,
        host=match["host"],
        repository=match["repository"],
        digest=match["digest"],
        component=_required(environ, "OUTRIDER_COMPONENT"),
        version=_required(environ, "OUTRIDER_VERSION"),
        target_dir=Path(_required(environ, "OUTRIDER_TARGET_DIR")),
        keys_dir=Path(_required(environ, "OUTRIDER_KEYS_DIR")),
        digests=_digests(environ.get("OUTRIDER_DIGESTS", "")),
        namespace=environ.get("OUTRIDER_NAMESPACE", ""),
        plain_http=_flag(environ, "OUTRIDER_PLAIN_HTTP"),
        ca_file=environ.get("OUTRIDER_CA_FILE") or None,
        credentials_dir=Path(credentials) if credentials else None,
        allow_rsa_2048=_flag(environ, "OUTRIDER_ALLOW_RSA_2048"),
        require_binding=_flag(environ, "OUTRIDER_REQUIRE_BINDING"),
    )


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if not value:
        raise ConfigError(f"{name} is not set")
    return value


def _flag(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "").lower()
    if value not in _TRUE + _FALSE:
        raise ConfigError(f"{name} is neither true nor false")
    return value in _TRUE


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
