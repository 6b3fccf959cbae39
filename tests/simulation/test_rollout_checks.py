"""Stories of agents that are asked themselves, and of analyses between batches: pass, fail, cannot tell."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.core.plan import CreateBatch
from simulation.fleet import Fleet, make_spec

BATCHES = {"type": "Rolling", "rolling": {"batchSize": 3}}
CHECKED = {"timeoutSeconds": 60, "minReadySeconds": 2, "http": {"path": "/healthz", "port": 8080}}
ERRORS = {
    "name": "errors",
    "prometheus": {"address": "http://prometheus:9090", "query": "errors", "passWhen": "< 0.01"},
    "intervalSeconds": 10,
    "timeoutSeconds": 60,
}
SMOKE = {"name": "smoke", "job": {"template": {"spec": {"template": {}}}}, "intervalSeconds": 10}


def installed(count: int = 9, **changes: Any) -> Fleet:
    """A fleet that runs 1.0.0, with the checks that the next run has to pass."""
    fleet = Fleet(count, make_spec(strategy=BATCHES))
    fleet.settle()
    fleet.change(strategy=BATCHES, **changes)
    fleet.settle()
    fleet.patches.clear()
    return fleet


def go_on(fleet: Fleet, seconds: int) -> None:
    for _ in range(seconds):
        fleet.execute(fleet.plan())
        fleet.tick()


def reason(fleet: Fleet, condition: str = "Ready") -> str:
    return next((c.reason for c in fleet.status.conditions if c.type == condition), "")


def message(fleet: Fleet) -> str:
    return next(c.message for c in fleet.status.conditions if c.type == "Ready")


def moved(fleet: Fleet) -> int:
    return fleet.assignments().get("r-1.1.0", 0)


# --- agents -----------------------------------------------------------------------------------


def test_agents_that_pass_their_check_are_healthy() -> None:
    fleet = installed(health=CHECKED)
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.assignments() == {"r-1.1.0": 9}
    assert fleet.probes >= 9
    assert fleet.status.run is not None
    assert fleet.status.run.failed == 0


def test_without_a_check_nobody_is_asked() -> None:
    fleet = installed()
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.probes == 0


def test_ready_agents_that_fail_their_check_do_not_become_healthy_and_go_back() -> None:
    fleet = installed(health=CHECKED)
    fleet.agent_says = lambda _node, revision: "Fail" if revision == "r-1.1.0" else "Pass"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "RolledBack"
    assert fleet.assignments() == {"r-1.0.0": 9}
    assert {(state, why) for _, state, why in fleet.entries(2)} == {("Failed", "HealthTimeout")}
    assert len(fleet.status.failures) == 3
    assert all("is Ready, but its check says so" in failure.message for failure in fleet.status.failures)


def test_a_check_that_fails_for_a_while_is_waited_for() -> None:
    fleet = installed(health=CHECKED)
    fleet.change(version="1.1.0")
    begun = fleet.now
    fleet.agent_says = lambda _node, _revision: "Pass" if (fleet.now - begun).total_seconds() > 30 else "Fail"
    fleet.settle()
    assert fleet.status.phase == "Completed"
    assert fleet.status.run is not None
    assert fleet.status.run.failed == 0


def test_ready_and_passing_count_only_together() -> None:
    health = {**CHECKED, "minReadySeconds": 20}
    fleet = installed(3, health=health)
    fleet.change(version="1.1.0")
    begun = fleet.now
    fleet.agent_says = lambda _node, _revision: "Pass" if (fleet.now - begun).total_seconds() > 30 else "Fail"
    fleet.settle()
    assert fleet.status.phase == "Completed"
    assert (fleet.now - begun).total_seconds() >= 50


def test_what_cannot_be_asked_neither_advances_nor_condemns_and_stalls_in_the_end() -> None:
    fleet = installed(health=CHECKED)
    fleet.agent_says = lambda _node, _revision: "Unknown"
    fleet.change(version="1.1.0")
    go_on(fleet, 300)
    assert moved(fleet) == 3, "no batch but the first"
    assert fleet.status.phase == "Stalled"
    assert reason(fleet) == reason(fleet, "Stalled") == "HealthUnknown"
    assert "of 3 nodes nobody can tell" in message(fleet)
    assert "health.http" in message(fleet)
    assert fleet.status.run is not None
    assert fleet.status.run.failed == 0
    probes = fleet.probes
    go_on(fleet, 10)
    assert fleet.probes > probes, "it goes on asking"

    fleet.agent_says = lambda _node, _revision: "Pass"
    fleet.settle()
    assert fleet.status.phase == "Completed"
    assert fleet.assignments() == {"r-1.1.0": 9}


def test_time_in_which_nobody_could_tell_is_not_held_against_a_node() -> None:
    fleet = installed(3, health=CHECKED)
    fleet.agent_says = lambda _node, _revision: "Unknown"
    fleet.change(version="1.1.0")
    go_on(fleet, 100)
    begun = fleet.now
    fleet.agent_says = lambda _node, _revision: "Pass" if (fleet.now - begun).total_seconds() > 40 else "Fail"
    fleet.settle()
    assert fleet.status.phase == "Completed"
    assert fleet.status.run is not None
    assert fleet.status.run.failed == 0


def test_flapping_between_fail_and_cannot_tell_resets_no_deadline() -> None:
    """argo-rollouts#3765: what flaps must not live for ever."""
    fleet = installed(3, health=CHECKED)
    fleet.change(version="1.1.0")
    begun = fleet.now
    fleet.agent_says = lambda _node, _revision: "Fail" if (fleet.now - begun).total_seconds() % 10 < 5 else "Unknown"
    fleet.settle(limit=200)
    assert fleet.status.phase == "RolledBack"


