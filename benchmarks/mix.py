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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from time import monotonic, perf_counter, process_time
from typing import Any

from sqlalchemy import select, text

from .contenders import READ

# Rows that a thread changes, each of them many times.
OWN_ROWS = 20

# Of a hundred units of work; half of them change a row, the others insert one.
WRITES = 10


@dataclass
class Seen:
    """What threads have done, and what they saw

    :param seconds: that each unit of work took
    :param own_reads: how often a thread read what it alone writes
    :param stale_reads: and saw something older than it had written
    :param errors: by their class, how many units of work failed
    :param elapsed: seconds, from the start of the threads to their end
    :param cpu: seconds of this process
    """

    seconds: list[float] = field(default_factory=list)
    own_reads: int = 0
    stale_reads: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    elapsed: float = 0.0
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Units of work per second"""
        return len(self.seconds) / self.elapsed

    @classmethod
    def of(cls, parts: Iterable[Seen]) -> Seen:
        """Return what several have done, together"""
        total = cls()
        for seen in parts:
            total.seconds += seen.seconds
            total.own_reads += seen.own_reads
            total.stale_reads += seen.stale_reads
            total.errors += seen.errors
            total.elapsed += seen.elapsed
            total.cpu += seen.cpu

        return total


class Thread:
    """One thread of the mix

    :param session: gives the thread's session
    :param Book: the model
    :param rows: that it alone changes
    :param seed: of its choices
    """

    def __init__(
        self,
        session: Callable[[], Any],
        Book: Any,
        rows: list[int],
        seed: int,
    ) -> None:
        self._session = session
        self._Book = Book
        self._random = Random(seed)
        self._rows = rows
        # What it has written last, by the row.
        self._written: dict[int, int] = dict.fromkeys(rows, 0)

    def run(self, until: float, seen: Seen) -> None:
        """Do units of work until it is time

        :param until: seconds of ``time.monotonic()``
        :param seen: what it did, filled in
        """
        session = self._session()
        try:
            while monotonic() < until:
                try:
                    self._work(session, seen)
                except Exception as error:
                    session.rollback()
                    seen.errors[type(error).__name__] += 1
        finally:
            session.close()

    def _work(self, session: Any, seen: Seen) -> None:
        """Do a unit of work, and after one that writes one that looks"""
        key = self._random.choice(self._rows)
        draw = self._random.randrange(100)
        if draw < WRITES:
            start = perf_counter()
            if draw % 2:
                self._change(session, seen, key)
            else:
                key = self._insert(session)

            seen.seconds.append(perf_counter() - start)

        start = perf_counter()
        self._read(session, seen, key)
        seen.seconds.append(perf_counter() - start)

    def _read(self, session: Any, seen: Seen, key: int) -> None:
        """Read a row of its own, and up to two others"""
        Book = self._Book
        book = session.scalars(select(Book).where(Book.id == key)).first()
        self._look(seen, key, book)
        for _ in range(self._random.randrange(3)):
            other = self._random.choice(READ)
            session.scalars(select(Book).where(Book.id == other)).one()

        session.rollback()

    def _look(self, seen: Seen, key: int, book: Any) -> None:
        """Note whether a row is older than what was written there"""
        seen.own_reads += 1
        found = -1 if book is None else book.copies
        seen.stale_reads += found < self._written.get(key, 0)

    def _change(self, session: Any, seen: Seen, key: int) -> None:
        """Change a row, and commit"""
        Book = self._Book
        book = session.scalars(select(Book).where(Book.id == key)).one()
        self._look(seen, key, book)
        # Not of what was read: that one may be old, and goes by unseen.
        book.copies = copies = self._written[key] + 1
        session.commit()
        self._written[key] = copies

    def _insert(self, session: Any) -> int:
        """Insert a row, and commit"""
        book = self._Book(title="a title", copies=1)
        session.add(book)
        session.flush()
        key: int = book.id
        session.commit()
        self._written[key] = 1
        return key


class Mix:
    """Threads that do units of work for a while, again and again

    :param session: gives a thread's session
    :param Book: the model
    :param rows: for the threads to change
    :param threads: how many
    """

    def __init__(
        self,
        session: Callable[[], Any],
        Book: Any,
        rows: Iterator[int],
        threads: int,
    ) -> None:
        self._threads = [
            Thread(session, Book, list(islice(rows, OWN_ROWS)), seed)
            for seed in range(threads)
        ]

    def run(self, seconds: float) -> Seen:
        """Return what they did, and saw

        :param seconds: after which no unit of work begins
        """
        parts = [Seen() for _ in self._threads]
        start, cpu = perf_counter(), process_time()
        until = monotonic() + seconds
        running = [
            threading.Thread(target=one.run, args=(until, seen))
            for one, seen in zip(self._threads, parts, strict=True)
        ]
        for thread in running:
            thread.start()

        for thread in running:
            thread.join()

        parts.append(
            Seen(elapsed=perf_counter() - start, cpu=process_time() - cpu)
        )
        return Seen.of(parts)


def busy_servers(
    new_session: Callable[[], Any],
    seconds: float,
    threads: int,
    sleep: float,
) -> float:
    """Return how many units of work end per second, whose servers are busy

    Of those that end in the middle: at the start the threads connect, and at
    the end they leave one by one.

    :param new_session: gives a thread's session
    :param seconds: after which no unit of work begins
    :param threads: how many
    :param sleep: seconds that the statement of a unit of work takes
    """
    statement = text("SELECT pg_sleep(:seconds)")
    ends: list[float] = []
    begun = monotonic()

    def run() -> None:
        session = new_session()
        try:
            while monotonic() < begun + seconds:
                session.execute(statement, {"seconds": sleep})
                session.rollback()
                ends.append(monotonic())
        finally:
            session.close()

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()

    for thread in running:
        thread.join()

    first, last = begun + 0.25 * seconds, begun + seconds
    return sum(first < end < last for end in ends) / (last - first)
