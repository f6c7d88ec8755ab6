# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Reads what a server's catalogue says of functions and of what calls them.

A view, a policy, an operator, a default of an argument, the check of a domain:
each calls functions that a statement doesn't name. ``pg_depend`` doesn't know
those of PostgreSQL itself (``nextval``), so the stored expressions are asked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from json import loads
from typing import Any, TypeVar

from sqlalchemy import Connection

from .routing.catalogue import Catalogue, any_of
from .routing.functions import INPUTS, declared_kind, need_of_function
from .routing.need import READ, Kind, Need

Key = TypeVar("Key", bound=Hashable)

# What calls, or is called: a letter and an OID, which JSON gives as a text. Of
# a function, an operator, a relation, a type, a cast to a type: f, o, r, t, c.
Node = tuple[str, str]

# FirstNormalObjectId of PostgreSQL's access/transam.h: what has a lower OID
# was made by initdb. A test asks what is taken for granted of it.
USERS = 16384

_INPUTS = ", ".join(f"'{name}'" for name in sorted(INPUTS))

# A temporary table is its session's.
SEARCH_PATH = """
select s from unnest(current_schemas(true)) with ordinality x(s, i)
where s !~ '^pg_temp_' order by i
"""

FUNCTIONS = """
select json_build_array(p.oid, n.nspname, p.proname, p.prokind = 'p',
    p.provolatile = 'v', p.pronargs > 0 and p.pronargs - p.pronargdefaults < 2,
    p.proargtypes[0], p.provariadic)
from pg_proc p join pg_namespace n on n.oid = p.pronamespace
"""

OPERATORS = "select json_build_array(oid, oprname) from pg_operator"

# What takes a row: its own type, a domain over it (the categories C and P
# pass to it), a pseudo-type, a type that rows are cast to by themselves.
TYPES = """
select json_build_array(t.oid, t.typname,
    t.typcategory in ('C', 'P') or t.oid in (
        select c.casttarget
        from pg_cast c join pg_type s on s.oid = c.castsource
        where c.castcontext = 'i' and s.typtype = 'c'))
from pg_type t
"""

RELATIONS = """
select json_build_array(c.oid, n.nspname, c.relname, c.relkind,
    c.relpersistence = 'u')
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S', 't')
and c.relpersistence <> 't'
"""

# pg_depend: a user's array, range, multirange, domain, and what it is of.
# INPUTS may make a value of any type that has checks.
USES = f"""
select json_build_array(a, b, c, d) from (
    select 'f', a.aggfnoid::oid, 'f', part::oid
    from pg_aggregate a, unnest(array[
        aggtransfn, aggfinalfn, aggcombinefn, aggserialfn, aggdeserialfn,
        aggmtransfn, aggminvtransfn, aggmfinalfn]) part
    where a.aggfnoid >= {USERS}
    union all
    select 'o', oid, 'f', oprcode::oid from pg_operator
    union all
    select 'f', oid, 't', type
    from pg_proc, unnest(
        coalesce(proallargtypes, proargtypes::oid[]) || prorettype) type
    where oid >= {USERS} and type >= {USERS}
    union all
    select 'r', inhparent, 'r', inhrelid from pg_inherits
    union all
    select 'c', casttarget, 'f', castfunc from pg_cast
    where castfunc >= {USERS}
    union all
    select 't', objid, 't', refobjid from pg_depend
    where classid = 'pg_type'::regclass and refclassid = 'pg_type'::regclass
    union all
    select 't', t.oid, 't', a.atttypid
    from pg_type t join pg_attribute a on a.attrelid = t.typrelid
    where a.atttypid >= {USERS} and a.attnum > 0
    union all
    select 'f', p.oid, 't', c.contypid
    from pg_constraint c, pg_proc p
    where c.contypid >= {USERS} and p.proname in ({_INPUTS})
) x(a, b, c, d)
"""

