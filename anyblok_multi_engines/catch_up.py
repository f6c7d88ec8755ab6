# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""How long replicas take to have what was written, by experience.

Only a hint: when to ask a replica, and whether to wait for it at all. What it
has, it says itself.
"""

from __future__ import annotations

import time
from typing import Any

from .consistency import ConsistencyToken
from .health.probe import replica_position, wait_for
from .positions import Link
from .reader import Reader

# Seconds between two questions to a replica that is waited for: the first,
# and the longest. Each is twice as long as the one before.
FIRST_PAUSE = 0.0005
LONGEST_PAUSE = 0.02

# Seconds for which a replica isn't waited for again, where another server can
# serve, after it was waited for in vain.
WITHOUT_HOPE = 1.0

# What is left of a delay that was enough: so it finds out that less is.
LESS = 0.98


class CatchUp:
    """What was learned of replicas that were waited for

    Threads share it; the last one to learn wins.
    """

    def __init__(self) -> None:
        # By the servers' names, in seconds.
        self._delays: dict[str, float] = {}
        self._in_vain_at: dict[str, float] = {}

    def until(self, name: str, reader: Reader, wait: float) -> float | None:
        """Return how long a replica is worth waiting for from the first look

        :param name: of the replica
        :param reader: who reads
        :param wait: seconds that it waits at most
        :rtype: seconds of ``time.monotonic()``; None: it is just asked
        """
        expected = self._expected_at(name, reader)
        now = time.monotonic()
        if expected is None or expected > now + wait or self.is_hopeless(name):
            return None

        return now + wait

    def is_hopeless(self, name: str) -> bool:
        """Return True where a replica was waited for in vain a moment ago

        :param name: of the replica
        """
        at = self._in_vain_at.get(name)
        return at is not None and time.monotonic() - at < WITHOUT_HOPE

    def has_reached(
        self,
        name: str,
        driver: Any,
        link: Link,
        reader: Reader,
        floor: ConsistencyToken,
        until: float | None,
    ) -> bool:
        """Ask a replica until it has a position, or until it is too late

        It is asked once at least.

        :param name: of the replica
        :param driver: the connection to it
        :param link: of the connection
        :param reader: who reads
        :param floor: the position
        :param until: seconds of ``time.monotonic()``; None: it is just asked
        :exception: the driver's
        """
        if until is not None:
            expected = self._expected_at(name, reader) or 0.0
            _sleep_until(min(expected, until))

        pause, looks = FIRST_PAUSE, 0
        while True:
            looks += 1
            known = replica_position(driver)
            if known is None:
                return False

            link.note(known)
            if floor.is_reached_by(known.position):
                self._note_reached(name, reader, looks)
                return True

            if until is None or not floor.can_be_reached_from(known.position):
                return False

            left = until - time.monotonic()
            if left <= 0:
                if looks > 1:
                    self._in_vain_at[name] = time.monotonic()

                return False

            if not wait_for(driver, floor, left):
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE)

    def _expected_at(self, name: str, reader: Reader) -> float | None:
        """Return when a replica should have what a reader has written"""
        delay = self._delays.get(name)
        if delay is None or not _waits_for_its_own(reader):
            return None

        return reader.knows.written_at + delay

    def _note_reached(self, name: str, reader: Reader, looks: int) -> None:
        """Note how long a replica has taken, if that was found out

        :param looks: how many were needed
        """
        if not _waits_for_its_own(reader):
            return

        self._in_vain_at.pop(name, None)
        taken = time.monotonic() - reader.knows.written_at
        delay = self._delays.get(name)
        if looks > 1:
            self._delays[name] = taken
        elif delay is not None:
            self._delays[name] = LESS * min(taken, delay)


def _waits_for_its_own(reader: Reader) -> bool:
    """Return True where all that a reader must see is what it wrote last"""
    knows = reader.knows
    return knows.written is not None and knows.written is knows.floor


def _sleep_until(at: float) -> None:
    left = at - time.monotonic()
    if left > 0:
        time.sleep(left)
