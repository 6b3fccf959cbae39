"""A verified file on the node itself: installed, switched to, made to run, watched, and taken back if it does not work.

*Assumptions.* This program may be killed at any moment, and the node may lose its power at any moment: then the
container is started again, in the same pod or, after the operator has changed its mind, in another. Two pods may be
here at once. What was activated keeps running when this program ends; a command that has not ended does not. Whoever
may write to the daemon's folder may do as this program does; others may have prepared traps before it came
(`hosthome.py`).

*Invariants.*

1. `current` always names a version that is complete, on disk, and was verified on this node; or there is none. It
   changes in one step, from one such version to another.
2. The journal says what is about to happen before it happens: the attempt before `current` changes, the failure before
   the way back begins, that it is good only after it was activated and healthy. So whoever comes next goes on where
   this one was: forward again, or further back.
3. What worked last stays on disk until something else has worked: there is always a way back, and it is taken here,
   without the operator. Back goes only to bytes that hash to what they hashed to when they worked, and with the
   activation and the check with which they did.
4. What failed in a pod is not tried again in that pod: it says once more what it said. Only another pod, which is made
   because somebody decided something, tries again. So a node never swings between two versions by itself.
5. What runs well is left alone: a pod that starts again does not restart the daemon. What worked before and is not
   healthy in time may be slow: it is looked at and waited for before it is activated again, longer each time.
6. Each step can be done twice.

The steps, in their order; `step` is called with each name before it is done:

    forward: verify, store, note the attempt, switch, activate, watch, note that it is good, prune
    back:    note the failure, switch back, activate back, watch back, note what failed
"""

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from outrider.node.activation import Host
from outrider.node.files import RECORD, Content, Folder, LocalError, finish, local, read_content
from outrider.node.hostconfig import Activation, HostConfig
from outrider.node.hostgroup import boot_id, end_remnants
from outrider.node.hosthome import Attempt, Care, Home, Installed, State, name_of
from outrider.node.processor import platform_of
from outrider.node.record import Record, read_record, write_record
from outrider.node.verification import Log, read_keys, verify_again
from outrider.trust.keys import TrustedKey
from outrider.trust.verify import further_algorithms

FORWARD: Final = (
    "verify",
    "store",
    "note the attempt",
    "switch",
    "activate",
    "watch",
    "note that it is good",
    "prune",
)
BACK: Final = ("note the failure", "switch back", "activate back", "watch back", "note what failed")

Step = Callable[[str], None]


def install(config: HostConfig, log: Log, *, machine: str, step: Step = lambda name: None) -> None:
    """Let the node run the verified file in the target folder, or what worked before.

    `machine` is what the kernel calls the processor. Raises Stalling when the file must not run here, LocalError when
    this node cannot take it (NoSpace, NodeStorage, PathUnsafe, PathOccupied), or when it did not work and the node was
    taken back (ActivationFailed, HealthFailed).
    """
    platform = platform_of(config, machine)
    with contextlib.ExitStack() as stack:
        step("verify")
        with local("read", config.target_dir):
            source = stack.enter_context(Folder.open(config.target_dir))
        record = read_record(source)
        if record is None or not record.is_about(config, platform):
            raise LocalError(
                "ArtifactMissing",
                f"{config.target_dir} holds no verified file of {config.component} {config.version}; outrider-fetch "
                "has to put it there before",
            )
        wanted = Installed(name_of(record.version, record.sha256), record.version, record.sha256, record.file_name)
        home = stack.enter_context(Home.open(config, log))
        # Before all else: it could end what is activated here.
        end_remnants(home.private, config.path_on_node, log)
        host = Host(config, log, home.private)
        _Installation(config, home, host, log, step, platform, record, wanted).run(source)


