"""Ranges of versions in npm's syntax: `>=1.2 <2`, `^1.4`, `~1.2.3`, `1.x`, `1.2 - 2.3`, `*`, `1.x || >=3`.

The rules are those of https://github.com/npm/node-semver#ranges, and a comma does as well as a space between two
comparators that both must hold. What npm accepts in silence though nobody can have meant it is refused with a
sentence: an empty range, `1.x.3`, `+build`.

A pre-release is in a range only if a comparator with the same three numbers is one, too: `>=1.2.3-rc.1` contains
`1.2.3-rc.2`, but not `1.3.0-rc.1`. Who writes `^1.4` does not ask for what is not finished.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from outrider.api.errors import Stalling

MAX_RANGE_LENGTH: Final = 256
"""Characters that a range may have."""
MAX_NUMBER: Final = 2**53 - 1
"""npm's, and therefore ours: greater ones do not survive JSON everywhere."""

_NUMBER = r"0|[1-9][0-9]*"
_IDENTIFIERS = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*"
_VERSION = re.compile(rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_IDENTIFIERS}))?")
_PARTIAL = re.compile(
    rf"v?(?P<major>{_NUMBER}|[xX*])"
    rf"(?:\.(?P<minor>{_NUMBER}|[xX*])(?:\.(?P<patch>{_NUMBER}|[xX*])(?:-(?P<pre>{_IDENTIFIERS}))?)?)?"
)
_HYPHEN = re.compile(r"(\S+)\s+-\s+(\S+)", re.ASCII)
_COMPARATOR = re.compile(r"\s*(?P<operator>>=|<=|>|<|=|~>|~|\^|)\s*(?P<partial>[^\s,<>=~^]+)", re.ASCII)
_BETWEEN = re.compile(r"\s*,\s*(?=\S)|\s+|$", re.ASCII)

