# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""From a SQLAlchemy statement to its need: what is not proven is no read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

from sqlalchemy import Column, column
from sqlalchemy.orm import Mapper, RelationshipProperty
from sqlalchemy.orm.interfaces import UserDefinedOption
from sqlalchemy.orm.strategy_options import Load, _WildcardLoad
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import ClauseElement

from .functions import KNOWN_FUNCTIONS
from .need import NO_STATEMENT, READ, Kind, Need

# The shapes of one application are thousands at most; past that the cache
# starts anew rather than grow.
MAX_SHAPES = 10_000

# What a statement that only reads is made of, by SQLAlchemy's visit names.
# What isn't here is no proven read: a new kind of element, a user's own.
PLAIN_ELEMENTS = frozenset(
    """
    aggregate_order_by alias array binary bindparam case cast clauselist
    collation column compound_select cte expression_clauselist extract false
    funcfilter grouping join label label_reference lateral null over
    postgresql_distinct_on scalar_function_column scalar_values select
    select_statement_grouping slice subquery table table_valued_alias
    table_valued_column tablesample textual_label_reference true try_cast
    tuple type_clause typeclause type_coerce unary values withingroup
    """.split()
)
STATEMENTS = frozenset(
    """
    compound_select function select select_statement_grouping values
    """.split()
)
WRITES = frozenset(["delete", "insert", "update"])

# PostgreSQL's characters of an operator; a name or a space could hold SQL.
OPERATOR = re.compile(r"[+\-*/<>=~!@#%^&|`?]+")
HARMLESS_LITERAL = re.compile(r"\*|[0-9]+")
WORD = re.compile(r"\w+")

# Attributes of a SELECT or a CTE that are rendered as they are, and that a
# visitor doesn't visit.
AS_TEXT = {
    "_statement_hints": "with_statement_hint()",
    "_hints": "with_hint()",
    "_prefixes": "prefix_with()",
    "_suffixes": "suffix_with()",
}

# Of "*": loaders that add nothing to the statement.
PLAIN_LOADS = frozenset(
    (("lazy", lazy),)
    for lazy in ("noload", "raise", "raise_on_sql", "select", "selectin")
)

Objection = str | None


class Statements:
    """The needs of the statements of one registry, remembered by shape

    The shape is SQLAlchemy's own cache key, which holds all of a statement
    but the values of its parameters.
    """

    def __init__(self) -> None:
        self._needs: dict[Any, Need] = {}

    def need_of(self, clause: Any) -> Need:
        """Return what a statement needs

        :param clause: what ``Session.get_bind`` received; None: no statement
        :rtype: Need
        """
        if clause is None:
            return NO_STATEMENT

        key = _shape(clause)
        if key is None:
            return need_of(clause)

        need = self._needs.get(key)
        if need is None:
            need = need_of(clause)
            if len(self._needs) >= MAX_SHAPES:
                self._needs.clear()

            self._needs[key] = need

        return need


def need_of(clause: ClauseElement) -> Need:
    """Return what a statement needs, worked out from its whole tree

    :param clause: any executable of SQLAlchemy
    :rtype: Need
    """
    kind = getattr(clause, "__visit_name__", "")
    if kind in WRITES or getattr(clause, "is_dml", False):
        return Need(Kind.WRITE, kind.upper())

    if kind not in STATEMENTS:
        return Need(Kind.UNPROVEN, f"{_name(clause)} is not a SELECT")

    seen: set[Any] = set()
    for element in visitors.iterate(clause):
        objection = _objection_to(element, seen)
        if objection is not None:
            return Need(_kind_of(element), objection)

    return READ


def _shape(clause: Any) -> Any:
    """Return a hashable that statements of the same SQL share, or None"""
    generate = getattr(clause, "_generate_cache_key", None)
    key = generate() if generate is not None else None
    return None if key is None else key.key


def _kind_of(element: Any) -> Kind:
    name = element.__visit_name__
    if name in WRITES or name == "sequence" or _locks(element):
        return Kind.WRITE

    return Kind.UNPROVEN


def _locks(element: Any) -> bool:
    return getattr(element, "_for_update_arg", None) is not None or (
        element.__visit_name__ == "function"
        and "_advisory_" in str(getattr(element, "name", ""))
    )


def _name(element: Any) -> str:
    return type(element).__name__


def _objection_to(element: Any, seen: set[Any]) -> Objection:
    """Return why an element is not proven to be harmless, or None

    :param element: of the tree of a statement
    :param seen: mappers that need not be looked at again
    """
    foreign = _foreign_class(element.__class__)
    if foreign is not None:
        return foreign

    name = element.__visit_name__
    check = CHECKS.get(name)
    if check is not None:
        objection = check(element)
    elif name in PLAIN_ELEMENTS:
        objection = None
    else:
        objection = f"{_name(element)} is not known to be harmless"

    return (
        objection
        or _objection_to_type(element)
        or _objection_to_entity(element, seen)
    )


@lru_cache(maxsize=1_000)
def _foreign_class(cls: Any) -> Objection:
    """Return an objection to a class that SQLAlchemy doesn't compile itself

    An application's own element, or an ``@compiles`` on one of SQLAlchemy's,
    may render anything.
    """
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] not in (
            "sqlalchemy",
            "builtins",
            "typing",
        ):
            return f"{base.__name__} is not an element of SQLAlchemy"

        if "_compiler_dispatcher" in vars(base):
            return f"{base.__name__} is compiled by the application"

    return None


