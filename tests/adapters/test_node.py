"""The node's fetch program as the kubelet runs it: a process, an environment, a folder; against a real registry."""

import dataclasses
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.nodeside import FILE, MACHINE, OTHER, PLATFORM, REPOSITORY, SHA256, Node, publish
from adapters.realservers import BCRYPT, PASSWORD, USERNAME, RealRegistry, running_registry
from adapters.signing import MakeSigner, Signer
from outrider.adapters.ingest import (
    ArtifactFacts,
    build_evidence_manifest,
    parse_index,
    store_artifact_manifest,
    store_index,
)
from outrider.adapters.registry import MANIFEST_TYPE
from outrider.api.errors import Stalling
from outrider.node.config import ConfigError, read_config
from outrider.node.fetch import fetch
from outrider.node.files import RECORD
from outrider.trust.evidence import Evidence
from unit.authors import Author, evidence, statement


@pytest.fixture
def signer(make_signer: MakeSigner) -> Signer:
    return make_signer()


@pytest.fixture
def node(tmp_path: Path, registry: RealRegistry, signer: Signer) -> Node:
    return Node(tmp_path / "node", registry, publish(registry, signer), signer)


def test_the_verified_file_is_put_in_place_and_anybody_may_run_it(node: Node) -> None:
    code, log = node.run()
    assert code == 0, log
    assert node.file.read_bytes() == FILE
    assert stat.S_IMODE(node.file.stat().st_mode) == 0o555
    assert node.names() == [RECORD, "node-agent-bin"]
    assert node.termination.read_text() == ""
    assert [line.removeprefix("outrider-fetch: ").split()[0] for line in log.splitlines()] == [
        "fetching",
        "downloading",
        "verified:",
        "ready:",
    ]


def test_without_pinned_hashes_the_index_s_digest_pins_the_file(node: Node) -> None:
    del node.environment["OUTRIDER_DIGESTS"]
    assert node.run()[0] == 0
    assert node.file.read_bytes() == FILE


@pytest.mark.parametrize(
    "options",
    [
        ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"),
        ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    ],
)
def test_other_kinds_of_keys(
    tmp_path: Path, registry: RealRegistry, make_signer: MakeSigner, options: tuple[str, ...]
) -> None:
    signer = make_signer("-".join(options).replace(":", "-"), *options)
    node = Node(tmp_path / "node", registry, publish(registry, signer), signer)
    assert node.run()[0] == 0


# Restarts


def test_a_restarted_container_starts_without_the_registry(node: Node, registry: RealRegistry) -> None:
    assert node.run()[0] == 0
    registry.kill()
    code, log = node.run()
    assert code == 0
    assert "is here already and was verified again" in log


@pytest.mark.parametrize("how", ["bytes", "mode", "gone", "link", "record gone", "record garbage", "record elsewhere"])
def test_what_changed_since_is_fetched_again(node: Node, tmp_path: Path, how: str) -> None:
    assert node.run()[0] == 0
    match how:
        case "bytes":
            node.file.chmod(0o755)
            node.file.write_bytes(FILE[:-1] + b"!")
            node.file.chmod(0o555)
        case "mode":
            node.file.chmod(0o777)
        case "gone":
            node.file.unlink()
        case "link":
            node.file.rename(tmp_path / "elsewhere")
            node.file.symlink_to(tmp_path / "elsewhere")
        case "record gone":
            (node.target / RECORD).unlink()
        case "record garbage":
            (node.target / RECORD).write_text('{"reference": 1}')
        case _:
            record = json.loads((node.target / RECORD).read_text())
            node.file.rename(tmp_path / "elsewhere")
            (node.target / RECORD).write_text(json.dumps({**record, "file_name": "../../elsewhere"}))
    code, log = node.run()
    assert code == 0
    assert "downloading node-agent-bin" in log
    assert node.file.read_bytes() == FILE
    assert not node.file.is_symlink()
    assert stat.S_IMODE(node.file.stat().st_mode) == 0o555


def test_what_was_verified_as_another_version_does_not_count(
    node: Node, registry: RealRegistry, signer: Signer
) -> None:
    assert node.run()[0] == 0
    node.environment["OUTRIDER_VERSION"] = "1.5.0"
    assert node.run()[0] == 3
    index = publish(registry, signer, version="1.5.0")
    node.environment["OUTRIDER_REFERENCE"] = f"{registry.host}/{REPOSITORY}@{index}"
    code, log = node.run()
    assert code == 0
    assert "downloading node-agent-bin" in log


