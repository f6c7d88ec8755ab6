# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What is done to the servers: each fault a block, and who it hits."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from ...testing import Cluster, PostgresServer, wait_until

#: The server that began as the primary, where it is a replica.
FORMER = "former primary"

NO_SERVER = "no server at all"
PROMOTE = "promote"
SIGSTOP = "SIGSTOP"


@dataclass
class Span:
    """A fault, from when to when

    :param kind: of the fault
    :param server: that it hit, or all
    :param begun: nanoseconds
    :param ended: nanoseconds, when the server was as before
    """

    kind: str
    server: str
    begun: int
    ended: int = 0


@dataclass
class Stage:
    """The servers, as the faults see them: their roles change

    :param cluster: with the database
    :param database: its name
    :param column: number of the newest column of ``book``
    """

    cluster: Cluster
    database: str
    column: Any
    spans: list[Span] = field(default_factory=list)
    #: When each promotion was asked for, in nanoseconds
    promotions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.primary = self.cluster.primary
        self.proxies = {
            server.name: self.cluster.proxy(server)
            for server in self.cluster.servers
        }

    @property
    def replicas(self) -> list[PostgresServer]:
        """The servers that are replicas now"""
        return [x for x in self.cluster.servers if x is not self.primary]

    def urls(self, driver: str) -> list[str]:
        """Return the URLs of all servers, through their proxies"""
        return [x.url(self.database, driver) for x in self.proxies.values()]

    def primary_url(self, driver: str) -> str:
        """Return the URL of whichever server is the primary"""
        hosts = "&".join(
            f"host={x.host}:{x.port}" for x in self.proxies.values()
        )
        return (
            f"{driver}://postgres@/{self.database}?{hosts}"
            "&target_session_attrs=read-write&connect_timeout=2"
        )

    @property
    def names(self) -> dict[str, str]:
        """Names of servers that are replicas, by their ports"""
        names = {str(x.port): x.name for x in self.cluster.servers}
        return names | {str(self.cluster.primary.port): FORMER}

    @contextmanager
    def fault(self, kind: str, server: PostgresServer | None) -> Iterator[None]:
        """Do a block under a fault, which is written down"""
        # A server is named after what it does when it is hit.
        name = "all"
        if server is not None:
            is_primary = server is self.primary
            name = "primary" if is_primary else self.names[str(server.port)]

        span = Span(kind, name, time.monotonic_ns())
        self.spans.append(span)
        with KINDS[kind].block(self, server):
            yield

        span.ended = time.monotonic_ns()

    @contextmanager
    def gone(self, server: PostgresServer) -> Iterator[None]:
        """Do a block in which a server is stopped

        Otherwise its proxy would take clients that it doesn't take itself, and
        end them; libpq then tries no other host.
        """
        proxy = self.proxies[server.name]
        proxy.refuse()
        yield
        proxy.heal()

    def settle(self) -> None:
        """Wait until the replicas have all that is committed"""
        for replica in self.replicas:
            replica.wait_for_streaming()

        self.cluster.wait_for_replay(30.0, self.replicas)


Block = Callable[[Stage, Any], AbstractContextManager[None]]


@dataclass(frozen=True)
class Kind:
    """A kind of fault

    :param block: does it, and undoes it at its end
    :param seconds: that it lasts, at least and at most
    :param hits_primary: True where it may hit the primary too
    """

    block: Block
    seconds: tuple[float, float] = (0.5, 1.5)
    hits_primary: bool = True


@contextmanager
def pause(stage: Stage, server: PostgresServer) -> Iterator[None]:
    server.pause_replay()
    yield
    server.resume_replay()


@contextmanager
def delay(stage: Stage, server: PostgresServer) -> Iterator[None]:
    server.delay_replay(0.3)
    yield
    server.delay_replay(0.0)


def stop(mode: str) -> Block:
    """Return the fault that a server is stopped"""

    @contextmanager
    def stopped(stage: Stage, server: PostgresServer) -> Iterator[None]:
        with stage.gone(server):
            server.stop(mode)
            yield
            server.start()

    return stopped


@contextmanager
def kill(stage: Stage, server: PostgresServer) -> Iterator[None]:
    with stage.gone(server):
        server.kill()
        yield
        server.start()


