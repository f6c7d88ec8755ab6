# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The checker of histories: what it finds, and what it doesn't."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyblok_multi_engines.testing.history import (
    PROMISES,
    Guarantee,
    Read,
    Unit,
    Version,
    Write,
    violations,
)

KEYS = ("x", "y")


def version(key, number):
    return Version(number, f"{key}{number}")


def read(server="replica1", **numbers):
    """Return a step that reads rows in these versions"""
    rows = {key: version(key, number) for key, number in numbers.items()}
    return lambda start: Read(start, start + 1, server, rows)


def write(**number):
    """Return a step that writes a row in this version"""
    ((key, number),) = number.items()
    return lambda start: Write(start, start + 1, key, version(key, number))


def told(*units):
    """Return a history of units of work, one after the other

    :param units: the session, such as ``a1`` in the process ``a``, and steps
    """
    clock = itertools.count(step=2)
    history = []
    for session, *steps in units:
        begun = next(clock)
        done = [step(next(clock)) for step in steps]
        history.append(
            Unit(session[0], session, begun, next(clock), next(clock), done)
        )

    return history


def broken(history, guarantees=Guarantee):
    """Return the guarantees that a history breaks"""
    return {x.guarantee for x in violations(history, guarantees)}


SESSION = PROMISES["session"]
X1 = ("b1", write(x=1))
Y1 = ("b1", write(y=1))
STORIES = {
    Guarantee.READ_YOUR_WRITES: ([("a1", write(x=1))], "a1"),
    Guarantee.MONOTONIC_READS: ([X1, ("a1", read(x=1))], "a1"),
    Guarantee.MONOTONIC_WRITES: ([X1, Y1, ("a1", read(y=1))], "a1"),
    Guarantee.WRITES_FOLLOW_READS: (
        [X1, ("c1", read(x=1)), ("c1", write(y=1)), ("a1", read(y=1))],
        "a1",
    ),
    Guarantee.PROCESS_WRITES: ([("a2", write(x=1))], "a1"),
    Guarantee.REAL_TIME: ([X1], "a1"),
}


@pytest.mark.parametrize("guarantee", STORIES)
def test_guarantee(guarantee):
    story, session = STORIES[guarantee]
    assert broken(told(*story, (session, read(x=1)))) == set()
    stale = told(*story, (session, read(x=0)))
    assert broken(stale, [guarantee]) == {guarantee}
    assert broken(stale, SESSION) == {guarantee} & SESSION


@pytest.mark.parametrize("guarantee", STORIES)
def test_another_session_needs_none_of_it(guarantee):
    story, _ = STORIES[guarantee]
    assert broken(told(*story, ("z1", read(x=0))), SESSION) == set()


def test_write_is_a_read_of_the_version_before():
    lost = told(("b1", write(x=1)), ("b1", write(x=2)), ("b1", write(x=2)))
    assert Guarantee.READ_YOUR_WRITES in broken(lost)


def test_what_is_seen_through_a_write_upon_a_write():
    story = [X1, ("c1", write(x=2)), ("c1", write(y=1)), ("a1", read(y=1))]
    assert broken(told(*story, ("a1", read(x=2))), SESSION) == set()
    assert broken(told(*story, ("a1", read(x=1))), SESSION) == {
        Guarantee.MONOTONIC_WRITES
    }
    assert broken(told(*story, ("a1", read(x=0))), SESSION) == {
        Guarantee.MONOTONIC_WRITES,
        Guarantee.WRITES_FOLLOW_READS,
    }


def test_time_runs_backwards_in_a_unit_of_work():
    assert broken(
        told(X1, ("a1", read(x=1), read(x=0))), PROMISES["eventual"]
    ) == {Guarantee.ONE_UNIT}
    assert not broken(
        told(X1, ("a1", read(x=1)), ("a1", read(x=0))), PROMISES["eventual"]
    )


def test_torn_unit_of_work():
    both = ("b1", write(x=1), write(y=1))
    for seen in (read(x=0, y=0), read(x=1, y=1)):
        assert broken(told(both, ("a1", seen)), SESSION) == set()

    for seen in (read(x=0, y=1), read(x=1, y=0)):
        torn = told(both, ("a1", seen))
        assert Guarantee.ONE_UNIT in broken(torn, PROMISES["eventual"])


def test_one_unit_reads_what_it_has_written():
    assert not broken(told(("a1", read(x=0), write(x=1), read(x=1))))
    assert Guarantee.ONE_UNIT in broken(told(("a1", write(x=1), read(x=0))))


@pytest.mark.parametrize(
    "story",
    [
        # Rolled back, or never written: 1 has been read and is no one's.
        [("a1", read(x=1))],
        # The first has been lost.
        [("a1", write(x=1)), ("b1", write(x=1))],
    ],
)
def test_committed(story):
    assert broken(told(*story), PROMISES["eventual"]) == {Guarantee.COMMITTED}


