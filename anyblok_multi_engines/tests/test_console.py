# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""anyblok_engines on real servers: the real command, and what it finds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psycopg2
import pytest

from anyblok_multi_engines.console.application import COMMANDS
from anyblok_multi_engines.console.check import facts_of
from anyblok_multi_engines.console.explain import explain
from anyblok_multi_engines.console.findings import Severity, findings
from anyblok_multi_engines.console.servers import Servers
from anyblok_multi_engines.console.status import Usability, look
from anyblok_multi_engines.demo import __main__ as demo
from anyblok_multi_engines.testing import Cluster, wait_until
from anyblok_multi_engines.testing.ports import reserve_port
from anyblok_multi_engines.testing.workspace import account
from anyblok_multi_engines.tests.conftest import DRIVER

COMMAND = Path(sys.executable).parent / "anyblok_engines"
DATABASE = "console"
PGBOUNCER = shutil.which("pgbouncer") or shutil.which(
    "pgbouncer", path="/usr/sbin"
)

SCHEMA = """
create table book (id int primary key, title text);
create function bump() returns int language sql volatile as
    'update book set id = id + 1; select 1';
create function look() returns bigint language sql volatile as
    'select count(*) from book';
create function calm() returns bigint language sql stable as
    'select count(*) from book';
"""


@pytest.fixture(scope="module")
def database(anyblok_cluster_session):
    """Give the name of a database without bloks"""
    cluster = anyblok_cluster_session
    cluster.create_database(DATABASE)
    cluster.primary.execute(SCHEMA, database=DATABASE)
    cluster.wait_for_replay()
    yield DATABASE
    cluster.drop_database(DATABASE)


@pytest.fixture
def cluster(anyblok_cluster, database):
    return anyblok_cluster


def urls_of(cluster, **changes):
    """Return the options of a cluster

    :param changes: of them; None leaves one out
    """
    found = {
        "db_wo_url": cluster.primary.url(DATABASE, DRIVER),
        "db_ro_urls": [x.url(DATABASE, DRIVER) for x in cluster.replicas],
    } | changes
    return {name: value for name, value in found.items() if value}


