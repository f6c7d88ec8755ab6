# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What happens is told to those who listen, on real servers."""

import logging

import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.exc import OperationalError

from anyblok_multi_engines.errors import (
    NoReplicaError,
    ReplicaWriteError,
    StaleReadError,
)
from anyblok_multi_engines.events import Cause, RegistryEvents, Waited
from anyblok_multi_engines.health.model import Status
from anyblok_multi_engines.registry import MultiEngines
from anyblok_multi_engines.testing import wait_until

from .conftest import DRIVER

EVENTS = RegistryEvents.dispatch._event_names
REPLICAS = {"replica1", "replica2"}
HELLO = text("SELECT current_setting('port')")


@pytest.fixture
def hear():
    """Give a function that returns what it has heard of an event"""
    heard = []

    def hear(target, name):
        found = []

        def listener(what):
            found.append(what)

        event.listen(target, name, listener)
        heard.append((target, name, listener))
        return found

    yield hear
    for each in heard:
        event.remove(*each)


def words(made):
    return [str(x.decision) for x in made]


class TestDecision:
    @pytest.fixture
    def registry(self, shared_registry):
        return shared_registry

    @pytest.fixture
    def made(self, registry, hear):
        return hear(registry, "decision")

    def test_statement_is_told_with_its_session_and_its_reason(
        self, registry, made
    ):
        registry.execute(HELLO)
        (only,) = made
        assert only.registry is registry
        assert only.session is registry.session
        assert only.statement is HELLO
        assert only.mapper is None
        assert only.decision.server_name in REPLICAS
        assert only.decision.reason == "usable_replica"

    def test_first_one_of_a_unit_of_work_begins_it(self, registry, made):
        for _ in range(2):
            registry.execute(HELLO)
            registry.Book.query().all()
            registry.rollback()

        assert [x.begins for x in made] == [True, False, True, False]

    def test_flush_is_told_once_per_table(self, registry, made):
        for _ in range(2):
            registry.Book.insert(title="x")

        assert words(made) == ["primary (flushing: a flush writes)"] * 2
        assert made[0].mapper.class_ is registry.Book
        assert made[0].statement is None
        assert [x.begins for x in made] == [True, False]

    def test_update_that_asks_first_is_told_once_per_statement(
        self, registry, made
    ):
        book = registry.Book
        statement = update(book).values(copies=1).where(book.title == "x")
        registry.execute(
            statement, execution_options={"synchronize_session": "fetch"}
        )
        assert len({id(x.statement) for x in made}) == len(made)
        assert statement in [x.statement for x in made]

    def test_bare_connection_is_told(self, registry, made):
        registry.connection()
        assert words(made) == [
            "primary (not_a_read: no statement: a bare connection)"
        ]

    def test_statement_without_a_server_is_told(self, registry, made):
        with registry.use_replicas(), pytest.raises(ReplicaWriteError):
            registry.execute(text("DELETE FROM book"))

        assert made[0].decision.server_name is None
        assert made[0].decision.reason == "write_on_replicas"

    def test_question_is_not_told(self, registry, made):
        registry.explain(HELLO)
        registry.session.get_bind()
        assert made == []

    def test_listener_of_the_class_hears_every_registry(self, registry, hear):
        made = hear(MultiEngines, "decision")
        registry.execute(HELLO)
        assert [x.registry for x in made] == [registry]

    def test_who_does_not_listen_any_more_hears_nothing(self, registry):
        def listener(made):
            raise AssertionError("it is not called")

        event.listen(registry, "decision", listener)
        assert event.contains(registry, "decision", listener)
        event.remove(registry, "decision", listener)
        assert not registry.listeners.dispatch.decision

    def test_listener_may_remove_itself(self, registry, hear):
        def listen_once(made):
            event.remove(registry, "decision", listen_once)

        event.listen(registry, "decision", listen_once)
        made = hear(registry, "decision")
        registry.execute(HELLO)
        registry.execute(HELLO)
        assert len(made) == 2
        assert not event.contains(registry, "decision", listen_once)

    def test_error_of_a_listener_breaks_nothing(self, registry, hear, caplog):
        def fail(made):
            raise RuntimeError("a bug")

        event.listen(registry, "decision", fail)
        made = hear(registry, "decision")
        try:
            registry.execute(HELLO)
        finally:
            event.remove(registry, "decision", fail)

        assert len(made) == 1
        (record,) = (x for x in caplog.records if x.levelno == logging.ERROR)
        assert record.message.startswith("A listener of DecisionMade failed")
        assert "a bug" in record.exc_text


