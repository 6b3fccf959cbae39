"""The programs that people publish and sign with, run for real: cosign, oras, crane, and registries of three kinds.

Each runs with a home of its own and nothing but loopback to talk to: whatever it sends elsewhere ends in a tripwire,
which remembers it.
"""

import base64
import io
import json
import os
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from adapters.realservers import RealRegistry, sha256_of
from adapters.signing import Signer
from localcluster import toolchain

KEY_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "P-256": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "P-384": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "RSA-3072": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"),
}
"""For `openssl genpkey`, each kind of key that Outrider accepts."""

STATEMENT_TYPE: Final = "https://outrider.dev/statement/v1"
"""The predicate type that binds a file to a component, version and platform."""

LAYER_TYPE: Final = "application/octet-stream"

_SIGNING_CONFIG: Final = {
    "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
    "rekorTlogUrls": [],
    "tsaUrls": [],
}
# Without one, cosign asks for sigstore's own even to sign with a key.
_TRUSTED_ROOT: Final = {
    "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
    "tlogs": [],
    "certificateAuthorities": [],
    "ctlogs": [],
    "timestampAuthorities": [],
}


class ToolError(Exception):
    """A program said no; the text is what it printed."""


class Tripwire:
    """A proxy for everything that is not on loopback. It forwards nothing and remembers that it was asked."""

    def __init__(self) -> None:
        self.contacts: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        # Shut down first: closing alone does not wake a thread that is in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                try:
                    self.contacts.append(connection.recv(4096).split(b"\r\n")[0].decode("ascii", "replace"))
                except OSError:
                    self.contacts.append("a connection that said nothing")


