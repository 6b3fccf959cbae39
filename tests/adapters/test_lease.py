"""The election on a real API server: at most one leads, whatever hangs, dies or is meddled with."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from typing_extensions import override

from adapters.realapiserver import RealApiServer, access_by, black_hole, eventually, line_to, remains
from outrider.adapters.kube import LEASES, Cluster, Json, Resource
from outrider.adapters.lease import LeaseElector

LEASE = 3.0
"""Seconds; short, so that the tests are."""
DEADLINE = LEASE * 2 / 3
RETRY = LEASE / 5
SLACK = 0.5
"""What a busy machine may take for what takes no time."""


class Candidate:
    """One replica: it waits for the Lease, holds it, and ends when it loses it."""

    def __init__(self, cluster: Cluster, lease: str, name: str, seconds: float = LEASE) -> None:
        self.elector = LeaseElector(cluster, "default", lease, name, seconds)
        self.led_at: float | None = None
        self.lost_at: float | None = None
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await self.elector.acquire()
        self.led_at = time.monotonic()
        await self.elector.hold()
        self.lost_at = time.monotonic()

    @property
    def leads(self) -> bool:
        return self.led_at is not None and self.lost_at is None

    async def kill(self) -> None:
        """End it as SIGKILL does: nothing is given back."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


@asynccontextmanager
async def candidates(lease: str, **clusters: Cluster) -> AsyncIterator[list[Candidate]]:
    """Replicas that start one after the other."""
    started: list[Candidate] = []
    try:
        for name, cluster in clusters.items():
            started.append(Candidate(cluster, lease, name))
            if len(started) == 1:
                await eventually(lambda: started[0].leads, "the first one leads")
        yield started
    finally:
        for candidate in started:
            await candidate.kill()


async def lease_of(kube: Cluster, name: str) -> Json:
    lease = await kube.get(LEASES, "default", name)
    assert lease is not None
    return lease


async def test_the_first_leads_and_renews_and_the_second_waits(kube: Cluster) -> None:
    async with candidates("plain", first=kube, second=kube) as (first, second):
        before = await lease_of(kube, "plain")
        assert before["spec"]["holderIdentity"] == "first"
        await remains(lambda: first.leads and not second.leads, "one leads, and it is the first", LEASE * 1.5)
        after = (await lease_of(kube, "plain"))["spec"]
        assert after["renewTime"] > before["spec"]["renewTime"]
        assert after["acquireTime"] == before["spec"]["acquireTime"]
        assert after["leaseTransitions"] == 0


async def test_of_many_that_start_together_one_leads(kube: Cluster) -> None:
    for attempt in range(3):
        started = [Candidate(kube, f"race-{attempt}", f"replica-{number}") for number in range(6)]
        await eventually(lambda: any(one.leads for one in started), "somebody leads")  # noqa: B023
        await remains(lambda: sum(one.leads for one in started) == 1, "only one", RETRY * 2)  # noqa: B023
        for one in started:
            await one.kill()


async def test_when_the_leader_dies_another_takes_over_but_not_before_its_lease_has_run_out(kube: Cluster) -> None:
    async with candidates("death", first=kube, second=kube) as (first, second):
        await asyncio.sleep(RETRY * 2)
        await first.kill()
        renewed = first.elector._renewed
        await eventually(lambda: second.leads, "the second takes over", LEASE * 3)
        assert second.led_at is not None
        assert LEASE <= second.led_at - renewed < LEASE + 2 * RETRY + 2 * SLACK
        assert (await lease_of(kube, "death"))["spec"]["leaseTransitions"] == 1


async def test_when_the_leader_gives_it_back_another_leads_at_once(kube: Cluster) -> None:
    async with candidates("given-back", first=kube, second=kube) as (first, second):
        await first.kill()
        await first.elector.release()
        begun = time.monotonic()
        await eventually(lambda: second.leads, "the second leads")
        assert time.monotonic() - begun < RETRY + SLACK


async def test_who_does_not_lead_gives_nothing_back(kube: Cluster) -> None:
    async with candidates("not-mine", first=kube, second=kube) as (first, second):
        await second.elector.release()
        assert (await lease_of(kube, "not-mine"))["spec"]["holderIdentity"] == "first"
        await remains(lambda: first.leads, "it still leads", RETRY * 2)


async def test_a_leader_cut_off_from_the_api_ends_before_another_begins(
    api_server: RealApiServer, kube: Cluster
) -> None:
    async with (
        line_to(api_server) as line,
        access_by(api_server.kubeconfig, server=line.url) as access,
        candidates("cut-off", first=Cluster(access), second=kube) as (first, second),
    ):
        await asyncio.sleep(RETRY * 2)
        line.freeze()
        begun = time.monotonic()
        await eventually(lambda: first.lost_at is not None, "the first ends", LEASE * 2)
        assert time.monotonic() - begun < DEADLINE + SLACK
        assert not first.elector.is_leader
        assert not second.leads
        await eventually(lambda: second.leads, "the second begins", LEASE * 2)
        assert first.lost_at is not None
        assert second.led_at is not None
        assert second.led_at - first.lost_at > LEASE - DEADLINE - SLACK


async def test_an_api_server_that_refuses_connections_ends_the_leader_in_time(
    api_server: RealApiServer, kube: Cluster
) -> None:
    async with (
        line_to(api_server) as line,
        access_by(api_server.kubeconfig, server=line.url) as access,
        candidates("refused", first=Cluster(access)) as (first,),
    ):
        line.cut()
        begun = time.monotonic()
        await eventually(lambda: first.lost_at is not None, "the first ends", LEASE * 2)
        assert time.monotonic() - begun < DEADLINE + SLACK
    assert (await lease_of(kube, "refused"))["spec"]["holderIdentity"] == "first"