@contextmanager
def command(*words, **options):
    """Run the real command, and give its process

    :param words: its first arguments
    :param options: as AnyBlok calls them
    """
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ANYBLOK_", "PG"))
    }
    arguments = list(words)
    for name, value in options.items():
        arguments.append(f"--{name.replace('_', '-')}")
        arguments += [value] if isinstance(value, str) else value

    process = subprocess.Popen(
        [COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, "HOME": "/nonexistent", "XDG_CONFIG_DIRS": "/nonexistent"},
        # It is ignored in what a shell runs in the background.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(*words, stdin="", **options):
    """Return the exit status of the real command, and what it has printed"""
    with command(*words, **options) as process:
        out, error = process.communicate(stdin, timeout=60)
        assert "Traceback" not in error
        return process.returncode, out, error


class TestStatus:
    def test_exit_status_is_0_1_and_2(self, cluster):
        status, out, error = run("status", "--json", **urls_of(cluster))
        assert (status, error) == (0, "")
        found = json.loads(out)
        assert [x["name"] for x in found["servers"]] == [
            "primary",
            "replica1",
            "replica2",
        ]
        assert [x["status"] for x in found["servers"]] == ["ready"] * 3
        cluster.replicas[0].stop()
        status, out, error = run("status", **urls_of(cluster))
        assert (status, error) == (1, "")
        assert "degraded: not ready: replica1" in out
        cluster.primary.stop()
        status, out, error = run("status", **urls_of(cluster))
        assert (status, error) == (2, "")
        assert "unusable: no primary" in out

    def test_is_watched_until_interrupted(self, cluster):
        options = urls_of(cluster, db_ro_check_interval="0.05")
        with command("status", "--watch", "--json", **options) as process:
            assert json.loads(process.stdout.readline())["summary"] == (
                "every server is ready"
            )
            cluster.replicas[0].stop()
            for line in process.stdout:
                if json.loads(line)["usability"] == "degraded":
                    break

            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 1
            assert "Traceback" not in process.stderr.read()

    def test_replica_is_as_late_as_what_it_has_replayed(self, cluster, options):
        primary, (first, _) = cluster.primary, cluster.replicas
        primary.execute("insert into book values (1)", database=DATABASE)
        cluster.wait_for_replay()
        first.pause_replay()
        primary.execute("insert into book values (2)", database=DATABASE)
        age = (
            "select extract(epoch from now() - pg_last_xact_replay_timestamp())"
        )
        wait_until(
            "it was not half a second behind",
            lambda: first.query(age)[0][0] > 0.5,
        )
        options(**urls_of(cluster), db_ro_max_lag="0.4")
        looks = []
        with Servers() as servers:
            step = servers.monitor.step
            servers.monitor.step = lambda: looks.append(step())
            replica = look(servers).servers[1]

        assert len(looks) == 2, "one look doesn't tell late from slow"
        options(db_ro_max_lag=None)
        primary.execute("delete from book", database=DATABASE)
        assert replica.status == "lagging"
        assert replica.lag_bytes > 0
        assert replica.lag_seconds > 0.4

    def test_server_that_hangs_holds_nothing_up(self, cluster, options):
        cluster.replicas[0].freeze()
        options(**urls_of(cluster))
        with Servers() as servers:
            report = look(servers)

        assert report.usability is Usability.DEGRADED
        assert report.servers[1].status == "down"

    def test_one_server_is_usable(self, cluster, options):
        options(db_url=cluster.primary.url(DATABASE, DRIVER))
        with Servers() as servers:
            report = look(servers)

        assert report.usability is Usability.USABLE
        assert report.servers[0].share == 1.0
        assert report.servers[0].pool == 15

    def test_read_only_mode_waits_for_nobody(self, cluster, options):
        for replica in cluster.replicas:
            replica.stop()

        options(**urls_of(cluster, db_wo_url=None))
        with Servers() as servers:
            assert look(servers).usability is Usability.UNUSABLE


@contextmanager
def asking_for_passwords(server):
    """Have a server ask the role locked for its password"""
    path = server.data / "pg_hba.conf"
    before = path.read_text()
    path.write_text(f"host all locked all scram-sha-256\n{before}")
    server.configure()
    try:
        yield
    finally:
        path.write_text(before)
        server.configure()


@contextmanager
def role(server, options):
    """Give a role of its own to a test"""
    server.execute(
        "drop role if exists locked", f"create role locked {options}"
    )
    yield "locked"
    server.execute("drop role locked")


@contextmanager
def refused(server, function):
    """Have a function be the superuser's alone, with all its overloads"""
    overloads = server.query(
        "select oid::regprocedure::text from pg_proc where proname = %s",
        [function],
    )
    names = ", ".join(name for (name,) in overloads)
    server.execute(
        f"revoke execute on function {names} from public", database=DATABASE
    )
    try:
        yield
    finally:
        server.execute(
            f"grant execute on function {names} to public", database=DATABASE
        )


def as_locked(url):
    """Return a URL with the role of a test"""
    return url.replace("postgres@", "locked@")


@pytest.fixture
def problems(options):
    """Give a function that checks options, and returns what isn't ok"""

    def check(**values):
        options(**values)
        with Servers() as servers:
            found = findings(facts_of(servers))

        return [
            (str(x.severity), x.check, ", ".join(x.about), x.text)
            for x in found
            if x.severity is not Severity.OK
        ]

    return check


class TestCheck:
    def test_exit_status_is_0_1_and_2(self, cluster):
        status, out, error = run("check", **urls_of(cluster))
        assert (status, error) == (0, "")
        assert "a position of the primary arrived within" in out
        status, out, error = run(
            "check", "--json", **urls_of(cluster), engines_workers="6"
        )
        assert (status, error) == (1, "")
        found = json.loads(out)
        assert found["severity"] == "warning"
        checks = {x["check"] for x in found["findings"] if x["advice"]}
        assert checks == {"connections"}

    def test_wrong_password_is_told_and_not_shown(self, cluster, options):
        first = cluster.replicas[0]
        with (
            role(cluster.primary, "login password 'right'"),
            asking_for_passwords(first),
        ):
            cluster.wait_for_replay()
            url = first.url(DATABASE, DRIVER)
            wrong = url.replace("postgres@", "locked:s3cr3t%40@")
            urls = [wrong, cluster.replicas[1].url(DATABASE, DRIVER)]
            values = urls_of(cluster, db_ro_urls=urls)
            status, out, error = run("check", "--json", **values)
            options(**values)
            with Servers() as servers:
                replica = look(servers).servers[1]

        refused = "password authentication failed"
        assert status == 2
        assert refused in out
        assert refused in replica.reason
        assert "s3cr3t" not in out + error + replica.reason

    def test_sound_cluster_has_no_problem(self, cluster, problems):
        assert problems(**urls_of(cluster)) == []
        assert problems(**urls_of(cluster, db_wo_url=None)) == []

    def test_missing_database(self, cluster, problems):
        found = problems(
            db_name="missing",
            db_wo_url=cluster.primary.url("", DRIVER),
            db_ro_urls=[x.url("", DRIVER) for x in cluster.replicas],
        )
        assert [x[:3] for x in found] == [
            ("error", "database", name)
            for name in ("primary", "replica1, replica2")
        ]

    def test_replica_of_another_cluster(self, cluster, problems):
        # Of an initdb of its own, and so of another system identifier.
        with Cluster(replicas=1, durable=True) as other:
            other.create_database(DATABASE)
            other.wait_for_replay()
            stranger = other.replicas[0].url(DATABASE, DRIVER)
            found = problems(**urls_of(cluster, db_ro_urls=[stranger]))

        assert [x[:3] for x in found] == [("error", "cluster", "replica1")]

    def test_roles_are_exchanged(self, cluster, problems):
        primary = cluster.primary.url(DATABASE, DRIVER)
        first, second = (x.url(DATABASE, DRIVER) for x in cluster.replicas)
        found = problems(db_wo_url=first, db_ro_urls=[primary, second])
        assert [x[:3] for x in found] == [
            ("error", "role", "primary"),
            ("error", "role", "replica1"),
        ]

    def test_two_urls_of_one_server(self, cluster, problems):
        first = cluster.replicas[0].url(DATABASE, DRIVER)
        same = first.replace("127.0.0.1", "localhost")
        found = problems(**urls_of(cluster, db_ro_urls=[first, same]))
        assert [x[:3] for x in found] == [
            ("warning", "same_server", "replica2")
        ]

    def test_paused_replica(self, cluster, problems):
        cluster.replicas[1].pause_replay()
        found = problems(**urls_of(cluster))
        assert [x[:3] for x in found] == [("error", "replication", "replica2")]
        assert "paused" in found[0][3]

    def test_server_that_hangs(self, cluster, problems):
        cluster.replicas[0].freeze()
        found = problems(**urls_of(cluster))
        assert [x[:3] for x in found] == [("error", "connection", "replica1")]

    def test_settings_that_differ(self, cluster, problems):
        first = cluster.replicas[0]
        first.configure(
            statement_timeout="5s", max_standby_streaming_delay="1s"
        )
        first.delay_replay(0.001)
        found = problems(**urls_of(cluster))
        first.configure(
            statement_timeout=None, max_standby_streaming_delay=None
        )
        assert [x[:2] for x in found] == [
            ("warning", "replay_delay"),
            ("warning", "recovery_conflicts"),
            ("warning", "timeouts"),
        ]
        assert "replica1 5 s" in found[2][3]

    def test_setting_of_the_role_is_seen(self, cluster, problems):
        with role(
            cluster.primary,
            "login connection limit 16 in role pg_read_all_stats",
        ):
            cluster.primary.execute(
                "alter role locked set search_path = app",
                "alter role locked set default_transaction_read_only = on",
            )
            cluster.wait_for_replay()
            locked = as_locked(cluster.primary.url(DATABASE, DRIVER))
            found = problems(**urls_of(cluster, db_wo_url=locked))

        assert [x[:3] for x in found] == [
            ("error", "read_only", "primary"),
            ("warning", "search_path", "primary, replica1, replica2"),
            ("warning", "connections", "primary"),
        ]

    def test_functions(self, cluster, problems):
        found = problems(
            **urls_of(cluster),
            db_ro_functions=["bump", "look", "public.calm", "nextval", "none"],
            db_wo_functions=["calm", "missing"],
        )
        assert [x[0] + ": " + x[3].partition(":")[0] for x in found] == [
            "error: the database has no function missing",
            "warning: public.bump() is VOLATILE, and there is an UPDATE in it",
            "error: pg_catalog.nextval() writes or locks",
            "warning: the database has no function none",
        ]

    def test_role_that_may_not_ask_for_positions(self, cluster, problems):
        urls = urls_of(cluster)
        with (
            role(cluster.primary, "login"),
            refused(cluster.primary, "pg_control_system"),
        ):
            cluster.wait_for_replay()
            found = problems(
                db_wo_url=as_locked(urls["db_wo_url"]),
                db_ro_urls=[as_locked(url) for url in urls["db_ro_urls"]],
            )

        everyone = "primary, replica1, replica2"
        assert [x[:3] for x in found] == [("warning", "cluster", everyone)]

    def test_role_that_may_not_write_a_message(self, cluster, options):
        """What has been rolled back before isn't sent"""
        primary = cluster.primary
        locked = as_locked(primary.url(DATABASE, DRIVER))
        with (
            role(primary, "login in role pg_read_all_stats"),
            refused(primary, "pg_logical_emit_message"),
        ):
            cluster.wait_for_replay()
            options(**urls_of(cluster, db_wo_url=locked))
            with primary.connection(DATABASE) as other:
                other.autocommit = False
                other.cursor().execute("insert into book values (9)")
                other.rollback()

            with Servers() as servers:
                facts = facts_of(servers)

        assert "permission denied" in facts.unforced
        assert all(x.arrival.reached for x in facts.replicas)


@contextmanager
def pgbouncer(server, directory, mode):
    """Run a real PgBouncer in front of a server; give its port"""
    runs_as, port = account(), reserve_port()
    users, settings = directory / "users.txt", directory / "pgbouncer.ini"
    users.write_text('"postgres" ""\n')
    settings.write_text(
        f"""
[databases]
* = host={server.host} port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port.number}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {mode}
default_pool_size = 5
"""
    )
    for path in (directory, users, settings):
        runs_as.give(path)

    log = (directory / "pgbouncer.log").open("wb")
    process = subprocess.Popen(
        [PGBOUNCER, "-q", settings], stdout=log, stderr=log, **runs_as.popen()
    )
    try:
        wait_until(
            "pgbouncer did not answer",
            lambda: (
                psycopg2.connect(
                    f"host=127.0.0.1 port={port.number} user=postgres "
                    f"dbname={DATABASE}"
                ).close()
                or True
            ),
            ignore=(psycopg2.Error,),
        )
        yield port.number
    finally:
        process.terminate()
        process.wait(10)
        log.close()
        port.release()


@pytest.mark.skipif(
    PGBOUNCER is None, reason="pgbouncer isn't installed: apt-get install it"
)
class TestPgBouncer:
    @pytest.fixture
    def place(self):
        """Give a directory that PgBouncer's user may enter"""
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory)

    @pytest.mark.parametrize("mode", ["transaction", "session"])
    def test_mode_is_noticed(self, cluster, place, problems, mode):
        first = cluster.replicas[0]
        with pgbouncer(first, place, mode) as port:
            url = first.url(DATABASE, DRIVER)
            behind = url.replace(str(first.port), str(port))
            found = problems(
                **urls_of(cluster, db_ro_urls=[behind]), engines_workers="5"
            )

        expected = [("warning", "pooler", "replica1")]
        assert [x[:3] for x in found] == (
            expected if mode == "transaction" else []
        )


