"""A small client of the API server on the standard library: the launcher needs no other."""

from __future__ import annotations

import http.client
import json
import ssl
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from localcluster.pki import KeyPair

_BUSY_SECONDS = 15.0
"""So long a server that is too busy, or has just learnt of a kind, is asked again."""
_BUSY_PAUSE_SECONDS = 0.5

Object = dict[str, Any]
T = TypeVar("T")


class ApiError(Exception):
    """The API server answered with an error."""

    def __init__(self, method: str, path: str, status: int, body: str) -> None:
        try:
            message = json.loads(body).get("message", body)
        except (ValueError, AttributeError):
            message = body
        super().__init__(f"{method} {path}: {status} {message}"[:600])
        self.status = status


class ApiClient:
    """Talks to one API server with a client certificate; safe to share between threads."""

    def __init__(self, server: str, ca_file: Path, credentials: KeyPair) -> None:
        address = urlsplit(server)
        self._host = address.hostname or ""
        self._port = address.port or 443
        self._context = ssl.create_default_context(cafile=str(ca_file))
        self._context.load_cert_chain(str(credentials.certificate), str(credentials.key))
        # Each thread takes one and gives it back; appending and popping are atomic.
        self._idle: list[http.client.HTTPSConnection] = []
        weakref.finalize(self, _close_all, self._idle)

    def raw(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = "application/json",
        user: str | None = None,
    ) -> str:
        """Make one request, as another user if one is named, and return the body; raise `ApiError` on 4xx and 5xx.

        A server that says to come later (429: nothing was done) is asked again, as by every client of Kubernetes.
        """
        payload = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": content_type} if payload is not None else {}
        if user is not None:
            headers["Impersonate-User"] = user
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                status, text = self._exchange(method, path, payload, headers)
            except (http.client.HTTPException, ConnectionError, ssl.SSLError):
                # A kept-alive connection that the server closed meanwhile shows only on use.
                _close_all(self._idle)
                self._idle.clear()
                status, text = self._exchange(method, path, payload, headers)
            if status != http.HTTPStatus.TOO_MANY_REQUESTS or time.monotonic() > deadline:
                break
            time.sleep(_BUSY_PAUSE_SECONDS)
        if status >= 400:
            raise ApiError(method, path, status, text)
        return text

    def _exchange(self, method: str, path: str, payload: bytes | None, headers: dict[str, str]) -> tuple[int, str]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = http.client.HTTPSConnection(self._host, self._port, context=self._context, timeout=60)
        try:
            connection.request(method, path, payload, headers)
            response = connection.getresponse()
            status, text = response.status, response.read().decode(errors="replace")
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return status, text

    def get(self, path: str, **query: str) -> Object:
        """GET an object or a list."""
        answer: Object = json.loads(self.raw("GET", _with_query(path, query)))
        return answer

    def items(self, path: str, **query: str) -> list[Object]:
        """The items of a list, all pages."""
        found: list[Object] = []
        parameters = {"limit": "500"} | query
        while True:
            page = self.get(path, **parameters)
            found += page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return found
            parameters["continue"] = token

    def create(self, path: str, body: Object) -> Object:
        """POST an object."""
        answer: Object = json.loads(self.raw("POST", path, body))
        return answer

    def create_if_absent(self, path: str, body: Object) -> None:
        """POST an object; one of that name may be there already."""
        try:
            self.create(path, body)
        except ApiError as error:
            if error.status != 409:
                raise

    def apply(self, path: str, body: Object) -> None:
        """Server-side apply, as the owner of every field named."""
        query = {"fieldManager": "localcluster", "force": "true"}
        self.raw("PATCH", _with_query(path, query), body, "application/apply-patch+yaml")

    def merge(self, path: str, body: Object) -> None:
        """JSON merge patch."""
        self.raw("PATCH", path, body, "application/merge-patch+json")

    def strategic(self, path: str, body: Object) -> None:
        """Strategic merge patch: lists such as conditions are merged by their keys."""
        self.raw("PATCH", path, body, "application/strategic-merge-patch+json")

    def delete(self, path: str, **query: str) -> None:
        """DELETE an object; it may be gone already."""
        try:
            self.raw("DELETE", _with_query(path, query))
        except ApiError as error:
            if error.status != 404:
                raise


def _close_all(connections: list[http.client.HTTPSConnection]) -> None:
    for connection in connections:
        connection.close()


def _with_query(path: str, query: dict[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def in_parallel(action: Callable[[T], object], items: Iterable[T], threads: int = 8) -> None:
    """Call ``action`` for each item on a few threads; the first error is raised."""
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for _ in pool.map(action, items):
            pass
