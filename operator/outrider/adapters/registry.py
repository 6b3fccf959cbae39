"""The OCI registry: streams in, streams out, nothing believed that was not hashed here.

This is the only module that knows oras. oras-py gives the session, the URLs of the distribution API and the parsing of
challenges; what it does not do is done here: it has no timeouts, retries everything for two minutes, reads blobs into
memory, verifies nothing that it downloads, never refreshes an expired token, and sends credentials wherever an answer
points to (see `_Provider`). The protocol is the OCI distribution specification 1.1.

Blocking, and not safe for use by two threads at a time: one `OciRegistry` per job, in a worker thread.
"""

import re
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import oras.auth.utils
import oras.container
import oras.provider
import oras.utils
import requests

from outrider.adapters import dockerconfig
from outrider.adapters.dockerconfig import Credentials
from outrider.adapters.sources import check_url
from outrider.adapters.transport import (
    NETWORK_ERRORS,
    PIECE,
    AddressPolicy,
    PlainSession,
    explain,
    origin,
    read_at_most,
    read_pieces,
    retry_after,
)
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.trust.digest import ALGORITHM, Sha256Stream, digest_of, is_digest
from outrider.trust.documents import Malformed, canonical_json, parse_object

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
_ACCEPTED_MANIFESTS: Final = ", ".join(
    (
        MANIFEST_TYPE,
        INDEX_TYPE,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)

MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
"""The size that registries have to accept at least (distribution specification, "Pushing Manifests")."""

MAX_REFERRERS: Final = 1000
"""How many referrers of one manifest are read, and how many an index of them may hold before it is added to."""
MAX_TAGS: Final = 10_000
"""How many tags of a repository are read."""
_MAX_PAGES: Final = 20
"""Answers that a list may be spread over."""
_NO_REFERRERS_API: Final = (400, 404, 405, 501)
"""What registries answer that do not know the referrers API."""
_INDEX_ATTEMPTS: Final = 5
"""How often an index is changed again because somebody else changed it meanwhile."""

_MAX_ERROR_BYTES: Final = 64 * 1024
_MAX_REDIRECTS: Final = 5
_WINDOW: Final = 8 * 1024 * 1024
"""Bytes of an upload that are kept to be sent again: more than the buffers between us and a registry's disk hold."""
_LONGEST_PAUSE: Final = 10.0
"""Seconds; who asks to wait longer is let wait by whoever called us."""
_UPLOADED: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_CANCEL_DELAYS: Final = (0.0, 0.1, 0.5)
"""Seconds before each attempt to cancel an upload."""
_REDIRECTS: Final = (301, 302, 303, 307, 308)

# Distribution specification, "Pulling manifests".
_REPOSITORY: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True)
class RegistrySettings:
    """How to reach one registry, and as whom."""

    host: str
    """Host, and port if it is not the usual one; no scheme and no path."""
    plain_http: bool = False
    """Speak HTTP instead of HTTPS: for registries on the same machine or network segment only."""
    ca_file: str | None = None
    """A PEM file of the authorities that may vouch for the registry; None: those that the system trusts."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    identity_token: str | None = field(default=None, repr=False)
    """What the registry's token service gives access tokens for, instead of a password."""
    docker_config: str | None = None
    """A docker config.json with credentials by registry and repository, read anew for each client; what is said above
    comes first."""
    connect_timeout: float = 5.0
    """Seconds."""
    read_timeout: float = 30.0
    """Seconds of silence after which the registry counts as down."""
    commit_timeout: float = 300.0
    """Seconds that the registry may take to flush and hash what was uploaded; grows with the size on a slow disk."""
    resume_delays: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Seconds to wait before each attempt to resume a broken upload or download."""
    allowed_hosts: tuple[str, ...] = ()
    """Globs over the hosts that may be asked, the registry itself as where it points: to other places for blobs, to its
    token service. Empty: every host."""
    guard: AddressPolicy | None = None
    """Where connections may go, to the registry itself as to where it points; None: anywhere. For registries that are
    named by those who may write an object, and not by the operator's settings."""


@dataclass(frozen=True)
class Descriptor:
    """What names content in a registry: its digest (`sha256:` and 64 hex digits) and its size in bytes."""

    digest: str
    size: int


@dataclass(frozen=True)
class ManifestDocument:
    """A manifest or index exactly as it is stored."""

    content: bytes
    media_type: str
    digest: str


@dataclass(frozen=True)
class Referrer:
    """A manifest that says that it belongs to another, as a list of them describes it. Nothing of it is verified."""

    descriptor: Descriptor
    artifact_type: str
    annotations: Mapping[str, str]


class _ContentLost(Transient):
    """A registry does not have (any more) what a manifest names."""


