# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Nothing that a replica said is written over newer data of the primary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pickle import dumps
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import (
    ClauseElement,
    Connection,
    bindparam,
    event,
    inspect,
    select,
)
from sqlalchemy import tuple_ as tuple_of
from sqlalchemy.orm import LoaderCallableStatus, Session

from .errors import StaleRead, StaleReadError
from .events import StaleReadFound, tell
from .provenance import (
    Mark,
    changed_keys,
    columns_of,
    expect_replica_reads,
    note_compared,
    read_of,
    said_of,
)

if TYPE_CHECKING:
    from .provenance import State

    Execute = Callable[[Any, Any], Any]

# A driver sends at most 65,535 parameters; a key may have several columns.
ROWS_PER_QUERY = 1_000

# In the info of a session: the attributes that its flush has compared.
_COMPARED = "anyblok_multi_engines.compared"


class Row(NamedTuple):
    """The row of an instance in one table

    :param state: of the instance
    :param key: the values of the table's primary key
    :param columns: to compare, with their attributes
    """

    state: State
    key: tuple[Any, ...]
    columns: Mapping[Any, str]


def listen(target: type) -> None:
    """Compare what is changed only inside a flush, too, one by one

    The column of a One2Many without Many2One, orphans, what other listeners
    change. Listeners that are added later may still change what they like.

    :param target: a base class of models
    """
    for name in ("before_update", "before_delete"):
        event.listen(target, name, _CHECKS[name], propagate=True, raw=True)


def changed_instance(session: Session) -> str | None:
    """Return the name of an instance that a flush would write; None: nothing

    :param session: that may have something to flush
    """
    for instance in (*session.new, *session.deleted):
        return _name_of(instance)

    for instance in session.dirty:
        if session.is_modified(instance):
            return _name_of(instance)

    return None


def check_before_flush(session: Session) -> None:
    """Compare what replicas said of what is changed with the primary

    And lock it there until the transaction's end: one query per table, and
    per thousand rows. What is unknown isn't compared: attributes that were
    never loaded, or that the primary has loaded.

    :param session: that is about to flush
    :exception: StaleReadError, where the primary says otherwise
    """
    updated = _read_from_replicas(session.dirty, _updated_keys)
    deleted = _read_from_replicas(session.deleted, _deleted_keys)
    session.info[_COMPARED] = WeakKeyDictionary({**updated, **deleted})
    if updated or deleted:
        # What they loaded may have been in another session.
        expect_replica_reads(session, [*updated, *deleted])
        # The connection that the flush writes on: past what decides for a read.
        _compare(session, session.connection().execute, updated, deleted)


def check_before_bulk_save(session: Session, instances: Iterable[Any]) -> None:
    """Compare what replicas said of instances, before a bulk save of them

    :param session: that saves them, without a flush
    :param instances: as given to ``Session.bulk_save_objects``
    :exception: StaleReadError, where the primary says otherwise
    """
    updated = _read_from_replicas(instances, _updated_keys)
    if updated:
        _compare(session, session.connection().execute, updated, {})


def _read_from_replicas(
    instances: Iterable[Any], keys_of: Callable[[State], set[str]]
) -> dict[State, set[str]]:
    """Return the states of what replicas have loaded, with what to compare"""
    states = map(inspect, instances)
    return {x: keys_of(x) for x in states if read_of(x) is not None}


def _check_update(mapper: Any, connection: Connection, state: State) -> None:
    if read_of(state) is not None:
        changed = changed_keys(state) & columns_of(state.manager).keys
        keys = _not_compared(state, _written_over(state, changed))
        if keys:
            _compare(state.session, connection.execute, {state: keys}, {})

        # What the flush writes isn't what a replica said.
        note_compared(state, changed)


def _check_delete(mapper: Any, connection: Connection, state: State) -> None:
    if read_of(state) is not None:
        keys = _not_compared(state, _deleted_keys(state))
        if keys:
            _compare(state.session, connection.execute, {}, {state: keys})


