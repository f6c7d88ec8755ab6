# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a statement, or the block around it, says of where it wants to go."""

import threading

import pytest
from sqlalchemy import func, select, text, update

from anyblok_multi_engines.errors import ReplicaWriteError, UnknownServerError
from anyblok_multi_engines.routing.decision import Reason
from anyblok_multi_engines.tests.conftest import PORT, take_for_down

REPLICAS = {"replica1", "replica2"}


@pytest.fixture
def servers(shared_servers):
    return shared_servers


@pytest.fixture
def registry(shared_registry):
    return shared_registry


def to(name):
    return PORT.execution_options(anyblok_server=name)


class TestStatement:
    @pytest.mark.parametrize("name", ["primary", "replica1", "replica2"])
    def test_goes_where_it_says(self, registry, servers, name):
        for _ in range(3):
            assert servers.served_by(registry, to(name)) == name
            registry.rollback()

    def test_says_it_in_the_call_too(self, registry, servers):
        for name in ("replica2", "replica1", "primary"):
            row = registry.session.execute(
                PORT, execution_options={"anyblok_server": name}
            ).first()
            assert servers.names[row[0]] == name
            registry.rollback()
            port = registry.session.scalar(
                PORT, execution_options={"anyblok_server": name}
            )
            assert servers.names[port] == name
            registry.rollback()

    def test_says_it_as_a_query(self, registry, servers):
        query = registry.session.query(func.current_setting("port"))
        for name in ("primary", "replica1"):
            port = query.execution_options(anyblok_server=name).scalar()
            assert servers.names[port] == name
            registry.rollback()

    def test_in_one_unit_of_work(self, registry, servers):
        for name in ("replica1", "replica2", "primary", "replica1"):
            assert servers.served_by(registry, to(name)) == name

    def test_any_replica(self, registry, servers):
        names = set()
        for _ in range(30):
            names.add(servers.served_by(registry, to("replica")))
            registry.rollback()

        assert names == REPLICAS

    def test_any_replica_is_the_one_of_the_unit_of_work(
        self, registry, servers
    ):
        name = servers.served_by(registry)
        for _ in range(10):
            assert servers.served_by(registry, to("replica")) == name

    def test_what_it_loaded_is_read_again_on_the_primary(
        self, registry, servers
    ):
        """Though the unit of work was on the primary before"""
        registry.Book.insert(title="old", copies=0)
        registry.commit()
        servers.cluster.wait_for_replay()
        for replica in servers.cluster.replicas:
            replica.pause_replay()

        servers.cluster.primary.execute(
            "update book set copies = 10", database=servers.database
        )
        assert servers.served_by(registry, to("primary")) == "primary"
        query = registry.session.query(registry.Book)
        book = query.execution_options(anyblok_server="replica1").one()
        assert book.copies == 0
        assert query.one() is book
        assert book.copies == 10
        for replica in servers.cluster.replicas:
            replica.resume_replay()

    def test_primary_moves_the_unit_of_work(self, registry, servers):
        servers.served_by(registry)
        servers.served_by(registry, to("primary"))
        assert servers.served_by(registry) == "primary"

    def test_replica_serves_what_only_the_caller_knows_to_be_a_read(
        self, registry, servers
    ):
        servers.cluster.primary.execute(
            "create or replace function which() returns text volatile "
            "language sql as $$select current_setting('port')$$",
            database=servers.database,
        )
        servers.cluster.wait_for_replay()
        which = select(func.which())
        assert servers.served_by(registry, which) == "primary"
        registry.rollback()
        which = which.execution_options(anyblok_server="replica1")
        assert servers.served_by(registry, which) == "replica1"

    @pytest.mark.parametrize(
        "statement",
        [
            text("UPDATE book SET copies = 3"),
            text("SELECT * FROM book FOR UPDATE"),
            select(func.nextval("system_sequence_seq_name")),
            select(func.pg_advisory_xact_lock(1)),
        ],
        ids=["update", "for update", "nextval", "advisory lock"],
    )
    def test_write_is_not_sent_to_a_replica(self, registry, servers, statement):
        for name in ("replica", "replica1"):
            with pytest.raises(ReplicaWriteError, match="nothing was sent"):
                registry.execute(
                    statement.execution_options(anyblok_server=name)
                )

        assert servers.served_by(registry) in REPLICAS

    def test_unknown_name_is_an_error(self, registry):
        with pytest.raises(
            UnknownServerError,
            match=r"anyblok_server='replica9': .* primary, replica1, replica2",
        ):
            registry.execute(to("replica9"))

    def test_in_a_savepoint_is_the_primary_s(self, registry, servers):
        with registry.begin_nested():
            assert servers.served_by(registry, to("replica1")) == "primary"

    def test_explain_knows_it(self, registry):
        decision = registry.explain(to("replica2"))
        assert decision.server_name == "replica2"
        assert decision.reason is Reason.STATEMENT_SAYS


