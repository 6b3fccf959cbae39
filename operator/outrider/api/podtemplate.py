"""Kubernetes' own PodTemplateSpec, reduced from its OpenAPI document to a structural schema that a CRD can hold.

The result is committed beside this module as `podtemplate.schema.json`, so that nothing needs Kubernetes' source to
build the CRDs. It is made anew when the Kubernetes version that we follow changes:

    python -m outrider.api.podtemplate --kubernetes v1.37.2 PATH/api/openapi-spec/v3/apis__apps__v1_openapi.json

where PATH is the source of k8s.io/kubernetes at that version, for example
`$(go env GOMODCACHE)/k8s.io/kubernetes@v1.37.2`.

What is kept: types, formats, required fields, and the list and map types that server-side apply merges by. What is
dropped: descriptions (with them a CRD would be larger than client-side apply can store), defaults (they are for the
DaemonSet to apply; only a default of a list-map key stays, because the API server refuses a schema without it), and
the hints for strategic merge patches, which custom resources do not have. Ephemeral containers are left out: a
template may not have any.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

Schema = dict[str, Any]

DATA_FILE = "podtemplate.schema.json"
ROOT = "io.k8s.api.core.v1.PodTemplateSpec"

_REFERENCE_PREFIX = "#/components/schemas/"
_OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"

_INT_OR_STRING_SCHEMA: Schema = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "x-kubernetes-int-or-string": True,
}
# As controller-gen writes it for resource.Quantity.
_QUANTITY_PATTERN = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)
_STRING_MAP: Schema = {"type": "object", "additionalProperties": {"type": "string"}}

_SPECIAL: Mapping[str, Schema] = {
    _INT_OR_STRING: _INT_OR_STRING_SCHEMA,
    _QUANTITY: {**_INT_OR_STRING_SCHEMA, "pattern": _QUANTITY_PATTERN},
    # Of an object's metadata only these two mean anything inside a template.
    _OBJECT_META: {"type": "object", "properties": {"annotations": _STRING_MAP, "labels": _STRING_MAP}},
}
_KEPT = (
    "type",
    "format",
    "enum",
    "required",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
)


def reduce_pod_template(document: Mapping[str, Any]) -> Schema:
    """Return the structural schema of PodTemplateSpec out of Kubernetes' OpenAPI v3 `document` of group apps/v1.

    Raises ValueError on anything that a structural schema cannot express, so that a new Kubernetes version that
    brings such a thing is noticed by whoever updates the file.
    """
    schema = _reduce({"$ref": _REFERENCE_PREFIX + ROOT}, document["components"]["schemas"], (), ())
    del schema["properties"]["spec"]["properties"]["ephemeralContainers"]
    return schema


def load() -> Schema:
    """Return the committed schema; a fresh copy at each call."""
    text = files("outrider.api").joinpath(DATA_FILE).read_text(encoding="utf-8")
    schema: Schema = json.loads(text)["schema"]
    return schema


def _reduce(node: Mapping[str, Any], schemas: Mapping[str, Any], keys: Sequence[str], trail: tuple[str, ...]) -> Schema:
    """Return `node` reduced; `keys` are the list-map keys of the list whose entry it is, `trail` open references."""
    reference = node.get("$ref")
    if reference is None and "allOf" in node:
        # Kubernetes writes a reference that has a description or default of its own as a one-element allOf.
        (only,) = node["allOf"]
        reference = only["$ref"]
    if reference is not None:
        name = reference.removeprefix(_REFERENCE_PREFIX)
        if name in trail:
            raise ValueError(f"{name} refers to itself; a structural schema cannot")
        if name in _SPECIAL:
            return json.loads(json.dumps(_SPECIAL[name]))  # type: ignore[no-any-return]
        return _reduce(schemas[name], schemas, keys, (*trail, name))
    if "type" not in node:
        raise ValueError(f"no type below {' > '.join(trail)}: {json.dumps(node)[:200]}")
    reduced: Schema = {key: node[key] for key in _KEPT if key in node}
    if "properties" in node:
        reduced["properties"] = {
            name: _property(name, value, node, keys, _reduce(value, schemas, (), trail))
            for name, value in sorted(node["properties"].items())
        }
    if "items" in node:
        reduced["items"] = _reduce(node["items"], schemas, node.get("x-kubernetes-list-map-keys", ()), trail)
    if "additionalProperties" in node:
        reduced["additionalProperties"] = _reduce(node["additionalProperties"], schemas, (), trail)
    return reduced


def _property(
    name: str, source: Mapping[str, Any], owner: Mapping[str, Any], keys: Sequence[str], reduced: Schema
) -> Schema:
    if name not in keys or name in owner.get("required", ()):
        return reduced
    if "default" not in source:
        raise ValueError(f"the list-map key {name!r} is neither required nor has it a default")
    return {**reduced, "default": source["default"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the data file from an OpenAPI document."""
    parser = argparse.ArgumentParser(prog="python -m outrider.api.podtemplate", description=__doc__.splitlines()[0])
    parser.add_argument("document", type=Path, help="api/openapi-spec/v3/apis__apps__v1_openapi.json of Kubernetes")
    parser.add_argument("--kubernetes", required=True, metavar="VERSION", help="the version that it is from")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name(DATA_FILE))
    options = parser.parse_args(arguments)
    schema = reduce_pod_template(json.loads(options.document.read_text(encoding="utf-8")))
    content = {"source": f"k8s.io/kubernetes {options.kubernetes} {ROOT}", "schema": schema}
    options.output.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
