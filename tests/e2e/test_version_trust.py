"""Trust that stays true: keys come, are replaced, end and go, signers change, bytes rot, while fleets move."""

from typing import Any

import pytest

from e2e.operator_process import OperatorProcess
from e2e.story import (
    COMPONENT,
    SYSTEM,
    Given,
    Story,
    Then,
    When,
    agent_template,
    canary,
    content_of,
    full,
    rolling,
    step,
)
from e2e.watching import Object, Recorder, condition
from outrider.api import names


class Phases:
    """Every phase that each version of a story has had since, in order."""

    def __init__(self, story: Story) -> None:
        self.seen: dict[str, list[str]] = {}
        self._recorder = Recorder(story.api, story.versions, self._note)

    def _note(self, _kind: str, obj: Object) -> None:
        seen = self.seen.setdefault(obj["spec"]["version"], [])
        phase = (obj.get("status") or {}).get("phase")
        if phase is not None and (not seen or seen[-1] != phase):
            seen.append(phase)

    def stop(self) -> dict[str, list[str]]:
        """Stop recording; returns what was seen."""
        self._recorder.stop()
        return self.seen


def half_way(story: Story, given: Given, when: When, then: Then, size: int = 4, **spec: Any) -> list[str]:
    """Let a rolling run from 1.0.0, signed by `base`, to 1.1.0, signed by `release`, be under way."""
    given.a_trusted_key("base")
    given.a_trusted_key("release")
    when.a_version_is_created("1.0.0", key="base")
    when.a_version_is_created("1.1.0", key="release")
    for version in ("1.0.0", "1.1.0"):
        then.the_version_is(version, "Published")
    nodes = given.a_fleet(
        size, running="1.0.0", **{"template": agent_template(realistic=True), "strategy": rolling(2), **spec}
    )
    when.the_rollout_changes(version="1.1.0")
    then.the_assignment_becomes(
        lambda seen: any((value or "").startswith("to-") for value in seen.values()), "a node is between"
    )
    return nodes


def nobody_is_between(then: Then) -> dict[str, str | None]:
    """Wait until half-made moves are finished; returns the assignments."""
    return then.the_assignment_becomes(
        lambda seen: not any((value or "").startswith("to-") for value in seen.values()), "no node is between"
    )


# --- keys are replaced and removed while a fleet moves --------------------------------------------


def test_a_key_is_replaced_in_the_middle_of_a_run_and_nothing_stops(
    story: Story, given: Given, when: When, then: Then
) -> None:
    nodes = half_way(story, given, when, then)
    old, new = story.revision("1.0.0"), story.revision("1.1.0")
    before = then.the_key_in_status_is("1.1.0", "release")["status"]
    phases = Phases(story)

    # Side by side: each of the two may vouch.
    when.a_key_comes("next")
    when.the_version_is_signed_again("1.1.0", "next")
    then.the_version_is("1.1.0", "Published")
    when.a_version_is_created("1.2.0", key="release")
    then.the_key_in_status_is("1.2.0", "release")
    # 1.2.0 is signed again only after the old key is gone: what is needed at once comes first.
    when.a_key_goes("release")
    after = then.the_key_in_status_is("1.1.0", "next")["status"]
    assert after["reference"] == before["reference"]
    assert after["publishedAt"] == before["publishedAt"]
    assert after["artifacts"][0]["reference"] == before["artifacts"][0]["reference"]
    then.the_version_is("1.2.0", "Withdrawn")

    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0", nodes)
    assert story.history is not None
    story.history.check(nodes, [old, f"to-{new}", new])
    seen = phases.stop()
    assert (seen["1.0.0"], seen["1.1.0"]) == (["Published"], ["Published"])
    # What nodes verify with was replaced as well.
    handed = story.client.get(f"/api/v1/namespaces/{story.namespace}/configmaps/{names.trusted_keys_name(COMPONENT)}")[
        "data"
    ]
    files = {f"{story.signer(name).fingerprint.removeprefix('sha256:')}.pub" for name in ("base", "next")}
    assert set(handed) == files


