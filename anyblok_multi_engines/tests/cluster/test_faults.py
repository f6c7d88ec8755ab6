# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Each fault by its effect on a client, and its end."""

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import psycopg2
import pytest

from anyblok_multi_engines.testing import (
    Cluster,
    ClusterError,
    PostgresServer,
    guardian,
    wait_until,
)


def count(server: PostgresServer) -> int:
    """How many rows a server has"""
    return int(server.query("select count(*) from numbers")[0][0])


def add(server: PostgresServer) -> None:
    """Commit one row more"""
    server.execute("insert into numbers values (2)")


def test_paused_replica_receives_but_does_not_show(
    anyblok_cluster: Cluster, table: str
) -> None:
    primary, (paused, other) = anyblok_cluster.primary, anyblok_cluster.replicas
    paused.pause_replay()
    add(primary)
    anyblok_cluster.wait_for_replay()
    assert (count(paused), count(other)) == (1, 2)
    wait_until(
        "it did not receive",
        lambda: paused.query(
            "select pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()"
        )[0][0],
    )
    assert paused.replay_state == "paused"
    paused.resume_replay()
    anyblok_cluster.wait_for_replay(replicas=[paused])
    assert count(paused) == 2


def test_wait_for_a_paused_replica_that_is_named_says_why_it_fails(
    anyblok_cluster: Cluster, table: str
) -> None:
    replica = anyblok_cluster.replicas[0]
    replica.pause_replay()
    add(anyblok_cluster.primary)
    with pytest.raises(TimeoutError, match=r"replica1 .* 0\.1 s.*, paused"):
        anyblok_cluster.wait_for_replay(timeout=0.1, replicas=[replica])


def test_delayed_replica_shows_later(
    anyblok_cluster: Cluster, table: str
) -> None:
    primary, (delayed, other) = (
        anyblok_cluster.primary,
        anyblok_cluster.replicas,
    )
    delayed.delay_replay(0.5)
    began = time.monotonic()
    add(primary)
    anyblok_cluster.wait_for_replay(replicas=[other])
    assert count(other) == 2
    anyblok_cluster.wait_for_replay(replicas=[delayed])
    assert time.monotonic() - began >= 0.5
    assert count(delayed) == 2


def test_delay_that_ends_lets_the_replica_go_on(
    anyblok_cluster: Cluster, table: str
) -> None:
    replica = anyblok_cluster.replicas[0]
    replica.delay_replay(60.0)
    add(anyblok_cluster.primary)
    assert count(replica) == 1
    replica.delay_replay(0)
    anyblok_cluster.wait_for_replay()
    assert count(replica) == 2


@pytest.mark.parametrize(
    ("mode", "code"), [("fast", "57P01"), ("immediate", None)]
)
def test_stopped_server_refuses_and_starts_again_on_its_port(
    anyblok_cluster: Cluster, table: str, connect: Any, mode: str, code: str
) -> None:
    replica = anyblok_cluster.replicas[0]
    port = replica.port
    session = connect(replica.url())
    replica.stop(mode)
    assert not replica.is_running
    with pytest.raises(psycopg.Error) as caught:
        session.cursor().execute("select 1")
    assert caught.value.sqlstate == code
    with pytest.raises(psycopg2.OperationalError, match="refused"):
        replica.query("select 1")
    add(anyblok_cluster.primary)
    anyblok_cluster.wait_for_replay()
    replica.start()
    assert replica.port == port
    anyblok_cluster.wait_for_replay(replicas=[replica])
    assert count(replica) == 2


def test_mode_of_stop_that_does_not_exist_is_refused(
    anyblok_cluster: Cluster,
) -> None:
    with pytest.raises(KeyError, match="slow"):
        anyblok_cluster.primary.stop("slow")
    assert anyblok_cluster.primary.is_running


def test_primary_keeps_its_data_through_stop_and_start(
    anyblok_cluster: Cluster, table: str
) -> None:
    add(anyblok_cluster.primary)
    anyblok_cluster.primary.stop()
    # Replicas go on without it.
    assert [count(replica) for replica in anyblok_cluster.replicas] == [2, 2]
    anyblok_cluster.primary.start()
    add(anyblok_cluster.primary)
    anyblok_cluster.wait_for_replay()
    assert [count(server) for server in anyblok_cluster.servers] == [3, 3, 3]


def test_killed_server_leaves_no_process(
    anyblok_cluster: Cluster, table: str, connect: Any
) -> None:
    for server in (anyblok_cluster.primary, anyblok_cluster.replicas[0]):
        session = connect(server.url())
        pids = {process.pid for process in guardian.family(server.pid)}
        # The postmaster, the session's backend, and those of the server.
        assert len(pids) > 3
        server.kill()
        assert not server.is_running
        alive = {one.pid for one in guardian.processes() if one.state != "Z"}
        assert pids.isdisjoint(alive)
        with pytest.raises(psycopg.OperationalError) as caught:
            session.cursor().execute("select 1")
        assert caught.value.sqlstate is None
        server.start()
        anyblok_cluster.wait_for_replay()
        assert count(server) == 1