class OciRegistry:
    """The few operations on a registry that Outrider needs.

    Every operation raises Transient(RegistryUnavailable) when the registry is down or does not make sense,
    Transient(RegistryThrottled) when it asks to slow down, Stalling(RegistryDenied) when it refuses the credentials and
    Stalling(RegistryRefused) for any other refusal; what else it may raise is said there. What does not exist is None.
    Use it as a context manager, or close it. Making one raises Stalling(RegistryInvalid) on settings that cannot work.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        if _HOST.fullmatch(settings.host) is None:
            raise Stalling(
                "RegistryInvalid", "the registry's host is not host[:port] without scheme and path; correct it"
            )
        if settings.ca_file is not None and not Path(settings.ca_file).is_file():
            raise Stalling(
                "RegistryInvalid",
                f"there is no file {settings.ca_file} with the authorities for the registry; mount it",
            )
        config = None
        if settings.docker_config is not None:
            try:
                config = Path(settings.docker_config).read_bytes()
            except OSError:
                raise Stalling(
                    "RegistryInvalid",
                    f"there is no file {settings.docker_config} with the credentials for the registry; mount it",
                ) from None
        self.settings = settings
        self.host = settings.host
        self._provider = _Provider(settings, config)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all connections."""
        self._provider.session.close()

    # Names

    def blob_url(self, repository: str, digest: str) -> str:
        """Return where the registry serves a blob."""
        return f"{self._provider.prefix}://{self._container(repository).get_blob_url(digest)}"

    def manifest_url(self, repository: str, reference: str) -> str:
        """Return where the registry serves a manifest. Raises Stalling(ReferenceInvalid)."""
        return self._manifest_url(repository, reference)

    def reference(self, repository: str, digest: str) -> str:
        """Return the name by which any OCI client pulls a manifest: `host/repository@sha256:…`."""
        return f"{self.host}/{repository}@{digest}"

    # Blobs

    def check(self) -> None:
        """Return if the registry answers and lets us in (`GET /v2/`)."""
        what = "asking for its API version"
        response = self._provider.request("GET", f"{self._provider.prefix}://{self.host}/v2/", what)
        self._expect(response, what, 200)

    def blob_size(self, repository: str, digest: str) -> int | None:
        """Return the size in bytes of a blob, or None if the repository has no such blob."""
        what = f"looking for {digest} in {repository}"
        response = self._provider.request("HEAD", self.blob_url(repository, digest), what, repository=repository)
        if response.status_code == 404:
            response.close()
            return None
        headers = self._expect(response, what, 200)
        try:
            return int(headers["Content-Length"])
        except (KeyError, ValueError):
            raise self._nonsense(what, "its answer has no Content-Length") from None

    def push_stream(
        self,
        repository: str,
        chunks: Iterable[bytes],
        *,
        before_commit: Callable[[Descriptor], None] | None = None,
    ) -> Descriptor:
        """Store a stream of bytes as a blob in one pass and constant memory, and return what it is.

        `before_commit` is called with what was uploaded before it gets a name in the registry: if it raises, the upload
        is cancelled and nothing is stored. The same happens when `chunks` raises.

        1. POST opens an upload.
        2. One PATCH carries the bytes as they come (as `docker push` does), while they are hashed here. If it breaks,
           another goes on from where the registry says it is, as far as the last pieces are still here.
        3. `before_commit` may object.
        4. PUT commits under the digest that was computed here; the registry refuses if it received other bytes.
        5. The registry's own idea of the digest, if it tells, must be the same.
        """
        what = f"uploading to {repository}"
        delays = iter(self.settings.resume_delays)
        # 1.
        upload, offset = self._open_upload(repository, what), 0
        try:
            # 2.
            window = _Window(chunks)
            while True:
                try:
                    upload = self._send(upload, repository, what, window.pieces(offset))
                    break
                except Transient as failure:
                    if window.source_failed or failure.reason != "RegistryUnavailable":
                        raise
                    upload, offset = self._resume_upload(upload, repository, window, delays, failure)

            # 3.
            descriptor = Descriptor(window.stream.digest, window.stream.size)
            if before_commit is not None:
                before_commit(descriptor)

            # 4.
            headers = self._commit(upload, repository, what, descriptor, delays)
        except BaseException:
            self._cancel(upload, repository)
            raise

        # 5.
        if headers.get("Docker-Content-Digest", descriptor.digest) != descriptor.digest:
            raise self._nonsense(what, f"it stored the bytes of {descriptor.digest} under another digest")
        return descriptor

    def push_bytes(self, repository: str, data: bytes) -> Descriptor:
        """Store a small blob, unless it is there already, and return what it is."""
        descriptor = Descriptor(digest_of(data), len(data))
        if self.blob_size(repository, descriptor.digest) != descriptor.size:
            self.push_stream(repository, iter((data,)))
        return descriptor

    def open_blob(self, repository: str, digest: str, *, size: int | None = None) -> "BlobStream | None":
        """Return a blob to be read piece by piece, or None if there is no such blob.

        `size` is the size in bytes that it must have, if that is known.
        """
        response = self._get_blob(repository, digest, 0)
        if response is None:
            return None

        def reopen(offset: int) -> requests.Response | None:
            return self._get_blob(repository, digest, offset)

        return BlobStream(self._provider, repository, digest, size, reopen, response)

    def delete_blob(self, repository: str, digest: str) -> bool:
        """Take a blob out of a repository; False if it was not there. Raises Stalling(DeleteUnsupported)."""
        return self._delete(self.blob_url(repository, digest), repository, digest)

    # Manifests

    def push_manifest(self, repository: str, content: bytes, media_type: str, reference: str | None = None) -> str:
        """Store a manifest or index byte for byte under a tag or its digest (if `reference` is None).

        Returns its digest. Raises Stalling(ManifestInvalid) when the registry finds it wrong.
        """
        self._put_manifest(repository, content, media_type, reference)
        return digest_of(content)

    def _put_manifest(
        self, repository: str, content: bytes, media_type: str, reference: str | None
    ) -> Mapping[str, str]:
        """Store a manifest and return the headers of the answer."""
        digest = digest_of(content)
        what = f"storing the manifest {reference or digest} in {repository}"
        response = self._provider.request(
            "PUT",
            self._manifest_url(repository, reference or digest),
            what,
            repository=repository,
            data=content,
            headers={"Content-Type": media_type},
        )
        if response.status_code in {400, 404, 415, 422}:
            text = self._provider.error_text(response)
            if "UNKNOWN" in text:
                raise _ContentLost(
                    "RegistryUnavailable",
                    f"registry {self.host} has lost something that a manifest for {repository} refers to{text}; "
                    "everything will be stored again",
                )
            raise Stalling(
                "ManifestInvalid",
                f"registry {self.host} does not accept the manifest for {repository}{text}; "
                "check that it supports OCI 1.1 manifests",
            )
        headers = self._expect(response, what, 201)
        if headers.get("Docker-Content-Digest", digest) != digest:
            raise self._nonsense(what, f"it stored the manifest {digest} under another digest")
        return headers

    def get_manifest(self, repository: str, reference: str) -> ManifestDocument | None:
        """Return the manifest or index under a tag or digest exactly as stored, or None if there is none.

        Raises Stalling(ManifestInvalid) when it is larger than 4 MiB or does not hash to the digest that it was asked
        by (or, for a tag, that the registry names).
        """
        what = f"reading the manifest {reference} from {repository}"
        response = self._provider.request(
            "GET",
            self._manifest_url(repository, reference),
            what,
            repository=repository,
            headers={"Accept": _ACCEPTED_MANIFESTS},
        )
        if response.status_code == 404:
            response.close()
            return None
        if response.status_code != 200:
            self._refuse(response, what)
        try:
            content = read_at_most(response, MAX_MANIFEST_BYTES)
        except NETWORK_ERRORS as error:
            raise self._provider.unavailable(what, error) from None
        if len(content) > MAX_MANIFEST_BYTES:
            raise Stalling("ManifestInvalid", f"the manifest {reference} in {self.host}/{repository} exceeds 4 MiB")
        digest = digest_of(content)
        expected = reference if ":" in reference else response.headers.get("Docker-Content-Digest", digest)
        if expected.startswith("sha256:") and digest != expected:
            raise Stalling(
                "ManifestInvalid",
                f"{self.host} served a manifest of {repository} that hashes to {digest} instead of {expected}: "
                "its storage or the way to it was tampered with or is damaged; store the version again",
            )
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        return ManifestDocument(content, media_type, digest)

    def tag(self, repository: str, digest: str, tag: str) -> bool:
        """Let a tag name a manifest that is stored already; False if there is no such manifest."""
        document = self.get_manifest(repository, digest)
        if document is None:
            return False
        self.push_manifest(repository, document.content, document.media_type, tag)
        return True

    def delete_manifest(self, repository: str, digest: str) -> bool:
        """Delete a manifest and, in most registries, all its tags; False if it was not there.

        Raises Stalling(DeleteUnsupported).
        """
        return self._delete(self._manifest_url(repository, digest), repository, digest)

    def delete_tag(self, repository: str, tag: str) -> bool:
        """Delete a tag together with its manifest; False if it was not there. Raises Stalling(DeleteUnsupported).

        By digest first: every registry that deletes can do that, and most drop the tag with it.
        """
        document = self.get_manifest(repository, tag)
        if document is None:
            return False
        self.delete_manifest(repository, document.digest)
        if self.get_manifest(repository, tag) is not None:
            self._delete(self._manifest_url(repository, tag), repository, tag)
        return True

    def list_tags(self, repository: str) -> list[str]:
        """Return the tags of a repository, none if there is no such repository. At most `MAX_TAGS` are read."""
        what = f"listing the tags of {repository}"
        url = f"{self._provider.prefix}://{self._container(repository).tags_url(1000)}"
        tags: list[str] = []
        for content, _ in self._pages(url, repository, what, (404,)):
            found = content.get("tags") or []
            if not isinstance(found, list):
                raise self._nonsense(what, "its list is none")
            tags += [tag for tag in found if isinstance(tag, str) and _TAG.fullmatch(tag)]
            if len(tags) >= MAX_TAGS:
                break
        return tags[:MAX_TAGS]

    # Referrers: OCI distribution specification 1.1, "Listing Referrers" and "Referrers Tag Schema".

    def push_referrer(self, repository: str, content: bytes, media_type: str, subject_digest: str) -> str:
        """Store a manifest whose `subject` is another one, so that `referrers` finds it, and return its digest.

        A registry that knows the referrers API says so in its answer (`OCI-Subject`). For the others it is added to the
        index under the tag `sha256-…`. Doing it twice changes nothing. Two writers at a time may overwrite each other's
        index; therefore it is read again afterwards. Raises Stalling(ManifestInvalid) when the registry does not accept
        the manifest or the tag holds something else, Stalling(ReferrersFull) when the index is as long as it may be.
        """
        headers = self._put_manifest(repository, content, media_type, None)
        digest = digest_of(content)
        if headers.get("OCI-Subject") == subject_digest:
            return digest
        entry = _describe(content, media_type)
        for _ in range(_INDEX_ATTEMPTS):
            entries = self._fallback_entries(repository, subject_digest) or []
            if any(each.get("digest") == digest for each in entries):
                return digest
            if len(entries) >= MAX_REFERRERS or len(_fallback_index([*entries, entry])) > MAX_MANIFEST_BYTES:
                raise Stalling(
                    "ReferrersFull",
                    f"{len(entries)} manifests in {self.host}/{repository} refer to {subject_digest} already; delete "
                    "those that nobody needs",
                )
            self._put_fallback(repository, subject_digest, [*entries, entry])
        raise Transient(
            "RegistryUnavailable",
            f"others keep changing what refers to {subject_digest} in {self.host}/{repository}; it will be tried again",
        )

    def referrers(self, repository: str, digest: str, artifact_type: str | None = None) -> list[Referrer]:
        """Return what refers to a manifest, of one type or of all: at most `MAX_REFERRERS`, none if nothing does.

        Asked of the referrers API, or else of the index under the tag `sha256-…`. Entries that make no sense are left
        out. Raises Stalling(ManifestInvalid) when there is an index that cannot be read.
        """
        entries = self._api_entries(repository, digest, artifact_type)
        if entries is None:
            entries = self._fallback_entries(repository, digest) or []
        found: dict[str, Referrer] = {}
        for entry in entries:
            referrer = _parse_referrer(entry)
            if referrer is not None and artifact_type in {None, referrer.artifact_type}:
                found.setdefault(referrer.descriptor.digest, referrer)
        return list(found.values())[:MAX_REFERRERS]

    def delete_referrer(self, repository: str, subject_digest: str, digest: str) -> bool:
        """Delete one manifest that refers to another, and forget it in the index under the tag `sha256-…`.

        False if it was not there. Raises Stalling(DeleteUnsupported).
        """
        deleted = self.delete_manifest(repository, digest)
        for _ in range(_INDEX_ATTEMPTS):
            entries = self._fallback_entries(repository, subject_digest)
            if entries is None:
                return deleted
            rest = [entry for entry in entries if entry.get("digest") != digest]
            if not rest:
                self.delete_tag(repository, referrers_tag(subject_digest))
            elif len(rest) < len(entries):
                self._put_fallback(repository, subject_digest, rest)
            else:
                return deleted
        return deleted

    def delete_referrers(
        self, repository: str, digest: str, artifact_type: str | None = None
    ) -> list[ManifestDocument]:
        """Delete what refers to a manifest, of one type or all, and return it; the tag `sha256-…` goes with its last.

        Before the manifest itself is deleted: some registries forget then what referred to it. Raises
        Stalling(DeleteUnsupported).
        """
        deleted = []
        for referrer in self.referrers(repository, digest, artifact_type):
            document = self.get_manifest(repository, referrer.descriptor.digest)
            self.delete_referrer(repository, digest, referrer.descriptor.digest)
            if document is not None:
                deleted.append(document)
        return deleted

    def _api_entries(self, repository: str, digest: str, artifact_type: str | None) -> list[dict[str, Any]] | None:
        """Ask the referrers API; None if the registry has none. It may filter, and we do so again."""
        if not is_digest(digest):
            raise Stalling("ReferenceInvalid", f"{digest!r} is not a sha256 digest")
        what = f"looking for what refers to {digest} in {repository}"
        url = f"{self._provider.prefix}://{self.host}/v2/{self._container(repository).api_prefix}/referrers/{digest}"
        if artifact_type is not None:
            url += "?" + urllib.parse.urlencode({"artifactType": artifact_type})
        entries: list[dict[str, Any]] = []
        supported = False
        for content, media_type in self._pages(url, repository, what, _NO_REFERRERS_API):
            if media_type != INDEX_TYPE and not supported:
                return None  # some other page that a proxy or an old registry serves at any path
            supported = True
            page = _entries(content)
            if page is None:
                raise self._nonsense(what, "its list is none")
            entries += [entry for entry in page if artifact_type in {None, entry.get("artifactType")}]
            if len(entries) >= MAX_REFERRERS:
                break
        return entries if supported else None

    def _fallback_entries(self, repository: str, digest: str) -> list[dict[str, Any]] | None:
        """Return the entries of the index under the tag `sha256-…`; None if there is no such tag."""
        tag = referrers_tag(digest)
        document = self.get_manifest(repository, tag)
        if document is None:
            return None
        problem = "is not an index"
        try:
            content = parse_object(document.content, max_bytes=MAX_MANIFEST_BYTES)
            entries = _entries(content) if content.get("mediaType", document.media_type) == INDEX_TYPE else None
        except Malformed as error:
            problem, entries = f"cannot be read: {error}", None
        if entries is None:
            raise Stalling(
                "ManifestInvalid",
                f"what {self.host}/{repository} holds under the tag {tag}, where the list of signatures should be, "
                f"{problem}; delete that tag",
            )
        return entries

    def _put_fallback(self, repository: str, digest: str, entries: list[dict[str, Any]]) -> None:
        """Store the index under the tag `sha256-…`.

        Registries look whether they have what an index names. What somebody deleted without taking it out of the index
        would make that index unchangeable for ever; it is looked for only then.
        """
        tag = referrers_tag(digest)
        try:
            self._put_manifest(repository, _fallback_index(entries), INDEX_TYPE, tag)
        except _ContentLost:
            there = [entry for entry in entries if self._has_manifest(repository, str(entry.get("digest")))]
            if len(there) == len(entries):
                raise
            self._put_manifest(repository, _fallback_index(there), INDEX_TYPE, tag)

    def _has_manifest(self, repository: str, digest: str) -> bool:
        what = f"looking for {digest} in {repository}"
        return is_digest(digest) and not self._is_gone(self._manifest_url(repository, digest), repository, what)

    def _pages(
        self, url: str, repository: str, what: str, absent: tuple[int, ...]
    ) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield the pages of a list and their media types; none if the first answer is among the statuses `absent`.

        A page has at most 4 MiB, and a list `_MAX_PAGES`; where the next one is, a header `Link` says (RFC 5988).
        """
        seen: set[str] = set()
        while url not in seen and len(seen) < _MAX_PAGES:
            response = self._provider.request("GET", url, what, repository=repository, headers={"Accept": INDEX_TYPE})
            if response.status_code in absent and not seen:
                response.close()
                return
            if response.status_code != 200:
                self._refuse(response, what)
            seen.add(url)
            try:
                content = parse_object(read_at_most(response, MAX_MANIFEST_BYTES), max_bytes=MAX_MANIFEST_BYTES)
            except NETWORK_ERRORS as error:
                raise self._provider.unavailable(what, error) from None
            except Malformed as error:
                raise self._nonsense(what, f"its answer cannot be read: {error}") from None
            yield content, response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            target = response.links.get("next", {}).get("url")
            if not target:
                return
            url = _join(url, target)
            if not self._provider.is_own(url):
                raise self._nonsense(what, "its list goes on elsewhere")

    # How

    def _container(self, repository: str) -> Any:
        """Return what oras makes URLs from. Its own parser would take `a.b/c` for a repository `c` on a host `a.b`."""
        if _REPOSITORY.fullmatch(repository) is None or len(repository) > 255:
            raise Stalling("RepositoryInvalid", f"{repository!r} is not a repository name that a registry accepts")
        namespace, _, name = repository.rpartition("/")
        container = oras.container.Container("name", registry=self.host)
        container.registry, container.namespace, container.repository = self.host, namespace, name
        return container

    def _manifest_url(self, repository: str, reference: str) -> str:
        if not is_digest(reference) and _TAG.fullmatch(reference) is None:
            raise Stalling("ReferenceInvalid", f"{reference!r} is neither a tag nor a sha256 digest")
        return f"{self._provider.prefix}://{self._container(repository).manifest_url(reference)}"

    def _get_blob(self, repository: str, digest: str, offset: int) -> requests.Response | None:
        what = f"reading {digest} from {repository}"
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        url = self.blob_url(repository, digest)
        response = self._provider.request("GET", url, what, repository=repository, headers=headers)
        if offset and response.status_code in {400, 416}:
            # It knows no ranges without an end, or the blob is shorter now: all of it says which.
            response.close()
            response = self._provider.request("GET", url, what, repository=repository)
        if response.status_code == 404:
            response.close()
            return None
        if response.status_code not in {200, 206}:
            self._refuse(response, what)
        return response

    def _delete(self, url: str, repository: str, digest: str) -> bool:
        what = f"deleting {digest} from {repository}"
        response = self._provider.request("DELETE", url, what, repository=repository)
        if response.status_code == 404:
            response.close()
            return False
        if response.status_code == 405:
            response.close()
            raise Stalling(
                "DeleteUnsupported",
                f"registry {self.host} does not allow deletion; switch it on there (storage.delete.enabled), "
                f"or delete {digest} from {repository} by its own means",
            )
        if response.status_code >= 500 and self._is_gone(url, repository, what):
            response.close()
            return False  # go-containerregistry's says 500 of what it does not have
        self._expect(response, what, 202, 200, 204)
        return True

    def _is_gone(self, url: str, repository: str, what: str) -> bool:
        """Say whether a registry has no such blob or manifest (any more)."""
        headers = {"Accept": _ACCEPTED_MANIFESTS}
        response = self._provider.request("HEAD", url, what, repository=repository, headers=headers)
        if response.status_code == 404:
            response.close()
            return True
        self._expect(response, what, 200)
        return False

    def _open_upload(self, repository: str, what: str) -> str:
        """Return where a new upload goes."""
        start = f"{self._provider.prefix}://{self._container(repository).upload_blob_url()}"
        response = self._provider.request("POST", start, what, repository=repository, data=b"")
        return self._location(self._expect(response, what, 202), start, what)

    def _send(self, upload: str, repository: str, what: str, pieces: Iterator[bytes]) -> str:
        """Send what belongs to an upload, to its end; return where the upload goes on."""
        response = self._provider.request(
            "PATCH",
            upload,
            what,
            repository=repository,
            data=pieces,
            headers={"Content-Type": "application/octet-stream"},
            # The connection exists already, so that the first timeout bounds the sending of one piece.
            timeout=(self.settings.read_timeout, self.settings.commit_timeout),
        )
        return self._location(self._expect_upload(response, what, 202), upload, what)

    def _resume_upload(
        self, upload: str, repository: str, window: "_Window", delays: Iterator[float], failure: Transient
    ) -> tuple[str, int]:
        """Ask how far an upload got; return where it goes on, and from which byte. Raises `failure` in the end.

        If the registry cannot say, and everything is still here, then it begins anew.
        """
        what = f"resuming an upload to {repository}"
        for delay in delays:
            if failure.retry_after is not None and failure.retry_after > _LONGEST_PAUSE:
                break
            time.sleep(max(delay, failure.retry_after or 0.0))
            try:
                response = self._provider.request("GET", upload, what, repository=repository)
                if response.status_code == 204:
                    headers = self._expect(response, what, 204)
                    offset = _received(headers.get("Range", ""))
                    if offset is not None and window.start <= offset <= window.stream.size:
                        return self._location(headers, upload, what), offset
                response.close()
                if response.status_code < 500 and window.start > 0:
                    break
                if response.status_code < 500:
                    self._cancel(upload, repository)
                    return self._open_upload(repository, what), 0
            except Transient as again:
                failure = again
        raise failure

    def _commit(
        self, upload: str, repository: str, what: str, descriptor: Descriptor, delays: Iterator[float]
    ) -> Mapping[str, str]:
        """Give what was uploaded its name; return the headers of the answer.

        If that breaks, the registry may have done it or not.
        """
        url = oras.utils.append_url_params(upload, {"digest": descriptor.digest})
        headers = {"Content-Type": "application/octet-stream"}
        timeout = (self.settings.connect_timeout, self.settings.commit_timeout)
        while True:
            broken = True
            try:
                response = self._provider.request(
                    "PUT", url, what, repository=repository, data=b"", headers=headers, timeout=timeout
                )
                broken = response.status_code >= 500
                return self._expect_upload(response, what, 201)
            except Transient as failure:
                delay = next(delays, None)
                if failure.reason != "RegistryUnavailable" or delay is None or not broken:
                    raise
                time.sleep(delay)
                if self.blob_size(repository, descriptor.digest) == descriptor.size:
                    return {}

    def _cancel(self, upload: str, repository: str) -> None:
        """Throw an upload away, as well as that can be done: registries purge forgotten ones themselves, later."""
        what = f"cancelling an upload to {repository}"
        patience = (self.settings.connect_timeout, self.settings.connect_timeout)
        for delay in _CANCEL_DELAYS:
            time.sleep(delay)
            try:
                # An upload that broke off stands at an offset that its last Location does not know; ask for a new one.
                # The registry may still be busy with what it received, and then that changes once more.
                response = self._provider.request("GET", upload, what, repository=repository, timeout=patience)
                current = self._location(self._expect(response, what, 204), upload, what)
                response = self._provider.request("DELETE", current, what, repository=repository, timeout=patience)
                self._expect(response, what, 204, 202, 200)
            except Transient:
                return
            except OutriderError:
                continue
            return

    def _location(self, headers: Mapping[str, str], base: str, what: str) -> str:
        """Return where an upload goes on. A registry behind a proxy may name itself by the wrong scheme."""
        location = headers.get("Location", "")
        if not location:
            raise self._nonsense(what, "its answer has no Location")
        parts = urllib.parse.urlsplit(_join(base, location))
        if parts.netloc.lower() == self.host.lower():
            parts = parts._replace(scheme=self._provider.prefix)
        elif parts.scheme != "https":
            raise self._nonsense(what, "it wants the upload at another host without TLS")
        return urllib.parse.urlunsplit(parts)

    def _expect(self, response: requests.Response, what: str, *statuses: int) -> Mapping[str, str]:
        """Return the headers of an answer with one of `statuses`; raise what any other status means."""
        if response.status_code not in statuses:
            self._refuse(response, what)
        try:
            read_at_most(response, _MAX_ERROR_BYTES)
        except NETWORK_ERRORS as error:
            raise self._provider.unavailable(what, error) from None
        return response.headers

    def _expect_upload(self, response: requests.Response, what: str, status: int) -> Mapping[str, str]:
        """As `_expect`, for the middle of an upload: there a 4xx mostly means that the registry has lost it.

        It was restarted, for instance, or another replica answers. Starting again helps, so it is not a refusal.
        """
        if response.status_code in {400, 401, 404, 409, 416}:
            text = self._provider.error_text(response)
            message = f"registry {self.host} lost track of the upload while {what}{text}; it will be started again"
            raise Transient("RegistryUnavailable", message)
        return self._expect(response, what, status)

    def _refuse(self, response: requests.Response, what: str) -> NoReturn:
        """Raise what a status that nobody asked for means."""
        status = response.status_code
        text = self._provider.error_text(response)
        wait = retry_after(response.headers)
        if status == 429:
            message = f"registry {self.host} is throttling us (429) while {what}{text}"
            raise Transient("RegistryThrottled", message, retry_after=wait)
        if status in {401, 403}:
            known = "the configured credentials" if self._provider.has_credentials else "access without credentials"
            raise Stalling(
                "RegistryDenied",
                f"registry {self.host} refused {known} ({status}) while {what}{text}; check the registry's username, "
                "password and permissions",
            )
        if status >= 500 or status in {408, 425}:
            message = f"registry {self.host} answered {status} while {what}{text}"
            raise Transient("RegistryUnavailable", message, retry_after=wait)
        raise Stalling(
            "RegistryRefused",
            f"registry {self.host} answered {status} while {what}{text}; check the configured registry and repository",
        )

    def _nonsense(self, what: str, problem: str) -> Transient:
        return Transient(
            "RegistryUnavailable", f"registry {self.host} does not behave like one while {what}: {problem}"
        )


def referrers_tag(digest: str) -> str:
    """Return the tag of the index of what refers to a manifest, in registries without the referrers API."""
    return f"sha256-{digest.removeprefix(ALGORITHM)}"


def _describe(content: bytes, media_type: str) -> dict[str, Any]:
    """Return how an index describes a manifest (distribution specification, "Pushing Manifests with Subject")."""
    entry: dict[str, Any] = {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}
    try:
        manifest = parse_object(content, max_bytes=MAX_MANIFEST_BYTES)
    except Malformed as error:
        raise Stalling("ManifestInvalid", f"the manifest {entry['digest']} cannot be read: {error}") from None
    config, annotations = manifest.get("config"), manifest.get("annotations")
    artifact_type = manifest.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    if isinstance(artifact_type, str):
        entry["artifactType"] = artifact_type
    if isinstance(annotations, dict) and annotations:
        entry["annotations"] = annotations
    return entry


def _fallback_index(entries: list[dict[str, Any]]) -> bytes:
    return canonical_json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries})


def _entries(index: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the entries of an index that are objects; None if it is no index."""
    entries = index.get("manifests")
    if not isinstance(entries, list):
        return [] if entries is None and index.get("mediaType") == INDEX_TYPE else None
    return [entry for entry in entries if isinstance(entry, dict)]


