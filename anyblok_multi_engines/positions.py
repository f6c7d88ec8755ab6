# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""How far the servers are known to be.

What a replica has replayed it has for ever, as long as it runs: a standby
that restarts may show an older state at first. A connection that has lived
since before a position was asked is the proof that it still runs.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakValueDictionary

from .consistency import ConsistencyToken

# Of the primary's positions: seconds between two that are kept, and how many.
# Together they reach back most of an hour, the finer the younger.
SPACINGS = (0.001, 0.05, 1.0, 10.0)
KEPT = 256

# Bytes. Few records are longer: of a split index page, with images of pages.
LONG_RECORD = 0x10000

OnPromotion = Callable[[ConsistencyToken, ConsistencyToken], None]


class Known(NamedTuple):
    """A position, and when it was asked

    :param asked_at: seconds of ``time.monotonic()``, before the question
    :param position: of the answer
    :param since: when the connection that was asked was made: the server has
        run from then on
    :param visible: of the primary, a position that has all that could be seen
        there, where that is less; see :mod:`.health.probe`
    :param is_whole: False where that may end in the middle of a record, which
        no replica can replay
    """

    asked_at: float
    position: ConsistencyToken
    since: float = 0.0
    visible: ConsistencyToken | None = None
    is_whole: bool = True

    @property
    def shown(self) -> ConsistencyToken:
        """Return a position that has all that could be seen on the server"""
        return self.visible or self.position

    @property
    def due(self) -> ConsistencyToken:
        """Return a position that a replica in step has replayed

        It isn't in the middle of a record, if that isn't a very long one.
        """
        if self.is_whole:
            return self.shown

        return replace(self.shown, lsn=max(0, self.shown.lsn - LONG_RECORD))


class Lag(NamedTuple):
    """How far a replica is behind the primary

    :param bytes: of WAL that it has not replayed
    :param seconds: since the primary is known to have been where it is now
    """

    bytes: int
    seconds: float


class Instance:
    """A running server, and how far it is known to be"""

    __slots__ = ("__weakref__", "known")

    def __init__(self) -> None:
        self.known: Known | None = None

    def note(self, known: Known) -> None:
        """Note how far it is

        :param known: what it answered; an older answer says nothing new
        """
        before = self.known
        if before is None or before.asked_at <= known.asked_at:
            self.known = known


class Link(NamedTuple):
    """What a connection of the pool leads to

    :param instance: the running server
    :param since: when it was connected, in seconds of ``time.monotonic()``;
        0.0 behind a pooler, which doesn't tell when it connects anew
    """

    instance: Instance
    since: float

    @property
    def position(self) -> ConsistencyToken | None:
        """Return a position that its server has reached for sure"""
        known = self.instance.known
        if known is None or known.asked_at < self.since:
            # Of before a restart, as far as is known.
            return None

        return known.position

    def note(self, known: Known) -> None:
        """Note what the connection's server has answered

        :param known: how far it is
        """
        self.instance.note(known._replace(since=self.since))


class Positions:
    """How far the servers of a registry are known to be

    :param on_promotion: called with the last position of a primary, and the
        first of the one that has taken its place
    """

    def __init__(self, on_promotion: OnPromotion | None = None) -> None:
        self._on_promotion = on_promotion
        # Guards the samples and the instances; readers of an instance take
        # what it knows as it is.
        self._lock = threading.Lock()
        self._samples = tuple(
            (spacing, deque[Known](maxlen=KEPT)) for spacing in SPACINGS
        )
        self._instances: WeakValueDictionary[Hashable, Instance] = (
            WeakValueDictionary()
        )
        self._latest: dict[str, Instance] = {}
        #: PostgreSQL's system identifier; None: not known yet
        self.system_id: int | None = None
        #: of the primary, when it was asked last
        self.timeline = 0

    def instance(self, server: str, key: Hashable) -> Instance:
        """Return a running server

        :param server: its name
        :param key: what tells it from another behind the same name, and from
            itself before a restart
        """
        with self._lock:
            found = self._instances.setdefault((server, key), Instance())
            self._latest[server] = found

        return found

    def is_foreign(self, link: Link) -> bool:
        """Return True where a connection leads to another cluster

        :param link: of the connection
        """
        known = link.instance.known
        return known is not None and self.system_id not in (
            None,
            known.position.system_id,
        )

    def known_of(self, server: str) -> Known | None:
        """Return how far a replica was when it was asked last; a hint

        :param server: its name
        :rtype: None where it has not been asked
        """
        latest = self._latest.get(server)
        return None if latest is None else latest.known

    def note_primary(self, known: Known) -> None:
        """Note how far the primary is

        :param known: what it answered; one that has been left after a
            promotion says nothing any more
        """
        if self.is_left(known.position):
            return

        self.system_id = known.position.system_id
        self.timeline = known.position.timeline
        before = None
        with self._lock:
            newest = self._samples[0][1]
            if newest and newest[-1].position.timeline != (
                known.position.timeline
            ):
                before = newest[-1].position
                # A promotion: what is before it can't be compared.
                for _, samples in self._samples:
                    samples.clear()

            for spacing, samples in self._samples:
                if not samples or (
                    known.asked_at - samples[-1].asked_at >= spacing
                ):
                    samples.append(known)

        after = known.position
        if before is None or before.system_id != after.system_id:
            return

        if self._on_promotion is not None:
            self._on_promotion(before, after)

    def is_left(self, position: ConsistencyToken) -> bool:
        """Return True where a primary is of before a promotion

        :param position: of the primary
        """
        return (
            position.system_id == self.system_id
            and position.timeline < self.timeline
        )

    def lag_of(
        self, position: ConsistencyToken | None, now: float
    ) -> Lag | None:
        """Return how far a replica is behind the primary

        Without a timestamp of any server: the primary was once where the
        replica is now, and our own clock says when we have seen it there. What
        it needn't flush, and so doesn't send, is nothing to be behind of: an
        idle primary would make its replicas old.

        :param position: of the replica; None: unknown
        :param now: seconds of ``time.monotonic()``
        :rtype: None where it is unknown
        """
        with self._lock:
            newest = self._samples[0][1][-1] if self._samples[0][1] else None
            if position is None or newest is None:
                return None

            if newest.due.is_reached_by(position):
                return Lag(0, 0.0)

            if newest.position.timeline != position.timeline:
                return None

            last = self._last_reached_by(position)

        return Lag(newest.due.lsn - position.lsn, now - last.asked_at)

    def _last_reached_by(self, position: ConsistencyToken) -> Known:
        """Return the primary's last sample that a replica has; else the first

        :param position: of the replica
        """
        kept = [samples for _, samples in self._samples if samples]
        found = (
            next(
                (x for x in reversed(y) if x.due.is_reached_by(position)),
                None,
            )
            for y in kept
        )
        passed = [x for x in found if x is not None]
        if passed:
            return max(passed, key=_asked_at)

        return min((samples[0] for samples in kept), key=_asked_at)

    def primary_since(self, at: float) -> Known | None:
        """Return the first known position of the primary that was asked since

        What anybody has committed before, or read on any server, is in it.

        :param at: seconds of ``time.monotonic()``
        """
        with self._lock:
            found = [
                samples[index]
                for _, samples in self._samples
                if (index := bisect_left(samples, (at,))) < len(samples)
            ]

        return min(found, key=_asked_at, default=None)


def _asked_at(known: Known) -> float:
    return known.asked_at
