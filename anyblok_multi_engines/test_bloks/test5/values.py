# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
import enum


class Level(enum.Enum):
    LOW = 1
    MIDDLE = 2
    HIGH = 3


class Thing:
    """Says nothing of what is equal"""

    def __init__(self, n):
        self.n = n
