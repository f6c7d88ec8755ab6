# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Where statements would go: ``anyblok_engines explain``."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import text

from .. import config
from ..routing.catalogue import Catalogue
from ..routing.decision import PRIMARY, RULES, Reason, Situation, decide
from ..routing.functions import SYSTEM_SCHEMA, declared_kind, need_of_function
from ..routing.need import READ, Kind, Need
from ..routing.statements import Statements
from . import options
from .servers import Servers

# Of the JSON: another number where a name goes, or means something else.
VERSION = 1

MEANINGS = {
    **{rule.__name__: (rule.__doc__ or "").split("\n")[0] for rule in RULES},
    Reason.PRIMARY_TAKES_READS: "The primary takes its share of the reads",
    Reason.READ_ONLY_MODE: "Only --db-ro-urls is given: there is no primary",
}

# A parameter, as SQLAlchemy's log has it: %(id_1)s::INTEGER
LOGGED_PARAMETER = re.compile(r"%\((\w+)\)s")

NO_CATALOGUE = (
    "no server could be asked for its catalogue: that tables, operators and "
    "types are plain ones, and functions only read but for those that "
    "PostgreSQL or an option says write"
)
NO_SERVER = "no server answers: that all are ready"


class AssumedCatalogue(Catalogue):
    """A catalogue where there is none: what isn't known to write is plain"""

    def need_of_function(self, name: str, schema: str | None = None) -> Need:
        """Return what a function of this name needs as far as it is known"""
        schema = schema or SYSTEM_SCHEMA
        called = f"function {name}()"
        declared = declared_kind(
            schema,
            name,
            config.functions("--db-ro-functions"),
            config.functions("--db-wo-functions"),
        )
        if declared is Kind.WRITE:
            return Need(Kind.WRITE, f"{called} is declared to write")

        return need_of_function(schema, name, called, volatile=False)

    def need_of_relation(self, name: str, schema: str | None = None) -> Need:
        """Return the need of a plain table"""
        return READ

    def need_of_operator(self, symbol: str) -> Need:
        """Return the need of PostgreSQL's own operator"""
        return READ

    def need_of_cast(self, type_name: str) -> Need:
        """Return the need of a cast to PostgreSQL's own type"""
        return READ


@dataclass(frozen=True)
class Explanation:
    """Where a statement would go

    :param statement: as it was given
    :param servers: any of them; none: it would be an error
    :param reason: the rule that answered
    :param because: the part of the statement that decided; None: all of it is
        a plain read
    """

    statement: str
    servers: tuple[str, ...]
    reason: Reason
    because: str | None

    @property
    def where(self) -> str:
        """Return the servers for a person"""
        return " or ".join(self.servers) or "none, an error"

    @property
    def meaning(self) -> str:
        """Return what the reason means"""
        return MEANINGS[self.reason]

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints of it"""
        return {
            "statement": self.statement,
            "servers": self.servers,
            "reason": str(self.reason),
            "because": self.because,
        }


@dataclass(frozen=True)
class Explained:
    """Where statements would go

    :param explanations: in their order
    :param assumed: what nobody could be asked
    """

    explanations: tuple[Explanation, ...]
    assumed: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Return how many statements go where"""
        count = Counter(one.where for one in self.explanations)
        return ", ".join(f"{n} to {where}" for where, n in count.most_common())

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints"""
        return {
            "version": VERSION,
            "assumed": self.assumed,
            "statements": [one.as_json() for one in self.explanations],
        }


def run(servers: Servers, statements: Iterable[str]) -> int:
    """Show where statements would go, and return the exit status

    :param servers: of the options
    :param statements: SQL
    """
    explained = explain(servers, statements)
    if options.as_json():
        print(json.dumps(explained.as_json(), indent=2))
    else:
        from . import tables

        tables.console().print(tables.of_explanation(explained))

    return 1 if explained.assumed else 0


def explain(servers: Servers, statements: Iterable[str]) -> Explained:
    """Return where statements would go now

    Each as the first of a unit of work, of a session that has neither written
    nor seen anything.

    :param servers: of the options
    :param statements: SQL
    """
    servers.monitor.step()
    assumed = []
    usable = servers.usable_readers()
    if servers.monitor.snapshot.down.issuperset(servers.probes):
        assumed.append(NO_SERVER)
        usable = tuple(server.name for server in servers.topology.readers)

    found = servers.any_catalogue()
    if found is None:
        assumed.append(NO_CATALOGUE)
        found = AssumedCatalogue(), PRIMARY
    elif found[1] != PRIMARY and not servers.topology.read_only:
        assumed.append(
            f"the primary can't be asked: {found[1]} has its catalogue"
        )

    known = Statements(found[0])
    return Explained(
        tuple(
            explanation_of(servers, known, usable, statement)
            for statement in statements
        ),
        tuple(assumed),
    )


def explanation_of(
    servers: Servers, known: Statements, usable: Sequence[str], statement: str
) -> Explanation:
    """Return where one statement would go

    :param servers: of the options
    :param known: what the catalogue says of statements
    :param usable: names of the servers that take reads now
    :param statement: SQL
    """
    drawn: tuple[str, ...] = ()

    def draw(names: Sequence[str]) -> str:
        nonlocal drawn
        drawn = tuple(names)
        # The reason is that of a replica where there is one.
        return next((x for x in names if x != PRIMARY), PRIMARY)

    clause = text(LOGGED_PARAMETER.sub(r"(:\1)", statement))
    situation = Situation(
        classify=partial(known.need_of, clause),
        usable=usable,
        has_primary=not servers.topology.read_only,
        has_replicas=bool(servers.topology.replicas),
        falls_back=servers.fallback.to_primary,
        choose=draw,
    )
    decision = decide(situation)
    names = drawn or tuple(filter(None, [decision.server_name]))
    return Explanation(
        statement,
        names,
        decision.reason,
        decision.because or situation.need.because,
    )
