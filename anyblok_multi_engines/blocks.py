# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Blocks of code, and functions, whose caller says where they want to go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ContextDecorator
from inspect import (
    isasyncgenfunction,
    iscoroutinefunction,
    isgeneratorfunction,
)
from typing import Any, TypeVar

from .routing.intent import Wish

Function = TypeVar("Function", bound=Callable[..., Any])


class Begun(threading.local):
    """The blocks that one thread has begun; no other thread ends them"""

    def __init__(self) -> None:
        self.blocks: list[AbstractContextManager[None]] = []


class Block(ContextDecorator):
    """A block of code, or a function, whose caller says where it wants to go

    :param registry: of the session; each time the block begins, it is the
        one that the thread has then
    :param wish: what the caller wants
    """

    def __init__(self, registry: Any, wish: Wish) -> None:
        self._registry = registry
        self._wish = wish
        self._begun = Begun()

    def __call__(self, function: Function) -> Function:
        """Decorate a function: each of its calls is a block

        :exception: TypeError, for one that returns before its code has run
        """
        if isgeneratorfunction(function) or (
            iscoroutinefunction(function) or isasyncgenfunction(function)
        ):
            raise TypeError(
                f"{function.__qualname__} is a generator or a coroutine: "
                f"write 'with registry.{self._wish.intent}:' inside it"
            )

        return super().__call__(function)

    def _recreate_cm(self) -> Block:
        return Block(self._registry, self._wish)

    def __enter__(self) -> None:
        """Begin the block"""
        block = self._registry.session.wanting(self._wish)
        block.__enter__()
        self._begun.blocks.append(block)

    def __exit__(self, *error: Any) -> None:
        """End the block"""
        self._begun.blocks.pop().__exit__(*error)