def test_start_survives_a_postmaster_killed_by_others(
    anyblok_cluster: Cluster, table: str
) -> None:
    primary = anyblok_cluster.primary
    # Its backends are frozen: they don't see that it died.
    primary.freeze()
    pids = {process.pid for process in guardian.family(primary.pid)}
    guardian.send([primary.pid], 9)
    wait_until("it did not die", lambda: not primary.is_running)
    anyblok_cluster.heal()
    assert count(primary) == 1
    alive = {one.pid for one in guardian.processes() if one.state != "Z"}
    assert pids.isdisjoint(alive)


def test_frozen_server_accepts_and_never_answers(
    anyblok_cluster: Cluster, table: str, connect: Any
) -> None:
    replica = anyblok_cluster.replicas[0]
    session = connect(replica.url())
    replica.freeze()
    assert replica.is_running
    assert replica.is_frozen
    began = time.monotonic()
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        connect(replica.url(), timeout=2)
    assert time.monotonic() - began > 1.0
    with pytest.raises(ClusterError, match=r"replica1 is frozen: thaw\(\)"):
        replica.query("select 1")
    # Which is sent, and answered when it is thawed.
    answers: list[object] = []

    def ask() -> None:
        cursor = session.cursor()
        cursor.execute("select 'answer'")
        answers.extend(cursor.fetchone())

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(0.2)
    assert answers == []
    replica.thaw()
    asking.join(10.0)
    assert answers == ["answer"]


def test_frozen_server_can_be_stopped(anyblok_cluster: Cluster) -> None:
    replica = anyblok_cluster.replicas[0]
    replica.freeze()
    replica.stop()
    assert not replica.is_running
    assert not replica.is_frozen


def test_terminated_session_gets_57p01_and_others_of_the_server_live(
    anyblok_cluster: Cluster, connect: Any
) -> None:
    primary = anyblok_cluster.primary
    session = connect(primary.url())
    other = connect(primary.url("template1"))
    assert primary.terminate_backends("postgres") == 1
    with pytest.raises(psycopg.errors.AdminShutdown):
        session.cursor().execute("select 1")
    other.cursor().execute("select 1")


@pytest.mark.parametrize("name", ["primary", "replica1"])
def test_killed_backend_restarts_the_server(
    anyblok_cluster: Cluster, table: str, connect: Any, name: str
) -> None:
    (server,) = (one for one in anyblok_cluster.servers if one.name == name)
    pid = server.pid
    session = connect(server.url())
    bystander = connect(server.url("template1"))
    assert server.kill_backends("postgres") == 1
    for one in (session, bystander):
        with pytest.raises(psycopg.OperationalError):
            one.cursor().execute("select 1")
    assert server.pid == pid
    anyblok_cluster.wait_for_replay()
    assert count(server) == 1


def test_nothing_to_kill_restarts_nothing(
    anyblok_cluster: Cluster, connect: Any
) -> None:
    session = connect(anyblok_cluster.primary.url())
    assert anyblok_cluster.primary.kill_backends("template1") == 0
    session.cursor().execute("select 1")


def test_session_survives_a_promotion_and_may_write(
    anyblok_cluster: Cluster, table: str, connect: Any
) -> None:
    replica = anyblok_cluster.replicas[0]
    session = connect(replica.url())
    session.autocommit = True
    replica.promote()
    session.cursor().execute(f"insert into {table} values (7)")
    assert not replica.is_in_recovery
    assert count(replica) == 2
    # It is a primary of its own: the old one knows nothing of that.
    assert count(anyblok_cluster.primary) == 1


def test_promoted_replica_is_not_waited_for_unless_it_is_named(
    anyblok_cluster: Cluster, table: str
) -> None:
    replica = anyblok_cluster.replicas[0]
    replica.promote()
    add(anyblok_cluster.primary)
    anyblok_cluster.wait_for_replay()
    with pytest.raises(TimeoutError, match=r"replica1 .* primary"):
        anyblok_cluster.wait_for_replay(timeout=0.1, replicas=[replica])


def test_failover_with_the_other_replica_and_the_old_primary_following(
    anyblok_cluster: Cluster, table: str, connect: Any
) -> None:
    old, (new, other) = anyblok_cluster.primary, anyblok_cluster.replicas
    reader = connect(other.url())
    old.stop()
    new.promote()
    other.follow(new)
    old.follow(new)
    add(new)
    anyblok_cluster.wait_for_replay(replicas=[old, other])
    assert [count(server) for server in anyblok_cluster.servers] == [2, 2, 2]
    assert old.is_in_recovery
    # It was pointed there by a reload.
    reader.cursor().execute("select 1")
    # By a vacuum on the new primary.
    anyblok_cluster.cause_recovery_conflict(other)
    anyblok_cluster.heal()
    assert not old.is_in_recovery
    assert new.is_in_recovery
    assert other.is_in_recovery
    assert old.streaming_replicas() == {"replica1", "replica2"}


