# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What several sessions have read and written, checked against a promise.

A history has rows whose versions count up: each write does ``UPDATE ... SET
version = version + 1 ... RETURNING version`` and a value of its own. So each
write has its place in the order of its row, and each read says which write it
has seen. Times are of one clock for all processes, such as
``time.monotonic_ns()`` on Linux.

A guarantee is a version of each row that a read must not be behind. The
history is gone through once, in the order of time, with these versions per
session, and each read is compared with them.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import itemgetter
from typing import NamedTuple

PRIMARY = "primary"


class Guarantee(StrEnum):
    """What a read has at least"""

    #: A value that was committed, in a version that was written once
    COMMITTED = "committed"
    #: What its unit of work has seen before
    ONE_UNIT = "one_unit"
    #: What its session has written
    READ_YOUR_WRITES = "read_your_writes"
    #: What its session has read, in this unit of work or another
    MONOTONIC_READS = "monotonic_reads"
    #: Of a write that its session has seen: what the writer wrote before
    MONOTONIC_WRITES = "monotonic_writes"
    #: Of a write that its session has seen: what the writer had seen before
    WRITES_FOLLOW_READS = "writes_follow_reads"
    #: What the process had committed when its unit of work began
    PROCESS_WRITES = "process_writes"
    #: What anybody had committed when its unit of work began
    REAL_TIME = "real_time"
    #: On the primary, what a replica has shown before the commit of it was
    #: acknowledged. No promise has it: PostgreSQL writes a commit to the log,
    #: and so to the replicas, before the primary itself shows it.
    REPLICA_FIRST = "replica_first"


_EVENTUAL = frozenset([Guarantee.COMMITTED, Guarantee.ONE_UNIT])
_SESSION = _EVENTUAL | {
    Guarantee.READ_YOUR_WRITES,
    Guarantee.MONOTONIC_READS,
    Guarantee.MONOTONIC_WRITES,
    Guarantee.WRITES_FOLLOW_READS,
}

#: What each value of ``--db-ro-consistency`` promises
PROMISES: Mapping[str, frozenset[Guarantee]] = {
    "eventual": _EVENTUAL,
    "session": _SESSION,
    "registry": _SESSION | {Guarantee.PROCESS_WRITES},
    "strong": _SESSION | {Guarantee.PROCESS_WRITES, Guarantee.REAL_TIME},
}


class Version(NamedTuple):
    """A version of a row

    :param number: 0: as it was before the history
    :param value: what the write of this version wrote, and no other
    """

    number: int
    value: str


@dataclass(frozen=True, slots=True)
class Read:
    """One statement that has read rows, and so seen them at one moment

    :param invoked: nanoseconds
    :param returned: nanoseconds
    :param server: the name of the one that has answered, such as ``primary``
    :param rows: versions by the rows' keys
    """

    invoked: int
    returned: int
    server: str
    rows: Mapping[Hashable, Version]

    def __str__(self) -> str:
        """Say what was read, and where"""
        rows = ", ".join(
            f"{key}@{row.number}" for key, row in self.rows.items()
        )
        return f"read {rows} on {self.server}"


@dataclass(frozen=True, slots=True)
class Write:
    """One statement that has written the next version of a row

    :param invoked: nanoseconds
    :param returned: nanoseconds
    :param key: of the row
    :param version: that it has made
    """

    invoked: int
    returned: int
    key: Hashable
    version: Version

    def __str__(self) -> str:
        """Say what was written"""
        return f"wrote {self.key}@{self.version.number}"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of work; of one that was rolled back, what it read before it wrote

    :param process: where it ran
    :param session: whose it was; a session has one unit of work at a time
    :param begun: nanoseconds, before its first statement
    :param ending: nanoseconds, when the commit was asked for
    :param ended: nanoseconds, when the commit was acknowledged
    :param steps: its statements, in their order
    """

    process: Hashable
    session: Hashable
    begun: int
    ending: int
    ended: int
    steps: Sequence[Read | Write]

    @property
    def writes(self) -> list[Write]:
        """Return the statements that wrote"""
        return [step for step in self.steps if isinstance(step, Write)]

    @property
    def reads(self) -> list[Read]:
        """Return the statements that read"""
        return [step for step in self.steps if isinstance(step, Read)]


class Operation(NamedTuple):
    """A statement, and the unit of work that it belongs to"""

    unit: Unit
    step: Read | Write

    def __str__(self) -> str:
        """Say who did what, and when"""
        unit, step = self
        times = (unit.begun, step.invoked, step.returned, unit.ended)
        begun, invoked, returned, ended = (time / 1e9 for time in times)
        return (
            f"{invoked:.6f} to {returned:.6f}: session {unit.session} of "
            f"process {unit.process} {step} (unit of work {begun:.6f} to "
            f"{ended:.6f})"
        )


@dataclass(frozen=True, slots=True)
class Violation:
    """A read that is behind what its guarantee says

    :param guarantee: that doesn't hold
    :param key: of the row
    :param needed: the least version, as the guarantee says
    :param earlier: the operation that the guarantee comes from
    :param later: the operation that is behind
    """

    guarantee: Guarantee
    key: Hashable
    needed: int
    earlier: Operation
    later: Operation

    def __str__(self) -> str:
        """Say which two operations don't fit"""
        return (
            f"{self.guarantee}: row {self.key}, version {self.needed} needed\n"
            f"  {self.earlier}\n  {self.later}"
        )


