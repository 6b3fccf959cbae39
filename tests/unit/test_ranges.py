"""Version ranges: npm's documented behaviour, against two libraries that implement it."""

import itertools
from collections.abc import Sequence

import nodesemver
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from semantic_version import NpmSpec
from semantic_version import Version as LibraryVersion

from outrider.api.errors import Stalling
from outrider.core.ranges import MAX_RANGE_LENGTH, parse_range, parse_version

# What is generated: small numbers, so that versions and bounds meet; and the pre-releases that sort oddly.
NUMBERS = st.integers(0, 3)
PRE_RELEASES = st.sampled_from(["0", "1", "2", "10", "a", "a.1", "rc", "rc.1", "rc.2", "rc.10", "rc.1.0", "1a", "a-b"])
RELEASES = st.builds("{}.{}.{}".format, NUMBERS, NUMBERS, NUMBERS)
VERSIONS = RELEASES | st.builds("{}-{}".format, RELEASES, PRE_RELEASES)
WILD = st.sampled_from(["x", "X", "*"])
OPEN = (
    WILD
    | st.builds("{}".format, NUMBERS)
    | st.builds("{}.{}".format, NUMBERS, NUMBERS | WILD)
    | st.builds("{}.{}.{}".format, NUMBERS, NUMBERS, WILD)
    | st.builds("{}.{}.{}".format, NUMBERS, WILD, WILD)
)
OPERATORS = st.sampled_from(["", "=", "<", "<=", ">", ">=", "^", "~"])


def ranges(partials: st.SearchStrategy[str], operators: st.SearchStrategy[str] = OPERATORS) -> st.SearchStrategy[str]:
    """Return ranges over versions that may be open to the right."""
    comparators = st.builds("{}{}{}".format, operators, st.sampled_from(["", " "]), partials)
    both = st.lists(comparators, min_size=1, max_size=3).map(" ".join)
    alternatives = both | st.builds("{} - {}".format, partials, partials)
    return st.lists(alternatives, min_size=1, max_size=3).map(" || ".join)


