"""What keeps a Rollout from starting is told with what to do, no node is moved, and it starts by itself afterwards."""

from e2e.files import Answer
from e2e.story import POOL, Given, Story, Then, When, agent_template, content_of, rolling
from e2e.watching import condition


def test_a_version_that_does_not_exist_moves_nobody_until_it_is_created(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    given.a_fleet(3, running="1.0.0")
    when.the_rollout_changes(version="1.1.0")
    seen = then.the_rollout_is("Stalled", "VersionNotFound")
    message = condition(seen, "Stalled")["message"]
    assert f"no ComponentVersion node-agent-1.1.0 in namespace {story.namespace}" in message
    assert "create it, or set spec.version to a published one (1.0.0)" in message
    then.no_node_was_moved()

    when.a_version_is_created("1.1.0")
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")


def test_a_version_that_is_not_published_moves_nobody_until_it_is(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    given.a_fleet(3, running="1.0.0")
    when.a_version_is_created("1.1.0", Answer(status=503))
    then.the_version_is("1.1.0", "Draft", "SourceUnreachable")
    when.the_rollout_changes(version="1.1.0")
    seen = then.the_rollout_is("Waiting", "VersionNotPublished")
    assert "node-agent-1.1.0 is Draft, not Published" in condition(seen, "Ready")["message"]
    assert "503" in condition(seen, "Ready")["message"]
    then.no_node_was_moved()

    story.files.answers[f"{story.name}/1.1.0"] = Answer(content_of("1.1.0"))
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")


def test_a_version_that_was_refused_moves_nobody_and_says_why(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    given.a_fleet(3, running="1.0.0")
    when.a_version_is_created("1.1.0", sha256="a" * 64)
    then.the_version_is("1.1.0", "Draft", "DigestMismatch", never="Published")
    when.the_rollout_changes(version="1.1.0")
    seen = then.the_rollout_is("Stalled", "VersionNotPublished")
    assert "sha256" in condition(seen, "Stalled")["message"]
    then.no_node_was_moved()


def test_an_empty_target_waits_for_nodes(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0")
    [node] = given.a_fleet(1)
    when.the_rollout_is_created("1.0.0", target={"nodeSelector": {"matchLabels": {"edge": story.name}}})
    seen = then.the_rollout_is("Stalled", "EmptyTarget")
    assert "label nodes or change it" in condition(seen, "Stalled")["message"]
    assert seen["status"]["nodes"] == 0
    then.no_node_was_moved()

    story.client.merge(f"/api/v1/nodes/{node}", {"metadata": {"labels": {"edge": story.name}}})
    then.the_rollout_is("Completed")
    then.nodes_run("1.0.0", [node])


def test_a_template_that_the_api_server_refuses_moves_nobody_until_it_is_corrected(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(3, running="1.0.0")
    broken = agent_template(volumeMounts=[{"name": "nowhere", "mountPath": "/data"}])
    when.the_rollout_changes(version="1.1.0", template=broken)
    seen = then.the_rollout_is("Stalled", "TemplateInvalid")
    message = condition(seen, "Stalled")["message"]
    assert "nowhere" in message
    assert "correct spec.template" in message
    then.no_node_was_moved()

    when.the_rollout_changes(template=agent_template())
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")


def test_the_younger_of_two_rollouts_for_the_same_nodes_says_whose_they_are(
    story: Story, given: Given, then: Then
) -> None:
    given.published_versions("1.0.0", "1.1.0")
    given.a_fleet(2, running="1.0.0")
    younger = story.rollout()
    body = {**younger, "metadata": {"name": "younger"}, "spec": {**younger["spec"], "version": "1.1.0"}}
    body.pop("status")
    story.client.create(story.rollouts, body)
    seen = story.api.wait_for(
        story.rollouts,
        "younger",
        lambda obj: condition(obj, "Stalled").get("reason") == "OwnedByOthers",
        "the younger Rollout says who owns the nodes",
    )
    assert "node-agent" in condition(seen, "Stalled")["message"]
    then.the_rollout_is("Completed")
    then.no_node_was_moved()


def test_an_excluded_node_is_left_alone(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0")
    nodes = given.a_fleet(3)
    path = f"/api/v1/nodes/{nodes[0]}"
    story.client.merge(path, {"metadata": {"labels": {"outrider.dev/exclude": "true"}}})
    when.the_rollout_is_created("1.0.0", strategy=rolling(2))
    done = then.the_rollout_is("Completed")
    assert done["status"]["nodes"] == 2
    then.nodes_run("1.0.0", nodes[1:])
    assert story.assignments()[nodes[0]] is None
    assert story.agents().get(nodes[0]) is None
    assert POOL in story.client.get(path)["metadata"]["labels"]