def _parse_referrer(entry: dict[str, Any]) -> Referrer | None:
    digest, size = entry.get("digest"), entry.get("size")
    if not isinstance(digest, str) or not is_digest(digest) or type(size) is not int or size < 0:
        return None
    kind, annotations = entry.get("artifactType", ""), entry.get("annotations") or {}
    if not isinstance(kind, str) or not isinstance(annotations, dict):
        return None
    texts = {name: text for name, text in annotations.items() if isinstance(text, str)}
    return Referrer(Descriptor(digest, size), kind, texts)


class BlobStream:
    """A blob being read, once. Only when the iteration has ended without an error are the bytes the right ones."""

    def __init__(
        self,
        provider: "_Provider",
        repository: str,
        digest: str,
        size: int | None,
        reopen: Callable[[int], requests.Response | None],
        response: requests.Response,
    ) -> None:
        self._provider = provider
        self._repository = repository
        self._digest = digest
        self._size = size
        self._reopen = reopen
        """Asks for the blob from an offset on."""
        self._response = response

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading."""
        self._response.close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes, resuming a bounded number of times where the connection broke.

        Raises Stalling(BlobCorrupted) at the end when they do not hash to the digest (or as soon as there are more than
        the size), Transient(RegistryUnavailable) when resuming did not help.
        """
        stream = Sha256Stream()
        delays = iter(self._provider.settings.resume_delays)
        known = 0
        while True:
            try:
                for piece in read_pieces(self._response):
                    fresh = piece[known:]
                    known = max(0, known - len(piece))
                    if not fresh:
                        continue
                    stream.update(fresh)
                    if self._size is not None and stream.size > self._size:
                        raise self._corrupted(f"has more than the {self._size} bytes that it should have")
                    yield fresh
                break
            except NETWORK_ERRORS as error:
                known = self._resume(stream.size, delays, error)
        self._response.close()
        if stream.digest != self._digest:
            raise self._corrupted(f"({stream.size} bytes) hashes to {stream.digest}")

    def _resume(self, offset: int, delays: Iterator[float], error: BaseException) -> int:
        """Ask for the rest from `offset` on; return how many bytes of the answer are known already."""
        self._response.close()
        failure = self._provider.unavailable(f"reading {self._digest} from {self._repository}", error)
        for delay in delays:
            time.sleep(delay)
            try:
                response = self._reopen(offset)
            except Transient as again:
                failure = again
                continue
            if response is None:
                break
            self._response = response
            if response.status_code == 200:
                return offset
            if response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                return 0
            response.close()
        raise failure

    def _corrupted(self, how: str) -> Stalling:
        return Stalling(
            "BlobCorrupted",
            f"what registry {self._provider.settings.host} stores as {self._digest} in {self._repository} {how}: its "
            "storage was tampered with or is damaged; restore it, or delete the blob there and store the version again",
        )


