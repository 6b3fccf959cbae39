"""Where versions' bytes are: the operator's own registry, and the registries of others. One client per job."""

import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from ipaddress import ip_network

from outrider.adapters import sources
from outrider.adapters.dockerconfig import Credentials, credentials_for
from outrider.adapters.ocisource import OciReference
from outrider.adapters.registry import OciRegistry, RegistrySettings
from outrider.adapters.transport import AddressPolicy
from outrider.api.componentversion import StoredArtifact
from outrider.api.errors import Stalling
from outrider.core.delivery import FetchSettings
from outrider.reconcile.inputs import Login
from outrider.settings import Settings

MAX_DOCUMENT_BYTES = 512 * 1024
"""Of a signature's document."""
DOCUMENT_SECONDS = 60.0
"""For a signature's document."""
IMAGE_DOCUMENTS_SECONDS = 300.0
"""For an image's documents and what was signed about them: up to some hundred requests, one after the other."""


class Places:
    """What the operator's settings say of registries and sources.

    Wherever an author may name the place, there is an end: after `DOCUMENT_SECONDS` for one small document, and
    `IMAGE_DOCUMENTS_SECONDS` for all those of an image; after `SourceLimits.total_timeout` for whatever brings files.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._guard = AddressPolicy(tuple(ip_network(each, strict=False) for each in settings.allowed_source_addresses))
        self.limits = self._limits(settings.max_artifact_bytes)
        self.document_limits = replace(self._limits(MAX_DOCUMENT_BYTES), total_timeout=DOCUMENT_SECONDS)

    def registry(self) -> OciRegistry:
        """Return the operator's own registry."""
        settings = self._settings
        return OciRegistry(
            RegistrySettings(
                host=settings.registry,
                plain_http=settings.registry_plain_http,
                ca_file=settings.registry_ca_file or None,
                username=settings.registry_username or None,
                password=settings.registry_password or None,
                docker_config=settings.registry_docker_config or None,
            )
        )

    def registry_of(
        self,
        reference: OciReference,
        login: Login | None,
        cancelled: Callable[[], bool],
        *,
        seconds: float | None = None,
    ) -> OciRegistry:
        """Return somebody else's registry, as far as the settings allow to go there, and for so long.

        All of it ends once `cancelled` says so, or after `seconds`; by default as long as a file may take.
        Raises Stalling(UrlInvalid, CredentialsMalformed, SecretUnusable).
        """
        plain = self._is_plain(reference.host)
        scheme = "http" if plain else "https"
        sources.check_url(f"{scheme}://{reference.host}/", self._settings.allowed_source_hosts)
        found = _credentials(reference, login) if login is not None else Credentials()
        return OciRegistry(
            RegistrySettings(
                host=reference.host,
                plain_http=plain,
                username=found.username or None,
                password=found.password or None,
                identity_token=found.identity_token or None,
                allowed_hosts=self._settings.allowed_source_hosts,
                guard=self._guard,
                total_timeout=self.limits.total_timeout if seconds is None else seconds,
            ),
            cancelled=cancelled,
        )

    def may_be_plain(self, url: str) -> bool:
        """Say whether credentials may go to a URL's host without TLS."""
        return self._is_plain(urllib.parse.urlsplit(url).netloc)

    def repository(self, namespace: str, component: str) -> str:
        """Return a component's repository in the operator's registry."""
        prefix = self._settings.registry_prefix
        path = f"{namespace}/{component}"
        return f"{prefix}/{path}" if prefix else path

    def _is_plain(self, host: str) -> bool:
        return any(fnmatchcase(host, glob) for glob in self._settings.plain_http_sources)

    def _limits(self, max_bytes: int) -> sources.SourceLimits:
        return sources.SourceLimits(
            max_bytes=max_bytes, allowed_hosts=self._settings.allowed_source_hosts, guard=self._guard
        )


def fetch_settings(
    settings: Settings, reference: str, artifacts: Sequence[StoredArtifact], *, may_use_node: bool = True
) -> FetchSettings:
    """Return how nodes fetch a version whose index in the operator's registry is `reference`.

    `may_use_node` says whether pods of its namespace may have folders of the node.
    """

    def as_nodes_see(stored: str) -> str:
        return settings.registry_of_nodes + rest if (rest := _within(stored, settings.registry)) else stored

    return FetchSettings(
        image=settings.fetch_image,
        image_pull_policy=settings.fetch_image_pull_policy,
        reference=as_nodes_see(reference),
        plain_http=settings.registry_plain_http,
        allow_rsa_2048=settings.allow_rsa_2048,
        require_binding=settings.require_binding,
        digests={stored.platform: stored.digest.removeprefix("sha256:") for stored in artifacts},
        images={stored.platform: as_nodes_see(stored.image) for stored in artifacts if stored.image is not None},
        registry_secret=settings.node_registry_secret,
        node_dir=settings.node_dir,
        host_roots=settings.host_roots,
        may_use_node=may_use_node,
    )


def _within(reference: str, registry: str) -> str:
    """Return what follows a registry's host in a reference, "" if it is another's."""
    return reference.removeprefix(registry) if reference.startswith(f"{registry}/") else ""


def _credentials(reference: OciReference, login: Login) -> Credentials:
    if login.docker_config:
        found = credentials_for(login.docker_config, reference.host, reference.repository)
        if found is None:
            raise Stalling(
                "SecretUnusable",
                f"the Secret's docker config has no credentials for {reference.host}/{reference.repository}; add them, "
                "or take secretRef out",
            )
        return found
    if login.authorization:
        raise Stalling(
            "SecretUnusable",
            "a registry is logged in to with username and password, or with .dockerconfigjson; the Secret has neither",
        )
    return Credentials(login.username, login.password)
