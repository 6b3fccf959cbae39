"""The ConfigMap of keys that nodes trust holds what the operator trusts, whoever made it first."""

import base64

import pytest

from adapters.realapiserver import config_map
from outrider.adapters.events import EventRecorder
from outrider.adapters.kube import CONFIG_MAPS, Cluster
from outrider.api.names import trusted_keys_name
from outrider.reconcile.trust import TrustStore
from outrider.settings import Settings


def store_of(kube: Cluster) -> TrustStore:
    return TrustStore(kube, Settings(), EventRecorder(kube, "test"), lambda: None)


@pytest.mark.parametrize("planted", [{"data"}, {"binaryData"}, {"data", "binaryData"}])
async def test_a_key_that_was_planted_before_is_taken_out(kube: Cluster, planted: set[str]) -> None:
    name = trusted_keys_name(f"agent-{'-'.join(sorted(planted)).lower()}")
    body = config_map(name)
    body.pop("data", None)
    if "data" in planted:
        body["data"] = {"mine.pub": "a key of the author's own"}
    if "binaryData" in planted:
        body["binaryData"] = {"mine-too.pub": base64.b64encode(b"another").decode()}
    await kube.delete(CONFIG_MAPS, "default", name)
    await kube.create(CONFIG_MAPS, body, "default")

    await store_of(kube).hand_out("default", name.removeprefix(trusted_keys_name("")))

    found = await kube.get(CONFIG_MAPS, "default", name)
    assert found is not None
    assert not found.get("data")
    assert not found.get("binaryData")
    assert found["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "outrider"
