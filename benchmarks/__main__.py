# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""``make bench`` and ``make bench-quick``.

``python -m benchmarks [--quick] [--only KEY ...] [--json FILE]``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from . import units_of_work
from .bench import Bench
from .method import SLACK, Curve, LeftOut, Result, Row, missed

#: What is measured, in the order of the tables.
SUBJECTS: dict[str, Callable[[Bench], Iterable[Result]]] = {
    "select-open": units_of_work.select_open,
}

#: Of these a quick run takes so many looks before it fails.
QUICK = ("select-open",)
LOOKS = 3


def main() -> int:
    """Measure, print and write; 1 where a bar is missed"""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=None)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    names = options.only or (QUICK if options.quick else SUBJECTS)
    with Bench(options.quick) as bench:
        results = [x for name in names for x in measured(bench, name)]
        results += bench.left_out

    rows = [x for x in results if isinstance(x, Row)]
    slack = SLACK if options.quick else 1.0
    return int(bool(missed(rows, slack)))


def measured(bench: Bench, name: str) -> Iterator[Result]:
    """Give what a subject has shown; in a quick run, its best look

    :param bench: with its cluster
    :param name: of the subject
    """
    looks = LOOKS if bench.quick else 1
    for look in range(1, looks + 1):
        found = list(SUBJECTS[name](bench))
        rows = [x for x in found if isinstance(x, Row)]
        if look == looks or not missed(rows, SLACK):
            break

    for one in found:
        print(one, flush=True)

    yield from found


if __name__ == "__main__":
    sys.exit(main())
