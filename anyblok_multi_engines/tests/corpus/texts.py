# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""SQL as an application writes it: reads, and what looks like one."""

from sqlalchemy import text

# Reads: a standby runs each, and nothing is left of it.
READS = {
    "one column": "SELECT title FROM book",
    "everything": "SELECT * FROM book",
    "in lower case": "select id, title from book where copies > 1",
    "in any case, over lines": "SeLeCt\n\tid,\r\n title\nFrOm\n  book\n;",
    "with a semicolon": "SELECT title FROM book;",
    "with a schema": "SELECT b.title FROM public.book AS b",
    "of a row": "SELECT b FROM book b",
    "fields of a row": "SELECT (b).title, b.* FROM book b",
    "no table": "SELECT 1",
    "no column": "SELECT FROM book",
    "empty list exists": "SELECT EXISTS (SELECT FROM book WHERE copies > 1)",
    "bind parameter": text(
        "SELECT title FROM book WHERE copies >= :least AND title <> :title"
    ).bindparams(least=1, title="x"),
    "cast bind parameter": text(
        "SELECT CAST(:day AS date) + 1, :n ::integer"
    ).bindparams(day="2026-02-28", n=3),
    "expanding bind parameter": text(
        "SELECT title FROM book WHERE id = ANY(:ids)"
    ).bindparams(ids=[1, 2]),
    "escaped colon": text(r"SELECT (ARRAY[1, 2, 3])[1\:2], 'a\:b'"),
    "percent": "SELECT 5 % 3, title FROM book WHERE title LIKE 'a%'",
    "inner join": "SELECT b.title, s.name FROM book b JOIN shelf s "
    "ON b.shelf_id = s.id",
    "left join": "SELECT s.name, count(b.id) FROM shelf s LEFT JOIN book b "
    "ON b.shelf_id = s.id GROUP BY s.name HAVING count(b.id) > 0",
    "full join using": "SELECT id FROM book FULL OUTER JOIN shelf USING (id)",
    "natural cross join": "SELECT 1 FROM book NATURAL JOIN shelf CROSS JOIN "
    "category",
    "join of a comma": "SELECT b.id FROM book b, shelf s WHERE s.id = "
    "b.shelf_id",
    "scalar subquery": "SELECT title, (SELECT name FROM shelf s WHERE s.id = "
    "b.shelf_id) FROM book b",
    "not exists": "SELECT name FROM shelf s WHERE NOT EXISTS (SELECT 1 FROM "
    "book b WHERE b.shelf_id = s.id)",
    "in a subquery": "SELECT title FROM book WHERE shelf_id IN (SELECT id "
    "FROM shelf WHERE name LIKE 's%')",
    "all of a subquery": "SELECT title FROM book WHERE copies >= ALL (SELECT "
    "copies FROM book)",
    "subquery in from": "SELECT max(n) FROM (SELECT count(*) AS n FROM book "
    "GROUP BY shelf_id) AS counted",
    "union all": "SELECT title FROM book UNION ALL SELECT name FROM shelf "
    "ORDER BY 1 LIMIT 3",
    "intersect and except": "(SELECT id FROM book INTERSECT SELECT id FROM "
    "shelf) EXCEPT SELECT 7",
    "cte": "WITH big AS (SELECT * FROM book WHERE copies > 1) SELECT count(*) "
    "FROM big",
    "materialized cte": "WITH big AS MATERIALIZED (SELECT * FROM book), small "
    "AS NOT MATERIALIZED (SELECT * FROM big) SELECT * FROM small",
    "recursive cte": "WITH RECURSIVE tree (id, path) AS (SELECT id, name FROM "
    "category WHERE parent_id IS NULL UNION ALL SELECT c.id, path || '/' || "
    "c.name FROM category c JOIN tree t ON c.parent_id = t.id) "
    "SELECT * FROM tree",
    "recursive cte in order": "WITH RECURSIVE tree AS (SELECT id, parent_id "
    "FROM category WHERE id = 1 UNION ALL SELECT c.id, c.parent_id FROM "
    "category c, tree WHERE c.parent_id = tree.id) SEARCH DEPTH FIRST BY id "
    "SET path SELECT id FROM tree ORDER BY path",
    "cte in a subquery": "SELECT * FROM (WITH one AS (SELECT 1 AS n) SELECT n "
    "FROM one) x",
    "lateral": "SELECT s.name, top.title FROM shelf s CROSS JOIN LATERAL "
    "(SELECT title FROM book b WHERE b.shelf_id = s.id ORDER BY copies DESC "
    "LIMIT 1) top",
    "lateral function": "SELECT b.id, n FROM book b, LATERAL "
    "generate_series(1, b.copies) AS n",
    "values": "VALUES (1, 'a'), (2, 'b')",
    "values in from": "SELECT v.a FROM (VALUES (1, 'x'), (2, 'y')) AS v(a, b)",
    "table": "TABLE shelf",
    "fetch first": "SELECT title FROM book ORDER BY copies OFFSET 0 ROWS "
    "FETCH FIRST 2 ROWS WITH TIES",
    "limit all": "SELECT title FROM book LIMIT ALL OFFSET 1",
    "distinct on": "SELECT DISTINCT ON (shelf_id) shelf_id, title FROM book "
    "ORDER BY shelf_id, copies DESC NULLS LAST",
    "window": "SELECT title, rank() OVER (PARTITION BY shelf_id ORDER BY "
    "copies DESC), sum(copies) OVER w FROM book WINDOW w AS (ORDER BY id ROWS "
    "BETWEEN 2 PRECEDING AND CURRENT ROW EXCLUDE TIES)",
    "filter and order in an aggregate": "SELECT count(*) FILTER (WHERE copies "
    "> 1), string_agg(title, ', ' ORDER BY title) FROM book",
    "percentile": "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY copies) "
    "FROM book",
    "grouping sets": "SELECT shop, day, sum(amount), grouping(shop) FROM sale "
    "GROUP BY GROUPING SETS ((shop), (day), ())",
    "rollup and cube": "SELECT shop, count(*) FROM sale GROUP BY ROLLUP (shop),"
    " CUBE (day)",
    "tablesample": "SELECT count(*) FROM book TABLESAMPLE BERNOULLI (50) "
    "REPEATABLE (1)",
    "partition": "SELECT count(*) FROM sale_2026",
    "partitioned table": "SELECT tableoid::regclass, sum(amount) FROM sale "
    "WHERE day >= DATE '2026-01-01' GROUP BY 1",
    "only": "SELECT count(*) FROM ONLY sale",
    "system columns": "SELECT ctid, xmin, tableoid FROM book",
    "case": "SELECT CASE WHEN copies > 1 THEN 'many' ELSE 'few' END, CASE "
    "copies WHEN 1 THEN 'one' END FROM book",
    "coalesce and friends": "SELECT COALESCE(copies, 0), NULLIF(copies, 1), "
    "GREATEST(1, copies), LEAST(copies, 2) FROM book",
    "extract": "SELECT EXTRACT(YEAR FROM at), date_part('dow', at) FROM event",
    "intervals": "SELECT now() - INTERVAL '1 day', interval '2' hour * 3, at "
    "+ make_interval(days => 3) FROM event",
    "time zone": "SELECT at AT TIME ZONE 'Europe/Paris', timezone('UTC', at) "
    "FROM event",
    "this month": "SELECT sum(amount) FROM sale WHERE day >= "
    "date_trunc('month', CURRENT_DATE) AND day < CURRENT_TIMESTAMP",
    "overlaps": "SELECT (DATE '2026-01-01', DATE '2026-02-01') OVERLAPS (DATE "
    "'2026-01-15', INTERVAL '3 days')",
    "dates to text": "SELECT to_char(day, 'YYYY-MM'), to_char(amount, "
    "'FM999G990D00'), age(day) FROM sale",
    "regexes": "SELECT title ~ '^a', title !~* 'B$', regexp_replace(title, "
    "'(.)', '\\1\\1', 'g'), substring(title from '[a-z]+') FROM book",
    "similar and ilike": "SELECT title SIMILAR TO '(a|b)%', title NOT ILIKE "
    "'%x!_%' ESCAPE '!' FROM book",
    "string functions": "SELECT trim(both 'x' from title), "
    "position('a' in title), overlay(title placing 'z' from 1 for 1), "
    "substring(title from 1 for 2), upper(left(title, 1)) FROM book",
    "format": "SELECT format('%s is %L', title, copies) FROM book",
    "json operators": "SELECT payload -> 'tags' ->> 0, payload #>> '{kind}', "
    'payload @> \'{"kind": "talk"}\' FROM event',
    "json questions": "SELECT payload ? 'kind', payload ?| ARRAY['a', 'kind'],"
    " payload ?& ARRAY['n'] FROM event",
    "json path": "SELECT jsonb_path_query(payload, '$.tags[*] ? (@ == \"a\")')"
    " FROM event WHERE payload @@ '$.n > 3'",
    "json subscript": "SELECT payload['tags'][0] FROM event",
    "json as a table": "SELECT id, tag FROM event, "
    "jsonb_array_elements_text(payload -> 'tags') WITH ORDINALITY AS t(tag, n)",
    "json record": "SELECT r.kind FROM event, jsonb_to_record(payload) AS "
    "r(kind text, n integer)",
    "json aggregate": "SELECT json_agg(json_build_object('title', title, "
    "'copies', copies)) FROM book",
    "arrays": "SELECT tags[1], tags[1:2], 'x' = ANY(tags), tags && ARRAY['x'],"
    " array_length(tags, 1), tags || 'z'::text FROM event",
    "array of a subquery": "SELECT ARRAY(SELECT title FROM book ORDER BY id)",
    "unnest": "SELECT id, unnest(tags) FROM event",
    "rows from": "SELECT * FROM ROWS FROM (generate_series(1, 2), "
    "unnest(ARRAY['a', 'b'])) AS r(n, letter)",
    "full text search": "SELECT id, ts_rank(words, q), ts_headline('a talk', q)"
    " FROM event, to_tsquery('simple', 'quick & talk') q WHERE words @@ q",
    "ranges": "SELECT id FROM event WHERE during && tstzrange(now(), NULL) OR "
    "during @> at AND upper(during) > lower(during)",
    "range literal": "SELECT int4range(1, 10) * '[5, 15)'::int4range",
    "enum": "SELECT mood, enum_range(mood) FROM event WHERE mood = 'calm'",
    "harmless domain": "SELECT copies::positive FROM book",
    "network": "SELECT host << inet '10.0.0.0/8', host(host) FROM event",
    "uuid": "SELECT id FROM event WHERE token = "
    "'c4ca4238-a0b9-2382-0dcc-509a6f75849b'::uuid",
    "composite": "SELECT (content).apples, ROW(1, 2)::basket FROM full_basket",
    "row comparison": "SELECT id FROM book WHERE (shelf_id, id) > (1, 1) AND "
    "copies IS NOT DISTINCT FROM 1",
    "between symmetric": "SELECT id FROM book WHERE copies BETWEEN SYMMETRIC 3 "
    "AND 1 AND (copies > 0) IS NOT UNKNOWN",
    "collation": 'SELECT title COLLATE "C" FROM book ORDER BY title COLLATE '
    '"C"',
    "bits and hex": "SELECT B'101' & B'001', X'1F', 1.5e3, .5",
    "typed strings": "SELECT date '2026-01-01', bool 't', point '(1,2)'",
    "view": "SELECT * FROM shelf_size WHERE books > 0",
    "view of a view": "SELECT name FROM big_shelf",
    "view that calls a harmless function": "SELECT month, vat FROM "
    "month_of_sales",
    "view in another schema": "SELECT quantity FROM stock.level_of_book",
    "view of the server's activity": "SELECT state FROM session_of_user",
    "materialized view": "SELECT n FROM title_count",
    "materialized view made by nextval": "SELECT number FROM numbered_title",
    "system view": "SELECT tablename FROM pg_tables WHERE schemaname = "
    "'public'",
    "catalogue": "SELECT c.relname, pg_size_pretty(pg_relation_size(c.oid)) "
    "FROM pg_catalog.pg_class c WHERE c.relkind = 'r' AND relname = 'book'",
    "information schema": "SELECT column_name FROM information_schema.columns "
    "WHERE table_name = 'book'",
    "settings": "SELECT name, setting FROM pg_settings WHERE name LIKE 'work%'",
    "own immutable function": "SELECT vat(amount) FROM sale",
    "own stable function": "SELECT title FROM book WHERE last_day() > now()",
    "own function in a schema": "SELECT stock.quantity(id) FROM book",
    "own function of rows": "SELECT amount FROM sales_of('shop 1')",
    "own variadic function": "SELECT at_least(1, 2, 3), at_least(1, VARIADIC "
    "ARRAY[2])",
    "own function by a quoted name": 'SELECT "public"."vat"(1)',
    "own name that hides none": "SELECT level(1)",
    "own aggregate": "SELECT longest(title) FROM book",
    "own operator": "SELECT copies <~> 3 FROM book",
    "operator with its schema": "SELECT copies OPERATOR(pg_catalog.+) 1 FROM "
    "book",
    "own function as a column": "SELECT b.shouted FROM book b",
    "own cast": "SELECT content::integer FROM full_basket",
    "current user and time": "SELECT current_user, now(), clock_timestamp(), "
    "localtimestamp(0), current_schema",
    "random order": "SELECT title FROM book ORDER BY random() LIMIT 1",
    "new uuid": "SELECT gen_random_uuid()",
    "setting": "SELECT current_setting('server_version')",
    "hash of a password": "SELECT md5('x'), encode(sha256('x'::bytea), 'hex')",
    "line comment": "-- the books\nSELECT title -- UPDATE book\nFROM book --",
    "block comment": "/* UPDATE book SET copies = 1; */ SELECT /* , bump() */ "
    "title FROM book",
    "nested comment": "SELECT 1 /* a /* b */ , nextval('ticket_seq') */",
    "comment with quotes": "SELECT title /* it's */ FROM book -- don't",
    "string with SQL": "SELECT 'DELETE FROM book; SELECT nextval(''x'')' AS s",
    "string with a comment": "SELECT '--', '/*', title FROM book",
    "dollar quotes": "SELECT $$it's; UPDATE book$$, $q$ $$nextval('x')$$ $q$",
    "escape string": r"SELECT E'it\'s; \n', e'\\', 'plain \'",
    "string over lines": "SELECT 'a'\n  'b', nextval\nFROM (SELECT 1 AS "
    "nextval) x",
    "unicode string": r"SELECT U&'d\0061t', U&'!0061' UESCAPE '!'",
    "unicode name": r'SELECT b.U&"t\0069tle" FROM book b',
    "not ASCII": "SELECT 'é', title AS \"größe\", copies AS été FROM book",
    "quoted names": 'SELECT "Name", "select", "for update" FROM "Odd Table"',
    "keywords as names": 'SELECT title AS "update", copies AS delete FROM book '
    'AS "into"',
    "name of a sequence's function": "SELECT setval FROM (SELECT 1 AS setval) "
    "AS nextval",
    "column that is named as a function": "SELECT b.title AS bump FROM book b "
    "ORDER BY bump",
    "parentheses": "((SELECT title FROM book))",
    "long list": "SELECT title FROM book WHERE id IN ("
    + ", ".join(map(str, range(500)))
    + ")",
    "page of a search": text(
        "SELECT b.id, b.title, s.name, count(*) OVER () AS total FROM book b "
        "LEFT JOIN shelf s ON s.id = b.shelf_id WHERE (:word IS NULL OR "
        "b.title ILIKE '%' || :word || '%') ORDER BY b.title, b.id "
        "LIMIT :size OFFSET :start"
    ).bindparams(word="a", size=10, start=0),
    "report": "WITH monthly AS (SELECT date_trunc('month', day)::date AS "
    "month, shop, sum(amount) AS amount FROM sale GROUP BY 1, 2), ranked AS "
    "(SELECT *, row_number() OVER (PARTITION BY month ORDER BY amount DESC) "
    "AS place, lag(amount) OVER (PARTITION BY shop ORDER BY month) AS before "
    "FROM monthly) SELECT month, shop, amount, round(100.0 * (amount - before)"
    " / NULLIF(before, 0), 1) AS growth FROM ranked WHERE place <= 3 "
    "ORDER BY month, place",
    "bloks": "SELECT name, state FROM system_blok WHERE state = 'installed'",
    "parameter": "SELECT value FROM system_parameter WHERE key = 'x'",
}

