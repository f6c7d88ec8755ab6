# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Random statements: reads without, and no reads with, one write in them.

A statement is drawn as a tree of the grammar below, and then rendered: once
as it is, and once with a write at one of its places. Every query has one
column, ``n``, of whole numbers, so that any tree is valid SQL.
"""

import re
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from sqlalchemy import (
    Integer,
    String,
    Text,
    case,
    cast,
    column,
    delete,
    except_,
    func,
    insert,
    intersect,
    join,
    literal,
    literal_column,
    select,
    table,
    text,
    true,
    union,
    union_all,
    update,
    values,
)
from sqlalchemy.dialects.postgresql import array, dialect

from anyblok_multi_engines.routing.catalogue import Catalogue
from anyblok_multi_engines.tests.corpus import schema
from anyblok_multi_engines.tests.corpus.core import (
    Ticketed,
    numbered_book,
    sequence,
    shelf_size,
    ticket,
)

# The same examples in every run: a failure is found again by anybody.
REPRODUCIBLE = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
DEPTH = 4

# Of spaces and words; a draw of hypothesis for each would take its time.
SEEDS = st.integers(0, 2**32)

# A % is not doubled, as for a driver.
DIALECT = dialect(paramstyle="named")

# A tree is the name of a form, the same as the method that renders it, and
# its parts. The forms without parts end it.
GRAMMAR: dict[str, dict[str, tuple[str, ...]]] = {
    "expression": {
        "own_column": (),
        "outer_column": (),
        "number": (),
        "sum": ("expression", "expression"),
        "absolute": ("expression",),
        "least": ("expression", "expression"),
        "conditional": ("condition", "expression", "expression"),
        "converted": ("expression",),
        "element": ("expression", "expression"),
        "own_function": ("expression",),
        "own_operator": ("expression", "expression"),
        "scalar": ("query",),
    },
    "condition": {
        "positive": (),
        "compared": ("expression", "expression"),
        "among": ("expression", "query"),
        "existing": ("query",),
        "both": ("condition", "condition"),
        "negated": ("condition",),
    },
    "source": {
        "books": (),
        "view": (),
        "derived": ("query",),
        "cte": ("query",),
        "joined": ("source", "source", "condition"),
        "lateral": ("source", "query"),
        "series": ("expression",),
        "rows": ("expression", "expression"),
    },
    "query": {
        "plain": ("source", "expression"),
        "filtered": ("source", "expression", "condition"),
        "ordered": ("source", "expression", "expression"),
        "grouped": ("source", "expression", "expression"),
        "aggregated": ("source", "expression", "condition"),
        "windowed": ("source", "expression", "expression"),
        "distinct": ("source", "expression"),
        "united": ("query", "query"),
        "chained": ("query", "query"),
        "common": ("query", "query"),
        "without": ("query", "query"),
    },
}

Tree = tuple[Any, ...]
LOCKS = {
    "for update": {},
    "for no key update": {"key_share": True},
    "for share": {"read": True},
    "for key share": {"read": True, "key_share": True},
}


@st.composite
def trees(draw: Any, sort: str = "query", depth: int = DEPTH) -> Tree:
    """Draw a tree of a sort

    :param depth: of forms with parts at most, but for queries, that have some
    """
    forms = GRAMMAR[sort]
    if depth <= 0:
        forms = {k: v for k, v in forms.items() if not v} or {
            "plain": forms["plain"]
        }

    form = draw(st.sampled_from(sorted(forms)))
    return (form, *(draw(trees(part, depth - 1)) for part in forms[form]))


class Renderer:
    """Renders trees as statements of SQLAlchemy's Core

    :param book: the table of the books
    :param place: number of the expression to which a write is added; None:
        there is none
    :param write: from an expression to one that writes
    """

    def __init__(
        self,
        book: Any,
        place: int | None = None,
        write: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.book = book
        self.place = place
        self.write = write
        self.places = 0
        self._names = (f"x{n}" for n in count())
        # The columns that an expression may name: of its own query, and of
        # the query around.
        self._own: Any = None
        self._outer: Any = None

    def query(self, tree: Tree) -> Any:
        """Return the statement of a tree, with what is around it kept"""
        around = self._own, self._outer
        form, *parts = tree
        try:
            return getattr(self, f"query_{form}")(*parts)
        finally:
            self._own, self._outer = around

    def expression(self, tree: Tree) -> Any:
        """Return an expression: one of the places for a write"""
        form, *parts = tree
        result = getattr(self, f"expression_{form}")(*parts)
        self.places += 1
        if self.write is not None and self.places - 1 == self.place:
            return result + self.write(self.book, result)

        return result

    def condition(self, tree: Tree) -> Any:
        form, *parts = tree
        return getattr(self, f"condition_{form}")(*parts)

    def source(self, tree: Tree) -> tuple[Any, Any]:
        """Return what stands in a FROM, and a column of it"""
        form, *parts = tree
        return getattr(self, f"source_{form}")(*parts)

    def inside(self, tree: Tree) -> Any:
        """Return a query that may name the columns of the one around"""
        self._own, own = None, self._own
        self._outer, outer = own, self._outer
        try:
            return self.query(tree)
        finally:
            self._own, self._outer = own, outer

    def apart(self, tree: Tree, render: Callable[[Tree], Any]) -> Any:
        """Return what is rendered without any column around"""
        around = self._own, self._outer
        self._own = self._outer = None
        try:
            return render(tree)
        finally:
            self._own, self._outer = around

    def from_(self, tree: Tree) -> Any:
        """Render a FROM, whose column is then the query's own"""
        source, self._own = self.apart(tree, self.source)
        return source

    def not_outer(self, tree: Tree, render: Callable[[Tree], Any]) -> Any:
        """Return the argument of an aggregate, which would be the outer's"""
        self._outer, outer = None, self._outer
        try:
            return render(tree)
        finally:
            self._outer = outer

    # Expressions

    def expression_own_column(self) -> Any:
        return literal(2) if self._own is None else self._own

    def expression_outer_column(self) -> Any:
        return literal(3) if self._outer is None else self._outer

    def expression_number(self) -> Any:
        return literal(1)

    def expression_sum(self, left: Tree, right: Tree) -> Any:
        return self.expression(left) + self.expression(right)

    def expression_absolute(self, value: Tree) -> Any:
        return func.abs(self.expression(value), type_=Integer)

    def expression_least(self, left: Tree, right: Tree) -> Any:
        return func.least(
            self.expression(left), self.expression(right), type_=Integer
        )

    def expression_conditional(self, test: Tree, yes: Tree, no: Tree) -> Any:
        return case(
            (self.condition(test), self.expression(yes)),
            else_=self.expression(no),
        )

    def expression_converted(self, value: Tree) -> Any:
        text_ = cast(self.expression(value), String)
        return cast(func.length(text_), Integer)

    def expression_element(self, first: Tree, second: Tree) -> Any:
        elements = array([self.expression(first), self.expression(second)])
        return elements[1]

    def expression_own_function(self, value: Tree) -> Any:
        return func.level(cast(self.expression(value), Integer), type_=Integer)

    def expression_own_operator(self, left: Tree, right: Tree) -> Any:
        return cast(self.expression(left), Integer).op(
            "<~>", return_type=Integer()
        )(cast(self.expression(right), Integer))

    def expression_scalar(self, tree: Tree) -> Any:
        return self.inside(tree).limit(1).scalar_subquery()

    # Conditions

    def condition_positive(self) -> Any:
        return self.expression(("own_column",)) > 0

    def condition_compared(self, left: Tree, right: Tree) -> Any:
        return self.expression(left) <= self.expression(right)

    def condition_among(self, value: Tree, tree: Tree) -> Any:
        return self.expression(value).in_(self.inside(tree))

    def condition_existing(self, tree: Tree) -> Any:
        return self.inside(tree).exists()

    def condition_both(self, left: Tree, right: Tree) -> Any:
        return self.condition(left) & self.condition(right)

    def condition_negated(self, value: Tree) -> Any:
        return ~self.condition(value)

    # Sources

    def source_books(self) -> Any:
        books = self.book.alias(next(self._names))
        return books, books.c.copies

    def source_view(self) -> Any:
        view = shelf_size.alias(next(self._names))
        return view, view.c.books

    def source_derived(self, tree: Tree) -> Any:
        derived = self.query(tree).subquery(next(self._names))
        return derived, derived.c.n

    def source_cte(self, tree: Tree) -> Any:
        cte = self.query(tree).cte(next(self._names))
        return cte, cte.c.n

    def source_joined(self, left: Tree, right: Tree, test: Tree) -> Any:
        first, self._own = self.source(left)
        second, _ = self.apart(right, self.source)
        return join(first, second, self.condition(test)), self._own

    def source_lateral(self, left: Tree, tree: Tree) -> Any:
        first, self._own = self.source(left)
        second = self.inside(tree).lateral(next(self._names))
        return join(first, second, true()), second.c.n

    def source_series(self, end: Tree) -> Any:
        numbers = (
            func.generate_series(1, func.abs(self.expression(end)) % 3)
            .table_valued(column("n", Integer))
            .render_derived(name=next(self._names))
        )
        return numbers, numbers.c.n

    def source_rows(self, first: Tree, second: Tree) -> Any:
        rows = values(column("n", Integer), name=next(self._names)).data(
            [(self.expression(first),), (self.expression(second),)]
        )
        return rows, rows.c.n

    # Queries

    def query_plain(self, source: Tree, value: Tree) -> Any:
        from_ = self.from_(source)
        return select(self.expression(value).label("n")).select_from(from_)

    def query_filtered(self, source: Tree, value: Tree, test: Tree) -> Any:
        return self.query_plain(source, value).where(self.condition(test))

    def query_ordered(self, source: Tree, value: Tree, key: Tree) -> Any:
        plain = self.query_plain(source, value)
        # A number would be the position of a column.
        key_ = func.coalesce(self.expression(key), 0)
        return plain.order_by(key_).limit(2)

    def query_grouped(self, source: Tree, value: Tree, key: Tree) -> Any:
        from_ = self.from_(source)
        counted = func.count(self.not_outer(value, self.expression))
        key_ = func.coalesce(self.expression(key), 0)
        grouped = select(counted.label("n")).select_from(from_)
        return grouped.group_by(key_).having(func.count() > 0)

    def query_aggregated(self, source: Tree, value: Tree, test: Tree) -> Any:
        from_ = self.from_(source)
        highest = func.max(self.not_outer(value, self.expression)).filter(
            self.not_outer(test, self.condition)
        )
        return select(highest.label("n")).select_from(from_)

    def query_windowed(self, source: Tree, value: Tree, key: Tree) -> Any:
        from_ = self.from_(source)
        window = func.max(self.expression(value)).over(
            order_by=self.expression(key)
        )
        return select(window.label("n")).select_from(from_)

    def query_distinct(self, source: Tree, value: Tree) -> Any:
        return self.query_plain(source, value).distinct()

    def _combined(self, combine: Any, left: Tree, right: Tree) -> Any:
        return combine(
            *(
                select(
                    self.apart(tree, self.query).subquery(next(self._names)).c.n
                )
                for tree in (left, right)
            )
        )

    def query_united(self, left: Tree, right: Tree) -> Any:
        return self._combined(union, left, right)

    def query_chained(self, left: Tree, right: Tree) -> Any:
        return self._combined(union_all, left, right)

    def query_common(self, left: Tree, right: Tree) -> Any:
        return self._combined(intersect, left, right)

    def query_without(self, left: Tree, right: Tree) -> Any:
        return self._combined(except_, left, right)


