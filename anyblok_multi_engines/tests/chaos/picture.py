# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The timeline of a run: who served, how long it took, what was broken."""

from collections import Counter
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .report import Result, seconds
from .worker import Outcome

#: Seconds
BIN = 0.25


def draw(result: Result, path: Path) -> None:
    """Draw a run as a PNG

    :param result: of the run
    :param path: of the picture
    """
    figure = Figure(figsize=(16, 10), layout="constrained")
    served, took, broken = figure.subplots(
        3, sharex=True, height_ratios=[3, 3, 2]
    )
    figure.suptitle(f"seed {result.seed}")
    draw_reads(result, served)
    draw_latency(result, took)
    draw_faults(result, broken)
    for at in result.promotions:
        for axes in (served, took, broken):
            axes.axvline(since(result, at), color="black", linestyle=":")

    figure.savefig(path, dpi=100)


def since(result: Result, when: int) -> float:
    """Return a time as seconds from the beginning"""
    return (when - result.begun) / 1e9


def draw_reads(result: Result, axes: Any) -> None:
    """Draw the reads per second of each server"""
    bins: dict[str, Counter[int]] = {}
    for unit in result.history:
        for read in unit.reads:
            number = int(since(result, read.returned) / BIN)
            bins.setdefault(read.server, Counter())[number] += 1

    numbers = range(int(since(result, result.ended) / BIN) + 1)
    for server, counts in sorted(bins.items()):
        axes.step(
            [x * BIN for x in numbers],
            [counts[x] / BIN for x in numbers],
            where="post",
            label=server,
        )

    axes.set_ylabel("reads per second")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4)


def draw_latency(result: Result, axes: Any) -> None:
    """Draw how long each unit of work took, and which ones failed"""
    failed = [x for x in result.reads if x.outcome is not Outcome.DONE]
    lost = [x for x in result.writes if x.outcome is not Outcome.DONE]
    for label, marker, size, done in (
        ("read-only", ".", 4, result.reads),
        ("writing", ".", 4, result.writes),
        ("failed, writing", "x", 16, lost),
        ("failed, read-only", "X", 40, failed),
    ):
        axes.scatter(
            [since(result, x.ended) for x in done],
            [seconds(x) for x in done],
            s=size,
            marker=marker,
            label=f"{label} ({len(done):,})",
        )

    axes.set_yscale("log")
    axes.set_ylabel("seconds of a unit of work")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4)


def draw_faults(result: Result, axes: Any) -> None:
    """Draw each fault as a span of its server"""
    servers = sorted({x.server for x in result.spans})
    for span in result.spans:
        begun, ended = since(result, span.begun), since(result, span.ended)
        row = servers.index(span.server)
        axes.barh(row, ended - begun, left=begun, height=0.9, alpha=0.4)
        axes.text(begun, row, span.kind, fontsize=7, rotation=60, va="center")

    axes.set_yticks(range(len(servers)), servers)
    axes.set_xlabel("seconds")
