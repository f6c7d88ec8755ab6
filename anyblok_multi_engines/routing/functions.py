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
    gen_random_uuid pg_database_size
    pg_indexes_size pg_is_in_recovery pg_last_wal_receive_lsn
    pg_last_wal_replay_lsn pg_last_xact_replay_timestamp pg_relation_size
    pg_sleep pg_sleep_for pg_sleep_until pg_table_size pg_tablespace_size
    pg_total_relation_size random random_normal system timeofday uuidv4 uuidv7
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


# Asked by statements.py until it asks the catalogue.
AGGREGATES = frozenset(
    """
    array_agg avg bit_and bit_or bool_and bool_or corr count covar_pop
    covar_samp cume_dist dense_rank every first_value json_agg json_object_agg
    jsonb_agg jsonb_object_agg lag last_value lead max min mode nth_value ntile
    percent_rank percentile_cont percentile_disc rank regr_avgx regr_avgy
    regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy
    row_number stddev stddev_pop stddev_samp string_agg sum var_pop var_samp
    variance xmlagg
    """.split()
)

PLAIN = frozenset(
    """
    abs acos acosd acosh age array_append array_cat array_dims array_fill
    array_length array_lower array_ndims array_position array_positions
    array_prepend array_remove array_replace array_to_json array_to_string
    array_to_tsvector array_upper ascii asin asind asinh atan atan2 atan2d
    atand atanh bit_count bit_length broadcast btrim cardinality cbrt ceil
    ceiling center char_length character_length chr col_description concat
    concat_ws convert convert_from convert_to cos cosd cosh cot cotd
    current_database current_schema current_schemas current_setting
    current_user date date_bin date_part date_trunc datemultirange daterange
    decode degrees diagonal diameter div encode enum_first enum_last enum_range
    exp extract factorial family floor format format_type gcd generate_series
    generate_subscripts get_bit get_byte has_column_privilege
    has_database_privilege has_function_privilege has_schema_privilege
    has_sequence_privilege has_table_privilege height host hostmask
    inet_client_addr inet_client_port inet_merge inet_same_family
    inet_server_addr inet_server_port initcap int4multirange int4range
    int8multirange int8range isclosed isempty isfinite isopen
    json_array_elements json_array_elements_text json_array_length
    json_build_array json_build_object json_each json_each_text
    json_extract_path json_extract_path_text json_object json_object_keys
    json_populate_record json_populate_recordset json_strip_nulls
    json_to_record json_to_recordset json_typeof jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array
    jsonb_build_object jsonb_each jsonb_each_text jsonb_extract_path
    jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_keys
    jsonb_path_exists jsonb_path_match jsonb_path_query jsonb_path_query_array
    jsonb_path_query_first jsonb_populate_record jsonb_populate_recordset
    jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_to_record
    jsonb_to_recordset jsonb_typeof justify_days justify_hours justify_interval
    lcm left length ln log log10 lower lower_inc lower_inf lpad ltrim make_date
    make_interval make_time make_timestamp make_timestamptz masklen md5
    min_scale mod multirange netmask network normalize now npoints num_nonnulls
    num_nulls nummultirange numnode numrange obj_description octet_length
    overlay parse_ident path pclose pg_backend_pid pg_client_encoding
    pg_column_size pg_conf_load_time pg_get_constraintdef pg_get_expr
    pg_get_functiondef pg_get_indexdef pg_get_serial_sequence pg_get_userbyid
    pg_get_viewdef pg_has_role pg_my_temp_schema pg_postmaster_start_time
    pg_size_bytes pg_size_pretty pg_table_is_visible pg_typeof phraseto_tsquery
    pi plainto_tsquery point polygon popen position power querytree quote_ident
    quote_literal quote_nullable radians radius range_merge regexp_count
    regexp_instr regexp_like regexp_match regexp_matches regexp_replace
    regexp_split_to_array regexp_split_to_table regexp_substr repeat replace
    reverse right round row_to_json rpad rtrim scale set_bit set_byte
    set_masklen setweight sha224 sha256 sha384 sha512 shobj_description sign
    sin sind sinh split_part sqrt starts_with statement_timestamp
    string_to_array string_to_table strip strpos substr substring tan tand tanh
    text to_ascii to_char to_date to_hex to_json to_jsonb to_number to_regclass
    to_timestamp to_tsquery to_tsvector transaction_timestamp translate
    trim_array trim_scale trunc ts_debug ts_delete ts_filter ts_headline
    ts_lexize ts_parse ts_rank ts_rank_cd tsmultirange tsquery_phrase tsrange
    tstzmultirange tstzrange tsvector_to_array unistr unnest upper upper_inc
    upper_inf version websearch_to_tsquery width width_bucket
    xml_is_well_formed xmlcomment xpath xpath_exists
    """.split()
)

KNOWN_FUNCTIONS = HARMLESS | SYNTAX | AGGREGATES | PLAIN
