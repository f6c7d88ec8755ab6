# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A small process that ends the servers when the process that owns them ends.

It is run as a program, with the standard library alone and without ``site``::

    python -I -S guardian.py OWNER BASE

It makes one directory in BASE, prints its name, and waits until its standard
input is closed or its parent is not OWNER any more: a SIGKILL of the owner
does both, and no handler of the owner has to run. Then it ends every program
of PostgreSQL that works in the directory, and removes the directory.

Watching the parent beside the pipe is for processes that the owner has
forked: they inherit the other end of the pipe, and would keep it open.
"""

import contextlib
import glob
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

#: The programs that may be ended: never the shell of somebody who has a look.
PROGRAMS = ("postgres", "initdb", "pg_basebackup", "cp", "pg_rewind")
#: Seconds for a postmaster to end its backends and to release its shared
#: memory by itself; after that it is killed.
PATIENCE = 1.0


class Process(NamedTuple):
    """One line of the system's list of processes."""

    pid: int
    parent: int
    #: One letter of ps(1): "T" is stopped, "Z" is a zombie
    state: str
    #: The program's name, without its directory
    program: str


def has_proc() -> bool:
    """True if the system shows its processes as Linux does."""
    return os.path.isdir("/proc/self/task")


def processes() -> Iterator[Process]:
    """All processes of the system.

    :rtype: iterator of :class:`Process`
    """
    if not has_proc():
        yield from processes_by_ps()
        return
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with (
            contextlib.suppress(OSError),
            open(f"/proc/{name}/stat", errors="replace") as stream,
        ):
            # The program's name is in parentheses, and may hold any byte.
            left, _, right = stream.read().rpartition(")")
            state, parent = right.split()[:2]
            yield Process(int(name), int(parent), state, left.partition("(")[2])


def processes_by_ps() -> Iterator[Process]:
    """All processes, where there is no /proc (macOS).

    :rtype: iterator of :class:`Process`
    """
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,state=,comm="],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    for line in listing.stdout.splitlines():
        pid, parent, state, command = line.split(None, 3)
        program = os.path.basename(command.split(":")[0])
        yield Process(int(pid), int(parent), state[0], program)


def family(pid: int) -> list[Process]:
    """The process and its children that still live, the process first.

    A postmaster is the parent of every process of its server.

    :param pid: a process id
    :rtype: list of :class:`Process`
    """
    found = [
        process
        for process in processes()
        if pid in (process.pid, process.parent) and process.state != "Z"
    ]
    return sorted(found, key=lambda process: process.pid != pid)


def postmaster_files(root: str) -> list[str]:
    """The lock files of the servers whose data is below a directory.

    :param root: a directory
    :rtype: list of paths
    """
    # The directory of a cluster, of a server, or the one of all.
    patterns = ("", "*", "*/*")
    return [
        path
        for pattern in patterns
        for path in glob.glob(os.path.join(root, pattern, "postmaster.pid"))
    ]


def lines_of(path: str) -> list[str]:
    """The lines of a file; none when it can't be read.

    :param path: a file
    :rtype: list of str
    """
    with contextlib.suppress(OSError), open(path, errors="replace") as stream:
        return stream.read().splitlines()
    return []


def postmasters(root: str) -> list[int]:
    """The process ids of the servers whose data is below a directory.

    :param root: a directory
    :rtype: list of int, of servers that may have ended
    """
    first_lines = (lines_of(path)[:1] for path in postmaster_files(root))
    return [int(line[0]) for line in first_lines if line and line[0].isdigit()]


def works_in(process: Process, root: str) -> bool:
    """True if the process has its working directory below ``root``.

    A postmaster and its backends have it in their data directory, the other
    programs where they were started.

    :param process: one process
    :param root: a directory
    :rtype: bool; False for all where there is no /proc
    """
    with contextlib.suppress(OSError):
        where = os.readlink(f"/proc/{process.pid}/cwd")
        return where == root or where.startswith(root + os.sep)
    return False


