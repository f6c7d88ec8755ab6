# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a registry tells those who listen, by SQLAlchemy's own events::

    from sqlalchemy import event

    event.listen(registry, "decision", listener)

Of one registry, or of ``MultiEngines``, the class: then of every registry of
the process. ``event.listens_for``, ``event.remove`` and ``once`` work as well.

A listener gets one value, and runs where the thing happens: in the thread that
executes a statement, or in the monitor's. It must not use the session that it
is told of. What it raises is logged and goes no further: who only looks on
breaks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import event
from sqlalchemy.event.registry import EventTarget

if TYPE_CHECKING:
    from .consistency import ConsistencyToken
    from .errors import StaleReadError
    from .health.model import ServerHealth
    from .routing.decision import Decision
    from .topology import Server

logger = getLogger(__name__)


class Cause(StrEnum):
    """Why a statement is run again, or waits"""

    CONNECTION_REFUSED = "connection_refused"  #: nothing has been sent
    CONNECTION_LOST = "connection_lost"  #: the replica's, in the middle
    FAILED_THERE = "failed_there"  #: and may not elsewhere: replay, DDL
    REFUSED = "refused"  #: by a standby: it is no read after all
    PRIMARY_GONE = "primary_gone"  #: and the statement is a read
    POOL_TIMEOUT = "pool_timeout"  #: its connections wait for a server
    ROW_MISSING = "row_missing"  #: of an instance: the replica is behind


class Waited(StrEnum):
    """What a statement has waited for"""

    REPLICA = "replica"  #: that has what it must see: ``--db-ro-wait``
    FALLBACK_SLOT = "fallback_slot"  #: of ``--db-ro-fallback-limit``
    PRIMARY = "primary"  #: that didn't answer


class DecisionMade(NamedTuple):
    """A statement is about to be executed, or has no server

    Once per execution, and per attempt of it; once per table of a flush. Not
    told: statements whose caller gives the bind, a registry without replicas,
    and a replica that turns out not to be fresh enough, which executes nothing.

    :param registry: the session's
    :param session: that executes it
    :param statement: of SQLAlchemy; None: a flush, or a bare connection
    :param mapper: of the statement, or of what a flush writes; None: it has
        none
    :param decision: the server, and why
    :param begins: True for the first one of a unit of work
    """

    registry: Any
    session: Any
    statement: Any
    mapper: Any
    decision: Decision
    begins: bool


class Retry(NamedTuple):
    """A statement failed, and is decided anew: the application sees nothing

    :param registry: the session's
    :param session: that executes it
    :param statement: of SQLAlchemy
    :param server: the name of the one that it failed on
    :param cause: of the retry
    :param error: None: there was none, but a row was missing
    """

    registry: Any
    session: Any
    statement: Any
    server: str
    cause: Cause
    error: Exception | None


class Wait(NamedTuple):
    """A statement has waited, in vain or not

    :param registry: the session's
    :param session: that executes it
    :param waited_for: what it has waited for
    :param seconds: that it took
    """

    registry: Any
    session: Any
    waited_for: Waited
    seconds: float


class StaleReadFound(NamedTuple):
    """A write was refused: what it changes is another on the primary

    :param registry: the session's
    :param session: that would have written
    :param error: that the application gets
    """

    registry: Any
    session: Any
    error: StaleReadError


class StatusChange(NamedTuple):
    """A server has another status; also once it has been asked first

    :param registry: that has the server
    :param server: which one
    :param before: what was known of it
    :param after: what is known of it now
    """

    registry: Any
    server: Server
    before: ServerHealth
    after: ServerHealth


class Promotion(NamedTuple):
    """The primary is on another timeline: a standby has taken its place

    :param registry: that has noticed it
    :param before: the last position that was known of the primary
    :param after: the first one of the new primary
    """

    registry: Any
    before: ConsistencyToken
    after: ConsistencyToken


class Listeners(EventTarget):
    """Those who listen to a registry; the class: to every one

    SQLAlchemy puts ``dispatch`` here.
    """

    dispatch: Any


class RegistryEvents(event.Events[Listeners]):
    """The events of a registry

    Each method is an event, and its signature the listener's.
    """

    _dispatch_target = Listeners

    @classmethod
    def _accept_with(cls, target: Any, identifier: str) -> Any:
        found = getattr(target, "listeners", target)
        if found is Listeners or isinstance(found, Listeners):
            return found

        return None

    def decision(self, made: DecisionMade) -> None:
        """Hear of a decision on a statement

        The one event that is told often: be quick.
        """

    def retry(self, retry: Retry) -> None:
        """Hear of a statement that is run again elsewhere"""

    def wait(self, wait: Wait) -> None:
        """Hear of a statement that has waited"""

    def stale_read(self, found: StaleReadFound) -> None:
        """Hear of a StaleReadError"""

    def server_status(self, change: StatusChange) -> None:
        """Hear of a server whose status changes, from any thread"""

    def promotion(self, promotion: Promotion) -> None:
        """Hear of a promotion, from any thread"""


def tell(listeners: Iterable[Callable[[Any], Any]], what: Any) -> None:
    """Tell something to those who listen

    :param listeners: of the event: ``registry.listeners.dispatch.retry``...
    :param what: the event's value
    """
    # A copy: one may remove itself, and other threads may listen meanwhile.
    for listener in tuple(listeners):
        try:
            listener(what)
        except Exception:
            logger.exception(
                "A listener of %s failed, and nothing else does",
                type(what).__name__,
            )
