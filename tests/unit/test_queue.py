"""The work queue on a clock that jumps: one pass of a key at a time, bursts coalesced, failures backed off."""

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.api.errors import Stalling, Transient, Waiting
from outrider.reconcile.queue import WorkQueue
from outrider.settings import Retry
from unit.virtualtime import run_in_virtual_time

RETRY = Retry(first=1, factor=2, maximum=8)
SETTLE = 0.05

Outcome = Exception | float | None
"""What a pass ends with: an error, or the seconds after which to look again."""


@dataclass
class Passes:
    """Passes that were made: when each began (seconds since the start) and for which key."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    seconds: float = 0.0
    began: list[tuple[float, str]] = field(default_factory=list)
    running: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.start = asyncio.get_running_loop().time()

    async def __call__(self, key: str) -> float | None:
        self.began.append((self.now(), key))
        self.running[key] += 1
        assert self.running[key] == 1, f"two passes of {key} at once"
        self.most_at_once = max(self.most_at_once, self.running.total())
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.running[key] -= 1
        planned = self.outcomes.get(key, [])
        outcome = planned.pop(0) if planned else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def now(self) -> float:
        return round(asyncio.get_running_loop().time() - self.start, 3)

    def of(self, key: str) -> list[float]:
        return [moment for moment, found in self.began if found == key]


def play(
    story: Callable[[WorkQueue, Passes], Awaitable[None]],
    *,
    seconds: float = 0.0,
    first_seconds: float | None = None,
    **outcomes: list[Outcome],
) -> Passes:
    """Run a story beside a queue whose passes take `seconds` and end as planned for each key."""

    async def main() -> Passes:
        passes = Passes(outcomes, seconds)
        queue = WorkQueue("Test", passes, RETRY, settle_seconds=SETTLE, first_seconds=first_seconds)
        runner = asyncio.create_task(queue.run())
        await story(queue, passes)
        assert not runner.done(), "the queue goes on, whatever passes end with"
        runner.cancel()
        with suppress(asyncio.CancelledError):
            await runner
        return passes

    return run_in_virtual_time(main())


def pauses(began: list[float]) -> list[float]:
    return [round(later - earlier, 3) for earlier, later in itertools.pairwise(began)]


def transient(retry_after: float | None = None) -> Transient:
    return Transient("Down", "it is down", retry_after=retry_after)


async def add_once(queue: WorkQueue, _: Passes) -> None:
    queue.add("a")
    await asyncio.sleep(1000)


def test_a_key_is_worked_once_after_its_burst_has_settled() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        for _event in range(100):
            queue.add("a")
        await asyncio.sleep(0.02)
        queue.add("a")
        await asyncio.sleep(60)

    assert play(story).began == [(0.05, "a")]


def test_the_first_event_after_a_rest_is_looked_at_almost_at_once_and_what_follows_gathers() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        queue.add("a")
        await asyncio.sleep(0.02)
        for _event in range(10):
            queue.add("a")
        await asyncio.sleep(60)
        queue.add("a")
        await asyncio.sleep(60)

    assert play(story, first_seconds=0.01).of("a") == [0.01, 0.07, 60.03]


def test_a_person_waits_for_no_burst_to_settle_and_after_a_pass_comes_first() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        queue.add("a")
        await asyncio.sleep(0.5)
        queue.retry_now("a")  # a pass is made: the next follows at once
        await asyncio.sleep(1.54)
        queue.add("a")  # a burst begins that is to gather
        queue.retry_now("a")
        await asyncio.sleep(60)

    assert play(story, seconds=1.0, first_seconds=0.01).of("a") == [0.01, 1.02, 2.05]


def test_each_key_gathers_and_rests_for_as_long_as_it_says() -> None:
    async def main() -> Passes:
        passes = Passes()
        waits = {"a": 0.05, "b": 0.4}
        queue = WorkQueue(
            "Test", passes, RETRY, settle_seconds=waits.__getitem__, first_seconds=0.01, rest_seconds=waits.__getitem__
        )
        runner = asyncio.create_task(queue.run())
        for moment in (0.0, 0.1, 0.3):
            await asyncio.sleep(moment - passes.now())
            queue.add("a")
            queue.add("b")
        await asyncio.sleep(10)
        runner.cancel()
        with suppress(asyncio.CancelledError):
            await runner
        return passes

    passes = run_in_virtual_time(main())
    assert passes.of("a") == [0.01, 0.11, 0.31]
    assert passes.of("b") == [0.01, 0.5]


def test_a_steady_stream_of_events_cannot_put_a_pass_off() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        for _event in range(50):
            queue.add("a")
            await asyncio.sleep(0.01)

    assert play(story).of("a")[0] == 0.05
    assert 8 <= len(play(story).of("a")) <= 10


def test_events_during_a_pass_give_one_more_pass() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        queue.add("a")
        await asyncio.sleep(1)
        for _event in range(10):
            queue.add("a")
        await asyncio.sleep(60)

    assert play(story, seconds=2).of("a") == [0.05, 2.1]


def test_an_event_during_a_pass_is_not_made_to_wait_for_its_return() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        queue.add("a")
        await asyncio.sleep(1)
        queue.add("a")
        await asyncio.sleep(60)

    assert play(story, seconds=2, a=[500.0]).of("a") == [0.05, 2.1]


def test_a_pass_that_wants_to_look_again_does_and_an_event_brings_it_forward() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        queue.add("a")
        await asyncio.sleep(100)
        queue.add("a")
        await asyncio.sleep(100)

    assert play(story, a=[30.0, 3000.0]).of("a") == [0.05, 30.05, 100.05]


def test_a_pass_asked_for_later_does_not_put_off_one_that_comes_sooner() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        queue.add("a", after=10)
        queue.add("a", after=99)
        queue.add("a", after=3)
        await asyncio.sleep(200)

    assert play(story).of("a") == [3.0]


def test_a_pass_asked_for_while_one_runs_is_made_even_if_its_time_comes_during_it() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        queue.add("a")
        await asyncio.sleep(0.1)
        queue.add("a", after=1)
        await asyncio.sleep(100)
        queue.add("a")
        await asyncio.sleep(100)

    began = play(story, seconds=5).of("a")
    assert len(began) == 3
    assert began[2] == 100.15


@pytest.mark.parametrize(
    ("error", "delays"),
    [
        pytest.param(transient(), [1, 2, 4, 8, 8], id="a dependency that is down: 1, 2, 4, 8 s, capped"),
        pytest.param(Stalling("Invalid", "it is invalid"), [1, 2, 4, 8, 8], id="what a person has to mend, likewise"),
        pytest.param(KeyError("bug"), [1, 2, 4, 8, 8], id="a bug, likewise: it must not spin"),
        pytest.param(transient(retry_after=3), [3, 3, 4, 8, 8], id="at least what the dependency asked for"),
        pytest.param(transient(retry_after=90), [90, 90, 90, 90, 90], id="even above the cap"),
        pytest.param(Waiting("Pending", "not yet", after=5), [5, 5, 5, 5, 5], id="waiting is no failure: no growth"),
    ],
)
def test_how_long_a_key_waits_after_an_error(error: Exception, delays: list[float]) -> None:
    began = play(add_once, a=[error] * 5).of("a")
    assert pauses(began) == delays


def test_a_success_in_between_starts_the_delays_anew() -> None:
    began = play(add_once, a=[transient(), transient(), 10.0, transient(), None]).of("a")
    assert pauses(began) == [1, 2, 10, 1]


def test_waiting_in_between_starts_the_delays_anew() -> None:
    began = play(add_once, a=[transient(), transient(), Waiting("Pending", "", after=10), transient(), None]).of("a")
    assert pauses(began) == [1, 2, 10, 1]


def test_events_do_not_break_the_back_off_of_what_is_down() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        queue.add("a")
        for _event in range(70):
            await asyncio.sleep(0.1)
            queue.add("a")

    assert play(story, a=[transient()] * 9).of("a") == [0.05, 1.05, 3.05]


def test_a_person_who_changed_something_does_not_wait_for_the_back_off() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        queue.add("a")
        await asyncio.sleep(3.5)
        queue.retry_now("a")
        await asyncio.sleep(2)

    assert play(story, a=[transient()] * 9).of("a") == [0.05, 1.05, 3.05, 3.55, 4.55]


def test_an_event_during_a_pass_that_fails_waits_with_it() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        queue.add("a")
        await asyncio.sleep(1)
        queue.add("a")
        await asyncio.sleep(60)

    assert play(story, seconds=2, a=[transient()]).of("a") == [0.05, 3.05]


def test_one_keys_failures_do_not_hold_up_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        queue.add("bad")
        queue.add("down")
        for _event in range(10):
            queue.add("good")
            await asyncio.sleep(1)

    with caplog.at_level(logging.CRITICAL):
        passes = play(story, bad=[KeyError("bug")] * 9, down=[transient(999)] * 9)
    assert len(passes.of("good")) == 10
    assert len(passes.of("down")) == 1


def test_keys_are_worked_side_by_side() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        for number in range(20):
            queue.add(f"key-{number}")
        await asyncio.sleep(60)

    passes = play(story, seconds=30)
    assert passes.most_at_once == 20


def test_a_bug_is_loud_and_names_the_key(caplog: pytest.LogCaptureFixture) -> None:
    play(add_once, a=[KeyError("bug")])
    assert any("Test a: unexpected error" in record.message and record.exc_info for record in caplog.records)


def test_what_ends_the_queue_ends_its_passes() -> None:
    cancelled: list[str] = []

    async def work(key: str) -> float | None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(key)
            raise
        return None

    async def main() -> None:
        queue = WorkQueue("Test", work, RETRY)
        runner = asyncio.create_task(queue.run())
        queue.add("a")
        queue.add("b")
        await asyncio.sleep(1)
        runner.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run_in_virtual_time(main())
    assert sorted(cancelled) == ["a", "b"]


def test_a_key_that_is_forgotten_has_no_failures_and_can_come_back() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        queue.add("a")
        await asyncio.sleep(0.5)
        assert queue.failures("a") == 1
        queue.forget("a")
        assert queue.failures("a") == 0
        await asyncio.sleep(10)
        queue.add("a")
        await asyncio.sleep(10)

    assert play(story, a=[transient()]).of("a") == [0.05, 10.55]


def test_a_key_that_is_forgotten_in_its_pass_and_asked_for_again_gets_another() -> None:
    async def story(queue: WorkQueue, _: Passes) -> None:
        queue.add("a")
        await asyncio.sleep(1)
        queue.forget("a")
        queue.add("a")
        await asyncio.sleep(10)
        queue.add("a")
        await asyncio.sleep(0.1)
        queue.forget("a")
        await asyncio.sleep(10)
        queue.add("a")
        await asyncio.sleep(10)

    assert play(story, seconds=2).of("a") == [0.05, 2.1, 11.05, 21.15]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.floats(0, 4),
        st.sampled_from([None, None, 0.5, 3.0]),
    ),
    max_size=30,
)
OUTCOMES = st.lists(
    st.one_of(
        st.none(),
        st.floats(0, 20),
        st.just("down"),
        st.just("wait"),
        st.just("bug"),
    ),
    max_size=6,
)


def as_outcome(drawn: float | str | None) -> Outcome:
    match drawn:
        case "down":
            return transient()
        case "wait":
            return Waiting("Pending", "", after=2)
        case str():
            return KeyError("bug")
        case _:
            return drawn


@given(
    events=EVENTS,
    outcomes=st.fixed_dictionaries(dict.fromkeys("abc", OUTCOMES)),
    seconds=st.sampled_from([0.0, 0.3, 2.0]),
)
def test_no_event_is_lost_and_no_two_passes_of_a_key_overlap(
    events: list[tuple[str, float, float | None]], outcomes: dict[str, list[float | str | None]], seconds: float
) -> None:
    asked: dict[str, float] = {}

    async def story(queue: WorkQueue, passes: Passes) -> None:
        for key, pause, after in events:
            await asyncio.sleep(pause)
            queue.add(key, after)
            asked[key] = passes.now()
        await asyncio.sleep(600)

    logging.disable(logging.CRITICAL)
    try:
        planned = {key: list(map(as_outcome, found)) for key, found in outcomes.items()}
        passes = play(story, seconds=seconds, first_seconds=None, **planned)
    finally:
        logging.disable(logging.NOTSET)
    for key, moment in asked.items():
        assert any(began >= moment for began in passes.of(key)), f"{key} was asked for at {moment}: {passes.of(key)}"
