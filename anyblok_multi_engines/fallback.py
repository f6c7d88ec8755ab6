# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""How many units of work read from the primary for want of a replica."""

from __future__ import annotations

import gc
import threading
import time
from queue import Empty, SimpleQueue
from typing import NamedTuple

# Seconds that a read waits at most for a slot.
WAIT = 2.0

# Seconds between two looks for slots of threads that have died.
LOOK = 0.25


class Fallback(NamedTuple):
    """What a read does that no replica can serve

    :param to_primary: False: it is an error
    :param limit: units of work that read from the primary for that at the
        same time; None: any number
    """

    to_primary: bool = True
    limit: int | None = None


class Slot:
    """The right of one unit of work to read from the primary

    It ends with :meth:`give_back`, or with its owner: a session that is
    collected without an end gives it back all the same.
    """

    __slots__ = ("_free", "_holders")

    def __init__(
        self, free: SimpleQueue[None], holders: dict[int, threading.Thread]
    ) -> None:
        self._free: SimpleQueue[None] | None = free
        self._holders = holders
        holders[id(self)] = threading.current_thread()

    def give_back(self) -> None:
        """Let another unit of work have it; more than once does no harm"""
        free, self._free = self._free, None
        if free is not None:
            self._holders.pop(id(self), None)
            free.put(None)

    __del__ = give_back


class Slots:
    """The slots of a registry

    No lock is taken: the collector of garbage may give a slot back in the
    middle of anything.

    :param limit: how many there are
    :param wait: seconds that :meth:`take` waits at most
    """

    def __init__(self, limit: int, wait: float = WAIT) -> None:
        self.limit = limit
        self.wait = wait
        # Its put() may be called from __del__, as Python's documentation says.
        self._free: SimpleQueue[None] = SimpleQueue()
        self._holders: dict[int, threading.Thread] = {}
        for _ in range(limit):
            self._free.put(None)

    def take(self) -> Slot | None:
        """Return a slot; None: none has become free in time"""
        deadline = time.monotonic() + self.wait
        left = 0.0
        while True:
            try:
                self._free.get(timeout=max(0.0, min(left, LOOK)))
                return Slot(self._free, self._holders)
            except Empty:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None

            self._collect_dead()

    def _collect_dead(self) -> None:
        """Collect the sessions of threads that have ended without an end

        A session is a part of a cycle: nothing else would do so in time.
        """
        dead = [
            key
            for key, thread in self._holders.copy().items()
            if not thread.is_alive()
        ]
        for key in dead:
            # Once: another thread may go on with its unit of work.
            self._holders.pop(key, None)

        if dead:
            gc.collect()
