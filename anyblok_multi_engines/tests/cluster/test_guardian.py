# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Nothing is left behind, however the process that owns servers ends."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anyblok_multi_engines.testing import Cluster, guardian, wait_until

BEGIN = """
import atexit, os, signal, subprocess, sys, time
from pathlib import Path
from anyblok_multi_engines.testing import Cluster
from anyblok_multi_engines.testing.workspace import Workspace
initdb = Workspace.template
# That of the tests will do: initdb would take most of the time.
Workspace.template = lambda *_: Path(sys.argv[1])
cluster = Cluster(replicas=1)
cluster.start()
def say(*words):
    print(*words, flush=True)
root = cluster.primary.data.parent.parent
say(root, *(server.pid for server in cluster.servers))
sys.stdin.readline()
"""


class Owner:
    """A process that has started a cluster."""

    def __init__(self, code: str, template: Path) -> None:
        """Start it, and wait for its cluster"""
        program = textwrap.dedent(BEGIN) + textwrap.dedent(code)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, template],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        root, *pids = self.line().split()
        self.root = Path(root)
        self.pids = [int(pid) for pid in pids]
        assert self.workers() >= set(self.pids)
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def line(self) -> str:
        """The next line that it says"""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        return line

    def workers(self) -> set[int]:
        """The processes of its servers"""
        return set(guardian.workers(str(self.root)))

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the process alone"""
        self.process.send_signal(number)
        self.process.wait(10.0)

    def assert_all_gone(self) -> None:
        """See that within two seconds there is nothing of it left"""
        wait_until(
            f"{self.root} was not removed",
            lambda: not self.root.exists(),
            timeout=2.0 * PATIENCE,
        )
        assert self.workers() == set()
        # Where nobody collects orphans a zombie is all that can remain.
        alive = {one.pid for one in guardian.processes() if one.state != "Z"}
        assert alive.isdisjoint(self.pids)


#: For a machine that does other things: the promise is for one that doesn't.
PATIENCE = 4.0


@pytest.fixture
def owner(
    anyblok_cluster_session: Cluster,
) -> Iterator[Callable[[str], Owner]]:
    """Start owners; they end with the test"""
    root = anyblok_cluster_session.primary.data.parent.parent
    template = next(root.glob("template*/data"))
    owners: list[Owner] = []

    def start(code: str) -> Owner:
        owners.append(Owner(code, template))
        return owners[-1]

    yield start
    for one in owners:
        one.process.kill()
        one.process.communicate()


WAIT = "sys.stdin.read()"


@pytest.mark.parametrize(
    "fault",
    [
        "pass",
        "[server.freeze() for server in cluster.servers]",
        "cluster.primary.kill()",
        "os.kill(cluster.primary.pid, signal.SIGKILL)",
    ],
)
def test_owner_killed_leaves_no_server_and_no_directory(
    owner: Callable[[str], Owner], fault: str
) -> None:
    one = owner(f"{fault}; say('done'); {WAIT}")
    assert one.line() == "done\n"
    one.pids = [pid for pid in one.pids if pid in one.workers()]
    one.kill()
    one.assert_all_gone()


def test_owner_killed_while_initdb_runs(
    owner: Callable[[str], Owner],
) -> None:
    one = owner(
        f"""
        import threading
        threading.Thread(
            target=initdb,
            args=(cluster._workspace, cluster.primary._binaries),
            daemon=True,
        ).start()
        {WAIT}
        """
    )
    # Its servers use none: what there is now is of a server that initdb runs.
    segments = wait_until(
        "initdb did not run a server",
        lambda: set().union(*map(guardian.segments, one.workers())),
        interval=0.001,
    )
    one.kill()
    one.assert_all_gone()
    assert not any(Path(segment).exists() for segment in segments)


@pytest.mark.parametrize("code", ["", "raise SystemExit(3)", "1 / 0"])
def test_owner_that_does_not_close(
    owner: Callable[[str], Owner], code: str
) -> None:
    one = owner(code)
    _, errors = one.process.communicate(timeout=10.0)
    assert one.process.returncode == {"": 0, "1 / 0": 1}.get(code, 3)
    assert "Warning" not in errors
    # All has ended before the process has.
    assert not one.root.exists()
    assert one.workers() == set()


def test_owner_that_exits_without_handlers(
    owner: Callable[[str], Owner],
) -> None:
    one = owner("os._exit(0)")
    one.process.wait(10.0)
    one.assert_all_gone()


def test_interrupt_in_the_terminal_is_for_the_owner(
    owner: Callable[[str], Owner],
) -> None:
    one = owner(
        """
        def ask(*_):
            say(*(server.query("select 1")[0][0] for server in cluster.servers))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, ask)
        say("ready")
        while True:
            time.sleep(60.0)
        """
    )
    assert one.line() == "ready\n"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # To the whole group, as a terminal does.
        os.killpg(one.process.pid, number)
        assert one.line() == "1 1\n"
    one.kill()
    one.assert_all_gone()


@pytest.mark.parametrize(
    "code",
    [
        # It runs the handlers of atexit, and leaves the block of a cluster.
        "cluster.close(); sys.exit()",
        "cluster.primary.query('select 1'); os._exit(0)",
    ],
)
def test_child_that_exits_stops_nothing(
    owner: Callable[[str], Owner], code: str
) -> None:
    one = owner(
        f"""
        child = os.fork()
        if not child:
            {code}
        assert os.waitpid(child, 0)[1] == 0
        say(*(server.query("select 1")[0][0] for server in cluster.servers))
        {WAIT}
        """
    )
    assert one.line() == "1 1\n"
    one.kill()
    one.assert_all_gone()


@pytest.mark.parametrize(
    "fork",
    [
        "child = os.fork()",
        # As a library in C does: no handler runs in the child.
        "import ctypes; child = ctypes.CDLL(None).fork()",
    ],
)
def test_child_that_lives_on_keeps_nothing(
    owner: Callable[[str], Owner], fork: str
) -> None:
    one = owner(
        f"""
        {fork}
        if not child:
            say("child", os.getpid())
            while True:
                time.sleep(60.0)
        {WAIT}
        """
    )
    child = int(one.line().split()[1])
    try:
        one.kill()
        one.assert_all_gone()
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_program_that_was_started_and_lives_on_keeps_nothing(
    owner: Callable[[str], Owner],
) -> None:
    one = owner(
        f"""
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
        say(child.pid)
        {WAIT}
        """
    )
    child = int(one.line())
    try:
        one.kill()
        one.assert_all_gone()
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_child_asks_and_knows_what_runs(owner: Callable[[str], Owner]) -> None:
    one = owner(
        f"""
        cluster.replicas[0].stop()
        child = os.fork()
        if not child:
            say(*(server.is_running for server in cluster.servers))
            os._exit(0)
        os.waitpid(child, 0)
        {WAIT}
        """
    )
    assert one.line() == "True False\n"


def test_child_can_have_a_cluster_of_its_own(
    owner: Callable[[str], Owner],
) -> None:
    one = owner(
        f"""
        child = os.fork()
        if not child:
            with Cluster(replicas=0) as mine:
                say(mine.primary.data.parent.parent)
            sys.exit()
        os.waitpid(child, 0)
        say(cluster.primary.query("select 1")[0][0])
        {WAIT}
        """
    )
    root = Path(one.line().strip())
    assert root != one.root
    assert one.line() == "1\n"
    assert not root.exists()


def test_killed_servers_leave_no_shared_memory(
    owner: Callable[[str], Owner],
) -> None:
    one = owner(
        f"""
        for server in cluster.servers:
            lines = (server.data / "postmaster.pid").read_text().split("\\n")
            say(lines[6].split()[1])
        [server.freeze() for server in cluster.servers]
        {WAIT}
        """
    )
    segments = {one.line().strip(), one.line().strip()}
    assert segments <= shared_memory()
    one.kill()
    one.assert_all_gone()
    assert segments.isdisjoint(shared_memory())


def shared_memory() -> set[str]:
    """The ids of the System V segments"""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {line.split()[1] for line in lines}


def test_somebody_who_looks_into_the_directory_is_spared() -> None:
    with (
        Cluster(replicas=0) as cluster,
        subprocess.Popen(
            ["sleep", "60"], cwd=cluster.primary.data.parent
        ) as visitor,
    ):
        try:
            cluster.close()
            assert visitor.poll() is None
        finally:
            visitor.kill()


def test_list_of_processes_where_there_is_no_proc(
    anyblok_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(anyblok_cluster.primary.data)
    expected = [one for one in guardian.workers(root) if is_lasting(one)]
    monkeypatch.setattr(guardian, "has_proc", lambda: False)
    found: Any = guardian.workers(root)
    assert set(expected) <= set(found)
    assert guardian.family(anyblok_cluster.primary.pid)[0].program == "postgres"


def is_lasting(pid: int) -> bool:
    """True for a process that is not about to end"""
    words = Path(f"/proc/{pid}/cmdline").read_text()
    return "walsender" in words or "checkpointer" in words or "-D" in words