def counted(statement: Any) -> Any:
    """Return the number of the rows that a statement in a CTE returns"""
    return (
        select(func.count()).select_from(statement.cte("hidden"))
    ).scalar_subquery()


def one_of(statement: Any) -> Any:
    return statement.limit(1).scalar_subquery()


#: From the table of the books and a number, to a number and a write.
HIDDEN: dict[str, Callable[[Any, Any], Any]] = {
    "nextval": lambda b, x: func.nextval("ticket_seq"),
    "setval": lambda b, x: func.setval("ticket_seq", func.abs(x) + 1),
    "currval": lambda b, x: func.currval("ticket_seq"),
    "next_value": lambda b, x: sequence.next_value(),
    "literal column": lambda b, x: literal_column("nextval('ticket_seq')"),
    "advisory lock": lambda b, x: cast(
        func.pg_try_advisory_xact_lock(cast(x, Integer)), Integer
    ),
    "set_config": lambda b, x: func.length(
        func.set_config("corpus.word", cast(x, Text), True)
    ),
    "pg_notify": lambda b, x: func.length(
        cast(func.pg_notify("news", cast(x, Text)), Text)
    ),
    "transaction id": lambda b, x: func.txid_current(),
    "large object": lambda b, x: func.lo_unlink(4242),
    "own function": lambda b, x: func.bump(),
    "own function of a number": lambda b, x: func.bump(cast(x, Integer)),
    "own function of a schema": lambda b, x: func.stock.reserve(1, 1),
    "default argument": lambda b, x: func.length(func.numbered("x")),
    "own operator": lambda b, x: cast(x, Integer).op("@+")(1),
    "own domain": lambda b, x: cast(cast(x, Ticketed), Integer),
    "own aggregate": lambda b, x: select(
        func.bumping_sum(b.alias("hidden").c.copies)
    ).scalar_subquery(),
    "function of a row": lambda b, x: one_of(
        select(table("book", column("bumped")).alias("hidden").c.bumped)
    ),
    "view": lambda b, x: select(
        func.max(numbered_book.c.number)
    ).scalar_subquery(),
    "view as the source": lambda b, x: one_of(
        select(literal(1)).select_from(table("filtered_by_bump"))
    ),
    "function as the source": lambda b, x: one_of(
        select(func.bump_all(1).column_valued("hidden"))
    ),
    "update": lambda b, x: counted(
        update(b).values(copies=1).returning(b.c.id)
    ),
    "insert": lambda b, x: counted(
        insert(ticket).values(label="x").returning(ticket.c.id)
    ),
    "delete": lambda b, x: counted(delete(ticket).returning(ticket.c.id)),
    **{
        name: lambda b, x, how=how: one_of(
            select(b.alias("hidden").c.id).with_for_update(**how)
        )
        for name, how in LOCKS.items()
    },
}

