# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a session knows of one unit of work, and of no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .routing.transaction import NOWHERE, Placement

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import SessionTransaction

    from .consistency import ConsistencyToken
    from .fallback import Slot
    from .reader import Seen


class UnitOfWork:
    """What a session knows of one unit of work

    :param root: SQLAlchemy's transaction of it, the outermost
    """

    __slots__ = (
        "__weakref__",
        "changed_schema",
        "checked",
        "checked_floor",
        "covered",
        "fell_back",
        "floor",
        "flush",
        "flushed",
        "has_floor",
        "is_unknown",
        "placement",
        "primary",
        "reads_on",
        "root",
        "seen",
        "served",
        "slot",
        "told",
    )

    def __init__(self, root: SessionTransaction | None) -> None:
        self.root = root
        #: where it has been placed
        self.placement: Placement = NOWHERE
        #: the primary's connection
        self.primary: Connection | None = None
        #: True where it has written, and the answer to its COMMIT is lost
        self.is_unknown = False
        #: the replicas' connections, by their servers
        self.reads_on: dict[str, Connection] = {}
        #: True where a replica has given it rows
        self.served = False
        #: True where it may have changed the schema
        self.changed_schema = False
        #: what it must see, as it was when it began, once that is known
        self.floor: ConsistencyToken | None = None
        self.has_floor = False
        #: True once a replica has been found fresh enough
        self.checked = False
        #: and what its reader had to see then
        self.checked_floor: ConsistencyToken | None = None
        #: what its reader has seen by it
        self.seen: Seen | None = None
        #: True where it reads from the primary for want of a fresh replica
        self.fell_back = False
        #: its right to read from the primary for want of a replica, where
        #: that is limited
        self.slot: Slot | None = None
        #: True where a position has all that its reader has seen by it
        self.covered = False
        #: True once those who listen know of it
        self.told = False
        #: SQLAlchemy's transaction of the flush that they know of
        self.flush: SessionTransaction | None = None
        #: and the mappers that they know of in it
        self.flushed: set[Any] = set()
