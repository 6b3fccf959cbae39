"""Builds the binaries of a Kubernetes cluster from Go modules and keeps them in the cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from localcluster.errors import LauncherError
from localcluster.locations import cache_directory, exclusive
from localcluster.progress import duration, say, ticking

_MODULES = Path(__file__).parent / "tools"

KUBERNETES_VERSION = "v1.37.2"


@dataclass(frozen=True)
class Tool:
    """One binary: the Go package it is built from, and how long that takes when cold."""

    name: str
    package: str
    # Seconds on two cores with an empty Go build cache, to tell a newcomer what to expect.
    expected: int


@dataclass(frozen=True)
class Family:
    """Tools that share one Go module, because their dependencies agree with each other."""

    name: str
    tools: tuple[Tool, ...]
    ldflags: str = "-s -w"
    tags: str = ""

    @property
    def module(self) -> Path:
        """The folder with this family's ``go.mod``."""
        return _MODULES / self.name

    def cache(self) -> Path:
        """Where this family's binaries lie; another version is another folder."""
        digest = hashlib.sha256()
        for part in ("go.mod", "go.sum"):
            digest.update((self.module / part).read_bytes())
        digest.update(f"{self.ldflags}\0{self.tags}\0{platform.machine()}".encode())
        return cache_directory() / "tools" / f"{self.name}-{digest.hexdigest()[:16]}"


def _kubernetes_ldflags() -> str:
    # Without these, nodes and the API server report v0.0.0-master.
    package = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    return (
        f"-s -w -X {package}.gitVersion={KUBERNETES_VERSION} "
        f"-X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    )


KUBERNETES = Family(
    "kubernetes",
    (
        Tool("etcd", "go.etcd.io/etcd/server/v3", 55),
        Tool("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", 250),
        Tool("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", 70),
        Tool("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", 10),
        Tool("kubectl", "k8s.io/kubernetes/cmd/kubectl", 30),
        Tool("kwok", "sigs.k8s.io/kwok/cmd/kwok", 10),
        Tool("kubelet", "k8s.io/kubernetes/cmd/kubelet", 20),
        Tool("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", 10),
    ),
    ldflags=_kubernetes_ldflags(),
)
_CONTAINERD = "github.com/containerd/containerd/v2"
CONTAINERD = Family(
    "containerd",
    (
        Tool("containerd", f"{_CONTAINERD}/cmd/containerd", 45),
        Tool("containerd-shim-runc-v2", f"{_CONTAINERD}/cmd/containerd-shim-runc-v2", 5),
        Tool("ctr", f"{_CONTAINERD}/cmd/ctr", 5),
    ),
    tags="no_btrfs no_zfs no_devmapper",
)
REGISTRY = Family(
    "registry",
    (Tool("registry", "github.com/distribution/distribution/v3/cmd/registry", 60),),
)
HELM = Family("helm", (Tool("helm", "helm.sh/helm/v4/cmd/helm", 120),))
# What people publish and sign with: the tests compare our own code with these.
COSIGN = Family("cosign", (Tool("cosign", "github.com/sigstore/cosign/v3/cmd/cosign", 130),))
ORAS = Family("oras", (Tool("oras", "oras.land/oras/cmd/oras", 10),))
CRANE = Family("crane", (Tool("crane", "github.com/google/go-containerregistry/cmd/crane", 10),))
# The registry before OCI 1.1, still widely run: it knows neither referrers nor `subject`. It has no go.mod, so ours
# pins what its vendor.conf pinned, as far as that is still to be had.
REGISTRY_2 = Family("registry2", (Tool("registry-2.8", "github.com/docker/distribution/cmd/registry", 20),))
# A registry that has the Referrers API, which CNCF distribution does not.
OLAREG = Family("olareg", (Tool("olareg", "github.com/olareg/olareg/cmd/olareg", 5),))

FAMILIES = (KUBERNETES, CONTAINERD, REGISTRY, HELM, COSIGN, ORAS, CRANE, REGISTRY_2, OLAREG)

CONTROL_PLANE_TOOLS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kwok",
)
REAL_NODE_TOOLS = ("kubelet", "kube-proxy", "containerd", "containerd-shim-runc-v2", "ctr")
REGISTRY_TOOLS = ("registry",)
SIGNING_TOOLS = ("cosign", "oras", "crane", "registry-2.8", "olareg")


def tool_names() -> list[str]:
    """Every tool that can be asked for."""
    return [tool.name for family in FAMILIES for tool in family.tools]


def _find(name: str) -> tuple[Family, Tool]:
    for family in FAMILIES:
        for tool in family.tools:
            if tool.name == name:
                return family, tool
    raise LauncherError(f"no such tool: {name} (there are: {', '.join(tool_names())})")


def missing(names: tuple[str, ...]) -> list[str]:
    """Which of the named tools would have to be built first."""
    return [name for name in names if not (_find(name)[0].cache() / name).exists()]


def ensure(names: tuple[str, ...]) -> dict[str, Path]:
    """Return the path of each named tool, building first what is not in the cache."""
    wanted = [(name, *_find(name)) for name in names]
    paths = {name: family.cache() / name for name, family, _ in wanted}
    if all(path.exists() for path in paths.values()):
        return paths
    with exclusive(cache_directory() / "tools" / ".lock", "it builds the cluster's binaries"):
        missing = [item for item in wanted if not paths[item[0]].exists()]
        _build(missing)
    return paths


def tool(name: str) -> Path:
    """Return the path of one tool, building it first if needed."""
    return ensure((name,))[name]


def _build(missing: list[tuple[str, Family, Tool]]) -> None:
    if not missing:
        return
    go = _go()
    expected = sum(tool.expected for _, _, tool in missing)
    say(
        f"building {len(missing)} binaries once: {', '.join(name for name, _, _ in missing)} "
        f"(about {duration(expected)} on two cores, cached afterwards)"
    )
    started = time.monotonic()
    for family in dict.fromkeys(family for _, family, _ in missing):
        with ticking(f"{family.name}: fetching Go modules"):
            _run_go(go, ["mod", "download"], family)
    for index, (name, family, tool) in enumerate(missing, start=1):
        elapsed = duration(time.monotonic() - started)
        with ticking(f"[{index}/{len(missing)}] building {name} (about {duration(tool.expected)}; {elapsed} so far)"):
            _build_one(go, family, tool)
    say(f"built in {duration(time.monotonic() - started)}, kept in {cache_directory() / 'tools'}")


def _build_one(go: str, family: Family, tool: Tool) -> None:
    directory = family.cache()
    directory.mkdir(parents=True, exist_ok=True)
    # Built beside its place and renamed into it: a killed build leaves no half binary there.
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as scratch:
        output = Path(scratch) / tool.name
        arguments = ["build", "-trimpath", "-buildvcs=false", "-ldflags", family.ldflags]
        if family.tags:
            arguments += ["-tags", family.tags]
        _run_go(go, [*arguments, "-o", str(output), tool.package], family)
        output.rename(directory / tool.name)


def _run_go(go: str, arguments: list[str], family: Family) -> None:
    # The user's own GOFLAGS and workspaces would build something other than go.sum says.
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    result = subprocess.run(
        [go, *arguments],
        cwd=family.module,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        tail = "\n".join(result.stdout.splitlines()[-20:])
        raise LauncherError(f"go {arguments[0]} failed for {family.name}:\n{tail}")


def _go() -> str:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if go is None:
        raise LauncherError(
            "the local cluster is built from source and needs Go 1.26 or newer on PATH "
            "(https://go.dev/dl); or set KUBECONFIG to use a cluster of your own"
        )
    return go
