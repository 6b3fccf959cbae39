"""The cache on a node: one download for all, nothing believed for lying there, and what starts without the registry."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.nodeside import (
    FILE,
    MACHINE,
    PLATFORM,
    REPOSITORY,
    SHA256,
    CountingRegistry,
    Node,
    end,
    publish,
    wait_for,
)
from adapters.realservers import RealRegistry, sha256_of
from adapters.signing import MakeSigner, Signer
from outrider.node.cache import KEPT, Cache
from outrider.node.config import ConfigError, read_config
from outrider.node.fetch import fetch
from outrider.node.files import RECORD
from outrider.node.idle import build_idle
from outrider.node.processor import ARCHITECTURES
from outrider.trust.evidence import Evidence
from unit.authors import Author, evidence, statement


@pytest.fixture
def signer(make_signer: MakeSigner) -> Signer:
    return make_signer()


@pytest.fixture
def node(tmp_path: Path, registry: RealRegistry, signer: Signer) -> Node:
    return Node(tmp_path / "node", registry, publish(registry, signer), signer)


@pytest.fixture
def cache(node: Node, tmp_path: Path) -> Path:
    """The component's folder in the cache of the node."""
    return node.use_cache(tmp_path / "cache")


def another_pod(node: Node, folder: Path, registry: RealRegistry, signer: Signer) -> Node:
    """A new pod on the same node: an empty folder, and the same cache."""
    index = node.environment["OUTRIDER_REFERENCE"].rpartition("@")[2]
    other = Node(folder, registry, index, signer)
    shutil.rmtree(other.keys)
    other.environment = {
        **node.environment,
        "OUTRIDER_TARGET_DIR": str(other.target),
        "OUTRIDER_TERMINATION_LOG": str(other.termination),
    }
    return other


