"""What some tests count, for the end of the run: which signatures were verified, how many mutations were refused."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest


@dataclass
class Mutations:
    """How many changes were tried on something that was signed, and what became of them."""

    refused: int = 0
    accepted: int = 0
    """Although they mean something else: each is a hole."""
    same: Counter[str] = field(default_factory=Counter)
    """Accepted because they mean the same, by the rule that says so."""


@dataclass
class Reports:
    """Filled in by tests, printed by `pytest_terminal_summary`."""

    matrix: dict[str, dict[str, str]] = field(default_factory=dict)
    """Row (how something was signed) to column (kind of key) to cell."""
    mutations: dict[str, Mutations] = field(default_factory=dict)
    """By what was changed."""
    metadata: Counter[str] = field(default_factory=Counter)
    """Changes of what nobody signed, to something refused, by what it was; none of them was accepted."""

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """Return titles and lines of what there is to say."""
        if self.matrix:
            yield "signatures made by the real tools, verified by Outrider", list(self._matrix_lines())
        if self.mutations or self.metadata:
            yield "mutations", list(self._mutation_lines())

    def _matrix_lines(self) -> Iterator[str]:
        columns = list(dict.fromkeys(column for row in self.matrix.values() for column in row))
        width = max(map(len, self.matrix))
        widths = [max(len(column), *(len(row.get(column, "")) for row in self.matrix.values())) for column in columns]
        lines = [("", dict(zip(columns, columns, strict=True))), *self.matrix.items()]
        for name, row in lines:
            cells = [row.get(column, "").ljust(size) for column, size in zip(columns, widths, strict=True)]
            yield "  ".join([name.ljust(width), *cells]).rstrip()

    def _mutation_lines(self) -> Iterator[str]:
        width = max((len(name) for name in [*self.mutations, *self.metadata]), default=0)
        total = Mutations()
        for name, one in self.mutations.items():
            yield f"{name.ljust(width)}  {_sentence(one)}"
            total.refused += one.refused
            total.accepted += one.accepted
            total.same += one.same
        if self.mutations:
            yield f"mutations: {_sentence(total)}"
        for name, count in self.metadata.items():
            yield f"{name.ljust(width)}  {count:,} tried, 0 accepted"
        if self.metadata:
            yield f"changes of what nobody signed, to something refused: {self.metadata.total():,} tried, 0 accepted"


def _sentence(mutations: Mutations) -> str:
    text = f"{mutations.refused + mutations.accepted:,} tried, {mutations.accepted} accepted"
    if mutations.same:
        text += (
            " (beside them, saying the same: " + ", ".join(f"{n:,} {rule}" for rule, n in mutations.same.items()) + ")"
        )
    return text


REPORTS = pytest.StashKey[Reports]()
