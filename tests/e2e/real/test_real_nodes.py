"""Delivery by volume on real nodes: kubelets, containers and files, and agents that are asked themselves."""

from e2e.real.fleet import CRASHING, FETCH, RealStory, Then, agent, ended, foreign_program, wait_for_log
from e2e.story import Given, When, rolling
from e2e.watching import condition
from localcluster import images


def test_a_version_comes_node_by_node_and_agents_say_so(story: RealStory, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(2, running="1.0.0", strategy=rolling(1))
    assert story.voices is not None
    for node in nodes:
        story.voices.wait_until(node, "node-agent 1.0.0")

    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")
    for node in nodes:
        story.voices.wait_until(node, "node-agent 1.1.0")
        assert story.voices.words(node) == ["node-agent 1.0.0", "node-agent 1.1.0"]
    # One after the other: never were both without their agent.
    assert story.voices.most_silent <= 1
    then.the_records_say(2, dict.fromkeys(nodes, "Succeeded"))

    log = story.logs(story.pod_of(nodes[0]))
    assert "fetching node-agent 1.1.0 for linux/" in log
    assert "verified: sha256" in log


def test_a_version_that_crashes_comes_back_by_itself(story: RealStory, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0")
    nodes = given.a_fleet(2, running="1.0.0", strategy=rolling(1))
    when.a_version_is_created("1.1.0", content=agent("1.1.0", CRASHING))
    then.the_version_is("1.1.0", "Published")
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("RolledBack")
    then.nodes_run("1.0.0")
    assert story.voices is not None
    for node in nodes:
        story.voices.wait_until(node, "node-agent 1.0.0")
        assert story.voices.words(node) == ["node-agent 1.0.0"]
    results = story.results(2)
    [failed] = [entry for entry in results.values() if entry["state"] == "Failed"]
    assert failed["reason"] in {"CrashLoopBackOff", "TooManyRestarts"}, failed
    [other] = set(nodes) - {failed["name"]}
    assert story.history is not None
    assert len(story.history.started[other]) == 1, "the other node was never touched"


def test_bytes_changed_on_their_way_to_a_node_do_not_start(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    nodes = given.a_fleet(2, running="1.0.0", strategy=rolling(1))
    # The operator has read and verified what the registry stores; somebody sits between nodes and the registry.
    story.middleman.change(b"# node-agent 1.1.0, well-meant", b"# node-agent 1.1.0, back door!")
    when.the_rollout_changes(version="1.1.0")
    seen = then.the_rollout_is("RolledBack")
    assert story.middleman.changed.is_set()
    then.nodes_run("1.0.0")

    failed = [entry for entry in story.results(2).values() if entry["state"] == "Failed"]
    [entry] = failed
    assert entry["reason"] == "BlobCorrupted", entry
    assert "sha256" in entry["message"], entry
    assert entry["name"] in condition(seen, "Ready")["message"] or "1.1.0" in condition(seen, "Ready")["message"]
    assert story.voices is not None
    for node in nodes:
        story.voices.wait_until(node, "node-agent 1.0.0")
        assert story.voices.words(node) == ["node-agent 1.0.0"], "no other version ever answered"


def test_a_node_that_has_nothing_waits_for_the_registry_and_says_so(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    story.middleman.refuse()
    [node] = story.add_nodes(1)
    when.the_rollout_is_created("1.0.0")
    log = wait_for_log(story, node, "next one in")
    assert "waiting: RegistryUnreachable" in log or "waiting: " in log

    story.middleman.admit()
    then.the_rollout_is("Completed")
    then.nodes_run("1.0.0")
    assert story.ask(node) == "node-agent 1.0.0"
    assert ended(story.pod_of(node), FETCH)["exitCode"] == 0


def test_a_fetch_that_is_killed_in_the_middle_leaves_nothing_and_begins_again(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    [node] = given.a_fleet(1, running="1.0.0")
    # Large enough that the file itself is what is under way.
    when.a_version_is_created("1.1.0", content=agent("1.1.0") + b"# padding\n" * 100_000)
    then.the_version_is("1.1.0", "Published")
    story.middleman.hold_after(500_000)
    when.the_rollout_changes(version="1.1.0")
    assert story.middleman.holding.wait(60), "the file is on its way to the node"
    pod = next(one for one in story.agents()[node] if one["metadata"]["labels"]["outrider.dev/version"] == "1.1.0")

    [pid] = story.node(node).pids(FETCH, "python")
    story.node(node).kill(pid)
    then.the_init_container_has_ended(pod["metadata"]["name"], 137)
    story.middleman.behave()
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0", [node])
    assert story.voices is not None
    story.voices.wait_until(node, "node-agent 1.1.0")
    assert story.pod_of(node)["metadata"]["uid"] == pod["metadata"]["uid"], "the same pod went on"
    artifact = story.volume(pod, "outrider-artifact")
    assert sorted(file.name for file in artifact.iterdir()) == [".outrider-verified.json", "node-agent"]
    assert artifact.joinpath("node-agent").stat().st_mode & 0o777 == 0o555


def test_a_key_removed_before_a_node_starts_a_version_keeps_it_from_starting(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    given.a_trusted_key()
    given.a_trusted_key("second")
    given.published_versions("1.0.0")
    nodes = given.a_fleet(2, running="1.0.0", strategy=rolling(1))
    when.a_version_is_created("1.1.0", key="second")
    then.the_version_is("1.1.0", "Published")
    # The first node waits for the registry, without an agent, when the key goes.
    story.middleman.refuse()
    when.the_rollout_changes(version="1.1.0")
    first = then.a_node_is_fetching("1.1.0")
    wait_for_log(story, first, "next one in", version="1.1.0")
    when.a_key_goes("second")
    then.the_version_is("1.1.0", "Withdrawn")
    then.the_mounted_keys_are(first, "release")
    story.middleman.admit()

    then.the_rollout_is("RolledBack")
    then.nodes_run("1.0.0")
    failed = {name: entry for name, entry in story.results(2).items() if entry["state"] == "Failed"}
    assert set(failed) == {first}
    assert failed[first]["reason"] == "SignatureUntrusted", failed
    assert story.voices is not None
    for name in nodes:
        story.voices.wait_until(name, "node-agent 1.0.0")
        assert story.voices.words(name) == ["node-agent 1.0.0"]


def test_a_version_for_another_architecture_touches_no_node(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    nodes = given.a_fleet(2, running="1.0.0", strategy=rolling(1))
    other = "arm64" if images.architecture() == "amd64" else "amd64"
    when.a_version_is_created("1.1.0", platform={"os": "linux", "arch": other})
    then.the_version_is("1.1.0", "Published")
    when.the_rollout_changes(version="1.1.0")
    seen = then.the_counts_are(skipped=2)
    assert "2 NoArtifact" in condition(seen, "Ready")["message"]
    then.no_node_was_moved()
    assert story.voices is not None
    for name in nodes:
        assert story.voices.words(name) == ["node-agent 1.0.0"]


def test_a_file_for_another_processor_comes_back(story: RealStory, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0")
    nodes = given.a_fleet(2, running="1.0.0", strategy=rolling(1))
    # What the author's build machine mixed up: the right name, a true signature, and the wrong machine's code.
    when.a_version_is_created("1.1.0", content=foreign_program())
    then.the_version_is("1.1.0", "Published")
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("RolledBack")
    then.nodes_run("1.0.0")
    assert story.voices is not None
    for name in nodes:
        story.voices.wait_until(name, "node-agent 1.0.0")
        assert story.voices.words(name) == ["node-agent 1.0.0"]
    [failed] = [entry for entry in story.results(2).values() if entry["state"] == "Failed"]
    assert failed["reason"] == "ArchitectureMismatch", failed
