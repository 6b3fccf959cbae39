"""Container images without Docker: small ones from busybox, the operator's by buildah."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from localcluster import hostpackages, toolchain
from localcluster.errors import LauncherError
from localcluster.locations import cache_directory
from localcluster.operatorimage import build_operator_image

__all__ = ["architecture", "build_busybox_image", "build_operator_image", "push_image"]

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Modification time of everything in a layer: the same content is the same digest.
_EPOCH = 0


def architecture() -> str:
    """This machine's architecture as images name it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def build_busybox_image(
    reference: str,
    *,
    files: Mapping[str, bytes | str | Path] | None = None,
    entrypoint: Sequence[str] = ("/bin/sh",),
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Make an OCI archive with busybox and the given files; return its path in the cache.

    Files starting with ``#!`` or an ELF header become executable.
    """
    contents = {path.lstrip("/"): _content(value) for path, value in sorted((files or {}).items())}
    busybox = _busybox()
    key = hashlib.sha256(busybox)
    key.update(repr((reference, sorted(contents), list(entrypoint), environment)).encode())
    for path in sorted(contents):
        key.update(hashlib.sha256(contents[path]).digest())
    archive = cache_directory() / "images" / f"busybox-{key.hexdigest()[:24]}.tar"
    if not archive.exists():
        layer = _layer(busybox, contents)
        _write_archive(archive, reference, layer, entrypoint, environment or {})
    return archive


def push_image(archive: Path, reference: str) -> str:
    """Push an OCI archive to a registry that speaks plain HTTP; return the image's digest."""
    with tempfile.TemporaryDirectory(prefix="outrider-push-") as folder:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        result = subprocess.run(
            [str(toolchain.tool("crane")), "push", "--insecure", folder, reference],
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode != 0:
        raise LauncherError(f"{reference} could not be pushed: {result.stderr.strip()[-500:]}")
    return result.stdout.strip().rpartition("@")[2]


def _content(value: bytes | str | Path) -> bytes:
    if isinstance(value, Path):
        return value.read_bytes()
    return value.encode() if isinstance(value, str) else value


def _busybox() -> bytes:
    content = Path(hostpackages.required("busybox")).read_bytes()
    if _has_interpreter(content):
        raise LauncherError(
            "the busybox of this machine needs shared libraries and runs in no image of its "
            "own; install the Debian package busybox-static"
        )
    return content


def _has_interpreter(elf: bytes) -> bool:
    """Whether a 64-bit little-endian ELF file asks for a dynamic loader (PT_INTERP)."""
    offset = struct.unpack_from("<Q", elf, 32)[0]
    size, count = struct.unpack_from("<HH", elf, 54)
    kinds = (struct.unpack_from("<I", elf, offset + index * size)[0] for index in range(count))
    return 3 in kinds


_APPLETS = [
    "awk",
    "base64",
    "basename",
    "cat",
    "chmod",
    "chown",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "dirname",
    "du",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "grep",
    "gunzip",
    "gzip",
    "head",
    "hostname",
    "httpd",
    "id",
    "kill",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mktemp",
    "mount",
    "mv",
    "nc",
    "nslookup",
    "od",
    "ping",
    "ps",
    "pwd",
    "readlink",
    "realpath",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "tail",
    "tar",
    "tee",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "uname",
    "uniq",
    "vi",
    "wc",
    "wget",
    "which",
    "xargs",
]


def _layer(busybox: bytes, contents: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        made: set[str] = set()

        def directory(path: str, mode: int = 0o755) -> None:
            if path in made or path in ("", "."):
                return
            directory(path.rpartition("/")[0])
            info = tarfile.TarInfo(path)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, mode, _EPOCH
            tar.addfile(info)
            made.add(path)

        def file(path: str, content: bytes, mode: int) -> None:
            directory(path.rpartition("/")[0])
            info = tarfile.TarInfo(path)
            info.size, info.mode, info.mtime = len(content), mode, _EPOCH
            tar.addfile(info, io.BytesIO(content))

        directory("tmp", 0o1777)
        for path in ("bin", "dev", "etc", "proc", "root", "run", "sys", "var"):
            directory(path)
        file("bin/busybox", busybox, 0o755)
        for applet in _APPLETS:
            info = tarfile.TarInfo(f"bin/{applet}")
            info.type, info.linkname, info.mtime = tarfile.SYMTYPE, "busybox", _EPOCH
            tar.addfile(info)
        users = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
        for path, content in {"etc/passwd": users, **contents}.items():
            executable = content.startswith((b"#!", b"\x7fELF"))
            file(path, content, 0o755 if executable else 0o644)
    return buffer.getvalue()


def _write_archive(
    archive: Path,
    reference: str,
    layer: bytes,
    entrypoint: Sequence[str],
    environment: Mapping[str, str],
) -> None:
    compressed = gzip.compress(layer, compresslevel=6, mtime=_EPOCH)
    variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", **environment}
    config = _json(
        {
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": list(entrypoint),
                "Env": [f"{key}={value}" for key, value in variables.items()],
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar+gzip", compressed)],
        }
    )
    entry = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
    entry["annotations"] = {
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
    }
    index = _json({"schemaVersion": 2, "manifests": [entry]})
    members = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index}
    for blob in (config, manifest, compressed):
        members["blobs/sha256/" + _digest(blob).removeprefix("sha256:")] = blob
    archive.parent.mkdir(parents=True, exist_ok=True)
    scratch = archive.with_suffix(".tmp")
    with tarfile.open(scratch, "w") as tar:
        for path, content in members.items():
            info = tarfile.TarInfo(path)
            info.size, info.mtime = len(content), _EPOCH
            tar.addfile(info, io.BytesIO(content))
    scratch.rename(archive)


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}
