"""What does it cost the operator that there are many versions?

    PYTHONPATH=operator:tests python -m bench.catalogue [--versions 1000]

Publishes that many ComponentVersions, ends the operator, and starts it again: how long until every version was looked
at, and what did it ask of source and registry meanwhile? Then it is left alone: how much of a core does it use? The
yardstick of the start is a start of the same operator on the same cluster before there was any version.
"""

import argparse
import hashlib
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "operator")]

from adapters.realservers import RealHttpServer  # noqa: E402
from bench.operatorprocess import OperatorProcess, install_outrider  # noqa: E402
from localcluster import Cluster  # noqa: E402
from localcluster.apiclient import Object  # noqa: E402
from outrider.api import names  # noqa: E402

MAX_START_SECONDS_PER_THOUSAND = 15.0
MAX_IDLE = 0.01
IDLE_SECONDS = 30
VERSIONS_OF_ONE = 100
FLEET = "catalogue"


class Bench:
    """One cluster with an operator and its versions."""

    def __init__(self, cluster: Cluster, folder: Path, count: int) -> None:
        self.cluster = cluster
        self.client = cluster.client()
        self.folder = folder
        self.count = count
        self.server = RealHttpServer()
        self._signing = threading.Lock()
        self.versions = f"/apis/{names.API_VERSION}/namespaces/{FLEET}/componentversions"

    def prepare(self) -> None:
        """Install Outrider without its Deployment, a key to trust, and the namespace of the versions."""
        self.signer = install_outrider(self.cluster, self.folder)
        self.client.create("/api/v1/namespaces", {"metadata": {"name": FLEET}})

    def start(self, passes: int) -> tuple[OperatorProcess, float]:
        """Start the operator; returns it and the seconds until it has made so many passes over versions."""
        begun = time.monotonic()
        operator = OperatorProcess(self.cluster, self.folder / f"operator-{begun:.0f}")
        while True:
            operator.check()
            try:
                if operator.is_leading and operator.passes_over("ComponentVersion") >= passes:
                    return operator, time.monotonic() - begun
            except OSError:
                pass  # it does not listen yet
            time.sleep(0.05)

    def publish(self) -> float:
        """Create all versions and wait until they are Published; returns the seconds."""
        begun = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self._create, range(self.count)))
        while True:
            phases = [(item.get("status") or {}).get("phase") for item in self.client.items(self.versions)]
            if phases.count("Published") == self.count:
                return time.monotonic() - begun
            time.sleep(0.5)

    def _sign(self, content: bytes) -> str:
        with self._signing:  # it signs one file at a time
            return self.signer.sign(content)

    def _create(self, number: int) -> None:
        component, version = f"agent-{number // VERSIONS_OF_ONE}", f"1.{number % VERSIONS_OF_ONE}.0"
        content = f"#!/bin/sh\necho {component} {version}\n".encode()
        url = self.server.serve(f"/{component}/{version}", content)
        artifact = {
            "platform": {"os": "linux", "arch": "amd64"},
            "fileName": "agent",
            "sha256": hashlib.sha256(content).hexdigest(),
            "source": {"http": {"url": url}},
            "signature": {"inline": self._sign(content)},
        }
        body: Object = {
            "apiVersion": names.API_VERSION,
            "kind": "ComponentVersion",
            "metadata": {"name": f"{component}-{version}"},
            "spec": {"component": component, "version": version, "artifacts": [artifact]},
        }
        self.client.create(self.versions, body)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 0 if every target is met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--name", default="bench-catalogue")
    arguments = parser.parse_args(argv)
    cluster = Cluster.up(arguments.name, fake_nodes=2, real_nodes=0)
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as scratch:
        bench = Bench(cluster, Path(scratch), arguments.versions)
        try:
            bench.prepare()
            return measure(bench)
        finally:
            bench.server.stop()
            cluster.down()


def measure(bench: Bench) -> int:
    """Measure and print."""
    operator, empty = bench.start(0)
    published = bench.publish()
    say(f"{bench.count} versions were published in {published:.0f} s")
    operator.stop()

    asked = len(bench.server.requests)
    operator, full = bench.start(bench.count)
    time.sleep(3)
    steps, downloads = operator.steps, len(bench.server.requests) - asked
    cpu = operator.cpu_seconds
    time.sleep(IDLE_SECONDS)
    idle = (operator.cpu_seconds - cpu) / IDLE_SECONDS
    peak = operator.peak_mib
    operator.stop()
    wanted = MAX_START_SECONDS_PER_THOUSAND * bench.count / 1000
    results = [
        (
            full - empty <= wanted,
            f"start until all were looked at: {full:.1f} s, without any {empty:.1f} s; at most {wanted:.0f} s more",
        ),
        (downloads == 0 and steps == 0, f"downloads meanwhile: {downloads}, steps taken: {steps}; none wanted"),
        (idle <= MAX_IDLE, f"idle: {idle:.2%} of a core; at most {MAX_IDLE:.0%}"),
    ]
    for met, line in results:
        say(f"{line}. {'met' if met else 'MISSED'}")
    say(f"operator's memory at its peak: {peak:.0f} MiB")
    return 0 if all(met for met, _ in results) else 1


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
