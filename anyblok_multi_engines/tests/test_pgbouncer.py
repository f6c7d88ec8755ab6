# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A real PgBouncer in front of each server: what doc/howto/pgbouncer.rst says.

In transaction mode, and with fewer connections to a server than it has
clients, so that they are shared.
"""

import re
import runpy
import shutil
import subprocess
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import func, select, text

from anyblok_multi_engines.testing import wait_until
from anyblok_multi_engines.testing.ports import HOST, reserve_port
from anyblok_multi_engines.testing.workspace import workspace

from .conftest import DRIVER, make_ready

PROGRAM = shutil.which("pgbouncer") or shutil.which(
    "pgbouncer", path="/usr/sbin"
)
PAGE = Path(__file__).parents[2] / "doc" / "howto" / "pgbouncer.py"

pytestmark = [
    pytest.mark.skipif(
        PROGRAM is None,
        reason="pgbouncer isn't installed: apt-get install pgbouncer",
    ),
    pytest.mark.skipif(
        not PAGE.exists(), reason="an installed package has no documentation"
    ),
]

SETTINGS = """
[databases]
* = host={server.host} port={server.port}

[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
admin_users = postgres
pool_mode = transaction
default_pool_size = 2
server_login_retry = 1
query_wait_timeout = 2
{more}
"""


class Pooler:
    """A PgBouncer in front of a server, until the ``with`` block ends

    :param server: of the cluster
    :param more: lines of its settings
    """

    def __init__(self, server, more=""):
        self._server, self._more = server, more

    def __enter__(self):
        place = workspace(durable=False, directory=None)
        directory = place.new_directory("pgbouncer")
        users, settings = directory / "users", directory / "settings"
        users.write_text('"postgres" ""\n"reader" ""\n')
        self._port = reserve_port()
        settings.write_text(
            SETTINGS.format(
                server=self._server,
                host=HOST,
                port=self._port.number,
                users=users,
                more=self._more,
            )
        )
        for path in (users, settings):
            place.account.give(path)

        with (directory / "log").open("wb") as log:
            self._process = place.spawn(
                PROGRAM, settings, stdout=log, stderr=log
            )

        # Its console: no server is asked.
        wait_until(
            "pgbouncer did not answer",
            lambda: self.connect("pgbouncer").close() or True,
            ignore=(psycopg2.Error,),
        )
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        self._port.release()

    def connect(self, database, user="postgres"):
        """Return a connection of psycopg2, which begins no transaction"""
        connection = psycopg2.connect(
            host=HOST,
            port=self._port.number,
            user=user,
            dbname=database,
            connect_timeout=5,
        )
        connection.autocommit = True
        return connection

    def url(self, database, user="postgres"):
        return f"{DRIVER}://{user}@{HOST}:{self._port.number}/{database}"


@pytest.fixture
def poolers(servers):
    """Give a PgBouncer for each server, by the server's name"""
    with ExitStack() as stack:
        yield {
            server.name: stack.enter_context(Pooler(server))
            for server in servers.cluster.servers
        }


@pytest.fixture
def make_pooled(servers, make_registry):
    """Give a function that builds a registry behind its poolers"""
    page = runpy.run_path(str(PAGE))
    events = [page["prepare_nothing"]] if "psycopg2" not in DRIVER else []

    def make(primary, *replicas, **values):
        return make_registry(
            servers.database,
            settings={"anyblok.engine.event": events},
            db_wo_url=primary,
            db_ro_urls=list(replicas),
            db_ro_wait=1.0,
            # Each of them, and not each but by chance.
            db_ro_policy="round-robin",
            **values,
        )

    return make


@pytest.fixture
def registry(servers, poolers, make_pooled):
    return make_pooled(*(x.url(servers.database) for x in poolers.values()))


def first_of(connection, statement):
    cursor = connection.cursor()
    cursor.execute(statement)
    return cursor.fetchone()[0]


def read(registry, servers, number=40):
    """Return the names of the servers of some units of work"""
    names = set()
    for _ in range(number):
        names.add(servers.served_by(registry))
        registry.rollback()

    return names


def test_replicas_read_and_the_primary_writes(servers, registry):
    assert read(registry, servers) == {"replica1", "replica2"}
    registry.Book.insert(title="x")
    assert servers.served_by(registry) == "primary"
    registry.commit()


def test_session_sees_its_commits(servers, registry):
    """Twenty times on replicas that follow, and where none does"""
    from_replicas = 0
    for number in range(1, 21):
        registry.Book.insert(title="x")
        registry.commit()
        assert registry.Book.query().count() == number
        from_replicas += servers.served_by(registry) != "primary"
        registry.rollback()

    assert from_replicas > 0
    for replica in servers.cluster.replicas:
        replica.pause_replay()

    registry.Book.insert(title="x")
    registry.commit()
    assert registry.Book.query().count() == 21
    assert servers.served_by(registry) == "primary"


@pytest.mark.parametrize("fault", ["stop", "kill"])
def test_replica_that_dies_behind_it_fails_no_read(servers, registry, fault):
    assert read(registry, servers) == {"replica1", "replica2"}
    getattr(servers.first, fault)()
    assert read(registry, servers) == {"replica2"}
    servers.first.start()
    wait_until(
        "replica1 did not come back",
        lambda: make_ready(registry, "replica1") or True,
        ignore=(TimeoutError,),
    )
    assert read(registry, servers) == {"replica1", "replica2"}


def test_server_side_cursor_reads_on_a_replica(servers, registry):
    numbers = select(
        func.current_setting("port"), func.generate_series(1, 1000)
    ).execution_options(yield_per=10)
    rows = registry.execute(numbers).all()
    assert [row[1] for row in rows] == list(range(1, 1001))
    assert servers.names[rows[0][0]] != "primary"
    registry.rollback()
    assert "primary" not in read(registry, servers)


def test_set_local_holds_for_its_unit_of_work(registry):
    show = text("SHOW statement_timeout")
    registry.execute(text("SET LOCAL statement_timeout = '7s'"))
    with registry.use_primary():
        assert registry.execute(show).scalar() == "7s"
        registry.commit()
        assert registry.execute(show).scalar() == "0"


class TestWhatIsOfAConnection:
    """Is the server's for all of its clients, and none's for sure"""

    @pytest.fixture
    def clients(self, servers, poolers):
        """Give two clients of one server"""
        pooler = poolers["primary"]
        with (
            closing(pooler.connect(servers.database)) as one,
            closing(pooler.connect(servers.database)) as other,
        ):
            yield one, other

    @pytest.mark.parametrize(
        ("said", "asked", "before", "after"),
        [
            (
                "SET statement_timeout = '7s'",
                "SELECT current_setting('statement_timeout')",
                "0",
                "7s",
            ),
            (
                "LISTEN news",
                "SELECT count(*) FROM pg_listening_channels()",
                0,
                1,
            ),
            (
                "SELECT pg_advisory_lock(7)",
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                " AND pid = pg_backend_pid()",
                0,
                1,
            ),
        ],
        ids=["SET", "LISTEN", "pg_advisory_lock"],
    )
    def test_another_has_it(self, clients, said, asked, before, after):
        one, other = clients
        assert first_of(one, asked) == before
        one.cursor().execute(said)
        # In a transaction: it keeps the only connection that there is.
        other.cursor().execute("BEGIN")
        assert first_of(other, asked) == after
        assert first_of(one, asked) == before


def test_readers_need_a_user_of_their_own(servers, poolers, make_pooled):
    """What makes a reader's connection read-only stays with the server's

    Nobody notices on a standby; one that is promoted takes writes.
    """
    pooler, database = poolers["replica1"], servers.database
    servers.cluster.primary.execute(
        "drop role if exists reader",
        "create role reader login in role pg_read_all_data, pg_read_all_stats",
    )
    servers.cluster.wait_for_replay()
    registry = make_pooled(
        servers.primary_url, pooler.url(database, user="reader")
    )
    assert read(registry, servers) == {"replica1"}
    registry.close()
    servers.first.promote()
    show = "SHOW default_transaction_read_only"
    with closing(pooler.connect(database, "reader")) as reader:
        assert first_of(reader, show) == "on"

    with closing(pooler.connect(database)) as writer:
        assert first_of(writer, show) == "off"
        writer.cursor().execute("CREATE TABLE promoted ()")


class TestPreparedStatements:
    """psycopg 3 prepares what it has executed five times"""

    @pytest.fixture
    def run_by_two(self, servers):
        """Give a function: one client runs it on two of the connections"""
        psycopg = pytest.importorskip("psycopg")
        url = "host={} port={} user=postgres dbname={}"
        number = "SELECT %s::int"

        def run(more, **options):
            with Pooler(servers.cluster.primary, more) as pooler:
                place = url.format(HOST, pooler._port.number, servers.database)
                with (
                    psycopg.connect(place, autocommit=True, **options) as one,
                    closing(pooler.connect(servers.database)) as other,
                ):
                    one.execute(number, [1])
                    other.cursor().execute("BEGIN; SELECT 1")
                    return one.execute(number, [2]).fetchone()[0]

        return run

    def test_they_belong_to_one_connection(self, run_by_two):
        psycopg = pytest.importorskip("psycopg")
        more = "max_prepared_statements = 0" if version() >= (1, 21) else ""
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):
            run_by_two(more, prepare_threshold=0)

    def test_without_them(self, run_by_two):
        assert run_by_two("", prepare_threshold=None) == 2

    def test_pgbouncer_keeps_them(self, run_by_two):
        if version() < (1, 21):
            pytest.skip("before PgBouncer 1.21 it keeps none")

        more = "max_prepared_statements = 100"
        assert run_by_two(more, prepare_threshold=0) == 2

    def test_registry_that_prepares_nothing(self, servers, registry):
        """Many times, and many connections of the pool"""
        assert "primary" not in read(registry, servers)
        for number in range(1, 11):
            registry.Book.insert(title="x")
            registry.commit()
            assert registry.Book.query().count() == number
            registry.rollback()


def version():
    """Return PgBouncer's version, such as (1, 18)"""
    said = subprocess.run(
        [PROGRAM, "--version"], capture_output=True, text=True, check=True
    ).stdout
    return tuple(map(int, re.search(r"(\d+)\.(\d+)", said).groups()))
