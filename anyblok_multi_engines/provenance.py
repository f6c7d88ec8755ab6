# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Which instances a replica has loaded, and what it said of them.

It is noted in ``inspect(instance).info``, which an instance takes with it to
another session, and through pickle. SQLAlchemy's own record of a change has
not always the value before it: ``flag_modified()`` leaves none, and a JSON
that is changed in place is the same object before and after.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import Column, event, types
from sqlalchemy.orm import Mapper, PassiveFlag, RelationshipDirection, Session
from sqlalchemy.orm.attributes import instance_state

if TYPE_CHECKING:
    # Of an instance of any model.
    from sqlalchemy.orm import InstanceState

    State = InstanceState[Any]

#: The argument of ``get_bind`` that says where a statement went.
CALL = "anyblok_call"

# In the info of an instance's state, of a session and of a mapped class.
_READ = "anyblok_multi_engines.read"
_READS = "anyblok_multi_engines.reads"
_COLUMNS = "anyblok_multi_engines.columns"

# Their values can't be changed in place. Of the other types, each value is
# looked at.
_PLAIN_TYPES = frozenset(
    [
        types.BigInteger,
        types.Boolean,
        types.Date,
        types.DateTime,
        types.DECIMAL,
        types.Enum,
        types.Float,
        types.Integer,
        types.Interval,
        types.LargeBinary,
        types.Numeric,
        types.SmallInteger,
        types.String,
        types.Text,
        types.Time,
        types.Uuid,
    ]
)
_IMMUTABLE = (
    *(str, type(None), int, float, date, time, timedelta),
    *(Decimal, bytes, UUID, Enum),
)

# What a backref has added to a collection that isn't loaded is a change.
_WITHOUT_LOAD = (
    PassiveFlag.PASSIVE_NO_INITIALIZE | PassiveFlag.INCLUDE_PENDING_MUTATIONS
)


class Mark(Enum):
    """What stands where a replica's value would be"""

    #: the primary has given the attribute's value since
    FRESH = auto()
    #: any instance of the session may be a replica's
    ANYWHERE = auto()


class Read:
    """What a replica said of an instance

    :param server: the name of the replica
    :param values: by attribute, those that changed in place as a copy
    """

    __slots__ = ("server", "values")

    def __init__(self, server: str, values: dict[str, Any]) -> None:
        self.server = server
        self.values = values


class Columns(NamedTuple):
    """The attributes of a mapper that are columns of its tables"""

    keys: tuple[str, ...]
    primary: frozenset[str]
    mutable: tuple[str, ...]


def listen(target: type) -> None:
    """Note what replicas load of the models that have a class as a base

    :param target: of models to come, or that are there
    """
    for name, listener in (
        ("load", _note_load),
        ("refresh", _note_refresh),
        ("expire", _note_expiry),
    ):
        event.listen(target, name, listener, propagate=True, raw=True)


def read_of(state: State) -> Read | None:
    """Return what a replica said of an instance; None: nothing that counts

    :param state: of the instance
    """
    info: Mapping[str, Any] | None = state.__dict__.get("info")
    return None if info is None else info.get(_READ)


def columns_of(mapper: Mapper[Any]) -> Columns:
    """Return which attributes of a mapper are columns"""
    columns: Columns | None = mapper.class_manager.info.get(_COLUMNS)
    if columns is None:
        found = {
            prop.key: prop.columns[0]
            for prop in mapper.column_attrs
            if isinstance(prop.columns[0], Column)
        }
        columns = mapper.class_manager.info[_COLUMNS] = Columns(
            tuple(found),
            frozenset(key for key, x in found.items() if x.primary_key),
            tuple(
                key
                for key, x in found.items()
                if type(x.type) not in _PLAIN_TYPES
            ),
        )

    return columns


