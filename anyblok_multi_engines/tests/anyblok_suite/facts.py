# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Facts that only the environment under test can tell, as JSON.

This file is started with that environment's Python, so it needs nothing but
psycopg2 and packaging, which AnyBlok's PostgreSQL needs as well.

``facts.py packages``, ``facts.py requirements PROJECT``,
``facts.py postgresql URL``, ``facts.py bloks URL``, ``facts.py traffic URL``
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import distributions, requires, version
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


def requirements(project: str) -> dict[str, list[str]]:
    """What a project needs, and which of it SQLAlchemy's version is not."""
    from packaging.requirements import Requirement

    said: dict[str, list[str]] = {"needed": [], "refused": []}
    for text in requires(project) or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is not None and not marker.evaluate({"extra": ""}):
            continue
        if requirement.name.lower() != "sqlalchemy":
            said["needed"].append(text)
        elif not requirement.specifier.contains(version("sqlalchemy"), True):
            said["refused"].append(text)
    return said


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
    "requirements": requirements,
    "postgresql": postgresql,
    "bloks": bloks,
    "traffic": traffic,
}

if __name__ == "__main__":
    print(json.dumps(FACTS[sys.argv[1]](*sys.argv[2:])))
