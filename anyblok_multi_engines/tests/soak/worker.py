# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What one process does: sessions with random units of work, recorded."""

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from random import Random
from typing import Any

from sqlalchemy import func, select, update

from ...testing.history import Read, Unit, Version, Write


@dataclass
class Plan:
    """What a process shall do

    :param process: its number
    :param sessions: their numbers
    :param seed: of what they do
    :param keys: of the rows that they read and write
    :param names: of the servers, by their ports
    :param spoil: what breaks the process's router; None: nothing
    """

    process: int
    sessions: list[int]
    seed: str
    keys: list[int]
    names: dict[str, str]
    spoil: Callable[[], None] | None = None


@dataclass
class Report:
    """What a process has done

    :param units: of work
    :param failed: the errors of those that failed
    """

    units: list[Unit] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def work(pipe: Connection, registry: Any, plan: Plan) -> None:
    """Run the sessions of a process until the parent says "end"

    :param pipe: of the parent
    :param registry: of this process
    :param plan: what to do
    """
    if plan.spoil is not None:
        plan.spoil()

    ending = threading.Event()
    report = Report()
    threads = [
        threading.Thread(
            target=Client(registry, plan, number, report).run, args=(ending,)
        )
        for number in plan.sessions
    ]
    pipe.send("ready")
    pipe.recv()
    for thread in threads:
        thread.start()

    # The parent says so, or is gone.
    pipe.poll(None)
    ending.set()
    for thread in threads:
        thread.join()

    pipe.send(report)


class Client:
    """A session: a thread of AnyBlok's

    :param registry: of the process
    :param plan: of the process
    :param number: of the session, in all processes
    :param report: that gets its units of work
    """

    def __init__(
        self, registry: Any, plan: Plan, number: int, report: Report
    ) -> None:
        self._registry = registry
        self._plan = plan
        self._number = number
        self._report = report
        self._random = Random(f"{plan.seed}-{number}")
        self._wrote = 0
        self._steps: list[Read | Write] = []

    def run(self, ending: threading.Event) -> None:
        """Do one unit of work after the other

        :param ending: set when it is enough
        """
        registry = self._registry
        while not ending.wait(self._random.uniform(0.0, 0.02)):
            try:
                self._unit()
            except Exception as error:
                self._report.failed.append(repr(error))
                registry.rollback()

            if self._random.random() < 0.1:
                registry.Session.remove()

        registry.Session.remove()

    def _unit(self) -> None:
        """Do and record a unit of work"""
        random = self._random
        self._steps = []
        writes = random.choices((0, 1, 2), (70, 20, 10))[0]
        begun = time.monotonic_ns()
        # A unit of work may begin with a write.
        for _ in range(random.randint(0 if writes else 1, 3)):
            self._read()

        read = len(self._steps)
        # In one order, as two would wait for each other otherwise.
        for key in sorted(random.sample(self._plan.keys, writes)):
            random.choice((self._write, self._change))(key)

        if writes and random.random() < 0.5:
            self._read()

        ending = time.monotonic_ns()
        if random.random() < 0.1:
            self._registry.rollback()
            del self._steps[read:]
        else:
            self._registry.commit()

        ended = time.monotonic_ns()
        self._report.units.append(
            Unit(
                self._plan.process,
                self._number,
                begun,
                ending,
                ended,
                self._steps,
            )
        )

    def _read(self) -> None:
        """Read some rows at one moment, now and then on the primary"""
        keys = self._plan.keys
        count = self._random.randint(1, len(keys))
        chosen = self._random.sample(keys, count)
        Book = self._registry.Book
        statement = select(
            Book.id, Book.copies, Book.title, func.current_setting("port")
        ).where(Book.id.in_(chosen))
        asked = self._random.random() < 0.1
        invoked = time.monotonic_ns()
        with self._registry.use_primary() if asked else nullcontext():
            rows = self._registry.execute(statement).all()

        returned = time.monotonic_ns()
        versions = {
            key: Version(copies, title) for key, copies, title, _ in rows
        }
        (port,) = {row[3] for row in rows}
        self._steps.append(
            Read(invoked, returned, self._plan.names[port], versions)
        )

    def _write(self, key: int) -> None:
        """Write a row without a look at it"""
        Book = self._registry.Book
        value = self._new_value()
        statement = (
            update(Book)
            .where(Book.id == key)
            .values(copies=Book.copies + 1, title=value)
            .returning(Book.copies)
        )
        invoked = time.monotonic_ns()
        number = self._registry.execute(statement).scalar_one()
        self._note_write(invoked, key, Version(number, value))

    def _change(self, key: int) -> None:
        """Lock a row, read it and write what follows from it"""
        Book = self._registry.Book
        value = self._new_value()
        invoked = time.monotonic_ns()
        book = Book.query().filter_by(id=key).with_for_update().one()
        book.copies += 1
        book.title = value
        self._registry.flush()
        self._note_write(invoked, key, Version(book.copies, value))

    def _note_write(self, invoked: int, key: int, version: Version) -> None:
        self._steps.append(Write(invoked, time.monotonic_ns(), key, version))

    def _new_value(self) -> str:
        self._wrote += 1
        return f"{self._number}-{self._wrote}"
