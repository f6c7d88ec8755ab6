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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from .balancing import at_random
from .need import Kind, Need
from .transaction import NOWHERE, Placement

PRIMARY = "primary"
UNITTEST = "unittest"


class Reason(StrEnum):
    """Why a statement went where it went: one word for code, log and doc"""

    LOADING = "loading"
    UNITTEST_TRANSACTION = "unittest_transaction"
    ONE_SERVER = "one_server"
    FLUSHING = "flushing"
    ALREADY_ON_PRIMARY = "already_on_primary"
    PINNED_TO_PRIMARY = "pinned_to_primary"
    NOT_A_READ = "not_a_read"
    ALREADY_ON_REPLICA = "already_on_replica"
    USABLE_REPLICA = "usable_replica"
    PRIMARY_TAKES_READS = "primary_takes_reads"
    NO_USABLE_REPLICA = "no_usable_replica"
    READ_ONLY_MODE = "read_only_mode"


@dataclass(frozen=True)
class Decision:
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


@dataclass
class Situation:
    """All that a decision may know: values

    :param classify: gives the need of the statement; pure, and asked only by
        the rules that want to know
    :param usable: names of the usable servers that take reads
    :param has_primary: False in read-only mode
    :param has_replicas: False where one server does everything
    :param loading: this thread creates, upgrades or reloads the registry
    :param unittest: the registry runs in a transaction of a test
    :param flushing: the session writes what the application has changed
    :param pinned: the unit of work needs a transaction that only the primary
        has, or its caller wants the primary
    :param placement: where the unit of work has been placed so far
    :param draw: a random number, 0 <= draw < 1
    """

    classify: Callable[[], Need]
    usable: Sequence[str] = ()
    has_primary: bool = True
    has_replicas: bool = True
    loading: bool = False
    unittest: bool = False
    flushing: bool = False
    pinned: bool = False
    placement: Placement = field(default=NOWHERE)
    draw: float = 0.0

    @cached_property
    def need(self) -> Need:
        """Return what the statement needs, worked out when first asked"""
        return self.classify()


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


def already_on_primary(asked: Situation) -> Decision | None:
    """The unit of work has been placed on the primary"""
    if asked.placement.on_primary:
        return Decision(PRIMARY, Reason.ALREADY_ON_PRIMARY)

    return None


def pinned_to_primary(asked: Situation) -> Decision | None:
    """The caller, or a savepoint, keeps the unit of work on the primary"""
    if asked.pinned and asked.has_primary:
        return Decision(PRIMARY, Reason.PINNED_TO_PRIMARY)

    return None


def not_a_read(asked: Situation) -> Decision | None:
    """The statement is not proven to be a plain read"""
    need = asked.need
    if need.is_read:
        return None

    if not asked.has_primary and need.kind is Kind.UNPROVEN:
        # A hot standby refuses by itself what writes, and there is nowhere
        # else to go.
        return None

    return _primary(asked, Reason.NOT_A_READ, need.because)


def already_on_replica(asked: Situation) -> Decision | None:
    """The unit of work reads from a replica that is still usable"""
    replica = asked.placement.replica
    if replica is not None and replica in asked.usable:
        return Decision(replica, Reason.ALREADY_ON_REPLICA)

    return None


def usable_replica(asked: Situation) -> Decision | None:
    """A usable server takes reads; the unit of work stays on it"""
    if not asked.usable:
        return None

    name = at_random(asked.usable, asked.draw)
    if name == PRIMARY:
        return Decision(name, Reason.PRIMARY_TAKES_READS)

    return Decision(name, Reason.USABLE_REPLICA)


def no_usable_replica(asked: Situation) -> Decision | None:
    """No replica will do"""
    return _primary(asked, Reason.NO_USABLE_REPLICA, None)


RULES: tuple[Rule, ...] = (
    loading,
    unittest_transaction,
    one_server,
    flushing,
    already_on_primary,
    pinned_to_primary,
    not_a_read,
    already_on_replica,
    usable_replica,
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


def _primary(asked: Situation, reason: Reason, because: str | None) -> Decision:
    if asked.has_primary:
        return Decision(PRIMARY, reason, because)

    return Decision(None, Reason.READ_ONLY_MODE, because)
