"""One local cluster: brought up, used and taken down."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from localcluster import (
    fakenodes,
    faults,
    hostpackages,
    kubeconfig,
    realnode,
    registry,
    state,
    toolchain,
)
from localcluster.addresses import LOOPBACK, UNUSED_ADVERTISED, Network, free_network, free_port
from localcluster.apiclient import ApiClient, in_parallel
from localcluster.controlplane import ControlPlane, Endpoint
from localcluster.errors import LauncherError
from localcluster.locations import check_cluster_name, clusters_directory, exclusive
from localcluster.nodehandle import RealNode
from localcluster.processes import Process, find_started_for, stop
from localcluster.progress import duration, say

DEFAULT_NAME = "outrider"
DEFAULT_FAKE_NODES = 30


class Cluster:
    """A running local cluster."""

    def __init__(self, known: state.State) -> None:
        self._state = known
        self._client: ApiClient | None = None
        self.name = known.name
        self.directory = known.directory
        self.kubeconfig: Path = known.directory / "kubeconfig"
        self.server_url = f"https://{known.host}:{known.port}"
        self.ca_file: Path = known.directory / "pki" / "ca.crt"
        self.admin_certificate: Path = known.directory / "pki" / "admin.crt"
        self.admin_key: Path = known.directory / "pki" / "admin.key"

    # --- life -------------------------------------------------------------------------------

    @classmethod
    def up(
        cls,
        name: str = DEFAULT_NAME,
        fake_nodes: int = DEFAULT_FAKE_NODES,
        real_nodes: int | str = "auto",
        registry: bool = True,
    ) -> Cluster:
        """Return the cluster of that name, started if it does not run.

        ``real_nodes`` is a number up to 9, or "auto": one where this machine allows it. A cluster that
        runs already is taken as it is and gets the fake nodes that it lacks.
        """
        check_cluster_name(name)
        if fake_nodes < 0:
            raise LauncherError("the number of fake nodes cannot be negative")
        count = _real_node_count(real_nodes)
        with _lock(name):
            known = state.load(name)
            if known is not None and known.healthy():
                cluster = cls(known)
                cluster._check_asked(real_nodes, count, registry)
                say(f"cluster {name!r} is running already")
                missing = fake_nodes - len(cluster.fake_nodes)
                if missing > 0:
                    cluster.add_fake_nodes(missing)
                return cluster
            if known is not None or (clusters_directory() / name).exists():
                say(f"removing what is left of an earlier cluster {name!r}")
                _remove(name, known)
            fresh = state.State(name)
            try:
                return _start(fresh, fake_nodes, count, registry)
            except BaseException:
                say("not started; cleaning up")
                keep = _keep_logs(fresh)
                _remove(name, fresh)
                say(f"the logs are kept in {keep}")
                raise

    @classmethod
    def attach(cls, name: str = DEFAULT_NAME) -> Cluster:
        """Return a cluster that runs already, or raise."""
        known = state.load(check_cluster_name(name))
        if known is None:
            raise LauncherError(f"there is no cluster {name!r}; start it with: up --name {name}")
        if not known.healthy():
            dead = [one.name for one in known.processes.values() if not one.alive()]
            raise LauncherError(
                f"cluster {name!r} is broken ({', '.join(dead) or 'never completed'}); "
                f"start it anew with: up --name {name}"
            )
        return cls(known)

    def down(self) -> None:
        """End everything that belongs to this cluster and delete its data."""
        remove(self.name)

    # --- nodes ------------------------------------------------------------------------------

    @property
    def real_nodes(self) -> list[str]:
        """Names of the nodes with a real kubelet."""
        return list(self._state.real_nodes)

    def real_node(self, name: str) -> RealNode:
        """One of them, to work on it."""
        if name not in self._state.real_nodes:
            raise LauncherError(
                f"{name} is no real node of cluster {self.name!r}: {', '.join(self.real_nodes) or 'none'}"
            )
        return RealNode(self._state, name)

    @property
    def fake_nodes(self) -> list[str]:
        """Names of the fake nodes there are now."""
        return fakenodes.names(self.client())

    def add_fake_nodes(
        self,
        which: int | Sequence[str],
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        addresses: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> list[str]:
        """Add so many fake nodes, or those of the given names; return the names added.

        `addresses` are those of some of them by name: pods in the node's own network have the same.
        """
        client = self.client()
        present = set(fakenodes.names(client))
        if isinstance(which, int):
            free = (fakenodes.fake_name(i) for i in range(1, which + len(present) + 1))
            added = [name for name in free if name not in present][:which]
        else:
            added = [name for name in which if name not in present]
        started = time.monotonic()
        nodes = []
        for offset, name in enumerate(added):
            digits = name.rpartition("-")[2]
            index = int(digits) if digits.isdigit() else 10_000 + len(present) + offset
            nodes.append(fakenodes.node_object(name, index, labels, annotations, (addresses or {}).get(name)))
        fakenodes.create(client, nodes)
        if wait:
            self.wait_for_fake_nodes()
            say(f"{len(added)} fake nodes ready after {duration(time.monotonic() - started)}")
        return added

    def wait_for_fake_nodes(self, seconds: float = 180) -> None:
        """Wait until every fake node is Ready and can be scheduled to."""
        client = self.client()
        deadline = time.monotonic() + seconds
        while unready := fakenodes.unready(client):
            if time.monotonic() > deadline:
                raise LauncherError(
                    f"{len(unready)} fake nodes are not ready after {seconds:.0f} s, "
                    f"for example {unready[0]}; see {self.directory / 'logs' / 'kwok.log'}"
                )
            time.sleep(0.3)

    def scale_fake_nodes(self, count: int) -> None:
        """Add or remove fake nodes until there are ``count``."""
        present = self.fake_nodes
        if count > len(present):
            self.add_fake_nodes(count - len(present))
        else:
            in_parallel(self.remove_node, present[count:])

    def remove_node(self, name: str) -> None:
        """Delete a Node object, as the cloud does with a machine that is gone."""
        self.client().delete(f"{fakenodes.NODES}/{name}")

    def inject(
        self,
        behaviour: str,
        *,
        nodes: Sequence[str] | None = None,
        pod_labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
        existing: bool = False,
    ) -> faults.Fault:
        """Make fake nodes, or pods on them, fail from now on; ``remove()`` of the result heals.

        Pods are chosen by node, labels and namespace, all of which must fit. Pods that run
        already are left alone until they change, unless ``existing``.
        """
        return faults.inject(
            self.client(),
            behaviour,
            nodes=nodes,
            pod_labels=pod_labels,
            namespace=namespace,
            existing=existing,
        )

    def heal(self) -> int:
        """Remove all faults injected so far; return how many there were."""
        return faults.heal_all(self.client())

    # --- access -----------------------------------------------------------------------------

    def client(self) -> ApiClient:
        """A small client with the administrator's rights."""
        if self._client is None:
            self._client = _control_plane(self._state, {}).client()
        return self._client

    @property
    def kubectl(self) -> Path:
        """The kubectl of the cluster's version."""
        return toolchain.tool("kubectl")

    def kubectl_run(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 - as subprocess.run names it
        check: bool = True,
    ) -> str:
        """Run kubectl as administrator and return its stdout; a failure raises with its stderr."""
        result = subprocess.run(
            [str(self.kubectl), *arguments],
            env=os.environ | {"KUBECONFIG": str(self.kubeconfig)},
            input=input,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and result.returncode != 0:
            raise LauncherError(f"kubectl {' '.join(arguments)} failed: {result.stderr.strip()}")
        return result.stdout

    def cpu_seconds(self) -> dict[str, float]:
        """The processor time that each of its processes has used so far."""
        return {name: process.cpu_seconds() for name, process in self._state.processes.items()}

    def metrics_text(self) -> str:
        """The API server's own metrics."""
        return self.client().raw("GET", "/metrics")

    def kubeconfig_for_service_account(self, namespace: str, name: str, seconds: int = 86_400) -> Path:
        """A kubeconfig with a fresh token of that ServiceAccount and no other right."""
        answer = self.client().create(
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": seconds},
            },
        )
        path = self.directory / "kubeconfigs" / f"serviceaccount-{namespace}-{name}.kubeconfig"
        token = answer["status"]["token"]
        kubeconfig.write(path, kubeconfig.with_token(self.name, self.server_url, self.ca_file, token, namespace))
        return path

    # --- registry and images ----------------------------------------------------------------

    @property
    def has_registry(self) -> bool:
        """Whether it was started with a registry."""
        return self._state.registry_port is not None

    @property
    def registry(self) -> str:
        """host:port of the registry, plain HTTP, for processes here and pods on real nodes."""
        if self._state.registry_port is None:
            raise LauncherError(f"cluster {self.name!r} was started without a registry")
        return f"{self._state.host}:{self._state.registry_port}"

    def stop_registry(self) -> None:
        """Kill the registry at once, as in a crash; its data stays."""
        process = self._state.processes.get("registry")
        if process is not None:
            stop([process], grace=0)

    def start_registry(self) -> None:
        """Start the registry again with the same address and data."""
        host, _, port = self.registry.partition(":")
        process = self._state.processes.get("registry")
        if process is None or not process.alive():
            self._state.record(_start_registry(self._state, host, int(port)))

    def load_image(self, archive: Path) -> None:
        """Import an OCI or docker archive into every real node."""
        for name in self.real_nodes:
            realnode.load_image(self._state, name, archive)

    def _check_asked(self, real_nodes: int | str, count: int, registry: bool) -> None:
        lacks = []
        if real_nodes != "auto" and count > len(self._state.real_nodes):
            lacks.append(f"{count} real nodes (it has {len(self._state.real_nodes)})")
        if registry and self._state.registry_port is None:
            lacks.append("a registry")
        if lacks:
            raise LauncherError(
                f"cluster {self.name!r} runs, but without {' and '.join(lacks)}; "
                f"take it down first: down --name {self.name}"
            )


