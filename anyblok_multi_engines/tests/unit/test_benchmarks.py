# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The benchmarks' verdict, and that the page is what their JSON says."""

from dataclasses import replace

import pytest

pytest.importorskip("benchmarks", reason="an installed package has none")

from benchmarks import report
from benchmarks.__main__ import LOOKS, SUBJECTS, measured
from benchmarks.method import (
    SLACK,
    Curve,
    LeftOut,
    Measured,
    Plan,
    Row,
    Sample,
    in_turns,
    judged,
    missed,
)

RATIO = Row("a", "A thing", 1.0, bar=1.0, samples=[])


@pytest.mark.parametrize(
    ("better", "value", "passes", "passes_quick"),
    [
        ("lower", 2.0, True, True),
        ("lower", 2.01, False, True),
        ("lower", 2.51, False, False),
        ("higher", 2.0, True, True),
        ("higher", 1.99, False, True),
        ("higher", 1.59, False, False),
    ],
)
def test_worse_value_fails(better, value, passes, passes_quick):
    row = replace(RATIO, bar=2.0, value=value, better=better)
    assert missed([row]) == ([] if passes else [row])
    assert missed([row], SLACK) == ([] if passes_quick else [row])


def test_bar_of_zero_has_no_slack():
    row = replace(RATIO, bar=0.0, value=1.0)
    assert missed([row], SLACK) == [row]


def test_row_without_a_bar_fails_never():
    assert not missed([replace(RATIO, bar=None, value=1000.0)])


@pytest.mark.parametrize(
    ("better", "published", "value", "passes"),
    [
        # The published value meets the bar of 2: the bar counts.
        ("lower", 1.0, 2.5, True),
        ("lower", 1.0, 2.51, False),
        ("higher", 4.0, 1.6, True),
        ("higher", 4.0, 1.59, False),
        # It misses it: the value counts.
        ("lower", 4.0, 5.0, True),
        ("lower", 4.0, 5.01, False),
        ("higher", 1.0, 0.8, True),
        ("higher", 1.0, 0.79, False),
        # Nothing is published: the bar.
        ("lower", None, 2.5, True),
        ("lower", None, 2.51, False),
        ("higher", None, 1.59, False),
    ],
)
def test_known_miss_must_not_get_worse(better, published, value, passes):
    row = replace(RATIO, bar=2.0, value=value, better=better)
    known = {"other": replace(row, key="other", value=100.0)}
    if published is not None:
        known["a"] = replace(row, value=published)

    assert bool(missed(judged([row], known), SLACK)) is not passes


def test_published_value_is_judged_by_the_bar_of_today():
    known = {"a": replace(RATIO, bar=9.0, value=4.0)}
    (row,) = judged([replace(RATIO, bar=2.0)], known)
    assert row.bar == 4.0


def test_row_without_a_bar_gets_none():
    row = replace(RATIO, bar=None)
    assert judged([row], {"a": RATIO}) == [row]


def test_quick_run_does_not_look_again_at_a_known_miss(monkeypatch):
    class Bench:
        quick = True

    left = [2.0, 1.0]
    monkeypatch.setitem(
        SUBJECTS, "a", lambda bench: [replace(RATIO, value=left.pop(0))]
    )
    measured(Bench(), "a", {"a": replace(RATIO, value=2.0)})
    assert left == [1.0]


def test_ratio_is_the_median_of_the_rounds():
    rounds = [{"a": [x, x, 9.0], "b": [2.0, 2.0]} for x in (1.0, 4.0, 3.0)]
    row = Measured(rounds).row("key", "what", ("a", "b"), bar=1.0)
    assert (row.value, row.low, row.high) == (1.5, 0.5, 2.0)
    assert row.samples == [Sample("a", 4.0), Sample("b", 2.0)]


def test_contenders_work_in_turns():
    order = []

    def work(name):
        return lambda number: order.append(name) or [1.0] * number

    measured = in_turns({x: work(x) for x in "ab"}, Plan(3, turns=3, rounds=1))
    assert "".join(order) == "ab" + "abbaab"
    assert {x: len(y) for x, y in measured.rounds[0].items()} == {
        "a": 9,
        "b": 9,
    }


@pytest.mark.parametrize(
    ("values", "looks"), [([1.0], 1), ([2.0, 1.0], 2), ([2.0] * 3, 3)]
)
def test_quick_run_looks_again_before_it_fails(monkeypatch, values, looks):
    class Bench:
        quick = True

    left = list(values)
    monkeypatch.setitem(
        SUBJECTS, "a", lambda bench: [replace(RATIO, value=left.pop(0))]
    )
    (row,) = measured(Bench(), "a", {})
    assert (row.value, len(values) - len(left)) == (values[-1], looks)
    assert looks <= LOOKS


@pytest.fixture
def known():
    return report.Report(
        {"cores": "2"},
        [
            replace(RATIO, value=1.5, samples=[Sample("ours", 0.5, 0.75)]),
            replace(RATIO, key="b", what="Another", low=0.25, high=1.0),
        ],
        [Curve("c", "It grows", "replicas", "reads", {"ours": [[1, 2.0]]})],
        [LeftOut("other", "It isn't there.")],
    )


def test_report_is_read_as_it_was_written(tmp_path, known):
    path = tmp_path / "report.json"
    known.write(path)
    assert report.Report.read(path) == known


def test_new_result_takes_the_place_of_the_old_one(known):
    newer = replace(RATIO, value=0.5)
    known.add([newer, replace(RATIO, key="c")])
    assert [x.key for x in known.rows] == ["a", "b", "c"]
    assert known.rows[0] == newer


def test_page_shows_what_is_missed(known):
    text = report.page(known)
    assert "**1.5**" in text
    assert "**1**" not in text
    assert "0.25 to 1" in text
    assert "Left out: other. It isn't there." in text


def test_same_report_draws_the_same_pictures(tmp_path, known):
    drawn = []
    for name in "ab":
        place = tmp_path / name
        place.mkdir()
        report.draw(known, place)
        drawn.append({x.name: x.read_bytes() for x in place.iterdir()})

    assert drawn[0] == drawn[1]
    assert drawn[0].keys() == {"performance-latency.svg", "performance-c.svg"}


class TestPage:
    """Of the documentation"""

    @pytest.fixture
    def published(self):
        return report.Report.read(report.JSON)

    def test_is_made_from_the_json(self, published):
        assert report.PAGE.read_text(encoding="utf-8") == report.page(published)

    def test_has_its_pictures(self, published):
        expected = {f"performance-{x.key}.svg" for x in published.curves}
        if report.latencies(published.rows):
            expected.add("performance-latency.svg")

        found = {x.name for x in report.PLACE.glob("performance-*.svg")}
        assert found == expected
