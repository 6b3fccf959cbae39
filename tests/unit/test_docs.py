"""The documents against the code: examples are valid, and nothing is named that does not exist, nor left out that does.

A reason is found in the code by what it is given to (see `REASON_AT`), in the documents in tables whose first column is
headed "Reason".
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from outrider.api.base import ApiModel
from outrider.api.componentversion import ComponentVersionSpec, Phase
from outrider.api.rollout import RolloutSpec
from outrider.core.health import CANNOT_START
from outrider.settings import Settings, read_settings
from outrider.trust.detached import decode_signature
from outrider.trust.evidence import Evidence
from outrider.trust.keys import keys_from_secret
from outrider.trust.verify import verify_artifact

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "operator" / "outrider"
OF_OTHERS = {"benchmarks.md"}
DOCUMENTS = sorted(
    [
        *(ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "SECURITY", "CHANGELOG")),
        *(path for path in (ROOT / "docs").glob("*.md") if path.name not in OF_OTHERS),
    ]
)
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
REFERENCE = ("componentversion", "rollout", "node", "adoption", "installation", "cli")
MODELS: dict[str, type[ApiModel]] = {"ComponentVersion": ComponentVersionSpec, "Rollout": RolloutSpec}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEREDOC = re.compile(r"<<'?EOF'?[^\n]*\n(.*?)^EOF$", re.MULTILINE | re.DOTALL)

# What the shell examples compute and then put into a manifest.
COMPUTED = {"$SHA256": "0" * 64, "$SIGNATURE": "MEUCIQDsignature"}


# --- Examples ---------------------------------------------------------------------------------------------------------


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every manifest in the documents that has one of our kinds: from yaml blocks and from here-documents."""
    for document, text in TEXTS.items():
        for language, block in FENCE.findall(text):
            sources = [block] if language == "yaml" else HEREDOC.findall(block) if language == "sh" else []
            for source in sources:
                for name, value in COMPUTED.items():
                    source = source.replace(name, value)  # noqa: PLW2901
                if "apiVersion: outrider.dev/" not in source:
                    continue
                for manifest in yaml.safe_load_all(source):
                    if manifest["kind"] in MODELS:
                        yield f"{document}: {manifest['kind']} {manifest['metadata']['name']}", manifest


MANIFESTS = list(manifests())


