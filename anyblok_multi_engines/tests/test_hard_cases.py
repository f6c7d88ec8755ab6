# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What breaks others, case by case, with the replay of all replicas paused.

The numbers are those of the list that the project keeps: 1 to 8 are writes
that look like reads, 9 to 17 belong to one session. Other modules have the
variants.
"""

import threading

import pytest
from sqlalchemy import Sequence, delete, func, insert, inspect, select, text
from sqlalchemy import update as update_of

from anyblok_multi_engines.errors import StaleReadError

REPLICAS = {"replica1", "replica2"}
COUNTER = Sequence("counter")

SCHEMA = """
create sequence if not exists counter;
create or replace function bump() returns bigint volatile language sql as
$$select nextval('counter')$$;
create or replace view bumping as select bump() as n;
create or replace procedure bumps() language sql as
$$select nextval('counter')$$;
select setval('counter', 100);
"""


@pytest.fixture
def servers(shared_servers):
    return shared_servers


@pytest.fixture
def registry(servers, shared_registry):
    """Give a registry with one book, whose replicas stand still"""
    servers.cluster.primary.execute(SCHEMA, database=servers.database)
    shared_registry.Book.insert(title="a", copies=0)
    shared_registry.commit()
    shared_registry.Session.remove()
    servers.cluster.wait_for_replay()
    for replica in servers.cluster.replicas:
        replica.pause_replay()

    yield shared_registry
    for replica in servers.cluster.replicas:
        replica.resume_replay()


@pytest.fixture
def primary(servers):
    """Give a function that asks the primary, aside, for one value"""

    def ask(statement):
        rows = servers.cluster.primary.query(
            statement, database=servers.database
        )
        return rows[0][0]

    return ask


@pytest.fixture
def counted(primary):
    """Give a function that returns how far the counter has come"""
    return lambda: primary("select last_value from counter") - 100


def copies(servers, number):
    servers.cluster.primary.execute(
        f"update book set copies = {number}", database=servers.database
    )


class TestWritesThatLookLikeReads:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE book SET copies = 1",
            "/* a comment */ update book set copies = 1 returning id",
            "WITH x AS (UPDATE book SET copies = 1 RETURNING id) "
            "SELECT * FROM x",
            "SELECT 1; UPDATE book SET copies = 1",
        ],
    )
    def test_1_text(self, registry, primary, statement):
        registry.execute(text(statement))
        registry.commit()
        assert primary("select copies from book") == 1

    def test_1_core(self, registry, primary):
        table = registry.Book.__table__
        made = update_of(table).values(copies=1).returning(table.c.id).cte()
        assert registry.execute(select(made.c.id)).scalar()
        registry.commit()
        assert primary("select copies from book") == 1

    @pytest.mark.parametrize(
        "statement",
        [
            select(func.nextval("counter")),
            select(COUNTER.next_value()),
            COUNTER,
            text("SELECT nextval('counter')"),
        ],
        ids=["function", "next_value", "sequence", "text"],
    )
    def test_2_sequences(self, registry, counted, statement):
        number = registry.scalar(statement)
        current = registry.scalar(select(func.currval("counter")))
        registry.commit()
        assert number == current == 101
        assert counted() == 1

    def test_2_system_sequence(self, registry):
        sequence = registry.System.Sequence
        numbers = {
            int(sequence.nextvalBy(code="Model.Shelf=>number"))
            for _ in range(3)
        }
        assert len(numbers) == 3

    @pytest.mark.parametrize(
        "statement",
        [
            "SELECT bump()",
            "SELECT n FROM bumping",
            "CALL bumps()",
            "DO $$ begin perform bump(); end $$",
            "EXPLAIN ANALYZE SELECT bump()",
        ],
    )
    def test_3_own_functions(self, registry, counted, statement):
        registry.execute(text(statement))
        registry.commit()
        assert counted() == 1

    @pytest.mark.parametrize(
        "lock",
        [
            "FOR UPDATE",
            "FOR NO KEY UPDATE",
            "for\n-- a comment\n  share",
            "FOR KEY SHARE",
            "FOR UPDATE SKIP LOCKED",
        ],
    )
    @pytest.mark.parametrize("where", ["{}", "SELECT * FROM ({}) x"])
    def test_4_row_locks(self, registry, servers, lock, where):
        locking = where.format(f"SELECT * FROM book {lock}")
        assert registry.execute(text(locking)).all()
        assert servers.served_by(registry) == "primary"

    def test_5_dml_outside_of_a_flush(self, registry, primary):
        Book = registry.Book
        registry.session.execute(update_of(Book).values(copies=1))
        registry.commit()
        assert primary("select copies from book") == 1
        Book.execute_sql_statement(Book.update_sql_statement().values(copies=2))
        registry.commit()
        assert primary("select copies from book") == 2
        registry.session.execute(insert(Book.__table__).values(title="b"))
        registry.commit()
        assert primary("select count(*) from book") == 2
        registry.session.query(Book).filter_by(title="b").delete()
        registry.session.execute(delete(Book))
        registry.commit()
        assert primary("select count(*) from book") == 0

    def test_6_no_clause_at_all(self, registry, servers, primary):
        assert "book" in inspect(registry.connection()).get_table_names()
        with registry.connection().connection.cursor() as cursor:
            cursor.execute("UPDATE book SET copies = 1")

        assert servers.served_by(registry) == "primary"
        registry.commit()
        assert primary("select copies from book") == 1

    def test_7_advisory_locks(self, registry, primary):
        registry.execute(text("SELECT pg_advisory_xact_lock(7)"))
        assert primary("select pg_try_advisory_lock(7)") is False

    def test_8_upgrade(self, registry, primary):
        registry.upgrade(install=["test-me-blok1"])
        registry.commit()
        state = "select state from system_blok where name = 'test-me-blok1'"
        assert primary(state) == "installed"
        registry.upgrade(uninstall=["test-me-blok1"])
        registry.commit()
        assert primary(state) == "uninstalled"


class TestOneSession:
    def test_9_insert_then_query(self, registry):
        registry.Book.insert(title="b")
        assert registry.Book.query().count() == 2
        registry.session.add(registry.Book(title="c"))
        assert registry.Book.query().filter_by(title="c").one()

    def test_10_commit_then_touch(self, registry):
        book = registry.Book.insert(title="b")
        registry.commit()
        assert book.title == "b"
        registry.commit()
        book.refresh()
        assert book.title == "b"

    def test_11_stale_write_back(self, registry, servers, primary):
        copies(servers, 10)
        book = registry.Book.query().one()
        assert book.copies == 0
        book.copies += 1
        with pytest.raises(StaleReadError, match="copies"):
            registry.commit()

        registry.rollback()
        assert primary("select copies from book") == 10
        with registry.use_primary():
            book.copies += 1
            registry.commit()

        assert primary("select copies from book") == 11

    def test_12_stale_identity_map(self, registry, servers):
        copies(servers, 10)
        book = registry.Book.query().one()
        assert book.copies == 0
        registry.Shelf.insert(name="x")
        assert registry.Book.query().one() is book
        assert book.copies == 10

    def test_13_one_replica(self, registry, servers):
        for _ in range(5):
            names = {servers.served_by(registry) for _ in range(10)}
            assert len(names) == 1
            assert names <= REPLICAS
            registry.rollback()

    def test_14_death_before_the_commit(self, registry, servers, primary):
        for replica in servers.cluster.replicas:
            replica.resume_replay()

        for number in range(10):
            servers.cluster.wait_for_replay()
            assert servers.served_by(registry) in REPLICAS
            for replica in servers.cluster.replicas:
                replica.terminate_backends(servers.database)

            registry.Book.insert(title=f"book {number}")
            registry.commit()

        assert primary("select count(*) from book") == 11

    def test_15_blocks(self, registry, servers):
        copies(servers, 10)
        with registry.use_primary():
            registry.commit()
            assert registry.Book.query().one().copies == 10
            with registry.use_primary():
                registry.rollback()

            registry.commit()
            assert registry.Book.query().one().copies == 10

        registry.commit()
        decision = registry.explain("SELECT * FROM book")
        assert decision.server_name in REPLICAS

    def test_16_no_state_leaks(self, registry, servers):
        seen = []

        def other():
            seen.append(servers.served_by(registry))
            registry.Session.remove()

        registry.Book.insert(title="b")
        with registry.use_primary():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

        registry.Session.remove()
        seen.append(servers.served_by(registry))
        assert set(seen) <= REPLICAS

    @pytest.mark.parametrize(
        ("statement", "question", "answer"),
        [
            (
                "CREATE TEMPORARY TABLE mine AS SELECT 7 AS x",
                "SELECT x FROM mine",
                7,
            ),
            ("SET LOCAL work_mem = '123kB'", "SHOW work_mem", "123kB"),
            (
                "SELECT set_config('my.x', 'y', true)",
                "SELECT current_setting('my.x')",
                "y",
            ),
            ("LISTEN news", "SELECT current_setting('port')", None),
        ],
        ids=["table", "setting", "set_config", "listen"],
    )
    def test_17_state_of_the_transaction(
        self, registry, servers, statement, question, answer
    ):
        registry.execute(text(statement))
        if answer is None:
            answer = str(servers.cluster.primary.port)

        assert registry.execute(text(question)).scalar() == answer
