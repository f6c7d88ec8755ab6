# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The only monitoring SQL."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from ..consistency import (
    ConsistencyToken,
    end_of_record,
    format_lsn,
    parse_lsn,
)
from ..engines import shut_down, sqlstate_of
from ..positions import Known, Link, Positions
from ..topology import Role, Server
from .model import Observation, PoolUse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALIVE = "SELECT 1"
IS_REPLICA = "SELECT pg_catalog.pg_is_in_recovery()"

# object_not_in_prerequisite_state: what only a primary answers.
IN_RECOVERY = "55000"

# undefined_function, insufficient_privilege, feature_not_supported,
# syntax_error, undefined_object and undefined_column: the server has no
# positions to give, or not to us. (Amazon Aurora, CockroachDB, a role without
# EXECUTE.)
NO_POSITIONS = frozenset(["42883", "42501", "0A000", "42601", "42704", "42703"])

# Of the primary: what has been inserted, and not what has been written or
# flushed, which is less under synchronous_commit = off. Where commits wait for
# the flush, what isn't flushed can't have been seen: a transaction that goes
# on, or has been rolled back, may leave much more, and nobody hurries to flush
# it.
PRIMARY_POSITION = """
SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_current_wal_insert_lsn(),
       CASE pg_catalog.current_setting('synchronous_commit') WHEN 'off'
           THEN NULL ELSE pg_catalog.pg_current_wal_flush_lsn() END
"""

# And whose position it is, which stays the same for a backend.
# pg_walfile_name() knows the timeline of the insertion, whatever the position;
# pg_control_checkpoint() lags. The control file is read from the disk, which
# takes longer than all the rest.
PRIMARY_IDENTITY = (
    PRIMARY_POSITION
    + """,
       pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()),
       pg_catalog.current_setting('wal_block_size')::bigint,
       pg_catalog.pg_size_bytes(
           pg_catalog.current_setting('wal_segment_size')),
       (pg_catalog.pg_control_system()).system_identifier
"""
)

# Of a replica. pg_last_wal_replay_lsn() stays what it was on one that has been
# promoted. The timeline is no more than the one of the replay: that of the
# walreceiver, which an ordinary role doesn't see, or of the last restartpoint.
_REPLAYED = """
       pg_catalog.pg_is_in_recovery(), pg_catalog.pg_last_wal_replay_lsn(),
       greatest(
           (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()),
           (SELECT min_recovery_end_timeline
              FROM pg_catalog.pg_control_recovery()),
           (SELECT received_tli FROM pg_catalog.pg_stat_get_wal_receiver())
       ),
       (SELECT system_identifier FROM pg_catalog.pg_control_system())
"""
REPLICA_POSITION = f"SELECT {_REPLAYED}"

# What a restarted replica had before, it hasn't received since. And whether it
# replays as fast as it can.
RECEIVED_POSITION = (
    REPLICA_POSITION.replace(
        "pg_catalog.pg_last_wal_replay_lsn()",
        "greatest(pg_catalog.pg_last_wal_receive_lsn(), "
        "pg_catalog.pg_last_wal_replay_lsn())",
    )
    + """,
       pg_catalog.pg_last_wal_replay_lsn(),
       pg_catalog.pg_is_wal_replay_paused()
       OR pg_catalog.current_setting('recovery_min_apply_delay') <> '0'
"""
)

# Seconds without a progress, after which a replica has replayed all that it
# can: what the primary sent last may end in the middle of a record.
NO_PROGRESS = 0.2
LOOK = 0.02

# And which server it is: behind one name there may be several, and behind a
# pooler a backend whose number isn't the connection's.
REPLICA_IDENTITY = f"""
SELECT pg_catalog.pg_backend_pid(),
       pg_catalog.pg_postmaster_start_time()::text,
       pg_catalog.inet_server_addr()::text,
       pg_catalog.inet_server_port(), {_REPLAYED}
"""

# A number that is negative as PostgreSQL's bigint.
UNSIGNED = 0xFFFFFFFFFFFFFFFF

# The first that waits for a position by itself: it is known in the format of
# libpq's server version.
WAIT_FOR_LSN_SINCE = 190000


class Log(NamedTuple):
    """The write-ahead log of a primary

    :param system_id: PostgreSQL's system identifier of the cluster
    :param timeline: that it writes
    :param page_size: bytes
    :param segment_size: bytes
    """

    system_id: int
    timeline: int
    page_size: int
    segment_size: int

    def end_of(self, insert_lsn: int) -> int:
        """Return where the last record ends

        :param insert_lsn: bytes
        """
        offset = insert_lsn % self.segment_size
        return end_of_record(insert_lsn, offset, self.page_size)


