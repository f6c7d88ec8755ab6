# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The options and the bloks as AnyBlok loads them, and real servers."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
from anyblok import (
    configuration_post_load,
    load_init_function_from_entry_points,
)
from anyblok.blok import BlokManager
from anyblok.config import Configuration
from anyblok.registry import Registry, RegistryManager
from sqlalchemy import func, select

from anyblok_multi_engines.testing import Cluster, PostgresServer, wait_until

pytest_plugins = ["anyblok_multi_engines.testing.fixtures"]

# What "postgresql" means depends on SQLAlchemy; the Makefile runs both.
DRIVER = os.environ.get("ANYBLOK_TEST_DRIVER", "postgresql+psycopg2")

# Has the bloks that the tests use; each test works on a copy.
TEMPLATE = "template_bloks"

PORT = select(func.current_setting("port"))

NO_OPTIONS: dict[str, Any] = {
    "db_driver_name": None,
    "db_host": None,
    "db_name": None,
    "db_password": None,
    "db_port": None,
    "db_query": None,
    "db_ro_urls": None,
    "db_url": None,
    "db_user_name": None,
    "db_wo_url": None,
    "isolation_level": "READ_COMMITTED",
}


class Options:
    """AnyBlok's options, for one test"""

    def __call__(self, **values: Any) -> None:
        """Set options; what isn't named is as if it were not given"""
        Configuration.update(**{**NO_OPTIONS, **values})

    def completed(self, **values: Any) -> None:
        """Set options as the commands do, with our completion of them"""
        self(**values)
        configuration_post_load(unittest=True)


@pytest.fixture(scope="session")
def anyblok_configuration() -> None:
    """Load the options' definitions once"""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        load_init_function_from_entry_points(unittest=True)
        Configuration.load_config_for_test()
    finally:
        sys.argv = argv


@contextmanager
def restored_options() -> Iterator[Options]:
    """Give the options, none of the database's at first; restore them"""
    before = dict(Configuration.configuration)
    values = {
        name: option.value
        for name, option in before.items()
        if not option.removed
    }
    Configuration.update(**NO_OPTIONS)
    yield Options()
    Configuration.configuration = before
    Configuration.update(**values)


@pytest.fixture
def options(anyblok_configuration: None) -> Iterator[Options]:
    """Give the options, without any of the database's at first"""
    with restored_options() as options:
        yield options


@pytest.fixture(scope="session")
def bloks(anyblok_configuration: None) -> Iterator[None]:
    """Load AnyBlok's bloks and those of the tests"""
    BlokManager.load(entry_points=("bloks", "test_bloks"))
    yield
    RegistryManager.clear()
    BlokManager.unload()


@pytest.fixture(scope="session")
def anyblok_cluster_options() -> dict[str, Any]:
    """Two replicas; every server logs its statements and their database"""
    return {
        "replicas": 2,
        "settings": {
            "log_statement": "all",
            "log_line_prefix": "[%p] <%d> ",
            "max_prepared_transactions": "5",
        },
    }


@pytest.fixture(scope="session")
def template(anyblok_cluster_session: Cluster, bloks: None) -> str:
    """Make the database that the tests copy"""
    anyblok_cluster_session.create_database(TEMPLATE)
    with restored_options() as options:
        options(
            db_url=anyblok_cluster_session.primary.url(TEMPLATE, DRIVER),
        )
        registry = RegistryManager.get(TEMPLATE)
        registry.upgrade(install=["test-me-blok4"])
        registry.commit()
        registry.close()

    return TEMPLATE


NUMBERS = count(1)


class Servers:
    """A database on the cluster, its URLs, and who served what"""

    def __init__(self, cluster: Cluster, database: str) -> None:
        self.cluster = cluster
        self.database = database
        self.names = {
            str(server.port): server.name for server in cluster.servers
        }
        self._log_starts = {
            server.name: server.log_size for server in cluster.servers
        }

    @property
    def primary_url(self) -> str:
        return self.cluster.primary.url(self.database, DRIVER)

    @property
    def replica_urls(self) -> list[str]:
        return [x.url(self.database, DRIVER) for x in self.cluster.replicas]

    @property
    def first(self) -> PostgresServer:
        return self.cluster.replicas[0]

    def served_by(self, registry: Any, statement: Any = PORT) -> str:
        """Return the name of the server that runs a statement

        :param statement: gives the server's port in its first column
        """
        return self.names[registry.execute(statement).first()[0]]

    def statements_on(self, server: PostgresServer) -> list[str]:
        """Return what the registry's sessions asked a server

        Of this database, from its log; without what a new connection asks,
        and the monitor.
        """
        log = server.log(self._log_starts[server.name])
        mine = (
            line.partition(f"<{self.database}> ")[2]
            for line in log.replace("\n\t", " ").splitlines()
        )
        asked = (
            line.partition("statement: ")[2] or line.partition("execute ")[2]
            for line in mine
        )
        return [
            line
            for line in asked
            if line and not any(x in line for x in OF_A_CONNECTION)
        ]


