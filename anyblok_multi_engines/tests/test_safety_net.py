# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A standby refuses what was taken for a read: nothing of it is lost."""

import logging

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from anyblok_multi_engines.errors import NoPrimaryError, ReplicaWriteError
from anyblok_multi_engines.routing.decision import Reason

REPLICAS = {"replica1", "replica2"}

# Their labels lie: PostgreSQL believes that they don't write.
LIARS = """
create sequence if not exists hidden_seq;
create or replace function liar_25006() returns text stable
language plpgsql as $$ begin
    perform nextval('hidden_seq');
    return current_setting('port');
end $$;
create or replace function liar_0a000() returns text stable
language plpgsql as $$ begin
    if pg_is_in_recovery() then
        raise exception 'not here' using errcode = '0A000';
    end if;
    return current_setting('port');
end $$;
create or replace function liar_55000() returns text stable
language plpgsql as $$ begin
    if pg_is_in_recovery() then
        raise exception 'not yet' using errcode = '55000';
    end if;
    return current_setting('port');
end $$;
create or replace function always_0a000() returns text stable
language plpgsql as $$ begin
    raise exception 'nowhere' using errcode = '0A000';
end $$;
"""


@pytest.fixture(scope="module")
def lying(shared_servers):
    shared_servers.cluster.primary.execute(
        LIARS, database=shared_servers.database
    )
    shared_servers.cluster.wait_for_replay()
    return shared_servers


@pytest.fixture
def servers(lying):
    return lying


@pytest.fixture
def registry(servers, make_registry):
    return make_registry.replicated(servers)


@pytest.mark.parametrize("state", ["25006", "0a000", "55000"])
class TestRefusedRead:
    def test_is_run_on_the_primary(self, registry, servers, state, caplog):
        statement = select(func.__getattr__(f"liar_{state}")())
        assert registry.explain(statement).server_name in REPLICAS
        assert servers.served_by(registry, statement) == "primary"
        (record,) = (x for x in caplog.records if "refused" in x.message)
        assert record.levelno == logging.WARNING
        assert f"SELECT liar_{state}()" in record.message

    def test_goes_to_the_primary_from_then_on(
        self, registry, servers, state, caplog
    ):
        for _ in range(5):
            statement = select(func.__getattr__(f"liar_{state}")())
            assert servers.served_by(registry, statement) == "primary"
            registry.rollback()

        assert caplog.text.count("refused what") == 1
        decision = registry.explain(statement)
        assert decision.reason is Reason.NOT_A_READ
        assert state in decision.because.lower()

    def test_as_text(self, registry, servers, state):
        statement = text(f"SELECT liar_{state}(), :x").bindparams(x=1)
        assert registry.explain(statement).server_name in REPLICAS
        assert servers.served_by(registry, statement) == "primary"
        registry.rollback()
        other = text(f"SELECT liar_{state}(), :x").bindparams(x=2)
        assert registry.explain(other).reason is Reason.NOT_A_READ

    def test_in_the_middle_of_a_unit_of_work(self, registry, servers, state):
        assert servers.served_by(registry) in REPLICAS
        shelf = registry.Shelf(name="pending", number="1")
        registry.session.add(shelf)
        statement = text(f"SELECT liar_{state}()")
        with registry.session.no_autoflush:
            assert servers.served_by(registry, statement) == "primary"

        assert shelf in registry.session.new
        assert servers.served_by(registry) == "primary"
        registry.commit()
        assert servers.cluster.primary.query(
            "delete from shelf returning name", database=servers.database
        ) == [("pending",)]

    def test_as_a_query(self, registry, servers, state):
        port = registry.session.query(
            func.__getattr__(f"liar_{state}")()
        ).scalar()
        assert servers.names[port] == "primary"

    def test_under_repeatable_read(self, servers, make_registry, state):
        registry = make_registry(
            servers.database,
            db_wo_url=servers.primary_url,
            db_ro_urls=servers.replica_urls,
            isolation_level="REPEATABLE_READ",
        )
        assert servers.served_by(registry) in REPLICAS
        statement = text(f"SELECT liar_{state}()")
        assert servers.served_by(registry, statement) == "primary"
        assert servers.served_by(registry) == "primary"
        registry.commit()
        assert servers.served_by(registry) in REPLICAS

    def test_where_the_caller_wants_replicas(self, registry, state):
        with (
            registry.use_replicas(),
            pytest.raises(ReplicaWriteError, match="refused"),
        ):
            registry.execute(text(f"SELECT liar_{state}()"))


def test_refusal_survives_a_reload(registry, servers):
    statement = text("SELECT liar_25006()")
    servers.served_by(registry, statement)
    registry.rollback()
    registry.reload()
    registry.rollback()
    assert registry.explain(statement).reason is Reason.NOT_A_READ


def test_what_the_primary_refuses_too_is_the_caller_s(registry, caplog):
    with pytest.raises(DBAPIError, match="nowhere"):
        registry.execute(text("SELECT always_0a000()"))


def test_in_read_only_mode_the_refusal_is_told(servers, make_registry):
    registry = make_registry(servers.database, db_ro_urls=servers.replica_urls)
    with pytest.raises(NoPrimaryError):
        registry.execute(text("SELECT liar_25006()"))


def test_function_that_is_declared_a_write_is_none(servers, make_registry):
    registry = make_registry(
        servers.database,
        db_wo_url=servers.primary_url,
        db_ro_urls=servers.replica_urls,
        db_wo_functions=["liar_25006", "public.liar_0a000"],
    )
    for name in ("liar_25006", "liar_0a000"):
        decision = registry.explain(text(f"SELECT {name}()"))
        assert decision.reason is Reason.NOT_A_READ
        assert name in decision.because


@pytest.mark.parametrize(
    ("option", "expected"),
    [(None, {"primary"}), (["shy"], REPLICAS), ("public.shy", REPLICAS)],
    ids=["not", "by its name", "with its schema"],
)
def test_function_that_is_declared_a_read_is_one(
    servers, make_registry, option, expected
):
    servers.cluster.primary.execute(
        "create or replace function shy() returns text volatile "
        "language sql as $$select current_setting('port')$$",
        database=servers.database,
    )
    servers.cluster.wait_for_replay()
    registry = make_registry(
        servers.database,
        db_wo_url=servers.primary_url,
        db_ro_urls=servers.replica_urls,
        db_ro_functions=option,
    )
    assert servers.served_by(registry, text("SELECT shy()")) in expected


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_function_that_the_registry_redefines_is_judged_anew(
    registry, servers, end
):
    create = (
        "CREATE OR REPLACE FUNCTION changing() RETURNS text {} LANGUAGE sql "
        "AS $$SELECT current_setting('port')$$"
    )
    statement = text("SELECT changing()")
    registry.execute(text(create.format("STABLE")))
    registry.commit()
    assert registry.explain(statement).server_name in REPLICAS
    registry.execute(text("SET LOCAL work_mem = '1MB'"))
    registry.execute(text(create.format("VOLATILE")))
    getattr(registry, end)()
    expected = {"primary"} if end == "commit" else REPLICAS
    assert registry.explain(statement).server_name in expected
    registry.execute(text("DROP FUNCTION changing()"))
    registry.commit()
