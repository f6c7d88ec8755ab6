# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a statement of SQLAlchemy needs, and what is remembered of it."""

import pickle
from dataclasses import replace
from threading import Thread
from timeit import repeat

import pytest
from sqlalchemy import (
    DDL,
    ForeignKey,
    Integer,
    Sequence,
    String,
    any_,
    bindparam,
    case,
    cast,
    column,
    create_engine,
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
    Query,
    Session,
    aliased,
    column_property,
    contains_eager,
    defer,
    joinedload,
    lazyload,
    load_only,
    mapped_column,
    query_expression,
    raiseload,
    relationship,
    selectinload,
    subqueryload,
    with_expression,
    with_loader_criteria,
    with_polymorphic,
)
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.types import TypeDecorator

from anyblok_multi_engines.routing import sql, statements
from anyblok_multi_engines.routing.need import NO_STATEMENT, READ, Kind
from anyblok_multi_engines.routing.statements import (
    Statements,
    need_of,
    shape_of,
)

from .test_sql import CATALOGUE as NAMES

CATALOGUE = replace(
    NAMES,
    functions={
        **NAMES.functions,
        ("pg_catalog", "json_each"): READ,
        ("pg_catalog", "bernoulli"): READ,
    },
    relations={
        ("public", name): READ
        for name in "book shelf desk note ticket vault".split()
    },
)


class Base(DeclarativeBase):
    pass


class Secret(TypeDecorator):
    """A type whose column is decrypted by a function of the database"""

    impl = String
    cache_ok = True

    def column_expression(self, column):
        return func.charge(column)


class Lower(TypeDecorator):
    impl = String
    cache_ok = True

    def column_expression(self, column):
        return func.lower(column)


class Coded(TypeDecorator):
    impl = String
    cache_ok = True

    def bind_expression(self, value):
        return func.lower(value)


class Spending(TypeDecorator):
    impl = String
    cache_ok = True

    def bind_expression(self, value):
        return func.nextval(value)


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
    code = mapped_column(Coded)
    spent = mapped_column(Spending)


class Note(Base):
    __tablename__ = "note"
    id = mapped_column(Integer, primary_key=True)
    kind = mapped_column(String)
    body = mapped_column(String)
    data = mapped_column(postgresql.JSONB)
    size = query_expression()
    __mapper_args__ = {"polymorphic_on": "kind"}  # noqa: RUF012


class Letter(Note):
    to = mapped_column(String)
    __mapper_args__ = {"polymorphic_identity": "letter"}  # noqa: RUF012


class Numbered(Note):
    number = column_property(select(func.nextval("s")).scalar_subquery())
    __mapper_args__ = {"polymorphic_identity": "numbered"}  # noqa: RUF012


class Foreign(ColumnElement):
    inherit_cache = True


class Upper(ColumnElement):
    """Compiled by the application: from what it holds, and no cache key"""

    inherit_cache = False

    def __init__(self, sql):
        self.sql = sql


