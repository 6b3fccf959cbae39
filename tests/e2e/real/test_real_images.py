"""Delivery of container images on real nodes: the verified digest is what the node's containerd pulls and starts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.realtools import Tools, offline_tools
from adapters.signing import Signer
from e2e.files import P256
from e2e.real.fleet import CRASHING, RealStory, Then, agent, agent_pod
from e2e.story import Given, When, rolling
from e2e.watching import Object
from localcluster import images
from localcluster.addresses import LOOPBACK
from localcluster.middleman import Middleman


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[Tools]:
    """cosign."""
    folder = tmp_path / "tools"
    folder.mkdir()
    with offline_tools(folder) as made:
        yield made


@pytest.fixture
def key(story: RealStory) -> Signer:
    """A key as cosign wants it; its public half is trusted."""
    signer = Signer(story.folder, "cosign", *P256)
    story.trust("cosign", content=signer.public.read_text())
    return signer


def publish(story: RealStory, tools: Tools, key: Signer, version: str, manner: str = "", *, copy: bool = True) -> str:
    """Push an image with an agent in it, sign it, and describe it; returns its digest."""
    place = f"{story.local.registry}/elsewhere/{story.name}"
    # An image of this test alone: what a node has pulled once it does not pull again.
    content = {"agent": agent(version, f": {story.name}; {manner}")}
    archive = images.build_busybox_image(f"{place}:{version}", files=content, entrypoint=["/agent"])
    digest = images.push_image(archive, f"{place}:{version}")
    # These tools talk to nobody but loopback.
    way = Middleman(story.local.registry, LOOPBACK)
    try:
        tools.cosign.sign(f"{way.host}/elsewhere/{story.name}@{digest}", key)
    finally:
        way.stop()
    story.create_version(
        version,
        fileName=None,
        sha256=digest.removeprefix("sha256:"),
        source={"image": {"reference": f"{place}:{version}", "copy": copy}},
        signature=None,
    )
    Then(story).the_version_is(version, "Published")
    return digest


def image_agent() -> Object:
    """Return the Rollout's part: the agent's pod, in which the version's image takes the place of nothing."""
    pod = agent_pod()
    [container] = pod["spec"]["containers"]
    del container["command"]
    container |= {"image": "to-be-filled-in", "imagePullPolicy": "IfNotPresent"}
    return {"template": pod, "delivery": {"image": {"container": "agent"}}}


def test_images_come_node_by_node_and_a_bad_one_goes_back(
    story: RealStory, given: Given, when: When, then: Then, tools: Tools, key: Signer
) -> None:
    digests = {version: publish(story, tools, key, version) for version in ("1.0.0", "1.1.0")}
    digests["1.2.0"] = publish(story, tools, key, "1.2.0", CRASHING)
    nodes = given.a_fleet(2, running="1.0.0", strategy=rolling(1), **image_agent())
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")
    when.the_rollout_changes(version="1.2.0")
    then.the_rollout_is("RolledBack")
    then.nodes_run("1.1.0")

    assert story.voices is not None
    for node in nodes:
        story.voices.wait_until(node, "node-agent 1.1.0")
        assert story.voices.words(node) == ["node-agent 1.0.0", "node-agent 1.1.0"]
        pod = story.pod_of(node)
        [container] = pod["spec"]["containers"]
        assert container["image"].endswith(f"@{digests['1.1.0']}")
        assert "initContainers" not in pod["spec"], "nothing else takes part"
        [status] = pod["status"]["containerStatuses"]
        assert status["imageID"].endswith(digests["1.1.0"])


def test_an_image_changed_on_its_way_does_not_start(
    story: RealStory, given: Given, when: When, then: Then, tools: Tools, key: Signer
) -> None:
    publish(story, tools, key, "1.0.0")
    publish(story, tools, key, "1.1.0")
    nodes = given.a_fleet(2, running="1.0.0", strategy=rolling(1), **image_agent())
    # The layers are compressed; the manifest is text, and its digest is what is pinned.
    story.middleman.change(b'"schemaVersion":2', b'"schemaVersion":3')
    when.the_rollout_changes(version="1.1.0", health={"timeoutSeconds": 20, "minReadySeconds": 0})
    then.the_rollout_is("RolledBack")
    assert story.middleman.changed.is_set()
    story.middleman.behave()
    then.nodes_run("1.0.0")
    [failed] = [entry for entry in story.results(2).values() if entry["state"] == "Failed"]
    assert failed["reason"] in {"ImagePullBackOff", "ErrImagePull"}, failed
    assert story.voices is not None
    for node in nodes:
        story.voices.wait_until(node, "node-agent 1.0.0")
        assert story.voices.words(node) == ["node-agent 1.0.0"]
