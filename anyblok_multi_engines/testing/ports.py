# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Ports of 127.0.0.1 that no other process of these tests will take."""

import atexit
import contextlib
import itertools
import os
import random
import socket
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

from .errors import ClusterError

HOST = "127.0.0.1"
#: The lowest port: below are the services that people run by hand.
LOWEST = 12_000

#: The reservations of this process; weak, as each belongs to its Port.
_reservations: weakref.WeakSet[socket.socket] = weakref.WeakSet()


class Port:
    """A port that this process has reserved among the users of this module.

    It stays reserved while nobody listens on it, so that a server can be
    stopped and started again. The reservation is a socket in Linux's abstract
    namespace: it has no file, and ends with the process. Elsewhere there is
    none, and only chance (1 in 20,000) keeps two processes apart.
    """

    def __init__(self, number: int, reservation: socket.socket | None) -> None:
        #: The number
        self.number = number
        self._reservation = reservation

    def release(self) -> None:
        """Give the port back; more than once does no harm."""
        if self._reservation is not None:
            self._reservation.close()


def reserve_port() -> Port:
    """Reserve a port that nobody listens on now.

    It is outside the range of the ephemeral ports: there a client that
    retries on a closed port can be given that port as its own, and connects
    to itself.

    :rtype: :class:`Port`
    :exception: ClusterError
    """
    for number in itertools.islice(numbers(), 1000):
        with contextlib.suppress(OSError):
            reservation = reserve(number)
            try:
                listen_once(number)
            except OSError:
                if reservation is not None:
                    reservation.close()
                raise
            return Port(number, reservation)
    raise ClusterError(f"1000 ports of {HOST} were tried, and none is free")


def numbers() -> Iterator[int]:
    """Candidates, each once, from a random one on.

    :rtype: iterator of int
    """
    lowest, highest = LOWEST, ephemeral_ports()[0]
    if highest - lowest < 1000:
        lowest, highest = ephemeral_ports()[1] + 1, 65_536
    if highest - lowest < 1000:
        lowest, highest = LOWEST, 65_536
    # Not the module's generator: the tests may have seeded it, all alike.
    first = random.SystemRandom().randrange(lowest, highest)
    yield from range(first, highest)
    yield from range(lowest, first)


def ephemeral_ports() -> tuple[int, int]:
    """The first and the last of the ports that the system gives to clients.

    :rtype: tuple of two int; those of IANA where the system does not say
    """
    with contextlib.suppress(OSError, ValueError):
        path = Path("/proc/sys/net/ipv4/ip_local_port_range")
        first, last = map(int, path.read_text().split())
        return first, last
    return 49_152, 65_535


def reserve(number: int) -> socket.socket | None:
    """Reserve a port among the users of this module.

    :param number: the port
    :rtype: what holds the reservation; None where there is no such thing
    :exception: OSError if another process has it
    """
    if sys.platform != "linux":
        return None
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held.bind(f"\0anyblok-multi-engines-port-{number}")
    except OSError:
        held.close()
        raise
    _reservations.add(held)
    return held


def forget_reservations() -> None:
    """Close all reservations: at the end, and in a child that was forked."""
    for held in list(_reservations):
        held.close()


def listen_once(number: int) -> None:
    """See that one can listen on a port.

    :param number: the port
    :exception: OSError if one can't
    """
    with listener(number):
        pass


def listener(number: int) -> socket.socket:
    """A socket that listens on a port of 127.0.0.1.

    :param number: the port
    :exception: OSError
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, number))
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening


atexit.register(forget_reservations)
os.register_at_fork(after_in_child=forget_reservations)