def remove(name: str) -> bool:
    """End and delete the cluster of that name, whatever state it is in; say if there was one."""
    check_cluster_name(name)
    with _lock(name):
        known = state.load(name)
        if known is None and not (clusters_directory() / name).exists():
            return False
        _remove(name, known)
    return True


def build(real_nodes: int | str = "auto") -> None:
    """Build and install beforehand what `Cluster.up` and the tests need: on a fresh machine that takes minutes."""
    toolchain.ensure(_needed_tools(_real_node_count(real_nodes), with_registry=True) + toolchain.SIGNING_TOOLS)


def _needed_tools(real: int, *, with_registry: bool) -> tuple[str, ...]:
    return (
        toolchain.CONTROL_PLANE_TOOLS
        + (toolchain.REGISTRY_TOOLS if with_registry else ())
        + (toolchain.REAL_NODE_TOOLS if real else ())
    )


def _lock(name: str) -> AbstractContextManager[None]:
    return exclusive(clusters_directory() / f".{name}.lock", f"it works on cluster {name!r}")


def _start(known: state.State, fake: int, real: int, with_registry: bool) -> Cluster:
    started = time.monotonic()
    tools = toolchain.ensure(_needed_tools(real, with_registry=with_registry))
    building = time.monotonic() - started

    with exclusive(clusters_directory() / ".addresses.lock", "it chooses addresses"):
        _choose_addresses(known, real, with_registry)
        known.save()
    if real:
        realnode.prepare_network(known)
    plane = _control_plane(known, tools)
    plane.start()
    say(f"control plane ready at {plane.endpoint.url}")
    if known.registry_port is not None:
        known.record(_start_registry(known, known.host, known.registry_port))
        say(f"registry ready at {known.host}:{known.registry_port} (plain HTTP)")
    for index in range(1, real + 1):
        realnode.start(known, index, plane, tools)
    client = plane.client()
    fakenodes.install_stages(client)
    kwok = plane.kubeconfig_for("kwok", "kwok", "system:masters")
    fakenodes.start_kwok(known.directory, tools["kwok"], kwok, known.record)
    cluster = Cluster(known)
    kubeconfig.write(
        cluster.kubeconfig,
        kubeconfig.with_certificate(f"outrider-{known.name}", cluster.server_url, cluster.ca_file, plane.admin),
    )
    if fake:
        cluster.add_fake_nodes(fake)
    for name in known.real_nodes:
        realnode.wait_until_ready(known, name, client)
    known.complete = True
    known.save()
    seconds = time.monotonic() - started - building
    say(f"cluster {known.name!r} is up after {duration(seconds)}")
    return cluster


