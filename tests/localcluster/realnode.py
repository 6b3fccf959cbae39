"""Real nodes: kubelet, containerd and kube-proxy, each node in namespaces of its own.

A node is a process tree under one anchor with its own mount, network, PID, IPC and host name
namespaces. Its root directory is a layer over this machine's, so that what kubelet, containerd
and host-path volumes write stays with the node. When the anchor ends, the kernel ends all of it:
processes, mounts, network interfaces. Only the bridge and empty cgroups are left to remove.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from localcluster import hostpackages, images, state, toolchain
from localcluster.addresses import Network
from localcluster.apiclient import ApiClient, ApiError
from localcluster.controlplane import ControlPlane
from localcluster.errors import LauncherError
from localcluster.fakenodes import KIND_LABEL
from localcluster.processes import Process, spawn
from localcluster.progress import say
from localcluster.state import State

PAUSE_IMAGE = "localhost/outrider/pause:1"
MOST = 9
"""Real nodes of one cluster at most: that many subnets are set aside, and no machine to develop on bears more."""
_READY_SECONDS = 120.0
_CGROUPS = Path("/sys/fs/cgroup")
# kubelet sets these for the whole machine; `down` puts them back.
_KERNEL_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Runs as the first process of the node's namespaces; $1 is the node's directory, $2 the cluster's,
# $3 the cache with the binaries.
_ANCHOR = r"""
set -eu
node=$1 cluster=$2 cache=$3
mount -t tmpfs -o mode=755 tmpfs "$node/layer"
mkdir "$node/layer/upper" "$node/layer/work"
mount -t overlay overlay \
  -o "lowerdir=/,upperdir=$node/layer/upper,workdir=$node/layer/work" "$node/root"
cd "$node/root"
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
for pair in "$cluster:$cluster" "$cache:$cache" "$node/containerd:/var/lib/containerd" \
  "$node/kubelet:/var/lib/kubelet" "$node/pods:/var/log/pods"; do
  mkdir -p ".${pair#*:}"
  mount --bind "${pair%%:*}" ".${pair#*:}"
done
mkdir -p var/lib/cni var/log/containers run/netns
mkdir run/.old
pivot_root . run/.old
cd /
umount -l /run/.old
rmdir /run/.old
# Volumes that ask for mount propagation get it, within this node.
mount --make-rshared /
touch "$node/started"
trap 'exit 0' TERM
# The first process also takes in what others leave behind, or zombies would pile up.
while :; do sleep 86400 & wait $! || :; done
"""


def obstacle() -> str | None:
    """Why real nodes are not possible on this machine, or None."""
    if sys.platform != "linux":
        return "they need Linux"
    if os.geteuid() != 0:
        return "they need root"
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        return "this kernel has no overlayfs"
    unshare = hostpackages.find("unshare")
    if unshare is not None:
        flags = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "true"]
        probe = subprocess.run([unshare, *flags], capture_output=True, text=True, check=False)
        if probe.returncode != 0:
            return f"namespaces are not allowed here ({probe.stderr.strip()})"
    return None


def prepare_network(known: State) -> None:
    """Make the bridge between this machine and the cluster's real nodes."""
    network = _network(known)
    bridge = _bridge(known)
    _ip("link", "add", bridge, "type", "bridge")
    _ip("address", "add", f"{network.gateway}/24", "dev", bridge)
    _ip("link", "set", bridge, "up")


def start(known: State, index: int, plane: ControlPlane, tools: dict[str, Path]) -> None:
    """Start the index-th real node (from 1); it becomes Ready some seconds later."""
    name = f"real-{index}"
    node = _Node(known, index)
    node.prepare(plane)
    known.real_nodes.append(name)
    _remember_kernel_settings(known)
    _make_cgroups(_cgroup(known, name))
    node.start_anchor()
    node.connect()
    node.start_containerd(tools)
    load_image(known, name, _pause_image())
    node.start_kubelet(tools)
    node.start_proxy(tools)


def wait_until_ready(known: State, name: str, client: ApiClient) -> None:
    """Wait until the node is Ready."""
    deadline = time.monotonic() + _READY_SECONDS
    kubelet = known.processes[f"{name}-kubelet"]
    while time.monotonic() < deadline:
        for process in known.processes.values():
            if process.name.startswith(f"{name}-") and not process.alive():
                raise LauncherError(f"{process.name} ended:\n{process.log_tail()}")
        try:
            node = client.get(f"/api/v1/nodes/{name}")
        except ApiError:
            node = {"status": {}}
        conditions = node["status"].get("conditions", [])
        if any(one["type"] == "Ready" and one["status"] == "True" for one in conditions):
            say(f"real node {name} is ready")
            return
        time.sleep(0.3)
    raise LauncherError(f"node {name} was not ready within {_READY_SECONDS:.0f} s; kubelet's log is {kubelet.log}")


