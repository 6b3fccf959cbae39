"""What a delivery may use: what the operator and `outrider plan` find out of it, and what they do without."""

from typing import Any, cast

import pytest

from outrider.adapters.kube import Cluster, Json, Resource
from outrider.api.errors import OutriderError, Transient
from outrider.cli.planning import find_ground
from outrider.reconcile.namespaces import NamespaceFacts, Namespaces


class Objects:
    """As much of the cluster as whoever looks around needs: namespaces and ConfigMaps, or an error for each."""

    def __init__(self, **found: Json | OutriderError | None) -> None:
        self.found = found
        self.asked: list[str] = []

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json | None:
        self.asked.append(f"{resource.plural}/{namespace}/{name}" if namespace else f"{resource.plural}/{name}")
        answer = self.found.get(resource.plural)
        if isinstance(answer, OutriderError):
            raise answer
        return answer


FORBIDDEN = Transient("Forbidden", "the API server refuses it")
DOWN = Transient("ApiDown", "nobody answers")


def namespace(level: str | None = None, **metadata: Any) -> Json:
    labels = {"pod-security.kubernetes.io/enforce": level} if level else None
    return {"metadata": {"name": "fleet", "labels": labels, **metadata}}


def settings(**data: str) -> Json:
    return {"metadata": {"name": "outrider-settings"}, "data": data or None}


# -- the operator


@pytest.mark.parametrize(
    ("found", "facts"),
    [
        pytest.param(namespace(), NamespaceFacts(), id="one that says nothing"),
        pytest.param(namespace("baseline"), NamespaceFacts(pod_security="baseline"), id="one that enforces something"),
        pytest.param(
            namespace("restricted", deletionTimestamp="2026-01-01T00:00:00Z"),
            NamespaceFacts(terminating=True, pod_security="restricted"),
            id="one that goes away",
        ),
        pytest.param(None, NamespaceFacts(terminating=True), id="one that is gone"),
        pytest.param(DOWN, NamespaceFacts(), id="one that cannot be looked up"),
    ],
)
async def test_what_a_namespace_is_like(found: Json | None, facts: NamespaceFacts) -> None:
    cluster = Objects(namespaces=found)
    assert await Namespaces(cast("Cluster", cluster)).look("fleet") == facts


async def test_what_is_known_is_not_asked_again_for_a_while() -> None:
    cluster = Objects(namespaces=namespace("baseline"))
    namespaces = Namespaces(cast("Cluster", cluster))
    for _ in range(3):
        await namespaces.look("fleet")
    assert cluster.asked == ["namespaces/fleet"]
    cluster.found["namespaces"] = namespace("privileged")
    assert (await namespaces.look("fleet", seconds=0)).pod_security == "privileged"
    assert (await namespaces.look("fleet")).pod_security == "privileged"


async def test_what_was_known_last_holds_while_the_api_server_is_down() -> None:
    cluster = Objects(namespaces=namespace("baseline"))
    namespaces = Namespaces(cast("Cluster", cluster))
    await namespaces.look("fleet")
    cluster.found["namespaces"] = DOWN
    assert (await namespaces.look("fleet", seconds=0)).pod_security == "baseline"


async def test_what_cannot_be_changed_later_is_not_made_from_what_nobody_can_read_and_nothing_is_forgotten() -> None:
    cluster = Objects(namespaces=namespace("baseline"))
    namespaces = Namespaces(cast("Cluster", cluster))
    await namespaces.look("fleet")
    cluster.found["namespaces"] = DOWN
    with pytest.raises(Transient, match="what namespace fleet enforces cannot be read") as caught:
        await namespaces.look_closely("fleet")
    assert caught.value.reason == "NamespaceUnknown"
    assert (await namespaces.look("fleet")).pod_security == "baseline"


# -- the command

HOST = {"spec": {"delivery": {"host": {"path": "/opt/a"}}}}
VOLUME = {"spec": {"delivery": {"volume": {"mountPath": "/a", "containers": ["a"]}}}}
PREPARED = {"spec": {**VOLUME["spec"], "prePull": True}}
CANNOT_SEE_SETTINGS = "the operator installs Daemons below /opt: its settings cannot be seen from here"
CANNOT_SEE_NAMESPACE = "namespace fleet enforces no Pod Security level: it cannot be seen from here"


@pytest.mark.parametrize(
    ("body", "found", "roots", "level", "assumptions"),
    [
        pytest.param(VOLUME, {}, ("/opt",), "", (), id="a volume needs to know nothing"),
        pytest.param(
            HOST,
            {"configmaps": settings(OUTRIDER_HOST_ROOTS="/srv,/data/x"), "namespaces": namespace("baseline")},
            ("/srv", "/data/x"),
            "baseline",
            (),
            id="a Daemon where all can be seen",
        ),
        pytest.param(
            HOST,
            {"configmaps": settings(), "namespaces": namespace()},
            ("/opt",),
            "",
            (),
            id="a Daemon where the operator has its defaults",
        ),
        pytest.param(
            HOST,
            {"configmaps": FORBIDDEN, "namespaces": FORBIDDEN},
            ("/opt",),
            "",
            (CANNOT_SEE_SETTINGS, CANNOT_SEE_NAMESPACE),
            id="a Daemon where nothing can be seen",
        ),
        pytest.param(
            HOST,
            {"configmaps": None, "namespaces": namespace("restricted")},
            ("/opt",),
            "restricted",
            (CANNOT_SEE_SETTINGS,),
            id="a Daemon where the operator is elsewhere",
        ),
        pytest.param(
            PREPARED, {"namespaces": namespace("restricted")}, ("/opt",), "restricted", (), id="nodes that are prepared"
        ),
    ],
)
async def test_what_a_plan_takes_for_given(
    body: Json, found: dict[str, Any], roots: tuple[str, ...], level: str, assumptions: tuple[str, ...]
) -> None:
    ground, told = await find_ground(cast("Cluster", Objects(**found)), "fleet", body)
    assert (ground.settings.host_roots, ground.pod_security, told) == (roots, level, assumptions)


async def test_what_cannot_be_told_at_all_is_an_error() -> None:
    with pytest.raises(Transient, match="nobody answers"):
        await find_ground(cast("Cluster", Objects(configmaps=DOWN)), "fleet", HOST)
