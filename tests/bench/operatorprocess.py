"""The operator as a process here, with the rights and by the code path that it has in its pod."""

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from adapters.signing import Signer
from localcluster import Cluster
from localcluster.processes import cpu_seconds
from outrider.api import names

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "outrider-system"
ACCOUNT = "outrider"

_PASSES = r'^outrider_reconcile_total{kind="%s".*} (\S+)$'
_STEPS = r"^outrider_version_steps_total{.*} (\S+)$"
_LEADER = r"^outrider_leader (\S+)$"

# In a pod the kubelet puts the token where this points to.
_PROGRAM = """
import sys
from pathlib import Path
from outrider.adapters import kube
kube._SERVICE_ACCOUNT = Path(sys.argv.pop(1))
from outrider.__main__ import main
main()
"""


class OperatorProcess:
    """A running operator; `settings` are those of its variables that are otherwise than usual here."""

    def __init__(self, cluster: Cluster, folder: Path, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _put_account(cluster, folder)
        address = urlsplit(cluster.server_url)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
        environment |= {
            "PYTHONPATH": str(ROOT / "operator"),
            "KUBERNETES_SERVICE_HOST": address.hostname or "",
            "KUBERNETES_SERVICE_PORT": str(address.port),
            "OUTRIDER_REGISTRY": cluster.registry,
            "OUTRIDER_REGISTRY_PLAIN_HTTP": "true",
            # The files are served on this machine, where no source may be otherwise.
            "OUTRIDER_ALLOWED_SOURCE_ADDRESSES": "127.0.0.0/8",
            "OUTRIDER_LISTEN_HOST": "127.0.0.1",
            "OUTRIDER_LISTEN_PORT": str(self._port),
            "OUTRIDER_POD_NAME": "outrider-bench",
            **settings,
        }
        self.log = folder / "operator.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(folder), "run"], env=environment, stdout=log, stderr=log
            )
        self.pid = self._process.pid

    def stop(self) -> None:
        """End it as a kubelet does."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()
        self._process.wait()

    def check(self) -> None:
        """Raise if it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the operator ended; the end of its log:\n{self.log.read_text()[-3000:]}")

    @property
    def cpu_seconds(self) -> float:
        """Return the CPU time that it has used so far."""
        return cpu_seconds(self.pid)

    @property
    def peak_mib(self) -> float:
        """Return the largest resident memory that it ever had."""
        match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(match[1]) / 1024 if match else 0.0

    @property
    def passes(self) -> int:
        """Return how many passes over Rollouts it has made."""
        return self.passes_over("Rollout")

    def passes_over(self, kind: str) -> int:
        """Return how many passes over objects of a kind it has made."""
        return self._metric(_PASSES % kind)

    @property
    def steps(self) -> int:
        """Return how many steps of versions it has taken."""
        return self._metric(_STEPS)

    @property
    def is_leading(self) -> bool:
        """Tell whether it acts."""
        return self._metric(_LEADER) > 0

    def _metric(self, pattern: str) -> int:
        """Return the sum of the metrics whose lines match."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(int(float(n)) for n in re.findall(pattern, text, re.MULTILINE))


def install_outrider(cluster: Cluster, folder: Path) -> Signer:
    """Install Outrider without its Deployment, and a key to trust; return who signs with that."""
    cluster.kubectl_run("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "install.yaml"))
    cluster.kubectl_run("scale", "-n", NAMESPACE, "deployment/outrider", "--replicas=0")
    crds = [f"crd/{plural}.outrider.dev" for plural in ("componentversions", "rollouts", "rolloutbatches")]
    cluster.kubectl_run("wait", "--for=condition=Established", "--timeout=60s", *crds)
    signer = Signer(folder, "key", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    cluster.client().apply(
        f"/api/v1/namespaces/{NAMESPACE}/secrets/bench-key",
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "bench-key", "labels": {names.LABEL_TRUST_KEY: "true"}},
            "data": {"key.pub": base64.b64encode(signer.public.read_bytes()).decode()},
        },
    )
    return signer


def _put_account(cluster: Cluster, folder: Path) -> None:
    """Write what a kubelet mounts for the operator's ServiceAccount."""
    answer = cluster.client().create(
        f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ACCOUNT}/token",
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 86_400},
        },
    )
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(answer["status"]["token"])
    (folder / "ca.crt").write_bytes(cluster.ca_file.read_bytes())
    (folder / "namespace").write_text(NAMESPACE)
