# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Only --db-ro-urls: everything from hot standbys, nothing written."""

import pytest
from sqlalchemy import Sequence, func, insert, select, text

from anyblok_multi_engines.errors import (
    NoPrimaryError,
    ServerUnavailableError,
)


@pytest.fixture
def registry(servers, make_registry):
    return make_registry(servers.database, db_ro_urls=servers.replica_urls)


def test_loads_all_bloks_and_writes_nothing(servers, registry):
    assert set(registry.loaded_bloks) == {"anyblok-core", "test-me-blok4"}
    assert servers.statements_on(servers.cluster.primary) == []


def test_reads(servers, registry):
    names = set()
    for _ in range(30):
        names.add(servers.served_by(registry))
        registry.rollback()

    assert names == {"replica1", "replica2"}
    assert registry.Shelf.query().count() == 0
    assert registry.System.Blok.list_by_state("installed")
    assert registry.System.Parameter.get("nothing", 3) == 3
    assert registry.execute(text("SELECT 1")).scalar() == 1
    assert registry.connection().execute(text("SELECT 2")).scalar() == 2


def test_savepoints(registry):
    with registry.begin_nested():
        assert registry.Shelf.query().count() == 0

    assert registry.Shelf.query().count() == 0


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.Shelf.insert(name="x"),
        lambda x: x.execute(insert(x.Shelf.__table__).values(name="x")),
        lambda x: x.execute(text("INSERT INTO shelf (name) VALUES ('x')")),
        lambda x: x.execute(select(x.Shelf.__table__).with_for_update()),
        lambda x: x.execute(select(func.pg_advisory_lock(1))),
        lambda x: x.scalar(Sequence("system_sequence_seq_name")),
        lambda x: x.execute(select(func.nextval("system_sequence_seq_name"))),
        lambda x: x.System.Parameter.set("a", 1),
        lambda x: x.upgrade(install=["test-me-blok1"]),
        lambda x: x.update_blok_list(),
        lambda x: x.System.Sequence.insert(code="x"),
    ],
    ids=[
        "insert",
        "dml",
        "text",
        "for update",
        "advisory lock",
        "sequence",
        "nextval",
        "parameter",
        "upgrade",
        "blok list",
        "model sequence",
    ],
)
def test_write_says_which_option_is_missing(registry, write):
    registry.blok_list_is_loaded = False
    with pytest.raises(NoPrimaryError, match="--db-url or --db-wo-url"):
        write(registry)

    registry.rollback()
    assert registry.Shelf.query().count() == 0


def test_reload_does_not_migrate(servers, registry):
    assert registry.loadwithoutmigration
    registry.reload()
    assert registry.loadwithoutmigration
    assert "test-me-blok4" in registry.loaded_bloks
    assert servers.statements_on(servers.cluster.primary) == []


def test_first_replica_may_be_down(servers, make_registry, caplog):
    servers.first.stop()
    registry = make_registry(servers.database, db_ro_urls=servers.replica_urls)
    assert set(registry.loaded_bloks) == {"anyblok-core", "test-me-blok4"}
    assert "replica1" in caplog.text
    assert servers.served_by(registry) == "replica2"


def test_no_replica_answers(servers, make_registry):
    for replica in servers.cluster.replicas:
        replica.stop()

    with pytest.raises(ServerUnavailableError, match=r"replica1 .* replica2"):
        make_registry(servers.database, db_ro_urls=servers.replica_urls)


def test_replica_that_dies_while_the_bloks_are_read(servers, make_registry):
    registry = make_registry(
        servers.database, db_ro_urls=servers.replica_urls[:1]
    )
    servers.first.kill()
    with pytest.raises(ServerUnavailableError, match="installed bloks"):
        registry.reload()


def test_empty_database(empty_servers, make_registry):
    servers = empty_servers
    servers.cluster.create_database(servers.database)
    servers.cluster.wait_for_replay()
    with pytest.raises(NoPrimaryError, match="No blok is installed"):
        make_registry(servers.database, db_ro_urls=servers.replica_urls)


def test_toinstall_bloks_do_not_loop(servers, make_registry):
    """AnyBlok's load would reload for ever to install them"""
    servers.cluster.primary.execute(
        "update system_blok set state = 'toinstall' "
        "where name in ('test-me-blok1', 'test-me-blok2')",
        database=servers.database,
    )
    servers.cluster.wait_for_replay()
    registry = make_registry(servers.database, db_ro_urls=servers.replica_urls)
    assert "test-me-blok1" not in registry.loaded_bloks
