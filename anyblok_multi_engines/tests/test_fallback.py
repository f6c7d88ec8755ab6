# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A read that no replica can serve: how many the primary does."""

import gc
import os
import threading
import time

import pytest
from sqlalchemy import text

from anyblok_multi_engines import fallback
from anyblok_multi_engines.errors import NoReplicaError, OptionError

from .conftest import take_for_down

SLOW = text("SELECT current_setting('port'), pg_sleep(0.02)")


@pytest.fixture
def make(servers, make_registry):
    """Give a function that builds a registry, whose replicas then stop"""

    def make(stop=True, **options):
        registry = make_registry.replicated(servers, **options)
        if stop:
            for replica in servers.cluster.replicas:
                replica.stop()

            registry.monitor.step()

        return registry

    return make


def read(registry):
    """Read in a unit of work; return the port of the server"""
    try:
        return registry.execute(SLOW).first()[0]
    finally:
        registry.rollback()


class TestError:
    @pytest.fixture
    def registry(self, make):
        return make(db_ro_fallback="error")

    def test_read_says_why_and_what_to_do(self, registry):
        with pytest.raises(NoReplicaError) as caught:
            read(registry)

        message = str(caught.value)
        assert "replica1 (127.0.0.1:" in message
        assert "none is usable" in message
        assert "--db-ro-fallback error" in message
        assert "postgres@" not in message

    def test_explanation_has_the_reason(self, registry):
        decision = registry.explain(SLOW)
        assert str(decision) == "None (no_usable_replica)"

    def test_every_way_to_read(self, registry):
        named = SLOW.execution_options(anyblok_server="replica")
        for way in (
            registry.use_replicas()(read),
            lambda registry: registry.execute(named),
            lambda registry: registry.Book.query().all(),
            lambda registry: registry.scalar(SLOW),
        ):
            with pytest.raises(NoReplicaError):
                way(registry)

    def test_primary_serves_who_asks_for_it(self, servers, registry):
        with registry.use_primary():
            assert read(registry) == str(servers.cluster.primary.port)

    def test_primary_serves_who_writes(self, registry):
        registry.Book.insert(title="x")
        assert registry.Book.query().count() == 1
        registry.commit()

    def test_session_goes_on(self, servers, registry):
        with pytest.raises(NoReplicaError):
            registry.execute(SLOW)

        servers.first.start()
        registry.monitor.step()
        assert registry.execute(SLOW).first()[0] == str(servers.first.port)

    def test_replica_that_is_behind(self, servers, make, caplog):
        registry = make(stop=False, db_ro_fallback="error")
        for replica in servers.cluster.replicas:
            replica.pause_replay()

        registry.Book.insert(title="x")
        registry.commit()
        with pytest.raises(NoReplicaError, match="what this session must see"):
            read(registry)

        for replica in servers.cluster.replicas:
            replica.resume_replay()

        servers.cluster.wait_for_replay()
        assert registry.Book.query().count() == 1

    def test_replica_that_is_lost_in_the_middle(self, servers, make):
        registry = make(
            stop=False, db_ro_fallback="error", db_ro_consistency="eventual"
        )
        name = servers.names[registry.execute(SLOW).first()[0]]
        take_for_down(registry, name)
        with pytest.raises(NoReplicaError, match="has read from is lost"):
            registry.execute(SLOW)

        registry.rollback()
        assert servers.names[read(registry)] not in (name, "primary")

    def test_primary_that_takes_its_share_takes_it_all(
        self, servers, make_registry
    ):
        """But for who asks for replicas"""
        registry = make_registry(
            servers.database,
            db_url=servers.primary_url,
            db_ro_urls=servers.replica_urls,
            db_ro_fallback="error",
        )
        for replica in servers.cluster.replicas:
            replica.stop()

        registry.monitor.step()
        assert read(registry) == str(servers.cluster.primary.port)
        with registry.use_replicas(), pytest.raises(NoReplicaError):
            read(registry)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"db_ro_fallback": "nowhere"}, "write one of primary, error"),
        ({"db_ro_fallback_limit": "x"}, "'x'; write a whole number, 1 or more"),
        ({"db_ro_fallback_limit": 0}, "'0'; write a whole number, 1 or more"),
        (
            {"db_ro_fallback_limit": 2, "db_ro_fallback": "error"},
            "leaves nothing to limit",
        ),
    ],
)
def test_bad_option_is_an_error(make, values, message):
    with pytest.raises(OptionError, match=message):
        make(stop=False, **values)


def test_limit_is_for_a_primary_of_db_wo_url(servers, make_registry):
    with pytest.raises(OptionError, match="takes its share of the reads"):
        make_registry(
            servers.database,
            db_url=servers.primary_url,
            db_ro_urls=servers.replica_urls,
            db_ro_fallback_limit=2,
        )


