# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""An application's bloks on a cluster; no other module here sees AnyBlok"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from anyblok import (
    configuration_post_load,
    load_init_function_from_entry_points,
)
from anyblok.blok import BlokManager
from anyblok.config import Configuration
from anyblok.registry import RegistryManager
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from .. import config
from ..reader import NOTHING
from .cluster import Cluster, identifier
from .waiting import wait_until

# What names the database of the application, and not the cluster's.
NAMES = (
    "db_driver_name",
    "db_host",
    "db_name",
    "db_password",
    "db_port",
    "db_query",
    "db_ro_urls",
    "db_url",
    "db_user_name",
    "db_wo_url",
)

BLOKS = "SELECT name FROM system_blok WHERE state = 'installed' ORDER BY name"
DEMO = (
    "SELECT value::json ->> 'value' FROM system_parameter "
    "WHERE key = 'with-demo'"
)

# Seconds in which a replica that was broken is ready again, or isn't ever.
READY_WITHIN = 5.0

# Its rows, before the first test.
BACKUP = "anyblok_backup"

TABLES = f"""
SELECT c.oid, n.nspname, c.relname, (
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
    FROM pg_attribute a WHERE a.attrelid = c.oid
    AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname <> '{BACKUP}'
AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
"""


def load_configuration() -> None:
    """Load AnyBlok's options as its own tests do, if nobody has"""
    if "db_name" in Configuration.configuration:
        return

    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        load_init_function_from_entry_points(unittest=True)
        Configuration.load_config_for_test()
        configuration_post_load(unittest=True)
    finally:
        sys.argv = argv


def database_name() -> str:
    """Return the name of the application's database

    :exception: UsageError
    """
    name = Configuration.get("db_name")
    if not name:
        raise pytest.UsageError(
            "No database is named: set ANYBLOK_DATABASE_NAME, as for AnyBlok's "
            "own fixtures"
        )

    return str(name)


def use_cluster(cluster: Cluster, database: str) -> None:
    """Have AnyBlok's options name a database on a cluster

    :param cluster: that runs
    :param database: on it
    """
    driver = _driver()
    Configuration.update(dict.fromkeys(NAMES))
    Configuration.update(
        db_name=database,
        db_wo_url=cluster.primary.url(database, driver),
        db_ro_urls=[x.url(database, driver) for x in cluster.replicas],
    )
    config.complete_options(unittest=True)


@contextmanager
def restored_options() -> Iterator[None]:
    """Give AnyBlok's options back as they were"""
    before = {name: Configuration.get(name, None) for name in NAMES}
    try:
        yield
    finally:
        Configuration.update(before)


def _driver() -> str:
    """Return the driver that the options name"""
    with suppress(Exception):
        return config.get_url().drivername

    return "postgresql"


def installed_bloks(asked: Collection[str]) -> tuple[list[str], bool]:
    """Return the bloks that the application's tests want, and with demo data

    :param asked: by the option ``anyblok_bloks``
    :exception: UsageError
    """
    found: list[str] = []
    demo = False
    with suppress(Exception):
        engine = create_engine(config.get_url())
        with suppress(SQLAlchemyError), engine.connect() as connection:
            found = list(connection.scalars(text(BLOKS)))
            demo = connection.scalar(text(DEMO)) == "true"

        engine.dispose()

    if not (asked or found):
        raise pytest.UsageError(
            "Which bloks do the tests want? Prepare the database that "
            "AnyBlok's options name with anyblok_createdb, or list them in "
            "pytest's option anyblok_bloks"
        )

    return list(asked) or found, demo


def prepare(
    cluster: Cluster,
    database: str,
    bloks: Collection[str],
    demo: bool,
) -> None:
    """Make a database with bloks on a cluster that the options name

    :param cluster: that runs
    :param database: to make
    :param bloks: to install, with all they need
    :param demo: True: with their demo data
    """
    cluster.create_database(database)
    if not BlokManager.list():
        BlokManager.load()

    registry = RegistryManager.get(database)
    try:
        registry.System.Parameter.set("with-demo", demo)
        registry.commit()
        missing = [x for x in bloks if x not in registry.loaded_bloks]
        registry.upgrade(install=_outermost(missing))
        registry.commit()
    finally:
        registry.close()

    cluster.wait_for_replay()


