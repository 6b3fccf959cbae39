"""What a version names in its namespace: ConfigMaps, Secrets, signature documents. Read when needed, never kept.

The operator reads Secrets only where it was given the right to: a Secret that it may not read is a refusal with the
command that gives the right, not an outage.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from outrider.adapters.kube import CONFIG_MAPS, SECRETS, Cluster, Json
from outrider.api.componentversion import ConfigMapKey, SecretReference
from outrider.api.errors import OutriderError, Stalling
from outrider.api.names import ANNOTATION_RECONCILE

RETRY: Final = f"then annotate the ComponentVersion with {ANNOTATION_RECONCILE} to try again at once"

_MAX_LISTED: Final = 10
"""Keys of an object that a message names."""
_DOCKER_CONFIG_KEYS: Final = (".dockerconfigjson", ".dockercfg")


@dataclass(frozen=True)
class Login:
    """What a Secret holds for a server or a registry; never shown."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    authorization: str = field(default="", repr=False)
    """The whole header, for an HTTP server."""
    docker_config: bytes = field(default=b"", repr=False)

    def header(self) -> str:
        """Return the Authorization header for an HTTP server. Raises Stalling(SecretUnusable)."""
        if self.authorization:
            return self.authorization
        if self.docker_config:
            raise Stalling(
                "SecretUnusable",
                "a web server is logged in to with username and password, or token, or authorization; the Secret has "
                f"only a docker config; give it one of these, {RETRY}",
            )
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


async def read_config_map(cluster: Cluster, namespace: str, source: ConfigMapKey) -> bytes:
    """Return a ConfigMap's value. Raises Stalling(SourceNotFound)."""
    found = await cluster.get(CONFIG_MAPS, namespace, source.name)
    if found is None:
        raise Stalling(
            "SourceNotFound", f"there is no ConfigMap {source.name} in namespace {namespace}; create it, {RETRY}"
        )
    text, binary = (found.get("data") or {}), (found.get("binaryData") or {})
    if source.key in text:
        return str(text[source.key]).encode()
    if source.key in binary:
        return base64.b64decode(binary[source.key])
    keys = _listed([*text, *binary])
    raise Stalling(
        "SourceNotFound", f"ConfigMap {source.name} has no key {source.key} (it has: {keys}); add it, {RETRY}"
    )


async def read_login(
    cluster: Cluster, namespace: str, reference: SecretReference | None, service_account: str
) -> Login | None:
    """Return what a Secret holds to log in with; None if none is named.

    `service_account` is the operator's, for the message. Raises Stalling(SecretNotFound, SecretForbidden,
    SecretUnusable); no message holds any of the Secret.
    """
    if reference is None:
        return None
    name = reference.name
    try:
        found = await cluster.get(SECRETS, namespace, name)
    except OutriderError as error:
        if error.reason != "Forbidden":
            raise
        raise Stalling("SecretForbidden", _how_to_allow(namespace, name, service_account)) from None
    if found is None:
        raise Stalling("SecretNotFound", f"there is no Secret {name} in namespace {namespace}; create it, {RETRY}")
    return _login_of(namespace, name, _decoded(found))


def _login_of(namespace: str, name: str, data: Mapping[str, bytes]) -> Login:
    for key in _DOCKER_CONFIG_KEYS:
        if key in data:
            return Login(docker_config=data[key])

    def text(key: str) -> str:
        try:
            value = data[key].decode().strip()
        except UnicodeDecodeError:
            value = "\n"
        if not value.isprintable():
            raise _unusable(namespace, name, f"its key {key} holds more than one line, or is no text")
        return value

    if "authorization" in data:
        return Login(authorization=text("authorization"))
    if "token" in data:
        return Login(authorization=f"Bearer {text('token')}")
    if "username" in data and "password" in data:
        return Login(username=text("username"), password=text("password"))
    keys = _listed(data)
    raise _unusable(namespace, name, f"it has the keys {keys}")


def _listed(keys: Iterable[str]) -> str:
    """Return the first few of an object's keys, for a message."""
    found = sorted(keys)
    more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
    return ", ".join(found[:_MAX_LISTED]) + more if found else "none"


def _decoded(secret: Json) -> dict[str, bytes]:
    decoded = {}
    for key, value in (secret.get("data") or {}).items():
        try:
            decoded[key] = base64.b64decode(value)
        except (binascii.Error, ValueError):
            continue
    return decoded


def _unusable(namespace: str, name: str, problem: str) -> Stalling:
    return Stalling(
        "SecretUnusable",
        f"Secret {name} in namespace {namespace} cannot be used to log in: {problem}; give it username and password, "
        f"or token, or authorization, or .dockerconfigjson, {RETRY}",
    )


def _how_to_allow(namespace: str, name: str, service_account: str) -> str:
    return (
        f"the operator may not read Secret {name} in namespace {namespace}; allow it: kubectl --namespace {namespace} "
        f"create role outrider-{name} --verb=get --resource=secrets --resource-name={name} && kubectl --namespace "
        f"{namespace} create rolebinding outrider-{name} --role=outrider-{name} --serviceaccount={service_account}; "
        f"{RETRY}"
    )