#: From a SELECT as a text to one that writes.
AROUND = (
    "SELECT * INTO copied FROM ({}) x",
    "WITH x AS (DELETE FROM ticket RETURNING id) SELECT n FROM ({}) y, x",
    "SELECT * FROM ({}) x, book FOR NO KEY UPDATE OF book",
    "SELECT nextval('ticket_seq'), x.* FROM ({}) x",
    "INSERT INTO ticket (id) {}",
    "WITH x AS ({}) INSERT INTO ticket (id) SELECT n FROM x",
    "EXPLAIN (ANALYZE) INSERT INTO ticket (id) {}",
    "{}; DELETE FROM ticket",
    "DELETE FROM ticket; {}",
    "CREATE TABLE copied AS {}",
    "DECLARE c CURSOR WITH HOLD FOR {}",
    "PREPARE p AS {}",
    "COPY ({}) TO PROGRAM 'true'",
    "DO $do$ BEGIN PERFORM n FROM ({}) x; END $do$",
)

# How a text may be written otherwise, and mean the same.
WORDS = re.compile(r"""'(?:[^']|'')*'|"[^"]*"|\w+|\s+|.""", re.DOTALL)
SPACES = (
    " ",
    "\n",
    "\t\f ",
    "\r\n",
    " /* x */ ",
    "/**/",
    " /* ' /* \" */ ; */ ",
    " -- don't\n",
    " --\r",
    " --/*\n",
)
CAN_BE_QUOTED = frozenset(
    """
    abs book bump copies count generate_series id length level max n nextval
    numbered_book pg_notify set_config setval shelf_size ticket
    """.split()
)


