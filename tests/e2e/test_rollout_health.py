"""Health beyond readiness: agents that are asked themselves, restarts by container, what the record says of a crash.

Fake nodes have addresses on loopback here, and agents are in their nodes' network: so there is a real server behind
each pod's IP, and the operator asks it as it would ask any agent.
"""

from e2e.agents import Agents
from e2e.story import Given, Story, Then, When, agent_template, canary, full, http_check, step
from e2e.watching import Object, condition


def in_the_nodes_network() -> Object:
    """Return the agent's pod with the address of its node."""
    template = agent_template()
    template["spec"]["hostNetwork"] = True
    return template


def a_fleet_that_answers(given: Given, size: int) -> tuple[Agents, list[str]]:
    """Return agents that say that they are 1.0.0, which they are, and their nodes."""
    given.published_versions("1.0.0", "1.1.0")
    agents = given.agents_that_answer()
    nodes = given.a_fleet(size, running="1.0.0", template=in_the_nodes_network())
    agents.say("node-agent 1.0.0")
    return agents, nodes


def test_an_agent_that_is_ready_and_still_the_old_one_is_not_healthy(
    story: Story, given: Given, when: When, then: Then
) -> None:
    agents, nodes = a_fleet_that_answers(given, 3)
    given.published_versions("1.2.0")
    check = http_check(agents, bodyContainsVersion=True)
    health = {"timeoutSeconds": 6, "minReadySeconds": 0, "http": check}
    when.the_rollout_changes(version="1.1.0", strategy=canary(step(1)), health=health)
    done = then.the_rollout_is("RolledBack", seconds=60)
    message = condition(done, "RolledBack")["message"]
    assert "HealthTimeout" in message
    then.nodes_run("1.0.0")
    [failed] = story.results(2).values()
    assert failed["reason"] == "HealthTimeout"
    assert "is Ready, but" in failed["message"]
    assert "answered 200 without naming version 1.1.0" in failed["message"]

    # The same fleet, and agents that say what they are.
    agents.say("node-agent v1.2.0")
    when.the_rollout_changes(version="1.2.0")
    then.the_rollout_is("Completed")
    then.nodes_run("1.2.0")
    assert all(agents.asked(story.addresses[node]) for node in nodes)


def test_agents_that_cannot_be_asked_are_neither_healthy_nor_failed(
    story: Story, given: Given, when: When, then: Then
) -> None:
    agents, nodes = a_fleet_that_answers(given, 2)
    for node in nodes:
        agents.cut_off(story.addresses[node])
    health = {"timeoutSeconds": 5, "minReadySeconds": 0, "http": http_check(agents)}
    when.the_rollout_changes(version="1.1.0", strategy=canary(step(1)), health=health)
    stalled = then.the_rollout_is("Stalled", "HealthUnknown", seconds=60)
    message = condition(stalled, "Stalled")["message"]
    [asked] = story.results(2)
    assert "of 1 node nobody can tell" in message
    assert asked in message
    assert "accepts no connection" in message
    assert stalled["status"]["run"]["failed"] == 0

    for node in nodes:
        agents.let_through(story.addresses[node])
    then.the_rollout_is("Completed", seconds=60)
    then.nodes_run("1.1.0")
    then.the_records_say(2, dict.fromkeys(nodes, "Succeeded"))


def test_how_an_agent_crashed_is_in_the_record_when_its_pod_is_long_gone(
    story: Story, given: Given, when: When, then: Then
) -> None:
    """A first user missed it: the pod is gone after the way back, and with it exit code and last words."""
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(1, running="1.0.0")
    given.agents_fail("crash-loop", "1.1.0")
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("RolledBack")
    [failed] = story.results(2).values()
    assert failed["reason"] in {"TooManyRestarts", "CrashLoopBackOff"}
    assert "container agent ended with exit code 1: no such device" in failed["message"]
    assert len(failed["message"].encode()) <= 256


def test_an_agent_that_finds_no_place_says_what_the_scheduler_says(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(1, running="1.0.0")
    greedy = agent_template(resources={"requests": {"cpu": "1000"}})
    health = {"timeoutSeconds": 5, "minReadySeconds": 0}
    when.the_rollout_changes(version="1.1.0", template=greedy, health=health)
    then.the_rollout_is("RolledBack", seconds=60)
    [failed] = story.results(2).values()
    assert failed["reason"] == "Unschedulable"
    assert "Insufficient cpu" in failed["message"]
    assert "not healthy within 5 s" in failed["message"]


def test_restarts_of_a_noisy_neighbour_do_not_count(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0", "1.1.0")
    template = agent_template()
    template["spec"]["containers"].insert(0, {"name": "noisy", "image": "noisy:dev"})
    given.a_fleet(2, running="1.0.0", template=template, strategy=full())
    given.agents_fail("restarts:2", "1.1.0")
    health = {"timeoutSeconds": 30, "minReadySeconds": 0, "ignoreRestartsOf": ["noisy"]}
    when.the_rollout_changes(version="1.1.0", health=health)
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")
