# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What anyblok_engines finds and shows, on plain values."""

import json
import sys
from dataclasses import replace
from io import StringIO
from types import MappingProxyType

import pytest
from rich.console import Console
from sqlalchemy import make_url

from anyblok_multi_engines import config
from anyblok_multi_engines.consistency import ConsistencyToken
from anyblok_multi_engines.console import application, tables
from anyblok_multi_engines.console import options as our_options
from anyblok_multi_engines.console.check import Checked
from anyblok_multi_engines.console.details import Details
from anyblok_multi_engines.console.explain import (
    MEANINGS,
    AssumedCatalogue,
    Explained,
    Explanation,
)
from anyblok_multi_engines.console.facts import (
    Answers,
    Arrival,
    Facts,
    Function,
    Pooling,
    PoolLimits,
    ServerFacts,
    Setting,
)
from anyblok_multi_engines.console.findings import (
    Finding,
    Severity,
    findings,
)
from anyblok_multi_engines.console.passwords import hidden
from anyblok_multi_engines.console.status import (
    Report,
    Usability,
    judged,
    shares,
    state_of,
    with_age,
)
from anyblok_multi_engines.errors import OptionError
from anyblok_multi_engines.health.model import (
    Limits,
    Observation,
    ServerHealth,
    Snapshot,
    Status,
)
from anyblok_multi_engines.positions import Lag
from anyblok_multi_engines.routing.decision import Reason
from anyblok_multi_engines.routing.statements import need_of
from anyblok_multi_engines.topology import Role, Server, Topology

URL = make_url("postgresql://me:s3cr3t@host:5432/shop")
PRIMARY = Server("primary", Role.PRIMARY, URL, "--db-wo-url", takes_reads=False)
REPLICA1 = Server("replica1", Role.REPLICA, URL, "--db-ro-urls")
REPLICA2 = Server("replica2", Role.REPLICA, URL, "--db-ro-urls")
TOPOLOGY = Topology(PRIMARY, (REPLICA1, REPLICA2))
READ_ONLY = Topology(None, (REPLICA1, REPLICA2))
DB_URL = TOPOLOGY._replace(primary=replace(PRIMARY, takes_reads=True))
POSITION = ConsistencyToken(1, 1, 0x3000148)


def printed(what):
    """Return what is shown of a table, as in a pipe"""
    console = Console(file=StringIO(), width=tables.WIDTH)
    console.print(what)
    return console.file.getvalue()


class TestOptions:
    @pytest.mark.parametrize(
        ("text", "statements"),
        [
            ("select 1", ["select 1"]),
            ("select 1; select 2;", ["select 1", "select 2"]),
            ("-- first\nselect 1\n;; -- last\n", ["select 1"]),
            (
                "select ';' || $$;$$ -- ;\n, 2",
                ["select ';' || $$;$$ -- ;\n, 2"],
            ),
            ("select E'\\';'; select 2", ["select E'\\';'", "select 2"]),
            ("", []),
        ],
    )
    def test_statements_are_split(self, text, statements):
        assert list(our_options.split(text)) == statements

    def test_text_without_an_end_is_refused(self):
        with pytest.raises(OptionError, match="can't be read"):
            list(our_options.split("select 'x"))

    def test_every_command_has_its_help(self):
        assert tuple(application.COMMANDS) == our_options.COMMANDS
        for name in application.COMMANDS:
            assert f"  {name}" in our_options.DESCRIPTION


class TestPasswords:
    def test_password_of_an_url_is_hidden(self):
        assert hidden("invalid dsn: postgresql://me:s3cr3t@host/x") == (
            "invalid dsn: postgresql://***@host/x"
        )

    @pytest.mark.parametrize(
        "text", ["see postgresql://host/x", config.HOW_TO_WRITE_URLS]
    )
    def test_url_without_a_password_stays(self, text):
        assert hidden(text) == text


