# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A cluster that nothing is wrong with."""

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from anyblok_multi_engines.testing import (
    Cluster,
    ClusterError,
    find_binaries,
    wait_until,
)
from anyblok_multi_engines.testing.ports import ephemeral_ports


def test_names_and_roles(anyblok_cluster: Cluster) -> None:
    roles = {
        server.name: server.is_in_recovery for server in anyblok_cluster.servers
    }
    assert roles == {"primary": False, "replica1": True, "replica2": True}


def test_replica_has_what_was_committed(
    anyblok_cluster: Cluster, table: str
) -> None:
    # One commit in about a hundred ends where a page ends.
    for n in range(100):
        anyblok_cluster.primary.execute(f"insert into {table} values ({n})")
    anyblok_cluster.wait_for_replay()
    for replica in anyblok_cluster.replicas:
        assert replica.query(f"select count(*) from {table}") == [(101,)]


def test_wait_does_not_need_an_open_transaction_to_end(
    anyblok_cluster: Cluster, table: str, connect: Any
) -> None:
    writer = connect(anyblok_cluster.primary.url())
    writer.cursor().execute(f"insert into {table} values (2)")
    # Its record is in memory only, and nobody will flush it.
    anyblok_cluster.wait_for_replay()
    replica = anyblok_cluster.replicas[0]
    assert replica.query(f"select count(*) from {table}") == [(1,)]


def test_wait_sees_asynchronous_commits(
    anyblok_cluster: Cluster, table: str, connect: Any
) -> None:
    writer = connect(anyblok_cluster.primary.url())
    writer.autocommit = True
    cursor = writer.cursor()
    cursor.execute("set synchronous_commit = off")
    for n in range(10):
        cursor.execute(f"update {table} set n = {n}")
        anyblok_cluster.wait_for_replay()
        replica = anyblok_cluster.replicas[0]
        assert replica.query(f"select n from {table}") == [(n,)]


def test_primary_that_ends_a_page_is_waited_for(
    anyblok_cluster: Cluster, table: str
) -> None:
    primary = anyblok_cluster.primary
    # After a switch the insert position is behind a header of 40 bytes.
    primary.execute(f"insert into {table} values (3)", "select pg_switch_wal()")
    anyblok_cluster.wait_for_replay()
    replica = anyblok_cluster.replicas[0]
    assert replica.query(f"select n from {table}") == [(1,), (3,)]


def test_replica_refuses_to_write(anyblok_cluster: Cluster, table: str) -> None:
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        anyblok_cluster.replicas[0].execute(f"delete from {table}")


def test_url_leads_to_its_server(
    anyblok_cluster: Cluster, connect: Any
) -> None:
    for server in anyblok_cluster.servers:
        cursor = connect(server.url()).cursor()
        cursor.execute("select current_setting('port')::int")
        assert cursor.fetchone() == (server.port,)


def test_url_names_database_and_driver(anyblok_cluster: Cluster) -> None:
    primary = anyblok_cluster.primary
    assert (
        primary.url("mydb", driver="postgresql+psycopg")
        == f"postgresql+psycopg://postgres@127.0.0.1:{primary.port}/mydb"
    )


def test_ports_are_not_ephemeral(anyblok_cluster: Cluster) -> None:
    first, last = ephemeral_ports()
    for server in anyblok_cluster.servers:
        assert not first <= server.port <= last


def test_servers_listen_on_loopback_only(anyblok_cluster: Cluster) -> None:
    ((addresses, sockets),) = anyblok_cluster.primary.query(
        "select current_setting('listen_addresses'),"
        " current_setting('unix_socket_directories')"
    )
    assert (addresses, sockets) == ("127.0.0.1", "")


def test_database_is_created_and_dropped_with_its_sessions(
    anyblok_cluster: Cluster, connect: Any
) -> None:
    anyblok_cluster.create_database('odd "name"')
    anyblok_cluster.wait_for_replay()
    replica = anyblok_cluster.replicas[0]
    assert replica.query("select 1", database='odd "name"') == [(1,)]
    connect(anyblok_cluster.primary.url("odd%20%22name%22"))
    anyblok_cluster.drop_database('odd "name"')
    anyblok_cluster.drop_database('odd "name"')
    anyblok_cluster.wait_for_replay()
    assert (
        replica.query("select 1 from pg_database where datname ~ 'odd'") == []
    )


def test_execute_commits_each_statement(anyblok_cluster: Cluster) -> None:
    # Which is refused in a transaction, even of two statements.
    anyblok_cluster.primary.execute("vacuum", "vacuum")


def test_query_takes_parameters(anyblok_cluster: Cluster) -> None:
    query = anyblok_cluster.primary.query
    assert query("select %s || '%%'", ("5",)) == [("5%",)]
    assert query("select '5%'") == [("5%",)]


