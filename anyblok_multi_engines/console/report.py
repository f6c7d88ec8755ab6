# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the shadow mode has seen, of all processes: ``report``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyblok.config import Configuration

from .. import config
from ..errors import OptionError
from ..shadow import files
from ..shadow.record import Record
from . import options

# Of the JSON: another number where a name goes, or means something else.
VERSION = 1


@dataclass(frozen=True)
class Seen:
    """What the processes have seen

    :param records: of each database the sum
    :param unread: files that say something else
    """

    records: tuple[Record, ...]
    unread: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints"""
        return {
            "version": VERSION,
            "unread": self.unread,
            "databases": [
                {**one.as_json(), "share": one.share} for one in self.records
            ],
        }


def run() -> int:
    """Show what the processes have seen, and return the exit status

    :exception: OptionError
    """
    directory = config.shadow_directory()
    seen = seen_in(directory, database())
    if not seen.records and not seen.unread:
        raise OptionError(
            f"Nothing was noted in {directory}: a process in shadow mode "
            f"writes there every {files.EVERY:g} s, and at its end; name "
            "another directory by --db-ro-shadow-dir"
        )

    if options.as_json():
        print(json.dumps(seen.as_json(), indent=2))
    else:
        from . import tables

        tables.console().print(tables.of_shadow(seen))

    return 1 if seen.unread else 0


def database() -> str | None:
    """Return the name of the database; None: no option has it, so each"""
    name = Configuration.get("db_name", None)
    if not name:
        with suppress(OptionError):
            name = config.topology().servers[0].url.database

    return str(name) if name else None


def seen_in(directory: Path, database: str | None) -> Seen:
    """Return what the processes have seen

    :param directory: of their files
    :param database: its name; None: of each
    """
    found = list(files.read_all(directory, database))
    return Seen(
        tuple(merged(record for _, record in found if record is not None)),
        tuple(path.name for path, record in found if record is None),
    )


def merged(records: Iterable[Record]) -> list[Record]:
    """Return the sum of the records of each database

    :param records: of the processes; they are added up in place
    """
    sums: dict[str, Record] = {}
    for record in records:
        known = sums.setdefault(record.database, record)
        if known is not record:
            known.add(record)

    return [sums[name] for name in sorted(sums)]
