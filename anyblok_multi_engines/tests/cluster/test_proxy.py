# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Faults of the network, by a proxy in front of a server."""

import threading
import time
from contextlib import closing
from typing import Any

import psycopg
import pytest

from anyblok_multi_engines.testing import Cluster, TcpProxy, wait_until


@pytest.fixture
def proxy(anyblok_cluster: Cluster) -> TcpProxy:
    """A proxy in front of the first replica"""
    return anyblok_cluster.proxy(anyblok_cluster.replicas[0])


class Asking:
    """A question in a thread, and how it ended"""

    def __init__(self, connection: Any) -> None:
        self.outcome: object = None
        self._connection = connection
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            cursor = self._connection.cursor()
            cursor.execute("select 'answer'")
            self.outcome = cursor.fetchone()[0]
        except psycopg.Error as error:
            self.outcome = error


def test_forwards_both_ways(
    anyblok_cluster: Cluster, proxy: TcpProxy, connect: Any
) -> None:
    cursor = connect(proxy.url()).cursor()
    big = "x" * 1_000_000
    cursor.execute("select current_setting('port')::int, %s::text", (big,))
    assert cursor.fetchone() == (anyblok_cluster.replicas[0].port, big)


def test_url_names_the_proxy(proxy: TcpProxy) -> None:
    assert (
        proxy.url("mydb", driver="postgresql+psycopg")
        == f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/mydb"
    )


def test_refuse_is_for_new_connections(proxy: TcpProxy, connect: Any) -> None:
    session = connect(proxy.url())
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(proxy.url())
    session.cursor().execute("select 1")
    port = proxy.port
    proxy.heal()
    assert proxy.port == port
    connect(proxy.url())


def test_new_connections_may_be_forwarded_elsewhere(
    anyblok_cluster: Cluster, proxy: TcpProxy, connect: Any
) -> None:
    session = connect(proxy.url())
    other = anyblok_cluster.replicas[1].port
    proxy.forward_to(other)

    def leads_to(connection: Any) -> int:
        cursor = connection.cursor()
        cursor.execute("select current_setting('port')::int")
        return int(cursor.fetchone()[0])

    assert leads_to(session) == anyblok_cluster.replicas[0].port
    assert leads_to(connect(proxy.url())) == other


def test_blackhole_answers_nobody_until_it_is_healed(
    proxy: TcpProxy, connect: Any
) -> None:
    session = connect(proxy.url())
    proxy.blackhole()
    asking = Asking(session)
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        connect(proxy.url(), timeout=2)
    assert asking.outcome is None
    proxy.heal()
    asking.thread.join(10.0)
    assert asking.outcome == "answer"
    connect(proxy.url()).cursor().execute("select 1")


def test_delay_is_added_to_each_round_trip(
    proxy: TcpProxy, connect: Any
) -> None:
    session = connect(proxy.url())
    session.autocommit = True
    proxy.delay(0.2)
    began = time.monotonic()
    session.cursor().execute("select 1")
    assert time.monotonic() - began >= 0.2
    proxy.delay(0)
    began = time.monotonic()
    session.cursor().execute("select 1")
    assert time.monotonic() - began < 0.2


@pytest.mark.parametrize("swallowed", [False, True])
def test_drop_cuts_what_is_open(
    anyblok_cluster: Cluster, proxy: TcpProxy, connect: Any, swallowed: bool
) -> None:
    session = connect(proxy.url())
    asking = None
    if swallowed:
        proxy.blackhole()
        asking = Asking(session)
    proxy.drop()
    assert proxy.connections == 0
    if asking is not None:
        asking.thread.join(10.0)
        assert isinstance(asking.outcome, psycopg.OperationalError)
        proxy.heal()
    else:
        with pytest.raises(psycopg.OperationalError):
            session.cursor().execute("select 1")
    connect(proxy.url()).cursor().execute("select 1")
    # The server sees the end as well.
    wait_until(
        "the server kept the session",
        lambda: (
            anyblok_cluster.replicas[0].query(
                "select count(*) from pg_stat_activity"
                " where backend_type = 'client backend'"
            )
            == [(2,)]
        ),
    )


def test_connection_that_the_client_closes_is_closed(
    proxy: TcpProxy,
) -> None:
    with closing(psycopg.connect(proxy.url())):
        assert proxy.connections == 1
    wait_until("it stayed open", lambda: proxy.connections == 0)


def test_server_that_does_not_run_ends_the_connection(
    anyblok_cluster: Cluster, proxy: TcpProxy, connect: Any
) -> None:
    anyblok_cluster.replicas[0].stop()
    with pytest.raises(psycopg.OperationalError):
        connect(proxy.url())
    wait_until("it stayed open", lambda: proxy.connections == 0)


def test_closed_proxy_refuses_for_ever(proxy: TcpProxy, connect: Any) -> None:
    session = connect(proxy.url())
    proxy.close()
    proxy.close()
    proxy.heal()
    with pytest.raises(psycopg.OperationalError):
        session.cursor().execute("select 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(proxy.url())


def test_heal_of_the_cluster_heals_its_proxies(
    anyblok_cluster: Cluster, proxy: TcpProxy, connect: Any
) -> None:
    proxy.refuse()
    proxy.blackhole()
    proxy.delay(60.0)
    anyblok_cluster.heal()
    connect(proxy.url()).cursor().execute("select 1")


def test_proxy_is_a_context_manager(
    anyblok_cluster: Cluster, connect: Any
) -> None:
    primary = anyblok_cluster.primary
    with TcpProxy(primary.host, primary.port) as proxy:
        connect(proxy.url()).cursor().execute("select 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(proxy.url())
