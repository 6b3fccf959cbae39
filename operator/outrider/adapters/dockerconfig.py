"""Credentials out of a docker `config.json`, as `docker login` and `kubectl create secret docker-registry` write it.

Pure: whoever has the bytes, from a Secret or a file, asks for one registry and repository. Which entry counts is what
the kubelet does (kubernetes.io/docs/concepts/containers/images, "Interpretation of config.json"), but for one thing: a
path matches whole segments only, so that what is for `team` is not sent for `team-two`.
"""

import re
import urllib.parse
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from outrider.api.errors import Stalling
from outrider.trust.documents import Malformed, decode_base64, parse_object

MAX_CONFIG_BYTES: Final = 1024 * 1024
"""The size that a Secret may have at most."""

_DOCKER_HUB: Final = ("docker.io", "index.docker.io", "registry-1.docker.io")
"""Names of one registry: the one that people write, the one in the file, the one that answers."""
_API_PATH: Final = re.compile(r"/v[12](/.*)?")
"""What clients long ago wrote behind the host."""


@dataclass(frozen=True)
class Credentials:
    """As whom to ask a registry."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """What a token service gives access tokens for, instead of a password."""


def credentials_for(config: bytes, host: str, repository: str) -> Credentials | None:
    """Return the credentials for a repository of a registry (`host[:port]`), or None if there are none.

    Of several entries that match, the one with the longest path counts, and then the one with fewest wildcards.
    Programs that the file names (`credsStore`, `credHelpers`) are not run. Raises Stalling(CredentialsMalformed).
    """
    try:
        value = parse_object(config, max_bytes=MAX_CONFIG_BYTES)
        auths = value["auths"] if "auths" in value else _old_form(value)
        if not isinstance(auths, dict):
            raise Malformed("its auths is not an object")
        matches = [(rank, entry) for name, entry in auths.items() if (rank := _match(name, host, repository))]
        if not matches:
            return None
        return _parse_entry(max(matches, key=lambda match: match[0])[1])
    except Malformed as error:
        # None of these texts quotes what was read, but for the names of members.
        raise Stalling(
            "CredentialsMalformed",
            f"the registry credentials (docker config.json) cannot be used: {error}; write them anew, for instance "
            "with kubectl create secret docker-registry",
        ) from None


def _old_form(value: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a `.dockercfg`, which has them without `auths` around."""
    return {
        name: entry
        for name, entry in value.items()
        if isinstance(entry, dict) and ("auth" in entry or "username" in entry)
    }


def _match(name: str, host: str, repository: str) -> tuple[int, int] | None:
    """Return how well an entry's name fits, None if it does not."""
    if "://" not in name:
        name = f"https://{name}"
    try:
        parts = urllib.parse.urlsplit(name.lower())
        wanted = urllib.parse.urlsplit(f"https://{host.lower()}")
        pattern, actual, ports = parts.hostname or "", wanted.hostname or "", (parts.port, wanted.port)
    except ValueError:
        return None
    path = "" if _API_PATH.fullmatch(parts.path) else parts.path.strip("/")
    if path and path != repository and not repository.startswith(f"{path}/"):
        return None
    if pattern in _DOCKER_HUB and actual in _DOCKER_HUB:
        return len(path), 0
    globs, labels = pattern.split("."), actual.split(".")
    if ports[0] != ports[1] or len(globs) != len(labels):
        return None
    if not all(fnmatchcase(label, glob) for label, glob in zip(labels, globs, strict=True)):
        return None
    return len(path), -sum("*" in glob or "?" in glob or "[" in glob for glob in globs)


def _parse_entry(entry: Any) -> Credentials | None:
    if not isinstance(entry, dict):
        raise Malformed("an entry is not an object")
    username, password, identity = (_member(entry, name) for name in ("username", "password", "identitytoken"))
    if packed := _member(entry, "auth"):
        try:
            username, separator, password = decode_base64(packed, "auth of an entry").decode().partition(":")
        except UnicodeDecodeError:
            raise Malformed("auth of an entry is not a text") from None
        if not separator:
            raise Malformed("auth of an entry is not <username>:<password>")
        password = password.strip("\0")
    if not identity and not (username and password):
        return None
    if any(character < " " or character == "\x7f" for character in username + password + identity):
        raise Malformed("an entry holds a control character")
    return Credentials(username, password, identity)


def _member(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name, "")
    if not isinstance(value, str):
        raise Malformed(f"{name} of an entry is not a text")
    return value
