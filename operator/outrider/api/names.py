"""Every name that Outrider gives to something in a cluster or a registry, and how derived names are made."""

import hashlib
from typing import Final

GROUP: Final = "outrider.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
CATEGORY: Final = "outrider"

COMPONENT_VERSIONS: Final = "componentversions"
ROLLOUTS: Final = "rollouts"
ROLLOUT_BATCHES: Final = "rolloutbatches"

# Labels and annotations on objects that Outrider makes.
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "outrider"
LABEL_ROLLOUT: Final = f"{GROUP}/rollout"
LABEL_COMPONENT: Final = f"{GROUP}/component"
LABEL_REVISION: Final = f"{GROUP}/revision"
LABEL_VERSION: Final = f"{GROUP}/version"
LABEL_ROLE: Final = f"{GROUP}/role"
"""On DaemonSets of ours and their pods: which of the kinds, `revision`, `joiners` or `prepare`."""
ROLE_REVISION: Final = "revision"
ROLE_JOINERS: Final = "joiners"
ROLE_PREPARE: Final = "prepare"
"""No agent: its pods fetch files and images before the agents of their nodes are stopped."""
LABEL_GROUP: Final = f"{GROUP}/group"
"""On such a DaemonSet and its pods: which nodes it was made for, as a hash."""
ANNOTATION_PREPARES: Final = f"{GROUP}/prepares"
"""On such a DaemonSet: the nodes that it was made for, by their hostnames, separated by commas."""
LABEL_RUN: Final = f"{GROUP}/run"
LABEL_BATCH: Final = f"{GROUP}/batch"
ANNOTATION_FETCH_IMAGE: Final = f"{GROUP}/fetch-image"
ANNOTATION_TARGET: Final = f"{GROUP}/target"
"""On the joiners' DaemonSet: the hash of the target that it was made for."""
ANNOTATION_PLATFORMS: Final = f"{GROUP}/platforms"
"""On a revision's DaemonSet: the platforms that its version has artifacts for, separated by commas."""

ANNOTATION_RECONCILE: Final = f"{GROUP}/reconcile-requested-at"
"""A nonce: when it changes, what failed is tried again at once."""

ANNOTATION_ROLLBACK: Final = f"{GROUP}/rollback-requested"
"""On a Rollout: {"id": "<nonce>", "run": 7, "batches": [2], "version": "1.3.0"}; see `request_annotations`."""

ANNOTATION_RETEST: Final = f"{GROUP}/retest-requested-at"
"""A nonce on a ComponentVersion: when it changes, a version that is not published is tested again."""
ANNOTATION_VERDICT: Final = f"{GROUP}/test-verdict"
"""On a ComponentVersion: `pass:<content>` or `fail:<content>`, a person's verdict on the content with that hash."""
ANNOTATION_TEST: Final = f"{GROUP}/test-content"
"""On a test's Job: the hash of the content that it tests."""
LABEL_COMPONENT_VERSION: Final = f"{GROUP}/component-version"
"""On a test's Job and its pods: the UID of the ComponentVersion."""

LABEL_ANALYSIS: Final = f"{GROUP}/analysis"
"""On an analysis' Job: the name of the analysis."""
ANNOTATION_BATCH: Final = f"{GROUP}/about-batch"
"""On an analysis' Job: the RolloutBatch that it is about."""

# On a DaemonSet that is taken over.
ANNOTATION_ADOPTED_BY: Final = f"{GROUP}/adopted-by"
"""The name of the Rollout that took it over."""
ANNOTATION_ORIGINAL: Final = f"{GROUP}/adopted-original"
"""What was changed at the take-over, as it was before, in JSON: it outlives the Rollout."""

# On nodes.
ASSIGNMENT_PREFIX: Final = f"agents.{GROUP}/"
ASSIGNMENT_NONE: Final = "none"
ASSIGNMENT_LEAVING: Final = "to-"
ASSIGNMENT_LEGACY: Final = "legacy"
"""The node runs the pod of the DaemonSet that was taken over. It acts as a revision: nodes come from it and return."""
LABEL_OS: Final = "kubernetes.io/os"
LABEL_ARCH: Final = "kubernetes.io/arch"
LABEL_HOSTNAME: Final = "kubernetes.io/hostname"
LABEL_EXCLUDE: Final = f"{GROUP}/exclude"