def test_a_restart_without_the_key_is_refused_though_the_file_is_here(node: Node) -> None:
    """Nothing but the signature says that it is the right one; with a hash that is pinned, see test_node_cache."""
    del node.environment["OUTRIDER_DIGESTS"]
    assert node.run()[0] == 0
    (node.keys / "release.pub").unlink()
    code, log = node.run()
    assert code == 3
    assert "does not pass (NoTrustedKey)" in log


def test_a_restart_with_another_pinned_hash_is_refused(node: Node) -> None:
    assert node.run()[0] == 0
    node.environment["OUTRIDER_DIGESTS"] = json.dumps({PLATFORM: "0" * 64})
    code, log = node.run()
    assert code == 3
    assert "does not pass (DigestMismatch)" in log


def test_leftovers_of_a_killed_attempt_are_removed(node: Node) -> None:
    (node.target / ".outrider-17.part").write_bytes(b"half")
    assert node.run()[0] == 0
    assert node.names() == [RECORD, "node-agent-bin"]


def test_a_named_pipe_in_the_record_s_place_does_not_hold_it_up(node: Node) -> None:
    os.mkfifo(node.target / RECORD)
    assert node.run()[0] == 0
    assert node.file.read_bytes() == FILE


# What vouches for the file


@pytest.mark.parametrize("format_", ["SigstoreBundle", "SigstoreAttestation", "CosignClassic", "OutriderStatement"])
@pytest.mark.parametrize("kind", ["p256", "p384"])
def test_every_format_is_verified_on_the_node_and_again_without_the_registry(
    tmp_path: Path, registry: RealRegistry, signer: Signer, kind: str, format_: str
) -> None:
    author = Author(kind)
    pieces = {
        "SigstoreBundle": evidence("SigstoreBundle", author.bundle(FILE)),
        "SigstoreAttestation": author.attestation(SHA256),
        "CosignClassic": author.classic(SHA256),
        "OutriderStatement": evidence("OutriderStatement", author.enveloping(statement_payload())),
    }
    node = Node(tmp_path / "node", registry, publish(registry, signer, evidence=[pieces[format_]]), signer)
    (node.keys / "release.pub").write_bytes(author.pem)
    code, log = node.run()
    assert code == 0, log
    assert f"{format_} by {author.key.fingerprint}" in log
    registry.kill()
    code, log = node.run()
    assert code == 0, log
    assert "was verified again" in log


def statement_payload(**changes: Any) -> bytes:
    return json.dumps(statement(FILE, component="node-agent", platform=PLATFORM, **changes)).encode()


def test_a_file_that_nothing_vouches_for(tmp_path: Path, registry: RealRegistry, signer: Signer) -> None:
    node = Node(tmp_path / "node", registry, publish(registry, signer, evidence=[]), signer)
    assert node.refused().startswith(f"SignatureMissing: nothing vouches for node-agent 1.4.0 {PLATFORM}")


def test_a_statement_for_another_version(tmp_path: Path, registry: RealRegistry, signer: Signer) -> None:
    author = Author("p256")
    piece = evidence("OutriderStatement", author.envelope(statement_payload(version="1.3.0")))
    node = Node(tmp_path / "node", registry, publish(registry, signer, evidence=[piece]), signer)
    (node.keys / "release.pub").write_bytes(author.pem)
    reason = node.refused()
    assert reason.startswith("StatementMismatch: ")
    assert "it is about version '1.3.0', and this is 1.4.0" in reason


def test_a_binding_that_is_demanded(tmp_path: Path, registry: RealRegistry, signer: Signer) -> None:
    author = Author("p256")
    detached = Evidence("Detached", signer.detached(FILE))
    node = Node(tmp_path / "node", registry, publish(registry, signer, evidence=[detached]), signer)
    node.environment["OUTRIDER_REQUIRE_BINDING"] = "true"
    assert node.refused().startswith("BindingRequired: ")
    (node.keys / "author.pub").write_bytes(author.pem)
    publish(registry, signer, evidence=[evidence("OutriderStatement", author.envelope(statement_payload()))])
    assert node.run()[0] == 0


def test_signed_again_with_a_new_key_under_the_same_pinned_digest(
    node: Node, registry: RealRegistry, signer: Signer, make_signer: MakeSigner
) -> None:
    new = make_signer("new")
    (node.keys / "release.pub").write_bytes(new.public.read_bytes())
    assert node.refused().startswith("SignatureUntrusted: ")
    index = publish(registry, new)
    assert node.environment["OUTRIDER_REFERENCE"].endswith(index)
    code, log = node.run()
    assert code == 0, log
    # Both signatures are kept: whichever key is mounted next time is enough.
    registry.kill()
    for key, expected in ((signer, 0), (new, 0)):
        (node.keys / "release.pub").write_bytes(key.public.read_bytes())
        assert node.run()[0] == expected


