"""A file becomes a Published version, and stays where any OCI client finds it; bad input never gets that far."""

import base64
import hashlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from e2e.files import P256, P384, RSA3072, Answer
from e2e.repository import INDEX
from e2e.story import COMPONENT, Given, Story, Then, When, content_of
from e2e.watching import Object, condition
from outrider.api import names

# --- what is good -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", [P256, P384, RSA3072], ids=["P-256", "P-384", "RSA-3072"])
def test_a_signed_file_becomes_a_published_version_that_any_oci_client_can_pull(
    story: Story, given: Given, when: When, then: Then, key: tuple[str, ...]
) -> None:
    given.a_trusted_key("release", *key)
    content = when.a_version_is_created("1.0.0")
    version = then.the_version_is("1.0.0", "Published", "Published")

    status = version["status"]
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    assert status["latest"] is True
    assert status["publishedAt"]
    [artifact] = status["artifacts"]
    assert (artifact["platform"], artifact["digest"], artifact["size"]) == ("linux/amd64", digest, len(content))
    assert artifact["signature"]["format"] == "Detached"
    for kind in ("Ready", "Stored", "Verified", "Tested"):
        assert condition(version, kind)["status"] == "True", kind
    with urllib.request.urlopen(artifact["downloadURL"], timeout=10) as answer:  # noqa: S310
        assert answer.read() == content
    assert story.repository.pull("1.0.0") == content
    assert status["reference"].endswith(
        "@sha256:" + hashlib.sha256(story.repository.get("manifests/1.0.0", INDEX)).hexdigest()
    )
    then.an_event_tells("ArtifactsStored")
    then.an_event_tells("SignaturesVerified")
    then.an_event_tells("Published", "Phase is now Published")


@pytest.mark.parametrize("field", ["data", "binaryData"])
def test_a_version_can_come_from_a_config_map(story: Story, given: Given, when: When, then: Then, field: str) -> None:
    given.a_trusted_key()
    content = content_of("1.0.0")
    value = content.decode() if field == "data" else base64.b64encode(content).decode()
    story.client.create(
        f"/api/v1/namespaces/{story.namespace}/configmaps", {"metadata": {"name": "agent"}, field: {"run.sh": value}}
    )
    when.a_version_is_created("1.0.0", source={"configMap": {"name": "agent", "key": "run.sh"}})
    then.the_version_is("1.0.0", "Published")
    assert story.repository.pull("1.0.0") == content
    assert f"{story.name}/1.0.0" not in story.files.asked


def test_latest_is_the_newest_published_version_whatever_the_order_of_publishing(
    story: Story, given: Given, when: When, then: Then
) -> None:
    def latest_is(version: str) -> None:
        story.api.wait(
            story.versions,
            lambda found: [v["spec"]["version"] for v in found.values() if v["status"].get("latest")] == [version],
            f"{version}, and no other, is the latest",
        )

    given.published_versions("1.9.0")
    latest_is("1.9.0")
    given.published_versions("1.10.0")
    latest_is("1.10.0")
    given.published_versions("1.2.0", "2.0.0-rc.1")
    latest_is("1.10.0")


# --- what is bad ------------------------------------------------------------------------------

Arrange = Callable[[Story], dict[str, Any]]


@dataclass(frozen=True)
class Refusal:
    """A way to get it wrong: how, with which reason it is refused, and which words tell what to do."""

    arrange: Arrange
    reason: str
    words: tuple[str, ...]
    step: str = "Stored"
    waits: bool = False


def answering(**fields: Any) -> Arrange:
    """The server answers so."""
    return lambda _story: {"answer": Answer(**fields)}


def overriding(**fields: Any) -> Arrange:
    """The artifact's entry says so."""
    return lambda _story: fields


def signed_by_a_stranger(story: Story) -> dict[str, Any]:
    return {"signature": {"inline": story.signer("stranger").sign(content_of("1.0.0"))}}


def signed_over_something_else(story: Story) -> dict[str, Any]:
    return {"signature": {"inline": story.signer().sign(b"something else")}}


def redirecting_in_a_circle(story: Story) -> dict[str, Any]:
    here, there = f"{story.name}/1.0.0", f"{story.name}/there"
    story.files.answers[there] = Answer(status=302, headers={"Location": story.files.url(here)})
    return {"answer": Answer(status=302, headers={"Location": story.files.url(there)})}


