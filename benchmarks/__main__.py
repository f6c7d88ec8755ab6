# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""``make bench`` and ``make bench-quick``: measure, and tell what is missed.

``python -m benchmarks [--quick] [--only SUBJECT ...] [--no-report]``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from time import monotonic

from rich.console import Console
from rich.table import Table

from . import (
    decision,
    freshness,
    growth,
    monitor,
    process,
    report,
    shadow,
    throughput,
    units_of_work,
)
from .bench import Bench
from .method import SLACK, Curve, Result, Row, judged, missed

#: What is measured, in the order of the tables.
SUBJECTS: dict[str, Callable[[Bench], Iterable[Result]]] = {
    "get-bind": decision.get_bind,
    "select-open": units_of_work.select_open,
    "select-unit": units_of_work.select_unit,
    "select-unit-far": units_of_work.select_unit_far,
    "insert": units_of_work.insert_unit,
    "read-your-writes": freshness.read_your_writes,
    "read-modify-write": units_of_work.read_modify_write,
    "mix": throughput.mix,
    "replicas": throughput.replicas,
    "nodes": growth.statements,
    "instances": growth.instances,
    "many-replicas": growth.replicas,
    "threads": growth.threads,
    "shapes": growth.shapes,
    "shadow": shadow.shadow,
    "start": process.start,
    "createdb": process.createdb,
    "memory": process.memory,
    "monitor": monitor.monitor,
}

#: What a quick run measures, and how often at most before it fails: on a busy
#: machine one look says little.
QUICK = (
    "get-bind",
    "select-open",
    "select-unit",
    "insert",
    "read-modify-write",
    "memory",
)
LOOKS = 3


def main() -> int:
    """Measure, print and write; 1 where a bar is missed"""
    options = arguments()
    names = options.only or (QUICK if options.quick else SUBJECTS)
    console = Console(width=110)
    published = published_rows() if options.quick else {}
    results: list[Result] = []
    with Bench(options.quick) as bench:
        known = known_report(bench, bool(options.only))
        for name in names:
            begun = monotonic()
            found = measured(bench, name, published)
            results += found
            console.print(table(found, f"{name}, {monotonic() - begun:.0f} s"))
            if not (options.quick or options.no_report):
                # At once: a run that is ended has measured something, too.
                known.add([*found, *bench.left_out])
                report.publish(known)

    for one in bench.left_out:
        console.print(f"Left out: {one.name}. {one.why}")

    rows = judged(rows_of(results), published)
    for row, judge in zip(rows_of(results), rows, strict=True):
        if judge is not row:
            console.print(
                f"{row.key} is judged by the published value, "
                f"{report.bar(judge)}: the bar is {report.bar(row)}"
            )

    worse = missed(rows, SLACK if options.quick else 1.0)
    for row in worse:
        console.print(
            f"Missed: {row.key}, {report.number(row.value, row.unit)}, "
            f"{report.bar(row)}"
        )

    return int(bool(worse))


def arguments() -> argparse.Namespace:
    """Return what the command line says"""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small numbers; fails where a value is more than 25%% worse than "
        "its bar, or than the published value where that misses the bar",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SUBJECTS,
        help="the others stay in the report as they are",
    )
    parser.add_argument("--no-report", action="store_true")
    options = parser.parse_args()
    # AnyBlok reads the command line, too.
    del sys.argv[1:]
    return options


def measured(
    bench: Bench, name: str, published: Mapping[str, Row]
) -> list[Result]:
    """Return what a subject has shown; in a quick run, the last of its looks

    :param bench: with its cluster
    :param name: of the subject
    :param published: rows of the report, by their keys
    """
    for _ in range(LOOKS if bench.quick else 1):
        found = list(SUBJECTS[name](bench))
        if not missed(judged(rows_of(found), published), SLACK):
            break

    return found


def known_report(bench: Bench, adds: bool) -> report.Report:
    """Return the report that results are added to

    :param bench: that measures
    :param adds: True: what was measured before stays
    """
    machine = report.this_machine(bench.version)
    if adds and report.JSON.exists():
        return replace(report.Report.read(report.JSON), machine=machine)

    return report.Report(machine)


def published_rows() -> dict[str, Row]:
    """Return the rows of the report, by their keys"""
    if not report.JSON.exists():
        return {}

    return {row.key: row for row in report.Report.read(report.JSON).rows}


def rows_of(results: Iterable[Result]) -> list[Row]:
    """Return the rows among results"""
    return [x for x in results if isinstance(x, Row)]


def table(results: Iterable[Result], title: str) -> Table:
    """Return results as a table for the terminal

    :param results: of a subject
    :param title: of the table
    """
    found = Table(title=title, width=110)
    for name in ("what", "measured", "lowest to highest", "bar", "contenders"):
        found.add_column(name)

    for row in rows_of(results):
        found.add_row(
            row.what,
            report.number(row.value, row.unit) + ("" if row.passes() else " !"),
            report.spread(row),
            report.bar(row),
            "\n".join(
                f"{x.name}: {report.number(x.median, x.unit)}"
                for x in row.samples
            )
            + (f"\n{row.note}" if row.note else ""),
        )

    for curve in (x for x in results if isinstance(x, Curve)):
        for name, line in curve.lines.items():
            points = ", ".join(f"{x:g}: {y:.4g}" for x, y in line)
            found.add_row(curve.what, "", "", "", f"{name}: {points}")

    return found


if __name__ == "__main__":
    sys.exit(main())
