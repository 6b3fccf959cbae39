"""The operator's clock, and what is known of the clocks of others."""

from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError


def now() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)


@lru_cache(maxsize=256)
def find_zone(name: str) -> tzinfo | None:
    """Return a time zone by its IANA name; None if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # the name of a folder, such as Europe, is an OSError
        return None