def violations(
    history: Iterable[Unit], guarantees: Iterable[Guarantee]
) -> list[Violation]:
    """Return the reads of a history that break a promise

    It takes a time of n log n for n operations on a fixed number of rows.

    :param history: the units of work of all sessions, in any order
    :param guarantees: what was promised, such as ``PROMISES["session"]``
    :rtype: list of :class:`Violation`, by time
    """
    checker = _Checker(list(history), frozenset(guarantees))
    return checker.run()


class _Fact(NamedTuple):
    """A version that somebody has seen or written, and how that is known"""

    number: int
    operation: Operation


# When, which of two at one time, and what is done about it.
_Event = tuple[int, int, Callable[[Operation], None], Operation]

# Versions by the rows' keys: nobody may be behind them.
_Floor = dict[Hashable, _Fact]
_Floors = dict[Guarantee, _Floor]

# Those of a session that outlive its units of work.
_OF_SESSION = (
    Guarantee.READ_YOUR_WRITES,
    Guarantee.MONOTONIC_READS,
    Guarantee.MONOTONIC_WRITES,
    Guarantee.WRITES_FOLLOW_READS,
)


def _raise(floor: _Floor, key: Hashable, fact: _Fact) -> None:
    """Let a floor be no lower than a fact"""
    known = floor.get(key)
    if known is None or known.number < fact.number:
        floor[key] = fact


