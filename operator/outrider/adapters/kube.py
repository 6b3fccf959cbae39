"""The cluster's API over one aiohttp session: what Outrider needs of it, and no more.

The session is shared with kopf, so that there is one connection limit, one TLS context and one way to authenticate.
Objects are plain dictionaries: whoever reads them projects what it needs. Every error is ours: 404 is None, a lost
race is `Conflict`, what the API server calls invalid is `Stalling(Invalid)`, everything else is `Transient`.
"""

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from outrider.api.errors import OutriderError, Stalling, Transient
from outrider.api.names import FIELD_MANAGER, GROUP, VERSION
from outrider.core.words import printable

Json = dict[str, Any]

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=5)
_LIST_CHUNK = 500
_SILENT_SECONDS = 90.0
"""A watch that says nothing for so long is broken: the API server sends a bookmark every minute."""
_SEGMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
"""What may be a name in a URL: everything that the API server takes for the kinds below, and no path."""
_TOO_MANY = 429
_SERVER_ERROR = 500


class Conflict(OutriderError):
    """Somebody else was faster: the object is not as it was seen, or exists already. Look again."""


class Gone(OutriderError):
    """The watch cannot go on from this resourceVersion: list again."""


@dataclass(frozen=True)
class Resource:
    """A kind of object in the API: where its collection is."""

    group: str
    version: str
    plural: str
    kind: str

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the URL path of the collection, an object or a subresource. Raises Stalling(NameInvalid).

        Names come out of specs, too, and whoever builds the URL resolves `..` in them: a name that is a path would lead
        to another namespace, with the operator's rights.
        """
        for given in (namespace, name):
            if given and (_SEGMENT.fullmatch(given) is None or ".." in given):
                raise Stalling("NameInvalid", f"{given[:64]!r} cannot be the name of a {self.kind}; correct it")
        parts = ["/api" if not self.group else f"/apis/{self.group}", self.version]
        if namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)

    @property
    def api_version(self) -> str:
        """Return the object's `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version


