# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The list of differences, and the table at the end."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .outcomes import Baseline, Difference, Kind, Result, Results, counts
from .suite import Run

WORDS = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
SHOWN_OF_A_KIND = 200
"""A plugin that breaks everything needs no more of them to be shown."""


@dataclass(frozen=True)
class Verdict:
    """What the suite says about the plugin on one SQLAlchemy.

    :param name: "SQLAlchemy 2.0"
    :param source: where the results without the plugin are from
    :param baseline: those, None when it came to nothing
    :param run: with the plugin, None when it came to nothing
    :param differences: between the two
    :param troubles: why there are none, or why they are not to be trusted
    """

    name: str
    source: str = ""
    baseline: Baseline | None = None
    run: Run | None = None
    differences: tuple[Difference, ...] = ()
    troubles: tuple[str, ...] = ()

    @property
    def without_results(self) -> Results:
        return self.baseline.results if self.baseline else {}

    @property
    def with_results(self) -> Results:
        return self.run.results if self.run else {}

    @property
    def seconds(self) -> str:
        return f"{self.run.seconds:.0f}" if self.run else ""

    @property
    def is_good(self) -> bool:
        """Whether everything was run, and everything good stayed so.

        Fails closed: nothing compared is nothing proved.
        """
        return (
            self.run is not None
            and bool(self.run.results)
            and self.baseline is not None
            and bool(self.baseline.results)
            and not self.troubles
            and not any(d.is_failure for d in self.differences)
        )


def show(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Print the differences, the troubles and the table."""
    for verdict in verdicts:
        for kind in Kind:
            show_kind(console, verdict, kind)
        for trouble in verdict.troubles:
            console.print(
                Text(f"{verdict.name}: {trouble}", style="bold red"),
                soft_wrap=True,
            )
    console.print(table(verdicts))
    for verdict in verdicts:
        console.print(conclusion(verdict), soft_wrap=True)


def show_kind(console: Console, verdict: Verdict, kind: Kind) -> None:
    """Print the differences of one kind, with their failures' ends."""
    found = [d for d in verdict.differences if d.kind is kind]
    for difference in found[:SHOWN_OF_A_KIND]:
        console.print(lines(verdict, difference), soft_wrap=True)
    if len(found) > SHOWN_OF_A_KIND:
        console.print(
            f"{verdict.name}: {len(found) - SHOWN_OF_A_KIND} more: {kind}"
        )


def lines(verdict: Verdict, difference: Difference) -> Text:
    """A difference as a reader needs it: which, how, why.

    :rtype: rich's Text
    """
    style = "bold red" if difference.is_failure else "yellow"
    text = Text()
    text.append(f"{difference.kind.upper()} ", style=style)
    text.append(f"{verdict.name} {difference.test}\n")
    text.append(f"    without: {word(difference.without)}")
    text.append(f"    with: {word(difference.with_plugin)}\n")
    if verdict.baseline and difference.test in verdict.baseline.unstable:
        reason = verdict.baseline.unstable[difference.test]
        text.append(f"    {reason}\n")
    if difference.with_plugin is not None:
        for line in difference.with_plugin.tail.splitlines():
            text.append(f"    | {line}\n", style="dim")
    return text


def word(result: Result | None) -> str:
    """A result in one word or a few.

    :rtype: str
    """
    return "not run" if result is None else str(result)


def table(verdicts: Sequence[Verdict]) -> Table:
    """The numbers, without and with the plugin.

    :rtype: rich's Table
    """
    sides = [
        side
        for verdict in verdicts
        for side in (verdict.without_results, verdict.with_results)
    ]
    words = [word for word in WORDS if any(word in counts(s) for s in sides)]
    rows = Table(title="AnyBlok's own suite", box=SIMPLE_HEAD)
    rows.add_column("SQLAlchemy", no_wrap=True)
    for name in (*words, "seconds"):
        rows.add_column(name, justify="right", no_wrap=True)
    for verdict in verdicts:
        for side, results, seconds in (
            (f"without, {verdict.source}", verdict.without_results, ""),
            ("with", verdict.with_results, verdict.seconds),
        ):
            if results:
                numbers = counts(results)
                rows.add_row(
                    f"{verdict.name} {side}".removeprefix("SQLAlchemy "),
                    *(str(numbers.get(word, 0)) for word in words),
                    seconds,
                )
    return rows


def conclusion(verdict: Verdict) -> Text:
    """The last line on one SQLAlchemy.

    :rtype: rich's Text
    """
    text = Text(f"{verdict.name}: ")
    if verdict.run is None and not verdict.troubles:
        text.append("recorded, ")
        unstable = verdict.baseline.unstable if verdict.baseline else ()
        return text.append(f"{len(unstable)} unstable")
    if verdict.is_good:
        text.append("every good test is the same with the plugin", "green")
    else:
        worse = sum(d.is_failure for d in verdict.differences)
        text.append(f"FAILED, {worse} worse", "bold red")
        text.append(f", {len(verdict.troubles)} troubles")
    if verdict.run is not None:
        run = verdict.run
        text.append(
            f"; {len(verdict.differences)} differ. The plugin was in the"
            f" registry of {run.plugged} of {len(run.results)} tests; the"
            f" standby had {run.traffic.get('sessions', 0)} sessions and"
            f" {run.traffic.get('transactions', 0)} transactions"
        )
    return text
