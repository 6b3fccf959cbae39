"""Render `install.yaml`, for those who install without Helm, from the chart.

    python charts/render.py --write     writes install.yaml at the top of the repository
    python charts/render.py --check     fails, with a diff, if the committed file differs

Uses the helm that the environment variable HELM names, or else the one that the local cluster's launcher builds.
"""

import argparse
import difflib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts" / "outrider"
INSTALL = ROOT / "install.yaml"

RELEASE = "outrider"
NAMESPACE = "outrider-system"

HEADER = f"""\
# Outrider: custom resources, permissions, admission policies and the operator, in namespace {NAMESPACE}.
# Generated from charts/outrider by `python charts/render.py --write`. Do not edit.
#
#   sed 's|registry.outrider.dev/outrider|registry.example.com/outrider|' install.yaml |
#     kubectl apply --server-side -f -
#
# with the image where you have pushed it. Then tell the operator which registry to store artifacts in; without one it
# does not start. Keys that you add to this ConfigMap stay when you apply a newer install.yaml. Credentials, if the
# registry wants any, go into a Secret.
#
#   kubectl --namespace {NAMESPACE} patch configmap outrider-settings --type merge \\
#     --patch '{{"data": {{"OUTRIDER_REGISTRY": "registry.example.com:5000"}}}}'
#   kubectl --namespace {NAMESPACE} create secret generic outrider-registry \\
#     --from-literal=username=USER --from-literal=password=PASSWORD
#   kubectl --namespace {NAMESPACE} rollout restart deployment/outrider
"""

NAMESPACE_OBJECT = f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    app.kubernetes.io/name: outrider
    pod-security.kubernetes.io/enforce: restricted
"""

# What Helm says about itself is not true of objects that Helm does not manage.
_HELMS_OWN = re.compile(r"^ *(app\.kubernetes\.io/managed-by: Helm|helm\.sh/chart: .*)\n", re.MULTILINE)
_SOURCE = re.compile(r"^# Source: .*\n", re.MULTILINE)


def render() -> str:
    """Return the content of install.yaml."""
    command = [_helm(), "template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--set", "crds.keep=false"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    output = _HELMS_OWN.sub("", _SOURCE.sub("", output))
    documents = [document.strip("\n") + "\n" for document in re.split(r"^---\n", output, flags=re.MULTILINE)]
    return "---\n".join([HEADER, NAMESPACE_OBJECT, *(document for document in documents if document.strip())])


def _helm() -> str:
    if given := os.environ.get("HELM"):
        return given
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "localcluster", "tool", "helm"]
    # Its progress goes to stderr, where the person who waits sees it.
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check install.yaml; return the exit status."""
    parser = argparse.ArgumentParser(prog="python charts/render.py", description="Chart to install.yaml.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write install.yaml")
    action.add_argument("--check", action="store_true", help="fail if install.yaml differs from the chart")
    options = parser.parse_args(arguments)
    expected = render()
    if options.write:
        INSTALL.write_text(expected, encoding="utf-8")
        return 0
    found = INSTALL.read_text(encoding="utf-8") if INSTALL.exists() else ""
    difference = "".join(
        difflib.unified_diff(
            found.splitlines(keepends=True), expected.splitlines(keepends=True), "install.yaml", "rendered", n=2
        )
    )
    if not difference:
        return 0
    sys.stderr.write(difference)
    sys.stderr.write(
        "\ninstall.yaml differs from the chart. If the change is meant, run\n"
        "    python charts/render.py --write\nand commit the result.\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
