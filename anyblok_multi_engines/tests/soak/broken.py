# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Routers that are broken on purpose, to show that the checker finds it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...freshness import Freshness
from ...reader import Reader

# A commit's record is no shorter; the position is then that of before it.
LESS = 60


def takes_the_position_before_the_commit() -> None:
    """Hand out a position that doesn't have the commit"""
    note_written = Reader.note_written

    def note_less(self: Reader, position: Any, at: float) -> None:
        note_written(self, replace(position, lsn=position.lsn - LESS), at)

    Reader.note_written = note_less


def forgets_what_it_has_seen() -> None:
    """Remember what was written, and not what was read"""
    Freshness.cover = lambda self, reader, seen, usable: None


def asks_one_replica_and_reads_from_another() -> None:
    """Take a replica where any of them has the position"""
    is_fresh = Freshness.is_fresh

    def is_any_fresh(
        self: Freshness,
        name: str,
        connection: Any,
        reader: Any,
        floor: Any,
        *rest: Any,
    ) -> bool:
        known = filter(None, map(self.positions.known_of, self._engines))
        return any(
            floor is None or floor.is_reached_by(x.position) for x in known
        ) or is_fresh(self, name, connection, reader, floor, *rest)

    Freshness.is_fresh = is_any_fresh


def knows_its_own_writes_alone() -> None:
    """Ask nobody what others have written"""
    Freshness.floor_at_start = lambda self, reader, usable: reader.knows.floor


#: Each with the --db-ro-consistency that it breaks
BROKEN: dict[Callable[[], None], str] = {
    takes_the_position_before_the_commit: "session",
    forgets_what_it_has_seen: "session",
    asks_one_replica_and_reads_from_another: "session",
    knows_its_own_writes_alone: "strong",
}
