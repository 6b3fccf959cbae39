"""When windows are open: on ordinary days, over midnight, and on the days on which clocks are changed."""

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.adapters.clock import find_zone
from outrider.api.rollout import Window
from outrider.core.windows import find_next_change, find_open, is_open

BERLIN = ZoneInfo("Europe/Berlin")
"""Clocks go from 02:00 to 03:00 on 2027-03-28, and from 03:00 back to 02:00 on 2027-10-31, both at 01:00 UTC."""


def window(days: str = "", start: str = "22:00", end: str = "04:00", zone: str = "Europe/Berlin") -> Window:
    return Window.model_validate({"days": days.split(), "start": start, "end": end, "timeZone": zone})


def zoned(*windows: Window) -> list[tuple[Window, tzinfo]]:
    found = [(one, find_zone(one.time_zone)) for one in windows]
    return [(one, zone) for one, zone in found if zone is not None]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


OPEN: dict[str, tuple[Window, dict[str, bool]]] = {
    # 2027-03-01 is a Monday; Berlin is an hour ahead of UTC.
    "by day": (
        window("Mon", "09:00", "17:00"),
        {
            "2027-03-01T07:59": False,
            "2027-03-01T08:00": True,
            "2027-03-01T15:59:59": True,
            "2027-03-01T16:00": False,
            "2027-03-02T10:00": False,
        },
    ),
    "over midnight, the hours after it belonging to the day before": (
        window("Mon", "22:00", "04:00"),
        {
            "2027-03-01T20:59": False,
            "2027-03-01T21:00": True,
            "2027-03-02T02:59": True,
            "2027-03-02T03:00": False,
            "2027-03-02T21:00": False,
            "2027-03-01T02:00": False,
        },
    ),
    "until midnight": (
        window("Mon", "22:00", "00:00"),
        {"2027-03-01T22:59": True, "2027-03-01T23:00": False, "2027-03-02T21:30": False},
    ),
    "until 24:00": (window("Mon", "22:00", "24:00"), {"2027-03-01T22:59": True, "2027-03-01T23:00": False}),
    "whole days": (
        window("Sat Sun", "00:00", "24:00"),
        {
            "2027-03-05T22:59": False,
            "2027-03-05T23:00": True,
            "2027-03-06T23:00": True,
            "2027-03-07T22:59": True,
            "2027-03-07T23:00": False,
        },
    ),
    "every day": (
        window("", "01:00", "02:00", "UTC"),
        {"2027-03-01T01:30": True, "2027-03-04T01:30": True, "2027-03-04T02:00": False},
    ),
    "a day that is another one in UTC": (
        window("Mon", "08:00", "10:00", "Pacific/Auckland"),
        {"2027-02-28T19:00": True, "2027-03-01T19:00": False},
    ),
    "a zone off by a quarter of an hour": (
        window("", "12:00", "12:15", "Asia/Kathmandu"),
        {"2027-03-01T06:14": False, "2027-03-01T06:15": True, "2027-03-01T06:30": False},
    ),
    # -- the night on which an hour is skipped
    "one inside the hour that is skipped does not open": (
        window("", "02:15", "02:45"),
        {"2027-03-27T01:15": True, "2027-03-28T00:59": False, "2027-03-28T01:00": False, "2027-03-28T01:15": False},
    ),
    "one that begins in the hour that is skipped opens at the change": (
        window("", "02:30", "04:00"),
        {"2027-03-28T00:59": False, "2027-03-28T01:00": True, "2027-03-28T01:59": True, "2027-03-28T02:00": False},
    ),
    "one that ends in the hour that is skipped closes at the change": (
        window("", "01:00", "02:30"),
        {"2027-03-28T00:00": True, "2027-03-28T00:59": True, "2027-03-28T01:00": False},
    ),
    "one over the hour that is skipped is an hour shorter": (
        window("Sat", "22:00", "04:00"),
        {"2027-03-27T21:00": True, "2027-03-28T01:59": True, "2027-03-28T02:00": False},
    ),
    # -- the night on which an hour comes twice
    "one inside the hour that comes twice opens twice": (
        window("", "02:15", "02:45"),
        {
            "2027-10-31T00:15": True,
            "2027-10-31T00:45": False,
            "2027-10-31T01:14": False,
            "2027-10-31T01:15": True,
            "2027-10-31T01:45": False,
        },
    ),
    "one that ends in the hour that comes twice opens once more": (
        window("", "01:00", "02:30"),
        {
            "2027-10-30T23:00": True,
            "2027-10-31T00:30": False,
            "2027-10-31T01:00": True,
            "2027-10-31T01:30": False,
        },
    ),
    "one over the hour that comes twice is an hour longer": (
        window("Sat", "22:00", "04:00"),
        {"2027-10-30T19:59": False, "2027-10-30T20:00": True, "2027-10-31T02:59": True, "2027-10-31T03:00": False},
    ),
    "a day that begins with its second hour": (
        window("Sun", "00:00", "02:00", "America/Santiago"),  # 2027-09-05: from 00:00 to 01:00, at 04:00 UTC
        {"2027-09-05T03:59": False, "2027-09-05T04:00": True, "2027-09-05T04:59": True, "2027-09-05T05:00": False},
    ),
}


@pytest.mark.parametrize(("window", "moments"), OPEN.values(), ids=OPEN.keys())
def test_a_window_is_open(window: Window, moments: dict[str, bool]) -> None:
    assert {moment: is_open(zoned(window), utc(moment)) for moment in moments} == moments


