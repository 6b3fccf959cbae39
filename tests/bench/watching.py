"""Pods and nodes as they change: watched, never polled, so that what is timed is the cluster and not the bench."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlencode, urlsplit

from localcluster import Cluster

Json = dict[str, Any]

_METADATA_ONLY = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
_WATCH_SECONDS = 7200


class BrokenWatch(Exception):
    """The watch ended, or what was waited for did not come."""


class Watch:
    """A watch in a thread of its own; `take` sees each event, with the time at which it came."""

    def __init__(self, cluster: Cluster, path: str, take: Callable[[str, Json, float], None], accept: str) -> None:
        address = urlsplit(cluster.server_url)
        context = ssl.create_default_context(cafile=str(cluster.ca_file))
        context.load_cert_chain(str(cluster.admin_certificate), str(cluster.admin_key))
        self._connection = http.client.HTTPSConnection(address.hostname or "", address.port, context=context)
        self._path, self._accept, self._take = path, accept, take
        self._version = cluster.client().get(path, limit="1")["metadata"]["resourceVersion"]
        self._stopped = threading.Event()
        self.broken = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()
        if self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        # The API server ends a watch that does not keep up with a burst; it goes on from where it was.
        while not self._stopped.is_set():
            try:
                self._read()
            except (OSError, http.client.HTTPException, ValueError, BrokenWatch) as error:
                self.broken = "" if self._stopped.is_set() else repr(error)
                return

    def _read(self) -> None:
        query = {"watch": "true", "resourceVersion": self._version, "timeoutSeconds": str(_WATCH_SECONDS)}
        self._connection.close()
        self._connection.request("GET", f"{self._path}?{urlencode(query)}", headers={"Accept": self._accept})
        response = self._connection.getresponse()
        while line := response.readline():
            came = time.monotonic()
            event = json.loads(line)
            if event["type"] == "ERROR":
                raise BrokenWatch(event["object"].get("message", ""))
            self._version = event["object"]["metadata"]["resourceVersion"]
            self._take(event["type"], event["object"], came)


class FleetWatch:
    """The agents' pods of a namespace and, asked for, an assignment label of the nodes.

    Times are of this process's monotonic clock. `ready[node]` is the version that is Ready on a node and since when;
    `events[node]` what happened there: (time, what, version or label).
    """

    def __init__(self, cluster: Cluster, namespace: str, version_label: str, node_label: str | None = None) -> None:
        self._changed = threading.Condition()
        self._version_label = version_label
        self._node_label = node_label
        self._pods: dict[str, tuple[str, str, bool]] = {}
        self._labels: dict[str, str] = {}
        self.ready: dict[str, tuple[str, float]] = {}
        self.events: dict[str, list[tuple[float, str, str]]] = {}
        pods = f"/api/v1/namespaces/{namespace}/pods"
        self._watches = [Watch(cluster, pods, self._take_pod, "application/json")]
        if node_label is not None:
            self._watches.append(Watch(cluster, "/api/v1/nodes", self._take_node, _METADATA_ONLY))

    def __enter__(self) -> FleetWatch:
        return self

    def __exit__(self, *_: object) -> None:
        for watch in self._watches:
            watch.stop()

    def await_ready(self, nodes: Iterable[str], version: str, seconds: float = 600) -> float:
        """Wait until a version is Ready on all nodes; return when the last became so."""
        wanted = set(nodes)
        what = f"{version} on {len(wanted)} nodes"
        last = 0.0

        def all_ready() -> bool:
            nonlocal last
            for node in list(wanted):
                found, since = self.ready.get(node, ("", 0.0))
                if found == version:
                    wanted.discard(node)
                    last = max(last, since)
            return not wanted

        self._await(all_ready, seconds, what)
        return last

    def await_empty(self, seconds: float = 300) -> None:
        """Wait until there is no pod left."""
        self._await(lambda: not self._pods, seconds, "the end of all pods")

    def pods_on(self, nodes: Iterable[str]) -> list[str]:
        """Return the names of the pods on some nodes."""
        wanted = set(nodes)
        with self._changed:
            return [name for name, (node, _, _) in self._pods.items() if node in wanted]

    def _await(self, reached: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        with self._changed:
            while not reached():
                for watch in self._watches:
                    if watch.broken:
                        raise BrokenWatch(f"a watch ended: {watch.broken}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise BrokenWatch(f"waited {seconds:.0f} s in vain for {what}")
                self._changed.wait(min(left, 5.0))

    def _take_pod(self, kind: str, pod: Json, came: float) -> None:
        name, node = pod["metadata"]["name"], _node_of(pod)
        version = pod["metadata"].get("labels", {}).get(self._version_label, "")
        with self._changed:
            known = self._pods.get(name)
            if kind == "DELETED":
                self._pods.pop(name, None)
                self._note(node, came, "gone", version)
            else:
                ready = _is_ready(pod)
                self._pods[name] = (node, version, ready)
                if known is None:
                    self._note(node, came, "created", version)
                if ready and not (known and known[2]):
                    self.ready[node] = (version, came)
                    self._note(node, came, "ready", version)
                elif known and known[2] and not ready:
                    self.ready.pop(node, None)
            self._changed.notify_all()

    def _take_node(self, _kind: str, node: Json, came: float) -> None:
        name = node["metadata"]["name"]
        label = node["metadata"].get("labels", {}).get(self._node_label, "")
        with self._changed:
            if self._labels.get(name, "") != label:
                self._labels[name] = label
                self._note(name, came, "label", label)

    def _note(self, node: str, came: float, what: str, detail: str) -> None:
        self.events.setdefault(node, []).append((came, what, detail))


def _is_ready(pod: Json) -> bool:
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = pod.get("status", {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _node_of(pod: Json) -> str:
    """Return the node that a DaemonSet's pod runs on, or was made for."""
    spec = pod["spec"]
    if spec.get("nodeName"):
        return str(spec["nodeName"])
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return str(required["nodeSelectorTerms"][0]["matchFields"][0]["values"][0])