class _Checker:
    """One way through a history"""

    def __init__(
        self, history: list[Unit], guarantees: frozenset[Guarantee]
    ) -> None:
        self._history = history
        self._guarantees = guarantees
        self._found: dict[tuple[Guarantee, Hashable, int], Violation] = {}
        self._sessions: dict[Hashable, _Floors] = {}
        #: What was committed so far: of all, and of each process.
        self._committed: _Floor = {}
        self._committed_by: dict[Hashable, _Floor] = {}
        #: By its key and number, who has written a version
        self._writers: dict[tuple[Hashable, int], Operation] = {}
        #: And what its writer had written and seen when it committed.
        self._pasts: dict[tuple[Hashable, int], tuple[_Floor, _Floor]] = {}

    def run(self) -> list[Violation]:
        """Return what was found"""
        for unit in self._history:
            for write in unit.writes:
                self._note_writer(Operation(unit, write))

        for _, _, act, operation in self._events():
            act(operation)

        return list(self._found.values())

    def _events(self) -> list[_Event]:
        """Return what happens, by time; what is the first of two at one time

        What a read has seen was committed before it returned. And a commit
        that is acknowledged when a unit begins isn't yet before it.
        """
        events: list[_Event] = []
        for unit in self._history:
            if not unit.steps:
                continue

            first, last = (Operation(unit, unit.steps[x]) for x in (0, -1))
            events.append((unit.begun, 0, self._begin, first))
            for step in unit.steps:
                operation = Operation(unit, step)
                events.append((step.returned, 1, self._step, operation))

            if unit.writes:
                events.append((unit.ending, 2, self._commit, last))
                events.append((unit.ended, 3, self._acknowledge, last))

        return sorted(events, key=itemgetter(0, 1))

    def _begin(self, first: Operation) -> None:
        unit = first.unit
        floors = self._sessions.setdefault(
            unit.session, {guarantee: {} for guarantee in _OF_SESSION}
        )
        floors[Guarantee.ONE_UNIT] = {}
        floors[Guarantee.REAL_TIME] = self._committed.copy()
        mine = self._committed_by.get(unit.process, {})
        floors[Guarantee.PROCESS_WRITES] = mine.copy()

    def _step(self, operation: Operation) -> None:
        step = operation.step
        floors = self._sessions[operation.unit.session]
        if isinstance(step, Read):
            numbers = {key: row.number for key, row in step.rows.items()}
            self._check_values(operation, step)
            self._see(floors, operation, numbers)
            return

        # It has counted up what it found.
        self._see(floors, operation, {step.key: step.version.number - 1})
        fact = _Fact(step.version.number, operation)
        _raise(floors[Guarantee.READ_YOUR_WRITES], step.key, fact)
        _raise(floors[Guarantee.ONE_UNIT], step.key, fact)

    def _see(
        self,
        floors: _Floors,
        operation: Operation,
        numbers: Mapping[Hashable, int],
    ) -> None:
        """Learn from what was seen at one moment, and compare it"""
        for key, number in numbers.items():
            fact = _Fact(number, operation)
            _raise(floors[Guarantee.MONOTONIC_READS], key, fact)
            _raise(floors[Guarantee.ONE_UNIT], key, fact)
            wrote, saw = self._pasts.get((key, number), ({}, {}))
            for guarantee, past in (
                (Guarantee.MONOTONIC_WRITES, wrote),
                (Guarantee.WRITES_FOLLOW_READS, saw),
            ):
                for other, known in past.items():
                    if other != key:
                        _raise(floors[guarantee], other, known)
                        _raise(floors[Guarantee.ONE_UNIT], other, known)

        for guarantee, floor in floors.items():
            for key, number in numbers.items():
                needed = floor.get(key)
                if needed is None or number >= needed.number:
                    continue

                first = self._is_replica_first(key, needed, operation)
                self._note_behind(
                    Guarantee.REPLICA_FIRST if first else guarantee,
                    key,
                    needed,
                    operation,
                )

    def _is_replica_first(
        self, key: Hashable, needed: _Fact, later: Operation
    ) -> bool:
        """Return True where the primary may not show a version yet"""
        if not isinstance(later.step, Read) or later.step.server != PRIMARY:
            return False

        writer = self._writers.get((key, needed.number))
        return (
            writer is not None
            and writer.unit.session != later.unit.session
            and writer.unit.ended > later.step.invoked
        )

    def _note_behind(
        self,
        guarantee: Guarantee,
        key: Hashable,
        needed: _Fact,
        operation: Operation,
    ) -> None:
        if guarantee in self._guarantees:
            self._found.setdefault(
                (guarantee, key, id(operation.step)),
                Violation(
                    guarantee, key, needed.number, needed.operation, operation
                ),
            )

    def _commit(self, last: Operation) -> None:
        """Remember what comes before the writes of a unit of work

        All that its session has seen was committed, and so is before it in
        the log of the primary: who has the one has the other.
        """
        floors = self._sessions[last.unit.session]
        wrote = floors[Guarantee.READ_YOUR_WRITES].copy()
        saw: _Floor = {}
        for guarantee in _OF_SESSION[1:]:
            for key, fact in floors[guarantee].items():
                _raise(saw, key, fact)

        for write in last.unit.writes:
            self._pasts[write.key, write.version.number] = wrote, saw

    def _acknowledge(self, last: Operation) -> None:
        unit = last.unit
        mine = self._committed_by.setdefault(unit.process, {})
        for write in unit.writes:
            fact = _Fact(write.version.number, Operation(unit, write))
            _raise(self._committed, write.key, fact)
            _raise(mine, write.key, fact)

    def _note_writer(self, operation: Operation) -> None:
        """Note who wrote a version; a second one has lost the first's write"""
        write = operation.step
        assert isinstance(write, Write)
        place = write.key, write.version.number
        first = self._writers.setdefault(place, operation)
        if first is not operation:
            self._note_behind(
                Guarantee.COMMITTED,
                write.key,
                _Fact(write.version.number, first),
                operation,
            )

    def _check_values(self, operation: Operation, read: Read) -> None:
        """Note what was read and never committed"""
        for key, version in read.rows.items():
            writer = self._writers.get((key, version.number), operation)
            step = writer.step
            if version.number and getattr(step, "version", None) != version:
                self._note_behind(
                    Guarantee.COMMITTED,
                    key,
                    _Fact(version.number, writer),
                    operation,
                )
