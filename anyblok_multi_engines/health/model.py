# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What is known of the servers: immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType


class Status(StrEnum):
    """What is known of one server"""

    UNKNOWN = "unknown"  #: nobody has asked yet
    READY = "ready"
    DOWN = "down"


@dataclass(frozen=True)
class ServerHealth:
    """What is known of one server

    :param status: what is known
    :param reason: why, for a person
    :param since: seconds of ``time.monotonic()``
    """

    status: Status
    reason: str
    since: float


@dataclass(frozen=True)
class Snapshot:
    """What is known of every replica at one moment

    :param servers: by name
    """

    servers: Mapping[str, ServerHealth] = field(
        default_factory=lambda: MappingProxyType({})
    )

    @cached_property
    def down(self) -> frozenset[str]:
        """Return the names of the servers that are down"""
        return frozenset(
            name
            for name, health in self.servers.items()
            if health.status is Status.DOWN
        )

    def with_server(self, name: str, health: ServerHealth) -> Snapshot:
        """Return a snapshot in which one server's health is another

        :param name: of the server
        :param health: the new one
        """
        return Snapshot(MappingProxyType({**self.servers, name: health}))