class _Installation:
    """One installation, while the lock is held."""

    def __init__(
        self,
        config: HostConfig,
        home: Home,
        host: Host,
        log: Log,
        step: Step,
        platform: str,
        record: Record,
        wanted: Installed,
    ) -> None:
        self._config = config
        self._home = home
        self._host = host
        self._log = log
        self._step = step
        self._platform = platform
        self._record = record
        self._wanted = wanted
        self._care = Care(config.activation, config.health)
        self._state = self._read_state()

    def run(self, source: Folder) -> None:
        config, home, wanted, state = self._config, self._home, self._wanted, self._state
        # What stands in the way is told before anything is done.
        current = home.current()

        # What ended in the middle of its way back, in this pod, goes back first; what failed here is not tried again.
        attempt = state.attempt
        if attempt is not None and attempt.reason and (attempt.pod, attempt.sha256) == (config.pod, wanted.sha256):
            self._log("an earlier start of this pod was on its way back; going on with that")
            raise self._go_back(LocalError(attempt.reason, attempt.message))
        failure = state.failure(config.pod, wanted.sha256)
        if failure is not None:
            raise LocalError(failure.reason, failure.message)

        self._store(source)
        state = self._state
        if self._runs_already(current):
            self._log(f"{wanted.version} is current and works; nothing is changed")
            if state.activations or state.care != self._care:
                self._note(replace(state, care=self._care, activations=0, waits=0))
            self._prune(state.kept)
            return

        is_known = state.good == wanted
        try:
            self._step("note the attempt")
            self._note(replace(state, attempt=Attempt(config.pod, wanted.sha256)))
            self._step("switch")
            home.switch(wanted.name)
            self._log(f"current is {wanted.name}")
            self._step("activate")
            self._host.activate()
            self._step("watch")
            self._host.wait_until_healthy()
        except LocalError as error:
            if error.reason not in {"ActivationFailed", "HealthFailed"}:
                raise
            if is_known:
                if error.reason == "HealthFailed":
                    slow = replace(
                        state, activated=_activated(config.activation), activations=state.activations + 1, waits=0
                    )
                    self._note(replace(slow, attempt=None))
                # It worked before, so that nothing is better to go back to; the kubelet starts this again, and again.
                raise _stays(wanted, error) from None
            raise self._go_back(error) from None

        self._step("note that it is good")
        kept = (wanted.name, *(name for name in state.kept if name != wanted.name))
        # The one before counts as kept even if the list was lost.
        if state.good is not None and state.good.name not in kept:
            kept = (wanted.name, state.good.name, *kept[1:])
        kept = kept[: config.keep]
        works = replace(self._state, good=wanted, care=self._care, activated=_activated(config.activation))
        self._note(replace(works, activations=0, waits=0, kept=kept, attempt=None))
        self._log(f"{wanted.version} works")
        self._step("prune")
        self._prune(kept)

    def _read_state(self) -> State:
        state = self._home.read_state()
        if state is None:
            state, found = State(), self._home.find_current()
            if found is not None:
                # Without a journal this is the best way back that there is: it is current, and what was verified here.
                good, component = found
                namespace = self._config.namespace  # nothing on the disk but the journal tells it
                state = State(
                    owner=f"{namespace}/{component}", good=good, kept=(good.name,) if good is not None else ()
                )
            if found is not None or self._home.has_journal:
                known = f"{state.good.version} is current and intact, and counts as what" if state.good else "nothing"
                self._log(f"WARNING: the journal is lost or cannot be read; {known} worked before")
        if state.owner not in {"", self._config.owner}:
            raise LocalError(
                "PathOccupied",
                f"{self._config.path_on_node} belongs to the component {state.owner}; choose another path for "
                f"{self._config.owner}, or remove that folder from this node",
            )
        return replace(state, owner=self._config.owner)

    def _note(self, state: State) -> None:
        self._home.write_state(state)
        self._state = state

    def _store(self, source: Folder) -> None:
        """Put the file into `versions`, verified once more from the bytes that end there.

        A version that is complete there already is left as it is. One that is damaged, which may be the current one, is
        mended by replacing its file in one step. What runs of it was started from other bytes, perhaps: it counts as
        activated no more.
        """
        home, wanted = self._home, self._wanted
        file = source.open_file(wanted.file_name)
        if file is None:
            raise LocalError("ArtifactMissing", f"{source.path} has lost {wanted.file_name}; delete this pod")
        keys = read_keys(self._config, self._log)
        further = further_algorithms(self._record.evidence, keys)
        with file:
            if home.is_intact(wanted):
                content = read_content(file, further)
                self._judge(content, keys)
                return
            self._step("store")
            if self._state.good == wanted and self._state.activated:
                self._note(replace(self._state, activated=""))
            with local("write to", home.versions.path):
                home.incoming.check_space(os.fstat(file.fileno()).st_size)
                incoming = home.incoming.folder(wanted.name, create=True)
                with incoming:
                    with incoming.create(wanted.file_name) as copy:
                        content = read_content(file, further, copy)
                        finish(copy)
                    self._judge(content, keys)
                    write_record(incoming, self._record)
                    incoming.sync()
                    if not home.has(wanted.name):
                        home.incoming.replace(wanted.name, wanted.name, home.versions)
                        return
                    with home.version(wanted.name) as damaged:
                        incoming.replace(wanted.file_name, wanted.file_name, damaged)
                        incoming.replace(RECORD, RECORD, damaged)

    def _judge(self, content: Content, keys: list[TrustedKey]) -> None:
        """Verify what was read once more. Raises Stalling; LocalError(ArtifactMissing) if the record is of another."""
        doubt = verify_again(self._config, self._platform, self._record, content, keys)
        if content.sha256 != self._wanted.sha256:
            raise LocalError(
                "ArtifactMissing",
                f"{self._config.target_dir} holds the record of another file than {self._wanted.file_name}; delete "
                "this pod",
            )
        if doubt:
            self._log(f"WARNING: {doubt}")

    def _runs_already(self, current: str) -> bool:
        """Say whether the wanted version is what this node runs, as far as can be told without touching it.

        Raises LocalError(HealthFailed) when it may be slow and is not healthy yet.
        """
        state, wanted = self._state, self._wanted
        if state.good != wanted or current != wanted.name or state.activated != _activated(self._config.activation):
            return False
        if state.attempt is not None:
            return False
        if state.is_slow:
            self._log(f"{wanted.version} was activated and not healthy in time; it is waited for once more")
            try:
                self._step("watch")
                self._host.wait_until_healthy()
            except LocalError as error:
                self._note(replace(state, waits=state.waits + 1))
                raise _stays(wanted, error) from None
            return True
        problem = self._host.look(self._config.health.timeout)
        if problem:
            self._log(f"{wanted.version} is current, but does not work: {problem}")
        return not problem

    def _go_back(self, error: LocalError) -> LocalError:
        """Take the node back to what worked last; return what to raise: what failed, and what was done about it."""
        config, home, good = self._config, self._home, self._state.good
        self._log(f"{error.reason}: {error.message}; going back")
        self._step("note the failure")
        self._note(replace(self._state, attempt=Attempt(config.pod, self._wanted.sha256, error.reason, error.message)))
        activations, activated = 0, ""
        if good is None:
            self._step("switch back")
            home.take_away()
            self._step("activate back")
            self._host.deactivate()
            self._step("watch back")
            done = "no version worked on this node before, so none is current now"
        elif not home.is_intact(good):
            done = (
                f"{good.version}, which worked before, is damaged on this node's disk, so {self._wanted.version} stays"
            )
        else:
            self._step("switch back")
            home.switch(good.name)
            self._log(f"current is {good.name}")
            care = self._state.care or self._care
            as_it_worked = replace(config, version=good.version, activation=care.activation, health=care.health)
            host = Host(as_it_worked, self._log, home.private)
            try:
                self._step("activate back")
                host.activate()
                activations, activated = 1, _activated(care.activation)
                self._step("watch back")
                host.wait_until_healthy()
                done, activations = f"the node is back on {good.version}, which works", 0
            except LocalError as again:
                done = f"the node is back on {good.version}, which does not work either ({again.message})"
        failure = Attempt(config.pod, self._wanted.sha256, error.reason, f"{error.message}; {done}")
        self._step("note what failed")
        state = self._state.with_failure(failure)
        self._note(replace(state, activated=activated, activations=activations, waits=0))
        self._prune(state.kept)
        return LocalError(failure.reason, failure.message)

    def _prune(self, kept: tuple[str, ...]) -> None:
        """Remove old versions. That it fails is told, and nothing that runs is the worse for it."""
        good = self._state.good
        try:
            for name in self._home.prune((*kept, good.name) if good is not None else kept):
                self._log(f"{name} is removed from this node")
        except LocalError as error:
            self._log(f"old versions are not removed: {error.message}")


def _activated(activation: Activation | None) -> str:
    """Return what makes another activation necessary: that it is another one, or that the node was started anew."""
    if activation is None:
        return "none"
    return json.dumps([activation.command, activation.unit, boot_id()])


def _stays(wanted: Installed, error: LocalError) -> LocalError:
    return LocalError(error.reason, f"{error.message}; {wanted.version} worked on this node before and stays current")
