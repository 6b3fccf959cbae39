"""The project's own image, built from its Dockerfile by buildah, without Docker."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from localcluster import hostpackages
from localcluster.errors import LauncherError
from localcluster.locations import cache_directory, exclusive
from localcluster.progress import duration, say, ticking

# What the image needs of an operating system; the rest comes from the Dockerfile.
_BASE_PACKAGES = "python3,python3-venv,ca-certificates"
_BASE_RECIPE = 1
_CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
_PIP_SETTINGS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "proxy",
    "default-timeout",
    "timeout",
    "retries",
)


def build_operator_image(project_root: Path, tag: str) -> Path:
    """Build the project's Dockerfile as image ``tag``; return a docker archive in the cache.

    Built again only when the Dockerfile or something that it copies has changed.
    """
    dockerfile = project_root / "Dockerfile"
    if not dockerfile.is_file():
        raise LauncherError(f"there is no {dockerfile}")
    base = _chosen_base()
    key = _input_hash(project_root, dockerfile, base or "default", tag)
    archive = cache_directory() / "images" / f"operator-{key}.tar"
    if archive.exists():
        return archive
    if os.geteuid() != 0:
        raise LauncherError("building the image needs root")
    hostpackages.ensure(hostpackages.IMAGES)
    started = time.monotonic()
    with exclusive(cache_directory() / "images" / ".lock", "it builds an image"):
        if archive.exists():
            return archive
        archive.parent.mkdir(parents=True, exist_ok=True)
        buildah = _Buildah()
        if base is None:
            base = _debian_base(buildah)
        with ticking(f"building {tag} from {dockerfile}"):
            _build(buildah, project_root, tag, base)
            scratch = archive.with_suffix(".tmp")
            scratch.unlink(missing_ok=True)
            buildah.run("push", tag, f"docker-archive:{scratch}:{tag}")
            scratch.rename(archive)
        _forget_older(archive)
    say(f"image {tag} built in {duration(time.monotonic() - started)}: {archive}")
    return archive


def _build(buildah: _Buildah, project_root: Path, tag: str, base: str) -> None:
    with tempfile.TemporaryDirectory(prefix="outrider-build-") as scratch:
        arguments = ["--isolation=chroot", "--layers", "--pull-never", f"--tag={tag}"]
        if base != _DEFAULT:
            arguments.append(f"--build-arg=BASE={base}")
        else:
            arguments.remove("--pull-never")
        # Mounted while commands run and never part of a layer: how this machine reaches the
        # package index is nobody else's business.
        arguments += [f"--volume={volume}" for volume in _package_index_mounts(Path(scratch))]
        dockerfile = project_root / "Dockerfile"
        buildah.run("bud", *arguments, f"--file={dockerfile}", str(project_root))


class _Buildah:
    """buildah with a storage of its own, apart from the machine's."""

    def __init__(self) -> None:
        home = cache_directory() / "buildah"
        home.mkdir(parents=True, exist_ok=True)
        self._policy = home / "policy.json"
        self._policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
        on_overlay = any(
            line.split()[1] == "/" and line.split()[2] == "overlay"
            for line in Path("/proc/mounts").read_text().splitlines()
        )
        # One overlay cannot lie on another; elsewhere it saves copying everything per layer.
        driver = "vfs" if on_overlay else "overlay"
        self._prefix = [
            hostpackages.required("buildah"),
            f"--root={home / driver}",
            f"--runroot={home / 'run'}",
            f"--storage-driver={driver}",
        ]

    def run(self, command: str, *arguments: str) -> str:
        """Run one buildah command and return its stdout."""
        full = [*self._prefix, command]
        if command in ("bud", "from", "push", "commit"):
            full.append(f"--signature-policy={self._policy}")
        result = subprocess.run([*full, *arguments], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            tail = "\n".join((result.stdout + result.stderr).splitlines()[-25:])
            raise LauncherError(f"buildah {command} failed:\n{tail}")
        return result.stdout.strip()

    def has(self, image: str) -> bool:
        """Whether an image is in the storage."""
        result = subprocess.run([*self._prefix, "inspect", "--type=image", image], capture_output=True, check=False)
        return result.returncode == 0


_DEFAULT = "the Dockerfile's own"


def _chosen_base() -> str | None:
    """The base image to build on: named by the user, the Dockerfile's own, or None for ours."""
    named = os.environ.get("OUTRIDER_BASE_IMAGE")
    if named:
        return named
    try:
        with urllib.request.urlopen("https://registry-1.docker.io/v2/", timeout=3):
            return _DEFAULT
    except urllib.error.HTTPError as error:
        # 401 is how a registry says hello to a stranger; anything else is some gateway talking.
        error.close()
        return _DEFAULT if error.code == 401 else None
    except OSError:
        return None


def _debian_base(buildah: _Buildah) -> str:
    """Make a base image from Debian packages, once."""
    suite = _suite()
    name = f"localhost/outrider/base-{suite}:{_BASE_RECIPE}"
    if buildah.has(name):
        return name
    with (
        tempfile.TemporaryDirectory(prefix="outrider-base-") as scratch,
        ticking(f"no public image registry here: making a base image of Debian {suite} once"),
    ):
        root = Path(scratch) / "root.tar"
        excluded = ("doc", "man", "locale", "info")
        options = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in excluded]
        command = [
            hostpackages.required("mmdebstrap"),
            "--variant=minbase",
            "--mode=root",
            f"--include={_BASE_PACKAGES}",
            *options,
            "--quiet",
            suite,
            str(root),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise LauncherError(f"mmdebstrap failed:\n{result.stderr[-1500:]}")
        container = buildah.run("from", "scratch")
        buildah.run("add", container, str(root), "/")
        buildah.run("commit", "--rm", container, name)
    return name


def _suite() -> str:
    release = platform.freedesktop_os_release()
    if release.get("ID") in ("debian", "ubuntu") and "VERSION_CODENAME" in release:
        return release["VERSION_CODENAME"]
    return "bookworm"


def _package_index_mounts(scratch: Path) -> list[str]:
    """Mounts that let pip in the build reach the package index as pip does out here."""
    settings = _pip_settings()
    mounts = []
    bundle = next(
        (
            path
            for path in (
                settings.pop("cert", None),
                os.environ.get("SSL_CERT_FILE"),
                *_CA_BUNDLES,
            )
            if path and Path(path).is_file()
        ),
        None,
    )
    if bundle is not None:
        copy = scratch / "ca.crt"
        shutil.copyfile(bundle, copy)
        copy.chmod(0o644)
        mounts.append(f"{copy}:/run/outrider-build/ca.crt:ro")
        settings["cert"] = "/run/outrider-build/ca.crt"
    places = settings.get("find-links", "").split()
    mounts += [f"{place}:{place}:ro" for place in places if Path(place).is_dir()]
    configuration = scratch / "pip.conf"
    lines = ["[global]", *(f"{key} = {value}" for key, value in settings.items())]
    configuration.write_text("\n".join(lines) + "\n")
    configuration.chmod(0o644)
    mounts.append(f"{configuration}:/etc/pip.conf:ro")
    return mounts


def _pip_settings() -> dict[str, str]:
    result = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, str] = {}
    for line in result.stdout.splitlines():
        # global.index-url='…', install.find-links='…', :env:.cert='…'; the environment wins and
        # comes first.
        name, equals, value = line.partition("=")
        key = name.rpartition(".")[2]
        if equals and key in (*_PIP_SETTINGS, "cert"):
            found.setdefault(key, " ".join(shlex.split(value)).replace("\\n", " "))
    # Where this Python has no pip of its own, its environment variables are still there.
    for key in (*_PIP_SETTINGS, "cert"):
        value = os.environ.get("PIP_" + key.upper().replace("-", "_"), "")
        if value:
            found.setdefault(key, value)
    return found


