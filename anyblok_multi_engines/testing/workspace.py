# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Temporary directories that end with this process, and who works in them."""

import atexit
import contextlib
import itertools
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from . import guardian
from .binaries import Binaries
from .errors import ClusterError

#: /dev/shm is used when it has this much room; Docker gives it 64 MB.
ROOM_IN_MEMORY = 512 * 1024 * 1024
#: What root's servers run as, the first that exists.
UNPRIVILEGED = ("postgres", "nobody")


class Child(subprocess.Popen[bytes]):
    """A process that the guardian ends, if its owner doesn't."""

    def __del__(self) -> None:
        """Say nothing, as there is nothing left to say.

        Popen warns about a child that still runs. In a forked copy of the
        owner that is always so, and of no interest.
        """


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the servers run as: PostgreSQL refuses to run as root."""

    #: User and group to change to; None to stay what this process is
    ids: tuple[int, int] | None

    def popen(self) -> dict[str, Any]:
        """Arguments of Popen."""
        if self.ids is None:
            return {}
        user, group = self.ids
        return {"user": user, "group": group, "extra_groups": []}

    def give(self, path: Path) -> None:
        """Make the account the owner of a file or a directory.

        :param path: which
        """
        if self.ids is not None:
            os.chown(path, *self.ids)

    def may_enter(self, directory: Path) -> bool:
        """True if the account gets into a directory, by its mode.

        :param directory: which
        """
        if self.ids is None:
            return os.access(directory, os.W_OK | os.X_OK)
        directory = directory.resolve()
        return all(
            place.stat().st_mode & stat.S_IXOTH
            for place in (directory, *directory.parents)
        )


def account() -> Account:
    """Whom servers that this process starts run as.

    :rtype: :class:`Account`
    :exception: ClusterError
    """
    if os.geteuid() != 0:
        return Account(None)
    for name in UNPRIVILEGED:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account((entry.pw_uid, entry.pw_gid))
    raise ClusterError(
        "PostgreSQL refuses to run as root, and there is no user "
        + " or ".join(UNPRIVILEGED)
    )


class Workspace:
    """A directory with all the servers of this process, and its guardian.

    It is made once per process and place, and removed when the process ends,
    however it ends.
    """

    def __init__(self, base: Path, runs_as: Account) -> None:
        #: Whom the programs run as
        self.account = runs_as
        #: The process that made it; a forked child must leave it alone
        self.owner = os.getpid()
        self._guardian = Child(
            [
                sys.executable,
                "-I",
                "-S",
                guardian.__file__,
                str(self.owner),
                str(base),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with self.pipe(self._guardian.stdout) as stream:
            line = stream.readline()
        if not line:
            self.close()
            raise ClusterError(f"The guardian made no directory in {base}")
        #: The directory
        self.path = Path(os.fsdecode(line.rstrip(b"\n")))
        self._numbers = itertools.count(1)
        self._made: dict[tuple[object, ...], Path] = {}
        self._making = threading.RLock()

    @staticmethod
    def pipe(stream: IO[bytes] | None) -> IO[bytes]:
        """A pipe of a child that was asked for."""
        assert stream is not None
        return stream

    def close(self) -> None:
        """Have the guardian end all servers and remove the directory.

        It waits for that.
        """
        self.let_go()
        if self.owner == os.getpid():
            self._guardian.wait(timeout=60.0)

    def let_go(self) -> None:
        """Close this end of the guardian's pipe."""
        self.pipe(self._guardian.stdin).close()

    def new_directory(self, name: str) -> Path:
        """Make a directory that belongs to the account.

        :param name: what its name begins with
        :rtype: its path
        """
        path = self.path / f"{name}{next(self._numbers)}"
        path.mkdir(mode=0o755)
        self.account.give(path)
        return path

    def spawn(self, *command: str | Path, **options: Any) -> Child:
        """Start a program as the account, in this directory.

        :param command: the program and its arguments
        :param options: more arguments of Popen
        :rtype: :class:`Child`
        """
        # What the user has set for psql is not for these servers.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PG")
        }
        # The messages are looked at; and the user's home, with its .pgpass,
        # is none of the account's business.
        environment |= {"LC_ALL": "C", "HOME": str(self.path)}
        return Child(
            command,
            stdin=subprocess.DEVNULL,
            cwd=self.path,
            env=environment,
            umask=0o077,
            # An interrupt in the terminal must not stop a server while the
            # tests that were interrupted still clean up.
            start_new_session=True,
            **self.account.popen(),
            **options,
        )

    def run(self, *command: str | Path) -> None:
        """Run a program as the account, and wait for its end.

        :param command: the program and its arguments
        :exception: ClusterError with what the program said
        """
        self.finish(self.begin(*command))

    def begin(self, *command: str | Path) -> Child:
        """Start a program whose output is for :meth:`finish`.

        :param command: the program and its arguments
        :rtype: :class:`Child`
        """
        return self.spawn(
            *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def finish(self, child: Child) -> None:
        """Wait for the end of a program that was begun.

        :param child: what :meth:`begin` returned
        :exception: ClusterError with what the program said
        """
        said, _ = child.communicate()
        if child.returncode:
            command = " ".join(map(str, child.args))  # type: ignore[arg-type]
            raise ClusterError(
                f"{command}: exit status {child.returncode}:"
                f" {said.decode(errors='replace').strip()}"
            )

    def binaries(self, found: Binaries) -> Binaries:
        """The programs, where the account can run them.

        A virtual environment below a home directory that is closed to others
        can't be read by the account: then they are copied, once.

        :param found: the programs
        :rtype: :class:`Binaries`
        """
        if self.account.ids is None:
            return found
        with self._making:
            key = ("binaries", found)
            if key not in self._made:
                self._made[key] = self._reachable(found.directory)
            return Binaries(self._made[key], found.version)

    def _reachable(self, directory: Path) -> Path:
        """The directory of the programs, or of their copy."""
        with contextlib.suppress(OSError, ClusterError):
            self.run(directory / "initdb", "--version")
            return directory
        return copy_of(directory, self.new_directory("binaries"))

    def template(self, binaries: Binaries, *options: str) -> Path:
        """A fresh data directory to make copies of: initdb runs once.

        :param binaries: the programs, where the account can run them
        :param options: of initdb
        :rtype: its path
        """
        with self._making:
            key = ("template", binaries, *options)
            if key not in self._made:
                path = self.new_directory("template") / "data"
                self.run(
                    binaries.path("initdb"),
                    *("-D", path, "--username=postgres", "--auth=trust"),
                    *("--no-sync", "--locale=C", "--encoding=UTF8"),
                    *("--no-instructions", *options),
                )
                self._made[key] = path
            return self._made[key]


def copy_of(directory: Path, target: Path) -> Path:
    """Copy PostgreSQL's programs with what they load.

    They find their libraries from where they are: ``../lib``, ``../share``,
    and what a wheel brings along, ``../../../PACKAGE.libs``.

    :param directory: of the programs
    :param target: a new directory
    :rtype: the directory of the programs in it
    """
    prefix = directory.parent
    package = prefix.parent
    copied = target / package.name / prefix.name
    for part in (directory.name, "lib", "share"):
        if (prefix / part).is_dir():
            shutil.copytree(
                prefix / part,
                copied / part,
                ignore=shutil.ignore_patterns("*.a", "pgxs"),
            )
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    for place, _, names in os.walk(target):
        os.chmod(place, 0o755)
        for name in names:
            os.chmod(os.path.join(place, name), 0o755)
    return copied / directory.name


_lock = threading.Lock()
#: The workspaces of this process, by their place. Guarded by _lock; emptied
#: at the end of the process, and in a child that is forked.
_workspaces: dict[Path, Workspace] = {}


def workspace(durable: bool, directory: Path | None) -> Workspace:
    """The workspace of this process.

    :param durable: True for one on a disk
    :param directory: where; None: a place is chosen
    :rtype: :class:`Workspace`
    :exception: ClusterError
    """
    runs_as = account()
    base = place_for(runs_as, durable, directory)
    with _lock:
        if base not in _workspaces:
            _workspaces[base] = Workspace(base, runs_as)
        return _workspaces[base]


def place_for(runs_as: Account, durable: bool, directory: Path | None) -> Path:
    """The directory in which the workspace is made.

    :param runs_as: who must get into it
    :param durable: True for one on a disk
    :param directory: the only one that will do; None: the first that does
    :rtype: Path
    :exception: ClusterError
    """
    candidates = [directory] if directory else list(places(durable))
    for candidate in candidates:
        if candidate.is_dir() and runs_as.may_enter(candidate):
            return candidate.resolve()
    raise ClusterError(
        "The servers' account can't enter any of "
        + ", ".join(map(str, candidates))
    )


def places(durable: bool) -> Iterator[Path]:
    """Places for a workspace, the best first.

    :param durable: True for one on a disk
    :rtype: iterator of Path
    """
    memory = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if not durable and shutil.disk_usage(memory).free >= ROOM_IN_MEMORY:
            yield memory
    # /tmp may be memory, and what TMPDIR names is the user's choice; what is
    # in /var/tmp survives a reboot, so that is a disk.
    if durable and "TMPDIR" not in os.environ:
        yield Path("/var/tmp")
    yield Path(tempfile.gettempdir())
    yield Path("/var/tmp")
    yield Path("/tmp")


def end_all() -> None:
    """Close the workspaces of this process, at its end."""
    with _lock:
        ending = list(_workspaces.values())
        _workspaces.clear()
    for one in ending:
        one.let_go()
    for one in ending:
        one.close()


def forget_all() -> None:
    """Leave the workspaces to the process that this one was forked from.

    Without it a child that lives on would keep the guardian waiting.
    """
    global _lock
    _lock = threading.Lock()
    for one in _workspaces.values():
        one.let_go()
    _workspaces.clear()


atexit.register(end_all)
os.register_at_fork(after_in_child=forget_all)
