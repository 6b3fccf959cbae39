"""Two components on the same nodes, each with a Rollout, and ranges between them."""

from collections.abc import Callable, Mapping

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from outrider.api.rollout import Target
from outrider.core.compatibility import VersionRules
from outrider.core.ranges import parse_range
from outrider.core.snapshot import Needs, Neighbour, Wish
from outrider.core.states import SETTLED
from simulation.fleet import Behaviour, Fleet, healthy, make_spec

KEYS = {"agent": "agents.outrider.dev/the-agent", "daemon": "agents.outrider.dev/the-daemon"}


class Pair:
    """An agent and a daemon on the same nodes. `needs` says per component and version what it needs of the other."""

    def __init__(
        self,
        count: int,
        needs: Mapping[str, Mapping[str, str]],
        size: int | str = 2,
        behaviour: Behaviour = healthy,
        tolerance: int = 0,
    ) -> None:
        self.needs = needs
        strategy = {"type": "Rolling", "rolling": {"batchSize": size}, "failureTolerance": tolerance}
        self.fleets = {
            name: Fleet(
                count,
                make_spec("1.0.0", component=name, strategy=strategy),
                seed=seed,
                behaviour=behaviour if name == "agent" else healthy,
            )
            for seed, name in enumerate(KEYS)
        }
        self.log: list[tuple[str, str, str | None]] = []

    @property
    def agent(self) -> Fleet:
        return self.fleets["agent"]

    @property
    def daemon(self) -> Fleet:
        return self.fleets["daemon"]

    def needs_of(self, component: str, version: str) -> Needs:
        other = "daemon" if component == "agent" else "agent"
        text = self.needs.get(component, {}).get(version)
        return ((other, parse_range(text)),) if text else ()

    def version_on(self, component: str, node: str) -> str | None:
        assignment = self.fleets[component].assignment(node)
        return assignment.removeprefix("r-") if assignment is not None and assignment.startswith("r-") else None

    def step(self) -> None:
        for name, fleet in self.fleets.items():
            other = "daemon" if name == "agent" else "agent"
            theirs = self.fleets[other]
            for node in fleet.nodes:
                if (assignment := theirs.assignment(node)) is not None:
                    fleet.label(node, {KEYS[other]: assignment})
            known = {*theirs.revisions.values(), theirs.spec.version}
            fleet.neighbours = {
                other: Neighbour(
                    KEYS[other],
                    dict(theirs.revisions),
                    {version: self.needs_of(other, version) for version in known},
                    (Wish(f"the-{other}", theirs.spec.version, Target(all=True)),),
                    frozenset(
                        entry.name
                        for entry, state, _ in theirs.entries(theirs.status.run.id if theirs.status.run else 0)
                        if state not in SETTLED
                    ),
                )
            }
            for version in {*fleet.revisions.values(), fleet.spec.version}:
                fleet.rules[f"r-{version}"] = VersionRules(requires=self.needs_of(name, version))
            before = len(fleet.patches)
            fleet.execute(fleet.plan())
            self.log += [(name, patch.node, patch.after) for patch in fleet.patches[before:]]
            self.check()
        for fleet in self.fleets.values():
            fleet.tick()

    def check(self) -> None:
        """What one needs of the other is there, wherever both are at rest."""
        for node in self.agent.nodes:
            running = {name: self.version_on(name, node) for name in KEYS}
            for name, version in running.items():
                for other, range_ in self.needs_of(name, version) if version else ():
                    there = running[other]
                    assert there is None or range_.contains(there), f"{node}: {running}"

    def run(self, until: Callable[["Pair"], bool], limit: int = 400) -> None:
        for _ in range(limit):
            self.step()
            if until(self):
                return
        raise AssertionError(f"{self.agent.status.phase}, {self.daemon.status.phase}, {self.agent.status.conditions}")

    def go_on(self, steps: int = 40) -> None:
        for _ in range(steps):
            self.step()

    def reason(self, component: str, kind: str = "Ready") -> tuple[str, str]:
        found = next(c for c in self.fleets[component].status.conditions if c.type == kind)
        return found.reason, found.message


def completed(*components: str) -> Callable[[Pair], bool]:
    def done(pair: Pair) -> bool:
        fleets = [pair.fleets[name] for name in components or KEYS]
        return all(
            f.status.phase == "Completed"
            and f.status.run is not None
            and f.status.run.version == f.spec.version
            and f.assignments() == {f"r-{f.spec.version}": len(f.nodes)}
            for f in fleets
        )

    return done


def installed(count: int, needs: Mapping[str, Mapping[str, str]], **how: object) -> Pair:
    pair = Pair(count, needs, **how)  # type: ignore[arg-type]
    pair.run(completed())
    pair.log.clear()
    return pair


