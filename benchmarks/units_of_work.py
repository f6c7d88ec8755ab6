# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a unit of work takes, against AnyBlok without the plugin."""

from __future__ import annotations

from collections.abc import Iterator

from .bench import Bench
from .method import Row, in_turns

PAIR = ("ours", "stock")


def select_open(bench: Bench) -> Iterator[Row]:
    """One SELECT in an open unit of work, on a replica"""
    unit = "select_open"
    measured = in_turns(
        {
            "ours": bench.ours().does(unit),
            "ours, eventual": bench.ours(db_ro_consistency="eventual").does(
                unit
            ),
            "stock": bench.stock().does(unit),
        },
        bench.plan(200),
    )
    yield measured.row(
        "select-open",
        "One SELECT in an open unit of work, on a replica",
        PAIR,
        bar=1.05,
    )
