# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The code of choose-a-server.rst; tests/test_choose_a_server.py runs it."""

from sqlalchemy import func, select

from anyblok_multi_engines.errors import StaleReadError


def take_a_copy(registry, title):
    with registry.use_primary():
        book = registry.Book.query().filter_by(title=title).one()
        book.copies -= 1
        registry.commit()


def job_of(registry):
    @registry.use_primary()
    def count_copies():
        return registry.scalar(select(func.sum(registry.Book.copies)))

    return count_copies


def report(registry):
    Book = registry.Book
    with registry.use_replicas():
        return registry.execute(select(Book.title, Book.copies)).all()


def ask_one_server(registry):
    books = select(func.count()).select_from(registry.Book)
    now = registry.scalar(books.execution_options(anyblok_server="primary"))
    seen = registry.scalar(books.execution_options(anyblok_server="replica1"))
    some = registry.scalar(books.execution_options(anyblok_server="replica"))
    return now, seen, some


def ask_in_the_call(registry):
    return registry.session.scalars(
        select(registry.Book.title),
        execution_options={"anyblok_server": "primary"},
    ).all()


def done(registry, work):
    """Do a unit of work; on the primary where it had read an old row"""
    try:
        result = work(registry)
        registry.commit()
        return result
    except StaleReadError:
        registry.rollback()

    with registry.use_primary():
        result = work(registry)
        registry.commit()
        return result


def explain(registry):
    print(registry.explain(registry.Book.query()))
    print(registry.explain("SELECT nextval('numbers')"))
    print(registry.explain("SELECT title FROM book FOR UPDATE"))
