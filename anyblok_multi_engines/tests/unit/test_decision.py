# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The rules, on plain values."""

import pytest

from anyblok_multi_engines.routing.decision import (
    RULES,
    WANT_OF_REPLICA,
    Decision,
    Reason,
    Situation,
    decide,
)
from anyblok_multi_engines.routing.intent import Intent
from anyblok_multi_engines.routing.need import NO_STATEMENT, READ, Kind, Need
from anyblok_multi_engines.routing.transaction import NOWHERE, ON_PRIMARY

WRITE = Need(Kind.WRITE, "UPDATE")
UNPROVEN = Need(Kind.UNPROVEN, "function f() is not known")
WROTE = ON_PRIMARY.with_write()
ON_REPLICA1 = NOWHERE.with_replica("replica1")
BOTH = ("replica1", "replica2")


def decided(need=READ, usable=BOTH, draw=0.0, **facts):
    return decide(
        Situation(
            classify=lambda: need,
            usable=usable,
            choose=lambda names: names[int(draw * len(names))],
            **facts,
        )
    )


# In the order of the rules: a fact, with all that could speak against it.
CASES = {
    Reason.LOADING: (
        "primary",
        {"loading": True, "placement": ON_REPLICA1},
    ),
    Reason.UNITTEST_TRANSACTION: (
        "unittest",
        {"unittest": True, "flushing": True, "need": WRITE},
    ),
    Reason.SHADOW: (
        "primary",
        {"shadow": True, "wanted": "replica2", "placement": ON_REPLICA1},
    ),
    Reason.FLUSHING: (
        "primary",
        {"flushing": True, "placement": ON_REPLICA1},
    ),
    Reason.STATEMENT_SAYS: (
        "replica2",
        {
            "wanted": "replica2",
            "intent": Intent.PRIMARY,
            "placement": ON_REPLICA1.with_write(),
            "need": UNPROVEN,
        },
    ),
    Reason.CALLER_WANTS_PRIMARY: (
        "primary",
        {"intent": Intent.PRIMARY, "placement": ON_REPLICA1},
    ),
    Reason.WRITE_ON_REPLICAS: (
        None,
        {"intent": Intent.REPLICAS, "placement": WROTE, "need": UNPROVEN},
    ),
    Reason.ALREADY_ON_PRIMARY: (
        "primary",
        {"placement": WROTE, "intent": Intent.REPLICAS},
    ),
    Reason.PINNED_TO_PRIMARY: (
        "primary",
        {"pinned": True, "placement": ON_REPLICA1},
    ),
    Reason.ONE_SERVER: (
        "primary",
        {"has_replicas": False, "usable": ("primary",)},
    ),
    Reason.NOT_A_READ: ("primary", {"need": WRITE, "placement": ON_REPLICA1}),
    Reason.REPLICA_LOST: (
        "primary",
        {"placement": ON_REPLICA1, "usable": ("replica2",)},
    ),
    Reason.ALREADY_ON_REPLICA: (
        "replica1",
        {"placement": ON_REPLICA1, "draw": 0.99},
    ),
    Reason.RECENT_WRITE: (
        "primary",
        {"wrote_lately": True, "placement": ON_REPLICA1},
    ),
    Reason.REPLICA_BEHIND: (
        "primary",
        {"behind": ["replica1"], "placement": ON_REPLICA1},
    ),
    Reason.NO_FRESH_REPLICA: ("primary", {"behind": BOTH}),
    Reason.USABLE_REPLICA: ("replica2", {"draw": 0.99}),
    Reason.PRIMARY_TAKES_READS: (
        "primary",
        {"usable": ("primary", *BOTH), "draw": 0.1},
    ),
    Reason.NO_USABLE_REPLICA: ("primary", {"usable": ()}),
    Reason.READ_ONLY_MODE: (None, {"has_primary": False, "need": WRITE}),
}


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_rule(reason):
    server_name, facts = CASES[reason]
    decision = decided(**facts)
    assert (decision.server_name, decision.reason) == (server_name, reason)


def test_each_rule_is_named_after_its_reason():
    names = [rule.__name__ for rule in RULES]
    words = [str(reason) for reason in Reason]
    extra = {"primary_takes_reads", "read_only_mode"}
    assert names == [word for word in words if word not in extra]


def test_a_statement_is_classified_only_when_a_rule_asks():
    def classify():
        raise AssertionError("nobody needed to know")

    for facts in (
        {"loading": True},
        {"unittest": True},
        {"flushing": True},
        {"placement": ON_PRIMARY},
        {"has_replicas": False},
        {"intent": Intent.PRIMARY},
        {"wanted": "primary"},
    ):
        decide(Situation(classify=classify, **facts))


def test_no_statement_goes_to_the_primary():
    assert decided(NO_STATEMENT) == Decision(
        "primary", Reason.NOT_A_READ, NO_STATEMENT.because
    )


