# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a session knows of one unit of work, and of no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .routing.decision import Decision, Reason
from .routing.transaction import NOWHERE, Placement

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import SessionTransaction

    from .consistency import ConsistencyToken
    from .fallback import Slot
    from .health.model import Snapshot
    from .provenance import Read
    from .reader import Knowledge, Seen
    from .shadow.record import Unit


class Settled(NamedTuple):
    """A decision, and what it was made from

    It holds while all of that is the same: values that are replaced when
    anything changes.

    :param decision: that the unit of work stays where it is
    :param engine: of its server
    :param placement: where the unit of work has been placed
    :param knows: of its reader; None: on the primary, where it has no say
    :param snapshot: of the servers; None: the same
    :param read: what the replica says of the instances that it gives
    """

    decision: Decision
    engine: Engine
    placement: Placement
    knows: Knowledge | None = None
    snapshot: Snapshot | None = None
    read: Read | None = None


class Stay:
    """Where a session that has only read stays for its next units of work

    It holds while what it was made from is the same.

    :param settled: the replica, and what the decision was made from
    :param seen: what the reader has seen there
    :param timeline: of the primary then
    :param units: of work that it holds for
    """

    __slots__ = ("decision", "left", "seen", "settled", "timeline", "units")

    def __init__(
        self, settled: Settled, seen: Seen, timeline: int, units: int
    ) -> None:
        self.settled = settled
        self.seen = seen
        self.timeline = timeline
        self.units = units
        #: how many are left
        self.left = units
        #: of the first read of each
        self.decision = Decision(
            settled.decision.server_name, Reason.USABLE_REPLICA
        )


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
        "settled",
        "shadow",
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
        #: where its next plain reads go, as long as nothing changes
        self.settled: Settled | None = None
        #: what would have become of it, in shadow mode
        self.shadow: Unit | None = None
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
