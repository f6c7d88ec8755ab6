# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The registry with several engines; it wires all the rest."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, wraps
from logging import getLogger
from random import choice, random
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from anyblok.column import (
    DateTimeType,
    StringType,
    TextType,
    TimeStampType,
)
from anyblok.environment import EnvironmentManager
from anyblok.registry import Registry
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy_utils.functions import database_exists

from . import catalogue, config, engines, provenance, write_guard, writes
from .blocks import Block
from .consistency import (
    Consistency,
    ConsistencyToken,
    FreshnessOptions,
    TimeToken,
)
from .errors import (
    ConsistencyTokenError,
    MultiEnginesException,
    NoPrimaryError,
    NoReplicaError,
    OptionError,
    ServerUnavailableError,
)
from .events import Listeners, Promotion, StatusChange, tell
from .fallback import Fallback, Slots
from .freshness import Freshness
from .health.model import ServerHealth, Snapshot
from .health.monitor import Monitor
from .health.probe import ServerProbe, summary_of
from .reader import Reader
from .routing.balancing import Balancer
from .routing.catalogue import Catalogue
from .routing.decision import PRIMARY, UNITTEST, Decision, Reason
from .routing.intent import Intent, Wish
from .routing.statements import Statements
from .session import MixinSession, statement_of
from .topology import Role, Server, Topology, places_of
from .tracing import name_in_spans

__all__ = [
    "MixinSession",
    "MultiEngines",
    "MultiEnginesException",
    "RegistryMultiEngines",
]

if TYPE_CHECKING:
    from anyblok.registry import Registry as RegistryBase

    from .shadow.mode import Shadow
    from .shadow.record import Record
else:
    RegistryBase = object

logger = getLogger(__name__)

# The commands that prepare a database from their first statement to their
# last: what they read decides what they write.
MAINTENANCE_COMMANDS = frozenset(["anyblok_createdb", "anyblok_updatedb"])


# What System.Blok does to the installed bloks: it reads in order to write.
BLOK_METHODS = (
    "apply_state",
    "install",
    "uninstall",
    "uninstall_all",
    "update_list",
    "upgrade",
)


# What reads in order to write, or would find an old row: all on the primary.
WRITING_METHODS = {
    "System.Parameter": ("pop", "set"),
    "System.Sequence": ("insert", "multi_insert", "nextval", "nextvalBy"),
}

# What must not be old, and is asked at the start of every unit of work: on
# the primary, without moving the unit of work there.
ASIDE_METHODS = {
    "System.Cache": ("get_invalidation",),
    "System.Parameter": ("get", "is_exist"),
}


# Values of AnyBlok's own types that can't be changed in place either.
provenance.PLAIN_TYPES.update(
    (DateTimeType, StringType, TextType, TimeStampType)
)

# What a model says of how many seconds behind the primary its rows may be.
STALENESS_ATTRIBUTE = "db_ro_max_staleness"


class LoadingScope(threading.local):
    """What one thread is doing to the registry; no other thread sees it"""

    #: how many of the methods that load or change the registry are running
    depth = 0
    #: True while the states of the bloks are read
    reading_bloks = False
    #: set by a caller who wants everything on one connection
    connection: Connection | None = None


