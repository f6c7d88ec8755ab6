# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""How much many threads get done, and what they see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from statistics import median, quantiles

from . import pgpool
from .bench import DRIVER, Bench, Worker
from .contenders import DATABASE
from .method import Curve, Result, Row, Sample
from .mix import OWN_ROWS, Seen
from .units_of_work import LEAST

THREADS = 16

#: A contender's turns, and the seconds of each.
TURNS = 6
SECONDS = 3.0

#: What serves the busy reads: the connections to a replica, the threads for
#: each of them, and the seconds of a statement.
REPLICAS = (1, 2, 4, 8)
CONNECTIONS = 2
WAITING = 3
SLEEP = 0.1
ROUNDS = 4

#: Through pgpool, and what the bars are for.
RIVAL = "pgpool-II"
NO_PGPOOL = "Its program isn't there: apt-get install pgpool2"


def mix(bench: Bench) -> Iterator[Result]:
    """Nine units of work that read to one that writes, in 16 threads"""
    with ExitStack() as stack:
        contenders = crowd(bench, stack)
        found = in_rounds(bench, contenders)
        yield from rows(found)
        for worker in contenders.values():
            # Their connections are many.
            bench.close_worker(worker)


def replicas(bench: Bench) -> Iterator[Result]:
    """Read throughput, where each server is the bottleneck"""
    with Bench(bench.quick, replicas=max(REPLICAS)) as wide:
        workers = {
            number: wide.ours(
                replicas=wide.cluster.replicas[:number],
                pool_size=CONNECTIONS,
                db_ro_functions=["pg_sleep"],
            )
            for number in REPLICAS
        }
        rounds = [
            {
                number: rate(bench, workers[number], number)
                for number in REPLICAS
            }
            for _ in range(2 if bench.quick else ROUNDS)
        ]

    rates = {n: median(one[n] for one in rounds) for n in REPLICAS}
    most = max(REPLICAS)
    shares = [one[most] / one[1] / most for one in rounds]
    what = "Read throughput with {} replicas, each busy: share of linear"
    yield Row(
        "replicas",
        what.format(most),
        median(shares),
        bar=0.95,
        better="higher",
        low=min(shares),
        high=max(shares),
        samples=[
            Sample(f"{n} replicas", rates[n], unit="/s") for n in REPLICAS
        ],
    )
    yield Curve(
        "replicas",
        "Read throughput, where each server is the bottleneck",
        "replicas",
        "units of work per second",
        {
            "ours": [(n, rates[n]) for n in REPLICAS],
            "linear": [(n, n * rates[1]) for n in REPLICAS],
        },
        log="xy",
    )


def rate(bench: Bench, worker: Worker, number: int) -> float:
    """Return how many units of work end per second

    :param worker: with a number of replicas
    :param number: of replicas
    """
    found: float = worker.ask(
        "busy_servers",
        2.0 if bench.quick else 3.0,
        number * CONNECTIONS * WAITING,
        SLEEP,
    )
    return found


def crowd(bench: Bench, stack: ExitStack) -> dict[str, Worker]:
    """Return the contenders, with a connection for each thread

    :param stack: ends pgpool
    """
    found: dict[str, Worker | None] = {"ours": bench.ours(pool_size=THREADS)}
    if pgpool.program() is None:
        bench.leave_out(RIVAL, NO_PGPOOL)
    else:
        proxy = stack.enter_context(pgpool.Pgpool(bench.cluster, THREADS + 4))
        found[RIVAL] = bench.worker(
            "stock", db_url=proxy.url(DATABASE, DRIVER), pool_size=THREADS
        )

    found["stock"] = bench.stock(pool_size=THREADS)
    if not bench.quick:
        found[LEAST] = bench.least(pool_size=THREADS)
        for name in ("advanced-alchemy", "recipe"):
            found[name] = bench.plain(name, pool_size=THREADS)

    return {name: worker for name, worker in found.items() if worker}


def in_rounds(
    bench: Bench, contenders: Mapping[str, Worker]
) -> dict[str, list[Seen]]:
    """Return what contenders did, in each of their turns"""
    turns, seconds = (3, 1.0) if bench.quick else (TURNS, SECONDS)
    for worker in contenders.values():
        bench.give_rows(worker, THREADS * OWN_ROWS)
        worker.ask("mix", 1.0, THREADS)

    names = list(contenders)
    found: dict[str, list[Seen]] = {name: [] for name in names}
    for _ in range(turns):
        for name in names:
            bench.settle()
            found[name].append(contenders[name].ask("mix", seconds, THREADS))

        names.reverse()

    return found


def rows(found: Mapping[str, list[Seen]]) -> Iterator[Row]:
    """Give throughput, p99 and stale reads

    :param found: of each contender's turns
    """
    total = {name: Seen.of(turns) for name, turns in found.items()}
    has_bar = RIVAL in found
    rival = RIVAL if has_bar else "stock"
    what = f"{THREADS} threads, 9 units of work that read to 1 that writes: "
    yield Row(
        "mix-throughput",
        f"{what}throughput, against {rival}",
        **ratio(found, "ours", rival, rate_of),
        bar=1.5 if has_bar else None,
        better="higher",
        samples=[
            Sample(name, median(x.rate for x in turns), unit="/s")
            for name, turns in found.items()
        ],
    )
    yield Row(
        "mix-p99",
        f"{what}p99, against {rival}",
        **ratio(found, "ours", rival, p99_of),
        bar=0.7 if has_bar else None,
        samples=[
            Sample(name, median(x.seconds), p99(x.seconds))
            for name, x in total.items()
        ],
    )
    if LEAST in found:
        yield Row(
            "mix-throughput-least",
            f"{what}throughput of a {LEAST}, against {rival}",
            **ratio(found, LEAST, rival, rate_of),
            better="higher",
        )
        yield Row(
            "mix-p99-least",
            f"{what}p99 of a {LEAST}, against {rival}",
            **ratio(found, LEAST, rival, p99_of),
        )

    yield Row(
        "mix-stale",
        f"{what}stale reads",
        float(total["ours"].stale_reads),
        bar=0.0,
        samples=[
            Sample(
                name,
                1e4 * x.stale_reads / x.own_reads,
                unit="of 10,000 reads of own rows",
            )
            for name, x in total.items()
        ],
        note=errors_of(total),
    )


def ratio(
    found: Mapping[str, list[Seen]],
    name: str,
    rival: str,
    of: Callable[[Seen], float],
) -> dict[str, float]:
    """Return the median of the turns' ratios, the lowest and the highest

    :param found: of each contender's turns
    :param name: of a contender
    :param rival: the other contender
    :param of: gives what is compared
    """
    ratios = [
        of(mine) / of(theirs)
        for mine, theirs in zip(found[name], found[rival], strict=True)
    ]
    return {"value": median(ratios), "low": min(ratios), "high": max(ratios)}


def rate_of(seen: Seen) -> float:
    """Return the units of work per second"""
    return seen.rate


def p99_of(seen: Seen) -> float:
    """Return the p99 of the units of work, in seconds"""
    return p99(seen.seconds)


def p99(seconds: list[float]) -> float:
    """Return the 99th of a hundred"""
    return quantiles(seconds, n=100)[98]


def errors_of(total: Mapping[str, Seen]) -> str:
    """Return the units of work that failed, for a person"""
    found = [
        f"{name}: "
        + ", ".join(f"{kind} {count}" for kind, count in x.errors.items())
        for name, x in total.items()
        if x.errors
    ]
    return "units of work that failed: " + ("; ".join(found) or "none")
