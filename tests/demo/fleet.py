"""Looks at the fleet while it is moved, and tells one line per change."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from demo.outcome import NotAsTold
from demo.terminal import Terminal
from demo.workshop import fetch_text
from localcluster.apiclient import ApiClient, ApiError

Object = dict[str, Any]
NAMESPACE = "fleet"
AGENT, DAEMON = "node-agent", "node-daemon"
"""Components, and the Rollouts of the same names."""
_API = f"/apis/outrider.dev/v1alpha1/namespaces/{NAMESPACE}"
_POLL_SECONDS = 0.25
_BAR = 30


class Fleet:
    """What the API server says about one of the demo's Rollouts, its records and its agents."""

    def __init__(self, client: ApiClient, terminal: Terminal, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._client = client
        self._terminal = terminal
        self.fewest_ready = 0
        self.excused: set[str] = set()
        self.listening_to: list[str] = []
        """The nodes whose agents are asked for their version while the fleet is followed."""
        self._teller = _Teller(terminal)

    # --- looks ------------------------------------------------------------------------------

    def version(self, version: str) -> Object:
        """Return a ComponentVersion."""
        return self._client.get(f"{_API}/componentversions/{self.name}-{version}")

    def rollout(self) -> Object:
        """Return the Rollout."""
        return self._client.get(f"{_API}/rollouts/{self.name}")

    def batches(self) -> list[Object]:
        """Return the records, oldest first."""
        found = self._client.items(f"{_API}/rolloutbatches", labelSelector=f"outrider.dev/rollout={self.name}")
        return sorted(found, key=lambda item: (item["spec"]["run"], item["spec"]["batch"], item["spec"].get("page", 1)))

    def agents(self) -> list[Object]:
        """Return the agents' pods that are not on their way out."""
        pods = self._client.items(
            f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector=f"outrider.dev/component={self.name}"
        )
        return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]

    def agent_on(self, node: str) -> Object | None:
        """Return the agent's pod on a node, if there is one."""
        return next((pod for pod in self.agents() if pod["spec"].get("nodeName") == node), None)

    def ready_versions(self) -> Counter[str]:
        """Count the agents that are Ready, by version."""
        return Counter(version_of(pod) for pod in self.agents() if _is_ready(pod))

    def uids(self) -> set[str]:
        """Return the UIDs of all agents' pods: another set means that somebody was replaced."""
        return {str(pod["metadata"]["uid"]) for pod in self.agents()}

    # --- watching ---------------------------------------------------------------------------

    def follow(
        self,
        generation: int,
        *,
        until: tuple[str, ...],
        seconds: float,
        interludes: dict[Callable[[Object], bool], Callable[[], None]] | None = None,
    ) -> Object:
        """Tell what happens to the Rollout until its phase, for that generation, is one of `until`; return it.

        An interlude is something to do once, as soon as its condition holds for the Rollout. `fewest_ready` says
        afterwards how many agents were Ready when the fewest were; those on the nodes in `excused` always count.
        """
        waiting = dict(interludes or {})
        started = time.monotonic()
        deadline = started + seconds
        rollout: Object = {}
        self.fewest_ready = self._count_ready(self.agents())
        while time.monotonic() < deadline:
            try:
                rollout, batches = self.rollout(), self.batches()
                agents = self.agents()
                self.fewest_ready = min(self.fewest_ready, self._count_ready(agents))
                said = self._ask(agents)
            except (TimeoutError, ConnectionError):
                # A machine that is busy with other things is no reason to give up before the time.
                continue
            status = rollout.get("status") or {}
            current = int(status.get("observedGeneration", -1)) >= generation
            self._teller.tell_answers(said, time.monotonic() - started)
            if current:
                self._teller.tell(rollout, batches, time.monotonic() - started)
            if current and status.get("phase") in until:
                self._terminal.rest()
                for condition in waiting:
                    raise NotAsTold(f"the run ended before {condition.__name__}")
                return rollout
            for condition in [one for one in waiting if current and one(rollout)]:
                self._terminal.rest()
                waiting.pop(condition)()
            time.sleep(_POLL_SECONDS)
        self._terminal.rest()
        status = rollout.get("status") or {}
        raise NotAsTold(
            f"the Rollout is not {' or '.join(until)} after {seconds:.0f} s but {status.get('phase')}: "
            f"{message_of(rollout, 'Ready')}"
        )

    def _count_ready(self, agents: list[Object]) -> int:
        ready = {str(pod["spec"].get("nodeName")) for pod in agents if _is_ready(pod)}
        return len(ready | self.excused)

    def _ask(self, agents: list[Object]) -> dict[str, str]:
        """Ask the agents of some nodes for their version, by HTTP; who does not answer is left out."""
        said = {}
        for pod in agents:
            node, address = pod["spec"].get("nodeName"), pod["status"].get("podIP")
            if node in self.listening_to and address and _is_ready(pod):
                with contextlib.suppress(OSError):
                    said[str(node)] = fetch_text(f"http://{address}:8080/version", seconds=0.5)
        return said

    def wait(self, what: str, holds: Callable[[], bool], seconds: float) -> None:
        """Wait until something holds; raises NotAsTold otherwise."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if holds():
                    return
            except ApiError as error:
                if error.status != 404:
                    raise
            except (TimeoutError, ConnectionError):
                continue
            time.sleep(0.1)
        raise NotAsTold(f"{what} did not happen within {seconds:.0f} s")


class _Teller:
    """Turns looks at the Rollout and its records into lines: each change once, however often it is looked at."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._begun: set[str] = set()
        self._ended: set[str] = set()
        self._nodes: dict[tuple[str, str], str] = {}
        self._said: dict[str, str] = {}

    def tell_answers(self, answers: dict[str, str], seconds: float) -> None:
        """Print what an agent says of itself, if that is something else than before."""
        for node, said in sorted(answers.items()):
            if self._said.get(node) != said:
                self._said[node] = said
                self._terminal.step(f"{seconds:4.0f} s  the agent of {node}, asked by HTTP, answers: {said}")

    def tell(self, rollout: Object, batches: list[Object], seconds: float) -> None:
        """Print what has changed since the last look."""
        run = (rollout["status"] or {}).get("run") or {}
        for batch in batches:
            self._tell_batch(batch, seconds)
        self._show(rollout, run, seconds)

    def _tell_batch(self, batch: Object, seconds: float) -> None:
        name, spec = batch["metadata"]["name"], batch["spec"]
        status = batch.get("status") or {}
        if name in self._ended:
            return
        nodes = [node["name"] for node in spec["nodes"]]
        title = f"batch {spec['batch']}" + (" (canary)" if spec.get("step") else "")
        if spec["kind"] == "Rollback":
            title = "rollback"
        if name not in self._begun:
            self._begun.add(name)
            verb = "back from" if spec["kind"] == "Rollback" else "to"
            self._terminal.step(f"{seconds:4.0f} s  {title}: {_list(nodes)} {verb} {spec['version']}")
        for node in status.get("nodes") or []:
            state = node["state"]
            if self._nodes.get((name, node["name"])) != state:
                self._nodes[name, node["name"]] = state
                if state == "Failed":
                    reason, message = node.get("reason", ""), node.get("message", "")
                    self._terminal.bad(f"{seconds:4.0f} s  {node['name']} failed: {reason}: {message}")
        if status.get("state") == "Finished":
            self._ended.add(name)
            parts = [f"{status.get('succeeded', 0)} of {len(nodes)} healthy"]
            parts += [f"{status[kind]} {kind}" for kind in ("failed", "skipped") if status.get(kind)]
            self._terminal.step(f"{seconds:4.0f} s  {title}: {', '.join(parts)}")

    def _show(self, rollout: Object, run: Object, seconds: float) -> None:
        status = rollout["status"]
        total, updated = int(status.get("nodes", 0)), int(run.get("updated", 0))
        if not total:
            return
        filled = round(_BAR * updated / total)
        bar = "█" * filled + "░" * (_BAR - filled)
        text = f"  {bar} {updated}/{total} on {rollout['spec']['version']} · batch {run.get('batch', '-')}"
        if run.get("failed"):
            text += f" · {run['failed']} failed"
        self._terminal.live(f"{text} · {status.get('phase')} · {seconds:.0f} s")


def version_of(pod: Object) -> str:
    """Return the version that an agent's pod runs."""
    return str(pod["metadata"]["labels"]["outrider.dev/version"])


def message_of(item: Object, condition: str) -> str:
    """Return the message of a condition, or nothing."""
    conditions = (item.get("status") or {}).get("conditions") or []
    return next((str(one["message"]) for one in conditions if one["type"] == condition), "")


def is_true(item: Object, condition: str) -> bool:
    """Return whether a condition is True."""
    conditions = (item.get("status") or {}).get("conditions") or []
    return any(one["type"] == condition and one["status"] == "True" for one in conditions)


def _is_ready(pod: Object) -> bool:
    return is_true(pod, "Ready")


def _list(nodes: list[str]) -> str:
    if len(nodes) <= 5:
        return ", ".join(nodes)
    return f"{len(nodes)} nodes ({', '.join(nodes[:2])}, …)"
