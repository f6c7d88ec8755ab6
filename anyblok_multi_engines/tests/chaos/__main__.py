# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Run it for as long as asked: ``make chaos SECONDS=120 SEED=7``.

Exit status: 0 when every bar was met, and the usual recipe has missed some.
"""

import argparse
import sys
from pathlib import Path
from random import randrange

from .naive import Recipe
from .run import Run, chaos

#: What the recipe is shown: one fault of each sort is enough.
SHORT = ("pause replay", "stop fast", "stop immediate", "refuse")
SHORT_SECONDS = 8.0


def main() -> int:
    """Run ours and the recipe, print and write what they show

    :rtype: the exit status
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", default=str(randrange(10**6)))
    parser.add_argument(
        "--report",
        type=Path,
        default=Path("build/chaos"),
        help="directory of the texts and the pictures",
    )
    parser.add_argument("--driver", default="postgresql+psycopg2")
    arguments = parser.parse_args()
    seed, driver = arguments.seed, arguments.driver
    runs = {
        "chaos": Run(arguments.seconds, seed, driver),
        "recipe": Run(SHORT_SECONDS, seed, driver, SHORT, Recipe),
    }
    missed = {}
    for name, run in runs.items():
        result = chaos(run)
        missed[name] = result.missed
        print(f"{name}: {result}\n\nmissed: {result.missed or 'nothing'}")
        print(*result.write(arguments.report, name), "\n", flush=True)

    return int(bool(missed["chaos"]) or not missed["recipe"])


if __name__ == "__main__":
    sys.exit(main())
