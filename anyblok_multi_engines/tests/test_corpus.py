# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Every statement of the corpus: judged, and then executed.

A statement runs in a session of the registry whose ``get_bind`` is replaced:
it notes the statement that it is asked for, and gives a connection.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import pytest
from psycopg2.errors import ReadOnlySqlTransaction
from sqlalchemy import Connection, Sequence, create_engine, text
from sqlalchemy.exc import StatementError

from anyblok_multi_engines.engines import sqlstate_of
from anyblok_multi_engines.routing.catalogue import Catalogue
from anyblok_multi_engines.tests.corpus import (
    UNSEEN,
    Case,
    corpus,
    schema,
    texts,
)

pytestmark = pytest.mark.filterwarnings(
    # SQLAlchemy 2.1's; 2.0 has no other way to write a DISTINCT ON.
    "ignore:Passing expression to ``distinct``"
)

# What a connection would leave to the next user of it, or is holding.
STATE = """
    SELECT (SELECT count(*) FROM pg_locks
            WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT array_agg(c) FROM pg_listening_channels() AS c),
        (SELECT array_agg(name) FROM pg_cursors WHERE name <> ''),
        (SELECT array_agg(name) FROM pg_prepared_statements WHERE from_sql),
        (SELECT md5(string_agg(name || setting, ',' ORDER BY name))
            FROM pg_settings WHERE name NOT LIKE '%.%'),
        current_setting('corpus.word', true),
        pg_my_temp_schema(), current_user, session_user
"""

# How the primary may refuse what is valid: in a transaction block, before a
# nextval(), and what psycopg wants to be asked for in another way.
VALID_ALL_THE_SAME = {"25001", "55000", "25P01", "the driver"}


@dataclass
class Run:
    """What happened to a case on a server

    :param asked: the statements that ``get_bind`` was called with
    :param error: SQLSTATE
    :param rows: False where the statement returns none
    :param left: True where the connection's state has changed
    """

    asked: list[Any] = field(default_factory=list)
    error: str | None = None
    rows: bool = True
    left: bool = False

    @property
    def evidence(self) -> str | None:
        """Return what shows that it is no read"""
        if self.error:
            return f"refused: {self.error}"

        if self.left:
            return "leaves something"

        return None if self.rows else "returns no rows"


@pytest.fixture(scope="module")
def registry(shared_servers, module_registry):
    schema.create(shared_servers.cluster, shared_servers.database)
    # As an upgrade that has changed the database does.
    module_registry.statements.catalogue = Catalogue()
    return module_registry


@pytest.fixture(scope="module")
def cases(registry):
    return corpus(registry)


@pytest.fixture(scope="module")
def on_primary(shared_servers, registry, cases):
    """Run every case on the primary"""
    return run_all(registry, cases, shared_servers.primary_url)


@pytest.fixture(scope="module")
def on_standby(shared_servers, registry, cases):
    """Run every trap on a standby"""
    traps = [case for case in cases if not case.is_read]
    return run_all(registry, traps, shared_servers.replica_urls[0])


@pytest.fixture(scope="module")
def called_reads(registry, cases, on_primary):
    """Return the cases that the registry takes for reads"""
    need_of = registry.statements.need_of
    return [
        case
        for case in cases
        if (asked := on_primary[case].asked)
        and all(need_of(clause).is_read for clause in asked)
    ]


def run_all(registry: Any, cases: Iterable[Case], url: str) -> dict[Case, Run]:
    """Run each case in a transaction, each trap on a connection of its own"""
    engine = create_engine(url)
    result = {}
    for case in cases:
        with engine.connect() as connection:
            result[case] = run(registry, case, connection)
            if not case.is_read:
                connection.invalidate()

    engine.dispose()
    return result


def run(registry: Any, case: Case, connection: Connection) -> Run:
    """Run a case on a connection, and roll it back"""
    result = Run()
    before = state_of(connection)
    with session_on(registry, connection, result.asked) as session:
        try:
            result.rows = execute(session, case.what)
        except StatementError as error:
            result.error = sqlstate_of(error.orig) or "the driver"
            # psycopg is still copying after a COPY that it doesn't know of.
            connection.invalidate()
        else:
            result.left = state_of(connection) != before

    return result


