# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What else one would take, on the same servers: the table of README.rst.

SQLAlchemy's recipe and Advanced Alchemy's router, both in plain SQLAlchemy.
What this package does instead is tested where the table says.
"""

import pytest
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from .chaos.naive import RecipeSession
from .conftest import PORT


class Base(DeclarativeBase):
    """Of the only model"""


class Book(Base):
    """The table of the test blok"""

    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


def recipe(primary, replicas, engines):
    """Return a session of SQLAlchemy's recipe"""

    class Bound(RecipeSession):
        pass

    Bound.primary = create_engine(primary)
    Bound.replicas = [create_engine(url) for url in replicas]
    engines += [Bound.primary, *Bound.replicas]
    return Bound()


def advanced_alchemy(primary, replicas, engines):
    """Return a session of Advanced Alchemy's router"""
    routing = pytest.importorskip(
        "advanced_alchemy.routing", reason="pip install advanced-alchemy"
    )
    from advanced_alchemy.config.routing import RoutingConfig

    maker = routing.RoutingSyncSessionMaker(
        RoutingConfig(primary_connection_string=primary, read_replicas=replicas)
    )
    session = maker()
    engines.append(session._default_engine)
    for selector in session._selectors.values():
        engines += selector._engines

    return session


@pytest.fixture(params=[recipe, advanced_alchemy], ids=lambda x: x.__name__)
def session(request, servers):
    """Give a session; a table with one book is on every server"""
    engines = []
    session: Session = request.param(
        servers.primary_url, servers.replica_urls, engines
    )
    servers.cluster.primary.execute(
        "insert into book (id, title) values (1, 'old')",
        "create function bump() returns bigint language sql volatile as"
        " 'insert into book (id, title) values (2, ''x'') returning id::bigint'",
        database=servers.database,
    )
    servers.cluster.wait_for_replay()
    yield session
    session.close()
    for engine in engines:
        engine.dispose()


@pytest.fixture
def behind(servers):
    for replica in servers.cluster.replicas:
        replica.pause_replay()


@pytest.mark.parametrize(
    "statement",
    [text("UPDATE book SET title = 'x'"), select(func.bump())],
    ids=["text", "function"],
)
def test_write_that_looks_like_a_read_is_refused_by_a_replica(
    session, statement
):
    with pytest.raises(DBAPIError, match="in a read-only transaction"):
        session.execute(statement)


def test_session_does_not_see_its_commit(session, behind):
    session.add(Book(id=2, title="new"))
    session.commit()
    assert session.scalar(select(func.count()).select_from(Book)) == 1


def test_old_value_is_written_over_a_newer_one(session, servers, behind):
    servers.cluster.primary.execute(
        "update book set title = title || ', newer'", database=servers.database
    )
    book = session.scalars(select(Book)).one()
    book.title += ", changed"
    session.commit()
    assert servers.cluster.primary.query(
        "select title from book", database=servers.database
    ) == [("old, changed",)]


def test_reads_of_one_transaction_are_of_two_replicas(session, servers):
    found = {servers.names[session.scalar(PORT)] for _ in range(40)}
    assert found == {"replica1", "replica2"}


def test_dead_replica_fails_reads(session, servers):
    servers.first.stop()
    with pytest.raises(OperationalError):
        for _ in range(40):
            session.scalar(PORT)
            session.rollback()
