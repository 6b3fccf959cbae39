"""The steps of a version, done: store, verify, index, test, publish, delete. What blocks runs in threads."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from outrider.adapters import clock, ingest, sources
from outrider.adapters.informer import Store as Cache
from outrider.adapters.kube import Cluster, Json
from outrider.adapters.ocisource import OciReference, collect_evidence, open_artifact, parse_reference
from outrider.adapters.registry import Descriptor, OciRegistry
from outrider.api.componentversion import (
    Artifact,
    ComponentVersionSpec,
    ComponentVersionStatus,
    Document,
    StoredArtifact,
    StoredSignature,
)
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.core.testjob import build_test_job
from outrider.core.version import hash_artifact
from outrider.core.version_snapshot import (
    MISSING,
    AnyStep,
    Delete,
    Done,
    Publish,
    RunTest,
    Store,
    Verify,
    WriteIndex,
)
from outrider.reconcile.images import FILE_NAME as IMAGE_FILE_NAME
from outrider.reconcile.images import delete_copies, find_image
from outrider.reconcile.inputs import Login, read_config_map, read_login
from outrider.reconcile.places import IMAGE_DOCUMENTS_SECONDS, MAX_DOCUMENT_BYTES, Places, fetch_settings
from outrider.reconcile.testjobs import TestJobs
from outrider.reconcile.trust import TrustStore
from outrider.settings import Settings
from outrider.trust.bundle import recognise
from outrider.trust.detached import decode_signature
from outrider.trust.evidence import MAX_PIECES, Evidence
from outrider.trust.keys import TrustedKey
from outrider.trust.verify import Verification, verify_artifact

logger = logging.getLogger(__name__)

Cancelled = Callable[[], bool]

_SIGNING_HELPS: Final = frozenset(
    {
        "BindingRequired",
        "BundleMalformed",
        "KeyNotValidNow",
        "NoTrustedKey",
        "SignatureMalformed",
        "SignatureMissing",
        "SignatureUntrusted",
        "StatementMalformed",
        "StatementMismatch",
    }
)
"""Refusals that another signature may end."""


@dataclass(frozen=True)
class Subject:
    """The version that a step is for, as it was when the step began."""

    namespace: str
    name: str
    uid: str
    spec: ComponentVersionSpec
    status: ComponentVersionStatus


@dataclass(frozen=True)
class Inputs:
    """What was read in the cluster for one artifact, before its thread starts."""

    content: bytes | None = None
    ca_pem: str | None = None
    login: Login | None = field(default=None, repr=False)
    document: bytes | None = None


class VersionSteps:
    """Does what `plan_version` has decided, one step at a time for each version."""

    def __init__(
        self, cluster: Cluster, versions: Cache[Json], trust: TrustStore, jobs: TestJobs, settings: Settings
    ) -> None:
        self._cluster = cluster
        self._versions = versions
        self._trust = trust
        self._jobs = jobs
        self._settings = settings
        self._places = Places(settings)

    async def perform(self, step: AnyStep, subject: Subject, done: Done, cancelled: Cancelled) -> Done:
        """Do a step and return what is achieved with it. Raises what adapters and trust code raise."""
        match step:
            case Store(artifact, previous):
                inputs = await self._read_inputs(subject.namespace, artifact, cancelled)
                stored = await asyncio.to_thread(self._store, subject, artifact, previous, inputs, cancelled)
                return _with(done, stored)
            case Verify():
                return _with(done, await asyncio.to_thread(self._verify, subject, step, cancelled))
            case WriteIndex(artifacts):
                index = await asyncio.to_thread(self._write_index, subject, artifacts, publish=False)
                return replace(done, index=index)
            case RunTest():
                await self._run_test(subject, step)
                return done
            case Publish(artifacts):
                reference = await asyncio.to_thread(self._write_index, subject, artifacts, publish=True)
                return replace(done, reference=reference)
            case Delete(artifacts, reference):
                await asyncio.to_thread(self._delete, subject, artifacts, reference)
                return replace(done, deleted=True)

    # -- what the cluster holds

    async def _read_inputs(self, namespace: str, artifact: Artifact, cancelled: Cancelled) -> Inputs:
        source, signature = artifact.source, artifact.signature
        content = ca_pem = document = None
        if source.config_map is not None:
            content = await read_config_map(self._cluster, namespace, source.config_map)
        if source.http is not None and source.http.ca_config_map is not None:
            ca_pem = (await read_config_map(self._cluster, namespace, source.http.ca_config_map)).decode(
                errors="replace"
            )
        secret = next((s.secret_ref for s in (source.http, source.oci, source.image) if s is not None), None)
        account = f"{self._settings.namespace}:{self._settings.service_account}"
        login = await read_login(self._cluster, namespace, secret, account)
        if signature is not None and (given := signature.bundle or signature.statement) is not None:
            document = await self._read_document(namespace, given, cancelled)
        return Inputs(content, ca_pem, login, document)

    async def _read_document(self, namespace: str, document: Document, cancelled: Cancelled) -> bytes:
        if document.inline is not None:
            return document.inline.encode()
        if document.config_map is not None:
            content = await read_config_map(self._cluster, namespace, document.config_map)
            if len(content) > MAX_DOCUMENT_BYTES:
                raise Stalling(
                    "SourceTooLarge",
                    f"the signature's document in ConfigMap {document.config_map.name} has {len(content)} bytes, and "
                    f"at most {MAX_DOCUMENT_BYTES} are read; give the signature's document alone",
                )
            return content
        assert document.http is not None  # noqa: S101 - the CRD demands exactly one
        return await asyncio.to_thread(self._fetch_document, document.http.url, cancelled)

    def _fetch_document(self, url: str, cancelled: Cancelled) -> bytes:
        with sources.open_http(url, limits=self._places.document_limits, cancelled=cancelled) as source:
            return b"".join(source.chunks)

    async def _run_test(self, subject: Subject, step: RunTest) -> None:
        spec = subject.spec
        assert spec.testing is not None  # noqa: S101 - the planner asks for no test that is not there
        assert spec.testing.job is not None  # noqa: S101
        await self._trust.hand_out(subject.namespace, spec.component)
        job = build_test_job(
            namespace=subject.namespace,
            name=subject.name,
            uid=subject.uid,
            component=spec.component,
            version=spec.version,
            test=spec.testing.job,
            content=step.content,
            artifacts=step.artifacts,
            fetch=fetch_settings(self._settings, step.index, step.artifacts),
        )
        await self._jobs.create(subject.namespace, job)

    # -- in threads

    def _store(
        self,
        subject: Subject,
        artifact: Artifact,
        previous: StoredArtifact | None,
        inputs: Inputs,
        cancelled: Cancelled,
    ) -> StoredArtifact:
        given = given_evidence(artifact, inputs)
        repository, platform = self._repository(subject), str(artifact.platform)
        image = None
        if artifact.source.image is not None:
            found = find_image(self._places, repository, artifact, inputs.login, cancelled)
            image, content = found.pinned, found.document
            given += found.evidence
            inputs = replace(inputs, content=content)
        with self._places.registry() as registry:
            # What is there already is not fetched again: a corrected signature needs no source any more.
            blob = ingest.find_stored(registry, repository, artifact.sha256)
            if artifact.source.oci is not None:
                blob, beside = self._take_from_registry(registry, repository, artifact, inputs, blob, cancelled)
                given += beside
            elif blob is None:
                with self._open_source(artifact, inputs, cancelled) as source:
                    blob = ingest.ingest(registry, repository, source, artifact.sha256, field=_field(artifact))
            facts = ingest.ArtifactFacts(subject.spec.component, subject.spec.version, platform, _file_name(artifact))
            manifest = ingest.store_artifact_manifest(registry, repository, blob, facts)
            for piece in given:
                ingest.store_evidence(registry, repository, manifest, piece)
            return StoredArtifact(
                platform=platform,
                digest=blob.digest,
                size=blob.size,
                reference=registry.reference(repository, manifest.digest),
                download_url=registry.blob_url(repository, blob.digest),
                spec_hash=hash_artifact(artifact),
                kind="File" if image is None else "Image",
                image=image,
                signature=previous.signature if previous is not None else None,
            )

    def _take_from_registry(
        self,
        registry: OciRegistry,
        repository: str,
        artifact: Artifact,
        inputs: Inputs,
        blob: Descriptor | None,
        cancelled: Cancelled,
    ) -> tuple[Descriptor, tuple[Evidence, ...]]:
        """Copy a file out of another registry, unless `blob` says that it is here, and bring along what vouches for it.

        Once both are here the other registry is not asked any more, but for new signatures when the entry changes.
        """
        assert artifact.source.oci is not None  # noqa: S101 - the caller has looked
        reference = parse_reference(artifact.source.oci.reference)
        with self._places.registry_of(reference, inputs.login, cancelled) as theirs:
            found = open_artifact(
                reference,
                artifact.sha256,
                theirs,
                platform=str(artifact.platform),
                limits=self._places.limits,
                cancelled=cancelled,
            )
            if blob is None:
                blob = ingest.ingest(registry, repository, found.source, artifact.sha256, field=_field(artifact))
            return blob, collect_evidence(theirs, reference.repository, found.chain)

    async def look_for_signatures(
        self, subject: Subject, step: Verify, refusal: Stalling, cancelled: Cancelled
    ) -> bool:
        """Bring along what vouches for a refused file by now; tells whether anything of it is new.

        It may have been signed again in a place that its spec names, which changes nothing in the spec: beside it in
        another registry, in a ConfigMap, behind a URL.
        """
        if refusal.reason not in _SIGNING_HELPS:
            return False
        try:
            inputs = await self._read_inputs(subject.namespace, step.artifact, cancelled)
            return await asyncio.to_thread(self._bring_signatures, subject, step, inputs, cancelled)
        except OutriderError as error:
            # That nothing new can be had is no news: the refusal stands.
            logger.info("No new signatures for %s/%s: %s", subject.namespace, subject.name, error.message)
            return False

    def _bring_signatures(self, subject: Subject, step: Verify, inputs: Inputs, cancelled: Cancelled) -> bool:
        artifact, repository = step.artifact, self._repository(subject)
        evidence = given_evidence(artifact, inputs)
        elsewhere = artifact.source.oci or artifact.source.image
        if elsewhere is not None:
            origin = parse_reference(elsewhere.reference)
            with self._places.registry_of(origin, inputs.login, cancelled, seconds=IMAGE_DOCUMENTS_SECONDS) as theirs:
                evidence += collect_evidence(theirs, origin.repository, self._chain(theirs, origin, artifact))
        with self._places.registry() as registry:
            document = registry.get_manifest(repository, _digest_of(step.stored.reference))
            if document is None:
                return False
            known = ingest.load_evidence(registry, repository, document.digest)
            new = [piece for piece in evidence if piece not in known]
            for piece in new:
                ingest.store_evidence(registry, repository, Descriptor(document.digest, len(document.content)), piece)
        return bool(new)

    def _chain(self, theirs: OciRegistry, origin: OciReference, artifact: Artifact) -> Sequence[bytes]:
        """Return the documents that lead to a file in another registry; of an image its own, whatever a tag says."""
        if artifact.source.image is not None:
            document = theirs.get_manifest(origin.repository, f"sha256:{artifact.sha256}")
            return (document.content,) if document is not None else ()
        platform, limits = str(artifact.platform), self._places.limits
        return open_artifact(origin, artifact.sha256, theirs, platform=platform, limits=limits).chain

    def _open_source(self, artifact: Artifact, inputs: Inputs, cancelled: Cancelled) -> sources.Source:
        source = artifact.source
        if source.config_map is not None and inputs.content is not None:
            return sources.from_bytes(f"ConfigMap {source.config_map.name}", inputs.content, limits=self._places.limits)
        if source.image is not None and inputs.content is not None:
            return sources.from_bytes(f"image {source.image.reference}", inputs.content, limits=self._places.limits)
        if source.stored is not None:
            raise Stalling(
                "SourceNotFound",
                f"the registry does not hold {source.stored.digest} in the repository of this component; push it "
                "there, or name another source",
            )
        assert source.http is not None  # noqa: S101 - the CRD demands exactly one source
        header = inputs.login.header() if inputs.login else None
        access = sources.HttpAccess(header, inputs.ca_pem, plain_http=self._places.may_be_plain(source.http.url))
        return sources.open_http(source.http.url, limits=self._places.limits, access=access, cancelled=cancelled)

    def _verify(self, subject: Subject, step: Verify, cancelled: Cancelled) -> StoredArtifact:
        spec, stored, artifact = subject.spec, step.stored, step.artifact
        repository, digest = self._repository(subject), _digest_of(stored.reference)
        with self._places.registry() as registry:
            if not step.thorough and (again := self._judge_again(registry, repository, subject, step)) is not None:
                return _proven(step, *again, stored.signature)
            found = ingest.read_back(registry, repository, digest, keys=self._trust.keys, cancelled=cancelled)
            if found is None:
                # Somebody swept it up: the planner has it stored again.
                return stored.model_copy(update={"spec_hash": MISSING, "signature": None})
            said = (found.facts.component, found.facts.version, found.facts.platform, found.facts.file_name)
            meant = (spec.component, spec.version, str(artifact.platform), _file_name(artifact))
            if said != meant:
                raise Stalling(
                    "ManifestInvalid",
                    f"the stored manifest {stored.reference} speaks of {' '.join(said)}, not of {' '.join(meant)}; "
                    "somebody else writes to this repository of the registry",
                )
            if not step.first:
                self._keep_index(registry, repository, subject)
        proof = self._judge(subject, step, found)
        return _proven(step, proof, self._vouching(subject, step, found, proof), None)

    def _judge_again(
        self, registry: OciRegistry, repository: str, subject: Subject, step: Verify
    ) -> tuple[Verification, list[str]] | None:
        """Return the proof that the present keys give without the bytes being read; None if there is none that way.

        None is no verdict: some signatures need more than the hash that is known. Then the bytes are read.
        """
        found = ingest.look_up(registry, repository, _digest_of(step.stored.reference))
        if found is None:
            return None
        try:
            proof = self._judge(subject, step, found)
        except Stalling:
            return None
        return proof, self._vouching(subject, step, found, proof)

    def _vouching(self, subject: Subject, step: Verify, found: ingest.StoredArtifact, proof: Verification) -> list[str]:
        """Return the fingerprints of all keys that vouch for an artifact: whoever removes one wants to know."""
        vouching = [proof.key_fingerprint]
        while len(vouching) < MAX_PIECES:
            others = [key for key in self._trust.keys if key.fingerprint not in vouching]
            try:
                vouching.append(self._judge(subject, step, found, others).key_fingerprint)
            except Stalling:
                break
        return vouching

    def _judge(
        self,
        subject: Subject,
        step: Verify,
        found: ingest.StoredArtifact,
        keys: Sequence[TrustedKey] | None = None,
    ) -> Verification:
        spec, artifact = subject.spec, step.artifact
        return verify_artifact(
            component=spec.component,
            namespace=subject.namespace,
            version=spec.version,
            platform=str(artifact.platform),
            size=found.size,
            expected_sha256=artifact.sha256,
            actual_sha256=found.sha256,
            evidence=found.evidence,
            keys=self._trust.keys if keys is None else keys,
            at=clock.now() if step.first else None,
            require_binding=self._settings.require_binding,
            trust_namespace=self._settings.namespace,
            further_digests=found.further_digests,
        )

    def _keep_index(self, registry: OciRegistry, repository: str, subject: Subject) -> None:
        """Write a published version's index again if somebody has deleted it: the same bytes have the same digest."""
        reference = subject.status.reference
        if reference is not None and registry.get_manifest(repository, _digest_of(reference)) is None:
            self._index_of(registry, repository, subject, subject.status.artifacts, publish=True)

    def _write_index(self, subject: Subject, artifacts: Sequence[StoredArtifact], *, publish: bool) -> str:
        with self._places.registry() as registry:
            return self._index_of(registry, self._repository(subject), subject, artifacts, publish=publish)

    def _index_of(
        self,
        registry: OciRegistry,
        repository: str,
        subject: Subject,
        artifacts: Sequence[StoredArtifact],
        *,
        publish: bool,
    ) -> str:
        entries: dict[str, Descriptor] = {}
        for stored in artifacts:
            digest = _digest_of(stored.reference)
            document = registry.get_manifest(repository, digest)
            if document is None:
                raise Transient(
                    "ArtifactMissing",
                    f"the registry no longer has the manifest {digest} of {stored.platform}; it was there when it "
                    "was verified. Is something deleting from the registry?",
                )
            entries[stored.platform] = Descriptor(digest, len(document.content))
        spec = subject.spec
        index = ingest.store_index(registry, repository, spec.component, spec.version, entries, publish=publish)
        return registry.reference(repository, index.digest)

    def _delete(self, subject: Subject, artifacts: Sequence[StoredArtifact], reference: str | None) -> None:
        keep = digests_of_others(self._versions.values(), subject)
        delete_copies(self._places, self._repository(subject), artifacts, self._stored_by_others(subject))
        with self._places.registry() as registry:
            repository = self._repository(subject)
            index = _digest_of(reference) if reference is not None else None
            if index is None and (draft := ingest.draft_index(registry, repository, subject.spec.version)) is not None:
                index = draft.digest
            ingest.delete_version(
                registry,
                repository,
                manifests=[d for stored in artifacts if (d := _digest_of(stored.reference)) not in keep],
                index=index if index not in keep else None,
                keep_blobs=keep,
            )

    def _stored_by_others(self, subject: Subject) -> list[StoredArtifact]:
        """Return what other versions of the component have stored."""
        return [
            StoredArtifact.model_validate(stored)
            for other in _others(self._versions.values(), subject)
            for stored in (other.get("status") or {}).get("artifacts") or []
        ]

    def _repository(self, subject: Subject) -> str:
        return self._places.repository(subject.namespace, subject.spec.component)


