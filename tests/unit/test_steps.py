"""What may be deleted with a version, and which steps wait for which."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from outrider.adapters.kube import Json
from outrider.api.componentversion import ComponentVersionStatus
from outrider.api.errors import Stalling
from outrider.core.version_snapshot import AnyStep, Done, Store, Verify
from outrider.reconcile.steps import Subject, digests_of_others
from outrider.reconcile.versions import VersionReconciler, _Memory
from outrider.settings import Settings
from unit.test_version import AMD, INDEX, PUBLISHED, make_spec, stored, verified

SUBJECT = Subject("fleet", "agent-9.9.9", "uid-9", make_spec("Draft"), ComponentVersionStatus())


def version(uid: str = "uid-1", namespace: str = "fleet", component: str = "agent", **status: Any) -> Json:
    spec = {**make_spec("Published").to_api(), "component": component}
    return {"metadata": {"uid": uid, "namespace": namespace}, "spec": spec, "status": status}


def test_files_manifests_and_indexes_of_other_versions_stay() -> None:
    kept = digests_of_others([version(**PUBLISHED.to_api())], SUBJECT)
    assert INDEX.rpartition("@")[2] in kept
    for entry in PUBLISHED.artifacts:
        assert {entry.digest, entry.reference.rpartition("@")[2]} <= kept


def test_what_a_spec_names_stays_before_its_status_says_so() -> None:
    assert digests_of_others([version()], SUBJECT) == {f"sha256:{AMD.sha256}"}


@pytest.mark.parametrize("other", [{"uid": "uid-9"}, {"namespace": "fleet-2"}, {"component": "agent-2"}])
def test_other_repositories_and_the_version_itself_keep_nothing(other: dict[str, str]) -> None:
    assert not digests_of_others([version(**other, **PUBLISHED.to_api())], SUBJECT)


async def test_servers_that_authors_name_do_not_hold_up_what_is_stored() -> None:
    """Every slot is taken by a source that sends nothing; what is published is verified all the same."""
    release = asyncio.Event()
    was_verified = asyncio.Event()

    class Steps:
        async def perform(self, step: AnyStep, _subject: Subject, done: Done, _cancelled: Callable[[], bool]) -> Done:
            await release.wait() if isinstance(step, Store) else was_verified.set()
            return done

    class Trust:
        generation = ""

    nothing = cast("Any", None)
    reconciler = VersionReconciler(
        nothing, nothing, nothing, cast("Any", Trust()), nothing, nothing, nothing, Settings(), lambda _key: None
    )
    reconciler._steps = cast("Any", Steps())
    steps: list[AnyStep] = [*[Store(AMD)] * 5, Verify(AMD, stored(AMD))]
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for step in steps:
            group.create_task(reconciler._run("fleet/agent-9.9.9", _Memory("uid-9", 1, ""), step, SUBJECT))
        await was_verified.wait()
        release.set()


@pytest.mark.parametrize(
    ("reason", "stands"),
    [("SignatureUntrusted", False), ("BlobCorrupted", False), ("RegistryDenied", True), ("SecretForbidden", True)],
)
def test_a_proof_that_was_refuted_does_not_come_back_when_the_refusal_is_forgotten(reason: str, stands: bool) -> None:
    nothing = cast("Any", None)
    reconciler = VersionReconciler(
        nothing, nothing, nothing, nothing, nothing, nothing, nothing, Settings(), lambda _key: None
    )
    memory = _Memory("uid-9", 1, "", done=Done({"linux/amd64": verified(AMD)}))
    reconciler._fail(memory, Stalling(reason, "it does not verify"), "Verify", "linux/amd64", "")
    assert (memory.done.artifacts["linux/amd64"].signature is not None) == stands


async def test_what_was_refused_is_told_first_and_then_looked_for_new_signatures_now_and_then() -> None:
    happened: list[str] = []

    class Steps:
        async def perform(self, *_arguments: object) -> Done:
            raise Stalling("SignatureMissing", "nothing vouches for it")

        async def look_for_signatures(self, *_arguments: object) -> bool:
            happened.append("looked")
            return True

    class Trust:
        generation = ""

    nothing = cast("Any", None)
    reconciler = VersionReconciler(
        nothing, nothing, nothing, cast("Any", Trust()), nothing, nothing, nothing, Settings(), happened.append
    )
    reconciler._steps = cast("Any", Steps())
    memory = _Memory("uid-9", 1, "")
    await reconciler._run("fleet/agent-9.9.9", memory, Verify(AMD, stored(AMD)), SUBJECT)
    assert happened == ["fleet/agent-9.9.9", "looked", "fleet/agent-9.9.9"]
    assert memory.failure is None, "it is verified once more"

    happened.clear()
    await reconciler._run("fleet/agent-9.9.9", memory, Verify(AMD, stored(AMD)), SUBJECT)
    assert happened == ["fleet/agent-9.9.9"]
    assert memory.failure is not None
    assert memory.failure.reason == "SignatureMissing"


async def test_what_could_not_be_stored_is_not_looked_for_new_signatures() -> None:
    class Steps:
        async def perform(self, *_arguments: object) -> Done:
            raise Stalling("SignatureMissing", "nothing vouches for it")

    class Trust:
        generation = ""

    nothing = cast("Any", None)
    reconciler = VersionReconciler(
        nothing, nothing, nothing, cast("Any", Trust()), nothing, nothing, nothing, Settings(), lambda _key: None
    )
    reconciler._steps = cast("Any", Steps())
    memory = _Memory("uid-9", 1, "")
    await reconciler._run("fleet/agent-9.9.9", memory, Store(AMD), SUBJECT)
    assert memory.failure is not None
    assert not memory.looked
