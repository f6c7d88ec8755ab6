# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What an application does with the ORM, on AnyBlok's models and others."""

from typing import Any

from sqlalchemy import (
    String,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    func,
    insert,
    inspect,
    literal,
    literal_column,
    select,
    text,
    true,
    union,
    union_all,
    update,
    values,
)
from sqlalchemy.orm import (
    Bundle,
    aliased,
    column_property,
    contains_eager,
    defer,
    immediateload,
    joinedload,
    lazyload,
    load_only,
    query_expression,
    raiseload,
    relationship,
    selectinload,
    subqueryload,
    undefer,
    undefer_group,
    with_expression,
    with_loader_criteria,
)
from sqlalchemy.orm import registry as mappings

from .core import (
    Numbered,
    category,
    invoice,
    numbered_book,
    sale,
    sequence,
    shelf_size,
    talk,
    ticket,
)

mapping = mappings()
parent = category.alias("parent")


@mapping.mapped
class Category:
    """A tree, whose children are read with it"""

    __table__ = category
    children = relationship(
        "Category", lazy="joined", join_depth=2, order_by=category.c.name
    )
    above = relationship("Category", remote_side=[category.c.id], viewonly=True)
    size = column_property(
        select(func.count())
        .where(parent.c.parent_id == category.c.id)
        .correlate(category)
        .scalar_subquery()
    )
    shout = column_property(func.upper(category.c.name), deferred=True)
    more = query_expression()


@mapping.mapped
class Talk:
    """A mapped table that AnyBlok doesn't know"""

    __table__ = talk
    __mapper_args__ = {  # noqa: RUF012
        "exclude_properties": ["words", "host", "token"]
    }


@mapping.mapped
class Sale:
    """A mapped partitioned table"""

    __table__ = sale


@mapping.mapped
class ShelfSize:
    """A mapped view"""

    __table__ = shelf_size
    __mapper_args__ = {"primary_key": [shelf_size.c.name]}  # noqa: RUF012


@mapping.mapped
class Invoice:
    """A table with a serial key"""

    __table__ = invoice


@mapping.mapped
class NumberedBook:
    """A mapped view that writes"""

    __table__ = numbered_book
    __mapper_args__ = {"primary_key": [numbered_book.c.title]}  # noqa: RUF012


@mapping.mapped
class Bumping:
    """Takes a number whenever it is read"""

    __table__ = category
    bump = column_property(func.bump())


@mapping.mapped
class LateBumping:
    """Takes a number when somebody looks at an attribute"""

    __table__ = category
    bump = column_property(
        category.c.name + cast(sequence.next_value(), String), deferred=True
    )
    own = relationship(
        "Talk",
        primaryjoin=lambda: and_(Talk.room == LateBumping.id, func.bump() > 0),
        foreign_keys=[talk.c.room],
        viewonly=True,
    )
    bumping = relationship(
        "Bumping",
        primaryjoin=lambda: Bumping.parent_id == LateBumping.id,
        foreign_keys=[category.c.parent_id],
        viewonly=True,
    )
    sorted_by_bump = relationship(
        "Category",
        primaryjoin=lambda: Category.parent_id == LateBumping.id,
        foreign_keys=[category.c.parent_id],
        order_by=func.bump(),
        viewonly=True,
    )


@mapping.mapped
class Typed:
    """A column whose type calls a function that writes"""

    __table__ = category
    numbered = column_property(cast(category.c.name, Numbered), deferred=True)


