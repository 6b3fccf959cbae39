"""Which nodes a version can run on, and whether its rules can be met at all. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, Literal

from outrider.api.componentversion import Compatibility
from outrider.api.errors import Stalling
from outrider.core.ranges import Range, Version, parse_range, parse_version

UNKNOWN: Final = ""
"""In place of a version: something of the component runs there, or is on its way, and nobody can say which version."""

_THREE_NUMBERS = re.compile(r"v?([0-9]{1,9})\.([0-9]{1,9})(?:\.([0-9]{1,9}))?(?![0-9])")


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a version's rules look at; what a node does not say is "".

    `components` are the other components on the node, each with its version or `UNKNOWN`.
    """

    os: str = ""
    arch: str = ""
    os_image: str = ""
    kernel_version: str = ""
    kubelet_version: str = ""
    components: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VersionRules:
    """A version's rules, parsed once. `platforms` are those that it has artifacts for (nothing said: any).

    `problem` says why the rules cannot be read: then nobody can tell which nodes they admit.
    """

    platforms: frozenset[str] = frozenset()
    os_images: tuple[str, ...] = ()
    kernel: Range | None = None
    kubelet: Range | None = None
    requires: tuple[tuple[str, Range], ...] = ()
    problem: str = ""

    @property
    def only_platforms(self) -> bool:
        """Whether a node's platform alone decides."""
        return not (self.os_images or self.kernel or self.kubelet or self.requires or self.problem)


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a version can run on a node; unless it can, the reason and a sentence of what is not as it must be."""

    verdict: Literal["Yes", "No", "CannotTell"]
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a version's rules, and in which field."""

    reason: str
    path: str
    message: str


def read_rules(platforms: Iterable[str], compatibility: Compatibility | None) -> VersionRules:
    """Return the rules of a version with artifacts for some platforms (as `os/arch`)."""
    known = frozenset(platforms)
    if compatibility is None:
        return VersionRules(known)
    try:
        return VersionRules(
            platforms=known,
            os_images=tuple(compatibility.os_image),
            kernel=parse_range(compatibility.kernel_version) if compatibility.kernel_version else None,
            kubelet=parse_range(compatibility.kubelet_version) if compatibility.kubelet_version else None,
            requires=tuple((need.component, parse_range(need.version_range)) for need in compatibility.requires),
        )
    except Stalling as error:
        return VersionRules(known, problem=error.message)


def is_compatible(node: NodeFacts, version: VersionRules) -> Answer:
    """Tell whether a version can run on a node: Yes, No, or CannotTell while the node has not said enough.

    What is certain counts first: a node of another processor is incompatible, whatever else is unknown of it.
    """
    unknown: Answer | None = None
    for answer in _answers(node, version):
        if answer.verdict == "No":
            return answer
        unknown = unknown or answer
    return unknown or Answer("Yes")


def check_rules(compatibility: Compatibility | None, published: Mapping[str, Iterable[str]]) -> list[Problem]:
    """Return what makes a version's rules unreadable or unsatisfiable; nothing if they are in order.

    `published` are the published versions of each component in the version's namespace.
    """
    if compatibility is None:
        return []
    problems: list[Problem] = []

    def check(path: str, text: str) -> Range | None:
        try:
            found = parse_range(text)
        except Stalling as error:
            problems.append(Problem(error.reason, path, f"{path}: {error.message}"))
            return None
        if found.is_empty:
            message = f"{path}: no version can be in the range '{text}'; correct its bounds"
            problems.append(Problem("RangeEmpty", path, message))
            return None
        return found

    for name, text in (
        ("kernelVersion", compatibility.kernel_version),
        ("kubeletVersion", compatibility.kubelet_version),
    ):
        path = f"spec.compatibility.{name}"
        accepted = check(path, text) if text else None
        if accepted is not None and not accepted.has_release:
            message = f"{path}: only pre-releases are in '{text}', but three numbers are compared; leave '-…' out"
            problems.append(Problem("RangeEmpty", path, message))
    for index, need in enumerate(compatibility.requires):
        path = f"spec.compatibility.requires[{index}].versionRange"
        wanted = check(path, need.version_range)
        if wanted is None:
            continue
        known = sorted(published.get(need.component, ()), key=parse_version)
        if not any(wanted.contains(version) for version in known):
            there = f"published are {', '.join(known[-5:])}" if known else "none is published"
            problems.append(
                Problem(
                    "RequirementUnsatisfied",
                    path,
                    f"{path}: there is no published version of {need.component} in '{need.version_range}' ({there}); "
                    "publish one, or correct the range",
                )
            )
    return problems


def _answers(node: NodeFacts, version: VersionRules) -> Iterator[Answer]:
    """Yield what stands against a version on a node, and what cannot be told."""
    if version.problem:
        yield Answer("CannotTell", "RulesUnreadable", version.problem)
    if version.platforms:
        if not (node.os and node.arch):
            yield _unknown("system and processor")
        elif f"{node.os}/{node.arch}" not in version.platforms:
            only = ", ".join(sorted(version.platforms))
            yield Answer("No", "NoArtifact", f"the version has no artifact for {node.os}/{node.arch}, only for {only}")
    if version.os_images:
        if not node.os_image:
            yield _unknown("system image")
        elif not any(fnmatchcase(node.os_image, glob) for glob in version.os_images):
            globs = ", ".join(f"'{glob}'" for glob in version.os_images)
            yield Answer("No", "OsImageUnsupported", f"the version is not for '{node.os_image}', only for {globs}")
    for what, text, accepted in (
        ("kernel", node.kernel_version, version.kernel),
        ("kubelet", node.kubelet_version, version.kubelet),
    ):
        reason = "KernelUnsupported" if what == "kernel" else "KubeletUnsupported"
        if accepted is None:
            continue
        numbers = normalise_version(text)
        if numbers is None:
            yield _unknown(f"{what} version" + (f" in numbers, but '{text}'" if text else ""))
        elif not accepted.admits(numbers):
            yield Answer("No", reason, f"the version needs a {what} in '{accepted}', and the node's is {text}")
    yield from _answers_of_components(node, version)


def _answers_of_components(node: NodeFacts, version: VersionRules) -> Iterator[Answer]:
    for component, wanted in version.requires:
        running = node.components.get(component)
        if running is None:
            yield Answer(
                "No", "RequirementMissing", f"the version needs {component} '{wanted}' on the node, and there is none"
            )
        elif running == UNKNOWN:
            yield Answer(
                "CannotTell",
                "RequirementUnknown",
                f"the version needs {component} '{wanted}' on the node, and which version runs there is not known yet",
            )
        elif not wanted.contains(running):
            yield Answer(
                "No", "RequirementUnmet", f"the version needs {component} '{wanted}' on the node, and it is {running}"
            )


def normalise_version(text: str) -> Version | None:
    """Return the first three numbers of a kernel's or kubelet's version, or None if it does not begin with numbers.

    `5.10.0-28-amd64` is 5.10.0, `v1.31.2-gke.100` 1.31.2, `6.8-rc1` 6.8.0: what follows the numbers is the
    distribution's own counting, and not a pre-release as it would be in a semantic version.
    """
    found = _THREE_NUMBERS.match(text)
    if found is None:
        return None
    return Version((int(found[1]), int(found[2]), int(found[3] or 0)))


def _unknown(what: str) -> Answer:
    return Answer("CannotTell", "NodeUnknown", f"the node has not told its {what}")
