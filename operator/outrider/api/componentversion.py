"""ComponentVersion: one version of one component, and how far it may be trusted."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from outrider.api.base import ATOMIC_LIST, IMMUTABLE, ApiModel, Conditions, Time, list_map, rule, worded

SEMVER_PATTERN = (
    r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(-(0|[1-9][0-9]*|[0-9]*[a-z-][0-9a-z-]*)(\.(0|[1-9][0-9]*|[0-9]*[a-z-][0-9a-z-]*))*)?$"
)
"""SemVer 2.0 without `+build` (illegal in OCI tags) and in lower case (object names and labels know no other)."""

COMPONENT_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
SHA256_PATTERN = r"^[a-f0-9]{64}$"

Version = Annotated[
    str,
    Field(
        min_length=5,
        max_length=48,
        pattern=SEMVER_PATTERN,
        json_schema_extra=worded(
            "write a semantic version of three numbers, in lower case and without '+build', such as 1.4.0 or 2.0.0-rc.1"
        ),
    ),
]
Component = Annotated[
    str,
    Field(
        min_length=1,
        max_length=40,
        pattern=COMPONENT_PATTERN,
        json_schema_extra=worded(
            "write lower case letters, digits and '-', beginning and ending with a letter or digit"
        ),
    ),
]

Stage = Literal["Draft", "Testing", "Published"]
Phase = Literal["Draft", "Testing", "Published"]


class Platform(ApiModel):
    """What kind of node an artifact runs on, in the words of Go and OCI."""

    os: Literal["linux"] = "linux"
    """The operating system."""
    arch: Literal["amd64", "arm64", "arm", "ppc64le", "s390x", "riscv64"]
    """The processor architecture, as in the node label `kubernetes.io/arch`."""

    def __str__(self) -> str:
        return f"{self.os}/{self.arch}"


class HttpSource(ApiModel):
    """A file behind an http or https URL."""

    url: Annotated[
        str,
        Field(
            min_length=8,
            max_length=2048,
            pattern=r"^https?://[^\s@]+$",
            json_schema_extra=worded("write an http:// or https:// URL without spaces, '@' or credentials"),
        ),
    ]
    """Where the file is; without credentials. At most 5 redirects are followed."""


class ConfigMapSource(ApiModel):
    """A value in a ConfigMap of the same namespace: for small things such as scripts."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """The ConfigMap."""
    key: Annotated[str, Field(min_length=1, max_length=253)]
    """The key in its `data` or `binaryData`."""


class Source(ApiModel):
    """Where an artifact's bytes come from: exactly one field is set."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "(has(self.http) ? 1 : 0) + (has(self.configMap) ? 1 : 0) == 1",
                    "set exactly one of http and configMap",
                )
            ]
        }
    )

    http: HttpSource | None = None
    """A file behind an http or https URL."""
    config_map: ConfigMapSource | None = None
    """A value in a ConfigMap of the same namespace."""


class Signature(ApiModel):
    """A signature over the artifact's bytes by a key that the operator trusts."""

    inline: Annotated[
        str,
        Field(
            min_length=8,
            max_length=2048,
            pattern=r"^[A-Za-z0-9+/=\s]+$",
            json_schema_extra=worded("write the signature in base64: openssl dgst -sha256 -sign KEY FILE | base64 -w0"),
        ),
    ]
    """The detached signature in base64, as `openssl dgst -sha256 -sign KEY FILE | base64 -w0` or `cosign sign-blob`
    make it."""


class Artifact(ApiModel):
    """The bytes for one platform."""

    platform: Platform
    """The platform that the bytes are for; each platform at most once."""
    file_name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=128,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
            json_schema_extra=worded(
                "write a file name without a directory: letters, digits, '.', '_' and '-', first a letter or digit"
            ),
        ),
    ]
    """The name of the file on the node."""
    sha256: Annotated[
        str,
        Field(
            pattern=SHA256_PATTERN,
            max_length=64,
            json_schema_extra=worded("write 64 hex digits in lower case, as sha256sum prints them"),
        ),
    ]
    """The expected SHA-256 of the file: 64 hex digits."""
    source: Source
    """Where the bytes come from."""
    signature: Signature
    """Who vouches for them."""