# By the driver's connection: the log of the backend that it leads to.
_logs: WeakKeyDictionary[Any, Log] = WeakKeyDictionary()


class Identity(NamedTuple):
    """What a connection to a replica leads to

    :param key: of the running server
    :param pooled: True behind a pooler, which may connect anew at any time
    :param known: how far the server is; None: it is no replica
    """

    key: tuple[str, ...]
    pooled: bool
    known: Known | None


def primary_position(driver: Any) -> Known:
    """Return how far the primary is, by one round trip

    By two, where the connection was to its own backend before, and isn't now.

    :param driver: a connection of psycopg2 or psycopg, without a transaction
    :exception: the driver's; 55000 on a server in recovery
    """
    asked_at = time.monotonic()
    log, own_pid = _logs.get(driver), driver.info.backend_pid
    if log is not None:
        pid, lsn, flushed = _row(driver, PRIMARY_POSITION)

    if log is None or pid != own_pid:
        # The first time, and behind a pooler: its backends change.
        pid, lsn, flushed, *found = _row(driver, PRIMARY_IDENTITY)
        log = _log_of(*found)
        if pid == own_pid:
            _logs[driver] = log

    return _known_of(asked_at, log, parse_lsn(lsn), flushed)


def _log_of(
    file_name: str, page_size: int, segment_size: int, system_id: int
) -> Log:
    timeline = int(file_name[:8], 16)
    return Log(system_id & UNSIGNED, timeline, page_size, segment_size)


def _known_of(
    asked_at: float, log: Log, insert_lsn: int, flushed: str | None
) -> Known:
    """Return how far a primary is, from what it said"""
    end = log.end_of(insert_lsn)
    position = ConsistencyToken(log.system_id, log.timeline, end)
    known = Known(asked_at, position, visible=position)
    least = end if flushed is None else parse_lsn(flushed)
    if least >= end:
        return known

    # A commit is flushed as far as there are records then. What nobody waits
    # for is flushed later, page by page.
    is_whole = least % log.page_size != 0
    return known._replace(
        visible=replace(position, lsn=least), is_whole=is_whole
    )


def replica_position(driver: Any) -> Known | None:
    """Return how far a replica is, by one round trip

    :param driver: a connection of psycopg2 or psycopg, without a transaction
    :rtype: None for a server that isn't a replica
    :exception: the driver's
    """
    asked_at = time.monotonic()
    return _replayed(asked_at, _row(driver, REPLICA_POSITION))


def received_position(driver: Any) -> ConsistencyToken | None:
    """Return how much of the WAL that it has received a replica can replay

    :param driver: a connection of psycopg2 or psycopg, without a transaction
    :rtype: None for a server that isn't a replica
    :exception: the driver's
    """
    before, until = None, 0.0
    while True:
        *received, replayed, is_held = _row(driver, RECEIVED_POSITION)
        known = _replayed(0.0, received)
        if known is None or is_held or received[1] == replayed:
            break

        now = time.monotonic()
        if replayed != before:
            before, until = replayed, now + NO_PROGRESS
        elif now > until:
            return replace(known.position, lsn=parse_lsn(replayed))

        time.sleep(LOOK)

    return None if known is None else known.position


def replica_identity(driver: Any) -> Identity:
    """Return what a connection to a replica leads to, by one round trip

    :param driver: a connection of psycopg2 or psycopg, without a transaction
    :exception: the driver's
    """
    asked_at = time.monotonic()
    pid, started, address, port, *replayed = _row(driver, REPLICA_IDENTITY)
    return Identity(
        key=(started, str(address), str(port)),
        pooled=pid != driver.info.backend_pid,
        known=_replayed(asked_at, replayed),
    )


def wait_for(driver: Any, position: ConsistencyToken, seconds: float) -> bool:
    """Let a replica wait for a position, where its server can

    PostgreSQL 19's ``WAIT FOR``, which knows nothing of timelines.

    :param driver: a connection of psycopg2 or psycopg, without a transaction
    :param position: to be replayed
    :param seconds: to wait at most
    :rtype: False where the server can't: nothing was asked
    :exception: the driver's
    """
    if driver.info.server_version < WAIT_FOR_LSN_SINCE:
        return False

    timeout = max(1, round(seconds * 1000))
    lsn = format_lsn(position.lsn)
    _row(driver, f"WAIT FOR LSN '{lsn}' WITH (TIMEOUT '{timeout}ms', NO_THROW)")
    return True


