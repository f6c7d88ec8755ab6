# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The functions that a plain read may call, asked of the real catalogue."""

import pytest
from sqlalchemy import func, select

from anyblok_multi_engines.routing.functions import (
    AGGREGATES,
    HARMLESS,
    KNOWN_FUNCTIONS,
    PLAIN,
)

VOLATILE = (
    "select distinct proname from pg_proc "
    "where pronamespace = 'pg_catalog'::regnamespace "
    "and provolatile = 'v' and proname = any(%s)"
)
EXISTING = (
    "select distinct proname from pg_proc "
    "where pronamespace = 'pg_catalog'::regnamespace and proname = any(%s)"
)

ARGUMENTS = {
    "pg_database_size": ("postgres",),
    "pg_indexes_size": (1259,),
    "pg_relation_size": (1259,),
    "pg_sleep": (0,),
    "pg_table_size": (1259,),
    "pg_total_relation_size": (1259,),
}


def found(server, statement, names):
    return {row[0] for row in server.query(statement, [sorted(names)])}


def test_none_is_volatile(anyblok_cluster):
    primary = anyblok_cluster.primary
    assert found(primary, VOLATILE, AGGREGATES | PLAIN) == set()
    assert "nextval" in found(primary, VOLATILE, {"nextval", "lower"})


def test_all_exist(anyblok_cluster):
    """In PostgreSQL 16 and later; a wrong name would hide another"""
    primary = anyblok_cluster.primary
    if int(primary.query("show server_version_num")[0][0]) < 160000:
        pytest.skip("some are newer than this server")

    names = AGGREGATES | PLAIN | HARMLESS
    assert found(primary, EXISTING, names) == names


def test_none_is_in_two_lists():
    assert not HARMLESS & (AGGREGATES | PLAIN)
    assert not AGGREGATES & PLAIN


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_volatile_but_harmless_runs_on_a_replica(registry, servers, name):
    call = getattr(func, name)(*ARGUMENTS.get(name, ()))
    served_by = servers.served_by(
        registry, select(func.current_setting("port"), call)
    )
    assert served_by in ("replica1", "replica2")


@pytest.fixture
def servers(shared_servers):
    return shared_servers


@pytest.fixture
def registry(shared_registry):
    return shared_registry


@pytest.mark.parametrize(
    "name",
    [
        "currval",
        "dblink",
        "lastval",
        "lo_create",
        "nextval",
        "pg_advisory_lock",
        "pg_advisory_xact_lock",
        "pg_current_xact_id",
        "pg_export_snapshot",
        "pg_notify",
        "pg_try_advisory_lock",
        "query_to_xml",
        "set_config",
        "setseed",
        "setval",
        "txid_current",
    ],
)
def test_what_writes_locks_or_runs_sql_is_not_known(name):
    assert name not in KNOWN_FUNCTIONS
