# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What an application's tests have shown of it, and how it is told: values."""

from __future__ import annotations

import linecache
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

# Of a line that its author has looked at.
ACCEPTED = "# anyblok-replicas: ok"

# So much of a statement, or of a value, is shown.
WIDTH = 160


class Kind(StrEnum):
    """What would happen to a line in production"""

    RAISES = "ReplicaWriteError"
    WRITES = "a write that is taken for a read"
    LATE = "a late read"
    DECIDES = "a write after a late read"
    ANSWERED = "a test that fails on a late read"


# What to do about it.
ADVICE = {
    Kind.RAISES: (
        "Take the write out of use_replicas(), or put both under use_primary()."
    ),
    Kind.WRITES: (
        "A replica refuses it. Name the function in --db-wo-functions, leave "
        "it out of --db-ro-functions, or put the call under use_primary()."
    ),
    Kind.LATE: (
        "It may miss what was committed a moment before. Read after the "
        "writer's token (registry.read_after()), under use_primary(), or with "
        "--db-ro-consistency session."
    ),
    Kind.DECIDES: (
        "It decides on rows that somebody may just have changed. Put the read "
        "and the write under use_primary(), or lock what it reads "
        "(with_for_update()). Where the row that was read is the row that is "
        "written, production raises StaleReadError: try it again."
    ),
    Kind.ANSWERED: (
        "A replica that is late has answered. Put what can't do without the "
        "newest rows under use_primary(), and expect that they are missing "
        "in the rest."
    ),
}


@dataclass(frozen=True)
class Line:
    """A line of the application

    :param path: of its file
    :param number: of the line, from 1
    :param function: that it is in
    """

    path: str
    number: int
    function: str

    @property
    def is_accepted(self) -> bool:
        """Return True where its author has said that it may be so"""
        return ACCEPTED in linecache.getline(self.path, self.number)

    def shown(self, root: str) -> str:
        """Return file:line, of a file below a directory by its relative path

        :param root: the directory
        """
        path = os.path.relpath(self.path, root)
        return f"{self.path if path.startswith('..') else path}:{self.number}"


@dataclass
class Finding:
    """What has been seen of a line

    :param kind: of trouble
    :param line: the innermost line of the application, or of its tests
    :param statement: SQL, without the values of its parameters
    :param difference: what differs, or what the server has said
    :param then: the line that wrote afterwards, or None
    :param tests: that have shown it, by their ids
    """

    kind: Kind
    line: Line
    statement: str
    difference: str
    then: Line | None = None
    tests: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[Any, ...]:
        return self.line, self.kind, self.statement


class Findings:
    """The findings of one run; one per line, kind and statement"""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], Finding] = {}
        #: of reads, by where they would have gone
        self.reads: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Finding]:
        """Yield them by file, line and kind"""
        yield from sorted(
            self._found.values(),
            key=lambda x: (x.line.path, x.line.number, x.kind, x.statement),
        )

    def add(self, finding: Finding) -> None:
        """Add a finding, or its tests to one of the same line"""
        if finding.line.is_accepted:
            return

        known = self._found.setdefault(finding.key, finding)
        known.tests.extend(x for x in finding.tests if x not in known.tests)

    def dump(self) -> dict[str, Any]:
        """Return them as a worker of xdist sends them"""
        # It sends no enumeration.
        found = [{**asdict(x), "kind": x.kind.value} for x in self]
        return {"found": found, "reads": dict(self.reads)}

    def load(self, dumped: dict[str, Any]) -> None:
        """Add what a worker has sent

        :param dumped: of :meth:`dump`
        """
        self.reads.update(dumped["reads"])
        for item in dumped["found"]:
            kind, line = Kind(item["kind"]), Line(**item["line"])
            then = item["then"] and Line(**item["then"])
            self.add(
                Finding(**{**item, "line": line, "kind": kind} | {"then": then})
            )

    def report(self, root: str) -> Iterator[str]:
        """Yield the lines of the report, by file and line

        :param root: paths below it are shown relative to it
        """
        for finding in self:
            where = finding.line.shown(root)
            yield f"{where}: {finding.kind}, in {finding.line.function}()"
            yield f"    {shortened(finding.statement)}"
            yield f"    {finding.difference}"
            if finding.then is not None:
                yield f"    then writes at {finding.then.shown(root)}"

            more = len(finding.tests) - 1
            yield f"    seen in {finding.tests[0]}" + (
                f" and {more} more" if more else ""
            )

        for kind in Kind:
            if any(x.kind is kind for x in self):
                yield ""
                yield f"{kind}: {ADVICE[kind]}"


def shortened(text: str) -> str:
    """Return a text on one line, cut where it is long"""
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}..."


Rows = Sequence[Sequence[Any]]


def difference(names: Sequence[str], primary: Rows, replica: Rows) -> str:
    """Return what differs between two answers, for a person

    :param names: of the columns
    :param primary: rows of the primary
    :param replica: rows of a replica; others, but for their order
    """
    if len(primary) != len(replica):
        return (
            f"rows: {len(primary)} on the primary, {len(replica)} on a replica "
            "that is late"
        )

    mine, late = without(primary, replica)[0], without(replica, primary)[0]
    return ", ".join(
        f"{name}: {shortened(repr(x))} on the primary, {shortened(repr(y))} on "
        "a replica that is late"
        for name, x, y in zip(names, mine, late, strict=True)
        if x != y
    )


def without(rows: Rows, others: Rows) -> list[Sequence[Any]]:
    """Return the rows that aren't among the others, each as often"""
    left = Counter(map(repr, others))
    found = []
    for row in rows:
        if left[repr(row)]:
            left[repr(row)] -= 1
        else:
            found.append(row)

    return found


def is_same(rows: Rows, others: Rows) -> bool:
    """Return True where two answers have the same rows, in any order"""
    return Counter(map(repr, rows)) == Counter(map(repr, others))


def plain(rows: Iterable[Collection[Any]]) -> list[tuple[Any, ...]]:
    """Return rows whose values can be compared: bytes instead of views"""
    return [
        tuple(bytes(x) if isinstance(x, memoryview) else x for x in row)
        for row in rows
    ]
