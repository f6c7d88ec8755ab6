# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A replica that can't be reached: its reads go elsewhere."""

import logging
import threading
import time
from contextlib import ExitStack, contextmanager

import psycopg2
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError, ProgrammingError

from anyblok_multi_engines.engines import LEAST_CONNECT_TIMEOUT
from anyblok_multi_engines.errors import SnapshotLostError
from anyblok_multi_engines.health.model import Status
from anyblok_multi_engines.testing import wait_until

from .conftest import DRIVER, make_ready, take_for_down

REPLICAS = ("replica1", "replica2")


def units_of_work(registry, servers, number=20):
    names = set()
    for _ in range(number):
        names.add(servers.served_by(registry))
        registry.rollback()

    return names


@pytest.mark.parametrize("fault", ["stop", "kill", "terminate_backends"])
def test_reads_go_on(servers, registry, fault, caplog):
    assert units_of_work(registry, servers) == {"replica1", "replica2"}
    getattr(servers.first, fault)()
    names = units_of_work(registry, servers)
    if fault == "terminate_backends":
        assert names == {"replica1", "replica2"}
    else:
        assert names == {"replica2"}
        assert caplog.text.count("is out of the reads") == 1
        assert registry.health().servers["replica1"].status is Status.DOWN


@pytest.mark.parametrize("served", [False, True])
def test_column_that_is_not_replayed_yet_is_read_elsewhere(
    servers, registry, served
):
    registry.Book.insert(title="x")
    registry.commit()
    servers.cluster.wait_for_replay()
    for replica in servers.cluster.replicas:
        replica.pause_replay()

    servers.cluster.primary.execute(
        "alter table book add column later integer default 5",
        database=servers.database,
    )
    if served:
        assert servers.served_by(registry) in ("replica1", "replica2")

    assert registry.execute(text("SELECT later FROM book")).scalar() == 5


def test_column_that_is_nowhere_is_an_error(servers, registry):
    with pytest.raises(ProgrammingError, match="never"):
        registry.execute(text("SELECT never FROM book"))

    registry.rollback()
    assert servers.served_by(registry) in ("replica1", "replica2")


def test_another_replica_takes_over_a_unit_of_work(servers, registry):
    for _ in range(5):
        make_ready(registry, *REPLICAS)
        lost = servers.served_by(registry)
        take_for_down(registry, lost)
        for _ in range(3):
            assert {servers.served_by(registry), lost} == {
                "replica1",
                "replica2",
            }

        registry.rollback()


def test_primary_takes_over_where_the_other_replica_is_behind(
    servers, registry
):
    """Time would run backwards"""
    units_of_work(registry, servers)
    servers.cluster.replicas[1].pause_replay()
    servers.cluster.primary.execute(
        "insert into book (title, copies) values ('x', 0)",
        database=servers.database,
    )
    servers.cluster.wait_for_replay(replicas=[servers.first])
    count = text("SELECT count(*) FROM book").execution_options(
        anyblok_server="replica1"
    )
    assert registry.execute(count).scalar() == 1
    take_for_down(registry, "replica1")
    assert registry.Book.query().count() == 1
    assert servers.served_by(registry) == "primary"


def test_primary_takes_over_where_nobody_compares(servers, make_registry):
    """Another replica may be further behind: time would run backwards"""
    registry = make_registry.eventual(servers)
    for _ in range(5):
        make_ready(registry, *REPLICAS)
        lost = servers.served_by(registry)
        take_for_down(registry, lost)
        for _ in range(3):
            assert servers.served_by(registry) == "primary"

        registry.rollback()


def test_it_comes_back(servers, registry, caplog):
    caplog.set_level(logging.INFO, "anyblok_multi_engines")
    servers.first.stop()
    assert "replica1" not in units_of_work(registry, servers, 40)
    servers.first.start()
    wait_until(
        "replica1 did not come back",
        lambda: not registry.health().down,
        timeout=20.0,
    )
    assert "is ready again" in caplog.text
    assert units_of_work(registry, servers, 40) == {"replica1", "replica2"}


def test_close_does_not_wait_for_a_hung_replica(servers, make_registry):
    """Whose connections in the pool would never answer"""
    registry = make_registry.replicated(servers)
    units_of_work(registry, servers)
    servers.first.freeze()
    registry.monitor.report_down("replica1", "the test says so")
    start = time.monotonic()
    assert units_of_work(registry, servers) == {"replica2"}
    registry.close()
    assert time.monotonic() - start < 2 * LEAST_CONNECT_TIMEOUT + 1.0
    assert not registry.monitor._thread.is_alive()


