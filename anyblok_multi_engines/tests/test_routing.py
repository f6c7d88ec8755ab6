# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Which server runs what, asked of the server that ran it."""

import gc
import threading

import pytest
from sqlalchemy import (
    Sequence,
    delete,
    event,
    func,
    insert,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.attributes import flag_dirty

from anyblok_multi_engines.routing.decision import Reason
from anyblok_multi_engines.tests.conftest import PORT

PORT_AS_TEXT = text("SELECT current_setting('port')")
REPLICAS = {"replica1", "replica2"}


@pytest.fixture
def servers(shared_servers):
    return shared_servers


@pytest.fixture
def registry(shared_registry):
    return shared_registry


@pytest.fixture
def shelf(registry, servers):
    """Commit a shelf with two books, which the replicas have"""
    shelf = registry.Shelf.insert(name="one")
    registry.Book.insert(title="a", copies=1, shelf=shelf)
    registry.Book.insert(title="b", copies=2, shelf=shelf)
    registry.commit()
    servers.cluster.wait_for_replay()
    return shelf


def units_of_work(registry, servers, number=60):
    """Return the servers of as many reads, each ending its unit of work"""
    names = []
    for _ in range(number):
        names.append(servers.served_by(registry))
        registry.rollback()

    return names


class TestReads:
    def test_go_to_every_replica_and_not_to_db_wo_url(self, registry, servers):
        assert set(units_of_work(registry, servers)) == REPLICAS

    def test_one_replica_serves_a_unit_of_work(self, registry, servers):
        for _ in range(5):
            assert len({servers.served_by(registry) for _ in range(10)}) == 1
            registry.commit()

    def test_as_a_union_of_models_go_to_replicas(self, registry, servers):
        shelves = select(registry.Shelf)
        registry.session.execute(union_all(shelves, shelves)).all()
        query = registry.session.query(registry.Shelf)
        query.union(query).all()
        assert servers.served_by(registry) in REPLICAS

    def test_as_text_go_to_replicas(self, registry, servers):
        assert servers.served_by(registry, PORT_AS_TEXT) in REPLICAS

    def test_of_models_go_to_replicas(self, registry, servers, shelf):
        registry.commit()
        book = registry.Book.query().filter_by(title="a").one()
        assert book.shelf.name == "one"
        assert [x.title for x in book.shelf.books] == ["a", "b"]
        assert registry.Book.query().count() == 2
        assert registry.Book.query().get(book.id) is book
        registry.refresh(book)
        registry.Shelf.execute(
            registry.Shelf.select_sql_statement().options(
                selectinload(registry.Shelf.books)
            )
        ).scalars().all()
        primary = servers.statements_on(servers.cluster.primary)
        assert not [x for x in primary if "SELECT book" in x]
        replicas = [
            line
            for server in servers.cluster.replicas
            for line in servers.statements_on(server)
        ]
        assert len([x for x in replicas if "book" in x or "shelf" in x]) >= 6

    @pytest.mark.parametrize("option", ["yield_per", "stream_results"])
    def test_streaming_works_on_a_replica(self, registry, servers, option):
        rows = registry.execute(
            select(
                func.generate_series(1, 1_000), func.current_setting("port")
            ).execution_options(**{option: 10})
        )
        first = rows.fetchmany(3)
        assert servers.names[first[0][1]] in REPLICAS
        assert len(list(rows)) == 997

    @pytest.mark.filterwarnings(
        # psycopg's, of the cursor that is abandoned.
        "ignore::pytest.PytestUnraisableExceptionWarning"
    )
    def test_abandoned_stream_leaves_nothing(self, registry, servers):
        numbers = select(
            func.generate_series(1, 200_000), func.repeat("x", 200)
        ).execution_options(yield_per=10)
        for _ in range(4):
            next(iter(registry.execute(numbers)))
            registry.rollback()

        gc.collect()
        for replica in servers.cluster.replicas:
            left = "select count(*) from pg_ls_tmpdir()"
            assert replica.query(left) == [(0,)]

        for name in ("replica1", "replica2"):
            with registry.engine_of(name).connect() as connection:
                cursors = text("SELECT count(*) FROM pg_cursors")
                assert connection.execute(cursors).scalar() == 0
                assert connection.connection.dbapi_connection.autocommit

    def test_stream_is_not_broken_by_a_write(self, registry, servers):
        numbers = select(func.generate_series(1, 100))
        rows = registry.execute(numbers.execution_options(yield_per=10))
        iterator = iter(rows)
        next(iterator)
        registry.Shelf.insert(name="x")
        assert len(list(iterator)) == 99
        registry.commit()

    def test_do_not_begin_a_transaction(self, registry, servers):
        name = servers.served_by(registry)
        server = next(x for x in servers.cluster.servers if x.name == name)
        states = server.query(
            "select distinct state from pg_stat_activity where datname = %s",
            [servers.database],
        )
        assert states == [("idle",)]


class TestWrites:
    @pytest.mark.parametrize("how", ["fetch", "evaluate", "auto", False])
    def test_of_queries(self, registry, servers, shelf, how):
        registry.commit()
        books = registry.session.query(registry.Book)
        assert servers.served_by(registry) in REPLICAS
        books.update({"copies": 7}, synchronize_session=how)
        assert books.filter_by(copies=7).count() == 2
        books.delete(synchronize_session=how)
        registry.commit()
        count = "select count(*) from book"
        primary = servers.cluster.primary
        assert primary.query(count, database=servers.database) == [(0,)]

    def test_flush_goes_to_the_primary_and_what_follows(
        self, registry, servers
    ):
        assert servers.served_by(registry) in REPLICAS
        registry.Shelf.insert(name="x")
        assert servers.served_by(registry) == "primary"
        assert registry.Shelf.query().filter_by(name="x").count() == 1
        registry.commit()
        assert servers.served_by(registry) in REPLICAS

    def test_pending_change_is_seen_by_a_query(self, registry, servers, shelf):
        registry.commit()
        book = registry.Book.query().filter_by(title="a").one()
        book.copies = 7
        assert registry.Book.query().filter_by(copies=7).one() is book
        assert servers.served_by(registry) == "primary"

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_end_with_the_unit_of_work(self, registry, servers, end):
        registry.Shelf.insert(name="x")
        getattr(registry, end)()
        assert servers.served_by(registry) in REPLICAS

    def test_end_with_close_and_remove(self, registry, servers):
        registry.Shelf.insert(name="x")
        registry.session.close()
        assert servers.served_by(registry) in REPLICAS
        registry.Shelf.insert(name="x")
        registry.Session.remove()
        assert servers.served_by(registry) in REPLICAS

    def test_end_with_an_error(self, registry, servers):
        with pytest.raises(DBAPIError):
            registry.execute(text("SELECT 1 / 0"))

        registry.rollback()
        assert servers.served_by(registry) in REPLICAS


class TestEmptyFlush:
    """AnyBlok marks what a One2Many has loaded as changed"""

    @pytest.fixture
    def flushed(self, registry, servers, shelf):
        """Flush nothing, in a unit of work that reads from a replica"""
        registry.commit()
        assert registry.Shelf.query().one().books
        assert registry.session.dirty
        registry.flush()
        assert servers.served_by(registry) in REPLICAS

    def test_at_the_beginning(self, registry, servers, shelf):
        registry.commit()
        assert shelf.name
        registry.session.expire_on_commit = False
        registry.commit()
        flag_dirty(shelf)
        registry.flush()
        assert servers.served_by(registry) in REPLICAS
        registry.execute(text("UPDATE book SET copies = 8"))
        assert servers.served_by(registry) == "primary"
        assert registry.Book.query().filter_by(copies=8).count() == 2

    def test_write_that_is_no_flush(self, registry, servers, flushed):
        registry.execute(text("UPDATE book SET copies = 8"))
        assert servers.served_by(registry) == "primary"
        assert registry.Book.query().filter_by(copies=8).count() == 2

    def test_bare_connection(self, registry, servers, flushed):
        connection = registry.connection()
        registry.flush()
        connection.execute(text("UPDATE book SET copies = 8"))
        assert servers.served_by(registry) == "primary"
        assert registry.Book.query().filter_by(copies=8).count() == 2

    def test_bare_connection_before(self, registry, servers, shelf):
        registry.commit()
        registry.Shelf.query().one().books  # noqa: B018
        connection = registry.connection()
        registry.flush()
        assert servers.served_by(registry) == "primary"
        connection.execute(text("UPDATE book SET copies = 8"))
        assert registry.Book.query().filter_by(copies=8).count() == 2

    def test_flush_that_writes(self, registry, servers, flushed):
        registry.Book.query().first().copies = 8
        registry.flush()
        assert servers.served_by(registry) == "primary"

    def test_flush_that_fails(self, registry, servers, flushed):
        with pytest.raises(DBAPIError), registry.begin_nested():
            registry.Shelf.insert(name="one")

        assert servers.served_by(registry) == "primary"

    def test_ends_with_the_unit_of_work(self, registry, servers, flushed):
        registry.commit()
        assert servers.served_by(registry) in REPLICAS
        registry.Shelf.insert(name="x")
        assert servers.served_by(registry) == "primary"


@pytest.mark.parametrize(
    "name",
    [
        "text update",
        "insert",
        "update",
        "delete",
        "dml in a cte",
        "for update",
        "for update in a subquery",
        "nextval",
        "next_value",
        "sequence",
        "own function",
        "advisory lock",
        "connection",
        "bulk insert",
        "savepoint",
    ],
)
def test_what_is_no_plain_read_goes_to_the_primary(
    registry, servers, shelf, name
):
    servers.cluster.primary.execute(
        "create or replace function own() returns text language sql as "
        "$$select current_setting('port')$$",
        database=servers.database,
    )
    servers.cluster.wait_for_replay()
    registry.commit()
    books = registry.Book.__table__
    port = func.current_setting("port")
    made = insert(books).values(title="c").returning(port.label("p")).cte()
    locked = select(books.c.id).with_for_update()
    sequence = Sequence("system_sequence_seq_name")
    returning = {
        "text update": text(
            "UPDATE book SET copies = 3 RETURNING current_setting('port')"
        ),
        "insert": insert(books).values(title="c").returning(port),
        "update": update(books).values(copies=3).returning(port),
        "delete": delete(books).returning(port),
        "dml in a cte": select(made.c.p),
        "for update": select(port).select_from(books).with_for_update(),
        "for update in a subquery": select(port).where(
            select(locked.subquery()).exists()
        ),
        "nextval": select(port, func.nextval("system_sequence_seq_name")),
        "next_value": select(port, sequence.next_value()),
        "own function": select(func.own()),
        "advisory lock": select(port, func.pg_try_advisory_xact_lock(1)),
    }
    others = {
        "sequence": lambda: registry.scalar(sequence),
        "connection": lambda: registry.connection(),
        "bulk insert": lambda: registry.session.execute(
            insert(registry.Book),
            [{"ANYBLOK_FIELD_title": x} for x in ("c", "d")],
        ),
        "savepoint": lambda: registry.begin_nested(),
    }
    if name in returning:
        assert servers.served_by(registry, returning[name]) == "primary"
    else:
        others[name]()

    # And so does what follows in the same unit of work, and no further.
    assert servers.served_by(registry) == "primary"
    if name == "savepoint":
        registry.session.get_nested_transaction().rollback()
        assert servers.served_by(registry) == "primary"

    registry.rollback()
    assert servers.served_by(registry) in REPLICAS


def test_bind_that_the_caller_gives_is_used(registry, servers):
    primary = registry.get_engine_for(ro=False)
    row = registry.session.execute(
        PORT, bind_arguments={"bind": primary}
    ).first()
    assert servers.names[row[0]] == "primary"
    registry.rollback()
    replica = registry.engine_of("replica2")
    for _ in range(5):
        row = registry.session.execute(
            PORT, bind_arguments={"bind": replica}
        ).first()
        assert servers.names[row[0]] == "replica2"
        assert servers.served_by(registry) == "replica2"
        registry.rollback()


def test_bind_of_a_model_is_kept(registry, servers):
    """A session's own binds come before our choice"""
    replica = registry.engine_of("replica2")
    registry.session.bind_mapper(registry.Shelf, replica)
    assert registry.session.get_bind(registry.Shelf) is replica
    registry.Session.remove()


def test_bind_of_a_model_counts_in_the_middle_of_a_unit_of_work(
    registry, servers
):
    statement = select(registry.Shelf)
    for _ in range(3):
        registry.execute(statement)

    session = registry.session
    mine = session.placement().replica
    other = next(x for x in sorted(REPLICAS) if x != mine)
    session.bind_mapper(registry.Shelf, registry.engine_of(other))
    for _ in range(3):
        registry.execute(statement)
        assert set(session._unit.reads_on) == {mine, other}

    registry.rollback()
    for _ in range(3):
        registry.execute(statement)
        assert set(session._unit.reads_on) == {other}
        registry.rollback()

    registry.Session.remove()


def test_two_phase_commit_stays_on_the_primary(registry, servers):
    registry.Session.remove()
    session = registry.Session(twophase=True)
    assert session.execute(PORT).scalar() == str(servers.cluster.primary.port)
    session.commit()
    registry.Session.remove()


def test_threads_do_not_share_their_units_of_work(registry, servers):
    registry.Shelf.insert(name="x")
    seen = []

    def other():
        seen.append(servers.served_by(registry))
        seen.append(registry.Shelf.query().count())
        registry.Session.remove()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen[0] in REPLICAS
    assert seen[1] == 0
    assert servers.served_by(registry) == "primary"


def test_error_on_a_replica_leaves_the_unit_of_work_usable(registry, servers):
    bad = select(1 / func.length(""))
    with pytest.raises(DBAPIError):
        registry.execute(bad)

    registry.rollback()
    assert servers.served_by(registry) in REPLICAS


class TestExplain:
    def test_says_where_and_why(self, registry, shelf):
        registry.commit()
        explain = registry.explain
        assert explain(registry.Book.query()).server_name in REPLICAS
        assert explain(select(1)).reason is Reason.USABLE_REPLICA
        decision = explain("UPDATE book SET copies = 3")
        assert decision.server_name == "primary"
        assert decision.reason is Reason.NOT_A_READ
        assert "nextval" in explain(select(func.nextval("s"))).because

    def test_knows_sqlalchemy_s_own_query(self, registry, servers):
        query = registry.session.query(registry.Book)
        assert registry.explain(query).server_name in REPLICAS
        query = query.with_for_update()
        assert registry.explain(query).server_name == "primary"

    def test_has_no_effect(self, registry, servers):
        for _ in range(5):
            registry.explain("SELECT 1")

        assert not registry.session.in_transaction()
        assert servers.served_by(registry) in REPLICAS

    def test_knows_the_unit_of_work(self, registry, servers):
        name = servers.served_by(registry)
        decision = registry.explain(select(1))
        assert (decision.server_name, decision.reason) == (
            name,
            Reason.ALREADY_ON_REPLICA,
        )
        registry.Shelf.insert(name="x")
        assert registry.explain(select(1)).reason is Reason.ALREADY_ON_PRIMARY


class TestListeners:
    """What an application's listener makes of a statement is what counts"""

    @pytest.fixture(params=["text", "core", "orm"])
    def changed(self, request, registry):
        """Let a listener lock what is read"""
        reads = {
            "text": (text("SELECT 1"), text("SELECT 1 FOR UPDATE")),
            "core": (select(1), select(1).with_for_update()),
            "orm": (
                select(registry.Shelf),
                select(registry.Shelf).with_for_update(),
            ),
        }
        read, lock = reads[request.param]
        registry.explain(read)

        def listen(state):
            state.statement = lock

        session = registry.session
        event.listen(session, "do_orm_execute", listen)
        yield read
        event.remove(session, "do_orm_execute", listen)

    def test_statement_that_is_no_read_any_more(
        self, registry, servers, changed, caplog
    ):
        registry.session.execute(changed)
        assert registry.session.placement().on_primary
        assert "refused" not in caplog.text
