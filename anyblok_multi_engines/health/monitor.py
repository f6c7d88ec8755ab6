# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The owner of the Snapshot, and the thread that waits for a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from logging import getLogger

from sqlalchemy import Engine

from ..topology import Server
from .model import ServerHealth, Snapshot, Status
from .probe import failure_of

logger = getLogger(__name__)

# Seconds between two questions to a server that is down.
CHECK_INTERVAL = 1.0

# Seconds that stop() waits for a probe: it is bounded by the connect timeout,
# unless its server hangs right after it has accepted the connection.
PATIENCE = 5.0


class Monitor:
    """Knows which replicas can serve reads

    A server leaves when a connection to it fails, and comes back when a probe
    succeeds. The thread lives only while a server is down.

    :param engines: of the servers to watch
    :param probe: returns why a server can't serve, or None
    :param interval: seconds between two probes of a server that is down
    :param clock: seconds, monotonic
    """

    def __init__(
        self,
        engines: Mapping[Server, Engine],
        probe: Callable[[Engine], str | None] = failure_of,
        interval: float = CHECK_INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engines = {
            server.name: (server, engine) for server, engine in engines.items()
        }
        self._probe = probe
        self._interval = interval
        self._clock = clock
        # Guards the change of the snapshot and of the thread; readers take
        # the snapshot as it is.
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.snapshot = Snapshot()

    def step(self, names: Iterable[str] | None = None) -> None:
        """Probe servers once, and publish what they say

        :param names: of the servers; None: all
        """
        asked = tuple(self._engines if names is None else names)
        if not asked:
            return

        # Side by side: each of those that hang costs a connect timeout.
        with ThreadPoolExecutor(len(asked)) as pool:
            engines = [self._engines[name][1] for name in asked]
            failures = list(pool.map(self._probe, engines))

        for name, failure in zip(asked, failures, strict=True):
            if failure is None:
                self.report_ready(name)
            else:
                self.report_down(name, failure)

    def report_ready(self, name: str) -> None:
        """Note that a server serves

        :param name: of the server
        """
        before = self._publish(name, Status.READY, "answers")
        if before is Status.DOWN:
            logger.info("%s is ready again", self._engines[name][0])

    def report_down(self, name: str, reason: str) -> None:
        """Note that a server doesn't serve; its reads go elsewhere

        :param name: of the server
        :param reason: for a person, without a password
        """
        before = self._publish(name, Status.DOWN, reason)
        if before is not Status.DOWN:
            logger.warning(
                "%s is out of the reads until it answers: %s",
                self._engines[name][0],
                reason,
            )

        self._watch()

    def stop(self) -> None:
        """End the thread, and wait for its last probe

        No longer than :data:`PATIENCE`; the thread keeps no process alive.
        """
        with self._lock:
            self._stopped.set()
            thread = self._thread

        if thread is not None and thread is not threading.current_thread():
            thread.join(PATIENCE)

    def run(self) -> None:
        """Probe the servers that are down until none is, or until stopped"""
        while not self._stopped.wait(self._interval):
            try:
                self.step(self.snapshot.down)
            except Exception:
                logger.exception("The monitor failed, and goes on")

            with self._lock:
                # Under the lock: a server that goes down from here on starts
                # a new thread.
                if not self.snapshot.down:
                    self._thread = None
                    return

    def _publish(self, name: str, status: Status, reason: str) -> Status:
        """Return the status before; publish a new snapshot on a change"""
        with self._lock:
            known = self.snapshot.servers.get(name)
            before = Status.UNKNOWN if known is None else known.status
            if before is not status:
                health = ServerHealth(status, reason, self._clock())
                self.snapshot = self.snapshot.with_server(name, health)

        return before

    def _watch(self) -> None:
        with self._lock:
            # A forked child has the object, and no thread behind it.
            running = self._thread is not None and self._thread.is_alive()
            if running or self._stopped.is_set():
                return

            self._thread = threading.Thread(
                target=self.run,
                name="anyblok-multi-engines-monitor",
                daemon=True,
            )
            self._thread.start()
