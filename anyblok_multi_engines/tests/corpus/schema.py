# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The database of the corpus: an application's, with traps in it.

Whatever is named ``bump`` or is made of it takes a number from a sequence, so
that a standby refuses it: nothing has to be believed.
"""

from anyblok_multi_engines.testing import Cluster

TICKETS = "CREATE SEQUENCE ticket_seq"

TABLES = """
    CREATE SCHEMA stock;
    CREATE SEQUENCE stock.move_seq;

    CREATE TABLE category (
        id integer PRIMARY KEY,
        parent_id integer REFERENCES category,
        name text NOT NULL);
    INSERT INTO category VALUES
        (1, NULL, 'all'), (2, 1, 'novels'), (3, 1, 'comics'), (4, 3, 'manga');

    CREATE TABLE sale (
        id bigint GENERATED ALWAYS AS IDENTITY,
        day date NOT NULL,
        shop text NOT NULL,
        amount numeric(12, 2) NOT NULL,
        PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE sale_2025 PARTITION OF sale
        FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
    CREATE TABLE sale_2026 PARTITION OF sale
        FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    INSERT INTO sale (day, shop, amount)
        SELECT date '2025-12-01' + n, 'shop ' || n % 3, n * 1.5
        FROM generate_series(1, 60) AS n;

    CREATE TYPE mood AS ENUM ('calm', 'busy', 'closed');
    CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
    CREATE TABLE event (
        id integer PRIMARY KEY,
        at timestamptz NOT NULL,
        during tstzrange NOT NULL,
        room integer NOT NULL,
        payload jsonb NOT NULL,
        tags text[] NOT NULL,
        words tsvector NOT NULL,
        mood mood NOT NULL,
        seats positive NOT NULL,
        host inet,
        token uuid,
        doubled integer GENERATED ALWAYS AS (room * 2) STORED);
    INSERT INTO event
        SELECT n, timestamptz '2026-03-01 10:00+00' + n * interval '1 day',
            tstzrange(timestamptz '2026-03-01 10:00+00' + n * interval '1 day',
                timestamptz '2026-03-01 12:00+00' + n * interval '1 day'),
            n % 3, jsonb_build_object('kind', 'talk', 'n', n, 'tags',
                jsonb_build_array('a', 'b')),
            ARRAY['x', 'y' || n], to_tsvector('simple', 'a quick talk ' || n),
            'calm', n, '10.0.0.1', md5(n::text)::uuid
        FROM generate_series(1, 20) AS n;

    CREATE TABLE ticket (
        id bigint PRIMARY KEY DEFAULT nextval('ticket_seq'), label text);
    CREATE TABLE invoice (id serial PRIMARY KEY, number text);
    INSERT INTO invoice (number) VALUES ('first');
    CREATE TABLE stock.move (id serial PRIMARY KEY, book_id integer, qty int);
    CREATE TABLE "Odd Table" ("select" integer, "Name" text, "for update" int);
    INSERT INTO "Odd Table" VALUES (1, 'one', 2);
    CREATE TYPE basket AS (apples integer, pears integer);
    CREATE TABLE full_basket (id integer, content basket);
    INSERT INTO full_basket VALUES (1, (1, 2)), (2, (0, 4));
    SELECT lo_from_bytea(4242, 'a large object');
"""

# Volatility as PostgreSQL's documentation wants it declared.
FUNCTIONS = """
    CREATE FUNCTION bump() RETURNS bigint LANGUAGE sql VOLATILE AS
        $$ SELECT nextval('ticket_seq') $$;
    CREATE FUNCTION bump(n integer) RETURNS bigint LANGUAGE sql VOLATILE AS
        $$ SELECT nextval('ticket_seq') + n $$;
    CREATE FUNCTION bump_all(n integer) RETURNS SETOF bigint
        LANGUAGE sql VOLATILE AS
        $$ SELECT nextval('ticket_seq') FROM generate_series(1, n) $$;
    CREATE FUNCTION take_ticket(label text) RETURNS bigint
        LANGUAGE plpgsql VOLATILE AS $$
        BEGIN
            INSERT INTO ticket (label) VALUES (label);
            RETURN currval('ticket_seq');
        END $$;
    -- Volatile because nobody said otherwise: the default.
    CREATE FUNCTION forgotten(n integer) RETURNS integer
        LANGUAGE sql AS $$ SELECT n + 1 $$;
    CREATE FUNCTION bump_if(really boolean) RETURNS bigint
        LANGUAGE plpgsql VOLATILE AS $$
        BEGIN
            IF really THEN RETURN nextval('ticket_seq'); END IF;
            RETURN 0;
        END $$;
    CREATE FUNCTION bump_any(anyelement) RETURNS bigint
        LANGUAGE sql VOLATILE AS $$ SELECT nextval('ticket_seq') $$;
    CREATE FUNCTION vat(amount numeric) RETURNS numeric
        LANGUAGE sql IMMUTABLE AS $$ SELECT round(amount * 0.2, 2) $$;
    CREATE FUNCTION last_day() RETURNS date
        LANGUAGE plpgsql STABLE AS $$
        BEGIN RETURN (SELECT max(day) FROM sale); END $$;
    CREATE FUNCTION sales_of(the_shop text) RETURNS SETOF sale
        LANGUAGE sql STABLE AS $$ SELECT * FROM sale WHERE shop = the_shop $$;
    CREATE FUNCTION at_least(lowest integer, VARIADIC others integer[])
        RETURNS integer LANGUAGE sql IMMUTABLE AS
        $$ SELECT greatest(lowest, (SELECT max(x) FROM unnest(others) x)) $$;

    -- One name: harmless of a number, not of a text.
    CREATE FUNCTION price(n integer) RETURNS numeric
        LANGUAGE sql IMMUTABLE AS $$ SELECT n * 9.99 $$;
    CREATE FUNCTION price(code text) RETURNS bigint LANGUAGE sql VOLATILE AS
        $$ SELECT nextval('ticket_seq') $$;
    -- An overload of one of PostgreSQL's own, in a schema of the search path.
    CREATE FUNCTION initcap(n integer) RETURNS bigint LANGUAGE sql VOLATILE AS
        $$ SELECT nextval('ticket_seq') $$;
    -- One name in two schemas, of which one is in the search path.
    CREATE FUNCTION level(book integer) RETURNS integer
        LANGUAGE sql IMMUTABLE AS $$ SELECT book $$;
    CREATE FUNCTION stock.level(book integer) RETURNS bigint
        LANGUAGE sql VOLATILE AS $$ SELECT nextval('stock.move_seq') $$;
    CREATE FUNCTION stock.quantity(book integer) RETURNS bigint
        LANGUAGE sql STABLE AS
        $$ SELECT coalesce(sum(qty), 0) FROM stock.move WHERE book_id = book $$;
    CREATE FUNCTION stock.reserve(book integer, many integer) RETURNS integer
        LANGUAGE sql VOLATILE AS $$ INSERT INTO stock.move (book_id, qty)
            VALUES (book, -many) RETURNING id $$;
    -- Harmless itself; a default argument isn't.
    CREATE FUNCTION numbered(label text,
        number bigint DEFAULT nextval('ticket_seq')) RETURNS text
        LANGUAGE sql IMMUTABLE AS $$ SELECT label || number $$;
    -- Called as a column: book.bumped.
    CREATE FUNCTION bumped(book) RETURNS bigint LANGUAGE sql VOLATILE AS
        $$ SELECT nextval('ticket_seq') $$;
    CREATE FUNCTION shouted(book) RETURNS text LANGUAGE sql STABLE AS
        $$ SELECT upper($1.title) $$;
    -- 63 characters: a longer name is cut to this one.
    CREATE FUNCTION
        a_name_of_sixty_three_characters_is_the_longest_that_there_is_x(book)
        RETURNS bigint LANGUAGE sql VOLATILE AS
        $$ SELECT nextval('ticket_seq') $$;
    -- PostgreSQL folds ASCII alone; the first letter isn't an ASCII one.
    CREATE FUNCTION kick() RETURNS integer LANGUAGE sql IMMUTABLE AS
        $$ SELECT 1 $$;
    CREATE FUNCTION "\u212aick"() RETURNS bigint LANGUAGE sql VOLATILE AS
        $$ SELECT nextval('ticket_seq') $$;
    CREATE FUNCTION "Capital"() RETURNS bigint LANGUAGE sql VOLATILE AS
        $$ SELECT nextval('ticket_seq') $$;
    CREATE FUNCTION capital() RETURNS integer LANGUAGE sql IMMUTABLE AS
        $$ SELECT 1 $$;
    CREATE FUNCTION "Loud"() RETURNS bigint LANGUAGE sql VOLATILE AS
        $$ SELECT nextval('ticket_seq') $$;
    CREATE FUNCTION loud() RETURNS integer LANGUAGE sql IMMUTABLE AS
        $$ SELECT 1 $$;
    CREATE PROCEDURE restock(n integer) LANGUAGE sql AS
        $$ INSERT INTO stock.move (book_id, qty) VALUES (n, n) $$;

    -- An aggregate is "immutable" whatever its transition does.
    CREATE FUNCTION bump_and_add(total bigint, n integer) RETURNS bigint
        LANGUAGE sql VOLATILE AS
        $$ SELECT total + n + 0 * nextval('ticket_seq') $$;
    CREATE AGGREGATE bumping_sum(integer) (
        SFUNC = bump_and_add, STYPE = bigint, INITCOND = '0');
    CREATE FUNCTION bump_last(total bigint) RETURNS bigint
        LANGUAGE sql VOLATILE AS
        $$ SELECT total + 0 * nextval('ticket_seq') $$;
    CREATE AGGREGATE finally_bumping_sum(integer) (
        SFUNC = int4_sum, STYPE = bigint, FINALFUNC = bump_last);
    CREATE FUNCTION longer(a text, b text) RETURNS text
        LANGUAGE sql IMMUTABLE AS
        $$ SELECT CASE WHEN length(a) >= length(b) THEN a ELSE b END $$;
    CREATE AGGREGATE longest(text) (
        SFUNC = longer, STYPE = text, INITCOND = '');

    CREATE FUNCTION add_and_bump(a integer, b integer) RETURNS bigint
        LANGUAGE sql VOLATILE AS $$ SELECT a + b + nextval('ticket_seq') $$;
    CREATE OPERATOR @+ (
        FUNCTION = add_and_bump, LEFTARG = integer, RIGHTARG = integer);
    CREATE FUNCTION apart(a integer, b integer) RETURNS integer
        LANGUAGE sql IMMUTABLE AS $$ SELECT abs(a - b) $$;
    CREATE OPERATOR <~> (
        FUNCTION = apart, LEFTARG = integer, RIGHTARG = integer);

    CREATE FUNCTION is_ticket(n integer) RETURNS boolean
        LANGUAGE sql VOLATILE AS $$ SELECT nextval('ticket_seq') > n $$;
    CREATE DOMAIN ticketed AS integer CHECK (is_ticket(VALUE));
    CREATE DOMAIN retailed AS ticketed;
    CREATE TYPE slip AS (id integer, number ticketed);
    CREATE TABLE draft (id integer, number ticketed);
    INSERT INTO draft VALUES (1, NULL);
    CREATE FUNCTION basket_of(n integer) RETURNS basket
        LANGUAGE sql VOLATILE AS
        $$ SELECT ROW(n, nextval('ticket_seq'))::basket $$;
    CREATE CAST (integer AS basket) WITH FUNCTION basket_of(integer);
    CREATE FUNCTION fruits(basket) RETURNS integer LANGUAGE sql IMMUTABLE AS
        $$ SELECT $1.apples + $1.pears $$;
    CREATE CAST (basket AS integer) WITH FUNCTION fruits(basket);
"""

VIEWS = """
    CREATE VIEW shelf_size AS
        SELECT s.id, s.name, count(b.id) AS books, sum(b.copies) AS copies
        FROM shelf s LEFT JOIN book b ON b.shelf_id = s.id
        GROUP BY s.id, s.name;
    CREATE VIEW big_shelf AS SELECT * FROM shelf_size WHERE copies > 2;
    CREATE VIEW month_of_sales AS
        SELECT date_trunc('month', day) AS month, shop, sum(amount) AS amount,
            vat(sum(amount)) AS vat FROM sale GROUP BY 1, 2;
    CREATE VIEW session_of_user AS
        SELECT pid, usename, state FROM pg_stat_activity;
    CREATE VIEW stock.level_of_book AS
        SELECT b.id, b.title, stock.quantity(b.id) AS quantity FROM book b;
    CREATE MATERIALIZED VIEW title_count AS
        SELECT title, count(*) AS n FROM book GROUP BY title;
    -- Calls it when it is refreshed, not when it is read.
    CREATE MATERIALIZED VIEW numbered_title AS
        SELECT title, nextval('ticket_seq') AS number FROM book;

    CREATE VIEW numbered_book AS
        SELECT nextval('ticket_seq') AS number, title FROM book;
    CREATE VIEW numbered_twice AS SELECT * FROM numbered_book;
    CREATE VIEW numbered_thrice AS
        SELECT n.number, s.name FROM shelf s, LATERAL (
            SELECT number FROM numbered_twice LIMIT 1) n;
    CREATE VIEW filtered_by_bump AS SELECT title FROM book WHERE bump() > 0;
    CREATE VIEW bump_in_operator AS SELECT id, copies @+ 1 AS more FROM book;
    CREATE VIEW bump_in_aggregate AS
        SELECT bumping_sum(copies) AS copies FROM book;
    CREATE VIEW bump_in_domain AS SELECT copies::ticketed AS copies FROM book;
    CREATE VIEW locked_book AS SELECT * FROM book FOR UPDATE;
    CREATE VIEW locked_in_view AS
        SELECT pg_try_advisory_lock(7) AS held, title FROM book;
    CREATE VIEW bump_in_row AS SELECT b.bumped FROM book b;
    CREATE VIEW stock.level AS SELECT stock.level(1) AS n;

    CREATE VIEW filled_slip AS SELECT id FROM
        jsonb_populate_record(NULL::slip, '{"number": 1}');

    -- A standby has no unlogged table.
    CREATE UNLOGGED TABLE unlogged_sale (id integer);
    CREATE VIEW last_sale AS SELECT max(id) AS id FROM unlogged_sale;
    CREATE TABLE any_sale (id integer);
    CREATE UNLOGGED TABLE lost_sale () INHERITS (any_sale);

    -- Rows that a role sees are chosen by a function; superusers see all.
    CREATE TABLE secret (id integer, word text);
    INSERT INTO secret VALUES (1, 'open');
    ALTER TABLE secret ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY by_ticket ON secret USING (bump() > 0);
"""

# Once there is such an operator class, nothing is known to be a read.
RANKS = """
    CREATE TYPE rank AS (n integer);
    CREATE FUNCTION compare_and_bump(rank, rank) RETURNS integer
        LANGUAGE sql VOLATILE AS $$ SELECT
            sign($1.n - $2.n)::integer + 0 * nextval('ticket_seq')::integer $$;
    CREATE FUNCTION before(rank, rank) RETURNS boolean
        LANGUAGE sql IMMUTABLE AS $$ SELECT $1.n < $2.n $$;
    CREATE FUNCTION same(rank, rank) RETURNS boolean
        LANGUAGE sql IMMUTABLE AS $$ SELECT $1.n = $2.n $$;
    CREATE FUNCTION after(rank, rank) RETURNS boolean
        LANGUAGE sql IMMUTABLE AS $$ SELECT $1.n > $2.n $$;
    CREATE OPERATOR #<# (FUNCTION = before, LEFTARG = rank, RIGHTARG = rank);
    CREATE OPERATOR #=# (FUNCTION = same, LEFTARG = rank, RIGHTARG = rank);
    CREATE OPERATOR #># (FUNCTION = after, LEFTARG = rank, RIGHTARG = rank);
    CREATE OPERATOR CLASS rank_order DEFAULT FOR TYPE rank USING btree AS
        OPERATOR 1 #<#, OPERATOR 3 #=#, OPERATOR 5 #>#,
        FUNCTION 1 compare_and_bump(rank, rank);
    CREATE TABLE ranked (id integer, rank rank);
    INSERT INTO ranked VALUES (1, ROW(3)), (2, ROW(1)), (3, ROW(2));
"""

BOOKS = """
    INSERT INTO shelf (name) VALUES ('s1'), ('s2');
    INSERT INTO book (title, copies, facts, shelf_id)
        SELECT title, copies, '{"pages": 100}', shelf.id FROM shelf,
            (VALUES ('a', 1), ('b', 2), ('c', NULL)) AS v (title, copies)
        WHERE shelf.name = 's1';
"""


def create(cluster: Cluster, database: str) -> None:
    """Fill a database with the corpus' tables, functions and views

    After its registry was built, which would wonder at the types.

    :param cluster: whose replicas have it when this returns
    :param database: with the tables of test4's models
    """
    cluster.primary.execute(
        TICKETS, BOOKS, TABLES, FUNCTIONS, VIEWS, database=database
    )
    cluster.wait_for_replay()