class TestUsePrimary:
    def test_holds_and_ends(self, registry, servers):
        with registry.use_primary():
            assert servers.served_by(registry) == "primary"

        registry.rollback()
        assert servers.served_by(registry) in REPLICAS

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_is_not_ended_by_a_unit_of_work(self, registry, servers, end):
        with registry.use_primary():
            for _ in range(3):
                assert servers.served_by(registry) == "primary"
                getattr(registry, end)()

        assert servers.served_by(registry) in REPLICAS

    def test_decorates(self, registry, servers):
        @registry.use_primary()
        def work(commit):
            assert servers.served_by(registry) == "primary"
            if commit:
                registry.commit()
                assert servers.served_by(registry) == "primary"
                registry.commit()

        for commit in (True, False, True):
            work(commit)
            registry.rollback()
            assert servers.served_by(registry) in REPLICAS
            registry.rollback()

    def test_decorates_no_generator_and_no_coroutine(self, registry):
        """Their code runs when the block has ended"""

        def generator():
            yield

        async def coroutine():
            pass

        for function in (generator, coroutine):
            for block in (registry.use_primary(), registry.use_replicas()):
                with pytest.raises(TypeError, match=r"with registry\.use_"):
                    block(function)

    def test_decorates_a_method_that_calls_itself(self, registry, servers):
        class Work:
            @registry.use_primary()
            def down(self, depth):
                if depth:
                    self.down(depth - 1)

                return servers.served_by(registry)

        assert Work().down(3) == "primary"
        registry.rollback()
        assert servers.served_by(registry) in REPLICAS

    def test_ends_with_an_error(self, registry, servers):
        with pytest.raises(ValueError, match="x"), registry.use_primary():
            raise ValueError("x")

        assert servers.served_by(registry) in REPLICAS

    def test_is_of_one_session_of_one_thread(self, registry, servers):
        seen = []

        def other():
            seen.append(servers.served_by(registry))
            registry.Session.remove()

        with registry.use_primary():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            assert servers.served_by(registry) == "primary"
            registry.Session.remove()
            assert servers.served_by(registry) in REPLICAS
            registry.rollback()

        assert seen[0] in REPLICAS

    def test_one_for_several_threads(self, registry, servers):
        block = registry.use_primary()
        inside, outside = threading.Event(), threading.Event()
        seen = []

        def other():
            with block:
                inside.set()
                outside.wait()
                seen.append(servers.served_by(registry))

            registry.rollback()
            seen.append(servers.served_by(registry))
            registry.Session.remove()

        thread = threading.Thread(target=other)
        with block:
            thread.start()
            inside.wait()

        assert servers.served_by(registry) in REPLICAS
        outside.set()
        thread.join()
        assert seen[0] == "primary"
        assert seen[1] in REPLICAS

    def test_of_a_generator_that_is_left(self, registry, servers):
        """Blocks that don't end in the order in which they began"""

        def work():
            with registry.use_primary():
                yield servers.served_by(registry)

        first = work()
        assert next(first) == "primary"
        registry.commit()
        with registry.use_replicas():
            first.close()
            assert servers.served_by(registry) in REPLICAS

        registry.rollback()
        assert servers.served_by(registry) in REPLICAS
        assert registry.session.intent is None


class TestNesting:
    def test_the_innermost_decides(self, registry, servers):
        with registry.use_primary():
            assert servers.served_by(registry) == "primary"
            with registry.use_replicas():
                assert servers.served_by(registry) in REPLICAS
                with registry.use_primary():
                    assert servers.served_by(registry) == "primary"
                    registry.commit()

                assert servers.served_by(registry) in REPLICAS

            assert servers.served_by(registry) == "primary"

    def test_the_same_twice(self, registry, servers):
        with registry.use_primary():
            with registry.use_primary():
                pass

            assert servers.served_by(registry) == "primary"

    def test_statement_in_a_block(self, registry, servers):
        with registry.use_primary():
            assert servers.served_by(registry, to("replica1")) == "replica1"

        with registry.use_replicas():
            assert servers.served_by(registry, to("primary")) == "primary"


