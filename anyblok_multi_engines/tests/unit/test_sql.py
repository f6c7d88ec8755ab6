# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What SQL as a text needs, of a catalogue made by hand."""

import logging
import sys
import time

import pytest

from anyblok_multi_engines.routing.catalogue import Catalogue
from anyblok_multi_engines.routing.need import READ, Kind, Need
from anyblok_multi_engines.routing.sql import (
    MAX_TOKENS,
    Unreadable,
    need_of_sql,
    statements_of,
)

FUNCTIONS = """
abs age array_agg array_length avg bool_and bool_or btrim cardinality char
char_length clock_timestamp concat concat_ws count cume_dist current_database
current_schema current_setting date date_part date_trunc dense_rank encode
every extract first_value format gen_random_uuid generate_series host
int4range isempty json_agg json_to_record jsonb_array_elements
jsonb_build_object jsonb_path_query jsonb_to_recordset justify_days lag left
length like lower lpad make_date make_interval max md5 min mod mode now ntile
numrange overlaps overlay percentile_cont percentile_disc pg_typeof
plainto_tsquery point position power quote_ident random rank regexp_matches
regexp_replace replace right round row_number row_to_json sha256 split_part
sqrt string_agg substring sum timezone to_char to_jsonb to_tsquery to_tsvector
trunc ts_headline ts_rank tstzrange unistr unnest upper version
websearch_to_tsquery width_bucket
""".split()
TYPES = """
bit bool box bpchar bytea char circle date float4 float8 inet int int4 int8
int2 int4range integer interval json jsonb numeric point regclass text time
timestamp timestamptz timetz tsvector uuid varbit varchar
""".split()
OPERATORS = """
= <> < > <= >= + - * / % ^ || & | # ~ << >> -> ->> #> #>> #- @> <@ ? ?| ?& @?
@@ @@@ && -|- <-> ~~ !~~ ~~* !~~* !~ ~* !~* |/ @ ^@ @- <<|
""".split()
RELATIONS = "book shelf doc odd book_view".split()


def writes(what):
    return Need(Kind.WRITE, f"{what} writes")


def unproven(what):
    return Need(Kind.UNPROVEN, f"{what} is volatile")


CATALOGUE = Catalogue(
    search_path=("pg_catalog", "public"),
    functions={
        **{("pg_catalog", name): READ for name in FUNCTIONS},
        ("pg_catalog", "nextval"): writes("nextval()"),
        ("pg_catalog", "pg_advisory_lock"): writes("pg_advisory_lock()"),
        ("pg_catalog", "setval"): writes("setval()"),
        ("public", "charge"): unproven("charge()"),
        ("public", "first"): READ,
        ("public", 'a"b.c'): unproven("a function"),
        ("sales", "lower"): unproven("sales.lower()"),
    },
    relations={
        **{("public", name): READ for name in RELATIONS},
        ("pg_catalog", "pg_class"): READ,
        ("pg_catalog", "pg_namespace"): READ,
        ("information_schema", "tables"): READ,
        ("public", "ticket"): unproven("ticket"),
        ("sales", "ticket"): unproven("sales.ticket"),
    },
    operators={
        **dict.fromkeys(OPERATORS, READ),
        "@-@": writes("@-@"),
    },
    types={**dict.fromkeys(TYPES, READ), "checked": unproven("checked")},
    fields={"charge": unproven("charge()")},
)

