"""How a node reaches a registry: with what its Secret holds, which is read anew at each attempt."""

import base64
import datetime
import ipaddress
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adapters.nodeside import FILE, MACHINE, REPOSITORY, Node, publish
from adapters.realservers import BCRYPT, PASSWORD, USERNAME, RealRegistry, running_registry
from adapters.signing import MakeSigner, Signer
from outrider.node.config import read_config
from outrider.node.fetch import fetch


@pytest.fixture
def signer(make_signer: MakeSigner) -> Signer:
    return make_signer()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """The folder where the Secret is mounted; empty, as it is where there is none."""
    folder = tmp_path / "secret"
    folder.mkdir()
    return folder


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RealRegistry]:
    """A registry that wants a password."""
    (tmp_path / "htpasswd").write_text(f"{USERNAME}:{BCRYPT}\n")
    auth = {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}
    with running_registry(tmp_path / "registry", auth) as registry:
        yield registry


@pytest.fixture
def node(tmp_path: Path, guarded: RealRegistry, signer: Signer, secret: Path) -> Node:
    index = publish(guarded, signer, username=USERNAME, password=PASSWORD)
    node = Node(tmp_path / "node", guarded, index, signer)
    node.environment["OUTRIDER_CREDENTIALS_DIR"] = str(secret)
    return node


def docker_config(host: str, password: str) -> str:
    packed = base64.b64encode(f"{USERNAME}:{password}".encode()).decode()
    return json.dumps({"auths": {host: {"auth": packed}}})


def test_a_username_and_a_password(node: Node, secret: Path) -> None:
    (secret / "username").write_text(USERNAME)
    (secret / "password").write_text(PASSWORD)
    code, log = node.run()
    assert code == 0, log
    assert PASSWORD not in log


def test_a_docker_config(node: Node, secret: Path, guarded: RealRegistry) -> None:
    (secret / ".dockerconfigjson").write_text(docker_config(guarded.host, PASSWORD))
    code, log = node.run()
    assert code == 0, log
    assert PASSWORD not in log


@pytest.mark.parametrize("at_first", ["nothing", "one of two", "garbage", "wrong password"])
def test_it_waits_until_the_secret_is_right(node: Node, secret: Path, guarded: RealRegistry, at_first: str) -> None:
    match at_first:
        case "one of two":
            (secret / "username").write_text(USERNAME)
        case "garbage":
            (secret / ".dockerconfigjson").write_text("secret-garbage")
        case "wrong password":
            (secret / ".dockerconfigjson").write_text(docker_config(guarded.host, "secret-wrong"))
        case _:
            assert at_first == "nothing"
    log: list[str] = []

    def sleep(seconds: float) -> None:
        for file in secret.iterdir():
            file.unlink()
        (secret / ".dockerconfigjson").write_text(docker_config(guarded.host, PASSWORD))

    fetch(read_config(node.environment), log.append, machine=MACHINE, sleep=sleep)
    assert node.file.read_bytes() == FILE
    waiting = [line for line in log if line.startswith("waiting: ")]
    reason = "CredentialsMalformed" if at_first in {"one of two", "garbage"} else "RegistryDenied"
    assert len(waiting) == 1
    assert waiting[0].startswith(f"waiting: {reason}: ")
    assert "secret-" not in "".join(log)


def certificate(folder: Path, begin: int) -> dict[str, str]:
    """Make a certificate for loopback that is good for ten days from some days from now on; return the registry's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry")])
    first = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=begin)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(first + datetime.timedelta(days=10))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {"certificate": str(folder / "tls.crt"), "key": str(folder / "tls.key")}


def behind_tls(tmp_path: Path, signer: Signer, secret: Path, tls: dict[str, str]) -> tuple[RealRegistry, Node]:
    """Publish to a registry in plain HTTP, then put it behind TLS at the same place."""
    with running_registry(tmp_path / "plain") as plain:
        index = publish(plain, signer)
    registry = RealRegistry(tmp_path / "plain", tls=tls)
    node = Node(tmp_path / "node", registry, index, signer)
    node.environment |= {"OUTRIDER_PLAIN_HTTP": "false", "OUTRIDER_CREDENTIALS_DIR": str(secret)}
    return registry.start(), node


def test_an_authority_of_one_s_own(tmp_path: Path, signer: Signer, secret: Path) -> None:
    registry, node = behind_tls(tmp_path, signer, secret, certificate(tmp_path / "tls", 0))
    try:
        log: list[str] = []

        def sleep(seconds: float) -> None:
            assert "its TLS certificate is not trusted" in log[-1]
            shutil.copy(tmp_path / "tls/tls.crt", secret / "ca.crt")

        fetch(read_config(node.environment), log.append, machine=MACHINE, sleep=sleep)
        assert node.file.read_bytes() == FILE
        assert len([line for line in log if line.startswith("waiting")]) == 1
    finally:
        registry.kill()


@pytest.mark.parametrize(("begin", "why"), [(5, "certificate is not yet valid"), (-20, "certificate has expired")])
def test_a_node_whose_clock_is_wrong_does_not_trust_the_registry_and_starts_from_its_copy(
    tmp_path: Path, signer: Signer, secret: Path, begin: int, why: str
) -> None:
    """To whom every certificate seems to be from another time. What is here needs no clock."""
    registry, node = behind_tls(tmp_path, signer, secret, certificate(tmp_path / "good", 0))
    node.use_cache(tmp_path / "cache")
    shutil.copy(tmp_path / "good/tls.crt", secret / "ca.crt")
    try:
        code, log = node.run()
        assert code == 0, log
    finally:
        registry.kill()
    wrong = certificate(tmp_path / "wrong", begin)
    shutil.copy(tmp_path / "wrong/tls.crt", secret / "ca.crt")
    registry = RealRegistry(tmp_path / "plain", tls=wrong)
    reference = node.environment["OUTRIDER_REFERENCE"]
    node.environment["OUTRIDER_REFERENCE"] = f"{registry.host}/{REPOSITORY}@{reference.rpartition('@')[2]}"
    registry.start()
    try:
        node.file.unlink()
        assert node.run()[0] == 0
        shutil.rmtree(tmp_path / "cache")
        node.use_cache(tmp_path / "cache")
        node.file.unlink()
        process = node.start()
        try:
            assert process.stderr is not None
            while "waiting: RegistryUnavailable" not in (line := process.stderr.readline()):
                assert process.poll() is None
            assert why in line
        finally:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()
    finally:
        registry.kill()


def test_authorities_that_cannot_be_read_are_waited_for(tmp_path: Path, signer: Signer, secret: Path) -> None:
    registry, node = behind_tls(tmp_path, signer, secret, certificate(tmp_path / "tls", 0))
    (secret / "ca.crt").write_text("garbage")
    try:
        log: list[str] = []

        def sleep(seconds: float) -> None:
            shutil.copy(tmp_path / "tls/tls.crt", secret / "ca.crt")

        fetch(read_config(node.environment), log.append, machine=MACHINE, sleep=sleep)
        assert node.file.read_bytes() == FILE
        assert [line for line in log if line.startswith("waiting: RegistryUnavailable")]
    finally:
        registry.kill()