LABEL_POD_SECURITY: Final = "pod-security.kubernetes.io/enforce"
"""On namespaces: the Pod Security level that their pods are held to."""

# Trust.
LABEL_TRUST_KEY: Final = f"{GROUP}/trust-key"
ANNOTATION_KEY_COMPONENTS: Final = f"{GROUP}/components"
ANNOTATION_KEY_NAMESPACES: Final = f"{GROUP}/namespaces"
ANNOTATION_KEY_NOT_BEFORE: Final = f"{GROUP}/not-before"
ANNOTATION_KEY_NOT_AFTER: Final = f"{GROUP}/not-after"
"""On trust Secrets: when their keys may vouch for something new (RFC 3339); what was published before stays."""
STATEMENT_TYPE: Final = f"https://{GROUP}/statement/v1"
"""The in-toto predicate type of the statement that binds a file to component, version and platform."""

FINALIZER: Final = f"{GROUP}/finish-moves"
FINALIZER_VERSION: Final = f"{GROUP}/stored-artifacts"
"""On a ComponentVersion: what it has stored in the registry is deleted before it goes."""

# Field managers are stable: GitOps tools ignore fields by them.
FIELD_MANAGER: Final = "outrider"
FIELD_MANAGER_STATUS: Final = "outrider-status"

# In the registry.
ARTIFACT_TYPE: Final = "application/vnd.outrider.component.v1"
LAYER_TYPE: Final = "application/octet-stream"
EVIDENCE_TYPE: Final = "application/vnd.outrider.evidence.v1+json"
"""What lies beside an artifact as an OCI referrer: a signature, and what leads from it to the file."""

# What is added to agents' pods. FETCH pulls and verifies, INSTALL and HOST are for Daemons: before, and beside.
FETCH_CONTAINER: Final = "outrider-fetch"
INSTALL_CONTAINER: Final = "outrider-install"
HOST_CONTAINER: Final = "outrider-host"
VOLUME_ARTIFACT: Final = "outrider-artifact"
VOLUME_KEYS: Final = "outrider-keys"
VOLUME_CACHE: Final = "outrider-cache"
"""A folder on the node's disk."""
VOLUME_REGISTRY: Final = "outrider-registry"
"""The Secret that pods log in to the registry with."""
VOLUME_HOST: Final = "outrider-host"
"""The folder of the node that Daemons are installed below."""

MAX_LABEL: Final = 63


def assignment_key(namespace: str, component: str) -> str:
    """Return the node label key that says which revision of a component a node runs.

    It is `agents.outrider.dev/` + the first 52 characters of `<namespace>.<component>` without trailing `-._` + `-` +
    10 hex digits of sha256(`namespace/component`): always a valid label key, at most 63 characters behind the slash,
    and one per component and namespace.
    """
    readable = f"{namespace}.{component}"[:52].rstrip("-._")
    digest = hashlib.sha256(f"{namespace}/{component}".encode()).hexdigest()[:10]
    return f"{ASSIGNMENT_PREFIX}{readable}-{digest}"


def request_annotations(kind: str) -> tuple[str, str]:
    """Return the annotations of a kind of request on a Rollout: the request, and who asks for it."""
    asked = ANNOTATION_ROLLBACK if kind == "rollback" else f"{GROUP}/{kind}-requested-at"
    return asked, f"{GROUP}/{kind}-requested-by"


def trusted_keys_name(component: str) -> str:
    """Return the name of the ConfigMap of public keys that the nodes of a component's fleet verify with."""
    return f"outrider-keys.{component}"


def batch_name(rollout: str, run: int, batch: int, page: int) -> str:
    """Return the name of the RolloutBatch for one page (1-based) of a batch (1-based) of a run (1-based)."""
    base = f"{rollout}-{run}-{batch}"
    return base if page == 1 else f"{base}.{page}"
