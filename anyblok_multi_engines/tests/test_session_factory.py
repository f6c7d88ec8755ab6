# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Bloks that override Core.Session and Core.Query, and the events."""

import pytest

from anyblok_multi_engines.session import MixinSession

BLOKS = {
    "session": ["test-me-blok1"],
    "query": ["test-me-blok2"],
    "both in one": ["test-me-blok3"],
    "both in two": ["test-me-blok1", "test-me-blok2"],
}


@pytest.mark.parametrize("wanted", list(BLOKS.values()), ids=BLOKS)
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "by one"])
def test_core_classes(servers, make_registry, wanted, at_once):
    registry = make_registry.replicated(servers)
    for install in [wanted] if at_once else [[blok] for blok in wanted]:
        registry.upgrade(install=install)

    registry.commit()
    for _ in ("in the running registry", "loaded with them"):
        session = wanted != BLOKS["query"]
        query = wanted != BLOKS["session"]
        assert bool(registry.test_the_session_is_updated) is session
        if query:
            assert "anyblok-core" in registry.System.Blok.query().all_name()

        assert isinstance(registry.session, MixinSession)
        registry.rollback()
        servers.cluster.wait_for_replay()
        assert servers.served_by(registry) in ("replica1", "replica2")
        registry.close()
        registry = make_registry.replicated(servers)


def test_get_bind_of_a_blok_is_above_ours(servers, make_registry):
    registry = make_registry.replicated(servers)
    registry.upgrade(install=["test-me-blok1"])
    registry.commit()
    before = registry.session.asked
    assert servers.served_by(registry) in ("replica1", "replica2")
    assert registry.session.asked == before + 1


def test_factory_is_made_anew_only_for_a_new_core(servers, make_registry):
    registry = make_registry.replicated(servers)
    factory = registry.Session
    assert not registry.must_recreate_session_factory()
    registry.reload()
    assert registry.Session is factory
    registry.upgrade(install=["test-me-blok2"])
    assert registry.Session is factory
    registry.upgrade(install=["test-me-blok1"])
    assert registry.Session is not factory
    assert not registry.must_recreate_session_factory()
    registry.commit()


def test_session_events_are_applied_once_per_factory(servers, make_registry):
    sessions = []
    registry = make_registry(
        servers.database,
        {"anyblok.session.event": [sessions.append]},
        db_wo_url=servers.primary_url,
        db_ro_urls=servers.replica_urls,
    )
    assert len(sessions) == 1
    registry.reload()
    assert len(sessions) == 1
    registry.upgrade(install=["test-me-blok1"])
    assert len(sessions) == 2
    registry.commit()


def test_engine_events_are_applied_to_each_engine(servers, make_registry):
    engines = []
    registry = make_registry(
        servers.database,
        {"anyblok.engine.event": [engines.append]},
        db_wo_url=servers.primary_url,
        db_ro_urls=servers.replica_urls,
    )
    mine = [registry.engines["wo"], *registry.engines["ro"]]
    assert engines[:3] == mine
    # And to those for questions of our own.
    assert {engine.url for engine in engines[3:]} <= {x.url for x in mine}


def test_engine_options_are_those_of_anyblok(servers, make_registry, options):
    from anyblok.config import Configuration

    registry = make_registry(
        servers.database,
        {"isolation_level": "REPEATABLE_READ"},
        db_url=servers.primary_url,
        db_ro_urls=servers.replica_urls,
        db_pool_size=3,
        db_max_overflow=4,
    )
    Configuration.update(db_pool_size=5, db_max_overflow=10)
    for engine in registry.engines["ro"]:
        assert (engine.pool.size(), engine.pool._max_overflow) == (3, 4)

    level = "SHOW transaction_isolation"
    with registry.engines["wo"].connect() as connection:
        assert connection.exec_driver_sql(level).scalar() == "repeatable read"
