# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What is known of the servers: immutable values, and how they are judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from ..consistency import ConsistencyToken
from ..positions import Lag
from ..topology import Role

# A server that was too far behind serves again at this part of the limit: one
# that is about at the limit doesn't come and go.
HYSTERESIS = 0.8

# Of the primary's URL.
NO_PRIMARY = "it is a standby, and the option names a primary"

# A server that comes back has half its share until it has answered as many
# questions more: its caches are cold, and it may go again.
PROVING = 5

# How much the last answer counts in the latency, which begins at 0: one that
# is slow for once, or as the first, isn't a slow server.
SMOOTHING = 0.25

# A server is slow, and has less than its share, from this many seconds on and
# from this many times the latency of the fastest. Less is noise, or the way.
SLOW = 0.025
SLOWER = 3.0


class Status(StrEnum):
    """What is known of one server"""

    UNKNOWN = "unknown"  #: nobody has asked yet
    READY = "ready"
    LAGGING = "lagging"  #: further behind than the options allow
    WRONG = "wrong"  #: not the server that its option says
    DOWN = "down"


class PoolUse(NamedTuple):
    """How many connections of a server's pool are in use

    :param in_use: by units of work and others
    :param size: that the pool keeps; there may be more in use
    """

    in_use: int
    size: int


class Observation(NamedTuple):
    """What a server has answered

    :param asked_at: seconds of ``time.monotonic()``, before the question
    :param latency: seconds from the question to the answer
    :param is_replica: True for a hot standby
    :param position: how far it is; None: it gives no positions
    """

    asked_at: float
    latency: float
    is_replica: bool
    position: ConsistencyToken | None


class Limits(NamedTuple):
    """What is asked of a replica

    :param max_lag: seconds behind the primary; None: any number
    :param max_lag_bytes: of WAL; None: any number
    :param interval: seconds between two questions to a server
    :param max_backoff: seconds between two to one that is down, at most
    :param connect_timeout: seconds that a connection, or an answer to the
        monitor, may take
    """

    max_lag: float | None = None
    max_lag_bytes: int | None = None
    interval: float = 1.0
    max_backoff: float = 30.0
    connect_timeout: float = 2.0


class ServerHealth(NamedTuple):
    """What is known of one server

    :param status: what is known
    :param reason: why, for a person
    :param since: of the status, in seconds of ``time.monotonic()``
    :param observation: its last answer
    :param lag: of a replica; None: unknown
    :param failures: one after the other, since its last answer
    :param ask_at: the next question, in seconds of ``time.monotonic()``
    :param latency: of its answers, smoothed, in seconds
    :param proving: good answers until it has its full share again
    :param pool: of its engine, when it was asked last; None: it has none
    """

    status: Status
    reason: str
    since: float
    observation: Observation | None = None
    lag: Lag | None = None
    failures: int = 0
    ask_at: float = 0.0
    latency: float = 0.0
    proving: int = 0
    pool: PoolUse | None = None

    def part(self, limit: float) -> float:
        """Return which part of its weight counts

        :param limit: seconds of latency from which on a server is slow
        """
        part = 0.5 if self.proving else 1.0
        return part * limit / max(self.latency, limit)


NOTHING_KNOWN = ServerHealth(Status.UNKNOWN, "nobody has asked yet", 0.0)


# Of a Snapshot that is printed.
HEADINGS = (
    "server",
    "status",
    "behind",
    "position",
    "latency",
    "pool",
    "reason",
)


@dataclass(frozen=True)
class Snapshot:
    """What is known of every server at one moment

    :param servers: by name
    :param weights: as the options say, by name of the server
    """

    servers: Mapping[str, ServerHealth] = field(
        default_factory=lambda: MappingProxyType({})
    )
    weights: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def __str__(self) -> str:
        """Return a table of the servers, for a person"""
        if not self.servers:
            return "No server has been asked: nothing is known of any"

        rows = [HEADINGS, *(_row(*each) for each in self.servers.items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
        )

    @cached_property
    def down(self) -> frozenset[str]:
        """Return the names of the servers that are down"""
        return self._names(Status.DOWN)

    @cached_property
    def unusable(self) -> frozenset[str]:
        """Return the names of the servers that can't serve reads"""
        return self._names(Status.DOWN, Status.LAGGING, Status.WRONG)

    @cached_property
    def shares(self) -> Mapping[str, float]:
        """Return what counts of each weight now, by name of the server

        Half of it where a server has just come back, and the less the slower
        it is. Of the reads, a server has its part of the sum of the usable
        ones.
        """
        ready = [x for x in self.servers.values() if x.status is Status.READY]
        fastest = min((x.latency for x in ready), default=0.0)
        limit = max(SLOW, SLOWER * fastest)
        return MappingProxyType(
            {
                name: weight * self.of(name).part(limit)
                for name, weight in self.weights.items()
            }
        )

    def of(self, name: str) -> ServerHealth:
        """Return what is known of a server

        :param name: of the server
        """
        return self.servers.get(name, NOTHING_KNOWN)

    def with_server(self, name: str, health: ServerHealth) -> Snapshot:
        """Return a snapshot in which one server's health is another

        :param name: of the server
        :param health: the new one
        """
        servers = MappingProxyType({**self.servers, name: health})
        return Snapshot(servers, self.weights)

    def _names(self, *statuses: Status) -> frozenset[str]:
        return frozenset(
            name
            for name, health in self.servers.items()
            if health.status in statuses
        )


def _row(name: str, health: ServerHealth) -> tuple[str, ...]:
    """Return the cells of a server's row; - for what is unknown"""
    seen, lag, pool = health.observation, health.lag, health.pool
    answers = seen is not None and health.status is not Status.DOWN
    position = seen.position if seen is not None and answers else None
    lsn = None if position is None else position.lsn
    return (
        name,
        health.status,
        f"{lag.seconds:.1f} s, {lag.bytes} bytes" if lag and answers else "-",
        # As PostgreSQL writes it.
        f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}" if lsn is not None else "-",
        f"{health.latency * 1000:.1f} ms" if answers else "-",
        "-" if pool is None else f"{pool.in_use}/{pool.size}",
        health.reason,
    )


