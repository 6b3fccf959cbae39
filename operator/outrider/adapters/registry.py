"""The OCI registry: streams in, streams out, nothing believed that was not hashed here.

The operations of the OCI distribution specification 1.1 that Outrider needs; `registrysession.py` sends the requests.

Blocking, and not safe for use by two threads at a time: one `OciRegistry` per job, in a worker thread.
"""

import re
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import requests

from outrider.adapters.blobs import BlobStream, UploadWindow
from outrider.adapters.registrysession import MAX_ERROR_BYTES, RegistrySession, RegistrySettings, join_url
from outrider.adapters.transport import NETWORK_ERRORS, read_at_most, retry_after
from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.trust.digest import ALGORITHM, digest_of, is_digest
from outrider.trust.documents import Malformed, canonical_json, parse_object

__all__ = [
    "INDEX_TYPE",
    "MANIFEST_TYPE",
    "MAX_MANIFEST_BYTES",
    "MAX_REFERRERS",
    "MAX_TAGS",
    "BlobStream",
    "Descriptor",
    "ManifestDocument",
    "OciRegistry",
    "Referrer",
    "RegistrySettings",
    "referrers_tag",
]

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

_LONGEST_PAUSE: Final = 10.0
"""Seconds; who asks to wait longer is let wait by whoever called us."""
_UPLOADED: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_CANCEL_DELAYS: Final = (0.0, 0.1, 0.5)
"""Seconds before each attempt to cancel an upload."""

