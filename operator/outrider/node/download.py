"""From the registry to this node's disk, verified on the way. Importing it takes most of the start-up time.

*Assumptions.* The index is pinned by its digest. The registry, the network, and whatever they send are not trusted.

*Invariants.* A file gets its final name by one rename, after its hash and its signature were verified and its bytes are
on disk. Whatever fails before leaves at most a hidden partial file, which the next attempt removes.
"""

from dataclasses import replace
from pathlib import Path

from outrider.adapters.ingest import ArtifactManifest, load_evidence, parse_artifact_manifest, parse_index
from outrider.adapters.registry import OciRegistry, RegistrySettings
from outrider.api.errors import OutriderError, Stalling
from outrider.node.config import Config
from outrider.node.elf import HEAD_BYTES
from outrider.node.files import Content, Folder, finish, local, partial_name, write_all
from outrider.node.processor import platform_missing
from outrider.node.record import Record, write_record
from outrider.node.verification import Log, read_keys, verify
from outrider.trust.verify import further_algorithms

_LOOK_SECONDS = 15.0
"""For a look whether something was signed again: it starts without, and shall not be held up for long."""


def download(config: Config, platform: str, folder: Folder, log: Log, *, name: str = "") -> str:
    """Put the verified file of a platform into a folder, under `name` or its own, with its record; return the name.

    Raises Stalling when what was found must not run here, Transient when the registry is down, LocalError when this
    node cannot take it.

    1. The index, by its digest.                                      Else Stalling(ArtifactMissing, ManifestInvalid).
    2. The platform's manifest, by the digest that the index names; it must be about the component, version and platform
       that were asked for, so that no other version can be slipped in.
                                                    Else Stalling(PlatformMissing, ArtifactMissing, ManifestInvalid).
       What vouches for it lies beside that manifest. None of it is believed yet.
    3. Stream the bytes into a hidden file, hashing them.
    4. They must hash to what the manifest says and to what the operator pinned. Else Stalling(BlobCorrupted,
       DigestMismatch).
    5. A trusted key must have vouched for them, in any piece of evidence. Else Stalling(SignatureMissing, NoTrustedKey,
       SignatureUntrusted and the other reasons of `verify`).
    6. On disk first, then executable, then under its name; then the record of it.
    """
    with OciRegistry(_settings(config)) as registry:
        # 1. and 2.
        manifest = _resolve(config, registry, platform)
        evidence = load_evidence(registry, config.repository, manifest.digest, skipped=log)
        keys = read_keys(config, log)
        facts = manifest.facts
        log(f"downloading {facts.file_name}, {manifest.blob.size} bytes")

        partial = partial_name()
        try:
            # 3. and the first half of 4.: the stream itself refuses what does not hash to the manifest's digest.
            content = _stream(config, registry, manifest, folder, partial, further_algorithms(evidence, keys))

            # 4. and 5. Without a pinned hash that of the manifest stands, which the pinned index leads to.
            expected = config.digests.get(platform, manifest.blob.digest.removeprefix("sha256:"))
            proof = verify(config, platform, expected, content, evidence, keys)
            log(f"verified: sha256 {content.sha256}, {proof.format} by {proof.key_fingerprint}")

            # 6.
            record = Record(
                config.reference,
                facts.component,
                facts.version,
                platform,
                facts.file_name,
                content.sha256,
                proof.key_fingerprint,
                evidence,
            )
            with local("write to", folder.path):
                folder.replace(partial, name or facts.file_name)
                write_record(folder, record)
        finally:
            with local("write to", folder.path):
                folder.remove(partial)
    return name or facts.file_name


def signed_anew(config: Config, platform: str, record: Record, content: Content, log: Log) -> Record | None:
    """Return a record with which a file that is here passes, if a trusted key has vouched for it meanwhile, else None.

    Never waits for long, and never raises for what it finds or does not find.
    """
    try:
        with OciRegistry(_settings(config, total=_LOOK_SECONDS)) as registry:
            manifest = _resolve(config, registry, platform)
            evidence = load_evidence(registry, config.repository, manifest.digest, skipped=log)
        proof = verify(config, platform, config.digests[platform], content, evidence, read_keys(config, log))
    except OutriderError as error:
        log(f"no newer signature was found: {error.reason}: {error.message}")
        return None
    return replace(record, key=proof.key_fingerprint, evidence=evidence)


def _settings(config: Config, *, total: float | None = None) -> RegistrySettings:
    """Return how to reach the registry, read anew each time: a corrected Secret reaches the folder by itself."""
    username = password = docker_config = None
    ca_file = config.ca_file
    folder = config.credentials_dir
    if folder is not None:
        with local("read", folder):
            username, password = (_text(folder / name) for name in ("username", "password"))
            docker_config = str(file) if (file := folder / ".dockerconfigjson").is_file() else None
            if ca_file is None and (file := folder / "ca.crt").is_file():
                ca_file = str(file)
    if (username is None) != (password is None):
        raise Stalling(
            "CredentialsMalformed",
            "the Secret with the registry's credentials has only one of username and password; add the other",
        )
    return RegistrySettings(
        host=config.host,
        plain_http=config.plain_http,
        ca_file=ca_file,
        username=username,
        password=password,
        docker_config=docker_config,
        total_timeout=total,
    )


def _text(path: Path) -> str | None:
    return path.read_text(errors="replace").strip() if path.is_file() else None


def _resolve(config: Config, registry: OciRegistry, platform: str) -> ArtifactManifest:
    # 1. The registry adapter compares the digest with the bytes.
    document = registry.get_manifest(config.repository, config.digest)
    if document is None:
        raise _missing(config, f"the index of {config.component} {config.version}", config.digest)
    entries = parse_index(document)

    # 2.
    entry = entries.get(platform)
    if entry is None:
        raise platform_missing(config, platform, entries)
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


def _stream(
    config: Config,
    registry: OciRegistry,
    manifest: ArtifactManifest,
    folder: Folder,
    partial: str,
    further: frozenset[str],
) -> Content:
    """Write the file's bytes to `partial`, executable and on disk, and return what they are."""
    blob = registry.open_blob(config.repository, manifest.blob.digest, size=manifest.blob.size, further=further)
    if blob is None:
        raise _missing(config, f"the file {manifest.facts.file_name}", manifest.blob.digest)
    head = b""
    with blob, local("write to", folder.path):
        folder.check_space(manifest.blob.size)
        with folder.create(partial) as file:
            for chunk in blob:
                if len(head) < HEAD_BYTES:
                    head += bytes(chunk[: HEAD_BYTES - len(head)])
                write_all(file, chunk)
            finish(file)
    return Content(blob.content.size, blob.content.sha256, blob.content.further, head)
