# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the answers of servers mean, on plain values."""

import pytest

from anyblok_multi_engines.consistency import ConsistencyToken
from anyblok_multi_engines.health.model import (
    NOTHING_KNOWN,
    PROVING,
    Limits,
    Observation,
    PoolUse,
    ServerHealth,
    Snapshot,
    Status,
    judge,
    judge_failure,
)
from anyblok_multi_engines.health.probe import Log
from anyblok_multi_engines.positions import (
    LONG_RECORD,
    Known,
    Lag,
    Positions,
)
from anyblok_multi_engines.topology import Role

READY = ServerHealth(Status.READY, "answers", 1.0)
LAGGING = ServerHealth(Status.LAGGING, "5 s behind", 1.0)
DOWN = ServerHealth(Status.DOWN, "gone", 1.0, failures=1)


def position(lsn, timeline=1, system_id=7):
    return ConsistencyToken(system_id, timeline, lsn)


def judged(before=READY, role=Role.REPLICA, is_replica=True, **facts):
    seen = Observation(
        10.0,
        facts.get("latency", 0.001),
        is_replica,
        facts.get("at", position(100)),
    )
    return judge(
        before,
        role,
        seen,
        facts.get("cluster", 7),
        facts.get("lag", Lag(0, 0.0)),
        facts.get("limits", Limits()),
    )


def test_server_that_answers_is_ready():
    found = judged(NOTHING_KNOWN)
    assert (found.status, found.since) == (Status.READY, 10.0)
    assert found.ask_at == 11.0


def test_status_that_stays_keeps_its_time():
    assert judged(READY).since == 1.0
    assert judged(DOWN).since == 10.0


@pytest.mark.parametrize(
    ("role", "is_replica", "why"),
    [
        (Role.REPLICA, False, "not in recovery"),
        (Role.PRIMARY, True, "a standby"),
    ],
)
def test_server_of_another_role_is_wrong(role, is_replica, why):
    found = judged(role=role, is_replica=is_replica)
    assert found.status is Status.WRONG
    assert why in found.reason


def test_server_of_another_cluster_is_wrong():
    found = judged(at=position(1, system_id=8))
    assert found.status is Status.WRONG
    assert "system identifier is 8, and the primary's is 7" in found.reason


def test_server_that_tells_no_position_is_no_other_cluster():
    assert judged(at=None, lag=None).status is Status.READY
    assert judged(cluster=None).status is Status.READY


@pytest.mark.parametrize(
    ("limits", "lag", "why"),
    [
        (Limits(max_lag=2.0), Lag(1, 2.1), "2.1 s behind, of 2 s allowed"),
        (Limits(max_lag_bytes=9), Lag(10, 0.1), "10 bytes behind, of 9"),
    ],
)
def test_replica_beyond_a_limit_lags(limits, lag, why):
    found = judged(limits=limits, lag=lag)
    assert found.status is Status.LAGGING
    assert why in found.reason


def test_unknown_lag_is_no_lag():
    """Where positions can't be compared, freshness decides"""
    assert judged(limits=Limits(max_lag=0.1), lag=None).status is Status.READY


def test_replica_at_the_limit_does_not_come_and_go():
    limits = Limits(max_lag=10.0)
    for seconds, before, after in (
        (9.9, READY, Status.READY),
        (10.1, READY, Status.LAGGING),
        (9.9, LAGGING, Status.LAGGING),
        (7.9, LAGGING, Status.READY),
    ):
        lag = Lag(1, seconds)
        assert judged(before, limits=limits, lag=lag).status is after


def test_questions_to_a_dead_server_wait_longer_and_longer():
    limits = Limits(interval=1.0, max_backoff=30.0)
    health, pauses = READY, []
    for _ in range(8):
        health = judge_failure(health, "gone", limits, 0.0, 100.0)
        pauses.append(health.ask_at - 100.0)

    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert (health.status, health.failures) == (Status.DOWN, 8)
    early = judge_failure(health, "gone", limits, 0.999, 100.0)
    assert 15.0 < early.ask_at - 100.0 < 15.1


