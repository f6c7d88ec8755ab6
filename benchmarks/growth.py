# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What it costs as there is more: statements, instances, servers, threads."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from .bench import Bench, Worker
from .method import Curve, Result, Row, Sample
from .mix import OWN_ROWS

NODES = (10, 100, 1000)
INSTANCES = (10, 1_000, 100_000)
REPLICAS = (1, 4, 16, 64)
THREADS = (1, 4, 16, 64)
NOTES = {
    "first flush": "all that replicas have loaded is expired, as a commit "
    "does it: what follows is read from the primary",
}
SHAPES = (5_000, 10_000, 20_000, 35_000, 50_000)


def statements(bench: Bench) -> Iterator[Result]:
    """To know a statement of a shape that was seen before"""
    found = grown(bench.ours(), "statements", NODES)
    again, key = (
        found["the statement itself, again"],
        found["SQLAlchemy's key of its shape"],
    )
    other = found["another one of its shape"]
    yield grew(
        "nodes", "The same statement again, 1,000 nodes against 10", again, 2.0
    )
    yield Row(
        "nodes-other",
        "Another statement of a shape seen before, 1,000 nodes: its share of "
        "what SQLAlchemy takes to make the key of the shape",
        other[-1] / key[-1],
        bar=0.25,
    )
    yield Curve(
        "nodes",
        "To know a statement of a shape seen before",
        "nodes of its tree",
        "us of CPU",
        lines(found, NODES, 1e6),
        log="xy",
    )


def instances(bench: Bench) -> Iterator[Result]:
    """Units of work that hold many instances"""
    known = {"ours": bench.ours(), "stock": bench.stock()}
    found = {x: grown(known[x], "instances", INSTANCES) for x in known}
    ours, stock = found["ours"], found["stock"]
    yield grew(
        "instances-read",
        "A read in a session of 100,000 instances against one of 10",
        ours["read"],
        2.0,
    )
    for name, bar in {
        "load": None,
        "first flush": None,
        "next flush": 1.25,
        "commit": 1.25,
    }.items():
        yield Row(
            f"instances-{name.replace(' ', '-')}",
            f"CPU of the {name} in a session of 100,000 instances, of which "
            "one has been changed, against stock",
            ours[name][-1] / stock[name][-1],
            bar=bar,
            samples=[Sample(x, found[x][name][-1]) for x in ("ours", "stock")],
            note=NOTES.get(name, ""),
        )

    yield Curve(
        "instances",
        "A session that holds many instances",
        "instances",
        "ms of CPU",
        {
            f"{who}, {what}": [
                (n, 1e3 * x) for n, x in zip(INSTANCES, taken, strict=True)
            ]
            for who, times in found.items()
            for what, taken in times.items()
        },
        log="xy",
    )


def replicas(bench: Bench) -> Iterator[Result]:
    """A unit of work, with many replicas configured"""
    taken: dict[str, list[float]] = {}
    for number in REPLICAS:
        worker = bench.ours(replicas=[], db_ro_urls=many_urls(bench, number))
        for name, seconds in worker.ask("grow", "decision").items():
            taken.setdefault(name, []).append(seconds)

        bench.close_worker(worker)

    yield grew(
        "replicas-get-bind",
        "get_bind at the start of a unit of work, 64 replicas against 1",
        taken["get_bind"],
        6.0,
    )
    yield grew(
        "replicas-unit",
        "A unit of work of one SELECT, 64 replicas against 1",
        taken["unit of work"],
        1.25,
    )
    yield Curve(
        "replicas-configured",
        "Many replicas configured",
        "replicas",
        "us of CPU",
        lines(taken, REPLICAS, 1e6),
        log="xy",
    )


def threads(bench: Bench) -> Iterator[Result]:
    """The mix of units of work, in more and more threads"""
    pool = max(THREADS)
    known = {
        "ours": bench.ours(pool_size=pool),
        "stock": bench.stock(pool_size=pool),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in known}
    for number in THREADS:
        taken: dict[str, list[float]] = {name: [] for name in known}
        for worker in known.values():
            bench.give_rows(worker, number * OWN_ROWS)
            worker.ask("mix", 0.5, number)

        for _ in range(1 if bench.quick else 3):
            for name, worker in known.items():
                taken[name].append(worker.ask("mix", 1.5, number).rate)

        for name in known:
            rates[name].append((number, median(taken[name])))

    for worker in known.values():
        bench.close_worker(worker)

    yield Curve(
        "threads",
        "Units of work in threads of one process, 9 that read to 1 that writes",
        "threads",
        "units of work per second",
        rates,
    )


def shapes(bench: Bench) -> Iterator[Result]:
    """A week's worth of distinct statements"""
    worker, before, found = bench.ours(), 0, []
    numbers = SHAPES[:3] if bench.quick else SHAPES
    for number in numbers:
        found.append(worker.ask("grow", "shapes", before, number - before))
        before = number

    sizes = [name for name in found[-1] if name != "MB"]
    yield Row(
        "shapes",
        f"Megabytes more after {numbers[-1]:,} distinct statements than after "
        f"{numbers[1]:,}",
        found[-1]["MB"] - found[1]["MB"],
        unit="MB",
        bar=20.0,
        note="then remembered: "
        + ", ".join(f"{found[-1][name]:,.0f} {name}" for name in sizes),
    )
    yield Curve(
        "shapes",
        "Distinct statements, each in a request of its own",
        "distinct statements",
        "MB of the process, thousands remembered",
        {
            "MB": [(n, x["MB"]) for n, x in zip(numbers, found, strict=True)],
            **{
                f"thousands of {name}": [
                    (n, x[name] / 1000)
                    for n, x in zip(numbers, found, strict=True)
                ]
                for name in ("statements", "readers")
            },
        },
        log="",
    )


def grown(
    worker: Worker, what: str, numbers: tuple[int, ...]
) -> dict[str, list[float]]:
    """Return seconds by name, for each number

    :param worker: the contender
    :param what: a function of :mod:`.grow`
    :param numbers: of things
    """
    found: dict[str, list[float]] = {}
    for number in numbers:
        for name, seconds in worker.ask("grow", what, number).items():
            found.setdefault(name, []).append(seconds)

    return found


def grew(key: str, what: str, taken: list[float], bar: float) -> Row:
    """Return the row of how much more the most takes than the least

    :param key: of the row
    :param what: for a person
    :param taken: seconds, the least number of things first
    :param bar: of the ratio
    """
    return Row(
        key,
        what,
        taken[-1] / taken[0],
        bar=bar,
        samples=[Sample("most", taken[-1]), Sample("least", taken[0])],
    )


def lines(
    found: dict[str, list[float]], numbers: tuple[int, ...], unit: float
) -> dict[str, Any]:
    """Return the lines of a curve"""
    return {
        name: [(n, unit * x) for n, x in zip(numbers, taken, strict=True)]
        for name, taken in found.items()
    }


def many_urls(bench: Bench, number: int) -> list[str]:
    """Return URLs of so many replicas, which are the cluster's two

    :param number: at most twice as many as they have addresses
    """
    return [
        url.replace("127.0.0.1", f"127.0.0.{n + 1}")
        for n in range((number + 1) // 2)
        for url in bench.replica_urls()
    ][:number]
