"""When windows are open. A window is open while a clock on the wall of its time zone reads a time in it.

That one sentence covers the days on which clocks are changed as well. A time that is skipped never comes: a window
inside of it does not open that day, and one that begins inside of it opens at the change. A time that comes twice
counts twice.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from outrider.api.rollout import Day, Window

Zoned = tuple[Window, tzinfo]
"""A window, and the time zone that it names."""

_DAYS: tuple[Day, ...] = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY = timedelta(days=1)
_HORIZON = 17
"""Days within which every window opens: once a week, and one week's may be skipped by a change of clocks."""


def is_open(windows: Sequence[Zoned], now: datetime) -> bool:
    """Tell whether any of the windows is open."""
    return any(_is_open(window, zone, now) for window, zone in windows)


def find_open(windows: Sequence[Zoned], now: datetime) -> Zoned | None:
    """Return the first window that is open, if one is."""
    return next(((window, zone) for window, zone in windows if _is_open(window, zone, now)), None)


def find_next_change(windows: Sequence[Zoned], now: datetime) -> datetime | None:
    """Return when it is next that the first of the windows opens, or the last that is open closes.

    None: not within two weeks.
    """
    present = is_open(windows, now)
    for days in (2, _HORIZON):  # mostly it is soon
        moments = {moment for window, zone in windows for moment in _edges(window, zone, now, days)}
        moments |= {moment for zone in {zone for _, zone in windows} for moment in _clock_changes(zone, now, days)}
        until = now + (days - 1) * _DAY
        for moment in sorted(moments):
            if now < moment < until and is_open(windows, moment) != present:
                return moment
    return None


def _is_open(window: Window, zone: tzinfo, now: datetime) -> bool:
    wall = now.astimezone(zone)
    start, end, reads = _minutes(window.start), _minutes(window.end), wall.hour * 60 + wall.minute
    if start < end:
        return start <= reads < end and _opens_on(window, wall.date())
    # It crosses midnight: the hours after that belong to the day on which it opened.
    opened = wall.date() if reads >= start else wall.date() - _DAY
    return (reads >= start or reads < end) and _opens_on(window, opened)


def _opens_on(window: Window, day: date) -> bool:
    return not window.days or _DAYS[day.weekday()] in window.days


def _minutes(time_of_day: str) -> int:
    hours, minutes = time_of_day.split(":")
    return int(hours) * 60 + int(minutes)


def _edges(window: Window, zone: tzinfo, now: datetime, days: int) -> Iterator[datetime]:
    """Yield when the clock reads the window's start or end in so many days; both times where it does so twice."""
    today = now.astimezone(zone).date()
    for minutes in (_minutes(window.start), _minutes(window.end)):
        reads = time(minutes // 60 % 24, minutes % 60, tzinfo=zone)
        for ahead in range(-1, days + 1):
            moment = datetime.combine(today + ahead * _DAY, reads)
            yield moment.astimezone(UTC)
            yield moment.replace(fold=1).astimezone(UTC)


def _clock_changes(zone: tzinfo, now: datetime, days: int) -> Iterator[datetime]:
    """Yield when the zone's clocks are changed in so many days, to the second."""
    begin = now.replace(microsecond=0)
    for _ in range(days):
        end = begin + _DAY
        before = begin.astimezone(zone).utcoffset()
        if end.astimezone(zone).utcoffset() != before:
            early, late = begin, end
            while late - early > timedelta(seconds=1):
                middle = early + (late - early) // 2
                middle = middle.replace(microsecond=0)
                if middle.astimezone(zone).utcoffset() == before:
                    early = middle
                else:
                    late = middle
            yield late
        begin = end
