# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Nothing that a replica said overwrites newer data of the primary."""

import gc
import pickle
import random
import weakref
from copy import deepcopy
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from io import BytesIO
from json import loads
from uuid import UUID

import pytest
from sqlalchemy import event, inspect, select, text, update
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.orm import (
    LoaderCallableStatus,
    Mapper,
    defer,
    joinedload,
    load_only,
    selectinload,
)
from sqlalchemy.orm.attributes import flag_modified, set_committed_value
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError

from anyblok_multi_engines.errors import StaleReadError
from anyblok_multi_engines.provenance import read_of, said_of
from anyblok_multi_engines.routing.intent import Intent, Wish
from anyblok_multi_engines.test_bloks.test5.values import Level, Thing
from anyblok_multi_engines.tests.conftest import Registries, restored_options

TABLES = "typed, team, versioned, pair, dog, animal, join_node_and_node, node"

# What the replica says, what the primary says by then, what the caller writes.
VALUES = {
    "integer": (0, 10, 1),
    "big_integer": (2**40, 2**41, 2**42),
    "decimal": (Decimal("1.10"), Decimal("1.2"), Decimal("1.3")),
    "float": (0.1, 0.2, 0.1 + 0.2),
    "string": ("old", "new", "mine"),
    "text": ("old\n", "new", ""),
    "boolean": (None, True, False),
    "date": (date(2020, 1, 1), date(2020, 1, 2), date(2020, 1, 3)),
    "date_time": tuple(
        datetime(2020, 1, day, 1, 2, 3, 456, UTC) for day in (1, 2, 3)
    ),
    "time_stamp": tuple(
        datetime(2020, 7, day, 1, 2, 3, 456, UTC) for day in (1, 2, 3)
    ),
    "time": (time(1), time(2, 3, 4, 5), time(3)),
    "interval": (timedelta(1), timedelta(0, 2, 3), timedelta(-1)),
    "json": ({"n": [0]}, {"n": [10]}, {"n": [1]}),
    "binary_json": ([{"n": 0.5}], [{"n": 10}], [{"n": None}]),
    "tracked_json": ({"n": 0}, {"n": 10}, {"n": 1}),
    "array": ([1], [1, 10], [1, 1]),
    "floats": ([0.5, float("nan")], [10.0, float("nan")], [float("nan")]),
    "range": (Range(0, 1), Range(0, 10), Range(0, 2)),
    "bytes": (b"\x00\xff", b"new", b"mine"),
    "uuid": tuple(UUID(int=x) for x in (1, 2, 3)),
    "enum": (Level.LOW, Level.MIDDLE, Level.HIGH),
    "selection": ("a", "b", "c"),
    "model": ("Model.Team", "Model.Typed", "Model.Pair"),
    "email": ("old@x.org", "new@x.org", "mine@x.org"),
    "pickle": (Thing(0), Thing(10), Thing(1)),
    "other_name": (0, 10, 1),
    "team_id": (1, 2, 3),
}


# AnyBlok 2.2's One2Many needs Mapper.non_primary, which 2.1 has not.
HAS_ONE2MANY = "non_primary" in Mapper.__annotations__
BLOKS = ["test-me-blok5"]
if HAS_ONE2MANY:
    BLOKS.append("test-me-blok6")
    TABLES += ", leaf, tree"


@pytest.fixture(scope="module")
def module_registry(shared_servers):
    with restored_options() as options:
        registries = Registries(options)
        registry = registries.eventual(shared_servers)
        registry.upgrade(install=BLOKS)
        registry.commit()

    yield registry
    registries.close()


@pytest.fixture
def servers(shared_servers):
    return shared_servers


@pytest.fixture
def registry(module_registry, servers):
    servers.cluster.heal()
    yield module_registry
    module_registry.rollback()
    module_registry.Session.remove()
    servers.cluster.heal()
    servers.cluster.primary.execute(
        f"truncate {TABLES}", database=servers.database
    )


@pytest.fixture
def teams(registry):
    for number in (1, 2, 3):
        registry.Team.insert(id=number, name=f"team {number}")


@pytest.fixture
def replicate(registry, servers):
    """Give a function that commits, and waits for the replicas"""

    def replicate():
        registry.commit()
        servers.cluster.wait_for_replay()

    return replicate


@pytest.fixture
def freeze(replicate, servers):
    """Give a function that commits, and stops the replicas there"""

    def freeze():
        replicate()
        for replica in servers.cluster.replicas:
            replica.pause_replay()

    return freeze


@pytest.fixture
def on_primary(registry):
    """Give a function that executes a statement there, aside, and commits"""

    def on_primary(statement):
        with registry.engine_of("primary").begin() as connection:
            result = connection.execute(statement)
            return result.scalar() if result.returns_rows else result.rowcount

    return on_primary


@pytest.fixture
def locks(registry, servers):
    """Give a function that returns the queries that have locked rows"""
    start = len(servers.statements_on(servers.cluster.primary))

    def locks():
        return [
            line
            for line in servers.statements_on(servers.cluster.primary)[start:]
            if "FOR UPDATE" in line or "FOR NO KEY UPDATE" in line
        ]

    return locks


def column_of(model, name):
    """Return the column of a field"""
    return inspect(getattr(model, name)).property.columns[0]


def write_value_in_hand(registry, pair):
    """Write what was read on a replica before the move; it is refused"""
    n = pair.n
    registry.Team.insert(id=1, name="x")
    pair.n = n + 1
    with pytest.raises(StaleReadError):
        registry.flush()


def is_from_replica(instance):
    return read_of(inspect(instance)) is not None


def said(instance):
    """Return what a replica said of an instance, by field"""
    state = inspect(instance)
    values = {
        key.removeprefix("ANYBLOK_FIELD_"): said_of(state, key)
        for key in state.mapper.column_attrs.keys()  # noqa: SIM118
    }
    return {
        name: value
        for name, value in values.items()
        if not isinstance(value, LoaderCallableStatus)
    }


