# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a person sees: tables of rich, plain lines where there's no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import Box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..shadow.record import AGES, READ

if TYPE_CHECKING:
    from ..shadow.record import Record
    from .check import Checked
    from .explain import Explained, Explanation
    from .report import Seen
    from .status import Report, ServerState

# Of a report, rows per table; --json has them all.
ROWS = 20

# Columns that the tables need.
WIDTH = 100

# A line under the header, of a character that every terminal has.
HEAD = Box("\n".join(["    ", "    ", " -- ", *["    "] * 5, ""]), ascii=True)

STYLES = {
    # of a server
    "ready": "green",
    "unknown": "yellow",
    "lagging": "yellow",
    "wrong": "red",
    "down": "red",
    # of all servers
    "usable": "green",
    "degraded": "yellow",
    "unusable": "red",
    # of a finding
    "ok": "green",
    "warning": "yellow",
    "error": "red",
}

UNITS = ("B", "kB", "MB", "GB", "TB")


def console() -> Console:
    """Return the terminal, or a file that gets the same without colours"""
    found = Console(highlight=False)
    if not found.is_terminal:
        found.width = max(found.width, WIDTH)

    return found


@contextmanager
def live(console: Console) -> Iterator[Callable[[RenderableType], None]]:
    """Give what shows one thing in the place of the one before

    :param console: a terminal
    """
    with Live(console=console, auto_refresh=False) as display:
        yield lambda what: display.update(what, refresh=True)


def of_status(report: Report) -> RenderableType:
    """Return the table of the servers

    :param report: what a look at them has shown
    """
    table = _table(
        "server",
        "role",
        "status",
        *("lag>", "position>", "latency>", "reads>", "clients>", "pool>"),
        wrapped=["lag>", "clients>"],
    )
    for state in report.servers:
        table.add_row(
            Text(state.name),
            Text(state.role),
            _styled(state.status),
            *map(Text, _numbers(state)),
        )

    reasons = [
        Text.assemble((x.name, "bold"), f" ({x.place}): {x.reason}")
        for x in report.servers
        if x.status != "ready"
    ]
    usability = _styled(str(report.usability)).append(f": {report.summary}")
    return Group(table, *reasons, usability)


def of_check(checked: Checked) -> RenderableType:
    """Return the table of what was found

    :param checked: the findings
    """
    table = _table("", "check", "about", "found", wrapped=["found"])
    for finding in checked.findings:
        found = Text(finding.text)
        if finding.advice:
            found.append(f"\n-> {finding.advice}", "bold")

        table.add_row(
            _styled(str(finding.severity)),
            Text(finding.check),
            Text("\n".join(finding.about)),
            found,
        )

    summary = _styled(str(checked.severity)).append(f": {checked.summary}")
    return Group(table, summary)


def of_explanation(explained: Explained) -> RenderableType:
    """Return where statements go: a few words for one, a table for many

    :param explained: the statements
    """
    assumed = [Text(f"assumed: {x}", "yellow") for x in explained.assumed]
    if len(explained.explanations) == 1:
        return Group(*_lines(explained.explanations[0]), *assumed)

    table = _table(
        *("#>", "server", "reason", "because", "statement"),
        wrapped=["server", "because", "statement"],
    )
    for number, one in enumerate(explained.explanations, start=1):
        table.add_row(
            Text(str(number)),
            Text(one.where),
            Text(str(one.reason)),
            Text(one.because or "-"),
            Text(_shortened(one.statement)),
        )

    return Group(table, *assumed, Text(explained.summary))


def of_shadow(seen: Seen) -> RenderableType:
    """Return what the shadow mode has seen: of each table the first rows

    :param seen: what the processes have written
    """
    parts = [part for record in seen.records for part in _of_record(record)]
    unread = [
        Text(f"can't be read, and left out: {name}", "yellow")
        for name in seen.unread
    ]
    return Group(*parts, *unread)


def _of_record(record: Record) -> Iterator[RenderableType]:
    """Yield the parts of the report on a database"""
    since, until = map(datetime.fromtimestamp, (record.since, record.until))
    yield Text.assemble(
        (record.database, "bold"),
        f": {record.processes} process{'es' * (record.processes > 1)}, "
        f"{since:%Y-%m-%d %H:%M:%S} to {until:%Y-%m-%d %H:%M:%S}",
    )
    yield Text("\n".join(record.summary()) + "\n")
    table = _table("statements>", "would go to", "reason", "", wrapped=[])
    for (where, reason, kind), (number,) in record.statements.sorted(0):
        told = "" if kind == READ else "not a read"
        table.add_row(*map(Text, (str(number), where, reason, told)))

    yield table
    yield from _of_writers(record)
    yield from _of_unproven(record)
    yield from _of_ages(record)


