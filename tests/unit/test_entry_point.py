"""The operator's process, as the image runs it."""

import asyncio
import os
import pwd
from collections.abc import Collection
from typing import Any, cast

import kopf
import pytest

from outrider import process
from outrider.adapters.kube import Access
from outrider.adapters.lease import LeaseElector
from outrider.reconcile.controller import Controller


class _Forever:
    """Stands in for the controller and for the Lease: neither ends."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.begun.set()

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def hold(self) -> None:
        await asyncio.Event().wait()


async def test_a_user_without_a_name_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    tasks_were_made = asyncio.Event()

    async def run_tasks(tasks: Collection[asyncio.Task[Any]], **_options: Any) -> None:
        # Whoever lets tasks lie about meets them again when the garbage is collected, in the middle of another test.
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        tasks_were_made.set()

    monkeypatch.setattr("kopf._core.reactor.running.run_tasks", run_tasks)
    monkeypatch.setattr(process, "build_registry", lambda *_args: kopf.OperatorRegistry())
    stop = asyncio.Event()
    acting = asyncio.create_task(
        process._act(
            cast("Controller", _Forever()),
            cast("Access", None),
            cast("LeaseElector", _Forever()),
            stop,
            f"me_{os.getpid()}",
        )
    )
    await asyncio.wait([acting, asyncio.create_task(tasks_were_made.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert tasks_were_made.is_set(), "kopf did not get as far as its tasks"
    stop.set()
    await acting
