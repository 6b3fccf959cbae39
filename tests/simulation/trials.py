"""Many trials in a process of its own: `python -m simulation.trials FIRST STEP RUNS` prints what came of them, as JSON.

Trials FIRST, FIRST + STEP, … are lived through until they have started RUNS runs; the first violation ends it.
"""

import json
import sys
from dataclasses import asdict

from simulation.trial import Tally, Trial


def main() -> None:
    """Live trials through until there were enough runs."""
    number, step, runs = (int(argument) for argument in sys.argv[1:4])
    tally, problem = Tally(), ""
    while tally.runs < runs and not problem:
        try:
            Trial(number, tally).run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the number says how to see it again
            problem = f"trial {number}: {type(error).__name__}: {error}"
        number += step
    print(json.dumps(asdict(tally) | {"problem": problem}))  # noqa: T201 - read by whoever started it


if __name__ == "__main__":
    main()