def snapshot(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_first_fills_it_and_the_next_takes_from_it_without_the_registry(
    node: Node, cache: Path, registry: RealRegistry, tmp_path: Path, signer: Signer
) -> None:
    code, log = node.run()
    assert code == 0, log
    assert node.file.read_bytes() == FILE
    assert node.names() == [RECORD, "node-agent-bin"]
    assert snapshot(cache) == [f".{SHA256}.lock", SHA256, f"{SHA256}/{RECORD}", f"{SHA256}/file"]
    assert stat.S_IMODE((cache / SHA256 / "file").stat().st_mode) == 0o555
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700

    registry.kill()
    other = another_pod(node, tmp_path / "other", registry, signer)
    code, log = other.run()
    assert code == 0, log
    assert "taken from the cache" in log
    assert other.file.read_bytes() == FILE
    assert stat.S_IMODE(other.file.stat().st_mode) == 0o555
    # Its container restarts: what it has is enough.
    shutil.rmtree(cache)
    code, log = other.run()
    assert code == 0
    assert "is here already and was verified again" in log


# The matrix: key x registry x copy. `node.target` is the copy of a pod, the cache that of all.


@pytest.mark.parametrize("where", ["in the pod", "in the cache"])
@pytest.mark.parametrize("key", ["trusted", "removed", "replaced"])
@pytest.mark.parametrize("up", [True, False], ids=["registry up", "registry down"])
def test_what_was_verified_here_starts(
    node: Node,
    cache: Path,
    registry: RealRegistry,
    tmp_path: Path,
    make_signer: MakeSigner,
    signer: Signer,
    up: bool,
    key: str,
    where: str,
) -> None:
    assert node.run()[0] == 0
    pod = node
    if where == "in the cache":
        pod = another_pod(node, tmp_path / "other", registry, signer)
    else:
        shutil.rmtree(cache)
    remove_key(node, key, make_signer)
    if not up:
        registry.kill()
    code, log = pod.run()
    assert code == 0, log
    assert pod.file.read_bytes() == FILE
    assert "downloading" not in log
    assert ("WARNING: " in log) == (key != "trusted")
    if key != "trusted":
        assert "It was verified on this node before, with the key sha256:" in log
        assert "sign the version again with a trusted key" in log


@pytest.mark.parametrize("key", ["trusted", "removed", "replaced"])
def test_what_was_never_verified_here_is_judged_by_the_registry_and_the_keys(
    node: Node, cache: Path, make_signer: MakeSigner, key: str
) -> None:
    remove_key(node, key, make_signer)
    code, log = node.run()
    if key == "trusted":
        assert code == 0
        assert "downloading" in log
        return
    assert code == 3
    assert node.termination.read_text().startswith(
        {"removed": "NoTrustedKey: ", "replaced": "SignatureUntrusted: "}[key]
    )
    assert node.names() == []
    assert snapshot(cache) == []


@pytest.mark.parametrize("key", ["trusted", "removed"])
def test_what_was_never_verified_here_waits_for_the_registry(
    node: Node, cache: Path, registry: RealRegistry, make_signer: MakeSigner, key: str
) -> None:
    remove_key(node, key, make_signer)
    registry.kill()
    process = node.start()
    try:
        assert process.stderr is not None
        while "waiting: RegistryUnavailable" not in process.stderr.readline():
            assert process.poll() is None
        registry.start()
        assert process.wait(60) == (0 if key == "trusted" else 3)
    finally:
        end(process)


def remove_key(node: Node, how: str, make_signer: MakeSigner) -> None:
    key = node.keys / "release.pub"
    if how == "removed":
        key.unlink()
    elif how == "replaced":
        key.write_bytes(make_signer("somebody").public.read_bytes())


def test_what_was_signed_again_passes_without_a_warning_and_is_remembered(
    node: Node, cache: Path, registry: RealRegistry, tmp_path: Path, signer: Signer, make_signer: MakeSigner
) -> None:
    assert node.run()[0] == 0
    new = make_signer("new")
    remove_key(node, "removed", make_signer)
    (node.keys / "new.pub").write_bytes(new.public.read_bytes())
    publish(registry, new)
    for number, up in enumerate((True, False)):
        if not up:
            registry.kill()
        code, log = another_pod(node, tmp_path / str(number), registry, signer).run()
        assert code == 0, log
        assert "WARNING" not in log
        assert ("signed again: sha256:" in log) == up


@pytest.mark.parametrize("where", ["in the pod", "in the cache"])
def test_without_the_key_only_the_pinned_file_starts(
    node: Node, cache: Path, registry: RealRegistry, tmp_path: Path, make_signer: MakeSigner, signer: Signer, where: str
) -> None:
    """Whoever can write to the node's disk cannot make it start something else: the hash is pinned elsewhere."""
    assert node.run()[0] == 0
    remove_key(node, "removed", make_signer)
    pod, file, folder = node, node.file, node.target
    if where == "in the cache":
        pod = another_pod(node, tmp_path / "other", registry, signer)
        folder, file = cache / SHA256, cache / SHA256 / "file"
    forged = FILE[:-1] + b"!"
    file.unlink()
    file.write_bytes(forged)
    file.chmod(0o555)
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, "sha256": sha256_of(forged)}))
    if where == "in the pod":
        shutil.rmtree(cache)
    code, log = pod.run()
    assert code == 3, log
    assert pod.termination.read_text().startswith("NoTrustedKey: ")


def test_binding_that_is_demanded_now_is_no_matter_of_the_key(
    node: Node, cache: Path, registry: RealRegistry, tmp_path: Path, signer: Signer
) -> None:
    assert node.run()[0] == 0
    node.environment["OUTRIDER_REQUIRE_BINDING"] = "true"
    code, log = another_pod(node, tmp_path / "other", registry, signer).run()
    assert code == 3
    assert "BindingRequired" in log


# What lies in it is not believed


@pytest.mark.parametrize("how", ["bytes", "cut", "gone", "link", "pipe", "record gone", "record garbage", "of another"])
def test_what_does_not_verify_is_thrown_away_and_fetched_anew(
    node: Node, cache: Path, registry: RealRegistry, tmp_path: Path, signer: Signer, how: str
) -> None:
    assert node.run()[0] == 0
    file, record = cache / SHA256 / "file", cache / SHA256 / RECORD
    data = FILE
    match how:
        case "bytes":
            data = FILE[:-1] + b"!"
        case "cut":
            data = FILE[:1000]
        case "gone":
            file.unlink()
        case "link":
            file.rename(tmp_path / "elsewhere")
            file.symlink_to(tmp_path / "elsewhere")
        case "pipe":
            file.unlink()
            os.mkfifo(file)
        case "record gone":
            record.unlink()
        case "record garbage":
            record.write_bytes(b"\xff")
        case _:
            record.write_text(json.dumps({**json.loads(record.read_text()), "version": "1.3.0"}))
    if data is not FILE:
        file.chmod(0o755)
        file.write_bytes(data)
        file.chmod(0o555)
    pod = another_pod(node, tmp_path / "other", registry, signer)
    code, log = pod.run()
    assert code == 0, log
    assert "downloading node-agent-bin" in log
    assert pod.file.read_bytes() == FILE
    assert file.read_bytes() == FILE
    assert not file.is_symlink()
    # And now it serves again.
    registry.kill()
    assert another_pod(node, tmp_path / "third", registry, signer).run()[0] == 0