def health(status, lag=None, position=POSITION):
    seen = Observation(1.0, 0.0004, is_replica=True, position=position)
    return ServerHealth(status, str(status), 0.0, observation=seen, lag=lag)


def snapshot(**statuses):
    return Snapshot(
        MappingProxyType({x: health(Status(y)) for x, y in statuses.items()}),
        MappingProxyType(dict.fromkeys(statuses, 1.0)),
    )


ALL = {"primary": "ready", "replica1": "ready", "replica2": "ready"}


class TestUsability:
    @pytest.mark.parametrize(
        ("topology", "changes", "falls_back", "usability", "summary"),
        [
            (TOPOLOGY, {}, True, "usable", "every server is ready"),
            (TOPOLOGY, {"replica2": "down"}, True, "degraded", "replica2"),
            (TOPOLOGY, {"replica1": "lagging"}, True, "degraded", "replica1"),
            (TOPOLOGY, {"primary": "down"}, True, "unusable", "no primary"),
            (TOPOLOGY, {"primary": "wrong"}, True, "unusable", "no primary"),
            (
                TOPOLOGY,
                {"replica1": "down", "replica2": "wrong"},
                True,
                "degraded",
                "replica1, replica2",
            ),
            (
                TOPOLOGY,
                {"replica1": "down", "replica2": "wrong"},
                False,
                "unusable",
                "nothing to read from",
            ),
            (READ_ONLY, {}, True, "usable", "read-only mode"),
            (
                READ_ONLY,
                {"replica1": "down", "replica2": "down"},
                True,
                "unusable",
                "nothing to read from",
            ),
            (Topology(PRIMARY), {}, False, "usable", "every server is ready"),
        ],
    )
    def test_is_judged(self, topology, changes, falls_back, usability, summary):
        names = [server.name for server in topology.servers]
        statuses = {name: {**ALL, **changes}[name] for name in names}
        found = judged(topology, snapshot(**statuses), falls_back)
        assert found[0] == usability
        assert summary in found[1]

    def test_exit_statuses(self):
        assert [x.exit_status for x in Usability] == [0, 1, 2]
        assert [x.exit_status for x in Severity] == [0, 1, 2]


class TestShares:
    def test_replicas_share_the_reads(self):
        found = shares(TOPOLOGY, snapshot(**ALL), True)
        assert found == {"primary": 0.0, "replica1": 0.5, "replica2": 0.5}

    def test_primary_of_db_url_has_its_share(self):
        found = shares(DB_URL, snapshot(**ALL), True)
        assert found == pytest.approx(dict.fromkeys(ALL, 1 / 3))

    def test_primary_reads_for_its_replicas(self):
        lost = snapshot(**ALL | {"replica1": "down", "replica2": "down"})
        assert shares(TOPOLOGY, lost, True)["primary"] == 1.0
        assert shares(TOPOLOGY, lost, False)["primary"] == 0.0

    def test_weight_0_counts_where_nobody_else_is_there(self):
        one = replace(
            snapshot(**ALL | {"replica2": "down"}),
            weights=MappingProxyType(
                {**dict.fromkeys(ALL, 1.0), "replica1": 0}
            ),
        )
        assert shares(TOPOLOGY, one, True)["replica1"] == 1.0


