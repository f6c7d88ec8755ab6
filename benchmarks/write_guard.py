# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What --db-ro-write-guard costs: ``make bench-write-guard``.

``--durable``: on a disk, with the settings of a real server.

A unit of work reads objects from a replica, changes them and commits. Two
registries do it on one database, with ``check`` and with ``off``, in turns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any

from anyblok import load_init_function_from_entry_points
from anyblok.blok import BlokManager
from anyblok.config import Configuration
from rich.console import Console
from rich.table import Table

from anyblok_multi_engines.registry import RegistryMultiEngines
from anyblok_multi_engines.testing import Cluster

DATABASE = "bench"
GUARDS = ("check", "off")

# Objects of a unit of work, and units of work of each registry in a round.
SIZES = {1: 300, 100: 20}
ROUNDS = 5
WARM_UP = 10

# A row is changed once: no unit of work waits for a replica to replay another.
ROWS = sum(
    size * len(GUARDS) * (ROUNDS * units + WARM_UP + 3)
    for size, units in SIZES.items()
)


class Bench:
    """Two registries on one database, and rows that nobody has changed

    :param cluster: a primary and a replica
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        cluster.create_database(DATABASE)
        self.registries = {guard: self._registry(guard) for guard in GUARDS}
        cluster.primary.execute(
            "insert into book (title, copies) "
            f"select 'a title', 0 from generate_series(1, {ROWS})",
            database=DATABASE,
        )
        cluster.primary.execute("vacuum analyze book", database=DATABASE)
        cluster.wait_for_replay()
        self._ids = count(1)

    def close(self) -> None:
        """Close the registries"""
        for registry in self.registries.values():
            registry.close()

    def seconds(self, guard: str, size: int) -> float:
        """Return what a unit of work takes, from its first read to its commit

        :param guard: of the registry
        :param size: how many objects it reads and changes
        """
        registry = self.registries[guard]
        Book = registry.Book
        ids = [next(self._ids) for _ in range(size)]
        start = perf_counter()
        for book in Book.query().filter(Book.id.in_(ids)).all():
            book.copies += 1

        registry.commit()
        return perf_counter() - start

    def statements(self, guard: str, size: int) -> int:
        """Return how many statements of a unit of work the primary logs

        :param guard: of the registry
        :param size: how many objects it reads and changes
        """
        primary = self._cluster.primary
        self._log("all")
        self.registries[guard].engine_of("primary").dispose()
        # A new connection asks for a few things of its own.
        self.seconds(guard, size)
        start = primary.log_size
        self.seconds(guard, size)
        found = primary.log(start).count("statement: ")
        self._log("none")
        self.registries[guard].engine_of("primary").dispose()
        self.seconds(guard, size)
        return found

    def _log(self, which: str) -> None:
        self._cluster.primary.execute(
            f"alter database {DATABASE} set log_statement = '{which}'"
        )

    def _registry(self, guard: str) -> Any:
        Configuration.update(
            db_url=None,
            db_name=DATABASE,
            db_wo_url=self._cluster.primary.url(DATABASE),
            db_ro_urls=[x.url(DATABASE) for x in self._cluster.replicas],
            db_ro_write_guard=guard,
        )
        registry = RegistryMultiEngines(DATABASE)
        if not registry.has("Model.Book"):
            registry.upgrade(install=["test-me-blok4"])

        registry.commit()
        return registry


def ratios(bench: Bench, size: int) -> Iterator[tuple[float, float, float]]:
    """Give of each round the two medians, and their ratio

    :param bench: with its registries
    :param size: how many objects a unit of work reads and changes
    """
    for _ in range(WARM_UP):
        for guard in GUARDS:
            bench.seconds(guard, size)

    for _ in range(ROUNDS):
        taken: dict[str, list[float]] = {guard: [] for guard in GUARDS}
        for number in range(SIZES[size]):
            # Neither is always the first.
            for guard in GUARDS if number % 2 else reversed(GUARDS):
                taken[guard].append(bench.seconds(guard, size))

        check, off = (median(taken[guard]) for guard in GUARDS)
        yield check, off, check / off


def table(bench: Bench) -> Table:
    """Return what was measured

    :param bench: with its registries
    """
    result = Table(
        title="A unit of work that reads objects from a replica, changes them "
        f"and commits ({ROUNDS} rounds)"
    )
    result.add_column("objects", justify="right")
    for guard in GUARDS:
        result.add_column(f"{guard}, ms", justify="right")

    result.add_column("ratio", justify="right")
    result.add_column("ratio of each round", justify="right")
    result.add_column("statements on the primary", justify="right")
    for size in SIZES:
        checks, offs, found = zip(*ratios(bench, size), strict=True)
        numbers = [str(bench.statements(guard, size)) for guard in GUARDS]
        result.add_row(
            str(size),
            f"{1000 * median(checks):.2f}",
            f"{1000 * median(offs):.2f}",
            f"{median(found):.2f}",
            f"{min(found):.2f} to {max(found):.2f}",
            " / ".join(numbers),
        )

    return result


def main() -> None:
    """Measure on a cluster of its own, and print a table"""
    durable = "--durable" in sys.argv
    # AnyBlok reads the command line too.
    sys.argv = sys.argv[:1]
    load_init_function_from_entry_points(unittest=True)
    Configuration.load_config_for_test()
    BlokManager.load(entry_points=("bloks", "test_bloks"))
    with Cluster(replicas=1, durable=durable) as cluster:
        bench = Bench(cluster)
        try:
            Console(width=100).print(table(bench))
        finally:
            bench.close()


if __name__ == "__main__":
    main()
