# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""One PostgreSQL server, and what can be done to it."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import guardian
from .binaries import Binaries
from .errors import ClusterError, PortTaken
from .ports import HOST, Port, reserve_port
from .waiting import wait_until
from .workspace import Child, Workspace

#: The superuser of every server, who needs no password on 127.0.0.1.
USER = "postgres"
#: How a server is told to stop, by pg_ctl's words.
STOP_SIGNALS = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
#: What the control connections call themselves.
CONTROL = "anyblok-testing"
#: The sessions of clients, all or those in %(database)s.
CLIENTS = (
    "from pg_stat_activity where backend_type = 'client backend'"
    f" and application_name <> '{CONTROL}'"
    " and (%(database)s is null or datname = %(database)s)"
)
#: The word for what the replay of a server does.
REPLAY_STATE = (
    "case when pg_is_in_recovery() then pg_get_wal_replay_pause_state()"
    " else 'primary' end"
)
#: Seconds for a server to start or stop, to promote, to stream.
PATIENCE = 30.0


class PostgresServer:
    """A PostgreSQL server of a :class:`~.cluster.Cluster`.

    Its name, host and port stay the same for the life of the cluster,
    whatever becomes of its role. It is not for use by several threads at a
    time; a forked child may query it.
    """

    def __init__(
        self,
        name: str,
        workspace: Workspace,
        binaries: Binaries,
        directory: Path,
        timeout: float = PATIENCE,
    ) -> None:
        """Describe a server; nothing is started.

        :param name: "primary", "replica1"
        :param workspace: where the programs run
        :param binaries: PostgreSQL's programs
        :param directory: of the cluster; "NAME" and "NAME.log" are made in it
        :param timeout: seconds for a server to start or stop, to promote or
            to stream, default 30
        """
        #: "primary", "replica1", "replica2"; of the process, not of its role
        self.name = name
        #: Always "127.0.0.1"
        self.host = HOST
        #: The data directory
        self.data = directory / name
        #: The server that this one follows, or did; None: it follows none
        self.upstream: PostgresServer | None = None
        #: Seconds to start or stop, to promote or to stream
        self.timeout = timeout
        #: True once it has been started: its port is known, and stays
        self.has_been_ready = False
        self._workspace = workspace
        self._binaries = binaries
        self._log = directory / f"{name}.log"
        self._log.touch()
        self._port: Port | None = None
        self._process: Child | None = None
        self._frozen = False
        self._log_start = 0

    def __repr__(self) -> str:
        """Its name, port and state."""
        port = self._port.number if self._port else None
        state = "running" if self.is_running else "stopped"
        if self._frozen:
            state = "frozen"
        return f"<PostgresServer {self.name} port={port} {state}>"

    # Who it is

    @property
    def port(self) -> int:
        """The TCP port; the same after a restart."""
        if self._port is None:
            raise ClusterError(f"{self.name} was never started: no port yet")
        return self._port.number

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        if self._process is None or not self.is_running:
            raise ClusterError(f"{self.name} does not run: start() it first")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """True if the server's process lives, frozen or not."""
        if self._process is None:
            return False
        if self._workspace.owner == os.getpid():
            return self._process.poll() is None
        return bool(guardian.family(self._process.pid))

    @property
    def is_frozen(self) -> bool:
        """True between :meth:`freeze` and :meth:`thaw`."""
        return self._frozen

    @property
    def is_in_recovery(self) -> bool:
        """What the server says: True for a replica, False for a primary."""
        return bool(self.query("select pg_is_in_recovery()")[0][0])

    def url(
        self, database: str = "postgres", driver: str = "postgresql"
    ) -> str:
        """A URL of SQLAlchemy's form.

        :param database: its name, default "postgres"
        :param driver: default "postgresql"; also "postgresql+psycopg"
        :rtype: str, without a password: none is asked
        """
        return f"{driver}://{USER}@{self.host}:{self.port}/{database}"

    # What it is asked

    @contextlib.contextmanager
    def connection(
        self, database: str = "postgres", timeout: float = 30.0
    ) -> Iterator[Any]:
        """A control connection in autocommit, straight to the server.

        :param database: its name
        :param timeout: seconds for the connection and for each statement
        :rtype: context manager of a psycopg2 connection
        """
        import psycopg2

        if self._frozen:
            raise ClusterError(f"{self.name} is frozen: thaw() it first")
        connection = psycopg2.connect(
            host=self.host,
            port=self.port,
            user=USER,
            dbname=database,
            connect_timeout=max(2, int(timeout)),
            # Said here, so that no variable of the environment says else.
            options=f"-c statement_timeout={int(timeout * 1000)}",
            sslmode="disable",
            gssencmode="disable",
            application_name=CONTROL,
        )
        try:
            connection.autocommit = True
            yield connection
        finally:
            connection.close()

    def query(
        self,
        statement: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        database: str = "postgres",
        timeout: float = 30.0,
    ) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own, in autocommit.

        :param statement: SQL; "%" is doubled only if there are parameters
        :param parameters: for psycopg2's %s or %(name)s, default none
        :param database: its name, default "postgres"
        :param timeout: seconds, default 30
        :rtype: list of tuples; empty if the statement returns no rows
        :exception: psycopg2.Error
        """
        with self.connection(database, timeout) as connection:
            cursor = connection.cursor()
            cursor.execute(statement, parameters)
            return list(cursor) if cursor.description else []

    def execute(
        self,
        *statements: str,
        database: str = "postgres",
        timeout: float = 30.0,
    ) -> None:
        """Run statements one after the other, each in autocommit.

        :param statements: SQL, as it is
        :param database: its name, default "postgres"
        :param timeout: seconds for each, default 30
        :exception: psycopg2.Error
        """
        with self.connection(database, timeout) as connection:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)

    def log(self, offset: int = 0) -> str:
        """The server's log.

        :param offset: bytes to leave out at the beginning, default 0: what
            :attr:`log_size` was when it became interesting
        :rtype: str
        """
        with self._log.open("rb") as stream:
            stream.seek(offset)
            return stream.read().decode(errors="replace")

    @property
    def log_size(self) -> int:
        """The size of the log in bytes."""
        return self._log.stat().st_size

    # Its process

    def start(self) -> None:
        """Start the server, and wait until it accepts connections.

        Nothing is done if it runs.

        :exception: ClusterError with the end of the log
        """
        if not self.is_running:
            # If its postmaster was killed by somebody else: the backends
            # that are left would keep the next one from starting.
            guardian.end(str(self.data))
            self.begin_start()
            self.finish_start()

    def begin_start(self) -> None:
        """Start the process of the server; :meth:`finish_start` waits."""
        if self._port is None:
            self._port = reserve_port()
        self._log_start = self.log_size
        with self._log.open("ab") as log:
            self._process = self._workspace.spawn(
                self._binaries.path("postgres"),
                *("-D", self.data),
                *("-p", str(self._port.number)),
                *("-c", f"cluster_name={self.name}"),
                stdout=log,
                stderr=log,
            )
        self._frozen = False

    def finish_start(self) -> None:
        """Wait until the server accepts connections.

        :exception: PortTaken, or ClusterError with the end of the log
        """
        process = self._process
        assert process is not None
        deadline = time.monotonic() + self.timeout
        while not self._is_ready(process.pid):
            if process.poll() is not None:
                said = self.log(self._log_start)
                if "Address already in use" in said:
                    raise PortTaken(f"{self.name}: port {self.port} is taken")
                raise ClusterError(f"{self.name} did not start:\n{said}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{self.name} does not accept connections after"
                    f" {self.timeout:g} s:\n{self.log(self._log_start)}"
                )
            time.sleep(0.002)
        self.has_been_ready = True

    def _is_ready(self, pid: int) -> bool:
        """True if the server with this process id accepts connections.

        The eighth line of its lock file says so, as pg_ctl reads it;
        "standby" there is a replica that is not consistent yet.
        """
        lines = guardian.lines_of(str(self.data / "postmaster.pid"))
        return (
            len(lines) >= 8
            and lines[0] == str(pid)
            and lines[7].strip() == "ready"
        )

    def move(self) -> None:
        """Take another port, before anybody has been told this one."""
        if self._port is not None:
            self._port.release()
        self._port = reserve_port()

    def stop(self, mode: str = "fast") -> None:
        """Stop the server as pg_ctl does; one that is frozen is thawed.

        Nothing is done if it doesn't run.

        :param mode: "fast", the default: open sessions get 57P01, the
            primary waits until its replicas have all of its WAL;
            "immediate": as in a crash, open sessions get no SQLSTATE;
            "smart": it waits until all sessions are closed
        :exception: ClusterError if it runs still after the timeout
        """
        number = STOP_SIGNALS[mode]
        if self.is_running:
            self.thaw()
            guardian.send([self.pid], number)
            self._wait_for_end(f"{self.name} did not stop ({mode})")

    def begin_stop(self) -> None:
        """Tell the server to end for good; :meth:`finish_stop` waits."""
        if self.is_running:
            self.thaw()
            guardian.send([self.pid], signal.SIGQUIT)

    def finish_stop(self) -> None:
        """Wait for the end of the server, and give its port back."""
        try:
            self._wait_for_end(f"{self.name} did not stop")
        except TimeoutError:
            self.kill()
        if self._port is not None:
            self._port.release()

    def kill(self) -> None:
        """Kill the server with SIGKILL: the postmaster and all backends.

        Nothing is done if it doesn't run.
        """
        if not self.is_running:
            return
        self._save_replay()
        pid = self.pid
        # First it must not start any more of them.
        guardian.send([pid], signal.SIGSTOP)
        guardian.kill([process.pid for process in guardian.family(pid)])
        self._wait_for_end(f"{self.name} did not die")
        # What it would have cleaned up; and its lock file, as another
        # process may get that pid, and be taken for a server on this data.
        guardian.end(str(self.data))

    def _save_replay(self) -> None:
        """Make a restartpoint, before a crash, if it can be had.

        A standby that starts after a crash replays again from its last one,
        accepts connections before it is where it was, and one time in twenty
        doesn't start at all ("WAL contains references to invalid pages",
        where a table was dropped since): no fault that a test means.
        """
        upstream = self.upstream
        if upstream is None or not upstream.is_running:
            return
        if self._frozen or upstream.is_frozen:
            return
        with contextlib.suppress(ClusterError, TimeoutError):
            replays = self.replay_state == "not paused"
            if replays and not upstream.is_in_recovery:
                upstream.execute("checkpoint")
                self.wait_for_replay(upstream.committed_lsn(), 2.0, False)
                self.execute("checkpoint")

    def _wait_for_end(self, what: str) -> None:
        """Wait until the process of the server has ended."""
        wait_until(
            what, lambda: not self.is_running, self.timeout, interval=0.002
        )
        self._frozen = False

    def freeze(self) -> None:
        """Stop every process of the server, as a hung machine would.

        It still accepts TCP connections, and never answers: only a timeout
        of the client helps.
        """
        pid = self.pid
        guardian.send([pid], signal.SIGSTOP)
        self._frozen = True
        wait_until(f"{self.name} did not freeze", lambda: self._stopped(pid))

    def _stopped(self, pid: int) -> bool:
        """Stop the processes that aren't; True if there was none."""
        moving = [
            process.pid
            for process in guardian.family(pid)
            if process.state not in "Tt"
        ]
        guardian.send(moving, signal.SIGSTOP)
        return not moving

    def thaw(self) -> None:
        """Let a frozen server continue; nothing is done if it is not."""
        if self._frozen:
            pids = [process.pid for process in guardian.family(self.pid)]
            guardian.send(pids, signal.SIGCONT)
            self._frozen = False

    # Its clients

    def terminate_backends(self, database: str | None = None) -> int:
        """End the sessions of clients with pg_terminate_backend.

        They get 57P01. It waits until they are gone.

        :param database: only those in it; default None: all
        :rtype: how many
        """
        ended = self.query(
            f"select pg_terminate_backend(pid, %(wait_ms)s) {CLIENTS}",
            {"database": database, "wait_ms": int(self.timeout * 1000)},
        )
        return len(ended)

    def kill_backends(self, database: str | None = None) -> int:
        """Kill the backends of clients with SIGKILL.

        PostgreSQL takes that for a crash: it ends **all** sessions, of other
        databases too, and restarts. It waits until connections are accepted
        again. The sessions get no SQLSTATE.

        :param database: only those in it; default None: all
        :rtype: how many were killed; the server restarts if it is not 0
        """
        found = self.query(f"select pid {CLIENTS}", {"database": database})
        pids = [pid for (pid,) in found]
        if not pids:
            return 0
        self._save_replay()
        guardian.send(pids, signal.SIGKILL)
        # A zombie counts here: when the postmaster has reaped it, it knows.
        wait_until(
            f"the postmaster of {self.name} did not see the crash",
            lambda: set(pids).isdisjoint(
                process.pid for process in guardian.processes()
            ),
            self.timeout,
            interval=0.002,
        )
        self.wait_for_connections()
        return len(pids)

    def wait_for_connections(self) -> None:
        """Wait until the server accepts connections.

        :exception: TimeoutError
        """
        import psycopg2

        wait_until(
            f"{self.name} did not accept connections",
            lambda: self.query("select 1"),
            self.timeout,
            ignore=(psycopg2.OperationalError,),
        )

    # Its replay

    @property
    def replay_state(self) -> str:
        """ "not paused", "pause requested", "paused"; "primary" for one."""
        return str(self.query(f"select {REPLAY_STATE}")[0][0])

    def pause_replay(self) -> None:
        """Stop replaying WAL; it is still received. It waits until it does."""
        self.execute("select pg_wal_replay_pause()")
        wait_until(
            f"{self.name} did not pause its replay",
            lambda: self.replay_state == "paused",
            self.timeout,
        )

    def resume_replay(self) -> None:
        """Replay WAL again, after :meth:`pause_replay`."""
        self.execute("select pg_wal_replay_resume()")

    def delay_replay(self, seconds: float) -> None:
        """Replay each commit that much later than it was made.

        :param seconds: resolution 1 ms; 0: no delay
        """
        self.configure(recovery_min_apply_delay=f"{round(seconds * 1000)}ms")

    def configure(self, **settings: str | None) -> None:
        """Change settings with ALTER SYSTEM and a reload.

        It waits until new sessions have them. ``Cluster.heal`` leaves them.

        :param settings: values as in postgresql.conf; None: the default
        """
        statements = [
            f"alter system reset {name}"
            if value is None
            else f"alter system set {name} = {quoted(value)}"
            for name, value in settings.items()
        ]
        loaded = "select pg_conf_load_time() > %s::timestamptz"
        (now,) = self.query("select clock_timestamp()::text")[0]
        self.execute(*statements, "select pg_reload_conf()")
        wait_until(
            f"{self.name} did not reload its configuration",
            lambda: self.query(loaded, (now,))[0][0],
            self.timeout,
        )

    # Its role

    def promote(self) -> None:
        """Make a replica a primary, on a new timeline.

        It waits until it is one. Its sessions stay open, and may write now.
        """
        self.execute("select pg_promote(false)")
        wait_until(
            f"{self.name} was not promoted",
            lambda: not self.is_in_recovery,
            self.timeout,
        )

    def follow(self, upstream: "PostgresServer") -> None:
        """Stream from another server, and wait until it does.

        A running replica is pointed there by a reload, and its sessions
        live on. One that is a primary, or doesn't run, is made again.

        :param upstream: a running server, the new primary
        """
        if not (self.is_running and self.is_in_recovery):
            self.rebuild(upstream)
            return
        self.upstream = upstream
        upstream.make_slot(self.name)
        self.configure(
            primary_conninfo=self._conninfo(), primary_slot_name=self.name
        )
        self.wait_for_streaming()

    def rebuild(self, upstream: "PostgresServer | None" = None) -> None:
        """Make a replica again from a base backup, and start it.

        What it has is lost, its port stays.

        :param upstream: the server to copy and to follow. Default None: the
            one it followed last
        """
        self.upstream = upstream or self.upstream
        self.kill()
        self.finish_backup(self.begin_backup())
        self.start()
        self.wait_for_streaming()

    def begin_backup(self) -> Child:
        """Start to copy the upstream's data directory.

        :rtype: what :meth:`finish_backup` waits for
        """
        assert self.upstream is not None
        guardian.remove(str(self.data))
        self.upstream.drop_slot(self.name)
        return self._workspace.begin(
            self._binaries.path("pg_basebackup"),
            *("-D", self.data),
            *("-h", self.upstream.host),
            *("-p", str(self.upstream.port)),
            *("-U", USER),
            *("--create-slot", "--slot", self.name),
            *("--wal-method=stream", "--checkpoint=fast", "--no-sync"),
        )

    def finish_backup(self, backup: Child) -> None:
        """Wait for the copy, and make a replica of it.

        :param backup: what :meth:`begin_backup` returned
        :exception: ClusterError with what pg_basebackup said
        """
        self._workspace.finish(backup)
        settings = {
            "primary_conninfo": self._conninfo(),
            "primary_slot_name": self.name,
            # The upstream may have been a delayed replica.
            "recovery_min_apply_delay": "0",
        }
        # The last entry of a name counts; and ALTER SYSTEM may replace it.
        with (self.data / "postgresql.auto.conf").open("a") as stream:
            stream.write(configuration(settings))
        signal_file = self.data / "standby.signal"
        signal_file.touch()
        self._workspace.account.give(signal_file)

    def _conninfo(self) -> str:
        """How this replica connects to its upstream."""
        assert self.upstream is not None
        return (
            f"host={self.upstream.host} port={self.upstream.port}"
            f" user={USER} application_name={self.name}"
            " sslmode=disable gssencmode=disable"
        )

    def make_slot(self, name: str) -> None:
        """Make a physical replication slot, if there is none of the name.

        :param name: of the replica that will use it
        """
        self.query(
            "select pg_create_physical_replication_slot(%(name)s, true)"
            " where not exists (select from pg_replication_slots"
            " where slot_name = %(name)s)",
            {"name": name},
        )

    def drop_slot(self, name: str) -> None:
        """Drop a replication slot, if there is one; its user is cut off.

        :param name: of the replica that uses it
        """
        wait_until(
            f"{self.name} did not release the slot of {name}",
            lambda: self._dropped_slot(name),
            self.timeout,
        )

    def _dropped_slot(self, name: str) -> bool:
        """Drop the slot, or end who uses it; True if there is none."""
        slots = self.query(
            "select active_pid, pg_terminate_backend(active_pid)"
            " from pg_replication_slots where slot_name = %s",
            (name,),
        )
        if slots and slots[0][0] is None:
            self.query("select pg_drop_replication_slot(%s)", (name,))
            return True
        return not slots

    def streaming_replicas(self) -> set[str]:
        """The names of the replicas that stream from this server.

        :rtype: set of str
        """
        rows = self.query(
            "select application_name from pg_stat_replication"
            " where state = 'streaming'"
        )
        return {name for (name,) in rows}

    def wait_for_streaming(self, timeout: float | None = None) -> None:
        """Wait until this replica streams from its upstream.

        :param timeout: seconds; default None: the server's own
        :exception: TimeoutError
        """
        upstream = self.upstream
        assert upstream is not None
        wait_until(
            f"{self.name} did not stream from {upstream.name}",
            lambda: self.name in upstream.streaming_replicas(),
            self.timeout if timeout is None else timeout,
        )

    # Positions

    def committed_lsn(self) -> str:
        """A position that is after everything committed up to now.

        It is the end of a record that is written for it, and flushed.
        pg_current_wal_insert_lsn() would do on a busy server only: at the
        end of a page it is a header too far, and it is beyond records of
        transactions in progress, which an idle server needn't ever flush.

        :rtype: "0/3000148"
        """
        statements = (
            # The flush of this server is all that is wanted.
            "set synchronous_commit = local",
            "set default_transaction_read_only = off",
            "select pg_logical_emit_message(true, 'anyblok-testing', '')",
        )
        with self.connection() as connection:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            return str(cursor.fetchone()[0])

    def wait_for_replay(
        self, lsn: str, timeout: float = 10.0, paused: bool = True
    ) -> None:
        """Wait until a replica has replayed all before a position.

        :param lsn: a position of its upstream, on the same timeline
        :param timeout: seconds, default 10
        :param paused: wait also while the replay is paused, and on a server
            that is no replica any more, which has replayed nothing. Default
            True: somebody else may change that; False: these are at the end
        :exception: TimeoutError
        """
        # One connection for all: to open one takes longer than the replay.
        with self.connection() as connection:
            cursor = connection.cursor()
            row: tuple[Any, ...] = ()

            def is_done() -> bool:
                nonlocal row
                # A server that was promoted keeps its last position.
                cursor.execute(
                    "select pg_is_in_recovery() and"
                    " pg_last_wal_replay_lsn() >= %s::pg_lsn,"
                    f" {REPLAY_STATE}, pg_last_wal_replay_lsn()",
                    (lsn,),
                )
                row = cursor.fetchone()
                return row[0] or not (paused or row[1] == "not paused")

            try:
                wait_until("it was not replayed", is_done, timeout, 0.001)
            except TimeoutError:
                raise TimeoutError(
                    f"{self.name} did not replay {lsn} within {timeout:.1f} s:"
                    f" it is at {row[2]}, {row[1]}"
                ) from None


def quoted(value: str) -> str:
    """A string constant, for SQL and for postgresql.conf.

    :param value: any text
    :rtype: str
    """
    return "'" + value.replace("'", "''") + "'"


def configuration(settings: Mapping[str, str]) -> str:
    """Lines of postgresql.conf.

    :param settings: values by name
    :rtype: str
    """
    return "".join(
        f"{name} = {quoted(value)}\n" for name, value in settings.items()
    )
