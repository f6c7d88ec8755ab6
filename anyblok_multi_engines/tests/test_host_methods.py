# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""AnyBlok's own caches, parameters and sequences, with replicas behind."""

import pytest
from sqlalchemy import text

REPLICAS = {"replica1", "replica2"}


@pytest.fixture
def registry(servers, make_registry):
    """Give a registry whose sessions read from replicas, however old"""
    return make_registry.eventual(servers)


@pytest.fixture
def behind(servers, registry):
    """Stop the replay of every replica: what follows isn't there"""
    registry.commit()
    servers.cluster.wait_for_replay()
    for replica in servers.cluster.replicas:
        replica.pause_replay()


class TestCachedMethods:
    """Test4's Shelf.how_many counts the shelves"""

    def test_are_not_filled_from_a_replica_that_is_behind(
        self, servers, registry, behind
    ):
        Shelf = registry.Shelf
        assert Shelf.how_many() == 0
        registry.rollback()
        Shelf.insert(name="x")
        registry.System.Cache.invalidate(Shelf, "how_many")
        registry.commit()
        assert Shelf.how_many() == 1
        registry.rollback()
        for replica in servers.cluster.replicas:
            replica.resume_replay()

        servers.cluster.wait_for_replay()
        assert Shelf.how_many() == 1

    def test_are_not_filled_from_instances_of_a_replica(
        self, servers, registry, behind
    ):
        """A unit of work that has read the old row, and then asks"""
        registry.Shelf.insert(name="x")
        registry.System.Cache.invalidate(registry.Shelf, "how_many")
        registry.commit()
        assert servers.served_by(registry) in REPLICAS
        assert registry.Shelf.query().count() == 0
        assert registry.Shelf.how_many() == 1

    def test_are_not_filled_from_what_the_session_holds(
        self, servers, registry, behind
    ):
        """An instance that a replica has loaded needs no statement"""
        for replica in servers.cluster.replicas:
            replica.resume_replay()

        shelf = registry.Shelf.insert(name="old")
        registry.commit()
        servers.cluster.wait_for_replay()
        for replica in servers.cluster.replicas:
            replica.pause_replay()

        servers.cluster.primary.execute(
            "update shelf set name = 'new'", database=servers.database
        )
        assert shelf.name == "old"
        assert registry.Shelf.name_of(shelf.id) == "new"

    def test_that_are_filled_ask_no_server(self, servers, registry):
        registry.Shelf.how_many()
        registry.rollback()
        assert registry.Shelf.how_many() == 0
        assert not registry.session.in_transaction()

    def test_inside_use_replicas(self, servers, registry, behind):
        registry.Shelf.insert(name="x")
        registry.commit()
        with registry.use_replicas():
            assert registry.Shelf.query().count() == 0
            assert registry.Shelf.how_many() == 1

    def test_are_those_that_are_invalidated(self, registry):
        """Of the model, and of those that depend on it"""
        for model, methods in registry.caches.items():
            for name, caches in methods.items():
                assert caches, (model, name)
                for cache in caches:
                    assert hasattr(cache, "cache_clear")

        Shelf = registry.Shelf
        Shelf.how_many()
        (cache,) = registry.caches["Model.Shelf"]["how_many"]
        assert cache.cache_info().currsize == 1
        registry.System.Cache.invalidate(Shelf, "how_many")
        assert cache.cache_info().currsize == 0
        assert cache.indentify == ("Model.Shelf", "how_many")

    def test_method_of_an_instance(self, servers, registry, behind):
        registry.rollback()
        shelf = registry.Shelf.insert(name="x")
        registry.commit()
        assert shelf.get_primary_keys() == ["id"]


