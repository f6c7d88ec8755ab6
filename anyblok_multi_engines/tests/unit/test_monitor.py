# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The monitor, with probes and a clock of the test's own."""

import logging
import threading
import time

import pytest
from sqlalchemy.engine import make_url

from anyblok_multi_engines.consistency import ConsistencyToken
from anyblok_multi_engines.health.model import (
    Limits,
    Observation,
    PoolUse,
    Status,
)
from anyblok_multi_engines.health.monitor import Monitor
from anyblok_multi_engines.positions import Known, Positions
from anyblok_multi_engines.testing import wait_until
from anyblok_multi_engines.tests.processes import stand_still
from anyblok_multi_engines.topology import Role, Server


def server(name, role=Role.REPLICA):
    url = make_url(f"postgresql://u:s3cr3t@{name}/db")
    return Server(name, role, url, "--db-ro-urls", weight=2.0)


class Probe:
    """A server that does what the test writes"""

    def __init__(self, is_replica=True):
        self.is_replica = is_replica
        self.failure = self.pool = self.position = None
        self.asked = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.was_cut_off = self.is_closed = False

    def ask(self):
        self.asked += 1
        self.may_answer.wait(timeout=10.0)
        if self.was_cut_off:
            raise OSError("cut off")

        if self.failure is not None:
            raise self.failure

        return Observation(0.0, 0.001, self.is_replica, self.position)

    def pool_use(self):
        return self.pool

    def cut_off(self):
        self.was_cut_off = True

    def close(self):
        self.is_closed = True


class Probed:
    """A monitor of a primary and two replicas"""

    def __init__(self):
        self.now = 10.0
        self.hung = []
        self.moved = []
        self.positions = Positions()
        self.probes = {
            "primary": Probe(is_replica=False),
            "replica1": Probe(),
            "replica2": Probe(),
        }
        servers = {
            server(x, Role.PRIMARY if x == "primary" else Role.REPLICA): probe
            for x, probe in self.probes.items()
        }
        self.monitor = Monitor(
            servers,
            Limits(interval=0.01, max_backoff=0.05, connect_timeout=0.3),
            self.positions,
            on_hung=self.hung.append,
            on_moved=lambda: self.moved.append(self.now),
            clock=lambda: self.now,
        )

    def status(self, name):
        return self.monitor.snapshot.of(name).status


@pytest.fixture
def probed():
    probed = Probed()
    yield probed
    for probe in probed.probes.values():
        probe.may_answer.set()

    probed.monitor.stop()


def test_nothing_is_known_and_no_thread_runs_at_first(probed):
    assert not probed.monitor.snapshot.servers
    assert probed.monitor._thread is None
    assert probed.status("replica1") is Status.UNKNOWN


def test_step_publishes_what_the_servers_say(probed, caplog):
    probed.probes["replica2"].failure = OSError("connection refused")
    before = probed.monitor.snapshot
    probed.monitor.step()
    assert not before.servers
    assert probed.status("replica1") is Status.READY
    assert probed.monitor.snapshot.down == {"replica2"}
    health = probed.monitor.snapshot.of("replica2")
    assert (health.reason, health.since) == ("connection refused", 10.0)
    assert "replica2 (replica2) is out of the reads" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_step_publishes_the_use_of_the_pools(probed):
    probed.probes["replica1"].pool = PoolUse(3, 5)
    probed.probes["replica2"].pool = PoolUse(5, 5)
    probed.probes["replica2"].failure = OSError("connection refused")
    probed.monitor.step()
    pools = [probed.monitor.snapshot.of(x).pool for x in probed.probes]
    assert pools == [None, (3, 5), (5, 5)]


def test_weights_are_in_every_snapshot(probed):
    expected = dict.fromkeys(probed.probes, 2.0)
    assert probed.monitor.snapshot.shares == expected
    probed.monitor.step()
    assert probed.monitor.snapshot.shares == expected


def test_server_that_comes_back_has_half_its_share(probed):
    probed.monitor.step()
    probed.monitor.report_down("replica1", "refused")
    probed.monitor.step()
    assert probed.monitor.snapshot.shares["replica1"] == 1.0


