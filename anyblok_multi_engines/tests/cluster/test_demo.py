# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The demonstration, run once as a user runs it, without a terminal."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from anyblok_multi_engines.demo import commands, results

# The demonstration is to take less, once it is installed.
SECONDS = 60.0
COMMAND = [sys.executable, "-m", "anyblok_multi_engines.demo"]


def run(**environment):
    """Return the finished demonstration, what it said beside"""
    return subprocess.run(
        COMMAND,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


@pytest.fixture(scope="module")
def demo():
    return run(
        # None of these is for the demonstration's own database.
        ANYBLOK_DATABASE_URL="postgresql://nobody@192.0.2.1/wrong",
        PGOPTIONS="-c search_path=wrong",
        PYTHONIOENCODING="ascii",
        TERM="dumb",
    )


@pytest.fixture(scope="module")
def table(demo):
    """Give the numbers of the table by situation and work"""
    situation, found = "", {}
    for line in demo.stdout.splitlines():
        match = re.fullmatch(
            r"(\S+(?: \S+)*)?\s+(\d+) ([a-z ]+?)((?:\s+(?:\d+|-)){5})\s*", line
        )
        if match:
            situation = match[1] or situation
            numbers = [int(it.replace("-", "0")) for it in match[4].split()]
            found[situation, match[3]] = (int(match[2]), numbers)

    return found


def test_exit_status_is_0(demo):
    assert (demo.stderr, demo.returncode) == ("", 0)


def test_nothing_is_wrong(demo):
    assert "WRONG" not in demo.stdout
    assert demo.stdout.count("\n   ok  ") == 9


def test_output_suits_a_file_and_80_columns(demo):
    assert "\x1b" not in demo.stdout
    assert max(map(len, demo.stdout.splitlines())) <= 80


def test_real_commands_are_shown(demo):
    assert "$ anyblok_createdb" in demo.stdout
    assert "$ anyblok_interpreter" in demo.stdout


@pytest.mark.parametrize(
    "situation",
    [results.ALL_UP, results.ONE_UNIT, results.PAUSED, results.KILLED],
)
def test_writes_run_on_primary(table, situation):
    assert table[situation, "writes"] == (10, [10, 0, 0, 0, 0])


def test_replicas_share_reads(table):
    times, (primary, replica1, replica2, old, failed) = table["all up", "reads"]
    assert times == replica1 + replica2 == 40
    assert (primary, old, failed) == (0, 0, 0)
    assert replica1
    assert replica2


def test_read_after_write_runs_on_primary(table):
    assert table["read-write-read", "reads after it"] == (10, [10, 0, 0, 0, 0])


def test_reads_avoid_a_paused_replica(table):
    assert table["replica1 paused", "reads"] == (40, [0, 0, 40, 0, 0])


def test_reads_go_on_without_a_killed_replica(table):
    assert table["replica2 killed", "reads"] == (40, [0, 40, 0, 0, 0])


def test_log_warns_of_the_killed_replica_once(demo):
    assert demo.stdout.count("WARNING:") == 1
    assert re.search(r"WARNING:\S+:replica2", demo.stdout)


def test_replica_that_is_back_takes_reads(table):
    times, (_, _, replica2, old, failed) = table["replica2 back", "reads"]
    assert times == 40
    assert (old, failed) == (0, 0)
    assert replica2


def test_failure_is_told_without_a_traceback(tmp_path):
    demo = run(ANYBLOK_POSTGRES_BIN=str(tmp_path))
    assert demo.returncode == 1
    assert "ANYBLOK_POSTGRES_BIN" in demo.stderr
    assert "Traceback" not in demo.stderr


def test_failed_command_is_told_with_what_it_said(tmp_path):
    with pytest.raises(commands.DemoError) as caught:
        commands.run(
            ["anyblok_createdb", "--no-such-option"],
            commands.environment(tmp_path),
        )

    assert "exit status 2" in str(caught.value)
    assert "--no-such-option" in str(caught.value)


def test_dead_application_is_told_with_what_it_said(tmp_path):
    command = ["anyblok_interpreter", "--no-such-option"]
    env = commands.environment(tmp_path)
    with commands.Interpreter(command, env, tmp_path) as application:
        with pytest.raises(commands.DemoError) as caught:
            application.wait_until_ready()

        with pytest.raises(commands.DemoError):
            application.ask("read")

    assert "exit status 2" in str(caught.value)
    assert "--no-such-option" in str(caught.value)


def story():
    """Return results in which everything ran where it had to"""
    told = results.Results(warnings=["WARNING:module:replica2 is out"])
    for situation, work, *servers in (
        (results.ALL_UP, "writes", "primary"),
        (results.ALL_UP, "reads", "replica1", "replica2"),
        (results.ONE_UNIT, "reads", "replica1"),
        (results.ONE_UNIT, "writes", "primary"),
        (results.ONE_UNIT, "reads after it", "primary"),
        (results.PAUSED, "writes", "primary"),
        (results.PAUSED, "reads", "replica2"),
        (results.KILLED, "writes", "primary"),
        (results.KILLED, "reads", "replica1"),
        (results.BACK, "reads", "replica1", "replica2"),
    ):
        told.row(situation, work).served = Counter(servers)

    return told


def wrong(told):
    """Return the facts that results don't bear out"""
    return [fact.text for fact in results.facts(told) if not fact.holds]


def test_facts_hold():
    assert wrong(story()) == []


@pytest.mark.parametrize("server", ["replica1", "port 5432"])
@pytest.mark.parametrize(
    ("situation", "work"),
    [
        (row.situation, row.work)
        for row in story().rows
        if "primary" in row.served
    ],
)
def test_write_elsewhere_is_wrong(situation, work, server):
    told = story()
    told.row(situation, work).served[server] = 1
    assert wrong(told)


@pytest.mark.parametrize(
    ("situation", "work"),
    [
        (row.situation, row.work)
        for row in story().rows
        if "replica1" in row.served
    ],
)
def test_read_on_primary_is_wrong(situation, work):
    told = story()
    told.row(situation, work).served["primary"] = 1
    assert wrong(told)


@pytest.mark.parametrize(
    ("situation", "work"), [(row.situation, row.work) for row in story().rows]
)
def test_failure_is_wrong(situation, work):
    told = story()
    told.row(situation, work).errors.append("no")
    assert wrong(told)


def test_silent_log_is_wrong():
    told = story()
    told.warnings = []
    assert wrong(told)