class TestInvalidations:
    def test_of_another_process_is_seen_at_once(
        self, servers, registry, behind
    ):
        Shelf = registry.Shelf
        assert Shelf.how_many() == 0
        registry.rollback()
        servers.cluster.primary.execute(
            "insert into shelf (name) values ('other'); "
            "insert into system_cache (registry_name, method) "
            "values ('Model.Shelf', 'how_many')",
            database=servers.database,
        )
        registry.System.Cache.clear_invalidate_cache()
        assert Shelf.how_many() == 1

    def test_question_leaves_the_unit_of_work_where_it_is(
        self, servers, registry
    ):
        for _ in range(5):
            registry.System.Cache.clear_invalidate_cache()
            assert servers.served_by(registry) in REPLICAS
            registry.System.Cache.clear_invalidate_cache()
            assert servers.served_by(registry) in REPLICAS
            registry.rollback()

        idle = servers.cluster.primary.query(
            "select count(*) from pg_stat_activity where datname = %s "
            "and state like 'idle in%%'",
            [servers.database],
        )
        assert idle == [(0,)]

    def test_question_sees_the_unit_of_work_s_own(self, servers, registry):
        registry.Shelf.how_many()
        registry.System.Cache.insert(
            registry_name="Model.Shelf", method="how_many"
        )
        (cache,) = registry.caches["Model.Shelf"]["how_many"]
        registry.System.Cache.clear_invalidate_cache()
        assert cache.cache_info().currsize == 0
        registry.rollback()


class TestParameter:
    def test_set_then_get(self, servers, registry, behind):
        Parameter = registry.System.Parameter
        for value in (1, {"a": 2}, "three", None, [4]):
            Parameter.set("key", value)
            assert Parameter.get("key") == value
            registry.commit()
            assert Parameter.is_exist("key")
            assert Parameter.get("key") == value
            registry.commit()

        assert Parameter.pop("key") == [4]
        registry.commit()
        assert not Parameter.is_exist("key")
        assert Parameter.get("key", default=5) == 5
        with pytest.raises(Exception, match="unexisting key"):
            Parameter.get("key")

    def test_get_leaves_the_unit_of_work_where_it_is(self, servers, registry):
        registry.System.Parameter.set("key", 1)
        registry.commit()
        servers.cluster.wait_for_replay()
        assert registry.System.Parameter.get("key") == 1
        assert servers.served_by(registry) in REPLICAS

    def test_change_that_is_not_flushed_is_got(self, servers, registry):
        Parameter = registry.System.Parameter
        Parameter.set("key", 1)
        registry.commit()
        with registry.use_primary():
            parameter = Parameter.query().one()
            parameter.value = {"value": 2}
            assert Parameter.get("key") == 2

        registry.rollback()

    def test_in_use_replicas(self, servers, registry, behind):
        registry.System.Parameter.set("key", 1)
        registry.commit()
        with registry.use_replicas():
            assert registry.System.Parameter.get("key") == 1


class TestSequence:
    @pytest.mark.parametrize("no_gap", [False, True], ids=["gaps", "no gap"])
    def test_counts(self, servers, registry, behind, no_gap):
        Sequence = registry.System.Sequence
        sequence = Sequence.insert(
            code="S", formater="{code}-{seq}", no_gap=no_gap
        )
        registry.commit()
        numbers = []
        for _ in range(4):
            numbers.append(sequence.nextval())
            registry.commit()
            numbers.append(Sequence.nextvalBy(code="S"))
            registry.commit()

        assert numbers == [f"S-{number}" for number in range(1, 9)]

    def test_of_a_column(self, servers, registry, behind):
        """Test4's Shelf has one"""
        numbers = []
        for name in "abc":
            numbers.append(registry.Shelf.insert(name=name).number)
            registry.commit()

        assert numbers == ["1", "2", "3"]

    def test_rolled_back_without_gap(self, servers, registry, behind):
        Sequence = registry.System.Sequence
        Sequence.insert(code="S", no_gap=True)
        registry.commit()
        assert Sequence.nextvalBy(code="S") == "1"
        registry.rollback()
        assert Sequence.nextvalBy(code="S") == "1"
        registry.commit()
        assert Sequence.nextvalBy(code="S") == "2"


def test_read_only_mode_reads_from_replicas(servers, make_registry):
    registry = make_registry(servers.database, db_ro_urls=servers.replica_urls)
    registry.System.Cache.clear_invalidate_cache()
    assert registry.Shelf.how_many() == 0
    assert registry.System.Parameter.get("key", default=1) == 1
    assert registry.execute(text("SELECT 1")).scalar() == 1
