# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The monitor, on real servers that lag, hang or aren't what they seem."""

import logging
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from anyblok_multi_engines.errors import OptionError
from anyblok_multi_engines.health.model import Status
from anyblok_multi_engines.testing import Cluster, guardian, wait_until
from anyblok_multi_engines.tests.processes import stand_still

REPLICAS = {"replica1", "replica2"}


@pytest.fixture
def make(servers, make_registry):
    """Give a function that builds a registry whose monitor asks often"""

    def make(**options):
        return make_registry.replicated(
            servers, **{"db_ro_check_interval": 0.1, **options}
        )

    return make


def status(registry, name):
    return registry.health().of(name).status


def wait_for(registry, name, expected):
    wait_until(
        f"{name} did not become {expected}",
        lambda: status(registry, name) is expected,
    )


def units(registry, servers, number=24):
    names = set()
    for _ in range(number):
        names.add(servers.served_by(registry))
        registry.rollback()

    return names


def test_every_server_is_known_from_the_start(make):
    registry = make()
    for name in ("primary", *REPLICAS):
        health = registry.health().of(name)
        assert health.status is Status.READY
        assert health.observation.position.lsn > 0
        assert 0 < health.observation.latency < 2


def test_question_is_one_statement_on_a_connection_of_its_own(make, servers):
    registry = make()
    wait_until(
        "it was not asked",
        lambda: (
            registry.health().of("replica1").observation.asked_at
            > time.monotonic() - 1
        ),
    )
    size = servers.first.log_size
    before = registry.health().of("replica1").observation.asked_at
    wait_until(
        "it was not asked three times",
        lambda: (
            registry.health().of("replica1").observation.asked_at > before + 0.3
        ),
    )
    log = servers.first.log(size)
    # psycopg prepares the sixth.
    asked = log.count("statement:") + log.count("execute ")
    questions = log.count("pg_last_wal_replay_lsn")
    assert 2 <= questions <= 5
    assert asked == questions


def test_hung_replica_is_left_and_its_reads_go_elsewhere(make, servers):
    registry = make()
    units(registry, servers)
    with registry.use_replicas():
        while servers.served_by(registry) != "replica1":
            registry.rollback()

    read = []

    def work():
        # Till the monitor knows, and each replica is drawn a few times more.
        while status(registry, "replica1") is not Status.DOWN:
            read.append(servers.served_by(registry))
            registry.rollback()

        for _ in range(12):
            read.append(servers.served_by(registry))
            registry.rollback()

        registry.Session.remove()

    servers.first.freeze()
    thread = threading.Thread(target=work, daemon=True)
    begun = time.monotonic()
    thread.start()
    thread.join(10.0)
    assert not thread.is_alive()
    assert time.monotonic() - begun < 5.0
    assert set(read) <= {"replica2", "primary"}
    assert status(registry, "replica1") is Status.DOWN
    registry.rollback()
    servers.first.thaw()
    wait_for(registry, "replica1", Status.READY)


def test_replica_is_not_late_where_this_process_stands_still(make, servers):
    """What reads from it goes on, and nobody is told"""
    registry = make(db_ro_check_interval=60.0)
    registry.monitor.step()
    with registry.engine_of("replica1").connect() as connection:
        servers.first.freeze()
        thread = threading.Thread(target=registry.monitor.step)
        thread.start()
        # The question has been sent; its answer comes in the meantime.
        time.sleep(0.2)
        with thawed_in(0.5, servers.first):
            stand_still(2.5)

        thread.join()
        assert status(registry, "replica1") is Status.READY
        assert connection.scalar(text("SELECT 1")) == 1


@contextmanager
def thawed_in(seconds, server):
    """Thaw a server during the block, whatever this process does"""
    pids = " ".join(str(x.pid) for x in guardian.family(server.pid))
    command = f"sleep {seconds}; kill -CONT {pids}"
    with subprocess.Popen(["sh", "-c", command]):
        yield

    server.thaw()


def test_replica_that_is_far_behind_is_left(make, servers, caplog):
    registry = make(db_ro_max_lag=0.5)
    servers.first.pause_replay()
    servers.cluster.primary.execute(
        "insert into book (title, copies) values ('x', 1)",
        database=servers.database,
    )
    wait_for(registry, "replica1", Status.LAGGING)
    assert "replica1" in caplog.text
    assert "of 0.5 s allowed" in caplog.text
    assert units(registry, servers) == {"replica2"}
    servers.first.resume_replay()
    wait_for(registry, "replica1", Status.READY)


