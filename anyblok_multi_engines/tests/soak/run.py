# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Runs the processes, and makes their replicas come and go."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from ...testing import Cluster, PostgresServer
from ...testing.history import (
    PRIMARY,
    PROMISES,
    Guarantee,
    Unit,
    Violation,
    violations,
)
from ..processes import process
from .worker import Plan, work

KEYS = [1, 2, 3, 4, 5]
SESSIONS = 8
PROCESSES = 3

# What a replica does next, and how often.
STATES = {"live": 5, "paused": 3, "delayed": 2}


class Served:
    """Who has answered, by the history of a run"""

    history: list[Unit]

    @property
    def served(self) -> Counter[str]:
        """Return who has answered the reads of units that only read"""
        return Counter(
            read.server
            for unit in self.history
            if not unit.writes
            for read in unit.reads
        )

    @property
    def from_replicas(self) -> float:
        """Return the share of these reads that replicas have answered"""
        return 1.0 - self.served[PRIMARY] / max(self.served.total(), 1)


@dataclass
class Outcome(Served):
    """What a run has shown

    :param consistency: that was asked for
    :param seed: of the run
    :param history: the units of work of all sessions
    :param failed: the errors of units of work
    """

    consistency: str
    seed: str
    history: list[Unit]
    failed: list[str]

    @cached_property
    def found(self) -> list[Violation]:
        """Return what any promise would forbid"""
        return violations(self.history, Guarantee)

    def violations(self, promise: str | None = None) -> list[Violation]:
        """Return the reads that break a promise

        :param promise: a value of ``--db-ro-consistency``; None: the run's
        """
        promised = PROMISES[promise or self.consistency]
        return [x for x in self.found if x.guarantee in promised]

    def __str__(self) -> str:
        """Return it in a few lines"""
        servers = ", ".join(
            f"{name} {count:,}" for name, count in sorted(self.served.items())
        )
        writes = sum(len(unit.writes) for unit in self.history)
        broken = Counter(x.guarantee for x in self.found)
        promised = PROMISES[self.consistency]
        lines = [
            f"{self.consistency}, seed {self.seed}: "
            f"{len(self.history):,} units of work, {writes:,} writes, "
            f"{len(self.failed)} failed",
            f"  reads of units that only read: {self.from_replicas:.0%} from "
            f"replicas ({servers})",
        ]
        lines += [
            f"  {guarantee}: {broken[guarantee]:,} violations"
            f"{'' if guarantee in promised else ' (not promised)'}"
            for guarantee in Guarantee
        ]
        return "\n".join(lines)


def soak(
    cluster: Cluster,
    options: dict[str, Any],
    consistency: str,
    seconds: float,
    seed: str,
    spoil: Callable[[], None] | None = None,
) -> Outcome:
    """Run sessions in several processes, against replicas that come and go

    :param cluster: its replicas have no fault in the end
    :param options: of the registries, with ``db_name``
    :param consistency: ``--db-ro-consistency``
    :param seconds: that the sessions work
    :param seed: of what they do, and of the replicas' faults; when it happens
        is up to the system, so that no run is like another
    :param spoil: what breaks the router of each process; None: nothing
    """
    fill(cluster, options["db_name"])
    names = {str(server.port): server.name for server in cluster.servers}
    options = {
        "db_ro_consistency": consistency,
        "db_ro_wait": 0.05,
        **options,
    }
    plans = [
        Plan(number, sessions_of(number), seed, KEYS, names, spoil)
        for number in range(PROCESSES)
    ]
    with ExitStack() as stack:
        pipes = [
            stack.enter_context(process(work, options, plan)) for plan in plans
        ]
        for pipe in pipes:
            pipe.recv()

        for pipe in pipes:
            pipe.send("begin")

        make_faults(cluster, Random(seed), time.monotonic() + seconds)
        for pipe in pipes:
            pipe.send("end")

        reports = [pipe.recv() for pipe in pipes]

    history = [unit for report in reports for unit in report.units]
    failed = [error for report in reports for error in report.failed]
    return Outcome(consistency, seed, history, failed)


def sessions_of(number: int) -> list[int]:
    """Return the sessions of a process

    :param number: of the process
    """
    return list(range(number, SESSIONS, PROCESSES))


def fill(cluster: Cluster, database: str) -> None:
    """Make the rows, as they are before the history

    :param cluster: whose replicas have them too, in the end
    :param database: its name
    """
    rows = ", ".join(f"({key}, 'new', 0)" for key in KEYS)
    cluster.primary.execute(
        "delete from book",
        f"insert into book (id, title, copies) values {rows}",
        database=database,
    )
    cluster.wait_for_replay()


def make_faults(cluster: Cluster, random: Random, until: float) -> None:
    """Pause, delay and resume the replay of replicas at random

    All of them may be behind, but not for long: then the primary serves
    everything, which proves little.

    :param cluster: it has no fault in the end
    :param random: says what happens
    :param until: seconds of ``time.monotonic()``
    """
    states = dict.fromkeys(cluster.replicas, "live")
    state = "paused"
    while time.monotonic() < until:
        replica = random.choice(cluster.replicas)
        if state != states[replica]:
            heal(replica, states[replica])
            if state == "paused":
                replica.pause_replay()
            elif state == "delayed":
                replica.delay_replay(random.uniform(0.02, 0.5))

            states[replica] = state

        left = until - time.monotonic()
        time.sleep(max(0.0, min(left, random.uniform(0.05, 0.6))))
        (state,) = random.choices(list(STATES), list(STATES.values()))
        if "live" not in states.values():
            state = "live"

    for replica, state in states.items():
        heal(replica, state)


def heal(replica: PostgresServer, state: str) -> None:
    """Let a replica replay at once

    :param replica: the server
    :param state: what it does now
    """
    if state == "paused":
        replica.resume_replay()
    elif state == "delayed":
        replica.delay_replay(0.0)
