"""A real OCI registry (CNCF distribution) without TLS or accounts, for one cluster."""

from __future__ import annotations

import http.client
import json
import time
from pathlib import Path

from localcluster.errors import LauncherError
from localcluster.processes import Process, spawn


def start(directory: Path, binary: Path, host: str, port: int) -> Process:
    """Start the registry on ``host:port`` with its data under ``directory``; wait until it serves.

    Started again on the same directory and port it has all that was pushed before.
    """
    directory.mkdir(parents=True, exist_ok=True)
    configuration = directory / "config.yml"
    document = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(directory / "data")},
            "delete": {"enabled": True},
        },
        "http": {"addr": f"{host}:{port}"},
    }
    configuration.write_text(json.dumps(document))
    # Tracing is on by default and would look for a collector on this machine.
    environment = {"OTEL_TRACES_EXPORTER": "none", "OTEL_SDK_DISABLED": "true", "HOME": "/"}
    process = spawn(
        "registry",
        [binary, "serve", configuration],
        directory.parent / "logs" / "registry.log",
        cluster=directory.parent,
        port=port,
        environment=environment,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not process.alive():
            raise LauncherError(f"the registry ended while starting:\n{process.log_tail()}")
        connection = http.client.HTTPConnection(host, port, timeout=2)
        try:
            connection.request("GET", "/v2/")
            if connection.getresponse().status == 200:
                return process
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise LauncherError(f"the registry was not ready within 30 s; its log is {process.log}")
