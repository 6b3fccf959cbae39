"""Asks agents on real nodes themselves, all the time, and remembers what each of them said."""

import http.client
import threading
import time
from collections.abc import Mapping

PORT = 8080
SILENT = "(nobody answers)"
_SECONDS = 0.05


def ask(address: str, port: int = PORT, seconds: float = 1.0) -> str:
    """Return what the agent at an address says of itself, or that nobody answers."""
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    try:
        connection.request("GET", "/version")
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException):
        return SILENT
    finally:
        connection.close()
    return said if answer.status == 200 else f"{answer.status} {said}"


class Voices:
    """One thread that asks all of them in turn; what a node says is noted whenever it is something else."""

    def __init__(self, addresses: Mapping[str, str], port: int = PORT) -> None:
        self.said: dict[str, list[str]] = {name: [] for name in addresses}
        self.most_silent = 0
        """How many were silent at the same time, at most, once each had spoken."""
        self._addresses = dict(addresses)
        self._port = port
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="voices", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(_SECONDS):
            now = {name: ask(address, self._port) for name, address in self._addresses.items()}
            with self._changed:
                for name, said in now.items():
                    if self.said[name][-1:] != [said]:
                        self.said[name].append(said)
                if all(any(said != SILENT for said in seen) for seen in self.said.values()):
                    silent = [name for name, said in now.items() if said == SILENT]
                    self.most_silent = max(self.most_silent, len(silent))
                self._changed.notify_all()

    def wait_until(self, name: str, words: str, seconds: float = 60) -> None:
        """Wait until an agent says something with these words in it."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not (self.said[name] and words in self.said[name][-1]):
                left = deadline - time.monotonic()
                assert left > 0, f"{name} does not say {words!r} within {seconds:.0f} s; it said {self.said[name]}"
                self._changed.wait(left)

    def wait_until_silent(self, name: str, seconds: float = 60) -> None:
        """Wait until an agent does not answer."""
        self.wait_until(name, SILENT, seconds)

    def words(self, name: str) -> list[str]:
        """Return what an agent has said so far, in order, without its silences."""
        with self._changed:
            spoken = [said for said in self.said[name] if said != SILENT]
        return [said for index, said in enumerate(spoken) if index == 0 or said != spoken[index - 1]]

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()
        self._thread.join(10)
