"""A version is tested before it is published: by a Job that sees what nodes will see, or by a person."""

import json
import time
from typing import Any

import pytest

from e2e.repository import INDEX
from e2e.story import COMPONENT, Given, Story, Then, When, content_of
from e2e.watching import Object, condition
from localcluster.apiclient import ApiError
from localcluster.faults import Fault
from outrider.api import names


def a_job(job: Object | None = None, **container: Any) -> Object:
    """A version's spec with a test by a Job."""
    pod = {
        "spec": {
            "restartPolicy": "Never",
            "tolerations": [{"operator": "Exists"}],
            "containers": [
                {"name": "test", "image": "test:dev", "command": ["/opt/artifact/node-agent", "--check"], **container}
            ],
        }
    }
    return {"testing": {"job": {"template": {"spec": {"template": pod, **(job or {})}}}}}


def by_hand(instructions: str = "Look at the lamps.") -> Object:
    """A version's spec with a test by a person."""
    return {"testing": {"manual": {"instructions": instructions}}}


def its_test(story: Story, behaviour: str) -> Fault:
    """The pods of tests behave badly from now on."""
    return story.inject(behaviour, namespace=story.namespace, pod_labels={names.LABEL_COMPONENT: COMPONENT})


def jobs(story: Story) -> list[Object]:
    """Return the Jobs of the story, oldest first."""
    found = story.client.items(story.jobs)
    return sorted(found, key=lambda job: (job["metadata"]["creationTimestamp"], job["metadata"]["name"]))


def the_content_is_named(then: Then, version: str) -> str:
    """Wait until a version waits for a person; returns the content that the verdict has to name."""
    waiting = then.the_version_is(version, "Testing", "WaitingForVerdict", never="Published")
    message: str = condition(waiting, "Tested")["message"]
    return message.partition("test-verdict=pass:")[2].partition(" ")[0]


@pytest.fixture
def a_node(story: Story) -> str:
    """A node that tests can run on."""
    return story.add_nodes(1)[0]


# --- by a Job ---------------------------------------------------------------------------------


def test_a_version_whose_test_passes_is_published(
    story: Story, given: Given, when: When, then: Then, a_node: str
) -> None:
    given.a_trusted_key()
    held = its_test(story, "never-ready")
    content = when.a_version_is_created("1.0.0", spec=a_job())
    running = then.the_version_is("1.0.0", "Testing", "Testing", never="Published")
    assert condition(running, "Tested")["status"] == "Unknown"
    assert story.repository.tags() == [], "nothing is published while it is tested"
    story.api.wait(story.jobs, lambda found: len(found) == 1, "the Job is there", each=lambda _: None)
    [job] = jobs(story)
    look_at_the_job(story, job, content)

    held.remove()
    published = then.the_version_is("1.0.0", "Published")
    tested = condition(published, "Tested")
    assert (tested["status"], tested["reason"]) == ("True", "TestPassed")
    assert job["metadata"]["name"] in tested["message"]
    record = published["status"]["test"]
    assert (record["state"], record["job"]) == ("Passed", job["metadata"]["name"])
    assert record["startedAt"] <= record["finishedAt"]
    then.an_event_tells("TestPassed", job["metadata"]["name"])
    assert story.repository.pull("1.0.0") == content

    # The Job is the operator's: nobody else says how it ended; and it goes with its version.
    with pytest.raises(ApiError, match="only the Outrider operator writes"):
        story.client.delete(f"{story.jobs}/{job['metadata']['name']}")
    when.the_version_changes("1.0.0", stage="Revoked")
    then.the_version_is("1.0.0", "Revoked")
    assert when.a_version_is_deleted("1.0.0") == ""
    then.the_version_is_gone("1.0.0")
    story.api.wait(story.jobs, lambda found: not found, "the Job went with its version", each=lambda _: None)


