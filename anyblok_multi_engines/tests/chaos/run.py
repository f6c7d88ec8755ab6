# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Runs the processes while the servers fail, and counts what came of it."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

from ... import errors
from ...testing import Cluster
from ...testing.history import Unit
from ..processes import SPAWN, process
from ..soak.run import KEYS, fill
from .faults import KINDS, NO_SERVER, PROMOTE, Stage
from .report import Result
from .worker import MARK, DBAPIError, Outcome, Plan, Report, work

DATABASE = "chaos"

#: Seconds between two questions of the monitor, and to connect: the defaults.
CHECK_INTERVAL = 1.0
CONNECT_TIMEOUT = 2.0

#: An acknowledged commit is on one of the replicas: it outlives the primary.
SYNCHRONOUS = {
    "synchronous_commit": "on",
    "synchronous_standby_names": "ANY 1 (primary, replica1, replica2)",
}

#: The rows of KEYS have numbers of their own.
BEYOND = "select setval(pg_get_serial_sequence('book', 'id'), 1000)"

#: Seconds that a promotion takes, with what follows.
PROMOTION = 5.0


@dataclass
class Run:
    """What shall be run

    :param seconds: that the servers fail
    :param seed: of the faults and of what the sessions do; when it happens is
        up to the system, so that no run is like another
    :param driver: of SQLAlchemy
    :param kinds: of faults; None: all
    :param recipe: makes what is taken for the registry; None: it is
    """

    seconds: float
    seed: str
    driver: str = "postgresql+psycopg2"
    kinds: tuple[str, ...] = tuple(KINDS)
    recipe: Callable[[Any], Any] | None = None


def chaos(run: Run) -> Result:
    """Run threads and forked processes on a cluster whose servers fail

    :param run: what shall be run
    """
    with Cluster(replicas=2, settings=SYNCHRONOUS) as cluster:
        cluster.create_database(DATABASE)
        cluster.wait_for_replay()
        return chaos_on(cluster, run)


def chaos_on(cluster: Cluster, run: Run) -> Result:
    """Run it on a cluster, which is no use afterwards

    :param cluster: with the database
    :param run: what shall be run
    """
    column = SPAWN.Value("i", 0)
    stage = Stage(cluster, DATABASE, column)
    urls = stage.urls(run.driver)
    options = {
        "db_name": DATABASE,
        "db_url": None,
        "db_wo_url": stage.primary_url(run.driver),
        # All of them: after a promotion it is another that is no replica.
        "db_ro_urls": urls if PROMOTE in run.kinds else urls[1:],
        "db_ro_check_interval": CHECK_INTERVAL,
        # One that is back shall be found before it fails again.
        "db_ro_max_backoff": 2 * CHECK_INTERVAL,
    }
    unknown = getattr(errors, "CommitUnknownError", DBAPIError)
    plan = Plan(
        process=0,
        sessions=[],
        seed=run.seed,
        keys=KEYS,
        names=stage.names,
        column=column,
        recipe=run.recipe,
        unknown=unknown if run.recipe is None else DBAPIError,
    )
    with ExitStack() as stack:
        pipe = stack.enter_context(process(work, options, plan))
        pipe.recv()
        fill(cluster, DATABASE)
        cluster.primary.execute(BEYOND, database=DATABASE)
        pipe.send("begin")
        begun = time.monotonic_ns()
        make_faults(stage, run)
        pipe.send("end")
        report: Report = pipe.recv()

    stage.settle()
    return judged(stage, run, begun, report)


def make_faults(stage: Stage, run: Run) -> None:
    """Have one server after the other fail

    Each kind once, in an order of the seed's; then a promotion; and again.
    The first round is complete, however long it takes.

    :param stage: the servers
    :param run: what shall be run
    """
    random = Random(run.seed)
    until = time.monotonic() + run.seconds
    promotes = PROMOTE in run.kinds
    others = [kind for kind in run.kinds if kind != PROMOTE]
    time.sleep(0.5)
    for number in count():
        for kind in random.sample(others, len(others)):
            if number and time.monotonic() > until - PROMOTION * promotes:
                break

            make_fault(stage, random, kind)

        if promotes:
            make_fault(stage, random, PROMOTE)

        if time.monotonic() > until - PROMOTION:
            return


def make_fault(stage: Stage, random: Random, name: str) -> None:
    """Have a server fail for a while

    A replica's replay may stand still meanwhile.

    :param stage: the servers
    :param random: says which
    :param name: of the kind of fault
    """
    kind = KINDS[name]
    hit = random.choice(stage.replicas)
    if kind.hits_primary and random.random() < 0.25:
        hit = stage.primary

    seconds = random.uniform(*kind.seconds)
    lag = random.choice(("pause replay", "delay replay"))
    lags = random.random() < 0.3
    other = random.choice([x for x in stage.replicas if x is not hit])
    with ExitStack() as stack:
        if name in (NO_SERVER, PROMOTE):
            stack.enter_context(stage.fault(name, None))
        else:
            stack.enter_context(stage.fault(name, hit))
            if lags:
                stack.enter_context(stage.fault(lag, other))

        time.sleep(seconds)

    stage.settle()
    time.sleep(random.uniform(0.2, 0.5))


def judged(stage: Stage, run: Run, begun: int, report: Report) -> Result:
    """Compare what was acknowledged with what the servers have in the end

    :param stage: the servers, without a fault
    :param run: what was run
    :param begun: nanoseconds
    :param report: what the processes have done
    """
    found = dict(
        stage.primary.query(
            "select title, count(*) from book"
            f" where copies = {MARK} group by 1",
            database=DATABASE,
        )
    )
    ended = time.monotonic_ns()
    history = list(report.units)
    for done in report.done:
        if done.outcome is Outcome.UNKNOWN and done.mark in found:
            # Nobody was told, and it may have been late: it is nobody's.
            history.append(
                Unit(
                    None, done.mark, done.begun, done.ended, ended, done.writes
                )
            )

    versions = stage.primary.query(
        f"select id, copies from book where copies <> {MARK}",
        database=DATABASE,
    )
    return Result(
        run.seed,
        begun,
        ended,
        report,
        history,
        found,
        dict(versions),
        stage.spans,
        stage.promotions,
        hang=2 * CHECK_INTERVAL + CONNECT_TIMEOUT,
    )
