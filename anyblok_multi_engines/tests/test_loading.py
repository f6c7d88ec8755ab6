# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What creates, loads or changes a registry runs on the primary."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from anyblok.blok import BlokManager
from anyblok.registry import RegistryManager
from sqlalchemy import event, text

from anyblok_multi_engines.errors import ServerUnavailableError
from anyblok_multi_engines.routing.catalogue import Catalogue

INSTALLED = {"anyblok-core", "test-me-blok4"}
STATE = "select state from system_blok where name = %s"


def state_of(servers, blok, server=None):
    """Return the state that a server has for a blok"""
    server = server or servers.cluster.primary
    return server.query(STATE, [blok], database=servers.database)[0][0]


def pause(servers):
    for replica in servers.cluster.replicas:
        replica.pause_replay()


def stop(servers):
    for replica in servers.cluster.replicas:
        replica.stop("immediate")


@pytest.fixture(params=[pause, stop], ids=["paused", "stopped"])
def fault(request):
    """Do something to all the replicas"""
    return request.param


def test_same_bloks_with_replicas_behind_or_gone(
    servers, make_registry, fault, caplog
):
    fault(servers)
    registry = make_registry.eventual(servers)
    assert set(registry.loaded_bloks) == INSTALLED
    registry.Shelf.insert(name="x")
    registry.commit()
    if fault is stop:
        assert caplog.text.count("is out of the reads until it answers") == 2
        assert registry.Shelf.query().count() == 1


def test_start_waits_for_no_proof(registry):
    """Neither the parser nor the catalogue is needed on the primary"""
    assert registry.statements.catalogue == Catalogue()
    assert registry.Shelf.query().count() == 0
    assert registry.statements.catalogue.functions


def test_catalogue_is_read_for_all_threads_of_a_start(servers, registry):
    """In a server with many of them each would take seconds"""
    start = len(servers.cluster.primary.log())
    together = threading.Barrier(16)

    def ask(number):
        together.wait()
        statement = text(f"SELECT count(*) + {number} FROM book")
        assert registry.statements.need_of(statement).is_read

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))

    # One more for those that came while it was read.
    log = servers.cluster.primary.log(start)
    readings = log.count("oprname) from pg_operator")
    assert 1 <= readings <= 3


def test_start_asks_the_primary_what_it_asks_without_replicas(
    servers, make_registry
):
    primary = servers.cluster.primary

    def asked(**options):
        before = len(servers.statements_on(primary))
        make_registry(servers.database, **options).close()
        found = servers.statements_on(primary)[before:]
        # psycopg names what it prepares, and has savepoints as it connects.
        return sorted(
            re.sub("^(<unnamed>|_pg3_[0-9]+): ", "", x)
            for x in found
            if '"_pg3_' not in x
        )

    alone = asked(db_url=servers.primary_url)
    assert alone
    assert alone == asked(
        db_wo_url=servers.primary_url, db_ro_urls=servers.replica_urls
    )


def test_start_makes_one_connection_to_each_replica(servers, registry):
    """The monitor's, which is made while the registry loads"""
    for replica in servers.cluster.replicas:
        assert replica.query(
            "select count(*) from pg_stat_activity where datname = %s",
            [servers.database],
            database="postgres",
        ) == [(1,)]


@pytest.mark.parametrize("fault", ["refuse", "blackhole"])
def test_same_bloks_with_a_network_that_fails(
    servers, make_registry, caplog, fault
):
    proxy = servers.cluster.proxy(servers.first)
    getattr(proxy, fault)()
    registry = make_registry(
        servers.database,
        db_wo_url=servers.primary_url,
        db_ro_urls=[
            servers.primary_url.replace(
                str(servers.cluster.primary.port), str(proxy.port)
            )
        ],
    )
    assert set(registry.loaded_bloks) == INSTALLED
    assert "is out of the reads until it answers" in caplog.text
    assert registry.Shelf.query().count() == 0