def plain(value):
    return value.n if isinstance(value, Thing) else value


class TestColumnTypes:
    @pytest.fixture
    def typed(self, registry, teams, freeze):
        """Give a row that the replicas have, with the first values"""
        fields = {name: x for name, (x, _, _) in VALUES.items()}
        registry.Typed.insert(id=1, **fields)
        freeze()
        return registry.Typed

    @pytest.mark.parametrize("name", VALUES)
    def test_stale_change_and_delete_are_refused(
        self, registry, typed, on_primary, name
    ):
        column = column_of(typed, name)
        on_primary(update(typed).values({column: VALUES[name][1]}))
        instance = typed.query().one()
        with registry.session.no_autoflush:
            setattr(instance, name, VALUES[name][2])

        with pytest.raises(StaleReadError) as error:
            registry.flush()

        assert error.value.model == "Model.Typed"
        assert error.value.key == {"id": 1}
        assert error.value.columns == (column.name,)
        assert error.value.server in ("replica1", "replica2")
        registry.rollback()
        said = on_primary(select(column))
        assert repr(plain(said)) == repr(plain(VALUES[name][1]))
        with pytest.raises(StaleReadError, match=column.name):
            typed.query().one().delete()

    @pytest.mark.parametrize("name", VALUES)
    def test_change_of_what_is_current_is_written(
        self, registry, teams, replicate, on_primary, name
    ):
        Typed = registry.Typed
        Typed.insert(**{name: VALUES[name][0]})
        for value in (VALUES[name][2], None, VALUES[name][1]):
            replicate()
            instance = Typed.query().one()
            assert is_from_replica(instance)
            setattr(instance, name, value)
            registry.flush()
            registry.commit()
            said = on_primary(select(column_of(Typed, name)))
            assert repr(plain(said)) == repr(plain(value))

    def test_delete_of_what_is_current_is_done(
        self, registry, typed, on_primary
    ):
        typed.query().one().delete()
        registry.commit()
        assert on_primary(select(text("count(*)")).select_from(typed)) == 0

    @pytest.mark.parametrize("name", ["integer", "json", "team_id"])
    def test_other_columns_may_be_stale(
        self, registry, typed, on_primary, name
    ):
        others = [other for other in VALUES if other != name]
        on_primary(
            update(typed).values(
                {column_of(typed, x): VALUES[x][1] for x in others}
            )
        )
        setattr(typed.query().one(), name, VALUES[name][2])
        registry.commit()

    @pytest.mark.parametrize("name", ["json", "binary_json", "pickle"])
    def test_change_in_place_is_refused(
        self, registry, typed, on_primary, name
    ):
        column = column_of(typed, name)
        on_primary(update(typed).values({column: VALUES[name][1]}))
        instance = typed.query().one()
        value = getattr(instance, name)
        if name == "json":
            value["n"].append(1)
        elif name == "pickle":
            value.n += 1
        else:
            value[0]["n"] += 1

        instance.flag_modified(name)
        with pytest.raises(StaleReadError, match=name):
            registry.flush()

    @pytest.mark.parametrize("name", ["json", "binary_json", "pickle"])
    def test_change_in_place_of_what_is_current_is_written(
        self, registry, typed, on_primary, name
    ):
        instance = typed.query().one()
        value = getattr(instance, name)
        if name == "json":
            value["n"].append(1)
        elif name == "pickle":
            value.n += 1
        else:
            value[0]["n"] += 1

        value = deepcopy(value)
        instance.flag_modified(name)
        registry.commit()
        said = on_primary(select(column_of(typed, name)))
        assert plain(said) == plain(value)

    def test_tracked_change_in_place_is_refused(
        self, registry, typed, on_primary
    ):
        on_primary(update(typed).values({typed.tracked_json: {"n": 10}}))
        instance = typed.query().one()
        instance.tracked_json["n"] += 1
        with pytest.raises(StaleReadError, match="tracked_json"):
            registry.flush()

    def test_tracked_change_in_place_of_what_is_current_is_written(
        self, registry, typed, on_primary
    ):
        instance = typed.query().one()
        instance.tracked_json["n"] += 1
        registry.commit()
        assert on_primary(select(typed.tracked_json)) == {"n": 1}

    def test_flagged_change_is_refused(self, registry, typed, on_primary):
        on_primary(update(typed).values({typed.integer: 10}))
        instance = typed.query().one()
        instance.integer += 1
        instance.flag_modified("integer")
        with pytest.raises(StaleReadError, match="integer"):
            registry.flush()

    def test_changed_many2one_is_refused(self, registry, typed, on_primary):
        on_primary(update(typed).values({typed.team_id: 2}))
        team = registry.Team.query().get(3)
        typed.query().one().team = team
        with pytest.raises(StaleReadError, match="team_id"):
            registry.flush()

    def test_changed_one2many_is_refused(self, registry, typed, on_primary):
        on_primary(update(typed).values({typed.team_id: 2}))
        team, instance = registry.Team.query().get(3), typed.query().one()
        with registry.session.no_autoflush:
            team.typed.append(instance)

        with pytest.raises(StaleReadError, match="team_id"):
            registry.flush()

    def test_changed_many2one_that_is_current_is_written(
        self, registry, typed, on_primary
    ):
        typed.query().one().team = registry.Team.query().get(3)
        registry.commit()
        assert on_primary(select(typed.team_id)) == 3


@pytest.fixture
def versioned(registry, freeze):
    registry.Versioned.insert(n=0, facts={"n": 0})
    freeze()
    return registry.Versioned