def test_primary_serves_when_all_are_gone(servers, registry):
    for replica in servers.cluster.replicas:
        replica.kill()

    assert units_of_work(registry, servers) == {"primary"}
    assert registry.Shelf.query().count() == 0


def test_pending_changes_are_kept(servers, registry):
    """A read that is decided anew ends nothing of the unit of work"""
    units_of_work(registry, servers)
    servers.first.stop()
    registry.rollback()
    shelf = registry.Shelf(name="pending", number="1")
    registry.session.add(shelf)
    with registry.session.no_autoflush:
        for _ in range(10):
            assert servers.served_by(registry) == "replica2"

    assert shelf in registry.session.new
    registry.commit()
    assert servers.cluster.primary.query(
        "select name from shelf", database=servers.database
    ) == [("pending",)]


@pytest.mark.parametrize(
    "level", ["READ_COMMITTED", "REPEATABLE_READ", "SERIALIZABLE"]
)
@pytest.mark.parametrize("noticed", [True, False])
def test_commit_is_not_broken_by_a_replica_that_died(
    servers, make_registry, level, noticed
):
    """Nor by the application's having noticed, and gone on"""
    registry = make_registry(
        servers.database,
        db_wo_url=servers.primary_url,
        db_ro_urls=servers.replica_urls,
        isolation_level=level,
    )
    for number in range(10):
        assert servers.served_by(registry) in ("replica1", "replica2")
        for replica in servers.cluster.replicas:
            replica.terminate_backends(servers.database)

        if noticed and level == "READ_COMMITTED":
            servers.served_by(registry)
        elif noticed:
            for _ in range(2):
                with pytest.raises(SnapshotLostError, match="Roll back"):
                    servers.served_by(registry)

        registry.Shelf.insert(name=f"shelf {number}")
        assert servers.served_by(registry) == "primary"
        registry.commit()

    assert servers.cluster.primary.query(
        "select count(*) from shelf", database=servers.database
    ) == [(10,)]
    assert servers.served_by(registry) in ("replica1", "replica2")


@pytest.mark.parametrize("level", ["READ_COMMITTED", "REPEATABLE_READ"])
def test_commit_on_the_primary_does_not_wait_for_a_hung_replica(
    servers, make_registry, level
):
    registry = make_registry(
        servers.database,
        db_wo_url=servers.primary_url,
        db_ro_urls=servers.replica_urls[:1],
        isolation_level=level,
    )

    def work():
        assert servers.served_by(registry) == "replica1"
        registry.Shelf.insert(name="x")
        servers.first.freeze()
        registry.commit()
        registry.Session.remove()

    count = "select count(*) from shelf"
    # SQLAlchemy ends the connections of a session in no order.
    for number in range(1, 7):
        thread = threading.Thread(target=work)
        thread.start()
        wait_until(
            "the primary did not commit",
            lambda wanted=number: (
                servers.cluster.primary.query(count, database=servers.database)
                == [(wanted,)]
            ),
        )
        servers.first.thaw()
        thread.join()
        servers.cluster.primary.execute(
            f"update shelf set name = 'shelf {number}' where name = 'x'",
            database=servers.database,
        )


def test_death_before_a_rollback_is_forgotten(servers, registry):
    for _ in range(5):
        assert servers.served_by(registry) in ("replica1", "replica2")
        for replica in servers.cluster.replicas:
            replica.terminate_backends(servers.database)

        registry.rollback()


def test_error_of_the_primary_is_raised(servers, registry):
    update = text("UPDATE shelf SET name = 'x'")
    registry.execute(update)
    registry.rollback()
    units_of_work(registry, servers)
    servers.cluster.primary.stop()
    with pytest.raises(OperationalError):
        registry.execute(update)

    registry.rollback()
    assert units_of_work(registry, servers) == {"replica1", "replica2"}


@contextmanager
def starting(servers):
    """57P03, cannot_connect_now"""
    settings = servers.first.data / "postgresql.auto.conf"
    before = settings.read_text()
    servers.first.stop()
    settings.write_text(f"{before}hot_standby = off\n")
    servers.first.begin_start()
    wait_until(
        "it did not start", lambda: "standby mode" in servers.first.log()
    )
    try:
        yield servers.database
    finally:
        servers.first.stop()
        settings.write_text(before)
        servers.first.start()


@contextmanager
def full(servers):
    """53300, too_many_connections"""
    with ExitStack() as stack:
        for _ in range(1000):
            try:
                connection = psycopg2.connect(servers.first.url())
            except psycopg2.OperationalError:
                break

            stack.callback(connection.close)

        yield servers.database


