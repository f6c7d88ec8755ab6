# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Every reader sees what it must, on servers that are behind."""

import logging
import threading
import time
from io import StringIO
from itertools import pairwise
from types import SimpleNamespace

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import IntegrityError

from anyblok_multi_engines.consistency import (
    ConsistencyToken,
    decode,
    format_lsn,
)
from anyblok_multi_engines.errors import (
    CommitUnknownError,
    ConsistencyTokenError,
    NoReplicaError,
    OptionError,
)
from anyblok_multi_engines.freshness import UNITS_ON_ONE
from anyblok_multi_engines.health import probe
from anyblok_multi_engines.health.probe import primary_position
from anyblok_multi_engines.reader import Reader, Seen, serving
from anyblok_multi_engines.routing.decision import Decision, Reason
from anyblok_multi_engines.testing import wait_until

from .conftest import DRIVER, PORT

REPLICAS = {"replica1", "replica2"}
FUNCTIONS = "pg_current_wal_insert_lsn(), pg_last_wal_replay_lsn()"
LOGGER = "anyblok_multi_engines"
# Bytes.
WAL_PAGE = 8192


@pytest.fixture
def make(servers, make_registry):
    """Give a function that builds a registry with options of freshness"""

    def make(**options):
        values = {
            "db_wo_url": servers.primary_url,
            "db_ro_urls": servers.replica_urls,
            "db_ro_consistency": "session",
            **options,
        }
        return make_registry(servers.database, **values)

    return make


def write(registry, title="x"):
    registry.Book.insert(title=title)
    registry.commit()


def titles(registry):
    found = {book.title for book in registry.Book.query().all()}
    registry.rollback()
    return found


def unit(registry, servers):
    """Return who serves a unit of work of one read"""
    name = servers.served_by(registry)
    registry.rollback()
    return name


def units(registry, servers, number=24):
    return {unit(registry, servers) for _ in range(number)}


def pause(*replicas):
    for replica in replicas:
        replica.pause_replay()


def asked_of_primary(servers, size):
    """Return what the primary was asked for this database, from its log

    Other registries of this process have monitors of their own.

    :param size: of the log when it began
    """
    log = servers.cluster.primary.log(size).replace("\n\t", " ")
    mine = [x for x in log.splitlines() if f"<{servers.database}>" in x]
    return "\n".join(mine)


def write_to_log(registry, size):
    """Write a record to WAL, and return the position of its commit"""
    message = f"pg_logical_emit_message(true, 'x', repeat('x', {size}))"
    registry.execute(text(f"SELECT {message}"))
    registry.commit()
    return decode(registry.consistency_token()).lsn


