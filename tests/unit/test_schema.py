"""Models to CRDs: what the generator writes is what an API server takes, and the committed files are that."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import ConfigDict, Field

from outrider.api import names, podtemplate, schema
from outrider.api.base import ApiModel, IntOrPercent, worded
from outrider.api.componentversion import ComponentVersionSpec
from outrider.api.rollout import RolloutSpec

ROOT = Path(__file__).resolve().parent.parent.parent
DIRECTORIES = (ROOT / "crds", ROOT / "charts" / "outrider" / "resources" / "crds")

ALLOWED = {
    "description",
    "type",
    "format",
    "default",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "anyOf",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
}
"""Every word that our schemas may hold; a structural schema knows few more."""

CRDS = {kind.name: schema.build_crd(kind) for kind in schema.KINDS}


def nodes(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every schema node with its path."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), Mapping):
        yield from nodes(node["additionalProperties"], f"{path}.*")


def root(crd: Mapping[str, Any]) -> dict[str, Any]:
    """Return a CRD's schema."""
    (version,) = crd["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return found


ALL_NODES = [(kind, path, node) for kind, crd in CRDS.items() for path, node in nodes(root(crd))]


# --- The rules of structural schemas, checked offline -----------------------------------------------------------------


def test_no_word_that_the_api_server_refuses() -> None:
    assert {(kind, path): node.keys() - ALLOWED for kind, path, node in ALL_NODES if node.keys() - ALLOWED} == {}


def test_every_node_has_a_type() -> None:
    untyped = [(k, p) for k, p, node in ALL_NODES if ("type" in node) == ("x-kubernetes-int-or-string" in node)]
    assert untyped == []


def test_unions_are_int_or_string_only() -> None:
    for kind, path, node in ALL_NODES:
        if "anyOf" in node or "x-kubernetes-int-or-string" in node:
            assert node["x-kubernetes-int-or-string"] is True, (kind, path)
            assert node["anyOf"] == [{"type": "integer"}, {"type": "string"}], (kind, path)


def test_objects_say_what_is_in_them_and_lists_too() -> None:
    for kind, path, node in ALL_NODES:
        if node.get("type") == "array":
            assert "items" in node, (kind, path)
        if "x-kubernetes-preserve-unknown-fields" in node:
            # The API server checks it when the Job is created.
            jobs = ".spec.testing.job.template", ".spec.analysis[].job.template"
            assert path in {f"{job}.spec.template" for job in jobs}
        elif node.get("type") == "object" and path != ".metadata":
            # An empty `properties` would make the API server drop whatever users write there.
            assert bool(node.get("properties")) != ("additionalProperties" in node), (kind, path)


def test_keys_of_list_maps_are_required_or_have_a_default() -> None:
    lists = [(path, node) for _, path, node in ALL_NODES if node.get("x-kubernetes-list-type") == "map"]
    assert any(path.endswith(".ports") for path, _ in lists)
    for path, node in lists:
        entry = node["items"]
        for key in node["x-kubernetes-list-map-keys"]:
            assert key in entry.get("required", ()) or "default" in entry["properties"][key], (path, key)


def test_required_fields_exist() -> None:
    for kind, path, node in ALL_NODES:
        assert set(node.get("required", ())) <= set(node.get("properties", ())), (kind, path)


def test_patterns_are_re2() -> None:
    patterns = [node["pattern"] for _, _, node in ALL_NODES if "pattern" in node]
    patterns += [rule["rule"] for _, _, node in ALL_NODES for rule in node.get("x-kubernetes-validations", ())]
    # What Python knows and RE2 does not: looking around, back-references, atomic groups, possessive quantifiers.
    assert [pattern for pattern in patterns if re.search(r"\(\?[=!<>]|\\[1-9]|[*+?}]\+", pattern)] == []


def test_only_a_status_that_counts_generations_has_a_default() -> None:
    defaults = {kind: root(crd)["properties"]["status"].get("default") for kind, crd in CRDS.items()}
    never_seen = {"observedGeneration": -1}
    assert defaults == {"ComponentVersion": never_seen, "Rollout": never_seen, "RolloutBatch": None}
    inner = [(kind, path) for kind, path, node in ALL_NODES if path.startswith(".status.") and "default" in node]
    assert inner == []


def test_every_rule_has_a_message() -> None:
    for kind, path, node in ALL_NODES:
        for rule in node.get("x-kubernetes-validations", ()):
            assert rule["message"], (kind, path)
            assert "\n" not in rule["rule"], (kind, path)


def test_every_field_of_ours_is_described() -> None:
    ours = [
        (k, p, node) for k, p, node in ALL_NODES if not p.startswith(".spec.template.") and p not in {"", ".metadata"}
    ]
    silent = [(k, p) for k, p, node in ours if not node.get("description") and not p.endswith(("[]", ".*"))]
    assert silent == []


# --- The definitions around the schemas -------------------------------------------------------------------------------


def test_names_of_the_kinds() -> None:
    found = {
        kind: (crd["metadata"]["name"], crd["spec"]["names"]["shortNames"], crd["spec"]["names"]["categories"])
        for kind, crd in CRDS.items()
    }
    assert found == {
        "ComponentVersion": ("componentversions.outrider.dev", ["cver"], ["outrider"]),
        "Rollout": ("rollouts.outrider.dev", ["orl"], ["outrider"]),
        "RolloutBatch": ("rolloutbatches.outrider.dev", ["orb"], ["outrider"]),
    }


@pytest.mark.parametrize("crd", CRDS.values(), ids=CRDS.keys())
def test_each_kind_has_a_status_of_its_own(crd: dict[str, Any]) -> None:
    (version,) = crd["spec"]["versions"]
    assert version["subresources"] == {"status": {}}
    assert (version["name"], version["served"], version["storage"]) == (names.VERSION, True, True)
    assert root(crd)["required"] == ["spec"]


@pytest.mark.parametrize("crd", CRDS.values(), ids=CRDS.keys())
def test_columns_show_fields_that_exist(crd: dict[str, Any]) -> None:
    (version,) = crd["spec"]["versions"]
    known = {path for path, _ in nodes(root(crd))} | {".metadata.creationTimestamp"}
    for column in version["additionalPrinterColumns"]:
        path = re.sub(r"\[\?\(@\.type==\"\w+\"\)\]", "[]", column["jsonPath"])
        assert path in known, column["name"]


def test_each_crd_fits_into_the_annotation_of_a_client_side_apply() -> None:
    for content in schema.build_files().values():
        # As kubectl writes it: JSON without spaces, and a line's end.
        applied = json.dumps(yaml.safe_load(content), separators=(",", ":")) + "\n"
        assert len(applied) < schema.MAX_BYTES


def test_a_crd_that_is_too_large_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"has \d+ bytes of JSON; it must stay under 10000"):
        schema.build_files()


