# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the primary's catalogue says of the names in a statement, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .functions import SYNTAX
from .need import READ, Kind, Need

# By schema and name
Names = Mapping[tuple[str, str], Need]


@dataclass(frozen=True)
class Catalogue:
    """What the names in a statement stand for

    A name is as PostgreSQL folds it: in lower case unless it was quoted. What
    is harmless is READ; what isn't says why. One is easily made by hand::

        Catalogue(
            functions={
                ("pg_catalog", "lower"): READ,
                ("public", "bump"): Need(Kind.UNPROVEN, "bump() is volatile"),
            },
            relations={("public", "book"): READ},
            operators={"=": READ},
            types={"text": READ},
        )

    :param search_path: the schemas in which a name without one is looked up,
        ``pg_catalog`` among them (``current_schemas(true)``)
    :param functions: by schema and name, all overloads together
    :param relations: by schema and name: tables, views, sequences
    :param operators: by their characters
    :param types: by their names, with the spellings of SQL (``int``)
    :param fields: functions that ``row.name`` may call and that may do harm
    :param implicit: what PostgreSQL may call without a word of it in the
        statement: implicit casts, the functions of operator classes and types
    """

    search_path: tuple[str, ...] = ("pg_catalog", "public")
    functions: Names = field(default_factory=dict)
    relations: Names = field(default_factory=dict)
    operators: Mapping[str, Need] = field(default_factory=dict)
    types: Mapping[str, Need] = field(default_factory=dict)
    fields: Mapping[str, Need] = field(default_factory=dict)
    implicit: Need = READ

    def need_of_function(self, name: str, schema: str | None = None) -> Need:
        """Return what a call of a function needs

        :param name: of the function, any of its overloads may be meant
        :param schema: None: looked up in the search path
        """
        found = self._all(self.functions, name, schema)
        if found:
            # The types of the arguments decide which schema's is called, or
            # whether it is a cast: type(value).
            return any_of([*found, self.types.get(name, found[0])])

        if schema is None and name in SYNTAX:
            return READ

        return _unknown("function", f"{_qualified(name, schema)}()")

    def is_own_function(self, name: str, schema: str | None = None) -> bool:
        """Return True where a function of this name isn't PostgreSQL's

        :param name: of the function
        :param schema: None: looked up in the search path
        """
        schemas = self.search_path if schema is None else (schema,)
        return any(
            (x, name) in self.functions for x in schemas if x != "pg_catalog"
        )

    def need_of_relation(self, name: str, schema: str | None = None) -> Need:
        """Return what a SELECT from a table or a view needs

        :param name: of the relation
        :param schema: None: looked up in the search path
        """
        for need in self._all(self.relations, name, schema):
            return need

        return _unknown("relation", _qualified(name, schema))

    def need_of_operator(self, symbol: str) -> Need:
        """Return what an operator needs: its function may be anything

        :param symbol: its characters, ``+``
        """
        return self.operators.get(symbol) or _unknown("operator", symbol)

    def need_of_cast(self, type_name: str) -> Need:
        """Return what a cast to a type needs

        :param type_name: without its schema, its length and its brackets
        """
        return self.types.get(type_name) or _unknown("type", type_name)

    def need_of_field(self, name: str) -> Need:
        """Return what ``row.name`` needs: PostgreSQL may call ``name(row)``

        :param name: of a column, or of a function
        """
        return self.fields.get(name, READ)

    def need_of_any(self) -> Need:
        """Return what every statement needs at least

        READ, unless the database has an implicit cast that may write.
        """
        return self.implicit

    def _all(self, names: Names, name: str, schema: str | None) -> list[Need]:
        schemas = self.search_path if schema is None else (schema,)
        return [
            names[schema, name] for schema in schemas if (schema, name) in names
        ]


def any_of(needs: Sequence[Need]) -> Need:
    """Return the need of one of several, not known which

    :param needs: all that may be meant, at least one
    """
    for need in needs:
        if not need.is_read:
            certain = all(other.kind is Kind.WRITE for other in needs)
            return need if certain else Need(Kind.UNPROVEN, need.because)

    return READ


def _unknown(what: str, name: str) -> Need:
    return Need(Kind.UNPROVEN, f"{what} {name} is not known", unknown=True)


def _qualified(name: str, schema: str | None) -> str:
    return name if schema is None else f"{schema}.{name}"
