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
    Limits,
    Observation,
    ServerHealth,
    Status,
    judge,
    judge_failure,
)
from anyblok_multi_engines.positions import Known, Lag, Positions
from anyblok_multi_engines.topology import Role

READY = ServerHealth(Status.READY, "answers", 1.0)
LAGGING = ServerHealth(Status.LAGGING, "5 s behind", 1.0)
DOWN = ServerHealth(Status.DOWN, "gone", 1.0, failures=1)


def position(lsn, timeline=1, system_id=7):
    return ConsistencyToken(system_id, timeline, lsn)


def judged(before=READY, role=Role.REPLICA, is_replica=True, **facts):
    seen = Observation(10.0, 0.001, is_replica, facts.get("at", position(100)))
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