class TestUseReplicas:
    def test_reads_are_not_the_primary_s(self, servers, make_registry):
        registry = make_registry(
            servers.database,
            db_url=servers.primary_url,
            db_ro_urls=servers.replica_urls,
        )
        names = set()
        with registry.use_replicas():
            for _ in range(30):
                names.add(servers.served_by(registry))
                registry.rollback()

        assert names == REPLICAS

    @pytest.mark.parametrize(
        "statement",
        [
            text("UPDATE book SET copies = 3"),
            text("not sql"),
            text("SELECT 1; SELECT 2"),
            select(func.nextval("system_sequence_seq_name")),
            select(func.unheard_of()),
        ],
        ids=["update", "unparsed", "two", "nextval", "unknown function"],
    )
    def test_what_is_no_read_is_an_error_before_it_is_sent(
        self, registry, servers, statement
    ):
        # What it names is asked of the primary's catalogue, once.
        registry.explain(statement)
        before = [x.log_size for x in servers.cluster.servers]
        with (
            registry.use_replicas(),
            pytest.raises(ReplicaWriteError, match=r"use_replicas\(\)"),
        ):
            registry.execute(statement)

        after = [
            x.log(start)
            for x, start in zip(servers.cluster.servers, before, strict=True)
        ]
        assert not any(f"<{servers.database}>" in x for x in after)
        assert servers.served_by(registry) in REPLICAS

    def test_core_update_is_an_error(self, registry):
        with (
            registry.use_replicas(),
            pytest.raises(ReplicaWriteError, match="UPDATE"),
        ):
            registry.execute(update(registry.Book).values(copies=1))

    @pytest.mark.parametrize("how", ["commit", "query", "flush"])
    def test_flush_is_an_error(self, registry, servers, how):
        with registry.use_replicas():
            registry.session.add(registry.Shelf(name="x"))
            with pytest.raises(ReplicaWriteError, match=r"Model\.Shelf"):
                {
                    "commit": registry.commit,
                    "flush": registry.flush,
                    "query": registry.Shelf.query().count,
                }[how]()

        registry.rollback()
        count = "select count(*) from shelf"
        primary = servers.cluster.primary
        assert primary.query(count, database=servers.database) == [(0,)]

    @pytest.mark.parametrize(
        "write",
        [
            lambda registry: registry.session.bulk_insert_mappings(
                registry.Shelf, [{"name": "x"}]
            ),
            lambda registry: registry.session.bulk_update_mappings(
                registry.Shelf, [{"id": 1, "name": "x"}]
            ),
            lambda registry: registry.session.bulk_save_objects(
                [registry.Shelf(name="x")]
            ),
            lambda registry: registry.System.Parameter.set("key", 1),
            lambda registry: registry.System.Parameter.pop("key"),
            lambda registry: registry.System.Sequence.nextvalBy(
                code="Model.Shelf=>number"
            ),
        ],
        ids=["insert", "update", "save", "set", "pop", "nextval"],
    )
    def test_other_ways_to_write_are_an_error(self, registry, servers, write):
        with registry.use_replicas(), pytest.raises(ReplicaWriteError):
            write(registry)

        assert servers.served_by(registry) in REPLICAS

    def test_flush_of_nothing_is_no_write(self, registry, servers):
        """AnyBlok marks what a One2Many has loaded as changed"""
        shelf = registry.Shelf.insert(name="one")
        registry.Book.insert(title="a", shelf=shelf)
        registry.commit()
        servers.cluster.wait_for_replay()
        with registry.use_replicas():
            assert registry.Shelf.query().one().books
            assert registry.session.dirty
            assert registry.Book.query().count() == 1
            assert servers.served_by(registry) in REPLICAS

    def test_unit_of_work_that_has_written_sees_it(self, registry, servers):
        registry.Shelf.insert(name="x")
        with registry.use_replicas():
            assert registry.Shelf.query().count() == 1
            registry.rollback()
            assert servers.served_by(registry) in REPLICAS

    def test_unit_of_work_that_may_have_written_sees_it(
        self, registry, servers
    ):
        registry.connection().execute(text("CREATE TEMPORARY TABLE mine ()"))
        with registry.use_replicas():
            assert servers.served_by(registry) == "primary"

    def test_bare_connection_is_a_replica_s(self, registry, servers):
        """For a library that wants one to read; it can't write"""
        with registry.use_replicas():
            port = registry.connection().execute(PORT).scalar()
            assert servers.names[port] in REPLICAS

    def test_without_a_replica_the_primary_serves(self, servers, make_registry):
        registry = make_registry.replicated(servers)
        take_for_down(registry, *REPLICAS)
        with registry.use_replicas():
            decision = registry.explain(PORT)
            assert decision.server_name == "primary"
            assert decision.reason is Reason.NO_USABLE_REPLICA


class TestOneServer:
    """What is written for replicas runs without them"""

    def test_nothing_changes(self, servers, make_registry):
        registry = make_registry(servers.database, db_url=servers.primary_url)
        with registry.use_replicas():
            registry.Shelf.insert(name="x")
            assert servers.served_by(registry, to("replica7")) == "primary"

        with registry.use_primary():
            assert servers.served_by(registry) == "primary"
