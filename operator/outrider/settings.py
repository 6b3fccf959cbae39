"""The operator's settings: read once from the environment, checked, and immutable afterwards."""

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
        # The exponent is bounded so that a dependency that is down for days does not overflow a float.
        return float(min(self.maximum, self.first * self.factor ** min(attempt - 1, 64)))


@dataclass(frozen=True)
class Settings:
    """What the chart's values decide. Every field has an environment variable `OUTRIDER_<FIELD>`."""

    namespace: str = "outrider-system"
    pod_name: str = "outrider"
    registry: str = ""
    registry_prefix: str = "outrider"
    registry_plain_http: bool = False
    registry_ca_file: str = ""
    registry_username: str = ""
    registry_password: str = field(default="", repr=False)
    node_registry: str = ""
    fetch_image: str = f"outrider:{__version__}"
    fetch_image_pull_policy: str = "IfNotPresent"
    allowed_source_hosts: tuple[str, ...] = ()
    max_artifact_bytes: int = 16 * 1024**3
    retry: Retry = Retry()
    ingest_concurrency: int = 2
    allow_rsa_2048: bool = False
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

    def number(name: str, default: float, minimum: float) -> float:
        value = text(name, str(default))
        try:
            parsed = float(value)
        except ValueError:
            parsed = float("nan")
        if not parsed >= minimum:
            raise Stalling("SettingInvalid", f"OUTRIDER_{name} must be a number of at least {minimum:g}, not {value!r}")
        return parsed

    def switch(name: str) -> bool:
        value = text(name, "false").lower()
        if value not in {"true", "false"}:
            raise Stalling("SettingInvalid", f"OUTRIDER_{name} must be true or false, not {value!r}")
        return value == "true"

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
    log_format = text("LOG_FORMAT", default.log_format)
    if log_format not in {"text", "json"}:
        raise Stalling("SettingInvalid", f"OUTRIDER_LOG_FORMAT must be text or json, not {log_format!r}")
    return Settings(
        namespace=text("NAMESPACE", default.namespace),
        pod_name=text("POD_NAME", default.pod_name),
        registry=registry,
        registry_prefix=text("REGISTRY_PREFIX", default.registry_prefix).strip("/"),
        registry_plain_http=switch("REGISTRY_PLAIN_HTTP"),
        registry_ca_file=text("REGISTRY_CA_FILE", ""),
        registry_username=text("REGISTRY_USERNAME", ""),
        registry_password=text("REGISTRY_PASSWORD", ""),
        node_registry=text("NODE_REGISTRY", ""),
        fetch_image=text("FETCH_IMAGE", default.fetch_image),
        fetch_image_pull_policy=text("FETCH_IMAGE_PULL_POLICY", default.fetch_image_pull_policy),
        allowed_source_hosts=tuple(h.strip() for h in text("ALLOWED_SOURCE_HOSTS", "").split(",") if h.strip()),
        max_artifact_bytes=int(number("MAX_ARTIFACT_BYTES", default.max_artifact_bytes, 1)),
        retry=Retry(
            number("RETRY_FIRST_SECONDS", default.retry.first, 0.01),
            number("RETRY_FACTOR", default.retry.factor, 1),
            number("RETRY_MAX_SECONDS", default.retry.maximum, 0.01),
        ),
        ingest_concurrency=int(number("INGEST_CONCURRENCY", default.ingest_concurrency, 1)),
        allow_rsa_2048=switch("ALLOW_RSA_2048"),
        log_level=text("LOG_LEVEL", default.log_level).upper(),
        log_format=log_format,
        listen_host=text("LISTEN_HOST", ""),
        listen_port=int(number("LISTEN_PORT", default.listen_port, 0)),
        lease_seconds=number("LEASE_SECONDS", default.lease_seconds, 2),
    )