def test_a_key_that_goes_stops_the_run_of_what_it_signed_until_that_is_signed_again(
    story: Story, given: Given, when: When, then: Then
) -> None:
    nodes = half_way(story, given, when, then)
    old, new = story.revision("1.0.0"), story.revision("1.1.0")
    when.a_key_goes("release")
    withdrawn = then.the_version_is("1.1.0", "Withdrawn", "SignatureUntrusted")
    message = condition(withdrawn, "Ready")["message"]
    assert "node-agent 1.1.0 is withdrawn" in message
    assert "Nothing new may use it" in message
    assert condition(withdrawn, "Verified")["status"] == "False"
    assert condition(withdrawn, "Stalled")["status"] == "True"
    assert withdrawn["status"]["publishedAt"]
    then.an_event_tells("Withdrawn", "was Published")
    then.the_version_is("1.0.0", "Published")

    stalled = then.the_rollout_is("Stalled", "VersionWithdrawn")
    assert "node-agent-1.1.0 is Withdrawn" in condition(stalled, "Ready")["message"]
    # Who was on the way arrives; nobody else sets out, whatever happens to look at again.
    stopped = nobody_is_between(then)
    assert set(stopped.values()) == {old, new}
    then.nodes_run("1.1.0", [node for node, value in stopped.items() if value == new])
    waiting = [node for node, value in stopped.items() if value == old]
    when.an_agents_pod_is_deleted(waiting[0])
    then.nodes_run("1.0.0", waiting)
    assert story.assignments() == stopped

    when.a_key_comes("next")
    when.the_version_is_signed_again("1.1.0", "next")
    back = then.the_key_in_status_is("1.1.0", "next")
    assert back["status"]["publishedAt"] == withdrawn["status"]["publishedAt"]
    then.an_event_tells("Published", "was Withdrawn")
    then.the_rollout_is("Completed")
    then.nodes_run("1.1.0", nodes)
    assert story.history is not None
    story.history.check(nodes, [old, f"to-{new}", new])


def test_a_key_that_comes_back_is_as_good_as_before(story: Story, given: Given, when: When, then: Then) -> None:
    given.published_versions("1.0.0")
    when.a_key_goes("release")
    then.the_version_is("1.0.0", "Withdrawn", "NoTrustedKey")
    assert story.repository.pull("1.0.0") == content_of("1.0.0"), "nothing is deleted for it"
    when.a_key_comes("release")
    then.the_version_is("1.0.0", "Published")


# --- versions are called off while a fleet moves ------------------------------------------------


def test_revoked_in_the_middle_of_a_run_every_node_that_was_touched_goes_back(
    story: Story, given: Given, when: When, then: Then
) -> None:
    nodes = half_way(story, given, when, then, size=3, strategy=rolling(1))
    then.the_counts_are(healthy=1)
    old, new = story.revision("1.0.0"), story.revision("1.1.0")
    when.the_version_changes("1.1.0", stage="Revoked")
    revoked = then.the_version_is("1.1.0", "Revoked", "Revoked")
    assert "revoked for good" in condition(revoked, "Ready")["message"]
    end = then.the_rollout_is("RolledBack")
    assert condition(end, "RolledBack")["reason"] == "VersionRevoked"
    assert "node-agent-1.1.0 is Revoked" in end["status"]["history"][0]["message"]
    then.nodes_run("1.0.0", nodes)
    assert story.history is not None
    there = [old, f"to-{new}"]
    story.history.check(nodes, [old], [*there, old], [*there, f"to-{old}", old], [*there, new, f"to-{old}", old])
    touched = [node for node in nodes if len(story.history.assignments[node]) > 1]
    assert 1 <= len(touched) < len(nodes)

    # It is final: no new run, and no way back to Published.
    before = story.assignments()
    when.the_rollout_changes(version="1.0.0")
    then.the_rollout_is("Completed")
    when.the_rollout_changes(version="1.1.0")
    refused = then.the_rollout_is("Stalled", "VersionRevoked")
    assert "no node is moved to it any more" in condition(refused, "Ready")["message"]
    assert story.assignments() == before


