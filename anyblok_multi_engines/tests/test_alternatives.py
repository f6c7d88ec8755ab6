# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What else one would take, on the same servers: the table of README.rst.

SQLAlchemy's recipe, Advanced Alchemy's router, both in plain SQLAlchemy, and
pgpool-II as the benchmarks run it. What this package does instead is tested
where the table says.
"""

import time
from contextlib import contextmanager

import pytest
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from .chaos.naive import RecipeSession
from .conftest import DRIVER, PORT


class Base(DeclarativeBase):
    """Of the only model"""


class Book(Base):
    """The table of the test blok"""

    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


@contextmanager
def disposed(engines):
    """Close the connections of engines in the end"""
    try:
        yield
    finally:
        for engine in engines:
            engine.dispose()


@contextmanager
def recipe(servers):
    """Give a session of SQLAlchemy's recipe"""

    primary = create_engine(servers.primary_url)
    replicas = [create_engine(url) for url in servers.replica_urls]
    session = RecipeSession()
    session.primary, session.replicas = primary, replicas
    with disposed([primary, *replicas]), session:
        yield session


@contextmanager
def advanced_alchemy(servers):
    """Give a session of Advanced Alchemy's router"""
    routing = pytest.importorskip(
        "advanced_alchemy.routing", reason="pip install advanced-alchemy"
    )
    from advanced_alchemy.config.routing import RoutingConfig

    maker = routing.RoutingSyncSessionMaker(
        RoutingConfig(
            primary_connection_string=servers.primary_url,
            read_replicas=servers.replica_urls,
        )
    )
    engines = [x for group in maker._engines.values() for x in group]
    with disposed(engines), maker() as session:
        yield session


@contextmanager
def pgpool(servers):
    """Give a session on the other side of pgpool-II"""
    pgpool = pytest.importorskip(
        "benchmarks.pgpool", reason="an installed package has no benchmarks"
    )
    if pgpool.program() is None:
        pytest.skip("pgpool isn't installed: apt-get install pgpool2")

    # Its default, and not the benchmarks'.
    settings = {"failover_on_backend_error": "on"}
    with pgpool.Pgpool(servers.cluster, 4, settings) as running:
        engine = create_engine(running.url(servers.database, DRIVER))
        with disposed([engine]), Session(engine) as session:
            yield session

    for port in (running._port, running._pcp_port):
        port.release()


ROUTERS = [recipe, advanced_alchemy]


def using(*contenders):
    """Have a test run with a session of each of some contenders"""
    return pytest.mark.parametrize(
        "session", contenders, ids=lambda x: x.__name__, indirect=True
    )


@pytest.fixture
def session(request, servers):
    """Give a session; a table with one book is on every server"""
    servers.cluster.primary.execute(
        "insert into book (id, title) values (1, 'old')",
        "create function bump() returns bigint language sql volatile as "
        "'insert into book (id, title) values (2, ''x'') returning 1::bigint'",
        database=servers.database,
    )
    servers.cluster.wait_for_replay()
    with request.param(servers) as session:
        yield session


@pytest.fixture
def behind(servers):
    for replica in servers.cluster.replicas:
        replica.pause_replay()


WRITES = pytest.mark.parametrize(
    "statement",
    [text("UPDATE book SET title = 'x'"), select(func.bump())],
    ids=["text", "function"],
)


@WRITES
@using(*ROUTERS)
def test_write_that_looks_like_a_read_is_refused_by_a_replica(
    session, statement
):
    with pytest.raises(DBAPIError, match="in a read-only transaction"):
        session.execute(statement)


@WRITES
@using(pgpool)
def test_write_that_looks_like_a_read_is_done(session, statement):
    session.execute(statement)


@using(*ROUTERS, pgpool)
def test_session_does_not_see_its_commit(session, behind):
    session.add(Book(id=2, title="new"))
    session.commit()
    assert session.scalar(select(func.count()).select_from(Book)) == 1


@using(*ROUTERS, pgpool)
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


@using(pgpool)
def test_reads_of_one_transaction_are_of_one_replica(session, servers):
    found = {servers.names[session.scalar(PORT)] for _ in range(40)}
    assert len(found) == 1


@using(*ROUTERS)
def test_reads_of_one_transaction_are_of_two_replicas(session, servers):
    found = {servers.names[session.scalar(PORT)] for _ in range(40)}
    assert found == {"replica1", "replica2"}


@using(*ROUTERS, pgpool)
def test_dead_replica_fails_reads(session, servers):
    def read_often():
        for _ in range(40):
            session.scalar(PORT)
            session.rollback()

    # pgpool lets go of who has asked whether it is there, and says not when: it
    # would notice, and leave nothing to fail.
    time.sleep(0.5)
    servers.first.stop()
    with pytest.raises(DBAPIError):
        read_often()


@using(*ROUTERS, pgpool)
def test_replica_that_dies_breaks_the_commit_of_a_write(session, servers):
    session.scalar(PORT)
    session.add(Book(id=2, title="new"))
    session.flush()
    for replica in servers.cluster.replicas:
        replica.terminate_backends()

    with pytest.raises(DBAPIError):
        session.commit()
