"""Derived names: whatever people call their things, what we make of it is valid and unambiguous."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outrider.api.names import MAX_LABEL, assignment_key, batch_name, trusted_keys_name
from outrider.core.moves import leaving
from outrider.core.revision import daemonset_name, joiners_id, joiners_name

# Kubernetes: k8s.io/apimachinery/pkg/util/validation.
QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,%d}[a-z0-9])?"

NAMESPACES = st.from_regex(DNS_LABEL % 61, fullmatch=True)
COMPONENTS = st.from_regex(DNS_LABEL % 38, fullmatch=True)
ROLLOUT_NAMES = st.one_of(
    st.from_regex(DNS_LABEL % 38, fullmatch=True),
    st.from_regex(rf"{DNS_LABEL % 10}(\.{DNS_LABEL % 10}){{1,2}}", fullmatch=True).filter(lambda name: len(name) <= 40),
)


@pytest.mark.parametrize(
    ("namespace", "component", "readable"),
    [
        pytest.param("fleet", "node-agent", "fleet.node-agent", id="short names are readable as they are"),
        pytest.param("n" * 51, "c", "n" * 51, id="a dot at the cut is dropped"),
        pytest.param("n" * 49 + "--x", "c", "n" * 49 + "--x", id="dashes inside stay"),
        pytest.param("n" * 50 + "-x" * 5, "c", "n" * 50 + "-x", id="a cut in the middle of the namespace"),
        pytest.param("n" * 51 + "-x", "c", "n" * 51, id="a dash at the cut is dropped"),
    ],
)
def test_assignment_key_is_readable(namespace: str, component: str, readable: str) -> None:
    key = assignment_key(namespace, component)
    assert re.fullmatch(rf"agents\.outrider\.dev/{re.escape(readable)}-[0-9a-f]{{10}}", key)


@given(namespace=NAMESPACES, component=COMPONENTS)
@example(namespace="n" * 63, component="c" * 40)
@example(namespace="n" * 51 + "-n", component="c")
def test_assignment_key_is_always_a_valid_label_key(namespace: str, component: str) -> None:
    prefix, _, name = assignment_key(namespace, component).partition("/")
    assert SUBDOMAIN.fullmatch(prefix)
    assert QUALIFIED.fullmatch(name)
    assert len(name) <= MAX_LABEL


@given(one=st.tuples(NAMESPACES, COMPONENTS), other=st.tuples(NAMESPACES, COMPONENTS))
@example(one=("n" * 63, "a"), other=("n" * 63, "b"))
@example(one=("a", "b-c"), other=("a-b", "c"))
def test_each_component_of_each_namespace_has_a_key_of_its_own(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (assignment_key(*one) == assignment_key(*other)) == (one == other)


@given(rollout=ROLLOUT_NAMES, revision=st.from_regex(r"[0-9a-f]{10}", fullmatch=True))
@example(rollout="r" * 40, revision="0123456789")
def test_names_of_daemonsets_and_values_of_labels_are_valid(rollout: str, revision: str) -> None:
    plain, joiners = daemonset_name(rollout, revision), joiners_name(rollout, joiners_id(revision, "01234"))
    for name in (plain, joiners):
        assert SUBDOMAIN.fullmatch(name)
        assert len(name) <= 253
    assert len({plain, joiners, joiners_name(rollout, joiners_id(revision, "56789"))}) == 3
    for value in (rollout, revision, leaving(revision), leaving("none")):
        assert QUALIFIED.fullmatch(value)
        assert len(value) <= MAX_LABEL


BATCHES = st.tuples(ROLLOUT_NAMES, st.integers(1, 10**6), st.integers(1, 5000), st.integers(1, 50))


@given(one=BATCHES, other=BATCHES)
@example(one=("a", 1, 1, 1), other=("a-1", 1, 1, 1))
@example(one=("a", 1, 1, 2), other=("a", 1, 12, 1))
@example(one=("a", 1, 11, 1), other=("a", 11, 1, 1))
@example(one=("a-1", 2, 3, 1), other=("a", 1, 2, 3))
def test_each_page_of_each_batch_has_a_valid_name_of_its_own(
    one: tuple[str, int, int, int], other: tuple[str, int, int, int]
) -> None:
    assert (batch_name(*one) == batch_name(*other)) == (one == other)
    assert SUBDOMAIN.fullmatch(batch_name(*one))
    assert len(batch_name(*one)) <= 253


@given(component=COMPONENTS)
def test_the_config_map_of_keys_has_a_valid_name(component: str) -> None:
    assert SUBDOMAIN.fullmatch(trusted_keys_name(component))