def test_replica_that_is_many_bytes_behind_is_left(make, servers):
    registry = make(db_ro_max_lag_bytes=1000)
    servers.first.pause_replay()
    servers.cluster.primary.execute(
        "insert into book (title, copies)"
        " select 'x', 1 from generate_series(1, 100)",
        database=servers.database,
    )
    wait_for(registry, "replica1", Status.LAGGING)
    assert registry.health().of("replica1").lag.bytes > 1000


def test_replica_is_behind_what_is_loaded_in_bulk(make, servers):
    """Which is flushed page by page, and committed at the end"""
    registry = make(db_ro_max_lag_bytes=1_000_000)
    servers.first.pause_replay()
    with registry.engine_of("primary").connect() as connection:
        connection.execute(
            text(
                "insert into book (title, copies)"
                " select 'x', 1 from generate_series(1, 50000)"
            )
        )
        wait_for(registry, "replica1", Status.LAGGING)
        assert registry.health().of("replica1").lag.bytes > 1_000_000


def test_catalogue_is_read_where_the_primary_hangs(make, servers):
    registry = make()
    assert registry.read_catalogue() is not None
    servers.cluster.primary.freeze()
    read = []
    reader = threading.Thread(
        target=lambda: read.append(registry.read_catalogue()), daemon=True
    )
    reader.start()
    reader.join(20)
    assert read
    assert read[0] is not None


@pytest.mark.parametrize("open_transaction", [False, True])
def test_idle_primary_makes_no_replica_old(make, servers, open_transaction):
    """Nor one with a transaction that goes on, which nobody flushes"""
    registry = make(db_ro_max_lag=0.2)
    servers.cluster.wait_for_replay()
    with registry.engine_of("primary").connect() as connection:
        if open_transaction:
            connection.execute(
                text("insert into book (title, copies) values ('x', 1)")
            )

        for _ in range(10):
            time.sleep(0.1)
            assert registry.health().unusable == frozenset()


@pytest.mark.parametrize(
    "option",
    ["db_ro_check_interval", "db_ro_max_lag", "db_ro_max_backoff"],
)
def test_bad_option_is_an_error(make, option):
    name = "--" + option.replace("_", "-")
    with pytest.raises(OptionError, match=f"{name}: 'x'; write seconds"):
        make(**{option: "x"})


@pytest.fixture
def other():
    """Give a cluster that has nothing to do with the servers"""
    # Of an initdb of its own, and so of another system identifier.
    with Cluster(replicas=1, durable=True) as cluster:
        yield cluster


class TestWrongServers:
    def test_another_cluster_serves_no_read(
        self, servers, other, make_registry, caplog
    ):
        other.create_database(servers.database)
        registry = make_registry(
            servers.database,
            db_wo_url=servers.primary_url,
            db_ro_urls=[
                servers.replica_urls[0],
                servers.primary_url.replace(
                    str(servers.cluster.primary.port),
                    str(other.replicas[0].port),
                ),
            ],
        )
        assert status(registry, "replica2") is Status.WRONG
        assert "it is of another cluster" in caplog.text
        assert units(registry, servers) == {"replica1"}

    def test_primary_given_as_a_replica_serves_no_read(
        self, servers, make_registry, caplog
    ):
        url = servers.primary_url.replace("127.0.0.1", "localhost")
        registry = make_registry(
            servers.database,
            db_wo_url=servers.primary_url,
            db_ro_urls=[servers.replica_urls[0], url],
        )
        assert status(registry, "replica2") is Status.WRONG
        assert "not in recovery" in caplog.text
        errors = [x for x in caplog.records if x.levelno == logging.ERROR]
        assert len(errors) == 1
        assert units(registry, servers) == {"replica1"}


def test_close_ends_the_monitor_and_its_connections(make, servers):
    registry = make()
    registry.close()
    count = (
        "select count(*) from pg_stat_activity"
        f" where datname = '{servers.database}'"
    )
    wait_until(
        "connections are left",
        lambda: servers.cluster.primary.query(count) == [(0,)],
    )
    assert not registry.monitor._thread.is_alive()
    assert registry.execute(text("SELECT 1")).scalar() == 1
