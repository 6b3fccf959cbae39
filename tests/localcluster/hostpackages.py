"""Programs of the operating system that real nodes and images need."""

from __future__ import annotations

import os
import shutil
import subprocess

from localcluster.errors import LauncherError
from localcluster.locations import cache_directory, exclusive
from localcluster.progress import ticking

SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/lib/cni"

# What is looked for, and the Debian package that has it.
REAL_NODES = {
    "runc": "runc",
    "busybox": "busybox-static",
    "ptp": "containernetworking-plugins",
    "host-local": "containernetworking-plugins",
    "ip": "iproute2",
    "nft": "nftables",
    "iptables": "iptables",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "pivot_root": "util-linux",
}
IMAGES = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "runc": "runc"}


def find(program: str) -> str | None:
    """Path of a program, looked for also where administrators' programs lie."""
    # The busybox of `busybox` and of `busybox-static` have one path; only static runs anywhere.
    return shutil.which(program, path=SEARCH_PATH)


def required(program: str) -> str:
    """Path of a program that `ensure` was asked for."""
    path = find(program)
    if path is None:
        raise LauncherError(f"{program} is not installed")
    return path


def ensure(programs: dict[str, str]) -> None:
    """Install the packages of missing programs, or raise and say which are missing."""
    missing = sorted({package for name, package in programs.items() if find(name) is None})
    if not missing:
        return
    apt = shutil.which("apt-get")
    if os.geteuid() != 0 or apt is None:
        raise LauncherError(
            f"missing Debian packages: {' '.join(missing)} (installed by itself only as root where apt-get exists)"
        )
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = [apt, "install", "-y", "-qq", "--no-install-recommends", *missing]
    with (
        exclusive(cache_directory() / "packages.lock", "it installs Debian packages"),
        ticking(f"installing Debian packages: {' '.join(missing)}"),
    ):
        result = _run(install, environment)
        if result.returncode != 0:
            # Most often the lists are merely old.
            _run([apt, "update", "-qq"], environment)
            result = _run(install, environment)
    if result.returncode != 0:
        tail = "\n".join(result.stdout.splitlines()[-5:])
        raise LauncherError(f"apt-get could not install {' '.join(missing)}:\n{tail}")


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