@compiles(Upper)
def compile_upper(element, compiler, **kwargs):
    return element.sql


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
    "joinedload of all": select(Letter).options(joinedload("*")),
    "subqueryload": select(Shelf).options(subqueryload(Shelf.books)),
    "contains_eager": select(Book)
    .join(Book.shelf)
    .options(contains_eager(Book.shelf)),
    "lazyload": select(Book).options(lazyload("*")),
    "function alone": func.now(),
    "rollup": select(func.count()).group_by(func.rollup(Book.shelf_id)),
    "sample": select(BOOKS.tablesample(func.bernoulli(10))),
    "defer": select(Book).options(defer(Book.title), load_only(Book.id)),
    "bundle": select(Bundle("b", Book.id, Book.title)),
    "yield_per": select(Book).execution_options(yield_per=2),
    "type with a plain function": select(column("x", Lower)),
    "text": text("SELECT 1 WHERE 1 = :x"),
    "text with columns": text("SELECT 1 AS x").columns(x=Integer),
    "text inside": select(text("1"), literal_column("lower('x')")),
    "text in where": select(Book).where(text("copies > :n")),
    "text in from": select(column("x")).select_from(text("book")),
    "from text": select(Book).from_statement(text("SELECT * FROM book")),
    "with_expression": select(Note).options(
        with_expression(Note.size, func.length(Note.body))
    ),
    "criteria": select(Book).options(with_loader_criteria(Book, Book.id > 1)),
    "criteria by a function": select(Shelf).options(
        with_loader_criteria(Book, lambda book: book.id > 1)
    ),
    "prefix": select(Book).prefix_with("/* a hint */"),
    "element that the application compiles": select(Upper("lower('x')")),
    "lambda": lambda_stmt(lambda: select(Book)),
    "query": Query(Book).filter_by(id=1).statement,
    "count of a query": select(func.count()).select_from(
        Query(Book).limit(1).subquery()
    ),
    "any of a parameter": select(Book).where(Book.id == any_(bindparam("ids"))),
    "in with a function around": select(Vault.code).where(
        Vault.code.in_(["a", "b"])
    ),
    "tuple in with a limit": select(Book)
    .where(tuple_(Book.id, Book.copies).in_([(1, 2)]))
    .limit(1),
    "literal_execute": select(bindparam("x", 1, literal_execute=True)),
    "polymorphic": select(with_polymorphic(Note, [Letter])),
    "subclass": select(Letter),
    "json": select(Note.data["a"].astext, Note.data[("a", "b")]),
    "text as a string": "select 1",
    "percent": select(literal_column("5 % 2")),
    "escaped colon": text(r"SELECT '12\:30'\:\:time"),
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
        "pg_advisory_lock()",
    ),
    "for update in a cte": (select(LOCKED.cte("x")), "FOR UPDATE"),
    "from text": (
        select(Book).from_statement(text("UPDATE book SET id=1 RETURNING *")),
        "UPDATE",
    ),
    "from an insert": (
        select(Book).from_statement(insert(Book).returning(Book)),
        "INSERT",
    ),
    "sequence": (Sequence("s"), "Sequence"),
    "table": (CreateTable(BOOKS), "CREATE"),
    "ddl": (DDL("DROP TABLE book"), "DROP"),
    "text": (text("/* SELECT */ update book set id = :x"), "UPDATE"),
    "text in lines": (text("SELECT id\nFROM book\nFOR\n  UPDATE"), "FOR"),
    "escaped colon": (
        text(r"SELECT '\:x', nextval('s')\:\:text"),
        "nextval() writes",
    ),
    "text as a string": ("select nextval('s')", "nextval() writes"),
    "text inside": (select(text("nextval('s')")), "nextval() writes"),
    "text in where": (
        select(Book).where(text("nextval('s') = 1")),
        "nextval() writes",
    ),
    "text in from": (
        select(column("x")).select_from(text("nextval('s') AS x")),
        "nextval() writes",
    ),
    "literal column": (
        select(literal_column("nextval('s')")),
        "nextval() writes",
    ),
    "next value": (select(Sequence("s").next_value()), "nextval() writes"),
    "next value alone": (Sequence("s").next_value(), "nextval() writes"),
    "nextval": (select(func.nextval("s")), "nextval() writes"),
    "nextval alone": (func.nextval("s"), "nextval() writes"),
    "in where": (
        select(Book).where(Book.id == func.nextval("s")),
        "nextval() writes",
    ),
    "in order by": (
        select(Book).order_by(func.nextval("s")),
        "nextval() writes",
    ),
    "in limit": (select(Book).limit(func.nextval("s")), "nextval() writes"),
    "in a join": (
        select(Book).join(Shelf, Shelf.id == func.nextval("s")),
        "nextval() writes",
    ),
    "in from": (
        select(func.nextval("s").table_valued("x")),
        "nextval() writes",
    ),
    "in values": (
        select(
            values(column("x", Integer), name="v").data([(func.nextval("s"),)])
        ),
        "nextval() writes",
    ),
    "in distinct on": (
        distinct_on(select(Book), func.nextval("s")),
        "nextval() writes",
    ),
    "in a window": (
        select(func.sum(Book.id).over(order_by=func.nextval("s"))),
        "nextval() writes",
    ),
    "in a case": (
        select(case((Book.id > 1, func.nextval("s")))),
        "nextval() writes",
    ),
    "column property": (select(Ticket), "nextval() writes"),
    "joined column property": (select(Desk), "nextval() writes"),
    "column property by an option": (
        select(Desk.id, Desk).options(joinedload(Desk.late)),
        "nextval() writes",
    ),
    "column property of a subclass": (
        select(with_polymorphic(Note, [Numbered])),
        "nextval() writes",
    ),
    "with_expression": (
        select(Note).options(with_expression(Note.size, func.nextval("s"))),
        "nextval() writes",
    ),
    "criteria": (
        select(Shelf).options(
            with_loader_criteria(Book, Book.id == func.nextval("s"))
        ),
        "nextval() writes",
    ),
    "criteria of a relation": (
        select(Book).options(
            joinedload(Book.shelf.and_(Shelf.id == func.nextval("s")))
        ),
        "nextval() writes",
    ),
    "prefix": (select(Book).prefix_with("nextval('s'),"), "nextval() writes"),
    "suffix": (select(Book).suffix_with("FOR UPDATE"), "FOR UPDATE"),
    "hint": (select(Book).with_statement_hint("FOR UPDATE"), "FOR UPDATE"),
    "operator": (
        select(Book.id.op("= nextval('s') OR 1 =")(1)),
        "nextval() writes",
    ),
    "extract": (
        select(extract("year FROM nextval('s')); --", func.now())),
        "nextval() writes",
    ),
    "element that the application compiles": (
        select(Upper("nextval('s')")),
        "nextval() writes",
    ),
    "lambda": (
        lambda_stmt(lambda: select(func.nextval("s"))),
        "nextval() writes",
    ),
    "type around an IN": (
        select(Vault.id).where(Vault.spent.in_(["a"])),
        "nextval() writes",
    ),
}

