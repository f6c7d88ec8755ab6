# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Another server is the primary: the next unit of work writes there."""

import threading
import time

import pytest
from anyblok.config import Configuration
from anyblok.config import get_url as anyblok_get_url
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy_utils.functions import create_database, database_exists

from anyblok_multi_engines.config import get_url
from anyblok_multi_engines.health.model import Status
from anyblok_multi_engines.registry import RegistryMultiEngines
from anyblok_multi_engines.testing import wait_until
from anyblok_multi_engines.tests.conftest import DRIVER

ADDRESS = select(func.current_setting("port"))


def comma(servers, *nodes, attributes="read-write"):
    """Return an URL of several servers, as libpq writes them"""
    hosts = ",".join(node.host for node in nodes)
    ports = ",".join(str(node.port) for node in nodes)
    return (
        f"{DRIVER}://postgres@/{servers.database}?host={hosts}&port={ports}"
        f"&target_session_attrs={attributes}"
    )


def repeated(servers, *nodes, attributes="read-write"):
    """Return an URL of several servers, as SQLAlchemy writes them"""
    hosts = "&".join(f"host={node.host}:{node.port}" for node in nodes)
    return (
        f"{DRIVER}://postgres@/{servers.database}?{hosts}"
        f"&target_session_attrs={attributes}"
    )


FORMS = pytest.mark.parametrize("several", [comma, repeated])


def write(registry):
    """Write a row in a unit of work, as an application would"""
    try:
        registry.Book.insert(title="x")
        registry.commit()
    except DBAPIError:
        registry.rollback()
        raise


def write_in_time(registry, begun, seconds):
    """Write until it works; return how long that took"""
    while True:
        try:
            write(registry)
        except DBAPIError:
            if time.monotonic() > begun + seconds:
                raise
            # As an application would, which has other things to do.
            time.sleep(0.01)
        else:
            return time.monotonic() - begun


def wait_for_reads(read):
    """Wait until more has been read"""
    before = len(read)
    wait_until("they read no more", lambda: len(read) > before + 10)


def status(registry):
    return registry.health().of("primary").status


class TestSeveralHosts:
    """They are one server, in every option"""

    @FORMS
    @pytest.mark.parametrize("option", ["db_url", "db_wo_url"])
    def test_primary_is_found_among_them(
        self, servers, make_registry, several, option
    ):
        cluster = servers.cluster
        registry = make_registry(
            servers.database,
            db_ro_urls=servers.replica_urls,
            **{option: several(servers, servers.first, cluster.primary)},
        )
        write(registry)
        with registry.use_primary():
            assert servers.served_by(registry) == "primary"

        assert len(registry.topology.servers) == 3
        assert str(registry.topology.primary) == (
            f"primary (127.0.0.1:{servers.first.port},"
            f"127.0.0.1:{cluster.primary.port})"
        )
        assert status(registry) is Status.READY

    @FORMS
    def test_replicas_are_one(self, servers, make_registry, several):
        """Another one of them takes the place of the first"""
        replicas = servers.cluster.replicas
        registry = make_registry(
            servers.database,
            db_wo_url=servers.primary_url,
            db_ro_urls=[several(servers, *replicas, attributes="standby")],
        )
        assert servers.served_by(registry) == "replica1"
        registry.rollback()
        servers.first.stop()
        assert servers.served_by(registry) in ("primary", "replica2")
        registry.rollback()
        wait_until(
            "the other one was not found",
            lambda: registry.health().of("replica1").status is Status.READY,
        )
        assert servers.served_by(registry) == "replica2"

    @FORMS
    def test_read_only_mode(self, servers, make_registry, several):
        nodes = (servers.cluster.primary, *servers.cluster.replicas)
        registry = make_registry(
            servers.database,
            db_ro_urls=[several(servers, *nodes, attributes="standby")],
        )
        assert servers.served_by(registry) == "replica1"

    @FORMS
    @pytest.mark.parametrize("option", ["db_url", "db_wo_url"])
    def test_database_is_created_on_the_primary(
        self, empty_servers, options, several, option
    ):
        servers = empty_servers
        url = several(servers, servers.first, servers.cluster.primary)
        options.completed(
            db_ro_urls=[
                several(servers, *servers.cluster.replicas, attributes="any")
            ],
            **{option: url},
        )
        assert anyblok_get_url() == get_url()
        assert Configuration.get("db_name") == servers.database
        exists = RegistryMultiEngines.db_exists
        assert not exists(db_name=servers.database)
        assert not database_exists(get_url())
        create_database(anyblok_get_url())
        servers.cluster.wait_for_replay()
        assert exists(db_name=servers.database)


