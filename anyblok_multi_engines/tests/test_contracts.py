# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What users of 1.1.0 know stays true."""

import logging

import pytest
from anyblok.config import ConfigurationException
from anyblok.registry import Registry, RegistryException, RegistryManager
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import OperationalError

from anyblok_multi_engines.errors import OptionError
from anyblok_multi_engines.registry import (
    MixinSession,
    MultiEngines,
    RegistryMultiEngines,
)
from anyblok_multi_engines.testing import wait_until


def test_mixin_is_in_anyblok_s_registry(bloks):
    cls = RegistryManager.build_registry_class()
    assert issubclass(cls, MultiEngines)
    assert RegistryMultiEngines.__mro__[1] is MultiEngines
    assert issubclass(RegistryMultiEngines, Registry)


class TestOnlyReplicas:
    @pytest.fixture
    def registry(self, servers, make_registry):
        return make_registry(servers.database, db_ro_urls=servers.replica_urls)

    def test_engines(self, registry):
        assert registry.engines["wo"] is None
        assert len(registry.engines["ro"]) == 2
        assert registry.get_engine_for() in registry.engines["ro"]
        assert registry.engine in registry.engines["ro"]
        with pytest.raises(RegistryException, match="--db-url"):
            registry.get_engine_for(ro=False)

    def test_is_told_in_the_log(self, servers, make_registry, caplog):
        caplog.set_level(logging.DEBUG, "anyblok_multi_engines.registry")
        make_registry(servers.database, db_ro_urls=servers.replica_urls)
        assert (
            "anyblok_multi_engines.registry",
            logging.DEBUG,
            "No WRITE engine defined use READ ONLY mode",
        ) in caplog.record_tuples


class TestOnlyWriteOnlyPrimary:
    @pytest.fixture
    def registry(self, servers, make_registry):
        return make_registry(servers.database, db_wo_url=servers.primary_url)

    def test_engines(self, registry):
        assert registry.engines["ro"] == []
        with pytest.raises(RegistryException, match="--db-ro-urls"):
            registry.get_engine_for()

        assert registry.get_engine_for(ro=False) is registry.engines["wo"]
        assert registry.engine is registry.engines["wo"]

    def test_sessions_still_read(self, servers, registry):
        assert servers.served_by(registry) == "primary"


class TestOnlyDbUrl:
    @pytest.fixture
    def registry(self, servers, make_registry):
        return make_registry(servers.database, db_url=servers.primary_url)

    def test_one_and_the_same_engine(self, registry):
        assert isinstance(registry.engines["wo"], Engine)
        assert registry.engines["ro"] == [registry.engines["wo"]]
        assert registry.get_engine_for() is registry.get_engine_for(ro=False)
        assert registry.engine is registry.rw_engine is registry.bind

    def test_session_is_as_without_us(self, servers, registry):
        assert registry.session.get_bind() is registry.engine
        assert registry.session.get_bind(clause=select(1)) is registry.engine
        assert servers.served_by(registry) == "primary"
        assert registry.explain(select(1)).reason == "one_server"

    def test_nothing_is_set_on_its_connections(self, registry):
        show = text("SHOW default_transaction_read_only")
        assert registry.execute(show).scalar() == "off"
        assert not registry.engine.pool._pre_ping


def test_driver_name_alone_is_as_without_us(servers, make_registry):
    primary = servers.cluster.primary
    registry = make_registry(
        servers.database,
        db_driver_name="postgresql",
        db_host=primary.host,
        db_port=primary.port,
        db_user_name="postgres",
    )
    assert registry.engines["ro"] == [registry.engines["wo"]]
    assert registry.System.Blok.query().count()


class TestEngine:
    @pytest.mark.parametrize("option", ["db_url", "db_wo_url"])
    def test_is_the_primary_s(self, servers, make_registry, option):
        registry = make_registry(
            servers.database,
            **{option: servers.primary_url},
            db_ro_urls=servers.replica_urls,
        )
        assert registry.engine is registry.engines["wo"]
        assert registry.rw_engine is registry.engines["wo"]
        assert registry.bind is registry.engines["wo"]
        assert (registry.engine in registry.engines["ro"]) is (
            option == "db_url"
        )
        assert len(registry.engines["ro"]) == 2 + (option == "db_url")

    def test_is_a_reader_s_without_migration(self, servers, make_registry):
        registry = make_registry(
            servers.database,
            {"loadwithoutmigration": True},
            db_wo_url=servers.primary_url,
            db_ro_urls=servers.replica_urls,
        )
        assert registry.engine in registry.engines["ro"]
        assert registry.engine is registry.engine
        assert registry.bind is registry.engines["wo"]

    def test_without_migration_and_without_readers(
        self, servers, make_registry
    ):
        registry = make_registry(
            servers.database,
            {"loadwithoutmigration": True},
            db_wo_url=servers.primary_url,
        )
        assert registry.engine is registry.engines["wo"]


