# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Where a unit of work has been placed so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """Where a unit of work has been placed so far

    :param replica: the one replica that it reads from; None: none yet
    :param on_primary: True from its first statement on the primary to its end
    """

    replica: str | None = None
    on_primary: bool = False

    def with_primary(self) -> Placement:
        """Return the placement after a statement on the primary"""
        return Placement(self.replica, on_primary=True)

    def with_replica(self, name: str) -> Placement:
        """Return the placement after a read from a replica

        :param name: of the replica
        """
        return Placement(name, self.on_primary)


NOWHERE = Placement()
ON_PRIMARY = Placement(on_primary=True)