READS = r"""
select 1
select 1;
(select 1);;
select
select * from book
select b.title as "The Title", b.copies + 1 from public.book as b where b.id = 1
select count(*) from only book
select * from book *
table book
table public.book order by 1 limit 2
values (1, 'a'), (2, 'b')
values (1), (2) order by 1 desc limit 1 offset 1
(select 1) union all (select 2) order by 1
select 1 union select 2 intersect select 2 except all select 3
select 1 where exists (select 1 from book) and not exists (select 1 from shelf)
select row_number() over (partition by x order by y desc nulls last) from book
select sum(copies) over w, avg(copies) over (w rows between 1 preceding and current row) from book window w as (partition by shelf_id order by id)
select sum(copies) over (order by id range between unbounded preceding and unbounded following exclude ties) from book
select sum(copies) over (order by id groups between 1 preceding and 1 following) from book
select lag(title, 1) over (order by id), first_value(title) over () from book
select ntile(4) over (order by id), cume_dist() over w from book window w as (order by id)
select s.id, x.n from shelf s, lateral (select count(*) as n from book b where b.shelf_id = s.id) x
select s.id, x.n from shelf s left join lateral (select 1 as n) x on true
select * from shelf s cross join lateral generate_series(1, s.id) g
with recursive t(n) as (values (1) union all select n + 1 from t where n < 10) select sum(n) from t
with recursive t(n) as (select 1 union all select n+1 from t) search depth first by n set o cycle n set is_cycle using path select * from t
with a as materialized (select 1), b as not materialized (select 2) select * from a, b
with a(x, y) as (select 1, 2) select a.x from a
with x as (values (1)) table x
select data -> 'a', data ->> 'a', data #> '{a,b}', data #>> '{a,b}' from doc
select * from doc where data @> '{"a": 1}' and data ? 'a' and data ?| array['a'] and data ?& array['a', 'b']
select data || '{"b": 2}'::jsonb, data - 'a', data #- '{a}' from doc
select data @? '$.a', data @@ '$.a > 1' from doc
select data['a']['b'], data['a'] is null from doc
select jsonb_path_query(data, '$.a[*] ? (@ > 1)') from doc
select (data ->> 'n')::int + 1 from doc where (data -> 'a' ->> 'b')::boolean
select * from doc d, jsonb_to_recordset(d.list) as x(a int, b text)
select * from doc d cross join lateral jsonb_array_elements(d.list) with ordinality as e(value, position)
select * from json_to_record('{"a":1,"b":"x"}') as x(a integer, b varchar(10))
select jsonb_build_object('a', 1, 'b', array[1,2]), json_agg(b order by b.id) from book b
select '{"a":1}'::jsonb is json, json_object('a': 1), json_array(1, 2)
select array[[1,2],[3,4]], array(select id from book), '{1,2}'::int[], cast('{1}' as integer[]), cast('{1}' as int array)
select tags[1], tags[1:2], tags[:2], tags[2:] from doc
select (array_agg(id order by id))[1] from book
select * from unnest(array[1,2], array['a','b']) as u(n, t)
select * from doc where tags && array['a'] and 'a' = any(tags) and 'b' <> all(tags)
select * from book where id = any($1) and title like any($2) and copies in ($3, $4)
select to_tsvector('english', title) @@ to_tsquery('english', 'a & b') from book
select int4range(1, 10) @> 5, int4range(1,2) -|- int4range(2,3), '[1,2)'::int4range << '[3,4)'
select isempty(r) from (select tstzrange(now(), null, '[)') r) x
select * from generate_series('2020-01-01'::date, date '2020-02-01', '1 day') d
select * from generate_series(1, 3) with ordinality
select string_agg(title, ', ' order by title desc), string_agg(distinct title, ',') from book
select percentile_cont(0.5) within group (order by copies), mode() within group (order by title) from book
select distinct on (shelf_id) shelf_id, title from book order by shelf_id, id desc
select shelf_id, title, count(*) from book group by grouping sets ((shelf_id), (title), ())
select shelf_id, count(*), grouping(shelf_id) from book group by rollup (shelf_id, title)
select shelf_id, count(*) from book group by cube (shelf_id, title) having count(*) > 1
select * from book tablesample bernoulli (10)
select * from book tablesample system (10) repeatable (1)
select extract(year from now()), extract(epoch from timestamp '2020-01-01'), date_part('month', now())
select now() - interval '1 day', interval '1' day, interval '1-2' year to month, '1 hour'::interval
select now() at time zone 'UTC', timestamp '2020-01-01' at time zone $1
select current_date, current_time, current_timestamp(3), localtime, localtimestamp
select current_user, session_user, user, current_role, current_catalog, current_schema, current_database()
select title ~ '^a', title ~* 'A', title !~ 'b', title !~* 'B' from book
select title not like 'b%', title ilike 'A%', title not ilike '%x', title similar to '(a|b)%', title like 'a!%' escape '!' from book
select title ~~ 'a', title !~~ 'c', title ^@ 'a' from book
select 1::bigint, 1.5::numeric(10, 2), 'x'::varchar(10), 'x'::character varying, 'x'::"char", 1::double precision
select '2020-01-01'::timestamp without time zone, now()::timestamp(3) with time zone, cast(1 as decimal(3,1))
select title collate "C" from book order by title collate "C"
select "Book"."title", "Book".* from book as "Book"
select (1, 2) = (1, 2), row(1, 2) < row(1, 3), (1, 2) is distinct from (1, 3), row(1, null) is null
select * from book where (id, copies) in ((1, 2), (3, 4)) and (shelf_id, id) in (select id, id from shelf)
select * from book where id > all (select id from shelf) or id = some (select 1)
select * from book order by id fetch first 5 rows with ties
select * from book order by id offset 2 rows fetch next ($1) rows only
select * from book limit all offset 0
select * from book limit $1 offset $2
select $$it's$$, $tag$a $$ b$tag$, E'a\'b\n', U&'d\0061t', U&'!0061' uescape '!', N'x', B'101', X'1F'
select 'a' -- a comment; update
/* a /* nested */ comment; delete */ select /* x */ 1 -- ;
select pg_catalog.lower('A'), public.book.id from public.book
select case when copies > 1 then 'many' else 'none' end, case copies when 1 then 'a' end from book
select coalesce(title, ''), nullif(title, ''), greatest(1, 2, 3), least(1, 2) from book
select substring(title from 1 for 3), substring(title, 1, 2), position('a' in title), overlay(title placing 'x' from 1 for 2) from book
select trim(both 'x' from title), trim(title), left(title, 2), right(title, 2), replace(title, 'a', 'b') from book
select title || ' ', -copies, +copies, not true, copies % 2, 2 ^ 3, |/ 4, @ -5, 5 # 3, ~ 5, 1 << 2, 7 & 3 from book
select b.id from book b left outer join shelf s on b.shelf_id = s.id full join doc using (id) natural join shelf cross join shelf r
select * from (book b join shelf s on b.shelf_id = s.id) join doc on true
select * from (values (1, 'a'), (2, 'b')) as v(id, name)
select (x).f1, (x).* from (select row(1, 2) as x) y
select copies between 1 and 3, copies not between symmetric 3 and 1 from book
select title is not null, (copies > 1) is true, (copies > 1) is not unknown, title isnull from book
select count(*) filter (where copies > 1), count(distinct shelf_id), every(copies > 1) from book
select make_interval(days => 3), make_interval(hours := 2), concat(variadic array['a', 'b'])
select * from rows from (generate_series(1, 2), unnest(array['a'])) as x(a, b)
select relname from pg_catalog.pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = 'book'::regclass
select c.relname from pg_class c where c.relname operator(pg_catalog.~) '^(b)$' collate pg_catalog.default
select inet '10.0.0.1', point '(1,2)' <-> point '(3,4)', '(1,1)'::point <@ '((0,0),2)'::circle
select (date '2020-01-01', date '2020-02-01') overlaps (date '2020-01-15', interval '1 month')
select * from book where title = 'O''Brien' and id = 1e3 and copies < .5 and copies > 1_000 and id <> 0x1F
explain select * from book
explain (format json, costs off) select * from book
explain verbose select 1
show search_path
show transaction isolation level
select name, type, value, key, date, text, timestamp, time, year, "order", data, status, comment, index, position, level from odd
select first, last, next, row, rows, range, current, filter, over, zone, path, sets, escape, at, by, local, no, second from odd
select o.first, o.over, o.values, o.time, o.update from odd o
select 1 as first, 2 as values, 3 as update, 4 as select, 5 as "x y"
select 5 % 2, '100%', '%%', 'a%b', '\d+', '\\'
select*from book where id=-1 and copies>-2 or true
select élan, "É" from odd
select count(*)::int, sum(copies)::float8 / 2, (1 + 2)::text::int from book
select * from book where title = 'nextval(1)' or "nextval" = 2
""".strip().splitlines()  # noqa: E501
# A constant that goes on in the next line, and spaces of every kind
READS += ["select 'a'\n  'b'", "select\t1\r\n\f+\v1"]

