# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the primary's catalogue says of the names in a statement, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .need import Need


@dataclass(frozen=True)
class Catalogue:
    """What the names in a statement stand for

    A name is as PostgreSQL folds it: in lower case unless it was quoted.

    :param search_path: the schemas in which a name without one is looked up,
        ``pg_catalog`` among them (``current_schemas(true)``)
    """

    search_path: tuple[str, ...] = ("pg_catalog", "public")
    functions: Mapping[tuple[str, str], object] = field(default_factory=dict)

    def need_of_function(self, name: str, schema: str | None = None) -> Need:
        """Return what a call of a function needs

        :param name: of the function, any of its overloads may be meant
        :param schema: None: looked up in the search path
        """
        raise NotImplementedError

    def need_of_relation(self, name: str, schema: str | None = None) -> Need:
        """Return what a SELECT from a table or a view needs

        :param name: of the relation
        :param schema: None: looked up in the search path
        """
        raise NotImplementedError

    def need_of_operator(self, symbol: str) -> Need:
        """Return what an operator needs: its function may be anything

        :param symbol: its characters, ``+``
        """
        raise NotImplementedError

    def need_of_cast(self, type_name: str) -> Need:
        """Return what a cast to a type needs

        :param type_name: without its schema, its length and its brackets
        """
        raise NotImplementedError

    def need_of_field(self, name: str) -> Need:
        """Return what ``row.name`` needs: PostgreSQL may call ``name(row)``

        :param name: of a column, or of a function
        """
        raise NotImplementedError

    def need_of_any(self) -> Need:
        """Return what every statement needs at least

        READ, unless the database has an implicit cast that may write.
        """
        raise NotImplementedError
