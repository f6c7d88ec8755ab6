# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""How a session asks: clause -> need -> decision -> engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import (
    contextmanager,
)
from functools import partial
from logging import DEBUG, getLogger
from time import monotonic, sleep
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import (
    ORMExecuteState,
    Query,
    Session,
    SessionTransaction,
    SessionTransactionOrigin,
)
from sqlalchemy.orm.attributes import instance_state

from . import provenance, write_guard, writes
from .consistency import ConsistencyToken, freshest
from .engines import (
    end_now,
    is_in_transaction,
    is_lost,
    read_only_mode,
    sqlstate_of,
)
from .errors import (
    NoReplicaError,
    ReplicaWriteError,
    SnapshotLostError,
    UnknownServerError,
)
from .events import Cause, DecisionMade, Retry, Wait, Waited, tell
from .freshness import Behind
from .health.probe import summary_of
from .reader import Reader, Seen
from .routing.decision import (
    PRIMARY,
    UNITTEST,
    WANT_OF_REPLICA,
    Decision,
    Reason,
    Situation,
    decide,
    decide_in_flush,
)
from .routing.intent import OPTION, REPLICA, Intent, Wish
from .routing.statements import shape_of
from .routing.transaction import NOWHERE, Placement
from .unit_of_work import Settled, Stay, UnitOfWork

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from .fallback import Slots
    from .provenance import Read

    SessionBase = Session
else:
    SessionBase = object

logger = getLogger(__name__)

# A standby's refusals: read_only_sql_transaction, feature_not_supported,
# object_not_in_prerequisite_state (currval() of a sequence that only the
# primary's connection has used).
REFUSALS = frozenset(["25006", "0A000", "55000"])

# Of these, what passes: a prepared statement whose columns have changed, a
# materialized view that isn't filled yet. By the names of PostgreSQL's own
# functions.
PASSING = frozenset(["RevalidateCachedQuery", "ExecOpenScanRelation"])

# What fails on this replica and may not on another server: it conflicts with
# the replay (serialization_failure, deadlock_detected), or with DDL that has
# not been replayed there, and the primary's catalogue has (undefined_table,
# undefined_column, undefined_function, undefined_object, invalid_schema_name).
FAILS_HERE = frozenset(
    ["40001", "40P01", "42P01", "42703", "42883", "42704", "3F000"]
)

# For want of a replica that is fresh enough.
FALLBACKS = (Reason.NO_FRESH_REPLICA, Reason.REPLICA_BEHIND)

# Another statement of the unit of work goes there for the same reason.
STAYING = (Reason.ALREADY_ON_REPLICA, Reason.ALREADY_ON_PRIMARY)

# For a person.
WHY_NO_REPLICA = {
    Reason.REPLICA_LOST: "the one that this unit of work has read from is lost",
    Reason.REPLICA_BEHIND: "the one that this unit of work has read from is "
    "behind what it must see now",
    Reason.NO_FRESH_REPLICA: "none is known to have what this session must see",
    Reason.NO_USABLE_REPLICA: "none is usable",
}

# What another server can do, where the primary isn't there: at once, or when
# one is back.
NOT_FOR_PRIMARY = WANT_OF_REPLICA | {Reason.PRIMARY_TAKES_READS}

# What counts as a unit of work on its server, of a session's few.
DRAWN = (Reason.PRIMARY_TAKES_READS, Reason.USABLE_REPLICA)

# Seconds that a read waits at least for a server, while the primary isn't there
# and no replica will do; and between two looks.
PATIENCE = 2.0
PAUSE = 0.05

# Of an execution that has none.
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})

# The execution option that says which schemas are meant.
TRANSLATION = "schema_translate_map"


class ReplicaBehind(Exception):
    """The replica that was to read isn't fresh enough; it is decided anew"""


class Call:
    """One execution of a statement: what it says, and where it went

    SQLAlchemy hands it on with the ``bind_arguments`` of the statement: to
    ``get_bind``, and to whoever loads instances from the rows.

    :param wanted: the server that the statement names, or None
    """

    #: the servers that have been found not to be fresh enough
    behind: frozenset[str] = frozenset()
    #: the position that its server must have reached, as far as known
    floor: ConsistencyToken | None = None
    #: and as it was when its unit of work began, once that is known
    floor_at_start: ConsistencyToken | None = None
    has_floor = False
    #: seconds of time.monotonic(): it waits for a replica till then
    until: float | None = None
    clause: Any = None
    server: str | None = None
    #: what its server says of the instances that it gives; None: no replica
    read: Read | None = None
    decision: Decision | None = None
    #: who reads, where nothing has changed for its unit of work
    reader: Reader | None = None
    mapper: Any = None
    #: True once those who listen know of it
    told = False

    def __init__(self, wanted: str | None) -> None:
        self.wanted = wanted

    @property
    def from_replica(self) -> bool:
        """Return True where a replica serves it"""
        return self.read is not None

    def served_by(self, server: str | None) -> None:
        """Note where it goes

        :param server: its name; None: it isn't one of the registry's
        """
        self.server = server
        if server is None or server == PRIMARY:
            self.read = None
        else:
            self.read = provenance.read_from(server)


# Of every statement in shadow mode.
SHADOWED = Decision(PRIMARY, Reason.SHADOW)

# Before the first, and after each.
NO_UNIT = UnitOfWork(None)

# Of a connection that is asked for without a statement.
NO_CALL = Call(None)


