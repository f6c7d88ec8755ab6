# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The rules, in the order in which they are asked; the first answer decides.

Where a caller gave ``bind_arguments={"bind": ...}``, or set the registry's
session connection, nothing is decided: the session returns that bind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import NamedTuple

from .intent import REPLICA, Intent
from .need import NO_STATEMENT, Kind, Need
from .transaction import NOWHERE, Placement

PRIMARY = "primary"
UNITTEST = "unittest"


class Reason(StrEnum):
    """Why a statement went where it went: one word for code, log and doc"""

    LOADING = "loading"
    UNITTEST_TRANSACTION = "unittest_transaction"
    SHADOW = "shadow"
    ONE_SERVER = "one_server"
    FLUSHING = "flushing"
    STATEMENT_SAYS = "statement_says"
    CALLER_WANTS_PRIMARY = "caller_wants_primary"
    WRITE_ON_REPLICAS = "write_on_replicas"
    ALREADY_ON_PRIMARY = "already_on_primary"
    PINNED_TO_PRIMARY = "pinned_to_primary"
    NOT_A_READ = "not_a_read"
    RECENT_WRITE = "recent_write"
    REPLICA_LOST = "replica_lost"
    REPLICA_BEHIND = "replica_behind"
    ALREADY_ON_REPLICA = "already_on_replica"
    USABLE_REPLICA = "usable_replica"
    PRIMARY_TAKES_READS = "primary_takes_reads"
    NO_FRESH_REPLICA = "no_fresh_replica"
    NO_USABLE_REPLICA = "no_usable_replica"
    READ_ONLY_MODE = "read_only_mode"


# The primary takes a read that is a replica's, where it may.
WANT_OF_REPLICA = frozenset(
    [
        Reason.REPLICA_LOST,
        Reason.REPLICA_BEHIND,
        Reason.NO_FRESH_REPLICA,
        Reason.NO_USABLE_REPLICA,
    ]
)


class Decision(NamedTuple):
    """Where a statement goes, and why

    :param server_name: ``primary``, ``replica1``..., ``unittest``; None: there
        is no server for it, which the session tells by an error
    :param reason: the rule that answered
    :param because: for a statement that is no read, the part that says so
    """

    server_name: str | None
    reason: Reason
    because: str | None = None

    def __str__(self) -> str:
        because = f": {self.because}" if self.because else ""
        return f"{self.server_name} ({self.reason}{because})"


@dataclass(slots=True)
class Situation:
    """All that a decision may know: values

    :param classify: gives the need of the statement; pure, and asked only by
        the rules that want to know
    :param usable: names of the usable servers that take reads
    :param behind: names of those that have been found not to be fresh enough
    :param promising: of the usable replicas, those that are known to be fresh
        enough or haven't been found behind lately; None: any will do
    :param nearest: the usable replica that is known to be furthest
    :param last: the server that the session's last unit of work has read from
        and that this one stays on; None: any will do
    :param stays: True where a unit of work that has read on the primary stays:
        it has a snapshot there, or no replica was fresh enough
    :param compares: True where it is known which server has what the unit of
        work has seen
    :param wrote_lately: True where only the primary is sure to have what the
        session has written
    :param has_primary: False in read-only mode
    :param falls_back: False: the primary serves no read for want of a replica
    :param has_replicas: False where one server does everything
    :param shadow: True where the primary serves everything, and it is only
        noted what would have been decided
    :param loading: this thread creates, upgrades or reloads the registry
    :param unittest: the registry runs in a transaction of a test
    :param flushing: the session writes what the application has changed
    :param wanted: the server that the statement itself names; ``replica``: any
    :param intent: of the innermost block of code around it
    :param pinned: the unit of work needs a transaction that only the primary
        has
    :param placement: where the unit of work has been placed so far
    :param choose: gives one of several servers that would all do
    """

    classify: Callable[[], Need]
    usable: Sequence[str] = ()
    behind: Collection[str] = ()
    promising: Collection[str] | None = None
    nearest: str | None = None
    last: str | None = None
    stays: bool = False
    compares: bool = False
    wrote_lately: bool = False
    has_primary: bool = True
    falls_back: bool = True
    has_replicas: bool = True
    shadow: bool = False
    loading: bool = False
    unittest: bool = False
    flushing: bool = False
    wanted: str | None = None
    intent: Intent | None = None
    pinned: bool = False
    placement: Placement = field(default=NOWHERE)
    choose: Callable[[Sequence[str]], str] = field(
        default=lambda names: names[0]
    )
    _need: Need | None = None

    @property
    def need(self) -> Need:
        """Return what the statement needs, worked out when first asked"""
        if self._need is None:
            self._need = self.classify()

        return self._need

    @property
    def candidates(self) -> Sequence[str]:
        """Return the usable servers that may be fresh enough"""
        if not self.behind:
            return self.usable

        return tuple(name for name in self.usable if name not in self.behind)

    @property
    def replicas(self) -> tuple[str, ...]:
        """Return those of the candidates that only read"""
        return tuple(name for name in self.candidates if name != PRIMARY)