def test_listener_that_fails_for_a_replica(servers, make_registry, caplog):
    def refuse(engine):
        if engine.url.port != servers.cluster.primary.port:

            @event.listens_for(engine, "connect")
            def fail(connection, record):
                raise LookupError("no token today")

    registry = make_registry(
        servers.database,
        {"anyblok.engine.event": [refuse]},
        db_wo_url=servers.primary_url,
        db_ro_urls=servers.replica_urls,
    )
    assert set(registry.loaded_bloks) == INSTALLED
    assert "no token today" in caplog.text
    assert registry.Shelf.query().count() == 0


def test_without_migration_the_primary_is_read_too(servers, make_registry):
    pause(servers)
    registry = make_registry.eventual(servers)
    registry.upgrade(install=["test-me-blok2"])
    registry.commit()
    registry.close()
    registry = make_registry(
        servers.database,
        {"loadwithoutmigration": True},
        db_wo_url=servers.primary_url,
        db_ro_urls=servers.replica_urls,
    )
    assert registry.engine in registry.engines["ro"]
    assert set(registry.loaded_bloks) == INSTALLED | {"test-me-blok2"}


def test_new_database_that_no_replica_has(
    empty_servers, make_registry, caplog, fault
):
    servers = empty_servers
    fault(servers)
    servers.cluster.create_database(servers.database)
    registry = make_registry.eventual(servers)
    assert "is out of the reads" in caplog.text
    registry.System.Parameter.set("a", 1)
    assert "test-me-blok4" in registry.System.Blok.list_by_state("uninstalled")
    registry.upgrade(install=["test-me-blok4"])
    registry.commit()
    assert state_of(servers, "test-me-blok4") == "installed"
    assert registry.Shelf.query().count() == 0


def test_upgrade_and_what_follows_with_replicas_behind(
    servers, make_registry, fault
):
    registry = make_registry.eventual(servers)
    fault(servers)
    registry.upgrade(install=["test-me-blok1"])
    registry.upgrade(update=["test-me-blok4"])
    registry.commit()
    registry.upgrade(uninstall=["test-me-blok1"])
    registry.upgrade(install=["test-me-blok1", "test-me-blok2"])
    registry.commit()
    registry.close()
    assert state_of(servers, "test-me-blok1") == "installed"
    registry = make_registry.eventual(servers)
    assert set(registry.loaded_bloks) == INSTALLED | {
        "test-me-blok1",
        "test-me-blok2",
    }
    registry.reload()
    assert "test-me-blok2" in registry.loaded_bloks


def test_not_one_statement_on_a_replica(servers, make_registry):
    registry = make_registry.eventual(servers)
    registry.upgrade(install=["test-me-blok1"])
    registry.commit()
    registry.upgrade(uninstall=["test-me-blok1"])
    registry.reload()
    registry.update_blok_list()
    registry.commit()
    for replica in servers.cluster.replicas:
        assert servers.statements_on(replica) == []

    # Which the log would have shown:
    registry.System.Blok.query().count()
    assert any(servers.statements_on(x) for x in servers.cluster.replicas)


def test_complete_reload(servers, registry):
    pause(servers)
    registry.upgrade(install=["test-me-blok2"])
    registry.commit()
    registry.complete_reload()
    assert "test-me-blok2" in registry.loaded_bloks


