"""The node's side as the kubelet runs it: processes, an environment, folders; and versions in a real registry."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import outrider
from adapters.realservers import RealRegistry, sha256_of
from adapters.signing import Signer
from outrider.adapters.ingest import ArtifactFacts, store_artifact_manifest, store_evidence, store_index
from outrider.node.processor import ARCHITECTURES
from outrider.trust.evidence import Evidence

FILE = b"\x7fELF" + random.Random(11).randbytes(2_000_000)  # noqa: S311
SHA256 = sha256_of(FILE)
MACHINE = os.uname().machine
PLATFORM = f"linux/{ARCHITECTURES[MACHINE]}"
OTHER = "linux/arm64" if PLATFORM != "linux/arm64" else "linux/amd64"
REPOSITORY = "fleet/node-agent"


class Node:
    """A node's folders and the environment that the operator gives the init container."""

    def __init__(self, folder: Path, registry: RealRegistry, index: str, signer: Signer) -> None:
        self.target = folder / "target"
        self.keys = folder / "keys"
        self.termination = folder / "termination-log"
        self.target.mkdir(parents=True)
        self.keys.mkdir()
        self.termination.touch()
        (self.keys / "release.pub").write_bytes(signer.public.read_bytes())
        self.environment = {
            "OUTRIDER_REFERENCE": f"{registry.host}/{REPOSITORY}@{index}",
            "OUTRIDER_PLAIN_HTTP": "true",
            "OUTRIDER_KEYS_DIR": str(self.keys),
            "OUTRIDER_TARGET_DIR": str(self.target),
            "OUTRIDER_COMPONENT": "node-agent",
            "OUTRIDER_VERSION": "1.4.0",
            "OUTRIDER_DIGESTS": json.dumps({PLATFORM: SHA256}),
            "OUTRIDER_TERMINATION_LOG": str(self.termination),
            # What the tests import is what runs, wherever it was installed from.
            "PYTHONPATH": str(Path(outrider.__file__).parents[1]),
        }

    def use_cache(self, folder: Path) -> Path:
        """Give it a cache, as a volume of the node; return the component's folder in it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.environment |= {"OUTRIDER_CACHE_DIR": str(folder), "OUTRIDER_NAMESPACE": "fleet"}
        return folder / "fleet.node-agent"

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command or [sys.executable, "-m", "outrider.node"],
            env=self.environment,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str) -> tuple[int, str]:
        """Run the program to its end; return the exit code and the log."""
        process = self.start(*command)
        try:
            _, log = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        return process.returncode, log

    def refused(self) -> str:
        """Run the program, which must refuse and leave nothing; return the reason that the kubelet gets."""
        code, log = self.run()
        assert code == 3, log
        assert self.names() == []
        reason = self.termination.read_text()
        assert "\n" not in reason
        assert log.endswith(f"outrider-fetch: {reason}\n")
        return reason

    def names(self) -> list[str]:
        return sorted(path.name for path in self.target.iterdir())

    @property
    def file(self) -> Path:
        return self.target / "node-agent-bin"


def publish(
    registry: RealRegistry,
    signer: Signer,
    *,
    data: bytes = FILE,
    platform: str = PLATFORM,
    component: str = "node-agent",
    version: str = "1.4.0",
    username: str | None = None,
    password: str | None = None,
    evidence: Sequence[Evidence] | None = None,
) -> str:
    """Store a file as a version, signed or with other evidence, and return the digest of its index."""
    with registry.client(username=username, password=password) as client:
        blob = client.push_bytes(REPOSITORY, data)
        facts = ArtifactFacts(component, version, platform, "node-agent-bin")
        manifest = store_artifact_manifest(client, REPOSITORY, blob, facts)
        for piece in [Evidence("Detached", signer.detached(data))] if evidence is None else evidence:
            store_evidence(client, REPOSITORY, manifest, piece)
        return store_index(client, REPOSITORY, component, version, {platform: manifest}, publish=True).digest


def wait_for(what: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(process: subprocess.Popen[str]) -> None:
    """End a process that was started with its log in a pipe."""
    process.kill()
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


class CountingRegistry(RealRegistry):
    """A registry that writes down what is asked of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        configuration = json.loads((folder / "config.yml").read_text())
        configuration["log"] = {"level": "info", "accesslog": {"disabled": False}}
        (folder / "config.yml").write_text(json.dumps(configuration))

    def downloads(self, digest: str) -> int:
        """Return how often somebody has asked for a blob."""
        return (self.folder / "log").read_text().count(f"/blobs/{digest} HTTP")