# By the part of them that says so
WRITES = {
    "nextval() writes": r"""
select nextval('s')
select "nextval"('s')
select NextVal('s')
select pg_catalog . nextval ( 's' )
select "pg_catalog"."nextval"('s')
select nextval/* x */('s')
select /* /* nextval('s') */ */ nextval('s')
select 'a' /* ' */, nextval('s') /* ' */
select E'a\'' , nextval('s') --'
select E'a\\' , nextval('s') --'
select $a$ $b$ $a$ , nextval('s') , $a$ $b$ $a$
select $a$ $A$ $a$ , nextval('s')
select $$ ' $$, nextval('s'), $$ ' $$
select '--', nextval('s')
select "--", "/*", nextval('s')
select U&'\0041', nextval('s'), b'0', nextval('s')
select 1/* */+/**/nextval('s')
select 1 # nextval('s')
select 1 union select nextval('s')
select 1 order by nextval('s')
select 1 limit nextval('s')
select 1 offset nextval('s')
select 1 fetch first (nextval('s')) rows only
select sum(1) over (partition by nextval('s'))
select sum(1) over (order by 1 rows between nextval('s') preceding and current row)
select sum(1) filter (where nextval('s') > 1)
select mode() within group (order by nextval('s'))
select string_agg('a', 'b' order by nextval('s'))
select 1 group by grouping sets ((nextval('s')))
select distinct on (nextval('s')) 1
select case when true then nextval('s') end
select (array[nextval('s')])[nextval('s')]
select * from nextval('s') with ordinality
select * from rows from (generate_series(1,2), nextval('s'))
select * from book, lateral nextval('s')
select * from book b join book c on nextval('s') > 1
select * from book tablesample bernoulli (nextval('s'))
values (nextval('s'))
with x as (select nextval('s')) select 1
with recursive t(n) as (values (1) union all select nextval('s') from t) select * from t
with nextval(a) as (select 1) select * from nextval
select (((select (select coalesce(row(nextval('s')))))))
select extract(year from nextval('s'))
select position('a' in nextval('s'))
select concat(variadic array[nextval('s')])
select make_interval(days => nextval('s'))
select ('s'::regclass).nextval
select x.nextval from unnest(array['s'::regclass]) as x
select xmlelement(name foo, nextval('s'))
explain select nextval('s')
""",  # noqa: E501
    "setval() writes": "select setval('s', 1)",
    "pg_advisory_lock() writes": "select pg_advisory_lock(1)",
    "@-@ writes": "select @-@ '1'\nselect 1 operator(pg_catalog.@-@) 2",
    "FOR UPDATE or FOR SHARE": """
select 1 from book for update
select 1 from book FOR/**/SHARE
select 1 from book for no key update of book nowait
select 1 from book for key share skip locked
(select 1 from book limit 1) for update
select 1 from (select 1 from book for update) x
select 1 where exists (select 1 from book for share)
with x as (select 1 from book for update) select * from x
""",
    "SELECT INTO": """
select 1 into x
select 1 into temp x from book
""",
    "INSERT": "insert into book values (1)",
    "UPDATE": "update book set id = 1\nselect 1; update book set id = 1",
    "DELETE": "delete from book",
    "MERGE": "merge into book using shelf on true when matched then delete",
    "TRUNCATE": "truncate book",
    "LOCK": "lock book",
    "NOTIFY": "notify x",
    "LISTEN": "listen x",
    "CREATE": "create table x as select 1",
    "DROP": "show all; drop table x",
    "REFRESH": "refresh materialized view x",
    "VACUUM": "vacuum",
    "INSERT inside": """
with x as (insert into book values (1) returning *) select * from x
with x as (select 1) insert into book select * from x
""",
    "UPDATE inside": """
with x as (update book set id = 1 returning *) select * from x
explain analyze update book set id = 1
""",
    "DELETE inside": """
with x as (with y as (delete from book returning 1) select 1) select 1
with x as (select 1) delete from book
""",
    "MERGE inside": """
with x as (merge into book using shelf on true when matched then delete) select 1
""",  # noqa: E501
}
UNPROVEN = {
    "charge() is volatile": """
select charge(1)
select charge(x => 1)
select public.charge(1)
select book.charge from book
select b.charge from book b
select (book).charge from book
select (select b from book b).charge
""",
    "a function is volatile": 'select "a""b.c"()',
    "sales.lower() is volatile": "select sales.lower('x')",
    "ticket is volatile": """
select * from ticket
select * from public."ticket"
select * from only ticket
select * from only (ticket)
table ticket
select * from book, ticket
select * from book natural join ticket
select * from (book cross join ticket)
select (select 1 from ticket)
with ticket as (select 1) select * from ticket
select 1 from book semi join ticket on true
""",
    "sales.ticket is volatile": "select * from sales.ticket",
    "checked is volatile": """
select 1::checked
select '{1}'::public.checked[]
select cast(1 as checked)
select checked '1'
select checked('1')
select * from json_to_record('{}') as x(a checked)
""",
    "can't be read from": r"""
select U&"\006Eextval"('s')
select 'a\' , nextval('s') --'
select {# nextval('s') #} 1
select 1 'x
select $a$ x
select 1nextval('s')
""",
    "a comment has no end": "select 1 /* /* */",
    "the name 'É' may be folded": "select É()",
    "longer than 63 bytes": f"select {'x' * 64}",
    "OPERATOR() of a schema": "select 1 operator(public.+) 2",
    "2 statements in one string": "select 1; select 2",
    "no statements in one string": "-- nothing\n;\n",
    "EXPLAIN ANALYZE runs the statement": """
explain analyze select 1
explain (analyze) select 1
explain (verbose, analyze false) select 1
EXPLAIN/**/ANALYSE VERBOSE select 1
""",
    "EXPLAIN of what is not a SELECT": "explain execute p",
    "TREAT": "select treat(1 as int)",
    "a type is modified by an expression": "select 1::new(lower('x'))",
    "a parenthesis has no end": "select 1::new(1",
    "can't be parsed": """
select 1 from
select 1 from book for read only
select from from
""",
    "CALL is not a SELECT": "call p()",
    "COPY is not a SELECT": "copy (select 1) to stdout",
    "DECLARE is not a SELECT": "declare c cursor for select 1",
    "DISCARD is not a SELECT": "discard all",
    "DO is not a SELECT": "do $$ begin end $$",
    "EXECUTE is not a SELECT": "execute p",
    "FETCH is not a SELECT": "fetch c",
    "PREPARE is not a SELECT": "prepare p as select 1",
    "RESET is not a SELECT": "reset all",
    "SAVEPOINT is not a SELECT": "savepoint x",
    "SET is not a SELECT": "set search_path to x",
}
UNKNOWN = {
    "function new() is not known": """
select new()
select * from book, new(1) as x(a, b)
select new(1) over ()
""",
    "function sales.new() is not known": "select sales.new()",
    "relation new is not known": """
select * from new
select 1 from book where exists (select 1 from new)
""",
    "relation sales.book is not known": "select * from sales.book",
    "type new is not known": """
select 1::new
select new '1'
select cast(1 as new array)
select * from json_to_record('{}') as x(a new)
""",
    "operator ~~~ is not known": "select 1 ~~~ 2",
}


