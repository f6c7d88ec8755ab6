# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Which of several servers that would all do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

# Its fraction; no other number is further from a ratio of small ones.
GOLDEN_RATIO = 0.6180339887498949


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


def at_random(names: Sequence[str], draw: float) -> str:
    """Return one of the names, each with the same chance

    :param names: at least one
    :param draw: a random number, 0 <= draw < 1
    """
    return names[int(draw * len(names))]
