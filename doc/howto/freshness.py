# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The code of freshness.rst; tests/test_freshness_howto.py runs it."""

from sqlalchemy import func, select


def send(registry, title):
    book = registry.Book.insert(title=title)
    registry.commit()
    return {"id": book.id, "read_after": registry.consistency_token()}


def receive(registry, message):
    if message["read_after"]:
        registry.read_after(message["read_after"])

    return registry.Book.query().get(message["id"]).title


def read_in_a_block(registry, message):
    with registry.use_replicas(token=message["read_after"]):
        return registry.Book.query().get(message["id"]).title


def count_books(registry):
    books = select(func.count()).select_from(registry.Book)
    with registry.use_replicas(max_staleness=2.0):
        return registry.scalar(books)
