"""Progress for people: everything goes to stderr, stdout stays machine-readable."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# A line this often while one long step runs, so that nobody takes it for hung.
_TICK_SECONDS = 15.0


def say(message: str) -> None:
    """Print one line of progress."""
    sys.stderr.write(f"localcluster: {message}\n")
    sys.stderr.flush()


def answer(line: str) -> None:
    """Print one line of what was asked for, on stdout."""
    sys.stdout.write(f"{line}\n")


def duration(seconds: float) -> str:
    """Seconds as a person writes them: ``8.1 s``, ``2 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


@contextmanager
def ticking(message: str) -> Iterator[None]:
    """Say ``message`` and repeat it with the elapsed time for as long as the body runs."""
    say(message)
    started = time.monotonic()
    done = threading.Event()

    def tick() -> None:
        while not done.wait(_TICK_SECONDS):
            say(f"  … {duration(time.monotonic() - started)}")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
