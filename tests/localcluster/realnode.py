"""Placeholder until the real node is written."""

from __future__ import annotations

from pathlib import Path

from localcluster.apiclient import ApiClient
from localcluster.controlplane import ControlPlane
from localcluster.state import State


def obstacle() -> str | None:
    """Why real nodes are not possible here, or None."""
    return "not implemented yet"


def prepare_network(known: State) -> None:
    """TODO."""


def start(known: State, index: int, plane: ControlPlane, tools: dict[str, Path]) -> None:
    """TODO."""


def wait_until_ready(known: State, name: str, client: ApiClient) -> None:
    """TODO."""


def load_image(known: State, name: str, archive: Path) -> None:
    """TODO."""


def remove_all(known: State) -> None:
    """TODO."""
