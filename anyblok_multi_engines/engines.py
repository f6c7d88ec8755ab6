# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""One SQLAlchemy engine per server, with the options of its role."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from logging import getLogger
from math import ceil
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import sqlalchemy
from sqlalchemy import URL, Connection, Dialect, Engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, NoSuchModuleError
from sqlalchemy.pool import QueuePool

from .errors import CommitUnknownError, NoPrimaryError, OptionError
from .topology import Role, Server

logger = getLogger(__name__)

# The answer to a write: PostgreSQL's read_only_sql_transaction.
READ_ONLY_SQL_TRANSACTION = "25006"

# Seconds; libpq's connect_timeout knows no less, and no parts of one.
LEAST_CONNECT_TIMEOUT = 2

# admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped and
# idle_session_timeout: the server has ended the connection. Most often there
# is no SQLSTATE, and the driver says that its connection is closed.
CONNECTION_ENDED = frozenset(["57P01", "57P02", "57P03", "57P04", "57P05"])

# Of a COMMIT: statement_completion_unknown, and a shutdown, which may have
# come while the primary waited for its synchronous standbys. And all of the
# class 08, transaction_resolution_unknown among them.
UNKNOWN_OUTCOMES = frozenset(["40003", "57P01", "57P02"])
CONNECTION_EXCEPTION = "08"

# On the driver's error of such a COMMIT.
LOST_ANSWER = "The answer to this COMMIT is lost: what became of it is unknown."

# Seconds that a commit waits for the end of a replica's transaction. A
# replica that answers needs a round trip; one that doesn't is cut off.
REPLICA_END_TIMEOUT = 1.0

# With one statement a transaction, there is nothing to begin, to commit or to
# roll back on a replica: two round trips less, and no way to break a commit.
STATEMENT_LEVELS = frozenset(
    ["READ COMMITTED", "READ UNCOMMITTED", "AUTOCOMMIT"]
)

# SET and not set_config(): a SELECT needs a snapshot, which a standby whose
# default is SERIALIZABLE refuses.
SESSION_SETTINGS = (
    "SET default_transaction_isolation = '{level}'; "
    "SET default_transaction_read_only = on"
)

DRIVER_PACKAGES = {
    "MySQLdb": "mysqlclient",
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
}


def create(
    server: Server,
    options: Mapping[str, Any],
    *,
    transactional: bool = False,
    connect_timeout: float | None = None,
) -> Engine:
    """Return the engine of a server; nothing is connected yet

    :param server: which one, and its role
    :param options: of ``sqlalchemy.create_engine``, as AnyBlok makes them
    :param transactional: True: a replica has real transactions too, with
        savepoints; False: each of its statements stands alone where the
        isolation level allows it
    :param connect_timeout: seconds that a connection may take; None: as long
        as the driver waits
    :exception: OptionError, where the dialect or its driver isn't there
    """
    url = server.url
    options = {**options, "future": True}
    if connect_timeout is not None:
        options = _with_timeout(url, options, connect_timeout)

    if server.role is Role.REPLICA:
        options = _replica_options(server, options, transactional)

    try:
        # Looked up here: tracing may have replaced it.
        engine = sqlalchemy.create_engine(url, **options)
    except NoSuchModuleError:
        raise OptionError(
            f"{server.option}: SQLAlchemy has no dialect "
            f"{url.drivername!r}; PostgreSQL's is written postgresql://, "
            "postgresql+psycopg2:// or postgresql+psycopg://"
        ) from None
    except ModuleNotFoundError as error:
        driver = str(error.name)
        raise OptionError(
            f"{server.option}: the driver {driver!r} of {url.drivername}:// "
            "isn't installed: pip install "
            f"'{DRIVER_PACKAGES.get(driver, driver)}'. postgresql:// means "
            "psycopg2 with SQLAlchemy 2.0 and psycopg with 2.1: write "
            "postgresql+psycopg2:// or postgresql+psycopg:// to choose"
        ) from error

    if server.role is Role.REPLICA:
        _end_without_error(
            engine,
            autocommit=options["isolation_level"] == "AUTOCOMMIT",
            commits=transactional,
        )
        if engine.dialect.driver in ("psycopg", "psycopg2"):
            _begin_for_cursors(engine)
            notice_ended_connections(engine)
            track(engine)

        if engine.dialect.name == "postgresql":
            level = standby_isolation_level(options["isolation_level"])
            # First: the driver's own set-up asks the server for types.
            event.listen(
                engine, "connect", _read_only_setter(level), insert=True
            )

    return engine


