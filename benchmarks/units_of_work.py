# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a unit of work takes, against AnyBlok without the plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from .bench import Bench, Worker
from .method import Measured, Row, in_turns

PAIR = ("ours", "stock")

#: AnyBlok with a bare ``get_bind``, which keeps no promise.
LEAST = "bare get_bind"

#: Seconds of the network, where it is slow.
DELAY = 0.001


def select_open(bench: Bench) -> Iterator[Row]:
    """One SELECT in an open unit of work"""
    measured = taken(
        bench, "select_open", 50, bench.ours(), bench.stock(), least(bench)
    )
    yield measured.row(
        "select-open",
        "One SELECT in an open unit of work, on a replica",
        PAIR,
        bar=1.05,
    )
    yield from least_row(
        measured, "select-open-least", "One SELECT in an open unit of work"
    )


def select_unit(bench: Bench) -> Iterator[Row]:
    """A unit of work of one SELECT"""
    measured = taken(
        bench, "select_unit", 50, bench.ours(), bench.stock(), least(bench)
    )
    yield measured.row(
        "select-unit",
        "One SELECT on a replica, and the end of the unit of work",
        PAIR,
        bar=0.7,
    )
    yield from least_row(
        measured,
        "select-unit-least",
        "One SELECT, and the end of the unit of work",
    )


def least(bench: Bench) -> dict[str, Worker]:
    """Return the contender with a bare ``get_bind``; none in a quick run"""
    return {} if bench.quick else {LEAST: bench.least()}


def least_row(measured: Measured, key: str, what: str) -> Iterator[Row]:
    """Give the row of the bare ``get_bind``, if it was there

    :param key: of the row
    :param what: it did
    """
    if LEAST in measured.rounds[0]:
        row = measured.row(key, f"{what}: a {LEAST}", (LEAST, "stock"))
        # They are in the row before.
        yield replace(row, samples=())


def select_unit_far(bench: Bench) -> Iterator[Row]:
    """The same, where each round trip takes 1 ms more"""
    far = bench.proxies(DELAY)
    primary, replicas = far[0], far[1:]
    measured = in_turns(
        {
            "ours": bench.ours(primary, replicas).does("select_unit"),
            "stock": bench.stock(primary).does("select_unit"),
        },
        bench.plan(20, 4),
    )
    yield measured.row(
        "select-unit-far",
        "The same with 1 ms of network delay",
        PAIR,
        bar=0.45,
    )


def insert_unit(bench: Bench) -> Iterator[Row]:
    """A unit of work of one INSERT"""
    eventual = bench.ours(db_ro_consistency="eventual")
    measured = taken(
        bench,
        "insert_unit",
        20,
        bench.ours(),
        bench.stock(),
        {"ours, eventual": eventual},
    )
    what = "One INSERT and its commit, {}"
    yield measured.row(
        "insert-session", what.format("session consistency"), PAIR, bar=1.25
    )
    yield measured.row(
        "insert-eventual",
        what.format("eventual consistency"),
        ("ours, eventual", "stock"),
        bar=1.05,
    )


def read_modify_write(bench: Bench) -> Iterator[Row]:
    """An object that a replica has loaded is changed and committed"""
    found = {"ours": bench.ours(), "stock": bench.stock(), **least(bench)}
    plan = bench.plan(10, 10)
    for worker in found.values():
        bench.give_rows(worker, plan.size * (plan.turns * plan.rounds + 1))

    found["ours"].ask("share")
    unit = "read_modify_write"
    measured = in_turns({x: found[x].does(unit) for x in found}, plan)
    share = found["ours"].ask("share")
    yield measured.row(
        "read-modify-write",
        "An object is read, changed and committed, with the write guard",
        PAIR,
        bar=1.6,
        note=f"a replica has loaded it in {share:.0%}",
    )
    yield from least_row(
        measured,
        "read-modify-write-least",
        "An object is read, changed and committed, compared by hand",
    )


def taken(
    bench: Bench,
    unit: str,
    size: int,
    ours: Worker,
    stock: Worker,
    more: Mapping[str, Worker] | None = None,
) -> Measured:
    """Return what a unit of work takes, with all who can do it

    :param unit: its name
    :param size: how many of a contender, one after the other
    :param more: contenders, by their names
    """
    contenders: dict[str, Worker | None] = {
        "ours": ours,
        "stock": stock,
        **(more or {}),
    }
    if not bench.quick:
        for name in ("advanced-alchemy", "recipe"):
            contenders[name] = bench.plain(name)

    return in_turns(
        {name: x.does(unit) for name, x in contenders.items() if x},
        bench.plan(size, 20),
    )