class TestChanges:
    """Of an integer: n is 0 on the replica and 10 on the primary"""

    @pytest.fixture
    def pair(self, registry, freeze, on_primary):
        Pair = registry.Pair
        for b in ("x", "y"):
            Pair.insert(a=1, b=b)

        freeze()
        on_primary(update(Pair).where(Pair.b == "x").values(n=10))
        return Pair.query().get((1, "x"))

    def test_key_of_two_columns_is_told(self, registry, pair):
        pair.n += 1
        with pytest.raises(StaleReadError) as error:
            registry.flush()

        assert error.value.key == {"a": 1, "b": "x"}
        assert "use_primary()" in str(error.value)
        assert "Model.Pair(a=1, b='x')" in str(error.value)
        assert isinstance(error.value, StaleDataError)
        again = pickle.loads(pickle.dumps(error.value))
        assert str(again) == str(error.value)

    def test_nothing_is_written(self, registry, pair, on_primary):
        other = registry.Pair.query().get((1, "y"))
        registry.session.add(registry.Team(name="new"))
        pair.n += 1
        other.n = 5
        with pytest.raises(StaleReadError):
            registry.commit()

        registry.rollback()
        assert on_primary(text("select sum(n) from pair")) == 10
        assert on_primary(text("select count(*) from team")) == 0

    def test_every_stale_instance_is_told(self, registry, pair, on_primary):
        on_primary(update(registry.Pair).values(n=10))
        for instance in registry.Pair.query().all():
            instance.n += 1

        with pytest.raises(StaleReadError, match="1 more") as error:
            registry.flush()

        assert [x.key["b"] for x in error.value.reads] == ["x", "y"]

    @pytest.mark.parametrize("key_changes", [False, True])
    def test_it_is_refused_again(self, registry, pair, key_changes):
        pair.n += 1
        if key_changes:
            pair.b = "z"

        for _ in range(2):
            with pytest.raises(StaleReadError):
                registry.flush()

    def test_it_is_refused_again_with_what_the_primary_has_loaded(
        self, registry, pair
    ):
        n = pair.n
        team = registry.Team.insert(id=1, name="x")
        with registry.session.no_autoflush:
            pair.n = n + 1
            team.name = "y"

        for _ in range(2):
            with pytest.raises(StaleReadError):
                registry.flush()

    def test_retry_on_the_primary_succeeds(self, registry, pair, on_primary):
        pair.n += 1
        with pytest.raises(StaleReadError):
            registry.flush()

        registry.rollback()
        with registry.use_primary():
            registry.Pair.query().get((1, "x")).n += 1
            registry.commit()

        assert on_primary(text("select sum(n) from pair")) == 11

    def test_refresh_on_the_primary_is_enough(self, registry, pair, on_primary):
        pair.refresh(with_for_update=True)
        assert not is_from_replica(pair)
        pair.n += 1
        registry.commit()
        assert on_primary(text("select sum(n) from pair")) == 11

    def test_a_read_on_the_primary_does_not_hide_the_change(
        self, registry, pair
    ):
        pair.n += 1
        with registry.session.no_autoflush, registry.use_primary():
            assert registry.Pair.query().get((1, "x")) is pair
            assert registry.Pair.query().filter_by(b="x").one().n == 1

        with pytest.raises(StaleReadError):
            registry.flush()

    def test_row_that_is_gone_is_told(self, registry, pair, on_primary):
        on_primary(text("delete from pair"))
        pair.n += 1
        with pytest.raises(StaleReadError, match="gone"):
            registry.flush()

    def test_delete_of_a_row_that_is_gone_is_told(
        self, registry, pair, on_primary
    ):
        on_primary(text("delete from pair"))
        with pytest.raises(StaleReadError, match="gone"):
            pair.delete()

    def test_sql_expression_adds_on_the_primary(
        self, registry, pair, on_primary
    ):
        pair.n = registry.Pair.n + 1
        registry.commit()
        assert on_primary(text("select sum(n) from pair")) == 11

    def test_value_that_was_not_read_is_written(
        self, registry, pair, on_primary
    ):
        registry.commit()
        Pair = registry.Pair
        pair = (
            Pair.query()
            .options(load_only(Pair.ANYBLOK_FIELD_a))
            .filter(Pair.b == "x")
            .one()
        )
        pair.n = 5
        registry.commit()
        assert on_primary(text("select sum(n) from pair")) == 5

    def test_value_that_was_expired_is_written(
        self, registry, pair, on_primary
    ):
        pair.expire("n")
        pair.n = 5
        registry.commit()
        assert on_primary(text("select sum(n) from pair")) == 5

    def test_same_value_is_no_change(self, registry, pair, locks):
        pair.n = 1
        pair.n = 0
        registry.flush()
        assert not locks()

    def test_several_changes_of_one_instance_are_written(
        self, registry, pair, on_primary, locks
    ):
        pair = registry.Pair.query().get((1, "y"))
        for _ in range(3):
            pair.n += 1
            registry.flush()

        registry.commit()
        assert on_primary(text("select n from pair where b = 'y'")) == 3
        assert len(locks()) == 1

    def test_bulk_statements_are_not_concerned(
        self, registry, pair, on_primary
    ):
        pair.update(byquery=True, n=registry.Pair.n + 1)
        registry.commit()
        assert on_primary(text("select sum(n) from pair")) == 11

    def test_row_is_locked_until_the_end(self, registry, pair, on_primary):
        registry.Pair.query().get((1, "y")).n += 1
        registry.flush()
        locked = text("select n from pair for update skip locked")
        with registry.engine_of("primary").begin() as connection:
            assert connection.execute(locked).all() == [(10,)]

    def test_refusal_ends_no_transaction(self, registry, pair, on_primary):
        write_value_in_hand(registry, pair)
        pair.refresh()
        assert pair.n == 10
        pair.n += 1
        registry.commit()
        assert on_primary(text("select sum(n) from pair")) == 11
        assert on_primary(text("select count(*) from team")) == 1

    def test_refusal_ends_its_savepoint_alone(self, registry, pair, on_primary):
        n = pair.n
        registry.Team.insert(id=1, name="x")
        with pytest.raises(StaleReadError), registry.begin_nested():
            pair.n = n + 1

        registry.Pair.query().get((1, "y")).n += 1
        registry.commit()
        assert on_primary(text("select sum(n) from pair")) == 11
        assert on_primary(text("select count(*) from team")) == 1

    @pytest.mark.parametrize("others_first", [True, False])
    def test_update_of_another_row_by_a_listener_is_let_through(
        self, registry, pair, on_primary, others_first
    ):
        Pair = registry.Pair

        def touch(mapper, connection, target):
            other = update(Pair.__table__).where(Pair.b == "y").values(n=5)
            connection.execute(other)

        event.listen(Pair, "before_update", touch, insert=others_first)
        pair.n += 1
        try:
            with pytest.raises(StaleReadError):
                registry.flush()
        finally:
            event.remove(Pair, "before_update", touch)

        registry.rollback()
        assert on_primary(text("select sum(n) from pair")) == 10

    def test_row_that_a_trigger_keeps_is_not_stale(
        self, registry, pair, on_primary
    ):
        on_primary(
            text(
                "create function keep() returns trigger language plpgsql as "
                "'begin return null; end'"
            )
        )
        on_primary(
            text(
                "create trigger keep before update on pair "
                "for each row execute function keep()"
            )
        )
        registry.Pair.query().get((1, "y")).n += 1
        try:
            with pytest.raises(StaleDataError) as error:
                registry.flush()
        finally:
            registry.rollback()
            on_primary(text("drop function keep cascade"))

        assert not isinstance(error.value, StaleReadError)

    @pytest.mark.parametrize("by_flush", [True, False])
    def test_flush_that_fails_leaves_nothing_behind(
        self, registry, pair, on_primary, by_flush
    ):
        def fail(mapper, connection, target):
            raise RuntimeError("of a listener")

        other = registry.Pair.query().get((1, "y"))
        n = other.n
        registry.Team.insert(id=1, name="x")
        event.listen(registry.Pair, "before_update", fail)
        try:
            with pytest.raises(RuntimeError), registry.begin_nested():
                other.n = n + 1
        finally:
            event.remove(registry.Pair, "before_update", fail)

        on_primary(update(registry.Pair).values(n=20))
        if by_flush:
            other.n = 21
        else:
            Pair = registry.Pair
            registry.execute(update(Pair).where(Pair.b == "y").values(n=21))

        registry.commit()
        assert on_primary(text("select sum(n) from pair")) == 41

    def test_next_statements_are_what_they_are(self, registry, pair, locks):
        Pair = registry.Pair
        Pair.query().get((1, "y")).n += 1
        registry.flush()
        registry.execute(update(Pair).values(n=5))
        registry.rollback()
        assert len(locks()) == 1

    def test_thousands_are_one_query_per_thousand(
        self, registry, freeze, locks
    ):
        registry.execute(
            text(
                "insert into pair "
                "select x, 'z', 0 from generate_series(1, 2500) x"
            )
        )
        registry.execute(
            text(
                "insert into team select x, 'z' from generate_series(1, 2500) x"
            )
        )
        freeze()
        pairs, teams = registry.Pair.query().all(), registry.Team.query().all()
        for pair, team in zip(pairs, teams, strict=True):
            pair.n += 1
            team.name = "y"

        registry.flush()
        assert len(locks()) == 6
        registry.rollback()