class _Window:
    """A stream that is being sent, hashed as it goes, with its last `_WINDOW` bytes kept to be sent once more.

    They are copied into one ring. To keep the pieces themselves was measured to cost three times as much: then each
    new piece gets memory that was not touched before.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.stream = Sha256Stream()
        self.source_failed = False
        """The stream itself has raised an error: this is nothing that the registry could mend."""
        self._chunks = iter(chunks)
        self._ring = bytearray(_WINDOW)

    @property
    def start(self) -> int:
        """The first byte that is still here."""
        return max(0, self.stream.size - _WINDOW)

    def pieces(self, offset: int) -> Iterator[bytes]:
        """Yield the stream from a byte on that is still here."""
        end = self.stream.size
        while offset < end:
            place = offset % _WINDOW
            piece = bytes(self._ring[place : place + min(PIECE, end - offset)])
            offset += len(piece)
            yield piece
        while True:
            try:
                piece = next(self._chunks)
            except StopIteration:
                return
            except BaseException:
                self.source_failed = True
                raise
            self._keep(piece)
            self.stream.update(piece)
            yield piece

    def _keep(self, piece: bytes) -> None:
        tail = memoryview(piece)[-_WINDOW:]
        place = (self.stream.size + len(piece) - len(tail)) % _WINDOW
        room = _WINDOW - place
        self._ring[place : place + min(room, len(tail))] = tail[:room]
        self._ring[: max(0, len(tail) - room)] = tail[room:]


def _received(value: str) -> int | None:
    """Return how many bytes an upload's header `Range: 0-N` stands for; None if it cannot be said.

    `0-0` is what most registries say of an upload that has nothing yet.
    """
    match = _UPLOADED.fullmatch(value.strip())
    return int(match[1]) + 1 if match is not None and int(match[1]) > 0 else None


class _Provider(oras.provider.Registry):  # type: ignore[misc]  # oras has no types
    """oras' registry with its transport replaced.

    *Invariants.* Every request has timeouts. Nothing is retried but a request that was answered 401 or 403, once, with
    a fresh token. Credentials go to the registry's own origin, or to the token service that it names if that is the
    same host or behind TLS; tokens go to the registry's own origin. No exception of requests leaves this class.
    """

    def __init__(self, settings: RegistrySettings, docker_config: bytes | None) -> None:
        super().__init__(
            hostname=settings.host,
            insecure=settings.plain_http,
            tls_verify=settings.ca_file or True,
            auth_backend="token",
        )
        self.session = PlainSession(settings.guard)
        self.settings = settings
        self._host = settings.host
        self._patience = (settings.connect_timeout, settings.read_timeout)
        self._authorization: dict[str, str] = {}
        """The Authorization header by repository: a token is good for the one that it was issued for."""
        self._docker_config = docker_config
        self._identity_tokens: dict[str, str] = {}
        """By the one that was configured, what a token service has given in its place."""

    @property
    def has_credentials(self) -> bool:
        """Say whether anything was configured to authenticate with."""
        settings = self.settings
        return bool(settings.username or settings.identity_token or self._docker_config)

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: dict[str, str] | None = None,
        json: Any = None,
        stream: bool = False,  # all answers are streamed
    ) -> requests.Response:
        """As `request`, for what oras does on its own."""
        body = canonical_json(json) if json is not None else data
        return self.request(method, url, f"sending {method}", data=body, headers=headers)

    def request(
        self,
        method: str,
        url: str,
        what: str,
        *,
        repository: str = "",
        data: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        timeout: tuple[float, float] | None = None,
    ) -> requests.Response:
        """Send a request and return the answer, whatever its status, with its body still to be read.

        `what` completes the sentence "the registry failed while …". GET and HEAD follow redirects. Raises
        Transient(RegistryUnavailable), and what authenticating raises.
        """
        response = self._follow(method, url, what, repository, data, headers or {}, timeout)
        replayable = data is None or isinstance(data, bytes)
        if response.status_code not in {401, 403} or not replayable:
            return response
        try:
            again = self._authenticate(response, repository)
        except OutriderError:
            response.close()
            raise
        if not again:
            return response
        response.close()
        return self._follow(method, url, what, repository, data, headers or {}, timeout)

    def unavailable(self, what: str, error: BaseException) -> Transient:
        """Return what a failure of the network means."""
        return Transient(
            "RegistryUnavailable", f"registry {self._host} is not available while {what}: {explain(error)}"
        )

    def error_text(self, response: requests.Response) -> str:
        """Return ` (CODE: message)` from an answer's error body, or nothing; then close the answer."""
        try:
            answer = parse_object(read_at_most(response, _MAX_ERROR_BYTES), max_bytes=_MAX_ERROR_BYTES)
            error = answer["errors"][0]
            code, message = str(error["code"]), str(error.get("message", ""))
        except (*NETWORK_ERRORS, Malformed, KeyError, IndexError, TypeError, AttributeError):
            return ""
        text = f"{code}: {message}" if message else code
        return f" ({''.join(c if c.isprintable() else ' ' for c in text)[:200]})"

    def _follow(
        self,
        method: str,
        url: str,
        what: str,
        repository: str,
        data: bytes | Iterator[bytes] | None,
        headers: dict[str, str],
        timeout: tuple[float, float] | None,
    ) -> requests.Response:
        for _ in range(_MAX_REDIRECTS + 1):
            authorization = self._authorization.get(repository)
            extra = {"Authorization": authorization} if authorization and self.is_own(url) else {}
            response = self._send(method, url, what, data, {**headers, **extra}, timeout)
            if response.status_code not in _REDIRECTS or method not in {"GET", "HEAD"}:
                return response
            target = _join(url, response.headers.get("Location", ""))
            response.close()
            secure = url.startswith("https:")
            if not target.startswith("https:") and (secure or not target.startswith("http:")):
                raise Transient(
                    "RegistryUnavailable", f"registry {self._host} redirects to a place without TLS while {what}"
                )
            url = target
        raise Transient("RegistryUnavailable", f"registry {self._host} redirects in circles while {what}")

    def _send(
        self,
        method: str,
        url: str,
        what: str,
        data: bytes | Iterator[bytes] | None,
        headers: dict[str, str],
        timeout: tuple[float, float] | None,
    ) -> requests.Response:
        if self.settings.allowed_hosts:
            check_url(url, self.settings.allowed_hosts)
        try:
            response: requests.Response = self.session.request(
                method,
                url,
                data=data,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=timeout or self._patience,
                verify=self._tls_verify,
            )
            return response
        except NETWORK_ERRORS as error:
            raise self.unavailable(what, error) from None

    def is_own(self, url: str) -> bool:
        """Say whether a URL lies at the registry's own origin."""
        return origin(url) == origin(f"{self.prefix}://{self._host}")

    def _authenticate(self, response: requests.Response, repository: str) -> bool:
        """Get what a challenge asks for; False if there is nothing (more) to try.

        1. Without a challenge from the registry itself there is nothing to answer.
        2. Basic: our credentials, to the registry itself, once.
        3. Bearer: a fresh token from the service that the challenge names, for the scope that it names.
        """
        # 1.
        challenge = response.headers.get("WWW-Authenticate", "")
        if not challenge or not self.is_own(str(response.url)):
            return False
        scheme = challenge.split(" ", 1)[0].lower()

        # 2.
        if scheme == "basic":
            basic = _basic(self._credentials(repository))
            if not basic or self._authorization.get(repository) == basic:
                return False
            self._authorization[repository] = basic
            return True

        # 3.
        if scheme != "bearer":
            return False
        wanted = oras.auth.utils.parse_auth_header(challenge)
        realm = wanted.realm or ""
        parts = urllib.parse.urlsplit(_join("", realm))
        same_host = parts.hostname == urllib.parse.urlsplit(f"//{self._host}").hostname
        if parts.scheme != "https" and not (parts.scheme == "http" and same_host and self.settings.plain_http):
            raise Stalling(
                "RegistryDenied",
                f"registry {self._host} wants credentials sent to a token service that is neither behind TLS nor on "
                "the same host; that is not done; correct the registry's token realm",
            )
        token = self._fetch_token(parts.geturl(), wanted.service, wanted.scope, self._credentials(repository))
        self._authorization[repository] = f"Bearer {token}"
        return True

    def _fetch_token(self, realm: str, service: str | None, scope: str | None, credentials: Credentials) -> str:
        """Return an access token.

        Distribution's "Token Authentication Specification", and for identity tokens its "OAuth 2.0 Token
        Specification".
        """
        parts = urllib.parse.urlsplit(realm)
        what = f"getting a token from {parts.netloc.rpartition('@')[2]}"
        asked = [("service", service)] if service else []
        asked += [("scope", scope)] if scope else []
        identity = self._identity_tokens.get(credentials.identity_token, credentials.identity_token)
        if identity:
            form = [("grant_type", "refresh_token"), ("client_id", "outrider"), ("refresh_token", identity), *asked]
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response = self._send("POST", realm, what, urllib.parse.urlencode(form).encode(), headers, None)
        else:
            query = urllib.parse.urlencode(urllib.parse.parse_qsl(parts.query) + asked)
            url = urllib.parse.urlunsplit(parts._replace(query=query))
            basic = _basic(credentials)
            response = self._send("GET", url, what, None, {"Authorization": basic} if basic else {}, None)
        status = response.status_code
        if status == 429 or status >= 500:
            response.close()
            reason = "RegistryThrottled" if status == 429 else "RegistryUnavailable"
            message = f"registry {self._host} cannot be used: its token service answered {status} while {what}"
            raise Transient(reason, message, retry_after=retry_after(response.headers))
        if status != 200:
            response.close()
            raise Stalling(
                "RegistryDenied",
                f"registry {self._host}: its token service refused the credentials ({status}) while {what}; check the "
                "registry's username, password and permissions",
            )
        try:
            answer = parse_object(read_at_most(response, _MAX_ERROR_BYTES), max_bytes=_MAX_ERROR_BYTES)
        except NETWORK_ERRORS as error:
            raise self.unavailable(what, error) from None
        except Malformed:
            answer = {}
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise Transient("RegistryUnavailable", f"registry {self._host} sent no usable token while {what}")
        fresh = answer.get("refresh_token")
        if identity and isinstance(fresh, str) and fresh:
            self._identity_tokens[credentials.identity_token] = fresh
        return token

    def _credentials(self, repository: str) -> Credentials:
        """Return as whom to ask for a repository; empty for nobody. Raises Stalling(CredentialsMalformed)."""
        settings = self.settings
        if settings.username or settings.identity_token:
            return Credentials(settings.username or "", settings.password or "", settings.identity_token or "")
        if self._docker_config is None:
            return Credentials()
        found = dockerconfig.credentials_for(self._docker_config, self._host, repository)
        return found or Credentials()


def _join(base: str, target: str) -> str:
    """Return where a registry points to; nothing, which no scheme fits, if that is no URL."""
    try:
        url = urllib.parse.urljoin(base, target)
        urllib.parse.urlsplit(url).port  # noqa: B018 - raises for ports that are none
    except ValueError:
        return ""
    return url


def _basic(credentials: Credentials) -> str:
    """Return the header for a password, nothing if there is none."""
    if not credentials.username or not credentials.password:
        return ""
    return "Basic " + str(oras.auth.utils.get_basic_auth(credentials.username, credentials.password))
