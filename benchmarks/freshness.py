# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What it takes that a session sees what it has written."""

from __future__ import annotations

from collections.abc import Iterator

from .bench import Bench, Worker
from .contenders import DATABASE
from .method import Row, Sample, in_turns

#: Seconds that the replicas are behind at least.
BEHIND = 0.001

#: Of a statement in a server's log, of whoever uses the database.
STATEMENT = f"@{DATABASE} "


def read_your_writes(bench: Bench) -> Iterator[Row]:
    """Write, commit, and read in the next unit of work, on a late replica"""
    for replica in bench.cluster.replicas:
        replica.delay_replay(BEHIND)

    try:
        yield from rows(bench)
    finally:
        for replica in bench.cluster.replicas:
            replica.delay_replay(0)


def rows(bench: Bench) -> Iterator[Row]:
    """What is served by whom, what it takes, and the round trips"""
    contenders = {
        "ours": bench.ours(),
        "ours, --db-ro-wait 0": bench.ours(db_ro_wait=0),
        "stock": bench.stock(),
    }
    plan = bench.plan(20)
    for name in contenders:
        if name != "stock":
            contenders[name].ask("share")

    measured = in_turns(
        {x: contenders[x].does("write_then_read") for x in contenders}, plan
    )
    times = [measured.sample(name) for name in contenders]
    shares = {x: contenders[x].ask("share") for x in contenders if x != "stock"}
    trips = {x: round_trips(bench, contenders[x]) for x in contenders}
    for name, share in shares.items():
        # The bars are for what one gets without a thought.
        waits = "wait" not in name
        key = "default" if waits else "without-waiting"
        yield Row(
            f"read-your-writes-share-{key}",
            "Write, commit, read in the next unit of work, the replica 1 ms "
            f"behind: read from a replica, {name}",
            100 * share,
            "%",
            bar=90.0 if waits else None,
            better="higher",
            samples=times,
        )
        yield Row(
            f"read-your-writes-trips-{key}",
            f"The same: round trips more than stock, {name}",
            trips[name] - trips["stock"],
            bar=1.0 if waits else None,
            samples=[Sample(x, trips[x], unit="round trips") for x in trips],
        )


def round_trips(bench: Bench, worker: Worker, number: int = 100) -> float:
    """Return the round trips of a unit that writes and one that reads

    From the servers' logs. What the monitor asks once a second is among it,
    some hundredths.

    :param worker: the contender
    :param number: of repetitions
    """
    servers = bench.cluster.servers
    for server in servers:
        server.configure(log_statement="all")

    starts = [server.log_size for server in servers]
    worker.ask("times", "write_then_read", number)
    logs = [x.log(start) for x, start in zip(servers, starts, strict=True)]
    for server in servers:
        server.configure(log_statement=None)

    found = sum(
        STATEMENT in line and "  statement: " in line
        for log in logs
        for line in log.splitlines()
    )
    return found / number