class TestWanted:
    """What a statement says for itself"""

    def test_replica_is_the_unit_of_work_s_own(self):
        decision = decided(wanted="replica", placement=ON_REPLICA1, draw=0.99)
        assert decision.server_name == "replica1"

    def test_replica_is_never_the_primary(self):
        for draw in (0.0, 0.4, 0.99):
            decision = decided(
                wanted="replica", usable=("primary", "replica1"), draw=draw
            )
            assert decision.server_name == "replica1"

    def test_replica_that_is_not_there_is_the_primary(self):
        decision = decided(wanted="replica", usable=("primary",))
        assert decision.server_name == "primary"
        assert decision.reason is Reason.NO_USABLE_REPLICA

    def test_write_has_no_server(self):
        for wanted in ("replica", "replica1"):
            decision = decided(WRITE, wanted=wanted)
            assert decision.server_name is None
            assert decision.reason is Reason.WRITE_ON_REPLICAS

    def test_savepoint_comes_first(self):
        decision = decided(wanted="replica1", pinned=True)
        assert decision.reason is Reason.PINNED_TO_PRIMARY

    def test_primary_is_an_error_where_there_is_none(self):
        decision = decided(wanted="primary", has_primary=False)
        assert decision.reason is Reason.READ_ONLY_MODE
        assert decision.because


class TestIntent:
    """What the block of code around wants"""

    def test_replicas_take_back_a_unit_of_work_that_only_read(self):
        decision = decided(intent=Intent.REPLICAS, placement=ON_PRIMARY)
        assert decision.server_name in BOTH

    def test_replicas_have_bare_connections(self):
        decision = decided(NO_STATEMENT, intent=Intent.REPLICAS)
        assert decision.server_name in BOTH

    def test_replicas_have_no_savepoint(self):
        decision = decided(intent=Intent.REPLICAS, pinned=True)
        assert decision.reason is Reason.PINNED_TO_PRIMARY

    def test_replicas_are_not_the_primary_that_takes_reads(self):
        decision = decided(
            intent=Intent.REPLICAS, usable=("primary", "replica1"), draw=0.0
        )
        assert decision.server_name == "replica1"

    def test_primary_is_an_error_where_there_is_none(self):
        decision = decided(intent=Intent.PRIMARY, has_primary=False)
        assert decision.reason is Reason.READ_ONLY_MODE


def test_replica_that_was_lost_before_it_served_is_left():
    lost = ON_REPLICA1.with_lost("replica1", served=False)
    decision = decided(usable=("replica2",), placement=lost)
    assert decision.server_name == "replica2"


def test_replica_that_was_lost_after_it_served_leaves_the_primary():
    lost = ON_REPLICA1.with_lost("replica1", served=True)
    decision = decided(usable=("replica2",), placement=lost)
    assert decision.reason is Reason.REPLICA_LOST
    decision = decided(usable=("replica2",), placement=lost, has_primary=False)
    assert decision.server_name == "replica2"


def test_replica_that_was_lost_is_followed_by_one_that_can_be_compared():
    lost = ON_REPLICA1.with_lost("replica1", served=True)
    decision = decided(usable=("replica2",), placement=lost, compares=True)
    assert decision.server_name == "replica2"


def test_first_write_moves_the_unit_of_work_for_good():
    moved = ON_REPLICA1.with_primary()
    assert moved.on_primary
    assert moved.replica == "replica1"
    assert decided(placement=moved).reason is Reason.ALREADY_ON_PRIMARY


def test_another_replica_takes_the_place_of_one_that_is_lost():
    moved = ON_REPLICA1.with_replica("replica2")
    assert decided(placement=moved, draw=0.0).server_name == "replica2"


LOST = ON_REPLICA1.with_lost("replica1", served=True)
WANTED = {
    Reason.REPLICA_LOST: {"placement": LOST, "usable": ("replica2",)},
    Reason.REPLICA_BEHIND: {"placement": ON_REPLICA1, "behind": {"replica1"}},
    Reason.NO_FRESH_REPLICA: {"behind": BOTH},
    Reason.NO_USABLE_REPLICA: {"usable": ()},
}


class TestFallback:
    def test_every_reason_is_tried(self):
        assert set(WANTED) == WANT_OF_REPLICA

    @pytest.mark.parametrize("reason", WANTED)
    def test_primary_serves_if_it_may(self, reason):
        facts = WANTED[reason]
        assert decided(**facts) == Decision("primary", reason)
        assert decided(falls_back=False, **facts) == Decision(None, reason)

    @pytest.mark.parametrize(
        "facts",
        [
            {"need": WRITE},
            {"need": UNPROVEN},
            {"flushing": True},
            {"intent": Intent.PRIMARY},
            {"wanted": "primary"},
            {"placement": ON_PRIMARY},
            {"placement": WROTE},
            {"pinned": True},
            {"loading": True},
            {"wrote_lately": True},
            {"usable": ("primary",)},
        ],
        ids=str,
    )
    def test_others_are_not_concerned(self, facts):
        decision = decided(falls_back=False, **{"usable": (), **facts})
        assert decision.server_name == "primary"


class TestReadOnlyMode:
    """There is no primary to go to"""

    @pytest.mark.parametrize(
        "facts", [{"need": WRITE}, {"flushing": True}], ids=str
    )
    def test_write_has_no_server(self, facts):
        decision = decided(has_primary=False, **facts)
        assert decision.server_name is None
        assert decision.reason is Reason.READ_ONLY_MODE
        assert decision.because

    @pytest.mark.parametrize(
        "facts",
        [
            {},
            {"need": NO_STATEMENT},
            {"need": Need(Kind.UNPROVEN, "text")},
            {"loading": True},
            {"pinned": True},
        ],
        ids=str,
    )
    def test_what_may_read_goes_to_a_replica(self, facts):
        assert decided(has_primary=False, **facts).server_name == "replica1"


def test_decision_shows_why():
    assert str(decided(WRITE)) == "primary (not_a_read: UPDATE)"
    assert str(decided()) == "replica1 (usable_replica)"
