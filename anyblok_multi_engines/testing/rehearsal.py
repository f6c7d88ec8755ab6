# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""``--anyblok-replicas``: an existing suite against a primary and replicas.

AnyBlok's fixtures keep a whole suite in one transaction of one connection,
which is rolled back. No other server ever sees what a test writes. So each
statement is decided on as production does, and what production would send to a
replica is asked three times:

#. of the test's own transaction, in a savepoint that is read-only;
#. of a replica, which has all but what this test has written: it is late by
   just that;
#. where these differ, of somebody who has the same rows as the replica: what
   differs there too (the time, a random number) is no sign of lag.

A call from a test into the application counts as a unit of work of its own, as
a request would; the test's lines before it have been committed by somebody.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from random import Random
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction

from .. import config as options
from ..consistency import Consistency
from ..engines import sqlstate_of
from ..routing.decision import PRIMARY, Decision, Situation, decide
from ..routing.intent import OPTION, Intent
from ..routing.need import Kind as NeedKind
from ..routing.transaction import NOWHERE, Placement
from ..session import REFUSALS
from . import application
from .callers import Caller, Callers
from .cluster import Cluster
from .findings import (
    Finding,
    Findings,
    Kind,
    Line,
    difference,
    is_same,
    plain,
)

# What says nothing of what a unit of work does.
SAVEPOINTS = ("SAVEPOINT ", "RELEASE SAVEPOINT ", "ROLLBACK TO SAVEPOINT ")

MINE = "anyblok_replicas"
READ_ONLY = f"SAVEPOINT {MINE}; SET LOCAL transaction_read_only = on"
RELEASE = f"RELEASE SAVEPOINT {MINE}"
UNDO = f"ROLLBACK TO SAVEPOINT {MINE}; {RELEASE}"

INSTEAD = (
    "AnyBlok's fixtures keep the tests in one transaction, which no replica",
    "can see. Each read that production would send to a replica was sent to a",
    "real one, which is late by all that the test has written; and to the",
    "test's own transaction, read-only.",
)

ANSWERS = {
    "readonly": "The tests were given the answer of their transaction.",
    "lagging": "The tests were given the answer of their transaction.",
    "random": "In half of the application's units of work, drawn by seed {seed}"
    ", the replica's.",
}


class Refused(Exception):
    """A server refuses a statement, as a standby does"""


class Unit:
    """A unit of work, as production would have it

    :param call: of the test into the application; None: the test itself
    :param is_late: True where a replica really answers
    """

    def __init__(self, call: Any = None, is_late: bool = False) -> None:
        self.call = call
        self.is_late = is_late
        self.placement: Placement = NOWHERE
        #: reads whose answer a late replica hasn't
        self.late: list[Finding] = []


class Asked(threading.local):
    """The statement that this thread's session executes now"""

    session: Any = None
    clause: Any = None
    wanted: str | None = None
    has_statement = False


class Test:
    """What is known of the test that runs

    :param name: its id
    :param seed: of what is drawn in it
    """

    __test__ = False

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.draw = Random(f"{seed} {name}").random
        #: readers that have written
        self.writers: list[Any] = []
        #: True once something has been committed
        self.committed = False
        #: True once others really see it. AnyBlok's fixtures lose their
        #: transaction with the first rollback
        self.is_seen = False
        #: the late answers that it has been given
        self.answered: list[Finding] = []
        #: the connection that it reads them from
        self.late: Any = None
        self.kept = ExitStack()


