"""What is known about a cluster between two runs of the launcher: ``state.json``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from localcluster.locations import clusters_directory
from localcluster.processes import Process


@dataclass
class State:
    """One cluster. Written after every step, so that any later run can end what this began."""

    name: str
    complete: bool = False
    host: str = ""
    port: int = 0
    advertised: str = ""
    services: str = ""
    kubernetes_service: str = ""
    # Second number of its 10.x.0.0/16, when it has real nodes.
    network: int | None = None
    real_nodes: list[str] = field(default_factory=list)
    registry_port: int | None = None
    processes: dict[str, Process] = field(default_factory=dict)
    # Kernel settings that kubelet changes for the whole machine, as they were.
    kernel_settings: dict[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Everything of this cluster."""
        return clusters_directory() / self.name

    def record(self, process: Process) -> None:
        """Remember a started process, at once and on disk."""
        self.processes[process.name] = process
        self.save()

    def save(self) -> None:
        """Write the file so that a reader sees the old or the new one, never half of it."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self.directory / "state.json"
        fresh = file.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text(json.dumps(asdict(self), indent=2) + "\n")
        fresh.replace(file)

    def healthy(self) -> bool:
        """Whether it was started completely and every process still runs."""
        return self.complete and bool(self.processes) and all(process.alive() for process in self.processes.values())


def load(name: str) -> State | None:
    """Read the state of a cluster, or None when there is none."""
    try:
        text = (clusters_directory() / name / "state.json").read_text()
        document: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return None
    processes = {key: Process(**value) for key, value in document.pop("processes").items()}
    return State(processes=processes, **document)


def all_names() -> list[str]:
    """Names of all clusters that left something on disk, running or not."""
    try:
        entries = list(clusters_directory().iterdir())
    except OSError:
        return []
    return sorted(entry.name for entry in entries if entry.is_dir())