def test_evidence_that_cannot_be_read_beside_what_can(node: Node, registry: RealRegistry) -> None:
    with registry.client() as client:
        index = client.get_manifest(REPOSITORY, node.environment["OUTRIDER_REFERENCE"].rpartition("@")[2])
        assert index is not None
        manifest = parse_index(index)[PLATFORM]
        for garbage in (b"{}", b"garbage", b'{"format": "Detached"}'):
            content = build_evidence_manifest(manifest, client.push_bytes(REPOSITORY, garbage))
            client.push_referrer(REPOSITORY, content, MANIFEST_TYPE, manifest.digest)
    code, log = node.run()
    assert code == 0, log
    assert log.count("a piece of evidence is left out: the evidence cannot be read") == 3


# Refusals


def test_a_key_that_did_not_sign(node: Node, make_signer: MakeSigner) -> None:
    (node.keys / "release.pub").write_bytes(make_signer("somebody").public.read_bytes())
    assert node.refused().startswith("SignatureUntrusted: the signature of node-agent for linux/")


def test_one_good_key_among_others_is_enough(node: Node, make_signer: MakeSigner) -> None:
    (node.keys / "a.pub").write_bytes(make_signer("somebody").public.read_bytes())
    (node.keys / "b.pub").write_bytes(b"garbage")
    code, log = node.run()
    assert code == 0
    assert "ignoring a key: b.pub is not a usable public key" in log


@pytest.mark.parametrize("how", ["empty", "no folder", "unusable", "another ending"])
def test_without_a_usable_key_nothing_is_trusted(node: Node, how: str) -> None:
    key = node.keys / "release.pub"
    match how:
        case "empty":
            key.unlink()
        case "no folder":
            key.unlink()
            node.keys.rmdir()
        case "unusable":
            key.write_bytes(b"")
        case _:
            key.rename(node.keys / "release.pem")
    assert node.refused().startswith("NoTrustedKey: there is no trusted key for component node-agent;")


def test_a_blob_tampered_with_in_the_registry(node: Node, registry: RealRegistry) -> None:
    blob = registry.blob_file("sha256:" + SHA256)
    blob.write_bytes(FILE[:1_000_000] + b"!" + FILE[1_000_001:])
    assert node.refused().startswith("BlobCorrupted: ")


def test_a_blob_that_is_gone(node: Node, registry: RealRegistry) -> None:
    with registry.client() as client:
        client.delete_blob(REPOSITORY, "sha256:" + SHA256)
    assert node.refused().startswith("ArtifactMissing: the file node-agent-bin")


def test_another_hash_than_the_pinned_one(node: Node) -> None:
    node.environment["OUTRIDER_DIGESTS"] = json.dumps({PLATFORM: "0" * 64})
    assert node.refused().startswith("DigestMismatch: ")


def test_an_index_that_is_gone(node: Node) -> None:
    node.environment["OUTRIDER_REFERENCE"] = node.environment["OUTRIDER_REFERENCE"][:-64] + "0" * 64
    assert node.refused().startswith("ArtifactMissing: the index of node-agent 1.4.0")


def test_a_version_without_this_platform(tmp_path: Path, registry: RealRegistry, signer: Signer) -> None:
    node = Node(tmp_path / "node", registry, publish(registry, signer, platform=OTHER), signer)
    del node.environment["OUTRIDER_DIGESTS"]
    reason = node.refused()
    assert reason.startswith(f"PlatformMissing: node-agent 1.4.0 has no artifact for {PLATFORM}, only for {OTHER};")


def test_a_platform_without_a_pinned_hash_where_others_have_one(node: Node) -> None:
    node.environment["OUTRIDER_DIGESTS"] = json.dumps({OTHER: SHA256})
    assert node.refused().startswith("PlatformMissing: ")


@pytest.mark.parametrize("variable", ["OUTRIDER_COMPONENT", "OUTRIDER_VERSION"])
def test_another_component_or_version_under_the_pinned_digest(node: Node, variable: str) -> None:
    node.environment[variable] += "1"
    assert node.refused().startswith("ManifestInvalid: the registry holds node-agent 1.4.0")


