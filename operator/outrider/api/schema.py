"""From the models to the CustomResourceDefinitions in `crds/`.

    python -m outrider.api.schema --write crds charts/outrider/resources/crds
    python -m outrider.api.schema --check crds charts/outrider/resources/crds

pydantic writes JSON Schema; the API server takes only *structural schemas*, a stricter dialect: no `$ref`, a type on
every node, no unions but int-or-string, OpenAPI 3.0 words. `structural` translates, and raises on what cannot be
translated rather than leave it out: a field that the API server does not check is a field that users believe in.

Markers that the models may carry in `json_schema_extra`:

* every `x-kubernetes-…` key is copied;
* `default: {}` on a nested object makes the API server fill in the object's inner defaults;
* `x-outrider-schema: PodTemplateSpec` stands for Kubernetes' own schema of that type;
* `x-outrider-pattern-message` turns the field's `pattern` into a CEL rule with that message, because "should match"
  and a regular expression tell nobody what to write.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from outrider.api import names, podtemplate
from outrider.api.base import ApiModel, rule
from outrider.api.componentversion import COMPONENT_VERSION_RULES, ComponentVersionSpec, ComponentVersionStatus
from outrider.api.rollout import (
    ROLLOUT_BATCH_RULES,
    ROLLOUT_RULES,
    RolloutBatchSpec,
    RolloutBatchStatus,
    RolloutSpec,
    RolloutStatus,
)

Schema = dict[str, Any]

MAX_BYTES = 200_000
"""What a CRD may weigh as JSON without spaces. So client-side apply stores it once more in an annotation, and all
annotations of an object together may have 256 KiB."""

_REFERENCE_PREFIX = "#/$defs/"

# What is copied as it is. Anything that is neither here nor handled below is an error.
_COPIED = (
    "description",
    "type",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
)
_MARKERS = ("x-outrider-schema", "x-outrider-pattern-message")
_DROPPED = ("title", "examples", "$defs", "additionalProperties", "const", "default", "properties", "required", "items")
_TYPE_OF_CONSTANT = {bool: "boolean", int: "integer", str: "string"}

_API_VERSION = (
    "The versioned schema of this representation of an object. Servers convert recognised schemas to the latest "
    "internal value and may reject unrecognised ones."
)
_KIND = "The REST resource that this object represents, in CamelCase. It cannot be changed."

READY_STATUS = '.status.conditions[?(@.type=="Ready")].status'
READY_REASON = '.status.conditions[?(@.type=="Ready")].reason'
READY_MESSAGE = '.status.conditions[?(@.type=="Ready")].message'


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`; a `wide` one shows only with `-o wide`."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False
    description: str = ""


@dataclass(frozen=True)
class Kind:
    """What a CRD needs beside the models of spec and status."""

    name: str
    plural: str
    short_name: str
    description: str
    spec: type[ApiModel]
    status: type[ApiModel]
    rules: Sequence[Mapping[str, Any]]
    columns: Sequence[Column]

    @property
    def file_name(self) -> str:
        """The file that holds the CRD, named as controller-gen does."""
        return f"{names.GROUP}_{self.plural}.yaml"


_AGE = Column("Age", ".metadata.creationTimestamp", "date")

KINDS: tuple[Kind, ...] = (
    Kind(
        name="ComponentVersion",
        plural=names.COMPONENT_VERSIONS,
        short_name="cver",
        description="One version of one component: where its artifacts come from, and how far it may be trusted.",
        spec=ComponentVersionSpec,
        status=ComponentVersionStatus,
        rules=COMPONENT_VERSION_RULES,
        columns=(
            Column("Version", ".spec.version"),
            Column("Phase", ".status.phase", description="Derived, for people; conditions are the contract."),
            Column("Latest", ".status.latest", "boolean"),
            Column("Ready", READY_STATUS),
            Column("Reason", READY_REASON, description="Why it is ready or not."),
            _AGE,
            Column("Stage", ".spec.stage", wide=True, description="How far the author wants it to go."),
            Column("Reference", ".status.reference", wide=True),
            Column("Message", READY_MESSAGE, wide=True),
        ),
    ),
    Kind(
        name="Rollout",
        plural=names.ROLLOUTS,
        short_name="orl",
        description="Which version of a component a fleet of nodes runs, and how the fleet is moved there.",
        spec=RolloutSpec,
        status=RolloutStatus,
        rules=ROLLOUT_RULES,
        columns=(
            Column("Version", ".spec.version", description="The version that is wanted."),
            Column("Phase", ".status.phase", description="Derived, for people; conditions are the contract."),
            Column("Batch", ".status.run.batch", description="Batches started / batches expected."),
            Column("Nodes", ".status.nodes", "integer", description="The fleet's size."),
            Column("Updated", ".status.run.updated", "integer", description="Nodes that run what the spec wants."),
            Column(
                "Failed",
                ".status.failed",
                "integer",
                description="Nodes that failed in the newest run, or in the one that it takes back.",
            ),
            Column("Running", ".status.running", description="What runs now: versions and numbers of nodes."),
            Column("Ready", READY_STATUS),
            _AGE,
            Column("Reason", READY_REASON, wide=True),
            Column("Message", READY_MESSAGE, wide=True),
        ),
    ),
    Kind(
        name="RolloutBatch",
        plural=names.ROLLOUT_BATCHES,
        short_name="orb",
        description="The record of one batch of a Rollout's run, node by node. Only the operator writes it.",
        spec=RolloutBatchSpec,
        status=RolloutBatchStatus,
        rules=ROLLOUT_BATCH_RULES,
        columns=(
            Column("Kind", ".spec.kind", description="Rollout, or Rollback: nodes go back."),
            Column("Batch", ".spec.batch", "integer"),
            Column("From", ".spec.fromVersion", description="The version that its nodes leave."),
            Column("To", ".spec.toVersion", description="The version that its nodes get."),
            Column("State", ".status.state"),
            Column("Succeeded", ".status.succeeded", "integer"),
            Column("Failed", ".status.failed", "integer"),
            Column("Skipped", ".status.skipped", "integer", description="Nodes that were left out."),
            Column("Pending", ".status.pending", "integer"),
            _AGE,
            Column("Rollout", ".spec.rollout", wide=True),
            Column("Run", ".spec.run", "integer", wide=True),
            Column("Step", ".spec.step", "integer", wide=True, description="The canary step; 0: none."),
            Column("Page", ".spec.page", "integer", wide=True, description="A batch of over 100 nodes has pages."),
            Column("Finished", ".status.finishedAt", "date", wide=True),
        ),
    ),
)


def build_crd(kind: Kind) -> dict[str, Any]:
    """Return the CustomResourceDefinition of one kind."""
    status = structural(kind.status, defaults=False)
    if "observedGeneration" in status["properties"]:
        # With the default an object that nobody has reconciled yet is never mistaken for a reconciled one.
        status["default"] = {"observedGeneration": -1}
    root: Schema = {
        "description": kind.description,
        "type": "object",
        "properties": {
            "apiVersion": {"description": _API_VERSION, "type": "string"},
            "kind": {"description": _KIND, "type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(kind.spec),
            "status": status,
        },
        "required": ["spec"],
        "x-kubernetes-validations": [dict(each) for each in kind.rules],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short_name],
                "categories": [names.CATEGORY],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [_column(column) for column in kind.columns],
                    "schema": {"openAPIV3Schema": root},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


def _column(column: Column) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.description:
        entry["description"] = column.description
    if column.wide:
        entry["priority"] = 1
    return entry


def structural(model: type[ApiModel], *, defaults: bool = True) -> Schema:
    """Return the structural schema of a model.

    Without `defaults` the API server fills in nothing: right for a status, where what is shown is what was written.
    Raises ValueError, naming the field, on what a structural schema cannot express.
    """
    source = model.model_json_schema(by_alias=True, mode="validation")
    return _Translation(source.get("$defs", {}), defaults).node(source, (model.__name__,))


@dataclass(frozen=True)
class _Translation:
    """The walk through one model's JSON Schema. A path names a node in errors and ends a walk in circles."""

    definitions: Mapping[str, Any]
    defaults: bool

    def node(self, source: Mapping[str, Any], path: tuple[str, ...], open_references: tuple[str, ...] = ()) -> Schema:
        """Return one node and everything below it."""
        source, open_references = self._inline(source, path, open_references)
        if source.get("x-outrider-schema") == "PodTemplateSpec":
            return {"description": source["description"], **pod_template()}
        if source.get("x-kubernetes-preserve-unknown-fields"):
            # Somebody else checks it: the API server, when the object that it is for is created.
            return {key: source[key] for key in ("description", "type", "x-kubernetes-preserve-unknown-fields")}
        _reject_unknown(source, path)

        target: Schema = {key: source[key] for key in _COPIED if key in source}
        if "description" in target:
            target["description"] = " ".join(target["description"].split())
        if "const" in source:
            target |= {"enum": [source["const"]], "type": _TYPE_OF_CONSTANT[type(source["const"])]}
        for bound in ("minimum", "maximum"):
            exclusive = f"exclusive{bound.capitalize()}"
            if exclusive in source:
                # OpenAPI 3.0 has a number and a flag where JSON Schema has one number.
                target |= {bound: source[exclusive], exclusive: True}
        if "anyOf" in source:
            if not source.get("x-kubernetes-int-or-string"):
                raise ValueError(f"{'.'.join(path)}: the only union that a CRD can express is int-or-string")
            target["anyOf"] = source["anyOf"]
        self._add_children(source, target, path, open_references)
        if self.defaults and _is_worth_storing(source):
            target["default"] = source["default"]
        target |= {key: value for key, value in source.items() if key.startswith("x-kubernetes-")}
        _add_rules(source, target)
        if "type" not in target and "x-kubernetes-int-or-string" not in target:
            raise ValueError(f"{'.'.join(path)}: no type")
        return target

    def _inline(
        self, source: Mapping[str, Any], path: tuple[str, ...], open_references: tuple[str, ...]
    ) -> tuple[Schema, tuple[str, ...]]:
        """Return `source` with its reference and its `| None` resolved; what stands beside them wins.

        A field that may be None is one that may be absent. The API server refuses an explicit null, and so nothing
        has to tell the two apart.
        """
        merged = dict(source)
        alternatives = merged.get("anyOf", ())
        if {"type": "null"} in alternatives:
            others = [each for each in alternatives if each != {"type": "null"}]
            if len(others) != 1:
                raise ValueError(f"{'.'.join(path)}: the only union that a CRD can express is int-or-string")
            del merged["anyOf"]
            merged = _overlay(others[0], merged)
            return self._inline(merged, path, open_references)
        if "$ref" in merged:
            name = merged.pop("$ref").removeprefix(_REFERENCE_PREFIX)
            if name in open_references:
                raise ValueError(f"{'.'.join(path)}: {name} contains itself; a CRD cannot express that")
            return self._inline(_overlay(self.definitions[name], merged), path, (*open_references, name))
        return merged, open_references

    def _add_children(
        self, source: Mapping[str, Any], target: Schema, path: tuple[str, ...], open_references: tuple[str, ...]
    ) -> None:
        if "properties" in source:
            # additionalProperties: false cannot stand beside properties. It is not needed either: the API server drops
            # unknown fields, and refuses them when asked to validate strictly, as kubectl does.
            target["properties"] = {
                name: self.node(child, (*path, name), open_references) for name, child in source["properties"].items()
            }
            if source.get("required"):
                target["required"] = source["required"]
        elif isinstance(source.get("additionalProperties"), Mapping):
            target["additionalProperties"] = self.node(source["additionalProperties"], (*path, "*"), open_references)
        elif source.get("type") == "object":
            raise ValueError(f"{'.'.join(path)}: an object must have fields, or say of what type its values are")
        if "items" in source:
            target["items"] = self.node(source["items"], (*path, "[]"), open_references)