OF_A_CONNECTION = (
    "pg_catalog.version()",
    "standard_conforming_strings",
    "show transaction isolation level",
    "SET default_transaction",
    "SELECT 1",
    "SET SESSION CHARACTERISTICS",
    "typname",  # the driver's look-up of hstore
    "BEGIN",
    "ROLLBACK",
    "COMMIT",
    "current_schema()",
    "pg_last_wal_replay_lsn()",
    "pg_current_wal_insert_lsn()",
    "select pg_catalog",
)


@contextmanager
def database_of(cluster: Cluster, template: str) -> Iterator[Servers]:
    """Give a copy of the template, on the primary and its replicas"""
    database = f"db{next(NUMBERS)}"
    cluster.primary.execute(f"create database {database} template {template}")
    cluster.wait_for_replay()
    yield Servers(cluster, database)
    cluster.heal()
    cluster.drop_database(database)


@pytest.fixture
def servers(anyblok_cluster: Cluster, template: str) -> Iterator[Servers]:
    """Give a database with bloks, on a primary and two replicas"""
    with database_of(anyblok_cluster, template) as servers:
        yield servers


@pytest.fixture(scope="module")
def shared_servers(
    anyblok_cluster_session: Cluster, template: str
) -> Iterator[Servers]:
    """Give one database to the tests of a module that break no server"""
    with database_of(anyblok_cluster_session, template) as servers:
        yield servers


@pytest.fixture
def empty_servers(anyblok_cluster: Cluster, bloks: None) -> Iterator[Servers]:
    """Give the name of a database that does not exist yet"""
    database = f"db{next(NUMBERS)}"
    yield Servers(anyblok_cluster, database)
    anyblok_cluster.heal()
    anyblok_cluster.drop_database(database)


class Registries:
    """Builds registries; closes them in the end"""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._made: list[Registry] = []

    def __call__(
        self, database: str, settings: Any = None, **values: Any
    ) -> Registry:
        """Return the registry of a database, as the options say

        :param settings: of AnyBlok's RegistryManager.get
        :param values: options
        """
        self._options(**values)
        registry = RegistryManager.get(database, **(settings or {}))
        registry.commit()
        self._made.append(registry)
        return registry

    def replicated(self, servers: Servers, **values: Any) -> Registry:
        """Return a registry of which replicas alone serve reads

        It waits for them: a test that has just written reads from a replica,
        too, however busy the machine is.

        :param values: more options
        """
        return self(
            servers.database,
            **{
                "db_wo_url": servers.primary_url,
                "db_ro_urls": servers.replica_urls,
                "db_ro_wait": 1.0,
                **values,
            },
        )

    def eventual(self, servers: Servers) -> Registry:
        """Return one that reads from replicas, however far they are behind"""
        return self.replicated(servers, db_ro_consistency="eventual")

    def close(self) -> None:
        for registry in self._made:
            registry.close()


@pytest.fixture
def make_registry(options: Options) -> Iterator[Registries]:
    """Give a function that builds registries, closed after the test"""
    registries = Registries(options)
    yield registries
    registries.close()


def take_for_down(registry: Any, *names: str) -> None:
    """Report servers that aren't down, and have nobody find it out

    Until :func:`make_ready`. The monitor would ask them in the next second.

    :param names: of the servers
    """
    registry.monitor.stop()
    for name in names:
        registry.monitor.report_down(name, "the test says so")


def make_ready(registry: Any, *names: str) -> None:
    """Have the monitor ask servers that were reported to be down, and are not

    :param names: of the servers
    """

    def are_ready() -> bool:
        registry.monitor.step(names)
        return not registry.health().unusable.intersection(names)

    wait_until(f"{names} are not ready", are_ready)


@pytest.fixture
def registry(servers: Servers, make_registry: Registries) -> Registry:
    """Give a registry of which replicas alone serve reads"""
    return make_registry.replicated(servers)


@pytest.fixture(scope="module")
def module_registry(shared_servers: Servers) -> Iterator[Registry]:
    """Give one registry to the tests of a module"""
    with restored_options() as options:
        registries = Registries(options)
        registry = registries.replicated(shared_servers)

    yield registry
    registries.close()


@pytest.fixture
def shared_registry(
    module_registry: Registry, shared_servers: Servers
) -> Iterator[Registry]:
    """Give the module's registry, with its tables empty again afterwards"""
    yield module_registry
    module_registry.rollback()
    module_registry.Session.remove()
    shared_servers.cluster.primary.execute(
        "truncate book, shelf", database=shared_servers.database
    )
    shared_servers.cluster.wait_for_replay()
