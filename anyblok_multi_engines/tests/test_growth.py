# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What costs the same however much there is, and what stops growing."""

import gc
from time import thread_time

from sqlalchemy import select, text

from anyblok_multi_engines import reader
from anyblok_multi_engines.positions import KEPT, SPACINGS, Known
from anyblok_multi_engines.routing import statements

MANY = 100_000


def cpu_of_a_read(registry, key):
    """Return the least CPU of many reads by key, in seconds"""
    taken = []
    for _ in range(50):
        start = thread_time()
        registry.session.scalars(
            select(registry.Book).where(registry.Book.id == key)
        ).one()
        taken.append(thread_time() - start)

    return min(taken)


def test_read_costs_the_same_whatever_the_session_holds(servers, registry):
    servers.cluster.primary.execute(
        "insert into book (id, title, copies) select n, 'a title', 0 "
        f"from generate_series(1, {MANY}) n",
        database=servers.database,
    )
    servers.cluster.wait_for_replay()
    Book = registry.Book
    held = registry.session.scalars(select(Book).where(Book.id <= 10)).all()
    few = cpu_of_a_read(registry, MANY)
    held = registry.session.scalars(select(Book).where(Book.id < MANY)).all()
    gc.collect()
    assert registry.session.placement().replica is not None
    assert cpu_of_a_read(registry, MANY) < 2 * few
    assert len(held) == MANY - 1


def test_what_is_remembered_is_bounded(registry, monkeypatch):
    monkeypatch.setattr(statements, "MAX_SHAPES", 50)
    monkeypatch.setattr(reader, "MAX_SCOPES", 50)
    known, freshness = registry.statements, registry.freshness
    readers = freshness.reader.__self__
    registry.execute(select(registry.Book)).all()
    position = freshness._primary_now().position
    first = freshness.positions.primary_since(0.0).asked_at
    for n in range(5_000):
        if n < 200:
            assert known.need_of(text(f"select {n} as a{n} from book")).is_read
            known.refuse(text(f"select {n} as b{n} from book"), "a test")
            registry.execute(select(registry.Book).order_by(text(f"{n} + 1")))

        readers._scoped(f"request {n}")
        freshness.note_behind(f"replica{n % 2 + 1}")
        freshness.positions.note_primary(Known(first + n, position))

    assert len(known._generation.needs) <= 50
    assert len(known._refused) <= 50
    assert len(readers._of_scope) <= 50
    assert len(freshness._behind_at) == 2
    samples = [len(x) for _, x in freshness.positions._samples]
    assert samples == [KEPT] * len(SPACINGS)