def _of_writers(record: Record) -> Iterator[RenderableType]:
    if not record.writers:
        return

    yield Text("\nUnits of work that only read, but for one line:", "bold")
    table = _table(
        *("units of work>", "reads kept>", "what it does", "line"),
        wrapped=["what it does", "line"],
    )
    rows = record.writers.sorted(0, 1)
    for (what, place), (units, reads) in rows[:ROWS]:
        table.add_row(str(units), str(reads), Text(what), Text(_near(place)))

    yield table
    yield from _left_out(rows)


def _of_unproven(record: Record) -> Iterator[RenderableType]:
    if not record.unproven:
        return

    yield Text("\nNot proven to be reads, and so the primary's:", "bold")
    table = _table(
        *("times>", "kind", "because", "line", "text"),
        wrapped=["because", "line", "text"],
    )
    rows = record.unproven.sorted(0)
    for (kind, because, sql, place), (number,) in rows[:ROWS]:
        table.add_row(
            str(number),
            Text(kind),
            Text(because),
            Text(_near(place)),
            Text(_shortened(sql)),
        )

    yield table
    yield from _left_out(rows)


def _of_ages(record: Record) -> Iterator[RenderableType]:
    if not record.ages:
        return

    yield Text(
        "\nUnits of work that begin to read soon after a write of their own "
        "session:",
        "bold",
    )
    table = _table("within>", "units of work>", "of all>", wrapped=[])
    sofar, total = 0, record.units.total()
    for end in AGES:
        sofar += record.ages.total(f"{end:g}")
        table.add_row(f"{end:g} s", str(sofar), f"{sofar / total:.1%}")

    yield table


def _left_out(rows: Sequence[object]) -> Iterator[Text]:
    if len(rows) > ROWS:
        yield Text(f"and {len(rows) - ROWS} more: --json")


def _near(place: str) -> str:
    """Return a place as it is seen from the current directory"""
    return place.removeprefix(f"{Path.cwd()}/")


def size_of(number: int) -> str:
    """Return a number of bytes for a person

    :param number: of bytes
    """
    size, unit = float(number), 0
    while size >= 1000 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1

    return f"{size:.1f} {UNITS[unit]}" if unit else f"{number} {UNITS[0]}"


def _lines(one: Explanation) -> Iterator[Text]:
    for word, value in (
        ("server", one.where),
        ("reason", f"{one.reason}: {one.meaning}"),
        ("because", one.because),
    ):
        if value:
            yield Text.assemble((f"{word:8} ", "bold"), value)


def _shortened(statement: str, length: int = 60) -> str:
    line = " ".join(statement.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


def _numbers(state: ServerState) -> Iterable[str]:
    """Return the cells of a server, a dash where nothing is known"""
    yield _lag(state)
    yield state.position or "-"
    yield "-" if state.latency is None else f"{state.latency * 1000:.1f} ms"
    yield f"{state.share:.0%}"
    if state.connections is None:
        yield "-"
    else:
        yield f"{state.connections} of {state.max_connections}"

    yield "-" if state.pool is None else str(state.pool)


def _lag(state: ServerState) -> str:
    if state.lag_bytes is None:
        is_primary = state.role == "primary" or state.status == "down"
        return "-" if is_primary else "unknown"

    if not state.lag_bytes:
        return "none"

    return f"{size_of(state.lag_bytes)}, {state.lag_seconds or 0.0:.1f} s"


def _styled(word: str) -> Text:
    return Text(word, STYLES[word])


def _table(*columns: str, wrapped: Sequence[str]) -> Table:
    """Return an empty table

    :param columns: their names; ``>`` behind one of numbers
    :param wrapped: those of them whose cells may be long
    """
    table = Table(
        box=HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in columns:
        table.add_column(
            name.removesuffix(">"),
            justify="right" if name.endswith(">") else "left",
            no_wrap=name not in wrapped,
            overflow="fold" if name in wrapped else "ellipsis",
        )

    return table
