# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The questions to the servers: one thread for each server."""

from __future__ import annotations

import threading
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
    """One question to one server"""

    def __init__(self) -> None:
        self.answer: Observation | None = None
        self.failure: str | None = None
        #: Set when either of them is known
        self.is_over = threading.Event()


class Asker(threading.Thread):
    """Asks one server, one question after the other

    A thread that stays takes less than one for each question. It keeps no
    process alive.

    :param probe: of the server
    :param stopped: set when nobody asks it again
    """

    def __init__(self, probe: Probe, stopped: threading.Event) -> None:
        super().__init__(name="anyblok-multi-engines-probe", daemon=True)
        self._probe = probe
        self._stopped = stopped
        self._wanted: SimpleQueue[Asking | None] = SimpleQueue()

    def ask(self) -> Asking:
        """Have the server asked, and wait for nothing"""
        asking = Asking()
        self._wanted.put(asking)
        return asking

    def end(self) -> None:
        """Have the thread end after its last question"""
        self._wanted.put(None)

    def run(self) -> None:
        """Ask, and keep the answers, until the end"""
        while (asking := self._wanted.get()) is not None:
            try:
                asking.answer = self._probe.ask()
            except Exception as error:
                # Also of an application's own listener of "connect": whatever
                # it is, this server doesn't serve.
                asking.failure = summary_of(error)
                self._probe.close()
            finally:
                asking.is_over.set()

        if self._stopped.is_set():
            # Who has stopped may not have seen the connection.
            self._probe.close()
