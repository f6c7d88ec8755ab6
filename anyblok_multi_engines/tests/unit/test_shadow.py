# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the shadow mode sums up, and the files: no server."""

import json
import os
from io import StringIO

import pytest
from rich.console import Console

from anyblok_multi_engines.console import tables
from anyblok_multi_engines.console.report import merged, seen_in
from anyblok_multi_engines.routing.need import READ
from anyblok_multi_engines.routing.sql import need_of_sql
from anyblok_multi_engines.routing.statements import Catalogue
from anyblok_multi_engines.routing.transaction import NOWHERE
from anyblok_multi_engines.shadow import files
from anyblok_multi_engines.shadow.record import (
    MAX_LENGTH,
    MAX_ROWS,
    Record,
    Table,
    Unit,
    range_of,
    reason_without_values,
    without_values,
)


def record(**values):
    """Return a record in which each table has rows"""
    found = Record("library", ("replica1",), 1000.0, 1060.0, **values)
    found.units.add(("replica",), 3)
    found.units.add(("moved",), 1)
    found.statements.add(("replica", "usable_replica", "read"), 4)
    found.statements.add(("primary", "already_on_primary", "read"), 1)
    found.statements.add(("nowhere", "write_on_replicas", "other"), 2)
    found.writers.add(("Model.Book", "app.py:3"), 1, 1)
    found.unproven.add(("unproven", "why", "select f ()", "app.py:7"), 2)
    found.ages.add(("0.1",), 1)
    return found


class TestTable:
    def test_is_bounded(self):
        table = Table()
        for number in range(MAX_ROWS + 50):
            table.add((f"line {number}", "x"), 1, 2)

        assert len(table) == MAX_ROWS + 1
        assert table["others", "others"] == [50, 100]
        table.add(("line 0", "x"), 1, 2)
        assert table["line 0", "x"] == [2, 4]

    def test_sum_of_two_is_bounded(self):
        one, other = Table(), Table()
        for number in range(MAX_ROWS):
            one.add((f"one {number}",), 1)
            other.add((f"other {number}",), 1)

        one.add_all(other)
        assert len(one) == MAX_ROWS + 1
        assert one.total() == 2 * MAX_ROWS

    def test_most_come_first(self):
        table = Table()
        table.add(("a",), 1)
        table.add(("b",), 5)
        assert [key for key, _ in table.sorted(0)] == [("b",), ("a",)]


class TestRecord:
    def test_is_the_same_from_its_file(self):
        found = json.loads(json.dumps(record(fresher=2).as_json()))
        assert Record.from_json(found) == record(fresher=2)

    def test_is_added_up(self):
        (found,) = merged([record(), record(unjudged=1)])
        assert found.processes == 2
        assert found.units.total() == 8
        assert found.unjudged == 1
        assert found.share == 8 / 10
        assert found.errors == 4

    def test_without_reads_has_no_share(self):
        assert Record("library").share is None
        assert "would take no" in str(Record("library"))

    def test_report_shows_each_table(self, tmp_path):
        files.write(tmp_path / "one.shadow.json", record(fresher=1))
        (tmp_path / "two.shadow.json").write_text("[]")
        console = Console(width=120, record=True, file=StringIO())
        console.print(tables.of_shadow(seen_in(tmp_path, None)))

        shown = console.export_text()
        for words in (
            "reads: 5, of which replicas would take 80.0%",
            "would have been an error: 2",
            "too far behind, as the monitor has measured: 1",
            "Model.Book",
            "app.py:3",
            "select f ()",
            "0.1 s",
            "two.shadow.json",
        ):
            assert words in shown


class TestUnit:
    def test_bare_units_of_work_count_for_nothing(self):
        found = Record("library")
        Unit(NOWHERE).add_to(found)
        assert found == Record("library")

    def test_that_could_not_be_judged_counts_as_such(self):
        found, unit = Record("library"), Unit(NOWHERE)
        unit.count("primary", "not_a_read", "other", 1)
        unit.is_judged = False
        unit.add_to(found)
        assert found == Record("library", unjudged=1)

    def test_is_bounded(self):
        unit = Unit(NOWHERE)
        for number in range(MAX_ROWS + 5):
            unit.note_writer("Model.Book", f"app.py:{number}")

        assert len(unit.writers) == MAX_ROWS + 1


class TestFiles:
    def test_oldest_are_removed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "MAX_FILES", 2)
        for number in range(4):
            path = tmp_path / f"{number}.shadow.json"
            files.write(path, record())
            os.utime(path, (number, number))

        assert sorted(x.name for x in tmp_path.iterdir()) == [
            "2.shadow.json",
            "3.shadow.json",
        ]

    @pytest.mark.parametrize(
        "content", ["", "[]", "{}", '{"version": 99}', "\0", '{"version": 1}']
    )
    def test_what_is_no_record_is_left_out(self, tmp_path, content):
        path = tmp_path / "x.shadow.json"
        path.write_text(content)
        assert list(files.read_all(tmp_path, None)) == [(path, None)]

    def test_default_directory_is_refused_to_others(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(files, "default_directory", lambda: tmp_path)
        monkeypatch.setattr(files.os, "getuid", lambda: 424242)
        with pytest.raises(PermissionError, match="another user's"):
            files.write(tmp_path / "x.shadow.json", record())


class TestValues:
    @pytest.mark.parametrize(
        ("sql", "expected"),
        [
            (
                "SELECT a.b, 'it''s' FROM a /* x */ WHERE c=$1 AND d = 0x1F",
                "select a.b, ? from a where c = $1 and d = ?",
            ),
            ("select $q$secret$q$, E'a\\'b', 1.5e3", "select ?, ?, ?"),
            ("select 'no end", "a text that can't be read"),
        ],
    )
    def test_are_left_out_of_a_text(self, sql, expected):
        assert without_values(sql) == expected

    def test_long_text_is_cut(self):
        sql = f"select {', '.join(f'c{n}' for n in range(1000))}"
        assert len(without_values(sql)) == MAX_LENGTH

    @pytest.mark.parametrize(
        "sql", ["select 'secret' 'secret' +", "select 1 'secret", "'secret'"]
    )
    def test_are_left_out_of_a_reason(self, sql):
        need = need_of_sql(sql, Catalogue())
        assert need != READ
        assert "secret" not in reason_without_values(need.because)

    def test_reason_is_kept(self):
        because = "no statement: a bare connection"
        assert reason_without_values(because) == because
        because = "can't be compiled: CompileError: of 'secret'"
        assert reason_without_values(because) == (
            "can't be compiled: CompileError"
        )


@pytest.mark.parametrize(
    ("age", "expected"), [(0.0, "0.01"), (0.01, "0.1"), (9.0, "10"), (99, "")]
)
def test_range_of_an_age(age, expected):
    assert range_of(age) == expected