@FORMS
@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_new_primary_is_written_at_once(servers, make_registry, several, fault):
    """And replicas are read meanwhile, without an error"""
    cluster = servers.cluster
    first, second = cluster.replicas
    registry = make_registry(
        servers.database,
        db_wo_url=several(servers, cluster.primary, first),
        db_ro_urls=servers.replica_urls,
    )
    for _ in range(3):
        write(registry)

    cluster.wait_for_replay()
    over, read, failed = threading.Event(), [], []

    def work():
        try:
            while not over.wait(0.005):
                read.append(servers.served_by(registry))
                registry.rollback()
        except Exception as error:
            failed.append(error)
        finally:
            registry.Session.remove()

    readers = [threading.Thread(target=work) for _ in range(3)]
    for reader in readers:
        reader.start()

    wait_until("nobody reads", lambda: len(read) > 10)
    getattr(cluster.primary, fault)()
    with pytest.raises(DBAPIError):
        write(registry)

    wait_for_reads(read)
    begun = time.monotonic()
    first.promote()
    took = write_in_time(registry, begun, 2.0)
    second.follow(first)
    wait_for_reads(read)
    over.set()
    for reader in readers:
        reader.join(10.0)

    assert took <= 2.0
    assert not failed
    with registry.use_primary():
        assert servers.served_by(registry) == "replica1"

    registry.rollback()
    wait_until(
        "the new timeline was not learnt",
        lambda: registry.freshness.positions.timeline == 2,
    )
    write(registry)
    assert first.query(
        "select count(*) from book", database=servers.database
    ) == [(5,)]
    assert registry.Book.query().count() == 5


@FORMS
def test_primary_that_hangs_is_left_for_the_new_one(
    servers, make_registry, several
):
    """Its connections are, before anybody waits for them"""
    cluster, first = servers.cluster, servers.first
    registry = make_registry(
        servers.database,
        db_wo_url=several(servers, cluster.primary, first),
        db_ro_urls=servers.replica_urls,
        db_ro_check_interval=0.1,
    )
    write(registry)
    cluster.wait_for_replay()
    cluster.primary.freeze()
    first.promote()
    wait_until(
        "the new timeline was not learnt",
        lambda: registry.freshness.positions.timeline == 2,
        timeout=20.0,
    )
    took = write_in_time(registry, time.monotonic(), 20.0)
    # One attempt to connect to the old one.
    assert took < 10.0
    with registry.use_primary():
        assert servers.served_by(registry) == "replica1"


def test_new_connection_to_a_replica_needs_no_primary(servers, make_registry):
    """An older one that lives is the proof that the replica still runs"""
    registry = make_registry(
        servers.database,
        db_wo_url=servers.primary_url,
        db_ro_urls=servers.replica_urls[:1],
    )
    servers.cluster.wait_for_replay()
    assert servers.served_by(registry) == "replica1"
    registry.rollback()
    (engine,) = registry.engines["ro"]
    with engine.connect():
        servers.cluster.primary.stop()
        assert servers.served_by(registry) == "replica1"
        registry.rollback()


@pytest.fixture
def proxy(servers):
    """Give a proxy in the place of the primary"""
    return servers.cluster.proxy(servers.cluster.primary)


@pytest.fixture
def demoted(servers, make_registry, proxy):
    """Give a function that builds a registry whose connections are demoted

    They lead to a standby, and new ones to the primary.
    """

    def make(number=3, **options):
        registry = make_registry(
            servers.database,
            db_wo_url=proxy.url(servers.database, DRIVER),
            db_ro_urls=servers.replica_urls[1:],
            **options,
        )
        proxy.forward_to(servers.first.port)
        proxy.drop()
        engine = registry.engines["wo"]
        held = [engine.connect() for _ in range(number)]
        for connection in held:
            assert connection.scalar(ADDRESS) == str(servers.first.port)
            connection.rollback()

        return registry, held

    return make


