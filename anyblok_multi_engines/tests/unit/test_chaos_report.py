# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Each bar of the chaos test can be missed."""

import pytest

from anyblok_multi_engines.testing.history import Read, Unit, Version, Write
from anyblok_multi_engines.tests.chaos.faults import NO_SERVER, SIGSTOP, Span
from anyblok_multi_engines.tests.chaos.report import Result
from anyblok_multi_engines.tests.chaos.worker import Outcome, Report, Work

S = 10**9


def work(begun, ended, mark=None, outcome=Outcome.DONE):
    return Work(begun * S, ended * S, mark, outcome, "", [])


def unit(number, *steps):
    return Unit(0, 1, number * S, (number + 1) * S, (number + 1) * S, steps)


def write(at, number):
    return Write(at * S, at * S, 1, Version(number, f"v{number}"))


def read(at, number):
    rows = {1: Version(number, f"v{number}" if number else "new")}
    return Read(at * S, at * S, "replica1", rows)


def missed(done, found=None, history=(), versions=None, **values):
    result = Result(
        **{
            "seed": "",
            "begun": 0,
            "ended": 100 * S,
            "report": Report(done=done, beats=[(0, S)]),
            "history": list(history),
            "found": found or {},
            "versions": versions or {},
            "spans": [],
            "promotions": [],
            "hang": 4.0,
            **values,
        }
    )
    assert str(result)
    return result.missed


def test_nothing_is_missed():
    done = [work(1, 2), work(2, 3, "a"), work(3, 4, "b", Outcome.UNKNOWN)]
    history = [unit(2, write(2, 1), read(2, 1))]
    assert missed(done, {"a": 1}, history, {1: 1}) == {}
    assert missed(done, {"a": 1, "b": 1}, history, {1: 1}) == {}


@pytest.mark.parametrize(
    ("mark", "outcome", "found", "bar"),
    [
        (None, Outcome.FAILED, {}, "failed reads"),
        ("a", Outcome.DONE, {}, "lost"),
        ("a", Outcome.DONE, {"a": 2}, "duplicated"),
        ("a", Outcome.UNKNOWN, {"a": 2}, "duplicated"),
        ("a", Outcome.FAILED, {"a": 1}, "undone"),
    ],
)
def test_outcome_that_misses_a_bar(mark, outcome, found, bar):
    assert missed([work(1, 2, mark, outcome)], found) == {bar: "1"}


@pytest.mark.parametrize("count", [0, 2])
def test_row_that_was_not_counted_up_once_for_each_write(count):
    history = [unit(2, write(2, 1))]
    assert missed([], {}, history, {1: count}) == {"miscounted": "1"}


def test_read_of_before_its_sessions_write():
    history = [unit(2, write(2, 1)), unit(4, read(4, 0))]
    assert missed([], {}, history, {1: 1}) == {"stale": "1"}


def test_read_may_fail_where_there_is_no_server():
    failed = work(1, 3, outcome=Outcome.FAILED)
    assert missed([failed], spans=[Span(NO_SERVER, "all", 2 * S, 3 * S)]) == {}
    late = [Span(NO_SERVER, "all", 3 * S, 4 * S)]
    assert missed([failed], spans=late) == {"failed reads": "1"}


@pytest.mark.parametrize("server", ["primary", "replica1"])
def test_read_waits_for_a_frozen_server_as_long_as_allowed(server):
    spans = [Span(SIGSTOP, server, 2 * S, 9 * S)]
    # And as long as the machine itself has stalled.
    assert missed([work(3, 8)], spans=spans) == {}
    assert missed([work(3, 9)], spans=spans) == {"hang": "6.00 s"}
    assert missed([work(9, 19)], spans=spans) == {}


@pytest.mark.parametrize("mark", ["a", None])
def test_write_comes_soon_after_a_promotion(mark):
    done = [work(1, 2, "b"), work(3, 4), work(5, 6, mark)]
    found = {"a": 1, "b": 1}
    expected = {} if mark else {"first write": "999.00 s"}
    in_time = missed(done, found, promotions=[3 * S])
    assert in_time.keys() == expected.keys()
    assert "first write" in missed(done, found, promotions=[2 * S])
