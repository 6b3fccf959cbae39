"""What the API server takes and we cannot read: it is refused in public, and what was published is withdrawn."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from outrider.adapters.events import EventRecorder
from outrider.adapters.informer import Informer
from outrider.adapters.kube import COMPONENT_VERSIONS, Cluster, Json, Resource
from outrider.api.errors import OutriderError
from outrider.core.conditions import MAX_MESSAGE, Finding, merge_conditions
from outrider.reconcile import testjobs
from outrider.reconcile.catalogue import Catalogue
from outrider.reconcile.trust import TrustStore
from outrider.reconcile.versions import VersionReconciler
from outrider.settings import Settings
from unit.test_version import NOW, PUBLISHED

NAME = "agent-1.4.0"
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")
CRD = Path(__file__).parents[2] / "charts/outrider/resources/crds/outrider.dev_componentversions.yaml"
SPEC: Json = {
    "component": "agent",
    "version": "1.4.0",
    "artifacts": [
        {
            "platform": {"arch": "amd64"},
            "fileName": "agent",
            "sha256": "a" * 64,
            "source": {"http": {"url": "https://files.test/agent"}},
            "signature": {"inline": "c2lnbmF0dXJl"},
        }
    ],
}


@pytest.fixture
async def versions(kube: Cluster) -> Informer[Json]:
    await kube.apply(CRDS, yaml.safe_load(CRD.read_text()))
    return Informer(kube, COMPONENT_VERSIONS, lambda obj, _before: obj, lambda _before, _after: None)


def reconciler_of(kube: Cluster, versions: Informer[Json]) -> VersionReconciler:
    recorder = EventRecorder(kube, "test")
    return VersionReconciler(
        kube,
        versions,
        Catalogue(),
        TrustStore(kube, Settings(), recorder, lambda: None),
        testjobs.TestJobs(kube, lambda _namespace, _name: None),
        lambda _namespace, _component, _version: None,
        recorder,
        Settings(),
        lambda _key: None,
    )


@pytest.mark.parametrize("expires", ["0000-01-01T00:00:00Z", "2026-01-01T00:00:00x5Z", "2026-01-01T00:00:00+99:00"])
async def test_what_was_published_is_withdrawn(kube: Cluster, versions: Informer[Json], expires: str) -> None:
    await kube.delete(COMPONENT_VERSIONS, "default", NAME)
    body: dict[str, Any] = {
        "apiVersion": COMPONENT_VERSIONS.api_version,
        "kind": "ComponentVersion",
        "metadata": {"name": NAME},
        "spec": {**SPEC, "expiresAt": expires},
    }
    created = await create(kube, body)
    status = {"metadata": {"name": NAME, "namespace": "default"}, "status": PUBLISHED.to_api()}
    versions.put(await kube.apply(COMPONENT_VERSIONS, status, manager="outrider-status", subresource="status"))
    assert created["spec"]["expiresAt"] == expires

    await reconciler_of(kube, versions).reconcile(f"default/{NAME}")

    found = await kube.get(COMPONENT_VERSIONS, "default", NAME)
    assert found is not None
    assert found["status"]["phase"] == "Withdrawn"
    assert all("signature" not in stored for stored in found["status"]["artifacts"])
    ready = {condition["type"]: condition for condition in found["status"]["conditions"]}["Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "SpecInvalid")
    assert "spec.expiresAt" in ready["message"]


async def create(kube: Cluster, body: Json) -> Json:
    """Create an object of a kind that the API server serves a moment after it has taken it."""
    for _ in range(200):
        try:
            return await kube.create(COMPONENT_VERSIONS, body, "default")
        except OutriderError as error:
            if error.reason != "NotFound":
                raise
        await asyncio.sleep(0.1)
    raise AssertionError("the kind is not served")


def test_no_message_is_longer_than_the_api_server_takes() -> None:
    (condition,) = merge_conditions([], [Finding("Ready", "False", "Broken", "x" * 1_000_000)], 1, NOW)
    assert len(condition.message) == MAX_MESSAGE
