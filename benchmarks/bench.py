# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The servers, the contenders' processes, and what all benchmarks share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from compileall import compile_dir
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self

import anyblok_multi_engines
import benchmarks
from anyblok_multi_engines.testing import Cluster, PostgresServer, TcpProxy

from . import contenders
from .contenders import DATABASE, READ
from .method import LeftOut, Plan, Work

# Nothing of this process is in the contenders'.
SPAWN = multiprocessing.get_context("spawn")

#: What "postgresql" alone means depends on SQLAlchemy.
DRIVER = "postgresql+psycopg2"

#: Connections for all contenders at a time, and for many replicas.
SETTINGS = {
    # A server at several addresses stands for several servers.
    "listen_addresses": ",".join(f"127.0.0.{n}" for n in range(1, 33)),
    "max_connections": "300",
    "max_wal_senders": "30",
    "max_replication_slots": "30",
}

#: Rows of the table: those that are only read, and those to change once.
ROWS = 200_000


class ContenderFailed(Exception):
    """A contender's process has failed; with its traceback"""


class Worker:
    """A contender in a process of its own, which waits until it is asked

    :param name: of the contender: a key of ``contenders.CONTENDERS``
    :param options: for its start
    :exception: ContenderFailed, also for one that isn't installed
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(
            target=contenders.serve, args=(theirs, name, options), daemon=True
        )
        self.process.start()
        theirs.close()
        self._answer()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return what a method of the contender returns

        :param method: its name
        :param arguments: of the method
        :exception: ContenderFailed
        """
        self._pipe.send((method, *arguments))
        return self._answer()

    def does(self, unit: str) -> Work:
        """Return a function that does units of work

        :param unit: a method that yields, of the contender
        """
        return partial(self.ask, "times", unit)

    def close(self) -> None:
        """End the process"""
        self._pipe.close()
        self.process.join(30.0)
        self.process.kill()
        self.process.join()
        self.process.close()

    def _answer(self) -> Any:
        try:
            error, answer = self._pipe.recv()
        except EOFError:
            error, answer = "its process has ended", None

        if error:
            raise ContenderFailed(error)

        return answer


