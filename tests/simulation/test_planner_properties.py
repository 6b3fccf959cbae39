"""What must hold in every rollout: more than 10,000 simulated ones, under everything that can go wrong.

The invariants have names: `simulation.invariants.INVARIANTS`. Each is checked at every moment of every trial.
"""

import json
import os
import subprocess
import sys

from simulation.invariants import INVARIANTS
from simulation.trial import Tally

RUNS = 10_000
"""So many runs are started at least, rollbacks included."""


def test_every_invariant_holds_in_ten_thousand_rollouts(tally: Tally) -> None:
    workers = max(1, min(4, os.cpu_count() or 1))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "simulation.trials", str(worker), str(workers), str(-(-RUNS // workers))],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for worker in range(workers)
    ]
    answers = [json.loads(process.communicate()[0]) for process in processes]
    problems = [problem for answer in answers if (problem := answer.pop("problem"))]
    for answer in answers:
        tally.add(Tally(**answer))
    assert not problems, "\n\n".join(problems)
    assert tally.runs >= RUNS


def test_each_invariant_has_a_name_and_a_sentence_of_its_own() -> None:
    assert len({each.name for each in INVARIANTS}) == len(INVARIANTS)
    assert len({each.sentence for each in INVARIANTS}) == len(INVARIANTS)
    assert all(each.name.isalnum() and each.sentence.endswith(".") for each in INVARIANTS)
