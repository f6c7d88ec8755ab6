# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Which of several servers, on plain values."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyblok_multi_engines.routing.balancing import (
    Balancer,
    Draws,
    Policy,
    at_random,
    in_turn,
    less_busy,
)

WEIGHTS = st.lists(
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 9.0, 10.0]),
    min_size=1,
    max_size=5,
).filter(any)
STARTS = st.floats(0.0, 1.0, exclude_max=True)
NUMBER = 2_000


def idle(name):
    return 0


def named(weights):
    return {f"replica{i}": weight for i, weight in enumerate(weights, 1)}


def balancer(policy, shares, use=idle, start=0.5):
    return Balancer(policy, lambda: shares, use, start)


def counted(choose, names, number=NUMBER):
    return Counter(choose(names) for _ in range(number))


@pytest.mark.parametrize("policy", Policy)
@settings(deadline=None)
@given(weights=WEIGHTS, start=STARTS)
def test_each_server_has_its_share(policy, weights, start):
    shares = named(weights)
    chosen = counted(
        balancer(policy, shares, start=start).choose, tuple(shares)
    )
    for name, share in shares.items():
        expected = NUMBER * share / sum(weights)
        assert abs(chosen[name] - expected) <= 0.01 * NUMBER


@pytest.mark.parametrize("policy", Policy)
def test_nine_to_one_is_nine_to_one(policy):
    shares = named([9.0, 1.0])
    chosen = counted(balancer(policy, shares).choose, tuple(shares), 10_000)
    assert abs(chosen["replica1"] - 9_000) <= 20


@pytest.mark.parametrize("policy", Policy)
def test_weight_0_serves_where_nobody_else_is_there(policy):
    chooser = balancer(policy, {"a": 0.0, "b": 1.0, "c": 0.0})
    assert set(counted(chooser.choose, ("a", "b", "c"))) == {"b"}
    alone = counted(chooser.choose, ("a", "c"))
    assert abs(alone["a"] - NUMBER / 2) <= 0.01 * NUMBER


@settings(deadline=None)
@given(WEIGHTS, st.lists(st.sets(st.integers(1, 5), min_size=1), max_size=200))
def test_turns_are_fair_at_any_time(weights, sets):
    """Whoever is there: a server is never more than some turns off"""
    shares = named([*weights, *[1.0] * (5 - len(weights))])
    credits = dict.fromkeys(shares, 0.0)
    for numbers in sets:
        names = [f"replica{number}" for number in sorted(numbers)]
        name, credits = in_turn(names, shares, credits)
        assert name in names
        assert all(abs(credit) < 5.0 for credit in credits.values())
        assert abs(sum(credits.values())) < 1e-9


def test_turns_of_equal_servers_alternate():
    chooser = balancer(Policy.ROUND_ROBIN, {"a": 1.0, "b": 1.0})
    turns = [chooser.choose(("a", "b")) for _ in range(10)]
    assert set(pairwise(turns)) == {("a", "b"), ("b", "a")}


def test_server_that_comes_back_is_not_flooded():
    chooser = balancer(Policy.ROUND_ROBIN, {"a": 1.0, "b": 1.0})
    counted(chooser.choose, ("a", "b"), 100)
    counted(chooser.choose, ("a",), 100)
    back = counted(chooser.choose, ("a", "b"), 10)
    assert back == {"a": 5, "b": 5}


@pytest.mark.parametrize("policy", Policy)
def test_question_takes_nobody_s_turn(policy):
    """Asked before each choice, it would always be told the same server"""
    chooser = balancer(policy, {"a": 1.0, "b": 1.0})
    chosen = Counter()
    for _ in range(NUMBER):
        chooser.peek(("a", "b"))
        chosen[chooser.choose(("a", "b"))] += 1

    assert abs(chosen["a"] - NUMBER / 2) <= 0.01 * NUMBER


def test_questions_in_turn_tell_who_is_next():
    chooser = balancer(Policy.ROUND_ROBIN, {"a": 1.0, "b": 1.0})
    for _ in range(5):
        chooser.choose(("a", "b"))
        assert chooser.peek(("a", "b")) == chooser.peek(("a", "b"))


@given(st.floats(0.0, 1.0, exclude_max=True))
def test_busy_server_leaves_it_to_another(draw):
    names, shares = ("a", "b"), {"a": 1.0, "b": 1.0}
    assert less_busy(names, shares, draw, {"a": 3, "b": 2}.get) == "b"
    assert less_busy(names, shares, draw, {"a": 0, "b": 1}.get) == "a"


@given(st.floats(0.0, 1.0, exclude_max=True))
def test_busy_is_what_a_server_does_by_its_share(draw):
    names, shares = ("a", "b"), {"a": 9.0, "b": 1.0}
    assert less_busy(names, shares, draw, {"a": 10, "b": 2}.get) == "a"
    assert less_busy(names, shares, draw, {"a": 19, "b": 1}.get) == "b"


def test_servers_that_are_hardly_used_have_their_shares():
    shares = {"a": 9.0, "b": 1.0}
    use = {"a": 3, "b": 0}
    chooser = balancer(Policy.LEAST_BUSY, shares, use.get)
    chosen = counted(chooser.choose, ("a", "b"))
    assert abs(chosen["a"] - 0.9 * NUMBER) <= 0.01 * NUMBER


@given(WEIGHTS, STARTS)
def test_two_that_are_compared_are_different(weights, draw):
    shares = named(weights)
    asked = []

    def use(name):
        asked.append(name)
        return 1

    less_busy(tuple(shares), shares, draw, use)
    assert len(asked) == len(set(asked)) == min(2, sum(x > 0 for x in weights))


def test_many_are_never_all_sent_to_the_least_busy():
    """Two are compared, and not all"""
    use = {"a": 0, "b": 1, "c": 2, "d": 3}
    shares = dict.fromkeys(use, 1.0)
    chosen = counted(
        balancer(Policy.LEAST_BUSY, shares, use.get).choose, tuple(use)
    )
    assert chosen["a"] > chosen["b"] > chosen["c"] > chosen["d"] == 0
    assert abs(chosen["a"] - NUMBER / 2) <= 0.02 * NUMBER


@given(WEIGHTS)
def test_number_at_either_end_gives_a_server(weights):
    shares = named(weights)
    for draw in (0.0, 1.0 - 2**-53):
        found = at_random(tuple(shares), shares, draw)
        assert shares[found] > 0


def test_draws_fill_the_range():
    draw = Draws(0.3)
    found = Counter(int(draw() * 10) for _ in range(1_000))
    assert all(abs(found[tenth] - 100) <= 2 for tenth in range(10))
