# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The owner of the Snapshot, and the thread that asks the servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from logging import getLogger
from random import Random
from types import MappingProxyType

from ..positions import Positions
from ..topology import Role, Server
from .asking import Asker, Asking, Probe
from .model import (
    Limits,
    Observation,
    ServerHealth,
    Snapshot,
    Status,
    judge,
    judge_failure,
    judge_standby,
)

logger = getLogger(__name__)

OnStatus = Callable[[Server, ServerHealth, ServerHealth], None]

# Seconds that stop() waits for the thread, which may wait for an answer.
PATIENCE = 5.0

# Seconds of one wait for an answer: a longer one is this process's own doing.
SLICE = 0.1


class Monitor:
    """Knows how the servers are

    Its thread asks each of them once in a while. A server also leaves when a
    session's connection to it fails; it comes back when it answers.

    :param probes: of the servers
    :param limits: of the replicas
    :param positions: where the answers' positions are noted
    :param on_hung: called with the name of a server that took longer
    :param on_moved: called where the primary's URL leads to another server
        than before, or has to
    :param on_status: called with a server whose status has changed, and what
        was and is known of it
    :param clock: seconds, monotonic
    """

    def __init__(
        self,
        probes: Mapping[Server, Probe],
        limits: Limits,
        positions: Positions,
        on_hung: Callable[[str], None] | None = None,
        on_moved: Callable[[], None] | None = None,
        on_status: OnStatus | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._servers = {server.name: server for server in probes}
        self._probes = {server.name: probe for server, probe in probes.items()}
        self._limits = limits
        self._positions = positions
        self._timeout = limits.connect_timeout
        self._on_hung = on_hung or _do_nothing
        self._on_moved = on_moved or _do_nothing
        self._on_status = on_status or _do_nothing
        self._clock = clock
        # Not the module's: tests and programs count on its state.
        self._random = Random().random
        # Guards what is below; readers take the snapshot as it is. A signal's
        # handler may stop the monitor in the middle of a change.
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._askers: dict[str, Asker] = {}
        # The last questions; of servers that hang they have no answer yet.
        self._asking: dict[str, Asking] = {}
        # Those of them that nobody has waited for.
        self._begun: dict[str, Asking] = {}
        self.snapshot = Snapshot(
            weights=MappingProxyType(
                {server.name: server.weight for server in probes}
            )
        )

    @property
    def is_running(self) -> bool:
        """Return True from the start to the stop, in a forked process too"""
        return self._thread is not None and not self._stopped.is_set()

    def start(self) -> None:
        """Start the thread, which keeps no process alive"""
        self._thread = threading.Thread(
            target=self.run, name="anyblok-multi-engines-monitor", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and close its connections

        It is waited for no longer than :data:`PATIENCE`.
        """
        self._stopped.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(PATIENCE)

        with self._lock:
            while self._askers:
                self._askers.popitem()[1].end()

        for probe in self._probes.values():
            probe.close()

    def run(self) -> None:
        """Ask the servers whose time has come, until stopped"""
        while not self._stopped.wait(self._pause()):
            try:
                now = self._clock()
                health = self.snapshot
                self.step(x for x in self._probes if health.of(x).ask_at <= now)
            except Exception:
                logger.exception("The monitor failed, and goes on")

    def begin(self) -> None:
        """Connect to the servers, where nobody has yet, and wait for none

        For who has something else to do before the first :meth:`step`.
        """
        with self._lock:
            for name in self._probes.keys() - self._asking.keys():
                self._begun[name] = self._ask(name)

    def step(self, names: Iterable[str] | None = None) -> None:
        """Ask servers once, side by side, and publish what they say

        :param names: of the servers; None: all
        """
        asked = {}
        with self._lock:
            for name in self._probes if names is None else names:
                before = self._asking.get(name)
                begun = self._begun.pop(name, None)
                if before is None or not before.is_pending:
                    # Not again while one hangs, or another thread asks.
                    asked[name] = self._ask(name)
                elif before is begun:
                    asked[name] = before

        waited = 0.0
        for name in sorted(asked, key=self._is_replica):
            waited = self._wait(asked[name], waited)
            self._note(name, asked[name])

    def _wait(self, asking: Asking, waited: float) -> float:
        """Wait for an answer, no longer than the timeout

        No server is late while this process doesn't run: a debugger or the
        system has stopped it, its machine is being moved, or code in C keeps
        the interpreter's lock. A wait that takes longer than it should counts
        as long as it should.

        :param waited: seconds that have been waited before, for all of them
        :return: the same, with this wait
        """
        while asking.is_pending and waited < self._timeout:
            begun, left = time.monotonic(), min(SLICE, self._timeout - waited)
            asking.is_over.wait(left)
            waited += min(time.monotonic() - begun, left)

        return waited

    def _ask(self, name: str) -> Asking:
        asker = self._askers.get(name)
        if asker is None or not asker.is_alive():
            asker = Asker(self._probes[name], self._stopped)
            asker.start()

        asking = self._asking[name] = asker.ask()
        if self.is_running:
            self._askers[name] = asker
        else:
            # Nobody would do it later.
            self._askers.pop(name, None)
            asker.end()

        return asking

    def report_down(self, name: str, reason: str) -> None:
        """Note that a server doesn't serve; its reads go elsewhere

        :param name: of the server
        :param reason: for a person, without a password
        """
        now = self._clock()
        self._publish(
            name,
            lambda known: (
                known
                if known.status is Status.DOWN
                else self._failed(name, known, reason, now)
            ),
        )

    def report_standby(self, name: str) -> None:
        """Note that the primary's URL has led to a standby; it is asked soon

        :param name: of the primary
        """
        if name in self._servers:
            now = self._clock()
            self._publish(name, lambda known: judge_standby(known, now))

    def _note(self, name: str, asking: Asking) -> None:
        """Note what came of a question"""
        answer = asking.answer
        if answer is not None:
            role = self._servers[name].role
            if role is Role.PRIMARY and self._has_moved(name, answer):
                # Of several hosts another one may be the primary by now.
                self._probes[name].close()
                self._on_moved()

            # As it was then: the answer may have waited for this process.
            lag = self._positions.lag_of(answer.position, answer.asked_at)
            self._publish(
                name,
                lambda known: judge(
                    known,
                    role,
                    answer,
                    self._positions.system_id,
                    lag if role is Role.REPLICA else None,
                    self._limits,
                ),
            )
            return

        failure = asking.failure
        if failure is None:
            failure = f"no answer within {self._timeout:g} s"
            self._probes[name].cut_off()

        now = self._clock()
        self._publish(
            name, lambda known: self._failed(name, known, failure, now)
        )
        if asking.failure is None:
            self._on_hung(name)

    def _has_moved(self, name: str, answer: Observation) -> bool:
        """Return True where connections to the primary lead elsewhere"""
        if answer.is_replica:
            return True

        before, now = self.snapshot.of(name).observation, answer.position
        if now is None or before is None or before.position is None:
            return False

        return before.position.timeline != now.timeline or (
            self._positions.is_left(now)
        )

    def _failed(
        self, name: str, known: ServerHealth, reason: str, now: float
    ) -> ServerHealth:
        """Return what it means that a server doesn't answer"""
        limits = self._limits
        if not self._is_replica(name):
            # Nobody serves in its place: it is missed each moment.
            limits = limits._replace(max_backoff=limits.interval)

        return judge_failure(known, reason, limits, self._random(), now)

    def _pause(self) -> float:
        """Return the seconds until the next question, less a random part"""
        health = self.snapshot
        first = min((health.of(x).ask_at for x in self._probes), default=0.0)
        left = min(max(first - self._clock(), 0.0), self._limits.interval)
        return left + 0.1 * self._limits.interval * self._random()

    def _is_replica(self, name: str) -> bool:
        return self._servers[name].role is Role.REPLICA

    def _publish(
        self, name: str, change: Callable[[ServerHealth], ServerHealth]
    ) -> None:
        """Publish a new snapshot, and tell a change of the status"""
        with self._lock:
            before = self.snapshot.of(name)
            after = change(before)
            if after is not before:
                after = after._replace(pool=self._probes[name].pool_use())
                self.snapshot = self.snapshot.with_server(name, after)

        if before.status is not after.status:
            self._tell(self._servers[name], before, after)
            self._on_status(self._servers[name], before, after)

    @staticmethod
    def _tell(
        server: Server, before: ServerHealth, after: ServerHealth
    ) -> None:
        if after.status is Status.READY:
            if before.status is not Status.UNKNOWN:
                logger.info("%s is ready again", server)
        elif after.status is Status.WRONG:
            logger.error("%s is not used: %s", server, after.reason)
        elif after.status is Status.LAGGING:
            logger.warning(
                "%s is out of the reads until it has caught up: %s",
                server,
                after.reason,
            )
        else:
            logger.warning(
                "%s is out of the reads until it answers: %s",
                server,
                after.reason,
            )


def _do_nothing(*what: object) -> None:
    """Nobody wants to know"""
