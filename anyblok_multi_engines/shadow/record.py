# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the shadow mode has seen: sums, without the values of any statement."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..routing.decision import Reason

# Of the JSON: another number where a name goes, or means something else.
VERSION = 1

# Rows of a table; what comes after them is one row.
MAX_ROWS = 500
OTHERS = "others"

# Characters of a statement that are kept.
MAX_LENGTH = 300

# In a reason: a piece of the statement, or what an error says of its values.
QUOTED = re.compile(
    r"(?<=can't be parsed): near .*|(?<=can't be read) from .*"
    r"|(?<=can't be compiled: )(?P<kept>\w+): .*"
    r"|^(?:[^A-Za-z_]|[A-Za-z&]+').*(?= is not a SELECT)",
    re.DOTALL,
)

# Where a statement would have gone.
REPLICA, PRIMARY, NOWHERE = "replica", "primary", "nowhere"

# What it is: proven to be a plain read, or not.
READ, OTHER = "read", "other"

# And a unit of work, beside one of these: begun on a replica, and moved.
MOVED = "moved"

# Seconds since a session's last write, the last without an end.
AGES = (0.01, 0.1, 1.0, 10.0)


class ShadowOptions(NamedTuple):
    """What the options say of the shadow mode

    :param directory: of the processes' files
    """

    directory: Path


class Table(dict[tuple[str, ...], list[int]]):
    """Sums by what they are of; past some rows, of ``others``"""

    def add(self, key: tuple[str, ...], *numbers: int) -> None:
        """Add to the sums of one row

        :param key: what they are of
        :param numbers: as many as in every row
        """
        row = self.get(key)
        if row is None:
            if len(self) >= MAX_ROWS:
                key = (OTHERS,) * len(key)

            row = self.setdefault(key, [0] * len(numbers))

        for index, number in enumerate(numbers):
            row[index] += number

    def add_all(self, other: Table) -> None:
        """Add every row of another table

        :param other: of the same columns
        """
        for key, numbers in other.items():
            self.add(key, *numbers)

    def total(self, *begins: str) -> int:
        """Return the sum of the rows' first numbers

        :param begins: with what their keys begin
        """
        return sum(
            numbers[0]
            for key, numbers in self.items()
            if key[: len(begins)] == begins
        )

    def sorted(self, *columns: int) -> list[tuple[tuple[str, ...], list[int]]]:
        """Return the rows, the most first

        :param columns: the numbers that they are sorted by
        """

        def most(row: tuple[tuple[str, ...], list[int]]) -> Any:
            key, numbers = row
            return [-numbers[column] for column in columns], key

        return sorted(self.items(), key=most)