def _outermost(bloks: Collection[str]) -> list[str]:
    """Return the bloks that no other one brings along"""
    brought: set[str] = set()
    for name in bloks:
        if not BlokManager.has(name):
            raise pytest.UsageError(f"There is no blok {name!r}")

        blok = BlokManager.get(name)
        brought.update(blok.required, blok.optional, blok.conditional)

    return [name for name in bloks if name not in brought]


class Rows:
    """The rows of a database, to be restored after each test

    Sequences go on, as they do after a rollback.

    :param cluster: that has the database
    :param database: its name
    """

    def __init__(self, cluster: Cluster, database: str) -> None:
        self._cluster = cluster
        self._database = database
        self._tables = cluster.primary.query(TABLES, database=database)
        cluster.primary.execute(
            f"CREATE SCHEMA {BACKUP}",
            *(
                f"CREATE TABLE {BACKUP}.t{oid} AS TABLE {_name(schema, name)}"
                for oid, schema, name, _ in self._tables
            ),
            database=database,
        )

    def restore(self) -> None:
        """Restore them, on the replicas too"""
        names = ", ".join(_name(*x[1:3]) for x in self._tables)
        statements = [
            "BEGIN",
            "SET LOCAL lock_timeout = '10s'",
            # No foreign key and no trigger of the application's.
            "SET LOCAL session_replication_role = replica",
            f"TRUNCATE {names}",
            *(
                f"INSERT INTO {_name(schema, name)} ({columns}) OVERRIDING "
                f"SYSTEM VALUE SELECT {columns} FROM {BACKUP}.t{oid}"
                for oid, schema, name, columns in self._tables
                if columns
            ),
            "COMMIT",
        ]
        primary = self._cluster.primary
        primary.execute("; ".join(statements), database=self._database)
        self._cluster.wait_for_replay()


def _name(schema: str, name: str) -> str:
    return f"{identifier(schema)}.{identifier(name)}"


@contextmanager
def replicated_registry(
    cluster: Cluster, database: str, asked: Collection[str]
) -> Iterator[tuple[Any, Rows]]:
    """Give a registry of the application's bloks on a cluster, and its rows

    :param cluster: that runs
    :param database: to make on it
    :param asked: bloks; none: those of the application's database
    """
    load_configuration()
    bloks, demo = installed_bloks(asked)
    with restored_options():
        use_cluster(cluster, database)
        prepare(cluster, database, bloks, demo)
        rows = Rows(cluster, database)
        cluster.wait_for_replay()
        registry = RegistryManager.get(database)
        registry.commit()

    try:
        yield registry, rows
    finally:
        registry.close()


def begin_anew(registry: Any) -> None:
    """Let the next test read as somebody who hasn't read or written yet

    The replicas that the test before has broken serve again.

    :param registry: that the test is given
    """
    registry.reader().knows = NOTHING
    monitor = registry.monitor
    with suppress(TimeoutError):
        wait_until(
            "The replicas can't be used",
            lambda: not monitor.snapshot.unusable or monitor.step(),
            READY_WITHIN,
        )


@contextmanager
def watched_registries(
    before: Callable[[], None], made: Callable[[Any], None]
) -> Iterator[None]:
    """Have a word in the making of the registries that tests roll back

    :param before: is called before one is made
    :param made: is called with each that is
    """
    original = RegistryManager.__dict__["get"]

    def get(cls: type, db_name: str, *args: Any, **settings: Any) -> Any:
        rolls_back = settings.get("unittest")
        if rolls_back and db_name not in RegistryManager.registries:
            before()
            registry = original.__func__(cls, db_name, *args, **settings)
            made(registry)
            return registry

        return original.__func__(cls, db_name, *args, **settings)

    RegistryManager.get = classmethod(get)
    try:
        yield
    finally:
        RegistryManager.get = original