def changed_keys(state: State) -> set[str]:
    """Return the attributes of an instance that a flush would write

    Not what was given the value it had. Of a changed Many2One, its columns
    too, which SQLAlchemy changes inside the flush.

    :param state: of the instance
    """
    changed = set()
    for key in state.committed_state:
        history = state.get_history(key, _WITHOUT_LOAD)
        if history.added or history.deleted:
            changed.add(key)

    mapper = state.manager.mapper
    for key in changed.intersection(mapper.relationships.keys()):
        relationship = mapper.relationships[key]
        if relationship.direction is RelationshipDirection.MANYTOONE:
            changed.update(
                mapper.get_property_by_column(column).key
                for column in relationship.local_columns
            )

    return changed


def expire_replica_reads(session: Session) -> None:
    """Expire what replicas loaded in a session and nobody changed

    The next access reads the primary. Changes stay. It may be called while
    one of the instances is being loaded, and not inside a flush.
    """
    reads = session.info.pop(_READS, ())
    if not reads:
        return

    if reads is Mark.ANYWHERE:
        reads = session.identity_map.all_states()

    deleted = session.deleted
    changed = [
        state
        for state in reads
        if session.identity_map.contains_state(state)
        and read_of(state) is not None
        and (state.obj() in deleted or _expire_unchanged(session, state))
    ]
    if changed:
        # They are expired when they are flushed: what is written then isn't
        # what the replica said.
        session.info[_READS] = changed


def expect_replica_reads(session: Session) -> None:
    """Let the next call of expire_replica_reads look at every instance"""
    session.info[_READS] = Mark.ANYWHERE


def note_lazy_load(session: Session, server: str, options: Any) -> None:
    """Note that a replica gives what a relationship holds

    Of an instance that the primary has loaded: of its own rows, SQLAlchemy
    tells the listeners.

    :param server: the name of the replica
    :param options: the execution options of the statement
    """
    load_options = options.get("_sa_orm_load_options")
    state = getattr(load_options, "_lazy_loaded_from", None)
    if state is not None and read_of(state) is None:
        state.info[_READ] = Read(server, _fresh(state))
        session.info[_READS] = Mark.ANYWHERE


def note_merge(
    session: Session, source: State, merged: State, load: bool
) -> None:
    """Note that an instance has the values of another, and whence these were

    :param source: the state of what is merged
    :param merged: the state of the session's own instance
    :param load: as given to ``Session.merge``
    """
    read = read_of(source)
    if read is None or source is merged:
        return

    known = read_of(merged)
    values = _fresh(merged) if known is None else known.values
    keys = changed_keys(merged) if load else read.values.keys()
    values.update((x, read.values[x]) for x in keys & read.values.keys())
    merged.info[_READ] = Read(read.server, values)
    session.info[_READS] = Mark.ANYWHERE


def note_compared(state: State, keys: Iterable[str]) -> None:
    """Note that attributes are the primary's by now, and locked there

    :param state: of the instance
    :param keys: the attributes that have been compared
    """
    read = read_of(state)
    if read is not None:
        read.values.update(dict.fromkeys(keys, Mark.FRESH))


def note_attached(session: Session, instance: Any) -> None:
    """Note that an instance comes from another session

    :param instance: that a replica may have loaded there
    """
    if read_of(instance_state(instance)) is not None:
        session.info[_READS] = Mark.ANYWHERE


def _note_load(state: State, context: Any) -> None:
    """Note where an instance comes from that is new to its session"""
    # A merge without load has no context.
    if context is not None:
        call = context.bind_arguments.get(CALL)
        if call is not None and call.from_replica:
            _note_read(state, context.session, call.server, None)


def _note_refresh(state: State, context: Any, names: Any) -> None:
    """Note where attributes of an instance come from that were read again

    :param names: of the attributes; None: all of them
    """
    # Not of rows: a composite value, an evaluated bulk update.
    arguments: Mapping[str, Any] = getattr(context, "bind_arguments", {})
    call = arguments.get(CALL)
    if call is None:
        return

    if call.from_replica:
        _note_read(state, context.session, call.server, names)
        return

    read = read_of(state)
    if read is None:
        return

    if names is None:
        del state.info[_READ]
    else:
        read.values.update(dict.fromkeys(names, Mark.FRESH))


