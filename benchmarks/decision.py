# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What it takes to decide where a statement goes."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from .bench import Bench, Worker
from .contenders import BATCH
from .method import Measured, Row, Sample, Work, in_turns

#: The bars, in microseconds: placed, and not yet.
PLACED, FIRST = 2.0, 8.0

#: Of a contender's turn: batches in a loop, and executions.
SIZES = {"binds": 10, "binds_inside": 50}

#: Ours, given what ``Session.execute`` gives on top of mapper and clause: with
#: it, it is looked whether the replica is fresh enough.
EXECUTING = "ours, told its execution"

#: Their notes, as the two methods don't give the same.
LOOP = "the same statement in a loop, the time of {} calls by their number"
INSIDE = "one call in each execution, of a statement built anew: cold caches"


def get_bind(bench: Bench) -> Iterator[Row]:
    """``get_bind`` in a loop; and as ``Session.execute`` calls it"""
    contenders = {
        "ours": bench.ours(),
        "ours, eventual": bench.ours(db_ro_consistency="eventual"),
        "stock": bench.stock(),
    }
    if not bench.quick:
        for name in ("advanced-alchemy", "recipe"):
            worker = bench.plain(name)
            if worker is not None:
                contenders[name] = worker

    statements = [(False, "an ORM SELECT by key"), (True, "a text()")]
    for text, of in statements[:1] if bench.quick else statements:
        for placed, where, bar in (
            (True, "in a unit of work that has read before", PLACED),
            (False, "first read of a unit of work", FIRST),
        ):
            key = "-".join(
                ["text" if text else "orm", "placed" if placed else "first"]
            )
            yield row(
                bench,
                watched(bench, contenders, "binds", text, placed),
                f"get-bind-{key}",
                f"get_bind of {of}, {where}",
                None if text else bar,
                LOOP.format(f"{BATCH:,}"),
            )
            if not (bench.quick or text):
                yield row(
                    bench,
                    watched(bench, contenders, "binds_inside", text, placed),
                    f"get-bind-inside-{key}",
                    "The same in real executions",
                    None,
                    INSIDE,
                )


def watched(
    bench: Bench,
    contenders: dict[str, Worker],
    method: str,
    text: bool,
    placed: bool,
) -> Measured:
    """Return what ``get_bind`` takes

    :param method: of the contender, a key of ``SIZES``
    :param text: True: of a text(); False: of an ORM SELECT by key
    :param placed: True: in a unit of work that has read before
    """

    def work(worker: Worker, *more: Any) -> Work:
        return lambda number: worker.ask(method, text, placed, number, *more)

    works = {name: work(worker) for name, worker in contenders.items()}
    if method == "binds":
        works[EXECUTING] = work(contenders["ours"], True)

    return in_turns(
        works,
        bench.plan(SIZES[method]),
    )


def row(
    bench: Bench,
    measured: Measured,
    key: str,
    what: str,
    bar: float | None,
    note: str,
) -> Row:
    """Return the row of our own median, in microseconds"""
    found = [1e6 * median(x["ours"]) for x in measured.rounds]
    samples = [measured.sample(name) for name in measured.rounds[0]]
    return Row(
        key,
        what,
        # What else the machine does only adds to a time: no reason to fail.
        min(found) if bench.quick else median(found),
        unit="us",
        bar=bar,
        low=min(found),
        high=max(found),
        # Less than a microsecond: no place in a picture of units of work.
        samples=[Sample(x.name, x.median) for x in samples],
        note=note,
    )
