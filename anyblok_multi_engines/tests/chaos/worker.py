# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the processes do: units of work, each recorded with its outcome."""

import logging
import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError

from ...testing.history import PRIMARY, Read, Unit, Version, Write
from ..soak import worker as soak

#: Threads of the process that has built the registry, and of the forked ones
THREADS = (8, 2, 2)

#: The part of the units of work that write
WRITES = 0.1

#: Seconds between two units of work of a thread, at most
PAUSE = 0.04

#: Seconds between two looks at the clock, for what the machine itself stalls
BEAT = 0.01

#: In ``copies``: a row that stands for a unit of work, and not one of KEYS.
MARK = -1


class Outcome(StrEnum):
    """What came of a unit of work"""

    DONE = "done"
    FAILED = "failed"
    #: The commit was asked for, and its answer is lost
    UNKNOWN = "unknown"


@dataclass
class Plan(soak.Plan):
    """What a process shall do

    :param sessions: none: they are made where they run
    :param column: the number of the newest column of ``book``, 0: none; the
        parent process counts it up
    :param recipe: makes what is taken for the registry; None: it is
    :param unknown: the error of a commit whose outcome is unknown
    """

    column: Any = None
    recipe: Callable[[Any], Any] | None = None
    unknown: type[Exception] = DBAPIError


@dataclass(frozen=True, slots=True)
class Work:
    """A unit of work

    :param begun: nanoseconds
    :param ended: nanoseconds
    :param mark: that it has written; None: it only reads
    :param outcome: what came of it
    :param error: with its stack
    :param writes: that may have been committed or not
    """

    begun: int
    ended: int
    mark: str | None
    outcome: Outcome
    error: str
    writes: list[Write]


