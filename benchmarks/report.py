# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What was measured: as JSON, and the page and the pictures made from it.

``python -m benchmarks.report`` makes the page and the pictures again.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .method import Curve, LeftOut, Result, Row, Sample

#: Where the page is, its pictures, and what they are made from.
PLACE = Path(__file__).parent.parent / "doc" / "explanation"
JSON = PLACE / "performance.json"
PAGE = PLACE / "performance.rst"

#: The picture of the samples that are times.
LATENCY = "latency"


@dataclass
class Report:
    """What was measured, and where

    :param machine: what it is, by the name of the fact
    :param rows: in the order of the table
    :param curves: one picture each
    :param left_out: contenders that weren't there
    """

    machine: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Report:
        """Return what a file has

        :param path: of the JSON
        """
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            found["machine"],
            [
                Row(**{**x, "samples": [Sample(**y) for y in x["samples"]]})
                for x in found["rows"]
            ],
            [Curve(**x) for x in found["curves"]],
            [LeftOut(**x) for x in found["left_out"]],
        )

    def write(self, path: Path) -> None:
        """Write it to a file

        :param path: of the JSON
        """
        text = json.dumps(rounded(asdict(self)), indent=1)
        path.write_text(text + "\n", encoding="utf-8")

    def add(self, results: Iterable[Result]) -> None:
        """Take results in, each in the place of an older one with its key

        :param results: of a run
        """
        for one in results:
            if isinstance(one, Row):
                put(self.rows, one, "key")
            elif isinstance(one, Curve):
                put(self.curves, one, "key")
            else:
                put(self.left_out, one, "name")


def put(known: list[Any], one: Any, name: str) -> None:
    """Put one in the place of the one with its name, or behind all"""
    mine = getattr(one, name)
    for index, other in enumerate(known):
        if getattr(other, name) == mine:
            known[index] = one
            return

    known.append(one)


def rounded(value: Any) -> Any:
    """Return what is written: four digits say enough"""
    if isinstance(value, float):
        return float(f"{value:.4g}")

    if isinstance(value, dict):
        return {name: rounded(x) for name, x in value.items()}

    if isinstance(value, list | tuple):
        return [rounded(x) for x in value]

    return value


def this_machine(postgresql: str) -> dict[str, str]:
    """Return what matters of the machine, and nothing of whose it is

    :param postgresql: the server's version
    """
    return {
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()}, {platform.machine()}",
        "PostgreSQL": postgresql,
        "Python": platform.python_version(),
        "SQLAlchemy": version("SQLAlchemy"),
        "AnyBlok": version("anyblok"),
        "psycopg2": version("psycopg2-binary"),
    }


# The page

HEAD = """\
.. This file is a part of the AnyBlok Multi Engines project
..
.. This Source Code Form is subject to the terms of the Mozilla Public License,
.. v. 2.0. If a copy of the MPL was not distributed with this file,You can
.. obtain one at http://mozilla.org/MPL/2.0/.
..
.. Made by ``make bench`` from performance.json: change benchmarks/report.py.

Performance
===========

What a unit of work costs and gains with this package, against what one would
take instead: AnyBlok without it on the primary alone ("stock"), and others
where they can do the same. ``make bench`` measures it on a primary and its
replicas with durable settings and their data on a disk; the contenders work in
turns, in one run, each in a process of its own. A ratio is the median of the
ratios of several rounds, with the lowest and the highest behind it. A subject
may have been measured again by itself: two rows needn't be of the same run. How
it is measured, and what it can't say: ``benchmarks/README.rst``.

What is in bold misses its bar. A "bare get_bind" is AnyBlok without the
package, its reads on a replica in AUTOCOMMIT, and no promise kept: so much is
left of a bar where nobody looks at a statement, at the servers or at what the
session has seen. The object that is read, changed and committed is compared and
locked on the primary there, too, and the position asked, by hand.
"""


def page(report: Report) -> str:
    """Return the page

    :param report: what was measured
    """
    parts = [HEAD, machine_of(report.machine), *left_out_of(report)]
    parts += [title("Bars"), bars(report.rows)]
    notes = [f"* {row.what}: {row.note}\n" for row in report.rows if row.note]
    if notes:
        parts += ["".join(notes)]

    parts += [title("Contenders"), contenders(report.rows)]
    if latencies(report.rows):
        parts += [picture(LATENCY, "Median and p99 of each contender")]

    for curve in report.curves:
        parts += [title(curve.what), picture(curve.key, curve.what)]
        parts += [points(curve)]

    return "\n".join(parts)


def title(text: str) -> str:
    """Return a heading"""
    return f"{text}\n{'-' * len(text)}\n"


def machine_of(machine: dict[str, str]) -> str:
    """Return what the machine is, as a sentence"""
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    return f"The machine: {facts}.\n"


def left_out_of(report: Report) -> Iterator[str]:
    """Give a line for each contender that wasn't there"""
    for one in report.left_out:
        yield f"Left out: {one.name}. {one.why}\n"


def table(widths: str, head: list[str], rows: list[list[str]]) -> str:
    """Return a list-table"""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}"]
    lines.append("")
    for row in [head, *rows]:
        first, *others = row
        lines.append(f"   * - {first}")
        lines += [f"     - {cell}".rstrip() for cell in others]

    return "\n".join(lines) + "\n"


