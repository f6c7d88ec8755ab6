# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Facts that only the environment under test can tell, as JSON.

This file is copied beside a run and started with that environment's Python,
so it needs nothing but psycopg2, which AnyBlok's PostgreSQL needs as well.

``facts.py packages``, ``facts.py postgresql URL``, ``facts.py bloks URL``,
``facts.py traffic URL``
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from typing import Any


def packages() -> dict[str, str]:
    """Version by package, and Python's without its patch level."""
    versions = {
        distribution.metadata["Name"].lower().replace("_", "-"): (
            distribution.version
        )
        for distribution in distributions()
    }
    versions["python"] = "{}.{}".format(*sys.version_info)
    return versions


def rows(url: str, query: str) -> list[Any]:
    import psycopg2

    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())
    finally:
        connection.close()


def postgresql(url: str) -> str:
    """The server's major version."""
    number = rows(url, "SHOW server_version_num")[0][0]
    return str(int(number) // 10000)


def bloks(url: str) -> dict[str, str]:
    """State by blok, as the primary has it."""
    return dict(rows(url, "SELECT name, state FROM system_blok"))


def traffic(url: str) -> dict[str, int]:
    """What a server has been asked for in the databases of the suite."""
    [(sessions, transactions)] = rows(
        url,
        "SELECT coalesce(sum(sessions), 0)::int,"
        " coalesce(sum(xact_commit + xact_rollback), 0)::int"
        " FROM pg_stat_database WHERE datname LIKE 'anyblok%'",
    )
    return {"sessions": sessions, "transactions": transactions}


FACTS: dict[str, Callable[..., Any]] = {
    "packages": packages,
    "postgresql": postgresql,
    "bloks": bloks,
    "traffic": traffic,
}

if __name__ == "__main__":
    print(json.dumps(FACTS[sys.argv[1]](*sys.argv[2:])))
