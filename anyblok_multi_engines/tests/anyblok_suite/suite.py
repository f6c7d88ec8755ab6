# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The steps of one run of AnyBlok's suite, on servers of its own."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from . import facts, recorder
from .environments import Environment
from .outcomes import Result

DRIVER = "postgresql+psycopg2"
"""Named, because ``postgresql`` alone is psycopg on SQLAlchemy 2.1."""

USER = "postgres"
TESTS_DATABASE = "anyblok_suite"
BLOKS_DATABASE = "anyblok_bloks"

PROGRESS_SECONDS = 15.0
LOG_LINES = 30

NOT_OURS = ("ANYBLOK_", "PYTEST_", "PYTHON", "PG", "SUITE_", "VIRTUAL_ENV")
"""Prefixes of environment variables that would change what is tested."""


class Stopped(Exception):
    """The user, or another run that failed, wants this run to end."""


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    def libpq_url(self, database: str) -> str:
        return f"postgresql://{USER}@{self.host}:{self.port}/{database}"

    def sqlalchemy_url(self, database: str) -> str:
        return f"{DRIVER}://{USER}@{self.host}:{self.port}/{database}"


@dataclass
class Run:
    """What one run gave.

    Owner: the thread that runs it. Published when it has ended.

    :param results: by test id
    :param troubles: sentences: why the results are not to be trusted
    :param plugged: how many tests ended with a plugin in AnyBlok's registry
    :param traffic: what the standby was asked for
    """

    results: dict[str, Result] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    plugged: int = 0
    traffic: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Suite:
    """Runs AnyBlok's suite once.

    :param environment: where AnyBlok is
    :param directory: for the logs and outcomes; emptied first
    :param primary: an empty server
    :param replica: its standby, None to run without the plugin's options
    :param expects_plugin: a run with the plugin in which it was not loaded
        is in trouble, and the other way round
    :param say: shows a line of progress
    :param stop: ends the run when set
    :param limit: seconds that one step may take
    """

    environment: Environment
    directory: Path
    primary: Address
    replica: Address
    expects_plugin: bool
    say: Callable[[str], None]
    stop: Event
    limit: float

    def run(self) -> Run:
        """Take every step.

        :rtype: Run
        :exception: Stopped
        """
        start = time.monotonic()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        for module in (recorder, facts):
            assert module.__file__ is not None
            shutil.copy(module.__file__, self.directory)
        # Named on the command line, so that no file of a directory above
        # gives pytest options: those of the project are not AnyBlok's.
        (self.directory / "pytest.ini").write_text("[pytest]\n")
        write_dot(self.directory / "bin")
        run = Run()
        self.take_tests(run, "anyblok/tests", TESTS_DATABASE)
        self.take_command(
            run, "anyblok_createdb", "--install-all-bloks", "--with-demo"
        )
        self.take_command(run, "anyblok_updatedb", "--update-all-bloks")
        self.take_tests(run, "anyblok/bloks/anyblok_core", BLOKS_DATABASE)
        run.traffic = json.loads(
            self.fact("traffic", self.replica.libpq_url("postgres"))
        )
        run.seconds = time.monotonic() - start
        return run

    def fact(self, *arguments: str) -> str:
        """Ask ``facts.py`` in the environment under test.

        :rtype: JSON
        """
        return subprocess.run(
            [self.environment.program("python"), "facts.py", *arguments],
            cwd=self.directory,
            env=self.environ(BLOKS_DATABASE),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout

    def environ(self, database: str, **more: str) -> dict[str, str]:
        """The variables that a step sees.

        :rtype: dict
        """
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(NOT_OURS)
        }
        here = str(self.directory)
        kept |= {
            # No configuration file of a user or of the machine.
            "HOME": here,
            "XDG_CONFIG_HOME": here,
            "XDG_CONFIG_DIRS": here,
            "TZ": "UTC",
            "PATH": f"{here}/bin{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": here,
            "PYTHONDONTWRITEBYTECODE": "1",
            # AnyBlok walks sets: the same order in every run.
            "PYTHONHASHSEED": "0",
            "ANYBLOK_DATABASE_DRIVER": DRIVER,
            "ANYBLOK_DATABASE_HOST": self.primary.host,
            "ANYBLOK_DATABASE_PORT": str(self.primary.port),
            "ANYBLOK_DATABASE_USER": USER,
            "ANYBLOK_DATABASE_NAME": database,
        }
        if self.expects_plugin:
            kept["ANYBLOK_DATABASE_URL_RO"] = self.replica.sqlalchemy_url(
                database
            )
        return kept | more

    def take_tests(self, run: Run, tests: str, database: str) -> None:
        """Run pytest on a directory of AnyBlok, and read what it recorded."""
        name = tests.replace("/", "-")
        outcomes = self.directory / f"{name}.jsonl"
        site_packages = self.environment.site_packages
        command = [str(self.environment.program("python")), "-m", "pytest"]
        command += ["-q", "-p", "recorder", "-p", "no:cacheprovider"]
        command += ["-c", "pytest.ini", f"--rootdir={site_packages}"]
        status = self.wait(
            [*command, str(site_packages / tests)],
            self.directory / f"{name}.log",
            self.environ(database, SUITE_OUTCOMES=str(outcomes)),
            lambda: f"{tests} {progress(outcomes)}",
        )
        self.read(run, tests, outcomes)
        if status not in (0, 1):
            self.trouble(run, f"pytest {tests} ended with {status}", name)

    def read(self, run: Run, tests: str, outcomes: Path) -> None:
        """Add what the recorder wrote, and say what it did not write."""
        end: dict[str, Any] = {}
        for record in records(outcomes):
            if "id" in record:
                run.results[record["id"]] = Result(
                    record["outcome"], record["error"], record["tail"]
                )
            elif "exit" in record:
                end = record
        if not end:
            run.troubles.append(f"pytest {tests} died before its end")
            return
        run.plugged += end["plugged"]
        if bool(end["mixins"]) != self.expects_plugin:
            run.troubles.append(
                f"pytest {tests} ended with the registry mixins"
                f" {end['mixins']} in AnyBlok"
            )

    def take_command(self, run: Run, program: str, *options: str) -> None:
        """Run a program of AnyBlok; then every blok must be installed.

        Its exit status alone says too little: a plugin that sent the reads
        of an installation to a standby left bloks to be installed, and 0.
        """
        name = " ".join([program, *options])
        status = self.wait(
            [str(self.environment.program(program)), *options],
            self.directory / f"{program}.log",
            self.environ(BLOKS_DATABASE),
            lambda: name,
        )
        tail = log_tail(self.directory / f"{program}.log")
        run.results[name] = Result(
            "failed" if status else "passed",
            f"exit status {status}" if status else "",
            tail if status else "",
        )
        try:
            said = self.fact("bloks", self.primary.libpq_url(BLOKS_DATABASE))
        except subprocess.CalledProcessError:
            self.trouble(run, f"{name} left no table of bloks", program)
            return
        for blok, state in json.loads(said).items():
            good = state == "installed"
            run.results[f"{name}: {blok} is installed"] = Result(
                "passed" if good else "failed",
                "" if good else state,
                "" if good else f"The blok's state is {state!r}\n{tail}",
            )

    def trouble(self, run: Run, sentence: str, log: str) -> None:
        """Say why the results are not to be trusted, with the log's end."""
        tail = log_tail(self.directory / f"{log}.log")
        run.troubles.append(f"{sentence}; its log ends:\n{tail}")

    def wait(
        self,
        command: list[str],
        log: Path,
        environ: dict[str, str],
        state: Callable[[], str],
    ) -> int:
        """Run a command to its end, with a line of progress now and then.

        :rtype: its exit status, negative when a signal ended it
        :exception: Stopped
        """
        start = time.monotonic()
        said = start
        with log.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while process.poll() is None:
                    self.stop.wait(0.2)
                    now = time.monotonic()
                    if self.stop.is_set():
                        raise Stopped
                    if now - start > self.limit:
                        break
                    if now - said > PROGRESS_SECONDS:
                        said = now
                        self.say(state())
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.say(f"{state()}: {time.monotonic() - start:.0f} s")
        return process.returncode


def write_dot(directory: Path) -> None:
    """Put a ``dot`` there that draws nothing.

    Two tests call it and look at nothing that it makes. Their outcome must
    not depend on whether a machine has Graphviz.
    """
    directory.mkdir()
    program = directory / "dot"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)


def records(outcomes: Path) -> Iterator[dict[str, Any]]:
    """What the recorder wrote so far; a last, half line is left out.

    :rtype: iterator of dict
    """
    if not outcomes.exists():
        return
    for line in outcomes.read_text(encoding="utf-8").splitlines(True):
        if line.endswith("\n"):
            yield json.loads(line)


def progress(outcomes: Path) -> str:
    """How far a run of pytest is.

    :rtype: str
    """
    collected = done = bad = 0
    for record in records(outcomes):
        if "id" in record:
            done += 1
            bad += not Result(record["outcome"]).good
        collected = record.get("collected", collected)
    return f"{done}/{collected}, {bad} not good"


def log_tail(log: Path) -> str:
    """The last lines of a log.

    :rtype: str
    """
    if not log.exists():
        return ""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-LOG_LINES:])
