"""A name in a spec leads to an object of its own namespace, and to no other place of the API."""

import pytest

from outrider.adapters.kube import CONFIG_MAPS, NODES, SECRETS
from outrider.api.errors import Stalling


@pytest.mark.parametrize(
    "name",
    [
        "../../outrider-system/secrets/outrider-registry",
        "..",
        ".",
        "a/../../../outrider-system/secrets/outrider-registry",
        "a..b",
        "a/log",
        "a?watch=true",
        "a#",
        "%2e%2e%2f",
        "a\\b",
        "a\n",
        "a b",
        "ä",
        "a" * 254,
    ],
)
def test_a_name_that_is_a_path_is_refused(name: str) -> None:
    for resource in (SECRETS, CONFIG_MAPS):
        with pytest.raises(Stalling) as refusal:
            resource.path("team-a", name)
        assert refusal.value.reason == "NameInvalid"
        with pytest.raises(Stalling):
            resource.path(name, "any")


def test_every_name_that_the_api_server_takes_is_one_segment() -> None:
    assert SECRETS.path("team-a", "pull-1.example.com") == "/api/v1/namespaces/team-a/secrets/pull-1.example.com"
    assert NODES.path(None, "a" * 253) == f"/api/v1/nodes/{'a' * 253}"
    assert CONFIG_MAPS.path("team-a") == "/api/v1/namespaces/team-a/configmaps"