def _select(element: Any) -> Objection:
    """Object to what a SELECT can hold beside its tree"""
    if _locks(element):
        return "FOR UPDATE or FOR SHARE"

    for name, what in AS_TEXT.items():
        if getattr(element, name, None):
            return f"{what} is SQL as text"

    for option in getattr(element, "_with_options", ()):
        objection = _objection_to_option(option)
        if objection is not None:
            return objection

    return None


def _column(element: Any) -> Objection:
    literal = getattr(element, "is_literal", False)
    if literal and not HARMLESS_LITERAL.fullmatch(element.name):
        return f"literal_column({element.name!r}) is SQL as text"

    return None


def _extract(element: Any) -> Objection:
    if WORD.fullmatch(element.field):
        return None

    return f"extract({element.field!r}) is SQL as text"


def _function(element: Any) -> Objection:
    packages = tuple(getattr(element, "packagenames", ()))
    name = str(getattr(element, "name", "")).lower()
    if packages in ((), ("pg_catalog",)) and name in KNOWN_FUNCTIONS:
        return None

    called = ".".join((*packages, name))
    return f"function {called}() is not known to be harmless"


def _operator(element: Any) -> Objection:
    """Object to an operator that may hold SQL as text"""
    for name in ("operator", "modifier"):
        operator = getattr(element, name, None)
        if isinstance(operator, operators.custom_op) and not (
            OPERATOR.fullmatch(operator.opstring.strip())
        ):
            return f"operator {operator.opstring!r} is SQL as text"

    return None


def _values(element: Any) -> Objection:
    """Object to the rows of VALUES, which a visitor doesn't visit"""
    cells = (
        cell
        for rows in element._data
        for row in rows
        for cell in row
        if isinstance(cell, ClauseElement)
    )
    return _objection_to_all(cells, set())


def _statement_write(element: Any) -> Objection:
    return f"{element.__visit_name__.upper()} inside"


def _text(element: Any) -> Objection:
    return f"text({element.text[:60]!r}) is SQL as text"


CHECKS: dict[str, Callable[[Any], Objection]] = {
    "binary": _operator,
    "column": _column,
    "compound_select": _select,
    "cte": _select,
    "extract": _extract,
    "delete": _statement_write,
    "function": _function,
    "insert": _statement_write,
    "select": _select,
    "textclause": _text,
    "unary": _operator,
    "update": _statement_write,
    "values": _values,
    "scalar_values": _values,
}


def _objection_to_type(element: Any) -> Objection:
    """Object to a type that puts SQL of its own around values or columns"""
    type_ = getattr(element, "type", None)
    if type_ is None:
        return None

    if getattr(type_, "_has_column_expression", False):
        expression = type_.column_expression(column("x", type_))
    elif getattr(type_, "_has_bind_expression", False):
        expression = type_.bind_expression(column("x", type_))
    else:
        return None

    parts: Iterable[Any] = ()
    if expression is not None:
        parts = visitors.iterate(expression)

    for part in parts:
        objection = _foreign_class(part.__class__)
        check = CHECKS.get(part.__visit_name__)
        objection = objection or (check and check(part))
        if objection:
            return f"type {_name(type_)}: {objection}"

    return None


def _objection_to_option(option: Any) -> Objection:
    """Object to an ORM option that may put more into the statement"""
    if isinstance(option, UserDefinedOption):
        return None

    if isinstance(option, _WildcardLoad) and option.strategy in PLAIN_LOADS:
        return None

    if not isinstance(option, Load):
        return f"option {_name(option)} is not known to be harmless"

    seen: set[Any] = set()
    for loaded in option.context:
        if ("query_expression", True) in (loaded.strategy or ()):
            return "with_expression() is not known to be harmless"

        parts = [*loaded._extra_criteria]
        for step in loaded.path.path:
            if isinstance(step, RelationshipProperty):
                parts.extend(_join_conditions(step))
                parts.extend(_mapped_expressions(step.mapper, seen))

        objection = _objection_to_all(parts, seen)
        if objection is not None:
            return objection

    return None


def _objection_to_entity(element: Any, seen: set[Any]) -> Objection:
    """Object to what a mapped class adds to the SELECT when it is compiled"""
    mapper = getattr(element, "_annotations", {}).get("parentmapper")
    if mapper is None or mapper in seen:
        return None

    return _objection_to_all(_mapped_expressions(mapper, seen), seen)


def _objection_to_all(parts: Iterable[Any], seen: set[Any]) -> Objection:
    for part in parts:
        for element in visitors.iterate(part):
            objection = _objection_to(element, seen)
            if objection is not None:
                return objection

    return None


def _mapped_expressions(mapper: Mapper[Any], seen: set[Any]) -> Iterator[Any]:
    """Yield what a mapped class selects beside plain columns

    Its ``column_property`` expressions, and the conditions of the
    relationships that it joins by itself; of its subclasses too.
    """
    for one in mapper.self_and_descendants:
        if one in seen:
            continue

        seen.add(one)
        for attribute in one.column_attrs:
            for expression in attribute.columns:
                plain = isinstance(expression, Column)
                if not plain or _objection_to_type(expression):
                    yield expression

        for relationship in one.relationships:
            if relationship.lazy in ("joined", False):
                yield from _join_conditions(relationship)
                yield from _mapped_expressions(relationship.mapper, seen)


def _join_conditions(relationship: RelationshipProperty[Any]) -> Iterator[Any]:
    yield relationship.primaryjoin
    if relationship.secondaryjoin is not None:
        yield relationship.secondaryjoin

    yield from relationship.order_by or ()
