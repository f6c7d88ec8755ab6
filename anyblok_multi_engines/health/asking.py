# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The questions to the servers: one thread for each server."""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import Protocol

from .model import Observation, PoolUse
from .probe import summary_of


class Probe(Protocol):
    """Asks one server how it is; it has a connection of its own"""

    def ask(self) -> Observation:
        """Return its answer, however long it takes"""

    def cut_off(self) -> None:
        """End a question that takes too long; any thread may call it"""

    def pool_use(self) -> PoolUse | None:
        """Return the use of its engine's pool, without a question"""

    def close(self) -> None:
        """Close the connection"""


class Asking:
    """One question to one server

    :param asker: the thread that asks it
    """

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self.answer: Observation | None = None
        self.failure: str | None = None
        #: Set when one of them is known
        self.is_over = threading.Event()

    @property
    def is_pending(self) -> bool:
        """Return True while it may be answered"""
        return not self.is_over.is_set() and self._asker.is_alive()


class Asker(threading.Thread):
    """Asks one server, one question after the other

    A thread that stays takes less than one for each question. It keeps no
    process alive.

    :param probe: of the server
    :param stopped: set when the monitor has ended
    """

    def __init__(self, probe: Probe, stopped: threading.Event) -> None:
        super().__init__(name="anyblok-multi-engines-probe", daemon=True)
        self._probe = probe
        self._stopped = stopped
        self._wanted: SimpleQueue[Asking | None] = SimpleQueue()

    def ask(self) -> Asking:
        """Have the server asked, and wait for nothing"""
        asking = Asking(self)
        self._wanted.put(asking)
        return asking

    def end(self) -> None:
        """Have the thread end after its last question; it takes no more"""
        self._wanted.put(None)

    def run(self) -> None:
        """Ask, and keep the answers, until the end"""
        while (asking := self._wanted.get()) is not None:
            self._ask(asking)

    def _ask(self, asking: Asking) -> None:
        try:
            asking.answer = self._probe.ask()
        except BaseException as error:
            # Also of an application's own listener of "connect": whatever it
            # is, this server doesn't serve, and is asked again.
            asking.failure = type(error).__name__
            with suppress(Exception):
                asking.failure = summary_of(error)

            self._probe.close()
        finally:
            if self._stopped.is_set():
                # Who has stopped may not have seen the connection.
                self._probe.close()

            asking.is_over.set()