UNPROVEN = {
    "type with a function": (select(Vault), "charge() is volatile"),
    "function of a schema": (select(func.sales.lower("x")), "sales.lower()"),
    "two statements": (text("SELECT 1; SELECT 2"), "2 statements"),
    "column": (BOOKS.c.id, "is not a SELECT"),
    "not compiled": (select(Foreign()), "can't be compiled"),
    "no statement of SQLAlchemy": (object(), "can't be compiled"),
    "schemas of later": (
        select(BOOKS).execution_options(schema_translate_map={None: "x"}),
        "schema_translate_map",
    ),
}


@pytest.mark.parametrize("name", READS)
def test_plain_read(name):
    need = need_of(READS[name], CATALOGUE)
    assert need.is_read, need.because


@pytest.mark.parametrize("name", WRITES)
def test_write(name):
    statement, because = WRITES[name]
    need = need_of(statement, CATALOGUE)
    assert need.kind is Kind.WRITE
    assert because in need.because


@pytest.mark.parametrize("name", UNPROVEN)
def test_not_proven(name):
    statement, because = UNPROVEN[name]
    need = need_of(statement, CATALOGUE)
    assert need.kind is Kind.UNPROVEN
    assert because in need.because


def test_no_statement():
    assert need_of(None, CATALOGUE) == NO_STATEMENT


def test_shape_has_no_value_of_a_parameter():
    statement = select(Book.id).where(
        Book.title == "secret", Book.id.in_([7, 8]), Book.copies > 5
    )
    assert shape_of(statement.limit(9)) == (
        "SELECT book.id \nFROM book \nWHERE book.title = $1 "
        "AND book.id IN ($1) AND book.copies > $2 \n LIMIT $3"
    )


