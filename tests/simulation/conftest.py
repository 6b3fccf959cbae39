"""What the simulated rollouts counted is printed at the end of the run."""

import pytest

from simulation.invariants import INVARIANTS
from simulation.trial import Tally

TALLY = pytest.StashKey[Tally]()


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    """What all trials of this run did together."""
    return pytestconfig.stash[TALLY]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash[TALLY]
    if not tally.runs:
        return
    terminalreporter.section("simulated rollouts")
    for line in tally.lines(len(INVARIANTS)):
        terminalreporter.write_line(line)