def a_config_map_without_the_key(story: Story) -> dict[str, Any]:
    body = {"metadata": {"name": "agent"}, "data": {"other": "x"}}
    story.client.create(f"/api/v1/namespaces/{story.namespace}/configmaps", body)
    return {"source": {"configMap": {"name": "agent", "key": "run.sh"}}}


REFUSALS = {
    "a wrong hash": Refusal(overriding(sha256="a" * 64), "DigestMismatch", ("spec.artifacts[linux/amd64].sha256",)),
    "another file than the one signed": Refusal(
        signed_over_something_else, "SignatureUntrusted", ("signature",), "Verified"
    ),
    "a signature by a stranger": Refusal(signed_by_a_stranger, "SignatureUntrusted", ("signature",), "Verified"),
    "a signature that is none": Refusal(
        overriding(signature={"inline": "bm90IGEgc2lnbmF0dXJl"}), "SignatureUntrusted", (), "Verified"
    ),
    "no file": Refusal(answering(status=404), "SourceNotFound", ("404", "correct the URL")),
    "no access": Refusal(answering(status=403), "SourceDenied", ("403", "allow it")),
    "a redirect in a circle": Refusal(redirecting_in_a_circle, "RedirectLoop", ("circle", "name the URL")),
    "a file that ends early": Refusal(
        answering(body=content_of("1.0.0")[:10], declared=1000), "SourceTruncated", ("10 of 1000 bytes",), waits=True
    ),
    "a file larger than it said": Refusal(
        answering(body=content_of("1.0.0") + b"more", declared=len(content_of("1.0.0")) - 1),
        "SourceTooLarge",
        ("announced", "sends more", "correct the Content-Length"),
    ),
    "a file that announces more than is allowed": Refusal(
        answering(body=b"x", declared=10**9), "SourceTooLarge", ("1000000000 bytes", "8388608")
    ),
    "a file that goes on for more than is allowed": Refusal(
        answering(body=b"x" * (9 * 1024 * 1024), chunked=True), "SourceTooLarge", ("sends more", "8388608")
    ),
    "a server in trouble": Refusal(answering(status=503), "SourceUnreachable", ("503", "tried again"), waits=True),
    "a ConfigMap that is missing": Refusal(
        overriding(source={"configMap": {"name": "nowhere", "key": "x"}}),
        "SourceNotFound",
        ("no ConfigMap nowhere", "create it"),
    ),
    "a ConfigMap without the key": Refusal(
        a_config_map_without_the_key, "SourceNotFound", ("no key run.sh", "other", "add it")
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_it_is_never_published_with(story: Story, given: Given, when: When, then: Then, refusal: Refusal) -> None:
    given.a_trusted_key()
    when.a_version_is_created("1.0.0", **refusal.arrange(story))
    version = then.the_version_is("1.0.0", "Draft", refusal.reason, never="Published")

    ready = condition(version, "Ready")
    assert ready["status"] == "False"
    for word in refusal.words:
        assert word in ready["message"], ready["message"]
    # What waiting may mend goes on; what only a person can mend stands.
    assert bool(condition(version, "Reconciling")) == refusal.waits
    assert bool(condition(version, "Stalled")) == (not refusal.waits)
    assert condition(version, refusal.step)["reason"] == refusal.reason
    assert condition(version, refusal.step)["status"] == ("Unknown" if refusal.waits else "False")
    assert version["status"].get("publishedAt") is None
    assert version["status"].get("reference") is None
    assert story.repository.tags() == []
    then.an_event_tells(refusal.reason)


def test_a_corrected_artifact_is_published(story: Story, given: Given, when: When, then: Then) -> None:
    given.a_trusted_key()
    when.a_version_is_created("1.0.0", sha256="a" * 64)
    then.the_version_is("1.0.0", "Draft", "DigestMismatch", never="Published")
    change: Any = [
        {"op": "replace", "path": "/spec/artifacts/0/sha256", "value": hashlib.sha256(content_of("1.0.0")).hexdigest()}
    ]
    story.client.raw("PATCH", f"{story.versions}/{COMPONENT}-1.0.0", change, "application/json-patch+json")
    then.the_version_is("1.0.0", "Published")


def test_a_file_that_was_missing_is_taken_when_somebody_asks_to_try_again(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.a_trusted_key()
    when.a_version_is_created("1.0.0", Answer(status=404))
    then.the_version_is("1.0.0", "Draft", "SourceNotFound", never="Published")
    story.files.answers[f"{story.name}/1.0.0"] = Answer(content_of("1.0.0"))
    request = {"metadata": {"annotations": {names.ANNOTATION_RECONCILE: "now"}}}
    story.client.merge(f"{story.versions}/{COMPONENT}-1.0.0", request)
    then.the_version_is("1.0.0", "Published")


# --- what mends itself ------------------------------------------------------------------------


def test_without_a_trusted_key_it_waits_for_one(story: Story, when: When, then: Then) -> None:
    when.a_version_is_created("1.0.0")
    version = then.the_version_is("1.0.0", "Draft", "NoTrustedKey", never="Published")
    assert "outrider-system" in condition(version, "Ready")["message"]
    assert condition(version, "Stored")["status"] == "True"
    assert story.repository.tags() == []

    story.trust()
    then.the_version_is("1.0.0", "Published", seconds=20)


def test_a_key_that_comes_later_than_a_strangers_publishes_it(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.a_trusted_key("other")
    when.a_version_is_created("1.0.0")
    then.the_version_is("1.0.0", "Draft", "SignatureUntrusted", never="Published")
    story.trust()
    then.the_version_is("1.0.0", "Published", seconds=20)


def test_when_the_server_comes_back_it_is_published(story: Story, given: Given, when: When, then: Then) -> None:
    given.a_trusted_key()
    story.files.stop()
    when.a_version_is_created("1.0.0")
    version = then.the_version_is("1.0.0", "Draft", "SourceUnreachable", never="Published")
    assert condition(version, "Reconciling")
    assert "next at" in condition(version, "Ready")["message"]

    story.files.start()
    then.the_version_is("1.0.0", "Published", seconds=20)


def test_when_the_registry_comes_back_it_is_published(story: Story, given: Given, when: When, then: Then) -> None:
    given.a_trusted_key()
    story.local.stop_registry()
    when.a_version_is_created("1.0.0")
    version = then.the_version_is("1.0.0", "Draft", "RegistryUnavailable", never="Published")
    assert story.local.registry in condition(version, "Ready")["message"]
    assert condition(version, "Reconciling")

    story.local.start_registry()
    then.the_version_is("1.0.0", "Published", seconds=20)
    assert story.repository.pull("1.0.0") == content_of("1.0.0")


def test_a_registry_that_dies_in_the_middle_of_a_push_leaves_nothing_half_stored(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.a_trusted_key()
    content = b"#!/bin/sh\n" + b"# padding\n" * 400_000
    slow = Answer(content, gate=threading.Event())
    when.a_version_is_created(
        "1.0.0",
        slow,
        sha256=hashlib.sha256(content).hexdigest(),
        signature={"inline": story.signer().sign(content)},
    )
    assert slow.half_sent.wait(30)
    story.local.stop_registry()
    # Until the registry was looked at, the next attempts find no file: nothing can be stored meanwhile.
    story.files.answers[f"{story.name}/1.0.0"] = Answer(status=503)
    assert slow.gate is not None
    slow.gate.set()
    then.the_version_is("1.0.0", "Draft", "RegistryUnavailable", never="Published")

    story.local.start_registry()
    then.the_version_is("1.0.0", "Draft", "SourceUnreachable", never="Published")
    assert story.repository.tags() == []
    with pytest.raises(urllib.error.HTTPError, match="404"):
        story.repository.get(f"blobs/sha256:{hashlib.sha256(content).hexdigest()}")

    story.files.answers[f"{story.name}/1.0.0"] = Answer(content)
    then.the_version_is("1.0.0", "Published", seconds=20)
    assert story.repository.pull("1.0.0") == content


def test_killed_while_it_stores_the_operator_begins_again_and_publishes(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.a_trusted_key()
    slow = Answer(content_of("1.0.0"), gate=threading.Event())
    when.a_version_is_created("1.0.0", slow)
    assert slow.half_sent.wait(30)
    story.operator.kill()
    assert slow.gate is not None
    slow.gate.set()
    assert story.repository.tags() == []
    story.operator.start()
    then.the_version_is("1.0.0", "Published", seconds=40)
    assert story.repository.pull("1.0.0") == content_of("1.0.0")


def test_a_published_version_cannot_be_changed(story: Story, given: Given, then: Then) -> None:
    given.published_versions("1.0.0")
    before: Object = story.version("1.0.0")
    change: Any = [{"op": "replace", "path": "/spec/artifacts/0/sha256", "value": "b" * 64}]
    with pytest.raises(Exception, match="a version that has left Draft cannot be changed"):
        story.client.raw("PATCH", f"{story.versions}/{COMPONENT}-1.0.0", change, "application/json-patch+json")
    assert story.version("1.0.0")["spec"] == before["spec"]
    then.kstatus_is_clean()