class TestToken:
    def test_comes_with_a_commit_that_wrote_and_with_no_other(
        self, registry, servers
    ):
        tokens = []

        def work():
            assert registry.consistency_token() is None
            titles(registry)
            registry.commit()
            assert registry.consistency_token() is None
            registry.Book.insert(title="x")
            registry.rollback()
            assert registry.consistency_token() is None
            with registry.use_primary():
                titles(registry)

            registry.commit()
            assert registry.consistency_token() is None
            write(registry)
            tokens.append(registry.consistency_token())
            registry.Session.remove()
            assert registry.consistency_token() == tokens[0]
            registry.Session.remove()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert tokens[0].replace("-", "").replace("_", "").isalnum()

    @pytest.mark.parametrize(
        "statement",
        [
            "INSERT INTO book (title, copies) VALUES ('y', 1)",
            "CREATE TABLE made_by_a_test (id integer)",
            "WITH x AS (UPDATE book SET copies = 3 RETURNING 1) TABLE x",
            "SELECT setval('system_sequence_seq_name', 5)",
        ],
    )
    def test_comes_with_each_way_to_write(self, registry, statement):
        write(registry)
        before = decode(registry.consistency_token())
        registry.execute(text(statement))
        registry.commit()
        after = decode(registry.consistency_token())
        assert before.is_behind(after)

    @pytest.mark.parametrize("how", ["insert", "update", "delete"])
    def test_comes_with_a_flush_after_reads_on_the_primary(self, registry, how):
        write(registry)
        before = registry.consistency_token()
        with registry.use_primary():
            book = registry.Book.query().one()
            if how == "insert":
                registry.Book.insert(title="y")
            elif how == "update":
                book.copies = 5
            else:
                book.delete()

            registry.commit()

        assert registry.consistency_token() != before

    def test_does_not_come_with_a_flush_of_nothing(self, registry):
        shelf = registry.Shelf.insert(name="one")
        registry.Book.insert(title="a", shelf=shelf)
        registry.commit()
        before = registry.consistency_token()
        with registry.use_primary():
            assert registry.Shelf.query().one().books
            assert registry.session.dirty
            registry.commit()

        assert registry.consistency_token() == before

    def test_comes_with_a_copy(self, registry):
        cursor = registry.connection().connection.cursor()
        with cursor:
            copy = "COPY book (title, copies) FROM STDIN"
            if hasattr(cursor, "copy_expert"):
                cursor.copy_expert(copy, StringIO("z\t1\n"))
            else:
                with cursor.copy(copy) as rows:
                    rows.write("z\t1\n")

        registry.commit()
        assert registry.consistency_token()

    def test_costs_one_round_trip(self, make, servers):
        # But for the monitor.
        registry = make(db_ro_check_interval=60)
        write(registry)
        size = servers.cluster.primary.log_size
        write(registry)
        log = asked_of_primary(servers, size)
        asked = log.count("pg_current_wal_insert_lsn()")
        begun = log.count("statement: BEGIN")
        assert (asked, begun) == (1, 1)
        assert "SET " not in log

    @pytest.mark.parametrize("level", ["on", "off"])
    def test_is_after_the_commit(self, registry, servers, level):
        """Under synchronous_commit = off, too"""
        primary = servers.cluster.primary
        for number in range(10):
            registry.execute(text(f"SET LOCAL synchronous_commit = {level}"))
            write(registry, str(number))
            token = decode(registry.consistency_token())
            lsn = format_lsn(token.lsn)
            behind = primary.query(
                f"select pg_current_wal_insert_lsn() >= '{lsn}'::pg_lsn"
            )
            assert behind == [(True,)]
            replica = servers.first
            replica.wait_for_replay(lsn)
            count = "select count(*) from book"
            found = replica.query(count, database=servers.database)
            assert found == [(number + 1,)]

    def test_is_reached_while_the_primary_is_idle(self, registry, servers):
        """At the end of a WAL page the position is before the next header"""
        plain = 1000
        for _ in range(100):
            before = write_to_log(registry, plain)
            taken = write_to_log(registry, plain) - before
            left = -(before + taken) % WAL_PAGE
            # Filled up to its end, if there is room and nobody else writes.
            lsn = write_to_log(registry, plain + max(0, left - taken))
            if lsn % WAL_PAGE == 0:
                break

        assert lsn % WAL_PAGE == 0
        servers.first.wait_for_replay(format_lsn(lsn))
        assert servers.cluster.primary.is_running

    def test_that_cannot_be_asked_means_the_primary(
        self, registry, servers, caplog
    ):
        pause(*servers.cluster.replicas)
        registry.Book.insert(title="x")
        registry.flush()
        asks = registry.freshness.note_commit

        def after_the_commit(reader, driver):
            primary = servers.cluster.primary
            alive = (
                "select count(*) from pg_stat_activity"
                f" where pid = {driver.info.backend_pid}"
            )
            primary.terminate_backends(servers.database)
            wait_until(
                "it is still there", lambda: primary.query(alive) == [(0,)]
            )
            asks(reader, driver)

        registry.freshness.note_commit = after_the_commit
        with caplog.at_level(logging.WARNING, LOGGER):
            registry.commit()

        registry.freshness.note_commit = asks
        assert "The position after a commit can't be asked" in caplog.text
        assert titles(registry) == {"x"}
        assert registry.consistency_token() is not None