@dataclass
class Record:
    """What the shadow mode has seen, of one process or of several

    :param database: its name
    :param replicas: their names; none: one was assumed, never down nor behind
    :param since: the beginning, in seconds since 1970
    :param until: the end
    :param processes: how many
    :param units: of work: where they would have gone
    :param statements: where, and why; and if they are proven reads
    :param writers: what a unit of work does that reads otherwise, and the line
        of the code: units of work, and their reads that stay on the primary
        for it
    :param unproven: statements that aren't proven to be reads: what they are,
        why, their text and the line
    :param ages: of a session's last write, where it reads next: units of work
        by the end of their range, in seconds
    :param fresher: units of work for which each replica was too far behind
    :param unjudged: units of work that came before the catalogue was read
    """

    database: str
    replicas: tuple[str, ...] = ()
    since: float = 0.0
    until: float = 0.0
    processes: int = 1
    units: Table = field(default_factory=Table)
    statements: Table = field(default_factory=Table)
    writers: Table = field(default_factory=Table)
    unproven: Table = field(default_factory=Table)
    ages: Table = field(default_factory=Table)
    fresher: int = 0
    unjudged: int = 0

    @property
    def reads(self) -> int:
        """Return how many plain reads there were"""
        return self.statements.total(REPLICA) + sum(
            numbers[0]
            for (where, _, kind), numbers in self.statements.items()
            if where != REPLICA and kind == READ
        )

    @property
    def share(self) -> float | None:
        """Return the share of the reads that replicas would take; None: no"""
        reads = self.reads
        return self.statements.total(REPLICA) / reads if reads else None

    @property
    def errors(self) -> int:
        """Return how many statements would have been an error"""
        return self.statements.total(NOWHERE)

    def __str__(self) -> str:
        """Return the summary, for a person"""
        return "\n".join(self.summary())

    def summary(self) -> Iterator[str]:
        """Yield what there is to say in a sentence, for a person"""
        share = "no" if self.share is None else f"{self.share:.1%}"
        units, total = self.units, self.units.total()
        yield f"reads: {self.reads}, of which replicas would take {share}"
        yield (
            f"units of work: {total}; {units.total(REPLICA)} on replicas, "
            f"{units.total(MOVED)} begun there and moved to the primary, "
            f"{units.total(PRIMARY)} on the primary"
        )
        if self.errors:
            yield f"statements that would have been an error: {self.errors}"

        if self.unjudged:
            yield (
                f"units of work before the catalogue was read: {self.unjudged}"
            )

        if self.replicas:
            yield (
                "units of work for which each replica was too far behind, as "
                f"the monitor has measured: {self.fresher}"
            )
        else:
            yield "assumed: one replica, never down and never behind"

    def add(self, other: Record) -> None:
        """Add what another process has seen

        :param other: of the same database
        """
        self.since = min(self.since, other.since)
        self.until = max(self.until, other.until)
        self.replicas = max(self.replicas, other.replicas, key=len)
        for name in ("processes", "fresher", "unjudged"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

        for name in TABLES:
            getattr(self, name).add_all(getattr(other, name))

    def as_json(self) -> dict[str, Any]:
        """Return what is in a file, and what ``--json`` prints"""
        found: dict[str, Any] = {"version": VERSION}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Table):
                value = [[*key, *numbers] for key, numbers in value.items()]

            found[each.name] = value

        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Return what a file has

        :param found: of :meth:`as_json`
        :exception: ValueError, LookupError, TypeError: it is none
        """
        if found["version"] != VERSION:
            raise ValueError(f"version {found['version']}")

        values = {each.name: found[each.name] for each in fields(cls)}
        values["replicas"] = tuple(values["replicas"])
        for name, width in TABLES.items():
            values[name] = Table(
                (tuple(map(str, row[:width])), list(map(int, row[width:])))
                for row in values[name]
            )

        return cls(**values)


# The tables of a record, with the number of columns that aren't numbers.
TABLES = {"units": 1, "statements": 3, "writers": 2, "unproven": 4, "ages": 1}


class Unit:
    """What would have become of one unit of work: ``Shadow`` notes it"""

    __slots__ = (
        "again",
        "age",
        "asides",
        "fell_back",
        "flush",
        "is_judged",
        "needs_fresher",
        "place",
        "placement",
        "settled",
        "statements",
        "unproven",
        "writers",
    )

    def __init__(self, placement: Any) -> None:
        #: where it would have been placed
        self.placement = placement
        #: the servers' health for which that holds, of plain reads
        self.settled: Any = None
        #: plain reads since then
        self.again = 0
        #: reads on the primary that wouldn't have been a part of it
        self.asides = 0
        self.statements: dict[tuple[str, str, str], int] = {}
        self.unproven: Table | None = None
        #: what writes or may write, and where it is asked for
        self.writers: Table | None = None
        #: SQLAlchemy's transaction of a flush, and where it was asked for
        self.flush: Any = None
        self.place = ""
        #: seconds since its session's last write, when it began to read
        self.age: float | None = None
        self.needs_fresher = False
        self.fell_back = False
        #: False where the catalogue wasn't there yet
        self.is_judged = True

    def count(self, where: str, reason: str, kind: str, number: int) -> None:
        """Count statements

        :param where: they would have gone
        :param reason: why
        :param kind: what they are
        :param number: how many
        """
        key = (where, reason, kind)
        self.statements[key] = self.statements.get(key, 0) + number

    def count_again(self) -> None:
        """Count what went where the reads before it went"""
        if self.again:
            on_primary = self.placement.on_primary
            where = PRIMARY if on_primary else REPLICA
            reason = (
                Reason.ALREADY_ON_PRIMARY
                if on_primary
                else Reason.ALREADY_ON_REPLICA
            )
            self.count(where, reason.value, READ, self.again)
            self.again = 0

    def note_writer(self, what: str, place: str) -> None:
        """Note what writes or may write

        :param what: the model, or what the statement is
        :param place: the line that asks for it
        """
        if self.writers is None:
            self.writers = Table()

        self.writers.add((what, place))

    def add_to(self, record: Record) -> None:
        """Add it to a record, at its end

        :param record: of its process
        """
        if not self.is_judged:
            record.unjudged += 1
            return

        self.count_again()
        if self.asides:
            key = (PRIMARY, Reason.CALLER_WANTS_PRIMARY.value, READ)
            record.statements.add(key, self.asides)

        if not self.statements:
            return

        where = {key[0] for key in self.statements}
        if REPLICA in where:
            kind = MOVED if PRIMARY in where else REPLICA
        else:
            kind = PRIMARY

        record.units.add((kind,), 1)
        for key, number in self.statements.items():
            record.statements.add(key, number)

        if self.unproven is not None:
            record.unproven.add_all(self.unproven)

        record.fresher += self.needs_fresher
        if self.age is not None:
            record.ages.add((range_of(self.age),), 1)

        self._add_writers(record)

    def _add_writers(self, record: Record) -> None:
        """Add what alone has a unit of work write that reads otherwise"""
        writers = self.writers or ()
        if len({place for _, place in writers}) != 1:
            return

        if not any(kind == READ for _, _, kind in self.statements):
            return

        stay = (PRIMARY, Reason.ALREADY_ON_PRIMARY.value, READ)
        for key in writers:
            record.writers.add(key, 1, self.statements.get(stay, 0))


def range_of(age: float) -> str:
    """Return the end of the range of an age

    :param age: seconds
    """
    return next((f"{end:g}" for end in AGES if age < end), "")


def without_values(sql: str) -> str:
    """Return a statement without what an application has written into it

    :param sql: of a statement, whose parameters are left out already
    """
    # Not at the start, for which sqlglot takes a tenth of a second.
    from ..routing.sql import Unreadable, tokens_of

    try:
        words = [
            "?" if kind in ("string", "number") else text
            for kind, text in islice(tokens_of(sql), MAX_LENGTH)
        ]
    except Unreadable:
        return "a text that can't be read"

    found = " ".join(words)
    for mark in (". ", " .", " ,", "( ", " )", " ::", ":: "):
        found = found.replace(mark, mark.strip())

    if len(found) > MAX_LENGTH:
        found = f"{found[: MAX_LENGTH - 3]}..."

    return found


def reason_without_values(because: str) -> str:
    """Return why a statement is no read, without a piece of its text

    :param because: of a need
    """

    def kept(found: re.Match[str]) -> str:
        return found["kept"] or ("" if found.start() else "a value")

    return QUOTED.sub(kept, because)
