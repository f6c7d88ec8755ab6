# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A mix of units of work in many threads, and what they saw.

Nine of ten read; one writes, commits, and reads back what it has written in
a unit of work of its own. A row is one thread's, for writing: so the thread
knows what it must see.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from time import monotonic, perf_counter
from typing import Any

from sqlalchemy import select

# Rows that a thread writes, and of all threads.
OWN_ROWS = 20
ROWS = 10_000

# Of a hundred units of work; half of them change a row, the others insert one.
WRITES = 10


@dataclass
class Seen:
    """What a thread has done, and what it saw

    :param seconds: that each unit of work took
    :param own_reads: how often it read what it had written
    :param stale_reads: and saw something older
    :param errors: by their class, how many units of work failed
    """

    seconds: list[float] = field(default_factory=list)
    own_reads: int = 0
    stale_reads: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class Worker:
    """One thread of the mix

    :param session: gives the thread's session
    :param Book: the model
    :param number: of the thread, from 0
    :param seed: of its choices
    """

    def __init__(
        self, session: Callable[[], Any], Book: Any, number: int, seed: int
    ) -> None:
        self._session = session
        self._Book = Book
        self._random = Random(f"{seed} {number}")
        first = number * OWN_ROWS + 1
        self._own = range(first, first + OWN_ROWS)
        #: what it has written last, by the row
        self.written: dict[int, int] = {}

    def run(self, until: float, seen: Seen) -> None:
        """Do units of work until it is time

        :param until: seconds of ``time.monotonic()``
        :param seen: what it did, filled in
        """
        session = self._session()
        try:
            while monotonic() < until:
                self._one(session, seen)
        finally:
            session.close()

    def _one(self, session: Any, seen: Seen) -> None:
        """Do a unit of work, and where it has written another that reads"""
        draw = self._random.randrange(100)
        try:
            if draw >= WRITES:
                self._timed(seen, lambda: self._read(session, seen, None))
                return

            write = self._change if draw % 2 else self._insert
            key = self._timed(seen, lambda: write(session))
            self._timed(seen, lambda: self._read(session, seen, key))
        except Exception as error:
            session.rollback()
            name = type(error).__name__
            seen.errors[name] = seen.errors.get(name, 0) + 1

    @staticmethod
    def _timed(seen: Seen, work: Callable[[], Any]) -> Any:
        start = perf_counter()
        result = work()
        seen.seconds.append(perf_counter() - start)
        return result

    def _read(self, session: Any, seen: Seen, key: int | None) -> None:
        """Read one to three rows, one of them of the thread's own"""
        Book = self._Book
        key = key or self._random.choice(self._own)
        book = session.scalars(select(Book).where(Book.id == key)).first()
        copies = -1 if book is None else book.copies
        for _ in range(self._random.randrange(3)):
            other = self._random.randrange(1, ROWS + 1)
            session.scalars(select(Book).where(Book.id == other)).one()

        session.rollback()
        seen.own_reads += 1
        # None: another contender has written it; 0 is what it began with.
        seen.stale_reads += copies < self.written.get(key, 0)

    def _change(self, session: Any) -> int:
        """Change a row of the thread's own, and commit"""
        Book = self._Book
        key = self._random.choice(self._own)
        book = session.scalars(select(Book).where(Book.id == key)).one()
        book.copies = copies = book.copies + 1
        session.commit()
        self.written[key] = copies
        return key

    def _insert(self, session: Any) -> int:
        """Insert a row, and commit"""
        book = self._Book(title="a title", copies=1)
        session.add(book)
        session.flush()
        key: int = book.id
        session.commit()
        self.written[key] = 1
        return key


class Mix:
    """Threads that do units of work for a while

    :param session: gives a thread's session
    :param Book: the model
    :param threads: how many
    :param seed: of their choices
    """

    def __init__(
        self,
        session: Callable[[], Any],
        Book: Any,
        threads: int,
        seed: int = 0,
    ) -> None:
        self._workers = [
            Worker(session, Book, number, seed) for number in range(threads)
        ]

    def run(self, seconds: float) -> tuple[float, Seen]:
        """Return for how long they did it, and what they saw

        :param seconds: after which no unit of work begins
        """
        found = [Seen() for _ in self._workers]
        start = perf_counter()
        until = monotonic() + seconds
        threads = [
            threading.Thread(target=worker.run, args=(until, seen))
            for worker, seen in zip(self._workers, found, strict=True)
        ]
        for thread in threads:
            thread.start()

        for thread in threads:
            thread.join()

        total = Seen()
        for seen in found:
            total.seconds += seen.seconds
            total.own_reads += seen.own_reads
            total.stale_reads += seen.stale_reads
            for name, number in seen.errors.items():
                total.errors[name] = total.errors.get(name, 0) + number

        return perf_counter() - start, total