def cases(table):
    return [
        (sql, because)
        for because, statements in table.items()
        for sql in statements.strip("\n").splitlines()
        if sql
    ]


@pytest.mark.parametrize("sql", READS)
def test_plain_read(sql):
    need = need_of_sql(sql, CATALOGUE)
    assert need.is_read, need.because


@pytest.mark.parametrize(("sql", "because"), cases(WRITES))
def test_write(sql, because):
    assert need_of_sql(sql, CATALOGUE) == Need(Kind.WRITE, because)


@pytest.mark.parametrize(("sql", "because"), cases(UNPROVEN))
def test_not_proven(sql, because):
    need = need_of_sql(sql, CATALOGUE)
    assert need.kind is Kind.UNPROVEN
    assert because in need.because
    assert not need.unknown


@pytest.mark.parametrize(("sql", "because"), cases(UNKNOWN))
def test_unknown_name(sql, because):
    assert need_of_sql(sql, CATALOGUE) == Need(
        Kind.UNPROVEN, because, unknown=True
    )


def test_a_line_comment_ends_with_the_line():
    for end in "\n\r":
        need = need_of_sql(f"select 1 -- x{end}, nextval('s')", CATALOGUE)
        assert need.kind is Kind.WRITE

    for not_an_end in "\v\f\u2028\x85":
        need = need_of_sql(f"select 1 -- x{not_an_end}, nextval()", CATALOGUE)
        assert need.is_read


