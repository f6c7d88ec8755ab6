# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""How a session asks: clause -> need -> decision -> engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from logging import getLogger
from random import random
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from .engines import is_unused, read_only_mode
from .health.probe import summary_of
from .routing.decision import UNITTEST, Decision, Situation, decide
from .routing.transaction import NOWHERE, Placement

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    SessionBase = Session
else:
    SessionBase = object

logger = getLogger(__name__)


class MixinSession(SessionBase):
    """Mixin of the SQLAlchemy session that chooses a server per statement

    ``anyblok``, the registry, is given by AnyBlok's registry base.
    """

    anyblok: Any

    # The root transaction that has been placed, and where. Of this session
    # and its thread alone; another root transaction starts from nowhere.
    _placed: tuple[SessionTransaction | None, Placement] = (None, NOWHERE)

    # The primary's connection that a flush has asked for, until something is
    # sent on it: AnyBlok marks what a One2Many has loaded as changed, and the
    # flush of the next query has nothing to write. That ends no unit of
    # work's reads from a replica.
    _flushed_on: Connection | None = None

    # The server that the last call of get_bind named.
    _asked: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Record placements of the sessions made with this mixin"""
        super().__init_subclass__(**kwargs)
        heard = any(
            issubclass(base, MixinSession) and issubclass(base, Session)
            for base in cls.__bases__
        )
        if issubclass(cls, Session) and not heard:
            event.listen(cls, "after_begin", _record_placement)

    def get_bind(
        self,
        mapper: Any = None,
        clause: Any = None,
        bind: Any = None,
        **kwargs: Any,
    ) -> Engine | Connection:
        """Return where the statement goes

        It decides and has no effect: a unit of work is placed when a
        connection really begins.

        :param mapper: of the statement, as SQLAlchemy gives it
        :param clause: the statement; None: there is none to look at
        :param bind: given by the caller, who then has it
        :exception: NoPrimaryError, for a write in read-only mode
        """
        registry = self.anyblok
        self._asked = None
        if bind is None and self.bind is None:
            bound = registry.bind
        else:
            bound = super().get_bind(mapper, clause=clause, bind=bind, **kwargs)

        if bind is not None or bound is not registry.bind:
            return bound  # type: ignore[no-any-return]

        given = registry.given_session_connection
        if given is not None:
            return given  # type: ignore[no-any-return]

        if not registry.topology.replicas:
            # As without us.
            return bound  # type: ignore[no-any-return]

        decision = self.decision_for(clause)
        logger.debug("%s", decision)
        if decision.server_name is None:
            raise read_only_mode(decision.because or "The statement")

        if decision.server_name == UNITTEST:
            return registry.unittest_bind  # type: ignore[no-any-return]

        self._asked = decision.server_name
        return registry.engine_of(decision.server_name)  # type: ignore[no-any-return]

    def decision_for(self, clause: Any) -> Decision:
        """Return where a statement would go now, without effect

        :param clause: the statement; None: there is none to look at
        :rtype: Decision
        """
        registry = self.anyblok
        topology = registry.topology
        return decide(
            Situation(
                classify=partial(registry.statements.need_of, clause),
                usable=registry.usable_readers(),
                has_primary=not topology.read_only,
                has_replicas=bool(topology.replicas),
                loading=registry.is_loading,
                unittest=registry.unittest_transaction is not None,
                flushing=self._flushing,
                pinned=self._is_pinned(),
                placement=self.placement(),
                draw=random(),
            )
        )

    def placement(self) -> Placement:
        """Return where this unit of work has been placed so far"""
        root, placement = self._placed
        if root is None or root is not self.get_transaction():
            return NOWHERE

        if self._flushed_on is not None and not is_unused(self._flushed_on):
            self._flushed_on = None
            placement = placement.with_primary()
            self._placed = (root, placement)

        return placement

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement; see SQLAlchemy's ``Session.execute``"""
        return self._try_elsewhere(super().execute, args, kwargs)

    def scalars(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement; see SQLAlchemy's ``Session.scalars``"""
        return self._try_elsewhere(super().scalars, args, kwargs)

    def scalar(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement; see SQLAlchemy's ``Session.scalar``"""
        return self._try_elsewhere(super().scalar, args, kwargs)

    def forget_replica_reads(self) -> None:
        """Expire what a replica loaded and nobody changed

        What follows is then read from the primary. Changes stay.
        """
        if self.placement().replica is None:
            return

        for instance in list(self.identity_map.values()):
            if not self.is_modified(instance):
                self.expire(instance)

    def _is_pinned(self) -> bool:
        """Return True where only the primary has what the caller wants

        A savepoint and a two-phase commit need a transaction, and on a
        replica each statement stands alone.
        """
        return (
            self.anyblok.is_maintained
            or self.twophase
            or self.in_nested_transaction()
        )

    def _try_elsewhere(
        self,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a statement, again where no connection to its replica is had

        Nothing has been sent to a server that refused the connection, so the
        statement may be decided anew, without that replica.
        """
        tried: set[str] = set()
        while True:
            try:
                return run(*args, **kwargs)
            except DBAPIError as error:
                name = self._asked
                if name is None or name in tried or not self._refused(name):
                    raise

                tried.add(name)
                self.anyblok.monitor.report_down(name, summary_of(error))

    def _refused(self, name: str) -> bool:
        """Return True for a replica that this unit of work never reached"""
        return (
            self.anyblok.is_replica(name) and self.placement().replica != name
        )


def _record_placement(
    session: MixinSession,
    transaction: SessionTransaction,
    connection: Connection,
) -> None:
    """Note the server on which a session has really begun"""
    name = session.anyblok.server_name_of(connection.engine)
    if name is None:
        return

    root = session.get_transaction()
    if session._placed[0] is not root:
        session._placed = (root, NOWHERE)
        session._flushed_on = None

    before = session.placement()
    if session.anyblok.is_replica(name):
        kept = before.replica in session.anyblok.usable_readers()
        after = before if kept else before.with_replica(name)
    elif session._flushing:
        after, session._flushed_on = before, connection
    else:
        after = before.with_primary()

    session._placed = (root, after)