class ComponentVersionSpec(ApiModel):
    """What the author of a version says about it."""

    component: Annotated[Component, Field(json_schema_extra={"x-kubernetes-validations": [IMMUTABLE]})]
    """The thing that has versions. It cannot be changed."""
    version: Annotated[Version, Field(json_schema_extra={"x-kubernetes-validations": [IMMUTABLE]})]
    """The semantic version, lower case and without `+build`. It cannot be changed."""
    type: Annotated[Literal["Agent"], Field(json_schema_extra={"x-kubernetes-validations": [IMMUTABLE]})] = "Agent"
    """How it runs on a node: an Agent runs in a pod. It cannot be changed."""
    release_type: Literal["Major", "Minor", "Patch", "Hotfix"] = "Minor"
    """What kind of change the author says this is."""
    release_notes: Annotated[str, Field(max_length=16384)] = ""
    """What changed, for people."""
    stage: Stage = "Published"
    """How far the author wants the version to go. Status says how far it got."""
    artifacts: Annotated[
        list[Artifact],
        Field(
            min_length=1,
            max_length=12,
            json_schema_extra={
                **ATOMIC_LIST,
                "x-kubernetes-validations": [
                    rule(
                        "self.all(a, self.exists_one(b, a.platform == b.platform))",
                        "each platform may have only one artifact",
                    )
                ],
            },
        ),
    ]
    """The bytes, one artifact per platform."""


class StoredSignature(ApiModel):
    """Which trusted key vouched for an artifact, and when that was checked."""

    key_fingerprint: str
    """`sha256:` and the hex digest of the key's DER SubjectPublicKeyInfo."""
    format: str
    """The signature format: `Detached`."""
    verified_at: Time
    """When the stored bytes were read back and verified."""


class StoredArtifact(ApiModel):
    """An artifact as it lies in the registry."""

    platform: str
    """`os/arch`."""
    digest: str
    """`sha256:` and the hex digest of the bytes."""
    size: int
    """The size of the bytes."""
    reference: str
    """The OCI manifest that holds them, pinned by digest."""
    download_url: Annotated[str, Field(alias="downloadURL")]
    """Where the registry serves the bytes."""
    spec_hash: str
    """Hash of the spec entry that was stored, so that a change is noticed."""
    signature: StoredSignature | None = None
    """Set once verified."""


class ComponentVersionStatus(ApiModel):
    """How far a version got, and why not further. Conditions are the contract, `phase` is for people."""

    observed_generation: int = -1
    """The metadata.generation that this status speaks of; -1 before the first reconciliation."""
    phase: Phase | None = None
    """Draft, Testing or Published."""
    published_at: Time | None = None
    """When it was published first. Set once, never removed."""
    latest: bool = False
    """Whether this is the newest published version of its component in the namespace."""
    reference: str | None = None
    """The OCI index over all platforms, pinned by digest; set once published."""
    artifacts: Annotated[list[StoredArtifact], Field(max_length=12, json_schema_extra=list_map("platform"))] = []
    """What lies in the registry, one entry per platform."""
    conditions: Conditions = []
    """Ready, Reconciling, Stalled, Stored, Verified, Tested."""


COMPONENT_VERSION_RULES: list[dict[str, Any]] = [
    rule(
        "self.metadata.name == self.spec.component + '-' + self.spec.version",
        "metadata.name must be <spec.component>-<spec.version>: that is what makes the pair unique",
        messageExpression=(
            "'metadata.name must be ' + self.spec.component + '-' + self.spec.version + "
            "' (<spec.component>-<spec.version>: that is what makes the pair unique), not ' + self.metadata.name"
        ),
    ),
    rule(
        "!has(oldSelf.status) || !has(oldSelf.status.publishedAt) || "
        "(self.spec.artifacts == oldSelf.spec.artifacts && self.spec.stage == oldSelf.spec.stage)",
        "a version that was published cannot be changed; create a new version instead",
    ),
    rule(
        "!has(oldSelf.status) || !has(oldSelf.status.publishedAt) || "
        "(has(self.status) && has(self.status.publishedAt) && self.status.publishedAt == oldSelf.status.publishedAt)",
        "status.publishedAt is set once and never changed",
    ),
]
"""Root rules. The API server evaluates a rule that reads `oldSelf` on updates only."""
