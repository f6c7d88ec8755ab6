# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What is proven to be a plain read, and what is not."""

import pytest
from sqlalchemy import (
    ForeignKey,
    Integer,
    Sequence,
    String,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    extract,
    false,
    func,
    insert,
    lambda_stmt,
    literal,
    literal_column,
    null,
    select,
    text,
    true,
    tuple_,
    type_coerce,
    union_all,
    update,
    values,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import (
    Bundle,
    DeclarativeBase,
    aliased,
    column_property,
    defer,
    joinedload,
    lazyload,
    load_only,
    mapped_column,
    raiseload,
    relationship,
    selectinload,
    with_expression,
    with_loader_criteria,
)
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.types import TypeDecorator

from anyblok_multi_engines.routing import statements
from anyblok_multi_engines.routing.need import Kind
from anyblok_multi_engines.routing.statements import Statements, need_of


class Base(DeclarativeBase):
    pass


class Secret(TypeDecorator):
    """A type whose column is decrypted by a function of the database"""

    impl = String
    cache_ok = True

    def column_expression(self, column):
        return func.decrypt_and_log(column)


class Lower(TypeDecorator):
    impl = String
    cache_ok = True

    def column_expression(self, column):
        return func.lower(column)


class Shelf(Base):
    __tablename__ = "shelf"
    id = mapped_column(Integer, primary_key=True)
    books = relationship("Book", lazy="joined")


class Book(Base):
    __tablename__ = "book"
    id = mapped_column(Integer, primary_key=True)
    title = mapped_column(String)
    copies = mapped_column(Integer)
    shelf_id = mapped_column(ForeignKey("shelf.id"))
    shelf = relationship("Shelf", lazy="select", overlaps="books")


class Ticket(Base):
    __tablename__ = "ticket"
    id = mapped_column(Integer, primary_key=True)
    next = column_property(select(func.nextval("s")).scalar_subquery())


class Desk(Base):
    """Joins by itself a class with a hidden write"""

    __tablename__ = "desk"
    id = mapped_column(Integer, primary_key=True)
    ticket_id = mapped_column(ForeignKey("ticket.id"))
    ticket = relationship("Ticket", lazy="joined")
    late = relationship("Ticket", lazy="select", viewonly=True)


class Vault(Base):
    __tablename__ = "vault"
    id = mapped_column(Integer, primary_key=True)
    secret = mapped_column(Secret)


class Foreign(ColumnElement):
    inherit_cache = True


class Upper(Foreign):
    """Compiled by the application"""


@compiles(Upper)
def compile_upper(element, compiler, **kwargs):
    return "nextval('s')"


BOOKS = Book.__table__
LOCKED = select(Book.id).with_for_update()
CTE = select(Book.id).where(Book.copies > 1).cte("found")
INSERTED = insert(BOOKS).values(id=1).returning(BOOKS.c.id).cte("made")
DELETED = delete(BOOKS).returning(BOOKS.c.id).cte("gone")
SAY = values(column("x", Integer), name="v").data([(1,)])
ALIAS = aliased(Book)


def distinct_on(statement, expression):
    """Return it with DISTINCT ON, as this version of SQLAlchemy has it"""
    if hasattr(postgresql, "distinct_on"):
        return statement.ext(postgresql.distinct_on(expression))

    return statement.distinct(expression)


READS = {
    "entity": select(Book),
    "entity that joins": select(Shelf),
    "table": select(BOOKS),
    "columns": select(Book.id, Book.title.label("name")),
    "where": select(Book).where(Book.copies > bindparam("n")),
    "in": select(Book).where(Book.id.in_([1, 2])),
    "tuple in": select(Book).where(tuple_(Book.id, Book.copies).in_([(1, 2)])),
    "in a subquery": select(Book).where(Book.shelf_id.in_(select(Shelf.id))),
    "count": select(func.count()),
    "group by": select(Book.shelf_id, func.count(Book.id))
    .group_by(Book.shelf_id)
    .having(func.max(Book.copies) > 1),
    "order by": select(Book).order_by(Book.title.desc().nulls_last()),
    "order by a label": select(Book.id.label("x")).order_by("x"),
    "limit": select(Book).limit(1).offset(2).distinct(),
    "distinct on": distinct_on(select(Book), Book.shelf_id),
    "join": select(Book, Shelf).join(Shelf, Book.shelf_id == Shelf.id),
    "alias": select(ALIAS).join(Book, Book.id == ALIAS.id, isouter=True),
    "exists": select(exists().where(Book.id == 1)),
    "union": select(Book.id).union(select(Shelf.id)),
    "union of limits": union_all(
        select(Book.id).limit(1), select(Shelf.id)
    ).order_by("id"),
    "subquery": select(select(Book.id).subquery()),
    "lateral": select(select(Book.id).lateral()),
    "cte": select(CTE.c.id),
    "recursive cte": select(
        select(literal(1).label("n"))
        .cte("numbers", recursive=True)
        .union_all(select(literal(2)))
    ),
    "window": select(func.row_number().over(order_by=Book.id)),
    "filter": select(func.sum(Book.copies).filter(Book.copies > 1)),
    "within group": select(func.mode().within_group(Book.copies)),
    "case": select(case((Book.copies > 1, 1), else_=2)),
    "cast": select(cast(Book.copies, String)),
    "coerce": select(type_coerce(Book.copies, String)),
    "extract": select(extract("year", func.now())),
    "any": select(literal(1) == any_(select(Book.id).scalar_subquery())),
    "constants": select(null(), true(), false(), literal_column("1")),
    "operators": select(Book.copies + 1, Book.title + "x", -Book.copies),
    "own operator": select(Book.title.op("~*")("x")),
    "between": select(Book).where(Book.copies.between(1, 2)),
    "collate": select(Book).where(Book.title.collate("C") == "x"),
    "like": select(Book).where(Book.title.ilike("%x%")),
    "values": SAY,
    "from values": select(SAY),
    "from function": select(
        func.json_each(Book.title).table_valued("key", "value")
    ),
    "series": select(func.generate_series(1, 3).alias("x")),
    "setting": select(func.current_setting("port")),
    "pg_catalog": select(func.pg_catalog.lower("X")),
    "random": select(func.random(), func.gen_random_uuid()),
    "array": select(postgresql.array([1, 2])),
    "aggregate order": select(
        func.array_agg(postgresql.aggregate_order_by(Book.id, Book.title))
    ),
    "selectinload": select(Shelf).options(selectinload(Shelf.books)),
    "joinedload": select(Book).options(joinedload(Book.shelf)),
    "raiseload": select(Book).options(raiseload("*")),
    "lazyload": select(Book).options(lazyload("*")),
    "function alone": func.now(),
    "rollup": select(func.count()).group_by(func.rollup(Book.shelf_id)),
    "sample": select(BOOKS.tablesample(func.bernoulli(10))),
    "defer": select(Book).options(defer(Book.title), load_only(Book.id)),
    "bundle": select(Bundle("b", Book.id, Book.title)),
    "yield_per": select(Book).execution_options(yield_per=2),
    "type with a plain function": select(column("x", Lower)),
}

WRITES = {
    "insert": (insert(Book), "INSERT"),
    "update": (update(Book).values(copies=1), "UPDATE"),
    "delete": (delete(Book), "DELETE"),
    "insert in a cte": (select(INSERTED.c.id), "INSERT inside"),
    "delete in a cte": (select(DELETED.c.id), "DELETE inside"),
    "independent cte": (select(Book.id).add_cte(DELETED), "DELETE inside"),
    "for update": (LOCKED, "FOR UPDATE"),
    "for share": (select(Book).with_for_update(read=True), "FOR"),
    "skip locked": (select(Book).with_for_update(skip_locked=True), "FOR"),
    "for update in a subquery": (
        select(Shelf).where(Shelf.id.in_(LOCKED)),
        "FOR UPDATE",
    ),
    "for update in a union": (
        union_all(select(Shelf.id), LOCKED),
        "FOR UPDATE",
    ),
    "advisory lock": (
        select(func.pg_advisory_lock(1)),
        "function pg_advisory_lock()",
    ),
    "for update in a cte": (select(LOCKED.cte("x")), "FOR UPDATE"),
}

UNPROVEN = {
    "text": (text("SELECT 1"), "TextClause"),
    "text with columns": (text("SELECT 1").columns(x=Integer), "TextualSelect"),
    "text inside": (select(text("1")), "text('1')"),
    "text in where": (select(Book).where(text("1 = 1")), "text("),
    "text in from": (
        select(column("x")).select_from(text("book")),
        "text('book')",
    ),
    "from text": (select(Book).from_statement(text("SELECT")), "FromStatement"),
    "literal column": (select(literal_column("nextval('s')")), "nextval"),
    "sequence": (Sequence("s"), "Sequence"),
    "next value": (select(Sequence("s").next_value()), "next_value"),
    "nextval": (select(func.nextval("s")), "function nextval()"),
    "setval": (select(func.setval("s", 1)), "function setval()"),
    "set_config": (select(func.set_config("a.b", "1", True)), "set_config"),
    "unknown function": (select(func.charge_card(1)), "charge_card()"),
    "function of a schema": (select(func.mine.lower("x")), "mine.lower()"),
    "function in where": (
        select(Book).where(Book.id == func.nextval("s")),
        "nextval",
    ),
    "function in order by": (
        select(Book).order_by(func.nextval("s")),
        "nextval",
    ),
    "function in limit": (select(Book).limit(func.nextval("s")), "nextval"),
    "function in a join": (
        select(Book).join(Shelf, Shelf.id == func.nextval("s")),
        "nextval",
    ),
    "function in from": (
        select(func.nextval("s").table_valued("x")),
        "nextval",
    ),
    "function in values": (
        select(
            values(column("x", Integer), name="v").data([(func.nextval("s"),)])
        ),
        "nextval",
    ),
    "function in distinct on": (
        distinct_on(select(Book), func.nextval("s")),
        "nextval",
    ),
    "function in a window": (
        select(func.sum(Book.id).over(order_by=func.nextval("s"))),
        "nextval",
    ),
    "function in a case": (
        select(case((Book.id > 1, func.nextval("s")))),
        "nextval",
    ),
    "column property": (select(Ticket), "nextval"),
    "joined column property": (select(Desk), "nextval"),
    "column property by an option": (
        select(Desk.id).options(joinedload(Desk.late)),
        "nextval",
    ),
    "joinedload of all": (
        select(Desk).options(joinedload("*")),
        "harmless",
    ),
    "function alone": (func.nextval("s"), "nextval"),
    "with_expression": (
        select(Ticket.id).options(with_expression(Ticket.next, literal(1))),
        "with_expression",
    ),
    "criteria": (
        select(Book).options(with_loader_criteria(Book, Book.id > 1)),
        "LoaderCriteriaOption",
    ),
    "criteria of a relation": (
        select(Book).options(
            joinedload(Book.shelf.and_(Shelf.id == func.nextval("s")))
        ),
        "nextval",
    ),
    "type with a function": (select(Vault), "decrypt_and_log"),
    "prefix": (select(Book).prefix_with("nextval('s'),"), "prefix_with()"),
    "suffix": (select(Book).suffix_with("FOR UPDATE"), "suffix_with()"),
    "hint": (select(Book).with_statement_hint("FOR UPDATE"), "hint()"),
    "cte prefix": (
        select(select(Book.id).cte("x").prefix_with("x")),
        "prefix_with()",
    ),
    "operator with SQL": (
        select(Book.id.op("= nextval('s') OR 1 =")(1)),
        "operator",
    ),
    "extract with SQL": (
        select(extract("year FROM nextval('s')); --", func.now())),
        "extract",
    ),
    "element of the application": (select(Foreign()), "Foreign"),
    "element that it compiles": (select(Upper()), "Upper"),
    "lambda": (lambda_stmt(lambda: select(Book)), "Lambda"),
}


@pytest.mark.parametrize("name", READS)
def test_plain_read(name):
    need = need_of(READS[name])
    assert need.is_read, need.because


@pytest.mark.parametrize("name", WRITES)
def test_write(name):
    statement, because = WRITES[name]
    need = need_of(statement)
    assert need.kind is Kind.WRITE
    assert because in need.because


@pytest.mark.parametrize("name", UNPROVEN)
def test_not_proven(name):
    statement, because = UNPROVEN[name]
    need = need_of(statement)
    assert need.kind is Kind.UNPROVEN
    assert because in need.because


def test_every_statement_here_is_valid_sql_for_postgresql():
    """A case that can't be compiled would prove nothing"""
    cases = [*READS.values()]
    cases += [statement for statement, _ in (*WRITES.values(),)]
    for statement in cases:
        statement.compile(dialect=postgresql.dialect())


def test_need_is_worked_out_once_per_shape(monkeypatch):
    asked = []

    def counting(clause):
        asked.append(clause)
        return need_of(clause)

    monkeypatch.setattr(statements, "need_of", counting)
    known = Statements()
    for number in range(3):
        assert known.need_of(select(Book).where(Book.id == number)).is_read

    assert not known.need_of(select(Book.id).with_for_update()).is_read
    assert len(asked) == 2


def test_shapes_are_bounded(monkeypatch):
    monkeypatch.setattr(statements, "MAX_SHAPES", 10)
    known = Statements()
    for number in range(35):
        known.need_of(select(Book.id.label(f"x{number}")))

    assert 0 < len(known._needs) <= 10
