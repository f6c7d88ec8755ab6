# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A primary and its streaming replicas, with faults on demand."""

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from . import guardian
from .binaries import Binaries, find_binaries
from .errors import ClusterError, PortTaken
from .proxy import TcpProxy
from .server import PATIENCE, REPLAY_STATE, PostgresServer, configuration
from .waiting import wait_until
from .workspace import Child, Workspace, workspace

#: Settings of every cluster.
COMMON = {
    "listen_addresses": "127.0.0.1",
    # No file outside the directory, and no limit on its path.
    "unix_socket_directories": "",
    "max_connections": "100",
    "wal_level": "replica",
    "hot_standby": "on",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    # A replica that follows another primary finds what it needs there.
    "wal_keep_size": "128MB",
    # Parallel queries' segments in the data directory, not in /dev/shm: they
    # are gone with it, whatever ends the server.
    "dynamic_shared_memory_type": "mmap",
    # Default 5 s: how long a replica waits before it tries its primary again.
    "wal_retrieve_retry_interval": "100ms",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d %a ",
}
#: Settings of a cluster that may lose its data when the machine stops.
FORGETFUL = {
    "fsync": "off",
    "full_page_writes": "on",
    "shared_buffers": "16MB",
    "min_wal_size": "8MB",
    "max_wal_size": "256MB",
    # A vacuum that comes by itself makes a test fail one time in a hundred.
    "autovacuum": "off",
    # Tests have tables of three rows.
    "jit": "off",
}