def look_at_the_job(story: Story, job: Object, content: bytes) -> None:
    """A test sees what nodes will see: the verified artifact, pinned by digest, read-only."""
    version = story.version("1.0.0")
    metadata, pod = job["metadata"], job["spec"]["template"]["spec"]
    [owner] = metadata["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("ComponentVersion", version["metadata"]["uid"])
    assert metadata["labels"][names.LABEL_MANAGED_BY] == names.MANAGED_BY
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (0, 600)
    assert job["spec"]["ttlSecondsAfterFinished"] > 0

    [init] = pod["initContainers"]
    assert init["name"] == names.FETCH_CONTAINER
    said = json.dumps(init)
    _, headers = story.repository.request("HEAD", "manifests/_index.1.0.0", Accept=INDEX)
    assert f"{story.local.registry}/{story.repository.name}@{headers['Docker-Content-Digest']}" in said
    assert version["status"]["artifacts"][0]["digest"].removeprefix("sha256:") in said
    [container] = pod["containers"]
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == names.VOLUME_ARTIFACT]
    assert (mount["mountPath"], mount["readOnly"]) == ("/opt/artifact", True)
    assert [m["name"] for m in init["volumeMounts"] if not m.get("readOnly")] == [names.VOLUME_ARTIFACT]
    keys = next(volume for volume in pod["volumes"] if volume["name"] == names.VOLUME_KEYS)
    found = story.client.get(f"/api/v1/namespaces/{story.namespace}/configmaps/{keys['configMap']['name']}")
    assert f"{story.signer().fingerprint.removeprefix('sha256:')}.pub" in found["data"]


def test_a_version_whose_test_fails_stays_a_draft_and_says_what_the_job_said(
    story: Story, given: Given, when: When, then: Then, a_node: str
) -> None:
    given.a_trusted_key()
    fault = its_test(story, "fails")
    when.a_version_is_created("1.0.0", spec=a_job())
    failed = then.the_version_is("1.0.0", "Draft", "TestFailed", never="Published")
    [job] = jobs(story)
    tested = condition(failed, "Tested")
    assert (tested["status"], tested["reason"]) == ("False", "TestFailed")
    assert f"Job {job['metadata']['name']}: " in tested["message"]
    assert "backoff limit" in tested["message"]
    assert "the agent does not answer" in tested["message"]
    assert condition(failed, "Stalled")["status"] == "True"
    assert "outrider.dev/retest-requested-at" in condition(failed, "Stalled")["message"]
    assert failed["status"]["test"]["state"] == "Failed"
    assert failed["status"].get("publishedAt") is None
    assert story.repository.tags() == []
    then.an_event_tells("Draft", "the agent does not answer")

    # The same content is not tested again by itself, whatever else changes.
    when.the_version_changes("1.0.0", releaseNotes="It answers at times.")
    then.the_version_is("1.0.0", "Draft", "TestFailed", never="Published")
    assert len(jobs(story)) == 1

    # Asked for, it is; and so is another content. Both are other Jobs.
    story.annotate_version("1.0.0", names.ANNOTATION_RETEST, "1")
    first = job["metadata"]["name"]
    then.the_version_is(
        "1.0.0", "Draft", "TestFailed", never="Published", where=lambda obj: obj["status"]["test"]["job"] != first
    )
    assert len(jobs(story)) == 2
    fault.remove()
    when.the_version_changes("1.0.0", **a_job(args=["--patiently"]))
    published = then.the_version_is("1.0.0", "Published")
    assert len(jobs(story)) == 3
    assert published["status"]["test"]["job"] == jobs(story)[-1]["metadata"]["name"]
    assert story.repository.pull("1.0.0") == content_of("1.0.0")


def test_a_test_that_is_asked_for_again_may_pass(
    story: Story, given: Given, when: When, then: Then, a_node: str
) -> None:
    given.a_trusted_key()
    fault = its_test(story, "fails")
    when.a_version_is_created("1.0.0", spec=a_job())
    then.the_version_is("1.0.0", "Draft", "TestFailed", never="Published")
    fault.remove()
    story.annotate_version("1.0.0", names.ANNOTATION_RETEST, "again")
    then.the_version_is("1.0.0", "Published")
    assert len(jobs(story)) == 2