def test_an_agent_that_falls_ill_while_its_batch_is_watched_opens_the_batch_again() -> None:
    strategy = {"type": "Canary", "canary": {"steps": [{"nodes": 1, "soakSeconds": 120}]}}
    fleet = installed(4, health=CHECKED)
    fleet.change(version="1.1.0", strategy=strategy)
    fleet.settle(until=lambda f: any(state == "Succeeded" for _, state, _ in f.entries(2)))
    fleet.agent_says = lambda _node, _revision: "Fail"
    fleet.settle()
    assert fleet.status.phase == "RolledBack"
    assert [why for _, _, why in fleet.entries(2)] == ["HealthTimeout"]


def test_an_outage_of_the_way_to_the_agents_opens_no_batch_again() -> None:
    strategy = {"type": "Canary", "canary": {"steps": [{"nodes": 1, "soakSeconds": 120}]}}
    fleet = installed(4, health=CHECKED)
    fleet.change(version="1.1.0", strategy=strategy)
    fleet.settle(until=lambda f: any(state == "Succeeded" for _, state, _ in f.entries(2)))
    fleet.agent_says = lambda _node, _revision: "Unknown"
    go_on(fleet, 100)
    assert [state for _, state, _ in fleet.entries(2)] == ["Succeeded"]


def test_agents_that_nodes_return_to_are_not_asked_what_was_written_for_the_new_version() -> None:
    fleet = installed(health=CHECKED)
    fleet.agent_says = lambda _node, _revision: "Fail"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "RolledBack"
    assert {state for _, state, _ in fleet.entries(3)} == {"Succeeded"}


def test_a_new_process_that_has_asked_nobody_yet_opens_no_batch_again() -> None:
    fleet = installed(health=CHECKED)
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: moved(f) == 6)
    fleet.observing_since = fleet.now
    for sim in fleet.nodes.values():
        for pod in sim.pods:
            pod.check = None
    fleet.execute(fleet.plan())
    assert {state for entry, state, _ in fleet.entries(2) if fleet.batches["agent-2-1"].spec.nodes.count(entry)} == {
        "Succeeded"
    }
    fleet.settle()
    assert fleet.status.phase == "Completed"


# --- analyses ---------------------------------------------------------------------------------


