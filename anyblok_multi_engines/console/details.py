# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the status tells of a server, and no decision needs."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

from ..health.model import Observation
from ..health.probe import ServerProbe
from .questions import rows

# Of a replica: the servers' clocks, and PostgreSQL's own way to measure its
# lag. pg_stat_database shows the number of backends to every role.
DETAILS = """
SELECT extract(epoch FROM pg_catalog.clock_timestamp()
           - pg_catalog.pg_last_xact_replay_timestamp())::float8,
       (SELECT sum(numbackends) FROM pg_catalog.pg_stat_database)::int,
       pg_catalog.current_setting('max_connections')::int
"""


class Details(NamedTuple):
    """What a server says of itself

    :param replayed_age: seconds since the commit of the last transaction that
        a replica has replayed; None: of a primary, or it has replayed none
    :param connections: that it has
    :param max_connections: that it may have
    """

    replayed_age: float | None
    connections: int
    max_connections: int


def details_of(driver: Any) -> Details:
    """Return what a server says of itself, by one round trip

    :param driver: a connection of psycopg2 or psycopg, without a transaction
    :exception: the driver's
    """
    return Details(*rows(driver, DETAILS)[0])


class DetailedProbe(ServerProbe):
    """Asks a server how it is, and for its details"""

    #: of its last answer
    details: Details | None = None

    def ask(self) -> Observation:
        """Return its answer, and keep the details

        :exception: any of the driver's
        """
        seen = super().ask()
        with suppress(Exception):
            self.details = details_of(self._driver())

        return seen