def test_value_of_another_write():
    (first, second) = told(X1, ("a1", read(x=1)))
    second.steps[0].rows["x"] = Version(1, "of another")
    assert broken([first, second]) == {Guarantee.COMMITTED}


@pytest.mark.parametrize("begun", [4, 5, 6, 7])
def test_real_time_counts_from_the_acknowledgement(begun):
    wrote = Unit("b", "b1", 0, 3, 5, [write(x=1)(1)])
    stale = Unit("a", "a1", begun, 10, 11, [read(x=0)(8)])
    found = broken([stale, wrote], [Guarantee.REAL_TIME])
    assert bool(found) == (begun > 5)


def test_seen_before_it_is_acknowledged():
    wrote = Unit("b", "b1", 0, 3, 100, [write(x=1)(1)])
    saw = Unit("a", "a1", 2, 10, 11, [read(x=1)(5)])
    stale = Unit("a", "a1", 12, 20, 21, [read(x=0)(15)])
    assert broken([wrote, saw, stale]) == {Guarantee.MONOTONIC_READS}


@pytest.mark.parametrize("server", ["primary", "replica1"])
@pytest.mark.parametrize("acknowledged", [14, 16])
def test_replica_may_show_a_commit_first(server, acknowledged):
    wrote = Unit("b", "b1", 0, 3, acknowledged, [write(x=1)(1)])
    saw = Unit("a", "a1", 2, 10, 11, [read(x=1)(5)])
    older = Unit("a", "a1", 12, 20, 21, [read(server, x=0)(15)])
    excused = server == "primary" and acknowledged > 15
    assert broken([wrote, saw, older]) == {
        Guarantee.REPLICA_FIRST if excused else Guarantee.MONOTONIC_READS
    }


def test_primary_shows_what_a_unit_of_work_has_written():
    blind = told(("a1", write(x=1), read("primary", x=0)))
    assert broken(blind) == {Guarantee.READ_YOUR_WRITES, Guarantee.ONE_UNIT}


def test_violation_names_the_two_operations():
    (found,) = violations(told(X1, ("a1", read(x=0))), [Guarantee.REAL_TIME])
    assert str(found).splitlines() == [
        "real_time: row x, version 1 needed",
        "  0.000000 to 0.000000: session b1 of process b wrote x@1 "
        "(unit of work 0.000000 to 0.000000)",
        "  0.000000 to 0.000000: session a1 of process a read x@0 on replica1 "
        "(unit of work 0.000000 to 0.000000)",
    ]


SESSIONS = ("a1", "a2", "b1")
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(SESSIONS),
        # What it writes, or how many writes its replica is behind.
        st.sampled_from([*KEYS, 0, 1, 2, 5]),
    ),
    max_size=30,
)


class Log:
    """A primary's log, and readers of any state of it

    :param floor_of: the function that says which state a session's read has
        at least: of the log, the session's position and the end's
    """

    def __init__(self, actions, floor_of):
        self.states = [dict.fromkeys(KEYS, 0)]
        self.positions = dict.fromkeys(SESSIONS, 0)
        self.old_reads = 0
        self.units = []
        for session, action in actions:
            if action in KEYS:
                self.write(session, action)
            else:
                self.read(session, action, floor_of)

        self.history = told(*self.units)

    def write(self, session, key):
        number = self.states[-1][key] + 1
        self.states.append({**self.states[-1], key: number})
        self.positions[session] = len(self.states) - 1
        self.units.append((session, write(**{key: number})))

    def read(self, session, behind, floor_of):
        end, mine = len(self.states) - 1, self.positions[session]
        at = max(end - behind, floor_of(mine, end), 0)
        state = self.states[at]
        self.old_reads += at < mine and state != self.states[mine]
        self.positions[session] = max(mine, at)
        self.units.append((session, read(**state)))


@given(ACTIONS)
def test_reads_after_the_token_keep_the_promise(actions):
    log = Log(actions, lambda mine, end: mine)
    assert violations(log.history, SESSION) == []


@given(ACTIONS)
def test_reads_of_the_newest_keep_every_promise(actions):
    log = Log(actions, lambda mine, end: end)
    assert violations(log.history, Guarantee) == []


@given(ACTIONS)
def test_each_read_without_the_token_is_found(actions):
    log = Log(actions, lambda mine, end: 0)
    found = violations(log.history, SESSION)
    later = {x.later.step.invoked for x in found}
    assert len(later) == log.old_reads
    assert {x.guarantee for x in found} <= SESSION - PROMISES["eventual"]


@given(ACTIONS, st.randoms(use_true_random=False))
def test_order_of_the_history_does_not_matter(actions, random):
    history = Log(actions, lambda mine, end: 0).history
    found = list(map(str, violations(history, Guarantee)))
    random.shuffle(history)
    assert sorted(map(str, violations(history, Guarantee))) == sorted(found)
