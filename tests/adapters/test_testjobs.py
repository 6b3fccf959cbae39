"""A test's Job whose name somebody else has taken."""

from typing import Any

import pytest

from outrider.adapters.kube import JOBS, Cluster, Json
from outrider.api import names
from outrider.api.errors import Stalling
from outrider.reconcile import testjobs

OURS = {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_COMPONENT_VERSION: "uid-1"}


def make_job(name: str, labels: dict[str, str]) -> Json:
    pod: dict[str, Any] = {"restartPolicy": "Never", "containers": [{"name": "test", "image": "test"}]}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"suspend": True, "template": {"spec": pod}}}


@pytest.fixture
def jobs(kube: Cluster) -> testjobs.TestJobs:
    return testjobs.TestJobs(kube, lambda _namespace, _name: None)


@pytest.mark.parametrize(
    "labels", [{}, {names.LABEL_COMPONENT_VERSION: "uid-1"}, {**OURS, "outrider.dev/component-version": "uid-2"}]
)
async def test_a_job_of_somebody_else_under_its_name_is_refused(
    kube: Cluster, jobs: testjobs.TestJobs, labels: dict[str, str]
) -> None:
    name = f"test-taken-{len(labels)}"
    await kube.create(JOBS, make_job(name, labels), "default")
    with pytest.raises(Stalling, match="none of the operator's") as refusal:
        await jobs.create("default", make_job(name, OURS))
    assert refusal.value.reason == "TestInvalid"


async def test_a_job_of_ours_that_is_not_seen_yet_is_taken(kube: Cluster, jobs: testjobs.TestJobs) -> None:
    await kube.create(JOBS, make_job("test-ours", OURS), "default")
    await jobs.create("default", make_job("test-ours", OURS))
    assert [job["metadata"]["name"] for job in jobs.informer.values()] == ["test-ours"]