@contextmanager
def session_on(
    registry: Any, connection: Connection, asked: list[Any]
) -> Iterator[Any]:
    """Give the thread's session, all of it on a connection"""

    def get_bind(mapper: Any = None, clause: Any = None, **kwargs: Any) -> Any:
        asked.append(clause)
        return connection

    registry.Session.remove()
    session = registry.Session()
    session.get_bind = get_bind
    try:
        yield session
    finally:
        registry.Session.remove()


def execute(session: Any, what: Any) -> bool:
    """Execute a statement to its last row; return False where it has none"""
    if isinstance(what, FunctionType):
        what()
        return True

    if isinstance(what, Sequence):
        session.scalar(what)
        return True

    result = session.execute(what)
    if getattr(result, "returns_rows", True):
        result.all()
        return True

    return False


def state_of(connection: Connection) -> Any:
    """Return what a connection holds, asked past SQLAlchemy"""
    with connection.connection.cursor() as cursor:
        cursor.execute(STATE)
        return cursor.fetchone()


def names(cases: Any) -> list[str]:
    return sorted(map(str, cases))


def test_has_enough_of_each_style(cases):
    styles = [case.style for case in cases]
    assert len(set(map(str, cases))) == len(cases) >= 330
    for style in ("core", "orm", "text"):
        assert styles.count(style) >= 90
        assert len([x for x in cases if x.style == style and x.is_read]) >= 90


def test_all_are_valid_on_the_primary(cases, on_primary):
    errors = {
        str(case): on_primary[case].error
        for case in cases
        if on_primary[case].error
        and (case.is_read or on_primary[case].error not in VALID_ALL_THE_SAME)
    }
    assert errors == {}


def test_traps_are_refused_by_a_standby_or_leave_something(on_standby):
    """So that no verdict of the corpus has to be believed"""
    unshown = [
        case
        for case, done in on_standby.items()
        if not (done.evidence or case.is_harmless or case.trap == UNSEEN)
    ]
    assert names(unshown) == []


def test_what_is_only_not_provable_is_harmless(on_standby):
    """It is the rule that is careful, and the share of reads counts it"""
    shown = {
        str(case): done.evidence
        for case, done in on_standby.items()
        if done.evidence and case.is_harmless
    }
    assert shown == {}


def test_none_that_is_no_read_is_called_a_read(called_reads):
    assert names(x for x in called_reads if x.is_no_read) == []


def test_reads_run_on_a_standby_and_leave_nothing(
    registry, cases, called_reads
):
    """On a connection as the sessions have it: AUTOCOMMIT, read-only"""
    wrong = {}
    with registry.engine_of("replica1").connect() as connection:
        for case in cases:
            if case.is_read or case in called_reads:
                done = run(registry, case, connection)
                if done.error or done.left:
                    wrong[str(case)] = done.evidence

    assert wrong == {}


def test_most_true_reads_are_recognised(cases, called_reads):
    harmless = [case for case in cases if case.is_harmless]
    missed = [case for case in harmless if case not in called_reads]
    share = 1 - len(missed) / len(harmless)
    print(f"{share:.1%} of {len(harmless)} reads; missed: {names(missed)}")
    assert share >= 0.9, names(missed)


def test_nothing_is_a_read_where_an_order_may_write(servers, make_registry):
    """What calls the function is no word of the statement"""
    registry = make_registry.replicated(servers)
    primary, replica = servers.cluster.primary, servers.first
    primary.execute(schema.TICKETS, schema.RANKS, database=servers.database)
    servers.cluster.wait_for_replay()
    registry.statements.catalogue = Catalogue()
    for sql in texts.ORDERED:
        with pytest.raises(ReadOnlySqlTransaction):
            replica.query(sql, database=servers.database)

        assert not registry.statements.need_of(text(sql)).is_read