def test_shape_of_an_in_has_the_function_of_its_type():
    assert "IN (lower($1))" in shape_of(READS["in with a function around"])


@pytest.fixture
def judged(monkeypatch):
    """Give the texts that have been judged, in this order"""
    texts = []
    need_of_sql = sql.need_of_sql

    def noting(text, catalogue):
        texts.append(text)
        return need_of_sql(text, catalogue)

    monkeypatch.setattr(sql, "need_of_sql", noting)
    return texts


def test_need_is_worked_out_once_per_shape(judged):
    known = Statements(CATALOGUE)
    for number in range(3):
        assert known.need_of(select(Book).where(Book.id == number)).is_read
        ids = list(range(number))
        assert known.need_of(select(Book).where(Book.id.in_(ids))).is_read
        assert known.need_of(text("select 1")).is_read

    assert not known.need_of(select(Book.id).with_for_update()).is_read
    assert len(judged) == 4


def test_statement_without_a_cache_key_is_known_by_its_text(judged):
    known = Statements(CATALOGUE)
    for _ in range(3):
        assert known.need_of(select(Upper("1"))).is_read
        assert not known.need_of(select(Upper("nextval('s')"))).is_read

    assert len(judged) == 2


def test_element_that_changes_is_compiled_each_time():
    known = Statements(CATALOGUE)
    statement = select(Upper("1"))
    assert known.need_of(statement).is_read
    (element,) = statement.selected_columns
    element.sql = "nextval('s')"
    assert not known.need_of(statement).is_read


def test_lambda_is_known_by_what_it_closes_over():
    known = Statements(CATALOGUE)

    def statement(thing):
        return lambda_stmt(lambda: select(thing))

    def ordered(thing):
        made = lambda_stmt(lambda: select(Book.id))
        made += lambda query: query.order_by(thing)
        return made

    for _ in range(2):
        for make in statement, ordered:
            assert known.need_of(make(Book.id)).is_read
            assert not known.need_of(make(func.nextval("s"))).is_read
            assert known.need_of(make(func.lower("s"))).is_read


def test_options_of_a_statement_are_a_part_of_its_shape():
    known = Statements(CATALOGUE)
    plain = select(Desk.id, Desk).options(lazyload("*"))
    assert known.need_of(plain).is_read
    # It is noted on the statement now, of which the others are made.
    assert known.need_of(plain).is_read
    assert not known.need_of(plain.options(joinedload(Desk.late))).is_read
    assert not known.need_of(plain.with_for_update()).is_read
    translated = plain.execution_options(schema_translate_map={None: "x"})
    assert not known.need_of(translated).is_read
    assert known.need_of(plain).is_read


def test_shapes_are_bounded(monkeypatch):
    monkeypatch.setattr(statements, "MAX_SHAPES", 10)
    known = Statements(CATALOGUE)
    for number in range(35):
        known.need_of(select(Book.id.label(f"x{number}")))
        known.need_of(select(Upper(str(number))))

    assert 0 < len(known._generation.needs) <= 10


NEWER = replace(CATALOGUE, relations={**CATALOGUE.relations})
NEWER.relations["public", "fresh"] = READ
FRESH = text("select * from fresh")


def test_need_of_a_statement_does_not_outlive_its_catalogue_in_a_pickle():
    known = Statements(NEWER)
    statement = select(column("n")).select_from(text("fresh"))
    assert known.need_of(statement).is_read
    assert known.need_of(statement).is_read
    pickled = pickle.dumps(statement)
    assert b"anyblok_multi_engines.routing" not in pickled
    copy = pickle.loads(pickled)
    assert not Statements(CATALOGUE).need_of(copy).is_read


def test_statement_seen_before_costs_the_same_whatever_its_size():
    known = Statements(CATALOGUE)
    taken = []
    for size in (2, 250):
        statement = select(Book.id).where(*(Book.id != n for n in range(size)))
        assert known.need_of(statement).is_read
        taken.append(min(repeat(lambda: known.need_of(statement), number=100)))  # noqa: B023

    small, large = taken
    assert large < 3 * small


