"""Delivery to the node itself: a daemon that a service manager keeps, outside of all pods."""

import hashlib

from e2e.real.fleet import CRASHING, DAEMON_PATH, INSTALL, RealStory, Then, agent, wait_for_log
from e2e.story import Given, When, rolling

DEAF = "while :; do sleep 1; done"
"""A manner of not getting anywhere: it runs, and answers nobody."""


def folder(version: str, content: bytes) -> str:
    """Return the name of a version's folder on a node."""
    return f"{version}-{hashlib.sha256(content).hexdigest()[:8]}"


def test_a_daemon_is_installed_node_by_node_and_outlives_its_pods(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    story.is_a_daemon()
    given.published_versions("1.0.0", "1.1.0", "1.2.0")
    nodes = given.a_fleet(2, running="1.0.0", strategy=rolling(1))
    assert story.voices is not None
    for version in ("1.1.0", "1.2.0"):
        when.the_rollout_changes(version=version)
        then.the_rollout_is("Completed")
        then.nodes_run(version)
        for node in nodes:
            story.voices.wait_until(node, f"node-agent {version}")
            assert story.current(node) == f"versions/{folder(version, agent(version))}"
    assert story.voices.most_silent <= 1
    for node in nodes:
        assert story.voices.words(node) == ["node-agent 1.0.0", "node-agent 1.1.0", "node-agent 1.2.0"]
        # Two are kept, as asked by default: the one that runs and the one to go back to.
        assert story.installed(node) == [folder(version, agent(version)) for version in ("1.1.0", "1.2.0")]
        file = story.node(node).path(f"{DAEMON_PATH}/current/node-agent")
        assert file.stat().st_mode & 0o777 == 0o555

    # The daemon is no part of the pod that watches over it.
    service = story.services[nodes[0]]
    pid = service.pid
    then.a_new_agent_runs(nodes[0], instead_of=when.an_agents_pod_is_deleted(nodes[0]))
    assert service.pid == pid != 0
    assert service.ask("is-active") == (0, "active")


def test_a_bad_daemon_goes_back_on_its_node_while_no_operator_is_there(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    story.is_a_daemon(health={"timeoutSeconds": 8, "periodSeconds": 1, "http": {"path": "/version", "port": 8080}})
    given.published_versions("1.0.0")
    nodes = given.a_fleet(2, running="1.0.0", strategy=rolling(1))
    good = f"versions/{folder('1.0.0', agent('1.0.0'))}"
    bad = agent("1.1.0", DEAF)
    when.a_version_is_created("1.1.0", content=bad)
    then.the_version_is("1.1.0", "Published")
    when.the_rollout_changes(version="1.1.0")
    first = then.a_node_is_fetching("1.1.0")
    assert story.voices is not None
    story.voices.wait_until_silent(first)
    story.operator.kill()

    # Nobody is there but the node itself.
    story.voices.wait_until(first, "node-agent 1.0.0")
    assert story.current(first) == good
    wait_for_log(story, first, "the node is back on 1.0.0, which works", container=INSTALL, version="1.1.0")

    story.operator.start()
    then.the_rollout_is("RolledBack")
    then.nodes_run("1.0.0")
    failed = {name: entry for name, entry in story.results(2).items() if entry["state"] == "Failed"}
    assert set(failed) == {first}
    assert failed[first]["reason"] == "HealthFailed", failed
    for node in nodes:
        assert story.current(node) == good
        assert set(story.voices.words(node)) == {"node-agent 1.0.0"}


def test_a_daemon_that_ends_at_once_is_found_by_its_unit(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    # No check is declared: a unit of the service manager is asked whether it is active.
    story.is_a_daemon(health={"timeoutSeconds": 5, "periodSeconds": 1})
    given.published_versions("1.0.0")
    nodes = given.a_fleet(2, running="1.0.0", strategy=rolling(1))
    when.a_version_is_created("1.1.0", content=agent("1.1.0", CRASHING))
    then.the_version_is("1.1.0", "Published")
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("RolledBack")
    then.nodes_run("1.0.0")
    [failed] = [entry for entry in story.results(2).values() if entry["state"] == "Failed"]
    assert failed["reason"] in {"HealthFailed", "ActivationFailed"}, failed
    assert story.voices is not None
    for node in nodes:
        story.voices.wait_until(node, "node-agent 1.0.0")
    assert "giving up" in story.services[failed["name"]].log


def test_a_link_in_the_way_is_not_followed(story: RealStory, given: Given, when: When, then: Then) -> None:
    story.is_a_daemon()
    given.published_versions("1.0.0")
    [node] = story.add_nodes(1)
    # Whoever can write to /opt wants the operator's root to write to /srv.
    story.node(node).run("mkdir", "-p", "/srv/elsewhere")
    story.node(node).run("ln", "-s", "/srv/elsewhere", DAEMON_PATH)
    when.the_rollout_is_created("1.0.0")
    seen = then.the_rollout_is("RolledBack")
    assert seen["status"]["failures"][0]["reason"] == "PathUnsafe", seen["status"]["failures"]
    assert list(story.node(node).path("/srv/elsewhere").iterdir()) == []
    assert story.node(node).path(DAEMON_PATH).is_symlink()


def test_somebody_elses_current_is_left_alone(story: RealStory, given: Given, when: When, then: Then) -> None:
    story.is_a_daemon()
    given.published_versions("1.0.0")
    [node] = story.add_nodes(1)
    story.node(node).run("mkdir", "-p", f"{DAEMON_PATH}/current")
    story.node(node).path(f"{DAEMON_PATH}/current/theirs").write_text("not ours")
    when.the_rollout_is_created("1.0.0")
    seen = then.the_rollout_is("RolledBack")
    assert seen["status"]["failures"][0]["reason"] == "PathOccupied", seen["status"]["failures"]
    assert story.node(node).path(f"{DAEMON_PATH}/current/theirs").read_text() == "not ours"


def test_an_install_that_is_killed_ends_in_a_daemon_that_works(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    story.is_a_daemon(health={"timeoutSeconds": 30, "periodSeconds": 1, "http": {"path": "/version", "port": 8080}})
    given.published_versions("1.0.0")
    [node] = given.a_fleet(1, running="1.0.0")
    # It takes its time to start: when the old one is silent, the new one was switched to and is being waited for.
    when.a_version_is_created("1.1.0", content=agent("1.1.0", "sleep 4"))
    then.the_version_is("1.1.0", "Published")
    when.the_rollout_changes(version="1.1.0")
    assert story.voices is not None
    story.voices.wait_until_silent(node)
    pids = story.node(node).pids("outrider-host", "install")
    assert pids, "it is waiting for the new one"
    for pid in pids:
        story.node(node).kill(pid)
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")
    story.voices.wait_until(node, "node-agent 1.1.0")
    assert story.current(node) == f"versions/{folder('1.1.0', agent('1.1.0', 'sleep 4'))}"


def test_a_full_disk_of_a_node_leaves_the_old_daemon_running(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    story.is_a_daemon()
    given.published_versions("1.0.0")
    with story.node("real-1").small_disk("/opt", 256 * 1024):
        [node] = given.a_fleet(1, running="1.0.0")
        when.a_version_is_created("1.1.0", content=agent("1.1.0") + b"# padding\n" * 100_000)
        then.the_version_is("1.1.0", "Published")
        when.the_rollout_changes(version="1.1.0")
        then.the_rollout_is("RolledBack")
        then.nodes_run("1.0.0")
        [failed] = [entry for entry in story.results(2).values() if entry["state"] in {"Failed", "RolledBack"}]
        assert failed["reason"] == "NoSpace", failed
        assert story.voices is not None
        assert story.voices.words(node) == ["node-agent 1.0.0"]
        assert story.voices.most_silent == 0, "the old daemon was never stopped"


def test_a_folder_that_nobody_can_write_to_leaves_the_old_daemon_running(
    story: RealStory, given: Given, when: When, then: Then
) -> None:
    story.is_a_daemon()
    given.published_versions("1.0.0", "1.1.0")
    [node] = given.a_fleet(1, running="1.0.0")
    with story.node(node).read_only("/opt"):
        when.the_rollout_changes(version="1.1.0")
        failed = then.a_node_has_failed(2)
        assert failed["reason"] == "NodeStorage", failed
        assert story.voices is not None
        assert story.voices.words(node) == ["node-agent 1.0.0"]
    then.the_rollout_is("RolledBack")
    then.nodes_run("1.0.0")
    assert story.voices.most_silent == 0, "the old daemon was never stopped"
