# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Metrics for Prometheus; needs the extra ``metrics``::

    from anyblok_multi_engines import metrics

    metrics.register(registry)

Counters are the process's: a registry's begin when it is registered, and its
database tells them apart. What is known of the servers is read when somebody
asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from time import monotonic
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import event

from .events import (
    Cause,
    DecisionMade,
    Promotion,
    Retry,
    StaleReadFound,
    StatusChange,
    Wait,
)
from .health.model import ServerHealth, Status
from .routing.decision import WANT_OF_REPLICA

PREFIX = "anyblok_engines"

# Of statements that have none.
NO_SERVER = "none"

# Seconds. A replica catches up within milliseconds; nobody waits for much
# longer than --db-ro-wait, or two seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


def _counter(name: str, documentation: str, *labels: str) -> Counter:
    return Counter(
        name,
        documentation,
        ("database", *labels),
        namespace=PREFIX,
        registry=None,
    )


# One of each per process: two would write over each other's files where
# several processes are added up.
UNITS = _counter(
    "units_of_work",
    "Units of work, by the server and the reason of their first statement",
    "server",
    "reason",
)
STATEMENTS = _counter(
    "statements",
    "Statements and their retries, by the server that they went to and why",
    "server",
    "reason",
)
FALLBACKS = _counter(
    "fallbacks",
    "Reads for which no replica would do; server none: they failed for it",
    "server",
    "reason",
)
RETRIES = _counter(
    "retries",
    "Statements that were run again elsewhere, by the server that they left",
    "server",
    "cause",
)
STALE_READS = _counter(
    "stale_read_errors",
    "Writes that were refused because a replica had loaded older data",
    "model",
)
STATUS_CHANGES = _counter(
    "status_changes",
    "Changes of a server's status, by the status it has got",
    "server",
    "status",
)
PROMOTIONS = _counter(
    "promotions", "Times that a standby has taken the primary's place"
)
WAITS = Histogram(
    "wait_seconds",
    "Seconds that statements have waited",
    ("database", "waited_for"),
    namespace=PREFIX,
    registry=None,
    buckets=BUCKETS,
)

COUNTS: tuple[Counter | Histogram, ...] = (
    UNITS,
    STATEMENTS,
    FALLBACKS,
    RETRIES,
    STALE_READS,
    STATUS_CHANGES,
    PROMOTIONS,
    WAITS,
)


class Gauge(NamedTuple):
    """What is known of each server, as a metric

    :param name: without the prefix, with its unit
    :param documentation: one line
    :param value: of a server's health; None: there is none
    """

    name: str
    documentation: str
    value: Callable[[ServerHealth], float | None]


def _lag_seconds(health: ServerHealth) -> float | None:
    return None if health.lag is None else health.lag.seconds


def _lag_bytes(health: ServerHealth) -> float | None:
    return None if health.lag is None else health.lag.bytes


def _position(health: ServerHealth) -> float | None:
    seen = health.observation
    return None if seen is None or not seen.position else seen.position.lsn


def _timeline(health: ServerHealth) -> float | None:
    seen = health.observation
    return None if seen is None or not seen.position else seen.position.timeline


def _latency(health: ServerHealth) -> float | None:
    return None if health.observation is None else health.latency


GAUGES = (
    Gauge(
        "replica_lag_seconds",
        "Seconds since the primary was where the replica is now",
        _lag_seconds,
    ),
    Gauge(
        "replica_lag_bytes",
        "Bytes of WAL that the replica has not replayed",
        _lag_bytes,
    ),
    Gauge(
        "wal_position_bytes",
        "WAL position: inserted on the primary, replayed on a replica",
        _position,
    ),
    Gauge("wal_timeline", "Timeline of the WAL position", _timeline),
    Gauge(
        "latency_seconds",
        "Seconds that the server takes to answer the monitor, smoothed",
        _latency,
    ),
)

STATUS = f"{PREFIX}_server_status"
ANSWER_AGE = f"{PREFIX}_answer_age_seconds"
IN_USE = f"{PREFIX}_pool_in_use_connections"
POOL_SIZE = f"{PREFIX}_pool_size_connections"


