# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The tutorial, step by step: its own files, and the real commands.

What a step prints is compared with what the page shows: the same lines, but
for the ports, and how many of the ten reads each server had.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anyblok_multi_engines.testing import wait_until

TUTORIAL = Path(__file__).parents[2] / "doc" / "tutorial"
PROGRAMS = Path(sys.executable).parent

pytestmark = pytest.mark.skipif(
    not TUTORIAL.exists(), reason="an installed package has no documentation"
)


class Page:
    """The code blocks of the page, one after the other"""

    def __init__(self):
        text = (TUTORIAL / "index.rst").read_text(encoding="utf-8")
        blocks = re.findall(
            r"(?m)^\.\. code-block:: (\w+)\n\n((?:   .*\n|\n)+)", text
        )
        self._blocks = [
            (kind, re.sub(r"(?m)^   ", "", code).strip())
            for kind, code in blocks
        ]

    def next(self, kind):
        """Return the next block, which is of a kind"""
        found, code = self._blocks.pop(0)
        assert found == kind, code
        return code

    @property
    def is_over(self):
        return not self._blocks


class Terminal:
    """The two terminals of the page, with nothing of the user's options"""

    def __init__(self, home):
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ANYBLOK_", "PG"))
        }
        self.environment = {
            **kept,
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
            "XDG_CONFIG_DIRS": str(home),
            "PATH": f"{PROGRAMS}{os.pathsep}{kept['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
        }
        self._first = None

    def start(self, command):
        """Start what the first terminal runs; return what it prints at once"""
        self._first = subprocess.Popen(
            [PROGRAMS / command.split()[0], *command.split()[1:]],
            cwd=TUTORIAL,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return [self._first.stdout.readline().strip() for _ in range(3)]

    def say(self, line):
        """Say something to the first terminal's Python, and wait for it"""
        self._first.stdin.write(f"{line}\nprint('done')\n")
        self._first.stdin.flush()
        assert self._first.stdout.readline() == "done\n"

    def run(self, command, status=0):
        """Return what the second terminal prints"""
        process = subprocess.Popen(
            command,
            shell=True,
            cwd=TUTORIAL,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, error = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            # It tells where it hangs.
            os.killpg(process.pid, signal.SIGABRT)
            out, error = process.communicate(timeout=10)

        assert process.returncode == status, out + error
        return out

    def close(self):
        if self._first is not None:
            self._first.communicate("exit()\n", timeout=30)


@pytest.fixture
def terminal(tmp_path):
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


def without_what_differs(text):
    """Return a text without ports, numbers of reads, and names of replicas"""
    text = re.sub(r"\{.*\}", "{}", text)
    text = re.sub(r"replica[12] \(usable", "replica (usable", text)
    return re.sub(r"\b\d{4,5}\b", "port", text).strip()


def from_the_reads(text):
    """Return what who.py prints, without what AnyBlok and the log do"""
    return text[text.index("Ten reads") :]


def servers_of(text):
    """Return the ports that have answered the ten reads"""
    return set(re.findall(r"'(\d+)': \d", text))


def test_each_step_prints_what_the_page_shows(terminal):
    page = Page()
    for _ in ("install", "activate"):
        page.next("shell")

    said = terminal.start(page.next("shell"))
    shown = page.next("text").removesuffix(">>>")
    assert without_what_differs("\n".join(said)) == without_what_differs(shown)
    places = dict(line.removeprefix("export ").split("=", 1) for line in said)
    terminal.environment |= places
    ports = {
        name: re.search(r":(\d+)/", url)[1] for name, url in places.items()
    }
    primary, *replicas = ports.values()

    def show(readers, command=None, never=()):
        """Run a command of the page, its next one, and compare"""
        command = command or page.next("shell")
        out, shown = terminal.run(command), page.next("text")
        lines = from_the_reads(out)
        assert without_what_differs(lines) == (
            without_what_differs(from_the_reads(shown))
        )
        found = servers_of(lines)
        # A replica may be behind for a moment, and the primary reads then.
        assert found & set(readers)
        assert not found & set(never)
        return command

    def say_all(wait):
        """Say the page's next lines to the first terminal's Python"""
        for line in page.next("pycon").splitlines():
            if wait:
                terminal.say("cluster.wait_for_replay()")

            terminal.say(line.removeprefix(">>> "))

    show([primary], never=replicas)
    command = show(replicas)
    say_all(wait=True)
    show([primary], command, never=replicas)
    show(replicas, never=[primary])
    terminal.say("replica1.resume_replay(); replica2.resume_replay()")
    say_all(wait=True)
    show(replicas[:1], command, never=replicas[1:])

    status = page.next("shell")
    out, shown = terminal.run(status, status=1), page.next("text")
    for text in (out, shown):
        assert re.search(r"replica1 +replica +ready", text)
        assert re.search(r"replica2 +replica +down", text)

    assert out.splitlines()[-1] == shown.splitlines()[-1]
    say_all(wait=False)
    wait_until(
        "the servers were not usable",
        lambda: terminal.run(status) or True,
        ignore=(AssertionError,),
    )
    assert terminal.run(page.next("shell")).split() == page.next("text").split()
    assert page.is_over