class TestDbExists:
    def exists(self, name):
        return RegistryManager.build_registry_class().db_exists(name)

    def test_needs_a_name(self, options):
        options(db_driver_name="postgresql")
        with pytest.raises(RegistryException):
            self.exists(None)

    @pytest.mark.parametrize("option", ["db_url", "db_wo_url"])
    @pytest.mark.parametrize("replicas", [True, False])
    def test_where_all_have_it(self, servers, options, option, replicas):
        urls = servers.replica_urls if replicas else None
        options(**{option: servers.primary_url}, db_ro_urls=urls)
        assert self.exists(servers.database) is True
        assert self.exists("wrong_db_name") is False

    def test_by_driver_name(self, servers, options):
        primary = servers.cluster.primary
        options(
            db_driver_name="postgresql",
            db_host=primary.host,
            db_port=primary.port,
            db_user_name="postgres",
        )
        assert self.exists(servers.database) is True
        assert self.exists("wrong_db_name") is False

    def test_in_read_only_mode(self, servers, options):
        options(db_ro_urls=servers.replica_urls)
        assert self.exists(servers.database) is True
        assert self.exists("wrong_db_name") is False

    def test_not_where_a_replica_does_not_have_it(self, empty_servers, options):
        servers = empty_servers
        servers.first.pause_replay()
        servers.cluster.create_database(servers.database)
        options(db_url=servers.primary_url, db_ro_urls=servers.replica_urls)
        assert self.exists(servers.database) is False
        servers.cluster.heal()
        servers.cluster.wait_for_replay()
        assert self.exists(servers.database) is True

    def test_not_where_a_replica_is_down(self, servers, options):
        options(db_url=servers.primary_url, db_ro_urls=servers.replica_urls)
        servers.first.stop()
        assert self.exists(servers.database) is False


class TestBadInput:
    """Told when the registry is built, before anything is written"""

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"db_wo_url": "postgresql://h/db"}, "not both"),
            ({"db_ro_urls": ["s3cr3t@h/db"]}, "--db-ro-urls, URL number 1"),
            ({"db_ro_urls": ["mysql://u:s3cr3t@h/db"]}, "is mysql"),
            (
                {"db_ro_urls": ["postgresql+pg8000://u:s3cr3t@h/db"]},
                "--db-ro-urls: the driver 'pg8000' .* pip install 'pg8000'",
            ),
            (
                {"db_ro_urls": ["postgresql+nothing://u:s3cr3t@h/db"]},
                "no dialect 'postgresql.nothing'",
            ),
        ],
    )
    def test_is_an_error_of_ours(self, servers, make_registry, values, message):
        before = servers.cluster.primary.log_size
        with pytest.raises(OptionError, match=message) as caught:
            make_registry(
                servers.database, db_url=servers.primary_url, **values
            )

        assert "s3cr3t" not in str(caught.value)
        log = servers.cluster.primary.log(before)
        assert f"<{servers.database}>" not in log
        assert servers.database not in RegistryManager.registries

    def test_no_server_at_all(self, make_registry):
        with pytest.raises(ConfigurationException, match="--db-url"):
            make_registry("whatever")


def wait_for_no_connection(server, database):
    """Wait for the ends of backends whose clients have gone"""
    wait_until(
        f"{server} has connections to {database}",
        lambda: (
            not server.query(
                "select 1 from pg_stat_activity where datname = %s "
                "and application_name <> 'anyblok-testing'",
                [database],
            )
        ),
    )


def test_close_disposes_and_ends_everything(servers, make_registry):
    registry = make_registry.replicated(servers)
    servers.served_by(registry)
    registry.Shelf.query().count()
    servers.first.stop()
    registry.monitor.report_down("replica1", "stopped")
    thread = registry.monitor._thread
    engines = [*registry.engines["ro"], registry.engines["wo"]]
    registry.close()
    assert not thread.is_alive()
    assert [engine.pool.checkedin() for engine in engines] == [0, 0, 0]
    for server in (servers.cluster.primary, servers.cluster.replicas[1]):
        wait_for_no_connection(server, servers.database)


def test_failing_load_leaves_nothing(servers, make_registry):
    servers.cluster.primary.execute(
        "drop table system_cache cascade", database=servers.database
    )
    servers.cluster.primary.execute(
        "create view system_cache as select 1 as x", database=servers.database
    )
    with pytest.raises(Exception, match="system_cache"):
        make_registry(
            servers.database,
            {"loadwithoutmigration": True},
            db_wo_url=servers.primary_url,
            db_ro_urls=servers.replica_urls,
        )

    assert servers.database not in RegistryManager.registries
    wait_for_no_connection(servers.cluster.primary, servers.database)


def test_two_registries_share_nothing(
    servers, anyblok_cluster, template, make_registry
):
    anyblok_cluster.primary.execute(
        f"create database {servers.database}_two template {template}"
    )
    anyblok_cluster.wait_for_replay()
    try:
        one = make_registry.replicated(servers)
        two = make_registry(
            f"{servers.database}_two",
            db_url=servers.primary_url,
            db_ro_urls=servers.replica_urls[:1],
        )
        assert one.topology != two.topology
        assert not {id(x) for x in one.engines["ro"]} & {
            id(x) for x in two.engines["ro"]
        }
        one.Shelf.insert(name="x")
        assert servers.served_by(one) == "primary"
        assert two.explain(select(1)).reason != "already_on_primary"
        with one.loading():
            assert not two.is_loading

        one.monitor.report_down("replica1", "the test says so")
        assert not two.health().down
        assert one.statements is not two.statements
        one.commit()
        assert two.Shelf.query().count() == 0
    finally:
        two.close()
        anyblok_cluster.drop_database(f"{servers.database}_two")


def test_missing_attribute_does_not_recurse(options, bloks):
    """AnyBlok's __getattr__ would, before there is a Session"""
    options(db_url="postgresql+psycopg2://u@127.0.0.1:1/nowhere")
    with pytest.raises(OperationalError):
        RegistryManager.get("nowhere")


def test_mixin_session_is_in_the_session(servers, make_registry):
    registry = make_registry.replicated(servers)
    assert isinstance(registry.session, MixinSession)
    assert registry.session.anyblok is registry