def test_a_constant_goes_on_in_the_next_line_by_its_own_rules():
    sql = "select E'a'\n'\\', nextval('s') --'"
    assert not need_of_sql(sql, CATALOGUE).is_read


@pytest.mark.parametrize("space", ["\0", "\u00a0", "\u3000", "\x7f", "\x1c"])
def test_what_is_no_space_for_postgresql_is_none_here(space):
    need = need_of_sql(f"select{space}1 from{space}book", CATALOGUE)
    assert not need.is_read


def test_what_may_end_at_a_nul_is_no_read():
    assert not need_of_sql("select 'a\0b'", CATALOGUE).is_read


def test_a_write_is_told_before_what_is_only_not_proven():
    sql = "select new(), charge(1), nextval('s') from ticket, new"
    assert need_of_sql(sql, CATALOGUE).because == "nextval() writes"


def test_an_unknown_name_is_told_last():
    sql = "select new(), charge(1) from new"
    assert need_of_sql(sql, CATALOGUE) == unproven("charge()")


def test_a_write_is_told_of_what_can_not_be_parsed():
    sql = "select nextval('s') from book for read only"
    assert need_of_sql(sql, CATALOGUE).kind is Kind.WRITE


def test_what_every_statement_needs_counts():
    catalogue = Catalogue(
        operators=CATALOGUE.operators, implicit=unproven("a cast")
    )
    assert need_of_sql("select 1", catalogue) == unproven("a cast")


