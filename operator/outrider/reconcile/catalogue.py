"""Which versions of which components there are, kept up to date by what changes: nobody looks through all of them."""

from collections.abc import Mapping

from outrider.adapters.kube import Json
from outrider.core.version import newest

USABLE = frozenset({"Published", "Deprecated"})


class Catalogue:
    """The phase of every version that was ever published, by namespace and component."""

    def __init__(self) -> None:
        self._phases: dict[tuple[str, str], dict[str, str]] = {}
        self._newest: dict[tuple[str, str], str | None] = {}

    def note(self, before: Json | None, after: Json | None) -> bool:
        """Take note of a change of a ComponentVersion; tells whether it changes what is published."""
        body = after or before
        if body is None:
            return False
        key = body["metadata"]["namespace"], body["spec"]["component"]
        versions = self._phases.setdefault(key, {})
        version, phase = body["spec"]["version"], _phase_if_published(after)
        if versions.get(version) == phase:
            return False
        self._newest.pop(key, None)
        if phase is None:
            del versions[version]
        else:
            versions[version] = phase
        return True

    def newest(self, namespace: str, component: str) -> str | None:
        """Return the newest Published version of a component."""
        key = namespace, component
        if key not in self._newest:
            known = self._phases.get(key, {})
            self._newest[key] = newest(version for version, phase in known.items() if phase == "Published")
        return self._newest[key]

    def published(self, namespace: str) -> Mapping[str, list[str]]:
        """Return for each component of a namespace the versions that other components may count on."""
        return {
            component: [version for version, phase in versions.items() if phase in USABLE]
            for (where, component), versions in self._phases.items()
            if where == namespace
        }


def _phase_if_published(body: Json | None) -> str | None:
    if body is None or body["metadata"].get("deletionTimestamp"):
        return None
    status = body.get("status") or {}
    phase: str | None = status.get("phase")
    return phase if status.get("publishedAt") else None
