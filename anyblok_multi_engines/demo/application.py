# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What runs inside ``anyblok_interpreter``: units of work, on command.

The units of work are what any program on AnyBlok does; nothing in them
names a server. Each says which server did it, as that server says itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import IO, Any

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

# One statement of a unit of work: what it was, the port of the server that
# ran it, and the number of books that a read saw.
Step = dict[str, Any]


def add_a_book(registry: Any) -> Step:
    """Add a book; the server stamps its row

    :param registry: of AnyBlok
    """
    book = registry.Book.insert(title="The Art of Replication")
    return {"work": "write", "port": int(book.written_by)}


def count_the_books(registry: Any) -> Step:
    """Count the books, and ask in the same statement who counts

    :param registry: of AnyBlok
    """
    query = select(func.count(), func.current_setting("port"))
    books, port = registry.execute(query.select_from(registry.Book)).one()
    return {"work": "read", "port": int(port), "books": books}


def write(registry: Any) -> list[Step]:
    """Do a unit of work that writes

    :param registry: of AnyBlok
    """
    return [add_a_book(registry)]


def read(registry: Any) -> list[Step]:
    """Do a unit of work that reads

    :param registry: of AnyBlok
    """
    return [count_the_books(registry)]


def read_write_read(registry: Any) -> list[Step]:
    """Do a unit of work that reads, writes, and reads what it has written

    :param registry: of AnyBlok
    """
    steps = [count_the_books(registry), add_a_book(registry)]
    return [*steps, {**count_the_books(registry), "work": "read after write"}]


UNITS_OF_WORK: dict[str, Callable[[Any], list[Step]]] = {
    "write": write,
    "read": read,
    "read, write, read": read_write_read,
}


def steps_of(registry: Any, name: str) -> list[Step]:
    """Do one unit of work, and end it

    :param registry: of AnyBlok
    :param name: of the unit of work
    """
    try:
        steps = UNITS_OF_WORK[name](registry)
        registry.commit()
    except SQLAlchemyError as error:
        registry.rollback()
        return [{"work": name, "error": str(error)}]

    return steps


def serve(
    registry: Any,
    commands: IO[str] = sys.stdin,
    replies: IO[str] = sys.stdout,
) -> None:
    """Obey commands until there are no more

    :param registry: of AnyBlok
    :param commands: a line each, JSON: a name of :data:`UNITS_OF_WORK` with
        ``times``, or ``health``
    :param replies: a line each, JSON
    """
    print(json.dumps("ready"), file=replies, flush=True)
    for line in commands:
        command = json.loads(line)
        reply: Any
        if command["name"] == "health":
            servers = registry.health().servers
            reply = {name: str(it.status) for name, it in servers.items()}
        else:
            units = range(command["times"])
            reply = [
                step
                for _ in units
                for step in steps_of(registry, command["name"])
            ]

        print(json.dumps(reply), file=replies, flush=True)

    registry.close()