def test_update_of_another_row_in_the_flush_is_not_taken_for_it(
    registry, freeze, on_primary
):
    Typed = registry.Typed
    for number in (1, 2):
        Typed.insert(id=number, integer=0)

    freeze()
    on_primary(text("update typed set integer = 10 where id = 2"))
    instance = Typed.query().filter_by(id=2).one()
    n = instance.integer
    with registry.use_primary():
        other = Typed.query().filter_by(id=1).one()

    def change(session, flush_context, instances):
        other.string = "changed"

    event.listen(registry.session, "before_flush", change)
    instance.integer = n + 1
    try:
        with pytest.raises(StaleReadError, match="integer"):
            registry.flush()
    finally:
        event.remove(registry.session, "before_flush", change)


class TestVersions:
    def test_stale_change_is_refused(self, registry, versioned, on_primary):
        on_primary(text("update versioned set n = 10, version = version + 1"))
        versioned.query().one().n += 1
        with pytest.raises(StaleReadError) as error:
            registry.flush()

        assert error.value.columns == ("n", "version")

    def test_version_alone_is_enough(self, registry, versioned, on_primary):
        on_primary(text("update versioned set version = version + 1"))
        versioned.query().one().n += 1
        with pytest.raises(StaleReadError, match="version"):
            registry.flush()

    def test_current_change_is_written(self, registry, versioned, on_primary):
        instance = versioned.query().one()
        instance.n += 1
        registry.flush()
        instance.n += 1
        registry.commit()
        assert on_primary(text("select n from versioned")) == 2
        assert on_primary(text("select version from versioned")) == 3

    def test_json_is_refused(self, registry, versioned, on_primary):
        on_primary(
            text("""update versioned set facts = '{"n": 10}', version = 2""")
        )
        instance = versioned.query().one()
        instance.facts["n"] += 1
        instance.flag_modified("facts")
        with pytest.raises(StaleReadError, match="facts, version"):
            registry.flush()


class TestInheritance:
    @pytest.fixture
    def dog(self, registry, freeze):
        registry.Dog.insert()
        freeze()
        return registry.Dog.query().one()

    @pytest.mark.parametrize(
        ("table", "name"), [("animal", "legs"), ("dog", "tricks")]
    )
    def test_stale_change_is_refused(
        self, registry, dog, on_primary, table, name
    ):
        on_primary(text(f"update {table} set {name} = 10"))
        dog.legs += 1
        dog.tricks += 1
        with pytest.raises(StaleReadError) as error:
            registry.flush()

        assert error.value.model == "Model.Dog"
        assert error.value.columns == (name,)

    def test_one_query_per_table(self, registry, dog, on_primary, locks):
        dog.tricks += 1
        registry.flush()
        assert len(locks()) == 1
        dog.legs += 1
        registry.commit()
        assert len(locks()) == 1
        assert on_primary(text("select legs from animal")) == 5
        assert on_primary(text("select tricks from dog")) == 1

    def test_delete_is_refused(self, registry, dog, on_primary):
        on_primary(text("update animal set legs = 10"))
        with pytest.raises(StaleReadError, match="legs"):
            dog.delete()

    def test_delete_is_done(self, registry, dog, on_primary):
        dog.delete()
        registry.commit()
        assert on_primary(text("select count(*) from animal")) == 0