def test_an_operator_is_cut_as_postgresql_cuts_it():
    def operators(sql):
        (tokens,) = statements_of(sql)
        return [x.text for x in tokens if x.kind == "operator"]

    assert operators("1=-1") == ["=", "-"]
    assert operators("1@-1") == ["@-"]
    assert operators("1+++1") == ["+", "+", "+"]
    assert operators("1<>-/* + */+1!=2") == ["<>", "-", "+", "<>"]
    assert operators("1*--x\n-1") == ["*", "-"]


def test_a_name_is_folded_as_postgresql_folds_it():
    (tokens,) = statements_of('ABC "ABC" "a""B" éa "É" _a$1')
    names = [token.text for token in tokens]
    assert names == ["abc", "ABC", 'a"B', "éa", "É", "_a$1"]


def test_an_operator_without_end_is_refused_at_once():
    with pytest.raises(Unreadable):
        statements_of("select " + "+" * 1_000_000)


@pytest.mark.parametrize(
    "sql",
    [
        "select 1 where 1 in (" + "1, " * 350_000 + "1)",
        "select '" + "x''" * 350_000 + "'",
        "select '" + "x''" * 350_000,
        "select 1 /*" + "/* */" * 200_000,
        "select " + "$a$ " * 250_001,
        "select 1 " + "+1 " * 350_000,
        "select 1 from book" + " join book" * 2_000 + " on true" * 2_000,
    ],
    ids="in string open_string comment dollars terms joins".split(),
)
def test_a_long_text_is_decided_soon(sql):
    start = time.monotonic()
    need_of_sql(sql, CATALOGUE)
    assert time.monotonic() - start < 2.0


@pytest.mark.parametrize(
    "sql",
    [
        "select " + "(" * MAX_TOKENS,
        "select " + "(" * 4_000 + "1" + ")" * 4_000,
        "select " + "not " * 9_000 + "true",
        "select " + "- " * 9_000 + "1",
        "select " + "case when true then " * 2_000 + "1" + " end" * 2_000,
        "select " + "array[" * 3_000,
    ],
)
def test_what_is_nested_too_deep_is_no_read(sql):
    before = sys.getrecursionlimit()
    assert need_of_sql(sql, CATALOGUE).kind is Kind.UNPROVEN
    assert sys.getrecursionlimit() == before


def test_the_parser_logs_nothing(caplog):
    caplog.set_level(logging.DEBUG)
    for sql in READS:
        need_of_sql(sql, CATALOGUE)

    for sql, _ in (*cases(WRITES), *cases(UNPROVEN), *cases(UNKNOWN)):
        need_of_sql(sql, CATALOGUE)

    assert caplog.records == []
