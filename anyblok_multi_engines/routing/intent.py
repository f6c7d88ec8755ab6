# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the caller asked for: of a block of code, or of one statement."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from ..consistency import ConsistencyToken

#: The execution option by which a statement says where it wants to go
OPTION = "anyblok_server"

#: The value of that option that means any usable replica
REPLICA = "replica"


class Intent(StrEnum):
    """What the caller of a block of code wants"""

    PRIMARY = "use_primary()"
    REPLICAS = "use_replicas()"


class Wish(NamedTuple):
    """What the caller of a block of code wants, and how fresh

    :param intent: where to
    :param max_staleness: seconds that a replica may be behind the primary;
        None: as the models and the options say
    :param token: the position that a replica must have reached; None: as the
        session's consistency says
    """

    intent: Intent
    max_staleness: float | None = None
    token: ConsistencyToken | None = None
