"""What the demo shows: chapters, sentences, commands with their output, and one line that lives."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from typing import TextIO

_WIDTH = 100
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Terminal:
    """Writes to a terminal, or to a file or pipe: there without colours and without the living line."""

    def __init__(self, out: TextIO) -> None:
        if isinstance(out, io.TextIOWrapper):
            # A terminal that does not know ✔ shows ? in its place.
            out.reconfigure(errors="replace")
        self._out = out
        self.is_live = out.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = self.is_live and not os.environ.get("NO_COLOR")
        self._living = ""
        self._after_command = False
        self._lock = threading.RLock()

    # --- lines ------------------------------------------------------------------------------

    def line(self, text: str = "") -> None:
        """Print one line, above the living one."""
        with self._lock:
            self._after_command = False
            living = self._living
            self._erase()
            self._out.write(text + "\n")
            self._draw(living)
            self._out.flush()

    def chapter(self, number: int, of: int, title: str) -> None:
        """Begin a chapter."""
        self.rest()
        head = f"── {number}/{of} {title} "
        self.line()
        self.line(self.paint(head + "─" * max(3, self.width - len(head)), "bold", "cyan"))

    def say(self, text: str) -> None:
        """Tell something, wrapped."""
        self.line()
        for part in textwrap.wrap(" ".join(text.split()), self.width, break_on_hyphens=False):
            self.line(part)

    def step(self, text: str) -> None:
        """Tell one thing that has just happened."""
        self.line(f"  · {text}")

    def done(self, text: str) -> None:
        """Tell that something came out as told."""
        self._mark(self.paint("✔", "green", "bold"), text)

    def bad(self, text: str) -> None:
        """Tell that something failed."""
        self._mark(self.paint("✘", "red", "bold"), text)

    def _mark(self, mark: str, text: str) -> None:
        first, *rest = [
            part
            for line in text.splitlines() or [""]
            for part in textwrap.wrap(line, self.width - 4, break_on_hyphens=False) or [""]
        ]
        self.line(f"  {mark} {first}")
        for part in rest:
            self.line(f"    {part}")

    def command(self, text: str) -> None:
        """Show a command as a user would type it; a long one takes several lines."""
        if not self._after_command:
            self.line()
        first, *rest = _fold(text, self.width - 8)
        self.line(f"  {self.paint('$', 'dim')} {self.paint(first, 'bold')}" + (" \\" if rest else ""))
        for number, part in enumerate(rest, 1):
            self.line(f"      {self.paint(part, 'bold')}" + (" \\" if number < len(rest) else ""))
        self._after_command = True

    def output(self, text: str) -> None:
        """Show the table that a command printed; what is wider than the terminal is cut."""
        for row in text.rstrip("\n").splitlines():
            shown = f"    {row}".rstrip()
            if self.is_live and len(shown) > self.columns:
                shown = shown[: self.columns - 1] + "…"
            self.line(shown)

    def prose(self, text: str) -> None:
        """Show a sentence that a command printed, wrapped."""
        for part in textwrap.wrap(text, self.width - 4, break_on_hyphens=False):
            self.line(f"    {part}")

    def excerpt(self, text: str) -> None:
        """Show a part of a file."""
        for row in text.rstrip("\n").splitlines():
            self.line(self.paint(f"    │ {row.rstrip()}", "dim"))

    # --- the living line --------------------------------------------------------------------

    def live(self, text: str) -> None:
        """Replace the living line; where there is none, nothing is shown."""
        with self._lock:
            if self.is_live and text != self._living:
                self._erase()
                self._draw(text)
                self._out.flush()

    def rest(self) -> None:
        """Remove the living line."""
        with self._lock:
            self._erase()
            self._out.flush()

    def _erase(self) -> None:
        if self._living:
            self._out.write("\r\x1b[2K")
            self._living = ""

    def _draw(self, text: str) -> None:
        if text and self.is_live:
            # A line that wraps could not be taken back.
            self._out.write(text[: self.columns - 1])
            self._living = text

    # --- looks ------------------------------------------------------------------------------

    @property
    def columns(self) -> int:
        """How wide the terminal is."""
        return max(40, shutil.get_terminal_size((_WIDTH, 24)).columns)

    @property
    def width(self) -> int:
        """How wide running text is."""
        return min(_WIDTH, self.columns)

    def paint(self, text: str, *styles: str) -> str:
        """Return the text in colour, where colours are shown."""
        if not self._colours:
            return text
        codes = ";".join(_STYLES[style] for style in styles)
        return f"\x1b[{codes}m{text}\x1b[0m"

    def table(self, rows: Sequence[Sequence[str]], indent: str = "  ") -> None:
        """Show rows in columns; the last one is wrapped."""
        columns = len(rows[0])
        widths = [max(len(row[column]) for row in rows) for column in range(columns - 1)]
        left = len(indent) + sum(widths) + 2 * len(widths)
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            wrapped = textwrap.wrap(row[-1], max(20, self.width - left), break_on_hyphens=False) or [""]
            head = indent + "".join(cell + "  " for cell in cells)
            head = head.replace("✔", self.paint("✔", "green", "bold"), 1).replace(
                "✘", self.paint("✘", "red", "bold"), 1
            )
            self.line((head + wrapped[0]).rstrip())
            for rest in wrapped[1:]:
                self.line(" " * left + rest)


class Relay(io.TextIOBase):
    """Stands in for stderr while the launcher of the local cluster tells its progress there."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal
        self._rest = ""

    def write(self, text: str) -> int:
        """Pass on whole lines as steps."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._terminal.step(line.removeprefix("localcluster: ").strip())
        return len(text)


class Waiting:
    """Shows on the living line how long something takes, for as long as it takes."""

    def __init__(self, terminal: Terminal, text: Callable[[], str] | str) -> None:
        self._terminal = terminal
        self._text = text
        self._ended = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Waiting:
        if self._terminal.is_live:
            self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._terminal.rest()

    def _tick(self) -> None:
        while not self._ended.wait(0.2):
            text = self._text if isinstance(self._text, str) else self._text()
            self._terminal.live(f"  … {text}  {time.monotonic() - self._started:.0f} s")


def _fold(command: str, width: int) -> list[str]:
    """Break a command where a shell would let one break it: between words, and not within quotes."""
    lines = [""]
    for word in re.findall(r"(?:[^\s']|'[^']*')+", command):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def open_terminal() -> Terminal:
    """Return the terminal that stdout is."""
    return Terminal(sys.stdout)
