"""ComponentVersion: one version of one component, and how far it may be trusted."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from outrider.api.base import (
    ATOMIC_LIST,
    IMMUTABLE,
    ApiModel,
    Conditions,
    MountPath,
    Time,
    list_map,
    one_of,
    rule,
    worded,
)

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

Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        json_schema_extra=worded("write an object's name: lower case letters, digits, '-' and '.'"),
    ),
]
Key = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=r"^[-._a-zA-Z0-9]+$",
        json_schema_extra=worded("write a key of a ConfigMap: letters, digits, '-', '_' and '.'"),
    ),
]
Digest = Annotated[
    str,
    Field(
        max_length=71,
        pattern=r"^sha256:[a-f0-9]{64}$",
        json_schema_extra=worded("write sha256: and 64 hex digits in lower case"),
    ),
]
Url = Annotated[
    str,
    Field(
        min_length=8,
        max_length=2048,
        pattern=r"^https?://[^\s@]+$",
        json_schema_extra=worded("write an http:// or https:// URL without spaces, '@' or credentials"),
    ),
]

Stage = Literal["Draft", "Testing", "Published", "Deprecated", "Revoked"]
Phase = Literal["Draft", "Testing", "Published", "Deprecated", "Withdrawn", "Revoked"]


class Platform(ApiModel):
    """What kind of node an artifact runs on, in the words of Go and OCI."""

    os: Literal["linux"] = "linux"
    """The operating system."""
    arch: Literal["amd64", "arm64", "arm", "ppc64le", "s390x", "riscv64"]
    """The processor architecture, as in the node label `kubernetes.io/arch`."""

    def __str__(self) -> str:
        return f"{self.os}/{self.arch}"


class SecretReference(ApiModel):
    """A Secret of the same namespace."""

    name: Name
    """The Secret. The operator must be allowed to read it: see the installation guide."""


class ConfigMapKey(ApiModel):
    """A value in a ConfigMap of the same namespace."""

    name: Name
    """The ConfigMap."""
    key: Key
    """The key in its `data` or `binaryData`."""


class HttpSource(ApiModel):
    """A file behind an http or https URL."""

    url: Url
    """Where the file is; without credentials. At most 5 redirects are followed."""
    secret_ref: SecretReference | None = None
    """A Secret with what the server asks for: `username` and `password`, or `token`, or `authorization` for the whole
    header. It is sent to the URL's own host and to no other that it redirects to."""
    ca_config_map: ConfigMapKey | None = None
    """Authorities that may vouch for the server beside the public ones, in PEM."""


class ConfigMapSource(ConfigMapKey):
    """A value in a ConfigMap of the same namespace: for small things such as scripts."""


class OciSource(ApiModel):
    """A file in another OCI repository: a layer of the artifact that the reference names. It is copied in."""

    reference: Annotated[
        str,
        Field(
            max_length=512,
            pattern=r"^[A-Za-z0-9.-]+(:[0-9]{1,5})?/[a-z0-9._/-]+@sha256:[a-f0-9]{64}$",
            json_schema_extra=worded(
                "write host[:port]/repository@sha256:<64 hex digits>; the digest is what `oras push` and "
                "`oras resolve` print"
            ),
        ),
    ]
    """The artifact, by digest: `registry.example.com/team/agent@sha256:…`."""
    secret_ref: SecretReference | None = None
    """A Secret to pull with: of type kubernetes.io/dockerconfigjson, or with `username` and `password`."""


class StoredSource(ApiModel):
    """A file that is in the operator's registry already, in the repository of this component."""

    digest: Digest
    """The blob's digest; it says the same as `sha256`."""


class ImageSource(ApiModel):
    """A container image: it is pinned to its digest, and stays where it is unless it is to be copied."""

    reference: Annotated[
        str,
        Field(
            max_length=512,
            pattern=r"^[A-Za-z0-9.-]+(:[0-9]{1,5})?/[a-z0-9._/-]+(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[a-f0-9]{64})?$",
            json_schema_extra=worded(
                "write host[:port]/repository:tag or host[:port]/repository@sha256:<64 hex digits>"
            ),
        ),
    ]
    """The image. Whatever a tag names at first, only the digest in `sha256` is accepted, and only that is used."""
    secret_ref: SecretReference | None = None
    """A Secret to pull with: of type kubernetes.io/dockerconfigjson, or with `username` and `password`."""
    copy_to_registry: Annotated[bool, Field(alias="copy")] = False
    """Copy the image and its signatures into the operator's registry, and let nodes pull it from there."""


