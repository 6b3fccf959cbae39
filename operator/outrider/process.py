"""The operator's process: it stands by, leads, acts, and ends in order."""

import asyncio
import contextlib
import logging
import os
import signal
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, cast

import kopf
from aiohttp import web

from outrider import __version__
from outrider.adapters.kube import Access, Cluster, open_access
from outrider.adapters.lease import LeaseElector
from outrider.adapters.metrics import LEADER
from outrider.handlers.probes import build_app
from outrider.handlers.watches import build_registry, build_settings
from outrider.reconcile.controller import Controller
from outrider.settings import Settings

logger = logging.getLogger("outrider")


def operate(settings: Settings, kubeconfig: str | None, context: str | None) -> None:
    """Run the operator until it is told to end, or has to. Raises OutriderError when it cannot even begin."""
    _configure_logs(settings)
    asyncio.run(_run(settings, kubeconfig, context))


async def _run(settings: Settings, kubeconfig: str | None, context: str | None) -> None:
    code = await _operate(settings, kubeconfig, context)
    # Threads may still be streaming gigabytes, and asyncio.run would wait for them. Their work is lost by design.
    logging.shutdown()
    os._exit(code)


def _configure_logs(settings: Settings) -> None:
    kopf.configure(log_format=kopf.LogFormat.JSON if settings.log_format == "json" else kopf.LogFormat.FULL)
    logging.getLogger().setLevel(settings.log_level)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)


async def _operate(settings: Settings, kubeconfig: str | None, context: str | None) -> int:
    """Stand by until leading, then act until a signal or the loss of the Lease; returns the exit code."""
    access = open_access(in_cluster=kubeconfig is None, kubeconfig=kubeconfig, context=context)
    cluster = Cluster(access)
    controller = Controller(cluster, settings)
    identity = f"{settings.pod_name}_{uuid.uuid4().hex[:8]}"
    # The election has a session of its own: a burst of moves must not hold up a renewal.
    election = open_access(in_cluster=kubeconfig is None, kubeconfig=kubeconfig, context=context)
    elector = LeaseElector(Cluster(election), settings.namespace, "outrider", identity, settings.lease_seconds)
    stop = asyncio.Event()
    _listen_to_signals(stop)
    standby = asyncio.create_task(_keep_alive(controller))
    runner = await _serve(controller, elector, settings)
    logger.info("Outrider %s stands by as %s, artifacts go to %s", __version__, identity, settings.registry)
    try:
        if not await _first(elector.acquire(), stop.wait()):
            return 0
        standby.cancel()
        LEADER.set(1)
        return await _act(controller, access, elector, stop, identity)
    finally:
        controller.stop()
        await elector.release()
        await runner.cleanup()
        await access.close()
        await election.close()


async def _act(
    controller: Controller, access: Access, elector: LeaseElector, stop: asyncio.Event, identity: str
) -> int:
    """Act while leading. Whatever ends first ends the process: a restart is the one way to recover."""
    ended, ready = asyncio.Event(), asyncio.Event()
    tasks = {
        asyncio.create_task(controller.run(), name="controller"),
        asyncio.create_task(elector.hold(), name="lease"),
        asyncio.create_task(stop.wait(), name="signal"),
        asyncio.create_task(
            _watch_resources(controller, access, identity, ended, ready),
            name="kopf",
        ),
    }
    # kopf takes the signals for itself when it starts; an orderly end is decided here.
    retaking = asyncio.create_task(_after(ready, lambda: _listen_to_signals(stop)))
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    code = 0 if stop.is_set() else 1
    for task in done:
        if not task.cancelled() and task.exception() is not None:
            logger.error("%s ended unexpectedly", task.get_name(), exc_info=task.exception())
    LEADER.set(0)
    ended.set()
    for task in {*pending, retaking}:
        task.cancel()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(8):
            await asyncio.gather(*pending, return_exceptions=True)
    return code


def _listen_to_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)


async def _after(flag: asyncio.Event, act: Callable[[], None]) -> None:
    await flag.wait()
    act()


async def _watch_resources(
    controller: Controller, access: Access, identity: str, ended: asyncio.Event, ready: asyncio.Event
) -> None:
    # Only once the custom resources could be listed: kopf never looks again for a kind that was not there.
    await controller.begun.wait()
    await kopf.operator(
        registry=build_registry(controller, access),
        settings=build_settings(),
        # Left to itself, kopf asks for the user's name, and in the image the user has none.
        identity=cast("Any", identity),
        clusterwide=True,
        standalone=True,
        stop_flag=ended,
        ready_flag=ready,
    )


async def _first(*coroutines: Coroutine[Any, Any, object]) -> bool:
    """Wait for the first of some coroutines; tells whether it was the first one given."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()  # an error is nobody's success
    return tasks[0] in done


async def _keep_alive(controller: Controller) -> None:
    loop = asyncio.get_running_loop()
    while True:
        controller.alive_at = loop.time()
        await asyncio.sleep(1)


async def _serve(controller: Controller, elector: LeaseElector, settings: Settings) -> web.AppRunner:
    app = build_app(lambda: controller.alive_at, lambda: elector.is_leader)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, settings.listen_host or None, settings.listen_port).start()
    return runner
