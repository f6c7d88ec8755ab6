# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A COMMIT whose answer is lost says so; nothing else does."""

import pickle
import threading
import time
from contextlib import contextmanager

import pytest
from sqlalchemy import Integer, TypeDecorator, event, text, type_coerce
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from anyblok_multi_engines.engines import has_ended
from anyblok_multi_engines.errors import (
    CommitUnknownError,
    MultiEnginesException,
)
from anyblok_multi_engines.testing import wait_until
from anyblok_multi_engines.tests.conftest import DRIVER

COUNT = "select count(*) from book"


@pytest.fixture
def proxy(servers):
    """Give a proxy in front of the primary"""
    return servers.cluster.proxy(servers.cluster.primary)


@pytest.fixture
def registry(servers, make_registry, proxy):
    """Give a registry whose primary is behind the proxy"""
    registry = make_registry(
        servers.database,
        db_wo_url=proxy.url(servers.database, DRIVER),
        db_ro_urls=servers.replica_urls,
    )
    yield registry
    registry.rollback()


@contextmanager
def swallowed(proxy):
    """Let what is sent in the block get nowhere, and the connection end"""
    proxy.blackhole()
    end = threading.Timer(0.1, proxy.drop)
    end.start()
    yield
    end.join()
    proxy.heal()


def books(servers):
    ((count,),) = servers.cluster.primary.query(
        COUNT, database=servers.database
    )
    return count


def activity(servers, condition):
    """Return the backends of the database that the condition is true of"""
    rows = servers.cluster.primary.query(
        "select pid from pg_stat_activity"
        f" where datname = '{servers.database}' and {condition}"
    )
    return [pid for (pid,) in rows]


@pytest.fixture
def in_commit(servers, registry, proxy):
    """Give a function that does something to a COMMIT without an answer

    The COMMIT waits for a synchronous standby that there isn't.
    """
    primary = servers.cluster.primary
    waits = "wait_event = 'SyncRep'"

    def run(commit, fault):
        raised = []

        def work():
            try:
                registry.execute(text("SET LOCAL synchronous_commit = on"))
                commit(registry)
            except Exception as error:
                raised.append(error)
            finally:
                registry.Session.remove()

        thread = threading.Thread(target=work)
        primary.configure(
            synchronous_standby_names="nobody", synchronous_commit="local"
        )
        try:
            thread.start()
            wait_until("nobody commits", lambda: activity(servers, waits))
            (pid,) = activity(servers, waits)
            fault(pid)
            thread.join(20.0)
        finally:
            primary.configure(
                synchronous_standby_names=None, synchronous_commit=None
            )

        assert not thread.is_alive()
        return raised[0] if raised else None

    return run


def by_registry(registry):
    registry.Book.insert(title="x")
    registry.commit()


def by_session(registry):
    registry.session.add(registry.Book(title="x"))
    registry.session.commit()


def by_block(registry):
    # The unit of work has begun: its own transaction is what is committed.
    registry.session.add(registry.Book(title="x"))
    with registry.session.get_transaction():
        pass


def by_connection(registry):
    connection = registry.session.connection()
    connection.execute(text("insert into book (title, copies) values ('x', 1)"))
    connection.get_transaction().commit()


COMMITS = [by_registry, by_session, by_block, by_connection]


@pytest.mark.parametrize("commit", COMMITS)
def test_connection_that_is_cut_off_in_a_commit(
    servers, in_commit, proxy, commit
):
    error = in_commit(commit, lambda pid: proxy.drop())
    assert isinstance(error, CommitUnknownError)
    assert isinstance(error, OperationalError)
    assert isinstance(error, MultiEnginesException)
    assert error.connection_invalidated
    assert "do it again only if they aren't" in str(error)
    # It has been: and once.
    wait_until("it was not committed", lambda: books(servers) == 1)


def terminate(servers):
    def run(pid):
        servers.cluster.primary.query(f"select pg_terminate_backend({pid})")

    return run


