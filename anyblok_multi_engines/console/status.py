# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""How the servers are: ``anyblok_engines status``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy.pool import QueuePool

from .. import config
from ..consistency import ConsistencyToken, format_lsn
from ..health.model import Limits, ServerHealth, Snapshot, Status, judge
from ..positions import Lag
from ..routing.decision import PRIMARY
from ..topology import Server, Topology, place_of
from . import options
from .details import Details
from .passwords import hidden
from .servers import Servers

# Of the JSON: another number where a name goes, or means something else.
VERSION = 1

# Seconds between two looks at a replica that is behind.
MOMENT = 0.1


class Usability(StrEnum):
    """What an application can do with the servers"""

    USABLE = "usable"  #: every server is ready
    DEGRADED = "degraded"  #: reads and writes work, and a server is missing
    UNUSABLE = "unusable"  #: no primary, or nothing to read from

    @property
    def exit_status(self) -> int:
        """Return the exit status of the command"""
        return list(Usability).index(self)


@dataclass(frozen=True)
class ServerState:
    """One server of the table

    :param name: ``primary``, ``replica1``...
    :param place: host and port
    :param role: what its option says
    :param status: of :class:`~.health.model.Status`
    :param reason: why
    :param position: in the log, as PostgreSQL writes it; None: unknown
    :param timeline: of the position
    :param lag_bytes: of the log that it has not replayed; None: unknown, or
        it is the primary
    :param lag_seconds: since the commit of the last transaction that it has
        replayed; 0.0 where it has all
    :param latency: of its answer, in seconds
    :param share: of the reads, as it is expected: 0.0 to 1.0
    :param connections: that the server has, of all its clients
    :param max_connections: that it may have
    :param pool: connections that one process of the application may have
        there; None: no limit is known
    """

    name: str
    place: str
    role: str
    status: str
    reason: str
    position: str | None
    timeline: int | None
    lag_bytes: int | None
    lag_seconds: float | None
    latency: float | None
    share: float
    connections: int | None
    max_connections: int | None
    pool: int | None


def run(servers: Servers) -> int:
    """Show how the servers are, and return the exit status

    :param servers: of the options
    """
    if options.watches():
        return watch(servers)

    report = look(servers)
    if options.as_json():
        print(json.dumps(report.as_json(), indent=2))
    else:
        from . import tables

        tables.console().print(tables.of_status(report))

    return report.usability.exit_status