class Counting:
    """Counts what a registry tells

    :param registry: that tells it
    """

    def __init__(self, registry: Any) -> None:
        database = str(registry.db_name)
        # Each keeps its children: labels() is slower than inc().
        self._units = cache(lambda *x: UNITS.labels(database, *x).inc)
        self._statements = cache(lambda *x: STATEMENTS.labels(database, *x).inc)
        self._fallbacks = cache(lambda *x: FALLBACKS.labels(database, *x).inc)
        self._database = database
        # From 0: a first increase is one, too.
        PROMOTIONS.labels(database)
        for server in registry.topology.servers:
            for cause in Cause:
                RETRIES.labels(database, server.name, cause.value)

            for status in Status:
                STATUS_CHANGES.labels(database, server.name, status.value)

    def decision(self, made: DecisionMade) -> None:
        """Count a statement, and its unit of work"""
        decision = made.decision
        labels = (decision.server_name or NO_SERVER, decision.reason.value)
        self._statements(*labels)()
        if made.begins:
            self._units(*labels)()

        if decision.reason in WANT_OF_REPLICA:
            self._fallbacks(*labels)()

    def retry(self, retry: Retry) -> None:
        """Count a retry"""
        RETRIES.labels(self._database, retry.server, retry.cause.value).inc()

    def wait(self, wait: Wait) -> None:
        """Count a wait, and its time"""
        WAITS.labels(self._database, wait.waited_for.value).observe(
            wait.seconds
        )

    def stale_read(self, found: StaleReadFound) -> None:
        """Count a StaleReadError, of the first model in it"""
        STALE_READS.labels(self._database, found.error.model).inc()

    def server_status(self, change: StatusChange) -> None:
        """Count a change of a server's status"""
        STATUS_CHANGES.labels(
            self._database, change.server.name, change.after.status.value
        ).inc()

    def promotion(self, promotion: Promotion) -> None:
        """Count a promotion"""
        PROMOTIONS.labels(self._database).inc()


EVENTS = (
    "decision",
    "retry",
    "wait",
    "stale_read",
    "server_status",
    "promotion",
)


class RegistryCollector(Collector):
    """Collects what the registered registries have counted, and know"""

    def __init__(self) -> None:
        self.registries: WeakSet[Any] = WeakSet()

    def describe(self) -> Iterable[Metric]:
        """Return no names: they are known without a question"""
        return []

    def collect(self) -> Iterator[Metric]:
        """Give every metric

        Where several processes are added up, prometheus_client has the
        counters already.
        """
        if not is_multiprocess():
            for metric in COUNTS:
                yield from metric.collect()

        yield from servers_metrics(tuple(self.registries))


def servers_metrics(registries: Iterable[Any]) -> list[Metric]:
    """Return what registries know of their servers

    Of a server that doesn't answer, nothing but its status.

    :param registries: of AnyBlok
    """
    status = _family(STATUS, "1 for the status that the server has", "status")
    age = _family(ANSWER_AGE, "Seconds since the server was asked and answered")
    in_use = _family(IN_USE, "Connections of this process in use")
    size = _family(POOL_SIZE, "Connections that the pool keeps")
    known = {
        gauge: _family(f"{PREFIX}_{gauge.name}", gauge.documentation)
        for gauge in GAUGES
    }
    now = monotonic()
    for registry in registries:
        if not registry.monitor.is_running:
            # It is closed, or nobody asks its servers.
            continue

        for name, health in registry.health().servers.items():
            labels = [str(registry.db_name), name]
            for each in Status:
                status.add_metric([*labels, each.value], health.status is each)

            if health.pool is not None:
                in_use.add_metric(labels, health.pool.in_use)
                size.add_metric(labels, health.pool.size)

            if health.observation is not None:
                age.add_metric(labels, now - health.observation.asked_at)

            if health.status in (Status.DOWN, Status.UNKNOWN):
                continue

            for gauge, family in known.items():
                value = gauge.value(health)
                if value is not None:
                    family.add_metric(labels, value)

    return [status, age, *known.values(), in_use, size]


def _family(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(
        name, documentation, labels=["database", "server", *labels]
    )


def is_multiprocess() -> bool:
    """Return True where prometheus_client adds up several processes"""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


_collectors: WeakKeyDictionary[CollectorRegistry, RegistryCollector] = (
    WeakKeyDictionary()
)
_counting: WeakKeyDictionary[Any, Counting] = WeakKeyDictionary()


def register(
    registry: Any, collectors: CollectorRegistry = REGISTRY
) -> RegistryCollector:
    """Count what a registry does, and have it collected

    Of the registries that are registered with the same ``collectors`` there is
    one collector; a registry that is registered again is counted once.

    :param registry: of AnyBlok
    :param collectors: Prometheus' registry
    """
    if registry not in _counting:
        counting = _counting[registry] = Counting(registry)
        for name in EVENTS:
            event.listen(registry, name, getattr(counting, name))

    collector = _collectors.get(collectors)
    if collector is None:
        collector = _collectors[collectors] = RegistryCollector()
        collectors.register(collector)

    collector.registries.add(registry)
    return collector