Operator = Literal["<", "<=", ">", ">=", "="]


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A semantic version, ordered by precedence (semver.org, section 11).

    `pre` holds a pre-release's identifiers: numbers come before words, and both before a longer list that begins the
    same way. `is_release` stands before it in the order because a release follows all of its pre-releases.
    """

    numbers: tuple[int, int, int]
    is_release: bool = True
    pre: tuple[tuple[int, int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Comparator:
    """One bound of a range."""

    operator: Operator
    version: Version

    def admits(self, version: Version) -> bool:
        """Tell whether a version is on the right side of the bound."""
        match self.operator:
            case "<":
                return version < self.version
            case "<=":
                return version <= self.version
            case ">":
                return version > self.version
            case ">=":
                return version >= self.version
            case "=":
                return version == self.version


@dataclass(frozen=True, slots=True)
class Range:
    """A parsed range: versions are in it that satisfy all comparators of any of the alternatives."""

    text: str
    alternatives: tuple[tuple[Comparator, ...], ...]

    def __str__(self) -> str:
        return self.text

    def contains(self, version: str) -> bool:
        """Tell whether a version is in the range; raises Stalling("VersionInvalid") for what is no version."""
        return self.admits(parse_version(version))

    def admits(self, version: Version) -> bool:
        """Tell whether a parsed version is in the range."""
        return any(_satisfies(version, comparators) for comparators in self.alternatives)

    @property
    def is_empty(self) -> bool:
        """Whether no version at all can be in the range, as in `>2 <1`."""
        return not any(True for _ in self._lowest())

    @property
    def has_release(self) -> bool:
        """Whether a version that is no pre-release can be in the range."""
        return any(version.is_release for version in self._lowest())

    def _lowest(self) -> Iterator[Version]:
        """Yield versions of the range; of each alternative the lowest release and the lowest pre-release if any."""
        # They are 0.0.0, what a comparator names, or what comes next after that.
        for comparators in self.alternatives:
            for version in (Version((0, 0, 0)), *_candidates(comparators)):
                if _satisfies(version, comparators):
                    yield version


def parse_version(text: str) -> Version:
    """Return a semantic version without `+build`; raises Stalling("VersionInvalid") for anything else."""
    found = _VERSION.fullmatch(text) if len(text) <= MAX_RANGE_LENGTH else None
    if found is None:
        raise Stalling("VersionInvalid", f"{text[:64]!r} is no semantic version; write three numbers, such as 1.4.0")
    major, minor, patch, pre = found.groups()
    return Version((int(major), int(minor), int(patch)), pre is None, _identifiers(pre))


def parse_range(text: str) -> Range:
    """Return the range that a text describes; raises Stalling("RangeInvalid"), naming the part that is wrong."""
    if len(text) > MAX_RANGE_LENGTH:
        raise Stalling(
            "RangeInvalid", f"the version range has {len(text)} characters, and at most {MAX_RANGE_LENGTH} are read"
        )
    if not text.strip():
        raise Stalling("RangeInvalid", "the version range is empty; write * for any version")
    return Range(text.strip(), tuple(_parse_alternative(part.strip(), text) for part in text.split("||")))


def _parse_alternative(part: str, text: str) -> tuple[Comparator, ...]:
    if not part:
        _refuse(text, "there is nothing on one side of '||'", "write * for any version")
    if hyphen := _HYPHEN.fullmatch(part):
        return (*_expand(">=", hyphen[1], text), *_expand("<=", hyphen[2], text))
    comparators: list[Comparator] = []
    position = 0
    while position < len(part):
        found = _COMPARATOR.match(part, position)
        if found is None:
            rest = part[position:].strip()
            _refuse(text, f"{rest!r} is no comparator", "write one such as >=1.2.0, ^1.4 or 1.x")
        if found["partial"] == "-":
            _refuse(text, f"{part!r} has a '-' between spaces", "write two versions around it and nothing else")
        comparators += _expand(found["operator"], found["partial"], text)
        between = _BETWEEN.match(part, found.end())
        if between is None:
            rest = part[found.start() :].strip()
            if rest.endswith(","):
                _refuse(text, f"nothing follows the comma in {rest!r}", "leave it out")
            _refuse(text, f"{rest!r} is more than one comparator", "put a space between two")
        position = between.end()
    return tuple(comparators)


def _expand(operator: str, partial: str, text: str) -> tuple[Comparator, ...]:
    """Return the bounds that an operator and a version mean, of which the last numbers may be missing."""
    found = _PARTIAL.fullmatch(partial)
    if found is None:
        if "+" in partial:
            _refuse(text, f"{partial!r} has '+' and build data, which never count", "leave them out")
        _refuse(text, f"{partial!r} is no version", "write one such as 1.4.0, 1.4 or 1.x, without leading zeros")
    given = [found["major"], found["minor"], found["patch"]]
    numbers: list[int] = []
    for index, word in enumerate(given):
        if word is None or word in "xX*":
            if any(later is not None and later not in "xX*" for later in given[index:]) or found["pre"]:
                _refuse(text, f"{partial!r} has a number after an x", "write an x from there on")
            break
        if len(word) > len(str(MAX_NUMBER)) or int(word) > MAX_NUMBER:
            _refuse(text, f"{partial!r} has a number above {MAX_NUMBER}", "write a smaller one")
        numbers.append(int(word))
    return tuple(_bounds(operator, numbers, found["pre"]))


def _bounds(operator: str, numbers: list[int], pre: str | None) -> Iterator[Comparator]:
    if not numbers:  # x, *: any version; and nothing is above or below all of them
        if operator in {"<", ">"}:
            yield Comparator("<", _before((0, 0, 0)))
        return
    padded = (*numbers, 0, 0)
    version = Version((padded[0], padded[1], padded[2]), pre is None, _identifiers(pre))
    is_full = len(numbers) == 3
    # The number that the upper end counts up: the last one given, unless ~ and ^ say something else.
    index = len(numbers) - 1
    match operator:
        case "=" | "" if is_full:
            yield Comparator("=", version)
        case "<" | "<=" | ">" if is_full:
            yield Comparator(operator, version)
        case "<":
            yield Comparator("<", _before(version.numbers))
        case "<=":
            yield Comparator("<", _before(_next(version.numbers, index)))
        case ">":
            yield Comparator(">=", Version(_next(version.numbers, index)))
        case ">=":
            yield Comparator(">=", version)
        case _:
            if operator in {"~", "~>"}:
                index = min(index, 1)
            elif operator == "^":
                index = next((at for at, number in enumerate(numbers) if number), index)
            yield Comparator(">=", version)
            yield Comparator("<", _before(_next(version.numbers, index)))


def _next(numbers: tuple[int, int, int], index: int) -> tuple[int, int, int]:
    major, minor, patch = numbers
    return ((major + 1, 0, 0), (major, minor + 1, 0), (major, minor, patch + 1))[index]


def _before(numbers: tuple[int, int, int]) -> Version:
    """Return the lowest pre-release of a version: an upper end that keeps all of them out."""
    return Version(numbers, is_release=False, pre=_identifiers("0"))


def _identifiers(pre: str | None) -> tuple[tuple[int, int, str], ...]:
    words = pre.split(".") if pre else []
    return tuple((0, int(word), "") if word.isdigit() else (1, 0, word) for word in words)


def _satisfies(version: Version, comparators: tuple[Comparator, ...]) -> bool:
    if not all(comparator.admits(version) for comparator in comparators):
        return False
    return version.is_release or any(
        not comparator.version.is_release and comparator.version.numbers == version.numbers
        for comparator in comparators
    )


def _candidates(comparators: tuple[Comparator, ...]) -> Iterator[Version]:
    for comparator in comparators:
        named = comparator.version
        yield named
        yield Version(named.numbers)
        yield Version(_next(named.numbers, 2))
        yield _before(named.numbers)
        if not named.is_release:
            yield Version(named.numbers, is_release=False, pre=(*named.pre, *_identifiers("0")))


def _refuse(text: str, what: str, remedy: str) -> NoReturn:
    raise Stalling("RangeInvalid", f"version range {text.strip()!r}: {what}; {remedy}")