def test_analyses_that_pass_let_every_batch_go_and_the_run_complete() -> None:
    fleet = installed(analysis=[ERRORS, SMOKE])
    asked: list[tuple[str, str]] = []

    def note(batch: str, name: str) -> Any:
        asked.append((batch, name))
        return "Pass"

    fleet.analysis_says = note
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "Completed"
    assert {batch for batch, _ in asked} == {"agent-2-1", "agent-2-2", "agent-2-3"}, "after the last one, too"
    for name in ("agent-2-1", "agent-2-2", "agent-2-3"):
        recorded = {result.name: result.verdict for result in fleet.batches[name].status.analysis}
        assert recorded == {"errors": "Pass", "smoke": "Pass"}


def test_an_analysis_that_fails_takes_the_run_back() -> None:
    fleet = installed(analysis=[ERRORS])
    fleet.analysis_says = lambda _batch, _name: "Fail"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "RolledBack"
    assert fleet.assignments() == {"r-1.0.0": 9}
    assert len({entry.name for entry, _, _ in fleet.entries(2)}) == 3, "no batch but the first"
    assert reason(fleet, "RolledBack") == "AnalysisFailed"
    assert "analysis errors failed once after batch 1, forgiven are 0: it is as it is" in message(fleet)
    assert fleet.status.history[0].reason == "AnalysisFailed"


def test_an_analysis_that_fails_stops_the_run_with_on_failure_pause() -> None:
    fleet = installed(analysis=[ERRORS], onFailure="Pause")
    fleet.analysis_says = lambda _batch, _name: "Fail"
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "Stalled"
    assert reason(fleet) == reason(fleet, "Paused") == "AnalysisFailed"
    assert moved(fleet) == 3


def test_failed_answers_within_the_limit_are_forgiven_per_batch() -> None:
    fleet = installed(analysis=[{**ERRORS, "failureLimit": 1}])
    asked: list[str] = []

    def once_a_batch(batch: str, _name: str) -> Any:
        asked.append(batch)
        return "Fail" if asked.count(batch) == 1 else "Pass"

    fleet.analysis_says = once_a_batch
    fleet.change(version="1.1.0")
    fleet.settle()
    assert fleet.status.phase == "Completed"
    assert [r.failures for name in ("agent-2-1", "agent-2-2", "agent-2-3") for r in analysis_of(fleet, name)] == [1] * 3


def analysis_of(fleet: Fleet, batch: str) -> Any:
    return fleet.batches[batch].status.analysis


def test_what_cannot_be_told_neither_advances_nor_ends_the_run_and_stalls_in_the_end() -> None:
    fleet = installed(analysis=[ERRORS])
    fleet.analysis_says = lambda _batch, _name: "Unknown"
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: bool(f.answers))
    go_on(fleet, 50)
    assert fleet.status.phase == "Progressing"
    assert fleet.status.run is not None
    assert "batch 1 is healthy; analysis errors cannot tell yet" in fleet.status.run.message
    go_on(fleet, 600)
    assert moved(fleet) == 3
    assert reason(fleet) == reason(fleet, "Stalled") == "AnalysisInconclusive"
    assert "spec.analysis" in message(fleet)
    [known] = analysis_of(fleet, "agent-2-1")
    assert known.answers > 50, "it goes on asking"
    fleet.analysis_says = lambda _batch, _name: "Pass"
    fleet.settle()
    assert fleet.status.phase == "Completed"


def test_time_in_a_pause_is_not_held_against_an_analysis() -> None:
    fleet = installed(analysis=[ERRORS])
    fleet.analysis_says = lambda _batch, _name: "Unknown"
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: bool(f.answers))
    go_on(fleet, 20)
    fleet.change(paused=True)
    asked = fleet.answers["agent-2-1", "errors"].attempt
    fleet.execute(fleet.plan())
    fleet.tick(3600)
    go_on(fleet, 30)
    assert fleet.answers["agent-2-1", "errors"].attempt == asked, "nobody asks in a pause"
    fleet.change(paused=False)
    go_on(fleet, 20)
    assert fleet.status.phase == "Progressing"


