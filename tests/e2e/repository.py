"""A component's repository in the registry, as any OCI client sees it, and as it lies on the registry's disk."""

import hashlib
import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from localcluster import Cluster
from outrider.api import names

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Repository:
    """What an OCI client that knows nothing of Outrider finds."""

    def __init__(self, local: Cluster, name: str) -> None:
        self.name = name
        self._local = local

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[bytes, dict[str, str]]:
        """Send something to the registry, below the repository; returns the body and the headers of the answer."""
        url = path if path.startswith("http") else f"http://{self._local.registry}/v2/{self.name}/{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        # The registry of this cluster.
        request = urllib.request.Request(url, data=body, headers=named, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.read(), dict(answer.headers)

    def get(self, path: str, accept: str = "*/*") -> bytes:
        """GET something below the repository, as curl would."""
        return self.request("GET", path, Accept=accept)[0]

    def has(self, path: str) -> bool:
        """Tell whether the registry has something there."""
        try:
            # This registry says 404 to whoever does not name the type of what it has.
            self.request("HEAD", path, Accept=f"{INDEX}, {MANIFEST}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
        return True

    def push(self, content: bytes) -> str:
        """Push a blob, as any OCI client does; returns its digest."""
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        place = self.request("POST", "blobs/uploads/", b"")[1]["Location"]
        query = urllib.parse.urlencode({"digest": digest})
        self.request("PUT", f"{place}{'&' if '?' in place else '?'}{query}", content)
        return digest

    def delete(self, path: str) -> None:
        """Delete a blob or a manifest, as a clean-up by somebody else does."""
        self.request("DELETE", path)

    def all_tags(self) -> list[str]:
        """Return all tags there are, also those that no person is to pull by."""
        try:
            return json.loads(self.get("tags/list")).get("tags") or []
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return []

    def tags(self) -> list[str]:
        """Return the tags under which the component can be pulled.

        Those of drafts, which begin with `_`, and those that stand in for the referrers API are none.
        """
        return [tag for tag in self.all_tags() if not tag.startswith(("_", "sha256-"))]

    def pull(self, version: str) -> bytes:
        """Pull as any OCI client does: tag → index → manifest → blob, each checked against its digest."""
        index = json.loads(self.get(f"manifests/{version}", INDEX))
        assert index["artifactType"] == names.ARTIFACT_TYPE
        [entry] = index["manifests"]
        assert entry["platform"] == {"os": "linux", "architecture": "amd64"}
        document = self.get(f"manifests/{entry['digest']}", MANIFEST)
        assert entry["digest"] == "sha256:" + hashlib.sha256(document).hexdigest()
        manifest = json.loads(document)
        assert manifest["artifactType"] == names.ARTIFACT_TYPE
        [layer] = manifest["layers"]
        assert layer["annotations"]["org.opencontainers.image.title"] == "node-agent"
        blob = self.get(f"blobs/{layer['digest']}")
        assert layer["digest"] == "sha256:" + hashlib.sha256(blob).hexdigest()
        assert layer["size"] == len(blob)
        return blob

    def blob_file(self, digest: str) -> Path:
        """Return where the registry keeps a blob's bytes."""
        sha256 = digest.removeprefix("sha256:")
        data = self._local.directory / "registry" / "data"
        return data / "docker/registry/v2/blobs/sha256" / sha256[:2] / sha256 / "data"

    def manifests_on_disk(self) -> list[str]:
        """Return the digests of all manifests that the repository has, whether a tag leads to them or not."""
        data = self._local.directory / "registry" / "data/docker/registry/v2/repositories"
        folder = data / self.name / "_manifests/revisions/sha256"
        return sorted(f"sha256:{link.parent.name}" for link in folder.glob("*/link"))