@contextmanager
def without_the_database(servers):
    """3D000, invalid_catalog_name"""
    servers.first.pause_replay()
    servers.cluster.primary.execute(
        f"create database newborn template {servers.database}"
    )
    servers.cluster.wait_for_replay(replicas=servers.cluster.replicas[1:])
    yield "newborn"
    servers.first.resume_replay()
    servers.cluster.drop_database("newborn")


@pytest.mark.parametrize("fault", [starting, full, without_the_database])
def test_replica_that_takes_no_connection_is_left_out(
    servers, make_registry, fault, caplog
):
    with fault(servers) as database:
        registry = make_registry(
            database,
            db_wo_url=servers.primary_url,
            db_ro_urls=servers.replica_urls,
        )
        assert units_of_work(registry, servers) == {"replica2"}
        assert registry.health().servers["replica1"].status is Status.DOWN
        registry.close()

    assert caplog.text.count("is out of the reads") == 1


@pytest.mark.parametrize("fault", ["stop", "kill"])
def test_reads_go_on_without_the_primary(servers, registry, fault):
    """Though the session has seen what was on the primary"""
    units_of_work(registry, servers)
    servers.first.pause_replay()
    servers.cluster.primary.execute(
        "insert into book (title, copies) values ('x', 0)",
        database=servers.database,
    )
    with registry.use_primary():
        assert registry.Book.query().count() == 1

    registry.rollback()
    getattr(servers.cluster.primary, fault)()
    for _ in range(10):
        assert registry.Book.query().count() == 1
        assert servers.served_by(registry) == "replica2"
        registry.rollback()


@pytest.mark.parametrize("fault", ["stop", "kill"])
def test_read_on_a_primary_that_dies_is_run_on_a_replica(
    servers, registry, fault
):
    """Units of work that only read there, and in the middle of a statement"""
    take_for_down(registry, *REPLICAS)
    assert servers.served_by(registry) == "primary"
    timer = threading.Timer(0.5, getattr(servers.cluster.primary, fault))
    make_ready(registry, *REPLICAS)
    timer.start()
    port = text("SELECT current_setting('port') FROM pg_sleep(:seconds)")
    found = registry.execute(port, {"seconds": 2}).scalar()
    assert servers.names[found] in ("replica1", "replica2")
    registry.commit()
    timer.join()


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_end_of_what_has_only_read_is_no_error(servers, registry, end):
    """Though the primary has died since"""
    with registry.use_primary():
        assert servers.served_by(registry) == "primary"

    servers.cluster.primary.kill()
    getattr(registry, end)()
    assert units_of_work(registry, servers) == {"replica1", "replica2"}


def test_rollback_of_a_write_on_a_primary_that_has_died_is_no_error(
    servers, registry
):
    registry.Book.insert(title="x")
    registry.flush()
    servers.cluster.primary.kill()
    registry.rollback()
    assert units_of_work(registry, servers) == {"replica1", "replica2"}


def test_write_on_a_primary_that_dies_is_an_error(servers, registry):
    registry.Book.insert(title="x")
    servers.cluster.primary.kill()
    with pytest.raises(OperationalError):
        registry.Book.query().count()

    registry.rollback()
    assert registry.Book.query().count() == 0


def test_read_waits_for_a_server_where_there_is_none(servers, registry):
    """The time that a failover takes, and no longer"""
    units_of_work(registry, servers)
    for server in servers.cluster.servers:
        server.stop()

    start = time.monotonic()
    with pytest.raises(OperationalError):
        servers.served_by(registry)

    registry.rollback()
    assert 1.5 < time.monotonic() - start < 10.0
    timer = threading.Timer(0.5, servers.cluster.primary.start)
    timer.start()
    assert servers.served_by(registry) == "primary"
    timer.join()


def test_reads_go_on_while_the_primary_hangs(servers, registry):
    for hangs in (False, True):
        with registry.use_primary():
            assert servers.served_by(registry) == "primary"

        registry.rollback()
        if hangs:
            servers.cluster.primary.freeze()

        start = time.monotonic()
        assert servers.served_by(registry) != "primary"
        registry.rollback()
        # Until the monitor knows: its interval, and its timeout.
        assert time.monotonic() - start < 4.5

    assert units_of_work(registry, servers) == {"replica1", "replica2"}
    assert time.monotonic() - start < 6.0


