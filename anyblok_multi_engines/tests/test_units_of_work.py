# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A unit of work: what it costs, where it stays, and what it leaves behind."""

import gc
import random
import threading
import time

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm.exc import ObjectDeletedError

from anyblok_multi_engines.engines import REPLICA_END_TIMEOUT
from anyblok_multi_engines.freshness import UNITS_ON_ONE
from anyblok_multi_engines.tests.conftest import (
    DRIVER,
    PORT,
    make_ready,
    take_for_down,
)

REPLICAS = {"replica1", "replica2"}
TRIALS = 200


def lines_on(servers, server, start):
    """Return all that a server was asked for this database since then"""
    mine = f"<{servers.database}> LOG:"
    return [x for x in server.log(start).splitlines() if mine in x]


class TestRoundTrips:
    def test_read_is_one_statement(self, servers, make_registry):
        registry = make_registry(
            servers.database,
            db_wo_url=servers.primary_url,
            db_ro_urls=servers.replica_urls[:1],
        )
        servers.served_by(registry)
        registry.commit()
        for end in (registry.commit, registry.rollback, registry.session.close):
            starts = [x.log_size for x in servers.cluster.servers]
            servers.served_by(registry)
            end()
            asked = [
                lines_on(servers, server, start)
                for server, start in zip(
                    servers.cluster.servers, starts, strict=True
                )
            ]
            assert [len(x) for x in asked] == [0, 1, 0], asked

    def test_read_is_one_round_trip(self, servers, make_registry):
        """And nothing that no log shows"""
        proxy = servers.cluster.proxy(servers.first)
        registry = make_registry(
            servers.database,
            db_wo_url=servers.primary_url,
            db_ro_urls=[proxy.url(servers.database, DRIVER)],
        )
        servers.served_by(registry)
        registry.commit()
        proxy.delay(0.1)
        start = time.monotonic()
        assert servers.served_by(registry) == "replica1"
        registry.commit()
        assert 0.1 <= time.monotonic() - start < 0.2


class TestPlacement:
    """Asked of the servers"""

    @pytest.fixture
    def servers(self, shared_servers):
        return shared_servers

    @pytest.fixture
    def registry(self, shared_registry):
        return shared_registry

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
            (
                "LISTEN news",
                "SELECT count(*) FROM pg_listening_channels()",
                0,
            ),
            (
                "SELECT pg_advisory_xact_lock(4711)",
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
                "AND pid = pg_backend_pid()",
                1,
            ),
            (
                "SELECT nextval('system_sequence_seq_name')",
                "SELECT currval('system_sequence_seq_name') > 0",
                True,
            ),
        ],
        ids=["table", "setting", "set_config", "listen", "lock", "sequence"],
    )
    def test_state_of_the_transaction_is_seen(
        self, registry, servers, statement, question, answer
    ):
        assert servers.served_by(registry) in REPLICAS
        registry.execute(text(statement))
        assert registry.execute(text(question)).scalar() == answer
        assert servers.served_by(registry) == "primary"
        registry.rollback()
        # What it has seen of the primary.
        servers.cluster.wait_for_replay()
        assert servers.served_by(registry) in REPLICAS

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_savepoint_stays(self, registry, servers, end):
        assert servers.served_by(registry) in REPLICAS
        savepoint = registry.begin_nested()
        registry.Shelf.insert(name="x")
        getattr(savepoint, end)()
        assert servers.served_by(registry) == "primary"
        expected = 1 if end == "commit" else 0
        assert registry.Shelf.query().count() == expected

    @pytest.mark.parametrize("mode", ["rollback_only", "create_savepoint"])
    def test_joins_a_connection_s_transaction(self, registry, servers, mode):
        engine = registry.get_engine_for(ro=False)
        with engine.connect() as connection, connection.begin() as outer:
            connection.execute(text("INSERT INTO shelf (name) VALUES ('o')"))
            session = registry.Session.session_factory(
                bind=connection, join_transaction_mode=mode
            )
            assert session.scalar(PORT) == str(servers.cluster.primary.port)
            session.execute(text("INSERT INTO shelf (name) VALUES ('i')"))
            assert session.query(registry.Shelf).count() == 2
            session.commit()
            session.close()
            outer.rollback()

        assert registry.Shelf.query().count() == 0