def leads_to(connection, server):
    port = connection.scalar(ADDRESS)
    connection.rollback()
    return port == str(server.port)


class TestDemotion:
    def test_one_failed_write_leaves_the_whole_pool(
        self, servers, demoted, proxy, caplog
    ):
        registry, held = demoted(db_ro_check_interval=60)
        for connection in held[1:]:
            connection.close()

        proxy.forward_to(servers.cluster.primary.port)
        with pytest.raises(DBAPIError, match="read-only transaction"):
            write(registry)

        assert "it is a standby" in caplog.text
        for _ in range(5):
            write(registry)

        # It goes on where it is, and comes back to the pool.
        assert leads_to(held[0], servers.first)
        held[0].close()
        engine = registry.engines["wo"]
        held[:] = [engine.connect() for _ in range(4)]
        for connection in held:
            assert leads_to(connection, servers.cluster.primary)
            connection.close()

    def test_so_does_a_standby_that_refuses_the_isolation_level(
        self, servers, demoted, proxy
    ):
        registry, _ = demoted(
            0, db_ro_check_interval=60, isolation_level="SERIALIZABLE"
        )
        with pytest.raises(DBAPIError, match="serializable mode"):
            write(registry)

        proxy.forward_to(servers.cluster.primary.port)
        write(registry)

    def test_check_of_the_monitor_leaves_the_whole_pool(
        self, servers, demoted, proxy
    ):
        registry, held = demoted(db_ro_check_interval=0.1)
        for connection in held:
            connection.close()

        wait_until(
            "the standby was not noticed",
            lambda: status(registry) is Status.WRONG,
        )
        assert (
            registry.health().of("primary").reason.startswith("it is a standby")
        )
        proxy.forward_to(servers.cluster.primary.port)
        wait_until(
            "the primary was not found",
            lambda: status(registry) is Status.READY,
        )
        for _ in range(5):
            write(registry)

    def test_read_only_transaction_is_none(self, servers, make_registry):
        registry = make_registry(
            servers.database,
            db_wo_url=servers.primary_url,
            db_ro_urls=servers.replica_urls,
        )
        registry.execute(text("SET TRANSACTION READ ONLY"))
        with pytest.raises(DBAPIError, match="read-only transaction"):
            registry.Book.insert(title="x")

        registry.rollback()
        made = []
        event.listen(
            registry.engines["wo"], "connect", lambda *x: made.append(x)
        )
        for _ in range(5):
            write(registry)

        assert not made
        assert status(registry) is Status.READY

    def test_timeline_of_before_a_promotion_is_left(
        self, servers, make_registry, proxy
    ):
        """Where the old primary lives on, and nobody has told it"""
        first = servers.first
        registry = make_registry(
            servers.database,
            db_wo_url=proxy.url(servers.database, DRIVER),
            db_ro_urls=servers.replica_urls[1:],
            db_ro_check_interval=0.1,
        )
        write(registry)
        servers.cluster.wait_for_replay()
        first.promote()
        proxy.forward_to(first.port)
        # The monitor's connection alone has ended.
        registry.monitor._probes["primary"].close()
        wait_until(
            "the new timeline was not learnt",
            lambda: registry.freshness.positions.timeline == 2,
        )
        with registry.use_primary():
            assert servers.served_by(registry) == "replica1"


def test_primary_is_asked_again_and_again(servers, make_registry):
    """A new one is to be found soon, however long there has been none"""
    registry = make_registry.replicated(servers, db_ro_check_interval=0.05)
    servers.cluster.primary.stop()
    wait_until(
        "it was not asked ten times",
        lambda: registry.health().of("primary").failures > 10,
        timeout=5.0,
    )
    servers.cluster.primary.start()
    wait_until("it is not ready", lambda: status(registry) is Status.READY)