class TestSession:
    def test_sees_its_own_commit_from_a_replica_that_has_it(
        self, registry, servers
    ):
        pause(servers.first)
        for number in range(10):
            write(registry, str(number))
            servers.cluster.replicas[1].wait_for_replay(
                format_lsn(decode(registry.consistency_token()).lsn)
            )
            assert len(titles(registry)) == number + 1
            assert unit(registry, servers) == "replica2"

    def test_reads_from_the_primary_where_no_replica_has_it(
        self, registry, servers
    ):
        write(registry)
        pause(*servers.cluster.replicas)
        write(registry, "y")
        assert titles(registry) == {"x", "y"}
        assert unit(registry, servers) == "primary"
        servers.cluster.heal()
        servers.cluster.wait_for_replay()
        wait_until(
            "not both of them serve again",
            lambda: units(registry, servers) == REPLICAS,
        )

    def test_other_threads_read_what_replicas_have(self, registry, servers):
        pause(*servers.cluster.replicas)
        write(registry)
        served = []

        def read():
            served.append((titles(registry), unit(registry, servers)))
            registry.Session.remove()

        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        assert served[0][0] == set()
        assert served[0][1] in REPLICAS

    def test_outlives_the_session_object(self, registry, servers):
        pause(*servers.cluster.replicas)
        write(registry)
        registry.Session.remove()
        assert titles(registry) == {"x"}

    def test_expired_attribute_is_what_was_committed(self, registry, servers):
        book = registry.Book.insert(title="old")
        registry.commit()
        servers.cluster.wait_for_replay()
        pause(*servers.cluster.replicas)
        book.title = "new"
        registry.commit()
        assert book.title == "new"

    def test_never_goes_back_from_one_replica_to_another(
        self, registry, servers
    ):
        ahead = servers.cluster.replicas[1]
        pause(servers.first)
        primary = servers.cluster.primary
        most = 0
        for number in range(60):
            primary.execute(
                f"insert into book (title, copies) values ('{number}', 1)",
                database=servers.database,
            )
            if number % 3 == 0:
                servers.cluster.primary.committed_lsn()
                ahead.wait_for_replay(primary.committed_lsn())

            found = len(titles(registry))
            assert found >= most
            most = found

        assert most > 20

    def test_never_goes_back_from_the_primary_to_a_replica(
        self, registry, servers
    ):
        pause(*servers.cluster.replicas)
        servers.cluster.primary.execute(
            "insert into book (title, copies) values ('x', 1)",
            database=servers.database,
        )
        assert titles(registry) == set()
        with registry.use_primary():
            assert titles(registry) == {"x"}

        assert titles(registry) == {"x"}
        with registry.use_replicas():
            assert titles(registry) == {"x"}

    def test_stays_on_a_replica_for_a_few_units_of_work(
        self, registry, servers
    ):
        names = [unit(registry, servers) for _ in range(10 * UNITS_ON_ONE)]
        changes = sum(a != b for a, b in pairwise(names))
        assert set(names) == REPLICAS
        assert changes <= 10

    def test_that_only_reads_asks_no_question_but_now_and_then(
        self, registry, servers
    ):
        units(registry, servers, 40)
        sizes = {x.name: x.log_size for x in servers.cluster.servers}
        units(registry, servers, 40)
        asked = sum(
            server.log(sizes[server.name]).count("pg_last_wal_replay_lsn")
            + server.log(sizes[server.name]).count("pg_current_wal_insert")
            for server in servers.cluster.servers
        )
        assert asked <= 2 * 40 / UNITS_ON_ONE

    def test_does_not_believe_a_replica_that_has_restarted(
        self, registry, servers
    ):
        """A standby that crashes may show an older state at first"""
        write(registry)
        servers.cluster.wait_for_replay()
        assert units(registry, servers) == REPLICAS
        links = {}
        for replica in servers.cluster.replicas:
            instance = registry.freshness.positions._latest[replica.name]
            links[replica.name] = instance.known
            replica.kill()
            replica.start()

        for _ in range(8):
            assert titles(registry) == {"x"}


