"""What the verbs do: they write a request, an annotation with a nonce, and wait until the operator has answered it."""

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from outrider.adapters.kube import ROLLOUTS, SELF_SUBJECT_REVIEWS, Cluster, Json
from outrider.api import names
from outrider.api.errors import OutriderError, Stalling
from outrider.cli.access import list_all, missing_right

Verb = Literal["approve", "abort", "retry", "rollback"]

_LOOK_SECONDS = 0.3
_MANAGER = "kubectl-outrider"


@dataclass(frozen=True)
class Answer:
    """What came of a request."""

    result: Literal["Handled", "Refused", "NotAnswered", "NotAwaited"]
    message: str
    seconds: float = 0.0


async def fetch(cluster: Cluster, namespace: str, name: str) -> Json:
    """Return a Rollout. Raises Stalling(NotFound) that names those that are there."""
    try:
        body = await cluster.get(ROLLOUTS, namespace, name)
    except OutriderError as error:
        if error.reason == "Forbidden":
            raise missing_right("get", ROLLOUTS, namespace) from error
        raise
    if body is not None:
        return body
    known = sorted(each["metadata"]["name"] for each in await list_all(cluster, ROLLOUTS, namespace))
    there = f"there are {', '.join(known[:10])}" if known else "there is none"
    raise Stalling("NotFound", f"there is no Rollout {name} in namespace {namespace}; {there}")


async def request(
    cluster: Cluster, namespace: str, name: str, verb: Verb, details: Json, *, wait_seconds: float
) -> Answer:
    """Write a request and wait for its answer; `details` are what a rollback is about."""
    body = await fetch(cluster, namespace, name)
    nonce = f"{int(time.time())}-{uuid.uuid4().hex[:8]}"
    asked, by = names.request_annotations(verb)
    annotations = {by: await who_am_i(cluster)}
    if verb == "rollback":
        details = {"id": nonce, "run": details.get("run") or _run_of(body), **details}
        annotations[asked] = json.dumps(details)
    else:
        annotations[asked] = nonce
    await _change(cluster, namespace, name, {"metadata": {"annotations": annotations}})
    if wait_seconds <= 0:
        return Answer("NotAwaited", "asked; not waited for the answer")

    def answer(seen: Json) -> str | None:
        handled = (seen.get("status") or {}).get("lastHandled") or {}
        return _tell(seen, verb, nonce) if handled.get(verb) == nonce else None

    found = await _await(cluster, namespace, name, answer, wait_seconds)
    if found.result == "Handled" and found.message.startswith(_REFUSED):
        return Answer("Refused", found.message.removeprefix(_REFUSED), found.seconds)
    return found


_REFUSED = "refused\n"


def _tell(seen: Json, verb: str, nonce: str) -> str:
    refused = (seen.get("status") or {}).get("lastRefused") or {}
    if (refused.get("request"), refused.get("nonce")) == (verb, nonce):
        return _REFUSED + str(refused.get("message", ""))
    return tell_state(seen)


def tell_state(body: Json) -> str:
    """Return in one sentence how a Rollout stands."""
    status = body.get("status") or {}
    ready: Json = next((c for c in status.get("conditions") or [] if c["type"] == "Ready"), {})
    return f"{status.get('phase') or 'new'}: {ready.get('message') or 'nothing is known yet'}"


async def pause(cluster: Cluster, namespace: str, name: str, *, paused: bool, wait_seconds: float) -> Answer:
    """Set spec.paused, and wait until the status speaks of it."""
    body = await fetch(cluster, namespace, name)
    if bool(body["spec"].get("paused")) == paused:
        return Answer("Handled", f"it {'is' if paused else 'was not'} paused already. {tell_state(body)}")
    body = await _change(cluster, namespace, name, {"spec": {"paused": paused}})
    if wait_seconds <= 0:
        return Answer("NotAwaited", "set; not waited for the operator")
    generation = body["metadata"]["generation"]

    def answer(seen: Json) -> str | None:
        observed = (seen.get("status") or {}).get("observedGeneration") or -1
        return tell_state(seen) if observed >= generation else None

    return await _await(cluster, namespace, name, answer, wait_seconds)


async def who_am_i(cluster: Cluster) -> str:
    """Return the user's name as the API server knows it; "" if it does not tell."""
    try:
        answer = await cluster.create(
            SELF_SUBJECT_REVIEWS,
            {"apiVersion": SELF_SUBJECT_REVIEWS.api_version, "kind": SELF_SUBJECT_REVIEWS.kind},
        )
    except OutriderError:
        return ""
    return str(((answer.get("status") or {}).get("userInfo") or {}).get("username") or "")


def _run_of(body: Json) -> int:
    """Return the run that a rollback takes back if none is named: the newest that brought something."""
    status = body.get("status") or {}
    known = [status.get("run") or {}, *(status.get("history") or [])]
    found = next((run["id"] for run in known if run.get("kind") == "Rollout"), None)
    if found is None:
        raise Stalling(
            "Invalid", f"Rollout {body['metadata']['name']} has had no run yet: there is nothing to take back"
        )
    return int(found)


async def _change(cluster: Cluster, namespace: str, name: str, patch: Json) -> Json:
    try:
        answer = await cluster.merge(ROLLOUTS, namespace, name, patch, manager=_MANAGER)
    except OutriderError as error:
        if error.reason != "Forbidden":
            raise
        if "ValidatingAdmissionPolicy" in error.message:
            # A policy says by itself what is missing, and what to do.
            _, _, said = error.message.partition("ValidatingAdmissionPolicy")
            raise Stalling("Invalid", f"policy{said.partition(' Is the operator')[0]}") from error
        raise missing_right("patch", ROLLOUTS, namespace) from error
    return answer


async def _await(
    cluster: Cluster, namespace: str, name: str, answer: Callable[[Json], str | None], seconds: float
) -> Answer:
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < seconds:
        seen = await fetch(cluster, namespace, name)
        if (told := answer(seen)) is not None:
            return Answer("Handled", told, passed)
        await asyncio.sleep(_LOOK_SECONDS)
    return Answer(
        "NotAnswered",
        f"the operator has not answered within {seconds:g} s; the request stays, and is answered when it comes. Does "
        "it run? (kubectl --namespace outrider-system get pods)",
        seconds,
    )
