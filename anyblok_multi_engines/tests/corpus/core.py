# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Statements of SQLAlchemy's Core, on the tables of the models and others."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    TIMESTAMP,
    BigInteger,
    Column,
    Date,
    Float,
    ForeignKey,
    Function,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    Sequence,
    String,
    Table,
    Text,
    TypeDecorator,
    and_,
    any_,
    bindparam,
    case,
    cast,
    collate,
    column,
    delete,
    distinct,
    except_,
    exists,
    extract,
    false,
    func,
    insert,
    intersect,
    lambda_stmt,
    lateral,
    literal,
    literal_column,
    not_,
    null,
    nulls_last,
    or_,
    quoted_name,
    select,
    table,
    text,
    true,
    tuple_,
    type_coerce,
    union,
    union_all,
    update,
    values,
)
from sqlalchemy.dialects.postgresql import (
    ARRAY,
    DOMAIN,
    INET,
    JSONB,
    JSONPATH,
    TSTZRANGE,
    TSVECTOR,
    UUID,
    Range,
    aggregate_order_by,
    array,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.schema import CreateIndex, CreateTable, Index
from sqlalchemy.types import UserDefinedType

metadata = MetaData()
category = Table(
    "category",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("parent_id", ForeignKey("category.id")),
    Column("name", String),
)
sale = Table(
    "sale",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("day", Date, primary_key=True),
    Column("shop", String),
    Column("amount", Numeric(12, 2)),
)
talk = Table(
    "event",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", TIMESTAMP(timezone=True)),
    Column("during", TSTZRANGE),
    Column("room", Integer),
    Column("payload", JSONB),
    Column("tags", ARRAY(Text)),
    Column("words", TSVECTOR),
    Column("seats", Integer),
    Column("host", INET),
    Column("token", UUID),
)
ticket = Table(
    "ticket",
    metadata,
    Column(
        "id", BigInteger, Sequence("ticket_seq"), primary_key=True, default=None
    ),
    Column("label", Text),
)
invoice = Table(
    "invoice",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("number", String),
)
odd = Table(
    "Odd Table",
    metadata,
    Column("select", Integer),
    Column("Name", Text),
    Column("for update", Integer),
)
shelf_size = Table(
    "shelf_size", metadata, Column("name", String), Column("books", Integer)
)
level_of_book = Table(
    "level_of_book", metadata, Column("quantity", Integer), schema="stock"
)
title_count = Table("title_count", metadata, Column("n", Integer))
numbered_book = Table(
    "numbered_book",
    metadata,
    Column("number", BigInteger),
    Column("title", String),
)
numbered_thrice = Table("numbered_thrice", metadata, Column("name", String))
locked_book = Table("locked_book", metadata, Column("title", String))
sequence = Sequence("ticket_seq")


class Percent(TypeDecorator):
    """A type that only changes values"""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value and value // 100


class Shouted(TypeDecorator):
    """A type that puts a harmless function around its columns"""

    impl = String
    cache_ok = True

    def column_expression(self, column: Any) -> Any:
        return func.upper(column)


class Numbered(TypeDecorator):
    """A type that puts a function that writes around its columns"""

    impl = String
    cache_ok = True

    def column_expression(self, column: Any) -> Any:
        return column + cast(func.bump(), String)


class NumberedValue(TypeDecorator):
    """A type that puts a function that writes around its values"""

    impl = Integer
    cache_ok = True

    def bind_expression(self, bindvalue: Any) -> Any:
        return func.bump(bindvalue)


class Ticketed(UserDefinedType):
    """The name of a domain whose check writes"""

    cache_ok = True

    def get_col_spec(self, **kw: Any) -> str:
        return "ticketed"


def reads(book: Any, shelf: Any) -> dict[str, Any]:
    """Return what a standby runs, and leaves nothing behind"""
    b = book.c
    s = shelf.c
    t = talk.c
    other = book.alias("other")
    of_shelf = b.shelf_id == s.id
    big = select(book).where(b.copies > 1)
    tree = (
        select(category.c.id, category.c.name)
        .where(category.c.parent_id.is_(None))
        .cte("tree", recursive=True)
    )
    tree = tree.union_all(
        select(category.c.id, tree.c.name + "/" + category.c.name).where(
            category.c.parent_id == tree.c.id
        )
    )
    top = (
        select(b.title)
        .where(of_shelf)
        .order_by(b.copies.desc())
        .limit(1)
        .lateral("top")
    )
    monthly = (
        select(
            func.date_trunc("month", sale.c.day).label("month"),
            sale.c.shop,
            func.sum(sale.c.amount).label("amount"),
        )
        .group_by("month", sale.c.shop)
        .cte("monthly")
    )
    rows = values(column("id", Integer), column("word", String), name="v").data(
        [(1, "a"), (2, "b")]
    )
    numbers = (
        func.generate_series(1, b.copies)
        .table_valued("n")
        .render_derived()
        .lateral("g")
    )

    element = (
        func.jsonb_array_elements_text(t.payload["tags"])
        .table_valued("tag", with_ordinality="place", name="element")
        .render_derived()
    )
    return {
        "column": select(b.title),
        "table": select(book),
        "table's own select": book.select().where(b.copies > 1),
        "no table": select(1),
        "literals": select(
            literal("a"), literal(Decimal("1.5")), null(), true(), false()
        ),
        "dates": select(
            literal(date(2026, 2, 28)),
            literal(datetime(2026, 2, 28, tzinfo=UTC)),
            literal(timedelta(days=1)),
        ),
        "bytes": select(literal(b"\x00x", LargeBinary)),
        "where": select(b.title).where(b.copies > 1, b.title != "x"),
        "and, or, not": select(b.id).where(
            or_(and_(b.copies > 1, b.title == "a"), not_(b.id == 3))
        ),
        "in a list": select(b.id).where(b.id.in_([1, 2, 3])),
        "in nothing": select(b.id).where(b.id.in_([])),
        "not in": select(b.id).where(b.title.not_in(["a", "b"])),
        "tuple in": select(b.id).where(
            tuple_(b.id, b.title).in_([(1, "a"), (2, "b")])
        ),
        "between": select(b.id).where(b.copies.between(1, 2)),
        "is null": select(b.id).where(b.shelf_id.is_(None)),
        "is distinct from": select(b.id).where(b.copies.is_distinct_from(1)),
        "like": select(b.id).where(
            b.title.like("a%"), b.title.startswith("x_", autoescape=True)
        ),
        "ilike and contains": select(b.id).where(
            or_(b.title.ilike("%A%"), b.title.icontains("b"))
        ),
        "regex": select(b.title.regexp_replace("a", "b")).where(
            b.title.regexp_match("^[a-z]", flags="i")
        ),
        "custom operators": select(
            b.title.op("~*")("a"), b.title.op("||")("x")
        ),
        "boolean operator": select(b.id).where(
            b.title.bool_op("!~")("z"), b.copies.op("%")(2) == 1
        ),
        "arithmetic": select(
            b.copies * 2 + 1, b.copies / 2, b.copies % 2, -b.copies
        ),
        "bitwise": select(
            b.id.bitwise_and(1), b.id.bitwise_xor(3), b.id.bitwise_lshift(2)
        ),
        "concatenation": select(b.title + ": " + s.name).where(of_shelf),
        "order": select(b.title).order_by(
            b.copies.desc(), nulls_last(b.shelf_id), b.title.collate("C")
        ),
        "order by a label": select(b.copies.label("n")).order_by("n"),
        "limit": select(b.title).limit(2).offset(1),
        "fetch with ties": select(b.title)
        .order_by(b.copies)
        .fetch(1, with_ties=True),
        "distinct": select(b.title).distinct(),
        "distinct on": select(b.shelf_id, b.title)
        .distinct(b.shelf_id)
        .order_by(b.shelf_id, b.id),
        "join": select(b.title, s.name).join(shelf, of_shelf),
        "outer join": select(s.name, func.count(b.id))
        .outerjoin(book, of_shelf)
        .group_by(s.name)
        .having(func.count(b.id) >= 0),
        "full join": select(b.id, s.id).select_from(
            book.join(shelf, of_shelf, full=True)
        ),
        "self join": select(b.id).join(other, other.c.title == b.title),
        "cross join": select(func.count()).select_from(
            book.join(shelf, true())
        ),
        "aggregates": select(
            func.count(),
            func.sum(b.copies),
            func.avg(b.copies),
            func.min(b.title),
            func.max(b.title),
        ),
        "count distinct": select(func.count(distinct(b.title))),
        "aggregate with a filter": select(
            func.count().filter(b.copies > 1), func.bool_and(b.copies > 0)
        ).select_from(book),
        "ordered aggregate": select(
            func.string_agg(b.title, aggregate_order_by(literal(", "), b.title))
        ),
        "aggregated strings": select(func.aggregate_strings(b.title, ", ")),
        "array aggregate": select(
            func.array_agg(aggregate_order_by(b.title, b.id.desc()))
        ),
        "within group": select(
            func.percentile_cont(0.5).within_group(b.copies),
            func.mode().within_group(b.title),
        ),
        "window": select(
            b.title,
            func.rank().over(partition_by=b.shelf_id, order_by=b.copies),
            func.sum(b.copies).over(order_by=b.id, rows=(-2, 0)),
            func.lag(b.title, 1).over(order_by=b.id),
        ),
        "grouping sets": select(
            sale.c.shop, sale.c.day, func.sum(sale.c.amount)
        ).group_by(func.grouping_sets(tuple_(sale.c.shop), tuple_(sale.c.day))),
        "rollup": select(sale.c.shop, func.sum(sale.c.amount)).group_by(
            func.rollup(sale.c.shop)
        ),
        "case": select(
            case((b.copies > 1, "many"), else_="few"),
            case({1: "one", 2: "two"}, value=b.copies),
        ),
        "cast": select(cast(b.copies, String), cast("1.5", Float)),
        "type_coerce": select(type_coerce(b.title, Text)),
        "coalesce and friends": select(
            func.coalesce(b.copies, 0),
            func.nullif(b.copies, 1),
            func.greatest(b.copies, 2),
        ),
        "collation": select(collate(b.title, "C")),
        "scalar subquery": select(
            b.title,
            select(s.name).where(of_shelf).scalar_subquery(),
        ),
        "subquery": select(func.max(column("n"))).select_from(
            select(func.count(b.id).label("n")).group_by(b.shelf_id).subquery()
        ),
        "exists": select(s.name).where(exists().where(of_shelf)),
        "not exists": select(s.name).where(~select(b.id).exists()),
        "in a subquery": select(b.id).where(
            b.shelf_id.in_(select(s.id).where(s.name.like("s%")))
        ),
        "any of a subquery": select(b.id).where(
            b.copies > any_(select(b.copies).scalar_subquery())
        ),
        "any of an array": select(t.id).where(
            literal("x") == any_(t.tags), t.tags.contains(["x"])
        ),
        "cte": select(big.cte("big").c.title),
        "materialized cte": select(
            big.cte("big").prefix_with("MATERIALIZED").c.id
        ),
        "nested cte": select(
            select(big.cte("inside", nesting=True)).cte("outside").c.title
        ),
        "added cte": select(b.id).add_cte(big.cte("unused")),
        "recursive cte": select(tree),
        "lateral": select(s.name, top.c.title).join(top, true()),
        "lateral of a subquery": select(
            lateral(select(b.title).where(of_shelf)).c.title
        ).select_from(shelf),
        "lateral function": select(b.id, numbers.c.n).select_from(
            book.join(numbers, true())
        ),
        "union": union(select(b.title), select(s.name)).order_by("title"),
        "union all of limits": union_all(
            select(b.id).limit(1), select(s.id).limit(1)
        ),
        "intersect and except": except_(
            intersect(select(b.id), select(s.id)), select(literal(7))
        ),
        "subquery of a union": select(
            union(select(b.id), select(s.id)).subquery().c.id
        ),
        "values": select(rows).where(rows.c.id > 1),
        "table function": select(
            func.generate_series(1, 3).table_valued("n").render_derived().c.n
        ),
        "scalar of a table function": select(
            func.unnest(array(["a", "b"])).column_valued("tag")
        ),
        "json elements": select(t.id, element.c.tag, element.c.place).join(
            element, true()
        ),
        "json": select(
            t.payload["kind"].astext, t.payload[("tags", 0)].as_string()
        ).where(t.payload.contains({"kind": "talk"})),
        "json keys": select(t.id).where(
            t.payload.has_key("kind"), t.payload.has_any(array(["a", "n"]))
        ),
        "json number": select(t.id).where(t.payload["n"].as_integer() > 3),
        "json functions": select(
            func.jsonb_build_object("id", t.id, "tags", t.tags),
            func.to_jsonb(t.tags),
        ),
        "json aggregate": select(func.json_object_agg(b.title, b.copies)).where(
            b.title.is_not(None)
        ),
        "json path": select(
            func.jsonb_path_exists(
                t.payload, cast('$.tags[*] ? (@ == "a")', JSONPATH)
            )
        ),
        "facts of a book": select(b.facts),
        "arrays": select(
            t.tags[1], t.tags[1:2], func.array_length(t.tags, 1)
        ).where(t.tags.overlap(["x", "z"])),
        "array of literals": select(array([1, 2]) + array([b.id])),
        "full text search": select(
            t.id, func.ts_rank(t.words, func.to_tsquery("simple", "talk"))
        ).where(t.words.op("@@")(func.plainto_tsquery("simple", "talk"))),
        "match": select(b.id).where(b.title.match("a")),
        "ranges": select(t.id, func.lower(t.during)).where(
            t.during.overlaps(Range(datetime(2026, 3, 3, tzinfo=UTC), None))
        ),
        "range holds": select(t.id).where(t.during.contains(t.at)),
        "network": select(func.host(t.host)).where(
            t.host.op("<<")(cast("10.0.0.0/8", INET))
        ),
        "uuid": select(t.id).where(t.token.is_not(None)),
        "extract": select(
            extract("year", t.at), extract("epoch", t.at)
        ).distinct(),
        "dates and intervals": select(
            func.now() - timedelta(days=1),
            t.at + cast("1 day", Interval),
            func.age(t.at),
        ),
        "time zone": select(func.timezone("Europe/Paris", t.at)),
        "formatted date": select(func.to_char(sale.c.day, "YYYY-MM")),
        "this month": select(func.sum(sale.c.amount)).where(
            sale.c.day >= func.date_trunc("month", func.current_date())
        ),
        "report": select(
            monthly,
            func.row_number().over(
                partition_by=monthly.c.month,
                order_by=monthly.c.amount.desc(),
            ),
        ).order_by(monthly.c.month),
        "clock": select(
            func.now(), func.current_timestamp(), func.clock_timestamp()
        ),
        "random": select(b.title).order_by(func.random()),
        "uuid generator": select(func.gen_random_uuid()),
        "own immutable function": select(func.vat(sale.c.amount)),
        "own stable function": select(b.id).where(func.last_day() < func.now()),
        "own function in a schema": select(func.stock.quantity(b.id)),
        "own function of rows": select(
            func.sales_of("shop 1").table_valued("amount").c.amount
        ),
        "own aggregate": select(func.longest(b.title)),
        "own operator": select(b.copies.op("<~>")(3)),
        "function with its schema": select(func.pg_catalog.upper(b.title)),
        "capitals of a function's name": select(func.Capital()),
        "function as the statement": func.current_database(),
        "view": select(shelf_size).where(shelf_size.c.books >= 0),
        "view in a schema": select(level_of_book.c.quantity),
        "materialized view": select(title_count.c.n),
        "system table": select(
            table("pg_class", column("relname"), schema="pg_catalog")
        ),
        "information schema": select(
            table("tables", column("table_name"), schema="information_schema")
        ).limit(1),
        "odd names": select(odd).where(odd.c["select"] == 1),
        "light table": select(column("title")).select_from(table("book")),
        "names of writes": select(
            b.title.label("nextval"), b.id.label("for update")
        ),
        "tablesample": select(
            book.tablesample(func.bernoulli(50), seed=literal(1)).c.id
        ),
        "partitioned table": select(func.count()).select_from(sale),
        "expanding parameter": select(b.id).where(
            b.id.in_(bindparam("ids", [1, 2], expanding=True))
        ),
        "literal execute": select(b.id).where(
            b.id == bindparam("x", 1, literal_execute=True)
        ),
        "type that changes values": select(b.id).where(
            type_coerce(b.copies, Percent) == literal(200, Percent)
        ),
        "type that calls a harmless function": select(
            type_coerce(b.title, Shouted)
        ),
        "textual order": select(b.title).order_by(text("book.title")),
        "textual condition": select(b.title).where(
            text("copies > :n").bindparams(n=0)
        ),
        "textual column": select(text("title, copies")).select_from(book),
        "literal column": select(literal_column("upper(title)")).select_from(
            book
        ),
        "text with columns": text("SELECT id, title FROM book").columns(
            id=Integer, title=String
        ),
        "text as a subquery": select(
            text("SELECT id FROM book").columns(id=Integer).subquery("x").c.id
        ),
        "streamed": select(b.title).execution_options(yield_per=2),
        "stream of results": select(b.title).execution_options(
            stream_results=True
        ),
        "statement of a lambda": lambda_stmt(lambda: select(category.c.name)),
    }


def traps(book: Any, shelf: Any) -> dict[str, dict[str, Any]]:
    """Return what is no read, by what makes each of them none"""
    b = book.c
    next_number = sequence.next_value()
    changed = update(book).values(copies=1).returning(b.id)
    made = insert(ticket).values(label="x").returning(ticket.c.id)
    locked = select(b.id).with_for_update()
    # A name that PostgreSQL takes for a function of the row.
    fields = table("book", column("bumped"), column("id")).alias("b")

    return {
        "DML": {
            "insert": insert(ticket).values(label="x"),
            "insert of many": insert(ticket).values(
                [{"label": "x"}, {"label": "y"}]
            ),
            "insert returning": made,
            "insert of a select": insert(ticket).from_select(
                ["label"], select(b.title)
            ),
            "upsert": upsert(ticket)
            .values(id=1, label="x")
            .on_conflict_do_update(index_elements=["id"], set_={"label": "y"}),
            "upsert that does nothing": upsert(ticket)
            .values(id=1, label="x")
            .on_conflict_do_nothing(),
            "update": update(book).values(copies=b.copies + 1),
            "update from": update(book)
            .values(copies=1)
            .where(b.shelf_id == shelf.c.id),
            "update returning": changed,
            "delete": delete(ticket),
            "delete using": delete(ticket).where(ticket.c.id == b.id),
            "delete returning": delete(ticket).returning(ticket.c.label),
            "table's own insert": ticket.insert().values(label="x"),
        },
        "DML in a CTE": {
            "update": select(changed.cte("x").c.id),
            "insert": select(made.cte("x").c.id),
            "delete": select(
                delete(ticket).returning(ticket.c.id).cte("x").c.id
            ),
            "added, unused": select(b.id).add_cte(changed.cte("x")),
            "in an exists": select(select(changed.cte("x").c.id).exists()),
            "in a union": union(select(b.id), select(made.cte("x").c.id)),
            "in a cte": select(select(changed.cte("x").c.id).cte("y").c.id),
            "in a subquery": select(
                select(changed.cte("x").c.id).subquery().c.id
            ),
            "nested": select(
                select(b.id)
                .where(b.id.in_(select(changed.cte("x").c.id)))
                .cte("y")
                .c.id
            ),
            "of a returned sequence": select(
                insert(invoice)
                .values(number="x")
                .returning(invoice.c.id)
                .cte("x")
                .c.id
            ),
        },
        "row lock": {
            "for update": locked,
            "for no key update": select(b.id).with_for_update(key_share=True),
            "for share": select(b.id).with_for_update(read=True),
            "for key share": select(b.id).with_for_update(
                read=True, key_share=True
            ),
            "skip locked": select(b.id)
            .limit(1)
            .with_for_update(skip_locked=True),
            "nowait": select(b.id).with_for_update(nowait=True),
            "of a table": select(b.id)
            .join(shelf, b.shelf_id == shelf.c.id)
            .with_for_update(of=book),
            "in a subquery": select(locked.subquery().c.id),
            "in a cte": select(locked.cte("x").c.id),
            "in an expression": select(locked.limit(1).scalar_subquery()),
            "in an exists": select(locked.exists()),
            "in a lateral": select(locked.lateral("x").c.id),
            "in a condition": select(shelf.c.id).where(shelf.c.id.in_(locked)),
            "in a subquery of a union": union(
                select(locked.subquery().c.id), select(b.id)
            ),
            "in a view": select(locked_book.c.title),
        },
        "sequence": {
            "nextval": select(func.nextval("ticket_seq")),
            "setval": select(func.setval("ticket_seq", 1_000)),
            "currval": select(func.currval("ticket_seq")),
            "lastval": select(func.lastval()),
            "in capitals": select(func.NextVal("ticket_seq")),
            "with its schema": select(func.pg_catalog.nextval("ticket_seq")),
            "next_value": select(next_number),
            "sequence itself": sequence,
            "sequence of a schema": select(
                Sequence("move_seq", schema="stock").next_value()
            ),
            "function as the statement": func.nextval("ticket_seq"),
            "in where": select(b.id).where(next_number > 0),
            "in order": select(b.id).order_by(next_number),
            "in group": select(func.count()).group_by(
                func.nextval("ticket_seq")
            ),
            "in limit": select(b.id).limit(func.nextval("ticket_seq")),
            "in offset": select(b.id).offset(next_number),
            "in from": select(func.nextval("ticket_seq").column_valued("n")),
            "in a case": select(case((b.id > 0, next_number))).select_from(
                book
            ),
            "in a cast": select(cast(next_number, String)),
            "in a coalesce": select(func.coalesce(None, next_number)),
            "in a window": select(
                func.sum(b.copies).over(order_by=func.nextval("ticket_seq"))
            ),
            "in a filter": select(func.count().filter(next_number > 0)),
            "in within group": select(
                func.percentile_cont(0.5).within_group(next_number)
            ),
            "in an aggregate's order": select(
                func.array_agg(aggregate_order_by(b.id, next_number))
            ),
            "in a join": select(b.id).join(shelf, shelf.c.id == next_number),
            "in a lateral": select(
                book.c.id,
                n := select(next_number.label("n")).lateral("x").c.n,
            ).join(n.table, true()),
            "in a scalar subquery": select(
                select(next_number).scalar_subquery()
            ),
            "in a cte": select(select(next_number.label("n")).cte("x").c.n),
            "in a union": union_all(select(literal(1)), select(next_number)),
            "in values": select(
                values(column("n", BigInteger), name="v").data(
                    [(func.nextval("ticket_seq"),)]
                )
            ),
            "in an array": select(array([1, func.nextval("ticket_seq")])),
            "in a tuple": select(b.id).where(
                tuple_(b.id, next_number) > tuple_(1, 2)
            ),
            "in distinct on": select(b.id).distinct(func.nextval("ticket_seq")),
            "in a tablesample": select(
                book.tablesample(
                    func.bernoulli(func.nextval("ticket_seq") % 100)
                ).c.id
            ),
            "in a subscript": select(array([1, 2])[cast(next_number, Integer)]),
            "in extract": select(
                extract("year", func.to_timestamp(next_number))
            ),
            "in an operator": select(b.id.op("+")(func.nextval("ticket_seq"))),
            "in a row of a type": select(
                func.row(1, func.nextval("ticket_seq"))
            ),
            "by a field": select(
                literal_column("('ticket_seq'::regclass).nextval")
            ),
        },
        "SQL as text": {
            "column": select(text("nextval('ticket_seq')")),
            "literal column": select(literal_column("nextval('ticket_seq')")),
            "condition": select(b.id).where(text("nextval('ticket_seq') > 0")),
            "order": select(b.id).order_by(text("nextval('ticket_seq')")),
            "from": select(text("n")).select_from(
                text("nextval('ticket_seq') AS n")
            ),
            "suffix": select(b.id).suffix_with("FOR UPDATE"),
            "prefix": select(b.id).prefix_with("nextval('ticket_seq'),"),
            "hint": select(b.id).with_statement_hint("FOR UPDATE"),
            "operator": select(
                b.id.op("+ nextval('ticket_seq') +")(literal(1))
            ),
            "column's name": select(
                column("nextval('ticket_seq')", is_literal=True)
            ),
            "end of a text": select(text("title FROM book FOR UPDATE")),
            "part of a comment": select(
                literal_column("1 /*"), literal_column("*/, bump()")
            ),
            "text with columns": select(
                text("SELECT nextval('ticket_seq') AS n")
                .columns(n=Integer)
                .subquery("x")
                .c.n
            ),
            "text as a cte": select(
                text("UPDATE book SET copies = 1 RETURNING id")
                .columns(id=Integer)
                .cte("x")
                .c.id
            ),
            "extract": select(
                extract(
                    "year FROM now()) + nextval('ticket_seq') + extract(year",
                    func.now(),
                )
            ),
        },
        "advisory lock": {
            "session": select(func.pg_advisory_lock(1)),
            "shared": select(func.pg_advisory_lock_shared(1)),
            "transaction": select(func.pg_advisory_xact_lock(1)),
            "try": select(func.pg_try_advisory_lock(1)),
            "try, transaction": select(func.pg_try_advisory_xact_lock(1, 2)),
            "as the statement": func.pg_advisory_lock(1),
            "in where": select(b.id).where(
                func.pg_try_advisory_xact_lock(b.id)
            ),
        },
        "session": {
            "set_config": select(func.set_config("corpus.word", "x", False)),
            "local set_config": select(
                func.set_config("work_mem", "5MB", True)
            ),
            "pg_notify": select(func.pg_notify("news", "x")),
            "txid": select(func.txid_current()),
            "xid": select(func.pg_current_xact_id()),
            "large object": select(func.lo_create(0)),
            "large object's end": select(func.lo_unlink(4242)),
        },
        "own function": {
            "by name": select(func.bump()),
            "by schema": select(func.stock.reserve(1, 2)),
            "in a schema, as harmless in another": select(func.stock.level(1)),
            "that inserts": select(func.take_ticket("x")),
            "overloaded with a harmless one": select(
                func.price(cast("x", Text))
            ),
            "overloads PostgreSQL's own": select(func.initcap(b.copies)),
            "default argument": select(func.numbered("x")),
            "of rows": select(func.bump_all(3).column_valued("n")),
            "of rows, lateral": select(
                b.id,
                many := func.bump_all(b.copies).column_valued("n"),
            ).join(many.scalar_alias, true()),
            "quoted capital": select(Function(quoted_name("Loud", True))),
            "not folded": select(Function("\u212aick")),
            "aggregate": select(func.bumping_sum(b.copies)),
            "aggregate's end": select(func.finally_bumping_sum(b.copies)),
            "operator": select(b.copies.op("@+")(1)),
            "as a column": select(fields.c.bumped),
            "as a column, in where": select(fields.c.id).where(
                fields.c.bumped > 0
            ),
            "as a column of a function": select(
                func.generate_series(1, 2).table_valued("bump", name="x").c.bump
            ),
            "domain": select(cast(b.copies, Ticketed)),
            "domain of SQLAlchemy": select(
                cast(b.copies, DOMAIN("ticketed", Integer))
            ),
            "domain of an array": select(
                cast(array([b.copies]), ARRAY(DOMAIN("ticketed", Integer)))
            ).select_from(book),
            "type around columns": select(type_coerce(b.title, Numbered)),
            "type around values": select(b.id).where(
                b.copies == literal(1, NumberedValue)
            ),
        },
        "view": {
            "nextval": select(numbered_book),
            "view of views": select(numbered_thrice),
            "in a subquery": select(
                select(func.max(numbered_book.c.number)).scalar_subquery()
            ),
            "in a join": select(b.id).join(numbered_book, true()),
            "in an exists": select(select(numbered_book.c.number).exists()),
            "light table": select(column("more")).select_from(
                table("bump_in_operator")
            ),
            "light table in a schema": select(
                table("level", column("n"), schema="stock")
            ),
            "textual from": select(text("*")).select_from(
                text("numbered_book")
            ),
            "beside a cte of its name": select(
                select(literal(1).label("n")).cte("numbered_book").c.n,
                select(
                    table(
                        "numbered_book", column("number"), schema="public"
                    ).c.number
                )
                .limit(1)
                .scalar_subquery(),
            ),
        },
        "DDL": {
            "create table": CreateTable(
                Table("made", MetaData(), Column("id", Integer))
            ),
            "create index": CreateIndex(Index("by_shop", sale.c.shop)),
        },
        # No read by the rule, though nothing is refused and nothing is left.
        "not provable": {
            "volatile by default": select(func.forgotten(1)),
            "volatile, and this time harmless": select(func.bump_if(False)),
            "overloaded with a writing one": select(func.price(1)),
            "policy that a superuser passes": select(
                table("secret", column("word")).c.word
            ),
        },
    }


#: To call them reads, or not, is right either way.
EITHER = {
    "function that is unknown to SQLAlchemy's tree": select(
        func.pg_catalog.pg_size_pretty(func.pg_relation_size("book"))
    ),
    "prefix": select(literal(1)).prefix_with("/* a comment */"),
}
