# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a process takes to start, and its memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from anyblok_multi_engines.testing import wait_until

from .bench import DRIVER, Bench, Worker
from .method import Plan, Row, Sample, Work, in_turns

PAIR = ("ours", "stock")

#: Replicas of the process whose memory is looked at.
REPLICAS = 8

#: The name of its connections to them.
IDLE = "idle"

#: Nothing of theirs may be in another's command line.
CREATEDB = "from benchmarks.contenders import createdb; createdb({!r})"
START = "from benchmarks.contenders import start; start({!r}, {!r})"
NUMBERS = count(1)


def start(bench: Bench) -> Iterator[Row]:
    """A process with a registry"""
    urls = {"db_wo_url": bench.url(), "db_ro_urls": bench.replica_urls()}
    options = {"ours": urls, "stock": {"db_url": bench.url()}}
    inside: dict[str, list[float]] = {name: [] for name in PAIR}

    def starts(name: str) -> Work:
        command = START.format(name, options[name])

        def start(number: int) -> list[float]:
            taken = [run(command) for _ in range(number)]
            inside[name] += [float(output) for _, output in taken]
            return [seconds for seconds, _ in taken]

        return start

    plan = Plan(1, 2, 3) if bench.quick else Plan(1, 4, 5)
    measured = in_turns({name: starts(name) for name in PAIR}, plan)
    row = measured.row(
        "registry-start",
        "A process starts, builds its registry and ends",
        PAIR,
        bar=1.05,
    )
    samples = [
        Sample(f"{name}, without AnyBlok's import", median(inside[name]))
        for name in PAIR
    ]
    yield replace(row, samples=[*row.samples, *samples])


def run(command: str, *arguments: str) -> tuple[float, str]:
    """Return the seconds of a process, and what it said

    :param command: in Python
    :param arguments: of the command line
    """
    begun = perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        cwd=Path(__file__).parent.parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return perf_counter() - begun, done.stdout


def createdb(bench: Bench) -> Iterator[Row]:
    """``anyblok_createdb``, the whole process"""
    measured = in_turns(
        {name: created(bench, name) for name in PAIR}, Plan(1, 3, 5)
    )
    yield measured.row(
        "createdb", "anyblok_createdb, the whole process", PAIR, bar=1.05
    )


def created(bench: Bench, name: str) -> Work:
    """Return a function that gives the seconds of the command"""

    def create(number: int) -> list[float]:
        found = []
        for _ in range(number):
            database = f"created{next(NUMBERS)}"
            primary = bench.cluster.primary.url(database, DRIVER)
            options = ["--db-name", database]
            if name == "stock":
                options += ["--db-url", primary]
            else:
                urls = (x.url(database, DRIVER) for x in bench.cluster.replicas)
                options += ["--db-wo-url", primary, "--db-ro-urls", *urls]

            found.append(run(CREATEDB.format(name), *options)[0])
            bench.cluster.drop_database(database)
            bench.settle()

        return found

    return create


def memory(bench: Bench) -> Iterator[Row]:
    """A process that has used its primary, and eight replicas not yet"""
    replica = bench.cluster.replicas[0]
    proxies = [bench.cluster.proxy(replica) for _ in range(REPLICAS)]
    used: dict[str, list[dict[str, float]]] = {name: [] for name in PAIR}
    read: dict[str, list[float]] = {name: [] for name in PAIR}
    idle: list[tuple[int, int]] = []
    for _ in range(1 if bench.quick else 3):
        for name, options in (
            ("stock", {"db_url": bench.url()}),
            (
                "ours",
                {
                    "db_url": None,
                    "db_wo_url": bench.url(),
                    "db_ro_urls": [
                        f"{url}?application_name={IDLE}"
                        for url in bench.replica_urls(proxies)
                    ],
                },
            ),
        ):
            worker = Worker(name, options)
            worker.ask("use_primary")
            used[name].append(worker.ask("memory"))
            if name == "ours":
                idle.append(connections(replica, proxies))

            worker.ask("times", "select_unit", 1)
            read[name].append(worker.ask("memory")["uss"])

            worker.close()

    for one in proxies:
        one.close()

    found = [
        ours["uss"] - stock["uss"]
        for ours, stock in zip(used["ours"], used["stock"], strict=True)
    ]
    yield Row(
        "memory",
        f"Memory of a process with {REPLICAS} idle replicas, more than stock",
        median(found),
        "MB",
        bar=10.0,
        low=min(found),
        high=max(found),
        samples=[
            Sample(
                f"{name}, {kind}",
                median(x[kind] for x in used[name]),
                unit="MB",
            )
            for name in PAIR
            for kind in ("uss", "rss")
        ],
        note="uss is the memory that no other process shares",
    )
    more = [x - y for x, y in zip(read["ours"], read["stock"], strict=True)]
    yield Row(
        "memory-read",
        "The same after a first SELECT, for which the parser is loaded",
        median(more),
        "MB",
        low=min(more),
        high=max(more),
    )
    yield Row(
        "idle-connections",
        f"Connections of its sessions to the {REPLICAS} replicas before "
        "they are used",
        max(all_ - monitors for all_, monitors in idle),
        bar=0.0,
        note=f"the monitor has its own, {max(x[1] for x in idle)}: one per "
        "server, on which it asks how that server is",
    )


def connections(replica: Any, proxies: list[Any]) -> tuple[int, int]:
    """Return the connections to a replica: all, and the monitor's

    The monitor's have asked which server it is, and nothing after that.

    :param replica: that all proxies lead to
    :param proxies: each stands for a replica
    """

    def rows() -> list[tuple[Any, ...]]:
        return list(
            replica.query(
                "select query like '%pg_postmaster_start_time%' "
                f"from pg_stat_activity where application_name = '{IDLE}'"
            )
        )

    wait_until(
        "the monitor did not ask every replica",
        lambda: len(rows()) >= len(proxies) and all(x for (x,) in rows()),
    )
    found = rows()
    return len(found), sum(x for (x,) in found)