NEXT: dict[str, tuple[list[Window], str, str]] = {
    "it opens later today": ([window("Mon", "22:00", "04:00")], "2027-03-01T12:00", "2027-03-01T21:00"),
    "it closes": ([window("Mon", "22:00", "04:00")], "2027-03-01T21:00", "2027-03-02T03:00"),
    "it opens in a week": ([window("Mon", "22:00", "04:00")], "2027-03-02T03:00", "2027-03-08T21:00"),
    "the earlier of two": (
        [window("Wed", "22:00", "04:00"), window("Tue", "09:00", "10:00", "UTC")],
        "2027-03-01T12:00",
        "2027-03-02T09:00",
    ),
    "two that touch close as one": (
        [window("Mon", "09:00", "12:00"), window("Mon", "12:00", "17:00")],
        "2027-03-01T08:00",
        "2027-03-01T16:00",
    ),
    "whole days in a row": ([window("Sat Sun", "00:00", "24:00")], "2027-03-06T12:00", "2027-03-07T23:00"),
    "it opens at the change of clocks": ([window("", "02:30", "04:00")], "2027-03-28T00:10", "2027-03-28T01:00"),
    "it closes at the change of clocks": ([window("", "01:00", "02:30")], "2027-03-28T00:10", "2027-03-28T01:00"),
    "it opens once more at the change": ([window("", "01:00", "02:30")], "2027-10-31T00:30", "2027-10-31T01:00"),
    "it opens for the second time": ([window("", "02:15", "02:45")], "2027-10-31T00:45", "2027-10-31T01:15"),
    "it is skipped for a week": ([window("Sun", "02:15", "02:45")], "2027-03-21T02:00", "2027-04-04T00:15"),
    "between two seconds": ([window("", "12:00", "13:00", "UTC")], "2027-03-01T11:59:59.999", "2027-03-01T12:00"),
}


@pytest.mark.parametrize(("windows", "now", "change"), NEXT.values(), ids=NEXT.keys())
def test_the_next_change(windows: list[Window], now: str, change: str) -> None:
    assert find_next_change(zoned(*windows), utc(now)) == utc(change)


def test_a_window_that_is_always_open_never_changes() -> None:
    assert find_next_change(zoned(window("", "00:00", "24:00")), utc("2027-03-01T12:00")) is None


def test_which_window_opens_is_known() -> None:
    windows = zoned(window("Wed"), window("Mon", zone="UTC"))
    opens = find_next_change(windows, utc("2027-03-01T12:00"))
    assert opens == utc("2027-03-01T22:00")
    found = find_open(windows, opens)
    assert found is not None
    assert found[0].time_zone == "UTC"
    assert find_open(windows, utc("2027-03-01T12:00")) is None


DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
TIMES = st.builds(lambda hour, minute: f"{hour:02}:{minute:02}", st.integers(0, 23), st.sampled_from([0, 15, 30, 45]))
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "America/Santiago", "Australia/Lord_Howe", "Asia/Kathmandu"]


def reads(one: Window, zone: tzinfo, now: datetime) -> bool:
    """Whether the wall clock reads a time in the window: in words, and slowly."""
    wall = now.astimezone(zone)
    clock, day = f"{wall:%H:%M}", DAYS[wall.weekday()]
    days = one.days or DAYS
    if one.start < one.end:
        return one.start <= clock < one.end and day in days
    return (clock >= one.start and day in days) or (clock < one.end and DAYS[wall.weekday() - 1] in days)


@settings(max_examples=150, deadline=None)
@given(
    days=st.lists(st.sampled_from(DAYS), unique=True),
    times=st.tuples(TIMES, TIMES).filter(lambda pair: pair[0] != pair[1]),
    zone=st.sampled_from(ZONES),
    # The hours around every change of clocks in one of these zones, and some others.
    day=st.sampled_from(
        ["2027-03-14", "2027-03-28", "2027-04-04", "2027-09-05", "2027-10-03", "2027-10-31", "2027-07-01"]
    ),
    offset=st.integers(-24 * 60, 24 * 60),
)
def test_between_now_and_the_next_change_nothing_changes_and_then_it_does(
    days: list[Any], times: tuple[str, str], zone: str, day: str, offset: int
) -> None:
    windows = zoned(window(" ".join(days), *times, zone))
    now = utc(day) + timedelta(minutes=offset)
    change = find_next_change(windows, now)
    assert change is not None
    present = is_open(windows, now)
    assert present == reads(*windows[0], now)
    assert is_open(windows, change) != present
    moment = now
    while moment < min(change, now + timedelta(days=3)):
        assert reads(*windows[0], moment) == present
        moment += timedelta(minutes=5)
    assert reads(*windows[0], change - timedelta(minutes=1)) == present


@pytest.mark.parametrize("name", ["Europe/Berlin", "UTC", "America/Argentina/Buenos_Aires", "Etc/GMT+5"])
def test_zones_that_there_are(name: str) -> None:
    assert find_zone(name) is not None


@pytest.mark.parametrize("name", ["Europe/Berln", "Europe", "CET/Berlin", "/etc/passwd", "../UTC", "x" * 64])
def test_names_that_are_no_zone(name: str) -> None:
    assert find_zone(name) is None


def test_zones_come_with_the_operator_whatever_the_system_has() -> None:
    import zoneinfo

    zoneinfo.reset_tzpath([])
    try:
        assert zoneinfo.ZoneInfo.no_cache("Europe/Berlin").utcoffset(datetime(2027, 7, 1)) == timedelta(hours=2)
    finally:
        zoneinfo.reset_tzpath()
