# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The shadow mode: what it notes, and that nothing else changes."""

import json
import logging
import os
import runpy
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, select, text, update

from anyblok_multi_engines.consistency import Consistency
from anyblok_multi_engines.console import report, tables
from anyblok_multi_engines.console.report import seen_in
from anyblok_multi_engines.errors import OptionError
from anyblok_multi_engines.session import Call
from anyblok_multi_engines.shadow import mode
from anyblok_multi_engines.testing import recorded_decisions, wait_until
from anyblok_multi_engines.tests.conftest import (
    Registries,
    restored_options,
)
from anyblok_multi_engines.tests.processes import process
from anyblok_multi_engines.tests.test_console import run

HELLO = select(func.upper("hello"))

PROGRAM = Path(__file__).parents[2] / "doc" / "howto" / "try_it_out.py"

OTHERS_TOKEN = "of another process"

# What a statement under use_primary() is.
ASKED = ("primary", "caller_wants_primary", "read")


def place():
    """Return the place of the line that asks for it"""
    return f"{__file__}:{sys._getframe(1).f_lineno}"


def rows(table):
    """Return a table of a record: numbers by words"""
    return {
        key[0] if len(key) == 1 else key: tuple(numbers)
        for key, numbers in table.items()
    }


def options_of(servers, directory, **values):
    return {
        "db_wo_url": servers.primary_url,
        "db_ro_shadow": True,
        "db_ro_shadow_dir": str(directory),
        **values,
    }


def ready(registry):
    """Return a registry in shadow mode that knows the catalogue"""
    wait_until("no catalogue was read", lambda: registry.shadow.is_ready)
    registry.rollback()
    registry.Session.remove()
    registry.shadow.forget()
    return registry


@pytest.fixture(scope="module")
def module_shadow(shared_servers, tmp_path_factory):
    """Give a registry in shadow mode, with two replicas that are looked at"""
    with restored_options() as options:
        registries = Registries(options)
        registry = registries(
            shared_servers.database,
            **options_of(
                shared_servers,
                tmp_path_factory.mktemp("seen"),
                db_ro_urls=shared_servers.replica_urls,
                db_ro_check_interval=0.1,
            ),
        )

    yield registry
    registries.close()


@pytest.fixture
def registry(module_shadow, shared_servers):
    """Give it with nothing noted, of a session that has never written

    Whether a replica is a moment behind is of no consequence.
    """
    freshness = ready(module_shadow).freshness
    options = freshness.options
    freshness.options = options._replace(consistency=Consistency.EVENTUAL)
    module_shadow.reader().shadow_wrote_at = None
    yield module_shadow
    freshness.options = options
    module_shadow.rollback()
    module_shadow.Session.remove()
    shared_servers.cluster.primary.execute(
        "truncate book, shelf", database=shared_servers.database
    )


def read(registry):
    registry.Book.query().all()


def read_twice(registry):
    read(registry)
    read(registry)
    registry.commit()


def write(registry):
    registry.Book.insert(title="new")
    registry.commit()


def visit(registry):
    """Read, and note the visit: what keeps many an application from replicas"""
    read(registry)
    registry.execute(update(registry.Book).values(copies=1))
    read(registry)
    read(registry)
    registry.commit()


