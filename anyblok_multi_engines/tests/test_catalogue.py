# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the catalogue says of objects that a user makes, on a real server.

Where a call is hidden, PostgreSQL is asked first: the statement does advance
the sequence.
"""

from time import process_time

import pytest
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from anyblok_multi_engines.catalogue import read
from anyblok_multi_engines.routing.need import READ, Kind
from anyblok_multi_engines.tests.conftest import DRIVER

# What all of the objects below may call
BUMP = (
    "create sequence bumps",
    "create function bump() returns bigint volatile language sql "
    "as $$ select nextval('public.bumps') $$",
    "create table book (id int, title text)",
    "insert into book values (1, 'a'), (2, 'b')",
    "create type pair as (a int, b int)",
)


class Database:
    """A connection of which the transaction is rolled back"""

    def __init__(self, connection):
        self._connection = connection

    def run(self, *statements):
        for statement in statements:
            result = self._connection.exec_driver_sql(statement)

        return result

    def read(self, **lists):
        return read(self._connection, **lists)

    def has_bumped(self, statement):
        """Return True where a statement advances the sequence"""
        self.run("alter sequence bumps restart", statement)
        return self.run("select is_called from bumps").scalar()


@pytest.fixture
def database(anyblok_cluster_session):
    yield from transaction_on(anyblok_cluster_session.primary)


@pytest.fixture
def standby(anyblok_cluster_session):
    anyblok_cluster_session.wait_for_replay()
    yield from transaction_on(anyblok_cluster_session.replicas[0])


def transaction_on(server):
    engine = create_engine(server.url(driver=DRIVER), poolclass=NullPool)
    with engine.connect() as connection:
        yield Database(connection)


def function(arguments, body, label="volatile", returns="bigint"):
    """Return the CREATE of a function, named by what comes first"""
    return (
        f"create function {arguments} returns {returns} {label} "
        f"language sql as $$ select {body} $$"
    )


def of_function(name, schema=None):
    return lambda catalogue: catalogue.need_of_function(name, schema)


def of_relation(name, schema=None):
    return lambda catalogue: catalogue.need_of_relation(name, schema)


def of_operator(symbol):
    return lambda catalogue: catalogue.need_of_operator(symbol)


def of_cast(name):
    return lambda catalogue: catalogue.need_of_cast(name)


def of_field(name):
    return lambda catalogue: catalogue.need_of_field(name)


def of_any(catalogue):
    return catalogue.need_of_any()


BOOK_BUMP = function("bump(book)", "bump()")
BUMPED_INT = "create domain bumped as int check (bump() > 0)"
STEP = function("step(bigint, bigint)", "bump()")
BACK = function("back(bigint, bigint)", "$1 - $2", "immutable")
MOVING = (
    "select total(id) over (order by id rows between current row "
    "and 1 following) from book"
)
MOVING_AGGREGATE = (
    "create aggregate total(bigint) (sfunc = int8pl, stype = bigint, "
    "initcond = '0', msfunc = step, minvfunc = back, mstype = bigint, "
    "minitcond = '0')"
)
PLUS = (
    function("plus(pair, pair)", "bump()"),
    "create operator ### (function = plus, leftarg = pair, rightarg = pair)",
)


def operator_class(compared="$1.a - $2.a", same="$1.a = $2.a"):
    """Return what makes an operator class; what calls bump() is volatile"""
    rest = "leftarg = pair, rightarg = pair)"
    return (
        function("less(pair, pair)", "$1.a < $2.a", "stable", "bool"),
        function("more(pair, pair)", "$1.a > $2.a", "stable", "bool"),
        function("same(pair, pair)", same, label_of(same), "bool"),
        function("compared(pair, pair)", compared, label_of(compared), "int"),
        f"create operator <<< (function = less, {rest}",
        f"create operator === (function = same, {rest}",
        f"create operator >>> (function = more, {rest}",
        "create operator class pairs default for type pair using btree as "
        "operator 1 <<<, operator 3 ===, operator 5 >>>, "
        "function 1 compared(pair, pair)",
    )


def label_of(body):
    return "volatile" if "bump" in body else "stable"


# What a test is called: what is made, what is asked, the statement that calls
HIDDEN_CALLS = {
    "function": ((), of_function("bump"), "select bump()"),
    "nextval": ((), of_function("nextval"), "select nextval('bumps')"),
    "one overload of two": (
        (
            function("either(text)", "1", "stable"),
            function("either(int)", "bump()"),
        ),
        of_function("either"),
        "select either(1)",
    ),
    "later schema of the search path": (
        (
            "create schema later",
            "set local search_path to public, later",
            function("either(text)", "1", "stable"),
            function("later.either(int)", "bump()"),
        ),
        of_function("either"),
        "select either(1)",
    ),
    "schema out of the search path": (
        ("create schema later", function("later.hop()", "bump()")),
        of_function("hop", "later"),
        "select later.hop()",
    ),
    "quoted name with a dot": (
        (
            'create schema "My.Schema"',
            function('"My.Schema"."Hop.it"()', "bump()"),
        ),
        of_function("Hop.it", "My.Schema"),
        'select "My.Schema"."Hop.it"()',
    ),
    "default of an argument": (
        (function("f(x bigint = bump())", "x", "stable"),),
        of_function("f"),
        "select f()",
    ),
    "operator in a default": (
        (
            *PLUS,
            function(
                "f(x bigint = row(1, 2)::pair ### row(1, 2)::pair)",
                "x",
                "stable",
            ),
        ),
        of_function("f"),
        "select f()",
    ),
    "state function of an aggregate": (
        (
            STEP,
            "create aggregate total(bigint) (sfunc = step, stype = bigint, "
            "initcond = '0')",
        ),
        of_function("total"),
        "select total(id) from book",
    ),
    "final function of an aggregate": (
        (
            function("final(bigint)", "bump()"),
            "create aggregate total(bigint) (sfunc = int8pl, stype = bigint, "
            "finalfunc = final, initcond = '0')",
        ),
        of_function("total"),
        "select total(id) from book",
    ),
    "moving state function of an aggregate": (
        (STEP, BACK, MOVING_AGGREGATE),
        of_function("total"),
        MOVING,
    ),
    "inverse function of an aggregate": (
        (
            function("step(bigint, bigint)", "$1 + $2", "immutable"),
            function("back(bigint, bigint)", "bump()"),
            MOVING_AGGREGATE,
        ),
        of_function("total"),
        MOVING,
    ),
    "view": (
        ("create view v as select bump()",),
        of_relation("v"),
        "select * from v",
    ),
    "view of nextval": (
        (
            "create view v as select id from book "
            "where exists (with x as (select nextval('bumps')) select from x)",
        ),
        of_relation("v"),
        "select * from v",
    ),
    "view of a view of a view": (
        (
            "create view v1 as select bump()",
            "create view v2 as select * from v1",
            "create view v3 as select * from book, (select * from v2) x",
        ),
        of_relation("v3"),
        "select * from v3",
    ),
    "view of an operator": (
        (*PLUS, "create view v as select row(1, 2)::pair ### row(3, 4)::pair"),
        of_relation("v"),
        "select * from v",
    ),
    "view of an operator and ANY": (
        (
            function("same(pair, pair)", "bump() > 0", returns="bool"),
            "create operator === (function = same, leftarg = pair, "
            "rightarg = pair)",
            "create view v as "
            "select row(1, 2)::pair === any(array[row(3, 4)::pair])",
        ),
        of_relation("v"),
        "select * from v",
    ),
    "view of an aggregate": (
        (
            STEP,
            "create aggregate total(bigint) (sfunc = step, stype = bigint, "
            "initcond = '0')",
            "create view v as select total(id) from book",
        ),
        of_relation("v"),
        "select * from v",
    ),
    "view of an aggregate over a window": (
        (
            STEP,
            "create aggregate total(bigint) (sfunc = step, stype = bigint, "
            "initcond = '0')",
            "create view v as select total(id) over () from book",
        ),
        of_relation("v"),
        "select * from v",
    ),
    "view of a default": (
        (
            function("f(x bigint = bump())", "x", "stable"),
            "create view v as select f()",
        ),
        of_relation("v"),
        "select * from v",
    ),
    "view of a table function": (
        ("create view v as select * from bump()",),
        of_relation("v"),
        "select * from v",
    ),
    "view with a cast to a domain": (
        (BUMPED_INT, "create view v as select id::bumped from book"),
        of_relation("v"),
        "select * from v",
    ),
    "view with a cast by input and output to a domain": (
        (
            BUMPED_INT,
            "insert into book values (3, '3')",
            "create view v as select title::bumped from book where id = 3",
        ),
        of_relation("v"),
        "select * from v",
    ),
    "view with a column definition list": (
        (
            BUMPED_INT,
            "create view v as select * from "
            "jsonb_to_recordset('[{\"a\": 1}]') as x(a bumped)",
        ),
        of_relation("v"),
        "select * from v",
    ),
    "view that populates a record": (
        (
            BUMPED_INT,
            "create type wrapped as (a bumped[])",
            "create view v as select jsonb_populate_record(null::wrapped, "
            "'{\"a\": [1]}')",
        ),
        of_relation("v"),
        "select * from v",
    ),
    "populating the row of a table": (
        (
            BUMPED_INT,
            "create table shelf (a bumped)",
            "insert into shelf values (1)",
        ),
        of_function("jsonb_populate_record"),
        "select jsonb_populate_record(s, '{\"a\": 1}') from shelf s",
    ),
    "operator": (
        PLUS,
        of_operator("###"),
        "select row(1, 2)::pair ### row(3, 4)::pair",
    ),
    "one operator of many with its symbol": (
        (
            PLUS[0],
            "create operator + "
            "(function = plus, leftarg = pair, rightarg = pair)",
        ),
        of_operator("+"),
        "select row(1, 2)::pair + row(3, 4)::pair",
    ),
    "prefix operator": (
        (
            function("tick(pair)", "bump()"),
            "create operator !!! (function = tick, rightarg = pair)",
        ),
        of_operator("!!!"),
        "select !!! row(1, 2)::pair",
    ),
    "domain": ((BUMPED_INT,), of_cast("bumped"), "select 1::bumped"),
    "function of a domain": (
        (
            BUMPED_INT,
            "create function takes(bumped) returns int immutable "
            "language plpgsql as $$ begin return 1; end $$",
        ),
        of_function("takes"),
        "select takes(1)",
    ),
    "function that gives a domain": (
        (
            BUMPED_INT,
            "create function gives(int) returns bumped immutable "
            "language plpgsql as $$ begin return $1; end $$",
        ),
        of_function("gives"),
        "select gives(1)",
    ),
    "domain called like a function": (
        (function("bumped(text)", "1", "stable"), BUMPED_INT),
        of_function("bumped"),
        "select bumped(1)",
    ),
    "domain over a domain": (
        (BUMPED_INT, "create domain upper_bumped as bumped"),
        of_cast("upper_bumped"),
        "select 1::upper_bumped",
    ),
    "array of a domain": (
        (BUMPED_INT,),
        of_cast("bumped"),
        "select '{1}'::bumped[]",
    ),
    "composite of a domain": (
        (BUMPED_INT, "create type wrapped as (a bumped)"),
        of_cast("wrapped"),
        "select '(1)'::wrapped",
    ),
    "row of a table with a domain": (
        (BUMPED_INT, "create table shelf (a bumped)"),
        of_cast("shelf"),
        "select '(1)'::shelf",
    ),
    "range of a domain": (
        (BUMPED_INT, "create type bumped_range as range (subtype = bumped)"),
        of_cast("bumped_range"),
        "select '[1,2]'::bumped_range",
    ),
    "domain with an operator in its check": (
        (
            *PLUS,
            "create domain d as pair check ((value ### value) is not null)",
        ),
        of_cast("d"),
        "select row(1, 2)::pair::d",
    ),
    "cast": (
        (
            function("to_pair(int)", "row(bump(), 1)::pair", returns="pair"),
            "create cast (int as pair) with function to_pair(int)",
        ),
        of_cast("pair"),
        "select 1::pair",
    ),
    "cast to a domain over the target": (
        (
            function("to_pair(int)", "row(bump(), 1)::pair", returns="pair"),
            "create cast (int as pair) with function to_pair(int)",
            "create domain dpair as pair",
        ),
        of_cast("dpair"),
        "select 1::dpair",
    ),
    "cast from a type of PostgreSQL, by its other name": (
        (
            function("to_int(pair)", "bump()::int", returns="int"),
            "create cast (pair as int) with function to_int(pair)",
        ),
        of_cast("integer"),
        "select row(1, 2)::pair::integer",
    ),
    "implicit cast": (
        (
            function("to_int(pair)", "bump()::int", returns="int"),
            "create cast (pair as int) with function to_int(pair) as implicit",
        ),
        of_any,
        "select abs(row(1, 2)::pair)",
    ),
    "cast to json of to_json": (
        (
            "create type mood as enum ('fine')",
            function("as_json(mood)", "to_json(bump())", returns="json"),
            "create cast (mood as json) with function as_json(mood)",
        ),
        of_any,
        "select json_agg('fine'::mood)",
    ),
    "support function of an operator class": (
        operator_class(compared="bump()::int * 0 + $1.a - $2.a"),
        of_any,
        "select x from (values (row(2, 1)::pair), (row(1, 1)::pair)) y(x) "
        "order by x",
    ),
    "operator of an operator class": (
        operator_class(same="bump() > 0"),
        of_any,
        "select distinct x "
        "from (values (row(1, 1)::pair), (row(1, 1)::pair)) y(x)",
    ),
    "operator that IN writes": (
        (
            function("same(pair, int)", "bump() > 0", returns="bool"),
            "create operator = (function = same, leftarg = pair, "
            "rightarg = int)",
        ),
        of_any,
        "select row(1, 2)::pair in (1)",
    ),
    "field": ((BOOK_BUMP,), of_field("bump"), "select b.bump from book b"),
    "field of a parenthesis": (
        (BOOK_BUMP,),
        of_field("bump"),
        "select (b).bump from book b",
    ),
    "field by a set": (
        (function("f(book)", "bump()", returns="setof bigint"),),
        of_field("f"),
        "select b.f from book b",
    ),
    "field by a default": (
        (function("f(b book, n int = 1)", "bump()"),),
        of_field("f"),
        "select b.f from book b",
    ),
    "field by VARIADIC": (
        (function("f(variadic b book[])", "bump()"),),
        of_field("f"),
        "select b.f from book b",
    ),
    "field by anyelement": (
        (function("f(anyelement)", "bump()"),),
        of_field("f"),
        "select b.f from book b",
    ),
    "field by record": (
        (
            "create function f(record) returns bigint language plpgsql "
            "as $$ begin return bump(); end $$",
        ),
        of_field("f"),
        "select b.f from book b",
    ),
    "field by a domain": (
        ("create domain dbook as book", function("f(dbook)", "bump()")),
        of_field("f"),
        "select b.f from book b",
    ),
    "field by an aggregate": (
        (
            function("step(bigint, book)", "bump()"),
            "create aggregate f(book) (sfunc = step, stype = bigint)",
        ),
        of_field("f"),
        "select b.f from book b",
    ),
    "field by an implicit cast": (
        (
            function("to_inet(pair)", "'::1'::inet", "stable", "inet"),
            "create cast (pair as inet) with function to_inet(pair) "
            "as implicit",
            function("f(inet)", "bump()"),
        ),
        of_field("f"),
        "select (row(1, 2)::pair).f",
    ),
    "input that is told its type": (
        (BUMPED_INT,),
        of_function("array_in"),
        "select array_in('{1}', 'bumped'::regtype, -1)",
    ),
}


@pytest.mark.parametrize("case", HIDDEN_CALLS)
def test_hidden_call_is_no_read(database, case):
    made, asked, statement = HIDDEN_CALLS[case]
    database.run(*BUMP, *made)
    assert database.has_bumped(statement)
    need = asked(database.read())
    assert not need.is_read
    assert need.because
    assert not need.unknown


# Each has something of the above, and reads
READS = {
    "immutable function": (
        (function("f()", "1", "immutable"),),
        of_function("f"),
    ),
    "stable function": ((function("f()", "1", "stable"),), of_function("f")),
    "aggregate": (
        ("create aggregate total(bigint) (sfunc = int8pl, stype = bigint)",),
        of_function("total"),
    ),
    "default of an argument": (
        (function("f(x text = lower('A') || 'b')", "1", "stable"),),
        of_function("f"),
    ),
    "harmless volatile function": ((), of_function("clock_timestamp")),
    "table": ((), of_relation("book")),
    "partitioned table": (
        (
            "create table p (id int) partition by range (id)",
            "create table p1 partition of p default",
        ),
        of_relation("p"),
    ),
    "view": (
        (
            "create view v as select lower(title), count(*) over (), now() "
            "from book where id = any(array[1, 2]) order by 1",
        ),
        of_relation("v"),
    ),
    "view of a table sample": (
        ("create view v as select * from book tablesample system (10)",),
        of_relation("v"),
    ),
    "view of a domain's column": (
        (
            BUMPED_INT,
            "create table shelf (a bumped)",
            "create view v as select a from shelf",
        ),
        of_relation("v"),
    ),
    "materialized view": (
        ("create materialized view m as select bump()",),
        of_relation("m"),
    ),
    "policy that isn't enabled": (
        ("create policy p on book using (bump() > 0)",),
        of_relation("book"),
    ),
    "policy of a write": (
        (
            "create policy p on book for insert with check (bump() > 0)",
            "create policy q on book for update using (bump() > 0)",
            "alter table book enable row level security",
        ),
        of_relation("book"),
    ),
    "system view": ((), of_relation("pg_stat_activity")),
    "information schema": ((), of_relation("columns", "information_schema")),
    "operator": ((), of_operator("||")),
    "domain": (("create domain d as text check (value <> '')",), of_cast("d")),
    "type": ((), of_cast("uuid")),
    "type with a space": ((), of_cast("double precision")),
    "row of a table": ((), of_cast("book")),
    "implicit cast": (
        (
            function("to_int(pair)", "$1.a", "stable", "int"),
            "create cast (pair as int) with function to_int(pair) as implicit",
        ),
        of_any,
    ),
    "explicit cast": (
        (
            function("to_text(pair)", "bump()::text", returns="text"),
            "create cast (pair as text) with function to_text(pair)",
        ),
        of_any,
    ),
    "field": ((), of_field("title")),
    "field of a value": ((function("slug(text)", "bump()"),), of_field("slug")),
    "field of two arguments": (
        (function("f(book, int)", "bump()"),),
        of_field("f"),
    ),
    "nothing implicit": ((), of_any),
}


@pytest.mark.parametrize("case", READS)
def test_is_a_read(database, case):
    made, asked = READS[case]
    database.run(*BUMP, *made)
    assert asked(database.read()) is READ


UNKNOWN = {
    "function": of_function("bumb"),
    "function in a schema": of_function("lower", "public"),
    "function out of the search path": of_function("hop"),
    "relation": of_relation("boook"),
    "relation in a schema": of_relation("book", "pg_catalog"),
    "relation out of the search path": of_relation("shelf"),
    "temporary table": of_relation("draft"),
    "temporary table in its schema": of_relation("draft", "pg_temp"),
    "operator": of_operator("###"),
    "type": of_cast("boook"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_is_not_known(database, case):
    database.run(
        *BUMP,
        "create schema later",
        function("later.hop()", "1"),
        "create table later.shelf ()",
        "create temporary table draft ()",
    )
    need = UNKNOWN[case](database.read())
    assert need.kind is Kind.UNPROVEN
    assert need.unknown


def test_reason_names_the_function(database):
    database.run(*BUMP, "create schema later", function("later.hop()", "1"))
    catalogue = database.read()
    assert of_function("bump")(catalogue).because == (
        "function bump() is volatile"
    )
    assert of_function("hop", "later")(catalogue).because == (
        "function later.hop() is volatile"
    )
    assert of_function("pg_walfile_name")(catalogue).because == (
        "function pg_walfile_name() is refused by a standby"
    )


def test_reason_says_how_it_is_called(database):
    database.run(
        *BUMP,
        "create view v1 as select nextval('bumps')",
        "create view v2 as select * from v1",
    )
    need = database.read().need_of_relation("v2")
    assert need.because == (
        "view v2: view v1: function nextval() writes or locks"
    )
    assert need.kind is Kind.WRITE


def test_reason_of_a_cast_is_the_types(database):
    database.run(*BUMP, BUMPED_INT, "create type wrapped as (a bumped)")
    catalogue = database.read()
    assert catalogue.need_of_cast("bumped").because == (
        "type bumped: function bump() is volatile"
    )
    assert catalogue.need_of_cast("wrapped").because == (
        "type wrapped: type bumped: function bump() is volatile"
    )


# PostgreSQL 17 has them.
SQL_JSON = {
    "RETURNING": "json_value('1', '$' returning bumped)",
    "JSON_TABLE": "(select a from json_table('1', '$' "
    "columns (a bumped path '$')) x)",
    "JSON_QUERY": "json_query('1', '$' returning bumped)",
}


@pytest.mark.parametrize("case", SQL_JSON)
def test_view_of_sql_json_is_no_read(database, case):
    if database.run("show server_version_num").scalar() < "170000":
        pytest.skip("newer than this server")

    view = f"create view v as select {SQL_JSON[case]} as a"
    database.run(*BUMP, BUMPED_INT, view)
    assert database.has_bumped("select * from v")
    assert not database.read().need_of_relation("v").is_read


def test_view_of_xmltable_is_no_read(database):
    database.run(*BUMP, BUMPED_INT, "savepoint s")
    try:
        database.run("select xml '<a/>'")
    except DBAPIError:
        pytest.skip("built without XML")

    database.run(
        "create view v as select a from xmltable('/a' passing "
        "xml '<a>1</a>' columns a bumped path '.')"
    )
    assert database.has_bumped("select * from v")
    assert not database.read().need_of_relation("v").is_read


def test_cast_that_may_not_be_meant_is_only_unproven(database):
    database.run(
        *BUMP,
        function("to_pair(int)", "row(1, 1)::pair", "stable", "pair"),
        "create cast (int as pair) with function to_pair(int)",
    )
    need = database.read(write_functions={"to_pair"}).need_of_cast("pair")
    assert need.kind is Kind.UNPROVEN
    assert need.because == (
        "cast to pair: function to_pair() is declared to write"
    )


def test_input_is_a_read_where_no_check_may_write(database):
    database.run("create domain d as text check (value <> '')")
    catalogue = database.read()
    assert catalogue.need_of_function("json_populate_record") is READ


def test_temporary_table_is_not_known_by_its_schema(database):
    database.run("create temporary table draft ()")
    schema = database.run(
        "select relnamespace::regnamespace::text from pg_class "
        "where relname = 'draft'"
    ).scalar()
    assert database.read().need_of_relation("draft", schema).unknown


def test_what_is_known_to_write_is_said_first(database):
    database.run(
        *BUMP, "create view v as select bump(), pg_try_advisory_lock(1)"
    )
    assert database.read().need_of_relation("v").kind is Kind.WRITE


def test_view_that_locks_is_a_write(database):
    database.run(
        *BUMP, "create view v as select * from (select * from book for share) x"
    )
    need = database.read().need_of_relation("v")
    assert need.kind is Kind.WRITE
    assert need.because == "view v: FOR UPDATE or FOR SHARE"


def test_procedure_is_no_read(database):
    database.run("create procedure p() language sql as 'select 1'")
    need = database.read(read_functions={"p"}).need_of_function("p")
    assert need.because == "function p() is a procedure"


def test_policy_is_called_by_a_select(database):
    database.run(
        *BUMP,
        "create view v as select bump() as id",
        "create policy p on book using (exists (select from v))",
        "alter table book enable row level security",
        "alter table book force row level security",
        "create view shelf as select * from book",
        "create role owner",
        "grant create on schema public to owner",
        "alter sequence bumps owner to owner",
        "alter table book owner to owner",
        "alter view v owner to owner",
        "set local role owner",
    )
    assert database.has_bumped("select * from book")
    catalogue = database.read()
    need = catalogue.need_of_relation("book")
    assert need.because == "table book: view v: function bump() is volatile"
    assert not catalogue.need_of_relation("shelf").is_read


FOREIGN = (
    "create foreign data wrapper w",
    "create server s foreign data wrapper w",
)


def test_foreign_table_is_no_read(database):
    database.run(*FOREIGN, "create foreign table far (id int) server s")
    need = database.read().need_of_relation("far")
    assert need.because == "foreign table far is on another server"


def test_foreign_partition_is_no_read(database):
    database.run(
        *FOREIGN,
        "create table p (id int) partition by range (id)",
        "create foreign table far partition of p default server s",
    )
    need = database.read().need_of_relation("p")
    assert need.because == ("table p: foreign table far is on another server")


def test_unlogged_child_is_no_read(database):
    database.run(
        "create table parent ()",
        "create unlogged table child () inherits (parent)",
    )
    assert database.read().need_of_relation("parent").because == (
        "table parent: table child is unlogged: a standby doesn't have it"
    )


def test_sequence_is_no_read(database):
    database.run(*BUMP)
    need = database.read().need_of_relation("bumps")
    assert need.because == "sequence bumps is ahead of itself on a standby"


def test_first_relation_of_the_search_path_is_meant(database):
    database.run(
        *BUMP,
        "create schema first",
        "create view first.book as select bump()",
        "create view pg_class as select bump()",
        "set local search_path to first, public",
    )
    catalogue = database.read()
    assert catalogue.search_path == ("pg_catalog", "first", "public")
    assert not catalogue.need_of_relation("book").is_read
    assert catalogue.need_of_relation("book", "public").is_read
    assert catalogue.need_of_relation("pg_class").is_read


def test_schema_of_temporary_tables_is_not_in_the_search_path(database):
    database.run("create temporary table book ()")
    assert database.read().search_path == ("pg_catalog", "public")


def test_overload_that_may_not_be_meant_is_only_unproven(database):
    database.run(
        *BUMP,
        "create schema first",
        function("first.nextval(pair)", "1", "stable"),
        "set local search_path to first, public",
    )
    catalogue = database.read()
    assert catalogue.need_of_function("nextval").kind is Kind.UNPROVEN
    assert (
        catalogue.need_of_function("nextval", "pg_catalog").kind is Kind.WRITE
    )


@pytest.mark.parametrize("name", ["bump", "public.bump"])
def test_function_of_the_users_list_is_a_read(database, name):
    database.run(*BUMP, "create view v as select bump()")
    catalogue = database.read(read_functions={name})
    assert catalogue.need_of_function("bump") is READ
    assert catalogue.need_of_relation("v") is READ


def test_users_list_covers_what_a_function_is_made_of(database):
    database.run(*BUMP, function("f(x bigint = bump())", "x", "stable"))
    assert database.read(read_functions={"f"}).need_of_function("f") is READ


@pytest.mark.parametrize("name", ["f", "public.f"])
def test_function_of_the_users_other_list_is_a_write(database, name):
    database.run(
        function("f()", "1", "immutable"), "create view v as select f()"
    )
    catalogue = database.read(read_functions={"f"}, write_functions={name})
    need = catalogue.need_of_function("f")
    assert need.kind is Kind.WRITE
    assert need.because == "function f() is declared to write"
    assert catalogue.need_of_relation("v").kind is Kind.WRITE


def test_users_list_names_the_schema(database):
    database.run(*BUMP)
    catalogue = database.read(read_functions={"other.bump"})
    assert not catalogue.need_of_function("bump").is_read


def test_an_ordinary_role_reads_the_same(database):
    database.run(*BUMP, "create view v as select bump()", "create role reader")
    before = database.read()
    database.run("set local role reader")
    with pytest.raises(DBAPIError, match="permission denied"):
        database.run("savepoint s", "select * from book")

    database.run("rollback to s")
    assert database.read() == before


def test_standby_says_the_same(database, standby):
    assert standby.read() == database.read()


def test_nothing_is_changed(database):
    database.run("set transaction read only")
    database.read()
    assert database.run("select txid_current_if_assigned()").scalar() is None


def test_nothing_of_postgresql_itself_is_called_implicitly(database):
    """What a query of the module takes for granted, below its first OID"""
    names = database.run(
        "with harmful as (select oid from pg_proc where provolatile = 'v' "
        "and oid < 16384) "
        "select castfunc::regproc::text from pg_cast "
        "where castfunc in (select oid from harmful) "
        "union all select aggfnoid::text from pg_aggregate, "
        "unnest(array[aggtransfn, aggfinalfn, aggcombinefn, aggserialfn, "
        "aggdeserialfn, aggmtransfn, aggminvtransfn, aggmfinalfn]) part "
        "where part in (select oid from harmful) "
        "union all select oprname::text from pg_operator "
        "where oprcode in (select oid from harmful) "
        "union all select amproc::text from pg_amproc "
        "where amproc in (select oid from harmful) "
        "union all select typname::text from pg_type where typinput in "
        "(select oid from harmful) or typoutput in (select oid from harmful)"
    ).all()
    assert names == []


def test_is_read_in_a_moment(database):
    """In 0.05 s, most of it the server's; only this process's is asked"""
    database.run(*BUMP)
    database.read()
    start = process_time()
    database.read()
    assert process_time() - start < 0.5
