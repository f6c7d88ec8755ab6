# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""One connection, one transaction, no primary and no replicas."""

import pytest
from anyblok.registry import RegistryManager
from anyblok.testing import BlokTestCase, SharedDataTestCase
from sqlalchemy import event, func, select, text

UNITTEST = {"unittest": True}


@pytest.fixture(params=["db_url", "db_wo_url", "replicas alone"])
def registry(request, servers, make_registry):
    values = {"db_ro_urls": servers.replica_urls}
    if request.param != "replicas alone":
        values[request.param] = servers.primary_url

    return make_registry(servers.database, UNITTEST, **values)


def backend(registry):
    return registry.execute(select(func.pg_backend_pid())).scalar()


def test_one_connection(servers, registry):
    assert registry.bind is registry.unittest_bind
    assert registry.unittest_transaction.is_active
    assert registry.session.get_bind() is registry.unittest_bind
    pids = {backend(registry) for _ in range(5)}
    pids.add(registry.execute(text("SELECT pg_backend_pid()")).scalar())
    pids.add(
        registry.unittest_bind.execute(text("SELECT pg_backend_pid()")).scalar()
    )
    registry.rollback()
    pids.add(backend(registry))
    assert len(pids) == 1
    assert registry.explain(select(1)).reason == "unittest_transaction"
    assert registry.session_connection is None
    found = sum(
        len(
            server.query(
                "select pid from pg_stat_activity "
                "where datname = %s and state <> 'idle'",
                [servers.database],
            )
        )
        for server in servers.cluster.servers
    )
    assert found == 1


def test_nested_savepoints(registry):
    outer = registry.begin_nested()
    inner = registry.begin_nested()
    assert registry.Shelf.query().count() == 0
    inner.rollback()
    assert registry.Shelf.query().count() == 0
    outer.commit()


class TestWithPrimary:
    @pytest.fixture
    def registry(self, servers, make_registry):
        return make_registry(
            servers.database,
            UNITTEST,
            db_wo_url=servers.primary_url,
            db_ro_urls=servers.replica_urls,
        )

    def test_nothing_is_left(self, servers, registry):
        registry.Shelf.insert(name="x")
        registry.commit()
        assert registry.Shelf.query().count() == 1
        registry.upgrade(install=["test-me-blok1"])
        assert registry.test_the_session_is_updated()
        registry.commit()
        registry.close()
        left = servers.cluster.primary.query(
            "select count(*) from shelf", database=servers.database
        )
        assert left == [(0,)]
        states = servers.cluster.primary.query(
            "select state from system_blok where name = 'test-me-blok1'",
            database=servers.database,
        )
        assert states == [("uninstalled",)]

    def test_savepoints_of_anyblok_s_fixtures(self, registry):
        """As anyblok.conftest's init_session and rollback_registry do"""
        registry.begin_nested()

        @event.listens_for(registry.session, "after_transaction_end")
        def restart_savepoint(session, transaction):
            if transaction.nested and not transaction._parent.nested:
                session.expire_all()
                session.begin_nested()

        for _ in range(2):
            registry.Shelf.insert(name="x")
            registry.System.Cache.invalidate_all()
            assert registry.Shelf.query().count() == 1
            registry.rollback()
            assert registry.Shelf.query().count() == 0

        event.remove(
            registry.session, "after_transaction_end", restart_savepoint
        )

    def test_reload_of_the_manager(self, registry):
        registry.upgrade(install=["test-me-blok1"])
        bind = registry.bind
        RegistryManager.reload()
        assert registry.bind is registry.unittest_bind
        assert registry.bind is not bind

    @pytest.mark.parametrize("base", [BlokTestCase, SharedDataTestCase])
    def test_anyblok_s_test_cases(self, servers, registry, base):
        counts = []

        class Case(base):
            @classmethod
            def setUpSharedData(cls):
                cls.registry.Shelf.insert(name="shared")

            def test_it(self):
                counts.append(self.registry.Shelf.query().count())
                self.registry.Shelf.insert(name="x")
                counts.append(self.registry.Shelf.query().count())

        Case.registry = registry
        result = Case("test_it").defaultTestResult()
        Case.setUpClass()
        for _ in range(2):
            Case("test_it").run(result)

        Case.tearDownClass()
        assert not result.errors
        assert not result.failures
        shared = int(base is SharedDataTestCase)
        assert counts == [shared, shared + 1] * 2
        registry.close()
        left = servers.cluster.primary.query(
            "select count(*) from shelf", database=servers.database
        )
        assert left == [(0,)]