class TestFigures:
    def test_are_those_of_the_application(self, registry):
        for _ in range(5):
            read_twice(registry)

        for _ in range(3):
            write(registry)

        for _ in range(2):
            visit(registry)

        record = registry.shadow_report()
        assert rows(record.units) == {
            "replica": (5,),
            "primary": (3,),
            "moved": (2,),
        }
        assert rows(record.statements) == {
            ("replica", "usable_replica", "read"): (7,),
            ("replica", "already_on_replica", "read"): (5,),
            ("primary", "flushing", "other"): (3,),
            ("primary", "not_a_read", "other"): (2,),
            ("primary", "already_on_primary", "read"): (4,),
        }
        assert record.reads == 16
        assert record.share == 12 / 16
        assert record.errors == record.unjudged == record.fresher == 0
        assert "reads: 16, of which replicas would take 75.0%" in str(record)

    def test_unit_of_work_counts_at_its_end(self, registry):
        read(registry)
        assert registry.shadow_report().units == {}
        registry.rollback()
        assert rows(registry.shadow_report().units) == {"replica": (1,)}

    def test_question_counts_for_nothing(self, registry):
        registry.explain(HELLO)
        registry.session.get_bind()
        registry.rollback()
        assert registry.shadow_report().statements == {}

    def test_execution_that_asks_twice_counts_once(self, registry):
        """As an ORM bulk insert does"""
        call = Call(None)
        for _ in range(2):
            registry.session.get_bind(clause=HELLO, anyblok_call=call)

        registry.rollback()
        assert rows(registry.shadow_report().units) == {"replica": (1,)}
        assert registry.shadow_report().reads == 1

    def test_flush_that_sends_nothing_moves_nothing(self, registry):
        registry.Shelf.insert(name="one")
        registry.commit()
        registry.shadow.forget()
        shelf = registry.Shelf.query().one()
        # AnyBlok marks what a One2Many has loaded as changed.
        assert shelf.books == []
        read(registry)
        registry.commit()
        assert rows(registry.shadow_report().units) == {"replica": (1,)}

    def test_what_is_asked_aside_moves_nothing(self, registry):
        read(registry)
        registry.System.Parameter.is_exist("no such")
        read(registry)
        registry.commit()
        record = registry.shadow_report()
        assert rows(record.units) == {"replica": (1,)}
        assert rows(record.statements)[ASKED] == (1,)

    def test_use_primary_is_the_primary(self, registry):
        with registry.use_primary():
            read(registry)

        registry.commit()
        record = registry.shadow_report()
        assert rows(record.statements) == {ASKED: (1,)}
        assert record.share == 0

    def test_savepoint_is_the_primary(self, registry):
        read(registry)
        with registry.begin_nested():
            read(registry)

        registry.commit()
        found = rows(registry.shadow_report().statements)
        assert found["primary", "pinned_to_primary", "read"] == (1,)


class TestLines:
    def test_write_in_a_unit_of_work_that_only_reads_is_named(self, registry):
        read(registry)
        line = place(), registry.Book.insert(title="visited")
        read(registry)
        read(registry)
        registry.commit()
        record = registry.shadow_report()
        assert rows(record.writers) == {("Model.Book", line[0]): (1, 2)}

    def test_flush_is_that_of_the_line_that_commits(self, registry):
        registry.Book.insert(title="old")
        registry.commit()
        registry.shadow.forget()
        registry.Book.query().one().title = "other"
        line = place(), registry.commit()
        record = registry.shadow_report()
        assert rows(record.writers) == {("Model.Book", line[0]): (1, 0)}

    @pytest.mark.parametrize(
        "statement", ["core", "orm", "text"], ids=lambda x: x
    )
    def test_statement_that_writes_is_named(self, registry, statement):
        clause = {
            "core": update(registry.Book.__table__).values(copies=1),
            "orm": update(registry.Book).values(copies=1),
            "text": text("UPDATE book SET title = 'a secret' WHERE id = 0"),
        }[statement]
        read(registry)
        line = place(), registry.execute(clause)
        registry.commit()
        record = registry.shadow_report()
        what = "UPDATE" if statement == "text" else "Model.Book"
        assert rows(record.writers) == {(what, line[0]): (1, 0)}

    def test_units_of_work_that_write_in_two_lines_are_not(self, registry):
        read(registry)
        registry.Book.insert(title="one")
        registry.Book.insert(title="two")
        registry.commit()
        assert registry.shadow_report().writers == {}

    def test_what_is_not_proven_is_told_with_the_reason(self, registry):
        statement = text("SELECT setseed(0.5), title FROM book WHERE id = 42")
        for _ in range(3):
            line = place(), registry.execute(statement)
            registry.rollback()

        other = place(), registry.connection()
        registry.rollback()
        assert rows(registry.shadow_report().unproven) == {
            (
                "write",
                "function setseed() writes or locks",
                "select setseed (?), title from book where id = ?",
                line[0],
            ): (3,),
            (
                "unproven",
                "no statement: a bare connection",
                "",
                other[0],
            ): (1,),
        }