# Where a stored expression names a function, an operator, a relation, a type
# that a value is made into (PostgreSQL, nodes/primnodes.h and parsenodes.h).
# PostgreSQL's own views call no operator or aggregate that could do harm.
EXPRESSIONS = f"""
with stored (letter, oid, expression) as (
    select 'r', c.oid, w.ev_action::text
    from pg_rewrite w join pg_class c on c.oid = w.ev_class
    where c.relkind = 'v' and w.ev_type = '1'
    union all
    select 'r', c.oid, p.polqual::text
    from pg_policy p join pg_class c on c.oid = p.polrelid
    where c.relrowsecurity and p.polcmd in ('r', '*')
    union all
    select 'f', oid, proargdefaults::text from pg_proc
    where proargdefaults is not null
    union all
    select 't', contypid, conbin::text from pg_constraint where contypid <> 0
),
keys (letter, key, lowest) as (values
    ('f', ' :funcid ', 0),
    ('r', ' :relid ', 0),
    ('f', ' :aggfnoid ', {USERS}),
    ('f', ' :winfnoid ', {USERS}),
    ('o', ' :opno ', {USERS}),
    ('t', ' :coltypes ', {USERS}),
    ('t', ' :funccoltypes ', {USERS}),
    ('t', ' :resulttype ', {USERS}),
    ('t', ' :typid ', {USERS}),
    ('lock', ' :hasForUpdate ', {USERS}))
select json_build_array(a, b, c, d) from (
    select distinct s.letter, s.oid, k.letter, split_part(part, ' :', 1)
    from stored s join keys k on s.oid >= k.lowest,
        unnest((string_to_array(s.expression, k.key))[2:]) part
) x(a, b, c, d)
"""

# Called without a word of it in the statement: to_json() and its like look
# for a cast to json; ORDER BY, DISTINCT, GROUP BY and joins for an operator
# class; IN, CASE, USING, BETWEEN, LIKE for an operator.
IMPLICIT = f"""
select json_build_array(a, b) from (
    select 'implicit cast to ' || format_type(casttarget, null), castfunc
    from pg_cast where castcontext = 'i' and castfunc >= {USERS}
    union all
    select 'cast to json', castfunc from pg_cast
    where casttarget = 'json'::regtype and castfunc >= {USERS}
    union all
    select 'operator class of ' || format_type(amproclefttype, null),
        amproc::oid
    from pg_amproc where amproc >= {USERS}
    union all
    select 'operator class of ' || format_type(amoplefttype, null),
        oprcode::oid
    from pg_amop join pg_operator o on o.oid = amopopr
    where oprcode >= {USERS}
    union all
    select 'type ' || typname, io::oid
    from pg_type, unnest(array[typinput, typoutput, typreceive, typsend]) io
    where io >= {USERS}
    union all
    select 'operator ' || oprname, oprcode::oid from pg_operator
    where oprname in ('=', '<>', '<', '<=', '>', '>=',
        '~~', '!~~', '~~*', '!~~*', '~', '!~') and oprcode >= {USERS}
) x(a, b)
"""

QUERIES = (
    SEARCH_PATH,
    FUNCTIONS,
    OPERATORS,
    TYPES,
    RELATIONS,
    USES,
    EXPRESSIONS,
    IMPLICIT,
)

# In one statement: of one moment, in one round trip.
EVERYTHING = "select " + ", ".join(
    f"(select coalesce(json_agg(q), '[]')::text from ({query}) y(q))"
    for query in QUERIES
)

# How SQL writes the types that pg_type calls otherwise.
SPELLINGS = {
    "bigint": "int8",
    "bit varying": "varbit",
    "boolean": "bool",
    "char varying": "varchar",
    "character": "bpchar",
    "character varying": "varchar",
    "dec": "numeric",
    "decimal": "numeric",
    "double precision": "float8",
    "float": "float8",
    "int": "int4",
    "integer": "int4",
    "national char": "bpchar",
    "national char varying": "varchar",
    "national character": "bpchar",
    "national character varying": "varchar",
    "nchar": "bpchar",
    "nchar varying": "varchar",
    "real": "float4",
    "smallint": "int2",
    "time with time zone": "timetz",
    "time without time zone": "time",
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
}