def bars(rows: Iterable[Row]) -> str:
    """Return the table of what has a bar, or could have one"""
    head = ["what", "measured", "lowest to highest", "bar"]
    return table(
        "46 16 20 18",
        head,
        [[row.what, measured(row), spread(row), bar(row)] for row in rows],
    )


def number(value: float, unit: str) -> str:
    """Return a number with its unit; seconds as ms or us"""
    if unit == "s" and value < 1.0:
        if value < 1e-3:
            return f"{value * 1e6:.3g} us"

        return f"{value * 1e3:.3g} ms"

    text = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def measured(row: Row) -> str:
    """Return the value, in bold where it misses its bar"""
    text = number(row.value, row.unit)
    return text if row.passes() else f"**{text}**"


def spread(row: Row) -> str:
    """Return the lowest and the highest"""
    if row.low is None or row.high is None:
        return ""

    return f"{number(row.low, row.unit)} to {number(row.high, row.unit)}"


def bar(row: Row) -> str:
    """Return the bar of a row"""
    if row.bar is None:
        return ""

    words = {"lower": "at most", "higher": "at least"}
    return f"{words[row.better]} {number(row.bar, row.unit)}"


def contenders(rows: Iterable[Row]) -> str:
    """Return the table of what each contender took"""
    found = []
    for row in rows:
        for sample in row.samples:
            p99 = sample.p99
            tail = "" if p99 is None else number(p99, sample.unit)
            middle = number(sample.median, sample.unit)
            found.append([row.what, sample.name, middle, tail])

    return table("46 26 14 14", ["what", "contender", "median", "p99"], found)


def points(curve: Curve) -> str:
    """Return the table of a curve"""
    xs = sorted({x for line in curve.lines.values() for x, _ in line})
    found = []
    for x in xs:
        values = [dict(map(tuple, line)) for line in curve.lines.values()]
        cells = [number(y[x], "") if x in y else "" for y in values]
        found.append([number(x, ""), *cells])

    widths = " ".join(["20"] * (len(curve.lines) + 1))
    return f"{curve.y}:\n\n" + table(widths, [curve.x, *curve.lines], found)


def picture(key: str, text: str) -> str:
    """Return a picture of the page"""
    return f".. image:: performance-{key}.svg\n   :alt: {text}\n"


# The pictures


def latencies(rows: Iterable[Row]) -> list[Row]:
    """Return the rows whose contenders have a median and a p99 in seconds"""
    found = (
        replace(
            row,
            samples=[
                x for x in row.samples if x.unit == "s" and x.p99 is not None
            ],
        )
        for row in rows
    )
    return [row for row in found if row.samples]


def draw(report: Report, place: Path) -> None:
    """Draw the pictures, as SVG

    :param report: what was measured
    :param place: the directory
    """
    rows = latencies(report.rows)
    if rows:
        save(latency_of(rows), place, LATENCY)

    for curve in report.curves:
        save(figure_of(curve), place, curve.key)


def save(figure: Any, place: Path, key: str) -> None:
    """Write a picture: the same one is the same file"""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "performance", "svg.fonttype": "none"}):
        figure.savefig(
            place / f"performance-{key}.svg", metadata={"Date": None}
        )


def latency_of(rows: list[Row]) -> Any:
    """Return the picture of medians and p99s"""
    from matplotlib.figure import Figure

    count = sum(len(row.samples) + 1 for row in rows)
    figure = Figure(figsize=(8, 0.22 * count + 0.8), layout="constrained")
    axes = figure.subplots()
    ticks, labels, y = [], [], 0
    for row in rows:
        y -= 1
        ticks.append(y)
        labels.append(row.what)
        for sample in row.samples:
            y -= 1
            ticks.append(y)
            labels.append(sample.name)
            low, high = 1e3 * sample.median, 1e3 * (sample.p99 or 0.0)
            color = "C0" if sample.name.startswith("ours") else "C7"
            axes.plot([low, high], [y, y], color=color, linewidth=1)
            axes.plot([low], [y], "o", color=color, markersize=5)
            axes.plot([high], [y], "|", color=color, markersize=8)

    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("ms: the dot is the median, the end is the p99")
    axes.grid(axis="x", linewidth=0.3)
    return figure


def figure_of(curve: Curve) -> Any:
    """Return the picture of a curve"""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, line in curve.lines.items():
        axes.plot(*zip(*line, strict=True), "o-", label=name, markersize=4)

    if "x" in curve.log:
        axes.set_xscale("log")
        xs = sorted({x for line in curve.lines.values() for x, _ in line})
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.set_xticks([], minor=True)

    if "y" in curve.log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)

    axes.set_xlabel(curve.x)
    axes.set_ylabel(curve.y)
    axes.grid(linewidth=0.3)
    axes.legend()
    return figure


def publish(report: Report) -> None:
    """Write the JSON, the page and the pictures

    :param report: what was measured
    """
    report.write(JSON)
    # What is in the JSON, and no digit more.
    report = Report.read(JSON)
    PAGE.write_text(page(report), encoding="utf-8")
    draw(report, PLACE)


if __name__ == "__main__":
    publish(Report.read(JSON))