# Distribution specification, "Pulling manifests".
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


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
    With `settings.total_timeout`, or `cancelled`, a thread watches from the first request to `close`, and ends whatever
    goes on: at the deadline with Transient(RegistryUnavailable), and once `cancelled` says so, for which it is asked
    about every half second, with Transient(Cancelled); so does all that is asked afterwards.
    Use it as a context manager, or close it. Making one raises Stalling(RegistryInvalid) on settings that cannot work.
    """

    def __init__(self, settings: RegistrySettings, *, cancelled: Callable[[], bool] | None = None) -> None:
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
        self._session = RegistrySession(settings, config, cancelled)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all connections."""
        self._session.close()

    # Names

    def blob_url(self, repository: str, digest: str) -> str:
        """Return where the registry serves a blob."""
        return f"{self._session.prefix}://{self._session.container(repository).get_blob_url(digest)}"

    def manifest_url(self, repository: str, reference: str) -> str:
        """Return where the registry serves a manifest. Raises Stalling(ReferenceInvalid)."""
        if not is_digest(reference) and _TAG.fullmatch(reference) is None:
            raise Stalling("ReferenceInvalid", f"{reference!r} is neither a tag nor a sha256 digest")
        return f"{self._session.prefix}://{self._session.container(repository).manifest_url(reference)}"

    def reference(self, repository: str, digest: str) -> str:
        """Return the name by which any OCI client pulls a manifest: `host/repository@sha256:…`."""
        return f"{self.host}/{repository}@{digest}"

    # Blobs

    def check(self) -> None:
        """Return if the registry answers and lets us in (`GET /v2/`)."""
        what = "asking for its API version"
        response = self._session.request("GET", f"{self._session.prefix}://{self.host}/v2/", what)
        self._expect(response, what, 200)

    def blob_size(self, repository: str, digest: str) -> int | None:
        """Return the size in bytes of a blob, or None if the repository has no such blob."""
        what = f"looking for {digest} in {repository}"
        response = self._session.request("HEAD", self.blob_url(repository, digest), what, repository=repository)
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
            window = UploadWindow(chunks)
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

    def open_blob(
        self, repository: str, digest: str, *, size: int | None = None, further: Collection[str] = ()
    ) -> BlobStream | None:
        """Return a blob to be read piece by piece, or None if there is no such blob.

        `size` is the size in bytes that it must have, if that is known. `further` are algorithms whose digests of it
        are wanted, too.
        """
        response = self._get_blob(repository, digest, 0)
        if response is None:
            return None

        def reopen(offset: int) -> requests.Response | None:
            return self._get_blob(repository, digest, offset)

        return BlobStream(self._session, repository, digest, size, reopen, response, further)

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
        response = self._session.request(
            "PUT",
            self.manifest_url(repository, reference or digest),
            what,
            repository=repository,
            data=content,
            headers={"Content-Type": media_type},
        )
        if response.status_code in {400, 404, 415, 422}:
            text = self._session.error_text(response)
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
        response = self._session.request(
            "GET",
            self.manifest_url(repository, reference),
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
            raise self._session.unavailable(what, error) from None
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
        return self._delete(self.manifest_url(repository, digest), repository, digest)

    def delete_tag(self, repository: str, tag: str) -> bool:
        """Delete a tag together with its manifest; False if it was not there. Raises Stalling(DeleteUnsupported).

        By digest first: every registry that deletes can do that, and most drop the tag with it.
        """
        document = self.get_manifest(repository, tag)
        if document is None:
            return False
        self.delete_manifest(repository, document.digest)
        if self.get_manifest(repository, tag) is not None:
            self._delete(self.manifest_url(repository, tag), repository, tag)
        return True

    def list_tags(self, repository: str) -> list[str]:
        """Return the tags of a repository, none if there is no such repository. At most `MAX_TAGS` are read."""
        what = f"listing the tags of {repository}"
        url = f"{self._session.prefix}://{self._session.container(repository).tags_url(1000)}"
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
        url = f"{self._session.prefix}://{self.host}/v2/{self._session.container(repository).api_prefix}/referrers/{digest}"
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
        return is_digest(digest) and not self._is_gone(self.manifest_url(repository, digest), repository, what)

    def _pages(
        self, url: str, repository: str, what: str, absent: tuple[int, ...]
    ) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield the pages of a list and their media types; none if the first answer is among the statuses `absent`.

        A page has at most 4 MiB, and a list `_MAX_PAGES`; where the next one is, a header `Link` says (RFC 5988).
        """
        seen: set[str] = set()
        while url not in seen and len(seen) < _MAX_PAGES:
            response = self._session.request("GET", url, what, repository=repository, headers={"Accept": INDEX_TYPE})
            if response.status_code in absent and not seen:
                response.close()
                return
            if response.status_code != 200:
                self._refuse(response, what)
            seen.add(url)
            try:
                content = parse_object(read_at_most(response, MAX_MANIFEST_BYTES), max_bytes=MAX_MANIFEST_BYTES)
            except NETWORK_ERRORS as error:
                raise self._session.unavailable(what, error) from None
            except Malformed as error:
                raise self._nonsense(what, f"its answer cannot be read: {error}") from None
            yield content, response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            target = response.links.get("next", {}).get("url")
            if not target:
                return
            url = join_url(url, target)
            if not self._session.is_own(url):
                raise self._nonsense(what, "its list goes on elsewhere")

    # How

    def _get_blob(self, repository: str, digest: str, offset: int) -> requests.Response | None:
        what = f"reading {digest} from {repository}"
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        url = self.blob_url(repository, digest)
        response = self._session.request("GET", url, what, repository=repository, headers=headers)
        if offset and response.status_code in {400, 416}:
            # It knows no ranges without an end, or the blob is shorter now: all of it says which.
            response.close()
            response = self._session.request("GET", url, what, repository=repository)
        if response.status_code == 404:
            response.close()
            return None
        if response.status_code not in {200, 206}:
            self._refuse(response, what)
        return response

    def _delete(self, url: str, repository: str, digest: str) -> bool:
        what = f"deleting {digest} from {repository}"
        response = self._session.request("DELETE", url, what, repository=repository)
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
        response = self._session.request("HEAD", url, what, repository=repository, headers=headers)
        if response.status_code == 404:
            response.close()
            return True
        self._expect(response, what, 200)
        return False

    def _open_upload(self, repository: str, what: str) -> str:
        """Return where a new upload goes."""
        start = f"{self._session.prefix}://{self._session.container(repository).upload_blob_url()}"
        response = self._session.request("POST", start, what, repository=repository, data=b"")
        return self._location(self._expect(response, what, 202), start, what)

    def _send(self, upload: str, repository: str, what: str, pieces: Iterator[bytes]) -> str:
        """Send what belongs to an upload, to its end; return where the upload goes on."""
        response = self._session.request(
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
        self, upload: str, repository: str, window: UploadWindow, delays: Iterator[float], failure: Transient
    ) -> tuple[str, int]:
        """Ask how far an upload got; return where it goes on, and from which byte. Raises `failure` in the end.

        If the registry cannot say, and everything is still here, then it begins anew.
        """
        what = f"resuming an upload to {repository}"
        for delay in delays:
            if failure.retry_after is not None and failure.retry_after > _LONGEST_PAUSE:
                break
            self._session.pause(max(delay, failure.retry_after or 0.0))
            try:
                response = self._session.request("GET", upload, what, repository=repository)
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
        url = self._session.with_parameters(upload, {"digest": descriptor.digest})
        headers = {"Content-Type": "application/octet-stream"}
        timeout = (self.settings.connect_timeout, self.settings.commit_timeout)
        while True:
            broken = True
            try:
                response = self._session.request(
                    "PUT", url, what, repository=repository, data=b"", headers=headers, timeout=timeout
                )
                broken = response.status_code >= 500
                return self._expect_upload(response, what, 201)
            except Transient as failure:
                delay = next(delays, None)
                if failure.reason != "RegistryUnavailable" or delay is None or not broken:
                    raise
                self._session.pause(delay)
                if self.blob_size(repository, descriptor.digest) == descriptor.size:
                    return {}

    def _cancel(self, upload: str, repository: str) -> None:
        """Throw an upload away, as well as that can be done: registries purge forgotten ones themselves, later."""
        what = f"cancelling an upload to {repository}"
        patience = (self.settings.connect_timeout, self.settings.connect_timeout)
        for delay in _CANCEL_DELAYS:
            self._session.pause(delay)
            try:
                # An upload that broke off stands at an offset that its last Location does not know; ask for a new one.
                # The registry may still be busy with what it received, and then that changes once more.
                response = self._session.request("GET", upload, what, repository=repository, timeout=patience)
                current = self._location(self._expect(response, what, 204), upload, what)
                response = self._session.request("DELETE", current, what, repository=repository, timeout=patience)
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
        parts = urllib.parse.urlsplit(join_url(base, location))
        if parts.netloc.lower() == self.host.lower():
            parts = parts._replace(scheme=self._session.prefix)
        elif parts.scheme != "https":
            raise self._nonsense(what, "it wants the upload at another host without TLS")
        return urllib.parse.urlunsplit(parts)

    def _expect(self, response: requests.Response, what: str, *statuses: int) -> Mapping[str, str]:
        """Return the headers of an answer with one of `statuses`; raise what any other status means."""
        if response.status_code not in statuses:
            self._refuse(response, what)
        try:
            read_at_most(response, MAX_ERROR_BYTES)
        except NETWORK_ERRORS as error:
            raise self._session.unavailable(what, error) from None
        return response.headers

    def _expect_upload(self, response: requests.Response, what: str, status: int) -> Mapping[str, str]:
        """As `_expect`, for the middle of an upload: there a 4xx mostly means that the registry has lost it.

        It was restarted, for instance, or another replica answers. Starting again helps, so it is not a refusal.
        """
        if response.status_code in {400, 401, 404, 409, 416}:
            text = self._session.error_text(response)
            message = f"registry {self.host} lost track of the upload while {what}{text}; it will be started again"
            raise Transient("RegistryUnavailable", message)
        return self._expect(response, what, status)

    def _refuse(self, response: requests.Response, what: str) -> NoReturn:
        """Raise what a status that nobody asked for means."""
        status = response.status_code
        text = self._session.error_text(response)
        wait = retry_after(response.headers)
        if status == 429:
            message = f"registry {self.host} is throttling us (429) while {what}{text}"
            raise Transient("RegistryThrottled", message, retry_after=wait)
        if status in {401, 403}:
            known = "the configured credentials" if self._session.has_credentials else "access without credentials"
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


def _received(value: str) -> int | None:
    """Return how many bytes an upload's header `Range: 0-N` stands for; None if it cannot be said.

    `0-0` is what most registries say of an upload that has nothing yet.
    """
    match = _UPLOADED.fullmatch(value.strip())
    return int(match[1]) + 1 if match is not None and int(match[1]) > 0 else None
