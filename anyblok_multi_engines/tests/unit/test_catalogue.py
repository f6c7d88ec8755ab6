# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a catalogue answers of names, from what it has been told."""

import pytest

from anyblok_multi_engines.routing.catalogue import Catalogue, any_of
from anyblok_multi_engines.routing.functions import (
    declared_kind,
    need_of_function,
)
from anyblok_multi_engines.routing.need import READ, Kind, Need

VOLATILE = Need(Kind.UNPROVEN, "function bump() is volatile")
WRITES = Need(Kind.WRITE, "function nextval() writes or locks")

CATALOGUE = Catalogue(
    search_path=("pg_catalog", "public", "later"),
    functions={
        ("pg_catalog", "lower"): READ,
        ("pg_catalog", "nextval"): WRITES,
        ("public", "bump"): VOLATILE,
        ("public", "either"): READ,
        ("later", "either"): WRITES,
        ("public", "checked"): READ,
        ("public", "greatest"): VOLATILE,
        ("other", "hop"): READ,
    },
    relations={
        ("public", "book"): READ,
        ("later", "book"): VOLATILE,
        ("later", "shelf"): VOLATILE,
    },
    operators={"+": READ, "###": VOLATILE},
    types={"text": READ, "checked": VOLATILE},
    fields={"bump": VOLATILE},
)


@pytest.mark.parametrize("name", ["lower", "coalesce", "current_date"])
def test_harmless_function_is_a_read(name):
    assert CATALOGUE.need_of_function(name) is READ


def test_function_is_looked_up_in_a_schema():
    assert CATALOGUE.need_of_function("hop", "other") is READ
    assert CATALOGUE.need_of_function("either", "public") is READ
    assert CATALOGUE.need_of_function("either", "later") is WRITES


def test_function_of_any_schema_of_the_search_path_may_be_meant():
    need = CATALOGUE.need_of_function("either")
    assert need == Need(Kind.UNPROVEN, WRITES.because)


def test_function_may_be_a_cast_to_a_type_of_its_name():
    assert not CATALOGUE.need_of_function("checked").is_read


def test_type_alone_makes_no_function():
    assert CATALOGUE.need_of_function("text").unknown


def test_syntax_may_be_a_function_where_it_is_quoted():
    assert not CATALOGUE.need_of_function("greatest").is_read


def test_syntax_is_none_in_a_schema():
    assert CATALOGUE.need_of_function("coalesce", "public").unknown


def test_first_relation_of_the_search_path_is_meant():
    assert CATALOGUE.need_of_relation("book") is READ
    assert CATALOGUE.need_of_relation("book", "later") is VOLATILE
    assert CATALOGUE.need_of_relation("shelf") is VOLATILE


def test_operators_types_and_fields_have_no_schema():
    assert CATALOGUE.need_of_operator("+") is READ
    assert CATALOGUE.need_of_operator("###") is VOLATILE
    assert CATALOGUE.need_of_cast("text") is READ
    assert CATALOGUE.need_of_cast("checked") is VOLATILE
    assert CATALOGUE.need_of_field("bump") is VOLATILE


def test_field_that_no_function_has_is_a_column():
    assert CATALOGUE.need_of_field("title") is READ


def test_nothing_is_called_implicitly_unless_told():
    assert CATALOGUE.need_of_any() is READ
    assert Catalogue(implicit=VOLATILE).need_of_any() is VOLATILE


@pytest.mark.parametrize(
    ("need", "because"),
    [
        (CATALOGUE.need_of_function("hop"), "function hop() is not known"),
        (
            CATALOGUE.need_of_function("hop", "public"),
            "function public.hop() is not known",
        ),
        (CATALOGUE.need_of_relation("boook"), "relation boook is not known"),
        (CATALOGUE.need_of_operator("!!"), "operator !! is not known"),
        (CATALOGUE.need_of_cast("book"), "type book is not known"),
    ],
)
def test_what_is_not_known_is_no_read(need, because):
    assert need == Need(Kind.UNPROVEN, because, unknown=True)


def test_nothing_is_known_at_first():
    assert Catalogue().need_of_function("lower").unknown
    assert Catalogue().need_of_operator("=").unknown


def test_any_of_several_is_a_read_where_all_are():
    assert any_of([READ, READ]) is READ
    assert any_of([READ, VOLATILE]) == VOLATILE


def test_any_of_several_writes_where_all_do():
    assert any_of([WRITES, WRITES]) is WRITES
    for needs in ([WRITES, VOLATILE], [READ, WRITES]):
        assert any_of(needs).kind is Kind.UNPROVEN


@pytest.mark.parametrize(
    ("schema", "name", "volatile", "kind"),
    [
        ("public", "f", False, Kind.READ),
        ("public", "f", True, Kind.UNPROVEN),
        ("pg_catalog", "random", True, Kind.READ),
        ("public", "random", True, Kind.UNPROVEN),
        ("pg_catalog", "txid_current", False, Kind.WRITE),
        ("pg_catalog", "pg_try_advisory_lock", True, Kind.WRITE),
        ("pg_catalog", "lo_get", True, Kind.WRITE),
        ("public", "lo_price", True, Kind.UNPROVEN),
        ("public", "lo_price", False, Kind.READ),
        ("public", "nextval", False, Kind.READ),
        ("pg_catalog", "pg_walfile_name", False, Kind.UNPROVEN),
        ("pg_catalog", "table_to_xml", False, Kind.UNPROVEN),
        ("public", "crosstab", False, Kind.UNPROVEN),
        ("public", "dblink_exec", True, Kind.WRITE),
    ],
)
def test_need_of_a_function_by_itself(schema, name, volatile, kind):
    assert need_of_function(schema, name, name, volatile).kind is kind


@pytest.mark.parametrize(
    ("read", "write", "kind"),
    [
        ((), (), None),
        (["f"], (), Kind.READ),
        (["public.f"], (), Kind.READ),
        (["other.f"], (), None),
        ((), ["f"], Kind.WRITE),
        (["public.f"], ["f"], Kind.WRITE),
    ],
)
def test_users_lists(read, write, kind):
    declared = declared_kind("public", "f", set(read), set(write))
    assert declared is kind