def test_step_asks_once(probed):
    probed.monitor.step()
    assert [x.asked for x in probed.probes.values()] == [1, 1, 1]


def test_warns_once_per_change(probed, caplog):
    probed.probes["replica1"].failure = OSError("gone")
    for _ in range(3):
        probed.monitor.step()
        probed.monitor.report_down("replica1", "gone")

    assert caplog.text.count("is out of the reads") == 1
    assert probed.monitor.snapshot.of("replica1").since == 10.0


def test_wrong_server_is_an_error_and_serves_nothing(probed, caplog):
    probed.probes["replica1"].is_replica = False
    probed.monitor.step()
    assert probed.monitor.snapshot.unusable == {"replica1"}
    assert not probed.monitor.snapshot.down
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "replica1 (replica1) is not used: it is not in rec" in caplog.text


class TestPrimary:
    def test_that_is_a_standby_is_left_at_each_check(self, probed):
        primary = probed.probes["primary"]
        primary.is_replica = True
        for number in (1, 2):
            probed.monitor.step()
            assert probed.status("primary") is Status.WRONG
            assert primary.is_closed
            assert len(probed.moved) == number

        primary.is_replica = False
        probed.monitor.step()
        assert probed.status("primary") is Status.READY
        assert len(probed.moved) == 2

    def test_of_another_timeline_is_left_once(self, probed):
        primary = probed.probes["primary"]
        for timeline, times in ((1, 0), (1, 0), (2, 1), (2, 1), (1, 2)):
            primary.position = ConsistencyToken(7, timeline, 100)
            probed.positions.note_primary(Known(0.0, primary.position))
            probed.monitor.step()
            assert len(probed.moved) == times

        # The one of before the promotion lives on.
        assert probed.positions.timeline == 2
        probed.monitor.step()
        assert len(probed.moved) == 3

    def test_that_a_session_has_found_to_be_a_standby_is_asked_at_once(
        self, probed, caplog
    ):
        probed.monitor.step()
        for _ in range(2):
            probed.monitor.report_standby("primary")

        health = probed.monitor.snapshot.of("primary")
        assert (health.status, health.ask_at) == (Status.WRONG, probed.now)
        assert caplog.text.count("it is a standby") == 1


def test_server_that_hangs_holds_up_nobody(probed):
    probe = probed.probes["replica1"]
    probe.may_answer.clear()
    probed.monitor.step()
    assert probed.status("replica2") is Status.READY
    assert probed.status("replica1") is Status.DOWN
    assert probed.hung == ["replica1"]
    assert probe.was_cut_off
    probed.monitor.step()
    assert probe.asked == 1, "it was asked again while it hung"
    assert probed.probes["replica2"].asked == 2


def test_server_that_answers_while_the_process_stands_still_is_not_late(
    probed,
):
    """It can't be heard, as when somebody keeps the interpreter's lock"""
    probe = probed.probes["replica1"]
    probe.may_answer.clear()
    thread = threading.Thread(target=probed.monitor.step)
    thread.start()
    wait_until("it was not asked", lambda: probe.asked)
    stand_still(1.0)
    probe.may_answer.set()
    thread.join()
    assert probed.status("replica1") is Status.READY
    assert not probed.hung
    assert not probe.was_cut_off