class Rehearsal:
    """The plugin of one run

    :param config: pytest's
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._mode: str = config.option.anyblok_replicas
        self._seed: int = config.option.anyblok_replicas_seed
        self.findings = Findings()
        self._callers = Callers(
            str(config.rootpath), config.getini("python_files")
        )
        self._cluster: Cluster | None = None
        self._registry: Any = None
        self._asked = Asked()
        self._savepoints: set[int] = set()
        self._context: Any = None
        self._late_cursor: Any = None
        self._begin("collection")
        self._stack = ExitStack()

    # Pytest's

    def pytest_sessionstart(self) -> None:
        """Listen, from the first registry on"""
        stack = self._stack
        stack.enter_context(
            application.watched_registries(self._stage, self._follow)
        )
        for name, listener in (
            ("do_orm_execute", self._note_statement),
            ("after_transaction_create", self._note_savepoint),
            ("after_transaction_end", self._note_end),
            ("after_commit", self._note_commit),
        ):
            event.listen(Session, name, listener)
            stack.callback(event.remove, Session, name, listener)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Begin a test

        :param nodeid: its id
        """
        moved, self._test.is_seen = self._test.is_seen, False
        self._begin(nodeid)
        if moved:
            self._catch_up()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self,
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note what has become of late answers"""
        report = yield
        if report.failed:
            for finding in self._test.answered:
                self.findings.add(finding)

        return report

    def pytest_runtest_logfinish(self) -> None:
        """Give back what late answers were read from"""
        self._test.kept.close()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hand on what was found, and close the cluster

        :param session: pytest's
        """
        output = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[MINE] = self.findings.dump()
        elif self.findings and not self._exits_zero and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

        self._stack.close()
        if self._registry is not None:
            with suppress(SQLAlchemyError):
                self._registry.close()

        if self._cluster is not None:
            self._cluster.close()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker of xdist has found

        :param node: the worker
        """
        dumped = getattr(node, "workeroutput", {}).get(MINE)
        if dumped is not None:
            self.findings.load(dumped)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Report the lines that would break

        :param terminalreporter: pytest's
        """
        terminalreporter.section(f"replicas: {self._mode}")
        for line in self._report():
            terminalreporter.write_line(line)

    def _report(self) -> Iterator[str]:
        yield from INSTEAD
        yield ANSWERS[self._mode].format(seed=self._seed)
        yield ""
        reads = self.findings.reads
        yield (
            f"Reads: {reads['replica']} of a replica, {reads['primary']} of "
            f"the primary; {reads['late']} where a late replica differs."
        )
        yield f"Lines that would break: {len(self.findings)}"
        yield from self.findings.report(str(self._config.rootpath))

    @property
    def _exits_zero(self) -> bool:
        return bool(self._config.option.anyblok_replicas_exit_zero)

    # The servers

    def _stage(self) -> None:
        """Have AnyBlok's options name a database on real servers"""
        if self._cluster is not None or options.replica_urls():
            return

        application.load_configuration()
        database = application.database_name()
        bloks, demo = application.installed_bloks(
            self._config.getini("anyblok_bloks")
        )
        replicas = int(self._config.getini("anyblok_cluster_replicas"))
        self._cluster = Cluster(replicas=replicas)
        self._cluster.start()
        application.use_cluster(self._cluster, database)
        application.prepare(self._cluster, database, bloks, demo)
        self._catch_up()

    def _catch_up(self) -> None:
        """Have the replicas replay all there is, and nothing that follows"""
        if self._cluster is None or self._mode == "readonly":
            return

        for replica in self._cluster.replicas:
            replica.resume_replay()

        self._cluster.wait_for_replay()
        for replica in self._cluster.replicas:
            replica.pause_replay()

    def _follow(self, registry: Any) -> None:
        """Watch a registry's one connection"""
        self._registry = registry
        engine = registry.bind.engine
        event.listen(engine, "before_cursor_execute", self._before_execute)
        event.listen(engine, "do_execute", self._do_execute)
        event.listen(engine, "commit", self._note_seen)
        # Bloks that were installed in the making have been no unit of work.
        self._begin(self._test.name)

    # What runs

    def _begin(self, name: str) -> None:
        self._test = Test(name, self._seed)
        self._units: dict[bool, Unit] = {}

    def _note_statement(self, state: ORMExecuteState) -> None:
        """Note what a session executes, before it is compiled"""
        session: Any = state.session
        if not self._is_mine(session):
            return

        asked = self._asked
        asked.session = session
        asked.clause = state.statement
        asked.wanted = state.execution_options.get(OPTION)
        asked.has_statement = True

    def _note_savepoint(
        self, session: Any, transaction: SessionTransaction
    ) -> None:
        """Note the application's own savepoints, not those of its tests"""
        if transaction.nested and not self._callers.is_harness():
            self._savepoints.add(id(transaction))

    def _note_end(self, session: Any, transaction: SessionTransaction) -> None:
        """End a unit of work with the outermost transaction"""
        self._savepoints.discard(id(transaction))
        if transaction.parent is None and self._is_mine(session):
            self._units = {}

    def _note_commit(self, session: Any) -> None:
        """End a unit of work; others may see what it has written

        Of the tests' own savepoint, it is the application that commits.
        """
        if self._is_mine(session) and not self._has_savepoint(session):
            self._units = {}
            self._test.committed |= bool(self._test.writers)

    def _note_seen(self, connection: Any) -> None:
        """Note a commit that others see"""
        self._test.is_seen = True

    def _is_mine(self, session: Any) -> bool:
        """Return True for a session of the registry that is watched"""
        registry = self._registry
        return (
            registry is not None
            and getattr(session, "anyblok", None) is registry
        )

    def _unit_of(self, caller: Caller) -> Unit:
        """Return the unit of work of a caller, which may begin here"""
        is_call = caller.call is not None
        unit = self._units.get(is_call)
        if unit is None or unit.call != caller.call:
            is_late = (
                is_call and self._mode == "random" and self._test.draw() < 0.5
            )
            unit = self._units[is_call] = Unit(caller.call, is_late)

        return unit

    def _before_execute(
        self,
        connection: Any,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        executemany: bool,
    ) -> None:
        """Look at what is about to be sent to the test's own connection"""
        registry = self._registry
        self._context = None
        if connection is not registry.unittest_bind or registry.Session is None:
            return

        if statement.startswith(SAVEPOINTS):
            return

        caller = self._callers.caller()
        session, clause, wanted = self._executed()
        if caller is None:
            return

        unit = self._unit_of(caller)
        decision = self._decision(session, clause, wanted, unit.placement)
        if decision.server_name is None:
            because = decision.because or str(decision.reason)
            self._found(Kind.RAISES, caller.line, statement, because)
        elif decision.server_name == PRIMARY:
            self._note_primary(unit, session, clause, caller.line, statement)
        else:
            self.findings.reads["replica"] += 1
            name = decision.server_name
            unit.placement = unit.placement.with_replica(name)
            self._ask(
                unit, session, name, caller.line, statement, parameters, context
            )

    def _executed(self) -> tuple[Any, Any, str | None]:
        """Return the session that executes, its statement, its server"""
        asked = self._asked
        session = asked.session or self._registry.session
        if session._flushing or not asked.has_statement:
            return session, None, None

        asked.has_statement = False
        return session, asked.clause, asked.wanted

    def _decision(
        self, session: Any, clause: Any, wanted: str | None, placed: Placement
    ) -> Decision:
        """Return where production would send a statement"""
        registry = self._registry
        given = getattr(clause, "_execution_options", {})
        return decide(
            Situation(
                classify=partial(registry.statements.need_of, clause),
                usable=[x.name for x in registry.topology.replicas],
                stays=registry.has_snapshots,
                flushing=session._flushing,
                wanted=wanted or given.get(OPTION),
                intent=session.intent,
                pinned=session.twophase or self._has_savepoint(session),
                placement=placed,
            )
        )

    def _has_savepoint(self, session: Any) -> bool:
        transaction = session.get_nested_transaction()
        while transaction is not None:
            if id(transaction) in self._savepoints:
                return True

            transaction = transaction.parent

        return False

    def _note_primary(
        self, unit: Unit, session: Any, clause: Any, line: Line, statement: str
    ) -> None:
        """Note a statement that production sends to the primary"""
        unit.placement = unit.placement.with_primary()
        need = self._registry.statements.need_of(clause)
        if need.is_read and not session._flushing:
            self.findings.reads["primary"] += 1
            return

        if session._flushing and session.intent is Intent.REPLICAS:
            self._found(
                Kind.RAISES, line, statement, "a flush has something to write"
            )

        unit.placement = unit.placement.with_write()
        self._test.writers.append(self._registry.reader())
        if session._flushing or need.kind is NeedKind.WRITE:
            for finding in unit.late:
                finding.then = line
                self.findings.add(finding)

            unit.late = []

    # The three answers

    def _ask(
        self,
        unit: Unit,
        session: Any,
        server: str,
        line: Line,
        statement: str,
        parameters: Any,
        context: Any,
    ) -> None:
        """Ask a replica, and compare"""
        registry = self._registry
        ask = partial(answer, statement=statement, parameters=parameters)
        try:
            names, mine = self._read_only(ask)
            late = self._elsewhere(registry.engine_of(server), ask)
        except Refused as error:
            self._found(Kind.WRITES, line, statement, str(error))
            unit.placement = unit.placement.with_write()
            return

        if self._mode == "readonly" or mine is None or late is None:
            return

        if is_same(mine, late):
            return

        same = registry.engine_aside(PRIMARY)
        if self._test.is_seen:
            same = registry.engine_of(server)

        again = self._elsewhere(same, ask)
        if again is None or not is_same(again, late):
            # Another answer each time, or on each server.
            return

        self.findings.reads["late"] += 1
        differs = difference(names, mine, late)
        finding = self._finding(Kind.DECIDES, line, statement, differs)
        if unit.is_late and not self._is_protected(session):
            finding.kind = Kind.ANSWERED
            self._test.answered.append(finding)
            self._answer_late(registry.engine_of(server), ask, context)
        elif self._may_miss(session):
            finding.kind = Kind.LATE
            self.findings.add(finding)
        else:
            unit.late.append(finding)

    def _may_miss(self, session: Any) -> bool:
        """Return True where nothing keeps a read from being late

        Of what was committed a moment ago; what the test itself has prepared
        is taken for old.
        """
        if not self._test.committed:
            return False

        registry = self._registry
        if any(wish.token is not None for _, wish in session._wishes):
            return False

        consistency = registry.freshness.options.consistency
        if consistency is Consistency.SESSION:
            return registry.reader() not in self._test.writers

        return consistency is Consistency.EVENTUAL

    def _is_protected(self, session: Any) -> bool:
        """Return True where production shows what has been committed"""
        return self._test.committed and not self._may_miss(session)

    def _read_only(self, ask: Any) -> tuple[list[str], Any]:
        """Return the columns and the rows that the test's transaction sees

        :exception: Refused
        """
        driver = self._registry.unittest_bind.connection.dbapi_connection
        with driver.cursor() as cursor:
            try:
                cursor.execute(READ_ONLY)
            except Exception:
                # The transaction has failed already.
                return [], None

            try:
                rows = ask(cursor)
                names = [x[0] for x in cursor.description or ()]
            except Exception as error:
                cursor.execute(UNDO)
                raise_refused(error)
                return [], None

            cursor.execute(RELEASE)
            return names, rows

    def _elsewhere(self, engine: Any, ask: Any) -> Any:
        """Return the rows that a connection of its own sees; None: an error

        :exception: Refused
        """
        with closing(engine) as driver:
            try:
                return ask(driver.cursor())
            except Exception as error:
                raise_refused(error)
                return None

    def _answer_late(self, engine: Any, ask: Any, context: Any) -> None:
        """Have the application read from a replica"""
        test = self._test
        if test.late is None:
            test.late = test.kept.enter_context(closing(engine))

        self._late_cursor = test.late.cursor()
        ask(self._late_cursor, fetch=False)
        self._context = context

    def _do_execute(
        self, cursor: Any, statement: str, parameters: Any, context: Any
    ) -> bool | None:
        """Put a replica's answer in the place of the primary's"""
        if context is None or context is not self._context:
            return None

        self._context = None
        context.cursor = self._late_cursor
        return True

    def _finding(
        self, kind: Kind, line: Line, statement: str, differs: str
    ) -> Finding:
        return Finding(kind, line, statement, differs, tests=[self._test.name])

    def _found(
        self, kind: Kind, line: Line, statement: str, differs: str
    ) -> None:
        self.findings.add(self._finding(kind, line, statement, differs))


def answer(
    cursor: Any, statement: str, parameters: Any, fetch: bool = True
) -> Any:
    """Return the rows of a statement

    :param cursor: of the driver
    :param statement: as SQLAlchemy sends it
    :param parameters: of it
    :param fetch: False: they stay in the cursor
    """
    cursor.execute(statement, parameters)
    return plain(cursor.fetchall()) if fetch else None


def raise_refused(error: Exception) -> None:
    """Raise Refused for what a standby refuses

    :param error: of the driver
    :exception: Refused
    """
    state = sqlstate_of(error)
    if state in REFUSALS:
        said = str(error).strip().splitlines()[0]
        raise Refused(f"{state}: {said}") from error


@contextmanager
def closing(engine: Any) -> Iterator[Any]:
    """Give a connection of an engine, and give it back"""
    driver = engine.raw_connection()
    try:
        yield driver
    finally:
        driver.rollback()
        driver.close()
