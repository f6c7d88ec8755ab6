# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Where a unit of work has been placed so far."""

from __future__ import annotations

from typing import NamedTuple


class Placement(NamedTuple):
    """Where a unit of work has been placed so far

    :param replica: the one replica that it reads from; None: none yet
    :param on_primary: True from its first statement on the primary to its end
    :param wrote: True where one of these was no proven read
    :param lost: replicas whose connection this unit of work has lost
    """

    replica: str | None = None
    on_primary: bool = False
    wrote: bool = False
    lost: frozenset[str] = frozenset()

    def without_primary(self) -> Placement:
        """Return the placement after the primary has refused a connection"""
        return self._replace(on_primary=False)

    def with_primary(self) -> Placement:
        """Return the placement after a statement on the primary"""
        return self if self.on_primary else self._replace(on_primary=True)

    def with_write(self) -> Placement:
        """Return the placement after a statement that may have written"""
        return self._replace(on_primary=True, wrote=True)

    def with_replica(self, name: str) -> Placement:
        """Return the placement after a read from a replica

        :param name: of the replica
        """
        return self._replace(replica=name)

    def without_replica(self) -> Placement:
        """Return the placement without a replica that hasn't served"""
        return self._replace(replica=None)

    def with_lost(self, name: str, served: bool) -> Placement:
        """Return the placement after a replica's connection is lost

        :param name: of the replica
        :param served: True where it has given rows to this unit of work
        """
        kept = self.replica if served else None
        return self._replace(replica=kept, lost=self.lost | {name})


NOWHERE = Placement()
ON_PRIMARY = Placement(on_primary=True)