NODES = Resource("", "v1", "nodes", "Node")
PODS = Resource("", "v1", "pods", "Pod")
SECRETS = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
EVENTS = Resource("", "v1", "events", "Event")
DAEMON_SETS = Resource("apps", "v1", "daemonsets", "DaemonSet")
JOBS = Resource("batch", "v1", "jobs", "Job")
SELF_SUBJECT_REVIEWS = Resource("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
COMPONENT_VERSIONS = Resource(GROUP, VERSION, "componentversions", "ComponentVersion")
ROLLOUTS = Resource(GROUP, VERSION, "rollouts", "Rollout")
ROLLOUT_BATCHES = Resource(GROUP, VERSION, "rolloutbatches", "RolloutBatch")


def with_finalizer(body: Json, finalizer: str) -> list[Json]:
    """Return the JSON patch that adds a finalizer to an object, if it is still as it was seen."""
    add: Json = (
        {"op": "add", "path": "/metadata/finalizers/-", "value": finalizer}
        if body["metadata"].get("finalizers")
        else {"op": "add", "path": "/metadata/finalizers", "value": [finalizer]}
    )
    return [_as_it_was_seen(body), add]


def without_finalizer(body: Json, finalizer: str) -> list[Json]:
    """Return the JSON patch that takes a finalizer from an object that has it, if it is still as it was seen."""
    index = (body["metadata"].get("finalizers") or []).index(finalizer)
    return [_as_it_was_seen(body), {"op": "remove", "path": f"/metadata/finalizers/{index}"}]


def _as_it_was_seen(body: Json) -> Json:
    return {"op": "test", "path": "/metadata/resourceVersion", "value": body["metadata"]["resourceVersion"]}


class Access:
    """How to reach the API server: its URL, and an aiohttp session that authenticates by itself."""

    def __init__(self, server: str, session: aiohttp.ClientSession, namespace: str | None) -> None:
        self.server = server.rstrip("/")
        self.session = session
        self.namespace = namespace

    async def close(self) -> None:
        """Close all connections."""
        await self.session.close()


class _TokenFile:
    """A file with a token: looked at for each request, and read when it is another or has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[int, int, int] | None = None
        self._token = ""

    def read(self) -> str:
        """Return the token. Raises OSError."""
        found = self._path.stat()
        known = found.st_ino, found.st_mtime_ns, found.st_size
        if known != self._known:
            self._token, self._known = self._path.read_text().strip(), known
        return self._token


def open_access(*, in_cluster: bool, kubeconfig: str | None = None, context: str | None = None) -> Access:
    """Return access by the pod's ServiceAccount, or by a kubeconfig.

    The ServiceAccount's token is read again whenever its file has changed, as kubelets rotate it. Raises
    Stalling(ClusterAccess) when there is neither.
    """
    tls = ssl.create_default_context()
    token_file: _TokenFile | None = None
    token: str | None = None
    namespace: str | None = None
    if in_cluster:
        import os

        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (_SERVICE_ACCOUNT / "token").exists():
            raise Stalling("ClusterAccess", "this is no pod with a ServiceAccount; give a kubeconfig instead")
        token_file = _TokenFile(_SERVICE_ACCOUNT / "token")
        server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        tls.load_verify_locations(cafile=str(_SERVICE_ACCOUNT / "ca.crt"))
        namespace = (_SERVICE_ACCOUNT / "namespace").read_text().strip()
    else:
        # Imported here: it is slow and large, and pods never need it.
        from kubernetes import client, config

        configuration = client.Configuration()
        try:
            config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration)
        except Exception as error:
            raise Stalling("ClusterAccess", f"the kubeconfig cannot be used: {error}") from error
        server = configuration.host
        namespace = _namespace_of(config, kubeconfig, context)
        if configuration.ssl_ca_cert:
            tls.load_verify_locations(cafile=configuration.ssl_ca_cert)
        if not configuration.verify_ssl:
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        if configuration.cert_file:
            tls.load_cert_chain(configuration.cert_file, configuration.key_file)
        # The client has called this key both ways in its releases.
        authorization = next(
            (configuration.api_key[k] for k in ("BearerToken", "authorization") if k in configuration.api_key), ""
        )
        token = authorization.removeprefix("Bearer ") or None

    async def authorize(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        bearer = token_file.read() if token_file is not None else token
        if bearer:
            request.headers["Authorization"] = f"Bearer {bearer}"
        return await handler(request)

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=80, ssl=tls),
        middlewares=(authorize,),
        headers={"User-Agent": "outrider"},
        timeout=_TIMEOUT,
    )
    return Access(server, session, namespace)


def _namespace_of(config: Any, kubeconfig: str | None, context: str | None) -> str | None:
    """Return the namespace that a kubeconfig's context names, if it does."""
    contexts, active = config.list_kube_config_contexts(kubeconfig)
    chosen = next((each for each in contexts if each["name"] == context), active) if context else active
    namespace = chosen["context"].get("namespace")
    return str(namespace) if namespace else None


class Cluster:
    """The API calls that Outrider makes."""

    def __init__(self, access: Access, *, concurrency: int = 32) -> None:
        self._access = access
        # Bounds what one burst of moves asks of the API server at a time.
        self._slots = asyncio.Semaphore(concurrency)

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json | None:
        """Return an object, or None if there is none."""
        try:
            return await self._request("GET", resource.path(namespace, name))
        except _NotFoundError:
            return None

    async def list_chunks(
        self, resource: Resource, namespace: str | None = None, **selectors: str
    ) -> AsyncIterator[tuple[list[Json], str]]:
        """Yield all objects of a kind in chunks, each with the list's resourceVersion."""
        token = ""
        while True:
            query = {"limit": str(_LIST_CHUNK), **selectors}
            if token:
                query["continue"] = token
            page = await self._request("GET", resource.path(namespace), query=query)
            yield page.get("items") or [], page["metadata"]["resourceVersion"]
            token = page["metadata"].get("continue") or ""
            if not token:
                return

    async def watch(
        self,
        resource: Resource,
        resource_version: str,
        namespace: str | None = None,
        *,
        seconds: int,
        **selectors: str,
    ) -> AsyncIterator[tuple[str, Json]]:
        """Yield (type, object) until the server ends the watch; raises Gone when the version is too old."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
            **selectors,
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=_SILENT_SECONDS)
        try:
            async with self._access.session.get(
                self._access.server + resource.path(namespace), params=query, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise _error("WATCH", resource.path(), response.status, await response.text(), response.headers)
                async for line in _lines(response):
                    kind, obj = _parse_event(resource, line)
                    if kind == "ERROR":
                        raise _error("WATCH", resource.path(), obj.get("code", 500), json.dumps(obj), {})
                    yield kind, obj
        except (TimeoutError, aiohttp.ClientError) as error:
            raise Transient("ApiUnavailable", f"the watch of {resource.plural} broke: {_describe(error)}") from error

    async def read_log(self, namespace: str, pod: str, container: str, *, lines: int, limit: int) -> str:
        """Return the last lines of a container's log, at most `limit` bytes; nothing if it cannot be had."""
        query = {"container": container, "tailLines": str(lines), "limitBytes": str(limit)}
        url = self._access.server + PODS.path(namespace, pod, "log")
        async with self._slots:
            try:
                async with self._access.session.get(
                    url, params=query, timeout=_TIMEOUT, allow_redirects=False
                ) as response:
                    content = await response.content.read(limit) if response.status == 200 else b""
            except (TimeoutError, aiohttp.ClientError):
                return ""
        return content.decode(errors="replace")

    async def create(self, resource: Resource, body: Json, namespace: str | None = None) -> Json:
        """Create an object; raises Conflict if one of that name exists."""
        return await self._request("POST", resource.path(namespace), body=body, query={"fieldManager": FIELD_MANAGER})

    async def apply(
        self, resource: Resource, body: Json, *, manager: str = FIELD_MANAGER, subresource: str | None = None
    ) -> Json:
        """Apply an object server-side: exactly the fields in `body` are ours from now on."""
        metadata = body["metadata"]
        return await self._request(
            "PATCH",
            resource.path(metadata.get("namespace"), metadata["name"], subresource),
            body={"apiVersion": resource.api_version, "kind": resource.kind, **body},
            query={"fieldManager": manager, "force": "true"},
            content_type="application/apply-patch+yaml",
        )

    async def patch_json(
        self, resource: Resource, namespace: str | None, name: str, operations: list[Json]
    ) -> Json | None:
        """Apply a JSON patch; None if the object is gone, Conflict if one of its tests does not hold."""
        try:
            return await self._request(
                "PATCH",
                resource.path(namespace, name),
                body=operations,
                query={"fieldManager": FIELD_MANAGER},
                content_type="application/json-patch+json",
            )
        except _NotFoundError:
            return None
        except Stalling as error:
            # The API server answers 422 both to an invalid result, which it describes, and to a failed test, of which
            # it says no more than this.
            if "due to an error in our request" in error.message:
                raise Conflict("NotAsSeen", f"{resource.kind} {name} is not as it was seen") from error
            raise

    async def merge(self, resource: Resource, namespace: str | None, name: str, patch: Json, *, manager: str) -> Json:
        """Set the fields of an object that `patch` names, whoever set them before."""
        return await self._request(
            "PATCH",
            resource.path(namespace, name),
            body=patch,
            query={"fieldManager": manager},
            content_type="application/merge-patch+json",
        )

    async def replace(self, resource: Resource, namespace: str | None, name: str, body: Json) -> Json:
        """Replace an object; its resourceVersion must be the one in `body`, else Conflict."""
        return await self._request("PUT", resource.path(namespace, name), body=body)

    async def try_out(self, resource: Resource, namespace: str | None, body: Json) -> Json:
        """Return an object as the API server would store it, with its defaults; nothing is stored.

        With a resourceVersion it would replace the object of that name, without one be a new one.
        """
        metadata = body["metadata"]
        is_new = not metadata.get("resourceVersion")
        return await self._request(
            "POST" if is_new else "PUT",
            resource.path(namespace, None if is_new else metadata["name"]),
            body=body,
            query={"dryRun": "All"},
        )

    async def delete(self, resource: Resource, namespace: str | None, name: str, *, uid: str | None = None) -> None:
        """Delete an object in the background; that it is gone already is fine."""
        body: Json = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self._request("DELETE", resource.path(namespace, name), body=body)
        except _NotFoundError:
            return

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type} if data is not None else {}
        async with self._slots:
            try:
                async with self._access.session.request(
                    method,
                    self._access.server + path,
                    params=query,
                    data=data,
                    headers=headers,
                    timeout=_TIMEOUT,
                    # The API server never redirects, and our token is for nobody else.
                    allow_redirects=False,
                ) as response:
                    if response.status < 300:
                        return _parse_object(method, path, await response.read())
                    raise _error(method, path, response.status, await response.text(), response.headers)
            except (TimeoutError, aiohttp.ClientError) as error:
                raise Transient(
                    "ApiUnavailable", f"the API server does not answer to {method} {path}: {_describe(error)}"
                ) from error


