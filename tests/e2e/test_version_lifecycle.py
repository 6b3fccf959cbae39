"""A version's way to its end: held by its rules, expired, called off, deleted with all that it stored."""

from datetime import UTC, datetime, timedelta

from e2e.story import COMPONENT, ROLLOUT, Given, Story, Then, When, content_of, digest_of
from e2e.watching import GROUP_PATH, Object, condition


def digests_of(version: Object) -> tuple[str, str, str]:
    """Return the digests of a version's file, manifest and index."""
    [artifact] = version["status"]["artifacts"]
    manifest, index = artifact["reference"], version["status"]["reference"]
    return artifact["digest"], manifest.rpartition("@")[2], index.rpartition("@")[2]


def nothing_is_left(story: Story, version: Object) -> None:
    """The registry has nothing of a version any more, whatever one asks for."""
    file, manifest, index = digests_of(version)
    repository = story.repository
    assert not repository.has(f"blobs/{file}")
    assert not repository.has(f"manifests/{manifest}")
    assert not repository.has(f"manifests/{index}")
    assert not repository.has(f"manifests/{version['spec']['version']}")
    number = version["spec"]["version"]
    left = [tag for tag in repository.all_tags() if number in tag or manifest.partition(":")[2] in tag]
    assert left == []


# --- deletion -----------------------------------------------------------------------------------