_CHECKS = {"before_update": _check_update, "before_delete": _check_delete}


def _not_compared(state: State, keys: set[str]) -> set[str]:
    """Return what this flush hasn't compared; nothing where it doesn't"""
    compared = state.session.info.get(_COMPARED) if state.session else None
    return set() if compared is None else keys - compared.get(state, set())


def _updated_keys(state: State) -> set[str]:
    """Return the attributes that an UPDATE would write over what was read"""
    changed = changed_keys(state) & columns_of(state.manager).keys
    return _written_over(state, changed)


def _written_over(state: State, changed: set[str]) -> set[str]:
    """Return which attributes a replica has said something of

    :param changed: that an UPDATE would write
    """
    mapper = state.manager.mapper
    version = mapper.version_id_col
    if changed and version is not None:
        changed = {*changed, mapper.get_property_by_column(version).key}

    # A SQL expression adds to what the primary has.
    return {
        key
        for key in changed
        if _has_replica_value(state, key)
        and not _is_expression(state.dict.get(key))
    }


def _deleted_keys(state: State) -> set[str]:
    return {
        key
        for key in columns_of(state.manager).keys
        if _has_replica_value(state, key)
    }


def _is_expression(value: Any) -> bool:
    return isinstance(value, ClauseElement) or hasattr(
        value, "__clause_element__"
    )


def _has_replica_value(state: State, key: str) -> bool:
    value = said_of(state, key)
    return value is not Mark.FRESH and not isinstance(
        value, LoaderCallableStatus
    )


def _compare(
    session: Any,
    execute: Execute,
    updated: Mapping[State, set[str]],
    deleted: Mapping[State, set[str]],
) -> None:
    """Compare rows with the primary's, and lock them

    Always in the order of the tables' names and the keys, so that two
    flushes don't wait for one another.

    :exception: StaleReadError
    """
    tables: dict[Any, list[Row]] = {}
    for state, keys in (*updated.items(), *deleted.items()):
        for table, row in _rows_of(state, keys):
            tables.setdefault(table, []).append(row)

    stale: dict[State, set[str]] = {}
    for table in sorted(tables, key=lambda x: str(x.fullname)):
        rows = _sorted(tables[table])
        for start in range(0, len(rows), ROWS_PER_QUERY):
            chunk = rows[start : start + ROWS_PER_QUERY]
            no_key = not any(row.state in deleted for row in chunk)
            for row, keys in _differing(execute, table, chunk, no_key):
                stale.setdefault(row.state, set()).update(keys)

    if stale:
        error = StaleReadError(
            tuple(_stale_read(state, keys) for state, keys in stale.items())
        )
        registry = session.anyblok
        tell(
            registry.listeners.dispatch.stale_read,
            StaleReadFound(registry, session, error),
        )
        raise error

    for state, keys in updated.items():
        note_compared(state, keys)


def _rows_of(state: State, keys: set[str]) -> Iterator[tuple[Any, Row]]:
    """Give the rows of an instance: of its own table and of those it extends

    :param keys: the attributes to compare
    """
    mapper = state.manager.mapper
    identity = _identity_of(state)
    for table in mapper.tables:
        columns = {
            column: key
            for key in keys
            for column in mapper.attrs[key].columns
            if column.table is table
        }
        if columns:
            key = tuple(
                identity.get(name, state.dict.get(name))
                for name in (
                    mapper.get_property_by_column(x).key
                    for x in table.primary_key
                )
            )
            yield table, Row(state, key, columns)


def _sorted(rows: list[Row]) -> list[Row]:
    try:
        return sorted(rows, key=lambda x: x.key)
    except TypeError:
        return sorted(rows, key=lambda x: repr(x.key))


