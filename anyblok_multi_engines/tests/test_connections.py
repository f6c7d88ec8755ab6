# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the connections of each role are, asked of the servers."""

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError


def test_db_url_takes_its_share(servers, make_registry):
    registry = make_registry(
        servers.database,
        db_url=servers.primary_url,
        db_ro_urls=servers.replica_urls,
    )
    names = []
    for _ in range(90):
        names.append(servers.served_by(registry))
        registry.rollback()

    assert set(names) == {"primary", "replica1", "replica2"}


class TestIsolation:
    """What a replica's connections are, asked of them"""

    @pytest.mark.parametrize(
        ("level", "expected"),
        [
            ("READ_COMMITTED", "read committed"),
            ("READ_UNCOMMITTED", "read committed"),
            ("REPEATABLE_READ", "repeatable read"),
            ("SERIALIZABLE", "repeatable read"),
        ],
    )
    def test_level(self, servers, make_registry, level, expected):
        registry = make_registry(
            servers.database,
            db_wo_url=servers.primary_url,
            db_ro_urls=[servers.primary_url, servers.replica_urls[0]],
            isolation_level=level,
        )
        asked = select(
            func.current_setting("transaction_isolation"),
            func.current_setting("default_transaction_read_only"),
        )
        for engine in registry.engines["ro"]:
            row = registry.session.execute(
                asked, bind_arguments={"bind": engine}
            ).one()
            assert tuple(row) == (expected, "on")
            registry.rollback()

        assert registry.execute(asked).one()[1] == "on"
        registry.rollback()
        registry.Shelf.insert(name="x")
        assert registry.execute(asked).one()[1] == "off"
        registry.commit()

    def test_autocommit_of_the_registry(self, servers, make_registry):
        """A flush that writes sends no BEGIN there"""
        registry = make_registry(
            servers.database,
            db_wo_url=servers.primary_url,
            db_ro_urls=servers.replica_urls,
            isolation_level="AUTOCOMMIT",
        )
        registry.Shelf.insert(name="a")
        registry.commit()
        servers.cluster.wait_for_replay()
        shelf = registry.Shelf.query().one()
        shelf.name = "b"
        registry.flush()
        assert servers.served_by(registry) == "primary"
        registry.rollback()

    def test_default_of_the_server_does_not_matter(
        self, servers, make_registry
    ):
        """SERIALIZABLE as a standby's default refuses every statement"""
        servers.cluster.primary.execute(
            f"alter database {servers.database} "
            "set default_transaction_isolation = 'serializable'"
        )
        servers.cluster.wait_for_replay()
        registry = make_registry(
            servers.database,
            db_wo_url=servers.primary_url,
            db_ro_urls=servers.replica_urls[:1],
        )
        assert servers.served_by(registry) == "replica1"

    def test_replica_url_of_the_primary_can_not_write(
        self, servers, make_registry
    ):
        registry = make_registry(
            servers.database,
            db_wo_url=servers.primary_url,
            db_ro_urls=[servers.primary_url],
        )
        (engine,) = registry.engines["ro"]
        with (
            engine.connect() as connection,
            pytest.raises(DBAPIError, match="read-only transaction"),
        ):
            connection.execute(text("CREATE TABLE x (y int)"))
