"""Where nodes fetch a version from: the registry has another name there, and only that registry has."""

from typing import Any

import pytest

from outrider.api.componentversion import StoredArtifact
from outrider.core.delivery import FetchSettings
from outrider.reconcile.places import fetch_settings
from outrider.settings import Settings

DIGEST = f"sha256:{'a' * 64}"
INDEX = f"registry.test:5000/outrider/fleet/agent@{DIGEST}"


def stored(platform: str = "linux/amd64", image: str | None = None) -> StoredArtifact:
    return StoredArtifact(
        platform=platform, digest=DIGEST, size=1, reference="r", download_url="u", spec_hash="h", image=image
    )


def settings_for(*artifacts: StoredArtifact, **changes: Any) -> FetchSettings:
    return fetch_settings(Settings(registry="registry.test:5000", **changes), INDEX, artifacts or [stored()])


def test_nodes_are_told_their_own_name_of_the_registry() -> None:
    assert settings_for().reference == INDEX
    elsewhere = settings_for(node_registry="nodes.test")
    assert elsewhere.reference == f"nodes.test/outrider/fleet/agent@{DIGEST}"
    assert elsewhere.digests == {"linux/amd64": "a" * 64}


@pytest.mark.parametrize(
    ("image", "seen"),
    [
        pytest.param(f"registry.test:5000/a@{DIGEST}", f"nodes.test/a@{DIGEST}", id="a copy that the operator made"),
        pytest.param(f"elsewhere.test/a@{DIGEST}", f"elsewhere.test/a@{DIGEST}", id="one that stays where it is"),
        pytest.param(
            f"registry.test:50001/a@{DIGEST}", f"registry.test:50001/a@{DIGEST}", id="a registry called almost so"
        ),
    ],
)
def test_an_image_is_pulled_from_where_nodes_reach_it(image: str, seen: str) -> None:
    found = settings_for(stored(image=image), stored("linux/arm64", image), node_registry="nodes.test")
    assert found.images == {"linux/amd64": seen, "linux/arm64": seen}


def test_files_are_no_images() -> None:
    assert settings_for().images == {}


def test_what_is_set_for_the_nodes_reaches_them() -> None:
    found = settings_for(node_dir="/srv/outrider", node_registry_secret="pull", host_roots=("/srv",))
    assert (found.node_dir, found.registry_secret, found.host_roots) == ("/srv/outrider", "pull", ("/srv",))
    assert found.may_use_node
