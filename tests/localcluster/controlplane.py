"""etcd, API server, controller manager and scheduler of one cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localcluster import kubeconfig
from localcluster.addresses import LOOPBACK, free_port
from localcluster.apiclient import ApiClient, ApiError
from localcluster.errors import LauncherError
from localcluster.pki import Authority, KeyPair
from localcluster.processes import Process, spawn
from localcluster.progress import say

# The API server is up in 5 to 8 seconds; the rest is for machines that are busy.
_READY_SECONDS = 120.0


@dataclass(frozen=True)
class Endpoint:
    """Where the API server listens and what it tells pods about itself."""

    cluster: str
    host: str
    port: int
    advertised: str
    services: str
    kubernetes_service: str

    @property
    def url(self) -> str:
        """For kubeconfigs."""
        return f"https://{self.host}:{self.port}"


class ControlPlane:
    """Starts the control plane; every started process is handed to ``on_start`` at once."""

    def __init__(
        self,
        directory: Path,
        endpoint: Endpoint,
        tools: dict[str, Path],
        on_start: Callable[[Process], None],
    ) -> None:
        self.directory = directory
        self.endpoint = endpoint
        self.authority = Authority(directory / "pki")
        self._tools = tools
        self._on_start = on_start
        self._logs = directory / "logs"
        self._ports: set[int] = {endpoint.port}

    @property
    def admin(self) -> KeyPair:
        """Client certificate of the cluster's administrator."""
        pki = self.authority.directory
        return KeyPair(pki / "admin.crt", pki / "admin.key")

    def client(self) -> ApiClient:
        """A client with the administrator's rights."""
        return ApiClient(self.endpoint.url, self.authority.certificate_file, self.admin)

    def start(self) -> None:
        """Make the certificates, start the four processes and wait until the API answers."""
        self.authority.create()
        self.authority.issue("admin", "localcluster-admin", organizations=["system:masters"])
        etcd = self._start_etcd()
        api_server = self._start_api_server(etcd)
        self._wait_for(api_server, "/readyz")
        for name in ("controller-manager", "scheduler"):
            self._start_controller(name)

    def kubeconfig_for(self, file_name: str, common_name: str, *organizations: str) -> Path:
        """Issue a client certificate and write a kubeconfig with it."""
        pair = self.authority.issue(file_name, common_name, organizations=organizations)
        path = self.directory / "kubeconfigs" / f"{file_name}.kubeconfig"
        kubeconfig.write(
            path,
            kubeconfig.with_certificate(
                self.endpoint.cluster, self.endpoint.url, self.authority.certificate_file, pair
            ),
        )
        return path

    def _port(self) -> int:
        port = free_port(LOOPBACK, self._ports)
        self._ports.add(port)
        return port

    def _spawn(self, name: str, arguments: list[str], port: int) -> Process:
        binary = self._tools["etcd" if name == "etcd" else f"kube-{name}"]
        process = spawn(
            name,
            [binary, *arguments],
            self._logs / f"{name}.log",
            cluster=self.directory,
            port=port,
        )
        self._on_start(process)
        return process

    def _start_etcd(self) -> str:
        client, peer = self._port(), self._port()
        client_url, peer_url = f"http://{LOOPBACK}:{client}", f"http://{LOOPBACK}:{peer}"
        self._spawn(
            "etcd",
            [
                f"--data-dir={self.directory / 'etcd'}",
                "--name=default",
                f"--listen-client-urls={client_url}",
                f"--advertise-client-urls={client_url}",
                f"--listen-peer-urls={peer_url}",
                f"--initial-advertise-peer-urls={peer_url}",
                f"--initial-cluster=default={peer_url}",
                "--quota-backend-bytes=4294967296",
                "--log-level=warn",
                # The data dies with the cluster, so nothing is lost by not waiting for the disk.
                "--unsafe-no-fsync",
            ],
            client,
        )
        return client_url

    def _start_api_server(self, etcd: str) -> Process:
        endpoint, authority = self.endpoint, self.authority
        serving = authority.issue(
            "apiserver",
            "kube-apiserver",
            hosts=[
                *dict.fromkeys([LOOPBACK, endpoint.host, endpoint.advertised, endpoint.kubernetes_service]),
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
            ],
        )
        kubelet = authority.issue(
            "apiserver-kubelet-client",
            "kube-apiserver-kubelet-client",
            organizations=["system:masters"],
        )
        return self._spawn(
            "apiserver",
            [
                f"--etcd-servers={etcd}",
                f"--bind-address={endpoint.host}",
                f"--secure-port={endpoint.port}",
                f"--advertise-address={endpoint.advertised}",
                f"--service-cluster-ip-range={endpoint.services}",
                f"--tls-cert-file={serving.certificate}",
                f"--tls-private-key-file={serving.key}",
                f"--client-ca-file={authority.certificate_file}",
                f"--kubelet-certificate-authority={authority.certificate_file}",
                f"--kubelet-client-certificate={kubelet.certificate}",
                f"--kubelet-client-key={kubelet.key}",
                "--kubelet-preferred-address-types=InternalIP",
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                f"--service-account-key-file={authority.service_account_public}",
                f"--service-account-signing-key-file={authority.service_account_key}",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                "--profiling=false",
            ],
            endpoint.port,
        )

    def _start_controller(self, name: str) -> None:
        config = self.kubeconfig_for(name, f"system:kube-{name}")
        port = self._port()
        arguments = [
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={port}",
            # One of each runs, so nobody has to wait for a lease.
            "--leader-elect=false",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        ]
        if name == "controller-manager":
            arguments += [
                # A busy machine renews the leases of thousands of fake nodes late, now and then not at all: that makes
                # no node unhealthy here.
                "--node-monitor-grace-period=3600s",
                f"--root-ca-file={self.authority.certificate_file}",
                f"--service-account-private-key-file={self.authority.service_account_key}",
                "--use-service-account-credentials=true",
            ]
        self._spawn(name, arguments, port)

    def _wait_for(self, process: Process, path: str) -> None:
        client = self.client()
        deadline = time.monotonic() + _READY_SECONDS
        announced = False
        while time.monotonic() < deadline:
            if not process.alive():
                raise LauncherError(
                    f"{process.name} ended while starting; the end of {process.log}:\n{process.log_tail()}"
                )
            try:
                client.raw("GET", path)
                return
            except (ApiError, OSError):
                time.sleep(0.1)
            if not announced and time.monotonic() > deadline - _READY_SECONDS + 20:
                say("the API server takes longer than usual to get ready …")
                announced = True
        raise LauncherError(f"the API server was not ready within {_READY_SECONDS:.0f} s; its log is {process.log}")