def on_primary(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method that reads in order to write: all on the primary

    :param method: of the registry; its thread alone is concerned
    """

    @wraps(method)
    def wrapper(self: MultiEngines, *args: Any, **kwargs: Any) -> Any:
        with self.loading():
            return method(self, *args, **kwargs)

    return wrapper


class MultiEngines(RegistryBase):
    """Mixin of AnyBlok's Registry: one database, a primary and its replicas

    AnyBlok finds it by the entry point ``anyblok.registry.mixin``.
    """

    # AnyBlok's __getattr__ recurses without end on an attribute that is
    # missing before the Session exists, and is silent afterwards.
    Session: Any = None
    fallback: Fallback
    freshness: Freshness
    additional_setting: dict[str, Any] = {}  # noqa: RUF012
    balancer: Balancer
    bind: Any = None
    #: ``ro``: the engines that take reads, ``wo``: the primary's or None
    engines: dict[str, Any] = {"ro": [], "wo": None}  # noqa: RUF012
    #: those who listen to events: of a registry; here, of all of them
    listeners: Any = Listeners
    loadwithoutmigration = False
    monitor: Monitor
    rw_engine: Any = None
    statements: Statements
    topology: Topology
    unittest = False
    unittest_bind: Any = None
    unittest_transaction: Any = None
    #: of units of work that read from the primary for want of a replica;
    #: None: any number of them may
    slots: Slots | None = None
    #: notes what would be decided, in shadow mode; else None
    shadow: Shadow | None = None
    #: True where a unit of work on a replica has one snapshot
    has_snapshots = False
    #: True where stale changes are looked for before they are written
    write_guard = True
    _engines: dict[str, Engine] = {}  # noqa: RUF012
    _server_names: dict[Any, str] = {}  # noqa: RUF012
    _readers: tuple[str, ...] = ()
    # By the names of the tables, seconds.
    _staleness_limits: dict[str, float] = {}  # noqa: RUF012
    _plain_tables: frozenset[str] = frozenset()
    _engine: Any = None

    def __init__(self, db_name: str | None, *args: Any, **kwargs: Any) -> None:
        self.scope = LoadingScope()
        self.listeners = Listeners()
        self._reading_catalogue = threading.Lock()
        # When the last of its readings began, in seconds of time.monotonic().
        self._catalogue_read: tuple[float, Catalogue | None] = (0.0, None)
        #: True in a registry that anyblok_createdb or anyblok_updatedb made
        self.is_maintained = _running_command() in MAINTENANCE_COMMANDS
        super().__init__(db_name, *args, **kwargs)
        if self.shadow is not None and self._watches:
            self._start_shadow(self.shadow)
        elif self.topology.replicas and self._watches:
            if not self.topology.read_only:
                # After the load, which needs no replica.
                self.monitor.step()

            self.monitor.start()

    @property
    def _watches(self) -> bool:
        """Return True where the servers are asked how they are

        A command that maintains a database asks the primary alone.
        """
        return not (self.unittest or self.is_maintained)

    def _start_shadow(self, shadow: Shadow) -> None:
        """Begin to note; nobody waits for a server"""
        shadow.start()
        if shadow.replicas:
            self.monitor.start()

    def init_engine(self, db_name: str | None = None) -> None:
        """Make an engine per server of the options; nothing is connected

        :param db_name: name of the database on all of them
        :exception: OptionError
        """
        self._known = config.topology(db_name)
        self.topology = known = self._served_by(self._known)
        self.write_guard = config.write_guard()
        self._limits = config.limits()
        options = config.freshness()
        self._functions = {
            "read_functions": config.functions("--db-ro-functions"),
            "write_functions": config.functions("--db-wo-functions"),
        }
        self.statements = Statements(Catalogue(), self.read_catalogue)
        self._asides: dict[str, Engine] = {}
        self._engines = {
            server.name: self._engine_for(server) for server in known.servers
        }
        self.freshness = self._new_freshness(options)
        if known.primary and known.replicas and self.freshness.has_positions:
            engines.notice_ended_connections(self._engines[PRIMARY])

        # Not by engine: an option of the caller makes another engine of it.
        self._server_names = {
            engine.dialect: name for name, engine in self._engines.items()
        }
        self._readers = tuple(server.name for server in known.readers)
        self.engines = {
            "ro": [self._engines[name] for name in self._readers],
            "wo": self._engines.get(PRIMARY),
        }
        self.fallback = config.fallback()
        self._check_fallback()
        self._policy = config.policy()
        if known is not self._known and not self.is_maintained:
            self.shadow = self._new_shadow()

        self.monitor = self._new_monitor()
        self.balancer = self._new_balancer()
        _registries.add(self)
        self.rw_engine = self.engines["wo"]
        if known.read_only:
            _check_read_only(options)
            self._enter_read_only_mode()

        self._engine = self.rw_engine
        if self.loadwithoutmigration and self.engines["ro"]:
            self._engine = choice(self.engines["ro"])

    def _served_by(self, known: Topology) -> Topology:
        """Return the servers that serve: in shadow mode, the primary alone

        :param known: the servers of the options
        :exception: OptionError
        """
        return known if config.shadow(known) is None else known.primary_alone

    def _new_shadow(self) -> Shadow | None:
        # No other start pays for it.
        from .shadow.mode import Shadow

        options = config.shadow(self._known)
        assert options is not None
        shadow = Shadow(self, self._known, options, self.fallback, self._policy)
        engines.tell_statements(self._engines[PRIMARY], self._note_sent)
        return shadow

    def _note_sent(self, connection: Connection, statement: Any) -> None:
        if self.shadow is not None:
            self.shadow.note_sent(connection, statement)

    def _check_fallback(self) -> None:
        """Limit what the primary reads for want of a replica

        :exception: OptionError, where it takes its share of the reads anyway
        """
        limit, primary = self.fallback.limit, self._known.primary
        if limit is not None and primary is not None and primary.takes_reads:
            raise OptionError(
                f"--db-ro-fallback-limit: {primary.option} takes its share of "
                "the reads anyway; give the primary as --db-wo-url"
            )

        self.slots = None if limit is None else Slots(limit)

    def _engine_for(self, server: Server, aside: bool = False) -> Engine:
        timeout = None
        if (
            self.topology.replicas
            or server.role is Role.REPLICA
            or len(places_of(server.url)) > 1
        ):
            # There is another server to ask.
            timeout = self._limits.connect_timeout

        options = self.init_engine_options(server.url)
        if aside and "poolclass" not in options:
            # Nobody waits for those who wait for a server that hangs.
            options = {**options, "max_overflow": -1}

        level = engines.standby_isolation_level(
            options.get("isolation_level") or ""
        )
        self.has_snapshots = level == "REPEATABLE READ"
        engine = engines.create(
            server,
            options,
            transactional=bool(self.unittest or self.topology.read_only),
            connect_timeout=timeout,
        )
        if self.topology.read_only:
            engines.tell_the_missing_option(engine, server)

        self.apply_engine_events(engine)
        name_in_spans(engine, server)
        if server.role is Role.REPLICA:
            if self.topology.replicas:
                self._identify(server.name, engine)

            if not aside:
                self._refuse_while_down(server.name, engine)
        else:
            self._watch_primary(engine)

        return engine

    def _refuse_while_down(self, name: str, engine: Engine) -> None:
        """Have nobody wait for a connection to a replica that doesn't answer

        Who has waited for one of the pool's connects as soon as it is free.
        """

        @event.listens_for(engine, "do_connect")
        def refuse(dialect: Any, *_: Any) -> None:
            down = self.monitor.snapshot.down
            if name in down and name not in self.usable_readers():
                raise dialect.loaded_dbapi.OperationalError(
                    f"{name} is down: {self.health().of(name).reason}"
                )

    def engine_aside(self, server_name: str) -> Engine:
        """Return a server's engine for questions of our own

        Its pool is its own: who asks may hold the last connection of the
        other one.

        :param server_name: ``primary``, ``replica1``...
        """
        engine = self._asides.get(server_name)
        if engine is None:
            server = next(
                x for x in self._known.servers if x.name == server_name
            )
            engine = self._engine_for(server, aside=True)
            if server.role is Role.PRIMARY and self.freshness.has_positions:
                engines.notice_ended_connections(engine)

            engine = self._asides.setdefault(server_name, engine)

        return engine

    def _new_freshness(self, options: FreshnessOptions) -> Freshness:
        return Freshness(
            options,
            self._engines,
            self.engine_aside,
            EnvironmentManager.scoped_function_for_session(),
            lambda name: name in self.monitor.snapshot.down,
            self._note_promotion,
        )

    def _new_monitor(self) -> Monitor:
        known = self._known
        positions = self.freshness.positions
        if self.shadow is not None:
            return self._new_shadow_monitor()

        return Monitor(
            {
                server: ServerProbe(
                    server,
                    self._engines[server.name],
                    self.engine_aside,
                    positions,
                )
                for server in (known.servers if known.replicas else ())
            },
            self._limits,
            positions,
            on_hung=self._cut_off,
            on_moved=self._leave_primary,
            on_status=self._note_status,
        )

    def _new_shadow_monitor(self) -> Monitor:
        """Return one that only looks on: nothing is cut off, nobody moves"""
        positions = self.freshness.positions
        return Monitor(
            {
                server: ServerProbe(
                    server,
                    self.engine_aside(server.name),
                    self.engine_aside,
                    positions,
                )
                for server in (
                    self._known.servers if self._known.replicas else ()
                )
            },
            self._limits,
            positions,
            on_status=self._note_status,
        )

    def _note_status(
        self, server: Server, before: ServerHealth, after: ServerHealth
    ) -> None:
        tell(
            self.listeners.dispatch.server_status,
            StatusChange(self, server, before, after),
        )

    def _note_promotion(
        self, before: ConsistencyToken, after: ConsistencyToken
    ) -> None:
        logger.warning(
            "A promotion: the primary is on timeline %s, and was on %s",
            after.timeline,
            before.timeline,
        )
        tell(
            self.listeners.dispatch.promotion,
            Promotion(self, before, after),
        )

    def _watch_primary(self, engine: Engine) -> None:
        """Notice writes, a standby in its place, COMMITs without an answer"""
        if self.topology.replicas:
            engines.tell_statements(engine, writes.note_statement)

        if engine.dialect.driver in ("psycopg", "psycopg2"):
            engines.track(engine)
            engines.notice_demotion(engine, self._note_demotion)
            engines.tell_unknown_commits(
                engine,
                writes.note_unknown_commit,
                # What a snapshot has shown is valid once it is committed.
                lambda x: not self.has_snapshots and writes.has_only_read(x),
            )

    def _note_demotion(self) -> None:
        self._leave_primary()
        self.monitor.report_standby(PRIMARY)

    def _leave_primary(self) -> None:
        """Have each unit of work that begins connect to the primary anew"""
        for known in (self._engines, self._asides):
            if PRIMARY in known:
                engines.throw_away(known[PRIMARY])

    def _new_balancer(self) -> Balancer:
        return Balancer(
            self._policy,
            lambda: self.monitor.snapshot.shares,
            lambda name: engines.in_use(self._engines[name]),
            random(),
        )

    def start_anew(self) -> None:
        """Leave the connections and the threads to the parent of this process

        Called in each process that is forked: what it has of them, it shares
        with its parent. A unit of work that is open stays the parent's.
        """
        for engine in self._all_engines():
            engines.leave_to_parent(engine)

        # A lock in them may be held by a thread that isn't here.
        before, was_running = self.monitor, self.monitor.is_running
        freshness = self.freshness
        self.freshness = self._new_freshness(freshness.options)
        self.freshness.follow(freshness, self)
        if self.shadow is not None:
            self.shadow = self.shadow.anew()

        self._reading_catalogue = threading.Lock()
        self.monitor = self._new_monitor()
        self.monitor.snapshot = before.snapshot
        self._check_fallback()
        # The processes of one parent don't all begin with the same server.
        self.balancer = self._new_balancer()
        if self.Session is not None and self.Session.registry.has():
            # Its unit of work is the parent's.
            with suppress(Exception):
                self.Session().rollback()

        for engine in self._all_engines():
            engine.dispose(close=False)

        if was_running:
            self.monitor.start()

    def _cut_off(self, name: str) -> None:
        """Leave the connections to a server that hangs

        What waits for a replica ends, and what only reads from the primary,
        our own questions among it.

        :param name: of the server
        """
        aside = self._asides.get(name)
        if aside is not None:
            engines.cut_off(aside, lambda _: True)

        if self.is_replica(name):
            engines.cut_off(self._engines[name], lambda _: True)
        else:
            # What is being written there may be done in time.
            engines.cut_off(self._engines[name], writes.is_only_reading)
            self._leave_primary()

    def _identify(self, name: str, engine: Engine) -> None:
        """Have each new connection to a replica ask what it leads to"""

        def identify(driver: Any, record: Any) -> None:
            self.freshness.identify(name, driver, record)

        event.listen(engine, "connect", identify)

    def _enter_read_only_mode(self) -> None:
        logger.debug("No WRITE engine defined use READ ONLY mode")
        self.loadwithoutmigration = True
        self.monitor.step()
        ready = self.usable_readers()
        if self.monitor.snapshot.down.issuperset(ready):
            raise ServerUnavailableError(
                "Read-only mode, and no server of --db-ro-urls answers: "
                + "; ".join(
                    f"{server}: {self.health().servers[server.name].reason}"
                    for server in self.topology.replicas
                )
            )

        self.rw_engine = self._engines[ready[0]]

    def init_bind(self) -> None:
        """Bind to the primary, or to one connection of it in unittest mode"""
        with self.loading():
            super().init_bind()

        self.unittest_bind = self.bind if self.unittest else None

    @property
    def engine(self) -> Any:
        """Return the primary's engine

        Of a registry that was built with ``loadwithoutmigration``, one of the
        engines that take reads; but what ``load()`` reads comes from the
        primary.
        """
        if self.scope.depth:
            return self.rw_engine

        return self._engine

    def get_engine_for(self, ro: bool = True) -> Engine:
        """Return one engine among the engines

        :param ro: True: one that takes reads, usable if there is one that
            is; False: the primary's
        :exception: NoReplicaError, NoPrimaryError, both RegistryException
        """
        if ro and self._readers:
            names = self.usable_readers() or self._readers
            return self._engines[self.balancer.choose(names)]

        if ro:
            raise NoReplicaError(
                "No engine found to read only: --db-wo-url takes writes alone;"
                " give --db-ro-urls for its replicas"
            )

        if self.engines["wo"] is None:
            raise NoPrimaryError(
                "No engine found to write: give --db-url or --db-wo-url"
            )

        return self.engine_of(PRIMARY)

    def engine_of(self, server_name: str) -> Engine:
        """Return a server's engine

        :param server_name: ``primary``, ``replica1``...
        """
        return self._engines[server_name]

    def server_name_of(self, engine: Engine) -> str | None:
        """Return the name of an engine's server; None: not one of ours

        :param engine: of a connection
        """
        return self._server_names.get(engine.dialect)

    def is_replica(self, server_name: str) -> bool:
        """Return True where the server is a replica

        :param server_name: ``primary``, ``replica1``...
        """
        return server_name not in (PRIMARY, UNITTEST)

    def usable_readers(self) -> tuple[str, ...]:
        """Return the names of the servers that take reads and aren't down

        In read-only mode all of them where all are down: there is nothing
        to lose by asking.
        """
        down = self.monitor.snapshot.unusable
        if not down:
            return self._readers

        usable = tuple(name for name in self._readers if name not in down)
        if not usable and self.topology.read_only:
            return self._readers

        return usable

    def explain(self, statement: Any) -> Decision:
        """Return where a statement would go now, and why

        :param statement: of SQLAlchemy, a query of a Model, or SQL as a text
        :rtype: Decision; ``because`` names the part of the statement for
            which it isn't a read
        """
        if isinstance(statement, str):
            statement = text(statement)

        clause = statement_of(statement)
        decision: Decision = self.session.decision_for(clause)
        if self.shadow is not None and decision.reason is Reason.SHADOW:
            found = self.session.shadow_decision_for(clause)
            return decision._replace(because=f"without it: {found}")

        return decision

    def shadow_report(self) -> Record | None:
        """Return what this process would have done without --db-ro-shadow

        ``print()`` shows its summary, and ``anyblok_engines report`` all of
        it, of all processes.

        :rtype: of now; None: the registry isn't in shadow mode
        """
        return None if self.shadow is None else self.shadow.record()

    def use_primary(self) -> Block:
        """Send what this thread's session does in the block to the primary

        A context manager, and a decorator; it nests, and no commit ends it.
        The unit of work stays on the primary to its end.

        :exception: NoPrimaryError, of a statement in read-only mode
        """
        return Block(self, Wish(Intent.PRIMARY))

    def use_replicas(
        self, max_staleness: float | None = None, token: str | None = None
    ) -> Block:
        """Send what this thread's session reads in the block to replicas

        A context manager, and a decorator; it nests, and no commit ends it.
        The primary serves where no replica is usable and fresh enough, and a
        unit of work that has written, which must see what it has written.

        :param max_staleness: seconds that a replica may be behind the
            primary; None: as the models and --db-ro-max-staleness say
        :param token: of :meth:`consistency_token`, anybody's: what a replica
            must have; None: as --db-ro-consistency says
        :exception: ConsistencyTokenError; ReplicaWriteError, of a statement
            that isn't a proven read and of a flush that has something to
            write
        """
        if max_staleness is not None and not max_staleness >= 0:
            raise ValueError(f"max_staleness={max_staleness!r}: not seconds")

        position = None if token is None else self.freshness.token(token)
        if isinstance(position, TimeToken) or (
            position is not None and not self.freshness.has_positions
        ):
            # Which replica has it, nobody can tell.
            return Block(self, Wish(Intent.PRIMARY))

        return Block(self, Wish(Intent.REPLICAS, max_staleness, position))

    def reader(self) -> Reader:
        """Return who reads: the request, else this thread"""
        return self.freshness.reader(self)

    def consistency_token(self) -> str | None:
        """Return the token after this session's last commit that wrote

        Whoever reads after it, in another process too, sees that commit.

        :rtype: letters, digits, ``-`` and ``_``, 32 at most; None: it hasn't
            written, or --db-ro-consistency is eventual
        """
        return self.token_of(self.reader())

    def token_of(self, reader: Reader) -> str | None:
        """Return the token after a reader's last commit that wrote

        :param reader: who has written
        :rtype: as of :meth:`consistency_token`
        """
        token = self.freshness.token_of(reader)
        if self.shadow is not None and token is not None:
            self.shadow.note_token_given(reader, token)

        return token

    def read_after(self, token: str) -> None:
        """Let this session's later reads be at least as fresh as a token

        The freshest of several counts. A token of before a failover means the
        primary: what was written then may be lost.

        :param token: of :meth:`consistency_token`, anybody's
        :exception: ConsistencyTokenError, for what isn't one, and for one of
            another cluster
        """
        self.freshness.read_after(self.reader(), token)
        if self.shadow is not None:
            self.shadow.note_token(self.reader(), token)

    def accept_token(self, token: str, reader: Reader) -> bool:
        """Let a reader's later reads be at least as fresh as a token

        For a token from outside: what can't be understood means the primary.

        :param token: whatever was given
        :param reader: who reads
        :rtype: False where it isn't a token of this cluster
        """
        try:
            self.freshness.read_after(reader, token)
            if self.shadow is not None:
                self.shadow.note_token(reader, token)

        except ConsistencyTokenError:
            # In read-only mode there is none.
            reader.wants_primary = not self.topology.read_only
            return False

        return True

    @property
    def reads_by_age(self) -> bool:
        """Return True where the time decides where a session reads

        And not only what it knows.
        """
        freshness = self.freshness
        return (
            not freshness.has_positions
            or freshness.options.max_staleness is not None
            or bool(self._staleness_limits)
        )

    def max_staleness_of(self, statement: Any) -> float | None:
        """Return how many seconds behind a replica may be for a statement

        :param statement: that reads
        :rtype: the least of its models'; None: any number
        """
        default = self.freshness.options.max_staleness
        limits = self._staleness_limits
        if not limits:
            return default

        sources = self.statements.need_of(statement).sources
        known = self._plain_tables
        # A view or a function may read any of them.
        tightest = min(limits.values())
        found = [
            limits.get(name, default if name in known else tightest)
            for name in sources
        ]
        return min((x for x in found if x is not None), default=None)

    def _find_staleness_limits(self) -> None:
        """Note what the models say of how old their rows may be

        :exception: OptionError
        """
        limits: dict[str, float] = {}
        for name, model in self.loaded_namespaces.items():
            limit = getattr(model, STALENESS_ATTRIBUTE, None)
            table = getattr(model, "__table__", None)
            if limit is None or table is None:
                continue

            if not isinstance(limit, int | float) or not limit >= 0:
                raise OptionError(
                    f"{name}.{STALENESS_ATTRIBUTE} = {limit!r}: write seconds, "
                    "such as 2 or 0.5"
                )

            limits[table.name] = min(limit, limits.get(table.name, limit))

        self._staleness_limits = limits
        self._plain_tables = frozenset(
            model.__table__.name
            for model in self.loaded_namespaces.values()
            if hasattr(model, "__table__")
            and not getattr(model, "is_sql_view", False)
        )

    def forget_catalogue(self) -> None:
        """Have the catalogue read again, when a statement wants to know"""
        self.statements.catalogue = Catalogue()
        if self.shadow is not None:
            self.shadow.want_catalogue()

    def read_catalogue(self) -> Catalogue | None:
        """Return what the primary's catalogue says, or a replica's

        Where many threads want to know at once, as at the start of a server,
        what one has read will do for those that have waited meanwhile.

        :rtype: None where no server answers
        """
        asked_at = monotonic()
        with self._reading_catalogue:
            if self._catalogue_read[0] < asked_at:
                self._catalogue_read = (monotonic(), self._read_catalogue())

            return self._catalogue_read[1]

    def _read_catalogue(self) -> Catalogue | None:
        names = [PRIMARY] if self.topology.primary else []
        for name in (*names, *self.usable_readers()):
            if name in self.monitor.snapshot.down:
                continue

            try:
                with self.engine_aside(name).connect() as connection:
                    return catalogue.read(connection, **self._functions)
            except DBAPIError as error:
                logger.warning(
                    "%s: its catalogue can't be read: %s",
                    name,
                    summary_of(error),
                )

        return None

    def health(self) -> Snapshot:
        """Return what is known of the replicas"""
        return self.monitor.snapshot

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Keep this thread on the primary, from its next statement on

        For what creates, migrates, upgrades or reloads the registry. It
        nests.
        """
        scope = self.scope
        if not scope.depth and self.Session and self.Session.registry.has():
            self.Session().forget_replica_reads()

        scope.depth += 1
        try:
            yield
        finally:
            scope.depth -= 1

    @property
    def is_loading(self) -> bool:
        """Return True in the thread that is loading or changing the registry"""
        return bool(self.scope.depth) and not self.unittest

    @property
    def session_connection(self) -> Connection | None:
        """The connection of this thread that changes the registry, or None

        Whoever sets it gets this thread's statements on it until it is None.
        """
        if self.scope.connection is not None:
            return self.scope.connection

        if not (self.is_loading and self.Session) or self.topology.read_only:
            return None

        connection: Connection = self.Session().connection(
            bind_arguments={"bind": self.rw_engine}
        )
        return connection

    @session_connection.setter
    def session_connection(self, connection: Connection | None) -> None:
        self.scope.connection = connection

    @property
    def given_session_connection(self) -> Connection | None:
        """Return the session connection that a caller has set, or None"""
        return self.scope.connection

    def assemble_entries(self) -> None:
        """Assemble the models; some of their methods ask the primary alone"""
        if self.topology.replicas:
            provenance.listen(self.declarativebase)
            super().assemble_entries()
            self._ask_the_primary()
            self._find_staleness_limits()
        elif self.shadow is not None:
            super().assemble_entries()
            self._ask_the_primary()
            self._find_staleness_limits()
            self.shadow.models = self._models_by_table()
        else:
            super().assemble_entries()

    def _models_by_table(self) -> dict[str, str]:
        return {
            model.__table__.name: name
            for name, model in self.loaded_namespaces.items()
            if hasattr(model, "__table__")
        }

    def listen_sqlalchemy_known_event(self) -> None:
        """Listen to flushes, after the models' own listeners"""
        super().listen_sqlalchemy_known_event()
        if self.topology.replicas and self.write_guard:
            write_guard.listen(self.declarativebase)

    def _ask_the_primary(self) -> None:
        """Wrap the methods of the host that an old row would mislead"""
        if self.shadow is None:
            self._wrap("System.Blok", BLOK_METHODS, self._in_loading_scope)

        for model, names in WRITING_METHODS.items():
            self._wrap(model, names, self._writing)

        for model, names in ASIDE_METHODS.items():
            self._wrap(model, names, self._aside)

        for model, cls in self.loaded_namespaces.items():
            for name, caches in self.caches.get(model, {}).items():
                caches[:] = [
                    self._filled_on_primary(cls, name, cache)
                    for cache in caches
                ]

    def _wrap(
        self,
        model: str,
        names: Iterable[str],
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
    ) -> None:
        """Wrap methods of a model, or class methods"""
        cls = self.get(f"Model.{model}")
        for name in names:
            method = _definition_of(cls, name)
            if isinstance(method, classmethod):
                setattr(cls, name, classmethod(wrap(method.__func__)))
            else:
                setattr(cls, name, wrap(method))

    def _in_loading_scope(self, method: Callable[..., Any]) -> Any:
        """Return a method that is a part of changing the registry"""

        @wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.loading():
                return method(*args, **kwargs)

        return wrapper

    def _on_primary(self, method: Callable[..., Any]) -> Any:
        """Return a method that asks the primary, where there is one"""
        wish = Wish(Intent.PRIMARY)

        @wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self.Session is None or self.topology.read_only:
                return method(*args, **kwargs)

            with self.session.wanting(wish):
                return method(*args, **kwargs)

        return wrapper

    def _writing(self, method: Callable[..., Any]) -> Any:
        """Return a method that reads and writes, on the primary

        :exception: ReplicaWriteError, where its caller wants replicas
        """
        inside = self._on_primary(method)

        @wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self.Session is not None:
                self.session.check_write(f"{method.__qualname__}()")

            return inside(*args, **kwargs)

        return wrapper

    def _aside(self, method: Callable[..., Any]) -> Any:
        """Return a method that asks the primary in a unit of work of its own

        The session's own stays where it is, unless it has something that only
        it can see.
        """
        inside = self._on_primary(method)

        @wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self._needs_its_session():
                return inside(*args, **kwargs)

            if self.shadow is not None:
                with self.shadow.aside(self.session):
                    return method(*args, **kwargs)

            mine, other = self.session, self.Session.session_factory()
            other.is_aside = True
            self.Session.registry.set(other)
            try:
                return inside(*args, **kwargs)
            finally:
                self.Session.registry.set(mine)
                other.close()

        return wrapper

    def _needs_its_session(self) -> bool:
        """Return True where this thread's session is the one to ask"""
        return (
            self.Session is None
            or self.unittest
            or self.is_loading
            or self.topology.read_only
            or self.given_session_connection is not None
            or self.session.intent is Intent.PRIMARY
            or self.session.has_work_of_its_own()
        )

    def _filled_on_primary(self, cls: type, name: str, cache: Any) -> Any:
        """Put a cache whose misses ask the primary in the place of another

        What was computed from a replica that hasn't replayed what emptied the
        cache would stay wrong for ever.

        :param cls: the model that has it, or whose bases have it
        :param name: of the method
        :param cache: AnyBlok's ``lru_cache``
        """
        replaced = getattr(cache, "replaced_by", None)
        if replaced is not None:
            # It is in the lists of the models that depend on its own, too.
            return replaced

        size = cache.cache_parameters()["maxsize"]
        filled: Any = lru_cache(size)(self._on_primary(cache.__wrapped__))
        filled.indentify = cache.indentify
        for base in cls.__mro__:
            definition: Any = vars(base).get(name)
            if getattr(definition, "__func__", definition) is cache:
                is_method = definition is cache
                setattr(
                    base, name, filled if is_method else classmethod(filled)
                )
                cache.replaced_by = filled
                return filled

        return cache

    def create_session_factory(self) -> None:
        """Create the session factory, with our mixin under the bloks' own

        What a blok adds to ``Core.Session`` stays above it: its ``get_bind``
        calls ours.
        """
        if self.Session is None or self.must_recreate_session_factory():
            cores = self.loaded_cores["Session"]
            self.loaded_cores["Session"] = _with_mixin(cores)
            try:
                super().create_session_factory()
            finally:
                self.loaded_cores["Session"] = cores

            # AnyBlok compares it with the number of the bloks' own.
            self.nb_session_bases = len(cores)
        else:
            super().create_session_factory()

    @on_primary
    def load(self) -> None:
        """Load the registry: what it reads comes from the primary

        In read-only mode, from a replica, and nothing is migrated.
        """
        if self._watches:
            # Who asks them after the load finds its connections made.
            self.monitor.begin()

        super().load()
        self.forget_catalogue()
        if self.topology.read_only:
            # AnyBlok's load() resets it, and a reload would migrate.
            self.loadwithoutmigration = True

    def get_bloks_by_states(self, *states: str) -> list[str]:
        """Return the bloks in these states

        AnyBlok takes any database error for an empty database, and would
        come up without the installed bloks.

        :param states: of the bloks
        :exception: ServerUnavailableError
        """
        scope = self.scope
        before, scope.reading_bloks = scope.reading_bloks, True
        try:
            with self.loading():
                return list(super().get_bloks_by_states(*states))
        finally:
            scope.reading_bloks = before

    def get_bloks_to_install(self, loaded: list[str]) -> list[str]:
        """Return the bloks to install: none in read-only mode

        :param loaded: the installed bloks
        :exception: NoPrimaryError, where there are none to load either
        """
        if not self.topology.read_only:
            return list(super().get_bloks_to_install(loaded))

        if not loaded:
            raise engines.read_only_mode(
                f"No blok is installed in the database {self.db_name!r}"
            )

        return []

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement; see SQLAlchemy's ``Session.execute``

        :exception: ServerUnavailableError, while the bloks' states are read
        """
        try:
            return super().execute(*args, **kwargs)
        except OperationalError as error:
            if self.scope.reading_bloks and self.topology.replicas:
                raise ServerUnavailableError(
                    "The installed bloks can't be read, and the registry "
                    f"isn't loaded without them: {summary_of(error)}"
                ) from error

            raise

    @on_primary
    def reload(self) -> None:
        """Reload the registry; what it reads comes from the primary"""
        super().reload()

    @on_primary
    def apply_model_schema_on_table(self, blok2install: str | None) -> None:
        """Migrate the database, on the primary"""
        super().apply_model_schema_on_table(blok2install)

    @on_primary
    def get_bloks(self, *args: Any, **kwargs: Any) -> Any:
        """Return the bloks that depend on another, from the primary"""
        return super().get_bloks(*args, **kwargs)

    @on_primary
    def check_conflict_with(self, blok: str) -> None:
        """Check that a blok may be installed, on the primary"""
        super().check_conflict_with(blok)

    @on_primary
    def apply_state(self, *args: Any, **kwargs: Any) -> None:
        """Change the state of a blok, on the primary"""
        super().apply_state(*args, **kwargs)

    @on_primary
    def upgrade(self, *args: Any, **kwargs: Any) -> None:
        """Install, update and uninstall bloks, on the primary

        :exception: NoPrimaryError, in read-only mode
        """
        if self.topology.read_only:
            raise engines.read_only_mode("The bloks can't be upgraded")

        super().upgrade(*args, **kwargs)
        self.forget_catalogue()

    @on_primary
    def update_blok_list(self) -> None:
        """Write the bloks that the program knows, on the primary

        :exception: NoPrimaryError, in read-only mode
        """
        if self.topology.read_only:
            raise engines.read_only_mode("The list of bloks can't be updated")

        super().update_blok_list()

    def close(self) -> None:
        """Release the session, every engine and the monitor's thread"""
        self.monitor.stop()
        if self.shadow is not None:
            self.shadow.stop()

        try:
            super().close()
        finally:
            for engine in self._all_engines():
                engine.dispose()

    def _all_engines(self) -> list[Engine]:
        return [*self._engines.values(), *self._asides.values()]

    @classmethod
    def db_exists(cls, db_name: str | None = None) -> bool:
        """Return True where every configured server has the database

        :param db_name: name of the database
        :exception: RegistryException, without a name
        """
        if db_name:
            known = config.topology(db_name)
            if config.shadow(known) is not None:
                known = known.primary_alone

            if not all(_has_database(server) for server in known.replicas):
                return False

            if known.primary is None:
                return True

            if known.primary.option == "--db-wo-url":
                # AnyBlok's own function may not know it.
                return _has_database(known.primary)

        found: bool = super().db_exists(db_name=db_name)
        return found


class RegistryMultiEngines(MultiEngines, Registry):
    """AnyBlok's registry with several engines, for a program of its own"""


# Those of this process. A forked one has them, too.
_registries: WeakSet[MultiEngines] = WeakSet()


def _start_anew() -> None:
    for registry in tuple(_registries):
        registry.start_anew()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_anew)