class TestNothingElseChanges:
    def test_servers_are_asked_the_same(self, make_registry, servers, tmp_path):
        """By the statements in the servers' logs, against one server"""
        shadow = options_of(servers, tmp_path, db_ro_urls=servers.replica_urls)
        found = []
        for values in ({"db_url": servers.primary_url}, shadow):
            registry = make_registry(servers.database, **values)
            if registry.shadow:
                ready(registry)

            registry.Session.remove()
            before = asked(servers)
            read_twice(registry)
            write(registry)
            visit(registry)
            with registry.use_replicas():
                read(registry)

            registry.System.Parameter.is_exist("no such")
            registry.rollback()
            found.append(
                [
                    statements[len(before[index]) :]
                    for index, statements in enumerate(asked(servers))
                ]
            )
            registry.close()

        assert registry.shadow_report().units.total() == 4
        assert found[0] == found[1]
        assert found[1][1:] == [[], []]
        assert len(found[1][0]) > 8

    def test_write_under_use_replicas_is_only_noted(self, registry):
        with registry.use_replicas():
            write(registry)
            registry.execute(text("DELETE FROM book"))

        registry.commit()
        assert registry.Book.query().count() == 0
        registry.rollback()
        assert registry.shadow_report().errors == 1

    def test_unknown_server_is_only_noted(self, registry):
        for name in ("replica1", "replica7"):
            registry.execute(HELLO.execution_options(anyblok_server=name))

        registry.rollback()
        assert rows(registry.shadow_report().statements) == {
            ("replica", "statement_says", "read"): (1,),
            ("nowhere", "statement_says", "read"): (1,),
        }

    def test_failure_of_ours_is_not_the_applications(
        self, registry, monkeypatch, caplog
    ):
        monkeypatch.setattr(registry.shadow, "_is_on", True)
        monkeypatch.setattr(registry.shadow, "statements", None)
        assert registry.execute(HELLO).scalar() == "HELLO"
        assert registry.execute(HELLO).scalar() == "HELLO"
        failed = "The shadow mode failed, and notes no more"
        assert caplog.messages.count(failed) == 1

    def test_unwritable_directory_is_one_warning(
        self, registry, monkeypatch, caplog, tmp_path
    ):
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "seen.shadow.json"
        monkeypatch.setattr(registry.shadow, "_path", path)
        monkeypatch.setattr(registry.shadow, "_has_told", False)
        registry.shadow.write()
        registry.shadow.write()
        warnings = [x for x in caplog.records if x.levelno >= logging.WARNING]
        assert len(warnings) == 1
        assert str(path.parent) in warnings[0].getMessage()
        read_twice(registry)

    def test_decision_is_that_of_the_shadow_mode(self, registry):
        with recorded_decisions(registry) as recorded:
            registry.execute(HELLO)

        registry.rollback()
        assert [str(x.made.decision) for x in recorded] == ["primary (shadow)"]
        decision = registry.explain("SELECT setseed(0.5)")
        assert str(decision) == (
            "primary (shadow: without it: primary "
            "(not_a_read: function setseed() writes or locks))"
        )

    def test_replica_that_is_down_stops_nothing(
        self, registry, shared_servers, options
    ):
        urls = shared_servers.replica_urls
        options(**options_of(shared_servers, "nowhere", db_ro_urls=urls))
        shared_servers.first.stop()
        try:
            wait_until(
                "the monitor did not see it",
                lambda: "replica1" in registry.health().down,
            )
            assert registry.db_exists(shared_servers.database)
            read_twice(registry)
        finally:
            shared_servers.cluster.heal()

        assert rows(registry.shadow_report().units) == {"replica": (1,)}


def asked(servers):
    """Return what the sessions have asked each server"""
    return [servers.statements_on(server) for server in servers.cluster.servers]


class TestFreshness:
    def test_replicas_that_are_behind_are_told(self, registry, shared_servers):
        freshness = registry.freshness
        freshness.options = freshness.options._replace(
            consistency=Consistency.SESSION, wait=0.0
        )
        replicas = shared_servers.cluster.replicas
        for replica in replicas:
            replica.pause_replay()

        try:
            write(registry)
            at = registry.shadow.wrote_at
            wait_until(
                "the monitor did not see that they are behind",
                lambda: all(
                    (health := registry.health().of(name)).lag.bytes
                    and health.observation.asked_at > at
                    for name in ("replica1", "replica2")
                ),
            )
            registry.shadow.forget()
            read_twice(registry)
        finally:
            shared_servers.cluster.heal()

        record = registry.shadow_report()
        assert record.fresher == 1
        assert rows(record.statements) == {
            ("primary", "no_fresh_replica", "read"): (1,),
            ("primary", "already_on_primary", "read"): (1,),
        }

    def test_age_of_the_last_write_is_noted(self, registry):
        read_twice(registry)
        assert registry.shadow_report().ages == {}
        registry.reader().shadow_wrote_at = 0.0
        read_twice(registry)
        write(registry)
        read_twice(registry)
        ages = registry.shadow_report().ages
        assert ages.total() == 2
        assert ages[("",)] == [1]

    def test_token_counts_from_when_it_was_heard_of(self, registry):
        write(registry)
        wrote_at = registry.reader().shadow_wrote_at
        mine = registry.consistency_token()
        for token, at in ((mine, wrote_at), (OTHERS_TOKEN, None)):
            moments = []
            for _ in range(2):
                registry.reader().shadow_wrote_at = None
                registry.shadow.note_token(registry.reader(), token)
                moments.append(registry.reader().shadow_wrote_at)

            assert moments == [at or moments[0]] * 2

    def test_token_counts_as_a_write(self, registry):
        write(registry)
        token = registry.consistency_token()
        registry.reader().shadow_wrote_at = None
        registry.read_after(token)
        registry.shadow.forget()
        read_twice(registry)
        assert registry.shadow_report().ages.total() == 1