def test_the_soak_is_used_for_asking_and_a_pass_from_before_it_is_not_enough() -> None:
    strategy = {"type": "Canary", "canary": {"steps": [{"nodes": 1, "soakSeconds": 100}]}}
    fleet = installed(4, analysis=[ERRORS])
    fleet.change(version="1.1.0", strategy=strategy)
    fleet.settle(until=lambda f: bool(f.answers))
    go_on(fleet, 80)
    assert fleet.answers["agent-2-1", "errors"].attempt >= 8
    fleet.analysis_says = lambda _batch, _name: "Fail"
    go_on(fleet, 12)
    assert fleet.status.run is not None
    assert fleet.status.run.kind == "Rollback", "it fails while the canary soaks"


def test_a_job_that_has_passed_is_not_run_again_for_the_same_batch() -> None:
    strategy = {"type": "Canary", "canary": {"steps": [{"nodes": 1, "soakSeconds": 100}]}}
    fleet = installed(4, analysis=[SMOKE])
    fleet.change(version="1.1.0", strategy=strategy)
    fleet.settle(until=lambda f: bool(f.answers))
    go_on(fleet, 90)
    assert fleet.answers["agent-2-1", "smoke"].attempt == 1


def test_ways_back_are_not_analysed() -> None:
    fleet = installed(analysis=[ERRORS])
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: moved(f) == 3)
    fleet.analysis_says = lambda _batch, _name: "Fail"
    fleet.change(version="1.0.0")
    fleet.settle()
    assert fleet.status.phase == "Completed"
    assert fleet.assignments() == {"r-1.0.0": 9}


def test_a_batch_whose_nodes_were_all_left_out_is_not_analysed() -> None:
    fleet = installed(3, analysis=[ERRORS])
    for name in fleet.nodes:
        fleet.set_ready(name, False)
    fleet.change(version="1.1.0")
    go_on(fleet, 20)
    assert fleet.answers == {}


def test_nodes_that_leave_are_not_analysed() -> None:
    fleet = installed(analysis=[ERRORS])
    for name in fleet.nodes:
        fleet.label(name, {"pool": "a"})
    fleet.change(version="1.1.0", target={"nodeSelector": {"matchLabels": {"pool": "a"}}})
    fleet.settle()
    asked = dict(fleet.answers)
    fleet.analysis_says = lambda _batch, _name: "Fail"
    fleet.label("node-003", {"pool": "b"})
    fleet.settle(until=lambda f: f.assignment("node-003") is None)
    fleet.settle()
    assert fleet.answers == asked
    assert fleet.status.phase == "Completed"


def test_an_answer_that_was_not_stored_is_given_again() -> None:
    fleet = installed(analysis=[ERRORS])
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: bool(f.answers))
    fleet.answers.clear()  # the process ended before it was stored
    fleet.settle()
    assert fleet.status.phase == "Completed"
    assert [r.answers for r in analysis_of(fleet, "agent-2-1")] == [1]


def test_no_answer_counts_twice() -> None:
    fleet = installed(analysis=[{**ERRORS, "failureLimit": 1}])
    fleet.analysis_says = lambda _batch, _name: "Fail"
    fleet.change(version="1.1.0")
    fleet.settle(until=lambda f: bool(f.answers))
    for _ in range(5):
        fleet.execute(fleet.plan())
    assert [r.failures for r in analysis_of(fleet, "agent-2-1")] == [1]


def test_an_analysis_that_is_added_or_removed_while_a_run_waits_counts_from_then_on() -> None:
    fleet = installed(analysis=[ERRORS])
    fleet.analysis_says = lambda _batch, _name: "Unknown"
    fleet.change(version="1.1.0")
    go_on(fleet, 60)
    fleet.change(analysis=[SMOKE])
    go_on(fleet, 5)
    assert [r.name for r in analysis_of(fleet, "agent-2-1")] == ["smoke"]
    fleet.change(analysis=[])
    fleet.settle()
    assert fleet.status.phase == "Completed"


# --- always -----------------------------------------------------------------------------------

ANALYSES = [{**ERRORS, "failureLimit": 1}, SMOKE]
STRATEGIES = [
    BATCHES,
    {"type": "Full"},
    {"type": "Canary", "canary": {"steps": [{"nodes": 1, "soakSeconds": 15}, {"nodes": 2}]}},
    {"type": "Canary", "canary": {"steps": [{"nodes": 1}]}, "rolling": {"maxUnavailable": 2}},
]