def test_a_version_that_was_called_off_goes_with_all_that_it_stored(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    version = story.version("1.0.0")
    assert "set spec.stage to Deprecated or Revoked first" in when.a_version_is_deleted("1.0.0")
    assert story.repository.pull("1.0.0") == content_of("1.0.0")

    when.the_version_changes("1.0.0", stage="Deprecated")
    then.the_version_is("1.0.0", "Deprecated")
    assert when.a_version_is_deleted("1.0.0") == ""
    then.the_version_is_gone("1.0.0")
    nothing_is_left(story, version)
    assert story.repository.all_tags() == []
    assert story.repository.manifests_on_disk() == [], "neither manifests nor evidence are left without a tag"


def test_a_file_that_two_versions_share_stays_until_the_last_of_them_goes(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.a_trusted_key()
    for version in ("1.0.0", "1.1.0"):
        when.a_version_is_created(version, content=content_of("1.0.0"))
        then.the_version_is(version, "Published")
    first, second = story.version("1.0.0"), story.version("1.1.0")
    assert digests_of(first)[0] == digests_of(second)[0]
    for version in ("1.0.0", "1.1.0"):
        when.the_version_changes(version, stage="Revoked")
        then.the_version_is(version, "Revoked")

    assert when.a_version_is_deleted("1.0.0") == ""
    then.the_version_is_gone("1.0.0")
    assert story.repository.pull("1.1.0") == content_of("1.0.0")
    assert story.repository.tags() == ["1.1.0"]
    assert not story.repository.has(f"manifests/{digests_of(first)[1]}")

    assert when.a_version_is_deleted("1.1.0") == ""
    then.the_version_is_gone("1.1.0")
    nothing_is_left(story, second)


def test_a_draft_is_just_deleted_and_leaves_nothing(story: Story, given: Given, when: When, then: Then) -> None:
    given.a_trusted_key()
    when.a_version_is_created("1.0.0", spec={"stage": "Draft"})
    when.a_version_is_created("1.1.0", key="stranger")
    when.a_version_is_created("1.2.0", sha256="a" * 64)
    then.the_version_is("1.0.0", "Draft", "DraftVerified")
    then.the_version_is("1.1.0", "Draft", "SignatureUntrusted")
    then.the_version_is("1.2.0", "Draft", "DigestMismatch")
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        assert when.a_version_is_deleted(version) == ""
        then.the_version_is_gone(version)
    for version in ("1.0.0", "1.1.0"):
        assert not story.repository.has(f"blobs/{digest_of(content_of(version))}")
    assert story.repository.all_tags() == []
    assert story.repository.manifests_on_disk() == []


def test_a_version_that_a_rollout_uses_is_not_deleted(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.1.0")
    nodes = given.a_fleet(2, running="1.0.0")
    when.the_version_changes("1.0.0", stage="Deprecated")
    # Counts are looked at now and then: the Rollout is told before its nodes are.
    used = then.the_version_is(
        "1.0.0", "Deprecated", where=lambda obj: obj["status"].get("usage", {}).get("nodes") == 2
    )
    assert used["status"]["usage"] == {"nodes": 2, "rollouts": [ROLLOUT]}
    assert (
        f"2 nodes run it; Rollouts that want it or may return to it: {ROLLOUT}"
        in (condition(used, "Deprecated")["message"])
    )
    refused = when.a_version_is_deleted("1.0.0")
    assert (
        f"this version is still needed: 2 nodes run it, and these Rollouts want it or may return to it: [{ROLLOUT}]"
        in (refused)
    )

    # What admission could not know yet, the operator does: here it was down while both happened.
    story.operator.kill()
    when.the_version_changes("1.1.0", stage="Deprecated")
    when.the_rollout_changes(version="1.1.0")
    assert when.a_version_is_deleted("1.1.0") == ""
    story.operator.start()
    held = story.api.wait_for(
        story.versions,
        f"{COMPONENT}-1.1.0",
        lambda obj: condition(obj, "Stalled").get("reason") == "InUse",
        "the deleted version is held, because it is in use",
    )
    assert (
        f"is still needed: Rollouts that want it or may return to it: {ROLLOUT}" in condition(held, "Ready")["message"]
    )
    then.an_event_tells("InUse", ROLLOUT)
    assert story.repository.pull("1.1.0") == content_of("1.1.0")
    when.the_rollout_changes(version="1.0.0")
    then.the_version_is_gone("1.1.0")
    then.nodes_run("1.0.0", nodes)
    then.no_node_was_moved()


def test_while_the_registry_is_down_a_deleted_version_waits_for_it(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    version = story.version("1.0.0")
    when.the_version_changes("1.0.0", stage="Revoked")
    then.the_version_is("1.0.0", "Revoked")
    story.local.stop_registry()
    assert when.a_version_is_deleted("1.0.0") == ""
    waiting = story.api.wait_for(
        story.versions,
        f"{COMPONENT}-1.0.0",
        lambda obj: condition(obj, "Reconciling").get("reason") == "RegistryUnavailable",
        "the deleted version waits for the registry",
    )
    assert story.local.registry in condition(waiting, "Ready")["message"]
    story.local.start_registry()
    then.the_version_is_gone("1.0.0", seconds=20)
    nothing_is_left(story, version)


def test_a_namespace_is_deleted_with_the_versions_and_rollouts_in_it(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.1.0")
    given.a_fleet(2, running="1.0.0")
    when.a_version_is_created("1.2.0", sha256="a" * 64)
    then.the_version_is("1.2.0", "Draft", "DigestMismatch")
    versions = [story.version(version) for version in ("1.0.0", "1.1.0")]
    story.client.delete(f"/api/v1/namespaces/{story.namespace}")
    story.api.wait(
        "/api/v1/namespaces",
        lambda found: story.namespace not in found,
        "the namespace is gone",
        each=lambda _: None,
        seconds=60,
    )
    for version in versions:
        nothing_is_left(story, version)


# --- expiry -------------------------------------------------------------------------------------


def test_a_version_is_published_until_it_expires(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0")
    given.a_fleet(2, running="1.0.0")
    end = datetime.now(UTC) + timedelta(seconds=5)
    moment = end.strftime("%Y-%m-%dT%H:%M:%SZ")
    when.a_version_is_created("1.1.0", spec={"expiresAt": moment})
    published = then.the_version_is("1.1.0", "Published")
    assert published["status"]["latest"] is True
    expired = then.the_version_is("1.1.0", "Deprecated", seconds=20)
    assert datetime.now(UTC) >= end - timedelta(seconds=1)
    said = condition(expired, "Deprecated")
    assert (said["status"], said["reason"]) == ("True", "Expired")
    assert f"expired at {end:%Y-%m-%d %H:%M} UTC" in said["message"]
    then.the_version_is("1.0.0", "Published", where=lambda obj: bool(obj["status"].get("latest")))
    when.the_rollout_changes(version="1.1.0")
    then.the_rollout_is("Stalled", "VersionDeprecated")
    then.no_node_was_moved()

    # What was not published by then is not any more; and a later end makes both good again.
    when.a_version_is_created("1.2.0", spec={"expiresAt": moment})
    late = then.the_version_is("1.2.0", "Draft", "Expired", never="Published")
    assert "move spec.expiresAt, or delete it" in condition(late, "Ready")["message"]
    for version in ("1.1.0", "1.2.0"):
        when.the_version_changes(version, expiresAt="2100-01-01T00:00:00Z")
        then.the_version_is(version, "Published")
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0")


# --- compatibility ------------------------------------------------------------------------------


def test_a_version_is_held_until_what_it_requires_is_published(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.a_trusted_key()
    when.a_version_is_created(
        "1.0.0", spec={"compatibility": {"requires": [{"component": "node-driver", "versionRange": "^2.1.0"}]}}
    )
    held = then.the_version_is("1.0.0", "Draft", "RequirementUnsatisfied", never="Published")
    message = condition(held, "Compatible")["message"]
    assert "spec.compatibility.requires[0].versionRange: there is no published version of node-driver in '^2.1.0'" in (
        message
    )
    assert "none is published" in message
    assert condition(held, "Stalled")["status"] == "True"
    assert condition(held, "Verified")["status"] == "True"

    driver = story.version("1.0.0")
    for number in ("2.0.0", "2.1.3"):
        content = content_of(number)
        spec = {**driver["spec"], "component": "node-driver", "version": number}
        spec.pop("compatibility")
        spec["artifacts"] = [
            {**spec["artifacts"][0], "sha256": story.serve(number, content), "source": story.source(number)}
        ]
        spec["artifacts"][0]["signature"] = {"inline": story.signer().sign(content)}
        body = {
            "apiVersion": driver["apiVersion"],
            "kind": "ComponentVersion",
            "metadata": {"name": f"node-driver-{number}"},
            "spec": spec,
        }
        story.client.create(f"{GROUP_PATH}/namespaces/{story.namespace}/componentversions", body)
        if number == "2.0.0":
            then.the_version_is(
                "1.0.0", "Draft", where=lambda obj: "published are 2.0.0" in condition(obj, "Ready")["message"]
            )
    published = then.the_version_is("1.0.0", "Published")
    assert condition(published, "Compatible")["status"] == "True"


def test_a_rule_that_cannot_be_read_or_met_says_where(story: Story, given: Given, when: When, then: Then) -> None:
    given.a_trusted_key()
    unreadable = {"kernelVersion": ">=5.x.y", "requires": [{"component": "node-driver", "versionRange": "two"}]}
    when.a_version_is_created("1.0.0", spec={"compatibility": unreadable})
    when.a_version_is_created("1.1.0", spec={"compatibility": {"kubeletVersion": ">=2 <1"}})
    held = then.the_version_is("1.0.0", "Draft", "RangeInvalid", never="Published")
    compatible = condition(held, "Compatible")
    assert compatible["status"] == "False"
    assert "spec.compatibility.kernelVersion: " in compatible["message"]
    assert "spec.compatibility.requires[0].versionRange: " in compatible["message"]
    assert "(and 1 more)" in condition(held, "Ready")["message"]
    empty = then.the_version_is("1.1.0", "Draft", "RangeEmpty", never="Published")
    assert "no version can be in the range '>=2 <1'" in condition(empty, "Ready")["message"]

    when.the_version_changes("1.0.0", compatibility={"kernelVersion": ">=5", "requires": None})
    when.the_version_changes("1.1.0", compatibility=None)
    for version in ("1.0.0", "1.1.0"):
        then.the_version_is(version, "Published")
