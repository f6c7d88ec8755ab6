# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Who reads: a thread, or a request; and what it must see from now on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .consistency import ConsistencyToken, freshest

# How many scopes of AnyBlok's sessions a registry remembers.
MAX_SCOPES = 10_000


class Seen:
    """What a reader has read from a server, and no position covers yet

    :param server: its name
    :param instance: the running server behind the name; None: unknown
    :param at: when it read last, in seconds of ``time.monotonic()``
    """

    __slots__ = ("at", "instance", "server")

    def __init__(self, server: str, instance: Any, at: float) -> None:
        self.server = server
        self.instance = instance
        self.at = at


class Knowledge(NamedTuple):
    """What a reader has seen and done, as far as its next reads must know

    :param floor: the position that its reads must have
    :param seen: what it has read that the floor doesn't cover: of one server,
        but for threads that serve a request at the same time
    :param primary_until: seconds of ``time.monotonic()``: until then the
        primary alone will do
    :param written: the position after its last commit that wrote
    :param written_at: when that was asked, in seconds of ``time.monotonic()``
    :param unknown_write: True where that position hasn't been asked
    :param wrote_at: of its last commit after which there was no position to
        ask, in seconds of ``time.monotonic()``
    :param server: the one that its last unit of work has read from
    :param units: of work that it has read from there, one after the other
    """

    floor: ConsistencyToken | None = None
    seen: tuple[Seen, ...] = ()
    primary_until: float = 0.0
    written: ConsistencyToken | None = None
    written_at: float = 0.0
    unknown_write: bool = False
    wrote_at: float | None = None
    server: str | None = None
    units: int = 0

    def seen_with(self, seen: Seen) -> tuple[Seen, ...]:
        """Return what it has read with something that it has read now"""
        of = (seen.server, seen.instance)
        others = [x for x in self.seen if (x.server, x.instance) != of]
        return (*others, seen)

    def with_unit(self, server: str, seen: tuple[Seen, ...]) -> Knowledge:
        """Return the same after the begin of a unit of work

        :param server: that it reads from
        :param seen: what has been read then
        """
        units = self.units + 1 if self.server == server else 1
        return self._replace(server=server, units=units, seen=seen)

    def without_instances(self) -> Knowledge:
        """Return the same for another process, which has asked nobody yet"""
        return self._replace(
            seen=tuple(Seen(x.server, None, x.at) for x in self.seen)
        )


NOTHING = Knowledge()


@dataclass(eq=False)
class Reader:
    """A thread of the application, or one of its requests

    A request may go through several threads, one after the other or at the
    same time.

    :param wants_primary: True: its units of work start on the primary
    :param registry: the only one that it reads from; None: any
    """

    wants_primary: bool = False
    registry: Any = field(default=None, repr=False)
    knows: Knowledge = NOTHING
    #: when it has written last, in seconds of time.monotonic(): in shadow mode
    shadow_wrote_at: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def must_see(self, position: ConsistencyToken) -> None:
        """Let its next reads be at least as fresh as a position

        :param position: what is fresher already stays
        """
        with self._lock:
            floor = freshest(self.knows.floor, position)
            if floor is not self.knows.floor:
                self.knows = self.knows._replace(floor=floor)

    def must_ask_primary(self, until: float) -> None:
        """Let its next reads go to the primary

        :param until: seconds of ``time.monotonic()``
        """
        with self._lock:
            until = max(until, self.knows.primary_until)
            self.knows = self.knows._replace(primary_until=until)

    def note_unit(self, server: str) -> None:
        """Note that a unit of work begins to read from a server

        :param server: its name
        """
        with self._lock:
            self.knows = self.knows.with_unit(server, self.knows.seen)

    def note_units(self, units: int) -> None:
        """Note that further units of work have read from the same server

        :param units: how many
        """
        with self._lock:
            units += self.knows.units
            self.knows = self.knows._replace(units=units)

    def note_read(self, seen: Seen, begins: bool = False) -> None:
        """Note that it has read from a server

        :param seen: the server, and when
        :param begins: True for the first read of a unit of work
        """
        with self._lock:
            if begins:
                together = self.knows.seen_with(seen)
                self.knows = self.knows.with_unit(seen.server, together)
            else:
                self._add(seen)

    def _add(self, seen: Seen) -> None:
        self.knows = self.knows._replace(seen=self.knows.seen_with(seen))

    def note_covered(
        self, seen: Sequence[Seen], position: ConsistencyToken | None
    ) -> None:
        """Note a position that has what the reader had seen

        :param seen: what it had seen
        :param position: that has it all; None: nobody can tell, forget it
        """
        with self._lock:
            knows = self.knows
            self.knows = knows._replace(
                floor=freshest(knows.floor, position),
                seen=tuple(x for x in knows.seen if x not in seen),
            )

    def note_written(self, position: ConsistencyToken, at: float) -> None:
        """Note the position after a commit

        It has all that was read before, on any server.

        :param position: of the primary
        :param at: when it was asked, in seconds of ``time.monotonic()``
        """
        with self._lock:
            knows = self.knows
            self.knows = knows._replace(
                floor=freshest(knows.floor, position),
                seen=(),
                written=freshest(knows.written, position),
                written_at=at,
                unknown_write=False,
            )

    def note_write_without_position(self, at: float, sticky: float) -> None:
        """Note a commit where the servers have no positions

        :param at: when, in seconds of ``time.monotonic()``
        :param sticky: seconds, for which the primary alone will do
        """
        self.must_ask_primary(at + sticky)
        with self._lock:
            self.knows = self.knows._replace(wrote_at=at)

    def note_unknown_write(self, seen: Seen | None) -> None:
        """Note a commit after which no position has been asked

        :param seen: the primary, after the commit; None: it serves all reads
        """
        with self._lock:
            if seen is not None:
                self._add(seen)

            self.knows = self.knows._replace(unknown_write=True)


class Readers:
    """The readers of a registry: one for each of AnyBlok's sessions

    :param scope: AnyBlok's function that says whose session it is; None: the
        thread's
    """

    def __init__(self, scope: Callable[[], Hashable] | None = None) -> None:
        self._scope = scope
        self._of_thread = threading.local()
        self._of_scope: dict[Hashable, Reader] = {}
        self._lock = threading.Lock()

    def current(self, registry: Any) -> Reader:
        """Return who reads: the request, else AnyBlok's thread or scope

        :param registry: that is read from
        """
        reader = _request.get()
        if reader is not None and reader.registry in (None, registry):
            return reader

        if self._scope is not None:
            return self._scoped(self._scope())

        mine: Reader | None = getattr(self._of_thread, "reader", None)
        if mine is None:
            mine = self._of_thread.reader = Reader()

        return mine

    def _scoped(self, key: Hashable) -> Reader:
        known = self._of_scope
        with self._lock:
            reader = known.pop(key) if key in known else Reader()
            known[key] = reader
            if len(known) > MAX_SCOPES:
                # The one used least lately: nobody says when a scope ends.
                del known[next(iter(known))]

        return reader


_request: ContextVar[Reader | None] = ContextVar(
    "anyblok_multi_engines_reader", default=None
)


@contextmanager
def serving(reader: Reader) -> Iterator[Reader]:
    """Let what runs in the block, in any thread, read for a request

    A ContextVar goes with the request into the threads that serve it, and
    what is in it is the same object there.

    :param reader: of the request
    """
    token = _request.set(reader)
    try:
        yield reader
    finally:
        _request.reset(token)