class TestExplain:
    def test_statements_of_a_file(self, cluster, tmp_path):
        path = tmp_path / "queries.sql"
        path.write_text(
            "\N{BOM}select * from book;\nselect bump();\n-- the end\n",
            encoding="utf-8",
        )
        status, out, error = run(
            "explain",
            *("--json", "--db-echo", "--db-echo-pool", "--file", str(path)),
            **urls_of(cluster),
        )
        assert (status, error) == (0, "")
        assert json.loads(out) == {
            "version": 1,
            "assumed": [],
            "statements": [
                {
                    "statement": "select * from book",
                    "servers": ["replica1", "replica2"],
                    "reason": "usable_replica",
                    "because": None,
                },
                {
                    "statement": "select bump()",
                    "servers": ["primary"],
                    "reason": "not_a_read",
                    "because": "function bump() is volatile",
                },
            ],
        }

    def test_standard_input_and_nobody_to_ask(self):
        options = {
            "db_wo_url": f"{DRIVER}://me@127.0.0.1:1/x",
            "db_ro_urls": [f"{DRIVER}://me@127.0.0.1:1/x"],
        }
        status, out, error = run(
            "explain", "--file", "-", stdin="select bump()", **options
        )
        assert (status, error) == (1, "")
        assert "server   replica1" in out
        assert out.count("assumed: ") == 2

    def test_replica_that_is_down_serves_nothing(self, cluster, options):
        cluster.replicas[0].stop()
        options(**urls_of(cluster))
        with Servers() as servers:
            found = explain(servers, ["select * from book"])

        assert found.explanations[0].servers == ("replica2",)

    def test_primary_that_is_down_is_told(self, cluster, options):
        cluster.primary.stop()
        options(**urls_of(cluster))
        with Servers() as servers:
            found = explain(servers, ["select * from book"])

        assert found.explanations[0].servers == ("replica1", "replica2")
        assert found.assumed == (
            "the primary can't be asked: replica1 has its catalogue",
        )

    def test_is_what_a_registry_says(self, registry, options):
        """Of a session that has done nothing yet"""
        port = "select current_setting('port')"
        for statement in (port, "select * from nosuch", "delete from shelf"):
            said = registry.explain(statement)
            registry.rollback()
            with Servers() as servers:
                (mine,) = explain(servers, [statement]).explanations

            assert said.server_name in mine.servers
            assert (said.reason, said.because) == (mine.reason, mine.because)

    @pytest.mark.parametrize(
        "words",
        [
            ["explain", "--json", "select 1"],
            ["--json", "explain", "select 1"],
            ["explain", "select 1", "--json"],
        ],
    )
    def test_statement_and_options_come_in_any_order(self, cluster, words):
        status, out, error = run(*words, **urls_of(cluster))
        assert (status, error) == (0, "")
        assert json.loads(out)["statements"][0]["statement"] == "select 1"

    def test_statement_of_the_log_of_sqlalchemy(self, cluster, options):
        options(**urls_of(cluster))
        logged = "select * from book where id = %(id_1)s::INTEGER"
        with Servers() as servers:
            (found,) = explain(servers, [logged]).explanations

        assert found.servers == ("replica1", "replica2")
        assert found.statement == logged

    def test_terminal_without_a_character_of_a_statement(
        self, cluster, monkeypatch
    ):
        monkeypatch.setenv("PYTHONIOENCODING", "ascii")
        status, out, error = run(
            *("explain", "--file", "-"),
            stdin="select 'é'; select 1",
            **urls_of(cluster),
        )
        assert (status, error) == (0, "")
        assert r"select '\xe9'" in out

    def test_nobody_reads_to_the_end(self, cluster):
        with command("status", "--json", **urls_of(cluster)) as process:
            process.stdout.close()
            error = process.stderr.read()
            assert (process.wait(60), error) == (141, "")