def test_a_file_of_another_name_in_its_record_goes_nowhere(
    node: Node, cache: Path, registry: RealRegistry, tmp_path: Path, signer: Signer
) -> None:
    assert node.run()[0] == 0
    record = cache / SHA256 / RECORD
    for name in ("../escaped", "/tmp/escaped", ".hidden", "a\nb", ""):
        record.write_text(json.dumps({**json.loads(record.read_text()), "file_name": name}))
        pod = another_pod(node, tmp_path / sha256_of(name.encode()), registry, signer)
        assert pod.run()[0] == 0
        assert pod.names() == [RECORD, "node-agent-bin"]


# Many at once


def test_twenty_that_start_together_download_once(tmp_path: Path, signer: Signer) -> None:
    registry = CountingRegistry(tmp_path / "registry")
    registry.start()
    pods: list[tuple[Node, subprocess.Popen[str]]] = []
    try:
        node = Node(tmp_path / "node", registry, publish(registry, signer), signer)
        node.use_cache(tmp_path / "cache")
        before = registry.downloads("sha256:" + SHA256)
        for number in range(20):
            pod = another_pod(node, tmp_path / f"pod-{number}", registry, signer)
            pods.append((pod, pod.start()))
        for pod, process in pods:
            _, log = process.communicate(timeout=120)
            assert process.returncode == 0, log
            assert pod.file.read_bytes() == FILE
        assert registry.downloads("sha256:" + SHA256) - before == 1
    finally:
        for _, process in pods:
            end(process)
        registry.kill()


def test_of_many_one_that_is_killed_while_it_downloads_hands_on_the_task(
    node: Node, cache: Path, registry: RealRegistry, tmp_path: Path, signer: Signer
) -> None:
    registry.freeze()
    first = node.start()
    second = another_pod(node, tmp_path / "second", registry, signer)
    try:
        assert first.stderr is not None
        wait_for((cache / f".{SHA256}.lock").exists)
        process = second.start()
        try:
            assert process.stderr is not None
            while "another pod on this node is fetching the same" not in process.stderr.readline():
                assert process.poll() is None
            first.kill()
            registry.thaw()
            assert process.wait(60) == 0
            assert second.file.read_bytes() == FILE
        finally:
            end(process)
    finally:
        end(first)


def test_nobody_waits_for_the_registry_holding_the_lock(
    node: Node, cache: Path, registry: RealRegistry, tmp_path: Path, signer: Signer
) -> None:
    """The one has credentials that do not work, or another way to the registry that is down: the other goes on."""
    lost = another_pod(node, tmp_path / "lost", registry, signer)
    lost.environment["OUTRIDER_REFERENCE"] = lost.environment["OUTRIDER_REFERENCE"].replace(
        registry.host, "127.0.0.1:1"
    )
    process = lost.start()
    try:
        assert process.stderr is not None
        while "waiting: " not in process.stderr.readline():
            assert process.poll() is None
        assert node.run()[0] == 0
        # And what that one has brought serves the first, too.
        assert process.wait(60) == 0
        assert lost.file.read_bytes() == FILE
    finally:
        end(process)


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment_it_leaves_the_whole_file_or_none(
    node: Node, cache: Path, registry: RealRegistry, tmp_path: Path, signer: Signer, seed: int
) -> None:
    process = node.start()
    try:
        time.sleep(random.Random(seed).uniform(0.3, 0.9))  # noqa: S311
    finally:
        end(process)
    for file in (node.file, cache / SHA256 / "file"):
        assert not file.exists() or file.read_bytes() == FILE
    pod = another_pod(node, tmp_path / "other", registry, signer)
    assert pod.run()[0] == 0
    assert pod.file.read_bytes() == FILE
    assert sorted(path.name for path in (cache / SHA256).iterdir()) == [RECORD, "file"]


