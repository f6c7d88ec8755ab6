# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The code of doc/howto/pgbouncer.rst."""

from sqlalchemy import event


def prepare_nothing(engine):
    """For the entry point ``anyblok.engine.event.postgresql``"""

    @event.listens_for(engine, "connect")
    def connected(connection, record):
        connection.prepare_threshold = None
