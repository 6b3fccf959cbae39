"""docs/guarantees.md against the code: the tests that it names exist, and the invariants are those that are checked."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from simulation import test_pitfalls
from simulation.invariants import INVARIANTS

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


@cache
def functions_in(path: str) -> frozenset[str]:
    """Return the names of the tests in a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without its head."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[f"{path}-{name}" for path, name in NAMED])
def test_a_test_that_is_named_exists(path: str, name: str) -> None:
    assert name.startswith("test_")
    assert name in functions_in(path)


@pytest.mark.parametrize(
    "heading",
    ["What a version service does", "What comparable systems do not have", "Pitfalls of comparable systems"],
)
def test_every_row_names_a_test(heading: str) -> None:
    assert rows(heading)
    assert not [row[0] for row in rows(heading) if "::test_" not in row[-1]]


def test_every_pitfall_that_has_a_test_is_listed() -> None:
    pitfalls = {name for name in vars(test_pitfalls) if name.startswith("test_")}
    assert pitfalls <= {name for path, name in NAMED if path == "tests/simulation/test_pitfalls.py"}


def test_the_invariants_are_those_that_are_checked() -> None:
    assert rows("Invariants") == [[each.name, each.sentence] for each in INVARIANTS]
