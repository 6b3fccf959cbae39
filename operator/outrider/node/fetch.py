"""From the registry to this node's disk, verified on the way. Nothing that was not verified ever has the file's name.

*Assumptions.* The environment comes from the operator: the index is pinned by digest there, and so may be the files.
The registry, the network and what lies in the target folder are not trusted. One program at a time writes there.

*Invariants.* A file gets its final name by one rename, after its hash and its signature were verified and its bytes are
on disk. Whatever fails before leaves at most a hidden partial file, which the next attempt removes.
"""

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from outrider.adapters.ingest import (
    FILE_NAME,
    ArtifactManifest,
    load_evidence,
    parse_artifact_manifest,
    parse_index,
)
from outrider.adapters.registry import OciRegistry, RegistrySettings
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.node.config import Config
from outrider.trust.digest import Sha256Stream
from outrider.trust.documents import (
    Malformed,
    canonical_json,
    check_names,
    decode_base64,
    encode_base64,
    get_list,
    get_text,
    parse_object,
)
from outrider.trust.evidence import MAX_EVIDENCE_BYTES, MAX_PIECES, Evidence, decode_evidence, encode_evidence
from outrider.trust.keys import KEY_SUFFIX, TrustedKey, parse_public_key
from outrider.trust.verify import Verification, further_algorithms, verify_artifact

ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv6l": "arm",
    "armv7l": "arm",
    "armv8l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
"""What the kernel calls a processor, and what Go, OCI and the node label `kubernetes.io/arch` call it."""

DELAYS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between attempts while the registry is down; the last one is repeated for ever."""

RECORD: Final = ".outrider-verified.json"
"""In the target folder: what was verified, so that a restarted container can verify it again without the registry."""

_PARTIAL_PREFIX: Final = ".outrider-"
_PARTIAL_SUFFIX: Final = ".part"
_BLOCK: Final = 1024 * 1024
_MAX_RECORD_BYTES: Final = 2 * MAX_PIECES * MAX_EVIDENCE_BYTES
"""Of the record: all evidence that is ever loaded, in base64 once more, fits."""

_RECORDED: Final = ("reference", "component", "version", "platform", "file_name", "sha256")
"""The texts in the record, beside the evidence."""

_DEPENDENCY_REASONS: Final = ("RegistryDenied", "RegistryRefused")
"""Refusals that say nothing about the artifact: somebody will set the registry right, so they are waited for."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class Verified:
    """What was verified on this node: enough to do it again."""

    reference: str
    component: str
    version: str
    platform: str
    file_name: str
    sha256: str
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class _Content:
    """What some bytes on this node are."""

    size: int
    sha256: str
    further_digests: dict[str, str]


class LocalError(OutriderError):
    """This node cannot take the file: no space, no permission, something in the way."""


