# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Wait for a fact, and say which one when it does not come true."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    what: str,
    condition: Callable[[], T],
    timeout: float = 10.0,
    interval: float = 0.01,
    ignore: tuple[type[BaseException], ...] = (),
) -> T:
    """Wait until ``condition()`` is true, and return what it returned.

    :param what: what did not happen, for the message
    :param condition: called again and again; it is called once more after
        the time is over, so that a long pause of this process is no failure
    :param timeout: seconds, default 10; 0 asks once
    :param interval: seconds between two calls, default 0.01
    :param ignore: exceptions of ``condition`` that mean "not yet"; the last
        one is the cause of the TimeoutError. Default: none
    :rtype: the first true value of ``condition()``
    :exception: TimeoutError
    """
    deadline = time.monotonic() + timeout
    cause: BaseException | None = None
    while True:
        over = time.monotonic() >= deadline
        try:
            value = condition()
        except ignore as error:
            cause = error
        else:
            cause = None
            if value:
                return value
        if over:
            raise TimeoutError(f"{what} within {timeout:g} s") from cause
        time.sleep(interval)