def test_another_catalogue_forgets_the_needs():
    known = Statements(CATALOGUE)
    assert not known.need_of(FRESH).is_read
    known.catalogue = NEWER
    assert known.catalogue is NEWER
    assert known.need_of(FRESH).is_read


def test_unknown_name_is_looked_up_anew():
    asked = []

    def refresh():
        asked.append(1)
        return NEWER

    known = Statements(CATALOGUE, refresh=refresh)
    assert known.need_of(text("select 1")).is_read
    assert asked == []
    assert known.need_of(FRESH).is_read
    assert known.catalogue is NEWER
    assert known.need_of(FRESH).is_read
    assert asked == [1]


def test_name_is_asked_for_until_a_server_answers():
    """No server at the first statement, and one at the next"""
    answers = [None, NEWER]
    known = Statements(CATALOGUE, refresh=lambda: answers.pop(0))
    assert known.need_of(FRESH).unknown
    assert known.need_of(FRESH).is_read
    assert answers == []


def test_name_that_stays_unknown_is_asked_for_once():
    asked = []

    def refresh():
        asked.append(1)
        return replace(CATALOGUE)

    known = Statements(CATALOGUE, refresh=refresh)
    for _ in range(3):
        assert known.need_of(FRESH).unknown
        assert known.need_of(text("select strange()")).unknown
        assert known.need_of(select(Upper("strange(1)"))).unknown

    assert len(asked) == 3


def test_refused_shape_stays_refused():
    known = Statements(CATALOGUE)
    statement = select(Book.id).where(Book.id == 1)
    assert known.need_of(statement).is_read
    known.refuse(statement, "25006 of replica1")
    same_shape = select(Book.id).where(Book.id == 2)
    for _ in range(2):
        need = known.need_of(same_shape)
        assert (need.kind, need.because) == (
            Kind.UNPROVEN,
            "25006 of replica1",
        )
        known.forget()

    known.catalogue = NEWER
    assert not known.need_of(same_shape).is_read
    assert known.need_of(select(Book.id)).is_read


def test_refused_shapes_are_bounded(monkeypatch):
    monkeypatch.setattr(statements, "MAX_SHAPES", 10)
    known = Statements(CATALOGUE)
    for number in range(35):
        known.refuse(text(f"select {number}"), "55000")

    assert 0 < len(known._refused) <= 10
    assert not known.need_of(text("select 34")).is_read


def test_what_can_not_be_compiled_need_not_be_refused():
    known = Statements(CATALOGUE)
    known.refuse(select(Foreign()), "25006")
    assert not known.need_of(select(Foreign())).is_read


class Asking(Session):
    """Notes the needs of the clauses that its get_bind receives"""

    def __init__(self):
        engine = create_engine("sqlite://")
        Base.metadata.create_all(engine, tables=[Shelf.__table__, BOOKS])
        super().__init__(engine)
        self.needs = []

    def get_bind(self, mapper=None, *, clause=None, **kwargs):
        self.needs.append(need_of(clause, CATALOGUE))
        return super().get_bind(mapper=mapper, clause=clause, **kwargs)

    def kinds(self):
        """Return the kinds of the needs since the last call"""
        kinds = [need.kind for need in self.needs]
        self.needs.clear()
        return kinds


@pytest.fixture
def session():
    with Asking() as session:
        session.add(Shelf(id=1, books=[Book(id=1), Book(id=2)]))
        session.commit()
        session.kinds()
        yield session

    session.bind.dispose()


