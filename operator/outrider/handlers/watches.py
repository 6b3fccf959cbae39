"""kopf's part: it watches the few custom resources and hands what it sees to the controller. No decisions here."""

from typing import Any

import kopf

from outrider.adapters.informer import key_of
from outrider.adapters.kube import Access
from outrider.api import names
from outrider.reconcile.controller import Controller


def build_registry(controller: Controller, access: Access) -> kopf.OperatorRegistry:
    """Return the handlers, bound to one controller, in a registry of their own: nothing global."""
    registry = kopf.OperatorRegistry()
    stores = {names.COMPONENT_VERSIONS: controller.versions, names.ROLLOUTS: controller.rollouts}

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=access.server, aiohttp_session=access.session)

    for plural, store in stores.items():

        @kopf.on.event(names.GROUP, names.VERSION, plural, registry=registry, id=f"watch-{plural}")
        async def changed(event: kopf.RawEvent, store: Any = store, **_: Any) -> None:
            body: dict[str, Any] = dict(event["object"])
            if event["type"] == "DELETED":
                store.drop(key_of(body), int(body["metadata"]["resourceVersion"]))
            else:
                store.put(body)

    return registry


def build_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: no peering, no events of its own, nothing stored on objects, calm watching."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.server_timeout = 290
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = (1, 2, 4, 8)
    settings.queueing.exit_timeout = 5
    settings.persistence.finalizer = f"{names.GROUP}/kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP, v1=False)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=names.GROUP, v1=False)
    return settings
