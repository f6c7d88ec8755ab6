# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""pgpool-II in front of a cluster, as a contender."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Self

import psycopg2

from anyblok_multi_engines.testing import Cluster, wait_until
from anyblok_multi_engines.testing.errors import ClusterError
from anyblok_multi_engines.testing.ports import HOST, reserve_port
from anyblok_multi_engines.testing.server import (
    PATIENCE,
    USER,
    configuration,
)
from anyblok_multi_engines.testing.workspace import Child, workspace

# Debian has it where only root looks.
PLACES = "/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/bin:/opt/pgpool/bin"

# What its documentation advises for streaming replication, and what else
# somebody sets who wants it to be quick; benchmarks/README.rst says why.
SETTINGS = {
    "backend_clustering_mode": "streaming_replication",
    "load_balance_mode": "on",
    "disable_load_balance_on_write": "transaction",
    "connection_cache": "on",
    # One user and one database: a process needs one connection to each.
    "max_pool": "1",
    "child_life_time": "0",
    "sr_check_period": "1",
    "sr_check_user": USER,
    "sr_check_database": "postgres",
    "delay_threshold": "1000000",
    "health_check_period": "10",
    "health_check_user": USER,
    "failover_on_backend_error": "off",
    "enable_pool_hba": "off",
    "allow_clear_text_frontend_auth": "off",
    # No look-up of temporary tables and unlogged ones for each relation.
    "check_temp_table": "none",
    "check_unlogged_table": "off",
    "log_destination": "stderr",
    "logging_collector": "off",
}


def program() -> str | None:
    """Return where pgpool is; None: it isn't installed"""
    return shutil.which("pgpool") or shutil.which("pgpool", path=PLACES)


class Pgpool:
    """pgpool-II in front of a cluster, until the ``with`` block ends

    ::

        with Pgpool(cluster, processes=32) as pgpool:
            create_engine(pgpool.url("mydb"))

    :param cluster: that runs
    :param processes: how many clients it serves at a time
    :param settings: for pgpool.conf, over those of this module
    """

    def __init__(
        self,
        cluster: Cluster,
        processes: int = 32,
        settings: dict[str, str] | None = None,
    ) -> None:
        self._cluster = cluster
        self._port = reserve_port()
        self._pcp_port = reserve_port()
        self._settings = {
            **SETTINGS,
            "num_init_children": str(processes),
            **(settings or {}),
        }
        self._process: Child | None = None
        self._log: Path | None = None

    def __enter__(self) -> Self:
        """Start it, and wait until it knows which server is the primary

        :exception: ClusterError with the end of its log
        """
        found = program()
        if found is None:
            raise ClusterError("pgpool is not installed")

        place = workspace(durable=True, directory=None)
        directory = place.new_directory("pgpool")
        (directory / "pgpool.conf").write_text(
            configuration({**self._settings, **self._places(directory)})
        )
        for name in ("pcp.conf", "pool_hba.conf"):
            (directory / name).touch()

        self._log = directory / "pgpool.log"
        with self._log.open("wb") as stream:
            self._process = place.spawn(
                found,
                *("-n", "-D"),
                *("-f", directory / "pgpool.conf"),
                *("-F", directory / "pcp.conf"),
                *("-a", directory / "pool_hba.conf"),
                stdout=stream,
                stderr=stream,
            )

        wait_until(
            "pgpool did not find the primary and its replicas",
            self._is_ready,
            PATIENCE,
            ignore=(psycopg2.Error,),
        )
        return self

    def __exit__(self, *error: object) -> None:
        """Stop it"""
        if self._process is not None:
            # Its fast shutdown.
            self._process.send_signal(signal.SIGINT)
            self._process.wait(PATIENCE)
            self._process = None

    def url(self, database: str, driver: str = "postgresql") -> str:
        """Return a URL of SQLAlchemy's form

        :param database: its name
        :param driver: such as ``postgresql+psycopg``
        """
        return f"{driver}://{USER}@{HOST}:{self._port.number}/{database}"

    def _places(self, directory: Path) -> dict[str, str]:
        """Return the settings that say where it is, and its servers"""
        settings = {
            "listen_addresses": HOST,
            "port": str(self._port.number),
            "pcp_listen_addresses": HOST,
            "pcp_port": str(self._pcp_port.number),
            "socket_dir": str(directory),
            "pcp_socket_dir": str(directory),
            "wd_ipc_socket_dir": str(directory),
            "pid_file_name": str(directory / "pgpool.pid"),
            "logdir": str(directory),
            "work_dir": str(directory),
        }
        for number, server in enumerate(self._cluster.servers):
            settings |= {
                f"backend_hostname{number}": server.host,
                f"backend_port{number}": str(server.port),
                # As --db-wo-url: the primary takes no reads.
                f"backend_weight{number}": "1" if number else "0",
                f"backend_data_directory{number}": str(server.data),
                f"backend_flag{number}": "DISALLOW_TO_FAILOVER",
                f"backend_application_name{number}": server.name,
            }

        return settings

    def _is_ready(self) -> bool:
        """Return True where each server has the role that it has"""
        assert self._process is not None
        if self._process.poll() is not None:
            raise ClusterError(f"pgpool has ended: {self.log()[-2000:]}")

        roles = [row["role"] for row in self.nodes()]
        return roles == ["primary"] + ["standby"] * (len(roles) - 1)

    def nodes(self) -> list[dict[str, str]]:
        """Return what it says of its servers, by ``SHOW POOL_NODES``"""
        connection = psycopg2.connect(
            host=HOST,
            port=self._port.number,
            user=USER,
            dbname="postgres",
            sslmode="disable",
            connect_timeout=5,
        )
        try:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("show pool_nodes")
            names = [x[0] for x in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor]
        finally:
            connection.close()

    def log(self) -> str:
        """Return its log"""
        return "" if self._log is None else self._log.read_text("utf-8")