class _NotFoundError(OutriderError):
    """404; becomes None where an object was asked for."""


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _error(method: str, path: str, status: int, text: str, headers: Mapping[str, str]) -> OutriderError:
    """Map an answer of the API server to one of our errors."""
    try:
        details = json.loads(text)
        message, reason = str(details.get("message", "")), str(details.get("reason", ""))
    except ValueError:
        message, reason = text[:200], ""
    what = printable(f"{method} {path}: {message}")
    match status:
        case 404:
            return _NotFoundError("NotFound", what)
        case 410:
            return Gone("Gone", what)
        case 409:
            return Conflict(reason or "Conflict", what)
        case 400 | 413 | 415 | 422:
            return Stalling("Invalid", what)
        case 401 | 403:
            return Transient(
                "Forbidden", f"the API server refuses {what}. Is the operator's ClusterRole the one of this release?"
            )
        case _:
            pass
    after = headers.get("Retry-After", "")
    retry_after = float(after) if after.isdigit() else None
    busy = status == _TOO_MANY or status >= _SERVER_ERROR
    return Transient("ApiBusy" if busy else "ApiError", f"{what} (HTTP {status})", retry_after=retry_after)


def _parse_object(method: str, path: str, content: bytes) -> Json:
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise _not_the_api_server(f"{method} {path}", content)
    return answer


def _parse_event(resource: Resource, line: bytes) -> tuple[str, Json]:
    try:
        event = json.loads(line)
        kind, obj = event["type"], event["object"]
    except (ValueError, TypeError, KeyError):
        kind, obj = None, None
    if not isinstance(kind, str) or not isinstance(obj, dict):
        raise _not_the_api_server(f"WATCH {resource.path()}", line)
    return kind, obj


def _not_the_api_server(what: str, content: bytes) -> Transient:
    """Return the error for an answer in no form that Kubernetes knows: a proxy's page, say."""
    start = content[:80].decode(errors="replace")
    return Transient("ApiError", f"{what} was answered with {start!r}: is it the API server that answers there?")


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the lines of a stream; unlike aiohttp's own reader without a limit on their length."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line