def reads(registry: Any) -> dict[str, Any]:
    """Return what a standby runs, and leaves nothing behind

    A statement, or what a program does.
    """
    Book, Shelf = registry.Book, registry.Shelf
    Above = aliased(Category)
    titles = select(Book.title)
    of_shelf = Book.shelf_id == Shelf.id
    counted = (
        select(Book.shelf_id, func.count().label("n"))
        .group_by(Book.shelf_id)
        .subquery()
    )
    big = select(Book.id).where(Book.copies > 1).cte("big")
    Recent = aliased(
        Book, select(Book).order_by(Book.id.desc()).limit(3).subquery()
    )

    def session() -> Any:
        return registry.session

    def query(*entities: Any) -> Any:
        return registry.session.query(*entities)

    def first() -> Any:
        return Book.query().order_by(Book.id).first()

    def expired() -> Any:
        book = first()
        session().expire(book)
        return book

    return {
        # AnyBlok's own ways
        "all of a model": lambda: Book.query().all(),
        "first of a model": lambda: Book.query().first(),
        "count of a model": lambda: Book.query().count(),
        "one or none of a model": lambda: (
            Book.query().filter_by(title="nothing").one_or_none()
        ),
        "filter of a model": lambda: (
            Book.query().filter(Book.copies > 1, Book.title != "x").all()
        ),
        "filter by relationship": lambda: (
            Book.query().join(Book.shelf).filter(Shelf.name == "s1").all()
        ),
        "columns of a model": lambda: Book.query("id", "title").all(),
        "dictionaries of a model": lambda: Book.query("id").dictall(),
        "dictionary of an instance": lambda: first().to_dict(),
        "get of a model": lambda: Book.query().get(1),
        "from primary keys": lambda: Book.from_primary_keys(id=1),
        "from many primary keys": lambda: Book.from_multi_primary_keys(
            {"id": 1}, {"id": 2}
        ),
        "page of a model": lambda: (
            Book.query().order_by(Book.title).limit(2).offset(1).all()
        ),
        "iteration over a query": lambda: list(Book.query()),
        "aliased model": select(Book.aliased(name="b")),
        "statement of a model": Book.select_sql_statement(),
        "statement of a model's columns": Book.select_sql_statement(
            "id", "title"
        ),
        "execute of a model": lambda: (
            Book.execute(Book.select_sql_statement()).scalars().all()
        ),
        "execute_sql_statement": lambda: Book.execute_sql_statement(
            Book.select_sql_statement("id")
        ).all(),
        "bloks": lambda: registry.execute(
            registry.System.Blok.select_sql_statement("name", "state").where(
                registry.System.Blok.state == "installed"
            )
        ).all(),
        "a blok": lambda: registry.System.Blok.query().first(),
        "refresh of an instance": lambda: first().refresh("title"),
        "expired attribute": lambda: expired().title,
        "expired column": lambda: (
            (book := first()).expire("copies"),
            book.copies,
        ),
        "many to one": lambda: first().shelf.name,
        "one to many": lambda: len(Shelf.query().first().books),
        "one to many, sorted": lambda: sorted(
            x.title for x in Shelf.query().first().books
        ),
        # SQLAlchemy's
        "entity": select(Book),
        "two entities": select(Book, Shelf).join(Shelf, of_shelf),
        "columns": select(Book.id, Book.title),
        "scalars": lambda: session().scalars(select(Book)).all(),
        "scalar": lambda: session().scalar(select(func.count(Book.id))),
        "one": lambda: (
            session().execute(select(Book).where(Book.id == 1)).scalar_one()
        ),
        "get": lambda: session().get(Book, 1),
        "get of nothing": lambda: session().get(Book, -1),
        "get with options": lambda: session().get(
            Book, 1, options=[joinedload(Book.shelf)], populate_existing=True
        ),
        "refresh": lambda: session().refresh(first()),
        "merge": lambda: session().merge(first(), load=False),
        "where": select(Book).where(Book.title.like("a%"), Book.copies > 0),
        "filter by": select(Book).filter_by(title="a"),
        "join of a relationship": select(Book).join(Book.shelf),
        "outer join of a relationship": select(Book).outerjoin(Book.shelf),
        "join of a subquery": select(Shelf.name, counted.c.n).join(
            counted, counted.c.shelf_id == Shelf.id
        ),
        "comparison of a relationship": lambda: (
            session()
            .execute(select(Book).where(Book.shelf == Shelf.query().first()))
            .all()
        ),
        "relationship is none": select(Book).where(Book.shelf == None),  # noqa: E711
        "has": select(Book).where(Book.shelf.has(Shelf.name == "s1")),
        "any": select(Shelf).where(Shelf.books.any(Book.copies > 1)),
        "not any": select(Shelf).where(~Shelf.books.any()),
        "exists": select(Shelf).where(exists().where(of_shelf)),
        "in a subquery": select(Book).where(
            Book.shelf_id.in_(select(Shelf.id))
        ),
        "in parameters": select(Book).where(
            Book.id.in_(bindparam("ids", [1, 2], expanding=True))
        ),
        "scalar subquery": select(
            Shelf,
            select(func.count(Book.id))
            .where(of_shelf)
            .correlate(Shelf)
            .scalar_subquery(),
        ),
        "cte": select(Book).join(big, big.c.id == Book.id),
        "lateral": select(
            Shelf.name,
            select(Book.title)
            .where(of_shelf)
            .order_by(Book.copies.desc())
            .limit(1)
            .lateral("top")
            .c.title,
        ),
        "aliased": select(aliased(Book, name="b")),
        "aliased subquery": select(Recent).order_by(Recent.id),
        "aliased relationship": select(Above.name).join(Above.above),
        "bundle": select(Bundle("book", Book.id, Book.title)),
        "union": union(titles, select(Shelf.name)),
        "union of entities": select(Book).from_statement(
            union_all(
                select(Book).where(Book.copies > 1),
                select(Book).where(Book.copies <= 1),
            )
        ),
        "aliased, of a limit": select(
            aliased(Talk, select(Talk).limit(2).subquery())
        ),
        "from a text": select(Book).from_statement(
            text("SELECT * FROM book WHERE copies > :n").bindparams(n=0)
        ),
        "from a text with columns": select(Book).from_statement(
            text("SELECT id, title FROM book").columns(Book.id, Book.title)
        ),
        "from values": select(
            values(column("n", String), name="v").data([("a",), ("b",)])
        ),
        "distinct": select(Book.shelf_id).distinct(),
        "distinct on": select(Book)
        .distinct(Book.shelf_id)
        .order_by(Book.shelf_id, Book.id),
        "group and having": select(Book.shelf_id, func.sum(Book.copies))
        .group_by(Book.shelf_id)
        .having(func.count() > 0),
        "window": select(
            Book,
            func.row_number().over(
                partition_by=Book.shelf_id, order_by=Book.copies
            ),
        ),
        "case": select(case((Book.copies > 1, "many"), else_="few")),
        "order by relationship": select(Book)
        .join(Book.shelf)
        .order_by(Shelf.name.desc().nulls_last(), Book.id),
        "json of a model": select(Book.facts),
        "json of a mapped class": select(Talk).where(
            Talk.payload["kind"].astext == "talk"
        ),
        "array of a mapped class": select(Talk.id).where(
            Talk.tags.contains(["x"])
        ),
        "partitioned": select(Sale.shop, func.sum(Sale.amount)).group_by(
            Sale.shop
        ),
        "own function": select(Sale, func.vat(Sale.amount)),
        "mapped view": select(ShelfSize).where(ShelfSize.books >= 0),
        "random": select(Book).order_by(func.random()).limit(1),
        "hybrid comparison": select(Book).where(func.lower(Book.title) == "a"),
        "entity in a condition": select(Book).where(
            Book.id == select(func.max(Book.id)).scalar_subquery()
        ),
        # Loaders
        "selectinload": select(Shelf).options(selectinload(Shelf.books)),
        "joinedload": lambda: (
            session()
            .scalars(select(Shelf).options(joinedload(Shelf.books)))
            .unique()
            .all()
        ),
        "joinedload, inner": select(Book).options(
            joinedload(Book.shelf, innerjoin=True)
        ),
        "joinedload and limit": lambda: (
            session()
            .scalars(select(Shelf).options(joinedload(Shelf.books)).limit(1))
            .unique()
            .all()
        ),
        "subqueryload": select(Shelf).options(subqueryload(Shelf.books)),
        "immediateload": select(Book).options(immediateload(Book.shelf)),
        "lazyload": lambda: [
            x.shelf
            for x in session().scalars(
                select(Book).options(lazyload(Book.shelf))
            )
        ],
        "chained loaders": select(Book).options(
            selectinload(Book.shelf).selectinload(Shelf.books)
        ),
        "loader with criteria": select(Shelf).options(
            selectinload(Shelf.books.and_(Book.copies > 1))
        ),
        "raiseload": select(Book).options(raiseload("*")),
        "wildcard": select(Book).options(lazyload("*")),
        "raiseload of one": select(Book).options(raiseload(Book.shelf)),
        "load_only": select(Book).options(load_only(Book.ANYBLOK_FIELD_title)),
        "defer": lambda: [
            x.title
            for x in session().scalars(
                select(Book).options(defer(Book.ANYBLOK_FIELD_title)).limit(1)
            )
        ],
        "undefer": lambda: (
            session()
            .scalars(select(Category).options(undefer(Category.shout)))
            .unique()
            .all()
        ),
        "undefer group": select(Book).options(undefer_group("none")),
        "contains_eager": lambda: (
            session()
            .scalars(
                select(Shelf)
                .join(Shelf.books)
                .options(contains_eager(Shelf.books))
            )
            .unique()
            .all()
        ),
        "with_loader_criteria": select(Book).options(
            with_loader_criteria(Book, Book.copies > 0)
        ),
        "with_expression": lambda: (
            session()
            .scalars(
                select(Category).options(
                    with_expression(Category.more, func.length(Category.name))
                )
            )
            .unique()
            .all()
        ),
        "joined by the mapping": lambda: (
            session().scalars(select(Category)).unique().all()
        ),
        "column property": select(Category.size),
        "deferred column property": lambda: (
            session().scalars(select(Category)).unique().first().shout
        ),
        "polymorphic self": lambda: (
            query(Category).filter(Category.above.has(name="all")).all()
        ),
        # Streams, options of the execution
        "yield_per": lambda: list(
            session().scalars(select(Book).execution_options(yield_per=1))
        ),
        "stream_results": lambda: list(
            session().execute(
                select(Book).execution_options(stream_results=True)
            )
        ),
        "partitions": lambda: list(
            session().scalars(select(Book)).partitions(2)
        ),
        "yield_per of a query": lambda: list(query(Book).yield_per(1)),
        "populate_existing": select(Book).execution_options(
            populate_existing=True
        ),
        # Session.query()
        "query of an entity": lambda: query(Book).all(),
        "query of columns": lambda: query(Book.id, Book.title).all(),
        "query's count": lambda: query(Book).filter_by(title="a").count(),
        "query's exists": lambda: query(
            query(Book).filter_by(title="a").exists()
        ).scalar(),
        "query's get": lambda: query(Shelf).filter(Shelf.id == 1).first(),
        "query's slice": lambda: query(Book).order_by(Book.id)[0:2],
        "query's join": lambda: (
            query(Book, Shelf).join(Shelf, of_shelf).order_by(Book.id).all()
        ),
        "query's subquery": lambda: query(
            func.max(query(Book.copies).subquery().c.copies)
        ).scalar(),
        "query's cte": lambda: query(
            query(Book.title).cte("titles").c.title
        ).all(),
        "query's union": lambda: (
            query(Book.title).union(query(Shelf.name)).all()
        ),
        "query's options": lambda: (
            query(Shelf).options(selectinload(Shelf.books)).all()
        ),
        "query's with_entities": lambda: (
            query(Book).with_entities(func.count()).scalar()
        ),
        "query's execution options": lambda: (
            query(Book).execution_options(stream_results=True).first()
        ),
        "text through the session": lambda: (
            session()
            .execute(text("SELECT title FROM book WHERE id = :id"), {"id": 1})
            .all()
        ),
        "cross join": select(Book.id, Shelf.id).join(Shelf, true()),
        "literal column": select(literal_column("1"), Book.id),
        "literals": select(literal("x"), Book.title + "!"),
    }