class TestAsIfNothingHadHappened:
    """What others have found to break it"""

    def other(self, servers, title="new"):
        servers.cluster.primary.execute(
            f"insert into book (title, copies) values ('{title}', 1)",
            database=servers.database,
        )

    def in_thread(self, registry, work):
        def run():
            try:
                work()
            finally:
                registry.Session.remove()

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    def warm(self, registry, servers):
        write(registry, "old")
        servers.cluster.wait_for_replay()
        assert units(registry, servers, 8) <= REPLICAS

    def test_token_of_a_block_in_the_middle_of_a_unit_of_work(
        self, registry, servers
    ):
        self.warm(registry, servers)
        for _ in range(3):
            assert registry.Book.query().count() == 1

        pause(*servers.cluster.replicas)
        tokens = []

        def work():
            write(registry, "new")
            tokens.append(registry.consistency_token())

        self.in_thread(registry, work)
        with registry.use_replicas(token=tokens[0]):
            assert registry.Book.query().count() == 2

    def test_failed_write_shows_what_made_it_fail(self, registry, servers):
        self.warm(registry, servers)
        servers.cluster.primary.execute(
            "create unique index on book (title)", database=servers.database
        )
        pause(*servers.cluster.replicas)
        self.other(servers)
        with pytest.raises(IntegrityError):
            registry.Book.insert(title="new")

        registry.rollback()
        assert titles(registry) == {"old", "new"}

    def test_update_of_nothing_shows_why(self, registry, servers):
        self.warm(registry, servers)
        pause(*servers.cluster.replicas)
        servers.cluster.primary.execute(
            "update book set title = 'new'", database=servers.database
        )
        done = registry.execute(
            text("UPDATE book SET copies = 2 WHERE title = 'old'")
        )
        assert done.rowcount == 0
        registry.rollback()
        assert titles(registry) == {"new"}

    def test_commit_whose_answer_is_lost(self, servers, make_registry):
        proxy = servers.cluster.proxy(servers.cluster.primary)
        registry = make_registry(
            servers.database,
            db_wo_url=proxy.url(servers.database, DRIVER),
            db_ro_urls=servers.replica_urls,
        )
        self.warm(registry, servers)
        before = registry.consistency_token()
        pause(*servers.cluster.replicas)
        registry.Book.insert(title="new")

        @event.listens_for(registry.session, "before_commit", once=True)
        def lose(session):
            session.flush()
            proxy.blackhole()
            cut.start()

        cut = threading.Timer(0.1, proxy.drop)
        with pytest.raises(CommitUnknownError):
            registry.commit()

        cut.join()
        proxy.heal()
        registry.rollback()
        assert titles(registry) == {"old"}
        assert registry.consistency_token() != before

    def test_write_by_a_given_bind(self, registry, servers):
        self.warm(registry, servers)
        pause(*servers.cluster.replicas)
        registry.session.execute(
            text("INSERT INTO book (title, copies) VALUES ('new', 1)"),
            bind_arguments={"bind": registry.engine_of("primary")},
        )
        registry.commit()
        assert titles(registry) == {"old", "new"}

    def test_flush_of_a_listener_of_the_commit(self, registry, servers):
        self.warm(registry, servers)
        pause(*servers.cluster.replicas)

        @event.listens_for(registry.session, "before_commit", once=True)
        def add(session):
            session.bulk_save_objects([registry.Book(title="new")])

        assert registry.Book.query().count() == 1
        registry.commit()
        assert titles(registry) == {"old", "new"}

    def test_snapshot_gets_no_fresher(self, make, servers):
        registry = make(isolation_level="REPEATABLE_READ")
        self.warm(registry, servers)
        assert registry.Book.query().count() == 1
        tokens = []

        def work():
            write(registry, "new")
            tokens.append(registry.consistency_token())
            servers.cluster.wait_for_replay()
            units(registry, servers)

        self.in_thread(registry, work)
        registry.read_after(tokens[0])
        assert registry.Book.query().count() == 2

    def test_fallback_in_use_replicas_stays_on_the_primary(self, make, servers):
        registry = make()
        self.warm(registry, servers)
        pause(*servers.cluster.replicas)
        write(registry, "new")
        pool = registry.engine_of("primary").pool
        taken = [pool.connect() for _ in range(pool.size() - 1)]
        begun = time.monotonic()
        with registry.use_replicas():
            for _ in range(3):
                assert registry.Book.query().count() == 2

        registry.rollback()
        assert time.monotonic() - begun < 5.0
        for connection in taken:
            connection.close()

    def test_two_sessions_of_a_thread(self, registry, servers):
        self.warm(registry, servers)
        ahead = servers.cluster.replicas[1]
        pause(servers.first)
        one, two = (registry.Session.session_factory() for _ in range(2))
        count = text("SELECT count(*) FROM book")
        with one, two:
            assert one.scalar(count) == 1
            self.other(servers)
            ahead.wait_for_replay(servers.cluster.primary.committed_lsn())
            most = two.scalar(count)
            assert one.scalar(count) >= most

    def test_read_after_expires_what_an_older_state_has_shown(
        self, registry, servers
    ):
        self.warm(registry, servers)
        book = registry.Book.query().one()
        assert book.title == "old"
        tokens = []

        def work():
            registry.Book.query().one().title = "new"
            registry.commit()
            tokens.append(registry.consistency_token())
            servers.cluster.wait_for_replay()

        self.in_thread(registry, work)
        registry.read_after(tokens[0])
        assert registry.Book.query().one().title == "new"

    def test_threads_of_one_request(self, registry, servers):
        self.warm(registry, servers)
        reader = Reader()
        behind = Seen("replica1", object(), 1.0)
        ahead = Seen("replica2", object(), 2.0)
        for seen in (ahead, behind, ahead):
            reader.note_read(seen)

        assert set(reader.knows.seen) == {ahead, behind}

    def test_threads_of_one_request_that_part(self, registry, servers):
        """One moves to another replica while a statement of the other runs"""
        registry.monitor.stop()
        self.warm(registry, servers)
        count = text("SELECT count(*) FROM book")
        one, two = (registry.Session.session_factory() for _ in range(2))

        def move(reader):
            registry.monitor.report_down(mine.name, "the test says so")
            with serving(reader):
                assert two.scalar(count) == 1
                assert two.placement().replica == other.name
                two.rollback()

            pause(other)
            self.other(servers)
            mine.wait_for_replay(servers.cluster.primary.committed_lsn())

        with serving(Reader()) as reader, one, two:
            for _ in range(3):
                assert one.scalar(count) == 1

            name = one.placement().replica
            mine, other = sorted(
                servers.cluster.replicas, key=lambda x: x.name != name
            )

            @event.listens_for(
                registry.engine_of(name), "before_cursor_execute", once=True
            )
            def meanwhile(*_):
                self.in_thread(registry, lambda: move(reader))

            assert one.scalar(count) == 2
            one.rollback()
            assert two.scalar(count) == 2

    def test_read_while_the_position_of_the_one_before_is_asked(
        self, registry, servers
    ):
        self.warm(registry, servers)
        freshness, reader = registry.freshness, Reader()
        asks = freshness._covering

        def ask(seen, usable):
            position = asks(seen, usable)
            seen.at = time.monotonic()
            return position

        freshness._covering = ask
        seen = Seen("replica1", None, time.monotonic())
        reader.note_read(seen)
        freshness.cover(reader, [seen], ())
        assert reader.knows.seen == (seen,)
        assert reader.knows.floor is not None

    def test_reads_alone_give_no_token(self, registry, servers):
        self.warm(registry, servers)
        before = registry.consistency_token()
        with registry.use_primary():
            registry.Book.query().count()

        registry.Book.query().count()
        registry.commit()
        with registry.begin_nested():
            registry.Book.query().count()

        registry.commit()
        assert registry.consistency_token() == before

    def test_positions_that_are_no_more_to_be_had(self, make, servers):
        registry = make()
        self.warm(registry, servers)
        pause(*servers.cluster.replicas)
        write(registry, "new")
        registry.freshness._fall_back("the test says so")
        assert titles(registry) == {"old", "new"}

    def test_read_only_mode_after_new_connections(
        self, registry, servers, make_registry
    ):
        self.warm(registry, servers)
        registry.close()
        reading = make_registry(
            servers.database, db_wo_url=None, db_ro_urls=servers.replica_urls
        )
        for _ in range(8):
            assert titles(reading) == {"old"}

        for replica in servers.cluster.replicas:
            replica.terminate_backends(servers.database)

        for _ in range(8):
            assert titles(reading) == {"old"}

        reader = Reader()
        assert not reading.accept_token("garbage", reader)
        with serving(reader):
            assert titles(reading) == {"old"}


