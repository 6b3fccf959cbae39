"""The trusted keys: read from labelled Secrets in the operator's namespace, handed to the nodes as ConfigMaps."""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from outrider.adapters.events import EventRecorder
from outrider.adapters.informer import Informer
from outrider.adapters.kube import CONFIG_MAPS, SECRETS, Cluster, Json
from outrider.api import names
from outrider.core.plan import Event
from outrider.settings import Settings
from outrider.trust.keys import (
    EVERYTHING,
    KeyProblem,
    TrustedKey,
    build_key_files,
    keys_from_secret,
    matches,
    parse_globs,
    select_keys,
)


@dataclass(frozen=True)
class KeySecret:
    """The usable keys of one Secret, and what is wrong with the others."""

    name: str
    uid: str
    keys: tuple[TrustedKey, ...]
    problems: tuple[KeyProblem, ...] = ()
    components: tuple[str, ...] = EVERYTHING
    namespaces: tuple[str, ...] = EVERYTHING

    @property
    def signature(self) -> str:
        """Return what identifies the content: keys, and what they are narrowed to."""
        return "|".join(
            f"{key.fingerprint}:{key.components}:{key.namespaces}:{key.not_before}:{key.not_after}" for key in self.keys
        )


class TrustStore:
    """All keys that may vouch for a version now."""

    def __init__(
        self, cluster: Cluster, settings: Settings, recorder: EventRecorder, on_change: Callable[[], None]
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._recorder = recorder
        self._on_change = on_change
        self._handed: dict[tuple[str, str], str] = {}
        self.informer: Informer[KeySecret] = Informer(
            cluster,
            SECRETS,
            self._project,
            self._changed,
            namespace=settings.namespace,
            labelSelector=f"{names.LABEL_TRUST_KEY}=true",
        )

    @property
    def keys(self) -> list[TrustedKey]:
        """Return all usable keys, in a stable order."""
        secrets = sorted(self.informer.values(), key=lambda secret: secret.name)
        return [key for secret in secrets for key in secret.keys]

    @property
    def generation(self) -> str:
        """Return what changes whenever the set of keys, or what one is narrowed to, changes."""
        text = "|".join(sorted(f"{secret.name}:{secret.signature}" for secret in self.informer.values()))
        return hashlib.sha256(text.encode()).hexdigest()

    def fingerprints(self, namespace: str, component: str, *, at: datetime | None = None) -> frozenset[str]:
        """Return the fingerprints of the keys that may vouch for a component's versions in a namespace.

        With `at` only those that are valid at that moment: for a first publication.
        """
        return frozenset(key.fingerprint for key in select_keys(self.keys, namespace, component, at))

    def problems(self, namespace: str, component: str) -> list[KeyProblem]:
        """Return what is wrong with keys that were meant to vouch for a component's versions in a namespace."""
        return [
            problem
            for secret in sorted(self.informer.values(), key=lambda secret: secret.name)
            if matches(secret.namespaces, namespace) and matches(secret.components, component)
            for problem in secret.problems
        ]

    async def hand_out(self, namespace: str, component: str) -> None:
        """Keep the ConfigMap of the public keys that may vouch for a component in a fleet's namespace.

        Nodes trust every key in it. Applying leaves alone what others have put there before it was ours, and from then
        on nobody else may change it: so what is not ours is taken out here.
        """
        files = build_key_files(select_keys(self.keys, namespace, component))
        content = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
        if self._handed.get((namespace, component)) == content:
            return
        body: Json = {
            "metadata": {
                "name": names.trusted_keys_name(component),
                "namespace": namespace,
                "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_COMPONENT: component},
            },
            "data": files,
        }
        answer = await self._cluster.apply(CONFIG_MAPS, body)
        if (answer.get("data") or {}) != files or answer.get("binaryData"):
            await self._clean(answer, files)
        self._handed[namespace, component] = content

    async def _clean(self, found: Json, files: dict[str, str]) -> None:
        """Leave nothing in the ConfigMap but our keys."""
        metadata = found["metadata"]
        operations: list[Json] = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
            {"op": "add", "path": "/data", "value": files},
        ]
        if "binaryData" in found:
            operations.append({"op": "remove", "path": "/binaryData"})
        await self._cluster.patch_json(CONFIG_MAPS, metadata["namespace"], metadata["name"], operations)

    def _changed(self, _before: KeySecret | None, after: KeySecret | None) -> None:
        if after is not None:
            for problem in after.problems:
                event = Event("Warning", problem.reason, problem.message)
                self._recorder.record(SECRETS, self._settings.namespace, after.name, after.uid, event)
        self._on_change()

    def _project(self, obj: Json, _before: KeySecret | None) -> KeySecret:
        name = obj["metadata"]["name"]
        data = {key: base64.b64decode(value) for key, value in (obj.get("data") or {}).items()}
        keys, problems = keys_from_secret(
            name, data, obj["metadata"].get("annotations") or {}, allow_rsa_2048=self._settings.allow_rsa_2048
        )
        annotations = obj["metadata"].get("annotations") or {}
        return KeySecret(
            name,
            obj["metadata"]["uid"],
            tuple(keys),
            tuple(problems),
            parse_globs(annotations.get(names.ANNOTATION_KEY_COMPONENTS)),
            parse_globs(annotations.get(names.ANNOTATION_KEY_NAMESPACES)),
        )