@dataclass(frozen=True)
class Report:
    """What one look at the servers has shown

    :param usability: of all of them together
    :param summary: why, for a person
    :param servers: the primary first
    """

    usability: Usability
    summary: str
    servers: tuple[ServerState, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints"""
        return {
            "version": VERSION,
            "usability": str(self.usability),
            "summary": self.summary,
            "servers": [asdict(state) for state in self.servers],
        }


def look(servers: Servers) -> Report:
    """Ask every server, and return what is known then

    :param servers: of the options
    """
    monitor = servers.monitor
    monitor.step()
    passed = None
    if any(_is_behind(monitor.snapshot.of(x)) for x in servers.probes):
        primary = monitor.snapshot.of(PRIMARY).observation
        passed = primary.position if primary else None
        time.sleep(MOMENT)
        monitor.step()

    details = {name: x.details for name, x in servers.probes.items()}
    health = with_age(
        servers.topology,
        monitor.snapshot,
        details,
        passed,
        servers.freshness.positions.system_id,
        config.limits(),
    )
    falls_back = servers.fallback.to_primary
    usability, summary = judged(servers.topology, health, falls_back)
    share = shares(servers.topology, health, falls_back)
    states = (
        state_of(
            server,
            health.of(server.name),
            details[server.name],
            share[server.name],
            pool_limit(servers, server),
        )
        for server in servers.topology.servers
    )
    return Report(usability, summary, tuple(states))


def with_age(
    topology: Topology,
    snapshot: Snapshot,
    details: Mapping[str, Details | None],
    passed: ConsistencyToken | None,
    system_id: int | None,
    limits: Limits,
) -> Snapshot:
    """Return a snapshot whose lag is the age of what has been replayed

    The monitor measures by its own clock alone, from its first question on:
    who looks for the first time doesn't know for how long a replica has been
    behind. The age says it, but for the moment after a write that comes after
    a long silence.

    :param topology: of the options
    :param snapshot: of the monitor
    :param details: by the name of the server
    :param passed: where the primary was a moment ago: a replica that has it
        isn't behind by more; None: unknown
    :param system_id: the primary's; None: unknown
    :param limits: of a replica
    """
    for server in topology.replicas:
        known, more = snapshot.of(server.name), details.get(server.name)
        seen, age = known.observation, more and more.replayed_age
        if not (_is_behind(known) and known.lag and seen and age):
            continue

        if passed is None or not passed.is_reached_by(seen.position):
            lag = Lag(known.lag.bytes, max(age, known.lag.seconds))
            judged = judge(known, server.role, seen, system_id, lag, limits)
            snapshot = snapshot.with_server(server.name, judged)

    return snapshot


def _is_behind(known: ServerHealth) -> bool:
    """Return True for a replica that answers, and hasn't everything"""
    answers = known.status in (Status.READY, Status.LAGGING)
    return answers and known.lag is not None and known.lag.bytes > 0


def judged(
    topology: Topology, health: Snapshot, falls_back: bool
) -> tuple[Usability, str]:
    """Return what an application can do with the servers, and why

    :param topology: of the options
    :param health: of the servers
    :param falls_back: True where the primary reads for its replicas
    """
    names = [server.name for server in topology.servers]
    missing = [x for x in names if not _is_ready(health, x)]
    if topology.primary and PRIMARY in missing:
        return Usability.UNUSABLE, "no primary: nothing can be written"

    if not any(shares(topology, health, falls_back).values()):
        return Usability.UNUSABLE, "nothing to read from"

    if missing:
        return Usability.DEGRADED, f"not ready: {', '.join(missing)}"

    mode = ", read-only mode" if topology.read_only else ""
    return Usability.USABLE, f"every server is ready{mode}"


def shares(
    topology: Topology, health: Snapshot, falls_back: bool
) -> dict[str, float]:
    """Return which part of the reads each server is expected to have

    :param topology: of the options
    :param health: of the servers
    :param falls_back: True where the primary reads for its replicas
    """
    found = {server.name: 0.0 for server in topology.servers}
    ready = [x.name for x in topology.readers if _is_ready(health, x.name)]
    if not ready and _is_ready(health, PRIMARY):
        alone = not topology.replicas
        return {**found, PRIMARY: 1.0 if falls_back or alone else 0.0}

    weights = {name: health.shares[name] for name in ready}
    if not any(weights.values()):
        weights = dict.fromkeys(ready, 1.0)

    total = sum(weights.values())
    return found | {name: weights[name] / total for name in ready}


def state_of(
    server: Server,
    health: ServerHealth,
    details: Details | None,
    share: float,
    pool: int | None,
) -> ServerState:
    """Return one server of the table

    :param server: which one
    :param health: of the server
    :param details: of the server; None: it has told none
    :param share: of the reads
    :param pool: connections of one process
    """
    is_up = health.status is not Status.DOWN
    seen = health.observation if is_up else None
    position, lag = seen and seen.position, health.lag if is_up else None
    return ServerState(
        name=server.name,
        place=place_of(server.url),
        role=str(server.role),
        status=str(health.status),
        reason=hidden(health.reason),
        position=format_lsn(position.lsn) if position else None,
        timeline=position.timeline if position else None,
        lag_bytes=lag.bytes if lag else None,
        lag_seconds=round(lag.seconds, 3) if lag else None,
        latency=round(seen.latency, 6) if seen else None,
        share=round(share, 4),
        connections=details.connections if details and is_up else None,
        max_connections=details.max_connections if details and is_up else None,
        pool=pool,
    )


def pool_limit(servers: Servers, server: Server) -> int | None:
    """Return how many connections a process may have to a server

    :param servers: of the options
    :param server: which one
    :rtype: None where there is no limit, or none is known
    """
    pool = servers.engine_of(server.name).pool
    if not isinstance(pool, QueuePool) or pool._max_overflow < 0:
        return None

    return pool.size() + pool._max_overflow


def _is_ready(health: Snapshot, name: str) -> bool:
    return health.of(name).status is Status.READY


def watch(servers: Servers) -> int:
    """Show how the servers are until interrupted; return the last exit status

    :param servers: of the options
    """
    report = look(servers)
    with suppress(KeyboardInterrupt), shown() as show:
        while True:
            show(report)
            time.sleep(config.limits().interval)
            report = look(servers)

    return report.usability.exit_status


@contextmanager
def shown() -> Iterator[Callable[[Report], None]]:
    """Give what shows one report after the other, in place on a terminal"""
    if options.as_json():
        yield lambda report: print(json.dumps(report.as_json()), flush=True)
        return

    from . import tables

    console = tables.console()
    if not console.is_terminal:
        yield lambda report: console.print(tables.of_status(report))
        return

    with tables.live(console) as update:
        yield lambda report: update(tables.of_status(report))