Rule = Callable[[Situation], Decision | None]


def loading(asked: Situation) -> Decision | None:
    """This thread is creating, migrating or upgrading the registry"""
    if asked.loading and asked.has_primary:
        return Decision(PRIMARY, Reason.LOADING)

    return None


def unittest_transaction(asked: Situation) -> Decision | None:
    """The registry runs in one transaction that a test will roll back"""
    if asked.unittest:
        return Decision(UNITTEST, Reason.UNITTEST_TRANSACTION)

    return None


def shadow(asked: Situation) -> Decision | None:
    """It is only noted what would have been decided: ``--db-ro-shadow``"""
    if asked.shadow:
        return Decision(PRIMARY, Reason.SHADOW)

    return None


def one_server(asked: Situation) -> Decision | None:
    """There is no replica that could serve anything"""
    if not asked.has_replicas:
        return Decision(PRIMARY, Reason.ONE_SERVER)

    return None


def flushing(asked: Situation) -> Decision | None:
    """The session writes what the application has changed"""
    if asked.flushing:
        return _primary(asked, Reason.FLUSHING, "a flush writes")

    return None


def statement_says(asked: Situation) -> Decision | None:
    """The statement names its server: ``anyblok_server``"""
    if asked.wanted is None:
        return None

    if asked.wanted == PRIMARY:
        return _primary(asked, Reason.STATEMENT_SAYS, "it names the primary")

    if asked.pinned:
        # A replica has no savepoint, and prepares no transaction.
        return None

    if asked.need.kind is Kind.WRITE:
        # What is only unproven, the caller vouches for.
        return Decision(None, Reason.WRITE_ON_REPLICAS, asked.need.because)

    if asked.wanted != REPLICA:
        return Decision(asked.wanted, Reason.STATEMENT_SAYS)

    return _drawn(asked, asked.replicas, Reason.STATEMENT_SAYS)


def caller_wants_primary(asked: Situation) -> Decision | None:
    """The caller's block of code is under ``use_primary()``"""
    if asked.intent is Intent.PRIMARY:
        because = "the caller wants the primary"
        return _primary(asked, Reason.CALLER_WANTS_PRIMARY, because)

    return None


def write_on_replicas(asked: Situation) -> Decision | None:
    """No proven read, and the caller's block is under ``use_replicas()``

    A bare connection there is a replica's, which refuses by itself to write.
    """
    if asked.intent is not Intent.REPLICAS or asked.need == NO_STATEMENT:
        return None

    if asked.need.is_read:
        return None

    return Decision(None, Reason.WRITE_ON_REPLICAS, asked.need.because)


def already_on_primary(asked: Situation) -> Decision | None:
    """The unit of work has been placed on the primary"""
    placement = asked.placement
    if not placement.on_primary:
        return None

    may_leave = not (placement.wrote or asked.stays)
    if asked.intent is Intent.REPLICAS and may_leave:
        # It has only read there: nothing of its own could be missed.
        return None

    return Decision(PRIMARY, Reason.ALREADY_ON_PRIMARY)


def pinned_to_primary(asked: Situation) -> Decision | None:
    """A savepoint, or a two-phase commit, needs the primary's transaction"""
    if asked.pinned and asked.has_primary:
        return Decision(PRIMARY, Reason.PINNED_TO_PRIMARY)

    return None


def not_a_read(asked: Situation) -> Decision | None:
    """The statement is not proven to be a plain read"""
    need = asked.need
    if need.is_read or asked.intent is Intent.REPLICAS:
        return None

    if not asked.has_primary and need.kind is Kind.UNPROVEN:
        # A hot standby refuses by itself what writes, and there is nowhere
        # else to go.
        return None

    return _primary(asked, Reason.NOT_A_READ, need.because)


def recent_write(asked: Situation) -> Decision | None:
    """The session has written a moment ago, and no position tells who has it"""
    if asked.wrote_lately and asked.has_primary:
        return Decision(PRIMARY, Reason.RECENT_WRITE)

    return None