def test_what_requires_another_component_follows_it_from_node_to_node() -> None:
    pair = installed(6, {"agent": {"2.0.0": ">=2"}})
    pair.agent.change(version="2.0.0")
    pair.go_on(10)
    assert pair.agent.assignments() == {"r-1.0.0": 6}
    pair.daemon.change(version="2.0.0")
    pair.run(completed())
    for node in pair.agent.nodes:
        arrived = pair.log.index(("daemon", node, "r-2.0.0"))
        assert arrived < pair.log.index(("agent", node, "to-r-2.0.0")), "on each node the daemon goes first"
    first_agent = min(i for i, (name, _, after) in enumerate(pair.log) if (name, after) == ("agent", "to-r-2.0.0"))
    last_daemon = max(i for i, (name, _, after) in enumerate(pair.log) if (name, after) == ("daemon", "r-2.0.0"))
    assert first_agent < last_daemon, "the agent does not wait for the whole fleet"


def test_what_the_old_version_requires_of_the_other_holds_the_other_back_until_it_has_gone() -> None:
    pair = installed(6, {"agent": {"1.0.0": "<2"}})
    pair.daemon.change(version="2.0.0")
    pair.go_on(10)
    assert pair.daemon.assignments() == {"r-1.0.0": 6}
    assert "RequiredByOther" in pair.reason("daemon")[1]
    assert "agent 1.0.0 (Rollout the-agent), which runs there, needs daemon '<2'" in pair.reason("daemon")[1]
    assert "Rollout the-agent wants 1.0.0" in pair.reason("daemon")[1]
    assert {reason for _, _, reason in pair.daemon.entries(2)} == {"RequiredByOther"}
    pair.agent.change(version="2.0.0")
    pair.run(completed())


def test_two_next_versions_that_need_each_other_are_told_as_a_deadlock_by_both() -> None:
    pair = installed(4, {"agent": {"2.0.0": ">=2"}, "daemon": {"2.0.0": ">=2"}})
    pair.agent.change(version="2.0.0")
    pair.daemon.change(version="2.0.0")
    pair.run(lambda p: p.reason("agent")[0] == p.reason("daemon")[0] == "DependencyDeadlock")
    for name in KEYS:
        reason, message = pair.reason(name, "Stalled")
        assert reason == "DependencyDeadlock"
        other = "daemon" if name == "agent" else "agent"
        assert f"{name} 2.0.0 (Rollout agent) needs {other} '>=2', and there is 1.0.0" in message, "Fleets' own name"
        assert f"{other} 2.0.0 (Rollout the-{other}) needs {name} '>=2', and there is 1.0.0" in message
        assert "on 4 of 4 nodes (node-000, node-001, node-002 and 1 more)" in message
        assert "each waits for the other" in message
        assert pair.fleets[name].status.phase == "Stalled"
        assert pair.fleets[name].assignments() == {"r-1.0.0": 4}
    # A version in between unties it.
    pair.agent.change(version="1.9.0")
    pair.run(completed("agent"))
    assert pair.reason("daemon")[0] != "DependencyDeadlock"
    pair.daemon.change(version="1.9.0")
    pair.run(completed())


def test_an_old_version_that_cannot_go_before_the_other_which_it_holds_back_is_a_deadlock() -> None:
    pair = installed(3, {"agent": {"1.0.0": "<2", "2.0.0": ">=2"}})
    pair.agent.change(version="2.0.0")
    pair.daemon.change(version="2.0.0")
    pair.run(lambda p: p.reason("agent")[0] == p.reason("daemon")[0] == "DependencyDeadlock")
    pair.agent.change(version="1.5.0")  # it does with either
    pair.run(completed())
    pair.agent.change(version="2.0.0")
    pair.run(completed())


def test_what_nobody_brings_is_told_and_by_whom_it_could_be_brought() -> None:
    pair = installed(3, {"agent": {"2.0.0": ">=3"}})
    pair.agent.change(version="2.0.0")
    pair.go_on(10)
    message = pair.reason("agent")[1]
    assert "3 RequirementUnmet" in message
    assert "agent 2.0.0 (Rollout agent) needs daemon '>=3', and there is 1.0.0, and Rollout the-daemon wants 1.0.0" in (
        message
    )


def test_a_way_back_that_would_break_the_other_component_is_not_taken() -> None:
    pair = installed(4, {"daemon": {"2.0.0": ">=2"}})
    pair.agent.change(version="2.0.0")
    pair.run(completed())
    pair.daemon.change(version="2.0.0")
    pair.run(completed())
    pair.agent.change(version="1.0.0")
    pair.go_on(20)
    assert pair.agent.assignments() == {"r-2.0.0": 4}
    assert "daemon 2.0.0 (Rollout the-daemon), which runs there, needs agent '>=2'" in pair.reason("agent")[1]
    pair.daemon.change(version="1.0.0")
    pair.run(completed())


