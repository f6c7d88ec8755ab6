# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The engines of the options as a registry has them, and no registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Self

from anyblok.config import Configuration
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from .. import catalogue
from ..errors import OptionError
from ..health.monitor import Monitor
from ..registry import LoadingScope, RegistryMultiEngines
from ..routing.catalogue import Catalogue
from ..topology import Server, Topology
from .details import DetailedProbe

# Every cluster has it, and no application's data.
OTHER_DATABASE = "postgres"


class Servers(RegistryMultiEngines):
    """The servers of the options; no blok is loaded, nothing is connected

    Made as a registry makes them: the same options, events and isolation, so
    what connects here connects there.

    :exception: OptionError
    """

    def __init__(self) -> None:
        # AnyBlok's own loads the bloks.
        self.scope = LoadingScope()
        self.probes: dict[str, DetailedProbe] = {}
        try:
            self.init_engine(Configuration.get("db_name", None))
        except TypeError as error:
            # SQLite in memory has no pool, and AnyBlok gives it its options.
            raise OptionError(f"AnyBlok can't use this URL: {error}") from None

    def __enter__(self) -> Self:
        """Return itself"""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it"""
        self.close()

    @property
    def database(self) -> str | None:
        """Return the name of the database; None: the options don't have it"""
        return self.topology.servers[0].url.database

    def close(self) -> None:
        """Close every connection"""
        self.monitor.stop()
        for engine in self._all_engines():
            engine.dispose()

    def init_engine_options(self, url: URL) -> dict[str, Any]:
        """Return AnyBlok's options, without an echo among the answers"""
        found: dict[str, Any] = super().init_engine_options(url)
        return found | {"echo": False, "echo_pool": False}

    def _served_by(self, known: Topology) -> Topology:
        """Look at all of them, in shadow mode, too"""
        return known

    def _new_monitor(self) -> Monitor:
        """Ask every server, also the one that is alone"""
        positions = self.freshness.positions
        probes = {
            server: DetailedProbe(
                server,
                self._engines[server.name],
                self.engine_aside,
                positions,
            )
            for server in self.topology.servers
        }
        self.probes = {server.name: probes[server] for server in probes}
        return Monitor(probes, self._limits, positions)

    def _enter_read_only_mode(self) -> None:
        """Wait for no server: that none answers is an answer"""

    @contextmanager
    def driver(
        self, server: Server, database: str | None = None
    ) -> Iterator[Any]:
        """Give a driver's connection, with the options' credentials

        :param server: which one
        :param database: its name; None: the options'
        :exception: any of the driver's
        """
        engine = self.engine_aside(server.name)
        if database is not None:
            url = server.url.set(database=database)
            engine = self._engine_for(replace(server, url=url), aside=True)

        connection = engine.pool.recreate().connect()
        try:
            yield connection.dbapi_connection
        finally:
            connection.invalidate()

    def any_catalogue(self) -> tuple[Catalogue, str] | None:
        """Return what the primary's catalogue says, else a replica's, and whose

        :rtype: None where no server answers
        """
        down = self.monitor.snapshot.down
        for server in self.topology.servers:
            if server.name in down:
                continue

            engine = self.engine_aside(server.name)
            with suppress(SQLAlchemyError), engine.connect() as connection:
                found = catalogue.read(connection, **self._functions)
                return found, server.name

        return None
