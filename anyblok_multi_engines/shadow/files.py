# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The files of the processes, in which they write what they have seen."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from socket import gethostname
from urllib.parse import quote
from uuid import uuid4

from .record import Record

# Seconds between two files of a process, one in the place of the other.
EVERY = 10.0

SUFFIX = ".shadow.json"

# Files of a directory: past that, the oldest are removed. Of some hundred
# bytes up to some hundred kB each.
MAX_FILES = 1_000


def default_directory() -> Path:
    """Return where the files are if no option says it: of this user alone"""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"anyblok_engines-{user}"


def new_path(directory: Path, database: str) -> Path:
    """Return the name of a process's file

    :param directory: of the files
    :param database: its name
    """
    name = f"{quote(database, safe='')}.{gethostname()}.{os.getpid()}"
    return directory / f"{name}.{uuid4().hex[:8]}{SUFFIX}"


def write(path: Path, record: Record) -> None:
    """Write what a process has seen, in the place of what it wrote before

    :param path: of its file
    :param record: what it has seen
    :exception: OSError
    """
    directory = path.parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory == default_directory():
        _check_owner(directory)

    is_new = not path.exists()
    written = path.with_suffix(".new")
    written.write_text(json.dumps(record.as_json()), encoding="utf-8")
    written.replace(path)
    if is_new:
        _remove_oldest(directory)


def read_all(
    directory: Path, database: str | None
) -> Iterator[tuple[Path, Record | None]]:
    """Yield what the processes have written, the first by name first

    :param directory: of the files
    :param database: its name; None: of each
    :rtype: None for a file that says something else
    """
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            record = Record.from_json(found)
        except FileNotFoundError:
            # Removed meanwhile.
            continue
        except (OSError, ValueError, LookupError, TypeError):
            yield path, None
            continue

        if database in (None, record.database):
            yield path, record


def _check_owner(directory: Path) -> None:
    """Check that nobody else has made a directory that everybody may make

    :exception: PermissionError
    """
    if hasattr(os, "getuid") and directory.lstat().st_uid != os.getuid():
        raise PermissionError(f"{directory} is another user's")


def _remove_oldest(directory: Path) -> None:
    found = []
    for path in directory.glob(f"*{SUFFIX}"):
        with suppress(OSError):
            found.append((path.stat().st_mtime, path))

    for _, path in sorted(found)[:-MAX_FILES]:
        with suppress(OSError):
            path.unlink()