@dataclass
class Report:
    """What a process has done

    :param units: of work, for the checker
    :param done: the same units of work, with their outcomes
    :param beats: when the machine itself has stalled: from when to when
    """

    units: list[Unit] = field(default_factory=list)
    done: list[Work] = field(default_factory=list)
    beats: list[tuple[int, int]] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Take in what another process has done"""
        self.units += other.units
        self.done += other.done
        self.beats += other.beats


def work(pipe: Connection, registry: Any, plan: Plan) -> None:
    """Fork, and run threads in all processes until the parent says "end"

    :param pipe: of the parent
    :param registry: of this process
    :param plan: what to do
    """
    # What the log says of faults that are wanted, nobody reads.
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
    registry.upgrade(install=["test-me-blok4"])
    registry.commit()
    pipe.send("ready")
    pipe.recv()
    used = registry if plan.recipe is None else plan.recipe(registry)
    with forked(used, plan) as children:
        report = run_threads(used, plan, 0, pipe)
        for child in children:
            child.send("end")

        for child in children:
            report.add(child.recv())

    pipe.send(report)


@contextmanager
def forked(registry: Any, plan: Plan) -> Iterator[list[Connection]]:
    """Fork processes that work; give the pipes to them

    :param registry: that is built already
    :param plan: what to do
    """
    pipes, pids = [], []
    for number in range(1, len(THREADS)):
        ours, theirs = Pipe()
        pid = os.fork()
        if not pid:
            ours.close()
            status = 1
            try:
                theirs.send(run_threads(registry, plan, number, theirs))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)

        theirs.close()
        pipes.append(ours)
        pids.append(pid)

    yield pipes
    for pid in pids:
        os.waitpid(pid, 0)


def run_threads(
    registry: Any, plan: Plan, process: int, pipe: Connection
) -> Report:
    """Run the threads of a process, and return what they have done

    :param registry: of the process
    :param plan: what to do
    :param process: its number
    :param pipe: of the parent, who says when it is enough
    """
    first = sum(THREADS[:process])
    numbers = range(first, first + THREADS[process])
    ending = threading.Event()
    report = Report()
    clients = [
        Client(registry, plan, process, number, report) for number in numbers
    ]
    targets = [client.run for client in clients]
    threads = [
        threading.Thread(target=target, args=(ending,))
        for target in [*targets, report_beats(report)]
    ]
    for thread in threads:
        thread.start()

    parent = os.getppid()
    while not pipe.poll(1.0) and os.getppid() == parent:
        pass

    ending.set()
    for thread in threads:
        thread.join()

    return report


def report_beats(report: Report) -> Callable[[threading.Event], None]:
    """Return a loop that notes when it is woken late

    :param report: that gets it
    """

    def beat(ending: threading.Event) -> None:
        asleep = time.monotonic_ns()
        while not ending.wait(BEAT):
            awake = time.monotonic_ns()
            if awake - asleep > 5 * BEAT * 1e9:
                report.beats.append((asleep, awake))

            asleep = awake

    return beat


class Client(soak.Client):
    """A session: a thread of AnyBlok's

    :param process: where it runs
    """

    def __init__(
        self,
        registry: Any,
        plan: Plan,
        process: int,
        number: int,
        report: Report,
    ) -> None:
        super().__init__(registry, plan, number, report)
        self._process = process
        self._units = 0

    def run(self, ending: threading.Event) -> None:
        """Do one unit of work after the other

        :param ending: set when it is enough
        """
        while not ending.wait(self._random.uniform(0.0, PAUSE)):
            self._unit()

        self._registry.Session.remove()

    def _unit(self) -> None:
        """Do and record a unit of work"""
        self._steps = []
        self._ending = 0
        self._units += 1
        mark = None
        if self._random.random() < WRITES:
            mark = f"{self._number}-{self._units}"

        begun = time.monotonic_ns()
        outcome, error = Outcome.DONE, ""
        try:
            self._work(mark)
        except Exception as raised:
            ended = time.monotonic_ns()
            outcome, error = self._outcome_of(raised), traceback.format_exc()
            self._give_up()
        else:
            ended = time.monotonic_ns()

        steps = self._steps
        writes = [step for step in steps if isinstance(step, Write)]
        if outcome is not Outcome.DONE and writes:
            del steps[steps.index(writes[0]) :]

        ending = self._ending or ended
        self._report.units.append(
            Unit(self._process, self._number, begun, ending, ended, steps)
        )
        self._report.done.append(
            Work(begun, ended, mark, outcome, error, writes)
        )

    def _work(self, mark: str | None) -> None:
        """Read, write under a mark where there is one, and commit"""
        for _ in range(self._random.randint(1, 3)):
            self._read()

        if mark is not None:
            # An update of one row: nobody waits for two.
            self._write(self._random.choice(self._plan.keys))
            Book = self._registry.Book
            self._registry.execute(insert(Book).values(title=mark, copies=MARK))

        self._ending = time.monotonic_ns()
        self._registry.commit()

    def _outcome_of(self, error: Exception) -> Outcome:
        unknown: type[Exception] = self._plan.unknown
        if self._ending and isinstance(error, unknown):
            return Outcome.UNKNOWN

        return Outcome.FAILED

    def _give_up(self) -> None:
        """Roll back, as an application does"""
        try:
            self._registry.rollback()
        except Exception:
            self._registry.Session.remove()

    def _read(self) -> None:
        """Read some rows at one moment; now and then slowly, or a new column

        What is slow is on its way when a server fails.
        """
        plan, random = self._plan, self._random
        column = plan.column.value
        if random.random() < 0.05:
            self._registry.execute(select(func.pg_sleep(0.1))).all()

        if column and random.random() < 0.1:
            question = f"select count(chaos_{column}) from book"
            self._registry.execute(text(question)).scalar_one()

        chosen = random.sample(plan.keys, random.randint(1, len(plan.keys)))
        Book = self._registry.Book
        statement = select(
            Book.id,
            Book.copies,
            Book.title,
            func.current_setting("port"),
            func.pg_is_in_recovery(),
        ).where(Book.id.in_(chosen))
        invoked = time.monotonic_ns()
        rows = self._registry.execute(statement).all()
        returned = time.monotonic_ns()
        versions = {row[0]: Version(row[1], row[2]) for row in rows}
        (place,) = {row[3:] for row in rows}
        port, is_replica = place
        server = plan.names[port] if is_replica else PRIMARY
        self._steps.append(Read(invoked, returned, server, versions))
