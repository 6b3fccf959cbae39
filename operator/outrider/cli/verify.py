"""`outrider verify`: the options, and nothing else."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from outrider.trust.evidence import Evidence
    from outrider.trust.keys import TrustedKey

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("target", metavar="FILE|REFERENCE")
@click.option("--key", "key_files", multiple=True, required=True, type=_FILE, help="Public key in PEM. Repeatable.")
@click.option("--signature", type=_FILE, help="Of FILE: detached signature, raw or in base64.")
@click.option("--bundle", type=_FILE, help="Of FILE: sigstore bundle v0.3 made with a key.")
@click.option("--statement", type=_FILE, help="Of FILE: statement made by `outrider sign`.")
@click.option("--component", default="", help="The component that it has to be.")
@click.option("--version", default="", help="The version that it has to be.")
@click.option("--platform", default="", metavar="OS/ARCH", help="The platform that it has to be for.")
@click.option("--namespace", default="", help="The namespace of the version, for messages.")
@click.option("--sha256", default="", metavar="HEX", help="The SHA-256 that it has to have.")
@click.option("--require-binding", is_flag=True, help="Accept only statements that name component and version.")
@click.option("--allow-rsa-2048", is_flag=True, help="Accept RSA keys of 2048 bits.")
@click.option("--plain-http", is_flag=True, help="Speak HTTP to the registry.")
@click.option("--ca-file", type=_FILE, help="PEM of the authorities that vouch for the registry.")
@click.option("--docker-config", type=_FILE, help="A docker config.json with the registry's credentials.")
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def verify(
    target: str,
    *,
    key_files: tuple[Path, ...],
    signature: Path | None,
    bundle: Path | None,
    statement: Path | None,
    component: str,
    version: str,
    platform: str,
    namespace: str,
    sha256: str,
    require_binding: bool,
    allow_rsa_2048: bool,
    plain_http: bool,
    ca_file: Path | None,
    docker_config: Path | None,
    output: str,
) -> None:
    """Verify a FILE or a REFERENCE as the operator does.

    A file needs one of --signature, --bundle and --statement. A reference (host/repository:tag, or with @sha256:…) is a
    version that Outrider stored, all platforms or one; or whatever cosign signed with a key: an image, an artifact, or
    with --sha256 a file in an artifact.

    Exit codes: 0 passed, 1 refused, 2 wrong usage, 3 cannot tell (the registry is down, or there is nothing).
    """
    from outrider.adapters.ocisource import parse_reference
    from outrider.adapters.registry import RegistrySettings
    from outrider.api.errors import Stalling
    from outrider.cli import output as rendering
    from outrider.cli.verification import (
        Expectation,
        Outcome,
        UsageError,
        verify_file,
        verify_reference,
    )

    expected = Expectation(
        keys=_read_keys(key_files, allow_rsa_2048=allow_rsa_2048),
        component=component,
        version=version,
        platform=platform,
        namespace=namespace,
        sha256=_checked(sha256),
        require_binding=require_binding,
    )
    given = [path for path in (signature, bundle, statement) if path is not None]
    path = Path(target)
    outcomes: list[Outcome]
    if path.is_file():
        if len(given) != 1:
            raise click.UsageError("a file needs exactly one of --signature, --bundle and --statement")
        try:
            outcomes = [verify_file(path, _read_evidence(signature, bundle, statement), expected)]
        except Stalling as error:
            outcomes = [Outcome(str(path), platform, error=error)]
        except UsageError as error:
            raise click.UsageError(str(error)) from None
    else:
        try:
            reference = parse_reference(target)
        except Stalling as error:
            raise click.UsageError(f"there is no file {target}; and as a reference: {error.message}") from None
        if given:
            raise click.UsageError(
                "--signature, --bundle and --statement are for files; what vouches for a reference lies in its registry"
            )
        settings = RegistrySettings(
            host=reference.host,
            plain_http=plain_http,
            ca_file=str(ca_file) if ca_file else None,
            docker_config=str(docker_config) if docker_config else None,
        )
        outcomes = verify_reference(reference, settings, expected)
    click.echo(rendering.render_json(outcomes) if output == "json" else rendering.render_text(outcomes))
    sys.exit(rendering.EXIT_CODES[rendering.overall(outcomes)])


def _read_keys(paths: tuple[Path, ...], *, allow_rsa_2048: bool) -> "list[TrustedKey]":
    from outrider.api.errors import Stalling
    from outrider.trust.keys import parse_public_key

    try:
        return [parse_public_key(_read(path), str(path), allow_rsa_2048=allow_rsa_2048) for path in paths]
    except Stalling as error:
        message = error.message
        if "PRIVATE KEY" in message:
            # For a Secret this is an alarm; here somebody took the wrong half.
            message = "this is a private key; give its public half (openssl pkey -in KEY -pubout)"
        raise click.BadParameter(message, param_hint="--key") from None


def _read_evidence(signature: Path | None, bundle: Path | None, statement: Path | None) -> "Evidence":
    """Return the evidence in the one file that was given. Raises Stalling(SignatureMalformed, BundleMalformed)."""
    from outrider.cli.verification import read_signature
    from outrider.trust.bundle import recognise
    from outrider.trust.evidence import Evidence

    if signature is not None:
        return read_signature(_read(signature))
    if bundle is not None:
        document = _read(bundle)
        return Evidence(recognise(document), document)
    assert statement is not None  # noqa: S101 - exactly one was given
    return Evidence("OutriderStatement", _read(statement))


def _read(path: Path) -> bytes:
    """Return a small file's bytes: one more than is ever read, so that more than that is noticed."""
    from outrider.trust.evidence import MAX_EVIDENCE_BYTES

    try:
        with path.open("rb") as file:
            return file.read(MAX_EVIDENCE_BYTES + 1)
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {(error.strerror or 'unknown error').lower()}") from None


def _checked(sha256: str) -> str:
    from outrider.api.errors import Stalling
    from outrider.trust.digest import parse_sha256

    try:
        return parse_sha256(sha256, "it") if sha256 else ""
    except Stalling as error:
        raise click.BadParameter(error.message, param_hint="--sha256") from None