class TestAge:
    """The monitor's first look doesn't know since when a replica is behind"""

    BEHIND = Snapshot(
        MappingProxyType(
            {
                "primary": health(Status.READY),
                "replica1": health(Status.READY, Lag(2_500_000, 0.0)),
                "replica2": health(Status.READY, Lag(0, 0.0)),
            }
        )
    )
    DETAILS = {  # noqa: RUF012
        "primary": Details(None, 7, 100),
        "replica1": Details(12.5, 7, 100),
        "replica2": Details(3600.0, 7, 100),
    }

    def test_replica_is_as_far_behind_as_what_it_has_replayed(self):
        found = with_age(TOPOLOGY, self.BEHIND, self.DETAILS, None, 1, Limits())
        assert found.of("replica1").lag == Lag(2_500_000, 12.5)
        assert found.of("replica1").status is Status.READY

    def test_it_is_judged_by_that(self):
        limits = Limits(max_lag=10.0)
        found = with_age(TOPOLOGY, self.BEHIND, self.DETAILS, None, 1, limits)
        assert found.of("replica1").status is Status.LAGGING
        assert found.of("replica1").reason == "12.5 s behind, of 10 s allowed"

    @pytest.mark.parametrize("status", [Status.DOWN, Status.WRONG])
    def test_server_that_is_not_used_stays_unused(self, status):
        gone = self.BEHIND.of("replica1")._replace(status=status)
        before = self.BEHIND.with_server("replica1", gone)
        found = with_age(TOPOLOGY, before, self.DETAILS, None, 1, Limits())
        assert found.of("replica1") == gone

    def test_replica_that_goes_on_is_not_late(self):
        """It hasn't replayed the first write after a long silence yet"""
        found = with_age(
            TOPOLOGY, self.BEHIND, self.DETAILS, POSITION, 1, Limits()
        )
        assert found == self.BEHIND

    def test_replica_that_has_everything_is_not_behind(self):
        limits = Limits(max_lag=10.0)
        found = with_age(TOPOLOGY, self.BEHIND, self.DETAILS, None, 1, limits)
        assert found.of("replica2") == self.BEHIND.of("replica2")


class TestStatusTable:
    def report(self):
        replica = health(Status.LAGGING, Lag(2_500_000, 12.5))
        replica = replica._replace(reason="12.5 s behind, [of] 10 s")
        down = ServerHealth(Status.DOWN, "password s3cr3t refused", 0.0)
        details = Details(None, 7, 100)
        return Report(
            Usability.DEGRADED,
            "not ready: replica1",
            (
                state_of(PRIMARY, health(Status.READY), details, 1.0, 15),
                state_of(REPLICA1, replica, details, 0.0, 15),
                state_of(REPLICA2, down, details, 0.0, None),
            ),
        )

    def test_shows_all_of_a_server(self):
        shown = printed(tables.of_status(self.report()))
        lines = {line.split()[0]: line for line in shown.splitlines() if line}
        assert lines["primary"].split()[1:] == (
            "primary ready - 0/3000148 0.4 ms 100% 7 of 100 15".split()
        )
        assert "2.5 MB, 12.5 s" in shown
        assert "replica1 (host:5432): 12.5 s behind, [of] 10 s" in shown
        assert "degraded: not ready: replica1" in shown

    def test_is_whole_on_a_terminal_of_80_columns(self):
        late = replace(
            self.report().servers[1],
            position="2F3/7A0B9C28",
            lag_bytes=130_200_000,
            lag_seconds=355.7,
            latency=0.0123,
            connections=123,
            max_connections=1000,
        )
        console = Console(file=StringIO(), width=80)
        report = Report(Usability.DEGRADED, "not ready: replica1", (late,))
        console.print(tables.of_status(report))
        assert "\N{HORIZONTAL ELLIPSIS}" not in console.file.getvalue()

    def test_of_a_server_that_is_down_nothing_is_known(self):
        down = self.report().servers[2]
        assert down.position is down.latency is down.connections is None
        assert down.lag_bytes is down.lag_seconds is None

    def test_is_json(self):
        found = json.loads(json.dumps(self.report().as_json()))
        assert found["usability"] == "degraded"
        assert found["servers"][1]["lag_bytes"] == 2_500_000


SETTINGS = {
    "default_transaction_isolation": Setting("read committed"),
    "default_transaction_read_only": Setting("off"),
    "hot_standby_feedback": Setting("off"),
    "idle_in_transaction_session_timeout": Setting("0", "ms"),
    "lock_timeout": Setting("0", "ms"),
    "max_standby_streaming_delay": Setting("30000", "ms"),
    "recovery_min_apply_delay": Setting("0", "ms"),
    "statement_timeout": Setting("0", "ms"),
    "wal_level": Setting("replica"),
}