class TestLimit:
    @pytest.fixture
    def registry(self, make):
        return make(db_ro_fallback_limit=3)

    def test_fifty_threads_have_no_more_connections(self, servers, registry):
        primary, database = servers.cluster.primary, servers.database
        registry.engines["wo"].dispose()
        registry.slots.wait = 60.0
        done, failed, reading = [], [], []

        def work():
            try:
                for _ in range(2):
                    done.append(read(registry))
            except Exception as error:
                failed.append(error)
            finally:
                registry.Session.remove()

        threads = [threading.Thread(target=work) for _ in range(50)]
        for thread in threads:
            thread.start()

        while any(thread.is_alive() for thread in threads):
            rows = primary.query(
                "select count(*) from pg_stat_activity"
                " where query like '%%pg_sleep%%' and datname = %s",
                (database,),
            )
            reading.append(rows[0][0])
            threads[0].join(0.01)

        assert not failed
        assert done == [str(primary.port)] * 100
        assert 1 <= max(reading) <= 3
        assert free(registry) == 3

    def test_read_that_waits_for_too_long_fails(self, servers, registry):
        registry.slots.wait = 0.1
        held = [hold(registry) for _ in range(3)]
        with pytest.raises(NoReplicaError) as caught:
            read(registry)

        message = str(caught.value)
        assert "3 units of work read from the primary" in message
        assert "--db-ro-fallback-limit" in message
        assert "within 0.1 s" in message
        # Nothing is in the way of who doesn't read for want of a replica.
        registry.Book.insert(title="x")
        assert registry.Book.query().count() == 1
        registry.commit()
        with registry.use_primary():
            read(registry)

        held.pop().close()
        assert read(registry) == str(servers.cluster.primary.port)
        for session in held:
            session.close()

    def test_one_that_has_a_slot_goes_on_and_writes(self, registry):
        registry.slots.wait = 0.1
        for _ in range(3):
            registry.execute(SLOW)

        others = [hold(registry) for _ in range(2)]
        registry.execute(SLOW)
        registry.Book.insert(title="x")
        assert registry.Book.query().count() == 1
        assert free(registry) == 0
        registry.commit()
        assert free(registry) == 1
        for session in others:
            session.close()

    @pytest.mark.parametrize(
        "end", ["commit", "rollback", "close", "invalidate", "reset"]
    )
    def test_end_gives_it_back(self, registry, end):
        session = hold(registry)
        assert free(registry) == 2
        getattr(session, end)()
        assert free(registry) == 3
        session.close()

    def test_error_does_not_keep_it_longer(self, servers, registry):
        session = hold(registry)
        with pytest.raises(Exception, match="zero"):
            session.execute(text("SELECT 1 / (SELECT 0)"))

        session.rollback()
        assert free(registry) == 3

    def test_lost_connection_does_not_keep_it_longer(self, servers, registry):
        """The read is run again, in another unit of work"""
        session = hold(registry)
        servers.cluster.primary.terminate_backends(servers.database)
        session.execute(SLOW)
        assert free(registry) == 2
        session.rollback()
        assert free(registry) == 3

    def test_primary_that_is_down_too(self, servers, registry):
        servers.cluster.primary.stop()
        for _ in range(5):
            with pytest.raises(Exception, match="refused"):
                registry.execute(SLOW)

            registry.rollback()

        assert free(registry) == 3

    def test_session_that_is_collected_gives_it_back(self, registry):
        hold(registry)
        gc.collect()
        assert free(registry) == 3

    def test_thread_that_dies_gives_it_back(self, servers, registry):
        registry.slots.wait = 5.0
        gc.disable()
        try:
            for _ in range(2):
                threads = [
                    threading.Thread(target=registry.execute, args=(SLOW,))
                    for _ in range(3)
                ]
                for thread in threads:
                    thread.start()

                for thread in threads:
                    thread.join()

            assert read(registry) == str(servers.cluster.primary.port)
        finally:
            gc.enable()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    def test_forked_process_has_its_own(self, registry):
        held = [hold(registry) for _ in range(3)]
        child = os.fork()
        if not child:
            os._exit(0 if free(registry) == 3 else 1)

        assert os.waitpid(child, 0)[1] == 0
        for session in held:
            session.close()

        assert free(registry) == 3

    def test_replicas_that_serve_need_none(self, servers, make):
        registry = make(stop=False, db_ro_fallback_limit=1)
        held = [hold(registry) for _ in range(2)]
        assert free(registry) == 1
        for session in held:
            session.close()


def hold(registry):
    """Return a session that has read, and not ended"""
    session = registry.Session.session_factory()
    session.execute(SLOW)
    return session


def free(registry):
    return registry.slots._free.qsize()


def test_waiting_costs_nothing():
    """Nobody polls but for the dead"""
    slots = fallback.Slots(1, wait=0.5)
    slot = slots.take()
    begun, before = time.monotonic(), time.process_time()
    assert slots.take() is None
    assert time.monotonic() - begun >= 0.5
    assert time.process_time() - before < 0.1
    slot.give_back()
    slot.give_back()
    again = slots.take()
    assert again is not None
    assert slots._free.qsize() == 0