def respelt(sql: str, random: Random) -> str:
    """Return a text that means the same, with other words and spaces"""
    return "".join(respelt_word(word, random) for word in WORDS.findall(sql))


def respelt_word(word: str, random: Random) -> str:
    if word.isspace():
        return random.choice(SPACES)

    if word in "(,":
        return word + random.choice(("", *SPACES))

    if word in CAN_BE_QUOTED and random.random() < 0.3:
        return f'"{word}"'

    if word.isidentifier() and word.isascii():
        return random.choice((word, word.upper(), word.title()))

    return word


def as_text(statement: Any, random: Random) -> str:
    """Return a statement as a text, spelt at random"""
    try:
        compiled = statement.compile(
            dialect=DIALECT, compile_kwargs={"literal_binds": True}
        )
    except TypeError:
        # SQLAlchemy's own: an UPDATE in a lateral query in a FROM.
        reject()

    return respelt(str(compiled), random)


@pytest.fixture(scope="module")
def registry(shared_servers, module_registry):
    schema.create(shared_servers.cluster, shared_servers.database)
    module_registry.statements.catalogue = Catalogue()
    return module_registry


def test_statement_with_a_hidden_write_is_never_a_read(registry):
    book = registry.Book.__table__
    need_of = registry.statements.need_of

    @REPRODUCIBLE
    @given(
        trees(),
        st.integers(0, 10_000),
        st.sampled_from(sorted(HIDDEN)),
        SEEDS,
    )
    def check(tree: Tree, place: int, name: str, seed: int) -> None:
        clean = Renderer(book)
        clean.query(tree)
        statement = Renderer(book, place % clean.places, HIDDEN[name]).query(
            tree
        )
        assert not need_of(statement).is_read
        assert not need_of(text(as_text(statement, Random(seed)))).is_read

    check()