class MixinSession(SessionBase):
    """Mixin of the SQLAlchemy session that chooses a server per statement

    ``anyblok``, the registry, is given by AnyBlok's registry base.
    """

    anyblok: Any

    #: True in a session that AnyBlok asks something aside: what it sees is
    #: of no consequence for what its thread reads
    is_aside = False

    #: True while it asks, in shadow mode, what would be asked aside
    shadows_aside = False

    # True from the decision on a proven read to its execution.
    _is_reading = False

    # What is known of the unit of work that began last. Of this session and
    # its thread alone; another root transaction starts from nothing.
    _unit = NO_UNIT

    # The call whose replica will be asked, once it is connected to, whether
    # it is fresh enough.
    _unchecked: Call | None = None

    # True where it has been asked, and isn't.
    _is_behind = False

    # Where the next unit of work reads, if nothing changes till then.
    _stay: Stay | None = None

    # True where some models have binds of their own: each statement is looked
    # at.
    _has_binds = False

    # What the blocks of code around want, the innermost last. No end of a
    # unit of work ends a block.
    _wishes: tuple[tuple[object, Wish], ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Listen to the sessions made with this mixin"""
        super().__init_subclass__(**kwargs)
        heard = any(
            issubclass(base, MixinSession) and issubclass(base, Session)
            for base in cls.__bases__
        )
        if issubclass(cls, Session) and not heard:
            event.listen(cls, "after_begin", _record_placement)
            event.listen(cls, "before_commit", _end_replica_side)
            event.listen(cls, "after_commit", _after_commit)
            event.listen(cls, "after_rollback", _after_rollback)
            event.listen(cls, "after_transaction_end", _note_end)
            event.listen(cls, "before_flush", _check_flush)
            event.listen(cls, "after_flush_postexec", _after_flush)
            event.listen(
                cls, "detached_to_persistent", provenance.note_attached
            )

    def get_bind(
        self,
        mapper: Any = None,
        clause: Any = None,
        bind: Any = None,
        **kwargs: Any,
    ) -> Engine | Connection:
        """Return where the statement goes

        It decides; a unit of work is placed when a connection really begins.

        :param mapper: of the statement, as SQLAlchemy gives it
        :param clause: the statement; None: there is none to look at
        :param bind: given by the caller, who then has it
        :exception: NoPrimaryError, for a write in read-only mode;
            ReplicaWriteError, for a write where the caller wants replicas;
            UnknownServerError, for a name that isn't configured;
            NoReplicaError, in read-only mode where no replica is fresh enough,
            under --db-ro-fallback error where the primary would have to serve,
            and where too many units of work have it serve already
        """
        registry = self.anyblok
        call: Call = kwargs.pop(provenance.CALL, NO_CALL)
        if bind is None:
            settled = self._settled(mapper, clause, call)
            if settled is not None:
                return settled

        if bind is None and self.bind is None and not self._has_binds:
            bound = registry.bind
        else:
            bound = super().get_bind(mapper, clause=clause, bind=bind, **kwargs)

        if bind is not None or bound is not registry.bind:
            self._note_given(call, clause, bound)
            return bound  # type: ignore[no-any-return]

        given = registry.given_session_connection
        if given is not None:
            return given  # type: ignore[no-any-return]

        if not registry.topology.replicas:
            # As without us.
            self._note_shadow(mapper, clause, call)
            return bound  # type: ignore[no-any-return]

        stay = self._stay
        if stay is not None and self._stays(stay, clause, call):
            self._tell(stay.decision, clause, mapper, call)
            return stay.settled.engine

        return self._engine_for(clause, mapper, call)  # type: ignore[no-any-return]

    def _add_bind(self, key: Any, bind: Any) -> None:
        """Have a model, or a table, on a bind of its own; see SQLAlchemy's"""
        super()._add_bind(key, bind)
        self._has_binds = True
        self._unit.settled = self._stay = None

    def _stays(self, stay: Stay, clause: Any, call: Call) -> bool:
        """Return True where a unit of work begins as the one before

        What :func:`decide` and the look at its replica would say.
        """
        registry, settled = self.anyblok, stay.settled
        freshness, scope = registry.freshness, registry.scope
        reader = freshness.reader(registry)
        if (
            self._unit is not NO_UNIT
            or self._flushing
            or self._wishes
            or self.twophase
            or self._nested_transaction is not None
            or call.wanted is not None
            or scope.depth
            or reader.wants_primary
            or reader.knows is not settled.knows
            or registry.monitor.snapshot is not settled.snapshot
            or freshness.positions.timeline != stay.timeline
            or not freshness.has_positions
            or not registry.statements.is_known_read(clause)
        ):
            return False

        if call is not NO_CALL:
            call.clause = clause
            self._note_decided(call, stay.decision)
            self._unchecked = call

        return True

    def _engine_for(self, clause: Any, mapper: Any, call: Call) -> Any:
        """Return where a statement goes that none of the above is said of"""
        registry = self.anyblok
        self._unit.settled = self._unchecked = None
        decision = self._decided(clause, call)
        self._tell(decision, clause, mapper, call)
        if decision.server_name is None:
            raise self._error_of(decision)

        if decision.server_name == UNITTEST:
            return registry.unittest_bind

        if call is not NO_CALL:
            call.clause = clause
            self._note_decided(call, decision)

        engine = registry.engine_of(decision.server_name)
        if decision.reason in STAYING:
            self._settle(decision, engine)

        return engine

    def _note_shadow(self, mapper: Any, clause: Any, call: Call) -> None:
        """Note what would have been decided, once per execution"""
        shadow = self.anyblok.shadow
        if shadow is None:
            return

        is_new = call is not NO_CALL and not call.told
        self._tell(SHADOWED, clause, mapper, call)
        if is_new:
            call.told = True
            shadow.note(self, clause, mapper, call)

    def shadow_decision_for(self, clause: Any) -> Decision:
        """Return where a statement would go now without the shadow mode

        :param clause: the statement; None: there is none to look at
        :rtype: Decision
        """
        unit = self._current()
        decision: Decision = self.anyblok.shadow.decision_for(
            self, clause, NO_CALL, None if unit is None else unit.shadow
        )
        return decision

    def _settled(self, mapper: Any, clause: Any, call: Call) -> Engine | None:
        """Return the server of a unit of work that nothing has changed for

        What :func:`decide` would say, in a fraction of the time.
        """
        unit = self._unit
        settled = unit.settled
        if (
            settled is None
            or unit.placement is not settled.placement
            or unit.root is not self._transaction
            or self._flushing
            or self._wishes
            or call.wanted is not None
        ):
            return None

        registry = self.anyblok
        reader, scope = registry.freshness.reader(registry), registry.scope
        if scope.depth or scope.connection is not None or reader.wants_primary:
            return None

        if settled.knows is None:
            if _wanted_by(clause, call) is not None:
                return None
        elif (
            reader.knows is not settled.knows
            or registry.monitor.snapshot is not settled.snapshot
            or not registry.statements.is_known_read(clause)
        ):
            return None

        decision = settled.decision
        if logger.isEnabledFor(DEBUG):
            logger.debug("%s", decision)

        if call is not NO_CALL:
            if registry.listeners.dispatch.decision:
                self._tell_decision(decision, clause, mapper, call)

            call.clause = clause
            if settled.knows is None:
                self._note_decided(call, decision)
            else:
                call.decision, call.reader = decision, reader
                call.server, call.read = decision.server_name, settled.read

        return settled.engine

    def _settle(self, decision: Decision, engine: Engine) -> None:
        """Note where the next statements of a unit of work go

        On a replica, the plain reads.

        :param decision: that it stays where it is
        :param engine: of its server
        """
        registry, unit = self.anyblok, self._unit
        if self._has_binds or self._wishes or self.in_nested_transaction():
            return

        if decision.server_name == PRIMARY:
            unit.settled = Settled(decision, engine, unit.placement)
        elif not registry.reads_by_age and self._has_noted(decision, unit):
            unit.settled = self._settled_on(decision, engine, unit)

    def _settled_on(
        self, decision: Decision, engine: Engine, unit: UnitOfWork
    ) -> Settled | None:
        """Return a decision for a replica; None where it isn't usable now"""
        registry = self.anyblok
        # The snapshot first: the one that the replica is usable by, or older.
        snapshot = registry.monitor.snapshot
        if decision.server_name not in registry.usable_readers():
            return None

        knows = registry.reader().knows
        read = provenance.read_from(decision.server_name)
        return Settled(decision, engine, unit.placement, knows, snapshot, read)

    def _has_noted(self, decision: Decision, unit: UnitOfWork) -> bool:
        """Return True where all is noted that a further read would show"""
        freshness = self.anyblok.freshness
        if not freshness.compares:
            return unit.served and not self.anyblok.reader().knows.floor

        name, seen = decision.server_name, unit.seen
        return (
            name is not None
            and seen is not None
            and seen.server == name
            and seen in self.anyblok.reader().knows.seen
            and self._is_checked(name, unit)
        )

    def _tell(
        self, decision: Decision, clause: Any, mapper: Any, call: Call
    ) -> None:
        """Log a decision, and tell it to those who listen, once per call"""
        if logger.isEnabledFor(DEBUG):
            logger.debug("%s", decision)

        if self.anyblok.listeners.dispatch.decision:
            if self._unchecked is call:
                # It is told once the replica is found to be fresh enough.
                call.mapper = mapper
            else:
                self._tell_decision(decision, clause, mapper, call)

    def _tell_decision(
        self, decision: Decision, clause: Any, mapper: Any, call: Call
    ) -> None:
        """Tell a decision to those who listen, once per execution"""
        if not self._is_news(call, mapper):
            return

        unit = self._begun()
        begins, unit.told = not unit.told, True
        tell(
            self.anyblok.listeners.dispatch.decision,
            DecisionMade(self.anyblok, self, clause, mapper, decision, begins),
        )

    def _is_news(self, call: Call, mapper: Any) -> bool:
        """Return True once per execution, and per table of a flush"""
        if call is not NO_CALL:
            told, call.told = call.told, True
            return not told

        if not self._flushing:
            # A mere question.
            return False

        # Of the flush alone; it asks again for what it has to delete.
        unit, flush = self._begun(), self._transaction
        if unit.flush is not flush:
            unit.flush, unit.flushed = flush, set()

        told = mapper in unit.flushed
        unit.flushed.add(mapper)
        return not told

    def _tell_retry(
        self, call: Call, cause: Cause, error: Exception | None = None
    ) -> None:
        """Tell those who listen that a statement is run again"""
        listeners = self.anyblok.listeners.dispatch.retry
        if listeners and call.server is not None:
            tell(
                listeners,
                Retry(
                    self.anyblok, self, call.clause, call.server, cause, error
                ),
            )

    def _tell_wait(self, waited_for: Waited, since: float) -> None:
        """Tell those who listen that a statement has waited"""
        tell(
            self.anyblok.listeners.dispatch.wait,
            Wait(self.anyblok, self, waited_for, monotonic() - since),
        )

    def decision_for(self, clause: Any, call: Call = NO_CALL) -> Decision:
        """Return where a statement would go now, without effect

        :param clause: the statement; None: there is none to look at
        :param call: its execution
        :rtype: Decision
        :exception: UnknownServerError
        """
        registry = self.anyblok
        topology, freshness = registry.topology, registry.freshness
        if self._flushing:
            return decide_in_flush(
                not topology.read_only,
                bool(topology.replicas),
                registry.shadow is not None,
                registry.is_loading,
                registry.unittest_transaction is not None,
            )

        classify = partial(registry.statements.need_of, clause)
        reader, wanted = registry.reader(), _wanted_by(clause, call)
        unit = self._current() or NO_UNIT
        placement = unit.placement
        usable = registry.usable_readers()
        if placement.lost:
            left = tuple(x for x in usable if x not in placement.lost)
            # In read-only mode there is nothing to lose by asking.
            usable = left or (usable if topology.read_only else ())

        return decide(
            Situation(
                classify,
                usable=usable,
                behind=call.behind,
                **self._known_freshness(usable, reader, call),
                last=freshness.stays_on(reader),
                stays=registry.has_snapshots or unit.fell_back,
                compares=freshness.compares and not registry.has_snapshots,
                wrote_lately=freshness.must_ask_primary(reader),
                has_primary=not topology.read_only,
                falls_back=registry.fallback.to_primary,
                has_replicas=bool(topology.replicas),
                shadow=registry.shadow is not None,
                loading=registry.is_loading,
                unittest=registry.unittest_transaction is not None,
                wanted=self._known(wanted) if wanted else None,
                intent=self._intent_of(reader),
                pinned=self._is_pinned(),
                placement=placement,
                # A mere question takes nobody's turn.
                choose=(
                    registry.balancer.peek
                    if call is NO_CALL
                    else registry.balancer.choose
                ),
            )
        )

    def placement(self) -> Placement:
        """Return where this unit of work has been placed so far"""
        unit = self._current()
        return NOWHERE if unit is None else unit.placement

    def _current(self) -> UnitOfWork | None:
        """Return what is known of this unit of work; None: it hasn't begun"""
        unit, root = self._unit, self._transaction
        if root is not None and root is not unit.root:
            root = self.get_transaction()

        return None if root is None or root is not unit.root else unit

    def _begun(self) -> UnitOfWork:
        """Return this unit of work, which begins here if it hasn't yet"""
        unit = self._current()
        if unit is None:
            self._autobegin_t()
            unit = self._unit = UnitOfWork(self.get_transaction())

        return unit

    @property
    def wish(self) -> Wish | None:
        """Return what the innermost block of code around wants"""
        return self._wishes[-1][1] if self._wishes else None

    @property
    def intent(self) -> Intent | None:
        """Return where the innermost block of code, or the request, wants"""
        return self._intent_of(self.anyblok.reader())

    def _intent_of(self, reader: Reader) -> Intent | None:
        if self._wishes:
            return self._wishes[-1][1].intent

        return Intent.PRIMARY if reader.wants_primary else None

    @contextmanager
    def wanting(self, wish: Wish) -> Iterator[None]:
        """Let a block of code say where it wants to go; it nests

        :param wish: what it wants
        """
        if wish.intent is Intent.PRIMARY and not self._flushing:
            # What it sees from now on is the primary's.
            self.forget_replica_reads()

        token = object()
        self._wishes = (*self._wishes, (token, wish))
        try:
            yield
        finally:
            # Blocks of generators don't always end in their order.
            self._wishes = tuple(x for x in self._wishes if x[0] is not token)

    def _decided(self, clause: Any, call: Call) -> Decision:
        """Return where a statement goes: its replica is fresh enough"""
        while True:
            decision = self.decision_for(clause, call)
            name = decision.server_name
            if decision.reason in FALLBACKS and self._may_wait(call):
                continue

            if (
                call is NO_CALL
                or name is None
                or name == _wanted_by(clause, call)
                or self.is_aside
                or not self.anyblok.is_replica(name)
                or self._is_fresh(name, decision, clause, call)
            ):
                return decision

            call.behind |= {name}

    def _known_freshness(
        self, usable: Iterable[str], reader: Reader, call: Call
    ) -> dict[str, Any]:
        """Return which replicas may be fresh enough, for a Situation"""
        freshness = self.anyblok.freshness
        floor = call.floor or reader.knows.floor
        if floor is None or not freshness.was_behind_lately():
            return {}

        promising, nearest = freshness.promising(
            [x for x in usable if x != PRIMARY and x not in call.behind], floor
        )
        return {"promising": promising, "nearest": nearest}

    def _is_fresh(
        self, name: str, decision: Decision, clause: Any, call: Call
    ) -> bool:
        """Return True where a replica has what the caller must see"""
        registry = self.anyblok
        freshness = registry.freshness
        if not freshness.has_positions:
            return True

        reader: Reader = registry.reader()
        limit = self._max_staleness(clause)
        unit = self._current()
        if limit is None and unit is not None and self._is_checked(name, unit):
            return True

        call.clause, call.decision = clause, decision
        try:
            floor = call.floor = self._floor(name, reader, call, limit)
        except Behind as error:
            return self._note_unknown(name, call, error)

        if floor is None and not reader.knows.seen:
            # A reader that has seen nothing, and is promised nothing.
            return True

        call.served_by(name)
        wait = freshness.options.wait
        if wait and call.until is None and self._has_fallback():
            call.until = freshness.catch_up.until(name, reader, wait)

        connection = self._connections_of_replicas().get(name)
        if connection is None:
            # Asked as soon as there is one.
            self._unchecked = call
            return True

        return self._has_reached(name, connection, call)

    def _has_reached(
        self, name: str, connection: Connection, call: Call
    ) -> bool:
        """Ask a replica whether it has what the caller must see

        :param connection: to it, that will read
        """
        registry = self.anyblok
        freshness, reader = registry.freshness, registry.reader()
        unit = self._current()
        begun = monotonic()
        try:
            is_fresh: bool = freshness.is_fresh(
                name,
                connection,
                reader,
                call.floor,
                call.until,
                None if unit is None else unit.checked_floor,
            )
        except Behind as error:
            return self._note_unknown(name, call, error)
        finally:
            if call.until is not None:
                self._tell_wait(Waited.REPLICA, begun)

        if not is_fresh:
            freshness.note_behind(name)

        self._note_checked(reader, call, is_fresh)
        return is_fresh

    def _note_unknown(self, name: str, call: Call, error: Behind) -> bool:
        """Note that nobody can tell what a replica must have"""
        logger.debug("No replica is known to be fresh enough: %s", error)
        registry = self.anyblok
        call.behind = frozenset(x.name for x in registry.topology.replicas)
        call.floor = None
        registry.freshness.note_behind(name)
        self._note_checked(registry.reader(), call, is_fresh=False)
        return False

    def _connection_for_bind(self, engine: Any, *args: Any, **kw: Any) -> Any:
        """Return a connection; its replica is fresh enough

        SQLAlchemy has no event after the application's own after_begin, which
        whoever uses the connection later counts on.

        :exception: ReplicaBehind
        """
        if not (args or kw):
            begun = self._begun_on(engine)
            if begun is not None:
                return begun

        self._is_behind = False
        found = super()._connection_for_bind(engine, *args, **kw)
        if self._is_behind:
            self._is_behind = False
            raise ReplicaBehind

        return found

    def _begun_on(self, engine: Engine) -> Connection | None:
        """Return the connection of a unit of work that is settled

        What SQLAlchemy would return, in a fraction of the time.
        """
        unit = self._unit
        settled, root = unit.settled, unit.root
        if (
            settled is None
            or settled.engine is not engine
            or root is not self._transaction
            or root is None
            or self._trans_context_manager is not None
            or not root.is_active
        ):
            return None

        name = settled.decision.server_name or PRIMARY
        begun = unit.primary if name == PRIMARY else unit.reads_on.get(name)
        # Of an engine with other options there may be another connection.
        return begun if begun and begun.engine is engine else None

    def check_begun(self, name: str, connection: Connection) -> None:
        """Ask a replica that a session begins to read from, where it must

        :param name: of the replica
        :param connection: to it
        """
        call, self._unchecked = self._unchecked, None
        if call is None or call.server != name:
            return

        stay = self._stay
        if stay is not None and call.decision is stay.decision:
            self._is_behind = not self._begin_again(stay, connection)
        elif not self._has_reached(name, connection, call):
            call.behind |= {name}
            self._is_behind = True

        if (
            not self._is_behind
            and self.anyblok.listeners.dispatch.decision
            and call.decision
        ):
            self._tell_decision(call.decision, call.clause, call.mapper, call)

    def _begin_again(self, stay: Stay, connection: Connection) -> bool:
        """Begin a unit of work where the one before has read

        :rtype: False where the connection leads elsewhere
        """
        freshness, seen = self.anyblok.freshness, stay.seen
        link = freshness.link_of(connection)
        if (
            link is None
            or link.instance is not seen.instance
            or link.since > seen.at
        ):
            # Another server behind the name, or one that has restarted.
            self._stay = None
            return False

        settled, unit = stay.settled, self._unit
        stay.left -= 1
        unit.settled, unit.placement = settled, settled.placement
        unit.seen, unit.checked, unit.has_floor = seen, True, True
        if settled.knows is not None:
            unit.floor = unit.checked_floor = settled.knows.floor

        return True

    def note_stay(self, unit: UnitOfWork) -> None:
        """Note whether the next units of work begin as one that has ended

        :param unit: that has ended
        """
        registry, settled, stay = self.anyblok, unit.settled, self._stay
        freshness, reader = registry.freshness, registry.reader()
        if stay is not None and settled is stay.settled:
            if stay.left:
                return

            reader.note_units(stay.units)

        self._stay = None
        if unit.placement.on_primary or unit.placement.lost or self._wishes:
            return

        units, name = freshness.units_left(reader), unit.placement.replica
        decision = Decision(name, Reason.ALREADY_ON_REPLICA)
        seen = unit.seen
        if (
            units
            and name is not None
            and seen is not None
            and seen.instance is not None
            and not (self.twophase or self._has_binds)
            and self.bind in (None, registry.bind)
            and not registry.is_maintained
            and not registry.reads_by_age
            and self._has_noted(decision, unit)
        ):
            timeline = freshness.positions.timeline
            settled = self._settled_on(decision, registry.engine_of(name), unit)
            if settled is not None:
                self._stay = Stay(settled, seen, timeline, units)

    def _floor(
        self, name: str, reader: Reader, call: Call, limit: float | None
    ) -> ConsistencyToken | None:
        """Return the position that a replica must have reached

        :exception: Behind, where the primary must be asked and isn't there
        """
        freshness, unit = self.anyblok.freshness, self._current()
        left = NOWHERE.lost if unit is None else unit.placement.lost
        usable = self.anyblok.usable_readers()
        if left:
            usable = [x for x in usable if x not in left]

        if unit is not None and unit.has_floor:
            call.floor_at_start = unit.floor
        elif not call.has_floor:
            call.floor_at_start = freshness.floor_at_start(reader, usable)
            call.has_floor = True

        if (
            unit is not None
            and unit.placement.on_primary
            and self._keeps_reader()
        ):
            reader.note_read(Seen(PRIMARY, None, monotonic()))

        freshness.cover(
            reader, [x for x in reader.knows.seen if x.server != name], usable
        )
        floor = freshest(call.floor_at_start, reader.knows.floor)
        for _, wish in self._wishes:
            floor = freshest(floor, wish.token)

        if limit is not None:
            since = freshness.primary_since(monotonic() - limit)
            floor = freshest(floor, since)

        return floor

    def _is_checked(self, name: str, unit: UnitOfWork) -> bool:
        """Return True where a replica is known to have what must be seen"""
        knows = self.anyblok.reader().knows
        return (
            unit.checked
            and unit.placement.replica == name
            and unit.checked_floor is knows.floor
            and all(seen is unit.seen for seen in knows.seen)
            and all(wish.token is None for _, wish in self._wishes)
        )

    def _may_wait(self, call: Call) -> bool:
        """Return True where a statement waits for a replica, the nearest one

        Once, when none of those that were asked had what it must see.
        """
        registry = self.anyblok
        freshness = registry.freshness
        wait = freshness.options.wait
        if PRIMARY in registry.monitor.snapshot.down:
            # It is this or an error.
            wait = max(wait, PATIENCE)

        if not wait or call.until is not None or call.floor is None:
            return False

        nearest = freshness.nearest(call.behind)
        if nearest is None:
            return False

        if self._has_fallback() and freshness.catch_up.is_hopeless(nearest):
            return False

        call.until = monotonic() + wait
        call.behind -= {nearest}
        return True

    def _has_fallback(self) -> bool:
        """Return True where the primary serves for want of a replica"""
        registry = self.anyblok
        return (
            registry.fallback.to_primary
            and not registry.topology.read_only
            and PRIMARY not in registry.monitor.snapshot.down
        )

    def _note_checked(self, reader: Reader, call: Call, is_fresh: bool) -> None:
        """Note what the question whether a replica is fresh enough has given"""
        unit = self._current()
        if unit is None:
            return

        if call.has_floor:
            unit.floor, unit.has_floor = call.floor_at_start, True

        if is_fresh:
            floor = reader.knows.floor
            if unit.served and floor is not unit.checked_floor:
                # What it has loaded before may be older.
                self.forget_replica_reads()

            unit.checked, unit.checked_floor = True, floor
            if unit.placement.replica is None and call.server is not None:
                # It was asked before, behind then, and has been waited for.
                unit.placement = unit.placement.with_replica(call.server)
        elif not unit.served:
            unit.placement = unit.placement.without_replica()

    def _max_staleness(self, clause: Any) -> float | None:
        """Return how many seconds behind the primary a replica may be"""
        wish = self.wish
        if wish is not None and wish.max_staleness is not None:
            return wish.max_staleness

        limit: float | None = self.anyblok.max_staleness_of(clause)
        return limit

    def _note_seen(self, server: str, begins: bool = False) -> None:
        """Note that a replica has given rows to this unit of work

        :param begins: True for the first of it
        """
        unit = self._current()
        if unit is None or server not in unit.reads_on:
            # SQLAlchemy has only asked where a SELECT would go: its UPDATE
            # has a RETURNING instead.
            return

        unit.served = True
        freshness = self.anyblok.freshness
        reader: Reader = self.anyblok.reader()
        if not freshness.compares:
            if begins:
                reader.note_unit(server)

            return

        seen = unit.seen
        if seen is None or seen.server != server:
            link = freshness.link_of(unit.reads_on[server])
            instance = None if link is None else link.instance
            seen = unit.seen = Seen(server, instance, 0.0)

        seen.at = monotonic()
        if seen not in reader.knows.seen:
            reader.note_read(seen, begins)
        elif begins:
            reader.note_unit(server)

    def execute(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement; see SQLAlchemy's ``Session.execute``"""
        return self._run(super().execute, statement, args, kwargs)

    def scalars(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement; see SQLAlchemy's ``Session.scalars``"""
        return self._run(super().scalars, statement, args, kwargs)

    def scalar(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement; see SQLAlchemy's ``Session.scalar``"""
        return self._run(super().scalar, statement, args, kwargs)

    def bulk_save_objects(
        self, objects: Iterable[Any], *args: Any, **kwargs: Any
    ) -> None:
        """Save instances; see SQLAlchemy's ``Session.bulk_save_objects``

        :exception: StaleReadError, ReplicaWriteError
        """
        instances = list(objects)
        self._check_bulk("bulk_save_objects()", instances)
        super().bulk_save_objects(instances, *args, **kwargs)

    def bulk_insert_mappings(self, *args: Any, **kwargs: Any) -> None:
        """Insert rows; see SQLAlchemy's ``Session.bulk_insert_mappings``

        :exception: ReplicaWriteError
        """
        self._check_bulk("bulk_insert_mappings()")
        super().bulk_insert_mappings(*args, **kwargs)

    def bulk_update_mappings(self, *args: Any, **kwargs: Any) -> None:
        """Update rows; see SQLAlchemy's ``Session.bulk_update_mappings``

        :exception: ReplicaWriteError
        """
        self._check_bulk("bulk_update_mappings()")
        super().bulk_update_mappings(*args, **kwargs)

    def check_write(self, what: str) -> None:
        """Refuse a write where the caller wants replicas

        :param what: writes
        :exception: ReplicaWriteError
        """
        if self.intent is Intent.REPLICAS and self._is_split():
            raise _replica_write_error(what)

    def _is_split(self) -> bool:
        """Return True where this session has replicas to choose from"""
        registry = self.anyblok
        return bool(registry.topology.replicas) and not (
            registry.unittest_transaction or registry.is_loading
        )

    def _keeps_reader(self) -> bool:
        """Return True where what this session sees counts for its reader"""
        registry = self.anyblok
        return (
            registry.freshness.keeps_sessions
            and not self.is_aside
            and registry.unittest_transaction is None
        )

    def _check_bulk(self, what: str, instances: Iterable[Any] = ()) -> None:
        """Refuse a bulk write that the caller, or newer data, forbids"""
        self.check_write(what)
        if self._is_guarded():
            write_guard.check_before_bulk_save(self, instances)

    def _is_guarded(self) -> bool:
        """Return True where stale changes are looked for"""
        registry = self.anyblok
        return (
            registry.write_guard
            and self._is_split()
            and not registry.topology.read_only
        )

    def connection(
        self, bind_arguments: Any = None, *args: Any, **kwargs: Any
    ) -> Connection:
        """Return a connection; see SQLAlchemy's ``Session.connection``"""
        call = Call(None)
        arguments = {**(bind_arguments or {}), provenance.CALL: call}
        while True:
            try:
                connection = super().connection(arguments, *args, **kwargs)
            except ReplicaBehind:
                # The call knows who is.
                continue

            break

        name = call.server
        if name is not None and name in self._connections_of_replicas():
            self._note_seen(name)

        on_primary = call.server == PRIMARY or self.placement().on_primary
        if on_primary and not self._flushing:
            # What the caller does with it is unknown.
            self._place(Placement.with_write)

        return connection

    def _merge(self, state: Any, state_dict: Any, **kwargs: Any) -> Any:
        """Merge an instance; what a replica said of it comes with it

        SQLAlchemy has no event around it.
        """
        merged = super()._merge(state, state_dict, **kwargs)
        provenance.note_merge(
            self, state, instance_state(merged), kwargs["load"]
        )
        return merged

    def forget_replica_reads(self) -> None:
        """Expire what a replica loaded and nobody changed

        What follows is then read from the primary. Changes stay.
        """
        provenance.expire_replica_reads(self)

    def has_work_of_its_own(self) -> bool:
        """Return True where only this session knows what it has done

        It has used the primary, or has changes to flush.
        """
        unit = self._current() or NO_UNIT
        placement = (unit.shadow or unit).placement
        return placement.on_primary or bool(
            self.new or self.dirty or self.deleted
        )

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

    def _known(self, wanted: str | None) -> str | None:
        """Return the server that a statement names, if there is one

        Without replicas any name means the one server.
        """
        known = self.anyblok.topology
        if wanted is None or wanted == REPLICA or not known.replicas:
            return wanted

        names = [PRIMARY, *(server.name for server in known.replicas)]
        if wanted not in names:
            raise UnknownServerError(
                f"{OPTION}={wanted!r}: no such server; write one of "
                + ", ".join([*names, REPLICA])
            )

        return wanted

    def _error_of(self, decision: Decision) -> Exception:
        """Return the error of a decision without a server"""
        because = decision.because or "The statement"
        if decision.reason is Reason.WRITE_ON_REPLICAS:
            return _replica_write_error(because)

        if decision.reason not in WANT_OF_REPLICA:
            return read_only_mode(because)

        if self.anyblok.topology.read_only:
            return NoReplicaError(
                "Read-only mode, and no replica of --db-ro-urls has reached "
                "the position that is asked for: try again, or set --db-ro-wait"
            )

        return NoReplicaError(
            f"{self._missing_replica()}: {WHY_NO_REPLICA[decision.reason]}, "
            "and the primary serves no read for it (--db-ro-fallback error). "
            "Roll back and try again, set --db-ro-wait, or read under "
            "registry.use_primary()"
        )

    def _note_given(self, call: Call, clause: Any, bound: Any) -> None:
        """Note where a statement goes whose caller has given the bind"""
        if call is not NO_CALL:
            call.clause = clause
            call.served_by(self.anyblok.server_name_of(bound.engine))
            self._is_reading = self._is_proven(call)

    def _is_proven(self, call: Call) -> bool:
        """Return True where a statement is proven to be a plain read

        Nobody asks while a registry is loaded, on the primary: the proof needs
        the catalogue and the parser, and the start would wait for them.
        """
        registry = self.anyblok
        return not registry.is_loading and bool(
            registry.statements.need_of(call.clause).is_read
        )

    def _changes_schema(self, clause: Any) -> bool:
        """Return True where a statement may change what the catalogue says"""
        registry = self.anyblok
        return bool(
            registry.is_loading or registry.statements.change_schema(clause)
        )

    def _take_slot(self, slots: Slots) -> None:
        """Let this unit of work read from the primary for want of a replica

        :param slots: that there are
        :exception: NoReplicaError, where none becomes free
        """
        # Before it connects, which would be a connection too many.
        unit = self._begun()
        if unit.slot is None:
            begun = monotonic()
            unit.slot = slots.take()
            self._tell_wait(Waited.FALLBACK_SLOT, begun)

        if unit.slot is None:
            raise NoReplicaError(
                f"{self._missing_replica()}; {slots.limit} units of work read "
                "from the primary for it, no more may "
                "(--db-ro-fallback-limit), and none has ended within "
                f"{slots.wait:g} s: try again"
            )

    def _missing_replica(self) -> str:
        """Return why no replica serves, for a person"""
        registry = self.anyblok
        health = registry.health()
        unusable = [
            f"{server}: {health.of(server.name).reason}"
            for server in registry.topology.replicas
            if server.name in health.unusable
        ]
        return "No replica will do" + (
            f" ({'; '.join(unusable)})" if unusable else ""
        )

    def _note_decided(self, call: Call, decision: Decision) -> None:
        """Note where a statement goes that is about to be executed"""
        call.decision = decision
        call.served_by(decision.server_name)
        if call.from_replica:
            return

        self._is_reading = self.placement().wrote or self._is_proven(call)
        slots = self.anyblok.slots
        if slots is not None and decision.reason in WANT_OF_REPLICA:
            self._take_slot(slots)

        if not self._flushing:
            # Its connection may be one that a flush has asked for.
            self._place(Placement.with_primary)
            provenance.expire_replica_reads(self)

    def _run(
        self,
        run: Callable[..., Any],
        statement: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a statement, again where its replica couldn't do it"""
        options = kwargs.get("execution_options") or NO_OPTIONS
        # SQLAlchemy forgets the clause of an ORM union.
        statement = _with_translation(statement, options)
        arguments = {"clause": statement}
        arguments.update(kwargs.pop("bind_arguments", None) or ())
        if self.dispatch.do_orm_execute:
            kwargs.setdefault("_add_event", _note_clause)

        # A replica that fails is left: no more than each of them, once.
        left = len(self.anyblok.topology.replicas)
        until: float | None = None
        call = Call(options.get(OPTION))
        while True:
            arguments[provenance.CALL] = call
            try:
                result = run(
                    statement, *args, bind_arguments=arguments, **kwargs
                )
            except ReplicaBehind:
                # The call knows who is.
                call.told = False
                continue
            except PoolTimeout:
                # All its connections may wait for a server that hangs.
                left -= 1
                down = self.anyblok.monitor.snapshot.down
                if left < 0 or call.server not in down:
                    raise

                self._tell_retry(call, Cause.POOL_TIMEOUT)
                call = Call(call.wanted)
            except DBAPIError as error:
                until = until or monotonic() + PATIENCE
                left -= call.from_replica
                cause = left >= 0 and self._cause_to_run_again(
                    call, error, until
                )
                if not cause:
                    self._check_snapshot(call, error)
                    raise

                self._tell_retry(call, cause, error)
                call = Call(call.wanted)
            else:
                self._note_done(call, options)
                if not (options and self._is_missing(call, options, result)):
                    return result

                self._tell_retry(call, Cause.ROW_MISSING)
                call = Call(PRIMARY)
            finally:
                self._is_reading = False

    def _is_missing(
        self, call: Call, options: Mapping[str, Any], result: Any
    ) -> bool:
        """Return True where a replica has not the row of a known instance

        It is behind another that has loaded the instance, or behind the
        primary: SQLAlchemy would say that the row has been deleted.

        :param options: of the execution
        """
        load = options.get("_sa_orm_load_options")
        return (
            getattr(load, "_refresh_state", None) is not None
            and call.from_replica
            and _wanted_by(call.clause, call) is None
            and call.decision is not None
            and self.intent is not Intent.REPLICAS
            and not self.anyblok.topology.read_only
            and result.raw.rowcount == 0
        )

    def _note_done(self, call: Call, options: Mapping[str, Any]) -> None:
        """Note what a statement that has been executed means for the next"""
        if options and call.from_replica and call.server is not None:
            provenance.note_lazy_load(self, call.server, options)

        if self._note_settled(call):
            return

        decision, unit = call.decision, self._unit
        if decision is None:
            # On the caller's own bind.
            if call.server is not None and call.server in (
                self._connections_of_replicas()
            ):
                self._note_seen(call.server)

            return

        begins = decision.reason in DRAWN
        if call.from_replica and call.server is not None:
            self._note_seen(call.server, begins)
            return

        if begins:
            self.anyblok.reader().note_unit(PRIMARY)

        if self._current() is not None:
            unit.fell_back |= decision.reason in FALLBACKS
            unit.changed_schema |= self._changes_schema(call.clause)

    def _note_settled(self, call: Call) -> bool:
        """Note a statement of a unit of work that nothing has changed for

        :rtype: False where there is more to note
        """
        unit, stay, decision = self._unit, self._stay, call.decision
        settled = unit.settled
        if settled is None or (
            settled.decision is not decision
            and (stay is None or stay.decision is not decision)
        ):
            return False

        if call.read is None:
            unit.changed_schema |= self._changes_schema(call.clause)
            return True

        reader = call.reader or self.anyblok.reader()
        if reader.knows is not settled.knows:
            # While it ran, another thread of the request has read elsewhere.
            return False

        unit.served = True
        if unit.seen is not None:
            unit.seen.at = monotonic()

        return True

    def _place(self, change: Callable[[Placement], Placement]) -> None:
        """Change where this unit of work is placed"""
        unit = self._current()
        if unit is not None:
            unit.placement = change(unit.placement)

    def _cause_to_run_again(
        self, call: Call, error: DBAPIError, until: float
    ) -> Cause | None:
        """Return why a statement that failed may be decided anew; None: no

        On a replica nothing can have happened that would be lost or done
        twice: what is sent there is proven to be a plain read.

        :param call: of the statement that failed
        :param error: of the server, or of the way to it
        :param until: seconds of ``time.monotonic()``: it waits for a server
            no longer
        """
        name = call.server
        if name is None or call.decision is None:
            return None

        if not call.from_replica:
            may = monotonic() < until and self._may_leave_primary(call, error)
            return Cause.PRIMARY_GONE if may else None

        if name not in self._connections_of_replicas():
            # It refused the connection: nothing has been sent.
            self.anyblok.monitor.report_down(name, summary_of(error))
            may = _wanted_by(call.clause, call) in (None, REPLICA)
            return Cause.CONNECTION_REFUSED if may else None

        if not self.anyblok.statements.need_of(call.clause).is_read:
            # The caller has vouched for it, or there is no primary.
            return None

        if is_lost(self._connections_of_replicas()[name], error):
            return Cause.CONNECTION_LOST if self._leave_lost(name) else None

        if sqlstate_of(error.orig) in FAILS_HERE or _passes(error.orig):
            return Cause.FAILED_THERE if self._leave_lost(name) else None

        refused = self._refused(name, call.clause, error)
        return Cause.REFUSED if refused else None

    def _may_leave_primary(self, call: Call, error: DBAPIError) -> bool:
        """Return True where the primary is gone, and a read may go elsewhere"""
        decision, unit = call.decision, self._current()
        if decision is None or decision.server_name != PRIMARY:
            return False

        if unit is not None and unit.primary is not None:
            return self._may_begin_anew(unit, unit.primary, call, error)

        if decision.reason not in NOT_FOR_PRIMARY:
            return False

        self._begun().placement = self.placement().without_primary()
        if decision.reason is Reason.PRIMARY_TAKES_READS:
            self._place(lambda x: x.with_lost(PRIMARY, served=False))
        else:
            # It may be full, and not gone.
            begun = monotonic()
            self.anyblok.monitor.step([PRIMARY])
            sleep(PAUSE)
            self._tell_wait(Waited.PRIMARY, begun)

        return True

    def _may_begin_anew(
        self, unit: UnitOfWork, connection: Connection, call: Call, error: Any
    ) -> bool:
        """End a unit of work that has only read on a primary that died

        Another begins in its place, as if the application had rolled it back.
        """
        begun = self.get_transaction()
        if (
            begun is None
            or begun.origin is not SessionTransactionOrigin.AUTOBEGIN
            or self.anyblok.has_snapshots
            or self.in_nested_transaction()
            or unit.placement.wrote
            or self.new
            or self.dirty
            or self.deleted
        ):
            return False

        if not self.anyblok.statements.need_of(call.clause).is_read:
            return False

        if not is_lost(connection, error):
            return False

        self.rollback()
        return True

    def _connections_of_replicas(self) -> Mapping[str, Connection]:
        """Return the replicas' connections of this unit of work"""
        unit = self._current()
        return {} if unit is None else unit.reads_on

    def _leave_lost(self, name: str) -> bool:
        """Leave a replica whose connection is lost, if that loses nothing"""
        unit = self._current()
        served = unit is not None and unit.served
        if served and self.anyblok.has_snapshots:
            # What follows would be of another snapshot.
            return False

        self._place(lambda x: x.with_lost(name, served=served))
        return True

    def _check_snapshot(self, call: Call, error: DBAPIError) -> None:
        """Tell where what follows would be of another snapshot

        :exception: SnapshotLostError
        """
        connection = self._connections_of_replicas().get(call.server or "")
        if (
            self.anyblok.has_snapshots
            and connection is not None
            and is_lost(connection, error)
        ):
            raise SnapshotLostError(None, None, error.orig or error) from error

    def _refused(self, name: str, statement: Any, error: DBAPIError) -> bool:
        """Send a statement that a standby refuses to the primary, for ever"""
        state = sqlstate_of(error.orig)
        if state not in REFUSALS or self.anyblok.topology.read_only:
            return False

        because = f"{name} has refused it: {state}"
        self.anyblok.statements.refuse(statement, because)
        logger.warning(
            "%s refused what was taken for a read (%s); it goes to the primary "
            "from now on: %s",
            name,
            summary_of(error),
            shape_of(statement),
        )
        return True


def _passes(error: Any) -> bool:
    """Return True where a replica won't fail so for ever"""
    diagnosis = getattr(error, "diag", None)
    return getattr(diagnosis, "source_function", None) in PASSING


def _note_clause(state: ORMExecuteState) -> None:
    """Have the decision made on what other listeners made of a statement"""
    state.bind_arguments["clause"] = state.statement


def _record_placement(
    session: MixinSession,
    transaction: SessionTransaction,
    connection: Connection,
) -> None:
    """Note the server on which a session has really begun"""
    name = session.anyblok.server_name_of(connection.engine)
    if name is None:
        return

    unit = session._current()
    if unit is None:
        unit = session._unit = UnitOfWork(session.get_transaction())

    before = session.placement()
    if session.anyblok.is_replica(name):
        unit.reads_on[name] = connection
        kept = before.replica in session.anyblok.usable_readers()
        unit.placement = before if kept else before.with_replica(name)
        session.check_begun(name, connection)
    else:
        if unit.primary is not connection:
            unit.primary = connection
            writes.watch(session, unit)

        before = unit.placement
        # AnyBlok marks what a One2Many has loaded as changed, and the flush of
        # the next query has nothing to send: that ends no reads from a replica.
        if not session._flushing:
            unit.placement = before.with_primary()
            provenance.expire_replica_reads(session)


def _end_replica_side(session: MixinSession) -> None:
    """End the replica's side of a unit of work before the primary's commit

    There is one only where replicas have real transactions.
    """
    unit = session._current()
    if unit is None or session.in_nested_transaction():
        return

    if not unit.placement.on_primary:
        return

    for connection in unit.reads_on.values():
        end_now(connection)


def _after_commit(session: MixinSession) -> None:
    """Note what a commit has changed for what comes after it"""
    unit = session._current()
    if unit is None or session.in_nested_transaction():
        return

    if unit.shadow is not None:
        session.anyblok.shadow.note_commit(session, unit.shadow)

    if unit.changed_schema:
        # The catalogue is read again when a statement wants to know.
        session.anyblok.forget_catalogue()

    if not session._keeps_reader():
        return

    registry = session.anyblok
    driver = _idle_driver(unit.primary)
    if driver is None:
        return

    if not registry.topology.replicas:
        # Asked when somebody wants to know.
        registry.reader().note_unknown_write(None)
    elif unit.placement.wrote:
        registry.freshness.note_commit(registry.reader(), driver)
        unit.covered = True
    else:
        _note_fallback(session, unit)


def _after_rollback(session: MixinSession) -> None:
    """Note what a unit of work has seen, or may have committed"""
    unit = session._current()
    if unit is None or not session._keeps_reader():
        return

    if unit.is_unknown:
        session.anyblok.reader().note_unknown_write(None)
    else:
        _note_fallback(session, unit)


def _note_fallback(session: MixinSession, unit: UnitOfWork) -> None:
    """Note how far the primary is that has read for want of a replica

    Not at the start of the next unit of work: until then a replica may have
    caught up.
    """
    if not unit.fell_back:
        return

    driver = _idle_driver(unit.primary)
    if driver is not None and session.anyblok.freshness.has_positions:
        registry = session.anyblok
        registry.freshness.note_primary_read(registry.reader(), driver)
        unit.covered = True


def _note_end(session: MixinSession, transaction: SessionTransaction) -> None:
    """Note that what this unit of work has read, it has read by now"""
    unit = session._unit
    if unit.root is not transaction:
        return

    session._unit = NO_UNIT
    if unit.shadow is not None:
        session.anyblok.shadow.note_end(unit.shadow)

    if unit.slot is not None:
        unit.slot.give_back()

    if not session._keeps_reader():
        return

    now = monotonic()
    if unit.seen is not None:
        unit.seen.at = now

    if unit.placement.on_primary and not unit.covered:
        session.anyblok.reader().note_read(Seen(PRIMARY, None, now))

    session.note_stay(unit)


def _idle_driver(connection: Connection | None) -> Any:
    """Return the driver's connection, if it can be asked something now"""
    if connection is None or connection.closed or connection.invalidated:
        return None

    driver: Any = connection.connection.dbapi_connection
    return None if is_in_transaction(driver) else driver


def _check_flush(
    session: MixinSession, flush_context: Any, instances: Any
) -> None:
    """Refuse to write what the caller, or newer data, forbids"""
    if session.intent is Intent.REPLICAS:
        changed = write_guard.changed_instance(session)
        if changed is not None:
            session.check_write(f"the flush of {changed}")

    if session._is_guarded():
        write_guard.check_before_flush(session)


def _after_flush(session: MixinSession, flush_context: Any) -> None:
    """Forget what a replica loaded, once the flush has written"""
    if session.placement().wrote:
        provenance.expire_replica_reads(session)


def _with_translation(statement: Any, options: Mapping[str, Any]) -> Any:
    """Return a statement that says which tables its call means"""
    if TRANSLATION not in options:
        return statement

    return statement.execution_options(**{TRANSLATION: options[TRANSLATION]})


def _wanted_by(clause: Any, call: Call) -> str | None:
    """Return the server that a call, or the statement's own options, name"""
    options: Mapping[str, Any] = getattr(clause, "_execution_options", {})
    wanted: str | None = call.wanted or options.get(OPTION)
    return wanted


def statement_of(statement: Any) -> Any:
    """Return what SQLAlchemy executes for a query, or a statement as it is

    :param statement: of SQLAlchemy, a query of AnyBlok's or of SQLAlchemy's
    """
    if isinstance(statement, Query):
        statement = statement.statement

    return getattr(statement, "sql_statement", statement)


def _replica_write_error(what: str) -> ReplicaWriteError:
    return ReplicaWriteError(
        f"Not a read, and its caller wants replicas: {what}; nothing was sent. "
        "Take it out of use_replicas(), or put it under use_primary(); a "
        "function that only reads is declared by --db-ro-functions"
    )