def judge(
    before: ServerHealth,
    role: Role,
    seen: Observation,
    cluster: int | None,
    lag: Lag | None,
    limits: Limits,
) -> ServerHealth:
    """Return what an answer of a server means

    :param before: what was known of it
    :param role: what its option says
    :param seen: its answer
    :param cluster: the primary's system identifier; None: unknown
    :param lag: behind the primary; None: unknown, or it is the primary
    :param limits: of a replica
    """
    status, reason = _verdict(before, role, seen, cluster, lag, limits)
    return ServerHealth(
        status,
        reason,
        before.since if status is before.status else seen.asked_at,
        observation=seen,
        lag=lag,
        ask_at=seen.asked_at + limits.interval,
        latency=before.latency + SMOOTHING * (seen.latency - before.latency),
        proving=_proving(before, status),
    )


def judge_failure(
    before: ServerHealth, reason: str, limits: Limits, draw: float, now: float
) -> ServerHealth:
    """Return what it means that a server doesn't answer

    The next question waits twice as long as the one before, and a random part
    of it less: not all processes ask at the same moment.

    :param before: what was known of it
    :param reason: for a person, without a password
    :param limits: of a replica
    :param draw: a random number, 0 <= draw < 1
    :param now: seconds of ``time.monotonic()``
    """
    failures = before.failures + 1
    pause = min(
        limits.interval * 2 ** min(failures - 1, 30), limits.max_backoff
    )
    return before._replace(
        status=Status.DOWN,
        reason=reason,
        since=before.since if before.status is Status.DOWN else now,
        failures=failures,
        ask_at=now + pause * (1.0 - draw / 2),
    )


def judge_standby(before: ServerHealth, now: float) -> ServerHealth:
    """Return what it means that a session has met a standby as the primary

    :param before: what was known of the primary
    :param now: seconds of ``time.monotonic()``
    """
    return before._replace(
        status=Status.WRONG,
        reason=NO_PRIMARY,
        since=before.since if before.status is Status.WRONG else now,
        ask_at=now,
    )


def _verdict(
    before: ServerHealth,
    role: Role,
    seen: Observation,
    cluster: int | None,
    lag: Lag | None,
    limits: Limits,
) -> tuple[Status, str]:
    mine = None if seen.position is None else seen.position.system_id
    if None not in (mine, cluster) and mine != cluster:
        return Status.WRONG, (
            f"it is of another cluster: its system identifier is {mine}, and "
            f"the primary's is {cluster}"
        )

    if role is Role.PRIMARY and seen.is_replica:
        return Status.WRONG, NO_PRIMARY

    if role is Role.REPLICA and not seen.is_replica:
        return Status.WRONG, "it is not in recovery: a primary, not a replica"

    excess = _excess(lag, limits, before.status is Status.LAGGING)
    if excess:
        return Status.LAGGING, excess

    return Status.READY, "answers"


def _proving(before: ServerHealth, status: Status) -> int:
    """Return how many good answers a server owes for its full share"""
    if status is not Status.READY or before.status is Status.UNKNOWN:
        return 0

    if before.status is not Status.READY:
        return PROVING

    return max(before.proving - 1, 0)


def _excess(lag: Lag | None, limits: Limits, was_lagging: bool) -> str | None:
    """Return by what a replica is too far behind"""
    part = HYSTERESIS if was_lagging else 1.0
    if lag is None:
        return None

    if limits.max_lag is not None and lag.seconds > limits.max_lag * part:
        return f"{lag.seconds:.1f} s behind, of {limits.max_lag:g} s allowed"

    most = limits.max_lag_bytes
    if most is not None and lag.bytes > most * part:
        return f"{lag.bytes} bytes behind, of {most} allowed"

    return None
