# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What is told of an application's lines: on plain values."""

from dataclasses import replace

import pytest

from anyblok_multi_engines.testing.callers import Callers
from anyblok_multi_engines.testing.findings import (
    ADVICE,
    Finding,
    Findings,
    Kind,
    Line,
    difference,
    is_same,
    plain,
)

LINE = Line("/shop/stock.py", 22, "Stock.buy")
FINDING = Finding(
    Kind.DECIDES,
    LINE,
    "SELECT 1",
    "rows: 1 on the primary, 0 on a replica that is late",
    then=replace(LINE, number=24),
    tests=["test_a"],
)


def test_rows_are_the_same_in_any_order():
    assert is_same([(1, "a"), (2, "b")], [(2, "b"), (1, "a")])
    assert not is_same([(1,), (1,), (2,)], [(1,), (2,), (2,)])
    assert is_same(plain([[memoryview(b"x")]]), plain([[memoryview(b"x")]]))


def test_difference_names_the_columns_that_differ():
    told = difference(["id", "left"], [(1, 3), (2, 5)], [(2, 5), (1, 4)])
    assert told == "left: 3 on the primary, 4 on a replica that is late"


def test_one_finding_per_line_with_all_its_tests():
    findings = Findings()
    for test in ("test_a", "test_b", "test_a"):
        findings.add(replace(FINDING, tests=[test]))

    told = list(findings.report("/shop"))
    assert told[0] == "stock.py:22: a write after a late read, in Stock.buy()"
    assert "    then writes at stock.py:24" in told
    assert "    seen in test_a and 1 more" in told
    assert told[-1].endswith(ADVICE[Kind.DECIDES])


def test_worker_sends_all_it_has_found():
    findings, others = Findings(), Findings()
    findings.add(FINDING)
    findings.reads["replica"] += 2
    others.load(findings.dump())
    assert list(others) == [FINDING]
    assert others.reads == {"replica": 2}


def test_accepted_line_is_no_finding(tmp_path):
    path = tmp_path / "stock.py"
    path.write_text("read()  # anyblok-replicas: ok\nread()\n")
    findings = Findings()
    for number in (1, 2):
        line = Line(str(path), number, "buy")
        findings.add(replace(FINDING, line=line))

    assert [x.line.number for x in findings] == [2]


@pytest.mark.parametrize(
    ("path", "is_test"),
    [
        ("/tests/shop/stock.py", False),
        ("/tests/shop/test_stock.py", True),
        ("/tests/shop/stock_test.py", False),
        ("/tests/shop/tests/helper.py", True),
        ("/tests/shop/conftest.py", True),
        ("/lib/site-packages/shop/stock.py", False),
        ("/lib/site-packages/shop/tests/helper.py", True),
        ("/elsewhere/stock.py", False),
    ],
)
def test_tests_are_told_from_the_application(path, is_test):
    """The directory above the project says nothing"""
    callers = Callers("/tests/shop", ["test_*.py"])
    assert callers.is_test_file(path) is is_test
