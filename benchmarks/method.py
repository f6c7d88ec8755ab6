# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""How it is measured: in turns, in one run, as ratios with their spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, quantiles
from typing import Any

#: A contender does so many units of work, and returns the seconds of each.
Work = Callable[[int], Sequence[float]]

#: What a quick run still lets pass: 25% worse than the bar, see ``judged``.
SLACK = 1.25


@dataclass(frozen=True)
class Sample:
    """What one contender took, or did

    :param name: of the contender
    :param median: of all rounds
    :param p99: of all rounds; None: there is none
    :param unit: "s" is shown as ms or us; any other as it is
    """

    name: str
    median: float
    p99: float | None = None
    unit: str = "s"


@dataclass(frozen=True)
class Row:
    """One line of the results

    :param key: in the JSON and on the command line, "select-open"
    :param what: for a person
    :param value: what the bar is for: a ratio, microseconds, a share...
    :param unit: of the value; "" for a ratio or a count
    :param bar: the value must not be worse; None: it is only shown
    :param better: "lower" or "higher"
    :param low: the lowest of the rounds
    :param high: the highest of the rounds
    :param samples: of the contenders
    :param note: what else there is to say
    """

    key: str
    what: str
    value: float
    unit: str = ""
    bar: float | None = None
    better: str = "lower"
    low: float | None = None
    high: float | None = None
    samples: Sequence[Sample] = ()
    note: str = ""

    def passes(self, slack: float = 1.0) -> bool:
        """Return True where the value isn't worse than the bar

        :param slack: 1.25: up to 25% worse will do
        """
        if self.bar is None:
            return True

        if self.better == "lower":
            return self.value <= self.bar * slack

        return self.value >= self.bar / slack


@dataclass(frozen=True)
class Curve:
    """How something grows; one line for each contender

    :param key: in the JSON, and the name of the picture
    :param what: for a person
    :param x: what grows, for the axis
    :param y: what is measured, for the axis
    :param lines: points (x, y) by contender
    :param log: the axes that are logarithmic, "x", "y", "xy" or ""
    """

    key: str
    what: str
    x: str
    y: str
    lines: Mapping[str, Sequence[Sequence[float]]]
    log: str = "x"


@dataclass(frozen=True)
class LeftOut:
    """A contender that isn't there

    :param name: of the contender
    :param why: for a person
    """

    name: str
    why: str


Result = Row | Curve | LeftOut


@dataclass(frozen=True)
class Plan:
    """How much is done

    :param size: units of work of a contender, one after the other
    :param turns: of each contender in a round
    :param rounds: each gives a ratio
    """

    size: int
    turns: int = 5
    rounds: int = 5


@dataclass
class Measured:
    """What contenders took in the rounds of one run"""

    rounds: list[dict[str, list[float]]] = field(default_factory=list)

    def sample(self, name: str) -> Sample:
        """Return the median and the p99 of a contender

        :param name: of the contender
        """
        taken = [x for one in self.rounds for x in one[name]]
        p99 = quantiles(taken, n=100)[98] if len(taken) > 100 else None
        return Sample(name, median(taken), p99)

    def ratios(self, name: str, other: str) -> list[float]:
        """Return the ratio of two contenders' medians, of each round"""
        return [median(x[name]) / median(x[other]) for x in self.rounds]

    def row(
        self, key: str, what: str, names: tuple[str, str], **more: Any
    ) -> Row:
        """Return the row of a ratio

        :param key: of the row
        :param what: for a person
        :param names: the contender that is judged, and the other one
        :param more: of the row, ``bar`` for example
        """
        found = self.ratios(*names)
        return Row(
            key,
            what,
            median(found),
            low=min(found),
            high=max(found),
            samples=[self.sample(name) for name in self.rounds[0]],
            **more,
        )


def in_turns(contenders: Mapping[str, Work], plan: Plan) -> Measured:
    """Let contenders work in turns: A B, B A, A B...

    Each has warmed up before the first round.

    :param contenders: by name
    :param plan: how much they do
    """
    for work in contenders.values():
        work(plan.size)

    measured = Measured()
    names = list(contenders)
    for _ in range(plan.rounds):
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(plan.turns):
            for name in names:
                taken[name] += contenders[name](plan.size)

            # Neither is always the first.
            names.reverse()

        measured.rounds.append(taken)

    return measured


def missed(rows: Sequence[Row], slack: float = 1.0) -> list[Row]:
    """Return the rows that are worse than their bars

    :param rows: that were measured
    :param slack: 1.25: up to 25% worse will do
    """
    return [row for row in rows if not row.passes(slack)]


def judged(rows: Iterable[Row], published: Mapping[str, Row]) -> list[Row]:
    """Return the rows with the bars that a change is judged by

    What is known to miss its bar blocks no change, but must not get worse: its
    bar is then the published value.

    :param rows: that were measured
    :param published: rows of the report, by their keys
    """
    found = []
    for row in rows:
        known = published.get(row.key)
        if known is not None and missed([replace(known, bar=row.bar)]):
            row = replace(row, bar=known.value)

        found.append(row)

    return found