class TestRelationships:
    @pytest.fixture
    def tree(self, registry, freeze):
        if not HAS_ONE2MANY:
            pytest.skip("AnyBlok has no One2Many here")

        tree = registry.Tree.insert(id=1)
        registry.Tree.insert(id=2)
        registry.Leaf.insert(tree_id=tree.id)
        freeze()
        return registry.Tree.query().get(1)

    def test_orphan_is_refused_inside_the_flush(
        self, registry, tree, on_primary
    ):
        on_primary(text("update leaf set tree_id = 2"))
        assert len(tree.leaves) == 1
        registry.session.delete(tree)
        with pytest.raises(StaleReadError, match="tree_id"):
            registry.flush()

        registry.rollback()
        assert on_primary(text("select tree_id from leaf")) == 2

    def test_what_another_listener_changes_is_refused(
        self, registry, tree, on_primary
    ):
        on_primary(text("update leaf set changes = 10"))
        registry.Leaf.query().one().n += 1
        with pytest.raises(StaleReadError, match="changes"):
            registry.flush()

    def test_what_another_listener_changes_is_written(
        self, registry, tree, on_primary
    ):
        leaf = registry.Leaf.query().one()
        for _ in range(2):
            leaf.n += 1
            registry.flush()

        registry.commit()
        assert on_primary(text("select changes from leaf")) == 2

    def test_cascade_of_a_delete_is_refused(self, registry, freeze, on_primary):
        parent = registry.Node.insert(id=1)
        registry.Node.insert(id=2, parent=parent)
        registry.Node.insert(id=3)
        freeze()
        on_primary(text("update node set parent_id = 3 where id = 2"))
        parent = registry.Node.query().get(1)
        assert len(parent.children) == 1
        registry.session.delete(parent)
        with pytest.raises(StaleReadError, match="parent_id"):
            registry.flush()

    def test_many2many_adds_its_own_rows_only(
        self, registry, freeze, on_primary
    ):
        for number in (1, 2, 3):
            registry.Node.insert(id=number)

        freeze()
        on_primary(
            text(
                "insert into join_node_and_node (left_id, right_id) "
                "values (1, 2)"
            )
        )
        first, third = (registry.Node.query().get(x) for x in (1, 3))
        first.neighbours.append(third)
        registry.commit()
        assert on_primary(text("select count(*) from join_node_and_node")) == 2


def query(registry):
    return registry.Typed.query().one()


def get(registry):
    return registry.session.get(registry.Typed, 1)


def lazy(registry):
    return get(registry).team


def lazy_collection(registry):
    return registry.session.get(registry.Team, 1).typed[0]


def joined(registry):
    Team = registry.Team
    teams = select(Team).options(joinedload(Team.typed)).where(Team.id == 1)
    return registry.session.scalars(teams).unique().one().typed[0]


def selected(registry):
    Team = registry.Team
    teams = select(Team).options(selectinload(Team.typed)).where(Team.id == 1)
    return registry.session.scalars(teams).one().typed[0]


def streamed(registry):
    rows = select(registry.Typed).execution_options(yield_per=1)
    return registry.session.scalars(rows).one()


def from_text(registry):
    rows = text("select * from typed")
    rows = select(registry.Typed).from_statement(rows)
    return registry.session.scalars(rows).one()


def refreshed(registry):
    instance = query(registry)
    instance.refresh()
    return instance


def expired(registry):
    instance = query(registry)
    instance.expire()
    assert not is_from_replica(instance)
    assert instance.integer == 0
    return instance


def merged(registry):
    instance = query(registry)
    instance.expunge()
    return registry.session.merge(instance)


LOADS = (
    *(query, get, lazy, lazy_collection, joined, selected, streamed),
    *(from_text, refreshed, expired, merged),
)