async def test_an_api_server_that_hangs_from_the_start_lets_nobody_lead(api_server: RealApiServer) -> None:
    async with black_hole() as url, access_by(api_server.kubeconfig, server=url) as access:
        lost = Candidate(Cluster(access), "never", "first")
        await remains(lambda: not lost.leads, "nobody knows who leads", LEASE * 1.5)
        await lost.kill()


async def test_holding_what_was_never_taken_ends_at_once(api_server: RealApiServer) -> None:
    async with black_hole() as url, access_by(api_server.kubeconfig, server=url) as access:
        elector = LeaseElector(Cluster(access), "default", "hold", "first", LEASE)
        async with asyncio.timeout(SLACK):
            await elector.hold()


async def test_a_short_outage_costs_nothing(api_server: RealApiServer) -> None:
    async with (
        line_to(api_server) as line,
        access_by(api_server.kubeconfig, server=line.url) as access,
        candidates("blip", first=Cluster(access)) as (first,),
    ):
        for _ in range(3):
            line.freeze()
            await asyncio.sleep(RETRY)
            line.thaw()
            await asyncio.sleep(RETRY * 2)
        await remains(lambda: first.leads, "it leads all the time", LEASE)


async def test_whoever_sees_another_holder_ends_at_once(kube: Cluster) -> None:
    async with candidates("usurped", first=kube) as (first,):
        await kube.apply(
            LEASES,
            {"metadata": {"namespace": "default", "name": "usurped"}, "spec": {"holderIdentity": "somebody"}},
            manager="a-person",
        )
        begun = time.monotonic()
        await eventually(lambda: first.lost_at is not None, "it ends")
        assert time.monotonic() - begun < RETRY + SLACK
        assert (await lease_of(kube, "usurped"))["spec"]["holderIdentity"] == "somebody"


async def test_a_lease_that_was_deleted_is_made_again(kube: Cluster) -> None:
    async with candidates("deleted", first=kube) as (first,):
        await kube.delete(LEASES, "default", "deleted")
        await asyncio.sleep(RETRY + SLACK)
        assert first.leads
        assert (await lease_of(kube, "deleted"))["spec"]["holderIdentity"] == "first"


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({}, id="that says nothing"),
        pytest.param({"holderIdentity": "", "renewTime": "2020-01-01T00:00:00.000000Z"}, id="that was given back"),
    ],
)
async def test_a_lease_without_a_holder_is_free(kube: Cluster, spec: Json) -> None:
    await kube.delete(LEASES, "default", "free")
    await kube.create(LEASES, {"metadata": {"name": "free"}, "spec": spec}, "default")
    async with candidates("free", first=kube) as (first,):
        assert first.led_at is not None


async def test_a_clock_that_is_wrong_elsewhere_does_not_matter(kube: Cluster) -> None:
    """A holder whose clock is a year behind, or ahead, is waited for like any other."""
    for year in (2020, 2099):
        name = f"clock-{year}"
        spec = {"holderIdentity": "other", "leaseDurationSeconds": 3, "renewTime": f"{year}-01-01T00:00:00.000000Z"}
        await kube.create(LEASES, {"metadata": {"name": name}, "spec": spec}, "default")
    begun = time.monotonic()
    waiting = [Candidate(kube, f"clock-{year}", "first") for year in (2020, 2099)]
    await eventually(lambda: all(one.leads for one in waiting), "both take over", LEASE * 3)
    for one in waiting:
        assert one.led_at is not None
        assert LEASE <= one.led_at - begun < LEASE + 2 * RETRY + 2 * SLACK
        await one.kill()


async def test_others_wait_at_least_as_long_as_the_holder_counts_on(kube: Cluster) -> None:
    fractional = Candidate(kube, "fraction", "first", seconds=2.5)
    await eventually(lambda: fractional.leads, "it leads")
    assert (await lease_of(kube, "fraction"))["spec"]["leaseDurationSeconds"] >= 2.5
    await fractional.kill()


class Late(Cluster):
    """Hands over what it read only after a while."""

    @override
    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json | None:
        found = await super().get(resource, namespace, name)
        await asyncio.sleep(RETRY * 0.8)
        return found


async def test_a_renewal_that_is_told_late_counts_from_when_it_was_told(kube: Cluster) -> None:
    async with candidates("told-late", first=kube) as (first,):
        await first.kill()
        elector = LeaseElector(Late(kube._access), "default", "told-late", "second", LEASE)
        begun = time.monotonic()
        assert not await elector._attempt()
        assert elector._seen[1] - begun >= RETRY * 0.8


async def test_requests_of_the_holder_stay_few(kube: Cluster) -> None:
    """One request every fifth of the lease: what an idle operator costs the API server."""
    asked: list[Any] = []
    written: list[Any] = []

    class Counting(Cluster):
        @override
        async def get(self, resource: Resource, namespace: str | None, name: str) -> Json | None:
            asked.append(name)
            return await super().get(resource, namespace, name)

        @override
        async def replace(self, resource: Resource, namespace: str | None, name: str, body: Json) -> Json:
            written.append(name)
            return await super().replace(resource, namespace, name, body)

    async with candidates("few", first=Counting(kube._access)):
        asked.clear()
        written.clear()
        await asyncio.sleep(LEASE)
        assert 3 <= len(written) <= 5
        assert len(asked) <= 1, "what is held is renewed without being read again"