# Pruning


def versions(node: Node, registry: RealRegistry, signer: Signer, count: int) -> Iterator[tuple[str, bytes]]:
    """Publish versions and let the node fetch one after the other; yield the hash and bytes of each."""
    for number in range(count):
        data = f"#!/bin/sh\necho {number}\n".encode()
        version = f"2.0.{number}"
        index = publish(registry, signer, version=version, data=data)
        node.environment |= {
            "OUTRIDER_REFERENCE": f"{registry.host}/{REPOSITORY}@{index}",
            "OUTRIDER_VERSION": version,
            "OUTRIDER_DIGESTS": json.dumps({PLATFORM: sha256_of(data)}),
        }
        yield sha256_of(data), data


def kept(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if not path.name.startswith(".")}


def test_the_three_that_were_used_last_stay(node: Node, cache: Path, registry: RealRegistry, signer: Signer) -> None:
    used: list[str] = []
    for sha256, data in versions(node, registry, signer, 5):
        code, log = node.run()
        assert code == 0, log
        assert node.file.read_bytes() == data
        used.append(sha256)
        assert kept(cache) == set(used[-KEPT:])
    assert len(list(cache.iterdir())) == 2 * KEPT  # a lock each


def test_a_clock_that_goes_back_does_not_change_who_was_used_last(
    node: Node, cache: Path, registry: RealRegistry, signer: Signer
) -> None:
    used: list[str] = []
    for sha256, _ in versions(node, registry, signer, 4):
        assert node.run()[0] == 0
        used.append(sha256)
        # As if the clock had been years ahead, and then was set right.
        ahead = 4_000_000_000 + len(used)
        if len(used) <= 2:
            os.utime(cache / sha256, (ahead, ahead))
    assert kept(cache) == set(used[-KEPT:])


def test_what_was_refused_takes_nobody_s_place(
    node: Node, cache: Path, registry: RealRegistry, signer: Signer, make_signer: MakeSigner
) -> None:
    assert node.run()[0] == 0
    for sha256, _ in versions(node, registry, make_signer("somebody"), 4):
        assert node.run()[0] == 3
        assert sha256 not in kept(cache)
    assert kept(cache) == {SHA256}


# Preparing


def test_preparing_fills_the_cache_and_nothing_else(
    node: Node, cache: Path, registry: RealRegistry, tmp_path: Path, signer: Signer
) -> None:
    prepared = another_pod(node, tmp_path / "prepare", registry, signer)
    del prepared.environment["OUTRIDER_TARGET_DIR"]
    idle = tmp_path / "idle"
    idle.mkdir()
    prepared.environment |= {"OUTRIDER_PREPARE": "true", "OUTRIDER_IDLE_DIR": str(idle)}
    code, log = prepared.run()
    assert code == 0, log
    assert (cache / SHA256 / "file").read_bytes() == FILE
    assert [path.name for path in idle.iterdir()] == ["idle"]
    # Once more, without the registry: it is verified where it is.
    registry.kill()
    code, log = prepared.run()
    assert code == 0, log
    assert "verified again in the cache" in log
    assert node.run()[0] == 0
    assert node.file.read_bytes() == FILE


def test_preparing_what_must_not_run_is_refused(node: Node, cache: Path, make_signer: MakeSigner) -> None:
    node.environment["OUTRIDER_PREPARE"] = "true"
    remove_key(node, "replaced", make_signer)
    code, _ = node.run()
    assert code == 3
    assert node.termination.read_text().startswith("SignatureUntrusted: ")
    assert kept(cache) == set()


def test_preparing_for_images_only_brings_the_idle_program(tmp_path: Path, node: Node) -> None:
    idle = tmp_path / "idle"
    idle.mkdir()
    node.environment = {
        "PYTHONPATH": node.environment["PYTHONPATH"],
        "OUTRIDER_PREPARE": "true",
        "OUTRIDER_IDLE_DIR": str(idle),
    }
    code, log = node.run()
    assert code == 0, log
    assert stat.S_IMODE((idle / "idle").stat().st_mode) == 0o555