def test_text_around_which_something_writes_is_never_a_read(registry):
    book = registry.Book.__table__

    @REPRODUCIBLE
    @given(
        trees(),
        st.sampled_from(AROUND),
        SEEDS,
    )
    def check(tree: Tree, around: str, seed: int) -> None:
        random = Random(seed)
        sql = as_text(Renderer(book).query(tree), random)
        sql = respelt(around, random).format(sql)
        assert not registry.statements.need_of(text(sql)).is_read

    check()


def test_statement_without_one_runs_on_a_standby_and_most_are_reads(registry):
    """So the two others show more than that nothing is a read"""
    book = registry.Book.__table__
    verdicts: dict[str, list[bool]] = {"core": [], "text": []}

    @REPRODUCIBLE
    @given(trees(), SEEDS)
    def check(tree: Tree, seed: int) -> None:
        statement = Renderer(book).query(tree)
        respelt_ = text(as_text(statement, Random(seed)))
        for style, clause in (("core", statement), ("text", respelt_)):
            connection.execute(clause).all()
            need = registry.statements.need_of(clause)
            verdicts[style].append(need.is_read)

    with registry.engine_of("replica1").connect() as connection:
        check()

    for style, known in verdicts.items():
        share = sum(known) / len(known)
        print(f"{style}: {share:.1%} of {len(known)} reads are recognised")
        assert share >= 0.95, style