def _check_read_only(options: FreshnessOptions) -> None:
    """Refuse what only a primary could tell

    :exception: OptionError
    """
    option = None
    if options.consistency is Consistency.STRONG:
        option = "--db-ro-consistency strong"
    elif options.max_staleness is not None:
        option = "--db-ro-max-staleness"

    if option is not None:
        raise OptionError(
            f"{option}: only the primary knows how fresh a replica is, and "
            "only --db-ro-urls is given; add --db-url or --db-wo-url, or leave "
            "the option out"
        )


def _definition_of(cls: type, name: str) -> Any:
    """Return an attribute of a class as it was defined, unbound"""
    return next(vars(base)[name] for base in cls.__mro__ if name in vars(base))


def _with_mixin(cores: list[type]) -> list[type]:
    """Return the bases of the session class with our mixin among them

    Above SQLAlchemy's session, and under what the bloks add.
    """
    for index, core in enumerate(cores):
        if issubclass(core, Session):
            return [*cores[:index], MixinSession, *cores[index:]]

    return [*cores, MixinSession]


def _running_command() -> str | None:
    """Return which of AnyBlok's commands is on this thread's stack

    A command is the only scope that begins before its registry exists and
    ends with it; AnyBlok has no hook around it.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "anyblok.scripts":
            return frame.f_code.co_name

        frame = frame.f_back

    return None


def _has_database(server: Server) -> bool:
    """Return True where a server answers and has its URL's database"""
    url = server.url
    if server.role is Role.REPLICA and url.get_backend_name() == "postgresql":
        timeout = str(engines.libpq_timeout(config.limits().connect_timeout))
        url = url.update_query_dict({"connect_timeout": timeout, **url.query})

    return bool(database_exists(url))