def load_image(known: State, name: str, archive: Path) -> None:
    """Import an image archive into the node's containerd."""
    if not archive.is_file():
        raise LauncherError(f"no such image archive: {archive}")
    node = _Node(known, int(name.rpartition("-")[2]))
    ctr = _tool_path("ctr")
    with archive.open("rb") as content:
        result = subprocess.run(
            [*node.enter(), str(ctr), "--namespace=k8s.io", "images", "import", "--local", "-"],
            stdin=content,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode != 0:
        raise LauncherError(f"{name} did not take {archive}: {result.stderr.strip()[-500:]}")


def enter_command(known: State, name: str) -> list[str]:
    """The command prefix that runs a program on the node itself."""
    return _Node(known, int(name.rpartition("-")[2])).enter()


def allow_plain_registry(known: State, name: str, registry: str) -> None:
    """Let a node's containerd speak plain HTTP to a registry."""
    _Node(known, int(name.rpartition("-")[2])).allow_plain_registry(registry)


def root_directory(known: State, name: str) -> Path:
    """Where the node's own file system is seen from outside, as long as the node runs."""
    return Path("/proc") / str(_Node(known, int(name.rpartition("-")[2])).inner_pid()) / "root"


def remove_all(known: State) -> None:
    """Remove what outlives the processes of the real nodes: bridge, cgroups, kernel settings."""
    if known.network is None:
        return
    bridge = _bridge(known)
    if Path(f"/sys/class/net/{bridge}").exists():
        _ip("link", "delete", bridge)
    for name in known.real_nodes:
        _remove_cgroups(_cgroup(known, name))
    others = (state.load(name) for name in state.all_names() if name != known.name)
    if not any(other is not None and other.kernel_settings for other in others):
        for setting, value in known.kernel_settings.items():
            with suppress(OSError):
                (Path("/proc/sys") / setting).write_text(value)


class _Node:
    """One real node: its paths, addresses and processes."""

    def __init__(self, known: State, index: int) -> None:
        self.known = known
        self.index = index
        self.name = f"real-{index}"
        self.directory = known.directory / "nodes" / self.name
        self.network = _network(known)
        self.address = self.network.node_address(index)

    def prepare(self, plane: ControlPlane) -> None:
        """Write certificates and configuration."""
        for part in ("layer", "root", "containerd", "kubelet", "pods", "cni", "certs.d"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        plane.kubeconfig_for(f"{self.name}-kubelet", f"system:node:{self.name}", "system:nodes")
        plane.kubeconfig_for(f"{self.name}-proxy", "system:kube-proxy")
        plane.authority.issue(f"{self.name}-serving", f"system:node:{self.name}", hosts=[self.name, self.address])
        self._write_json("kubelet.json", self._kubelet_configuration(plane))
        self._write_json("proxy.json", self._proxy_configuration())
        self._write_json("cni/10-outrider.conflist", self._cni_configuration())
        (self.directory / "containerd.toml").write_text(self._containerd_configuration())
        # Containers have no name server: nothing here resolves names for them.
        (self.directory / "resolv.conf").write_text("")
        if self.known.registry_port is not None:
            self.allow_plain_registry(f"{self.known.host}:{self.known.registry_port}")

    def allow_plain_registry(self, registry: str) -> None:
        """Let containerd speak plain HTTP to a registry; it looks here at every pull."""
        hosts = self.directory / "certs.d" / registry / "hosts.toml"
        hosts.parent.mkdir(parents=True, exist_ok=True)
        hosts.write_text(
            f'server = "http://{registry}"\n\n[host."http://{registry}"]\ncapabilities = ["pull", "resolve", "push"]\n'
        )

    def start_anchor(self) -> None:
        """Make the namespaces and their root directory."""
        started = self.directory / "started"
        started.unlink(missing_ok=True)
        unshare = hostpackages.required("unshare")
        process = self._spawn(
            "anchor",
            [
                unshare,
                *("--mount", "--net", "--pid", "--ipc", "--uts", "--propagation=private"),
                # If this parent is killed, however, the first process inside is too, and with
                # it everything in its PID namespace.
                *("--fork", "--kill-child=SIGKILL"),
                *("/bin/sh", "-c", _ANCHOR, "anchor"),
                *(self.directory, self.known.directory, _tools_directory()),
            ],
        )
        deadline = time.monotonic() + 20
        while not started.exists():
            if not process.alive() or time.monotonic() > deadline:
                raise LauncherError(f"the namespaces of {self.name} could not be made:\n{process.log_tail()}")
            time.sleep(0.02)
        _run([*self.enter(), "hostname", self.name])

    def connect(self) -> None:
        """Join the node to the bridge and make its pods reachable from this machine."""
        inside = self.inner_pid()
        outer = f"{_bridge(self.known)}n{self.index}"
        _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", str(inside))
        _ip("link", "set", outer, "master", _bridge(self.known), "up")
        ip = [*self.enter(), "ip"]
        _run([*ip, "link", "set", "lo", "up"])
        _run([*ip, "address", "add", f"{self.address}/24", "dev", "eth0"])
        _run([*ip, "link", "set", "eth0", "up"])
        _run([*ip, "route", "add", "default", "via", self.network.gateway])
        # To the pods of all nodes that there may be: those that come later need no change here.
        routes = [
            f"ip route add {self.network.pods(other)} via {self.network.node_address(other)}"
            for other in range(1, MOST + 1)
            if other != self.index
        ]
        forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        _run([*self.enter(), "/bin/sh", "-e", "-c", "\n".join([*routes, forward])])
        _ip("route", "add", self.network.pods(self.index), "via", self.address)

    def start_containerd(self, tools: dict[str, Path]) -> None:
        """Start containerd and wait for its socket."""
        process = self._spawn(
            "containerd",
            [*self.enter(), tools["containerd"], f"--config={self.directory / 'containerd.toml'}"],
        )
        deadline = time.monotonic() + 30
        check = [*self.enter(), str(tools["ctr"]), "version"]
        while subprocess.run(check, capture_output=True, check=False).returncode != 0:
            if not process.alive() or time.monotonic() > deadline:
                raise LauncherError(f"containerd of {self.name} did not start:\n{process.log_tail()}")
            time.sleep(0.1)

    def start_kubelet(self, tools: dict[str, Path]) -> None:
        """Start kubelet, which registers the node."""
        labels = {
            KIND_LABEL: "real",
            "topology.kubernetes.io/region": "local",
            "topology.kubernetes.io/zone": f"zone-{'abcdefghi'[self.index - 1]}",
        }
        self._spawn(
            "kubelet",
            [
                *self.enter(),
                tools["kubelet"],
                f"--config={self.directory / 'kubelet.json'}",
                f"--kubeconfig={self._kubeconfig('kubelet')}",
                f"--hostname-override={self.name}",
                f"--node-ip={self.address}",
                "--node-labels=" + ",".join(f"{key}={value}" for key, value in labels.items()),
            ],
            port=10250,
        )

    def start_proxy(self, tools: dict[str, Path]) -> None:
        """Start kube-proxy, which makes ClusterIPs reachable from the node and its pods."""
        configuration = self.directory / "proxy.json"
        self._spawn("proxy", [*self.enter(), tools["kube-proxy"], f"--config={configuration}"])

    def enter(self) -> list[str]:
        """The command prefix that runs a program inside."""
        nsenter = hostpackages.required("nsenter")
        target = f"--target={self.inner_pid()}"
        return [nsenter, target, "--mount", "--uts", "--ipc", "--net", "--pid", "--"]

    def inner_pid(self) -> int:
        """The first process of the node's PID namespace, as seen from outside."""
        anchor = self.known.processes.get(f"{self.name}-anchor")
        if anchor is None or not anchor.alive():
            raise LauncherError(f"node {self.name} does not run")
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError, ValueError):
                    text = (entry / "stat").read_text()
                    if int(text[text.rindex(")") + 2 :].split()[1]) == anchor.pid:
                        return int(entry.name)
        raise LauncherError(f"node {self.name} is starting or ending")

    def _spawn(self, part: str, command: list[str | Path], port: int | None = None) -> Process:
        tools = {path.parent for path in map(Path, command) if path.is_absolute()}
        search = ":".join([*sorted(map(str, tools)), _SEARCH_PATH])
        process = spawn(
            f"{self.name}-{part}",
            command,
            self.known.directory / "logs" / f"{self.name}-{part}.log",
            cluster=self.known.directory,
            port=port,
            environment={"PATH": search, "HOME": "/root"},
        )
        self.known.record(process)
        return process

    def _write_json(self, file: str, document: object) -> None:
        (self.directory / file).write_text(json.dumps(document, indent=2) + "\n")

    def _kubeconfig(self, part: str) -> Path:
        return self.known.directory / "kubeconfigs" / f"{self.name}-{part}.kubeconfig"

    def _kubelet_configuration(self, plane: ControlPlane) -> dict[str, object]:
        pki = plane.authority.directory
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(plane.authority.certificate_file)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(pki / f"{self.name}-serving.crt"),
            "tlsPrivateKeyFile": str(pki / f"{self.name}-serving.key"),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "clusterDomain": "cluster.local",
            "resolvConf": str(self.directory / "resolv.conf"),
            "podLogsDir": "/var/log/pods",
            # ConfigMaps and Secrets that change reach running pods soon, not within minutes.
            "syncFrequency": "2s",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{_cgroup(self.known, self.name)}",
            # Developers' machines have swap, old cgroups and fewer rights than a node has.
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": False,
            "oomScoreAdj": 0,
            # A full disk here is the developer's business; and an image that was loaded by hand
            # could not be pulled again.
            "evictionHard": {"nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
        }

    def _proxy_configuration(self) -> dict[str, object]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "bindAddress": self.address,
            "clientConnection": {"kubeconfig": str(self._kubeconfig("proxy"))},
            "clusterCIDR": str(self.network.whole),
            "hostnameOverride": self.name,
            "mode": "nftables",
            # These belong to the whole machine, not to the node's network namespace.
            "conntrack": {
                "maxPerCore": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }

    def _cni_configuration(self) -> dict[str, object]:
        return {
            "cniVersion": "1.0.0",
            "name": "outrider",
            "plugins": [
                {
                    # Routed, not bridged: what a pod sends to a Service on its own node must
                    # come back through the node, where the address is translated.
                    "type": "ptp",
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": self.network.pods(self.index)}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                        "dataDir": "/var/lib/cni/networks",
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }

    def _containerd_configuration(self) -> str:
        plugins = Path(hostpackages.required("ptp")).parent
        snapshotter = "native" if _filesystem(self.directory) == "overlay" else "overlayfs"
        return f"""version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0

[plugins."io.containerd.cri.v1.images"]
snapshotter = "{snapshotter}"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.images".registry]
config_path = "{self.directory / "certs.d"}"

[plugins."io.containerd.cri.v1.runtime"]
# Without the right to lower it for all, runc fails when asked for a lower OOM score.
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{plugins}"]
conf_dir = "{self.directory / "cni"}"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{hostpackages.required("runc")}"
SystemdCgroup = false
"""


def _pause_image() -> Path:
    """What every pod's first container runs: nothing, until it is told to end."""
    script = "#!/bin/sh\ntrap 'exit 0' TERM INT\nwhile :; do sleep 86400 & wait $!; done\n"
    return images.build_busybox_image(PAUSE_IMAGE, files={"pause": script}, entrypoint=["/pause"])


def _network(known: State) -> Network:
    if known.network is None:
        raise LauncherError(f"cluster {known.name!r} has no real nodes")
    return Network(known.network)


def _bridge(known: State) -> str:
    return f"outr{known.network}"


def _cgroup(known: State, name: str) -> str:
    # By network, not by cluster: that is unique on this machine, names only within one state folder.
    return f"outrider-{known.network}-{name}"


def _tools_directory() -> Path:
    return _tool_path("ctr").parent.parent


def _tool_path(name: str) -> Path:
    return toolchain.tool(name)


def _filesystem(path: Path) -> str:
    stat = shutil.which("stat") or "stat"
    return (
        subprocess.run([stat, "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=False)
        .stdout.strip()
        .replace("overlayfs", "overlay")
    )


def _remember_kernel_settings(known: State) -> None:
    if known.kernel_settings:
        return
    for name in state.all_names():
        other = state.load(name)
        if other is not None and name != known.name and other.kernel_settings:
            # Already changed for that cluster: what it found is what was there before us all.
            known.kernel_settings = dict(other.kernel_settings)
            known.save()
            return
    for setting in _KERNEL_SETTINGS:
        with suppress(OSError):
            known.kernel_settings[setting] = (Path("/proc/sys") / setting).read_text().strip()
    known.save()


def _cgroup_hierarchies() -> list[Path]:
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [path for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def _make_cgroups(name: str) -> None:
    """Make the cgroup that kubelet puts all of a node's pods in; it insists on finding it."""
    for root in _cgroup_hierarchies():
        top = root / name
        top.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # In the old hierarchy a new cpuset is empty, and nothing can run in it.
            with suppress(OSError):
                (top / setting).write_text((root / setting).read_text())
        for controller in ("cpu", "cpuset", "memory", "pids", "io"):
            for group in (root, top):
                with suppress(OSError):
                    (group / "cgroup.subtree_control").write_text(f"+{controller}")


def _remove_cgroups(name: str) -> None:
    for root in _cgroup_hierarchies():
        top = root / name
        deadline = time.monotonic() + 5
        while top.is_dir():
            for directory, _, _ in os.walk(top, topdown=False):
                with suppress(OSError):
                    Path(directory).rmdir()
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)


def _ip(*arguments: str) -> None:
    _run([hostpackages.required("ip"), *arguments])


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        shown = " ".join(command[command.index("--") + 1 :] if "--" in command else command)
        raise LauncherError(f"{shown} failed: {result.stderr.strip()}")
