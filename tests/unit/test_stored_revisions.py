"""The revision of a stored Rollout never changes by itself: an upgrade would otherwise move every fleet.

The hash covers the template and the delivery as the API server hands them out. So it changes when the CRD gives either
of them another default, when a model gains a field with one, or when the canonical form becomes another.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from outrider.api.rollout import RolloutSpec
from outrider.core.revision import revision_of

ROOT = Path(__file__).resolve().parent.parent.parent
STORED = json.loads((Path(__file__).parent / "vectors" / "revisions.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("stored", STORED, ids=[stored["why"] for stored in STORED])
def test_a_stored_rollout_keeps_its_revision(stored: dict[str, Any]) -> None:
    assert revision_of(stored["rollout"], RolloutSpec.model_validate(stored["spec"])) == stored["revision"]


def test_whoever_reads_and_writes_a_spec_gets_the_same_revision() -> None:
    for stored in STORED:
        spec = RolloutSpec.model_validate(stored["spec"])
        again = RolloutSpec.model_validate(json.loads(json.dumps(spec.to_api())))
        assert revision_of(stored["rollout"], again) == stored["revision"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target", {"all": True}),
        ("strategy", {"type": "Full"}),
        ("health", {"timeoutSeconds": 7, "minReadySeconds": 1}),
        ("onFailure", "Pause"),
        ("paused", True),
        ("prePull", True),
        ("onLeave", "Keep"),
        ("joiners", "Wait"),
        ("deletionPolicy", "Delete"),
        ("runHistoryLimit", 3),
        ("somethingOfALaterVersion", {"with": "a default"}),
    ],
)
def test_what_is_not_of_the_agent_itself_starts_no_run(field: str, value: Any) -> None:
    stored = STORED[0]
    assert (
        revision_of(stored["rollout"], RolloutSpec.model_validate({**stored["spec"], field: value}))
        == (stored["revision"])
    )


DEFAULTS = {
    # What the API server itself fills in for every pod template. A list's keys need a value to be keys.
    "spec.containers.ports.protocol": "TCP",
    "spec.initContainers.ports.protocol": "TCP",
    "spec.imagePullSecrets.name": "",
}


def test_the_schema_of_the_template_gives_no_defaults_but_these_and_none_is_ever_added() -> None:
    crd = yaml.safe_load((ROOT / "crds" / "outrider.dev_rollouts.yaml").read_text(encoding="utf-8"))
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert dict(defaults(spec["template"])) == DEFAULTS
    assert "default" not in spec["delivery"]


def defaults(schema: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Return every default inside a schema, with the path of its field."""
    found: list[tuple[str, Any]] = [(path, schema["default"])] if "default" in schema else []
    for name, part in (schema.get("properties") or {}).items():
        found += defaults(part, f"{path}.{name}" if path else name)
    for nested in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(nested, dict):
            found += defaults(nested, path)
    return found