class Source(ApiModel):
    """Where an artifact's bytes come from: exactly one field is set."""

    model_config = ConfigDict(json_schema_extra=one_of("http", "oci", "stored", "configMap", "image"))

    http: HttpSource | None = None
    """A file behind an http or https URL."""
    oci: OciSource | None = None
    """A file in another OCI repository."""
    stored: StoredSource | None = None
    """A file that is in the operator's registry already."""
    config_map: ConfigMapSource | None = None
    """A value in a ConfigMap of the same namespace."""
    image: ImageSource | None = None
    """A container image."""


class DocumentHttp(ApiModel):
    """A document behind an http or https URL."""

    url: Url
    """Where the document is; without credentials."""


class Document(ApiModel):
    """A JSON document of at most 512 KiB: exactly one field is set."""

    model_config = ConfigDict(json_schema_extra=one_of("inline", "configMap", "http"))

    inline: Annotated[str, Field(min_length=2, max_length=65536)] | None = None
    """The document itself, at most 64 KiB."""
    config_map: ConfigMapKey | None = None
    """A value in a ConfigMap of the same namespace."""
    http: DocumentHttp | None = None
    """A document behind an http or https URL."""


class Signature(ApiModel):
    """A signature over the artifact by a key that the operator trusts: exactly one field is set."""

    model_config = ConfigDict(json_schema_extra=one_of("inline", "bundle", "statement"))

    inline: (
        Annotated[
            str,
            Field(
                min_length=8,
                max_length=4096,
                pattern=r"^[A-Za-z0-9+/=\s]+$",
                json_schema_extra=worded(
                    "write the signature in base64: openssl dgst -sha256 -sign KEY FILE | base64 -w0"
                ),
            ),
        ]
        | None
    ) = None
    """The detached signature in base64, as `openssl dgst -sha256 -sign KEY FILE | base64 -w0` or `cosign sign-blob`
    make it. It covers the bytes and nothing else."""
    bundle: Document | None = None
    """A sigstore bundle v0.3 made with a key, as `cosign sign-blob --bundle` and `cosign attest-blob --bundle` make
    it."""
    statement: Document | None = None
    """A signed statement, as `outrider sign` makes it: an in-toto statement in a DSSE envelope that names component,
    version, platform, size and hash. It vouches for this version and no other."""


class Artifact(ApiModel):
    """The bytes for one platform."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "has(self.signature) || has(self.source.oci) || has(self.source.image)",
                    "signature is required: only artifacts from oci and image may bring their own (cosign sign)",
                ),
                rule(
                    "has(self.fileName) != has(self.source.image)",
                    "fileName is required, and only an image has none",
                ),
                rule(
                    "!has(self.source.stored) || self.source.stored.digest == 'sha256:' + self.sha256",
                    "source.stored.digest and sha256 must be the same hash",
                ),
            ]
        }
    )

    platform: Platform
    """The platform that the bytes are for; each platform at most once."""
    file_name: (
        Annotated[
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
        | None
    ) = None
    """The name of the file on the node. Required, but for images, which have none."""
    sha256: Annotated[
        str,
        Field(
            pattern=SHA256_PATTERN,
            max_length=64,
            json_schema_extra=worded("write 64 hex digits in lower case, as sha256sum prints them"),
        ),
    ]
    """The expected SHA-256 of the file: 64 hex digits. Of an image: its digest without `sha256:`."""
    source: Source
    """Where the bytes come from."""
    signature: Signature | None = None
    """Who vouches for them. It may be left out for `oci` and `image`, whose cosign signatures are looked for where they
    lie. It may be changed after publication: that is how a version is signed again with a new key."""


Glob = Annotated[str, Field(min_length=1, max_length=128)]
VersionRange = Annotated[str, Field(min_length=1, max_length=256)]


class Requires(ApiModel):
    """Another component that must run on the same node."""

    component: Component
    """The other component, of the same namespace."""
    version_range: VersionRange
    """Its acceptable versions, in npm's syntax: `>=2.0.0 <3`, `^1.4`, `~1.4.2 || 2.x`."""


class Compatibility(ApiModel):
    """What a node must be like; all that is set must hold. The artifacts decide about system and processor."""

    os_image: Annotated[list[Glob], Field(max_length=32, json_schema_extra=ATOMIC_LIST)] = []
    """Globs over the node's `status.nodeInfo.osImage`, such as `Debian*12*`; one must match."""
    kernel_version: VersionRange | None = None
    """Acceptable kernels in npm's syntax, compared by their first three numbers: `>=5.10`."""
    kubelet_version: VersionRange | None = None
    """Acceptable kubelets in npm's syntax, compared by their first three numbers: `>=1.30 <2`."""
    requires: Annotated[list[Requires], Field(max_length=16, json_schema_extra=list_map("component"))] = []
    """Other components that must run on the node. Each needs a published version in its range."""