def _replayed(asked_at: float, row: Any) -> Known | None:
    is_replica, lsn, timeline, system_id = row
    if not is_replica or lsn is None:
        return None

    return Known(
        asked_at,
        ConsistencyToken(system_id & UNSIGNED, timeline, parse_lsn(lsn)),
    )


def _row(driver: Any, question: str) -> Any:
    """Return the only row of an answer, without a transaction around it"""
    with without_transaction(driver), driver.cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchone()


@contextmanager
def without_transaction(driver: Any) -> Iterator[None]:
    """Let a connection's statements stand alone; that asks the server nothing

    :param driver: a connection of psycopg2 or psycopg, without a transaction
    """
    if driver.autocommit:
        yield
        return

    # Otherwise psycopg2 would reset the session's default, by a statement.
    level, driver.isolation_level = driver.isolation_level, None
    driver.autocommit = True
    try:
        yield
    finally:
        if not driver.closed:
            driver.autocommit = False
            driver.isolation_level = level


class ServerProbe:
    """Asks a server how it is, on a connection of its own

    :param server: which one
    :param engine: of the server
    :param aside: gives its engine for questions of our own
    :param positions: where a replica's position is noted
    """

    def __init__(
        self,
        server: Server,
        engine: Engine,
        aside: Callable[[str], Engine],
        positions: Positions,
    ) -> None:
        self._server = server
        self._engine = engine
        self._aside = aside
        self._positions = positions
        self._connection: Any = None
        self._since = 0.0
        # Guards the connection against a close from another thread.
        self._lock = threading.Lock()

    def ask(self) -> Observation:
        """Return its answer; to connect is bounded by the connect timeout

        :exception: any of the driver's
        """
        if self._connection is not None:
            with suppress(self._engine.dialect.loaded_dbapi.Error):
                return self._observed()

            # The server has ended the connection, or restarted in between.
            self.close()

        return self._observed()

    def cut_off(self) -> None:
        """End a question that takes too long; any thread may call it"""
        connection = self._connection
        if connection is not None:
            shut_down(connection.dbapi_connection)

    def pool_use(self) -> PoolUse | None:
        """Return the use of its engine's pool; None: it keeps no number"""
        pool = self._engine.pool
        if not isinstance(pool, QueuePool):
            return None

        return PoolUse(pool.checkedout(), pool.size())

    def close(self) -> None:
        """Close the connection; the next question makes another"""
        with self._lock:
            connection, self._connection = self._connection, None

        if connection is not None:
            with suppress(Exception):
                connection.invalidate()

    def _observed(self) -> Observation:
        driver = self._driver()
        asked_at = time.monotonic()
        is_replica, position = self._asked(driver)
        latency = time.monotonic() - asked_at
        return Observation(asked_at, latency, is_replica, position)

    def _driver(self) -> Any:
        connection = self._connection
        if connection is None:
            self._since = time.monotonic()
            # Not one of a pool: that may be to a server that hangs.
            pool = self._aside(self._server.name).pool
            connection = pool.recreate().connect()
            with self._lock:
                self._connection = connection

        return connection.dbapi_connection

    def _asked(self, driver: Any) -> tuple[bool, ConsistencyToken | None]:
        """Return whether a server is a replica, and how far it is"""
        if self._engine.dialect.driver not in ("psycopg", "psycopg2"):
            _row(driver, ALIVE)
            return self._server.role is Role.REPLICA, None

        try:
            if self._server.role is Role.PRIMARY:
                known = primary_position(driver)
                self._positions.note_primary(known)
                return False, known.position

            return self._asked_replica(driver)
        except self._engine.dialect.loaded_dbapi.Error as error:
            state = sqlstate_of(error)
            if state == IN_RECOVERY or state in NO_POSITIONS:
                return _row(driver, IS_REPLICA)[0], None

            raise

    def _asked_replica(
        self, driver: Any
    ) -> tuple[bool, ConsistencyToken | None]:
        found = replica_identity(driver)
        if found.known is None:
            return False, None

        instance = self._positions.instance(self._server.name, found.key)
        Link(instance, 0.0 if found.pooled else self._since).note(found.known)
        return True, found.known.position


def summary_of(error: BaseException) -> str:
    """Return the first line of an error, without SQLAlchemy's links"""
    cause = error.orig if isinstance(error, DBAPIError) else error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__
