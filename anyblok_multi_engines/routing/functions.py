# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a function needs: its label in ``pg_proc``, and where that misleads.

The names are those of PostgreSQL 13 to 18; a test asks the real catalogue.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from .need import READ, Kind, Need

SYSTEM_SCHEMA = "pg_catalog"

# Volatile for PostgreSQL because their result changes, but they change
# nothing, lock nothing, and a hot standby serves them. ``bernoulli`` and
# ``system`` are written after TABLESAMPLE, and can't be called.
HARMLESS = frozenset(
    """
    array_sample array_shuffle bernoulli clock_timestamp current_query
    gen_random_uuid pg_database_size pg_indexes_size pg_is_in_recovery
    pg_last_wal_receive_lsn pg_last_wal_replay_lsn
    pg_last_xact_replay_timestamp pg_relation_size pg_sleep pg_sleep_for
    pg_sleep_until pg_table_size pg_tablespace_size pg_total_relation_size
    random random_normal system timeofday uuidv4 uuidv7
    """.split()
)

# They write, lock, or change what the session is; the advisory locks of a
# standby exclude nobody on the primary. The first two are labelled stable,
# and take a transaction id, which a standby has none of.
WRITES = frozenset(
    """
    pg_current_xact_id txid_current loread lowrite nextval pg_notify set_config
    setseed setval
    """.split()
)
WRITING_FAMILIES = ("lo_", "pg_advisory_", "pg_try_advisory_")

# Labelled immutable or stable, and a standby refuses them.
REFUSED = frozenset(
    "pg_replication_origin_oid pg_walfile_name pg_walfile_name_offset".split()
)

# Labelled stable, and they read the views that they are given the names of.
READ_VIEWS = frozenset(
    """
    database_to_xml database_to_xml_and_xmlschema schema_to_xml
    schema_to_xml_and_xmlschema table_to_xml table_to_xml_and_xmlschema
    """.split()
)

# Labelled immutable or stable, and they apply the checks of a type that the
# statement need not name, hstore's ``populate_record`` too.
INPUTS = frozenset(
    """
    array_in array_recv domain_in domain_recv json_populate_record
    json_populate_recordset jsonb_populate_record jsonb_populate_record_valid
    jsonb_populate_recordset multirange_in multirange_recv pg_input_error_info
    pg_input_is_valid populate_record range_in range_recv record_in record_recv
    """.split()
)

# Labelled stable too, and they run the SQL that they are given as a text:
# tablefunc's and xml2's, in whatever schema the extension is.
RUN_SQL = frozenset(
    "connectby crosstab crosstab2 crosstab3 crosstab4 xpath_table".split()
)

# Written like a function, but syntax: an expression, or another name for a
# function, with no row in pg_proc.
SYNTAX = frozenset(
    """
    all any array cast coalesce cube current_catalog current_date current_role
    current_time current_timestamp exists greatest grouping grouping_sets
    json_array json_arrayagg json_exists json_objectagg json_query json_scalar
    json_serialize json_table json_value least localtime localtimestamp nullif
    rollup row some trim user xmlconcat xmlelement xmlforest xmlparse xmlpi
    xmlroot xmlserialize xmltable
    """.split()
)


def declared_kind(
    schema: str,
    name: str,
    read_functions: AbstractSet[str],
    write_functions: AbstractSet[str],
) -> Kind | None:
    """Return what the user declares of a function, None: nothing

    :param schema: of the function
    :param name: of the function
    :param read_functions: names, with their schema or without, of those which
        are harmless
    :param write_functions: and of those which write: they win
    """
    names = {name, f"{schema}.{name}"}
    if names & write_functions:
        return Kind.WRITE

    return Kind.READ if names & read_functions else None


def need_of_function(
    schema: str, name: str, label: str, volatile: bool
) -> Need:
    """Return what a function needs by itself, whatever it is made of

    :param schema: of the function
    :param name: of the function
    :param label: what the reason calls it
    :param volatile: as ``pg_proc.provolatile`` says
    :rtype: Need
    """
    listed = _need_of_system_function(name, label)
    if schema == SYSTEM_SCHEMA and listed is not None:
        return listed

    if name in RUN_SQL:
        return Need(Kind.UNPROVEN, f"{label} runs SQL that it is given")

    if not volatile:
        return READ

    if name.startswith("dblink"):
        return _writes(label)

    return Need(Kind.UNPROVEN, f"{label} is volatile")


def _need_of_system_function(name: str, label: str) -> Need | None:
    """Return the need of a function of ``pg_catalog`` that is listed here"""
    if name in HARMLESS:
        return READ

    if name in WRITES or name.startswith(WRITING_FAMILIES):
        return _writes(label)

    if name in REFUSED:
        return Need(Kind.UNPROVEN, f"{label} is refused by a standby")

    if name in READ_VIEWS:
        return Need(Kind.UNPROVEN, f"{label} reads any view")

    return None


def _writes(label: str) -> Need:
    return Need(Kind.WRITE, f"{label} writes or locks")