# Of pg_class.relkind. A sequence logs ahead of itself: the standby's last_value
# is one that the primary may never have had.
KINDS = {"S": "sequence", "f": "foreign table", "v": "view"}
HARM_OF_KINDS = {
    "S": "is ahead of itself on a standby",
    "f": "is on another server",
}


def read(
    connection: Connection,
    read_functions: AbstractSet[str] = frozenset(),
    write_functions: AbstractSet[str] = frozenset(),
) -> Catalogue:
    """Return what the catalogue says to this connection, now

    With what its transaction has created. It changes nothing, and any role
    may do it, on a primary or a hot standby.

    :param connection: to a database
    :param read_functions: functions that are harmless though volatile: their
        names as PostgreSQL has them, with their schema or without
    :param write_functions: functions that write whatever their label; they
        win over the others
    :rtype: :class:`~.routing.catalogue.Catalogue`
    """
    answers = connection.exec_driver_sql(EVERYTHING).one()
    reading = _Reading(read_functions, write_functions)
    return reading.catalogue(*map(loads, answers))


class _Reading:
    """What is known while the answers are put together"""

    def __init__(
        self,
        read_functions: AbstractSet[str],
        write_functions: AbstractSet[str],
    ) -> None:
        self._read_functions = read_functions
        self._write_functions = write_functions
        self._search_path: tuple[str, ...] = ()
        # What a need calls them
        self._labels: dict[Node, str] = {}
        # Functions that are declared harmless, with all they call
        self._trusted: set[Node] = set()
        # What is no plain read
        self._harm: dict[Node, Need] = {}
        # What calls, by what it calls
        self._users: dict[Node, set[Node]] = defaultdict(set)

    def catalogue(
        self,
        search_path: list[str],
        functions: list[Any],
        operators: list[Any],
        types: list[Any],
        relations: list[Any],
        uses: list[Any],
        expressions: list[Any],
        implicit: list[Any],
    ) -> Catalogue:
        """Return the catalogue

        :param search_path: and the others: the answers to the queries above
        """
        self._search_path = tuple(search_path)
        for function in functions:
            self._judge_function(*function[:5])

        for relation in relations:
            self._judge_relation(*relation)

        for oid, name in operators:
            self._labels["o", oid] = f"operator {name}"

        for oid, name, _ in types:
            self._labels["t", oid] = f"type {name}"
            self._labels["c", oid] = f"cast to {name}"
            self._users["t", oid].add(("c", oid))

        self._note_uses(uses)
        self._note_expressions(expressions)
        self._spread()
        of_row = {oid for oid, _, takes_row in types if takes_row}
        return Catalogue(
            search_path=self._search_path,
            functions=self._by_name(
                ((schema, name), ("f", oid))
                for oid, schema, name, *_ in functions
            ),
            relations=self._by_name(
                ((schema, name), ("r", oid))
                for oid, schema, name, *_ in relations
            ),
            operators=self._by_name(
                (name, ("o", oid)) for oid, name in operators
            ),
            types=self._by_name(_spelt(types)),
            fields=self._fields(functions, of_row),
            implicit=self._implicit(implicit),
        )

    def _called(self, schema: str, name: str) -> str:
        return name if schema in self._search_path else f"{schema}.{name}"

    def _judge_function(
        self, oid: str, schema: str, name: str, procedure: bool, volatile: bool
    ) -> None:
        node = ("f", oid)
        label = self._labels[node] = f"function {self._called(schema, name)}()"
        declared = declared_kind(
            schema, name, self._read_functions, self._write_functions
        )
        if procedure:
            need = Need(Kind.UNPROVEN, f"{label} is a procedure")
        elif declared is Kind.WRITE:
            need = Need(Kind.WRITE, f"{label} is declared to write")
        elif declared is Kind.READ:
            self._trusted.add(node)
            need = READ
        else:
            need = need_of_function(schema, name, label, volatile)

        if not need.is_read:
            self._harm[node] = need

    def _judge_relation(
        self, oid: str, schema: str, name: str, kind: str, unlogged: bool
    ) -> None:
        node = ("r", oid)
        what = KINDS.get(kind, "table")
        label = self._labels[node] = f"{what} {self._called(schema, name)}"
        harm = HARM_OF_KINDS.get(kind)
        if unlogged:
            harm = "is unlogged: a standby doesn't have it"

        if harm is not None:
            self._harm[node] = Need(Kind.UNPROVEN, f"{label} {harm}")

    def _note_uses(self, uses: list[Any]) -> None:
        for letter, oid, used, used_oid in uses:
            self._users[used, used_oid].add((letter, oid))
            if letter == used == "t":
                # A cast to an array, or to a domain, casts to what it is of.
                self._users["c", used_oid].add(("c", oid))

    def _note_expressions(self, expressions: list[Any]) -> None:
        for letter, oid, used, value in expressions:
            node = (letter, oid)
            if used != "lock":
                for used_oid in re.findall(r"\d+", value):
                    self._users[used, used_oid].add(node)
            elif value == "true":
                self._harm[node] = Need(
                    Kind.WRITE,
                    f"{self._labels.get(node)}: FOR UPDATE or FOR SHARE",
                )

    def _spread(self) -> None:
        """Pass the needs on to what calls them, and so on

        Those which are known to write first: they say more.
        """
        todo = sorted(
            self._harm,
            key=lambda node: (self._harm[node].kind is Kind.WRITE, node),
        )
        while todo:
            node = todo.pop()
            for user in sorted(self._users[node] - self._trusted):
                if user not in self._harm:
                    self._harm[user] = self._need_of_user(user, node)
                    todo.append(user)

    def _need_of_user(self, user: Node, node: Node) -> Need:
        """Return what that needs which calls what does harm"""
        need = self._harm[node]
        if user[0] == "c" and node[0] != "f":
            return _maybe(need)

        # A temporary view is not among the relations.
        label = self._labels.get(user, "temporary view")
        passed = Need(need.kind, f"{label}: {need.because}")
        return _maybe(passed) if user[0] == "c" else passed

    def _by_name(self, nodes: Iterable[tuple[Key, Node]]) -> dict[Key, Need]:
        """Return needs by name: the need of all that have it"""
        needs: dict[Key, list[Need]] = defaultdict(list)
        for name, node in nodes:
            needs[name].append(self._harm.get(node, READ))

        return {name: any_of(found) for name, found in needs.items()}

    def _fields(
        self, functions: list[Any], of_row: set[str]
    ) -> dict[str, Need]:
        """Return what ``row.name`` may call that could do harm"""
        return {
            name: _maybe(self._harm["f", oid])
            for oid, _, name, _, _, of_one, *arguments in functions
            if of_one
            and ("f", oid) in self._harm
            and not of_row.isdisjoint(arguments)
        }

    def _implicit(self, calls: list[Any]) -> Need:
        for what, oid in calls:
            need = self._harm.get(("f", oid))
            if need is not None:
                return Need(Kind.UNPROVEN, f"{what}: {need.because}")

        return READ


def _maybe(need: Need) -> Need:
    """Return the need of what may call it, or not"""
    return Need(Kind.UNPROVEN, need.because)


def _spelt(types: list[Any]) -> Iterator[tuple[str, Node]]:
    """Yield each type by its names, those of SQL too"""
    spellings = defaultdict(list)
    for spelling, name in SPELLINGS.items():
        spellings[name].append(spelling)

    for oid, name, _ in types:
        for spelling in (name, *spellings.get(name, ())):
            yield spelling, ("c", oid)
