# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Who gets how much of the reads: real servers answer for themselves."""

import threading
from collections import Counter

import pytest

from anyblok_multi_engines.health import model
from anyblok_multi_engines.health.model import PROVING, Status
from anyblok_multi_engines.routing.balancing import Policy
from anyblok_multi_engines.testing import wait_until

from .conftest import PORT

POLICIES = [policy.value for policy in Policy]

# Long enough for no other answer than the first: no share changes.
ASKED_ONCE = 600.0


@pytest.fixture
def make(servers, make_registry, monkeypatch):
    """Give a function that builds a registry for which no server is slow

    Where the tests run, something else may be slow.
    """
    monkeypatch.setattr(model, "SLOW", 10.0)

    def make(**options):
        defaults = {
            "db_wo_url": servers.primary_url,
            "db_ro_urls": servers.replica_urls,
            "db_ro_consistency": "eventual",
            "db_ro_check_interval": ASKED_ONCE,
        }
        return make_registry(servers.database, **{**defaults, **options})

    return make


def served(registry, servers, number):
    """Return how many of some units of work each server has served"""
    found = Counter()
    for _ in range(number):
        found[servers.served_by(registry)] += 1
        registry.rollback()

    return found


def shares(registry):
    return dict(registry.health().shares)


@pytest.mark.parametrize(
    ("policy", "consistency", "number"),
    [
        ("random", "session", 10_000),
        ("round-robin", "session", 10_000),
        ("least-busy", "session", 2_000),
        *((policy, "eventual", 2_000) for policy in POLICIES),
    ],
)
def test_nine_to_one_is_nine_to_one(servers, make, policy, consistency, number):
    registry = make(
        db_ro_policy=policy,
        db_ro_weights=[9, 1],
        db_ro_consistency=consistency,
    )
    found = served(registry, servers, number)
    assert set(found) == {"replica1", "replica2"}
    # Within half a percent of all.
    assert abs(found["replica2"] - number / 10) <= number / 200


@pytest.mark.parametrize("policy", ["random", "round-robin"])
def test_threads_have_the_shares_together(servers, make, policy):
    registry = make(db_ro_policy=policy, db_ro_consistency="session")
    found = []

    def work():
        found.append(served(registry, servers, 200))
        registry.Session.remove()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # Each stays for a few units of work on one.
    total = sum(found, Counter())
    assert abs(total["replica1"] - 400) <= 60


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, {"primary": 1, "replica1": 1, "replica2": 1}),
        ([2, 1], {"primary": 1, "replica1": 2, "replica2": 1}),
        ([1, 1, 2], {"primary": 2, "replica1": 1, "replica2": 1}),
        ([3, 1, 0], {"replica1": 3, "replica2": 1}),
    ],
)
def test_primary_that_takes_reads_has_a_weight(
    servers, make, weights, expected
):
    registry = make(
        db_url=servers.primary_url, db_wo_url=None, db_ro_weights=weights
    )
    found = served(registry, servers, 600)
    assert set(found) == set(expected)
    for name, weight in expected.items():
        share = 600 * weight / sum(expected.values())
        assert abs(found[name] - share) <= 30


def test_weight_0_serves_where_nobody_else_is_there(servers, make):
    registry = make(db_ro_weights=[1, 0])
    assert set(served(registry, servers, 20)) == {"replica1"}
    servers.first.stop()
    assert set(served(registry, servers, 20)) == {"replica2"}


def test_least_busy_leaves_a_replica_whose_connections_are_in_use(
    servers, make
):
    registry = make(db_ro_policy="least-busy")
    engine = registry.engine_of("replica1")
    held = [engine.connect() for _ in range(2)]
    assert set(served(registry, servers, 40)) == {"replica2"}
    for connection in held:
        connection.close()

    assert served(registry, servers, 40)["replica1"] >= 15


def test_explanation_takes_nobody_s_turn(servers, make):
    registry = make(db_ro_policy="round-robin")
    found = Counter()
    for _ in range(20):
        told = registry.explain(PORT).server_name
        name = servers.served_by(registry)
        assert told == name
        found[name] += 1
        registry.rollback()

    assert found == {"replica1": 10, "replica2": 10}


def test_engine_is_given_by_the_weights(servers, make):
    registry = make(db_ro_weights=[0, 1])
    engines = {registry.get_engine_for(ro=True) for _ in range(20)}
    assert engines == {registry.engine_of("replica2")}


def test_replica_that_comes_back_has_half_its_share_at_first(servers, make):
    registry = make(db_ro_check_interval=0.05, db_ro_max_backoff=0.05)
    parts = []
    monitor = registry.monitor
    servers.first.stop()
    wait_until(
        "it did not leave",
        lambda: registry.health().of("replica1").status is Status.DOWN,
    )
    # What follows is asked by the test.
    monitor.stop()
    servers.first.start()
    for _ in range(PROVING + 1):
        monitor.step()
        assert registry.health().of("replica1").status is Status.READY
        parts.append(shares(registry)["replica1"])
        if len(parts) == 1:
            # A third: its weight is half of the other's.
            found = served(registry, servers, 300)
            assert abs(found["replica1"] - 100) <= 10

    assert parts == [*[0.5] * PROVING, 1.0]
    found = served(registry, servers, 300)
    assert abs(found["replica1"] - 150) <= 10


@pytest.mark.parametrize("policy", POLICIES)
def test_slow_replica_is_used_less_and_not_left(
    anyblok_cluster, servers, make_registry, policy
):
    proxy = anyblok_cluster.proxy(servers.first)
    host, _, database = servers.replica_urls[0].rpartition("/")
    url = f"{host.rpartition(':')[0]}:{proxy.port}/{database}"
    registry = make_registry(
        servers.database,
        db_wo_url=servers.primary_url,
        db_ro_urls=[url, servers.replica_urls[1]],
        db_ro_policy=policy,
        db_ro_consistency="eventual",
        db_ro_check_interval=ASKED_ONCE,
    )
    monitor = registry.monitor
    proxy.delay(0.3)
    for _ in range(5):
        monitor.step()

    health = registry.health()
    assert health.of("replica1").status is Status.READY
    assert 0.2 < health.of("replica1").latency < 2
    assert health.shares["replica1"] < 0.4
    found = served(registry, servers, 80)
    assert 1 <= found["replica1"] < 30

    proxy.heal()
    wait_until(
        "it has not its share again",
        lambda: monitor.step() or shares(registry)["replica1"] == 1,
    )


def test_health_tells_how_much_of_each_pool_is_in_use(servers, make):
    registry = make()
    with registry.engine_of("replica1").connect():
        registry.monitor.step()
        size = registry.engine_of("replica1").pool.size()
        assert registry.health().of("replica1").pool == (1, size)
        assert registry.health().of("replica2").pool == (0, size)

    registry.monitor.step()
    assert registry.health().of("replica1").pool == (0, size)


def test_pool_use_is_known_of_a_server_that_hangs(servers, make):
    registry = make()
    with registry.engine_of("replica1").connect():
        servers.first.freeze()
        registry.monitor.step(["replica1"])
        health = registry.health().of("replica1")
        assert health.status is Status.DOWN
        assert health.pool.in_use == 1
