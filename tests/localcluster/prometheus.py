"""A real Prometheus on loopback, and a small exporter for it to scrape."""

from __future__ import annotations

import http.client
import http.server
import json
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localcluster import hostpackages
from localcluster.addresses import LOOPBACK, free_port


class Exporter:
    """Serves gauges that a test sets, in Prometheus' text format: `values["errors"] = 0.5`."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = "".join(f"{name} {value}\n" for name, value in owner.values.items()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self.address = f"{LOOPBACK}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Prometheus:
    """Prometheus as Debian packs it, with its data in a folder; it scrapes `targets` every second."""

    def __init__(self, folder: Path, *targets: str) -> None:
        self.folder = folder
        self._targets = list(targets)
        self._port = free_port(LOOPBACK, set())
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{LOOPBACK}:{self._port}"

    def start(self) -> Prometheus:
        """Start it, and wait until it answers queries."""
        self.folder.mkdir(parents=True, exist_ok=True)
        job = {"job_name": "test", "static_configs": [{"targets": self._targets}]}
        configuration = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "scrape_configs": [job]}
        (self.folder / "prometheus.yml").write_text(json.dumps(configuration))
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    hostpackages.unpacked("prometheus", "prometheus"),
                    f"--config.file={self.folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self.folder / 'data'}",
                    f"--web.listen-address={LOOPBACK}:{self._port}",
                    "--storage.tsdb.retention.time=1h",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while not self._is_ready():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.stop()
                raise RuntimeError("Prometheus did not start:\n" + (self.folder / "log").read_text()[-2000:])
            time.sleep(0.1)
        return self

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def query(self, query: str) -> Mapping[str, Any]:
        """Return the answer to an instant query."""
        status, body = self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': query})}")
        assert status == 200, body
        answer: Mapping[str, Any] = json.loads(body)
        return answer

    def wait_for(self, query: str, value: float, seconds: float = 30) -> None:
        """Wait until a query gives this number."""
        deadline = time.monotonic() + seconds
        while True:
            result = self.query(query)["data"]["result"]
            if result and float(result[0]["value"][1]) == value:
                return
            assert time.monotonic() < deadline, f"{query} is not {value} but {result}"
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return self._get("/-/ready")[0] == 200
        except OSError:
            return False

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
