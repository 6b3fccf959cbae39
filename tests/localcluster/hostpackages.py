"""Programs of the operating system that real nodes, images and tests need."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

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


def unpacked(program: str, package: str) -> Path:
    """Path of a program of a Debian package, unpacked into the cache: nothing is installed, nothing started.

    For packages that would run a service of their own. One that is installed already is used.
    """
    installed = find(program)
    if installed is not None:
        return Path(installed)
    folder = cache_directory() / "packages" / package
    with exclusive(cache_directory() / "packages.lock", f"it unpacks the Debian package {package}"):
        if not folder.exists():
            _unpack(package, folder)
    found = sorted(path for path in folder.glob(f"**/bin/{program}") if path.is_file())
    if not found:
        raise LauncherError(f"the Debian package {package} has no program {program}")
    return found[0]


def _unpack(package: str, folder: Path) -> None:
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if apt is None or dpkg is None:
        raise LauncherError(f"missing program: install the Debian package {package} or its like (there is no apt-get)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent) as scratch,
        ticking(f"fetching the Debian package {package}"),
    ):
        result = _run([apt, "download", "-qq", package], dict(os.environ), scratch)
        if result.returncode != 0 and os.geteuid() == 0:
            _run([apt, "update", "-qq"], dict(os.environ))
            result = _run([apt, "download", "-qq", package], dict(os.environ), scratch)
        archives = list(Path(scratch).glob("*.deb"))
        if not archives:
            tail = "\n".join(result.stdout.splitlines()[-5:])
            raise LauncherError(f"apt-get could not fetch {package}:\n{tail}")
        content = Path(scratch) / "content"
        result = _run([dpkg, "-x", str(archives[0]), str(content)], dict(os.environ))
        if result.returncode != 0:
            raise LauncherError(f"{archives[0].name} could not be unpacked:\n{result.stdout}")
        content.rename(folder)


def _run(
    command: list[str], environment: dict[str, str], folder: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