def test_rebuilt_replica_is_a_copy_again(
    anyblok_cluster: Cluster, table: str
) -> None:
    replica = anyblok_cluster.replicas[0]
    port = replica.port
    replica.promote()
    add(replica)
    replica.rebuild()
    assert replica.port == port
    assert replica.is_in_recovery
    assert count(replica) == 1


@pytest.mark.parametrize("idle", [False, True])
def test_recovery_conflict_cancels_a_reader(
    anyblok_cluster: Cluster, table: str, connect: Any, idle: bool
) -> None:
    replica, other = anyblok_cluster.replicas
    reader, spared = connect(replica.url()), connect(other.url())
    for one in (reader, spared):
        one.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        one.cursor().execute(f"select n from {table}")
    if not idle:
        done, errors = in_thread(reader, "select pg_sleep(30)")
        wait_until(
            "it did not sleep",
            lambda: replica.query(
                "select pid from pg_stat_activity where query ~ 'pg_sleep.30'"
                " and wait_event = 'PgSleep'"
            ),
        )
    anyblok_cluster.cause_recovery_conflict(replica)
    if idle:
        done, errors = in_thread(reader, "select 1")
    done.join(10.0)
    (error,) = errors
    assert "conflict with recovery" in str(error)
    assert (error.sqlstate, reader.closed) == ("40001", idle)
    spared.cursor().execute("select 1")
    assert replica.query("show max_standby_streaming_delay") == [("30s",)]


def in_thread(
    connection: Any, statement: str
) -> tuple[threading.Thread, list[psycopg.Error]]:
    """Run a statement aside, and keep its error"""
    errors: list[psycopg.Error] = []

    def run() -> None:
        try:
            connection.cursor().execute(statement)
        except psycopg.Error as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, errors


def test_configure_holds_for_new_sessions_until_it_is_reset(
    anyblok_cluster: Cluster,
) -> None:
    primary = anyblok_cluster.primary
    primary.configure(work_mem="3MB", search_path="a, b")
    assert primary.query("show work_mem") == [("3MB",)]
    primary.configure(work_mem=None, search_path=None)
    assert primary.query("show work_mem") == [("4MB",)]


BREAK: dict[str, Callable[[Cluster], None]] = {
    "paused": lambda cluster: cluster.replicas[0].pause_replay(),
    "paused by SQL": lambda cluster: cluster.replicas[0].execute(
        "select pg_wal_replay_pause()"
    ),
    "delayed": lambda cluster: cluster.replicas[0].delay_replay(60.0),
    "all stopped": lambda cluster: (
        [server.stop("immediate") for server in cluster.servers] and None
    ),
    "all killed": lambda cluster: (
        [server.kill() for server in cluster.servers] and None
    ),
    "all frozen": lambda cluster: (
        [server.freeze() for server in cluster.servers] and None
    ),
    "all promoted": lambda cluster: (
        [replica.promote() for replica in cluster.replicas] and None
    ),
    "cascading": lambda cluster: cluster.replicas[1].follow(
        cluster.replicas[0]
    ),
}


@pytest.mark.parametrize("fault", BREAK)
def test_heal_undoes(anyblok_cluster: Cluster, table: str, fault: str) -> None:
    ports = [server.port for server in anyblok_cluster.servers]
    BREAK[fault](anyblok_cluster)
    anyblok_cluster.heal()
    assert [server.port for server in anyblok_cluster.servers] == ports
    assert anyblok_cluster.primary.streaming_replicas() == {
        "replica1",
        "replica2",
    }
    add(anyblok_cluster.primary)
    anyblok_cluster.wait_for_replay(replicas=anyblok_cluster.replicas)
    assert [count(server) for server in anyblok_cluster.servers] == [2, 2, 2]


def test_heal_makes_a_replica_again_that_lost_its_data(
    anyblok_cluster: Cluster, table: str
) -> None:
    replica = anyblok_cluster.replicas[0]
    replica.kill()
    (replica.data / "global" / "pg_control").unlink()
    anyblok_cluster.heal()
    assert count(replica) == 1


def test_heal_of_a_healthy_cluster_writes_nothing(
    anyblok_cluster: Cluster,
) -> None:
    position = "select pg_current_wal_insert_lsn()"
    anyblok_cluster.primary.execute("checkpoint")
    before = anyblok_cluster.primary.query(position)
    anyblok_cluster.heal()
    assert anyblok_cluster.primary.query(position) == before