def _identity_of(state: State) -> dict[str, Any]:
    """Return the primary key of an instance, by attribute, as it was read"""
    mapper = state.manager.mapper
    return {
        mapper.get_property_by_column(column).key: value
        for column, value in zip(
            mapper.primary_key, state.identity or (), strict=True
        )
    }


def _differing(
    execute: Execute, table: Any, rows: list[Row], no_key: bool
) -> Iterator[tuple[Row, set[str]]]:
    """Give the rows in which the primary differs, and the attributes

    :param rows: of one table
    :param no_key: True: let others go on referring to the rows, as an UPDATE
        does that changes no key
    """
    key = tuple(table.primary_key)
    columns = tuple(
        dict.fromkeys([*key, *(x for row in rows for x in row.columns)])
    )
    if len(rows) == 1:
        statement = _locking_select_of_one(table, columns, no_key)
        wanted = {str(n): value for n, value in enumerate(rows[0].key)}
    else:
        statement = _locking_select(table, columns, no_key)
        keys = [row.key[0] if len(key) == 1 else row.key for row in rows]
        wanted = {"keys": keys}

    found = {x[: len(key)]: x for x in execute(statement, wanted).all()}
    at = {column: n for n, column in enumerate(columns)}
    for row in rows:
        current = found.get(row.key)
        if current is None:
            yield row, set()
            continue

        differ = {
            name
            for column, name in row.columns.items()
            if not _same(
                column.type, said_of(row.state, name), current[at[column]]
            )
        }
        if differ:
            yield row, differ


# To make one takes as long as to execute it.
@lru_cache(256)
def _locking_select(table: Any, columns: tuple[Any, ...], no_key: bool) -> Any:
    """Return what reads and locks rows of a table, by their keys

    :param columns: that it reads
    :param no_key: True: others may go on referring to the rows
    """
    key = tuple(table.primary_key)
    of_rows = key[0] if len(key) == 1 else tuple_of(*key)
    return (
        select(*columns)
        .where(of_rows.in_(bindparam("keys", expanding=True)))
        .order_by(*key)
        .with_for_update(key_share=no_key)
    )


@lru_cache(256)
def _locking_select_of_one(
    table: Any, columns: tuple[Any, ...], no_key: bool
) -> Any:
    """Return what reads and locks one row of a table

    An IN is written anew each time that it is executed.

    :param columns: that it reads
    :param no_key: True: others may go on referring to the row
    """
    is_it = [
        column == bindparam(str(n), type_=column.type)
        for n, column in enumerate(table.primary_key)
    ]
    return select(*columns).where(*is_it).with_for_update(key_share=no_key)


def _same(type_: Any, one: Any, other: Any) -> bool:
    """Return True for equal values of a column

    By their type, or else by what they are made of: not a number isn't equal
    to itself, and many a class doesn't say what is equal.
    """
    if one is other or type_.compare_values(one, other) is True:
        return True

    try:
        return dumps(one) == dumps(other)
    except Exception:
        return False


def _stale_read(state: State, keys: Iterable[str]) -> StaleRead:
    read = read_of(state)
    return StaleRead(
        model=_model_of(state),
        key=_named_key(state),
        columns=tuple(sorted(_column_name(state, key) for key in keys)),
        server="a replica" if read is None else read.server,
    )


def _name_of(instance: Any) -> str:
    state = inspect(instance)
    if not state.has_identity:
        return f"a new {_model_of(state)}"

    key = ", ".join(f"{x}={value!r}" for x, value in _named_key(state).items())
    return f"{_model_of(state)}({key})"


def _named_key(state: State) -> dict[str, Any]:
    return {
        _column_name(state, key): value
        for key, value in _identity_of(state).items()
    }


def _column_name(state: State, key: str) -> str:
    return str(state.manager.mapper.attrs[key].columns[0].name)


def _model_of(state: State) -> str:
    cls = state.class_
    return str(getattr(cls, "__registry_name__", cls.__name__))