def live_through(fleet: Fleet, dice: Any, seconds: int) -> None:
    """Let time pass in which processes end in the middle of a plan, new ones know nothing, and people pause."""
    for _ in range(seconds):
        plan = fleet.plan()
        check_that_batches_wait(fleet, plan)
        match dice.randrange(30):
            case 0:
                fleet.execute(plan, crash_after=dice.randrange(len(plan.actions) + 2))
            case 1:
                fleet.answers.clear()
                fleet.observing_since = fleet.now
                for sim in fleet.nodes.values():
                    for pod in sim.pods:
                        pod.check = None
            case 2:
                fleet.change(paused=not fleet.spec.paused)
            case _:
                fleet.execute(plan)
        fleet.tick()


def check_that_batches_wait(fleet: Fleet, plan: Any) -> None:
    """No batch starts after one whose analyses have not all passed, as far as is stored or is stored with it."""
    new = [action for action in plan.actions if isinstance(action, CreateBatch)]
    records = dict(fleet.batches.items())
    written = {action.name: action.status for action in plan.actions if hasattr(action, "urgent")}
    for action in new:
        before = [
            batch
            for batch in records.values()
            if (batch.spec.run, batch.spec.batch, batch.spec.page) == (action.spec.run, action.spec.batch - 1, 1)
        ]
        for batch in before:
            status = written.get(batch.name, batch.status)
            rolling = fleet.spec.strategy.rolling
            in_window = not batch.spec.step and rolling is not None and rolling.max_unavailable is not None
            skipped = all(result.state == "Skipped" for result in status.nodes)
            if batch.spec.kind == "Rollback" or in_window or skipped or not fleet.spec.analysis:
                continue
            assert {result.name: result.verdict for result in status.analysis} == {"errors": "Pass", "smoke": "Pass"}


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(strategy=st.sampled_from(STRATEGIES), dice=st.randoms(use_true_random=False))
def test_what_cannot_be_told_never_ends_a_run_and_never_condemns_a_node(strategy: Any, dice: Any) -> None:
    fleet = Fleet(6, make_spec(strategy={"type": "Full"}))
    fleet.settle()
    fleet.change(strategy=strategy, health=CHECKED, analysis=ANALYSES, version="1.1.0")
    clear = False
    fleet.agent_says = lambda _node, _revision: "Pass" if clear or dice.random() < 0.5 else "Unknown"
    fleet.analysis_says = lambda _batch, _name: "Pass" if clear or dice.random() < 0.5 else "Unknown"
    live_through(fleet, dice, 150)
    clear = True
    fleet.change(paused=False)
    fleet.settle(limit=2000)
    assert fleet.status.phase == "Completed"
    assert fleet.assignments() == {"r-1.1.0": 6}
    assert fleet.status.run is not None
    assert (fleet.status.run.id, fleet.status.run.failed) == (2, 0)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(strategy=st.sampled_from(STRATEGIES), dice=st.randoms(use_true_random=False))
def test_whatever_is_answered_a_run_comes_to_an_end_and_no_batch_comes_too_early(strategy: Any, dice: Any) -> None:
    fleet = Fleet(6, make_spec(strategy={"type": "Full"}))
    fleet.settle()
    fleet.change(strategy=strategy, health=CHECKED, analysis=ANALYSES, version="1.1.0")
    fleet.agent_says = lambda _node, _revision: dice.choice(["Pass", "Pass", "Pass", "Fail", "Unknown"])
    fleet.analysis_says = lambda _batch, _name: dice.choice(["Pass", "Pass", "Pass", "Fail", "Unknown"])
    live_through(fleet, dice, 150)
    fleet.agent_says = fleet.analysis_says = lambda _about, _what: "Pass"
    fleet.change(paused=False)
    fleet.settle(limit=2000)
    assert fleet.status.phase in {"Completed", "RolledBack"}
    assert len(fleet.assignments()) == 1
