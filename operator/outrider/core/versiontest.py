"""The test of a version: what was tested, by whom, and what came out. Pure."""

import hashlib
import json
from collections.abc import Sequence

from outrider.api.componentversion import ComponentVersionSpec, RecordedTest
from outrider.core.version_snapshot import Trial, VersionSnapshot


def content_of_test(spec: ComponentVersionSpec, artifact_hashes: Sequence[str], retest: str) -> str:
    """Return the hash of everything that a test is about; `retest` is the nonce of the request to test again.

    Release notes, expiry and the like are not in it: they change nothing of what was tested.
    """
    content = {
        "artifacts": list(artifact_hashes),
        "compatibility": spec.compatibility.to_api() if spec.compatibility else None,
        "testing": spec.testing.to_api() if spec.testing else None,
        "retest": retest,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def judge_test(seen: VersionSnapshot, content: str) -> Trial:
    """Return how the test of `content` stands. What was published is not tested again."""
    testing, record = seen.spec.testing, seen.status.test
    if testing is None:
        return Trial(content, "NotAsked", "the version has no test: the phase is passed through")
    if seen.status.published_at is not None:
        return Trial(content, "Passed", record.message if record else "tested before it was published", record)
    if testing.manual is not None:
        return _judge_verdict(seen, content, testing.manual.instructions)
    return _judge_job(seen, content)


def _judge_verdict(seen: VersionSnapshot, content: str, instructions: str) -> Trial:
    given, _, of = seen.verdict.strip().partition(":")
    record = seen.status.test
    if of == content and given in {"pass", "fail"}:
        passed = given == "pass"
        if record is None or record.content != content or (record.state == "Passed") != passed:
            record = RecordedTest(
                content=content,
                state="Passed" if passed else "Failed",
                finished_at=seen.now,
                message=f"{'passed' if passed else 'failed'} by a person's verdict",
            )
        return Trial(content, "Passed" if passed else "Failed", record.message, record)
    name = f"{seen.spec.component}-{seen.spec.version}"
    look = f" ({instructions})" if instructions else ""
    where = f"--namespace {seen.namespace} " if seen.namespace else ""
    wrong = ""
    if given:
        about = f"content {of[:40]}" if of else "no content"
        wrong = f"the verdict that is there ({given[:20]}) is for {about}, and this is {content}; "
    return Trial(
        content,
        "Waiting",
        f"{wrong}waiting for a person's verdict{look}: kubectl {where}annotate --overwrite componentversion {name} "
        f"outrider.dev/test-verdict=pass:{content} (or fail:{content})",
    )


def _judge_job(seen: VersionSnapshot, content: str) -> Trial:
    record, job = seen.status.test, seen.job
    if record is not None and record.content == content and record.state != "Running":
        return Trial(content, record.state, record.message, record)
    if job is None or job.content != content:
        return Trial(content, "Due", "its test has to be started")
    done = job.state != "Running"
    message = job.message or ("" if done else f"Job {job.name} is running")
    record = RecordedTest(
        content=content,
        state=job.state,
        job=job.name,
        started_at=job.started_at,
        finished_at=seen.now if done else None,
        message=message,
    )
    return Trial(content, job.state, message, record)
