"""Which nodes a version can run on, as one table of cases; and rules that nothing can satisfy."""

from dataclasses import replace
from typing import Any

import pytest

from outrider.api.componentversion import Compatibility
from outrider.core.compatibility import (
    UNKNOWN,
    NodeFacts,
    VersionRules,
    check_rules,
    is_compatible,
    normalise_version,
    read_rules,
)
from outrider.core.ranges import Version

NODE = NodeFacts(
    os="linux",
    arch="amd64",
    os_image="Debian GNU/Linux 12 (bookworm)",
    kernel_version="6.1.0-28-amd64",
    kubelet_version="v1.31.2-gke.100",
    components={"node-daemon": "2.3.0"},
)
AMD64 = ["linux/amd64"]


def rules(platforms: list[str] | None = None, **fields: Any) -> VersionRules:
    return read_rules(AMD64 if platforms is None else platforms, Compatibility.model_validate(fields))


def needs(component: str, text: str) -> list[dict[str, str]]:
    return [{"component": component, "versionRange": text}]


@pytest.mark.parametrize(
    ("node", "version", "verdict", "reason"),
    [
        ({}, rules(), "Yes", ""),
        # System and processor.
        ({"arch": "arm64"}, rules(), "No", "NoArtifact"),
        ({"os": "windows"}, rules(), "No", "NoArtifact"),
        ({"arch": "arm64"}, rules(["linux/amd64", "linux/arm64"]), "Yes", ""),
        ({"arch": "arm64"}, rules([]), "Yes", ""),
        ({"arch": ""}, rules(), "CannotTell", "NodeUnknown"),
        # The system's image: any of the globs, and case counts.
        ({}, rules(osImage=["Debian*12*"]), "Yes", ""),
        ({}, rules(osImage=["Ubuntu 24.04*", "Debian*12*"]), "Yes", ""),
        ({}, rules(osImage=["debian*12*"]), "No", "OsImageUnsupported"),
        ({}, rules(osImage=["Debian"]), "No", "OsImageUnsupported"),
        ({"os_image": ""}, rules(osImage=["*"]), "CannotTell", "NodeUnknown"),
        # The kernel and the kubelet, by three numbers.
        ({}, rules(kernelVersion=">=5.10"), "Yes", ""),
        ({}, rules(kernelVersion=">=6.1.0"), "Yes", ""),
        ({}, rules(kernelVersion=">=6.2"), "No", "KernelUnsupported"),
        ({"kernel_version": "6.8-rc1"}, rules(kernelVersion=">=6.8"), "Yes", ""),
        ({"kernel_version": ""}, rules(kernelVersion="*"), "CannotTell", "NodeUnknown"),
        ({"kernel_version": "linux"}, rules(kernelVersion="*"), "CannotTell", "NodeUnknown"),
        ({}, rules(kubeletVersion=">=1.30 <2"), "Yes", ""),
        ({}, rules(kubeletVersion="<1.31"), "No", "KubeletUnsupported"),
        ({"kubelet_version": "v1.30.1+k3s1"}, rules(kubeletVersion="1.30.1"), "Yes", ""),
        ({"kubelet_version": "v1.31.0-rc.1"}, rules(kubeletVersion=">=1.31"), "Yes", ""),
        ({"kubelet_version": ""}, rules(kubeletVersion="*"), "CannotTell", "NodeUnknown"),
        # Other components.
        ({}, rules(requires=needs("node-daemon", ">=2 <3")), "Yes", ""),
        ({}, rules(requires=needs("node-daemon", ">=2.4")), "No", "RequirementUnmet"),
        ({}, rules(requires=needs("other", "*")), "No", "RequirementMissing"),
        ({"components": {"other": UNKNOWN}}, rules(requires=needs("other", "*")), "CannotTell", "RequirementUnknown"),
        (
            {"components": {"node-daemon": "2.4.0-rc.1"}},
            rules(requires=needs("node-daemon", ">=2.4.0-rc.0")),
            "Yes",
            "",
        ),
        (
            {"components": {"node-daemon": "2.4.0-rc.1"}},
            rules(requires=needs("node-daemon", "2")),
            "No",
            "RequirementUnmet",
        ),
        # All must hold, and what is certain counts first.
        ({}, rules(kernelVersion=">=5.10", kubeletVersion="<1", osImage=["*"]), "No", "KubeletUnsupported"),
        ({"kernel_version": ""}, rules(kernelVersion="*", kubeletVersion="<1"), "No", "KubeletUnsupported"),
        ({"kernel_version": ""}, rules(kernelVersion="*", kubeletVersion="*"), "CannotTell", "NodeUnknown"),
        # Rules that cannot be read admit nobody and condemn nobody, but for the platform.
        ({}, rules(kernelVersion="foo"), "CannotTell", "RulesUnreadable"),
        ({"arch": "arm64"}, rules(kernelVersion="foo"), "No", "NoArtifact"),
    ],
)
def test_a_version_can_run_on_a_node(node: dict[str, Any], version: VersionRules, verdict: str, reason: str) -> None:
    answer = is_compatible(replace(NODE, **node), version)
    assert (answer.verdict, answer.reason) == (verdict, reason)
    assert bool(answer.message) is (verdict != "Yes")


