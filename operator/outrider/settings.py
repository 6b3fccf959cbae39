"""The operator's settings: read once from the environment, checked, and immutable afterwards."""

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from outrider import __version__
from outrider.api.errors import Stalling


@dataclass(frozen=True)
class Retry:
    """How failed work is tried again: `first` seconds, then `factor` times as long each time, at most `maximum`."""

    first: float = 1.0
    factor: float = 2.0
    maximum: float = 300.0

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after the failed attempt number `attempt` (from 1)."""
        try:
            grown = self.first * float(self.factor) ** (attempt - 1)
        except OverflowError:  # a dependency that is down for days
            grown = math.inf
        return min(float(self.maximum), grown)


@dataclass(frozen=True)
class Settings:
    """What the chart's values decide. Every field has an environment variable `OUTRIDER_<FIELD>`."""

    namespace: str = "outrider-system"
    pod_name: str = "outrider"
    service_account: str = "outrider"
    registry: str = ""
    registry_prefix: str = "outrider"
    registry_plain_http: bool = False
    registry_ca_file: str = ""
    registry_username: str = ""
    registry_password: str = field(default="", repr=False)
    registry_docker_config: str = ""
    node_registry: str = ""
    fetch_image: str = f"outrider:{__version__}"
    fetch_image_pull_policy: str = "IfNotPresent"
    node_dir: str = "/var/lib/outrider"
    node_registry_secret: str = ""
    host_roots: tuple[str, ...] = ("/opt",)
    allowed_source_hosts: tuple[str, ...] = ()
    allowed_source_addresses: tuple[str, ...] = ()
    plain_http_sources: tuple[str, ...] = ()
    allowed_check_hosts: tuple[str, ...] = ()
    allowed_check_addresses: tuple[str, ...] = ()
    max_artifact_bytes: int = 16 * 1024**3
    retry: Retry = Retry()
    ingest_concurrency: int = 4
    allow_rsa_2048: bool = False
    require_binding: bool = False
    reverify_seconds: float = 86400.0
    fresh_seconds: float = 300.0
    requested_by_unchecked: bool = False
    log_level: str = "INFO"
    log_format: str = "text"
    listen_host: str = ""
    listen_port: int = 8080
    lease_seconds: float = 10.0

    @property
    def registry_of_nodes(self) -> str:
        """Return the registry's host[:port] as nodes reach it."""
        return self.node_registry or self.registry


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings from environment variables; raises Stalling(SettingInvalid) naming the variable."""

    def text(name: str, default: str) -> str:
        return environment.get(f"OUTRIDER_{name}", "").strip() or default

    def number(name: str, default: float, minimum: float, maximum: float = 1e15) -> float:
        value = text(name, str(default))
        try:
            parsed = float(value)
        except ValueError:
            parsed = math.nan
        if not minimum <= parsed <= maximum:
            most = f" and at most {maximum:g}" if parsed > maximum else ""
            raise Stalling(
                "SettingInvalid", f"OUTRIDER_{name} must be a number of at least {minimum:g}{most}, not {value!r}"
            )
        return parsed

    def choice(name: str, default: str, *choices: str) -> str:
        value = text(name, default)
        found = next((choice for choice in choices if choice.lower() == value.lower()), None)
        if found is None:
            raise Stalling("SettingInvalid", f"OUTRIDER_{name} must be one of {', '.join(choices)}, not {value!r}")
        return found

    def switch(name: str) -> bool:
        value = text(name, "false").lower()
        if value not in {"true", "false"}:
            raise Stalling("SettingInvalid", f"OUTRIDER_{name} must be true or false, not {value!r}")
        return value == "true"

    def several(name: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text(name, "").split(",") if part.strip())

    default = Settings()
    registry = text("REGISTRY", "")
    if not registry:
        raise Stalling(
            "SettingInvalid",
            "OUTRIDER_REGISTRY is not set: it names the OCI registry (host[:port]) that holds the artifacts; set it in "
            "the ConfigMap outrider-settings (chart value registry.host) and restart",
        )
    if "/" in registry:
        raise Stalling("SettingInvalid", f"OUTRIDER_REGISTRY must be host[:port] without scheme or path: {registry!r}")
    return Settings(
        namespace=text("NAMESPACE", default.namespace),
        pod_name=text("POD_NAME", default.pod_name),
        service_account=text("SERVICE_ACCOUNT", default.service_account),
        registry=registry,
        registry_prefix=text("REGISTRY_PREFIX", default.registry_prefix).strip("/"),
        registry_plain_http=switch("REGISTRY_PLAIN_HTTP"),
        registry_ca_file=text("REGISTRY_CA_FILE", ""),
        registry_username=text("REGISTRY_USERNAME", ""),
        registry_password=text("REGISTRY_PASSWORD", ""),
        registry_docker_config=text("REGISTRY_DOCKER_CONFIG", ""),
        node_registry=text("NODE_REGISTRY", ""),
        fetch_image=text("FETCH_IMAGE", default.fetch_image),
        fetch_image_pull_policy=choice(
            "FETCH_IMAGE_PULL_POLICY", default.fetch_image_pull_policy, "Always", "IfNotPresent", "Never"
        ),
        node_dir=_check_folder("NODE_DIR", text("NODE_DIR", default.node_dir)),
        node_registry_secret=_check_name("NODE_REGISTRY_SECRET", text("NODE_REGISTRY_SECRET", "")),
        host_roots=_check_roots("HOST_ROOTS", text("HOST_ROOTS", ",".join(default.host_roots))),
        allowed_source_hosts=several("ALLOWED_SOURCE_HOSTS"),
        allowed_source_addresses=_check_networks("ALLOWED_SOURCE_ADDRESSES", several("ALLOWED_SOURCE_ADDRESSES")),
        plain_http_sources=several("PLAIN_HTTP_SOURCES"),
        allowed_check_hosts=several("ALLOWED_CHECK_HOSTS"),
        allowed_check_addresses=_check_networks("ALLOWED_CHECK_ADDRESSES", several("ALLOWED_CHECK_ADDRESSES")),
        max_artifact_bytes=int(number("MAX_ARTIFACT_BYTES", default.max_artifact_bytes, 1)),
        retry=Retry(
            number("RETRY_FIRST_SECONDS", default.retry.first, 0.01),
            number("RETRY_FACTOR", default.retry.factor, 1),
            number("RETRY_MAX_SECONDS", default.retry.maximum, 0.01),
        ),
        ingest_concurrency=int(number("INGEST_CONCURRENCY", default.ingest_concurrency, 1)),
        allow_rsa_2048=switch("ALLOW_RSA_2048"),
        require_binding=switch("REQUIRE_BINDING"),
        reverify_seconds=number("REVERIFY_SECONDS", default.reverify_seconds, 1),
        fresh_seconds=number("FRESH_SECONDS", default.fresh_seconds, 1),
        requested_by_unchecked=switch("REQUESTED_BY_UNCHECKED"),
        log_level=choice("LOG_LEVEL", default.log_level, "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
        log_format=choice("LOG_FORMAT", default.log_format, "text", "json"),
        listen_host=text("LISTEN_HOST", ""),
        listen_port=int(number("LISTEN_PORT", default.listen_port, 0, 65535)),
        lease_seconds=number("LEASE_SECONDS", default.lease_seconds, 2),
    )


_FOLDER = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
_NAME = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?")


def _check_folder(name: str, value: str) -> str:
    if _FOLDER.fullmatch(value) is None:
        raise Stalling(
            "SettingInvalid",
            f"OUTRIDER_{name} must be a folder of the nodes as an absolute path, such as /opt: not '/' itself, without "
            f"'..', '//', a '/' at its end or a part that begins with '.', not {value!r}",
        )
    return value


def _check_roots(name: str, value: str) -> tuple[str, ...]:
    if value.lower() == "none":
        return ()
    return tuple(_check_folder(name, stripped) for part in value.split(",") if (stripped := part.strip()))


def _check_name(name: str, value: str) -> str:
    if _NAME.fullmatch(value) is None:
        raise Stalling("SettingInvalid", f"OUTRIDER_{name} must be the name of a Secret, not {value!r}")
    return value


def _check_networks(name: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    for part in parts:
        try:
            ipaddress.ip_network(part, strict=False)
        except ValueError:
            raise Stalling(
                "SettingInvalid",
                f"OUTRIDER_{name} must be addresses or networks such as 10.0.0.0/8, divided by commas, not {part!r}",
            ) from None
    return parts