class TestErrors:
    """One line that says it, and no traceback"""

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["status"], "anyblok_engines: No driver name defined, and no URL"),
            (["check", "--db-url", "postgresql//a:s3cr3t@b"], "--db-url"),
            (["check", "--db-url", "postgresql://a:b@s3cr3t@c/d"], "%40"),
            (["status", "--db-url", "sqlite://"], "can't use this URL"),
        ],
    )
    def test_is_told(self, words, said):
        status, out, error = run(*words)
        assert (status, out) == (2, "")
        assert said in error
        assert error.count("\n") == 1
        assert "s3cr3t" not in error

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (b"db_password = a%s3cr3t", "db_password in a configuration file"),
            (b"db_password = %(s3cr3t)s", "write %% for a %"),
            (b"db_password = s3cr3t\xe9", "a configuration file isn't UTF-8"),
        ],
    )
    def test_configuration_file_is_not_shown(self, tmp_path, line, said):
        path = tmp_path / "app.cfg"
        path.write_bytes(b"[AnyBlok]\n" + line)
        self.test_is_told(["status", "-c", str(path)], said)

    def test_help_names_the_exit_statuses(self):
        status, out, error = run("--help")
        assert (status, error) == (0, "")
        assert "1 degraded; 2 no primary" in out


def test_demo_is_the_demonstration(monkeypatch):
    """``make demo``: it is run in tests/cluster/test_demo.py"""
    monkeypatch.setattr(demo, "main", lambda: 7)
    assert COMMANDS["demo"]() == 7