def test_the_message_says_what_the_node_has_and_what_the_version_wants() -> None:
    answer = is_compatible(NODE, rules(kernelVersion=">=6.2"))
    assert answer.message == "the version needs a kernel in '>=6.2', and the node's is 6.1.0-28-amd64"
    answer = is_compatible(NODE, rules(requires=needs("node-daemon", ">=2.4")))
    assert answer.message == "the version needs node-daemon '>=2.4' on the node, and it is 2.3.0"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("5.10.0-28-amd64", (5, 10, 0)),
        ("4.18.0-553.el8_10.x86_64", (4, 18, 0)),
        ("5.15.167.4-microsoft-standard-WSL2", (5, 15, 167)),
        ("6.8-rc1", (6, 8, 0)),
        ("v1.31.2-gke.100", (1, 31, 2)),
        ("v1.30.1+k3s1", (1, 30, 1)),
        ("v1.37.0-alpha.0.12+0123abcdef", (1, 37, 0)),
        ("1.30", (1, 30, 0)),
        ("007.010.01", (7, 10, 1)),
        ("", None),
        ("v1", None),
        ("linux-5.10", None),
        ("9999999999.1.1", None),
    ],
)
def test_of_a_kernel_or_kubelet_three_numbers_count(text: str, numbers: tuple[int, int, int] | None) -> None:
    assert normalise_version(text) == (None if numbers is None else Version(numbers))


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, []),
        ({"osImage": ["Debian*"], "kernelVersion": ">=5.10", "kubeletVersion": ">=1.30 <2"}, []),
        ({"kernelVersion": ">=five"}, [("RangeInvalid", "kernelVersion")]),
        ({"kubeletVersion": ">2 <1"}, [("RangeEmpty", "kubeletVersion")]),
        ({"kernelVersion": "5.10.0-28"}, [("RangeEmpty", "kernelVersion")]),
        ({"requires": needs("node-daemon", ">=2 <3")}, []),
        ({"requires": needs("node-daemon", ">=2.5.0-rc.0")}, []),
        ({"requires": needs("node-daemon", ">=3")}, [("RequirementUnsatisfied", "requires[0].versionRange")]),
        ({"requires": needs("node-daemon", ">=2.5")}, [("RequirementUnsatisfied", "requires[0].versionRange")]),
        ({"requires": needs("nobody", "*")}, [("RequirementUnsatisfied", "requires[0].versionRange")]),
        (
            {"kernelVersion": ">5 <5", "requires": needs("node-daemon", "2") + needs("other", "||")},
            [("RangeEmpty", "kernelVersion"), ("RangeInvalid", "requires[1].versionRange")],
        ),
    ],
)
def test_rules_that_nothing_can_satisfy_name_their_field(fields: dict[str, Any], found: list[tuple[str, str]]) -> None:
    published = {"node-daemon": ["1.9.0", "2.0.0", "2.5.0-rc.1"]}
    problems = check_rules(Compatibility.model_validate(fields), published)
    assert [(problem.reason, problem.path) for problem in problems] == [
        (reason, f"spec.compatibility.{path}") for reason, path in found
    ]
    assert all(problem.path in problem.message for problem in problems)


def test_a_requirement_that_nothing_satisfies_says_what_is_published() -> None:
    wanted = Compatibility.model_validate({"requires": needs("node-daemon", ">=3")})
    (problem,) = check_rules(wanted, {"node-daemon": ["2.10.0", "2.9.0"]})
    assert "(published are 2.9.0, 2.10.0)" in problem.message
    (problem,) = check_rules(wanted, {})
    assert "(none is published)" in problem.message


def test_no_rules_are_in_order_and_only_platforms_decide() -> None:
    assert check_rules(None, {}) == []
    assert read_rules(AMD64, None).only_platforms
    assert rules().only_platforms
    assert not rules(kernelVersion="*").only_platforms
    assert not rules(requires=needs("other", "*")).only_platforms
    assert not rules(osImage=["*"]).only_platforms