def test_another_connection_to_the_primary_is_another(registry):
    """What follows is still in the unit of work, and ends with it"""
    registry.Book.insert(title="mine")
    for _ in range(3):
        registry.execute(select(1)).all()

    engine = registry.engine_of("primary").execution_options(
        logging_token="other"
    )
    registry.session.execute(select(1), bind_arguments={"bind": engine})
    assert registry.Book.query().count() == 1
    registry.execute(text("insert into book (title) values ('mine too')"))
    registry.rollback()
    assert registry.Book.query().count() == 0


class TestNothingIsLeft:
    """However a unit of work ended, the next starts from nowhere"""

    @pytest.fixture
    def servers(self, shared_servers):
        return shared_servers

    @pytest.fixture
    def registry(self, shared_registry):
        return shared_registry

    @pytest.mark.parametrize(
        "end",
        ["commit", "rollback", "close", "reset", "invalidate", "remove"],
    )
    @pytest.mark.parametrize("work", ["write", "read", "both", "nothing"])
    def test_by(self, registry, servers, end, work):
        session = registry.session
        if work in ("read", "both"):
            servers.served_by(registry)

        if work in ("write", "both"):
            registry.execute(text("SET LOCAL work_mem = '123kB'"))
            servers.served_by(registry)

        if end == "remove":
            registry.Session.remove()
        else:
            getattr(session, end)()

        assert not registry.session.in_transaction()
        assert not registry.session.placement().on_primary
        names = set()
        for _ in range(3 * UNITS_ON_ONE):
            names.add(servers.served_by(registry))
            registry.rollback()

        assert names == REPLICAS
        with registry.use_primary():
            setting = registry.execute(text("SHOW work_mem")).scalar()
            assert setting != "123kB"

    def test_by_an_exception(self, registry, servers):
        def work():
            with registry.session.begin():
                registry.Shelf.insert(name="x")
                registry.execute(text("SELECT 1 / 0"))

        with pytest.raises(DBAPIError):
            work()

        assert servers.served_by(registry) in REPLICAS
        assert registry.Shelf.query().count() == 0

    def test_by_no_end_at_all(self, registry, servers):
        """A thread that dies, and the session with it"""

        def work():
            registry.Shelf.insert(name="x")
            servers.served_by(registry)

        for _ in range(3):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            gc.collect()

        assert servers.served_by(registry) in REPLICAS
        assert registry.Shelf.query().count() == 0
        left = servers.cluster.primary.query(
            "select count(*) from pg_stat_activity where datname = %s "
            "and state like 'idle in%%'",
            [servers.database],
        )
        assert left == [(0,)]

    def test_between_sessions_of_one_thread(self, registry, servers):
        registry.Shelf.insert(name="x")
        other = registry.Session.session_factory()
        port = other.scalar(PORT)
        assert servers.names[port] in REPLICAS
        other.close()
        assert servers.served_by(registry) == "primary"


def cut_backends(server, proxy):
    server.terminate_backends()


def kill_backends(server, proxy):
    server.kill_backends()


def kill_postmaster(server, proxy):
    server.kill()


def stop_at_once(server, proxy):
    server.stop("immediate")


def cut_network(server, proxy):
    proxy.drop()


def swallow_packets(server, proxy):
    proxy.blackhole()