def replica_lost(asked: Situation) -> Decision | None:
    """The replica that the unit of work has read from is lost

    Another one may be further behind: time would run backwards.
    """
    replica = asked.placement.replica
    if replica is None or replica in asked.usable or not asked.has_primary:
        return None

    if asked.compares:
        return None

    return _fallback(asked, Reason.REPLICA_LOST)


def replica_behind(asked: Situation) -> Decision | None:
    """The unit of work has read from a replica, and needs a fresher one now"""
    if asked.placement.replica in asked.behind and asked.has_primary:
        return _fallback(asked, Reason.REPLICA_BEHIND)

    return None


def already_on_replica(asked: Situation) -> Decision | None:
    """The unit of work reads from a replica that is still usable and fresh"""
    replica = asked.placement.replica
    if replica is not None and replica in asked.candidates:
        return Decision(replica, Reason.ALREADY_ON_REPLICA)

    return None


def usable_replica(asked: Situation) -> Decision | None:
    """A usable server takes reads; the unit of work stays on it"""
    if asked.intent is Intent.REPLICAS:
        names: Sequence[str] = asked.replicas
    else:
        names = asked.candidates

    return _drawn(asked, names, Reason.USABLE_REPLICA) if names else None


def no_fresh_replica(asked: Situation) -> Decision | None:
    """No usable replica is known to be fresh enough"""
    if not asked.behind:
        return None

    return _fallback(asked, Reason.NO_FRESH_REPLICA)


def no_usable_replica(asked: Situation) -> Decision:
    """No replica will do"""
    if asked.has_primary:
        return _fallback(asked, Reason.NO_USABLE_REPLICA)

    return Decision(None, Reason.READ_ONLY_MODE)


RULES: tuple[Rule, ...] = (
    loading,
    unittest_transaction,
    shadow,
    one_server,
    flushing,
    statement_says,
    caller_wants_primary,
    write_on_replicas,
    already_on_primary,
    pinned_to_primary,
    not_a_read,
    recent_write,
    replica_lost,
    replica_behind,
    already_on_replica,
    usable_replica,
    no_fresh_replica,
    no_usable_replica,
)


def decide(asked: Situation) -> Decision:
    """Return where the statement goes: the first rule that answers decides

    :param asked: all that is known
    :rtype: Decision
    """
    for rule in RULES:
        decision = rule(asked)
        if decision is not None:
            return decision

    raise AssertionError("the last rule always answers")


@cache
def decide_in_flush(
    has_primary: bool,
    has_replicas: bool,
    shadow: bool,
    loading: bool,
    unittest: bool,
) -> Decision:
    """Return where a flush writes: nothing else has a say

    A flush asks for each table. The parameters are those of
    :class:`Situation`.
    """
    return decide(
        Situation(
            lambda: NO_STATEMENT,
            has_primary=has_primary,
            has_replicas=has_replicas,
            shadow=shadow,
            loading=loading,
            unittest=unittest,
            flushing=True,
        )
    )


def _drawn(asked: Situation, names: Sequence[str], reason: Reason) -> Decision:
    """Return one of the servers: the unit of work's own where it is there"""
    if not names:
        return no_fresh_replica(asked) or no_usable_replica(asked)

    if asked.placement.replica in names:
        return Decision(asked.placement.replica, reason)

    names = _promising(asked, names)
    name = asked.last
    if name is None or name not in names:
        name = asked.choose(names)

    if name == PRIMARY:
        return Decision(name, Reason.PRIMARY_TAKES_READS)

    return Decision(name, reason)


def _promising(asked: Situation, names: Sequence[str]) -> Sequence[str]:
    """Return the servers that may be fresh enough, or the nearest to it

    The primary always is, and takes no more than its share of the reads.
    """
    if asked.promising is None:
        return names

    promising = [x for x in names if x == PRIMARY or x in asked.promising]
    nearest = asked.nearest
    if promising in ([], [PRIMARY]) and nearest is not None:
        return (nearest,)

    return promising or names


def _fallback(asked: Situation, reason: Reason) -> Decision:
    """Return the primary for a read that is a replica's, if it may be"""
    may_be = asked.has_primary and asked.falls_back
    return Decision(PRIMARY if may_be else None, reason)


def _primary(asked: Situation, reason: Reason, because: str | None) -> Decision:
    if asked.has_primary:
        return Decision(PRIMARY, reason, because)

    return Decision(None, Reason.READ_ONLY_MODE, because)
