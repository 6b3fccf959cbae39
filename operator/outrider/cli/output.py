"""How outcomes are printed: lines for people, JSON for programs."""

import json
from collections.abc import Sequence
from typing import Any, Final

from outrider.cli.verification import Outcome, Result

EXIT_CODES: Final[dict[Result, int]] = {"Passed": 0, "Refused": 1, "CannotTell": 3}
"""Of what verification says; 2 is wrong usage."""

_WORDS: Final[dict[Result, str]] = {"Passed": "PASSED", "Refused": "REFUSED", "CannotTell": "CANNOT TELL"}


def overall(outcomes: Sequence[Outcome]) -> Result:
    """Return the result over several artifacts: one that is refused refuses all, then what cannot be told counts."""
    results = {outcome.result for outcome in outcomes}
    return "Refused" if "Refused" in results else "CannotTell" if "CannotTell" in results else "Passed"


def render_text(outcomes: Sequence[Outcome]) -> str:
    """Return the lines for people: per artifact the steps that passed, and how it ended."""
    return "\n\n".join("\n".join(_lines(outcome)) for outcome in outcomes)


def render_json(outcomes: Sequence[Outcome]) -> str:
    """Return one JSON object: the result over all, and each artifact."""
    value = {"result": overall(outcomes), "artifacts": [_value(outcome) for outcome in outcomes]}
    return json.dumps(value, indent=2)


def _lines(outcome: Outcome) -> list[str]:
    title = outcome.subject
    if outcome.platform:
        title += f" for {outcome.platform}"
    if outcome.size is not None:
        title += f" ({outcome.size:,} bytes)"
    lines = [title]
    proof, error = outcome.proof, outcome.error
    if proof is not None:
        lines += [f"  {number}. {step}" for number, step in enumerate(proof.steps, start=1)]
        lines.append(f"PASSED: signed by {proof.key_fingerprint} ({proof.key_origin}), format {proof.format}")
        if not proof.binds:
            lines.append("        It vouches for the bytes, and does not say for which component and version.")
    elif error is not None:
        if outcome.sha256:
            lines.append(f"  sha256 {outcome.sha256}")
        lines.append(f"{_WORDS[outcome.result]}: {error.reason}: {error.message}")
    return lines


def _value(outcome: Outcome) -> dict[str, Any]:
    value: dict[str, Any] = {"subject": outcome.subject, "result": outcome.result}
    if outcome.platform:
        value["platform"] = outcome.platform
    if outcome.size is not None:
        value |= {"size": outcome.size, "sha256": outcome.sha256}
    proof, error = outcome.proof, outcome.error
    if proof is not None:
        value |= {
            "keyFingerprint": proof.key_fingerprint,
            "keyOrigin": proof.key_origin,
            "format": proof.format,
            "binds": proof.binds,
            "steps": list(proof.steps),
        }
    elif error is not None:
        value |= {"reason": error.reason, "message": error.message}
    return value