def test_an_index_whose_platform_is_not_its_manifest_s(tmp_path: Path, registry: RealRegistry, signer: Signer) -> None:
    with registry.client() as client:
        blob = client.push_bytes(REPOSITORY, FILE)
        facts = ArtifactFacts("node-agent", "1.4.0", OTHER, "node-agent-bin")
        manifest = store_artifact_manifest(client, REPOSITORY, blob, facts)
        index = store_index(client, REPOSITORY, "node-agent", "1.4.0", {PLATFORM: manifest}, publish=False)
    node = Node(tmp_path / "node", registry, index.digest, signer)
    assert node.refused().startswith("ManifestInvalid: the registry holds node-agent 1.4.0 " + OTHER)


# Waiting


def test_a_registry_that_is_down_is_waited_for(node: Node, registry: RealRegistry) -> None:
    registry.kill()
    process = node.start()
    try:
        assert process.stderr is not None
        lines: list[str] = []
        while len(lines) < 3:
            lines.append(process.stderr.readline())
        assert "waiting: RegistryUnavailable: " in lines[1]
        assert lines[1].endswith("the connection was refused; attempt 1 failed, next one in 1 s\n")
        assert lines[2].endswith("attempt 2 failed, next one in 2 s\n")
        registry.start()
        assert process.wait(30) == 0
        assert node.file.read_bytes() == FILE
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_waiting_ends_at_once_on_sigterm(node: Node, registry: RealRegistry) -> None:
    registry.kill()
    process = node.start()
    try:
        assert process.stderr is not None
        while "waiting" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert process.wait(10) == 143
        assert time.monotonic() - started < 2
        assert node.names() == []
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_delays_double_up_to_half_a_minute_and_never_end(node: Node, registry: RealRegistry) -> None:
    registry.kill()
    delays: list[float] = []

    def sleep(seconds: float) -> None:
        delays.append(seconds)
        if len(delays) == 9:
            registry.start()

    log: list[str] = []
    path = fetch(read_config(node.environment), log.append, machine=MACHINE, sleep=sleep)
    assert path == node.file
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30, 30]


def test_a_registry_killed_in_the_middle_of_the_download(node: Node, registry: RealRegistry) -> None:
    """Frozen with the sockets full, then killed: the half file is thrown away, and the next attempt is whole."""
    killed: list[str] = []

    def log(line: str) -> None:
        if line.startswith("downloading") and not killed:
            killed.append(line)
            registry.kill()

    def sleep(seconds: float) -> None:
        assert node.names() == []
        registry.start()

    fetch(read_config(node.environment), log, machine=MACHINE, sleep=sleep)
    assert node.file.read_bytes() == FILE


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_any_moment_it_leaves_the_whole_file_or_none(node: Node, seed: int) -> None:
    process = node.start()
    try:
        time.sleep(random.Random(seed).uniform(0.15, 0.6))  # noqa: S311
        process.kill()
        process.wait()
        assert not node.file.exists() or node.file.read_bytes() == FILE
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
    assert node.run()[0] == 0
    assert node.file.read_bytes() == FILE
    assert node.names() == [RECORD, "node-agent-bin"]


def test_a_private_registry_and_credentials_that_are_corrected_while_it_waits(tmp_path: Path, signer: Signer) -> None:
    (tmp_path / "htpasswd").write_text(f"{USERNAME}:{BCRYPT}\n")
    auth = {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}
    with running_registry(tmp_path / "registry", auth) as registry:
        index = publish(registry, signer, username=USERNAME, password=PASSWORD)
        node = Node(tmp_path / "node", registry, index, signer)
        credentials = tmp_path / "credentials"
        credentials.mkdir()
        (credentials / "username").write_text(USERNAME)
        (credentials / "password").write_text("wrong-secret")
        node.environment["OUTRIDER_CREDENTIALS_DIR"] = str(credentials)
        log: list[str] = []

        def sleep(seconds: float) -> None:
            (credentials / "password").write_text(PASSWORD + "\n")

        fetch(read_config(node.environment), log.append, machine=MACHINE, sleep=sleep)
    assert node.file.read_bytes() == FILE
    assert any(line.startswith("waiting: RegistryDenied") for line in log)
    assert not any("wrong-secret" in line for line in log)


# What the node is told, and what it has


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("OUTRIDER_REFERENCE", "", "OUTRIDER_REFERENCE is not set"),
        ("OUTRIDER_REFERENCE", "registry/agent:1.4.0", "OUTRIDER_REFERENCE is not host/repository@sha256"),
        ("OUTRIDER_COMPONENT", "", "OUTRIDER_COMPONENT is not set"),
        ("OUTRIDER_DIGESTS", "{", "OUTRIDER_DIGESTS is not a JSON object"),
        ("OUTRIDER_DIGESTS", '{"linux/amd64": "abc"}', "OUTRIDER_DIGESTS is not a JSON object"),
        ("OUTRIDER_PLAIN_HTTP", "perhaps", "OUTRIDER_PLAIN_HTTP is neither true nor false"),
    ],
)
def test_a_wrong_environment_is_named(node: Node, variable: str, value: str, text: str) -> None:
    node.environment[variable] = value
    code, log = node.run()
    assert code == 2
    assert text in log
    assert node.termination.read_text().startswith(f"ConfigInvalid: {text}")