def test_answer_ends_the_waiting():
    assert judged(DOWN).failures == 0


class TestShares:
    """What counts of the servers' weights"""

    @staticmethod
    def shares(**servers):
        return Snapshot(servers, {"a": 1.0, "b": 3.0}).shares

    @staticmethod
    def slow(latency, **facts):
        return ServerHealth(Status.READY, "", 1.0, latency=latency, **facts)

    def test_are_the_weights(self):
        assert self.shares() == {"a": 1.0, "b": 3.0}
        assert self.shares(a=READY, b=READY) == {"a": 1.0, "b": 3.0}

    def test_are_still_there_in_the_next_snapshot(self):
        next_one = Snapshot({}, {"a": 2.0}).with_server("a", READY)
        assert next_one.shares == {"a": 2.0}

    def test_are_the_weights_at_the_first_answer(self):
        assert judged(NOTHING_KNOWN).proving == 0

    @pytest.mark.parametrize(
        "away", [Status.DOWN, Status.LAGGING, Status.WRONG]
    )
    def test_are_half_for_who_comes_back(self, away):
        health, parts = ServerHealth(away, "", 1.0), []
        for _ in range(PROVING + 2):
            health = judged(health)
            parts.append(self.shares(a=health)["a"])

        assert parts == [*[0.5] * PROVING, 1.0, 1.0]

    def test_are_half_again_for_who_goes_again(self):
        health = judged(judged(DOWN))
        health = judge_failure(health, "gone", Limits(), 0.0, 100.0)
        assert judged(health).proving == PROVING

    def test_are_less_for_who_is_slow(self):
        for latency, part in ((0.025, 1.0), (0.05, 0.5), (0.25, 0.1)):
            servers = {"a": self.slow(latency), "b": self.slow(0.001)}
            assert self.shares(**servers) == {
                "a": pytest.approx(part),
                "b": 3.0,
            }

    def test_are_less_and_half_for_who_is_slow_and_comes_back(self):
        servers = {"a": self.slow(0.05, proving=1), "b": READY}
        assert self.shares(**servers)["a"] == pytest.approx(0.25)

    def test_do_not_mind_what_is_fast_enough(self):
        """However many times slower than the fastest"""
        servers = {"a": self.slow(0.02), "b": self.slow(0.0001)}
        assert self.shares(**servers) == {"a": 1.0, "b": 3.0}

    def test_do_not_mind_a_long_way_to_all(self):
        servers = {"a": self.slow(0.3), "b": self.slow(0.1)}
        assert self.shares(**servers) == {"a": 1.0, "b": 3.0}

    def test_do_not_compare_with_who_is_away(self):
        gone = ServerHealth(Status.DOWN, "gone", 1.0, latency=0.001)
        assert self.shares(a=self.slow(0.1), b=gone)["a"] == 1.0


class TestLatency:
    def test_moves_by_a_quarter_from_0(self):
        health, latencies = NOTHING_KNOWN, []
        for _ in range(3):
            health = judged(health, latency=0.064)
            latencies.append(round(health.latency, 6))

        assert latencies == [0.016, 0.028, 0.037]

    def test_one_slow_answer_makes_no_slow_server(self):
        """A process that is busy with something else, for example"""
        servers = {
            "a": judged(NOTHING_KNOWN, latency=0.1),
            "b": judged(NOTHING_KNOWN),
        }
        assert Snapshot(servers, {"a": 1.0}).shares == {"a": 1.0}

    def test_is_kept_while_a_server_is_down(self):
        health = judged(READY, latency=0.4)
        health = judge_failure(health, "gone", Limits(), 0.0, 100.0)
        assert health.latency == pytest.approx(0.1)


