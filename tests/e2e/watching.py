"""Waiting by watch, with a deadline, and what is told when it runs out."""

import contextlib
import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import pytest
import yaml

from localcluster import Cluster

Object = dict[str, Any]
T = TypeVar("T")

GROUP_PATH = "/apis/outrider.dev/v1alpha1"
PATIENCE = 90.0
"""Seconds. Far more than anything takes here: a deadline tells what hangs, it does not measure."""

_CAMEL_CASE = re.compile(r"^[A-Z][A-Za-z0-9]*$")
_RAW = ("Traceback", "Exception(", "Error(", "<class", "object at 0x", "-----BEGIN")


def condition(obj: Object, kind: str) -> Object:
    """Return one condition of an object; {} if it has none of that type."""
    found: Object = next((c for c in (obj.get("status") or {}).get("conditions") or [] if c["type"] == kind), {})
    return found


def is_observed(obj: Object) -> bool:
    """Tell whether the status speaks of the present spec."""
    return bool((obj.get("status") or {}).get("observedGeneration") == obj["metadata"]["generation"])


def assert_kstatus_clean(obj: Object) -> None:
    """Check that tools which follow the kstatus rules (Argo CD, Flux, kubectl wait) read the status rightly."""
    status = obj.get("status")
    if not status or "conditions" not in status:
        return
    conditions = status["conditions"]
    kinds = [c["type"] for c in conditions]
    shown = yaml.safe_dump(status)
    assert len(kinds) == len(set(kinds)), f"a condition type twice:\n{shown}"
    for one in conditions:
        assert one["status"] in {"True", "False", "Unknown"}, shown
        assert _CAMEL_CASE.match(one["reason"]), f"{one['reason']!r} is no reason:\n{shown}"
        assert one["message"].strip(), f"{one['type']} has no message:\n{shown}"
        assert not any(raw in one["message"] for raw in _RAW), f"{one['type']} shows something raw:\n{shown}"
        assert one["observedGeneration"] == status["observedGeneration"], shown
        assert one["lastTransitionTime"], shown
    if not kinds:
        return
    assert "Ready" in kinds, f"no Ready condition:\n{shown}"
    # Both are abnormal-true: absent unless they hold, and never both.
    for kind in ("Reconciling", "Stalled"):
        assert condition(obj, kind).get("status") in {None, "True"}, f"{kind} is there and not True:\n{shown}"
    busy, stalled = (bool(condition(obj, kind)) for kind in ("Reconciling", "Stalled"))
    assert not (busy and stalled), f"Reconciling and Stalled at once:\n{shown}"
    if condition(obj, "Ready")["status"] == "True":
        assert not busy, f"Ready and Reconciling at once:\n{shown}"
        assert not stalled, f"Ready and Stalled at once:\n{shown}"


