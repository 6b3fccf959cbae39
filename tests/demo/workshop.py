"""What the author of an agent does: builds versions, signs them, serves them, writes their manifests."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from demo.terminal import Terminal
from localcluster import Cluster, LauncherError, images
from localcluster.addresses import free_port
from localcluster.processes import Process, spawn, stop

ROOT = Path(__file__).resolve().parent.parent.parent
MATERIAL = ROOT / "examples" / "demo"
KEY, PUBLIC_KEY = "signing-key.pem", "signing-key.pub"
AGENT_IMAGE = "localhost/outrider/demo-base:1"
# Fake nodes say that they are of this architecture, whatever this machine is.
_FAKE_ARCHITECTURE = "amd64"


@dataclass(frozen=True)
class Build:
    """One version that the author builds."""

    version: str
    notes: str
    flaw: str = ""
    component: str = "node-agent"


class Workshop:
    """A folder on this machine with the author's key, binaries and manifests, and a web server for the binaries."""

    def __init__(self, directory: Path, terminal: Terminal) -> None:
        self.directory = directory
        self._terminal = terminal
        self._builds: dict[str, Future[None]] = {}
        self._described: dict[str, Build] = {}
        self._pool = ThreadPoolExecutor(1)
        self._base_url = ""
        self._server: Process | None = None
        self.environment = dict(os.environ)
        self.architectures = sorted({_FAKE_ARCHITECTURE, images.architecture()})

    # --- building ---------------------------------------------------------------------------

    def start_building(self, builds: list[Build]) -> None:
        """Compile the versions in the background, one after the other."""
        for build in builds:
            self._described[build.version] = build
            self._builds[build.version] = self._pool.submit(self._compile, build)

    def stop_building(self) -> None:
        """Forget what was not begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def await_build(self, version: str) -> None:
        """Wait until a version is compiled; raises what went wrong."""
        self._builds[version].result()

    def _compile(self, build: Build) -> None:
        go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
        if go is None:
            raise LauncherError("the demo's agent is a small Go program and needs Go on PATH (https://go.dev/dl)")
        flags = f"-s -w -X main.version={build.version} -X main.name={build.component}"
        if build.flaw:
            flags += f" -X 'main.flaw={build.flaw}'"
        for architecture in self.architectures:
            output = self.directory / self.file_name(build.version, architecture)
            command = [go, "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", str(output), "."]
            environment = {"CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": architecture, "GOWORK": "off", "GOFLAGS": ""}
            result = subprocess.run(
                command,
                cwd=MATERIAL / "agent",
                env=os.environ | environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode != 0:
                raise LauncherError(f"the agent {build.version} does not compile:\n{result.stderr[-1500:]}")

    def file_name(self, version: str, architecture: str = "") -> str:
        """Return the name of a version's file; without an architecture, of the one that this machine runs."""
        return f"{self._component(version)}-{version}-{architecture or images.architecture()}"

    def _component(self, version: str) -> str:
        # A version that nobody has built is one of the agent's, made by whoever tampers with files.
        build = self._described.get(version)
        return "node-agent" if build is None else build.component

    # --- signing ----------------------------------------------------------------------------

    def make_key(self, private: str, public: str) -> None:
        """Make a key pair, showing the commands."""
        self.run(f"openssl ecparam -name prime256v1 -genkey -noout -out {private}")
        self.run(f"openssl ec -in {private} -pubout -out {public}")

    def sign(self, version: str, key: str = KEY) -> None:
        """Sign a version's files, showing the first command."""
        for architecture in self.architectures:
            file = self.file_name(version, architecture)
            self.run(
                f"openssl dgst -sha256 -sign {key} -out {file}.sig {file}",
                show=architecture == self.architectures[0],
            )

    def write_version(self, version: str, *, signed_as: str = "", tested: bool = False) -> str:
        """Write the manifest of a version, with the signature of `signed_as` if given; return its file name.

        With `tested` it has to pass a test before it is published.
        """
        testing = Template((MATERIAL / "testing.yaml").read_text()).substitute(IMAGE=AGENT_IMAGE) if tested else ""
        artifacts = []
        component, build = self._component(version), self._described.get(version)
        for architecture in self.architectures:
            file = self.file_name(version, architecture)
            signature = self.directory / f"{self.file_name(signed_as or version, architecture)}.sig"
            artifacts.append(
                f"- platform: {{os: linux, arch: {architecture}}}\n"
                f"  fileName: {component}\n"
                f'  sha256: "{hashlib.sha256((self.directory / file).read_bytes()).hexdigest()}"\n'
                f"  source: {{http: {{url: {self._base_url}/{file}}}}}\n"
                f"  signature: {{inline: {base64.b64encode(signature.read_bytes()).decode()}}}"
            )
        return self.write(
            f"{component}-{version}.yaml",
            "version.yaml",
            COMPONENT=component,
            TYPE="Agent" if component == "node-agent" else "Daemon",
            VERSION=version,
            NOTES="" if build is None else build.notes,
            ARTIFACTS="\n".join(artifacts).replace("\n", "\n    "),
            TESTING=testing[testing.find("testing:") :].replace("\n", "\n  ").rstrip() if testing else "",
        )

    def write(self, name: str, template: str, **values: str) -> str:
        """Fill in one of the demo's manifests; return the file's name."""
        text = Template((MATERIAL / template).read_text()).substitute(values)
        (self.directory / name).write_text(text)
        return name

    # --- serving ----------------------------------------------------------------------------

    def serve(self, cluster: Cluster, python: str) -> str:
        """Start a web server over the folder with the binaries, reachable from the cluster; return its address.

        It ends when the cluster is taken down.
        """
        host = cluster.registry.partition(":")[0]
        port = free_port(host)
        self._server = spawn(
            "files",
            [python, "-m", "http.server", str(port), "--bind", host, "--directory", self.directory],
            cluster.directory / "logs" / "files.log",
            cluster=cluster.directory,
            port=port,
        )
        self._base_url = f"http://{host}:{port}"
        return self._base_url

    def stop_serving(self) -> None:
        """End the web server."""
        if self._server is not None:
            stop([self._server], grace=1)

    # --- in between -------------------------------------------------------------------------

    def stand_between(self, cluster: Cluster, python: str) -> str:
        """Start somebody between the nodes and the registry, who passes everything on; return where he listens."""
        host = cluster.registry.partition(":")[0]
        port = free_port(host)
        spawn(
            "middleman",
            [python, "-m", "localcluster.middleman", cluster.registry, host, str(port), self._orders],
            cluster.directory / "logs" / "middleman.log",
            cluster=cluster.directory,
            port=port,
            environment=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        )
        return f"{host}:{port}"

    @contextlib.contextmanager
    def tampering_with(self, version: str) -> Iterator[int]:
        """Let whoever stands between change some bytes of a version's files, for a while; yields how many."""
        content = (self.directory / self.file_name(version)).read_bytes()
        instead = b" a back door that nobody signed "
        # Where it says its version: those bytes are in no other version's file.
        start = content.index(version.encode()) - len(instead) // 2
        old = content[start : start + len(instead)]
        # In one step: he reads it whenever he likes.
        fresh = self._orders.with_suffix(".new")
        fresh.write_text(f"{old.hex()}\n{instead.hex()}\n")
        fresh.replace(self._orders)
        try:
            yield len(instead)
        finally:
            self._orders.unlink()

    @property
    def _orders(self) -> Path:
        return self.directory / "orders-of-the-middleman"

    # --- commands ---------------------------------------------------------------------------

    def run(self, command: str, *, show: bool = True) -> str:
        """Run a command in the folder exactly as it is shown; return what it printed."""
        if show:
            self._terminal.command(command)
        program, *arguments = shlex.split(command)
        result = subprocess.run(
            [program, *arguments],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise LauncherError(f"{command}\n{result.stderr.strip()}")
        return result.stdout


def fetch_text(url: str, seconds: float = 5) -> str:
    """GET a small text."""
    with urllib.request.urlopen(url, timeout=seconds) as answer:  # noqa: S310 - an address that the demo made itself
        content: Any = answer.read()
    return str(content.decode()).strip()