@contextmanager
def kill_backend(stage: Stage, server: PostgresServer) -> Iterator[None]:
    server.kill_backends(stage.database)
    yield


@contextmanager
def freeze(stage: Stage, server: PostgresServer) -> Iterator[None]:
    server.freeze()
    yield
    server.thaw()


@contextmanager
def refuse(stage: Stage, server: PostgresServer) -> Iterator[None]:
    proxy = stage.proxies[server.name]
    proxy.refuse()
    proxy.drop()
    yield
    proxy.heal()


@contextmanager
def blackhole(stage: Stage, server: PostgresServer) -> Iterator[None]:
    proxy = stage.proxies[server.name]
    proxy.blackhole()
    yield
    proxy.heal()


@contextmanager
def slow_link(stage: Stage, server: PostgresServer) -> Iterator[None]:
    proxy = stage.proxies[server.name]
    proxy.delay(0.05)
    yield
    proxy.heal()


@contextmanager
def conflict(stage: Stage, server: PostgresServer) -> Iterator[None]:
    stage.cluster.cause_recovery_conflict(server, stage.database)
    yield


@contextmanager
def change_schema(stage: Stage, server: PostgresServer) -> Iterator[None]:
    """Add a column that a replica has later, and that is asked for at once"""
    server.delay_replay(0.3)
    column = stage.column.value + 1
    stage.primary.execute(
        f"alter table book add column chaos_{column} integer",
        database=stage.database,
    )
    stage.column.value = column
    yield
    server.delay_replay(0.0)


@contextmanager
def rebuild(stage: Stage, server: PostgresServer) -> Iterator[None]:
    with stage.gone(server):
        server.rebuild(stage.primary)

    yield


@contextmanager
def lose_all(stage: Stage, server: None) -> Iterator[None]:
    for proxy in stage.proxies.values():
        proxy.refuse()
        proxy.drop()

    yield
    for proxy in stage.proxies.values():
        proxy.heal()


@contextmanager
def promote(stage: Stage, server: PostgresServer) -> Iterator[None]:
    """Stop the primary, promote the replica that has most, follow it

    An acknowledged commit is on one of the replicas at least, and so on the
    one that has most.
    """
    old = stage.primary
    with stage.gone(old):
        old.stop("immediate")
        new = most_advanced(stage.replicas)
        (other,) = [x for x in stage.replicas if x is not new]
        stage.promotions.append(time.monotonic_ns())
        new.promote()
        new.upstream, stage.primary = None, new
        other.follow(new)
        yield
        old.rebuild(new)


def most_advanced(replicas: list[PostgresServer]) -> PostgresServer:
    """Return the replica that has received most, and replayed it

    :param replicas: of a primary that is gone
    """
    behind = "select pg_last_wal_replay_lsn() < pg_last_wal_receive_lsn()"
    for replica in replicas:
        wait_until(
            f"{replica.name} did not replay what it has received",
            lambda replica=replica: not replica.query(behind)[0][0],
        )

    position = "select pg_last_wal_replay_lsn() - '0/0'::pg_lsn"
    return max(replicas, key=lambda replica: replica.query(position)[0][0])


# The reads must have left a server that hangs before it goes on by itself.
HANG = (4.4, 4.8)

KINDS = {
    "pause replay": Kind(pause, hits_primary=False),
    "delay replay": Kind(delay, hits_primary=False),
    "stop fast": Kind(stop("fast")),
    "stop immediate": Kind(stop("immediate")),
    "SIGKILL a backend": Kind(kill_backend, (0.2, 0.5)),
    "SIGKILL a postmaster": Kind(kill),
    SIGSTOP: Kind(freeze, HANG),
    "refuse": Kind(refuse),
    "blackhole": Kind(blackhole, HANG),
    "slow link": Kind(slow_link),
    "recovery conflict": Kind(conflict, (0.1, 0.3), hits_primary=False),
    "DDL during replay": Kind(change_schema, hits_primary=False),
    "rebuild": Kind(rebuild, (0.1, 0.3), hits_primary=False),
    NO_SERVER: Kind(lose_all),
    PROMOTE: Kind(promote, (1.0, 1.5)),
}