def test_a_rollback_that_would_break_the_other_component_stops_and_goes_on_when_that_has_gone_back() -> None:
    # The first nodes are well, and the daemon follows there; then the agent fails.
    def fails_late(node: str, revision: str) -> str:
        return "never-ready" if revision == "r-2.0.0" and node in late else "healthy"

    late: set[str] = set()
    pair = installed(4, {"daemon": {"2.0.0": ">=2"}}, size=2, behaviour=fails_late)
    pair.agent.change(version="2.0.0")
    pair.run(lambda p: p.agent.assignments().get("r-2.0.0") == 2)
    first = {name for name in pair.agent.nodes if pair.agent.assignment(name) == "r-2.0.0"}
    late |= set(pair.agent.nodes) - first
    pair.daemon.change(version="2.0.0")
    pair.run(lambda p: p.agent.status.phase == "Stalled")
    pair.go_on(20)
    reason, message = pair.reason("agent", "Stalled")
    assert reason == "RequiredByOther"
    assert "2 nodes stay where they are" in message
    assert "daemon 2.0.0 (Rollout the-daemon) needs agent '>=2' on the node, and agent 1.0.0 would break it" in message
    assert {pair.agent.assignment(name) for name in first} == {"r-2.0.0"}
    assert {pair.agent.assignment(name) for name in late} == {"r-1.0.0"}, "who can go back does"
    pair.daemon.change(version="1.0.0")
    pair.run(lambda p: p.agent.status.phase == "RolledBack")
    assert pair.agent.assignments() == {"r-1.0.0": 4}


def test_a_failed_node_that_cannot_return_pauses_the_run() -> None:
    bad: set[str] = set()
    pair = installed(
        4,
        {"daemon": {"2.0.0": ">=2"}},
        size=1,
        tolerance=2,
        behaviour=lambda node, revision: "never-ready" if revision == "r-2.0.0" and node in bad else "healthy",
    )
    pair.agent.change(version="2.0.0")
    pair.run(lambda p: p.agent.assignments().get("r-2.0.0") == 1)
    [node] = [name for name in pair.agent.nodes if pair.agent.assignment(name) == "r-2.0.0"]
    pair.daemon.change(version="2.0.0")
    pair.run(lambda p: p.version_on("daemon", node) == "2.0.0")
    for pod in pair.agent.nodes[node].pods:
        pod.behaviour = "crash-loop"
    pair.run(lambda p: p.reason("agent")[0] == "RequiredByOther")
    pair.go_on(10)  # half-made moves are finished
    moved = pair.agent.assignments()
    pair.go_on(20)
    assert pair.agent.assignments() == moved
    assert pair.agent.assignment(node) == "r-2.0.0"


def test_an_agent_that_another_component_needs_is_not_taken_from_a_node_that_left_the_fleet() -> None:
    pair = installed(3, {"daemon": {"1.0.0": ">=1"}})
    pair.agent.change(target={"nodeNames": ["node-000", "node-001"]})
    pair.go_on(15)
    assert pair.agent.assignment("node-002") == "r-1.0.0"
    reason, message = pair.reason("agent", "Degraded")
    assert reason == "RequiredByOther"
    assert "1 node that has left spec.target" in message
    assert "daemon 1.0.0 (Rollout the-daemon) needs agent '>=1' on the node, and no agent would break it" in message
    pair.needs = {}
    pair.go_on(30)
    assert pair.agent.assignment("node-002") is None


ranges = st.sampled_from(["", "", "<2", ">=2", ">=1"])


@given(
    count=st.integers(1, 5),
    needs=st.fixed_dictionaries(
        {name: st.fixed_dictionaries({"1.0.0": st.sampled_from(["", "<2", ">=1"]), "2.0.0": ranges}) for name in KEYS}
    ),
    size=st.sampled_from([1, 3]),
    gap=st.integers(0, 15),
)
# Not made smaller: a hundred steps of two fleets take too long for that.
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_whatever_the_ranges_nothing_is_broken_and_who_waits_for_ever_says_so(
    count: int, needs: dict[str, dict[str, str]], size: int, gap: int
) -> None:
    pair = installed(count, {}, size=size)
    pair.needs = needs
    pair.agent.change(version="2.0.0")
    pair.go_on(gap)
    pair.daemon.change(version="2.0.0")
    pair.go_on(120)  # every step checks that nothing is broken
    for name, fleet in pair.fleets.items():
        if fleet.assignments() == {"r-2.0.0": count}:
            assert fleet.status.phase == "Completed"
        elif fleet.status.phase == "Completed":
            last = {entry.name: reason for entry, _, reason in fleet.entries(2)}
            behind = {node for node in fleet.nodes if fleet.assignment(node) != "r-2.0.0"}
            assert all(last[node].startswith("Require") for node in behind), last
        else:
            reason, message = pair.reason(name)
            assert reason == "DependencyDeadlock" or "no node can be moved now" in message, (name, reason, message)
            assert "the-" in message, "the other Rollout is named"