def unknown_fields(given: Any, understood: Any, path: str = "spec") -> Iterator[str]:
    """Yield what was written in an example and is not what the model read from it."""
    if isinstance(given, dict) and isinstance(understood, dict):
        for key, value in given.items():
            if key not in understood:
                yield f"{path}.{key}"
            else:
                yield from unknown_fields(value, understood[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(understood, list):
        for index, (one, other) in enumerate(zip(given, understood, strict=True)):
            yield from unknown_fields(one, other, f"{path}[{index}]")


def test_there_are_examples_of_both_kinds() -> None:
    assert {manifest["kind"] for _, manifest in MANIFESTS} == set(MODELS)


@pytest.mark.parametrize("manifest", [m for _, m in MANIFESTS], ids=[f"{n}-{i}" for i, (n, _) in enumerate(MANIFESTS)])
def test_an_example_is_valid(manifest: dict[str, Any]) -> None:
    spec = MODELS[manifest["kind"]].model_validate(manifest["spec"])
    # The models tolerate newer fields; an example may not have any.
    assert not list(unknown_fields(manifest["spec"], spec.to_api()))
    assert manifest["apiVersion"] == "outrider.dev/v1alpha1"
    if isinstance(spec, ComponentVersionSpec):
        assert manifest["metadata"]["name"] == f"{spec.component}-{spec.version}"
    if isinstance(spec, RolloutSpec):
        containers = {container["name"] for container in (spec.template.get("spec") or {}).get("containers") or []}
        if spec.delivery.volume is not None:
            assert containers >= set(spec.delivery.volume.containers)
        if spec.delivery.image is not None:
            assert spec.delivery.image.container in containers
        assert containers or spec.delivery.host is not None
        assert (spec.strategy.type == "Canary") == (spec.strategy.canary is not None)


@pytest.mark.parametrize(("kind", "document"), [("ComponentVersion", "componentversion"), ("Rollout", "rollout")])
def test_every_field_of_a_spec_is_described_on_its_page(kind: str, document: str) -> None:
    text = TEXTS[f"docs/{document}.md"]
    assert not [name for name in field_names(MODELS[kind]) if f"`{name}`" not in text and f".{name}`" not in text]


def field_names(model: type[ApiModel]) -> set[str]:
    """Return the names of all fields of a model and of those inside it, as the API writes them."""
    schema = model.model_json_schema(by_alias=True)
    return {name for part in (schema, *schema.get("$defs", {}).values()) for name in part.get("properties", {})}


# --- Examples in files ------------------------------------------------------------------------------------------------

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PUBLISHED_AS_THEY_STAND = {
    "componentversion-script.yaml": "trust-key.yaml",
    "componentversion-tested.yaml": "trust-key-window.yaml",
}
"""Which key the signatures of an example were made with; the other versions have placeholders."""


def documents_in(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_a_file_of_examples_is_valid_and_listed(path: Path) -> None:
    for manifest in documents_in(path):
        if manifest["kind"] in MODELS:
            test_an_example_is_valid(manifest)
    assert f"`{path.name}`" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("version", "key"), PUBLISHED_AS_THEY_STAND.items())
def test_an_example_that_is_published_as_it_stands_is_signed_with_the_key_beside_it(version: str, key: str) -> None:
    [secret] = documents_in(ROOT / "examples" / key)
    files = {name: pem.encode() for name, pem in secret["stringData"].items()}
    keys, problems = keys_from_secret(key, files, secret["metadata"]["annotations"])
    assert not problems
    config_map, manifest = documents_in(ROOT / "examples" / version)
    spec = ComponentVersionSpec.model_validate(manifest["spec"])
    for artifact in spec.artifacts:
        assert artifact.source.config_map is not None
        assert artifact.signature is not None
        data = config_map["data"][artifact.source.config_map.key].encode()
        signature = artifact.signature
        if signature.inline is not None:
            evidence = Evidence("Detached", decode_signature(signature.inline))
        else:
            assert signature.statement is not None
            assert signature.statement.inline is not None
            evidence = Evidence("OutriderStatement", signature.statement.inline.encode())
        verify_artifact(
            component=spec.component,
            namespace=manifest["metadata"]["namespace"],
            version=spec.version,
            platform=str(artifact.platform),
            size=len(data),
            expected_sha256=artifact.sha256,
            actual_sha256=hashlib.sha256(data).hexdigest(),
            evidence=[evidence],
            keys=keys,
            at=datetime.now(UTC),
            require_binding=signature.statement is not None,
        )


# --- Reasons ----------------------------------------------------------------------------------------------------------

REASON_AT = {
    **dict.fromkeys(
        ("Stalling", "Transient", "Waiting", "Conflict", "Gone", "LocalError", "Hindrance", "Problem", "Refusal"), 0
    ),
    "_not_ready": 0,
    **dict.fromkeys(("Verdict", "Answer", "KeyProblem", "Event", "say"), 1),
    **dict.fromkeys(("Finding", "conclude"), 2),
    "with_state": 3,
    "_of_step": 5,
}
"""Which argument of what is a reason."""

PAIRS = ("why_", "_under_way")
"""How functions are called that return a reason and a message."""

INNER = {"Gone"}
"""Never leaves the module that raises it."""

CAMEL_CASE = re.compile(r"[A-Z][a-z]+(?:[A-Z]*[a-z0-9]+)*")

Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef


def reasons_in_code() -> set[str]:
    """Return every reason that a condition, event, node's result or log line may carry."""
    # Every phase is the reason of the event that tells it.
    found = set(CANNOT_START) | set(get_args(Phase))
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for scope in ast.walk(tree):
            if isinstance(scope, Scope):
                for node in nodes_of(scope):
                    found |= reasons_at(node, scope)
    return {reason for reason in found if CAMEL_CASE.fullmatch(reason)} - INNER


def nodes_of(scope: Scope) -> Iterator[ast.AST]:
    """Yield the nodes of a function (or module) that belong to no function inside it."""
    pending: list[ast.AST] = list(ast.iter_child_nodes(scope))
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending.extend(ast.iter_child_nodes(node))


def reasons_at(node: ast.AST, scope: Scope) -> set[str]:
    """Return the reasons that one node of the syntax tree names."""
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=arguments) if name in REASON_AT:
            position = REASON_AT[name]
            return literals(arguments[position], scope) if position < len(arguments) else set()
        case ast.Dict(keys=keys, values=values):  # a change of a node's result: {"reason": …}
            pairs = zip(keys, values, strict=True)
            return {
                r for k, v in pairs if isinstance(k, ast.Constant) and k.value == "reason" for r in literals(v, scope)
            }
        case ast.Call(
            func=ast.Attribute(attr="append", value=ast.Name(id="reasons")), args=[ast.Tuple(elts=[first, _])]
        ):
            return literals(first, scope)
        # (reason, message) of a node that is left out, or of a step that is under way
        case ast.Return(value=ast.Tuple(elts=[first, _])) if getattr(scope, "name", "").startswith(PAIRS):
            return literals(first, scope)
        case ast.Assign(targets=[ast.Name(id="skip")], value=ast.Tuple(elts=[first, _])):
            return literals(first, scope)
        case ast.Assign(targets=[ast.Tuple(elts=[ast.Name(id="reason"), _])], value=ast.Tuple(elts=[first, _])):
            return literals(first, scope)
        case _:
            return set()


def literals(expression: ast.expr, scope: Scope) -> set[str]:
    """Return the strings that an expression can be, as far as they are written down in the same function."""
    match expression:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.IfExp(body=first, orelse=second):
            return literals(first, scope) | literals(second, scope)
        case ast.BoolOp(values=values):
            return {text for value in values for text in literals(value, scope)}
        case ast.Subscript(value=ast.Dict(values=values)):
            return {text for value in values for text in literals(value, scope)}
        case ast.Name(id=name):
            return {
                text
                for node in nodes_of(scope)
                if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
                if not (isinstance(node.value, ast.Name) and node.value.id == name)
                for text in literals(node.value, scope)
            }
        case _:
            return set()


def reasons_in(texts: Iterable[str]) -> set[str]:
    """Return the reasons that tables headed "Reason" list in their first column."""
    found: set[str] = set()
    for text in texts:
        in_table = False
        for line in text.splitlines():
            if line.startswith("| Reason |"):
                in_table = True
            elif not line.startswith("|"):
                in_table = False
            elif in_table:
                found |= set(re.findall(r"`(\w+)`", line.split("|")[1]))
    return found


def test_the_reasons_are_found() -> None:
    found = reasons_in_code()
    examples = {
        "VersionNotFound",  # Hindrance
        "SourceUnreachable",  # Transient
        "SignatureUntrusted",  # Stalling
        "NodeNotReady",  # a returned pair
        "ReturnFailed",  # a change of a result
        "HealthTimeout",  # one of two, by a variable
        "ApiBusy",  # one of two
        "StartingTest",  # the first of a pair
        "BatchFinished",  # an event
        "Withdrawn",  # a phase
        "WaitingForVerdict",  # one of two that are handed on
        "ArtifactsStored",  # a condition's when its step is done
        "CrashLoopBackOff",  # the kubelet's
    }
    assert examples <= found
    assert len(found) > 140


def test_every_reason_in_the_code_is_documented() -> None:
    # Troubleshooting picks some out; these have them all.
    missing = reasons_in_code() - reasons_in(TEXTS[f"docs/{name}.md"] for name in REFERENCE)
    assert not missing, f"describe in docs/, in a table headed '| Reason |': {', '.join(sorted(missing))}"


def test_every_reason_documented_is_in_the_code() -> None:
    unknown = reasons_in(TEXTS.values()) - reasons_in_code()
    assert not unknown, f"the documents describe reasons that nothing gives: {', '.join(sorted(unknown))}"


# --- Names ------------------------------------------------------------------------------------------------------------


class Recorder(dict[str, str]):
    """An environment that remembers what it was asked for."""

    def __init__(self, **variables: str) -> None:
        super().__init__(**variables)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def environment_variables() -> set[str]:
    """Return the variables that the operator's settings are read from."""
    environment = Recorder(OUTRIDER_REGISTRY="registry.example.com")
    read_settings(environment)
    return environment.asked


def test_every_setting_is_documented_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(OUTRIDER_\w+)` \| ([^|]*) \|", TEXTS["docs/installation.md"], re.MULTILINE))
    assert rows.keys() == environment_variables()
    default = Settings()
    for setting in fields(Settings):
        value = getattr(default, setting.name)
        row = rows.get(f"OUTRIDER_{setting.name.upper()}", "")
        if isinstance(value, bool):
            assert f"`{str(value).lower()}`" in row, setting.name
        elif isinstance(value, int | float):
            assert f"`{value:.0f}`" in row, setting.name
        elif isinstance(value, str) and value and setting.name != "fetch_image":
            assert f"`{value}`" in row, setting.name


def test_every_make_target_that_is_named_exists() -> None:
    named = {
        (document, target)
        for document, text in TEXTS.items()
        for code in re.findall(r"`([^`\n]+)`", text) + [block for _, block in FENCE.findall(text)]
        for target in re.findall(r"(?:^|\s)make ([a-z][a-z0-9-]*)", code)
    }
    assert named
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
    assert not {(document, target) for document, target in named if target not in targets}


@pytest.mark.parametrize("document", TEXTS)
def test_links_lead_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[document]):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (folder / name).resolve() if name else ROOT / document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("document", TEXTS)
def test_files_that_are_named_exist(document: str) -> None:
    roots = (ROOT, PACKAGE, ROOT / "tests")
    for name in re.findall(
        r"`((?:operator|tests|charts|crds|docs|core|api|adapters|reconcile|trust|node|handlers)/[\w./-]+)`",
        TEXTS[document],
    ):
        assert any((root / name).exists() for root in roots), f"{document} names {name}"