class TestLag:
    @pytest.fixture
    def positions(self):
        """Give a primary that was at 100 at second 1, and at 500 at second 5"""
        positions = Positions()
        for second in range(1, 6):
            known = Known(float(second), position(100 * second))
            positions.note_primary(known)

        return positions

    def test_is_none_at_the_newest_position(self, positions):
        """An idle primary's replica isn't old, however long it is idle"""
        assert positions.lag_of(position(500), 1000.0) == Lag(0, 0.0)
        assert positions.lag_of(position(600), 1000.0) == Lag(0, 0.0)

    def test_is_the_time_since_the_primary_was_there(self, positions):
        assert positions.lag_of(position(350), 6.0) == Lag(150, 3.0)

    def test_is_at_least_what_is_known(self, positions):
        """Before the first sample"""
        assert positions.lag_of(position(50), 6.0) == Lag(450, 5.0)

    def test_is_of_what_the_primary_has_flushed(self, positions):
        """It sends no more, and an open transaction's may stay there"""
        known = Known(6.0, position(900), visible=position(500))
        positions.note_primary(known)
        assert positions.lag_of(position(500), 1000.0) == Lag(0, 0.0)
        assert positions.lag_of(position(400), 6.0) == Lag(100, 2.0)

    def test_is_of_whole_records(self, positions):
        """A replica can't replay the first part of one"""
        positions.note_primary(Known(6.0, position(80_000)))
        flushed = position(90_000)
        known = Known(7.0, position(95_000), visible=flushed, is_whole=False)
        positions.note_primary(known)
        least = 90_000 - LONG_RECORD
        assert positions.lag_of(position(least), 8.0) == Lag(0, 0.0)
        assert positions.lag_of(position(500), 8.0) == Lag(least - 500, 3.0)

    def test_is_unknown_without_a_position(self, positions):
        """A fresh standby's NULL isn't 0"""
        assert positions.lag_of(None, 6.0) is None
        assert Positions().lag_of(position(1), 6.0) is None

    def test_is_unknown_on_another_timeline(self, positions):
        assert positions.lag_of(position(500, timeline=2), 6.0) is None

    def test_grows_while_nothing_arrives(self, positions):
        """A dead walreceiver isn't in sync"""
        positions.note_primary(Known(9.0, position(900)))
        assert positions.lag_of(position(500), 10.0) == Lag(400, 5.0)


class TestPrinted:
    """A snapshot is a table"""

    def test_servers_in_their_order_and_what_is_known(self):
        seen = Observation(10.0, 0.001, True, position(0x2_0000_00FF))
        snapshot = Snapshot(
            {
                "primary": ServerHealth(Status.READY, "answers", 1.0),
                "replica1": ServerHealth(
                    Status.LAGGING,
                    "3.5 s behind, of 2 s allowed",
                    1.0,
                    observation=seen,
                    lag=Lag(4096, 3.5),
                    latency=0.0015,
                    pool=PoolUse(1, 5),
                ),
            }
        )
        head, primary, replica = str(snapshot).splitlines()
        assert head.split() == [
            "server",
            "status",
            "behind",
            "position",
            "latency",
            "pool",
            "reason",
        ]
        assert primary.split() == ["primary", "ready", *"----", "answers"]
        assert "lagging  3.5 s, 4096 bytes  2/FF" in replica
        assert "1.5 ms   1/5   3.5 s behind, of 2 s allowed" in replica

    def test_server_that_is_down_has_nothing_old(self):
        seen = Observation(10.0, 0.001, True, position(255))
        down = ServerHealth(
            Status.DOWN, "gone", 1.0, observation=seen, lag=Lag(1, 1.0)
        )
        line = str(Snapshot({"replica1": down})).splitlines()[1]
        assert line.split() == ["replica1", "down", *"----", "gone"]

    def test_nothing_is_known(self):
        assert "nothing is known" in str(Snapshot())


SEGMENT = 1 << 24
PAGE = 5 * SEGMENT + 8192


@pytest.mark.parametrize(
    ("insert_lsn", "end"),
    [
        (5 * SEGMENT, 5 * SEGMENT),
        (5 * SEGMENT + 40, 5 * SEGMENT),
        (5 * SEGMENT + 24, 5 * SEGMENT + 24),
        (PAGE, PAGE),
        (PAGE + 24, PAGE),
        (PAGE + 40, PAGE + 40),
    ],
)
def test_header_of_the_next_page_is_no_record(insert_lsn, end):
    assert Log(1, 1, 8192, SEGMENT).end_of(insert_lsn) == end