def in_use(engine: Engine) -> int:
    """Return how many connections of an engine's pool are in use

    :param engine: one of the registry's
    :rtype: 0 for a pool that keeps no number
    """
    pool = engine.pool
    return pool.checkedout() if isinstance(pool, QueuePool) else 0


def standby_isolation_level(level: str) -> str:
    """Return the isolation level that a hot standby has for the registry's

    A hot standby refuses SERIALIZABLE (PostgreSQL, "Serializable
    Transactions and Hot Standby"); READ UNCOMMITTED is READ COMMITTED there.

    :param level: as configured, words separated by ``_`` or a blank
    :rtype: ``READ COMMITTED`` or ``REPEATABLE READ``
    """
    if _spaced(level) in STATEMENT_LEVELS:
        return "READ COMMITTED"

    return "REPEATABLE READ"


def tell_the_missing_option(engine: Engine, server: Server) -> None:
    """Translate a standby's refusal to write, for a registry of replicas only

    :param engine: the replica's
    :param server: the replica
    """

    def translate(context: Any) -> Exception | None:
        if sqlstate_of(context.original_exception) == READ_ONLY_SQL_TRANSACTION:
            return read_only_mode(f"{server} refused to write")

        return None

    event.listen(engine, "handle_error", translate, retval=True)


def read_only_mode(what: str) -> NoPrimaryError:
    """Return the error of a write where there is no primary

    :param what: was refused
    """
    return NoPrimaryError(
        f"{what}: read-only mode, only --db-ro-urls is given; add --db-url or "
        "--db-wo-url for the primary"
    )


