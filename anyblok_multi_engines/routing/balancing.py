# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Which of several servers that would all do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from itertools import count

# Its fraction; no other number is further from a ratio of small ones.
GOLDEN_RATIO = 0.6180339887498949


class Policy(StrEnum):
    """How a server is chosen"""

    RANDOM = "random"
    ROUND_ROBIN = "round-robin"
    LEAST_BUSY = "least-busy"


class Draws:
    """Numbers that fill the range from 0 to 1 evenly, wherever one begins

    Each is the one before and the golden ratio's fraction more (Weyl's
    sequence): as good as random for one draw, and the shares of many come out
    even sooner. Threads may share it: an iterator of CPython's gives each
    number once.

    :param start: 0 <= start < 1
    """

    def __init__(self, start: float) -> None:
        self._numbers = count()
        self._start = start

    def __call__(self) -> float:
        """Return the next number"""
        return (self._start + next(self._numbers) * GOLDEN_RATIO) % 1.0


class Balancer:
    """Chooses among servers that would all do; threads share it

    :param policy: how
    :param shares: gives the share of each server, as it is now: of the reads,
        if all would do, its part of the sum; 0: only where nobody else is
        there
    :param use: gives how many connections to a server are in use
    :param start: 0 <= start < 1, for processes not to begin alike
    """

    def __init__(
        self,
        policy: Policy,
        shares: Callable[[], Mapping[str, float]],
        use: Callable[[str], int],
        start: float,
    ) -> None:
        self._policy = policy
        self._shares = shares
        self._use = use
        self._draw = Draws(start)
        # Replaced as a whole. Two threads may take the same turn at the same
        # moment: any may be the one that isn't counted, so no share changes.
        self._credits: Mapping[str, float] = {}

    def choose(self, names: Sequence[str]) -> str:
        """Return one of the servers

        :param names: at least one
        """
        if len(names) == 1:
            return names[0]

        if self._policy is Policy.ROUND_ROBIN:
            name, self._credits = self._turn(names)
            return name

        if self._policy is Policy.LEAST_BUSY:
            return less_busy(names, self._shares(), self._draw(), self._use)

        return at_random(names, self._shares(), self._draw())

    def peek(self, names: Sequence[str]) -> str:
        """Return the server that would be chosen, and let it be its turn still

        :param names: at least one
        """
        if self._policy is Policy.ROUND_ROBIN:
            return self._turn(names)[0]

        return self.choose(names)

    def _turn(self, names: Sequence[str]) -> tuple[str, Mapping[str, float]]:
        known = self._credits
        new = {name: self._draw() for name in names if name not in known}
        if new:
            known = self._credits = {**known, **new}

        return in_turn(names, self._shares(), known)


def at_random(
    names: Sequence[str], shares: Mapping[str, float], draw: float
) -> str:
    """Return one of the servers, each with a chance of its share

    :param names: at least one
    :param shares: of each; 0: only where nobody else is there
    :param draw: a random number, 0 <= draw < 1
    """
    return _drawn(_counting(names, shares), draw)[0]


def in_turn(
    names: Sequence[str],
    shares: Mapping[str, float],
    credits: Mapping[str, float],
) -> tuple[str, Mapping[str, float]]:
    """Return the server whose turn it is, and the credits after it

    Each turn brings every server its share, and takes a whole one from the one
    that serves. Who isn't among the names misses his turns for good: he is not
    flooded when he comes back. (nginx's smooth weighted round-robin.)

    :param names: at least one
    :param shares: of each; 0: only where nobody else is there
    :param credits: of each
    """
    counting = _counting(names, shares)
    total = sum(share for _, share in counting)
    after = {name: credits[name] + share / total for name, share in counting}
    name = max(after, key=after.__getitem__)
    after[name] -= 1.0
    return name, {**credits, **after}


def less_busy(
    names: Sequence[str],
    shares: Mapping[str, float],
    draw: float,
    use: Callable[[str], int],
) -> str:
    """Return the less busy of two servers that are drawn at random

    Of two, and not the least busy of all: many who choose at once would all
    choose that one. A server with twice the share is as busy with twice the
    use. The first that is drawn has it, unless the second would be no busier
    even with this one more: so what is hardly used is used by the shares.

    :param names: at least one
    :param shares: of each; 0: only where nobody else is there
    :param draw: a random number, 0 <= draw < 1
    :param use: gives how many connections to a server are in use
    """
    counting = _counting(names, shares)
    first, share, left = _drawn(counting, draw)
    others = [x for x in counting if x[0] != first]
    used = use(first)
    if not others or not used:
        return first

    second, other_share, _ = _drawn(others, left)
    is_better = (use(second) + 1) / other_share <= used / share
    return second if is_better else first


def _counting(
    names: Sequence[str], shares: Mapping[str, float]
) -> list[tuple[str, float]]:
    """Return the servers that have a share, or all where none has"""
    found = [(name, shares[name]) for name in names if shares[name]]
    return found or [(name, 1.0) for name in names]


def _drawn(
    counting: Sequence[tuple[str, float]], draw: float
) -> tuple[str, float, float]:
    """Return a server, its share, and a random number for another draw"""
    left = draw * sum([share for _, share in counting])
    for name, share in counting[:-1]:
        if left < share:
            return name, share, left / share

        left -= share

    name, share = counting[-1]
    return name, share, left / share
