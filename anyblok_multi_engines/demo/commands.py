# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""AnyBlok's own commands, run as a user runs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# Seconds for a command, or for an answer of one, on a slow machine.
PATIENCE = 60.0

BLOK = "bookshelf"
DISTRIBUTION = "anyblok_multi_engines_bookshelf"
METADATA = f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: 1.0\n"
ENTRY_POINTS = (
    f"[bloks]\n{BLOK} = anyblok_multi_engines.demo.bookshelf:Bookshelf\n"
)
SCRIPT = """\
from anyblok_multi_engines.demo.application import serve

serve(anyblok_registry)
"""


class DemoError(Exception):
    """The demonstration can't go on; the message says why"""


def write_distribution(directory: Path) -> None:
    """Write what pip writes for a distribution with a blok

    AnyBlok finds the bloks by the entry points of what is installed. The
    demonstration's blok is not for every user of this package, so only
    programs with this directory in their PYTHONPATH find it.

    :param directory: an empty one
    """
    info = directory / f"{DISTRIBUTION}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA, encoding="utf-8")
    (info / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")


def write_script(directory: Path) -> Path:
    """Write the script for ``anyblok_interpreter``, and return its path

    :param directory: where
    """
    path = directory / "script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


def environment(directory: Path) -> dict[str, str]:
    """Return an environment in which the commands know the blok

    What the user has configured for other databases is left out.

    :param directory: of :func:`write_distribution`
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ANYBLOK_", "PG"))
    }
    paths = [str(directory), os.environ.get("PYTHONPATH", "")]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONWARNINGS": "ignore",
        # AnyBlok reads AnyBlok/conf.cfg in these two.
        "XDG_CONFIG_HOME": str(directory),
        "XDG_CONFIG_DIRS": str(directory),
    }


def program(name: str) -> str:
    """Return the path of a command of the environment that runs this

    :param name: ``anyblok_createdb``
    :exception: DemoError
    """
    scripts = sysconfig.get_path("scripts")
    found = shutil.which(name, path=scripts) or shutil.which(name)
    if found is None:
        raise DemoError(
            f"The command {name} isn't in {scripts}: pip install "
            "'anyblok_multi_engines[demo]' puts it there"
        )

    return found


def run(command: Sequence[str], env: Mapping[str, str]) -> None:
    """Run a command to its end

    :param command: its name and its arguments
    :param env: its environment
    :exception: DemoError, with the end of what it said
    """
    try:
        done = subprocess.run(
            [program(command[0]), *command[1:]],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        raise DemoError(
            f"{command[0]} did not end within {PATIENCE:g} s"
        ) from None

    if done.returncode:
        raise DemoError(
            f"{command[0]}: exit status {done.returncode}:\n"
            f"{end_of(done.stdout)}"
        )


def end_of(text: str, lines: int = 15) -> str:
    """Return the last lines of a text

    :param text: what a program said
    :param lines: how many
    """
    return "\n".join(text.strip().splitlines()[-lines:])


class Interpreter:
    """A running ``anyblok_interpreter`` that does units of work on command

    :param command: its name and its arguments
    :param env: its environment
    :param directory: its log is written there
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], directory: Path
    ) -> None:
        self._name = command[0]
        self._log = directory / "interpreter.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program(command[0]), *command[1:]],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                # An interrupt in the terminal ends it through close().
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        """Return itself; see :meth:`wait_until_ready`"""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it"""
        self.close()

    def wait_until_ready(self) -> None:
        """Wait until the registry is loaded, and the script runs

        :exception: DemoError
        """
        self._answer()

    def ask(self, name: str, times: int = 1) -> Any:
        """Return the answer to a command of :mod:`.application`

        :param name: of a unit of work, or ``health``
        :param times: how many units of work
        :exception: DemoError
        """
        assert self._process.stdin is not None
        command = json.dumps({"name": name, "times": times})
        try:
            self._process.stdin.write(f"{command}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

        return self._answer()

    def log(self) -> list[str]:
        """Return what our package has logged in it, line by line"""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return [
            line
            for line in text.splitlines()
            if ":anyblok_multi_engines" in line
        ]

    def close(self) -> None:
        """End it: at the end of its commands it ends by itself"""
        watchdog = threading.Timer(5.0, self._process.kill)
        watchdog.start()
        try:
            self._process.communicate()
        finally:
            watchdog.cancel()

    def _answer(self) -> Any:
        """Return the next answer; AnyBlok itself prints on the same stream"""
        assert self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE, self._process.kill)
        watchdog.start()
        try:
            for line in self._process.stdout:
                if line.startswith(("[", "{", '"')):
                    return json.loads(line)
        finally:
            watchdog.cancel()

        raise self._ended()

    def _ended(self) -> DemoError:
        self._process.wait()
        said = self._log.read_text(encoding="utf-8", errors="replace")
        return DemoError(
            f"{self._name} ended, or did not answer within {PATIENCE:g} s; "
            f"exit status {self._process.returncode}:\n{end_of(said)}"
        )
