# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""PostgreSQL shows a commit on a replica before it shows it on the primary.

It writes the commit to the log, and makes it visible after that. What is in
between is short, but where a commit waits for a synchronous standby.
"""

import threading

import pytest

from anyblok_multi_engines.testing import wait_until


@pytest.fixture
def book_on_replicas(servers, registry):
    """Insert a book; its commit waits for a standby that isn't there"""
    primary = servers.cluster.primary
    primary.configure(synchronous_standby_names="nobody")
    insert = threading.Thread(
        target=primary.execute,
        args=("insert into book (id, title) values (1, 'a')",),
        kwargs={"database": servers.database},
    )
    insert.start()
    try:
        for replica in servers.cluster.replicas:
            wait_until(
                f"{replica.name} did not replay the commit",
                lambda replica=replica: replica.query(
                    "select id from book", database=servers.database
                ),
            )

        yield
    finally:
        primary.configure(synchronous_standby_names=None)
        insert.join()


def test_primary_may_not_have_what_a_replica_has(book_on_replicas, registry):
    Book = registry.Book
    assert Book.query().count() == 1
    registry.rollback()
    with registry.use_primary():
        assert Book.query().count() == 0