class TestRetry:
    """Which server a statement has left, and why"""

    @pytest.fixture
    def retries(self, registry, hear):
        # Which would meet the fault, too, and take the server out.
        registry.monitor.stop()
        return hear(registry, "retry")

    def seen(self, retries):
        return [(x.server, x.cause) for x in retries]

    def test_connection_that_is_lost(self, servers, registry, retries):
        name = servers.served_by(registry)
        servers.cluster.replicas[int(name[-1]) - 1].terminate_backends()
        registry.execute(HELLO)
        assert self.seen(retries) == [(name, Cause.CONNECTION_LOST)]
        assert retries[0].statement is HELLO
        assert isinstance(retries[0].error, OperationalError)

    def test_connection_that_is_refused(self, servers, registry, retries):
        for replica in servers.cluster.replicas:
            replica.stop()

        for name in REPLICAS:
            registry.engine_of(name).dispose()

        assert servers.served_by(registry) == "primary"
        assert {x.server for x in retries} == REPLICAS
        assert {x.cause for x in retries} == {Cause.CONNECTION_REFUSED}

    def test_read_that_a_standby_refuses(self, servers, registry, retries):
        servers.cluster.primary.execute(
            "create function lie() returns int stable language plpgsql as "
            "$$ begin perform nextval('shelf_id_seq'); return 1; end $$",
            database=servers.database,
        )
        servers.cluster.wait_for_replay()
        assert registry.execute(text("SELECT lie()")).scalar() == 1
        ((name, cause),) = self.seen(retries)
        assert name in REPLICAS
        assert cause is Cause.REFUSED

    def test_column_that_is_not_replayed_yet(self, servers, registry, retries):
        for replica in servers.cluster.replicas:
            replica.pause_replay()

        servers.cluster.primary.execute(
            "alter table book add column later integer",
            database=servers.database,
        )
        registry.execute(text("SELECT later FROM book"))
        assert set(self.seen(retries)) == {
            (name, Cause.FAILED_THERE) for name in REPLICAS
        }

    def test_row_that_is_not_replayed_yet(self, servers, make_registry, hear):
        registry = make_registry.eventual(servers)
        retries = hear(registry, "retry")
        for replica in servers.cluster.replicas:
            replica.pause_replay()

        shelf = registry.Shelf.insert(name="x")
        registry.commit()
        assert shelf.name == "x"
        assert [x.cause for x in retries] == [Cause.ROW_MISSING]
        assert retries[0].error is None

    def test_primary_that_is_gone(self, servers, registry, retries):
        with registry.use_primary():
            registry.execute(HELLO)

        servers.cluster.primary.stop()
        registry.execute(HELLO)
        assert set(self.seen(retries)) == {("primary", Cause.PRIMARY_GONE)}


class TestWait:
    def test_for_a_replica(self, servers, make_registry, hear):
        registry = make_registry.replicated(servers, db_ro_wait=0.05)
        waits = hear(registry, "wait")
        for replica in servers.cluster.replicas:
            replica.pause_replay()

        registry.Book.insert(title="x")
        registry.commit()
        made = hear(registry, "decision")
        assert registry.Book.query().count() == 1
        # Nothing of those that were asked first.
        assert words(made) == ["primary (no_fresh_replica)"]
        assert [x.waited_for for x in waits] == [Waited.REPLICA]
        assert 0 < waits[0].seconds < 5

    def test_for_a_slot(self, servers, make_registry, hear):
        registry = make_registry.replicated(servers, db_ro_fallback_limit=1)
        registry.slots.wait = 0.05
        for name in REPLICAS:
            servers.cluster.replicas[int(name[-1]) - 1].stop()

        registry.monitor.step()
        waits = hear(registry, "wait")
        registry.execute(HELLO)
        other = registry.Session.session_factory()
        with pytest.raises(NoReplicaError):
            other.execute(HELLO)

        other.close()
        assert {x.waited_for for x in waits} == {Waited.FALLBACK_SLOT}
        assert waits[1].seconds >= 0.05


def test_stale_read_is_told(servers, registry, hear):
    found = hear(registry, "stale_read")
    registry.Book.insert(title="x")
    registry.commit()
    servers.cluster.wait_for_replay()
    with registry.use_replicas():
        book = registry.Book.query().one()

    servers.cluster.primary.execute(
        "update book set title = 'other'", database=servers.database
    )
    with registry.session.no_autoflush:
        book.title = "mine"

    with pytest.raises(StaleReadError) as error:
        registry.flush()

    (only,) = found
    assert only.error is error.value
    assert only.session is registry.session
    registry.rollback()


def test_status_of_a_server_is_told(servers, registry, hear):
    changes = hear(registry, "server_status")
    servers.first.stop()
    wait_until("it is not down", lambda: changes)
    servers.first.start()
    wait_until("it is not back", lambda: len(changes) == 2, timeout=30)
    down, ready = changes
    assert down.registry is registry
    assert down.server is registry.topology.replicas[0]
    assert [down.before.status, down.after.status] == ["ready", "down"]
    assert down.after.reason
    assert ready.after.status is Status.READY


def test_first_answer_is_told_to_who_listens_to_all(
    servers, make_registry, hear
):
    changes = hear(MultiEngines, "server_status")
    make_registry.replicated(servers)
    assert {x.server.name: x.after.status for x in changes} == dict.fromkeys(
        ("primary", *REPLICAS), Status.READY
    )


def test_promotion_is_told_once(servers, make_registry, hear, caplog):
    cluster = servers.cluster
    first = servers.first
    hosts = f"{cluster.primary.host},{first.host}"
    ports = f"{cluster.primary.port},{first.port}"
    registry = make_registry(
        servers.database,
        db_wo_url=(
            f"{DRIVER}://postgres@/{servers.database}?host={hosts}&port={ports}"
            "&target_session_attrs=read-write"
        ),
        db_ro_urls=servers.replica_urls,
        db_ro_check_interval=0.1,
    )
    promotions = hear(registry, "promotion")
    cluster.primary.kill()
    first.promote()
    wait_until("nobody has noticed", lambda: promotions, timeout=30)
    (only,) = promotions
    assert only.registry is registry
    assert only.after.timeline == only.before.timeline + 1
    registry.execute(select(1))
    registry.rollback()
    assert len(promotions) == 1
    assert caplog.text.count("A promotion: the primary is on timeline") == 1


@pytest.mark.parametrize("name", EVENTS)
def test_nobody_listens_by_default(shared_registry, name):
    """So that a statement costs a look at an empty list"""
    assert not getattr(shared_registry.listeners.dispatch, name)