def _choose_addresses(known: state.State, real: int, with_registry: bool) -> None:
    others = [other for name in state.all_names() if (other := state.load(name)) is not None]
    ports = {port for other in others for port in (other.port, other.registry_port) if port}
    if real:
        network = free_network({other.network for other in others if other.network is not None})
        known.network = network.second
        known.host = known.advertised = network.gateway
        known.services = network.services
        known.kubernetes_service = network.kubernetes_service
    else:
        network = Network(254)
        known.host, known.advertised = LOOPBACK, UNUSED_ADVERTISED
        known.services = network.services
        known.kubernetes_service = network.kubernetes_service
    # The bridge's address does not exist yet, so its ports are probed where others would sit.
    probe = LOOPBACK
    known.port = free_port(probe, ports)
    if with_registry:
        known.registry_port = free_port(probe, {*ports, known.port})


def _start_registry(known: state.State, host: str, port: int) -> Process:
    binary = toolchain.tool("registry")
    return registry.start(known.directory / "registry", binary, host, port)


def _control_plane(known: state.State, tools: dict[str, Path]) -> ControlPlane:
    endpoint = Endpoint(
        cluster=f"outrider-{known.name}",
        host=known.host,
        port=known.port,
        advertised=known.advertised,
        services=known.services,
        kubernetes_service=known.kubernetes_service,
    )
    return ControlPlane(known.directory, endpoint, tools, known.record)