def kill(servers):
    def run(pid):
        servers.cluster.primary.kill_backends(servers.database)

    return run


@pytest.mark.parametrize("fault", [terminate, kill])
def test_backend_that_ends_while_it_waits_for_a_standby(
    servers, in_commit, fault
):
    error = in_commit(by_registry, fault(servers))
    assert isinstance(error, CommitUnknownError)
    assert books(servers) == 1


def test_two_phase_commit_leaves_what_can_be_looked_up(
    servers, registry, proxy
):
    session = registry.session
    session.twophase = True
    session.add(registry.Book(title="x"))
    session.prepare()
    with swallowed(proxy), pytest.raises(CommitUnknownError):
        session.commit()

    session.rollback()
    session.twophase = False
    primary, database = servers.cluster.primary, servers.database
    ((name,),) = primary.query(
        "select gid from pg_prepared_xacts where database = current_database()",
        database=database,
    )
    primary.execute(f"commit prepared '{name}'", database=database)
    assert books(servers) == 1


def test_next_read_sees_it(servers, registry, in_commit, proxy):
    """Whatever has become of it: the position is asked anew"""
    seen = []

    def commit(registry):
        try:
            by_registry(registry)
        except CommitUnknownError:
            registry.rollback()
            assert registry.reader().knows.unknown_write
            seen.append(registry.Book.query().count())
            raise

    in_commit(commit, lambda pid: proxy.drop())
    assert seen == [1]


class Boom(TypeDecorator):
    """A column whose value nobody can read"""

    impl = Integer
    cache_ok = True

    def process_result_value(self, value, dialect):
        raise ValueError("boom")


INSERT = text("INSERT INTO book (title, copies) VALUES ('x', 1)")


def through_the_session_connection(registry):
    registry.session_connection = registry.engines["wo"].connect()
    registry.execute(INSERT)
    return registry.commit


def beside_a_session_that_only_reads(registry):
    connection = registry.engines["wo"].connect()
    begun = connection.begin()
    connection.execute(INSERT)
    count = text("SELECT count(*) FROM book")
    registry.execute(count, bind_arguments={"bind": connection})
    return begun.commit


def with_a_result_that_fails(registry):
    book = registry.Book.__table__
    insert = book.insert().values(title="x", copies=1)
    with pytest.raises(ValueError, match="boom"):
        registry.session.scalar(insert.returning(type_coerce(book.c.id, Boom)))

    return registry.commit


def by_a_listener(registry):
    def write(session, transaction, connection):
        connection.execute(INSERT)

    event.listen(registry.session, "after_begin", write)
    with registry.use_primary():
        registry.execute(text("SELECT count(*) FROM book"))

    return registry.commit


@pytest.mark.parametrize(
    "write",
    [
        through_the_session_connection,
        beside_a_session_that_only_reads,
        with_a_result_that_fails,
        by_a_listener,
    ],
)
def test_write_is_known_however_it_was_made(servers, registry, proxy, write):
    """So its COMMIT isn't taken for the end of what has only read"""
    commit = write(registry)
    with swallowed(proxy), pytest.raises(CommitUnknownError):
        commit()

    registry.session_connection = None
    registry.Session.remove()