def _input_hash(root: Path, dockerfile: Path, base: str, tag: str) -> str:
    digest = hashlib.sha256(f"{base}\0{tag}\0{_BASE_RECIPE}\0".encode())
    digest.update(dockerfile.read_bytes())
    ignore = root / ".dockerignore"
    if ignore.is_file():
        digest.update(ignore.read_bytes())
    for source in _copied(dockerfile):
        for path in sorted(root.glob(source.strip("/").removeprefix("./") or "*")):
            files = [path] if path.is_file() else sorted(path.rglob("*"))
            for file in files:
                if file.is_file() and "__pycache__" not in file.parts and ".git" not in file.parts:
                    digest.update(f"{file.relative_to(root)}\0".encode())
                    digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:24]


def _copied(dockerfile: Path) -> list[str]:
    """What the Dockerfile takes from the project: sources of COPY and ADD, but not of stages."""
    text = dockerfile.read_text().replace("\\\n", " ")
    sources = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].upper() not in ("COPY", "ADD"):
            continue
        if any(word.startswith("--from=") for word in words):
            continue
        sources += [word for word in words[1:-1] if not word.startswith("--")]
    return sources


def _forget_older(newest: Path, keep: int = 3) -> None:
    """Keep the last few archives; each is some hundred megabytes."""
    archives = sorted(newest.parent.glob("operator-*.tar"), key=lambda path: path.stat().st_mtime)
    for path in archives[:-keep]:
        if path != newest:
            path.unlink(missing_ok=True)
