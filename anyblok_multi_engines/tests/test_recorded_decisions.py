# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What an application's own tests ask: which server took this?"""

import pytest
from sqlalchemy import text
from sqlalchemy.sql.elements import ColumnElement

from anyblok_multi_engines.errors import ReplicaWriteError
from anyblok_multi_engines.testing import assert_served_by, recorded_decisions

HELLO = text("SELECT current_setting('port')")


@pytest.fixture
def registry(shared_registry):
    return shared_registry


class TestRecordedDecisions:
    def test_statement_its_server_and_its_reason(self, registry):
        with recorded_decisions() as recorded:
            registry.Book.query().filter_by(title="secret").all()

        (only,) = recorded
        assert only.server in ("replica1", "replica2")
        assert only.reason == "usable_replica"
        assert only.sql.startswith("SELECT book.")
        assert "secret" not in only.sql

    def test_place_is_the_application_s(self, registry):
        with recorded_decisions(registry) as recorded:
            registry.execute(HELLO)
            registry.Book.insert(title="x")
            registry.Book.query().one()

        lines = [int(x.place.rpartition(":")[2]) for x in recorded]
        assert {x.place.rpartition(":")[0] for x in recorded} == {__file__}
        assert lines == list(range(lines[0], lines[0] + 3))

    def test_flush_and_bare_connection(self, registry):
        with recorded_decisions() as recorded:
            registry.Book.insert(title="x")
            registry.connection()

        assert [x.sql for x in recorded] == [
            "a flush of ModelBook",
            "a connection",
        ]

    def test_statement_without_a_server(self, registry):
        with (
            recorded_decisions() as recorded,
            registry.use_replicas(),
            pytest.raises(ReplicaWriteError),
        ):
            registry.execute(text("DELETE FROM book"))

        assert recorded[0].server is None
        assert recorded[0].reason == "write_on_replicas"

    def test_statement_that_has_no_sql(self, registry):
        class Odd(ColumnElement):
            inherit_cache = False

        with recorded_decisions() as recorded, pytest.raises(Exception):  # noqa: B017, PT011
            registry.execute(Odd())

        for each in recorded:
            assert "Odd" in str(each)

    def test_after_the_block_nothing_is_recorded(self, registry):
        with recorded_decisions() as recorded:
            pass

        registry.execute(HELLO)
        assert recorded == []
        assert not registry.listeners.dispatch.decision


class TestAssertServedBy:
    def test_replica(self, registry):
        with assert_served_by("replica"):
            registry.Book.query().all()
            registry.execute(HELLO)

    def test_primary(self, registry):
        with assert_served_by("primary", registry):
            registry.Book.insert(title="x")

    def test_one_by_its_name(self, registry):
        with registry.use_primary(), assert_served_by("primary"):
            registry.execute(HELLO)

        registry.rollback()
        named = HELLO.execution_options(anyblok_server="replica2")
        with assert_served_by("replica2"):
            registry.execute(named)

        registry.rollback()
        with (
            pytest.raises(AssertionError, match="not served by replica1"),
            assert_served_by("replica1"),
        ):
            registry.execute(named)

    def test_decorates(self, registry):
        @assert_served_by("primary")
        def read():
            return registry.execute(HELLO).scalar()

        with pytest.raises(AssertionError):
            read()

    def test_says_what_went_elsewhere_why_and_where_it_is(self, registry):
        @assert_served_by("replica")
        def work():
            registry.execute(HELLO)
            registry.Book.insert(title="x")

        with pytest.raises(AssertionError) as error:
            work()

        first, second = str(error.value).splitlines()
        assert first == "1 of 2 statements not served by replica:"
        assert __file__ in second
        assert "primary (flushing: a flush writes): a flush of" in second

    def test_block_without_a_statement_is_an_error(self, registry):
        with (
            pytest.raises(AssertionError, match="Nothing was asked"),
            assert_served_by("replica"),
        ):
            pass

    def test_error_of_the_block_is_not_hidden(self, registry):
        @assert_served_by("replica")
        def work():
            registry.execute(text("DELETE FROM book"))
            raise KeyError

        with pytest.raises(KeyError):
            work()

    def test_unittest_transaction_is_no_replica(self, servers, make_registry):
        registry = make_registry(
            servers.database,
            {"unittest": True},
            db_wo_url=servers.primary_url,
            db_ro_urls=servers.replica_urls,
        )
        with (
            pytest.raises(AssertionError, match="unittest_transaction"),
            assert_served_by("replica"),
        ):
            registry.execute(HELLO)