def server_facts(server, **changes):
    answers = Answers(
        in_recovery=server.role is Role.REPLICA,
        key=(server.name,),
        system_id=1,
        timeline=1,
        settings=SETTINGS,
        search_path=("public",),
        connection_limit=97,
    )
    known = ServerFacts(
        server,
        replace(answers, **changes),
        pool=PoolLimits(5, 10),
        arrival=(
            Arrival(0.004, reached=True)
            if server.role is Role.REPLICA
            else None
        ),
    )
    return known


def setting(**values):
    return {
        "settings": SETTINGS
        | {
            x: Setting(y, "ms" if y.isdigit() else None)
            for x, y in values.items()
        }
    }


def facts(primary=None, replica=None, **changes):
    """Return the facts of a sound cluster, but for what is said

    :param primary: what it answers otherwise
    :param replica: what replica1 answers otherwise
    """
    servers = (
        server_facts(PRIMARY, **primary or {}),
        server_facts(REPLICA1, **replica or {}),
        server_facts(REPLICA2),
    )
    sound = {"topology": TOPOLOGY, "servers": servers, "database": "shop"}
    return Facts(**sound | changes)


def with_replica(**changes):
    """Return facts of which one replica is known otherwise"""
    sound = facts()
    first, second, third = sound.servers
    return replace(sound, servers=(first, replace(second, **changes), third))


VOLATILE = Function("public", "bump", "v")

