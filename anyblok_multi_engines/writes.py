# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What is sent to the primary, and whether a unit of work has written there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import ref

from sqlalchemy.sql.elements import (
    ReleaseSavepointClause,
    RollbackToSavepointClause,
    SavepointClause,
)

from .engines import is_in_transaction

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from .session import MixinSession
    from .unit_of_work import UnitOfWork

# In the info of the primary's connection: a weak reference to the unit of work
# that has it, or had it.
UNIT = "anyblok_multi_engines.unit"

# And one to its session.
SESSION = "anyblok_multi_engines.session"

# What says nothing of what a unit of work does.
SAVEPOINTS = (
    SavepointClause,
    ReleaseSavepointClause,
    RollbackToSavepointClause,
)


def watch(session: MixinSession, unit: UnitOfWork) -> None:
    """Have :func:`note_statement` know whose connection this is

    :param session: that has begun on the primary
    :param unit: its unit of work
    """
    connection, registry = unit.primary, session.anyblok
    if connection is None:
        return

    if registry.shadow is not None:
        connection.info[SESSION] = ref(session)

    if not registry.topology.replicas:
        return

    connection.info[UNIT] = ref(unit)
    connection.info[SESSION] = ref(session)
    if is_in_transaction(connection.connection.dbapi_connection):
        # Somebody else has, and nobody knows for what.
        unit.placement = unit.placement.with_write()


def note_statement(connection: Connection, statement: Any) -> None:
    """Note whatever is sent to the primary, but for a proven read, as a write

    Before it is sent: what becomes of it afterwards says nothing. A flush that
    sends nothing is none.

    :param connection: to the primary
    :param statement: of SQLAlchemy; None for a text of the driver's
    """
    if isinstance(statement, SAVEPOINTS):
        return

    try:
        info: Mapping[str, Any] = connection.info
    except NotImplementedError:
        # Of a dialect that sets itself up.
        return

    unit, session = _unit_of(info), session_of(info)
    if unit is None or session is None:
        return

    # The read is one statement, and a listener may send another.
    is_read, session._is_reading = session._is_reading, False
    if not (is_read or unit.placement.wrote):
        unit.placement = unit.placement.with_write()


def note_unknown_commit(connection: Connection) -> bool:
    """Note that the answer to a COMMIT on the primary is lost

    :param connection: that has sent it
    :rtype: False where its unit of work has only read: nothing is unknown
    """
    unit = _unit_of(connection.info)
    if unit is None or unit.primary is not connection:
        # Of no session that is watched.
        return True

    unit.is_unknown = unit.placement.wrote
    return unit.is_unknown


def has_only_read(connection: Any) -> bool:
    """Return True where there was nothing to commit on the primary

    :param connection: of the pool
    """
    unit = _unit_of(connection.info)
    if unit is None or unit.placement.wrote or unit.primary is None:
        return False

    mine = unit.primary
    ended = mine.closed or mine.invalidated
    return not ended and mine.connection is connection


def is_only_reading(info: Mapping[str, Any]) -> bool:
    """Return True where a unit of work on the primary has only read so far

    :param info: of its connection
    """
    unit = _unit_of(info)
    return unit is not None and not unit.placement.wrote


def session_of(info: Mapping[str, Any]) -> MixinSession | None:
    """Return the session that has a connection to the primary, or had it

    :param info: of the connection
    """
    found: Callable[[], MixinSession | None] = info.get(SESSION, _nothing)
    return found()


def _unit_of(info: Mapping[str, Any]) -> UnitOfWork | None:
    """Return the unit of work that has a connection to the primary

    :param info: of the connection
    """
    found: Callable[[], UnitOfWork | None] = info.get(UNIT, _nothing)
    return found()


def _nothing() -> None:
    return None