class TestLevels:
    def test_eventual_has_no_tokens(self, make, servers):
        # Nor questions, but the monitor's.
        registry = make(db_ro_consistency="eventual", db_ro_check_interval=60)
        pause(*servers.cluster.replicas)
        size = servers.cluster.primary.log_size
        write(registry)
        assert registry.consistency_token() is None
        assert titles(registry) == set()
        log = asked_of_primary(servers, size)
        assert "pg_current_wal_insert_lsn" not in log

    def test_registry_shows_what_another_thread_has_committed(
        self, make, servers
    ):
        registry = make(db_ro_consistency="registry")
        titles(registry)
        pause(*servers.cluster.replicas)

        def work():
            write(registry)
            registry.Session.remove()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert titles(registry) == {"x"}

    def test_strong_shows_what_anybody_has_committed(self, make, servers):
        registry = make(db_ro_consistency="strong")
        assert unit(registry, servers) in REPLICAS
        pause(servers.first)
        for number in range(10):
            servers.cluster.primary.execute(
                f"insert into book (title, copies) values ('{number}', 1)",
                database=servers.database,
            )
            assert len(titles(registry)) == number + 1

        servers.cluster.replicas[1].wait_for_replay(
            servers.cluster.primary.committed_lsn()
        )
        assert unit(registry, servers) == "replica2"

    def test_of_a_bad_name_is_an_error(self, make):
        with pytest.raises(OptionError, match="--db-ro-consistency: 'strict'"):
            make(db_ro_consistency="strict")

    @pytest.mark.parametrize("value", ["soon", -1, float("nan")])
    @pytest.mark.parametrize(
        "option", ["db_ro_wait", "db_ro_sticky", "db_ro_max_staleness"]
    )
    def test_bad_seconds_are_an_error(self, make, option, value):
        name = "--" + option.replace("_", "-")
        with pytest.raises(OptionError, match=f"{name}: .*; write seconds"):
            make(**{option: value})


