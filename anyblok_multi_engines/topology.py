# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Which servers exist: frozen values, made once from the options."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import zip_longest
from typing import NamedTuple

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


class Topology(NamedTuple):
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
    def primary_alone(self) -> Topology:
        """Return the same without replicas: the primary serves everything"""
        assert self.primary is not None
        return Topology(replace(self.primary, takes_reads=True))

    @property
    def read_only(self) -> bool:
        """Return True where no server takes writes"""
        return self.primary is None


def place_of(url: URL) -> str:
    """Return ``host:port`` of an URL, a default where it is left out

    :param url: of one server; libpq's several hosts are separated by a comma
    """
    return ",".join(
        f"{host}:{port}" if port else host for host, port in places_of(url)
    )


def places_of(url: URL) -> tuple[tuple[str, str], ...]:
    """Return the hosts and ports of an URL, as SQLAlchemy reads them

    The query comes before the rest of the URL. One that names several hosts,
    as ``host=a,b&port=1,2`` or as ``host=a:1&host=b:2``, is of one server: the
    first of them that libpq's ``target_session_attrs`` takes.

    :param url: of one server
    :rtype: an empty text for the default port
    """
    given = url.query.get("host")
    if isinstance(given, tuple):
        # As SQLAlchemy 2.0 splits them.
        parts = [place.partition(":") for place in given]
        return tuple((host, port) for host, _, port in parts)

    hosts = (given or url.host or "local socket").split(",")
    ports = _texts(url.query.get("port"))
    if not ports:
        takes_port = given is None or len(hosts) == 1
        ports = (str(url.port or "") if takes_port else "",) * len(hosts)

    return tuple(zip_longest(hosts, ports, fillvalue=""))


def _texts(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if isinstance(value, tuple):
        return value

    return tuple(value.split(",")) if value else ()