def test_revoked_in_the_middle_of_a_run_that_pauses_on_failure_nobody_moves_on(
    story: Story, given: Given, when: When, then: Then
) -> None:
    nodes = half_way(story, given, when, then, onFailure="Pause", strategy=canary(step(2, soak=600), size=2))
    then.the_counts_are(healthy=2)
    old, new = story.revision("1.0.0"), story.revision("1.1.0")
    when.the_version_changes("1.1.0", stage="Revoked")
    stalled = then.the_rollout_is("Stalled", "VersionRevoked")
    assert "node-agent-1.1.0 is Revoked" in condition(stalled, "Ready")["message"]
    degraded = condition(stalled, "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "RevokedVersionRuns")
    assert "2 nodes still on 1.1.0" in degraded["message"]
    assert sorted(story.assignments().values(), key=str) == sorted([old, old, new, new])

    when.the_rollout_changes(version="1.0.0")
    then.the_rollout_is("Completed")
    then.nodes_run("1.0.0", nodes)
    assert story.history is not None
    story.history.check(nodes, [old], [old, f"to-{new}", new, f"to-{old}", old])


def test_deprecated_in_the_middle_of_a_run_it_goes_on_but_no_new_one_may_follow(
    story: Story, given: Given, when: When, then: Then
) -> None:
    nodes = half_way(story, given, when, then)
    when.the_version_changes("1.1.0", stage="Deprecated")
    deprecated = then.the_version_is("1.1.0", "Deprecated", "Deprecated")
    assert condition(deprecated, "Deprecated")["reason"] == "DeprecatedByAuthor"
    assert condition(deprecated, "Ready")["status"] == "True"
    assert deprecated["status"]["latest"] is False
    done = then.the_rollout_is("Completed")
    assert "1.1.0 is Deprecated: no new run may go to it" in condition(done, "Ready")["message"]
    then.nodes_run("1.1.0", nodes)

    when.a_version_is_created("1.2.0", key="base")
    then.the_version_is("1.2.0", "Published")
    when.the_version_changes("1.2.0", stage="Deprecated")
    then.the_version_is("1.2.0", "Deprecated")
    before = story.assignments()
    when.the_rollout_changes(version="1.2.0", strategy=full())
    refused = then.the_rollout_is("Stalled", "VersionDeprecated")
    assert "node-agent-1.2.0 is Deprecated: no new run goes to it" in condition(refused, "Ready")["message"]
    assert story.assignments() == before

    when.the_version_changes("1.2.0", stage="Published")
    then.the_rollout_is("Completed")
    then.nodes_run("1.2.0", nodes)


# --- keys that count for a while, and keys that are none -----------------------------------------


def test_a_key_past_its_time_publishes_nothing_new_and_takes_nothing_away(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    story.change_trust("release", not_after="2026-01-01T00:00:00Z")
    when.a_version_is_created("1.1.0")
    late = then.the_version_is("1.1.0", "Draft", "KeyNotValidNow", never="Published")
    assert condition(late, "Verified")["status"] == "False"
    assert "2026-01-01" in condition(late, "Ready")["message"]

    proof = story.version("1.0.0")["status"]["artifacts"][0]["signature"]["verifiedAt"]
    when.somebody_asks_to_look_again("1.0.0")
    then.the_version_is(
        "1.0.0", "Published", where=lambda obj: obj["status"]["artifacts"][0]["signature"]["verifiedAt"] > proof
    )
    story.change_trust("release", not_after=None, not_before="2026-01-01T00:00:00Z")
    then.the_version_is("1.1.0", "Published")


def test_what_is_no_key_says_so_where_it_is_missed_and_hurts_no_other(
    story: Story, given: Given, when: When, then: Then
) -> None:
    private = story.signer("private").private.read_text()
    when.a_key_comes("garbage", content="-----BEGIN PUBLIC KEY-----\nbm90IGEga2V5\n-----END PUBLIC KEY-----\n")
    when.a_key_comes("private", content=private)
    when.a_version_is_created("1.0.0")
    waiting = then.the_version_is("1.0.0", "Draft", "NoTrustedKey", never="Published")
    for name, words in (("garbage", "garbage.pub"), ("private", "IT HOLDS A PRIVATE KEY")):
        then.an_event_tells("KeyUnusable", words, about=f"{story.name}-{name}", namespace=SYSTEM)
        then.an_event_tells("KeyUnusable", words, about=f"{COMPONENT}-1.0.0")

    given.a_trusted_key("release")
    published = then.the_version_is("1.0.0", "Published")
    secret = "".join(private.splitlines()[1:3])[:40]
    events = story.client.items(f"/api/v1/namespaces/{SYSTEM}/events") + story.events("KeyUnusable")
    assert secret not in str([waiting, published, events])
    assert secret not in story.operator.log_since()


# --- what lies in the registry is looked at again ------------------------------------------------


def test_bytes_that_rot_in_the_registry_withdraw_their_version(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.a_trusted_key()
    when.a_version_is_created("1.0.0", content=f"# {story.name}\n".encode())
    then.the_version_is("1.0.0", "Published")
    with when.the_bytes_rot("1.0.0") as digest:
        when.somebody_asks_to_look_again("1.0.0")
        rotten = then.the_version_is("1.0.0", "Withdrawn", "BlobCorrupted")
        assert digest in condition(rotten, "Ready")["message"]
        assert condition(rotten, "Verified")["status"] == "False"
        then.an_event_tells("Withdrawn", digest)
    when.somebody_asks_to_look_again("1.0.0")
    then.the_version_is("1.0.0", "Published")


def test_a_registry_that_is_down_takes_nothing_away_and_is_told(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.published_versions("1.0.0")
    phases = Phases(story)
    story.local.stop_registry()
    when.somebody_asks_to_look_again("1.0.0")
    shown = then.the_version_is(
        "1.0.0", "Published", where=lambda obj: "not verified again since" in condition(obj, "Ready")["message"]
    )
    assert story.local.registry in condition(shown, "Ready")["message"]
    assert condition(shown, "Verified")["status"] == "Unknown"
    story.local.start_registry()
    then.the_version_is("1.0.0", "Published", where=lambda obj: condition(obj, "Verified")["status"] == "True")
    assert phases.stop() == {"1.0.0": ["Published"]}


@pytest.mark.parametrize("what", ["file", "manifest", "index"])
def test_what_somebody_deletes_from_the_registry_is_stored_again(
    story: Story, given: Given, when: When, then: Then, what: str
) -> None:
    given.published_versions("1.0.0")
    status = story.version("1.0.0")["status"]
    artifact = status["artifacts"][0]
    path = {
        "file": f"blobs/{artifact['digest']}",
        "manifest": f"manifests/{artifact['reference'].rpartition('@')[2]}",
        "index": f"manifests/{status['reference'].rpartition('@')[2]}",
    }[what]
    story.repository.delete(path)
    assert not story.repository.has(path)
    proof = artifact["signature"]["verifiedAt"]
    when.somebody_asks_to_look_again("1.0.0")
    again = then.the_version_is(
        "1.0.0",
        "Published",
        where=lambda obj: (obj["status"]["artifacts"][0].get("signature") or {}).get("verifiedAt", "") > proof,
    )
    assert again["status"]["reference"] == status["reference"]
    assert story.repository.has(path)
    assert story.repository.pull("1.0.0") == content_of("1.0.0")


@pytest.mark.parametrize(
    "another_operator", [{"OUTRIDER_REVERIFY_SECONDS": "3"}], indirect=True, ids=["every 3 seconds"]
)
def test_an_operator_that_verifies_again_by_itself_finds_what_rots(
    story: Story, given: Given, when: When, then: Then, another_operator: OperatorProcess
) -> None:
    given.a_trusted_key()
    when.a_version_is_created("1.0.0", content=f"# {story.name}\n".encode())
    when.a_version_is_created("1.1.0")
    for version in ("1.0.0", "1.1.0"):
        then.the_version_is(version, "Published")
    with when.the_bytes_rot("1.0.0"):
        then.the_version_is("1.0.0", "Withdrawn", "BlobCorrupted")
        then.the_version_is("1.1.0", "Published")
    assert another_operator.is_running()