def test_what_is_tested_no_longer_is_not_tested_on(
    story: Story, given: Given, when: When, then: Then, a_node: str
) -> None:
    given.a_trusted_key()
    its_test(story, "never-ready")
    when.a_version_is_created("1.0.0", spec=a_job())
    then.the_version_is("1.0.0", "Testing", "Testing", never="Published")
    story.api.wait(story.jobs, lambda found: len(found) == 1, "the Job is there", each=lambda _: None)
    [first] = jobs(story)
    when.the_version_changes("1.0.0", **a_job(args=["--patiently"]))
    gone = first["metadata"]["name"]
    story.api.wait(
        story.jobs,
        lambda found: len(found) == 1 and gone not in found,
        "its Job is stopped, and another has begun",
        each=lambda _: None,
    )
    story.api.wait(story.pods, lambda found: len(found) == 1, "so are the pods of the first", each=lambda _: None)
    then.the_version_is("1.0.0", "Testing", "Testing", never="Published")


def test_a_test_that_no_api_server_takes_is_told_and_can_be_corrected(
    story: Story, given: Given, when: When, then: Then, a_node: str
) -> None:
    given.a_trusted_key()
    when.a_version_is_created("1.0.0", spec=a_job(volumeMounts=[{"name": "nowhere", "mountPath": "/data"}]))
    told = then.the_version_is("1.0.0", "Testing", "TestInvalid", never="Published")
    message = condition(told, "Stalled")["message"]
    assert "spec.testing.job.template" in message
    assert "nowhere" in message
    assert condition(told, "Tested")["status"] == "False"
    then.an_event_tells("TestInvalid", "nowhere")
    when.the_version_changes("1.0.0", **a_job(volumeMounts=None))
    then.the_version_is("1.0.0", "Published")


# --- by a person --------------------------------------------------------------------------------


def test_a_persons_verdict_counts_for_the_content_that_it_names_and_for_no_other(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.a_trusted_key()
    when.a_version_is_created("1.0.0", spec=by_hand())
    content = the_content_is_named(then, "1.0.0")
    waiting = story.version("1.0.0")
    assert "Look at the lamps." in condition(waiting, "Tested")["message"]
    command = f"kubectl --namespace {story.namespace} annotate --overwrite componentversion {COMPONENT}-1.0.0"
    assert command in condition(waiting, "Ready")["message"]
    then.an_event_tells("WaitingForVerdict", content)

    # A verdict on something else, and what is no verdict.
    for verdict in ("pass:0123456789ab", "pass", "passed:" + content, "pass:" + content[:-1]):
        story.annotate_version("1.0.0", names.ANNOTATION_VERDICT, verdict)
        moved = str(time.time_ns())
        when.the_version_changes("1.0.0", releaseNotes=moved)
        then.the_version_is("1.0.0", "Testing", "WaitingForVerdict", never="Published")

    story.annotate_version("1.0.0", names.ANNOTATION_VERDICT, f"fail:{content}")
    failed = then.the_version_is("1.0.0", "Draft", "TestFailed", never="Published")
    assert "a person's verdict" in condition(failed, "Tested")["message"]
    # What has failed may be changed: then the verdict is one on another content.
    when.the_version_changes("1.0.0", **by_hand("Look again."))
    other = the_content_is_named(then, "1.0.0")
    assert other != content
    story.annotate_version("1.0.0", names.ANNOTATION_VERDICT, f"pass:{content}")
    when.the_version_changes("1.0.0", releaseNotes="Still waiting.")
    then.the_version_is("1.0.0", "Testing", "WaitingForVerdict", never="Published")

    story.annotate_version("1.0.0", names.ANNOTATION_VERDICT, f"pass:{other}")
    published = then.the_version_is("1.0.0", "Published")
    assert condition(published, "Tested")["reason"] == "TestPassed"
    assert published["status"]["test"]["content"] == other
    assert jobs(story) == []
