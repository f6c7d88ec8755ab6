# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the demonstration shows: plain lines where there is no terminal."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .results import SERVERS, Fact, Results, Row

# Columns of all that is shown.
WIDTH = 80
# What is said of a step stands under it.
INDENT = " " * 9

# A line under the header, of a character that every terminal has.
HEAD = Box("\n".join(["    ", "    ", " -- ", *["    "] * 5, ""]), ascii=True)

TITLE = "Who served what: every answer carries the port of its server"
LAG = """\
Old reads: none, because a session reads what it has committed only from a \
replica that has it, or from the primary (--db-ro-consistency session, the \
default). The paused replica still serves sessions that have seen no more.\
"""
DEATH = """\
A death: here replica2 was killed between two units of work. In the middle of \
one that reads from it, the other one takes it over, or the primary.\
"""
NEXT = """\
Next: README.rst tells how to add this to a project of yours; the \
documentation is in doc/ (make doc).\
"""


class Screen:
    """A terminal, or a file that gets the same without colours

    :param console: of rich; None: standard output
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        # The table needs it.
        self._console.width = max(self._console.width, WIDTH)

    @contextmanager
    def step(self, doing: str) -> Iterator[None]:
        """Show that something goes on, and then how long it took

        :param doing: what goes on
        """
        begun = time.monotonic()
        # A spinner on a terminal, nothing elsewhere.
        with self._console.status(f"{doing}...", spinner="line"):
            yield

        seconds = time.monotonic() - begun
        self._print(Text.assemble((f"{seconds:5.1f} s  ", "dim"), doing))

    def note(self, text: str) -> None:
        """Show more about a step that is done

        :param text: a sentence
        """
        self._wrapped(INDENT, text, "dim")

    def command(self, words: Sequence[str]) -> None:
        """Show a command that is about to be run, for a shell

        :param words: its name and its arguments
        """
        lines = [f"$ {words[0]}"]
        for word in words[1:]:
            if word.startswith("--"):
                lines.append(f"    {word}")
            elif len(lines[-1]) + len(word) > 74:
                lines.append(f"        {word}")
            else:
                lines[-1] += f" {word}"

        self._print(Text(" \\\n".join(lines), "cyan"))

    def log(self, lines: Iterable[str]) -> None:
        """Show what the application has logged

        :param lines: of its log
        """
        for line in lines:
            self._wrapped(INDENT, line, "yellow")

    def results(self, results: Results, facts: Iterable[Fact]) -> None:
        """Show the table, and what it says

        :param results: of the whole story
        :param facts: that were checked
        """
        self._print()
        self._print(Text(TITLE, "bold"))
        self._print()
        self._print(_table(results.rows))
        self._print()
        for row in results.rows:
            for error in row.errors[:1]:
                self._wrapped(f"{row.situation}: ", error, "red")

        for fact in facts:
            if fact.holds:
                self._wrapped("   ok  ", fact.text, "green")
            else:
                self._wrapped("WRONG  ", fact.text, "bold red")

        self._print()
        for text in (LAG, DEATH, NEXT):
            self._wrapped("", text)

    def _wrapped(self, first: str, text: str, style: str = "") -> None:
        """Print a text beside the beginning of its first line"""
        lines = textwrap.wrap(
            text,
            width=WIDTH,
            initial_indent=first,
            subsequent_indent=" " * len(first),
            break_on_hyphens=False,
        )
        self._print(Text("\n".join(lines), style))

    def _print(self, *what: object) -> None:
        self._console.print(*what, highlight=False)


def _table(rows: Iterable[Row]) -> Table:
    table = Table(
        box=HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("servers", no_wrap=True)
    table.add_column("work", no_wrap=True)
    for name in (*SERVERS, "old", "failed"):
        table.add_column(name, justify="right", no_wrap=True)

    before = None
    for row in rows:
        if before not in (None, row.situation):
            table.add_section()

        shown = "" if row.situation == before else row.situation
        table.add_row(shown, f"{row.times} {row.work}", *_numbers(row))
        before = row.situation

    return table


def _numbers(row: Row) -> list[str]:
    """Return the cells of a row, a dash where there is nothing to see"""
    served = [row.served[name] for name in SERVERS]
    numbers = [*served, row.old.total(), len(row.errors)]
    return [str(number) if number else "-" for number in numbers]
