# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Everything goes to the primary, and what would have been is noted.

A unit of work has another placement here than in the session: the rules are
asked as if there were replicas, and it moves as it would have moved. Nothing of
that is seen by the session. What only a replica's answer could tell isn't
known: whether it would have had what a session must see is judged by the
monitor's measure of its lag, where there is a replica to measure.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from logging import getLogger
from random import random
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from sqlalchemy.sql.dml import UpdateBase

from ..callers import place_of_caller
from ..consistency import Consistency
from ..routing.balancing import Balancer, Policy
from ..routing.catalogue import Catalogue
from ..routing.decision import (
    PRIMARY,
    Decision,
    Reason,
    Situation,
    decide,
)
from ..routing.intent import OPTION, Intent
from ..routing.intent import REPLICA as ANY_REPLICA
from ..routing.need import Need
from ..routing.statements import Statements, shape_of
from ..routing.transaction import NOWHERE as NOT_PLACED
from ..session import FALLBACKS
from ..writes import session_of
from . import files, record
from .files import EVERY
from .record import (
    NOWHERE,
    OTHER,
    READ,
    REPLICA,
    Record,
    ShadowOptions,
    Table,
    Unit,
    reason_without_values,
    without_values,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from ..fallback import Fallback
    from ..health.model import ServerHealth
    from ..reader import Reader
    from ..topology import Topology

logger = getLogger(__name__)

# Seconds at least between two looks at the catalogue.
PAUSE = 1.0

# Seconds that the thread is waited for at the end.
PATIENCE = 5.0

# Statements whose text is remembered; and tokens.
MAX_TEXTS = 1_000

# Of a replica that isn't there.
ASSUMED = ("replica1",)

# How a unit of work begins to read.
BEGINS = frozenset(
    [
        Reason.USABLE_REPLICA,
        Reason.PRIMARY_TAKES_READS,
        Reason.NO_FRESH_REPLICA,
    ]
)

# Where it counts what a replica has.
COMPARED = frozenset(
    [
        Reason.USABLE_REPLICA,
        Reason.ALREADY_ON_REPLICA,
        Reason.NO_FRESH_REPLICA,
        Reason.REPLICA_BEHIND,
    ]
)

# What a statement that follows finds as it was.
STAYS = BEGINS | {Reason.ALREADY_ON_PRIMARY, Reason.ALREADY_ON_REPLICA}

# Of an error that an unknown server's name is.
UNKNOWN_SERVER = Decision(None, Reason.STATEMENT_SAYS)


class Behind(NamedTuple):
    """The replicas that are further behind than they may be

    :param names: of those that wouldn't be waited for
    :param are_all: True where each usable one is behind
    """

    names: frozenset[str]
    are_all: bool


NOT_BEHIND = Behind(frozenset(), are_all=False)


class Shadow:
    """What would have been decided for one registry, in this process

    :param registry: whose statements all go to the primary
    :param known: the servers that the options name
    :param options: of the shadow mode
    :param fallback: what a read does that no replica can serve
    :param policy: how a server is chosen
    """

    def __init__(
        self,
        registry: Any,
        known: Topology,
        options: ShadowOptions,
        fallback: Fallback,
        policy: Policy,
    ) -> None:
        self._registry = registry
        self._known = known
        self._options = options
        self._fallback = fallback
        self._policy = policy
        self.replicas = tuple(server.name for server in known.replicas)
        self._readers: tuple[str, ...] = ASSUMED
        if known.replicas:
            self._readers = tuple(server.name for server in known.readers)

        self._balancer = Balancer(
            policy,
            lambda: registry.monitor.snapshot.shares,
            lambda name: 0,
            random(),
        )
        self.statements = Statements(Catalogue(), self.want_catalogue)
        #: when any session of the process has written last, in seconds of
        #: time.monotonic()
        self.wrote_at: float | None = None
        #: the names of the models, by those of their tables
        self.models: dict[str, str] = {}
        self._texts: dict[Any, str] = {}
        # Moments of time.monotonic(), at which they were heard of first.
        self._tokens: dict[str, float] = {}
        self._is_on = True
        self._has_told = False
        self._pid = os.getpid()
        self._database = str(known.servers[0].url.database)
        self._path = files.new_path(options.directory, self._database)
        # Guards the record; each unit of work counts for itself till its end.
        self._lock = threading.Lock()
        self.forget()
        # Of the thread.
        self._wants_catalogue = True
        self._woken, self._stopped = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        #: True once the catalogue has been read
        self.is_ready = False
        _shadows.add(self)

    def anew(self) -> Shadow:
        """Return the same for a process that has been forked, from nothing"""
        new = Shadow(
            self._registry,
            self._known,
            self._options,
            self._fallback,
            self._policy,
        )
        new.models = self.models
        new.statements.catalogue = self.statements.catalogue
        new.is_ready = self.is_ready
        if self._thread is not None and not self._stopped.is_set():
            new.start()

        return new

    def start(self) -> None:
        """Start the thread that reads the catalogue and writes the file"""
        self._thread = threading.Thread(
            target=self._run, name="anyblok-multi-engines-shadow", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and write the file"""
        _shadows.discard(self)
        self._stopped.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(PATIENCE)

        self.write()

    def record(self) -> Record:
        """Return what this process has seen so far"""
        with self._lock:
            self._record.until = time.time()
            return deepcopy(self._record)

    def forget(self) -> None:
        """Forget what this process has seen so far"""
        now = time.time()
        with self._lock:
            self._record = Record(self._database, self.replicas, now, now)

    def want_catalogue(self) -> None:
        """Have the catalogue read again"""
        self._wants_catalogue = True
        self._woken.set()

    def write(self) -> None:
        """Write the file; a failure is told once, and is nobody's"""
        if self._pid != os.getpid():
            # Of the parent.
            return

        try:
            files.write(self._path, self.record())
        except Exception as error:
            if not self._has_told:
                self._has_told = True
                logger.warning(
                    "What the shadow mode has seen can't be written; it goes "
                    "on, and the report lacks this process: %s",
                    error,
                )

    def _run(self) -> None:
        written_at = time.monotonic()
        while not self._stopped.is_set():
            try:
                if self._wants_catalogue:
                    self._read_catalogue()

                if time.monotonic() - written_at >= EVERY:
                    self.write()
                    written_at = time.monotonic()
            except Exception:
                logger.exception("The shadow mode failed, and goes on")

            # Many may wake it, one after the other.
            self._stopped.wait(PAUSE)
            self._woken.wait(EVERY - PAUSE)
            self._woken.clear()

    def _read_catalogue(self) -> None:
        self._wants_catalogue = False
        found = self._registry.read_catalogue()
        if found is None:
            # Nobody answers: asked again the next time.
            self._wants_catalogue = True
            return

        if found != self.statements.catalogue:
            self.statements.catalogue = found

        self.is_ready = True

    @contextmanager
    def aside(self, session: Any) -> Iterator[None]:
        """Take what is asked in the block for no part of its unit of work

        :param session: that asks
        """
        before, session.shadows_aside = session.shadows_aside, True
        try:
            yield
        finally:
            session.shadows_aside = before

    def note(self, session: Any, clause: Any, mapper: Any, call: Any) -> None:
        """Note what would have been decided for a statement

        :param session: that is about to execute it
        :param clause: the statement
        :param mapper: of the statement, or None
        :param call: its execution
        """
        if not self._is_on:
            return

        try:
            self._note(session, clause, mapper, call)
        except Exception:
            self._fail()

    def note_sent(self, connection: Connection, statement: Any) -> None:
        """Note what a flush writes, when it is sent: not all of it is

        :param connection: to the primary
        :param statement: of SQLAlchemy
        """
        if not (self._is_on and isinstance(statement, UpdateBase)):
            return

        try:
            self._note_sent(connection, statement)
        except Exception:
            self._fail()

    def note_commit(self, session: Any, unit: Unit) -> None:
        """Note a commit: what its session reads next must be as fresh

        :param session: that has committed
        :param unit: of work
        """
        if unit.placement.wrote:
            reader = session.anyblok.reader()
            reader.shadow_wrote_at = self.wrote_at = time.monotonic()

    def note_token_given(self, reader: Reader, token: str) -> None:
        """Note when that was written which a token stands for

        :param reader: who has written
        :param token: of its last write
        """
        if reader.shadow_wrote_at is not None:
            self._remember_token(token, reader.shadow_wrote_at)

    def note_token(self, reader: Reader, token: str) -> None:
        """Note that a reader must see what was written before a token

        A token doesn't say when: before this process has heard of it first.

        :param reader: who reads
        :param token: that it was given
        """
        at = self._remember_token(token, time.monotonic())
        reader.shadow_wrote_at = max(at, reader.shadow_wrote_at or at)

    def _remember_token(self, token: str, at: float) -> float:
        if len(self._tokens) >= MAX_TEXTS:
            self._tokens.clear()

        return self._tokens.setdefault(token, at)

    def note_end(self, unit: Unit) -> None:
        """Note the end of a unit of work

        :param unit: of work
        """
        try:
            with self._lock:
                unit.add_to(self._record)
        except Exception:
            self._fail()

    def _fail(self) -> None:
        """Let nothing of ours be the application's error"""
        self._is_on = False
        logger.exception("The shadow mode failed, and notes no more")

    def decision_for(
        self, session: Any, clause: Any, call: Any, unit: Unit | None
    ) -> Decision:
        """Return what would be decided for a statement

        :param session: that asks
        :param clause: the statement
        :param call: its execution
        :param unit: of work; None: it hasn't begun
        """
        if unit is None:
            unit = Unit(NOT_PLACED)

        behind = self._behind(session, clause, unit)
        return self._decision(session, clause, call, unit, behind)

    def _decision(
        self, session: Any, clause: Any, call: Any, unit: Unit, behind: Behind
    ) -> Decision:
        registry = self._registry
        reader = registry.reader()
        options = getattr(clause, "_execution_options", {})
        wanted = call.wanted or options.get(OPTION)
        if wanted not in (None, PRIMARY, ANY_REPLICA, *self._readers):
            if self.replicas:
                return UNKNOWN_SERVER

            wanted = ANY_REPLICA

        intent = Intent.PRIMARY if session.shadows_aside else session.intent
        return decide(
            Situation(
                partial(self.statements.need_of, clause),
                usable=self._usable(),
                behind=behind.names,
                flushing=session._flushing,
                stays=registry.has_snapshots or unit.fell_back,
                compares=(
                    registry.freshness.compares and not registry.has_snapshots
                ),
                wrote_lately=self._wrote_lately(reader),
                falls_back=self._fallback.to_primary,
                wanted=wanted,
                intent=intent,
                pinned=session._is_pinned(),
                placement=unit.placement,
                choose=self._balancer.choose,
            )
        )

    def _note(self, session: Any, clause: Any, mapper: Any, call: Any) -> None:
        registry = self._registry
        if registry.is_loading or registry.unittest_transaction is not None:
            return

        unit = self._unit_of(session)
        if self._goes_on(session, clause, call, unit):
            unit.again += 1
            return

        unit.count_again()
        need = self.statements.need_of(clause)
        if need.unknown and not self.is_ready:
            unit.is_judged = False

        behind = self._behind(session, clause, unit)
        decision = self._decision(session, clause, call, unit, behind)
        unit.needs_fresher |= behind.are_all and decision.reason in COMPARED
        logger.debug("Without the shadow mode: %s", decision)
        if session.shadows_aside:
            unit.asides += need.is_read
            return

        if session._flushing and need.is_read:
            # On the connection of the flush, if that sends anything.
            return

        self._move(unit, decision, need)
        if decision.reason in BEGINS:
            unit.age = self._age_of_write(registry.reader())

        if need.is_read:
            self._settle(unit, decision)
        else:
            self._note_no_read(unit, clause, mapper, need)

    def _unit_of(self, session: Any) -> Unit:
        begun = session._unit
        if begun.root is None or begun.root is not session._transaction:
            begun = session._begun()

        unit: Unit | None = begun.shadow
        if unit is None:
            unit = begun.shadow = Unit(NOT_PLACED)

        return unit

    def _goes_on(
        self, session: Any, clause: Any, call: Any, unit: Unit
    ) -> bool:
        """Return True for a plain read that goes where the one before went"""
        if (
            unit.settled is not self._registry.monitor.snapshot
            or session._wishes
            or session.shadows_aside
            or call.wanted is not None
            or session.in_nested_transaction()
        ):
            return False

        return not self._registry.reader().wants_primary and (
            self.statements.is_known_read(clause)
        )

    def _settle(self, unit: Unit, decision: Decision) -> None:
        registry = self._registry
        if decision.reason in STAYS and not registry.reads_by_age:
            unit.settled = registry.monitor.snapshot

    def _move(self, unit: Unit, decision: Decision, need: Need) -> None:
        """Place a unit of work where a statement would have placed it"""
        name, reason = decision.server_name, decision.reason
        kind = READ if need.is_read else OTHER
        where = REPLICA
        if name is None:
            where = NOWHERE
        elif name == PRIMARY:
            where = record.PRIMARY
            unit.fell_back |= reason in FALLBACKS
            if need.is_read:
                unit.placement = unit.placement.with_primary()
            else:
                unit.placement = unit.placement.with_write()
        elif unit.placement.replica != name:
            unit.placement = unit.placement.with_replica(name)

        unit.count(where, reason.value, kind, 1)

    def _note_no_read(
        self, unit: Unit, clause: Any, mapper: Any, need: Need
    ) -> None:
        """Note a statement that isn't proven to be a read, and who asks"""
        place = place_of_caller()
        if isinstance(clause, UpdateBase):
            unit.note_writer(self._model_of(clause, mapper), place)
            return

        because = reason_without_values(need.because or "")
        unit.note_writer(because, place)
        if unit.unproven is None:
            unit.unproven = Table()

        unit.unproven.add((need.kind, because, self._text_of(clause), place), 1)
        if self.statements.change_schema(clause):
            self.want_catalogue()

    def _note_sent(self, connection: Connection, statement: Any) -> None:
        session = session_of(connection.info)
        if session is None or not session._flushing:
            return

        registry = self._registry
        if registry.is_loading or registry.unittest_transaction is not None:
            return

        unit = self._unit_of(session)
        unit.count_again()
        if unit.flush is not session._transaction:
            unit.flush, unit.place = session._transaction, place_of_caller()

        unit.placement = unit.placement.with_write()
        unit.count(record.PRIMARY, Reason.FLUSHING.value, OTHER, 1)
        unit.note_writer(self._model_of(statement, None), unit.place)

    def _model_of(self, statement: Any, mapper: Any) -> str:
        """Return the name of the model that a statement writes, or its table"""
        name = getattr(
            getattr(mapper, "class_", None), "__registry_name__", None
        )
        if name is not None:
            return str(name)

        table = str(getattr(statement.table, "name", "?"))
        return self.models.get(table, table)

    def _text_of(self, clause: Any) -> str:
        """Return the text of a statement, without values"""
        if clause is None:
            return ""

        key = _key_of(clause)
        found = self._texts.get(key)
        if found is None:
            try:
                found = without_values(shape_of(clause))
            except Exception as error:
                found = f"can't be compiled: {type(error).__name__}"

            if len(self._texts) >= MAX_TEXTS:
                self._texts.clear()

            if key is not None:
                self._texts[key] = found

        return found

    def _wrote_lately(self, reader: Reader) -> bool:
        """Return True while the primary alone would do: without positions"""
        freshness = self._registry.freshness
        if freshness.has_positions:
            return False

        age = self._age_of_write(reader)
        return age is not None and age < freshness.options.sticky

    def _age_of_write(self, reader: Reader) -> float | None:
        """Return how long ago a session has written, in seconds

        :param reader: who reads
        :rtype: None where it hasn't
        """
        at = reader.shadow_wrote_at
        return None if at is None else time.monotonic() - at

    def _usable(self) -> tuple[str, ...]:
        unusable = self._registry.monitor.snapshot.unusable
        return tuple(x for x in self._readers if x not in unusable)

    def _behind(self, session: Any, clause: Any, unit: Unit) -> Behind:
        """Return the replicas that wouldn't have what must be seen

        As far as the monitor has measured, which asks once in a while.
        """
        if not self.replicas or unit.placement.on_primary:
            return NOT_BEHIND

        at = self._must_see(session, clause)
        if at is None:
            return NOT_BEHIND

        snapshot = self._registry.monitor.snapshot
        missing = {
            name: _missing(snapshot.of(name), at)
            for name in self._usable()
            if name != PRIMARY
        }
        are_all = bool(missing) and min(missing.values()) > 0
        wait = self._registry.freshness.options.wait if are_all else 0.0
        names = frozenset(x for x, left in missing.items() if left > wait)
        return Behind(names, are_all)

    def _must_see(self, session: Any, clause: Any) -> float | None:
        """Return the moment up to which a replica must have everything

        :rtype: seconds of ``time.monotonic()``; None: any will do
        """
        registry, now = self._registry, time.monotonic()
        reader = registry.reader()
        consistency = registry.freshness.options.consistency
        moments = [reader.shadow_wrote_at]
        if consistency is Consistency.EVENTUAL:
            moments = []
        elif consistency is Consistency.REGISTRY:
            moments.append(self.wrote_at)
        elif consistency is Consistency.STRONG:
            moments.append(now)

        wish = session.wish
        age = None if wish is None else wish.max_staleness
        if age is None:
            age = registry.max_staleness_of(clause)

        if age is not None:
            moments.append(now - age)

        return max((at for at in moments if at is not None), default=None)


def _missing(health: ServerHealth, at: float) -> float:
    """Return how many seconds a replica lacks of what it must have

    :param health: as the monitor has measured it
    :param at: the moment up to which it must have everything, in seconds of
        ``time.monotonic()``
    :rtype: 0 or less: none, or nothing is known of it
    """
    lag, seen = health.lag, health.observation
    if lag is None or seen is None or not lag.bytes:
        return 0.0

    # Of what came after the last look: it is taken to be as late as then.
    asked_at = seen.asked_at if at <= seen.asked_at else time.monotonic()
    return at - (asked_at - lag.seconds)


def _key_of(clause: Any) -> Any:
    """Return a hashable that statements of the same text share, or None"""
    generate = getattr(clause, "_generate_cache_key", None)
    key = None if generate is None else generate()
    return None if key is None else key.key


# Of this process.
_shadows: WeakSet[Shadow] = WeakSet()


def _write_all() -> None:
    for shadow in tuple(_shadows):
        shadow.write()


atexit.register(_write_all)