def is_in(version: str, text: str) -> bool:
    return parse_range(text).contains(version)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("1.2.3", "1.2.3", "1.2.2 1.2.4 1.2.3-rc.1"),
        ("=1.2.3", "1.2.3", "1.2.4"),
        ("v1.2.3", "1.2.3", "1.2.4"),
        (">1.2.3", "1.2.4 2.0.0", "1.2.3 1.2.4-rc.1"),
        (">=1.2.3 <2", "1.2.3 1.99.0", "1.2.2 2.0.0 2.0.0-rc.1"),
        (">=1.2.3, <2", "1.2.3 1.99.0", "1.2.2 2.0.0"),
        (">= 1.2.3 ,< 2", "1.2.3 1.99.0", "1.2.2 2.0.0"),
        ("<1.2 || >=3", "1.1.9 3.0.0 4.1.0", "1.2.0 2.9.9"),
        # Open to the right.
        ("*", "0.0.0 1.2.3", "1.2.3-rc.1"),
        ("x", "0.0.0 1.2.3", "1.2.3-rc.1"),
        ("1", "1.0.0 1.9.9", "0.9.9 2.0.0 2.0.0-0"),
        ("1.x", "1.0.0 1.9.9", "2.0.0"),
        ("1.2", "1.2.0 1.2.9", "1.3.0"),
        ("1.2.*", "1.2.0 1.2.9", "1.3.0"),
        (">1", "2.0.0", "1.0.0 1.9.9 2.0.0-rc.1"),
        (">1.2", "1.3.0", "1.2.0 1.2.9"),
        (">=1.2", "1.2.0", "1.1.9"),
        ("<=1.2", "1.2.9", "1.3.0 1.3.0-0"),
        ("<1.2", "1.1.9", "1.2.0 1.2.0-0"),
        # Tilde: the last number counts freely, where only one is given the second.
        ("~1.2.3", "1.2.3 1.2.9", "1.2.2 1.3.0"),
        ("~1.2", "1.2.0 1.2.9", "1.3.0"),
        ("~1", "1.0.0 1.9.9", "2.0.0"),
        ("~>1.2.3", "1.2.3 1.2.9", "1.3.0"),
        ("~0.2.3", "0.2.3 0.2.9", "0.3.0"),
        ("~1.2.3-rc.2", "1.2.3-rc.2 1.2.3-rc.10 1.2.3 1.2.9", "1.2.3-rc.1 1.2.4-rc.2 1.3.0"),
        # Caret: the first number that is not 0 stays.
        ("^1.2.3", "1.2.3 1.9.9", "1.2.2 2.0.0"),
        ("^0.2.3", "0.2.3 0.2.9", "0.3.0"),
        ("^0.0.3", "0.0.3", "0.0.4 0.0.2"),
        ("^1.2.x", "1.2.0 1.9.9", "2.0.0"),
        ("^0.0.x", "0.0.0 0.0.9", "0.1.0"),
        ("^0.0", "0.0.0 0.0.9", "0.1.0"),
        ("^1.x", "1.0.0 1.9.9", "2.0.0"),
        ("^0.x", "0.0.0 0.9.9", "1.0.0"),
        ("^1.2.3-rc.2", "1.2.3-rc.2 1.2.3 1.9.0", "1.2.3-rc.1 1.2.4-rc.2 2.0.0"),
        ("^0.0.3-rc.2", "0.0.3-rc.2 0.0.3", "0.0.3-rc.1 0.0.4"),
        # Hyphen: a second version that is open to the right is taken in whole.
        ("1.2.3 - 2.3.4", "1.2.3 2.3.4", "1.2.2 2.3.5"),
        ("1.2 - 2.3.4", "1.2.0 2.3.4", "1.1.9"),
        ("1.2.3 - 2.3", "2.3.9", "2.4.0 2.4.0-0"),
        ("1.2.3 - 2", "2.9.9", "3.0.0"),
        ("* - 2", "0.0.0 2.9.9", "3.0.0"),
        ("1.2.3-rc.1 - 1.3 || 4", "1.2.3-rc.1 1.3.9 4.0.0", "1.2.4-rc.1 4.0.0-rc.1"),
        # Pre-releases only where one of the same three numbers is named.
        (">1.2.3-rc.3", "1.2.3-rc.7 3.4.5", "3.4.5-rc.9 1.2.3-rc.3"),
        (">=1.2.3-rc.1 <1.2.3-rc.3", "1.2.3-rc.2", "1.2.2 1.2.3"),
        ("<1.2.3", "1.2.2", "1.2.3-rc.1"),
        # Precedence, semver.org section 11.
        (
            ">1.0.0-alpha.1 <=1.0.0",
            "1.0.0-alpha.2 1.0.0-alpha.11 1.0.0-alpha.beta 1.0.0-beta 1.0.0",
            "1.0.0-alpha 1.0.0-1",
        ),
    ],
)
def test_npm_documents_what_is_in_a_range(text: str, inside: str, outside: str) -> None:
    assert {version: is_in(version, text) for version in inside.split()} == dict.fromkeys(inside.split(), True)
    assert {version: is_in(version, text) for version in outside.split()} == dict.fromkeys(outside.split(), False)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty; write * for any version"),
        ("  ", "is empty"),
        (">=1.2 || ", "nothing on one side of '||'"),
        ("|| 1", "nothing on one side of '||'"),
        ("1 || || 2", "nothing on one side of '||'"),
        ("foo", "'foo' is no version"),
        (">=1.2 beta", "'beta' is no version"),
        (">=1.2.3.4", "'1.2.3.4' is no version"),
        ("01.2", "'01.2' is no version"),
        ("1.2-rc.1", "'1.2-rc.1' is no version"),
        ("1.2.3-rc..1", "'1.2.3-rc..1' is no version"),
        ("1.2.3-01", "'1.2.3-01' is no version"),
        ("1..2", "'1..2' is no version"),
        ("-1.2.3", "'-1.2.3' is no version"),
        ("1.2.3 -2.0.0", "'-2.0.0' is no version"),
        ("٣.1", "is no version"),
        (">=1.30.1+k3s1", "'1.30.1+k3s1' has '+' and build data"),
        ("1.x.3", "'1.x.3' has a number after an x"),
        ("x.1", "'x.1' has a number after an x"),
        ("1.2.x-rc.1", "'1.2.x-rc.1' has a number after an x"),
        (">=", "'>=' is no comparator"),
        (">=1 <", "'<' is no comparator"),
        (">>1", "'>>1' is no comparator"),
        ("!=1.2.3", "'!' is no version"),
        (">=1.2.3<2", "'>=1.2.3<2' is more than one comparator"),
        (">=1,", "nothing follows the comma"),
        (",>=1", "',>=1' is no comparator"),
        (">=1,,<2", "',<2' is no comparator"),
        ("1 | 2", "'|' is no version"),
        ("1 - 2 - 3", "'1 - 2 - 3' has a '-' between spaces"),
        ("1 - 2 <4", "has a '-' between spaces"),
        (">=1 - 2", "'>=1' is no version"),
        ("1.9007199254740992.0", "a number above 9007199254740991"),
        (">" + "9" * 200, "a number above 9007199254740991"),
        ("1" * (MAX_RANGE_LENGTH + 1), "has 257 characters, and at most 256 are read"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_part_that_is_wrong(text: str, part: str) -> None:
    with pytest.raises(Stalling) as caught:
        parse_range(text)
    assert caught.value.reason == "RangeInvalid"
    assert part in caught.value.message


@given(st.text(max_size=300) | st.text("0123456789.xX*<>=~^|, -+va\n\t\0", max_size=40))
def test_any_text_is_a_range_or_refused(text: str) -> None:
    try:
        found = parse_range(text)
    except Stalling as error:
        refusal: Stalling | None = error
    else:
        refusal = None
        found.contains("1.2.3-rc.1")
        assert not (found.is_empty and found.contains("1.2.3"))
    if refusal is not None:
        assert refusal.reason == "RangeInvalid"
        assert "\n" not in refusal.message


@pytest.mark.parametrize(
    "text", ["", "1", "1.2", "v1.2.3", "1.2.3+k3s1", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3\n", "x" * 999]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(Stalling, match="no semantic version") as caught:
        parse_version(text)
    assert caught.value.reason == "VersionInvalid"


def test_versions_are_ordered_as_semver_says() -> None:
    # semver.org, section 11.4, and numbers that are no texts.
    pre = ["0", "2", "10", "alpha", "alpha.1", "alpha.beta", "beta", "beta.2", "beta.11", "rc.1"]
    rising = [*(f"1.0.0-{word}" for word in pre), "1.0.0", "1.0.1-0", "1.0.1", "1.2.0", "1.10.0", "2.0.0"]
    versions = [parse_version(text) for text in rising]
    assert all(a < b for a, b in itertools.pairwise(versions))


# -- against the libraries


@settings(max_examples=800)
@given(version=VERSIONS, text=ranges(OPEN | VERSIONS))
@example(version="1.2.3-rc.1", text="<1.2.3")
@example(version="1.2.1", text="~1.2.0-0")
def test_node_semver_sees_every_version_and_range_the_same_way(version: str, text: str) -> None:
    assert is_in(version, text) is bool(nodesemver.satisfies(version, text, False))


@settings(max_examples=800)
@given(version=VERSIONS, text=ranges(OPEN | RELEASES))
def test_npm_spec_sees_releases_the_same_way_and_asked_for_no_pre_release_finds_none(version: str, text: str) -> None:
    try:
        spec = NpmSpec(text)
    except ValueError:
        assume(False)  # an operator before a lone x: see the table
    if "-" not in version:
        assert is_in(version, text) is spec.match(LibraryVersion(version))
    else:
        assert not is_in(version, text)


@pytest.mark.parametrize(
    ("text", "version", "documented", "npm_spec"),
    [
        # "If a version has a prerelease tag then it will only be allowed to satisfy comparator sets if at least one
        # comparator with the same [major, minor, patch] tuple also has a prerelease tag." NpmSpec lets it through below
        # an upper end.
        ("<1.2.3", "1.2.3-rc.1", False, True),
        ("<1.2", "1.2.0-rc.1", False, True),
        ("<=1", "2.0.0-rc.1", False, True),
        # A pre-release comparator alone: NpmSpec takes the release, too, and what is beyond the end.
        ("=1.2.3-rc.1", "1.2.3", False, True),
        ("<1.2.3-rc.1", "1.2.3-rc.2", False, True),
        ("<=1.2.3-rc.1", "1.2.3", False, True),
        # "Allows patch-level changes": with the lowest pre-release NpmSpec forgets them.
        ("~1.2.0-0", "1.2.1", True, False),
        # "If a version is greater than ... the range": an empty range between two numbers.
        ("1.2.3-rc.1 - 0.1.2", "1.2.3", False, True),
    ],
)
def test_where_npm_spec_is_not_as_npm_documents_we_are(
    text: str, version: str, documented: bool, npm_spec: bool
) -> None:
    assert NpmSpec(text).match(LibraryVersion(version)) is npm_spec
    assert bool(nodesemver.satisfies(version, text, False)) is documented
    assert is_in(version, text) is documented


@pytest.mark.parametrize("text", ["~>1.2", ">*", "<x", "^*", "~x", "1 - *"])
def test_npm_spec_refuses_what_npm_documents_and_we_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        NpmSpec(text)
    parse_range(text)


def test_node_semver_cannot_read_a_lone_hyphen_as_a_pre_release_and_we_can() -> None:
    # SemVer allows it, and npm's own ^1.2.3-- is >=1.2.3-- <2.0.0-0.
    assert not nodesemver.satisfies("1.2.3", "^1.2.3--", False)
    assert is_in("1.2.3", "^1.2.3--")


def test_npm_itself_forgets_alternatives_beside_a_star_and_we_do_not() -> None:
    # npm 7 makes `a || *` to `*`, and with that loses the pre-releases that `a` asked for. "A range is composed of one
    # or more comparator sets, joined by ||. A version matches a range if and only if every comparator in at least one
    # of the sets is satisfied": so they belong to it.
    assert is_in("1.2.0-rc.1", ">=1.2.0-rc.0 || *")


# -- laws


@given(version=VERSIONS, left=ranges(OPEN | VERSIONS), right=ranges(OPEN | VERSIONS))
def test_alternatives_add_up(version: str, left: str, right: str) -> None:
    assert is_in(version, f"{left} || {right}") is (is_in(version, left) or is_in(version, right))


@given(
    version=RELEASES, comparators=st.lists(st.builds("{}{}".format, OPERATORS, OPEN | VERSIONS), min_size=1, max_size=4)
)
def test_comparators_narrow_and_a_comma_is_a_space(version: str, comparators: Sequence[str]) -> None:
    expected = all(is_in(version, comparator) for comparator in comparators)
    assert is_in(version, " ".join(comparators)) is expected
    assert is_in(version, ",".join(comparators)) is expected
    assert is_in(version, " , ".join(comparators)) is expected


@pytest.mark.parametrize(
    ("text", "empty"),
    [
        (">2 <1", True),
        (">1.2.3 <1.2.4", True),  # nothing lies between two patches
        (">1.2.3 <1.2.4-rc.1", False),  # 1.2.4-0 does, and pre-releases of 1.2.4 are asked for
        (">1.2.3-a <1.2.3-a.0", True),
        (">1.2.3-a <1.2.3-a.0.0", False),
        (">=1.2.3 <=1.2.3", False),
        ("=1.2.3 =1.2.4", True),
        ("<0.0.0", True),
        ("<0.0.0-0", True),
        (">*", True),
        ("<x", True),
        ("2 - 1", True),
        (">2 <1 || 3", False),
        (">2 <1 || 3 <3", True),
        ("*", False),
        (">=9007199254740991", False),
    ],
)
def test_a_range_that_no_version_can_be_in_is_empty(text: str, empty: bool) -> None:
    assert parse_range(text).is_empty is empty


ALL = [
    f"{major}.{minor}.{patch}{pre}"
    for major, minor, patch in itertools.product(range(5), repeat=3)
    for pre in ("", "-0", "-a", "-a.0", "-a.1", "-rc", "-rc.1", "-rc.1.0", "-rc.1.0.0", "-rc.10.0", "-1.0")
]


@settings(max_examples=300, deadline=None)
@given(text=ranges(OPEN | RELEASES | st.builds("{}-{}".format, RELEASES, st.sampled_from(["0", "a", "a.0", "rc.1"]))))
def test_a_range_is_empty_exactly_if_nothing_is_in_it(text: str) -> None:
    found = parse_range(text)
    inside = [version for version in ALL if found.contains(version)]
    assert found.is_empty is (not inside)
    assert found.has_release is any("-" not in version for version in inside)
