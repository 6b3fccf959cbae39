"""Checks under way: agents and analyses that are being asked, in the background, each at most once at a time.

What comes out is kept in the Rollout's `Memory` and seen by its next pass. Nothing is decided here.
"""

import asyncio
import ipaddress
import logging
import urllib.parse
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from outrider.adapters import clock
from outrider.adapters.checks import AgentProber, CannotTell, CheckLimits, Told, ask_prometheus, ask_web
from outrider.adapters.kube import JOBS, Cluster, Conflict, Json
from outrider.adapters.sources import HttpAccess
from outrider.adapters.transport import AddressPolicy
from outrider.api.checks import Analysis, HttpCheck, JobCheck, PrometheusQuery, WebCheck
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.core.checkjob import build_check_job, is_check_job, judge_check_job
from outrider.core.plan import AskAnalysis, Plan, ProbeAgents
from outrider.core.snapshot import AnalysisAnswer, Measurement, RolloutSnapshot
from outrider.core.states import ONGOING
from outrider.reconcile.gathering import Memory, Probed
from outrider.reconcile.inputs import RETRY, read_config_map, read_login
from outrider.settings import Settings

logger = logging.getLogger(__name__)

_THREADS: Final = 8
"""How many queries and web checks are under way at a time, over all Rollouts."""
_THREADS_OF_A_NAMESPACE: Final = 4
"""And of one namespace: servers of one tenant that do not answer must not keep others' analyses from being asked."""
_JOB_SECONDS: Final = 1.0
"""How often a Job under way is looked at."""


@dataclass
class _Question:
    """An analysis that is being asked. `job` is its Job, once there is one."""

    attempt: int
    analysis: Analysis
    task: asyncio.Task[None] | None = None
    job: Json | None = None