@given(st.dictionaries(st.sampled_from(["OUTRIDER_REFERENCE", "OUTRIDER_DIGESTS", "OUTRIDER_PLAIN_HTTP"]), st.text()))
def test_garbage_in_the_environment_never_escapes_as_a_foreign_exception(garbage: dict[str, str]) -> None:
    good = {
        "OUTRIDER_REFERENCE": "r/c@sha256:" + "0" * 64,
        "OUTRIDER_COMPONENT": "c",
        "OUTRIDER_VERSION": "1.0.0",
        "OUTRIDER_TARGET_DIR": "/t",
        "OUTRIDER_KEYS_DIR": "/k",
    }
    try:
        read_config({**good, **garbage})
    except ConfigError:
        return


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(record=st.binary(max_size=100) | st.dictionaries(st.text(), st.text()).map(lambda d: json.dumps(d).encode()))
def test_garbage_as_record_is_ignored(tmp_path: Path, record: bytes) -> None:
    target = tmp_path / "target"
    target.mkdir(exist_ok=True)
    (target / RECORD).write_bytes(record)
    environment = {
        "OUTRIDER_REFERENCE": "127.0.0.1:1/c@sha256:" + "0" * 64,
        "OUTRIDER_COMPONENT": "c",
        "OUTRIDER_VERSION": "1.0.0",
        "OUTRIDER_TARGET_DIR": str(target),
        "OUTRIDER_KEYS_DIR": "/k",
        "OUTRIDER_PLAIN_HTTP": "true",
    }

    class Waited(Exception):
        pass

    def sleep(seconds: float) -> None:
        raise Waited

    with pytest.raises(Waited):
        fetch(read_config(environment), lambda _: None, machine=MACHINE, sleep=sleep)


def test_a_target_that_is_not_there(node: Node) -> None:
    node.target.rmdir()
    code, log = node.run()
    assert code == 4
    assert "NodeStorage: this node cannot write to" in log
    assert "no such file or directory" in node.termination.read_text()


def test_a_folder_in_the_way(node: Node) -> None:
    node.file.mkdir()
    code, log = node.run()
    assert code == 4
    assert "is a directory" in log
    assert node.names() == ["node-agent-bin"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_too_small(node: Node, small_disk: Path) -> None:
    node.environment["OUTRIDER_TARGET_DIR"] = str(small_disk)
    code, log = node.run()
    assert code == 4
    assert f"has room for 1048576 bytes, and the file has {len(FILE)}" in log
    assert list(small_disk.iterdir()) == []


def test_a_processor_that_nobody_knows(node: Node) -> None:
    with pytest.raises(Stalling) as caught:
        fetch(read_config(node.environment), lambda _: None, machine="pdp11")
    assert caught.value.reason == "PlatformUnknown"


def test_without_a_termination_log_nothing_is_made_up(node: Node) -> None:
    node.termination.unlink()
    (node.keys / "release.pub").unlink()
    assert node.run()[0] == 3
    assert not node.termination.exists()


def test_version_and_help() -> None:
    for argument, code, text in (
        ("--version", 0, "outrider-fetch "),
        ("--help", 0, "Usage: "),
        ("--what", 2, "Usage: "),
    ):
        command = [sys.executable, "-m", "outrider.node", argument]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == code
        assert result.stdout.startswith(text)


def test_it_loads_no_heavy_library() -> None:
    program = "import sys, outrider.node.__main__, outrider.node.fetch; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout.split()
    )
    assert not loaded & {"kopf", "kubernetes", "aiohttp", "pydantic"}


def test_the_configuration_cannot_be_changed() -> None:
    environment = {
        "OUTRIDER_REFERENCE": "registry:5000/team/c@sha256:" + "a" * 64,
        "OUTRIDER_COMPONENT": "c",
        "OUTRIDER_VERSION": "1.0.0",
        "OUTRIDER_TARGET_DIR": "/t",
        "OUTRIDER_KEYS_DIR": "/k",
    }
    config = read_config(environment)
    assert (config.host, config.repository, config.digest) == ("registry:5000", "team/c", "sha256:" + "a" * 64)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.host = "other"  # type: ignore[misc]
