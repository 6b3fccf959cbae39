"""`outrider sign`: a statement that binds a file to component, version and platform, signed with the author's key."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from outrider.trust.signing import PrivateKey

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PASSPHRASE = "OUTRIDER_KEY_PASSPHRASE"  # noqa: S105 - the variable's name
_BLOCK = 1024 * 1024


@click.command()
@click.argument("file", type=_FILE)
@click.option("--component", required=True, help="The component, as in ComponentVersion.")
@click.option("--version", required=True, help="The version, as in ComponentVersion.")
@click.option("--platform", required=True, metavar="OS/ARCH", help="The platform, such as linux/amd64.")
@click.option("--key", "key_file", required=True, type=_FILE, help="Private key in PEM.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["dsse", "bundle"]),
    default="dsse",
    show_default=True,
    help="The bare envelope, or a sigstore bundle, which cosign can check as well. Outrider takes both.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write here instead of to stdout.")
def sign(
    file: Path, *, component: str, version: str, platform: str, key_file: Path, format_: str, output: Path | None
) -> None:
    """Sign a FILE as one version of a component.

    The result is a signed statement (in-toto in a DSSE envelope): give it in a ComponentVersion as signature.statement.
    It vouches for these bytes as this version and as nothing else.

    The passphrase of a protected key is asked for, or read from the environment variable OUTRIDER_KEY_PASSPHRASE.
    """
    from outrider.api.errors import OutriderError
    from outrider.trust.bundle import build_bundle
    from outrider.trust.digest import Sha256Stream
    from outrider.trust.evidence import Evidence
    from outrider.trust.signing import public_half, sign_statement
    from outrider.trust.statement import Binding, build_statement
    from outrider.trust.verify import verify_artifact

    _check_names(component, version, platform)
    try:
        key = _read_key(key_file)
        public = public_half(key, str(key_file))
    except OutriderError as error:
        raise click.BadParameter(error.message, param_hint="--key") from None
    stream = Sha256Stream()
    try:
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                stream.update(block)
    except OSError as error:
        raise click.UsageError(f"{file} cannot be read: {(error.strerror or 'unknown error').lower()}") from None
    payload = build_statement(Binding(component, version, platform, stream.size), file.name, stream.sha256)
    statement = sign_statement(key, public, payload)
    if format_ == "bundle":
        statement = build_bundle(statement, public.fingerprint)

    # Nothing leaves that the operator would refuse.
    verify_artifact(
        component=component,
        namespace="",
        version=version,
        platform=platform,
        size=stream.size,
        expected_sha256=stream.sha256,
        actual_sha256=stream.sha256,
        evidence=[Evidence("OutriderStatement", statement)],
        keys=[public],
        require_binding=True,
    )
    _write(output, statement + b"\n")
    click.echo(
        f"signed {file} ({stream.size:,} bytes, sha256 {stream.sha256}) as {component} {version} for {platform} with "
        f"{public.algorithm} {public.fingerprint}",
        err=True,
    )


def _check_names(component: str, version: str, platform: str) -> None:
    """Refuse what no ComponentVersion could say: a statement about it would be good for nothing."""
    from pydantic import TypeAdapter, ValidationError

    from outrider.api.componentversion import Component, Platform, Version

    os_, _, arch = platform.partition("/")
    for option, kind, value, given, example in (
        ("--component", TypeAdapter(Component), component, component, "node-agent"),
        ("--version", TypeAdapter(Version), version, version, "1.4.0 or 1.4.0-rc.1"),
        ("--platform", TypeAdapter(Platform), {"os": os_, "arch": arch}, platform, "linux/amd64"),
    ):
        try:
            kind.validate_python(value)
        except ValidationError:
            raise click.BadParameter(
                f"no ComponentVersion can have {given!r} there; write it as in {example}", param_hint=option
            ) from None


def _read_key(path: Path) -> "PrivateKey":
    from outrider.trust.keys import MAX_PEM_BYTES
    from outrider.trust.signing import PassphraseNeeded, parse_private_key

    try:
        with path.open("rb") as file:
            pem = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {(error.strerror or 'unknown error').lower()}") from None
    try:
        return parse_private_key(pem, str(path))
    except PassphraseNeeded:
        passphrase = os.environ.get(_PASSPHRASE, "")
    if not passphrase:
        if not sys.stdin.isatty():
            raise click.UsageError(f"{path} is protected by a passphrase: set {_PASSPHRASE}, or run it in a terminal")
        passphrase = click.prompt(f"Passphrase of {path}", hide_input=True, err=True)
    return parse_private_key(pem, str(path), passphrase.encode())


def _write(output: Path | None, data: bytes) -> None:
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        output.write_bytes(data)
    except OSError as error:
        raise click.UsageError(f"{output} cannot be written: {(error.strerror or 'unknown error').lower()}") from None