class TestProvenance:
    @pytest.fixture
    def typed(self, registry, teams, replicate):
        registry.Typed.insert(id=1, team_id=1, integer=0, json={"n": 0})
        replicate()
        return registry.Typed

    @pytest.mark.parametrize("load", LOADS, ids=lambda x: x.__name__)
    def test_every_way_to_load_is_noted(self, registry, typed, load):
        assert is_from_replica(load(registry))

    def test_polymorphic_load_is_noted(self, registry, replicate):
        registry.Dog.insert()
        replicate()
        dog = registry.Animal.query().one()
        assert said(dog) == {"id": dog.id, "kind": "dog", "legs": 4}
        assert dog.tricks == 0
        assert said(dog)["tricks"] == 0

    def test_deferred_column_is_noted(self, registry, typed, freeze):
        deferred = defer(typed.ANYBLOK_FIELD_integer)
        instance = typed.query().options(deferred).one()
        assert "integer" not in said(instance)
        assert instance.integer == 0
        assert said(instance)["integer"] == 0

    def test_it_is_noted_across_a_reload(self, registry, typed):
        registry.reload()
        registry.commit()
        assert is_from_replica(registry.Typed.query().one())

    def test_stream_is_noted_when_the_session_has_moved_on(
        self, registry, teams, replicate
    ):
        replicate()
        rows = iter(
            registry.session.scalars(
                select(registry.Team).execution_options(yield_per=1)
            )
        )
        next(rows)
        registry.Pair.insert(a=1, b="x")
        assert all(map(is_from_replica, list(rows)))

    def test_attributes_are_told_apart(
        self, registry, typed, freeze, on_primary
    ):
        freeze()
        on_primary(text("update typed set integer = 10, string = 'new'"))
        instance = typed.query().one()
        with registry.session.no_autoflush, registry.use_primary():
            instance.string = "mine"
            instance.refresh("integer")

        instance.integer += 1
        with pytest.raises(StaleReadError) as error:
            registry.flush()

        assert error.value.columns == ("string",)

    def test_it_goes_with_the_instance_to_another_session(
        self, registry, typed, freeze, on_primary
    ):
        freeze()
        on_primary(text("update typed set integer = 10"))
        instance = typed.query().one()
        instance.expunge()
        instance.integer += 1
        session = registry.Session.session_factory()
        session.add(instance)
        with pytest.raises(StaleReadError):
            session.flush()

        session.close()

    def test_other_session_may_change_it_twice(
        self, registry, typed, on_primary
    ):
        instance = typed.query().one()
        instance.expunge()
        session = registry.Session.session_factory()
        session.add(instance)
        for _ in range(2):
            instance.integer += 1
            session.flush()

        session.commit()
        session.close()
        assert on_primary(text("select integer from typed")) == 2

    @pytest.mark.parametrize("load", [True, False])
    def test_it_is_merged(self, registry, typed, freeze, on_primary, load):
        freeze()
        on_primary(text("update typed set integer = 10"))
        instance = typed.query().one()
        instance.expunge()
        if load:
            instance.integer += 1

        with registry.use_primary():
            merged = registry.session.merge(instance, load=load)
            if not load:
                merged.integer += 1

            with pytest.raises(StaleReadError):
                registry.flush()

    def test_it_outlives_the_unit_of_work(
        self, registry, typed, freeze, on_primary
    ):
        session = registry.Session.session_factory(expire_on_commit=False)
        instance = session.scalars(select(typed)).one()
        session.commit()
        freeze()
        on_primary(text("update typed set integer = 10"))
        instance.integer += 1
        with pytest.raises(StaleReadError):
            session.flush()

        session.close()

    def test_instances_are_freed_without_a_cycle(self, registry, typed):
        gc.disable()
        try:
            reference = weakref.ref(inspect(typed.query().one()))
            assert reference() is None
        finally:
            gc.enable()


class TestExpiry:
    @pytest.fixture
    def typed(self, registry, teams, freeze, on_primary):
        registry.Typed.insert(id=1, team_id=1, integer=0, string="old")
        freeze()
        on_primary(text("update typed set integer = 10, string = 'new'"))
        on_primary(text("update team set name = 'new'"))
        return registry.Typed

    def move(self, session):
        """Send a statement to the primary"""
        session.execute(text("create temporary table x () on commit drop"))

    def test_what_nobody_changed_is_read_again(self, registry, typed):
        instance = typed.query().one()
        assert (instance.integer, instance.team.name) == (0, "team 1")
        team = instance.team
        self.move(registry)
        assert (instance.integer, instance.team.name) == (10, "new")
        assert instance.team is team

    def test_what_is_changed_stays(self, registry, typed):
        instance = typed.query().one()
        with registry.session.no_autoflush:
            instance.integer = 5
            self.move(registry)
            assert (instance.integer, instance.string) == (5, "new")
            assert instance in registry.session.dirty

    def test_what_is_to_be_deleted_stays(self, registry, typed):
        instance = typed.query().one()
        with registry.session.no_autoflush:
            registry.session.delete(instance)
            self.move(registry)

        with pytest.raises(StaleReadError, match="integer, string"):
            registry.flush()

    def test_row_that_is_gone_is_gone(self, registry, typed, on_primary):
        instance = typed.query().one()
        on_primary(text("delete from typed"))
        self.move(registry)
        assert typed.query().get(1) is None
        with pytest.raises(ObjectDeletedError):
            instance.integer  # noqa: B018

    def test_relationships_are_read_again(self, registry, typed, on_primary):
        team = registry.Team.query().get(1)
        assert len(team.typed) == 1
        on_primary(text("update typed set team_id = 2"))
        self.move(registry)
        assert team.typed == []
        assert registry.Team.query().get(2).typed[0].integer == 10

    def test_relationship_of_what_the_primary_loaded_is_read_again(
        self, registry, typed, on_primary
    ):
        session = registry.Session.session_factory(expire_on_commit=False)
        with session.wanting(Wish(Intent.PRIMARY)):
            team = session.get(registry.Team, 2)
            session.commit()

        assert team.typed == []
        on_primary(text("update typed set team_id = 2"))
        self.move(session)
        assert len(team.typed) == 1
        session.close()

    def test_joined_relationship_of_what_the_primary_loaded_is_read_again(
        self, registry, typed, on_primary
    ):
        Team = registry.Team
        session = registry.Session.session_factory(expire_on_commit=False)
        with session.wanting(Wish(Intent.PRIMARY)):
            team = session.get(Team, 2)
            session.commit()

        joined = select(Team).options(joinedload(Team.typed))
        session.scalars(joined.where(Team.id == 2)).unique().all()
        assert "typed" in inspect(team).dict
        assert team.typed == []
        on_primary(text("update typed set team_id = 2"))
        self.move(session)
        assert len(team.typed) == 1
        session.close()

    def test_load_that_is_the_move_leaves_no_hole(self, registry, typed):
        instance = typed.query().one()
        instance.expire("integer")
        with registry.use_primary():
            assert instance.integer == 10
            assert instance.string == "new"
            assert instance.json is None
            instance.expire()
            assert instance.string == "new"

    def test_load_whose_flush_is_the_move_leaves_no_hole(
        self, registry, typed, on_primary
    ):
        instance = typed.query().one()
        instance.boolean = True
        instance.expire("integer")
        assert instance.integer == 10
        assert (instance.string, instance.boolean) == ("new", True)
        instance.string = "mine"
        registry.commit()
        assert on_primary(text("select string from typed")) == "mine"

    def test_changes_of_a_cascade_stay(self, registry, typed):
        team = registry.Team.query().get(1)
        with registry.session.no_autoflush:
            team.typed[0].integer = 5
            self.move(registry)
            assert team.name == "new"
            assert team.typed[0].integer == 5

    def test_abandoned_change_is_read_again(self, registry, typed):
        instance = typed.query().one()
        with registry.session.no_autoflush:
            instance.integer = 5
            instance.integer = 0
            self.move(registry)
            assert instance.integer == 10