def test_preparing_without_a_cache_is_a_mistake(node: Node) -> None:
    node.environment["OUTRIDER_PREPARE"] = "true"
    code, _ = node.run()
    assert code == 2
    assert node.termination.read_text() == (
        "ConfigInvalid: OUTRIDER_PREPARE is true, and OUTRIDER_CACHE_DIR is not set"
    )


@pytest.fixture
def idle(tmp_path: Path) -> Path:
    program = build_idle(f"linux/{ARCHITECTURES[MACHINE]}")
    if program is None:
        pytest.skip(f"there is no such program for {MACHINE}")
    path = tmp_path / "idle"
    path.write_bytes(program)
    path.chmod(0o555)
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_idle_program_waits_and_ends_at_once_when_told(idle: Path, number: signal.Signals) -> None:
    process = subprocess.Popen([idle], env={})
    try:
        wait_for(lambda: state(process.pid) == "S")
        # Stopped and continued it waits on.
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: state(process.pid) == "T")
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: state(process.pid) == "S")
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()


def test_the_idle_program_ends_as_the_first_process_of_a_container(idle: Path) -> None:
    """To which the kernel hands no signal that is neither blocked nor handled."""
    command = ["unshare", "--pid", "--fork", "--kill-child", str(idle)]
    if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("a PID namespace needs root")
    process = subprocess.Popen(command, env={"PATH": os.environ["PATH"]})
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_for(lambda: bool(children.read_text().split()))
        child = int(children.read_text().split()[0])
        wait_for(lambda: Path(f"/proc/{child}/exe").readlink() == idle and state(child) == "S")
        os.kill(child, signal.SIGTERM)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()


def test_the_idle_program_of_each_platform_is_what_it_says() -> None:
    for platform, machine in (("linux/amd64", 62), ("linux/arm64", 183)):
        program = build_idle(platform)
        assert program is not None
        assert program[:7] == b"\x7fELF\x02\x01\x01"
        assert int.from_bytes(program[18:20], "little") == machine
        assert int.from_bytes(program[24:32], "little") == 0x400000 + 120  # starts behind the headers
        assert program[-8:] == (0x4002).to_bytes(8, "little")
        assert len(program) == 184 if platform == "linux/amd64" else 192
    assert build_idle("linux/riscv64") is None


def state(pid: int) -> str:
    """Return what a process does: S sleeps, T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Where it cannot be written to


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "small", "size=1m")


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_cache_that_is_too_small_is_gone_without_and_preparing_says_so(node: Node, small_disk: Path) -> None:
    cache = node.use_cache(small_disk)
    code, log = node.run()
    assert code == 0, log
    assert "going on without the cache: NoSpace: " in log
    assert node.file.read_bytes() == FILE
    assert kept(cache) == set()
    node.environment["OUTRIDER_PREPARE"] = "true"
    code, _ = node.run()
    assert code == 4
    assert node.termination.read_text().startswith("NoSpace: ")
    assert "make room on this node" in node.termination.read_text()


def test_a_disk_that_fills_up_meanwhile_is_full(node: Node, tmp_path: Path) -> None:
    """Not enough inodes: what no look at the free space foretells."""
    for folder in mounted(tmp_path / "inodes", "size=64m,nr_inodes=5"):
        node.use_cache(folder)
        node.environment["OUTRIDER_PREPARE"] = "true"
        code, log = node.run()
        assert code == 4, log
        assert node.termination.read_text().startswith("NoSpace: ")


def test_a_cache_that_is_read_only_is_gone_without_and_preparing_says_so(node: Node, tmp_path: Path) -> None:
    for folder in mounted(tmp_path / "ro", "size=64m,ro"):
        node.use_cache(folder)
        code, log = node.run()
        assert code == 0, log
        assert "going on without the cache: NodeStorage: " in log
        assert "read-only file system" in log
        assert node.file.read_bytes() == FILE
        node.environment["OUTRIDER_PREPARE"] = "true"
        code, _ = node.run()
        assert code == 4
        assert node.termination.read_text().startswith("NodeStorage: ")


@pytest.mark.parametrize("what", ["link", "file"])
def test_what_stands_in_the_way_of_its_folder_is_not_followed(node: Node, tmp_path: Path, what: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cache = node.use_cache(tmp_path / "cache")
    if what == "link":
        cache.symlink_to(elsewhere)
    else:
        cache.touch()
    code, log = node.run()
    assert code == 0
    assert "going on without the cache: NodeStorage: " in log
    assert list(elsewhere.iterdir()) == []


# Who it is


DRIVER = """
import os, sys
import encodings.idna, outrider.node.download  # what is loaded later must not lie where only root may look
import outrider.node.__main__ as program
program.main()
"""
"""The program itself; the tests' own Python may lie where nobody but root can read it."""