CASES = {
    "no_database": (
        facts(database=None),
        "error database --db-name: no database is named",
    ),
    "replica_does_not_answer": (
        with_replica(answers=None, failure="connection refused"),
        "error connection replica1: replica1 (host:5432) can't be asked: "
        "connection refused",
    ),
    "database_is_missing": (
        with_replica(answers=None, lacks_database=True),
        "error database replica1: it has no database",
    ),
    "primary_is_a_standby": (
        facts(primary={"in_recovery": True}),
        "error role primary: it is a standby",
    ),
    "replica_is_a_primary": (
        facts(replica={"in_recovery": False}),
        "error role replica1: it is not in recovery",
    ),
    "another_cluster": (
        facts(replica={"system_id": 2}),
        "error cluster replica1: it is of another cluster than primary",
    ),
    "another_timeline": (
        facts(primary={"timeline": 2}, replica={"timeline": 2}),
        "warning cluster replica2: its timeline is 1, and that of primary",
    ),
    "no_positions": (
        facts(replica={"system_id": None, "timeline": None}),
        "warning cluster replica1: it doesn't tell its cluster",
    ),
    "one_server_twice": (
        facts(replica={"key": ("replica2",)}),
        "warning same_server replica2: it is the same server as replica1",
    ),
    "position_does_not_arrive": (
        with_replica(arrival=Arrival(5.0, reached=False)),
        "error replication replica1: a position of the primary has not "
        "arrived within 5 s",
    ),
    "replay_is_paused": (
        with_replica(arrival=Arrival(5.0, reached=False, paused=True)),
        "error replication replica1: its replay is paused",
    ),
    "replay_is_delayed": (
        facts(replica=setting(recovery_min_apply_delay="60000")),
        "warning replay_delay replica1: recovery_min_apply_delay: always 60 s",
    ),
    "replay_is_delayed_for_ever": (
        facts(
            replica=setting(recovery_min_apply_delay="60000"),
            limits=Limits(max_lag=30.0),
        ),
        "error replay_delay replica1: recovery_min_apply_delay: always 60 s "
        "behind, of --db-ro-max-lag 30",
    ),
    "wal_level_is_minimal": (
        facts(primary=setting(wal_level="minimal")),
        "error wal_level primary: wal_level is minimal",
    ),
    "primary_is_read_only": (
        facts(primary=setting(default_transaction_read_only="on")),
        "error read_only primary: default_transaction_read_only is on",
    ),
    "reads_are_cancelled_soon": (
        facts(replica=setting(max_standby_streaming_delay="1000")),
        "warning recovery_conflicts replica1: hot_standby_feedback is off, "
        "max_standby_streaming_delay 1 s",
    ),
    "timeouts_differ": (
        facts(replica=setting(statement_timeout="5000")),
        "warning timeouts primary, replica1, replica2: statement_timeout "
        "differs: primary 0, replica1 5 s, replica2 0",
    ),
    "search_paths_differ": (
        facts(replica={"search_path": ("app", "public")}),
        "warning search_path primary, replica1, replica2: the search_path "
        "differs: primary: public; replica1: app, public; replica2: public",
    ),
    "serializable": (
        facts(isolation_level="SERIALIZABLE"),
        "warning isolation_level --isolation-level: SERIALIZABLE is",
    ),
    "write_function_is_missing": (
        facts(write_functions=frozenset(["bump"])),
        "error functions --db-wo-functions: the database has no function bump",
    ),
    "read_function_is_missing": (
        facts(read_functions=frozenset(["app.bump"]), functions=(VOLATILE,)),
        "warning functions --db-ro-functions: the database has no function",
    ),
    "function_is_in_both": (
        facts(
            read_functions=frozenset(["bump"]),
            write_functions=frozenset(["bump"]),
            functions=(VOLATILE,),
        ),
        "warning functions --db-ro-functions: bump is in --db-wo-functions",
    ),
    "read_function_writes": (
        facts(
            read_functions=frozenset(["bump"]),
            functions=(VOLATILE._replace(writing="UPDATE"),),
        ),
        "warning functions --db-ro-functions: public.bump() is VOLATILE, and "
        "there is an UPDATE in it",
    ),
    "read_function_is_nextval": (
        facts(
            read_functions=frozenset(["nextval"]),
            functions=(Function("pg_catalog", "nextval", "v"),),
        ),
        "error functions --db-ro-functions: pg_catalog.nextval() writes",
    ),
    "too_many_processes": (
        facts(workers=6),
        "warning connections primary, replica1, replica2: 6 processes "
        "(--engines-workers) with a pool of 5, 10 more for a moment, and 2 of "
        "our own: 102 connections, 97 allowed; 42 at all times",
    ),
    "far_too_many_processes": (
        facts(workers=14),
        "error connections primary, replica1, replica2: 14 processes",
    ),
    "few_connections": (
        facts(primary={"connection_limit": 16}),
        "warning connections primary: 1 process (--engines-workers)",
    ),
    "pooler_in_transaction_mode": (
        facts(replica={"pooling": Pooling.TRANSACTION}),
        "warning pooler replica1: a pooler in transaction mode",
    ),
    "pooler_of_an_unknown_mode": (
        facts(replica={"pooling": Pooling.UNKNOWN}),
        "warning pooler replica1: a pooler of an unknown mode",
    ),
}

FINE = {
    "function_is_stable": (
        facts(
            read_functions=frozenset(["public.bump"]),
            functions=(VOLATILE._replace(volatility="s"),),
        ),
        "ok functions --db-ro-functions: public.bump() is STABLE",
    ),
    "function_is_volatile": (
        facts(read_functions=frozenset(["bump"]), functions=(VOLATILE,)),
        "ok functions --db-ro-functions: public.bump() is VOLATILE, and taken",
    ),
    "function_writes": (
        facts(write_functions=frozenset(["bump"]), functions=(VOLATILE,)),
        "ok functions --db-wo-functions: bump counts as a write",
    ),
    "pooler_in_session_mode": (
        facts(replica={"pooling": Pooling.SESSION}, workers=5),
        "ok connections replica1: behind a pooler",
    ),
    "nothing_can_be_written": (
        facts(unforced="permission denied"),
        "ok replication primary: nothing could be written for the replicas",
    ),
    "read_only_mode": (
        replace(facts(), topology=READ_ONLY, servers=facts().servers[1:]),
        "ok replication --db-ro-urls: read-only mode",
    ),
    "no_statistics": (
        facts(replica={"sees_statistics": False}),
        "ok rights replica1: its user hasn't pg_read_all_stats",
    ),
    "repeatable_read": (
        facts(isolation_level="REPEATABLE_READ"),
        "ok isolation_level --isolation-level: REPEATABLE READ: a unit",
    ),
}


