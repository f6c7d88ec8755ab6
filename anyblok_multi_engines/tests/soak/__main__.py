# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Run it for as long as asked: ``make soak SECONDS=600 SEED=7``.

Exit status: 0 when every promise was kept, else 1. With ``--broken``, routers
that are broken on purpose: 0 when each of them was found to be.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from random import randrange
from typing import Any

from ...testing import Cluster
from ..processes import registry_of
from .broken import BROKEN
from .run import Outcome, soak

DATABASE = "soak"

#: Seconds of a round: what it has recorded is then checked and forgotten.
ROUND = 60.0


def main() -> int:
    """Run rounds of each consistency, and print what they show

    :rtype: the exit status
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=randrange(10**6))
    parser.add_argument(
        "--consistency",
        nargs="+",
        default=["session", "strong", "registry"],
        help="values of --db-ro-consistency, one after the other",
    )
    parser.add_argument(
        "--broken",
        action="store_true",
        help="routers that are broken on purpose, each for its share of the "
        "time",
    )
    arguments = parser.parse_args()
    with Cluster(replicas=2) as cluster:
        options = prepared(cluster)
        run = broken if arguments.broken else promised
        return 0 if all([*run(cluster, options, arguments)]) else 1


def promised(
    cluster: Cluster, options: dict[str, Any], arguments: argparse.Namespace
) -> Iterator[bool]:
    """Run round after round; give of each if its promise was kept

    :param cluster: with the database
    :param options: of the registries
    :param arguments: of the command line
    """
    until = time.monotonic() + arguments.seconds
    for number, consistency in enumerate(cycle(arguments.consistency)):
        seconds = min(ROUND, until - time.monotonic())
        if seconds <= 0.0:
            return

        seed = f"{arguments.seed}-{number}"
        outcome = soak(cluster, options, consistency, seconds, seed)
        yield show(outcome)


def broken(
    cluster: Cluster, options: dict[str, Any], arguments: argparse.Namespace
) -> Iterator[bool]:
    """Run each router that is broken; give of each if that was found

    :param cluster: with the database
    :param options: of the registries
    :param arguments: of the command line
    """
    seconds = arguments.seconds / len(BROKEN)
    for number, (spoil, consistency) in enumerate(BROKEN.items()):
        seed = f"{arguments.seed}-{number}"
        outcome = soak(cluster, options, consistency, seconds, seed, spoil)
        print(f"A router that {spoil.__name__.replace('_', ' ')}:")
        yield not show(outcome)


def prepared(cluster: Cluster) -> dict[str, Any]:
    """Make the database; return the options of its registries

    :param cluster: where
    """
    cluster.create_database(DATABASE)
    options = {
        "db_name": DATABASE,
        "db_url": None,
        "db_wo_url": cluster.primary.url(DATABASE),
        "db_ro_urls": [x.url(DATABASE) for x in cluster.replicas],
    }
    registry = registry_of(options)
    registry.upgrade(install=["test-me-blok4"])
    registry.commit()
    registry.close()
    cluster.wait_for_replay()
    return options


def show(outcome: Outcome) -> bool:
    """Print what a round has shown; return True where it is good

    :param outcome: of the round
    """
    found = outcome.violations()
    print(outcome, flush=True)
    for line in [*outcome.failed[:5], *found[:3]]:
        print(line)

    return not found and not outcome.failed and outcome.from_replicas > 0.3


if __name__ == "__main__":
    sys.exit(main())
