# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What grows, in a contender's process: small costs of large things.

What is told is CPU of the thread, and the least of many: what else the machine
does only adds to it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from time import thread_time
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.sql import visitors

#: How often something small is done.
OFTEN = 50


def least(work: Callable[[], Any], times: int = OFTEN) -> float:
    """Return the least seconds of a piece of work

    :param work: is done
    :param times: how often
    """
    found = []
    for _ in range(times):
        start = thread_time()
        work()
        found.append(thread_time() - start)

    return min(found)


def of_nodes(Book: Any, nodes: int) -> Any:
    """Return a SELECT with so many nodes in its tree, or some more

    :param Book: the model
    :param nodes: how many
    """
    statement = select(Book)
    while True:
        missing = nodes - sum(1 for _ in visitors.iterate(statement))
        if missing <= 0:
            return statement

        # Another comparison has four nodes or so.
        conditions = [Book.id != n for n in range(max(1, missing // 4))]
        statement = statement.where(*conditions)


def statements(contender: Any, nodes: int) -> dict[str, float]:
    """Return what it costs to know a statement of a shape seen before

    :param contender: ours
    :param nodes: of the statement's tree
    :rtype: seconds: of ``the statement itself, again``, of ``another one of
        its shape``, and of ``SQLAlchemy's key of its shape``, which is made
        once for each statement that is built
    """
    known, Book = contender.session.statements, contender.Book
    statement = of_nodes(Book, nodes)
    known.need_of(statement)
    others = iter([of_nodes(Book, nodes) for _ in range(2 * OFTEN)])
    keys = least(lambda: next(others)._generate_cache_key())
    rest = iter([x for x in others if x._generate_cache_key()])
    return {
        "the statement itself, again": least(lambda: known.need_of(statement)),
        "another one of its shape": least(lambda: known.need_of(next(rest))),
        "SQLAlchemy's key of its shape": keys,
    }


def instances(contender: Any, number: int) -> dict[str, float]:
    """Return what units of work cost that hold many instances

    :param contender: any
    :param number: of the instances that the session holds
    :rtype: seconds: of a ``load`` of them all, of a ``read`` of one more, of
        the ``first flush`` of one that has been changed, with which a unit of
        work comes to the primary, of the ``next flush``, and of the ``commit``
    """
    session, Book = contender.new_session(), contender.Book
    last = number + 1
    many = select(Book).where(Book.id <= number)
    one = select(Book).where(Book.id == last)
    found: dict[str, list[float]] = {}
    session.rollback()
    for _ in range(3):
        with timed(found, "load"):
            held = session.scalars(many).all()

        for _ in range(OFTEN):
            with timed(found, "read"):
                session.scalars(one).one()

        held[0].copies = (held[0].copies or 0) + 1
        with timed(found, "first flush"):
            session.flush()

        for _ in range(OFTEN):
            held[0].copies += 1
            with timed(found, "next flush"):
                session.flush()

        with timed(found, "commit"):
            session.commit()

        del held
        session.expunge_all()
        session.rollback()
        if hasattr(contender, "wait"):
            contender.wait()

    return {name: min(taken) for name, taken in found.items()}


class timed:
    """Note the seconds of the block, without the garbage's

    :param found: where
    :param name: as what
    """

    def __init__(self, found: dict[str, list[float]], name: str) -> None:
        self._taken = found.setdefault(name, [])

    def __enter__(self) -> None:
        gc.collect(0)
        gc.disable()
        self._start = thread_time()

    def __exit__(self, *error: Any) -> None:
        self._taken.append(thread_time() - self._start)
        gc.enable()


def decision(contender: Any) -> dict[str, float]:
    """Return what ``get_bind`` costs at the start of a unit of work

    And a unit of work of one SELECT.

    :param contender: ours
    :rtype: seconds
    """
    session, Book = contender.new_session(), contender.Book
    mapper = Book.__mapper__
    statement = select(Book).where(Book.id == 1)

    def unit() -> None:
        session.scalars(select(Book).where(Book.id == 1)).one()
        session.rollback()

    # The replicas that it hasn't been to are connected.
    for _ in range(500):
        unit()

    return {
        "get_bind": least(
            lambda: session.get_bind(mapper, clause=statement), 500
        ),
        "unit of work": least(unit, 500),
    }


def shapes(contender: Any, start: int, number: int) -> dict[str, float]:
    """Return how large all is that is remembered, after distinct statements

    Each of them in a scope of its own, as the requests of a server are.

    :param contender: ours
    :param start: the number of the first statement
    :param number: of the statements
    :rtype: how many of each, and the ``MB`` of this process
    """
    registry, Book = contender.session, contender.Book
    freshness = registry.freshness
    for n in range(start, start + number):
        registry.statements.need_of(text(f"select {n} as a{n} from book"))
        if not n % 10:
            registry.statements.need_of(select(Book).order_by(text(f"{n}")))

        freshness.reader.__self__._scoped(f"scope {n}").must_ask_primary(1.0)

    gc.collect()
    return {**sizes(registry), "MB": megabytes()}


def sizes(registry: Any) -> dict[str, float]:
    """Return how many things each of a registry's caches has

    :param registry: ours
    """
    freshness, statements = registry.freshness, registry.statements
    positions = freshness.positions
    return {
        "statements": len(statements._generation.needs),
        "refused statements": len(statements._refused),
        "readers": len(freshness.reader.__self__._of_scope),
        "positions": sum(len(x) for _, x in positions._samples),
        "running servers": len(positions._instances),
        "servers that were behind": len(freshness._behind_at),
        "questions without an answer": len(registry.monitor._asking),
    }


def megabytes() -> float:
    """Return the memory of this process"""
    lines: Iterator[str] = iter(Path("/proc/self/status").read_text().split())
    return next(int(next(lines)) / 1024 for x in lines if x == "VmRSS:")
