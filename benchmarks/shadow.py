# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the shadow mode costs, against the same application on one server."""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryDirectory

from .bench import Bench
from .method import Row, in_turns

PAIR = ("shadow", "one server")

#: Of the time on one server.
COST = 1.25


def shadow(bench: Bench) -> Iterator[Row]:
    """Units of work with and without ``--db-ro-shadow``"""
    with TemporaryDirectory() as directory:
        url = bench.url()
        contenders = {
            "shadow": bench.worker(
                "ours",
                db_url=url,
                db_ro_shadow=True,
                db_ro_shadow_dir=directory,
            ),
            "one server": bench.worker("ours", db_url=url),
        }
        for unit, size, what in (
            ("select_open", 50, "One SELECT in an open unit of work"),
            ("select_unit", 50, "One SELECT and the end of the unit of work"),
            ("insert_unit", 20, "One INSERT and its commit"),
        ):
            measured = in_turns(
                {x: contenders[x].does(unit) for x in contenders},
                bench.plan(size),
            )
            key = f"shadow-{unit.replace('_', '-')}"
            yield measured.row(key, f"{what}, in shadow mode", PAIR, bar=COST)
