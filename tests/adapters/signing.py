"""Keys and signatures made by openssl, as people make them."""

import base64
import subprocess
from pathlib import Path
from typing import Protocol


class Signer:
    """A key pair made by openssl, and signatures made with it."""

    def __init__(self, folder: Path, name: str, *options: str) -> None:
        self.private = folder / f"{name}.key"
        self.public = folder / f"{name}.pub"
        self._folder = folder
        self._run("openssl", "genpkey", *options, "-out", self.private)
        self._run("openssl", "pkey", "-in", self.private, "-pubout", "-out", self.public)

    def sign(self, data: bytes) -> str:
        """Return the detached signature over a file with these bytes, in base64, as the documentation tells people."""
        (self._folder / "file").write_bytes(data)
        return self.sign_file(self._folder / "file")

    def sign_file(self, file: Path) -> str:
        """Return the detached signature over a file, in base64."""
        command = 'openssl dgst -sha256 -sign "$1" "$2" | base64 -w0'
        return self._run("sh", "-c", command, "sign", self.private, file).decode()

    def detached(self, data: bytes) -> bytes:
        """Return the same signature, raw."""
        return base64.b64decode(self.sign(data))

    @staticmethod
    def _run(*command: str | Path) -> bytes:
        return subprocess.run(command, check=True, capture_output=True).stdout


class MakeSigner(Protocol):
    """Make a signer with options for `openssl genpkey`, or return the one of this name."""

    def __call__(self, name: str = "release", *options: str) -> Signer: ...
