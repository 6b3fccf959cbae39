"""The operator's settings: each variable has its effect, and a bad value names the variable."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.api.errors import Stalling
from outrider.settings import Retry, Settings, read_settings

REGISTRY = {"OUTRIDER_REGISTRY": "registry.test:5000"}


def read(**variables: str) -> Settings:
    return read_settings(REGISTRY | {f"OUTRIDER_{name}": value for name, value in variables.items()})


def test_without_anything_else_the_defaults_hold() -> None:
    assert read() == Settings(registry="registry.test:5000")


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("NAMESPACE", "ops", "namespace", "ops"),
        ("POD_NAME", "outrider-0", "pod_name", "outrider-0"),
        ("REGISTRY", "other.test", "registry", "other.test"),
        ("REGISTRY_PREFIX", "/a/b/", "registry_prefix", "a/b"),
        ("REGISTRY_PLAIN_HTTP", "true", "registry_plain_http", True),
        ("REGISTRY_PLAIN_HTTP", "False", "registry_plain_http", False),
        ("REGISTRY_CA_FILE", "/ca.crt", "registry_ca_file", "/ca.crt"),
        ("REGISTRY_USERNAME", "me", "registry_username", "me"),
        ("REGISTRY_PASSWORD", "secret", "registry_password", "secret"),
        ("NODE_REGISTRY", "nodes.test", "node_registry", "nodes.test"),
        ("FETCH_IMAGE", "outrider:9", "fetch_image", "outrider:9"),
        ("FETCH_IMAGE_PULL_POLICY", "Always", "fetch_image_pull_policy", "Always"),
        ("NODE_DIR", "/srv/outrider", "node_dir", "/srv/outrider"),
        ("NODE_REGISTRY_SECRET", "pull-from-registry", "node_registry_secret", "pull-from-registry"),
        ("HOST_ROOTS", "/opt, /srv/daemons,", "host_roots", ("/opt", "/srv/daemons")),
        ("HOST_ROOTS", "None", "host_roots", ()),
        ("ALLOWED_SOURCE_HOSTS", "a.test, *.b.test,,", "allowed_source_hosts", ("a.test", "*.b.test")),
        ("ALLOWED_SOURCE_ADDRESSES", "127.0.0.1, fd00::/8", "allowed_source_addresses", ("127.0.0.1", "fd00::/8")),
        ("PLAIN_HTTP_SOURCES", "*.lan:5000", "plain_http_sources", ("*.lan:5000",)),
        ("REGISTRY_DOCKER_CONFIG", "/config.json", "registry_docker_config", "/config.json"),
        ("SERVICE_ACCOUNT", "mine", "service_account", "mine"),
        ("REQUIRE_BINDING", "true", "require_binding", True),
        ("REVERIFY_SECONDS", "60", "reverify_seconds", 60.0),
        ("FRESH_SECONDS", "10", "fresh_seconds", 10.0),
        ("MAX_ARTIFACT_BYTES", "1048576", "max_artifact_bytes", 1048576),
        ("RETRY_FIRST_SECONDS", "0.5", "retry", Retry(first=0.5)),
        ("RETRY_FACTOR", "3", "retry", Retry(factor=3)),
        ("RETRY_MAX_SECONDS", "60", "retry", Retry(maximum=60)),
        ("INGEST_CONCURRENCY", "6", "ingest_concurrency", 6),
        ("ALLOW_RSA_2048", "true", "allow_rsa_2048", True),
        ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("LOG_FORMAT", "json", "log_format", "json"),
        ("LISTEN_HOST", "127.0.0.1", "listen_host", "127.0.0.1"),
        ("LISTEN_PORT", "0", "listen_port", 0),
        ("LEASE_SECONDS", "4", "lease_seconds", 4.0),
    ],
)
def test_each_variable_has_its_effect(name: str, value: str, field: str, expected: object) -> None:
    assert getattr(read(**{name: value}), field) == expected
    assert getattr(read(**{name: f"  {value} "}), field) == expected, "spaces around a value mean nothing"


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    fields = [field for field in Settings.__dataclass_fields__ if field not in {"registry", "retry"}]
    assert read(**dict.fromkeys([field.upper() for field in fields], "")) == read()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REGISTRY", ""),
        ("REGISTRY", "https://registry.test"),
        ("REGISTRY", "registry.test/path"),
        ("REGISTRY_PLAIN_HTTP", "yes"),
        ("ALLOW_RSA_2048", "1"),
        ("ALLOWED_SOURCE_ADDRESSES", "localhost"),
        ("REQUIRE_BINDING", "yes"),
        ("REVERIFY_SECONDS", "0"),
        ("MAX_ARTIFACT_BYTES", "0"),
        ("MAX_ARTIFACT_BYTES", "16 GiB"),
        ("MAX_ARTIFACT_BYTES", "inf"),
        ("MAX_ARTIFACT_BYTES", "nan"),
        ("RETRY_FIRST_SECONDS", "0"),
        ("RETRY_FIRST_SECONDS", "-1"),
        ("RETRY_FACTOR", "0.5"),
        ("RETRY_MAX_SECONDS", "soon"),
        ("RETRY_MAX_SECONDS", "inf"),
        ("INGEST_CONCURRENCY", "0"),
        ("INGEST_CONCURRENCY", "inf"),
        ("LISTEN_PORT", "-1"),
        ("LISTEN_PORT", "65536"),
        ("LISTEN_PORT", "http"),
        ("LEASE_SECONDS", "1"),
        ("LEASE_SECONDS", "inf"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "chatty"),
        ("FETCH_IMAGE_PULL_POLICY", "Sometimes"),
        ("NODE_DIR", "var/lib/outrider"),
        ("NODE_DIR", "/"),
        ("NODE_REGISTRY_SECRET", "Of_ours"),
        ("HOST_ROOTS", "/"),
        ("HOST_ROOTS", "opt"),
        ("HOST_ROOTS", "/opt/../etc"),
        ("HOST_ROOTS", "/opt/"),
        ("HOST_ROOTS", "/opt//a"),
        ("HOST_ROOTS", "/opt/.hidden"),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(Stalling) as caught:
        read(**{name: value})
    assert caught.value.reason == "SettingInvalid"
    assert f"OUTRIDER_{name} " in caught.value.message
    assert repr(value) in caught.value.message or not value


def test_a_missing_registry_says_where_to_set_it() -> None:
    with pytest.raises(Stalling, match=r"OUTRIDER_REGISTRY is not set.*chart value"):
        read_settings({})


@given(
    name=st.sampled_from([field.upper() for field in Settings.__dataclass_fields__ if field != "retry"]),
    value=st.text(max_size=20),
)
def test_whatever_stands_in_a_variable_is_taken_or_named(name: str, value: str) -> None:
    complaint = ""
    try:
        read(**{name: value})
    except Stalling as error:
        complaint = error.message
    assert not complaint or f"OUTRIDER_{name}" in complaint


def test_a_password_is_never_shown() -> None:
    assert "hunter2" not in repr(read(REGISTRY_PASSWORD="hunter2"))


def test_nodes_use_the_operators_registry_unless_they_have_their_own_way_to_it() -> None:
    assert read().registry_of_nodes == "registry.test:5000"
    assert read(NODE_REGISTRY="nodes.test").registry_of_nodes == "nodes.test"


def test_retries_are_1_2_4_8_and_so_on_capped() -> None:
    retry = Retry()
    assert [retry.delay(attempt) for attempt in range(1, 12)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


@pytest.mark.parametrize("attempt", [10**3, 10**6, 10**9])
def test_a_dependency_that_is_down_for_days_overflows_nothing(attempt: int) -> None:
    assert Retry().delay(attempt) == 300


@given(
    retry=st.builds(
        Retry,
        first=st.floats(0.01, 1e6, allow_nan=False),
        factor=st.floats(1, 1e6, allow_nan=False),
        maximum=st.floats(0.01, 1e6, allow_nan=False),
    ),
    attempt=st.integers(1, 10**6),
)
def test_delays_never_shrink_and_never_exceed_the_maximum(retry: Retry, attempt: int) -> None:
    assert 0 < retry.delay(attempt) <= retry.delay(attempt + 1) <= retry.maximum


def test_settings_cannot_be_changed() -> None:
    settings: Any = read()
    with pytest.raises(AttributeError):
        settings.registry = "other"
