# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the monitor takes while nothing else happens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .bench import Bench, Worker
from .contenders import DATABASE
from .method import Row, Sample

#: Seconds to look at it.
SECONDS = 30.0


def monitor(bench: Bench) -> Iterator[Row]:
    """Questions to a server, and CPU, at the default interval"""
    # No other monitor asks the same servers.
    bench.close_workers()
    options: dict[str, Any] = {
        "db_url": None,
        "db_wo_url": bench.url(),
        "db_ro_urls": bench.replica_urls(),
    }
    seconds = 5.0 if bench.quick else SECONDS
    servers = bench.cluster.servers
    ours, stock = (
        Worker("ours", options),
        Worker("stock", {"db_url": bench.url()}),
    )
    for server in servers:
        server.configure(log_statement="all")

    # It has connected, and asked what it asks once.
    ours.ask("idle", 2.0)
    starts = [server.log_size for server in servers]
    cpu = ours.ask("idle", seconds)
    logs = [x.log(start) for x, start in zip(servers, starts, strict=True)]
    for server in servers:
        server.configure(log_statement=None)

    nothing = stock.ask("idle", seconds / 3) * 3
    ours.close()
    stock.close()
    asked = [
        sum(
            f"@{DATABASE} " in line and "  statement: " in line
            for line in log.splitlines()
        )
        / seconds
        for log in logs
    ]
    yield Row(
        "monitor-questions",
        "The monitor's questions to a server in a second",
        max(asked),
        bar=1.0,
        low=min(asked),
        high=max(asked),
        note=f"{len(servers)} servers, {seconds:.0f} s",
    )
    percent = 100 / seconds
    yield Row(
        "monitor-cpu",
        "CPU of the monitor, of one core",
        (cpu - nothing) * percent,
        "%",
        bar=0.2,
        samples=[
            Sample("ours, the idle process", cpu * percent, unit="%"),
            Sample("stock, the idle process", nothing * percent, unit="%"),
        ],
        note=f"{len(servers)} servers, all threads of the process, "
        f"{seconds:.0f} s",
    )
