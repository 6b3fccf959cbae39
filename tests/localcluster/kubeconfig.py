"""Kubeconfig files (JSON, which every reader of YAML takes)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from localcluster.pki import KeyPair


def with_certificate(cluster: str, server: str, ca_file: Path, credentials: KeyPair) -> str:
    """A kubeconfig that authenticates by client certificate."""
    return _render(
        cluster,
        server,
        ca_file,
        {
            "client-certificate-data": _encoded(credentials.certificate),
            "client-key-data": _encoded(credentials.key),
        },
    )


def with_token(cluster: str, server: str, ca_file: Path, token: str, namespace: str) -> str:
    """A kubeconfig that authenticates by bearer token."""
    return _render(cluster, server, ca_file, {"token": token}, namespace)


def write(path: Path, content: str) -> None:
    """Write a kubeconfig readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(content)


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _render(cluster: str, server: str, ca_file: Path, user: dict[str, str], namespace: str | None = None) -> str:
    context: dict[str, str] = {"cluster": cluster, "user": cluster}
    if namespace is not None:
        context["namespace"] = namespace
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": cluster,
                "cluster": {"server": server, "certificate-authority-data": _encoded(ca_file)},
            }
        ],
        "users": [{"name": cluster, "user": user}],
        "contexts": [{"name": cluster, "context": context}],
        "current-context": cluster,
    }
    return json.dumps(document, indent=2) + "\n"