# --- What the API server fills in is what the models read from an absent field ----------------------------------------


def fill(value: Any, node: Mapping[str, Any]) -> Any:
    """Fill in defaults as the API server does."""
    if isinstance(value, dict):
        filled = {key: fill(child, node.get("properties", {}).get(key, {})) for key, child in value.items()}
        for name, child in node.get("properties", {}).items():
            if name not in filled and "default" in child:
                filled[name] = fill(child["default"], child)
        return filled
    if isinstance(value, list):
        return [fill(child, node["items"]) for child in value] if "items" in node else value
    return value


MINIMAL_VERSION = {
    "component": "agent",
    "version": "1.0.0",
    "artifacts": [
        {
            "platform": {"arch": "arm64"},
            "fileName": "agent",
            "sha256": "0" * 64,
            "source": {"configMap": {"name": "a", "key": "b"}},
            "signature": {"inline": "c2lnbmF0dXJl"},
        }
    ],
}
MINIMAL_ROLLOUT = {
    "component": "agent",
    "version": "1.0.0",
    "target": {"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}},
    "template": {"spec": {"containers": [{"name": "agent"}]}},
    "delivery": {"volume": {"mountPath": "/opt/agent", "containers": ["agent"]}},
    "strategy": {"type": "Canary", "canary": {"steps": [{"nodes": 1}]}, "rolling": {}},
}


@pytest.mark.parametrize(
    ("kind", "model", "spec"),
    [("ComponentVersion", ComponentVersionSpec, MINIMAL_VERSION), ("Rollout", RolloutSpec, MINIMAL_ROLLOUT)],
    ids=["ComponentVersion", "Rollout"],
)
def test_defaults_mean_the_same_to_the_api_server_and_to_the_models(
    kind: str, model: type[ApiModel], spec: dict[str, Any]
) -> None:
    filled = fill(spec, root(CRDS[kind])["properties"]["spec"])
    assert filled != spec
    assert model.model_validate(filled) == model.model_validate(spec)


def test_a_port_without_a_protocol_gets_the_default_that_its_key_needs() -> None:
    spec = {"containers": [{"name": "agent", "ports": [{"containerPort": 80}]}]}
    filled = fill({"template": {"spec": spec}}, root(CRDS["Rollout"])["properties"]["spec"])
    (container,) = filled["template"]["spec"]["containers"]
    assert container["ports"] == [{"containerPort": 80, "protocol": "TCP"}]


# --- The translation, case by case ------------------------------------------------------------------------------------


class Inner(ApiModel):
    """The inner object."""

    size: Annotated[int, Field(gt=0, lt=10)] = 3
    """Its size."""


class Outer(ApiModel):
    """An object
    over two lines."""

    kind_of: Literal["Only"] = "Only"
    """A constant."""
    inner: Inner | None = None
    """What the field says wins."""
    filled: Annotated[Inner, Field(json_schema_extra={"default": {}})] = Inner()
    """Filled in."""
    count: IntOrPercent = "10%"
    """A count."""
    names_of: dict[str, str] = {}
    """A map."""
    text: Annotated[str, Field(pattern=r"^a\.b$", json_schema_extra=worded("write a.b"))] = ""
    """A text."""
    needed: bool
    """Needed."""


def test_a_model_becomes_a_structural_schema() -> None:
    inner = {
        "type": "object",
        "properties": {
            "size": {
                "description": "Its size.",
                "type": "integer",
                "minimum": 0,
                "exclusiveMinimum": True,
                "maximum": 10,
                "exclusiveMaximum": True,
                "default": 3,
            }
        },
    }
    translated = schema.structural(Outer)
    assert translated["description"] == "An object over two lines."
    assert translated["required"] == ["needed"]
    properties = translated["properties"]
    count = properties.pop("count")
    assert properties == {
        "kindOf": {"description": "A constant.", "type": "string", "enum": ["Only"], "default": "Only"},
        "inner": {"description": "What the field says wins.", **inner},
        "filled": {"description": "Filled in.", **inner, "default": {}},
        "namesOf": {"description": "A map.", "type": "object", "additionalProperties": {"type": "string"}},
        "text": {
            "description": "A text.",
            "type": "string",
            "x-kubernetes-validations": [{"rule": r"self.matches(r'^a\.b$')", "message": "write a.b"}],
        },
        "needed": {"description": "Needed.", "type": "boolean"},
    }
    assert count["default"] == "10%"
    assert "type" not in count
    assert count["x-kubernetes-validations"][0]["rule"].startswith("type(self) != string || self.matches(r'")


class Union(ApiModel):
    """A union that a CRD cannot express."""

    value: int | list[str]
    """The value."""


class NullableUnion(ApiModel):
    """The same, optional."""

    value: int | bool | None = None
    """The value."""


class Recursive(ApiModel):
    """An object that contains itself."""

    child: "Recursive | None" = None
    """Itself."""


class Anything(ApiModel):
    """An object of anything."""

    value: dict[str, Any]
    """Anything."""


class Unique(ApiModel):
    """A set, which JSON Schema calls unique items."""

    value: set[str]
    """The set."""


class Quoted(ApiModel):
    """A pattern that would end the rule's string."""

    value: Annotated[str, Field(pattern="^'$", json_schema_extra=worded("write a quote"))]
    """The value."""


class Deep(ApiModel):
    """A fault further down."""

    model_config = ConfigDict(title="Deep")

    items: list[Union]
    """The items."""


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Union, "Union.value: the only union"),
        (NullableUnion, "NullableUnion.value: the only union"),
        (Recursive, "Recursive.child: Recursive contains itself"),
        (Anything, "Anything.value: an object must have fields"),
        (Unique, "Unique.value: no translation for uniqueItems"),
        (Quoted, "would end the rule's raw string"),
        (Deep, r"Deep.items.\[\].value: the only union"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_a_crd_cannot_express_is_an_error_that_names_the_field(model: type[ApiModel], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schema.structural(model)


# --- Kubernetes' own PodTemplateSpec ----------------------------------------------------------------------------------


def test_the_pod_template_is_kubernetes_own() -> None:
    spec = podtemplate.load()["properties"]["spec"]
    assert spec["required"] == ["containers"]
    fields = spec["properties"]
    assert {"hostNetwork", "tolerations", "volumes", "topologySpreadConstraints", "runtimeClassName"} <= fields.keys()
    container = fields["containers"]["items"]["properties"]
    assert container["livenessProbe"]["properties"]["httpGet"]["properties"]["port"]["x-kubernetes-int-or-string"]
    assert container["env"]["x-kubernetes-list-map-keys"] == ["name"]
    assert fields["nodeSelector"]["x-kubernetes-map-type"] == "atomic"
    assert all("description" not in node for _, node in nodes(podtemplate.load()))


def test_the_metadata_of_a_template_is_labels_and_annotations() -> None:
    assert podtemplate.load()["properties"]["metadata"]["properties"].keys() == {"labels", "annotations"}


def test_only_list_map_keys_have_defaults_in_a_template() -> None:
    defaults = {
        path.rpartition(".")[2]: node["default"] for path, node in nodes(podtemplate.load()) if "default" in node
    }
    assert defaults == {"protocol": "TCP", "name": ""}


def test_the_pod_template_can_be_made_anew(tmp_path: Path) -> None:
    version = json.loads((Path(podtemplate.__file__).with_name(podtemplate.DATA_FILE)).read_text())["source"].split()[1]
    try:
        cache = subprocess.run(["go", "env", "GOMODCACHE"], capture_output=True, text=True, check=True).stdout.strip()
    except OSError:
        pytest.skip("there is no go")
    document = Path(cache, f"k8s.io/kubernetes@{version}", "api/openapi-spec/v3/apis__apps__v1_openapi.json")
    if not document.exists():
        pytest.skip(f"the source of Kubernetes {version} is not in Go's module cache")
    output = tmp_path / podtemplate.DATA_FILE
    podtemplate.main([str(document), "--kubernetes", version, "--output", str(output)])
    assert output.read_text() == Path(podtemplate.__file__).with_name(podtemplate.DATA_FILE).read_text()


def test_a_pod_template_that_a_crd_cannot_express_is_an_error() -> None:
    def document(port: dict[str, Any]) -> dict[str, Any]:
        keyed = {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["port"],
            "items": port,
        }
        return {"components": {"schemas": {podtemplate.ROOT: {"type": "object", "properties": {"ports": keyed}}}}}

    with pytest.raises(ValueError, match="'port' is neither required nor has it a default"):
        podtemplate.reduce_pod_template(document({"type": "object", "properties": {"port": {"type": "integer"}}}))
    with pytest.raises(ValueError, match="refers to itself"):
        podtemplate.reduce_pod_template(document({"$ref": f"#/components/schemas/{podtemplate.ROOT}"}))
    with pytest.raises(ValueError, match="no type"):
        podtemplate.reduce_pod_template(document({"oneOf": []}))


# --- The committed files ----------------------------------------------------------------------------------------------


def test_the_committed_crds_are_what_the_models_say() -> None:
    assert "".join(schema.drift(DIRECTORIES)) == "", (
        "run: python -m outrider.api.schema --write crds charts/outrider/resources/crds"
    )


def test_a_crd_reads_back_as_it_was_built() -> None:
    for kind in schema.KINDS:
        assert yaml.safe_load(schema.render(CRDS[kind.name])) == CRDS[kind.name]


def test_drift_is_shown_and_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert schema.main(["--write", str(tmp_path / "new")]) == 0
    assert schema.main(["--check", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().err == ""

    rollouts = tmp_path / "new" / "outrider.dev_rollouts.yaml"
    rollouts.write_text(rollouts.read_text().replace("- orl\n", "- ro\n"))
    (tmp_path / "new" / "stray.yaml").write_text("")
    (tmp_path / "new" / "outrider.dev_rolloutbatches.yaml").unlink()
    assert schema.main(["--check", str(tmp_path / "new")]) == 1
    said = capsys.readouterr().err
    assert "-    - ro\n+    - orl\n" in said
    assert "stray.yaml: not generated from any model" in said
    assert "+  name: rolloutbatches.outrider.dev" in said
    assert f"python -m outrider.api.schema --write {tmp_path / 'new'}" in said


def test_the_generator_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "outrider.api.schema", "--check", *map(str, DIRECTORIES)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT / "operator")}
    )
    assert (result.returncode, result.stderr) == (0, "")
