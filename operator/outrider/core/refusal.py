"""What Outrider's own programs on a node say when they do not do what they were to do: a reason and a sentence.

A program ends with an exit code and a termination message of the form `Reason: sentence`. The message comes from a
node, so that nothing but its shape is believed: a reason is one CamelCase word, whatever else stands there is told.
"""

import re
from dataclasses import dataclass
from typing import Final

from outrider.api.names import INSTALL_CONTAINER

EXIT_CONFIG: Final = 2
EXIT_REFUSED: Final = 3
"""What was found must not run here, whatever is tried again."""
EXIT_LOCAL: Final = 4
"""The node cannot take it: no space, a folder that is read-only, an activation that failed."""

_MAX_MESSAGE = 1024
# One quantifier for the word, which is no longer than `NodeResult` takes it:
# a message from a node must not decide how long it takes to look at it.
_LINE = re.compile(
    r"(?:outrider-[a-z]{1,16}: )?(?P<reason>[A-Z][a-z][A-Za-z0-9]{0,62}(?<=[a-z0-9])): (?P<message>.*\S)"
)
_PUTS_BACK: Final = frozenset({"ActivationFailed", "HealthFailed"})
"""The reasons with which an installation has put back what ran before: all others come before anything is changed."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a program of ours on a node did not do what it was to do.

    `final` says that it does not help to wait: what it found must not run there. `gone_back` says that an installation
    has put back what ran before; where nothing else ran before it stays, and is tried again. All others are tried again
    by the kubelet, and count when they have lasted.
    """

    reason: str
    message: str
    final: bool = True
    gone_back: bool = False


def read_refusal(container: str, exit_code: object, message: object) -> Refusal | None:
    """Return what a container of ours said when it ended with an exit code; None if that is no refusal."""
    if exit_code not in {EXIT_CONFIG, EXIT_REFUSED, EXIT_LOCAL}:
        return None
    final = exit_code == EXIT_REFUSED
    installs = exit_code == EXIT_LOCAL and container == INSTALL_CONTAINER
    text = message if isinstance(message, str) else ""
    # Without a message of its own the kubelet takes the end of the log, of which the last line says why.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    printable = "".join(one for one in said if one.isprintable())[:_MAX_MESSAGE]
    match = _LINE.fullmatch(printable)
    if match is not None:
        return Refusal(match["reason"], match["message"], final, installs and match["reason"] in _PUTS_BACK)
    return Refusal(
        "ArtifactRefused",
        printable or f"{container} ended with exit code {exit_code} and said nothing",
        final,
    )