Map = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=50)]


class TemplateMetadata(ApiModel):
    """Labels and annotations of what is made from a template."""

    labels: Map = {}
    """Labels."""
    annotations: Map = {}
    """Annotations."""


class JobSpec(ApiModel):
    """What of a Job's spec a test may say."""

    template: Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
    """A PodTemplateSpec, checked by the API server when the Job is created. Where the artifact is an image, containers
    without an image get the verified one."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=86400)] = 600
    """After so long the test has failed."""
    backoff_limit: Annotated[int, Field(ge=0, le=10)] = 0
    """How often a failed pod is tried again before the test has failed."""


class JobTemplate(ApiModel):
    """A JobTemplateSpec, as in a CronJob."""

    metadata: Annotated[TemplateMetadata, Field(json_schema_extra={"default": {}})] = TemplateMetadata()
    """Labels and annotations of the Job."""
    spec: JobSpec
    """The Job."""


class JobTest(ApiModel):
    """A Job that the operator runs; its success is the version's."""

    template: JobTemplate
    """The Job. The verified artifact is mounted into all its containers."""
    mount_path: MountPath = "/opt/artifact"
    """Where the containers see the directory that holds the artifact's file, read-only."""


class ManualTest(ApiModel):
    """A person's verdict, given by the annotation that the condition Tested names."""

    instructions: Annotated[str, Field(max_length=1024)] = ""
    """What the person should look at."""


class VersionTest(ApiModel):
    """How a version is tested before it is published: exactly one field is set."""

    model_config = ConfigDict(json_schema_extra=one_of("job", "manual"))

    job: JobTest | None = None
    """By a Job."""
    manual: ManualTest | None = None
    """By a person."""


class ComponentVersionSpec(ApiModel):
    """What the author of a version says about it."""

    component: Annotated[Component, Field(json_schema_extra={"x-kubernetes-validations": [IMMUTABLE]})]
    """The thing that has versions. It cannot be changed."""
    version: Annotated[Version, Field(json_schema_extra={"x-kubernetes-validations": [IMMUTABLE]})]
    """The semantic version, lower case and without `+build`. It cannot be changed."""
    type: Annotated[Literal["Agent", "Daemon"], Field(json_schema_extra={"x-kubernetes-validations": [IMMUTABLE]})] = (
        "Agent"
    )
    """How it runs on a node: an Agent in a pod, a Daemon installed on the node itself. It cannot be changed."""
    release_type: Literal["Major", "Minor", "Patch", "Hotfix"] = "Minor"
    """What kind of change the author says this is."""
    release_notes: Annotated[str, Field(max_length=16384)] = ""
    """What changed, for people."""
    stage: Stage = "Published"
    """How far the author wants the version to go. Status says how far it got. Once published it can only become
    Deprecated (and Published again) or Revoked, and Revoked is final."""
    expires_at: Time | None = None
    """From then on a published version is Deprecated, and one that is not is not published any more."""
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
                    ),
                    rule(
                        "self.all(a, has(a.source.image)) || !self.exists(a, has(a.source.image))",
                        "either all artifacts of a version are images, or none is",
                    ),
                ],
            },
        ),
    ]
    """The bytes, one artifact per platform. Once the version has left Draft only their signatures can be changed."""
    compatibility: Compatibility | None = None
    """What a node must be like; any node that there is an artifact for when left out."""
    testing: VersionTest | None = None
    """How the version is tested; the phase Testing is passed through when left out."""


class StoredSignature(ApiModel):
    """Which trusted key vouched for an artifact, and when that was checked."""

    key_fingerprint: str
    """`sha256:` and the hex digest of the key's DER SubjectPublicKeyInfo."""
    vouching: Annotated[list[str], Field(max_length=16, json_schema_extra=ATOMIC_LIST)] = []
    """The fingerprints of all trusted keys that signed it: without those that are to be removed, one must be left."""
    format: str
    """Detached, SigstoreBundle, SigstoreAttestation, CosignClassic or OutriderStatement."""
    binds: bool = False
    """Whether it vouches for this component, version and platform, and not for the bytes alone."""
    verified_at: Time
    """When the stored bytes were read back and verified last."""


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
    kind: Literal["File", "Image"] = "File"
    """Whether it is a file or a container image. Of an image, its manifest or index is the file that is stored here."""
    image: str | None = None
    """The container image, pinned by digest, where nodes pull it from."""
    signature: StoredSignature | None = None
    """Set once verified, and taken away when it does not verify any more."""