class Api:
    """The API server with the administrator's rights: requests, watches, and waiting by them."""

    def __init__(self, local: Cluster, log_tail: Callable[[], str]) -> None:
        self.client = local.client()
        self._address = urlsplit(local.server_url)
        self._context = ssl.create_default_context(cafile=str(local.ca_file))
        self._context.load_cert_chain(str(local.admin_certificate), str(local.admin_key))
        self._log_tail = log_tail

    @contextlib.contextmanager
    def events(self, path: str, version: str, **query: str) -> Iterator["Events"]:
        """Watch a collection from a resource version on."""
        assert self._address.hostname is not None
        assert self._address.port is not None
        connection = http.client.HTTPSConnection(
            self._address.hostname, self._address.port, context=self._context, timeout=30
        )
        parameters = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"} | query
        try:
            connection.request("GET", f"{path}?{urlencode(parameters)}")
            response = connection.getresponse()
            if response.status != 200:
                pytest.fail(f"watching {path} failed: {response.status} {response.read()!r}")
            assert connection.sock is not None
            yield Events(connection.sock, response)
        finally:
            connection.close()

    def wait(
        self,
        path: str,
        until: Callable[[dict[str, Object]], T | None],
        what: str,
        *,
        seconds: float = PATIENCE,
        each: Callable[[Object], None] = assert_kstatus_clean,
        **query: str,
    ) -> T:
        """Wait until the collection's objects, by name, make `until` return something true; return that.

        `each` is called with every object in every state that the API server tells of.
        """
        deadline = time.monotonic() + seconds
        objects: dict[str, Object] = {}
        while True:
            listed = self.client.get(path, **query)
            objects = {item["metadata"]["name"]: item for item in listed["items"]}
            for item in objects.values():
                each(item)
            if result := until(objects):
                return result
            with self.events(path, listed["metadata"]["resourceVersion"], **query) as events:
                for kind, obj in events.before(deadline):
                    name = obj["metadata"]["name"]
                    if kind == "DELETED":
                        objects.pop(name, None)
                    else:
                        objects[name] = obj
                        each(obj)
                    if result := until(objects):
                        return result
            if time.monotonic() >= deadline:
                self._give_up(what, seconds, objects)

    def wait_for(
        self, path: str, name: str, until: Callable[[Object], bool], what: str, *, seconds: float = PATIENCE
    ) -> Object:
        """Wait until the object of that name satisfies `until`; return it."""

        def found(objects: dict[str, Object]) -> Object | None:
            obj = objects.get(name)
            return obj if obj is not None and until(obj) else None

        return self.wait(path, found, what, seconds=seconds, fieldSelector=f"metadata.name={name}")

    def _give_up(self, what: str, seconds: float, objects: dict[str, Object]) -> None:
        for obj in objects.values():
            obj["metadata"].pop("managedFields", None)
        shown = yaml.safe_dump_all(list(objects.values())[:3], sort_keys=False) or "(no object)"
        if len(shown) > 12_000:
            shown = "…\n" + shown[-12_000:]
        pytest.fail(f"after {seconds:.0f} s not yet: {what}\n{shown}\n--- the operator's log\n{self._log_tail()}")


class Events:
    """A watch under way."""

    def __init__(self, connection: socket.socket, response: http.client.HTTPResponse) -> None:
        self._socket = connection
        self._response = response

    def before(self, deadline: float) -> Iterator[tuple[str, Object]]:
        """Yield (type, object) until the deadline (monotonic), or until the server ends the watch."""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._socket.settimeout(left)
            try:
                line = self._response.readline()
            except TimeoutError:
                return
            if not line:
                return
            event = json.loads(line)
            if event["type"] == "ERROR":
                return
            if event["type"] != "BOOKMARK":
                yield event["type"], event["object"]

    def stop(self) -> None:
        """End the watch from another thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class Recorder:
    """Keeps what happens to every object of a collection, from a thread of its own, without a gap."""

    def __init__(self, api: Api, path: str, note: Callable[[str, Object], None], **query: str) -> None:
        self._api, self._path, self._note, self._query = api, path, note, query
        self._stopping = threading.Event()
        self._events: Events | None = None
        self.problem = ""
        listed = api.client.get(path, **query)
        for item in listed["items"]:
            note("ADDED", item)
        self._thread = threading.Thread(
            target=self._run, args=(listed["metadata"]["resourceVersion"],), name=f"recorder of {path}", daemon=True
        )
        self._thread.start()

    def _run(self, version: str) -> None:
        while not self._stopping.is_set():
            try:
                with self._api.events(self._path, version, **self._query) as events:
                    self._events = events
                    if self._stopping.is_set():
                        return
                    for kind, obj in events.before(time.monotonic() + 3600):
                        version = obj["metadata"]["resourceVersion"]
                        self._note(kind, obj)
            except (OSError, ValueError, http.client.HTTPException) as error:
                if not self._stopping.is_set():
                    self.problem = f"watching {self._path} broke: {error}"
                return

    def stop(self) -> None:
        """Stop recording; all that happened before has been noted, give or take what is on the wire."""
        self._stopping.set()
        if self._events is not None:
            self._events.stop()
        self._thread.join(10)
        assert not self.problem, self.problem
