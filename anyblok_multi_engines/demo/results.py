# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What was measured, and what must be true of it: values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .application import Step

SERVERS = ("primary", "replica1", "replica2")

# The situations, in the order of the story.
ALL_UP = "all up"
ONE_UNIT = "read-write-read"
PAUSED = "replica1 paused"
KILLED = "replica2 killed"
BACK = "replica2 back"


@dataclass
class Row:
    """Who served one kind of work in one situation

    :param situation: of the servers, or of the unit of work
    :param work: what was done, in the plural
    :param served: number of statements, by the server that ran them
    :param old: number of reads that missed books, by the server
    :param errors: messages of the units of work that failed
    """

    situation: str
    work: str
    served: Counter[str] = field(default_factory=Counter)
    old: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @property
    def times(self) -> int:
        """Return how often it was done"""
        return self.served.total() + len(self.errors)

    def add(self, step: Step, names: Mapping[int, str], fresh: int) -> None:
        """Count a step of the application

        :param step: what its server said
        :param names: of the servers, by port
        :param fresh: number of books that were committed before a read
        """
        if "error" in step:
            self.errors.append(step["error"])
            return

        server = names.get(step["port"], f"port {step['port']}")
        self.served[server] += 1
        if step.get("books", fresh) < fresh:
            self.old[server] += 1

    def served_by(self, *servers: str) -> bool:
        """Return True where these did everything, each of them some

        :param servers: their names
        """
        done = {name for name, number in self.served.items() if number}
        return not self.errors and done == set(servers)


@dataclass
class Results:
    """Everything that was measured

    :param rows: in the order in which they were measured
    :param warnings: what our package has logged in the application
    """

    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def row(self, situation: str, work: str) -> Row:
        """Return a row, made where there is none

        :param situation: of the row
        :param work: of the row
        """
        for row in self.rows:
            if (row.situation, row.work) == (situation, work):
                return row

        self.rows.append(Row(situation, work))
        return self.rows[-1]


@dataclass(frozen=True)
class Fact:
    """A sentence about the results, and whether they bear it out

    :param text: the sentence
    :param holds: False: the plugin, or this demonstration, has a bug
    """

    text: str
    holds: bool


def facts(results: Results) -> Iterator[Fact]:
    """Yield what the results must show

    :param results: of the whole story
    """
    yield from _on_the_primary(results)
    yield from _on_the_replicas(results)
    yield from _while_paused(results)
    yield from _while_killed(results)
    yield Fact(
        f"None of these {sum(row.times for row in results.rows)} failed.",
        not any(row.errors for row in results.rows),
    )


def _on_the_primary(results: Results) -> Iterator[Fact]:
    writes = [row for row in results.rows if row.work == "writes"]
    number = sum(row.times for row in writes)
    yield Fact(
        f"All {number} writes ran on the primary.",
        all(row.served_by("primary") for row in writes),
    )
    after = results.row(ONE_UNIT, "reads after it")
    yield Fact(
        f"So did the {after.times} reads after a write in the same unit of "
        "work: each saw what it had just written.",
        after.served_by("primary") and not after.old.total(),
    )


def _on_the_replicas(results: Results) -> Iterator[Fact]:
    reading = [row for row in results.rows if row.work == "reads"]
    yield Fact(
        f"None of the other {sum(row.times for row in reading)} reads did.",
        not any(row.served["primary"] for row in reading),
    )
    reads = results.row(ALL_UP, "reads")
    yield Fact(
        f"The replicas shared the {reads.times} reads while all were up.",
        reads.served_by("replica1", "replica2") and not reads.old.total(),
    )


def _while_paused(results: Results) -> Iterator[Fact]:
    reads = results.row(PAUSED, "reads")
    yield Fact(
        "While replica1 was paused, it hadn't what had just been written: "
        f"replica2 served all {reads.times} reads, and none was old.",
        reads.served_by("replica2") and not reads.old.total(),
    )


def _while_killed(results: Results) -> Iterator[Fact]:
    reads = results.row(KILLED, "reads")
    yield Fact(
        f"When replica2 was killed, replica1 served all {reads.times} reads.",
        reads.served_by("replica1") and not reads.old.total(),
    )
    warned = [line for line in results.warnings if "WARNING" in line]
    yield Fact(
        "The log said so once, as a WARNING.",
        len(warned) == 1 and "replica2" in warned[0],
    )
    yield Fact(
        "When replica2 was back, it took reads again.",
        results.row(BACK, "reads").served_by("replica1", "replica2"),
    )
