# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Which instances a replica has loaded, and what it said of them.

Nothing is copied when an instance is loaded: what a replica said is what the
instance holds, or what SQLAlchemy keeps of a change as the value before it. A
copy is made where these don't tell: ``flag_modified()`` leaves no value, a JSON
that is changed in place is the same object before and after, and an instance
that is expired holds nothing.

It is noted in the instance's state, which goes with it to another session, and
through pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum, auto
from functools import cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import Column, event, types
from sqlalchemy.orm import (
    LoaderCallableStatus,
    Mapper,
    PassiveFlag,
    RelationshipDirection,
    Session,
)
from sqlalchemy.orm.attributes import instance_state

if TYPE_CHECKING:
    # Of an instance of any model.
    from sqlalchemy.orm import ClassManager, InstanceState

    State = InstanceState[Any]

#: The argument of ``get_bind`` that says where a statement went.
CALL = "anyblok_call"

# In an instance's state, in the info of a session and of a mapped class.
_READ = "anyblok_multi_engines_read"
_READS = "anyblok_multi_engines.reads"
_COLUMNS = "anyblok_multi_engines.columns"

#: Types whose values can't be changed in place; others may be added. Of the
#: rest, each value is looked at when it is loaded.
PLAIN_TYPES: set[type] = set(
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

NOTHING: Mapping[str, Any] = {}
NO_VALUE = LoaderCallableStatus.NO_VALUE

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


class Read(NamedTuple):
    """What a replica said of an instance

    It is never changed: what one call of a replica has loaded shares one.

    :param server: the name of the replica
    :param values: by attribute, where the instance's state doesn't tell
    """

    server: str
    values: Mapping[str, Any] = NOTHING


class Kept(NamedTuple):
    """What a replica said of an instance that has been expired since

    A :class:`Read` in its cheapest form: most are never asked.

    :param held: the values of its columns, in their order
    """

    server: str
    columns: tuple[str, ...]
    held: tuple[Any, ...]

    @property
    def values(self) -> dict[str, Any]:
        """Return them by attribute"""
        return dict(zip(self.columns, self.held, strict=True))


class Columns(NamedTuple):
    """The attributes of a mapper that are columns of its tables

    :param values_of: returns their values, in their order, of a dictionary
    """

    keys: frozenset[str]
    primary: frozenset[str]
    mutable: tuple[str, ...]
    order: tuple[str, ...]
    values_of: Callable[[dict[str, Any]], tuple[Any, ...]]


def listen(target: type) -> None:
    """Note what replicas load of the models that have a class as a base

    :param target: of models to come, or that are there
    """
    for name, listener in (
        ("load", _note_load),
        ("refresh", _note_refresh),
        ("expire", _note_expiry),
        ("pickle", _note_pickle),
        ("unpickle", _note_unpickle),
    ):
        event.listen(target, name, listener, propagate=True, raw=True)

    event.listen(target, "mapper_configured", _listen_to_flags, propagate=True)


def read_of(state: State) -> Read | Kept | None:
    """Return what a replica said of an instance; None: nothing that counts

    Where it says nothing of an attribute, :func:`said_of` does.

    :param state: of the instance
    """
    read: Read | Kept | None = getattr(state, _READ, None)
    return read


def said_of(state: State, key: str) -> Any:
    """Return what a replica said of an attribute; NO_VALUE: nothing is known

    :param state: of the instance
    :param key: of the attribute, a column's
    """
    read = read_of(state)
    if read is None:
        return NO_VALUE

    if key in read.values:
        return read.values[key]

    if key in state.committed_state:
        return state.committed_state[key]

    value = state.dict.get(key, NO_VALUE)
    if key in columns_of(state.manager).mutable and not isinstance(
        value, _IMMUTABLE
    ):
        # It wasn't copied, and it may have been changed in place.
        return NO_VALUE

    return value


def columns_of(manager: ClassManager[Any]) -> Columns:
    """Return which attributes of a mapped class are columns"""
    columns: Columns | None = manager.info.get(_COLUMNS)
    if columns is None:
        found = {
            prop.key: prop.columns[0]
            for prop in manager.mapper.column_attrs
            if isinstance(prop.columns[0], Column)
        }
        # Of one key, itemgetter returns no tuple.
        order = tuple(found) if len(found) > 1 else (*found, *found)
        columns = manager.info[_COLUMNS] = Columns(
            frozenset(found),
            frozenset(key for key, x in found.items() if x.primary_key),
            tuple(
                key
                for key, x in found.items()
                if type(x.type) not in PLAIN_TYPES
            ),
            order,
            itemgetter(*order),
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

    states = (
        session.identity_map.all_states()
        if reads is Mark.ANYWHERE
        else filter(session.identity_map.contains_state, reads)
    )
    deleted = session.deleted
    changed = []
    for state in states:
        read = read_of(state)
        if read is not None and (
            (deleted and state.obj() in deleted)
            or _expire_unchanged(session, state, read)
        ):
            changed.append(state)

    if changed:
        # They are expired when they are flushed: what is written then isn't
        # what the replica said.
        session.info[_READS] = changed


def expect_replica_reads(session: Session, states: Iterable[State]) -> None:
    """Let the next call of expire_replica_reads look at instances, too

    :param states: of what another session may have loaded
    """
    reads = session.info.get(_READS, ())
    if reads is not Mark.ANYWHERE:
        session.info[_READS] = [*reads, *states]


def note_lazy_load(session: Session, server: str, options: Any) -> None:
    """Note that a replica gives what a relationship holds

    Of an instance that the primary has loaded: of its own rows, SQLAlchemy
    tells the listeners.

    :param server: the name of the replica
    :param options: the execution options of the statement
    """
    load_options = options.get("_sa_orm_load_options")
    state = getattr(load_options, "_lazy_loaded_from", None)
    if state is not None:
        session.info[_READS] = Mark.ANYWHERE
        if read_of(state) is None:
            _note(state, Read(server, _fresh(state)))


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

    said = _all_said(source, read)
    known = read_of(merged)
    values = _fresh(merged) if known is None else known.values
    keys = changed_keys(merged) if load else said.keys()
    copied = {key: said[key] for key in keys & said.keys()}
    _note(merged, Read(read.server, {**values, **copied}))
    session.info[_READS] = Mark.ANYWHERE


def note_compared(state: State, keys: Iterable[str]) -> None:
    """Note that attributes are the primary's by now, and locked there

    :param state: of the instance
    :param keys: the attributes that have been compared
    """
    read = read_of(state)
    if read is not None:
        fresh = dict.fromkeys(keys, Mark.FRESH)
        _note(state, Read(read.server, {**read.values, **fresh}))


@cache
def read_from(server: str) -> Read:
    """Return what a replica said of instances whose states tell it

    :param server: the name of the replica
    """
    return Read(server)


def note_attached(session: Session, instance: Any) -> None:
    """Note that an instance comes from another session

    :param instance: that a replica may have loaded there
    """
    if read_of(instance_state(instance)) is not None:
        session.info[_READS] = Mark.ANYWHERE


def _note(state: State, read: Read | Kept) -> None:
    setattr(state, _READ, read)


def _note_load(state: State, context: Any) -> None:
    """Note where an instance comes from that is new to its session

    Each instance that is loaded pays for it.
    """
    if context is None:
        # A merge without load.
        return

    call = context.bind_arguments.get(CALL)
    if call is not None and call.read is not None:
        setattr(state, _READ, call.read)
        context.session.info[_READS] = Mark.ANYWHERE


def _note_copies(state: State, context: Any) -> None:
    """Keep what a replica said that may be changed in place"""
    mutable = columns_of(state.manager).mutable
    if context is None or not _may_change(state.dict, mutable):
        return

    read = read_of(state)
    if read is not None:
        _note(state, Read(read.server, _copies(state, mutable)))


def _note_refresh(state: State, context: Any, names: Any) -> None:
    """Note where attributes of an instance come from that were read again

    :param names: of the attributes; None: all of them
    """
    # Not of rows: a composite value, an evaluated bulk update.
    arguments: Mapping[str, Any] = getattr(context, "bind_arguments", NOTHING)
    call = arguments.get(CALL)
    if call is None:
        return

    read = read_of(state)
    if names is None:
        if call.from_replica:
            _note_load(state, context)
            _note_copies(state, context)
        elif read is not None:
            delattr(state, _READ)

        return

    if call.from_replica:
        context.session.info[_READS] = Mark.ANYWHERE
    elif read is None:
        return

    columns = columns_of(state.manager)
    if read is not None and columns.keys.isdisjoint(names):
        # A relationship, of each instance that a query finds again.
        return

    keys = state.dict.keys() & columns.keys.intersection(names)
    if not call.from_replica:
        note_compared(state, keys)
        return

    values = _fresh(state) if read is None else read.values
    values = {key: x for key, x in values.items() if key not in keys}
    _note(state, Read(call.server, {**values, **_copies(state, keys)}))


def _note_expiry(state: State, names: Any) -> None:
    """Forget what a replica said of attributes that are expired"""
    read = read_of(state)
    if read is None:
        return

    if names is None:
        delattr(state, _READ)
    elif read.values:
        values = {key: x for key, x in read.values.items() if key not in names}
        _note(state, Read(read.server, values))


def _note_pickle(state: State, pickled: dict[str, Any]) -> None:
    pickled[_READ] = read_of(state)


def _note_unpickle(state: State, pickled: Mapping[str, Any]) -> None:
    read = pickled.get(_READ)
    if read is not None:
        _note(state, read)


def _listen_to_flags(mapper: Mapper[Any], class_: type) -> None:
    manager = mapper.class_manager
    if columns_of(manager).mutable:
        event.listen(class_, "load", _note_copies, raw=True)

    for key in columns_of(manager).keys:
        event.listen(manager[key], "modified", _note_flag, raw=True)


def _note_flag(state: State, initiator: Any) -> None:
    """Keep what a replica said of an attribute, before it is flagged

    SQLAlchemy forgets its value then.
    """
    read = read_of(state)
    if read is None:
        return

    value = said_of(state, initiator.key)
    if not isinstance(value, LoaderCallableStatus):
        _note(state, Read(read.server, {**read.values, initiator.key: value}))


def _all_said(state: State, read: Read | Kept) -> dict[str, Any]:
    """Return what a replica said of an instance, by attribute

    What :func:`said_of` returns for each of its columns.
    """
    columns = columns_of(state.manager)
    held, before = state.dict, state.committed_state
    said = {key: held[key] for key in columns.keys if key in held}
    for key in columns.mutable:
        if not isinstance(held.get(key), _IMMUTABLE):
            said.pop(key, None)

    if before:
        said.update({key: before[key] for key in columns.keys & before.keys()})

    if read.values:
        said.update(read.values)

    return said


def _fresh(state: State) -> dict[str, Any]:
    return dict.fromkeys(
        state.dict.keys() & columns_of(state.manager).keys, Mark.FRESH
    )


def _may_change(held: Mapping[str, Any], keys: Iterable[str]) -> bool:
    """Return True where a value may be changed in place"""
    for key in keys:  # noqa: SIM110, each instance that is loaded pays for it
        if not isinstance(held.get(key), _IMMUTABLE):
            return True

    return False


def _copies(state: State, keys: Iterable[str]) -> dict[str, Any]:
    """Return copies of those values that may be changed in place"""
    held = state.dict
    mutable = columns_of(state.manager).mutable
    return {
        key: _copy(held[key])
        for key in keys
        if key in mutable
        and key in held
        and not isinstance(held[key], _IMMUTABLE)
    }


def _copy(value: Any) -> Any:
    try:
        return deepcopy(value)
    except Exception:
        # What can't be copied is taken for a value that isn't changed in
        # place; a read must not fail for it.
        return value


def _expire_unchanged(
    session: Session, state: State, read: Read | Kept
) -> bool:
    """Expire the attributes of an instance that nobody changed

    Without SQLAlchemy's cascade "refresh-expire", which would lose changes of
    other instances.

    :param read: what a replica said
    :rtype: True where there are changes, and what the replica said stays
    """
    # An expired attribute may be the reason of the call.
    loading = bool(state.expired_attributes)
    kept = _kept(state, read)
    changed: set[str] = set()
    names: Collection[str] | None = None
    if not isinstance(kept, Kept):
        changed, names = _parted(state, read.values)

    if names is None:
        state._expire(state.dict, session.identity_map._modified)
    else:
        state._expire_attributes(state.dict, names)

    # The application may have an old value in its hands, and compute a new one
    # from it: until the primary has said otherwise, it counts.
    _note(state, kept)
    if loading:
        if names is None:
            names = columns_of(state.manager).keys

        state.callables = {
            **state.callables,
            **{
                name: _load_again
                for name in names
                if getattr(state.manager[name].impl, "load_on_unexpire", False)
            },
        }

    return bool(changed)


def _parted(
    state: State, values: Mapping[str, Any]
) -> tuple[set[str], set[str] | None]:
    """Return what is changed, and what is to be expired; None: all of it

    :param values: what a replica said, where the state doesn't tell
    """
    changed = changed_keys(state) | _changed_in_place(state, values)
    fresh = {key for key, value in values.items() if value is Mark.FRESH}
    stay = changed | fresh
    if not stay:
        return changed, None

    stay |= columns_of(state.manager).primary
    return changed, state.manager.keys() & state.dict.keys() - stay


def _kept(state: State, read: Read | Kept) -> Read | Kept:
    """Return what a replica said of an instance, before it is expired"""
    columns = columns_of(state.manager)
    held = state.dict
    if not (
        read.values
        or state.committed_state
        or _may_change(held, columns.mutable)
    ):
        try:
            return Kept(read.server, columns.order, columns.values_of(held))
        except KeyError:
            # Not all of its columns have been loaded.
            pass

    return Read(read.server, _all_said(state, read))


def _changed_in_place(state: State, values: Mapping[str, Any]) -> set[str]:
    """Return the attributes whose values aren't what they were any more

    SQLAlchemy doesn't know it before ``flag_modified()``.

    :param values: what a replica said
    """
    return {
        key
        for key in columns_of(state.manager).mutable
        if values.get(key, Mark.FRESH) is not Mark.FRESH
        and key in state.dict
        and _differ(state.dict[key], values[key])
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