@dataclass(frozen=True)
class Home:
    """A folder for one tool's files and the environment that keeps it there."""

    folder: Path
    tripwire: Tripwire

    def run(self, tool: str, *arguments: str | Path, folder: Path | None = None) -> bytes:
        """Run a program and return what it printed; raises ToolError if it failed."""
        home = self.folder / "home"
        for part in ("docker", "tmp"):
            (home / part).mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(home / "tmp"),
            "DOCKER_CONFIG": str(home / "docker"),
            "TUF_ROOT": str(home / "tuf"),
            "SIGSTORE_NO_CACHE": "1",
            "COSIGN_PASSWORD": "",
            "HTTP_PROXY": self.tripwire.url,
            "HTTPS_PROXY": self.tripwire.url,
            "NO_PROXY": "127.0.0.1,localhost",
        }
        result = subprocess.run(
            [toolchain.tool(tool), *arguments],
            cwd=folder or self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        if result.returncode != 0:
            raise ToolError(f"{tool} {arguments[0]}: {result.stderr.decode(errors='replace').strip()}")
        return result.stdout


@dataclass(frozen=True)
class Tools:
    """All of them, in one home."""

    cosign: "Cosign"
    oras: "Oras"
    crane: "Crane"


@contextmanager
def offline_tools(folder: Path) -> Iterator[Tools]:
    """The tools in a home of their own; raises AssertionError at the end if one of them asked for anything outside."""
    tripwire = Tripwire()
    try:
        home = Home(folder, tripwire)
        yield Tools(Cosign(home), Oras(home), Crane(home))
        assert not tripwire.contacts, f"asked for something outside: {tripwire.contacts}"
    finally:
        tripwire.stop()


class Cosign:
    """cosign 3 with a key pair, without any transparency log."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._config = home.folder / "signing-config.json"
        self._root = home.folder / "trusted-root.json"
        self._config.write_text(json.dumps(_SIGNING_CONFIG))
        self._root.write_text(json.dumps(_TRUSTED_ROOT))
        self._count = 0

    def generate_key_pair(self, name: str = "cosign") -> tuple[Path, Path]:
        """Make a key pair (ECDSA P-256, the private half in cosign's own format) and return private and public."""
        prefix = self._home.folder / name
        self._home.run("cosign", "generate-key-pair", "--output-key-prefix", prefix)
        return prefix.with_suffix(".key"), prefix.with_suffix(".pub")

    def import_key(self, signer: Signer) -> Path:
        """Bring a key that openssl made into cosign's own format, once, and return where it is."""
        prefix = signer.private.parent / f"cosign-{signer.private.stem}"
        if not prefix.with_suffix(".key").exists():
            arguments = ("--key", signer.private, "--output-key-prefix", prefix, "--yes")
            self._home.run("cosign", "import-key-pair", *arguments)
        return prefix.with_suffix(".key")

    def sign(self, reference: str, signer: Signer, *, classic: bool = False) -> None:
        """Sign `host/repository@sha256:…` and attach the signature: as a bundle, or the way cosign 2 did."""
        mode = (
            ("--new-bundle-format=false", "--use-signing-config=false", "--tlog-upload=false")
            if classic
            else self._offline()
        )
        self._home.run("cosign", "sign", *self._key(signer), *mode, "--allow-http-registry", reference)

    def attest(
        self, reference: str, signer: Signer, predicate: Mapping[str, Any], *, predicate_type: str = STATEMENT_TYPE
    ) -> None:
        """Attach a signed statement about `host/repository@sha256:…`, as a bundle."""
        arguments = ("--type", predicate_type, "--predicate", self._write(predicate), "--allow-http-registry")
        self._home.run("cosign", "attest", *self._key(signer), *self._offline(), *arguments, reference)

    def sign_blob(self, file: Path, signer: Signer) -> str:
        """Return the raw signature over a file, in base64."""
        output = self._scratch("sig")
        mode = ("--new-bundle-format=false", "--use-signing-config=false", "--tlog-upload=false")
        self._home.run("cosign", "sign-blob", *self._key(signer), *mode, "--output-signature", output, file)
        return output.read_text()

    def sign_blob_bundle(self, file: Path, signer: Signer) -> bytes:
        """Return the bundle with the signature over a file."""
        output = self._scratch("bundle")
        self._home.run("cosign", "sign-blob", *self._key(signer), *self._offline(), "--bundle", output, file)
        return output.read_bytes()

    def attest_blob(
        self, file: Path, signer: Signer, predicate: Mapping[str, Any], *, predicate_type: str = STATEMENT_TYPE
    ) -> bytes:
        """Return the bundle with a signed statement about a file; its subject is the file's name."""
        output = self._scratch("bundle")
        arguments = ("--type", predicate_type, "--predicate", self._write(predicate), "--bundle", output)
        self._home.run("cosign", "attest-blob", *self._key(signer), *self._offline(), *arguments, file)
        return output.read_bytes()

    def verify(self, reference: str, public: Path, *, classic: bool = False) -> list[dict[str, Any]]:
        """Return the payloads that cosign verified at `host/repository@sha256:…`; raises ToolError if it refused."""
        mode = ("--new-bundle-format=false",) if classic else ("--trusted-root", self._root)
        arguments = (*self._public(public), "--allow-http-registry")
        return json.loads(self._home.run("cosign", "verify", *arguments, *mode, reference))  # type: ignore[no-any-return]

    def verify_blob(self, file: Path, signature: str, public: Path) -> None:
        """Check a raw signature (base64); raises ToolError if cosign refuses it."""
        written = self._scratch("sig")
        written.write_text(signature)
        self._home.run("cosign", "verify-blob", *self._public(public), "--signature", written, file)

    def verify_blob_bundle(self, file: Path, bundle: bytes, public: Path) -> None:
        """Check a bundle of `sign_blob_bundle`; raises ToolError if cosign refuses it."""
        arguments = ("--bundle", self._write(bundle), "--trusted-root", self._root)
        self._home.run("cosign", "verify-blob", *self._public(public), *arguments, file)

    def verify_blob_attestation(
        self, file: Path, bundle: bytes, public: Path, *, predicate_type: str = STATEMENT_TYPE
    ) -> None:
        """Check a bundle of `attest_blob`; raises ToolError if cosign refuses it."""
        arguments = ("--bundle", self._write(bundle), "--type", predicate_type, "--trusted-root", self._root)
        self._home.run("cosign", "verify-blob-attestation", *self._public(public), *arguments, file)

    def verify_blob_envelope(
        self, file: Path, envelope: bytes, public: Path, *, predicate_type: str = STATEMENT_TYPE
    ) -> None:
        """Check a bare DSSE envelope with a statement about a file; raises ToolError if cosign refuses it."""
        arguments = ("--signature", self._write(envelope), "--type", predicate_type)
        self._home.run("cosign", "verify-blob-attestation", *self._public(public), *arguments, file)

    def _key(self, signer: Signer) -> tuple[str | Path, ...]:
        return ("--yes", "--key", self.import_key(signer))

    def _offline(self) -> tuple[str | Path, ...]:
        return ("--signing-config", self._config, "--trusted-root", self._root)

    @staticmethod
    def _public(public: Path) -> tuple[str | Path, ...]:
        key = load_pem_public_key(public.read_bytes())
        # cosign signs by the hash that belongs to the key, but verifies by SHA-256 unless told otherwise.
        is_p384 = isinstance(key, EllipticCurvePublicKey) and key.curve.key_size == 384
        return ("--key", public, "--insecure-ignore-tlog", *(("--signature-digest-algorithm=sha384",) * is_p384))

    def _scratch(self, suffix: str) -> Path:
        self._count += 1
        return self._home.folder / f"{self._count}.{suffix}"

    def _write(self, document: bytes | Mapping[str, Any]) -> Path:
        path = self._scratch("json")
        path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
        return path


class Oras:
    """oras, against registries that speak plain HTTP."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def push(
        self,
        target: str,
        *files: Path,
        media_type: str = LAYER_TYPE,
        artifact_type: str = "application/vnd.example.agent",
        platform: str | None = None,
    ) -> str:
        """Push files of one folder as one artifact to `host/repository[:tag]` and return its manifest's digest."""
        options = ["--artifact-type", artifact_type]
        if platform is not None:
            options += ["--artifact-platform", platform]
        return self._added("push", target, files, media_type, options)

    def attach(self, reference: str, file: Path, *, media_type: str = LAYER_TYPE, artifact_type: str) -> str:
        """Attach a file to `host/repository@sha256:…` and return the digest of the new manifest."""
        return self._added("attach", reference, (file,), media_type, ["--artifact-type", artifact_type])

    def discover(self, reference: str, artifact_type: str | None = None) -> list[dict[str, Any]]:
        """Return the descriptors of what is attached to `host/repository@sha256:…`."""
        options = () if artifact_type is None else ("--artifact-type", artifact_type)
        answer = self._json("discover", "--plain-http", "--format", "json", "--depth", "1", *options, reference)
        return answer.get("referrers") or []

    def pull(self, reference: str, folder: Path) -> list[Path]:
        """Pull the files of an artifact into a folder and return them."""
        answer = self._json("pull", "--plain-http", "--format", "json", "--output", folder, reference)
        return [Path(file["path"]) for file in answer["files"]]

    def copy(self, source: str, target: str, *, recursive: bool = True) -> None:
        """Copy an artifact, with all that is attached to it, to another place."""
        options = ("--recursive",) if recursive else ()
        self._home.run("oras", "cp", "--from-plain-http", "--to-plain-http", "--no-tty", *options, source, target)

    def tags(self, repository: str) -> list[str]:
        """Return the tags of `host/repository`."""
        return self._home.run("oras", "repo", "tags", "--plain-http", repository).decode().split()

    def manifest(self, reference: str) -> bytes:
        """Return a manifest or index exactly as it is stored."""
        return self._home.run("oras", "manifest", "fetch", "--plain-http", reference)

    def blob(self, reference: str) -> bytes:
        """Return the blob `host/repository@sha256:…`."""
        return self._home.run("oras", "blob", "fetch", "--plain-http", "--output", "-", reference)

    def index(self, target: str, *digests: str) -> str:
        """Make an index of manifests in the repository of `host/repository:tag` and return its digest."""
        self._home.run("oras", "manifest", "index", "create", "--plain-http", target, *digests)
        return "sha256:" + sha256_of(self.manifest(target))

    def _added(self, verb: str, target: str, files: Sequence[Path], media_type: str, options: Sequence[str]) -> str:
        # By name, from where they lie: the name is what becomes the layer's title.
        folder = files[0].parent
        names = [f"{file.relative_to(folder)}:{media_type}" for file in files]
        answer = self._json(verb, "--plain-http", "--format", "json", *options, target, *names, folder=folder)
        return str(answer["digest"])

    def _json(self, *arguments: str | Path, folder: Path | None = None) -> dict[str, Any]:
        return json.loads(self._home.run("oras", *arguments, folder=folder))  # type: ignore[no-any-return]


class Crane:
    """crane, against registries that speak plain HTTP."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def digest(self, reference: str) -> str:
        """Return the digest of what a reference names."""
        return self._home.run("crane", "digest", "--insecure", reference).decode().strip()

    def push_image(self, target: str, files: Mapping[str, bytes], architecture: str = "amd64") -> str:
        """Push a container image of one layer with these files to `host/repository:tag` and return its digest."""
        tarball = self._home.folder / "image.tar"
        tarball.write_bytes(image_tarball(files, architecture))
        return self._home.run("crane", "push", "--insecure", tarball, target).decode().strip().rpartition("@")[2]

    def push_index(self, target: str, *references: str) -> str:
        """Push an index of images that are in the same repository and return its digest."""
        manifests = [part for reference in references for part in ("--manifest", reference)]
        return (
            self._home.run("crane", "index", "append", "--insecure", *manifests, "--tag", target)
            .decode()
            .strip()
            .rpartition("@")[2]
        )


class RealRegistry28(RealRegistry):
    """CNCF distribution 2.8: no Referrers API and no notion of `subject`; what OCI 1.1 adds lies under tags."""

    def _command(self) -> list[str | Path]:
        return [toolchain.tool("registry-2.8"), "serve", self.folder / "config.yml"]


class CraneRegistry(RealRegistry):
    """The registry of go-containerregistry, `crane registry serve`: manifests in memory, no Referrers API.

    What looks into the data folder of a RealRegistry does not work here, and stopping it loses the manifests.
    """

    def _command(self) -> list[str | Path]:
        self.data.mkdir(exist_ok=True)
        return [toolchain.tool("crane"), "registry", "serve", "--address", self.host, "--disk", self.data]


class ReferrersRegistry(RealRegistry):
    """olareg: a small registry that has all of OCI 1.1, with the Referrers API and `OCI-Subject` answers.

    What looks into the data folder of a RealRegistry does not work here: it keeps an OCI layout per repository.
    """

    def _command(self) -> list[str | Path]:
        self.data.mkdir(exist_ok=True)
        options = ("--addr", "127.0.0.1", "--port", str(self.port), "--dir", str(self.data))
        return [
            toolchain.tool("olareg"),
            "serve",
            *options,
            "--api-delete",
            "--api-blob-delete",
            "--gc-frequency",
            "-1s",
        ]


REGISTRY_KINDS: Final[Mapping[str, type[RealRegistry]]] = {
    "distribution-3": RealRegistry,
    "distribution-2.8": RealRegistry28,
    "crane": CraneRegistry,
    "olareg": ReferrersRegistry,
}
"""Every kind of registry that runs here; only olareg has the Referrers API."""


@contextmanager
def running_registry_of_kind(kind: str, folder: Path) -> Iterator[RealRegistry]:
    """A registry of one of REGISTRY_KINDS, ended afterwards."""
    registry = REGISTRY_KINDS[kind](folder).start()
    try:
        yield registry
    finally:
        registry.kill()


def image_tarball(files: Mapping[str, bytes], architecture: str = "amd64") -> bytes:
    """Return a container image of one layer as `docker save` would write it, the same bytes every time."""
    layer = _tar(files)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + sha256_of(layer)]},
    }
    manifest = [{"Config": "config.json", "RepoTags": ["example:latest"], "Layers": ["layer.tar"]}]
    return _tar(
        {
            "config.json": json.dumps(config).encode(),
            "layer.tar": layer,
            "manifest.json": json.dumps(manifest).encode(),
        }
    )


def raw_signature(signature: str) -> bytes:
    """Return the bytes of a base64 signature, which is how openssl and cosign hand it over."""
    return base64.b64decode(signature, validate=True)


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