def _note_expiry(state: State, names: Any) -> None:
    """Forget what a replica said of attributes that are expired"""
    read = read_of(state)
    if read is None:
        return

    if names is None:
        del state.info[_READ]
    else:
        for name in names:
            read.values.pop(name, None)


def _note_read(state: State, session: Session, server: str, names: Any) -> None:
    columns = columns_of(state.manager.mapper)
    loaded = state.dict
    values = {key: loaded[key] for key in columns.keys if key in loaded}
    for key in columns.mutable:
        value = values.get(key)
        if not isinstance(value, _IMMUTABLE):
            values[key] = _copy(value)

    if names is not None:
        read = read_of(state)
        before = _fresh(state) if read is None else read.values
        values = {
            **before,
            **{key: x for key, x in values.items() if key in names},
        }

    state.info[_READ] = Read(server, values)
    session.info[_READS] = Mark.ANYWHERE


def _fresh(state: State) -> dict[str, Any]:
    return dict.fromkeys(
        state.dict.keys() & set(columns_of(state.manager.mapper).keys),
        Mark.FRESH,
    )


def _copy(value: Any) -> Any:
    try:
        return deepcopy(value)
    except Exception:
        # What can't be copied is taken for a value that isn't changed in
        # place; a read must not fail for it.
        return value


def _expire_unchanged(session: Session, state: State) -> bool:
    """Expire the attributes of an instance that nobody changed

    Without SQLAlchemy's cascade "refresh-expire", which would lose changes of
    other instances.

    :rtype: True where there are changes, and what the replica said stays
    """
    # An expired attribute may be the reason of the call.
    loading = bool(state.expired_attributes)
    changed = changed_keys(state) if state.modified else set()
    read = read_of(state)
    kept = {} if read is None else dict(read.values)
    changed |= _changed_in_place(state, kept)
    if not changed and Mark.FRESH not in kept.values():
        names = columns_of(state.manager.mapper).keys
        state._expire(state.dict, session.identity_map._modified)
    else:
        names = tuple(
            name
            for name in state.manager.keys() & state.dict.keys() - changed
            if name not in columns_of(state.manager.mapper).primary
            and kept.get(name) is not Mark.FRESH
        )
        state._expire_attributes(state.dict, names)

    if read is not None:
        # The application may have an old value in its hands, and compute a
        # new one from it: until the primary has said otherwise, it counts.
        state.info[_READ] = Read(read.server, kept)

    if loading:
        state.callables = {
            **state.callables,
            **{
                name: _load_again
                for name in names
                if getattr(state.manager[name].impl, "load_on_unexpire", False)
            },
        }

    return bool(changed)


def _changed_in_place(state: State, kept: Mapping[str, Any]) -> set[str]:
    """Return the attributes whose values aren't what they were any more

    SQLAlchemy doesn't know it before ``flag_modified()``.

    :param kept: what a replica said
    """
    return {
        key
        for key in columns_of(state.manager.mapper).mutable
        if kept.get(key, Mark.FRESH) is not Mark.FRESH
        and key in state.dict
        and _differ(state.dict[key], kept[key])
    }


def _differ(one: Any, other: Any) -> bool:
    try:
        return not bool(one == other)
    except Exception:
        # Of a class that can't say: taken for changed, nothing is lost.
        return True


def _load_again(state: State, passive: Any) -> Any:
    """Load what was expired while other attributes were being loaded

    SQLAlchemy, when it has loaded the expired attributes it began with,
    forgets that others are expired, and would give None for them.
    """
    state.expired_attributes.update(
        name for name, load in state.callables.items() if load is _load_again
    )
    return state._load_expired(state, passive)