# Not reads: by what makes each of them no read.
TRAPS = {
    "DML": {
        "insert": "INSERT INTO ticket (label) VALUES ('x')",
        "insert returning": "INSERT INTO ticket (label) VALUES ('x') RETURNING "
        "id",
        "insert of a select": "INSERT INTO ticket (label) SELECT title FROM "
        "book",
        "upsert": "INSERT INTO ticket VALUES (1, 'a') ON CONFLICT (id) DO "
        "UPDATE SET label = 'b' RETURNING id",
        "update": text("UPDATE book SET copies = :n WHERE id = 1").bindparams(
            n=3
        ),
        "update that finds nothing": "UPDATE book SET copies = 1 WHERE false",
        "update returning": "UPDATE book SET copies = 1 RETURNING title",
        "delete": "delete from ticket",
        "delete returning": "DELETE FROM ticket RETURNING id",
        "merge": "MERGE INTO ticket t USING book b ON t.id = b.id WHEN NOT "
        "MATCHED THEN INSERT VALUES (b.id, b.title)",
        "truncate": "TRUNCATE ticket",
        "after a comment": "/* SELECT */ -- SELECT\nUPDATE book SET copies = 1",
        "of a view": "UPDATE stock.level_of_book SET title = title",
    },
    "DML in a CTE": {
        "update": "WITH x AS (UPDATE book SET copies = 1 RETURNING id) SELECT "
        "id FROM x",
        "insert": "WITH x AS (INSERT INTO ticket (label) VALUES ('a') "
        "RETURNING id) SELECT * FROM x",
        "delete": "with x as (delete from ticket returning id) select 1",
        "second of two": "WITH a AS (SELECT 1), b AS (DELETE FROM ticket) "
        "SELECT * FROM a",
        "materialized": "WITH x AS MATERIALIZED (UPDATE book SET copies = 1 "
        "RETURNING id) SELECT count(*) FROM x",
        "of a union": "WITH x AS (DELETE FROM ticket RETURNING id) SELECT 1 "
        "UNION SELECT id FROM x",
        "before an insert": "WITH x AS (SELECT 1 AS n) INSERT INTO ticket "
        "(label) SELECT n::text FROM x",
        "called select": 'WITH "select" AS (UPDATE book SET copies = 1 '
        'RETURNING id) SELECT * FROM "select"',
    },
    "row lock": {
        "for update": "SELECT * FROM book FOR UPDATE",
        "for no key update": "SELECT * FROM book FOR NO KEY UPDATE",
        "for share": "SELECT * FROM book FOR SHARE",
        "for key share": "SELECT * FROM book FOR KEY SHARE",
        "skip locked": "SELECT id FROM book ORDER BY id LIMIT 1 FOR UPDATE SKIP"
        " LOCKED",
        "nowait": "SELECT id FROM book FOR UPDATE NOWAIT",
        "of a table": "SELECT b.id FROM book b JOIN shelf s ON s.id = "
        "b.shelf_id FOR UPDATE OF b",
        "over lines": "SELECT id\nFROM book\nFOR -- later\n  NO\n KEY /* x */"
        "\n UPDATE",
        "in a subquery": "SELECT id FROM (SELECT id FROM book FOR UPDATE) x",
        "in an expression": "SELECT (SELECT id FROM book LIMIT 1 FOR SHARE)",
        "in a cte": "WITH x AS (SELECT id FROM book FOR SHARE) SELECT * FROM x",
        "in parentheses": "(SELECT id FROM book FOR UPDATE)",
        "before the limit": "SELECT id FROM book FOR UPDATE LIMIT 1",
        "two": "SELECT b.id FROM book b, shelf s FOR UPDATE OF b FOR SHARE OF "
        "s",
        "in a view": "SELECT title FROM locked_book",
    },
    "sequence": {
        "nextval": "SELECT nextval('ticket_seq')",
        "setval": "SELECT setval('ticket_seq', 1000)",
        "currval": "SELECT currval('ticket_seq')",
        "lastval": "SELECT lastval()",
        "nextval of a number": "SELECT nextval('ticket_seq'::regclass::oid)",
        "with its schema": "SELECT pg_catalog.nextval('ticket_seq')",
        "quoted": """SELECT "pg_catalog"."nextval"('ticket_seq')""",
        "in capitals": "SELECT NEXTVAL ('ticket_seq')",
        "after a comment": "SELECT nextval/* */ -- \n ('ticket_seq')",
        "unicode name": r"""SELECT U&"\006eextval"('ticket_seq')""",
        "unicode name with an escape": r"""SELECT U&"!006Eextval" UESCAPE """
        """'!'('ticket_seq')""",
        "in where": "SELECT 1 FROM book WHERE nextval('ticket_seq') > 0",
        "in order": "SELECT 1 FROM book ORDER BY nextval('ticket_seq')",
        "in group": "SELECT 1 FROM book GROUP BY nextval('ticket_seq')",
        "in limit": "SELECT 1 FROM book LIMIT nextval('ticket_seq')",
        "in from": "SELECT * FROM nextval('ticket_seq')",
        "in rows from": "SELECT * FROM ROWS FROM (nextval('ticket_seq'), "
        "generate_series(1, 2)) x",
        "in values": "VALUES (1), (nextval('ticket_seq'))",
        "in an array": "SELECT ARRAY[1, nextval('ticket_seq')]",
        "in a row": "SELECT ROW(1, nextval('ticket_seq'))",
        "in a window": "SELECT sum(1) OVER (ORDER BY nextval('ticket_seq')) "
        "FROM book",
        "in a named window": "SELECT sum(1) OVER w FROM book WINDOW w AS "
        "(PARTITION BY nextval('ticket_seq'))",
        "in a filter": "SELECT count(*) FILTER (WHERE nextval('ticket_seq') > "
        "0) FROM book",
        "in an aggregate's order": "SELECT string_agg(title, ',' ORDER BY "
        "nextval('ticket_seq')) FROM book",
        "in a join": "SELECT 1 FROM book b LEFT JOIN shelf s ON s.id = "
        "nextval('ticket_seq')",
        "in a lateral": "SELECT n FROM book, LATERAL (SELECT "
        "nextval('ticket_seq') AS n) x",
        "in a case": "SELECT CASE WHEN true THEN nextval('ticket_seq') END",
        "in a cast": "SELECT CAST(nextval('ticket_seq') AS text)",
        "in a subscript": "SELECT (ARRAY[1,2])[nextval('ticket_seq')]",
        "in a tablesample": "SELECT 1 FROM book TABLESAMPLE SYSTEM "
        "(nextval('ticket_seq') % 100)",
        "in a grouping set": "SELECT 1 FROM book GROUP BY GROUPING SETS ((), "
        "(nextval('ticket_seq')))",
        "in distinct on": "SELECT DISTINCT ON (nextval('ticket_seq')) 1 FROM "
        "book",
        "in a named argument": "SELECT make_interval(days => "
        "nextval('ticket_seq')::integer)",
        "after a nested comment": "SELECT 1 /* a /* b */ c */, "
        "nextval('ticket_seq')",
        "after a carriage return": "SELECT 1 --\r, nextval('ticket_seq')",
        "after a backslash": r"SELECT '\', nextval('ticket_seq') --'",
        "after an escaped quote": r"SELECT E'\'', nextval('ticket_seq') --'",
        "after dollar quotes": "SELECT $a$ $b$ $a$, nextval('ticket_seq') --"
        "$b$",
        "after a dollar in a name": "SELECT a$$, nextval('ticket_seq'), b$$ "
        "FROM (SELECT 1 AS a$$, 2 AS b$$) x",
        "after a string over lines": "SELECT 'a'\n'''', nextval('ticket_seq') "
        "--'",
        "after a comment in a string": "SELECT '/*', nextval('ticket_seq'), "
        "'*/'",
        "after a quoted name": """SELECT 1 AS "a""--", nextval('ticket_seq')""",
        "after a form feed": "SELECT 1,\fnextval('ticket_seq')",
        "by a field": "SELECT ('ticket_seq'::regclass).nextval",
        "of a parameter": text("SELECT nextval(:name)").bindparams(
            name="ticket_seq"
        ),
    },
    "advisory lock": {
        "session": "SELECT pg_advisory_lock(1)",
        "shared": "SELECT pg_advisory_lock_shared(1, 2)",
        "transaction": "SELECT pg_advisory_xact_lock(3)",
        "transaction, shared": "SELECT pg_advisory_xact_lock_shared(3)",
        "try": "SELECT pg_try_advisory_lock(4)",
        "try, shared": "SELECT pg_try_advisory_lock_shared(4)",
        "try, transaction": "SELECT pg_try_advisory_xact_lock(5)",
        "try, transaction, shared": "SELECT "
        "pg_try_advisory_xact_lock_shared(6)",
        "in where": "SELECT id FROM book WHERE pg_try_advisory_xact_lock(id)",
        "in a view": "SELECT title FROM locked_in_view",
    },
    "session": {
        "set_config": "SELECT set_config('corpus.word', 'x', false)",
        "local set_config": "SELECT set_config('work_mem', '5MB', true)",
        "set": "SET work_mem = '5MB'",
        "set local": "SET LOCAL work_mem = '5MB'",
        "set own": "SET corpus.word TO 'x'",
        "set time zone": "SET TIME ZONE 'Europe/Paris'",
        "set role": "SET ROLE pg_monitor",
        "set session authorization": "SET SESSION AUTHORIZATION DEFAULT",
        "set transaction": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "set characteristics": "SET SESSION CHARACTERISTICS AS TRANSACTION "
        "READ ONLY",
        "set constraints": "SET CONSTRAINTS ALL DEFERRED",
        "update of pg_settings": "UPDATE pg_settings SET setting = '5MB' WHERE "
        "name = 'work_mem'",
        "reset": "RESET work_mem",
        "discard": "DISCARD PLANS",
        "listen": "LISTEN news",
        "unlisten": "UNLISTEN *",
        "notify": "NOTIFY news, 'x'",
        "pg_notify": "SELECT pg_notify('news', 'x')",
        "prepare": "PREPARE one AS SELECT 1",
        "declare": "DECLARE c CURSOR FOR SELECT 1",
        "declare with hold": "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "deallocate": "DEALLOCATE ALL",
        "load": "LOAD 'plpgsql'",
    },
    "transaction": {
        "begin": "BEGIN",
        "start": "START TRANSACTION",
        "commit": "COMMIT",
        "rollback": "ROLLBACK",
        "savepoint": "SAVEPOINT a",
        "second phase": "COMMIT PREPARED 'nothing'",
        "lock": "LOCK TABLE book IN ACCESS SHARE MODE",
        "lock exclusive": "LOCK book",
        "txid": "SELECT txid_current()",
        "xid": "SELECT pg_current_xact_id()",
    },
    "DDL": {
        "select into": "SELECT title INTO copied FROM book",
        "select into temporary": "SELECT title INTO TEMPORARY TABLE copied "
        "FROM book",
        "select into, over lines": "SELECT title\n-- x\nINTO/**/copied FROM "
        "book",
        "select into, in a union": "SELECT title INTO copied FROM book UNION "
        "SELECT name FROM shelf",
        "select into, after a cte": "WITH x AS (SELECT 1 AS n) SELECT n INTO "
        "copied FROM x",
        "create table as": "CREATE TABLE copied AS SELECT title FROM book",
        "create temporary table": "CREATE TEMP TABLE mine (id integer)",
        "create temporary table as": "CREATE TEMP TABLE mine ON COMMIT DROP AS "
        "TABLE book",
        "create view": "CREATE OR REPLACE TEMP VIEW mine AS SELECT 1",
        "create index": "CREATE INDEX ON book (title)",
        "alter": "ALTER TABLE book ADD COLUMN more integer",
        "drop": "DROP TABLE IF EXISTS nothing",
        "comment": "COMMENT ON TABLE book IS 'x'",
        "grant": "GRANT SELECT ON book TO PUBLIC",
        "refresh": "REFRESH MATERIALIZED VIEW title_count",
        "analyze": "ANALYZE book",
        "vacuum": "VACUUM book",
        "reindex": "REINDEX TABLE book",
        "checkpoint": "CHECKPOINT",
    },
    "several statements": {
        "select, update": "SELECT 1; UPDATE book SET copies = 1",
        "update, select": "UPDATE book SET copies = 1; SELECT 1",
        "select, nextval": "SELECT 1; SELECT nextval('ticket_seq');",
        "set, select": "SET LOCAL work_mem = '5MB'; SELECT 1",
        "after a comment": "SELECT 1 /* ; */; -- ;\nDELETE FROM ticket",
        "after dollar quotes": "SELECT $$;$$; DELETE FROM ticket",
        "after a backslash": r"SELECT '\'; DELETE FROM ticket; --'",
        "many semicolons": ";;SELECT 1;; ;DELETE FROM ticket;;",
    },
    "a statement in a statement": {
        "explain analyze": "EXPLAIN ANALYZE UPDATE book SET copies = 1",
        "explain, analyze in parentheses": "EXPLAIN (COSTS OFF, ANALYZE) "
        "DELETE FROM ticket",
        "explain analyze of nextval": "EXPLAIN ANALYZE SELECT "
        "nextval('ticket_seq')",
        "explain analyze of create": "EXPLAIN ANALYZE CREATE TABLE copied AS "
        "SELECT 1",
        "do": "DO $$ BEGIN PERFORM nextval('ticket_seq'); END $$",
        "call": "CALL restock(1)",
        "copy to a program": "COPY book (id) TO PROGRAM 'cat > /dev/null'",
        "copy of dml": "COPY (UPDATE book SET copies = 1 RETURNING id) TO "
        "PROGRAM 'cat > /dev/null'",
        "copy from a program": "COPY ticket (label) FROM PROGRAM 'true'",
        "copy to the driver": "COPY book TO STDOUT",
        "ts_stat": "SELECT * FROM ts_stat('SELECT to_tsvector(''a'') FROM "
        "nextval(''ticket_seq'')')",
        "ts_rewrite": "SELECT ts_rewrite('a'::tsquery, 'SELECT "
        "''a''::tsquery, nextval(''ticket_seq'')::text::tsquery')",
    },
    "large object": {
        "lo_create": "SELECT lo_create(0)",
        "lo_from_bytea": "SELECT lo_from_bytea(0, 'x')",
        "lo_put": "SELECT lo_put(4242, 0, 'x')",
        "lo_unlink": "SELECT lo_unlink(4242)",
    },
    "own function": {
        "by name": "SELECT bump()",
        "by name and schema": "SELECT public.bump()",
        "overloaded": "SELECT bump(1)",
        "of rows": "SELECT * FROM bump_all(3)",
        "of rows, lateral": "SELECT b.id, n FROM book b, bump_all(b.copies) n",
        "that inserts": "SELECT take_ticket('x')",
        "in a schema": "SELECT stock.reserve(1, 2)",
        "in a schema, as harmless in another": "SELECT stock.level(1)",
        "overloaded with a harmless one": "SELECT price('x')",
        "overloads PostgreSQL's own": "SELECT initcap(copies) FROM book",
        "default argument": "SELECT numbered('x')",
        "as a column": "SELECT b.bumped FROM book b",
        "as a column, in capitals": "SELECT B.BUMPED FROM BOOK B",
        "as a column, quoted": 'SELECT "b"."bumped" FROM book "b"',
        "as a column of a row": "SELECT (b).bumped FROM book b",
        "as a column of all columns": "SELECT (b.*).bumped FROM book b",
        "as a column of a table": "SELECT book.bumped FROM book",
        "as a column with a schema": "SELECT public.book.bumped FROM book",
        "as a column, in where": "SELECT 1 FROM book b WHERE b.bumped > 0",
        "as a column of a cte's row": "WITH x AS (SELECT b FROM book b) SELECT "
        "(x.b).bumped FROM x",
        "as a column, name too long": "SELECT b.a_name_of_sixty_three_"
        "characters_is_the_longest_that_there_is_xyz FROM book b",
        "as a column of a number": "SELECT (copies).initcap FROM book",
        "as a column of an element": "SELECT (a[1]).bump FROM (SELECT ARRAY[1] "
        "AS a) x",
        "as a column of a field": "SELECT (v).n.bump FROM (VALUES (1)) v(n)",
        "as a column of a function": "SELECT x.bump FROM generate_series(1, 2) "
        "x",
        "of a row": "SELECT bumped(b) FROM book b",
        "not folded": "SELECT \u212aick()",
        "quoted capital": 'SELECT "Capital"()',
        "aggregate": "SELECT bumping_sum(copies) FROM book",
        "aggregate's end": "SELECT finally_bumping_sum(copies) FROM book",
        "aggregate over a window": "SELECT bumping_sum(copies) OVER () FROM "
        "book",
        "operator": "SELECT copies @+ 1 FROM book",
        "operator with its schema": "SELECT copies OPERATOR(public.@+) 1 FROM "
        "book",
        "domain": "SELECT copies::ticketed FROM book",
        "domain by cast": "SELECT CAST(copies AS public.ticketed) FROM book",
        "domain of a domain": "SELECT 1::retailed",
        "domain of a literal": "SELECT ticketed '5'",
        "domain of an array": "SELECT ARRAY[1]::ticketed[]",
        "domain of a record": "SELECT * FROM jsonb_to_record('{\"a\": 1}') AS "
        "r(a ticketed)",
        "domain as a function": "SELECT ticketed(5)",
        "domain in a record": "SELECT '(1,2)'::slip, ROW(1, 2)::slip",
        "domain in a row that is filled": "SELECT jsonb_populate_record(d, "
        "'{\"number\": 1}') FROM draft d",
        "domain in a record that is filled": "SELECT (json_populate_record("
        "NULL::slip, '{\"number\": 1}')).id",
        "of any type, as a column": "SELECT (title).bump_any FROM book",
        "cast": "SELECT copies::basket FROM book",
    },
    "view": {
        "nextval": "SELECT * FROM numbered_book",
        "view of a view": "SELECT title FROM numbered_twice",
        "view of a view of a view": "SELECT name FROM numbered_thrice",
        "table": "TABLE numbered_book",
        "in where": "SELECT title FROM filtered_by_bump",
        "operator": "SELECT more FROM bump_in_operator",
        "aggregate": "SELECT copies FROM bump_in_aggregate",
        "domain": "SELECT copies FROM bump_in_domain",
        "function as a column": "SELECT bumped FROM bump_in_row",
        "in a schema": "SELECT n FROM stock.level",
        "table that a standby hasn't": "SELECT * FROM unlogged_sale",
        "of a table that a standby hasn't": "SELECT * FROM last_sale",
        "parent of a table that a standby hasn't": "SELECT * FROM any_sale",
        "record that is filled": "SELECT * FROM filled_slip",
        "quoted": 'SELECT * FROM "public"."numbered_book"',
        "in a subquery": "SELECT (SELECT max(number) FROM numbered_book)",
        "in a join": "SELECT 1 FROM shelf JOIN numbered_book ON true",
        "in an exists": "SELECT EXISTS (SELECT 1 FROM filtered_by_bump)",
        "beside a cte of its name": "SELECT * FROM (WITH numbered_book AS "
        "(SELECT 1) SELECT * FROM numbered_book) x, numbered_book y",
        "behind a cte of its name": "WITH numbered_book AS (SELECT * FROM "
        "numbered_book) SELECT * FROM numbered_book",
        "beside a cte, with a schema": "WITH numbered_book AS (SELECT 1) "
        "SELECT * FROM public.numbered_book",
    },
    # No read by the rule, though nothing is refused and nothing is left.
    "not provable": {
        "volatile by default": "SELECT forgotten(1)",
        "volatile, and this time harmless": "SELECT bump_if(false)",
        "overloaded with a writing one": "SELECT price(1)",
        "overload of PostgreSQL's own": "SELECT initcap(title) FROM book",
        "default argument that is given": "SELECT numbered('x', 1)",
        "policy that a superuser passes": "SELECT word FROM secret",
        "large object's bytes": "SELECT lo_get(4242)",
        "file": "SELECT pg_read_file('PG_VERSION')",
    },
    # What they do isn't seen from a session, or would end the test's servers.
    "not seen": {
        "setseed": "SELECT setseed(0.5)",
        "snapshot": "SELECT pg_export_snapshot()",
        # Refused since PostgreSQL 16.
        "large object, to write": "SELECT lo_open(4242, 131072)",
        "unlock": "SELECT pg_advisory_unlock(1)",
        "unlock all": "SELECT pg_advisory_unlock_all()",
        "promotion": "SELECT pg_promote() WHERE false",
        "stop of the replay": "SELECT pg_wal_replay_pause() WHERE false",
        "end of a backend": "SELECT pg_terminate_backend(0) WHERE false",
        "configuration": "SELECT pg_reload_conf() WHERE false",
    },
}

# Harmless, but no SELECT: to call them reads, or not, is right either way.
EITHER = {
    "show": "SHOW work_mem",
    "explain": "EXPLAIN SELECT title FROM book",
    "explain of an update": "EXPLAIN UPDATE book SET copies = 1",
    "explain analyze of a read": "EXPLAIN (ANALYZE, COSTS OFF) SELECT 1",
    "two reads": "SELECT 1; SELECT title FROM book",
    "locks of the server": "SELECT count(*) FROM pg_locks",
    "for read only": "SELECT title FROM book FOR READ ONLY",
}

# Not reads where a type's order is the application's own function that
# writes; but then nothing is known to be one.
ORDERED = (
    "SELECT id FROM ranked ORDER BY rank",
    "SELECT DISTINCT rank FROM ranked",
    "SELECT count(*) FROM ranked GROUP BY rank",
    "SELECT id FROM ranked ORDER BY rank USING #<#",
    "SELECT id, row_number() OVER (ORDER BY rank) FROM ranked",
    "SELECT rank FROM ranked UNION SELECT rank FROM ranked",
)