def fetch(config: Config, log: Log, *, machine: str, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Put the verified file of this node's platform into the target folder and return its path.

    `machine` is what the kernel calls the processor. Waits for ever while the registry is down. Raises Stalling when
    what was found must not run here, LocalError when this node cannot take it.

    1. Which platform is this node?                                   Else Stalling(PlatformUnknown).
       If the file is here already, verify it again, and that is all.
    2. The index, by its digest.                                      Else Stalling(ArtifactMissing, ManifestInvalid).
    3. The platform's manifest, by the digest that the index names; it must be about the component, version and platform
       that were asked for, so that no other version can be slipped in.
                                                    Else Stalling(PlatformMissing, ArtifactMissing, ManifestInvalid).
       What vouches for it lies beside that manifest. None of it is believed yet.
    4. Stream the bytes into a hidden file, hashing them.
    5. They must hash to what the manifest says and to what the operator pinned. Else Stalling(BlobCorrupted,
       DigestMismatch).
    6. A trusted key must have vouched for them, in any piece of evidence. Else Stalling(SignatureMissing, NoTrustedKey,
       SignatureUntrusted and the other reasons of `verify_artifact`).
    7. On disk first, then executable, then under its name.
    """
    # 1.
    platform = _platform(machine)
    log(f"fetching {config.component} {config.version} for {platform} from {config.reference}")
    with _local("read or write", config.target_dir):
        _remove_partials(config.target_dir)
        ready = _verified_before(config, platform, log)
    if ready is not None:
        log(f"{ready} is here already and was verified again; nothing is downloaded")
        return ready

    attempt = 0
    while True:
        try:
            return _fetch_once(config, platform, log)
        except Stalling as error:
            if error.reason not in _DEPENDENCY_REASONS:
                raise
            failure: OutriderError = error
            asked = 0.0
        except Transient as error:
            failure = error
            asked = error.retry_after or 0.0
        delay = max(DELAYS[min(attempt, len(DELAYS) - 1)], asked)
        attempt += 1
        log(f"waiting: {failure.reason}: {failure.message}; attempt {attempt} failed, next one in {delay:.0f} s")
        sleep(delay)


def _fetch_once(config: Config, platform: str, log: Log) -> Path:
    with OciRegistry(_settings(config)) as registry:
        # 2. and 3.
        manifest = _resolve(config, registry, platform)
        evidence = load_evidence(registry, config.repository, manifest.digest, skipped=log)
        keys = _keys(config, log)
        facts = manifest.facts
        log(f"downloading {facts.file_name}, {manifest.blob.size} bytes")

        partial = config.target_dir / f"{_PARTIAL_PREFIX}{os.getpid()}{_PARTIAL_SUFFIX}"
        try:
            # 4. and the first half of 5.: the stream itself refuses what does not hash to the manifest's digest.
            content = _download(config, registry, manifest, partial, further_algorithms(evidence, keys))

            # 5. and 6. Without a pinned hash that of the manifest stands, which the pinned index leads to.
            expected = config.digests.get(platform, manifest.blob.digest.removeprefix("sha256:"))
            proof = _verify(config, platform, expected, content, evidence, keys)
            log(f"verified: sha256 {content.sha256}, {proof.format} by {proof.key_fingerprint}")

            # 7.
            verified = Verified(
                config.reference, facts.component, facts.version, platform, facts.file_name, content.sha256, evidence
            )
            with _local("write to", config.target_dir):
                return _put_in_place(config.target_dir, partial, verified)
        finally:
            partial.unlink(missing_ok=True)


def _settings(config: Config) -> RegistrySettings:
    username = password = None
    if config.credentials_dir is not None:
        with _local("read", config.credentials_dir):
            # Read again at every attempt: a Secret that is corrected reaches the mounted folder by itself.
            username = (config.credentials_dir / "username").read_text(errors="replace").strip()
            password = (config.credentials_dir / "password").read_text(errors="replace").strip()
    return RegistrySettings(
        host=config.host, plain_http=config.plain_http, ca_file=config.ca_file, username=username, password=password
    )


def _platform(machine: str) -> str:
    architecture = ARCHITECTURES.get(machine)
    if architecture is None:
        raise Stalling("PlatformUnknown", f"this node's processor ({machine}) is none that a version can be made for")
    return f"linux/{architecture}"


def _resolve(config: Config, registry: OciRegistry, platform: str) -> ArtifactManifest:
    # 2. The registry adapter compares the digest with the bytes.
    document = registry.get_manifest(config.repository, config.digest)
    if document is None:
        raise _missing(config, f"the index of {config.component} {config.version}", config.digest)
    entries = parse_index(document)

    # 3.
    entry = entries.get(platform)
    if entry is None or (config.digests and platform not in config.digests):
        others = ", ".join(sorted(config.digests or entries))
        raise Stalling(
            "PlatformMissing",
            f"{config.component} {config.version} has no artifact for {platform}, only for {others}; "
            "publish a version that has one, or take this node out of the rollout's target",
        )
    document = registry.get_manifest(config.repository, entry.digest)
    if document is None:
        raise _missing(config, f"the manifest for {platform}", entry.digest)
    manifest = parse_artifact_manifest(document)
    found = (manifest.facts.component, manifest.facts.version, manifest.facts.platform)
    wanted = (config.component, config.version, platform)
    if found != wanted:
        raise Stalling(
            "ManifestInvalid",
            f"the registry holds {' '.join(found)} where {' '.join(wanted)} was asked for; store the version again",
        )
    return manifest


def _missing(config: Config, what: str, digest: str) -> Stalling:
    return Stalling(
        "ArtifactMissing",
        f"{what} ({digest}) is not in {config.host}/{config.repository}; it was deleted or the registry lost it: "
        "restore it, or roll out another version",
    )


def _download(
    config: Config, registry: OciRegistry, manifest: ArtifactManifest, partial: Path, further: frozenset[str]
) -> _Content:
    """Write the file's bytes to `partial`, on disk, and return what they are."""
    blob = registry.open_blob(config.repository, manifest.blob.digest, size=manifest.blob.size, further=further)
    if blob is None:
        raise _missing(config, f"the file {manifest.facts.file_name}", manifest.blob.digest)
    chunks = iter(blob)
    with blob, _local("write to", config.target_dir):
        _check_space(config.target_dir, manifest.blob.size)
        # A link planted under this name is not followed.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(partial, flags, 0o600), "wb", buffering=0) as file:
            for chunk in chunks:
                _write_all(file.fileno(), chunk)
            os.fsync(file.fileno())
    return _Content(blob.content.size, blob.content.sha256, blob.content.further)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _verify(
    config: Config,
    platform: str,
    expected: str,
    content: _Content,
    evidence: Sequence[Evidence],
    keys: Sequence[TrustedKey],
) -> Verification:
    return verify_artifact(
        component=config.component,
        namespace=config.namespace,
        version=config.version,
        platform=platform,
        size=content.size,
        expected_sha256=expected,
        actual_sha256=content.sha256,
        further_digests=content.further_digests,
        evidence=evidence,
        keys=keys,
        require_binding=config.require_binding,
    )


def _keys(config: Config, log: Log) -> list[TrustedKey]:
    """Return the mounted keys; the operator has chosen those that may vouch for this component."""
    keys: list[TrustedKey] = []
    with _local("read", config.keys_dir):
        files = {path.name: path.read_bytes() for path in sorted(config.keys_dir.glob(f"*{KEY_SUFFIX}"))}
    for name, pem in files.items():
        try:
            keys.append(parse_public_key(pem, name, allow_rsa_2048=config.allow_rsa_2048))
        except Stalling as error:
            log(f"ignoring a key: {error.message}")
    return keys


def _put_in_place(folder: Path, partial: Path, verified: Verified) -> Path:
    """Give the partial file its mode and its name, and write down what was verified."""
    target = folder / verified.file_name
    partial.chmod(0o555)
    partial.replace(target)
    partial.write_bytes(_encode_record(verified))
    partial.replace(folder / RECORD)
    _sync_folder(folder)
    return target


def _verified_before(config: Config, platform: str, log: Log) -> Path | None:
    """Return the file that an earlier run of this program put here, if it passes once more; else None.

    The record is only a hint where to look: the hash is computed and the signature verified as for a new file.
    """
    record = _read_record(config.target_dir / RECORD)
    if record is None:
        return None
    asked = (config.reference, config.component, config.version, platform)
    if (record.reference, record.component, record.version, record.platform) != asked:
        return None
    if FILE_NAME.fullmatch(record.file_name) is None:
        return None
    target = config.target_dir / record.file_name
    keys = _keys(config, log)
    content = _hash_file(target, further_algorithms(record.evidence, keys))
    if content is None:
        return None
    try:
        _verify(config, platform, config.digests.get(platform, record.sha256), content, record.evidence, keys)
    except Stalling as error:
        log(f"{target} is here, but does not pass ({error.reason}); fetching it again")
        return None
    return target


def _encode_record(verified: Verified) -> bytes:
    texts = {name: getattr(verified, name) for name in _RECORDED}
    evidence = [encode_base64(encode_evidence(piece)) for piece in verified.evidence]
    return canonical_json({**texts, "evidence": evidence})


def _read_record(path: Path) -> Verified | None:
    """Return the record; None if there is none that can be read."""
    file = _open_regular(path)
    if file is None:
        return None
    try:
        with file:
            data = file.read(_MAX_RECORD_BYTES + 1)
        value = parse_object(data, max_bytes=_MAX_RECORD_BYTES)
        check_names(value, "it", required=(*_RECORDED, "evidence"))
        texts = {name: get_text(value, name, "it") for name in _RECORDED}
        pieces = [piece for piece in get_list(value, "evidence", "it") if isinstance(piece, str)]
        evidence = tuple(decode_evidence(decode_base64(piece, "it")) for piece in pieces[:MAX_PIECES])
    except (Malformed, Stalling):
        return None
    return Verified(**texts, evidence=evidence)


def _hash_file(path: Path, further: frozenset[str]) -> _Content | None:
    """Return what a file's bytes are; None if there is no executable regular file."""
    file = _open_regular(path)
    if file is None:
        return None
    stream = Sha256Stream(further)
    with file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != 0o555:
            return None
        while block := file.read(_BLOCK):
            stream.update(block)
    return _Content(stream.size, stream.sha256, stream.further)


def _open_regular(path: Path) -> BinaryIO | None:
    """Open a file that lies in the target folder; None if there is none: links and pipes are not files."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    file = os.fdopen(descriptor, "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        return None
    return file


def _check_space(folder: Path, size: int) -> None:
    usage = os.statvfs(folder)
    free = usage.f_bavail * usage.f_frsize
    if size > free:
        raise LocalError(
            "NoSpace", f"{folder} has room for {free} bytes, and the file has {size}; make room on this node"
        )


def _remove_partials(folder: Path) -> None:
    for path in folder.glob(f"{_PARTIAL_PREFIX}*{_PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _local(what: str, folder: Path) -> Iterator[None]:
    """Turn an error of the file system into LocalError."""
    try:
        yield
    except OSError as error:
        raise LocalError(
            "NodeStorage", f"this node cannot {what} {folder}: {(error.strerror or 'unknown error').lower()}"
        ) from None