class TestWait:
    def test_lets_a_replica_catch_up(self, make, servers):
        registry = make(db_ro_wait=5.0)
        titles(registry)
        for replica in servers.cluster.replicas:
            replica.delay_replay(0.2)

        for _ in range(3):
            write(registry)
            assert "x" in titles(registry)
            assert unit(registry, servers) in REPLICAS

    def test_places_the_unit_of_work_where_it_has_waited(self, make, servers):
        registry = make(db_ro_wait=5.0)
        titles(registry)
        for replica in servers.cluster.replicas:
            replica.delay_replay(0.2)

        write(registry)
        where = servers.served_by(registry)
        decision = registry.explain(PORT)
        assert decision == Decision(where, Reason.ALREADY_ON_REPLICA)

    def test_ends(self, make, servers):
        registry = make(db_ro_wait=0.3)
        pause(*servers.cluster.replicas)
        write(registry)
        begun = time.monotonic()
        assert unit(registry, servers) == "primary"
        assert 0.3 <= time.monotonic() - begun < 2.0

    def test_is_a_moment_by_default(self, make):
        assert make().freshness.options.wait == 0.01

    def test_asks_when_the_replica_should_be_there(self, make, servers):
        # But for the monitor.
        registry = make(db_ro_wait=1.0, db_ro_check_interval=60)
        for replica in servers.cluster.replicas:
            replica.delay_replay(0.02)

        for _ in range(10):
            write(registry)
            assert unit(registry, servers) in REPLICAS

        starts = [len(x.log()) for x in servers.cluster.replicas]
        for _ in range(20):
            write(registry)
            assert unit(registry, servers) in REPLICAS

        asked = sum(
            replica.log(start).count("pg_last_wal_replay_lsn()")
            for replica, start in zip(
                servers.cluster.replicas, starts, strict=True
            )
        )
        # By doubling pauses, each of them takes six questions.
        assert 20 <= asked <= 50

    def test_in_vain_is_not_repeated_at_once(self, make, servers):
        registry, waits = make(db_ro_wait=0.2), []
        event.listen(registry.listeners, "wait", waits.append)
        titles(registry)
        pause(*servers.cluster.replicas)
        write(registry)
        assert units(registry, servers, 20) == {"primary"}
        # Each replica, and again if that took more than a second.
        assert 1 <= len(waits) <= 6

    def test_is_made_each_time_where_nothing_else_serves(self, make, servers):
        registry = make(db_ro_wait=0.1, db_ro_fallback="error")
        titles(registry)
        pause(*servers.cluster.replicas)
        write(registry)
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(NoReplicaError):
                titles(registry)

            assert time.monotonic() - begun >= 0.1
            registry.rollback()


class TestReadAfter:
    def test_raises_what_a_session_sees(self, registry, make_registry, servers):
        pause(*servers.cluster.replicas)
        tokens = []

        def work():
            write(registry)
            tokens.append(registry.consistency_token())
            write(registry, "y")
            tokens.append(registry.consistency_token())
            registry.Session.remove()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert titles(registry) == set()
        registry.read_after(tokens[1])
        assert titles(registry) == {"x", "y"}
        registry.read_after(tokens[0])
        floor = registry.reader().knows.floor
        assert not floor.is_behind(decode(tokens[1]))

    def test_holds_from_the_next_statement_on(self, registry, servers):
        write(registry)
        servers.cluster.wait_for_replay()
        tokens = []
        assert registry.Book.query().count() == 1
        pause(*servers.cluster.replicas)

        def work():
            write(registry, "y")
            tokens.append(registry.consistency_token())
            registry.Session.remove()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert registry.Book.query().count() == 1
        registry.read_after(tokens[0])
        assert registry.Book.query().count() == 2

    @pytest.mark.parametrize(
        "token",
        ["", "x", "é" * 32, "A" * 32, "A" * 5000, "%00", None, 3],
    )
    def test_of_garbage_is_an_error(self, registry, token):
        with pytest.raises(ConsistencyTokenError, match="Not a token"):
            registry.read_after(token)

    def test_of_another_cluster_is_an_error(self, registry):
        write(registry)
        mine = decode(registry.consistency_token())
        other = str(ConsistencyToken(mine.system_id + 1, 1, 1))
        with pytest.raises(ConsistencyTokenError, match="another cluster"):
            registry.read_after(other)

    @pytest.mark.parametrize("timeline", [0, 2, 99])
    def test_of_another_timeline_means_the_primary(
        self, registry, servers, timeline
    ):
        write(registry)
        servers.cluster.wait_for_replay()
        mine = decode(registry.consistency_token())
        served = []

        def work():
            registry.read_after(
                str(ConsistencyToken(mine.system_id, timeline, 1))
            )
            served.append(unit(registry, servers))
            registry.Session.remove()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert served == ["primary"]

    def test_without_replicas_is_free(self, servers, make_registry):
        registry = make_registry(servers.database, db_url=servers.primary_url)
        size = servers.cluster.primary.log_size
        write(registry)
        log = asked_of_primary(servers, size)
        assert "pg_current_wal_insert_lsn" not in log
        token = registry.consistency_token()
        registry.read_after(token)
        assert isinstance(decode(token), ConsistencyToken)


