# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Which of several servers that would all do."""

from __future__ import annotations

from collections.abc import Sequence


def at_random(names: Sequence[str], draw: float) -> str:
    """Return one of the names, each with the same chance

    :param names: at least one
    :param draw: a random number, 0 <= draw < 1
    """
    return names[int(draw * len(names))]
