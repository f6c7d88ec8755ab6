# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Which servers exist: frozen values, made once from the options."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy.engine import URL


class Role(StrEnum):
    """What a server is for"""

    PRIMARY = "primary"
    REPLICA = "replica"


@dataclass(frozen=True)
class Server:
    """One server of the registry's database

    :param name: short and stable: ``primary``, ``replica1``, ``replica2``...
    :param role: what the server is for
    :param url: where it is; not in the repr, its query may hold a password
    :param option: the option that named it, for messages
    :param takes_reads: False for a primary that is given as ``db_wo_url``
    :param weight: of its share of the reads; 0: only where nobody else is there
    """

    name: str
    role: Role
    url: URL = field(repr=False)
    option: str
    takes_reads: bool = True
    weight: float = 1.0

    def __str__(self) -> str:
        """Return the name and the place, never a user nor a password"""
        return f"{self.name} ({place_of(self.url)})"


@dataclass(frozen=True)
class Topology:
    """The servers of one registry

    :param primary: None in read-only mode
    :param replicas: in the order of the option
    """

    primary: Server | None
    replicas: tuple[Server, ...] = ()

    @property
    def servers(self) -> tuple[Server, ...]:
        """Return every server, the primary first"""
        primary = () if self.primary is None else (self.primary,)
        return primary + self.replicas

    @property
    def readers(self) -> tuple[Server, ...]:
        """Return the servers that take their share of the reads"""
        return tuple(server for server in self.servers if server.takes_reads)

    @property
    def read_only(self) -> bool:
        """Return True where no server takes writes"""
        return self.primary is None


def place_of(url: URL) -> str:
    """Return ``host:port`` of an URL, a default where it is left out

    :param url: of one server; libpq's multi-host query is shown as it is
    """
    host = url.host or _text(url.query.get("host")) or "local socket"
    port = str(url.port or "") or _text(url.query.get("port"))
    return f"{host}:{port}" if port else host


def _text(value: str | tuple[str, ...] | None) -> str:
    if isinstance(value, tuple):
        return ",".join(value)

    return value or ""