# Of the trials, how many meet which fault.
FAULTS = {
    cut_backends: 75,
    cut_network: 75,
    kill_backends: 20,
    kill_postmaster: 15,
    stop_at_once: 10,
    swallow_packets: 5,
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("level", ["READ_COMMITTED", "REPEATABLE_READ"])
def test_commit_isolation(servers, make_registry, level):
    """No death of a replica before the commit loses or doubles a write

    With the driver of the environment: the suite runs with both.
    """
    proxy = servers.cluster.proxy(servers.first)
    registry = make_registry(
        servers.database,
        db_wo_url=servers.primary_url,
        db_ro_urls=[proxy.url(servers.database, DRIVER)],
        db_ro_consistency="eventual",
        isolation_level=level,
    )
    trials = [fault for fault, times in FAULTS.items() for _ in range(times)]
    assert len(trials) == 200
    draw = random.Random(level)
    draw.shuffle(trials)
    for number, fault in enumerate(trials):
        make_ready(registry, "replica1")
        assert servers.served_by(registry) == "replica1", fault
        early = draw.random() < 0.5
        if early:
            registry.Shelf.insert(name=f"early {number}")

        fault(servers.first, proxy)
        registry.Shelf.insert(name=f"shelf {number}")
        registry.commit()
        proxy.heal()
        if not servers.first.is_running:
            servers.first.start()

        servers.first.wait_for_connections()

    rows = servers.cluster.primary.query(
        "select name from shelf where name like 'shelf%%'",
        database=servers.database,
    )
    assert len(rows) == len(trials)
    assert len(set(rows)) == len(trials)


def test_repeatable_read_is_one_snapshot(servers, make_registry):
    registry = make_registry(
        servers.database,
        db_wo_url=servers.primary_url,
        db_ro_urls=servers.replica_urls[:1],
        isolation_level="REPEATABLE_READ",
    )
    count = select(func.count()).select_from(registry.Shelf)
    insert = "insert into shelf (name) values ('other')"
    assert registry.scalar(count) == 0
    servers.cluster.primary.execute(insert, database=servers.database)
    servers.cluster.wait_for_replay()
    assert registry.scalar(count) == 0
    registry.commit()
    assert registry.scalar(count) == 1


def test_repeatable_read_ends_on_the_replica_before_the_commit(
    servers, make_registry
):
    """What the replica holds back is released, then the primary commits"""
    registry = make_registry(
        servers.database,
        db_wo_url=servers.primary_url,
        db_ro_urls=servers.replica_urls[:1],
        isolation_level="REPEATABLE_READ",
    )
    states = (
        "select count(*) from pg_stat_activity where datname = %s "
        "and state like 'idle in%%'"
    )
    before = []

    def look():
        before.extend(servers.first.query(states, [servers.database]))

    servers.served_by(registry)
    registry.Shelf.insert(name="x")
    registry.flush()
    look()
    primary = registry.session.connection()
    dialect = primary.dialect
    do_commit = dialect.do_commit
    dialect.do_commit = lambda connection: (look(), do_commit(connection))
    try:
        registry.commit()
    finally:
        dialect.do_commit = do_commit

    assert before == [(1,), (0,)]


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_no_end_waits_for_a_replica_that_does_not_answer(
    servers, make_registry, end
):
    proxy = servers.cluster.proxy(servers.first)
    registry = make_registry(
        servers.database,
        db_wo_url=servers.primary_url,
        db_ro_urls=[proxy.url(servers.database, DRIVER)],
        isolation_level="REPEATABLE_READ",
    )
    for write in (False, True):
        make_ready(registry, "replica1")
        assert servers.served_by(registry) == "replica1"
        if write:
            registry.Shelf.insert(name="x")

        proxy.blackhole()
        start = time.monotonic()
        getattr(registry.session, end)()
        assert time.monotonic() - start < 2 * REPLICA_END_TIMEOUT + 1.0
        proxy.heal()


def test_repeatable_read_lost_is_an_error(servers, make_registry):
    """The rest would be of another snapshot; the next unit of work goes on"""
    registry = make_registry(
        servers.database,
        db_wo_url=servers.primary_url,
        db_ro_urls=servers.replica_urls[:1],
        isolation_level="REPEATABLE_READ",
    )
    servers.served_by(registry)
    servers.first.terminate_backends(servers.database)
    with pytest.raises(OperationalError):
        servers.served_by(registry)

    registry.rollback()
    assert servers.served_by(registry) == "replica1"


class TestStay:
    """The next unit of work begins where the one before has read"""

    @staticmethod
    def stay(registry, servers):
        """Return the replica of a unit of work that goes on there"""
        for _ in range(3 * UNITS_ON_ONE):
            for _ in range(3):
                name = servers.served_by(registry)

            registry.rollback()
            stay = registry.session._stay
            if stay is not None and stay.left > 2:
                return name

        raise AssertionError("it never stays")

    def test_ends_with_a_replica_that_went_down_after_its_last_read(
        self, registry, servers
    ):
        name = self.stay(registry, servers)
        registry.session._stay = None
        for _ in range(3):
            assert servers.served_by(registry) == name

        take_for_down(registry, name)
        registry.rollback()
        assert servers.served_by(registry) != name

    def test_ends_with_a_two_phase_commit(self, registry, servers):
        known = select(registry.Shelf)
        registry.session.execute(known)
        self.stay(registry, servers)
        registry.session.twophase = True
        registry.session.execute(known)
        assert registry.session.placement().on_primary
        # None was asked for what it can't do.
        assert not registry.monitor.snapshot.down
        registry.Session.remove()

    @pytest.mark.parametrize("why", ["behind", "new connection"])
    def test_replica_that_is_asked_again_has_had_its_after_begin(
        self, registry, servers, why
    ):
        self.stay(registry, servers)

        @event.listens_for(registry.session, "after_begin")
        def say_who(session, transaction, connection):
            connection.exec_driver_sql("SET application_name = 'tenant'")

        if why == "behind":
            for replica in servers.cluster.replicas:
                replica.delay_replay(0.1)

            registry.Book.insert(title="x")
            registry.commit()

        for replica in REPLICAS:
            registry.engine_of(replica).dispose()

        who = select(func.current_setting("application_name"))
        assert registry.scalar(who) == "tenant"


class TestLostConnection:
    """Under READ COMMITTED a read is simply run elsewhere"""

    def test_before_the_first_row_another_replica_serves(
        self, servers, registry
    ):
        """A pooled connection that dies without a word"""
        for _ in range(10):
            servers.served_by(registry)
            registry.rollback()

        for replica in servers.cluster.replicas:
            replica.kill_backends(servers.database)
            replica.wait_for_connections()

        make_ready(registry, *REPLICAS)
        names = set()
        for _ in range(20):
            names.add(servers.served_by(registry))
            registry.rollback()

        assert names == REPLICAS

    def test_after_rows_the_other_replica_serves(self, servers, registry):
        for _ in range(5):
            name = servers.served_by(registry)
            assert name in REPLICAS
            server = next(x for x in servers.cluster.replicas if x.name == name)
            server.terminate_backends(servers.database)
            assert servers.served_by(registry) in REPLICAS - {name}
            registry.rollback()

    def test_is_not_met_again(self, servers, registry):
        """The pool gives no dead connection out twice"""
        servers.served_by(registry)
        for replica in servers.cluster.replicas:
            replica.terminate_backends(servers.database)

        servers.served_by(registry)
        registry.rollback()
        for _ in range(10):
            assert servers.served_by(registry) in REPLICAS
            registry.rollback()

    def test_failing_statement_is_not_run_again(self, servers, registry):
        start = [x.log_size for x in servers.cluster.servers]
        with pytest.raises(Exception, match="division by zero"):
            registry.execute(select(1 / func.length("")))

        asked = [
            line
            for server, before in zip(
                servers.cluster.servers, start, strict=True
            )
            for line in server.log(before).splitlines()
            if "length" in line and "statement: " in line
        ]
        assert len(asked) <= 1


class TestRowThatIsNotThereYet:
    """A commit expires what it wrote; the next access reads a replica"""

    @pytest.fixture
    def registry(self, servers, make_registry):
        return make_registry.eventual(servers)

    @pytest.fixture
    def written(self, servers, registry):
        """Write a shelf that no replica has"""
        for replica in servers.cluster.replicas:
            replica.pause_replay()

        shelf = registry.Shelf.insert(name="x")
        registry.commit()
        return shelf

    def test_is_read_from_the_primary(self, written):
        assert written.name == "x"

    def test_is_refreshed_from_the_primary(self, registry, written):
        written.refresh()
        assert written.name == "x"
        registry.commit()
        written.refresh("name")
        assert written.name == "x"

    def test_in_a_unit_of_work_on_a_replica(self, servers, registry, written):
        assert servers.served_by(registry) in REPLICAS
        assert written.name == "x"
        assert servers.served_by(registry) == "primary"

    def test_that_is_nowhere_is_told(self, servers, registry, written):
        servers.cluster.primary.execute(
            "delete from shelf", database=servers.database
        )
        with pytest.raises(ObjectDeletedError):
            written.name  # noqa: B018