class TestBegin:
    def test_waits_for_none_and_publishes_nothing(self, probed):
        for probe in probed.probes.values():
            probe.may_answer.clear()

        probed.monitor.begin()
        wait_until(
            "they were not asked",
            lambda: all(x.asked for x in probed.probes.values()),
        )
        assert not probed.monitor.snapshot.servers

    def test_step_takes_the_answer_that_is_on_its_way(self, probed):
        probe = probed.probes["replica1"]
        probe.may_answer.clear()
        probed.monitor.begin()
        probe.may_answer.set()
        probed.monitor.step()
        assert {probed.status(x) for x in probed.probes} == {Status.READY}

    def test_step_asks_again_who_has_answered(self, probed):
        """What was true before the load may not be true any more"""
        probed.monitor.begin()
        for asking in probed.monitor._asking.values():
            asking.is_over.wait()

        probed.probes["replica1"].failure = OSError("connection refused")
        probed.monitor.step()
        assert probed.status("replica1") is Status.DOWN
        assert probed.status("replica2") is Status.READY

    def test_server_that_hangs_since_is_down(self, probed):
        probe = probed.probes["replica1"]
        probe.may_answer.clear()
        probed.monitor.begin()
        probed.monitor.step()
        assert probed.status("replica1") is Status.DOWN
        assert (probe.asked, probe.was_cut_off) == (1, True)

    def test_asks_nobody_who_has_been_asked(self, probed):
        probed.monitor.step()
        probed.monitor.begin()
        assert [x.asked for x in probed.probes.values()] == [1, 1, 1]

    def test_connection_that_comes_after_the_stop_is_closed(self, probed):
        probe = probed.probes["replica1"]
        probe.may_answer.clear()
        probed.monitor.begin()
        probed.monitor.stop()
        probe.is_closed = False
        probe.may_answer.set()
        wait_until("it was not closed", lambda: probe.is_closed)


def test_thread_asks_and_a_server_comes_back(probed, caplog):
    caplog.set_level(logging.INFO)
    probed.monitor._clock = time.monotonic
    probe = probed.probes["replica1"]
    probe.failure = RuntimeError("a defect")
    probed.monitor.step()
    assert probe.is_closed
    probed.monitor.start()
    assert probed.monitor._thread.daemon
    wait_until("it was not asked again", lambda: probe.asked > 2)
    probe.failure = None
    # Said after it has been published.
    wait_until("it did not come back", lambda: "ready again" in caplog.text)
    assert probed.status("replica1") is Status.READY
    assert caplog.text.count("replica1 (replica1) is ready again") == 1


class Panic(BaseException):
    """As extensions in Rust raise it"""

    def __str__(self):
        raise ValueError("no text")


def test_server_is_asked_again_whatever_was_raised(probed):
    probe = probed.probes["replica1"]
    probe.failure = Panic()
    probed.monitor.start()
    # By the monitor's own thread, which asks no more by the test's clock.
    wait_until(
        "it was not asked", lambda: probed.status("replica1") is Status.DOWN
    )
    for _ in range(3):
        asked = probe.asked
        probed.monitor.step(["replica1"])
        assert probe.asked == asked + 1

    assert probed.monitor.snapshot.of("replica1").reason == "Panic"
    probe.failure = None
    probed.monitor.step(["replica1"])
    assert probed.status("replica1") is Status.READY
    assert not probed.hung
    assert not probe.was_cut_off


def test_a_thread_for_each_server_stays_until_the_stop(probed):
    def threads():
        return {x for x in threading.enumerate() if x.name.endswith("-probe")}

    before = threads()
    probed.monitor.start()
    probed.monitor.step()
    mine = threads() - before
    assert len(mine) == 3
    for _ in range(20):
        probed.monitor.step()

    assert threads() - before == mine
    probed.monitor.stop()
    wait_until("they did not end", lambda: not threads() & mine)


def test_step_asks_after_the_stop(probed):
    probed.monitor.start()
    probed.monitor.step()
    probed.monitor.stop()
    for probe in probed.probes.values():
        probe.is_closed = False

    for _ in range(3):
        asked = [x.asked for x in probed.probes.values()]
        probed.monitor.step()
        assert [x.asked for x in probed.probes.values()] == [
            number + 1 for number in asked
        ]
        assert all(x.is_closed for x in probed.probes.values())

    assert not probed.hung


def test_stop_ends_the_thread_and_closes_the_connections(probed):
    probed.monitor.start()
    thread = probed.monitor._thread
    probed.monitor.stop()
    assert not thread.is_alive()
    assert all(probe.is_closed for probe in probed.probes.values())


def test_report_of_a_session_changes_the_snapshot(probed):
    probed.monitor.step()
    probed.monitor.report_down("replica1", "refused")
    assert probed.monitor.snapshot.down == {"replica1"}
    probed.monitor.step(["replica1"])
    assert not probed.monitor.snapshot.down
