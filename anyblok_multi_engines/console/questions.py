# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What is asked of a server to check it, and what it answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar

from ..consistency import ConsistencyToken
from ..health.probe import (
    primary_position,
    replica_identity,
    replica_position,
    without_transaction,
)
from .facts import Answers, Arrival, Function, Pooling, Setting

K = TypeVar("K")
T = TypeVar("T")

# Seconds for all questions to a server, the connection too.
PATIENCE = 10.0

# Seconds that a position may take to arrive.
ARRIVAL = 5.0
LOOK = 0.02

# Seconds for a pooler to give a second connection.
POOLER_PATIENCE = 2.0

# The value that a new session begins with: ours has its own of some.
SETTINGS = """
SELECT name, reset_val, unit FROM pg_catalog.pg_settings
WHERE name IN (
    'default_transaction_isolation', 'default_transaction_read_only',
    'hot_standby_feedback', 'idle_in_transaction_session_timeout',
    'lock_timeout', 'max_connections', 'max_standby_streaming_delay',
    'recovery_min_apply_delay', 'reserved_connections', 'server_version_num',
    'statement_timeout', 'superuser_reserved_connections',
    'transaction_timeout', 'wal_level')
"""

# With the limits of the role and of the database, -1: none.
SESSION = """
SELECT pg_catalog.pg_is_in_recovery(),
       pg_catalog.current_schemas(false)::text[],
       (SELECT rolconnlimit FROM pg_catalog.pg_roles
         WHERE rolname = current_user),
       (SELECT datconnlimit FROM pg_catalog.pg_database
         WHERE datname = pg_catalog.current_database()),
       pg_catalog.pg_has_role('pg_read_all_stats', 'usage')
"""

BACKEND = "SELECT pg_catalog.pg_backend_pid()"

# A commit record for the replicas to replay, and no row: nobody reads it. Not
# even a synchronous standby that is gone is waited for.
WRITE = """
SET LOCAL synchronous_commit = local;
SELECT pg_catalog.pg_logical_emit_message(true, 'anyblok_engines', 'check')
"""

PAUSED = "SELECT pg_catalog.pg_is_wal_replay_paused()"

DATABASES = "SELECT datname FROM pg_catalog.pg_database"

# Their sources are only read for what a person would see at once.
FUNCTIONS = r"""
SELECT n.nspname, p.proname, p.provolatile::text,
       CASE WHEN l.lanname IN ('sql', 'plpgsql') THEN pg_catalog.upper(
           pg_catalog.substring(pg_catalog.lower({source}),
               '\m(insert|update|delete|merge|truncate|nextval|setval)\M'))
       END
FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE p.proname = ANY(%s) OR n.nspname || '.' || p.proname = ANY(%s)
ORDER BY 1, 2, 3
"""
SOURCE = "p.prosrc"
# BEGIN ATOMIC, and RETURN, are stored parsed.
SOURCE_SINCE_14 = (
    "p.prosrc || coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), '')"
)


def rows(
    driver: Any, question: str, parameters: Sequence[Any] | None = None
) -> list[Any]:
    """Return the answer to a question, without a transaction around it

    :param driver: a connection of psycopg2 or psycopg, without a transaction
    :param question: SQL
    :param parameters: of the driver's
    :exception: the driver's
    """
    with without_transaction(driver), driver.cursor() as cursor:
        cursor.execute(question, parameters)
        return list(cursor.fetchall())


def answers_of(driver: Any, pooling: Pooling) -> Answers:
    """Return what a server says of itself and of our session

    :param driver: a connection of psycopg2 or psycopg
    :param pooling: what is in between
    :exception: the driver's
    """
    settings = {
        name: Setting(value, unit)
        for name, value, unit in rows(driver, SETTINGS)
    }
    in_recovery, path, role, database, sees = rows(driver, SESSION)[0]
    key: tuple[str, ...] = ()
    position = None
    with suppress(Exception):
        # Not every role may ask, nor every server answer.
        identity = replica_identity(driver)
        key, known = identity.key, identity.known
        known = known if in_recovery else primary_position(driver)
        position = known and known.position

    return Answers(
        in_recovery=in_recovery,
        key=key,
        system_id=position.system_id if position else None,
        timeline=position.timeline if position else None,
        settings=settings,
        search_path=tuple(path),
        pooling=pooling,
        connection_limit=_connection_limit(settings, (role, database)),
        sees_statistics=sees,
    )


