# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A TCP proxy that can refuse, swallow, delay or cut connections."""

import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .ports import HOST, listener, reserve_port
from .waiting import wait_until


class Link:
    """A client's connection, and the one to the server when there is."""

    def __init__(self, client: socket.socket) -> None:
        """Begin with the client's.

        :param client: its accepted connection
        """
        #: The open ends; closed by the link's own thread
        self.ends = [client]
        #: True when it was cut; guarded by the proxy's condition
        self.cut = False


class TcpProxy:
    """Forwards TCP connections, until it is told to do worse.

    The faults are independent of each other, and :meth:`heal` ends them all.
    """

    def __init__(self, host: str, port: int) -> None:
        """Listen on a port of 127.0.0.1, and forward.

        :param host: where to
        :param port: where to
        """
        #: Always "127.0.0.1"
        self.host = HOST
        self._target = (host, port)
        self._reserved = reserve_port()
        self._condition = threading.Condition()
        # All that follows is guarded by the condition.
        self._listening: socket.socket | None = None
        self._links: set[Link] = set()
        self._swallow = False
        self._seconds = 0.0
        self._closed = False
        self.heal()
        _proxies.add(self)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    @property
    def port(self) -> int:
        """The port that it listens on; the same after :meth:`refuse`."""
        return self._reserved.number

    @property
    def connections(self) -> int:
        """How many connections are open."""
        with self._condition:
            return len(self._links)

    def url(
        self, database: str = "postgres", driver: str = "postgresql"
    ) -> str:
        """A URL of SQLAlchemy's form, through the proxy.

        :param database: its name, default "postgres"
        :param driver: default "postgresql"
        :rtype: str
        """
        return f"{driver}://postgres@{self.host}:{self.port}/{database}"

    def forward_to(self, port: int) -> None:
        """Forward new connections to another server; open ones live on.

        It is no fault, and :meth:`heal` leaves it.

        :param port: of the server, on 127.0.0.1
        """
        with self._condition:
            self._target = (HOST, port)

    # Faults

    def refuse(self) -> None:
        """Refuse new connections, as if no server ran; open ones live on."""
        with self._condition:
            listening, self._listening = self._listening, None
        if listening is not None:
            shut(listening)
            listening.close()

    def blackhole(self) -> None:
        """Accept connections, and forward nothing, on open ones neither.

        What was sent meanwhile is delivered after :meth:`heal`, as TCP does.
        """
        with self._condition:
            self._swallow = True

    def delay(self, seconds: float) -> None:
        """Make each round trip longer: what clients send is held back.

        To open a connection takes two round trips, or three with TLS.

        :param seconds: 0: no delay
        """
        with self._condition:
            self._seconds = seconds

    def drop(self) -> None:
        """Cut the open connections; new ones are accepted."""
        with self._condition:
            links = set(self._links)
            for link in links:
                self._cut(link)
        wait_until(
            f"The proxy on port {self.port} did not drop its connections",
            lambda: links.isdisjoint(self._links),
            interval=0.001,
        )

    def heal(self) -> None:
        """End all faults; connections that were cut stay so."""
        with self._condition:
            self._swallow = False
            self._seconds = 0.0
            self._condition.notify_all()
            if self._listening is None and not self._closed:
                self._listening = listener(self.port)
                self._run(self._accept, self._listening)

    def close(self) -> None:
        """Cut all, and listen no more; more than once does no harm."""
        with self._condition:
            self._closed = True
        self.refuse()
        self.drop()
        self._reserved.release()

    def forget(self) -> None:
        """Close what a forked child has of it; the parent's lives on."""
        self._condition = threading.Condition()
        self._closed = True
        for end in [end for link in self._links for end in link.ends]:
            end.close()
        if self._listening is not None:
            self._listening.close()
        self._links, self._listening = set(), None

    # Its threads: one that accepts, two for each connection

    def _run(
        self, work: Callable[..., None], *arguments: object
    ) -> threading.Thread:
        """Work in a thread that does not keep the process alive."""
        thread = threading.Thread(
            target=work,
            args=arguments,
            name=f"proxy-{self.port}",
            daemon=True,
        )
        thread.start()
        return thread

    def _accept(self, listening: socket.socket) -> None:
        """Take clients until the listening socket is shut."""
        with contextlib.suppress(OSError):
            while True:
                link = Link(listening.accept()[0])
                with self._condition:
                    self._links.add(link)
                    if self._closed:
                        self._cut(link)
                self._run(self._serve, link)

    def _serve(self, link: Link) -> None:
        """Connect a client to the server, forward, and close both ends."""
        client = link.ends[0]
        answers: threading.Thread | None = None
        # A server that is not there: the client sees its connection end.
        with contextlib.suppress(OSError):
            if self._may_pass(link, delayed=False):
                server = socket.create_connection(self._target, timeout=10.0)
                server.settimeout(None)
                with self._condition:
                    link.ends.append(server)
                answers = self._run(self._pump, link, server, client, False)
                self._pump(link, client, server, True)
        with self._condition:
            self._cut(link)
        if answers is not None:
            answers.join()
        for end in link.ends:
            end.close()
        with self._condition:
            self._links.discard(link)

    def _pump(
        self,
        link: Link,
        source: socket.socket,
        sink: socket.socket,
        delayed: bool,
    ) -> None:
        """Forward one direction; its end is the end of the connection."""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self._may_pass(link, delayed):
                    break
                sink.sendall(data)
        with self._condition:
            self._cut(link)

    def _may_pass(self, link: Link, delayed: bool) -> bool:
        """Wait as long as a fault says; False if the link was cut."""
        with self._condition:
            if delayed and self._seconds:
                self._condition.wait_for(lambda: link.cut, self._seconds)
            self._condition.wait_for(lambda: link.cut or not self._swallow)
            return not link.cut

    def _cut(self, link: Link) -> None:
        """End a connection; its thread closes it. Under the condition."""
        link.cut = True
        self._condition.notify_all()
        for end in link.ends:
            shut(end)


def shut(one: socket.socket) -> None:
    """Wake the threads that wait on a socket; the other side sees its end.

    :param one: any socket
    """
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


#: The proxies of this process; weak, as each belongs to who made it.
_proxies: weakref.WeakSet[TcpProxy] = weakref.WeakSet()


def forget_proxies() -> None:
    """Leave the proxies to the process that this one was forked from."""
    for proxy in list(_proxies):
        proxy.forget()


os.register_at_fork(after_in_child=forget_proxies)
