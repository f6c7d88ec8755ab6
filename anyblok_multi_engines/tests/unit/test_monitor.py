# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The monitor, with a probe and a clock of the test's own."""

import logging
import threading

import pytest
from sqlalchemy.engine import make_url

from anyblok_multi_engines.health.model import Status
from anyblok_multi_engines.health.monitor import Monitor
from anyblok_multi_engines.topology import Role, Server

SERVERS = [
    Server(
        f"replica{number}",
        Role.REPLICA,
        make_url(f"postgresql://u:s3cr3t@h{number}/db"),
        "--db-ro-urls",
    )
    for number in (1, 2)
]


class Probed:
    """A monitor of two servers, whose failures the test writes"""

    def __init__(self):
        self.failures = {}
        self.now = 10.0
        self.probed = threading.Event()
        self.monitor = Monitor(
            {server: server.name for server in SERVERS},
            probe=self.probe,
            interval=0.001,
            clock=lambda: self.now,
        )

    def probe(self, engine):
        self.probed.set()
        failure = self.failures.get(engine)
        if isinstance(failure, Exception):
            raise failure

        return failure

    def status(self, name):
        return self.monitor.snapshot.servers[name].status

    def thread(self):
        return self.monitor._thread


@pytest.fixture
def probed():
    probed = Probed()
    yield probed
    probed.monitor.stop()


def joined(thread):
    thread.join(timeout=10.0)
    return not thread.is_alive()


def test_nothing_is_known_and_no_thread_runs_at_first(probed):
    assert not probed.monitor.snapshot.servers
    assert probed.thread() is None


def test_step_publishes_what_the_servers_say(probed, caplog):
    probed.failures = {"replica2": "connection refused"}
    before = probed.monitor.snapshot
    probed.monitor.step()
    assert not before.servers
    assert probed.status("replica1") is Status.READY
    assert probed.monitor.snapshot.down == {"replica2"}
    health = probed.monitor.snapshot.servers["replica2"]
    assert (health.reason, health.since) == ("connection refused", 10.0)
    assert "replica2 (h2) is out of the reads" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_warns_once_per_change(probed, caplog):
    # Its own thread would find it ready in between.
    probed.failures = {"replica1": "gone"}
    for _ in range(3):
        probed.monitor.report_down("replica1", "gone")

    assert caplog.text.count("is out of the reads") == 1
    assert probed.monitor.snapshot.servers["replica1"].since == 10.0


def test_server_comes_back_and_the_thread_ends(probed, caplog):
    caplog.set_level(logging.INFO)
    probed.failures = {"replica1": "gone"}
    probed.monitor.report_down("replica1", "gone")
    thread = probed.thread()
    assert thread.daemon
    assert probed.probed.wait(timeout=10.0)
    assert probed.monitor.snapshot.down == {"replica1"}
    probed.failures = {}
    assert joined(thread)
    assert probed.status("replica1") is Status.READY
    assert "replica1 (h1) is ready again" in caplog.text
    assert probed.thread() is None


def test_failing_probe_does_not_end_the_thread(probed, caplog):
    probed.failures = {"replica1": RuntimeError("a defect")}
    probed.monitor.report_down("replica1", "gone")
    thread = probed.thread()
    for _ in range(3):
        probed.probed.clear()
        assert probed.probed.wait(timeout=10.0)

    assert "The monitor failed, and goes on" in caplog.text
    probed.failures = {}
    assert joined(thread)
    assert not probed.monitor.snapshot.down


def test_stop_ends_the_thread_and_no_other_starts(probed):
    probed.failures = {"replica1": "gone"}
    probed.monitor.report_down("replica1", "gone")
    thread = probed.thread()
    probed.monitor.stop()
    assert not thread.is_alive()
    probed.monitor.report_down("replica2", "gone")
    assert probed.thread() is thread
