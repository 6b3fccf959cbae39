"""Credentials out of a docker config.json."""

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.adapters.dockerconfig import Credentials, credentials_for
from outrider.api.errors import Stalling


def packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def config(**auths: Any) -> bytes:
    return json.dumps({"auths": auths}).encode()


def names(*names: str) -> bytes:
    """Return a config with one entry per name, whose user is that name."""
    return json.dumps({"auths": {name: {"username": name, "password": "p"} for name in names}}).encode()


@pytest.mark.parametrize(
    ("entry", "credentials"),
    [
        ({"auth": packed("me:secret")}, Credentials("me", "secret")),
        ({"auth": packed("me:se:cr:et")}, Credentials("me", "se:cr:et")),
        ({"auth": packed("me:secret\0\0")}, Credentials("me", "secret")),
        ({"auth": packed("m\u00e9:secr\u00e9t")}, Credentials("m\u00e9", "secr\u00e9t")),
        ({"username": "me", "password": "secret"}, Credentials("me", "secret")),
        ({"username": "a", "password": "b", "auth": packed("me:secret")}, Credentials("me", "secret")),
        ({"identitytoken": "abc"}, Credentials("", "", "abc")),
        ({"auth": packed("0000:"), "identitytoken": "abc"}, Credentials("0000", "", "abc")),
        ({"email": "x@example.org", "username": "me", "password": "secret"}, Credentials("me", "secret")),
        ({}, None),
        ({"username": "me"}, None),
        ({"auth": ""}, None),
        ({"auth": packed("me:")}, None),
    ],
)
def test_what_an_entry_says(entry: dict[str, str], credentials: Credentials | None) -> None:
    assert credentials_for(config(**{"registry.example.com": entry}), "registry.example.com", "a/b") == credentials


@pytest.mark.parametrize(
    ("name", "host", "repository", "matches"),
    [
        ("registry.example.com", "registry.example.com", "a", True),
        ("REGISTRY.example.com", "registry.EXAMPLE.com", "a", True),
        ("https://registry.example.com", "registry.example.com", "a", True),
        ("http://registry.example.com/", "registry.example.com", "a", True),
        ("https://registry.example.com/v1/", "registry.example.com", "a", True),
        ("https://registry.example.com/v2/", "registry.example.com", "a", True),
        ("registry.example.com:5000", "registry.example.com:5000", "a", True),
        ("registry.example.com", "registry.example.com:5000", "a", False),
        ("registry.example.com:5000", "registry.example.com", "a", False),
        ("*.example.com", "registry.example.com", "a", True),
        ("*.example.com", "a.b.example.com", "a", False),
        ("*.example.com", "example.com", "a", False),
        ("*.*.com", "registry.example.com", "a", True),
        ("*", "registry.example.com", "a", False),
        ("reg*.example.com", "registry.example.com", "a", True),
        ("example.com", "registry.example.com", "a", False),
        ("registry.example.com/team", "registry.example.com", "team", True),
        ("registry.example.com/team", "registry.example.com", "team/agent", True),
        ("registry.example.com/team/", "registry.example.com", "team/agent", True),
        ("registry.example.com/team", "registry.example.com", "team-two/agent", False),
        ("registry.example.com/team/agent", "registry.example.com", "team", False),
        ("https://index.docker.io/v1/", "docker.io", "library/busybox", True),
        ("https://index.docker.io/v1/", "registry-1.docker.io", "library/busybox", True),
        ("docker.io", "registry-1.docker.io", "library/busybox", True),
        ("docker.io", "docker.io.example.com", "library/busybox", False),
        ("[::1]:5000", "[::1]:5000", "a", True),
        ("https://[", "registry.example.com", "a", False),
        ("registry.example.com:x", "registry.example.com", "a", False),
        ("", "registry.example.com", "a", False),
    ],
)
def test_which_entries_match(name: str, host: str, repository: str, *, matches: bool) -> None:
    assert (credentials_for(names(name), host, repository) is not None) is matches


@pytest.mark.parametrize(
    ("entries", "winner"),
    [
        (("r.example.com", "r.example.com/team"), "r.example.com/team"),
        (("r.example.com/team/agent", "r.example.com/team"), "r.example.com/team/agent"),
        (("*.example.com", "r.example.com"), "r.example.com"),
        (("*.example.com/team", "r.example.com"), "*.example.com/team"),
        (("*.*.com", "*.example.com"), "*.example.com"),
    ],
)
def test_the_best_entry_wins(entries: tuple[str, ...], winner: str) -> None:
    for order in (entries, entries[::-1]):
        found = credentials_for(names(*order), "r.example.com", "team/agent")
        assert found is not None
        assert found.username == winner


@pytest.mark.parametrize("data", [b"{}", b'{"auths": {}}', b'{"credsStore": "desktop"}', names("other.example.com")])
def test_no_credentials(data: bytes) -> None:
    assert credentials_for(data, "registry.example.com", "a") is None


def test_the_older_form_without_auths_around() -> None:
    data = json.dumps({"registry.example.com": {"auth": packed("me:secret"), "email": ""}, "credHelpers": {"a": "b"}})
    assert credentials_for(data.encode(), "registry.example.com", "a") == Credentials("me", "secret")
    assert credentials_for(data.encode(), "credhelpers", "a") is None


SECRET = "hunter2"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hunter2",
        b"[]",
        b'{"auths": "hunter2"}',
        b'{"auths": {"r": {"auth": "eDp5"}, "r": {"auth": "eDp5"}}}',
        config(r=SECRET),
        config(r={"auth": SECRET}),
        config(r={"auth": packed(SECRET)}),
        config(r={"auth": packed(f"me:{SECRET}")[:-1]}),
        config(r={"auth": base64.b64encode(b"me:hunter2\xff").decode()}),
        config(r={"auth": 7}),
        config(r={"username": ["hunter2"], "password": "x"}),
        config(r={"username": "me", "password": "hunter2\r\n"}),
        config(r={"identitytoken": "hunter2\n"}),
        b'{"auths": ' + b"[" * 100_000,
        b'{"auths": {}, "x": "' + b"x" * 1024 * 1024 + b'"}',
    ],
)
def test_what_cannot_be_read_is_not_echoed(data: bytes) -> None:
    with pytest.raises(Stalling) as caught:
        credentials_for(data, "r", "a")
    assert caught.value.reason == "CredentialsMalformed"
    assert SECRET not in caught.value.message
    assert packed(SECRET)[:6] not in caught.value.message


def test_secrets_are_not_shown() -> None:
    assert "hunter2" not in repr(Credentials("me", "hunter2", "hunter2"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["auth", "username"]), inner),
)


@settings(deadline=None)
@given(st.binary() | json_values.map(lambda value: json.dumps({"auths": {"r": value}}).encode()))
def test_nothing_but_a_stop_escapes(data: bytes) -> None:
    with contextlib.suppress(Stalling):
        credentials_for(data, "r", "a")