@pytest.mark.parametrize("share", [True, False])
def test_reads_leave_a_primary_that_hangs(servers, make_registry, share):
    """Those in flight, and those that connect"""
    name = "db_url" if share else "db_wo_url"
    registry = make_registry(
        servers.database,
        **{name: servers.primary_url},
        db_ro_urls=servers.replica_urls,
    )
    if not share:
        for replica in servers.cluster.replicas:
            registry.monitor.report_down(replica.name, "the test says so")

    units_of_work(registry, servers)
    stalls, failed, stopped = [], [], threading.Event()

    def work():
        while not stopped.is_set():
            begun = time.monotonic()
            try:
                servers.served_by(registry)
                registry.rollback()
            except Exception as error:
                failed.append(error)
                registry.rollback()

            stalls.append(time.monotonic() - begun)

        registry.Session.remove()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()

    wait_until("nobody reads", lambda: len(stalls) > 100)
    servers.cluster.primary.freeze()
    make_ready(registry, *REPLICAS)
    time.sleep(5.0)
    stopped.set()
    for thread in threads:
        thread.join(10.0)

    assert not any(thread.is_alive() for thread in threads)
    assert failed == []
    # Twice the check interval, a connect timeout for the question and another
    # for the read, and a busy machine.
    assert max(stalls) < 7.5


def test_session_that_saw_a_primary_which_has_no_time_stays_there(
    servers, make_registry
):
    """It answers the monitor, and refuses another question"""
    proxy = servers.cluster.proxy(servers.cluster.primary)
    registry = make_registry.replicated(
        servers, db_wo_url=proxy.url(servers.database, DRIVER), db_ro_wait=0
    )
    units_of_work(registry, servers)
    for replica in servers.cluster.replicas:
        replica.pause_replay()

    servers.cluster.primary.execute(
        "insert into book (title, copies) values ('x', 0)",
        database=servers.database,
    )
    with registry.use_primary():
        assert registry.Book.query().count() == 1

    registry.rollback()
    registry._asides.pop("primary").dispose()
    proxy.refuse()
    for _ in range(3):
        assert registry.Book.query().count() == 1
        registry.rollback()


def test_columns_that_change_send_nothing_to_the_primary(servers, registry):
    """psycopg prepares what it has executed some times"""
    shelves = text("SELECT * FROM shelf")
    for _ in range(20):
        registry.execute(shelves)
        registry.rollback()

    servers.cluster.primary.execute(
        "alter table shelf add column later integer", database=servers.database
    )
    servers.cluster.wait_for_replay()
    for _ in range(5):
        registry.execute(shelves)
        registry.rollback()

    assert registry.explain(shelves).server_name in ("replica1", "replica2")


def test_read_waits_for_a_replica_where_there_is_no_primary(
    servers, make_registry
):
    registry = make_registry.replicated(servers)
    units_of_work(registry, servers)
    for replica in servers.cluster.replicas:
        replica.pause_replay()

    registry.Book.insert(title="x")
    registry.commit()
    servers.cluster.primary.stop()
    timer = threading.Timer(0.5, servers.cluster.replicas[1].resume_replay)
    timer.start()
    assert registry.Book.query().count() == 1
    assert servers.served_by(registry) == "replica2"
    timer.join()


def test_reads_go_on_without_a_primary_that_takes_reads(servers, make_registry):
    registry = make_registry(
        servers.database,
        db_url=servers.primary_url,
        db_ro_urls=servers.replica_urls,
    )
    assert "primary" in units_of_work(registry, servers, 40)
    servers.cluster.primary.kill()
    names = units_of_work(registry, servers, 40)
    assert names == {"replica1", "replica2"}


def test_query_that_conflicts_with_the_replay_is_run_elsewhere(
    servers, registry
):
    registry.Book.insert(title="x")
    registry.commit()
    servers.cluster.wait_for_replay()
    read = []

    def work():
        registry.read_after(token)
        with registry.use_replicas():
            read.append(servers.served_by(registry))
            # On the second server it is fast enough for a test.
            read.append(
                registry.execute(
                    text(
                        "SELECT current_setting('port'), CASE"
                        " current_setting('port') WHEN :port"
                        " THEN pg_sleep(20) END FROM book"
                    ),
                    {"port": port_of(servers, read[0])},
                ).scalar()
            )

        registry.Session.remove()

    token = registry.consistency_token()
    thread = threading.Thread(target=work)
    thread.start()
    wait_until("it does not sleep", lambda: is_sleeping(servers))
    (replica,) = (x for x in servers.cluster.replicas if x.name == read[0])
    servers.cluster.cause_recovery_conflict(replica, servers.database)
    thread.join(30.0)
    assert not thread.is_alive()
    assert servers.names[read[1]] != read[0]


def port_of(servers, name):
    return next(port for port, x in servers.names.items() if x == name)


def is_sleeping(servers):
    count = (
        "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
        f" and datname = '{servers.database}'"
    )
    return any(x.query(count) != [(0,)] for x in servers.cluster.replicas)