class TestWhatIsNotCopied:
    """The instance's state says what a replica said, as long as it can"""

    @pytest.fixture
    def pairs(self, registry, freeze):
        for b in ("x", "y"):
            registry.Pair.insert(a=1, b=b, n=0)

        freeze()
        return registry.Pair.query().order_by(registry.Pair.b).all()

    @pytest.fixture
    def typed(self, registry, teams, freeze):
        registry.Typed.insert(id=1, integer=0)
        freeze()
        return registry.Typed.query().one()

    def test_instances_share_what_is_noted(self, registry, pairs):
        reads = [read_of(inspect(pair)) for pair in pairs]
        again = registry.Pair.query().filter_by(b="y").one()
        assert reads[0] is reads[1] is read_of(inspect(again))
        assert not reads[0].values
        assert said(again) == {"a": 1, "b": "y", "n": 0}

    @pytest.mark.parametrize("said_since", [10, 0])
    @pytest.mark.parametrize("steps", ["flag", "flag, set", "set, flag"])
    def test_flagged_value_is_compared(
        self, registry, typed, on_primary, steps, said_since
    ):
        on_primary(text(f"update typed set integer = {said_since}"))
        with registry.session.no_autoflush:
            for step in steps.split(", "):
                if step == "flag":
                    flag_modified(typed, "ANYBLOK_FIELD_integer")
                else:
                    typed.integer += 1

        if said_since:
            with pytest.raises(StaleReadError, match="integer"):
                registry.flush()
        else:
            registry.commit()
            wrote = int("set" in steps)
            assert on_primary(text("select integer from typed")) == wrote

    def test_flagged_null_that_becomes_json_is_compared(
        self, registry, typed, on_primary
    ):
        on_primary(text("""update typed set json = '{"n": 10}'"""))
        with registry.session.no_autoflush:
            typed.json = {}
            typed.json["n"] = 1
            typed.flag_modified("json")

        with pytest.raises(StaleReadError, match="json"):
            registry.flush()

    @pytest.mark.parametrize("given", [10, 0])
    def test_value_that_is_given_as_committed_is_compared(
        self, registry, pairs, on_primary, given
    ):
        on_primary(text("update pair set n = 10"))
        set_committed_value(pairs[0], "ANYBLOK_FIELD_n", given)
        pairs[0].n += 1
        if given == 10:
            registry.commit()
            assert on_primary(text("select max(n) from pair")) == 11
        else:
            with pytest.raises(StaleReadError):
                registry.flush()

    @pytest.mark.parametrize("said_since", [10, 0])
    @pytest.mark.parametrize("how", ["evaluate", "fetch"])
    def test_value_that_a_bulk_update_has_computed_is_compared(
        self, registry, pairs, on_primary, how, said_since
    ):
        on_primary(text(f"update pair set n = {said_since}"))
        Pair, session = registry.Pair, registry.session
        registry.execute(text("select 1 for update"))
        on_replica = select(Pair).execution_options(
            anyblok_server="replica1", populate_existing=True
        )
        pair = session.scalars(on_replica.order_by(Pair.b)).first()
        session.execute(
            update(Pair).values({Pair.n: Pair.n + 1}),
            bind_arguments={"bind": registry.engine_of("primary")},
            execution_options={"synchronize_session": how},
        )
        assert pair.n == 1
        pair.n += 1
        if said_since:
            with pytest.raises(StaleReadError):
                registry.flush()
        else:
            registry.commit()
            assert on_primary(text("select sum(n) from pair")) == 3

    def test_value_in_hand_is_compared_after_a_bulk_update(
        self, registry, pairs, on_primary
    ):
        on_primary(text("update pair set n = 10"))
        pair, n = pairs[0], pairs[0].n
        pair.update(byquery=True, n=registry.Pair.n + 1)
        pair.n = n + 1
        with pytest.raises(StaleReadError):
            registry.flush()

    def test_value_in_hand_is_compared_until_the_primary_has_said_it(
        self, registry, pairs, on_primary
    ):
        on_primary(text("update pair set n = 10"))
        Pair, pair, n = registry.Pair, pairs[0], pairs[0].n
        with registry.use_primary():
            Pair.query().options(load_only(Pair.ANYBLOK_FIELD_a)).all()
            pair.n = n + 1
            with pytest.raises(StaleReadError):
                registry.flush()

    def test_value_in_hand_is_compared_after_a_savepoint(
        self, registry, pairs, on_primary
    ):
        on_primary(text("update pair set n = 10 where b = 'y'"))
        n = pairs[1].n
        savepoint = registry.begin_nested()
        pairs[0].n += 1
        registry.flush()
        savepoint.rollback()
        assert pairs[0].n == 0
        pairs[1].n = n + 1
        with pytest.raises(StaleReadError):
            registry.flush()

    def test_what_the_flush_wrote_is_not_the_replica_s(
        self, registry, typed, on_primary
    ):
        Typed = registry.Typed
        registry.rollback()
        deferred = defer(Typed.ANYBLOK_FIELD_date)
        typed = Typed.query().options(deferred).one()
        for day in (1, 2):
            # The primary keeps the day, and says another value.
            typed.ANYBLOK_FIELD_date = datetime(2020, 1, day, 5)
            registry.flush()

        registry.commit()
        assert on_primary(select(Typed.date)) == date(2020, 1, 2)

    def test_second_flush_expires_only_what_it_wrote(self, registry, pairs):
        pairs[0].n += 1
        registry.flush()
        assert [pair.n for pair in pairs] == [1, 0]
        expired = []

        def note(pair, names):
            expired.append(pair)

        event.listen(registry.Pair, "expire", note)
        pairs[0].n += 1
        registry.flush()
        event.remove(registry.Pair, "expire", note)
        assert expired == [pairs[0]]

    @pytest.mark.parametrize("said_since", [10, 0])
    @pytest.mark.parametrize("name", ["add", "merge", "merge without load"])
    def test_it_goes_through_pickle(
        self, registry, typed, on_primary, name, said_since
    ):
        on_primary(text(f"update typed set integer = {said_since}"))
        session = registry.session
        typed.expunge()
        if name != "merge without load":
            typed.integer += 1

        instance = unpickled(registry, pickled(typed))
        with registry.use_primary():
            if name == "add":
                session.add(instance)
            elif name == "merge":
                session.merge(instance)
            else:
                session.merge(instance, load=False).integer += 1

            if said_since:
                with pytest.raises(StaleReadError, match="integer"):
                    registry.flush()
            else:
                registry.commit()
                assert on_primary(text("select integer from typed")) == 1