def test_stale_instances_do_not_decide_an_upgrade(servers, make_registry):
    """They were read from a replica, before, in the same unit of work"""
    other = make_registry(servers.database, db_url=servers.primary_url)
    pause(servers)
    other.upgrade(install=["test-me-blok2"])
    other.commit()
    other.close()
    registry = make_registry.eventual(servers)
    blok = registry.System.Blok.query().get("test-me-blok2")
    assert blok.state == "uninstalled"
    registry.upgrade(update=["test-me-blok2"])
    registry.commit()
    assert state_of(servers, "test-me-blok2") == "installed"


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.apply_state("test-me-blok2", "toupdate", ["installed"]),
        lambda x: x.update_blok_list(),
        lambda x: x.check_conflict_with("test-me-blok2"),
        lambda x: x.get_bloks("test-me-blok2", ["installed"], ["required"]),
        lambda x: x.get_bloks_by_states("installed"),
        lambda x: x.get_bloks_to_load(),
        lambda x: x.System.Blok.update_list(),
        lambda x: x.System.Blok.apply_state("test-me-blok2"),
        lambda x: x.System.Blok.uninstall_all("test-me-blok2"),
    ],
    ids=[
        "apply_state",
        "list",
        "conflict",
        "bloks",
        "states",
        "to_load",
        "Blok.update_list",
        "Blok.apply_state",
        "Blok.uninstall_all",
    ],
)
def test_parts_of_an_upgrade_read_the_primary(servers, make_registry, call):
    other = make_registry(servers.database, db_url=servers.primary_url)
    pause(servers)
    other.upgrade(install=["test-me-blok2"])
    other.commit()
    other.close()
    registry = make_registry.eventual(servers)
    registry.blok_list_is_loaded = False
    call(registry)
    assert servers.served_by(registry) == "primary"
    registry.rollback()
    for replica in servers.cluster.replicas:
        assert servers.statements_on(replica) == []


class TestScope:
    """It belongs to the thread that loads"""

    def test_other_threads_neither_see_nor_end_its_work(
        self, servers, registry
    ):
        seen = []

        def other():
            seen.append(registry.session_connection)
            seen.append(servers.served_by(registry))
            seen.append(registry.Shelf.query().count())
            registry.Shelf.insert(name="other")
            seen.append(registry.Shelf.query().count())
            registry.rollback()
            registry.Session.remove()

        with registry.loading():
            registry.execute(text("INSERT INTO shelf (name) VALUES ('mine')"))
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            assert registry.Shelf.query().count() == 1

        registry.commit()
        assert seen[0] is None
        assert seen[1] in ("replica1", "replica2")
        assert seen[2:] == [0, 1]
        servers.cluster.wait_for_replay()
        assert registry.Shelf.query().one().name == "mine"

    def test_session_connection_is_the_one_that_is_used(
        self, servers, registry
    ):
        assert registry.session_connection is None
        with registry.loading():
            connection = registry.session_connection
            assert connection is registry.connection()
            assert connection.engine is registry.engines["wo"]

        assert registry.session_connection is None
        registry.rollback()

    def test_session_connection_may_be_given(self, servers, registry):
        registry.commit()
        with registry.engines["wo"].connect() as connection:
            registry.session_connection = connection
            assert registry.session.get_bind() is connection
            assert servers.served_by(registry) == "primary"
            assert registry.connection() is connection
            registry.session_connection = None
            registry.rollback()

        assert servers.served_by(registry) != "primary"

    def test_ends_with_an_error(self, servers, registry):
        with pytest.raises(ZeroDivisionError), registry.loading():
            1 / 0  # noqa: B018

        assert not registry.is_loading
        assert servers.served_by(registry) != "primary"

    def test_bind_is_the_primary_s(self, registry):
        """What System.Sequence creates is created there"""
        assert registry.bind is registry.engines["wo"]
        assert registry.bind is registry.bind


class TestPrimaryDown:
    """The registry must not come up with anyblok-core alone"""

    def test_is_told(self, servers, make_registry):
        servers.cluster.primary.stop("fast")
        with pytest.raises(ServerUnavailableError, match="installed bloks"):
            make_registry.eventual(servers)

        assert servers.database not in RegistryManager.registries

    def test_replicas_alone_load_the_same(self, servers, make_registry):
        servers.cluster.primary.stop("fast")
        registry = make_registry(
            servers.database, db_ro_urls=servers.replica_urls
        )
        assert set(registry.loaded_bloks) == INSTALLED


def test_every_blok_of_the_tests_is_known(bloks):
    """So that installing them means something"""
    assert {f"test-me-blok{number}" for number in (1, 2, 3, 4)} <= set(
        BlokManager.ordered_bloks
    )