def test_log_begins_where_it_is_asked_to(anyblok_cluster: Cluster) -> None:
    primary = anyblok_cluster.primary
    primary.execute("do $$ begin raise log 'earlier'; end $$")
    wait_until("no log", lambda: "LOG:  earlier" in primary.log())
    start = primary.log_size
    primary.execute("do $$ begin raise log 'later'; end $$")
    wait_until("no log", lambda: "LOG:  later" in primary.log(start))
    assert "earlier" not in primary.log(start)


def test_clusters_live_side_by_side(anyblok_cluster: Cluster) -> None:
    with Cluster(replicas=0, settings={"work_mem": "7MB"}) as other:
        assert other.primary.port != anyblok_cluster.primary.port
        assert other.primary.query("show work_mem") == [("7MB",)]
        assert other.replicas == ()
        other.wait_for_replay()
        other.heal()
    assert anyblok_cluster.primary.query("select 1") == [(1,)]


def test_settings_reach_the_replicas() -> None:
    settings = {"wal_level": "logical", "cursor_tuple_fraction": "0.5"}
    with Cluster(replicas=1, settings=settings) as cluster:
        for server in cluster.servers:
            assert server.query("show wal_level") == [("logical",)]
            assert server.query("show cursor_tuple_fraction") == [("0.5",)]


def test_setting_that_is_wrong_is_reported_with_the_log() -> None:
    with (
        pytest.raises(ClusterError, match="invalid value for parameter"),
        Cluster(replicas=0, settings={"work_mem": "much"}),
    ):
        raise AssertionError("it started")


def test_close_leaves_no_file_and_no_listener() -> None:
    cluster = Cluster(replicas=1)
    with cluster:
        directory = cluster.primary.data.parent
        ports = [server.port for server in cluster.servers]
        assert directory.is_dir()
    cluster.close()
    assert not directory.exists()
    for port in ports:
        with (
            pytest.raises(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", port)),
        ):
            raise AssertionError("somebody listens")
    with pytest.raises(ClusterError, match="start"):
        cluster.primary  # noqa: B018


def test_close_ends_servers_that_are_frozen_or_stopped() -> None:
    with Cluster(replicas=2) as cluster:
        directory = cluster.primary.data.parent
        cluster.replicas[0].freeze()
        cluster.replicas[1].stop()
    assert not directory.exists()


def test_cluster_can_be_started_again() -> None:
    cluster = Cluster(replicas=0)
    for _ in range(2):
        with cluster:
            assert cluster.primary.query("select 1") == [(1,)]


def test_durable_cluster_syncs_to_a_disk() -> None:
    with Cluster(replicas=0, durable=True) as cluster:
        assert cluster.primary.query("show fsync") == [("on",)]
        assert cluster.primary.query("show full_page_writes") == [("on",)]
        assert not cluster.primary.data.is_relative_to("/dev/shm")


def test_directory_that_nobody_can_enter_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    with pytest.raises(ClusterError, match="can't enter"):
        Cluster(directory=closed).start()


def test_negative_number_of_replicas_is_refused() -> None:
    with pytest.raises(ValueError, match="replicas=-1"):
        Cluster(replicas=-1)


def test_environment_of_psql_is_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HOST", "PORT", "DATA", "OPTIONS", "USER", "SSLMODE"):
        monkeypatch.setenv(f"PG{name}", "nonsense")
    with Cluster(replicas=1) as cluster:
        cluster.wait_for_replay()


def test_port_that_somebody_took_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from anyblok_multi_engines.testing import server
    from anyblok_multi_engines.testing.ports import listener, reserve_port

    taken = reserve_port()
    with listener(taken.number), Cluster(replicas=0) as cluster:
        assert cluster.primary.port != taken.number
    # And one that is taken after it was found free.
    offered = iter([taken])
    monkeypatch.setattr(
        server, "reserve_port", lambda: next(offered, None) or reserve_port()
    )
    with listener(taken.number), Cluster(replicas=0) as cluster:
        assert cluster.primary.port != taken.number
        assert cluster.primary.query("select 1") == [(1,)]


def test_root_runs_the_copied_programs_of_a_closed_directory(
    tmp_path: Path,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root's servers run as another user")
    found = find_binaries()
    # As a virtual environment in a home directory: nobody else gets in.
    site = tmp_path / "site"
    prefix = found.directory.parent
    package = site / prefix.parent.name
    libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")
    if not libraries.is_dir():
        pytest.skip("Debian's programs don't work where they are copied to")
    shutil.copytree(prefix, package / prefix.name)
    (site / libraries.name).symlink_to(libraries)
    site.chmod(0o700)
    with Cluster(replicas=1, binaries=package / prefix.name / "bin") as cluster:
        cluster.wait_for_replay()
