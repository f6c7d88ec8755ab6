# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A POST in one process, and the GET after it in another."""

from collections import Counter

import pytest
from sqlalchemy import func, select

from ..reader import Reader, serving
from .processes import process

REQUESTS = 1_000


def post(pipe, registry, plan):
    """Commit a book for each title that comes; answer its id and the token"""
    for title in iter(pipe.recv, None):
        book = registry.Book.insert(title=title)
        number = book.id
        registry.commit()
        pipe.send((number, registry.consistency_token()))


def get(pipe, registry, plan):
    """Look for each book that comes, after its token; answer who says what

    Each is a request of its own: nothing is known of the one before.
    """
    Book = registry.Book
    port = func.current_setting("port")
    for number, token in iter(pipe.recv, None):
        with serving(Reader()):
            if token is not None:
                registry.read_after(token)

            found = select(Book.title).where(Book.id == number)
            pipe.send(
                registry.execute(select(port, found.scalar_subquery()))
                .one()
                ._tuple()
            )
            registry.rollback()


@pytest.fixture
def requests(servers):
    """Give a function that does POST and GET, again and again"""
    options = {
        "db_name": servers.database,
        "db_wo_url": servers.primary_url,
        "db_ro_urls": servers.replica_urls,
        "db_ro_wait": 0.2,
    }
    with process(post, options) as poster, process(get, options) as getter:

        def requests(count, with_token):
            misses, served = 0, Counter()
            for number in range(count):
                title = f"book {number}"
                poster.send(title)
                key, token = poster.recv()
                getter.send((key, token if with_token else None))
                port, found = getter.recv()
                misses += found != title
                served[servers.names[port]] += 1

            return misses, served

        yield requests
        for pipe in (poster, getter):
            pipe.send(None)


def test_get_after_post(servers, requests):
    paused, live = servers.cluster.replicas
    paused.pause_replay()
    misses, served = requests(REQUESTS, with_token=True)
    assert misses == 0
    assert served[paused.name] == 0
    assert served[live.name] >= 0.9 * REQUESTS


def test_get_after_post_without_the_token(servers, requests):
    servers.first.pause_replay()
    misses, served = requests(100, with_token=False)
    assert misses > 0
    assert served["primary"] == 0