class TestIsNot:
    """The application may do it again without a look"""

    def fails(self, run, kind=DBAPIError):
        with pytest.raises(kind) as caught:
            run()

        assert not isinstance(caught.value, CommitUnknownError)
        return caught.value

    def test_connection_that_was_lost_before(self, servers, registry, proxy):
        registry.Book.insert(title="x")
        registry.flush()
        proxy.drop()
        self.fails(registry.commit, OperationalError)
        registry.rollback()
        assert books(servers) == 0

    @pytest.mark.parametrize("fault", ["terminate_backends", "kill_backends"])
    def test_backend_that_had_ended_before(self, servers, make_registry, fault):
        registry = make_registry.replicated(servers)
        registry.Book.insert(title="x")
        registry.flush()
        getattr(servers.cluster.primary, fault)(servers.database)
        self.fails(registry.commit, OperationalError)
        registry.rollback()
        assert books(servers) == 0

    def test_flush_in_a_commit(self, servers, registry, proxy):
        registry.Book.insert(title="x")
        registry.flush()
        registry.session.add(registry.Book(title="y"))
        proxy.drop()
        self.fails(registry.commit, OperationalError)
        registry.rollback()
        assert books(servers) == 0

    def test_statement(self, servers, registry, proxy):
        registry.Book.insert(title="x")
        proxy.drop()
        self.fails(lambda: registry.execute(text("update book set title='y'")))

    def test_primary_that_is_not_there(self, servers, registry, proxy):
        proxy.refuse()
        proxy.drop()
        self.fails(lambda: by_session(registry), OperationalError)

    def test_timeout_of_the_server(self, servers, registry):
        registry.Book.insert(title="x")
        registry.execute(
            text("SET LOCAL idle_in_transaction_session_timeout = '10ms'")
        )
        connection = registry.session.connection().connection
        wait_until(
            "it was not ended", lambda: has_ended(connection.dbapi_connection)
        )
        self.fails(registry.commit)
        registry.rollback()
        assert books(servers) == 0

    def test_constraint_that_is_checked_in_the_commit(self, servers, registry):
        registry.execute(
            text("create table t (n int unique deferrable initially deferred)")
        )
        registry.execute(text("insert into t values (1), (1)"))
        self.fails(registry.commit, IntegrityError)

    def test_serialization_failure_of_the_commit(self, servers, make_registry):
        registry = make_registry(
            servers.database,
            db_wo_url=servers.primary_url,
            db_ro_urls=servers.replica_urls,
            isolation_level="SERIALIZABLE",
        )
        other = Session(registry.engines["wo"])
        count, insert = text(COUNT), text("insert into book (title) values (1)")
        with registry.use_primary():
            registry.execute(count)
            other.execute(count)
            registry.execute(insert)
            other.execute(insert)
            other.commit()
            error = self.fails(registry.commit)

        assert "could not serialize" in str(error)
        registry.rollback()

    def test_unit_of_work_that_has_only_read(self, servers, registry, proxy):
        with registry.use_primary():
            registry.Book.query().count()
            with swallowed(proxy):
                # There was nothing to commit.
                registry.commit()


def test_commit_on_the_way_that_never_arrives(servers, registry, proxy):
    """Nobody can tell it from one that has"""
    registry.Book.insert(title="x")
    registry.flush()
    with swallowed(proxy), pytest.raises(CommitUnknownError):
        registry.commit()

    registry.rollback()
    assert books(servers) == 0


def test_is_never_run_again(servers, registry, in_commit, proxy):
    begun = time.monotonic()
    size = servers.cluster.primary.log_size
    assert in_commit(by_registry, lambda pid: proxy.drop())
    assert time.monotonic() - begun < 10.0
    log = servers.cluster.primary.log(size)
    mine = [x for x in log.splitlines() if f"<{servers.database}>" in x]
    assert sum("statement: COMMIT" in line for line in mine) == 1
    assert sum("INSERT INTO book" in line for line in mine) == 1


def test_survives_a_pickle(servers, in_commit, proxy):
    error = in_commit(by_registry, lambda pid: proxy.drop())
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is CommitUnknownError
    assert str(copy) == str(error)
    assert copy.connection_invalidated
    assert "postgres@" not in str(error)


def test_server_that_says_it_does_not_know(servers, registry):
    """As CockroachDB does, and poolers"""
    registry.execute(
        text(
            "create function unknown() returns trigger language plpgsql as $$"
            " begin raise 'lost' using errcode = '40003'; end $$"
        )
    )
    registry.execute(
        text(
            "create constraint trigger t after insert on book deferrable"
            " initially deferred for each row execute function unknown()"
        )
    )
    registry.commit()
    registry.Book.insert(title="x")
    with pytest.raises(CommitUnknownError, match="lost"):
        registry.commit()