class TestUseReplicas:
    def test_blocks_add_up(self, registry, servers):
        write(registry)
        servers.cluster.wait_for_replay()
        token = decode(registry.consistency_token())
        future = ConsistencyToken(token.system_id, token.timeline, 1 << 60)
        with (
            registry.use_replicas(token=str(future)),
            registry.use_replicas(max_staleness=3600),
        ):
            assert unit(registry, servers) == "primary"

    def test_with_a_token_is_at_least_as_fresh(self, registry, servers):
        pause(*servers.cluster.replicas)
        tokens = []

        def work():
            write(registry)
            tokens.append(registry.consistency_token())
            registry.Session.remove()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        with registry.use_replicas(token=tokens[0]):
            assert titles(registry) == {"x"}

    def test_with_a_token_ends_with_the_block(self, registry, servers):
        write(registry)
        servers.cluster.wait_for_replay()
        token = decode(registry.consistency_token())
        future = ConsistencyToken(token.system_id, token.timeline, 1 << 60)
        with registry.use_replicas(token=str(future)):
            assert unit(registry, servers) == "primary"

        assert unit(registry, servers) in REPLICAS

    def test_with_max_staleness(self, registry, servers):
        write(registry)
        servers.cluster.wait_for_replay()
        pause(servers.first)
        insert = "insert into book (title, copies) values ('y', 1)"
        servers.cluster.primary.execute(insert, database=servers.database)
        servers.cluster.replicas[1].wait_for_replay(
            servers.cluster.primary.committed_lsn()
        )
        for _ in range(8):
            with registry.use_replicas(max_staleness=0):
                assert unit(registry, servers) == "replica2"

        pause(servers.cluster.replicas[1])
        servers.cluster.primary.execute(insert, database=servers.database)
        with registry.use_replicas(max_staleness=0):
            assert unit(registry, servers) == "primary"

    def test_of_an_idle_primary_a_replica_is_not_old(self, registry, servers):
        write(registry)
        insert_lsn = "SELECT pg_current_wal_insert_lsn()"
        primary, before = servers.cluster.primary, None
        while before != primary.query(insert_lsn):
            # Its background processes write now and then.
            for replica in servers.cluster.replicas:
                replica.resume_replay()

            servers.cluster.wait_for_replay()
            pause(*servers.cluster.replicas)
            before, names = primary.query(insert_lsn), set()
            for _ in range(20):
                with registry.use_replicas(max_staleness=0.0):
                    names.add(unit(registry, servers))

        assert names <= REPLICAS

    def test_with_max_staleness_asks_no_more_often_than_that(
        self, make, servers
    ):
        # But for the monitor.
        registry = make(db_ro_check_interval=60)
        with registry.use_replicas(max_staleness=60):
            units(registry, servers)
            size = servers.cluster.primary.log_size
            units(registry, servers)

        log = asked_of_primary(servers, size)
        assert log.count("pg_current_wal_insert_lsn") == 0

    @pytest.mark.parametrize("value", [-1, float("nan")])
    def test_with_bad_staleness_is_an_error(self, registry, value):
        with pytest.raises(ValueError, match="not seconds"):
            registry.use_replicas(max_staleness=value)


class TestModels:
    @pytest.fixture
    def registry(self, make, servers):
        registry = make(db_ro_max_staleness=3600)
        registry.upgrade(install=["test-me-blok7"])
        registry.commit()
        servers.cluster.wait_for_replay()
        return registry

    def served(self, registry, model):
        statement = f"SELECT current_setting('port') FROM {model.__tablename__}"
        port = registry.execute(text(statement)).scalar()
        registry.rollback()
        return port

    def test_say_how_old_their_rows_may_be(self, registry, servers):
        registry.Country.insert(code="fr")
        registry.Stock.insert()
        registry.commit()
        servers.cluster.wait_for_replay()
        served = {}
        pause(*servers.cluster.replicas)
        servers.cluster.primary.execute(
            "update stock set quantity = 5", database=servers.database
        )

        def work():
            names = servers.names
            for model in (registry.Country, registry.Stock):
                served[model.__registry_name__] = names[
                    self.served(registry, model)
                ]

            registry.Session.remove()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert served["Model.Country"] in REPLICAS
        assert served["Model.Stock"] == "primary"

    def test_tightest_of_a_statement_counts(self, registry):
        both = text("SELECT 1 FROM country, stock")
        assert registry.max_staleness_of(both) == 0.0
        assert registry.max_staleness_of(text("SELECT 1 FROM country")) == 300
        assert registry.max_staleness_of(text("SELECT 1 FROM book")) == 3600
        stock = select(registry.Stock.id).subquery()
        assert registry.max_staleness_of(select(func.max(stock.c.id))) == 0.0

    def test_fresher_rows_are_read_later_in_a_unit_of_work(
        self, registry, servers
    ):
        registry.Country.insert(code="fr")
        registry.Stock.insert()
        registry.commit()
        servers.cluster.wait_for_replay()
        assert registry.Country.query().count() == 1
        pause(*servers.cluster.replicas)
        servers.cluster.primary.execute(
            "update stock set quantity = 5", database=servers.database
        )
        assert registry.Stock.query().one().quantity == 5


