# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Whose code has asked for a statement."""

from __future__ import annotations

import sys
from types import FrameType

# Modules that aren't the application's, by what their names begin with.
LIBRARIES = (
    "anyblok.",
    "anyblok_multi_engines.callers.",
    "anyblok_multi_engines.engines.",
    "anyblok_multi_engines.events.",
    "anyblok_multi_engines.provenance.",
    "anyblok_multi_engines.registry.",
    "anyblok_multi_engines.session.",
    "anyblok_multi_engines.shadow.",
    "anyblok_multi_engines.testing.",
    "anyblok_multi_engines.write_guard.",
    "contextlib.",
    "sqlalchemy.",
)


def place_of_caller() -> str:
    """Return ``file:line`` of the innermost code that is no library's"""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not f"{frame.f_globals.get('__name__')}.".startswith(LIBRARIES):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"

        frame = frame.f_back

    return "?"