def line_of(finding):
    about = ", ".join(finding.about)
    return f"{finding.severity} {finding.check} {about}: {finding.text}"


class TestFindings:
    def test_sound_cluster_is_ok(self):
        found = findings(facts())
        assert {finding.severity for finding in found} == {Severity.OK}
        assert ("replica1", "replica2") in {x.about for x in found}

    @pytest.mark.parametrize("name", CASES)
    def test_says_what_is_wrong_and_what_to_do(self, name):
        known, expected = CASES[name]
        found = [x for x in findings(known) if x.severity is not Severity.OK]
        assert any(line_of(x).startswith(expected) for x in found), found
        assert {x.check for x in found} == {expected.split()[1]}
        assert all(x.advice for x in found)

    @pytest.mark.parametrize("name", FINE)
    def test_says_what_is_fine(self, name):
        known, expected = FINE[name]
        found = findings(known)
        assert any(line_of(x).startswith(expected) for x in found), found
        assert {x.severity for x in found} == {Severity.OK}

    def test_worst_finding_is_the_exit_status(self):
        known = with_replica(answers=None, failure="refused")
        assert Checked(findings(known)).severity.exit_status == 2
        assert Checked(findings(facts(workers=6))).severity.exit_status == 1
        assert Checked(findings(facts())).severity.exit_status == 0

    def test_table_has_the_advice(self):
        finding = Finding(
            Severity.ERROR, "role", ("replica1",), "wrong [x]", "do this"
        )
        shown = printed(tables.of_check(Checked((finding,))))
        assert "wrong [x]" in shown
        assert "-> do this" in shown
        assert "error: 0 ok, 0 warning, 1 error" in shown


class TestExplain:
    READ = Explanation(
        "select [1]", ("replica1", "replica2"), Reason.USABLE_REPLICA, None
    )
    WRITE = Explanation(
        "update book set id = 1",
        ("primary",),
        Reason.NOT_A_READ,
        "UPDATE",
    )

    def test_every_reason_has_a_meaning(self):
        assert set(MEANINGS) == set(Reason)

    def test_one_is_told_in_words(self):
        shown = printed(tables.of_explanation(Explained((self.WRITE,))))
        assert shown.splitlines() == [
            "server   primary",
            "reason   not_a_read: The statement is not proven to be a plain "
            "read",
            "because  UPDATE",
        ]

    def test_many_are_a_table(self):
        explained = Explained((self.READ, self.WRITE), ("this",))
        shown = printed(tables.of_explanation(explained))
        assert "replica1 or replica2" in shown
        assert "select [1]" in shown
        assert "assumed: this" in shown
        assert "1 to replica1 or replica2, 1 to primary" in shown

    @pytest.mark.parametrize(
        ("statement", "kind"),
        [
            ("select count(*), a::app.t from x where b @@ c", "read"),
            ("select nextval('s')", "write"),
            ("update x set a = 1", "write"),
        ],
    )
    def test_without_a_catalogue_the_text_says(self, statement, kind):
        assert need_of(statement, AssumedCatalogue()).kind == kind

    def test_without_a_catalogue_an_option_says_what_writes(self, options):
        options(db_wo_functions=["app.bump"])
        need = need_of("select app.bump()", AssumedCatalogue())
        options(db_wo_functions=None)
        assert need.because == "function bump() is declared to write"
        assert need_of("select app.bump()", AssumedCatalogue()).is_read


def test_rich_that_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(
        application.importlib.util, "find_spec", lambda name: None
    )
    monkeypatch.setattr(our_options, "as_json", lambda: False)
    with pytest.raises(LookupError, match=r"anyblok_multi_engines\[console\]"):
        application.needs_rich()