def traps(registry: Any) -> dict[str, dict[str, Any]]:
    """Return what is no read, by what makes each of them none"""
    Book, Shelf = registry.Book, registry.Shelf
    next_number = sequence.next_value()
    locked = select(Book.id).with_for_update()
    changed = update(Book).values(copies=1).returning(Book.id)

    def session() -> Any:
        return registry.session

    def query(*entities: Any) -> Any:
        return registry.session.query(*entities)

    def first() -> Any:
        return Book.query().order_by(Book.id).first()

    def flush(change: Any) -> Any:
        def run() -> None:
            change()
            session().flush()

        return run

    def in_savepoint() -> None:
        with session().begin_nested():
            session().add(Invoice(number="x"))

    return {
        "flush": {
            "insert of a model": lambda: Shelf.insert(name="new"),
            "insert of many": lambda: Book.multi_insert(
                {"title": "x"}, {"title": "y"}
            ),
            "add": flush(lambda: session().add(Book(title="x"))),
            "serial": flush(lambda: session().add(Invoice(number="x"))),
            "change": flush(lambda: setattr(first(), "copies", 7)),
            "change of a relationship": flush(
                lambda: setattr(
                    first(), "shelf", Shelf.query().filter_by(name="s2").one()
                )
            ),
            "delete": flush(lambda: session().delete(first())),
            "delete of a model": lambda: first().delete(),
            "autoflush": lambda: (
                session().add(Book(title="x")),
                Book.query().all(),
            ),
            "merge": flush(lambda: session().merge(Invoice(id=77))),
            "in a savepoint": in_savepoint,
            "bulk save": lambda: session().bulk_save_objects(
                [Invoice(number="x")]
            ),
            "bulk insert": lambda: session().bulk_insert_mappings(
                Invoice, [{"number": "x"}]
            ),
            "bulk update": lambda: session().bulk_update_mappings(
                Invoice, [{"id": 1, "number": "x"}]
            ),
            "column that is an expression": flush(
                lambda: session().add(Invoice(number=func.bump()))
            ),
        },
        "DML": {
            "update": update(Book).values(copies=1),
            "update of a model": Book.update_sql_statement().values(copies=1),
            "update, fetch": update(Book)
            .where(Book.copies > 0)
            .values(copies=1)
            .execution_options(synchronize_session="fetch"),
            "update, evaluate": update(Book)
            .where(Book.copies > 0)
            .values(copies=1)
            .execution_options(synchronize_session="evaluate"),
            "update by query": lambda: first().update(byquery=True, copies=1),
            "update returning": changed,
            "update from a statement": select(Book).from_statement(
                update(Book).values(copies=1).returning(Book)
            ),
            "delete": delete(Book).where(Book.id == -1),
            "delete of a model": Book.delete_sql_statement(),
            "delete by query": lambda: first().delete(byquery=True),
            "delete, fetch": delete(Book).execution_options(
                synchronize_session="fetch"
            ),
            "query's update": lambda: query(Book).update({"copies": 1}),
            "query's update, fetch": lambda: query(Book).update(
                {"copies": 1}, synchronize_session="fetch"
            ),
            "query's delete": lambda: query(Book).delete(),
            "insert": insert(Invoice).values(number="x"),
            "insert of many": lambda: session().execute(
                insert(Invoice), [{"number": "x"}, {"number": "y"}]
            ),
            "insert returning": insert(Invoice)
            .values(number="x")
            .returning(Invoice),
            "insert from a statement": select(Invoice).from_statement(
                insert(Invoice).values(number="x").returning(Invoice)
            ),
            "execute_sql_statement": lambda: Book.execute_sql_statement(
                Book.update_sql_statement().values(copies=1)
            ),
            "text": text("UPDATE book SET copies = 1"),
            "text as an entity": select(Book).from_statement(
                text("UPDATE book SET copies = 1 RETURNING *")
            ),
            "text with columns as an entity": select(Book).from_statement(
                text("DELETE FROM book RETURNING id, title").columns(
                    Book.id, Book.title
                )
            ),
        },
        "DML in a CTE": {
            "update": select(Book).join(
                c := changed.cte("x"), c.c.id == Book.id
            ),
            "added": select(Book.id).add_cte(changed.cte("x")),
            "insert": select(
                insert(Invoice)
                .values(number="x")
                .returning(Invoice.id)
                .cte("x")
                .c.id
            ),
            "aliased": select(
                aliased(
                    Invoice,
                    insert(Invoice)
                    .values(number="x")
                    .returning(Invoice)
                    .cte("x"),
                )
            ),
            "in a condition": select(Book).where(
                Book.id.in_(select(changed.cte("x").c.id))
            ),
        },
        "row lock": {
            "for update": select(Book).with_for_update(),
            "for share": select(Book).with_for_update(read=True),
            "for no key update": select(Book).with_for_update(key_share=True),
            "for key share": select(Book.id).with_for_update(
                read=True, key_share=True
            ),
            "skip locked": select(Book)
            .limit(1)
            .with_for_update(skip_locked=True),
            "of an entity": select(Book, Shelf)
            .join(Shelf, Book.shelf_id == Shelf.id)
            .with_for_update(of=Book),
            "query": lambda: query(Book).with_for_update().all(),
            "query of a model": lambda: Book.query().with_for_update().all(),
            "query's first": lambda: (
                query(Book).with_for_update(nowait=True).first()
            ),
            "query, with_for_update of a column": lambda: (
                query(Book.title).with_for_update(read=True).all()
            ),
            "get": lambda: session().get(Book, 1, with_for_update=True),
            "get, options": lambda: session().get(
                Book, 1, with_for_update={"read": True, "nowait": True}
            ),
            "refresh": lambda: session().refresh(first(), with_for_update=True),
            "refresh, options": lambda: session().refresh(
                first(), ["ANYBLOK_FIELD_title"], with_for_update={"read": True}
            ),
            "refresh of a model": lambda: first().refresh(
                "title", with_for_update=True
            ),
            "in a subquery": select(Book).where(Book.id.in_(locked)),
            "in a cte": select(Book).join(
                d := locked.cte("y"), d.c.id == Book.id
            ),
            "aliased": select(
                aliased(Book, select(Book).with_for_update().subquery())
            ),
            "with a loader": select(Book)
            .options(selectinload(Book.shelf))
            .with_for_update(),
            "stream": select(Book)
            .with_for_update()
            .execution_options(yield_per=1),
            "from a statement": select(Book).from_statement(
                select(Book).with_for_update()
            ),
            "from a text": select(Book).from_statement(
                text("SELECT * FROM book FOR UPDATE")
            ),
        },
        "sequence": {
            "scalar": lambda: registry.scalar(sequence),
            "System.Sequence": lambda: (
                registry.System.Sequence.query().first().nextval()
            ),
            "next_value": select(Book.id, next_number),
            "nextval": select(Book, func.nextval("ticket_seq")),
            "in where": select(Book).where(next_number > 0),
            "in order": select(Book).order_by(func.nextval("ticket_seq")),
            "in a query": lambda: query(Book).filter(next_number > 0).all(),
            "in a bundle": select(Bundle("b", Book.id, next_number.label("n"))),
            "currval": select(Book.id, func.currval("ticket_seq")),
            "in a scalar subquery": select(
                Book, select(next_number).scalar_subquery()
            ),
            "in a join": select(Book).join(Shelf, Shelf.id == next_number),
            "in an aliased subquery": select(
                aliased(
                    Book,
                    select(Book).where(next_number > 0).subquery(),
                )
            ),
            "in has": select(Book).where(Book.shelf.has(next_number > 0)),
            "in any": select(Shelf).where(Shelf.books.any(next_number > 0)),
        },
        "mapping": {
            "view that writes": select(NumberedBook),
            "column property": select(Bumping),
            "query of a column property": lambda: query(Bumping).all(),
            "column property alone": select(Bumping.bump),
            "get of a column property": lambda: session().get(Bumping, 1),
            "refresh of a column property": lambda: session().refresh(
                session().get(LateBumping, 1), ["bump"]
            ),
            "deferred": lambda: session().get(LateBumping, 1).bump,
            "deferred, undeferred": select(LateBumping).options(
                undefer(LateBumping.bump)
            ),
            "deferred, undeferred by a wildcard": select(LateBumping).options(
                undefer("*")
            ),
            "deferred, in a condition": select(LateBumping.id).where(
                LateBumping.bump > "0"
            ),
            "joined": lambda: (
                query(LateBumping)
                .options(joinedload(LateBumping.bumping))
                .all()
            ),
            "selected": select(LateBumping).options(
                selectinload(LateBumping.bumping)
            ),
            "lazy": lambda: session().get(LateBumping, 1).bumping,
            "condition of a relationship": lambda: (
                session().get(LateBumping, 1).own
            ),
            "condition of a joined relationship": lambda: (
                query(LateBumping).options(joinedload(LateBumping.own)).all()
            ),
            "condition of a selected relationship": select(LateBumping).options(
                selectinload(LateBumping.own)
            ),
            "condition in a join": select(LateBumping.id).join(LateBumping.own),
            "condition in an any": select(LateBumping.id).where(
                LateBumping.own.any()
            ),
            "order of a relationship": lambda: (
                session().get(LateBumping, 1).sorted_by_bump
            ),
            "order of a joined relationship": lambda: (
                query(LateBumping)
                .options(joinedload(LateBumping.sorted_by_bump))
                .all()
            ),
            "type": lambda: session().get(Typed, 1).numbered,
            "type, undeferred": select(Typed).options(undefer(Typed.numbered)),
        },
        "loader": {
            "criteria of a loader": select(Shelf).options(
                selectinload(Shelf.books.and_(func.bump() > 0))
            ),
            "criteria of a joined loader": lambda: (
                session()
                .scalars(
                    select(Shelf).options(
                        joinedload(Shelf.books.and_(func.bump() > 0))
                    )
                )
                .unique()
                .all()
            ),
            "with_loader_criteria": select(Book).options(
                with_loader_criteria(Book, func.bump() > 0)
            ),
            "with_loader_criteria of a lambda": select(Book).options(
                with_loader_criteria(Book, lambda cls: func.bump() > cls.id)
            ),
            "with_loader_criteria of a loaded one": select(Shelf).options(
                selectinload(Shelf.books),
                with_loader_criteria(Book, func.bump() > 0),
            ),
            "with_expression": lambda: (
                query(Category)
                .options(with_expression(Category.more, func.bump()))
                .all()
            ),
            "order of a query": lambda: query(Book).order_by(func.bump()).all(),
            "joined after a limit": lambda: (
                query(Shelf)
                .options(joinedload(Shelf.books))
                .order_by(func.bump())
                .limit(1)
                .all()
            ),
        },
        "own function": {
            "column": select(Book, func.bump()),
            "condition": select(Book).where(func.bump(Book.copies) > 0),
            "query": lambda: query(func.take_ticket("x")).scalar(),
            "model's query": lambda: Book.query().filter(func.bump() > 0).all(),
            "advisory lock": select(Book.id).where(
                func.pg_try_advisory_lock(Book.id)
            ),
            "set_config": lambda: session().scalar(
                select(func.set_config("corpus.word", "x", False))
            ),
            "function as the statement": lambda: session().scalar(func.bump()),
            "text": select(Book).where(text("bump() > 0")),
            "literal column": select(Book.id, literal_column("bump()")),
            "column of a row": select(literal_column("book.bumped"), Book.id),
            "text order": lambda: query(Book).order_by(text("bump()")).all(),
            "text column": select(Book.id, text("bump()")),
        },
        "no statement": {
            "connection": lambda: (
                session().connection().execute(insert(ticket).values(label="x"))
            ),
            "exec_driver_sql": lambda: (
                session().connection().exec_driver_sql("LISTEN news")
            ),
            "raw cursor": lambda: (
                session()
                .connection()
                .connection.cursor()
                .execute("SELECT pg_advisory_lock(8)")
            ),
        },
        # No read by the rule, though nothing is refused and nothing is left.
        "not provable": {
            "connection": lambda: session().connection(),
            "registry's connection": lambda: registry.connection(),
            "inspection": lambda: inspect(
                session().connection()
            ).get_table_names(),
        },
    }
