# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The only monitoring SQL."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

ALIVE = "SELECT 1"


def failure_of(engine: Engine) -> str | None:
    """Return why a server can't serve a read now; None: it can

    A new connection is asked, which the connect timeout bounds: one of the
    engine's pool may be to a server that hangs, and never answer.

    :param engine: of the server
    """
    pool = engine.pool.recreate()
    try:
        connection = pool.connect()
        try:
            cursor = connection.cursor()
            cursor.execute(ALIVE)
            cursor.close()
        finally:
            connection.close()
    except Exception as error:
        # Also of an application's own listener of "connect": whatever it is,
        # this server doesn't serve.
        return summary_of(error)
    finally:
        pool.dispose()

    return None


def summary_of(error: BaseException) -> str:
    """Return the first line of an error, without SQLAlchemy's links"""
    cause = error.orig if isinstance(error, DBAPIError) else error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__