class Cluster:
    """A PostgreSQL primary with streaming hot standbys.

    ::

        with Cluster(replicas=2) as cluster:
            cluster.create_database("mydb")
            cluster.primary.execute("create table t (n int)", database="mydb")
            cluster.wait_for_replay()

    The servers listen on 127.0.0.1, trust everybody there, and are gone with
    their directory when the ``with`` block or this process ends, even by
    SIGKILL.
    """

    def __init__(
        self,
        replicas: int = 2,
        settings: Mapping[str, str] | None = None,
        durable: bool = False,
        binaries: Binaries | str | os.PathLike[str] | None = None,
        directory: str | os.PathLike[str] | None = None,
        timeout: float = PATIENCE,
    ) -> None:
        """Describe a cluster; :meth:`start` or ``with`` starts it.

        :param replicas: how many standbys, default 2; 0 is a lone primary
        :param settings: for postgresql.conf of all servers, over the ones of
            this module. Default None: no more
        :param durable: True: on a disk, with fsync and the settings of a real
            server, for measurements. Default False: in memory if there is
            room, nothing is ever synced
        :param binaries: the programs, or their directory. Default None:
            what :func:`~.binaries.find_binaries` finds
        :param directory: where the temporary directory is made. Default None:
            /dev/shm, or the directory for temporary files
        :param timeout: seconds for a server to start or stop, to promote or
            to stream, default 30
        """
        if replicas < 0:
            raise ValueError(f"replicas={replicas}: it can't be negative")
        self._count = replicas
        self._settings = dict(settings or {})
        self._durable = durable
        self._binaries = binaries
        self._directory = Path(directory) if directory else None
        self._timeout = timeout
        self._workspace: Workspace | None = None
        self._servers: tuple[PostgresServer, ...] = ()
        self._proxies: list[TcpProxy] = []

    # Its life

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def start(self) -> None:
        """Start the servers; nothing is done if they have been.

        :exception: BinariesNotFound, ClusterError
        """
        if self._servers:
            return
        found = (
            self._binaries
            if isinstance(self._binaries, Binaries)
            else find_binaries(self._binaries)
        )
        self._workspace = workspace(self._durable, self._directory)
        try:
            self._build(self._workspace, self._workspace.binaries(found))
        except BaseException:
            self.close()
            raise

    def _build(self, place: Workspace, binaries: Binaries) -> None:
        """Make the data directories, and start the servers."""
        directory = place.new_directory("cluster")
        names = ["primary", *(f"replica{n + 1}" for n in range(self._count))]
        self._servers = tuple(
            PostgresServer(name, place, binaries, directory, self._timeout)
            for name in names
        )
        # 1 MB segments make small directories, and are quick to copy; a
        # measurement wants what a real server has.
        options = [] if self._durable else ["--wal-segsize=1"]
        template = place.template(binaries, *options)
        place.run("cp", "-Rp", template, self.primary.data)
        with (self.primary.data / "postgresql.conf").open("a") as stream:
            stream.write(configuration(self._all_settings(binaries)))
        self._start_together(self.primary)
        self._build_replicas(self.replicas)

    def _all_settings(self, binaries: Binaries) -> dict[str, str]:
        """The settings of postgresql.conf."""
        settings = dict(COMMON)
        if not self._durable:
            settings |= FORGETFUL
            if binaries.version >= 18:
                # Three processes less in each server.
                settings["io_method"] = "sync"
        if binaries.has_library("pg_stat_statements"):
            settings["shared_preload_libraries"] = "pg_stat_statements"
        return settings | self._settings

    def _build_replicas(self, replicas: Sequence[PostgresServer]) -> None:
        """Make replicas of the primary, side by side."""
        backups: list[tuple[PostgresServer, Child]] = []
        for replica in replicas:
            replica.upstream = self.primary
            backups.append((replica, replica.begin_backup()))
        for replica, backup in backups:
            replica.finish_backup(backup)
        self._start_together(*replicas)
        for replica in replicas:
            replica.wait_for_streaming()

    @staticmethod
    def _start_together(*servers: PostgresServer) -> None:
        """Start servers side by side; a new one may take another port."""
        for server in servers:
            server.begin_start()
        for server in servers:
            for attempt in itertools.count(1):
                try:
                    server.finish_start()
                    break
                except PortTaken:
                    # By somebody who doesn't reserve: after we had looked.
                    if attempt == 20 or server.has_been_ready:
                        raise
                    server.move()
                    server.begin_start()

    def close(self) -> None:
        """End the servers, and remove their directories.

        More than once does no harm; in a forked child nothing is done.
        """
        place, servers = self._workspace, self._servers
        if place is None or place.owner != os.getpid():
            return
        self.close_proxies()
        self._servers = ()
        for server in servers:
            server.begin_stop()
        for server in servers:
            server.finish_stop()
        if servers:
            guardian.remove(str(servers[0].data.parent))

    # Its servers

    @property
    def is_running(self) -> bool:
        """True between :meth:`start` and :meth:`close`."""
        return bool(self._servers)

    @property
    def primary(self) -> PostgresServer:
        """The server that began as the primary."""
        return self.servers[0]

    @property
    def replicas(self) -> tuple[PostgresServer, ...]:
        """The servers that began as replicas: "replica1", "replica2"..."""
        return self.servers[1:]

    @property
    def servers(self) -> tuple[PostgresServer, ...]:
        """The primary and the replicas."""
        if not self._servers:
            raise ClusterError("The cluster does not run: start() it")
        return self._servers

    def create_database(self, name: str) -> None:
        """Create a database on the primary.

        :param name: any text that PostgreSQL takes for a name
        """
        self.primary.execute(f"create database {identifier(name)}")

    def drop_database(self, name: str) -> None:
        """Drop a database on the primary, with its sessions; or do nothing.

        :param name: any text that PostgreSQL takes for a name
        """
        self.primary.execute(
            f"drop database if exists {identifier(name)} with (force)"
        )

    def wait_for_replay(
        self,
        timeout: float = 10.0,
        replicas: Sequence[PostgresServer] | None = None,
    ) -> None:
        """Wait until replicas have replayed all that is committed by now.

        :param timeout: seconds for all of them, default 10
        :param replicas: which. Default None: those that could, that is all
            but the stopped, the frozen, the paused and the promoted
        :exception: TimeoutError
        """
        deadline = time.monotonic() + timeout
        asked = self.replicas if replicas is None else replicas
        if replicas is None:
            asked = [
                one for one in asked if one.is_running and not one.is_frozen
            ]
        targets: dict[PostgresServer, str] = {}
        for replica in asked:
            upstream = replica.upstream or self.primary
            if upstream not in targets:
                targets[upstream] = upstream.committed_lsn()
        for replica in asked:
            replica.wait_for_replay(
                targets[replica.upstream or self.primary],
                max(0.0, deadline - time.monotonic()),
                paused=replicas is not None,
            )

    # Its faults

    def proxy(self, server: PostgresServer) -> TcpProxy:
        """A TCP proxy in front of a server, for faults of the network.

        :param server: where it forwards to
        :rtype: :class:`~.proxy.TcpProxy`; closed with the cluster
        """
        proxy = TcpProxy(server.host, server.port)
        self._proxies.append(proxy)
        return proxy

    def close_proxies(self) -> None:
        """Close the proxies that were made."""
        while self._proxies:
            self._proxies.pop().close()

    def cause_recovery_conflict(
        self, replica: PostgresServer, database: str = "postgres"
    ) -> None:
        """Cancel what reads on a replica, by a vacuum on its primary.

        Each session in the database that holds a snapshot there loses its
        query, with 40001, or its connection if it is idle in a transaction.
        It waits until the vacuum is replayed.

        :param replica: a replica that replays
        :param database: its name, default "postgres"
        """
        table = "anyblok_recovery_conflict"
        primary = replica.upstream or self.primary
        replica.configure(max_standby_streaming_delay="0")
        try:
            primary.execute(
                f"drop table if exists {table}",
                f"create table {table} (n int)",
                f"insert into {table} values (1), (2)",
                f"delete from {table} where n = 1",
                f"vacuum {table}",
                database=database,
            )
            self.wait_for_replay(self._timeout, [replica])
            primary.execute(f"drop table {table}", database=database)
        finally:
            replica.configure(max_standby_streaming_delay=None)

    def heal(self) -> None:
        """Undo every fault: the cluster is as it was when it started.

        Servers are thawed and started, replay is resumed and not delayed, a
        replica that was promoted or follows another server is made again.
        Databases and settings stay as they are. Where nothing is wrong it
        takes one connection to each server.
        """
        for proxy in self._proxies:
            proxy.heal()
        # A list: each of them, whatever the others are.
        faults = [heal_process(server) for server in self.servers]
        if self.primary.upstream is not None:
            if self.primary.is_in_recovery:
                self.primary.promote()
            self.primary.upstream = None
        broken = []
        for replica in self.replicas:
            fault = None
            if replica.upstream is self.primary and replica.is_running:
                fault = heal_replay(replica)
            if fault is None:
                broken.append(replica)
            faults.append(fault is not False)
        broken += self._not_streaming(broken)
        for replica in broken:
            replica.kill()
        self._build_replicas(broken)
        if broken or any(faults):
            self.wait_for_replay(self._timeout)

    def _not_streaming(
        self, broken: Sequence[PostgresServer]
    ) -> list[PostgresServer]:
        """The replicas that don't come back to the primary by themselves."""
        names = {one.name: one for one in self.replicas if one not in broken}

        def missing() -> set[str]:
            return names.keys() - self.primary.streaming_replicas()

        try:
            wait_until("they did not stream", lambda: not missing(), 5.0)
        except TimeoutError:
            return [names[name] for name in missing()]
        return []


def heal_process(server: PostgresServer) -> bool:
    """Thaw or start a server.

    :param server: which
    :rtype: True if there was anything to do
    """
    if server.is_running:
        frozen = server.is_frozen
        server.thaw()
        return frozen
    try:
        server.start()
    except ClusterError:
        # A replica is made again, and then it must start; a primary can't.
        if server.upstream is None:
            raise
    return True


def heal_replay(replica: PostgresServer) -> bool | None:
    """Resume a replica's replay, without a delay.

    :param replica: which
    :rtype: True if there was anything to do; None if it is no replica
    """
    ((state, delay),) = replica.query(
        f"select {REPLAY_STATE}, current_setting('recovery_min_apply_delay')"
    )
    if state == "primary":
        return None
    if delay != "0":
        replica.delay_replay(0)
    if state != "not paused":
        replica.resume_replay()
    return (state, delay) != ("not paused", "0")


def identifier(name: str) -> str:
    """A quoted identifier.

    :param name: any text
    :rtype: str
    """
    return '"' + name.replace('"', '""') + '"'
