# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The application of try-it-out.rst; tests/test_shadow.py runs it."""

from sqlalchemy import text, update


def list_books(registry):
    books = registry.Book.query().all()
    shelves = registry.Shelf.query().all()
    registry.commit()
    return len(books), len(shelves)


def open_book(registry, id):
    book = registry.Book.query().get(id)
    visited = update(registry.Book).where(registry.Book.id == id)
    registry.execute(visited.values(copies=registry.Book.copies + 1))
    shelves = registry.Shelf.query().all()
    registry.commit()
    return book, shelves


def add_book(registry, title):
    book = registry.Book.insert(title=title)
    registry.commit()
    return book.id


def reserve(registry, id):
    registry.execute(
        text("SELECT pg_advisory_xact_lock(:id)").bindparams(id=id)
    )
    book = registry.Book.query().get(id)
    registry.commit()
    return book


def a_day(registry):
    id = add_book(registry, "first")
    for _ in range(60):
        list_books(registry)

    for _ in range(20):
        open_book(registry, id)

    for number in range(9):
        add_book(registry, f"book {number}")
        list_books(registry)

    for _ in range(5):
        reserve(registry, id)
