# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The functions that the package names, asked of the real catalogue.

And those that the catalogue takes for harmless, called on a real standby.
"""

from itertools import islice, product

import psycopg2
import pytest
from sqlalchemy import NullPool, create_engine

from anyblok_multi_engines.catalogue import read
from anyblok_multi_engines.routing.functions import (
    HARMLESS,
    INPUTS,
    READ_VIEWS,
    REFUSED,
    SYNTAX,
    WRITES,
)
from anyblok_multi_engines.routing.need import Kind

VOLATILE = (
    "select distinct proname from pg_proc "
    "where pronamespace = 'pg_catalog'::regnamespace "
    "and provolatile = 'v' and proname = any(%s)"
)
EXISTING = (
    "select distinct proname from pg_proc "
    "where pronamespace = 'pg_catalog'::regnamespace and proname = any(%s)"
)

# Of the harmless ones that need any
ARGUMENTS = {
    "array_sample": "array[1, 2], 1",
    "array_shuffle": "array[1, 2]",
    "pg_database_size": "'postgres'",
    "pg_indexes_size": "1259",
    "pg_relation_size": "1259",
    "pg_sleep": "0",
    "pg_sleep_for": "'0 s'",
    "pg_sleep_until": "now()",
    "pg_table_size": "1259",
    "pg_tablespace_size": "'pg_default'",
    "pg_total_relation_size": "1259",
}
OF_EXTENSIONS = {"populate_record"}
SAMPLING = {"bernoulli", "system"}

# A standby's refusals: of a write, of what it doesn't support, of what needs
# a server that isn't in recovery.
REFUSALS = ("25006", "0A000", "55000")

FUNCTIONS = (
    "select proname, proargtypes::regtype[]::text[] from pg_proc "
    "where pronamespace = 'pg_catalog'::regnamespace and prokind = 'f' "
    "and provolatile <> 'v' and prorettype <> 'internal'::regtype "
    "order by proname"
)
VALUES = {
    '"any"': ["1"],
    '"char"': ["'r'::\"char\""],
    "anyarray": ["array[1]"],
    "anycompatible": ["1"],
    "anycompatiblearray": ["array[1]"],
    "anyelement": ["1"],
    "bigint": ["1::bigint"],
    "boolean": ["true"],
    "bytea": ["'a'::bytea"],
    "double precision": ["1.5::float8"],
    "integer": ["1"],
    "interval": ["interval '1 s'"],
    "json": ["json '[1]'", "json '{}'"],
    "jsonb": ["jsonb '[1]'", "jsonb '{}'"],
    "name": ["name 'postgres'"],
    "numeric": ["1.5"],
    "oid": ["'pg_class'::regclass::oid", "'now()'::regprocedure::oid"],
    "pg_lsn": ["pg_lsn '0/3000000'"],
    "pg_snapshot": ["pg_snapshot '1:2:'"],
    "regclass": ["'pg_class'::regclass"],
    "regtype": ["'int'::regtype"],
    "smallint": ["1::smallint"],
    "text": ["'pg_class'", "'a'"],
    "text[]": ["array['a']"],
    "tid": ["tid '(0,1)'"],
    "timestamp with time zone": ["now()"],
    "xid": ["xid '3'"],
    "xid8": ["xid8 '3'"],
}


@pytest.fixture(scope="module")
def catalogue(anyblok_cluster_session):
    engine = create_engine(
        anyblok_cluster_session.primary.url(), poolclass=NullPool
    )
    with engine.connect() as connection:
        return read(connection)


def found(server, statement, names):
    return {row[0] for row in server.query(statement, [sorted(names)])}


def test_all_exist(anyblok_cluster):
    """In PostgreSQL 18 and later; a wrong name would hide another"""
    primary = anyblok_cluster.primary
    if int(primary.query("show server_version_num")[0][0]) < 180000:
        pytest.skip("some are newer than this server")

    names = HARMLESS | INPUTS | READ_VIEWS | REFUSED | WRITES
    assert found(primary, EXISTING, names) == names - OF_EXTENSIONS


def test_syntax_is_no_function(anyblok_cluster):
    assert found(anyblok_cluster.primary, EXISTING, SYNTAX) == set()


def test_harmless_are_volatile_or_are_not_there(anyblok_cluster):
    """Another label would need no entry"""
    primary = anyblok_cluster.primary
    volatile = found(primary, VOLATILE, HARMLESS)
    assert volatile == found(primary, EXISTING, HARMLESS)


def test_label_of_the_others_misleads(anyblok_cluster):
    names = INPUTS | READ_VIEWS | REFUSED
    assert found(anyblok_cluster.primary, VOLATILE, names) == set()


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_volatile_but_harmless_runs_on_a_replica(
    anyblok_cluster, catalogue, name
):
    replica = anyblok_cluster.replicas[0]
    if not found(replica, EXISTING, {name}):
        pytest.skip("newer than this server")

    assert catalogue.need_of_function(name).is_read
    if name in SAMPLING:
        replica.query(f"select 1 from pg_class tablesample {name} (1)")
    else:
        replica.query(f"select {name}({ARGUMENTS.get(name, '')})")


def test_what_is_labelled_harmless_is_not_refused(anyblok_cluster, catalogue):
    """Each is called, with arguments made up by their types"""
    outcomes = {}
    with anyblok_cluster.replicas[0].connection() as connection:
        cursor = connection.cursor()
        cursor.execute(FUNCTIONS)
        for name, types in cursor.fetchall():
            if catalogue.need_of_function(name, "pg_catalog").is_read:
                values = [VALUES.get(type_, ()) for type_ in types]
                for arguments in islice(product(*values), 4):
                    call = f'pg_catalog."{name}"({", ".join(arguments)})'
                    outcomes[call] = outcome_of(cursor, call)

    assert [x for x in outcomes.items() if x[1] == "refused"] == []
    assert list(outcomes.values()).count("served") > 1_000


def outcome_of(cursor, call):
    try:
        cursor.execute(f"select {call}")
    except psycopg2.Error as error:
        refused = error.pgcode in REFUSALS and (
            "recovery" in str(error) or "read-only" in str(error)
        )
        return "refused" if refused else "wrong arguments"

    return "served"


@pytest.mark.parametrize(
    "name",
    """
    abs array_agg array_length btrim concat count current_setting
    current_user date_trunc extract format generate_series jsonb_path_query
    jsonb_set lag lower max now pg_backend_pid percentile_cont regexp_replace
    row_number string_agg sum to_char to_tsvector unnest version width_bucket
    """.split(),
)
def test_common_function_is_a_read(catalogue, name):
    assert catalogue.need_of_function(name).is_read


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("currval", Kind.UNPROVEN),
        ("lastval", Kind.UNPROVEN),
        ("lo_create", Kind.WRITE),
        ("nextval", Kind.WRITE),
        ("pg_advisory_lock", Kind.WRITE),
        ("pg_advisory_xact_lock", Kind.WRITE),
        ("pg_current_wal_lsn", Kind.UNPROVEN),
        ("pg_current_xact_id", Kind.WRITE),
        ("pg_export_snapshot", Kind.UNPROVEN),
        ("pg_notify", Kind.WRITE),
        ("pg_try_advisory_lock", Kind.WRITE),
        ("query_to_xml", Kind.UNPROVEN),
        ("set_config", Kind.WRITE),
        ("setseed", Kind.WRITE),
        ("setval", Kind.WRITE),
        ("table_to_xml", Kind.UNPROVEN),
        ("ts_stat", Kind.UNPROVEN),
        ("txid_current", Kind.WRITE),
    ],
)
def test_what_writes_locks_or_runs_sql_is_no_read(catalogue, name, kind):
    assert catalogue.need_of_function(name).kind is kind