def sqlstate_of(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of a driver's error, psycopg2's or psycopg's"""
    found = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return None if found is None else str(found)


def _end_without_error(
    engine: Engine, *, autocommit: bool, commits: bool
) -> None:
    """Let the end of a replica's transaction raise nothing

    A session ends its connections one after the other, in any order: an
    error of the replica's would lose what has been written on the primary.
    And a replica has nothing to commit. A connection that has died is found
    out when the pool gives it out again.

    Where there is a primary, a commit sends nothing to a replica: its
    transaction ends when its connection goes back to the pool, after the
    primary's commit, which a replica that hangs then can't hold up.

    :param engine: of a replica
    :param autocommit: True where its connections are in AUTOCOMMIT, but for
        a unit of work with a server-side cursor
    :param commits: True where there is no primary's commit to protect
    """
    dialect = engine.dialect

    def end(connection: Any) -> None:
        # Of the pool's proxy, or the driver's own.
        driver = getattr(connection, "dbapi_connection", connection)
        try:
            if (
                autocommit
                and driver.autocommit
                and not is_in_transaction(driver)
            ):
                # Each statement stood alone.
                return

            _roll_back(driver)
            if autocommit:
                driver.autocommit = True
        except dialect.loaded_dbapi.Error as error:
            logger.debug("%s: the end of a transaction: %s", engine, error)

    # No event of SQLAlchemy's is around them.
    dialect.do_commit = end if commits else _send_nothing  # type: ignore[assignment]
    dialect.do_rollback = end  # type: ignore[assignment]

    @event.listens_for(engine, "handle_error")
    def keep_connection(context: Any) -> None:
        # SQLAlchemy would refuse the commit of an invalid connection.
        context.is_disconnect = False


def _send_nothing(connection: Any) -> None:
    """Commit a replica's transaction: nothing was written in it"""


def is_in_transaction(driver: Any) -> bool:
    """Return True where a transaction is open, or might be

    Nothing is asked. A driver that doesn't know says no.

    :param driver: a connection
    """
    info = getattr(driver, "info", None)
    return int(getattr(info, "transaction_status", 0)) != 0


def is_lost(connection: Connection, error: DBAPIError) -> bool:
    """Return True where a statement failed because its connection has ended

    :param connection: of the statement
    :param error: of the statement
    """
    if connection.closed or connection.invalidated:
        return True

    driver: Any = connection.connection.dbapi_connection
    return bool(getattr(driver, "closed", False)) or (
        sqlstate_of(error.orig) in CONNECTION_ENDED
    )


def end_now(connection: Connection) -> None:
    """End a replica's transaction, if there is one; it raises nothing

    :param connection: of a replica
    """
    if not (connection.closed or connection.invalidated):
        connection.dialect.do_rollback(connection.connection)


def _roll_back(driver: Any) -> None:
    """End a driver's transaction, if there is one

    A server that doesn't answer is cut off: the primary's end may wait behind
    it, and the primary's locks with it.
    """
    if driver.closed or not is_in_transaction(driver):
        # Idle, or of a driver that doesn't know: there is nothing to send.
        driver.rollback()
        return

    cut_off = threading.Timer(REPLICA_END_TIMEOUT, shut_down, [driver])
    cut_off.daemon = True
    cut_off.start()
    try:
        driver.rollback()
    finally:
        cut_off.cancel()


class Records:
    """The connections of an engine's pools, while anybody has them"""

    def __init__(self) -> None:
        self._records: WeakSet[Any] = WeakSet()
        self._lock = threading.Lock()

    def add(self, record: Any) -> None:
        """Note a connection's record in its pool"""
        with self._lock:
            self._records.add(record)

    def __iter__(self) -> Iterator[Any]:
        with self._lock:
            return iter(list(self._records))

    def of_parent(self) -> list[Any]:
        """Return them in a forked process, where no other thread is"""
        return list(self._records)


def track(engine: Engine) -> None:
    """Know the connections of an engine's pools, to cut or throw them away

    :param engine: that is new
    """
    dialect = engine.dialect
    _records[dialect] = Records()

    @event.listens_for(engine, "connect")
    def note(driver: Any, record: Any) -> None:
        _records[dialect].add(record)


def cut_off(engine: Engine, may_end: Callable[[Any], bool]) -> None:
    """End what waits for a server that doesn't answer

    The sockets are shut down under the threads that wait; what is in the pool
    is made anew when it is needed.

    :param engine: of the server
    :param may_end: says of a connection's info whether it may be cut off
    """
    for record in _records.get(engine.dialect, ()):
        driver = record.dbapi_connection
        if driver is not None and may_end(record.info):
            shut_down(driver)


def leave_to_parent(engine: Engine) -> None:
    """Leave an engine's connections to the parent of this forked process

    Those in use, too. To this process they have ended: what it sends on them,
    were it the end of one, would be the parent's.

    :param engine: that is tracked
    """
    before = _records.get(engine.dialect)
    if before is None:
        return

    # A lock in it may be held by a thread that isn't here.
    _records[engine.dialect] = Records()
    ended, other = socket.socketpair()
    other.close()
    with ended:
        for record in before.of_parent():
            with suppress(Exception):
                os.dup2(ended.fileno(), record.dbapi_connection.fileno())


def living(engine: Engine) -> Iterator[Any]:
    """Return the records of an engine's connections that haven't ended

    Whoever uses them, and whatever they receive.

    :param engine: that is tracked
    """
    for record in _records.get(engine.dialect, ()):
        driver, lives = record.dbapi_connection, False
        # Another thread may be closing it.
        with suppress(Exception):
            lives = driver is not None and has_ended(driver) is False

        if lives:
            yield record


def throw_away(engine: Engine) -> None:
    """Have every connection of an engine made anew before its next use

    Who uses one goes on with it to the end of its unit of work.

    :param engine: of the server
    """
    for record in _records.get(engine.dialect, ()):
        record.invalidate(soft=True)


# By an engine's dialect, which the engines that are made of it share.
_records: WeakKeyDictionary[Dialect, Records] = WeakKeyDictionary()


def notice_demotion(engine: Engine, note: Callable[[], None]) -> None:
    """Notice that the primary's connections lead to a standby

    :param engine: the primary's
    :param note: called after a statement that failed for it
    """

    @event.listens_for(engine, "handle_error")
    def notice(context: Any) -> None:
        connection = context.connection
        if (
            connection is not None
            and not (connection.closed or connection.invalidated)
            and _is_demoted(
                connection.connection.dbapi_connection,
                context.original_exception,
            )
        ):
            note()


def _is_demoted(driver: Any, error: BaseException) -> bool:
    """Return True where a statement failed because its server is no primary

    The server says of itself what it is, unasked: since PostgreSQL 14, and
    not through a pooler. A transaction that its application has made
    read-only is no demotion.
    """
    if driver.closed:
        return False

    says = driver.info.parameter_status
    if says("in_hot_standby") == "on":
        # Whatever it refuses: SERIALIZABLE, LOCK TABLE...
        return True

    return sqlstate_of(error) == READ_ONLY_SQL_TRANSACTION and not (
        says("in_hot_standby") == says("default_transaction_read_only") == "off"
    )


def tell_unknown_commits(
    engine: Engine,
    may_have_written: Callable[[Connection], bool],
    has_only_read: Callable[[Any], bool],
) -> None:
    """Have a COMMIT whose answer is lost raise an error that says so

    The end of what has only read, and a rollback, raise nothing where the
    server has ended the connection: it has rolled back by itself.

    :param engine: the primary's
    :param may_have_written: called with the connection of such a COMMIT;
        False: nothing is unknown
    :param has_only_read: called with the pool's connection of a COMMIT that
        has failed: True: there was nothing to commit
    :exception: CommitUnknownError, of a commit from then on
    """
    dialect = engine.dialect
    for name in ("do_commit", "do_commit_twophase"):
        setattr(
            dialect,
            name,
            _noting_lost_answers(getattr(dialect, name), has_only_read),
        )

    dialect.do_rollback = _rolling_back(dialect)  # type: ignore[assignment]

    def tell(context: Any) -> Exception | None:
        error = context.original_exception
        if LOST_ANSWER not in getattr(
            error, "__notes__", ()
        ) or not may_have_written(context.connection):
            return None

        return CommitUnknownError(
            None, None, error, connection_invalidated=context.is_disconnect
        )

    event.listen(engine, "handle_error", tell, retval=True)


def _rolling_back(dialect: Dialect) -> Callable[[Any], None]:
    """Return a dialect's do_rollback for connections that may have ended"""
    roll_back = dialect.do_rollback

    def end(connection: Any) -> None:
        # Of the pool's proxy, or the driver's own.
        driver: Any = getattr(connection, "dbapi_connection", connection)
        try:
            roll_back(connection)
        except dialect.loaded_dbapi.Error as error:
            if not driver.closed:
                raise

            logger.debug("The server has rolled back: %s", error)

    return end


def _noting_lost_answers(
    commit: Callable[..., None], has_only_read: Callable[[Any], bool]
) -> Callable[..., None]:
    """Return a dialect's function that notes on an error what it leaves open"""

    def noting(connection: Any, *args: Any, **kwargs: Any) -> None:
        # The pool's, but for the two-phase one.
        driver: Any
        if isinstance(connection, Connection):
            driver = connection.connection.dbapi_connection
        else:
            driver = connection.dbapi_connection

        # Then it doesn't get the COMMIT any more.
        had_ended = has_ended(driver)
        try:
            commit(connection, *args, **kwargs)
        except Exception as error:
            if driver.closed and has_only_read(connection):
                logger.debug("There was nothing to commit: %s", error)
                return

            if not had_ended and _is_outcome_unknown(driver, error):
                error.add_note(LOST_ANSWER)

            raise

    return noting


def has_ended(driver: Any) -> bool | None:
    """Return True where the server has ended a connection for sure

    Nothing is asked: the kernel knows.

    :param driver: a connection of psycopg2 or psycopg, in use or not
    :rtype: None where nobody can tell
    """
    if driver.closed:
        return True

    if not hasattr(select, "POLLRDHUP"):  # not Linux
        return None

    poll = select.poll()
    poll.register(driver.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def _is_outcome_unknown(driver: Any, error: Exception) -> bool:
    """Return True where the error of a COMMIT doesn't say what became of it

    A connection that the server ends with a reason of its own, a timeout for
    example, has not been committed.
    """
    state = sqlstate_of(error)
    if state is None:
        return bool(driver.closed)

    return state in UNKNOWN_OUTCOMES or state.startswith(CONNECTION_EXCEPTION)


def shut_down(driver: Any) -> None:
    """Shut a connection's socket down, under the thread that waits for it"""
    # Closed in the meantime, by either side: the drivers have errors of their
    # own for it.
    gone = suppress(Exception)
    with gone, socket.socket(fileno=os.dup(driver.fileno())) as copy:
        copy.shutdown(socket.SHUT_RDWR)


def notice_ended_connections(engine: Engine) -> None:
    """Have the pool give out no connection that its server has ended

    :param engine: of psycopg2 or psycopg
    """
    event.listen(engine, "checkout", _check_is_alive)


def _check_is_alive(driver: Any, record: Any, proxy: Any) -> None:
    """Refuse a pooled connection that its server has ended

    Nothing is asked: a server has nothing to say to an idle connection but
    its end, so one that is readable has ended. One whose server has vanished
    without a word is found out by its next statement.
    """
    if driver.closed or _is_readable(driver.fileno()):
        raise DisconnectionError("the server has ended the connection")


def _is_readable(descriptor: int) -> bool:
    """Return True where a socket has something to read, or has ended"""
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([descriptor], [], [], 0)[0])

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _replica_options(
    server: Server, options: Mapping[str, Any], transactional: bool
) -> dict[str, Any]:
    level = standby_isolation_level(options.get("isolation_level") or "")
    if level == "READ COMMITTED" and not transactional:
        level = "AUTOCOMMIT"

    return {**options, "isolation_level": level}


def libpq_timeout(seconds: float) -> int:
    """Return what libpq takes for a number of seconds

    :param seconds: that a connection may take
    :rtype: whole seconds
    """
    return max(LEAST_CONNECT_TIMEOUT, ceil(seconds))


def _with_timeout(
    url: URL, options: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Return the options of an engine whose connections take no longer

    What the URL or the application says wins.
    """
    if url.get_backend_name() != "postgresql" or "connect_timeout" in url.query:
        return options

    arguments = {
        "connect_timeout": libpq_timeout(seconds),
        **options.get("connect_args", {}),
    }
    return {**options, "connect_args": arguments}


def _spaced(level: str) -> str:
    return level.upper().replace("_", " ")


def _read_only_setter(level: str) -> Any:
    """Return a listener that makes a connection read-only for the server too

    By a statement and not in libpq's ``options``, which PgBouncer before
    1.20 and RDS Proxy refuse.
    """
    settings = SESSION_SETTINGS.format(level=level.lower())

    def set_read_only(connection: Any, record: Any) -> None:
        autocommit = connection.autocommit
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(settings)

        connection.autocommit = autocommit

    return set_read_only


def tell_statements(
    engine: Engine, tell: Callable[[Connection, Any], None]
) -> None:
    """Have each statement told that is about to be sent

    Not by an event: SQLAlchemy then makes each statement slower by some us,
    of listeners or not.

    :param engine: of the server
    :param tell: called with the connection and SQLAlchemy's statement; None
        for a text that goes to the driver as it is
    """
    dialect = engine.dialect
    base: Any = dialect.execution_ctx_cls

    class Context(base):  # type: ignore[misc]
        def create_cursor(self) -> Any:
            tell(
                self.root_connection, getattr(self.compiled, "statement", None)
            )
            return super().create_cursor()

    dialect.execution_ctx_cls = Context


def _begin_for_cursors(engine: Engine) -> None:
    """Begin a transaction around each server-side cursor, which needs one

    The end of the unit of work ends it, and AUTOCOMMIT is back. A cursor WITH
    HOLD would need none: the server would copy its whole result first, and
    keep it, abandoned, for as long as the pool keeps the connection.

    :param engine: of a replica
    """
    dialect = engine.dialect
    base: Any = dialect.execution_ctx_cls

    class Context(base):  # type: ignore[misc]
        def create_server_side_cursor(self) -> Any:
            self.root_connection.connection.dbapi_connection.autocommit = False
            return super().create_server_side_cursor()

    dialect.execution_ctx_cls = Context