def allowed_real_nodes(wanted: int) -> int:
    """Return how many real nodes there can be here: so many, or none, and then it is said why."""
    problem = realnode.obstacle()
    if problem is None:
        try:
            hostpackages.ensure(hostpackages.REAL_NODES)
        except LauncherError as error:
            problem = str(error)
    if problem is not None:
        say(f"no real node, only fake ones: {problem}")
        return 0
    return wanted


def _real_node_count(asked: int | str) -> int:
    if asked == "auto":
        return allowed_real_nodes(1)
    try:
        count = int(asked)
    except ValueError:
        count = -1
    if not 0 <= count <= realnode.MOST:
        raise LauncherError(f"real nodes: 0 to {realnode.MOST}, or auto, not {asked!r}")
    if count:
        problem = realnode.obstacle()
        if problem is not None:
            raise LauncherError(f"real nodes are not possible here: {problem}")
        hostpackages.ensure(hostpackages.REAL_NODES)
    return count


def _remove(name: str, known: state.State | None) -> None:
    directory = clusters_directory() / name
    processes = list(known.processes.values()) if known is not None else []
    order = {"etcd": 2, "apiserver": 1}
    processes.sort(key=lambda process: order.get(process.name, 0))
    # Clients first and etcd last: nobody spends the last seconds on calling for a dead server.
    for rank in (0, 1, 2):
        stop([one for one in processes if order.get(one.name, 0) == rank], grace=4)
    stop(find_started_for(directory), grace=1)
    if known is not None:
        realnode.remove_all(known)
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        raise LauncherError(f"could not delete {directory}; does it belong to another user?")


def _keep_logs(known: state.State) -> Path:
    kept = clusters_directory().parent / "failed-start-logs" / known.name
    shutil.rmtree(kept, ignore_errors=True)
    logs = known.directory / "logs"
    if logs.is_dir():
        shutil.copytree(logs, kept)
    return kept