def pickled(instance):
    """Pickle an instance; a model has no module to import it from"""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, type):
                return getattr(obj, "__registry_name__", None)

            return None

    target = BytesIO()
    Pickler(target).dump(instance)
    return target.getvalue()


def unpickled(registry, data):
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, name):
            return registry.get(name)

    return Unpickler(BytesIO(data)).load()


def test_no_update_is_lost(registry, servers, replicate, on_primary):
    """Two sessions count, on replicas that lag as they please"""
    Pair = registry.Pair
    Pair.insert(a=1, b="x")
    replicate()
    chance = random.Random(3)
    sessions = [registry.Session.session_factory() for _ in range(2)]
    done = refused = 0
    for _ in range(60):
        for replica in servers.cluster.replicas:
            getattr(replica, chance.choice(["pause_replay", "resume_replay"]))()

        session = chance.choice(sessions)
        instance = session.scalars(select(Pair)).one()
        if chance.random() < 0.5:
            other = sessions[session is sessions[0]]
            with other.begin(), other.wanting(Wish(Intent.PRIMARY)):
                other.scalars(select(Pair)).one().n += 1

            done += 1

        instance.n += 1
        try:
            session.commit()
        except StaleReadError:
            refused += 1
            session.rollback()
            with session.wanting(Wish(Intent.PRIMARY)):
                session.scalars(select(Pair)).one().n += 1
                session.commit()

        done += 1

    for session in sessions:
        session.close()

    assert refused
    assert on_primary(text("select n from pair")) == done


class TestValueInHand:
    """It was read from a replica before the move, and written after it"""

    @pytest.fixture
    def pair(self, registry, freeze, on_primary):
        registry.Pair.insert(a=1, b="x", n=0)
        freeze()
        on_primary(text("update pair set n = 10"))
        return registry.Pair.query().one()

    @pytest.mark.parametrize(
        "move",
        [
            lambda registry: registry.Team.insert(id=1, name="x"),
            lambda registry: registry.execute(text("select nextval('s')")),
            lambda registry: registry.connection(),
            lambda registry: registry.execute(
                select(1).execution_options(anyblok_server="primary")
            ),
        ],
        ids=["flush", "statement", "connection", "option"],
    )
    def test_is_refused(self, registry, pair, on_primary, move):
        on_primary(text("create sequence if not exists s"))
        n = pair.n
        move(registry)
        pair.n = n + 1
        with pytest.raises(StaleReadError):
            registry.commit()

        registry.rollback()
        assert on_primary(text("select n from pair")) == 10

    def test_is_refused_under_use_primary(self, registry, pair, on_primary):
        n = pair.n
        with registry.use_primary():
            pair.n = n + 1
            with pytest.raises(StaleReadError):
                registry.commit()

        registry.rollback()
        assert on_primary(text("select n from pair")) == 10

    def test_is_written_when_the_primary_has_said_it(
        self, registry, pair, on_primary
    ):
        with registry.use_primary():
            assert pair.n == 10
            pair.n += 1
            registry.commit()

        assert on_primary(text("select n from pair")) == 11

    def test_is_written_after_a_rollback(self, registry, pair, on_primary):
        write_value_in_hand(registry, pair)
        registry.rollback()
        with registry.use_primary():
            pair.n += 1
            registry.commit()

        assert on_primary(text("select n from pair")) == 11

    def test_bulk_save_is_refused(self, registry, pair, on_primary):
        pair.n += 1
        with pytest.raises(StaleReadError):
            registry.session.bulk_save_objects([pair])

        registry.rollback()
        assert on_primary(text("select n from pair")) == 10

    def test_use_primary_shows_the_primary_s(self, registry, pair):
        assert pair.n == 0
        with registry.use_primary():
            assert pair.n == 10


def test_change_in_place_is_kept_by_the_move(registry, freeze, on_primary):
    """SQLAlchemy knows nothing of it before it is told"""
    registry.Typed.insert(id=1, json={"n": 0})
    freeze()
    instance = registry.Typed.query().one()
    instance.json["n"] += 1
    with registry.use_primary():
        registry.execute(text("select 1 for update"))
        instance.flag_modified("json")
        registry.commit()

    value = on_primary(text("select json::text from typed"))
    assert loads(value) == {"n": 1}


class TestAfterItsOwnWrite:
    def test_instance_that_is_not_expired_keeps_what_was_written(
        self, registry, freeze, on_primary
    ):
        registry.Pair.insert(a=1, b="x", n=0)
        freeze()
        session = registry.Session.session_factory(expire_on_commit=False)
        pair = session.scalars(select(registry.Pair)).one()
        for n in (1, 2, 3):
            pair.n = n
            session.commit()
            assert pair.n == n

        session.close()
        assert on_primary(text("select n from pair")) == 3

    def test_instance_of_another_session_is_read_again(
        self, registry, freeze, on_primary
    ):
        registry.Pair.insert(a=1, b="x", n=0)
        freeze()
        on_primary(text("update pair set n = 10"))
        first = registry.Session.session_factory()
        pair = first.scalars(select(registry.Pair)).one()
        first.expunge(pair)
        first.close()
        registry.session.add(pair)
        assert pair.n == 0
        registry.execute(text("select 1 for update"))
        assert pair.n == 10