def work(pipe, registry, plan):
    """What another process does: as many units of work as it is told"""
    ready(registry)
    for _ in range(plan):
        read_twice(registry)

    pipe.send(registry.shadow_report().units.total())


class TestFiles:
    def test_processes_are_added_up_in_the_report(
        self, registry, shared_servers
    ):
        """One that assumes a replica, and this one, which has two"""
        directory = registry.shadow._path.parent
        for path in directory.iterdir():
            path.unlink()

        options = options_of(
            shared_servers, directory, db_name=shared_servers.database
        )
        with process(work, options, 2) as pipe:
            assert pipe.recv() == 2

        read_twice(registry)
        write(registry)
        registry.shadow.write()
        (record,) = seen_in(directory, shared_servers.database).records
        assert record.processes == 2
        assert rows(record.units) == {"replica": (3,), "primary": (1,)}
        assert record.replicas == ("replica1", "replica2")
        assert seen_in(directory, "other").records == ()
        (directory / "other.shadow.json").write_text("{}")
        status, out, error = run(
            "report", "--json", db_ro_shadow_dir=str(directory)
        )
        assert (status, error) == (1, "")
        found = json.loads(out)
        assert found["unread"] == ["other.shadow.json"]
        assert found["databases"][0]["share"] == 1.0

    def test_report_of_nothing_says_where_it_looked(self, options, tmp_path):
        options(db_ro_shadow_dir=str(tmp_path / "none"))
        with pytest.raises(OptionError, match="/none: a process in shadow"):
            report.run()

    def test_report_names_the_file_that_alone_is_there(
        self, options, tmp_path, capsys
    ):
        (tmp_path / "app.shadow.json").write_text("{}")
        options(db_ro_shadow_dir=str(tmp_path))
        assert report.run() == 1
        assert "left out: app.shadow.json" in capsys.readouterr().out

    def test_nothing_of_the_data_is_in_them(self, registry):
        registry.execute(text("SELECT setseed(0.25), 'my secret', $$x$$"))
        registry.rollback()
        registry.shadow.write()
        path = registry.shadow._path
        written = path.read_text()
        assert "setseed" in written
        for value in ("secret", "0.25", "$$"):
            assert value not in written

        assert path.parent.stat().st_mode & 0o077 == 0

    def test_forked_process_has_its_own(self, registry):
        directory = registry.shadow._path.parent
        for path in directory.iterdir():
            path.unlink()

        read_twice(registry)
        told, tell = os.pipe()
        pid = os.fork()
        if not pid:
            for _ in range(5):
                read_twice(registry)

            os.read(told, 1)
            # As its end does.
            mode._write_all()
            os._exit(0)

        read_twice(registry)
        registry.shadow.write()
        os.write(tell, b"x")
        assert os.waitpid(pid, 0)[1] == 0
        os.close(told)
        os.close(tell)
        found = [
            json.loads(path.read_text())["units"]
            for path in directory.iterdir()
        ]
        assert sorted(found) == [[["replica", 2]], [["replica", 5]]]


def test_shadow_needs_a_primary(options, servers):
    from anyblok.registry import RegistryManager

    options(db_ro_urls=servers.replica_urls, db_ro_shadow=True)
    with pytest.raises(OptionError, match="--db-ro-shadow"):
        RegistryManager.get(servers.database)


@pytest.mark.skipif(
    not PROGRAM.exists(), reason="an installed package has no documentation"
)
def test_page_shows_what_its_application_gives(registry, shared_servers):
    """A day of it, and the summary of the report"""
    page = PROGRAM.with_name("try-it-out.rst").read_text(encoding="utf-8")
    runpy.run_path(str(PROGRAM))["a_day"](registry)
    record = registry.shadow_report()
    for line in str(record).splitlines():
        assert line in page

    ((what, where), numbers) = record.writers.sorted(1)[0]
    source = PROGRAM.read_text(encoding="utf-8").splitlines()
    number = int(where.rpartition(":")[2])
    assert what == "Model.Book"
    assert "visited.values" in source[number - 1]
    assert numbers == [20, 20]
    assert f"try_it_out.py:{number}" in page
    if os.environ.get("SHOW"):
        tables.console().print(tables.of_shadow(report.Seen((record,))))