# For each: what a session does, and the kinds of what it sends
READ_ONCE = [Kind.READ]
LOCK_ONCE = [Kind.WRITE]
ASKED = {
    "get": (lambda x: x.get(Book, 1), READ_ONCE),
    "get of an expired": (
        lambda x: (x.get(Book, 1), x.expire_all(), x.get(Book, 1)),
        [Kind.READ] * 2,
    ),
    "get for update": (
        lambda x: x.get(Book, 1, with_for_update=True),
        LOCK_ONCE,
    ),
    "refresh": (lambda x: x.refresh(x.get(Book, 1)), [Kind.READ] * 2),
    "refresh for update": (
        lambda x: x.refresh(x.get(Book, 1), with_for_update=True),
        [Kind.READ, Kind.WRITE],
    ),
    "refresh for share": (
        lambda x: x.refresh(x.get(Book, 1), with_for_update={"read": True}),
        [Kind.READ, Kind.WRITE],
    ),
    "lazy load": (lambda x: x.get(Book, 1).shelf, [Kind.READ] * 2),
    "deferred column": (
        lambda x: x.get(Book, 1, options=[defer(Book.title)]).title,
        [Kind.READ] * 2,
    ),
    "selectinload": (
        lambda x: x.scalars(
            select(Shelf).options(selectinload(Shelf.books))
        ).all(),
        [Kind.READ] * 2,
    ),
    "subqueryload": (
        lambda x: x.query(Shelf).options(subqueryload(Shelf.books)).all(),
        [Kind.READ] * 2,
    ),
    "yield_per": (
        lambda x: list(x.scalars(select(Book)).yield_per(1)),
        READ_ONCE,
    ),
    "stream": (
        lambda x: list(x.scalars(select(Book).execution_options(yield_per=1))),
        READ_ONCE,
    ),
    "query": (lambda x: x.query(Book).filter_by(id=1).one(), READ_ONCE),
    "query of a column": (lambda x: x.query(Book.id).first(), READ_ONCE),
    "query for update": (
        lambda x: x.query(Book).with_for_update().all(),
        LOCK_ONCE,
    ),
    "count": (lambda x: x.query(Book).count(), READ_ONCE),
    "count for update": (
        lambda x: x.query(Book).with_for_update().count(),
        LOCK_ONCE,
    ),
    "exists": (
        lambda x: x.query(x.query(Book).exists()).scalar(),
        READ_ONCE,
    ),
    "union": (
        lambda x: x.query(Book).union(x.query(Book)).all(),
        READ_ONCE,
    ),
    "function": (lambda x: x.scalar(func.abs(-1)), READ_ONCE),
    "text": (
        lambda x: x.execute(text("select 1 where 1 = :x"), {"x": 1}),
        READ_ONCE,
    ),
    "query.update": (
        lambda x: x.query(Book).update({"copies": 1}),
        LOCK_ONCE,
    ),
    "delete that evaluates": (
        lambda x: x.query(Book).delete(synchronize_session="evaluate"),
        LOCK_ONCE,
    ),
    # Where there is a RETURNING, the SELECT is asked about and not sent.
    "delete that fetches": (
        lambda x: x.query(Book).delete(synchronize_session="fetch"),
        [Kind.READ, Kind.WRITE],
    ),
    "bulk_save_objects": (
        lambda x: x.bulk_save_objects([Book(id=9)]),
        [Kind.UNPROVEN],
    ),
    "connection": (lambda x: x.connection(), [Kind.UNPROVEN]),
}


@pytest.mark.parametrize("name", ASKED)
def test_session_gives_the_statement_that_it_sends(session, name):
    act, kinds = ASKED[name]
    act(session)
    assert session.kinds() == kinds


def test_threads_share_it():
    known = Statements(CATALOGUE, refresh=lambda: NEWER)
    wrong = []

    def ask():
        for number in range(100):
            label = f"x{number % 7}"
            if not known.need_of(select(Book.id.label(label))).is_read:
                wrong.append(label)

            if known.need_of(select(func.nextval("s").label(label))).is_read:
                wrong.append("nextval")

            if not known.need_of(FRESH).is_read:
                wrong.append("fresh")

            if number % 10 == 0:
                known.forget()

    threads = [Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join()

    assert wrong == []
