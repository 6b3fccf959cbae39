"""How numbers and names are told, and the words of others, cut to what a status may hold."""

from collections.abc import Sequence


def printable(text: str) -> str:
    """Return a text as one line without anything that a terminal would obey.

    What nodes, registries and webhooks say ends in status and events, and from there on somebody's screen.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def last_words(text: str, room: int) -> str:
    """Return the end of a text as printable text of at most `room` bytes, lines divided by ` | `."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    shown = printable(" | ".join(lines))
    return shown.encode()[-room:].decode(errors="ignore") if room > 0 else ""


def first_words(text: str, room: int) -> str:
    """Return the beginning of a text as one printable line of at most `room` bytes; `...` tells that there was more."""
    shown = printable(" ".join(text.split()))
    data = shown.encode()
    return shown if len(data) <= room else data[: max(0, room - 3)].decode(errors="ignore") + "..."


def count_nodes(count: int) -> str:
    """Return a number of nodes as people write it."""
    return "1 node" if count == 1 else f"{count} nodes"


def name_first(things: Sequence[str]) -> str:
    """Return the first three of some things in the order that they have, and how many more there are."""
    return ", ".join(things[:3]) + (f" and {len(things) - 3} more" if len(things) > 3 else "")