class Checks:
    """All that is being asked for Rollouts. `wake` is told whose pass has something new to see."""

    def __init__(self, cluster: Cluster, settings: Settings, wake: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._settings = settings
        self._wake = wake
        networks = tuple(ipaddress.ip_network(each, strict=False) for each in settings.allowed_check_addresses)
        guard = AddressPolicy(networks, setting="checks.allowedAddresses (OUTRIDER_ALLOWED_CHECK_ADDRESSES)")
        self._limits = CheckLimits(settings.allowed_check_hosts, guard)
        self._prober = AgentProber(guard)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="analysis")
        self._turns: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(_THREADS_OF_A_NAMESPACE)
        )
        self._probing: dict[str, asyncio.Task[None]] = {}
        self._asking: dict[str, dict[tuple[str, str], _Question]] = {}
        self._tidying: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Live until cancelled; then end all that is under way."""
        try:
            await asyncio.Event().wait()
        finally:
            questions = [question.task for asked in self._asking.values() for question in asked.values()]
            for task in [*self._probing.values(), *filter(None, questions), *self._tidying]:
                task.cancel()
            self._threads.shutdown(wait=False, cancel_futures=True)
            await self._prober.close()

    # -- what a pass says

    def begin(self, key: str, seen: RolloutSnapshot, plan: Plan, memory: Memory) -> None:
        """Ask what a plan wants asked, unless it is asked already; end what no run waits for any more."""
        self._let_go(key, seen, plan, memory)
        for action in plan.actions:
            match action:
                case ProbeAgents(version, pods):
                    assert seen.spec.health.http is not None  # noqa: S101 - else nobody is to be probed
                    for uid, ip in pods:
                        self._probe(key, uid, ip, seen.spec.health.http, version, memory)
                case AskAnalysis():
                    self._ask(key, seen, action, memory)
                case _:
                    pass

    def forget(self, key: str) -> None:
        """End what is asked for a Rollout that is gone. Its Jobs go with it."""
        for question in self._asking.pop(key, {}).values():
            if question.task is not None:
                question.task.cancel()

    def _let_go(self, key: str, seen: RolloutSnapshot, plan: Plan, memory: Memory) -> None:
        if not self._asking.get(key) and not memory.answers:
            return
        run = plan.status.run
        analyses = {analysis.name: analysis for analysis in seen.spec.analysis}
        ongoing = run is not None and run.state in ONGOING and run.kind == "Rollout"
        present = [batch for batch in seen.batches if run is not None and batch.spec.run == run.id]
        newest = max((batch.spec.batch for batch in present), default=0)
        wanted = {batch.name for batch in present if batch.spec.batch == newest}
        if not ongoing or seen.deleting:
            wanted = set()
        for about, question in list(self._asking.get(key, {}).items()):
            if about[0] not in wanted or analyses.get(about[1]) != question.analysis:
                del self._asking[key][about]
                self._end(seen.namespace, question)
        for about in list(memory.answers):
            if about[0] not in wanted:
                del memory.answers[about]

    def _end(self, namespace: str, question: _Question) -> None:
        if question.task is not None:
            question.task.cancel()
        if question.job is not None and judge_check_job(question.job) is None:
            task = asyncio.create_task(self._delete_job(namespace, question.job))
            self._tidying.add(task)
            task.add_done_callback(self._tidying.discard)

    async def _delete_job(self, namespace: str, job: Json) -> None:
        metadata = job["metadata"]
        try:
            await self._cluster.delete(JOBS, namespace, metadata["name"], uid=metadata["uid"])
        except OutriderError as error:
            logger.info("Job %s/%s is left to its deadline: %s", namespace, metadata["name"], error.message)

    # -- agents

    def _probe(self, key: str, uid: str, ip: str, check: HttpCheck, version: str, memory: Memory) -> None:
        if uid in self._probing:
            return
        task = asyncio.create_task(self._probe_one(key, uid, ip, check, version, memory), name=f"probe {uid}")
        self._probing[uid] = task

    async def _probe_one(self, key: str, uid: str, ip: str, check: HttpCheck, version: str, memory: Memory) -> None:
        try:
            told = await self._prober.ask(ip, check, version)
        except Exception:
            logger.exception("%s: unexpected error when an agent was asked", key)
            told = Told("Unknown", "but asking it failed; the operator's log has more")
        now, before = clock.now(), memory.probes.get(uid)
        last = before.measurement if before is not None and before.check == check else None
        same = last is not None and last.verdict == told.verdict
        told_at = last.told_at if last is not None else None
        if told_at is None and told.verdict != "Unknown":
            told_at = now
        since = last.since if last is not None and same else now
        self._probing.pop(uid, None)
        memory.probes[uid] = Probed(check, Measurement(told.verdict, told.message, now, since, told_at))
        if not same:
            self._wake(key)

    # -- analyses

    def _ask(self, key: str, seen: RolloutSnapshot, action: AskAnalysis, memory: Memory) -> None:
        about = action.batch, action.name
        asked = self._asking.setdefault(key, {})
        answer = memory.answers.get(about)
        analysis = next((each for each in seen.spec.analysis if each.name == action.name), None)
        if analysis is None or about in asked or (answer is not None and answer.attempt == action.attempt):
            return
        question = asked[about] = _Question(action.attempt, analysis)
        question.task = asyncio.create_task(
            self._ask_one(key, seen, about, question, memory), name=f"analysis {key} {action.name}"
        )

    async def _ask_one(
        self, key: str, seen: RolloutSnapshot, about: tuple[str, str], question: _Question, memory: Memory
    ) -> None:
        analysis = question.analysis
        try:
            if analysis.job is not None:
                told = await self._ask_job(seen, about, question, analysis.job)
            else:
                check = analysis.prometheus or analysis.web
                assert check is not None  # noqa: S101 - the CRD demands exactly one
                told = await self._ask_server(seen.namespace, check)
        except (CannotTell, OutriderError) as error:
            told = Told("Unknown", str(error).removesuffix(RETRY).rstrip(" ,;"))
        except Exception:
            logger.exception("%s: unexpected error when analysis %s was asked", key, analysis.name)
            told = Told("Unknown", "asking failed; the operator's log has more")
        memory.answers[about] = AnalysisAnswer(
            *about, question.attempt, told.verdict, told.message, clock.now(), told.value
        )
        self._asking.get(key, {}).pop(about, None)
        self._wake(key)

    async def _ask_server(self, namespace: str, check: PrometheusQuery | WebCheck) -> Told:
        account = f"{self._settings.namespace}:{self._settings.service_account}"
        login = await read_login(self._cluster, namespace, check.secret_ref, account)
        ca_pem = None
        if check.ca_config_map is not None:
            ca_pem = (await read_config_map(self._cluster, namespace, check.ca_config_map)).decode(errors="replace")
        url = check.address if isinstance(check, PrometheusQuery) else check.url
        plain = any(fnmatchcase(urllib.parse.urlsplit(url).netloc, g) for g in self._settings.plain_http_sources)
        access = HttpAccess(login.header() if login is not None else None, ca_pem, plain)
        loop = asyncio.get_running_loop()
        async with self._turns[namespace]:
            if isinstance(check, PrometheusQuery):
                return await loop.run_in_executor(self._threads, ask_prometheus, check, access, self._limits)
            return await loop.run_in_executor(self._threads, ask_web, check, access, self._limits)

    async def _ask_job(
        self, seen: RolloutSnapshot, about: tuple[str, str], question: _Question, check: JobCheck
    ) -> Told:
        batch, name = about
        run = next(each.spec.run for each in seen.batches if each.name == batch)
        job = build_check_job(
            namespace=seen.namespace,
            rollout=seen.name,
            uid=seen.uid,
            run=run,
            batch=batch,
            analysis=name,
            attempt=question.attempt,
            check=check,
        )
        question.job = await self._create_job(seen, job)
        while True:
            answer = judge_check_job(question.job)
            if answer is not None:
                return Told(*answer)
            await asyncio.sleep(_JOB_SECONDS)
            with suppress(Transient):  # what the API server cannot say now, it says later
                found = await self._cluster.get(JOBS, seen.namespace, job["metadata"]["name"])
                if found is None or found["metadata"]["uid"] != question.job["metadata"]["uid"]:
                    raise CannotTell(f"Job {job['metadata']['name']} was deleted before it had ended")
                question.job = found

    async def _create_job(self, seen: RolloutSnapshot, job: Json) -> Json:
        """Create a Job, or find it, if another process has made it already. Raises CannotTell."""
        name = job["metadata"]["name"]
        try:
            return await self._cluster.create(JOBS, job, seen.namespace)
        except Conflict as error:
            if error.reason != "AlreadyExists":
                raise
        except Stalling as error:
            refused = f"the API server refuses the Job made from its template: {error.message}; correct it"
            raise CannotTell(refused) from None
        found = await self._cluster.get(JOBS, seen.namespace, name)
        if found is None or found["metadata"].get("deletionTimestamp"):
            raise CannotTell(f"Job {name} was deleted just now")
        if not is_check_job(found, seen.uid):
            raise CannotTell(f"there is a Job {name} already that is none of the operator's; delete it")
        return found
