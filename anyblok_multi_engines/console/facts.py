# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What is known of the configuration and the servers: values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from ..health.model import Limits
from ..topology import Server, Topology


class Pooling(StrEnum):
    """What is between us and a server"""

    NONE = "none"  #: nothing that can be noticed
    SESSION = "session"  #: a pooler that keeps a session's connection
    TRANSACTION = "transaction"  #: one that gives each transaction another
    UNKNOWN = "unknown"  #: a pooler, of which no more can be told


class Setting(NamedTuple):
    """A setting, as a new session has it

    :param value: as ``pg_settings`` has it
    :param unit: of the value; None: it has none
    """

    value: str
    unit: str | None = None

    def __str__(self) -> str:
        if self.unit != "ms" or self.value in ("0", "-1"):
            return self.value

        return f"{int(self.value) / 1000:g} s"


class Function(NamedTuple):
    """A function of the database

    :param schema: of the function
    :param name: of the function
    :param volatility: ``i``, ``s`` or ``v``, as ``pg_proc`` has it
    :param writing: a word of its source that writes; None: there is none, or
        its language isn't SQL
    """

    schema: str
    name: str
    volatility: str
    writing: str | None = None


class Arrival(NamedTuple):
    """What became of a position of the primary on a replica

    :param seconds: until it was there, or until it was given up
    :param reached: False: it was given up
    :param paused: True where the replay is paused
    """

    seconds: float
    reached: bool
    paused: bool = False


class PoolLimits(NamedTuple):
    """How many connections one process may have

    :param size: that its pool keeps
    :param overflow: and for a moment; None: any number
    """

    size: int
    overflow: int | None


@dataclass(frozen=True)
class Answers:
    """What a server has answered

    :param in_recovery: True for a standby
    :param key: of the running server
    :param system_id: of its cluster; None: it doesn't tell us
    :param timeline: of its log; None: it doesn't tell us
    :param settings: by name
    :param search_path: the schemas that a name is looked up in
    :param pooling: what is in between
    :param connection_limit: of the server, or less: of the role or of the
        database; without what is reserved
    :param sees_statistics: True where the role has ``pg_read_all_stats``
    """

    in_recovery: bool
    key: tuple[str, ...] = ()
    system_id: int | None = None
    timeline: int | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    search_path: tuple[str, ...] = ()
    pooling: Pooling = Pooling.NONE
    connection_limit: int | None = None
    sees_statistics: bool = True

    def setting(self, name: str) -> str:
        """Return the value of a setting; empty: the server doesn't have it"""
        found = self.settings.get(name)
        return "" if found is None else found.value


@dataclass(frozen=True)
class ServerFacts:
    """What is known of one server

    :param server: which one
    :param answers: None where it can't be asked
    :param failure: why it can't, without a password
    :param lacks_database: True where it answers, and hasn't the database
    :param pool: of one process; None: of no known kind
    :param arrival: of a replica; None: nobody could look
    """

    server: Server
    answers: Answers | None = None
    failure: str | None = None
    lacks_database: bool = False
    pool: PoolLimits | None = None
    arrival: Arrival | None = None

    @property
    def name(self) -> str:
        """Return the name of the server"""
        return self.server.name


@dataclass(frozen=True)
class Facts:
    """What is known

    :param topology: of the options
    :param servers: in its order
    :param database: its name
    :param isolation_level: of the option
    :param limits: of the options
    :param workers: processes of the application
    :param read_functions: of ``--db-ro-functions``
    :param write_functions: of ``--db-wo-functions``
    :param functions: those of them that are in the database; None: nobody
        could be asked
    :param unforced: why nothing could be written for the replicas to replay;
        None: it was
    """

    topology: Topology
    servers: tuple[ServerFacts, ...]
    database: str | None = None
    isolation_level: str = "READ_COMMITTED"
    limits: Limits = field(default_factory=Limits)
    workers: int = 1
    read_functions: frozenset[str] = frozenset()
    write_functions: frozenset[str] = frozenset()
    functions: tuple[Function, ...] | None = ()
    unforced: str | None = None

    @property
    def primary(self) -> ServerFacts | None:
        """Return what is known of the primary; None: read-only mode"""
        primary = self.topology.primary
        return self.of(primary) if primary else None

    @property
    def replicas(self) -> tuple[ServerFacts, ...]:
        """Return what is known of the replicas"""
        return tuple(self.of(server) for server in self.topology.replicas)

    @property
    def answering(self) -> tuple[tuple[ServerFacts, Answers], ...]:
        """Return the servers that could be asked, with their answers"""
        return tuple((x, x.answers) for x in self.servers if x.answers)

    def of(self, server: Server) -> ServerFacts:
        """Return what is known of a server"""
        return next(x for x in self.servers if x.name == server.name)