class Bench:
    """A durable cluster with a database, and the contenders on it

    :param quick: True: small numbers
    :param replicas: of the cluster
    """

    def __init__(self, quick: bool = False, replicas: int = 2) -> None:
        self.quick = quick
        self.cluster = Cluster(replicas, SETTINGS, durable=True)
        self._workers: dict[str, Worker] = {}
        self._next_row = count(READ.stop)
        self.left_out: list[LeftOut] = []

    def __enter__(self) -> Self:
        """Start the servers, and fill the table"""
        # As pip does when it installs AnyBlok: it is no part of a start.
        for package in (anyblok_multi_engines, benchmarks):
            compile_dir(Path(package.__file__ or "").parent, quiet=1)

        self.cluster.start()
        try:
            self._fill()
        except BaseException:
            self.cluster.close()
            raise

        return self

    def __exit__(self, *error: object) -> None:
        """End it all"""
        self.close_workers()
        self.cluster.close()

    def _fill(self) -> None:
        self.cluster.create_database(DATABASE)
        # Without replicas, and with the test bloks.
        self.stock()
        self.cluster.primary.execute(
            "insert into book (title, copies) "
            f"select 'a title', 0 from generate_series(1, {ROWS})",
            "vacuum analyze book",
            database=DATABASE,
        )
        self.settle()

    @property
    def version(self) -> str:
        """The version of the servers"""
        ((found,),) = self.cluster.primary.query("show server_version")
        return str(found)

    def settle(self) -> None:
        """Write to disk what is left to write, and wait for the replicas"""
        self.cluster.primary.execute("checkpoint")
        self.cluster.wait_for_replay()

    def plan(self, size: int, turns: int = 5) -> Plan:
        """Return how much is done; a part of it in a quick run

        :param size: units of work of a contender, one after the other
        :param turns: of each contender in a round
        """
        return Plan(max(size // 2, 1), 4) if self.quick else Plan(size, turns)

    def proxies(self, delay: float = 0.0) -> list[TcpProxy]:
        """Return a proxy of each server, the primary's first

        :param delay: seconds that a round trip takes longer
        """
        found = [self.cluster.proxy(x) for x in self.cluster.servers]
        for proxy in found:
            proxy.delay(delay)

        return found

    # The contenders

    def stock(
        self, primary: PostgresServer | Any = None, **options: Any
    ) -> Worker:
        """Return AnyBlok without the plugin, on the primary

        :param primary: a server, or a proxy of it. Default None: the primary
        :param options: more of AnyBlok's
        """
        return self.worker("stock", db_url=self.url(primary), **options)

    def ours(
        self,
        primary: Any = None,
        replicas: Sequence[Any] | None = None,
        **options: Any,
    ) -> Worker:
        """Return AnyBlok with the plugin; the replicas serve the reads

        :param primary: a server, or a proxy of it. Default None: the primary
        :param replicas: servers, or proxies. Default None: the replicas
        :param options: more of AnyBlok's, ``db_ro_consistency`` for example
        """
        return self.worker(
            "ours",
            db_url=None,
            db_wo_url=self.url(primary),
            **{"db_ro_urls": self.replica_urls(replicas), **options},
        )

    def least(self, **options: Any) -> Worker:
        """Return AnyBlok with a bare ``get_bind``, and nothing more

        :param options: more of AnyBlok's
        """
        return self.worker(
            "least",
            db_url=self.url(),
            db_ro_urls=self.replica_urls(),
            **options,
        )

    def plain(self, name: str, **options: Any) -> Worker | None:
        """Return a contender without AnyBlok; None: it isn't installed

        :param name: a key of ``contenders.CONTENDERS``
        :param options: for its start
        """
        try:
            return self.worker(
                name,
                primary=self.url(),
                replicas=self.replica_urls(),
                **options,
            )
        except ContenderFailed as error:
            self.leave_out(name, str(error))
            return None

    def worker(self, name: str, **options: Any) -> Worker:
        """Return a contender's process, the same for the same options

        :param name: a key of ``contenders.CONTENDERS``
        :param options: for its start
        """
        key = f"{name} {options}"
        if key not in self._workers:
            self._workers[key] = Worker(name, options)

        return self._workers[key]

    def leave_out(self, name: str, why: str) -> None:
        """Note that a contender isn't there, once

        :param name: of the contender
        :param why: for a person
        """
        found = LeftOut(name, why)
        if found not in self.left_out:
            self.left_out.append(found)

    def close_worker(self, worker: Worker) -> None:
        """End a contender's process, which has many connections

        :param worker: the contender
        """
        self._workers = {
            key: x for key, x in self._workers.items() if x is not worker
        }
        worker.close()

    def close_workers(self) -> None:
        """End the contenders' processes"""
        while self._workers:
            self._workers.popitem()[1].close()

    def give_rows(self, worker: Worker, number: int) -> None:
        """Give a contender rows that it alone changes, each of them once

        :param worker: the contender
        :param number: of rows
        """
        first = next(self._next_row)
        self._next_row = count(first + number)
        worker.ask("may_change", first, first + number)

    def url(self, server: Any = None) -> str:
        """Return the URL of the database

        :param server: or a proxy of it. Default None: the primary
        """
        found: str = (server or self.cluster.primary).url(DATABASE, DRIVER)
        return found

    def replica_urls(self, replicas: Sequence[Any] | None = None) -> list[str]:
        """Return the URLs of the database on the replicas

        :param replicas: servers, or proxies. Default None: the replicas
        """
        found = self.cluster.replicas if replicas is None else replicas
        return [self.url(one) for one in found]