CAPABILITIES = "--bounding-set=-all,+chown,+setuid,+setgid"


@pytest.fixture
def world(signer: Signer) -> Iterator[Path]:
    """A folder whose path everybody may walk."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    folder = Path(tempfile.mkdtemp(prefix="outrider-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def rooted(world: Path, registry: RealRegistry, signer: Signer) -> Node:
    """A pod that starts as root with three capabilities and is to become somebody else."""
    node = Node(world / "node", registry, publish(registry, signer), signer)
    node.use_cache(world / "cache")
    node.environment["OUTRIDER_RUN_AS"] = "65532"
    node.target.chmod(0o777)
    node.termination.chmod(0o666)
    return node


def run_as_root(node: Node, *options: str) -> tuple[int, str]:
    return node.run("setpriv", CAPABILITIES, "--no-new-privs", *options, sys.executable, "-c", DRIVER)


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_it_becomes_nobody_in_particular_and_everything_it_makes_is_that_user_s(
    rooted: Node, world: Path, mode: int
) -> None:
    (world / "cache").chmod(mode)
    for _ in range(2):
        code, log = run_as_root(rooted)
        assert code == 0, log
        assert "without the cache" not in log
        made = [world / "cache/fleet.node-agent", *(world / "cache/fleet.node-agent").rglob("*"), rooted.file]
        assert {path.stat().st_uid for path in made} == {65532}
        assert {path.stat().st_gid for path in made} == {65532}
        assert rooted.file.read_bytes() == FILE
        rooted.file.unlink()


def test_it_is_that_user_before_it_speaks_to_anybody(rooted: Node, registry: RealRegistry) -> None:
    registry.freeze()
    process = rooted.start("setpriv", CAPABILITIES, "--no-new-privs", sys.executable, "-c", DRIVER)
    try:
        assert process.stderr is not None
        assert "fetching" in process.stderr.readline()
        # It said so before it did anything; what it is now it was then.
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        facts = dict(line.split(":", 1) for line in status)
        assert facts["Uid"].split() == facts["Gid"].split() == ["65532"] * 4
        assert facts["Groups"].split() == []
        assert int(facts["CapEff"], 16) == int(facts["CapPrm"], 16) == 0
    finally:
        end(process)
        registry.thaw()


def test_without_the_right_to_become_it_says_so(rooted: Node) -> None:
    code, log = rooted.run("setpriv", "--bounding-set=-all", sys.executable, "-c", DRIVER)
    assert code == 2
    assert "OUTRIDER_RUN_AS is 65532, and this is user 0, who may not become that" in log


def test_a_cache_of_another_user_is_left_alone(rooted: Node, world: Path) -> None:
    folder = world / "cache/fleet.node-agent"
    folder.mkdir()
    os.chown(folder, 1234, 1234)
    code, log = run_as_root(rooted)
    assert code == 0, log
    assert "belongs to user 1234, and not to 65532; remove it from this node" in log
    assert rooted.file.read_bytes() == FILE
    assert rooted.file.stat().st_uid == 65532
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("value", ["0", "root", "-1", "65532x", "99999999999"])
def test_a_user_that_is_none(node: Node, value: str) -> None:
    node.environment["OUTRIDER_RUN_AS"] = value
    code, log = node.run()
    assert code == 2
    assert "OUTRIDER_RUN_AS is not the number of a user other than root" in log


# What a clock has to do with it


@pytest.mark.parametrize("when", ["1970-01-02 00:00:00", "2099-01-01 00:00:00"])
def test_a_wrong_clock_changes_nothing(node: Node, cache: Path, registry: RealRegistry, when: str) -> None:
    """Verification looks at no clock; only TLS needs one, and what is in the cache needs no registry."""
    if shutil.which("faketime") is None:
        driver = (
            "import time, datetime, calendar\n"
            f"wrong = calendar.timegm(time.strptime({when!r}, '%Y-%m-%d %H:%M:%S'))\n"
            "time.time = lambda: float(wrong)\n"
            "time.time_ns = lambda: wrong * 10**9\n"
            "from outrider.node.__main__ import main\n"
            "main()\n"
        )
        command = [sys.executable, "-c", driver]
    else:
        command = ["faketime", when, sys.executable, "-m", "outrider.node"]
    code, log = node.run(*command)
    assert code == 0, log
    shutil.rmtree(node.target)
    node.target.mkdir()
    registry.kill()
    code, log = node.run(*command)
    assert code == 0, log
    assert node.file.read_bytes() == FILE


# The wrong processor


def program_for(machine: int) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(100)


def test_a_program_for_another_processor_is_refused_before_it_is_in_place(
    tmp_path: Path, registry: RealRegistry, signer: Signer
) -> None:
    machines = {"linux/amd64": 62, "linux/arm64": 183}
    for platform, machine in machines.items():
        data = program_for(machine)
        node = Node(tmp_path / str(machine), registry, publish(registry, signer, data=data), signer)
        node.environment["OUTRIDER_DIGESTS"] = json.dumps({PLATFORM: sha256_of(data)})
        if platform == PLATFORM:
            assert node.run()[0] == 0
        else:
            name = platform.partition("/")[2]
            assert node.refused() == (
                f"ArchitectureMismatch: node-agent 1.4.0 is stored for {PLATFORM}, but is a program for {name}; "
                "publish a version with the right file"
            )


# Configuration


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"OUTRIDER_DIGESTS": ""}, "OUTRIDER_CACHE_DIR is set, and OUTRIDER_DIGESTS, by which it is filled, is not"),
        ({"OUTRIDER_NAMESPACE": ""}, "OUTRIDER_NAMESPACE is no name that a folder of the cache can have"),
        ({"OUTRIDER_NAMESPACE": "../x"}, "OUTRIDER_NAMESPACE is no name that a folder of the cache can have"),
        ({"OUTRIDER_COMPONENT": ".."}, "OUTRIDER_COMPONENT is no name that a folder of the cache can have"),
        ({"OUTRIDER_PREPARE": "perhaps"}, "OUTRIDER_PREPARE is neither true nor false"),
    ],
)
def test_a_wrong_environment_is_named(node: Node, cache: Path, changes: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text.replace(".", r"\.")):
        read_config({**node.environment, **changes})


def test_statements_for_another_version_do_not_pass_from_the_cache(
    tmp_path: Path, registry: RealRegistry, signer: Signer
) -> None:
    """The same file, published as two versions: each needs what was said about it."""
    author = Author("p256")

    def said(version: str) -> list[Evidence]:
        text = json.dumps(statement(FILE, component="node-agent", platform=PLATFORM, version=version))
        return [evidence("OutriderStatement", author.envelope(text.encode()))]

    node = Node(tmp_path / "node", registry, publish(registry, signer, evidence=said("1.4.0")), signer)
    node.use_cache(tmp_path / "cache")
    (node.keys / "release.pub").write_bytes(author.pem)
    assert node.run()[0] == 0
    index = publish(registry, signer, version="1.5.0", evidence=[])
    other = another_pod(node, tmp_path / "other", registry, signer)
    other.environment |= {
        "OUTRIDER_REFERENCE": f"{registry.host}/{REPOSITORY}@{index}",
        "OUTRIDER_VERSION": "1.5.0",
    }
    code, log = other.run()
    assert code == 3, log
    assert "SignatureMissing" in log


def test_a_second_copy_of_the_cache_s_rules_is_not_needed(node: Node, cache: Path) -> None:
    """What the tests above do by processes, as a call: the path that is returned is the file's."""
    config = read_config(node.environment)
    assert config.cache_dir is not None
    opened = Cache.open(config.cache_dir, config)
    opened.use()
    assert fetch(config, lambda _: None, machine=MACHINE, cache=opened) == node.file
