"""`outrider verify` and `outrider sign` as people run them: a process, files, a real registry."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

import outrider
from adapters.realservers import BCRYPT, PASSWORD, USERNAME, RealRegistry, running_registry, sha256_of
from adapters.realtools import KEY_OPTIONS, ToolError, Tools
from adapters.signing import MakeSigner, Signer
from outrider.__main__ import main
from outrider.adapters.ingest import ArtifactFacts, store_artifact_manifest, store_evidence, store_index
from outrider.adapters.registry import OciRegistry
from outrider.trust.evidence import Evidence
from unit.authors import Author, evidence, statement

FILE = b"#!/bin/sh\necho an agent\n" * 1000
SHA256 = sha256_of(FILE)
AS_AGENT = ("--component", "agent", "--version", "1.4.0", "--platform", "linux/amd64")


@dataclass
class Ran:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str


class Desk:
    """A folder with a file, keys and signatures, and a terminal."""

    def __init__(self, folder: Path, signer: Signer) -> None:
        self.folder = folder
        self.signer = signer
        self.write("node-agent", FILE)
        self.write("release.pub", signer.public.read_bytes())
        self.write("release.key", signer.private.read_bytes())
        self.write("raw.sig", signer.detached(FILE))
        self.write("node-agent.sig", signer.sign(FILE).encode())
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(outrider.__file__).parents[1])}

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def run(self, *arguments: str) -> Ran:
        """Run a command here, which is quick: starting Python and importing the operator takes a second."""
        with contextlib.chdir(self.folder):
            result = CliRunner().invoke(main, arguments, env=self.environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    def start(self, *arguments: str) -> Ran:
        """Run a command as a process."""
        process = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Ran(process.returncode, process.stdout, process.stderr)

    @staticmethod
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "outrider", *arguments]


@pytest.fixture
def desk(tmp_path: Path, make_signer: MakeSigner) -> Desk:
    return Desk(tmp_path, make_signer())


# Files


@pytest.mark.parametrize("signature", ["raw.sig", "node-agent.sig"])
def test_a_signed_file_passes_and_the_steps_are_told(desk: Desk, signature: str) -> None:
    ran = desk.start("verify", "node-agent", "--key", "release.pub", "--signature", signature, "--sha256", SHA256)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0] == "node-agent (24,000 bytes)"
    assert [line.split(".")[0] for line in lines[1:6]] == [f"  {number}" for number in range(1, 6)]
    assert lines[2] == f"  2. bytes hash to {SHA256}"
    assert lines[6].startswith("PASSED: signed by sha256:")
    assert lines[6].endswith(" (release.pub), format Detached")
    assert "does not say for which component and version" in lines[7]


def test_a_changed_file_is_refused(desk: Desk) -> None:
    desk.write("node-agent", FILE[:-1] + b"!")
    ran = desk.run("verify", "node-agent", "--key", "release.pub", "--signature", "raw.sig")
    assert ran.code == 1
    assert "REFUSED: SignatureUntrusted: the signature of node-agent was not made over these bytes" in ran.out
    ran = desk.run("verify", "node-agent", "--key", "release.pub", "--signature", "raw.sig", "--sha256", SHA256)
    assert ran.code == 1
    assert "REFUSED: DigestMismatch: " in ran.out


def test_programs_get_json(desk: Desk) -> None:
    arguments = ("verify", "node-agent", "--key", "release.pub", "--signature", "raw.sig", "--output", "json")
    value = json.loads(desk.run(*arguments).out)
    [artifact] = value["artifacts"]
    assert (value["result"], artifact["result"]) == ("Passed", "Passed")
    assert (artifact["sha256"], artifact["size"], artifact["binds"]) == (SHA256, len(FILE), False)
    desk.write("node-agent", b"other")
    ran = desk.run(*arguments)
    assert ran.code == 1
    [artifact] = json.loads(ran.out)["artifacts"]
    assert (artifact["result"], artifact["reason"]) == ("Refused", "SignatureUntrusted")


@pytest.mark.parametrize("kind", ["p256", "p384"])
def test_bundles_are_recognised_by_what_they_hold(desk: Desk, kind: str) -> None:
    author = Author(kind)
    desk.write("author.pub", author.pem)
    for value, format_ in (
        (author.bundle(FILE), "SigstoreBundle"),
        (author.enveloping(json.dumps(statement(FILE)).encode()), "OutriderStatement"),
    ):
        desk.write("bundle.json", json.dumps(value).encode())
        keys = ("--key", "release.pub", "--key", "author.pub")
        ran = desk.run("verify", "node-agent", *keys, "--bundle", "bundle.json", *AS_AGENT)
        assert ran.code == 0, ran.out
        assert f"(author.pub), format {format_}" in ran.out


@pytest.mark.parametrize("content", [b"", b"{}", b"garbage", b"[" * 100_000, b" " * 2_000_000])
def test_bundles_that_cannot_be_read_are_refused(desk: Desk, content: bytes) -> None:
    desk.write("bundle.json", content)
    ran = desk.run("verify", "node-agent", "--key", "release.pub", "--bundle", "bundle.json")
    assert ran.code == 1
    assert "REFUSED: BundleMalformed: the bundle cannot be read: it " in ran.out


def test_a_binding_can_be_demanded(desk: Desk) -> None:
    ran = desk.run("verify", "node-agent", "--key", "release.pub", "--signature", "raw.sig", "--require-binding")
    assert ran.code == 1
    assert "REFUSED: BindingRequired: " in ran.out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("verify",), "Missing argument 'FILE|REFERENCE'"),
        (("verify", "node-agent"), "Missing option '--key'"),
        (("verify", "node-agent", "--key", "release.pub"), "a file needs exactly one of --signature"),
        (
            ("verify", "node-agent", "--key", "release.pub", "--signature", "raw.sig", "--bundle", "raw.sig"),
            "a file needs exactly one of --signature",
        ),
        (("verify", "nothing", "--key", "release.pub"), "there is no file nothing; and as a reference: "),
        (("verify", "a/b", "--key", "release.pub"), "there is no file a/b; and as a reference: "),
        (("verify", "node-agent", "--key", "node-agent.sig", "--signature", "raw.sig"), "it is not PEM"),
        (("verify", "node-agent", "--key", "nothing", "--signature", "raw.sig"), "'nothing' does not exist"),
        (
            ("verify", "node-agent", "--key", "release.key", "--signature", "raw.sig"),
            "this is a private key; give its public half",
        ),
        (
            ("verify", "node-agent", "--key", "release.pub", "--signature", "raw.sig", "--sha256", "abc"),
            "is not a SHA-256 in hex",
        ),
        (
            ("verify", "node-agent", "--key", "release.pub", "--statement", "raw.sig", "--component", "agent"),
            "give --version",
        ),
        (("verify", "localhost:1/a/b:1.0", "--key", "release.pub", "--bundle", "raw.sig"), "are for files"),
    ],
)
def test_wrong_usage_says_what_is_wrong(desk: Desk, arguments: tuple[str, ...], text: str) -> None:
    ran = desk.run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert text in ran.err
    assert "Traceback" not in ran.err


# Signing


def test_what_is_signed_here_verifies_as_that_version_and_as_no_other(desk: Desk) -> None:
    ran = desk.run("sign", "node-agent", *AS_AGENT, "--key", "release.key", "--output", "statement.json")
    assert (ran.code, ran.out) == (0, "")
    assert f"signed node-agent (24,000 bytes, sha256 {SHA256}) as agent 1.4.0 for linux/amd64" in ran.err
    verifying = ("verify", "node-agent", "--key", "release.pub", "--statement", "statement.json", "--require-binding")
    ran = desk.run(*verifying, *AS_AGENT)
    assert ran.code == 0, ran.out
    assert "the statement binds agent 1.4.0 linux/amd64" in ran.out
    for option, value in (("--component", "probe"), ("--version", "1.4.1"), ("--platform", "linux/arm64")):
        ran = desk.run(*verifying, *AS_AGENT, option, value)
        assert ran.code == 1
        assert "REFUSED: StatementMismatch: " in ran.out


def test_without_an_output_file_the_statement_is_all_that_stdout_gets(desk: Desk) -> None:
    ran = desk.start("sign", "node-agent", *AS_AGENT, "--key", "release.key")
    assert ran.code == 0
    assert json.loads(ran.out)["payloadType"] == "application/vnd.in-toto+json"
    assert ran.out.endswith("}\n")


@pytest.mark.parametrize("kind", KEY_OPTIONS)
def test_cosign_checks_what_is_signed_here(desk: Desk, tools: Tools, signers: dict[str, Signer], kind: str) -> None:
    signer, cosign = signers[kind], tools.cosign
    arguments = ("sign", "node-agent", *AS_AGENT, "--key", str(signer.private), "--format", "bundle")
    assert desk.run(*arguments, "--output", "bundle.json").code == 0
    bundle = (desk.folder / "bundle.json").read_bytes()
    cosign.verify_blob_attestation(desk.folder / "node-agent", bundle, signer.public)
    desk.write("node-agent", FILE + b"!")
    with pytest.raises(ToolError):
        cosign.verify_blob_attestation(desk.folder / "node-agent", bundle, signer.public)
    ran = desk.run("verify", "node-agent", "--key", str(signer.public), "--bundle", "bundle.json", *AS_AGENT)
    assert ran.code == 1
    desk.write("node-agent", FILE)
    ran = desk.run("verify", "node-agent", "--key", str(signer.public), "--bundle", "bundle.json", *AS_AGENT)
    assert ran.code == 0, ran.out


def protect(desk: Desk, passphrase: str) -> None:
    """Put a passphrase on the key, as openssl does."""
    command = ["openssl", "pkey", "-in", "release.key", "-aes256", "-passout", f"pass:{passphrase}", "-out", "safe.key"]
    subprocess.run(command, cwd=desk.folder, check=True, capture_output=True)


def test_the_passphrase_comes_from_the_environment(desk: Desk) -> None:
    protect(desk, "open sesame")
    arguments = ("sign", "node-agent", *AS_AGENT, "--key", "safe.key")
    ran = desk.run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "is protected by a passphrase: set OUTRIDER_KEY_PASSPHRASE" in ran.err
    desk.environment["OUTRIDER_KEY_PASSPHRASE"] = "wrong-secret"
    ran = desk.run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "the passphrase is wrong" in ran.err
    assert "wrong-secret" not in ran.err
    desk.environment["OUTRIDER_KEY_PASSPHRASE"] = "open sesame"
    assert desk.run(*arguments).code == 0
    # A key that needs none is not bothered by it.
    assert desk.run("sign", "node-agent", *AS_AGENT, "--key", "release.key").code == 0


def test_the_passphrase_is_asked_for_in_a_terminal_and_not_shown(desk: Desk) -> None:
    protect(desk, "open sesame")
    arguments = ("sign", "node-agent", *AS_AGENT, "--key", "safe.key", "--output", "statement.json")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        desk.command(*arguments),
        cwd=desk.folder,
        env=desk.environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    try:
        while b"Passphrase of safe.key" not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, b"open sesame\n")
        while b"signed node-agent" not in shown:
            shown += os.read(ours, 1000)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"open sesame" not in shown
    assert (desk.folder / "statement.json").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (("--component", "Agent"), "no ComponentVersion can have 'Agent' there; write it as in node-agent"),
        (("--version", "1.4"), "no ComponentVersion can have '1.4' there"),
        (("--version", "v1.4.0"), "no ComponentVersion can have 'v1.4.0' there"),
        (("--platform", "amd64"), "no ComponentVersion can have 'amd64' there; write it as in linux/amd64"),
        (("--key", "release.pub"), "it is not a private key in PEM"),
        (("--key", "node-agent.sig"), "it is not a private key in PEM"),
        (("--key", "node-agent"), "no private key needs more than 16384"),
        (("--output", "nowhere/statement.json"), "cannot be written: no such file or directory"),
    ],
)
def test_nothing_is_signed_that_no_operator_would_accept(desk: Desk, changes: tuple[str, str], text: str) -> None:
    ran = desk.run("sign", "node-agent", *AS_AGENT, "--key", "release.key", *changes)
    assert (ran.code, ran.out) == (2, "")
    assert text in ran.err
    assert "Traceback" not in ran.err


# Stored versions


def publish(client: OciRegistry, repository: str, pieces: dict[str, list[Evidence]]) -> str:
    """Store FILE as agent 1.4.0 for some platforms, each with evidence, and return the digest of the index."""
    blob = client.push_bytes(repository, FILE)
    entries = {}
    for platform, evidence_ in pieces.items():
        facts = ArtifactFacts("agent", "1.4.0", platform, "node-agent")
        entries[platform] = store_artifact_manifest(client, repository, blob, facts)
        for piece in evidence_:
            store_evidence(client, repository, entries[platform], piece)
    return store_index(client, repository, "agent", "1.4.0", entries, publish=True).digest


def test_a_stored_version_is_verified_platform_by_platform(
    desk: Desk, shared_registry: RealRegistry, client: OciRegistry, repository: str
) -> None:
    author = Author("p384")
    desk.write("author.pub", author.pem)
    digest = publish(
        client,
        repository,
        {
            "linux/amd64": [Evidence("Detached", desk.signer.detached(FILE))],
            "linux/arm64": [evidence("SigstoreBundle", author.bundle(FILE))],
        },
    )
    name = f"{shared_registry.host}/{repository}"
    both = ("--key", "release.pub", "--key", "author.pub", "--plain-http")
    for reference in (f"{name}:1.4.0", f"{name}@{digest}", f"{name}:whatever@{digest}"):
        ran = desk.run("verify", reference, *both)
        assert ran.code == 0, ran.out
        assert ran.out.count("PASSED") == 2
        assert " for linux/amd64 (24,000 bytes)" in ran.out
        assert "(author.pub), format SigstoreBundle" in ran.out

    # One key vouches for one platform only: the version as a whole is refused, that platform passes.
    ran = desk.run("verify", f"{name}:1.4.0", "--key", "release.pub", "--plain-http", "--output", "json")
    assert ran.code == 1
    value = json.loads(ran.out)
    assert value["result"] == "Refused"
    assert {each["platform"]: each["result"] for each in value["artifacts"]} == {
        "linux/amd64": "Passed",
        "linux/arm64": "Refused",
    }
    one = ("verify", f"{name}:1.4.0", "--key", "release.pub", "--plain-http", "--platform")
    assert desk.run(*one, "linux/amd64").code == 0
    assert desk.run(*one, "linux/arm64").code == 1
    ran = desk.run(*one, "linux/s390x")
    assert ran.code == 1
    assert "PlatformMissing: this version has no artifact for linux/s390x, only for linux/amd64, linux/arm64" in ran.out

    manifest = value["artifacts"][0]["subject"]
    assert desk.run("verify", manifest, "--key", "release.pub", "--plain-http").code == 0
    ran = desk.run("verify", manifest, "--key", "release.pub", "--plain-http", "--version", "1.5.0")
    assert ran.code == 1
    assert "ManifestInvalid: it is about version 1.4.0, and 1.5.0 was expected" in ran.out


def test_a_stored_version_that_nothing_vouches_for(
    desk: Desk, shared_registry: RealRegistry, client: OciRegistry, repository: str
) -> None:
    publish(client, repository, {"linux/amd64": []})
    ran = desk.run("verify", f"{shared_registry.host}/{repository}:1.4.0", "--key", "release.pub", "--plain-http")
    assert ran.code == 1
    assert "REFUSED: SignatureMissing: nothing vouches for agent 1.4.0 linux/amd64" in ran.out


def test_a_stored_file_that_was_tampered_with(desk: Desk, registry: RealRegistry) -> None:
    with registry.client() as client:
        publish(client, "fleet/agent", {"linux/amd64": [Evidence("Detached", desk.signer.detached(FILE))]})
    registry.blob_file("sha256:" + SHA256).write_bytes(b"!" * len(FILE))
    ran = desk.start("verify", f"{registry.host}/fleet/agent:1.4.0", "--key", "release.pub", "--plain-http")
    assert ran.code == 1
    assert "REFUSED: BlobCorrupted: " in ran.out


def test_what_cannot_be_told_is_neither(desk: Desk, registry: RealRegistry) -> None:
    arguments = ("verify", f"{registry.host}/fleet/agent:1.4.0", "--key", "release.pub")
    ran = desk.run(*arguments, "--plain-http")
    assert ran.code == 3
    assert "CANNOT TELL: ArtifactMissing: there is no " in ran.out
    registry.kill()
    ran = desk.start(*arguments, "--plain-http", "--output", "json")
    assert ran.code == 3
    assert json.loads(ran.out)["artifacts"][0]["reason"] == "RegistryUnavailable"


def test_a_private_registry_wants_credentials(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(f"{USERNAME}:{BCRYPT}\n")
    auth = {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}
    with running_registry(tmp_path / "registry", auth) as registry:
        with registry.client(username=USERNAME, password=PASSWORD) as client:
            publish(client, "fleet/agent", {"linux/amd64": [Evidence("Detached", desk.signer.detached(FILE))]})
        arguments = ("verify", f"{registry.host}/fleet/agent:1.4.0", "--key", "release.pub", "--plain-http")
        ran = desk.run(*arguments)
        assert ran.code == 3
        assert "CANNOT TELL: RegistryDenied: " in ran.out
        config = {"auths": {registry.host: {"username": USERNAME, "password": PASSWORD}}}
        desk.write("config.json", json.dumps(config).encode())
        ran = desk.run(*arguments, "--docker-config", "config.json")
        assert ran.code == 0, ran.out


# What others publish


def test_an_image_that_cosign_signed(
    desk: Desk, tools: Tools, signers: dict[str, Signer], shared_registry: RealRegistry, repository: str
) -> None:
    name = f"{shared_registry.host}/{repository}"
    digest = tools.crane.push_image(f"{name}:1.0", {"agent": FILE})
    ran = desk.run("verify", f"{name}:1.0", "--key", str(signers["P-256"].public), "--plain-http")
    assert ran.code == 1
    assert "REFUSED: SignatureMissing: " in ran.out
    tools.cosign.sign(f"{name}@{digest}", signers["P-256"])
    tools.cosign.sign(f"{name}@{digest}", signers["P-384"], classic=True)
    for kind, format_ in (("P-256", "SigstoreAttestation"), ("P-384", "CosignClassic")):
        for reference in (f"{name}:1.0", f"{name}@{digest}"):
            ran = desk.run("verify", reference, "--key", str(signers[kind].public), "--plain-http")
            assert ran.code == 0, ran.out
            assert ran.out.startswith(f"{name}@{digest} (")
            assert f"format {format_}" in ran.out
    arguments = ("verify", f"{name}:1.0", "--key", str(signers["P-256"].public), "--plain-http", "--platform")
    assert desk.run(*arguments, "linux/amd64").code == 0
    ran = desk.run(*arguments, "linux/arm64")
    assert ran.code == 1
    assert "PlatformNotFound" in ran.out
    assert desk.run("verify", f"{name}:1.0", "--key", str(signers["RSA-3072"].public), "--plain-http").code == 1


def test_a_file_in_an_artifact_that_cosign_signed(
    desk: Desk, tools: Tools, signers: dict[str, Signer], shared_registry: RealRegistry, repository: str
) -> None:
    name = f"{shared_registry.host}/{repository}"
    signer = signers["P-384"]
    digest = tools.oras.push(f"{name}:1.4.0", desk.folder / "node-agent")
    arguments = ("verify", f"{name}:1.4.0", "--key", str(signer.public), "--plain-http")
    tools.cosign.sign(f"{name}@{digest}", signer)
    ran = desk.run(*arguments, "--sha256", SHA256)
    assert ran.code == 0, ran.out
    assert "1 document leads from what was signed to the file" in ran.out
    assert desk.run(*arguments).code == 0
    ran = desk.run(*arguments, "--sha256", "0" * 64)
    assert ran.code == 1
    assert "LayerNotFound" in ran.out
    ran = desk.run(*arguments, "--sha256", SHA256, *AS_AGENT, "--require-binding")
    assert ran.code == 1
    assert "BindingRequired" in ran.out
    predicate = {"component": "agent", "version": "1.4.0", "platform": "linux/amd64", "size": len(FILE)}
    tools.cosign.attest(f"{name}@{digest}", signer, predicate)
    ran = desk.run(*arguments, "--sha256", SHA256, *AS_AGENT, "--require-binding")
    assert ran.code == 0, ran.out
    assert "the statement binds agent 1.4.0 linux/amd64" in ran.out


def test_help_is_quick_and_loads_nothing_of_this(desk: Desk) -> None:
    program = "import sys, outrider.cli.verify, outrider.cli.sign; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, env=desk.environment, capture_output=True, check=True, text=True).stdout.split()
    assert not {"cryptography", "oras", "requests", "pydantic"} & set(loaded)
    ran = desk.start("--help")
    assert ran.code == 0
    assert "Verify a FILE or a REFERENCE as the operator does." in ran.out
    assert "Sign a FILE as one version of a component." in ran.out