class RecordedTest(ApiModel):
    """What came out of the test of one content. A test runs once per content, or when it is asked for again."""

    content: str
    """Hash of what was tested: artifacts, rules, the test itself, and the request to test again."""
    state: Literal["Running", "Passed", "Failed"]
    """How it stands."""
    job: str | None = None
    """The Job, in the same namespace."""
    started_at: Time | None = None
    """When it began."""
    finished_at: Time | None = None
    """When it ended."""
    message: str = ""
    """What the Job said, or who gave the verdict; with the last lines of the log when it failed. At most 2 KiB."""


class Usage(ApiModel):
    """Who needs a version. It cannot be deleted while somebody does."""

    nodes: int = 0
    """Nodes that run it, or are on their way to it."""
    rollouts: Annotated[list[str], Field(max_length=20, json_schema_extra=ATOMIC_LIST)] = []
    """Rollouts that want it, or may return to it; at most 20 are named."""


class ComponentVersionStatus(ApiModel):
    """How far a version got, and why not further. Conditions are the contract, `phase` is for people."""

    observed_generation: int = -1
    """The metadata.generation that this status speaks of; -1 before the first reconciliation."""
    phase: Phase | None = None
    """Draft, Testing, Published, Deprecated, Withdrawn or Revoked."""
    published_at: Time | None = None
    """When it was published first. Set once, never removed."""
    latest: bool = False
    """Whether this is the newest published version of its component in the namespace."""
    reference: str | None = None
    """The OCI index over all platforms, pinned by digest; set once published."""
    artifacts: Annotated[list[StoredArtifact], Field(max_length=12, json_schema_extra=list_map("platform"))] = []
    """What lies in the registry, one entry per platform."""
    test: RecordedTest | None = None
    """The newest test."""
    usage: Usage | None = None
    """Who needs it; unset when nobody does."""
    conditions: Conditions = []
    """Ready, Reconciling, Stalled, Compatible, Stored, Verified, Tested, Deprecated."""


def _same(one: str, other: str, field: str) -> str:
    """Return the CEL for two optional fields being the same; comparing them as optionals costs too much there."""
    return f"has({one}.{field}) == has({other}.{field}) && (!has({one}.{field}) || {one}.{field} == {other}.{field})"


_NEVER_PUBLISHED = "!has(oldSelf.status) || !has(oldSelf.status.publishedAt)"
_IN_DRAFT = "!has(oldSelf.status) || !has(oldSelf.status.phase) || oldSelf.status.phase == 'Draft'"
_SAME_ARTIFACTS = (
    "size(self.spec.artifacts) == size(oldSelf.spec.artifacts) && self.spec.artifacts.all(a, "
    "oldSelf.spec.artifacts.exists(b, a.platform == b.platform && a.sha256 == b.sha256 && a.source == b.source && "
    f"{_same('a', 'b', 'fileName')}))"
)
_SAME_COMPATIBILITY = _same("self.spec", "oldSelf.spec", "compatibility")
_SAME_TEST = _same("self.spec", "oldSelf.spec", "testing")

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
        f"{_IN_DRAFT} || ({_SAME_ARTIFACTS} && {_SAME_COMPATIBILITY})",
        "a version that has left Draft cannot be changed, but for the signatures of its artifacts; create a new "
        "version instead (or, if it was never published, set spec.stage to Draft first)",
    ),
    rule(
        f"{_NEVER_PUBLISHED} || ({_SAME_TEST})",
        "the test of a version that was published cannot be changed; create a new version instead",
    ),
    rule(
        # Its stage may say Draft all the same, if that was written while it was being published: then it stays so until
        # somebody changes it, and must not keep everything else from being written.
        f"{_NEVER_PUBLISHED} || self.spec.stage in ['Published', 'Deprecated', 'Revoked'] || "
        "self.spec.stage == oldSelf.spec.stage",
        "a version that was published cannot become a draft again; set spec.stage to Deprecated or Revoked, or create "
        "a new version",
    ),
    rule(
        "self.spec.type != 'Daemon' || !self.spec.artifacts.exists(a, has(a.source.image))",
        "a Daemon is installed on the node from files: give artifacts that are no images, or make spec.type Agent",
    ),
    rule(
        "oldSelf.spec.stage != 'Revoked' || self.spec.stage == 'Revoked'",
        "spec.stage Revoked is final; create a new version instead",
    ),
    rule(
        "!has(oldSelf.status) || !has(oldSelf.status.publishedAt) || "
        "(has(self.status) && has(self.status.publishedAt) && self.status.publishedAt == oldSelf.status.publishedAt)",
        "status.publishedAt is set once and never changed",
    ),
]
"""Root rules. The API server evaluates a rule that reads `oldSelf` on updates only."""
