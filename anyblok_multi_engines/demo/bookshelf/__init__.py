# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The application of the demonstration: a blok with one model."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import ClassVar

from anyblok.blok import Blok


class Bookshelf(Blok):  # type: ignore[misc,unused-ignore]
    """Books, and which server wrote them"""

    version = "1.0.0"
    required: ClassVar[list[str]] = ["anyblok-core"]

    @classmethod
    def import_declaration_module(cls) -> None:
        """Import the model"""
        from . import book  # noqa: F401

    @classmethod
    def reload_declaration_module(
        cls, reload: Callable[[ModuleType], ModuleType]
    ) -> None:
        """Import the model again

        :param reload: AnyBlok's way to do it
        """
        from . import book

        reload(book)