def _overlay(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> Schema:
    """Return `inner` with what `outer` says on top; rules of both hold."""
    merged = {**inner, **outer}
    rules = [*inner.get("x-kubernetes-validations", ()), *outer.get("x-kubernetes-validations", ())]
    if rules:
        merged["x-kubernetes-validations"] = rules
    return merged


def _reject_unknown(source: Mapping[str, Any], path: tuple[str, ...]) -> None:
    known = (*_COPIED, *_MARKERS, *_DROPPED, "anyOf", "exclusiveMinimum", "exclusiveMaximum")
    unknown = [key for key in source if key not in known and not key.startswith("x-kubernetes-")]
    if unknown:
        raise ValueError(f"{'.'.join(path)}: no translation for {', '.join(unknown)}")


def _is_worth_storing(source: Mapping[str, Any]) -> bool:
    """Tell whether a default should be written into every stored object.

    Empty lists, maps and strings are what the models read from an absent field anyway; stored they are only noise in
    `kubectl get -o yaml` and in diffs. An empty object that has fields is different: it brings their defaults.
    """
    default = source.get("default")
    if default in ("", [], {}):
        return "properties" in source
    return default is not None


def _add_rules(source: Mapping[str, Any], target: Schema) -> None:
    rules = list(source.get("x-kubernetes-validations", ()))
    if message := source.get("x-outrider-pattern-message"):
        pattern = target.pop("pattern")
        if "'" in pattern:
            raise ValueError(f"{pattern} has a quote and would end the rule's raw string")
        expression = f"self.matches(r'{pattern}')"
        if source.get("x-kubernetes-int-or-string"):
            expression = f"type(self) != string || {expression}"
        rules.insert(0, rule(expression, message))
    if rules:
        # pydantic sorts keys; people read the rule first.
        target["x-kubernetes-validations"] = [{"rule": each["rule"], **each} for each in rules]


def pod_template() -> Schema:
    """Return Kubernetes' schema of a PodTemplateSpec, bounded where a rule of ours looks.

    Containers may be absent: a Daemon's pod needs none but those that are added. A rule asks other templates for them.

    Without the bounds the API server assumes as many containers with names as long as fit into a request, and refuses
    the rule that compares them with the delivery's as too expensive. A container's name is a DNS label anyway.
    """
    schema = podtemplate.load()
    schema["properties"]["spec"].pop("required")
    for kind in ("containers", "initContainers"):
        containers = schema["properties"]["spec"]["properties"][kind]
        containers["maxItems"] = 100
        containers["items"]["properties"]["name"]["maxLength"] = 63
    return schema


class _Dumper(yaml.SafeDumper):
    """Writes YAML without anchors, which readers of CRDs do not expect, and `{type: string}` on one line.

    The latter takes a quarter off the file with the PodTemplateSpec.
    """

    def ignore_aliases(self, data: object) -> bool:
        """Say that nothing is worth an alias."""
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        """Put a schema node that is nothing but a type on one line."""
        brief = "type" in mapping and mapping.keys() <= {"type", "format", "default"}
        return super().represent_mapping(tag, mapping, flow_style=brief or flow_style)


def render(crd: Mapping[str, Any]) -> str:
    """Return a CRD as YAML, the same for the same input at any time."""
    body = yaml.dump(dict(crd), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return (
        f"# Generated from the models in operator/outrider/api by `python -m outrider.api.schema`. Do not edit.\n{body}"
    )


def build_files() -> dict[str, str]:
    """Return the content of every CRD file by its name. Raises ValueError when one is too large to be applied."""
    crds = {kind.file_name: build_crd(kind) for kind in KINDS}
    for name, crd in crds.items():
        if (size := applied_bytes(crd)) >= MAX_BYTES:
            raise ValueError(f"{name} has {size} bytes of JSON; it must stay under {MAX_BYTES}")
    return {name: render(crd) for name, crd in crds.items()}


def applied_bytes(crd: Mapping[str, Any]) -> int:
    """Return how much of an object's annotations client-side apply takes for a CRD: its JSON without spaces.

    The YAML is twice as long, most of it indentation, and nothing stores that but Helm, compressed.
    """
    return len(json.dumps(crd, separators=(",", ":"), ensure_ascii=False).encode()) + 1


def write(directories: Sequence[Path]) -> None:
    """Write the CRDs into each directory."""
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in build_files().items():
            (directory / name).write_text(content, encoding="utf-8")


def drift(directories: Sequence[Path]) -> list[str]:
    """Return what differs between the models and the files in `directories`, as unified diffs."""
    findings: list[str] = []
    for directory in directories:
        expected = build_files()
        strays = sorted({path.name for path in directory.glob("*.yaml")} - expected.keys())
        findings.extend(f"{directory / stray}: not generated from any model\n" for stray in strays)
        for name, content in expected.items():
            path = directory / name
            found = path.read_text(encoding="utf-8") if path.exists() else ""
            lines = difflib.unified_diff(
                found.splitlines(keepends=True), content.splitlines(keepends=True), str(path), "generated", n=2
            )
            if difference := "".join(lines):
                findings.append(difference)
    return findings


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the CRD files; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outrider.api.schema", description="Models to CRDs.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", nargs="+", type=Path, metavar="DIRECTORY", help="write the CRDs into each")
    action.add_argument("--check", nargs="+", type=Path, metavar="DIRECTORY", help="fail if the CRDs in one differ")
    options = parser.parse_args(arguments)
    if options.write:
        write(options.write)
        return 0
    findings = drift(options.check)
    if not findings:
        return 0
    sys.stderr.write("".join(findings))
    directories = " ".join(str(directory) for directory in options.check)
    sys.stderr.write(
        "\nThe CRDs differ from the models. Look at the diff; if the change is meant, run\n"
        f"    python -m outrider.api.schema --write {directories}\nand commit the result.\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
