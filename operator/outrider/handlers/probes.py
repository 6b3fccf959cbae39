"""`/livez`, `/readyz` and `/metrics`, on every replica."""

import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

_LATE_SECONDS = 30.0


def build_app(alive_at: Callable[[], float], acting: Callable[[], bool]) -> web.Application:
    """Return the small HTTP application.

    Alive means that the event loop turned within 30 s. Ready means able to act or to take over: a replica that stands
    by is ready too.
    """

    async def livez(_: web.Request) -> web.Response:
        late = time.monotonic() - alive_at()
        if late > _LATE_SECONDS:
            return web.Response(status=503, text=f"no heartbeat for {late:.0f} s\n")
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="acting\n" if acting() else "standing by\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app