class TestWithoutPositions:
    @pytest.fixture
    def poor(self, servers):
        """Give URLs of a role that may not ask for positions"""
        primary = servers.cluster.primary
        primary.execute("create role poor login superuser")
        primary.execute("alter role poor nosuperuser")
        primary.execute(
            "grant all on all tables in schema public to poor;"
            "grant all on all sequences in schema public to poor;"
            f"revoke execute on function {FUNCTIONS} from public",
            database=servers.database,
        )
        servers.cluster.wait_for_replay()
        yield lambda url: url.replace("postgres@", "poor@")
        primary.execute(
            f"grant execute on function {FUNCTIONS} to public;"
            "drop owned by poor",
            database=servers.database,
        )
        primary.execute("drop role poor")

    def test_a_session_that_wrote_stays_on_the_primary_for_a_while(
        self, make, servers, poor, caplog
    ):
        with caplog.at_level(logging.WARNING, LOGGER):
            registry = make(
                db_wo_url=poor(servers.primary_url),
                db_ro_urls=[poor(url) for url in servers.replica_urls],
                db_ro_sticky=1.0,
            )
            # To build a registry writes, too.
            time.sleep(1.0)
            assert unit(registry, servers) in REPLICAS
            pause(*servers.cluster.replicas)
            write(registry)
            token = registry.consistency_token()
            assert titles(registry) == {"x"}
            decision = registry.explain("SELECT 1")
            assert decision.reason is Reason.RECENT_WRITE
            servers.cluster.heal()
            time.sleep(1.0)
            assert unit(registry, servers) in REPLICAS

        assert caplog.text.count("No WAL positions are to be had") == 1
        registry.read_after(token)


class TestReadOnlyMode:
    @pytest.mark.parametrize(
        "settings",
        [{"db_ro_consistency": "strong"}, {"db_ro_max_staleness": 2}],
        ids=lambda x: next(iter(x)),
    )
    def test_what_only_a_primary_could_tell_is_an_error(self, make, settings):
        with pytest.raises(OptionError, match="only the primary knows"):
            make(db_wo_url=None, **settings)

    def test_token_that_no_replica_has_is_an_error(
        self, registry, servers, make_registry
    ):
        pause(*servers.cluster.replicas)
        write(registry)
        token = registry.consistency_token()
        registry.close()
        reading = make_registry(
            servers.database, db_wo_url=None, db_ro_urls=servers.replica_urls
        )
        reading.read_after(token)
        with pytest.raises(NoReplicaError, match="--db-ro-wait"):
            titles(reading)


def asked_of_backend(server, start, driver):
    """Return what one backend of a server was asked, from its log

    :param start: the size of the log when it began
    :param driver: the connection to the backend
    """
    pid = f"[{driver.info.backend_pid}]"
    lines = server.log(start).replace("\n\t", " ").splitlines()
    return "\n".join(line for line in lines if pid in line)


def test_backend_is_asked_for_its_log_once(servers, make):
    primary = servers.cluster.primary
    with make().engine_of("primary").connect() as connection:
        driver = connection.connection.dbapi_connection
        first = primary_position(driver)
        start = primary.log_size
        second = primary_position(driver)
        asked = asked_of_backend(primary, start, driver)

    assert "pg_current_wal_insert_lsn" in asked
    assert "pg_control_system" not in asked
    assert first.position.system_id == second.position.system_id
    assert first.position.timeline == second.position.timeline


class Pooled:
    """A connection to a pooler, which may change its backend"""

    def __init__(self, driver, backend_pid):
        self._driver = driver
        self.info = SimpleNamespace(backend_pid=backend_pid)

    def __getattr__(self, name):
        return getattr(self._driver, name)


def test_backend_behind_a_pooler_is_asked_for_its_log_each_time(servers, make):
    primary = servers.cluster.primary
    with make().engine_of("primary").connect() as connection:
        driver = connection.connection.dbapi_connection
        driver.autocommit = True
        pooled = Pooled(driver, backend_pid=0)
        start = primary.log_size
        first, second = (primary_position(pooled) for _ in range(2))
        asked = asked_of_backend(primary, start, driver)

    assert asked.count("pg_control_system") == 2
    # It is known that the short question says too little.
    assert asked.count("pg_current_wal_insert_lsn") == 2
    assert first.position.system_id == second.position.system_id
    assert first.position.lsn <= second.position.lsn


def test_log_of_another_backend_says_nothing(servers, make):
    with make().engine_of("primary").connect() as connection:
        driver = connection.connection.dbapi_connection
        driver.autocommit = True
        pooled = Pooled(driver, driver.info.backend_pid)
        before = primary_position(pooled)
        probe._logs[pooled] = probe._logs[pooled]._replace(
            system_id=1, timeline=7
        )
        of_another = primary_position(pooled)
        pooled.info.backend_pid += 1
        after = primary_position(pooled)

    # While the backend is the same, nobody looks.
    assert of_another.position.timeline == 7
    assert after.position.system_id == before.position.system_id
    assert after.position.timeline == before.position.timeline