def workers(root: str) -> list[int]:
    """The process ids of PostgreSQL's programs that work below a directory.

    :param root: a directory
    :rtype: list of int: servers, their backends, initdb and the like
    """
    # A lock file that was left behind may name a process of somebody else:
    # it is believed only where nothing better is known.
    servers = set() if has_proc() else set(postmasters(root))
    return [
        process.pid
        for process in processes()
        if process.program in PROGRAMS
        and process.state != "Z"
        and (works_in(process, root) or not servers.isdisjoint(process[:2]))
    ]


def send(pids: list[int], signal_number: int) -> None:
    """Send a signal to processes; those that have ended are passed over.

    :param pids: process ids
    :param signal_number: what to send
    """
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal_number)


def segments(pid: int) -> set[str]:
    """The files of POSIX shared memory that a process of PostgreSQL maps.

    Linux shows them below /dev/shm. The clusters' servers use none, unless
    they are told to; but initdb does.

    :param pid: a process id
    :rtype: set of paths
    """
    words = [line.split() for line in lines_of(f"/proc/{pid}/maps")]
    return {
        line[5]
        for line in words
        if len(line) == 6 and line[5].startswith("/dev/shm/PostgreSQL.")
    }


def kill(pids: list[int]) -> None:
    """Kill processes of PostgreSQL, all that have the same shared memory.

    What they would have removed is removed for them.

    :param pids: process ids
    """
    # So that none maps what is not seen.
    send(pids, signal.SIGSTOP)
    left_behind = set().union(*map(segments, pids))
    send(pids, signal.SIGKILL)
    for path in left_behind:
        with contextlib.suppress(OSError):
            os.unlink(path)


def remove_shared_memory(path: str) -> None:
    """Remove the System V segment that a killed server has left.

    A postmaster that was killed can't do it, and the next one, which would,
    will not be started.

    :param path: the postmaster.pid of a server that does not run; its seventh
        line has the key and the id of the segment
    """
    words = "".join(lines_of(path)[6:7]).split()
    if len(words) == 2 and words[1].isdigit():
        import ctypes

        remove = 0  # IPC_RMID
        ctypes.CDLL(None).shmctl(int(words[1]), remove, None)


def end(root: str) -> None:
    """End everything that works below a directory, and what it left behind.

    :param root: a directory
    """
    alive = workers(root)
    servers = set(postmasters(root)) & set(alive)
    send(list(servers), signal.SIGQUIT)
    send(alive, signal.SIGCONT)
    began = time.monotonic()
    while alive and time.monotonic() < began + 10 * PATIENCE:
        if time.monotonic() > began + PATIENCE or servers.isdisjoint(alive):
            kill(alive)
        time.sleep(0.005)
        alive = workers(root)
    for path in postmaster_files(root):
        remove_shared_memory(path)
        os.unlink(path)


def remove(root: str) -> None:
    """Remove a directory, whatever is in it.

    :param root: a directory; it may be gone already
    """
    for _ in range(100):
        shutil.rmtree(root, ignore_errors=True)
        if not os.path.lexists(root):
            return
        time.sleep(0.05)


def new_directory(base: str) -> str:
    """Make a directory that only its owner can list.

    :param base: where
    :rtype: its path
    """
    # A server that root starts runs as another user, and must get through.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    path = os.path.join(base, f"anyblok-postgres-{os.urandom(6).hex()}")
    os.mkdir(path)
    os.chmod(path, mode)
    return os.path.realpath(path)


def main(owner: int, base: str) -> None:
    """Guard a new directory for as long as the owner lives.

    :param owner: process id of the owner, the parent of this process
    :param base: where the directory is made
    """
    # An interrupt in the terminal is for the owner, which may survive it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    root = new_directory(base)
    try:
        os.write(1, os.fsencode(root) + b"\n")
        os.chdir("/")
        while os.getppid() == owner:
            if select.select([0], [], [], 0.25)[0]:
                break
    finally:
        end(root)
        remove(root)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