def _connection_limit(
    settings: Mapping[str, Setting], limits: Iterable[int | None]
) -> int:
    """Return how many connections a role may have"""

    def number(name: str) -> int:
        return int(settings[name].value) if name in settings else 0

    server = (
        number("max_connections")
        - number("superuser_reserved_connections")
        - number("reserved_connections")
    )
    return min([server, *(x for x in limits if x is not None and x >= 0)])


def pooling_between(
    one: Any, connect: Callable[[], AbstractContextManager[Any]]
) -> Pooling:
    """Return what is between us and a server

    Only a pooler that gives each transaction another connection gives two
    clients the same backend, or one client two.

    :param one: a connection
    :param connect: makes another
    """
    mine = rows(one, BACKEND)[0][0]
    if mine == one.info.backend_pid:
        return Pooling.NONE

    def is_shared() -> bool:
        with connect() as other:
            return _is_shared(one, other, mine)

    # One that has no second connection for us has us wait for it.
    found = side_by_side({"": is_shared}, POOLER_PATIENCE)[""]
    if not isinstance(found, bool):
        return Pooling.UNKNOWN

    return Pooling.TRANSACTION if found else Pooling.SESSION


def _is_shared(one: Any, other: Any, mine: int) -> bool:
    with without_transaction(other), other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(BACKEND)
        its = cursor.fetchone()[0]
        shared = its == mine or rows(one, BACKEND)[0][0] != mine
        cursor.execute("ROLLBACK")
        return bool(shared)


def functions_in(driver: Any, names: Iterable[str]) -> tuple[Function, ...]:
    """Return the functions of the database that have one of these names

    :param driver: a connection of psycopg2 or psycopg
    :param names: with their schema or without
    :exception: the driver's
    """
    since_14 = driver.info.server_version >= 140000
    question = FUNCTIONS.format(source=SOURCE_SINCE_14 if since_14 else SOURCE)
    wanted = list(names)
    return tuple(Function(*x) for x in rows(driver, question, [wanted, wanted]))


def written_position(driver: Any) -> tuple[ConsistencyToken, str | None]:
    """Write something for the replicas to replay; return the position after it

    :param driver: a connection of psycopg2 or psycopg, to the primary
    :rtype: the position, and why nothing could be written, or None
    :exception: the driver's
    """
    refused = None
    with without_transaction(driver), driver.cursor() as cursor:
        cursor.execute("BEGIN")
        try:
            for statement in WRITE.split(";"):
                cursor.execute(statement)
        except Exception as error:
            refused = str(error).strip().partition("\n")[0]

        # Of a transaction that has failed, a rollback.
        cursor.execute("COMMIT")

    known = primary_position(driver)
    if refused is None:
        return known.position, None

    # Nobody hurries to flush, and so to send, what a rollback has left.
    return known.shown, refused


def arrival_of(
    driver: Any, position: ConsistencyToken, written_at: float
) -> Arrival:
    """Wait for a position on a replica

    :param driver: a connection of psycopg2 or psycopg, to the replica
    :param position: of the primary
    :param written_at: when it was, in seconds of ``time.monotonic()``
    :exception: the driver's
    """
    while True:
        known = replica_position(driver)
        seconds = time.monotonic() - written_at
        # Of the timeline not every role is told.
        if known is not None and known.position.lsn >= position.lsn:
            return Arrival(seconds, reached=True)

        paused = known is not None and rows(driver, PAUSED)[0][0]
        if known is None or paused or seconds > ARRIVAL:
            return Arrival(seconds, reached=False, paused=paused)

        time.sleep(LOOK)


def has_database(driver: Any, name: str) -> bool:
    """Return True where a server has a database

    :param driver: a connection to another one
    :param name: of the database
    :exception: the driver's
    """
    return (name,) in map(tuple, rows(driver, DATABASES))


def side_by_side(
    tasks: Mapping[K, Callable[[], T]], seconds: float
) -> dict[K, T | BaseException]:
    """Run functions side by side; return their results or errors

    What takes too long is left to itself: no server is waited for longer.

    :param tasks: by any key
    :param seconds: for all of them
    """
    results: dict[K, T | BaseException] = {
        key: TimeoutError(f"no answer within {seconds:g} s") for key in tasks
    }
    done: dict[K, T | BaseException] = {}

    def run(key: K, task: Callable[[], T]) -> None:
        try:
            done[key] = task()
        except Exception as error:
            done[key] = error

    threads = [
        threading.Thread(target=run, args=item, daemon=True)
        for item in tasks.items()
    ]
    for thread in threads:
        thread.start()

    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))

    return results | done