def _others(versions: Iterable[Json], subject: Subject) -> Iterator[Json]:
    """Yield the other versions of the component: those that share its repository."""
    for other in versions:
        metadata, component = other["metadata"], other["spec"]["component"]
        same_repository = (metadata["namespace"], component) == (subject.namespace, subject.spec.component)
        if same_repository and metadata["uid"] != subject.uid:
            yield other


def digests_of_others(versions: Iterable[Json], subject: Subject) -> frozenset[str]:
    """Return what other versions of the component need in its repository: their files, manifests and indexes.

    The repository is shared, and an author may name in one version what another has stored: as a file, or as an image.
    Files count from the moment that a spec names them: they may be found here before a status says so.
    """
    needed: set[str] = set()
    for other in _others(versions, subject):
        status = other.get("status") or {}
        needed |= {f"sha256:{artifact['sha256']}" for artifact in other["spec"]["artifacts"]}
        for stored in status.get("artifacts") or []:
            needed |= {stored["digest"], _digest_of(stored["reference"])}
        if status.get("reference"):
            needed.add(_digest_of(status["reference"]))
    return frozenset(needed)


def _with(done: Done, stored: StoredArtifact) -> Done:
    return replace(done, artifacts={**done.artifacts, stored.platform: stored})


def _proven(step: Verify, proof: Verification, vouching: list[str], before: StoredSignature | None) -> StoredArtifact:
    """Return the artifact with its proof. Only reading the bytes moves its time: `before` keeps an earlier one."""
    signature = StoredSignature(
        key_fingerprint=proof.key_fingerprint,
        vouching=vouching,
        format=proof.format,
        binds=proof.binds,
        verified_at=before.verified_at if before is not None else clock.now(),
    )
    return step.stored.model_copy(update={"signature": signature})


def _digest_of(reference: str) -> str:
    return reference.rpartition("@")[2]


def _file_name(artifact: Artifact) -> str:
    return artifact.file_name or IMAGE_FILE_NAME


def _field(artifact: Artifact) -> str:
    return f"spec.artifacts[{artifact.platform}].sha256"


def given_evidence(artifact: Artifact, inputs: Inputs) -> list[Evidence]:
    """Return what the spec itself says in evidence. Raises Stalling(SignatureMalformed, BundleMalformed)."""
    signature = artifact.signature
    if signature is None:
        return []
    if signature.inline is not None:
        return [Evidence("Detached", decode_signature(signature.inline))]
    document = inputs.document or b""
    if signature.statement is not None:
        return [Evidence("OutriderStatement", document)]
    return [Evidence(recognise(document), document)]
