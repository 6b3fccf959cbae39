"""What a node keeps of versions, and what it prepares beforehand."""

from e2e.real.fleet import FETCH, REGISTRY_SECRET, RealStory, Then, agent, wait_for_log
from e2e.story import Given, When, rolling
from outrider.api import names

CACHE = "/var/lib/outrider"


def test_a_pod_that_restarts_while_the_registry_is_down_starts_from_the_cache(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    [node] = given.a_fleet(1, running="1.0.0")
    story.middleman.refuse()
    pod = then.a_new_agent_runs(node, instead_of=when.an_agents_pod_is_deleted(node))
    assert story.ask(node) == "node-agent 1.0.0"
    assert "verified" in story.logs(pod)


def test_a_copy_that_somebody_changed_is_thrown_away_and_fetched_anew(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    [node] = given.a_fleet(1, running="1.0.0")
    [copy] = story.node(node).path(f"{CACHE}/cache/{story.namespace}.node-agent").glob("*/file")
    honest = copy.read_bytes()
    with copy.open("ab") as file:
        file.write(b"echo a back door\n")
    pod = then.a_new_agent_runs(node, instead_of=when.an_agents_pod_is_deleted(node))
    assert story.ask(node) == "node-agent 1.0.0"
    artifact = story.volume(pod, names.VOLUME_ARTIFACT)
    assert (artifact / "node-agent").read_bytes() == honest
    assert copy.read_bytes() == honest


def test_what_was_verified_here_starts_again_after_its_key_was_removed(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    given.a_trusted_key("second")
    given.published_versions("1.0.0")
    [node] = given.a_fleet(1, running="1.0.0")
    when.a_key_goes("release")
    then.the_version_is("1.0.0", "Withdrawn")
    then.the_mounted_keys_are(node, "second")
    for registry_is_down in (False, True):
        if registry_is_down:
            story.middleman.refuse()
        pod = then.a_new_agent_runs(node, instead_of=when.an_agents_pod_is_deleted(node))
        assert story.ask(node) == "node-agent 1.0.0"
        assert "WARNING" in story.logs(pod)


def test_nodes_show_who_they_are_by_a_secret(story: RealStory, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0")
    story.middleman.demand("nodes", "a-password-of-nodes")
    [node] = story.add_nodes(1)
    when.the_rollout_is_created("1.0.0")
    wait_for_log(story, node, "next one in")
    secret = {
        "metadata": {"name": REGISTRY_SECRET},
        "stringData": {"username": "nodes", "password": "a-password-of-nodes"},
    }
    story.client.create(f"/api/v1/namespaces/{story.namespace}/secrets", secret)
    then.the_rollout_is("Completed")
    then.nodes_run("1.0.0")
    assert story.ask(node) == "node-agent 1.0.0"
    pod = story.pod_of(node)
    told = [str(pod), story.logs(pod), str(story.rollout()), str(story.client.items(story.batches))]
    assert not any("a-password-of-nodes" in text for text in told)


def test_an_old_agent_runs_until_the_new_version_is_on_its_node(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    nodes = given.a_fleet(2, running="1.0.0", strategy=rolling(1), prePull=True)
    when.a_version_is_created("1.1.0", content=agent("1.1.0") + b"# padding\n" * 100_000)
    then.the_version_is("1.1.0", "Published")
    story.middleman.hold_after(500_000)
    when.the_rollout_changes(version="1.1.0")
    assert story.middleman.holding.wait(60), "the file is on its way to a node"
    then.a_node_is("Pending", "Preparing", run=2)
    assert story.voices is not None
    assert [story.voices.words(node) for node in nodes] == [["node-agent 1.0.0"]] * 2
    assert story.voices.most_silent == 0, "nobody waits for a download without an agent"

    story.middleman.behave()
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")
    for node in nodes:
        story.voices.wait_until(node, "node-agent 1.1.0")
        log = story.logs(story.pod_of(node, **{names.LABEL_ROLE: names.ROLE_REVISION}))
        assert "downloading" not in log, log
    then.nothing_is_prepared_any_more()


def test_a_node_whose_preparation_is_refused_keeps_its_agent(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(2, running="1.0.0", strategy=rolling(1), prePull=True)
    story.middleman.change(b"# node-agent 1.1.0, well-meant", b"# node-agent 1.1.0, back door!")
    when.the_rollout_changes(version="1.1.0")
    failed = then.a_node_has_failed(2)
    assert failed["reason"] == "BlobCorrupted", failed
    then.the_rollout_is("RolledBack")
    then.nodes_run("1.0.0")
    assert story.voices is not None
    assert [story.voices.words(node) for node in nodes] == [["node-agent 1.0.0"]] * 2
    assert story.voices.most_silent == 0, "no agent was ever stopped"


def test_a_full_disk_under_the_cache_stops_nobody(story: RealStory, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0")
    when.a_version_is_created("1.1.0", content=agent("1.1.0") + b"# padding\n" * 100_000)
    then.the_version_is("1.1.0", "Published")
    with story.node("real-1").small_disk(CACHE, 256 * 1024):
        [node] = given.a_fleet(1, running="1.0.0")
        when.the_rollout_changes(version="1.1.0")
        then.the_rollout_is("Completed")
        then.nodes_run("1.1.0")
        assert "going on without the cache: NoSpace" in story.logs(story.pod_of(node))
    assert story.voices is not None
    story.voices.wait_until(node, "node-agent 1.1.0")


def test_a_cache_that_nobody_can_write_to_stops_nobody(story: RealStory, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0", "1.1.0")
    [node] = given.a_fleet(1, running="1.0.0")
    with story.node(node).read_only(CACHE):
        when.the_rollout_changes(version="1.1.0")
        then.the_rollout_is("Completed")
        then.nodes_run("1.1.0")
        assert "going on without the cache: NodeStorage" in story.logs(story.pod_of(node))
    assert story.voices is not None
    story.voices.wait_until(node, "node-agent 1.1.0")


def test_without_a_cache_nothing_of_the_node_is_touched(story: RealStory, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0")
    [node] = story.add_nodes(1)
    delivery = {"volume": {"mountPath": "/opt/agent", "containers": ["agent"], "cache": "None"}}
    when.the_rollout_is_created("1.0.0", delivery=delivery)
    then.the_rollout_is("Completed")
    then.nodes_run("1.0.0")
    pod = story.pod_of(node)
    assert not any("hostPath" in volume for volume in pod["spec"]["volumes"])
    [fetch] = [one for one in pod["spec"]["initContainers"] if one["name"] == FETCH]
    assert fetch["securityContext"]["runAsNonRoot"] is True
